"""The journal as Parquet files, one per UTC day of the entries' time, every entry exactly once: for analysts. The only importer of pyarrow.

A finished day (an entry of a later day is in the journal) becomes `YYYY-MM-DD.parquet`, written once. The day that still grows becomes
`YYYY-MM-DD.part.parquet`, only when asked for, and a later run replaces it. Each file says in its metadata which sequences of which journal
it holds, so a run goes on behind the last finished file, however the run before ended. Columns: docs/export.md.
Not for reading entries one by one (ledger/journal.py). Used by server/cli_export.py.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import parquet

from ledger import errors
from ledger._columns import NUMBERS, TEXTS, Columns
from ledger.journal import (
    ACCOUNTS,
    CONTEXT,
    ENTRY_HEADER,
    IDENTIFIERS,
    KINDS,
    NO_HASH,
    STATES,
    Damage,
    Group,
    Journal,
    check_link,
    read_group,
)
from ledger.published import KIND_PROGRAM, Broken, image_of, limit_names, read_published, told_of
from ledger.rules import quoted
from ledger.rules.syntax import ProgramError

DAY_US = 86_400_000_000
DAY_NEVER = 2_147_483_647  # expiry day of points that live for ever
NONE = np.iinfo(np.int64).min
ROW_GROUP_ENTRIES = 65_536
ROW_GROUP_BYTES = 64 << 20  # of columns in memory; long receipts make shorter row groups
NAME = re.compile(r"(\d{4}-\d\d-\d\d)(\.part)?\.parquet")
METADATA_KEY = b"daybook"

TIME = pa.timestamp("us", tz="UTC")
WORD = pa.dictionary(pa.int8(), pa.string())
REASON = pa.dictionary(pa.int16(), pa.string())

POSTING = pa.struct([("account", WORD), ("wallet", WORD), ("points", pa.int64())])
LOT = pa.struct([("wallet", WORD), ("available_day", pa.date32()), ("expiry_day", pa.date32()), ("funder", pa.int32()),
                 ("by_inactivity", pa.bool_()), ("under_review", pa.bool_()), ("points", pa.int64()), ("held_points", pa.int64())])
LINE = pa.struct([("sku", pa.string()), ("category", pa.string()), ("quantity_milli", pa.int64()), ("amount_minor", pa.int64()),
                  ("regular_amount_minor", pa.int64()), ("weighed", pa.bool_())])
TENDER = pa.struct([("name", pa.string()), ("amount_minor", pa.int64())])
AWARD = pa.struct([("line", pa.int32()), ("rule", pa.int32()), ("wallet", WORD), ("points", pa.int64())])
BALANCE = pa.struct([("wallet", WORD), ("posted_points", pa.int64()), ("pending_points", pa.int64()), ("reserved_points", pa.int64())])
RESERVATION = pa.struct([("reservation_id", pa.int64()), ("state", WORD), ("wallet", WORD), ("reserved_points", pa.int64()),
                         ("captured_points", pa.int64()), ("expire_time", TIME)])
LINE_AMOUNT = pa.struct([("line", pa.int32()), ("amount_minor", pa.int64())])
COUNTER = pa.struct([("counter", pa.int64()), ("per", WORD), ("window", pa.int32()), ("increment", pa.int64())])
CAMPAIGN = pa.struct([("campaign", pa.int64()), ("amount", pa.int64()), ("uses", pa.int64())])
DAY = pa.struct([("day", pa.date32()), ("receipts", pa.int64()), ("spent_minor", pa.int64())])
ORIGIN_PARTS = ("device", "cashier", "payment_card", "partner", "store", "till", "region")
ORIGIN = pa.struct([("utc_offset_s", pa.int32()), *((part, pa.string()) for part in ORIGIN_PARTS)])
LIMIT = pa.struct([("number", pa.int32()), ("name", REASON), ("action", WORD)])
RUNG = pa.struct([("before", WORD), ("after", WORD), ("end_time", TIME), ("limit_number", pa.int32()), ("limit_name", REASON)])
BLOCK_LIST = pa.struct([("list", WORD), ("added", pa.int32()), ("removed", pa.int32())])
NOTICE = pa.struct([("kind", WORD), ("index", pa.int32()), ("text", pa.string())])
SCHEMA = pa.schema([
    pa.field("sequence", pa.int64(), nullable=False), pa.field("time", TIME, nullable=False), pa.field("kind", WORD, nullable=False),
    ("member_id", pa.int64()), pa.field("opened", pa.bool_(), nullable=False), pa.field("program_version", pa.int32(), nullable=False),
    ("refusal", REASON), ("refusal_a", pa.int64()), ("refusal_b", pa.int64()),
    ("request_hash", pa.binary(16)), ("sent_time", TIME), ("purchase_time", TIME),
    ("store", pa.string()), ("till", pa.string()), ("business_day", pa.int32()), ("number", pa.string()),
    ("total_minor", pa.int64()), ("payment", WORD), ("requested_wallet", WORD), ("requested_points", pa.int64()),
    ("requested_reservation_id", pa.int64()), ("ttl_us", pa.int64()), ("requested_expiry_day", pa.int32()), ("operator", pa.string()),
    ("reason", pa.string()),
    ("postings", pa.list_(POSTING)), ("lot_changes", pa.list_(LOT)), ("lines", pa.list_(LINE)), ("awards", pa.list_(AWARD)),
    ("wallets", pa.list_(BALANCE)), ("reservation", RESERVATION), ("identifier_types", pa.list_(WORD)),
    ("digest", pa.binary(16)), ("program_hash", pa.binary(32)), ("program_source", pa.string()),
    ("channel", pa.string()), ("tenders", pa.list_(TENDER)), ("promo_codes", pa.list_(pa.string())), ("quote", pa.int64()),
    ("only_as_quoted", pa.bool_()),
    ("rules_day", pa.date32()), ("receipt_number", pa.int64()), ("tier", pa.string()), ("tier_after", pa.string()),
    ("tier_until", pa.date32()), ("opened_day", pa.date32()),
    ("counters", pa.list_(COUNTER)), ("campaigns", pa.list_(CAMPAIGN)), ("days", pa.list_(DAY)),
    ("segments_added", pa.list_(WORD)), ("segments_removed", pa.list_(WORD)), ("favourites", pa.list_(WORD)),
    ("birthday", pa.int32()), ("birthday_from", pa.date32()),
    ("discounts", pa.list_(LINE_AMOUNT)), ("paid", pa.list_(LINE_AMOUNT)), ("variants", pa.list_(pa.int32())),
    ("entitlements", pa.list_(pa.string())), ("notice_count", pa.int32()), ("notices", pa.list_(NOTICE)),
    ("origin", ORIGIN), ("limits", pa.list_(LIMIT)), ("cut_points", pa.int64()), ("rung", RUNG),
    ("blocks_version", pa.int64()), ("block_lists", pa.list_(BLOCK_LIST)),
])
REPEATED = ["kind", "refusal", "store", "till", "payment", "requested_wallet", "operator", "reason", "program_version", "business_day",
            "postings.list.element.account", "postings.list.element.wallet", "lot_changes.list.element.wallet",
            "lot_changes.list.element.available_day", "lot_changes.list.element.expiry_day", "lines.list.element.sku",
            "lines.list.element.category", "lines.list.element.quantity_milli", "awards.list.element.wallet", "awards.list.element.rule",
            "wallets.list.element.wallet", "reservation.state", "reservation.wallet", "identifier_types.list.element",
            "channel", "tenders.list.element.name", "promo_codes.list.element", "rules_day", "tier", "tier_after", "tier_until",
            "opened_day",
            "counters.list.element.counter", "counters.list.element.per", "counters.list.element.window",
            "campaigns.list.element.campaign", "days.list.element.day", "segments_added.list.element", "segments_removed.list.element",
            "favourites.list.element", "birthday", "birthday_from", "variants.list.element", "entitlements.list.element",
            "notices.list.element.kind", "notices.list.element.text", "origin.utc_offset_s",
            *(f"origin.{part}" for part in ORIGIN_PARTS),
            "limits.list.element.number", "limits.list.element.name", "limits.list.element.action", "rung.before", "rung.after",
            "rung.limit_number", "rung.limit_name", "block_lists.list.element.list"]
"""Columns that repeat few values: a dictionary pays there."""
PAYMENTS = {1: "burn", 2: "capture"}
PERS = {1: "day", 2: "week", 3: "month", 4: "year", 5: "ever", 6: "birthday", 7: "anniversary year"}
NOTICES = {1: "unknown_store", 2: "unknown_sku", 3: "unknown_category", 4: "unknown_promo_code", 5: "unknown_tender", 6: "unknown_channel"}
ANSWERS = {2: "mark", 3: "refuse", 4: "challenge", 5: "reduce", 6: "review"}
RUNGS = {0: "ok", 1: "warned", 2: "limited", 3: "blocked", 4: "excluded"}
LISTS = {2: "card", 3: "phone", 4: "email", 5: "app", 6: "device", 7: "till"}
TAGS = {name: f"context_{tag}" for tag, name in CONTEXT.items() if tag < 128}

Names = dict[str, list[str]]
"""Names by place: `wallets`, `segments`, `favourites`. New ones only ever come at the end, so the newest programme names those of all
before it."""
NO_NAMES: Names = {"wallets": [], "segments": [], "favourites": []}

Progress = Callable[[int, int], None]
"""progress(done, total): entries of this run."""


class ExportRefused(Exception):
    """The export cannot be made as asked. `str()` is one clear sentence."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What a run did."""

    first_sequence: int  # where it began
    last_sequence: int  # the last one exported so far, of this run or an earlier one
    files: list[str]  # that it wrote, or parts that it replaced


