"""Limits: YAML to the tree, and whatever is wrong with them. docs/rules.md section 13 is the definition.

Not for counting (the core does) nor for the image (`lower_velocity.py`). Called by `check.py` and
ledger/backtest.py. A limit that could never be above its bound, or whose answer nobody would get, is a mistake: it would look like
protection.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ruamel.yaml.nodes import Node, ScalarNode

from ledger import limits
from ledger.rules import syntax, tree
from ledger.rules.shape import Choice, Flag, Got, Key, Kind, ListOf, Name, Number, OneOrMore, Raw, Reading, Record, Span, Text, Whole
from ledger.rules.syntax import Problems, ProgramError, read_decimal, read_span, shown

LIMITS_MAX = 256
COUNTERS_MAX = 64
KEYS_PER_LIMIT_MAX = 3
SLIDING_MAX = 2**32 - 1  # a sub-bucket of a sliding window is 32 bits and saturates
RECENT_MAX = 12  # different ones that a sliding window tells apart, but for the one that is too many
DIFFERENT_MAX = 100_000  # different members, stores and regions are counted in 32,768 bits, which says nothing beyond
MEANS_MAX = 1_000_000  # a thousand times the mean
RECEIPTS_MAX = 1_000_000
CALENDAR = ("day", "week", "month", "ever")
_UNITS = {"minutes": 1440, "hours": 24}
_SECONDS = {"minutes": 60, "hours": 3600, "days": 86_400}
_POSTED = ("earns", "burns", "reservations")
_ENTRIES = tuple(word for word in tree.OF if word not in tree.LOOK_UPS)


class _Window(Kind):
    """A calendar window, or a sliding one: (window, seconds)."""

    right = "receipt, day, week, month, ever, or `10 minutes`, `2 hours` from 1 minute to 24 hours"
    json = {"type": "string", "pattern": "^(receipt|day|week|month|ever|[0-9]+ +(minutes?|hours?))$"}

    def parse(self, r, text):
        if text in tree.LIMIT_WINDOWS[:-1]:
            return text, 0
        span = read_span(_UNITS)(text)
        return ("sliding", span[0] * _SECONDS[span[1]]) if span is not None and span[0] > 0 else None

    def hint(self, r, node):
        return syntax.suggestion(node.value, tree.LIMIT_WINDOWS[:-1]) if isinstance(node, ScalarNode) else ""


_LIMIT = Record(
    {
        "name": Key(Text(limits.RULE_NAME_BYTES_MAX), "its name, no two alike", must=True),
        "of": Key(OneOrMore(Choice(*tree.OF), len(tree.OF)), "which entries (or look-ups) are counted", must=True),
        "measure": Key(Choice(*tree.MEASURES), "what of them is counted", default="count"),
        "per": Key(OneOrMore(Choice(*tree.KEYS), KEYS_PER_LIMIT_MAX), "for each of these, or each combination of up to three", must=True),
        "window": Key(_Window(), "in which time", must=True),
        "segments": Key(OneOrMore(Name("segment"), limits.SEGMENTS_MAX), "only members in one of these segments; default: all", default=()),
        "gives_back": Key(Flag(), "what is returned or released is taken out of the counter", default=False),
        "at_most": Key(Raw(), "the bound"),
        "at_most_means": Key(Number(3, 1, MEANS_MAX, "a number"), "so many times the mean money of the receipts so far"),
        "after": Key(Whole(2, RECEIPTS_MAX), "with at_most_means: from so many receipts on"),
        "then": Key(Choice(*tree.ACTIONS), "what happens above the bound", must=True),
        "rung": Key(Choice(*tree.RUNGS), "the member's rung becomes"),
        "lasts": Key(Span({"days": 3660, "hours": 8760, "minutes": 1440}, 1), "with rung: for how long; default: without end"),
    }
)
_ROWS = ListOf(_LIMIT, 0, LIMITS_MAX, "limits")
_FILE = Record({"limits": Key(_ROWS, "the limits", must=True)})


class LimitsKind(Kind):
    """A list of limits, or the name of a file beside the programme that holds one; read when the names are known."""

    name = Text(255)

    def read(self, r, node, path):
        return self.name.read(r, node, path) if isinstance(node, ScalarNode) else _ROWS.read(r, node, path)

    def schema(self):
        return {"anyOf": [_ROWS.schema(), {"type": "string", "description": "a YAML file beside the programme, with `limits` at its top"}]}


def read_limits(
    r: Reading, node: Node | None, value: object, wallets: tuple[tree.Wallet, ...], folder: Path | None
) -> tuple[tree.Limit, ...]:
    """The limits of a programme. value: what LimitsKind read at `node`."""
    if isinstance(value, str):
        return _from_file(r, node, value, wallets, folder)
    return _Limits(r, wallets).read([got for got, _ in value or ()])


def _from_file(r: Reading, node: Node, name: str, wallets: tuple[tree.Wallet, ...], folder: Path | None) -> tuple[tree.Limit, ...]:
    """The limits of a file. Its mistakes stand at the place where the programme names it, as those of tables do."""
    if folder is None:
        r.wrong(node, "limits", "a file can only be read where the programme itself is a file")
        return ()
    try:
        with (folder / name).open("rb") as file:
            source = file.read(limits.SOURCE_BYTES_MAX + 1)
    except OSError as error:
        r.wrong(node, "limits", f"{name} cannot be read: {error.strerror or error}")
        return ()
    own = dataclasses.replace(r, problems=Problems(name))
    found: tuple[tree.Limit, ...] = ()
    try:
        got = _FILE.begin(own, syntax.parse_strict(source, name, "limits:"), "")
        if isinstance(below := got.nodes.get("limits"), ScalarNode) and below.value:
            own.wrong(below, "limits", f"must be the list of limits here: a file cannot name another one, was {shown(below)}")
        else:
            _FILE.finish(own, got)
            found = _Limits(own, wallets).read([limit for limit, _ in got["limits"] or ()])
        own.problems.raise_if_any()
    except ProgramError as error:
        for line in str(error).split("\n"):
            r.wrong(node, "limits", line)
    return found


def read_alone(source: bytes, file: str, folder: Path, programme: tree.Programme) -> tuple[tree.Limit, ...]:
    """The limits of a file of limits, or of a whole programme, with the names of another programme. ProgramError."""
    top = syntax.parse_strict(source, file, "limits:")
    r = Reading(Problems(file), programme.currency_digits, programme.currency, {
        "segment": programme.segments, "region": {store.region for store in programme.stores.values() if store.region}})
    keys = [key.value for key, _ in top.value]
    if "programme" in keys and "limits" not in keys:
        r.wrong(top, "limits", "the programme has none, so there is nothing to test")
    elif "programme" not in keys:
        _FILE.begin(r, top, "")
    r.problems.raise_if_any()
    node = dict(zip(keys, (value for _, value in top.value), strict=True))["limits"]
    found = read_limits(r, node, LimitsKind().read(r, node, "limits"), programme.wallets, folder)
    r.problems.raise_if_any()
    return found


class _Limits:
    """The limits of one list, while they are read."""

    def __init__(self, r: Reading, wallets: tuple[tree.Wallet, ...]):
        self.r, self.wallets = r, wallets

    def read(self, rows: list[Got]) -> tuple[tree.Limit, ...]:
        """What is right of them. Each wrong one is a problem, and so are two that say the same."""
        found: list[tree.Limit] = []
        names: dict[str, str] = {}
        said: dict[tree.Limit, str] = {}
        counters: set[tree.Counter] = set()
        for got in rows:
            name = got["name"]
            if name is not None and name in names:
                got.wrong(self.r, "name", f"{name!r} is taken by {names[name]}, must be another name")
            names.setdefault(name, got.path)
            limit = _Limit(self.r, got, self.wallets).read()
            if limit is None:
                continue
            nameless = dataclasses.replace(limit, name="")
            if nameless in said:
                got.wrong(self.r, "", f"says the same as {said[nameless]!r}, must say something else or be left out")
            said.setdefault(nameless, limit.name)
            more = [counter for counter in limit.counters if counter not in counters]
            if len(counters) <= COUNTERS_MAX < len(counters) + len(more):
                got.wrong(self.r, "", f"counts what no limit before it does and needs counter {COUNTERS_MAX + 1}, at most {COUNTERS_MAX} "
                                      "are possible: limits with the same of, measure, per, window and segments share one")
            counters.update(more)
            found.append(limit)
        return tuple(found)


@dataclasses.dataclass
class _Limit:
    """One limit while it is read. Of each key the first thing that is wrong is told."""

    r: Reading
    got: Got
    wallets: tuple[tree.Wallet, ...]
    told: set[str] = dataclasses.field(default_factory=set)

    def wrong(self, key: str, text: str) -> None:
        if key not in self.told:
            self.got.wrong(self.r, key, text)
            self.told.add(key)

    def read(self) -> tree.Limit | None:
        got = self.got
        for key, (value, must) in {key: (got[key], kind.must) for key, kind in _LIMIT.keys.items()}.items():
            if value is None and (must or key in got):
                return None  # told when it was read: what it stands beside cannot be judged
        if got.unknown or "segments" in got and not got["segments"] or "measure" in got and self.misread("measure"):
            return None
        window, window_s = got["window"]
        counts = tree.Counter(
            tuple(word for word in tree.OF if word in got["of"]), got["measure"], tuple(word for word in tree.KEYS if word in got["per"]),
            window, window_s, frozenset(got["segments"]), got["gives_back"])
        self.of_alone(counts)
        self.keys(counts)
        self.measures(counts)
        self.gives_back(counts)
        self.answers(counts)
        at_most = self.bound(counts)
        if self.told:
            return None
        number, unit = got["lasts"] or (0, "days")
        return tree.Limit(got["name"], counts, at_most, got["after"] or 0, got["then"], got["rung"], number * _SECONDS[unit])

    def misread(self, key: str) -> bool:
        """Whether a key with a default stands there and could not be read."""
        node = self.got.nodes[key]
        return not isinstance(node, ScalarNode) or node.value != self.got[key]

    # --- which combinations have a meaning -------------------------------------------------------------------------------

    def of_alone(self, counts: tree.Counter) -> None:
        """Look-ups are counted in memory, entries in the state: no counter is both."""
        if set(counts.of) & set(tree.LOOK_UPS) and (others := [word for word in counts.of if word not in tree.LOOK_UPS]):
            self.wrong("of", f"balances and unknown_balances are look-ups, which no entry knows, must not stand beside {others[0]}")

    def keys(self, counts: tree.Counter) -> None:
        of, per = counts.of, counts.per
        if per == ("hour",):
            self.wrong("per", "must not be hour alone: one counter would be all members'; say of what, such as [store, hour]")
        if "basket" in per and of != ("earns",):
            self.wrong("per", f"basket has a meaning only of earns: {_first_but(of, 'earns')} have no lines")
        for word, key, why in (
            ("enrolments", "member", "a member is opened once"),
            ("enrolments", "identifier", "an identifier opens one account"),
            ("unknown_balances", "member", "none was found"),
            ("returns", "identifier", "a return names a receipt, no member"),
        ):
            if word in of and key in per:
                self.wrong("per", f"{key} has no meaning of {word}: {why}")
        if counts.volatile and "hour" in per:
            self.wrong("per", f"hour has no meaning of {of[0]}: look-ups are counted by when they come, not in store time")
        for word, why in (("enrolments", "a member who was just opened is in none"), ("unknown_balances", "there is no member")):
            if word in of and counts.segments:
                self.wrong("segments", f"has no meaning of {word}: {why}")
        if counts.window == "receipt" and "at_most_means" not in self.got:
            for key in ("hour", "basket"):
                if key in per:
                    self.wrong("per", f"{key} has no meaning with window receipt: nothing is added up")

    def measures(self, counts: tree.Counter) -> None:
        of, per, measure, window = counts.of, counts.per, counts.measure, counts.window
        allowed = {"count": tree.OF, "points": (*_POSTED, "returns"), "money": of if of == ("returns",) else ("earns",),
                   "quantity": ("earns",), "members": _ENTRIES, "stores": _ENTRIES, "regions": _ENTRIES}[measure]
        if other := [word for word in of if word not in allowed]:
            only = "" if measure in tree.DIFFERENT else f", must be of {' or '.join(allowed)}"
            self.wrong("measure", f"{measure} has no meaning of {other[0]}{only}")
        if measure == "quantity" and window != "receipt":
            self.wrong("measure", "quantity is that of one line, has a meaning only with window receipt")
        if counts.volatile and window == "receipt":
            self.wrong("window", "must not be receipt of look-ups: must be a time")
        if measure == "regions" and not self.r.known.get("region"):
            self.wrong("measure", "regions has no meaning: no store of the programme has a region; list its stores with the region of each "
                                  "(`stores: [{store: CODE, region: NAME}, ...]`)")
        if measure in tree.DIFFERENT:
            if window == "receipt":
                self.wrong("window", f"must be a time with measure {measure}: a receipt has only one")
            for key, why in {"members": {"member": "a member is one", "identifier": "an identifier names one member"},
                             "stores": {"store": "a store is one", "till": "a till is in one store"},
                             "regions": {"store": "a store is in one region", "till": "a till is in one region"}}[measure].items():
                if key in per:
                    self.wrong("per", f"{key} has no meaning with measure {measure}: {why}")
            if measure == "members" and of == ("enrolments",):
                self.wrong("measure", "members has no meaning of enrolments: each opens another member, must be count")

    def gives_back(self, counts: tree.Counter) -> None:
        """Only what adds up, in windows that keep one sum, can be taken out again."""
        if not counts.gives_back:
            return
        if other := [word for word in counts.of if word not in _POSTED]:
            self.wrong("gives_back", f"has no meaning of {other[0]}, must be of {' or '.join(_POSTED)}")
        elif counts.window not in CALENDAR:
            self.wrong("gives_back", f"has a meaning only with one of the windows {', '.join(CALENDAR)}")
        elif counts.measure not in ("count", "points", "money"):
            self.wrong("gives_back", f"has no meaning with measure {counts.measure}: who was there has been there")

    def answers(self, counts: tree.Counter) -> None:
        got, of = self.got, counts.of
        then = got["then"]
        if then in ("reduce", "review") and of != ("earns",):
            self.wrong("then", f"{then} has a meaning only of earns alone, was of {', '.join(of)}")
        elif then == "reduce" and counts.measure not in ("points", "count"):
            self.wrong("then", f"reduce has a meaning only with measure points (or count: then nothing is given), was {counts.measure}")
        elif then == "challenge" and not set(of) <= {"burns", "reservations"}:
            self.wrong("then", f"challenge has a meaning only of burns and reservations, was of {', '.join(of)}")
        elif counts.volatile and then not in ("shadow", "mark", "refuse"):
            self.wrong("then", f"must be shadow, mark or refuse of {of[0]}, was {then}")
        elif of == ("refusals",) and then == "refuse":
            self.wrong("then", "refuse has no meaning of refusals alone, which are refused already; must be shadow or mark (with a "
                               "rung if more is to follow)")
        if "rung" in got:
            if then == "shadow":
                self.wrong("rung", "must not be set with shadow, which only counts")
            elif counts.volatile:
                self.wrong("rung", f"has no meaning of {of[0]}: a look-up writes no entry that could change it")
            elif of == ("enrolments",) and then == "refuse":
                self.wrong("rung", "has no meaning with an enrolment that is refused: there is no member")
        elif "lasts" in got:
            self.wrong("lasts", "has a meaning only with rung, must not be set")

    # --- the bound -------------------------------------------------------------------------------------------------------

    def bound(self, counts: tree.Counter) -> int:
        """In smallest units, or in thousandths of the mean."""
        got = self.got
        means = "at_most_means" in got
        if means == ("at_most" in got):
            had = ", has both" if means else ", has none"
            self.wrong("at_most_means" if means else "", f"must have one of at_most, at_most_means{had}")
            return 0
        if means != ("after" in got):
            self.wrong("after", "is missing, must be set with at_most_means" if means else "has no meaning without at_most_means")
            return 0
        if means:
            if counts.measure != "money" or counts.window != "receipt":
                self.wrong("at_most_means", "has a meaning only with measure money and window receipt: it compares a receipt with those "
                                            "before it")
            return got["at_most_means"]
        digits, most, what, why = self.units(counts)
        value = read_decimal(digits, 0, most)(got["at_most"])
        if value is None:
            with_decimals = f" with at most {digits} decimals" if digits else ""
            self.wrong("at_most", f"must be {what} from {tree.decimal(0, digits)} to {tree.decimal(most, digits)}{with_decimals}{why}, "
                                  f"was {got['at_most']!r}")
        elif counts.measure == "count" and counts.window == "receipt" and value > 0:
            self.wrong("at_most", f"one command counts 1 and is never above {value}, must be 0 (none at all) or window another one")
        return value or 0

    def units(self, counts: tree.Counter) -> tuple[int, int, str, str]:
        """Decimals and the largest bound of a measure; how a bound is called, and what else is to be said of it."""
        sliding = counts.window == "sliding"
        most = SLIDING_MAX if sliding else limits.WALLET_POINTS_MAX
        why = " (a sliding window counts no further)" if sliding else ""
        match counts.measure:
            case "money":
                return self.r.digits, most, "an amount", why
            case "points":
                scale = points_scale(self.wallets)
                return scale or 0, most, "a number of points", why or ("" if scale is not None else
                                                                       " (smallest units: the wallets have different scales)")
            case "quantity":
                return 3, limits.QUANTITY_MILLI_MAX, "a quantity", ""
            case "members" | "stores" | "regions":
                if sliding:
                    return 0, RECENT_MAX, "a whole number", " (a sliding window tells no more apart)"
                return 0, DIFFERENT_MAX, "a whole number", ""
        return 0, most, "a whole number", why


def points_scale(wallets: tuple[tree.Wallet, ...]) -> int | None:
    """The decimals of points over all wallets. None: they differ, and only smallest units can be added up."""
    scales = {wallet.scale for wallet in wallets}
    return scales.pop() if len(scales) == 1 else None


def _first_but(of: tuple[str, ...], word: str) -> str:
    return next(one for one in of if one != word)
