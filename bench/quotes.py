"""Quotes over gRPC: rows 4 and 5 of the rules' bars.

    python -m bench.quotes                      200 rules over all articles of the generator; the open loop under programs/grocery.yaml
    python -m bench.quotes --seconds 3 --members 20000      a quick look

Not for the rules alone (bench/rules.py). The service, its members and the generator are those of bench/run.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.load import make_chain
from bench.rows import latencies
from bench.rules import article, write_programme
from bench.run import MEMBERS, Bench, run_rows
from bench.service import ROOT

RULES = 200
ARTICLES = 20_000  # of the generator, as bench/_load.pyx numbers them
FIRST_SKU, SKU_STEP = 4_000_000_000_000, 7919
STORES = 401  # S0001 to S0400, and one that does not exist
GROCERY = ROOT / "programs" / "grocery.yaml"
QUOTES_MIN = 60_000


class Quotes(Bench):
    """The rows whose reads are quotes."""

    def currency(self, code: str) -> None:
        """Of the receipts from here on."""
        self.plan = replace(self.plan, currency=code)
        self.chain = make_chain(self.plan)

    def row_4(self) -> None:
        """64 x 1 under 200 rules."""
        folder = self.folder / "programme"
        folder.mkdir()
        rows = [{**article(i), "sku": f"{FIRST_SKU + i * SKU_STEP}"} for i in range(ARTICLES)]
        program = write_programme(folder, RULES, rows, store="S{:04}", stores=STORES, currency="USD")
        self.currency("USD")
        with self.service("row4", program) as service:
            quotes = self.drive(service, "4 quote 64x1", connections=64, in_flight=1, mix="quote=1")
            balances = self.drive(service, "4 balance 64x1", connections=64, in_flight=1, mix="balance=1", seconds=self.seconds / 2)
        rate, beside = quotes["total"]["calls_per_second"], balances["total"]["calls_per_second"]
        self.add("4", f"QuoteReceipt, 6 lines x {RULES} rules, 64 x 1", f">= {QUOTES_MIN:,}/s",
                 f"{rate:,.0f}/s; {latencies(quotes['total'])}", f"GetBalance {beside:,.0f}/s", rate >= QUOTES_MIN, quotes)

    def row_5(self) -> None:
        """The open loop under grocery.yaml."""
        self.currency("RUB")
        self.open_loop("5", GROCERY, "quote")


def main(
    seconds: Annotated[float, typer.Option(metavar="S", min=0.5, max=3600, help="How long each measurement takes.")] = 20.0,
    members: Annotated[int, typer.Option(metavar="N", min=1, help="Members of the made-up chain.")] = MEMBERS,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the ledgers are made; its disk is measured.")] = Path("build/quotes"),
) -> None:
    """Measure quotes: how many 64 tills get, and what the open loop sees when its reads are quotes."""
    run_rows(Quotes, seconds, members, folder, Quotes.row_4, Quotes.row_5)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("quotes")(main)
    app()
