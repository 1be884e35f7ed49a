"""Mutated requests through the whole ledger: whatever comes, it answers, stays alive and keeps its promises.

    python -m tests.server.fuzz_wire --count 1000000 [--seed N]      in the build at hand
    python -m tests.server.fuzz_wire --count 1000000 --asan          in a build of its own with AddressSanitizer and UBSan

Not for the codec's meaning (test_wire.py). A smaller count runs in test_bad_input.py; the million belongs to `make soak`.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ASAN_BUILD = ROOT / "build" / "asan"
PROBE_EVERY = 20_000
LIMITS = """
limits:
  - {name: Earns, of: earns, per: member, window: day, at_most: 3, then: mark}
  - {name: Money, of: earns, measure: money, per: store, window: 1 hour, at_most: 100.00, then: shadow}
  - {name: Points, of: [earns, burns], measure: points, per: [till, member], window: month, at_most: 100, then: mark, gives_back: true}
  - {name: Members, of: earns, measure: members, per: device, window: day, at_most: 2, then: mark}
  - {name: Shops, of: earns, measure: stores, per: member, window: 10 minutes, at_most: 1, then: mark}
  - {name: Baskets, of: earns, per: [cashier, basket], window: 24 hours, at_most: 1, then: mark}
  - {name: Quantity, of: earns, measure: quantity, per: member, window: receipt, at_most: 5, then: review}
  - {name: Burns, of: burns, per: identifier, window: ever, at_most: 20, then: refuse, rung: warned}
  - {name: Holds, of: reservations, per: member, window: 1 hour, at_most: 9, then: challenge}
  - {name: Large, of: burns, measure: points, per: member, window: 1 minute, at_most: 50, then: challenge}
  - {name: Less, of: earns, measure: points, per: payment_card, window: week, at_most: 50, then: reduce}
  - {name: Returns, of: returns, measure: money, per: member, window: ever, at_most: 10.00, then: mark, rung: warned}
  - {name: Enrolments, of: enrolments, per: [store, hour], window: day, at_most: 1000, then: refuse}
  - {name: Refused, of: refusals, per: partner, window: 1 hour, at_most: 1, then: mark}
  - {name: Looks, of: balances, per: till, window: 1 minute, at_most: 100, then: refuse}
