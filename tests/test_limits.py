"""Limits, each at its bound and one above it: of what, per which key, in which measure and window; and what must never go wrong with them.

In one process beside the oracle (tests/limits_oracle.py), but for the last tests, which ask a real service. Generated limits are in
tests/test_limits_machine.py.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest
from google.rpc import status_pb2

from ledger import limits
from ledger.journal import read_entry
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import till
from tests.oracle import Refused
from tests.running import PROGRAM, RunningServer
from tests.test_limits_machine import HAND, SET_RUNG, LimitedPair
from tests.test_state_machine import (
    BALANCE,
    BURN,
    CAPTURE,
    COMMIT,
    DAY,
    EARN,
    ENROLL,
    IDENTITY_KEY,
    RELEASE,
    RESERVE,
    RETURN,
    SECOND,
    error_of,
)

ADJUST, QUOTE = 11, 16
HOUR = 3600 * SECOND
ANN, BOB = pb.MemberRef(card="ann"), pb.MemberRef(card="bob")
DONE = ""


def limit(of: Any = "earns", per: Any = "member", window: str = "day", at_most: Any = 2, then: str = "refuse", **more: Any) -> dict:
    return {"name": f"{of} {per} {window} {more}"[:60], "of": of, "per": per, "window": window, "at_most": at_most, "then": then, **more}


def pair_with(*rows: dict, **sizes: int) -> LimitedPair:
    """Ann and Bob have accounts and points."""
    pair = LimitedPair()
    pair.begin_with(list(rows), **sizes)
    for ref in (ANN, BOB):
        assert outcome(pair.call(ENROLL, pair.stamped(pb.EnrollMemberRequest(identifiers=[ref])))) == DONE
        assert outcome(pair.call(ADJUST, pair.stamped(admin.AdjustPointsRequest(member=ref, points=10_000, **HAND)))) == DONE
    return pair


def outcome(answer: Any) -> str:
    return answer.row.name if isinstance(answer, Refused) else DONE


def made(pair: LimitedPair, method: int, ref: Any = ANN, total: int = 1000, points: int = 10, store: str = "", at: str = "1",
         ago: int = 0, lines: Any = None, **origin: str) -> Any:
    if method in (EARN, COMMIT):
        receipt = pair.receipt(total, store or "waw", at, ago, lines)
        kind = pb.EarnPointsRequest if method == EARN else pb.CommitReceiptRequest
        request: Any = kind(member=ref, receipt=receipt)
        if method == COMMIT and points:
            request.burn.points = points
    elif method == BURN:
        request = pb.BurnPointsRequest(member=ref, points=points)
    elif method == RESERVE:
        request = pb.ReservePointsRequest(member=ref, points=points)
    elif method == ENROLL:
        request = pb.EnrollMemberRequest(identifiers=[ref])
    else:
        request = pb.GetBalanceRequest(member=ref)
    request.origin.CopyFrom(pb.Origin(store="" if method in (EARN, COMMIT) else store, **origin))
    return request if method == BALANCE else pair.stamped(request)


def ask(pair: LimitedPair, method: int, *ref: Any, **said: Any) -> str:
    """What a new call came to; core and oracle agree on it."""
    answer = outcome(pair.call(method, made(pair, method, *ref, **said)))
    pair.check_limits()
    return answer


def times(pair: LimitedPair, count: int, method: int, *ref: Any, **said: Any) -> list[str]:
    return [ask(pair, method, *ref, **said) for _ in range(count)]


UP_TO_TWO = [DONE, DONE, "VELOCITY_EXCEEDED", "VELOCITY_EXCEEDED"]


# --- of, per, measure, window -----------------------------------------------------------------------------------------

@pytest.mark.parametrize(("of", "method"), [
    ("earns", EARN), ("earns", COMMIT), ("burns", BURN), ("burns", COMMIT), ("reservations", RESERVE)])
def test_a_bound_is_met_and_never_passed(of: str, method: int) -> None:
    pair = pair_with(limit(of))
    assert times(pair, 4, method) == UP_TO_TWO
    assert ask(pair, method, BOB) == DONE, "who is another key"
    other = {"earns": BURN, "burns": EARN, "reservations": EARN}[of]
    assert times(pair, 4, other) == [DONE] * 4, "what is not counted is not refused"
    pair.replay()
    assert ask(pair, method) == "VELOCITY_EXCEEDED"


def test_a_capture_is_a_burn_and_a_release_is_nothing() -> None:
    pair = pair_with(limit("burns", at_most=1))
    held = [pair.call(RESERVE, made(pair, RESERVE)).reservation.reservation_id for _ in range(3)]
    said = []
    for number in held[:2]:
        request = pb.CaptureReservationRequest(member=ANN, reservation_id=number)
        said.append(outcome(pair.call(CAPTURE, pair.stamped(request))))
    for number in held[1:]:
        request = pb.ReleaseReservationRequest(member=ANN, reservation_id=number)
        said.append(outcome(pair.call(RELEASE, pair.stamped(request))))
    assert said == [DONE, "VELOCITY_EXCEEDED", DONE, DONE]
    pair.check_limits()


def test_a_receipt_that_pays_is_two_of_a_list_and_counts_once() -> None:
    pair = pair_with(limit(["earns", "burns"]))
    assert [ask(pair, COMMIT), ask(pair, BURN), ask(pair, EARN)] == [DONE, DONE, "VELOCITY_EXCEEDED"]


def test_accounts_are_counted_however_they_are_opened() -> None:
    pair = pair_with(limit("enrolments", "device"))
    said = [ask(pair, ENROLL, pb.MemberRef(card="1"), device="d"), ask(pair, EARN, pb.MemberRef(card="2"), device="d"),
            ask(pair, ENROLL, pb.MemberRef(card="3"), device="d"), ask(pair, EARN, pb.MemberRef(card="4"), device="d"),
            ask(pair, EARN, pb.MemberRef(card="2"), device="d")]
    assert said == [DONE, DONE, "VELOCITY_EXCEEDED", "VELOCITY_EXCEEDED", DONE]
    assert len(pair.oracle.members) == 4


def test_refusals_are_counted_and_those_by_limits_and_by_hand_are_not() -> None:
    pair = pair_with(limit("refusals", then="mark", rung="limited"), limit("burns", window="1 hour", at_most=0))
    assert times(pair, 4, BURN) == ["VELOCITY_EXCEEDED"] * 4
    for _ in range(4):
        request = admin.AdjustPointsRequest(member=ANN, points=-10**6, **HAND)
        assert outcome(pair.call(ADJUST, pair.stamped(request))) == "INSUFFICIENT_POINTS"
    assert times(pair, 2, RESERVE, points=10**6) == ["INSUFFICIENT_POINTS"] * 2
    assert pair.oracle.members[0].rung == 0
    assert ask(pair, RESERVE, points=10**6) == "INSUFFICIENT_POINTS", "the refusal stays what it is"
    assert pair.oracle.members[0].rung == 2, "the third one moves the member"
    assert [ask(pair, RESERVE), ask(pair, EARN)] == ["MEMBER_LIMITED", DONE]
    ok = admin.SetRungRequest(member=ANN, rung=1, **HAND)
    assert outcome(pair.call(SET_RUNG, pair.stamped(ok))) == DONE
    assert [ask(pair, EARN), ask(pair, RESERVE)] == [DONE, DONE], "what is no refusal moves nobody back"
    pair.replay()


KEYS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {  # one value, another one, and none
    "member": ({}, {"ref": BOB}, None),
    "identifier": ({}, {"ref": pb.MemberRef(phone="+48600700801")}, {"ref": pb.MemberRef(member_id=1)}),
    "payment_card": ({"payment_card": "t"}, {"payment_card": "u"}, {}),
    "device": ({"device": "d"}, {"device": "e"}, {}),
    "till": ({}, {"at": "2"}, None),
    "cashier": ({"cashier": "7"}, {"cashier": "8"}, {}),
    "store": ({}, {"store": "nyc"}, None),
    "partner": ({"partner": "p"}, {"partner": "q"}, {}),
    "basket": ({"lines": [("milk", 100, 1000)], "total": 100}, {"lines": [("milk", 100, 2000)], "total": 100}, {}),
}


@pytest.mark.parametrize("key", KEYS)
def test_each_key_has_a_counter_of_its_own_and_what_lacks_it_is_not_counted(key: str) -> None:
    one, other, none = KEYS[key]
    pair = pair_with(limit(per=key))
    pair.call(ENROLL, pair.stamped(pb.EnrollMemberRequest(identifiers=[ANN, pb.MemberRef(phone="+48600700801")])))
    assert times(pair, 3, EARN, **one) == UP_TO_TWO[:3]
    assert times(pair, 3, EARN, **other) == UP_TO_TWO[:3]
    if none is not None:
        assert times(pair, 4, EARN, **none) == [DONE] * 4


def test_stores_whose_hashes_are_kept_at_the_same_place_are_not_taken_for_each_other() -> None:
    """The core keeps the hashes of a thousand stores and tills by their names: of 200 names of every length some meet."""
    pair = pair_with(limit(per="store"))
    stores = [f"{i}{'x' * (i % 13)}" for i in range(200)]
    for wanted in UP_TO_TWO[:3]:
        answers = {outcome(pair.call(EARN, made(pair, EARN, store=store))) for store in stores}
        assert answers == {wanted}
    pair.check_limits()


def test_the_hour_is_that_of_the_store() -> None:
    pair = pair_with(limit(per=["member", "hour"], window="ever"))
    assert times(pair, 3, EARN) == UP_TO_TWO[:3]
    assert ask(pair, EARN, store="nyc") == DONE, "there it is another hour"
    pair.now += HOUR
    assert ask(pair, EARN) == DONE
    pair.now += 23 * HOUR
    assert ask(pair, EARN) == "VELOCITY_EXCEEDED"


def test_a_till_is_one_of_a_store() -> None:
    pair = pair_with(limit(per="till"))
    assert times(pair, 3, EARN, store="waw", at="1") == UP_TO_TWO[:3]
    assert ask(pair, EARN, store="tok", at="1") == DONE
    pair = pair_with(limit("reservations", "till"))
    assert times(pair, 4, RESERVE, till="1") == [DONE] * 4, "of no store it is no till"


@pytest.mark.parametrize(("measure", "of", "at_most", "said", "fits"), [
    ("count", "earns", 3, {}, 3),
    ("points", "earns", 60, {"total": 1000}, 2),  # 10.0 and 15.0 each: 25.0 of all wallets
    ("points", "burns", 3, {"points": 10}, 3),
    ("points", "reservations", 3, {"points": 15}, 2),
    ("points", ["earns", "burns"], 52, {"points": 10}, 2),  # 25.0 and 1.0 each
    ("money", "earns", "30.00", {"total": 1000}, 3),
    ("money", "earns", "29.99", {"total": 1000}, 2),
])
def test_each_measure_is_met_and_never_passed(measure: str, of: Any, at_most: Any, said: dict, fits: int) -> None:
    pair = pair_with(limit(of, measure=measure, at_most=at_most, window="week"))
    method = {"earns": EARN, "burns": BURN, "reservations": RESERVE}.get(of if isinstance(of, str) else "", COMMIT)
    assert times(pair, fits + 1, method, **said) == [DONE] * fits + ["VELOCITY_EXCEEDED"]


def test_different_members_and_stores_are_counted_once_each() -> None:
    pair = pair_with(limit("earns", "device", measure="members"),
                     limit(["burns", "reservations", "earns"], window="week", measure="stores"))
    assert times(pair, 3, EARN, ANN, device="d") == [DONE] * 3
    assert times(pair, 2, EARN, BOB, device="d") == [DONE] * 2
    assert ask(pair, EARN, pb.MemberRef(card="third"), device="d") == "VELOCITY_EXCEEDED"
    assert times(pair, 2, BURN) == [DONE, DONE], "of no store is no different store"
    assert [ask(pair, EARN, store="nyc"), ask(pair, BURN), ask(pair, EARN, store="tok")] == [DONE, DONE, "VELOCITY_EXCEEDED"]
    assert [ask(pair, RESERVE, store="far"), ask(pair, RESERVE, store="nyc")] == ["VELOCITY_EXCEEDED", DONE]


@pytest.mark.parametrize("window", ["day", "ever", "20 minutes", "24 hours"])
def test_stores_of_one_region_are_one_and_a_store_of_none_takes_no_part(window: str) -> None:
    """Warsaw and Tokyo are in the east, New York is in the west; nobody knows of the other one."""
    pair = pair_with(limit(["earns", "burns", "reservations"], window=window, measure="regions", at_most=1), division=1)
    assert [ask(pair, EARN, store=store) for store in ("waw", "tok", "waw", "tok")] == [DONE] * 4, "of one region"
    assert [ask(pair, EARN, store="nyc"), ask(pair, RESERVE, store="nyc")] == ["VELOCITY_EXCEEDED"] * 2
    assert times(pair, 2, EARN, store="far") == times(pair, 2, BURN) == [DONE] * 2, "of no region, of no store"
    assert [ask(pair, EARN, BOB, store="far"), ask(pair, BURN, BOB, store="nyc"), ask(pair, EARN, BOB, store="waw")] == [
        DONE, DONE, "VELOCITY_EXCEEDED"], "each member for himself; what was in no region was not counted"
    pair.replay()
    assert [ask(pair, EARN, store="nyc"), ask(pair, EARN, BOB, store="nyc")] == ["VELOCITY_EXCEEDED", DONE]
    pair.now += 2 * DAY
    assert ask(pair, EARN, store="nyc") == ("VELOCITY_EXCEEDED" if window == "ever" else DONE)


def test_a_store_that_moves_to_another_region_is_there_from_then_on() -> None:
    """What was counted stays what it was: entries carry the region, and a replay asks no programme."""
    row = limit(window="week", measure="regions", at_most=1)
    pair = pair_with(row, division=0)
    assert [ask(pair, EARN, store="waw"), ask(pair, EARN, store="nyc"), ask(pair, EARN, store="tok")] == [DONE, "VELOCITY_EXCEEDED", DONE]
    pair.publish([row], 2)  # Warsaw and New York are one region now, that which New York was before
    assert [ask(pair, EARN, store=store) for store in ("waw", "nyc")] == ["VELOCITY_EXCEEDED"] * 2
    assert [ask(pair, EARN, BOB, store=store) for store in ("waw", "nyc")] == [DONE] * 2
    pair.save()
    pair.publish([row], 3)  # and apart again, and Tokyo somewhere else
    for again in (pair.check_limits, pair.replay, lambda: pair.reload(0), lambda: pair.restart_follower(0)):
        again()
        assert [ask(pair, EARN, store=store) for store in ("waw", "nyc", "tok")] == [DONE, "VELOCITY_EXCEEDED", "VELOCITY_EXCEEDED"]
        assert [ask(pair, EARN, BOB, store=store) for store in ("waw", "nyc")] == ["VELOCITY_EXCEEDED", DONE]


def test_a_region_is_known_of_a_counter_that_begins_later_and_goes_on() -> None:
    """Another limit of the same counter; and one that nobody had asked for before."""
    pair = pair_with(limit(measure="stores", at_most=9))
    assert [ask(pair, EARN, store="waw")] == [DONE]
    row = limit(measure="regions", window="month", at_most=1)
    pair.publish([row])
    assert [ask(pair, EARN, store=store) for store in ("nyc", "waw")] == [DONE, "VELOCITY_EXCEEDED"], "what was before is not counted"
    pair.publish([row | {"name": "Renamed", "at_most": 2}])
    assert ask(pair, EARN, store="waw") == DONE
    pair.publish([row | {"name": "Renamed again"}], 1)
    assert ask(pair, EARN, store="tok") == "VELOCITY_EXCEEDED", "two there were"


def test_a_return_is_of_the_region_where_it_is_made() -> None:
    pair = pair_with(limit("returns", measure="regions", at_most=1))
    sold = [pair.receipt(1000, store) for store in ("waw", "waw", "nyc", "nyc")]
    for receipt in sold:
        assert outcome(pair.call(EARN, pair.stamped(pb.EarnPointsRequest(member=ANN, receipt=receipt)))) == DONE

    def back(number: int, **origin: str) -> str:
        request = pb.ReturnReceiptRequest(receipt_key=sold[number].key, origin=pb.Origin(**origin))
        answer = outcome(pair.call(RETURN, pair.stamped(request)))
        pair.check_limits()
        return answer

    assert [back(0), back(1, store="nyc"), back(2, store="waw"), back(3), back(3, store="far")] == [
        DONE, "VELOCITY_EXCEEDED", DONE, "VELOCITY_EXCEEDED", DONE]


def test_entries_carry_a_region_only_where_a_limit_counts_regions() -> None:
    """Of others the bytes are those of before there were regions."""
    rows = limit(measure="stores", at_most=9), limit(measure="regions", at_most=1, then="mark")
    said = []
    for division, row in ((0, rows[0]), (2, rows[0]), (0, rows[1])):
        pair = pair_with(row, division=division)
        assert [ask(pair, EARN, store=store) for store in ("waw", "nyc", "tok", "far")] == [DONE] * 4
        assert ask(pair, RESERVE, store="nyc") == DONE
        said.append([entry for entry in pair.core.entries() if read_entry(entry)["kind"] in ("earn", "reserve")])
    assert said[0] == said[1], "how stores lie is not in the entries"
    east, west = (hashlib.sha256(name).digest()[:4] for name in (b"east", b"west"))
    assert [read_entry(entry)["origin"]["region"] for entry in said[0]] == [None] * 5
    assert [read_entry(entry)["origin"]["region"] for entry in said[2]] == [east, west, None, None, west]
    without = [entry[:4] for entry in said[0]]
    assert [int.from_bytes(b[:4], "little") - int.from_bytes(a, "little") for a, b in zip(without, said[2], strict=True)] == [
        5, 5 + 7, 0, 0, 5], "a tag and four bytes; the second is above the limit, and says so in LIMITS"


def test_a_repeat_after_its_store_has_moved_is_a_repeat() -> None:
    row = limit(measure="regions", at_most=1)
    pair = pair_with(row, division=0)
    request = made(pair, EARN, store="waw", device="d")
    first = pair.call(EARN, request)
    pair.publish([row], 2)
    again = pair.call(EARN, request)
    assert again.replayed and again.entry == first.entry
    pair.check_limits()


def test_one_receipt_alone() -> None:
    pair = pair_with(limit(measure="quantity", window="receipt", at_most=2), limit(measure="money", window="receipt", at_most=50))
    assert [ask(pair, EARN, lines=[("milk", 100, 2000), ("bread", 100, 2000)], total=200),
            ask(pair, EARN, lines=[("milk", 100, 2001)], total=100), ask(pair, EARN, total=5000), ask(pair, EARN, total=5001)] == [
                DONE, "VELOCITY_EXCEEDED", DONE, "VELOCITY_EXCEEDED"]


def test_against_ones_own_mean() -> None:
    row = limit(measure="money", window="receipt", at_most_means=2, after=3)
    del row["at_most"]
    pair = pair_with(row)
    assert [ask(pair, EARN, total=total) for total in (100, 9000, 101)] == [DONE] * 3
    # The mean is 30.67.
    assert [ask(pair, EARN, total=6135), ask(pair, EARN, total=6134)] == ["VELOCITY_EXCEEDED", DONE]


@pytest.mark.parametrize(("window", "first", "next_"), [
    ("day", "2026-03-21 12:00", "2026-03-22 00:00"), ("week", "2026-03-28 12:00", "2026-03-30 00:00"),
    ("month", "2026-03-31 23:00", "2026-04-01 00:00")])
@pytest.mark.parametrize("store", ["waw", "nyc", "tok"])
def test_windows_begin_at_midnight_where_the_store_is(window: str, first: str, next_: str, store: str) -> None:
    zone = ZoneInfo({"waw": "Europe/Warsaw", "nyc": "America/New_York", "tok": "Asia/Tokyo"}[store])
    at = [int(datetime.fromisoformat(text).replace(tzinfo=zone).timestamp()) * SECOND for text in (first, next_)]
    pair = pair_with(limit(window=window, at_most=1))
    pair.now = at[0]
    assert ask(pair, EARN, store=store) == DONE
    pair.now = at[1] - 1
    assert ask(pair, EARN, store=store) == "VELOCITY_EXCEEDED"
    pair.now = at[1]
    assert ask(pair, EARN, store=store) == DONE
    assert ask(pair, EARN, store=store) == "VELOCITY_EXCEEDED"
    pair.now += HOUR
    assert ask(pair, EARN, store=store, ago=2 * HOUR) == "VELOCITY_EXCEEDED", "late, for the window before"
    pair.now += 40 * DAY
    assert ask(pair, EARN, store=store) == DONE


def test_a_sliding_window_lets_nothing_through_early() -> None:
    pair = pair_with(limit(window="1 hour", at_most=1))
    pair.now = (pair.now // HOUR + 1) * HOUR + 299 * SECOND
    assert ask(pair, EARN) == DONE
    for _ in range(12):
        pair.now += 300 * SECOND - 1
        assert ask(pair, EARN) == "VELOCITY_EXCEEDED"
    pair.now += 302 * SECOND + 12  # a whole bucket behind it
    assert ask(pair, EARN) == DONE


def test_for_ever_is_for_ever() -> None:
    pair = pair_with(limit(window="ever", at_most=1))
    assert ask(pair, EARN) == DONE
    for _ in range(3):
        pair.now += 300 * DAY
        assert ask(pair, EARN) == "VELOCITY_EXCEEDED"


# --- answers ----------------------------------------------------------------------------------------------------------

def test_points_are_cut_from_the_last_awards_and_a_count_leaves_none() -> None:
    pair = pair_with(limit(measure="points", window="ever", at_most=45, then="reduce"))
    earned = [pair.call(EARN, made(pair, EARN)).entry for _ in range(3)]
    assert [[(row.rule, row.points) for row in entry.awards] for entry in earned] == [[(1, 100), (2, 150)], [(1, 100), (2, 100)], []]
    pair.check_limits()
    pair.replay()
    pair = pair_with(limit(at_most=1, then="reduce"))
    assert [pair.call(EARN, made(pair, EARN)).entry.earned_points for _ in range(2)] == [250, 0]
    pair.check_limits()


def test_of_two_cuts_the_deeper_one_holds() -> None:
    for bounds in ((30, 40), (40, 30)):
        pair = pair_with(*(limit(measure="points", window=window, at_most=bound, then="reduce")
                           for window, bound in zip(("day", "ever"), bounds, strict=True)))
        assert [pair.call(EARN, made(pair, EARN)).entry.earned_points for _ in range(3)] == [250, 50, 0]
        pair.check_limits()


def test_a_limit_moves_up_for_a_time_and_the_metadata_says_until_when() -> None:
    pair = pair_with(limit(at_most=1, then="mark", rung="blocked", lasts="36 hours"), limit(at_most=3, then="mark", rung="warned"))
    assert times(pair, 2, EARN) == [DONE, DONE]
    until = (pair.now // SECOND + 36 * 3600) * SECOND
    request = made(pair, EARN)
    code, data, _ = pair.core.call(EARN, request.SerializeToString(), pair.now)
    refusal = pair.call(EARN, made(pair, EARN))
    assert code != 0 and (refusal.row.name, refusal.a) == ("MEMBER_BLOCKED", until)
    assert error_of(status_of(data))[1:] == ("MEMBER_BLOCKED", {"until_us": str(until)})


def status_of(data: bytes) -> Any:
    return status_pb2.Status.FromString(data)


def test_a_limit_moves_whom_its_entry_opens() -> None:
    pair = pair_with(limit("enrolments", "device", at_most=1, then="mark", rung="limited"))
    new = [pb.MemberRef(card=f"n{i}") for i in range(3)]
    assert [ask(pair, ENROLL, new[0], device="d"), ask(pair, ENROLL, new[1], device="d"), ask(pair, EARN, new[2], device="d")] == [DONE] * 3
    assert [member.rung for member in pair.oracle.members] == [0, 0, 0, 2, 2]
    assert [ask(pair, BURN, ref) for ref in new] == ["INSUFFICIENT_POINTS", "MEMBER_LIMITED", "MEMBER_LIMITED"]
    pair.replay()
    pair.check_limits()


def test_a_repeat_of_a_refused_request_gets_the_same_and_counts_nothing() -> None:
    pair = pair_with(limit(at_most=1, window="10 minutes"))
    assert ask(pair, EARN) == DONE
    request = made(pair, EARN)
    assert outcome(pair.call(EARN, request)) == "VELOCITY_EXCEEDED"
    digest = pair.core.digest()
    for step in (0, SECOND, DAY):
        pair.now += step
        again = pair.call(EARN, request)
        assert (again.row.name, again.replayed) == ("VELOCITY_EXCEEDED", True)
    assert pair.core.digest() == digest
    pair.replay()
    assert pair.call(EARN, request).replayed
    assert ask(pair, EARN) == DONE, "it is over now, for a new request"


def test_a_batch_meets_bounds_in_its_middle() -> None:
    pair = pair_with(limit())
    found = pair.call_batch([(EARN, made(pair, EARN)) for _ in range(4)])
    assert [outcome(one) for one in found] == UP_TO_TWO
    pair.check_limits()


def test_a_counter_goes_on_under_another_name_bound_and_answer_and_a_new_one_begins() -> None:
    pair = pair_with(limit(at_most=9, then="mark"))
    assert times(pair, 2, EARN) == [DONE, DONE]
    pair.publish([{**limit(at_most=3), "name": "Other"}, {**limit(per="store", at_most=2), "name": "New"}])
    assert times(pair, 2, EARN) == [DONE, "VELOCITY_EXCEEDED"], "three with those of before"
    assert [ask(pair, EARN, BOB), ask(pair, EARN, BOB)] == [DONE, "VELOCITY_EXCEEDED"], "two of the store since its publication"
    pair.replay()
    pair.check_limits()


# --- look-ups ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("of", "ref"), [("balances", ANN), ("unknown_balances", pb.MemberRef(card="nobody"))])
def test_look_ups_are_half_full_after_a_start(of: str, ref: Any) -> None:
    found = DONE if of == "balances" else "MEMBER_NOT_FOUND"
    pair = pair_with(limit(of, "device", window="1 hour", at_most=6))
    assert times(pair, 4, BALANCE, ref, device="d") == [found] * 3 + ["VELOCITY_EXCEEDED"]
    assert ask(pair, BALANCE, ref, device="e") == found
    pair.now += 2 * HOUR
    assert times(pair, 7, BALANCE, ref, device="d") == [found] * 6 + ["VELOCITY_EXCEEDED"]
    entries = len(pair.core.entries())
    pair.replay()
    assert len(pair.core.entries()) == entries
    assert times(pair, 4, BALANCE, ref, device="d") == [found] * 3 + ["VELOCITY_EXCEEDED"]


def test_who_fills_the_table_of_look_ups_is_counted_again_when_its_windows_are_over() -> None:
    pair = pair_with(limit("unknown_balances", "device", window="1 minute", at_most=2), members_max=2)
    core, now = pair.core, pair.now
    request = pb.GetBalanceRequest(member=pb.MemberRef(card="nobody"))

    def look(device: str) -> str:
        request.origin.device = device
        return error_of(status_of(core.call(BALANCE, request.SerializeToString(), now)[1]))[1]

    for i in range(limits.VELOCITY_SLOTS_LEAST + 10):
        assert look(f"d{i}") == "MEMBER_NOT_FOUND"
    assert [look("last") for _ in range(5)] == ["MEMBER_NOT_FOUND"] * 5, "there is no room for it"
    now += 120 * SECOND
    assert [look("last") for _ in range(3)] == ["MEMBER_NOT_FOUND"] * 2 + ["VELOCITY_EXCEEDED"]


# --- quotes -----------------------------------------------------------------------------------------------------------

def quote(pair: LimitedPair, receipt: Any, ref: Any = ANN, **origin: str) -> Any:
    request = pb.QuoteReceiptRequest(member=ref, receipt=receipt, origin=pb.Origin(**origin))
    code, data, _ = pair.core.call(QUOTE, request.SerializeToString(), pair.now)
    return pb.QuoteReceiptResponse.FromString(data) if code == 0 else error_of(status_of(data))[1]


@pytest.mark.parametrize("row", [limit(), limit(per="till"), limit(per="store"), limit(per=["store", "hour"]), limit(per="device"),
                                 limit(measure="money", at_most=25), limit(per="basket"), limit(measure="stores", at_most=0),
                                 limit(per="identifier", window="10 minutes")], ids=lambda row: row["name"])
def test_a_quote_says_what_the_commit_would(row: dict) -> None:
    pair = pair_with(row)
    for _ in range(4):
        request = made(pair, EARN, lines=[("milk", 1000, 1000)], device="d")
        entries, digest = len(pair.core.entries()), pair.core.digest()
        quoted = quote(pair, request.receipt, device="d")
        assert (len(pair.core.entries()), pair.core.digest()) == (entries, digest), "a quote counts nothing"
        answer = outcome(pair.call(EARN, request))
        assert (quoted if isinstance(quoted, str) else DONE) == answer
    assert answer == "VELOCITY_EXCEEDED"


def test_what_a_limit_cut_in_a_quote_is_committed_as_quoted() -> None:
    pair = pair_with(limit(measure="points", window="ever", at_most=30, then="reduce"))
    pair.call(EARN, made(pair, EARN))
    request = made(pair, COMMIT, points=0)
    quoted = quote(pair, request.receipt)
    assert sum(row.points for row in quoted.points) == 50
    request.receipt.quote_token, request.receipt.only_as_quoted = quoted.token, True
    code, data, _ = pair.core.call(COMMIT, request.SerializeToString(), pair.now)
    assert code == 0, status_of(data).message
    assert pb.CommitReceiptResponse.FromString(data).entry.earned_points == 50


# --- tables and files -------------------------------------------------------------------------------------------------

def test_counters_that_move_while_an_entry_is_counted_are_counted_where_they_are() -> None:
    """Each new day and week of a device's counters has the dead of its neighbours taken out, and among them those of its own."""
    others = ("member", "cashier", "partner", "payment_card", "till", "store")
    rows = [limit("reservations", ["device", other], window, 10**6) for window in ("day", "ever", "week", "month") for other in others]
    pair = pair_with(*rows)
    core = pair.core
    said = {"cashier": "7", "partner": "p", "payment_card": "t", "store": "waw", "till": "1"}
    for _ in range(3):
        for device in range(700):
            pair.requests += 1
            request = pb.ReservePointsRequest(request_id=f"request-{pair.requests:08d}", member=ANN, points=1)
            request.origin.CopyFrom(pb.Origin(device=f"d{device}", **said))
            request.sent_time.FromMicroseconds(pair.now)
            request.ttl.seconds = 1
            assert core.call(RESERVE, request.SerializeToString(), pair.now)[0] == 0
            pair.now += 2 * SECOND
        pair.now += 17 * DAY
    again = LocalLedger.replay(core.entries(), identity_key=IDENTITY_KEY, **pair.sizes)
    assert again.digest() == core.digest(), "replay judges nothing, so it looks for each counter when it counts"


