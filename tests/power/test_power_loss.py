"""The power fails: whatever a legal disk may then hold, the ledger starts, has lost nothing acknowledged and no half of a group.

Runs of a ledger are recorded through the preloaded shim, turned into the states that a disk without barriers may be found in (disk.py) and
each of these is recovered by the real recovery (judge.py). The number of states is printed. The last tests take one flush away at a time
and see that the judges find it.
"""

from __future__ import annotations

import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import limits
from ledger.backup import back_up
from server._pb.loyalty.ledger.v1 import ledger_pb2
from tests import till
from tests.power.conftest import Laboratory
from tests.power.disk import FLUSH, FLUSH_NAMES, NAME, WRITE
from tests.power.judge import Verdict, Work
from tests.power.recording import Recording, groups_of
from tests.running import RunningServer
from tests.shim.shim import META, NAMES, RENAME, Record
from tests.test_durable import answers

SOAK_STATES = 100_000
RING_BLOCKS = limits.TAIL_BYTES_MIN // limits.TAIL_BLOCK_BYTES - 1
BATCH = limits.CALLS_PER_TURN_MAX + 44  # commands: more than run at once
SKIP_BLOCKS = limits.GROUP_BYTES_MAX // limits.TAIL_BLOCK_BYTES + 1  # with less room before the ring's end, a group goes to its start


def good(laboratory: Laboratory, *recordings: Recording | tuple[Recording, int], states_min: int, share: int = 1, **how: Any) -> None:
    """All states were recovered, and they were not too few to mean something.

    How many groups threads make of the same calls is the scheduler's: where one in `share` states is too few, more of them are looked at.
    """
    while True:
        verdict = laboratory.judge(*recordings, share=share, **how)
        assert verdict.faults == []
        if verdict.states >= states_min or share == 1:
            break
        share //= 2
    assert verdict.states >= states_min


# --- recordings -------------------------------------------------------------------------------------------------------

def groups(laboratory: Laboratory, *, seed: int, count: int, mode: str) -> Recording:
    """Groups and drains on a directory that is there already."""
    if not laboratory.data.exists():
        assert laboratory.run(groups=1) == 0
    recorder = laboratory.recorder()
    assert laboratory.run(seed=seed, groups=count, mode=mode) == 0
    return recorder.finish()


def creation(laboratory: Laboratory, *, seed: int, above: str = "srv/daybook", apart: bool = False) -> Recording:
    """A directory is made, with the directories above it, and gets its first groups; `apart`: the tail lies elsewhere."""
    laboratory.data = laboratory.disk / above / "data"
    if apart:
        (laboratory.data.parent / "apart").mkdir(parents=True)
    recorder = laboratory.recorder()
    assert laboratory.run(seed=seed, groups=2) == 0
    return recorder.finish()


def turn_of_the_ring(laboratory: Laboratory, *, seed: int, count: int) -> Recording:
    """The ring is full of old groups, and the groups that are recorded go over its end to its start, for the second time."""
    one_turn = RING_BLOCKS - SKIP_BLOCKS + 1
    assert laboratory.run(groups=2 * one_turn - 12, mode="fill") == 0
    made = groups(laboratory, seed=seed, count=count, mode="alone")
    tail = made.number("data/tail")
    assert any(op.kind == WRITE and op.file == tail and op.offset == limits.TAIL_BLOCK_BYTES for op in made.ops), "the ring did not turn"
    return made


def kills(laboratory: Laboratory, numbers: list[int], *, seed: int) -> list[tuple[Recording, int]]:
    """A process is killed behind its so-many-th operation (the page cache survives), another goes on, then the power fails.

    Shape: each recording with the place of the kill. The numbers count through the creation of a directory and its first groups.
    """
    made = []
    for number in numbers:
        shutil.rmtree(laboratory.disk)
        laboratory.disk.mkdir()
        recorder = laboratory.recorder()
        laboratory.shim.die(number, after=True)
        code = laboratory.run(seed=seed, groups=6)
        laboratory.shim.heal()
        assert code in (0, -9)
        place = laboratory.shim.place()
        assert laboratory.run(seed=seed + 1, groups=1) == 0
        made.append((recorder.finish(), place))
    return made


