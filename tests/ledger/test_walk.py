"""The walk over LMDB's pages: damage that reading the groups does not meet is found, and a sound file is sound whenever one looks."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ledger.journal import Damage, Journal
from ledger.verify import verify
from tests import till
from tests.ledger.conftest import Opener
from tests.running import RunningServer

PAGE = 4096
BRANCH, LEAF, OVERFLOW = 1, 2, 4
SEED = 5


def newer_meta(raw: bytes) -> int:
    """Where the newer of the two meta pages begins. Behind a page's header of 16 bytes: 24 bytes, two databases of 48, 8, transaction."""
    return max((0, PAGE), key=lambda at: struct.unpack_from("<Q", raw, at + 144)[0])


def root(raw: bytes, database: int) -> int:
    """Page of the root: database 0 is the list of free pages, 1 the names of the others."""
    return struct.unpack_from("<Q", raw, newer_meta(raw) + 16 + 24 + 48 * database + 40)[0]


def kind(raw: bytes, page: int) -> int:
    return struct.unpack_from("<H", raw, page * PAGE + 10)[0]


@pytest.fixture
def file(tmp_path: Path, small_ledger: Opener) -> Path:
    """A journal with branch, leaf and overflow pages and a list of free ones; nothing in the tail alone."""
    ledger = small_ledger()
    chosen = random.Random(SEED)
    for number in range(300):
        ledger.handle.turn(chosen.choice([1, 2, 60]), True)
        if number % 7 == 0:
            assert ledger.handle.finish(False) == 0
    assert ledger.stop() == 0
    return tmp_path / "data" / "journal" / "data.mdb"


def found(data: Path) -> str:
    with pytest.raises(Damage, match="its pages are damaged: ") as error, Journal(data) as journal:
        journal.walk()
    return str(error.value)


def test_a_sound_file_is_sound(file: Path) -> None:
    data = file.parents[1]
    raw = file.read_bytes()
    assert {kind(raw, page) for page in range(2, len(raw) // PAGE)} >= {BRANCH, LEAF}, "the fixture has what the test is about"
    with Journal(data) as journal:
        journal.walk()
    verify(data)


def test_damage_that_the_groups_do_not_show_is_found(file: Path) -> None:
    """The list of free pages, and separators in branch pages: every group still reads as it should, and the next write could destroy."""
    data, raw = file.parents[1], file.read_bytes()
    free = root(raw, 0)
    assert kind(raw, free) == LEAF
    whole = verify(data).head
    for change in ("lists a page that is in use", "lists a page twice", "has another number in its header"):
        damaged = bytearray(raw)
        node = free * PAGE + struct.unpack_from("<H", raw, free * PAGE + 16)[0]
        first = node + 8 + 8 + 8  # node header, key, count: the highest free page of the oldest record
        if change.endswith("use"):
            struct.pack_into("<Q", damaged, first, root(raw, 1))
        elif change.endswith("twice"):
            struct.pack_into("<Q", damaged, first, struct.unpack_from("<Q", raw, first + 8)[0])
        else:
            damaged[free * PAGE] ^= 1
        file.write_bytes(damaged)
        assert "data.mdb" in found(data), change
        with pytest.raises(Damage, match="its pages are damaged"):
            verify(data)
    file.write_bytes(raw)
    assert verify(data).head == whole


def test_a_flipped_bit_in_a_branch_page_is_found(file: Path) -> None:
    data, raw = file.parents[1], file.read_bytes()
    chosen = random.Random(SEED)
    groups = [page for page in range(2, len(raw) // PAGE) if kind(raw, page) == BRANCH]
    live = 0
    for page in groups:
        damaged = bytearray(raw)
        damaged[page * PAGE + 16 + chosen.randrange(2)] ^= 1 << chosen.randrange(8)  # where its first node begins
        file.write_bytes(damaged)
        try:
            with Journal(data) as journal:
                journal.walk()
        except Damage as error:
            assert "data.mdb" in str(error)
            live += 1
    assert live, "one of the branch pages is in use"


def test_the_walk_beside_a_busy_writer_finds_nothing(new_server: Callable[..., RunningServer]) -> None:
    server = new_server().start()
    stop = threading.Event()

    def shop() -> None:
        while not stop.is_set():
            server.stub.EarnPoints(till.earn("card", 100), timeout=60)

    tills = threading.Thread(target=shop)
    tills.start()
    try:
        seen = []
        while len(set(seen)) < 4:  # four different transactions
            with Journal(server.data) as journal:
                for _ in range(5):
                    journal.walk()
                seen.append(journal.drained().sequence)
            assert tills.is_alive()
    finally:
        stop.set()
        tills.join()
