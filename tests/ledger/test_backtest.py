"""`simulate --limits`: the same limits over their own journal meet whom the ledger met; hand-made journals say the rest.

The judge of the first is the core in service: the limits that it wrote into its entries, and what it refused.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ledger import backtest, published, room
from ledger._backtest import BackTest
from ledger.journal import read_entry
from ledger.rules.syntax import ProgramError
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.rules.lived import BURN, BY_HAND, DAY_US, ENROLL, RESERVE, SET_SEGMENTS, SOURCE, Lived

SEED = random.randrange(1 << 32)
MINUTE_US = 60_000_000
REFUSED = 60  # VELOCITY_EXCEEDED
RETURN = 30
LIMITS = """\
limits:
  - {name: Busy, of: earns, per: member, window: day, at_most: 2, then: mark}
  - {name: Too busy, of: earns, per: member, window: day, at_most: 4, then: refuse}
  - {name: One till, of: earns, per: [till, member], window: 40 minutes, at_most: 1, then: review}
  - {name: Shops, of: earns, measure: stores, per: member, window: day, at_most: 1, then: mark}
  - {name: Distant, of: [earns, reservations], measure: regions, per: member, window: 50 minutes, at_most: 1, then: mark}
  - {name: Large, of: earns, measure: money, per: member, window: receipt, at_most: 90.00, then: mark}
  - {name: Jump, of: earns, measure: money, per: member, window: receipt, at_most_means: 2, after: 3, then: mark}
  - {name: Enough, of: earns, measure: points, per: member, window: week, at_most: 60, then: reduce}
  - {name: Again, of: earns, per: [member, basket], window: day, at_most: 1, then: mark}
  - {name: Pays, of: [burns, reservations], measure: points, per: member, window: week, at_most: 30, then: refuse}
  - {name: Phone, of: [earns, burns], measure: members, per: device, window: week, at_most: 2, then: mark}
  - {name: Staff, of: earns, per: [cashier, member], window: day, segments: [staff], at_most: 0, then: mark}
  - {name: Farm, of: enrolments, per: device, window: day, at_most: 1, then: refuse}
  - {name: Trying, of: refusals, per: member, window: 3 hours, at_most: 0, then: mark}
  - {name: Named, of: earns, per: identifier, window: day, at_most: 1, then: mark}
  - {name: Hours, of: earns, per: [store, hour], window: day, at_most: 1, then: mark}
  - {name: Quiet, of: earns, per: member, window: day, at_most: 0, then: shadow}
  - {name: Brought, of: returns, per: store, window: day, at_most: 1, then: mark}
  - {name: Too much, of: returns, measure: points, per: member, window: day, at_most: 5, then: mark}
  - {name: Kept, of: earns, per: member, window: week, at_most: 9, gives_back: true, then: mark}
  - {name: Kept of it, of: earns, measure: money, per: cashier, window: day, at_most: 150.00, gives_back: true, then: mark}
  - {name: Holds, of: reservations, per: store, window: week, at_most: 1, gives_back: true, then: mark}
  - {name: Looks, of: unknown_balances, per: device, window: day, at_most: 1, then: refuse}
