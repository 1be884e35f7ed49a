"""A reader beside the tills: reads a list of a store's day from the follower every second, in a process of its own.

    python -m bench.lists PORT ENTRIES DAY STORES

Prints a JSON line for each whole list: its entries, seconds, and how long its first page took. Ends when it is killed. Started by
bench/beside.py.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import grpc

from ledger import limits
from server._pb.loyalty.ledger.v1 import journal_pb2, journal_pb2_grpc

PERIOD_S = 1.0  # from one list to the next: more than all the offices of a chain ask for; no pause would be a load test of the reader
PATIENCE_S = 600  # until the index has read what is new


def pages(stub: Any, day: int, stores: int) -> Iterator[Any]:
    """The pages of store after store, and then from the first one again. Errors: grpc.RpcError."""
    for store in itertools.cycle(range(1, stores + 1)):
        token = ""
        while True:
            page = ask(stub, journal_pb2.ListEntriesRequest(store_day=journal_pb2.StoreDay(store=f"S{store:04}", business_day=day),
                                                            page_size=limits.PAGE_SIZE_MAX, page_token=token))
            yield page
            token = page.next_page_token
            if not token:
                break


def ask(stub: Any, request: Any) -> Any:
    """One page; INDEX_NOT_READY is waited out."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return stub.ListEntries(request, timeout=30)
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                raise
            time.sleep(0.05)


def main() -> None:
    port, entries, day, stores = map(int, sys.argv[1:])
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", 4 * limits.PAGE_BYTES_MAX)]) as channel:
        source = pages(journal_pb2_grpc.JournalServiceStub(channel), day, stores)
        while True:
            begun, read, count, first = time.perf_counter(), 0, 0, 0.0
            while read < entries:
                read += len(next(source).entries)
                count += 1
                first = first or time.perf_counter() - begun
            print(json.dumps({"entries": read, "pages": count, "seconds": round(time.perf_counter() - begun, 4),
                              "first_page_ms": round(first * 1000, 2)}), flush=True)
            time.sleep(max(0.0, begun + PERIOD_S - time.perf_counter()))


if __name__ == "__main__":
    main()
