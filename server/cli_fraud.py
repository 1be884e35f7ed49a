"""`daybook reviews`, `approve`, `deny`, `rung`, `block`, `unblock` and `keys`: what a fraud team does by hand, as calls of AdminService.

Parses and prints; what the calls mean stands in proto/loyalty/ledger/v1/admin.proto. Mounted by server/cli.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server.cli_admin import Control, Member, Operator, Reason, RequestId, SentTime, call, done, name, read_member
from server.console import Bar, fail, out

RUNGS = ("ok", "warned", "limited", "blocked", "excluded")
ROWS_AT_ONCE = 128  # of one ChangeBlocks
SEARCH_S = 120  # of `keys`: the tables of a hundred million members, a few pages at a time beside the tills
UNITS = {"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400}
ReviewId = Annotated[int, typer.Argument(metavar="REVIEW", help="Number of the review, as `daybook reviews` lists it.", show_default=False)]


def reviews(control: Control = "127.0.0.1:7071") -> None:
    """List the receipts whose points wait for somebody's word, oldest first."""
    from server._pb.loyalty.ledger.v1 import admin_pb2

    table = Table("review", "since", "member", "points", "limit", box=None, header_style="bold")
    for column in (0, 2, 3):
        table.columns[column].justify = "right"
    request = admin_pb2.ListReviewsRequest(page_size=1000)
    while True:
        page = call("ListReviews", request, control)
        for one in page.reviews:
            since = one.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S UTC")
            limit = one.limit_name or f"number {one.limit} of version {one.program_version}"
            table.add_row(str(one.review_id), since, str(one.member_id), f"{one.points:,}", escape(limit))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if table.row_count == 0:
        out.print("no review is open")
        return
    out.print(table)
    out.print("\nlook at one: `daybook explain`; decide it: `daybook approve REVIEW` or `daybook deny REVIEW`", soft_wrap=True)


def approve(review: ReviewId, operator: Operator, reason: Reason, control: Control = "127.0.0.1:7071", request_id: RequestId = "",
            sent_time: SentTime = "") -> None:
    """Give the points of a receipt under review: they become available when they would have been."""
    _decide(review, 1, operator, reason, control, request_id, sent_time)


def deny(review: ReviewId, operator: Operator, reason: Reason, control: Control = "127.0.0.1:7071", request_id: RequestId = "",
         sent_time: SentTime = "") -> None:
    """Take the points of a receipt under review back to where they were issued."""
    _decide(review, 2, operator, reason, control, request_id, sent_time)


def _decide(review: int, verdict: int, operator: str, reason: str, control: str, request_id: str, sent_time: str) -> None:
    from server._pb.loyalty.ledger.v1 import admin_pb2

    request = admin_pb2.DecideReviewRequest(review_id=review, verdict=verdict, operator=operator, reason=reason)  # type: ignore[arg-type]
    name(request, request_id, sent_time)
    answer: Any = call("DecideReview", request, control)
    what = "approved for" if verdict == 1 else f"denied, {-answer.entry.earned_points:,} points taken back from"
    after = "".join(f"; {one.wallet}: {one.available_points:,} available" for one in answer.wallets)
    done(answer, f"review {review} {what}", after)


def rung(
    member: Member,
    to: Annotated[str, typer.Argument(metavar="|".join(RUNGS), show_default=False,
                                      help="ok: everything; warned: everything, and somebody looks; limited: earns, does not "
                                           "burn or reserve; blocked, excluded: nothing.")],
    operator: Operator,
    reason: Reason,
    lasts: Annotated[str, typer.Option(metavar="SPAN", help="For how long, such as '7 days' or '12 hours'. Default: without end.",
                                       show_default=False)] = "",
    control: Control = "127.0.0.1:7071",
    request_id: RequestId = "",
    sent_time: SentTime = "",
) -> None:
    """Move a member on the ladder ok, warned, limited, blocked, excluded, up or down."""
    from server._pb.loyalty.ledger.v1 import admin_pb2

    if to not in RUNGS:
        raise fail(f"the rung must be one of {', '.join(RUNGS)}, was {to!r}")
    request = admin_pb2.SetRungRequest(rung=RUNGS.index(to) + 1, operator=operator, reason=reason)  # type: ignore[arg-type]
    request.member.CopyFrom(read_member(member))
    if lasts:
        number, _, unit = lasts.partition(" ")
        if not number.isdecimal() or unit not in UNITS:
            raise fail(f"--lasts must be a number and one of {', '.join(UNITS)}, was {lasts!r}", "for example --lasts '7 days'")
        request.lasts.seconds = int(number) * UNITS[unit]
    name(request, request_id, sent_time)
    done(call("SetRung", request, control), f"{to}{' for ' + lasts if lasts else ''}:")


