"""Rules published on a running service: at once, from a moment on, back again; under load, over kills, restarts and snapshots."""

from __future__ import annotations

import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from typer.testing import CliRunner

from ledger import journal, limits
from ledger.backup import back_up
from ledger.follower import Follower
from ledger.restore import restore
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import journal_pb2, journal_pb2_grpc
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from server.cli import app
from tests import till
from tests.running import PROGRAM, RunningServer
from tests.server.test_cli import daybook, one_message
from tests.test_follow import RunningFollower, wait_for

CALL_S = 120
HOUR_US = 3_600_000_000
SOURCE = PROGRAM.read_bytes()
SEVEN = SOURCE.replace(b"give: 5", b"give: 7")
STARS = SOURCE.replace(b"\nearn_on_points_paid: true", b"""
  - {name: stars}

earn_on_points_paid: true
catalogue: [{sku: milk, category: Food/Dairy}, {sku: bread, category: Food/Bakery}]
segments: [staff]
favourites: {choose_from: [Food/Dairy, Food/Bakery], at_most: 1}""").replace(b"\nrules:\n", b"""
rules:
  - {name: Staff, when: {segment: staff}, give: 11}
  - {name: Chosen, lines: {favourite: true}, give: 13}
  - {name: A star, give: 1, to_wallet: stars}
""")


TABLED = STARS.replace(b"[{sku: milk, category: Food/Dairy}, {sku: bread, category: Food/Bakery}]", b"{file: goods.csv}")


def asked(source: bytes = b"", **fields: Any) -> admin.PublishRulesRequest:
    what: dict[str, Any] = {"source": source} if source else {}
    return admin.PublishRulesRequest(**{"request_id": uuid.uuid4().hex, "sent_time": till.timestamp(till.now_us()), "operator": "anna",
                                        "reason": "ticket 4711", **what, **fields})


def publish(server: RunningServer, source: bytes = b"", **fields: Any) -> admin.PublishRulesResponse:
    return server.admin_stub.PublishRules(asked(source, **fields), timeout=CALL_S)


def refused(server: RunningServer, request: Any, method: str = "PublishRules") -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as error:
        getattr(server.admin_stub, method)(request, timeout=CALL_S)
    return error.value


def mistakes(error: grpc.RpcError) -> list[tuple[str, str]]:
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    found = till.reason_of(error)
    assert found is not None and found[0] == "RULES_INVALID"
    bad = error_details_pb2.BadRequest()
    status = till.status_of(error)
    assert status is not None and any(detail.Unpack(bad) for detail in status.details)
    return [(one.field, one.description) for one in bad.field_violations]


def states(server: RunningServer) -> dict[int, str]:
    rules = server.admin_stub.ListRules(admin.ListRulesRequest(), timeout=CALL_S).rules
    return {one.version: admin.Rules.State.Name(one.state).removeprefix("STATE_") for one in rules}


def earned(server: RunningServer, card: str = "card-1", **fields: Any) -> tuple[int, int]:
    """Points of a receipt of 10.00, and the version that gave them."""
    entry = server.stub.EarnPoints(till.earn(card, 1000, **fields), timeout=CALL_S).entry
    return entry.earned_points, entry.program_version


def large(rows: int = 8_000) -> tuple[bytes, list[admin.RulesFile]]:
    """A programme with a table, whose image goes in parts."""
    source = SEVEN.replace(b"\nrules:\n", b"\ncatalogue: {file: goods.csv}\nrules:\n")
    table = "sku,category\n" + "".join(f"4{i:012d},Food/{i % 50}\n" for i in range(rows))
    return source, [admin.RulesFile(name="goods.csv", content=table.encode())]


def tabled() -> list[admin.RulesFile]:
    """What TABLED reads."""
    rows = large()[1][0].content + b"milk,Food/Dairy\nbread,Food/Bakery\n"
    return [admin.RulesFile(name="goods.csv", content=rows)]


def verified(server: RunningServer) -> None:
    done = daybook("verify", str(server.data))
    assert done.returncode == 0, done.stdout + done.stderr


# --- at once ------------------------------------------------------------------------------------------------------

