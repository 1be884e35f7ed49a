"""The ladder, reviews and challenges: what a limit asks of people, what they decide, and what becomes of the points.

Not for counting (tests of limits). With a core alone, and through a real service, its two ports and the command line.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from ledger import limits
from ledger.journal import read_entry
from ledger.rules import compile_source
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import admin_pb2_grpc
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import till
from tests.running import RunningServer
from tests.server.wire_model import ANSWERS

SECOND, DAY = 1_000_000, 86_400_000_000
START = 1_795_000_000_000_000
EARN, BURN, RESERVE, CAPTURE, RELEASE, COMMIT, ENROLL, BALANCE, QUOTE = 1, 2, 3, 4, 5, 6, 7, 8, 16
SET_RUNG, DECIDE, ANSWER, BLOCKS = 24, 25, 26, 28
HAND = {"operator": "anna", "reason": "ticket 4711"}
SOURCE = """\
programme: Cases
currency: USD
zone: America/New_York
anonymous_accounts: true
max_age: 400 days
wallets:
  - {name: points, points_live: 30 days}
  - {name: bonus, points_live: 10 days of inactivity}
rules:
  - {name: Base, for_every_full: 1.00, give: 1}
  - {name: Bonus, for_every_full: 1.00, give: 2, to_wallet: bonus, available_after: 2 days}
burn: [{name: All, one_point_pays: 0.01}]
limits:
  - {name: Large, of: earns, measure: money, per: member, window: receipt, at_most: 100.00, then: review}
  - {name: Burns, of: burns, per: member, window: day, at_most: 1, then: challenge}
  - {name: Receipts, of: earns, per: member, window: day, at_most: 6, then: refuse, rung: limited, lasts: 2 days}
