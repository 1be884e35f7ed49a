"""The benches that run for long, made tiny: they run to their end, and what they count is what is in the journal. Never how fast it was."""

from __future__ import annotations

import json
import os
import random
import shutil
import xml.etree.ElementTree as xml
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from bench import _load, followed, long, measure, soak, soak_plot, start
from ledger import verify
from tests.bench.stand_in import StandIn

EARN = 1  # kind of an entry


def run(main: Any, *arguments: Any) -> Any:
    app = typer.Typer()
    app.command()(main)
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "200"})


def run_well(main: Any, *arguments: Any) -> str:
    result = run(main, *arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


# --- bench.long -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("lines", [0, 6])
def test_a_filled_journal_holds_what_was_sent_and_lists_it(lines: int, tmp_path: Path):
    figures = tmp_path / "figures.json"
    output = run_well(long.main, "--entries", 8000, "--first", 2500, "--lines", lines, "--members", 700, "--ids-max", 2000,
                      "--seconds", 0.5, "--rounds", 1, "--lists", 20, "--folder", tmp_path / "long", "--keep", "--json", figures)
    found = json.loads(figures.read_text())
    assert (found["start"]["entries"], found["end"]["entries"], found["filling"]["earns"]) == (2500, 8000, 8000)
    assert found["filling"]["business_days"] == 8000 // 1500 + 1
    assert found["ids_runs"] > 0, "8000 ids do not fit into memory"
    report = verify.verify(tmp_path / "long" / "data")
    assert report.totals["kinds"][EARN] == 8000 + found["start"]["sent"] + found["end"]["sent"]
    assert report.totals["sequence"] - 5 <= found["index_sequence"] <= report.totals["sequence"], "but for a digest now and then"
    assert abs(found["index_sequence"] - found["follower_sequence"]) <= 5
    for stage in (found["start"], found["end"]):
        assert set(stage["lists"]) == {"member", "receipt", "store and day"} and stage["stretches"] > 0
        assert all(0 < row["p50_ms"] <= row["max_ms"] for row in stage["lists"].values())
        assert stage["lists"]["receipt"]["entries_a_page"] == 1, "a receipt has one earn"
    assert found["disk"]["journal"]["per_entry"] > 0.9 * long.entry_bytes(lines)
    assert "first page of ListEntries by member" in output and not (tmp_path / "long" / "flush").exists()


def test_receipts_with_lines_are_known_to_be_longer():
    assert 100 < long.entry_bytes(0) < 200 < long.entry_bytes(6) < 400


def test_a_journal_that_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**11, 0, 2 * 10**10))
    for main, arguments in ((long.main, ["--entries", 200_000_000]), (start.main, ["--members", 20_000_000, "--ids-max", 20_000_000])):
        result = run(main, *arguments, "--folder", tmp_path / "x")
        assert result.exit_code == 2 and "GB" in result.output and "20.0 GB" in result.output, result.output
    assert list((tmp_path / "x").iterdir()) == []


def test_the_day_of_a_till_can_be_closed():
    chain = _load.Chain(members=10, skew=0, seed=1, currency="USD", business_day=20260101)
    with StandIn() as service:
        for day in (None, 20260203):
            client = _load.Client("127.0.0.1", service.port, connections=1, in_flight=2, chain=chain)
            if day:
                client.set_day(day)
            client.mix({"earn": 1}, seconds=0, warmup_s=0, calls=20)
            assert measure.figures(client.result())["total"]["codes"] == {}
    assert [request.receipt.key.business_day for _, request in service.seen] == [20260101] * 20 + [20260203] * 20


# --- bench.start ------------------------------------------------------------------------------------------------------

