"""The control port: the same calls with the same meaning as on the checkout port, health, reflection, errors with details."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from ledger import limits
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.requests import US, earn, receipt, reserve, set_time
from tests.running import ROOT, RunningServer

NewServer = Callable[..., RunningServer]
NOW_US = 1_795_352_400 * US  # 2026-11-22 13:00 UTC: 8 in the morning in the programme's zone
CALL_S = 10


def details(error: grpc.RpcError) -> tuple[str, dict[str, str]]:
    """Reason and metadata of the ErrorInfo that an error carries."""
    status = rpc_status.from_call(error)
    assert status is not None, f"no details: {error}"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "ledger.loyalty"
    return info.reason, dict(info.metadata)


def script(time_us: int) -> list[tuple[str, Any]]:
    """One of every call, accepted and refused ones; reservation ids are fixed by the order."""
    burn = pb.BurnPointsRequest(request_id="test-burn-0000000001", member=pb.MemberRef(card="card-1"), points=7,
                                receipt_key=receipt(50, 0).key)
    too_much = pb.BurnPointsRequest(request_id="test-burn-0000000002", member=pb.MemberRef(card="card-1"), points=1_000_000)
    nobody = pb.BurnPointsRequest(request_id="test-burn-0000000003", member=pb.MemberRef(card="nobody"), points=1)
    enroll = pb.EnrollMemberRequest(request_id="test-enroll-00000001", identifiers=[pb.MemberRef(phone="+491701234567"),
                                                                                  pb.MemberRef(email="a@example.org")])
    commit = pb.CommitReceiptRequest(request_id="test-commit-00000001", member=pb.MemberRef(card="card-1"), receipt=receipt(51, 2000),
                                     burn=pb.Burn(points=5))
    for request in (burn, too_much, nobody, enroll, commit):
        set_time(request.sent_time, time_us)
    calls: list[tuple[str, Any]] = [
        ("EarnPoints", earn(1, total_minor=10_000, lines=6, time_us=time_us)),
        ("EarnPoints", earn(1, total_minor=10_000, lines=6, time_us=time_us)),  # a repeat
        ("EarnPoints", earn(1, total_minor=10_001, lines=6, time_us=time_us)),  # the id again for something else
        ("BurnPoints", burn), ("BurnPoints", too_much), ("BurnPoints", nobody), ("EnrollMember", enroll), ("CommitReceipt", commit),
        ("ReservePoints", reserve(1, 100, time_us=time_us)), ("ReservePoints", reserve(2, 50, time_us=time_us)),
        ("GetBalance", pb.GetBalanceRequest(member=pb.MemberRef(card="card-1"))),
        ("GetOperation", pb.GetOperationRequest(request_id="test-burn-0000000002")),
        ("EarnPoints", pb.EarnPointsRequest(request_id="short")),
    ]
    return calls


def outcome(stub: Any, method: str, request: Any) -> tuple[Any, ...]:
    try:
        return ("OK", getattr(stub, method)(request, timeout=CALL_S).SerializeToString(deterministic=True))
    except grpc.RpcError as error:
        return (error.code(), error.details(), details(error))


def finish_reservations(stub: Any, time_us: int, ids: list[int]) -> list[tuple[Any, ...]]:
    capture = pb.CaptureReservationRequest(request_id="test-capture-0000001", member=pb.MemberRef(card="card-1"), reservation_id=ids[0], points=60)
    release = pb.ReleaseReservationRequest(request_id="test-release-0000001", member=pb.MemberRef(card="card-1"), reservation_id=ids[1])
    for request in (capture, release):
        set_time(request.sent_time, time_us)
    return [outcome(stub, "CaptureReservation", capture), outcome(stub, "ReleaseReservation", release),
            outcome(stub, "ReleaseReservation", release)]


def test_both_ports_give_the_same_answers_and_the_same_digest(new_server: NewServer) -> None:
    """Two servers with one clock and one identity key, one fed through each port (D1)."""
    first, second = new_server(clock=NOW_US), new_server(clock=NOW_US)
    first.start().terminate()
    shutil.copytree(first.data, second.data)
    answers = []
    for server, name in ((first, "stub"), (second, "control_stub")):
        server.start()
        stub = getattr(server, name)
        told = [outcome(stub, method, request) for method, request in script(NOW_US)]
        ids = [pb.ReservePointsResponse.FromString(row[1]).reservation.reservation_id for row in told[8:10]]
        told += finish_reservations(stub, NOW_US, ids)
        assert server.terminate() == 0, server.log()
        answers.append(told)
    assert answers[0] == answers[1]
    assert [row[0] for row in answers[0]].count("OK") == 12, answers[0]
    digests = [re.search(r"state digest +│ +([0-9a-f]{32})", verified(server)) for server in (first, second)]
    assert digests[0] is not None and digests[1] is not None
    assert digests[0][1] == digests[1][1]


def verified(server: RunningServer) -> str:
    done = subprocess.run([sys.executable, "-m", "server", "verify", str(server.data)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_write_on_one_port_is_read_on_the_other(server: RunningServer) -> None:
    import time

    server.control_stub.EarnPoints(earn(1, total_minor=500, time_us=time.time_ns() // 1000), timeout=CALL_S)
    balance = server.stub.GetBalance(pb.GetBalanceRequest(member=pb.MemberRef(card="card-1")), timeout=CALL_S)
    assert balance.wallets[0].available_points == 25


def test_errors_carry_code_details_and_message(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.control_stub.GetBalance(pb.GetBalanceRequest(member=pb.MemberRef(card="nobody")), timeout=CALL_S)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert details(refused.value)[0] == "MEMBER_NOT_FOUND"
    assert "member" in refused.value.details()
    call = server.control_channel.unary_unary("/loyalty.ledger.v1.LedgerService/GetBalance")
    with pytest.raises(grpc.RpcError) as malformed:
        call(b"\xff\xff\xff", timeout=CALL_S)
    assert details(malformed.value)[0] == "MESSAGE_MALFORMED"
    with pytest.raises(grpc.RpcError) as large:
        call(b"\0" * (limits.REQUEST_BYTES_MAX + 1), timeout=CALL_S)
    assert details(large.value) == ("MESSAGE_TOO_LARGE", {"bytes": str(limits.REQUEST_BYTES_MAX + 1), "bytes_max": str(limits.REQUEST_BYTES_MAX)})


def test_an_unknown_method_is_unimplemented(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as unknown:
        server.control_channel.unary_unary("/loyalty.ledger.v1.LedgerService/StealPoints")(b"", timeout=CALL_S)
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_many_calls_at_once_are_all_answered_with_their_own_answer(server: RunningServer) -> None:
    import time

    now_us = time.time_ns() // 1000

    def one(number: int) -> tuple[int, int]:
        answer = server.control_stub.EarnPoints(earn(number, card=f"card-{number}", total_minor=100 * number, time_us=now_us), timeout=30)
        return number, answer.entry.earned_points

    with ThreadPoolExecutor(32) as pool:
        assert all(points == 5 * number for number, points in pool.map(one, range(1, 401)))


def test_a_call_past_its_deadline_is_not_decided(server: RunningServer) -> None:
    """The server is stopped while the call waits, so the deadline has passed when the hot thread sees it."""
    import signal
    import time

    assert server.process is not None
    request = earn(1, time_us=time.time_ns() // 1000)
    with pytest.raises(grpc.RpcError):
        server.control_stub.GetBalance(pb.GetBalanceRequest(member=pb.MemberRef(card="x")), timeout=CALL_S)
    server.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(grpc.RpcError) as late:
            server.control_stub.EarnPoints(request, timeout=0.2)
        assert late.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        server.process.send_signal(signal.SIGCONT)
    with pytest.raises(grpc.RpcError) as unseen:
        server.control_stub.GetOperation(pb.GetOperationRequest(request_id=request.request_id), timeout=CALL_S)
    assert details(unseen.value)[0] == "OPERATION_NOT_FOUND"


def test_a_cancelled_call_leaves_the_port_alive(server: RunningServer) -> None:
    import time

    now_us = time.time_ns() // 1000
    for number in range(1, 50):
        server.control_stub.EarnPoints.future(earn(number, time_us=now_us), timeout=CALL_S).cancel()
    answer = server.control_stub.EarnPoints(earn(1000, time_us=now_us), timeout=CALL_S)
    assert answer.entry.sequence > 1


def test_health_answers_for_the_server_and_the_service(server: RunningServer) -> None:
    for channel in (server.channel, server.control_channel):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "loyalty.ledger.v1.LedgerService"):
            assert health.Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_S).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="loyalty.Nothing"), timeout=CALL_S)
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_names_the_services(server: RunningServer) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.control_channel)
    answer = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=CALL_S))
    assert "loyalty.ledger.v1.LedgerService" in {service.name for service in answer.list_services_response.service}
    symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol="loyalty.ledger.v1.LedgerService")
    answer = next(stub.ServerReflectionInfo(iter([symbol]), timeout=CALL_S))
    assert len(answer.file_descriptor_response.file_descriptor_proto) >= 1
