"""Images of version 2 say what the reference interpreter says, are the same bytes for the same programme, and refuse what does not fit."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.rules import check, image2, lower_articles, lower_dimensions, reference, tree
from ledger.rules.image2 import Atom, Dimension, Image, ImageDamaged, Kind
from ledger.rules.lower2 import LimitExceeded, hashes_of, lower_programme
from ledger.rules.reference import Facts, Line, Member, Receipt
from tests.rules import generate
from tests.rules.image_conditions import Conditions
from tests.rules.ours import PROGRAMMES

ROOT = Path(__file__).resolve().parents[2]
POINTS = ("points", "add_percent", "times")
often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


# --- conditions -----------------------------------------------------------------------------------------------------------

def facts_of(programme: tree.Programme, member: Member, receipt: Receipt, time_us: int) -> tuple[Facts, list[bool], list[bool]]:
    """What the reference looks at; which lines are eligible; which earn."""
    lines = receipt.lines or (Line("", receipt.total),)
    today = reference.programme_day(programme, time_us)
    facts = Facts(programme, member, receipt, lines, today, reference.wall_clock(programme, receipt.store, time_us),
                  reference.tier_on(programme, member, today)[0], 0)
    eligible = [programme.no_points_on is None or not reference.holds(programme.no_points_on, facts, line) for line in lines]
    total = sum(line.amount for line, is_so in zip(lines, eligible, strict=True) if is_so)
    earns = [is_so and not (programme.unknown_sku == "no_points" and programme.articles and line.sku and line.sku not in programme.articles)
             for line, is_so in zip(lines, eligible, strict=True)]
    return replace(facts, eligible_total=total), eligible, earns


def applying(programme: tree.Programme, facts: Facts, earns: list[bool]) -> dict[int, list[int]]:
    """Rules that apply by their conditions, and their lines, as `reference.evaluate` finds them."""
    found = {}
    for rule in programme.rules:
        lines = [i for i, line in enumerate(facts.lines) if line.amount > 0 and (earns[i] or rule.kind not in POINTS)
                 and reference.holds(rule.lines, facts, line)]
        if lines and reference.holds(rule.when, replace(facts, own=tuple(lines))):
            found[rule.index] = lines
    return found


def agree(programme: tree.Programme, image: Image, member: Member, receipt: Receipt, time_us: int) -> None:
    """The image and the reference say the same of all conditions."""
    facts, eligible, earns = facts_of(programme, member, receipt, time_us)
    said = Conditions(image, member, receipt, time_us, facts.tier)
    expected = applying(programme, facts, earns)
    assert (said.today, said.eligible, said.eligible_total) == (facts.today, eligible, facts.eligible_total)
    is_open = said.open()
    for index, lines in expected.items():
        assert is_open >> index & 1, f"the may-sets exclude rule {index}, which applies"
        listed = [set(image.class_rules(said.classes[i])) for i in lines]
        assert programme.rules[index].lines == tree.ALWAYS or all(index in rules for rules in listed), f"a class leaves rule {index} out"
    assert is_open >> len(programme.rules) == 0
    for rule, row in zip(programme.rules, image[Kind.RULES], strict=True):
        own = [atom for atom in tree.atoms(rule.when) if lower_dimensions.own_lines(atom)]
        mixed = any(not tree.about_lines(atom) for atom in tree.atoms(rule.lines))
        if not row["when_program"] and not own and not mixed:
            is_plain = bool(is_open >> rule.index & 1)
            assert is_plain == reference.holds(rule.when, facts), f"rule {rule.index} is plain, and its bit is not its `when`"
    assert said.applying() == expected
    for wallet in range(len(programme.wallets)):
        place, rule = said.burn_rule(wallet), reference.burn_rule_of(programme, facts, wallet)
        assert (None if place is None else programme.burn[place]) == rule
        if rule is not None:
            assert said.payable(place) == [rule.not_for is None or not reference.holds(rule.not_for, facts, line) for line in facts.lines]
    for level, row in zip(programme.tiers.levels if programme.tiers else (), image[Kind.TIERS], strict=True):
        own = tree.thresholds(level.reach)
        first = int(row["first"])
        assert image.run(int(row["program"]), lambda number, own=own, first=first:
                         reference.counted(member, own[number - first], facts.today) >= own[number - first].at_least) \
            == reference.reached(member, level.reach, facts.today)


@st.composite
def cases(draw):
    """A programme, sometimes without catalogue, codes or stores, and receipts."""
    programme = draw(generate.programmes())
    if draw(st.integers(0, 3)) == 0:
        programme = replace(programme, articles={}, category_codes=draw(st.sampled_from([{}, {"DRY": "Food/Bakery", "WET": "Food/Dairy"}])))
    if draw(st.integers(0, 3)) == 0:
        programme = replace(programme, stores={})
    if programme.no_points_on is not None and draw(st.booleans()):
        programme = replace(programme, no_points_on=tree.All((programme.no_points_on, tree.Is("discounted", True))))
    return programme, draw(generate.members()), draw(st.lists(st.tuples(generate.receipts(), generate.times_us()), min_size=1, max_size=6))


@often
@given(cases())
def test_an_image_says_of_every_receipt_what_the_reference_says(case):
    programme, member, receipts = case
    image = Image(lower_programme(programme))
    for receipt, time_us in receipts:
        agree(programme, image, member, receipt, time_us)
        result = reference.evaluate(programme, member, receipt, time_us)
        member, _ = reference.apply(programme, member, reference.Shared(), result)


@often
@given(cases())
def test_a_programme_is_lowered_the_same_way_however_its_parts_are_ordered_in_memory(case):
    programme = case[0]
    turned = replace(programme, articles=dict(reversed(programme.articles.items())), stores=dict(reversed(programme.stores.items())),
                     category_codes=dict(reversed(programme.category_codes.items())))
    assert lower_programme(turned) == lower_programme(programme)


def programme_of(rules: list[dict], **more) -> tree.Programme:
    """A programme of some rules, over the goods and places of the generator."""
    top = {"programme": "Small", "currency": "EUR", "zone": "Europe/Warsaw", "largest_receipt": "10000.00", "wallets": [{"name": "points"}],
           "stores": [{"store": "1", "region": "north", "groups": ["city"]}, {"store": "2"}], "catalogue": generate.CATALOGUE,
           "categories": {"DRY": "Food/Bakery"}, "segments": generate.SEGMENTS, "channels": generate.CHANNELS, "tenders": generate.TENDERS}
    return check.check_node(generate.node_of(top | more | {"rules": rules}), "small")


ANYONE = Member(7, 20_000, segments=frozenset({"staff"}))
NOON_US = 1_900_000_000_000_000


def test_more_cuts_of_dates_than_records_are_joined_and_nothing_is_lost(monkeypatch):
    monkeypatch.setattr(lower_dimensions, "CUTS_MAX", 3)
    dates = [f"2030-03-{day:02}" for day in range(10, 24)]
    whens = [{"dates": {"from": low, "to": high}, "hours": {"from": f"{i + 1:02}:30", "to": "23:00"}}
             for i, (low, high) in enumerate(zip(dates, dates[3:], strict=False))]
    rules = [{"name": f"Rule {i}", "give": 1, "when": when} for i, when in enumerate(whens)]
    programme = programme_of(rules)
    image = Image(lower_programme(programme))
    assert len(image[Kind.DATE_CUTS]) == len(image[Kind.MINUTE_CUTS]) == 3
    assert any(image[Kind.RULES]["when_program"])
    for hour in range(24 * 16):
        agree(programme, image, ANYONE, Receipt(100, (Line("milk", 100),)), NOON_US + (hour - 24) * 3_600_000_000)


def test_values_of_a_set_that_are_asked_for_together_are_never_lost():
    programme = programme_of([
        {"name": "Both", "give": 1, "when": {"all": [{"segment": "students"}, {"segment": "staff"}]}},
        {"name": "Not lost", "give": 1, "when": {"not": {"segment": "lost"}}},
        {"name": "Or", "give": 1, "when": {"any": [{"segment": "students"}, {"channel": "app"}]}},
        {"name": "One of", "give": 1, "when": {"any": [{"segment": "students"}, {"segment": ["lost"]}]}},
    ])
    image = Image(lower_programme(programme))
    for segments in ((), ("students",), ("staff",), ("lost",), ("students", "staff"), ("students", "lost"), ("students", "staff", "lost")):
        for channel in ("", "app"):
            member = replace(ANYONE, segments=frozenset(segments))
            agree(programme, image, member, Receipt(100, (Line("milk", 100),), channel=channel), NOON_US)
    assert [bool(program) for program in image[Kind.RULES]["when_program"]] == [True, True, True, False]


def test_receipts_above_the_numbered_ones():
    programme = programme_of([
        {"name": "Few", "give": 1, "when": {"nth_receipt": [1, 64]}}, {"name": "Many", "give": 1, "when": {"nth_receipt": [2, 65, 1000]}},
        {"name": "Seventh", "give": 1, "when": {"every_nth_receipt": 7}}])
    image = Image(lower_programme(programme))
    for before in (*range(70), 139, 999, 1000):
        agree(programme, image, replace(ANYONE, receipts=before), Receipt(100, (Line("milk", 100),)), NOON_US)
    assert [bool(program) for program in image[Kind.RULES]["when_program"]] == [False, True, True]


def test_skus_that_only_rules_name_keep_the_category_that_the_till_sends():
    rules = [{"name": "Sku", "lines": {"sku": ["riddle", "enigma"]}, "give": 1},
             {"name": "Bakery", "lines": {"category": "Food/Bakery"}, "give": 1},
             {"name": "Not that", "lines": {"not": {"sku": "riddle", "category": "Food"}}, "give": 1}]
    programme = programme_of(rules, catalogue=[])
    image = Image(lower_programme(programme))
    for sku in ("riddle", "enigma", "other"):
        for code in ("", "DRY", "WET"):
            agree(programme, image, ANYONE, Receipt(100, (Line(sku, 100, category=code),)), NOON_US)


# --- what a rule's record says ----------------------------------------------------------------------------------------------

def test_the_record_of_a_rule():
    programme = programme_of(
        [{"name": "Base", "percent": 2.5, "round": "half_up", "to_wallet": "miles", "earn_on_points_paid": True,
          "available_after": "3 days", "points_live": "3 months to end of quarter", "group": "g", "priority": 7, "campaign": "spring",
          "funder": "alpina", "caps": [{"uses": 2, "per": "day"}, {"points": 9, "per": "month"}],
          "when": {"lines_total": {"from": 5.00}, "lines_quantity": {"to": 3}}},
         {"name": "More", "lines": {"price": {"to": 9.00}}, "add_percent": 1, "to_rules": "Base"},
         {"name": "Steps", "for_every_full_quantity": 0.5, "give": 4, "per": "line", "points_live": "until 2031-02-01"},
         {"name": "Off", "discount_percent": 3, "per": "line", "exclusive": True, "priority": 2},
         {"name": "Twice", "times": 2, "of_rules": "all"}, {"name": "Gift", "entitle": "gift"}],
        wallets=[{"name": "points", "points_live": "30 days of inactivity"}, {"name": "miles", "scale": 2, "worth": 0.50}],
        funders={"alpina": 9}, campaigns={"spring": {"points": 10.5}})
    image = Image(lower_programme(programme))
    base, more, steps, off, twice, gift = image[Kind.RULES]
    names = ("a", "b", "rate_factor", "rate_divisor", "form", "kind", "per", "round", "wallet", "flags")
    assert [[int(row[name]) for name in names] for row in (base, more, steps, off, twice, gift)] == [
        [0, 25_000, 1, 500_000, 4, 3, 0, 1, 1, 2 | 16], [0, 10_000, 1, 500_000, 4, 4, 0, 0, 1, 0], [500, 4, 1, 1, 2, 3, 1, 0, 0, 16],
        [0, 30_000, 1, 1_000_000, 4, 1, 1, 0, 0, 1 | 16], [0, 10_000, 1, 10_000, 5, 5, 0, 0, 0, 16], [0, 0, 1, 1, 0, 6, 0, 0, 0, 16]]
    assert [int(base[name]) for name in ("lines_total_from", "lines_total_to", "lines_quantity_from", "lines_quantity_to")] == [
        500, image2.OPEN_HIGH, image2.OPEN_LOW, 3000]
    names = ("life_unit", "life_number", "life_end", "available_after", "group", "priority", "campaign", "funder")
    assert [int(base[name]) for name in names] == [2, 3, 2, 3, 1, 7, 1, 9]
    assert (int(steps["life_unit"]), int(steps["until_day"]), int(twice["life_unit"])) == (3, 22_311, 4)
    assert [int(target) for target in image[Kind.TARGETS]] == [0, 2]
    assert (int(more["first_target"]), int(more["target_count"]), int(twice["first_target"]), int(twice["target_count"])) == (0, 1, 1, 1)
    assert int(base["key"]) == int.from_bytes(hashlib.sha256(b"Base").digest()[:4], "little")
    caps = image[Kind.CAPS][base["first_cap"]:base["first_cap"] + base["cap_count"]]
    assert [(int(cap["limit"]), int(cap["per"]), int(cap["measure"])) for cap in caps] == [(900, 3, 0), (2, 1, 1)]
    assert int(caps[0]["counter"]) == int.from_bytes(hashlib.sha256(b"Base\0month\0points").digest()[:4], "little")
    assert [(int(row["points"]), int(row["wallet"]), int(row["flags"])) for row in image[Kind.CAMPAIGNS]] == [(1050, 1, 1)]
    sets = [image.bits(Kind.RULE_SETS, i) for i in range(12)]
    assert sets == [0b111101, 0b001001, 0, 0b000001, 0b000010, 0b000001, 0b001000, 0, 0b000101, 0b000010, 0b010000, 0b100000]
    assert [int(row["sliding_days"]) for row in image[Kind.WALLETS]] == [30, 0]


def test_amounts_that_may_not_fit_into_64_bits_are_marked():
    wallets = [{"name": "points"}, {"name": "fine", "scale": 9, "worth": 7.13}]
    programme = programme_of(
        [{"name": "Small", "percent": 5}, {"name": "Fine", "percent": 0.0001, "to_wallet": "fine"},
         {"name": "Large", "percent": 100, "to_wallet": "fine", "caps": [{"points": 1, "per": "receipt"}]}],
        wallets=wallets, largest_receipt="100000000.00")
    assert [bool(flags & image2.RuleFlag.WIDE) for flags in Image(lower_programme(programme))[Kind.RULES]["flags"]] == [False, False, True]


# --- the same bytes ---------------------------------------------------------------------------------------------------------

SOURCE = """
programme: Files
currency: EUR
zone: Europe/Warsaw
wallets: [{name: points}]
stores: {file: stores.csv}
catalogue: {file: articles.csv}
segments: [a, b, c]
tenders: [cash, card, voucher]
rules:
  - {name: Flags, lines: {flag: [alcohol, tobacco, fresh]}, percent: 1}
  - {name: Skus, lines: {any: [{sku: [s1, s5, s9]}, {price: {from: 5.00}}]}, give: 3}
  - {name: Places, when: {any: [{region: [north, south]}, {store_group: [city, mall]}], promo_code: [X, Y, Z]}, give: 1}
  - {name: Members, when: {not: {segment: [a, c]}, tender: [card, voucher]}, percent: 2, caps: [{points: 5, per: day}]}
