"""ListReviews: the receipts whose points wait for somebody's word, as the core has them now.

Not for deciding them (DecideReview is a call of the core). Called by server/control.py.
"""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf import message as protobuf

from ledger import limits
from ledger._engine import EngineHandle
from server._pb.loyalty.ledger.v1 import admin_pb2
from server.config import ADMIN_METHODS

Answer = tuple[int, bytes, bytes]  # as in server/control.py
METHOD = ADMIN_METHODS["ListReviews"]


def list_reviews(handle: EngineHandle, request: bytes, refusal: Callable[..., Answer]) -> Answer:
    """One page, oldest first. A page_token is the last review of the page before, so it stays good whatever is decided meanwhile."""
    try:
        asked = admin_pb2.ListReviewsRequest.FromString(request)
    except protobuf.DecodeError:
        return refusal("MESSAGE_MALFORMED")
    if not 0 <= asked.page_size <= limits.PAGE_SIZE_MAX:
        return refusal("FIELD_INVALID", field=65, value=str(asked.page_size))
    if asked.page_token and not (asked.page_token.isascii() and asked.page_token.isdigit() and len(asked.page_token) < 19):
        return refusal("FIELD_INVALID", field=70, value=asked.page_token[:64])
    size = asked.page_size or limits.PAGE_SIZE_DEFAULT
    version, names = handle.limit_names()
    rows = [row for row in handle.reviews() if row[0] > int(asked.page_token or 0)]
    answer = admin_pb2.ListReviewsResponse(next_page_token=str(rows[size - 1][0]) if len(rows) > size else "")
    for sequence, time_us, member, points, program, limit in rows[:size]:
        review = answer.reviews.add(review_id=sequence, member_id=member, points=points, program_version=program, limit=limit)
        review.create_time.FromMicroseconds(time_us)
        if program == version and limit <= len(names):
            review.limit_name = names[limit - 1]
    return 0, answer.SerializeToString(), b""