def test_a_full_table_never_says_yes() -> None:
    """Who has a slot goes on, who needs one is refused, and windows that are over make room again."""
    others = ("member", "cashier", "partner", "payment_card", "till", "store")
    rows = [limit("reservations", ["device", other], window, 10**6) for other in others for window in ("day", "week", "month", "ever")]
    pair = pair_with(*rows, limit("reservations", "device", "ever", 3))
    core, count = pair.core, 0
    pair.now += 2 * HOUR  # into a day that is long enough
    said = {"cashier": "7", "partner": "p", "payment_card": "t", "store": "waw", "till": "1"}

    def reserve(device: str) -> str:
        pair.requests += 1
        request = pb.ReservePointsRequest(request_id=f"request-{pair.requests:08d}", member=ANN, points=1)
        request.origin.CopyFrom(pb.Origin(device=device, **said))
        request.sent_time.FromMicroseconds(pair.now)
        request.ttl.seconds = 1
        code, data, _ = core.call(RESERVE, request.SerializeToString(), pair.now)
        pair.now += 2 * SECOND
        return DONE if code == 0 else error_of(status_of(data))[1]

    while (answer := reserve(f"d{count}")) == DONE:
        count += 1
        assert count < 10_000
    slots = limits.VELOCITY_COUNTERS_PER_MEMBER * pair.sizes["members_max"] + limits.VELOCITY_SLOTS_LEAST
    assert answer == "TABLE_FULL" and count == slots // 25
    assert [reserve(f"new{i}") for i in range(5)] == ["TABLE_FULL"] * 5
    assert [reserve("d1") for _ in range(3)] == [DONE, DONE, "VELOCITY_EXCEEDED"], "what has its slots needs no room"
    again = LocalLedger.replay(core.entries(), identity_key=IDENTITY_KEY, **pair.sizes)
    assert again.digest() == core.digest()
    pair.now += 3 * DAY
    made_room = 0
    while reserve(f"later{made_room}") != DONE:
        made_room += 1
        assert made_room < 200, "days that are over stay"


