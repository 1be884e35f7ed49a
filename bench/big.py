"""A ledger of many members: memory per member, and how long its snapshot takes to write and to load.

    python -m bench.big                     10 million members, 2 identifiers and 6 lots each
    python -m bench.big --members 1000000

Each part runs in a process of its own, so that its memory is its own. Not for calls (bench/run.py). The state is made of applied entries,
lot after lot for all members: the way a programme grows, and the hardest for the memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ledger._snapshot import Snapshot
from ledger.rules import compile_file
from server._local import LocalLedger

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "programs" / "base.yaml"
START_US = 1_774_000_000_000_000
IDS_MAX = 1000  # ids and receipt keys are counted apart: here there are none


def resident_bytes() -> int:
    """This process's memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill(path: Path, members: int, identifiers: int, lots: int) -> dict[str, Any]:
    """Make the state and write its snapshot."""
    compiled = compile_file(PROGRAM)
    before = resident_bytes()
    ledger = LocalLedger(compiled.image, compiled.source, START_US, members_max=members, ids_max=IDS_MAX)
    begun = time.perf_counter()
    ledger.fill(members, identifiers, lots, START_US)
    filled = time.perf_counter() - begun
    memory = resident_bytes() - before
    begun = time.perf_counter()
    size = ledger.save(path)
    entries = ledger.stats()["sequence"]
    return {"filled_s": filled, "entries": entries, "entries_per_s": entries / filled, "bytes_per_member": memory / members,
            "saved_s": time.perf_counter() - begun, "snapshot_bytes": size, "digest": ledger.digest().hex()}


def load(path: Path) -> dict[str, Any]:
    """Load the snapshot as a start does, its digest met."""
    head = Snapshot(path).head
    before = resident_bytes()
    begun = time.perf_counter()
    ledger = LocalLedger.load(path, None, members_max=head["members_max"], ids_max=IDS_MAX)
    loaded = time.perf_counter() - begun
    return {"loaded_s": loaded, "bytes_per_member_loaded": (resident_bytes() - before) / head["members"], "digest": ledger.digest().hex()}


def measure(folder: Path, members: int, identifiers: int, lots: int) -> dict[str, Any]:
    """Both parts, each in its own process."""
    path = folder / "big.snap"
    found: dict[str, Any] = {}
    for part in (["fill", str(members), str(identifiers), str(lots)], ["load"]):
        done = subprocess.run([sys.executable, "-m", "bench.big", "--part", *part, "--path", str(path)], cwd=ROOT, check=True,
                              stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout)
        assert found.setdefault("digest", row["digest"]) == row["digest"], "the loaded state is another"
        found |= row
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--members", type=int, default=10_000_000)
    parser.add_argument("--identifiers", type=int, default=2)
    parser.add_argument("--lots", type=int, default=6)
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--path", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        row = load(arguments.path) if arguments.part[0] == "load" else fill(arguments.path, *map(int, arguments.part[1:]))
        print(json.dumps(row))
        return
    with tempfile.TemporaryDirectory(prefix="daybook-big-") as folder:
        row = measure(Path(folder), arguments.members, arguments.identifiers, arguments.lots)
    print(f"{arguments.members:,} members, {arguments.identifiers} identifiers and {arguments.lots} lots each: {row['entries']:,} entries "
          f"applied in {row['filled_s']:.1f} s ({row['entries_per_s']:,.0f}/s)")
    print(f"memory    {row['bytes_per_member']:.0f} bytes a member as it grew, {row['bytes_per_member_loaded']:.0f} loaded from a snapshot")
    print(f"snapshot  {row['snapshot_bytes'] / 1e6:,.0f} MB, written in {row['saved_s']:.1f} s, loaded in {row['loaded_s']:.1f} s (warm)")


if __name__ == "__main__":
    main()
