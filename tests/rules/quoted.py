"""What QuoteReceipt must answer, worked out from the reference interpreter's result. Used by tests/rules/test_core.py and test_quote.py."""

from __future__ import annotations

from datetime import date
from typing import Any

from ledger.limits import NOTICES_TOLD_MAX
from ledger.rules import tree
from ledger.rules.reference import EPOCH, BurnLimit, Given, Missing, Receipt, Result
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.rules.compiled import POINTS, Compiled

KINDS = {"unknown_store": 1, "unknown_sku": 2, "unknown_category": 3, "unknown_promo_code": 4, "unknown_tender": 5, "unknown_channel": 6}
STEPS = ("discount_line", "discount_receipt", "points", "add_percent", "times", "entitle")
ROUNDINGS = {"floor": 1, "half_up": 2, "ceil": 3}
BOUNDS = ("balance", "share", "eligible", "money_at_least", "max", "min", "no_rule")
REASONS = {"too_little": 1, "would_never_count": 2, "cap_too_late": 3, "nothing_left": 5, "campaign_points": 6, "campaign_amount": 6,
           "campaign_uses": 7}
EXACT_MAX = 9 * 10**12


def day_of(number: int) -> date:
    return EPOCH.fromordinal(EPOCH.toordinal() + number)


def result_of(programme: tree.Programme, receipt: Receipt, result: Result) -> Any:
    """ReceiptResult, but for the places of what was not known and for what is missing to the next level."""
    levels = [level.name for level in programme.tiers.levels] if programme.tiers else []
    made = pb.ReceiptResult(entitlements=result.entitlements, discount_minor=sum(result.discounts), paid_minor=sum(result.paid),
                            notice_count=len(result.notices))
    for name in ("discounts", "paid"):
        for i, amount in enumerate(getattr(result, name)):
            if amount:
                getattr(made, name).add(line=i + 1 if receipt.lines else 0, amount_minor=amount)
    if levels:
        made.standing.tier = levels[result.tier]
        made.standing.new_tier = levels[result.tier_after] if result.tier_after != result.tier else ""
        if (until := result.changes.tier_until) is not None:
            made.standing.held_until_day = int(f"{day_of(until):%Y%m%d}")
    for notice in result.notices[:NOTICES_TOLD_MAX]:
        kind, _, text = notice.partition(" ")
        made.notices.add(kind=KINDS[kind], text=text)
    return made


def without_places(result: Any) -> Any:
    """A ReceiptResult as result_of makes it, after a look at the places of its notices."""
    for found in result.notices:
        assert found.index > 0 or found.kind in (1, 6)
        found.index = 0
    return result


def missing_of(missing: Missing) -> Any:
    kinds = {"lifetime": "lifetime", "month": "calendar month", "year": "calendar year", "anniversary": "anniversary year",
             "rolling": f"{missing.window.days} days"}
    made = pb.Missing(tier=missing.level, window=kinds[missing.window.kind])
    setattr(made, "receipts" if missing.measure == "receipts" else "spent_minor", missing.missing)
    return made


def limit_of(programme: tree.Programme, limit: BurnLimit) -> Any:
    return pb.BurnLimit(wallet=programme.wallets[limit.wallet].name, points=limit.points, rule=limit.rule,
                        bounds=[BOUNDS.index(why) + 1 for why in limit.why])


def reason_of(programme: tree.Programme, reason: str) -> dict[str, Any]:
    """Fields of a RuleExplanation; `per` and `taken_by` where they belong to it."""
    what, _, name = reason.partition(" ")
    if what == "lost_to":
        return {"reason": 4, "taken_by": next(rule.index + 1 for rule in programme.rules if rule.name == name)}
    if what in REASONS:
        return {"reason": REASONS[what]}
    _, per, measure = what.split("_")
    return {"reason": 9 if measure == "uses" else 8, "per": per}


def explained(programme: tree.Programme, receipt: Receipt, rule: tree.Rule, given: Given | None, reason: str | None) -> Any:
    made = pb.RuleExplanation(rule=rule.index + 1, name=rule.name)
    if rule.kind != "entitle":
        made.rounding = ROUNDINGS[rule.round]
    if rule.kind in POINTS:
        made.wallet = programme.wallets[rule.wallet].name
    if reason is not None:
        for name, value in reason_of(programme, reason).items():
            setattr(made, name, value)
    if given is not None:
        whole = given.exact.__floor__()
        made.base, made.rounded, made.given = given.base, given.rounded, given.given
        made.exact_micro = (given.exact * 1_000_000).__floor__() if whole < EXACT_MAX else 0
        for why, amount in given.cuts:
            cut = reason_of(programme, why)
            made.cuts.add(reason=cut["reason"], amount=amount, per=cut.get("per", ""))
        if rule.kind not in POINTS:
            for i, share in enumerate(given.lines):
                if share:
                    made.lines.add(line=i + 1 if receipt.lines else 0, amount_minor=share)
    return made


def explanations(programme: tree.Programme, receipt: Receipt, result: Result, entitled: set[int]) -> list[Any]:
    """Of every rule whose conditions hold, in the order of the steps. entitled: places of rules that entitle and gave no reason not to."""
    given = {row.rule: row for row in result.given}
    refused = dict(result.not_given)
    held = sorted(given.keys() | refused.keys() | entitled, key=lambda at: (STEPS.index(programme.rules[at].kind), at))
    return [explained(programme, receipt, programme.rules[at], given.get(at), refused.get(at)) for at in held]


def check_quote(compiled: Compiled, receipt: Receipt, result: Result, quote: Any, *, today: bool = True) -> None:
    """The whole answer, but for the token and the member. today: what the member had available was that of the receipt's day."""
    programme = compiled.programme
    assert [(row.line, row.rule, row.points) for row in quote.awards] == [
        (row[0], row[1], row[4]) for row in compiled.awards(result.given, not receipt.lines)]
    assert [(row.wallet, row.points) for row in quote.points] == [
        (wallet.name, points) for wallet, points in zip(programme.wallets, result.points, strict=True) if points]
    limits = [limit_of(programme, limit) for limit in result.burn_limits]
    assert list(quote.burn_limits) == limits or not today
    assert [(limit.wallet, limit.rule) for limit in quote.burn_limits] == [(limit.wallet, limit.rule) for limit in limits]
    expected = result_of(programme, receipt, result)
    expected.standing.missing.extend(missing_of(missing) for missing in result.to_next)
    if not programme.tiers:
        expected.ClearField("standing")
    told = pb.ReceiptResult()
    told.CopyFrom(quote.result)
    assert without_places(told) == expected
    named = {rule.rule - 1 for rule in quote.rules}
    entitled = {at for at in named if programme.rules[at].kind == "entitle"} - dict(result.not_given).keys()
    assert {programme.rules[at].effect.name for at in entitled} == set(result.entitlements)
    assert list(quote.rules) == explanations(programme, receipt, result, entitled)
    assert quote.rule_count == len(quote.rules)
