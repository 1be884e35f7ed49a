"""Small ledgers on real directories for the tests of tail, journal and recovery."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger import limits
from ledger.engine import OpenLedger, open_ledger

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "programs" / "base.yaml"

Opener = Callable[..., OpenLedger]


@pytest.fixture
def small_ledger(tmp_path: Path) -> Iterator[Opener]:
    """Opens (or creates) the ledger in tmp_path/data; without threads, so that nothing drains but finish()."""
    opened: list[OpenLedger] = []

    def opener(**arguments: object) -> OpenLedger:
        settings = {"members_max": 1000, "ids_max": 10_000, "tail_bytes": limits.TAIL_BYTES_MIN, **arguments}
        ledger = open_ledger(settings.pop("data", tmp_path / "data"), settings.pop("program", PROGRAM), **settings)
        opened.append(ledger)
        return ledger

    yield opener
    for ledger in opened:
        ledger.close()
