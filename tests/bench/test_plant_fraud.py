"""The planted year comes to its end, finds what is far above a bound, and nothing but fraud is labelled as fraud; not its full figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import plant_fraud
from bench.service import ROOT
from ledger import backtest


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("planted") / "data"
    done = subprocess.run([sys.executable, "-m", "bench.plant_fraud", "--seed", "7", "--quick", "--json", "--keep", str(folder)], cwd=ROOT,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stdout + done.stderr
    return json.loads(done.stdout), folder


def test_every_limit_is_judged_and_every_pattern_planted(small: tuple[dict[str, Any], Path]) -> None:
    made, _ = small
    rows = {row["name"]: row for row in plant_fraud.programme()[2]}
    assert [one["name"] for one in made["limits"]] == list(rows) and set(plant_fraud.AIMS) <= set(rows)
    assert {name for aims in plant_fraud.AIMS.values() for name in aims} == set(plant_fraud.PATTERNS) == {row["pattern"]
                                                                                                         for row in made["patterns"]}
    for one in made["limits"]:
        assert one["cases_found"] <= one["cases"] and one["entries_found"] <= one["entries"]
        assert one["entries_found"] <= one["above_planted"] <= one["above"] and one["alarms_planted"] <= one["alarms"]
    assert sum(row["entries"] for row in made["patterns"]) == made["planted"]
    found = {row["pattern"]: row["found"] for row in made["patterns"]}
    for pattern in ("account farm", "enrolment by device", "enrolment at a till", "numbers tried", "refused over and over"):
        assert found[pattern] > 0, pattern
    assert not any("code 8" in reason for reason in made["refused"]), "a full table"


def test_the_back_test_says_what_the_ledger_marked(small: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """Both count entries above each limit in the planted journal: one as it was posted, one behind it."""
    made, data = small
    marks = tmp_path / "marks.yaml"
    marks.write_bytes(plant_fraud.programme()[1])
    tested = {limit.name: limit for limit in backtest.back_test(data, marks).limits}
    for one in made["limits"]:
        if tested[one["name"]].testable and "eservation" not in one["name"] and "Burns by" not in one["name"]:  # events of two entries
            assert tested[one["name"]].above.entries == one["above"], one["name"]


def test_the_limits_section_is_read_as_the_core_writes_it() -> None:
    assert plant_fraud.limits_of(bytes([0, 1, 2, 0x81, 0x01, 3])) == (0, 128)
    assert plant_fraud.limits_of(bytes([0x80, 0x01, 7, 6])) == (6,)
