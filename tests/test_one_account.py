"""Many callers on one account: exactly the possible burns and reservations succeed (promise P2, checkout case 5)."""

from __future__ import annotations

import threading

import grpc

from tests import till
from tests.running import RunningServer

CALLERS = 16


def run_together(server: RunningServer, jobs: list[tuple[str, object]]) -> list[tuple[object, tuple[str, dict[str, str]] | None]]:
    """Runs the jobs from CALLERS threads, each on a connection of its own; answers and refusals in any order."""
    results: list[tuple[object, tuple[str, dict[str, str]] | None]] = []
    lock = threading.Lock()

    def caller(mine: list[tuple[str, object]], port: str) -> None:
        with grpc.insecure_channel(server.address(port), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = RunningServer._stub(channel)
            for method, message in mine:
                try:
                    result = (getattr(stub, method)(message, timeout=60), None)
                except grpc.RpcError as error:
                    result = (None, till.reason_of(error))
                with lock:
                    results.append(result)

    threads = [threading.Thread(target=caller, args=(jobs[i::CALLERS], "control" if i % 4 == 0 else "checkout")) for i in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_exactly_the_possible_burns_succeed(server: RunningServer) -> None:
    server.stub.EarnPoints(till.earn("hot", 200_00))  # 1000 points
    results = run_together(server, [("BurnPoints", till.request("BurnPoints", card="hot", points=7)) for _ in range(400)])
    assert sum(answer is not None for answer, _ in results) == 1000 // 7
    assert {reason[0] for _, reason in results if reason is not None} == {"INSUFFICIENT_POINTS"}
    assert server.stub.GetBalance(till.balance_of("hot")).wallets[0].available_points == 1000 % 7


def test_burns_and_reservations_share_the_points(server: RunningServer) -> None:
    server.stub.EarnPoints(till.earn("hot", 200_00))
    jobs = [("BurnPoints" if i % 2 else "ReservePoints", till.request("BurnPoints" if i % 2 else "ReservePoints", card="hot", points=40))
            for i in range(200)]
    results = run_together(server, jobs)
    assert sum(answer is not None for answer, _ in results) == 1000 // 40
    wallet = server.stub.GetBalance(till.balance_of("hot")).wallets[0]
    assert wallet.available_points == 0
    assert wallet.posted_points == wallet.reserved_points


def test_one_request_id_sent_by_all_at_once_is_one_write(server: RunningServer) -> None:
    message = till.earn("hot", 10_00)
    results = run_together(server, [("EarnPoints", message)] * 64)
    assert all(answer is not None for answer, _ in results)
    assert len({answer.entry.sequence for answer, _ in results}) == 1
    assert sum(not answer.replayed for answer, _ in results) == 1
    assert server.stub.GetBalance(till.balance_of("hot")).wallets[0].posted_points == 50


def test_one_receipt_under_many_request_ids_earns_once(server: RunningServer) -> None:
    receipt = till.receipt(10_00)
    results = run_together(server, [("EarnPoints", till.request("EarnPoints", card="hot", receipt=receipt)) for _ in range(64)])
    answers = [answer for answer, _ in results if answer is not None]
    assert len(answers) == 1
    assert {(reason[0], reason[1]["sequence"]) for _, reason in results if reason is not None} == {
        ("RECEIPT_ALREADY_POSTED", str(answers[0].entry.sequence))}
