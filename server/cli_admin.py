"""`daybook adjust`, `link` and `unlink`: changes by hand, as calls of AdminService on a running service's control port.

Parses and prints; what the calls mean stands in proto/loyalty/ledger/v1/admin.proto. Mounted by server/cli.py.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.markup import escape

from server.console import EXIT_FAILED, fail, out

KINDS = ("id", "card", "phone", "email", "app")
TRY_S = 5  # of one attempt: a write waits for one flush, so this is a dead or dying service
CHANNEL = [("grpc.max_receive_message_length", 16 << 20), ("grpc.max_send_message_length", 80 << 20)]  # programmes come with their tables
PAUSES_S = (0.2, 0.5, 1.0)  # between attempts; every one sends the same bytes, so it is done at most once

Member = Annotated[str, typer.Argument(metavar="MEMBER", show_default=False,
                                       help="Whose account: id:NUMBER, card:..., phone:+..., email:... or app:...")]
Identifier = Annotated[str, typer.Argument(metavar="IDENTIFIER", help="card:..., phone:+..., email:... or app:...", show_default=False)]
Operator = Annotated[str, typer.Option(help="Who does it: a staff number or user name. Stays in the journal for ever.", show_default=False)]
Reason = Annotated[str, typer.Option(help="Why: a ticket and a few words. No personal data: it stays in the journal for ever.",
                                     show_default=False)]
Control = Annotated[str, typer.Option(metavar="HOST:PORT", help="The service's control port.")]
RequestId = Annotated[str, typer.Option(metavar="ID", help="Repeat the command of this id (with its --sent-time). Default: a new one.",
                                        show_default=False)]
SentTime = Annotated[str, typer.Option(metavar="TIME", help="When the command of --request-id was first sent, as it was printed.",
                                       show_default=False)]


def adjust(
    member: Member,
    points: Annotated[int, typer.Option(help="Above 0: to give; below 0: to take. In the wallet's smallest unit.", show_default=False)],
    operator: Operator,
    reason: Reason,
    wallet: Annotated[str, typer.Option(help="Default: the programme's first wallet.", show_default=False)] = "",
    expiry_day: Annotated[int, typer.Option(metavar="YYYYMMDD", show_default=False,
                                            help="First day on which given points do not count. Default: they never expire.")] = 0,
    control: Control = "127.0.0.1:7071",
    request_id: RequestId = "",
    sent_time: SentTime = "",
) -> None:
    """Give points to a member, or take available ones, by hand.

    Given points are available at once. Taken are those that expire soonest, and never more than are available.
    """
    from server._pb.loyalty.ledger.v1 import admin_pb2

    request = _numbers(admin_pb2.AdjustPointsRequest, points=points, expiry_day=expiry_day)
    request.member.CopyFrom(read_member(member))
    request.wallet, request.operator, request.reason = wallet, operator, reason
    answer = _call("AdjustPoints", request, control, request_id, sent_time)
    after = "".join(f"; {one.wallet}: {one.available_points:,} available" for one in answer.wallets)
    given = answer.entry.adjusted_points
    done(answer, f"{given:,} points given to" if given > 0 else f"{-given:,} points taken from", after)


def link(
    member: Member,
    identifier: Identifier,
    operator: Operator,
    reason: Reason,
    control: Control = "127.0.0.1:7071",
    request_id: RequestId = "",
    sent_time: SentTime = "",
) -> None:
    """Link a card, phone, e-mail or app to a member."""
    from server._pb.loyalty.ledger.v1 import admin_pb2

    request = admin_pb2.LinkIdentifierRequest(member=read_member(member), identifier=read_member(identifier), operator=operator,
                                              reason=reason)
    answer = _call("LinkIdentifier", request, control, request_id, sent_time)
    done(answer, f"{identifier.partition(':')[0]} {'linked' if answer.linked else 'was linked already'} to")


def unlink(
    identifier: Identifier,
    operator: Operator,
    reason: Reason,
    control: Control = "127.0.0.1:7071",
    request_id: RequestId = "",
    sent_time: SentTime = "",
) -> None:
    """Take a card, phone, e-mail or app from the member whom it names.

    The account keeps its points; it may end with no identifier and is then reached by its number. The identifier is as if never seen.
    """
    from server._pb.loyalty.ledger.v1 import admin_pb2

    request = admin_pb2.UnlinkIdentifierRequest(identifier=read_member(identifier), operator=operator, reason=reason)
    answer = _call("UnlinkIdentifier", request, control, request_id, sent_time)
    done(answer, f"{identifier.partition(':')[0]} unlinked from")


def _numbers(kind: Any, **fields: int) -> Any:
    """A message with these numbers; one that does not even fit the message is wrong use."""
    message = kind()
    for name, value in fields.items():
        try:
            setattr(message, name, value)
        except ValueError:
            raise fail(f"--{name.replace('_', '-')} is out of range: {value}") from None
    return message


def read_member(text: str) -> Any:
    """A MemberRef from KIND:VALUE. What the value may be is the service's to say."""
    from server._pb.loyalty.ledger.v1 import ledger_pb2

    kind, colon, value = text.partition(":")
    if not colon or kind not in KINDS:
        raise fail(f"{text!r} must begin with one of {', '.join(name + ':' for name in KINDS)}", "for example card:2600012345678 or id:17")
    if kind != "id":
        return ledger_pb2.MemberRef(**{kind: value})
    try:
        return ledger_pb2.MemberRef(member_id=int(value))
    except ValueError:
        raise fail(f"id: must be followed by a member's number, was {value!r}") from None


