"""What the usual tools do by themselves, measured beside our figures: an LMDB commit, and an echo on the stock `grpc.aio` server.

Each runs in a process of its own (`python -m bench.controls lmdb|echo ...`), so that it shares nothing with the bench.
Started by bench/run.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from pathlib import Path

GROUP_BYTES = 10_000  # about 25 receipts of 6 lines: a group at moderate load
MAP_BYTES = 1 << 34


def lmdb_commits(folder: Path, seconds: float) -> dict[str, float]:
    """Commit one value of GROUP_BYTES after the other, default flags (two flushes each), for `seconds`. Units: us."""
    import lmdb

    folder.mkdir(parents=True)
    value, durations = os.urandom(GROUP_BYTES), []
    with lmdb.open(str(folder), map_size=MAP_BYTES) as environment:
        until, key = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            began = time.perf_counter_ns()
            with environment.begin(write=True) as transaction:
                transaction.put(key.to_bytes(8, "big"), value, append=True)
            durations.append(time.perf_counter_ns() - began)
            key += 1
    shutil.rmtree(folder)
    durations.sort()
    return {
        "commits_per_second": round(len(durations) / (sum(durations) / 1e9), 1),
        **{name: round(durations[min(len(durations) - 1, int(share * len(durations)))] / 1000, 1)
           for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("max_us", 1.0))},
    }


async def echo(ports_file: Path) -> None:
    """Serve every call of the ledger by giving its bytes back: the least that a Python gRPC server can do. Until it is killed."""
    import grpc

    async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return request

    handler = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((
        grpc.method_handlers_generic_handler("loyalty.ledger.v1.LedgerService", {"EarnPoints": handler, "GetBalance": handler}),
    ))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    made = ports_file.with_suffix(".new")
    made.write_text(json.dumps({"checkout": port}))
    made.rename(ports_file)
    await server.wait_for_termination()


def main() -> None:
    match sys.argv[1:]:
        case ["lmdb", folder, seconds]:
            print(json.dumps(lmdb_commits(Path(folder), float(seconds))))
        case ["echo", ports_file]:
            asyncio.run(echo(Path(ports_file)))
        case _:
            sys.exit("usage: python -m bench.controls lmdb FOLDER SECONDS | echo PORTS_FILE")


if __name__ == "__main__":
    main()
