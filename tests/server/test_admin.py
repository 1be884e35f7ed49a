"""Changes by hand, end to end: AdminService on the control port of a real service, and the commands that call it."""

from __future__ import annotations

import re
import socket

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from ledger import journal
from server._pb.loyalty.ledger.v1 import admin_pb2_grpc
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import till
from tests.running import RunningServer
from tests.server.test_cli import daybook, one_message

CALL_S = 60
WHO = ("--operator", "anna", "--reason", "ticket 4711")


def available(server: RunningServer, card: str) -> int:
    return server.stub.GetBalance(till.balance_of(card), timeout=CALL_S).wallets[0].available_points


def test_by_hand_through_the_control_port_and_again_after_a_kill(server: RunningServer) -> None:
    """What was answered is there after kill -9, repeats get the first answers, and the journal verifies."""
    server.stub.EarnPoints(till.earn("card-1", 1000), timeout=CALL_S)
    requests = [
        ("AdjustPoints", till.by_hand("AdjustPoints", card="card-1", points=25)),
        ("AdjustPoints", till.by_hand("AdjustPoints", card="card-1", points=-5)),
        ("LinkIdentifier", till.by_hand("LinkIdentifier", card="card-1", identifier="card-2")),
        ("UnlinkIdentifier", till.by_hand("UnlinkIdentifier", identifier="card-1")),
    ]
    answers = [getattr(server.admin_stub, method)(request, timeout=CALL_S) for method, request in requests]
    assert [(answer.entry.kind, answer.entry.adjusted_points) for answer in answers] == [(10, 25), (10, -5), (11, 0), (12, 0)]
    with pytest.raises(grpc.RpcError) as nobody:
        available(server, "card-1")
    assert till.reason_of(nobody.value) == ("MEMBER_NOT_FOUND", {"field": "member.card"})
    assert available(server, "card-2") == 70
    server.restart(kill=True)
    for (method, request), answer in zip(requests, answers, strict=True):
        again = getattr(server.admin_stub, method)(request, timeout=CALL_S)
        assert again.replayed and again.entry == answer.entry
        operation = server.stub.GetOperation(pb.GetOperationRequest(request_id=request.request_id), timeout=CALL_S)
        assert operation.entry == answer.entry, "GetOperation finds it, on the tills' port too"
    assert available(server, "card-2") == 70
    assert server.stub.EarnPoints(till.earn("card-1", 1000), timeout=CALL_S).entry.member_id == 2
    metrics = server.metrics()
    assert metrics['ledger_adjusted_points{wallet="points"}'] == 20
    assert metrics['ledger_outstanding_points{wallet="points"}'] == 120
    assert metrics['ledger_calls_total{method="UnlinkIdentifier",outcome="OK",port="control"}'] == 1
    assert metrics["ledger_identifiers"] == 2
    assert server.terminate() == 0
    done = daybook("verify", str(server.data))
    assert done.returncode == 0, done.stderr
    assert re.search(r"points +│ +100 │ +20 │ +0 │ +0 │ +120 │", done.stdout), done.stdout
    kinds = [journal.read_entry(entry)["kind"] for group in journal.scan(server.data) for _, entry in group]
    assert [kind for kind in kinds if kind in ("adjust", "link", "unlink")] == ["adjust", "adjust", "link", "unlink"]


