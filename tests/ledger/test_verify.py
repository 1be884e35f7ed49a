"""`verify`: what is sound passes, what is damaged is named exactly, a second reader agrees with the first."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lmdb
import pytest

from ledger import journal, limits
from ledger.journal import Damage, NotReadable
from ledger.verify import parse_head, verify
from tests import till
from tests.ledger.forging import BLOCK, Forge, burn, earn, entry, position_of, program_entry, section
from tests.running import RunningServer

ROOT = Path(__file__).resolve().parents[2]


def small_forge(*, known_drained: int = 0) -> Forge:
    """Six groups: a programme, two members, some earns, a burn. The fifth says that LMDB had reached known_drained."""
    forge = Forge()
    forge.add(program_entry())
    forge.add(earn(1, 100, opened=True, request=1), earn(2, 50, opened=True, request=2))
    forge.add(earn(1, 25, request=3))
    forge.add(burn(1, 75, request=4), earn(2, 5, request=5))
    forge.add(earn(1, 1, request=6), drained=known_drained)
    forge.add(earn(2, 2, request=7))
    return forge


def rewrite_lmdb(data: Path, change: Callable[[lmdb.Transaction, object, object], None]) -> None:
    with lmdb.open(str(data / "journal"), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4) as env:
        groups, meta = env.open_db(b"groups", integerkey=True), env.open_db(b"meta")
        with env.begin(write=True) as transaction:
            change(transaction, groups, meta)


def key(sequence: int) -> bytes:
    return sequence.to_bytes(8, sys.byteorder)


@pytest.mark.parametrize("drained", [0, 1, 3, 6])
def test_a_sound_journal_passes_wherever_the_drain_stopped(tmp_path: Path, drained: int) -> None:
    forge = small_forge()
    report = verify(forge.write(tmp_path / "data", drained_groups=drained))
    assert report.head == f"8:{forge.hash.hex()}"
    assert report.tail_groups == 6 - drained
    totals = report.totals
    assert (totals["sequence"], totals["groups"], totals["members"]) == (8, 6, 2)
    assert totals["kinds"] == {20: 1, 1: 6, 2: 1}
    points = totals["wallets"]["points"]
    assert (points["issued"], points["redeemed"], points["expired"], points["outstanding"]) == (183, 75, 0, 108)


def test_a_turned_ring_is_followed(tmp_path: Path) -> None:
    """The next group stands at the ring's start when it did not fit behind the last one."""
    forge = small_forge()
    data = forge.write(tmp_path / "data", drained_groups=5)
    blob = bytearray((data / "tail").read_bytes())
    at = position_of(data, 8)
    blob[BLOCK:2 * BLOCK] = blob[at:at + BLOCK]
    blob[at:at + BLOCK] = bytes(BLOCK)
    (data / "tail").write_bytes(blob)
    assert verify(data).tail_groups == 1


