"""`daybook simulate` and `daybook explain` as a person meets them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from server import console, plot
from tests.rules.lived import SOURCE, Lived
from tests.server.test_cli import ROOT, daybook, one_message


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shop = Lived()
    shop.everything()
    shop.days(6, 4)
    folder = tmp_path_factory.mktemp("rules_cli")
    newer = SOURCE.replace("programme: Lived", "programme: Newer").replace("percent: 1, round", "percent: 2, round")
    (folder / "new.yaml").write_text(newer)
    (folder / "old.yaml").write_text(SOURCE)
    return shop.write(folder / "data")


def test_simulate_tells_the_difference_and_writes_what_is_asked(data: Path) -> None:
    folder = data.parent
    done = daybook("simulate", str(data), "--program", str(folder / "new.yaml"), "--out", str(folder / "out"), "--plot",
                   str(folder / "cost.svg"))
    assert done.returncode == 0, done.stderr
    for text in ("Newer against what the journal gave", "by rule", "who pays, EUR", "get more", "Dairy days", "alpina", "/s)"):
        assert text in done.stdout, text
    assert {path.name for path in (folder / "out").iterdir()} == {"rules.parquet", "members.parquet", "days.parquet"}
    picture = ElementTree.fromstring((folder / "cost.svg").read_text())
    lines = [element for element in picture.iter() if element.tag.endswith("polyline")]
    assert len(lines) == 2 and all(len(line.get("points", "").split()) == 6 for line in lines)
    done = daybook("simulate", str(data), "--program", str(folder / "new.yaml"), "--against", str(folder / "old.yaml"), "--json")
    found = json.loads(done.stdout)
    assert (found["programme"], found["against"]) == ("Newer", "Lived") and found["cost"][1] > found["cost"][0] > 0
    assert sum(rule["cost"][1] for rule in found["rules"]) == pytest.approx(found["cost"][1], abs=len(found["rules"]))


def test_simulate_says_what_is_wrong(data: Path) -> None:
    folder, new = data.parent, str(data.parent / "new.yaml")
    (folder / "bad.yaml").write_text(SOURCE.replace('percent: 1, round', 'percnt: 1, round'))
    one_message(daybook("simulate", str(data), "--program", str(folder / "bad.yaml")), 1, r"bad.yaml:30:18: rules\[0\].percnt: unknown key")
    one_message(daybook("simulate", str(folder / "nothing"), "--program", new), 1, "nothing")
    one_message(daybook("simulate", str(data), "--program", new, "--from", "yesterday"), 2, "such as 2026-03-01")
    (folder / "empty").mkdir()
    one_message(daybook("simulate", str(folder / "empty"), "--program", new), 2, "no data directory")
    (folder / "no.parquet").write_text("no")
    one_message(daybook("simulate", str(folder / "no.parquet"), "--program", new), 1, "cannot be read")


LIMITS = """\
limits:
  - {name: Busy, of: earns, per: member, window: day, at_most: 1, then: mark}
  - {name: Too busy, of: earns, per: member, window: day, at_most: 2, then: refuse}
  - {name: Cashiers, of: earns, per: [cashier, member], window: day, at_most: 2, then: mark}
  - {name: Looks, of: balances, per: member, window: day, at_most: 9, then: refuse}