"""


def fired(shop: Lived) -> dict[int, list[int]]:
    """By sequence, as the ledger wrote it."""
    return {sequence: [row["limit"] - 1 for row in entry["limits"]["above"]]
            for sequence, entry in enumerate(map(read_entry, shop.core.entries()), 1) if "limits" in entry}


def run(shop: Lived, folder: Path, text: str, **kept: Any) -> tuple[backtest.Tested, dict[int, list[int]]]:
    """The back-test of a file, and by sequence which limits met it."""
    data = shop.write(folder / "data") if not (folder / "data").exists() else folder / "data"
    file = folder / "limits.yaml"
    file.write_text(text)
    made = backtest.back_test(data, file, **kept)
    with backtest.Journal(data) as journal:
        programme, image = backtest.compile_limits(file, *backtest._published_last(journal))
        work = BackTest(journal.directory, 1000, 1000, 1000, image, keep_hits=True)
        for batch in journal.batches():
            assert work.feed(batch) is None
    return made, {sequence: list(numbers) for sequence, numbers in work.kept or ()}


def origin(dice: random.Random) -> pb.Origin:
    return pb.Origin(device=dice.choice(("", "d1", "d2")), cashier=dice.choice(("", "c1")), payment_card=dice.choice(("", "p1", "p2")))


def join(shop: Lived, member: int, segment: str) -> None:
    change = admin.SegmentChange(member=pb.MemberRef(member_id=member), add=[segment])
    shop.call(SET_SEGMENTS, admin.SetSegmentsRequest(changes=[change], **BY_HAND))


def busy(shop: Lived, seed: int, days: int = 12) -> None:
    """Days on which every limit of LIMITS is met."""
    dice = random.Random(seed)
    for number in range(1, 5):
        shop.enroll(number)
    join(shop, 1, "staff")
    opened, keys = 4, []
    for _ in range(days):
        for _ in range(24):
            shop.now += dice.choice((5, 15, 60)) * MINUTE_US
            member = dice.randrange(1, 5)
            named = dice.choice((pb.MemberRef(member_id=member), pb.MemberRef(card=f"card-{member}")))
            what = dice.randrange(9)
            if what == 0:
                shop.call(BURN, pb.BurnPointsRequest(member=named, wallet="points", points=dice.choice((3, 5, 9999)), origin=origin(dice)))
            elif what == 1:
                where = pb.Origin(store="1")
                where.MergeFrom(origin(dice))
                for _ in range(dice.randrange(2, 4)):
                    shop.call(RESERVE, pb.ReservePointsRequest(member=named, wallet="points", points=4, origin=where))
            elif what == 2:
                request = pb.EnrollMemberRequest(origin=origin(dice))
                request.identifiers.add(card=f"card-{opened + 1}")
                opened += shop.call(ENROLL, request) != "VELOCITY_EXCEEDED"
            elif what == 3 and keys:
                key = keys.pop(-dice.randrange(1, min(9, len(keys) + 1)))
                shop.call(RETURN, pb.ReturnReceiptRequest(receipt_key=key, origin=origin(dice)))
            else:
                amounts = [dice.choice((500, 1500, 4000, 12_000)) for _ in range(dice.randrange(1, 3))]
                lines = [(dice.choice(("milk", "bread")), amount, 1000) for amount in amounts]
                receipt = shop.receipt(lines, store=dice.choice("12"), ago_us=dice.choice((0, 0, 0, DAY_US, 3 * DAY_US)))
                if not isinstance(shop.call(1, pb.EarnPointsRequest(member=named, receipt=receipt, origin=origin(dice))), str):
                    keys.append(receipt.key)
        shop.now += DAY_US // 3
        shop.core.tick(shop.now)


def test_the_limits_of_a_journal_meet_whom_the_ledger_met(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    shop = Lived(SOURCE + LIMITS)
    busy(shop, SEED)
    theirs = fired(shop)
    made, ours = run(shop, tmp_path, SOURCE + LIMITS)
    names = [limit.name for limit in made.limits]
    shadow, points = names.index("Quiet"), names.index("Enough")
    entries = [read_entry(entry) for entry in shop.core.entries()]
    for sequence, numbers in theirs.items():
        # What a refused receipt would have earned is in no entry, so a limit of points cannot meet it.
        if points in numbers and entries[sequence - 1]["status"] == REFUSED:
            numbers.remove(points)
    loud = {sequence: left for sequence, numbers in ours.items() if (left := [number for number in numbers if number != shadow])}
    assert loud == theirs
    for place, limit in enumerate(made.limits):
        if place != shadow and limit.testable:
            assert limit.above.entries == sum(place in numbers for numbers in theirs.values()) > 0, limit.name
    refused = [entry for entry in entries if entry["status"] == REFUSED]
    assert made.refused.entries == made.stopped_then.entries == len(refused) > 0
    assert made.refused.burned == sum(entry["context"]["points"] for entry in refused if entry["kind"] == "burn")
    cut = [entry["limits"]["cut"] for entry in entries if "limits" in entry]
    assert made.cut > 0 and any(cut)
    assert made.limits[names.index("Quiet")].above.entries >= made.limits[names.index("Busy")].above.entries
    looks = made.limits[names.index("Looks")]
    assert (looks.testable, looks.counted, looks.above.entries) == (False, 0, 0)
    assert sum(day[0] for day in made.days) == made.looked_at.entries
    assert sum(day[1] for day in made.days) == made.met.entries == len(theirs)
    assert sum(day[2] for day in made.days) == len(refused)
    assert made.top and made.top[0].stopped >= made.top[-1].stopped and made.members >= made.members_met > 0
    assert sum(row.met for row in made.top) <= made.met.entries


def sold(shop: Lived, member: int, count: int, minutes: int = 5, **said: Any) -> None:
    for _ in range(count):
        assert not isinstance(shop.sell(member, [("milk", 1000)], **said), str)
        shop.now += minutes * MINUTE_US


def one_limit(**keys: str) -> str:
    said = {"name": "A", "of": "earns", "per": "member", "window": "day", "at_most": "3", "then": "mark"} | keys
    return "limits:\n  - {" + ", ".join(f"{key}: {value}" for key, value in said.items()) + "}\n"


def test_a_journal_without_limits_is_measured_with_what_it_has(tmp_path: Path) -> None:
    """No entry has an ORIGIN: store, till, member, money and points are there; cashiers are not."""
    shop = Lived()
    for member in (1, 2):
        shop.enroll(member)
    sold(shop, 1, 6)
    sold(shop, 2, 2)
    assert not any("section_31" in read_entry(entry) for entry in shop.core.entries()), "no ORIGIN"
    made, ours = run(shop, tmp_path, one_limit(per="[store, till, member]"))
    limit = made.limits[0]
    assert (limit.counted, limit.above.entries, limit.members, limit.seldom, limit.often) == (8, 3, 1, 0, 1)
    assert limit.above.earned == sum(posting["points"] for sequence in ours for posting in
                                     read_entry(shop.core.entries()[sequence - 1])["postings"] if posting["account"] == "member") > 0
    assert (made.members, made.members_met, made.members_stopped) == (2, 1, 0)
    assert made.top == [backtest.MemberMet(1, 7, 3, 0, "A")]
    made, _ = run(shop, tmp_path, one_limit(per="cashier"))
    assert (made.limits[0].counted, made.limits[0].above.entries) == (0, 0), "no till named one"


def test_the_day_of_an_entry_without_origin_is_that_of_its_store(tmp_path: Path) -> None:
    """23:30 and 00:30 in Warsaw are two days, but one by UTC."""
    shop = Lived()
    shop.enroll(1)
    shop.now += (21 * 60 + 30 - (14 * 60 + 13)) * MINUTE_US
    sold(shop, 1, 2, minutes=60)
    made, _ = run(shop, tmp_path, one_limit(at_most="1"))
    assert made.limits[0].above.entries == 0
    assert [day[0] for day in made.days] == [2, 1], "the enrolment and a receipt, then a receipt"


@pytest.mark.parametrize(("then", "above"), [("mark", 6), ("refuse", 2)])
def test_what_would_have_been_refused_counts_no_further(tmp_path: Path, then: str, above: int) -> None:
    """Nine receipts 36 minutes apart, three in two hours allowed: all behind the third are above. Where the fourth is refused, the next
    three find room again, and the eighth does not."""
    shop = Lived()
    shop.enroll(1)
    sold(shop, 1, 9, minutes=36)
    made, ours = run(shop, tmp_path, one_limit(window="2 hours", then=then))
    assert made.limits[0].above.entries == above
    assert made.refused.entries == (above if then == "refuse" else 0)
    assert made.marked.entries == (0 if then == "refuse" else above)


def test_what_would_have_been_cut_counts_as_it_was_cut(tmp_path: Path) -> None:
    """Of the day's second receipt half is cut, so that the third comes to just as many as the other limit allows."""
    shop = Lived()
    shop.enroll(1)
    sold(shop, 1, 1)            # the first receipt brings more
    shop.now += DAY_US
    sold(shop, 1, 3)
    welcome, *points = [sum(row["points"] for row in read_entry(entry)["postings"] if row["account"] == "member")
                        for entry in shop.core.entries()[-4:]]
    cut = points[0] + points[1] // 2
    assert welcome > cut + points[2] and points[1] > 1
    other = one_limit(name="B", measure="points", at_most=str(cut + points[2])).removeprefix("limits:\n")
    _, ours = run(shop, tmp_path, one_limit(measure="points", at_most=str(cut), then="reduce") + other)
    assert list(ours.values()) == [[0, 1], [0], [0]]


