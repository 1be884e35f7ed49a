"""The open loop of tills under grocery.yaml, without limits and then with forty of them.

    python -m bench.limits_loop                 20 seconds each
    python -m bench.limits_loop --seconds 5 --members 20000     a quick look

The rows and bars are those of row 4 of bench/run.py, whose loop and service it uses. Not for the core alone (bench/limits.py). The limits
are of every key that the loop's calls have, of all windows, also of look-ups; nothing is above, so that every call does all the work.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.limits import limits_text
from bench.load import make_chain
from bench.quotes import GROCERY
from bench.run import MEMBERS, Bench, run_rows

MORE = 20


def forty_limits() -> str:
    """The twenty of bench/limits.py, ten more on receipts, ten on look-ups."""
    rows = [limits_text()]
    for i in range(MORE):
        of, key = ("earns", ("member", "till", "store", "[store, member]")[i % 4]) if i % 2 else ("balances", "member")
        window = ("week", "month", "ever", "10 minutes", "2 hours", f"{3 + i} minutes")[i % 6]
        rows.append(f"  - {{name: More {i}, of: {of}, per: {key}, window: {window}, at_most: {4_000_000_000 - i}, then: refuse}}\n")
    return "".join(rows)


class Limited(Bench):
    """Row 4 twice."""

    def rows(self) -> None:
        """Without and with."""
        self.plan = replace(self.plan, currency="RUB")
        self.chain = make_chain(self.plan)
        program = self.folder / "limited.yaml"
        program.write_text(GROCERY.read_text() + forty_limits())
        self.open_loop("without", GROCERY, "balance")
        self.open_loop("with 40", program, "balance")


def main(
    seconds: Annotated[float, typer.Option(metavar="S", min=0.5, max=3600, help="How long each loop takes.")] = 20.0,
    members: Annotated[int, typer.Option(metavar="N", min=1, help="Members of the made-up chain.")] = MEMBERS,
    folder: Annotated[Path, typer.Option(metavar="DIR", help="Where the ledgers are made; its disk is measured.")] = Path("build/limits"),
) -> None:
    """Measure what the open loop sees of forty limits."""
    run_rows(Limited, seconds, members, folder, Limited.rows)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command("limits-loop")(main)
    app()
