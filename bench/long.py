"""A long journal: whether 200 million entries make anything slower that was quick with one million, and what they take on disk.

    python -m bench.long                        200 million entries of receipts without lines: about 50 GB
    python -m bench.long --entries 5000000      a look at it

Fills a journal by BatchPost, the follower and its index beside it. With the first million entries and with the last it takes the flush of
a group under the same small open loop, the bare flush of the same minute, and first pages of ListEntries. The receipts' business days go on
as the journal fills, as a chain's do: a receipt of today is always in memory. The figures are of one machine and moment.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench import _flush, _load
from bench.followed import Pair, disk_bytes, followed, row
from bench.load import TargetError, describe_ends, digits, drive
from bench.measure import figures, percentile_us
from bench.rows import machine, table
from bench.service import PROGRAM, ROOT, ServiceFailed
from ledger import limits, rules
from server._pb.loyalty.ledger.v1 import journal_pb2, journal_pb2_grpc, ledger_pb2

ENTRIES = 200_000_000
CONNECTIONS = 8
BATCH = limits.BATCH_COMMANDS_MAX
LINES = (0, 6)  # what the generator's receipts can have
STORES = 400
DAYS_MAX = 390  # programs/base.yaml takes receipts of 400 days
DAY_SHARE = 4  # of --ids-max, three quarters are a business day: all of today's receipts are in memory
LOOP_RATE = 200  # writes/s of the small open loop
SCRAPE_S = 0.1  # twenty of its groups
LOOP_WARM_S = 0.5
LOOP_CONNECTIONS = 4
GRACE_S = 60.0  # for the last answers
ROUNDS = 3  # the disk changes from minute to minute: loop and bare flush in turns
BARE_FILE_BYTES = limits.TAIL_BYTES_MIN
PAGE_MS_MAX = 2.0
FLUSH_DRIFT_MAX = 0.10
LIST_WARM = 10  # requests that are not counted: the connection, the first Python code
KEY_DISK_BYTES = 29  # an id or a receipt key in a run (docs/operations.md: 28.2)
INDEX_ENTRY_BYTES = 44  # 32, and a third more while the largest files are merged
SNAPSHOT_KEY_BYTES = 28
SNAPSHOT_MEMBER_BYTES = 100
JOURNAL_SHARE = 1.05  # LMDB's pages are not all full, and some are free
SNAPSHOTS = 3  # two kept, one being written
SPARE_BYTES = 2 << 30  # the service's own reserve, and the file system's books
REFUSED_PAUSE_S = 0.5  # refused commands: the disk is behind


class DoesNotFit(Exception):
    """There is not enough room; the text says how much is needed."""


# --- room -----------------------------------------------------------------------------------------------------------

def entry_bytes(lines: int) -> float:
    """The bytes of an earn's entry, its share of a group's header included: measured on a ledger in memory."""
    from server._local import LocalLedger

    program = rules.compile_file(PROGRAM)
    now_us = time.time_ns() // 1000
    ledger = LocalLedger(program.image, program.source, now_us, members_max=1000, ids_max=10_000)
    chain = _load.Chain(members=10, skew=0, seed=1, currency="USD", business_day=int(datetime.date.today().strftime("%Y%m%d")))
    samples = (_load.sample_requests(chain, {"earn": 1}, 220, seed=1) if lines else
               [sample for sample in _load.sample_requests(chain, {"earn": 1}, 440, seed=1, prepare=True) if sample[0] == "earn"])
    for _, request in samples:
        code, _, _ = ledger.call(_load.METHODS["earn"], request, now_us)
        assert code == 0, ledger.outcome()
    sizes = [len(entry) for entry in ledger.entries()[-200:]]
    return sum(sizes) / len(sizes) + 128 / BATCH


def room(entries: int, lines: int, members: int, ids_max: int) -> dict[str, int]:
    """Bytes on disk by what takes them, at most."""
    each = entry_bytes(lines)
    remembered = min(entries, ids_max * 3 // 2)
    snapshot = members * SNAPSHOT_MEMBER_BYTES + 2 * remembered * SNAPSHOT_KEY_BYTES
    return {"journal": int(entries * each * JOURNAL_SHARE), "index": entries * INDEX_ENTRY_BYTES, "ids": 2 * entries * KEY_DISK_BYTES,
            "snapshots": SNAPSHOTS * snapshot, "tail": limits.TAIL_BYTES_DEFAULT, "spare": SPARE_BYTES}


def check_room(folder: Path, needed: dict[str, int]) -> str:
    """One sentence about the room. Errors: DoesNotFit."""
    free = shutil.disk_usage(folder).free
    parts = ", ".join(f"{what} {size / 1e9:.1f}" for what, size in needed.items())
    text = f"at most {sum(needed.values()) / 1e9:.1f} GB ({parts}) on a disk with {free / 1e9:.1f} GB free"
    if sum(needed.values()) > free:
        raise DoesNotFit(f"{text}: too little room in {folder}")
    return text


# --- filling --------------------------------------------------------------------------------------------------------

@dataclass
class Filling:
    """How far the journal is filled, and which day it is there."""

    members: int
    lines: int
    ids_max: int
    target: int  # entries in the end
    done: int = 0  # earns that became entries
    refused: int = 0
    seconds: float = 0.0
    first_day: datetime.date = field(init=False)

    def __post_init__(self) -> None:
        self.day_entries = max(1, self.ids_max * (DAY_SHARE - 1) // DAY_SHARE)
        days = self.target // self.day_entries + 1
        if days > DAYS_MAX:
            raise ValueError(f"must be at least {4 * self.target // (3 * (DAYS_MAX - 1)) + 1:,} for {self.target:,} entries, as a business "
                             f"day's receipts stay in memory and receipts of {DAYS_MAX} days are taken; was {self.ids_max:,}")
        self.first_day = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=days)

    def day_at(self, done: int) -> int:
        """The business day (yyyymmdd) of the earn behind so many."""
        return int((self.first_day + datetime.timedelta(days=done // self.day_entries)).strftime("%Y%m%d"))

    def chain(self) -> _load.Chain:
        return _load.Chain(members=self.members, skew=0.9, seed=1, currency="USD", business_day=self.day_at(0), stores=STORES)

    def client(self, pair: Pair, chain: _load.Chain, connections: int, in_flight: int) -> _load.Client:
        """One run's client, whose receipts are of the day that it is."""
        client = _load.Client("127.0.0.1", pair.service.ports["checkout"], connections=connections, in_flight=in_flight, chain=chain,
                              seed=self.done)
        client.set_day(self.day_at(self.done))
        return client

    def leg(self, upto: int) -> int:
        """How many earns go together: at most one a member, all of one day."""
        return min(self.members, upto - self.done, self.day_entries - self.done % self.day_entries)