def test_starts_begin_with_the_snapshot_of_everything(tmp_path: Path):
    figures, folder = tmp_path / "figures.json", tmp_path / "start"
    output = run_well(start.main, "--members", 2500, "--lots", 2, "--ids-max", 20_000, "--warm", 1, "--cold", 1, "--folder", folder,
                      "--keep", "--json", figures)
    found = json.loads(figures.read_text())
    assert {name: found["made"][name] for name in ("lots", "identifiers", "refused")} == {"lots": 5000, "identifiers": 5000, "refused": 0}
    assert {name: found["snapshot"][name] for name in ("members", "lots", "identifiers")} == {
        "members": 2500, "lots": 5000, "identifiers": 5000}
    starts = found["cold"]["starts"] + found["warm"]["starts"]
    assert len(starts) == 2 and all(one["members"] == 2500 and one["asked_member"] == 1 for one in starts)
    assert all(one["replayed"] <= 10 for one in starts), "there is nothing behind the snapshot but a digest for each stop"
    assert "warm cache" in output and "cold cache" in output
    # The same directory again, without making anything.
    run_well(start.main, "--data", folder / "data", "--warm", 1, "--cold", 0, "--json", figures)
    again = json.loads(figures.read_text())
    assert "made" not in again and again["warm"]["starts"][0]["members"] == 2500
    assert again["snapshot"]["sequence"] >= found["snapshot"]["sequence"]


def test_dropping_from_the_page_cache_changes_no_file(tmp_path: Path):
    (tmp_path / "below").mkdir()
    content = random.Random(1).randbytes(300_000)
    for path in (tmp_path / "a", tmp_path / "below" / "b"):
        path.write_bytes(content)
    assert start.drop_cache(tmp_path) == 600_000
    assert (tmp_path / "below" / "b").read_bytes() == content and start.read_plainly(str(tmp_path / "a")) > 0


def test_a_directory_that_is_none_is_one_clear_error(tmp_path: Path):
    result = run(start.main, "--data", tmp_path)
    assert result.exit_code == 2 and "--data" in result.output and "FORMAT" in result.output


# --- bench.soak -------------------------------------------------------------------------------------------------------

def test_a_soak_counts_every_call_in_one_slot(tmp_path: Path):
    lines, picture = tmp_path / "soak.jsonl", tmp_path / "soak.svg"
    output = run_well(soak.main, "--minutes", 0.04, "--slot", 0.5, "--rate", 400, "--members", 100, "--ids-max", 600, "--folder",
                      tmp_path / "soak", "--json", lines, "--plot", picture)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    slots, total = [row["slot"] for row in rows if "slot" in row], rows[-1]["total"]
    assert rows[0]["head"]["rate"] == 400 and len(slots) >= 1
    for name, call in soak.CALLS.items():
        assert sum(slot[name]["calls"] for slot in slots) == total["calls"][call]["calls"] > 0
    assert total["total"]["errors"] == 0
    assert slots[-1]["id_runs"] >= 0.5, "the ids of some five hundred earns fill a generation of three hundred"
    assert all(slot["memory"][name]["own"] > 0 for slot in slots for name in ("service", "follower"))
    assert sum(slot["flush"]["count"] for slot in slots) > 0
    assert xml.parse(picture).getroot().tag.endswith("svg") and "too few to say" in output
    assert not (tmp_path / "soak").exists()


def make_slots(count: int, grows: float = 0.0, noise: float = 0.1) -> list[dict[str, Any]]:
    """A made-up soak; p99.9 of the writes and the service's memory grow by `grows` over its second half."""
    dice = random.Random(4)
    slots = []
    for i in range(count):
        more = 1 + 2 * grows * i / count
        times = {name: {"p50_us": 300.0, "p99_us": 3000.0, "p999_us": 20_000 * (more if name == "writes" else 1) * dice.gauss(1, noise)}
                 for name in ("writes", "reads")}
        slots.append({
            "t": 10.0 * (i + 1), "seconds": 10.0, **times, "flush": {"max_us": 50_000.0}, "snapshots": i // 6, "id_runs": i / 6,
            "tail_turns": i / 2, "memory": {"service": {"own": int(2**30 * more)}, "follower": {"own": 2**29}}})
    return slots