"""
WITH_POINTERS = (23, 31)  # METHOD_RULES_ORDER, METHOD_KEYS_STEP: no port takes them, and their bytes are believed
MODULES = ("ledger._core", "ledger._tail", "ledger._journal", "ledger._ids", "ledger._snapshot", "ledger._engine", "server._wire",
           "server._call", "server._local", "server._http2", "server._transport")


def fuzz(count: int, seed: int) -> dict[int, int]:
    """Send `count` mutated requests. Returns answers by gRPC code. AssertionError where a promise breaks."""
    from google.rpc import error_details_pb2, status_pb2

    from ledger.rules import compile_source
    from server._local import LocalLedger
    from tests.server.wire_model import METHODS, NOW_US, mutate, request

    chance = random.Random(seed)
    path = ROOT / "programs" / "base.yaml"
    programme = compile_source((path.read_text() + LIMITS).encode(), str(path))
    sizes = {"members_max": 5000, "ids_max": 2_000_000, "reservations_max": 1000}
    ledger = LocalLedger(programme.image, programme.source, NOW_US, **sizes)
    methods = list(METHODS)
    corpus = {method: [request(method, chance).SerializeToString() for _ in range(500)] for method in methods}
    answers: dict[int, int] = {}
    now_us = NOW_US
    for index in range(count):
        method = chance.choice(methods)
        other = chance.choice(corpus[chance.choice(methods)])
        data = mutate(chance.choice(corpus[method]), other, chance)
        if chance.random() < 0.01:
            method = chance.choice([number for number in range(256) if number not in WITH_POINTERS])
        before = ledger.stats()["sequence"] if index % 50 == 0 else None
        code, payload, _ = ledger.call(method, data, now_us)
        answers[code] = answers.get(code, 0) + 1
        if code:
            status = status_pb2.Status.FromString(payload)
            info = error_details_pb2.ErrorInfo()
            assert status.code == code and status.message
            assert status.details[0].Unpack(info) and info.domain == "ledger.loyalty"
            if before is not None and ledger.outcome()["written"] == 0:
                assert ledger.stats()["sequence"] == before
        elif method in METHODS:
            parse_answer(method, payload)
        if index % 20 == 0:
            fuzz_batch(ledger, corpus, chance, now_us)
        if index % 5 == 0:
            # An intact one now and then, so that there is a state to harm.
            method = chance.choice(methods)
            code, _, _ = ledger.call(method, request(method, chance).SerializeToString(), now_us)
            answers[code] = answers.get(code, 0) + 1
        now_us += chance.choice((0, 1, 1000, 1_000_000)) if index % 100 == 0 else 0
        if index % PROBE_EVERY == PROBE_EVERY - 1:
            ledger.tick(now_us)
            ledger.write_digest(now_us)
            good = request(1, chance)
            good.request_id = f"a-good-request-{index:09d}"
            good.receipt.key.number = f"good-{index:09d}"
            for field in ("purchase_time", "quote_token", "only_as_quoted"):
                good.receipt.ClearField(field)
            good.receipt.key.store = good.receipt.key.till = "good"  # what is not on the block lists, where mutated requests put things
            good.ClearField("origin")
            good.member.Clear()
            good.member.card = "good-card"
            code, payload, _ = ledger.call(1, good.SerializeToString(), now_us)
            assert code == 0, status_pb2.Status.FromString(payload)
    assert LocalLedger.replay(ledger.entries(), **sizes).digest() == ledger.digest()
    return answers


def fuzz_batch(ledger: Any, corpus: dict[int, list[bytes]], chance: random.Random, now_us: int) -> None:
    """A batch of mutated requests, half of the time mutated as a whole too: it is refused or has an outcome for each part."""
    from google.rpc import status_pb2

    from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
    from tests.server.wire_model import mutate

    def framed(tag: int, body: bytes) -> bytes:
        size = bytes([len(body) & 127 | 128, len(body) >> 7 & 127 | 128, len(body) >> 14])
        return (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])) + size + body

    method, parts = chance.choice((14, 14, 15)), []
    for _ in range(chance.randrange(1, 20)):
        kind = chance.choice((*range(1, 8), 30))
        data = chance.choice(corpus[kind if method == 14 else 8])
        if chance.random() < 0.5:
            data = mutate(data, chance.choice(corpus[kind]), chance)
        parts.append(framed(10, framed(8 * kind + 2, data)) if method == 14 else framed(10, data[2:]))
    whole = b"".join(parts)
    if chance.random() < 0.5:
        whole = mutate(whole, parts[0], chance)
    code, payload = ledger.call_batch(method, whole, now_us)
    if code:
        assert status_pb2.Status.FromString(payload).code == code
        return
    answer = (pb.BatchPostResponse if method == 14 else pb.BatchGetBalancesResponse).FromString(payload)
    assert answer.results and all(result.WhichOneof("outcome") for result in answer.results)


def parse_answer(method: int, payload: bytes) -> None:
    """Every good answer is a message of its method with something in it."""
    from tests.server.wire_model import ANSWERS

    assert ANSWERS[method].FromString(payload).ByteSize()


def build_asan(modules: tuple[str, ...]) -> Path:
    """Build modules with AddressSanitizer beside the usual build; returns their folder."""
    library = ASAN_BUILD / "lib"
    environment = os.environ | {"DAYBOOK_ASAN": "1", "DAYBOOK_ONLY": ",".join(modules)}
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(ASAN_BUILD), "--build-lib", str(library)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return library


def run_with_asan(arguments: list[str], module: str = "tests.server.fuzz_wire", modules: tuple[str, ...] = MODULES,
                  instrumented: str = "server._local") -> int:
    """Run this module, or another one that fuzzes, in the instrumented build. Its exit status; anything but 0 is a finding."""
    library = build_asan(modules)
    libasan, libubsan = (
        subprocess.run(["gcc", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    )
    environment = os.environ | {
        "LD_PRELOAD": f"{libasan} {libubsan}",
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",  # Python itself keeps memory until its end
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": f"{library}{os.pathsep}{ROOT}",
    }
    program = f"import {instrumented} as local, runpy; assert 'asan' in local.__file__, local.__file__; " \
              f"runpy.run_module('{module}', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", program, *arguments], cwd=library, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="mutated requests to send")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the mutations; printed")
    parser.add_argument("--asan", action="store_true", help="build and run with AddressSanitizer and UBSan")
    options = parser.parse_args()
    if options.asan:
        return run_with_asan(["--count", str(options.count), "--seed", str(options.seed)])
    print(f"seed {options.seed}", flush=True)
    started = time.monotonic()
    answers = fuzz(options.count, options.seed)
    print(f"{options.count} requests in {time.monotonic() - started:.1f} s, answers by gRPC code: {dict(sorted(answers.items()))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
