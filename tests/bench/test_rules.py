"""The benches of rules come to their end and print what they must; not what they measure."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.service import ROOT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Bars may be missed on a busy machine: that ends with 1 and is no fault of the bench."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


def test_every_bar_stands_beside_its_control_and_the_curve_below() -> None:
    found = json.loads(bench("bench.rules", "--rules", "50", "200", "--seconds", "0.001", "--json").stdout)
    assert [(row["lines"], row["rules"], row["bar"]) for row in found["bars"]] == [(6, 200, 2.0)]
    assert found["bars"][0]["control_microseconds"] > 0 and found["bars"][0]["rules_that_gave"] > 1
    assert [row["rules"] for row in found["curve"]] == [row["rules"] for row in found["images"]] == [50, 200]


@pytest.mark.timeout(600)
def test_programmes_are_published_beside_the_loop(tmp_path: Path) -> None:
    bench("bench.publish", "--rules", "20", "--skus", "20000", "--members", "200", "--rate", "100", "--seconds", "0.5", "--times", "2",
          "--folder", str(tmp_path), "--json", str(tmp_path / "found.json"))
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    assert len(found["published_s"]) >= 2
    assert f'version="{len(found["published_s"]) + 1}"' in found["in_force"]
    assert sum(row["met"] is not None for row in found["rows"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
