"""Publishing while tills call: what a call sees of it. Row 6 of the rules' bars.

    python -m bench.publish                                  1,000 rules, 100,000 articles
    python -m bench.publish --rules 50 --skus 20000 --seconds 2 --rate 500     a quick look

An open loop of tills (Poisson, `--rate` calls/s, 64 connections, three reads to a write) runs alone first, and then while two programmes
are put in force in turn, one right behind the other, files and all. No call may be above twice the usual p99; as p99 itself says that one
call in a hundred is above it, the share of calls above that limit is compared with the share when nothing is published. Not for how
long compiling takes (bench/compile.py). Figures are of this machine and moment, only the ratios travel.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Annotated, Any

import grpc
import numpy as np
import typer
from rich.console import Console

from bench.compile import programme_text, write_tables
from bench.load import Plan, digits, make_chain, prepare, reach
from bench.measure import LIMITS_NS, figures
from bench.open_loop import OpenLoop, between, machine_note
from bench.rows import Rows, bare_flush, table
from bench.service import ANY_PORTS, Service, ServiceFailed
from server._pb.loyalty.ledger.v1 import admin_pb2, admin_pb2_grpc

FACTOR = 2  # of the usual p99: what no call may be above
PUBLISH_S = 120.0
FILES = ("articles.csv", "stores.csv")
MESSAGE_BYTES = 80 << 20


class Publisher:
    """Puts two programmes in force in turn, on a thread of its own, until it is told to stop."""

    def __init__(self, port: int, folder: Path, sources: list[bytes]) -> None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_send_message_length", MESSAGE_BYTES)])
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._files = [admin_pb2.RulesFile(name=name, content=(folder / name).read_bytes()) for name in FILES]
        self._sources = sources
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self.seconds: list[float] = []
        self.failure = ""

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                request = admin_pb2.PublishRulesRequest(request_id=str(uuid.uuid4()), source=self._sources[len(self.seconds) % 2],
                                                        files=self._files, operator="bench", reason="row 6")
                request.sent_time.GetCurrentTime()
                begun = time.perf_counter()
                self._stub.PublishRules(request, timeout=PUBLISH_S)
                self.seconds.append(time.perf_counter() - begun)
        except grpc.RpcError as error:
            self.failure = f"{error.code().name}: {error.details()}"

    def __enter__(self) -> Publisher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(PUBLISH_S)

    @property
    def running(self) -> bool:
        return self._thread.is_alive()


def above(counted: np.ndarray, limit_us: float) -> float:
    """The share of calls above a limit."""
    total = int(counted.sum())
    return float(counted[limit_us * 1000 < LIMITS_NS].sum()) / total if total else 0.0


def run(folder: Path, *, rules: int, skus: int, members: int, rate: float, seconds: float, times: int, console: Console) -> dict[str, Any]:
    """Both stretches and the rows. Errors: ServiceFailed, TargetError."""
    write_tables(folder, skus)
    sources = [programme_text(rules, skus, seed).encode() for seed in (1, 2)]
    (folder / "programme.yaml").write_bytes(sources[0])
    flush = bare_flush(folder, min(5.0, seconds))
    service = Service(folder / "data", ANY_PORTS, "--program", str(folder / "programme.yaml"), "--members-max", str(2 * members))
    try:
        service.wait()
        plan = Plan(target=f"127.0.0.1:{service.ports['checkout']}", connections=64, in_flight=16, members=members, currency="EUR")
        reach(plan)
        chain = make_chain(plan)
        prepare(plan, chain, console, earn=False)
        with OpenLoop(service.ports["checkout"], chain, rate=rate, seed=7, ahead_s=0, folder=folder) as loop:
            loop.processes["service"] = service.process.pid
            time.sleep(min(5.0, seconds / 4))
            alone = loop.run(seconds)
            with Publisher(service.ports["control"], folder, sources) as publisher:
                begin = loop.moment()
                patience = time.monotonic() + seconds + PUBLISH_S * times
                while publisher.running and (time.monotonic() < begin.at + seconds or len(publisher.seconds) < times):
                    if time.monotonic() > patience:
                        raise ServiceFailed("publishing did not come to its end")
                    time.sleep(0.05)
                beside = begin, loop.moment()
        if publisher.failure:
            raise ServiceFailed(f"a programme was not published: {publisher.failure}")
        if errors := loop.errors():
            raise ServiceFailed(f"the open loop had errors: {errors}, {figures(loop.client.result())['first_messages']}")
        version = next((name for name in service.metrics() if name.startswith("ledger_program_info")), "")
    finally:
        service.stop()
    quiet, found = between(*alone), between(*beside)
    rows = Rows(console)
    spent = sorted(publisher.seconds)
    rows.add("6", f"PublishRules, {rules:,} rules x {skus:,} articles, beside {rate:,.0f} calls/s", "",
             f"{len(spent)} times, {spent[len(spent) // 2]:.2f} s each (most {spent[-1]:.2f} s)", version, None)
    for call, name in (("balance", "reads"), ("earn", "writes")):
        usual, now = quiet["calls"][call]["p99_us"], found["calls"][call]["p99_us"]
        rows.add("6", f"publishing: {name} p99", f"<= {FACTOR} x the usual", f"{now / max(1.0, usual):.2f} x ({digits(now)} ms)",
                 f"alone {digits(usual)} ms; flush p99 {digits(flush['p99_us'])} ms", now <= FACTOR * usual,
                 (machine_note(found),) if name == "reads" else ())
        shares = [above(end.calls[call] - start.calls[call], FACTOR * usual) for start, end in (alone, beside)]
        told = [f"{share:.3%}, max {digits(stretch['calls'][call]['max_us'])} ms"
                for share, stretch in zip(shares, (quiet, found), strict=True)]
        rows.add("6", f"publishing: {name} above {FACTOR} x the usual p99", "", told[1], f"alone {told[0]}", None)
    console.print(table(rows.rows))
    return {"alone": quiet, "beside": found, "published_s": publisher.seconds, "rows": rows.rows, "flush": flush, "in_force": version}


def main(
    rules: Annotated[int, typer.Option(help="Rules of both programmes.", min=1, max=1500)] = 1000,
    skus: Annotated[int, typer.Option(help="Articles of their catalogue; with fewer some brands have none.", min=20_000)] = 100_000,
    members: Annotated[int, typer.Option(help="Members.", min=1)] = 100_000,
    rate: Annotated[float, typer.Option(help="Calls/s of the loop.", min=1)] = 13_000.0,
    seconds: Annotated[float, typer.Option(help="Of each stretch.", min=0.2)] = 20.0,
    times: Annotated[int, typer.Option(help="Publish at least so often.", min=1)] = 3,
    folder: Annotated[Path | None, typer.Option(help="Where to work; its disk is what is measured.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything there.")] = None,
) -> None:
    """Publish under load: p99 before and meanwhile."""
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="daybook-publish-", dir=folder) as work:
        try:
            found = run(Path(work), rules=rules, skus=skus, members=members, rate=rate, seconds=seconds, times=times, console=console)
        except ServiceFailed as error:
            console.print(f"[bold red]{error}[/]")
            raise typer.Exit(1) from None
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1))
    raise typer.Exit(0 if all(row["met"] is not False for row in found["rows"]) else 1)


if __name__ == "__main__":
    typer.run(main)
