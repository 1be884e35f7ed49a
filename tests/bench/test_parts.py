"""What one call costs, part by part: decode, decide and apply, encode. One thread, no sockets, no disk.

    python -m pytest tests/bench/test_parts.py --benchmark-enable

Not the canonical measurements (`make bench`). In the ordinary suite each part runs once, small, to see that it still works.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.rules import compile_file
from server import _local
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.server.wire_model import NOW_US, request

PROGRAMME = compile_file(Path(__file__).resolve().parents[2] / "programs" / "base.yaml")
CALLS = 10_000  # codec calls per round, so that the Python call around them does not count
EARN, GET_BALANCE = 1, 8
SKEW = 0.9  # of the Zipf distribution over members


def earn_of_six_lines() -> pb.EarnPointsRequest:
    message = request(EARN, random.Random(1))
    del message.receipt.lines[:]
    for i in range(6):
        message.receipt.lines.add(sku=f"4001234{i:06d}", category="dairy", quantity_milli=1000, amount_minor=249 + i)
    message.receipt.total_minor = sum(line.amount_minor for line in message.receipt.lines)
    return message


def test_decode_of_an_earn_with_six_lines(benchmark: Any) -> None:
    data = earn_of_six_lines().SerializeToString()
    benchmark.extra_info.update(bytes=len(data), calls_per_round=CALLS)
    benchmark(_local.bench_decode, EARN, data, CALLS)


def test_decode_of_a_get_balance(benchmark: Any) -> None:
    data = pb.GetBalanceRequest(member=pb.MemberRef(card="2900000000001")).SerializeToString()
    benchmark.extra_info.update(bytes=len(data), calls_per_round=CALLS)
    benchmark(_local.bench_decode, GET_BALANCE, data, CALLS)


def test_encode_of_an_earn_with_six_lines(benchmark: Any) -> None:
    ledger = LocalLedger(PROGRAMME.image, PROGRAMME.source, NOW_US)
    message = earn_of_six_lines()
    message.member.card = "2900000000001"
    code, payload, sequence = ledger.call(EARN, message.SerializeToString(), NOW_US)
    assert code == 0, payload
    benchmark.extra_info.update(bytes=len(payload), calls_per_round=CALLS)
    benchmark(_local.bench_answer, EARN, ["points"], ledger.entries()[sequence - 1], CALLS)


@pytest.mark.parametrize("lines", [0, 6])
def test_decide_and_apply_of_earns_over_a_million_members(benchmark: Any, lines: int) -> None:
    """The bar: at least 1,000,000/s."""
    members, earns, rounds = (1_000, 2_000, 1) if benchmark.disabled else (1_000_000, 1_000_000, 3)
    generator = np.random.default_rng(1)
    print("seed 1")
    known = generator.permutation(members).astype(np.uint32)
    weights = np.cumsum(np.arange(1, members + 1, dtype=np.float64) ** -SKEW)
    drawn = known[np.searchsorted(weights, generator.random(earns) * weights[-1])]
    ids = max(100_000, members + earns * rounds)
    ledger = LocalLedger(PROGRAMME.image, PROGRAMME.source, NOW_US, members_max=members + 10, ids_max=ids)
    assert ledger.run_earns(known, lines, 0, NOW_US, 1, "USD")[0] == members
    first = iter(range(members, members + earns * rounds, earns))

    def run() -> tuple[int, int]:
        start = next(first)
        return ledger.run_earns(drawn, lines, start, NOW_US + start, 1, "USD")

    done, written = benchmark.pedantic(run, rounds=rounds, iterations=1)
    assert done == earns
    benchmark.extra_info.update(earns_per_round=earns, entry_bytes=written // earns)
