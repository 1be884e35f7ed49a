"""Article classes: what rules ask of goods, answered once for each class of articles. docs/decisions/rule-image.md section
2.

Not for what rules ask of receipts (`lower_dimensions.py`). Called by `lower2.py`. Works on numpy arrays over *kinds* of
goods, so that 1,000 rules over 100,000 articles take a fraction of a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ledger.rules import tree
from ledger.rules.image2 import CLASS, CLASS_RULES_MAX, IMAGE_BYTES_MAX, TABLE_ROW, U16, U32, U64, Atom, ClassFlag
from ledger.rules.lower_conditions import UNKNOWN, LimitExceeded, Possible, Programs, conjuncts, known, possible
from ledger.rules.lower_dimensions import Dimensions, grouped, packed

UNKNOWN_KINDS_MAX = 65_536  # skus that only rules name, times category codes
CLASSES_AT_ONCE = 4096
POINTS_KINDS = ("points", "add_percent", "times")


def is_static(condition: object) -> bool:
    """Whether only the article decides a condition."""
    return all(isinstance(atom, tree.InSet) and atom.kind in tree.LINE_SETS for atom in tree.atoms(condition))


def as_bit(truths: np.ndarray, bit: int) -> np.ndarray:
    """A bit where something is so, in 64-bit words."""
    return np.where(truths, U64.type(bit), U64.type(0))


@dataclass(frozen=True)
class Static:
    """A part of a condition that only the article decides: one bit of its class."""

    condition: object


def collapsed(condition: object) -> object:
    """A condition with its largest static parts as one atom each, which go first."""
    if is_static(condition):
        return Static(condition) if tree.atoms(condition) else condition
    if isinstance(condition, tree.Not):
        return tree.Not(collapsed(condition.part))
    if not isinstance(condition, (tree.All, tree.Any)):
        return condition
    kind = type(condition)
    static = tuple(part for part in condition.parts if is_static(part))
    rest = tuple(collapsed(part) for part in condition.parts if not is_static(part))
    return kind(((collapsed(static[0] if len(static) == 1 else kind(static)),) if static else ()) + rest)


class Goods:
    """The kinds of goods that conditions can tell apart. Kind 0: the nameless line; then unknown skus; then the catalogue's."""

    def __init__(self, programme: tree.Programme, atoms: list[object]):
        self.programme = programme
        if len(programme.articles) * TABLE_ROW.itemsize > IMAGE_BYTES_MAX:
            raise LimitExceeded(f"catalogue: must have at most {IMAGE_BYTES_MAX // TABLE_ROW.itemsize} articles to fit into an image, "
                                f"has {len(programme.articles)}")
        named = {name for atom in atoms if isinstance(atom, tree.InSet) and atom.kind == "sku" for name in atom.names}
        self.codes = sorted(programme.category_codes)
        paths = sorted(set(programme.category_codes.values()))
        self.code_columns = {code: paths.index(path) + 1 for code, path in programme.category_codes.items()}
        self.columns = len(paths) + 1
        self.named_only = [] if programme.articles else sorted(named)
        if (len(self.named_only) + 1) * self.columns > UNKNOWN_KINDS_MAX:
            raise LimitExceeded(f"rules: name {len(self.named_only)} skus without a catalogue, beside {len(paths)} categories of codes; "
                                f"at most {UNKNOWN_KINDS_MAX} pairs are possible: give a catalogue")
        kinds: dict[tuple, int] = {(): 0}
        self.unknown = [kinds.setdefault((sku or None, path, None, frozenset()), len(kinds))
                        for sku in ("", *self.named_only) for path in (None, *paths)]
        self.skus = sorted(programme.articles)
        asked = [(article.sku if article.sku in named else None, article.category, article.brand, article.flags)
                 for article in map(programme.articles.__getitem__, self.skus)]
        for kind in dict.fromkeys(asked):
            kinds.setdefault(kind, len(kinds))
        self.kind_of = np.fromiter(map(kinds.__getitem__, asked), np.int64, len(asked))
        self.rows = [(None, None, None, frozenset()), *list(kinds)[1:]]  # sku if a rule names it, category, brand, flags
        self.count = len(self.rows)
        self._index()
        self._seen: dict[object, Possible] = {}

    def _index(self) -> None:
        """Which kinds each sku, category, brand and flag has."""
        self.rows_of: dict[str, dict] = {kind: {} for kind in tree.LINE_SETS}
        for i, (sku, *_) in enumerate(self.rows):
            if sku is not None:
                self.rows_of["sku"].setdefault(sku, []).append(i)
        categories: dict[str | None, int] = {}
        brands: dict[str | None, int] = {}
        flag_sets: dict[frozenset, int] = {}
        self.column = {  # of each kind the number of its value
            "category": np.array([categories.setdefault(category, len(categories)) for _, category, _, _ in self.rows]),
            "brand": np.array([brands.setdefault(brand, len(brands)) for _, _, brand, _ in self.rows]),
            "flag": np.array([flag_sets.setdefault(flags, len(flag_sets)) for _, _, _, flags in self.rows])}
        self.values = {"category": len(categories), "flag": len(flag_sets), "brand": len(brands)}
        for category, i in categories.items():
            steps = category.split("/") if category else []
            for depth in range(1, len(steps) + 1):
                self.rows_of["category"].setdefault("/".join(steps[:depth]), []).append(i)
        for flags, i in flag_sets.items():
            for flag in flags:
                self.rows_of["flag"].setdefault(flag, []).append(i)
        self.rows_of["brand"] = {brand: [i] for brand, i in brands.items()}
        self.weighed = self.in_set(tree.InSet("flag", frozenset({"weighed"})))
        self.favourites = np.zeros(self.count, U64)
        for bit, category in enumerate(self.programme.favourites):
            self.favourites |= as_bit(self.in_set(tree.InSet("category", frozenset({category}))), 1 << bit)

    def in_set(self, atom: tree.InSet) -> np.ndarray:
        """The kinds for which a set of articles holds."""
        rows = [row for name in atom.names for row in self.rows_of[atom.kind].get(name, ())]
        if atom.kind == "sku":
            holds = np.zeros(self.count, bool)
            holds[rows] = True
            return holds
        values = np.zeros(self.values[atom.kind], bool)
        values[rows] = True
        return values[self.column[atom.kind]]

    def of_atom(self, atom: object) -> Possible:
        """What an atom is for each kind."""
        if not tree.about_lines(atom):
            return UNKNOWN
        if atom not in self._seen:
            self._seen[atom] = self._of_atom(atom)
        return self._seen[atom]

    def _of_atom(self, atom: object) -> Possible:
        if isinstance(atom, tree.InSet):
            return known(self.in_set(atom))
        true, false = np.ones((2, self.count), bool)
        if isinstance(atom, tree.Is) and atom.kind in ("weighed", "favourite"):
            if atom.kind == "weighed":
                (false if atom.wanted else true)[self.weighed] = False
            else:
                (true if atom.wanted else false)[self.favourites == 0] = False
        true[0], false[0] = False, True
        return Possible(true, false)

    def possible(self, condition: object) -> Possible:
        """A condition for each kind, as arrays."""
        found = possible(condition, self.of_atom)
        return Possible(*(np.broadcast_to(np.asarray(part), self.count) for part in found))