@dataclass(frozen=True, slots=True)
class _File:
    """What the metadata of a file says."""

    path: Path
    day: str
    part: bool
    directory: str
    first_sequence: int
    last_sequence: int
    head_sequence: int  # of the group that holds the last entry
    head_hash: str
    names: Names  # at its end
    programs: list[int] | None  # sequences of all PROGRAM entries so far; None: written by an export that did not note them


def export(data: Path, out: Path, *, unfinished: bool = False, progress: Progress = lambda done, total: None) -> Exported:
    """Write every day that is not there yet. unfinished: the last day too, as a part.

    Errors: ExportRefused, JournalError, OSError.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob("*.new"):
        left.unlink()
    with Journal(data) as journal:
        done = _done(out, journal)
        return _Run(journal, out, done, unfinished, progress).run()


def _done(out: Path, journal: Journal) -> list[_File]:
    """The finished days that are there, in order. Parts that a finished day has overtaken go. Errors: ExportRefused."""
    files = [_read_metadata(path) for path in sorted(out.iterdir()) if NAME.fullmatch(path.name)]
    finished = [file for file in files if not file.part]
    following = 1
    for file in finished:
        if file.directory != journal.directory.hex():
            raise ExportRefused(f"{file.path} is of the ledger {file.directory}, this one is {journal.directory.hex()}: "
                                "give each ledger its own directory")
        if file.first_sequence != following:
            raise ExportRefused(f"{file.path} begins with sequence {file.first_sequence}, expected {following}: "
                                "a file before it is missing; export into an empty directory")
        head = journal.group_of(file.last_sequence)
        if head is None or head.last_sequence != file.head_sequence or head.hash.hex() != file.head_hash:
            raise ExportRefused(f"{file.path} is of another history of this ledger (a restore went back behind it): "
                                "export into an empty directory")
        following = file.last_sequence + 1
    for file in files:
        if file.part and finished and file.day <= finished[-1].day:
            file.path.unlink()
    return finished


def _read_metadata(path: Path) -> _File:
    """Errors: ExportRefused."""
    try:
        said = json.loads((parquet.read_metadata(path).metadata or {})[METADATA_KEY])
        name = NAME.fullmatch(path.name)
        return _File(path, name[1], name[2] is not None, said["directory"], said["first_sequence"], said["last_sequence"],
                     said["head_sequence"], said["head_hash"], {kind: said.get(kind, []) for kind in NO_NAMES}, said.get("programs"))
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise ExportRefused(f"{path} is no file of an export or damaged ({error}): remove it, and a new run writes it again") from None


def _programs_of(files: list[_File]) -> list[int]:
    """Sequences of the PROGRAM entries in these files, in order."""
    if not files:
        return []
    if files[-1].programs is not None:
        return files[-1].programs
    found: list[int] = []
    for file in files:
        rows = parquet.read_table(file.path, columns=["sequence", "kind"])
        found += rows.filter(pc.equal(rows["kind"].cast(pa.string()), "program"))["sequence"].to_pylist()
    return found


class _LimitNames:
    """Names of limits by version of the programme and number. An image is read when it is asked for the first time."""

    def __init__(self, journal: Journal, programs: list[int]) -> None:
        self.programs = programs
        self._journal = journal
        self._known: dict[int, list[str]] = {}

    def of(self, version: int, number: int) -> str | None:
        """None: no limit, or the programme cannot be read."""
        if version not in self._known:
            self._known[version] = self._read(version)
        names = self._known[version]
        return names[number - 1] if 1 <= number <= len(names) else None

    def _entries(self, sequences: Sequence[int]) -> list[bytes]:
        return self._journal.entries((sequence, 0, 0) for sequence in sequences)

    def _read(self, version: int) -> list[str]:
        if not 1 <= version <= len(self.programs):
            return []
        try:
            return limit_names(image_of(self._entries([self.programs[version - 1]])[0], self._entries))
        except Broken:
            return []


class _Run:
    """One run of an export. before: the finished days that are there."""

    def __init__(self, journal: Journal, out: Path, before: list[_File], unfinished: bool, progress: Progress) -> None:
        self.journal = journal
        self.out = out
        self.unfinished = unfinished
        self.progress = progress
        self.columns = Columns()
        done = before[-1] if before else None
        self.limit_names = _LimitNames(journal, _programs_of(before))
        self.names = done.names if done else NO_NAMES
        self.first_sequence = self.following = done.last_sequence + 1 if done else 1
        self.day_first = 0
        self.holder: Group | None = None  # the group that holds the last entry added
        self.writer: _DayFile | None = None
        self.files: list[str] = []

    def run(self) -> Exported:
        first, record = self.journal.head()
        if not record:
            return Exported(self.first_sequence, 0, [])
        head = read_group(record, f"{self.journal.file}, group {first}")
        last_day = _day_of_entry(head, head.last_sequence)
        try:
            for group in self._groups(head.last_sequence):
                if not self._add(group, last_day):
                    break
            if self.writer is not None:
                self._finish_day(part=True)
        finally:
            if self.writer is not None:
                self.writer.give_up()
        self.progress(head.last_sequence - self.first_sequence + 1, head.last_sequence - self.first_sequence + 1)
        return Exported(self.first_sequence, self.following - 1, self.files)

    def _groups(self, last_sequence: int) -> Iterator[Group]:
        """The groups from `following` up to the journal's end at the start, checked. Errors: Damage."""
        begin = self.journal.group_of(self.following) if self.following <= last_sequence else None
        if begin is None:
            return
        previous: Group | None = None
        for batch in self.journal.batches(begin.first_sequence - 1):
            for key, record in batch:
                if key > last_sequence:
                    return
                where = f"{self.journal.file}, group {key}"
                group = read_group(bytes(record), where)
                if previous is not None:
                    check_link(previous.last_sequence, previous.hash, group, where)
                elif key == 1:
                    check_link(0, NO_HASH, group, where)
                yield group
                previous = group

    def _add(self, group: Group, last_day: int) -> bool:
        """The entries of a group from `following` on. False: what follows is the unfinished day, which is not asked for."""
        while self.following <= group.last_sequence:
            if self.writer is None:
                day = _day_of_entry(group, self.following)
                if day >= last_day and not self.unfinished:
                    return False
                self.day_first = self.following
                self.writer = _DayFile(self.out, day)
            try:
                behind = self.columns.add(group.record, self.following, (self.writer.day + 1) * DAY_US)
            except ValueError as error:
                raise Damage(f"{self.journal.file}, group {group.first_sequence}", str(error)) from None
            if behind == self.following:
                self._finish_day(part=False)
                continue
            self.following = behind
            self.holder = group
            if self.columns.count >= ROW_GROUP_ENTRIES or self.columns.size >= ROW_GROUP_BYTES:
                self._flush()
                self.progress(self.following - self.first_sequence, max(self.following, group.last_sequence) - self.first_sequence + 1)
        return True

    def _flush(self) -> None:
        self.names = _names_of(self.columns, self.names)
        if self.columns.count:
            kinds, sequences = (np.frombuffer(self.columns.number(NUMBERS.index(name)), np.int64) for name in ("kind", "sequence"))
            self.limit_names.programs += sequences[kinds == KIND_PROGRAM].tolist()
            self.writer.write(_table(self.columns, self.names, self.limit_names))
            self.columns.clear()

    def _finish_day(self, *, part: bool) -> None:
        self._flush()
        self.files.append(self.writer.close(part=part, said={
            "directory": self.journal.directory.hex(), "first_sequence": self.day_first, "last_sequence": self.following - 1,
            "head_sequence": self.holder.last_sequence, "head_hash": self.holder.hash.hex(), "programs": self.limit_names.programs,
            **self.names}))
        self.writer = None


