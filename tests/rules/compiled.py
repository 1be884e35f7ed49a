"""The compiled evaluator in the reference interpreter's words: the same programme, member and receipt go in, the same `Result` comes out.

A programme is lowered to its image, the image is loaded as the service loads it, and what the evaluator says in numbers is told by name
again. Used by whatever compares the two; nothing of what rules mean is worked out here.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, NamedTuple

from ledger._probe import LoadedImage

from ledger.rules import image2, lower2, tree
from ledger.rules.image2 import Kind
from ledger.rules.reference import BurnLimit, Changes, Given, Member, Missing, Receipt, Result, Shared
from ledger.rules.reference import evaluate as interpret

DAY_NEVER = 2**31 - 1
AWARDS_MAX = 3000
REFUSED = (None, "too_many_lines", "absurd_amount", "total_differs", "unknown_store", "burn_not_possible", "burn_step", "burn_too_high",
           "burn_below_min", "points_overflow", "too_many_awards")
WHY = ("balance", "share", "eligible", "money_at_least", "max", "min", "no_rule")
PLAIN_REASONS = {1: "too_little", 2: "would_never_count", 3: "cap_too_late", 5: "nothing_left", 7: "campaign_uses"}
POINTS = ("points", "add_percent", "times")


def none_if_never(day: int) -> int | None:
    return None if day == DAY_NEVER else day


class Award(NamedTuple):
    """Points that a rule (from 1) gave to a line (from 1; 0: the receipt as a whole)."""

    line: int
    rule: int
    wallet: int
    funder: int
    points: int
    available_day: int
    expiry_day: int


def awards(programme: tree.Programme, given: tuple[Given, ...], nameless: bool) -> list[Award]:
    """The awards that the contract asks for: rules in the file's order, one row of line 0 where the rows would not fit."""
    rows = sorted((row for row in given if programme.rules[row.rule].kind in POINTS), key=lambda row: row.rule)
    found: list[Award] = []
    for behind, row in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
        rule = programme.rules[row.rule]
        expiry = DAY_NEVER if row.expiry_day is None else row.expiry_day
        whole = nameless or len(found) + sum(share > 0 for share in row.lines) + behind > AWARDS_MAX
        shares = [(0, row.given)] if whole else [(i, share) for i, share in enumerate(row.lines, start=1) if share]
        found += [Award(line, rule.index + 1, rule.wallet, rule.funder, share, row.available_day, expiry) for line, share in shares]
    return found


