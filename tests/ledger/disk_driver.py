"""A process for test_disk.py, run with the shim preloaded: opens a ledger and makes groups, again and again, each time in a forked child.

Lines on stdin: `run DIRECTORY GROUPS`. Lines on stdout, written at once: `ack SEQUENCE` when a group is durable, `gate N` when the gate
changed, `stopped LEFT`, `refused TEXT`, and from the parent `exit CODE`. A forked child costs 30 ms where a new interpreter costs 300.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from ledger import limits
from ledger.engine import StartRefused, open_ledger

PROGRAM = Path(__file__).resolve().parents[2] / "programs" / "base.yaml"


def say(text: str) -> None:
    os.write(1, text.encode() + b"\n")


def run(directory: Path, groups: int) -> int:
    """Groups made durable by both flushers in turn, a drain in between, a clean stop."""
    try:
        ledger = open_ledger(directory, PROGRAM, members_max=100, ids_max=1000, tail_bytes=limits.TAIL_BYTES_MIN)
    except StartRefused as error:
        say(f"refused {error}")
        return 3
    say(f"ack {ledger.handle.sequence}")
    ledger.start()
    gate = 0
    for number in range(groups):
        ledger.handle.turn(10, number % 2 == 0)
        while ledger.handle.durable_sequence < ledger.handle.sequence:
            ledger.handle.turn(0, False)
        say(f"ack {ledger.handle.durable_sequence}")
        while number % 4 == 3 and ledger.handle.drained_sequence < ledger.handle.sequence:
            now = ledger.handle.stats()["gate"]
            if now != gate:
                say(f"gate {now}")
                gate = now
            time.sleep(0.001)
    until = time.monotonic() + 5
    while gate and time.monotonic() < until and (now := ledger.handle.stats()["gate"]) == gate:
        time.sleep(0.001)
    if gate:
        say(f"gate {now}")
    say(f"stopped {ledger.stop()}")
    return 0


def main() -> None:
    for line in sys.stdin:
        _, directory, groups = line.split()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                code = run(Path(directory), int(groups))
            finally:
                os._exit(code)
        say(f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


if __name__ == "__main__":
    main()
