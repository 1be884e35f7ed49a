"""May-sets: which rules may hold with each store, tier, weekday, ... of a receipt. docs/decisions/rule-image.md section 2.

Not for articles (`lower_articles.py`). Called by `lower2.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate

import numpy as np

from ledger.rules import tree
from ledger.rules.image2 import CUTS_MAX, MAY_INDEX, NONE, NUMBERED_RECEIPTS, U64, Atom, Dimension, words_of
from ledger.rules.lower_conditions import (
    FLAG_CODES,
    RANGE_CODES,
    UNKNOWN,
    Possible,
    Programs,
    bounds,
    conjuncts,
    date_cuts,
    hour_cuts,
    known,
    mask,
    over_intervals,
    possible,
    signed,
)
from ledger.rules.lower_velocity import region_prints

FOLD = np.uint64(0x9E3779B97F4A7C15)
SET_DIMENSIONS = {"segment": Dimension.SEGMENT, "tender": Dimension.TENDER, "promo_code": Dimension.PROMO_CODE}
ONE_DIMENSIONS = {"tier": Dimension.TIER, "channel": Dimension.CHANNEL, "weekday": Dimension.WEEKDAY}


def dimension_of(atom: object) -> tuple[Dimension, str] | None:
    """The dimension of an atom (and the experiment); None: it has none."""
    if isinstance(atom, tree.InSet):
        if atom.kind in tree.STORE_SETS:
            return Dimension.STORE, ""
        found = ONE_DIMENSIONS.get(atom.kind, SET_DIMENSIONS.get(atom.kind))
        return None if found is None else (found, "")
    if isinstance(atom, tree.Dates):
        return Dimension.DATE, ""
    if isinstance(atom, tree.Hours):
        return Dimension.MINUTE, ""
    if isinstance(atom, (tree.Nth, tree.EveryNth)):
        return Dimension.RECEIPT_NUMBER, ""
    return (Dimension.VARIANT, atom.experiment) if isinstance(atom, tree.InVariant) else None


def own_lines(atom: object) -> bool:
    """Whether an atom asks about the rule's own lines, which are known late."""
    return isinstance(atom, tree.InRange) and atom.kind in ("lines_total", "lines_quantity")


class Places:
    """Store classes: stores of one zone (and of one region, where a limit counts them) with equal truth of every condition on place.
    Class 0: unknown stores."""

    def __init__(self, programme: tree.Programme, atoms: Iterable[object]):
        atoms = list(dict.fromkeys(atom for atom in atoms if isinstance(atom, tree.InSet) and atom.kind in tree.STORE_SETS))
        stores = programme.stores or {name: tree.Store(name, programme.zone) for atom in atoms for name in atom.names}
        self.codes = sorted(stores)
        rows = [stores[code] for code in self.codes]
        self.zones = [programme.zone, *sorted({store.zone for store in rows} - {programme.zone})]
        zone_of = {zone: i for i, zone in enumerate(self.zones)}
        by_name: dict[tuple[str, str], list[int]] = {}
        for i, store in enumerate(rows, start=1):
            names = (("store", store.store), ("region", store.region), ("partner", store.partner))
            for kind, name in (*names, *(("store_group", group) for group in store.groups)):
                by_name.setdefault((kind, name), []).append(i)
        truths = np.zeros((len(atoms), len(rows) + 1), bool)
        for truth, atom in zip(truths, atoms, strict=True):
            for name in atom.names:
                truth[by_name.get((atom.kind, name), [])] = True
        unknown_first = np.array([-1, *(zone_of[store.zone] for store in rows)], np.int64)
        prints = region_prints(programme)
        regions = np.array([0, *(prints.get(store.region, 0) for store in rows)], np.int64)
        self.class_of, first = grouped([unknown_first, *([regions] if prints else []), *packed(truths)])
        self.zone_of_class, self.region_of_class = np.maximum(unknown_first[first], 0), regions[first]
        self.truth = {atom: truth[first] for atom, truth in zip(atoms, truths, strict=True)}