def test_published_at_once_told_again_and_kept_over_a_kill(server: RunningServer) -> None:
    assert earned(server) == (50, 1)
    only = publish(server, SEVEN, validate_only=True)
    assert (only.rules.version, only.rules.name, len(only.differences)) == (0, "Base", 1)
    assert earned(server) == (50, 1), "validate_only changes nothing"
    request = asked(SEVEN)
    first = server.admin_stub.PublishRules(request, timeout=CALL_S)
    assert (first.rules.version, first.rules.state, first.rules.hash, first.rules.rule_count) == (
        2, admin.Rules.STATE_IN_FORCE, only.rules.hash, 1)
    calls = {name: count for name, count in server.metrics().items() if 'method="PublishRules"' in name and "calls" in name}
    assert calls == {'ledger_calls_total{method="PublishRules",outcome="OK",port="checkout"}': 0,
                     'ledger_calls_total{method="PublishRules",outcome="OK",port="control"}': 2}
    assert [(one.path, one.before, one.after) for one in first.differences] == [("rules[Base points].give", "5", "7")]
    assert earned(server) == (70, 2)
    request.reason = "ticket 4712"
    assert till.reason_of(refused(server, request)) == ("REQUEST_ID_REUSED", {"field": "reason", "sequence": str(first.rules.sequence)})
    request.reason, request.source = "ticket 4711", SOURCE
    assert till.reason_of(refused(server, request)) == ("REQUEST_ID_REUSED", {"field": "source", "sequence": str(first.rules.sequence)})
    request.source = SEVEN
    server.restart(kill=True)
    assert earned(server) == (70, 2), "the file that the start is given is version 1: what was published stays"
    again = server.admin_stub.PublishRules(request, timeout=CALL_S)
    assert again.replayed
    again.replayed = False
    assert again == first
    rules = server.admin_stub.GetRules(admin.GetRulesRequest(), timeout=CALL_S)
    assert (rules.source, rules.rules) == (SEVEN, first.rules)
    assert server.admin_stub.GetRules(admin.GetRulesRequest(version=1), timeout=CALL_S).source == SOURCE
    assert till.reason_of(refused(server, admin.GetRulesRequest(version=3), "GetRules")) == (
        "VERSION_NOT_FOUND", {"version": "3", "versions": "2"})
    assert server.terminate() == 0
    verified(server)
    entries = [journal.read_entry(entry) for group in journal.scan(server.data) for _, entry in group]
    programs = [entry for entry in entries if entry["kind"] == "program"]
    assert [one["source"].encode() for one in programs] == [SOURCE, SEVEN], "the journal alone says which rules decided"
    assert [entry["program"] for entry in entries if entry["kind"] == "earn"] == [1, 1, 2, 2]
    assert programs[1]["context"]["operator"] == "anna" and programs[1]["published"]["wallets"] == (("points", 0),)


def test_a_programme_with_mistakes_is_told_all_of_them_and_nothing_changes(server: RunningServer) -> None:
    wrong = SOURCE.replace(b"give: 5", b"give: five").replace(b"currency: USD", b"currency: DOLLAR").replace(b"to_wallet:", b"to_walet:")
    found = mistakes(refused(server, asked(wrong)))
    assert [re.sub(r"\d+", "N", place) for place, _ in found] == ["source:N:N"] * len(found) and len(found) >= 3
    text = "\n".join(description for _, description in found)
    assert "'DOLLAR'" in text and "did you mean 'to_wallet'?" in text and "'five'" in text
    lines = wrong.decode().split("\n")
    assert all("DOLLAR" in lines[int(place.split(":")[1]) - 1] for place, description in found if "'DOLLAR'" in description)
    assert earned(server) == (50, 1)
    outside = SOURCE.replace(b"\nrules:\n", b"\ncatalogue: {file: /etc/passwd}\nrules:\n")
    assert "must be one of the files that were sent with it (none), was '/etc/passwd'" in mistakes(refused(server, asked(outside)))[0][1]
    for fields, reason in (({"request_id": "short"}, "request_id"), ({"operator": ""}, "operator"), ({"reason": "a\nb"}, "reason"),
                           ({"effective_time": till.timestamp(till.now_us() - HOUR_US)}, "effective_time"),
                           ({"effective_time": Timestamp(seconds=1 << 62)}, "effective_time"),
                           ({"sent_time": Timestamp(seconds=-1)}, "sent_time"),
                           ({"source": b"x" * (limits.SOURCE_BYTES_MAX + 1)}, "source"),
                           ({"version": 0}, "version"), ({"version": -1, "validate_only": True}, "version"),
                           ({"files": [admin.RulesFile(name="../x.csv")]}, "files")):
        found_reason = till.reason_of(refused(server, asked(**({"source": SEVEN} if "version" not in fields else {}) | fields)))
        assert found_reason is not None and (found_reason[0], found_reason[1]["field"]) == ("FIELD_INVALID", reason)
    assert till.reason_of(refused(server, asked())) == ("FIELD_INVALID", {"field": "rules", "rule": "must be a source or a version"})
    assert states(server) == {1: "IN_FORCE"}


