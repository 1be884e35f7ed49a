"""The reference interpreter: what a programme does with a receipt, computed slowly and obviously from the checked tree.

Never from an image, and not for the service: the compiled evaluator must be equal to it, and tests and `daybook explain` read it.
Everything is a pure function: `evaluate` says what a receipt comes to and which changes of state that implies; `apply` makes them.
The steps and their order are those of docs/rules.md section 2. Units are the tree's. Fractions are exact.
"""

from __future__ import annotations

import calendar
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from fractions import Fraction

from ledger import limits
from ledger.rules import tree, zones

EPOCH = date(1970, 1, 1)
PPM = 1_000_000
WHOLE_TIMES = 10_000
PIECE = 1000  # thousandths; what a line without a stated quantity counts as
KEPT_WINDOWS = 2


# --- what goes in ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A line as the till sends it. `before`: what it cost before the till's own reduction; None: the same. sku "": the nameless line."""

    sku: str
    amount: int
    quantity: int = 0
    category: str = ""
    before: int | None = None
    weighed: bool = False


@dataclass(frozen=True)
class Receipt:
    """A receipt as the till sends it. `burn`: points that shall pay for it, from wallet `burn_wallet`."""

    total: int
    lines: tuple[Line, ...] = ()
    store: str = ""
    tenders: tuple[tuple[str, int], ...] = ()
    channel: str = ""
    promo_codes: tuple[str, ...] = ()
    burn: int = 0
    burn_wallet: int = 0


@dataclass(frozen=True)
class Member:
    """What is kept of a member. Days since 1970. `tier_until`: first day on which the tier is not held; None: held for ever."""

    number: int
    opened_day: int
    tier: int = 0
    tier_until: int | None = None
    receipts: int = 0
    first_day: int | None = None
    last_day: int | None = None
    segments: frozenset[str] = frozenset()
    chosen: frozenset[str] = frozenset()
    birthday: tuple[int, int] | None = None  # month, day
    birthday_from: int = 0
    available: tuple[int, ...] = ()  # points that can be used, by wallet
    counters: Mapping[tuple[str, str, str], tuple[tuple[int, int], ...]] = field(
        default_factory=dict
    )  # rule, per, measure -> window, value; newest first
    windows: Mapping[tree.Window, tuple[tuple[int, int, int], ...]] = field(
        default_factory=dict
    )  # window -> number, receipts, spent; newest first
    days: tuple[tuple[int, int, int], ...] = ()  # day, receipts, spent; for rolling windows


@dataclass(frozen=True)
class Shared:
    """What all members share: campaign -> points or amount, and uses taken."""

    campaigns: Mapping[str, tuple[int, int]] = field(default_factory=dict)


# --- what comes out -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """What one rule gave, and why. `lines`: by line. `exact`: before rounding. `cuts`: what took something away, and how much."""

    rule: int
    base: int
    exact: Fraction
    rounded: int
    cuts: tuple[tuple[str, int], ...]
    given: int
    lines: tuple[int, ...]
    available_day: int | None = None
    expiry_day: int | None = None  # None: never, or by inactivity


@dataclass(frozen=True)
class BurnLimit:
    """How much a wallet may pay. `why`: what allows no more."""

    wallet: int
    rule: str
    points: int
    why: tuple[str, ...]


@dataclass(frozen=True)
class Missing:
    """What is missing to the next level by one threshold."""

    level: str
    measure: str
    missing: int
    window: tree.Window


@dataclass(frozen=True)
class Changes:
    """What posting the receipt does to what is kept. Increments, so that they can be taken back."""

    day: int = 0
    counters: tuple[tuple[tuple[str, str, str], int, int], ...] = ()  # (rule, per, measure), window, increment
    campaigns: tuple[tuple[str, int, int], ...] = ()  # campaign, points or amount, uses
    spent: int = 0
    tier: int = 0
    tier_until: int | None = None


@dataclass(frozen=True)
class Result:
    """What a receipt comes to. `refused`: why nothing was done; then only notices and burn limits are filled."""

    refused: str | None = None
    notices: tuple[str, ...] = ()
    day: int = 0
    tier: int = 0
    tier_after: int = 0
    to_next: tuple[Missing, ...] = ()
    variants: tuple[tuple[str, str], ...] = ()
    discounts: tuple[int, ...] = ()  # by line
    burn_limits: tuple[BurnLimit, ...] = ()
    paid: tuple[int, ...] = ()  # money paid with points, by line
    given: tuple[Given, ...] = ()  # in the order of the steps
    not_given: tuple[tuple[int, str], ...] = ()  # rules whose conditions hold, that gave nothing: rule, reason
    points: tuple[int, ...] = ()  # by wallet
    entitlements: tuple[str, ...] = ()
    changes: Changes = Changes()


# --- arithmetic -----------------------------------------------------------------------------------------------------------


def rounded(exact: Fraction, how: str) -> int:
    """A fraction of at least 0 as an integer: floor, half_up or ceil."""
    if how == "half_up":
        return (exact + Fraction(1, 2)).__floor__()
    return exact.__ceil__() if how == "ceil" else exact.__floor__()


def spread(total: int, weights: list[int]) -> list[int]:
    """`total` shared pro rata to the weights, in whole units by largest remainder, ties to the earlier; equally where all weights are 0."""
    if not any(weights):
        weights = [1] * len(weights)
    exact = [Fraction(total * weight, sum(weights)) for weight in weights]
    shares = [part.__floor__() for part in exact]
    by_claim = sorted(range(len(weights)), key=lambda i: (shares[i] - exact[i], i))
    for i in by_claim[: total - sum(shares)]:
        shares[i] += 1
    return shares


