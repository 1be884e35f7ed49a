"""Velocity counters against the slow model, over both edges of every window; full and damaged ones; and how far the sketch is off."""

from __future__ import annotations

import random
from decimal import Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import _probe
from tests import velocity_model as model

DAY_S = 86_400
START_S = 20_543 * DAY_S - 2  # two seconds before a Monday, 2026-03-31 ahead
CALENDARS, SLIDINGS, DISTINCTS = 0, 1, 2
IDS = [8 * 7 + kind for kind in model.KINDS]
SLIDING_IDS = {8 * 3 + 5: 60, 8 * 4 + 5: 3600, 8 * 5 + 5: DAY_S}
RECENT_IDS = {8 * 9 + 5: 60, 8 * 10 + 5: 3600}
ZONES_S = (-8 * 3600, 0, 14 * 3600)
LAST = 2**64 - 1


def keys_at_the_end() -> list[int]:
    """Keys whose search begins in the last slots of a table of 40, so that their counters go around its end."""
    table = _probe.VelocityTables(40, 40, 40)
    return [key for key in range(2000) if table.home(CALENDARS, key or 1) >= table.capacity(CALENDARS) - 3][:3]


KEYS = [*keys_at_the_end(), 0, LAST]


class Both:
    """The model, and tables that take the dead out early (few slots, or a whole sweep with each step) and hardly ever (many slots)."""

    def __init__(self, zone_s: int) -> None:
        self.zone_s = zone_s
        self.model = model.VelocityModel()
        self.tables = [_probe.VelocityTables(*[most] * 3) for most in (40, 40, 3000)]
        self.now(START_S - zone_s)

    def now(self, now_s: int) -> None:
        self.now_s, self.today = now_s, (now_s + self.zone_s) // DAY_S
        for each in (self.model, *self.tables):
            each.now(now_s, self.today)

    def same(self, call: str, *arguments: int) -> Any:
        wanted = getattr(self.model, call)(*arguments)
        assert [getattr(table, call)(*arguments) for table in self.tables] == [wanted] * 3, (call, arguments)
        return wanted

    def go_on(self, choice: int, seconds: int) -> None:
        """To just before or at an edge: of a day, a Monday, a month, a bucket; or some seconds on."""
        local = self.now_s + self.zone_s
        days = local // DAY_S
        monday = days + 7 - (days + 3) % 7
        month = model.first_day(model.MONTH, model.window_of(model.MONTH, days) + 1)
        bucket = (3600 // 12, 60 // 12, DAY_S // 12)[seconds % 3]
        edges = [(days + 1) * DAY_S, monday * DAY_S, month * DAY_S]
        edge = edges[choice] - self.zone_s if choice < 3 else (self.now_s // bucket + 1 + seconds % 14) * bucket
        target = self.now_s + seconds if choice == 4 else edge - (seconds & 1)
        self.now(max(self.now_s, target))

    def do(self, step: tuple[str, int, int, int, int]) -> None:
        """One step, after which everything that a counter can be asked is the same."""
        what, which, who, back, amount = step
        key = KEYS[who % len(KEYS)]
        if what == "time":
            self.go_on(which % 5, amount % 400_000)
        elif what == "sliding":
            id, window_s = list(SLIDING_IDS.items())[which % 3]
            time_s = self.now_s - back * window_s // 24
            self.same("sliding_used", key, id, time_s, window_s)
            self.same("sliding_add", key, id, time_s, window_s, amount)
            self.same("sliding_used", key, id, time_s, window_s)
            self.same("sliding_used", key, id, self.now_s, window_s)
        elif what == "recent":
            id, window_s = list(RECENT_IDS.items())[which % 2]
            time_s, who = self.now_s - back * window_s // 24, amount % 20 << 4
            wanted = self.same("recent_with", key, id, time_s, window_s, who)
            if self.same("recent_add", key, id, time_s, window_s, who) == 0:
                assert self.same("recent_with", key, id, time_s, window_s, who) in (wanted, wanted - 1)
            self.same("recent_with", key, id, self.now_s, window_s, 0)
        else:
            id = IDS[which % 4]
            window = max(0, model.window_of(id & 7, self.today) + 2 - back % 6) if id & 7 != model.EVER else 0
            for other in range(max(0, window - 2), window + 3) if id & 7 != model.EVER else [0]:
                self.same("used", key, id, other)
                self.same("distinct_with", key, id, other, amount % 11)
            if what == "distinct":
                wanted = self.same("distinct_with", key, id, window, amount % 11)
                if self.same("distinct_add", key, id, window, amount % 11) == 0:
                    assert self.same("distinct_with", key, id, window, amount % 11) == wanted
            else:
                self.same("add", key, id, window, amount)
                self.same("used", key, id, window)
        self.tables[1].sweep(100)
        self.same("digest", self.today)
        self.same("digest", self.today + 1)


AMOUNTS = st.one_of(st.integers(-10, 400_000), st.sampled_from([2**63 - 1, -(2**63), 2**32 - 1, 2**32, 0, 1]))
KINDS = ["time", "add", "add", "sliding", "sliding", "recent", "recent", "distinct"]
STEPS = st.tuples(st.sampled_from(KINDS), st.integers(0, 59), st.integers(0, 4), st.integers(0, 40), AMOUNTS)


def check_slots(table: _probe.VelocityTables) -> None:
    """Every slot is reached from its key's place, no counter stands twice, and every piece knows its slot."""
    for number in (CALENDARS, SLIDINGS, DISTINCTS):
        slots = table.slots(number)
        names = [(key, id, window & 1 if number != SLIDINGS else 0) for key, id, window in slots if key]
        assert len(names) == len(set(names)) == list(table.stats.values())[number]
        for at, (key, _, _) in enumerate(slots):
            place = table.home(number, key) if key else at
            while place != at:
                assert slots[place][0] != 0, f"the slot {at} of table {number} cannot be reached"
                place = (place + 1) % len(slots)
    assert table.owners()


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(ZONES_S), st.lists(STEPS, max_size=60))
def test_tables_say_what_the_model_says_whenever_the_dead_are_taken_out(zone_s, steps):
    both = Both(zone_s)
    for step in steps:
        both.do(step)
    for table in both.tables:
        check_slots(table)


@pytest.mark.parametrize("zone_s", ZONES_S)
def test_long_histories_are_the_same_too(zone_s):
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance, both = random.Random(seed), Both(zone_s)
    for number in range(3000):
        amount = chance.choice([chance.randrange(-10, 20), chance.randrange(400_000), 2**63 - 1, -(2**63), 2**32 - 1])
        both.do((chance.choice(KINDS), chance.randrange(60), chance.randrange(5),
                 chance.randrange(41), amount))
        if number % 100 == 0:
            for table in both.tables:
                check_slots(table)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(ZONES_S), st.lists(STEPS, max_size=50), st.lists(STEPS, max_size=20))
