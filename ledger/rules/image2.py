"""The bytes of an image of version 2: its records, its numbers, and a reader.

Not for making images (`lower2.py`) and not for evaluating them: the service reads the same bytes in place
(`_image.pxd`). The reader here is for tests and tools. What each record means is in docs/decisions/rule-image.md
section 3; that page and this file change together.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from ledger import limits

MAGIC = 0x454C5552  # "RULE"
VERSION = 2
HASHED_FROM = 40
IMAGE_BYTES_MAX = limits.IMAGE_BYTES_MAX
PROGRAM_WORDS_MAX = 256
CLASS_RULES_MAX = 1024  # rules that may hold for one article; the evaluator's scratch has room for LINES_MAX times as many
ENTITLEMENTS_MAX = 64
ROLLING_MAX = 64
CUTS_MAX = 512
NUMBERED_RECEIPTS = 64  # receipts with a record of their own in dimension 10
COUNTER_MIN = 256  # counters below are those of tiers' windows
OPEN_LOW, OPEN_HIGH = -(2**63), 2**63 - 1  # no bound
NONE = 0xFFFFFFFF
SECTIONS = (42, 44)  # without limits, and with


class Kind(IntEnum):
    """Sections, in the order in which they stand."""

    WALLETS = 1
    RULES = 2
    RULE_NAMES = 3
    CAMPAIGNS = 4
    CAPS = 5
    TARGETS = 6
    PROGRAMS = 7
    ATOMS = 8
    MAY = 9
    MAY_INDEX = 10
    MINUTE_CUTS = 11
    DATE_CUTS = 12
    ARTICLES = 13
    CATEGORY_CODES = 14
    CLASSES = 15
    CLASS_RULES = 16
    STORES = 17
    ZONES = 18
    ZONE_SPANS = 19
    PROMO_CODES = 20
    TENDERS = 21
    SEGMENTS = 22
    FAVOURITES = 23
    EXPERIMENTS = 24
    TIERS = 25
    THRESHOLDS = 26
    BURN = 27
    NUMBERS = 28
    RULE_SETS = 29
    CLASS_BITS = 30
    ARTICLE_STARTS = 31
    CATEGORY_CODE_STARTS = 32
    STORE_STARTS = 33
    PROMO_CODE_STARTS = 34
    UNKNOWN_CLASSES = 35
    STORE_CLASSES = 36
    CHANNELS = 37
    VARIANTS = 38
    ENTITLEMENTS = 39
    ROLLING = 40
    FUNDERS = 41
    TEXTS = 42
    VELOCITY = 43  # this and the next only where there are limits
    LIMITS = 44


class Dimension(IntEnum):
    """What a receipt has one value (or a set of values) of."""

    STORE = 0
    TIER = 1
    CHANNEL = 2
    WEEKDAY = 3
    MINUTE = 4
    DATE = 5
    SEGMENT = 6
    TENDER = 7
    PROMO_CODE = 8
    VARIANT = 9
    RECEIPT_NUMBER = 10


class Op(IntEnum):
    """Words of programs: op in the low 8 bits, argument above."""

    TEST = 1
    JUMP_IF_TRUE = 2
    JUMP_IF_FALSE = 3
    NOT = 4
    DONE = 5


class Atom(IntEnum):
    """What programs test. Below 32: of the receipt; from 32: of one line, false for the nameless line."""

    STORE = 1
    TIER = 2
    SEGMENT = 3
    CHANNEL = 4
    TENDER = 5
    WEEKDAY = 6
    HOURS = 7
    DATES = 8
    PROMO_CODE = 9
    VARIANT = 10
    BIRTHDAY = 11
    ACCOUNT_AGE_DAYS = 12
    DAYS_SINCE_LAST_RECEIPT = 13
    TOTAL = 14
    ELIGIBLE_TOTAL = 15
    LINES_TOTAL = 16
    LINES_QUANTITY = 17
    NTH = 18
    EVERY_NTH = 19
    CLASS_BIT = 32
    PRICE = 33
    QUANTITY = 34
    WEIGHED = 35
    DISCOUNTED = 36
    FAVOURITE = 37


class RuleKind(IntEnum):
    """Which rules a rule stacks with; the order of the steps."""

    DISCOUNT_LINE = 1
    DISCOUNT_RECEIPT = 2
    POINTS = 3
    ADD_PERCENT = 4
    TIMES = 5
    ENTITLE = 6


class Form(IntEnum):
    """How a rule's exact amount is made."""

    NOTHING = 0
    STEP = 1
    QUANTITY_STEP = 2
    FIXED = 3
    PERCENT = 4
    TIMES = 5