"""


class Shop:
    """A core with the programme above."""

    def __init__(self) -> None:
        self.program = compile_source(SOURCE.encode())
        self.now, self.requests = START, 0
        self.core = LocalLedger(self.program.image, self.program.source, START, members_max=20)

    def send(self, method: int, request: Any) -> Any:
        """The answer, or the reason of a refusal and its metadata."""
        code, data, _ = self.core.call(method, request.SerializeToString(), self.now)
        if code == 0:
            return ANSWERS[method].FromString(data)
        info = error_details_pb2.ErrorInfo()
        assert status_pb2.Status.FromString(data).details[0].Unpack(info)
        return info.reason, dict(info.metadata)

    def call(self, method: int, request: Any) -> Any:
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            self.requests += 1
            request.request_id = f"request-{self.requests:08d}"
            request.sent_time.FromMicroseconds(self.now)
        return self.send(method, request)

    def earn(self, total_minor: int, card: str = "ann") -> Any:
        self.requests += 1
        key = pb.ReceiptKey(store="1", till="1", business_day=20261118, number=str(self.requests))
        return self.call(EARN, pb.EarnPointsRequest(member=pb.MemberRef(card=card), receipt=pb.Receipt(
            key=key, currency_code="USD", total_minor=total_minor)))

    def burn(self, points: int = 1, challenge: int = 0, card: str = "ann") -> Any:
        return self.call(BURN, pb.BurnPointsRequest(member=pb.MemberRef(card=card), points=points, challenge_id=challenge))

    def balance(self, card: str = "ann") -> list[tuple[int, int, int]]:
        answer = self.call(BALANCE, pb.GetBalanceRequest(member=pb.MemberRef(card=card)))
        return [(wallet.posted_points, wallet.pending_points, wallet.available_points) for wallet in answer.wallets]

    def rung(self, rung: int, lasts_s: int = 0, card: str = "ann") -> Any:
        request = admin.SetRungRequest(member=pb.MemberRef(card=card), rung=rung, **HAND)
        if lasts_s:
            request.lasts.seconds = lasts_s
        return self.call(SET_RUNG, request)

    def decide(self, review: int, verdict: int) -> Any:
        return self.call(DECIDE, admin.DecideReviewRequest(review_id=review, verdict=verdict, **HAND))

    def answer(self, challenge: int, passed: bool = True) -> Any:
        return self.call(ANSWER, pb.AnswerChallengeRequest(challenge_id=challenge, passed=passed))

    def check(self, folder: Path) -> None:
        """Replay and snapshot are the same ledger."""
        self.core.write_digest(self.now)
        assert LocalLedger.replay(self.core.entries(), members_max=20).digest() == self.core.digest()
        self.core.save(folder / "snapshot")
        loaded = LocalLedger.load(folder / "snapshot", None, members_max=20)
        assert loaded.digest() == self.core.digest()


@pytest.fixture
def shop(tmp_path: Path) -> Any:
    made = Shop()
    yield made
    made.check(tmp_path)


# --- the ladder -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("rung", "earns", "takes"), [
    (1, "", ""), (2, "", ""), (3, "", "MEMBER_LIMITED"), (4, "MEMBER_BLOCKED", "MEMBER_BLOCKED"),
    (5, "MEMBER_EXCLUDED", "MEMBER_EXCLUDED")])
def test_a_rung_says_what_a_member_may_do(shop: Shop, rung: int, earns: str, takes: str) -> None:
    shop.earn(5000)
    held = shop.call(RESERVE, pb.ReservePointsRequest(member=pb.MemberRef(card="ann"), points=3)).reservation.reservation_id
    moved = shop.rung(rung)
    assert moved.entry.kind == pb.Entry.KIND_SET_RUNG

    def said(answer: Any) -> str:
        return answer[0] if isinstance(answer, tuple) else ""

    ann = pb.MemberRef(card="ann")
    key = pb.ReceiptKey(store="1", till="1", business_day=20261118, number="c")
    receipt = pb.Receipt(key=key, currency_code="USD", total_minor=100)
    assert said(shop.earn(100)) == earns
    assert said(shop.call(ENROLL, pb.EnrollMemberRequest(identifiers=[ann, pb.MemberRef(app="more")]))) == earns
    assert said(shop.call(QUOTE, pb.QuoteReceiptRequest(member=ann, receipt=receipt))) == earns
    assert said(shop.call(COMMIT, pb.CommitReceiptRequest(member=ann, receipt=receipt, burn=pb.Burn(points=1)))) == takes
    assert said(shop.call(RESERVE, pb.ReservePointsRequest(member=ann, points=1))) == takes
    assert said(shop.call(CAPTURE, pb.CaptureReservationRequest(member=ann, reservation_id=held, points=1, challenge_id=0))) in (
        takes, "CHALLENGE_NEEDED")
    assert said(shop.call(RELEASE, pb.ReleaseReservationRequest(member=ann, reservation_id=held))) in ("", "RESERVATION_NOT_ACTIVE")
    assert shop.balance()[0][0] > 0, "a balance is told in any case"


def test_a_rung_ends_when_its_time_is_over(shop: Shop) -> None:
    shop.earn(5000)
    shop.rung(4, lasts_s=60)
    reason, metadata = shop.earn(100)
    assert (reason, metadata["until_us"]) == ("MEMBER_BLOCKED", str(START + 60 * SECOND))
    shop.now += 60 * SECOND - 1
    assert shop.earn(100)[0] == "MEMBER_BLOCKED"
    shop.now += 1
    assert shop.earn(100).entry.earned_points


def test_a_limit_moves_up_and_never_down(shop: Shop) -> None:
    """The seventh receipt of a day is refused, and the entry that refuses it moves the member; one who is excluded stays so."""
    for _ in range(6):
        shop.earn(100)
    assert shop.earn(100)[0] == "VELOCITY_EXCEEDED"
    entry = read_entry(shop.core.entries()[-1])
    assert entry["rung"] == {"before": 0, "after": 2, "until_s": (START + 2 * DAY) // SECOND, "limit": 3}
    assert entry["limits"]["above"] == [{"limit": 3, "answer": 3}]
    assert shop.burn()[0] == "MEMBER_LIMITED"
    assert shop.earn(100)[0] == "VELOCITY_EXCEEDED" and "rung" not in read_entry(shop.core.entries()[-1]), "he is there already"
    shop.now += 2 * DAY
    assert shop.burn().entry.burned_points == 1
    shop.rung(5)
    for _ in range(8):
        shop.earn(100)
    assert "rung" not in read_entry(shop.core.entries()[-1])


def test_a_repeat_of_a_move_is_known_and_another_one_is_not_it(shop: Shop) -> None:
    shop.earn(100)
    request = admin.SetRungRequest(member=pb.MemberRef(card="ann"), rung=3, lasts={"seconds": 9}, **HAND)
    first = shop.call(SET_RUNG, request)
    assert shop.send(SET_RUNG, request).replayed
    changes = {"rung": {"rung": 4}, "lasts": {"lasts": {"seconds": 8}}, "operator": {"operator": "bob"}, "reason": {"reason": "x"},
               "member": {"member": {"card": "bob"}}}
    for field, change in changes.items():
        other = admin.SetRungRequest()
        other.CopyFrom(request)
        other.MergeFrom(admin.SetRungRequest(**change))
        assert shop.send(SET_RUNG, other)[1] == {"field": field, "sequence": str(first.entry.sequence)}
    assert shop.call(SET_RUNG, admin.SetRungRequest(member=pb.MemberRef(card="nobody"), rung=3, **HAND))[0] == "MEMBER_NOT_FOUND"


# --- reviews ----------------------------------------------------------------------------------------------------------

def test_what_is_under_review_is_pending_until_it_is_approved(shop: Shop) -> None:
    shop.earn(1000)
    answer = shop.earn(10_100)
    assert answer.entry.earned_points == 303 and shop.balance() == [(111, 101, 10), (222, 222, 0)]
    assert [lot["under_review"] for lot in read_entry(shop.core.entries()[-1])["lots"]] == [True, True]
    assert shop.burn(11)[0] == "INSUFFICIENT_POINTS", "nobody spends what is under review"
    approved = shop.decide(answer.entry.sequence, 1)
    assert approved.entry.kind == pb.Entry.KIND_DECIDE_REVIEW and approved.entry.earned_points == 0
    assert [(one.posted_points, one.pending_points) for one in approved.wallets] == [(111, 0), (222, 222)], "the bonus waits two days"
    shop.now += 2 * DAY
    assert shop.balance() == [(111, 0, 111), (222, 0, 222)]
    assert shop.decide(answer.entry.sequence, 1)[0] == "REVIEW_NOT_FOUND"


def test_what_is_denied_goes_back_to_where_it_was_issued(shop: Shop) -> None:
    shop.earn(1000)
    issued = shop.core.stats()["issued_points"][:2]
    first, second = shop.earn(10_100), shop.earn(20_000)
    assert shop.decide(first.entry.sequence, 2).entry.earned_points == -303
    assert shop.balance() == [(210, 200, 10), (420, 420, 0)], "the other one is still under review"
    assert shop.decide(second.entry.sequence, 2).entry.earned_points == -600
    assert shop.balance() == [(10, 0, 10), (20, 20, 0)] and shop.core.stats()["issued_points"][:2] == issued


@pytest.mark.parametrize("verdict", [1, 2])
def test_points_that_expire_or_move_while_they_wait(shop: Shop, verdict: int) -> None:
    """The one wallet's points are gone when somebody decides at last; the other's live by inactivity and have been moved by a receipt."""
    waiting = shop.earn(10_100).entry.sequence
    for days in (9, 9, 9):
        shop.now += days * DAY
        shop.earn(100)
    shop.now += 5 * DAY
    shop.core.tick(shop.now)
    before = shop.balance()
    decided = shop.decide(waiting, verdict)
    assert decided.entry.earned_points == (0 if verdict == 1 else -202)
    posted = [after[0] - then[0] for after, then in zip(shop.balance(), before, strict=True)]
    assert posted == [0, 0 if verdict == 1 else -202]
    assert shop.balance()[1][1] == 0


def test_a_decision_is_made_once_and_a_repeat_is_known(shop: Shop) -> None:
    waiting = shop.earn(10_100).entry.sequence
    request = admin.DecideReviewRequest(review_id=waiting, verdict=2, **HAND)
    first = shop.call(DECIDE, request)
    assert shop.send(DECIDE, request).replayed
    changes = {"review_id": {"review_id": 1}, "verdict": {"verdict": 1}, "operator": {"operator": "bob"}, "reason": {"reason": "x"}}
    for field, change in changes.items():
        other = admin.DecideReviewRequest()
        other.CopyFrom(request)
        other.MergeFrom(admin.DecideReviewRequest(**change))
        assert shop.send(DECIDE, other)[1] == {"field": field, "sequence": str(first.entry.sequence)}
    assert shop.decide(10**6, 1) == ("REVIEW_NOT_FOUND", {"review_id": "1000000"})


# --- challenges -------------------------------------------------------------------------------------------------------

def challenged(shop: Shop, card: str = "ann") -> int:
    """The challenge of a second burn."""
    shop.earn(5000, card)
    assert shop.burn(1, card=card).entry.burned_points == 1
    reason, metadata = shop.burn(1, card=card)
    assert reason == "CHALLENGE_NEEDED" and int(metadata["challenge_id"]) == len(shop.core.entries())
    return int(metadata["challenge_id"])


def test_a_challenge_that_is_passed_is_good_for_one_command(shop: Shop) -> None:
    challenge = challenged(shop)
    assert shop.burn(1, challenge)[0] == "CHALLENGE_NOT_FOUND", "nobody has passed it yet"
    assert shop.answer(challenge).entry.kind == pb.Entry.KIND_ANSWER_CHALLENGE
    assert shop.burn(10**6, challenge)[0] == "INSUFFICIENT_POINTS", "what fails for another reason does not use it up"
    assert shop.burn(1, challenge).entry.burned_points == 1
    assert shop.burn(1, challenge)[0] == "CHALLENGE_NOT_FOUND"
    assert shop.burn(1)[0] == "CHALLENGE_NEEDED"


def test_a_challenge_that_failed_or_is_too_old_or_of_another_member_is_none(shop: Shop) -> None:
    failed, mine, old = challenged(shop), challenged(shop, "bob"), challenged(shop, "cid")
    shop.answer(failed, passed=False)
    assert shop.burn(1, failed)[0] == shop.answer(failed)[0] == "CHALLENGE_NOT_FOUND"
    shop.answer(mine)
    assert shop.answer(mine)[0] == "CHALLENGE_NOT_FOUND", "it was answered"
    assert shop.burn(1, mine)[0] == "CHALLENGE_NOT_FOUND", "ann cannot pass for bob"
    shop.now += limits.CHALLENGE_S * SECOND
    assert shop.burn(1, mine, "bob").entry.burned_points == 1, "to the last moment"
    shop.answer(old)
    shop.now += 1
    assert shop.burn(1, old, "cid")[0] == "CHALLENGE_NOT_FOUND"


def test_what_a_challenge_was_passed_for_is_part_of_the_request(shop: Shop) -> None:
    challenge = challenged(shop)
    shop.answer(challenge)
    request = pb.BurnPointsRequest(member=pb.MemberRef(card="ann"), points=1, challenge_id=challenge)
    shop.call(BURN, request)
    assert shop.send(BURN, request).replayed
    request.challenge_id = 0
    assert shop.send(BURN, request)[1]["field"] == "challenge_id"


def test_a_quote_says_that_a_challenge_is_needed_and_opens_none(shop: Shop) -> None:
    challenged(shop)
    receipt = pb.Receipt(currency_code="USD", total_minor=100)
    before = shop.core.digest()
    told = shop.call(QUOTE, pb.QuoteReceiptRequest(member=pb.MemberRef(card="ann"), receipt=receipt, burn=pb.Burn(points=1)))
    assert told == ("CHALLENGE_NEEDED", {"challenge_id": "0"}) and shop.core.digest() == before


def test_a_balance_that_tells_a_rung_waits_for_the_refusal_that_moved_it(shop: Shop) -> None:
    """A refusal does not change the member's sequence; the till must not hear of a rung that a power cut takes back."""
    for _ in range(6):
        shop.earn(100)
    shop.earn(100, "bob")
    shop.balance()
    assert shop.core.outcome()["wait_sequence"] == 7
    assert shop.earn(100)[0] == "VELOCITY_EXCEEDED"
    answer = shop.call(BALANCE, pb.GetBalanceRequest(member=pb.MemberRef(card="ann")))
    assert (answer.rung, answer.sequence) == (pb.RUNG_LIMITED, 7)
    assert shop.core.outcome()["wait_sequence"] == len(shop.core.entries()) == 9
    shop.balance("bob")
    assert shop.core.outcome()["wait_sequence"] == 8