def test_under_load_every_call_is_decided_by_exactly_one_of_two_programmes(server: RunningServer) -> None:
    """Sixteen tills earn without a pause while a programme of a megabyte and one that fits an entry are published."""
    source, files = large()
    stop = threading.Event()
    answers: list[list[tuple[int, int, int]]] = [[] for _ in range(16)]
    faults: list[Exception] = []

    def earn(till_number: int) -> None:
        with grpc.insecure_channel(server.address(), options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = RunningServer._stub(channel)
            while not stop.is_set():
                try:
                    entry = stub.EarnPoints(till.earn(f"card-{till_number}", 1000), timeout=CALL_S).entry
                except grpc.RpcError as error:
                    faults.append(error)
                    return
                answers[till_number].append((entry.sequence, entry.program_version, entry.earned_points))

    threads = [threading.Thread(target=earn, args=(number,)) for number in range(len(answers))]
    for thread in threads:
        thread.start()
    try:
        wrote = [publish(server, source, files=files).rules, publish(server, version=1).rules]
        behind = server.stub.EarnPoints(till.earn("card-0", 1000), timeout=CALL_S).entry.sequence
        while not faults and any(not mine or mine[-1][0] < behind for mine in answers):
            time.sleep(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    every = sorted(answer for mine in answers for answer in mine)
    assert {(version, points) for _, version, points in every} == {(1, 50), (2, 70), (3, 50)}
    for sequence, version, _ in every:
        assert version == 1 + sum(sequence > rules.sequence for rules in wrote), "all tills switch behind the same entry"
    assert server.terminate() == 0
    verified(server)
    parts = [entry for group in journal.scan(server.data) for _, entry in group if entry[4] == 23]
    assert len(parts) > 3 and max(map(len, parts)) < limits.PROGRAM_PART_BYTES + 200


# --- parts --------------------------------------------------------------------------------------------------------

def test_what_was_cut_between_two_parts_leaves_the_old_rules(server: RunningServer, new_server: Callable[..., RunningServer],
                                                             tmp_path: Path) -> None:
    """A journal that ends between parts, as a kill leaves it, decides by the old rules; the publishing is done again as if nothing was."""
    source, files = large()
    request = asked(source, files=files)
    first = server.admin_stub.PublishRules(request, timeout=CALL_S)
    assert server.terminate() == 0
    sequences = [number for group in journal.scan(server.data) for number, entry in group if entry[4] == 23]
    assert first.rules.sequence == sequences[-1] + 1
    back_up(server.data, tmp_path / "copy")
    cut = new_server(directory=tmp_path / "cut")
    restore(tmp_path / "copy", cut.data, server.data / "identity.key", until_sequence=sequences[2])
    cut.start()
    assert earned(cut) == (50, 1)
    assert states(cut) == {1: "IN_FORCE"}
    cut.restart(kill=True)
    assert earned(cut) == (50, 1)
    done = cut.admin_stub.PublishRules(request, timeout=CALL_S)
    assert (done.rules.version, done.rules.hash, done.replayed) == (2, first.rules.hash, False)
    assert earned(cut) == (70, 2)
    cut.restart(kill=True)
    assert earned(cut) == (70, 2)
    assert cut.terminate() == 0
    verified(cut)


def test_a_kill_while_parts_are_written_leaves_all_or_nothing(server: RunningServer) -> None:
    source, files = large(20_000)
    request = asked(source, files=files)
    answered: list[bool] = []

    def send() -> None:
        try:
            server.admin_stub.PublishRules(request, timeout=CALL_S)
            answered.append(True)
        except grpc.RpcError:
            answered.append(False)

    thread = threading.Thread(target=send)
    thread.start()
    steps = 'ledger_calls_total{method="RulesStep",outcome="OK",port="control"}'
    while not answered and server.metrics()[steps] < 5:     # it looked, and wrote some of its parts
        time.sleep(0.001)
    server.kill()
    thread.join()
    server.start()
    state = states(server)
    assert state in ({1: "IN_FORCE"}, {1: "PAST", 2: "IN_FORCE"})
    assert len(state) == 2 or answered == [False], "an answer means that it is there"
    assert earned(server)[0] == (50 if len(state) == 1 else 70)
    done = server.admin_stub.PublishRules(request, timeout=CALL_S)
    assert (done.rules.version, done.replayed) == (2, len(state) == 2)
    assert earned(server) == (70, 2)


# --- back, wallets, names -----------------------------------------------------------------------------------------

def test_back_to_an_earlier_version_keeps_the_wallets_that_came_since(server: RunningServer) -> None:
    publish(server, STARS)
    assert earned(server)[1] == 2
    back = publish(server, version=1)
    assert (back.rules.version, back.rules.state) == (3, admin.Rules.STATE_IN_FORCE)
    assert ("wallets[stars]", "{}", "") in [(one.path, one.before, one.after) for one in back.differences]
    assert earned(server) == (50, 3)
    for kill in (False, True):
        wallets = server.stub.GetBalance(till.balance_of("card-1"), timeout=CALL_S).wallets
        assert {one.wallet: one.posted_points for one in wallets} == {"points": 100, "stars": 1}
        server.restart(kill=kill)
    given = server.admin_stub.AdjustPoints(till.by_hand("AdjustPoints", card="card-1", wallet="stars", points=4), timeout=CALL_S)
    assert [(one.wallet, one.posted_points) for one in given.wallets] == [("stars", 5)]
    assert server.admin_stub.GetRules(admin.GetRulesRequest(), timeout=CALL_S).source == SOURCE
    without = mistakes(refused(server, asked(SEVEN)))
    assert len(without) == 3 and "number 2 must be 'stars (scale 0)', as in version 2, was not there" in without[0][1], without
    assert {description.partition(":")[0] for _, description in without} == {"wallets", "segments", "favourites"}
    assert publish(server, STARS.replace(b"give: 1,", b"give: 2,")).rules.version == 4
    assert server.terminate() == 0
    verified(server)


def test_what_members_are_numbered_by_must_stay(server: RunningServer) -> None:
    publish(server, STARS)
    for change, key, text in (
        ((b"currency: USD", b"currency: EUR"), "currency", "must be USD, as in version 2, was EUR"),
        ((b"zone: America/New_York", b"zone: Europe/Paris"), "zone", "must be America/New_York, as in version 2, was Europe/Paris"),
        ((b"{name: stars}", b"{name: gems}"), "wallets", "number 2 must be 'stars (scale 0)', as in version 2, was 'gems (scale 0)'"),
        ((b"segments: [staff]", b"segments: [family, staff]"), "segments", "number 1 must be 'staff', as in version 2, was 'family'"),
    ):
        wrong = STARS.replace(*change).replace(b"to_wallet: stars", b"to_wallet: gems" if key == "wallets" else b"to_wallet: stars")
        found = mistakes(refused(server, asked(wrong, validate_only=True)))
        assert len(found) == 1 and found[0][1].startswith(f"{key}: {text}"), found
        line = wrong.decode().split("\n")[int(found[0][0].split(":")[1]) - 1]
        assert line.startswith(f"{key}:"), (found, line)
    assert publish(server, STARS.replace(b"segments: [staff]", b"segments: [staff, family]"), validate_only=True).rules.rule_count == 4


# --- moments ------------------------------------------------------------------------------------------------------

def test_from_a_moment_on(new_server: Callable[..., RunningServer]) -> None:
    """Two programmes wait for their moments, one of them over a kill; one that is published at once goes between."""
    now = till.now_us()
    server = new_server(clock=now).start()
    eight, nine = (SOURCE.replace(b"give: 5", b"give: %d" % number) for number in (8, 9))
    seven = publish(server, SEVEN, effective_time=till.timestamp(now + 2 * HOUR_US))
    assert (seven.rules.version, seven.rules.state) == (2, admin.Rules.STATE_COMING)
    publish(server, eight, effective_time=till.timestamp(now + HOUR_US))
    assert states(server) == {1: "IN_FORCE", 2: "COMING", 3: "COMING"}
    assert earned(server, at=now) == (50, 1)
    server.restart(kill=True)
    assert states(server) == {1: "IN_FORCE", 2: "COMING", 3: "COMING"}
    server.set_clock(now + HOUR_US - 1)
    assert earned(server, at=now + HOUR_US - 1) == (50, 1)
    server.set_clock(now + HOUR_US)
    assert earned(server, at=now + HOUR_US) == (80, 3)
    assert publish(server, nine, sent_time=till.timestamp(now + HOUR_US)).rules.version == 4
    assert earned(server, at=now + HOUR_US) == (90, 4)
    assert states(server) == {1: "PAST", 2: "COMING", 3: "PAST", 4: "IN_FORCE"}
    server.restart(kill=True)
    server.set_clock(now + 3 * HOUR_US)
    assert earned(server, at=now + 3 * HOUR_US) == (70, 2)
    assert states(server) == {1: "PAST", 2: "IN_FORCE", 3: "PAST", 4: "PAST"}
    later = [till.timestamp(now + (4 + i) * HOUR_US) for i in range(limits.PROGRAMS_COMING_MAX + 1)]
    for moment in later[:-1]:
        publish(server, version=1, effective_time=moment, sent_time=till.timestamp(now + 3 * HOUR_US))
    full = till.reason_of(refused(server, asked(version=1, effective_time=later[-1], sent_time=till.timestamp(now + 3 * HOUR_US))))
    assert full == ("RULES_LIMIT", {"limit": "8"})
    assert server.terminate() == 0
    verified(server)


def test_a_snapshot_knows_all_programmes(server: RunningServer) -> None:
    """One in force of a megabyte, one to come, wallets of one that was taken back: a start from a snapshot has them all."""
    publish(server, STARS)
    earned(server)
    publish(server, version=1)
    assert publish(server, TABLED, files=tabled()).rules.version == 4
    publish(server, version=2, effective_time=till.timestamp(till.now_us() + 24 * HOUR_US))
    wallets = {one.wallet: one.posted_points for one in server.stub.GetBalance(till.balance_of("card-1"), timeout=CALL_S).wallets}
    last = earned(server)
    assert last[1] == 4
    assert server.terminate() == 0
    with Follower(server.data, members_max=20_000, ids_max=200_000) as follower:
        while follower.step():
            pass
        assert follower.write_snapshot() is not None
    server.start()
    assert "from the snapshot" in server.log() or "snapshot" in server.log().rpartition("recovered")[2]
    assert "0 entries replayed" in server.log().rpartition("recovered")[2] or "no snapshot" not in server.log().rpartition("recovered")[2]
    assert states(server) == {1: "PAST", 2: "PAST", 3: "PAST", 4: "IN_FORCE", 5: "COMING"}
    assert earned(server) == last
    assert set(wallets) == {"points", "stars"}
    assert publish(server, version=1).rules.version == 6
    server.restart(kill=True)
    assert earned(server) == (50, 6)
    assert server.terminate() == 0
    verified(server)


def test_readers_of_the_journal_follow(server: RunningServer, tmp_path: Path) -> None:
    """The follower tells each version's hash and balances of the past, whatever way an image came; the export has sources and hashes."""
    hashes = [server.admin_stub.GetRules(admin.GetRulesRequest(), timeout=CALL_S).rules.hash]
    for what in ({"source": STARS}, {"version": 1}, {"version": 2}):
        hashes.append(publish(server, **what).rules.hash)  # type: ignore[arg-type]
        earned(server)
    after = server.stub.GetBalance(till.balance_of("card-1"), timeout=CALL_S)
    hashes.append(publish(server, TABLED, files=tabled()).rules.hash)
    last = server.stub.EarnPoints(till.earn("card-2", 1000), timeout=CALL_S).entry
    follower = RunningFollower(server.data, tmp_path)
    try:
        lists = journal_pb2_grpc.JournalServiceStub(follower.channel)
        wait_for(lambda: lists.ListEntries(journal_pb2.ListEntriesRequest(page_size=1), timeout=CALL_S).head.sequence >= last.sequence,
                 "the last entry")
        entries = lists.ListEntries(journal_pb2.ListEntriesRequest(page_size=1000), timeout=CALL_S).entries
        assert [one.program_hash for one in reversed(entries) if one.entry.kind == 20] == hashes
        past = till.balance_of("card-1")
        past.as_of_time.CopyFrom(last.create_time)
        past.as_of_time.FromMicroseconds(last.create_time.ToMicroseconds() - 1)
        then = follower.stub.GetBalance(past, timeout=CALL_S)
        assert [(one.wallet, one.posted_points) for one in then.wallets] == [(one.wallet, one.posted_points) for one in after.wallets]
    finally:
        assert follower.end() == 0
    assert server.terminate() == 0
    done = daybook("export", str(server.data), "--to", "parquet", "--out", str(tmp_path / "days"))
    assert done.returncode == 0, done.stderr


# --- members ------------------------------------------------------------------------------------------------------

def test_segments_of_many_members_and_attributes_of_one(server: RunningServer) -> None:
    publish(server, STARS)
    for number in range(130):
        earned(server, f"card-{number}")
    request = admin.SetSegmentsRequest(request_id=uuid.uuid4().hex, sent_time=till.timestamp(till.now_us()), operator="anna", reason="crm")
    for number in range(130):
        request.changes.add(member=pb.MemberRef(card=f"card-{number}"), add=["staff"])
    request.changes[70].member.card = "nobody"
    request.changes[71].add[:] = ["stuff"]
    request.changes.add(member=pb.MemberRef(card="card-5"), remove=["staff"])
    results = server.admin_stub.SetSegments(request, timeout=CALL_S).results
    assert len(results) == 131
    wrong = {i: till.reason_of_status(one.error) for i, one in enumerate(results) if one.WhichOneof("outcome") == "error"}
    assert wrong[70] == ("MEMBER_NOT_FOUND", {"field": "member.card"}) and set(wrong) == {70, 71}
    assert wrong[71] is not None and wrong[71][1]["value"] == "stuff"
    sequences = [one.entry.sequence for i, one in enumerate(results) if i not in wrong]
    assert sequences == sorted(sequences)
    again = server.admin_stub.SetSegments(request, timeout=CALL_S).results
    assert [(one.entry, one.replayed) for i, one in enumerate(again) if i not in wrong] == [
        (one.entry, True) for i, one in enumerate(results) if i not in wrong]
    operation = server.stub.GetOperation(pb.GetOperationRequest(request_id=f"{request.request_id}:131"), timeout=CALL_S)
    assert operation.entry == results[130].entry
    assert [earned(server, f"card-{number}")[0] for number in (4, 5, 70, 129)] == [62, 51, 51, 62]

    attributes = admin.SetAttributesRequest(
        request_id=uuid.uuid4().hex, sent_time=till.timestamp(till.now_us()), operator="anna", reason="app",
        birthday=admin.Birthday(month=2, day=29), favourites=admin.Favourites(categories=["Food/Dairy"]))
    attributes.member.card = "card-5"
    first = server.admin_stub.SetAttributes(attributes, timeout=CALL_S)
    repeat = server.admin_stub.SetAttributes(attributes, timeout=CALL_S)
    assert (repeat.entry, repeat.replayed) == (first.entry, True)
    receipt = till.earn("card-5", 1000)
    receipt.receipt.lines[0].sku = "milk"
    assert server.stub.EarnPoints(receipt, timeout=CALL_S).entry.earned_points == 64
    attributes.request_id, attributes.favourites.categories[0] = uuid.uuid4().hex, "Food/Meat"
    assert till.reason_of(refused(server, attributes, "SetAttributes"))[1]["value"] == "Food/Meat"  # type: ignore[index]

    for change, field in (({"request_id": "x" * 60}, "request_id"), ({"operator": ""}, "operator"), ({"sent_time": None}, "sent_time")):
        broken = admin.SetSegmentsRequest()
        broken.CopyFrom(request)
        for name, value in change.items():
            broken.ClearField(name) if value is None else setattr(broken, name, value)
        assert till.reason_of(refused(server, broken, "SetSegments"))[1]["field"] == field  # type: ignore[index]
    del request.changes[:]
    assert till.reason_of(refused(server, request, "SetSegments"))[1]["field"] == "changes"  # type: ignore[index]
    assert server.terminate() == 0
    verified(server)


# --- lists and the command line -----------------------------------------------------------------------------------

def test_versions_in_pages_and_what_differs(server: RunningServer) -> None:
    for source in (SEVEN, STARS):
        publish(server, source)
    page = server.admin_stub.ListRules(admin.ListRulesRequest(page_size=2), timeout=CALL_S)
    assert [one.version for one in page.rules] == [3, 2]
    rest = server.admin_stub.ListRules(admin.ListRulesRequest(page_size=2, page_token=page.next_page_token), timeout=CALL_S)
    assert ([one.version for one in rest.rules], rest.next_page_token) == ([1], "")
    assert till.reason_of(refused(server, admin.ListRulesRequest(page_token="below-9"), "ListRules"))[0] == "FIELD_INVALID"  # type: ignore[index]
    found = server.admin_stub.DiffRules(admin.DiffRulesRequest(from_version=1, to_version=3), timeout=CALL_S).differences
    assert [one.path for one in found] == ["wallets[stars]", "segments", "favourites", "rules[Staff]", "rules[Chosen]", "rules[A star]",
                                           "catalogue"] or {one.path for one in found} >= {"wallets[stars]", "rules[A star]", "segments"}
    written_out = SOURCE.replace(b"\nrules:\n", b"\nunknown_sku: accept\nrules:\n").replace(b"give: 5", b"exclusive: false\n    give: 5")
    to_source = server.admin_stub.DiffRules(admin.DiffRulesRequest(from_version=1, to_source=written_out), timeout=CALL_S)
    assert not to_source.differences, "a default that is written out means the same"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "seven.yaml").write_bytes(SEVEN)
    source, tables = large(2000)
    (tmp_path / "large.yaml").write_bytes(source)
    (tmp_path / "goods.csv").write_bytes(tables[0].content)
    (tmp_path / "wrong.yaml").write_bytes(SOURCE.replace(b"give: 5", b"give: five"))
    yield tmp_path


def test_the_commands(server: RunningServer, files: Path) -> None:
    where = ("--control", server.address("control"))
    who = ("--operator", "anna", "--reason", "ticket 4711")

    def done(*arguments: str) -> str:
        result = daybook("rules", *arguments, *where)
        assert (result.returncode, result.stderr) == (0, ""), result.stderr
        return result.stdout

    seven, large_file = str(files / "seven.yaml"), str(files / "large.yaml")
    told = done("publish", seven, "--validate")
    assert "rules[Base points].give" in told and "could be published: Base, 1 rules" in told and "nothing was changed" in told
    assert re.search(r"entry \d+: version 2 \(Base, 1 rules, hash [0-9a-f]{12}\) is in force$", done("publish", seven, *who).strip())
    assert "version 3" in done("publish", large_file, *who)
    assert "will be in force from 2199-01-01 00:00:00Z on" not in done("back", "1", "--validate")
    assert re.search(r"version 4 \(Base, .*\) is in force$", done("back", "1", *who).strip())
    listed = done("list")
    assert [line.split("│")[1].strip() for line in listed.split("\n") if "│" in line] == ["4", "3", "2", "1"], listed
    assert re.search(r"│ +4 │ in force │", listed) and "ticket 4711" in listed
    assert done("show", "2").encode() == SEVEN
    assert done("show").encode() == SOURCE
    assert "rules[Base points].give" in done("diff", "1", "2")
    assert "no differences" in done("diff", "2", seven)
    one_message(daybook("rules", "publish", str(files / "wrong.yaml"), *who, *where), 1,
                rf"{re.escape(str(files / 'wrong.yaml'))}:\d+:\d+: rules\[0\].give.*'five'(.|\n)*RULES_INVALID")
    one_message(daybook("rules", "show", "9", *where), 1, r"there is no version 9 of the programme: the newest is 4\n.*VERSION_NOT_FOUND")
    for arguments, message in (
        (("publish", seven), "--operator and --reason must say who publishes and why"),
        (("publish", seven, "--from", "tomorrow", *who), "--from must be like 2026-12-24T00:00:00"),
        (("publish", seven, "--from", "2199-01-01T00:00:00", *who), "--from must say its zone"),
        (("publish", str(files / "none.yaml"), *who), "none.yaml cannot be read: No such file"),
    ):
        wrong = CliRunner().invoke(app, ["rules", *arguments, *where])
        assert wrong.exit_code == 2 and message in wrong.stderr.replace("\n", " "), wrong.stderr
    for command in ("publish", "back", "list", "show", "diff"):
        shown = CliRunner().invoke(app, ["rules", command, "--help"])
        assert shown.exit_code == 0 and "Example:" in shown.output