def fill(pair: Pair, chain: _load.Chain, filling: Filling, upto: int, console: Console) -> None:
    """Batches until `upto` earns are entries. Errors: TargetError, ServiceFailed."""
    columns = (TextColumn("filling the journal"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.description}"),
               TimeElapsedColumn(), TimeRemainingColumn())
    began, first = time.monotonic(), filling.done
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=upto, completed=first)
        while filling.done < upto:
            before = filling.done
            outcome = _fill_leg(pair, chain, filling, filling.leg(upto),
                                lambda done, at=before: progress.update(task, completed=at + done))
            filling.done += outcome["count"]
            filling.refused += outcome["refused"]
            own, follower = pair.samples()
            lag = own["ledger_journal_sequence"] - follower["ledger_follower_sequence"]
            rate = (filling.done - first) / (time.monotonic() - began)
            progress.update(task, completed=filling.done, description=f"{rate:,.0f}/s  follower behind by {lag:,.0f}")
            if outcome["refused"]:
                time.sleep(REFUSED_PAUSE_S)
    filling.seconds += time.monotonic() - began


def _fill_leg(pair: Pair, chain: _load.Chain, filling: Filling, count: int, watch: Callable[[int], None]) -> dict[str, int]:
    client = filling.client(pair, chain, CONNECTIONS, 1)
    batch = min(BATCH, count)
    calls = -(-count // batch) if filling.lines == 0 else count // batch

    def run() -> None:
        if filling.lines:
            client.mix({"earn": 1.0}, seconds=0, warmup_s=0, batch=batch, calls=calls)
        else:
            client.prepare(0, count, earn=True, enroll=False, batch=batch)

    def look() -> None:
        if pair.ended():
            client.stop()
            client.stop()
        watch(min(count, client.progress()["completed"] * batch))

    drive(client, run, look)
    pair.alive()
    result = client.result()
    outcome = figures(result)
    if outcome["total"]["errors"]:
        raise TargetError(f"the journal could not be filled: {describe_ends(outcome)}")
    if result["completed"] < calls:
        raise KeyboardInterrupt
    return {"count": result["entries"], "refused": result["entries_refused"]}


# --- measuring ------------------------------------------------------------------------------------------------------

def flushes(pair: Pair, chain: _load.Chain, filling: Filling, folder: Path, seconds: float, rounds: int) -> dict[str, Any]:
    """Group flushes under the small open loop, and bare ones between.

    Shape: flush_us: the median over stretches of SCRAPE_S of their mean flush (the service's own histogram is too coarse for a tenth);
    write_p50_us: what a till sees; bare_p50_us; ratio of the two flushes; sent: writes of the loop.
    """
    stretches: list[float] = []
    writes, bare, sent = [], [], 0
    for _ in range(rounds):
        counted = _flush.bare_flushes(str(folder / "flush"), limits.TAIL_BLOCK_BYTES, BARE_FILE_BYTES, seconds / 2)
        bare.append(percentile_us(counted["histogram"], 0.5, counted["max_ns"]))
        client = filling.client(pair, chain, LOOP_CONNECTIONS, LOOP_CONNECTIONS)
        thread = threading.Thread(target=lambda client=client: client.mix({"earn": 1.0}, seconds=seconds, warmup_s=LOOP_WARM_S,
                                                                          rate=LOOP_RATE, grace_s=GRACE_S))
        thread.start()
        time.sleep(LOOP_WARM_S)
        count, total = _flush_sums(pair)
        while thread.is_alive():
            time.sleep(SCRAPE_S)
            count_now, total_now = _flush_sums(pair)
            if count_now > count:
                stretches.append((total_now - total) / (count_now - count) * 1e6)
            count, total = count_now, total_now
        thread.join()
        result = client.result()
        sent += result["completed"]
        outcome = figures(result)
        if outcome["total"]["errors"] or outcome["total"]["refused"] or not outcome["total"]["calls"]:
            raise TargetError(f"the small open loop failed: {describe_ends(outcome)}")
        writes.append(outcome["total"]["p50_us"])
    flush_us, bare_us = statistics.median(stretches), statistics.median(bare)
    return {"flush_us": round(flush_us, 1), "bare_p50_us": round(bare_us, 1), "write_p50_us": round(statistics.median(writes), 1),
            "ratio": round(flush_us / bare_us, 3), "stretches": len(stretches), "sent": sent, "bare": bare, "writes": writes}


def _flush_sums(pair: Pair) -> tuple[float, float]:
    samples = pair.service.metrics()
    return samples["ledger_flush_duration_seconds_count"], samples["ledger_flush_duration_seconds_sum"]


def pages(pair: Pair, filling: Filling, count: int) -> dict[str, dict[str, float]]:
    """First pages of ListEntries, newest first, by three keys. Units: ms."""
    dice = random.Random(filling.done)
    members = int(pair.service.metrics()["ledger_members"])
    with grpc.insecure_channel(f"127.0.0.1:{pair.follower.ports['control']}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        stub = journal_pb2_grpc.JournalServiceStub(channel)

        def store_day() -> journal_pb2.ListEntriesRequest:
            return journal_pb2.ListEntriesRequest(store_day=journal_pb2.StoreDay(
                store=f"S{dice.randint(1, STORES):04d}", business_day=filling.day_at(dice.randrange(filling.done))))

        found: list[journal_pb2.JournalEntry] = []
        rows = {"store and day": _timed(stub, [store_day() for _ in range(count)], found)}
        keys = [entry.receipt_key for entry in dice.choices(found, k=count)]
        rows["receipt"] = _timed(stub, [journal_pb2.ListEntriesRequest(receipt_key=key) for key in keys], [])
        chosen = [ledger_pb2.MemberRef(member_id=dice.randint(1, members)) for _ in range(count)]
        rows["member"] = _timed(stub, [journal_pb2.ListEntriesRequest(member=member) for member in chosen], [])
    return rows


def _timed(stub: Any, requests: list[journal_pb2.ListEntriesRequest], found: list[journal_pb2.JournalEntry]) -> dict[str, float]:
    """Each request once, timed as its caller sees it; what the pages hold goes into `found`."""
    for request in requests[:LIST_WARM]:
        stub.ListEntries(request, timeout=60)
    took, entries = [], 0
    for request in requests:
        began = time.perf_counter_ns()
        answer = stub.ListEntries(request, timeout=60)
        took.append((time.perf_counter_ns() - began) / 1e6)
        entries += len(answer.entries)
        found += answer.entries
        sequences = [entry.entry.sequence for entry in answer.entries]
        assert sequences == sorted(sequences, reverse=True), "a page is not newest first"
    if not entries:
        raise ServiceFailed("the lists are empty: nothing was measured")
    return {"p50_ms": round(statistics.median(took), 3), "max_ms": round(max(took), 3), "entries_a_page": round(entries / len(requests), 1)}


def sizes(data: Path, entries: int) -> dict[str, dict[str, float]]:
    """Bytes on disk by part, and per entry."""
    taken = {"journal": disk_bytes(data / "journal" / "data.mdb"), "index": disk_bytes(data / "index"), "ids": disk_bytes(data / "ids"),
             "snapshots": disk_bytes(data / "snapshots"), "tail": disk_bytes(data / "tail")}
    return {name: {"bytes": size, "per_entry": round(size / entries, 1)} for name, size in taken.items()}


def verify(data: Path) -> dict[str, float]:
    """`daybook verify` of the whole journal: seconds. Errors: ServiceFailed."""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "server", "verify", str(data)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise ServiceFailed(f"the journal did not pass its verification:\n{(done.stdout + done.stderr).strip()[-2000:]}")
    return {"seconds": round(time.monotonic() - began, 2)}


# --- the run --------------------------------------------------------------------------------------------------------

class Long:
    """One run. `found` holds all figures, `rows` the table."""

    def __init__(self, folder: Path, filling: Filling, first: int, seconds: float, rounds: int, lists: int, console: Console) -> None:
        self.folder, self.filling, self.first, self.console = folder, filling, first, console
        self.seconds, self.rounds, self.lists = seconds, rounds, lists
        self.data = folder / "data"
        self.found: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    def run(self) -> None:
        with followed(self.data, members_max=self.filling.members + 1000, ids_max=self.filling.ids_max) as pair:
            chain = self.filling.chain()
            for name, upto in (("start", self.first), ("end", self.filling.target)):
                self.found[name] = self._stage(pair, chain, name, upto)
            self._count(pair)
        self.found["disk"] = sizes(self.data, self.found["end"]["sequence"])

    def _stage(self, pair: Pair, chain: _load.Chain, name: str, upto: int) -> dict[str, Any]:
        fill(pair, chain, self.filling, upto, self.console)
        began = time.monotonic()
        with self.console.status("waiting for the follower") as status:
            pair.settle(lambda own, follower: status.update(
                f"waiting for the follower: {own['ledger_journal_sequence'] - follower['ledger_follower_sequence']:,.0f} entries, "
                f"its index {follower['ledger_index_lag_entries']:,.0f}"))
        caught_up = time.monotonic() - began
        os.sync()  # what the filling left to be written would be in the way
        stage: dict[str, Any] = {"entries": self.filling.done, "follower_seconds": round(caught_up, 1)}
        with self.console.status(f"{name}: flushes, and bare ones between"):
            stage |= flushes(pair, chain, self.filling, self.folder, self.seconds, self.rounds)
        pair.settle()
        with self.console.status(f"{name}: lists"):
            stage["lists"] = pages(pair, self.filling, self.lists)
        stage["sequence"] = int(pair.service.metrics()["ledger_journal_sequence"])
        self.console.print(f"[bold]{name}[/] {self.filling.done:,} earns: flush {stage['flush_us']:.0f} us, bare "
                           f"{stage['bare_p50_us']:.0f} us, a write's p50 {digits(stage['write_p50_us'])} ms; lists p50 "
                           + ", ".join(f"{key} {values['p50_ms']} ms" for key, values in stage["lists"].items()))
        return stage

    def _count(self, pair: Pair) -> None:
        """What was sent must be what is there."""
        own, follower = pair.samples()
        self.found["follower_sequence"] = int(follower["ledger_follower_sequence"])
        self.found["index_sequence"] = int(follower["ledger_index_sequence"])
        self.found["ids_runs"] = int(own["ledger_ids_runs"])
        filling, sequence = self.filling, self.found["end"]["sequence"]
        self.found["filling"] = {
            "earns": filling.done, "seconds": round(filling.seconds, 1), "per_second": round(filling.done / max(0.001, filling.seconds)),
            "refused": filling.refused, "lines": filling.lines, "business_days": filling.done // filling.day_entries + 1,
            "lookups": int(own["ledger_ids_lookups_total"]),
        }
        if sequence < filling.done:
            raise ServiceFailed(f"{filling.done:,} earns were acknowledged, but the journal ends with {sequence:,}")

    def judge(self) -> None:
        start, end, filled = self.found["start"], self.found["end"], self.found["filling"]
        raw, drift = end["flush_us"] / start["flush_us"], end["ratio"] / start["ratio"]
        self.rows += [
            row("7", f"group flush at {end['entries']:,} entries against {start['entries']:,}, over bare flushes",
                f"1 +- {FLUSH_DRIFT_MAX:.2f}", f"{drift:.3f} (raw {raw:.3f})",
                f"{start['flush_us']:.0f} -> {end['flush_us']:.0f} us; bare {start['bare_p50_us']:.0f} -> {end['bare_p50_us']:.0f} us; "
                f"a write's p50 {digits(start['write_p50_us'])} -> {digits(end['write_p50_us'])} ms", abs(drift - 1) <= FLUSH_DRIFT_MAX),
            *(row("7", f"first page of ListEntries by {key}, p50", f"<= {PAGE_MS_MAX:g} ms", f"{values['p50_ms']} ms",
                  f"max {values['max_ms']} ms of {self.lists}, {values['entries_a_page']} entries each; at the start "
                  f"{start['lists'][key]['p50_ms']}, max {start['lists'][key]['max_ms']} ms", values["p50_ms"] <= PAGE_MS_MAX)
              for key, values in end["lists"].items()),
            row("7", f"bytes on disk an entry of {filled['lines']} lines", "stated",
                ", ".join(f"{name} {self.found['disk'][name]['per_entry']}" for name in ("journal", "index", "ids")),
                ", ".join(f"{name} {values['bytes'] / 1e9:.2f} GB" for name, values in self.found["disk"].items()), None),
            row("7", f"filled by BatchPost of {BATCH:,}, {CONNECTIONS} connections, follower and index beside it", "",
                f"{filled['per_second']:,}/s", f"{filled['seconds']:,} s; then the follower needed {end['follower_seconds']} s more; "
                f"{filled['refused']:,} refused, {filled['lookups']:,} look-ups, {filled['business_days']} business days", None),
        ]
        if "verify" in self.found:
            seconds = self.found["verify"]["seconds"]
            self.rows.append(row("-", "daybook verify of it", "500,000 entries/s", f"{end['sequence'] / seconds:,.0f}/s", f"{seconds} s",
                                 end["sequence"] >= 500_000 * seconds))


def main(
    entries: Annotated[int, typer.Option(metavar="N", help="Earns to fill the journal with.")] = ENTRIES,
    first: Annotated[int, typer.Option(metavar="N", help="Earns before the first measurement.")] = 1_000_000,
    lines: Annotated[int, typer.Option(metavar="N", help="Lines of a receipt: 0 or 6. Six take twice the room.")] = 0,
    members: Annotated[int, typer.Option(metavar="N", help="Members of the made-up chain.")] = 1_000_000,
    ids_max: Annotated[int, typer.Option("--ids-max", metavar="N", help="As of `daybook serve`; three quarters of it are a business day's "
                                         "receipts. Service and follower take 150 bytes of memory each for one.")] = 8_000_000,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long each small open loop is.")] = 20.0,
    rounds: Annotated[int, typer.Option(metavar="N", help="How many of them at the start, and at the end.")] = ROUNDS,
    lists: Annotated[int, typer.Option(metavar="N", help="Pages to ask for, by each key.")] = 200,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the ledger is made; its disk is measured.")] = Path("build/long"),
    keep: Annotated[bool, typer.Option("--keep", help="Leave the ledger there.")] = False,
    do_verify: Annotated[bool, typer.Option("--verify", help="Also run `daybook verify` over it.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where to write all figures.")] = None,
) -> None:
    """Fill a journal with many entries, and compare its end with its beginning.

    200 million entries need about 50 GB of disk and half an hour to an hour. It says first how much room it takes, and does not begin
    with less.
    """
    console = Console(highlight=False)

    def refuse(option: str, rule: str) -> typer.BadParameter:
        return typer.BadParameter(rule, param_hint=f"--{option}")

    for option, value, least, most in (
            ("entries", entries, 2000, 2_000_000_000), ("first", first, 1000, entries), ("ids-max", ids_max, 1000, limits.IDS_MAX_LIMIT),
            ("members", members, 1, limits.MEMBERS_MAX_LIMIT - 1000), ("rounds", rounds, 1, 100), ("lists", lists, 1, 1_000_000)):
        if not least <= value <= most:
            raise refuse(option, f"must be {least:,}..{most:,}; was {value:,}")
    if lines not in LINES:
        raise refuse("lines", f"must be 0 or 6; was {lines}")
    if not 0.5 <= seconds <= 600:
        raise refuse("seconds", f"must be 0.5..600; was {seconds}")
    try:
        filling = Filling(members, lines, ids_max, entries)
    except ValueError as error:
        raise refuse("ids-max", str(error)) from None
    folder = Path(os.path.abspath(folder))
    if folder.exists() and any(folder.iterdir()):
        raise refuse("folder", f"must be new or empty; {folder} is not (a run that was cut short?): remove it")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        console.print("this takes " + check_room(folder, room(entries, lines, members, ids_max)))
    except DoesNotFit as error:
        raise refuse("entries", f"needs {error}") from None
    about = machine(folder)
    console.print("; ".join(f"{key} {value}" for key, value in about.items()))
    long = Long(folder, filling, first, seconds, rounds, lists, console)
    try:
        long.run()
        if do_verify:
            with console.status("daybook verify"):
                long.found["verify"] = verify(long.data)
    except (ServiceFailed, TargetError) as error:
        console.print(f"[bold red]bench:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    long.judge()
    console.print(table(long.rows))
    target = json_file or folder.with_name(folder.name + ".json")
    target.write_text(json.dumps({"machine": about, "rows": long.rows, **long.found}, indent=1) + "\n")
    console.print(f"all figures: {target}")
    if not keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("long")(main)
    app()