# --- block lists ------------------------------------------------------------------------------------------------------

def change(shop: Shop, add: tuple[str, ...] = (), remove: tuple[str, ...] = ()) -> Any:
    return shop.call(BLOCKS, admin.ChangeBlocksRequest(add=add, remove=remove, **HAND))


@pytest.mark.parametrize(("row", "member", "origin", "till_code"), [
    ("card:ann", {"card": "ann"}, {}, "1"), ("card:an*", {"card": "ann"}, {}, "1"), ("app:a-1", {"app": "a-1"}, {}, "1"),
    ("phone:+48 600 700 801", {"phone": "+48600700801"}, {}, "1"), ("email:Ann@Example.org", {"email": "ann@example.org"}, {}, "1"),
    ("device:d-1", {"card": "bob"}, {"device": "d-1"}, "1"), ("device:d*", {"card": "bob"}, {"device": "d-1"}, "1"),
    ("till:1/7", {"card": "bob"}, {}, "7"), ("till:1/*", {"card": "bob"}, {}, "7")])
def test_what_is_blocked_does_nothing(shop: Shop, row: str, member: dict[str, str], origin: dict[str, str], till_code: str) -> None:
    """And it alone: what begins otherwise, another till or device goes on. Off the list it goes on, too."""

    def earn(number: str, **other: Any) -> Any:
        key = pb.ReceiptKey(store="1", till=other.get("till", till_code), business_day=20261118, number=number)
        receipt = pb.Receipt(key=key, currency_code="USD", total_minor=1000)
        return shop.call(EARN, pb.EarnPointsRequest(member=other.get("member", member), receipt=receipt,
                                                       origin=other.get("origin", origin)))

    assert earn("1").entry.sequence
    assert change(shop, add=(row,)).entry.kind == pb.Entry.KIND_CHANGE_BLOCKS
    assert earn("2")[0] == "BLOCKED"
    refused = shop.call(ENROLL, pb.EnrollMemberRequest(identifiers=[member], origin={**origin, "store": "1", "till": till_code}))
    assert refused[0] == "BLOCKED"
    other = earn("3", member={"card": "other"}, origin={"device": "other"}, till="8")
    assert other[0] == "BLOCKED" if row == "till:1/*" else other.entry.sequence
    change(shop, remove=(row,))
    assert earn("4").entry.sequence