def show(recording: Recording, laboratory: Laboratory, chosen: random.Random) -> int:
    """Makes the laboratory's disk one of the states that the recording may leave. Returns what was acknowledged by then."""
    disk = recording.disk()
    last = sum(1 for _ in disk.walk(recording.ops)) - 1
    disk = recording.disk()
    wanted = chosen.randint(0, last)
    for window in disk.walk(recording.ops):
        if window.number == wanted:
            state = chosen.choice(list(window.states(chosen, 10)))
            Work(laboratory.disk, laboratory.shim, disk).show(state)
            return recording.demand(window.place)
    raise AssertionError


def losses(laboratory: Laboratory, *, seed: int, count: int, each: int) -> list[Recording]:
    """Starts from states that a first power loss may leave."""
    first, chosen, made = groups(laboratory, seed=seed, count=3 * each, mode="alone"), random.Random(seed), []
    for _ in range(count):
        demand = show(first, laboratory, chosen)
        second = groups(laboratory, seed=chosen.getrandbits(30), count=each, mode="alone")
        made.append(second._replace(acknowledged=[(0, demand), *second.acknowledged]))
    return made


def restoring(laboratory: Laboratory, *, seed: int, count: int) -> tuple[Recording, Path, Path]:
    """A back-up of some groups is restored: the recording, the back-up, its key."""
    assert laboratory.run(seed=seed, groups=count) == 0
    copy, key = laboratory.folder / f"copy-{seed}", laboratory.folder / f"key-{seed}"
    back_up(laboratory.data, copy, bytes_per_s=0, file_bytes=4000)
    shutil.copy(laboratory.data / "identity.key", key)
    before = groups_of(laboratory.data)
    laboratory.reset()
    laboratory.data = laboratory.disk / "srv" / "data"
    recorder = laboratory.recorder()
    recorder.before = before
    assert laboratory.drive("restore", str(copy), str(key)) == 0
    return recorder.finish(), copy, key


def rebuilding(laboratory: Laboratory, *, seed: int, each: int) -> tuple[Recording, Told]:
    """A service with memory for a few ids has made runs; `daybook ids --rebuild` makes them again."""
    _, told = served(laboratory, seed=seed, each=each, ids_max=24)
    recorder = laboratory.recorder()
    assert laboratory.drive("rebuild", "24") == 0
    made = recorder.finish()
    assert any(op.kind == NAME and op.label == "renaming of data/ids.new" for op in made.ops)
    return made._replace(acknowledged=[(0, max(made.history))]), told


def unflushed(laboratory: Laboratory, recording: Recording, file: str, until: str, **how: Any) -> None:
    """And the judges see it when the file is not flushed: it gets its place, and what it should hold may be missing."""
    place = next(op.begin for op in recording.ops if op.label == until)
    careless = recording.without(lambda op: op.kind == FLUSH and op.label == f"flush of {file}")
    assert laboratory.judge((careless, place), **how).faults


# --- what the tests say -----------------------------------------------------------------------------------------------

def test_groups_and_drains(laboratory: Laboratory) -> None:
    """Flush and drain thread at work, so that tail and journal are in the air together."""
    good(laboratory, groups(laboratory, seed=1, count=16, mode="threads"), drawn=10, share=2, states_min=300)


def test_a_directory_in_the_making(laboratory: Laboratory) -> None:
    made = creation(laboratory, seed=2)
    laboratory.reset()
    apart = creation(laboratory, seed=3, apart=True)
    good(laboratory, made, apart, data="srv/daybook/data", share=4, states_min=100)


