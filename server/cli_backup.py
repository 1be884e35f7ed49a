"""`daybook backup` and `daybook restore`: parse and print; the work is in ledger/backup.py and ledger/restore.py.

Mounted by server/cli.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from ledger import limits
from server.console import EXIT_FAILED, Bar, fail, mib, out


def backup(
    data: Annotated[Path, typer.Argument(metavar="DIR", help="The ledger's data directory. A service may be running on it.")],
    to: Annotated[Path, typer.Option(metavar="DEST", help="Directory of the back-up: new, or of an earlier run, which is added to.")],
    tail: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory of the tail, if `serve` was given one.")] = None,
    rate: Annotated[int, typer.Option(metavar="MB", min=0, help="Megabytes a second at most, so that the service keeps its disk. 0: all.")
                    ] = limits.BACKUP_BYTES_PER_S // 1_000_000,
) -> None:
    """Copy a journal while the service runs; a second run copies only what is new.

    Every hash and the chain are checked on the way. A run that is cut short leaves a sound back-up of less; run it again.
    **The identity key is not copied**: keep `DIR/identity.key` apart, without it no card is found again.
    """
    from ledger._follower import step_back
    from ledger._verifier import guard
    from ledger.backup import back_up, utc_text
    from ledger.journal import Damage, JournalError

    step_back()
    bar, begun = Bar(), time.perf_counter()
    try:
        guard(str(data / "journal" / "data.mdb"), "daybook: backup")
        done = back_up(data, to, tail=tail, bytes_per_s=rate * 1_000_000, progress=lambda at, total: bar.update("backup", at, total))
    except Damage as error:
        bar.stop()
        raise fail(f"back-up FAILED: {error}", "keep the directory as it is; `daybook verify` tells more. What was copied before is sound",
                   EXIT_FAILED) from None
    except JournalError as error:
        raise fail(str(error)) from None
    except OSError as error:
        bar.stop()
        raise fail(f"back-up FAILED: {to} cannot be written: {error.strerror or error}",
                   "run it again when there is room: it goes on where it ended", EXIT_FAILED) from None
    finally:
        bar.stop()
    table = Table(title="backed up", show_header=False, title_justify="left")
    for name, value in (
        ("back-up", f"{done.path.resolve()}, {done.files:,} files"),
        ("new", f"{done.new_entries:,} entries, {mib(done.new_bytes)} in {time.perf_counter() - begun:.1f} s"),
        ("entries", f"{done.entries:,}, the last of {utc_text(done.time_us)}"),
        ("from the tail", "the service runs: what it writes from now on is for the next run" if done.running else
         f"{done.tail_groups:,} groups that were not in LMDB yet"),
        ("identity.key", f"NOT in the back-up: keep a copy of {data / 'identity.key'} apart"),
    ):
        table.add_row(name, escape(value))
    out.print(table)
    out.print(f"backed up {escape(str(data))}: head {done.head}", soft_wrap=True)


def restore(
    back_up: Annotated[Path, typer.Argument(metavar="BACKUP", help="A back-up.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="The data directory to make; must be new or empty.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="The identity key that was kept apart (32 hex digits, mode 0600).")],
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Leave out what was written later, e.g. 2026-11-22T09:30:00Z.")] = None,
    until_sequence: Annotated[int | None, typer.Option(metavar="N", help="Leave out what stands behind this sequence.")] = None,
    tail: Annotated[Path | None, typer.Option(metavar="DIR", help="Directory for the tail, to put it on another device.")] = None,
    tail_bytes: Annotated[int, typer.Option(hidden=True)] = limits.TAIL_BYTES_DEFAULT,
) -> None:
    """Make a data directory from a back-up: all of it, or as it was at an earlier moment.

    The cut is at the end of a group (what one flush wrote). Behind it a RESTORE entry begins a new history; heads noted before still hold.
    """
    from ledger.journal import Damage, JournalError
    from ledger.restore import StartRefused, parse_time
    from ledger.restore import restore as bring_back

    if until is not None and until_sequence is not None:
        raise fail("--until and --until-sequence are two ways to say the same", "give one of them")
    try:
        until_us = None if until is None else parse_time(until)
    except ValueError as error:
        raise fail(f"--until: {error}") from None
    bar = Bar()
    try:
        done = bring_back(back_up, to, key, tail=tail, tail_bytes=tail_bytes, until_sequence=until_sequence, until_us=until_us,
                          progress=bar.update)
    except Damage as error:
        bar.stop()
        raise fail(f"restore FAILED: {error}",
                   "this back-up is damaged: restore another copy of it, or with --until-sequence up to before the damage",
                   EXIT_FAILED) from None
    except (JournalError, StartRefused) as error:
        bar.stop()
        raise fail(str(error)) from None
    except OSError as error:
        bar.stop()
        raise fail(f"restore FAILED: {error.strerror or error}", f"see to the disk of {to} and restore again: what is there is begun anew",
                   EXIT_FAILED) from None
    finally:
        bar.stop()
    _print_restored(done, until)


def _print_restored(done: object, until: str | None) -> None:
    from ledger.backup import utc_text
    from ledger.restore import Restored

    assert isinstance(done, Restored)
    table = Table(title="restored", show_header=False, title_justify="left")
    for name, value in (
        ("data", str(done.data)), ("directory", f"{done.directory}, epoch {done.epoch}"),
        ("up to", f"entry {done.through.partition(':')[0]}, written {utc_text(done.through_time_us)}"),
        ("left out", f"{done.left:,} later entries" if done.left else
         "nothing: all that the back-up holds" + (f" ends before {until}" if until is not None else "")),
    ):
        table.add_row(name, escape(value))
    out.print(table)
    # What was acknowledged behind the cut is known to tills and to readers of the feed, but not here any more.
    out.print("heads noted up to the cut still hold; check one of them, or the cut's own:", soft_wrap=True)
    out.print(f"  daybook verify {escape(str(done.data))} --expect-head {done.through}", soft_wrap=True)
    out.print(f"restored {escape(str(done.data))}: head {done.head}", soft_wrap=True)
