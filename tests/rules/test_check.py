"""What the checker says of wrong programmes: where, what, and what would be right."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ledger import limits
from ledger.rules import check, tree
from ledger.rules.syntax import ProgramError

TOP = """\
programme: Test
currency: EUR
zone: Europe/Warsaw
wallets: [{name: points}, {name: miles, scale: 2}]
catalogue:
  - {sku: milk, category: Food/Dairy, brand: Alpina}
  - {sku: beer, category: Drinks, flags: [alcohol]}
stores: [{store: "1", region: north, groups: [city]}, {store: "2", region: south}]
channels: [shop, app]
segments: [students]
tiers: {levels: [{name: base}, {name: gold, reach: {receipts: 5}}]}
experiments: {spring: {variants: {control: 50, a: 50}, control: control}}
campaigns: {fair: {points: 100}, gone: {points: 0}}
rules:
"""
TOP_LINES = TOP.count("\n")


def problems(text: str | bytes, folder=None) -> list[str]:
    with pytest.raises(ProgramError) as raised:
        check.check_source(text if isinstance(text, bytes) else text.encode(), "p.yaml", folder)
    return [line.removeprefix("p.yaml:") for line in str(raised.value).splitlines()]


def rule_problems(rule: str) -> list[str]:
    """Of one rule at the end of a good programme, its first line being line 1."""
    found = []
    for line in problems(TOP + rule):
        number, rest = line.split(":", 1)
        found.append(f"{int(number) - TOP_LINES}:{rest}")
    return found


def test_the_programme_around_them_is_good():
    programme = check.check_source((TOP + "  - {name: Base, percent: 5}").encode())
    assert programme.rules[0].effect == tree.Percent(50_000)
    assert programme.stores["1"].zone == "Europe/Warsaw" and programme.articles["beer"].flags == {"alcohol"}
    assert check.check_source((TOP + "  - {name: Base, percent: 5}").encode()) == programme


RULES = [
    ("- {name: A, percent: 5, percnt: 6}", "1:27: rules[0].percnt: unknown key; did you mean 'percent'?"),
    ("- {name: A, percent: 5, colour: red}", "1:27: rules[0].colour: unknown key; known are name, when, lines,"),
    ("- {name: A, percent: 5, percent: 6}", "1:27: rules[0].percent: stands twice, must stand once"),
    (
        "- {name: A, percent: 5, give: 6}",
        "1:5: rules[0]: must have one of give, percent, add_percent, times, discount_percent, discount, entitle, has give and percent",
    ),
    ("- {name: A}", "1:5: rules[0]: must have one of give, percent, add_percent, times, discount_percent, discount, entitle, has none"),
    ("- {percent: 5}", "1:5: rules[0].name: is missing, must be set"),
    ("- {name: A, percent: 0}", "1:24: rules[0].percent: must be a percentage from 0.0001 to 1000.0000 with at most 4 decimals, was '0'"),
    ("- {name: A, percent: 1e2}", "was '1e2'"),
    ("- {name: A, percent: -1}", "was '-1'"),
    ("- {name: A, percent: 0.00001}", "was '0.00001'"),
    (
        "- {name: A, percent: [5]}",
        "1:24: rules[0].percent: must be a percentage from 0.0001 to 1000.0000 with at most 4 decimals, was a list",
    ),
    (
        "- {name: A, percent: }",
        "1:15: rules[0].percent: must be a percentage from 0.0001 to 1000.0000 with at most 4 decimals, was nothing",
    ),
    (
        "- {name: A, give: 1.5}",
        "1:21: rules[0].give: must be a number of points from 1 to 1000000 with at most 0 decimals (the scale of points), was '1.5'",
    ),
    ("- {name: A, give: 1.555, to_wallet: miles}", "with at most 2 decimals (the scale of miles), was '1.555'"),
    (
        "- {name: A, give: 1, to_wallet: mile}",
        "1:35: rules[0].to_wallet: 'mile' is no wallet of this programme, must be one of miles, points; did you mean 'miles'?",
    ),
    ("- {name: A, give: 1, funder: alpina}", "1:32: rules[0].funder: 'alpina' is no funder of this programme, which has no funder"),
    ("- {name: A, give: 1, campaign: fare}", "'fare' is no campaign of this programme, must be one of fair, gone; did you mean 'fair'?"),
    (
        "- {name: A, give: 1, for_every_full: 1.001}",
        "1:40: rules[0].for_every_full: must be an amount from 0.01 to 10000000000.00 with at most 2 decimals, was '1.001'",
    ),
    ("- {name: A, percent: 5, for_every_full: 1}", "1:43: rules[0].for_every_full: has no meaning with percent, must not be set"),
    ("- {name: A, give: 5, round: ceil}", "1:31: rules[0].round: has no meaning with give, must not be set"),
    ("- {name: A, percent: 5, round: up}", "1:34: rules[0].round: must be one of floor, half_up, ceil, was 'up'"),
    (
        "- {name: A, percent: 5, lines: {sku: milch}}",
        "1:40: rules[0].lines.sku: 'milch' is no article of this programme, must be one of beer, milk",
    ),
    ("- {name: A, percent: 5, lines: {category: Food/Milk}}", "is no category of this programme, must be one of Drinks, Food, Food/Dairy"),
    ("- {name: A, percent: 5, lines: {flag: tobacco}}", "'tobacco' is no flag of this programme, must be one of alcohol"),
    ("- {name: A, percent: 5, when: {store: '3'}}", "1:41: rules[0].when.store: '3' is no store of this programme, must be one of 1, 2"),
    (
        "- {name: A, percent: 5, when: {tier: silver}}",
        "1:40: rules[0].when.tier: 'silver' is no tier of this programme, must be one of base, gold",
    ),
    ("- {name: A, percent: 5, when: {tier: [gold, gold]}}", "1:47: rules[0].when.tier: 'gold' stands twice, must stand once"),
    ("- {name: A, percent: 5, when: {sku: milk}}", "1:34: rules[0].when.sku: unknown key"),
    ("- {name: A, percent: 5, lines: {tier: gold}}", "1:35: rules[0].lines.tier: is not about one line and belongs into `when`"),
    (
        "- {name: A, percent: 5, lines: {any: [{tier: gold}, {channel: app}]}}",
        "1:35: rules[0].lines.any: is not about one line and belongs into `when`",
    ),
    ("- {name: A, percent: 5, when: {}}", "1:33: rules[0].when: must have a condition, is empty"),
    ("- {name: A, percent: 5, when: {any: []}}", "rules[0].when.any: must have 1..64 conditions, has 0"),
    ("- {name: A, percent: 5, when: {any: {tier: gold}}}", "rules[0].when.any: must be a list of mappings, was a mapping"),
    (
        "- {name: A, percent: 5, when: {total: {from: 5.00, to: 5.00}}}",
        "1:41: rules[0].when.total: is empty and can never hold: `to` is not included",
    ),
    ("- {name: A, percent: 5, when: {total: 5.00}}", "1:41: rules[0].when.total: must be a mapping with the keys from, to, was '5.00'"),
    (
        "- {name: A, percent: 5, when: {dates: {from: 2026-02-30}}}",
        "must be a date such as 2026-03-01 or 2026-03-01 10:30, was '2026-02-30'",
    ),
    ("- {name: A, percent: 5, when: {dates: {from: 2026-04-01, to: 2026-03-01}}}", "is empty and can never hold"),
    ("- {name: A, percent: 5, when: {hours: {from: '25:00', to: '22:00'}}}", 'must be a time such as "17:00"'),
    (
        "- {name: A, percent: 5, when: {weekday: monday}}",
        "must be one of mon, tue, wed, thu, fri, sat, sun, was 'monday'; did you mean 'mon'?",
    ),
    (
        "- {name: A, percent: 5, when: {experiment: {spring: control}}}",
        "'control' is the control variant, which gets nothing, must not be named",
    ),
    ("- {name: A, percent: 5, when: {experiment: {spring: b}}}", "'b' is no variant, must be one of a"),
    ("- {name: A, percent: 5, when: {coupon: X}}", "rules[0].when.coupon: is kept free for a later version, must not be used yet"),
    ("- {name: A, percent: 5, caps: [{points: 5}]}", "1:34: rules[0].caps[0].per: is missing, must be set"),
    ("- {name: A, percent: 5, caps: [{per: day}]}", "1:34: rules[0].caps[0]: must have one of points, amount, uses"),
    ("- {name: A, percent: 5, caps: [{amount: 5, per: day}]}", "amount: has no meaning with percent, must be points or uses"),
    ("- {name: A, percent: 5, caps: [{uses: 5, per: receipt}]}", "must not be receipt for uses"),
    ("- {name: A, percent: 5, caps: [{uses: 1, per: birthday}]}", "birthday has a meaning only where `when` has `birthday`"),
    ("- {name: A, percent: 5, caps: [{uses: 1, per: day}, {uses: 2, per: day}]}", "uses per day stands twice, must stand once"),
    ("- {name: A, percent: 5, group: g}", "1:5: rules[0].priority: is missing, must be set with group"),
    ("- {name: A, percent: 5, priority: 3}", "has no meaning without `group` or `exclusive`"),
    (
        "- {name: A, percent: 5, group: g, priority: 1}\n  - {name: B, percent: 6, group: g, priority: 1}",
        "2:47: rules[1].priority: contradicts 'A': both are in group 'g' and have priority 1, must differ",
    ),
    ("- {name: A, give: 5, exclusive: true, priority: 1}\n  - {name: B, percent: 6, exclusive: true, priority: 1}", "both are exclusive"),
    ("- {name: A, percent: 5}\n  - {name: A, percent: 6}", "2:12: rules[1].name: 'A' is taken by rules[0], must be another name"),
    ("- {name: A, times: 2}", "1:5: rules[0].of_rules: is missing, must be set with times"),
    ("- {name: A, times: 1, of_rules: all}", "rules[0].times: must be a number from 1.0001 to 100.0000 with at most 4 decimals, was '1'"),
    ("- {name: A, times: 2, of_rules: B}\n  - {name: B, times: 2, of_rules: all}", "'B' is no rule with give or percent or add_percent"),
    (
        "- {name: A, times: 2, of_rules: B}\n  - {name: B, percent: 2, to_wallet: miles}",
        "'B' gives to wallet miles, this rule multiplies points of points",
    ),
    ("- {name: A, add_percent: 2, to_rules: B}\n  - {name: B, give: 2}", "'B' is no rule with percent"),
    ("- {name: A, add_percent: 2, to_rules: Bse}\n  - {name: Base, give: 2}", "'Bse' is no rule of this programme; did you mean 'Base'?"),
    ("- {name: A, give: 5, points_live: 12 weeks}", "points_live: must be forever, `90 days`, `12 months`"),
    ("- {name: A, give: 5, points_live: 90 days of inactivity}", "points_live: must be forever"),
    ("- {name: A, give: 5, points_live: 14 days, available_after: 14 days}", "the points would be gone before anyone can use them"),
    # what can never fire
    (
        "- {name: A, percent: 5, lines: {sku: milk, flag: alcohol}}",
        "1:5: rules[0]: can never fire: no article of the catalogue meets its `lines`",
    ),
    ("- {name: A, percent: 5, lines: {sku: milk, not: {category: Food}}}", "no article of the catalogue meets its `lines`"),
    (
        "- {name: A, percent: 5, when: {all: [{tier: base}, {tier: gold}]}}",
        "1:5: rules[0]: can never fire: its conditions on tier exclude each other",
    ),
    ("- {name: A, percent: 5, when: {region: north, store: '2'}}", "its conditions on store exclude each other"),
    ("- {name: A, percent: 5, when: {channel: app, not: {channel: [app, shop]}}}", "its conditions on channel exclude each other"),
    ("- {name: A, percent: 5, when: {total: {from: 10}, not: {total: {from: 5}}}}", "its conditions on total exclude each other"),
    ("- {name: A, percent: 5, when: {nth_receipt: 3, every_nth_receipt: 2}}", "its conditions on receipt number exclude each other"),
    (
        "- {name: A, percent: 5, when: {all: [{hours: {from: '10:00', to: '12:00'}}, {hours: {from: '12:00', to: '14:00'}}]}}",
        "on hours exclude",
    ),
    ("- {name: A, percent: 5, when: {all: [{dates: {to: 2026-01-01}}, {dates: {from: 2026-01-01}}]}}", "on dates exclude each other"),
    ("- {name: A, percent: 5, when: {segment: students, not: {segment: students}}}", "its conditions on segment exclude each other"),
    ("- {name: A, percent: 5, lines: {weighed: true, not: {weighed: true}}}", "its conditions on weighed exclude each other"),
    ("- {name: A, percent: 5, campaign: gone}", "can never fire: campaign 'gone' has a budget of 0"),
    ("- {name: A, for_every_full: 0.01, give: 1000000}", "would give 1000000000000000000 points on the largest receipt"),
]


@pytest.mark.parametrize(("rule", "expected"), RULES, ids=[rule[:70] for rule, _ in RULES])
def test_a_wrong_rule(rule, expected):
    found = rule_problems("  " + rule)
    assert len(found) == 1, found
    assert expected in found[0]


GOOD_RULES = [
    "{name: A, percent: 5, when: {nth_receipt: 4, every_nth_receipt: 2}}",
    "{name: A, percent: 5, when: {any: [{tier: base}, {tier: gold}]}}",
    "{name: A, percent: 5, when: {segment: students, not: {total: {from: 5}}}}",
    "{name: A, percent: 5, when: {hours: {from: '22:00', to: '02:00'}}}",
    "{name: A, percent: 5, lines: {not: {sku: milk}}}",
    "{name: A, percent: 5, when: {days_since_last_receipt: {to: 1}}}",
    "{name: A, for_every_full: 0.01, give: 1000000, caps: [{points: 1000, per: receipt}]}",
    "{name: A, percent: 5, when: {not: {channel: [app, shop]}}}",
]


@pytest.mark.parametrize("rule", GOOD_RULES)
def test_a_rule_that_only_looks_odd_is_taken(rule):
    assert len(check.check_source((TOP + "  - " + rule).encode()).rules) == 1


def changed(old: str, new: str) -> str:
    assert TOP.count(old) == 1
    return TOP.replace(old, new) + "  - {name: Base, percent: 5}\n"


TOPS = [
    ("currency: EUR", "currency: EUO", "2:11: currency: must be an ISO 4217 code such as EUR, was 'EUO'"),
    ("zone: Europe/Warsaw", "zone: Europe/Warszawa", "3:7: zone: must be an IANA time zone"),
    ("zone: Europe/Warsaw\n", "", "1:1: zone: is missing, must be set"),
    ("{name: miles, scale: 2}", "{name: points, scale: 2}", "4:34: wallets[1].name: 'points' is taken by wallets[0], must be another name"),
    ("{name: miles, scale: 2}", "{name: miles, floor: 0.5}", "wallets[1].floor: must be a number of points"),
    ("{sku: beer,", "{sku: milk,", "7:11: catalogue[1].sku: 'milk' stands twice, must stand once"),
    ('{store: "2", region: south}', '{store: "1"}', "stores[1].store: '1' stands twice, must stand once"),
    ('{store: "2", region: south}', '{store: "2", partner: x}', "'x' is no partner of this programme, which has no partner"),
    ("{name: base}", "{name: base, reach: {receipts: 1}}", "tiers.levels[0].reach: must not be set: everybody has the lowest level"),
    (", reach: {receipts: 5}", "", "tiers.levels[1].reach: is missing, must be set"),
    ("reach: {receipts: 5}", "reach: {in: lifetime}", "must have `receipts`, `spent`, `any` or `all`"),
    ("reach: {receipts: 5}", "reach: {receipts: 5, in: 500 days}", "tiers.levels[1].reach.in: must be one of lifetime, calendar month"),
    ("control: 50, a: 50", "control: 50, a: 49", "experiments.spring.variants: must sum to 100 percent, sum to 99.00"),
    ("control: control}", "control: none}", "experiments.spring.control: must be one of control, a, was 'none'"),
    ("fair: {points: 100}", "fair: {}", "campaigns.fair: must have points, amount or uses"),
    ("segments: [students]", "plans: [gold]", "plans: is kept free for a later version, must not be used yet"),
    (
        "rules:",
        "burn: [{name: B, step: 1, one_point_pays: 0.5}, {name: C}]\nrules:",
        "can never decide: a rule above it, for the same wallet, always holds",
    ),
    ("rules:", "burn: [{name: B, wallet: miles, step: 0.01, one_point_pays: 0.50}]\nrules:", "must be a multiple of 0.02"),
    ("rules:", "burn: [{name: B, max: 5, min: 6}]\nrules:", "must not be below `min` and `step`"),
    ("rules:", "burn: [{name: B, not_for: {tier: gold}}]\nrules:", "burn[0].not_for.tier: unknown key"),
    (
        "rules:",
        "no_points_on: {category: [Food, Drinks]}\nrules:\n  - {name: A, lines: {sku: milk}, give: 1}",
        "can never fire: all goods that meet its `lines` are under `no_points_on`",
    ),
]


@pytest.mark.parametrize(("old", "new", "expected"), TOPS, ids=[new[:50] or old for old, new, _ in TOPS])
def test_a_wrong_programme(old, new, expected):
    found = problems(changed(old, new))
    assert any(expected in line for line in found), found


def test_everything_is_reported_at_once_in_the_order_of_the_file():
    found = problems(changed("currency: EUR", "currency: EUO").replace("percent: 5", "percent: x") + "  - {name: B, give: x}\n")
    assert [line.split(":")[0] for line in found] == ["2", str(TOP_LINES + 1), str(TOP_LINES + 2)]


# --- bombs and other bytes ----------------------------------------------------------------------------------------------


def test_a_bomb_of_aliases_is_refused_at_once():
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(20)
    )
    found = problems(bomb)
    assert "anchors and aliases (&, *) must not be used" in found[0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"\xff\xfe", "is not UTF-8"),
        (b"", "the file is empty"),
        (b"- a\n", "must be a mapping"),
        (b"a: [\n", "not YAML"),
        (b"a: " + b"[" * 20 + b"]" * 20, "must nest at most 16 deep"),
        (b"a: " + b"[" * 5000, "not YAML"),
        (b"a: !!python/object:os.system x\n", "tags"),
        (b"a: b\n" * (limits.SOURCE_BYTES_MAX // 5 + 1), "the file must have at most"),
        (b"rules: &x []\n", "anchors"),
        (b"\x00", "not YAML"),
        (b"a: 1\n--- \nb: 2\n", "not YAML"),
    ],
    ids=range(11),
)
def test_bytes_that_are_no_programme(text, expected):
    assert any(expected in line for line in problems(text))


# --- tables ---------------------------------------------------------------------------------------------------------------

TABLES = changed(
    """catalogue:
  - {sku: milk, category: Food/Dairy, brand: Alpina}
  - {sku: beer, category: Drinks, flags: [alcohol]}
