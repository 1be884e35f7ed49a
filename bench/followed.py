"""A service with its follower, for the benches that run long: where both listen, what they say, when they rest, what they take.

Not for driving it (bench/load.py). Used by bench/long.py, bench/start.py and bench/soak.py.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.service import ANY_PORTS, Follower, Service, ServiceFailed
from ledger import limits

END_S_MAX = 600.0  # a follower's last snapshot of everything
POLL_S = 0.1  # between two looks at whether everything rests
STUCK_S_MAX = 120  # without any movement: something is wrong
RUNS_REST_S = 0.5  # runs of ids that did not grow for so long are written

Samples = dict[str, float]


@dataclass(frozen=True)
class Pair:
    """A service and its follower, both serving."""

    service: Service
    follower: Follower

    def samples(self) -> tuple[Samples, Samples]:
        """The metrics of the service, and of the follower. Errors: ServiceFailed."""
        self.alive()
        return self.service.metrics(), self.follower.metrics()

    def alive(self) -> None:
        """Errors: ServiceFailed when one has ended."""
        for process in (self.service, self.follower):
            if process.process.poll() is not None:
                raise ServiceFailed(f"{process.what} ended with status {process.process.returncode}:\n{words(process)}")

    def ended(self) -> bool:
        return self.service.process.poll() is not None or self.follower.process.poll() is not None

    def settle(self, watch: Callable[[Samples, Samples], None] = lambda own, follower: None) -> None:
        """Until everything is in LMDB, applied by the follower and in its index, and nobody writes a snapshot or runs of ids.

        watch(metrics of the service, of the follower): called with each look. Errors: ServiceFailed when nothing moves any more.
        """
        moved, before, runs = time.monotonic(), (0.0, 0.0), (-1.0, 0.0)  # runs: their bytes, since when
        while True:
            own, follower = self.samples()
            watch(own, follower)
            now = time.monotonic()
            if own["ledger_ids_bytes"] != runs[0]:
                runs = own["ledger_ids_bytes"], now
            rests = (own["ledger_journal_sequence"] == own["ledger_journal_drained_sequence"] == follower["ledger_follower_sequence"]
                     and follower["ledger_index_lag_entries"] == 0 and follower["ledger_snapshot_writing"] == 0)
            if rests and now - runs[1] >= RUNS_REST_S:
                return
            place = follower["ledger_follower_sequence"], follower["ledger_index_sequence"]
            if place != before or follower["ledger_snapshot_writing"] or rests:
                moved, before = now, place
            elif now - moved > STUCK_S_MAX:
                raise ServiceFailed(f"the follower stands still at entry {place[0]:,.0f} of {own['ledger_journal_drained_sequence']:,.0f}, "
                                    f"its index at {place[1]:,.0f}:\n{words(self.follower)}")
            time.sleep(POLL_S)


@contextmanager
def followed(data: Path, *, members_max: int, ids_max: int, snapshot_entries: int = limits.SNAPSHOT_ENTRIES) -> Iterator[Pair]:
    """A service on `data` and a follower as the service would start it; both must end well. Errors: ServiceFailed."""
    sizes = ["--members-max", str(members_max), "--ids-max", str(ids_max)]
    service = Service(data, ANY_PORTS, *sizes, start_s=END_S_MAX)
    follower: Follower | None = None
    try:
        service.wait()
        follower = Follower(data, *sizes, "--snapshot-entries", str(snapshot_entries), start_s=END_S_MAX)
        follower.wait()
        yield Pair(service, follower)
    except BaseException:
        service.stop()
        if follower is not None:
            follower.stop()
        raise
    for process in (service, follower):
        end(process)


def end(process: Service | Follower) -> None:
    """Stop what is expected to end well. Errors: ServiceFailed."""
    status = process.stop()
    if status:
        raise ServiceFailed(f"{process.what} ended with status {status}:\n{words(process)}")
    process.log.unlink()


def words(process: Service | Follower) -> str:
    """The end of what it said."""
    return process.log.read_text()[-2000:].strip()


def memory_bytes(pid: int) -> dict[str, int]:
    """What a process has in memory: `own`, and `mapped`: pages of files, which the kernel takes back when it likes."""
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in
                 (line.partition(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines()) if name.startswith("Rss")}
    return {"own": 1024 * (kilobytes["RssAnon"] + kilobytes["RssShmem"]), "mapped": 1024 * kilobytes["RssFile"]}


def disk_bytes(path: Path) -> int:
    """What a file, or all files below a folder, take on disk."""
    files = [path] if path.is_file() else [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    return sum(file.stat().st_blocks * 512 for file in files if file.exists())


def tail_turns(metrics: Samples) -> float:
    """How often the tail was written round since the service's start. Groups are padded to blocks: at least one block each."""
    size = max(metrics["ledger_group_bytes_sum"], metrics["ledger_group_bytes_count"] * limits.TAIL_BLOCK_BYTES)
    return size / metrics["ledger_tail_size_bytes"]


def row(number: str, work: str, bar: str, figure: str, control: str, met: bool | None) -> dict[str, Any]:
    """A row of bench/run.py's table."""
    return {"row": number, "work": work, "bar": bar, "figure": figure, "control": control, "met": met}
