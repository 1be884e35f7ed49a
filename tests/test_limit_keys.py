"""ListLimitKeys and `daybook keys`: who is at the top of each limit's counter, and how much of each limit one member or place has used.

Through a real service and its two ports, with the clock at a known moment; what is expected is counted here by hand. Not for how counters
count (tests/test_limits.py) nor for the walk over slots alone (tests/ledger/test_velocity.py).
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import till
from tests.running import PROGRAM, RunningServer

START = 1_795_435_200_000_000  # Monday 2026-11-23, 12:00 UTC: 07:00 in New York
HOUR, DAY = 3_600_000_000, 86_400_000_000
SOURCE = """\
programme: Keys
currency: USD
zone: America/New_York
anonymous_accounts: true
max_age: 30 days
segments: [staff]
wallets: [{name: points}]
rules: [{name: Base, for_every_full: 1.00, give: 1}]
burn: [{name: All, one_point_pays: 0.01}]
limits:
  - {name: Receipts, of: earns, per: member, window: day, at_most: 1000, then: refuse}
  - {name: Receipts again, of: earns, per: member, window: day, at_most: 3, then: mark}
  - {name: Points of a month, of: earns, measure: points, per: member, window: month, at_most: 5000, then: mark}
  - {name: Quick, of: earns, per: [till, member], window: 10 minutes, at_most: 1000, then: refuse}
  - {name: Members of a device, of: earns, measure: members, per: device, window: week, at_most: 4, then: mark}
  - {name: Of a store for ever, of: earns, measure: money, per: store, window: ever, at_most: 1000000.00, then: shadow}
  - {name: Staff, of: earns, per: member, window: day, segments: [staff], at_most: 2, then: mark}
  - {name: Look-ups, of: [balances, unknown_balances], per: device, window: 1 hour, at_most: 500, then: refuse}
  - {name: By one card, of: balances, per: identifier, window: day, at_most: 500, then: refuse}
  - {name: Large, of: earns, measure: money, per: member, window: receipt, at_most: 100000.00, then: mark}
"""


@pytest.fixture
def service(tmp_path: Path, new_server: Callable[..., RunningServer]) -> RunningServer:
    program = tmp_path / "keys.yaml"
    program.write_text(SOURCE)
    return new_server(program=program, clock=START).start()


def earn(server: RunningServer, card: str, total_minor: int = 100, at: int = START, store: str = "S1", till_code: str = "1",
         device: str = "") -> Any:
    receipt = till.receipt(total_minor, at=at)
    receipt.key.store, receipt.key.till = store, till_code
    receipt.purchase_time.FromMicroseconds(at)
    return server.stub.EarnPoints(till.request("EarnPoints", at=at, card=card, receipt=receipt, origin=pb.Origin(device=device)))


def ask(server: RunningServer, limit: str = "", most: int = 0, **whom: Any) -> list[Any]:
    return list(server.admin_stub.ListLimitKeys(admin.ListLimitKeysRequest(limit=limit, keys_per_limit=most, **whom)).limit_keys)


def amounts(rows: list[Any], limit: str) -> list[tuple[str, int]]:
    return [(row.window, row.amount) for row in rows if row.limit == limit]


def test_the_largest_keys_of_each_limit(service: RunningServer) -> None:
    for number in range(30):
        for _ in range(number % 7 + 1):
            earn(service, f"card-{number}", 100 * (number + 1), device=f"d-{number % 3}", store=f"S{number % 2}")
    for number in range(12):
        service.stub.GetBalance(pb.GetBalanceRequest(member={"card": f"card-{number % 4}"}, origin={"device": f"d-{number % 3 % 2}"}))
    rows = ask(service)
    order = ["Receipts", "Receipts again", "Points of a month", "Quick", "Members of a device", "Of a store for ever", "Look-ups",
             "By one card"]
    assert list(dict.fromkeys(row.limit for row in rows)) == order
    day = "2026-11-23"
    assert amounts(rows, "Receipts") == amounts(rows, "Receipts again") == [(day, 7)] * 4 + [(day, 6)] * 4 + [(day, 5)] * 2
    points = sorted(((number + 1) * (number % 7 + 1) for number in range(30)), reverse=True)
    assert amounts(rows, "Points of a month") == [("2026-11", amount) for amount in points[:10]]
    assert amounts(rows, "Quick") == [("10 minutes", 7)] * 4 + [("10 minutes", 6)] * 4 + [("10 minutes", 5)] * 2
    assert amounts(rows, "Members of a device") == [("2026-W48", 10)] * 3
    of_store = [100 * sum((number + 1) * (number % 7 + 1) for number in range(store, 30, 2)) for store in range(2)]
    assert amounts(rows, "Of a store for ever") == [("ever", amount) for amount in sorted(of_store, reverse=True)]
    assert amounts(rows, "Look-ups") == [("1 hour", 8), ("1 hour", 4)]
    assert amounts(rows, "By one card") == [(day, 3)] * 4
    first = rows[0]
    assert (first.measure, list(first.per), first.at_most, first.then) == ("count", ["member"], 1000, "refuse")
    assert next(list(row.per) for row in rows if row.limit == "Quick") == ["member", "till"]
    assert all(len(row.key) == 16 and int(row.key, 16) for row in rows)
    assert len({row.key for row in rows if row.limit == "Receipts"}) == 10
    assert amounts(ask(service, "Receipts", 100), "Receipts") == sorted(((day, number % 7 + 1) for number in range(30)), reverse=True)
    assert [row.amount for row in ask(service, "Quick", 1)] == [7]


def test_regions_are_listed_as_stores_are(tmp_path: Path, new_server: Callable[..., RunningServer]) -> None:
    program = tmp_path / "regions.yaml"
    program.write_text(SOURCE.split("limits:")[0] + """\
