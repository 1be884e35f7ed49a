"""A programme's YAML: what is read from it, and what is said about bad ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger.rules import ProgramError, compile_file, compile_source, describe
from ledger.rules.model_v1 import LifeUnit, PerStep
from ledger.rules_compiled import ImageError, read_image, write_image

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


def test_a_good_programme_means_what_it_says():
    program = compile_source(GOOD.encode()).program
    assert (program.name, program.currency, program.currency_digits, program.zone) == ("Test", "USD", 2, "Europe/Warsaw")
    assert (program.anonymous_accounts, program.max_age_days) == (True, 30)
    assert [(wallet.name, wallet.scale) for wallet in program.wallets] == [("points", 0), ("stamps", 1)]
    assert program.rules == (
        PerStep("base", step=100, give=5, wallet=0, funder=0, life_unit=LifeUnit.MONTHS, life=12, available_after=0),
        PerStep("stamps", step=1000, give=5, wallet=1, funder=7, life_unit=LifeUnit.DAYS, life=90, available_after=14),
    )


def test_the_base_programme_gives_five_points_for_every_full_dollar():
    compiled = compile_file(ROOT / "programs" / "base.yaml")
    assert compiled.program.rules == (
        PerStep("Base points", step=100, give=5, wallet=0, funder=0, life_unit=LifeUnit.MONTHS, life=12, available_after=0),)
    words = dict(describe(compiled))
    assert words["rule 1"] == "Base points: for every full 1.00 USD of the receipt give 5 points; they live 12 months"
    assert words["hash"] == compiled.hash


def test_words_name_the_delay_and_who_pays():
    words = dict(describe(compile_source(GOOD.encode())))
    assert words["rule 2"] == ("stamps: for every full 10.00 USD of the receipt give 0.5 stamps; they live 90 days, "
                               "available after 14 days, paid by brewery")


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
    assert compile_source(text.encode()).program.rules[0].step == step


# old text, new text, line, column, what the message says
BAD = [
    ("programme: Test\n", "", 1, 1, ["programme: is missing"]),
    ("currency: USD", "currency: USB", 2, 11, ["currency: must be an ISO 4217 code", "'USB'", "did you mean"]),
    ("currency: USD", "currency: usd", 2, 11, ["must be an ISO 4217 code", "'usd'", "did you mean 'USD'?"]),
    ("Europe/Warsaw", "Europe/Warszawa", 3, 7, ["zone: must be an IANA time zone", "'Europe/Warszawa'", "did you mean 'Europe/Warsaw'?"]),
    ("Europe/Warsaw", "../../etc/passwd", 3, 7, ["zone: must be an IANA time zone"]),
    ("anonymous_accounts: true", "anonymous_accounts: yes", 4, 21, ["anonymous_accounts: must be true or false, was 'yes'"]),
    ("max_age: 30 days", "max_age: 30 weeks", 5, 10, ["max_age: must be 0..3660 days", "'30 weeks'"]),
    ("max_age: 30 days", "max_age: -1 days", 5, 10, ["'-1 days'"]),
    ("max_age: 30 days", "max_aeg: 30 days", 5, 1, ["max_aeg: unknown key; did you mean 'max_age'?"]),
    ("max_age: 30 days", "currency: EUR", 5, 1, ["currency: stands twice"]),
    ("  - name: stamps\n    scale", "  - name: points\n    scale", 8, 5, ["wallets[1].name: 'points' is taken by wallets[0]"]),
    ("scale: 1", "scale: 10", 9, 12, ["wallets[1].scale: must be a whole number of decimals, 0..9, was '10'"]),
    ("  - name: points\n", "  - points\n", 7, 5, ["wallets[0]: must be a mapping with the keys name, scale, was 'points'"]),
    ("brewery: 7", "brewery: 0", 11, 12, ["funders.brewery: must be a number of 1..65535", "'0'"]),
    ("brewery: 7", "brewery: 7\n  dairy: 7", 12, 10, ["funders.dairy: number 7 is taken"]),
    ("funders:\n  brewery: 7", "funders: 7", 10, 10, ["funders: must be a mapping", "'7'"]),
    ("  - name: base\n", "  - name: stamps\n", 17, 5, ["rules[1].name: 'stamps' is taken by rules[0]"]),
    ("1.00", "-1.00", 14, 21, ["rules[0].for_every_full: must be an amount above 0 with at most 2 decimals (USD)", "'-1.00'"]),
    ("1.00", "0", 14, 21, ["must be an amount above 0", "'0'"]),
    ("1.00", "1.005", 14, 21, ["at most 2 decimals (USD), such as 1.00, was '1.005'"]),
    ("1.00", "1e2", 14, 21, ["'1e2'"]),
    ("1.00", "1,00", 14, 21, ["'1,00'"]),
    ("1.00", "1_000", 14, 21, ["'1_000'"]),
    ("1.00", "10000000000.01", 14, 21, ["'10000000000.01'"]),
    ("1.00", "", 14, 5, ["must be an amount above 0", "was nothing"]),
    ("1.00", "[1.00]", 14, 21, ["was a list"]),
    ("    give: 5\n", "    giv: 5\n", 15, 5, ["rules[0].giv: unknown key; did you mean 'give'?"]),
    ("    give: 5\n", "    give: 5.5\n", 15, 11, ["rules[0].give: must be a number of points above 0 with at most 0 decimals", "'5.5'"]),
    ("    give: 5\n", "    give: 1000001\n", 15, 11, ["at most 1000000 of the smallest unit", "'1000001'"]),
    ("12 months", "12 weeks", 16, 18, ["rules[0].points_live: must be 1..600 months, 1..18250 days or forever", "'12 weeks'"]),
    ("12 months", "0 months", 16, 18, ["'0 months'"]),
    ("12 months", "12", 16, 18, ["'12'"]),
    ("to_wallet: stamps", "to_wallet: stamp", 20, 16, ["rules[1].to_wallet: must be one of the wallets points, stamps", "mean 'stamps'?"]),
    ("14 days", "90 days", 22, 22, ["rules[1].available_after: must be shorter than points_live (at least 90 days), was 90 days"]),
    ("funder: brewery", "funder: brewers", 23, 13, ["rules[1].funder: must be one of the funders brewery", "did you mean 'brewery'?"]),
    ("rules:\n", "rules: none\nx:\n", 12, 8, ["rules: must be a list of rules, was 'none'"]),
    ("zone: Europe/Warsaw", "zone: [Europe/Warsaw", 4, 19, ["not YAML"]),
    ("zone: Europe/Warsaw", "zone: *warsaw", 3, 7, ["not YAML", "warsaw"]),
    ("programme: Test", f"programme: {'x' * 41}", 1, 12, ["programme: must be a name of 1..40 bytes"]),
    ("programme: Test", 'programme: "a\\nb"', 1, 12, ["programme: must be a name"]),
]


@pytest.mark.parametrize(("old", "new", "line", "column", "says"), BAD, ids=[f"{row[2]}-{row[1].strip()[:30]!r}" for row in BAD])
def test_a_mistake_is_named_with_its_place(old, new, line, column, says):
    found = problems(changed(old, new))
    at = [text for text in found if text.startswith(f"p.yaml:{line}:{column}: ")]
    assert at, found
    for part in says:
        assert any(part in text for text in at), (part, at)


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
    (b"x" * 300_000, "at most 262144 bytes"),
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
