"""The demo's own parts, on a made-up year: what it sends, that it notices a difference, and that it removes nothing but its own.

The real data is a dependency of the demo alone, so `make run ONCE=1` is the test of reading it.
"""

from __future__ import annotations

import datetime
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bench import _load, demo, measure
from bench.service import ANY_PORTS, ROOT, Service
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

CONSOLE = Console(quiet=True)


def make_year(receipts: int = 600, households: int = 8) -> demo.Year:
    """Receipts of a year until now, three lines each; the eldest ones' points are dead by now."""
    random = np.random.default_rng(5)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    moments = [now - datetime.timedelta(days=370 * (receipts - 1 - i) / receipts) for i in range(receipts)]
    amounts = random.integers(0, 3000, (receipts, 3))
    totals = amounts.sum(axis=1)
    return demo.Year(
        basket=np.arange(receipts) + 31_000_000_000, household=random.integers(1, households + 1, receipts),
        store=random.integers(1, 40, receipts), time_s=np.array([int(moment.timestamp()) for moment in moments]),
        business_day=np.array([int(moment.strftime("%Y%m%d")) for moment in moments]), total_minor=totals,
        first_line=np.arange(receipts) * 3, line_count=np.full(receipts, 3),
        still_counts=np.array([(now - moment).days < 350 for moment in moments]),
        line_sku=[str(1_000_000 + i % 500) for i in range(3 * receipts)], line_category=["SOFT DRINKS", "", "CHEESE"] * receipts,
        line_quantity_milli=[1000] * (3 * receipts), line_amount_minor=amounts.reshape(-1).tolist(), weeks=0,
        issued_points=int((totals // 100 * 5).sum()),
    )


def sent(requests: demo.Requests) -> list[tuple[str, object]]:
    """The requests as google.protobuf reads them."""
    types = {"enroll": pb.EnrollMemberRequest, "reserve": pb.ReservePointsRequest, "commit": pb.CommitReceiptRequest}
    names = {number: name for name, number in _load.METHODS.items()}
    result = []
    for offset, size, method in zip(requests.offsets.tolist(), requests.sizes.tolist(), requests.methods.tolist(), strict=True):
        data = requests.data[offset:offset + size].tobytes()
        assert data[0] == 0 and int.from_bytes(data[1:5], "big") == size - 5
        result.append((names[method], types[names[method]].FromString(data[5:])))
    return result


def test_every_receipt_is_sent_once_with_its_lines_and_its_household_first_enrolled():
    year = make_year()
    requests = demo.encode(year, "USD", lambda done: None)
    messages = sent(requests)
    commits = [message for name, message in messages if name == "commit"]
    assert [int(commit.receipt.key.number) for commit in commits] == year.basket.tolist()
    assert [commit.receipt.total_minor for commit in commits] == year.total_minor.tolist()
    assert all(sum(line.amount_minor for line in commit.receipt.lines) == commit.receipt.total_minor for commit in commits)
    enrolled = set()
    for (name, _), lane in zip(messages, requests.lanes.tolist(), strict=True):
        if name == "enroll":
            enrolled.add(lane)
        assert lane in enrolled


def test_a_paid_receipt_follows_its_reservation_and_has_room_for_its_id():
    requests = demo.encode(make_year(), "USD", lambda done: None)
    messages = sent(requests)
    reserved = burned = paid = 0
    for index, (name, message) in enumerate(messages):
        patch = int(requests.patches[index])
        assert (patch > 0) == (name == "commit" and message.WhichOneof("payment") == "capture")
        if patch == 0:
            continue
        before_name, before = messages[index - 1]
        assert before_name == "reserve" and before.member.card == message.member.card
        assert before.points <= message.receipt.total_minor
        assert message.capture.reservation_id == 0 and message.capture.points <= before.points
        start = int(requests.offsets[index]) + patch
        assert requests.data[start:start + 10].tobytes() == _load.patched(0)
        requests.data[start:start + 10] = np.frombuffer(_load.patched(123_456_789), dtype=np.uint8)
        paid, reserved = paid + 1, reserved + before.points
        burned += message.capture.points or before.points
    assert (paid, reserved, burned) == (requests.paid_receipts, requests.reserved_points, requests.burned_points)
    assert paid > 20 and burned < reserved
    assert {message.capture.reservation_id for name, message in sent(requests) if name == "commit"} == {0, 123_456_789}


def test_the_demo_on_a_made_up_year_meets_its_own_recomputation(tmp_path: Path):
    """The whole way: service, replay, sums of /metrics against the client's book, verification of the journal."""
    year = make_year()
    requests = demo.encode(year, "USD", lambda done: None)
    service = Service(tmp_path / "data", ANY_PORTS, "--members-max", "1000", "--ids-max", "10000")
    try:
        service.wait()
        outcome = demo.replay(service, requests, CONSOLE)
        assert outcome["total"]["calls"] == len(requests.sizes)
        sums = demo.check_sums(demo.settle(service), year, requests)
        assert sums["expired"] > 0, "the eldest receipts' points are older than 12 months"
        demo.summary(year, requests, outcome, sums)
        # A recomputation that differs by one point must not pass.
        with pytest.raises(demo.DemoFailed, match="issued points differ"):
            demo.check_sums(demo.settle(service), replace(year, issued_points=year.issued_points + 1), requests)
        verified = subprocess.run([sys.executable, "-m", "server", "verify", str(tmp_path / "data")], cwd=ROOT, capture_output=True,
                                  text=True)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        # The same requests again, as after a lost connection: each gets its first outcome, and no point moves.
        demo.replay(service, requests, CONSOLE)
        assert demo.check_sums(demo.settle(service), year, requests) == sums
    finally:
        assert service.stop() == 0


def test_a_refused_receipt_fails_the_demo(tmp_path: Path):
    year = make_year(receipts=20)
    requests = demo.encode(year, "EUR", lambda done: None)
    service = Service(tmp_path / "data", ANY_PORTS, "--members-max", "1000", "--ids-max", "10000")
    try:
        service.wait()
        with pytest.raises(demo.DemoFailed, match="INVALID_ARGUMENT.*currency"):
            demo.replay(service, requests, CONSOLE)
    finally:
        service.stop()


def test_only_a_ledgers_directory_is_removed(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "1.jpg").touch()
    with pytest.raises(demo.DemoFailed, match="left alone"):
        demo.fresh_directory(tmp_path / "photos", CONSOLE)
    assert (tmp_path / "photos" / "1.jpg").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "FORMAT").write_text("daybook 1\n")
    demo.fresh_directory(tmp_path / "old", CONSOLE)
    assert not (tmp_path / "old").exists()


def test_the_service_says_why_it_does_not_start(tmp_path: Path):
    service = Service(tmp_path / "data", {**ANY_PORTS, "http": "nowhere"})
    with pytest.raises(demo.ServiceFailed, match="--http"):
        service.wait()


def test_the_load_generator_meets_no_errors_on_the_real_service(tmp_path: Path):
    """Every call of the mix, thousands of times, on all members prepared: nothing is broken, and most is not refused either."""
    service = Service(tmp_path / "data", ANY_PORTS, "--members-max", "20000", "--ids-max", "200000")
    try:
        service.wait()
        chain = _load.Chain(members=500, skew=0.9, seed=1, currency="USD",
                            business_day=int(datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")))
        prepared = _load.Client("127.0.0.1", service.ports["checkout"], connections=4, in_flight=16, chain=chain)
        prepared.prepare(0, 500, earn=True)
        assert measure.figures(prepared.result())["total"]["codes"] == {}
        client = _load.Client("127.0.0.1", service.ports["checkout"], connections=4, in_flight=4, chain=chain)
        client.mix(dict.fromkeys(_load.METHODS, 1.0), seconds=1.5, warmup_s=0)
        outcome = measure.figures(client.result())
    finally:
        assert service.stop() == 0
    assert set(outcome["calls"]) == set(_load.METHODS)
    assert outcome["total"]["errors"] == 0, outcome
    assert outcome["total"]["refused"] < 0.05 * outcome["total"]["calls"], outcome
