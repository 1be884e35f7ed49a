"""The open loop of tills, left running while other things happen beside it: its latencies between two moments, and what the machine did.

Not for single runs (bench/load.py `measure`) and not for what happens beside. Used by bench/beside.py.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench import _load
from bench.load import parse_mix
from bench.measure import LIMITS_NS, figures, row
from bench.rows import own_seconds, thread_seconds
from bench.service import ServiceFailed

CONNECTIONS, IN_FLIGHT = 64, 16
MIX = "earn=1,balance=3"
ENDLESS_S = 86_400.0  # until it is stopped
SECTOR_BYTES = 512  # of /proc/diskstats, whatever the disk has


@dataclass(frozen=True)
class Moment:
    """Counters as they stand. Units: seconds, bytes; `written` and `threads` by process."""

    at: float
    calls: dict[str, np.ndarray]
    threads: dict[str, dict[str, float]]
    written: dict[str, int]
    disk_written: int
    disk_busy: float
    processors: dict[str, float]
    own: float


class OpenLoop:
    """64 x 16 tills that call at random moments, `rate` times a second, from the block's begin to its end.

    processes: whose processor time and writes are counted, by name: process id. It may grow meanwhile.
    """

    def __init__(self, port: int, chain: _load.Chain, *, rate: float, seed: int, ahead_s: float, folder: Path) -> None:
        self.client = _load.Client("127.0.0.1", port, connections=CONNECTIONS, in_flight=IN_FLIGHT, chain=chain, seed=seed)
        self.processes: dict[str, int] = {}
        self._device = device_of(folder)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(rate, ahead_s), name="open loop", daemon=True)

    def _run(self, rate: float, ahead_s: float) -> None:
        try:
            self.client.mix(parse_mix(MIX), seconds=ENDLESS_S, warmup_s=0, rate=rate, ahead_s=ahead_s)
        except BaseException as error:  # handed to whoever waits
            self._failure = error

    def __enter__(self) -> OpenLoop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop()
        self._thread.join()

    def run(self, seconds: float) -> tuple[Moment, Moment]:
        """Let it run for so long; the moments of begin and end."""
        begin = self.moment()
        time.sleep(max(0.0, begin.at + seconds - time.monotonic()))
        return begin, self.moment()

    def moment(self) -> Moment:
        """Now. Errors: ServiceFailed when the loop has ended."""
        if not self._thread.is_alive():
            raise ServiceFailed(f"the open loop ended: {self._failure}")
        calls = {name: self.client.histogram(_load.METHODS[name]) for name in parse_mix(MIX)}
        threads, written = {}, {}
        for name, pid in self.processes.items():
            try:
                threads[name], written[name] = thread_seconds(pid), bytes_written(pid)
            except OSError:
                continue  # it has ended
        disk_written, disk_busy = disk(self._device)
        return Moment(time.monotonic(), calls, threads, written, disk_written, disk_busy, processors(), own_seconds())

    def errors(self) -> dict[str, int]:
        """After the end: how often a call ended otherwise than it should, by code."""
        total = figures(self.client.result())["total"]
        return total["codes"] if total["errors"] else {}


def between(begin: Moment, end: Moment) -> dict[str, Any]:
    """The figures of the stretch: `calls` by name as of bench/measure.py (max: to 1 %), `machine`. Units: shares of one processor, MB/s."""
    seconds = end.at - begin.at
    busiest = {
        name: sorted((round((spent - begin.threads.get(name, {}).get(thread, 0.0)) / seconds, 2) for thread, spent in found.items()),
                     reverse=True)[:3]
        for name, found in end.threads.items()
    }
    calls = {}
    for name, histogram in end.calls.items():
        counted = histogram - begin.calls[name]
        highest = int(LIMITS_NS[np.flatnonzero(counted)[-1]]) if counted.any() else 0
        calls[name] = row(counted, int(counted.astype(float) @ LIMITS_NS), highest, seconds, {}, 0)
    return {
        "seconds": round(seconds, 2), "calls": calls,
        "machine": {
            "busiest_threads": busiest, "generator": round((end.own - begin.own) / seconds, 2),
            "processors": {name: round((end.processors[name] - begin.processors[name]) / seconds, 2) for name in end.processors},
            "disk_mb_per_s": round((end.disk_written - begin.disk_written) / seconds / 1e6, 1),
            "disk_busy": round((end.disk_busy - begin.disk_busy) / seconds, 2),
            "written_mb_per_s": {name: round((end.written[name] - begin.written.get(name, 0)) / seconds / 1e6, 1) for name in end.written},
        },
    }


def device_of(folder: Path) -> str:
    """The disk of a folder as /proc/diskstats numbers it."""
    number = os.stat(folder).st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def disk(device: str) -> tuple[int, float]:
    """Bytes written to it, and seconds in which it had work; zeros where the kernel does not count (a memory file system)."""
    for line in Path("/proc/diskstats").read_text().splitlines():
        fields = line.split()
        if f"{fields[0]}:{fields[1]}" == device:
            return int(fields[9]) * SECTOR_BYTES, int(fields[12]) / 1000
    return 0, 0.0


def bytes_written(pid: int) -> int:
    """By a process and its children that have ended, as far as they went to a disk."""
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["write_bytes"])


def processors() -> dict[str, float]:
    """Seconds that all processors together were busy, and that their host gave to others."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    tick = os.sysconf("SC_CLK_TCK")
    return {"busy": (sum(fields[:3]) + sum(fields[5:7])) / tick, "stolen": fields[7] / tick}


def machine_note(found: dict[str, Any]) -> str:
    """What limited, in one line."""
    state = found["machine"]
    threads = "; ".join(f"{name} {', '.join(f'{share:.2f}' for share in shares)}" for name, shares in state["busiest_threads"].items())
    written = ", ".join(f"{name} {rate:,.1f}" for name, rate in state["written_mb_per_s"].items())
    return (f"busiest threads: {threads}; generator {state['generator']:.2f}; processors busy {state['processors']['busy']:.2f} of "
            f"{os.cpu_count()}, stolen {state['processors']['stolen']:.2f}; disk {state['disk_mb_per_s']:,.1f} MB/s written, "
            f"{state['disk_busy']:.0%} busy ({written} MB/s)")