class _DayFile:
    """One file in the making: complete under its name, or not there."""

    def __init__(self, out: Path, day: int) -> None:
        self.out = out
        self.day = day
        self.name = (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()
        self.new = out / f"{self.name}.new"
        self.file = self.new.open("wb")
        self.writer = parquet.ParquetWriter(self.file, SCHEMA, compression="zstd", compression_level=1, use_dictionary=REPEATED)

    def write(self, table: pa.Table) -> None:
        self.writer.write_table(table)

    def close(self, *, part: bool, said: dict[str, Any]) -> str:
        """Put it in its place. Returns its name."""
        self.writer.add_key_value_metadata({METADATA_KEY: json.dumps(said).encode()})
        self.writer.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        part_path = self.out / f"{self.name}.part.parquet"
        path = part_path if part else self.out / f"{self.name}.parquet"
        if not part:
            part_path.unlink(missing_ok=True)  # before the rename: never twice
        self.new.replace(path)
        fd = os.open(self.out, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return path.name

    def give_up(self) -> None:
        with contextlib.suppress(OSError, ValueError, pa.ArrowException):  # the file goes anyway, whatever ended the run
            self.writer.close()
        self.file.close()
        self.new.unlink(missing_ok=True)


def _day_of_entry(group: Group, sequence: int) -> int:
    """The UTC day of an entry of this group."""
    for number, entry in group:
        if number == sequence:
            return ENTRY_HEADER.unpack_from(entry)[4] // DAY_US
    raise Damage(f"group {group.first_sequence}", f"sequence {sequence} is not in it")


def _names_of(columns: Columns, names: Names) -> Names:
    """The names of the newest programme among these entries, beside those known. A version that is one of before has no source."""
    told, image = columns.program
    if told or image:
        wallets = read_published(told)["wallets"] if told else told_of(image).wallets
        names = {**names, "wallets": [name for name, _ in wallets]}
    ends, data = columns.text(TEXTS.index("source"))
    offsets = np.frombuffer(ends, np.int32)
    there = np.flatnonzero(np.diff(offsets, prepend=0))
    if len(there):
        source = data[offsets[there[-1] - 1] if there[-1] else 0:offsets[there[-1]]]
        with contextlib.suppress(ProgramError):
            for kind, keys in (("segments", ("segments",)), ("favourites", ("favourites", "choose_from"))):
                found = quoted.list_of(source, *keys)
                names = {**names, kind: found + names[kind][len(found):]}
    return names


# --- columns to arrays --------------------------------------------------------------------------------------------------

class _Arrays:
    """The columns of one row group, by name."""

    def __init__(self, columns: Columns, names: Names, limit_names: _LimitNames) -> None:
        self.columns = columns
        self.limit_names = limit_names
        self.names = {kind: dict(enumerate(found)) for kind, found in names.items()}
        self.count = columns.count

    def raw(self, name: str) -> Any:
        return np.frombuffer(self.columns.number(NUMBERS.index(name)), np.int64)

    def number(self, name: str, kind: Any = None, *, none: int = NONE) -> pa.Array:
        """Numbers; null where there is none, or where the number is `none`."""
        kind = kind or pa.int64()
        values = self.raw(name)
        mask = (values == NONE) | (values == none)
        if kind.bit_width == 32:
            return pa.array(np.where(mask, 0, values).astype(np.int32), mask=mask).view(kind)
        return pa.array(values, mask=mask).view(kind)

    def time(self, name: str, *, relative: bool = False) -> pa.Array:
        values = self.raw(name)
        mask = values == NONE
        if relative:
            values = np.where(mask, 0, values) + self.raw("time")
        return pa.array(values, mask=mask).view(TIME)

    def seconds(self, name: str) -> pa.Array:
        """Seconds since 1970, as times; null where there is none, or 0."""
        values = self.raw(name)
        mask = (values == NONE) | (values == 0)
        return pa.array(np.where(mask, 0, values) * 1_000_000, mask=mask).view(TIME)

    def word(self, name: str, names: dict[int, str], kind: Any = WORD) -> pa.Array:
        """Numbers that stand for words."""
        values = self.raw(name)
        there, places = np.unique(values, return_inverse=True)
        words = [names.get(int(value), str(value)) for value in there]
        return pa.DictionaryArray.from_arrays(pa.array(places.astype(kind.index_type.to_pandas_dtype()), mask=values == NONE),
                                              pa.array(words, pa.string()))

    def limit(self, name: str, counts: str = "") -> pa.Array:
        """Names of limits by their numbers. counts: how many of them an entry has; else one."""
        versions, numbers = self.raw("in_force"), self.raw(name)
        if counts:
            versions = np.repeat(versions, self.raw(counts))
        there, places = np.unique(np.stack([versions, numbers]), axis=1, return_inverse=True)
        found = [None if number == NONE else self.limit_names.of(version, number) for version, number in there.T.tolist()]
        words = sorted({word for word in found if word is not None})
        index = np.array([words.index(word) if word is not None else -1 for word in found], np.int16)[places.reshape(-1)]
        return pa.DictionaryArray.from_arrays(pa.array(index, mask=index < 0), pa.array(words, pa.string()))

    def wallet(self, name: str) -> pa.Array:
        return self.word(name, self.names["wallets"])

    def _text(self, name: str) -> tuple[Any, bytes]:
        ends, data = self.columns.text(TEXTS.index(name))
        return np.concatenate([np.zeros(1, np.int32), np.frombuffer(ends, np.int32)]), data

    def text(self, name: str, *, nulls: bool = True) -> pa.Array:
        """Texts; null where empty."""
        offsets, data = self._text(name)
        there = np.packbits(np.diff(offsets) > 0, bitorder="little") if nulls else None
        return pa.StringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data),
                                           None if there is None else pa.py_buffer(there))

    def binary(self, name: str, width: int) -> pa.Array:
        """Bytes of one width; null where there are none."""
        offsets, data = self._text(name)
        there = np.diff(offsets) > 0
        filled = np.zeros((len(there), width), np.uint8)
        filled[there] = np.frombuffer(data, np.uint8).reshape(-1, width)
        bits = np.packbits(there, bitorder="little")
        return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), len(there), [pa.py_buffer(bits), pa.py_buffer(filled)])

    def flag(self, name: str) -> pa.Array:
        """Numbers that say yes (not 0) or no; null where there is none."""
        values = self.raw(name)
        return pa.array(values != 0, mask=values == NONE)

    def rows(self, counts: str, values: pa.Array, *, nulls: bool = False) -> pa.Array:
        """A list per entry. nulls: null where there is no count."""
        found = self.raw(counts)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.where(found == NONE, 0, found))]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values, mask=pa.array(found == NONE) if nulls else None)


