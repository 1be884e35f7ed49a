"""What the checker says of rules holds, and what is generated is as rich as the language.

A rule that it says can never fire never does, whatever is drawn for member, receipt and time. Of those that it takes, most fire for
something that is drawn, the rest is counted. And every construct is drawn, and holds for something and fails for something.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from ledger.rules import check, conditions, firing, reference, tree
from tests.rules import generate

once = settings(max_examples=160, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.generate])
RECEIPTS = 8  # of a programme
EFFECTS = ("Steps", "Fixed", "Percent", "AddPercent", "Times", "DiscountPercent", "Discount", "Entitle")
Visit = tuple[reference.Member, reference.Receipt, int]


def drawn(strategy: Any) -> list[Any]:
    """Examples of a strategy, the same every time."""
    found: list[Any] = []

    @once
    @given(strategy)
    def run(example: Any) -> None:
        found.append(example)

    run()
    return found


@pytest.fixture(scope="module")
def cases() -> list[tuple[tree.Programme, list[Visit]]]:
    """Programmes that the checker takes, and what happens under each: any members, receipts and times, for all have the same names."""
    programmes = drawn(generate.programmes())
    visit = st.tuples(generate.members(), generate.receipts(), generate.times_us())
    visits = [visit for some in drawn(st.lists(visit, min_size=3, max_size=6)) for visit in some]
    chance = random.Random(1)  # noqa: S311
    return [(programme, chance.sample(visits, RECEIPTS)) for programme in programmes]


def fired(programme: tree.Programme, result: reference.Result) -> set[int]:
    """The rules whose conditions held: that gave, or that something kept from giving."""
    entitling = {rule.index for rule in programme.rules
                 if isinstance(rule.effect, tree.Entitle) and rule.effect.name in result.entitlements}
    return {row.rule for row in result.given} | {index for index, _ in result.not_given} | entitling


def joined(programme: tree.Programme, others: list[tree.Rule]) -> tree.Programme:
    """Every rule asks what another one asks as well, which is often a contradiction; each entitles to something of its own."""
    return replace(programme, rules=tuple(
        replace(rule, when=tree.All((rule.when, other.when)), lines=tree.All((rule.lines, other.lines)),
                effect=tree.Entitle(f"e{rule.index}") if isinstance(rule.effect, tree.Entitle) else rule.effect)
        for rule, other in zip(programme.rules, others, strict=True)))


def test_a_rule_that_can_never_fire_never_fires(cases: Any) -> None:
    said: Counter[str] = Counter()
    chance = random.Random(2)  # noqa: S311
    by_kind: dict[str, list[tree.Rule]] = {}
    for programme, _ in cases:
        for rule in programme.rules:
            for atom in (*tree.atoms(rule.when), *tree.atoms(rule.lines)):
                by_kind.setdefault(kind_of(atom), []).append(rule)
    alike = sorted(by_kind)
    for programme, visits in cases * 3:
        others = []
        for rule in programme.rules:  # one that asks about the same
            kinds = [kind_of(atom) for atom in (*tree.atoms(rule.when), *tree.atoms(rule.lines))] or alike
            others.append(chance.choice(by_kind[chance.choice(kinds)]))
        tried = joined(programme, others)
        never = dict(firing.impossible(tried))
        said.update(why.split(": ")[-1].split("`")[0] for why in never.values())
        said["may fire"] += len(tried.rules) - len(never)
        for member, receipt, time_us in visits:
            assert not fired(tried, reference.evaluate(tried, member, replace(receipt, burn=0), time_us)) & set(never)
    print(dict(said))
    assert sum(said.values()) - said["may fire"] > 50 and len(said) > 6, "otherwise hardly anything was tried"


def test_a_burn_rule_that_can_never_decide_never_decides(cases: Any) -> None:
    found = 0
    for programme, visits in cases:
        first, second, third = programme.burn
        both = replace(second, name="Both", when=tree.All((tree.InRange("total", 500, None), tree.InRange("total", None, 500))))
        tried = replace(programme, burn=(both, first, second, replace(first, name="Late"), third))
        never = {tried.burn[i].name for i, _ in firing.burn_impossible(tried)}
        assert never == {"Both", "Late"}
        for member, receipt, time_us in visits:
            limits = reference.evaluate(tried, member, receipt, time_us).burn_limits
            found += len(limits)
            assert not {limit.rule for limit in limits} & never
    assert found > 100


def test_most_rules_that_are_taken_fire_and_the_rest_is_counted(cases: Any) -> None:
    counted: Counter[str] = Counter()
    for programme, visits in cases:
        found: set[int] = set()
        for member, receipt, time_us in visits:
            found |= fired(programme, reference.evaluate(programme, member, replace(receipt, burn=0), time_us))
        for rule in programme.rules:
            asks = "asks" if tree.atoms(rule.when) or tree.atoms(rule.lines) else "asks nothing"
            counted[f"{'fired' if rule.index in found else 'did not fire'}, {asks}"] += 1
    print(dict(counted))
    assert counted["did not fire, asks nothing"] == 0, "a rule without conditions fires for every receipt that is worth something"
    assert counted["fired, asks"] > counted["did not fire, asks"]


def test_every_construct_is_drawn_and_holds_for_something_and_fails_for_something(cases: Any) -> None:
    atoms: Counter[tuple[str, bool]] = Counter()
    found: Counter[str] = Counter()
    rules = sum(len(programme.rules) for programme, _ in cases)
    for programme, visits in cases:
        for rule in programme.rules:
            found.update(constructs(programme, rule))
        for member, receipt, time_us in visits:
            lines = receipt.lines or (reference.Line("", receipt.total),)
            today, clock = reference.programme_day(programme, time_us), reference.wall_clock(programme, receipt.store, time_us)
            tier = (member.number + today) % 3  # as if it had been reached
            facts = reference.Facts(programme, member, receipt, lines, today, clock, tier, receipt.total, tuple(range(len(lines))))
            for rule in programme.rules:
                for atom in (*tree.atoms(rule.when), *tree.atoms(rule.lines)):
                    for line in lines if tree.about_lines(atom) else (None,):
                        atoms[kind_of(atom), reference.holds(atom, facts, line)] += 1

    keys = {*conditions.LINE_KEYS, *conditions.OTHER_KEYS, *conditions.OWN_LINES_KEYS, "dates", "experiment"}
    print(f"{rules} rules")
    for key in sorted(keys):
        print(f"  {key}: {atoms[key, True]} times true, {atoms[key, False]} times false")
    for name, count in sorted(found.items()):
        print(f"  {name}: {count / rules:.1%} of rules")
    assert sorted(key for key in keys if not atoms[key, True]) == [] == sorted(key for key in keys if not atoms[key, False])
    expected = {*EFFECTS, "any", "all", "not", "per line", "per receipt", "round floor", "round half_up", "round ceil", "another wallet",
                "campaign", "group", "exclusive", "available after", "earn on points paid",
                *(f"cap per {per}" for per in tree.PER), "cap in uses", "cap in amount", "cap in points",
                *(f"life {unit}" for unit in ("forever", "days", "months", "until")),
                *(f"to end of {end}" for end in ("month", "quarter", "year"))}
    assert sorted(expected - set(found)) == []


def constructs(programme: tree.Programme, rule: tree.Rule) -> set[str]:
    """What a rule is made of, but for its conditions' atoms."""
    found = {type(rule.effect).__name__, f"per {rule.per}", f"round {rule.round}", f"life {rule.life.unit}"}
    found |= {f"cap per {cap.per}" for cap in rule.caps} | {f"cap in {cap.measure}" for cap in rule.caps}
    found |= {f"to end of {rule.life.end}"} if rule.life.end else set()
    for name, there in (("another wallet", rule.wallet), ("campaign", rule.campaign), ("group", rule.group), ("exclusive", rule.exclusive),
                        ("available after", rule.available_after)):
        found |= {name} if there else set()
    if rule.earn_on_points_paid != programme.earn_on_points_paid:
        found.add("earn on points paid")
    return found | nested(rule.when) | nested(rule.lines)


