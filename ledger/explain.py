"""Why a receipt got what it got: one entry of the journal, with the programme that was in force then, in words.

The entry is the truth: its awards, discounts and paid parts are what was given. How they came about is found by letting the core decide the
same receipt once more, with the member and the campaigns as they were just before (ledger/_simulator.pyx); where that comes to something
else than the entry, it is said. The rules' texts are those of the source in the journal. Not for printing (server/cli_explain.py).
Units: minor units, points in smallest units, thousandths, days since 1970, us since 1970.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ledger import errors, limits
from ledger._index import names_of, request_hash
from ledger._simulator import Simulator
from ledger.journal import Damage, Group, Journal, NotReadable, read_entry, read_group
from ledger.rules import quoted
from ledger.rules.syntax import ProgramError
from ledger.rules.tree import decimal

IDS_KEPT = 65_536
MEMBERS_MIN = 65_536
PIECE_DIGITS = 3
NOTICES = {1: "store", 2: "sku", 3: "category", 4: "promo code", 5: "tender", 6: "channel"}
RECEIPTS = ("earn", "commit")

Progress = Callable[[int, int], None]


class NotFound(Exception):
    """There is no such entry. `str()` is one clear sentence."""


# --- which entry ------------------------------------------------------------------------------------------------------

def by_request(data: Path, request_id: str, progress: Progress = lambda done, total: None) -> int:
    """The sequence of a request id's entry. Reads the journal through. Errors: NotFound, JournalError."""
    hashed = request_hash(request_id.encode())
    for sequence, entry in _with(data, hashed, progress):
        if entry[24:40] == hashed:
            return sequence
    raise NotFound(f"the journal has no entry of the request {request_id!r}")


def by_receipt(data: Path, store: str, till: str, business_day: int, number: str, progress: Progress = lambda done, total: None) -> int:
    """The sequence of a receipt's earn or commit, else of the first entry that names it (a burn, a refusal). Errors: as above."""
    key = (store.encode(), till.encode(), business_day, number.encode())
    found = 0
    for sequence, entry in _with(data, bytes([len(key[3])]) + key[3], progress):
        if names_of(entry)[2] == key:
            if entry[4] in (1, 6) and entry[6:8] == b"\0\0":
                return sequence
            found = found or sequence
    if not found:
        raise NotFound(f"the journal has no receipt {store}/{till}/{business_day}/{number}")
    return found


def _with(data: Path, needle: bytes, progress: Progress) -> Iterator[tuple[int, bytes]]:
    """The entries of the groups whose bytes hold these. Errors: JournalError."""
    with Journal(data) as journal:
        total = journal.drained().sequence
        for batch in journal.batches():
            for key, record in batch:
                found = bytes(record)
                if needle in found:
                    yield from read_group(found, f"{journal.file}, group {key}")
            progress(batch[-1][0], max(total, batch[-1][0]))


# --- the explanation --------------------------------------------------------------------------------------------------

