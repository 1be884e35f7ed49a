"""Flipped bits, zeroed sectors, truncation, old copies (D8): the first bad record ends the tail, a later valid one refuses the start,
and so does every damage in LMDB. Start after a clean stop = start after kill -9."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import lmdb
import pytest

from ledger import limits
from ledger.engine import OpenLedger, StartRefused
from ledger.journal import Damage
from ledger.verify import verify
from tests.ledger import tail_reader

BLOCK = 4096


def zero(path: Path, offset: int, size: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(bytes(size))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def undrained(data: Path, small_ledger) -> tuple[Path, list[tail_reader.Group]]:
    """Groups of 1, 5, 300, 20 and 2 entries in the tail, the first two drained."""
    ledger = small_ledger()
    ledger.handle.turn(5, True)
    assert ledger.handle.finish(False) == 0
    for entries in (300, 20, 2):
        ledger.handle.turn(entries, True)
    ledger.close()
    groups = tail_reader.groups(data / "tail")
    assert [group.count for group in groups] == [1, 5, 300, 20, 2]
    return data / "tail", groups


def reopened(small_ledger) -> OpenLedger:
    ledger = small_ledger()
    ledger.handle.turn(4, True)  # it goes on
    sequence = ledger.handle.sequence
    ledger.close()
    again = small_ledger()
    assert again.handle.sequence == sequence
    assert again.handle.finish(True) == 0
    again.close()
    return ledger


def refused(small_ledger) -> str:
    with pytest.raises(StartRefused) as caught:
        small_ledger()
    return str(caught.value)


def test_undrained_groups_are_recovered(undrained, small_ledger) -> None:
    ledger = reopened(small_ledger)
    assert ledger.recovered == (False, 328, 6, 3, 0)


def test_clean_stop_and_kill_recover_the_same_state(tmp_path: Path, small_ledger) -> None:
    ledger = small_ledger()
    ledger.handle.turn(50, True)
    shutil.copytree(tmp_path / "data", tmp_path / "killed")
    digest = ledger.handle.digest()
    assert ledger.stop() == 0
    stopped, killed = small_ledger(), small_ledger(data=tmp_path / "killed")
    assert (stopped.recovered.tail_groups, killed.recovered.tail_groups) == (0, 2)
    assert stopped.handle.sequence == killed.handle.sequence == 51
    assert stopped.handle.digest() == killed.handle.digest() == digest


@pytest.mark.parametrize("where", ["magic", "version", "first_sequence", "drained", "time", "count", "size", "directory", "previous",
                                   "hash", "first entry", "last byte"])
def test_flipped_bit_in_the_last_group_ends_the_tail(undrained, small_ledger, where: str) -> None:
    tail, groups = undrained
    last = groups[-1]
    offset = {"magic": 1, "version": 4, "first_sequence": 16, "drained": 24, "time": 34, "count": 40, "size": 45, "directory": 50,
              "previous": 70, "hash": 100, "first entry": 130, "last byte": 127 + last.size}[where]
    flip(tail, BLOCK + last.position + offset, 3)
    assert reopened(small_ledger).recovered == (False, 326, 6, 2, 0)


@pytest.mark.parametrize("index", [2, 3])
@pytest.mark.parametrize("part", ["header", "entries", "block"])
def test_damage_before_a_valid_group_refuses_the_start(undrained, small_ledger, index: int, part: str) -> None:
    tail, groups = undrained
    group = groups[index]
    if part == "header":
        flip(tail, BLOCK + group.position + 20)
    elif part == "entries":
        flip(tail, BLOCK + group.position + 128 + group.size // 2)
    else:
        zero(tail, BLOCK + group.position, 512)
    text = refused(small_ledger)
    assert "the tail is damaged" in text and f"entry {group.first_sequence}" in text and f"position {group.position}" in text
    assert "up to entry 328" in text


def test_every_torn_prefix_of_the_last_write_is_a_clean_end(undrained, small_ledger) -> None:
    """The device kept any subset of the 512-byte sectors of the last write (several groups' worth of luck, one seed)."""
    tail, groups = undrained
    whole = tail.read_bytes()
    big = groups[2]
    # The big group as the last one: what follows it is taken away.
    zero(tail, BLOCK + groups[3].position, groups[-1].position + groups[-1].span - groups[3].position)
    base = tail.read_bytes()
    generator = random.Random(2)
    sectors = big.span // 512
    subsets = [set(range(count)) for count in range(0, sectors, 5)] + [
        {sector for sector in range(sectors) if generator.random() < 0.7} for _ in range(6)]
    for kept in subsets:
        torn = bytearray(base)
        used = -(-(128 + big.size) // 512)
        for sector in range(sectors):
            if sector not in kept:
                at = BLOCK + big.position + sector * 512
                torn[at : at + 512] = bytes(512)
        tail.write_bytes(torn)
        ledger = small_ledger()
        assert ledger.handle.sequence == (306 if kept >= set(range(used)) else 6), sorted(kept)
        ledger.close()
    tail.write_bytes(whole)
    assert small_ledger().handle.sequence == 328


def test_missing_middle_group_refuses_the_start(undrained, small_ledger) -> None:
    tail, groups = undrained
    zero(tail, BLOCK + groups[3].position, groups[3].span)
    assert "the tail is damaged" in refused(small_ledger)


def test_older_journal_beside_a_newer_tail_refuses_the_start(data: Path, small_ledger) -> None:
    ledger = small_ledger()
    ledger.handle.turn(10, True)
    assert ledger.handle.finish(False) == 0
    shutil.copy(data / "journal" / "data.mdb", data.parent / "old.mdb")
    ledger.handle.turn(10, True)
    assert ledger.handle.finish(False) == 0
    ledger.handle.turn(10, True)  # its header notes how far the journal was
    ledger.close()
    shutil.copy(data.parent / "old.mdb", data / "journal" / "data.mdb")
    text = refused(small_ledger)
    assert "the journal was set back" in text and "up to 21" in text
    with pytest.raises(Damage, match=r"ends with sequence 11, .*valid group|it ends with sequence 11, but group .* knows"):
        verify(data)


def test_older_tail_beside_a_newer_journal_refuses_the_start(data: Path, small_ledger) -> None:
    ledger = small_ledger()
    ledger.handle.turn(10, True)
    assert ledger.handle.finish(False) == 0
    shutil.copy(data / "tail", data.parent / "old")
    ledger.handle.turn(10, True)
    assert ledger.handle.finish(False) == 0
    ledger.close()
    shutil.copy(data.parent / "old", data / "tail")
    assert "the tail was set back or replaced" in refused(small_ledger)
    with pytest.raises(Damage, match="tail: its newest group ends with 11, the journal with 21: the tail was set back"):
        verify(data)


def test_whole_directory_set_back_starts_and_shows_its_older_head(data: Path, small_ledger) -> None:
    """This cannot be seen from inside: `verify --expect-head` is for it."""
    ledger = small_ledger()
    ledger.handle.turn(10, True)
    head = ledger.handle.head
    ledger.close()
    shutil.copytree(data, data.parent / "copy")
    ledger = small_ledger()
    ledger.handle.turn(10, True)
    assert ledger.handle.head != head
    ledger.close()
    shutil.rmtree(data)
    (data.parent / "copy").rename(data)
    assert small_ledger().handle.head == head


# --- LMDB ---------------------------------------------------------------------------------------------------------

@pytest.fixture
def drained(data: Path, small_ledger) -> Path:
    """A journal of 60 groups of 1 to 400 entries, so that it has leaf, overflow and branch pages; the tail holds nothing more."""
    ledger = small_ledger()
    generator = random.Random(7)
    for number in range(60):
        ledger.handle.turn(generator.choice([1, 3, 40, 400]), True)
        if number % 7 == 0:
            assert ledger.handle.finish(False) == 0
    assert ledger.handle.finish(False) == 0
    ledger.close()
    return data / "journal" / "data.mdb"


def records(path: Path) -> list[tuple[int, bytes]]:
    """The journal through py-lmdb, as another process would read it."""
    with lmdb.open(str(path.parent), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4, readonly=True, lock=False) as environment:
        groups = environment.open_db(b"groups", integerkey=True)
        with environment.begin(db=groups) as transaction:
            return [(int.from_bytes(key, "little"), bytes(value)) for key, value in transaction.cursor()]


def rewrite(path: Path, change) -> None:
    """Change the journal's records through py-lmdb, as damage that LMDB itself cannot notice."""
    with lmdb.open(str(path.parent), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4) as environment:
        groups = environment.open_db(b"groups", integerkey=True)
        with environment.begin(write=True, db=groups) as transaction:
            change(transaction)


def key_of(sequence: int) -> bytes:
    return sequence.to_bytes(8, "little")


def test_journal_holds_the_groups_of_the_tail(drained: Path, data: Path) -> None:
    in_tail = {group.first_sequence: group for group in tail_reader.groups(data / "tail")}
    for sequence, raw in records(drained):
        group = tail_reader.parse_group(raw)
        assert group is not None and group._replace(position=0) == in_tail[sequence]._replace(position=0)
        assert len(raw) == 128 + group.size


def test_every_flipped_bit_in_a_record_refuses_the_start(drained: Path, data: Path, small_ledger) -> None:
    whole = drained.read_bytes()
    all_records = records(drained)
    generator = random.Random(11)
    for _ in range(40):
        sequence, raw = generator.choice(all_records)
        bit = generator.randrange(len(raw) * 8)
        drained.write_bytes(whole)
        places = [match.start() for match in re.finditer(re.escape(raw), whole)]  # LMDB leaves older copies of a page behind
        assert places
        for at in places:
            flip(drained, at + bit // 8, bit % 8)
        text = refused(small_ledger)
        assert "the journal" in text and "damaged" in text, (sequence, bit)
    drained.write_bytes(whole)
    small_ledger()


def test_missing_swapped_and_cut_records_refuse_the_start(drained: Path, small_ledger) -> None:
    whole = drained.read_bytes()
    all_records = records(drained)
    (first, raw_first), (second, raw_second) = all_records[20:22]
    last, raw_last = all_records[-1]
    changes = {
        "is missing": lambda transaction: transaction.delete(key_of(second)),
        f"begins with entry {first}": lambda transaction: transaction.put(key_of(first), raw_second),
        "own sizes": lambda transaction: transaction.put(key_of(first), raw_first[:-8]),
        "journal/data.mdb": lambda transaction: transaction.put(key_of(first), raw_first[:100]),
        "says that it ends": lambda transaction: transaction.delete(key_of(last)),
    }
    for expected, change in changes.items():
        drained.write_bytes(whole)
        rewrite(drained, change)
        assert expected in refused(small_ledger)


def test_truncated_journal_refuses_the_start(drained: Path, small_ledger) -> None:
    whole = drained.read_bytes()
    for size in (len(whole) - 4096, len(whole) // 2, 12_288, 8192, 4096, 100):
        drained.write_bytes(whole[:size])
        assert "journal" in refused(small_ledger), size


def test_zeroed_and_scrambled_pages_never_give_another_state(drained: Path, small_ledger) -> None:
    """Any page zeroed or filled with noise: refused, or (a free page, an old meta page) exactly the same state. Never a crash."""
    whole = drained.read_bytes()
    ledger = small_ledger()
    expected = (ledger.handle.sequence, ledger.handle.digest(), ledger.handle.head)
    ledger.close()
    generator = random.Random(13)
    started = 0
    pages = len(whole) // 4096
    for page in sorted(generator.sample(range(pages), min(pages, 60))):
        for noise in (bytes(4096), generator.randbytes(4096), whole[:page * 4096][-4096:].ljust(4096, b"\1")):
            damaged = bytearray(whole)
            damaged[page * 4096 : page * 4096 + 4096] = noise
            drained.write_bytes(damaged)
            try:
                ledger = small_ledger()
            except StartRefused as error:
                assert "journal" in str(error)
                continue
            started += 1
            assert (ledger.handle.sequence, ledger.handle.digest(), ledger.handle.head) == expected, page
            ledger.close()
    assert started < pages * 3


def test_meta_page_set_back_is_made_up_for_by_the_tail(data: Path, small_ledger) -> None:
    """The newer of LMDB's two meta pages never reached the disk: the journal is one transaction back, the tail still has it."""
    ledger = small_ledger()
    for _ in range(2):
        ledger.handle.turn(10, True)
        assert ledger.handle.finish(False) == 0
    digest = ledger.handle.digest()
    ledger.close()
    path = data / "journal" / "data.mdb"
    raw = path.read_bytes()
    # A meta page: 16 bytes page header (page number first), then 24 + 48 * 2 + 8 bytes before mm_txnid.
    transactions = [int.from_bytes(raw[page + 144 : page + 152], "little") for page in (0, 4096)]
    assert abs(transactions[0] - transactions[1]) == 1
    newer = 4096 * transactions.index(max(transactions))
    older = 4096 - newer
    path.write_bytes(raw[:newer] + raw[newer : newer + 8] + raw[older + 8 : older + 4096] + raw[newer + 4096 :])
    ledger = small_ledger()
    assert (ledger.recovered.journal_sequence, ledger.handle.sequence, ledger.handle.digest()) == (11, 21, digest)


def test_lost_meta_page_refuses_the_start(drained: Path, small_ledger) -> None:
    whole = drained.read_bytes()
    for page in (0, 4096):
        drained.write_bytes(whole)
        zero(drained, page, 4096)
        assert "not an LMDB file" in refused(small_ledger)
