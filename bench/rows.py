"""What the benches print and what they stand beside: the table of rows, the bare flush, the machine in a few words.

Not for measuring calls (bench/load.py). Used by bench/run.py, bench/large.py and bench/beside.py.
"""

from __future__ import annotations

import datetime
import os
import platform
import resource
import subprocess
import time
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench import _flush
from bench.load import digits
from bench.measure import percentile_us
from bench.service import ROOT
from ledger import limits

FLUSH_BYTES = limits.TAIL_BLOCK_BYTES  # a group of one receipt: header, entry and padding are one block
FLUSH_FILE_BYTES = limits.TAIL_BYTES_DEFAULT
SETTLE_MAX_US = 10_000  # a flush longer than this is still in somebody's way
SETTLE_GOOD_S = 3  # seconds in a row without one
SETTLE_S = 90


class Rows:
    """The table as it grows: each row is printed when it is known."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: list[dict[str, Any]] = []

    def add(self, number: str, work: str, bar: str, figure: str, control: str, met: bool | None, notes: tuple[str, ...] = ()) -> None:
        """One line. met: None: no bar, only a figure."""
        self.rows.append({"row": number, "work": work, "bar": bar, "figure": figure, "control": control, "met": met, "notes": list(notes)})
        self.console.print(f"[bold]{number}[/] {escape(work)}: {escape(figure)}  [dim]{escape(control)}[/]  {verdict(met)}")
        for note in notes:
            self.console.print(f"  [dim]{escape(note)}[/]")


def bare_flush(folder: Path, seconds: float) -> dict[str, Any]:
    """The disk alone, writing and flushing what a group of one receipt is."""
    counted = _flush.bare_flushes(str(folder / "flush"), FLUSH_BYTES, FLUSH_FILE_BYTES, seconds)
    return {
        "per_second": round(counted["count"] / counted["seconds"], 1), "bytes": FLUSH_BYTES,
        **{name: round(percentile_us(counted["histogram"], share, counted["max_ns"]), 1)
           for name, share in (("p50_us", 0.5), ("p90_us", 0.9), ("p99_us", 0.99), ("p999_us", 0.999))},
        "max_us": round(counted["max_ns"] / 1000, 1),
    }


def settle_disk(folder: Path) -> float:
    """Waits until the disk has nothing left of what was copied: a virtual one takes gigabytes at once, and lets the flushes of the next
    minute wait for them. Returns the seconds it took; after SETTLE_S it is as it is."""
    begun, good = time.monotonic(), 0
    while good < SETTLE_GOOD_S and time.monotonic() - begun < SETTLE_S:
        good = good + 1 if bare_flush(folder, 1.0)["max_us"] < SETTLE_MAX_US else 0
    return time.monotonic() - begun


def both_flushes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, float]:
    """One figure of the bare flushes before and after a row: the disk changes from minute to minute."""
    return {name: max(before[name], after[name]) if name == "max_us" else (before[name] + after[name]) / 2
            for name in ("p50_us", "p90_us", "p99_us", "p999_us", "max_us")}


def latencies(row: dict[str, Any]) -> str:
    """A row's latencies in one line."""
    return "p50 {} p99 {} p99.9 {} max {} ms".format(*(digits(row[key]) for key in ("p50_us", "p99_us", "p999_us", "max_us")))


def verdict(met: bool | None) -> str:
    return "" if met is None else "[green]met[/]" if met else "[bold red]missed[/]"


def own_seconds() -> float:
    """Processor time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def thread_seconds(pid: int) -> dict[str, float]:
    """Processor time by thread of a process."""
    tick = os.sysconf("SC_CLK_TCK")
    seconds = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            fields = (task / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        seconds[task.name] = (int(fields[11]) + int(fields[12])) / tick
    return seconds


def machine(folder: Path) -> dict[str, str]:
    """The machine in a few words: figures without it say little."""
    def field(file: str, name: str) -> str:
        lines = Path(file).read_text().splitlines()
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "?")

    memory = int(field("/proc/meminfo", "MemTotal").split()[0]) / 2**20
    mounts = [line.split()[:3] for line in Path("/proc/mounts").read_text().splitlines()]
    device, point, kind = max((mount for mount in mounts if folder.resolve().is_relative_to(mount[1])), key=lambda mount: len(mount[1]))
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": f"{os.cpu_count()} x {field('/proc/cpuinfo', 'model name')}", "memory": f"{memory:.0f} GiB", "kernel": platform.release(),
        "disk": f"{device} {kind} on {point}", "python": platform.python_version(), "commit": commit or "?",
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    result = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name in ("#", "work", "bar", "figure", "beside it", ""):
        result.add_column(name)
    for row in rows:
        result.add_row(row["row"], row["work"], row["bar"], row["figure"], row["control"], verdict(row["met"]))
    return result
