"""The load generator: what it sends, what it counts, and that it stands what a service may do to it."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from unittest.mock import ANY

import grpc
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bench import _load, load, measure
from tests.bench.stand_in import NAMES, REQUESTS, Refusal, StandIn

DAY = 20261122
LOCALHOST = "127.0.0.1"


def make_chain(members: int = 1000, skew: float = 0.9, seed: int = 1) -> _load.Chain:
    return _load.Chain(members=members, skew=skew, seed=seed, currency="USD", business_day=DAY)


def parse(name: str, data: bytes) -> object:
    return REQUESTS[NAMES[name]][0].FromString(data)


def card_number(member: int) -> str:
    return str(2_900_000_000_000 + member)


# --- what it sends ---------------------------------------------------------------------------------------------------

def test_every_request_is_canonical_protobuf_of_its_call():
    """google.protobuf reads every request and, writing it again, makes the same bytes: nothing unknown, nothing out of place."""
    reservations = [(2**33 + i, i) for i in range(900)]
    requests = _load.sample_requests(make_chain(), dict.fromkeys(NAMES, 1.0), 5000, seed=7, reservations=reservations)
    assert {name for name, _ in requests} == set(NAMES)
    for name, data in requests:
        assert parse(name, data).SerializeToString(deterministic=True) == data


def test_receipts_are_realistic_and_keep_the_contract():
    requests = [parse(name, data) for name, data in _load.sample_requests(make_chain(), {"earn": 1}, 3000, seed=2)]
    sizes = [request.ByteSize() for request in requests]
    assert 280 < np.mean(sizes) < 320
    for request in requests:
        assert len(request.request_id) == 32
        assert abs(request.sent_time.ToNanoseconds() - time.time_ns()) < 60e9
        assert request.member.WhichOneof("ref") == "card"
        assert len(request.receipt.lines) == 6
        assert request.receipt.total_minor == sum(line.amount_minor for line in request.receipt.lines)
        assert request.receipt.currency_code == "USD"
        assert request.receipt.key.business_day == DAY
        assert all(line.sku and line.category and line.quantity_milli > 0 for line in request.receipt.lines)
    assert len({request.request_id for request in requests}) == 3000
    assert len({request.receipt.key.number for request in requests}) == 3000
    assert len({request.receipt.key.store for request in requests}) > 100


def test_the_same_seed_makes_the_same_receipts_under_new_ids():
    def contents(seed: int) -> tuple[list[str], set[str]]:
        requests = [parse(*sample) for sample in _load.sample_requests(make_chain(), {"earn": 1}, 50, seed=seed)]
        return [f"{r.member.card} {r.receipt.total_minor} {[line.sku for line in r.receipt.lines]}" for r in requests], {
            r.request_id for r in requests}

    first, first_ids = contents(5)
    again, again_ids = contents(5)
    other, _ = contents(6)
    assert first == again
    assert first != other
    assert not first_ids & again_ids


def test_members_follow_zipf():
    count, draws = 1000, 40_000
    requests = _load.sample_requests(make_chain(members=count, skew=1.0), {"balance": 1}, draws, seed=3)
    seen = np.array(sorted(Counter(parse(*sample).member.card for sample in requests).values(), reverse=True))
    expected = draws * _load.zipf_weights(count, 1.0) / _load.zipf_weights(count, 1.0).sum()
    assert abs(seen[0] / expected[0] - 1) < 0.1
    assert abs(seen[:10].sum() / expected[:10].sum() - 1) < 0.05
    assert len(seen) > 0.9 * count, "the rare members must come too"


def test_skew_zero_draws_all_members_alike():
    requests = _load.sample_requests(make_chain(members=100, skew=0), {"balance": 1}, 20_000, seed=3)
    seen = Counter(parse(*sample).member.card for sample in requests)
    assert len(seen) == 100
    assert max(seen.values()) < 2 * min(seen.values())


def test_capture_without_a_reservation_reserves_first_and_operation_without_a_write_earns():
    chain = make_chain()
    assert {name for name, _ in _load.sample_requests(chain, {"capture": 1, "release": 1}, 20, seed=1)} == {"reserve"}
    names = [name for name, _ in _load.sample_requests(chain, {"operation": 1}, 20, seed=1)]
    assert names == ["earn"] + ["operation"] * 19


@pytest.mark.parametrize("value", [1, 127, 128, 2**35, 2**62])
def test_patched_reservation_ids_are_varints_of_ten_bytes(value: int):
    data = b"\x20" + _load.patched(value)
    assert len(data) == 11
    assert REQUESTS["CaptureReservation"][0].FromString(data).reservation_id == value


# --- what it counts --------------------------------------------------------------------------------------------------

def test_histogram_is_exact_to_one_percent_from_a_microsecond_to_a_minute():
    limits = _load.bucket_limits_ns()
    assert np.all(np.diff(limits) > 0)
    for value in [0, 1, 255, 256, 257, 1000, *np.geomspace(1000, 60e9, 3000).astype(int).tolist()]:
        bucket = _load.bucket_of(int(value))
        assert limits[bucket] >= value
        assert bucket == 0 or limits[bucket - 1] < value
        assert limits[bucket] - value <= 0.01 * value


def test_percentiles_are_those_of_the_sorted_latencies():
    random = np.random.default_rng(11)
    values = np.sort(random.lognormal(13, 1, 20_000).astype(np.int64))
    counts = np.zeros(len(measure.LIMITS_NS), dtype=np.uint64)
    for value in values:
        counts[np.searchsorted(measure.LIMITS_NS, value)] += 1
    for share in (0.5, 0.9, 0.99, 0.999):
        exact = values[int(np.ceil(share * len(values))) - 1] / 1000
        assert exact <= measure.percentile_us(counts, share) <= exact * 1.01
    assert measure.percentile_us(np.zeros_like(counts), 0.5) == 0


def test_every_call_of_the_mix_is_made_and_answered():
    with StandIn() as service:
        client = _load.Client(LOCALHOST, service.port, connections=4, in_flight=2, chain=make_chain(), seed=1)
        client.mix(dict.fromkeys(NAMES, 1.0), seconds=2.5, warmup_s=0.2)
        outcome = measure.figures(client.result())
    assert outcome["total"]["codes"] == {}
    assert set(outcome["calls"]) == set(NAMES)
    # The warm-up is made, but not counted.
    assert 0 < outcome["total"]["calls"] < len(service.seen)
    ids = [request.request_id for name, request in service.seen if name not in ("GetBalance", "GetOperation", "QuoteReceipt")]
    assert len(ids) == len(set(ids))
    held = {request.reservation_id for name, request in service.seen if name in ("CaptureReservation", "ReleaseReservation")}
    assert held and min(held) > 1 << 40, "captures and releases must name reservations that were answered"
    written = set(ids)
    assert all(request.request_id in written for name, request in service.seen if name == "GetOperation")


def test_refusals_of_the_ledger_are_counted_apart_from_errors():
    refusals = {
        "EarnPoints": Refusal(grpc.StatusCode.FAILED_PRECONDITION, "LOTS_LIMIT", details=True),
        "BurnPoints": Refusal(grpc.StatusCode.FAILED_PRECONDITION, "somebody else", details=False),
        "GetBalance": Refusal(grpc.StatusCode.UNAVAILABLE, "NOT_READY", details=True),
        "EnrollMember": Refusal(grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID", details=True),
    }
    with StandIn(lambda name, _: refusals.get(name)) as service:
        client = _load.Client(LOCALHOST, service.port, connections=2, in_flight=2, chain=make_chain(), seed=1)
        client.mix({"earn": 1, "burn": 1, "balance": 1, "enroll": 1, "reserve": 1}, seconds=2.0, warmup_s=0)
        outcome = measure.figures(client.result())
    calls = outcome["calls"]
    assert calls["earn"]["refused"] == calls["earn"]["calls"] > 0 and calls["earn"]["errors"] == 0
    for name, code in (("burn", "FAILED_PRECONDITION"), ("balance", "UNAVAILABLE"), ("enroll", "INVALID_ARGUMENT")):
        assert calls[name]["errors"] == calls[name]["codes"][code] > 0
        assert calls[name]["refused"] == calls[name]["calls"] == 0
    assert calls["reserve"]["codes"] == {}
    assert outcome["first_messages"]["UNAVAILABLE"] == "balance: NOT_READY"


def test_a_stall_counts_against_every_call_that_was_scheduled_in_it():
    """Open loop: while the only stream waits for a second, arrivals go on; each is timed from its arrival, not from its sending."""
    stalled = threading.Event()

    def hook(name: str, request: object) -> float | None:
        if stalled.is_set():
            return None
        stalled.set()
        return 1.0

    with StandIn(hook) as service:
        client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=1, chain=make_chain(), seed=1)
        client.mix({"balance": 1}, seconds=2.0, warmup_s=0, rate=40, grace_s=60)
        result = client.result()
    outcome = measure.figures(result)
    assert outcome["total"]["errors"] == 0
    slow = int(result["calls"]["balance"]["histogram"][measure.LIMITS_NS > 100_000_000].sum())
    assert slow > 15, f"about 36 arrivals waited more than 100 ms; counted {slow}"
    assert abs(outcome["total"]["calls"] - 80) < 5 * 80**0.5     # Poisson: five standard deviations


def test_open_loop_keeps_its_rate():
    with StandIn(keep=False) as service:
        client = _load.Client(LOCALHOST, service.port, connections=8, in_flight=8, chain=make_chain(), seed=4)
        client.mix({"balance": 1}, seconds=3.0, warmup_s=0.2, rate=60, grace_s=60)
        outcome = measure.figures(client.result())
    assert abs(outcome["total"]["calls"] - 180) < 5 * 180**0.5      # Poisson: five standard deviations
    assert outcome["total"]["errors"] == 0


def test_unanswered_calls_are_errors_and_the_run_ends():
    with StandIn(lambda name, _: 60.0) as service:
        client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=3, chain=make_chain(), seed=1)
        thread = threading.Thread(target=lambda: client.mix({"balance": 1}, seconds=0.2, warmup_s=0, grace_s=0.5))
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
        assert measure.figures(client.result())["calls"]["balance"]["codes"] == {"UNANSWERED": 3}


def test_deadline_is_sent_and_kept():
    with StandIn(lambda name, _: 5.0) as service:
        client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=1, chain=make_chain(), seed=1, deadline_s=0.1)
        client.mix({"balance": 1}, seconds=2.0, warmup_s=0)
        codes = measure.figures(client.result())["total"]["codes"]
    assert codes.get("DEADLINE_EXCEEDED", 0) >= 2 and set(codes) <= {"DEADLINE_EXCEEDED", "CONNECTION_LOST"}


@pytest.mark.parametrize("grace", [None, 0.5], ids=["at once", "with GOAWAY"])
def test_a_restart_costs_errors_at_most_and_the_run_goes_on(grace: float | None):
    first = StandIn(keep=False)
    with first:
        client = _load.Client(LOCALHOST, first.port, connections=4, in_flight=4, chain=make_chain(), seed=1)
        thread = threading.Thread(target=lambda: client.mix({"balance": 1}, seconds=120.0, warmup_s=0))
        thread.start()
        wait_until(lambda: client.progress()["completed"] > 50)
        first.stop(grace=grace)
    with StandIn(keep=False, port=first.port):
        before = client.progress()["completed"]
        wait_until(lambda: client.progress()["connected"] == 4 and client.progress()["completed"] > before + 50)
        client.stop()
        thread.join(60)
    outcome = measure.figures(client.result())
    assert not thread.is_alive()
    assert set(outcome["total"]["codes"]) <= {"CONNECTION_LOST", "UNAVAILABLE", "CANCELLED"}
    assert outcome["total"]["errors"] <= 64


def test_preparation_opens_every_member_once_and_then_gives_points():
    with StandIn() as service:
        client = _load.Client(LOCALHOST, service.port, connections=2, in_flight=8, chain=make_chain(), seed=1)
        client.prepare(10, 300, earn=True)
    enrolled = [request.identifiers[0].card for name, request in service.seen if name == "EnrollMember"]
    earned = [request.member.card for name, request in service.seen if name == "EarnPoints"]
    assert sorted(enrolled) == sorted(earned) == [card_number(member) for member in range(10, 310)]
    assert client.result()["calls"]["earn"]["codes"] == {}


def test_preparation_in_batches_goes_through_members_and_time_in_order():
    """Whole batches and a rest of one, members by strides, two identifiers; then receipts of the time that was asked for."""
    times = (1_700_000_000, 1_700_300_000)
    for size in (1, 7, 300):
        with StandIn() as service:
            for how in ({"enroll": True, "earn": False, "identifiers": 2}, {"enroll": False, "earn": True}):
                client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=1, chain=make_chain(), seed=1)
                client.prepare(10, 15, stride=3, batch=size, times=times, **how)
                assert measure.figures(client.result())["entries"] == {"count": 15, "per_second": ANY, "refused": 0}
        batches = [request for name, request in service.seen if name == "BatchPost"]
        assert sorted({len(batch.commands) for batch in batches}) == {1: [1], 7: [1, 7], 300: [15]}[size]
        enrolled = [command.enroll for batch in batches for command in batch.commands if command.WhichOneof("command") == "enroll"]
        earned = [command.earn for batch in batches for command in batch.commands if command.WhichOneof("command") == "earn"]
        members = list(range(10, 55, 3))
        assert [[(each.card, each.phone) for each in request.identifiers] for request in enrolled] == [
            [(card_number(member), ""), ("", f"+48{600_000_000 + member}")] for member in members]
        assert [request.member.card for request in earned] == [card_number(member) for member in members]
        assert len({request.request_id for request in enrolled + earned}) == 30
        sent = [request.sent_time.seconds for request in earned]
        assert sent == sorted(sent) and times[0] == sent[0] <= sent[-1] < times[1] and len(set(sent)) == -(-15 // size)
        for request in earned:
            assert request.receipt.purchase_time.seconds == request.sent_time.seconds
            assert request.receipt.key.business_day == int(time.strftime("%Y%m%d", time.gmtime(request.sent_time.seconds)))
            assert request.receipt.total_minor == 1_000_000


@pytest.mark.parametrize("batch", [0, 40])
def test_late_receipts_are_as_many_as_asked_for_and_of_the_time_asked_for(batch: int):
    times = (1_700_000_000, 1_700_300_000)
    with StandIn() as service:
        client = _load.Client(LOCALHOST, service.port, connections=2, in_flight=4, chain=make_chain(), seed=1)
        client.mix({"earn": 1.0}, seconds=0, warmup_s=0, batch=batch, calls=120, times=times)
    requests = [request for _, request in service.seen] if not batch else [
        command.earn for _, request in service.seen for command in request.commands]
    assert len(service.seen) == 120 and len(requests) == 120 * max(1, batch)
    assert client.result()["completed"] == 120 and client.result()["unsent"] == 0
    seen = [request.sent_time.seconds for request in requests]
    assert times[0] <= min(seen) < times[0] + 30_000 and times[1] - 30_000 < max(seen) < times[1]
    for request in requests:
        assert request.receipt.purchase_time.seconds == request.sent_time.seconds
        assert request.receipt.key.business_day == int(time.strftime("%Y%m%d", time.gmtime(request.sent_time.seconds)))


def test_requests_live_in_the_time_of_a_service_whose_clock_is_ahead():
    with StandIn() as service:
        client = _load.Client(LOCALHOST, service.port, connections=1, in_flight=1, chain=make_chain(), seed=1)
        client.mix({"earn": 1.0}, seconds=0, warmup_s=0, calls=5, ahead_s=86_400)
        now = time.time()
    assert all(86_340 < request.sent_time.seconds - now < 86_460 for _, request in service.seen) and len(service.seen) == 5


def test_business_days_are_those_of_the_calendar():
    for day in range(0, 80_000, 13):
        for second in (0, 86_399):
            at = datetime.datetime(1970, 1, 1) + datetime.timedelta(days=day, seconds=second)
            assert _load.business_day_of(day * 86_400 + second) == at.year * 10_000 + at.month * 100 + at.day


# --- replay ----------------------------------------------------------------------------------------------------------

def make_replay(lanes: int, rounds: int) -> dict[str, np.ndarray]:
    """Per lane and round: a reserve, then a capture of what it reserved (round and lane in the points and the card)."""
    pieces, methods, lane_of, patches = [], [], [], []
    for turn in range(rounds):
        for lane in range(lanes):
            reserve = REQUESTS["ReservePoints"][0](request_id=f"reserve-{turn:08d}-{lane:04d}", points=turn + 1)
            reserve.member.card = f"lane{lane}"
            capture = REQUESTS["CaptureReservation"][0](request_id=f"capture-{turn:08d}-{lane:04d}")
            capture.member.card = f"lane{lane}"
            head = capture.SerializeToString() + b"\x20"
            for method, data, patch in (("reserve", reserve.SerializeToString(), 0), ("capture", head + _load.patched(0), 5 + len(head))):
                pieces.append(b"\0" + len(data).to_bytes(4, "big") + data)
                methods.append(_load.METHODS[method])
                lane_of.append(lane)
                patches.append(patch)
    sizes = np.array([len(piece) for piece in pieces], dtype=np.uint32)
    return {
        "data": np.frombuffer(bytearray(b"".join(pieces)), dtype=np.uint8), "sizes": sizes,
        "offsets": np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.int64), "methods": np.array(methods, dtype=np.uint8),
        "lanes": np.array(lane_of, dtype=np.uint32), "patches": np.array(patches, dtype=np.uint32),
    }


def check_replay(seen: list[tuple[str, object]], lanes: int, rounds: int) -> None:
    for lane in range(lanes):
        own = [(name, request) for name, request in seen if request.member.card == f"lane{lane}"]
        expected = [f"{kind}-{turn:08d}-{lane:04d}" for turn in range(rounds) for kind in ("reserve", "capture")]
        assert [request.request_id for _, request in own] == expected


def test_replay_keeps_each_lane_in_order_and_captures_what_the_lane_reserved():
    with StandIn(lambda name, request: 0.002) as service:
        client = _load.Client(LOCALHOST, service.port, connections=3, in_flight=4)
        client.replay(**make_replay(20, 5))
        result = client.result()
    assert measure.figures(result)["total"]["codes"] == {}
    assert measure.figures(result)["total"]["calls"] == 200
    check_replay(service.seen, 20, 5)
    captured = [request.reservation_id for name, request in service.seen if name == "CaptureReservation"]
    assert len(set(captured)) == 100 and min(captured) > 1 << 40
    assert 1 < service.open_calls_max <= 12


def test_replay_has_at_most_one_call_in_flight_per_lane():
    with StandIn(lambda name, request: 0.001) as service:
        client = _load.Client(LOCALHOST, service.port, connections=4, in_flight=8)
        client.replay(**make_replay(1, 40))
    assert service.open_calls_max == 1
    check_replay(service.seen, 1, 40)


def test_replay_sends_lost_requests_again_and_loses_none():
    asked = itertools.count()
    first = StandIn(lambda name, request: 0.001 if next(asked) < 200 else 60.0)  # it cannot end before it is stopped
    with first:
        client = _load.Client(LOCALHOST, first.port, connections=2, in_flight=4)
        requests = make_replay(8, 40)
        thread = threading.Thread(target=lambda: client.replay(**requests))
        thread.start()
        wait_until(lambda: client.progress()["completed"] == 200 and first.open_calls)  # those hang, and are lost
        first.stop(grace=None)
    with StandIn(port=first.port) as second:
        thread.join(60)
        assert not thread.is_alive()
    ids = [request.request_id for _, request in first.seen + second.seen]
    assert len(set(ids)) == 640
    outcome = measure.figures(client.result())
    assert outcome["total"]["codes"] == {} and outcome["total"]["calls"] == 640
    assert outcome["retried"] > 0


def test_replay_does_not_ask_a_service_for_ever_that_only_refuses():
    refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "JOURNAL_FULL", details=True)
    with StandIn(lambda name, request: refusal, keep=False) as service:
        client = _load.Client(LOCALHOST, service.port, connections=2, in_flight=4)
        client.replay(**make_replay(8, 1))
    outcome = measure.figures(client.result())
    assert outcome["total"]["codes"] == {"UNAVAILABLE": 16}
    assert 1000 <= outcome["retried"] <= 1010


def test_replay_refuses_requests_that_lie_outside_their_data():
    requests = make_replay(2, 1)
    client = _load.Client(LOCALHOST, 1, connections=1, in_flight=1)
    for change in ({"offsets": requests["offsets"] + 1000}, {"patches": requests["sizes"] - 3}, {"lanes": requests["lanes"][1:]},
                   {"methods": requests["methods"] + 90}):
        with pytest.raises(ValueError):
            client.replay(**{**requests, **change})


# --- the command -----------------------------------------------------------------------------------------------------

def run_command(*arguments: str) -> object:
    app = typer.Typer()
    app.command("load")(load.load)
    return CliRunner().invoke(app, [*arguments], env={"COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})


def test_command_prints_the_table_and_writes_the_json(tmp_path: Path):
    with StandIn(keep=False) as service:
        result = run_command("--target", f"{LOCALHOST}:{service.port}", "--seconds", "1.5", "--warmup", "0.1", "--members", "200",
                             "--connections", "4", "--mix", "earn=1,balance=3", "--json", str(tmp_path / "figures.json"))
    assert result.exit_code == 0, result.output
    assert "calls/s" in result.output and "balance" in result.output and "total" in result.output
    written = json.loads((tmp_path / "figures.json").read_text())
    for row in (written["total"], written["calls"]["earn"], written["calls"]["balance"]):
        assert {"calls_per_second", "errors", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"} <= set(row)
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"] <= row["p999_us"] <= row["max_us"]
    assert written["parameters"]["members"] == 200
    assert written["total"]["calls"] == written["calls"]["earn"]["calls"] + written["calls"]["balance"]["calls"]


def test_command_ends_with_status_1_when_there_were_errors():
    refusal = Refusal(grpc.StatusCode.INTERNAL, "broken", details=False)
    with StandIn(lambda name, _: refusal if name == "GetBalance" else None) as service:
        result = run_command("--target", f"{LOCALHOST}:{service.port}", "--seconds", "0.3", "--warmup", "0", "--no-prepare",
                             "--mix", "balance")
    assert result.exit_code == 1
    assert "INTERNAL" in result.output and "broken" in result.output


@pytest.mark.parametrize(("arguments", "words"), [
    (["--target", "nowhere"], ["--target", "HOST:PORT", "nowhere"]),
    (["--target", "127.0.0.1:99999"], ["--target", "99999"]),
    (["--mix", "eran=1"], ["--mix", "eran", "earn"]),
    (["--mix", "earn=x"], ["--mix", "x"]),
    (["--mix", "earn=0"], ["--mix", "above 0"]),
    (["--mix", "earn=1,earn=2"], ["--mix", "twice"]),
    (["--connections", "0"], ["--connections", "at least 1", "was 0"]),
    (["--in-flight", "100000"], ["--in-flight", "65,536", "100000"]),
    (["--seconds", "-1"], ["--seconds", "above 0", "-1"]),
    (["--rate", "-5"], ["--rate", "-5"]),
    (["--members", "0"], ["--members", "was 0"]),
    (["--skew", "-1"], ["--skew", "-1"]),
    (["--currency", "dollar"], ["--currency", "ISO 4217", "dollar"]),
    (["--json", "/no/such/folder/x.json"], ["--json", "existing folder"]),
])
def test_bad_values_are_one_clear_error(arguments: list[str], words: list[str]):
    result = run_command(*arguments)
    assert result.exit_code == 2
    assert all(word in result.output for word in words), result.output
    assert "Traceback" not in result.output


def test_more_connections_than_the_system_allows_is_one_clear_error():
    done = subprocess.run(["sh", "-c", f"ulimit -n 200; exec {sys.executable} -m bench.load --connections 1000"], capture_output=True,
                          text=True, env={**os.environ, "COLUMNS": "160", "NO_COLOR": "1", "TERM": "dumb"})
    assert done.returncode == 2
    assert "--connections" in done.stderr and "200 open files" in done.stderr, done.stderr


def test_nobody_listening_is_one_clear_error():
    with StandIn() as service:
        port = service.port
    result = run_command("--target", f"{LOCALHOST}:{port}", "--seconds", "1")
    assert result.exit_code == 1
    assert "cannot connect" in result.output and "daybook serve" in result.output


def wait_until(condition, timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.01)