def explain(data: Path, sequence: int, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Everything about one entry, as plain values. Errors: NotFound, JournalError, MemoryError.

    Shape: docs/explain.md.
    """
    with Journal(data) as journal:
        last = journal.drained().sequence
        head = journal.group_of(sequence) if sequence >= 1 else None
        if head is None:
            raise NotFound(f"the journal has no entry {sequence}: it ends with {last}"
                           + (" (what is newer may still be in the tail: ask again in a moment)" if sequence > last else ""))
        entry = journal.entries([(sequence, head.first_sequence, 128)])[0]
        value = read_entry(entry, where=f"entry {sequence}")
        if value["kind"] not in RECEIPTS:
            return _facts(sequence, value, None, [])
        work = Simulator(journal.directory, max(MEMBERS_MIN, _members_at(journal, head.last_sequence)), IDS_KEPT, limits.RESERVATIONS_MAX,
                         target=sequence, only_member=value["member"])
        for batch in journal.batches():
            fault = work.feed(batch)
            if fault is not None:
                index, name, at, applied = fault
                raise Damage(f"{journal.file}, group {batch[index][0]}, entry {at}", f"it cannot be read or applied ({name}, {applied})")
            progress(min(work.last_sequence, sequence), sequence)
            if work.over:
                break
        return _facts(sequence, value, work.explained(), work.programmes)


def _members_at(journal: Journal, sequence: int) -> int:
    """Room for all accounts up to a sequence: as many as there are entries at most, and no more than the newest groups speak of."""
    highest = 0
    for record in journal.last_records(64):
        group = read_group(record, str(journal.file))
        highest = max(highest, *_members_of(group))
    return min(max(sequence, 1), max(4 * highest, MEMBERS_MIN), limits.MEMBERS_MAX_LIMIT)


def _members_of(group: Group) -> list[int]:
    return [int.from_bytes(entry[16:20], "little") for _, entry in group]


def _facts(sequence: int, value: dict[str, Any], again: dict[str, Any] | None, programmes: list[tuple[int, bytes]]) -> dict[str, Any]:
    """What the entry says, and how it came about."""
    context, state = value.get("context", {}), value.get("rules_state")
    source = dict(programmes).get(value["program"], b"")
    version = value.get("quote", {}).get("program", value["program"])
    source = dict(programmes).get(version, source)
    rules = _quoted(source)
    wallets = (again or {}).get("wallets", [])
    digits = (again or {}).get("currency_digits", 2)
    found: dict[str, Any] = {
        "sequence": sequence, "kind": value["kind"], "time_us": value["time_us"], "member_id": value["member"], "opened": value["opened"],
        "program_version": version, "by_quote": "quote" in value, "program": _name(source),
        "refusal": errors.BY_NUMBER[value["status"]].name if value["status"] else None,
        "receipt": {name: context[name] for name in ("store", "till", "business_day", "number", "total_minor", "business_time_us")
                    if name in context} | {name: said for name, said in value.get("receipt", {}).items() if said},
        "currency": (again or {}).get("currency", ""), "currency_digits": digits, "wallets": wallets,
        "lines": _lines(value), "receipt_number": state["receipt"] if state else None,
        "tier": state["tier_before_name"] if state else "", "new_tier": state["tier_name"] if state else "",
        "entitlements": value.get("entitlements", []),
        "notices": [f"unknown {NOTICES.get(row['kind'], 'thing')} {row['text']!r}" for row in value.get("notices", {}).get("rows", ())],
        "postings": value.get("postings", []), "operator": context.get("operator", ""), "reason": context.get("reason", ""),
    }
    found["rules"] = _rules(value, again, rules, wallets, digits)
    found["differs"] = _differs(value, again)
    found["burn_limits"] = (again or {}).get("burn_limits", [])
    found["recomputed"] = again is not None and again["decided"]
    return found


def _quoted(source: bytes) -> list[quoted.QuotedRule]:
    try:
        return quoted.rules_of(source) if source else []
    except ProgramError:
        return []  # of a kind that this build does not know: the rules go by their numbers


def _name(source: bytes) -> str:
    try:
        return quoted.programme_name(source) if source else ""
    except ProgramError:
        return ""


def _lines(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Each line with what it was given."""
    details = {row["line"]: row for row in value.get("line_details", ())}
    off = {row["line"]: row["amount_minor"] for row in value.get("discounts", ())}
    paid = {row["line"]: row["amount_minor"] for row in value.get("paid", ())}
    lines = list(enumerate(value.get("lines", ()), start=1))
    if not lines or any(row["line"] == 0 for row in value.get("awards", ())):
        lines.append((0, {"sku": "", "category": "", "quantity_milli": 0,
                          "amount_minor": value.get("context", {}).get("total_minor", 0)}))
    return [{"line": number, **line, "regular_amount_minor": details.get(number, {}).get("regular_amount_minor", 0),
             "discount_minor": off.get(number, 0), "paid_minor": paid.get(number, 0),
             "points": [{"rule": row["rule"], "wallet": row["wallet"], "points": row["points"]}
                        for row in value.get("awards", ()) if row["line"] == number]} for number, line in lines]


def _differs(value: dict[str, Any], again: dict[str, Any] | None) -> list[str]:
    """Where deciding once more does not come to what the entry says: in words."""
    if again is None or not again["decided"]:
        return []
    told = []
    if again["status"] != value["status"]:
        words = [errors.BY_NUMBER[status].name if status else "yes" for status in (value["status"], again["status"])]
        return [f"the entry says {words[0]}, deciding once more says {words[1]}"]
    other = read_entry(again["entry"]) if "entry" in again else {}
    for name in ("awards", "discounts", "paid", "entitlements", "variants"):
        if value.get(name, []) != other.get(name, []):
            told.append(f"{name}: the entry has {value.get(name, [])}, deciding once more gives {other.get(name, [])}")
    return told


# --- rules in words ---------------------------------------------------------------------------------------------------

def _rules(value: dict[str, Any], again: dict[str, Any] | None, rules: list[quoted.QuotedRule], wallets: list[dict[str, Any]],
           digits: int) -> list[dict[str, Any]]:
    """Each rule that gave something, or whose conditions held: what it gave by the entry, and how."""
    given: dict[int, dict[str, Any]] = {}
    for award in value.get("awards", ()):
        row = given.setdefault(award["rule"], {"rule": award["rule"], "wallet": award["wallet"], "points": 0, "lines": []})
        row["points"] += award["points"]
        row["lines"].append({"line": award["line"], "points": award["points"]})
    found: list[dict[str, Any]] = []
    seen = set()
    for row in (again or {}).get("given", ()):
        number = row["rule"]
        seen.add(number)
        told = given.get(number)
        points = row["wallet"] is not None
        scale = _scale(row, wallets, digits)
        unit = wallets[row["wallet"]]["name"] if points else (again or {}).get("currency", "")
        found.append({
            **row, "gave": (told["points"] if told else 0) if points else row["given"],
            "lines": told["lines"] if points and told else
            [{"line": line["line"], "amount_minor": line["amount"]} for line in row["lines"]],
            "unit": unit, "scale": scale, "words": words_of(row, scale, unit, digits, (again or {}).get("currency", "")),
            "source": _source(rules, number), "numerator": str(row["numerator"])})
    for number, told in given.items():
        if number not in seen:
            scale = wallets[told["wallet"]]["scale"] if told["wallet"] < len(wallets) else 0
            unit = wallets[told["wallet"]]["name"] if told["wallet"] < len(wallets) else f"wallet {told['wallet']}"
            words = [f"gave {decimal(told['points'], scale)} {unit}"]
            if again is not None and again.get("rules_version") == 1:
                words = [f"of the receipt's {decimal(value['context'].get('total_minor', 0), digits)}: "
                         f"{decimal(told['points'], scale)} {unit}; the rule's text says how"]
            found.append({"rule": number, "name": _label(rules, number), "gave": told["points"], "lines": told["lines"], "unit": unit,
                          "scale": scale, "cuts": [], "words": words, "source": _source(rules, number)})
    for row in (again or {}).get("not_given", ()):
        words = [_why_not(row, _scale(row, wallets, digits))]
        found.append({**row, "gave": 0, "lines": [], "unit": "", "scale": 0, "cuts": [], "words": words,
                      "source": _source(rules, row["rule"])})
    return sorted(found, key=lambda row: row["rule"])


def _scale(row: dict[str, Any], wallets: list[dict[str, Any]], digits: int) -> int:
    """Decimals of what a rule gives."""
    return digits if row["wallet"] is None else wallets[row["wallet"]]["scale"]


def _label(rules: list[quoted.QuotedRule], number: int) -> str:
    return rules[number - 1].name if number <= len(rules) and rules[number - 1].name else f"rule {number}"


def _source(rules: list[quoted.QuotedRule], number: int) -> str:
    return rules[number - 1].text if number <= len(rules) else ""


def shortest(value: int, digits: int) -> str:
    """As `decimal`, without zeros at the end: 2.50 is 2.5."""
    text = decimal(value, digits)
    return text.rstrip("0").rstrip(".") if "." in text else text


def words_of(row: dict[str, Any], scale: int, unit: str, digits: int, currency: str) -> list[str]:
    """How a rule came to what it gave: amount, rate, rounding, cuts; one sentence each."""
    base, gives = row["base"], row["gives"]
    lines = ", line by line" if row["per"] == "line" else ""
    money = f"{decimal(base, digits)} {currency}"
    if row["form"] == "step":
        told = f"{decimal(gives, scale)} for every full {decimal(row['step'], digits)} {currency} of {money}{lines}"
    elif row["form"] == "quantity_step":
        told = f"{decimal(gives, scale)} for every full {shortest(row['step'], PIECE_DIGITS)} of "
        told += f"{shortest(base, PIECE_DIGITS)} pieces or kg{lines}"
    elif row["form"] == "fixed":
        told = f"{decimal(gives, scale)} {'for each of its lines' if row['per'] == 'line' else 'once'}, of {money}"
    elif row["form"] == "percent":
        percent = shortest(gives, 4)
        told = f"{percent} % {'more ' if row['kind'] == 'add_percent' else ''}of {money}{_worth(row, scale, digits)}{lines}"
    else:
        told = f"times {shortest(gives + 10_000, 4)}: {shortest(gives, 4)} times more of {decimal(base, scale)} {unit} given{lines}"
    found = [told]
    if row["form"] in ("percent", "times") and row["divisor"] > 0:
        exact = row["numerator"] * 10**4 // row["divisor"]
        rest = "" if row["numerator"] * 10**4 % row["divisor"] == 0 else "..."
        how = {"floor": "rounded down", "half_up": "rounded to the nearest, halves up", "ceil": "rounded up"}[row["round"]]
        if row["kind"] == "add_percent":
            how = "rounded together with the rule that it is added to"
        found.append(f"exactly {shortest(exact, 4 + scale)}{rest} {unit}, {how}{lines}: {decimal(row['rounded'], scale)}")
    else:
        found.append(f"that is {decimal(row['rounded'], scale)} {unit}")
    found += [f"cut by {decimal(cut['amount'], scale)}: {_limit(cut, row, scale)}" for cut in row["cuts"]]
    if row["cuts"]:
        found.append(f"left: {decimal(row['given'], scale)} {unit}")
    return found


def _worth(row: dict[str, Any], scale: int, digits: int) -> str:
    """What a whole point is worth in a rule of percents, where that is not one whole of the currency: " at 0.10 a point"."""
    if row["wallet"] is None or row["rate_factor"] == 0:
        return ""
    worth, rest = divmod(10**scale * row["rate_divisor"], row["rate_factor"] * 10**6)
    return "" if rest or worth == 10**digits else f", at {decimal(worth, digits)} a point"


def _limit(cut: dict[str, Any], row: dict[str, Any], scale: int) -> str:
    """Which limit it was."""
    reason, of = cut["reason"], cut["of"]
    if reason in ("cap", "cap_uses"):
        caps = [cap for cap in row["caps"] if cap["per"] == of and (cap["of"] == "uses") == (reason == "cap_uses")]
        most = "" if not caps else f"{caps[0]['limit']} uses " if reason == "cap_uses" else f"{decimal(caps[0]['limit'], scale)} "
        return f"its cap of {most}{'' if of == 'ever' else 'per '}{of}"
    return {"campaign": f"the budget of the campaign {of!r}", "campaign_uses": f"the uses of the campaign {of!r}",
            "nothing_left": "a line never goes below 0", "cap_too_late": "the receipt is too old for what its caps remember",
            "too_little": "it comes to less than one", "would_never_count": "the points would be gone before they can be used",
            }.get(reason, reason)


def _why_not(row: dict[str, Any], scale: int) -> str:
    """Why a rule whose conditions held gave nothing."""
    if row["reason"] == "lost_to":
        return f"nothing: {row['of']!r} took its lines"
    if row["reason"] in ("cap", "cap_uses", "campaign", "campaign_uses"):
        return f"nothing: {_limit(row, row, scale)} was used up before this receipt"
    return f"nothing: {_limit(row, row, scale)}"


__all__ = ["NotFound", "NotReadable", "by_receipt", "by_request", "explain", "words_of"]
