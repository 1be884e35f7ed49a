"""What limits would have met over a journal in which they were not in force: `daybook simulate --limits`.

The judging is the core's own (ledger/_backtest.pyx); this reads the file of limits with the names of the journal's programme, and says of
whom and how much. Not for rules (ledger/simulate.py) and not for words. Called by server/cli_simulate.py. Units: points in smallest units,
all wallets together; days since 1970; us since 1970.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ledger import limits, published
from ledger._backtest import BackTest, programmes_in
from ledger.journal import Damage, Journal
from ledger.room import TablesTooSmall, with_room
from ledger.rules import check, lower2, quoted, tree
from ledger.rules.syntax import ProgramError
from ledger.rules.velocity import read_alone

IDS_KEPT = 65_536
FIRST_US, LAST_US = -(2**63), 2**63 - 1
SELDOM = 2  # a member whom a limit meets no more often than this may be a customer with an unusual day
TOP = 10  # members that are named
LOOKED_AT, MET, STOPPED, COLUMNS = 0, 1, 2, 3  # columns of a member's row, before those of the limits

Progress = Callable[[int, int], None]
"""progress(done, total): entries."""


class BackTestRefused(Exception):
    """The back-test cannot be made as asked. `str()` is one clear sentence."""


class Sums(NamedTuple):
    """Entries, and the points in them."""

    entries: int
    earned: int
    burned: int
    reserved: int


@dataclass(frozen=True, slots=True)
class LimitMet:
    """One limit. `counted`: entries that have what it asks for; `above`: of those, and of refusals, the ones above it. Members who were
    met at most SELDOM times, and more often."""

    name: str
    then: str
    testable: bool  # look-ups are in no journal
    counted: int
    above: Sums
    members: int
    seldom: int
    often: int


@dataclass(frozen=True, slots=True)
class MemberMet:
    """One member: entries looked at, above any limit that is not in shadow, refused, and the limit that met them most."""

    member: int
    looked_at: int
    met: int
    stopped: int
    limit: str


@dataclass(slots=True)
class Tested:
    """What came out. All sums are of entries that earn, burn, reserve, release, capture or open accounts, and of remembered refusals."""

    file: str
    programme: str
    points_digits: int  # decimals of points; 0 where wallets differ, as all are added up in smallest units
    looked_at: Sums
    met: Sums  # above any limit but those in shadow
    refused: Sums  # above one that refuses: what all of them together would have stopped
    challenged: Sums
    review: Sums
    reduced: Sums
    cut: int  # points that would not have been given
    marked: Sums
    shadow: Sums
    stopped_then: Sums  # of those looked at: what limits had refused when it came
    limits: list[LimitMet]
    members: int  # with an entry that was looked at
    members_met: int
    members_seldom: int  # of those: met at most SELDOM times in all
    members_stopped: int
    top: list[MemberMet]
    first_day: int
    days: list[tuple[int, int, int]] = field(repr=False)  # entries looked at, above any limit, refused
    entries: int
    duration_us: int


# --- the limits --------------------------------------------------------------------------------------------------------

def compile_limits(file: Path, source: bytes, told: published.Told) -> tuple[tree.Programme, bytes]:
    """The limits of a file in a programme that has nothing else, and its image. source, told: of the programme whose names they use.
    ProgramError."""
    segments = quoted.list_of(source, "segments") or [name for name in [quoted.text_of(source, "segments")] if name]
    bare = {"programme": told.name or "journal", "currency": quoted.text_of(source, "currency"), "zone": quoted.text_of(source, "zone"),
            "wallets": [{"name": name, "scale": scale} for name, scale in told.wallets], "rules": [],
            **({"segments": segments} if segments else {})}
    names = check.check_source(json.dumps({key: value for key, value in bare.items() if value != ""}, ensure_ascii=False).encode(),
                               "<journal>")
    try:
        text = file.read_bytes()
    except OSError as error:
        raise ProgramError(f"{file}: cannot be read: {error.strerror or error}") from None
    # Stores are read where limits ask for their regions, of a chain's thousands: until then there is one somewhere.
    somewhere = dataclasses.replace(names, stores={"": tree.Store("", names.zone, "somewhere")})
    programme = dataclasses.replace(names, limits=read_alone(text, str(file), file.parent, somewhere))
    if not programme.limits:
        raise ProgramError(f"{file}:1:1: limits: there are none, so there is nothing to test")
    if any(limit.counts.measure == "regions" for limit in programme.limits):
        programme = dataclasses.replace(programme, stores={
            code: tree.Store(code, names.zone, region) for code, region in _regions(file, text, source).items()})
    try:
        return programme, lower2.lower_programme(programme)
    except ValueError as error:
        raise ProgramError(f"{file}:1:1: {error}") from None


def _regions(file: Path, text: bytes, source: bytes) -> dict[str, str]:
    """Of stores by code: as the file says where it is a whole programme with stores, else as the journal's programme does. ProgramError."""
    whose = "the programme"
    try:
        found = quoted.regions_of(text, file.parent)
        if found is None:
            whose = "the programme of the journal"
            found = quoted.regions_of(source, file.parent)
    except ProgramError as error:
        raise ProgramError(f"{file}:1:1: limits: measure regions needs the regions of stores, which {whose} has in a table that must lie "
                           f"beside this file: {error}") from None
    if not found:
        raise ProgramError(f"{file}:1:1: limits: measure regions has nothing to count: no store of {whose} has a region")
    return found


