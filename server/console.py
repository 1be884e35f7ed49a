"""What every command prints with: the consoles, one clear message and its next step, event lines, a progress bar.

Not for what a command does. Used by server/cli.py and server/cli_*.py.
"""

from __future__ import annotations

import time

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

EXIT_FAILED = 1
EXIT_USAGE = 2
PROGRESS_FROM = 100_000  # shorter recoveries are over before a bar is drawn

out = Console(highlight=False)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(what: str, hint: str = "", code: int = EXIT_USAGE) -> typer.Exit:
    """Print one clear message and its next step; returns the exception to raise."""
    err.print(f"[bold red]daybook:[/] {escape(what)}")
    if hint:
        err.print(f"         {escape(hint)}")
    return typer.Exit(code)


class Bar:
    """A progress bar on stderr that appears for long work only."""

    words = {"tail": "making the tail (bytes)", "snapshot": "loading the snapshot (bytes)", "journal": "replaying the journal (entries)",
             "verify": "verifying (entries)", "backup": "copying (entries)", "restore": "restoring (entries)",
             "index": "indexing (entries)", "export": "exporting (entries)",
             "simulate": "deciding anew (entries)", "limits": "judging (entries)", "explain": "looking back (entries)",
             "block": "changing the block lists (rows)"}

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._what = ""

    def update(self, what: str, done: int, total: int) -> None:
        if what != self._what:
            self.stop()
            self._what = what
        if self._progress is None:
            if total < PROGRESS_FROM:
                return
            self._progress = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                                      console=err, transient=True)
            self._task = self._progress.add_task(self.words[what], total=total)
            self._progress.start()
        self._progress.update(self._task, completed=done, total=total)

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
        self._progress = None


def say(event: str) -> None:
    """One line per event, with the time of day."""
    out.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(event)}", soft_wrap=True)


def mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"
