"""What limits, the ladder and the block lists did, as people read it: in ListEntries and the feed, in the export, and in a balance.

Through a real service, a real LMDB journal and the follower's read port. What an entry must say is taken from the second reader
(ledger/journal.py). Not for what limits do (tests/test_limits.py, tests/test_cases.py).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from pyarrow import parquet

from ledger import published
from ledger.export import export
from ledger.journal import read_entry
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import journal_pb2 as journal
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import till
from tests.ledger.test_export import entries_of, expected_of_limits, rows_of
from tests.reading import Port
from tests.running import RunningServer

START = 1_795_435_200_400_000  # Monday 2026-11-23, 12:00:00.4 UTC
SECOND, HOUR, DAY = 1_000_000, 3_600_000_000, 86_400_000_000
HAND = {"operator": "anna", "reason": "ticket 4711"}
SOURCE = """\
programme: Told
currency: USD
zone: America/New_York
anonymous_accounts: true
max_age: 400 days
wallets: [{name: points}]
stores: [{store: S001, region: east}, {store: S9, region: west}]
rules: [{name: Base, for_every_full: 1.00, give: 1}]
burn: [{name: All, one_point_pays: 0.01}]
limits:
  - {name: Hidden, of: earns, per: member, window: day, at_most: 1, then: shadow}
  - {name: Second, of: earns, per: member, window: day, at_most: 1, then: mark, rung: warned, lasts: 2 days}
  - {name: Points, of: earns, measure: points, per: member, window: day, at_most: 100, then: reduce}
  - {name: Large, of: earns, measure: money, per: member, window: receipt, at_most: 500.00, then: review}
  - {name: Fifth, of: earns, per: member, window: day, at_most: 4, then: refuse, rung: limited, lasts: 1 hour}
  - {name: Burns, of: burns, per: device, window: day, at_most: 0, then: challenge}
  - {name: Looked at, of: [balances, unknown_balances], per: device, window: 1 hour, at_most: 5, then: refuse}
  - {name: Distant, of: earns, measure: regions, per: member, window: 20 minutes, at_most: 1, then: refuse}
