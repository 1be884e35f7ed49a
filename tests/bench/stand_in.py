"""A stock grpc.aio service with our contract and next to no meaning: what the load generator is tested against.

It parses every request with google.protobuf, notes it, and answers as a test wants. Not a model of the ledger. Used by tests/bench.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from types import TracebackType

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

REQUESTS = {
    "EarnPoints": (pb.EarnPointsRequest, pb.EarnPointsResponse),
    "BurnPoints": (pb.BurnPointsRequest, pb.BurnPointsResponse),
    "ReservePoints": (pb.ReservePointsRequest, pb.ReservePointsResponse),
    "CaptureReservation": (pb.CaptureReservationRequest, pb.CaptureReservationResponse),
    "ReleaseReservation": (pb.ReleaseReservationRequest, pb.ReleaseReservationResponse),
    "CommitReceipt": (pb.CommitReceiptRequest, pb.CommitReceiptResponse),
    "GetBalance": (pb.GetBalanceRequest, pb.GetBalanceResponse),
    "GetOperation": (pb.GetOperationRequest, pb.GetOperationResponse),
    "EnrollMember": (pb.EnrollMemberRequest, pb.EnrollMemberResponse),
    "QuoteReceipt": (pb.QuoteReceiptRequest, pb.QuoteReceiptResponse),
    "BatchPost": (pb.BatchPostRequest, pb.BatchPostResponse),
}
NAMES = {
    "earn": "EarnPoints", "burn": "BurnPoints", "reserve": "ReservePoints", "capture": "CaptureReservation",
    "release": "ReleaseReservation", "commit": "CommitReceipt", "balance": "GetBalance", "operation": "GetOperation",
    "enroll": "EnrollMember", "quote": "QuoteReceipt",
}

Hook = Callable[[str, object], "Refusal | float | None"]


class Refusal(Exception):
    """An answer that is not OK; with details it is the ledger's own."""

    def __init__(self, code: grpc.StatusCode, reason: str, *, details: bool) -> None:
        super().__init__(reason)
        self.code, self.reason, self.details = code, reason, details


class StandIn:
    """The running service. `seen` holds (call, request) in order of arrival; `open_calls` and `open_calls_max` count concurrency.

    hook: asked before each answer; a Refusal is sent, a number is slept for (seconds).
    """

    def __init__(self, hook: Hook | None = None, *, keep: bool = True, port: int = 0) -> None:
        self.hook, self.keep = hook, keep
        self.seen: list[tuple[str, object]] = []
        self.open_calls = self.open_calls_max = 0
        self.reservation = 1 << 40
        self.port = port
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> StandIn:
        self._thread.start()
        assert self._ready.wait(60), "the stand-in did not start"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop(grace=None)

    def stop(self, *, grace: float | None) -> None:
        """End the service, politely (GOAWAY, open calls get `grace` seconds) or at once."""
        if not self._thread.is_alive():
            return
        self._grace = grace
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._handler(name), request_deserializer=request.FromString,
                                                      response_serializer=response.SerializeToString)
            for name, (request, response) in REQUESTS.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("loyalty.ledger.v1.LedgerService", handlers),))
        self.port = server.add_insecure_port(f"127.0.0.1:{self.port}")
        await server.start()
        self._ready.set()
        await self._stop.wait()
        await server.stop(self._grace)

    def _handler(self, name: str) -> Callable[[object, grpc.aio.ServicerContext], object]:
        response = REQUESTS[name][1]

        async def handle(request: object, context: grpc.aio.ServicerContext) -> object:
            if self.keep:
                self.seen.append((name, request))
            self.open_calls += 1
            self.open_calls_max = max(self.open_calls_max, self.open_calls)
            try:
                answer = self.hook(name, request) if self.hook else None
                if isinstance(answer, Refusal):
                    if answer.details:
                        status = status_pb2.Status(code=answer.code.value[0], message=answer.reason)
                        detail = any_pb2.Any()
                        detail.Pack(error_details_pb2.ErrorInfo(reason=answer.reason, domain="ledger.loyalty"))
                        status.details.append(detail)
                        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
                    await context.abort(answer.code, answer.reason)
                if isinstance(answer, (int, float)):
                    await asyncio.sleep(answer)
                result = response()
                if name == "BatchPost":
                    for number, _ in enumerate(request.commands):
                        result.results.add().entry.sequence = len(self.seen) + 1 + number
                elif name not in ("GetBalance", "GetOperation", "QuoteReceipt"):
                    result.entry.sequence = len(self.seen) + 1
                    result.entry.create_time.FromNanoseconds(time.time_ns())
                if name == "ReservePoints":
                    self.reservation += 1
                    result.wallets.add(wallet="points", posted_points=1 << 33)
                    result.reservation.reservation_id = self.reservation
                    result.reservation.state = pb.Reservation.STATE_ACTIVE
                return result
            finally:
                self.open_calls -= 1

        return handle