def packed(truths: np.ndarray) -> list[np.ndarray]:
    """Rows of truths as 64-bit words, 64 rows in each."""
    found = []
    for at in range(0, len(truths), 64):
        octets = np.packbits(truths[at:at + 64], axis=0, bitorder="little")
        words = np.zeros((8, truths.shape[1]), np.uint8)
        words[:len(octets)] = octets
        found.append(np.ascontiguousarray(words.T).view(U64)[:, 0])
    return found


def grouped(columns: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are equal in all columns, as group numbers by first appearance, and each group's first row."""
    columns = [np.ascontiguousarray(column).view(U64) for column in columns]
    folded = np.zeros(len(columns[0]), U64)
    for column in columns:
        folded = (folded ^ column) * FOLD
        folded ^= folded >> np.uint64(29)
    _, first, groups = np.unique(folded, return_index=True, return_inverse=True)
    for column in columns:  # rows that are unlike and folded to the same are told apart
        if not np.array_equal(column[first][groups], column):
            groups = groups * (len(column) + 1) + np.unique(column, return_inverse=True)[1]
            _, first, groups = np.unique(groups, return_index=True, return_inverse=True)
    order = np.argsort(first)
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return number[groups], first[order]


class Dimensions:
    """All dimensions of a receipt, and what atoms are for each of their values."""

    def __init__(self, programme: tree.Programme, atoms: list[object], when_atoms: list[object]):
        self.programme = programme
        self.places = Places(programme, atoms)
        codes = [atom for atom in atoms if isinstance(atom, tree.InSet) and atom.kind == "promo_code"]
        self.promo_codes = sorted({name for atom in codes for name in atom.names})
        self.minute_cuts = chosen_cuts({cut for atom in when_atoms if isinstance(atom, tree.Hours) for cut in hour_cuts(atom)} - {0})
        self.date_cuts = chosen_cuts({cut for atom in when_atoms if isinstance(atom, tree.Dates) for cut in date_cuts(atom)})
        levels = programme.tiers.levels if programme.tiers else ()
        self.names: dict[str, list[str]] = {  # in the order of their values
            "tier": [level.name for level in levels], "channel": ["", *programme.channels], "weekday": list(tree.WEEKDAYS),
            "segment": list(programme.segments), "tender": list(programme.tenders), "promo_code": self.promo_codes}
        self.place_of = {kind: {name: i for i, name in enumerate(names)} for kind, names in self.names.items()}
        self.experiments = {experiment.name: experiment for experiment in programme.experiments}
        starts = accumulate((len(experiment.variants) for experiment in programme.experiments), initial=0)
        self.first_variant = dict(zip(self.experiments, starts, strict=False))
        self._seen: dict[object, Possible] = {}

    def places_of(self, atom: tree.InSet) -> list[int]:
        """The values that a set names, sorted."""
        return sorted(self.place_of[atom.kind][name] for name in atom.names)

    def of_atom(self, atom: object) -> Possible:
        """What an atom is for each value of its dimension; of set-valued ones first for no value, then for each one present."""
        if atom not in self._seen:
            self._seen[atom] = self._of_atom(atom)
        return self._seen[atom]

    def _of_atom(self, atom: object) -> Possible:
        if isinstance(atom, tree.InSet):
            if atom.kind in tree.STORE_SETS:
                return known(self.places.truth[atom])
            if atom.kind in SET_DIMENSIONS:
                true, false = np.ones((2, len(self.names[atom.kind]) + 1), bool)
                true[0] = False
                false[[place + 1 for place in self.places_of(atom)]] = False
                return Possible(true, false)
            holds = np.zeros(len(self.names[atom.kind]), bool)
            holds[self.places_of(atom)] = True
            return known(holds)
        if isinstance(atom, tree.Dates):
            return over_intervals(date_cuts(atom), self.date_cuts)
        if isinstance(atom, tree.Hours):
            return over_intervals(hour_cuts(atom), self.minute_cuts)
        if isinstance(atom, tree.InVariant):
            return known(np.array([variant in atom.variants for variant, _ in self.experiments[atom.experiment].variants]))
        numbers = np.arange(NUMBERED_RECEIPTS + 1)
        if isinstance(atom, tree.Nth):
            found = known(np.isin(numbers, [n for n in atom.numbers if n <= NUMBERED_RECEIPTS]))
            found.true[0] = max(atom.numbers) > NUMBERED_RECEIPTS
        else:
            found = known(numbers % atom.number == 0)
            found.true[0] = True
        found.false[0] = True  # all the receipts behind those that are numbered
        return found

    def possible(self, condition: object, dimension: tuple[Dimension, str]) -> Possible:
        """A condition with one dimension known."""
        return possible(condition, lambda atom: self.of_atom(atom) if dimension_of(atom) == dimension else UNKNOWN)

    def exact(self, part: object) -> tuple[Dimension, str] | None:
        """The dimension whose may-set decides a part of `when` exactly."""
        found = {dimension_of(atom) for atom in tree.atoms(part)}
        if len(found) != 1 or None in found:
            return None
        dimension = found.pop()
        if dimension[0] in SET_DIMENSIONS.values():
            return dimension if named_one_of(part) is not None else None
        truth = self.possible(part, dimension)
        return dimension if not np.any(truth.true & truth.false) else None

    # --- what programs test ----------------------------------------------------------------------------------------------

    def number(self, programs: Programs, atom: object) -> int:
        """The number of an atom that is no set of articles."""
        if isinstance(atom, tree.InSet):
            if atom.kind in tree.STORE_SETS:
                return programs.atom(Atom.STORE, numbers=np.flatnonzero(self.places.truth[atom]).tolist())
            if atom.kind == "promo_code":
                return programs.atom(Atom.PROMO_CODE, numbers=self.places_of(atom))
            bits = mask(self.places_of(atom))
            return programs.atom(Atom[atom.kind.upper()], signed(bits), signed(bits >> 64))
        if isinstance(atom, tree.InRange):
            return programs.atom(RANGE_CODES[atom.kind], *bounds(atom.low, atom.high))
        if isinstance(atom, tree.Is):
            return programs.atom(FLAG_CODES[atom.kind], int(atom.wanted))
        if isinstance(atom, tree.Dates):
            return programs.atom(Atom.DATES, numbers=date_cuts(atom))
        if isinstance(atom, tree.Hours):
            return programs.atom(Atom.HOURS, atom.low, atom.high)
        if isinstance(atom, tree.Birthday):
            return programs.atom(Atom.BIRTHDAY, atom.days_before, atom.days_after)
        if isinstance(atom, tree.Nth):
            return programs.atom(Atom.NTH, numbers=sorted(atom.numbers))
        if isinstance(atom, tree.EveryNth):
            return programs.atom(Atom.EVERY_NTH, atom.number)
        variants = [variant for variant, _ in self.experiments[atom.experiment].variants]
        experiment = list(self.experiments).index(atom.experiment)
        return programs.atom(Atom.VARIANT, experiment, mask(variants.index(name) for name in atom.variants))


def chosen_cuts(cuts: set[int]) -> np.ndarray:
    """At most CUTS_MAX of some cuts, sorted: evenly left out where there are more."""
    found = np.array(sorted(cuts), np.int64)
    return found if len(found) <= CUTS_MAX else found[np.arange(CUTS_MAX) * len(found) // CUTS_MAX]


def named_one_of(part: object) -> list | None:
    """The sets of a part that holds when one of them does; None: it is no such part."""
    if isinstance(part, tree.InSet):
        return [part]
    if isinstance(part, tree.Any) and part.parts:
        found = [named_one_of(inner) for inner in part.parts]
        return None if None in found else [atom for sets in found for atom in sets]
    return None


class MaySets:
    """Records of MAY and MAY_INDEX, and which parts of `when` they decide."""

    def __init__(self, dimensions: Dimensions, rules: tuple[tree.Rule, ...]):
        self.dimensions, self.rules = dimensions, rules
        self.words = words_of(len(rules))
        self.records: list[np.ndarray] = []
        mentions: dict[tuple[Dimension, str], list[int]] = {}
        for rule in rules:
            for dimension in dict.fromkeys(map(dimension_of, (*tree.atoms(rule.when), *tree.atoms(rule.lines)))):
                if dimension is not None:
                    mentions.setdefault(dimension, []).append(rule.index)
        self.exact = [[dimensions.exact(part) for part in conjuncts(rule.when)] for rule in rules]
        self.decided = [  # of each rule, by place among the conjuncts of `when`; those of set-valued dimensions follow in `of_set`
            {i for i, found in enumerate(parts) if found is not None and found[0] not in SET_DIMENSIONS.values()} for parts in self.exact]
        self.index = np.zeros(len(Dimension), MAY_INDEX)
        self.index["free"] = NONE
        self.count = 0
        for dimension in Dimension:
            keys = [(dimension, name) for name in dimensions.experiments] if dimension == Dimension.VARIANT else [(dimension, "")]
            if any(key in mentions for key in keys):
                self.index[dimension]["first"] = self.count
                for key in keys:
                    self.add(key, mentions.get(key, []))

    def add(self, key: tuple[Dimension, str], rules: list[int]) -> None:
        """The records of a dimension (or experiment) that some rules mention."""
        set_valued = key[0] in SET_DIMENSIONS.values()
        columns = {index: self.of_set(key, index) if set_valued else self.of_one(key, index) for index in rules}
        size = max(column.size for column in columns.values()) if columns else len(self.dimensions.experiments[key[1]].variants)
        records = columns_of_bits(columns, size, len(self.rules), self.words)
        if set_valued:
            others = np.ones(len(self.rules), bool)
            others[rules] = False
            records[1:] &= ~bits_of(others, self.words)
            self.index[key[0]]["free"] = self.count
            self.index[key[0]]["first"] = self.count + 1
        self.index[key[0]]["count"] += size - set_valued
        self.count += size
        self.records.append(records)

    def whole(self, index: int) -> tree.All:
        """All that must hold of a rule."""
        return tree.All((self.rules[index].when, self.rules[index].lines))

    def of_one(self, key: tuple[Dimension, str], index: int) -> np.ndarray:
        """With which values of a dimension a rule may hold."""
        return np.asarray(self.dimensions.possible(self.whole(index), key).true)

    def of_set(self, key: tuple[Dimension, str], index: int) -> np.ndarray:
        """With which values of a set-valued dimension a rule may hold; first: with none of them."""
        truth = np.array(self.dimensions.possible(self.whole(index), key).true, bool)
        decided = [i for i, found in enumerate(self.exact[index]) if found == key]
        if decided:  # the first such part is decided by its names; others stay in the program
            self.decided[index].add(decided[0])
            sets = named_one_of(conjuncts(self.rules[index].when)[decided[0]])
        elif truth[0]:
            sets = []
        else:
            sets = [atom for atom in tree.atoms(self.whole(index)) if dimension_of(atom) == key]
            truth[0] = False
        named = np.zeros(truth.size, bool)
        named[0] = not decided
        for atom in sets:
            named[[place + 1 for place in self.dimensions.places_of(atom)]] = True
        return truth & named

    def bits(self) -> np.ndarray:
        """Section MAY."""
        return np.concatenate(self.records) if self.records else np.zeros((0, self.words), U64)


def bits_of(truths: np.ndarray, words: int) -> np.ndarray:
    """A bitset over the rules."""
    octets = np.zeros(words * 8, np.uint8)
    found = np.packbits(truths, bitorder="little")
    octets[:len(found)] = found
    return octets.view(U64)


def columns_of_bits(columns: dict[int, np.ndarray], size: int, rules: int, words: int) -> np.ndarray:
    """A bitset over the rules for each of `size` values: bit r is columns[r] of the value, or 1 where there is none."""
    found = np.tile(bits_of(np.ones(rules, bool), words), (size, 1))
    for index, column in columns.items():
        found[~np.broadcast_to(column, size), index // 64] &= U64.type(~(1 << index % 64) & 2**64 - 1)
    return found


def set_bits(of: Callable[[tree.Rule], bool], rules: tuple[tree.Rule, ...]) -> np.ndarray:
    """The rules of which something is so, as a bitset."""
    return bits_of(np.fromiter((of(rule) for rule in rules), bool, len(rules)), words_of(len(rules)))
