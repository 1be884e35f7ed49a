"""Runs on disk: what a start refuses and why, what can be made again, and what the bytes are (read here with py-lmdb alone)."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import lmdb
import pytest
from ledger._probe import siphash_

from ledger import ids, journal, limits
from ledger.backup import back_up
from ledger.engine import StartRefused
from ledger.restore import restore
from ledger.rules import compile_file
from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests import till
from tests.ledger import forging
from tests.ledger.conftest import ROOT
from tests.running import RunningServer

IDS_MAX = 40
REQUESTS = 600
SLOT = struct.Struct("<QQIIHH")


def send(server: RunningServer, numbers: range) -> None:
    """Earns, some at a time, again while the ids are behind."""
    waiting = []
    for number in numbers:
        request = till.earn(f"card-{number % 7}", 100 + number, request_id=f"request-{number:012d}")
        request.receipt.key.number = f"n{number}"
        waiting.append(request)
    while waiting:
        calls = [(request, server.stub.EarnPoints.future(request, timeout=60)) for request in waiting[:IDS_MAX // 2]]
        waiting = waiting[IDS_MAX // 2:]
        for request, call in calls:
            try:
                call.result()
            except grpc.RpcError as error:
                assert till.reason_of(error) == ("IDS_BEHIND", {})
                waiting.append(request)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with many small runs of both kinds, and beside it, as `early`, a copy from a third of the way. To be copied."""
    folder = tmp_path_factory.mktemp("ids")
    server = RunningServer(folder, arguments=("--members-max", "1000", "--ids-max", str(IDS_MAX)))
    try:
        server.start()
        send(server, range(REQUESTS // 3))
        assert server.terminate() == 0
        shutil.copytree(server.data, folder / "early")
        server.start()
        send(server, range(REQUESTS // 3, REQUESTS))
        assert server.terminate() == 0
    finally:
        server.kill()
    return server.data


@pytest.fixture
def data(written: Path, tmp_path: Path) -> Path:
    shutil.copytree(written, tmp_path / "data")
    return tmp_path / "data"


def refused(small_ledger: Any) -> str:
    with pytest.raises(StartRefused) as caught:
        small_ledger(ids_max=IDS_MAX)
    return str(caught.value)


def environment(data: Path) -> lmdb.Environment:
    return lmdb.open(str(data / "ids"), map_size=limits.JOURNAL_MAP_BYTES, max_dbs=4)


def keys_of_journal(data: Path) -> tuple[dict[bytes, int], int]:
    """Request id hash -> sequence, from the journal; and the last sequence."""
    found, last = {}, 0
    for group in journal.scan(data):
        for sequence, entry in group:
            last = sequence
            if entry[24:40] != bytes(16):
                found[entry[24:40]] = sequence
    return found, last


def runs_of(data: Path) -> Iterator[tuple[tuple[Any, ...], list[tuple[bytes, int, int]]]]:
    """Each run's description, and its slots as (hash, first, second), read as docs/journal-format.md says."""
    with environment(data) as opened:
        runs, slots = opened.open_db(b"runs"), opened.open_db(b"slots")
        with opened.begin() as transaction:
            for key, value in transaction.cursor(runs):
                run, = struct.unpack(">I", key)
                assert len(value) in (88, 128)
                description = struct.unpack("<IIQQqqQQ16sQQ32sQ", value if len(value) == 128 else value.ljust(128, b"\0"))
                found, index = [], 0
                cursor = transaction.cursor(slots)
                cursor.set_range(struct.pack(">IQQ", run, 0, 0))
                for block_key, block in cursor:
                    number, low, high = struct.unpack(">IQQ", block_key)
                    if number != run:
                        break
                    _, owner, at, count = struct.unpack_from("<QIII", block)
                    assert (owner, at, len(block)) == (run, index, 20 + 28 * count)
                    rows = [SLOT.unpack_from(block, 20 + 28 * i) for i in range(count)]
                    assert (low, high) == rows[0][:2]
                    found += [(struct.pack("<QQ", *row[:2]), row[2] | row[4] << 32, row[3] | row[5] << 32) for row in rows]
                    index += 1
                assert index == description[7]
                yield description, found


def test_runs_hold_what_the_journal_says_and_nothing_else(data: Path) -> None:
    wanted, last = keys_of_journal(data)
    covered = {0: 0, 1: 0}
    heads = {group.first_sequence + group.count - 1: group.hash for group in journal.scan(data)}
    for (version, kind, first, until, low, high, count, _, directory, _, head, head_hash, _), slots in runs_of(data):
        assert (version, count, directory) == (2, len(slots), journal.read_format(data))
        assert head >= until and heads[head] == head_hash
        assert first == covered[kind] + 1 and first <= until <= last and low <= high
        covered[kind] = until
        order = [struct.unpack("<QQ", key) for key, _, _ in slots]
        assert order == sorted(order)
        if kind == 0:
            assert {key: sequence for key, sequence, _ in slots} == {
                key: sequence for key, sequence in wanted.items() if first <= sequence <= until}
    assert min(covered.values()) > REQUESTS - 2 * IDS_MAX


def test_a_start_with_more_or_less_room_for_ids_goes_on_with_the_same_runs(data: Path, small_ledger: Any) -> None:
    wanted, _ = keys_of_journal(data)
    for ids_max in (IDS_MAX, 14, 200, 25, IDS_MAX):
        ledger = small_ledger(ids_max=ids_max)
        sequence, runs = ledger.handle.sequence, ledger.handle.stats()["ids"]
        assert runs["keys"] >= 2 * (REQUESTS - max(IDS_MAX, 2 * ids_max))
        ledger.close()
        held: dict[bytes, int] = {}
        for description, slots in runs_of(data):
            if description[1] == 0:
                assert description[3] <= sequence
                held |= {key: first for key, first, _ in slots}
        assert held.items() <= wanted.items()


def test_runs_of_nowhere_are_made_by_a_start(data: Path, small_ledger: Any) -> None:
    """A directory of a time before there were runs."""
    shutil.rmtree(data / "ids")
    small_ledger(ids_max=IDS_MAX).close()
    assert sum(len(slots) for _, slots in runs_of(data)) > REQUESTS


def test_a_run_cut_short_refuses_the_start(data: Path, small_ledger: Any) -> None:
    file = data / "ids" / "data.mdb"
    whole = file.read_bytes()
    for size in (len(whole) - 4096, len(whole) // 2, 4096, 0):
        file.write_bytes(whole[:size])
        text = refused(small_ledger)
        assert "ids/data.mdb" in text and "--rebuild" in text, (size, text)
    file.write_bytes(whole)
    small_ledger(ids_max=IDS_MAX)


def test_the_runs_of_another_directory_refuse_the_start(data: Path, tmp_path: Path, small_ledger: Any) -> None:
    small_ledger(data=tmp_path / "other").close()
    shutil.rmtree(tmp_path / "other" / "ids")
    (data / "ids").rename(tmp_path / "other" / "ids")
    with pytest.raises(StartRefused, match=r"run 1 belongs to another data directory.*--rebuild"):
        small_ledger(data=tmp_path / "other")


def test_runs_that_know_more_than_the_journal_refuse_the_start(written: Path, data: Path, tmp_path: Path, small_ledger: Any) -> None:
    shutil.copytree(written.parent / "early", tmp_path / "early")
    shutil.rmtree(tmp_path / "early" / "ids")
    (data / "ids").rename(tmp_path / "early" / "ids")
    with pytest.raises(StartRefused, match=r"request ids on disk .* reach to entry \d+, but the journal ends with \d+"):
        small_ledger(data=tmp_path / "early", ids_max=IDS_MAX)
    ids.rebuild(tmp_path / "early", ids_max=IDS_MAX)
    small_ledger(data=tmp_path / "early", ids_max=IDS_MAX)


def test_runs_of_another_history_refuse_the_start(written: Path, data: Path, tmp_path: Path, small_ledger: Any) -> None:
    """A directory that was restored to an earlier moment and has grown past it since; the ids of before are copied beside it."""
    key = data / "identity.key"
    back_up(written.parent / "early", tmp_path / "copy", bytes_per_s=0)
    server = RunningServer(tmp_path / "again", arguments=("--members-max", "1000", "--ids-max", str(IDS_MAX)))
    restored = server.data
    restore(tmp_path / "copy", restored, key, tail_bytes=limits.TAIL_BYTES_MIN)
    cut = keys_of_journal(restored)[1]
    try:
        server.start()
        send(server, range(REQUESTS // 3, REQUESTS + 50))  # the same requests: only the history tells the two apart
        assert server.terminate() == 0
    finally:
        server.kill()
    assert keys_of_journal(restored)[1] > keys_of_journal(data)[1] > cut
    own = by_kind(restored)
    shutil.rmtree(restored / "ids")
    shutil.copytree(data / "ids", restored / "ids")
    foreign = next(number for number, (description, _) in enumerate(runs_of(restored), 1) if description[10] > cut)
    with pytest.raises(StartRefused, match=rf"of another history: run {foreign} was written behind an entry \d+ that .*--rebuild"):
        small_ledger(data=restored, ids_max=IDS_MAX)
    assert by_kind(restored) == by_kind(data), "nothing was written"
    faults = [checked.fault for checked in ids.check(restored)]
    assert all(faults[foreign - 1:]) and not any(faults[:foreign - 1]) and f"run {foreign} " in faults[foreign - 1]
    ids.rebuild(restored, ids_max=IDS_MAX)
    small_ledger(data=restored, ids_max=IDS_MAX)
    for kind, runs in by_kind(restored).items():
        assert runs[:len(own[kind])] == own[kind]


def test_a_run_may_name_a_group_that_is_only_in_the_tail(tmp_path: Path, small_ledger: Any) -> None:
    """A run is written when its entries are durable, which is before they are in LMDB; a kill in between must not refuse the start."""
    forge = forging.Forge()
    compiled = compile_file(ROOT / "programs" / "base.yaml")
    forge.add(forging.entry(20, forging.section(10, compiled.image), forging.section(11, compiled.source),
                            forging.section(12, siphash_(bytes(16), b"daybook key check")), program=0))
    for first in range(1, 601, 20):
        forge.add(*(forging.earn(1, 3, opened=number == 1, request=number) for number in range(first, first + 20)))
    data = forge.write(tmp_path / "data", drained_groups=3)
    (data / "identity.key").write_text(bytes(16).hex())
    (data / "identity.key").chmod(0o600)
    for _ in range(2):  # the first makes the runs, the second meets them; neither drains
        small_ledger(ids_max=IDS_MAX).close()
    heads = {group.last_sequence: group.hash for group in journal.tail_groups(data)}
    named = [(description[10], description[11]) for description, _ in runs_of(data)]
    assert len(named) > 10 and all(heads[sequence] == group_hash for sequence, group_hash in named)
    for number in (1, len(named)):
        change_head(data, number, bytes(32))
        assert f"of another history: run {number} was written behind an entry {named[number - 1][0]} that" in refused(small_ledger)
        change_head(data, number, named[number - 1][1])
        small_ledger(ids_max=IDS_MAX).close()
    assert len(journal.tail_groups(data)) == len(forge.groups) - 3


def check_of(value: bytes) -> int:
    """The check of docs/journal-format.md."""
    def fold(a: int, b: int) -> int:
        return (a * b & (1 << 64) - 1) ^ a * b >> 64

    whole = len(value) // 16 * 16
    check = fold(len(value) ^ 0xA0761D6478BD642F, 0xE7037ED1A0B428DB)
    for low, high in struct.iter_unpack("<QQ", value[:whole]):
        check = fold(low ^ check, high ^ 0x8EBC6AF09C88C6E3)
    low, high = struct.unpack("<QQ", value[whole:].ljust(16, b"\0"))
    return fold(low ^ check, high ^ 0x589965CC75374CC3)


def change_description(data: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    """change(what stands before the check): the same as somebody else would have written it."""
    with environment(data) as opened, opened.begin(write=True) as transaction:
        database = opened.open_db(b"runs", transaction)
        key = struct.pack(">I", number)
        value = transaction.get(key, db=database)
        assert check_of(value[:-8]) == int.from_bytes(value[-8:], "little")
        changed = change(value[:-8])
        transaction.put(key, changed + check_of(changed).to_bytes(8, "little"), db=database)


def change_head(data: Path, number: int, group_hash: bytes) -> None:
    change_description(data, number, lambda value: value[:88] + group_hash)


def test_runs_of_version_1_are_read_on(data: Path, small_ledger: Any) -> None:
    """They do not say of which history they are. What is written behind them does."""
    before = by_kind(data)
    runs = len(before[0]) + len(before[1])
    for number in range(1, runs + 1):
        change_description(data, number, lambda value: struct.pack("<I", 1) + value[4:80])
    for ids_max in (IDS_MAX, 12):
        ledger = small_ledger(ids_max=ids_max)
        assert ledger.handle.stats()["ids"]["runs"] >= runs
        ledger.close()
    checked = list(ids.check(data))
    assert len(checked) > runs and not any(one.fault for one in checked)
    assert [one.run["head"] is None for one in checked] == [number < runs for number in range(len(checked))]
    change_description(data, 2, lambda value: struct.pack("<I", 2) + value[4:])
    assert "run 2 is not what was written" in refused(small_ledger)


def test_older_runs_beside_a_newer_journal_are_filled_up(written: Path, data: Path, small_ledger: Any) -> None:
    whole = by_kind(data)
    shutil.rmtree(data / "ids")
    shutil.copytree(written.parent / "early" / "ids", data / "ids")
    small_ledger(ids_max=IDS_MAX).close()
    for kind, runs in by_kind(data).items():
        assert len(runs) >= len(whole[kind]) - 4 and runs == whole[kind][:len(runs)]


def test_a_missing_run_refuses_the_start(data: Path, small_ledger: Any) -> None:
    with environment(data) as opened, opened.begin(write=True) as transaction:
        assert transaction.delete(struct.pack(">I", 3), db=opened.open_db(b"runs", transaction))
    assert "run 3 is not the next one" in refused(small_ledger)


def test_a_damaged_description_or_end_of_a_run_refuses_the_start(data: Path, small_ledger: Any) -> None:
    whole = (data / "ids" / "data.mdb").read_bytes()
    generator = random.Random(5)
    for name in ("runs", "slots") * 10:
        (data / "ids" / "data.mdb").write_bytes(whole)
        with environment(data) as opened, opened.begin(write=True) as transaction:
            database = opened.open_db(name.encode(), transaction)
            key, value = generator.choice(list(transaction.cursor(database)))
            changed = bytearray(value)
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
            transaction.put(key, bytes(changed), db=database)
        number = int.from_bytes(key[:4], "big")
        text = refused(small_ledger)
        assert f"run {number} " in text and "--rebuild" in text, text


def test_rebuilt_runs_are_the_same(data: Path, small_ledger: Any) -> None:
    before = by_kind(data)
    assert ids.rebuild(data, ids_max=IDS_MAX) >= len(before[0]) + len(before[1])
    for kind, runs in by_kind(data).items():
        assert runs[:len(before[kind])] == before[kind]
    assert not [checked for checked in ids.check(data) if checked.fault]
    assert sorted(path.name for path in data.iterdir() if path.name.startswith("ids")) == ["ids"]
    small_ledger(ids_max=IDS_MAX)


def by_kind(data: Path) -> dict[int, list[Any]]:
    """Per kind its runs: sequences, orders and slots."""
    found: dict[int, list[Any]] = {0: [], 1: []}
    for (_, kind, first, until, low, high, *_), slots in runs_of(data):
        found[kind].append((first, until, low, high, slots))
    return found


def test_what_an_unfinished_run_left_is_swept(data: Path, small_ledger: Any) -> None:
    with environment(data) as opened, opened.begin(write=True) as transaction:
        database = opened.open_db(b"slots", transaction)
        key, value = list(transaction.cursor(database))[-1]
        run = int.from_bytes(key[:4], "big") + 1
        for low in range(700):
            transaction.put(struct.pack(">IQQ", run, low, 0), value, db=database, append=True)
    for ids_max in (IDS_MAX, 8):  # a start that writes nothing, and one that does
        small_ledger(ids_max=ids_max).close()
    assert not [checked for checked in ids.check(data) if checked.fault]
    assert len(list(ids.check(data))) > run


def test_a_block_damaged_in_the_middle_is_met_by_the_one_who_needs_it(data: Path) -> None:
    ids.rebuild(data, ids_max=REQUESTS)  # runs of several blocks
    middle = next(number for number, ((_, kind, *_), slots) in enumerate(runs_of(data), 1) if kind == 0 and len(slots) > 290)
    with environment(data) as opened, opened.begin(write=True) as transaction:
        database = opened.open_db(b"slots", transaction)
        key, value = [(key, value) for key, value in transaction.cursor(database) if int.from_bytes(key[:4], "big") == middle][1]
        changed = bytearray(value)
        changed[1000] ^= 4
        transaction.put(key, bytes(changed), db=database)
        gone = {value[at:at + 16] for at in range(20, len(value), 28)}
    faults = [checked.fault for checked in ids.check(data) if checked.fault]
    assert len(faults) == 1 and f"run {middle} is not what was written" in faults[0]
    done = subprocess.run([sys.executable, "-m", "server", "ids", str(data)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"run {middle} " in done.stderr and "--rebuild" in done.stderr
    server = RunningServer(data.parent, arguments=("--members-max", "1000", "--ids-max", "100"))
    outcomes = {"told": 0, "refused": 0}
    try:
        server.start()
        for number in range(0, 280, 4):
            ask = ledger_pb2.GetOperationRequest(request_id=f"request-{number:012d}")
            try:
                server.stub.GetOperation(ask, timeout=60)
                outcomes["told"] += 1
            except grpc.RpcError as error:
                assert till.reason_of(error) == ("IDS_UNREADABLE", {})
                assert siphash_(bytes(16), ask.request_id.encode()) in gone
                outcomes["refused"] += 1
        assert min(outcomes.values()) > 10
        with pytest.raises(ids.InUse):
            ids.rebuild(data)
        assert server.terminate() == 0
        done = subprocess.run([sys.executable, "-m", "server", "ids", str(data), "--rebuild"], cwd=ROOT, capture_output=True, text=True,
                              check=False)
        assert done.returncode == 0 and "runs made from the journal" in done.stdout
        assert not [checked for checked in ids.check(data) if checked.fault]
    finally:
        server.kill()
