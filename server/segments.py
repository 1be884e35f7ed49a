"""SetSegments of many members: each change is a write of its own, with the request id `REQUEST_ID:N`; the answers are put together here.

Not for deciding: what one change may say is the core's. Called by server/control.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from google.protobuf import message as protobuf
from google.rpc import status_pb2

from ledger import limits
from server._pb.loyalty.ledger.v1 import admin_pb2, ledger_pb2
from server.config import ADMIN_METHODS

Answer = tuple[int, bytes, bytes]  # as in server/control.py
Call = Callable[[int, bytes, int], Awaitable[Answer]]
AT_ONCE = 64  # changes on their way to the core: a few flushes for a thousand, and the inbox stays free for others
METHOD = ADMIN_METHODS["SetSegments"]
ID_BYTES_MAX = limits.REQUEST_ID_BYTES_MAX - len(":1000")
# Of the whole call: what is wrong with every change is said once.
OF_THE_CALL = {"request_id", "sent_time", "operator", "reason"}


async def set_segments(request: bytes, deadline_us: int, call: Call, refusal: Callable[..., Answer]) -> Answer:
    """One call. The changes run in their order; one that is refused does not stop those behind it."""
    if len(request) > limits.BATCH_REQUEST_BYTES_MAX:
        return refusal("MESSAGE_TOO_LARGE", len(request), limits.BATCH_REQUEST_BYTES_MAX)
    try:
        asked = admin_pb2.SetSegmentsRequest.FromString(request)
    except protobuf.DecodeError:
        return await call(METHOD, request, deadline_us)  # which says where it breaks, or which text is not UTF-8
    if not limits.REQUEST_ID_BYTES_MIN <= len(asked.request_id.encode()) <= ID_BYTES_MAX:
        return refusal("FIELD_INVALID", field=1, value=asked.request_id[:64])
    if not 1 <= len(asked.changes) <= limits.SEGMENT_CHANGES_MAX:
        return refusal("FIELD_INVALID", field=43, value=str(len(asked.changes)))
    answers: list[Answer] = []
    for first in range(0, len(asked.changes), AT_ONCE):
        parts = [_part(asked, number) for number in range(first, min(first + AT_ONCE, len(asked.changes)))]
        answers += await asyncio.gather(*(call(METHOD, part, deadline_us) for part in parts))
        if first == 0 and (whole := _whole(answers[0])) is not None:
            return whole
    return 0, b"".join(payload if code == 0 else _refused(code, payload, message) for code, payload, message in answers), b""


def _part(asked: admin_pb2.SetSegmentsRequest, number: int) -> bytes:
    """Change `number`, from 0, as a request of its own."""
    return admin_pb2.SetSegmentsRequest(
        request_id=f"{asked.request_id}:{number + 1}", sent_time=asked.sent_time if asked.HasField("sent_time") else None,
        changes=[asked.changes[number]], operator=asked.operator, reason=asked.reason).SerializeToString()


def _whole(answer: Answer) -> Answer | None:
    """The refusal of the first change, if it is one of the whole call."""
    code, payload, _ = answer
    if code == 0 or not payload:
        return None
    for detail in status_pb2.Status.FromString(payload).details:
        info = _error_info(detail)
        if info is not None and (info.reason == "FIELD_INVALID" and info.metadata["field"] in OF_THE_CALL):
            return answer
    return None


def _error_info(detail: object) -> object:
    from google.rpc import error_details_pb2

    info = error_details_pb2.ErrorInfo()
    return info if detail.Unpack(info) else None  # type: ignore[attr-defined]


def _refused(code: int, payload: bytes, message: bytes) -> bytes:
    """The result of a change that was not made, as bytes of a SetSegmentsResponse. Without details: what became of it is not known."""
    error = status_pb2.Status.FromString(payload) if payload else status_pb2.Status(code=code, message=message.decode(errors="replace"))
    return admin_pb2.SetSegmentsResponse(results=[ledger_pb2.PostResult(error=error)]).SerializeToString()