def test_what_limits_refused_then_is_let_through_by_wider_ones(tmp_path: Path) -> None:
    shop = Lived(SOURCE + one_limit(then="refuse"))
    shop.enroll(1)
    for _ in range(6):
        shop.sell(1, [("milk", 1000)])
        shop.now += MINUTE_US
    made, _ = run(shop, tmp_path, one_limit(at_most="5", then="refuse"))
    assert (made.stopped_then.entries, made.refused.entries, made.limits[0].counted) == (3, 1, 6)


DISTANT = """\
limits:
  - {name: Distant, of: [earns, reservations, returns], measure: regions, per: member, window: 3 hours, at_most: 1, then: mark}
  - {name: Distant shops, of: enrolments, measure: regions, per: device, window: ever, at_most: 1, then: shadow}
"""
LISTED = 'stores: [{store: "1", groups: [city], region: north}, {store: "2", region: south}]'
CSV = SOURCE.replace(LISTED, "stores: {file: stores.csv}")


@pytest.mark.parametrize(("source", "asked", "table"), [
    (SOURCE, DISTANT, None),
    (SOURCE, SOURCE.replace(LISTED, 'stores: [{store: "2", region: x}, {store: "1", region: y}]') + DISTANT, None),
    (SOURCE.replace(", region: north", ""), SOURCE + DISTANT, None),
    (SOURCE.replace(", region: north", ""), CSV + DISTANT, "region,store\n north ,1\nsouth, 2 \n,3\n"),
    (CSV, DISTANT, "store,region\n1,north\n2,south\n"),
    (SOURCE + "limits:\n  - {name: Other, of: earns, measure: stores, per: member, window: day, at_most: 9, then: mark}\n", DISTANT, None),
], ids=["the journal's stores", "the file's stores", "the journal's have too few", "a table of the file", "a table of the journal",
        "other limits then"])
