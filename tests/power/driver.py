"""A process for the power-loss tests, run with the shim preloaded: uses a ledger's directory as a service does, in forked children.

Lines on stdin: `run DIRECTORY SEED GROUPS MODE`, `restore DIRECTORY COPY KEY`, `rebuild DIRECTORY IDS_MAX`. Lines on stdout:
`refused TEXT`, `exit CODE`. What is durable is acknowledged by a message on a socket, which the shim notes in the one order of all
operations. Modes: `alone` one thread does everything; `threads` flush and drain thread run; `fill` many groups of one entry; `early`
acknowledges what is not flushed yet: the build that the tests must catch.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

from ledger import engine, ids, limits
from ledger.engine import OpenLedger, StartRefused, open_ledger
from ledger.restore import restore
from ledger.verify import parse_head
from tests.power.recording import ACK, SIZES

PROGRAM = Path(__file__).resolve().parents[2] / "programs" / "base.yaml"
engine.compile_file = functools.cache(engine.compile_file)  # the same programme in every child



def tail_of(data: Path) -> Path | None:
    """A directory `apart` beside the data directory is for the tail."""
    return data.parent / "apart" if (data.parent / "apart").is_dir() else None


def open_here(data: Path) -> OpenLedger:
    return open_ledger(data, PROGRAM, tail=tail_of(data), tail_bytes=limits.TAIL_BYTES_MIN, **SIZES)


ours, theirs = socket.socketpair()


def acknowledge(sequence: int) -> None:
    ours.send(ACK + sequence.to_bytes(8, "little"))
    theirs.recv(64)


def run(directory: Path, seed: int, groups: int, mode: str) -> None:
    ledger = open_here(directory)
    handle = ledger.handle
    acknowledge(handle.sequence)
    generator = random.Random(seed)
    if mode == "threads":
        ledger.start()
    for number in range(groups):
        entries = 1 if mode == "fill" else generator.choice((1, 1, 2, 5, 20, 80, 400))
        if mode != "threads":
            if mode == "early":
                acknowledge(handle.sequence + entries)
            handle.turn(entries, True)
            acknowledge(handle.durable_sequence)
            if number % 500 == 499 if mode == "fill" else generator.random() < 0.3:
                assert handle.finish(False) == 0
            continue
        handle.turn(entries, number % 3 == 0)
        while handle.durable_sequence < handle.sequence:
            handle.turn(0, False)
        acknowledge(handle.durable_sequence)
        while number % 5 == 4 and handle.drained_sequence < handle.sequence:
            time.sleep(0.001)  # a poll's step
    if mode == "threads":
        assert ledger.stop() == 0
        acknowledge(ledger.head[0])
    else:
        ledger.close()


def do(command: str, directory: Path, *more: str) -> None:
    if command == "restore":
        copy, key = more
        acknowledge(parse_head(restore(Path(copy), directory, Path(key), tail_bytes=limits.TAIL_BYTES_MIN).head)[0])
    elif command == "rebuild":
        ids.rebuild(directory, ids_max=int(more[0]))
    else:
        seed, groups, mode = more
        run(directory, int(seed), int(groups), mode)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for line in sys.stdin:
        command, directory, *more = line.split()
        child = os.fork()
        if child == 0:
            code = 99
            try:
                do(command, Path(directory), *more)
                code = 0
            except StartRefused as error:
                os.write(1, f"refused {error}\n".encode())
                code = 3
            finally:
                os._exit(code)
        os.write(1, f"exit {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())


if __name__ == "__main__":
    main()
