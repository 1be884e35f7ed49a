"""`daybook load`: puts a ledger under the load of a chain's tills and says how it did.

Checks the arguments, prepares the members, shows a live line, prints the table and writes the JSON. Not for making or timing
calls (bench/_load.pyx). `load` is mounted by server/cli.py; `measure`, `prepare` and `drive` are used by the benches.
"""

from __future__ import annotations

import datetime
import json
import resource
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import _load
from bench.measure import figures, percentile_us
from ledger import limits

CALLS_THAT_TAKE_POINTS = {"burn", "reserve", "capture", "release", "commit"}
STREAMS_MAX = 65_536  # connections * in_flight: 1.5 kB each, and more than any server here opens
MEMBERS_MAX = 100_000_000  # card numbers made here have 11 free digits; the tables take 8 bytes a member
PREPARE_CONNECTIONS = 8  # 512 calls in flight fill the groups; grpcio servers turn calls away above 1000 pending
PREPARE_IN_FLIGHT = 64
BATCH_COMMANDS_OPEN_MAX = 1_000_000  # a third of a kB each
FILES_BESIDE = 64  # open files that are not connections
LIVE_S = 0.25  # how often the live line changes


class TargetError(Exception):
    """The service cannot be reached or refuses the preparation; the text says which and what to do."""


@dataclass(frozen=True)
class Plan:
    """What to do. Units: seconds, calls/s (rate 0: closed loop), in_flight per connection."""

    target: str
    connections: int = 64
    in_flight: int = 1
    seconds: float = 30.0
    warmup: float = 2.0
    rate: float = 0.0
    mix: str = "earn=1,balance=3"
    members: int = 100_000
    skew: float = 0.9
    seed: int = 1
    currency: str = "USD"
    deadline: float = 0.0
    spin_us: int = 100
    batch: int = 0

    @property
    def weights(self) -> dict[str, float]:
        return parse_mix(self.mix)

    @property
    def address(self) -> tuple[str, int]:
        return parse_target(self.target)


def parse_target(text: str) -> tuple[str, int]:
    """HOST:PORT, also [::1]:7070. Errors: ValueError."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError(f"must be HOST:PORT with a port of 1..65535, e.g. 127.0.0.1:7070; was {text!r}")
    return host, int(port)


def parse_mix(text: str) -> dict[str, float]:
    """`earn=1,balance=3` -> weights by call. Errors: ValueError."""
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in _load.METHODS:
            raise ValueError(f"knows the calls {', '.join(_load.METHODS)}; was {name!r} in {text!r}")
        if name in weights:
            raise ValueError(f"names {name!r} twice: {text!r}")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            raise ValueError(f"needs a number behind {name}=; was {weight!r}") from None
        if not 0 <= weights[name] < 1e9:
            raise ValueError(f"needs weights of 0 or more; was {part!r}")
    if sum(weights.values()) <= 0:
        raise ValueError(f"needs at least one call with a weight above 0; was {text!r}")
    return weights


def check(plan: Plan) -> None:
    """Refuse a plan that cannot be carried out. Errors: typer.BadParameter naming the option, its value and what would be right."""
    def refuse(option: str, rule: str, value: object) -> None:
        raise typer.BadParameter(f"must be {rule}; was {value}", param_hint=f"--{option}")

    for option, parse, text in (("target", parse_target, plan.target), ("mix", parse_mix, plan.mix)):
        try:
            parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint=f"--{option}") from None
    if plan.connections < 1:
        refuse("connections", "at least 1", plan.connections)
    if plan.in_flight < 1 or plan.in_flight * plan.connections > STREAMS_MAX:
        refuse("in-flight", f"at least 1, and at most {STREAMS_MAX:,} over all connections", plan.in_flight)
    if not 0 < plan.seconds <= 86_400:
        refuse("seconds", "above 0 and at most 86400", plan.seconds)
    if not 0 <= plan.warmup <= 3600:
        refuse("warmup", "0..3600", plan.warmup)
    if not 0 <= plan.rate <= 5_000_000:
        refuse("rate", "0 (closed loop) or up to 5000000 calls/s", plan.rate)
    if not 1 <= plan.members <= MEMBERS_MAX:
        refuse("members", f"1..{MEMBERS_MAX}", plan.members)
    if not 0 <= plan.skew <= 10:
        refuse("skew", "0 (all members alike) .. 10", plan.skew)
    if not 0 <= plan.seed < 2**63:
        refuse("seed", "0 or more", plan.seed)
    if not 0 <= plan.batch <= limits.BATCH_COMMANDS_MAX:
        refuse("batch", f"0 (single calls) .. {limits.BATCH_COMMANDS_MAX}", plan.batch)
    if plan.batch * plan.connections * plan.in_flight > BATCH_COMMANDS_OPEN_MAX:
        refuse("batch", f"at most {BATCH_COMMANDS_OPEN_MAX:,} commands over all open calls", plan.batch)
    if len(plan.currency) != 3 or not plan.currency.isascii() or not plan.currency.isupper():
        refuse("currency", "an ISO 4217 code such as USD", plan.currency)
    if not 0 <= plan.deadline <= 3600:
        refuse("deadline", "0 (none) .. 3600 seconds", plan.deadline)


def allow_files(count: int) -> None:
    """Raise this process's limit of open files to what the connections need. Errors: typer.BadParameter."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + FILES_BESIDE
    if hard != resource.RLIM_INFINITY and needed > hard:
        raise typer.BadParameter(f"must be at most {hard - FILES_BESIDE}, as the system allows {hard} open files (ulimit -Hn); was {count}",
                                 param_hint="--connections")
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def reach(plan: Plan) -> None:
    """Check that somebody listens. Errors: TargetError."""
    try:
        socket.create_connection(plan.address, timeout=5).close()
    except OSError as error:
        raise TargetError(f"cannot connect to {plan.target}: {error.strerror or error}. Is `daybook serve` running there?") from None


