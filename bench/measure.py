"""Figures out of what was counted: percentiles, one row per call, the JSON of `daybook load`.

Not for counting (bench/_load.pyx) and not for printing (bench/load.py, bench/run.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bench import _load

LIMITS_NS = _load.bucket_limits_ns()
PERCENTILES = {"p50_us": 0.5, "p90_us": 0.9, "p99_us": 0.99, "p999_us": 0.999}


def percentile_us(histogram: np.ndarray, share: float, max_ns: int | None = None) -> float:
    """The latency that `share` of the calls did not exceed, in microseconds (upper end of its bucket, never above max_ns)."""
    total = int(histogram.sum())
    if total == 0:
        return 0.0
    rank = max(1, int(np.ceil(share * total)))
    value = int(LIMITS_NS[int(np.searchsorted(np.cumsum(histogram), rank))])
    return (value if max_ns is None else min(value, max_ns)) / 1000


def row(histogram: np.ndarray, sum_ns: int, max_ns: int, seconds: float, codes: dict[str, int], refused: int) -> dict[str, Any]:
    """One row: rate, ends and latencies. Units: us; `calls` were served (OK or refused by the ledger), `errors` were not."""
    calls = int(histogram.sum())
    return {
        "calls": calls,
        "calls_per_second": round(calls / seconds, 1) if seconds else 0.0,
        "errors": sum(codes.values()) - refused,
        "refused": refused,
        "mean_us": round(sum_ns / calls / 1000, 1) if calls else 0.0,
        **{name: round(percentile_us(histogram, share, max_ns), 1) for name, share in PERCENTILES.items()},
        "max_us": round(max_ns / 1000, 1),
        "codes": codes,
    }


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run (`_load.Client.result`): `total`, `calls` by name, and what concerns the run as a whole."""
    calls, seconds = result["calls"], result["measured_s"]
    codes: dict[str, int] = {}
    for call in calls.values():
        for code, count in call["codes"].items():
            codes[code] = codes.get(code, 0) + count
    if result["unsent"]:
        codes["UNSENT"] = result["unsent"]
    histogram = sum((call["histogram"] for call in calls.values()), np.zeros(len(LIMITS_NS), dtype=np.uint64))
    queueing = result["queueing"]
    return {
        "total": row(histogram, sum(call["sum_ns"] for call in calls.values()), max((call["max_ns"] for call in calls.values()), default=0),
                     seconds, codes, sum(call["refused"] for call in calls.values())),
        "calls": {
            name: row(call["histogram"], call["sum_ns"], call["max_ns"], seconds, call["codes"], call["refused"])
            for name, call in calls.items()
        },
        "measured_s": round(seconds, 3),
        # Open loop: how long arrivals waited in the generator, its own lateness included. It is part of the latencies above.
        "queueing": {
            **{name: round(percentile_us(queueing["histogram"], share, queueing["max_ns"]), 1) for name, share in PERCENTILES.items()},
            "max_us": round(queueing["max_ns"] / 1000, 1),
        } if queueing["count"] else None,
        # Batches: what became of their commands, whose number is above that of the calls.
        "entries": {"count": result["entries"], "per_second": round(result["entries"] / seconds, 1) if seconds else 0.0,
                    "refused": result["entries_refused"]} if result["entries"] or result["entries_refused"] else None,
        "connects_failed": result["connects_failed"],
        "retried": result["retried"],
        "reasons": result["reasons"],
        "first_messages": {code: f"{call}: {text}" for code, (call, text) in result["messages"].items()},
    }