def test_a_torn_last_group_is_the_end_and_no_damage(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data", drained_groups=3)
    with (data / "tail").open("r+b") as file:
        file.seek(position_of(data, 8) + 200)
        file.write(b"\xff" * 8)
    assert verify(data).head.startswith("7:")


def test_a_damaged_group_before_a_valid_one_is_damage(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data", drained_groups=3)
    with (data / "tail").open("r+b") as file:
        file.seek(position_of(data, 7) + 200)
        file.write(b"\xff" * 8)
    with pytest.raises(Damage, match=r"chain ends with sequence 6, but a valid group 8"):
        verify(data)


def test_a_drained_group_may_rot_in_the_tail(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data", drained_groups=3)
    with (data / "tail").open("r+b") as file:
        file.seek(position_of(data, 4) + 200)
        file.write(b"\xff" * 8)
    assert verify(data).head.startswith("8:")


def test_lmdb_set_back_is_damage(tmp_path: Path) -> None:
    """The last group knows that LMDB had reached sequence 4."""
    data = small_forge(known_drained=4).write(tmp_path / "data", drained_groups=2)
    with pytest.raises(Damage, match=r"ends with sequence 3, but group 7 .* had reached 4: it was set back"):
        verify(data)


def broken_chain(forge: Forge) -> None:
    forge.hash = hashlib.sha256(b"another past").digest()
    forge.add(earn(1, 1, request=9))


def went_back(forge: Forge) -> None:
    forge.add(earn(1, 1, request=9), time_us=1)


FORGED: list[tuple[str, Callable[[Forge], object], str]] = [
    ("chain", broken_chain, r"group 9: the group does not follow the one before"),
    ("sum", lambda f: f.add(earn(1, 1, request=9), earn(1, 5, member_side=6, request=10)), r"group 9, entry 10: .*do not (sum|fit)"),
    ("lots", lambda f: f.add(burn(2, 1000, request=9)), r"group 9, entry 9: .*takes more from a lot"),
    ("member", lambda f: f.add(earn(7, 1, request=9)), r"group 9, entry 9: .*account that does not exist"),
    ("digest", lambda f: f.add(entry(21, section(13, bytes(16)))), r"group 9, entry 9: .*digest in the journal differs"),
    ("kind", lambda f: f.add(entry(99)), r"group 9, entry 9: .*unknown kind"),
    ("framing", lambda f: f.add(earn(1, 1, request=9)[:-1]), r"group 9, entry 9: the entry's framing is broken"),
    ("postings", lambda f: f.add(entry(1, section(2, bytes([9, 0, 2])), member=1)), r"group 9, entry 9: the entry's postings are broken"),
    ("entry time", lambda f: f.add(earn(1, 1, request=9, time_us=5)), r"group 9, entry 9: .*time went back"),
    ("group time", went_back, r"group 9: the group is older"),
    ("directory", lambda f: f.add(earn(1, 1, request=9), directory=bytes(16)), r"group 9: the group belongs to another"),
]


@pytest.mark.parametrize(("name", "change", "message"), FORGED, ids=[row[0] for row in FORGED])
def test_a_forged_group_with_a_right_hash_is_refused(tmp_path: Path, name: str, change: Callable[[Forge], object], message: str) -> None:
    forge = small_forge()
    change(forge)
    with pytest.raises(Damage, match=message) as error:
        verify(forge.write(tmp_path / "data"))
    assert "data.mdb" in str(error.value)


def test_a_flipped_bit_anywhere_in_a_record_is_found(tmp_path: Path) -> None:
    forge = small_forge()
    record = forge.groups[3]
    for bit in range(0, len(record) * 8, 97):
        data = small_forge().write(tmp_path / f"data-{bit}")
        flipped = bytearray(record)
        flipped[bit // 8] ^= 1 << bit % 8
        rewrite_lmdb(data, lambda t, groups, _, value=bytes(flipped): t.put(key(5), value, db=groups))
        with pytest.raises(Damage, match=r"data.mdb, group 5"):
            verify(data)


def test_a_missing_group_is_found(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    rewrite_lmdb(data, lambda t, groups, _: t.delete(key(4), db=groups))
    with pytest.raises(Damage, match=r"group 5: the group does not begin with the next sequence"):
        verify(data)


def test_lmdb_behind_its_own_mark_is_found(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    rewrite_lmdb(data, lambda t, groups, _: t.delete(key(8), db=groups))
    with pytest.raises(Damage, match=r"meta/drained says sequence 8, the groups end with 7"):
        verify(data)


def test_the_mark_of_another_history_is_found(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    rewrite_lmdb(data, lambda t, _, meta: t.put(b"drained", struct.pack("<Q32sQq", 8, bytes(32), 0, 0), db=meta))
    with pytest.raises(Damage, match=r"another hash for sequence 8"):
        verify(data)


# --- heads --------------------------------------------------------------------------------------------------------

def test_an_earlier_head_is_contained(tmp_path: Path) -> None:
    forge = small_forge()
    early = forge.groups[2][96:128]
    verify(forge.write(tmp_path / "data"), expect=(4, early))


@pytest.mark.parametrize(("sequence", "message"), [(4, "another history"), (2, "not the last of a group"), (99, "It was rolled back")])
def test_another_head_is_refused(tmp_path: Path, sequence: int, message: str) -> None:
    with pytest.raises(Damage, match=message):
        verify(small_forge().write(tmp_path / "data"), expect=(sequence, bytes(32)))


@pytest.mark.parametrize("text", ["", "7", "7:", "0:" + "a" * 64, "x:" + "a" * 64, "7:" + "a" * 63, "7:" + "g" * 64, "-1:" + "a" * 64])
def test_a_malformed_head_is_explained(text: str) -> None:
    with pytest.raises(ValueError, match="SEQ:HASH"):
        parse_head(text)


# --- directories --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("path", "content", "message"), [
    ("FORMAT", None, "no file FORMAT"), ("FORMAT", b"daybook 2\n", "reads 'daybook 1'"), ("FORMAT", b"daybook 1\nxyz\n", "32 hex digits"),
    ("FORMAT", b"daybook 1\n" + b"00" * 16 + b"\n", "belongs to directory"), ("tail", None, "--tail DIR"), ("tail", b"", "checksum"),
    ("journal/data.mdb", None, "never served"), ("journal/data.mdb", b"\0" * 8192, "cannot open"),
])
def test_another_directory_is_explained(tmp_path: Path, path: str, content: bytes | None, message: str) -> None:
    data = small_forge().write(tmp_path / "data")
    if content is None:
        (data / path).unlink()
    else:
        (data / path).write_bytes(content)
    with pytest.raises((Damage, NotReadable), match=message):
        verify(data)


def test_a_tail_of_another_size_is_damage(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    os.truncate(data / "tail", limits.TAIL_BYTES_MIN - BLOCK)
    with pytest.raises(Damage, match="was made with"):
        verify(data)


def test_a_cut_lmdb_file_ends_in_one_clear_line(tmp_path: Path) -> None:
    forge = small_forge()
    for number in range(200):
        forge.add(earn(1, 1, request=100 + number))
    data = forge.write(tmp_path / "data")
    os.truncate(data / "journal" / "data.mdb", 10 * 4096)
    done = subprocess.run([sys.executable, "-m", "server", "verify", str(data)], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "data.mdb" in done.stderr and "cut" in done.stderr
    assert "Traceback" not in done.stderr


def test_astray_page_pointers_never_crash_without_a_word(tmp_path: Path) -> None:
    """Overwritten branch, leaf and meta pages: verify ends with 1 and names the file, however LMDB takes it."""
    forge = small_forge()
    for number in range(400):
        forge.add(earn(1, 1, request=100 + number))
    whole = forge.write(tmp_path / "data")
    blob = (whole / "journal" / "data.mdb").read_bytes()
    for page in range(2, len(blob) // 4096, 29):
        damaged = bytearray(blob)
        damaged[page * 4096 + 16:page * 4096 + 64] = b"\xfe" * 48
        (whole / "journal" / "data.mdb").write_bytes(damaged)
        done = subprocess.run([sys.executable, "-m", "server", "verify", str(whole)], cwd=ROOT, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:  # a free page may hold anything
            assert done.returncode == 1, done.stderr
            assert "data.mdb" in done.stderr and "Traceback" not in done.stderr


# --- the second reader --------------------------------------------------------------------------------------------

def test_read_entry_takes_apart_what_was_put_together(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data", drained_groups=4)
    groups = [*journal.scan(data), *journal.tail_groups(data)]
    entries = {sequence: journal.read_entry(bytes_) for group in groups for sequence, bytes_ in group}
    assert sorted(entries) == list(range(1, 9))
    assert entries[1]["kind"] == "program" and b"programme" in entries[1]["source"].encode()
    first = entries[2]
    assert (first["kind"], first["member"], first["opened"]) == ("earn", 1, True)
    assert first["context"]["store"] == "0417" and first["context"]["sent_time_us"] == first["time_us"] - 1000
    assert first["postings"] == [{"account": "member", "wallet": 0, "points": 100}, {"account": "issued", "wallet": 0, "points": -100}]
    assert first["identifiers"][0]["type"] == "card"
    assert len(first["lines"]) == 6
    assert entries[5]["lots"][0]["points"] == -75


def test_scan_goes_on_behind_a_sequence(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    assert [group.first_sequence for group in journal.scan(data, after=4)] == [5, 7, 8]


# --- beside a running service -------------------------------------------------------------------------------------

def test_a_busy_service_with_a_turning_ring_is_sound_at_every_look(new_server: Callable[..., RunningServer]) -> None:
    """Each look catches drain, ring and writer in another state; the smallest tail turns over while it is looked at."""
    server = new_server(arguments=("--members-max", "20000", "--ids-max", "400000")).start()
    stop = threading.Event()
    heads: list[tuple[int, bytes]] = []

    def shop(card: str) -> int:
        count = 0
        while not stop.is_set():
            server.stub.EarnPoints(till.earn(card, 100), timeout=60)
            count += 1
        return count

    with ThreadPoolExecutor(8) as pool:
        tills = [pool.submit(shop, f"card-{number}") for number in range(8)]
        try:
            turned = 0
            while turned < limits.TAIL_BYTES_MIN // BLOCK * 5 // 4 and not any(one.done() for one in tills):
                report = verify(server.data, expect=heads[-1] if heads else None)
                heads.append(parse_head(report.head))
                turned = report.totals["groups"]
        finally:
            stop.set()
        answered = sum(one.result() for one in tills)
    assert heads == sorted(heads) and len(heads) > 2
    server.kill()
    report = verify(server.data, expect=heads[-1])
    assert report.totals["kinds"][1] >= answered