def test_what_was_saved_and_loaded_goes_on_as_if_nothing_had_been(zone_s, before, after):
    both = Both(zone_s)
    for step in before:
        both.do(step)
    loaded = [_probe.VelocityTables(most, most, most) for most in (40, 33, 500)]
    for old, new in zip(both.tables, loaded, strict=True):
        new.now(both.now_s, both.today)
        tables, sums = old.save()
        assert [new.load(number, record) for number, records in enumerate(tables) for record in records] == [0] * sum(map(len, tables))
        assert new.load_sums(sums) == 0
        assert [sorted(records) for records in new.save()[0]] == [sorted(records) for records in tables]
        assert new.save()[1] == sums
        check_slots(new)
    both.tables = loaded
    both.same("digest", both.today)
    for step in after:
        both.do(step)


# --- windows --------------------------------------------------------------------------------------------------------

def test_windows_are_those_of_the_calendar():
    for day in (*range(1500), *range(20_000, 22_500), *range(83_000, 84_000)):
        for kind in model.KINDS:
            window = model.window_of(kind, day)
            assert _probe.velocity_window_(kind, day) == window
            assert _probe.velocity_dead_day_(kind, window) == model.dead_day(kind, window)
            assert model.dead_day(kind, window) > day


@pytest.mark.parametrize("kind", model.KINDS[:3])
def test_a_window_lives_until_the_one_behind_its_successor_begins(kind):
    both, id = Both(0), 8 + kind
    window = model.window_of(kind, both.today)
    dead = model.dead_day(kind, window)
    both.same("add", 5, id, window, 100)
    both.now(dead * DAY_S - 1)
    assert both.same("used", 5, id, window) == 100
    assert both.same("add", 5, id, window, 1) == 0
    assert both.same("digest", both.today) != 0
    both.now(dead * DAY_S)
    assert both.same("used", 5, id, window) == 0
    assert both.same("add", 5, id, window, 1) == 1
    assert both.same("digest", both.today) == 0


