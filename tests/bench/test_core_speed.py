"""What the parts of the core cost, one by one. In the normal suite each runs once; `make bench-core` times them:

    python -m pytest tests/bench/test_core_speed.py --benchmark-enable --benchmark-only

The whole service is measured by bench/run.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from ledger._probe import fact_hash_, siphash_

from bench import _load
from ledger import rules
from ledger.rules.reference import Line, Member, Receipt, Shared
from server._local import LocalLedger, bench_answer, bench_decode
from tests.rules.compiled import Compiled

PROGRAM = rules.compile_file(Path(__file__).resolve().parents[2] / "programs" / "base.yaml")
LOOP = 1000  # calls inside one C loop, where there is one
MEMBERS = 2000
ROUNDS = 10_000  # of what is timed call by call
EARN, BALANCE = _load.METHODS["earn"], _load.METHODS["balance"]


def now_us() -> int:
    return time.time_ns() // 1000


def requests(mix: str, count: int, seed: int = 1) -> list[bytes]:
    chain = _load.Chain(members=MEMBERS, skew=0.9, seed=1, currency="USD", business_day=int(time.strftime("%Y%m%d", time.gmtime())))
    return [data for _, data in _load.sample_requests(chain, {mix: 1}, count, seed=seed)]


@pytest.fixture
def ledger() -> LocalLedger:
    return LocalLedger(PROGRAM.image, PROGRAM.source, now_us(), members_max=MEMBERS + 100, ids_max=100_000)


def fresh(mix: str) -> Iterator[bytes]:
    """Endless new requests of one call."""
    for seed in itertools.count(1):
        yield from requests(mix, 2000, seed)


def call(ledger: LocalLedger, method: int, request: bytes) -> None:
    code, _, _ = ledger.call(method, request, now_us())
    assert code == 0, ledger.outcome()


def test_decode_an_earn_of_six_lines(benchmark) -> None:
    request = requests("earn", 1)[0]
    benchmark.extra_info["per"] = LOOP
    benchmark(bench_decode, EARN, request, LOOP)


def test_encode_the_answer_to_an_earn(benchmark, ledger: LocalLedger) -> None:
    call(ledger, EARN, requests("earn", 1)[0])
    entry = ledger.entries()[-1]
    benchmark.extra_info["per"] = LOOP
    benchmark(bench_answer, EARN, ["points"], entry, LOOP)


def test_decide_and_apply_earns(benchmark, ledger: LocalLedger) -> None:
    """Without the codec: what row 5 of the bench measures, over few members."""
    members = np.random.default_rng(1).integers(0, MEMBERS, LOOP).astype(np.uint32)
    first = itertools.count(0, LOOP)
    benchmark.extra_info["per"] = LOOP

    def earn() -> None:
        done, _ = ledger.run_earns(members, 6, next(first), now_us(), 1, "USD")
        assert done == LOOP

    benchmark(earn)


@pytest.mark.parametrize("mix", ["earn", "commit", "burn"])
def test_a_write_from_bytes_to_bytes(benchmark, ledger: LocalLedger, mix: str) -> None:
    fund(ledger)
    stream = fresh(mix)
    # Every write is a new one: a repeat would only be looked up.
    benchmark.pedantic(call, setup=lambda: ((ledger, _load.METHODS[mix], next(stream)), {}), rounds=ROUNDS)


def test_a_balance_from_bytes_to_bytes(benchmark, ledger: LocalLedger) -> None:
    fund(ledger)
    asked = itertools.cycle(requests("balance", 1000))
    benchmark.pedantic(call, setup=lambda: ((ledger, BALANCE, next(asked)), {}), rounds=ROUNDS)


def fund(ledger: LocalLedger) -> None:
    """Every member gets 50,000 points, as `daybook load` prepares them."""
    chain = _load.Chain(members=1, skew=0, seed=1, currency="USD", business_day=int(time.strftime("%Y%m%d", time.gmtime())))
    for name, data in _load.sample_requests(chain, {"earn": 1}, 2 * MEMBERS, seed=3, prepare=True):
        call(ledger, _load.METHODS[name], data)


def test_evaluate_the_base_programme(benchmark) -> None:
    compiled = Compiled(PROGRAM.program)
    lines = tuple(Line(f"sku-{i}", amount) for i, amount in enumerate((499, 500, 300, 400, 500, 300)))
    compiled.give(Member(1, 0), Receipt(2499, lines), now_us(), Shared())
    benchmark.extra_info["per"] = LOOP
    benchmark(compiled.loaded.run, LOOP)
    assert compiled.loaded.evaluate()["points"] == [24 * 5]


def test_hash_a_request_id(benchmark) -> None:
    benchmark(siphash_, b"\0" * 16, b"0123456789abcdef0123456789abcdef")


def test_hash_a_fact_of_the_digest(benchmark) -> None:
    benchmark(fact_hash_, 2, 7, 1, 20000 | 20365 << 32, 105, 0)
