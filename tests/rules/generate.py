"""Programmes, members and receipts for Hypothesis, as free as the language: every construct, every nesting, all edges near each other.

Programmes are made as data and become YAML nodes, so that what is generated goes through the checker as a file does, without the
time that text takes. Numbers are drawn from small sets, so that thresholds are met, missed by one and met exactly. Used by
test_properties.py, and meant for whatever has to equal the reference interpreter.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st
from ruamel.yaml.error import StringMark
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from ledger.rules import check, firing, tree, zones
from ledger.rules.reference import Line, Member, Receipt, Shared
from ledger.rules.syntax import ProgramError

SKUS = ["milk", "cheese", "bread", "beer", "card", "soap"]
CATALOGUE = [
    {"sku": "milk", "category": "Food/Dairy/Milk", "brand": "Alpina"},
    {"sku": "cheese", "category": "Food/Dairy", "brand": "Alpina", "flags": ["weighed"]},
    {"sku": "bread", "category": "Food/Bakery"},
    {"sku": "beer", "category": "Drinks", "brand": "Bruno", "flags": ["alcohol"]},
    {"sku": "card", "flags": ["gift_card"]},
    {"sku": "soap", "category": "Home"},
]
CATEGORIES = ["Food", "Food/Dairy", "Food/Bakery", "Drinks", "Home"]
TIERS, SEGMENTS, CHANNELS, TENDERS = ["base", "silver", "gold"], ["students", "staff", "lost"], ["shop", "app"], ["cash", "card"]
CODES, STORES = ["SPRING", "AUTUMN"], ["1", "2", "3"]
WALLETS = ["points", "miles"]
AMOUNTS = ["0.00", "0.01", "0.99", "1.00", "4.99", "5.00", "10.00", "33.33", "99.99", "100.00", "250.50", "1000.00"]
QUANTITIES = ["0", "0.357", "1", "2", "3", "10"]
PERCENTS = ["0.0001", "0.5", "1", "2.5", "3", "5", "33.3333", "100"]
ZONES = ["Europe/Warsaw", "Europe/London", "Asia/Vladivostok", "America/New_York", "Australia/Lord_Howe"]
# Edges of days, months, years, of daylight saving in Europe, and of 29 February.
MOMENTS = [
    datetime(2027, 12, 31, 22, 59, 59, tzinfo=UTC),
    datetime(2028, 1, 1, 0, 0, tzinfo=UTC),
    datetime(2028, 2, 28, 23, 0, tzinfo=UTC),
    datetime(2028, 2, 29, 12, 0, tzinfo=UTC),
    datetime(2028, 2, 29, 23, 0, tzinfo=UTC),
    datetime(2028, 3, 26, 0, 59, 59, tzinfo=UTC),
    datetime(2028, 3, 26, 1, 0, tzinfo=UTC),
    datetime(2028, 3, 31, 21, 59, tzinfo=UTC),
    datetime(2028, 3, 31, 22, 0, tzinfo=UTC),
    datetime(2028, 6, 15, 10, 0, tzinfo=UTC),
    datetime(2028, 10, 29, 0, 30, tzinfo=UTC),
    datetime(2028, 10, 29, 1, 30, tzinfo=UTC),
]
DATES = ["2028-01-01", "2028-02-29", "2028-03-01", "2028-03-26 02:30", "2028-04-01", "2028-10-29 02:30", "2029-01-01"]
CLOCKS = ["00:00", "02:00", "02:30", "03:00", "10:00", "22:00"]


NOWHERE = StringMark("generated", 0, 0, 0, "", 0)


def node_of(data: Any) -> Node:
    """Data as the YAML node that its text would be."""
    if isinstance(data, dict):
        return MappingNode("", [(node_of(key), node_of(value)) for key, value in data.items()], NOWHERE, NOWHERE)
    if isinstance(data, list):
        return SequenceNode("", [node_of(value) for value in data], NOWHERE, NOWHERE)
    return ScalarNode("", str(data).lower() if isinstance(data, bool) else str(data), NOWHERE, NOWHERE)


def some(values: list, high: int = 3) -> st.SearchStrategy:
    return st.lists(st.sampled_from(values), min_size=1, max_size=high, unique=True)


def span(values: list) -> st.SearchStrategy:
    """A range that is not empty: two of the values in their order, or one."""

    def made(pair: list) -> dict:
        low, high = sorted(pair, key=values.index)
        return {"from": low, "to": high}

    both = st.lists(st.sampled_from(values), min_size=2, max_size=2, unique=True).map(made)
    return st.one_of(
        both, st.sampled_from(values).map(lambda low: {"from": low}), st.sampled_from(values[1:]).map(lambda high: {"to": high})
    )


LINE_ATOMS = {
    "sku": some(SKUS),
    "category": some(CATEGORIES),
    "brand": some(["Alpina", "Bruno"]),
    "flag": some(["weighed", "alcohol", "gift_card"]),
    "price": span(AMOUNTS),
    "quantity": span(QUANTITIES),
    "weighed": st.booleans(),
    "discounted": st.booleans(),
    "favourite": st.booleans(),
}
OTHER_ATOMS = {
    "total": span(AMOUNTS),
    "eligible_total": span(AMOUNTS),
    "nth_receipt": some([1, 2, 3, 10]),
    "every_nth_receipt": st.sampled_from([2, 3, 5]),
    "tender": some(TENDERS),
    "channel": some(CHANNELS),
    "promo_code": some(CODES),
    "tier": some(TIERS),
    "segment": some(SEGMENTS),
    "account_age_days": span([0, 1, 7, 30, 366]),
    "days_since_last_receipt": span([0, 1, 30, 60]),
    "birthday": st.fixed_dictionaries({"days_before": st.integers(0, 5), "days_after": st.integers(0, 5)}),
    "store": some(STORES),
    "store_group": some(["city"]),
    "region": some(["north"]),
    "partner": some(["albion"]),
    "dates": st.one_of(span(DATES), st.lists(span(DATES), min_size=1, max_size=2)),
    "weekday": some(list(tree.WEEKDAYS), 6),
    "hours": st.lists(st.sampled_from(CLOCKS), min_size=2, max_size=2, unique=True).map(lambda pair: {"from": pair[0], "to": pair[1]}),
    "experiment": some(["a", "b"], 2).map(lambda variants: {"spring": variants}),
}
OWN_ATOMS = {"lines_total": span(AMOUNTS), "lines_quantity": span(QUANTITIES)}


@st.composite
def conditions(draw: Any, atoms: dict, depth: int = 2) -> dict:
    """A mapping of conditions, nested."""
    keys = draw(st.lists(st.sampled_from(sorted(atoms)), min_size=1, max_size=2, unique=True))
    made = {key: draw(atoms[key]) for key in keys}
    if depth > 0 and draw(st.integers(0, 3)) == 0:
        form = draw(st.sampled_from(["any", "all", "not"]))
        made[form] = (
            draw(conditions(atoms, depth - 1)) if form == "not" else draw(st.lists(conditions(atoms, depth - 1), min_size=1, max_size=3))
        )
    return made


@st.composite
def line_conditions(draw: Any) -> dict:
    """What may stand in `lines`: line conditions, and others mixed with them inside an `any`."""
    made = draw(conditions(LINE_ATOMS))
    if draw(st.integers(0, 4)) == 0:
        made["any"] = [draw(conditions(LINE_ATOMS, 0)), draw(conditions(OTHER_ATOMS, 1))]
    return made


LIVES = [
    "forever",
    "90 days",
    "12 months",
    "1 month",
    "end of month",
    "end of quarter",
    "end of year",
    "3 months to end of year",
    "until 2028-04-01",
]


@st.composite
def rule(draw: Any, index: int, percents: list[str], named: list[str]) -> dict:
    """One rule. percents: names of percent rules of the first wallet before it; named: of all points rules of the first wallet."""
    forms = ["steps", "quantity", "fixed", "percent", "percent", "discount", "discount_percent", "entitle"]
    forms += ["add_percent"] * 2 * bool(percents) + ["times"] * 2 * bool(named)
    form = draw(st.sampled_from(forms))
    made: dict[str, Any] = {"name": f"Rule {index}"}
    if draw(st.booleans()):
        made["when"] = draw(conditions(OTHER_ATOMS | OWN_ATOMS))
    if draw(st.integers(0, 2)) == 0:
        made["lines"] = draw(line_conditions())
    gives = form in ("steps", "quantity", "fixed", "percent", "add_percent", "times")
    wallet = draw(st.sampled_from(WALLETS)) if form in ("steps", "quantity", "fixed", "percent") else WALLETS[0]
    if wallet != WALLETS[0]:
        made["to_wallet"] = wallet
    if form == "steps":
        made |= {"for_every_full": draw(st.sampled_from(["0.99", "1.00", "10.00", "100.00"])), "give": draw(st.integers(1, 7))}
    elif form == "quantity":
        made |= {"for_every_full_quantity": draw(st.sampled_from(["0.1", "1", "2"])), "give": draw(st.integers(1, 7))}
    elif form == "fixed":
        made |= {"give": draw(st.integers(1, 50))}
    elif form == "add_percent":
        made |= {"add_percent": draw(st.sampled_from(PERCENTS)), "to_rules": draw(some(percents, 2))}
    elif form == "times":
        made |= {"times": draw(st.sampled_from(["1.0001", "1.5", "2", "3"])), "of_rules": draw(st.one_of(st.just("all"), some(named)))}
    elif form == "discount":
        made |= {"discount": draw(st.sampled_from(["0.01", "1.00", "5.00", "100.00"]))}
    elif form == "entitle":
        made |= {"entitle": draw(st.sampled_from(["delivery", "gift"]))}
    else:
        made |= {form: draw(st.sampled_from(PERCENTS))}
    if form not in ("add_percent", "entitle"):
        made["per"] = draw(st.sampled_from(["receipt", "line"]))
    if form in ("percent", "times", "discount_percent"):
        made["round"] = draw(st.sampled_from(["floor", "half_up", "ceil"]))
    if form in ("steps", "quantity", "fixed", "percent") and draw(st.booleans()):
        made["earn_on_points_paid"] = draw(st.booleans())
    if gives and draw(st.integers(0, 2)) == 0:
        made["points_live"] = draw(st.sampled_from(LIVES))
    if gives and draw(st.integers(0, 4)) == 0:
        made["available_after"] = f"{draw(st.integers(0, 14))} days"
    if draw(st.integers(0, 2)) == 0:
        measure = "points" if gives else "amount" if form.startswith("discount") else "uses"
        pers = ["day", "week", "month", "year", "ever"]
        if "birthday" in made.get("when", {}) or draw(st.integers(0, 4)) == 4:
            made.setdefault("when", {}).setdefault("birthday", {"days_before": 1, "days_after": 1})
            pers = ["birthday", "ever"]
        caps = [{measure: draw(st.integers(1, 40)), "per": draw(st.sampled_from([*pers, *["receipt"] * (measure != "uses")]))}]
        if measure != "uses" and draw(st.booleans()):
            caps.append({"uses": draw(st.integers(1, 3)), "per": draw(st.sampled_from(pers))})
        made["caps"] = caps
    if draw(st.integers(0, 3)) == 0:
        made["campaign"] = "money" if form.startswith("discount") else "counted" if form == "entitle" or wallet != WALLETS[0] else "points"
    if form != "entitle" and draw(st.integers(0, 3)) == 0:
        made["priority"] = index + 1
        made |= draw(st.sampled_from([{"group": "g"}, {"exclusive": True}, {"group": "g", "exclusive": True}]))
    return made


REACH = st.fixed_dictionaries({"in": st.sampled_from(["lifetime", "calendar month", "calendar year", "anniversary year", "30 days"])})


@st.composite
def programmes(draw: Any, rules_max: int = 8) -> tree.Programme:
    """A programme that the checker takes."""
    rules: list[dict] = []
    percents: list[str] = []
    named: list[str] = []
    for index in range(draw(st.integers(2, rules_max))):
        plain = index == 0 and draw(st.integers(0, 3)) > 0  # something that others can add to and multiply
        made = (
            {"name": "Base", "percent": draw(st.sampled_from(PERCENTS[2:])), "per": draw(st.sampled_from(["receipt", "line"]))}
            if plain
            else draw(rule(index, percents, named))
        )
        rules.append(made)
        if "to_wallet" not in made:
            percents += [made["name"]] if "percent" in made else []
            named += [made["name"]] if {"percent", "give", "add_percent"} & set(made) else []
    window = draw(REACH)
    top: dict[str, Any] = {
        "programme": "Generated",
        "currency": "EUR",
        "zone": draw(st.sampled_from(ZONES)),
        "max_age": "400 days",
        "largest_receipt": "10000.00",
        "total_tolerance": draw(st.sampled_from(["0", "0.05"])),
        "unknown_sku": draw(st.sampled_from(["accept", "no_points"])),
        "unknown_store": "accept",
        "earn_on_points_paid": draw(st.booleans()),
        "wallets": [{"name": "points", "points_live": draw(st.sampled_from([*LIVES[:6], "40 days of inactivity"]))},
                    {"name": "miles", "scale": 2, "worth": "0.50"}],
        "partners": {"albion": {"zone": draw(st.sampled_from(ZONES))}},
        "stores": [
            {"store": "1", "region": "north", "groups": ["city"]},
            {"store": "2", "partner": "albion"},
            {"store": "3", "zone": draw(st.sampled_from(ZONES))},
        ],
        "catalogue": CATALOGUE,
        "categories": {"DRY": "Food/Bakery"},
        "tenders": TENDERS,
        "channels": CHANNELS,
        "segments": SEGMENTS,
        "favourites": {"choose_from": ["Food/Dairy", "Drinks", "Food"], "at_most": 2},
        "tiers": {
            "levels": [
                {"name": "base"},
                {"name": "silver", "reach": {**window, "receipts": 2}},
                {"name": "gold", "reach": {"any": [{**draw(REACH), "receipts": 4}, {**draw(REACH), "spent": "500.00"}]}},
            ],
            "downgrade": draw(st.sampled_from(["never", "to level", "one step"])),
            "grace": draw(st.sampled_from(["0 days", "10 days", "1 month"])),
        },
        "experiments": {"spring": {"variants": {"control": 20, "a": 40, "b": 40}, "control": "control"}},
        "campaigns": {
            "points": {"points": draw(st.integers(1, 100)), "uses": draw(st.integers(1, 5))},
            "money": {"amount": "3.00"},
            "counted": {"uses": 2},
        },
        "rules": rules,
        "burn": [
            {
                "name": "First",
                "when": draw(conditions(OTHER_ATOMS)),
                "share": draw(st.sampled_from(PERCENTS)),
                "min": draw(st.integers(0, 5)),
            },
            {
                "name": "Second",
                "share": draw(st.sampled_from(PERCENTS)),
                "not_for": draw(conditions(LINE_ATOMS, 1)),
                "step": draw(st.integers(1, 5)),
                "money_at_least": draw(st.sampled_from(["0", "1.00"])),
                "money_at_least_per_line": draw(st.sampled_from(["0", "0.01"])),
                "max": 500,
            },
            {"name": "Miles", "wallet": "miles", "share": 50, "step": 1},
        ],
    }
    if draw(st.booleans()):
        top["no_points_on"] = {"flag": draw(some(["alcohol", "gift_card"], 2))}
    try:
        return check.check_node(node_of(top), "generated")
    except ProgramError as error:
        harmless = ("can never", "priority", "must be shorter", "stands twice", "no more than")
        assert all(any(word in line for word in harmless) for line in str(error).splitlines()), f"{error}\n{top}"
        assume(False)
        raise


@st.composite
def members(draw: Any, number: int = 1) -> Member:
    """A member with any past. What receipts would have left is made by receipts."""
    last = draw(st.sampled_from([None, 21_180, 21_240]))
    return Member(
        number=draw(st.integers(1, 50)) if number == 1 else number,
        opened_day=draw(st.sampled_from([20_000, 21_100, 21_233, 21_243])),
        receipts=draw(st.sampled_from([0, 1, 2, 9])),
        last_day=last,
        first_day=last,
        segments=frozenset(draw(st.sets(st.sampled_from(SEGMENTS)))),
        chosen=frozenset(draw(st.sets(st.sampled_from(["Food/Dairy", "Drinks", "Food"]), max_size=2))),
        birthday=draw(st.sampled_from([None, (2, 29), (1, 1), (12, 31), (3, 1)])),
        birthday_from=draw(st.sampled_from([0, 0, 21_250])),
        available=(draw(st.sampled_from([0, 4, 50, 5000])), draw(st.sampled_from([0, 999]))),
    )


def minor(text: str) -> int:
    return int(text.replace(".", ""))


@st.composite
def lines(draw: Any) -> Line:
    """A line, known or unknown."""
    amount = minor(draw(st.sampled_from(AMOUNTS)))
    quantity = draw(st.sampled_from([0, 357, 1000, 2000, 3000]))
    before = draw(st.sampled_from([None, amount, amount + 100]))
    return Line(
        draw(st.sampled_from([*SKUS, "mystery"])), amount, quantity, draw(st.sampled_from(["", "DRY", "WET"])), before, draw(st.booleans())
    )


@st.composite
def receipts(draw: Any) -> Receipt:
    """A receipt, nearly always a right one."""
    found = tuple(draw(st.lists(lines(), max_size=6)))
    total = sum(line.amount for line in found) if found else minor(draw(st.sampled_from(AMOUNTS)))
    if draw(st.integers(0, 15)) == 0:
        total += draw(st.sampled_from([1, 5, 6]))
    return Receipt(
        total=total,
        lines=found,
        store=draw(st.sampled_from([*STORES, "99"])),
        channel=draw(st.sampled_from(["", "shop", "app", "web"])),
        tenders=tuple(
            (name, draw(st.sampled_from([0, total])))
            for name in draw(st.lists(st.sampled_from([*TENDERS, "gold"]), max_size=2, unique=True))
        ),
        promo_codes=tuple(draw(st.lists(st.sampled_from([*CODES, "WINTER"]), max_size=2, unique=True))),
        burn=draw(st.sampled_from([0] * 6 + [1, 2, 4, 5, 10, 100])),
        burn_wallet=draw(st.sampled_from([0, 0, 1])),
    )


@st.composite
def times_us(draw: Any) -> int:
    """A business time near an edge."""
    moment = draw(st.sampled_from(MOMENTS)) + timedelta(seconds=draw(st.sampled_from([-1, 0, 1, 60, 3600, 86_400])))
    return (moment - zones.EPOCH) // timedelta(microseconds=1)


def nothing_shared() -> Shared:
    return Shared()


def never_fires(programme: tree.Programme) -> list[int]:
    """Rules that the checker would report."""
    return [index for index, _ in firing.impossible(programme)]


# --- limits ---------------------------------------------------------------------------------------------------------------

ENTRIES = [word for word in tree.OF if word not in tree.LOOK_UPS]
POSTED = ["earns", "burns", "reservations"]
SPANS = ["1 minute", "10 minutes", "90 minutes", "1 hour", "24 hours"]


@st.composite
def limit_of(draw: Any, name: str) -> dict:
    """A limit that the checker takes: measure first, then what may stand with it."""
    measure = draw(st.sampled_from([*tree.MEASURES, "count", "points"]))
    money = draw(st.sampled_from(["earns", "earns", "returns"]))
    allowed = {"count": ENTRIES, "points": [*POSTED, "returns"], "money": [money], "quantity": ["earns"]}.get(measure, ENTRIES)
    of = draw(some(allowed, 3))
    look_ups = measure == "count" and draw(st.integers(0, 4)) == 0
    if look_ups:
        of = draw(some(list(tree.LOOK_UPS), 2))
    if measure == "members" and of == ["enrolments"]:
        of = ["enrolments", "earns"]
    means = measure == "money" and draw(st.booleans())
    if measure == "quantity" or means:
        window = "receipt"
    elif measure in tree.DIFFERENT:
        window = draw(st.sampled_from(["day", "week", "month", "ever", *SPANS]))
    else:
        window = draw(st.sampled_from(["day", "week", "month", "ever", *SPANS, *["receipt"] * (not look_ups)]))
    keys = list(tree.KEYS)
    without = {"members": ["member", "identifier"], "stores": ["store", "till"], "regions": ["store", "till"]}.get(measure, [])
    without = without + ["member", "identifier"] * ("enrolments" in of) + ["member"] * ("unknown_balances" in of)
    without += ["identifier"] * ("returns" in of)
    if look_ups or window == "receipt" and not means:
        without += ["hour", "basket"]
    if of != ["earns"]:
        without.append("basket")
    keys = [key for key in keys if key not in without]
    per = draw(some(keys, 3).filter(lambda chosen: chosen != ["hour"]))
    made: dict[str, Any] = {"name": name, "of": of if len(of) > 1 or draw(st.booleans()) else of[0], "per": per, "window": window}
    if measure != "count" or draw(st.booleans()):
        made["measure"] = measure
    if not {"enrolments", "unknown_balances"} & set(of) and draw(st.integers(0, 2)) == 0:
        made["segments"] = draw(some(SEGMENTS))
    if set(of) <= set(POSTED) and measure in ("count", "points", "money") and window in ("day", "week", "month", "ever"):
        made |= draw(st.sampled_from([{}, {"gives_back": True}]))
    if means:
        made |= {"at_most_means": draw(st.sampled_from(["0.001", "1", "2.5", "1000"])), "after": draw(st.sampled_from([2, 5, 1_000_000]))}
    elif measure == "count" and window == "receipt":
        made["at_most"] = 0
    else:
        most = {**dict.fromkeys(tree.DIFFERENT, [100_000]), "quantity": ["0.5", "1000000"], "money": ["0.01", "42949672.95"],
                "points": ["0.1", "429496729.5"]}
        if window in SPANS and measure in tree.DIFFERENT:
            most[measure] = [12]
        made["at_most"] = draw(st.sampled_from([0, 1, 2, 5, *most.get(measure, [4_294_967_295])]))
    answers = ["shadow", "mark"] + ["refuse"] * (of != ["refusals"]) + ["challenge"] * (set(of) <= {"burns", "reservations"})
    answers += (["review"] + ["reduce"] * (measure in ("points", "count"))) * (of == ["earns"])
    made["then"] = draw(st.sampled_from(answers))
    gone = of == ["enrolments"] and made["then"] == "refuse"
    if made["then"] != "shadow" and not look_ups and not gone and draw(st.booleans()):
        made["rung"] = draw(st.sampled_from(tree.RUNGS))
        if draw(st.booleans()):
            made["lasts"] = draw(st.sampled_from(["1 minute", "36 hours", "7 days", "3660 days"]))
    return made


@st.composite
def limit_lists(draw: Any, most: int = 12) -> list[dict]:
    """Limits as data, none that says the same as another."""
    found: dict[str, dict] = {}
    for index in range(draw(st.integers(1, most))):
        made = draw(limit_of(f"Limit {index}"))
        said = {key: sorted(value) if isinstance(value, list) else [value] for key, value in made.items() if key != "name"}
        found.setdefault(str(sorted({"measure": ["count"], **said}.items())), made)
    return list(found.values())
