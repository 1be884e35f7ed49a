"""What the conditions of an image of version 2 say of a receipt, read from its bytes alone by docs/decisions/rule-image.md
sections 2 to 4.

In plain Python, step by step; used by test_lower.py, which holds it against the reference interpreter. Nothing here
looks at the checked tree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, timedelta

from ledger.rules.image2 import OPEN_HIGH, OPEN_LOW, Atom, ClassFlag, Dimension, HeaderFlag, Image, Kind, RuleFlag, mixed
from ledger.rules.reference import Line, Member, Receipt

EPOCH = date(1970, 1, 1)


@dataclass
class Conditions:
    """One receipt and member before an image. tier: of the member on the day."""

    image: Image
    member: Member
    receipt: Receipt
    time_us: int
    tier: int

    def __post_init__(self):
        image, receipt = self.image, self.receipt
        self.lines = receipt.lines or (Line("", receipt.total),)
        store = image.find(Kind.STORES, receipt.store)
        self.store = 0 if store is None else int(store["value"])
        span = self.span(int(image[Kind.STORE_CLASSES][self.store]["zone"]))
        self.local_s = self.time_us // 1_000_000 + int(span["offset_s"])
        span = self.span(0)
        self.today = max((self.time_us // 1_000_000 + int(span["offset_s"])) // 86_400, int(span["first_day"]))
        self.number = self.member.receipts + 1
        names = {kind: [row["name"].decode() for row in image[kind]] for kind in (Kind.TENDERS, Kind.CHANNELS, Kind.SEGMENTS)}
        channels = names[Kind.CHANNELS]
        self.channel = channels.index(receipt.channel) + 1 if receipt.channel in channels else 0
        self.tenders = [names[Kind.TENDERS].index(name) for name, amount in receipt.tenders if amount > 0 and name in names[Kind.TENDERS]]
        self.segments = [names[Kind.SEGMENTS].index(name) for name in self.member.segments]
        found = [image.find(Kind.PROMO_CODES, code) for code in receipt.promo_codes]
        self.codes = [int(row["value"]) for row in found if row is not None]
        self.variants = [self.variant(row) for row in image[Kind.EXPERIMENTS]]
        self.classes = [image.class_of(line.sku, line.category) for line in self.lines]
        paths = [bytes(image[Kind.TEXTS][row["offset"]:row["offset"] + row["size"]]).decode() for row in image[Kind.FAVOURITES]]
        self.chosen = sum(1 << bit for bit, path in enumerate(paths) if path in self.member.chosen)
        self.eligible = [not self.no_points(i) for i in range(len(self.lines))]
        self.eligible_total = sum(line.amount for line, is_so in zip(self.lines, self.eligible, strict=True) if is_so)
        self.own: list[int] = []

    def span(self, zone: int):
        row = self.image[Kind.ZONES][zone]
        spans = self.image[Kind.ZONE_SPANS][row["first"]:row["first"] + row["count"]]
        return spans[max(0, int((spans["start_us"] <= self.time_us).sum()) - 1)]

    def variant(self, experiment) -> int:
        bucket = mixed(self.member.number ^ int(experiment["hash"])) % 10_000
        edges = self.image[Kind.VARIANTS]["edge"][experiment["first"]:experiment["first"] + experiment["count"]]
        return next(i for i, edge in enumerate(edges) if bucket < edge)

    # --- stage 1: the rules that may hold ----------------------------------------------------------------------------------

    def open(self) -> int:
        image, minutes = self.image, self.local_s // 60
        found = (1 << int(image.header["rule_count"])) - 1
        for dimension, value in (
                (Dimension.STORE, self.store), (Dimension.TIER, self.tier), (Dimension.CHANNEL, self.channel),
                (Dimension.WEEKDAY, (self.local_s // 86_400 + 3) % 7), (Dimension.MINUTE, image.interval(Kind.MINUTE_CUTS, minutes % 1440)),
                (Dimension.DATE, image.interval(Kind.DATE_CUTS, minutes)),
                (Dimension.RECEIPT_NUMBER, self.number if self.number <= 64 else 0)):
            found &= image.may(dimension, value)
        for dimension, values in ((Dimension.SEGMENT, self.segments), (Dimension.TENDER, self.tenders), (Dimension.PROMO_CODE, self.codes)):
            found &= image.may_any(dimension, values)
        for experiment, variant in zip(image[Kind.EXPERIMENTS], self.variants, strict=True):
            found &= image.may(Dimension.VARIANT, int(experiment["first"]) + variant)
        return found

    # --- programs ----------------------------------------------------------------------------------------------------------

    def holds(self, program: int, line: int | None = None) -> bool:
        return self.image.run(int(program), lambda number: self.test(self.image[Kind.ATOMS][number], line))

    def test(self, atom, line: int | None) -> bool:
        code, low, high, numbers = Atom(atom["code"]), int(atom["low"]), int(atom["high"]), self.image.numbers(atom)
        if code >= Atom.CLASS_BIT:
            return self.test_line(code, low, high, self.lines[line], self.classes[line])
        minute = self.local_s // 60 % 1440
        own = [self.lines[i] for i in self.own]
        last = self.member.last_day
        ranges: dict[Atom, Callable[[], int | None]] = {
            Atom.TOTAL: lambda: self.receipt.total, Atom.ELIGIBLE_TOTAL: lambda: self.eligible_total,
            Atom.LINES_TOTAL: lambda: sum(line.amount for line in own), Atom.LINES_QUANTITY: lambda: sum(map(quantity, own)),
            Atom.ACCOUNT_AGE_DAYS: lambda: max(0, self.today - self.member.opened_day),
            Atom.DAYS_SINCE_LAST_RECEIPT: lambda: None if last is None else max(0, self.today - last)}
        if code in ranges:
            return (value := ranges[code]()) is not None and low <= value < high
        return {
            Atom.STORE: lambda: self.store in numbers, Atom.TIER: lambda: bool(low >> self.tier & 1),
            Atom.SEGMENT: lambda: any((low | high << 64) >> place & 1 for place in self.segments),
            Atom.CHANNEL: lambda: bool(low >> self.channel & 1), Atom.TENDER: lambda: any(low >> place & 1 for place in self.tenders),
            Atom.WEEKDAY: lambda: bool(low >> (self.local_s // 86_400 + 3) % 7 & 1),
            Atom.HOURS: lambda: low <= minute < high if low < high else minute >= low or minute < high,
            Atom.DATES: lambda: sum(cut <= self.local_s // 60 for cut in numbers) % 2 == 1,
            Atom.PROMO_CODE: lambda: any(value in numbers for value in self.codes),
            Atom.VARIANT: lambda: bool(high >> self.variants[low] & 1), Atom.BIRTHDAY: lambda: self.near_birthday(low, high),
            Atom.NTH: lambda: self.number in numbers, Atom.EVERY_NTH: lambda: self.number % low == 0,
        }[code]()

    def near_birthday(self, before: int, after: int) -> bool:
        if self.member.birthday is None or self.today < self.member.birthday_from:
            return False
        today = EPOCH + timedelta(days=self.local_s // 86_400)
        month, day = self.member.birthday
        for year in (today.year - 1, today.year, today.year + 1):
            leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
            birthday = date(year, month, 28 if (month, day) == (2, 29) and not leap else day)
            if -before <= (today - birthday).days <= after:
                return True
        return False

    def test_line(self, code: Atom, low: int, high: int, line: Line, number: int) -> bool:
        row = self.image[Kind.CLASSES][number]
        if code == Atom.CLASS_BIT:
            return self.image.class_bit(number, low)
        if number == 0:
            return False
        if code == Atom.PRICE:
            value, times = line.amount * 1000, quantity(line)
            return (low == OPEN_LOW or low * times <= value) and (high == OPEN_HIGH or value < high * times)
        if code == Atom.QUANTITY:
            return low <= quantity(line) < high
        is_so = {Atom.WEIGHED: line.weighed or bool(row["flags"] & ClassFlag.WEIGHED),
                 Atom.DISCOUNTED: line.before is not None and line.before > line.amount,
                 Atom.FAVOURITE: int(row["favourites"]) & self.chosen != 0}[code]
        return is_so == bool(low)

    # --- stages 2 and 3 ------------------------------------------------------------------------------------------------------

    def no_points(self, line: int) -> bool:
        flags = int(self.image[Kind.CLASSES][self.classes[line]]["flags"])
        asked = bool(flags & ClassFlag.NO_POINTS_ASK) and self.holds(self.image.header["no_points_program"], line)
        return bool(flags & ClassFlag.NO_POINTS) or asked

    def earns(self, line: int) -> bool:
        sku = self.lines[line].sku
        unknown = sku != "" and self.image.find(Kind.ARTICLES, sku) is None
        return self.eligible[line] and not (unknown and int(self.image.header["flags"]) & HeaderFlag.UNKNOWN_SKUS_EARN_NOTHING)

    def applying(self) -> dict[int, list[int]]:
        """Rules that apply, by index, and their lines."""
        found: dict[int, list[int]] = {}
        is_open = self.open()
        walked = [set(self.image.class_rules(number)) for number in self.classes]
        for index, rule in enumerate(self.image[Kind.RULES]):
            if not is_open >> index & 1 or not self.holds(rule["when_program"]):
                continue
            lines = [i for i, line in enumerate(self.lines) if line.amount > 0 and (self.earns(i) or rule["kind"] not in (3, 4, 5))
                     and (rule["flags"] & RuleFlag.ALL_LINES or index in walked[i] and self.holds(rule["lines_program"], i))]
            self.own = lines
            total, pieces = sum(self.lines[i].amount for i in lines), sum(quantity(self.lines[i]) for i in lines)
            if lines and rule["lines_total_from"] <= total < rule["lines_total_to"] and \
                    rule["lines_quantity_from"] <= pieces < rule["lines_quantity_to"] and self.holds(rule["late_program"]):
                found[index] = lines
        return found

    def burn_rule(self, wallet: int) -> int | None:
        """The place of the burn rule that decides."""
        rules = enumerate(self.image[Kind.BURN])
        return next((i for i, rule in rules if rule["wallet"] == wallet and self.holds(rule["when_program"])), None)

    def payable(self, rule: int) -> list[bool]:
        """The lines that a burn rule can pay for."""
        bit, program = 1 << rule, int(self.image[Kind.BURN][rule]["not_for_program"])
        rows = [self.image[Kind.CLASSES][number] for number in self.classes]
        return [not (int(row["burn_not"]) & bit or int(row["burn_ask"]) & bit and self.holds(program, i)) for i, row in enumerate(rows)]


def quantity(line: Line) -> int:
    return (line.quantity or 1000) if line.sku else 0