"""
OTHER = SOURCE.replace("name: Second", "name: Renamed").replace("name: Hidden", "name: Still hidden")


class Shop:
    """A service with that programme, whose clock is moved by hand."""

    def __init__(self, server: RunningServer) -> None:
        self.server, self.now = server, START

    def call(self, method: str, *, admin_call: bool = False, **fields: Any) -> Any:
        stub = self.server.admin_stub if admin_call else self.server.stub
        kind = getattr(admin if admin_call else pb, f"{method}Request")
        request = kind(request_id=f"r-{self.now}-{method}".ljust(20, "x"), sent_time=till.timestamp(self.now), **fields)
        self.pass_time(SECOND)
        try:
            return getattr(stub, method)(request)
        except grpc.RpcError as error:
            return till.reason_of(error)[0]

    def pass_time(self, us: int) -> None:
        self.now += us
        self.server.set_clock(self.now)

    def earn(self, card: str = "ann", total_minor: int = 1000, **origin: str) -> Any:
        receipt = till.receipt(total_minor, at=self.now)
        return self.call("EarnPoints", member={"card": card}, receipt=receipt, origin=origin)

    def burn(self, card: str = "ann", **origin: str) -> Any:
        return self.call("BurnPoints", member={"card": card}, points=1, origin=origin)

    def rung(self, rung: int, card: str = "ann", lasts_s: int = 0) -> Any:
        lasts = {"lasts": {"seconds": lasts_s}} if lasts_s else {}
        return self.call("SetRung", admin_call=True, member={"card": card}, rung=rung, **lasts, **HAND)

    def balance(self, card: str = "ann", stub: Any = None, **fields: Any) -> Any:
        return (stub or self.server.stub).GetBalance(pb.GetBalanceRequest(member={"card": card}, **fields))


@pytest.fixture
def shop(tmp_path: Path, new_server: Callable[..., RunningServer]) -> Shop:
    program = tmp_path / "told.yaml"
    program.write_text(SOURCE)
    return Shop(new_server(program=program, clock=START).start())


def lived(shop: Shop) -> None:
    """Every answer of a limit, every origin, rungs by limit and by hand, every block list; under two versions of the programme."""
    whole = {"device": "d-1", "cashier": "c-7", "payment_card": "tok-4711", "partner": "fuel"}
    for number in range(6):
        shop.earn("ann", 4000, **(whole if number % 2 else {}))
    shop.earn("bob", 1000)
    shop.earn("bob", 60_000, device="d-2")
    assert shop.burn("bob", store="S9", till="T4", **whole) == "CHALLENGE_NEEDED"
    shop.rung(4, "bob", lasts_s=7)
    shop.rung(1, "bob")
    shop.rung(5, "bob")
    add = ["card:1", "card:2*", "phone:+48600700801", "email:a@b.org", "app:x", "device:d-9", "till:S9/4"]
    shop.call("ChangeBlocks", admin_call=True, add=add, remove=["card:3", "till:S9/*"], **HAND)
    shop.call("PublishRules", admin_call=True, source=OTHER.encode(), **HAND)
    for _ in range(2):
        shop.earn("cid", 100)
    shop.call("ChangeBlocks", admin_call=True, remove=["card:1"], **HAND)


def names_of(entries: list[tuple[int, bytes]]) -> dict[int, list[str]]:
    """Names of limits by version, from the sources in the journal."""
    programs = [entry for _, entry in entries if read_entry(entry)["kind"] == "program"]
    return {version: [line.split("name: ")[1].split(",")[0] for line in published.source_of(entry).decode().splitlines() if "then:" in line]
            for version, entry in enumerate(programs, start=1)}


def check_told(told: Any, value: dict[str, Any], names: dict[int, list[str]]) -> None:
    """A JournalEntry against the second reader's entry."""
    row = expected_of_limits(value, names)
    assert told.HasField("origin") == (row["origin"] is not None)
    if row["origin"]:
        assert told.origin.utc_offset_seconds == row["origin"].pop("utc_offset_s")
        assert {part: getattr(told.origin, part) or None for part in row["origin"]} == row["origin"]
    assert [(limit.name, limit.number, journal.JournalEntry.LimitAction.Name(limit.action)) for limit in told.passed_limits] == [
        (limit["name"], limit["number"], f"LIMIT_ACTION_{limit['action'].upper()}") for limit in row["limits"]]
    assert told.cut_points == (row["cut_points"] or 0)
    assert told.HasField("rung_move") == (row["rung"] is not None)
    if row["rung"]:
        move = told.rung_move
        assert (pb.Rung.Name(move.before), pb.Rung.Name(move.after)) == (f"RUNG_{row['rung']['before'].upper()}",
                                                                         f"RUNG_{row['rung']['after'].upper()}")
        assert move.HasField("end_time") == (value["rung"]["until_s"] != 0) and move.end_time.seconds == value["rung"]["until_s"]
        assert (move.limit_number or None, move.limit_name or None) == (row["rung"]["limit_number"], row["rung"]["limit_name"])
    assert told.HasField("block_change") == (row["blocks_version"] is not None)
    assert told.block_change.version == (row["blocks_version"] or 0)
    assert [(journal.JournalEntry.BlockList.Name(one.list)[11:].lower(), one.added_count, one.removed_count)
            for one in told.block_change.lists] == [(one["list"], one["added"], one["removed"]) for one in row["block_lists"]]


def test_lists_the_feed_and_the_export_tell_the_same(shop: Shop, tmp_path: Path) -> None:
    lived(shop)
    assert shop.server.terminate() == 0
    entries = entries_of(shop.server.data)
    names = names_of(entries)
    values = {sequence: read_entry(entry) for sequence, entry in entries}
    answers = {row["answer"] for value in values.values() for row in value.get("limits", {}).get("above", ())}
    assert answers == {2, 3, 4, 5, 6} and names[1][1] == "Second" and names[2][1] == "Renamed", "the shop has not lived through everything"
    with Port(shop.server.data) as port:
        port.reach(entries[-1][0])
        listed = list(port.journal.ListEntries(journal.ListEntriesRequest(page_size=1000)).entries)
        assert [one.entry.sequence for one in listed] == [sequence for sequence, _ in entries][::-1]
        of_ann = port.journal.ListEntries(journal.ListEntriesRequest(member={"card": "ann"})).entries
        assert [one.passed_limits[0].name for one in of_ann if one.passed_limits][-1] == "Second"
        feed: list[Any] = []
        for piece in port.journal.WatchEntries(journal.WatchEntriesRequest(from_sequence=1)):
            feed += piece.entries
            if feed and feed[-1].entry.sequence == entries[-1][0]:
                break
        assert feed == listed[::-1]
    assert {one.origin.region for one in listed} == {"", *(hashlib.sha256(region).hexdigest()[:8] for region in (b"east", b"west"))}
    for one in listed:
        check_told(one, values[one.entry.sequence], names)
    export(shop.server.data, tmp_path / "out", unfinished=True)
    rows = rows_of(tmp_path / "out")
    for row in rows:
        told = expected_of_limits(values[row["sequence"]], names)
        assert {name: row[name] for name in told} == told
    assert {limit["name"] for row in rows for limit in row["limits"]} == {"Second", "Points", "Large", "Fifth", "Burns", "Renamed"}
    text = str(rows)
    assert not any(secret in text for secret in ("tok-4711", "d-1'", "c-7", "48600700801"))


