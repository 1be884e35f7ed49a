"""The inbox between the control port and the hot thread: full, it refuses; what it took is answered when the hot thread comes.

The hot thread is started late here, so that the calls pile up; everything else is the real service's.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import grpc
import pytest

from ledger import errors, limits
from ledger.engine import open_ledger
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from server._pb.loyalty.ledger.v1 import ledger_pb2_grpc as rpc
from server._transport import CheckoutServer
from server.config import Address
from server.control import ControlServer
from tests import till
from tests.running import PROGRAM

CALLS = 140
CALL_S = 60


def large_earn(number: int) -> pb.EarnPointsRequest:
    """About 80 kB, so that some hundred of them are more than INBOX_BYTES."""
    request = till.earn(f"card-{number}", 1000)
    del request.receipt.lines[:]
    for line in range(limits.LINES_MAX):
        request.receipt.lines.add(sku=f"{line:032d}", category="c" * limits.CATEGORY_BYTES_MAX, quantity_milli=1000, amount_minor=1)
    return request


def test_a_full_inbox_refuses_and_loses_nothing_that_it_took(tmp_path: Path) -> None:
    async def drive() -> tuple[int, list[str]]:
        ledger = open_ledger(tmp_path / "data", PROGRAM, members_max=1000, ids_max=10_000, tail_bytes=limits.TAIL_BYTES_MIN)
        checkout = CheckoutServer(ledger.handle, "127.0.0.1", 0)
        control = ControlServer(ledger.handle, Address("127.0.0.1", 0))
        await control.start()
        ledger.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{control.port}") as channel:
            stub = rpc.LedgerServiceStub(channel)
            refused: list[str] = []
            answered = 0
            is_full = asyncio.Event()

            async def one(number: int) -> None:
                nonlocal answered
                try:
                    answer = await stub.EarnPoints(large_earn(number), timeout=CALL_S)
                    assert answer.entry.earned_points == 50
                    answered += 1
                except grpc.aio.AioRpcError as error:
                    refused.append((till.reason_of(error) or ("", {}))[0])
                    is_full.set()

            calls = [asyncio.create_task(one(number)) for number in range(CALLS)]
            await asyncio.wait_for(is_full.wait(), CALL_S)
            hot = threading.Thread(target=checkout.run)
            hot.start()
            await asyncio.gather(*calls)
            await control.stop_taking(1)
        ledger.handle.ask_stop(1)
        await asyncio.get_running_loop().run_in_executor(None, hot.join)
        await control.close()
        assert ledger.stop() == 0
        return answered, refused

    answered, refused = asyncio.run(drive())
    assert answered * large_earn(0).ByteSize() > limits.INBOX_BYTES // 2
    assert answered + len(refused) == CALLS
    assert set(refused) == {"TOO_MANY_CALLS"}


class Late:
    """A control port whose hot thread begins when a test says so. Use as an asynchronous context manager."""

    def __init__(self, data: Path) -> None:
        self.ledger = open_ledger(data, PROGRAM, members_max=1000, ids_max=10_000, tail_bytes=limits.TAIL_BYTES_MIN)
        self.handle = self.ledger.handle
        self.checkout = CheckoutServer(self.handle, "127.0.0.1", 0)
        self.hot = threading.Thread(target=self.checkout.run)

    async def __aenter__(self) -> Late:
        self.control = ControlServer(self.handle, Address("127.0.0.1", 0))
        await self.control.start()
        self.ledger.start()
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.control.port}")
        self.stub = rpc.LedgerServiceStub(self.channel)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close()
        await self.control.stop_taking(1)
        if not self.hot.is_alive():
            self.hot.start()
        self.handle.ask_stop(1)
        await asyncio.get_running_loop().run_in_executor(None, self.hot.join)
        await self.control.close()
        assert self.ledger.stop() == 0

    async def inbox_holds(self, count: int) -> None:
        async with asyncio.timeout(CALL_S):
            while self.handle.stats()["inbox_calls"] != count:
                await asyncio.sleep(0.002)


def test_a_call_past_its_deadline_is_not_decided(tmp_path: Path) -> None:
    """It passes while the call waits in the inbox."""
    async def drive() -> None:
        async with Late(tmp_path / "data") as late:
            request = till.earn("card-1")
            call = late.stub.EarnPoints(request, timeout=3)
            await late.inbox_holds(1)
            arrived = time.monotonic()
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            while time.monotonic() < arrived + 3.1:  # by then the service's own count has ended too
                await asyncio.sleep(0.01)
            late.hot.start()
            with pytest.raises(grpc.aio.AioRpcError) as unseen:
                await late.stub.GetOperation(pb.GetOperationRequest(request_id=request.request_id), timeout=CALL_S)
            assert till.reason_of(unseen.value) == ("OPERATION_NOT_FOUND", {})
            assert late.checkout.stats()["calls"]["control", 1, errors.BY_NAME["DEADLINE_PASSED"].number] == 1

    asyncio.run(drive())


def test_a_batch_whose_caller_has_gone_is_not_run(tmp_path: Path) -> None:
    """It and the word that nobody waits for it are both in the inbox when the hot thread begins."""
    async def drive() -> None:
        async with Late(tmp_path / "data") as late:
            batch = pb.BatchPostRequest(commands=[pb.PostCommand(earn=till.earn(f"card-{number}")) for number in range(100)])
            gone = late.stub.BatchPost(batch)
            await late.inbox_holds(1)
            gone.cancel()
            await late.inbox_holds(2)
            sequence = late.handle.sequence
            single = asyncio.ensure_future(late.stub.EarnPoints(till.earn("card-0"), timeout=CALL_S))
            await late.inbox_holds(3)
            late.hot.start()
            assert (await single).entry.sequence == sequence + 1
            assert len((await late.stub.BatchPost(batch, timeout=CALL_S)).results) == 100
            assert late.handle.sequence == sequence + 101 and late.checkout.stats()["calls_cancelled"] == 1

    asyncio.run(drive())
