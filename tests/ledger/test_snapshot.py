"""Starting from snapshots: any age gives the same state; whatever is wrong with one is said, and the start does without it."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from ledger import limits
from ledger._snapshot import Snapshot, SnapshotUnusable
from ledger.engine import OpenLedger, StartRefused, open_ledger
from ledger.follower import Follower, FollowerBroken
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests import till
from tests.running import PROGRAM, RunningServer

SIZES = {"members_max": 3000, "ids_max": 4000}


class Made:
    """A directory with a history, and what its snapshots at several moments were."""

    def __init__(self, folder: Path) -> None:
        self.server = RunningServer(folder, arguments=("--members-max", "3000", "--ids-max", "4000"))
        self.random = random.Random(20260301)
        self.copies: list[Path] = []
        self.server.start()
        try:
            with Follower(self.server.data, **SIZES) as follower:
                for _ in range(4):
                    self.live()
                    while follower.sequence < self.sequence:
                        follower.step()
                    path = follower.write_snapshot()
                    assert path is not None
                    self.copies.append(Path(shutil.copy(path, folder)))
            self.live()
            assert self.server.terminate() == 0
        finally:
            self.server.kill()
        shutil.rmtree(self.server.data / "snapshots")
        self.digest, self.sequence = replayed(self.server.data)
        self.key = bytes.fromhex((self.server.data / "identity.key").read_text())

    def load(self, path: Path) -> LocalLedger:
        """The state in a snapshot file, apart from its directory."""
        return LocalLedger.load(path, None, identity_key=self.key, **SIZES)

    def live(self) -> None:
        """Earns, burns, reservations that stay and that end, identifiers, refusals."""
        stub = self.server.stub
        for i in range(60):
            card = f"card-{self.random.randrange(25)}"
            stub.EarnPoints(till.earn(card, self.random.randrange(500, 90_000)))
            if i % 4 == 0:
                try:
                    hold = stub.ReservePoints(till.request("ReservePoints", card=card, points=self.random.randrange(1, 40)))
                    if i % 8 == 0:
                        number = hold.reservation.reservation_id
                        stub.CaptureReservation(till.request("CaptureReservation", card=card, reservation_id=number))
                    stub.BurnPoints(till.request("BurnPoints", card=card, points=self.random.randrange(1, 2000)))
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
        cards = till.request("EnrollMember")
        cards.identifiers.add(card=f"new-{self.random.randrange(10**9)}")
        cards.identifiers.add(email=f"m{self.random.randrange(10**9)}@example.org")
        self.sequence = stub.EnrollMember(cards).entry.sequence


def opened(data: Path, **sizes: int) -> tuple[OpenLedger, list[str]]:
    said: list[str] = []
    return open_ledger(data, PROGRAM, warn=said.append, tail_bytes=limits.TAIL_BYTES_MIN, **(SIZES | sizes)), said


def replayed(data: Path) -> tuple[str, int]:
    ledger, _ = opened(data)
    found = ledger.handle.digest(), ledger.handle.sequence
    ledger.close()
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("history"))


@pytest.fixture
def data(made: Made, tmp_path: Path) -> Iterator[Path]:
    """A copy of the directory, without snapshots yet."""
    copy = tmp_path / "data"
    shutil.copytree(made.server.data, copy)
    (copy / "snapshots").mkdir()
    yield copy


def put(data: Path, copy: Path, name: str | None = None) -> Path:
    return Path(shutil.copy(copy, data / "snapshots" / (name or copy.name)))


def check(data: Path, made: Made, begun_at: int, *whys: str, **sizes: int) -> None:
    """The start takes the snapshot that ends with begun_at and says these reasons; the state is the one of a full replay."""
    ledger, said = opened(data, **sizes)
    try:
        assert ledger.begun_at == begun_at
        assert (ledger.handle.digest(), ledger.handle.sequence) == (made.digest, made.sequence)
        assert len(said) == len(whys), said
        for line, why in zip(said, whys, strict=True):
            assert why in line and "is passed over" in line
    finally:
        ledger.close()
    # The follower chooses the same one.
    heard: list[str] = []
    with Follower(data, say=heard.append, **(SIZES | sizes)) as follower:
        assert follower.begun_at == begun_at and len(heard) == len(whys)
        while follower.step():
            pass
        assert int.from_bytes(follower.digest, "little") == int(made.digest, 16)


@pytest.mark.parametrize("age", range(4))
def test_a_snapshot_of_any_age_leads_to_the_same_state(made: Made, data: Path, age: int) -> None:
    path = put(data, made.copies[age])
    check(data, made, Snapshot(path).sequence)


def test_tables_of_another_size_take_it_too(made: Made, data: Path) -> None:
    path = put(data, made.copies[3])
    head = Snapshot(path).head
    check(data, made, head["sequence"], members_max=9000, ids_max=50_000)
    check(data, made, head["sequence"], members_max=max(head["members"], -(-head["identifiers"] // 3)) + 1, ids_max=2000)


def test_key_tables_that_are_too_small_pass_it_over(made: Made, data: Path) -> None:
    put(data, made.copies[3])
    check(data, made, 0, "do not fit tables of another size: it was written with --ids-max 4000", ids_max=100)


def test_tables_that_are_too_small_are_refused_with_the_number_needed(made: Made, data: Path) -> None:
    head = Snapshot(put(data, made.copies[3])).head
    needed = max(head["members"], -(-head["identifiers"] // 3))
    with pytest.raises(StartRefused, match=rf"--members-max must be at least {needed}\b"):
        opened(data, members_max=needed - 1)
    with pytest.raises(FollowerBroken, match=rf"--members-max must be at least {needed}\b"):
        Follower(data, members_max=needed - 1, ids_max=100)


def test_the_newest_good_one_is_taken(made: Made, data: Path) -> None:
    for copy in made.copies:
        put(data, copy)
    (data / "snapshots" / "new").write_bytes(b"what a killed writer left")
    newest = data / "snapshots" / made.copies[3].name
    newest.write_bytes(newest.read_bytes()[:-1])
    check(data, made, Snapshot(made.copies[2]).sequence, "it was cut off")


def sections(path: Path) -> dict[int, list[tuple[int, int]]]:
    """Where each section's chunks lie: section -> [(begin, end)], with 0 for the head."""
    content = path.read_bytes()
    at = int.from_bytes(content[12:16], "little") + 32
    found = {0: [(0, at)]}
    while at < len(content):
        section, size = int.from_bytes(content[at:at + 4], "little"), int.from_bytes(content[at + 4:at + 8], "little")
        found.setdefault(section, []).append((at, at + 8 + size + 32))
        at += 8 + size + 32
    return found