def test_what_is_older_than_the_window_held_or_too_far_ahead_counts_nowhere():
    both, id = Both(0), 8 + model.DAY
    for ahead, wanted in ((-2, 1), (-1, 0), (0, 0), (1, 0), (2, 1), (-1, 1)):
        assert both.same("add", 5, id, both.today + ahead, 7) == wanted
    assert [both.same("used", 5, id, both.today + ahead) for ahead in (-1, 0, 1)] == [0, 7, 7]


def test_a_value_is_never_below_nothing_and_never_more_than_fits():
    both, id = Both(0), 8 + model.EVER
    for amount, wanted in ((-5, 0), (10, 10), (-3, 7), (-8, 0), (2**63 - 1, 2**63 - 1), (1, 2**63 - 1), (-(2**63), 0)):
        both.same("add", 5, id, 0, amount)
        assert both.same("used", 5, id, 0) == wanted
    for _ in range(2):
        both.same("sliding_add", 5, 13, both.now_s, 60, 2**32 - 2)
    assert both.same("sliding_used", 5, 13, both.now_s, 60) == 2**32 - 1


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([60, 120, 3600, DAY_S]), st.data())
def test_a_sliding_window_is_never_late_and_at_most_a_twelfth_early(window_s, data):
    """Against every event with its second. Late ones come too: whatever the last window holds is counted."""
    table, bucket_s = _probe.VelocityTables(1, 1, 1), window_s // 12
    now_s, events = START_S // bucket_s * bucket_s, []
    gaps = st.one_of(st.integers(0, 3), st.sampled_from([bucket_s - 1, bucket_s, bucket_s + 1, window_s - 1, window_s, window_s + 1,
                                                         window_s + bucket_s, 13 * bucket_s - 1]), st.integers(0, 2 * window_s))
    for gap, back, amount in data.draw(st.lists(st.tuples(gaps, st.one_of(st.just(0), st.integers(0, window_s)), st.integers(1, 9)),
                                                min_size=1, max_size=40)):
        now_s += gap
        table.now(now_s, now_s // DAY_S)
        assert table.sliding_add(1, 13, now_s - back, window_s, amount) == 0
        events.append((now_s - back, amount))
        used = table.sliding_used(1, 13, now_s, window_s)
        assert used >= sum(amount for at, amount in events if at > now_s - window_s), "late"
        assert used <= sum(amount for at, amount in events if at > now_s - window_s - bucket_s), "too early"


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([60, 3600, DAY_S]), st.data())
def test_different_ones_of_a_sliding_window_are_exact_up_to_thirteen_and_never_late(window_s, data):
    """Against every event with its second, in whatever order they come."""
    table, bucket_s = _probe.VelocityTables(1, 1, 1), window_s // 12
    now_s, events = START_S // bucket_s * bucket_s, []
    gaps = st.one_of(st.integers(0, 3), st.integers(0, window_s // 4),
                     st.sampled_from([bucket_s, bucket_s + 1, window_s, window_s + bucket_s]))
    for gap, back, who in data.draw(st.lists(st.tuples(gaps, st.one_of(st.just(0), st.integers(0, window_s)), st.integers(0, 30)),
                                             min_size=1, max_size=60)):
        now_s += gap
        table.now(now_s, now_s // DAY_S)
        assert table.recent_add(1, 13, now_s - back, window_s, who << 4) == 0
        events.append((now_s - back, who))
        found = table.recent_with(1, 13, now_s, window_s, 99 << 4) - 1  # 99 is new to it
        assert found >= min(13, len({who for at, who in events if at > now_s - window_s})), "late"
        assert found <= len({who for at, who in events if at > now_s - window_s - bucket_s}), "too early"


def test_who_makes_room_when_more_than_thirteen_come_at_once():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance, both = random.Random(seed), Both(0)
    for _ in range(2000):
        both.now(both.now_s + chance.choice((0, 0, 0, 1, 5)))
        both.same("recent_add", 5, 77, both.now_s - chance.choice((0, 0, 4, 30)), 60, chance.randrange(40) << 4)
        both.same("recent_with", 5, 77, both.now_s, 60, chance.randrange(40) << 4)
        both.same("digest", both.today)


def test_a_window_that_is_no_multiple_of_twelve_is_not_late_either():
    table = _probe.VelocityTables(1, 1, 1)
    for late in range(100):
        table.now(START_S, START_S // DAY_S)
        table.sliding_add(late + 1, 13, START_S, 100, 1)
        table.now(START_S + late, (START_S + late) // DAY_S)
        assert table.sliding_used(late + 1, 13, START_S + late, 100) == 1
        table = _probe.VelocityTables(1, 1, 1)


# --- room -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("number", [CALENDARS, SLIDINGS, DISTINCTS])
def test_there_is_room_up_to_what_was_asked_for_and_memory_beyond(number):
    table = _probe.VelocityTables(30, 30, 30)
    today = START_S // DAY_S
    table.now(START_S, today)

    def add(key: int) -> int:
        if number == CALENDARS:
            return table.add(key, 8 + model.DAY, today, 1)
        return table.sliding_add(key, 13, START_S, 60, 1) if number == SLIDINGS else table.distinct_add(key, 8 + model.DAY, today, 1)

    def room(new: int) -> bool:
        return table.room(*[new if number == each else 0 for each in range(3)])

    for key in range(1, 31):
        assert room(31 - key) and not room(32 - key)
        assert add(key) == 0
    assert room(0) and not room(1)
    codes = [add(key) for key in range(31, 100)]
    kept = table.capacity(number) * 9 // 10 - 30
    assert codes == [0] * kept + [-1] * (69 - kept) and kept > 10
    assert table.stats["refused_full"] == 69 - kept
    assert add(1) == 0, "what is there goes on counting"
    table.now(START_S + 3 * DAY_S, today + 3)
    assert not room(1), "the dead stand in the way until somebody looks at them"
    table.sweep(200)
    assert room(30) and list(table.stats.values())[number] == 0


def test_a_sweep_passes_nobody_by_who_came_into_a_freed_place():
    """Thirty dead in one run: as many looks as there are slots, and one more for each that goes, take all of them out."""
    table = _probe.VelocityTables(30, 30, 30)
    capacity, today = table.capacity(CALENDARS), START_S // DAY_S
    table.now(START_S, today)
    keys = [key for key in range(1, 5000) if table.home(CALENDARS, key) == capacity // 3][:30]
    assert len(keys) == 30
    for key in keys:
        table.add(key, 9, today, 1)
        table.distinct_add(key, 9, today, 1)
        table.distinct_add(key, 9, today, 2)
    begin = table.slots(CALENDARS)
    assert all(key for key, _, _ in begin[capacity // 3:capacity // 3 + 30]), "one run"
    table.now(START_S + 2 * DAY_S, today + 2)
    table.sweep(capacity + 30)
    assert table.stats["counters"] == table.stats["distincts"] == table.units == 0


def test_who_was_moved_after_it_was_found_is_found_again():
    """The dead before it in its run are taken out with the new slots of others, so it moves, and where it stood is nobody or another."""
    remembered, plain = (_probe.VelocityTables(30, 30, 30) for _ in range(2))
    today, ever = START_S // DAY_S, 8 + model.EVER
    first = [key for key in range(1, 5000) if plain.home(CALENDARS, key) == 0][:9]
    others = [key for key in range(5000, 9000) if plain.home(CALENDARS, key) in (0, 20)][:6]
    for table in (remembered, plain):
        table.now(START_S, today)
        for key in first[:8]:
            table.add(key, 8 + model.DAY, today, 1)
        table.add(first[8], ever, 0, 3)
        table.now(START_S + 2 * DAY_S, today + 2)
    before = remembered.slots(CALENDARS)
    assert remembered.add_where_found(first[8], ever, 0, 4, others) == (3, 0)
    for key in others:
        plain.add(key, ever, 0, 1)
    plain.add(first[8], ever, 0, 4)
    place = [key for key, _, _ in before].index(first[8])
    assert place == 8 and remembered.slots(CALENDARS)[place] != before[place], "it was moved"
    assert remembered.used(first[8], ever, 0) == 7
    assert remembered.slots(CALENDARS) == plain.slots(CALENDARS)
    assert remembered.digest(today + 2) == plain.digest(today + 2)
    check_slots(remembered)


def test_new_slots_take_the_dead_out_and_nothing_stays_behind():
    table, chance = _probe.VelocityTables(400, 400, 400), random.Random(7)
    for day in range(20_000, 20_060):
        table.now(day * DAY_S + 10, day)
        for _ in range(100):
            key = chance.choice([chance.randrange(30), chance.getrandbits(64)])
            assert table.room(1, 1, 1)
            assert table.add(key, 8 + model.DAY, day, 3) == 0
            assert table.sliding_add(key, 13, day * DAY_S + 10, 60, 3) == 0
            for fingerprint in range(chance.randrange(1, 20)):
                assert table.distinct_add(key, 8 + model.DAY, day, fingerprint) == 0
        check_slots(table)
    assert table.stats["counters"] <= 400 and table.stats["refused_full"] == 0
    assert table.units < 400 * 3


# --- snapshots --------------------------------------------------------------------------------------------------------

def damaged_tables() -> _probe.VelocityTables:
    table = _probe.VelocityTables(20, 20, 20)
    table.now(START_S, START_S // DAY_S)
    return table


def saved() -> tuple[list[list[bytes]], bytes]:
    table, today = damaged_tables(), START_S // DAY_S
    table.add(5, 8 + model.DAY, today, 300)
    table.add(5, 8 + model.EVER, 0, 2**63 - 1)
    table.sliding_add(5, 13, START_S, 60, 1000)
    for key, count in ((6, 3), (7, 2000), (8, 1)):
        table.distincts(key, 8 + model.DAY, 0, count)
    return table.save()


def test_no_damage_is_taken_for_a_counter_or_more_than_one_byte_is_read_beyond():
    tables, sums = saved()
    assert [len(records) for records in tables] == [2, 1, 3]
    for number, records in enumerate(tables):
        for record in records:
            for size in range(len(record)):
                assert damaged_tables().load(number, record[:size]) == 1
            assert damaged_tables().load(number, record + b"\0") == 1
            for at in (*range(min(len(record), 40)), *range(40, len(record), 97)):
                for bit in range(8):
                    table = damaged_tables()
                    code = table.load(number, record[:at] + bytes([record[at] ^ 1 << bit]) + record[at + 1:])
                    assert code in (0, 1)
                    if code == 0:
                        check_slots(table)
    for size in range(len(sums)):
        assert damaged_tables().load_sums(sums[:size]) == 1
    assert damaged_tables().load_sums(sums + b"\0") == 1


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def head(id: int, window: int, key: int = 5) -> bytes:
    return key.to_bytes(8, "little") + id.to_bytes(4, "little") + varint(window)


TODAY = START_S // DAY_S
NEWEST = START_S // 5


def words(*values: int) -> bytes:
    return b"".join(value.to_bytes(4, "little") for value in values)


@pytest.mark.parametrize("number, record, wanted", [
    (CALENDARS, head(9, TODAY) + varint(3), 0),
    (CALENDARS, head(9, TODAY, key=0) + varint(3), 1),
    (CALENDARS, head(8, TODAY) + varint(3), 1),
    (CALENDARS, head(13, TODAY) + varint(3), 1),
    (CALENDARS, head(15, TODAY) + varint(3), 1),
    (CALENDARS, head(9, TODAY - 2) + varint(3), 1),
    (CALENDARS, head(9, TODAY + 1) + varint(3), 0),
    (CALENDARS, head(9, TODAY + 2) + varint(3), 1),
    (CALENDARS, head(9, 2**32 + TODAY) + varint(3), 1),
    (CALENDARS, head(12, 0) + varint(3), 0),
    (CALENDARS, head(12, 2) + varint(3), 1),
    (CALENDARS, head(9, TODAY) + varint(2**63), 1),
    (SLIDINGS, head(13, NEWEST) + varint(5) + varint(9) * 13, 0),
    (SLIDINGS, head(13, NEWEST) + varint(0) + varint(9) * 13, 1),
    (SLIDINGS, head(13, NEWEST) + varint(5) + varint(2**32) * 13, 1),
    (SLIDINGS, head(13, NEWEST - 12) + varint(5) + varint(9) * 13, 0),
    (SLIDINGS, head(13, NEWEST - 13) + varint(5) + varint(9) * 13, 1),
    (SLIDINGS, head(9, NEWEST) + varint(5) + varint(9) * 13, 1),
    (DISTINCTS, head(9, TODAY) + varint(3) + words(5, 2, 9), 0),
    (DISTINCTS, head(9, TODAY) + varint(3) + words(5, 9, 2), 1),
    (DISTINCTS, head(9, TODAY) + varint(3) + words(5, 2, 2), 1),
    (DISTINCTS, head(9, TODAY) + varint(3) + words(5, 2, 5), 1),
    (DISTINCTS, head(9, TODAY) + varint(0), 1),
    (DISTINCTS, head(9, TODAY) + varint(1026) + words(*range(1026)), 1),
    (DISTINCTS, head(9, TODAY) + varint(1025) + varint(1024) + varint(1000) + words(*[1] * 1024), 0),
    (DISTINCTS, head(9, TODAY) + varint(1025) + varint(1023) + varint(1000) + words(*[1] * 1024), 1),
    (DISTINCTS, head(9, TODAY) + varint(1025) + varint(1024) + varint(0) + words(*[1] * 1024), 1),
    (DISTINCTS, head(9, TODAY) + varint(1025) + varint(1024) + varint(1025) + words(*[1] * 1024), 1),
])
def test_records_that_no_saving_writes_are_refused(number, record, wanted):
    table = damaged_tables()
    assert table.load(number, record) == wanted
    assert table.load(number, record) == 1, "what is there already is not loaded again"
    assert list(table.stats.values())[number] == 1 - wanted


def test_sums_of_days_gone_too_far_ahead_or_out_of_order_are_refused():
    def code(*days: int) -> int:
        return damaged_tables().load_sums(varint(len(days)) + b"".join(varint(day) + bytes(16) for day in days) + bytes(16))

    assert [code(), code(TODAY + 1), code(TODAY + 1, TODAY + 128)] == [0, 0, 0]
    assert [code(TODAY), code(TODAY + 129), code(TODAY + 2, TODAY + 1), code(TODAY + 2, TODAY + 2)] == [1, 1, 1, 1]
    assert damaged_tables().load_sums(varint(129) + bytes(4000)) == 1


def test_a_load_into_too_little_room_says_so():
    table = _probe.VelocityTables(0, 0, 0)
    table.now(START_S, TODAY)
    codes = [table.load(CALENDARS, head(9, TODAY, key=key) + varint(1)) for key in range(1, 12)]
    assert codes == [0] * 7 + [-1] * 4


# --- different ones ---------------------------------------------------------------------------------------------------

def test_bits_are_counted_as_the_logarithm_says():
    with localcontext() as context:
        context.prec = 40
        for bits in range(model.BITS):
            wanted = -model.BITS * (1 - Decimal(bits) / model.BITS).ln()
            assert _probe.linear_count_(bits) == int(wanted + Decimal("0.5")), bits
    assert _probe.linear_count_(model.BITS) == _probe.linear_count_(model.BITS - 1) == 340_696


@pytest.mark.parametrize("order", ["up", "down", "any"])
def test_different_ones_are_exact_up_to_1024_and_never_go_down(order):
    values = list(range(0, 3000 * 1_000_003, 1_000_003)) if order != "any" else random.Random(3).sample(range(2**32), 3000)
    values = [value & 0xFFFFFFFF for value in (values[::-1] if order == "down" else values)]
    both = Both(0)
    table, before = both.tables[0], 0
    for number, value in enumerate(values, start=1):
        wanted = table.distinct_with(9, 10, model.window_of(model.WEEK, both.today), value)
        for each in (both.model, *both.tables):
            each.distinct_add(9, 10, model.window_of(model.WEEK, both.today), value)
        found = table.distinct_with(9, 10, model.window_of(model.WEEK, both.today), values[number // 2])
        assert found == wanted >= before, "one more is judged as it is counted then"
        assert found == number if number <= 1025 else abs(found - number) <= number // 50
        before = found
        if number % 100 == 0 or 1020 < number < 1030:
            both.same("digest", both.today)
    for value in values[:1500]:
        table.distinct_add(9, 10, model.window_of(model.WEEK, both.today), value)
    both.same("digest", both.today)
    assert table.units == 128
    check_slots(table)


def test_ten_thousand_different_ones_are_at_most_two_percent_off():
    table = _probe.VelocityTables(100, 100, 100)
    table.now(START_S, TODAY)
    errors = [table.distincts(seed + 1, 9, seed * 1_000_000, 10_000) / 10_000 - 1 for seed in range(80)]
    assert max(map(abs, errors)) <= 0.02
    assert abs(sum(errors) / 80) <= 0.002, "on the average it is neither above nor below"


def test_all_bits_set_is_as_far_as_it_counts():
    table = _probe.VelocityTables(1, 1, 1)
    table.now(START_S, TODAY)
    found = [table.distincts(1, 9, number * 500_000, 500_000) for number in range(4)]
    assert found[0] > 300_000 and found[2] == found[3] == 340_696 + 1025 - _probe.linear_count_(begun_with())
    check_slots(table)


def begun_with() -> int:
    """Bits that were set when the bits of the test above began."""
    table = _probe.VelocityTables(1, 1, 1)
    table.now(START_S, TODAY)
    assert table.distincts(1, 9, 0, 1025) == 1025
    record = table.save()[0][DISTINCTS][0]
    assert len(record) > 4096
    at = len(record) - 4096 - 2
    return record[at] & 127 | record[at + 1] << 7


# --- the largest ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("slots", [1, 7, 100_000])
def test_the_largest_of_a_counter_in_any_number_of_calls(slots):
    table, chance = _probe.VelocityTables(1000, 1000, 1000), random.Random(5)
    table.now(START_S - DAY_S, TODAY - 1)
    amounts: dict[tuple[int, int], int] = {}
    for key in range(1, 300):
        for window in (TODAY - 2, TODAY - 1, TODAY):
            amounts[key, window] = chance.randrange(1, 50)
            table.add(key, 9, window, amounts[key, window])
            table.add(key, 17, window, 1000)
        table.sliding_add(key, 13, START_S, 3600, key % 40)
        for fingerprint in range(key % 30):
            table.distinct_add(key, 9, TODAY, fingerprint)
    table.now(START_S, TODAY)
    live = sorted(((key, window, amount) for (key, window), amount in amounts.items() if window >= TODAY - 1),
                  key=lambda row: (-row[2], row[0], row[1]))
    assert table.top(CALENDARS, 9, 50, slots) == live[:50]
    assert table.top(CALENDARS, 9, 1000, slots) == live
    assert [row[2] for row in table.top(SLIDINGS, 13, 10, slots)] == [39] * 7 + [38] * 3
    assert [row[2] for row in table.top(DISTINCTS, 9, 11, slots)] == [29] * 10 + [28]
    assert table.top(CALENDARS, 25, 50, slots) == []
