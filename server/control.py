"""The control port: a stock grpc.aio server with the checkout calls and those by hand as raw bytes, health and reflection.

The calls go through the engine's inbox to the same codec and core as the tills' own, so there is one meaning. Not for deciding and
not for messages (nothing is parsed here). Made and stopped by server/service.py; all objects stay on its asyncio loop.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ledger import errors, limits
from ledger._engine import EngineHandle
from server._pb.loyalty.ledger.v1 import admin_pb2, ledger_pb2
from server.config import ADMIN_METHODS, ADMIN_SERVICE, METHODS, SERVICE, Address, RefusedToStart
from server.limit_keys import METHOD as LIST_LIMIT_KEYS
from server.limit_keys import LimitKeys
from server.reviews import METHOD as LIST_REVIEWS
from server.reviews import list_reviews
from server.rules import MESSAGE_BYTES_MAX, RulesService, status_of
from server.segments import set_segments

DETAILS_KEY = "grpc-status-details-bin"
RETRY_DELAY_US = 100_000  # a tenth of a second: the inbox turns over within milliseconds, a full disk does not
BATCHES = {METHODS["BatchPost"], METHODS["BatchGetBalances"]}
LARGE = {ADMIN_METHODS["PublishRules"], ADMIN_METHODS["DiffRules"]}
RECEIVE_BYTES_MAX = MESSAGE_BYTES_MAX + 65_536  # a little above ours, so that MESSAGE_TOO_LARGE says it with its details
SERVICES = {SERVICE: METHODS, ADMIN_SERVICE: ADMIN_METHODS}
CODES = {code.value[0]: code for code in grpc.StatusCode}
Answer = tuple[int, bytes, bytes]  # gRPC code, response or google.rpc.Status, message


def refusal(name: str, a: int = 0, b: int = 0, *, field: int = 0, value: str = "") -> Answer:
    """The answer of a call that never reached the core, from its row in ledger/errors.py. field: its number there; value: what was sent."""
    row, about = errors.BY_NAME[name], errors.FIELD_BY_NUMBER[field]
    message = row.message.format(a=a, b=b, field=about.name, value=value if value.isdecimal() else f'"{value}"', rule=about.rule)
    metadata = {key: str(number) for key, number in ((row.a, a), (row.b, b)) if key}
    metadata |= {key: text for key, text in (("field", about.name), ("value", value)) if text}
    if name == "FIELD_INVALID":
        metadata["rule"] = about.rule
    details = [error_details_pb2.ErrorInfo(reason=name, domain=errors.DOMAIN, metadata=metadata)]
    if row.retryable:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(nanos=RETRY_DELAY_US * 1000)))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    status = status_pb2.Status(code=row.grpc_code, message=message, details=packed)
    return row.grpc_code, status.SerializeToString(), message.encode()


def too_large(method: int, request: bytes) -> Answer | None:
    """The refusal of a request that is longer than its call may be."""
    bytes_max = limits.BATCH_REQUEST_BYTES_MAX if method in BATCHES else limits.REQUEST_BYTES_MAX
    if method in LARGE:
        bytes_max = MESSAGE_BYTES_MAX
    return refusal("MESSAGE_TOO_LARGE", len(request), bytes_max) if len(request) > bytes_max else None


async def give(answer: Answer, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
    """Answer a call: the response's bytes, or the status with its details."""
    code, payload, message = answer
    if code == 0:
        return payload
    await context.abort(CODES.get(code, grpc.StatusCode.UNKNOWN), message.decode(errors="replace"),
                        trailing_metadata=((DETAILS_KEY, payload),) if payload else ())
    raise AssertionError("abort raises")


def listen(server: grpc.aio.Server, address: Address, what: str) -> int:
    """The port that the server got on this address. Errors: RefusedToStart, which names it as `what`."""
    # grpc logs a failed bind by itself, with a traceback of its own; ours below is the one message.
    logger = logging.getLogger("grpc._cython.cygrpc")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return server.add_insecure_port(str(address))
    except RuntimeError:
        raise RefusedToStart(f"{what} cannot listen on {address}: it is taken or not this machine's",
                             "stop what uses it, or give another one with --control") from None
    finally:
        logger.setLevel(level)


