"""The command line: `daybook serve`, `verify`, `compile`, those of server/cli_*.py, and commands that other packages add (`load`).

Parses and prints; the work is in server/service.py, ledger/verify.py and ledger/rules. Commands of the entry point group
`daybook.commands` are added at start: each is a plain function that typer understands.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ledger import limits
from server import cli_explain, cli_export, cli_follow, cli_fraud, cli_index, cli_simulate
from server.cli_admin import adjust, link, unlink
from server.cli_backup import backup, restore
from server.cli_ids import ids
from server.cli_rules import rules
from server.console import EXIT_FAILED, PROGRESS_FROM, Bar, fail, mib, out, say

app = typer.Typer(
    name="daybook", no_args_is_help=True, add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""A durable ledger of loyalty points that a whole chain's tills can call.

**Exit codes**: 0 done, 1 the work failed (a damaged journal, a programme with errors), 2 wrong use or refused to start
(nothing was written), 70 a flush failed or the hot thread died (restart: recovery brings back everything that was acknowledged).

First steps: `daybook serve`, then README.md's call in Python; `daybook COMMAND --help` shows an example of each.""")


@app.command(epilog="Example: `daybook serve --data /var/lib/daybook --checkout 127.0.0.1:7070`", rich_help_panel="Service")
def serve(
    data: Annotated[Path, typer.Option(help="Directory of the ledger; made when it does not exist.")] = Path("data"),
    program: Annotated[Path, typer.Option(help="Programme in YAML. Seeds an empty journal; later it must be the one in force.")
                       ] = Path("programs/base.yaml"),
    checkout: Annotated[str, typer.Option(metavar="HOST:PORT", help="The tills' port. Port 0: the kernel chooses.")] = "127.0.0.1:7070",
    control: Annotated[str, typer.Option(metavar="HOST:PORT", help="The control port: every call, health, reflection.")] = "127.0.0.1:7071",
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="/metrics and /healthz.")] = "127.0.0.1:7072",
    tail: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the write-ahead tail, to put it on another device. "
                                                                 "Default: the data directory.")] = None,
    members_max: Annotated[int, typer.Option(help="Accounts that the tables have room for; fixes the memory plan.")
                           ] = limits.MEMBERS_MAX_DEFAULT,
    ids_max: Annotated[int, typer.Option(help="Request ids (and as many receipt keys) remembered.")] = limits.IDS_MAX_DEFAULT,
    insecure: Annotated[bool, typer.Option("--insecure", help="Allow addresses other than loopback. There is no TLS and no access "
                                                              "control yet: only for a network that is trusted.")] = False,
    accept_time: Annotated[bool, typer.Option("--accept-time", help="Believe a clock that is more than 7 days ahead of the journal.")
                           ] = False,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Start a follower beside the service: it writes the snapshots that "
                                                                      "make the next start quick, and serves reads.")] = True,
    follow_control: Annotated[str, typer.Option(metavar="HOST:PORT", help="The follower's control port.")] = "127.0.0.1:7073",
    follow_http: Annotated[str, typer.Option(metavar="HOST:PORT", help="/metrics and /healthz of the follower.")] = "127.0.0.1:7074",
    snapshot_entries: Annotated[int, typer.Option(hidden=True, min=1)] = limits.SNAPSHOT_ENTRIES,
    clock_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
    tail_bytes: Annotated[int, typer.Option(hidden=True)] = limits.TAIL_BYTES_DEFAULT,
    ports_file: Annotated[Path | None, typer.Option(hidden=True)] = None,
) -> None:
    """Start the service on a data directory and serve until SIGTERM or Ctrl-C.

    Recovers what was acknowledged, then listens on three ports. The first SIGTERM or Ctrl-C answers open calls and writes a last
    digest; a second one cuts open calls.
    """
    from server import service
    from server.config import RefusedToStart, ServeConfig

    begun = time.perf_counter()
    try:
        config = ServeConfig.make(data=data, program=program, checkout=checkout, control=control, http=http, insecure=insecure, tail=tail,
                                  members_max=members_max, ids_max=ids_max, tail_bytes=tail_bytes, accept_time=accept_time,
                                  clock_file=clock_file, ports_file=ports_file, follow=follow, follow_control=follow_control,
                                  follow_http=follow_http, snapshot_entries=snapshot_entries)
        bar = Bar()

        def started(what: service.Started) -> None:
            bar.stop()
            out.print(_start_table(what, time.perf_counter() - begun))

        try:
            code = service.serve(config, progress=bar.update, started=started, say=say)
        finally:
            bar.stop()
    except RefusedToStart as error:
        raise fail(str(error), error.hint) from None
    raise typer.Exit(code)


