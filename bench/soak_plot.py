"""The picture of a soak: latency and memory over time, and when snapshots, generations of ids and the tail's turns came.

    python -m bench.soak_plot build/soak.jsonl docs/soak.svg

The only importer of matplotlib. Not for measuring (bench/soak.py, which calls this at its end).
"""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

PERCENTILES = (("p999_us", "p99.9", "#b2182b"), ("p99_us", "p99", "#ef8a62"), ("p50_us", "p50", "#2166ac"))
DISK = "#b8b8b8"
EVENTS = (("snapshots", "snapshot written"), ("id_runs", "generation of ids written"), ("tail_turns", "tail turned over"))
STYLE = {
    "svg.fonttype": "none", "svg.hashsalt": "daybook", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.6, "legend.frameon": False,
    "axes.titlesize": 10, "axes.titlelocation": "left", "path.simplify": True,
}
MIB = 2**20


def events(slots: list[dict[str, Any]], name: str) -> list[float]:
    """The minutes in whose slot the count went up, one for each."""
    minutes, before = [], 0
    for slot in slots:
        new = int(slot[name]) - before
        # Several in a slot stand beside each other, evenly.
        minutes += [(slot["t"] - slot["seconds"] * (new - i - 0.5) / new) / 60 for i in range(new)]
        before = int(slot[name])
    return minutes


def draw(head: dict[str, Any], slots: list[dict[str, Any]], target: Path) -> None:
    """Write the plot as SVG. The same figures give the same bytes. Errors: ModuleNotFoundError without matplotlib."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, NullFormatter

    with pyplot.rc_context(STYLE):
        figure, (writes, reads, memory, marks) = pyplot.subplots(
            4, 1, sharex=True, figsize=(9, 8.2), height_ratios=(3, 3, 1.6, 0.9), layout="constrained")
        minutes = [slot["t"] / 60 for slot in slots]
        for axes, name, title in ((writes, "writes", "EarnPoints, durable"), (reads, "reads", "GetBalance")):
            for key, label, colour in PERCENTILES:
                axes.plot(minutes, [slot[name][key] / 1000 for slot in slots], color=colour, linewidth=1.2, label=label)
            axes.set(title=title, ylabel="ms", yscale="log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        writes.plot(minutes, [max(slot["flush"]["max_us"], 1) / 1000 for slot in slots], color=DISK, linewidth=0.8, zorder=1,
                    label="longest of the disk's own flushes")
        for axes, count in ((writes, 4), (reads, 3)):
            axes.legend(loc="lower left", bbox_to_anchor=(0.35, 1.0), ncols=count, borderaxespad=0, handlelength=1.4, columnspacing=1.2)
        for name, colour in (("service", "#2166ac"), ("follower", "#5aae61")):
            memory.plot(minutes, [slot["memory"][name]["own"] / MIB for slot in slots], color=colour, linewidth=1.2, label=name)
        memory.set(title="memory", ylabel="MiB")
        memory.set_ylim(bottom=0)
        memory.legend(loc="lower left", bbox_to_anchor=(0.35, 1.0), ncols=2, borderaxespad=0, handlelength=1.4)
        for place, (name, label) in enumerate(EVENTS):
            at = events(slots, name)
            # One path of many strokes: an SVG with an element for each would be three times as large.
            marks.plot([x for minute in at for x in (minute, minute, math.nan)], [-place + y for _ in at for y in (-0.3, 0.3, math.nan)],
                       color="#444444", linewidth=0.8)
            marks.text(1.005, -place, f"{label} ({len(at)})", transform=marks.get_yaxis_transform(), va="center", fontsize=8)
        marks.set(ylim=(1 - len(EVENTS) - 0.6, 0.6), yticks=[], xlabel="minutes")
        marks.grid(visible=False)
        marks.spines["left"].set_visible(False)
        marks.set_xlim(0, max(minutes))
        figure.suptitle(f"{head['rate']:,.0f} calls/s for {head['minutes']:g} minutes, 3 reads to 1 write, {head['members']:,} members; "
                        f"each point is {head['slot']:g} s", x=0.01, ha="left", fontsize=10.5)
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    # Hundredths of a point are enough.
    target.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", target.read_text()))


def read(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The lines of a soak: its head and its slots, also of one that still runs."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return rows[0]["head"], [row["slot"] for row in rows if "slot" in row]


if __name__ == "__main__":
    match sys.argv[1:]:
        case [source, target_name]:
            draw(*read(Path(source)), Path(target_name))
        case _:
            sys.exit("usage: python -m bench.soak_plot FILE.jsonl FILE.svg")
