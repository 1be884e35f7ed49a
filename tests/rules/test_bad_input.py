"""Bad programmes and bad images: one clear error each, and the rules in force stay.

What the checker says of every mistake in detail is in test_check.py; what PublishRules says of it, in tests/server/test_rules.py.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ledger.rules import ProgramError, compile_source, with_lines
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "base-v1.image"
NOW_US = 1_795_000_000_000_000
EARN = 1
GOOD = """\
programme: Good
currency: EUR
zone: Europe/Warsaw
anonymous_accounts: true
largest_receipt: 10000.00
wallets: [{name: points}]
catalogue: [{sku: milk, category: Food}, {sku: beer, category: Drinks}]
stores: [{store: "1"}]
segments: [staff]
tiers: {levels: [{name: base}, {name: gold, reach: {spent: 100.00}}, {name: best, reach: {spent: 500.00}}]}
rules:
  - {name: Base, percent: 5, lines: {sku: milk}, when: {tier: base, store: "1"}}
"""
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))

# what, old text, new text, the error
BAD = [
    ("unknown field", "percent: 5", "percnt: 5", "12:18: rules[0].percnt: unknown key; did you mean 'percent'?"),
    ("wrong type", "percent: 5", "percent: five", "12:27: rules[0].percent: must be a percentage"),
    ("a list for a mapping", "lines: {sku: milk}", "lines: [milk]", "12:37: rules[0].lines: must be a mapping of conditions"),
    ("rules that contradict each other", "rules:\n", "rules:\n  - {name: A, percent: 1, exclusive: true, priority: 1}\n"
     "  - {name: B, percent: 2, exclusive: true, priority: 1}\n", "13:5: rules[1].priority: "),
    ("a rule that can never fire: goods", "sku: milk", "sku: milk, category: Drinks",
     "12:5: rules[0]: can never fire: no article of the catalogue meets its `lines`"),
    ("a rule that can never fire: times", "tier: base", "tier: base, not: {tier: [base, gold]}",
     "12:5: rules[0]: can never fire: its conditions on tier exclude each other"),
    ("unknown sku", "sku: milk", "sku: mlik", "12:43: rules[0].lines.sku: 'mlik' is no article of this programme"),
    ("unknown store", 'store: "1"}}', 'store: "7"}}', "12:76: rules[0].when.store: '7' is no store of this programme, must be one of 1"),
    ("unknown tier", "tier: base", "tier: bronze", "12:63: rules[0].when.tier: 'bronze' is no tier of this programme"),
    ("overlapping tiers", "spent: 500.00", "spent: 50.00", "10:82: tiers.levels[2].reach: is reached with no more than gold (spent 50.00)"),
    ("overflow", "percent: 5", "for_every_full: 0.01, give: 1000000", "12:5: rules[0]: would give 1000000000000"),
    ("a YAML bomb", GOOD, BOMB, "1:4: anchors and aliases (&, *) must not be used"),
    ("a deep file", GOOD, "a: " + "[" * 5000, "not YAML"),
]


@pytest.mark.parametrize(("what", "old", "new", "error"), BAD, ids=[row[0] for row in BAD])
def test_a_bad_programme_is_one_clear_error_with_its_line(what: str, old: str, new: str, error: str) -> None:
    assert GOOD.count(old) == 1
    source = GOOD.replace(old, new).encode()
    with pytest.raises(ProgramError) as raised:
        compile_source(source, "p.yaml")
    first = str(raised.value).splitlines()[0]
    assert first.startswith(f"p.yaml:{error}" if error[0].isdigit() else "p.yaml:") and error in first, first
    if what not in ("a YAML bomb", "a deep file"):
        assert len(str(raised.value).splitlines()) == 1
        line, column = map(int, error.split(":")[:2])
        told, shown, mark = with_lines(raised.value, "p.yaml", source).splitlines()
        assert told == first
        assert shown == f"{line:>6} | {source.decode().splitlines()[line - 1]}"[:len(shown)] or column > 60
        at = len(mark) - 1
        assert mark.strip("| ") == "^" and source.decode().splitlines()[line - 1][column - 1] == shown[at]


def test_a_long_line_is_shown_around_the_place() -> None:
    source = GOOD.replace("tier: base", f"segment: [{', '.join(['staff'] * 40)}], tier: nobody").encode()
    with pytest.raises(ProgramError) as raised:
        compile_source(source, "p.yaml")
    _, shown, mark = with_lines(raised.value, "p.yaml", source).splitlines()
    assert len(shown) < 120 and shown[mark.index("^"):].startswith("nobody")


def signed(image: bytearray) -> bytes:
    """With a hash that fits: not damaged by chance."""
    image[8:40] = hashlib.sha256(image[40:]).digest()
    return bytes(image)


def changed(image: bytes, at: int, value: bytes) -> bytearray:
    found = bytearray(image)
    found[at:at + len(value)] = value
    return found


def test_an_image_that_is_damaged_or_of_another_version_is_refused_and_the_rules_in_force_stay() -> None:
    good, other = compile_source(GOOD.encode()), compile_source(GOOD.replace("percent: 5", "percent: 7").encode())
    core = LocalLedger(good.image, good.source, NOW_US)
    entries = len(core.entries())
    images = {
        "a flipped bit": bytes(changed(other.image, 300, bytes([other.image[300] ^ 1]))), "cut short": other.image[:-8],
        "longer": other.image + bytes(8), "nothing": b"", "something else": b"RULE" + bytes(400),
        "version 3": signed(changed(other.image, 4, b"\x03")), "version 0": signed(changed(other.image, 4, b"\x00")),
        "version 1, which it is not": signed(changed(other.image, 4, b"\x01")),
        "an old one, damaged": bytes(changed(GOLDEN.read_bytes(), 200, b"\xff")),
    }
    for what, image in images.items():
        with pytest.raises(ValueError, match="does not load"):
            core.publish(image, other.source, NOW_US)
        assert len(core.entries()) == entries, what
        request = pb.EarnPointsRequest(request_id=f"request-{what.replace(' ', '-').replace(',', '')}", member=pb.MemberRef(card="1"))
        request.sent_time.FromMicroseconds(NOW_US)
        request.receipt.MergeFrom(pb.Receipt(currency_code="EUR", total_minor=10_000, lines=[pb.Line(sku="milk", amount_minor=10_000)],
                                             key=pb.ReceiptKey(store="1", till="1", business_day=20261118, number=what)))
        code, answer, _ = core.call(EARN, request.SerializeToString(), NOW_US)
        assert code == 0
        entries += 1
        entry = pb.EarnPointsResponse.FromString(answer).entry
        assert (entry.earned_points, entry.program_version) == (5, 1), what
    core.publish(other.image, other.source, NOW_US)
    request.request_id = "request-by-the-next-programme"
    request.receipt.key.number = "the next programme"
    entry = pb.EarnPointsResponse.FromString(core.call(EARN, request.SerializeToString(), NOW_US)[1]).entry
    assert (entry.earned_points, entry.program_version) == (7, 2)
