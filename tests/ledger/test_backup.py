"""Back-ups: what is copied is what is there, a damaged one is named, an interrupted one goes on, and nothing else may be added to it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ledger import limits
from ledger.backup import MANIFEST, BackUp, Taken, back_up
from ledger.journal import Damage, Group, JournalError, NotReadable, Tail
from ledger.verify import verify
from tests.ledger.forging import Forge, earn, entry, position_of, program_entry
from tests.ledger.test_verify import rewrite_lmdb, small_forge

SEED = 20261122


def long_forge(count: int = 60) -> Forge:
    forge = small_forge()
    for number in range(count):
        forge.add(earn(1, 1, request=100 + number))
    return forge


def taken(data: Path, to: Path, **arguments: object) -> Taken:
    return back_up(data, to, bytes_per_s=0, **arguments)


def records(path: Path) -> list[bytes]:
    return [bytes(record) for _, batch in BackUp(path).batches() for _, record in batch]


def test_a_back_up_holds_every_group_and_only_that(tmp_path: Path) -> None:
    forge = long_forge()
    data = forge.write(tmp_path / "data")
    (data / "identity.key").write_text("ab" * 16 + "\n")
    done = taken(data, tmp_path / "copy", file_bytes=10_000)
    assert records(tmp_path / "copy") == forge.groups
    assert done.head == BackUp(tmp_path / "copy").head == f"{forge.sequence}:{forge.hash.hex()}"
    assert (done.entries, done.new_entries, done.running) == (forge.sequence, forge.sequence, False)
    assert done.files == len(list((tmp_path / "copy").glob("groups-*"))) > 3
    assert not any(b"ab" * 16 in path.read_bytes() or bytes.fromhex("ab" * 16) in path.read_bytes()
                   for path in (tmp_path / "copy").iterdir()), "the key stays where it is"
    for row in json.loads((tmp_path / "copy" / MANIFEST).read_text())["files"]:
        content = (tmp_path / "copy" / row["name"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (row["bytes"], row["sha256"])


def test_a_back_up_is_verified_like_its_directory(tmp_path: Path) -> None:
    forge = long_forge()
    data = forge.write(tmp_path / "data")
    taken(data, tmp_path / "copy", file_bytes=10_000)
    of_data, of_copy = verify(data), verify(tmp_path / "copy", expect=(4, forge.groups[2][96:128]))
    assert (of_copy.head, of_copy.directory, of_copy.totals) == (of_data.head, of_data.directory, of_data.totals)
    for sequence, message in ((4, "another history"), (999, "rolled back"), (2, "not the last of a group")):
        with pytest.raises(Damage, match=message):
            verify(tmp_path / "copy", expect=(sequence, bytes(32)))


def test_the_next_run_copies_only_what_is_new(tmp_path: Path) -> None:
    forge = small_forge()
    taken(forge.write(tmp_path / "one"), tmp_path / "copy")
    first = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "copy").glob("groups-*")}
    for number in range(20):
        forge.add(earn(1, 1, request=100 + number))
    data = forge.write(tmp_path / "two")
    done = taken(data, tmp_path / "copy")
    assert (done.new_entries, done.files, done.entries) == (20, 2, forge.sequence)
    assert done.new_bytes == sum(len(group) for group in forge.groups[6:])
    assert all((tmp_path / "copy" / name).stat().st_mtime_ns == when for name, when in first.items()), "a file is never changed"
    assert records(tmp_path / "copy") == forge.groups
    before = (tmp_path / "copy" / MANIFEST).read_bytes()
    again = taken(data, tmp_path / "copy")
    assert (again.new_entries, again.new_bytes, again.head) == (0, 0, done.head)
    assert (tmp_path / "copy" / MANIFEST).read_bytes() == before


@pytest.mark.parametrize("drained", [0, 1, 3, 6])
def test_the_tail_of_a_stopped_directory_is_copied(tmp_path: Path, drained: int) -> None:
    forge = small_forge()
    done = taken(forge.write(tmp_path / "data", drained_groups=drained), tmp_path / "copy")
    assert (done.tail_groups, done.entries) == (6 - drained, 8)
    assert records(tmp_path / "copy") == forge.groups


def test_the_tail_of_a_running_service_is_left_for_the_next_run(tmp_path: Path) -> None:
    """A group in the tail may not be on the disk yet: it could vanish with the power and come again as another."""
    data = small_forge().write(tmp_path / "data", drained_groups=3)
    with (data / "LOCK").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = taken(data, tmp_path / "copy")
        assert (done.running, done.tail_groups, done.entries) == (True, 0, 4)
    assert taken(data, tmp_path / "copy").entries == 8


def test_a_service_that_starts_while_the_tail_is_read_keeps_its_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = small_forge().write(tmp_path / "data", drained_groups=3)
    whole = Tail.all_groups
    with (data / "LOCK").open("r+b") as lock:
        def start(ring: Tail) -> Iterator[tuple[int, Group]]:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the back-up does not hold it
            return whole(ring)

        monkeypatch.setattr(Tail, "all_groups", start)
        done = taken(data, tmp_path / "copy")
    assert (done.running, done.tail_groups, done.entries) == (True, 0, 4)


def test_a_damaged_tail_is_named(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data", drained_groups=3)
    with (data / "tail").open("r+b") as file:
        file.seek(position_of(data, 7) + 200)
        file.write(b"\xff" * 8)
    with pytest.raises(Damage, match="chain ends with sequence 6, but a valid group 8"):
        taken(data, tmp_path / "copy")


def test_an_empty_journal_is_no_back_up(tmp_path: Path) -> None:
    with pytest.raises(NotReadable, match="no entries yet"):
        taken(Forge().write(tmp_path / "data"), tmp_path / "copy")
    assert not (tmp_path / "copy" / MANIFEST).exists()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("after", [1, 7, 20, 44, 68])
def test_an_interrupted_run_is_a_smaller_back_up_and_is_gone_on_with(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    forge = long_forge()
    data = forge.write(tmp_path / "data")
    whole = taken(data, tmp_path / "whole", file_bytes=10_000)

    def stop(done: int, total: int) -> None:
        if done >= after:
            raise Interrupted

    monkeypatch.setattr(limits, "BACKUP_FLUSH_BYTES", 1)  # the progress is told group by group
    with pytest.raises(Interrupted):
        taken(data, tmp_path / "copy", file_bytes=10_000, progress=stop)
    assert len(list((tmp_path / "copy").glob("*.new"))) <= 1
    if (tmp_path / "copy" / MANIFEST).exists():
        assert verify(tmp_path / "copy").totals["sequence"] <= after
    (tmp_path / "copy" / f"groups-{9999:020d}.dbg").write_bytes(b"named, and not in the manifest yet")
    done = taken(data, tmp_path / "copy", file_bytes=10_000)
    assert done.head == whole.head and records(tmp_path / "copy") == forge.groups
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}


# --- where it must not go ---------------------------------------------------------------------------------------------

def test_nothing_but_a_back_up_of_the_same_history_is_added_to(tmp_path: Path) -> None:
    data = small_forge().write(tmp_path / "data")
    shorter = Forge()
    shorter.add(program_entry())
    shorter.write(tmp_path / "shorter")
    other = small_forge()
    other.hash, other.sequence = other.groups[4][96:128], 7
    other.groups.pop()
    other.add(earn(2, 3, request=7))
    other.write(tmp_path / "other")
    taken(data, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    for name, message in (("shorter", "ends with entry 1, the back-up with 8: the directory was set back"),
                          ("other", "another hash there")):
        with pytest.raises(NotReadable, match=message):
            taken(tmp_path / name, tmp_path / "copy")
    manifest = tmp_path / "copy" / MANIFEST
    content = json.loads(manifest.read_text())
    del content["checksum"]
    content["directory"] = "00" * 16
    content["checksum"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    manifest.write_text(json.dumps(content))
    with pytest.raises(NotReadable, match="is a back-up of directory 0000"):
        taken(data, tmp_path / "copy")
    manifest.write_bytes(before[MANIFEST])
    assert {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()} == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("to whom it may concern")
    with pytest.raises(NotReadable, match=r"not empty and no back-up \(letter.txt\)"):
        taken(data, tmp_path / "full")
    with (tmp_path / "copy" / "LOCK").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(NotReadable, match="in use by another back-up"):
            taken(data, tmp_path / "copy")


def test_a_damaged_journal_is_named_and_what_was_copied_is_sound(tmp_path: Path) -> None:
    forge = long_forge()
    data = forge.write(tmp_path / "data")
    bad = bytearray(forge.groups[40])
    bad[200] ^= 4
    rewrite_lmdb(data, lambda t, groups, _: t.put(bad[16:24], bytes(bad), db=groups))
    with pytest.raises(Damage, match=rf"data.mdb, group {int.from_bytes(bad[16:24], 'little')}: the hash"):
        taken(data, tmp_path / "copy", file_bytes=5_000)
    assert records(tmp_path / "copy") == forge.groups[:len(records(tmp_path / "copy"))]
    assert verify(tmp_path / "copy").totals["sequence"] > 20


# --- damaged back-ups -------------------------------------------------------------------------------------------------

@pytest.fixture
def copy(tmp_path: Path) -> Path:
    taken(long_forge(30).write(tmp_path / "data"), tmp_path / "copy", file_bytes=10_000)
    return tmp_path / "copy"


def test_a_flipped_bit_anywhere_is_found_and_its_group_is_named(copy: Path) -> None:
    chosen = random.Random(SEED)
    files = sorted(copy.glob("groups-*"))
    for _ in range(150):
        path = chosen.choice(files)
        whole = path.read_bytes()
        at, bit = chosen.randrange(len(whole)), chosen.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
        with pytest.raises(Damage, match=rf"{path.name}(, group \d+|: its SHA)"):
            verify(copy)
        with pytest.raises(Damage, match=rf"{path.name}, group \d+"):
            list(BackUp(copy).groups())
        path.write_bytes(whole)
    verify(copy)


def test_a_changed_manifest_is_refused(copy: Path) -> None:
    chosen = random.Random(SEED)
    path = copy / MANIFEST
    whole = path.read_bytes()
    for _ in range(150):
        at, bit = chosen.randrange(len(whole) - 1), chosen.randrange(8)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
        try:
            assert BackUp(copy).head
        except JournalError as error:
            assert str(path) in str(error)
        else:  # white space, or a letter's case in an escape: nothing that counts
            assert json.loads(path.read_bytes()) == json.loads(whole)
    path.write_bytes(b"")
    with pytest.raises(Damage, match="no manifest"):
        BackUp(copy)
    path.unlink()
    with pytest.raises(NotReadable, match="it has no MANIFEST.json"):
        BackUp(copy)


@pytest.mark.parametrize(("change", "message"), [
    (lambda path, other: path.unlink(), "the file is missing"),
    (lambda path, other: os.truncate(path, path.stat().st_size - 1), "the manifest says"),
    (lambda path, other: path.write_bytes(path.read_bytes() + b"\0"), "the manifest says"),
    (lambda path, other: shutil.copy(other, path), "the manifest says|SHA|group"),
    (lambda path, other: path.write_bytes(bytes(path.stat().st_size)), "no group begins here"),
    (lambda path, other: path.write_bytes(path.read_bytes()[:-200] + b"DBG1" + bytes(196)), "group"),
])
def test_a_file_that_is_missing_cut_or_another_is_named(copy: Path, change: Callable[[Path, Path], object], message: str) -> None:
    first, second, *_ = sorted(copy.glob("groups-*"))
    change(second, first)
    with pytest.raises(Damage, match=f"{re.escape(second.name)}.*({message})"):
        verify(copy)
    with pytest.raises(Damage, match=re.escape(second.name)):
        BackUp(copy).check_files()
        list(BackUp(copy).groups())


def test_a_group_of_another_history_is_found_by_the_chain(tmp_path: Path) -> None:
    """Its own hash fits, and so does the manifest for all that it says about the file."""
    forge, other = small_forge(), Forge()
    other.hash, other.sequence = bytes(32), 3
    stranger = other.add(earn(1, 25, request=3))
    assert len(stranger) == len(forge.groups[2])
    taken(forge.write(tmp_path / "data"), tmp_path / "copy")
    path = tmp_path / "copy" / BackUp(tmp_path / "copy").files[0].name
    path.write_bytes(path.read_bytes().replace(forge.groups[2], stranger))
    for read in (verify, lambda copy: list(BackUp(copy).groups())):
        with pytest.raises(Damage, match=rf"{path.name}, group 4: the (chain is broken|group does not follow)"):
            read(tmp_path / "copy")


def test_a_newer_manifest_is_not_guessed_at(copy: Path) -> None:
    path = copy / MANIFEST
    path.write_text(path.read_text().replace("daybook back-up 1", "daybook back-up 2"))
    with pytest.raises(NotReadable, match="says 'daybook back-up 2': this version reads"):
        BackUp(copy)


# --- epochs -----------------------------------------------------------------------------------------------------------

RESTORE = entry(22)


@pytest.mark.parametrize(("groups", "sound"), [
    ([(1, earn(1, 1, request=50))], True), ([(2, RESTORE)], True), ([(2, RESTORE), (2, earn(1, 1, request=50))], True),
    ([(2, RESTORE), (3, RESTORE)], True), ([(2, earn(1, 1, request=50))], False), ([(3, RESTORE)], False),
    ([(2, RESTORE), (1, earn(1, 1, request=50))], False), ([(0, earn(1, 1, request=50))], False),
])
def test_an_epoch_begins_with_a_restore_and_never_goes_back(tmp_path: Path, groups: list[tuple[int, bytes]], sound: bool) -> None:
    forge = small_forge()
    for epoch, entry_ in groups:
        forge.add(entry_, epoch=epoch)
    data = forge.write(tmp_path / "data")
    if sound:
        assert verify(data).totals["epoch"] == groups[-1][0]
    else:
        with pytest.raises(Damage, match="epoch|magic"):
            verify(data)