def make_chain(plan: Plan) -> _load.Chain:
    """The made-up chain of this plan (a second for ten million members)."""
    today = datetime.datetime.now(datetime.UTC)
    return _load.Chain(members=plan.members, skew=plan.skew, seed=plan.seed, currency=plan.currency,
                       business_day=today.year * 10_000 + today.month * 100 + today.day)


def drive(client: _load.Client, run: Callable[[], None], watch: Callable[[], None]) -> None:
    """Run the client in a thread of its own and call `watch` every LIVE_S; Ctrl-C ends it politely, a second one at once."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            run()
        except BaseException as error:  # handed to the caller below
            failures.append(error)

    thread = threading.Thread(target=body, name="load", daemon=True)
    thread.start()
    while thread.is_alive():
        try:
            thread.join(LIVE_S)
            watch()
        except KeyboardInterrupt:
            client.stop()
    if failures:
        raise failures[0]


def prepare(plan: Plan, chain: _load.Chain, console: Console, *, earn: bool) -> None:
    """Open every member's account by its card; with `earn`, then give each of them points. Existing ones are fine.

    Errors: TargetError when a call fails.
    """
    host, port = plan.address
    client = _load.Client(host, port, connections=min(PREPARE_CONNECTIONS, plan.members), in_flight=PREPARE_IN_FLIGHT, chain=chain,
                          seed=plan.seed)
    columns = (TextColumn("opening the members" + (" and giving them points" if earn else "")), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=plan.members * (2 if earn else 1))
        drive(client, lambda: client.prepare(0, plan.members, earn=earn),
              lambda: progress.update(task, completed=client.progress()["completed"]))
    outcome = figures(client.result())
    if client.result()["gave_up"]:
        raise TargetError(f"{plan.target} could not be reached while the members were opened")
    if outcome["total"]["errors"] or outcome["total"]["refused"]:
        raise TargetError(f"the preparation failed: {describe_ends(outcome)}. Use --members for fewer, or --no-prepare to go without")
    if client.progress()["completed"] < client.progress()["todo"]:
        raise KeyboardInterrupt


def measure(plan: Plan, chain: _load.Chain, console: Console) -> dict[str, Any]:
    """Make the calls and give the figures (bench/measure.py), with the parameters beside them."""
    host, port = plan.address
    client = _load.Client(host, port, connections=plan.connections, in_flight=plan.in_flight, chain=chain, seed=plan.seed,
                          deadline_s=plan.deadline)
    seen = {"completed": 0, "histogram": np.zeros(len(client.histogram()), dtype=np.uint64), "turns": 0, "text": ""}
    total_s = plan.warmup + plan.seconds
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("warming up", total=total_s)

        def watch() -> None:
            seen["turns"] += 1
            progress.update(task, completed=min(total_s, seen["turns"] * LIVE_S))
            if seen["turns"] % 4:
                return
            now, histogram = client.progress(), client.histogram()
            recent = histogram - seen["histogram"]
            progress.update(task, description=(
                f"{now['completed'] - seen['completed']:>9,} calls/s"
                f"  p50 {percentile_us(recent, 0.5) / 1000:.2f} ms  p99 {percentile_us(recent, 0.99) / 1000:.2f} ms"
                + (f"  waiting {now['queued']:,}" if now["queued"] else "")
                + (f"  connections {now['connected']} of {plan.connections}" if now["connected"] < plan.connections else "")
            ))
            seen["completed"], seen["histogram"] = now["completed"], histogram

        drive(client, lambda: client.mix(plan.weights, seconds=plan.seconds, warmup_s=plan.warmup, rate=plan.rate, spin_us=plan.spin_us,
                                         batch=plan.batch), watch)
    return {"parameters": asdict(plan), **figures(client.result())}


def describe_ends(outcome: dict[str, Any]) -> str:
    """The ends that were not OK, with the first message of each: for people."""
    return "; ".join(
        f"{count:,} x {code}" + (f" ({outcome['first_messages'][code]})" if code in outcome["first_messages"] else "")
        for code, count in outcome["total"]["codes"].items()
    )


def table(outcome: dict[str, Any]) -> Table:
    """The final table: one row per call and the total."""
    result = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, caption="latencies in ms", caption_justify="right")
    result.add_column("call", no_wrap=True, min_width=max(map(len, _load.METHODS)))
    for name in ("calls/s", "errors", "refused", "p50", "p90", "p99", "p99.9", "max"):
        result.add_column(name, justify="right", no_wrap=True)
    rows = [*outcome["calls"].items(), ("total", outcome["total"])]
    for index, (name, values) in enumerate(rows):
        result.add_row(
            name, f"{values['calls_per_second']:,.0f}",
            f"[red]{values['errors']:,}[/red]" if values["errors"] else "0", f"{values['refused']:,}",
            *(digits(values[key]) for key in ("p50_us", "p90_us", "p99_us", "p999_us", "max_us")),
            style="bold" if name == "total" else None, end_section=index == len(rows) - 2,
        )
    return result


def digits(us: float) -> str:
    """Microseconds as milliseconds, with as many digits as are worth reading."""
    return f"{us / 1000:.3f}" if us < 10_000 else f"{us / 1000:,.1f}"


def load(
    target: Annotated[str, typer.Option(metavar="HOST:PORT", help="The checkout port of the service.")] = "127.0.0.1:7070",
    connections: Annotated[int, typer.Option(metavar="N", help="Connections to open; a gateway per store has one or two.")] = 64,
    in_flight: Annotated[int, typer.Option("--in-flight", metavar="N", help="Calls open at once on each connection.")] = 1,
    seconds: Annotated[float, typer.Option(metavar="S", help="How long to measure.")] = 30.0,
    rate: Annotated[float, typer.Option(metavar="CALLS_PER_S", help="Open loop: calls arrive at random at this rate, whether or not "
                                        "earlier ones were answered, and are timed from their arrival. 0: closed loop.")] = 0.0,
    mix: Annotated[str, typer.Option(metavar="CALL=WEIGHT,...", help="Which calls, and how many of each: " + ", ".join(_load.METHODS)
                                     + ".")] = "earn=1,balance=3",
    members: Annotated[int, typer.Option(metavar="N", help="Members of the made-up chain.")] = 100_000,
    skew: Annotated[float, typer.Option(metavar="S", help="How uneven they shop (Zipf's exponent). 0: all alike.")] = 0.9,
    seed: Annotated[int, typer.Option(metavar="N", help="The same seed makes the same receipts (request ids are always new).")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all figures to this file.")] = None,
    warmup: Annotated[float, typer.Option(metavar="S", help="Seconds before measuring that are not counted.")] = 2.0,
    do_prepare: Annotated[bool, typer.Option("--prepare/--no-prepare", help="First open every member's account, and give it points "
                                             "if the mix takes any.")] = True,
    currency: Annotated[str, typer.Option(metavar="CODE", help="Currency of the service's programme.")] = "USD",
    batch: Annotated[int, typer.Option(metavar="N", help="Each call is a BatchPost of N earns, whatever --mix says. 0: single "
                                       "calls.")] = 0,
    deadline: Annotated[float, typer.Option(metavar="S", help="Deadline sent with every call. 0: none.")] = 0.0,
) -> None:
    """Put a ledger under the load of a chain's tills, and say how it did.

    Members, stores, tills and receipts (6 lines, about 300 bytes) are made up, and made anew for every call.
    Without --rate the next call goes out as soon as one is answered: that finds the greatest throughput.
    With --rate calls come as customers do, and a stall of the service shows in the latencies.

    Refused calls got a definite business answer, such as "not enough points". Errors are everything else that was not
    OK: lost connections, deadlines, UNAVAILABLE. With errors, or without any answer, the exit status is 1.

    Example, against `daybook serve` on this machine:

        daybook load --connections 64 --in-flight 16 --seconds 10

        daybook load --connections 8 --batch 1000 --seconds 10

        daybook load --rate 13000 --mix earn=1,balance=3 --members 1000000 --json figures.json
    """
    plan = Plan(target=target, connections=connections, in_flight=in_flight, seconds=seconds, warmup=warmup, rate=rate, mix=mix,
                members=members, skew=skew, seed=seed, currency=currency, deadline=deadline, batch=batch)
    check(plan)
    allow_files(plan.connections)
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise typer.BadParameter(f"must be in an existing folder; was {json_file}", param_hint="--json")
    console = Console(highlight=False)
    try:
        reach(plan)
        chain = make_chain(plan)
        if do_prepare:
            prepare(plan, chain, console, earn=not plan.batch and bool(CALLS_THAT_TAKE_POINTS & set(plan.weights)))
        outcome = measure(plan, chain, console)
    except TargetError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("Stopped before there was anything to measure.", err=True)
        raise typer.Exit(130) from None
    what = f"batches of {plan.batch} earns" if plan.batch else plan.mix
    console.print(f"{what} over {plan.members:,} members, {plan.connections} x {plan.in_flight} in flight, "
                  + (f"open loop at {plan.rate:,.0f} calls/s, " if plan.rate else "closed loop, ") + f"{outcome['measured_s']:.1f} s")
    console.print(table(outcome))
    if outcome["entries"]:
        console.print(f"{outcome['entries']['per_second']:,.0f} entries/s, {outcome['entries']['refused']:,} commands refused")
    if outcome["total"]["codes"]:
        console.print("not OK: " + describe_ends(outcome), markup=False)
    if outcome["queueing"]:
        console.print(f"of these latencies the generator itself took p50 {digits(outcome['queueing']['p50_us'])} ms, "
                      f"p99 {digits(outcome['queueing']['p99_us'])} ms")
    if json_file is not None:
        json_file.write_text(json.dumps(outcome, indent=1) + "\n")
    if outcome["reasons"]:
        console.print("HTTP/2: " + "; ".join(f"{count:,} x {text}" for text, count in outcome["reasons"].items()), markup=False)
    if outcome["connects_failed"]:
        console.print(f"{outcome['connects_failed']:,} attempts to connect failed")
    if outcome["total"]["errors"] or not outcome["total"]["calls"]:
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False)
    app.command("load")(load)
    app()