class RuleFlag(IntEnum):
    """ImageRule.flags."""

    EXCLUSIVE = 1
    EARNS_ON_POINTS_PAID = 2
    WIDE = 8
    ALL_LINES = 16


class LimitFlag(IntEnum):
    """ImageVelocity.flags."""

    VOLATILE = 1
    GIVES_BACK = 2


class RuleSet(IntEnum):
    """Records of section RULE_SETS."""

    ALL_LINES = 0
    STACKING = 1
    WHEN_PROGRAM = 2
    LATE = 3
    LINES_PROGRAM = 4
    LIMITED = 5
    KINDS = 6  # and the five behind it: RuleKind - 1


RULE_SETS = 12


class HeaderFlag(IntEnum):
    """ImageHeader2.flags."""

    OPENS_ANONYMOUS = 1
    REFUSE_UNKNOWN_STORES = 2
    UNKNOWN_SKUS_EARN_NOTHING = 4
    CATALOGUE = 8
    STORES = 16


class ClassFlag(IntEnum):
    """ImageClass.flags."""

    WEIGHED = 1
    NO_POINTS = 2
    NO_POINTS_ASK = 4


PERS = ("receipt", "day", "week", "month", "year", "ever", "birthday")
ROUNDS = ("floor", "half_up", "ceil")
LIFE_UNITS = ("forever", "days", "months", "until", "inactivity")
LIFE_ENDS = ("", "month", "quarter", "year")
WINDOWS = {"lifetime": 1, "month": 2, "year": 3, "anniversary": 4}
ROLLING_FROM = 16
DOWNGRADES = ("never", "to_level", "one_step")
CAMPAIGN_POINTS, CAMPAIGN_AMOUNT, CAMPAIGN_USES = 1, 2, 4
NAMED_ONLY = 1  # TableRow.flags: a sku that rules name and no catalogue has

HEADER = np.dtype([
    ("magic", "<u4"), ("version", "<u4"), ("hash", "V32"), ("max_age_us", "<i8"), ("size", "<u4"), ("flags", "<u4"),
    ("currency", "S4"), ("rule_count", "<u4"), ("zone", "S40"), ("tzdata", "S16"), ("name", "S40"),
    ("largest_receipt", "<i8"), ("total_tolerance", "<i8"), ("catalogue", "V32"), ("section_table", "<u4"), ("section_count", "<u4"),
    ("unknown_columns", "<u4"), ("no_points_program", "<u4"), ("class_words", "<u4"), ("favourites_at_most", "<u2"),
    ("grace_number", "<u2"), ("grace_unit", "u1"), ("downgrade", "u1"), ("currency_digits", "u1"), ("reserved", "u1", 21),
])
PLACE = np.dtype([("kind", "<u4"), ("record_bytes", "<u4"), ("offset", "<u4"), ("count", "<u4")])
WALLET = np.dtype([("name", "S32"), ("scale", "<u4"), ("sliding_days", "<u2"), ("flags", "<u2"), ("floor", "<i8")])
RULE = np.dtype([
    ("a", "<i8"), ("b", "<i8"), ("rate_factor", "<i8"), ("rate_divisor", "<i8"),
    ("lines_total_from", "<i8"), ("lines_total_to", "<i8"), ("lines_quantity_from", "<i8"), ("lines_quantity_to", "<i8"),
    ("key", "<u4"), ("when_program", "<u4"), ("lines_program", "<u4"), ("late_program", "<u4"), ("first_cap", "<u4"),
    ("first_target", "<u4"), ("until_day", "<i4"), ("cap_count", "<u2"), ("target_count", "<u2"), ("campaign", "<u2"), ("wallet", "<u2"),
    ("funder", "<u2"), ("available_after", "<u2"), ("life_number", "<u2"), ("group", "<u2"), ("priority", "<u2"),
    ("kind", "u1"), ("form", "u1"), ("per", "u1"), ("round", "u1"), ("life_unit", "u1"), ("life_end", "u1"), ("flags", "u1"),
    ("reserved", "u1", 11),
])
RULE_NAME = np.dtype([("name", "S64")])
CAMPAIGN = np.dtype([("points", "<i8"), ("uses", "<i8"), ("key", "<u4"), ("wallet", "<u2"), ("flags", "<u2"), ("name", "S64")])
CAP = np.dtype([("limit", "<i8"), ("counter", "<u4"), ("list_offset", "<u4"), ("list_count", "<u2"), ("per", "u1"), ("measure", "u1"),
                ("reserved", "<u4")])
