"""The bench of the loop beside heavy work: that each row comes to its end and counts rightly; not what it measures."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
import zoneinfo
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench import beside
from bench.service import ROOT

MEMBERS, LOTS, STORM = 5000, 2, 400
LATE_IDS_MAX = 2000  # less than the members' last receipts, and so much that the storm does not fill it

pytestmark = pytest.mark.timeout(1200)  # a dozen processes start one after another, half a minute on a machine that is not busy

Found = tuple[dict[str, Any], list[Path]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The JSON of a whole run on a ledger that is kept, and what the run left of its folder."""
    folder = tmp_path_factory.mktemp("beside")
    done = subprocess.run([sys.executable, "-m", "bench.beside", "--seconds", "0.5", "--members", str(MEMBERS), "--lots", str(LOTS),
                           "--storm", str(STORM), "--late-ids-max", str(LATE_IDS_MAX), "--rate", "200", "--folder", str(folder / "work"),
                           "--keep", str(folder / "kept"), "--json", str(folder / "found.json")],
                          cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text()), sorted(folder.iterdir())


def test_the_ledger_has_the_members_identifiers_and_lots_that_were_asked_for(found: Found):
    """A second identifier each, and lots that do not fall into one."""
    made = found[0]["ledger"]["found"]
    assert (made["members"], made["identifiers"], made["lots"]) == (MEMBERS, 2 * MEMBERS, LOTS * MEMBERS)
    assert made["journal_sequence"] >= (1 + LOTS) * MEMBERS


def test_snapshots_back_ups_lists_and_scrapes_were_done_beside_the_loop(found: Found):
    run = found[0]["runs"]["5"]
    work = run["work"]
    assert work["snapshots"] >= 1 and work["snapshot_bytes"] > MEMBERS * 50
    assert work["back_ups"] >= 1 and work["scrapes"] >= 1 and work["lists"] >= 1
    assert all(entries >= beside.LIST_ENTRIES for entries in work["list_entries"])
    for stretch in ("alone", "beside"):
        assert run[stretch]["calls"]["balance"]["calls"] + run[stretch]["calls"]["earn"]["calls"] > 0


def test_a_storm_posts_every_receipt_and_asks_the_runs_only_where_ids_were_dropped(found: Found):
    runs = {name: run for name, run in found[0]["runs"].items() if name.startswith("6 ")}
    assert len(runs) == 3
    for name, run in runs.items():
        assert run["posted"] == run["wanted"] == STORM, name
        assert run["metrics"]["ledger_journal_sequence"] >= STORM
        assert run["metrics"]["ledger_ids_refused_writes_total"] == 0
        assert [23 < hours < 49 for hours in run["age hours"]] == [True, True]
        assert (run["lookups"] > STORM / 4) == ("dropped" in name) and (run["runs"] > 0) == ("dropped" in name)


def test_every_tenth_member_loses_a_lot_at_midnight_and_no_point_more(found: Found):
    run = found[0]["runs"]["8"]
    assert run["expiring"] == MEMBERS // 10
    assert run["points"] == run["expiring"] * 50_000 and run["points left"] == 0
    assert 0 < run["entries"] <= run["expiring"]  # a write of the loop settles its member itself


def test_all_bars_stand_in_the_table_and_only_the_ledger_is_left(found: Found):
    outcome, left = found
    bars = {(row["row"], row["work"].rpartition(": ")[2], row["bar"]) for row in outcome["rows"] if row["met"] is not None}
    assert {("5", "reads p50", "<= 0.1 ms"), ("5", "writes p50", "<= 2.5 x flush"), ("5", "writes p90", "< 1 ms"),
            ("6", "reads p99", "<= 2 x alone"), ("6", "writes p99", "<= 2 x alone"), ("8", "reads p99", "<= 1.2 x alone"),
            ("8", "writes p99", "<= 1.2 x alone")} <= bars
    assert [path.name for path in left] == ["found.json", "kept"]


@pytest.mark.parametrize("day", ["2026-11-22T23:59:59", "2027-02-28T12:00:00", "2028-02-28T12:00:00", "2027-03-13T12:00:00"])
def test_a_purchase_of_a_year_before_expires_at_the_midnight(day: str):
    zone = zoneinfo.ZoneInfo("America/New_York")
    now = datetime.datetime.fromisoformat(day).replace(tzinfo=zone)
    midnight, bought = (datetime.datetime.fromtimestamp(moment, zone) for moment in beside.next_expiry(now.timestamp()))
    assert (midnight.hour, midnight.minute, midnight.second) == (0, 0, 0)
    assert datetime.timedelta(0) < midnight - now <= datetime.timedelta(days=2)
    assert (bought.year + 1, bought.month, bought.day) == (midnight.year, midnight.month, midnight.day)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--only", "7"], ["--only", "among 5,6,8"]),
    (["--seconds", "0"], ["--seconds", "0.5..3600"]),
    (["--lots", "99"], ["--lots", "1..12"]),
    (["--keep", "."], ["--keep", "made by this bench"]),
])
def test_bad_values_are_one_clear_error(arguments: list[str], words: list[str], tmp_path: Path):
    app = typer.Typer()
    app.command("beside")(beside.main)
    result = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path / "x")], env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "160"})
    assert result.exit_code == 2 and all(word in result.output for word in words), result.output