def test_every_section_is_there(made: Made) -> None:
    assert list(sections(made.copies[3])) == [0, 9, 10, 2, 3, 7, 13, 4, 5, 6]


@pytest.mark.parametrize("section", [0, 9, 10, 2, 3, 7, 13, 4, 5, 6])
def test_a_flipped_bit_anywhere_is_found(made: Made, data: Path, section: int) -> None:
    made.load(made.copies[3])  # as it is, it is good
    pick = random.Random(section)
    good = made.copies[3].read_bytes()
    for begin, end in sections(made.copies[3])[section]:
        # Every byte of a chunk's head and hash, and some of what is between.
        places = [*range(begin, min(end, begin + 8)), *range(end - 32, end), *(pick.randrange(begin, end) for _ in range(40))]
        for place in places:
            damaged = bytearray(good)
            damaged[place] ^= 1 << pick.randrange(8)
            path = data / "snapshots" / made.copies[3].name
            path.write_bytes(damaged)
            with pytest.raises(SnapshotUnusable):
                made.load(path)
    check(data, made, 0, str(path))


def test_a_file_that_was_cut_anywhere_is_found(made: Made, data: Path) -> None:
    good = made.copies[3].read_bytes()
    path = data / "snapshots" / made.copies[3].name
    bounds = [bound for chunks in sections(made.copies[3]).values() for chunk in chunks for bound in chunk]
    pick = random.Random(5)
    for size in {0, 1, *bounds, *(pick.randrange(len(good)) for _ in range(60))} - {len(good)}:
        path.write_bytes(good[:size])
        with pytest.raises(SnapshotUnusable, match="it was cut off after"):
            made.load(path)
    check(data, made, 0, "it was cut off after")
    path.write_bytes(good + b"\0")
    check(data, made, 0, "1 bytes follow its end")
    path.write_bytes(b"")
    check(data, made, 0, "it was cut off after 0 bytes")


def test_chunks_of_two_snapshots_do_not_make_one(made: Made, data: Path) -> None:
    mixed = bytearray()
    older, newer = made.copies[2], made.copies[3]
    for section, chunks in sections(newer).items():
        source = older if section == 3 else newer
        for begin, end in sections(source)[section] if section == 3 else chunks:
            mixed += source.read_bytes()[begin:end]
    (data / "snapshots" / newer.name).write_bytes(mixed)
    check(data, made, 0, "it was changed")


def test_a_snapshot_of_another_directory_is_passed_over(made: Made, data: Path, tmp_path: Path) -> None:
    other, _ = opened(tmp_path / "other")
    directory = other.directory
    other.close()
    local = made.load(made.copies[0])
    local.save(data / "snapshots" / made.copies[0].name, bytes.fromhex(directory))
    check(data, made, 0, f"it belongs to data directory {directory}")


def test_a_snapshot_of_another_history_is_passed_over(made: Made, data: Path) -> None:
    local = made.load(made.copies[0])
    local.save(data / "snapshots" / made.copies[0].name, Snapshot(made.copies[0]).directory, bytes(range(32)))
    check(data, made, 0, "the journal has no such group that ends with entry")


