"""A clock that is wrong at start or becomes wrong (D12): nobody's points expire early, business goes on, and one word accepts a right one.

With the preloaded shim's clock, which the service takes for the machine's. The clock's steps under a disk's faults are in test_durable.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from ledger.verify import verify
from tests import till
from tests.running import RunningServer
from tests.shim.shim import Shim

NewServer = Callable[..., RunningServer]
DAY_US = 86_400_000_000
YEAR_AND_A_BIT_US = 400 * DAY_US  # further than the base programme's points live
CLOSE_S = 240  # a start of a busy machine's; the wrong times are days away
CARDS = [f"card-{number}" for number in range(5)]
ACCEPT = ("--members-max", "20000", "--ids-max", "200000", "--accept-time")


@pytest.fixture
def shim(tmp_path: Path) -> Shim:
    return Shim(tmp_path)


def wait_for(condition: Callable[[], bool], server: RunningServer) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until, server.log()
        time.sleep(0.02)


def alarms(server: RunningServer) -> dict[str, float]:
    return {name.split('"')[1]: value for name, value in server.metrics().items() if name.startswith("ledger_clock_alarm")}


def expired(server: RunningServer) -> float:
    metrics = server.metrics()
    return metrics['ledger_expired_points_total{wallet="points"}'] + metrics["ledger_expired_reservations_entries_total"]


def posted(server: RunningServer) -> list[int]:
    return [server.stub.GetBalance(till.balance_of(card), timeout=60).wallets[0].available_points for card in CARDS]


def shop(server: RunningServer) -> list[int]:
    """Some members with points, one of them with a hold of 14 days. Returns what they have."""
    for card in CARDS:
        server.stub.EarnPoints(till.earn(card, 2000), timeout=60)
    hold = till.request("ReservePoints", card=CARDS[0], points=10)
    hold.ttl.seconds = 14 * 86_400
    server.stub.ReservePoints(hold, timeout=60)
    return posted(server)


def turn_round(server: RunningServer) -> None:
    """Enough turns of the loop for the ticks to have come by every member, if they run."""
    for _ in range(30):
        posted(server)


def test_a_wrong_clock_at_start_expires_nothing_and_leaves_no_trace(new_server: NewServer, shim: Shim) -> None:
    """400 days ahead: alarm, business at the right time, a stop with its digest; then the right clock, and all is as before."""
    server = new_server(environment=shim.environment()).start()
    before = shop(server)
    server.kill()
    shim.step_clock(YEAR_AND_A_BIT_US)
    server.start()
    assert "days ahead of the journal" in server.log() and "--accept-time" in server.log()
    assert alarms(server) == {"step": 0, "gap": 1}
    assert server.metrics()["ledger_clock_ahead_seconds"] > 399 * 86_400
    turn_round(server)
    assert posted(server) == before
    entry = server.stub.EarnPoints(till.earn("new"), timeout=60).entry
    assert abs(entry.create_time.seconds - time.time()) < CLOSE_S, "no entry is dated into a future that cannot be taken back"
    server.stub.BurnPoints(till.request("BurnPoints", card=CARDS[1], points=before[1]), timeout=60)
    assert expired(server) == 0
    assert server.terminate() == 0
    shim.step_clock(0)
    server.start()
    assert alarms(server) == {"step": 0, "gap": 0}
    turn_round(server)
    assert posted(server) == [before[0], 0, *before[2:]] and expired(server) == 0
    server.terminate()
    kinds = verify(server.data).totals["kinds"]
    assert 8 not in kinds and 9 not in kinds


def test_the_clock_put_right_while_it_runs_ends_the_alarm(new_server: NewServer, shim: Shim) -> None:
    server = new_server(environment=shim.environment()).start()
    before = shop(server)
    server.kill()
    shim.step_clock(YEAR_AND_A_BIT_US)
    server.start()
    wait_for(lambda: "the clock jumped ahead" in server.log(), server)
    shim.step_clock(2 * DAY_US)  # the service may have been down for two days: what a start would have believed
    wait_for(lambda: alarms(server) == {"step": 0, "gap": 0}, server)
    wait_for(lambda: "the clock is right again" in server.log(), server)
    turn_round(server)
    assert posted(server) == before and expired(server) == 0
    entry = server.stub.EarnPoints(till.earn("new", at=till.now_us() + 2 * DAY_US), timeout=60).entry
    assert abs(entry.create_time.seconds - time.time() - 2 * 86_400) < CLOSE_S


def test_a_right_clock_after_a_long_time_is_accepted_by_one_word(new_server: NewServer, shim: Shim) -> None:
    """Off for 6 days: nothing to say. Off for 400: reads go on, tills are ahead of a time that goes on from the last entry; --accept-time,
    and what is due expires."""
    server = new_server(environment=shim.environment()).start()
    before = shop(server)
    server.kill()
    shim.step_clock(6 * DAY_US)
    server.start()
    assert alarms(server) == {"step": 0, "gap": 0}
    server.stub.EarnPoints(till.earn("new", at=till.now_us() + 6 * DAY_US), timeout=60)
    server.kill()
    shim.step_clock(YEAR_AND_A_BIT_US)
    server.start()
    assert posted(server) == before
    with pytest.raises(grpc.RpcError) as refused:
        server.stub.EarnPoints(till.earn("late", at=till.now_us() + YEAR_AND_A_BIT_US), timeout=60)
    reason, facts = till.reason_of(refused.value)
    assert (reason, facts["field"]) == ("FIELD_INVALID", "sent_time")
    server.terminate()
    server.arguments = ACCEPT
    server.start()
    assert alarms(server) == {"step": 0, "gap": 0}
    wait_for(lambda: server.metrics()['ledger_expired_points_total{wallet="points"}'] == sum(before) + 10 + 50, server)
    server.stub.EarnPoints(till.earn("late", at=till.now_us() + YEAR_AND_A_BIT_US), timeout=60)
    server.kill()
    server.arguments = ACCEPT[:-1]  # accepted is accepted: the journal has gone on from there
    server.start()
    assert alarms(server) == {"step": 0, "gap": 0}


def test_a_step_while_it_runs_stops_the_ticks_until_it_is_gone(new_server: NewServer, shim: Shim) -> None:
    server = new_server(environment=shim.environment()).start()
    before = shop(server)
    shim.step_clock(YEAR_AND_A_BIT_US)
    wait_for(lambda: alarms(server) == {"step": 1, "gap": 0}, server)
    wait_for(lambda: "the clock jumped ahead" in server.log(), server)
    turn_round(server)
    assert posted(server) == before and expired(server) == 0
    assert server.get("/healthz"), "business goes on"
    entry = server.stub.EarnPoints(till.earn("new"), timeout=60).entry
    assert abs(entry.create_time.seconds - time.time()) < CLOSE_S
    server.restart(kill=True)  # the clock is still wrong: the start finds the same
    assert alarms(server) == {"step": 0, "gap": 1}
    assert posted(server) == before and expired(server) == 0
    shim.step_clock(0)
    wait_for(lambda: alarms(server) == {"step": 0, "gap": 0}, server)
    turn_round(server)
    assert posted(server) == before and expired(server) == 0
