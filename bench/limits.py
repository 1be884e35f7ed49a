"""What limits cost an earn in the core: the same earns of the same members without limits and with twenty over six keys, in turns.

    python -m bench.limits                  200,000 members, 30 rounds of each
    python -m bench.limits --quick          sizes that only show that it runs
    python -m bench.limits --json           the same for programs

Not for calls (bench/run.py) nor for the tables alone (bench/velocity.py). One thread decides and applies earns of six lines by base.yaml
(as row 5 of bench/run.py), every window kind and measure among the limits, all bounds so high that nothing is above. The members' keys are
spread over all of them; store and till are one, as in a shop at its busiest. What limits cost is the median over the rounds of what the
earns of one round took more with them; beside it the difference of the sides' quickest quarters, as while the host disturbs neither.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ledger import rules
from server._local import LocalLedger

PROGRAM = Path(__file__).resolve().parents[1] / "programs" / "base.yaml"
BAR_NS = 1000
KEYS = ("member", "identifier", "till", "store", "[till, member]", "[store, hour]")
COUNTS = (("count", "day"), ("points", "day"), ("count", "1 hour"))
MORE = (("money", "member", "month"), ("count", "member", "10 minutes"))
CHUNK = 25_000       # earns of a round: some milliseconds, or the two sides of one meet another machine


def limits_text() -> str:
    """Twenty limits over six keys that nothing is ever above."""
    rows = [(measure, key, window) for key in KEYS for measure, window in COUNTS] + list(MORE)
    return "limits:\n" + "".join(
        f"  - {{name: Limit {i}, of: earns, measure: {measure}, per: {key}, window: {window}, at_most: 4000000000, then: refuse}}\n"
        for i, (measure, key, window) in enumerate(rows))


class Side:
    """A ledger, and what its earns took."""

    def __init__(self, source: str, members: int) -> None:
        program = rules.compile_source(source.encode(), str(PROGRAM))
        self.now_us = time.time_ns() // 1000
        # All members buy within the hour: room for eight times as many, or their sliding counters would be more than there is room for.
        self.ledger = LocalLedger(program.image, program.source, self.now_us, members_max=members * 8 + 10, ids_max=4_000_000)
        self.first = 0
        self.ns: list[int] = []

    def run(self, members: Any) -> int:
        """Nanoseconds of an earn."""
        began = time.perf_counter_ns()
        done, _ = self.ledger.run_earns(members, 6, self.first, self.now_us, 1, "USD")
        spent = time.perf_counter_ns() - began
        assert done == len(members), f"every earn must succeed: {done} of {len(members)} did"
        self.first, self.now_us = self.first + done, self.now_us + len(members)
        return round(spent / done)


def quarter(figures: list[int]) -> int:
    """That which a quarter of them are below."""
    return sorted(figures)[len(figures) // 4]


def measure(members: int, rounds: int) -> dict[str, Any]:
    """Both sides in turns."""
    text = PROGRAM.read_text()
    sides = {"without": Side(text, members), "with": Side(text + limits_text(), members)}
    random = np.random.default_rng(1)
    everybody = random.permutation(members).astype(np.uint32)
    for side in sides.values():
        side.run(everybody)
    for _ in range(rounds):
        drawn = random.integers(0, members, CHUNK, dtype=np.uint32)
        for side in sides.values():
            side.ns.append(side.run(drawn))
    plain, limited = (side.ns for side in sides.values())
    more = [b - a for a, b in zip(plain, limited, strict=True)]
    medians = [round(statistics.median(ns)) for ns in (plain, limited, more)]
    return {"members": members, "rounds": rounds, "without_ns": medians[0], "with_ns": medians[1], "more_ns": medians[2],
            "quick_more_ns": quarter(limited) - quarter(plain), "bar_ns": BAR_NS,
            "each_round": {name: side.ns for name, side in sides.items()}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--quick", action="store_true", help="2,000 members and one round")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.members < 1000 or asked.rounds < 1:
        parser.error("--members must be at least 1000, --rounds at least 1")
    found = measure(2000, 1) if asked.quick else measure(asked.members, asked.rounds)
    if asked.json:
        print(json.dumps(found))
        return 0
    table = Table("an earn in the core", "ns", "", box=None, header_style="bold")
    table.add_row("without limits", f"{found['without_ns']:,}", "the control")
    table.add_row("20 limits over 6 keys", f"{found['with_ns']:,}", f"{found['with_ns'] / found['without_ns']:.2f} x")
    verdict = "met" if found["more_ns"] <= BAR_NS else "[bold]MISSED[/]"
    table.add_row("more, median of the rounds", f"{found['more_ns']:,}", f"bar {BAR_NS:,}: {verdict}")
    table.add_row("more, quickest quarters", f"{found['quick_more_ns']:,}", "of each side")
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
