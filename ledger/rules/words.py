"""A checked programme in words, for `daybook compile` and whoever has to say what a rule is.

Not for what a receipt came to. Amounts, points and days are written as people write them; names as the programme has them.
"""

from __future__ import annotations

from datetime import date, timedelta

from ledger.rules import tree, zones
from ledger.rules.tree import decimal
from ledger.rules.velocity import points_scale

EPOCH = date(1970, 1, 1)
PERS = {"receipt": "a receipt", "day": "a day", "week": "a week", "month": "a month", "year": "a year", "ever": "in all",
        "birthday": "a birthday"}
WINDOWS = {"lifetime": "ever", "month": "in a calendar month", "year": "in a calendar year", "anniversary": "in a year of membership"}
ABOVE = {"shadow": "nothing happens, it is only counted", "mark": "the entry says so", "refuse": "refused",
         "challenge": "refused until a challenge is passed", "reduce": "what is more is not given",
         "review": "the points wait until somebody approves them"}
MONEY = ("total", "eligible_total", "lines_total", "price")
QUANTITIES = ("quantity", "lines_quantity")


def describe(programme: tree.Programme) -> list[tuple[str, str]]:
    """Rows of (title, text)."""
    money = f"{decimal(programme.largest_receipt, programme.currency_digits)} {programme.currency}"
    rows = [
        ("programme", programme.name),
        ("currency", programme.currency),
        ("zone", f"{programme.zone} (zone data {zones.release()})"),
        ("unknown cards", "open an account" if programme.anonymous_accounts else "are refused"),
        ("oldest receipt", count(programme.max_age_days, "day")),
        ("largest receipt", money),
    ]
    if programme.articles:
        rows.append(("catalogue", count(len(programme.articles), "article")))
    if programme.stores:
        rows.append(("stores", count(len(programme.stores), "store")))
    if programme.no_points_on is not None:
        rows.append(("no points on", condition(programme, programme.no_points_on)))
    rows += [(f"wallet {i}", wallet(programme, one)) for i, one in enumerate(programme.wallets)]
    rows += [(f"funder {number}", name) for name, number in programme.funders]
    rows += [(f"tier {i}", level(programme, one)) for i, one in enumerate(programme.tiers.levels if programme.tiers else ())]
    for experiment in programme.experiments:
        shares = ", ".join(f"{name} {percent(share * 100)}" for name, share in experiment.variants)
        rows.append((f"experiment {experiment.name}", f"{shares}; {experiment.control} gets nothing"))
    rows += [(f"campaign {one.name}", campaign(programme, one)) for one in programme.campaigns]
    rows += [(f"rule {one.index + 1}", rule(programme, one)) for one in programme.rules]
    rows += [(f"burn {i}", burn(programme, one)) for i, one in enumerate(programme.burn, start=1)]
    return rows + [(f"limit {i}", limit(programme, one)) for i, one in enumerate(programme.limits, start=1)]


def rule(programme: tree.Programme, one: tree.Rule) -> str:
    """What a rule gives, when, and within which limits."""
    text = f"{one.name}: {effect(programme, one)}"
    if one.lines != tree.ALWAYS:
        text += f"; on lines with {condition(programme, one.lines)}"
    if one.when != tree.ALWAYS:
        text += f"; when {condition(programme, one.when)}"
    if one.kind in ("points", "add_percent", "times"):
        text += f"; they live {life(one.life)}"
        if one.available_after:
            text += f", available after {count(one.available_after, 'day')}"
        payers = {number: name for name, number in programme.funders}
        text += f", paid by {payers[one.funder]}" if one.funder else ""
    for cap in one.caps:
        text += f"; at most {amount(programme, one, cap.measure, cap.limit)} {PERS[cap.per]}"
    if one.campaign is not None:
        text += f"; from campaign {one.campaign}"
    if one.exclusive:
        text += f"; exclusive, priority {one.priority}"
    if one.group is not None:
        text += f"; in group {one.group}, priority {one.priority}"
    return text


def effect(programme: tree.Programme, one: tree.Rule) -> str:
    """What a rule gives."""
    digits, currency = programme.currency_digits, programme.currency
    each = "of each line" if one.per == "line" else "of the receipt"
    names = [other.name for other in programme.rules]
    match one.effect:
        case tree.Steps(step, give, "amount"):
            return f"for every full {decimal(step, digits)} {currency} {each} give {points(programme, one.wallet, give)}"
        case tree.Steps(step, give, _):
            return f"for every full {quantity(step)} pieces {each} give {points(programme, one.wallet, give)}"
        case tree.Fixed(give):
            return f"give {points(programme, one.wallet, give)}" + (" for each line" if one.per == "line" else "")
        case tree.Percent(ppm):
            return f"give {percent(ppm)} {each} in {programme.wallets[one.wallet].name}"
        case tree.AddPercent(ppm, targets):
            return f"give {percent(ppm)} more in {', '.join(names[target] for target in targets)}"
        case tree.Times(more, targets):
            times = decimal(more + 10_000, 4).rstrip("0").rstrip(".")
            return f"give {times} times the points of {', '.join(names[target] for target in targets)}"
        case tree.DiscountPercent(ppm):
            return f"take {percent(ppm)} off {each}"
        case tree.Discount(off):
            return f"take {decimal(off, digits)} {currency} off " + ("each line" if one.per == "line" else "the receipt")
        case tree.Entitle(name):
            return f"entitle to {name}"
    raise AssertionError(f"unknown effect {one.effect}")