class Inbox:
    """Carries calls into the engine's inbox and their answers back to the coroutines that wait for them."""

    def __init__(self, handle: EngineHandle) -> None:
        self._handle = handle
        self._loop = asyncio.get_running_loop()
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._open = True
        self._closed = False
        self._loop.add_reader(handle.outbox_fd, self._collect)

    async def call(self, method: int, request: bytes, deadline_us: int) -> Answer:
        """Run one call. deadline_us: monotonic, 0: none. A cancelled caller's answer is dropped; its batch stops between two commands."""
        if (large := too_large(method, request)) is not None:
            return large
        if not self._open:
            return refusal("NOT_READY")
        return await self.ask(lambda token: self._handle.submit(token, method, request, deadline_us), stops=method in BATCHES)

    async def ask(self, put: Callable[[int], bool], *, stops: bool = False) -> Answer:
        """Run what `put` puts into the engine's inbox under a token. stops: it may be told that nobody waits any more."""
        if not self._open:
            return refusal("NOT_READY")
        token = next(self._tokens)
        if not put(token):
            return refusal("TOO_MANY_CALLS")
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[token] = answer
        try:
            return await answer
        except asyncio.CancelledError:
            if stops and token in self._waiting and not self._closed:
                self._handle.give_up(token)
            raise
        finally:
            self._waiting.pop(token, None)

    def _collect(self) -> None:
        for token, code, payload, message in self._handle.collect():
            answer = self._waiting.get(token)
            if answer is not None and not answer.done():
                answer.set_result((code, payload, message))

    async def drain(self, timeout_s: float) -> None:
        """Take no further calls and wait for the open ones, at most timeout_s."""
        self._open = False
        if self._waiting:
            await asyncio.wait(list(self._waiting.values()), timeout=timeout_s)

    def close(self) -> None:
        """No answer comes any more. What was handed over and not answered stays *unknown* to its caller, as D11 has it."""
        self._closed = True
        self._loop.remove_reader(self._handle.outbox_fd)
        self._collect()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result((grpc.StatusCode.UNAVAILABLE.value[0], b"",
                                   b"the service stopped: whether this was decided is unknown, ask again with the same request_id"))


class ControlServer:
    """The control port. Make, then start; stop ends it gracefully."""

    def __init__(self, handle: EngineHandle, address: Address) -> None:
        self.address = address
        self.port = 0
        self._handle = handle
        self._counts: Counter[tuple[str, int, int]] = Counter()
        self._inbox = Inbox(handle)
        self._rules = RulesService(handle, self._inbox.ask, refusal)
        self._limit_keys = LimitKeys(handle, self._inbox.ask, refusal)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(options=[
            ("grpc.so_reuseport", 0),  # a taken port is an error, not a shared port
            ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
            ("grpc.max_send_message_length", limits.BATCH_ANSWER_BYTES_MAX + 65_536),
        ])
        for service, methods in SERVICES.items():
            calls = {name: grpc.unary_unary_rpc_method_handler(self._call(number)) for name, number in methods.items()}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, calls),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    def _call(self, method: int) -> Callable[[bytes, grpc.aio.ServicerContext[bytes, bytes]], Any]:
        async def run(request: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
            left_s = context.time_remaining()
            deadline_us = 0 if left_s is None else time.monotonic_ns() // 1000 + int(left_s * 1_000_000)
            return await give(await self._answer(method, request, deadline_us), context)

        return run

    def _answer(self, method: int, request: bytes, deadline_us: int) -> Awaitable[Answer]:
        """What is one call of the engine goes there as it came; the rest is put together here."""
        if method == ADMIN_METHODS["SetSegments"]:
            return set_segments(request, deadline_us, self._inbox.call, refusal)
        if method == LIST_REVIEWS:
            answer = too_large(method, request) or list_reviews(self._handle, request, refusal)
            self._counts["control", method, status_of(answer)] += 1
            return _now(answer)
        if method == LIST_LIMIT_KEYS:
            return self._counted(method, request, self._limit_keys.call)
        if method in self._rules.calls:
            large = too_large(method, request)
            return _now(large) if large is not None else self._rules.call(method, request)
        return self._inbox.call(method, request, deadline_us)

    async def _counted(self, method: int, request: bytes, call: Callable[[bytes], Awaitable[Answer]]) -> Answer:
        answer = too_large(method, request) or await call(request)
        self._counts["control", method, status_of(answer)] += 1
        return answer

    def with_counts(self, stats: dict[str, Any]) -> dict[str, Any]:
        """The transport's stats and what is counted here: the calls that are put together of several."""
        return {**stats, "calls": {**stats["calls"], **self._rules.counts, **self._counts}}

    async def start(self) -> None:
        """Listen and serve. Errors: RefusedToStart."""
        self.port = listen(self._server, self.address, "the control port")
        await self._server.start()
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    async def stop_taking(self, grace_s: float) -> None:
        """NOT_SERVING, no new calls; returns when the open ones are answered, after grace_s at the latest."""
        await self._health.enter_graceful_shutdown()
        self._stopping = asyncio.create_task(self._server.stop(grace_s))
        await self._inbox.drain(grace_s)

    async def close(self) -> None:
        """After the hot thread ended: everything that is still open is cut."""
        self._inbox.close()
        await self._server.stop(0.5)  # the answers just set still leave; health watchers are cut


async def _now(answer: Answer) -> Answer:
    return answer


for _service in (ledger_pb2.DESCRIPTOR.services_by_name["LedgerService"], admin_pb2.DESCRIPTOR.services_by_name["AdminService"]):
    assert set(SERVICES[_service.full_name]) == {method.name for method in _service.methods}
assert code_pb2.UNAVAILABLE == errors.UNAVAILABLE
