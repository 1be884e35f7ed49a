"""ListLimitKeys: what limits have counted most of, or how much of them one member or place has used.

Not for counting and not for finding (ledger/_core_keys.pxi): here a search is put into the inbox step by step, so that tills are served
between two steps, and what it found is put into words. Called by server/control.py.
"""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Awaitable, Callable

from google.protobuf import message as protobuf

from ledger import limits
from ledger._engine import EngineHandle, Search, SearchedLimit
from ledger.rules import tree
from server._pb.loyalty.ledger.v1 import admin_pb2, ledger_pb2
from server.config import ADMIN_METHODS

Answer = tuple[int, bytes, bytes]  # as in server/control.py
Ask = Callable[[Callable[[int], bool]], Awaitable[Answer]]  # runs what puts a call with a token into the inbox
METHOD = ADMIN_METHODS["ListLimitKeys"]
NAME_BYTES_MAX = limits.RULE_NAME_BYTES_MAX
EPOCH = datetime.date(1970, 1, 1)


class LimitKeys:
    """That call, as bytes to an answer. refusal: server.control.refusal."""

    def __init__(self, handle: EngineHandle, ask: Ask, refusal: Callable[..., Answer]) -> None:
        self._handle = handle
        self._ask = ask
        self._refusal = refusal
        self._searching = asyncio.Lock()  # one search at a time: each takes a little of every turn of the hot thread

    async def call(self, request: bytes) -> Answer:
        try:
            asked = admin_pb2.ListLimitKeysRequest.FromString(request)
        except protobuf.DecodeError:
            return self._refusal("MESSAGE_MALFORMED")
        if not 0 <= asked.keys_per_limit <= limits.LIMIT_KEYS_MAX:
            return self._refusal("FIELD_INVALID", field=94, value=str(asked.keys_per_limit))
        if asked.HasField("member") and asked.member.WhichOneof("ref") is None:
            return self._refusal("FIELD_INVALID", field=3)
        name = asked.limit.encode()
        if len(name) > NAME_BYTES_MAX:
            return self._refusal("FIELD_INVALID", field=93, value=asked.limit[:64])
        search = Search(limit=name, most=asked.keys_per_limit or limits.LIMIT_KEYS_DEFAULT, question=_question(asked))
        refused = await self._run(search)
        if refused is not None:
            return refused
        if search.missed:
            return self._refusal("FIELD_INVALID", field=93, value=asked.limit)
        return 0, _told(search.found()).SerializeToString(), b""

    async def _run(self, search: Search) -> Answer | None:
        """To its end; the refusal, if one step is refused."""
        async with self._searching:
            while True:
                # A caller may go in the middle of a step. The hot thread writes into the search until then, so the step keeps it.
                answer = await asyncio.shield(asyncio.ensure_future(self._step(search)))
                if answer[0] != 0:
                    return answer
                if not search.more:
                    return None

    async def _step(self, search: Search) -> Answer:
        return await self._ask(lambda token: self._handle.submit_search(token, search))


def _question(asked: admin_pb2.ListLimitKeysRequest) -> bytes:
    """Who is asked for, as a step has it. b"": everybody."""
    question = ledger_pb2.GetBalanceRequest()
    if asked.HasField("member"):
        question.member.CopyFrom(asked.member)
    if asked.HasField("origin"):
        question.origin.CopyFrom(asked.origin)
    return question.SerializeToString()


def _told(found: list[SearchedLimit]) -> admin_pb2.ListLimitKeysResponse:
    answer = admin_pb2.ListLimitKeysResponse()
    for limit in found:
        per = [name for bit, name in enumerate(tree.KEYS) if limit.per >> bit & 1]
        for key, window, amount in limit.keys:
            answer.limit_keys.add(limit=limit.name, key=f"{key:016x}", per=per, measure=tree.MEASURES[limit.measure - 1],
                                  window=_window(limit, window), amount=amount, at_most=limit.at_most, then=tree.ACTIONS[limit.action - 1])
    return answer


def _window(limit: SearchedLimit, number: int) -> str:
    """A window by its number (ledger/_velocity.pxd), as people write it."""
    kind = tree.LIMIT_WINDOWS[limit.window]
    if kind == "day":
        return (EPOCH + datetime.timedelta(number)).isoformat()
    if kind == "week":
        year, week, _ = (EPOCH + datetime.timedelta(7 * number - 3)).isocalendar()
        return f"{year}-W{week:02d}"
    if kind == "month":
        return f"{number // 12}-{number % 12 + 1:02d}"
    if kind == "ever":
        return kind
    count, unit = (limit.window_s // 3600, "hour") if limit.window_s % 3600 == 0 else (limit.window_s // 60, "minute")
    return f"{count} {unit}{'s' if count != 1 else ''}"