"""


def write_files(folder: Path) -> None:
    folder.mkdir()
    (folder / "programme.yaml").write_text(SOURCE)
    stores = [f"{i},{('north', 'south', '')[i % 3]},{('city mall', 'mall', '')[i % 5 % 3]},{('', 'Europe/London')[i % 2]}\n"
              for i in range(1, 30)]
    (folder / "stores.csv").write_text("store,region,groups,zone\n" + "".join(stores))
    articles = [f"s{i},Food/{i % 7},brand {i % 3},{('alcohol', 'fresh tobacco', '')[i % 3]}\n" for i in range(200)]
    (folder / "articles.csv").write_text("sku,category,brand,flags\n" + "".join(articles))


def test_the_same_source_gives_the_same_bytes_in_other_processes_and_folders(tmp_path):
    write_files(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "another folder")
    here = lower_programme(check.check_file(tmp_path / "one" / "programme.yaml"))
    code = ("import sys; from pathlib import Path; from ledger.rules import check, lower2; "
            "sys.stdout.buffer.write(lower2.lower_programme(check.check_file(Path(sys.argv[1]))))")
    other = tmp_path / "another folder" / "programme.yaml"
    for seed, folder, file in (("1", tmp_path, other), ("77", tmp_path / "one", Path("programme.yaml"))):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "TZ": "Asia/Tokyo", "LC_ALL": "C"}
        done = subprocess.run([sys.executable, "-c", code, file], cwd=folder, env=environment, check=True, capture_output=True)
        assert done.stdout == here


def test_other_goods_give_another_image(tmp_path):
    write_files(tmp_path / "one")
    before = Image(lower_programme(check.check_file(tmp_path / "one" / "programme.yaml")))
    with (tmp_path / "one" / "articles.csv").open("a") as file:
        file.write("new,Food/1,brand 1,\n")
    after = Image(lower_programme(check.check_file(tmp_path / "one" / "programme.yaml")))
    assert before.header["catalogue"] != after.header["catalogue"] and before.hash != after.hash
    assert before.find(Kind.ARTICLES, "new") is None and after.find(Kind.ARTICLES, "new") is not None


@pytest.mark.parametrize("path", PROGRAMMES, ids=lambda path: path.stem)
def test_the_programmes_of_this_project_can_be_lowered(path):
    programme = check.check_file(path)
    image = Image(lower_programme(programme))
    assert [row["name"].decode() for row in image[Kind.RULE_NAMES]] == [rule.name for rule in programme.rules]


# --- tables, reading ----------------------------------------------------------------------------------------------------------

def test_names_are_found_by_hash_and_then_compared():
    names = [f"sku-{i:05}" for i in range(3000)] + ["x" * 32, "é" * 16]
    programme = replace(programme_of([{"name": "Base", "percent": 1}]), articles={name: tree.Article(name) for name in names})
    image = Image(lower_programme(programme))
    rows = image[Kind.ARTICLES]
    hashes = hashes_of(rows)
    assert [int(found) for found in hashes] == sorted(image2.mixed(image2.fnv1a(name)) for name in rows["name"].tolist())
    assert all(image.find(Kind.ARTICLES, name)["name"].decode() == name for name in names)
    assert image.find(Kind.ARTICLES, "sku-03000") is None and image.find(Kind.ARTICLES, "x" * 31) is None
    starts = image[Kind.ARTICLE_STARTS]
    assert starts[0] == 0 and starts[-1] == len(names) and (np.diff(starts.astype(int)) >= 0).all()


def test_a_damaged_image_is_refused_by_the_reader():
    data = bytearray(lower_programme(programme_of([{"name": "Base", "percent": 1}])))
    for damaged in (data[:-1], data[:100], bytes(8) + data[8:], data[:300] + bytes([data[300] ^ 1]) + data[301:]):
        with pytest.raises(ImageDamaged):
            Image(bytes(damaged))


def test_dimensions_that_no_rule_mentions_cost_nothing():
    image = Image(lower_programme(programme_of([{"name": "Base", "percent": 1, "when": {"weekday": "mon"}}])))
    assert [int(row["count"]) for row in image[Kind.MAY_INDEX]] == [7 if i == Dimension.WEEKDAY else 0 for i in range(11)]
    assert len(image[Kind.MAY]) == 7 and len(image[Kind.STORE_CLASSES]) == 2 and len(image[Kind.ATOMS]) == 0


def test_what_is_alike_is_kept_once():
    when = {"total": {"from": 5.00}, "birthday": {"days_after": 3}}
    rules = [{"name": f"Rule {i}", "give": 1, "when": when, "caps": [{"uses": 1, "per": "birthday"}]} for i in range(9)]
    image = Image(lower_programme(programme_of(rules)))
    assert len(set(image[Kind.RULES]["when_program"].tolist())) == 1 and len(image[Kind.ATOMS]) == 2
    atoms = [image.numbers(cap) for cap in image[Kind.CAPS]]
    assert all([image[Kind.ATOMS][number]["code"] for number in numbers] == [Atom.BIRTHDAY] for numbers in atoms)


# --- limits -------------------------------------------------------------------------------------------------------------------

def test_too_many_entitlements_are_refused():
    with pytest.raises(LimitExceeded, match="at most 64 different entitlements, have 65"):
        lower_programme(programme_of([{"name": f"Rule {i}", "entitle": f"flag {i}"} for i in range(65)]))


def test_too_many_rules_for_one_article_are_refused(monkeypatch):
    monkeypatch.setattr(lower_articles, "CLASS_RULES_MAX", 2)
    rules = [{"name": f"Rule {i}", "lines": {"category": "Food/Dairy"}, "give": 1} for i in range(3)]
    with pytest.raises(LimitExceeded, match="3 rules may hold for article 'cheese', at most 2 are possible"):
        lower_programme(programme_of(rules))


def test_an_image_that_is_too_large_is_refused_and_says_what_is_large():
    articles = {f"sku {i}": tree.Article(f"sku {i}") for i in range(410_000)}
    programme = programme_of([{"name": "Base", "percent": 1}])
    with pytest.raises(LimitExceeded, match=r"the image would have \d+ bytes, at most 16777216 are allowed; most of it: articles 16400000"):
        lower_programme(replace(programme, articles=articles))


def test_a_catalogue_that_can_never_fit_is_refused_at_once():
    articles = dict.fromkeys(range(420_000))
    with pytest.raises(LimitExceeded, match="catalogue: must have at most 419430 articles to fit into an image, has 420000"):
        lower_programme(replace(programme_of([{"name": "Base", "percent": 1}]), articles=articles))


def test_a_reach_that_is_too_large_is_refused():
    part = tree.Any(tuple(tree.Threshold("spent", i + 1, tree.Window("lifetime")) for i in range(150)))
    tiers = tree.Tiers((tree.Level("base", None), tree.Level("high", part)), "never", (0, "days"))
    with pytest.raises(LimitExceeded, match=r"tiers.levels\[1\].reach: the condition is too large: it has 300 steps, at most 256"):
        lower_programme(replace(programme_of([{"name": "Base", "percent": 1}]), tiers=tiers))


def test_the_largest_condition_of_the_language_fits():
    parts = tuple(tree.Not(tree.InRange("total", i, i + 1)) for i in range(1, 65))
    odd = tree.Any(tuple(tree.Not(tree.All(parts[i:i + 2])) for i in range(0, 64, 2)))
    programme = programme_of([{"name": "Base", "percent": 1}])
    programme = replace(programme, rules=(replace(programme.rules[0], when=odd),))
    image = Image(lower_programme(programme))
    for total in (0, 1, 2, 30, 64, 65):
        agree(programme, image, ANYONE, Receipt(total, (Line("milk", total),)), NOON_US)


def test_names_whose_short_hashes_are_alike_are_refused(monkeypatch):
    monkeypatch.setattr("ledger.rules.lower2.key_of", lambda name: 7)
    with pytest.raises(LimitExceeded, match=r"rules\[1\].name: the short hash of 'Two' and that of 'One' .* must be another name"):
        lower_programme(programme_of([{"name": "One", "percent": 1}, {"name": "Two", "percent": 1}]))


def test_rows_that_fold_to_the_same_are_told_apart(monkeypatch):
    draw = np.random.default_rng(3)
    columns = [draw.integers(0, 3, 500).astype(np.uint64) for _ in range(4)]
    groups, first = lower_dimensions.grouped(columns)
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    numbers = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    assert groups.tolist() == [numbers[row] for row in rows] and first.tolist() == [rows.index(row) for row in numbers]
    monkeypatch.setattr(lower_dimensions, "FOLD", np.uint64(0))
    assert lower_dimensions.grouped(columns)[0].tolist() == groups.tolist()
