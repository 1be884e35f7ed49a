"""The checked tree: what a programme means once everything in it has been found right. docs/rules.md defines each part.

Not for text and places (`read.py`, `check.py`), not for evaluating (`reference.py`) and not for bytes. Plain frozen data, so that
the same programme is equal to itself. Units: money in minor units, points in the wallet's smallest unit, quantities in thousandths,
percents in millionths (ppm), days since 1970, minutes of the wall clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

Condition = "All | Any | Not | InSet | InRange | Is | Dates | Hours | Birthday | Nth | EveryNth | InVariant"

LINE_SETS = ("sku", "category", "brand", "flag")
LINE_RANGES = ("price", "quantity")
LINE_FLAGS = ("weighed", "discounted", "favourite")
STORE_SETS = ("store", "store_group", "region", "partner")
RECEIPT_SETS = ("tender", "channel", "promo_code", "tier", "segment", *STORE_SETS)
RECEIPT_RANGES = ("total", "eligible_total", "lines_total", "lines_quantity", "account_age_days", "days_since_last_receipt")
WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MINUTES_OF_DAY = 1440


# --- conditions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class All:
    """Every part holds. Without parts it holds."""

    parts: tuple


@dataclass(frozen=True)
class Any:
    """One part holds. Without parts it does not."""

    parts: tuple


@dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: object


@dataclass(frozen=True)
class InSet:
    """`kind` of the line or receipt is one of `names` (weekday too). A category also holds for what is under it."""

    kind: str
    names: frozenset[str]


@dataclass(frozen=True)
class InRange:
    """low <= `kind` < high; None: no bound."""

    kind: str
    low: int | None
    high: int | None


@dataclass(frozen=True)
class Is:
    """`kind` (weighed, discounted, favourite) is `wanted`."""

    kind: str
    wanted: bool


@dataclass(frozen=True)
class Dates:
    """The wall clock, in minutes since 1970, is in one of the windows [from, to)."""

    windows: tuple[tuple[int | None, int | None], ...]


@dataclass(frozen=True)
class Hours:
    """The minute of the day is in [low, high); over midnight when low > high."""

    low: int
    high: int


@dataclass(frozen=True)
class Birthday:
    """The store's date is at most so many days before or after a birthday."""

    days_before: int
    days_after: int


@dataclass(frozen=True)
class Nth:
    """The number of the receipt is one of these."""

    numbers: frozenset[int]


@dataclass(frozen=True)
class EveryNth:
    """The number of the receipt is a multiple of `number`."""

    number: int


@dataclass(frozen=True)
class InVariant:
    """The member's variant of the experiment is one of these."""

    experiment: str
    variants: frozenset[str]


ALWAYS = All(())


# --- what a programme has ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Life:
    """How long points count. unit: forever, days, months, until, inactivity. end: "", month, quarter, year."""

    unit: str
    number: int = 0  # days or months; until: the day
    end: str = ""


@dataclass(frozen=True)
class Wallet:
    """Something that members collect. `worth`: money of one whole point."""

    name: str
    scale: int
    worth: int
    life: Life
    available_after: int
    floor: int


@dataclass(frozen=True)
class Store:
    """A store. `zone` is resolved: its own, its partner's or the programme's."""

    store: str
    zone: str
    region: str | None = None
    partner: str | None = None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Article:
    """What the catalogue says of a sku."""

    sku: str
    category: str | None = None
    brand: str | None = None
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Experiment:
    """`variants`: name and share in hundredths of a percent, 10000 in all."""

    name: str
    variants: tuple[tuple[str, int], ...]
    control: str


@dataclass(frozen=True)
class Campaign:
    """A budget over all members. `measure`: points, amount, or "" when only uses are counted; `limit` None: none."""

    name: str
    measure: str
    limit: int | None
    uses: int | None


# --- effects -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Steps:
    """`give` for every full `step` of money, or of quantity."""

    step: int
    give: int
    of: str  # amount, quantity


@dataclass(frozen=True)
class Fixed:
    """`give` once."""

    give: int


@dataclass(frozen=True)
class Percent:
    """ppm of the amount, in points of the wallet's worth."""

    ppm: int


