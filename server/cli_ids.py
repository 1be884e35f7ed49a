"""`daybook ids`: the runs of request ids and receipt keys that memory has dropped. Parses and prints; the work is in ledger/ids.py.

Mounted by server/cli.py.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ledger import limits
from server.console import EXIT_FAILED, Bar, fail, out


def ids(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The ledger's data directory. No service may be running on it.")],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make all runs again from the journal, in place of what is there.")] = False,
    ids_max: Annotated[int, typer.Option(min=1, max=limits.IDS_MAX_LIMIT, help="As `daybook serve` has it: gives the size of a run.")
                       ] = limits.IDS_MAX_DEFAULT,
) -> None:
    """Check the runs in DIR/ids, every block of them, or make them again.

    Runs hold the ids of requests that memory has dropped, so that a repeat gets its first answer for ever. They hold nothing that the
    journal does not say, so --rebuild loses nothing.
    """
    from ledger import ids as runs
    from ledger.journal import Damage, JournalError

    try:
        if rebuild:
            _rebuild(data, ids_max)
            return
        table, faults = Table("run", "holds", "entries", "from", "to", "keys", title="runs"), []
        for run, fault in runs.check(data):
            number = f"{run['number']:,}"
            table.add_row(number, run["kind"], f"{run['first_sequence']:,}..{run['last_sequence']:,}",
                          _order(run["kind"], run["order_min"]),
                          _order(run["kind"], run["order_max"]), f"{run['keys']:,}")
            if fault:
                faults.append(fault)
    except Damage as error:
        raise fail(f"the journal is damaged: {error}", f"`daybook verify {data}` tells more", EXIT_FAILED) from None
    except (JournalError, runs.InUse) as error:
        raise fail(str(error)) from None
    except runs.IdsRefused as error:
        raise fail(str(error), code=EXIT_FAILED) from None
    except OSError as error:
        raise fail(f"{data / 'ids'} cannot be used: {error.strerror or error}") from None
    out.print(table)
    if faults:
        raise fail(faults[0], code=EXIT_FAILED)
    out.print("every run is sound")


def _order(kind: str, value: int) -> str:
    """A sent_time or a business day, for people."""
    if kind == "receipt keys":
        return f"{value // 10_000}-{value // 100 % 100:02}-{value % 100:02}"
    return f"{datetime.fromtimestamp(value // 1_000_000, UTC):%Y-%m-%d %H:%M:%S}"


def _rebuild(data: Path, ids_max: int) -> None:
    from ledger import ids as runs

    bar = Bar()
    try:
        count = runs.rebuild(data, ids_max=ids_max, progress=lambda done, total: bar.update("journal", done, total))
    finally:
        bar.stop()
    out.print(f"{count:,} runs made from the journal")
