"""The open loop of tills beside heavy work of the same service: snapshots and back-ups, a storm of late receipts, a night when lots expire.

    python -m bench.beside                                  ten million members; see docs/performance.md for time and disk
    python -m bench.beside --members 20000 --seconds 5      a quick look

The loop is always the same: Poisson, `--rate` calls/s, 64 connections, three reads to a write, over all members. Each row runs it alone
first and then beside the work, on a copy of one ledger. Not for the service by itself (bench/run.py). Figures are of this machine and
moment, only the ratios travel.
"""

from __future__ import annotations

import datetime
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import zoneinfo
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from bench import _load
from bench.large import LargeLedger, LargeService
from bench.load import Plan, TargetError, digits, measure
from bench.measure import figures
from bench.open_loop import OpenLoop, between, machine_note
from bench.rows import Rows, bare_flush, both_flushes, machine, table
from bench.service import PROGRAM, ROOT, Follower, ServiceFailed
from ledger import limits, rules
from ledger.journal import JournalError

MEMBERS = 10_000_000
LOTS = 2
STORM = 1_400_000
RATE = 13_000.0
LIST_ENTRIES = 10_000
STORES = 400  # of the made-up chain
CONTROL_SHARE = 4  # the controls get a quarter of the seconds
IDLE_RATE = 200  # calls/s of the idle echo
SCRAPE_S = 1.0
WATCH_S = 0.25  # how often the follower is asked whether it writes a snapshot
THREAD_S = 0.01  # how often it is looked whether the storm is over
PATIENCE = 30  # a row that has not come to its end after so many times `seconds` and PATIENCE_S is given up
PATIENCE_S = 1800
STORM_CONNECTIONS, STORM_IN_FLIGHT = 64, 16
EXPIRING_SHARE = 10  # every tenth member has a lot that expires
LEAD_S = 1.0  # the clock is set this much before what must be measured before midnight
US = 1_000_000


