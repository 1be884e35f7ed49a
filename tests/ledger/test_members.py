"""Profiles, counters, days and campaigns: entries made freely by the second writer change core and plain Python alike.

After every entry the digest is the same, from a snapshot of any moment too. What decides such entries is not looked at here.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from ledger._probe import fact_hash_

from ledger import limits
from ledger.journal import read_entry
from ledger.rules import compile_file
from server._local import LocalLedger
from tests.ledger.forging import entry, section, signed, text, varint
from tests.ledger.rules_state import DAY, MONTH, NO_WINDOW, RulesState, behind

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden" / "snapshot-v1.snap"
START_US = 1_790_000_000_000_000
TODAY = 20_717
MASK = (1 << 64) - 1
KEY = bytes(range(16))
SIZES = {"members_max": 3000, "ids_max": 4000, "identity_key": KEY}
APPLY_FRAMING, APPLY_MEMBER, APPLY_SUM = 1, 3, 5
EARN, SET_SEGMENTS, SET_ATTRIBUTES, ENROLL = 1, 13, 14, 7


def opened(day: int) -> bytes:
    return section(17, signed(day))


def state(day: int, receipt: int, tier: int = 0, until: int = 2**31 - 1) -> bytes:
    return section(16, signed(day) + varint(receipt) + bytes([0, tier]) + varint(until) + text("base") + text(""))


def counters(*rows: tuple[int, int, int, int], drop_before: int = 0) -> bytes:
    """Rows: counter, per, window, increment."""
    return section(18, signed(drop_before) + b"".join(
        counter.to_bytes(4, "little") + bytes([per]) + signed(window) + signed(increment) for counter, per, window, increment in rows))


def campaigns(*rows: tuple[int, int, int]) -> bytes:
    return section(19, b"".join(key.to_bytes(4, "little") + signed(points) + signed(uses) for key, points, uses in rows))


def days(keep: int, *rows: tuple[int, int, int]) -> bytes:
    return section(20, varint(keep) + b"".join(signed(day) + signed(receipts) + signed(spent) for day, receipts, spent in rows))


class Twins:
    """A core and plain Python that take the same entries."""

    def __init__(self) -> None:
        compiled = compile_file(ROOT / "programs" / "base.yaml")
        self.core = LocalLedger(compiled.image, compiled.source, START_US, **SIZES)
        self.plain = RulesState()
        self.accounts: dict[int, int] = {}  # member: sequence of the last entry
        self.sequence = 1
        self.entries = list(self.core.entries())

    def add(self, kind: int, member: int, *sections: bytes, opens: bool = False) -> None:
        made = entry(kind, *sections, time_us=START_US + self.sequence, member=member, opened=opens)
        assert self.core.apply(made) == 0
        self.entries.append(made)
        self.sequence += 1
        self.accounts[member] = self.sequence
        self.plain.apply(read_entry(made))
        assert self.core.digest() == self.digest()

    def refuse(self, code: int, member: int, *sections: bytes) -> None:
        """On a copy: the state is spoilt afterwards."""
        copy = LocalLedger.replay(self.entries, **SIZES)
        assert copy.apply(entry(EARN, *sections, time_us=START_US + self.sequence, member=member)) == code

    def digest(self) -> bytes:
        facts = [fact_hash_(1, member, sequence, 0, 0, 0) for member, sequence in self.accounts.items()]
        facts += [fact_hash_(*(word & MASK for word in words)) for words in self.plain.facts()]
        return (sum(facts) % (1 << 128)).to_bytes(16, "little")

    def check_counts(self) -> None:
        stats, profiles = self.core.stats(), self.plain.profiles.values()
        assert stats["counters"] == sum(len(profile.counters) for profile in profiles)
        assert stats["days"] == sum(len(profile.days) for profile in profiles)
        assert stats["campaigns"] == len(self.plain.campaigns)

    def reload(self, path: Path, **other: int) -> None:
        """By way of a snapshot and tables of another size; and by way of the journal."""
        self.core.save(path)
        replayed = LocalLedger.replay(self.entries, **SIZES)
        self.core = LocalLedger.load(path, self.entries, **(SIZES | other))
        for ledger in (self.core, replayed):
            assert ledger.digest() == self.digest()
        told = self.core.stats()
        assert {name: replayed.stats()[name] for name in ("counters", "days", "campaigns", "members")} == {
            name: told[name] for name in ("counters", "days", "campaigns", "members")}


@pytest.fixture
def twins() -> Twins:
    made = Twins()
    for member in range(1, 7):
        made.add(ENROLL, member, *([opened(TODAY)] if member % 2 else []), opens=True)
    return made


@pytest.mark.parametrize("seed", range(4))
def test_core_and_plain_python_keep_the_same(twins: Twins, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    keys = [chance.randrange(256, 2**32) for _ in range(40)]
    for step in range(300):
        member, what = chance.randrange(1, 7), chance.randrange(20)
        profile = twins.plain.profiles.get(member)
        if what == 0:
            words = [chance.getrandbits(64) for _ in range(4)]
            twins.add(SET_SEGMENTS, member, section(21, b"".join(map(varint, words))))
        elif what == 1:
            born = chance.choice([b"", b"\x01" + varint(chance.randrange(1, 13) * 32 + 5) + signed(TODAY + 365)])
            chosen = chance.choice([b"", b"\x02" + varint(chance.getrandbits(64))])
            twins.add(SET_ATTRIBUTES, member, section(22, born + chosen))
        elif what == 2:
            twins.reload(tmp_path / "snap", members_max=chance.choice([3000, 7, 20_000]))
        else:
            day = TODAY + step // 4 - chance.choice([0, 0, 0, 1, 40, 400])
            rows = []
            for _ in range(chance.choice([0, 1, 3, 20])):
                which = chance.randrange(len(keys))
                per = which % 7 + 1
                window = {1: day, 2: (day + 3) // 7, 3: 2026 * 12 + chance.randrange(12), 4: 2020 + chance.randrange(9), 5: 0,
                          6: 2026, 7: chance.randrange(4)}[per]
                rows.append((keys[which], per, window, chance.choice([0, 1, 500, -1])))
            parts = [state(day, (profile.receipts if profile else 0) + 1, chance.randrange(4), chance.choice([TODAY + 30, 2**31 - 1]))]
            if rows or chance.random() < 0.2:
                parts.append(counters(*rows, drop_before=day - 100))
            if chance.random() < 0.4:
                parts.append(campaigns(*((key, chance.choice([5, 0, -5]), 1) for key in chance.sample(keys, 2))))
            if chance.random() < 0.6:
                back = [(day - 1, -1, -5)] * chance.randrange(2)
                parts.append(days(chance.choice([30, 60, 1000]), (day, 1, chance.randrange(10**6)), *back))
            twins.add(EARN, member, *parts)
        twins.check_counts()
    assert twins.core.stats()["counters"] > 20
    twins.reload(tmp_path / "snap")


def test_the_latest_two_windows_of_a_counter_are_kept(twins: Twins) -> None:
    def windows() -> dict[int, int]:
        return twins.plain.profiles[1].counters[300][1]

    for window, increment, kept in ((10, 5, {10: 5}), (12, 1, {10: 5, 12: 1}), (9, 7, {10: 5, 12: 1}), (11, 7, {11: 7, 12: 1}),
                                    (10, 7, {11: 7, 12: 1}), (11, -3, {11: 4, 12: 1}), (8, -3, {11: 4, 12: 1}), (20, 2, {12: 1, 20: 2})):
        twins.add(EARN, 1, counters((300, DAY, window, increment)))
        assert windows() == kept
    twins.add(EARN, 1, counters((301, DAY, 10, -1)))
    assert 301 not in twins.plain.profiles[1].counters, "what was never taken cannot be given back"


def test_counters_whose_windows_ended_long_ago_make_room_for_new_ones(twins: Twins) -> None:
    twins.add(EARN, 1, counters((300, DAY, TODAY, 1), (301, MONTH, 2026 * 12 + 8, 1), (302, 5, 0, 1)))
    twins.add(EARN, 1, counters((300, DAY, TODAY + 1, 1), drop_before=TODAY + 400))
    assert sorted(twins.plain.profiles[1].counters) == [300, 301, 302], "only when there is a new one"
    twins.add(EARN, 1, counters((303, DAY, TODAY + 400, 1), drop_before=TODAY + 2))
    assert sorted(twins.plain.profiles[1].counters) == [301, 302, 303]
    twins.add(EARN, 1, counters((304, DAY, TODAY + 400, 1), drop_before=TODAY + 300))
    assert sorted(twins.plain.profiles[1].counters) == [302, 303, 304]
    twins.check_counts()


def test_days_that_left_the_longest_window_are_dropped(twins: Twins) -> None:
    for day in (5, 1, 3, 5, 40, 10):
        twins.add(EARN, 2, days(30, (TODAY + day, 1, 100)))
    assert sorted(day - TODAY for day in twins.plain.profiles[2].days) == [40]
    twins.add(EARN, 2, days(31, (TODAY + 10, 1, 100)))
    assert sorted(day - TODAY for day in twins.plain.profiles[2].days) == [10, 40]
    twins.check_counts()


def test_many_members_with_many_counters_move_in_memory_and_lose_nothing(twins: Twins, tmp_path: Path) -> None:
    """Pieces grow through every size, shrink, and move into each other's places."""
    chance = random.Random(5)
    for step in range(80):
        member = chance.randrange(1, 7)
        size = chance.choice([1, 3, 40, 120])
        first = chance.randrange(256, 5000)
        rows = [(first + i, DAY, TODAY + step, 1) for i in range(size)]
        twins.add(EARN, member, counters(*rows, drop_before=TODAY + step - chance.choice([2, 300])),
                  days(chance.choice([2, 200]), *((TODAY + step + i, 1, i) for i in range(chance.randrange(60)))))
    twins.check_counts()
    twins.reload(tmp_path / "snap")


