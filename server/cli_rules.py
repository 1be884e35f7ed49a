"""`daybook rules ...`: the programme of a running service - publish, list, show, compare, go back. Calls of AdminService.

Parses and prints; what the calls mean stands in proto/loyalty/ledger/v1/admin.proto. Mounted by server/cli.py.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server.cli_admin import Control, RequestId, SentTime, call, name
from server.console import fail, out

PUBLISH_S = 300  # a large programme compiles for ten seconds, and gives way to tills

rules = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", context_settings={"help_option_names": ["-h", "--help"]},
    help="""The programme of a running service: what gives points, and since when.

A new programme is checked, compiled and put in force while the tills call; no call fails or waits for it. Every version stays in the
journal with its source, and each entry names the version that decided it.

    daybook rules publish grocery.yaml --validate           what would change? (changes nothing)
    daybook rules publish grocery.yaml --operator anna --reason 'spring, ticket 4711'
    daybook rules list
    daybook rules back 3 --operator anna --reason 'too generous, ticket 4712'
""")

File = Annotated[Path, typer.Argument(metavar="FILE", help="A programme in YAML; files that it names lie beside it.")]
Version = Annotated[int, typer.Argument(metavar="VERSION", min=1, help="As `daybook rules list` numbers them.", show_default=False)]
Moment = Annotated[str, typer.Option("--from", metavar="MOMENT", show_default=False,
                                     help="From when on: 2026-12-24T00:00:00+01:00. Default: at once.")]
Who = Annotated[str, typer.Option("--operator", help="Who does it: a staff number or user name. Stays in the journal for ever.",
                                  show_default=False)]
Why = Annotated[str, typer.Option("--reason", help="Why: a ticket and a few words. Stays in the journal for ever.", show_default=False)]


@rules.command(epilog="Example: `daybook rules publish grocery.yaml --operator anna --reason 'spring, ticket 4711'`")
def publish(
    file: File,
    operator: Who = "",
    reason: Why = "",
    moment: Moment = "",
    validate: Annotated[bool, typer.Option("--validate", help="Only say whether it could be published, and what would change.")] = False,
    control: Control = "127.0.0.1:7071",
    request_id: RequestId = "",
    sent_time: SentTime = "",
) -> None:
    """Put a programme in force, at once or from a moment on.

    With mistakes nothing changes: each is told with its line and what would be right.
    """
    from server._pb.loyalty.ledger.v1 import admin_pb2

    request = admin_pb2.PublishRulesRequest(source=_read(file), operator=operator, reason=reason, validate_only=validate)
    for path in _tables(file, request.source):
        request.files.add(name=path.name, content=_read(path))
    _send(request, str(file), moment, control, request_id, sent_time)


@rules.command(epilog="Example: `daybook rules back 3 --operator anna --reason 'too generous, ticket 4712'`")
def back(
    version: Version,
    operator: Who = "",
    reason: Why = "",
    moment: Moment = "",
    validate: Annotated[bool, typer.Option("--validate", help="Only say what would change.")] = False,
    control: Control = "127.0.0.1:7071",
    request_id: RequestId = "",
    sent_time: SentTime = "",
) -> None:
    """Put an earlier version in force again. It gets a new number; wallets that came since stay."""
    from server._pb.loyalty.ledger.v1 import admin_pb2

    request = admin_pb2.PublishRulesRequest(version=version, operator=operator, reason=reason, validate_only=validate)
    _send(request, f"version {version}", moment, control, request_id, sent_time)


@rules.command("list", epilog="Example: `daybook rules list --number 5`")
def list_versions(
    number: Annotated[int, typer.Option("--number", min=1, max=1000, help="How many, newest first.")] = 20,
    control: Control = "127.0.0.1:7071",
) -> None:
    """List the versions of the programme: which one decides, since when, who published it and why."""
    from server._pb.loyalty.ledger.v1 import admin_pb2

    answer = call("ListRules", admin_pb2.ListRulesRequest(page_size=number), control)
    table = Table(title="versions of the programme", title_justify="left")
    for column in ("version", "state", "from", "programme", "rules", "hash", "operator", "reason", "entry"):
        table.add_column(column, justify="right" if column in ("version", "rules", "entry") else "left")
    for one in answer.rules:
        table.add_row(str(one.version), _state(one), _time(one.effective_time), escape(one.name), str(one.rule_count), one.hash.hex()[:12],
                      escape(one.operator), escape(one.reason), str(one.sequence))
    out.print(table)
    if answer.next_page_token:
        out.print(f"{answer.rules[-1].version - 1} older: --number shows more")


@rules.command(epilog="Example: `daybook rules show 3 > version-3.yaml`")
def show(
    version: Annotated[int, typer.Argument(metavar="[VERSION]", min=0, help="Default: the one in force.", show_default=False)] = 0,
    control: Control = "127.0.0.1:7071",
) -> None:
    """Print the YAML of a version, as it was published."""
    from server._pb.loyalty.ledger.v1 import admin_pb2

    answer = call("GetRules", admin_pb2.GetRulesRequest(version=version), control)
    typer.echo(answer.source, nl=False)


@rules.command(epilog="Example: `daybook rules diff 3 4`, or `daybook rules diff 3 grocery.yaml`")
def diff(
    before: Version,
    after: Annotated[str, typer.Argument(metavar="VERSION|FILE", help="A later version, or a programme in YAML that names no files.",
                                         show_default=False)],
    control: Control = "127.0.0.1:7071",
) -> None:
    """Tell what differs between two versions, rule by rule."""
    from server._pb.loyalty.ledger.v1 import admin_pb2

    request = admin_pb2.DiffRulesRequest(from_version=before)
    if after.isascii() and after.isdigit():
        request.to_version = min(int(after), 2**31 - 1)
    else:
        request.to_source = _read(Path(after))
    _print(call("DiffRules", request, control, PUBLISH_S, lambda error: _mistakes(error, after)).differences)


def _send(request: Any, what: str, moment: str, control: str, request_id: str, sent_time: str) -> None:
    if moment:
        request.effective_time.FromMicroseconds(_moment(moment))
    if not request.validate_only:
        if not request.operator or not request.reason:
            raise fail("--operator and --reason must say who publishes and why", "or --validate, to see only what would change")
        name(request, request_id, sent_time)
    answer = call("PublishRules", request, control, PUBLISH_S, lambda error: _mistakes(error, what))
    for warning in answer.warnings:
        out.print(f"[yellow]warning[/] {escape(warning)}", soft_wrap=True)
    _print(answer.differences)
    one = answer.rules
    if request.validate_only:
        out.print(escape(f"{what} could be published: {one.name}, {one.rule_count} rules, hash {one.hash.hex()[:12]}; nothing was changed"),
                  soft_wrap=True)
        return
    before = " (decided before: this repeat changed nothing)" if answer.replayed else ""
    since = "is in force" if one.state == one.STATE_IN_FORCE else f"will be in force from {_time(one.effective_time)} on"
    out.print(escape(f"entry {one.sequence}: version {one.version} ({one.name}, {one.rule_count} rules, hash {one.hash.hex()[:12]}) "
                     f"{since}{before}"), soft_wrap=True)


def _print(differences: Any) -> None:
    if not differences:
        out.print("no differences")
        return
    table = Table(title="what changes", title_justify="left")
    for column in ("where", "before", "after"):
        table.add_column(column, overflow="fold")
    for one in differences:
        style = "green" if not one.before else "red" if not one.after else ""
        table.add_row(escape(one.path), escape(one.before) or "[dim]-[/]", escape(one.after) or "[dim]-[/]", style=style)
    out.print(table)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise fail(f"{path} cannot be read: {error.strerror}") from None


def _tables(file: Path, source: bytes) -> list[Path]:
    """Files beside the programme that it names. What is wrong with it is told by the service, with its place."""
    from ledger.rules import syntax

    try:
        named = dict.fromkeys(str(node.value) for _, node in syntax.tables(syntax.parse(source, str(file))))
    except syntax.ProgramError:
        return []
    return [file.parent / table for table in named if "/" not in table and (file.parent / table).is_file()]


def _moment(text: str) -> int:
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise fail(f"--from must be like 2026-12-24T00:00:00+01:00, was {text!r}") from None
    if moment.tzinfo is None:
        raise fail(f"--from must say its zone, was {text!r}", "add Z for UTC, or an offset such as +01:00")
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def _mistakes(error: Any, what: str) -> str:
    """A refusal in words: of a programme with mistakes all of them, one a line."""
    from google.rpc import error_details_pb2, status_pb2

    from server.control import DETAILS_KEY

    bad = error_details_pb2.BadRequest()
    for key, value in error.trailing_metadata() or ():
        for detail in status_pb2.Status.FromString(value).details if key == DETAILS_KEY else ():
            if detail.Unpack(bad):
                lines = [f"{what}{one.field.removeprefix('source')}: {one.description}" for one in bad.field_violations]
                return "\n".join([f"{what} is not published, the rules in force stay:", *lines])
    return f"refused, nothing was changed: {error.details()}"


def _state(one: Any) -> str:
    return {one.STATE_IN_FORCE: "[bold green]in force[/]", one.STATE_COMING: "[yellow]coming[/]"}.get(one.state, "past")


def _time(stamp: Any) -> str:
    return stamp.ToDatetime(datetime.UTC).strftime("%Y-%m-%d %H:%M:%SZ")

