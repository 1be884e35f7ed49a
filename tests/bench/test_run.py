"""The bench's own parts: that it takes an entry apart rightly and measures the disk; not what it measures."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench import _flush, controls, run


def test_the_sections_of_an_entry_are_all_of_its_bytes(tmp_path: Path):
    bench = run.Bench(tmp_path, 1.0, Console(quiet=True), members=10)
    bench.row_7()
    found = bench.runs["7 bytes"]
    assert sum(found["sections"].values()) == pytest.approx(found["entry"])
    assert set(found["sections"]) == {"header", "context", "postings", "lots", "lines", "awards", "after", "standing"}
    assert found["sections"]["lines"] > 0.3 * found["entry"]


def test_bare_flushes_are_counted_and_leave_nothing(tmp_path: Path):
    counted = _flush.bare_flushes(str(tmp_path / "file"), 4096, 1 << 20, 0.3)
    assert counted["count"] == counted["histogram"].sum() > 3
    assert counted["max_ns"] * counted["count"] >= counted["sum_ns"] > 0
    assert counted["sum_ns"] == pytest.approx(counted["seconds"] * 1e9, rel=0.01)
    assert not list(tmp_path.iterdir())


def test_bare_flushes_on_a_folder_that_is_not_there_is_an_error(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        _flush.bare_flushes(str(tmp_path / "no" / "file"), 4096, 1 << 20, 0.1)


def test_lmdb_commits_are_counted_and_leave_nothing(tmp_path: Path):
    counted = controls.lmdb_commits(tmp_path / "lmdb", 0.3)
    assert counted["commits_per_second"] > 1 and 0 < counted["p50_us"] <= counted["p99_us"] <= counted["max_us"]
    assert not list(tmp_path.iterdir())


def test_the_grpc_echo_gives_back_what_it_gets(tmp_path: Path):
    import grpc

    with run.Bench(tmp_path, 1.0, Console(quiet=True), members=10).echo() as target, grpc.insecure_channel(target) as channel:
        assert channel.unary_unary("/loyalty.ledger.v1.LedgerService/EarnPoints")(b"bytes", timeout=60) == b"bytes"


def test_the_machine_is_described(tmp_path: Path):
    about = run.machine(tmp_path)
    assert set(about) == {"cpu", "memory", "kernel", "disk", "python", "commit", "time"} and all(about.values())


@pytest.mark.parametrize(("arguments", "words"), [
    (["--only", "9"], ["--only", "among"]),
    (["--seconds", "0"], ["--seconds", "0.5..3600"]),
])
def test_bad_values_are_one_clear_error(arguments: list[str], words: list[str], tmp_path: Path):
    import typer

    app = typer.Typer()
    app.command("bench")(run.main)
    result = CliRunner().invoke(app, [*arguments, "--folder", str(tmp_path / "x")], env={"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "160"})
    assert result.exit_code == 2 and all(word in result.output for word in words), result.output