def test_regions_of_entries_that_do_not_say_them(tmp_path: Path, source: str, asked: str, table: str | None) -> None:
    """Of receipts, and of reservations and returns whose store the journal knows by its hash alone."""
    counting, other = Lived(SOURCE + DISTANT), Lived.__new__(Lived)
    if table is not None:
        (tmp_path / "stores.csv").write_text(table)
    other.source, other.now, other.requests = source.encode(), counting.now, 0
    other.programme = backtest.check.check_source(other.source, "p.yaml", tmp_path)
    other.core = type(counting.core)(backtest.lower2.lower_programme(other.programme), other.source, other.now, members_max=100,
                                     ids_max=10_000)
    for shop in (counting, other):
        busy(shop, SEED)
    theirs = fired(counting)
    made, ours = run(other, tmp_path, asked)
    assert ours == theirs and len(theirs) > 20 and made.limits[0].counted > len(theirs)
    kinds = {read_entry(counting.core.entries()[sequence - 1])["kind"] for sequence in theirs}
    assert {"earn", "reserve"} <= kinds


def test_regions_of_entries_that_say_them_are_those(tmp_path: Path) -> None:
    """Also after stores have moved: what was one region then is told as one."""
    shop = Lived((SOURCE + DISTANT).replace("region: south", "region: north"))
    busy(shop, SEED, 3)
    assert not fired(shop), "all stores are in the north"
    apart = (SOURCE + DISTANT).encode()
    shop.core.publish(backtest.lower2.lower_programme(backtest.check.check_source(apart)), apart, shop.now)
    sold(shop, 1, 2, store="1")
    sold(shop, 1, 2, store="2")
    theirs = fired(shop)
    made, ours = run(shop, tmp_path, DISTANT)
    assert ours == theirs and len(theirs) == made.limits[0].above.entries == 2


