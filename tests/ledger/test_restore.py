"""Restores: every cut gives the state of that moment, the directory goes on as another history, and nothing else is written over."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ledger import limits
from ledger.backup import BackUp, back_up, utc_text
from ledger.engine import StartRefused, open_ledger
from ledger.follower import Follower
from ledger.journal import Damage, Group, JournalError, NotReadable, scan, tail_groups
from ledger.restore import Restored, parse_time, restore
from ledger.verify import parse_head, verify
from tests import till
from tests.ledger.conftest import PROGRAM
from tests.running import RunningServer
from tests.test_two_ports import START_US, outcome, random_requests

SEED = 9
STEP_US = 3_000_000  # between two groups: a time between two sealings is a time between two groups


@dataclass(frozen=True)
class Past:
    """A ledger that lived for a while, its back-up, and what its groups were."""

    data: Path
    copy: Path
    key: Path
    groups: list[Group]

    def restore(self, to: Path, **arguments: object) -> Restored:
        return restore(self.copy, to, self.key, **{"tail_bytes": limits.TAIL_BYTES_MIN, **arguments})


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Past]:
    """About 60 groups with entries of every kind, by a real service; the last ones are in the tail only."""
    folder = tmp_path_factory.mktemp("past")
    server = RunningServer(folder / "server", clock=START_US).start()
    for i, (method, message) in enumerate(random_requests(SEED, 80, START_US)):
        server.set_clock(START_US + i * STEP_US)
        outcome(server.stub, method, message)
        if i == 60:
            server.restart()
    server.kill()
    data, key = server.data, folder / "kept-apart.key"
    shutil.copy(data / "identity.key", key)
    groups = [*scan(data), *tail_groups(data)]
    back_up(data, folder / "copy", bytes_per_s=0, file_bytes=4000)
    assert BackUp(folder / "copy").sequence == groups[-1].last_sequence and len(groups) > 40
    yield Past(data, folder / "copy", key, groups)


def opened(data: Path, **arguments: object):
    return open_ledger(data, PROGRAM, members_max=1000, ids_max=10_000, accept_time=True, **arguments)


def test_all_of_a_back_up_comes_back(past: Past, tmp_path: Path) -> None:
    done = past.restore(tmp_path / "new")
    assert done.through == f"{past.groups[-1].last_sequence}:{past.groups[-1].hash.hex()}" and done.left == 0
    of_old, of_new = verify(past.data), verify(tmp_path / "new", expect=parse_head(done.through))
    assert of_new.head == done.head and of_new.directory == of_old.directory == done.directory
    assert of_new.totals["digest"] == of_old.totals["digest"] and of_new.totals["wallets"] == of_old.totals["wallets"]
    assert of_new.totals["kinds"] == {**of_old.totals["kinds"], 22: 1} and of_new.totals["epoch"] == 2
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["FORMAT", "LOCK", "identity.key", "journal", "tail"]
    assert (tmp_path / "new" / "identity.key").stat().st_mode & 0o777 == 0o600
    ledger = opened(tmp_path / "new")
    assert (ledger.recovered.sequence, ledger.recovered.tail_groups) == (past.groups[-1].last_sequence + 1, 1)
    ledger.close()


def test_every_cut_is_the_state_of_that_moment(past: Past, tmp_path: Path) -> None:
    """Each back-up of a prefix, and each restore of the whole to that prefix: the same digest, and the prefix's bytes."""
    for at in (0, 1, len(past.groups) // 3, len(past.groups) // 2, len(past.groups) - 2, len(past.groups) - 1):
        last = past.groups[at]
        data = tmp_path / f"until-{at}"
        done = past.restore(data, until_sequence=last.last_sequence)
        assert done.through == f"{last.last_sequence}:{last.hash.hex()}"
        assert done.left == past.groups[-1].last_sequence - last.last_sequence
        assert [group.record for group in scan(data)] == [group.record for group in past.groups[:at + 1]]
        report = verify(data, expect=(last.last_sequence, last.hash))
        ledger = opened(data)
        digest = ledger.handle.digest()
        assert bytes.fromhex(digest)[::-1] == report.totals["digest"]
        assert ledger.stop() == 0
        if at < len(past.groups) - 1:
            lost = past.groups[-1]
            with pytest.raises(Damage, match="rolled back|another history|not the last of a group"):
                verify(data, expect=(lost.last_sequence, lost.hash))


def test_a_cut_inside_a_group_falls_to_the_end_of_the_group_before(past: Past, tmp_path: Path) -> None:
    at = next(i for i, group in enumerate(past.groups) if group.count > 1)
    before, group = past.groups[at - 1], past.groups[at]
    done = past.restore(tmp_path / "new", until_sequence=group.first_sequence)
    assert done.through == f"{before.last_sequence}:{before.hash.hex()}"


def test_a_time_cuts_behind_what_was_sealed_by_then(past: Past, tmp_path: Path) -> None:
    times = sorted({group.time_us for group in past.groups})
    for number, (until, expected) in enumerate((
            (times[0], times[0]), (times[5], times[5]), (times[6] - 1, times[5]), (times[-1] + 86_400_000_000, times[-1]))):
        done = past.restore(tmp_path / f"new-{number}", until_us=parse_time(utc_text(until)))
        last = [group for group in past.groups if group.time_us == expected][-1]
        assert (done.through, done.through_time_us) == (f"{last.last_sequence}:{last.hash.hex()}", expected)
        assert all(group.time_us <= until for group in scan(tmp_path / f"new-{number}"))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"until_us": START_US - 1}, r"begins with entries 1..1, written together at 2026-.*nothing of it lies before that"),
    ({"until_us": 0}, "nothing of it lies before that"),
    ({"until_sequence": 0}, r"--until-sequence must be 1..\d+, what the back-up .* holds, was 0"),
    ({"until_sequence": 10**9}, r"must be 1..\d+"), ({"until_sequence": -1}, r"must be 1..\d+"),
])
def test_a_moment_that_it_does_not_hold_is_explained(past: Past, tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(NotReadable, match=message):
        past.restore(tmp_path / "new", **arguments)
    assert not (tmp_path / "new" / "FORMAT").exists()


@pytest.mark.parametrize(("text", "time_us"), [
    ("2026-11-22T09:30:00Z", 1_795_339_800_000_000), ("2026-11-22 10:30+01:00", 1_795_339_800_000_000),
    ("2026-11-22T09:30:00.000001Z", 1_795_339_800_000_001),
])
def test_times_say_their_zone(text: str, time_us: int) -> None:
    assert parse_time(text) == time_us
    assert parse_time(utc_text(time_us)) == time_us


@pytest.mark.parametrize(("text", "message"), [("2026-11-22T09:30:00", "does not say its zone"), ("yesterday", "a time is like"),
                                               ("", "a time is like"), ("09:30Z", "a time is like")])
def test_other_times_are_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_time(text)


# --- the other history ------------------------------------------------------------------------------------------------

def test_it_goes_on_as_another_history(past: Past, tmp_path: Path) -> None:
    """New entries, kill, start, back-up, restore: epochs 2 and 3; the old back-up is not gone on with after a cut."""
    cut = past.groups[-3]
    done = past.restore(tmp_path / "second" / "data", until_sequence=cut.last_sequence)
    shutil.copy(past.key, tmp_path / "key")
    now = cut.time_us + 60_000_000
    server = RunningServer(tmp_path / "second", clock=now).start()
    answers = [server.stub.EarnPoints(till.earn(f"new-{i}", at=now), timeout=60) for i in range(5)]
    assert [answer.entry.sequence for answer in answers] == [cut.last_sequence + 2 + i for i in range(5)]
    server.restart(kill=True)
    assert server.terminate() == 0
    report = verify(server.data, expect=parse_head(done.head))
    assert report.totals["epoch"] == 2 and report.totals["kinds"][22] == 1
    verify(server.data, expect=(cut.last_sequence, cut.hash))
    lost = past.groups[-2]
    with pytest.raises(Damage, match="another history"):
        verify(server.data, expect=(lost.last_sequence, lost.hash))
    with pytest.raises(NotReadable, match="cannot be gone on with: .*another history since"):
        back_up(server.data, past.copy)
    back_up(server.data, tmp_path / "copy", bytes_per_s=0)
    third = restore(tmp_path / "copy", tmp_path / "third", tmp_path / "key", tail_bytes=limits.TAIL_BYTES_MIN)
    assert third.epoch == 3 and verify(tmp_path / "third").totals["kinds"][22] == 2
    ledger = opened(tmp_path / "third")
    ledger.handle.turn(3, True)
    ledger.close()
    ledger = opened(tmp_path / "third")  # epoch 3 from the tail
    assert ledger.stop() == 0
    assert {group.epoch for group in scan(tmp_path / "third")} == {1, 2, 3}
    ledger = opened(tmp_path / "third")  # epoch 3 from LMDB
    ledger.handle.turn(1, True)
    assert ledger.stop() == 0
    assert [group.epoch for group in scan(tmp_path / "third")][-1] == 3


def test_after_a_whole_restore_the_back_up_is_gone_on_with(past: Past, tmp_path: Path) -> None:
    shutil.copytree(past.copy, tmp_path / "copy")
    done = past.restore(tmp_path / "new")
    more = back_up(tmp_path / "new", tmp_path / "copy", bytes_per_s=0)
    assert (more.new_entries, more.head) == (1, done.head)
    assert verify(tmp_path / "copy").totals["epoch"] == 2


def test_files_of_the_two_histories_do_not_mix(past: Past, tmp_path: Path) -> None:
    """The old tail, journal or key beside the restored others: refused with the reason."""
    cut = past.groups[len(past.groups) // 2]
    past.restore(tmp_path / "new", until_sequence=cut.last_sequence)
    whole = tmp_path / "whole"
    past.restore(whole)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "identity.key").write_text("00" * 16 + "\n")
    (stranger / "identity.key").chmod(0o600)
    for name, source, message in (
        ("tail", past.data, "the journal was set back: the tail says|the tail is damaged: it should go on with entry"),
        ("tail", whole, "the journal was set back: the tail says"),
        ("journal/data.mdb", past.data, "the tail was set back or replaced"),
        ("identity.key", stranger, "identity.key is not the key that this journal was begun with"),
        ("tail", None, "tail .* is missing, and with it perhaps the last acknowledged writes"),
        ("journal/data.mdb", None, "is missing or cut off"),
    ):
        mixed = tmp_path / "mixed"
        shutil.copytree(tmp_path / "new", mixed)
        (mixed / name).unlink()
        if source is not None:
            shutil.copy(source / name, mixed / name)
        with pytest.raises(StartRefused, match=message):
            opened(mixed)
        with pytest.raises(JournalError):
            verify(mixed, key=bytes.fromhex((mixed / "identity.key").read_text()))
        shutil.rmtree(mixed)


def test_a_tail_and_a_journal_that_end_alike_in_two_histories_do_not_mix(past: Past, tmp_path: Path) -> None:
    """Both end with the same sequence: only the hash of the last group tells."""
    cut = past.groups[-2]
    assert past.groups[-1].count == 1
    ends = []
    for name in ("one", "two"):
        past.restore(tmp_path / name, until_sequence=cut.last_sequence)
        ledger = opened(tmp_path / name, clock_file=_clock(tmp_path / "clock", cut.time_us + (name == "two")))
        ledger.handle.turn(1, True)
        ends.append(ledger.handle.sequence)
        assert ledger.handle.finish(False) == 0
        ledger.close()
    assert ends[0] == ends[1]
    shutil.copy(tmp_path / "one" / "tail", tmp_path / "two" / "tail")
    with pytest.raises(StartRefused, match=f"of two histories: both end with entry {ends[0]}, with different hashes"):
        opened(tmp_path / "two")
    with pytest.raises(Damage, match=f"both end with {ends[0]}, with different hashes"):
        verify(tmp_path / "two")


def test_the_epoch_is_kept_by_the_follower_and_by_a_start_from_its_snapshot(past: Past, tmp_path: Path) -> None:
    past.restore(tmp_path / "new", until_sequence=past.groups[-2].last_sequence)
    ledger = opened(tmp_path / "new")
    ledger.handle.turn(3, True)
    assert ledger.stop() == 0
    with Follower(tmp_path / "new", members_max=1000, ids_max=10_000) as follower:
        while follower.step():
            pass
        follower.write_snapshot()
        sequence = follower.sequence
    assert sequence == ledger.head[0]
    for number in range(2):  # nothing is replayed behind the snapshot; then something is
        ledger = opened(tmp_path / "new")
        assert ledger.begun_at == sequence
        ledger.handle.turn(1, True)
        assert ledger.stop() == 0
        assert [group.epoch for group in scan(tmp_path / "new")][-1 - number:] == [2] * (1 + number)
    with Follower(tmp_path / "new", members_max=1000, ids_max=10_000) as follower:
        assert follower.begun_at == sequence
        while follower.step():
            pass
        assert follower.sequence == ledger.head[0]


def _clock(path: Path, time_us: int) -> Path:
    path.write_bytes(time_us.to_bytes(8, "little"))
    return path


# --- keys, targets, damage --------------------------------------------------------------------------------------------

def test_the_key_must_be_the_journals(past: Past, tmp_path: Path) -> None:
    key = tmp_path / "key"
    for content, mode, message in (
        ("00" * 16 + "\n", 0o600, "the key is not the one that this journal was begun with"), (past.key.read_text(), 0o644, "chmod 600"),
        ("secret", 0o600, "must hold 32 hex digits"), (None, 0, "is missing"),
    ):
        key.unlink(missing_ok=True)
        if content is not None:
            key.write_text(content)
            key.chmod(mode)
        with pytest.raises(StartRefused, match=message):
            restore(past.copy, tmp_path / "new", key)
        assert not (tmp_path / "new" / "FORMAT").exists()
    assert verify(past.copy, key=bytes.fromhex(past.key.read_text())).head
    with pytest.raises(Damage, match="another identity key"):
        verify(past.copy, key=bytes(16))


def test_nothing_is_written_over(past: Past, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "letter.txt").write_text("to whom it may concern")
    with pytest.raises(StartRefused, match=r"not empty \(letter.txt\): a restore never writes over anything"):
        past.restore(full)
    with pytest.raises(StartRefused, match="is a file"):
        past.restore(full / "letter.txt")
    past.restore(tmp_path / "new")
    before = (tmp_path / "new" / "tail").stat().st_mtime_ns
    with pytest.raises(StartRefused, match="not empty"):
        past.restore(tmp_path / "new")
    assert (tmp_path / "new" / "tail").stat().st_mtime_ns == before
    with pytest.raises(StartRefused, match="tail .* exists already"):
        past.restore(tmp_path / "other", tail=tmp_path / "new")
    with pytest.raises(StartRefused, match="directory .* does not exist"):
        past.restore(tmp_path / "other", tail=tmp_path / "nowhere")


def test_the_tail_may_lie_elsewhere(past: Past, tmp_path: Path) -> None:
    (tmp_path / "fast").mkdir()
    past.restore(tmp_path / "new", tail=tmp_path / "fast")
    assert not (tmp_path / "new" / "tail").exists()
    ledger = opened(tmp_path / "new", tail=tmp_path / "fast")
    assert ledger.recovered.tail_groups == 1
    ledger.close()


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("where", ["restore", "tail"])
def test_a_restore_that_was_cut_short_is_no_ledger_and_is_begun_anew(past: Past, tmp_path: Path, where: str) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == where and done >= total // 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        past.restore(tmp_path / "new", progress=stop)
    with pytest.raises(StartRefused, match="has no FORMAT file but is not empty"):
        opened(tmp_path / "new")
    with pytest.raises(NotReadable, match="no file FORMAT"):
        verify(tmp_path / "new")
    done = past.restore(tmp_path / "new")
    assert verify(tmp_path / "new").head == done.head
    assert not (tmp_path / "new" / "RESTORING").exists()


def test_two_restores_at_once_are_one_too_many(past: Past, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with (tmp_path / "new" / "LOCK").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StartRefused, match="in use by another process"):
            past.restore(tmp_path / "new")


@pytest.mark.parametrize("change", [
    lambda path: path.write_bytes(path.read_bytes()[:300] + b"\xff" + path.read_bytes()[301:]),
    lambda path: path.unlink(), lambda path: os.truncate(path, path.stat().st_size - 5),
])
def test_a_damaged_back_up_is_refused_with_the_place(past: Past, tmp_path: Path, change: Callable[[Path], object]) -> None:
    shutil.copytree(past.copy, tmp_path / "copy")
    file = sorted((tmp_path / "copy").glob("groups-*"))[2]
    change(file)
    with pytest.raises(JournalError, match=file.name):
        restore(tmp_path / "copy", tmp_path / "new", past.key, tail_bytes=limits.TAIL_BYTES_MIN)
    assert not (tmp_path / "new" / "FORMAT").exists()


def test_what_lies_before_the_damage_can_be_restored(past: Past, tmp_path: Path) -> None:
    shutil.copytree(past.copy, tmp_path / "copy")
    rows = BackUp(tmp_path / "copy").files
    (tmp_path / "copy" / rows[2].name).write_bytes(bytes(rows[2].bytes))
    (tmp_path / "copy" / rows[3].name).unlink()
    middle = [group for group in past.groups if rows[1].first_sequence <= group.first_sequence < rows[1].last_group][-1]
    with (tmp_path / "copy" / rows[1].name).open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(b"\xff" * 100)
    for number, last in enumerate((middle, [group for group in past.groups if group.last_sequence == rows[0].last_sequence][0])):
        done = restore(tmp_path / "copy", tmp_path / f"new-{number}", past.key, tail_bytes=limits.TAIL_BYTES_MIN,
                       until_sequence=last.last_sequence)
        assert done.through == f"{last.last_sequence}:{last.hash.hex()}"
        assert verify(tmp_path / f"new-{number}").head == done.head