def test_errors_carry_code_details_and_message(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.admin_stub.UnlinkIdentifier(till.by_hand("UnlinkIdentifier", identifier="card-9"), timeout=CALL_S)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert till.reason_of(refused.value) == ("IDENTIFIER_NOT_FOUND", {"field": "identifier.card"})
    assert refused.value.details() == "identifier.card is linked to no member"


def test_the_tills_port_has_no_such_calls(server: RunningServer) -> None:
    stub = admin_pb2_grpc.AdminServiceStub(server.channel)
    for method in till.BY_HAND:
        with pytest.raises(grpc.RpcError) as refused:
            getattr(stub, method)(till.by_hand(method), timeout=CALL_S)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert till.reason_of(refused.value) == ("METHOD_UNKNOWN", {})


# --- the commands

def answered(server: RunningServer, command: str, *arguments: str) -> str:
    """The one line that a command prints."""
    done = daybook(command, *arguments, *WHO, "--control", server.address("control"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.count("\n") == 1
    return done.stdout.strip()


def test_each_command_prints_what_it_did_in_one_line(server: RunningServer) -> None:
    server.stub.EarnPoints(till.earn("card-1", 1000), timeout=CALL_S)
    assert answered(server, "adjust", "card:card-1", "--points", "2500", "--expiry-day", "21991231") == (
        "entry 3: 2,500 points given to member 1; points: 2,550 available")
    assert answered(server, "adjust", "id:1", "--points", "-50", "--wallet", "points") == (
        "entry 4: 50 points taken from member 1; points: 2,500 available")
    assert answered(server, "link", "id:1", "phone:+48 600 700 801") == "entry 5: phone linked to member 1"
    assert answered(server, "link", "card:card-1", "phone:+48600700801") == "entry 6: phone was linked already to member 1"
    assert answered(server, "unlink", "card:card-1") == "entry 7: card unlinked from member 1"


def test_a_refusal_is_one_message_with_its_reason(server: RunningServer) -> None:
    where = ("--control", server.address("control"))
    one_message(daybook("adjust", "card:nobody", "--points", "5", *WHO, *where), 1,
                r"refused, nothing was changed: member.card names no member(.|\n)*MEMBER_NOT_FOUND")
    one_message(daybook("adjust", "id:1", "--points", "0", *WHO, *where), 1, r"points must be -10{12}\.\.10{12}, not 0, was 0")
    one_message(daybook("unlink", "id:1", *WHO, *where), 1, r"identifier must be one card, phone, email or app, was 1")


@pytest.mark.parametrize(("arguments", "message"), [
    (("adjust", "2600012345678", "--points", "5"), r"'2600012345678' must begin with one of id:, card:, phone:, email:, app:"),
    (("adjust", "id:seventeen", "--points", "5"), r"id: must be followed by a member's number, was 'seventeen'"),
    (("adjust", "id:1", "--points", str(2**63)), r"--points is out of range: 9223372036854775808"),
    (("adjust", "id:1", "--points", "5", "--expiry-day", str(2**31)), r"--expiry-day is out of range: 2147483648"),
    (("link", "id:1", "card:1", "--control", "7071"), r"--control must be HOST:PORT, was '7071'"),
    (("link", "id:1", "card:1", "--request-id", "x" * 16), r"--request-id and --sent-time belong together"),
    (("link", "id:1", "card:1", "--request-id", "x" * 16, "--sent-time", "today"), r"--sent-time must be like 2026-11-22T.*was 'today'"),
])
def test_wrong_use_is_one_clear_message(arguments: tuple[str, ...], message: str) -> None:
    one_message(daybook(*arguments, *WHO), 2, message)


def test_a_command_without_an_answer_says_how_it_is_repeated_and_is_done_once(server: RunningServer) -> None:
    server.stub.EarnPoints(till.earn("card-1", 1000), timeout=CALL_S)
    command = ("adjust", "card:card-1", "--points", "5", *WHO)
    with socket.socket() as deaf:  # bound, so that nobody else gets the port, and not listening
        deaf.bind(("127.0.0.1", 0))
        port = deaf.getsockname()[1]
        lost = daybook(*command, "--control", f"127.0.0.1:{port}")
    one_message(lost, 1, rf"127.0.0.1:{port}: no answer: whether it was done is not known")
    again = re.search(r"--request-id (\S+) --sent-time (\S+):", lost.stderr)
    assert again is not None, lost.stderr
    Timestamp().FromJsonString(again[2])
    repeated = ("--request-id", again[1], "--sent-time", again[2])
    assert answered(server, *command[:-4], *repeated) == "entry 3: 5 points given to member 1; points: 55 available"
    assert answered(server, *command[:-4], *repeated).endswith("55 available (decided before: this repeat changed nothing)")
    assert available(server, "card-1") == 55


@pytest.mark.parametrize("command", ["adjust", "link", "unlink"])
def test_help_teaches_with_an_example(command: str) -> None:
    done = daybook(command, "--help")
    assert done.returncode == 0
    assert f"Example: daybook {command}" in done.stdout