def condition(programme: tree.Programme, one: object) -> str:
    """A condition, its parts joined by and, or, not."""
    match one:
        case tree.All(parts):
            return " and ".join(inner(programme, part) for part in parts) or "anything"
        case tree.Any(parts):
            return " or ".join(inner(programme, part) for part in parts) or "nothing"
        case tree.Not(part):
            return f"not ({condition(programme, part)})"
        case tree.InSet(kind, names):
            ordered = [day for day in tree.WEEKDAYS if day in names] if kind == "weekday" else sorted(names)
            return f"{kind.replace('_', ' ')} {any_of(ordered)}"
        case tree.InRange(kind, low, high):
            return f"{kind.replace('_', ' ')} {between(programme, kind, low, high)}"
        case tree.Is(kind, wanted):
            return kind if wanted else f"not {kind}"
        case tree.Dates(windows):
            return "date " + " or ".join(bounds(moment(low), moment(high)) for low, high in windows)
        case tree.Hours(low, high):
            return f"hours {clock(low)} to {clock(high)}"
        case tree.Birthday(before, after):
            return f"{count(before, 'day')} before to {count(after, 'day')} after a birthday"
        case tree.Nth(numbers):
            return f"receipt number {any_of([str(number) for number in sorted(numbers)])}"
        case tree.EveryNth(number):
            return f"every {number}. receipt"
        case tree.InVariant(name, variants):
            return f"experiment {name} {any_of(sorted(variants))}"
    raise AssertionError(f"unknown condition {one}")


def inner(programme: tree.Programme, part: object) -> str:
    """A part of a condition, in brackets where it has parts of its own."""
    text = condition(programme, part)
    return f"({text})" if isinstance(part, (tree.All, tree.Any)) and len(part.parts) > 1 else text


def wallet(programme: tree.Programme, one: tree.Wallet) -> str:
    text = f"{one.name}, {count(one.scale, 'decimal')}; one is worth {decimal(one.worth, programme.currency_digits)} {programme.currency}"
    text += f"; they live {life(one.life)}"
    return text + (f"; {decimal(one.floor, one.scale)} must stay in it" if one.floor else "")


def level(programme: tree.Programme, one: tree.Level) -> str:
    return one.name if one.reach is None else f"{one.name}: {reach(programme, one.reach)}"


def reach(programme: tree.Programme, one: object) -> str:
    """How a tier is reached."""
    if isinstance(one, (tree.All, tree.Any)):
        parts = [reach(programme, part) for part in one.parts]
        parts = [f"({text})" if isinstance(part, (tree.All, tree.Any)) and len(part.parts) > 1 else text
                 for part, text in zip(one.parts, parts, strict=True)]
        return (" and " if isinstance(one, tree.All) else " or ").join(parts)
    window = f"in {count(one.window.days, 'day')}" if one.window.kind == "rolling" else WINDOWS[one.window.kind]
    if one.measure == "receipts":
        return f"{count(one.at_least, 'receipt')} {window}"
    return f"{decimal(one.at_least, programme.currency_digits)} {programme.currency} spent {window}"


def campaign(programme: tree.Programme, one: tree.Campaign) -> str:
    parts = [count(one.uses, "use")] if one.uses is not None else []
    if one.limit is not None:
        users = [rule for rule in programme.rules if rule.campaign == one.name]
        parts = [amount(programme, users[0], one.measure, one.limit) if users else f"{one.limit} {one.measure}", *parts]
    return "at most " + " and ".join(parts) if parts else "without a limit"


def burn(programme: tree.Programme, one: tree.BurnRule) -> str:
    """How a wallet pays."""
    digits, currency, scale = programme.currency_digits, programme.currency, programme.wallets[one.wallet].scale
    text = (f"{one.name}: {programme.wallets[one.wallet].name} pay up to {percent(one.share)} of the receipt, one pays "
            f"{decimal(one.pays, digits)} {currency}")
    if one.not_for is not None:
        text += f"; not for {condition(programme, one.not_for)}"
    if one.when != tree.ALWAYS:
        text += f"; when {condition(programme, one.when)}"
    if one.min:
        text += f"; at least {decimal(one.min, scale)}"
    if one.max is not None:
        text += f"; at most {decimal(one.max, scale)}"
    if one.step > 1:
        text += f"; in steps of {decimal(one.step, scale)}"
    if one.money_at_least:
        text += f"; {decimal(one.money_at_least, digits)} {currency} are money"
    if one.money_at_least_per_line:
        text += f"; {decimal(one.money_at_least_per_line, digits)} {currency} of each line are money"
    return text