def _call(method: str, request: Any, control: str, request_id: str, sent_time: str) -> Any:
    """A write. Errors: typer.Exit."""
    name(request, request_id, sent_time)
    return call(method, request, control)


def call(method: str, request: Any, control: str, try_s: float = TRY_S, explain: Callable[[Any], str] | None = None) -> Any:
    """Send until there is a definite answer, always the same bytes. explain: what a refusal's status says more. Errors: typer.Exit."""
    import grpc

    from server._pb.loyalty.ledger.v1 import admin_pb2_grpc

    host, _, port = control.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise fail(f"--control must be HOST:PORT, was {control!r}", "for example --control 127.0.0.1:7071")
    with grpc.insecure_channel(control, options=CHANNEL) as channel:
        send = getattr(admin_pb2_grpc.AdminServiceStub(channel), method)
        for pause_s in (*PAUSES_S, None):
            try:
                return send(request, timeout=try_s)
            except grpc.RpcError as error:
                reason, retryable = _reason(error)
                if not retryable:
                    raise fail(f"refused, nothing was changed: {error.details()}" if explain is None else explain(error),
                               f"{reason}: docs/errors.md says what it means", EXIT_FAILED) from None
                if pause_s is None:
                    known = "refused for now, nothing was changed" if reason else "no answer: whether it was done is not known"
                    again = ("run the same command again" if not getattr(request, "request_id", "") else
                             f"run the same command again with --request-id {request.request_id} "
                             f"--sent-time {request.sent_time.ToJsonString()}: it is done at most once")
                    raise fail(f"{control}: {known} ({error.details()})", again, EXIT_FAILED) from None
                time.sleep(pause_s)
    raise AssertionError("the last attempt returns or raises")


def name(request: Any, request_id: str, sent_time: str) -> None:
    """Fill in what names this write for ever."""
    if bool(request_id) != bool(sent_time):
        raise fail("--request-id and --sent-time belong together: a repeat must be sent with both, as they were printed")
    request.request_id = request_id or uuid.uuid4().hex
    if not sent_time:
        request.sent_time.GetCurrentTime()
        return
    try:
        request.sent_time.FromJsonString(sent_time)
    except ValueError:
        raise fail(f"--sent-time must be like 2026-11-22T08:30:00.123456Z, was {sent_time!r}") from None


def _reason(error: Any) -> tuple[str, bool]:
    """The reason of a refusal ("": the outcome is unknown) and whether the same request may be sent again."""
    from google.rpc import error_details_pb2, status_pb2

    from server.control import DETAILS_KEY

    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            details = status_pb2.Status.FromString(value).details
            info = error_details_pb2.ErrorInfo()
            if details and details[0].Unpack(info):
                return info.reason, any(detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for detail in details)
    # Without our details a status is unknown, but for a service that has no such call.
    return ("UNIMPLEMENTED", False) if error.code().name == "UNIMPLEMENTED" else ("", True)


def done(answer: Any, what: str, after: str = "") -> None:
    before = " (decided before: this repeat changed nothing)" if answer.replayed else ""
    out.print(escape(f"entry {answer.entry.sequence}: {what} member {answer.entry.member_id}{after}{before}"), soft_wrap=True)
