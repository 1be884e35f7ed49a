"""What rules keep of members, in plain Python from docs/journal-format.md: applied entry by entry, with the facts of the digest.

Not for what rules mean (ledger/rules/reference.py). Used by the second reader (tests/ledger/test_second_reader.py) and by
tests/ledger/test_members.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Any

EPOCH = date(1970, 1, 1)
NEVER = 2**31 - 1
NO_WINDOW = 2**32 - 2**31
DAY, WEEK, MONTH, YEAR, EVER, BIRTHDAY, ANNIVERSARY = range(1, 8)


def behind(per: int, window: int, opened_day: int) -> int:
    """The first day behind a window."""
    if per == DAY:
        return window + 1
    if per == WEEK:
        return (window + 1) * 7 - 3
    if per == MONTH:
        return (date((window + 1) // 12, (window + 1) % 12 + 1, 1) - EPOCH).days
    if per in (YEAR, BIRTHDAY):
        return (date(window + (1 if per == YEAR else 2), 1, 1) - EPOCH).days
    return opened_day + (window + 2) * 366 if per == ANNIVERSARY else NEVER


@dataclass
class Profile:
    opened_day: int = 0
    receipts: int = 0
    first_day: int = 0
    last_day: int = 0
    tier: int = 0
    tier_until: int = 0
    birthday: int = 0
    birthday_from: int = 0
    segments: list[int] = field(default_factory=lambda: [0, 0])
    chosen: int = 0
    counters: dict[int, tuple[int, dict[int, int]]] = field(default_factory=dict)  # counter: per, window -> value
    days: dict[int, list[int]] = field(default_factory=dict)  # day: receipts, spent


class RulesState:
    """Of all members."""

    def __init__(self) -> None:
        self.profiles: dict[int, Profile] = {}
        self.campaigns: dict[int, list[int]] = {}

    def apply(self, entry: dict[str, Any]) -> None:
        if entry["status"] or not {"rules_state", "opened_day", "counters", "campaigns", "days", "segments", "attributes"} & set(entry):
            return
        profile = self.profiles.setdefault(entry["member"], Profile())
        profile.opened_day = entry.get("opened_day", profile.opened_day)
        if "rules_state" in entry:
            state = entry["rules_state"]
            assert state["receipt"] == profile.receipts + 1
            days = [state["day"], *([profile.first_day, profile.last_day] if profile.receipts else [])]
            profile.first_day, profile.last_day, profile.receipts = min(days), max(days), state["receipt"]
            profile.tier, profile.tier_until = state["tier"], state["tier_until"]
        self.count(profile, entry.get("counters"))
        for row in entry.get("campaigns", ()):
            taken = self.campaigns.setdefault(row["campaign"], [0, 0])
            taken[0], taken[1] = taken[0] + row["points"], taken[1] + row["uses"]
        if "days" in entry:
            for row in entry["days"]["rows"]:
                if row["day"] in profile.days or row["receipts"] >= 0:
                    known = profile.days.setdefault(row["day"], [0, 0])
                    known[0], known[1] = known[0] + row["receipts"], known[1] + row["spent"]
            newest = max(profile.days, default=0)
            profile.days = {day: known for day, known in profile.days.items() if day > newest - entry["days"]["keep"]}
        if "segments" in entry:
            add, remove = entry["segments"]["add"], entry["segments"]["remove"]
            profile.segments = [(word | more) & ~less for word, more, less in zip(profile.segments, add, remove, strict=True)]
        attributes = entry.get("attributes", {})
        profile.birthday = attributes.get("birthday", profile.birthday)
        profile.birthday_from = attributes.get("birthday_from", profile.birthday_from)
        profile.chosen = attributes.get("chosen", profile.chosen)

    def count(self, profile: Profile, counters: dict[str, Any] | None) -> None:
        dropped = False
        for row in counters["rows"] if counters else ():
            counter, window, increment = row["counter"], row["window"], row["increment"]
            if counter not in profile.counters:
                if increment < 0:
                    continue
                if not dropped:
                    dropped = True
                    profile.counters = {name: (per, values) for name, (per, values) in profile.counters.items()
                                        if behind(per, max(values), profile.opened_day) > counters["drop_before"]}
                profile.counters[counter] = (row["per"], {window: increment})
                continue
            _, values = profile.counters[counter]
            if window in values:
                values[window] += increment
            elif increment >= 0:
                values[window] = increment
                for old in sorted(values)[:-2]:
                    del values[old]

    def facts(self) -> list[tuple[int, ...]]:
        """The words of every fact."""
        words: list[tuple[int, ...]] = []
        for member, p in self.profiles.items():
            words.append((5, member, p.opened_day | p.first_day << 32, p.last_day | p.tier_until << 32, p.receipts | p.birthday_from << 32,
                          p.tier | p.birthday << 8))
            words.append((6, member, *p.segments, p.chosen, 0))
            for counter, (per, values) in p.counters.items():
                newest, *older = sorted(values, reverse=True)
                words.append((7, member | counter << 32, newest | (older[0] if older else NO_WINDOW) << 32, values[newest],
                              values[older[0]] if older else 0, per))
            words += [(8, member | day << 32, receipts, spent, 0, 0) for day, (receipts, spent) in p.days.items()]
        return words + [(9, key, points, uses, 0, 0) for key, (points, uses) in self.campaigns.items()]