"""


def test_simulate_says_whom_limits_would_have_met(data: Path) -> None:
    folder = data.parent
    (folder / "limits.yaml").write_text(LIMITS)
    done = daybook("simulate", str(data), "--limits", str(folder / "limits.yaml"), "--plot", str(folder / "met.svg"))
    assert done.returncode == 0, done.stderr
    for text in ("limits.yaml over the journal of Lived", "Too busy", "not testable, as look-ups are not in the journal: Looks",
                 "no entry has what they ask for: Cashiers", "would have stopped", "once or twice", "who is met most", "/s)"):
        assert text in done.stdout, text
    assert "above a limit" in (folder / "met.svg").read_text()
    found = json.loads(daybook("simulate", str(data), "--limits", str(folder / "limits.yaml"), "--json").stdout)
    busy, too_busy, _, looks = found["limits"]
    assert busy["above"]["entries"] > too_busy["above"]["entries"] == found["refused"]["entries"] > 0 == looks["counted"]
    assert found["members"] == 4 and sum(day[2] for day in found["days"]) == found["refused"]["entries"]
    assert found["top"][0]["stopped"] > 0 and found["refused"]["earned"] > 0


def test_simulate_says_what_is_wrong_with_limits(data: Path) -> None:
    folder = data.parent
    (folder / "bad.yaml").write_text(LIMITS.replace("of: earns, per: member", "of: earn, per: member", 1))
    one_message(daybook("simulate", str(data), "--limits", str(folder / "bad.yaml")), 1, r"bad.yaml:2:22: limits\[0\].of: must be one of")
    one_message(daybook("simulate", str(data), "--limits", str(folder / "none.yaml")), 1, "none.yaml: cannot be read")
    (folder / "good.yaml").write_text(LIMITS)
    good = str(folder / "good.yaml")
    one_message(daybook("simulate", str(data)), 2, "give --program FILE or --limits FILE")
    one_message(daybook("simulate", str(data), "--limits", good, "--program", str(folder / "new.yaml")), 2, "not both")
    one_message(daybook("simulate", str(data), "--limits", good, "--out", str(folder / "out")), 2, "--out are for --program")
    one_message(daybook("simulate", str(folder), "--limits", good), 2, "is no data directory")
    one_message(daybook("simulate", str(data), "--limits", good, "--to", "soon"), 2, "such as 2026-03-01")
    assert "--limits" in daybook("simulate", "--help").stdout


def test_a_bar_has_words_for_all_that_it_shows() -> None:
    """Short work shows none, so a missing word would be seen by the owner of a long journal only."""
    used = {word for path in (ROOT / "server").glob("*.py") for word in re.findall(r'bar\.update\("(\w+)"', path.read_text())}
    assert "limits" in used and used <= set(console.Bar.words)


def test_explain_tells_support_why(data: Path) -> None:
    done = daybook("explain", str(data), "11", "--rules")
    assert done.returncode == 0, done.stderr
    words = re.sub(r"[\s│]+", " ", done.stdout)
    for text in ("1. receipt, level base", "1 % of 23.90 EUR, at 0.10 a point; exactly 2.39 points", "percent: 1, round: half_up",
                 "not known", "Decided once more as everything stood then: the same."):
        assert text in words, text
    same = json.loads(daybook("explain", str(data), "--request", "request-00000010", "--json").stdout)
    assert (same["sequence"], same["differs"], same["lines"][0]["sku"]) == (11, [], "milk")
    receipt = same["receipt"]
    by_receipt = f"{receipt['store']}/{receipt['till']}/{receipt['business_day']}/{receipt['number']}"
    assert json.loads(daybook("explain", str(data), "--receipt", by_receipt, "--json").stdout) == same
    one_message(daybook("explain", str(data), "99999"), 1, "the journal has no entry 99999: it ends with")
    one_message(daybook("explain", str(data)), 2, "say which entry")
    one_message(daybook("explain", str(data), "--receipt", "1/2"), 2, "STORE/TILL/DAY/NUMBER")
    one_message(daybook("explain", str(data.parent), "1"), 1, "not a ledger's data directory")


@pytest.mark.parametrize("highest", [0, 1, 7, 999, 10**9, 3 * 10**15])
def test_a_picture_has_round_marks_that_hold_its_values(highest: int) -> None:
    marks = plot._steps(highest)
    assert marks[0] == 0 and marks[-1] > highest and len(marks) <= 8
    ElementTree.fromstring(plot.two_lines("A < B", "EUR", 20_000, [highest], [0], ("a & b", "c")))