@pytest.mark.parametrize(("source", "asked", "message"), [
    (SOURCE.replace(LISTED, ""), DISTANT, "measure regions has nothing to count: no store of the programme of the journal has a region"),
    (SOURCE, SOURCE.replace(", region: north", "").replace(", region: south", "") + DISTANT,
     "measure regions has nothing to count: no store of the programme has a region"),
    (SOURCE, CSV + DISTANT, "measure regions needs the regions of stores, which the programme has in a table that must lie beside this "
                            "file: stores.csv cannot be read: No such file or directory"),
])
def test_regions_that_nobody_knows_are_one_clear_error(tmp_path: Path, source: str, asked: str, message: str) -> None:
    shop = Lived(source)
    shop.enroll(1)
    with pytest.raises(ProgramError, match=f"limits.yaml:1:1: limits: {message}"):
        run(shop, tmp_path, asked)


def test_from_and_to_bound_what_is_looked_at_and_counted(tmp_path: Path) -> None:
    shop = Lived()
    shop.enroll(1)
    sold(shop, 1, 4)
    between = shop.now
    sold(shop, 1, 4)
    made, _ = run(shop, tmp_path, one_limit(), from_us=between)
    assert (made.looked_at.entries, made.limits[0].above.entries) == (4, 1)
    made, _ = run(shop, tmp_path, one_limit(), until_us=between)
    assert (made.looked_at.entries, made.limits[0].above.entries) == (5, 1)


def test_tables_that_are_too_small_are_made_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Lived()
    busy(shop, SEED, 2)
    whole, _ = run(shop, tmp_path, LIMITS)
    monkeypatch.setattr(room, "MEMBERS_GUESS_MIN", 1)
    monkeypatch.setattr(room, "GUESS_GROUPS", 0)
    small, _ = run(shop, tmp_path, LIMITS)
    assert (small.limits, small.top, small.days) == (whole.limits, whole.top, whole.days)


@pytest.mark.parametrize(("text", "message"), [
    (one_limit(of="earn"), r"limits.yaml:2:19: limits\[0\].of: must be one of .* did you mean 'earns'"),
    (one_limit(segments="[gold]"), r"limits.yaml:2:.*'gold' is no segment"),
    ("limits: []\n", "there are none, so there is nothing to test"),
    ("limit: []\n", "unknown key; did you mean 'limits'"),
    (SOURCE, "the programme has none, so there is nothing to test"),
    ("limits: other.yaml\n", "other.yaml cannot be read"),
    ("- [", "not YAML"),
    ("", "the file is empty"),
])
def test_a_bad_file_is_one_clear_error(tmp_path: Path, text: str, message: str) -> None:
    shop = Lived()
    shop.enroll(1)
    with pytest.raises(ProgramError, match=message):
        run(shop, tmp_path, text)


def test_a_whole_programme_is_taken_with_the_names_of_the_journal(tmp_path: Path) -> None:
    """Also when its limits stand in a file beside it, and its wallets are others."""
    shop = Lived()
    shop.enroll(1)
    sold(shop, 1, 5)
    (tmp_path / "beside.yaml").write_text(one_limit())
    made, _ = run(shop, tmp_path, SOURCE.replace("programme: Lived", "programme: Other") + "limits: beside.yaml\n")
    assert (made.programme, made.limits[0].above.entries) == ("Lived", 2)


def test_a_programme_without_segments_can_be_tested(tmp_path: Path) -> None:
    shop = Lived("".join(line for line in SOURCE.splitlines(keepends=True) if "students" not in line))
    shop.enroll(1)
    sold(shop, 1, 5)
    made, _ = run(shop, tmp_path, one_limit())
    assert made.limits[0].above.entries == 2


def test_names_are_those_of_the_version_published_last(tmp_path: Path) -> None:
    shop = Lived()
    shop.enroll(1)
    newer = shop.source.replace(b"segments: [students, staff]", b"segments: [students, staff, gold]")
    compiled = backtest.lower2.lower_programme(backtest.check.check_source(newer))
    shop.core.publish(compiled, newer, shop.now)
    join(shop, 1, "gold")
    sold(shop, 1, 5)
    made, _ = run(shop, tmp_path, one_limit(segments="[gold]"))
    assert made.limits[0].above.entries == 2
    assert published.source_of(shop.core.entries()[0]) == shop.source
