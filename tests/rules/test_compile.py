"""A programme's YAML: what is read from it, and what is said about bad ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ledger import limits
from ledger.rules import ProgramError, compile_file, compile_source, describe, reference
from ledger.rules_compiled import ImageError, read_image, write_image
from tests.rules.ours import PROGRAMMES

ROOT = Path(__file__).resolve().parents[2]

GOOD = """\
programme: Test
currency: USD
zone: Europe/Warsaw
anonymous_accounts: true
max_age: 30 days
wallets:
  - name: points
  - name: stamps
    scale: 1
funders:
  brewery: 7
rules:
  - name: base
    for_every_full: 1.00
    give: 5
    points_live: 12 months
  - name: stamps
    for_every_full: "10"
    give: 0.5
    to_wallet: stamps
    points_live: 90 days
    available_after: 14 days
    funder: brewery
"""


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(ProgramError) as raised:
        compile_source(text if isinstance(text, bytes) else text.encode(), "p.yaml")
    return str(raised.value).splitlines()


def changed(old: str, new: str) -> str:
    assert GOOD.count(old) == 1, f"{old!r} must stand once in the good programme"
    return GOOD.replace(old, new)


def test_a_programme_is_compiled_and_told_in_words():
    words = dict(describe(compile_source(GOOD.encode())))
    assert words["rule 1"] == "base: for every full 1.00 USD of the receipt give 5 points; they live 12 months"
    assert words["rule 2"] == ("stamps: for every full 10.00 USD of the receipt give 0.5 stamps; they live 90 days, "
                               "available after 14 days, paid by brewery")


def test_the_base_programme_gives_five_points_for_every_full_dollar():
    compiled = compile_file(ROOT / "programs" / "base.yaml")
    words = dict(describe(compiled))
    assert words["rule 1"] == "Base points: for every full 1.00 USD of the receipt give 5 points; they live 12 months"
    assert words["hash"] == compiled.hash
    member, time_us = reference.Member(1, 0), 1_795_000_000_000_000
    result = reference.evaluate(compiled.program, member, reference.Receipt(1299, (reference.Line("milk", 1299),)), time_us)
    assert (result.points, result.given[0].expiry_day - result.day) == ((60,), 365)


@pytest.mark.parametrize("file", PROGRAMMES, ids=lambda path: path.stem)
def test_every_programme_compiles_to_the_same_bytes_twice_and_every_rule_has_words(file):
    first = compile_file(file)
    code = "import sys; from ledger.rules import compile_file; print(compile_file(sys.argv[1]).hash)"
    second = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=True, cwd=ROOT,
                            env={**os.environ, "PYTHONHASHSEED": "7"})
    assert second.stdout.strip() == first.hash
    words = dict(describe(first))
    assert all(words[f"rule {rule.index + 1}"].startswith(f"{rule.name}: ") for rule in first.program.rules)


def test_the_same_source_gives_the_same_image():
    first, second = compile_source(GOOD.encode()), compile_source(GOOD.encode(), "elsewhere.yaml")
    assert first.image == second.image and first.hash == second.hash
    assert compile_source(changed("give: 5\n", "give: 6\n").encode()).hash != first.hash


@pytest.mark.parametrize(("money", "currency", "step"), [
    ("1.00", "USD", 100), ("1", "USD", 100), ("0.1", "USD", 10), ("'2.50'", "USD", 250), ("100", "JPY", 100), ("1.005", "KWD", 1005),
    ("9999999999.99", "USD", 999_999_999_999), ("0.29", "USD", 29),
])
def test_money_is_read_digit_by_digit(money, currency, step):
    text = changed("1.00", money).replace("currency: USD", f"currency: {currency}").replace('"10"', "10")
    assert compile_source(text.encode()).program.rules[0].effect.step == step


def test_all_mistakes_are_reported_at_once_in_file_order():
    text = GOOD.replace("USD", "US").replace("give: 5\n", "give: none\n").replace("14 days", "soon")
    found = problems(text)
    assert [line.split(":")[1] for line in found] == ["2", "15", "22"]


@pytest.mark.parametrize(("data", "says"), [
    (b"", "the file is empty"),
    (b"# nothing\n", "the file is empty"),
    (b"- a\n", "the file must be a mapping"),
    (b"programme: \xff\n", "p.yaml:1:12: byte 0xff is not UTF-8"),
    (b"a: b\n\tc: d\n", "p.yaml:2:1: not YAML"),
    (b"programme: a\x00b\n", "not YAML"),
    (b"a: " + b"[" * 600, "not YAML"),
    (b"a: 1\n---\nb: 2\n", "not YAML"),
    (b"x" * (limits.SOURCE_BYTES_MAX + 1), "at most 1048576 bytes"),
])
def test_what_is_no_programme_at_all(data, says):
    assert says in "\n".join(problems(data))


def test_too_many_wallets_are_refused_with_the_bound():
    wallets = "".join(f"  - name: w{i}\n" for i in range(17))
    found = problems(changed("    scale: 1\n", "    scale: 1\n" + wallets))
    assert any("wallets: must have 1..16 wallets, has 19" in line for line in found)


def test_a_missing_file_is_one_clear_line(tmp_path):
    with pytest.raises(ProgramError, match="cannot be read: No such file"):
        compile_file(tmp_path / "none.yaml")


def test_an_image_file_keeps_its_source_and_is_checked_when_read(tmp_path):
    compiled = compile_source(GOOD.encode())
    path = write_image(tmp_path / "images", compiled)
    assert path == write_image(tmp_path / "images", compiled)
    assert read_image(path) == compiled.image
    assert path.with_suffix(".yaml").read_bytes() == GOOD.encode()
    damaged = bytearray(compiled.image)
    damaged[100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(ImageError, match="is damaged"):
        read_image(path)
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="is not a compiled programme"):
        read_image(path)