def _start_table(what: Any, seconds: float) -> Table:
    config, ledger = what.config, what.ledger
    found = ledger.recovered
    plan = ledger.memory_plan()
    programme, version = ledger.program.program, ledger.version
    runs = (f"{programme.name} ({config.program}), hash {ledger.program.hash[:12]}" if version.hash.hex() == ledger.program.hash else
            f"{version.told.name}, version {version.number} ({config.program} is an earlier one), hash {version.hash.hex()[:12]}")
    recovered = ("a new journal" if found.created else
                 f"sequence {found.sequence:,}: "
                 + (f"a snapshot up to {ledger.begun_at:,}, " if ledger.begun_at else "no snapshot, ")
                 + f"{found.sequence - ledger.begun_at:,} entries replayed, {found.tail_groups:,} groups of them from the tail")
    table = Table(title="daybook serves", show_header=False, title_justify="left")
    for name, value in (
        ("data", str(config.data.resolve())), ("tail", str((config.tail or config.data).resolve() / "tail")),
        ("programme", runs),
        ("checkout port", what.ports["checkout"]), ("control port", what.ports["control"]),
        ("metrics", f"http://{what.ports['http']}/metrics"),
        ("follower", "none (--no-follow): no snapshots are written" if config.follow_control is None else
         f"started beside: control port {config.follow_control}, metrics http://{config.follow_http}/metrics"),
        ("room for", f"{config.members_max:,} members, {config.ids_max:,} request ids"),
        ("memory at most", f"{mib(sum(size for _, size in plan))}: " + ", ".join(f"{name} {mib(size)}" for name, size in plan[:4])),
        ("recovered", recovered), ("start took", f"{seconds:.2f} s"),
    ):
        table.add_row(name, escape(value))
    if found.created:
        table.add_row("identity key", escape(f"{config.data / 'identity.key'} is new: keep a copy of it apart from all back-ups, now"))
    if found.gap_us > 0:
        table.add_row("CLOCK", f"[bold red]{found.gap_us / 86_400e6:.1f} days ahead of the journal and not believed: time goes on from "
                               "the last entry and expiries stand still. If it is right, start again with --accept-time[/]")
    return table


@app.command(epilog="Example: `daybook verify data --expect-head 1482:9f2c...`", rich_help_panel="Journal")
def verify(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The ledger's data directory (a service may run on it), or a back-up.")],
    tail: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the tail, if `serve` was given one.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="An identity key: check that it is this journal's. Tells whether the "
                                                                  "copy that is kept apart is the right one.")] = None,
    expect_head: Annotated[str | None, typer.Option(
        metavar="SEQ:HASH", help="A head that an earlier verify or the service's log printed. The journal must still contain it: "
                                 "guards the whole directory against being rolled back.")] = None,
) -> None:
    """Check a whole journal: LMDB's pages, hash chain, framing, sums, and the state's digest by replaying every entry.

    Reads LMDB and the undrained tail, or the files of a back-up; changes nothing. Exit code 1 says exactly what is damaged and where.
    """
    from ledger import verify as judge
    from ledger.engine import StartRefused, read_key
    from ledger.journal import Damage, JournalError

    try:
        expect = judge.parse_head(expect_head) if expect_head is not None else None
    except ValueError as error:
        raise fail(str(error), "take it from the last line of an earlier `daybook verify`") from None
    try:
        bar = Bar()
        try:
            report = judge.verify(data, tail=tail, expect=expect, end_on_crash=True, key=None if key is None else read_key(key),
                                  progress=lambda done, total: bar.update("verify", done, total))
        finally:
            bar.stop()
    except Damage as error:
        raise fail(f"verification FAILED: {error}", "keep the directory as it is, and restore from a backup", EXIT_FAILED) from None
    except StartRefused as error:
        raise fail(str(error)) from None
    except JournalError as error:
        raise fail(str(error), code=EXIT_FAILED) from None
    out.print(_report_table(report))
    if report.totals["wallets"]:
        out.print(_wallet_table(report))
    out.print(f"verified {data}: head {report.head}", soft_wrap=True)


def _report_table(report: Any) -> Table:
    from ledger.journal import KINDS

    totals = report.totals
    table = Table(title="the journal is sound", show_header=False, title_justify="left")
    rate = f" ({totals['sequence'] / report.duration_us * 1_000_000:,.0f}/s)" if totals["sequence"] >= PROGRESS_FROM else ""
    kinds = ", ".join(f"{count:,} {KINDS[kind].replace('_', ' ')}" for kind, count in sorted(totals["kinds"].items()))
    for name, value in (
        ("directory", report.directory), ("groups", f"{totals['groups']:,}, {report.tail_groups:,} of them only in the tail"),
        ("entries", f"{totals['sequence']:,} in {report.duration_us / 1_000_000:.2f} s{rate}"), ("", kinds),
        ("refusals", f"{totals['refusals']:,} remembered"), ("members", f"{totals['members']:,}"),
        ("reservations", f"{totals['reservations_active']:,} active"),
        ("digests met", f"{totals['digests']:,}"), ("state digest", totals["digest"].hex()),
    ):
        table.add_row(name, value)
    return table


def _wallet_table(report: Any) -> Table:
    table = Table("wallet", title="points", title_justify="left")
    columns = ("issued", "adjusted", "redeemed", "expired", "outstanding", "reserved")
    for name in columns:
        table.add_column(name, justify="right")
    for wallet, points in report.totals["wallets"].items():
        table.add_row(wallet, *(f"{points[name]:,}" for name in columns))
    return table


