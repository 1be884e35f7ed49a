"""The bench of limits in the core comes to its end and prints what it must; not what it measures."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.limits import limits_text
from bench.service import ROOT


def bench(*arguments: str) -> str:
    return subprocess.run([sys.executable, "-m", "bench.limits", "--quick", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=True).stdout


def test_an_earn_is_measured_with_and_without_limits() -> None:
    assert limits_text().count("- {name") == 20
    found = json.loads(bench("--json"))
    # One round: the medians are its figures.
    assert found["without_ns"] > 0 and found["with_ns"] > 0
    assert found["more_ns"] == found["quick_more_ns"] == found["with_ns"] - found["without_ns"]
    assert "20 limits over 6 keys" in bench()
