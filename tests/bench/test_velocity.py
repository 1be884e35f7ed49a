"""The bench of velocity counters comes to its end and prints what it must; not what it measures."""

from __future__ import annotations

import json
import subprocess
import sys

from bench.service import ROOT


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A busy machine may have paused it: that ends with 1 and is no fault of the bench."""
    done = subprocess.run([sys.executable, "-m", "bench.velocity", *arguments], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True,
                          text=True)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


def test_a_command_a_day_and_a_sketch_are_measured():
    found = json.loads(bench("--quick", "--json").stdout)
    assert found["command"]["ns"] > 0 and found["command"]["counters"] > 1000
    assert [day["no_memory"] for day in found["days"]["days"]] == [0] * 6
    assert all(day["room"] for day in found["days"]["days"]), "the dead are taken out as the new come in"
    assert [row["different"] for row in found["sketch"]] == [2_000, 10_000, 100_000]


def test_it_prints_a_table_for_people():
    assert "a command, 20 counters over 6 keys" in bench("--quick").stdout