def test_the_ring_turns(laboratory: Laboratory) -> None:
    good(laboratory, turn_of_the_ring(laboratory, seed=3, count=20), drawn=5, share=20, states_min=50)


def test_a_kill_and_then_a_power_loss(laboratory: Laboratory) -> None:
    """What a killed process left in memory only is not relied on by the next one before it is on disk."""
    numbers = random.Random(4).sample([*range(1, 13), *range(28, 52)], 8)  # the ones between write the tail's zeros
    good(laboratory, *kills(laboratory, numbers, seed=4), drawn=2, share=12, states_min=100)


def test_a_power_loss_after_a_power_loss(laboratory: Laboratory) -> None:
    good(laboratory, *losses(laboratory, seed=5, count=4, each=3), drawn=5, share=2, states_min=100)


def test_a_restore(laboratory: Laboratory) -> None:
    """Before it has ended a start refuses what is there, and the next restore makes it whole."""
    made, copy, key = restoring(laboratory, seed=15, count=12)
    how = {"drawn": 3, "share": 14, "data": "srv/data", "copy": copy, "key": key}
    good(laboratory, made, states_min=20, **how)
    unflushed(laboratory, made, "srv/data/journal/data.mdb", "renaming of srv/data/FORMAT.restored", **{**how, "share": 4})
    renamed = next(op for op in made.ops if op.label == "renaming of srv/data/FORMAT.restored")
    flushed = next(op for op in made.ops if op.kind == FLUSH_NAMES and op.begin > renamed.begin)
    assert laboratory.judge((made.without(lambda op: op is flushed), renamed.begin), **{**how, "share": 1}).faults, "no FORMAT and no mark"


# --- the whole service ------------------------------------------------------------------------------------------------

