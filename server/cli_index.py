"""The command line of the index: `daybook index`. Parses and prints; the work is in ledger/index.py."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from server.console import EXIT_FAILED, PROGRESS_FROM, Bar, fail, mib, out, say


def index(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The ledger's data directory. The service may run on it, a follower not.")],
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Throw the index away first and read the whole journal.")] = False,
) -> None:
    """Check the journal's index, and complete it: what lists by member, receipt, request id, or store and day are found with.

    The index is derived: DIR/index may be removed at any time. A follower keeps it up by itself, so this is for a directory that had none
    for long, or whose index is not trusted.
    """
    from ledger import index as indexes
    from ledger.follower import FollowerBroken, take_lock
    from ledger.journal import Journal, JournalError

    begun = time.perf_counter()
    bar = Bar()
    try:
        lock = take_lock(data, 0)
        try:
            if rebuild:
                indexes.remove(data)
            with Journal(data) as journal:
                made = indexes.Index(data, journal, say=say)
                made.check()
                total, done = journal.drained().sequence - made.last_sequence, 0
                while count := made.step():
                    done += count
                    bar.update("index", done, max(done, total))
                stats = made.stats()
        finally:
            os.close(lock)
            bar.stop()
    except FollowerBroken as error:
        raise fail(str(error), "the follower keeps the index up; end it first, or remove DIR/index and restart it") from None
    except (JournalError, indexes.IndexProblem, ValueError) as error:
        raise fail(f"the index was not completed: {error}", "`daybook verify` says whether the journal is sound", EXIT_FAILED) from None
    except OSError as error:
        raise fail(f"the index cannot be written: {error}", code=EXIT_FAILED) from None
    seconds = time.perf_counter() - begun
    table = Table(title="the index is complete", show_header=False, title_justify="left")
    rate = f" in {seconds:.2f} s ({done / seconds:,.0f}/s)" if done >= PROGRESS_FROM else ""
    size = stats["file_bytes"] + stats["memory_bytes"]
    for name, value in (
        ("entries", f"{stats['sequence']:,}"), ("read now", f"{done:,}{rate}"),
        ("files", f"{stats['files']:,}, {mib(stats['file_bytes'])}; {stats['damaged']:,} were damaged"),
        ("bytes per entry", f"{size / stats['sequence']:.1f}" if stats["sequence"] else "none"),
    ):
        table.add_row(name, value)
    out.print(table)
