"""A till made of text: examples and stories in YAML, run against the reference interpreter.

Used by test_examples.py (docs/rules.md) and test_programmes.py (stories of programs/). A story is a mapping with `member` (who it
is), and `receipt` or `receipts`, each with what is expected of it. Points that a story earns are kept in simple lots, so that later
receipts can be paid with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from ledger.rules import reference, tree, zones
from ledger.rules.reference import EPOCH, Line, Member, Receipt, Result, Shared

OPENED = "2026-01-01"
TIME = "2026-03-02 12:00"


def integer(text: Any, digits: int) -> int:
    """`1.50` with 2 decimals is 150."""
    sign, text = (-1, str(text)[1:]) if str(text).startswith("-") else (1, str(text))
    whole, _, part = text.partition(".")
    assert len(part) <= digits, f"{text} has more than {digits} decimals"
    return sign * int(whole + part.ljust(digits, "0"))


def day_number(text: Any) -> int:
    return (date.fromisoformat(str(text)) - EPOCH).days


def line_of(text: str, digits: int) -> Line:
    """`SKU AMOUNT [xQUANTITY] [was AMOUNT] [weighed] [in CATEGORY]`."""
    text, _, category = text.partition(" in ")
    sku, amount, *rest = text.split()
    line = Line(sku, integer(amount, digits), category=category)
    while rest:
        word = rest.pop(0)
        if word == "was":
            line = replace(line, before=integer(rest.pop(0), digits))
        elif word == "weighed":
            line = replace(line, weighed=True)
        else:
            assert word.startswith("x"), f"{word!r} says nothing about a line"
            line = replace(line, quantity=integer(word[1:], 3))
    return line


def as_list(value: Any) -> list:
    return value if isinstance(value, list) else [value]


class Till:
    """One programme, its members and what they have."""

    def __init__(self, programme: tree.Programme):
        self.programme, self.shared = programme, Shared()
        self.members: dict[int, Member] = {}
        self.lots: dict[int, list[list[int | None]]] = {}  # member -> [wallet, available day, expiry day, points]

    def money(self, text: Any) -> int:
        return integer(text, self.programme.currency_digits)

    def wallet(self, name: str | None) -> int:
        return [wallet.name for wallet in self.programme.wallets].index(name) if name else 0

    def open(self, number: int, facts: Mapping[str, Any]) -> None:
        """A member as a story describes it."""
        known = {"opened", "tier", "segments", "chosen", "birthday", "birthday_from", "receipts", "last", "balance", "number"}
        assert not set(facts) - known, f"unknown facts {set(facts) - known}"
        tiers = [level.name for level in self.programme.tiers.levels] if self.programme.tiers else []
        birthday = tuple(int(part) for part in str(facts["birthday"]).split("-")) if "birthday" in facts else None
        self.members[number] = Member(
            number,
            day_number(facts.get("opened", OPENED)),
            tier=tiers.index(facts["tier"]) if "tier" in facts else 0,
            receipts=int(facts.get("receipts", 0)),
            last_day=day_number(facts["last"]) if "last" in facts else None,
            segments=frozenset(facts.get("segments", ())),
            chosen=frozenset(facts.get("chosen", ())),
            birthday=birthday,
            birthday_from=day_number(facts["birthday_from"]) if "birthday_from" in facts else 0,
        )
        self.lots[number] = [
            [self.wallet(name), 0, None, integer(points, self.programme.wallets[self.wallet(name)].scale)]
            for name, points in facts.get("balance", {}).items()
        ]

    def time_us(self, story: Mapping[str, Any]) -> int:
        if "utc" in story:
            moment = datetime.fromisoformat(str(story["utc"]).replace("Z", "+00:00"))
        else:
            store = self.programme.stores.get(str(story.get("store", "1")))
            zone = zones.load(store.zone if store else self.programme.zone)
            moment = datetime.fromisoformat(str(story.get("time", TIME))).replace(tzinfo=zone).astimezone(UTC)
        return (moment - zones.EPOCH) // timedelta(microseconds=1)

    def receipt(self, story: Mapping[str, Any]) -> Receipt:
        known = {
            "lines",
            "total",
            "store",
            "tenders",
            "channel",
            "promo_codes",
            "burn",
            "burn_wallet",
            "time",
            "utc",
            "member",
            "expect",
            "what",
        }
        assert not set(story) - known, f"unknown words {set(story) - known}"
        lines = tuple(line_of(str(text), self.programme.currency_digits) for text in story["lines"])
        wallet = self.wallet(story.get("burn_wallet"))
        return Receipt(
            total=self.money(story["total"]) if "total" in story else sum(line.amount for line in lines),
            lines=lines,
            store=str(story.get("store", "1")),
            tenders=tuple((name, self.money(amount)) for name, amount in story.get("tenders", {}).items()),
            channel=story.get("channel", ""),
            promo_codes=tuple(story.get("promo_codes", ())),
            burn=integer(story.get("burn", 0), self.programme.wallets[wallet].scale),
            burn_wallet=wallet,
        )

    def available(self, number: int, day: int) -> tuple[int, ...]:
        found = [0] * len(self.programme.wallets)
        for wallet, from_day, expiry, points in self.lots[number]:
            if from_day <= day and (expiry is None or day < expiry):
                found[wallet] += points
        return tuple(found)

    def sell(self, story: Mapping[str, Any]) -> Result:
        """Post a receipt: what it comes to; it changes the member unless it is refused."""
        number = int(story.get("member", 1))
        if number not in self.members:
            self.open(number, {})
        time_us, receipt = self.time_us(story), self.receipt(story)
        day = reference.programme_day(self.programme, time_us)
        member = replace(self.members[number], available=self.available(number, day))
        before = (member, self.shared)
        result = reference.evaluate(self.programme, member, receipt, time_us, self.shared)
        assert reference.evaluate(self.programme, member, receipt, time_us, self.shared) == result
        assert before == (member, self.shared), "evaluating changes nothing"
        self.members[number], self.shared = reference.apply(self.programme, member, self.shared, result)
        if result.refused is None:
            rest = receipt.burn
            for lot in sorted(self.lots[number], key=lambda lot: (lot[2] is None, lot[2] or 0)):
                if lot[0] == receipt.burn_wallet and lot[1] <= day and (lot[2] is None or day < lot[2]):
                    taken = min(rest, lot[3])
                    lot[3], rest = lot[3] - taken, rest - taken
            self.lots[number] += [
                [self.programme.rules[row.rule].wallet, row.available_day, row.expiry_day, row.given]
                for row in result.given
                if row.available_day is not None
            ]
        return result

    # --- expectations ------------------------------------------------------------------------------------------------------

    def told(self, result: Result, what: str) -> Any:
        """What a result says, in the words of `expect`."""
        rules = self.programme.rules
        scale = self.programme.wallets[0].scale

        def money(value: int) -> str:
            return tree.decimal(value, self.programme.currency_digits)

        def points(value: int, wallet: int = 0) -> str:
            return tree.decimal(value, self.programme.wallets[wallet].scale)

        def day(value: int | None) -> str:
            return "never" if value is None else str(EPOCH + timedelta(days=value))

        earned = [row for row in result.given if not rules[row.rule].kind.startswith("discount")]
        match what:
            case "refused":
                return result.refused
            case "notices":
                return list(result.notices)
            case "points":
                return points(result.points[0])
            case "wallets":
                return {wallet.name: points(result.points[i], i) for i, wallet in enumerate(self.programme.wallets)}
            case "lines":
                return [points(sum(row.lines[i] for row in earned if rules[row.rule].wallet == 0)) for i in range(len(result.paid))]
            case "rules":
                return {rules[row.rule].name: points(row.given, rules[row.rule].wallet) for row in earned}
            case "amounts":
                return {rules[row.rule].name: money(row.given) for row in result.given if rules[row.rule].kind.startswith("discount")}
            case "cut":
                return {
                    rules[row.rule].name: {name: tree.decimal(cut, scale) for name, cut in row.cuts} for row in result.given if row.cuts
                }
            case "not_given":
                return {rules[index].name: reason for index, reason in result.not_given}
            case "available":
                return {rules[row.rule].name: day(row.available_day) for row in earned}
            case "expires":
                return {rules[row.rule].name: day(row.expiry_day) for row in earned}
            case "discounts":
                return [money(part) for part in result.discounts]
            case "paid":
                return [money(part) for part in result.paid]
            case "largest_burn":
                return points(result.burn_limits[0].points, result.burn_limits[0].wallet)
            case "why":
                return list(result.burn_limits[0].why)
            case "variants":
                return dict(result.variants)
            case "entitlements":
                return list(result.entitlements)
            case "tier":
                return self.programme.tiers.levels[result.tier].name
            case "tier_after":
                return self.programme.tiers.levels[result.tier_after].name
            case "to_next":
                return [
                    f"{row.level} {row.measure} {money(row.missing) if row.measure == 'spent' else row.missing}" for row in result.to_next
                ]
        raise AssertionError(f"nothing is called {what!r}")

    def check(self, result: Result, expect: Mapping[str, Any], where: str) -> None:
        """Each expectation is what the result says. A mapping of rules needs to name those only that it is about."""
        for what, expected in expect.items():
            told = self.told(result, what)
            if isinstance(expected, Mapping) and what in ("expires", "available", "wallets", "cut", "not_given", "rules", "amounts"):
                assert isinstance(told, dict)
                told = {key: value for key, value in told.items() if key in expected}
            assert texts(told) == texts(expected), f"{where}: {what} is {texts(told)}, expected {texts(expected)}; all of it: {result}"

    def tell(self, story: Mapping[str, Any], where: str) -> Result:
        """Run a whole story; what its last receipt comes to."""
        assert not set(story) - {"programme", "member", "members", "receipt", "receipts", "expect", "story"}, f"{where}: unknown words"
        self.open(1, story.get("member", {}))
        for number, facts in story.get("members", {}).items():
            self.open(int(number), facts)
        receipts = story["receipts"] if "receipts" in story else [{**story["receipt"], "expect": story["expect"]}]
        for i, receipt in enumerate(receipts, start=1):
            assert receipt.get("expect"), f"{where}, receipt {i}: expects nothing"
            result = self.sell(receipt)
            self.check(result, receipt["expect"], f"{where}, receipt {i}" + (f" ({receipt['what']})" if "what" in receipt else ""))
        return result


def texts(value: Any) -> Any:
    """Numbers, names and dates as text, so that 10 and "10" are alike; amounts keep their decimals."""
    if isinstance(value, Mapping):
        return {str(key): texts(part) for key, part in value.items()}
    return [texts(part) for part in value] if isinstance(value, list) else str(value)