# --- time -----------------------------------------------------------------------------------------------------------------


def programme_day(programme: tree.Programme, time_us: int) -> int:
    """The day of a moment in the programme's zone; where clocks are set back over midnight, the new day stays."""
    zone, moment = zones.load(programme.zone), zones.EPOCH + timedelta(microseconds=time_us)
    day = max(moment.astimezone(zone).date(), (moment - timedelta(hours=3)).astimezone(zone).date())  # no zone is set back by more
    return (day - EPOCH).days


def wall_clock(programme: tree.Programme, store: str, time_us: int) -> datetime:
    """Date and time that the clock on the store's wall shows."""
    known = programme.stores.get(store)
    return (
        (zones.EPOCH + timedelta(microseconds=time_us)).astimezone(zones.load(known.zone if known else programme.zone)).replace(tzinfo=None)
    )


def add_months(day: int, months: int) -> int:
    """The same day of the month so many months later, at most that month's last."""
    start = EPOCH + timedelta(days=day)
    years, month = divmod(start.month - 1 + months, 12)
    year = start.year + years
    return (date(year, month + 1, min(start.day, calendar.monthrange(year, month + 1)[1])) - EPOCH).days


def period_start(day: int, months: int) -> int:
    """The first day of the month (1), quarter (3) or year (12) that a day lies in."""
    start = EPOCH + timedelta(days=day)
    return (date(start.year, (start.month - 1) // months * months + 1, 1) - EPOCH).days


def expiry_day(life: tree.Life, today: int) -> int | None:
    """The first day on which points of a receipt of today no longer count. None: never, or by inactivity."""
    if life.unit in ("forever", "inactivity"):
        return None
    if life.unit == "until":
        return life.number
    end = today + life.number if life.unit == "days" else add_months(today, life.number)
    if life.end:
        months = {"month": 1, "quarter": 3, "year": 12}[life.end]
        if (start := period_start(end, months)) != end:
            end = add_months(start, months)
    return end


def birthday_in(birthday: tuple[int, int], year: int) -> date:
    """When a birthday is in a year: 29 February is 28 February in years without it."""
    month, day = birthday
    return date(year, month, 28 if (month, day) == (2, 29) and not calendar.isleap(year) else day)


def birthday_year(member: Member, condition: tree.Birthday, today: int, clock: datetime) -> int | None:
    """The year of the birthday whose window the store's date lies in."""
    if member.birthday is None or today < member.birthday_from:
        return None
    for year in (clock.year - 1, clock.year, clock.year + 1):
        if -condition.days_before <= (clock.date() - birthday_in(member.birthday, year)).days <= condition.days_after:
            return year
    return None


# --- experiments ----------------------------------------------------------------------------------------------------------

MASK = 2**64 - 1


def bucket(member: int, experiment: str) -> int:
    """0..9999, the same for ever."""
    name = 0xCBF29CE484222325
    for byte in experiment.encode():
        name = (name ^ byte) * 0x100000001B3 & MASK
    x = (member ^ name) + 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return (x ^ x >> 31) % 10_000


def variant(experiment: tree.Experiment, member: int) -> str:
    """The member's variant."""
    at = bucket(member, experiment.name)
    for name, share in experiment.variants:
        if at < share:
            return name
        at -= share
    raise AssertionError("shares sum to 10000")


# --- conditions -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """All that conditions look at: the receipt as sent, the member before it."""

    programme: tree.Programme
    member: Member
    receipt: Receipt
    lines: tuple[Line, ...]
    today: int
    clock: datetime
    tier: int
    eligible_total: int
    own: tuple[int, ...] = ()  # the rule's lines, for lines_total and lines_quantity


def article_of(facts_or_programme: Facts | tree.Programme, line: Line) -> tree.Article:
    """What is known of a line's article: the catalogue, else what the till's category code stands for."""
    programme = facts_or_programme.programme if isinstance(facts_or_programme, Facts) else facts_or_programme
    known = programme.articles.get(line.sku)
    return known if known is not None else tree.Article(line.sku, programme.category_codes.get(line.category))


def quantity_of(line: Line) -> int:
    """Thousandths. A line without a stated quantity is one piece; the nameless line has none."""
    return (line.quantity or PIECE) if line.sku else 0


def in_range(value: int, low: int | None, high: int | None) -> bool:
    """low <= value < high."""
    return (low is None or low <= value) and (high is None or value < high)


def holds(condition: object, facts: Facts, line: Line | None = None) -> bool:
    """Whether a condition holds (for a line)."""
    match condition:
        case tree.All(parts):
            return all(holds(part, facts, line) for part in parts)
        case tree.Any(parts):
            return any(holds(part, facts, line) for part in parts)
        case tree.Not(part):
            return not holds(part, facts, line)
    if tree.about_lines(condition):
        assert line is not None
        return line.sku != "" and line_atom_holds(condition, facts, line)
    return atom_holds(condition, facts)


def line_atom_holds(atom: object, facts: Facts, line: Line) -> bool:
    """Whether a condition about a line holds for a line with a name."""
    article = article_of(facts, line)
    match atom:
        case tree.InSet("sku", names):
            return line.sku in names
        case tree.InSet("category", names):
            return tree.under(article.category, names)
        case tree.InSet("brand", names):
            return article.brand in names
        case tree.InSet("flag", names):
            return bool(article.flags & names)
        case tree.InRange("price", low, high):  # amount / quantity, both sides times the quantity
            quantity = quantity_of(line)
            return in_range(line.amount * PIECE, low and low * quantity, None if high is None else high * quantity)
        case tree.InRange("quantity", low, high):
            return in_range(quantity_of(line), low, high)
        case tree.Is("weighed", wanted):
            return (line.weighed or "weighed" in article.flags) == wanted
        case tree.Is("discounted", wanted):
            return (line.before is not None and line.before > line.amount) == wanted
        case tree.Is("favourite", wanted):
            return tree.under(article.category, facts.member.chosen) == wanted
    raise AssertionError(f"unknown condition {atom}")


def atom_holds(atom: object, facts: Facts) -> bool:
    """Whether a condition about receipt, member, place or time holds."""
    member, receipt, clock = facts.member, facts.receipt, facts.clock
    store = facts.programme.stores.get(receipt.store)
    number = member.receipts + 1
    match atom:
        case tree.InRange("total", low, high):
            return in_range(receipt.total, low, high)
        case tree.InRange("eligible_total", low, high):
            return in_range(facts.eligible_total, low, high)
        case tree.InRange("lines_total", low, high):
            return in_range(sum(facts.lines[i].amount for i in facts.own), low, high)
        case tree.InRange("lines_quantity", low, high):
            return in_range(sum(quantity_of(facts.lines[i]) for i in facts.own), low, high)
        case tree.Nth(numbers):
            return number in numbers
        case tree.EveryNth(every):
            return number % every == 0
        case tree.InSet("tender", names):
            return any(amount > 0 and name in names for name, amount in receipt.tenders)
        case tree.InSet("channel", names):
            return receipt.channel in names
        case tree.InSet("promo_code", names):
            return any(code in names for code in receipt.promo_codes)
        case tree.InSet("tier", names):
            return facts.programme.tiers.levels[facts.tier].name in names
        case tree.InSet("segment", names):
            return bool(member.segments & names)
        case tree.InRange("account_age_days", low, high):
            return in_range(max(0, facts.today - member.opened_day), low, high)
        case tree.InRange("days_since_last_receipt", low, high):
            return member.last_day is not None and in_range(max(0, facts.today - member.last_day), low, high)
        case tree.Birthday():
            return birthday_year(member, atom, facts.today, clock) is not None
        case tree.InSet("store", names):
            return receipt.store in names
        case tree.InSet("store_group", names):
            return store is not None and bool(store.groups & names)
        case tree.InSet("region", names):
            return store is not None and store.region in names
        case tree.InSet("partner", names):
            return store is not None and store.partner in names
        case tree.InSet("weekday", names):
            return tree.WEEKDAYS[clock.weekday()] in names
        case tree.Dates(windows):
            minutes = (clock - datetime(1970, 1, 1)) // timedelta(minutes=1)
            return any(in_range(minutes, low, high) for low, high in windows)
        case tree.Hours(low, high):
            minute = clock.hour * 60 + clock.minute
            return low <= minute < high if low < high else minute >= low or minute < high
        case tree.InVariant(name, variants):
            return any(variant(e, member.number) in variants for e in facts.programme.experiments if e.name == name)
    raise AssertionError(f"unknown condition {atom}")


# --- tiers ----------------------------------------------------------------------------------------------------------------


def window_number(window: tree.Window, day: int, opened_day: int) -> int:
    """The number of the window that a day lies in."""
    start = EPOCH + timedelta(days=day)
    if window.kind == "month":
        return start.year * 12 + start.month - 1
    if window.kind == "year":
        return start.year
    if window.kind == "anniversary":
        opened = EPOCH + timedelta(days=opened_day)
        years = start.year - opened.year
        return years if start >= birthday_in((opened.month, opened.day), start.year) else years - 1
    return 0


def window_end(window: tree.Window, day: int, opened_day: int) -> int | None:
    """The first day behind the window that a day lies in; None: it never ends."""
    if window.kind == "month":
        return add_months(period_start(day, 1), 1)
    if window.kind == "year":
        return add_months(period_start(day, 12), 12)
    if window.kind == "anniversary":
        opened = EPOCH + timedelta(days=opened_day)
        year = opened.year + window_number(window, day, opened_day) + 1
        return (birthday_in((opened.month, opened.day), year) - EPOCH).days
    return day + window.days if window.kind == "rolling" else None


def counted(member: Member, threshold: tree.Threshold, day: int) -> int:
    """Receipts or money of a member in the threshold's window as it is on a day."""
    part = 1 if threshold.measure == "receipts" else 2
    window = threshold.window
    if window.kind == "rolling":
        return sum(row[part] for row in member.days if day - window.days < row[0] <= day)
    number = window_number(window, day, member.opened_day)
    return sum(row[part] for row in member.windows.get(window, ()) if row[0] == number)


def reached(member: Member, reach: object | None, day: int) -> bool:
    """Whether a level's reach holds on a day."""
    match reach:
        case None:
            return True
        case tree.All(parts):
            return all(reached(member, part, day) for part in parts)
        case tree.Any(parts):
            return any(reached(member, part, day) for part in parts)
    return counted(member, reach, day) >= reach.at_least


def highest(member: Member, tiers: tree.Tiers, day: int) -> int:
    """The highest level whose reach holds on a day."""
    return max(i for i, level in enumerate(tiers.levels) if reached(member, level.reach, day))


def later(a: int | None, b: int | None) -> int | None:
    """The later of two days; None is never."""
    return None if a is None or b is None else max(a, b)


def with_grace(tiers: tree.Tiers, day: int | None) -> int | None:
    """So much later."""
    number, unit = tiers.grace
    return None if day is None else day + number if unit == "days" else add_months(day, number)


def hold_end(member: Member, level: tree.Level, day: int) -> int | None:
    """The first day from `day` on which the level's reach no longer holds if no receipt comes; None: it holds for ever."""
    if not reached(member, level.reach, day):
        return day
    ends: set[int] = set()
    for threshold in tree.thresholds(level.reach):
        if threshold.window.kind == "rolling":
            ends |= {row[0] + threshold.window.days for row in member.days if row[0] <= day}
        elif (end := window_end(threshold.window, day, member.opened_day)) is not None:
            ends.add(end)
    return min((end for end in ends if end > day and not reached(member, level.reach, end)), default=None)


def tier_on(programme: tree.Programme, member: Member, day: int) -> tuple[int, int | None]:
    """The member's tier on a day, and until when it is held."""
    tiers, tier, until = programme.tiers, member.tier, member.tier_until
    if tiers is None:
        return 0, None
    tier = min(tier, len(tiers.levels) - 1)
    while tier > 0 and until is not None and day >= until:
        end = until
        if tiers.downgrade == "to_level":
            tier = min(tier - 1, highest(member, tiers, end))
            until = hold_end(member, tiers.levels[tier], end)
        else:
            tier -= 1
            level = tiers.levels[tier]
            until = hold_end(member, level, end)
            for threshold in tree.thresholds(level.reach):
                until = later(until, window_end(threshold.window, end, member.opened_day))
        until = with_grace(tiers, until)
    return (tier, until) if tier > 0 else (0, None)


def counting(programme: tree.Programme, member: Member, day: int, spent: int) -> Member:
    """The member with one receipt more in the windows of tiers."""
    if programme.tiers is None:
        return member
    windows = dict(member.windows)
    days = member.days
    for window in programme.tiers.windows:
        if window.kind == "rolling":
            continue
        number = window_number(window, day, member.opened_day)
        windows[window] = added(windows.get(window, ()), number, 1, spent)
    rolling = [window.days for window in programme.tiers.windows if window.kind == "rolling"]
    if rolling:
        by_day = {row[0]: row for row in days}
        _, receipts, before = by_day.get(day, (day, 0, 0))
        by_day[day] = (day, receipts + 1, before + spent)
        newest = max(by_day)
        days = tuple(row for at, row in sorted(by_day.items()) if at > newest - max(rolling) - programme.max_age_days)
    return replace(member, windows=windows, days=days)


def added(kept: tuple, number: int, *increments: int) -> tuple:
    """Rows (number, values...) of the newest windows, newest first, with an increment; one that is older than all that are kept is lost."""
    rows = {row[0]: row[1:] for row in kept}
    before = rows.get(number, (0,) * len(increments))
    rows[number] = tuple(a + b for a, b in zip(before, increments, strict=True))
    return tuple((at, *rows[at]) for at in sorted(rows, reverse=True)[:KEPT_WINDOWS])


def tiers_after(
    programme: tree.Programme, before: Member, tier: int, until: int | None, day: int, spent: int
) -> tuple[int, int | None, tuple[Missing, ...]]:
    """Tier and its end behind a receipt, and what is missing to the next level."""
    tiers = programme.tiers
    if tiers is None:
        return 0, None, ()
    member = counting(programme, before, day, spent)
    today = max(day, before.last_day if before.last_day is not None else day)
    level = highest(member, tiers, today)
    if level > tier:
        tier, until = level, day
    if tier == 0 or tiers.downgrade == "never":
        until = None
    elif reached(member, tiers.levels[tier].reach, today):
        until = later(until, with_grace(tiers, hold_end(member, tiers.levels[tier], today)))
    missing: list[Missing] = []
    if tier + 1 < len(tiers.levels):
        above = tiers.levels[tier + 1]
        for threshold in tree.thresholds(above.reach):
            if (rest := threshold.at_least - counted(member, threshold, today)) > 0:
                missing.append(Missing(above.name, threshold.measure, rest, threshold.window))
    return tier, until, tuple(missing)


# --- caps and campaigns ---------------------------------------------------------------------------------------------------


def cap_window(rule: tree.Rule, cap: tree.Cap, facts: Facts) -> int:
    """The number of the window that a cap counts this receipt in."""
    if cap.per == "day":
        return facts.today
    if cap.per == "week":
        return (facts.today + 3) // 7  # 1970-01-01 was a Thursday; weeks begin on Mondays
    if cap.per in ("month", "year"):
        return window_number(tree.Window(cap.per), facts.today, 0)
    if cap.per == "birthday":
        for atom in tree.atoms(rule.when):
            if isinstance(atom, tree.Birthday) and (year := birthday_year(facts.member, atom, facts.today, facts.clock)) is not None:
                return year
        raise AssertionError("a rule with a cap per birthday applies on birthdays only")
    return 0


def cap_left(kept: tuple[tuple[int, int], ...], window: int, limit: int) -> int | None:
    """What a cap leaves in a window; None: the window is too old to know."""
    rows = dict(kept)
    if window not in rows and len(rows) == KEPT_WINDOWS and window < min(rows):
        return None
    return max(0, limit - rows.get(window, 0))


@dataclass
class Purse:
    """What caps and campaigns leave while a receipt is computed, and what it takes."""

    facts: Facts
    campaigns: dict[str, tree.Campaign]
    taken: dict[str, tuple[int, int]]
    counters: list[tuple[tuple[str, str, str], int, int]] = field(default_factory=list)
    campaign_changes: list[tuple[str, int, int]] = field(default_factory=list)

    def campaign_left(self, name: str) -> tuple[int | None, int | None]:
        campaign = self.campaigns[name]
        value, uses = self.taken.get(name, (0, 0))
        return (
            None if campaign.limit is None else max(0, campaign.limit - value),
            None if campaign.uses is None else max(0, campaign.uses - uses),
        )

    def used_up(self, rule: tree.Rule) -> str | None:
        """Which cap or campaign leaves nothing before the receipt."""
        for cap in rule.caps:
            if cap.per == "receipt":
                continue
            left = cap_left(
                self.facts.member.counters.get((rule.name, cap.per, cap.measure), ()), cap_window(rule, cap, self.facts), cap.limit
            )
            if left is None:
                return "cap_too_late"
            if left == 0:
                return f"cap_{cap.per}_{cap.measure}"
        return self.campaign_used_up(rule)

    def campaign_used_up(self, rule: tree.Rule) -> str | None:
        if rule.campaign is not None:
            value, uses = self.campaign_left(rule.campaign)
            if value == 0:
                return f"campaign_{self.campaigns[rule.campaign].measure}"
            if uses == 0:
                return "campaign_uses"
        return None

    def take(self, rule: tree.Rule, wanted: int) -> tuple[int, list[tuple[str, int]]]:
        """What the rule may give of `wanted`, and what was cut; notes what is taken."""
        given, cuts = wanted, []
        for cap in rule.caps:
            if cap.measure == "uses":
                continue
            kept = () if cap.per == "receipt" else self.facts.member.counters.get((rule.name, cap.per, cap.measure), ())
            left = cap_left(kept, 0 if cap.per == "receipt" else cap_window(rule, cap, self.facts), cap.limit)
            if given > left:
                cuts.append((f"cap_{cap.per}_{cap.measure}", given - left))
                given = left
        if rule.campaign is not None:
            value, uses = self.campaign_left(rule.campaign)
            if value is not None and given > value:
                cuts.append((f"campaign_{self.campaigns[rule.campaign].measure}", given - value))
                given = value
            if uses == 0 and given > 0:
                cuts.append(("campaign_uses", given))
                given = 0
        if given > 0:
            self.note(rule, given)
        return given, cuts

    def note(self, rule: tree.Rule, given: int) -> None:
        """Notes what a rule gave."""
        for cap in rule.caps:
            if cap.per != "receipt":
                self.counters.append(
                    ((rule.name, cap.per, cap.measure), cap_window(rule, cap, self.facts), 1 if cap.measure == "uses" else given)
                )
        if rule.campaign is not None:
            value = given if self.campaigns[rule.campaign].measure else 0
            before = self.taken.get(rule.campaign, (0, 0))
            self.taken[rule.campaign] = (before[0] + value, before[1] + 1)
            self.campaign_changes.append((rule.campaign, value, 1))


# --- the steps ------------------------------------------------------------------------------------------------------------


def evaluate(programme: tree.Programme, member: Member, receipt: Receipt, time_us: int, shared: Shared = Shared()) -> Result:  # noqa: B008
    """What a receipt at a business time comes to for a member."""
    if (refused := reason_to_refuse(programme, receipt)) is not None:
        return Result(refused=refused)
    notices = notices_of(programme, receipt)

    lines = receipt.lines or (Line("", receipt.total),)
    today, clock = programme_day(programme, time_us), wall_clock(programme, receipt.store, time_us)
    tier, tier_until = tier_on(programme, member, today)
    facts = Facts(programme, member, receipt, lines, today, clock, tier, 0)
    eligible = [not (programme.no_points_on is not None and holds(programme.no_points_on, facts, line)) for line in lines]
    facts = replace(facts, eligible_total=sum(line.amount for line, is_eligible in zip(lines, eligible, strict=True) if is_eligible))
    earns = [
        is_eligible
        and not (programme.unknown_sku == "no_points" and programme.articles and line.sku and line.sku not in programme.articles)
        for line, is_eligible in zip(lines, eligible, strict=True)
    ]
    purse = Purse(facts, {campaign.name: campaign for campaign in programme.campaigns}, dict(shared.campaigns))
    given: list[Given] = []
    not_given: list[tuple[int, str]] = []

    own: dict[int, list[int]] = {}  # rule -> its lines, by conditions
    for rule in programme.rules:
        about_points = rule.kind in ("points", "add_percent", "times")
        found = [i for i, line in enumerate(lines) if line.amount > 0 and (earns[i] or not about_points) and holds(rule.lines, facts, line)]
        if found and holds(rule.when, replace(facts, own=tuple(found))):
            if (reason := purse.used_up(rule)) is not None:
                not_given.append((rule.index, reason))
            else:
                own[rule.index] = found
    kept = stacked(programme, own, not_given)  # and what stacking leaves

    net = [line.amount for line in lines]
    for kind in ("discount_line", "discount_receipt"):
        base = list(net)
        for rule in of_kind(programme, kind, kept):
            give_discount(rule, kept[rule.index], base, net, purse, given, not_given)
    discounts = tuple(line.amount - left for line, left in zip(lines, net, strict=True))

    burn_limits = tuple(
        limit for wallet in range(len(programme.wallets)) if (limit := burn_limit(programme, facts, wallet, net)) is not None
    )
    paid = [0] * len(lines)
    if receipt.burn:
        limit = next((limit for limit in burn_limits if limit.wallet == receipt.burn_wallet), None)
        if (refused := reason_to_refuse_burn(programme, facts, limit)) is not None:
            return Result(refused=refused, notices=notices, day=today, tier=tier, burn_limits=burn_limits)
        paid = burn_spread(programme, facts, net)
    money = [amount - part for amount, part in zip(net, paid, strict=True)]

    given_points(programme, facts, kept, net, money, purse, given, not_given)

    entitlements: list[str] = []
    for rule in of_kind(programme, "entitle", kept):
        if (reason := purse.campaign_used_up(rule)) is not None:
            not_given.append((rule.index, reason))
            continue
        purse.note(rule, 0)
        if rule.effect.name not in entitlements:
            entitlements.append(rule.effect.name)

    points = [0] * len(programme.wallets)
    for row in given:
        rule = programme.rules[row.rule]
        if rule.kind in ("points", "add_percent", "times"):
            points[rule.wallet] += row.given
    if max(points) > limits.POINTS_MAX:
        return Result(refused="points_overflow", notices=notices, day=today, tier=tier, burn_limits=burn_limits)
    if sum(programme.rules[row.rule].kind in ("points", "add_percent", "times") for row in given) > limits.AWARDS_MAX:
        return Result(refused="too_many_awards", notices=notices, day=today, tier=tier, burn_limits=burn_limits)

    spent = sum(part for part, is_eligible in zip(money, eligible, strict=True) if is_eligible)
    tier_after, until_after, missing = tiers_after(programme, member, tier, tier_until, today, spent)
    return Result(
        notices=notices,
        day=today,
        tier=tier,
        tier_after=tier_after,
        to_next=missing,
        variants=tuple((e.name, variant(e, member.number)) for e in programme.experiments),
        discounts=discounts,
        burn_limits=burn_limits,
        paid=tuple(paid),
        given=tuple(given),
        not_given=tuple(sorted(not_given)),
        points=tuple(points),
        entitlements=tuple(entitlements),
        changes=Changes(today, tuple(purse.counters), tuple(purse.campaign_changes), spent, tier_after, until_after),
    )


def reason_to_refuse(programme: tree.Programme, receipt: Receipt) -> str | None:
    """Why a receipt cannot be right."""
    if len(receipt.lines) > limits.LINES_MAX:
        return "too_many_lines"
    if not 0 <= receipt.total <= programme.largest_receipt:
        return "absurd_amount"
    for line in receipt.lines:
        if not 0 <= line.amount <= programme.largest_receipt or not 0 <= line.quantity <= limits.QUANTITY_MILLI_MAX:
            return "absurd_amount"
    if receipt.lines and abs(sum(line.amount for line in receipt.lines) - receipt.total) > programme.total_tolerance:
        return "total_differs"
    if receipt.store not in programme.stores and programme.stores and programme.unknown_store == "refuse":
        return "unknown_store"
    return None


def notices_of(programme: tree.Programme, receipt: Receipt) -> tuple[str, ...]:
    """What the programme does not know, each once, in the receipt's order."""
    found: list[str] = []
    if programme.stores and receipt.store not in programme.stores:
        found.append(f"unknown_store {receipt.store}")
    for line in receipt.lines:
        if line.sku not in programme.articles:
            if programme.articles:
                found.append(f"unknown_sku {line.sku}")
            if line.category and programme.category_codes and line.category not in programme.category_codes:
                found.append(f"unknown_category {line.category}")
    codes = {
        code
        for rule in (*programme.rules, *programme.burn)
        for atom in (*tree.atoms(rule.when), *tree.atoms(getattr(rule, "lines", None)))
        if isinstance(atom, tree.InSet) and atom.kind == "promo_code"
        for code in atom.names
    }
    found += [f"unknown_promo_code {code}" for code in receipt.promo_codes if code not in codes]
    found += [f"unknown_tender {name}" for name, _ in receipt.tenders if name not in programme.tenders]
    if receipt.channel and receipt.channel not in programme.channels:
        found.append(f"unknown_channel {receipt.channel}")
    return tuple(dict.fromkeys(found))


def of_kind(programme: tree.Programme, kind: str, kept: dict[int, list[int]]) -> list[tree.Rule]:
    """The rules of a kind that apply, in the file's order."""
    return [rule for rule in programme.rules if rule.kind == kind and rule.index in kept]


def stacked(programme: tree.Programme, own: dict[int, list[int]], not_given: list[tuple[int, str]]) -> dict[int, list[int]]:
    """What stacking leaves of each rule's lines."""
    kept = {index: list(lines) for index, lines in own.items()}
    for kind in {programme.rules[index].kind for index in own}:
        rules = of_kind(programme, kind, own)
        takers: dict[int, dict[int, str]] = {rule.index: {} for rule in rules}
        for line in sorted({line for rule in rules for line in own[rule.index]}):
            there = [rule for rule in rules if line in own[rule.index]]
            if exclusive := [rule for rule in there if rule.exclusive]:
                winner = max(exclusive, key=lambda rule: rule.priority)
                lose(there, [winner], line, winner, kept, takers)
                there = [winner]
            for group in sorted({rule.group for rule in there if rule.group is not None}):
                members = [rule for rule in there if rule.group == group]
                winner = max(members, key=lambda rule: rule.priority)
                lose(members, [winner], line, winner, kept, takers)
        for rule in rules:
            if not kept[rule.index]:
                del kept[rule.index]
                not_given.append((rule.index, f"lost_to {takers[rule.index][own[rule.index][0]]}"))
    return kept


def lose(
    there: list[tree.Rule],
    stay: list[tree.Rule],
    line: int,
    winner: tree.Rule,
    kept: dict[int, list[int]],
    takers: dict[int, dict[int, str]],
) -> None:
    """All but some rules lose a line."""
    for rule in there:
        if rule not in stay:
            kept[rule.index].remove(line)
            takers[rule.index][line] = winner.name


def give_discount(
    rule: tree.Rule, lines: list[int], base: list[int], net: list[int], purse: Purse, given: list[Given], not_given: list[tuple[int, str]]
) -> None:
    """One discount: takes from `net`."""
    effect = rule.effect
    if isinstance(effect, tree.DiscountPercent):
        exact = [Fraction(base[i] * effect.ppm, PPM) for i in lines]
    else:
        exact = [Fraction(effect.amount)] * (len(lines) if rule.per == "line" else 1)
    if rule.per == "line":
        whole = [rounded(part, rule.round) for part in exact]
        shares = [min(part, net[i]) for part, i in zip(whole, lines, strict=True)]
    else:
        whole = [rounded(sum(exact, Fraction(0)), rule.round)]
        shares = spread(min(whole[0], sum(net[i] for i in lines)), [net[i] for i in lines])
    wanted, cuts = sum(shares), []
    if wanted < sum(whole):
        cuts.append(("nothing_left", sum(whole) - wanted))
    finish(rule, sum(base[i] for i in lines), sum(exact, Fraction(0)), sum(whole), cuts, shares, lines, len(net), purse, given, not_given)
    if given and given[-1].rule == rule.index:
        for i, part in enumerate(given[-1].lines):
            net[i] -= part


def finish(
    rule: tree.Rule,
    base: int,
    exact: Fraction,
    whole: int,
    cuts: list[tuple[str, int]],
    shares: list[int],
    lines: list[int],
    count: int,
    purse: Purse,
    given: list[Given],
    not_given: list[tuple[int, str]],
    days: tuple[int, int | None] | None = None,
) -> None:
    """Caps, campaign, sharing of what they leave; notes what was given or why nothing."""
    wanted = sum(shares)
    if wanted == 0:
        not_given.append((rule.index, cuts[-1][0] if cuts else "too_little"))
        return
    if days is not None and days[1] is not None and days[1] <= days[0]:
        not_given.append((rule.index, "would_never_count"))
        return
    got, more_cuts = purse.take(rule, wanted)
    if got == 0:
        not_given.append((rule.index, more_cuts[-1][0]))
        return
    if got < wanted:
        shares = spread(got, shares)
    by_line = [0] * count
    for i, part in zip(lines, shares, strict=True):
        by_line[i] += part
    available, expiry = days if days is not None else (None, None)
    given.append(Given(rule.index, base, exact, whole, (*cuts, *more_cuts), got, tuple(by_line), available, expiry))


# --- paying with points ---------------------------------------------------------------------------------------------------


def burn_rule_of(programme: tree.Programme, facts: Facts, wallet: int) -> tree.BurnRule | None:
    """The first burn rule of a wallet that holds."""
    return next((rule for rule in programme.burn if rule.wallet == wallet and holds(rule.when, facts)), None)


def capacities(rule: tree.BurnRule, facts: Facts, net: list[int]) -> list[int]:
    """What points may pay of each line, in money."""
    return [
        0 if rule.not_for is not None and holds(rule.not_for, facts, line) else max(0, amount - rule.money_at_least_per_line)
        for line, amount in zip(facts.lines, net, strict=True)
    ]


def burn_limit(programme: tree.Programme, facts: Facts, wallet: int, net: list[int]) -> BurnLimit | None:
    """The largest burn from a wallet. None: the programme has no way to pay with it."""
    rule = burn_rule_of(programme, facts, wallet)
    if rule is None:
        return BurnLimit(wallet, "", 0, ("no_rule",)) if any(rule.wallet == wallet for rule in programme.burn) else None
    scale = 10 ** programme.wallets[wallet].scale
    available = facts.member.available[wallet] if wallet < len(facts.member.available) else 0
    eligible = sum(
        amount for line, amount in zip(facts.lines, net, strict=True) if rule.not_for is None or not holds(rule.not_for, facts, line)
    )

    def in_points(money: int) -> int:
        return max(0, money) * scale // rule.pays

    bounds = [
        ("balance", available - programme.wallets[wallet].floor),
        ("share", in_points(eligible * rule.share // PPM)),
        ("eligible", in_points(sum(capacities(rule, facts, net)))),
        ("money_at_least", in_points(sum(net) - rule.money_at_least)),
    ]
    bounds += [("max", rule.max)] if rule.max is not None else []
    steps = [(why, max(0, points) // rule.step * rule.step) for why, points in bounds]
    smallest = min(points for _, points in steps)
    if 0 < smallest < rule.min:
        return BurnLimit(wallet, rule.name, 0, ("min",))
    return BurnLimit(wallet, rule.name, smallest, tuple(why for why, points in steps if points == smallest))


def reason_to_refuse_burn(programme: tree.Programme, facts: Facts, limit: BurnLimit | None) -> str | None:
    """Why the burn asked for is not possible."""
    rule = burn_rule_of(programme, facts, facts.receipt.burn_wallet)
    if limit is None or rule is None:
        return "burn_not_possible"
    if facts.receipt.burn % rule.step:
        return "burn_step"
    if facts.receipt.burn > limit.points:
        return "burn_too_high"
    return "burn_below_min" if facts.receipt.burn < rule.min else None


def burn_spread(programme: tree.Programme, facts: Facts, net: list[int]) -> list[int]:
    """The money that the burn pays, by line."""
    rule = burn_rule_of(programme, facts, facts.receipt.burn_wallet)
    money = facts.receipt.burn * rule.pays // 10 ** programme.wallets[rule.wallet].scale
    return spread(money, capacities(rule, facts, net))


# --- points ---------------------------------------------------------------------------------------------------------------


def given_points(
    programme: tree.Programme,
    facts: Facts,
    kept: dict[int, list[int]],
    net: list[int],
    money: list[int],
    purse: Purse,
    given: list[Given],
    not_given: list[tuple[int, str]],
) -> None:
    """Points rules, added percents, multipliers."""
    count = len(facts.lines)

    def days_of(rule: tree.Rule) -> tuple[int, int | None]:
        return facts.today + rule.available_after, expiry_day(rule.life, facts.today)

    def amounts_of(rule: tree.Rule) -> list[int]:
        return net if rule.earn_on_points_paid else money

    for rule in of_kind(programme, "points", kept):
        lines = kept[rule.index]
        amounts = [amounts_of(rule)[i] for i in lines]
        base, exact, whole, shares = points_of(programme, rule, [facts.lines[i] for i in lines], amounts)
        finish(rule, base, exact, whole, [], shares, lines, count, purse, given, not_given, days_of(rule))

    percents: dict[int, dict[int, int]] = {
        rule.index: dict.fromkeys(kept[rule.index], rule.effect.ppm)
        for rule in of_kind(programme, "points", kept)
        if isinstance(rule.effect, tree.Percent)
    }
    for rule in of_kind(programme, "add_percent", kept):
        by_line = [0] * count
        exact, base = Fraction(0), 0
        for index in rule.effect.targets:
            target = programme.rules[index]
            both = [i for i in percents.get(index, {}) if i in kept[rule.index]]
            if not both:
                continue
            amounts = amounts_of(target)
            before = percent_of(programme, target, percents[index], amounts)
            for i in both:
                percents[index][i] += rule.effect.ppm
            after = percent_of(programme, target, percents[index], amounts)
            base += sum(amounts[i] for i in both)
            exact += sum((percent(programme, target, amounts[i], rule.effect.ppm) for i in both), Fraction(0))
            if target.per == "line":
                more = [after[1][i] - before[1][i] for i in both]
            else:
                more = spread(after[0] - before[0], [amounts[i] for i in both])
            for i, part in zip(both, more, strict=True):
                by_line[i] += part
        lines = [i for i in range(count) if by_line[i]]
        finish(rule, base, exact, sum(by_line), [], [by_line[i] for i in lines], lines, count, purse, given, not_given, days_of(rule))

    before_times = list(given)
    for rule in of_kind(programme, "times", kept):
        lines = kept[rule.index]
        base = [sum(row.lines[i] for row in before_times if row.rule in rule.effect.targets) for i in lines]
        exact = [Fraction(points * rule.effect.more, WHOLE_TIMES) for points in base]
        if rule.per == "line":
            shares = [rounded(part, rule.round) for part in exact]
        else:
            shares = spread(rounded(sum(exact, Fraction(0)), rule.round), base)
        finish(rule, sum(base), sum(exact, Fraction(0)), sum(shares), [], shares, lines, count, purse, given, not_given, days_of(rule))


def percent(programme: tree.Programme, rule: tree.Rule, amount: int, ppm: int) -> Fraction:
    """Percent of an amount in the smallest unit of the rule's wallet."""
    wallet = programme.wallets[rule.wallet]
    return Fraction(amount * ppm * 10**wallet.scale, PPM * wallet.worth)


def percent_of(programme: tree.Programme, rule: tree.Rule, ppm_of: dict[int, int], amounts: list[int]) -> tuple[int, dict[int, int]]:
    """Points of a percent rule with these ppm on its lines: in all, and by line (per: line)."""
    exact = {i: percent(programme, rule, amounts[i], ppm) for i, ppm in ppm_of.items()}
    by_line = {i: rounded(part, rule.round) for i, part in exact.items()}
    if rule.per == "line":
        return sum(by_line.values()), by_line
    return rounded(sum(exact.values(), Fraction(0)), rule.round), {}


def points_of(programme: tree.Programme, rule: tree.Rule, lines: list[Line], amounts: list[int]) -> tuple[int, Fraction, int, list[int]]:
    """Base, exact points, rounded points and their shares of the rule's lines."""
    effect = rule.effect
    if isinstance(effect, tree.Steps):
        bases = amounts if effect.of == "amount" else [quantity_of(line) for line in lines]
        if rule.per == "line":
            shares = [part // effect.step * effect.give for part in bases]
        else:
            shares = spread(sum(bases) // effect.step * effect.give, amounts)
        return sum(bases), Fraction(sum(shares)), sum(shares), shares
    if isinstance(effect, tree.Fixed):
        shares = [effect.give] * len(lines) if rule.per == "line" else spread(effect.give, amounts)
        return sum(amounts), Fraction(sum(shares)), sum(shares), shares
    exact = [percent(programme, rule, amount, effect.ppm) for amount in amounts]
    if rule.per == "line":
        shares = [rounded(part, rule.round) for part in exact]
    else:
        shares = spread(rounded(sum(exact, Fraction(0)), rule.round), amounts)
    return sum(amounts), sum(exact, Fraction(0)), sum(shares), shares


# --- posting --------------------------------------------------------------------------------------------------------------


def apply(programme: tree.Programme, member: Member, shared: Shared, result: Result) -> tuple[Member, Shared]:
    """The member and what all share, behind a receipt. Points themselves (lots) are the ledger's. A refused receipt changes nothing."""
    if result.refused is not None:
        return member, shared
    changes = result.changes
    counters = dict(member.counters)
    for key, window, increment in changes.counters:
        counters[key] = added(counters.get(key, ()), window, increment)
    campaigns = dict(shared.campaigns)
    for name, value, uses in changes.campaigns:
        before = campaigns.get(name, (0, 0))
        campaigns[name] = (before[0] + value, before[1] + uses)
    after = counting(programme, member, changes.day, changes.spent)
    days = [day for day in (member.first_day, member.last_day, changes.day) if day is not None]
    return replace(
        after,
        receipts=member.receipts + 1,
        first_day=min(days),
        last_day=max(days),
        tier=changes.tier,
        tier_until=changes.tier_until,
        counters=counters,
    ), Shared(campaigns)
