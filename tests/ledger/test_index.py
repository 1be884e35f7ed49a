"""The index against a scan of the journal: while it grows, across restarts, merges and damage. Real files; journals made by forging.py."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import pytest

from ledger import index as index_module
from ledger import limits
from ledger._index import receipt_key, request_hash
from ledger.index import (
    EVERYTHING,
    Filter,
    Index,
    IndexProblem,
    NotReady,
    by_member,
    by_receipt,
    by_request,
    by_store_day,
    remove,
)
from ledger.journal import Journal, read_entry, scan
from tests.ledger import forging

SEED = random.randrange(1 << 32)
SMALL = 256  # entries of a segment that goes to a file, here


def id_of(number: int) -> bytes:
    return b"till-request-%06d" % number


def receipt_of(number: int) -> tuple[bytes, bytes, int, bytes]:
    return b"S%d" % (number % 3), b"t%d" % (number % 2), 20261120 + number % 2, b"n%d" % number


def entry_of(number: int, chance: random.Random) -> bytes:
    """Entry of any of the sorts that the index tells apart. The same number again names the same keys."""
    member = 1 + number % 17
    store, till, day, receipt = receipt_of(number)
    named = (bytes([7]) + forging.signed(day) + b"".join(bytes([tag]) + bytes([len(text)]) + text
                                                        for tag, text in ((0x80, store), (0x81, till), (0x82, receipt))))
    kind = chance.randrange(4)
    if kind == 0:
        return forging.entry(21, forging.section(13, bytes(16)))
    if kind == 1:
        return forging.entry(8, forging.section(2, b""), member=member)
    return forging.entry(1, forging.section(1, bytes([1]) + forging.signed(-5) + (named if kind == 2 else b"")),
                         member=member if chance.random() < 0.9 else 0, status=30 if chance.random() < 0.1 else 0,
                         request=request_hash(id_of(number)))


class Growing:
    """A journal that a test lets grow, and its index. Writer and reader are never open at once: one process, one LMDB environment."""

    def __init__(self, data: Path, seed: int) -> None:
        self.data = data
        self.chance = random.Random(seed)
        self.forge = forging.Forge()
        self.entries: list[bytes] = []
        self.names: list[tuple[int, bytes, tuple[bytes, bytes, int, bytes] | None]] = []
        self.told: list[str] = []
        self.journal: Journal | None = None
        self.index: Index | None = None
        self.grow(1, first=[forging.program_entry()])

    def grow(self, groups: int, *, entries_max: int = 60, first: list[bytes] | None = None) -> None:
        self.close()
        for _ in range(groups):
            made = first or [entry_of(self.chance.randrange(400), self.chance) for _ in range(self.chance.randint(1, entries_max))]
            self.entries += made
            self.forge.add(*made)
        if not (self.data / "journal").exists():
            self.forge.write(self.data)
        else:
            with lmdb.open(str(self.data / "journal"), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4, sync=False) as env:
                database = env.open_db(b"groups", integerkey=True)
                with env.begin(write=True) as transaction:
                    for group in self.forge.groups:
                        transaction.put(group[16:24], group, db=database)
        self.open()

    def open(self) -> None:
        self.journal = Journal(self.data)
        if self.index is None:
            self.index = Index(self.data, self.journal, say=self.told.append, segment_entries=SMALL)
        self.index.journal = self.journal

    def close(self) -> None:
        if self.journal is not None:
            self.journal.env.close()
            self.journal = None

    def restart(self) -> None:
        self.close()
        self.index = None
        self.open()

    def catch_up(self) -> None:
        while self.index.step():
            pass
        assert self.index.last_sequence == len(self.entries)

    def wanted(self, what: Filter) -> list[tuple[int, bytes]]:
        """The slow obvious answer: look at every entry."""
        for entry in self.entries[len(self.names):]:
            value = read_entry(entry)
            context = value.get("context", {})
            key = (context["store"].encode(), context["till"].encode(), context["business_day"], context["number"].encode()
                   ) if "store" in context else None
            self.names.append((value["member"], value["request"], key))
        found = []
        for number, (member, request, key) in enumerate(self.names):
            if (what.index is None
                    or what.index == index_module.MEMBER and member == what.exact
                    or what.index == index_module.REQUEST and request == what.exact
                    or what.index == index_module.RECEIPT and key == what.exact
                    or what.index == index_module.STORE_DAY and key is not None and (key[0], key[2]) == what.exact):
                found.append((number + 1, self.entries[number]))
        return found[::-1]

    def pages(self, what: Filter, size: int) -> list[tuple[int, bytes]]:
        found: list[tuple[int, bytes]] = []
        before = 1 << 62
        while page := self.index.find(what, before, size):
            found += page
            before = page[-1][0]
        return found

    def filters(self) -> Iterator[Filter]:
        number = self.chance.randrange(410)
        yield by_member(self.chance.randrange(1, 20))
        yield by_request(id_of(number))
        yield by_receipt(receipt_of(number)[0], receipt_of(number)[1], receipt_of(number)[2], receipt_of(number)[3])
        yield by_store_day(b"S%d" % self.chance.randrange(4), 20261120 + self.chance.randrange(3))

    def check(self, *, everything: bool = False) -> None:
        for what in [*self.filters(), *([EVERYTHING] if everything else [])]:
            wanted = self.wanted(what)
            assert self.pages(what, self.chance.choice((1, 3, 20, 1000))) == wanted, what
            assert list(self.index.walk(what, 1 << 62, reach=len(self.entries))) == wanted[::-1], what


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[Callable[..., Growing]]:
    made: list[Growing] = []

    def make(seed: int = SEED) -> Growing:
        print(f"seed {seed}")
        made.append(Growing(tmp_path / f"data-{len(made)}", seed))
        return made[-1]

    yield make
    for one in made:
        one.close()


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x40]))


def files_of(one: Growing) -> list[Path]:
    return sorted((one.data / "index").glob("*.index"))


def test_lists_are_what_a_scan_finds_while_the_journal_grows(growing: Callable[..., Growing]) -> None:
    one = growing()
    for round_ in range(25):
        one.grow(one.chance.randint(1, 8))
        if one.chance.random() < 0.2:
            one.restart()
        one.catch_up()
        one.check(everything=round_ % 8 == 0)
    assert len(files_of(one)) >= 1, "the test means to see files"
    assert one.told == []


def test_merges_keep_few_segments_and_every_row(growing: Callable[..., Growing]) -> None:
    one = growing()
    for _ in range(40):
        one.grow(4)
        one.catch_up()
        stats = one.index.stats()
        assert stats["segments"] <= 3 * limits.INDEX_FANOUT * 6
    assert max(segment.count for segment in one.index._segments if segment.path) > 4 * SMALL
    rows = [sum(len(segment.rows[index]) for segment in one.index._segments) for index in range(4)]
    values = [read_entry(entry) for entry in one.entries]
    named = sum("store" in value.get("context", {}) for value in values)
    assert rows == [sum(value["member"] != 0 for value in values), named, sum(value["request"] != bytes(16) for value in values), named]
    for _ in range(5):
        one.check()


def test_a_long_list_spans_pages_of_a_file(growing: Callable[..., Growing]) -> None:
    one = growing()
    one.grow(150)
    one.catch_up()
    assert any(len(rows) > limits.INDEX_PAGE_ROWS for segment in one.index._segments if segment.path for rows in segment.rows)
    for what in (by_store_day(b"S1", 20261121), by_member(3), EVERYTHING):
        assert one.pages(what, 700) == one.wanted(what)


def test_every_restart_reads_again_only_what_no_file_holds(growing: Callable[..., Growing]) -> None:
    one = growing()
    one.grow(60)
    one.catch_up()
    kept = max(segment.last_sequence for segment in one.index._segments if segment.path)
    one.restart()
    assert one.index.last_sequence == kept > len(one.entries) // 2
    one.catch_up()
    one.check(everything=True)


def test_an_index_is_built_only_up_to_where_it_may(growing: Callable[..., Growing]) -> None:
    one = growing()
    one.grow(20)
    ends = [group.last_sequence for group in scan_closed(one)]
    for end in ends[::5]:
        while one.index.step(end):
            pass
        assert one.index.last_sequence == end
        with pytest.raises(NotReady):
            one.index.find(EVERYTHING, 1 << 62, 1, reach=end + 1)


def scan_closed(one: Growing) -> list[Any]:
    """The journal's groups, read while the index's own reader is closed."""
    one.close()
    groups = list(scan(one.data))
    one.open()
    return groups


def test_a_hit_of_another_key_with_the_same_hash_is_not_listed(tmp_path: Path) -> None:
    seen: dict[bytes, int] = {}
    number = 0
    while (low := request_hash(id_of(number))[:4]) not in seen:
        seen[low] = number
        number += 1
    pair = seen[low], number
    forge = forging.Forge()
    forge.add(forging.program_entry(), *(forging.entry(1, member=1, request=request_hash(id_of(which))) for which in pair))
    data = forge.write(tmp_path / "data")
    with Journal(data) as journal:
        index = Index(data, journal)
        while index.step():
            pass
        for sequence, which in zip((2, 3), pair, strict=True):
            assert [found for found, _ in index.find(by_request(id_of(which)), 1 << 62, 10)] == [sequence]


def twins(key_of: Callable[[int], int]) -> tuple[int, int]:
    """Two numbers with the same key of 32 bits."""
    seen: dict[int, int] = {}
    number = 0
    while (key := key_of(number)) not in seen:
        seen[key] = number
        number += 1
    return seen[key], number


def test_a_receipt_or_a_store_with_anothers_hash_is_not_listed(tmp_path: Path) -> None:
    receipts = [(b"S1", b"t", 20261121, b"n%d" % number) for number in twins(lambda n: receipt_key(20261121, b"S1", b"t", b"n%d" % n))]
    stores = [(b"s%d" % number, b"t", 20261121, b"n") for number in twins(lambda n: receipt_key(20261121, b"s%d" % n))]
    forge = forging.Forge()
    forge.add(forging.program_entry(), *(forging.entry(1, forging.section(1, bytes([7]) + forging.signed(day) + b"".join(
        bytes([tag, len(text)]) + text for tag, text in ((0x80, store), (0x81, till), (0x82, number)))), member=1)
        for store, till, day, number in (*receipts, *stores)))
    with Journal(forge.write(tmp_path / "data")) as journal:
        index = Index(tmp_path / "data", journal)
        while index.step():
            pass
        for sequence, receipt in zip((2, 3), receipts, strict=True):
            assert [found for found, _ in index.find(by_receipt(*receipt), 1 << 62, 10)] == [sequence]
        for sequence, (store, _, day, _) in zip((4, 5), stores, strict=True):
            assert [found for found, _ in index.find(by_store_day(store, day), 1 << 62, 10)] == [sequence]


@pytest.mark.parametrize("damage", ["cut", "head", "tail", "row", "offset", "empty", "text", "gone", "other directory"])
def test_a_damaged_file_is_read_again_from_the_journal(growing: Callable[..., Growing], damage: str) -> None:
    one = growing()
    one.grow(120)
    one.catch_up()
    segment = max((segment for segment in one.index._segments if segment.path), key=lambda segment: segment.count)
    path, offsets_at = segment.path, segment.rows[3].at + -(-segment.rows[3].count * 8 // 4096) * 4096
    one.close()
    if damage == "cut":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("not an index at all\n" * 1000)
    elif damage == "gone":
        path.unlink()
    else:
        at = {"head": 30, "other directory": 18, "tail": path.stat().st_size - 3, "row": segment.rows[0].at + 8, "offset": offsets_at}
        flip(path, at[damage])
    one.restart()
    refused = 0
    for _ in range(3):
        try:
            one.catch_up()
            one.check(everything=True)
            for what in (by_member(member) for member in range(1, 18)):
                assert one.pages(what, 50) == one.wanted(what)
        except NotReady:
            refused += 1  # the page was looked at for the first time: its file is given up and built again
    assert refused == (damage in ("row", "offset"))
    assert len(one.told) == (damage != "gone") and one.index.stats()["damaged"] == len(one.told)
    assert damage == "gone" or "read again from the journal" in one.told[0]
    one.restart()
    one.catch_up()
    one.check(everything=True)
    assert len(one.told) == (damage != "gone"), "the new file is sound"


def test_a_rotten_page_does_not_go_into_a_merge(growing: Callable[..., Growing]) -> None:
    one = growing()
    one.grow(60)
    one.catch_up()
    segment = max((segment for segment in one.index._segments if segment.path), key=lambda segment: segment.count)
    flip(segment.path, segment.rows[2].at + 3)
    for _ in range(200):        # until the largest segment is merged: when, the seed says
        if one.told:
            break
        one.grow(6)
        one.catch_up()
    assert len(one.told) == 1
    for _ in range(8):
        one.check()


def test_an_index_of_another_history_is_not_used(growing: Callable[..., Growing]) -> None:
    one, other = growing(), growing(SEED + 1)
    for each in (one, other):
        each.grow(60)
        each.catch_up()
        each.close()
    shutil.rmtree(one.data / "index")
    shutil.copytree(other.data / "index", one.data / "index")
    one.restart()
    one.catch_up()
    one.check(everything=True)
    assert one.told and all("another history" in text for text in one.told)


def test_a_merge_that_was_killed_leaves_nothing_wrong(growing: Callable[..., Growing], monkeypatch: pytest.MonkeyPatch) -> None:
    # Between the rename of the merged file and the removal of its parts; and with half a file under its first name.
    one = growing()
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
    for _ in range(12):
        one.grow(15)
        one.catch_up()
    monkeypatch.undo()
    assert len(files_of(one)) > one.index.stats()["files"]
    half = one.data / "index" / f"{1:016d}-{2:016d}.new"
    half.write_bytes(b"half a file")
    one.restart()
    assert not half.exists()
    one.catch_up()
    one.check(everything=True)
    one.restart()
    one.catch_up()
    assert len(files_of(one)) == one.index.stats()["files"]
    assert one.told == []


def test_merges_behind_the_back_change_no_answer(growing: Callable[..., Growing], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "BACKGROUND_ENTRIES", 4 * SMALL)
    one = growing()
    one.index._background = True
    for _ in range(40):
        one.grow(6)
        one.catch_up()
        one.check()
    one.index.close()
    one.catch_up()
    one.check(everything=True)
    assert max(segment.count for segment in one.index._segments if segment.path) > 4 * SMALL
    assert one.told == []


def test_a_file_is_written_in_the_middle_of_a_merge(growing: Callable[..., Growing], monkeypatch: pytest.MonkeyPatch) -> None:
    one = growing()
    one.index._background = True
    inside, may_go_on = threading.Event(), threading.Event()
    write_rows = index_module._write_rows

    def slow(*arguments: Any) -> Any:
        if threading.current_thread().name == "index-merge":
            inside.set()
            assert may_go_on.wait(60)
        return write_rows(*arguments)

    monkeypatch.setattr(index_module, "_write_rows", slow)
    while not inside.is_set():
        one.grow(SMALL)
        one.catch_up()
    files = len(files_of(one))
    while len(files_of(one)) < files + 2:
        one.grow(SMALL)
        one.catch_up()
    may_go_on.set()
    one.index.close()
    one.catch_up()
    one.check(everything=True)
    one.restart()
    one.check(everything=True)
    assert one.told == []


def test_a_rebuilt_index_answers_the_same(growing: Callable[..., Growing]) -> None:
    one = growing()
    one.grow(80)
    one.catch_up()
    asked = [what for _ in range(5) for what in one.filters()]
    before = [one.pages(what, 7) for what in asked]
    one.close()
    remove(one.data)
    assert files_of(one) == []
    one.restart()
    one.catch_up()
    assert [one.pages(what, 11) for what in asked] == before


def test_bytes_that_are_no_journal_stop_the_index(growing: Callable[..., Growing]) -> None:
    one = growing()
    one.grow(3)
    one.close()
    good = one.forge.groups[2]
    for wrong in (good[:50], good[:128 + 20], b"XXXX" + good[4:], good[:16] + (9999).to_bytes(8, "little") + good[24:],
                  good[:48] + bytes(16) + good[64:], good[:128] + b"\xff\xff\xff\x7f" + good[132:]):
        with lmdb.open(str(one.data / "journal"), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4, sync=False) as env:
            database = env.open_db(b"groups", integerkey=True)
            with env.begin(write=True) as transaction:
                transaction.put(good[16:24], wrong, db=database)
        remove(one.data)
        one.restart()
        with pytest.raises((ValueError, IndexProblem)):
            one.catch_up()
        one.close()
