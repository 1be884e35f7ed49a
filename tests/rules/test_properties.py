"""What must hold of the reference interpreter for every programme, member and receipt that can be written down."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger.rules import reference, tree
from ledger.rules.reference import Shared
from tests.rules import generate

often = settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
POINTS = ("points", "add_percent", "times")


@st.composite
def cases(draw):
    """A programme, a member, and receipts in any order of time."""
    programme = draw(generate.programmes())
    return programme, draw(generate.members()), draw(st.lists(st.tuples(generate.receipts(), generate.times_us()), min_size=1, max_size=5))


def results(case):
    """(member before, shared before, receipt, time, result) of each receipt, one after the other."""
    programme, member, receipts = case
    shared = Shared()
    for receipt, time_us in receipts:
        result = reference.evaluate(programme, member, receipt, time_us, shared)
        yield member, shared, receipt, time_us, result
        member, shared = reference.apply(programme, member, shared, result)


@often
@given(cases())
def test_the_same_again_is_the_same(case):
    for member, shared, receipt, time_us, result in results(case):
        assert reference.evaluate(case[0], member, receipt, time_us, shared) == result


@often
@given(cases())
def test_lines_add_up_to_the_receipt(case):
    programme = case[0]
    for _, _, receipt, _, result in results(case):
        if result.refused is not None:
            continue
        count = len(receipt.lines) or 1
        for row in result.given:
            assert row.given > 0 and sum(row.lines) == row.given and len(row.lines) == count and min(row.lines) >= 0
            assert row.given == row.rounded - sum(cut for _, cut in row.cuts)
        for wallet in range(len(programme.wallets)):
            rows = [row for row in result.given if programme.rules[row.rule].kind in POINTS and programme.rules[row.rule].wallet == wallet]
            assert sum(row.given for row in rows) == result.points[wallet]
        discounts = [row for row in result.given if programme.rules[row.rule].kind.startswith("discount")]
        assert list(result.discounts) == [sum(row.lines[i] for row in discounts) for i in range(count)]
        amounts = [line.amount for line in receipt.lines] or [receipt.total]
        assert all(0 <= off + paid <= amount for off, paid, amount in zip(result.discounts, result.paid, amounts, strict=True))


@often
@given(cases())
def test_goods_that_take_no_part_get_no_points(case):
    programme = case[0]
    for member, _, receipt, time_us, result in results(case):
        if result.refused is not None or programme.no_points_on is None:
            continue
        facts = reference.Facts(programme, member, receipt, receipt.lines, 0, reference.wall_clock(programme, receipt.store, time_us), 0, 0)
        for i, line in enumerate(receipt.lines):
            if line.amount == 0 or reference.holds(programme.no_points_on, facts, line):
                assert not any(row.lines[i] for row in result.given if programme.rules[row.rule].kind in POINTS)


@often
@given(cases())
def test_no_cap_and_no_campaign_is_ever_exceeded(case):
    programme, member, _ = case
    by_window: dict[tuple, int] = {}
    campaigns: dict[str, list[int]] = {}
    for _, _, _, _, result in results(case):
        per_receipt = {
            (programme.rules[row.rule].name, "receipt", measure): row.given for row in result.given for measure in ("points", "amount")
        }
        for rule in programme.rules:
            for cap in rule.caps:
                assert per_receipt.get((rule.name, cap.per, cap.measure), 0) <= cap.limit
        for key, window, increment in result.changes.counters:
            by_window[key, window] = by_window.get((key, window), 0) + increment
        for name, value, uses in result.changes.campaigns:
            taken = campaigns.setdefault(name, [0, 0])
            taken[0], taken[1] = taken[0] + value, taken[1] + uses
    limits = {(rule.name, cap.per, cap.measure): cap.limit for rule in programme.rules for cap in rule.caps}
    assert all(value <= limits[key] for (key, _), value in by_window.items())
    for campaign in programme.campaigns:
        value, uses = campaigns.get(campaign.name, (0, 0))
        assert (campaign.limit is None or value <= campaign.limit) and (campaign.uses is None or uses <= campaign.uses)


@often
@given(cases())
def test_the_largest_burn_is_possible_and_one_step_more_is_not(case):
    programme = case[0]
    for member, shared, receipt, time_us, result in results(case):
        if result.refused is not None:
            continue
        for limit in result.burn_limits:
            asked = replace(receipt, burn=limit.points, burn_wallet=limit.wallet)
            paid = reference.evaluate(programme, member, asked, time_us, shared)
            assert paid.refused is None
            rule = next((rule for rule in programme.burn if rule.name == limit.rule), None)
            if rule is None or limit.points == 0:
                continue
            assert sum(paid.paid) == limit.points * rule.pays // 10 ** programme.wallets[limit.wallet].scale
            more = replace(asked, burn=limit.points + rule.step)
            assert reference.evaluate(programme, member, more, time_us, shared).refused == "burn_too_high"
            assert limit.points <= member.available[limit.wallet]


@often
@given(cases())
def test_paying_with_points_never_earns_more(case):
    """Where no money condition is on what is paid, less money cannot bring more from a rule without limits."""
    programme = case[0]
    plain = tuple(rule for rule in programme.rules if rule.kind == "points" and not rule.caps and not rule.campaign)
    programme = replace(programme, rules=tuple(replace(rule, index=i) for i, rule in enumerate(plain)), campaigns=())
    for receipt, time_us in case[2]:
        free = reference.evaluate(programme, case[1], replace(receipt, burn=0), time_us)
        if free.refused is None:
            for limit in free.burn_limits:
                paid = reference.evaluate(programme, case[1], replace(receipt, burn=limit.points, burn_wallet=limit.wallet), time_us)
                assert all(less <= more for less, more in zip(paid.points, free.points, strict=True))


@often
@given(generate.programmes(rules_max=3), generate.members(), generate.receipts(), generate.times_us())
def test_one_more_rule_that_stacks_takes_nothing_away(programme, member, receipt, time_us):
    if any(rule.exclusive or rule.group or rule.campaign for rule in programme.rules):
        return
    last = programme.rules[-1]
    if last.kind.startswith("discount"):
        return
    fewer = reference.evaluate(replace(programme, rules=programme.rules[:-1]), member, receipt, time_us)
    more = reference.evaluate(programme, member, receipt, time_us)
    if (
        fewer.refused is None
        and more.refused is None
        and not (
            last.kind == "add_percent"
            or last.kind in POINTS
            and last.wallet == 0
            and any(isinstance(rule.effect, tree.Times) for rule in programme.rules)
        )
    ):
        assert all(a <= b for a, b in zip(fewer.points, more.points, strict=True))
        assert [row for row in more.given if row.rule != last.index] == list(fewer.given)


@often
@given(cases())
def test_the_control_group_gets_nothing_from_rules_of_the_experiment(case):
    programme = case[0]
    for _, _, _, _, result in results(case):
        if dict(result.variants).get("spring") == "control":
            for row in result.given:
                assert not any(isinstance(part, tree.InVariant) for part in _conjuncts(programme.rules[row.rule].when))


def _conjuncts(condition):
    return [atom for part in condition.parts for atom in _conjuncts(part)] if isinstance(condition, tree.All) else [condition]


@often
@given(cases())
def test_a_tier_is_reached_when_it_is_given_and_refusals_change_nothing(case):
    programme, member, receipts = case
    shared = Shared()
    for receipt, time_us in receipts:
        result = reference.evaluate(programme, member, receipt, time_us, shared)
        after, shared_after = reference.apply(programme, member, shared, result)
        if result.refused is not None:
            assert (after, shared_after) == (member, shared)
            continue
        assert after.receipts == member.receipts + 1
        if result.tier_after > result.tier:
            today = max(result.day, member.last_day if member.last_day is not None else result.day)
            assert reference.reached(after, programme.tiers.levels[result.tier_after].reach, today)
            assert after.tier_until is None or after.tier_until > today or programme.tiers.downgrade != "never"
        member, shared = after, shared_after
