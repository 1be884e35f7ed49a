"""The demo's own parts, on a made-up year: what it sends, that it notices a difference, and that it removes nothing but its own.

That the real data is read, and what comes of it: tests/rules/test_year.py, and `make run ONCE=1`.
"""

from __future__ import annotations

import datetime
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench import _load, demo, measure, recompute
from bench.service import ANY_PORTS, ROOT, Service
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

CONSOLE = Console(quiet=True)
LINES = 3
PRODUCTS = pd.read_csv(ROOT / "programs" / demo.CATALOGUE).fillna("")


def make_year(receipts: int = 600, households: int = 8) -> demo.Year:
    """Receipts of a year until now, three lines each; the eldest ones' points are dead by now."""
    random = np.random.default_rng(5)
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    time_s = pd.Series([int((now - datetime.timedelta(days=370 * (receipts - 1 - i) / receipts)).timestamp()) for i in range(receipts)])
    date = pd.to_datetime(time_s, unit="s", utc=True).dt.tz_convert("America/New_York").dt.tz_localize(None).dt.normalize()
    lines = pd.DataFrame({
        "basket": np.repeat(np.arange(receipts) + 31_000_000_000, LINES),
        "product_id": random.choice(PRODUCTS["product_id"], receipts * LINES), "category": ["SOFT DRINKS", "", "CHEESE"] * receipts,
        "quantity": 1, "cents": random.integers(0, 3000, receipts * LINES),
    })
    payable = recompute.lines_that_earn(lines, PRODUCTS).groupby("basket")["cents"].sum()
    baskets = lines["basket"].drop_duplicates().reset_index(drop=True)
    return demo.Year(pd.DataFrame({
        "basket": baskets, "household": np.minimum(random.geometric(0.4, receipts), households), "store": random.integers(1, 40, receipts),
        "date": date, "time_s": time_s, "business_day": date.dt.year * 10_000 + date.dt.month * 100 + date.dt.day,
        "cents": lines.groupby("basket")["cents"].sum().to_numpy(), "payable_cents": baskets.map(payable).fillna(0).astype("int64"),
        "codes": random.choice(["", "", "", "MAILING-9", "MAILING-8 MAILING-18"], receipts), "first_line": np.arange(receipts) * LINES,
        "line_count": LINES, "still_counts": date > pd.Timestamp(now.date()) - pd.Timedelta(days=350),
    }), lines, PRODUCTS)


def start(folder: Path) -> Service:
    played = demo.programme(folder / "programme")
    shutil.copy(ROOT / "programs" / demo.CATALOGUE, played.path.with_name(demo.CATALOGUE))
    return Service(folder / "data", ANY_PORTS, "--members-max", "1000", "--ids-max", "10000", program=played.path)


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
    assert [int(commit.receipt.key.number) for commit in commits] == year.receipts["basket"].tolist()
    assert [commit.receipt.total_minor for commit in commits] == year.receipts["cents"].tolist()
    assert [" ".join(commit.receipt.promo_codes) for commit in commits] == year.receipts["codes"].tolist()
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
    assert (paid, reserved, burned) == (len(requests.paid_points), requests.reserved_points, sum(requests.paid_points.values()))
    assert paid > 20 and burned < reserved
    assert {message.capture.reservation_id for name, message in sent(requests) if name == "commit"} == {0, 123_456_789}


def test_the_demo_on_a_made_up_year_meets_its_own_recomputation(tmp_path: Path):
    """The whole way: service, replay, each rule's points on each receipt, sums of /metrics, verification of the journal."""
    year = make_year()
    requests = demo.encode(year, "USD", lambda done: None)
    service = start(tmp_path)
    rules = demo.programme(tmp_path / "names").rules
    try:
        service.wait()
        outcome = demo.replay(service, requests, CONSOLE)
        assert outcome["total"]["calls"] == len(requests.sizes)
        samples = demo.settle(service)
        given = demo.given_points(demo.begin_export(tmp_path / "data"), rules)
        demo.check_points(given, year, requests)
        assert (given.drop(columns="Grill week").sum() > 0).all(), "every rule gave something, whatever the season"
        sums = demo.check_sums(samples, given, requests)
        assert sums["expired"] > 0, "the eldest receipts' points are older than 12 months"
        demo.summary(year, requests, given, outcome, sums)
        # A recomputation that differs by one point must not pass, and neither must a sum.
        wrong = given.copy()
        wrong.iat[77, 3] += 1
        basket = int(given.index[77])
        message = f"differ in 1 places; the first: receipt {basket} of household .* has {wrong.iat[77, 3]} by the rule 'Own brand'"
        with pytest.raises(demo.DemoFailed, match=message):
            demo.check_points(wrong, year, requests)
        with pytest.raises(demo.DemoFailed, match="issued points differ"):
            demo.check_sums(samples, wrong, requests)
        with pytest.raises(demo.DemoFailed, match="redeemed points differ"):
            demo.check_sums(samples, given, replace(requests, paid_points={}))
        with pytest.raises(demo.DemoFailed, match="other receipts than were sent"):
            demo.check_points(given.iloc[1:], year, requests)
        verified = subprocess.run([sys.executable, "-m", "server", "verify", str(tmp_path / "data")], cwd=ROOT, capture_output=True,
                                  text=True)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        # The same requests again, as after a lost connection: each gets its first outcome, and no point moves.
        demo.replay(service, requests, CONSOLE)
        assert demo.check_sums(demo.settle(service), given, requests) == sums
    finally:
        assert service.stop() == 0


def test_a_refused_receipt_fails_the_demo(tmp_path: Path):
    year = make_year(receipts=20)
    requests = demo.encode(year, "EUR", lambda done: None)
    service = start(tmp_path)
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