def keys(
    limit: Annotated[str, typer.Argument(metavar="LIMIT", show_default=False,
                                         help="Name of a limit of the programme in force. Default: all.")] = "",
    largest: Annotated[int, typer.Option(metavar="N", help="How many keys of each limit, 1 to 100.")] = 10,
    member: Annotated[str, typer.Option(metavar="MEMBER", show_default=False,
                                        help="Only what this member has used: id:NUMBER, card:..., phone:+... and so on.")] = "",
    device: Annotated[str, typer.Option(help="Only what this device has used.", show_default=False)] = "",
    cashier: Annotated[str, typer.Option(help="Only what this cashier has used.", show_default=False)] = "",
    payment_card: Annotated[str, typer.Option(metavar="TOKEN", help="Only what this bank card has used.", show_default=False)] = "",
    partner: Annotated[str, typer.Option(help="Only what came from this partner.", show_default=False)] = "",
    store: Annotated[str, typer.Option(help="Only what this store has used; with --till that till of it.", show_default=False)] = "",
    till: Annotated[str, typer.Option(help="A till of --store.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")] = False,
    control: Control = "127.0.0.1:7071",
) -> None:
    """Show who is at the top of each limit's counter now, or how much of each limit one member, till or device has used.

    Keys are hashes and name nobody. To find who a key is, ask for those whom you suspect: the same member or till has the same key.
    A limit that counts per two things needs both, for example --member and --store with --till for one per till and member.
    """
    from server._pb.loyalty.ledger.v1 import admin_pb2, ledger_pb2

    if not 1 <= largest <= 100:
        raise fail(f"--largest must be 1 to 100, was {largest}")
    if till and not store:
        raise fail("--till needs --store: tills of different stores have the same numbers", "for example --store S042 --till 7")
    request = admin_pb2.ListLimitKeysRequest(limit=limit, keys_per_limit=largest)
    origin = ledger_pb2.Origin(device=device, cashier=cashier, payment_card=payment_card, partner=partner, store=store, till=till)
    if member:
        request.member.CopyFrom(read_member(member))
    if origin.ByteSize():
        request.origin.CopyFrom(origin)
    answer = call("ListLimitKeys", request, control, try_s=SEARCH_S)
    if as_json:
        told = [{"limit": one.limit, "key": one.key, "per": list(one.per), "measure": one.measure, "window": one.window,
                 "amount": one.amount, "at_most": one.at_most, "then": one.then} for one in answer.limit_keys]
        typer.echo(json.dumps({"limit_keys": told}, ensure_ascii=False))
        return
    if not answer.limit_keys:
        out.print("no limit counts per what was given" if member or origin.ByteSize() else "nothing is counted yet")
        return
    table = Table("limit", "then", "window", "per", "key", "measure", "amount", "at most", box=None, header_style="bold")
    for column in (6, 7):
        table.columns[column].justify = "right"
    before = ""
    for one in answer.limit_keys:
        name_shown, then = ("", "") if one.limit == before else (escape(one.limit), one.then)
        before = one.limit
        table.add_row(name_shown, then, one.window, " and ".join(one.per), one.key, one.measure, f"{one.amount:,}", f"{one.at_most:,}",
                      style="bold red" if one.amount >= one.at_most else "")
    out.print(table)
    out.print("\nred: at the bound or above it; who is it: `daybook keys --member card:...`, `--store S042 --till 7`", soft_wrap=True)


Rows = Annotated[list[str] | None, typer.Argument(metavar="KIND:TEXT", show_default=False,
                                                  help="card:..., phone:+..., email:..., app:..., device:... or till:STORE/TILL; "
                                                       "with a * at the end everything that begins so (not phone, email).")]
RowsFile = Annotated[Path | None, typer.Option(metavar="FILE", show_default=False,
                                               help="More of them, one a line; empty lines and what begins with # do not count.")]
OldFile = Annotated[Path | None, typer.Option("--instead-of", metavar="FILE", show_default=False,
                                              help="The list that was loaded before: what it has and the new one has not goes off.")]


def block(operator: Operator, reason: Reason, rows: Rows = None, file: RowsFile = None, instead_of: OldFile = None,
          control: Control = "127.0.0.1:7071") -> None:
    """Put identifiers, devices and tills on the block lists. What is on them already stays.

    With --instead-of the new list takes the place of an old one; what both have is blocked all the time.
    """
    wanted = _wanted(rows, file)
    if instead_of is not None:
        stays = set(wanted)
        gone = [row for row in _read_rows(instead_of) if row not in stays]
        if gone:  # first, because a row that is only spelled otherwise comes back with the new ones
            _change_blocks("remove", gone, operator, reason, control)
    _change_blocks("add", wanted, operator, reason, control)


def unblock(operator: Operator, reason: Reason, rows: Rows = None, file: RowsFile = None, control: Control = "127.0.0.1:7071") -> None:
    """Take identifiers, devices and tills off the block lists, as they were put on. What is not on them is passed by."""
    _change_blocks("remove", _wanted(rows, file), operator, reason, control)


def _read_rows(file: Path) -> list[str]:
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"{file} cannot be read: {error}") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _wanted(rows: list[str] | None, file: Path | None) -> list[str]:
    wanted = list(rows or []) + (_read_rows(file) if file is not None else [])
    if not wanted:
        raise fail("there is nothing to change", "give KIND:TEXT, for example card:2600012345678, or --file FILE")
    return wanted


def _change_blocks(which: str, wanted: list[str], operator: str, reason: str, control: str) -> None:
    from server._pb.loyalty.ledger.v1 import admin_pb2

    bar = Bar()
    for first in range(0, len(wanted), ROWS_AT_ONCE):
        request = admin_pb2.ChangeBlocksRequest(operator=operator, reason=reason)
        getattr(request, which).extend(wanted[first:first + ROWS_AT_ONCE])
        name(request, "", "")
        answer = call("ChangeBlocks", request, control)
        bar.update("block", min(first + ROWS_AT_ONCE, len(wanted)), len(wanted))
    bar.stop()
    rows = "1 row is" if len(wanted) == 1 else f"{len(wanted):,} rows are"
    out.print(f"entry {answer.entry.sequence}: {rows} {'blocked' if which == 'add' else 'not blocked any more'}")