@dataclass(frozen=True)
class AddPercent:
    """ppm more in the rules with these indexes."""

    ppm: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Times:
    """`more` ten-thousandths of what the rules with these indexes gave, once more."""

    more: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class DiscountPercent:
    """ppm off."""

    ppm: int


@dataclass(frozen=True)
class Discount:
    """So much money off."""

    amount: int


@dataclass(frozen=True)
class Entitle:
    """A flag in the answer."""

    name: str


POINTS = (Steps, Fixed, Percent)


@dataclass(frozen=True)
class Cap:
    """At most `limit` of `measure` (points, amount, uses) per receipt, day, week, month, year, ever or birthday."""

    per: str
    measure: str
    limit: int


@dataclass(frozen=True)
class Rule:
    """One rule. `index` from 0 in the file's order."""

    index: int
    name: str
    when: object
    lines: object
    effect: object
    per: str  # receipt, line
    round: str  # floor, half_up, ceil
    wallet: int
    funder: int
    life: Life
    available_after: int
    earn_on_points_paid: bool
    caps: tuple[Cap, ...]  # in the order of PER, uses behind the other
    campaign: str | None
    exclusive: bool
    group: str | None
    priority: int

    @property
    def kind(self) -> str:
        """Which rules it stacks with: discount_line, discount_receipt, points, add_percent, times, entitle."""
        if isinstance(self.effect, POINTS):
            return "points"
        if isinstance(self.effect, AddPercent):
            return "add_percent"
        if isinstance(self.effect, Times):
            return "times"
        if isinstance(self.effect, Entitle):
            return "entitle"
        return f"discount_{self.per}"


PER = ("receipt", "day", "week", "month", "year", "ever", "birthday")


@dataclass(frozen=True)
class BurnRule:
    """How a wallet pays. Points of the smallest unit. `pays`: money of one whole point."""

    name: str
    when: object
    wallet: int
    share: int  # ppm
    not_for: object | None
    min: int
    max: int | None
    step: int
    money_at_least: int
    money_at_least_per_line: int
    pays: int


@dataclass(frozen=True)
class Window:
    """In which receipts are counted for tiers. kind: lifetime, month, year, anniversary, rolling."""

    kind: str
    days: int = 0


@dataclass(frozen=True)
class Threshold:
    """At least so much of `measure` (receipts, spent) in the window."""

    measure: str
    at_least: int
    window: Window


@dataclass(frozen=True)
class Level:
    """A tier. The lowest has no reach."""

    name: str
    reach: object | None


@dataclass(frozen=True)
class Tiers:
    """All tiers. downgrade: never, to_level, one_step. grace: number and unit (days, months)."""

    levels: tuple[Level, ...]
    downgrade: str
    grace: tuple[int, str]

    @property
    def windows(self) -> tuple[Window, ...]:
        """Every window that a level counts in, each once, in the order of the file."""
        found: dict[Window, None] = {}
        for level in self.levels:
            for threshold in thresholds(level.reach):
                found[threshold.window] = None
        return tuple(found)


# --- limits ------------------------------------------------------------------------------------------------------------

# Each in the order of its number in the image. of and keys: bit 0 is the first.
OF = ("earns", "burns", "reservations", "enrolments", "refusals", "balances", "unknown_balances", "returns")
LOOK_UPS = ("balances", "unknown_balances")
KEYS = ("member", "identifier", "payment_card", "device", "till", "cashier", "store", "partner", "hour", "basket")
MEASURES = ("count", "points", "money", "members", "stores", "quantity", "regions")  # from 1
DIFFERENT = ("members", "stores", "regions")  # measures that count how many there were
LIMIT_WINDOWS = ("receipt", "day", "week", "month", "ever", "sliding")  # from 0
ACTIONS = ("shadow", "mark", "refuse", "challenge", "reduce", "review")  # from 1
RUNGS = ("warned", "limited", "blocked", "excluded")  # from 1


