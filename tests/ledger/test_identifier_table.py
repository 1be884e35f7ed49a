"""The table of identifiers against a dict: what is added is found, what is removed is gone, and nothing else ever is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import _probe

COUNT_MAX = 12
LAST = 2**64 - 1

# Low words whose search begins at the last slots of the table, at the first ones, and anywhere; few, so that runs grow together.
LOW = st.one_of(st.integers(0, 3).map(lambda back: LAST - back * (LAST // 20)), st.sampled_from([0, 1, LAST // 20]), st.integers(0, LAST))
KEYS = st.tuples(LOW, st.integers(0, 5))


def check(table: _probe.Identifiers, wanted: dict[tuple[int, int], int]) -> None:
    slots = table.slots
    assert {(low, high): member for low, high, member in slots if member} == wanted
    assert sum(member != 0 for _, _, member in slots) == len(wanted) == table.count, "a key stands twice"
    for key, member in wanted.items():
        assert table.find(key) == member
    for at, (low, high, member) in enumerate(slots):
        if member == 0:
            assert (low, high) == (0, 0), "an empty slot is all zeros"
            continue
        place = table.place(low)
        while place != at:  # no gap between a key's place and its slot, around the end of the table
            assert slots[place][2] != 0, f"the key at {at} cannot be reached from {table.place(low)}"
            place = (place + 1) % len(slots)


@settings(max_examples=250, deadline=None)
@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=60))
def test_it_is_a_dict_whatever_is_added_and_removed(steps):
    table, wanted = _probe.Identifiers(COUNT_MAX), {}
    for number, (adding, key) in enumerate(steps, start=1):
        if key in wanted and not adding:
            table.remove(key)
            del wanted[key]
        elif key not in wanted and len(wanted) < COUNT_MAX:
            table.add(key, number)
            wanted[key] = number
        assert table.find(key) == wanted.get(key, 0)
        check(table, wanted)


@pytest.mark.parametrize("gone", range(COUNT_MAX))
def test_any_one_of_a_run_over_the_table_s_end_can_go(gone):
    """Twelve keys that all begin at the last slot: the run goes around the end."""
    table, keys = _probe.Identifiers(COUNT_MAX), [(LAST, high) for high in range(COUNT_MAX)]
    for member, key in enumerate(keys, start=1):
        table.add(key, member)
    assert table.slots[-1][2] and table.slots[COUNT_MAX - 2][2], "the run goes around the end"
    table.remove(keys[gone])
    check(table, {key: member for member, key in enumerate(keys, start=1) if member != gone + 1})


def test_a_full_table_is_emptied_and_filled_again_and_again():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    table, wanted = _probe.Identifiers(300), {}
    for _ in range(20):
        while len(wanted) < 300:
            key = (chance.choice([chance.getrandbits(64), LAST - chance.getrandbits(58)]), chance.getrandbits(64))
            if key not in wanted:
                wanted[key] = len(wanted) + 1
                table.add(key, wanted[key])
        check(table, wanted)
        for key in chance.sample(sorted(wanted), chance.randrange(250, 301)):
            table.remove(key)
            del wanted[key]
        check(table, wanted)
    for key in sorted(wanted):
        table.remove(key)
    assert not any(any(slot) for slot in table.slots), "no trace is left"