def _published_last(journal: Journal) -> tuple[bytes, published.Told]:
    """Source of the programme that was published last, and what is told of it. Errors: BackTestRefused."""
    found = [entry for batch in journal.batches() for entry in programmes_in(batch)]
    if not found:
        raise BackTestRefused("the journal has no programme yet")
    try:
        versions = [published.read_version(number, sequence, entry) for number, (sequence, entry) in enumerate(found, 1)]
        version = versions[-1]
        while version.again:
            version = versions[version.again - 1]
        return published.source_of(found[version.number - 1][1]), versions[-1].told
    except (published.Broken, IndexError) as error:
        raise Damage(str(journal.file), f"what was published cannot be read: {error}") from None


# --- over a journal ----------------------------------------------------------------------------------------------------

def back_test(data: Path, file: Path, *, from_us: int = FIRST_US, until_us: int = LAST_US,
              progress: Progress = lambda done, total: None) -> Tested:
    """The limits of a file over the entries from `from_us` on and before `until_us`, as if they had held in the programme of the time.

    Counters begin empty at the first of them. Errors: BackTestRefused, ProgramError, JournalError, MemoryError.
    """
    with Journal(data) as journal:
        programme, image = compile_limits(file, *_published_last(journal))
        try:
            return with_room(journal, lambda members_max: _over_journal(journal, file, programme, image, from_us, until_us, members_max,
                                                                        progress))
        except TablesTooSmall:
            raise BackTestRefused(f"the journal holds more than {limits.MEMBERS_MAX_LIMIT} members, or too much to count") from None


def _over_journal(journal: Journal, file: Path, programme: tree.Programme, image: bytes, from_us: int, until_us: int, members_max: int,
                  progress: Progress) -> Tested:
    begun = time.perf_counter_ns()
    run = BackTest(journal.directory, members_max, IDS_KEPT, limits.RESERVATIONS_MAX, image, from_us, until_us)
    total = journal.drained().sequence
    for batch in journal.batches():
        fault = run.feed(batch)
        if fault is not None:
            index, name, sequence, applied = fault
            if applied == "full":
                raise TablesTooSmall
            raise Damage(f"{journal.file}, group {batch[index][0]}, entry {sequence}", f"it cannot be read or applied ({name}, {applied})")
        progress(run.last_sequence, max(total, run.last_sequence))
        if run.over:
            break
    return _tested(run, file, programme, (time.perf_counter_ns() - begun) // 1000)


def _tested(run: BackTest, file: Path, programme: tree.Programme, duration_us: int) -> Tested:
    totals: dict[str, Any] = run.totals()
    rows = np.frombuffer(run.by_member(), np.uint32).reshape(-1, COLUMNS + len(programme.limits))
    first_day, days = run.by_day()
    found = []
    for place, (limit, (counted, above)) in enumerate(zip(programme.limits, run.by_limit(), strict=True)):
        times = rows[:, COLUMNS + place]
        members = int((times > 0).sum())
        often = int((times > SELDOM).sum())
        found.append(LimitMet(limit.name, limit.then, not limit.counts.volatile, counted, Sums(*above), members, members - often, often))
    met = rows[:, MET]
    scales = {wallet.scale for wallet in programme.wallets}

    def sums(name: str) -> Sums:
        return Sums(*totals[name])

    return Tested(
        file=str(file), programme=programme.name, points_digits=scales.pop() if len(scales) == 1 else 0,
        looked_at=sums("looked_at"), met=sums("met"), refused=sums("refuse"), challenged=sums("challenge"), review=sums("review"),
        reduced=sums("reduce"), cut=totals["cut"], marked=sums("mark"), shadow=sums("shadow"), stopped_then=sums("stopped_then"),
        limits=found, members=int((rows[:, LOOKED_AT] > 0).sum()), members_met=int((met > 0).sum()),
        members_seldom=int(((met > 0) & (met <= SELDOM)).sum()), members_stopped=int((rows[:, STOPPED] > 0).sum()),
        top=_top(rows, programme), first_day=first_day,
        days=[(int(a), int(b), int(c)) for a, b, c in np.frombuffer(days, np.int64).reshape(-1, 3)],
        entries=run.last_sequence, duration_us=duration_us)


def _top(rows: Any, programme: tree.Programme) -> list[MemberMet]:
    """Who would have been stopped most often, then met most often."""
    loud = np.array([limit.then != "shadow" for limit in programme.limits])
    order = np.lexsort((np.arange(len(rows)), -rows[:, MET].astype(np.int64), -rows[:, STOPPED].astype(np.int64)))[:TOP]
    return [MemberMet(int(at) + 1, int(rows[at, LOOKED_AT]), int(rows[at, MET]), int(rows[at, STOPPED]),
                      programme.limits[int(np.argmax(rows[at, COLUMNS:] * loud))].name) for at in order if rows[at, MET]]