def test_a_campaign_is_counted_over_all_members(twins: Twins) -> None:
    for member, key in ((1, 7), (2, 7), (3, 2**32 - 1), (4, 0)):
        twins.add(EARN, member, campaigns((key, 10, 1)))
    assert twins.plain.campaigns == {7: [20, 2], 2**32 - 1: [10, 1], 0: [10, 1]}
    twins.check_counts()


def test_an_entry_that_does_not_fit_is_refused(twins: Twins) -> None:
    twins.add(EARN, 1, state(TODAY, 1))
    twins.refuse(APPLY_MEMBER, 1, state(TODAY, 1))
    twins.refuse(APPLY_MEMBER, 1, state(TODAY, 3))
    twins.refuse(APPLY_FRAMING, 1, state(-1, 2))
    twins.refuse(APPLY_FRAMING, 1, section(16, b"\x00"))
    twins.refuse(APPLY_FRAMING, 1, opened(TODAY))  # only where it opens the account
    twins.refuse(APPLY_FRAMING, 1, counters((300, 0, 1, 1)))
    twins.refuse(APPLY_FRAMING, 1, counters((300, 8, 1, 1)))
    twins.refuse(APPLY_FRAMING, 1, counters((300, DAY, -1, 1)))
    twins.refuse(APPLY_FRAMING, 1, section(18, signed(0) + bytes(5)))
    twins.refuse(APPLY_FRAMING, 1, section(19, bytes(3)))
    twins.refuse(APPLY_FRAMING, 1, days(30, (-1, 1, 1)))
    twins.refuse(APPLY_FRAMING, 1, section(21, bytes(3)))
    twins.refuse(APPLY_FRAMING, 1, section(22, b"\x03"))
    big = 2**63 - 1
    twins.refuse(APPLY_SUM, 1, counters((300, DAY, 1, big), (300, DAY, 1, 1)))
    twins.refuse(APPLY_SUM, 1, campaigns((7, big, 0), (7, 1, 0)))
    twins.refuse(APPLY_SUM, 1, days(30, (1, 1, big), (1, 0, 1)))
    twins.refuse(APPLY_SUM, 1, days(30, (1, 2**31 - 1, 0), (1, 1, 0)))