def test_block_lists_grow_and_shrink_and_have_versions(shop: Shop) -> None:
    rows = tuple(f"card:{number:05d}" for number in range(100))
    change(shop, add=rows)
    change(shop, add=("card:00007", "card:9*"), remove=("card:00008", "card:nobody"))
    assert (shop.core.stats()["blocks"], shop.core.stats()["blocks_version"]) == (100, 2)
    assert read_entry(shop.core.entries()[-1])["blocks"]["version"] == 2
    assert shop.earn(100, "00007")[0] == "BLOCKED" and shop.earn(100, "91")[0] == "BLOCKED" and shop.earn(100, "00008").entry.sequence
    assert b"00007" not in b"".join(shop.core.entries())
    request = admin.ChangeBlocksRequest(add=["card:1", "card:2"], remove=["card:3"], **HAND)
    first = shop.call(BLOCKS, request)
    assert shop.send(BLOCKS, request).replayed
    for field, other in {"add": {"add": ["card:1"]}, "remove": {"remove": ["card:4"]}, "operator": {"operator": "bob"}}.items():
        changed = admin.ChangeBlocksRequest()
        changed.CopyFrom(request)
        changed.ClearField(field)
        changed.MergeFrom(admin.ChangeBlocksRequest(**other))
        assert shop.send(BLOCKS, changed)[1]["sequence"] == str(first.entry.sequence)
    for _ in range(3):
        change(shop, remove=rows)
    assert shop.core.stats()["blocks"] == 3