class Compiled:
    """One programme as the service would run it."""

    def __init__(self, programme: tree.Programme):
        self.programme = programme
        self.image = lower2.lower_programme(programme)
        self.loaded = LoadedImage(self.image)
        read = image2.Image(self.image)
        rows, caps = read[Kind.RULES], read[Kind.CAPS]
        self.keys = {int(caps[int(rows[rule.index]["first_cap"]) + i]["counter"]): (rule.name, cap.per, cap.measure)
                     for rule in programme.rules for i, cap in enumerate(rule.caps) if cap.per != "receipt"}
        self.counters = {key: counter for counter, key in self.keys.items()}
        self.campaigns = {campaign.name: int(row["key"]) for campaign, row in zip(programme.campaigns, read[Kind.CAMPAIGNS], strict=True)}
        self.entitlements = [name.decode() for name in read[Kind.ENTITLEMENTS]["name"]]
        levels = programme.tiers.levels if programme.tiers else ()
        self.thresholds = [(level.name, threshold) for level in levels for threshold in tree.thresholds(level.reach)]

    # --- in --------------------------------------------------------------------------------------------------------------

    def give(self, member: Member, receipt: Receipt, time_us: int, shared: Shared) -> None:
        """Hands everything to the evaluator."""
        programme = self.programme
        self.loaded.receipt(
            receipt.total,
            [(line.sku.encode(), line.category.encode(), line.quantity, line.amount, line.before or 0, line.weighed)
             for line in receipt.lines],
            receipt.store.encode(), receipt.channel.encode(), [(name.encode(), amount) for name, amount in receipt.tenders],
            [code.encode() for code in receipt.promo_codes], time_us, receipt.burn_wallet, receipt.burn)
        counters = [(self.counters[key], rows) for key, rows in member.counters.items() if key in self.counters]
        for window, rows in member.windows.items():
            if window.kind != "rolling":
                counters += [(image2.WINDOWS[window.kind] * 2 + measure, tuple((row[0], row[1 + measure]) for row in rows))
                             for measure in (0, 1)]
        self.loaded.member(
            member.number, member.receipts + 1, member.opened_day, -1 if member.last_day is None else member.last_day,
            member.birthday[0] * 32 + member.birthday[1] if member.birthday else 0, member.birthday_from, member.tier,
            DAY_NEVER if member.tier_until is None else member.tier_until,
            sum(1 << i for i, name in enumerate(programme.segments) if name in member.segments),
            sum(1 << i for i, name in enumerate(programme.favourites) if name in member.chosen),
            member.available, sorted(member.days), counters,
            [(self.campaigns[name], *taken) for name, taken in shared.campaigns.items() if name in self.campaigns])

    # --- out -------------------------------------------------------------------------------------------------------------

    def evaluate(self, member: Member, receipt: Receipt, time_us: int, shared: Shared = Shared()) -> Result:  # noqa: B008
        """What the image makes of a receipt."""
        self.give(member, receipt, time_us, shared)
        out = self.loaded.evaluate()
        programme, refused = self.programme, REFUSED[out["refused"]]
        levels = programme.tiers.levels if programme.tiers else ()
        burn_limits = tuple(
            BurnLimit(wallet, programme.burn[rule - 1].name if rule else "", points,
                      tuple(name for i, name in enumerate(WHY) if why >> i & 1))
            for wallet, rule, points, why in out["burn_limits"])
        notices = tuple(self.notice(receipt, kind, at) for kind, at in out["notices"])
        if refused is not None:
            return Result(refused=refused, notices=notices, day=out["day"], tier=out["tier"], burn_limits=burn_limits)
        given = tuple(self.given(row) for row in out["given"])
        assert out["awards"] == self.awards(given, not receipt.lines)
        assert not levels or out["tier_after"] < len(levels)
        return Result(
            notices=notices, day=out["day"], tier=out["tier"], tier_after=out["tier_after"],
            to_next=tuple(self.missing(at, missing) for at, missing in out["missing"]),
            variants=tuple((e.name, e.variants[at][0]) for e, at in zip(programme.experiments, out["variants"], strict=True)),
            discounts=tuple(out["discounts"]), burn_limits=burn_limits, paid=tuple(out["paid"]), given=given,
            not_given=tuple((rule, self.reason(rule, reason, taker)) for rule, reason, taker in out["not_given"]),
            points=tuple(out["points"]), entitlements=tuple(self.entitlements[at] for at in out["entitlements"]),
            changes=Changes(out["day"], tuple((self.keys[counter], window, increment) for counter, window, increment in out["counters"]),
                            tuple((programme.campaigns[at - 1].name, points, 1) for at, points in out["campaigns"]), out["spent"],
                            out["tier_after"], none_if_never(out["tier_until"])))

    def missing(self, at: int, missing: int) -> Missing:
        level, threshold = self.thresholds[at]
        return Missing(level, threshold.measure, missing, threshold.window)

    def reason(self, rule: int, reason: int, taker: int = 0) -> str:
        """Why a rule gave nothing, or less."""
        it = self.programme.rules[rule]
        if reason == 4:
            return f"lost_to {self.programme.rules[taker].name}"
        if reason == 6:
            return f"campaign_{next(c.measure for c in self.programme.campaigns if c.name == it.campaign)}"
        if reason >= 16:
            measure = "uses" if reason % 2 else "amount" if it.kind.startswith("discount") else "points"
            return f"cap_{tree.PER[(reason - 16) // 2]}_{measure}"
        return PLAIN_REASONS[reason]

    def given(self, row: dict[str, Any]) -> Given:
        rule = self.programme.rules[row["rule"]]
        earns = rule.kind in POINTS
        return Given(row["rule"], row["base"], Fraction(row["numerator"], row["divisor"]), row["rounded"],
                     tuple((self.reason(rule.index, reason), points) for reason, points in row["cuts"]), row["given"], tuple(row["lines"]),
                     row["available_day"] if earns else None, none_if_never(row["expiry_day"]) if earns else None)

    def awards(self, given: tuple[Given, ...], nameless: bool) -> list[Award]:
        return awards(self.programme, given, nameless)

    def notice(self, receipt: Receipt, kind: int, at: int) -> str:
        text = {1: receipt.store, 6: receipt.channel}.get(kind)
        if kind in (2, 3):
            text = receipt.lines[at].sku if kind == 2 else receipt.lines[at].category
        if kind in (4, 5):
            text = receipt.promo_codes[at] if kind == 4 else receipt.tenders[at][0]
        return f"unknown_{('store', 'sku', 'category', 'promo_code', 'tender', 'channel')[kind - 1]} {text}"


def both(compiled: Compiled, member: Member, receipt: Receipt, time_us: int, shared: Shared = Shared()) -> Result:  # noqa: B008
    """The result, after seeing that reference and image say the same of every field."""
    expected = interpret(compiled.programme, member, receipt, time_us, shared)
    found = compiled.evaluate(member, receipt, time_us, shared)
    assert found == expected, difference(found, expected)
    return expected


def difference(found: Result, expected: Result) -> str:
    """The fields that differ, one a line."""
    return "".join(f"\n{name}: {getattr(found, name)}\n  expected {getattr(expected, name)}"
                   for name in Result.__dataclass_fields__ if getattr(found, name) != getattr(expected, name))