def nested(condition: object) -> set[str]:
    """Which of any, all and not are in a condition, but for the outermost `all` that its keys make."""
    found = set()
    waiting = [(condition, 0)]
    while waiting:
        part, depth = waiting.pop()
        if isinstance(part, (tree.All, tree.Any)):
            found |= {type(part).__name__.lower()} if depth or isinstance(part, tree.Any) else set()
            waiting += [(inner, depth + 1) for inner in part.parts]
        elif isinstance(part, tree.Not):
            found.add("not")
            waiting.append((part.part, depth + 1))
    return found


NAMES = {tree.Dates: "dates", tree.Hours: "hours", tree.Birthday: "birthday", tree.Nth: "nth_receipt", tree.EveryNth: "every_nth_receipt",
         tree.InVariant: "experiment"}


def kind_of(atom: object) -> str:
    """The key that makes an atom."""
    return NAMES.get(type(atom)) or atom.kind


def test_every_effect_of_the_language_is_in_the_list() -> None:
    assert {key for key in check.EFFECTS} == {"give", "percent", "add_percent", "times", "discount_percent", "discount", "entitle"}
    assert set(EFFECTS) == {kind.__name__ for kind in (tree.Steps, tree.Fixed, tree.Percent, tree.AddPercent, tree.Times,
                                                       tree.DiscountPercent, tree.Discount, tree.Entitle)}