# --- through a service ------------------------------------------------------------------------------------------------

def test_people_decide_through_the_control_port_and_the_command_line(tmp_path: Path, new_server: Callable[..., RunningServer]) -> None:
    program = tmp_path / "cases.yaml"
    program.write_text(SOURCE)
    server = new_server(program=program).start()
    stub = server.stub
    office = admin_pb2_grpc.AdminServiceStub(server.control_channel)
    waiting = [stub.EarnPoints(till.earn(f"card-{number}", 20_000 + number)).entry for number in range(3)]
    page = office.ListReviews(admin.ListReviewsRequest(page_size=2))
    rest = office.ListReviews(admin.ListReviewsRequest(page_size=2, page_token=page.next_page_token))
    told = [*page.reviews, *rest.reviews]
    assert [(one.review_id, one.member_id, one.points, one.limit, one.limit_name) for one in told] == [
        (entry.sequence, entry.member_id, 600, 1, "Large") for entry in waiting]
    assert not rest.next_page_token
    for field, request in (("page_size", admin.ListReviewsRequest(page_size=-1)),
                           ("page_token", admin.ListReviewsRequest(page_token="x"))):
        with pytest.raises(grpc.RpcError) as refused:
            office.ListReviews(request)
        assert till.reason_of(refused.value)[1]["field"] == field

    def daybook(*words: str) -> str:
        command = [sys.executable, "-m", "server", *words, "--control", f"127.0.0.1:{server.ports['control']}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    by = ("--operator", "anna", "--reason", "ticket 4711")
    listed = daybook("reviews")
    assert all(str(entry.sequence) in listed for entry in waiting) and "Large" in listed
    assert "approved for member 1" in daybook("approve", str(waiting[0].sequence), *by)
    assert "600 points taken back from member 2" in daybook("deny", str(waiting[1].sequence), *by)
    assert "blocked for 7 days: member 3" in daybook("rung", "id:3", "blocked", "--lasts", "7 days", *by)
    with pytest.raises(grpc.RpcError) as refused:
        stub.EarnPoints(till.earn("card-2", 100))
    assert till.reason_of(refused.value)[0] == "MEMBER_BLOCKED"
    assert [one.review_id for one in office.ListReviews(admin.ListReviewsRequest()).reviews] == [waiting[2].sequence]

    stolen = tmp_path / "stolen.txt"
    stolen.write_text("# stolen\n" + "".join(f"card:stolen-{number}\n" for number in range(300)))
    assert "301 rows are blocked" in daybook("block", "device:d-9", "--file", str(stolen), *by)
    with pytest.raises(grpc.RpcError) as refused:
        stub.EarnPoints(till.earn("stolen-299"))
    assert till.reason_of(refused.value)[0] == "BLOCKED"
    assert "1 row is not blocked any more" in daybook("unblock", "card:stolen-299", *by)
    stub.EarnPoints(till.earn("stolen-299"))

    stolen.write_text("phone:+48600100200\ncard:stolen-1\ncard:stolen-2\n")
    daybook("block", "--file", str(stolen), *by)
    newer = tmp_path / "newer.txt"
    newer.write_text("phone:+48 600 100 200\ncard:stolen-2\ncard:stolen-400\n")  # the phone is only spelled otherwise
    told = daybook("block", "--file", str(newer), "--instead-of", str(stolen), *by)
    assert "2 rows are not blocked any more" in told and "3 rows are blocked" in told
    stub.EarnPoints(till.earn("stolen-1"))
    for member in ({"card": "stolen-2"}, {"card": "stolen-400"}, {"phone": "+48600100200"}):
        request = till.earn("x", 1000)
        request.member.CopyFrom(type(request.member)(**member))
        with pytest.raises(grpc.RpcError) as refused:
            stub.EarnPoints(request)
        assert till.reason_of(refused.value)[0] == "BLOCKED"

    stub.EarnPoints(till.earn("card-9", 5000))
    stub.BurnPoints(till.request("BurnPoints", card="card-9", points=1))
    with pytest.raises(grpc.RpcError) as refused:
        stub.BurnPoints(till.request("BurnPoints", card="card-9", points=1))
    reason, metadata = till.reason_of(refused.value)
    assert reason == "CHALLENGE_NEEDED"
    challenge = int(metadata["challenge_id"])
    assert stub.AnswerChallenge(till.request("AnswerChallenge", challenge_id=challenge, passed=True)).entry.member_id
    assert stub.BurnPoints(till.request("BurnPoints", card="card-9", points=1, challenge_id=challenge)).entry.burned_points == 1
    told_by = server.metrics()
    assert told_by['ledger_limit_above_total{answer="review",limit="Large"}'] == 3
    assert told_by['ledger_limit_above_total{answer="challenge",limit="Burns"}'] == 2