class Beside:
    """One run: where it works, on which ledger, and what it found."""

    def __init__(self, folder: Path, ledger: LargeLedger, *, seconds: float, rate: float, storm: int, late_ids_max: int,
                 console: Console) -> None:
        self.folder, self.made, self.ledger, self.seconds, self.rate = folder, ledger, ledger, seconds, rate
        self.storm, self.late_ids_max, self.console = storm, late_ids_max, console
        self.warmup = min(5.0, seconds / 4)
        self.table = Rows(console)
        self.runs: dict[str, Any] = {}
        self.seed = 1

    # --- parts of rows ----------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{escape(text)}[/]")

    @contextmanager
    def service(self, **how: Any) -> Iterator[LargeService]:
        """A service on a fresh copy of the ledger, as `how` says (`LargeLedger.service`). Errors: ServiceFailed."""
        with self.made.copied(self.folder / "copy", self.console) as self.ledger, self.ledger.service(**how) as service:
            yield service

    @contextmanager
    def loop(self, service: LargeService) -> Iterator[OpenLoop]:
        """The open loop, warmed up; afterwards it must have had no errors. Errors: ServiceFailed."""
        self.seed += 1
        loop = OpenLoop(service.ports["checkout"], self.ledger.chain(service.now_s), rate=self.rate, seed=self.seed,
                        ahead_s=service.ahead_s, folder=self.folder)
        loop.processes["service"] = service.process.pid
        with loop:
            time.sleep(self.warmup)
            yield loop
        if errors := loop.errors():
            raise ServiceFailed(f"the open loop had errors: {errors}, {figures(loop.client.result())['first_messages']}")

    def until(self, seconds: float, done: Callable[[], bool], step_s: float = WATCH_S) -> None:
        """At least so long, and until that is so. Errors: ServiceFailed when it never is."""
        begun = time.monotonic()
        while time.monotonic() < begun + seconds or not done():
            if time.monotonic() > begun + PATIENCE_S + PATIENCE * seconds:
                raise ServiceFailed("the work beside the loop did not come to its end")
            time.sleep(step_s)

    def latencies(self, number: str, work: str, quiet: dict[str, Any], found: dict[str, Any], flush: dict[str, float] | None = None
                  ) -> None:
        """All percentiles of a stretch, beside those of the loop alone."""
        for call, name in (("balance", "reads"), ("earn", "writes")):
            now, before = found["calls"][call], quiet["calls"][call]
            keys = ("p50_us", "p90_us", "p99_us", "p999_us", "max_us")
            control = "alone " + " / ".join(digits(before[key]) for key in keys)
            if flush is not None and name == "writes":
                control += "; flush " + " / ".join(digits(flush[key]) for key in keys)
            self.table.add(number, f"{work}: {name} p50 / p90 / p99 / p99.9 / max", "",
                           " / ".join(digits(now[key]) for key in keys) + " ms", control, None)

    def twice(self, number: str, work: str, quiet: dict[str, Any], found: dict[str, Any], factor: float) -> None:
        """The bar on p99 against the loop alone."""
        for call, name in (("balance", "reads"), ("earn", "writes")):
            now, before = found["calls"][call]["p99_us"], quiet["calls"][call]["p99_us"]
            self.table.add(number, f"{work}: {name} p99", f"<= {factor:g} x alone", f"{now / max(1.0, before):.2f} x ({digits(now)} ms)",
                           f"alone {digits(before)} ms", now <= factor * before,
                           (machine_note(found),) if name == "reads" else ())

    # --- row 5 ------------------------------------------------------------------------------------------------------

    def row_5(self) -> None:
        control_s = self.seconds / CONTROL_SHARE
        back_ups = self.folder / "back-ups"
        before = bare_flush(self.folder, control_s)
        with self.service() as service:
            idle = measure(Plan(target=f"127.0.0.1:{service.ports['checkout']}", connections=1, in_flight=4, mix="health=1", rate=IDLE_RATE,
                                seconds=control_s, warmup=0), self.ledger.chain(service.now_s), self.console)["total"]
            with self.loop(service) as loop:
                self.say(f"5: the loop alone, {self.seconds:g} s")
                quiet = between(*loop.run(self.seconds))
                self.say("5: the follower starts")
                began = loop.moment()
                # A snapshot is due as soon as the one before is written.
                with self.ledger.follower("--snapshot-entries", "1", "--snapshot-pause", "0") as follower:
                    loop.processes["follower"] = follower.process.pid
                    self.until(0, lambda: follower.metrics()["ledger_follower_lag_seconds"] < 2)
                    starting = between(began, loop.moment())
                    self.say("5: the loop beside snapshots, back-ups, lists and scrapes")
                    with Work(self, service, follower, back_ups) as work:
                        begin = loop.moment()
                        self.until(self.seconds, work.all_done)
                        end = loop.moment()
                    done = work.told(end.at - begin.at)
        after = bare_flush(self.folder, control_s)
        shutil.rmtree(back_ups, ignore_errors=True)
        flush, found = both_flushes(before, after), between(begin, end)
        self.runs["5"] = {"alone": quiet, "the follower starts": starting, "beside": found, "work": done, "idle echo": idle,
                          "bare flush": [before, after]}
        name = "loop beside snapshots, back-up, lists, scrapes"
        reads, writes = found["calls"]["balance"], found["calls"]["earn"]
        quiet_reads, quiet_writes = quiet["calls"]["balance"], quiet["calls"]["earn"]
        self.table.add("5", f"{name}: reads p50", "<= 0.1 ms", f"{digits(reads['p50_us'])} ms",
                       f"alone {digits(quiet_reads['p50_us'])} ms, idle echo {digits(idle['p50_us'])} ms", reads["p50_us"] <= 100,
                       (f"in {found['seconds']:.0f} s: " + "; ".join(done["words"]), machine_note(found), "alone: " + machine_note(quiet)))
        bar = max(500.0, 2 * idle["p99_us"])
        self.table.add("5", f"{name}: reads p99", f"<= {digits(bar)} ms", f"{digits(reads['p99_us'])} ms",
                       f"alone {digits(quiet_reads['p99_us'])} ms, idle echo {digits(idle['p99_us'])} ms", reads["p99_us"] <= bar)
        ratio = writes["p50_us"] / flush["p50_us"]
        self.table.add("5", f"{name}: writes p50", "<= 2.5 x flush", f"{ratio:.2f} x ({digits(writes['p50_us'])} ms)",
                       f"alone {quiet_writes['p50_us'] / flush['p50_us']:.2f} x, flush {digits(flush['p50_us'])} ms", ratio <= 2.5)
        self.table.add("5", f"{name}: writes p90", "< 1 ms", f"{digits(writes['p90_us'])} ms",
                       f"alone {digits(quiet_writes['p90_us'])} ms, flush {digits(flush['p90_us'])} ms", writes["p90_us"] < 1000)
        self.latencies("5", name, quiet, found, flush)
        self.latencies("5", f"loop while the follower loads its snapshot ({starting['seconds']:.0f} s)", quiet, starting)

    # --- row 6 ------------------------------------------------------------------------------------------------------

    def row_6(self) -> None:
        with self.service() as service:
            self.storm_beside(service, f"ids in memory (--ids-max {self.ledger.ids_max:,})", batch=0)
            self.storm_beside(service, "ids in memory, as batches", batch=min(self.storm, limits.BATCH_COMMANDS_MAX))
        with self.service(ids_max=self.late_ids_max) as service:
            self.storm_beside(service, f"ids dropped (--ids-max {self.late_ids_max:,})", batch=0)

    def storm_beside(self, service: LargeService, name: str, *, batch: int) -> None:
        """The late receipts beside the loop. Bars are on single calls."""
        before = bare_flush(self.folder, self.seconds / CONTROL_SHARE)
        age = [(service.now_s - moment) / 3600 for moment in reversed(self.ledger.recent)]
        with self.loop(service) as loop:
            self.say(f"6: the loop alone, {self.seconds:g} s")
            quiet = between(*loop.run(self.seconds))
            connections, in_flight = (limits.BATCHES_PER_CONNECTION_MAX, 1) if batch else (STORM_CONNECTIONS, STORM_IN_FLIGHT)
            client = _load.Client("127.0.0.1", service.ports["checkout"], connections=connections, in_flight=in_flight,
                                  chain=self.ledger.chain(service.now_s), seed=self.seed + 1000)
            calls = -(-self.storm // batch) if batch else self.storm
            thread = threading.Thread(target=lambda: client.mix({"earn": 1.0}, seconds=0, warmup_s=0, batch=batch, calls=calls,
                                                                times=self.ledger.recent, ahead_s=service.ahead_s), daemon=True)
            self.say(f"6: {self.storm:,} receipts {age[0]:.0f} to {age[1]:.0f} hours old, {name}")
            counted = service.metrics()
            begin = loop.moment()
            thread.start()
            try:
                self.until(0, lambda: not thread.is_alive(), THREAD_S)
            finally:
                client.stop()
                thread.join()
            end = loop.moment()
            now = service.metrics()
            self.until(0, lambda: service.metrics()["ledger_parked_calls"] == 0)
        after = bare_flush(self.folder, self.seconds / CONTROL_SHARE)
        outcome, found = figures(client.result()), between(begin, end)
        entries = outcome["entries"]["count"] if batch else outcome["total"]["calls"] - outcome["total"]["refused"]
        posted = calls * batch if batch else calls
        rate = entries / outcome["measured_s"] if outcome["measured_s"] else 0.0
        changed = {key: now[key] - counted[key] for key in (
            "ledger_ids_lookups_total", "ledger_ids_lookup_duration_seconds_sum", "ledger_ids_refused_writes_total",
            "ledger_journal_sequence")}
        lookups = changed["ledger_ids_lookups_total"]
        mean_ms = changed["ledger_ids_lookup_duration_seconds_sum"] * 1000 / max(1.0, lookups)
        self.runs[f"6 {name}"] = {
            "alone": quiet, "beside": found, "storm": outcome, "metrics": changed, "age hours": age, "wanted": posted, "posted": entries,
            "lookups": lookups, "runs": now["ledger_ids_runs"], "bare flush": [before, after]}
        notes = [
            f"{entries:,} of {posted:,} posted in {outcome['measured_s']:.1f} s, {age[0]:.0f} to {age[1]:.0f} hours old; calls: "
            + ", ".join(digits(outcome["total"][key]) for key in ("p50_us", "p99_us", "max_us")) + " ms (p50, p99, max)",
            f"{lookups:,.0f} look-ups, {now['ledger_ids_runs']:,.0f} runs of {now['ledger_ids_keys']:,.0f} keys"
            + (f"; {mean_ms:.2f} ms each from parking to the runs' answer" if lookups else "")]
        if lookups > 1.02 * posted:
            notes.append("MORE LOOK-UPS THAN LATE RECEIPTS: memory has dropped receipts of today, so the loop's own writes were looked up, "
                         "too: give a larger --late-ids-max")
        if lookups == 0 and "dropped" in name:
            notes.append("NO LOOK-UPS: memory reaches back to all of the late receipts: give a smaller --late-ids-max")
        if outcome["total"]["codes"] or (batch and outcome["entries"]["refused"]):
            notes.append(f"REFUSED: {outcome['total']['codes']}, {outcome['first_messages']}")
        self.table.add("6", f"storm of {self.storm:,} late receipts, {name}", ">= 100,000/s", f"{rate:,.0f}/s",
                       "as tills send them, 64 x 16" if not batch else f"batches of {batch:,}, {connections} connections",
                       rate >= 100_000 and entries == posted, tuple(notes))
        self.twice("6", f"loop beside it, {name}", quiet, found, 2)
        self.latencies("6", f"loop beside it, {name}", quiet, found, both_flushes(before, after))

    # --- row 8 ------------------------------------------------------------------------------------------------------

    def row_8(self) -> None:
        flush_before = bare_flush(self.folder, self.seconds / CONTROL_SHARE)
        expiring = max(1, self.ledger.members // EXPIRING_SHARE)
        with self.service(moving=True) as service:
            clock = service.clock
            assert clock is not None
            lead_s = LEAD_S + self.warmup + self.seconds
            midnight, bought = next_expiry(clock.now_us() // US + lead_s)
            counted = service.metrics()
            self.ledger.post(service, self.console, f"lots of {expiring:,} members that expire at midnight", count=expiring, enroll=False,
                             earn=True, stride=EXPIRING_SHARE, times=(bought, bought + 1), ahead_s=service.ahead_s)
            given = points(service.metrics(), "issued") - points(counted, "issued")
            before, left = service.metrics(), 0.0
            self.ledger.chain(midnight - lead_s)  # takes seconds, and is kept
            clock.set(int((midnight - lead_s) * US))
            with self.loop(service) as loop:
                self.say(f"8: the loop before midnight, {self.seconds:g} s")
                begin = loop.moment()
                time.sleep(max(0.0, midnight - clock.now_us() / US))
                at_midnight = loop.moment()
                self.say("8: midnight")

                def posted() -> bool:
                    nonlocal left
                    left = given - (points(service.metrics(), "expired") - points(before, "expired"))
                    return left <= 0

                self.until(0, posted)
                done = loop.moment()
                self.say(f"8: all posted; the loop afterwards, {self.seconds:g} s")
                end = loop.run(self.seconds)[1]
                after = service.metrics()
        flush_after = bare_flush(self.folder, self.seconds / CONTROL_SHARE)
        quiet, posting, afterwards = between(begin, at_midnight), between(at_midnight, done), between(done, end)
        entries = after["ledger_expired_lots_entries_total"] - before["ledger_expired_lots_entries_total"]
        self.runs["8"] = {"before": quiet, "while lots expire": posting, "after": afterwards, "expiring": expiring, "points": given,
                          "points left": left, "entries": entries, "seconds": posting["seconds"], "bare flush": [flush_before, flush_after],
                          "midnight": midnight}
        self.table.add("8", f"lots of {expiring:,} of {self.ledger.members:,} members expire at one midnight", "stated",
                       f"posted in {posting['seconds']:.1f} s", f"{entries:,.0f} entries of ticks, {entries / posting['seconds']:,.0f}/s",
                       None, (f"{given:,.0f} points given and expired; what a write of the loop met first it posted itself",
                        "before: " + machine_note(quiet)))
        name = "loop while they are posted"
        self.twice("8", name, quiet, posting, 1.2)
        self.latencies("8", name, quiet, posting, both_flushes(flush_before, flush_after))
        self.latencies("8", "loop afterwards", quiet, afterwards)


class Work:
    """Row 5's work, from the block's begin to its end: back-ups, lists, scrapes; and it watches the follower's snapshots."""

    def __init__(self, bench: Beside, service: LargeService, follower: Follower, back_ups: Path) -> None:
        self.data, self.service, self.follower, self.back_ups = bench.ledger.data, service, follower, back_ups
        recent = datetime.datetime.fromtimestamp(sum(bench.ledger.recent) // 2, datetime.UTC)  # the day that has most of them
        self.day = recent.year * 10_000 + recent.month * 100 + recent.day
        self.lists: list[dict[str, Any]] = []
        self.scrapes: list[float] = []
        self.back_up_count, self.back_up_s, self.snapshot_s = 0, 0.0, 0.0
        self._ended = threading.Event()
        self._failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()
        self._children: list[subprocess.Popen[str]] = []
        self._threads = [threading.Thread(target=self._guard, args=(part,), name=part.__name__, daemon=True)
                         for part in (self._back_up, self._list, self._scrape, self._watch)]

    def __enter__(self) -> Work:
        self._first = self.follower.metrics()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._last = self.follower.metrics()
        self._ended.set()
        for child in self._children:
            child.terminate()
        for thread in self._threads:
            thread.join()

    def all_done(self) -> bool:
        """Whether each part has come to an end at least once. Errors: what a part failed with."""
        if not self._failures.empty():
            raise self._failures.get()
        return bool(self.back_up_count and self.lists and self.scrapes
                    and self.follower.metrics()["ledger_snapshots_total"] > self._first["ledger_snapshots_total"])

    def told(self, seconds: float) -> dict[str, Any]:
        """What was done in that time, as numbers and in `words`."""
        snapshots = self._last["ledger_snapshots_total"] - self._first["ledger_snapshots_total"]
        pages = sorted(found["first_page_ms"] for found in self.lists)
        whole = sorted(found["seconds"] for found in self.lists)
        share_snapshot, share_back_up = min(1.0, self.snapshot_s / seconds), min(1.0, self.back_up_s / seconds)
        return {
            "snapshots": snapshots, "snapshot_share": share_snapshot, "snapshot_bytes": self._last["ledger_snapshot_bytes"],
            "back_ups": self.back_up_count, "back_up_share": share_back_up, "lists": len(self.lists),
            "list_entries": [found["entries"] for found in self.lists], "first_page_ms": pages, "list_seconds": whole,
            "scrapes": len(self.scrapes),
            "words": [
                f"{snapshots:.0f} snapshots of {self._last['ledger_snapshot_bytes'] / 1e6:,.0f} MB ended, one was written "
                f"{share_snapshot:.0%} of the time",
                f"{self.back_up_count} back-ups ended, one ran {share_back_up:.0%} of the time",
                f"{len(self.lists)} lists of {LIST_ENTRIES:,} entries, {whole[len(whole) // 2]:.2f} s each (first page "
                f"{pages[len(pages) // 2]:.1f} ms)",
                f"{len(self.scrapes)} scrapes, {sorted(self.scrapes)[len(self.scrapes) // 2] * 1000:.1f} ms each",
            ],
        }

    def _guard(self, part: Callable[[], None]) -> None:
        try:
            part()
        except BaseException as error:  # all_done raises it
            self._failures.put(error)

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-m", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, text=True)
        self._children.append(child)
        if self._ended.is_set():
            child.terminate()  # the end may have come before it was in the list
        return child

    def _back_up(self) -> None:
        while not self._ended.is_set():
            begun = time.monotonic()
            child = self._start("server", "backup", str(self.data), "--to", str(self.back_ups / str(self.back_up_count)))
            said = child.communicate()[0]
            self.back_up_s += time.monotonic() - begun
            if self._ended.is_set():
                return
            if child.returncode:
                raise ServiceFailed(f"the back-up failed: {said}")
            shutil.rmtree(self.back_ups / str(self.back_up_count))
            self.back_up_count += 1

    def _list(self) -> None:
        child = self._start("bench.lists", str(self.follower.ports["control"]), str(LIST_ENTRIES), str(self.day), str(STORES))
        assert child.stdout is not None
        last = ""
        for last in child.stdout:
            if last.startswith("{"):
                self.lists.append(json.loads(last))
        child.wait()
        if not self._ended.is_set():
            raise ServiceFailed(f"the reader of lists ended: {last}")

    def _scrape(self) -> None:
        while not self._ended.is_set():
            begun = time.monotonic()
            self.service.metrics()
            self.scrapes.append(time.monotonic() - begun)
            self._ended.wait(max(0.0, SCRAPE_S - self.scrapes[-1]))

    def _watch(self) -> None:
        at = time.monotonic()
        while not self._ended.wait(WATCH_S):
            writing = self.follower.metrics()["ledger_snapshot_writing"]
            self.snapshot_s += (time.monotonic() - at) * writing
            at = time.monotonic()


def next_expiry(from_s: float) -> tuple[int, int]:
    """A midnight of the programme's zone after that time, and a moment of purchase whose lot expires at it. Seconds since 1970."""
    zone = zoneinfo.ZoneInfo(rules.compile_file(PROGRAM).program.zone)
    day = datetime.datetime.fromtimestamp(from_s, zone).date() + datetime.timedelta(days=1)
    if (day.month, day.day) == (2, 29):
        day += datetime.timedelta(days=1)  # nothing lives for twelve months up to a leap day
    midnight = datetime.datetime.combine(day, datetime.time(), zone)
    bought = datetime.datetime.combine(day.replace(year=day.year - 1), datetime.time(12), zone)
    return int(midnight.timestamp()), int(bought.timestamp())


def points(metrics: dict[str, float], what: str) -> float:
    """Of all wallets, since the journal's begin."""
    return sum(value for name, value in metrics.items() if name.startswith((f"ledger_{what}_points_total{{", f"ledger_{what}_points{{")))


def main(
    seconds: Annotated[float, typer.Option(metavar="S", help="How long the loop runs alone, and at least beside the work.")] = 60.0,
    members: Annotated[int, typer.Option(metavar="N", help="Members, with a card and a phone each; the canonical run has ten million.")
                       ] = MEMBERS,
    lots: Annotated[int, typer.Option(metavar="N", help="Lots each.")] = LOTS,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where all is made; its disk is measured.")] = Path("build/beside"),
    keep: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the ledger there, or use the one that is: making it takes minutes.")
                    ] = None,
    only: Annotated[str, typer.Option(metavar="N,N", help="Only these rows.")] = "5,6,8",
    storm: Annotated[int, typer.Option(metavar="N", help="Row 6: late receipts.")] = STORM,
    late_ids_max: Annotated[int, typer.Option(metavar="N", help="Row 6: --ids-max of the service that has dropped ids of one to two days "
                                              "ago. 0: half as much again as the storm, at most a quarter of the "
                                              "members.")] = 0,
    rate: Annotated[float, typer.Option(metavar="CALLS_PER_S", help="Of the loop; the canonical run has 13,000.")] = RATE,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where to write all figures.")] = None,
) -> None:
    """Measure the open loop of tills beside heavy work of the same service.

    Row 5: the follower writes snapshots, a back-up runs, lists are read, /metrics is scraped. Row 6: a storm of late receipts. Row 8: lots
    of every tenth member expire at one midnight. Leave the machine alone meanwhile.

    Example, a quick look:

        python -m bench.beside --seconds 5 --members 20000 --storm 20000
    """
    console = Console(highlight=False)
    known = {"5": Beside.row_5, "6": Beside.row_6, "8": Beside.row_8}
    wanted = set(only.split(","))
    if not wanted <= set(known):
        raise typer.BadParameter(f"must be among {','.join(known)}; was {only!r}", param_hint="--only")
    for option, value, low, high in (("--seconds", seconds, 0.5, 3600), ("--members", members, 100, 80_000_000), ("--lots", lots, 1, 12),
                                     ("--storm", storm, 1, 100_000_000), ("--late-ids-max", late_ids_max, 0, limits.IDS_MAX_LIMIT),
                                     ("--rate", rate, 1, 1_000_000)):
        if not low <= value <= high:
            raise typer.BadParameter(f"must be {low}..{high}; was {value}", param_hint=option)
    folder = Path(os.path.abspath(folder))
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"must be new or empty; {folder} is not (a run that was cut short?): remove it", param_hint="--folder")
    home = folder / "ledger" if keep is None else Path(os.path.abspath(keep))
    kept = LargeLedger.open(home)
    if kept is None and home.exists() and any(home.iterdir()):
        raise typer.BadParameter(f"must be new, empty, or made by this bench; {home} is not (a run that was cut short?): remove it",
                                 param_hint="--keep")
    if kept is not None and (kept.members, kept.lots) != (members, lots):
        raise typer.BadParameter(f"has {kept.members} members with {kept.lots} lots; wanted were {members} with {lots}",
                                 param_hint="--keep")
    folder.mkdir(parents=True, exist_ok=True)
    about = machine(folder)
    console.print("; ".join(f"{key} {value}" for key, value in about.items()))
    if seconds < 60 or members != MEMBERS or storm != STORM or rate != RATE:
        console.print(f"[yellow]not the canonical run, which has 60 s, {MEMBERS:,} members, a storm of {STORM:,}, {RATE:,.0f} calls/s[/]")
    begun = time.monotonic()
    try:
        ledger = kept or LargeLedger.make(home, members, lots, console)
        made_s = time.monotonic() - begun
        bench = Beside(folder, ledger, seconds=seconds, rate=rate, storm=storm, console=console,
                       late_ids_max=late_ids_max or max(1000, min(storm + storm // 2, members // 4)))
        for name, row in known.items():
            if name in wanted:
                row(bench)
    except (ServiceFailed, TargetError, JournalError) as error:
        console.print(f"[bold red]bench:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    rows = sorted(bench.table.rows, key=lambda row: row["row"])
    console.print(table(rows))
    size = sum(path.stat().st_blocks * 512 for path in home.rglob("*") if path.is_file())
    target = json_file or folder.with_name(folder.name + ".json")
    target.write_text(json.dumps({
        "machine": about, "seconds": seconds, "members": members, "lots": lots, "storm": storm, "rate": rate, "rows": rows,
        "ledger": {"made_s": round(made_s, 1), "bytes": size, **json.loads((home / "beside.json").read_text())}, "runs": bench.runs,
    }, indent=1, default=str) + "\n")
    console.print(f"the ledger took {made_s:.0f} s to make or find and has {size / 1e9:.2f} GB; all figures: {target}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("beside")(main)
    app()
