"""A soak: the open loop of the spine for half an hour, past many snapshots, generations of ids and turns of the tail.

    python -m bench.soak                        30 minutes; writes build/soak.jsonl and build/soak.svg
    python -m bench.soak --minutes 2            a look at it

Every 10 s one line of JSON: latencies of reads and writes (differences of histograms, so nothing is forgotten), the memory of service and
follower, the drain's and the follower's lag, what happened so far, and beside it the disk's own flush: a lone file that is written and
flushed twenty times a second. At the end a picture, and whether p99.9 and memory stayed flat over the second half. The business day goes on
during the run, as a chain's does, so that today's receipts are always in memory. The figures are of one machine and moment.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import _load
from bench.followed import Pair, Samples, followed, memory_bytes, row, tail_turns
from bench.load import Plan, TargetError, describe_ends, digits, prepare
from bench.measure import PERCENTILES, figures, percentile_us
from bench.rows import machine, table
from bench.service import ServiceFailed
from bench.soak_plot import draw, read
from ledger import limits

MIX = "earn=1,balance=3"
WRITE_SHARE = 0.25
CALLS = {"writes": "earn", "reads": "balance"}
CONNECTIONS, IN_FLIGHT = 64, 16
WARMUP_S = 5.0
GRACE_S = 60.0  # for the last answers
DAYS_MAX = 390  # programs/base.yaml takes receipts of 400 days
DAY_SHARE = 0.75  # of --ids-max are a business day
FLUSH_EVERY_S = 0.05
FLUSH_BYTES = limits.TAIL_BLOCK_BYTES
FLUSH_FILE_BYTES = 1 << 20
TOLD_EVERY_S = 60
LOOK_S = 0.25  # between two looks at whether the day is over
LATENCY_GROWTH_MAX = 0.20  # of its mean, over the second half
MEMORY_GROWTH_MAX = 0.02
MEMORY_GROWTH_BYTES = 16 << 20  # the follower's young index comes and goes by half of it
SLOTS_MIN = 8  # of the second half: below it a slope says nothing
MIB = 2**20


@dataclass(frozen=True)
class Trend:
    """How a figure grows over time. Units: the figure's own, over the whole stretch."""

    middle: float  # its median
    growth: float
    error: float  # the growth may be so much larger or smaller by chance (95 %)

    def flat(self, tolerance: float) -> bool | None:
        """True: it grew by no more; False: by more; None: by more, but that cannot be told from chance."""
        if self.growth <= tolerance:
            return True
        return None if self.growth - self.error <= 0 else False


def trend(times: list[float], values: list[float]) -> Trend:
    """The median of the slopes between all pairs of points (Theil, Sen): a few slots in which the disk stood still do not move it, as they
    move a line of least squares. At least three points."""
    x, y = np.asarray(times), np.asarray(values)
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    span, count = float(x[-1] - x[0]), len(x)
    apart = 1.96 * np.sqrt(count * (count - 1) * (2 * count + 5) / 18)  # Sen 1968: of the pairs that rise less those that fall
    low = slopes[max(0, int((len(slopes) - apart) / 2))]
    high = slopes[min(len(slopes) - 1, int((len(slopes) + apart) / 2))]
    return Trend(float(np.median(y)), float(np.median(slopes)) * span, float(high - low) / 2 * span)