def test_a_slope_is_told_from_chance():
    line = soak.trend([0, 10, 20, 30], [1.0, 2.0, 3.0, 4.0])
    assert line.middle == 2.5 and line.growth == pytest.approx(3) and line.error == pytest.approx(0, abs=1e-9)
    assert line.flat(3.1) is True and line.flat(2.9) is False
    stood_still = [1.0] * 30
    stood_still[22] = stood_still[27] = 100.0
    assert soak.trend([10.0 * i for i in range(30)], stood_still).growth == 0, "two bad slots are no growth"
    assert soak.Trend(10, -5, 1).flat(1) is True, "falling is fine"
    assert soak.Trend(10, 5, 6).flat(1) is None


@pytest.mark.parametrize(("grows", "met"), [(0.0, [True] * 4), (0.9, [False, True, False, True])])
def test_what_grows_misses_its_bar(grows: float, met: list[bool]):
    rows = soak.judge(make_slots(180, grows))
    assert [row["met"] for row in rows] == met, rows
    assert [row["work"].split(":")[0] for row in rows] == ["writes", "reads", "service", "follower"]


def test_a_short_soak_is_not_judged():
    assert [row["met"] for row in soak.judge(make_slots(10))] == [None]


def test_the_picture_is_small_and_the_same_figures_give_the_same(tmp_path: Path):
    head = {"rate": 13_000, "minutes": 30, "members": 1_000_000, "slot": 10}
    for name in ("a", "b"):
        soak_plot.draw(head, make_slots(180), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    text = (tmp_path / "a").read_text()
    assert len(text) < 80_000 and xml.fromstring(text) is not None
    assert all(words in text for words in ("13,000 calls/s for 30 minutes", "snapshot written (29)", "tail turned over (89)", "p99.9"))


def test_every_event_is_marked_in_its_slot():
    slots = make_slots(20)
    at = soak_plot.events(slots, "tail_turns")
    assert len(at) == int(slots[-1]["tail_turns"]) and at == sorted(at)
    crowded = soak_plot.events([{"t": 60.0, "seconds": 60.0, "snapshots": 4}], "snapshots")
    assert all(0 < minute < 1 for minute in crowded) and len(set(crowded)) == 4


def test_the_memory_of_this_process_is_its_own():
    found = followed.memory_bytes(os.getpid())
    assert 1 << 20 < found["own"] < 1 << 36 and found["mapped"] > 0


# --- wrong use --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("main", "arguments", "words"), [
    (long.main, ["--entries", 1], ["--entries", "2,000.."]),
    (long.main, ["--entries", 5000, "--first", 6000], ["--first", "5,000"]),
    (long.main, ["--lines", 3], ["--lines", "0 or 6"]),
    (long.main, ["--ids-max", 1000], ["--ids-max", "business day", "was 1,000"]),
    (start.main, ["--members", 20, "--ids-max", 10], ["--ids-max", "--members"]),
    (start.main, ["--lots", 7], ["--lots", "0..6"]),
    (soak.main, ["--minutes", 0], ["--minutes", "was 0"]),
    (soak.main, ["--ids-max", 500], ["--ids-max", "too small"]),
])
def test_bad_values_are_one_clear_error(main: Any, arguments: list[Any], words: list[str], tmp_path: Path):
    result = run(main, *arguments, "--folder", tmp_path / "x")
    assert result.exit_code == 2 and all(word in " ".join(result.output.split()) for word in words), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize("main", [long.main, start.main, soak.main])
def test_a_folder_that_holds_something_is_left_alone(main: Any, tmp_path: Path):
    (tmp_path / "photo.jpg").touch()
    result = run(main, "--folder", tmp_path)
    assert result.exit_code == 2 and "new or empty" in " ".join(result.output.split()), result.output
    assert (tmp_path / "photo.jpg").exists()
