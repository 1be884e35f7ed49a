"""The command line of the export: `daybook export`. Parses and prints; the work is in ledger/export.py."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from server.console import EXIT_FAILED, PROGRESS_FROM, Bar, fail, out


class Format(StrEnum):
    """What the journal can be exported to."""

    PARQUET = "parquet"


def export(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The ledger's data directory. A service may be running on it.")],
    target: Annotated[Path, typer.Option("--out", metavar="DIR2", help="Where the files go; made when it does not exist.")],
    to: Annotated[Format, typer.Option(help="The files' format.")] = Format.PARQUET,
    unfinished: Annotated[bool, typer.Option("--all", help="The newest day too, as DAY.part.parquet; a later run replaces it.")] = False,
) -> None:
    """Write the journal as Parquet files, one per UTC day, every entry exactly once.

    A run writes the days that are not there yet; one that was killed is simply run again. A day is finished, and its file final, when
    an entry of a later day is in the journal. The columns are explained in docs/export.md.
    """
    try:
        from ledger import export as exports
    except ImportError as error:
        raise fail(f"the export needs pyarrow: {error}", "pip install 'daybook[export]'") from None
    from ledger.journal import JournalError

    begun = time.perf_counter()
    bar = Bar()
    try:
        made = exports.export(data, target, unfinished=unfinished, progress=lambda done, total: bar.update("export", done, total))
    except (JournalError, exports.ExportRefused) as error:
        raise fail(f"the export ended: {error}", code=EXIT_FAILED) from None
    except OSError as error:
        raise fail(f"the export cannot be written: {error}", "what is finished stays; run it again when there is room",
                   EXIT_FAILED) from None
    finally:
        bar.stop()
    seconds = time.perf_counter() - begun
    count = max(0, made.last_sequence - made.first_sequence + 1)
    table = Table(title=f"the journal is in {target}", show_header=False, title_justify="left")
    rate = f" in {seconds:.2f} s ({count / seconds:,.0f}/s)" if count >= PROGRESS_FROM else ""
    for name, value in (
        ("written now", f"{count:,} entries{rate}"),
        ("files", ", ".join(made.files) or "none: no further day is finished (--all takes it too)"),
        ("up to sequence", f"{made.last_sequence:,}"),
    ):
        table.add_row(name, value)
    out.print(table)