class DiskAlone:
    """Writes and flushes one block of a lone file again and again, with long pauses: what the disk does by itself meanwhile."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._took_us: list[float] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.pwrite(self._fd, bytes(FLUSH_FILE_BYTES), 0)
        os.fsync(self._fd)
        self._thread.start()

    def _run(self) -> None:
        block, offset = b"\x5a" * FLUSH_BYTES, 0
        while not self._stopping.wait(FLUSH_EVERY_S):
            began = time.perf_counter_ns()
            os.pwrite(self._fd, block, offset)
            os.fdatasync(self._fd)
            self._took_us.append((time.perf_counter_ns() - began) / 1000)
            offset = (offset + FLUSH_BYTES) % FLUSH_FILE_BYTES

    def take(self) -> dict[str, float]:
        """The figures since the last time."""
        took, self._took_us = sorted(self._took_us), []
        if not took:
            return {"count": 0, "p50_us": 0.0, "p99_us": 0.0, "max_us": 0.0}
        return {"count": len(took), **{name: round(took[min(len(took) - 1, int(share * len(took)))], 1)
                                       for name, share in (("p50_us", 0.5), ("p99_us", 0.99), ("max_us", 1.0))}}

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._fd)
        self._path.unlink()


class Days:
    """Which business day it is: the next one whenever so many receipts were sent that memory would forget the day's first."""

    def __init__(self, ids_max: int, writes: float) -> None:
        self._entries = max(1, int(ids_max * DAY_SHARE))
        self.count = int(writes / self._entries) + 2
        self._first = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=self.count)

    def at(self, writes: int) -> int:
        day = min(self._first + datetime.timedelta(days=writes // self._entries), datetime.datetime.now(datetime.UTC).date())
        return day.year * 10_000 + day.month * 100 + day.day


def latencies(histogram: np.ndarray) -> dict[str, float]:
    """Calls and percentiles of a stretch of time; max is the upper end of the highest bucket (0.8 %)."""
    return {"calls": int(histogram.sum()), **{name: round(percentile_us(histogram, share), 1) for name, share in PERCENTILES.items()},
            "max_us": round(percentile_us(histogram, 1.0), 1)}


def counts(own: Samples, follower: Samples) -> dict[str, float]:
    """What happened since the starts. A generation of ids is two runs: its request ids' and its receipt keys'."""
    return {"snapshots": follower["ledger_snapshots_total"], "id_runs": own["ledger_ids_runs"] / 2, "tail_turns": tail_turns(own),
            "lookups": own["ledger_ids_lookups_total"]}


class Soak:
    """One run: drives the service, and tells what it sees slot by slot. `slots` holds them all."""

    def __init__(self, plan: Plan, slot_s: float, days: Days, pair: Pair, disk: DiskAlone) -> None:
        self.plan, self.slot_s, self.days, self.pair, self.disk = plan, slot_s, days, pair, disk
        self.slots: list[dict[str, Any]] = []
        self.outcome: dict[str, Any] = {}
        self._seen = {name: np.zeros(len(_load.bucket_limits_ns()), dtype=np.uint64) for name in CALLS}

    def run(self, chain: _load.Chain) -> Iterator[dict[str, Any]]:
        """Each slot as it ends. Errors: ServiceFailed, TargetError."""
        host, port = self.plan.address
        plan = self.plan
        client = _load.Client(host, port, connections=plan.connections, in_flight=plan.in_flight, chain=chain, seed=plan.seed)
        client.set_day(self.days.at(0))
        self._before = counts(*self.pair.samples())
        thread = threading.Thread(target=lambda: client.mix(plan.weights, seconds=plan.seconds, warmup_s=plan.warmup, rate=plan.rate,
                                                            grace_s=GRACE_S))
        self._began = time.monotonic() + plan.warmup
        self._slot_began = self._began
        thread.start()
        try:
            self.disk.take()
            while thread.is_alive():
                until = min(self._slot_began + self.slot_s, self._began + self.plan.seconds)
                while thread.is_alive() and time.monotonic() < until:
                    thread.join(min(LOOK_S, max(0.01, until - time.monotonic())))
                    client.set_day(self.days.at(int(self._counted(client, "writes").sum())))
                    self.pair.alive()
                if time.monotonic() >= self._began + self.plan.seconds:
                    thread.join()  # the last answers belong to the last slot
                yield self._slot(client)
        finally:
            client.stop()
            thread.join()
        self.outcome = figures(client.result())
        if self.outcome["total"]["errors"]:
            raise TargetError(f"the soak met errors: {describe_ends(self.outcome)}")

    def _counted(self, client: _load.Client, name: str) -> np.ndarray:
        return client.histogram(_load.METHODS[CALLS[name]])

    def _slot(self, client: _load.Client) -> dict[str, Any]:
        now = time.monotonic()
        slot: dict[str, Any] = {"t": round(now - self._began, 2), "seconds": round(now - self._slot_began, 2)}
        self._slot_began = now
        for name in CALLS:
            counted = self._counted(client, name)
            slot[name] = latencies(counted - self._seen[name])
            self._seen[name] = counted
        own, follower = self.pair.samples()
        slot |= {name: round(count - self._before[name], 2) for name, count in counts(own, follower).items()}
        slot |= {
            "flush": self.disk.take(),
            "memory": {name: memory_bytes(getattr(self.pair, name).process.pid) for name in ("service", "follower")},
            "drain_lag_s": round(own["ledger_drain_lag_seconds"], 3), "follower_lag_s": round(follower["ledger_follower_lag_seconds"], 3),
            "snapshot_writing": int(follower["ledger_snapshot_writing"]), "sequence": int(own["ledger_journal_sequence"]),
        }
        self.slots.append(slot)
        return slot


def judge(slots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The verdicts over the second half, as rows of a table."""
    half = slots[len(slots) // 2:]
    stretch = f"over the {len(half)} slots of the second half"
    if len(half) < SLOTS_MIN:
        return [row("soak", f"p99.9 and memory stay flat, {stretch}", "", "too few to say", f"at least {SLOTS_MIN} are needed", None)]
    times = [slot["t"] for slot in half]
    rows = []
    for name in CALLS:
        found = trend(times, [slot[name]["p999_us"] for slot in half])
        part = max(found.middle, 1e-9)
        flat = found.flat(LATENCY_GROWTH_MAX * found.middle)
        rows.append(row("soak", f"{name}: p99.9 stays flat, {stretch}", f"grows <= {LATENCY_GROWTH_MAX:.0%}",
                        f"{found.growth / part:+.1%} +- {found.error / part:.1%} of {digits(found.middle)} ms", said(flat), flat))
    for name in ("service", "follower"):
        found = trend(times, [slot["memory"][name]["own"] for slot in half])
        tolerance = max(MEMORY_GROWTH_MAX * found.middle, MEMORY_GROWTH_BYTES)
        flat = found.flat(tolerance)
        rows.append(row("soak", f"{name}: memory stays flat, {stretch}", f"grows <= {tolerance / MIB:.0f} MiB",
                        f"{found.growth / MIB:+.1f} +- {found.error / MIB:.1f} of {found.middle / MIB:,.0f} MiB", said(flat), flat))
    return rows


def said(flat: bool | None) -> str:
    return "cannot be told from chance (95 %)" if flat is None else ""


def whole(outcome: dict[str, Any], slots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The run as a whole, as rows of a table."""
    middle, longest = float(np.median([slot["flush"]["p50_us"] for slot in slots])), max(slot["flush"]["max_us"] for slot in slots)
    rows = []
    for name, call in CALLS.items():
        found = outcome["calls"].get(call)
        if found:
            rows.append(row("soak", f"{name}: p50, p99, p99.9, max of {found['calls']:,}", "stated",
                            ", ".join(digits(found[key]) for key in ("p50_us", "p99_us", "p999_us", "max_us")) + " ms",
                            f"the disk's own flush: p50 {digits(middle)}, max {digits(longest)} ms", None))
    last = slots[-1]
    rows.append(row("soak", "what it passed", "many", f"{last['snapshots']:.0f} snapshots, {last['id_runs']:.0f} generations of ids, "
                    f"{last['tail_turns']:.0f} turns of the tail",
                    f"longest drain lag {max(slot['drain_lag_s'] for slot in slots):.2f} s, {last['lookups']:,.0f} look-ups", None))
    return rows


def line_of(slot: dict[str, Any]) -> str:
    """A slot for people."""
    writes, reads, disk, memory = (slot[name] for name in ("writes", "reads", "flush", "memory"))
    return (f"{slot['t'] / 60:6.1f} min  writes p50 {digits(writes['p50_us'])} p99 {digits(writes['p99_us'])} "
            f"p99.9 {digits(writes['p999_us'])} max {digits(writes['max_us'])}  reads p50 {digits(reads['p50_us'])} "
            f"p99.9 {digits(reads['p999_us'])}  disk {digits(disk['p50_us'])} max {digits(disk['max_us'])} ms  "
            f"{memory['service']['own'] / MIB:,.0f} + {memory['follower']['own'] / MIB:,.0f} MiB  "
            f"{slot['snapshots']:.0f} snapshots, {slot['id_runs']:.0f} generations, {slot['tail_turns']:.0f} turns")


def main(
    minutes: Annotated[float, typer.Option(metavar="M", help="How long.")] = 30.0,
    rate: Annotated[float, typer.Option(metavar="CALLS_PER_S", help="Calls that arrive each second, a quarter of them earns.")] = 13_000.0,
    members: Annotated[int, typer.Option(metavar="N", help="Members of the made-up chain.")] = 1_000_000,
    ids_max: Annotated[int, typer.Option("--ids-max", metavar="N", help="As of `daybook serve`; small: generations change often.")
                       ] = 400_000,
    snapshot_entries: Annotated[int, typer.Option("--snapshot-entries", metavar="N", help="Entries between two snapshots; in any case "
                                                  "at least a minute is between them.")] = 100_000,
    slot: Annotated[float, typer.Option(metavar="S", help="Seconds of a line and of a point of the plot.")] = 10.0,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the ledger is made; its disk is measured.")] = Path("build/soak"),
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The lines, as it goes. Default: DIR.jsonl")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="The picture, as SVG. Default: DIR.svg")] = None,
) -> None:
    """Keep a service under a steady open loop for long, and see whether anything changes."""
    console = Console(highlight=False)

    def refuse(option: str, rule: str) -> typer.BadParameter:
        return typer.BadParameter(rule, param_hint=f"--{option}")

    for option, value, least, most in (
            ("minutes", minutes, 0.02, 10_000), ("rate", rate, 1, 1_000_000), ("members", members, 1, limits.MEMBERS_MAX_LIMIT - 1000),
            ("ids-max", ids_max, 100, limits.IDS_MAX_LIMIT), ("slot", slot, 0.5, 3600), ("snapshot-entries", snapshot_entries, 1, 10**12)):
        if not least <= value <= most:
            raise refuse(option, f"must be {least:,}..{most:,}; was {value:,}")
    days = Days(ids_max, (minutes * 60 + WARMUP_S) * rate * WRITE_SHARE)
    if days.count > DAYS_MAX:
        raise refuse("ids-max", f"is too small: it would take {days.count:,} business days, and {DAYS_MAX} are there; was {ids_max:,}")
    if importlib.util.find_spec("matplotlib") is None:
        console.print("[bold red]bench:[/] the package matplotlib is missing: pip install 'daybook\\[bench]'")
        raise typer.Exit(1)
    folder = Path(os.path.abspath(folder))
    if folder.exists() and any(folder.iterdir()):
        raise refuse("folder", f"must be new or empty; {folder} is not (a run that was cut short?): remove it")
    folder.mkdir(parents=True, exist_ok=True)
    lines_file, plot_file = json_file or folder.with_name(folder.name + ".jsonl"), plot or folder.with_name(folder.name + ".svg")
    about = machine(folder)
    console.print("; ".join(f"{key} {value}" for key, value in about.items()))
    head = {"machine": about, "minutes": minutes, "rate": rate, "members": members, "ids_max": ids_max,
            "snapshot_entries": snapshot_entries, "slot": slot, "mix": MIX}
    plan = Plan(target="", connections=CONNECTIONS, in_flight=IN_FLIGHT, seconds=minutes * 60, warmup=min(WARMUP_S, minutes * 60),
                rate=rate, mix=MIX, members=members)
    try:
        with lines_file.open("w") as lines:
            rows = _run(plan, days, folder, head, lines, console)
    except (ServiceFailed, TargetError) as error:
        console.print(f"[bold red]bench:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    draw(*read(lines_file), plot_file)
    console.print(table(rows))
    console.print(f"all figures: {lines_file}; the picture: {plot_file}", soft_wrap=True)
    shutil.rmtree(folder)


def _run(plan: Plan, days: Days, folder: Path, head: dict[str, Any], lines: Any, console: Console) -> list[dict[str, Any]]:
    def tell(**what: Any) -> None:
        lines.write(json.dumps(what) + "\n")
        lines.flush()

    tell(head=head)
    with followed(folder / "data", members_max=plan.members + 1000, ids_max=head["ids_max"],
                  snapshot_entries=head["snapshot_entries"]) as pair:
        plan = replace(plan, target=f"127.0.0.1:{pair.service.ports['checkout']}")
        chain = _load.Chain(members=plan.members, skew=plan.skew, seed=plan.seed, currency=plan.currency, business_day=days.at(0))
        prepare(plan, chain, console, earn=False)
        with console.status("waiting for the follower"):
            pair.settle()
        disk = DiskAlone(folder / "flush")
        try:
            soak = Soak(plan, head["slot"], days, pair, disk)
            columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            told = 0.0
            with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
                task = progress.add_task("warming up", total=plan.seconds)
                for slot in soak.run(chain):
                    tell(slot=slot)
                    progress.update(task, completed=slot["t"], description=line_of(slot)[12:])
                    if slot["t"] - told >= TOLD_EVERY_S - head["slot"] / 2:
                        told = slot["t"]
                        console.print(line_of(slot), soft_wrap=True)
        finally:
            disk.stop()
    rows = [*whole(soak.outcome, soak.slots), *judge(soak.slots)]
    tell(total=soak.outcome, rows=rows)
    return rows


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("soak")(main)
    app()