def test_names_of_limits_are_known_however_the_export_was_stopped(shop: Shop, tmp_path: Path) -> None:
    """Each day its own run: the version in force was published days ago. Also where files are of an export that did not note versions."""
    out = tmp_path / "out"
    for number in range(3):
        for _ in range(2):
            shop.earn("ann")
        shop.pass_time(DAY)
        if number == 1:
            shop.call("PublishRules", admin_call=True, source=OTHER.encode(), **HAND)
            shop.earn("bob")
        assert shop.server.terminate() == 0
        made = export(shop.server.data, out).files
        if number == 0:
            for name in made:
                table = parquet.read_table(out / name)
                said = (parquet.read_metadata(out / name).metadata or {})[b"daybook"].replace(b'"programs"', b'"unknown"')
                parquet.write_table(table.replace_schema_metadata({b"daybook": said}), out / name)
        shop.server.start()
    assert shop.server.terminate() == 0
    export(shop.server.data, out, unfinished=True)
    found = [(row["program_version"], [limit["name"] for limit in row["limits"]]) for row in rows_of(out) if row["limits"]]
    assert found == [(1, ["Second"]), (1, ["Second"]), (2, ["Renamed"])]


def forged(kind: int, program: int, number: int, section: bytes) -> bytes:
    """An entry of member 1 with one section."""
    head = struct.pack("<IBBHqII16s", 44 + len(section), kind, 0, 0, START, 1, program, bytes(16))
    return head + bytes([number]) + len(section).to_bytes(3, "little") + section


def test_a_programme_that_cannot_be_read_leaves_numbers() -> None:
    """Without an image the entry is told all the same."""
    from server._entries import Encoder

    encoder = Encoder(lambda version: [])
    told = journal.ListEntriesResponse.FromString(encoder.entry(5, forged(1, 0, 32, bytes([0, 7, 3])))).entries[0]
    assert [(limit.name, limit.number, limit.action) for limit in told.passed_limits] == [("", 7, 3)]


def test_entries_with_all_limits_fit_their_room() -> None:
    """256 limits with the longest names, each 2 bytes in the entry."""
    from server._entries import Encoder

    names = [f"{number:064d}" for number in range(256)]
    encoder = Encoder(lambda version: names)
    wallets = published.pack(published.Told((published.Wallet("points", 0),), (1,), 0, "p", ()))
    section = bytes([0, 0]) + bytes(8) + bytes(32) + bytes([0]) + wallets
    encoder.add_program(forged(20, 0, 29, section))
    above = bytes([0]) + b"".join((bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])) + b"\2"
                                  for number in range(1, 257))
    told = journal.ListEntriesResponse.FromString(encoder.entry(1, forged(1, 1, 32, above))).entries[0]
    assert [limit.name for limit in told.passed_limits] == names


# --- the rung in a balance --------------------------------------------------------------------------------------------

def test_a_balance_tells_the_rung_and_its_end(shop: Shop) -> None:
    shop.earn("ann")
    assert (shop.balance().rung, shop.balance().HasField("rung_end_time")) == (0, False)
    shop.rung(3, lasts_s=3600)
    until = shop.balance().rung_end_time.ToMicroseconds()
    assert shop.balance().rung == pb.RUNG_LIMITED and 0 <= until - (shop.now + HOUR) < SECOND
    assert shop.burn() == "MEMBER_LIMITED"
    batch = shop.server.stub.BatchGetBalances(pb.BatchGetBalancesRequest(members=[{"card": "ann"}, {"card": "nobody"}])).results
    assert (batch[0].balance.rung, batch[0].balance.rung_end_time.ToMicroseconds()) == (pb.RUNG_LIMITED, until)
    shop.pass_time(until - shop.now - 1)
    assert shop.balance().rung == pb.RUNG_LIMITED
    shop.pass_time(1)
    assert shop.balance().rung == 0 and shop.burn().entry.burned_points == 1
    for rung in (2, 4, 5):
        shop.rung(rung)
        told = shop.balance()
        assert (told.rung, told.HasField("rung_end_time")) == (rung, False)
    shop.rung(1)
    assert shop.balance().rung == 0
    shop.server.restart(kill=True)
    assert shop.balance().rung == 0