ATOM = np.dtype([("low", "<i8"), ("high", "<i8"), ("list_offset", "<u4"), ("list_count", "<u2"), ("code", "u1"), ("reserved", "u1")])
MAY_INDEX = np.dtype([("first", "<u4"), ("count", "<u4"), ("free", "<u4"), ("reserved", "<u4")])
TABLE_ROW = np.dtype([("name", "S32"), ("value", "<u4"), ("size", "u1"), ("flags", "u1"), ("reserved", "<u2")])
CLASS = np.dtype([("burn_not", "<u8"), ("burn_ask", "<u8"), ("favourites", "<u8"), ("first", "<u4"), ("count", "<u2"), ("flags", "<u2")])
ZONE = np.dtype([("name", "S40"), ("first", "<u4"), ("count", "<u4")])
ZONE_SPAN = np.dtype([("start_us", "<i8"), ("offset_s", "<i4"), ("first_day", "<i4")])
NAME = np.dtype([("name", "S32")])
TEXT = np.dtype([("offset", "<u4"), ("size", "<u4")])
EXPERIMENT = np.dtype([("name", "S32"), ("hash", "<u8"), ("first", "<u4"), ("count", "<u2"), ("control", "<u2")])
VARIANT = np.dtype([("name", "S32"), ("edge", "<u4"), ("reserved", "<u4")])
TIER = np.dtype([("name", "S32"), ("program", "<u4"), ("first", "<u4"), ("count", "<u2"), ("reserved", "u1", 6)])
THRESHOLD = np.dtype([("at_least", "<i8"), ("window", "<u2"), ("measure", "u1"), ("reserved", "u1", 5)])
BURN = np.dtype([
    ("name", "S64"), ("min", "<i8"), ("max", "<i8"), ("step", "<i8"), ("money_at_least", "<i8"), ("money_at_least_per_line", "<i8"),
    ("pays", "<i8"), ("pays_per", "<i8"), ("share", "<u4"), ("when_program", "<u4"), ("not_for_program", "<u4"),
    ("wallet", "<u2"), ("reserved", "<u2"),
])
STORE_CLASS = np.dtype([("zone", "<u2"), ("reserved", "u1", 2), ("region", "<u4")])
VELOCITY = np.dtype([
    ("id", "<u4"), ("window_s", "<u4"), ("of", "<u2"), ("keys", "<u2"), ("window", "u1"), ("measure", "u1"), ("flags", "u1"),
    ("reserved", "u1", 17), ("segments", "<u8", 2),
])
LIMIT = np.dtype([
    ("name", "S64"), ("at_most", "<i8"), ("segments", "<u8", 2), ("counter", "<u4"), ("mean_sum", "<u4"), ("mean_count", "<u4"),
    ("mean_after", "<u4"), ("rung_s", "<u4"), ("keys", "<u2"), ("of", "<u2"), ("measure", "u1"), ("action", "u1"), ("rung", "u1"),
    ("window", "u1"), ("reserved", "u1", 28),
])
FUNDER = np.dtype([("name", "S64"), ("number", "<u2"), ("reserved", "u1", 6)])
U8, U16, U32, I64, U64 = (np.dtype(code) for code in ("u1", "<u2", "<u4", "<i8", "<u8"))