@app.command("compile", epilog="Example: `daybook compile programs/base.yaml`", rich_help_panel="Programmes")
def compile_program(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A programme in YAML.")],
) -> None:
    """Check a programme and say what it means, in words: wallets, tiers, every rule, and the image's hash. Writes nothing.

    What is wrong comes all at once, each as FILE:LINE:COLUMN, what would be right, and the line itself; then the exit code is 1.
    Wrong are also rules that can never give anything, that contradict each other, or that could give more than a wallet may hold.

    The language is docs/rules.md, programs/ has examples. An editor that knows JSON Schema checks while you write, if the file
    begins with: # yaml-language-server: $schema=schema.json

    To see what a change would cost before it is published: daybook simulate. To publish it: daybook rules publish FILE.
    """
    from ledger.rules import ProgramError, compile_file, describe, with_lines

    try:
        compiled = compile_file(file)
    except ProgramError as error:
        source = file.read_bytes() if file.is_file() else b""
        raise fail(with_lines(error, str(file), source), code=EXIT_FAILED) from None
    table = Table(title=f"{file} is a programme", show_header=False, title_justify="left")
    for name, text in describe(compiled):
        table.add_row(name, escape(text))
    out.print(table)


# The commands that have modules of their own.
app.command(epilog="Example: `daybook follow data`", rich_help_panel="Service")(cli_follow.follow)
app.command(epilog="Example: `daybook index data --rebuild`", rich_help_panel="Journal")(cli_index.index)
app.command(epilog="Example: `daybook export data --to parquet --out days`", rich_help_panel="Journal")(cli_export.export)
app.command(epilog="Examples: `daybook simulate data --program programs/grocery.yaml --from 2026-03-01 --plot cost.svg`, "
                   "`daybook simulate data --limits programs/fraud.yaml`",
            rich_help_panel="Programmes")(cli_simulate.simulate)
app.command(epilog="Example: `daybook explain data 4711`", rich_help_panel="Programmes")(cli_explain.explain)
app.command(epilog="Example: `daybook adjust card:2600012345678 --points 500 --operator anna --reason 'ticket 4711'`",
            rich_help_panel="By hand")(adjust)
app.command(epilog="Example: `daybook link id:17 phone:+48600700801 --operator anna --reason 'ticket 4711'`",
            rich_help_panel="By hand")(link)
app.command(epilog="Example: `daybook unlink card:2600012345678 --operator anna --reason 'lost, ticket 4711'`",
            rich_help_panel="By hand")(unlink)
app.command(epilog="Example: `daybook reviews`", rich_help_panel="Fraud")(cli_fraud.reviews)
app.command(epilog="Example: `daybook approve 4711 --operator anna --reason 'ticket 4711: a wedding'`",
            rich_help_panel="Fraud")(cli_fraud.approve)
app.command(epilog="Example: `daybook deny 4711 --operator anna --reason 'ticket 4711: staff card'`",
            rich_help_panel="Fraud")(cli_fraud.deny)
app.command(epilog="Example: `daybook rung card:2600012345678 limited --lasts '7 days' --operator anna --reason 'ticket 4711'`",
            rich_help_panel="Fraud")(cli_fraud.rung)
app.command(epilog="Example: `daybook block 'card:26000*' till:S042/7 --file stolen.txt --operator anna --reason 'ticket 4711'`",
            rich_help_panel="Fraud")(cli_fraud.block)
app.command(epilog="Example: `daybook unblock till:S042/7 --operator anna --reason 'ticket 4711: repaired'`",
            rich_help_panel="Fraud")(cli_fraud.unblock)
app.command(epilog="Examples: `daybook keys`, `daybook keys 'Burns in a day' --largest 50`, `daybook keys --member card:2600012345678`",
            rich_help_panel="Fraud")(cli_fraud.keys)
app.command(epilog="Example: `daybook backup data --to /mnt/backup/ledger`", rich_help_panel="Journal")(backup)
app.command(epilog="Example: `daybook restore /mnt/backup/ledger --to data --key identity.key`", rich_help_panel="Journal")(restore)
app.command(epilog="Example: `daybook ids data`", rich_help_panel="Journal")(ids)
app.add_typer(rules, name="rules", rich_help_panel="Programmes")


def _add_commands() -> None:
    """Mount what other packages offer. One that cannot be imported says so only when it is called."""
    for entry in sorted(metadata.entry_points(group="daybook.commands"), key=lambda entry: entry.name):
        try:
            command = entry.load()
        except ImportError as error:
            app.command(entry.name, hidden=True)(_missing(entry.name, str(error)))
        else:
            app.command(entry.name, rich_help_panel="Tools")(command)


def _missing(name: str, why: str) -> Callable[[], None]:
    def hint() -> None:
        raise fail(f"`daybook {name}` is not built here: {why}", "run `make build` in the project's directory")

    return hint


def main() -> None:
    """The `daybook` script and `python -m server`."""
    _add_commands()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