def limit(programme: tree.Programme, one: tree.Limit) -> str:
    """What is counted, the bound, and what happens above it."""
    counts = one.counts
    of = {"burns": "burns", "unknown_balances": "look-ups that found nobody", "balances": "look-ups"}
    what = " and ".join(of.get(word, word) for word in counts.of)
    keys = " and ".join(key.replace("_", " ") for key in counts.per)
    if one.mean_after:
        times = decimal(one.at_most, 3).rstrip("0").rstrip(".")
        bound = f"the money of a receipt at most {times} times the mean of those before it, after {count(one.mean_after, 'receipt')}"
    else:
        bound = f"at most {bound_of(programme, one)} {'of ' if counts.measure != 'count' else ''}{what}"
    text = f"{one.name}: {bound}, per {keys}{'' if one.mean_after else ' ' + span_of(counts)}"
    if counts.segments:
        text += f", of members in {any_of(sorted(counts.segments))}"
    text += f"{', less what comes back' if counts.gives_back else ''}; above it {ABOVE[one.then]}"
    if one.rung is not None:
        text += f", and the member is {one.rung}" + (f" for {seconds(one.lasts_s)}" if one.lasts_s else "")
    return text


def bound_of(programme: tree.Programme, one: tree.Limit) -> str:
    """A bound with its unit."""
    match one.counts.measure:
        case "count":
            return str(one.at_most)
        case "points":
            scale = points_scale(programme.wallets)
            return f"{decimal(one.at_most, scale or 0)} points" + (" (smallest units)" if scale is None else "")
        case "money":
            return f"{decimal(one.at_most, programme.currency_digits)} {programme.currency}"
        case "quantity":
            return f"{decimal(one.at_most, 3).rstrip('0').rstrip('.')} pieces in one line"
    return count(one.at_most, f"different {one.counts.measure[:-1]}")


def span_of(counts: tree.Counter) -> str:
    """The window of a counter."""
    if counts.window == "sliding":
        return f"in {seconds(counts.window_s)}"
    return "at once" if counts.window == "receipt" else PERS[counts.window]


def seconds(number: int) -> str:
    """A span in its largest whole unit."""
    size, unit = next((size, unit) for size, unit in ((86_400, "day"), (3600, "hour"), (60, "minute")) if number % size == 0)
    return count(number // size, unit)


# --- small parts ---------------------------------------------------------------------------------------------------------


def life(one: tree.Life) -> str:
    """How long points count."""
    to = f" to the end of the {one.end}" if one.end else ""
    match one.unit:
        case "forever":
            return "for ever"
        case "until":
            return f"until {EPOCH + timedelta(days=one.number)}"
        case "inactivity":
            return f"until {count(one.number, 'day')} without a receipt"
    return to.strip() if (one.unit, one.number) == ("days", 1) and to else count(one.number, one.unit[:-1]) + to


def amount(programme: tree.Programme, one: tree.Rule, measure: str, limit: int) -> str:
    """What a cap or campaign counts."""
    if measure == "uses":
        return count(limit, "use")
    if measure == "amount":
        return f"{decimal(limit, programme.currency_digits)} {programme.currency}"
    return points(programme, one.wallet, limit)


def points(programme: tree.Programme, number: int, value: int) -> str:
    return f"{decimal(value, programme.wallets[number].scale)} {programme.wallets[number].name}"


def percent(ppm: int) -> str:
    text = decimal(ppm, 4)
    return f"{text.rstrip('0').rstrip('.')} %"


def quantity(thousandths: int) -> str:
    return decimal(thousandths, 3).rstrip("0").rstrip(".")


def between(programme: tree.Programme, kind: str, low: int | None, high: int | None) -> str:
    def said(value: int | None) -> str | None:
        if value is None:
            return None
        if kind in MONEY:
            return f"{decimal(value, programme.currency_digits)} {programme.currency}"
        return quantity(value) if kind in QUANTITIES else str(value)
    return bounds(said(low), said(high))


def bounds(low: str | None, high: str | None) -> str:
    """A range whose end is not in it."""
    return " ".join(part for part in (f"from {low}" if low else "", f"below {high}" if high else "") if part)


def moment(minutes: int | None) -> str | None:
    if minutes is None:
        return None
    day = EPOCH + timedelta(days=minutes // tree.MINUTES_OF_DAY)
    return f"{day}" + (f" {clock(minutes % tree.MINUTES_OF_DAY)}" if minutes % tree.MINUTES_OF_DAY else "")


def clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def any_of(names: list[str]) -> str:
    shown = names if len(names) <= 10 else [*names[:9], f"{len(names) - 9} more"]
    return " or ".join(shown)


def count(number: int, unit: str) -> str:
    return f"{number} {unit}" + ("" if number == 1 else "s")
