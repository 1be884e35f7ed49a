"""`make bench`: the canonical measurements, each beside what the machine and the usual tools do in the same run.

Starts real services on fresh directories, drives them with the compiled generator, prints the table with bar, figure and control, and
writes everything as JSON. Not for tests: figures are of this machine and moment, only the ratios travel. Run by `python -m bench.run`.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape

from bench import _load
from bench.controls import GROUP_BYTES
from bench.load import Plan, TargetError, digits, make_chain, measure, prepare
from bench.measure import figures
from bench.rows import FLUSH_BYTES, Rows, bare_flush, both_flushes, latencies, machine, own_seconds, table, thread_seconds
from bench.service import ANY_PORTS, PROGRAM, ROOT, Service, ServiceFailed
from ledger import limits, rules

MEMBERS = 1_000_000
SKEW = 0.9
SHORT_SHARE = 4  # the controls get a quarter of a row's time each
IDLE_RATE = 200  # calls/s of the idle echo
DRAIN_LAG_S_MAX = 1.0
TAIL_TURNS_MIN = 2  # below it the tail was not turned over: the run was too short to count
CORE_CHUNK = 500_000  # earns between two looks at the clock
CORE_IDS_MAX = 64_000_000  # as the services of the other rows
CORE_EARNS_MAX = 20_000_000  # enough; and all of them one business day, which must be remembered
IDS_MAX = 64_000_000  # a minute at 400,000/s is 24 million receipts of one business day, and all must be remembered
SECTION_NAMES = {0: "header", 1: "context", 2: "postings", 3: "lots", 4: "lines", 5: "awards", 6: "after", 8: "identifiers", 16: "standing"}
SAMPLE_EARNS = 2000
BATCH = limits.BATCH_COMMANDS_MAX
BATCH_CONNECTIONS = 8
BATCH_NICE = 5  # of who sends batches beside the open loop: elsewhere it is another machine, here it gives way to the tills


class Bench:
    """One run: where it works, how long each row takes, and what it found."""

    def __init__(self, folder: Path, seconds: float, console: Console, members: int) -> None:
        self.folder, self.seconds, self.console, self.members = folder, seconds, console, members
        self.plan = Plan(target="", members=members, skew=SKEW, seconds=seconds, warmup=min(5.0, seconds / 4))
        self.chain = make_chain(self.plan)
        self.table = Rows(console)
        self.controls: dict[str, Any] = {}
        self.runs: dict[str, Any] = {}

    # --- what runs beside -------------------------------------------------------------------------------------------

    @contextmanager
    def service(self, name: str, program: Path = PROGRAM) -> Iterator[Service]:
        """A service on a fresh directory with all members opened; afterwards its drain is checked and everything removed."""
        data = self.folder / name
        service = Service(data, ANY_PORTS, "--ids-max", str(IDS_MAX), program=program)
        try:
            service.wait()
            self.plan = replace(self.plan, target=f"127.0.0.1:{service.ports['checkout']}")
            prepare(self.plan, self.chain, self.console, earn=False)
            os.sync()
            yield service
        finally:
            status = service.stop()
            shutil.rmtree(data, ignore_errors=True)
            os.sync()  # where the disk is told what became free, it is busy with gigabytes of it for a while: not with the next row's time
        if status:
            raise ServiceFailed(f"the service ended with status {status}:\n{service.log.read_text()[-2000:]}")
        service.log.unlink()

    @contextmanager
    def echo(self) -> Iterator[str]:
        """The stock-loop grpc.aio echo; gives its HOST:PORT."""
        ports_file = self.folder / "echo.json"
        ports_file.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, "-m", "bench.controls", "echo", str(ports_file)], cwd=ROOT)
        try:
            until = time.monotonic() + 30
            while not ports_file.exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise ServiceFailed("the grpc.aio echo did not start")
                time.sleep(0.02)
            yield f"127.0.0.1:{json.loads(ports_file.read_text())['checkout']}"
        finally:
            process.kill()
            process.wait()
            ports_file.unlink(missing_ok=True)

    def bare_lmdb(self, seconds: float) -> dict[str, Any]:
        """An LMDB commit of a group alone, in a process of its own."""
        done = subprocess.run([sys.executable, "-m", "bench.controls", "lmdb", str(self.folder / "lmdb"), str(seconds)], cwd=ROOT,
                              capture_output=True, text=True, check=True)
        return {**json.loads(done.stdout), "bytes": GROUP_BYTES}

    # --- measuring --------------------------------------------------------------------------------------------------

    def drive(self, service: Service, name: str, **changes: Any) -> dict[str, Any]:
        """One run against a service, with what it cost in processor time and where the drain stood at the end."""
        plan = replace(self.plan, **changes)
        before, cpu_before, own_before = service.metrics(), thread_seconds(service.process.pid), own_seconds()
        began = time.monotonic()
        outcome = measure(plan, self.chain, self.console)
        after = service.metrics()
        spent = time.monotonic() - began
        threads = sorted((seconds - cpu_before.get(thread, 0.0) for thread, seconds in thread_seconds(service.process.pid).items()),
                         reverse=True)
        groups, size, entries, flush_s = (
            after[name] - before[name] for name in ("ledger_group_bytes_count", "ledger_group_bytes_sum", "ledger_group_entries_sum",
                                                    "ledger_flush_duration_seconds_sum"))
        outcome["service"] = {
            # Groups are padded to blocks: at least one block each.
            "tail_turns": round(max(size, groups * limits.TAIL_BLOCK_BYTES) / after["ledger_tail_size_bytes"], 1),
            "drain_lag_s": round(after["ledger_drain_lag_seconds"], 3),
            "entries_per_group": round(entries / groups, 1) if groups else 0.0,
            "flush_mean_us": round(flush_s / groups * 1e6, 1) if groups else 0.0,
            "busiest_threads": [round(seconds / spent, 2) for seconds in threads[:3]],
            "generator": round((own_seconds() - own_before) / spent, 2),
        }
        self.runs[name] = outcome
        if outcome["total"]["errors"]:
            raise ServiceFailed(f"{name}: {outcome['total']['codes']} {outcome['first_messages']}")
        return outcome

    def add(self, number: str, work: str, bar: str, figure: str, control: str, met: bool | None,
            outcome: dict[str, Any] | None = None) -> None:
        """One line of the table; a run that left the drain behind does not meet its bar."""
        notes = []
        if outcome is not None:
            state = outcome["service"]
            notes.append(f"busiest thread {state['busiest_threads'][0]:.2f}, generator {state['generator']:.2f} cores; "
                         f"{state['entries_per_group']:.1f} entries a flush of {state['flush_mean_us']:,.0f} us; "
                         f"tail turned {state['tail_turns']:.0f} x, drain lag {state['drain_lag_s']:.2f} s")
            if state["drain_lag_s"] > DRAIN_LAG_S_MAX:
                met = False
                notes.append("DRAIN BEHIND")
            if 0 < state["tail_turns"] < TAIL_TURNS_MIN:
                notes.append("tail hardly turned: too short to count")
        self.table.add(number, work, bar, figure, control, met, tuple(notes))

    # --- the rows ---------------------------------------------------------------------------------------------------

    def row_1_and_6(self) -> None:
        with self.service("row1") as service:
            outcome = self.drive(service, "1 earn 64x1", connections=64, in_flight=1, mix="earn=1")
            earns = outcome["total"]["calls_per_second"]
            self.add("1", f"EarnPoints, {SKEW} Zipf over {self.members:,} members, 64 x 1", ">= 60,000/s", f"{earns:,.0f}/s",
                     latencies(outcome["total"]), earns >= 60_000, outcome)
            balances = self.drive(service, "6 balance 64x1", connections=64, in_flight=1, mix="balance=1", seconds=self.seconds / 2)
        with self.echo() as target:
            plan = replace(self.plan, target=target, connections=64, in_flight=1, seconds=self.seconds / SHORT_SHARE)
            echoes = {name: measure(replace(plan, mix=name), self.chain, self.console) for name in ("earn", "balance")}
        self.controls["grpc.aio echo"] = {name: echo["total"] for name, echo in echoes.items()}
        for name, ours, bar in (("GetBalance", balances, 15), ("EarnPoints", outcome, 7)):
            echo = echoes["earn" if name == "EarnPoints" else "balance"]["total"]["calls_per_second"]
            figure = ours["total"]["calls_per_second"]
            self.add("6", f"{name} against a grpc.aio echo of its bytes, 64 in flight", f">= {bar} x",
                     f"{figure / echo:.1f} x ({figure:,.0f}/s)", f"echo {echo:,.0f}/s", figure >= bar * echo,
                     ours if name == "GetBalance" else None)

    def row_2(self) -> None:
        with self.service("row2") as service:
            outcome = self.drive(service, "2 earn 64x16", connections=64, in_flight=16, mix="earn=1")
        rate = outcome["total"]["calls_per_second"]
        self.add("2", "the same, 64 x 16", ">= 250,000/s", f"{rate:,.0f}/s", latencies(outcome["total"]), rate >= 250_000, outcome)

    def row_3(self) -> None:
        with self.service("row3") as service:
            # The disk changes from minute to minute: its own rate is taken before and after.
            before = bare_flush(self.folder, self.seconds / SHORT_SHARE)
            outcome = self.drive(service, "3 earn 1x1", connections=1, in_flight=1, mix="earn=1")
            after = bare_flush(self.folder, self.seconds / SHORT_SHARE)
        self.controls["bare flush"] = [before, after]
        bare = (before["per_second"] + after["per_second"]) / 2
        rate = outcome["total"]["calls_per_second"]
        self.add("3", "EarnPoints, 1 x 1", ">= 0.65 of bare flushes", f"{rate / bare:.2f} ({rate:,.0f}/s)",
                 f"flush of {FLUSH_BYTES} bytes {bare:,.0f}/s", rate >= 0.65 * bare, outcome)

    def row_4(self) -> None:
        self.open_loop("4", PROGRAM, "balance")

    def open_loop(self, number: str, program: Path, read: str) -> None:
        """Tills at random moments under a programme: three calls of `read` to an earn."""
        with self.service(f"row{number}", program) as service:
            before = bare_flush(self.folder, self.seconds / SHORT_SHARE)
            idle = self.drive(service, f"{number} idle echo", connections=1, in_flight=4, mix="health=1", rate=IDLE_RATE,
                              seconds=self.seconds / SHORT_SHARE)
            outcome = self.drive(service, f"{number} open loop", connections=64, in_flight=16, mix=f"earn=1,{read}=3", rate=13_000)
            after = bare_flush(self.folder, self.seconds / SHORT_SHARE)
        self.controls[f"bare flush at row {number}"] = [before, after]
        self.controls["idle echo"] = idle["total"]
        reads, writes, echo = outcome["calls"][read], outcome["calls"]["earn"], idle["total"]
        flush = both_flushes(before, after)
        work = f"open loop 13,000/s, 3 {'reads' if read == 'balance' else read + 's'} : 1 write"
        self.add(number, f"{work}: reads p50", "<= 0.1 ms", f"{digits(reads['p50_us'])} ms",
                 f"idle echo {digits(echo['p50_us'])} ms", reads["p50_us"] <= 100, outcome)
        bar = max(500.0, 2 * echo["p99_us"])
        self.add(number, f"{work}: reads p99", f"<= {digits(bar)} ms", f"{digits(reads['p99_us'])} ms",
                 f"idle echo {digits(echo['p99_us'])} ms", reads["p99_us"] <= bar)
        ratio = writes["p50_us"] / flush["p50_us"]
        self.add(number, f"{work}: writes p50", "<= 2.5 x flush", f"{ratio:.2f} x ({digits(writes['p50_us'])} ms)",
                 f"flush {digits(flush['p50_us'])} ms", ratio <= 2.5)
        self.add(number, f"{work}: writes p90", "< 1 ms", f"{digits(writes['p90_us'])} ms",
                 f"flush {digits(flush['p90_us'])} ms", writes["p90_us"] < 1000)
        for label, name in (("p99", "p99_us"), ("p99.9", "p999_us"), ("max", "max_us")):
            self.add(number, f"{work}: writes {label}", "", f"{digits(writes[name])} ms", f"flush {digits(flush[name])} ms", None)

    def row_5(self) -> None:
        from server._local import LocalLedger

        program = rules.compile_file(PROGRAM)
        now_us = time.time_ns() // 1000
        ledger = LocalLedger(program.image, program.source, now_us, members_max=self.members + 10, ids_max=CORE_IDS_MAX,
                             reservations_max=1000)
        weights = _load.zipf_weights(self.members, SKEW)
        random = np.random.default_rng(1)
        random.shuffle(weights)
        everybody = random.permutation(self.members).astype(np.uint32)
        done, _ = ledger.run_earns(everybody, 6, 0, now_us, 1, "USD")
        assert done == self.members, "every first earn must open its account"
        drawn = random.choice(self.members, 4 * CORE_CHUNK, p=weights / weights.sum()).astype(np.uint32)
        count, first, spent, entry_bytes = 0, self.members, 0, 0
        while spent < self.seconds * 1e9 and count + CORE_CHUNK <= CORE_EARNS_MAX:
            now_us += self.members
            members = drawn[count % len(drawn):][:CORE_CHUNK]
            began = time.perf_counter_ns()
            good, written = ledger.run_earns(members, 6, first, now_us, 1, "USD")
            spent += time.perf_counter_ns() - began
            assert good == len(members), "every earn must succeed"
            count, first, entry_bytes = count + good, first + good, entry_bytes + written
        rate = count / (spent / 1e9)
        self.runs["5 core"] = {"earns": count, "seconds": round(spent / 1e9, 2), "per_second": round(rate), "entry_bytes": entry_bytes,
                               "stats": ledger.stats()}
        self.add("5", f"core alone, decide + apply, one thread, {self.members:,} members", ">= 1,000,000/s", f"{rate:,.0f}/s",
                 f"{1e9 / rate:,.0f} ns each", rate >= 1_000_000)

    def row_7(self) -> None:
        from server._local import LocalLedger

        program = rules.compile_file(PROGRAM)
        ledger = LocalLedger(program.image, program.source, time.time_ns() // 1000)
        chain = _load.Chain(members=1, skew=0, seed=1, currency="USD", business_day=int(datetime.date.today().strftime("%Y%m%d")))
        requests = _load.sample_requests(chain, {"earn": 1}, SAMPLE_EARNS + 1, seed=1)
        for _, request in requests:
            code, _, _ = ledger.call(_load.METHODS["earn"], request, time.time_ns() // 1000)
            assert code == 0, ledger.outcome()
        sections: dict[str, float] = {}
        entries = ledger.entries()[-SAMPLE_EARNS:]  # the first one opens the account
        for entry in entries:
            for name, size in entry_sections(entry):
                sections[name] = sections.get(name, 0) + size / len(entries)
        size = sum(len(entry) for entry in entries) / len(entries)
        sent = sum(len(request) for _, request in requests) / len(requests)
        self.runs["7 bytes"] = {"entry": size, "request": sent, "group_header": 128, "block": limits.TAIL_BLOCK_BYTES,
                                "sections": sections}
        self.add("7", "bytes of journal per EarnPoints of 6 lines", "stated", f"{size:.0f} bytes",
                 f"of a request of {sent:.0f} bytes; and 128 per group", None)
        self.console.print("  [dim]" + ", ".join(f"{name} {size:.0f}" for name, size in sections.items()) + "[/]")


    def row_8(self) -> None:
        work = f"BatchPost of {BATCH:,} earns, {BATCH_CONNECTIONS} connections"
        loop = {"connections": 64, "in_flight": 16, "mix": "earn=1,balance=3", "rate": 13_000}
        with self.service("row8") as service:
            quiet = self.drive(service, "8 open loop alone", **loop)
            with self.batches() as background:
                beside = self.drive(service, "8 open loop beside batches", seconds=self.seconds / 2, **loop)
            # Last: it writes gigabytes, which disks of virtual machines pay for with seconds of standing still afterwards.
            alone = self.drive(service, "8 batches", connections=BATCH_CONNECTIONS, in_flight=1, batch=BATCH)
        entries = alone["entries"]
        self.add("8", work, ">= 500,000 entries/s", f"{entries['per_second']:,.0f}/s", latencies(alone["total"]),
                 entries["per_second"] >= 500_000 and entries["refused"] == 0, alone)
        running = figures(background.result())["entries"] or {"per_second": 0}
        for call, bar in (("balance", "reads"), ("earn", "writes")):
            ratio = beside["calls"][call]["p99_us"] / max(1.0, quiet["calls"][call]["p99_us"])
            self.add("8", f"open loop 13,000/s beside them: {bar} p99", "<= 2 x alone",
                     f"{ratio:.2f} x ({digits(beside['calls'][call]['p99_us'])} ms)",
                     f"alone {digits(quiet['calls'][call]['p99_us'])} ms; batches {running['per_second']:,.0f} entries/s", ratio <= 2)

    @contextmanager
    def batches(self) -> Iterator[_load.Client]:
        """Batches in the background, from before the block to its end."""
        host, port = self.plan.address
        client = _load.Client(host, port, connections=BATCH_CONNECTIONS, in_flight=1, chain=self.chain, seed=self.plan.seed + 1)

        def post() -> None:
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BATCH_NICE)
            client.mix({"earn": 1.0}, seconds=self.seconds * 10, warmup_s=0, batch=BATCH)

        thread = threading.Thread(target=post)
        thread.start()
        try:
            yield client
        finally:
            client.stop()
            thread.join()


Kind = TypeVar("Kind", bound=Bench)


def run_rows(kind: type[Kind], seconds: float, members: int, folder: Path, *rows: Callable[[Kind], None]) -> None:
    """Some rows of a bench in a new folder that is removed afterwards, and their table. Errors: typer.BadParameter, typer.Exit."""
    console = Console(highlight=False)
    folder = Path(os.path.abspath(folder))
    if folder.exists():
        raise typer.BadParameter(f"must be new; {folder} is there (a run that was cut short?): remove it", param_hint="--folder")
    folder.mkdir(parents=True)
    bench = kind(folder, seconds, console, members)
    console.print("; ".join(f"{key} {value}" for key, value in machine(folder).items()))
    try:
        for row in rows:
            row(bench)
    except (ServiceFailed, TargetError) as error:
        console.print(f"[bold red]bench:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(table(bench.table.rows))


def entry_sections(entry: bytes) -> Iterator[tuple[str, int]]:
    """The parts of an entry and their bytes, framing included (docs/journal-format.md)."""
    yield SECTION_NAMES[0], 40
    at = 40
    while at < len(entry):
        size = 4 + int.from_bytes(entry[at + 1:at + 4], "little")
        yield SECTION_NAMES.get(entry[at], f"section {entry[at]}"), size
        at += size


def main(
    seconds: Annotated[float, typer.Option(metavar="S", help="How long each measurement takes; the canonical run has 60.")] = 60.0,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the ledgers are made; its disk is measured.")] = Path("build/bench"),
    only: Annotated[str, typer.Option(metavar="N,N", help="Only these rows (1 includes 6).")] = "1,2,3,4,5,7,8",
    members: Annotated[int, typer.Option(metavar="N", help="Members of the made-up chain; the canonical run has a million.")] = MEMBERS,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Where to write all figures.")] = None,
) -> None:
    """Measure what this ledger does on this machine, beside what the machine itself does.

    Takes about 15 minutes. Leave the machine alone meanwhile: the generator already shares its processors with the service.

    Example, a quick look at two rows:

        python -m bench.run --seconds 5 --only 3,4
    """
    console = Console(highlight=False)
    wanted = set(only.split(","))
    known = {"1": Bench.row_1_and_6, "2": Bench.row_2, "3": Bench.row_3, "4": Bench.row_4, "5": Bench.row_5, "7": Bench.row_7,
             "8": Bench.row_8}
    if not wanted <= set(known):
        raise typer.BadParameter(f"must be among {','.join(known)}; was {only!r}", param_hint="--only")
    if not 0.5 <= seconds <= 3600:
        raise typer.BadParameter(f"must be 0.5..3600; was {seconds}", param_hint="--seconds")
    folder = Path(os.path.abspath(folder))
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"must be new or empty; {folder} is not (a run that was cut short?): remove it", param_hint="--folder")
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, seconds, console, members)
    about = machine(folder)
    console.print("; ".join(f"{key} {value}" for key, value in about.items()))
    if seconds < 60 or members != MEMBERS:
        console.print(f"[yellow]a quick look: the canonical run has 60 s a row and {MEMBERS:,} members[/]")
    try:
        for name in ("5", "7", "1", "2", "3", "4", "8"):
            if name in wanted:
                known[name](bench)
        if wanted & {"1", "2", "3", "4", "8"}:
            bench.controls["bare LMDB commit"] = bench.bare_lmdb(seconds / SHORT_SHARE)
    except (ServiceFailed, TargetError) as error:
        console.print(f"[bold red]bench:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    rows = bench.table.rows
    rows.sort(key=lambda row: row["row"])
    console.print(table(rows))
    for name, values in bench.controls.items():
        console.print(f"[dim]{name}: {escape(json.dumps(values))}[/]", soft_wrap=True)
    target = json_file or folder.with_name(folder.name + ".json")
    target.write_text(json.dumps({"machine": about, "seconds": seconds, "members": members, "rows": rows, "controls": bench.controls,
                                  "runs": bench.runs}, indent=1, default=str) + "\n")
    console.print(f"all figures: {target}")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("bench")(main)
    app()
