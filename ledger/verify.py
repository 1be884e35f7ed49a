"""Judges a whole data directory: LMDB's pages and groups, then the undrained tail; or a back-up. Chain, framing, sums and state through
the compiled apply.

Works in another process than the service, also while it runs. Not for repairing and not for printing (server/cli.py, its caller).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ledger import limits
from ledger._verifier import Verifier, guard
from ledger.backup import BackUp, is_back_up
from ledger.journal import NO_HASH, Damage, Drained, Group, Journal, JournalError, NotReadable, Tail
from ledger.room import guess_members

IDS_KEPT = 65_536  # request ids take no part in the digest, so few are remembered here: small tables are fast
BATCH_TAIL_GROUPS = 1024  # how many groups of the tail are checked at a time
SETTLE_TRIES = 10  # a group is seen whole at most one flush after the next one began; ten looks are plenty
SETTLE_MS = 20  # between two looks: a few looks between two drains

FAULTS = {
    "size": "the record's size or its number of entries is impossible",
    "magic": "the record is no group of version 1 (magic, version, flags or shard)",
    "directory": "the group belongs to another data directory",
    "sequence": "the group does not begin with the next sequence: groups are missing or out of order",
    "hash": "the group's hash does not fit its bytes: the record was changed",
    "chain": "the group does not follow the one before: its previous hash is another",
    "epoch": "the group is of another epoch than the one before, and no restore begins it",
    "time": "the group is older than the one before: time went back",
    "entries": "the entry's framing is broken",
    "postings": "the entry's postings are broken or name an unknown account or wallet",
}
APPLIES = {
    "framing": "broken framing or an unknown kind", "sequence": "not the next sequence, or time went back",
    "member": "it names an account that does not exist, or opens one out of order",
    "lots": "it takes more from a lot than the lot has, or its postings do not fit its lots",
    "sum": "its postings do not sum to zero", "reservation": "it names a reservation that does not exist or is in another state",
    "digest": "the digest in the journal differs from the state that the journal leads to",
    "program": "its programme image does not load", "key": "it was written under another identity key",
    "full": "a table is too small",
}


@dataclass(frozen=True, slots=True)
class Report:
    """What a verification found. `totals` as Verifier.totals; `duration_us` of work; `tail_groups` stood only in the tail."""

    directory: str
    head: str
    totals: dict[str, Any]
    tail_groups: int
    duration_us: int


class _TablesTooSmall(Exception):
    def __init__(self, members_max: int) -> None:
        super().__init__(f"more room than for {members_max} members is needed")
        self.members_max = members_max


def parse_head(text: str) -> tuple[int, bytes]:
    """SEQ:HASH as printed by verify. Errors: ValueError with a clear text."""
    sequence, _, hash_ = text.partition(":")
    if not sequence.isdigit() or int(sequence) < 1 or len(hash_) != 64 or any(c not in "0123456789abcdefABCDEF" for c in hash_):
        raise ValueError(f"a head is SEQ:HASH, a sequence from 1 and 64 hex digits, was {text!r}")
    return int(sequence), bytes.fromhex(hash_)


def verify(data: Path, *, tail: Path | None = None, expect: tuple[int, bytes] | None = None, key: bytes | None = None,
           progress: Callable[[int, int], None] = lambda done, total: None, end_on_crash: bool = False) -> Report:
    """Check everything under `data`, a data directory or a back-up. `progress(done, total)` counts sequences; total may grow while a
    service runs.

    key: the identity key (16 bytes), which must be the one that the journal was begun with.
    end_on_crash: a damaged LMDB file can crash any mapped reader; end the process with status 1 and a clear line then.
    Errors: NotReadable, Damage (the first one found).
    """
    members_max = 0
    while True:
        try:
            if is_back_up(data):
                return _pass_back_up(BackUp(data), expect, progress, members_max, key)
            return _pass(Path(data), Path(tail or data), expect, progress, members_max, end_on_crash, key)
        except _TablesTooSmall as small:
            if small.members_max >= limits.MEMBERS_MAX_LIMIT:
                raise NotReadable(f"{data} holds more than {limits.MEMBERS_MAX_LIMIT} members: this version cannot") from None
            members_max = min(small.members_max * 4, limits.MEMBERS_MAX_LIMIT)


class _Pass:
    """One pass with tables of one size."""

    def __init__(self, directory: bytes, members_max: int, expect: tuple[int, bytes] | None, key: bytes | None) -> None:
        self.directory = directory
        self.members_max = members_max
        self.verifier = Verifier(directory, members_max, IDS_KEPT, limits.RESERVATIONS_MAX, key)
        self.expect = expect
        if expect is not None:
            self.verifier.expect(*expect)

    def feed(self, batch: list[tuple[int, Any]], where: str) -> None:
        fault = self.verifier.feed(batch)
        if fault is None:
            return
        index, name, sequence, apply_name = fault
        if apply_name == "full":
            raise _TablesTooSmall(self.members_max)
        place = f"{where}, group {batch[index][0]}"
        if name == "apply":
            raise Damage(f"{place}, entry {sequence}", f"the entry cannot be applied: {APPLIES[apply_name]}")
        raise Damage(f"{place}, entry {sequence}" if name in ("entries", "postings") else place, FAULTS[name])

    @property
    def sequence(self) -> int:
        return self.verifier.last_sequence


def _pass(data: Path, tail: Path, expect: tuple[int, bytes] | None, progress: Callable[[int, int], None], members_max: int,
          end_on_crash: bool, key: bytes | None) -> Report:
    begun = time.perf_counter_ns()
    with Journal(data) as journal, Tail(tail, journal.directory) as ring:
        if end_on_crash:
            guard(str(journal.file), "verify")
        journal.walk()
        work = _Pass(journal.directory, members_max or guess_members(journal), expect, key)
        _feed_lmdb(work, journal, progress)
        from_tail = _feed_tail(work, journal, ring, progress)
        return _report(work, str(journal.file), data, from_tail, begun)


def _pass_back_up(back_up: BackUp, expect: tuple[int, bytes] | None, progress: Callable[[int, int], None], members_max: int,
                  key: bytes | None) -> Report:
    begun = time.perf_counter_ns()
    back_up.check_files()
    work = _Pass(back_up.directory, members_max or guess_members(back_up), expect, key)
    for path, batch in back_up.batches():
        work.feed(batch, path)
        progress(work.sequence, back_up.sequence)
    head = f"{work.sequence}:{work.verifier.head_hash.hex()}"
    if head != back_up.head:
        raise Damage(str(back_up.file), f"it says head {back_up.head}, the files end with {head}")
    return _report(work, str(back_up.path), back_up.path, 0, begun)


def _report(work: _Pass, where: str, data: Path, from_tail: int, begun_ns: int) -> Report:
    """What is left to check when everything was fed, and the report. `where`: whose sums they are."""
    totals = work.verifier.totals()
    if not totals["sums_agree"]:
        raise Damage(where, "the sums of the postings differ from the state that they lead to")
    if work.expect is not None:
        _check_expected(work.expect, work, data)
    return Report(work.directory.hex(), f"{work.sequence}:{work.verifier.head_hash.hex()}", totals, from_tail,
                  (time.perf_counter_ns() - begun_ns) // 1000)


def _feed_lmdb(work: _Pass, journal: Journal, progress: Callable[[int, int], None]) -> Drained:
    """Everything in LMDB behind what was fed, and that `drained` says the same. Returns what it said at the end."""
    while True:
        drained = journal.drained()
        # Groups are found by their first sequence: the one that begins right behind the last fed sequence comes first.
        for batch in journal.batches(work.sequence):
            work.feed(batch, str(journal.file))
            progress(work.sequence, max(drained.sequence, work.sequence))
        if work.sequence < drained.sequence:
            raise Damage(str(journal.file), f"meta/drained says sequence {drained.sequence}, the groups end with {work.sequence}")
        now = journal.drained()
        if now.sequence == work.sequence:
            if now.hash != work.verifier.head_hash:
                raise Damage(str(journal.file), f"meta/drained has another hash for sequence {now.sequence} than its group")
            return now
        if now.sequence < work.sequence:
            # What was fed from the tail is not drained yet, or LMDB holds groups that its own mark does not know.
            head, _ = journal.head()
            if head > now.sequence:
                later = journal.drained()
                if later.sequence < head:
                    raise Damage(str(journal.file), f"it holds group {head}, meta/drained says only {later.sequence}")
            return now


def _feed_tail(work: _Pass, journal: Journal, ring: Tail, progress: Callable[[int, int], None]) -> int:
    """The groups that stand only in the tail, and that nothing valid stands behind them. Returns how many were fed.

    A running service appends to the ring and drains from it meanwhile. So a group beyond the chain's end is damage only when the chain
    cannot be followed up to it after the ring has had time to settle.
    """
    fed = _catch_up(work, journal, ring, progress)
    drained, newest = journal.drained(), (0, NO_HASH)
    for position, group in ring.all_groups():
        newest = max(newest, (group.last_sequence, group.hash))
        for _ in range(SETTLE_TRIES):
            if group.first_sequence <= work.sequence:
                break
            before = work.sequence
            fed += _catch_up(work, journal, ring, progress)
            if work.sequence == before:
                time.sleep(SETTLE_MS / 1000)
        else:
            raise Damage(str(ring.path), f"the chain ends with sequence {work.sequence}, but a valid group {group.first_sequence} stands "
                                         f"at position {position} of the ring: acknowledged groups between them are damaged")
        if group.drained_sequence > (reached := journal.drained().sequence):
            raise Damage(str(journal.file), f"it ends with sequence {reached}, but group {group.first_sequence} in {ring.path} knows "
                                                 f"that it had reached {group.drained_sequence}: it was set back")
    if newest[0] < drained.sequence:
        raise Damage(str(ring.path), f"its newest group ends with {newest[0]}, the journal with {drained.sequence}: the tail was set back "
                                     "or replaced, and later writes may be missing")
    if newest[0] == drained.sequence and newest[1] != drained.hash:
        raise Damage(str(ring.path), f"tail and journal both end with {drained.sequence}, with different hashes: they are of two histories")
    return fed


def _catch_up(work: _Pass, journal: Journal, ring: Tail, progress: Callable[[int, int], None]) -> int:
    return _feed_chain(work, ring, _feed_lmdb(work, journal, progress), progress)


def _feed_chain(work: _Pass, ring: Tail, drained: Drained, progress: Callable[[int, int], None]) -> int:
    """Feed what follows in the ring; groups fed before are only walked over."""
    fed = 0
    for batch in _batched(group for group in ring.follow(drained.sequence, drained.hash, drained.position)
                          if group.first_sequence > work.sequence):
        if batch[0].first_sequence == work.sequence + 1:
            work.feed([(group.first_sequence, group.record) for group in batch], str(ring.path))
            fed += len(batch)
            progress(work.sequence, work.sequence)
    return fed


def _batched(groups: Iterator[Group]) -> Iterator[list[Group]]:
    batch: list[Group] = []
    for group in groups:
        batch.append(group)
        if len(batch) == BATCH_TAIL_GROUPS:
            yield batch
            batch = []
    if batch:
        yield batch


def _check_expected(expect: tuple[int, bytes], work: _Pass, data: Path) -> None:
    sequence, hash_ = expect
    state, found = work.verifier.expected
    if state == 0:
        raise Damage(str(data), f"the expected head {sequence} is not reached: the journal ends with {work.sequence}. It was rolled back")
    if state == 3:
        raise Damage(str(data), f"sequence {sequence} is not the last of a group here, as the expected head says: another history")
    if state == 2:
        raise Damage(str(data), f"sequence {sequence} has the hash {found.hex()}, expected {hash_.hex()}: another history")


__all__ = ["JournalError", "Report", "parse_head", "verify"]