RECORDS: dict[Kind, np.dtype | None] = {  # None: a bitset over the rules
    Kind.WALLETS: WALLET, Kind.RULES: RULE, Kind.RULE_NAMES: RULE_NAME, Kind.CAMPAIGNS: CAMPAIGN, Kind.CAPS: CAP, Kind.TARGETS: U16,
    Kind.PROGRAMS: U32, Kind.ATOMS: ATOM, Kind.MAY: None, Kind.MAY_INDEX: MAY_INDEX, Kind.MINUTE_CUTS: U32, Kind.DATE_CUTS: I64,
    Kind.ARTICLES: TABLE_ROW, Kind.CATEGORY_CODES: TABLE_ROW, Kind.CLASSES: CLASS, Kind.CLASS_RULES: U16, Kind.STORES: TABLE_ROW,
    Kind.ZONES: ZONE, Kind.ZONE_SPANS: ZONE_SPAN, Kind.PROMO_CODES: TABLE_ROW, Kind.TENDERS: NAME, Kind.SEGMENTS: NAME,
    Kind.FAVOURITES: TEXT, Kind.EXPERIMENTS: EXPERIMENT, Kind.TIERS: TIER, Kind.THRESHOLDS: THRESHOLD, Kind.BURN: BURN,
    Kind.NUMBERS: U32, Kind.RULE_SETS: None, Kind.CLASS_BITS: U64, Kind.ARTICLE_STARTS: U32, Kind.CATEGORY_CODE_STARTS: U32,
    Kind.STORE_STARTS: U32, Kind.PROMO_CODE_STARTS: U32, Kind.UNKNOWN_CLASSES: U32, Kind.STORE_CLASSES: STORE_CLASS,
    Kind.CHANNELS: NAME, Kind.VARIANTS: VARIANT, Kind.ENTITLEMENTS: NAME, Kind.ROLLING: U16, Kind.FUNDERS: FUNDER, Kind.TEXTS: U8,
    Kind.VELOCITY: VELOCITY, Kind.LIMITS: LIMIT,
}
STARTS = {Kind.ARTICLES: Kind.ARTICLE_STARTS, Kind.CATEGORY_CODES: Kind.CATEGORY_CODE_STARTS, Kind.STORES: Kind.STORE_STARTS,
          Kind.PROMO_CODES: Kind.PROMO_CODE_STARTS}

assert [HEADER.itemsize, PLACE.itemsize, WALLET.itemsize, RULE.itemsize, CAMPAIGN.itemsize, CAP.itemsize] == [256, 16, 48, 128, 88, 24]
assert [ATOM.itemsize, MAY_INDEX.itemsize, TABLE_ROW.itemsize, CLASS.itemsize, ZONE.itemsize] == [24, 16, 40, 32, 48]
assert [ZONE_SPAN.itemsize, EXPERIMENT.itemsize, VARIANT.itemsize, TIER.itemsize, THRESHOLD.itemsize] == [16, 48, 40, 48, 16]
assert [BURN.itemsize, STORE_CLASS.itemsize, FUNDER.itemsize, TEXT.itemsize] == [136, 8, 72, 8]
assert [VELOCITY.itemsize, LIMIT.itemsize] == [48, 144]


class ImageDamaged(Exception):
    """Bytes that are no image of version 2; the text says why."""