def test_a_snapshot_that_is_ahead_of_the_journal_is_passed_over(made: Made, data: Path, new_server: Callable[..., RunningServer]) -> None:
    """The journal of an older copy beside a newer snapshot."""
    newer = new_server(arguments=made.server.arguments)
    shutil.copytree(data, newer.data)
    newer.start()
    last = newer.stub.EarnPoints(till.earn("card-1")).entry.sequence
    with Follower(newer.data, **SIZES) as follower:
        while follower.sequence < last:
            follower.step()
        path = follower.write_snapshot()
    newer.kill()
    assert path is not None
    put(data, path)
    check(data, made, 0, f"the journal has no such group that ends with entry {last}")


def test_a_name_that_lies_is_passed_over(made: Made, data: Path) -> None:
    put(data, made.copies[0], f"{7:020d}.snap")
    check(data, made, 0, "its name says 7")


def test_another_identity_key_is_refused_as_without_a_snapshot(made: Made, data: Path) -> None:
    put(data, made.copies[3])
    (data / "identity.key").write_text("00" * 16 + "\n")
    with pytest.raises(StartRefused, match="identity.key is not the key that this journal was begun with"):
        opened(data)


def test_old_ids_are_known_from_runs_and_the_snapshot_together(new_server: Callable[..., RunningServer], tmp_path: Path) -> None:
    """Memory holds so few ids that most lie in runs; a start from a snapshot of any age forgets none, whatever the runs have by then."""
    server = new_server(arguments=("--members-max", "3000", "--ids-max", "60")).start()
    sent, copies = [], []
    for _ in range(4):
        for i in range(70):
            request = till.earn(f"card-{i % 9}", 1000)
            sent.append((request, server.stub.EarnPoints(request).entry))
        with Follower(server.data, members_max=3000, ids_max=60) as follower:
            while follower.sequence < sent[-1][1].sequence:
                follower.step()
            path = follower.write_snapshot()
            assert path is not None
            copies.append(Path(shutil.copy(path, tmp_path)))
    last = max(entry.sequence for _, entry in sent)
    for age, copy in enumerate(copies):
        server.kill()
        shutil.rmtree(server.data / "snapshots")
        (server.data / "snapshots").mkdir()
        put(server.data, copy)
        server.start()
        assert f"a snapshot up to {Snapshot(copy).sequence}" in server.log()
        for request, entry in sent[age::7]:
            again = server.stub.EarnPoints(request)
            assert again.replayed and again.entry == entry
            with pytest.raises(grpc.RpcError) as posted:
                server.stub.EarnPoints(other_id(request, f"another-{age}"))
            assert (till.reason_of(posted.value) or ("",))[0] == "RECEIPT_ALREADY_POSTED"
    # Without its runs no snapshot reaches back far enough: all is replayed, and the runs are written anew.
    server.kill()
    shutil.rmtree(server.data / "ids")
    server.start()
    assert "the runs in ids/ do not reach so far" in server.log()
    for request, entry in sent[::5]:
        again = server.stub.EarnPoints(request)
        assert again.replayed and again.entry == entry
    assert server.stub.EarnPoints(till.earn("card-1", 1000)).entry.sequence > last
    assert server.terminate() == 0


def test_repeats_are_answered_from_before_the_snapshot(made: Made, new_server: Callable[..., RunningServer]) -> None:
    server = new_server(arguments=made.server.arguments).start()
    request = till.earn("card-1", 5000)
    first = server.stub.EarnPoints(request)
    burn = till.request("BurnPoints", card="card-1", points=10**9)
    with pytest.raises(grpc.RpcError) as refused:
        server.stub.BurnPoints(burn)
    server.restart()
    with Follower(server.data, **SIZES) as follower:
        while follower.step():
            pass
        follower.write_snapshot()
    server.restart(kill=True)
    assert "a snapshot up to" in server.log()
    again = server.stub.EarnPoints(request)
    assert again.replayed and again.entry == first.entry
    with pytest.raises(grpc.RpcError) as still:
        server.stub.BurnPoints(burn)
    reason, metadata = till.reason_of(refused.value) or ("", {})
    assert till.reason_of(still.value) == (reason, metadata | {"replayed": "true"})
    with pytest.raises(grpc.RpcError) as posted:
        server.stub.EarnPoints(other_id(request, "another"))
    assert till.reason_of(posted.value)[0] == "RECEIPT_ALREADY_POSTED"
    assert server.terminate() == 0


def other_id(request: ledger_pb2.EarnPointsRequest, word: str) -> ledger_pb2.EarnPointsRequest:
    copy = ledger_pb2.EarnPointsRequest.FromString(request.SerializeToString())
    copy.request_id = f"{word}-{request.request_id}"
    return copy