""",
    "catalogue: {file: goods.csv}\n",
).replace('stores: [{store: "1", region: north, groups: [city]}, {store: "2", region: south}]', "stores: {file: stores.csv}")


def test_tables_stand_beside_the_programme(tmp_path):
    (tmp_path / "goods.csv").write_text("sku,brand,category,flags,price\nmilk,Alpina,Food/Dairy,,1\nbeer,,Drinks,alcohol cold,2\n")
    (tmp_path / "stores.csv").write_text("store,region,groups\n1,north,city pilot\n2,,\n")
    programme = check.check_source(TABLES.encode(), "p.yaml", tmp_path)
    assert programme.articles["beer"] == tree.Article("beer", "Drinks", None, frozenset({"alcohol", "cold"}))
    assert programme.stores["1"] == tree.Store("1", "Europe/Warsaw", "north", None, frozenset({"city", "pilot"}))


def test_parquet_and_columns_of_other_names(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"product": [25, 26], "department": ["FOOD", "FOOD"], "kind": ["MILK", None]})
    pyarrow.parquet.write_table(table, tmp_path / "goods.parquet")
    (tmp_path / "stores.csv").write_text("store\n1\n")
    text = TABLES.replace("{file: goods.csv}", "{file: goods.parquet, columns: {sku: product, category: [department, kind]}}")
    programme = check.check_source(text.encode(), "p.yaml", tmp_path)
    assert {sku: article.category for sku, article in programme.articles.items()} == {"25": "FOOD/MILK", "26": "FOOD"}


@pytest.mark.parametrize(
    ("goods", "stores", "expected"),
    [
        (None, "store\n1\n", "catalogue.file: goods.csv cannot be read: No such file or directory"),
        ("", "store\n1\n", "goods.csv has no column sku; it has "),
        ("sku,brand\nmilk\n", "store\n1\n", "goods.csv:2: must have 2 columns, has 1"),
        ("sku\nmilk\nmilk\n", "store\n1\n", "goods.csv:3: sku: must be a code of 1..32 bytes that stands once, was 'milk'"),
        (
            "sku\nmilk\n",
            "store,zone\n1,Europe/Warszawa\n",
            "stores.csv:2: zone: must be an IANA time zone, was 'Europe/Warszawa'; did you mean 'Europe/Warsaw'?",
        ),
        ("sku\nmilk\n", "store,partner\n1,x\n", "stores.csv:2: partner: 'x' is no partner of this programme"),
        ("sku\nmilk\n", "store\n1\n1\n", "stores.csv:3: store: must be a code of 1..16 bytes that stands once, was '1'"),
    ],
)
def test_a_wrong_table(tmp_path, goods, stores, expected):
    if goods is not None:
        (tmp_path / "goods.csv").write_text(goods)
    (tmp_path / "stores.csv").write_text(stores)
    assert any(expected in line for line in problems(TABLES, tmp_path))


def test_a_file_is_named_with_its_mistakes(tmp_path):
    (tmp_path / "bad.yaml").write_text(TOP + "  - {name: A, percent: x}\n")
    for name, says in (("bad.yaml", f"bad.yaml:{TOP_LINES + 1}:24: rules[0].percent: must be"),
                       ("none.yaml", "none.yaml: cannot be read: No such")):
        with pytest.raises(ProgramError, match=re.escape(f"{tmp_path}/{says}")):
            check.check_file(tmp_path / name)


def test_the_same_text_is_the_same_programme_under_any_hash_seed(tmp_path):
    (tmp_path / "p.yaml").write_text(
        TOP + "  - {name: A, percent: 5, when: {tier: [gold, base], channel: [app, shop]}, lines: {sku: [beer, milk]}}\n"
    )
    code = (
        "from ledger.rules import check, tree; from pathlib import Path; import sys; p = check.check_file(Path(sys.argv[1]));"
        "print(p.rules[0].index, sorted(p.rules[0].lines.names), [a.kind for a in tree.atoms(p.rules[0].when)],"
        "list(p.articles), p.tiers.windows)"
    )
    told = {
        subprocess.run(
            [sys.executable, "-c", code, tmp_path / "p.yaml"],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1
