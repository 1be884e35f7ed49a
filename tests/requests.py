"""Requests of the checkout calls for tests, filled with what a test does not care about. Every number comes from the caller."""

from __future__ import annotations

from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

US = 1_000_000


def earn(number: int, *, card: str = "card-1", total_minor: int = 1000, time_us: int, lines: int = 1) -> pb.EarnPointsRequest:
    """Receipt `number` of one till, on the programme's day of the test."""
    request = pb.EarnPointsRequest(request_id=f"test-earn-{number:010d}", member=pb.MemberRef(card=card), receipt=receipt(number, total_minor, lines))
    set_time(request.sent_time, time_us)
    return request


def receipt(number: int, total_minor: int, lines: int = 1) -> pb.Receipt:
    shares = [total_minor // lines + (1 if i < total_minor % lines else 0) for i in range(lines)]
    return pb.Receipt(key=pb.ReceiptKey(store="0417", till="3", business_day=20261122, number=f"r{number}"), currency_code="USD",
                      total_minor=total_minor, lines=[pb.Line(sku=f"sku-{i}", quantity_milli=1000, amount_minor=share)
                                                      for i, share in enumerate(shares)])


def set_time(timestamp: object, time_us: int) -> None:
    timestamp.FromMicroseconds(time_us)  # type: ignore[attr-defined]


def reserve(number: int, points: int, *, card: str = "card-1", ttl_s: int = 900, time_us: int) -> pb.ReservePointsRequest:
    request = pb.ReservePointsRequest(request_id=f"test-reserve-{number:07d}", member=pb.MemberRef(card=card), points=points)
    request.ttl.FromSeconds(ttl_s)
    set_time(request.sent_time, time_us)
    return request