@pytest.mark.parametrize("more", [{"window": "day"}, {"window": "10 minutes"}, {"window": "ever"}, {"window": "week", "measure": "stores"},
                                  {"window": "month", "measure": "regions"}, {"window": "20 minutes", "measure": "regions"}],
                         ids=lambda more: " ".join(more.values()))
def test_counters_and_rungs_are_in_snapshots(more: dict) -> None:
    pair = pair_with(limit(**more), limit("burns", at_most=0, then="mark", rung="limited", lasts="36 hours"), division=3)
    assert [ask(pair, EARN, store="waw"), ask(pair, EARN, store="nyc"), ask(pair, BURN, BOB)] == [DONE] * 3
    pair.save()
    pair.reload(0)
    third = "tok" if more.get("measure") == "regions" else "far"
    assert [ask(pair, EARN, store=third), ask(pair, BURN, BOB)] == ["VELOCITY_EXCEEDED", "MEMBER_LIMITED"]


def test_nothing_of_who_it_was_stands_in_the_journal_or_a_snapshot(tmp_path: Path) -> None:
    secret = {"device": "device-of-ann", "cashier": "cashier-4711", "payment_card": "token-0815", "partner": "partner-of-us"}
    rows = [limit(per=key, window=window) for key in secret for window in ("day", "10 minutes")]
    pair = pair_with(*rows, limit("earns", "device", "day", 5, measure="members"), limit("refusals", "device", "day", 1, then="mark"))
    times(pair, 4, EARN, **secret)
    times(pair, 2, BURN, points=10**6, **secret)
    pair.follow()
    pair.core.save(tmp_path / "snapshot")
    written = b"".join(pair.core.entries()) + (tmp_path / "snapshot").read_bytes()
    assert not [text for text in (*secret.values(), "ann") if text.encode() in written.replace(HAND["operator"].encode(), b"")]