def _table(columns: Columns, names: Names, limit_names: _LimitNames) -> pa.Table:
    a = _Arrays(columns, names, limit_names)

    def struct_of(kind: Any, *arrays: pa.Array, mask: Any = None) -> pa.Array:
        return pa.StructArray.from_arrays(list(arrays), fields=list(kind), mask=mask)

    refusals = {status.number: status.name for status in errors.STATUSES}
    refusal = a.word("status", refusals, REASON)
    flags, member = a.raw("flags"), a.raw("member")
    values: dict[str, pa.Array] = {
        "sequence": a.number("sequence"), "time": a.time("time"), "kind": a.word("kind", KINDS),
        "member_id": pa.array(member, mask=member == 0), "opened": pa.array((flags & 1).astype(bool)),
        "program_version": a.number("program", pa.int32()),
        "refusal": pc.if_else(pc.equal(a.number("status"), 0), pa.scalar(None, REASON), refusal),
        "refusal_a": a.number("refusal_a"), "refusal_b": a.number("refusal_b"),
        "request_hash": a.binary("request", 16),
        "sent_time": a.time(TAGS["sent_time_us"], relative=True), "purchase_time": a.time(TAGS["business_time_us"], relative=True),
        "store": a.text("store"), "till": a.text("till"), "business_day": a.number(TAGS["business_day"], pa.int32()),
        "number": a.text("number"), "total_minor": a.number(TAGS["total_minor"]), "payment": a.word(TAGS["payment"], PAYMENTS),
        "requested_wallet": a.wallet(TAGS["wallet"]), "requested_points": a.number(TAGS["points"]),
        "requested_reservation_id": a.number(TAGS["reservation_id"]), "ttl_us": a.number(TAGS["ttl_us"]),
        "requested_expiry_day": a.number(TAGS["expiry_day"], pa.int32()), "operator": a.text("operator"), "reason": a.text("reason"),
        "postings": a.rows("postings", struct_of(
            POSTING, a.word("posting_account", ACCOUNTS), a.wallet("posting_wallet"), a.number("posting_points"))),
        "lot_changes": a.rows("lots", struct_of(
            LOT, a.wallet("lot_wallet"), a.number("lot_available", pa.date32()), a.number("lot_expiry", pa.date32(), none=DAY_NEVER),
            a.number("lot_funder", pa.int32()), a.flag("lot_by_inactivity"), a.flag("lot_under_review"),
            a.number("lot_points"), a.number("lot_held"))),
        "lines": a.rows("lines", struct_of(
            LINE, a.text("sku", nulls=False), a.text("category", nulls=False), a.number("line_quantity"), a.number("line_amount"),
            a.number("line_regular"), a.flag("line_weighed"))),
        "awards": a.rows("awards", struct_of(
            AWARD, a.number("award_line", pa.int32()), a.number("award_rule", pa.int32()), a.wallet("award_wallet"),
            a.number("award_points"))),
        "wallets": a.rows("after", struct_of(
            BALANCE, a.wallet("after_wallet"), a.number("after_posted"), a.number("after_pending"), a.number("after_reserved"))),
        "reservation": struct_of(
            RESERVATION, a.number("reservation_id"), a.word("reservation_state", STATES), a.wallet("reservation_wallet"),
            a.number("reservation_reserved"), a.number("reservation_captured"), a.time("reservation_expire"),
            mask=pa.array(a.raw("reservation_id") == NONE)),
        "identifier_types": a.rows("identifiers", a.word("identifier_type", IDENTIFIERS)),
        "digest": a.binary("digest", 16), "program_hash": a.binary("image_hash", 32), "program_source": a.text("source"),
        "channel": a.text("channel"),
        "tenders": a.rows("tenders", struct_of(TENDER, a.text("tender", nulls=False), a.number("tender_amount"))),
        "promo_codes": a.rows("promo_codes", a.text("promo_code", nulls=False)),
        "quote": a.number(TAGS["quote"]), "only_as_quoted": a.flag(TAGS["only_as_quoted"]),
        "rules_day": a.number("rules_day", pa.date32()), "receipt_number": a.number("receipt_number"),
        "tier": a.text("tier"), "tier_after": a.text("tier_after"), "tier_until": a.number("tier_until", pa.date32(), none=DAY_NEVER),
        "opened_day": a.number("opened_day", pa.date32()),
        "counters": a.rows("counters", struct_of(
            COUNTER, a.number("counter"), a.word("counter_per", PERS), a.number("counter_window", pa.int32()),
            a.number("counter_increment"))),
        "campaigns": a.rows("campaigns", struct_of(
            CAMPAIGN, a.number("campaign"), a.number("campaign_points"), a.number("campaign_uses"))),
        "days": a.rows("days", struct_of(DAY, a.number("day", pa.date32()), a.number("day_receipts"), a.number("day_spent"))),
        "segments_added": a.rows("segments_added", a.word("segment_added", a.names["segments"])),
        "segments_removed": a.rows("segments_removed", a.word("segment_removed", a.names["segments"])),
        "favourites": a.rows("chosen", a.word("favourite", a.names["favourites"]), nulls=True),
        "birthday": a.number("birthday", pa.int32()), "birthday_from": a.number("birthday_from", pa.date32()),
        "discounts": a.rows("discounts", struct_of(LINE_AMOUNT, a.number("discount_line", pa.int32()), a.number("discount_amount"))),
        "paid": a.rows("paid", struct_of(LINE_AMOUNT, a.number("paid_line", pa.int32()), a.number("paid_amount"))),
        "variants": a.rows("variants", a.number("variant", pa.int32())),
        "entitlements": a.rows("entitlements", a.text("entitlement", nulls=False)),
        "notice_count": a.number("notice_count", pa.int32()),
        "notices": a.rows("notices", struct_of(
            NOTICE, a.word("notice_kind", NOTICES), a.number("notice_index", pa.int32()), a.text("notice", nulls=False))),
        "origin": struct_of(
            ORIGIN, a.number("origin_offset", pa.int32()),
            *(a.text(f"origin_{part}") for part in ORIGIN_PARTS),
            mask=pa.array(a.raw("origin_offset") == NONE)),
        "limits": a.rows("limits", struct_of(
            LIMIT, a.number("limit_number", pa.int32()), a.limit("limit_number", "limits"), a.word("limit_answer", ANSWERS))),
        "cut_points": a.number("cut"),
        "rung": struct_of(
            RUNG, a.word("rung_before", RUNGS), a.word("rung_after", RUNGS), a.seconds("rung_until"),
            a.number("rung_limit", pa.int32(), none=0), a.limit("rung_limit"), mask=pa.array(a.raw("rung_after") == NONE)),
        "blocks_version": a.number("blocks_version"),
        "block_lists": a.rows("block_lists", struct_of(
            BLOCK_LIST, a.word("block_list", LISTS), a.number("block_added", pa.int32()), a.number("block_removed", pa.int32()))),
    }
    return pa.Table.from_arrays([values[field.name] for field in SCHEMA], schema=SCHEMA)