@dataclass(frozen=True)
class Counter:
    """What is counted: of which entries, in which measure, per which key, in which window. All in the order of the tuples above."""

    of: tuple[str, ...]
    measure: str
    per: tuple[str, ...]
    window: str  # receipt: nothing is kept, the command alone is looked at
    window_s: int = 0  # sliding: its length
    segments: frozenset[str] = frozenset()  # empty: all members
    gives_back: bool = False  # what is returned or released leaves it

    @property
    def volatile(self) -> bool:
        """Whether it counts look-ups, which are in memory only."""
        return self.of[0] in LOOK_UPS


def counter_text(one: Counter) -> str:
    """What a counter says, the same for ever: a counter's number in the state is a hash of it."""
    window = f"{one.window} {one.window_s}" if one.window == "sliding" else one.window
    rows = [f"of {' '.join(one.of)}", f"measure {one.measure}", f"per {' '.join(one.per)}", f"window {window}"]
    rows += ["gives back"] * one.gives_back
    return "".join(f"{row}\n" for row in [*rows, *(f"segment {name}" for name in sorted(one.segments))])


@dataclass(frozen=True)
class Limit:
    """A bound on what is counted, and what happens above it."""

    name: str
    counts: Counter
    at_most: int  # smallest units; with mean_after: thousandths of the mean
    mean_after: int  # 0: at_most is the bound itself; else so many receipts before there is a mean
    then: str
    rung: str | None
    lasts_s: int  # of the rung; 0: without end

    @property
    def counters(self) -> tuple[Counter, ...]:
        """What has to be kept for it: nothing, its own counter, or money and number of the receipts that its mean is made of."""
        if self.mean_after:
            return tuple(replace(self.counts, measure=measure, window="ever") for measure in ("money", "count"))
        return () if self.counts.window == "receipt" else (self.counts,)


@dataclass(frozen=True)
class Programme:
    """A whole programme."""

    name: str
    currency: str
    currency_digits: int
    zone: str
    anonymous_accounts: bool
    max_age_days: int
    largest_receipt: int
    total_tolerance: int
    unknown_sku: str
    unknown_store: str
    earn_on_points_paid: bool
    no_points_on: object | None
    wallets: tuple[Wallet, ...]
    funders: tuple[tuple[str, int], ...]
    stores: dict[str, Store] = field(hash=False)
    articles: dict[str, Article] = field(hash=False)
    category_codes: dict[str, str] = field(hash=False)
    tenders: tuple[str, ...]
    channels: tuple[str, ...]
    segments: tuple[str, ...]
    favourites: tuple[str, ...]
    favourites_at_most: int
    tiers: Tiers | None
    experiments: tuple[Experiment, ...]
    campaigns: tuple[Campaign, ...]
    rules: tuple[Rule, ...]
    burn: tuple[BurnRule, ...]
    limits: tuple[Limit, ...] = ()

    @property
    def counters(self) -> tuple[Counter, ...]:
        """Every counter of its limits, each once, in the order of the file."""
        return tuple(dict.fromkeys(counter for limit in self.limits for counter in limit.counters))


# --- walking -----------------------------------------------------------------------------------------------------------


def atoms(condition: object | None) -> list:
    """All atoms of a condition, in the order of the file."""
    if condition is None:
        return []
    if isinstance(condition, (All, Any)):
        return [atom for part in condition.parts for atom in atoms(part)]
    if isinstance(condition, Not):
        return atoms(condition.part)
    return [condition]


thresholds = atoms


def about_lines(atom: object) -> bool:
    """Whether an atom asks about one line."""
    return isinstance(atom, (InSet, InRange, Is)) and atom.kind in (*LINE_SETS, *LINE_RANGES, *LINE_FLAGS)


def under(category: str | None, names: frozenset[str]) -> bool:
    """Whether a category is one of these or under one of them."""
    if category is None:
        return False
    steps = category.split("/")
    return any("/".join(steps[:i]) in names for i in range(1, len(steps) + 1))


def decimal(value: int, digits: int) -> str:
    """An integer of the last decimal as people write it: 150 with 2 is 1.50."""
    sign, text = ("-" if value < 0 else ""), str(abs(value)).rjust(digits + 1, "0")
    return sign + (f"{text[:-digits]}.{text[-digits:]}" if digits else text)