def words_of(rule_count: int) -> int:
    """64-bit words of a bitset over the rules; one at least."""
    return max(1, (rule_count + 63) // 64)


def image_hash(image: bytes) -> str:
    """The content hash that an image carries, in hex."""
    return image[8:40].hex()


MASK = 2**64 - 1


def fnv1a(data: bytes) -> int:
    """FNV-1a of 64 bits."""
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 & MASK
    return found


def mixed(x: int) -> int:
    """One step of splitmix64."""
    x = x + 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


class Image:
    """An image, its sections as arrays. ImageDamaged: header, hash or places of sections are wrong; `_image.pxd` checks the rest."""

    def __init__(self, data: bytes):
        if len(data) < HEADER.itemsize:
            raise ImageDamaged("too short")
        self.data, self.header = data, np.frombuffer(data, HEADER, 1)[0]
        if self.header["magic"] != MAGIC or self.header["version"] != VERSION or self.header["size"] != len(data):
            raise ImageDamaged("no image of version 2")
        if self.hash != hashlib.sha256(data[HASHED_FROM:]).digest():
            raise ImageDamaged("the hash does not hold")
        self.words = words_of(int(self.header["rule_count"]))
        if self.header["section_count"] not in SECTIONS:
            raise ImageDamaged(f"must have {SECTIONS[0]} or {SECTIONS[1]} sections, has {self.header['section_count']}")
        places = np.frombuffer(data, PLACE, int(self.header["section_count"]), int(self.header["section_table"]))
        at = HEADER.itemsize + places.nbytes
        self.sections: dict[Kind, np.ndarray] = {kind: np.zeros(0, RECORDS[kind]) for kind in list(Kind)[len(places):]}
        for kind, place in zip(list(Kind)[:len(places)], places, strict=True):
            record = RECORDS[kind]
            if place["kind"] != kind or place["offset"] != at or place["record_bytes"] != (record.itemsize if record else self.words * 8):
                raise ImageDamaged(f"section {kind.name} is not where and what it must be")
            flat = np.frombuffer(data, record or U64, int(place["count"]) * (1 if record else self.words), at)
            self.sections[kind] = flat if record else flat.reshape(-1, self.words)
            at += flat.nbytes + -flat.nbytes % 8
        if at != len(data):
            raise ImageDamaged("bytes behind the last section")

    @property
    def hash(self) -> bytes:
        """The content hash that the image carries."""
        return self.data[8:40]

    def __getitem__(self, kind: Kind) -> np.ndarray:
        return self.sections[kind]

    def find(self, table: Kind, name: str) -> np.void | None:
        """The row of a name in one of the four tables."""
        key, starts = name.encode(), self[STARTS[table]]
        bucket = mixed(fnv1a(key)) >> 64 - (len(starts) - 1).bit_length() + 1
        for row in self[table][starts[bucket]:starts[bucket + 1]]:
            if row["name"] == key:
                return row
        return None

    def class_of(self, sku: str, code: str) -> int:
        """The article class of a line."""
        if not sku:
            return 0
        article = self.find(Kind.ARTICLES, sku)
        if article is not None and not article["flags"] & NAMED_ONLY:
            return int(article["value"])
        known = self.find(Kind.CATEGORY_CODES, code)
        row, column = (0 if article is None else int(article["value"])), (0 if known is None else int(known["value"]))
        return int(self[Kind.UNKNOWN_CLASSES][row * int(self.header["unknown_columns"]) + column])

    def class_rules(self, number: int) -> list[int]:
        """Indexes of the rules that name articles of a class."""
        row = self[Kind.CLASSES][number]
        return self[Kind.CLASS_RULES][row["first"]:row["first"] + row["count"]].tolist()

    def class_bit(self, number: int, bit: int) -> bool:
        """A static condition of line programs, for a class."""
        word = self[Kind.CLASS_BITS][number * int(self.header["class_words"]) + bit // 64]
        return bool(int(word) >> bit % 64 & 1)

    def may(self, dimension: Dimension, value: int) -> int:
        """The rules that may hold with a value, as the bits of an integer; all where no rule asks."""
        index = self[Kind.MAY_INDEX][dimension]
        return self.bits(Kind.MAY, int(index["first"]) + value) if index["count"] else (1 << 64 * self.words) - 1

    def may_any(self, dimension: Dimension, values: list[int]) -> int:
        """As `may`, of a dimension with a set of values."""
        index = self[Kind.MAY_INDEX][dimension]
        if index["free"] == NONE:
            return (1 << 64 * self.words) - 1
        found = self.bits(Kind.MAY, int(index["free"]))
        for value in values:
            found |= self.bits(Kind.MAY, int(index["first"]) + value)
        return found

    def bits(self, kind: Kind, record: int) -> int:
        """A bitset as an integer."""
        return int.from_bytes(self[kind][record].tobytes(), "little")

    def interval(self, cuts: Kind, value: int) -> int:
        """The interval of a sorted list of cuts that a value lies in."""
        return bisect_right(self[cuts], value)

    def numbers(self, row: np.void) -> list[int]:
        """The list of an atom or cap."""
        return self[Kind.NUMBERS][row["list_offset"]:row["list_offset"] + row["list_count"]].tolist()

    def run(self, program: int, test: Callable[[int], bool]) -> bool:
        """What a program says. test: of an atom's (or threshold's) number. A program of 0 holds."""
        words, at, flag = self[Kind.PROGRAMS], program, True
        while program:
            op, argument = Op(int(words[at]) & 255), int(words[at]) >> 8
            at += 1
            if op == Op.DONE:
                break
            if op == Op.TEST:
                flag = test(argument)
            elif op == Op.NOT:
                flag = not flag
            elif flag == (op == Op.JUMP_IF_TRUE):
                at += argument
        return flag
