"""The compiled evaluator equals the reference interpreter: every field of the result, for whatever the language allows."""

from __future__ import annotations

import random
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from bench import rules as bench_rules
from ledger import limits
from ledger.rules import check, reference
from ledger.rules.reference import Line, Member, Receipt, Shared
from tests.rules import generate, till
from tests.rules.compiled import Compiled, both
from tests.rules.test_examples import EXAMPLES, over_frame, plain

MEMBER = Member(1, 20_000, available=(10**6,))
TIME_US = bench_rules.TIME_US

often = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def cases(draw):
    """A programme, a member, and receipts in any order of time."""
    return (draw(generate.programmes()), draw(generate.members()),
            draw(st.lists(st.tuples(generate.receipts(), generate.times_us()), min_size=1, max_size=8)))


@often
@given(cases())
def test_generated_receipts_come_to_the_same(case):
    programme, member, receipts = case
    compiled, shared = Compiled(programme), Shared()
    for receipt, time_us in receipts:
        result = both(compiled, member, receipt, time_us, shared)
        member, shared = reference.apply(programme, member, shared, result)


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_examples_of_the_page_come_to_the_same(title, monkeypatch):
    node = YAML(typ="safe", pure=True).compose(EXAMPLES[title])
    programme = over_frame(next((value for key, value in node.value if key.value == "programme"), None))
    compiled = Compiled(programme)
    monkeypatch.setattr(reference, "evaluate", lambda _, *case: both(compiled, *case))
    till.Till(programme).tell(plain(node), title)


FRAME = "programme: P\ncurrency: EUR\nzone: Europe/Warsaw\nwallets: [{name: points}]\n"


def compiled(rules: str, more: str = "") -> Compiled:
    """A small programme of these rules."""
    return Compiled(check.check_source(f"{FRAME}{more}rules:\n{rules}".encode()))


@cache
def many_rules() -> Compiled:
    return Compiled(bench_rules.programme(300, 600))


@pytest.mark.parametrize("count", [1, 6, 63, 64, 65, 200, 1000])
def test_many_lines_and_rules_come_to_the_same(count):
    dice = random.Random(count)
    many, member, shared = many_rules(), MEMBER, Shared()
    for number in range(3 if count <= 200 else 1):
        lines = tuple(Line(f"4600000{dice.randrange(650):06}", dice.choice([0, 50, 199, 5000, dice.randrange(10**6)]),
                           dice.choice([0, 500, 3000])) for _ in range(count))
        receipt = Receipt(sum(line.amount for line in lines), lines, f"{dice.randrange(45)}", channel="app", burn=number)
        result = both(many, member, receipt, TIME_US, shared)
        assert count < 60 or len(result.given) > 8
        member, shared = reference.apply(many.programme, member, shared, result)


def test_awards_that_would_not_fit_are_one_row():
    five = compiled("".join(f"  - {{name: R{i}, give: {i * 100_000}}}\n" for i in range(1, 6)))
    lines = tuple(Line(f"sku {i}", 100 + i) for i in range(limits.LINES_MAX))
    both(five, MEMBER, Receipt(sum(line.amount for line in lines), lines), TIME_US)
    rows = five.loaded.evaluate()["awards"]
    per_rule = [sum(row[1] == rule for row in rows) for rule in range(1, 6)]
    assert per_rule == [1000, 1000, 1, 1, 1]


@pytest.mark.parametrize("give", [1, 7, 999_983, 1_000_000])
@pytest.mark.parametrize("largest", [3, 1000, 10**9])
def test_sharing_is_by_largest_remainder(give, largest):
    """Small and large weights, alike and not, with ties: products of 64 and of 128 bits."""
    dice = random.Random(give * largest)
    one = compiled(f"  - {{name: R, give: {give}, caps: [{{points: {give // 2 + 1}, per: receipt}}]}}\n")
    for count in (1, 2, 5, 30, 301):
        lines = tuple(Line("x", dice.randrange(largest)) for _ in range(count))
        both(one, MEMBER, Receipt(sum(line.amount for line in lines), lines), TIME_US)


def test_more_points_than_are_possible_are_refused():
    rules = "".join(f"  - {{name: R{i}, for_every_full: 1.00, give: 90, funder: f}}\n" for i in range(2))
    two = compiled(rules, "funders: {f: 3}\n")
    for total in (limits.AMOUNT_MINOR_MAX, limits.AMOUNT_MINOR_MAX // 2, 555_555_555_600):
        result = both(two, MEMBER, Receipt(total), TIME_US)
        assert (result.refused == "points_overflow") == (2 * (total // 100 * 90) > limits.POINTS_MAX)


def test_unknown_names_are_noted_once():
    known = compiled("  - {name: R, give: 1, when: {promo_code: A}}\n",
                     "catalogue: [{sku: milk}]\ncategories: {DRY: Food}\ntenders: [cash]\nstores: [{store: '1'}]\n")
    lines = tuple(Line(f"sku {i % 600}" if i % 3 else "milk", 1, 0, f"code {i % 7}" if i % 2 else "DRY") for i in range(1000))
    receipt = Receipt(1000, lines, "9", (("gold", 1), ("cash", 1), ("gold", 2)), "web", ("B", "A", "B"))
    assert len(both(known, MEMBER, receipt, TIME_US).notices) > 400


@pytest.mark.parametrize("change", [{"total": -1}, {"total": 10**12 + 1}, {"total": 5}, {"lines": (Line("x", -1),), "total": -1},
                                    {"lines": (Line("x", 4),) * 1001, "total": 4004}, {"lines": (Line("x", 4, -1),), "total": 4},
                                    {"lines": (Line("x", 4, limits.QUANTITY_MILLI_MAX + 1),), "total": 4}])
def test_absurd_receipts_are_refused_alike(change):
    one = compiled("  - {name: R, give: 1}\n")
    receipt = Receipt(**{"total": 4, "lines": (Line("x", 4),), **change})
    assert both(one, MEMBER, receipt, TIME_US).refused is not None
