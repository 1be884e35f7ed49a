"""`explain`: the entry is the truth, how it came about is what the core finds as everything stood then, and the words fit both."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ledger import explain
from ledger.journal import read_entry, scan
from tests.ledger.forging import Forge
from tests.rules.lived import Lived
from tests.test_golden import GOLDEN, unpack

SEED = 11


@pytest.fixture(scope="module")
def shop() -> Lived:
    made = Lived()
    made.everything()
    made.days(12, SEED)
    return made


@pytest.fixture(scope="module")
def data(shop: Lived, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shop.write(tmp_path_factory.mktemp("explain") / "data")


def receipts(shop: Lived) -> list[tuple[int, dict[str, Any]]]:
    entries = ((sequence, read_entry(entry)) for sequence, entry in enumerate(shop.core.entries(), start=1))
    return [(sequence, entry) for sequence, entry in entries if entry["kind"] in ("earn", "commit")]


def test_every_receipt_is_explained_by_what_it_was_given(shop: Lived, data: Path) -> None:
    all_of_them = receipts(shop)
    assert {entry["status"] for _, entry in all_of_them} > {0}, "refusals too"
    assert any(entry.get("context", {}).get("payment") == 2 for _, entry in all_of_them), "a capture too"
    for sequence, entry in all_of_them:
        found = explain.explain(data, sequence)
        assert found["differs"] == [], sequence
        given: dict[int, int] = {}
        for award in entry.get("awards", ()):
            given[award["rule"]] = given.get(award["rule"], 0) + award["points"]
        told = {row["rule"]: row["gave"] for row in found["rules"] if row["gave"] and row["unit"] != "EUR"}
        assert told == given
        off = sum(row["gave"] for row in found["rules"] if row["gave"] and row["unit"] == "EUR")
        assert off == sum(row["amount_minor"] for row in entry.get("discounts", ()))
        assert sum(line["discount_minor"] for line in found["lines"]) == off
        assert all(row["words"] and row["source"].startswith("{name: " + row["name"]) for row in found["rules"])


def told(found: dict[str, Any], name: str) -> str:
    return next("; ".join(row["words"]) for row in found["rules"] if row["name"] == name)


def test_amount_rate_rounding_and_cuts_are_said_in_words(shop: Lived, data: Path) -> None:
    first = next(sequence for sequence, entry in receipts(shop) if "receipt" in entry)
    found = explain.explain(data, first)
    assert told(found, "Base") == "1 % of 23.90 EUR, at 0.10 a point; exactly 2.39 points, rounded to the nearest, halves up: 2"
    assert told(found, "Dairy days") == "3 for every full 1.00 EUR of 12.52 EUR; that is 36 points"
    assert told(found, "Favourite") == "2 for each of its lines, of 12.52 EUR; that is 2 points"
    assert told(found, "App") == "3 % of 16.39 EUR, line by line; exactly 0.4917 EUR, rounded down, line by line: 0.48"
    assert told(found, "Code") == "2 % of 23.90 EUR; exactly 0.478 miles, rounded down: 0.47"
    assert found["notices"] == ["unknown promo code 'JUNE'"] and (found["receipt_number"], found["tier"]) == (1, "base")
    words = {word for sequence, _ in receipts(shop) for row in explain.explain(data, sequence)["rules"] for word in row["words"]}
    for beginning in ("1 % more of ", ": its cap of 20 per month", "left: ", "nothing: the budget of the campaign 'dairy' was",
                      "nothing: its cap of 20 per month was", "its cap of 1.00 per receipt"):
        assert any(beginning in word for word in words), (beginning, sorted(words))


def test_it_can_be_asked_by_request_and_by_receipt(shop: Lived, data: Path) -> None:
    for sequence, entry in receipts(shop)[:6]:
        context = entry["context"]
        number = int(context["number"][1:])
        assert explain.by_request(data, f"request-{number:08d}") == sequence
        assert explain.by_receipt(data, context["store"], context["till"], context["business_day"], context["number"]) == sequence
    for ask in (lambda: explain.by_request(data, "request-99999999"), lambda: explain.by_receipt(data, "1", "3", 20260921, "n999"),
                lambda: explain.explain(data, 100_000), lambda: explain.explain(data, 0)):
        with pytest.raises(explain.NotFound, match="the journal has no"):
            ask()


def test_what_the_entry_says_stands_and_a_difference_is_said(shop: Lived, tmp_path: Path) -> None:
    entries = shop.core.entries()
    target = next(sequence for sequence, entry in receipts(shop) if len(entry.get("awards", ())) > 2)
    entry = bytearray(entries[target - 1])
    at, before = 40, 0
    while entry[at] != 5:
        at += 4 + int.from_bytes(entry[at + 1:at + 4], "little")
    assert list(struct.unpack_from("<BBB", entry, at + 4)) == [1, 1, 0], "line 1, rule 1, wallet 0"
    before, entry[at + 7] = entry[at + 7] // 2, 2 * 5  # zigzag: 5 points
    assert before != 5
    forge = Forge()
    forge.add(*entries[:target - 1], bytes(entry), time_us=int.from_bytes(entry[8:16], "little"))
    data = forge.write(tmp_path / "data")
    found = explain.explain(data, target)
    assert len(found["differs"]) == 1 and found["differs"][0].startswith("awards: the entry has [{'line': 1, 'rule': 1")
    base = next(row for row in found["rules"] if row["rule"] == 1)
    assert base["lines"][0] == {"line": 1, "points": 5} and base["gave"] == base["given"] + 5 - before


def test_other_entries_are_told_as_they_are(shop: Lived, data: Path) -> None:
    kinds = {}
    for group in scan(data):
        for sequence, entry in group:
            kinds.setdefault(read_entry(entry)["kind"], sequence)
    for kind in ("program", "enroll", "adjust", "burn", "reserve", "set_segments", "set_attributes"):
        found = explain.explain(data, kinds[kind])
        assert (found["kind"], found["rules"], found["recomputed"]) == (kind, [], False)
    assert explain.explain(data, kinds["adjust"])["operator"] == "anna"


@pytest.mark.parametrize("folder", ["v1-stopped", "v2-runs"])
def test_journals_of_older_programmes_are_explained_too(folder: str, tmp_path: Path) -> None:
    unpack(GOLDEN / folder, tmp_path)
    path = next(found.parent for found in tmp_path.rglob("FORMAT"))
    entries = {sequence: read_entry(entry) for group in scan(path) for sequence, entry in group}
    asked = [sequence for sequence, entry in entries.items() if entry["kind"] in ("earn", "commit")]
    for sequence in asked[:5] + asked[-5:]:
        found = explain.explain(path, sequence)
        assert found["differs"] == []
        assert sum(row["gave"] for row in found["rules"]) == sum(award["points"] for award in entries[sequence].get("awards", ()))
        assert all(row["name"] and row["source"] for row in found["rules"])