class Told:
    """Requests of some tills at once, and what they were answered."""

    def __init__(self, server: RunningServer, seed: int, each: int) -> None:
        self.server, self.each = server, each
        self.answers: list[tuple[str, Any, Any]] = []  # method, request, answer; of a batch: a PostResult
        tills = [threading.Thread(target=self._till, args=(random.Random(seed * 100 + number),)) for number in range(4)]
        for one in tills:
            one.start()
        for one in tills:
            one.join(60)
            assert not one.is_alive()
        assert len(self.answers) >= 2 * each

    def again(self, stub: Any, method: str, request: Any) -> Any:
        """The same call alone, after a restart, as its answer was kept."""
        return getattr(stub, method)(request, timeout=60)

    def _till(self, chosen: random.Random) -> None:
        with grpc.insecure_channel(self.server.address(), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = RunningServer._stub(channel)
            for _ in range(self.each):
                card = f"card-{chosen.randrange(6)}"
                method = chosen.choice(("EarnPoints", "EarnPoints", "EarnPoints", "BurnPoints", "ReservePoints"))
                if method == "EarnPoints":
                    request = till.earn(card, chosen.randrange(100, 9000), lines=chosen.choice((1, 6, 40)))
                else:
                    request = till.request(method, card=card, points=chosen.randrange(1, 9))
                while not self._ask(stub, method, request):
                    time.sleep(0.005)  # a poll's step: the memory for ids is full until a run is written

    def _ask(self, stub: Any, method: str, request: Any) -> bool:
        """False: to be asked again."""
        try:
            self.answers.append((method, request, getattr(stub, method)(request, timeout=60)))
        except grpc.RpcError as error:
            reason = till.reason_of(error)
            assert reason is not None, "the outcome is unknown"  # anything else is a definite no, such as too few points
            return reason[0] != "IDS_BEHIND"
        return True


class ToldBatches(Told):
    """As Told, but each till sends batches of more commands than run at once, so that they span groups."""

    def _till(self, chosen: random.Random) -> None:
        with grpc.insecure_channel(self.server.address(), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = RunningServer._stub(channel)
            for _ in range(self.each):
                requests = [till.earn(f"card-{chosen.randrange(40)}", chosen.randrange(100, 9000)) for _ in range(BATCH)]
                batch = ledger_pb2.BatchPostRequest(commands=[ledger_pb2.PostCommand(earn=request) for request in requests])
                results = stub.BatchPost(batch, timeout=60).results
                self.answers += [("EarnPoints", request, result) for request, result in zip(requests, results, strict=True)]

    def again(self, stub: Any, method: str, request: Any) -> Any:
        answer = super().again(stub, method, request)
        answer.entry.ClearField("awards")  # a batch does not tell them
        return answer


def answered_batches(records: list[Record]) -> list[tuple[int, int]]:
    """As `answered`, where all answers are of batches."""
    return [(place, result.entry.sequence) for place, raw in answers(records)
            for result in ledger_pb2.BatchPostResponse.FromString(raw).results]


def answered(records: list[Record]) -> list[tuple[int, int]]:
    """(place of the send, sequence) of every answer; in all of them field 1 is the entry, and this message knows nothing else of them."""
    return [(place, ledger_pb2.EnrollMemberResponse.FromString(raw).entry.sequence) for place, raw in answers(records)]


def served(laboratory: Laboratory, *, seed: int, each: int, ids_max: int = 5000, follows: bool = False,
           batches: bool = False) -> tuple[Recording, Told]:
    """A real service with tills, perhaps with its follower, recorded from before their start to behind their end."""
    if not laboratory.data.exists():
        assert laboratory.run(groups=1) == 0
    recorder = laboratory.recorder()
    server = RunningServer(laboratory.folder / "server", environment=laboratory.shim.environment(),
                           arguments=("--members-max", "500", "--ids-max", str(ids_max)), follows=follows)
    server.data = laboratory.data
    server.start()
    until = time.monotonic() + 60
    while follows and not server.follow_ports_file.exists():
        assert time.monotonic() < until, server.log()
        time.sleep(0.01)  # a poll's step
    told = (ToldBatches if batches else Told)(server, seed, each)
    assert server.terminate() == 0
    made = recorder.finish(answered_batches if batches else answered)
    sequences = {answer.entry.sequence for _, _, answer in told.answers}
    assert sequences <= {sequence for _, sequence in made.acknowledged}, "an answer was not seen on the socket"
    return made, told


def check_served(laboratory: Laboratory, recording: Recording, told: Told, chosen: random.Random) -> None:
    """A real service starts on a state, answers all that was acknowledged again the same, and goes on."""
    demand = show(recording, laboratory, chosen)
    server = RunningServer(laboratory.folder / f"again-{chosen.getrandbits(40)}")
    server.data = laboratory.data
    server.start()
    try:
        for method, request, answer in told.answers:
            if answer.entry.sequence <= demand:
                again = told.again(server.stub, method, request)
                assert again.replayed and again.entry == answer.entry
        assert server.stub.EarnPoints(till.earn("new"), timeout=60).entry.sequence > demand
        assert server.terminate() == 0
    finally:
        server.kill()


def test_the_service_with_tills(laboratory: Laboratory) -> None:
    recording, told = served(laboratory, seed=6, each=10)
    good(laboratory, recording, drawn=5, share=3, states_min=50)
    check_served(laboratory, recording, told, random.Random(6))


def test_the_service_with_snapshots_and_runs_of_ids(laboratory: Laboratory) -> None:
    """Memory for a few ids only, so that generations become runs; the follower leaves a snapshot."""
    recording, told = served(laboratory, seed=14, each=30, ids_max=24, follows=True)
    assert any(op.kind == NAME and "snapshots" in op.label for op in recording.ops), "no snapshot was written"
    runs = recording.number("data/ids/data.mdb")
    assert sum(op.kind == WRITE and op.file == runs for op in recording.ops) > 4, "no run was written"
    good(laboratory, recording, drawn=3, share=24, states_min=50)
    check_served(laboratory, recording, told, random.Random(14))


def test_the_service_with_batches_that_span_groups(laboratory: Laboratory) -> None:
    recording, told = served(laboratory, seed=16, each=1, batches=True)
    sequences = [answer.entry.sequence for _, _, answer in told.answers]
    spans = [(min(one), max(one)) for one in (sequences[at:at + BATCH] for at in range(0, len(sequences), BATCH))]
    assert any(first <= end < last for first, last in spans for end in recording.history), "no batch spans two groups"
    good(laboratory, recording, drawn=3, share=20, states_min=30)
    check_served(laboratory, recording, told, random.Random(16))


def test_runs_of_ids_made_again(laboratory: Laboratory) -> None:
    recording, told = rebuilding(laboratory, seed=17, each=15)
    good(laboratory, recording, drawn=3, share=10, ids=True, states_min=30)
    unflushed(laboratory, recording, "data/ids.new/data.mdb", "renaming of data/ids.new", drawn=3, share=3, ids=True)
    check_served(laboratory, recording, told, random.Random(17))


# --- the judges can see -----------------------------------------------------------------------------------------------

def caught(laboratory: Laboratory, recording: Recording | tuple[Recording, int], what: str, **arguments: Any) -> None:
    verdict = laboratory.judge(recording, **arguments)
    assert any(what in fault for fault in verdict.faults), verdict.faults


def test_an_answer_before_the_flush_is_caught(laboratory: Laboratory) -> None:
    assert laboratory.run(groups=1) == 0
    recorder = laboratory.recorder()
    assert laboratory.run(seed=7, groups=6, mode="early") == 0
    caught(laboratory, recorder.finish(), "were acknowledged, the recovered ledger ends with")


def test_a_tail_that_is_not_flushed_is_caught(laboratory: Laboratory) -> None:
    assert laboratory.run(groups=1) == 0
    laboratory.shim.drop_flushes()
    caught(laboratory, groups(laboratory, seed=8, count=6, mode="alone"), "were acknowledged, the recovered ledger ends with")


@pytest.mark.parametrize("flag", ["MDB_NOSYNC", "MDB_NOMETASYNC"])
def test_an_unsafe_flag_of_lmdb_is_caught(laboratory: Laboratory, flag: str) -> None:
    """What the disk would have been told with the flag: the drained groups are noted in the tail, but LMDB may have lost them."""
    whole = groups(laboratory, seed=9, count=10, mode="alone")
    journal = whole.number("data/journal/data.mdb")
    lazy = whole._replace(ops=[op._replace(dsync=False) for op in whole.ops])
    if flag == "MDB_NOSYNC":
        lazy = lazy.without(lambda op: op.kind == FLUSH and op.file == journal)
    caught(laboratory, lazy, "the journal was set back")


def test_names_that_are_not_flushed_are_caught(laboratory: Laboratory) -> None:
    def leave_out(which: Callable[[str], bool]) -> Recording:
        return made.without(lambda op: op.kind == FLUSH_NAMES and which(op.label.removeprefix("flush of directory ")))

    made = creation(laboratory, seed=10, above="srv")
    for which in (lambda path: path.endswith("data"), lambda path: path.endswith("journal"), lambda path: path in ("", "srv")):
        verdict = laboratory.judge(leave_out(which), data="srv/data", drawn=2, share=4)
        assert verdict.faults


def test_a_start_that_relies_on_memory_is_caught(laboratory: Laboratory) -> None:
    """Without the flush of the journal at a start: the kill came between LMDB's write of its meta page and the disk."""
    assert laboratory.run(groups=1) == 0
    recorder = laboratory.recorder()
    laboratory.shim.die(1, after=True, files=META)
    assert laboratory.run(seed=11, groups=30) == -9
    laboratory.shim.heal()
    place = laboratory.shim.place()
    assert laboratory.run(seed=12, groups=1) == 0
    made = recorder.finish()
    meta = [op for op in made.ops if op.kind == WRITE and op.dsync and op.begin < place]
    killed = meta[-1]._replace(dsync=False)  # its bytes were in memory when the process was killed
    made = made._replace(ops=[killed if op is meta[-1] else op for op in made.ops])
    assert laboratory.judge((made, place), share=3).faults == []

    at_start = next(op for op in made.ops if op.kind == FLUSH and op.file == killed.file and op.begin > place)
    caught(laboratory, (made.without(lambda op: op is at_start), place), "the journal was set back")


def test_a_start_that_relies_on_a_name_is_caught(laboratory: Laboratory) -> None:
    """Without the flush of the directory at a start: the kill came between FORMAT's name and the flush behind it."""
    laboratory.recorder()
    assert laboratory.run(groups=0) == 0
    names = [record for record in laboratory.shim.records() if record.file == NAMES]
    last = next(number for number, record in enumerate(names, start=1) if record.op == RENAME and b"FORMAT" in record.content)
    laboratory.reset()
    recorder = laboratory.recorder()
    laboratory.shim.die(last, after=True, files=NAMES)
    assert laboratory.run(groups=0) == -9
    laboratory.shim.heal()
    place = laboratory.shim.place()
    assert laboratory.run(seed=13, groups=1) == 0
    made = recorder.finish()
    assert laboratory.judge((made, place), share=3).faults == []
    at_start = next(op for op in made.ops if op.kind == FLUSH_NAMES and op.begin > place)
    assert laboratory.judge((made.without(lambda op: op is at_start), place)).faults


# --- the long ones ----------------------------------------------------------------------------------------------------

def any_run(laboratory: Laboratory, seed: int) -> Verdict:
    """A run of any kind, its states judged."""
    chosen = random.Random(seed)
    kind = chosen.choices(("threads", "alone", "creation", "turn", "kills", "twice", "service", "batches", "restore", "rebuild"),
                          (6, 4, 1, 1, 1, 4, 3, 1, 1, 1))[0]
    print(f"{kind}, seed {seed}: ", end="", flush=True)
    if kind in ("threads", "alone"):
        return laboratory.judge(groups(laboratory, seed=seed, count=60, mode=kind), seed=seed, drawn=100)
    if kind == "creation":
        return laboratory.judge(creation(laboratory, seed=seed, apart=seed % 2 == 0), seed=seed, data="srv/daybook/data", drawn=30)
    if kind == "turn":
        return laboratory.judge(turn_of_the_ring(laboratory, seed=seed, count=40), seed=seed, drawn=50, share=5)  # each costs four others
    if kind == "kills":
        return laboratory.judge(*kills(laboratory, chosen.sample(range(1, 60), 10), seed=seed), seed=seed, drawn=10, share=3)
    if kind == "twice":
        return laboratory.judge(*losses(laboratory, seed=seed, count=6, each=8), seed=seed, drawn=30)
    if kind == "restore":
        made, copy, key = restoring(laboratory, seed=seed, count=20)
        return laboratory.judge(made, seed=seed, drawn=30, data="srv/data", copy=copy, key=key)
    if kind == "batches":
        recording, told = served(laboratory, seed=seed, each=3, batches=True)
    elif kind == "rebuild":
        recording, told = rebuilding(laboratory, seed=seed, each=30)
    else:
        recording, told = served(laboratory, seed=seed, each=40, ids_max=chosen.choice((24, 5000)), follows=seed % 2 == 0)
    verdict = laboratory.judge(recording, seed=seed, drawn=100, ids=kind == "rebuild")
    check_served(laboratory, recording, told, chosen)
    return verdict


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_100_000_crash_states(laboratory: Laboratory) -> None:
    seed = random.SystemRandom().getrandbits(24)
    states = 0
    while states < SOAK_STATES:
        seed += 1
        laboratory.reset()
        verdict = any_run(laboratory, seed)
        assert verdict.faults == []
        states += verdict.states
    print(f"{states} crash states in all, none wrong")
