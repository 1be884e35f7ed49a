"""A programme's YAML to the checked tree: every key, every bound, every name, every reference. docs/rules.md is the definition.

Not for reading text (`syntax.py`) or kinds of values (`shape.py`, `conditions.py`), nor for rules that can never fire (`firing.py`,
called from here). Called by whoever compiles, explains or tests a programme. All mistakes are reported at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

from ruamel.yaml.nodes import MappingNode

from ledger import limits
from ledger.rules import catalogue, firing, syntax, tree, velocity, zones
from ledger.rules.conditions import RESERVED, ConditionKind, ReachKind
from ledger.rules.currencies import DIGITS
from ledger.rules.shape import (
    Choice,
    Flag,
    Got,
    Key,
    Kind,
    LifeKind,
    ListOf,
    MapOf,
    Money,
    Name,
    Number,
    OneOrMore,
    Raw,
    Reading,
    Record,
    Span,
    Text,
    Whole,
)
from ledger.rules.shape import (
    Path as CategoryPath,
)
from ledger.rules.syntax import Problems, ProgramError, read_decimal, suggestion

BURN_RULES_MAX = 64
CAMPAIGNS_MAX = 1000
STORES_MAX = 65_535
CATEGORY_CODES_MAX = 10_000
SEGMENTS_MAX = 128
FAVOURITES_MAX = 64
TIERS_MAX = 16
NAMES_MAX = 32  # of tenders, of channels
EXPERIMENTS_MAX = 16
PPM = 1_000_000
PERCENT_MAX = 1000  # more is a typing error
TIMES_MAX = 100
MAX_AGE_DAYS_MAX = 3660
DELAY_DAYS_MAX = 3660
SUM_MAX = 2**62  # nothing on the way to a rule's points may be larger


class _Currency(Kind):
    right, json = "an ISO 4217 code such as EUR", {"enum": sorted(DIGITS)}

    def parse(self, r, text):
        return text if text in DIGITS else None

    def hint(self, r, node):
        return suggestion(str(node.value).upper(), DIGITS)


class _Zone(Kind):
    right = "an IANA time zone such as Europe/Warsaw"

    def parse(self, r, text):
        return text if text in zones.names() else None

    def hint(self, r, node):
        return suggestion(str(node.value), zones.names())


class _Either(Kind):
    """A list in the programme, or a file beside it."""

    def __init__(self, rows: ListOf, file: Record):
        self.rows, self.file = rows, file

    def read(self, r, node, path):
        return (self.file if isinstance(node, MappingNode) else self.rows).read(r, node, path)

    def schema(self):
        return {"anyOf": [self.rows.schema(), self.file.schema()]}


class _Targets(Kind):
    """Names of rules, or `all`; resolved when all rules are read."""

    kind = OneOrMore(Text(limits.RULE_NAME_BYTES_MAX), 1000)

    def read(self, r, node, path):
        return self.kind.read(r, node, path)

    def schema(self):
        return self.kind.schema()


def _percent(most: int) -> Number:
    return Number(4, 1, most * 10_000, "a percentage")


_WALLET = Record(
    {
        "name": Key(Text(limits.WALLET_NAME_BYTES_MAX), "what members collect", must=True),
        "scale": Key(Whole(0, 9), "decimals behind the point, for ever", default=0),
        "worth": Key(Money(1, limits.AMOUNT_MINOR_MAX), "what one point is in money"),
        "points_live": Key(LifeKind(inactivity=True), "how long points count", default=tree.Life("forever")),
        "available_after": Key(Span({"days": DELAY_DAYS_MAX}), "how many days they wait before they can be used", default=(0, "days")),
        "floor": Key(Raw(), "what a burn must leave in it", default="0"),
    }
)
_STORE = Record(
    {
        "store": Key(Text(limits.STORE_BYTES_MAX), "its code", must=True),
        "zone": Key(_Zone(), "its time zone; default: its partner's, else the programme's"),
        "region": Key(Text(32), "its region"),
        "partner": Key(Name("partner"), "whose store it is"),
        "groups": Key(OneOrMore(Text(32), 64), "groups that it belongs to", default=()),
    }
)
_FILE = Key(Text(255), "a CSV or Parquet file beside the programme", must=True)
_ARTICLE = Record(
    {
        "sku": Key(Text(limits.SKU_BYTES_MAX), "its code", must=True),
        "category": Key(CategoryPath(), "path such as Food/Dairy/Milk"),
        "brand": Key(Text(64), "its brand"),
        "flags": Key(OneOrMore(Text(32), 64), "such as alcohol, tobacco, gift_card, weighed", default=()),
    }
)
_COLUMNS = Record({key: Key(OneOrMore(Text(64), 8), f"the column (or columns) of {key}", default=(key,)) for key in _ARTICLE.keys})
_EXPERIMENT = Record(
    {
        "variants": Key(MapOf(Text(32), Number(2, 0, 10_000, "a percentage"), 16, "variants and their percent"), "sum to 100", must=True),
        "control": Key(Text(32), "the variant that gets nothing and is recorded", must=True),
    }
)
_CAMPAIGN = Record(
    {
        "points": Key(Raw(), "budget in points, over all members"),
        "amount": Key(Money(0, limits.AMOUNT_MINOR_MAX), "budget in money, for discounts"),
        "uses": Key(Whole(0, 10**15), "budget in uses"),
    }
)
_LEVEL = Record(
    {
        "name": Key(Text(32), "its name", must=True),
        "reach": Key(ReachKind(), "when it is reached; the lowest has none"),
    }
)
_TIERS = Record(
    {
        "levels": Key(ListOf(_LEVEL, 1, TIERS_MAX, "levels"), "from the lowest", must=True),
        "downgrade": Key(Choice("never", "to level", "one step"), "how members come down", default="never"),
        "grace": Key(Span({"days": 3660, "months": 120}), "how long a level is held behind its end", default=(0, "days")),
    }
)
_FAVOURITES = Record(
    {
        "choose_from": Key(OneOrMore(Name("category"), FAVOURITES_MAX), "categories", must=True),
        "at_most": Key(Whole(1, FAVOURITES_MAX), "how many a member chooses", must=True),
    }
)
_CAP = Record(
    {
        "points": Key(Raw(), "so many points"),
        "amount": Key(Money(1, limits.AMOUNT_MINOR_MAX), "so much discount"),
        "uses": Key(Whole(1, 10**9), "on so many receipts"),
        "per": Key(Choice(*tree.PER), "for each of these", must=True),
    }
)
EFFECTS = ("give", "percent", "add_percent", "times", "discount_percent", "discount", "entitle")
_RULE = Record(
    {
        "name": Key(Text(limits.RULE_NAME_BYTES_MAX), "its name, no two alike", must=True),
        "when": Key(ConditionKind("when"), "what must hold of receipt, member, place and time", default=tree.ALWAYS),
        "lines": Key(ConditionKind("lines"), "which lines it is about", default=tree.ALWAYS),
        "for_every_full": Key(Money(1, limits.AMOUNT_MINOR_MAX), "with give: for every full so much money"),
        "for_every_full_quantity": Key(Number(3, 1, limits.QUANTITY_MILLI_MAX, "a quantity"), "with give: for every so many pieces or kg"),
        "give": Key(Raw(), "points"),
        "percent": Key(_percent(PERCENT_MAX), "percent of the money, in points"),
        "add_percent": Key(_percent(PERCENT_MAX), "percent more in the rules of to_rules"),
        "to_rules": Key(_Targets(), "with add_percent: to which rules"),
        "times": Key(Number(4, 10_001, TIMES_MAX * 10_000, "a number"), "with of_rules: their points so many times in all"),
        "of_rules": Key(_Targets(), "with times: of which rules, or all"),
        "discount_percent": Key(_percent(100), "percent off"),
        "discount": Key(Money(1, limits.AMOUNT_MINOR_MAX), "so much money off"),
        "entitle": Key(Text(32), "a flag in the answer"),
        "per": Key(Choice("receipt", "line"), "computed once for the receipt, or line by line", default="receipt"),
        "round": Key(Choice("floor", "half_up", "ceil"), "how fractions are rounded", default="floor"),
        "to_wallet": Key(Name("wallet"), "which wallet gets the points; default: the first"),
        "funder": Key(Name("funder"), "who pays for them; default: the chain"),
        "points_live": Key(LifeKind(inactivity=False), "how long they count; default: the wallet's"),
        "available_after": Key(Span({"days": DELAY_DAYS_MAX}), "how many days they wait; default: the wallet's"),
        "earn_on_points_paid": Key(Flag(), "whether the part paid with points earns; default: the programme's"),
        "caps": Key(ListOf(_CAP, 0, 14, "caps"), "at most so much for a member", default=[]),
        "campaign": Key(Name("campaign"), "whose budget it takes from"),
        "exclusive": Key(Flag(), "no other rule of its kind gives on its lines", default=False),
        "group": Key(Text(32), "of a group only one gives on a line"),
        "priority": Key(Whole(1, 1000), "in its group, or among exclusive rules: higher goes first"),
    },
    (*RESERVED, "issue_coupon", "pending_until_confirmed"),
)
_BURN = Record(
    {
        "name": Key(Text(limits.RULE_NAME_BYTES_MAX), "its name", must=True),
        "when": Key(ConditionKind("burn"), "what must hold", default=tree.ALWAYS),
        "wallet": Key(Name("wallet"), "which wallet pays; default: the first"),
        "share": Key(_percent(100), "at most so many percent of the eligible total", default=PPM),
        "not_for": Key(ConditionKind("goods"), "goods that cannot be paid with points"),
        "min": Key(Raw(), "at least so many points of a receipt", default="0"),
        "max": Key(Raw(), "at most so many points of a receipt"),
        "step": Key(Raw(), "only multiples of so many points"),
        "money_at_least": Key(Money(0, limits.AMOUNT_MINOR_MAX), "of the receipt so much is paid in money", default=0),
        "money_at_least_per_line": Key(Money(0, limits.AMOUNT_MINOR_MAX), "and of every line so much", default=0),
        "one_point_pays": Key(Money(1, limits.AMOUNT_MINOR_MAX), "what a point pays; default: the wallet's worth"),
    },
    RESERVED,
)
PROGRAMME = Record(
    {
        "programme": Key(Text(40), "its name, for people", must=True),
        "currency": Key(_Currency(), "of all receipts", must=True),
        "zone": Key(_Zone(), "its midnight separates days", must=True),
        "anonymous_accounts": Key(Flag(), "whether a receipt with an unknown card opens an account", default=False),
        "max_age": Key(Span({"days": MAX_AGE_DAYS_MAX}), "how old a receipt may be", default=(30, "days")),
        "largest_receipt": Key(Money(1, limits.AMOUNT_MINOR_MAX), "a larger one is refused", default=limits.AMOUNT_MINOR_MAX),
        "total_tolerance": Key(Money(0, 100_000), "how far the lines may be from the total", default=0),
        "unknown_sku": Key(Choice("accept", "no_points"), "what becomes of unknown goods", default="accept"),
        "unknown_store": Key(Choice("accept", "refuse"), "what becomes of unknown stores", default="accept"),
        "earn_on_points_paid": Key(Flag(), "whether the part paid with points earns points", default=False),
        "no_points_on": Key(ConditionKind("goods"), "goods that take no part in points rules"),
        "wallets": Key(ListOf(_WALLET, 1, limits.WALLETS_MAX, "wallets"), "what members collect", must=True),
        "funders": Key(MapOf(Text(64), Whole(1, limits.FUNDERS_MAX), 1000, "funders"), "who else pays: name -> number", default={}),
        "partners": Key(
            MapOf(Text(32), Record({"zone": Key(_Zone(), "its stores' time zone")}), 10_000, "partners"), "partners", default={}
        ),
        "stores": Key(_Either(ListOf(_STORE, 0, STORES_MAX, "stores"), Record({"file": _FILE})), "stores", default=[]),
        "catalogue": Key(
            _Either(ListOf(_ARTICLE, 0, catalogue.ROWS_MAX, "articles"), Record({"file": _FILE, "columns": Key(_COLUMNS, "its columns")})),
            "articles",
            default=[],
        ),
        "categories": Key(
            MapOf(Text(limits.CATEGORY_BYTES_MAX), CategoryPath(), CATEGORY_CODES_MAX, "category codes"),
            "what the tills' category codes stand for",
            default={},
        ),
        "tenders": Key(OneOrMore(Text(32), NAMES_MAX), "names of tenders", default=()),
        "channels": Key(OneOrMore(Text(32), NAMES_MAX), "names of channels", default=()),
        "segments": Key(OneOrMore(Text(32), SEGMENTS_MAX), "names of segments; new ones go to the end", default=()),
        "favourites": Key(_FAVOURITES, "categories that members choose"),
        "tiers": Key(_TIERS, "levels of members"),
        "experiments": Key(MapOf(Text(32), _EXPERIMENT, EXPERIMENTS_MAX, "experiments"), "experiments", default={}),
        "campaigns": Key(MapOf(Text(64), _CAMPAIGN, CAMPAIGNS_MAX, "campaigns"), "budgets over all members", default={}),
        "rules": Key(ListOf(_RULE, 0, limits.RULES_MAX, "rules"), "what gives something", must=True),
        "burn": Key(ListOf(_BURN, 0, BURN_RULES_MAX, "burn rules"), "paying with points", default=[]),
        "limits": Key(velocity.LimitsKind(), "how often and how much is usual, and what happens above it; or a file beside the programme"),
    },
    ("coupons", "stamps", "plans", "actions"),
)


def check_file(path: Path) -> tree.Programme:
    """The programme in a file. ProgramError: it cannot be read, or everything that is wrong with it."""
    try:
        source = Path(path).read_bytes()
    except OSError as error:
        raise ProgramError(f"{path}: cannot be read: {error.strerror}") from None
    return check_source(source, str(path), Path(path).parent)


def check_source(source: bytes, file: str = "<programme>", folder: Path | None = None) -> tree.Programme:
    """The programme in YAML text. folder: where its tables are. ProgramError: everything that is wrong with it."""
    return check_node(syntax.parse_strict(source, file), file, folder)


def check_node(top: MappingNode, file: str, folder: Path | None = None) -> tree.Programme:
    """The programme of a composed node. ProgramError."""
    problems = Problems(file)
    programme = _Programme(Reading(problems), folder).read(top)
    problems.raise_if_any()
    return programme


@dataclass
class _Programme:
    """One programme while it is read, in the order in which its parts need each other."""

    r: Reading
    folder: Path | None

    def read(self, top: MappingNode) -> tree.Programme | None:
        r = self.r
        self.top = top = PROGRAMME.begin(r, top, "")
        PROGRAMME.finish(r, top, ("programme", "currency", "zone"))
        r.currency = top["currency"] or "XXX"
        r.digits = DIGITS.get(r.currency, 2)
        PROGRAMME.finish(
            r,
            top,
            (
                "anonymous_accounts",
                "max_age",
                "largest_receipt",
                "total_tolerance",
                "unknown_sku",
                "unknown_store",
                "earn_on_points_paid",
                "wallets",
                "funders",
                "partners",
            ),
        )
        wallets = self.wallets()
        funders = self.funders()
        r.known |= {"wallet": [wallet.name for wallet in wallets], "funder": funders, "partner": top["partners"]}
        PROGRAMME.finish(r, top, ("stores", "catalogue", "categories", "tenders", "channels", "segments"))
        stores = self.stores()
        articles = self.articles()
        codes = {code: path for code, (path, _) in top["categories"].items()}
        self.known_of(stores, articles, codes)
        PROGRAMME.finish(r, top, ("favourites", "tiers", "experiments", "campaigns", "no_points_on"))
        tiers = self.tiers()
        experiments = self.experiments()
        r.known |= {
            "tier": [level.name for level in tiers.levels] if tiers else (),
            "experiment": {e.name: e for e in experiments},
            "campaign": top["campaigns"],
        }
        PROGRAMME.finish(r, top, ("rules", "burn", "limits"))
        rules = self.rules(wallets, funders)
        campaigns = self.campaigns(wallets, rules)
        burn = tuple(self.burn_rule(got, wallets) for got, _ in top["burn"])
        self.no_two_alike([(got, got["name"]) for got, _ in top["burn"]])
        bounds = velocity.read_limits(r, top.nodes.get("limits"), top["limits"], wallets, self.folder)
        favourites = top["favourites"]
        if r.problems.found:
            return None
        programme = tree.Programme(
            name=top["programme"],
            currency=r.currency,
            currency_digits=r.digits,
            zone=top["zone"],
            anonymous_accounts=top["anonymous_accounts"],
            max_age_days=top["max_age"][0],
            largest_receipt=top["largest_receipt"],
            total_tolerance=top["total_tolerance"],
            unknown_sku=top["unknown_sku"],
            unknown_store=top["unknown_store"],
            earn_on_points_paid=top["earn_on_points_paid"],
            no_points_on=top["no_points_on"],
            wallets=wallets,
            funders=tuple(funders.items()),
            stores=stores,
            articles=articles,
            category_codes=codes,
            tenders=top["tenders"],
            channels=top["channels"],
            segments=top["segments"],
            favourites=favourites["choose_from"] if favourites else (),
            favourites_at_most=favourites["at_most"] if favourites else 0,
            tiers=tiers,
            experiments=experiments,
            campaigns=campaigns,
            rules=rules,
            burn=burn,
            limits=bounds,
        )
        for index, text in firing.impossible(programme):
            r.wrong(top["rules"][index][1], f"rules[{index}]", text)
        for index, text in firing.overflowing(programme):
            r.wrong(top["rules"][index][1], f"rules[{index}]", text)
        for index, text in firing.overlapping(programme):
            level = top["tiers"]["levels"][index][0]
            level.wrong(r, "reach", text)
        for index, text in firing.burn_impossible(programme):
            r.wrong(top["burn"][index][1], f"burn[{index}]", text)
        return programme

    # --- what there is ---------------------------------------------------------------------------------------------------

    def no_two_alike(self, named: list[tuple[Got, str | None]]) -> None:
        first: dict[str, str] = {}
        for got, name in named:
            if name is not None and name in first:
                got.wrong(self.r, "name", f"{name!r} is taken by {first[name]}, must be another name")
            elif name is not None:
                first[name] = got.path

    def points(self, got: Got, key: str, scale: int, low: int, high: int, wallet: str) -> int | None:
        """A number of points, in the wallet's decimals."""
        if got[key] is None:
            return None
        value = read_decimal(scale, low, high)(got[key])
        if value is None:
            got.wrong(
                self.r,
                key,
                f"must be a number of points from {tree.decimal(low, scale)} to {tree.decimal(high, scale)} with at most "
                f"{scale} decimals (the scale of {wallet}), was {got[key]!r}",
            )
        return value

    def wallets(self) -> tuple[tree.Wallet, ...]:
        found = []
        for got, _ in self.top["wallets"] or []:
            worth = 10**self.r.digits if got["worth"] is None else got["worth"]
            floor = self.points(got, "floor", got["scale"], 0, limits.WALLET_POINTS_MAX, got["name"] or "the wallet")
            self.lives_longer(got, got["points_live"], got["available_after"][0])
            found.append(tree.Wallet(got["name"] or "", got["scale"], worth, got["points_live"], got["available_after"][0], floor or 0))
        self.no_two_alike([(got, got["name"]) for got, _ in self.top["wallets"] or []])
        return tuple(found)

    def lives_longer(self, got: Got, life: tree.Life, delay: int) -> None:
        """Points must not be gone before anyone can use them, where that is already known."""
        shortest = life.number * 28 if life.unit == "months" else life.number
        if life.unit in ("days", "months", "inactivity") and not life.end and delay >= shortest:
            got.wrong(
                self.r,
                "available_after" if "available_after" in got else "points_live",
                f"available_after must be shorter than points_live (at least {shortest} days), was {delay} days: "
                "the points would be gone before anyone can use them",
            )

    def funders(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, (number, node) in self.top["funders"].items():
            if number in found.values():
                self.r.wrong(node, f"funders.{name}", f"number {number} is taken by another funder, must be its own")
            found[name] = number
        return found

    def stores(self) -> dict[str, tree.Store]:
        rows = self.top["stores"]
        found: dict[str, tree.Store] = {}
        if isinstance(rows, Got):
            table = self.table(rows, "stores", {key: [key] for key in _STORE.keys}, "store", STORES_MAX)
            for number, *texts in zip(table.numbers, *(one_column(table, key) for key in _STORE.keys), strict=True):
                code, zone, region, partner, groups = (text.strip() for text in texts)
                place = f"{rows['file']}:{number}"
                if zone and zone not in zones.names():
                    rows.wrong(self.r, "file", f"{place}: zone: must be an IANA time zone, was {zone!r}{suggestion(zone, zones.names())}")
                    zone = ""
                if partner and partner not in self.top["partners"]:
                    rows.wrong(self.r, "file", f"{place}: partner: {partner!r} is no partner of this programme")
                    partner = ""
                if not code or code in found or len(code.encode()) > limits.STORE_BYTES_MAX:
                    rows.wrong(
                        self.r,
                        "file",
                        f"{place}: store: must be a code of 1..{limits.STORE_BYTES_MAX} bytes that stands once, was {code!r}",
                    )
                    continue
                found[code] = self.store(code, zone, region, partner, frozenset(groups.split()))
            return found
        for got, _ in rows:
            if got["store"] in found:
                got.wrong(self.r, "store", f"{got['store']!r} stands twice, must stand once")
            elif got["store"]:
                found[got["store"]] = self.store(got["store"], got["zone"], got["region"], got["partner"], frozenset(got["groups"]))
        return found

    def store(self, code: str, zone: str | None, region: str | None, partner: str | None, groups: frozenset[str]) -> tree.Store:
        partners = self.top["partners"]
        partner_zone = partners[partner][0]["zone"] if partner in partners else None
        return tree.Store(code, zone or partner_zone or self.top["zone"] or "UTC", region or None, partner or None, groups)

    def articles(self) -> dict[str, tree.Article]:
        rows = self.top["catalogue"]
        found: dict[str, tree.Article] = {}
        if isinstance(rows, Got):
            columns = {key: list(rows["columns"][key]) if rows["columns"] else [key] for key in _ARTICLE.keys}
            table = self.table(rows, "catalogue", columns, "sku", catalogue.ROWS_MAX)
            # Thousands of articles have the same category, brand and flags: each text is read once, and is one object from here on.
            categories, brands, flags = cache(category_of), cache(lambda text: text.strip() or None), cache(flags_of)
            columns_of = (table.numbers, map(str.strip, one_column(table, "sku")), rows_of(table, "category"), one_column(table, "brand"),
                          rows_of(table, "flags"))
            for number, sku, path, brand, marks in zip(*columns_of, strict=True):
                if not sku or sku in found or len(sku.encode()) > limits.SKU_BYTES_MAX:
                    rows.wrong(
                        self.r,
                        "file",
                        f"{rows['file']}:{number}: sku: must be a code of 1..{limits.SKU_BYTES_MAX} bytes that stands once, was {sku!r}",
                    )
                    return found  # a table that is wrong is wrong in most of its rows
                found[sku] = tree.Article(sku, categories(path), brands(brand), flags(marks))
            return found
        for got, _ in rows:
            if got["sku"] in found:
                got.wrong(self.r, "sku", f"{got['sku']!r} stands twice, must stand once")
            elif got["sku"]:
                found[got["sku"]] = tree.Article(got["sku"], got["category"], got["brand"], frozenset(got["flags"]))
        return found

    def table(self, got: Got, what: str, columns: dict[str, list[str]], must: str, rows_max: int) -> catalogue.Table:
        """The rows of a file beside the programme; none where it cannot be read."""
        none = catalogue.Table((), {})
        if self.folder is None or not got["file"]:
            if got["file"]:
                got.wrong(self.r, "file", "a file can only be read where the programme itself is a file")
            return none
        try:
            table = catalogue.read_table(self.folder / got["file"], columns, must, rows_max)
        except catalogue.TableError as error:
            got.wrong(self.r, "file", str(error))
            return none
        if len(table.numbers) > rows_max:
            got.wrong(self.r, "file", f"has too many rows, at most {rows_max} {what} are possible")
            return none
        return table

    def known_of(self, stores: dict[str, tree.Store], articles: dict[str, tree.Article], codes: dict[str, str]) -> None:
        categories: set[str] = set()
        for path in {article.category for article in articles.values() if article.category} | set(codes.values()):
            steps = path.split("/")
            categories |= {"/".join(steps[:i]) for i in range(1, len(steps) + 1)}
        self.r.known |= {
            "sku": articles or None,
            "category": categories,
            "brand": {a.brand for a in articles.values() if a.brand},
            "flag": {flag for a in articles.values() for flag in a.flags},
            "store": stores or None,
            "store_group": {group for s in stores.values() for group in s.groups},
            "region": {s.region for s in stores.values() if s.region},
            "tender": self.top["tenders"],
            "channel": self.top["channels"],
            "segment": self.top["segments"],
        }

    def tiers(self) -> tree.Tiers | None:
        got = self.top["tiers"]
        if got is None:
            return None
        levels = []
        for i, (level, _) in enumerate(got["levels"] or []):
            if (i == 0) == ("reach" in level):
                level.wrong(self.r, "reach", "must not be set: everybody has the lowest level" if i == 0 else "is missing, must be set")
            levels.append(tree.Level(level["name"] or "", level["reach"]))
        self.no_two_alike([(level, level["name"]) for level, _ in got["levels"] or []])
        return tree.Tiers(tuple(levels), got["downgrade"].replace(" ", "_"), got["grace"])

    def experiments(self) -> tuple[tree.Experiment, ...]:
        found = []
        for name, (got, _) in self.top["experiments"].items():
            variants = tuple((variant, share) for variant, (share, _) in (got["variants"] or {}).items())
            if variants and sum(share for _, share in variants) != 10_000:
                got.wrong(self.r, "variants", f"must sum to 100 percent, sum to {tree.decimal(sum(s for _, s in variants), 2)}")
            if got["control"] and variants and got["control"] not in dict(variants):
                got.wrong(self.r, "control", f"must be one of {', '.join(dict(variants))}, was {got['control']!r}")
            found.append(tree.Experiment(name, variants, got["control"] or ""))
        return tuple(found)

    # --- rules -----------------------------------------------------------------------------------------------------------

    def rules(self, wallets: tuple[tree.Wallet, ...], funders: dict[str, int]) -> tuple[tree.Rule, ...]:
        rows = [got for got, _ in self.top["rules"] or []]
        self.no_two_alike([(got, got["name"]) for got in rows])
        index_of = {got["name"]: i for i, got in enumerate(rows)}
        rules = [self.rule(i, got, wallets, funders, rows, index_of) for i, got in enumerate(rows)]
        self.contradictions(rows, rules)
        return tuple(rule for rule in rules if rule is not None)

    def rule(
        self, index: int, got: Got, wallets: tuple[tree.Wallet, ...], funders: dict[str, int], rows: list[Got], index_of: dict[str, int]
    ) -> tree.Rule | None:
        r = self.r
        effects = [key for key in EFFECTS if key in got]
        if len(effects) != 1:
            had = f", has {' and '.join(effects)}" if effects else ", has none"
            if effects or not got.unknown:  # an unknown key may have been meant for it
                got.wrong(r, "", f"must have one of {', '.join(EFFECTS)}{had}")
            return None
        effect_key = effects[0]
        for key, of in (
            ("for_every_full", ("give",)),
            ("for_every_full_quantity", ("give",)),
            ("to_rules", ("add_percent",)),
            ("of_rules", ("times",)),
            ("round", ("percent", "times", "discount_percent")),
            ("per", ("give", "percent", "times", "discount_percent", "discount")),
            ("to_wallet", ("give", "percent", "times")),
            ("funder", ("give", "percent", "add_percent", "times")),
            ("points_live", ("give", "percent", "add_percent", "times")),
            ("available_after", ("give", "percent", "add_percent", "times")),
            ("earn_on_points_paid", ("give", "percent")),
            ("group", EFFECTS[:-1]),
            ("exclusive", EFFECTS[:-1]),
            ("priority", EFFECTS[:-1]),
        ):
            if key in got and effect_key not in of:
                got.wrong(r, key, f"has no meaning with {effect_key}, must not be set")
        wallet = [w.name for w in wallets].index(got["to_wallet"]) if got["to_wallet"] else 0
        targets: tuple[int, ...] = ()
        if effect_key in ("add_percent", "times"):
            targets = self.targets(got, effect_key, rows, index_of, wallets)
            if targets is None:
                return None
            if effect_key == "add_percent":
                name = rows[targets[0]]["to_wallet"]
                wallet = [w.name for w in wallets].index(name) if name else 0
        if not wallets:
            return None
        effect = self.effect(got, effect_key, wallets[wallet], targets)
        if effect is None:
            return None
        life = got["points_live"] or wallets[wallet].life
        delay = got["available_after"][0] if got["available_after"] else wallets[wallet].available_after
        if "points_live" in got or "available_after" in got:
            self.lives_longer(got, life, delay)
        if got["priority"] is None and (got["exclusive"] or got["group"]):
            got.wrong(r, "priority", f"is missing, must be set with {'exclusive' if got['exclusive'] else 'group'}")
        if "priority" in got and not got["exclusive"] and not got["group"]:
            got.wrong(r, "priority", "has no meaning without `group` or `exclusive`, must not be set")
        paid = self.top["earn_on_points_paid"] if got["earn_on_points_paid"] is None else got["earn_on_points_paid"]
        return tree.Rule(
            index=index,
            name=got["name"] or "",
            when=got["when"],
            lines=got["lines"],
            effect=effect,
            per=got["per"],
            round=got["round"],
            wallet=wallet,
            funder=funders.get(got["funder"], 0),
            life=life,
            available_after=delay,
            earn_on_points_paid=paid,
            caps=self.caps(got, effect_key, wallets[wallet]),
            campaign=got["campaign"],
            exclusive=got["exclusive"],
            group=got["group"],
            priority=got["priority"] or 0,
        )

    def effect(self, got: Got, key: str, wallet: tree.Wallet, targets: tuple[int, ...]) -> Any:
        if got[key] is None:
            return None
        if key == "percent":
            return tree.Percent(got[key])
        if key == "add_percent":
            return tree.AddPercent(got[key], targets)
        if key == "times":
            return tree.Times(got[key] - 10_000, targets)
        if key == "discount_percent":
            return tree.DiscountPercent(got[key])
        if key == "discount":
            return tree.Discount(got[key])
        if key == "entitle":
            return tree.Entitle(got[key])
        give = self.points(got, "give", wallet.scale, 1, limits.POINTS_PER_STEP_MAX, wallet.name)
        if "for_every_full" in got and "for_every_full_quantity" in got:
            got.wrong(self.r, "for_every_full_quantity", "must not stand beside for_every_full")
            return None
        if give is None:
            return None
        if "for_every_full" in got:
            return tree.Steps(got["for_every_full"], give, "amount") if got["for_every_full"] else None
        if "for_every_full_quantity" in got:
            return tree.Steps(got["for_every_full_quantity"], give, "quantity") if got["for_every_full_quantity"] else None
        return tree.Fixed(give)

    def targets(
        self, got: Got, effect: str, rows: list[Got], index_of: dict[str, int], wallets: tuple[tree.Wallet, ...]
    ) -> tuple[int, ...] | None:
        key, fitting = ("to_rules", ("percent",)) if effect == "add_percent" else ("of_rules", ("give", "percent", "add_percent"))
        if key not in got:
            got.wrong(self.r, key, f"is missing, must be set with {effect}")
            return None
        if got[key] is None:
            return None
        first = wallets[0].name if wallets else ""

        def wallet_of(row: Got) -> str:
            named = row["to_rules"] if "add_percent" in row else None
            if named and named[0] in index_of and "add_percent" not in rows[index_of[named[0]]]:
                return wallet_of(rows[index_of[named[0]]])
            return row["to_wallet"] or first

        wallet = got["to_wallet"] or first
        if effect == "times" and got[key] == ("all",):
            return tuple(i for i, row in enumerate(rows) if any(k in row for k in fitting) and wallet_of(row) == wallet)
        found = []
        for name in got[key]:
            target = rows[index_of[name]] if name in index_of else None
            if target is None:
                got.wrong(self.r, key, f"{name!r} is no rule of this programme{suggestion(name, index_of)}")
            elif not any(k in target for k in fitting):
                got.wrong(self.r, key, f"{name!r} is no rule with {' or '.join(fitting)}")
            elif effect == "times" and wallet_of(target) != wallet:
                got.wrong(self.r, key, f"{name!r} gives to wallet {wallet_of(target)}, this rule multiplies points of {wallet}")
            elif effect == "add_percent" and found and wallet_of(target) != wallet_of(rows[found[0]]):
                got.wrong(self.r, key, f"{name!r} gives to another wallet than {rows[found[0]]['name']!r}")
            else:
                found.append(index_of[name])
        return tuple(sorted(found)) if len(found) == len(got[key]) else None

    def caps(self, rule: Got, effect: str, wallet: tree.Wallet) -> tuple[tree.Cap, ...]:
        found: list[tree.Cap] = []
        fitting = "amount" if effect in ("discount", "discount_percent") else "points"
        for got, _ in rule["caps"]:
            measures = [key for key in ("points", "amount", "uses") if key in got]
            if len(measures) != 1:
                got.wrong(self.r, "", "must have one of points, amount, uses")
                continue
            measure, per = measures[0], got["per"]
            if measure != "uses" and (measure != fitting or effect == "entitle"):
                got.wrong(
                    self.r, measure, f"has no meaning with {effect}, must be {'uses' if effect == 'entitle' else f'{fitting} or uses'}"
                )
                continue
            limit = (
                self.points(got, "points", wallet.scale, 1, limits.WALLET_POINTS_MAX, wallet.name) if measure == "points" else got[measure]
            )
            if limit is None or per is None:
                continue
            if measure == "uses" and per == "receipt":
                got.wrong(self.r, "per", "must not be receipt for uses: a receipt uses a rule once")
            if per == "birthday" and not any(isinstance(part, tree.Birthday) for part in _conjuncts(rule["when"])):
                got.wrong(self.r, "per", "birthday has a meaning only where `when` has `birthday`")
            if any((cap.per, cap.measure) == (per, measure) for cap in found):
                got.wrong(self.r, "", f"{measure} per {per} stands twice, must stand once")
            found.append(tree.Cap(per, measure, limit))
        return tuple(sorted(found, key=lambda cap: (cap.measure == "uses", tree.PER.index(cap.per))))

    def contradictions(self, rows: list[Got], rules: list[tree.Rule | None]) -> None:
        taken: dict[tuple, str] = {}
        for got, rule in zip(rows, rules, strict=True):
            if rule is None or not rule.priority:
                continue
            keys = [(rule.kind, "exclusive", rule.priority)] if rule.exclusive else []
            keys += [(rule.kind, "group", rule.group, rule.priority)] if rule.group else []
            for key in keys:
                if key in taken:
                    what = "both are exclusive" if key[1] == "exclusive" else f"both are in group {rule.group!r}"
                    got.wrong(self.r, "priority", f"contradicts {taken[key]!r}: {what} and have priority {rule.priority}, must differ")
                taken[key] = rule.name

    def campaigns(self, wallets: tuple[tree.Wallet, ...], rules: tuple[tree.Rule, ...]) -> tuple[tree.Campaign, ...]:
        found = []
        for name, (got, _) in self.top["campaigns"].items():
            users = [rule for rule in rules if rule.campaign == name]
            used = {rule.wallet for rule in users if rule.kind in ("points", "add_percent", "times")}
            if "points" in got and "amount" in got:
                got.wrong(self.r, "amount", "must not stand beside points")
            if not any(key in got for key in ("points", "amount", "uses")):
                got.wrong(self.r, "", "must have points, amount or uses")
            if "points" in got and (len(used) > 1 or any(rule.kind.startswith(("discount", "entitle")) for rule in users)):
                got.wrong(self.r, "points", "its rules must all give points of one wallet")
            if "amount" in got and any(not rule.kind.startswith("discount") for rule in users):
                got.wrong(self.r, "amount", "its rules must all be discounts")
            wallet = wallets[min(used)] if used and wallets else (wallets[0] if wallets else None)
            points = self.points(got, "points", wallet.scale, 0, limits.WALLET_POINTS_MAX, wallet.name) if wallet else None
            measure = "points" if "points" in got else "amount" if "amount" in got else ""
            found.append(tree.Campaign(name, measure, points if measure == "points" else got["amount"], got["uses"]))
        return tuple(found)

    def burn_rule(self, got: Got, wallets: tuple[tree.Wallet, ...]) -> tree.BurnRule | None:
        if not wallets:
            return None
        index = [w.name for w in wallets].index(got["wallet"]) if got["wallet"] else 0
        wallet = wallets[index]
        low, high, step = (
            self.points(got, key, wallet.scale, 0 if key == "min" else 1, limits.POINTS_MAX, wallet.name) for key in ("min", "max", "step")
        )
        pays = got["one_point_pays"] or wallet.worth
        whole = 10**wallet.scale
        step = 1 if step is None else step
        if step * pays % whole:
            least = whole // math.gcd(pays, whole)
            got.wrong(
                self.r,
                "step",
                f"steps of {tree.decimal(step, wallet.scale)} points would pay fractions of the smallest coin, must be a multiple of "
                f"{tree.decimal(least, wallet.scale)}",
            )
        if high is not None and high < max(low or 0, step):
            got.wrong(self.r, "max", "must not be below `min` and `step`: nothing could ever be paid")
        return tree.BurnRule(
            got["name"] or "",
            got["when"],
            index,
            got["share"],
            got["not_for"],
            low or 0,
            high,
            step,
            got["money_at_least"],
            got["money_at_least_per_line"],
            pays,
        )


def one_column(table: catalogue.Table, key: str) -> Sequence[str]:
    """The first column of a key, or empty texts."""
    return table.columns[key][0] if key in table.columns else [""] * len(table.numbers)


def rows_of(table: catalogue.Table, key: str) -> Iterable[tuple[str, ...]]:
    """Of each row the texts of a key's columns."""
    return zip(*table.columns[key], strict=True) if key in table.columns else repeat((), len(table.numbers))


def flags_of(parts: tuple[str, ...]) -> frozenset[str]:
    """The flags that the columns of a row name."""
    return frozenset(flag for part in parts for flag in part.split())


def category_of(parts: tuple[str, ...]) -> str | None:
    """The path that the columns of a row make."""
    return "/".join(step for part in parts for step in (s.strip() for s in part.split("/")) if step) or None


def _conjuncts(condition: object) -> list:
    """What must hold anyway."""
    return [atom for part in condition.parts for atom in _conjuncts(part)] if isinstance(condition, tree.All) else [condition]