def test_a_member_has_only_so_many_days(twins: Twins) -> None:
    rows = [(day, 1, 1) for day in range(limits.DAYS_PER_MEMBER_MAX)]
    twins.add(EARN, 1, days(10**6, *rows))
    twins.refuse(10, 1, days(10**6, (10**5, 1, 1)))
    assert len(twins.plain.profiles[1].days) == limits.DAYS_PER_MEMBER_MAX


def test_the_ends_of_windows_are_those_of_the_calendar() -> None:
    assert behind(MONTH, 2026 * 12 + 11, 0) == (behind(4, 2026, 0)) == 20_819
    assert NO_WINDOW == 0x8000_0000


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_snapshot_of_an_older_version_is_read_for_ever(tmp_path: Path, version: int) -> None:
    expected = json.loads(GOLDEN.with_suffix(".json").read_text())
    ledger = LocalLedger.load(GOLDEN.with_name(f"snapshot-v{version}.snap"), None, **SIZES)
    assert ledger.digest().hex() == expected.pop("digest")
    stats = ledger.stats()
    assert {name: stats[name] for name in expected} == expected
    ledger.save(tmp_path / "snap")
    again = LocalLedger.load(tmp_path / "snap", None, **SIZES)
    assert again.digest() == ledger.digest()
    assert int.from_bytes((tmp_path / "snap").read_bytes()[8:12], "little") == 4
