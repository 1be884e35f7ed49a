"""A till for tests: makes requests that are right, from few words. Not for wrong ones (those change what this made).

Used by the end-to-end tests. Times are us since 1970; every request gets an id of its own unless one is given.
"""

from __future__ import annotations

import itertools
import time
import uuid
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from server._pb.loyalty.ledger.v1 import admin_pb2, ledger_pb2

METHODS = {"EarnPoints": 1, "BurnPoints": 2, "ReservePoints": 3, "CaptureReservation": 4, "ReleaseReservation": 5, "CommitReceipt": 6,
           "EnrollMember": 7, "GetBalance": 8, "GetOperation": 9, "AdjustPoints": 11, "LinkIdentifier": 12, "UnlinkIdentifier": 13,
           "ReturnReceipt": 30}
BY_HAND = ("AdjustPoints", "LinkIdentifier", "UnlinkIdentifier")
_numbers = itertools.count(1)


def now_us() -> int:
    return time.time_ns() // 1000


def timestamp(time_us: int) -> Timestamp:
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)


def business_day(time_us: int) -> int:
    """The UTC day as yyyymmdd; the ledger accepts a day more and a day less than its own."""
    return int(datetime.fromtimestamp(time_us / 1_000_000, UTC).strftime("%Y%m%d"))


def request(method: str, *, at: int | None = None, card: str | None = None, member_id: int | None = None, request_id: str | None = None,
            **fields: Any) -> Any:
    """A write request of `method`; `fields` are set as they are."""
    made = getattr(admin_pb2 if method in BY_HAND else ledger_pb2, f"{method}Request")
    message = made(request_id=request_id or uuid.uuid4().hex, sent_time=timestamp(at or now_us()), **fields)
    if card is not None:
        message.member.card = card
    if member_id is not None:
        message.member.member_id = member_id
    return message


def receipt(total_minor: int, *, at: int | None = None, number: str | None = None, lines: int = 1) -> Any:
    """A receipt with its total spread over `lines`."""
    made = ledger_pb2.Receipt(currency_code="USD", total_minor=total_minor)
    made.key.store, made.key.till, made.key.business_day = "S001", "01", business_day(at or now_us())
    made.key.number = number or f"{uuid.uuid4().hex[:12]}-{next(_numbers)}"
    for i in range(lines):
        share = total_minor // lines + (total_minor % lines if i == 0 else 0)
        made.lines.add(sku=f"400123456{i:04d}", category="dairy", quantity_milli=1000, amount_minor=share)
    return made


def by_hand(method: str, *, identifier: str | None = None, **fields: Any) -> Any:
    """A request of AdminService; identifier: a card."""
    message = request(method, operator="anna", reason="ticket 4711", **fields)
    if identifier is not None:
        message.identifier.card = identifier
    return message


def earn(card: str, total_minor: int = 1000, *, at: int | None = None, lines: int = 1, **fields: Any) -> Any:
    return request("EarnPoints", at=at, card=card, receipt=receipt(total_minor, at=at, lines=lines), **fields)


def give_back(key: Any, **fields: Any) -> Any:
    """A return of the receipt with this key."""
    return request("ReturnReceipt", receipt_key=key, **fields)


def balance_of(card: str) -> Any:
    message = ledger_pb2.GetBalanceRequest()
    message.member.card = card
    return message


def status_of(error: Any) -> status_pb2.Status | None:
    """The google.rpc.Status of a grpc.RpcError, or None where it carries none."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return None


def reason_of(error: Any) -> tuple[str, dict[str, str]] | None:
    """Our ErrorInfo's reason and metadata; None: the outcome is unknown."""
    status = status_of(error)
    return None if status is None else reason_of_status(status)


def reason_of_status(status: status_pb2.Status) -> tuple[str, dict[str, str]] | None:
    """As reason_of, of a google.rpc.Status."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return info.reason, dict(info.metadata)
    return None
