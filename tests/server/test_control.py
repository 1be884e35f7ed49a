"""The control port: the same calls with the same meaning as on the checkout port, health, reflection, errors with details."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ledger import limits
from tests import till
from tests.running import RunningServer

CALL_S = 60


def test_a_write_on_one_port_is_read_on_the_other(server: RunningServer) -> None:
    server.control_stub.EarnPoints(till.earn("card-1", 500), timeout=CALL_S)
    balance = server.stub.GetBalance(till.balance_of("card-1"), timeout=CALL_S)
    assert balance.wallets[0].available_points == 25


def test_errors_carry_code_details_and_message(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        server.control_stub.GetBalance(till.balance_of("nobody"), timeout=CALL_S)
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert till.reason_of(refused.value)[0] == "MEMBER_NOT_FOUND"
    assert "member" in refused.value.details()
    call = server.control_channel.unary_unary("/loyalty.ledger.v1.LedgerService/GetBalance")
    with pytest.raises(grpc.RpcError) as malformed:
        call(b"\xff\xff\xff", timeout=CALL_S)
    assert till.reason_of(malformed.value)[0] == "MESSAGE_MALFORMED"
    with pytest.raises(grpc.RpcError) as large:
        call(b"\0" * (limits.REQUEST_BYTES_MAX + 1), timeout=CALL_S)
    most = limits.REQUEST_BYTES_MAX
    assert till.reason_of(large.value) == ("MESSAGE_TOO_LARGE", {"bytes": str(most + 1), "bytes_max": str(most)})


def test_an_unknown_method_is_unimplemented(server: RunningServer) -> None:
    with pytest.raises(grpc.RpcError) as unknown:
        server.control_channel.unary_unary("/loyalty.ledger.v1.LedgerService/StealPoints")(b"", timeout=CALL_S)
    assert unknown.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_many_calls_at_once_are_all_answered_with_their_own_answer(server: RunningServer) -> None:
    def one(number: int) -> tuple[int, int]:
        answer = server.control_stub.EarnPoints(till.earn(f"card-{number}", 100 * number), timeout=60)
        return number, answer.entry.earned_points

    with ThreadPoolExecutor(32) as pool:
        assert all(points == 5 * number for number, points in pool.map(one, range(1, 401)))


def test_a_cancelled_call_leaves_the_port_alive(server: RunningServer) -> None:
    for _ in range(50):
        server.control_stub.EarnPoints.future(till.earn("card-1"), timeout=CALL_S).cancel()
    answer = server.control_stub.EarnPoints(till.earn("card-1"), timeout=CALL_S)
    assert answer.entry.sequence > 1


def test_health_answers_for_the_server_and_the_service(server: RunningServer) -> None:
    for channel in (server.channel, server.control_channel):
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "loyalty.ledger.v1.LedgerService"):
            told = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_S)
            assert told.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as unknown:
            health.Check(health_pb2.HealthCheckRequest(service="loyalty.Nothing"), timeout=CALL_S)
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_names_the_services(server: RunningServer) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.control_channel)
    answer = next(stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=CALL_S))
    for service in ("loyalty.ledger.v1.LedgerService", "loyalty.ledger.v1.AdminService"):
        assert service in {service.name for service in answer.list_services_response.service}
        symbol = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
        found = next(stub.ServerReflectionInfo(iter([symbol]), timeout=CALL_S))
        assert len(found.file_descriptor_response.file_descriptor_proto) >= 1


@pytest.mark.parametrize(("name", "a", "b"), [("TOO_MANY_CALLS", 0, 0), ("NOT_READY", 0, 0), ("MESSAGE_TOO_LARGE", 200_000, 131_072)])
def test_a_refusal_made_here_is_the_one_that_the_codec_makes(name: str, a: int, b: int) -> None:
    """Calls that never reach the core are refused in Python; their bytes must mean the same as the compiled codec's."""
    from ledger import errors
    from server import _local
    from server.control import refusal

    code, payload, message = refusal(name, a, b)
    row = errors.BY_NAME[name]
    code_there, payload_there, message_there = _local.refusal(row.number, 0, -1, None, a, b, False)
    assert (code, message.decode()) == (code_there, message_there)
    told = []
    for details in (status_pb2.Status.FromString(payload).details, status_pb2.Status.FromString(payload_there).details):
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        assert details[0].Unpack(info)
        told.append((info, [detail.Unpack(retry) and retry.retry_delay.ToNanoseconds() for detail in details[1:]]))
    assert told[0] == told[1]