def test_the_follower_tells_the_rung_of_now_and_of_then(shop: Shop) -> None:
    shop.earn("ann")
    first = shop.now
    for _ in range(2):
        shop.earn("ann")
    warned = shop.now
    shop.earn("ann")
    assert shop.earn("ann") == "VELOCITY_EXCEEDED", "a refusal that moves the member"
    limited = shop.now
    told = shop.balance()
    shop.pass_time(2 * HOUR)
    over = shop.now
    shop.earn("bob")
    assert shop.server.terminate() == 0
    last = entries_of(shop.server.data)[-1][0]
    with Port(shop.server.data, clock_file=shop.server.clock_file) as port:
        port.reach(last)
        assert shop.balance(stub=port.ledger).rung == 0
        past = [shop.balance(stub=port.ledger, as_of_time=till.timestamp(moment)) for moment in (first, warned, limited, over)]
    assert [balance.rung for balance in past] == [0, pb.RUNG_WARNED, pb.RUNG_LIMITED, 0]
    assert (told.rung, told.rung_end_time) == (past[2].rung, past[2].rung_end_time)
    assert not past[3].HasField("rung_end_time")


def test_a_rung_of_a_limit_lasts_no_shorter_than_it_says(shop: Shop) -> None:
    """The clock stands at .4 s: until the next whole second behind the span, as by hand."""
    shop.earn("ann")
    decided = shop.now
    shop.server.set_clock(decided)
    shop.earn("ann")
    moved = shop.balance().rung_end_time.ToMicroseconds()
    by_limit = moved - 2 * DAY
    assert by_limit % SECOND == 0 and by_limit >= decided and by_limit - shop.now < SECOND
    assert -(-shop.now // SECOND) * SECOND == by_limit
    shop.rung(3, lasts_s=3600)
    assert shop.balance().rung_end_time.ToMicroseconds() - HOUR == -(-shop.now // SECOND) * SECOND


# --- look-ups in batches ----------------------------------------------------------------------------------------------

def reasons(results: Any) -> list[str]:
    return [(till.reason_of_status(result.error) or ("?",))[0] if result.HasField("error") else "" for result in results]


def test_look_ups_in_a_batch_are_counted_where_they_come_from(shop: Shop) -> None:
    shop.earn("ann")
    asked = pb.BatchGetBalancesRequest(members=[{"card": "ann"}] * 2 + [{"card": "nobody"}] * 2, origin={"device": "d-1"})
    results = shop.server.stub.BatchGetBalances(asked).results
    # For one window after a start each bound counts as half reached, so of 5 the third look-up is the last.
    assert reasons(results) == ["", "", "MEMBER_NOT_FOUND", "VELOCITY_EXCEEDED"]
    assert reasons(shop.server.control_stub.BatchGetBalances(asked).results) == ["VELOCITY_EXCEEDED"] * 4
    with pytest.raises(grpc.RpcError) as refused:
        shop.balance(origin={"device": "d-1"})
    assert till.reason_of(refused.value)[0] == "VELOCITY_EXCEEDED", "single look-ups have the same counter"
    assert shop.balance(origin={"device": "d-2"}).member_id == 1
    other = shop.server.stub.BatchGetBalances(pb.BatchGetBalancesRequest(members=[{"card": "ann"}] * 9)).results
    assert all(result.HasField("balance") for result in other), "without an origin nothing is counted per device"


@pytest.mark.parametrize(("part", "value"), [("device", "d" * 65), ("cashier", "c\n"), ("payment_card", "p" * 65), ("partner", "p" * 33),
                                              ("store", "s" * 17), ("till", "t" * 17)])
def test_an_origin_that_is_wrong_refuses_the_whole_batch(shop: Shop, part: str, value: str) -> None:
    for stub in (shop.server.stub, shop.server.control_stub):
        with pytest.raises(grpc.RpcError) as refused:
            stub.BatchGetBalances(pb.BatchGetBalancesRequest(members=[{"card": "ann"}], origin={part: value}))
        reason, metadata = till.reason_of(refused.value)
        assert (reason, metadata["field"]) == ("FIELD_INVALID", f"origin.{part}")