stores: [{store: S1, region: east}, {store: S2, region: east}, {store: S3, region: west}, {store: S4}]
limits:
  - {name: Distant, of: earns, measure: regions, per: member, window: 20 minutes, at_most: 5, then: mark}
  - {name: Regions, of: earns, measure: regions, per: member, window: day, at_most: 5, then: mark}
  - {name: Shops, of: earns, measure: stores, per: member, window: 20 minutes, at_most: 5, then: mark}
""")
    server = new_server(program=program, clock=START).start()
    for card, stores in {"ann": "123345", "bob": "1122", "cid": "45"}.items():
        for store in stores:
            earn(server, card, store=f"S{store}")
    rows = ask(server)
    assert amounts(rows, "Distant") == [("20 minutes", 2), ("20 minutes", 1)], "who was in no region has no key"
    assert amounts(rows, "Regions") == [("2026-11-23", 2), ("2026-11-23", 1)]
    assert amounts(rows, "Shops") == [("20 minutes", 5), ("20 minutes", 2), ("20 minutes", 2)]
    assert {row.measure for row in rows if row.limit != "Shops"} == {"regions"}
    assert {row.limit: row.amount for row in ask(server, member={"card": "ann"})} == {"Distant": 2, "Regions": 2, "Shops": 5}
    assert {row.limit: row.amount for row in ask(server, member={"card": "cid"})} == {"Distant": 0, "Regions": 0, "Shops": 2}
    server.restart(kill=True)
    assert ask(server) == rows


def test_windows_that_are_over_go_and_the_one_before_stays(service: RunningServer) -> None:
    earn(service, "ann")
    service.set_clock(START + DAY)
    for _ in range(2):
        earn(service, "ann", at=START + DAY)
    assert amounts(ask(service, "Receipts"), "Receipts") == [("2026-11-24", 2), ("2026-11-23", 1)]
    assert amounts(ask(service, "Quick"), "Quick") == [("10 minutes", 2)]
    assert amounts(ask(service, member={"card": "ann"}), "Receipts") == [("2026-11-24", 2)]
    # 3 in the morning in New York: by the ledger's day, ten hours behind UTC, the window of two days ago is not dead yet.
    service.set_clock(START + 2 * DAY - 4 * HOUR)
    assert amounts(ask(service, member={"card": "ann"}), "Receipts") == [("2026-11-25", 0)]
    service.set_clock(START + 3 * DAY)
    assert amounts(ask(service, "Receipts"), "Receipts") == []
    assert amounts(ask(service, "Points of a month"), "Points of a month") == [("2026-11", 3)]


def test_a_member_and_a_place_are_known_by_the_keys_that_are_listed(service: RunningServer) -> None:
    ann = earn(service, "ann", 500, device="phone").entry.member_id
    earn(service, "ann", 700, store="S2", till_code="9", device="phone")
    earn(service, "bob", 900, device="phone")
    service.stub.GetBalance(pb.GetBalanceRequest(member={"card": "ann"}, origin={"device": "phone"}))
    every = {(row.limit, row.key, row.window): row.amount for row in ask(service)}

    def of(**whom: Any) -> dict[str, int]:
        rows = ask(service, **whom)
        for row in rows:
            assert every.get((row.limit, row.key, row.window), 0) == row.amount, "it is the key that the list has"
        return {row.limit: row.amount for row in rows}

    by_number = {"Receipts": 2, "Receipts again": 2, "Points of a month": 12}
    assert of(member={"member_id": ann}) == by_number
    assert of(member={"card": "ann"}) == {**by_number, "By one card": 1}
    at_till = of(member={"card": "ann"}, origin={"store": "S2", "till": "9"})
    assert at_till == {**by_number, "By one card": 1, "Quick": 1, "Of a store for ever": 700}
    assert of(member={"card": "ann"}, origin={"store": "S2", "till": "8"})["Quick"] == 0
    assert of(origin={"device": "phone"}) == {"Members of a device": 2, "Look-ups": 1}
    assert of(origin={"store": "S1"}) == {"Of a store for ever": 1400}
    assert of(origin={"cashier": "7"}) == {}
    assert [row.limit for row in ask(service, "Quick", member={"card": "ann"})] == [], "it counts per till, too"
    assert [row.amount for row in ask(service, "Look-ups")] == [1], "who looks here is no look-up"


def test_a_member_in_a_segment_has_its_limits(service: RunningServer) -> None:
    earn(service, "ann")
    earn(service, "bob")
    change = {"member": {"card": "ann"}, "add": ["staff"]}
    request = admin.SetSegmentsRequest(request_id="r" * 20, changes=[change], operator="o", reason="r")
    request.sent_time.FromMicroseconds(START)
    service.admin_stub.SetSegments(request)
    earn(service, "ann")
    assert amounts(ask(service, member={"card": "ann"}), "Staff") == [("2026-11-23", 1)]
    assert amounts(ask(service, member={"card": "bob"}), "Staff") == []


@pytest.mark.parametrize(("field", "value", "asked"), [
    ("limit", '"Recepits"', {"limit": "Recepits"}), ("limit", '"Large"', {"limit": "Large"}), ("limit", "", {"limit": "R" * 65}),
    ("keys_per_limit", "101", {"keys_per_limit": 101}), ("keys_per_limit", '"-1"', {"keys_per_limit": -1}),
    ("member.member_id", "0", {"member": {"member_id": 0}}), ("member.phone", "(not shown)", {"member": {"phone": "48600"}}),
    ("member", "", {"member": {}}), ("origin.till", "", {"origin": {"till": "t" * 17}}),
    ("origin.device", "", {"origin": {"device": "\n"}})])
def test_bad_input_names_field_value_and_what_is_right(service: RunningServer, field: str, value: str, asked: dict[str, Any]) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        service.admin_stub.ListLimitKeys(admin.ListLimitKeysRequest(**asked))
    reason, metadata = till.reason_of(refused.value)
    assert (reason, metadata["field"]) == ("FIELD_INVALID", field)
    assert metadata["rule"].startswith("must ") and (refused.value.details() or "").startswith(f"{field} must ")
    assert value in (refused.value.details() or "")


def test_nobody_is_not_found_and_a_programme_without_limits_has_no_keys(tmp_path: Path, service: RunningServer,
                                                                      new_server: Callable[..., RunningServer]) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask(service, member={"card": "nobody"})
    assert till.reason_of(refused.value)[0] == "MEMBER_NOT_FOUND"
    other = new_server(program=PROGRAM).start()
    assert ask(other) == []


def test_tills_are_served_while_keys_are_searched(service: RunningServer) -> None:
    """Searches one after the other and several at once, one of them given up: each sees at least what was there before it."""
    stop = threading.Event()
    served = 0

    def tills() -> None:
        nonlocal served
        while not stop.is_set():
            earn(service, f"card-{served % 50}")
            served += 1

    thread = threading.Thread(target=tills)
    thread.start()
    try:
        while served < 60:
            before = served
            assert sum(row.amount for row in ask(service, "Receipts", 100)) >= before
        given_up = service.admin_stub.ListLimitKeys.future(admin.ListLimitKeysRequest())
        several = [service.admin_stub.ListLimitKeys.future(admin.ListLimitKeysRequest()) for _ in range(4)]
        given_up.cancel()
        assert all(answer.result(60).limit_keys for answer in several)
    finally:
        stop.set()
        thread.join()
    assert sum(row.amount for row in ask(service, "Receipts", 100)) == served
    assert service.metrics()['ledger_calls_total{method="ListLimitKeys",outcome="OK",port="control"}'] >= 6
    assert "card-1" not in service.get("/metrics") and ask(service)[0].key not in service.get("/metrics")


def test_the_command_shows_them(service: RunningServer) -> None:
    def daybook(*words: str, code: int = 0) -> str:
        ran = subprocess.run([sys.executable, "-m", "server", "keys", *words, "--control", f"127.0.0.1:{service.ports['control']}"],
                             capture_output=True, text=True, env={"COLUMNS": "160", "PATH": ""}, check=False)
        assert ran.returncode == code, ran.stderr
        return ran.stdout if code == 0 else ran.stderr

    assert "nothing is counted yet" in daybook()
    for _ in range(4):
        earn(service, "ann", 12345, device="phone")
    shown = daybook()
    assert "Receipts again" in shown and "2026-W48" in shown and "100,000,000" in shown
    told = json.loads(daybook("Receipts again", "--json"))["limit_keys"]
    assert [(row["amount"], row["at_most"], row["window"]) for row in told] == [(4, 3, "2026-11-23")]
    mine = json.loads(daybook("Quick", "--member", "card:ann", "--store", "S1", "--till", "1", "--json"))["limit_keys"]
    assert [(row["amount"], row["key"]) for row in mine] == [(4, json.loads(daybook("Quick", "--json"))["limit_keys"][0]["key"])]
    assert "no limit counts per what was given" in daybook("--cashier", "7")
    assert "limit must be the name of a limit" in daybook("Quik", code=1)
    assert "--largest must be 1 to 100, was 0" in daybook("--largest", "0", code=2)
    assert "--till needs --store" in daybook("--till", "1", code=2)