class Classes:
    """Article classes of a programme, and the programs of what they leave open."""

    def __init__(self, programme: tree.Programme, dimensions: Dimensions, programs: Programs):
        self.dimensions, self.programs = dimensions, programs
        self.static: dict[object, int] = {}  # conditions tested by CLASS_BIT
        conditions = [*(rule.lines for rule in programme.rules), programme.no_points_on, *(rule.not_for for rule in programme.burn)]
        self.goods = goods = Goods(programme, [atom for condition in conditions for atom in tree.atoms(condition)])
        self.all_lines = [not tree.atoms(rule.lines) for rule in programme.rules]
        self.lines_programs = [
            self.program(tree.All(tuple(part for part in conjuncts(rule.lines) if not is_static(part))), f"rules[{rule.index}].lines")
            for rule in programme.rules]

        no_points, self.no_points_program = self.excluded(programme.no_points_on, "no_points_on")
        flags = as_bit(goods.weighed, ClassFlag.WEIGHED) | as_bit(~no_points.false, ClassFlag.NO_POINTS) \
            | as_bit(no_points.true & no_points.false, ClassFlag.NO_POINTS_ASK)
        burn_not, burn_ask = np.zeros((2, goods.count), U64)
        self.not_for_programs = []
        for bit, rule in enumerate(programme.burn):
            not_for, program = self.excluded(rule.not_for, f"burn[{bit}].not_for")
            self.not_for_programs.append(program)
            burn_not |= as_bit(~not_for.false, 1 << bit)
            burn_ask |= as_bit(not_for.true & not_for.false, 1 << bit)

        rule_words = self.may_hold(programme, no_points.false)
        static_words = packed(np.array([goods.possible(condition).true for condition in self.static], bool).reshape(-1, goods.count))
        nameless = np.minimum(np.arange(goods.count), 1)
        class_of_kind, first = grouped([nameless, flags, burn_not, burn_ask, goods.favourites, *rule_words, *static_words])
        self.first_kind = first
        self.rows = np.zeros(len(first), CLASS)
        self.rows["burn_not"], self.rows["burn_ask"], self.rows["favourites"] = burn_not[first], burn_ask[first], goods.favourites[first]
        self.rows["flags"] = flags[first]
        self.words = len(static_words)
        self.bits = np.stack([words[first] for words in static_words], axis=1).reshape(-1) if static_words else np.zeros(0, U64)
        self.rules = self.listed([words[first] for words in rule_words])
        self.unknown_classes = class_of_kind[goods.unknown].astype(U32)
        self.class_of_article = class_of_kind[goods.kind_of]  # in the order of goods.skus

    def program(self, condition: object, what: str) -> int:
        """The program of a condition about a line."""
        return self.programs.program(collapsed(condition), self.number, what)

    def number(self, atom: object) -> int:
        """The number of an atom in programs about a line."""
        if isinstance(atom, Static):
            return self.programs.atom(Atom.CLASS_BIT, self.static.setdefault(atom.condition, len(self.static)))
        return self.dimensions.number(self.programs, atom)

    def excluded(self, condition: object | None, what: str) -> tuple[Possible, int]:
        """Which kinds of goods a condition excludes, and its program where some must be asked."""
        found = self.goods.possible(tree.Any(()) if condition is None else condition)
        return found, self.program(condition, what) if np.any(found.true & found.false) else 0

    def may_hold(self, programme: tree.Programme, earning: np.ndarray) -> list[np.ndarray]:
        """For each kind the rules with line conditions whose static part may hold, 64 rules in a word."""
        found: list[np.ndarray] = []
        for at in range(0, len(programme.rules), 64):
            word = np.zeros(self.goods.count, U64)
            for rule in programme.rules[at:at + 64]:
                if not self.all_lines[rule.index]:
                    may = self.goods.possible(rule.lines).true
                    word[np.flatnonzero(may & earning if rule.kind in POINTS_KINDS else may)] |= U64.type(1 << rule.index - at)
            found.append(word)
        return found

    def listed(self, words: list[np.ndarray]) -> np.ndarray:
        """Section CLASS_RULES; fills `first` and `count` of the classes."""
        found: list[np.ndarray] = []
        at = 0
        for start in range(0, len(self.rows), CLASSES_AT_ONCE) if words else ():
            rows = self.rows[start:start + CLASSES_AT_ONCE]
            some = np.stack([column[start:start + CLASSES_AT_ONCE] for column in words], axis=1)
            bits = np.unpackbits(some.view(np.uint8).reshape(len(some), -1), axis=1, bitorder="little")
            counts = bits.sum(axis=1, dtype=np.int64)
            if (most := int(counts.max())) > CLASS_RULES_MAX:
                raise LimitExceeded(f"rules: {most} rules may hold for {self.example(start + int(counts.argmax()))}, at most "
                                    f"{CLASS_RULES_MAX} are possible besides those without `lines`: name fewer goods")
            rows["first"], rows["count"] = at + np.cumsum(counts) - counts, counts
            found.append(np.nonzero(bits)[1].astype(U16))
            at += len(found[-1])
            if at * U16.itemsize > IMAGE_BYTES_MAX:
                raise LimitExceeded(f"rules: the rules of {len(self.rows)} classes of articles do not fit into an image of "
                                    f"{IMAGE_BYTES_MAX} bytes: name goods by category, brand or flag instead of one by one")
        return np.concatenate(found) if found else np.zeros(0, U16)

    def example(self, number: int) -> str:
        """An article of a class, for people."""
        kind = int(self.first_kind[number])
        at = np.flatnonzero(self.goods.kind_of == kind)
        return f"article {self.goods.skus[at[0]]!r}" if len(at) else f"unknown goods of category {self.goods.rows[kind][1]!r}"
