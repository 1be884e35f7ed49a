"""A checked programme to its image of version 2: flat bytes that the service evaluates in place.

Not for checking (`check.py`) nor for what rules mean (`reference.py`); the records are in `image2.py`, the contract is
docs/decisions/rule-image.md. Called by whoever compiles a programme. The same programme and zone data give the same
bytes: nothing here follows the order of a set or a hash of Python.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from ledger import limits
from ledger.rules import image2, tree, zones
from ledger.rules.image2 import (
    BURN,
    CAMPAIGN,
    CAP,
    COUNTER_MIN,
    DOWNGRADES,
    ENTITLEMENTS_MAX,
    EXPERIMENT,
    FUNDER,
    HASHED_FROM,
    HEADER,
    I64,
    IMAGE_BYTES_MAX,
    LIFE_ENDS,
    LIFE_UNITS,
    MAGIC,
    NAME,
    NAMED_ONLY,
    OPEN_HIGH,
    OPEN_LOW,
    PERS,
    PLACE,
    RECORDS,
    ROLLING_FROM,
    ROLLING_MAX,
    ROUNDS,
    RULE,
    RULE_NAME,
    STORE_CLASS,
    TABLE_ROW,
    TEXT,
    THRESHOLD,
    TIER,
    U16,
    U32,
    U64,
    VARIANT,
    VERSION,
    WALLET,
    WINDOWS,
    ZONE,
    ZONE_SPAN,
    Form,
    HeaderFlag,
    Kind,
    RuleFlag,
    RuleKind,
    fnv1a,
    words_of,
)
from ledger.rules.lower_articles import POINTS_KINDS, Classes
from ledger.rules.lower_conditions import LimitExceeded, Programs, conjuncts
from ledger.rules.lower_dimensions import Dimensions, MaySets, own_lines, set_bits
from ledger.rules.lower_velocity import lower_limits

PPM = 1_000_000
TIMES = 10_000
KINDS = {"discount_line": RuleKind.DISCOUNT_LINE, "discount_receipt": RuleKind.DISCOUNT_RECEIPT, "points": RuleKind.POINTS,
         "add_percent": RuleKind.ADD_PERCENT, "times": RuleKind.TIMES, "entitle": RuleKind.ENTITLE}


def lower_programme(programme: tree.Programme) -> bytes:
    """The image of a checked programme. LimitExceeded (a ValueError): no image can hold it."""
    return _Lowering(programme).image()


class _Lowering:
    """One programme on its way: `sections` fills up, `image` puts them together."""

    def __init__(self, programme: tree.Programme):
        self.programme = programme
        self.programs = Programs()
        self.sections: dict[Kind, np.ndarray] = {}
        of_rules = [atom for rule in programme.rules for condition in (rule.when, rule.lines) for atom in tree.atoms(condition)]
        self.dimensions = Dimensions(programme, [*of_rules, *(atom for rule in programme.burn for atom in tree.atoms(rule.when))], of_rules)
        self.may = MaySets(self.dimensions, programme.rules)
        self.classes = Classes(programme, self.dimensions, self.programs)
        self.entitlements = list(dict.fromkeys(rule.effect.name for rule in programme.rules if isinstance(rule.effect, tree.Entitle)))

    def image(self) -> bytes:
        """All sections, then the bytes."""
        self.wallets()
        self.rules()
        self.campaigns()
        self.goods()
        self.stores()
        self.experiments()
        self.tiers()
        self.burn()
        self.names()
        sections = self.sections
        if self.programme.limits:  # an image without them is what it was before there were limits
            sections[Kind.VELOCITY], sections[Kind.LIMITS] = lower_limits(self.programme)
        sections[Kind.MAY], sections[Kind.MAY_INDEX] = self.may.bits(), self.may.index
        sections[Kind.MINUTE_CUTS] = self.dimensions.minute_cuts.astype(U32)
        sections[Kind.DATE_CUTS] = self.dimensions.date_cuts.astype(I64)
        sections[Kind.ATOMS] = self.programs.atoms()
        sections[Kind.PROGRAMS], sections[Kind.NUMBERS] = self.programs.arrays()
        return self.assembled()

    # --- rules -----------------------------------------------------------------------------------------------------------

    def wallets(self) -> None:
        self.sections[Kind.WALLETS] = np.array([
            (wallet.name.encode(), wallet.scale, wallet.life.number if wallet.life.unit == "inactivity" else 0, 0, wallet.floor)
            for wallet in self.programme.wallets], WALLET)

    def rules(self) -> None:
        rules = self.programme.rules
        groups = {name: i for i, name in enumerate(sorted({rule.group for rule in rules if rule.group is not None}), start=1)}
        campaign_of = {campaign.name: i for i, campaign in enumerate(self.programme.campaigns, start=1)}
        rows, caps = np.zeros(len(rules), RULE), []
        targets: list[int] = []
        target_lists: dict[tuple[int, ...], int] = {}
        wide = self.wide()
        for rule, row in zip(rules, rows, strict=True):
            row["key"] = key_of(rule.name.encode())
            row["a"], row["b"], row["form"] = self.amounts(rule)
            row["rate_factor"], row["rate_divisor"] = self.rate(rule)
            self.conditions(rule, row)
            if rule.caps:
                row["first_cap"], row["cap_count"] = len(caps), len(rule.caps)
                caps += [self.cap(rule, cap) for cap in rule.caps]
            if of := getattr(rule.effect, "targets", ()):
                if of not in target_lists:
                    target_lists[of] = len(targets)
                    targets += of
                row["first_target"], row["target_count"] = target_lists[of], len(of)
            row["until_day"] = rule.life.number if rule.life.unit == "until" else 0
            row["life_number"] = rule.life.number if rule.life.unit in ("days", "months") else 0
            row["life_unit"], row["life_end"] = LIFE_UNITS.index(rule.life.unit), LIFE_ENDS.index(rule.life.end)
            row["campaign"] = campaign_of[rule.campaign] if rule.campaign is not None else 0
            row["group"] = groups[rule.group] if rule.group is not None else 0
            row["wallet"], row["funder"] = rule.wallet, rule.funder
            row["available_after"], row["priority"] = rule.available_after, rule.priority
            row["kind"], row["per"], row["round"] = KINDS[rule.kind], rule.per == "line", ROUNDS.index(rule.round)
            row["flags"] = (RuleFlag.EXCLUSIVE * rule.exclusive | RuleFlag.EARNS_ON_POINTS_PAID * rule.earn_on_points_paid
                            | RuleFlag.WIDE * wide[rule.index] | RuleFlag.ALL_LINES * self.classes.all_lines[rule.index])
        self.no_two_alike([(f"rules[{rule.index}].name", rule.name, int(row["key"])) for rule, row in zip(rules, rows, strict=True)])
        self.no_two_alike([(f"rules[{rule.index}].name", rule.name, int(caps[int(row["first_cap"]) + i][1]))
                           for rule, row in zip(rules, rows, strict=True) for i in range(len(rule.caps))], COUNTER_MIN)
        self.sections[Kind.RULES] = rows
        self.sections[Kind.RULE_NAMES] = np.array([(rule.name.encode(),) for rule in rules], RULE_NAME)
        self.sections[Kind.CAPS] = np.array(caps, CAP)
        self.sections[Kind.TARGETS] = np.array(targets, U16)
        late = (rows["late_program"] != 0) | (rows["lines_total_from"] != OPEN_LOW) | (rows["lines_total_to"] != OPEN_HIGH) \
            | (rows["lines_quantity_from"] != OPEN_LOW) | (rows["lines_quantity_to"] != OPEN_HIGH)
        self.sections[Kind.RULE_SETS] = np.stack([
            set_bits(lambda rule: self.classes.all_lines[rule.index], rules),
            set_bits(lambda rule: rule.exclusive or rule.group is not None, rules),
            set_bits(lambda rule: rows["when_program"][rule.index] != 0, rules),
            set_bits(lambda rule: late[rule.index], rules),
            set_bits(lambda rule: rows["lines_program"][rule.index] != 0, rules),
            set_bits(lambda rule: bool(rule.caps) or rule.campaign is not None, rules),
            *(set_bits(lambda rule, kind=kind: rule.kind == kind, rules) for kind in KINDS),
        ])

    def amounts(self, rule: tree.Rule) -> tuple[int, int, Form]:
        """Step, what is given, and in which form."""
        match rule.effect:
            case tree.Steps(step, give, of):
                return step, give, Form.STEP if of == "amount" else Form.QUANTITY_STEP
            case tree.Fixed(give) | tree.Discount(give):
                return 0, give, Form.FIXED
            case tree.Percent(ppm) | tree.AddPercent(ppm) | tree.DiscountPercent(ppm):
                return 0, ppm, Form.PERCENT
            case tree.Times(more):
                return 0, more, Form.TIMES
        return 0, self.entitlements.index(rule.effect.name), Form.NOTHING

    def rate(self, rule: tree.Rule) -> tuple[int, int]:
        """What `b * base` is multiplied with and divided by."""
        if isinstance(rule.effect, (tree.Percent, tree.AddPercent)):
            wallet = self.programme.wallets[rule.wallet]
            factor, divisor = 10**wallet.scale, PPM * wallet.worth
            common = math.gcd(factor, divisor)
            return factor // common, divisor // common
        if isinstance(rule.effect, tree.DiscountPercent):
            return 1, PPM
        return (1, TIMES) if isinstance(rule.effect, tree.Times) else (1, 1)

    def wide(self) -> list[bool]:
        """Of each rule, whether its exact amount may not fit into 64 bits on the way."""
        rules = self.programme.rules
        money = self.programme.largest_receipt + self.programme.total_tolerance
        ppm = {rule.index: rule.effect.ppm for rule in rules if isinstance(rule.effect, tree.Percent)}
        for rule in rules:
            if isinstance(rule.effect, tree.AddPercent):
                for target in rule.effect.targets:
                    ppm[target] += rule.effect.ppm
        found = []
        for rule in rules:
            factor, divisor = self.rate(rule)
            match rule.effect:
                case tree.Percent():
                    most = ppm[rule.index] * money
                case tree.AddPercent(_, targets):
                    most = max(ppm[target] for target in targets) * money
                case tree.Times(more, targets):
                    most = more * len(targets) * limits.POINTS_MAX
                case tree.DiscountPercent(part):
                    most = part * money
                case _:
                    most = 0
            found.append(2 * (most * factor + divisor) >= 2**63)  # twice: rounding half up compares doubles
        return found

    def conditions(self, rule: tree.Rule, row: np.void) -> None:
        """Bounds and programs of what may-sets and classes leave open."""
        row["lines_total_from"], row["lines_quantity_from"] = OPEN_LOW, OPEN_LOW
        row["lines_total_to"], row["lines_quantity_to"] = OPEN_HIGH, OPEN_HIGH
        early, late = [], []
        for i, part in enumerate(conjuncts(rule.when)):
            if own_lines(part):
                if part.low is not None:
                    row[f"{part.kind}_from"] = max(int(row[f"{part.kind}_from"]), part.low)
                if part.high is not None:
                    row[f"{part.kind}_to"] = min(int(row[f"{part.kind}_to"]), part.high)
            elif any(map(own_lines, tree.atoms(part))):
                late.append(part)
            elif i not in self.may.decided[rule.index]:
                early.append(part)
        for name, parts in (("when_program", early), ("late_program", late)):
            row[name] = self.program(tree.All(tuple(parts)), f"rules[{rule.index}].when")
        row["lines_program"] = self.classes.lines_programs[rule.index]

    def program(self, condition: object, what: str) -> int:
        return self.programs.program(condition, lambda atom: self.dimensions.number(self.programs, atom), what)

    def cap(self, rule: tree.Rule, cap: tree.Cap) -> tuple:
        counter = key_of(b"\0".join((rule.name.encode(), cap.per.encode(), cap.measure.encode())))
        birthdays = [atom for atom in tree.atoms(rule.when) if isinstance(atom, tree.Birthday)] if cap.per == "birthday" else []
        atoms = self.programs.numbered(self.dimensions.number(self.programs, atom) for atom in birthdays)
        return cap.limit, counter, *atoms, PERS.index(cap.per), cap.measure == "uses", 0

    def campaigns(self) -> None:
        flag_of = {"points": image2.CAMPAIGN_POINTS, "amount": image2.CAMPAIGN_AMOUNT, "": 0}
        rows = []
        for campaign in self.programme.campaigns:
            users = [rule for rule in self.programme.rules if rule.campaign == campaign.name and rule.kind in POINTS_KINDS]
            rows.append((
                OPEN_HIGH if campaign.limit is None else campaign.limit, OPEN_HIGH if campaign.uses is None else campaign.uses,
                key_of(campaign.name.encode()), min((rule.wallet for rule in users), default=0) if campaign.measure == "points" else 0,
                flag_of[campaign.measure] | (image2.CAMPAIGN_USES if campaign.uses is not None else 0), campaign.name.encode()))
        self.no_two_alike([(f"campaigns.{name[5].decode()}", name[5].decode(), name[2]) for name in rows])
        self.sections[Kind.CAMPAIGNS] = np.array(rows, CAMPAIGN)

    def no_two_alike(self, keys: list[tuple[str, str, int]], least: int = 0) -> None:
        """Keys are hashes of names: two that are alike need another name. (place, name, key)."""
        names: dict[int, str] = {}
        for place, name, key in keys:
            if key in names or key < least:
                other = f" and that of {names[key]!r}" if key in names else ""
                raise LimitExceeded(f"{place}: the short hash of {name!r}{other} cannot be told apart, must be another name")
            names[key] = name

    # --- goods, places, members ------------------------------------------------------------------------------------------

    def goods(self) -> None:
        classes, goods = self.classes, self.classes.goods
        named = [(sku, i, NAMED_ONLY) for i, sku in enumerate(goods.named_only, start=1)]
        articles = [(sku, number, 0) for sku, number in zip(goods.skus, classes.class_of_article.tolist(), strict=True)]
        self.table(Kind.ARTICLES, named or articles)
        self.table(Kind.CATEGORY_CODES, [(code, goods.code_columns[code], 0) for code in goods.codes])
        self.sections[Kind.CLASSES], self.sections[Kind.CLASS_RULES] = classes.rows, classes.rules
        self.sections[Kind.CLASS_BITS], self.sections[Kind.UNKNOWN_CLASSES] = classes.bits, classes.unknown_classes

    def stores(self) -> None:
        places = self.dimensions.places
        self.table(Kind.STORES, [(code, number, 0) for code, number in zip(places.codes, places.class_of[1:].tolist(), strict=True)])
        rows = np.zeros(len(places.zone_of_class), STORE_CLASS)
        rows["zone"], rows["region"] = places.zone_of_class, places.region_of_class
        self.sections[Kind.STORE_CLASSES] = rows
        zone_rows, spans = [], []
        for zone in places.zones:
            of_zone = zones.spans(zone)
            zone_rows.append((zone.encode(), len(spans), len(of_zone)))
            spans += of_zone
        self.sections[Kind.ZONES] = np.array(zone_rows, ZONE)
        self.sections[Kind.ZONE_SPANS] = np.array([tuple(span) for span in spans], ZONE_SPAN)

    def table(self, kind: Kind, rows: list[tuple[str, int, int]]) -> None:
        """A table found by name: (name, value, flags) in any order."""
        rows = sorted(rows)
        names = [name.encode() for name, _, _ in rows]
        found = np.zeros(len(rows), TABLE_ROW)
        found["name"], found["size"] = names, [len(name) for name in names]
        found["value"], found["flags"] = [value for _, value, _ in rows], [flags for _, _, flags in rows]
        hashes = hashes_of(found)
        order = np.argsort(hashes, kind="stable")
        bits = max(1, (max(1, (len(rows) + 1) // 2) - 1).bit_length())
        buckets = np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits)
        starts = np.searchsorted(hashes[order], buckets)
        self.sections[kind] = found[order]
        self.sections[image2.STARTS[kind]] = np.append(starts, len(rows)).astype(U32)

    def experiments(self) -> None:
        rows, variants = [], []
        for experiment in self.programme.experiments:
            names = [name for name, _ in experiment.variants]
            name = experiment.name.encode()
            rows.append((name, fnv1a(name), len(variants), len(names), names.index(experiment.control)))
            edge = 0
            for name, share in experiment.variants:
                edge += share
                variants.append((name.encode(), edge, 0))
        self.sections[Kind.EXPERIMENTS], self.sections[Kind.VARIANTS] = np.array(rows, EXPERIMENT), np.array(variants, VARIANT)

    def tiers(self) -> None:
        tiers = self.programme.tiers
        levels = tiers.levels if tiers else ()
        rolling = [window.days for window in tiers.windows if window.kind == "rolling"] if tiers else []
        if len(rolling) > ROLLING_MAX:
            raise LimitExceeded(f"tiers: must have at most {ROLLING_MAX} different lengths of rolling windows, have {len(rolling)}")
        rows, thresholds = np.zeros(len(levels), TIER), []
        for i, (level, row) in enumerate(zip(levels, rows, strict=True)):
            own = tree.thresholds(level.reach)
            row["name"], row["first"], row["count"] = level.name.encode(), len(thresholds), len(own)
            first = {threshold: len(thresholds) + place for place, threshold in reversed(list(enumerate(own)))}
            if level.reach is not None:
                row["program"] = self.programs.program(level.reach, first.__getitem__, f"tiers.levels[{i}].reach")
            for threshold in own:
                kind, days = threshold.window.kind, threshold.window.days
                window = ROLLING_FROM + rolling.index(days) if kind == "rolling" else WINDOWS[kind]
                thresholds.append((threshold.at_least, window, threshold.measure == "spent", 0))
        packed = np.zeros(len(thresholds), THRESHOLD)
        for row, (at_least, window, measure, _) in zip(packed, thresholds, strict=True):
            row["at_least"], row["window"], row["measure"] = at_least, window, measure
        self.sections[Kind.TIERS], self.sections[Kind.THRESHOLDS], self.sections[Kind.ROLLING] = rows, packed, np.array(rolling, U16)

    def burn(self) -> None:
        rows = []
        for i, rule in enumerate(self.programme.burn):
            scale = 10**self.programme.wallets[rule.wallet].scale
            common = math.gcd(rule.pays, scale)
            rows.append((rule.name.encode(), rule.min, OPEN_HIGH if rule.max is None else rule.max, rule.step, rule.money_at_least,
                         rule.money_at_least_per_line, rule.pays // common, scale // common, rule.share,
                         self.program(rule.when, f"burn[{i}].when"), self.classes.not_for_programs[i], rule.wallet, 0))
        self.sections[Kind.BURN] = np.array(rows, BURN)

    def names(self) -> None:
        programme = self.programme
        if len(self.entitlements) > ENTITLEMENTS_MAX:
            raise LimitExceeded(f"rules: must have at most {ENTITLEMENTS_MAX} different entitlements, have {len(self.entitlements)}")
        for kind, names in ((Kind.TENDERS, programme.tenders), (Kind.SEGMENTS, programme.segments), (Kind.CHANNELS, programme.channels),
                            (Kind.ENTITLEMENTS, self.entitlements)):
            self.sections[kind] = np.array([(name.encode(),) for name in names], NAME)
        self.table(Kind.PROMO_CODES, [(code, i, 0) for i, code in enumerate(self.dimensions.promo_codes)])
        texts, places = b"", []
        for category in programme.favourites:
            places.append((len(texts), len(category.encode())))
            texts += category.encode()
        self.sections[Kind.FAVOURITES], self.sections[Kind.TEXTS] = np.array(places, TEXT), np.frombuffer(texts, np.uint8)
        funders = np.zeros(len(programme.funders), FUNDER)
        for row, (number, name) in zip(funders, sorted((number, name) for name, number in programme.funders), strict=True):
            row["name"], row["number"] = name.encode(), number
        self.sections[Kind.FUNDERS] = funders

    # --- bytes -----------------------------------------------------------------------------------------------------------

    def header(self) -> np.ndarray:
        programme = self.programme
        header = np.zeros((), HEADER)
        header["magic"], header["version"], header["max_age_us"] = MAGIC, VERSION, programme.max_age_days * zones.DAY_US
        header["flags"] = (
            HeaderFlag.OPENS_ANONYMOUS * programme.anonymous_accounts
            | HeaderFlag.REFUSE_UNKNOWN_STORES * (programme.unknown_store == "refuse")
            | HeaderFlag.UNKNOWN_SKUS_EARN_NOTHING * (programme.unknown_sku == "no_points" and bool(programme.articles))
            | HeaderFlag.CATALOGUE * bool(programme.articles) | HeaderFlag.STORES * bool(programme.stores))
        header["currency"], header["zone"], header["name"] = programme.currency.encode(), programme.zone.encode(), programme.name.encode()
        header["tzdata"], header["rule_count"] = zones.release().encode(), len(programme.rules)
        header["largest_receipt"], header["total_tolerance"] = programme.largest_receipt, programme.total_tolerance
        header["catalogue"] = catalogue_hash(programme)
        header["section_table"], header["section_count"] = HEADER.itemsize, len(self.sections)
        header["unknown_columns"], header["no_points_program"] = self.classes.goods.columns, self.classes.no_points_program
        header["class_words"], header["favourites_at_most"] = self.classes.words, programme.favourites_at_most
        if programme.tiers is not None:
            number, unit = programme.tiers.grace
            header["grace_number"], header["grace_unit"] = number, unit == "months"
            header["downgrade"] = DOWNGRADES.index(programme.tiers.downgrade)
        header["currency_digits"] = programme.currency_digits
        return header

    def assembled(self) -> bytes:
        words = words_of(len(self.programme.rules))
        kinds = sorted(self.sections)
        assert kinds == list(Kind)[:len(kinds)] and len(kinds) in image2.SECTIONS
        places, parts, at = [], [], HEADER.itemsize + len(kinds) * PLACE.itemsize
        for kind in kinds:
            records, record = self.sections[kind], RECORDS[kind]
            assert records.dtype == (record or U64) and records.flags.c_contiguous, kind
            data = records.tobytes()
            places.append((kind, record.itemsize if record else words * 8, at, len(records)))
            parts.append(data + bytes(-len(data) % 8))
            at += len(parts[-1])
        if at > IMAGE_BYTES_MAX:
            largest = sorted(zip(map(len, parts), kinds, strict=True), reverse=True)[:3]
            of_it = ", ".join(f"{kind.name.lower().replace('_', ' ')} {size}" for size, kind in largest)
            raise LimitExceeded(f"the image would have {at} bytes, at most {IMAGE_BYTES_MAX} are allowed; most of it: {of_it}")
        header = self.header()
        header["size"] = at
        image = bytearray(header.tobytes() + np.array(places, PLACE).tobytes() + b"".join(parts))
        image[8:40] = hashlib.sha256(memoryview(image)[HASHED_FROM:]).digest()
        return bytes(image)


def key_of(name: bytes) -> int:
    """A name as a number of 32 bits, the same in all versions of a programme."""
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "little")


def hashes_of(rows: np.ndarray) -> np.ndarray:
    """splitmix64(fnv1a64(name)) of many names of at most 32 bytes at once."""
    letters = rows["name"].copy().view(np.uint8).reshape(-1, 32)
    found = np.full(len(rows), 0xCBF29CE484222325, np.uint64)
    for place in range(32):
        inside = place < rows["size"]
        if not inside.any():
            break
        found[inside] = (found[inside] ^ letters[inside, place]) * np.uint64(0x100000001B3)
    found += np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ found >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ found >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return found ^ found >> np.uint64(31)


def catalogue_hash(programme: tree.Programme) -> bytes:
    """SHA-256 of the catalogue's rows by sku; zeros without one."""
    if not programme.articles:
        return bytes(32)
    rows = (programme.articles[sku] for sku in sorted(programme.articles))
    text = "".join(f"{row.sku}\0{row.category or ''}\0{row.brand or ''}\0{' '.join(sorted(row.flags))}\0\n" for row in rows)
    return hashlib.sha256(text.encode()).digest()