# --- a real service ---------------------------------------------------------------------------------------------------

def with_limits(folder: Path, *rows: str) -> Path:
    path = folder / "limited.yaml"
    path.write_text(PROGRAM.read_text() + "\nlimits:\n" + "".join(f"  - {{{row}}}\n" for row in rows))
    return path


def test_twenty_parallel_burns_of_a_service_never_pass_a_bound_of_one(tmp_path: Path, new_server: Callable[..., RunningServer]) -> None:
    server = new_server(program=with_limits(tmp_path, "name: Once, of: burns, per: member, window: 24 hours, at_most: 1, then: refuse"))
    server.start()
    server.stub.EarnPoints(till.earn("hot", 200_00))
    told: list[str] = []
    together = threading.Barrier(20)

    def burn() -> None:
        with grpc.insecure_channel(server.address(), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            grpc.channel_ready_future(channel).result(60)
            request = till.request("BurnPoints", card="hot", points=1)
            together.wait(60)
            try:
                RunningServer._stub(channel).BurnPoints(request, timeout=60)
                told.append(DONE)
            except grpc.RpcError as error:
                told.append(till.reason_of(error)[0])

    threads = [threading.Thread(target=burn) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [DONE] + ["VELOCITY_EXCEEDED"] * 19
    assert server.stub.GetBalance(till.balance_of("hot")).wallets[0].available_points == 999


def test_counters_and_rungs_of_a_service_survive_kills(tmp_path: Path, new_server: Callable[..., RunningServer]) -> None:
    server = new_server(program=with_limits(
        tmp_path, "name: Twice, of: burns, per: member, window: ever, at_most: 2, then: refuse, rung: limited",
        "name: Till, of: earns, per: till, window: 24 hours, at_most: 3, then: refuse"))
    server.start()

    def ask_for(method: str, request: Any) -> str:
        try:
            getattr(server.stub, method)(request, timeout=60)
        except grpc.RpcError as error:
            return till.reason_of(error)[0]
        return DONE

    def burn() -> str:
        return ask_for("BurnPoints", till.request("BurnPoints", card="hot", points=1))

    assert [ask_for("EarnPoints", till.earn("hot", 200_00)), burn()] == [DONE, DONE]
    server.restart(kill=True)
    assert [burn(), ask_for("EarnPoints", till.earn("hot", 1000))] == [DONE, DONE]
    server.restart(kill=True)
    assert [burn(), burn()] == ["VELOCITY_EXCEEDED", "MEMBER_LIMITED"]
    server.restart()
    assert burn() == "MEMBER_LIMITED"
    assert [ask_for("EarnPoints", till.earn("hot", 1000)) for _ in range(2)] == [DONE, "VELOCITY_EXCEEDED"]
