"""What a checked programme cannot mean: rules that can never fire, overflow, tiers that overlap.

Not for wrong types or unknown names (`check.py`, which calls this). Conditions are evaluated in Kleene's three-valued logic with
one thing known at a time (the article, the store, the hour, ...): a rule is reported only when it is false whatever the rest may
be. The lowering to images uses the same function for its may-sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, combinations

from ledger import limits
from ledger.rules import tree

Known = Callable[[object], bool | None]
SUBSETS_MAX = 6  # of values that may hold together; more are not tried
PLACE = "store"


def kleene(condition: object, known: Known) -> bool | None:
    """A condition of which only some atoms are known. None: it depends on the others."""
    if isinstance(condition, tree.All):
        values = [kleene(part, known) for part in condition.parts]
        return False if False in values else None if None in values else True
    if isinstance(condition, tree.Any):
        values = [kleene(part, known) for part in condition.parts]
        return True if True in values else None if None in values else False
    if isinstance(condition, tree.Not):
        value = kleene(condition.part, known)
        return None if value is None else not value
    return known(condition)


# --- rules that can never fire ----------------------------------------------------------------------------------------


def impossible(programme: tree.Programme) -> Iterator[tuple[int, str]]:
    """Rules that can never fire: index, and why."""
    goods = _Goods(programme)
    campaigns = {campaign.name: campaign for campaign in programme.campaigns}
    for rule in programme.rules:
        whole = tree.All((rule.when, rule.lines))
        excluded = programme.no_points_on if rule.kind in ("points", "add_percent", "times") else None
        if not goods.meet(rule.lines, None):
            yield rule.index, "can never fire: no article of the catalogue meets its `lines`"
        elif excluded is not None and not goods.meet(rule.lines, excluded):
            yield rule.index, "can never fire: all goods that meet its `lines` are under `no_points_on`"
        elif (what := contradiction(programme, whole)) is not None:
            yield rule.index, f"can never fire: its conditions on {what} exclude each other"
        elif rule.campaign is not None and 0 in (campaigns[rule.campaign].limit, campaigns[rule.campaign].uses):
            yield rule.index, f"can never fire: campaign {rule.campaign!r} has a budget of 0"


def burn_impossible(programme: tree.Programme) -> Iterator[tuple[int, str]]:
    """Burn rules that can never decide: index, and why."""
    always: set[int] = set()
    for i, rule in enumerate(programme.burn):
        if (what := contradiction(programme, rule.when)) is not None:
            yield i, f"can never decide: its conditions on {what} exclude each other"
        elif rule.wallet in always:
            yield i, "can never decide: a rule above it, for the same wallet, always holds"
        if rule.when == tree.ALWAYS:
            always.add(rule.wallet)


class _Goods:
    """The kinds of articles that line conditions can tell apart."""

    def __init__(self, programme: tree.Programme):
        mentioned = {
            sku
            for condition in (programme.no_points_on, *(rule.lines for rule in programme.rules))
            for atom in tree.atoms(condition)
            if isinstance(atom, tree.InSet) and atom.kind == "sku"
            for sku in atom.names
        }
        kinds: dict[tuple, tree.Article] = {}
        for article in programme.articles.values():
            key = (article.category, article.brand, article.flags, article.sku if article.sku in mentioned else None)
            kinds.setdefault(key, article)
        self.all_known = bool(programme.articles)
        self.kinds = list(kinds.values())
        self.by_sku = {article.sku: article for article in programme.articles.values() if article.sku in mentioned}
        of_category: dict[str | None, list[tree.Article]] = {}
        self.by_brand: dict[str, list[tree.Article]] = {}
        for article in self.kinds:
            of_category.setdefault(article.category, []).append(article)
            self.by_brand.setdefault(article.brand or "", []).append(article)
        self.by_category: dict[str, list[tree.Article]] = {}
        for category, articles in of_category.items():
            for path in _paths(category):
                self.by_category.setdefault(path, []).extend(articles)
        self.codes = sorted(set(programme.category_codes.values()))

    def meet(self, condition: object, excluded: object | None) -> bool:
        """Whether an article can meet a condition and is not excluded."""
        if kleene(condition, _nameless) is not False:
            return True

        def good(article: tree.Article, unknown: bool) -> bool:
            known = _article_known(article, unknown and not self.all_known)
            return kleene(condition, known) is not False and (excluded is None or kleene(excluded, known) is not True)

        return any(good(article, False) for article in self.candidates(condition)) or any(
            good(tree.Article("", code), True) for code in (*self.codes, None)
        )

    def candidates(self, condition: object) -> list[tree.Article]:
        """Articles among which one must be that meets the condition: by its first sku, category or brand that must hold."""
        parts = condition.parts if isinstance(condition, tree.All) else (condition,)
        for part in parts:
            if isinstance(part, tree.InSet) and part.kind == "sku":
                return [self.by_sku[sku] for sku in sorted(part.names) if sku in self.by_sku]
        for part in parts:
            if isinstance(part, tree.InSet) and part.kind == "category":
                return [article for name in sorted(part.names) for article in self.by_category.get(name, [])]
        for part in parts:
            if isinstance(part, tree.InSet) and part.kind == "brand":
                return [article for name in sorted(part.names) for article in self.by_brand.get(name, [])]
        return self.kinds


def _paths(category: str | None) -> list[str]:
    steps = category.split("/") if category else []
    return ["/".join(steps[:i]) for i in range(1, len(steps) + 1)]


def _article_known(article: tree.Article, sku_unknown: bool) -> Known:
    def known(atom: object) -> bool | None:
        if not isinstance(atom, tree.InSet) or atom.kind not in tree.LINE_SETS:
            return None
        if atom.kind == "sku":
            return None if sku_unknown else article.sku in atom.names
        if atom.kind == "category":
            return tree.under(article.category, atom.names)
        return article.brand in atom.names if atom.kind == "brand" else bool(article.flags & atom.names)

    return known


def contradiction(programme: tree.Programme, condition: object) -> str | None:
    """What makes a condition false whatever it is; None: nothing does."""
    by_kind: dict[str, list] = {}
    for atom in tree.atoms(condition):
        by_kind.setdefault(_kind(atom), []).append(atom)
    for kind, atoms in by_kind.items():
        worlds = _worlds(programme, kind, atoms)
        if worlds is not None and all(kleene(condition, world) is False for world in worlds):
            return kind
    return None


def _kind(atom: object) -> str:
    if isinstance(atom, (tree.InSet, tree.InRange, tree.Is)):
        return PLACE if atom.kind in tree.STORE_SETS else atom.kind
    names = {
        tree.Dates: "dates",
        tree.Hours: "hours",
        tree.Birthday: "birthday",
        tree.Nth: "receipt number",
        tree.EveryNth: "receipt number",
    }
    return names.get(type(atom)) or f"experiment {atom.experiment}"


def _worlds(programme: tree.Programme, kind: str, atoms: list) -> list[Known] | None:
    """Every case that atoms of one kind can tell apart; None: too many, or not tried."""
    if kind == PLACE:
        return [_store_known(store) for store in (*programme.stores.values(), None)] if programme.stores else None
    if kind in ("sku", "category", "brand", "flag", "birthday"):
        return None  # articles are tried whole; a birthday can always be
    if kind == "tier":
        return [_value_known(kind, level.name) for level in programme.tiers.levels]
    if kind == "weekday":
        return [_value_known(kind, day) for day in tree.WEEKDAYS]
    if kind == "channel":
        return [_value_known(kind, channel) for channel in (*programme.channels, "")]
    if kind in ("segment", "tender", "promo_code"):
        names = sorted({name for atom in atoms for name in atom.names})
        if len(names) > SUBSETS_MAX:
            return None
        return [_set_known(kind, set(some)) for some in chain.from_iterable(combinations(names, n) for n in range(len(names) + 1))]
    if kind in tree.LINE_FLAGS:
        return [_flag_known(kind, is_so) for is_so in (False, True)] + [_nameless]
    if kind == "receipt number":
        every = [atom.number for atom in atoms if isinstance(atom, tree.EveryNth)]
        product = 1
        for number in every:
            product *= number
        numbers = {1, product, *every, *(n for atom in atoms if isinstance(atom, tree.Nth) for n in atom.numbers), product * 1_000_003 + 1}
        numbers |= {number * 1_000_003 for number in (product, *every)}
        return [_number_known(number) for number in sorted(numbers)] if len(every) <= 2 else None
    if kind == "dates":
        return [
            _dates_known(at) for at in sorted({0, *(at for atom in atoms for window in atom.windows for at in window if at is not None)})
        ]
    if kind == "hours":
        return [_hours_known(at) for at in sorted({0, *(at % tree.MINUTES_OF_DAY for atom in atoms for at in (atom.low, atom.high))})]
    if kind.startswith("experiment "):
        name = kind.removeprefix("experiment ")
        variants = next(e.variants for e in programme.experiments if e.name == name)
        return [_variant_known(name, variant) for variant, share in variants if share > 0]
    ranges = sorted({0, *(at for atom in atoms for at in (atom.low, atom.high) if at is not None)})
    if kind == "days_since_last_receipt":
        ranges.insert(0, None)
    return [_range_known(kind, at) for at in ranges] + ([_nameless] if kind in tree.LINE_RANGES else [])


def _nameless(atom: object) -> bool | None:
    """The line of a receipt without lines: no condition about lines holds for it."""
    return False if tree.about_lines(atom) else None


def _flag_known(kind: str, is_so: bool) -> Known:
    return lambda atom: is_so == atom.wanted if isinstance(atom, tree.Is) and atom.kind == kind else None


def _variant_known(experiment: str, variant: str) -> Known:
    return lambda atom: variant in atom.variants if isinstance(atom, tree.InVariant) and atom.experiment == experiment else None


def _store_known(store: tree.Store | None) -> Known:
    def known(atom: object) -> bool | None:
        if not isinstance(atom, tree.InSet) or atom.kind not in tree.STORE_SETS:
            return None
        if store is None:
            return False
        if atom.kind == "store_group":
            return bool(store.groups & atom.names)
        return getattr(store, atom.kind) in atom.names

    return known


def _value_known(kind: str, value: str) -> Known:
    return lambda atom: value in atom.names if isinstance(atom, tree.InSet) and atom.kind == kind else None


def _set_known(kind: str, values: set[str]) -> Known:
    return lambda atom: bool(values & atom.names) if isinstance(atom, tree.InSet) and atom.kind == kind else None


def _number_known(number: int) -> Known:
    def known(atom: object) -> bool | None:
        if isinstance(atom, tree.Nth):
            return number in atom.numbers
        return number % atom.number == 0 if isinstance(atom, tree.EveryNth) else None

    return known


def _dates_known(at: int) -> Known:
    return lambda atom: (
        any((low is None or low <= at) and (high is None or at < high) for low, high in atom.windows)
        if isinstance(atom, tree.Dates)
        else None
    )


def _hours_known(at: int) -> Known:
    def known(atom: object) -> bool | None:
        if not isinstance(atom, tree.Hours):
            return None
        return atom.low <= at < atom.high if atom.low < atom.high else at >= atom.low or at < atom.high

    return known


def _range_known(kind: str, at: int | None) -> Known:
    def known(atom: object) -> bool | None:
        if not isinstance(atom, tree.InRange) or atom.kind != kind:
            return None
        return at is not None and (atom.low is None or atom.low <= at) and (atom.high is None or at < atom.high)

    return known


# --- overflow -------------------------------------------------------------------------------------------------------------


def overflowing(programme: tree.Programme) -> Iterator[tuple[int, str]]:
    """Rules that may give more than fits: index, and what to do."""
    most: dict[int, int] = {}
    for rule in programme.rules:
        if rule.kind in ("points", "add_percent", "times"):
            most[rule.index] = 0
    for kind in ("points", "add_percent", "times"):
        for rule in programme.rules:
            if rule.kind != kind:
                continue
            points = _most(programme, rule, most)
            capped = [cap.limit for cap in rule.caps if cap.measure == "points"]
            most[rule.index] = min([points, *capped])
            if most[rule.index] > limits.POINTS_MAX or points > 2**62:
                wallet = programme.wallets[rule.wallet]
                yield (
                    rule.index,
                    (
                        f"would give {tree.decimal(points, wallet.scale)} {wallet.name} on the largest receipt "
                        f"({tree.decimal(programme.largest_receipt, programme.currency_digits)}), at most "
                        f"{tree.decimal(limits.POINTS_MAX, wallet.scale)} are possible"
                    ),
                )


def _most(programme: tree.Programme, rule: tree.Rule, most: dict[int, int]) -> int:
    effect, largest = rule.effect, programme.largest_receipt
    wallet = programme.wallets[rule.wallet]
    if isinstance(effect, tree.Steps):
        return (largest if effect.of == "amount" else limits.QUANTITY_MILLI_MAX) // effect.step * effect.give
    if isinstance(effect, tree.Fixed):
        return effect.give * (limits.LINES_MAX if rule.per == "line" else 1)
    if isinstance(effect, (tree.Percent, tree.AddPercent)):
        targets = len(effect.targets) if isinstance(effect, tree.AddPercent) else 1
        return targets * (largest * effect.ppm * 10**wallet.scale // (1_000_000 * wallet.worth) + limits.LINES_MAX)
    return sum(most[target] for target in effect.targets) * effect.more // 10_000 + limits.LINES_MAX


# --- tiers ----------------------------------------------------------------------------------------------------------------


def overlapping(programme: tree.Programme) -> Iterator[tuple[int, str]]:
    """Levels that are reached as easily as a lower one: index, and by what."""
    if programme.tiers is None:
        return
    levels = programme.tiers.levels
    for i in range(2, len(levels)):
        for way in _ways(levels[i].reach):
            if any(_implies(below, way) for below in _ways(levels[i - 1].reach)):
                said = " and ".join(_said(programme, threshold) for threshold in way)
                yield i, f"is reached with no more than {levels[i - 1].name} ({said}): a higher level must be harder to reach"
                break


def _ways(reach: object) -> list[tuple[tree.Threshold, ...]]:
    """Sets of thresholds of which one must hold whole."""
    if isinstance(reach, tree.Any):
        return [way for part in reach.parts for way in _ways(part)]
    if isinstance(reach, tree.All):
        ways: list[tuple[tree.Threshold, ...]] = [()]
        for part in reach.parts:
            ways = [(*way, *more) for way in ways for more in _ways(part)][:256]
        return ways
    return [(reach,)]


def _implies(below: tuple[tree.Threshold, ...], way: tuple[tree.Threshold, ...]) -> bool:
    """Whether whoever meets `below` meets `way`: every threshold of it is no higher than one of the same measure and window below."""

    def easier(high: tree.Threshold) -> bool:
        return any((low.measure, low.window) == (high.measure, high.window) and high.at_least <= low.at_least for low in below)

    return all(easier(high) for high in way)


def _said(programme: tree.Programme, threshold: tree.Threshold) -> str:
    digits = programme.currency_digits if threshold.measure == "spent" else 0
    return f"{threshold.measure} {tree.decimal(threshold.at_least, digits)}"
