"""The command line of simulations: `daybook simulate`, of rules and of limits. Parses and prints.

The work is in ledger/simulate.py and ledger/backtest.py. Not for publishing what was tried. Called by server/cli.py.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server.console import EXIT_FAILED, Bar, err, fail, out

TOP_RULES = 40  # in the table; --json and --out have all


def _moment(text: str | None) -> int | None:
    """A day or a moment, UTC where it says nothing else, in us since 1970. Errors: ValueError."""
    if text is None:
        return None
    moment = datetime.datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return (moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


def simulate(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A data directory (a service may run on it), a Parquet file of receipts, "
                                                                  "or a directory of them (daybook export).")],
    program: Annotated[Path | None, typer.Option(help="The programme in YAML that decides.")] = None,
    bounds: Annotated[Path | None, typer.Option("--limits", metavar="FILE", help="Instead of a programme: limits in YAML (a file such as "
                                                "programs/fraud.yaml, or the limits of a whole programme), to see whom they would have "
                                                "met.")] = None,
    against: Annotated[Path | None, typer.Option(help="Another programme to compare with. Default: what was really given.")] = None,
    begin: Annotated[str | None, typer.Option("--from", metavar="DAY", help="As if published then (2026-03-01, or 2026-03-01T06:00+01:00; "
                                              "UTC where nothing is said): what is before it stays as it was. Default: from the first "
                                              "receipt on.")] = None,
    end: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Only what is before it.")] = None,
    target: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write rules, members and days there, as Parquet files.")
                      ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the cost day by day; of limits, how many entries they meet.")
                   ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the tables.")] = False,
) -> None:
    """What would another programme have cost? Or: whom would limits have met?

    --program decides every receipt anew and compares: by wallet, rule, funder and member.

    The core decides as it does in the service, with members whose tiers, caps and balances come out as they would have. Customers do what
    they did: a burn that the programme does not allow is made as large as it allows. Costs are points at their wallet's worth, and
    discounts.

    --limits judges every entry of a data directory by limits that were not in force: how many entries and members each would have met,
    and what all of them together would have stopped.

    Nothing is written to the source. docs/simulate.md says more.
    """
    if (program is None) == (bounds is None):
        raise fail("give --program FILE or --limits FILE" + (", not both" if program is not None else ""))
    if bounds is not None:
        if against is not None or target is not None:
            raise fail("--against and --out are for --program: of limits there is --json")
        _limits(source, bounds, begin, end, plot, as_json)
        return
    assert program is not None
    try:
        from ledger import simulate as work
    except ImportError as error:
        raise fail(f"the simulation is not built here: {error}", "run `make build` in the project's directory") from None
    from ledger.journal import JournalError
    from ledger.rules import ProgramError, compile_file

    span = _span(begin, end)
    bar = Bar()
    try:
        compiled = compile_file(program)
        other = compile_file(against) if against is not None else None
        if (source / "FORMAT").exists():
            made = work.simulate(source, compiled, against=other, progress=lambda done, total: bar.update("simulate", done, total),
                                 **span)
        else:
            if begin or end:
                raise fail("--from and --to are for data directories: give only the files of these days")
            files = sorted(source.glob("*.parquet")) if source.is_dir() else [source]
            if not files:
                raise fail(f"{source} is no data directory (it has no FORMAT) and holds no Parquet files")
            made = work.simulate_receipts(files, compiled, against=other,
                                          progress=lambda done, total: bar.update("simulate", done, total))
        written = work.write_parquet(made, target) if target is not None else []
        if plot is not None:
            plot.write_text(_picture(made))
    except ModuleNotFoundError as error:
        raise fail(f"Parquet files need pyarrow: {error}", "pip install 'daybook[export]'") from None
    except ProgramError as error:
        raise fail(str(error), code=EXIT_FAILED) from None
    except (JournalError, work.SimulationRefused) as error:
        raise fail(f"the simulation ended: {error}", code=EXIT_FAILED) from None
    except OSError as error:
        raise fail(f"cannot be read or written: {error}", code=EXIT_FAILED) from None
    finally:
        bar.stop()
    if as_json:
        found = {name: value for name, value in vars_of(made).items() if name != "member_rows"}
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _print(made)
    for path in [*written, *([plot] if plot else [])]:
        err.print(f"written: {escape(str(path))}")


def _span(begin: str | None, end: str | None) -> dict[str, int]:
    """The moments that were given, as `from_us` and `until_us`. Errors: typer.Exit."""
    try:
        moments = {"from_us": _moment(begin), "until_us": _moment(end)}
    except ValueError as error:
        raise fail(f"--from and --to are days or moments such as 2026-03-01: {error}") from None
    return {name: moment for name, moment in moments.items() if moment is not None}


def _limits(source: Path, file: Path, begin: str | None, end: str | None, plot: Path | None, as_json: bool) -> None:
    try:
        from ledger import backtest as work
    except ImportError as error:
        raise fail(f"the back-test is not built here: {error}", "run `make build` in the project's directory") from None
    from ledger.journal import JournalError
    from ledger.rules import ProgramError

    span = _span(begin, end)
    if not (source / "FORMAT").exists():
        raise fail(f"{source} is no data directory (it has no FORMAT): limits are tested over a journal, as receipts in files do not say "
                   "where they come from")
    bar = Bar()
    try:
        made = work.back_test(source, file, progress=lambda done, total: bar.update("limits", done, total),
                              **span)
        if plot is not None:
            plot.write_text(_limits_picture(made))
    except ProgramError as error:
        raise fail(str(error), code=EXIT_FAILED) from None
    except (JournalError, work.BackTestRefused) as error:
        raise fail(f"the back-test ended: {error}", code=EXIT_FAILED) from None
    except OSError as error:
        raise fail(f"cannot be read or written: {error}", code=EXIT_FAILED) from None
    finally:
        bar.stop()
    if as_json:
        found = {name: value._asdict() if hasattr(value, "_asdict") else value for name, value in vars_of(made).items()}
        found["limits"] = [{**row, "above": row["above"]._asdict()} for row in found["limits"]]
        typer.echo(json.dumps(found, ensure_ascii=False))
    else:
        _print_limits(made)
    if plot is not None:
        err.print(f"written: {escape(str(plot))}")


def vars_of(made: Any) -> dict[str, Any]:
    """Fields by name, also those of rows inside."""
    return {field.name: [dataclasses.asdict(row) if dataclasses.is_dataclass(row) else row for row in value] if isinstance(value, list)
            else value for field in dataclasses.fields(made) for value in (getattr(made, field.name),)}


def _picture(made: Any) -> str:
    from server.plot import two_lines

    return two_lines(f"{made.programme}: cost by day", made.currency, made.first_day, [row[1] for row in made.days],
                     [row[2] for row in made.days], (made.against, made.programme), 10**made.currency_digits)


def _limits_picture(made: Any) -> str:
    from server.plot import two_lines

    return two_lines(f"{made.file}: entries by day", "entries", made.first_day, [row[1] for row in made.days],
                     [row[2] for row in made.days], ("above a limit", "refused"))


def share(part: int, whole: int) -> str:
    """In percent, with two decimals."""
    return f"{decimal((part * 10_000 + whole // 2) // whole, 2)} %" if whole else ""


ANSWERS = (("refused", "refuse: what all of them together would have stopped"), ("challenged", "challenge: asked, taken as passed"),
           ("review", "review: points wait"), ("reduced", "reduce"), ("marked", "mark"), ("shadow", "shadow: nobody is met"),
           ("stopped_then", "of those looked at: limits had refused them when they came"))

WIDE = 115  # columns of a terminal that the table of limits fills


def _print_limits(made: Any) -> None:
    def points(value: int) -> str:
        return decimal(value, made.points_digits) if value else ""

    out.print(f"{escape(made.file)} over the journal of {escape(made.programme)}", style="italic", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    wide = out.width >= WIDE  # else the names would be cut to nothing; --json has all
    for name in ("limit", "then", "counted", "above", *(("earned", "burned") if wide else ()), "members", *(("of all",) if wide else ()),
                 "seldom", "often"):
        table.add_column(name, justify="left" if name in ("limit", "then") else "right", no_wrap=name == "limit")
    for limit in made.limits:
        if limit.testable:
            row = [escape(limit.name), limit.then, f"{limit.counted:,}", f"{limit.above.entries:,}"]
            row += [points(limit.above.earned), points(limit.above.burned)] if wide else []
            row += [f"{limit.members:,}", *([share(limit.members, made.members)] if wide else []), f"{limit.seldom:,}", f"{limit.often:,}"]
            table.add_row(*row, style=None if limit.above.entries else "dim")
        else:
            table.add_row(escape(limit.name), limit.then, style="dim")
    out.print(table)
    if untold := [limit.name for limit in made.limits if not limit.testable]:
        out.print(f"not testable, as look-ups are not in the journal: {escape(', '.join(untold))}")
    if idle := [limit.name for limit in made.limits if limit.testable and not limit.counted and not limit.above.entries]:
        out.print(f"nothing to count, as no entry has what they ask for: {escape(', '.join(idle))}")
    totals = Table(title="all limits together", title_justify="left")
    for name in ("entries", "", "of all", "earned", "burned", "reserved"):
        totals.add_column(name, justify="left" if name == "entries" else "right")
    for name, text in (("looked_at", "looked at"), ("met", "above a limit, without those in shadow"), *ANSWERS):
        sums = getattr(made, name)
        totals.add_row(text, f"{sums.entries:,}", share(sums.entries, made.looked_at.entries), points(sums.earned), points(sums.burned),
                       points(sums.reserved))
    if made.cut:
        totals.add_row("points that reduce takes away", "", "", points(made.cut))
    out.print(totals)
    people = Table(title="members", title_justify="left", show_header=False)
    people.add_row("with entries", f"{made.members:,}")
    for name, count in (("met by a limit", made.members_met), ("of them once or twice", made.members_seldom),
                        ("of them more often", made.members_met - made.members_seldom), ("refused at least once", made.members_stopped)):
        people.add_row(name, f"{count:,}  {share(count, made.members)}")
    out.print(people)
    if made.top:
        top = Table(title="who is met most", title_justify="left")
        for name in ("member", "entries", "above a limit", "refused", "most often by"):
            top.add_column(name, justify="left" if name == "most often by" else "right")
        for row in made.top:
            top.add_row(str(row.member), f"{row.looked_at:,}", f"{row.met:,}", f"{row.stopped:,}", escape(row.limit))
        out.print(top)
    rate = made.entries * 1_000_000 // max(1, made.duration_us)
    out.print(f"{made.entries:,} entries in {made.duration_us // 1000:,} ms ({rate:,}/s)")


def _print(made: Any) -> None:
    def money(minor: int) -> str:
        sign, text = "-" if minor < 0 else "", str(abs(minor)).rjust(made.currency_digits + 1, "0")
        whole, part = (text[:-made.currency_digits], "." + text[-made.currency_digits:]) if made.currency_digits else (text, "")
        return f"{sign}{int(whole):,}{part}"

    def more(pair: tuple[int, int]) -> str:
        return f"[{'red' if pair[1] > pair[0] else 'green'}]{'+' if pair[1] > pair[0] else ''}{money(pair[1] - pair[0])}[/]" \
            if pair[0] != pair[1] else "0"

    table = Table(title=f"{escape(made.programme)} against {escape(made.against)}", title_justify="left")
    for name in ("", "before", "after", "difference"):
        table.add_column(name, justify="left" if not name else "right")
    rate = made.entries * 1_000_000 // max(1, made.duration_us)
    table.add_row("receipts", *(f"{count:,}" for count in made.receipts), f"{made.receipts[1] - made.receipts[0]:,}")
    table.add_row("refused", *(f"{count:,}" for count in made.refused),
                  ", ".join(f"{name} {count:,}" for name, count in made.refusals.items()))
    for wallet in made.wallets:
        for what, pair in (("given", wallet.issued), ("taken by burns", wallet.burned), ("expired", wallet.expired)):
            table.add_row(f"{escape(wallet.name)}, {what}", *(decimal(points, wallet.scale) for points in pair),
                          decimal(pair[1] - pair[0], wallet.scale))
    table.add_row("discounts", money(made.discounts[0]), money(made.discounts[1]), more(made.discounts))
    table.add_row(f"cost, {made.currency}", money(made.cost[0]), money(made.cost[1]), more(made.cost))
    out.print(table)
    rules = Table(title="by rule", title_justify="left")
    for name in ("rule", "funder", "receipts", "before", "after", "difference", "cut by limits", "held back"):
        rules.add_column(name, justify="left" if name in ("rule", "funder") else "right")
    ordered = sorted(made.rules, key=lambda rule: -max(rule.cost))
    for rule in ordered[:TOP_RULES]:
        scale = next((wallet.scale for wallet in made.wallets if wallet.name == rule.wallet), made.currency_digits)
        rules.add_row(escape(rule.name), escape(rule.funder), f"{rule.receipts[1]:,}", money(rule.cost[0]), money(rule.cost[1]),
                      more(rule.cost), decimal(rule.cut, scale) if rule.cut else "", f"{rule.held_back:,}" if rule.held_back else "")
    out.print(rules)
    if len(ordered) > TOP_RULES:
        out.print(f"and {len(ordered) - TOP_RULES} rules more: --json or --out has all")
    if len(made.funders) > 1:
        funders = Table("funder", title=f"who pays, {made.currency}", title_justify="left")
        for name in ("before", "after", "difference"):
            funders.add_column(name, justify="right")
        for name, pair in made.funders.items():
            funders.add_row(escape(name) or "the chain", money(pair[0]), money(pair[1]), more(pair))
        out.print(funders)
    people = Table(title="members", show_header=False, title_justify="left")
    people.add_row("with receipts", f"{made.members:,}")
    people.add_row("get more", f"{made.gained:,}, together {money(made.gains)} {made.currency}")
    people.add_row("get less", f"{made.lost:,}, together {money(made.losses)} {made.currency}")
    people.add_row("get the same", f"{made.members - made.gained - made.lost:,}")
    for name, rows in (("the most more", made.most), ("the most less", made.least)):
        if rows:
            people.add_row(name, ", ".join(f"{member} ({money(minor)})" for member, minor in rows[:5]))
    if made.cut_burns:
        people.add_row("burns made smaller", f"{made.cut_burns:,}: the programme allows less, or there was less to burn")
    out.print(people)
    out.print(f"{made.entries:,} entries in {made.duration_us // 1000:,} ms ({rate:,}/s)")


def decimal(value: int, digits: int) -> str:
    """150 with 2 decimals is 1.50."""
    sign, text = "-" if value < 0 else "", str(abs(value)).rjust(digits + 1, "0")
    whole, part = (text[:-digits], "." + text[-digits:]) if digits else (text, "")
    return f"{sign}{int(whole):,}{part}"
