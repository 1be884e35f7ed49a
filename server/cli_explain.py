"""The command line of `daybook explain`: one receipt in words, for support. Parses and prints; the work is in ledger/explain.py."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from server.console import EXIT_FAILED, Bar, fail, out


def explain(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The ledger's data directory. A service may be running on it.")],
    sequence: Annotated[int | None, typer.Argument(metavar="[SEQUENCE]", help="Which entry: its journal sequence, as the answer to the "
                                                                             "till had it.")] = None,
    request: Annotated[str | None, typer.Option(metavar="ID", help="Or its request id.")] = None,
    receipt: Annotated[str | None, typer.Option(metavar="STORE/TILL/DAY/NUMBER", help="Or its receipt key, the day as yyyymmdd.")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="Also print each rule as it stood in the programme.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the tables.")] = False,
) -> None:
    """Why 37 points? Says of one receipt, by the rules that were in force then, what each rule gave to each line and why.

    What was given is what the entry says. How it came about (amount, rate, rounding, caps, what was cut) is found by deciding the receipt
    once more as everything stood then; if that came to something else, it is said. Nothing is written.
    """
    from ledger import explain as work
    from ledger.journal import JournalError

    if sum(asked is not None for asked in (sequence, request, receipt)) != 1:
        raise fail("say which entry: SEQUENCE, --request ID or --receipt STORE/TILL/DAY/NUMBER")
    bar = Bar()

    def progress(done: int, total: int) -> None:
        bar.update("explain", done, total)

    try:
        if request is not None:
            sequence = work.by_request(data, request, progress)
        elif receipt is not None:
            parts = receipt.split("/")
            if len(parts) != 4 or not parts[2].isdigit():
                raise fail(f"a receipt key is STORE/TILL/DAY/NUMBER with the day as yyyymmdd, was {receipt!r}")
            sequence = work.by_receipt(data, parts[0], parts[1], int(parts[2]), parts[3], progress)
        found = work.explain(data, sequence or 0, progress)
    except work.NotFound as error:
        raise fail(str(error), code=EXIT_FAILED) from None
    except JournalError as error:
        raise fail(f"the journal cannot be read: {error}", code=EXIT_FAILED) from None
    finally:
        bar.stop()
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, default=lambda value: value.hex()))
    else:
        _print(found, rules)


def _print(found: dict[str, Any], with_source: bool) -> None:
    from ledger.rules.tree import decimal

    digits, currency, wallets = found["currency_digits"], found["currency"], found["wallets"]

    def money(minor: int) -> str:
        return f"{decimal(minor, digits)} {currency}".rstrip()

    def points(number: int, wallet: int) -> str:
        known = wallets[wallet] if wallet < len(wallets) else {"name": f"wallet {wallet}", "scale": 0}
        return f"{decimal(number, known['scale'])} {known['name']}"

    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=found["time_us"])
    receipt = found["receipt"]
    table = Table(title=f"entry {found['sequence']}: {found['kind'].replace('_', ' ')}", show_header=False, title_justify="left")
    rows = [("time", moment.strftime("%Y-%m-%d %H:%M:%S UTC")),
            ("member", f"{found['member_id']}" + (", opened by it" if found["opened"] else ""))]
    if "store" in receipt:
        rows.append(("receipt", f"store {receipt['store']}, till {receipt['till']}, day {receipt['business_day']}, "
                                f"number {receipt['number']}"))
    if "total_minor" in receipt:
        rows.append(("total", money(receipt["total_minor"])))
    if receipt.get("tenders"):
        rows.append(("paid with", ", ".join(f"{row['name']} {money(row['amount_minor'])}" for row in receipt["tenders"])))
    rows += [(name, receipt[key] if isinstance(receipt[key], str) else ", ".join(receipt[key]))
             for name, key in (("channel", "channel"), ("promo codes", "promo_codes")) if receipt.get(key)]
    if found["program_version"]:
        rows.append(("programme", f"{found['program']}, version {found['program_version']}".lstrip(", ")))
    if found["refusal"]:
        rows.append(("REFUSED", found["refusal"]))
    if found["receipt_number"]:
        rows.append(("the member's", f"{found['receipt_number']}. receipt" + (f", level {found['tier']}" if found["tier"] else "")))
    if found["new_tier"]:
        rows.append(("new level", f"{found['new_tier']}, from the next receipt on"))
    if found["entitlements"]:
        rows.append(("entitles to", ", ".join(found["entitlements"])))
    if found["operator"]:
        rows.append(("by hand", f"{found['operator']}: {found['reason']}"))
    for posting in found["postings"]:
        if posting["account"] == "member":
            rows.append(("points", points(posting["points"], posting["wallet"])))
    rows += [("not known", notice) for notice in found["notices"]]
    for name, text in rows:
        table.add_row(name, escape(str(text)))
    out.print(table)
    if any(line["points"] or line["discount_minor"] or line["paid_minor"] or line["sku"] for line in found["lines"]):
        names = {row["rule"]: row.get("name", f"rule {row['rule']}") for row in found["rules"]}
        lines = Table("line", "article", title="by line", title_justify="left")
        for name in ("amount", "off", "paid with points"):
            lines.add_column(name, justify="right")
        lines.add_column("points, by rule")
        for line in found["lines"]:
            given = ", ".join(f"{points(row['points'], row['wallet'])} ({names.get(row['rule'], row['rule'])})" for row in line["points"])
            lines.add_row(str(line["line"] or "all"), escape(line["sku"]), money(line["amount_minor"]),
                          *(money(line[name]) if line[name] else "" for name in ("discount_minor", "paid_minor")), escape(given))
        out.print(lines)
    if found["rules"]:
        rules = Table("rule", title="by rule", title_justify="left")
        rules.add_column("gave", justify="right")
        rules.add_column("why")
        for row in found["rules"]:
            gave = f"{decimal(row['gave'], row['scale'])} {escape(row['unit'])}" if row["gave"] else "0"
            source = f"\n[dim]{escape(row['source'])}[/]" if with_source else ""
            rules.add_row(escape(f"{row['rule']} {row['name']}"), gave, escape("; ".join(row["words"])) + source)
        out.print(rules)
    for limit in found["burn_limits"]:
        bounds = ", ".join(bound.replace("_", " ") for bound in limit["bounds"])
        out.print(f"largest burn then: {points(limit['points'], limit['wallet'])} by {escape(limit['rule']) or 'no rule'} ({bounds})")
    if found["differs"]:
        out.print("[bold yellow]Deciding once more comes to something else; what the entry says was given:[/]")
        for text in found["differs"]:
            out.print(f"  {escape(text)}")
    elif found["recomputed"]:
        out.print("Decided once more as everything stood then: the same.")
