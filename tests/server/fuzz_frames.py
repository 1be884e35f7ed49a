"""Mutated HTTP/2 conversations against a real checkout port: whatever comes, it stays alive, answers others and leaves nothing behind.

    python -m tests.server.fuzz_frames --count 250000 [--seed N]     in the build at hand
    python -m tests.server.fuzz_frames --count 250000 --asan         in a build of its own with AddressSanitizer and UBSan

Not for what each error must be (test_http2.py). A smaller count runs there; the quarter million belongs to `make soak`.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import hpack

from ledger import errors
from tests.server import fuzz_wire
from tests.server.checkout import Port, until
from tests.server.peer import PREFACE, Peer, balance, headers, message

PROBE_EVERY = 500
FRAME_BYTES_MAX = 16_384
INTERESTING = (0, 1, 2, 3, 4, 5, 100, 16_384, 65_535, 65_536, 2**24 - 1, 2**31 - 1, 2**31, 2**32 - 1)

Pieces = list[tuple[int, int, int, bytes]]  # type, flags, stream, payload


def conversation(chance: random.Random) -> Pieces:
    """A valid one: settings, then calls with all that HTTP/2 allows."""
    encoder = hpack.Encoder()
    encoder.header_table_size = chance.choice((4096, 4096, 0, 100))
    settings = b"".join(struct.pack(">HI", number, chance.choice(values)) for number, values in (
        (1, (0, 60, 4096)), (4, (0, 1, 30, 65_535, 2**31 - 1)), (5, (16_384, 2**24 - 1)), (77, (0,))) if chance.random() < 0.4)
    pieces: Pieces = [(4, 0, 0, settings)]
    stream = 1
    for _ in range(chance.randrange(1, 8)):
        more = {"grpc_timeout": f"{chance.randrange(100)}m"} if chance.random() < 0.3 else {}
        block = encoder.encode(headers(chance.choice(("GetBalance", "EarnPoints", "Nothing")), **more))
        body = chance.choice((balance(), balance(), message(chance.randbytes(300)), message(bytes(5000)), b""))
        if chance.random() < 0.2:
            cut = chance.randrange(len(block) + 1)
            pieces += [(1, 0, stream, block[:cut]), (9, 4, stream, block[cut:])]
        elif chance.random() < 0.2:
            pieces.append((1, 0x2C, stream, b"\x02" + bytes(5) + block + bytes(2)))
        else:
            pieces.append((1, 4, stream, block))
        if chance.random() < 0.2:
            pieces += [(0, 8, stream, b"\x03" + body[:7] + bytes(3)), (0, 0, stream, body[7:])]
            pieces.append((1, 5, stream, encoder.encode([("x-trailer", "1")])))
        else:
            pieces.append((0, 1, stream, body))
        if chance.random() < 0.3:
            pieces.append(chance.choice([
                (8, 0, 0, struct.pack(">I", 1000)), (8, 0, stream, struct.pack(">I", 1000)), (6, 0, 0, bytes(8)), (4, 1, 0, b""),
                (3, 0, stream, struct.pack(">I", 8)), (2, 0, stream, bytes(5)), (0xEE, 0, stream, b"unknown"), (7, 0, 0, bytes(8))]))
        stream += chance.choice((2, 2, 2, 4, 2000))
    return pieces


def anything(chance: random.Random, stream: int) -> tuple[int, int, int, bytes]:
    """A frame that need not fit."""
    payload = chance.choice((b"", struct.pack(">I", chance.choice(INTERESTING)), chance.randbytes(chance.randrange(40)),
                             struct.pack(">HI", chance.randrange(10), chance.choice(INTERESTING)), bytes(8)))
    where = chance.choice((0, stream, stream, 1, 2, 2**31 - 1))
    return chance.randrange(12), chance.choice((0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF)), where, payload


def mutate(pieces: Pieces, chance: random.Random) -> bytes:
    """One to four changes of frames, now and then of bytes too."""
    pieces = list(pieces)
    for _ in range(chance.choice((0, 1, 1, 2, 4))):
        at = chance.randrange(len(pieces))
        kind, flags, stream, payload = pieces[at]
        what = chance.randrange(9)
        if what == 0:
            pieces[at] = (chance.randrange(12), flags, stream, payload)
        elif what == 1:
            pieces[at] = (kind, flags ^ 1 << chance.randrange(8), stream, payload)
        elif what == 2:
            pieces[at] = (kind, flags, chance.choice((0, 1, 2, stream + 2, max(0, stream - 2), 2**31 - 1)), payload)
        elif what == 3:
            cut = chance.randrange(len(payload) + 1)
            pieces[at] = (kind, flags, stream, payload[:cut])
        elif what == 4:
            pieces[at:at] = [anything(chance, stream)]
        elif what == 5:
            pieces.append(pieces[at])
        elif what == 6 and len(pieces) > 1:
            del pieces[at]
        elif what == 7:
            other = chance.randrange(len(pieces))
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif payload:
            spoilt = bytearray(payload)
            for _ in range(chance.randrange(1, 4)):
                spoilt[chance.randrange(len(spoilt))] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))
            pieces[at] = (kind, flags, stream, bytes(spoilt))
    sent = bytearray(PREFACE)
    for kind, flags, stream, payload in pieces:
        size = len(payload) if chance.random() < 0.995 else chance.choice(INTERESTING) & 0xFFFFFF
        sent += struct.pack(">I", size)[1:] + struct.pack(">BBI", kind & 0xFF, flags & 0xFF, stream) + payload
    if chance.random() < 0.1:
        at = chance.randrange(len(sent))
        sent[at:at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
    return bytes(sent)


def read_all(peer: socket.socket, ends: Counter[str]) -> None:
    """Reads until the service closes. Whatever it was told, what it says itself must be well-formed."""
    data = b""
    try:
        while received := peer.recv(65_536):
            data += received
    except ConnectionError:  # closed with something unread: what came before may be cut off anywhere
        ends["reset"] += 1
        return
    at, failed = 0, False
    while at < len(data):
        assert at + 9 <= len(data), "the service sent half a frame"
        size, (kind, flags, stream) = int.from_bytes(data[at:at + 3], "big"), struct.unpack(">BBI", data[at + 3:at + 9])
        assert size <= FRAME_BYTES_MAX and kind in (0, 1, 3, 4, 6, 7, 8), (size, kind)
        assert stream % 2 == 1 or (stream == 0 and kind in (4, 6, 7, 8)), (kind, stream)
        assert not failed, "the service said something behind its GOAWAY"
        payload = data[at + 9:at + 9 + size]
        assert len(payload) == size, "the service sent half a frame"
        if kind == 1 and flags & 1:
            ends["answered"] += 1
        elif kind == 3:
            ends["stream reset"] += 1
        elif kind == 7:
            ends["goaway"] += 1
            failed = True
        at += 9 + size


def fuzz(count: int, seed: int) -> Counter[str]:
    """Hold `count` mutated conversations. Returns how they ended. AssertionError where a promise breaks."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as directory:
        port = Port(Path(directory))
        try:
            with Peer(port.number) as good:
                for index in range(count):
                    sent = mutate(conversation(chance), chance)
                    with socket.create_connection(("127.0.0.1", port.number), timeout=60) as peer:
                        try:
                            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                            cut = chance.randrange(len(sent)) if chance.random() < 0.3 else len(sent)
                            peer.sendall(sent[:cut])
                            peer.sendall(sent[cut:])
                            peer.shutdown(socket.SHUT_WR)
                        except OSError:
                            pass  # closed in our face
                        read_all(peer, ends)
                    if index % PROBE_EVERY == PROBE_EVERY - 1:
                        assert good.call(headers(), balance()).code == errors.NOT_FOUND
                        until(lambda: port.stat("connections") == 1 and port.stat("streams") == 0 and port.stat("held") == 0)
        finally:
            port.close()
    return ends


def run_with_asan(arguments: list[str]) -> int:
    return fuzz_wire.run_with_asan(arguments, "tests.server.fuzz_frames")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=250_000, help="mutated conversations to hold")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the mutations; printed")
    parser.add_argument("--asan", action="store_true", help="build and run with AddressSanitizer and UBSan")
    options = parser.parse_args()
    if options.asan:
        return run_with_asan(["--count", str(options.count), "--seed", str(options.seed)])
    print(f"seed {options.seed}", flush=True)
    started = time.monotonic()
    ends = fuzz(options.count, options.seed)
    print(f"{options.count} conversations in {time.monotonic() - started:.1f} s: {dict(sorted(ends.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
