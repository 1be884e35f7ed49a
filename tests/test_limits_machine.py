"""Generated limits over a ledger that lives: the core and the oracle judge, count, mark, cut, refuse and move the same.

Few members, tills, devices and cashiers make many calls, so that bounds are met all the time; times jump over both edges of windows
(a twelfth of a sliding one, midnight where the store is, the ends of weeks and months); programmes are published in between, in which
limits have other names, bounds and answers, come and go. As in tests/test_state_machine.py, whose Pair it drives, the ledger may at any
step be replaced by a replay of its journal or by a snapshot with the journal behind it, and a follower keeps up with it.
"""

from __future__ import annotations

import functools
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from ledger.rules import CompiledProgram, compile_source, tree
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.limits_oracle import store_offset_s
from tests.oracle import Oracle, set_us
from tests.rules import generate
from tests.test_state_machine import (
    BALANCE,
    BURN,
    CAPTURE,
    COMMIT,
    DAY,
    EARN,
    ENROLL,
    IDENTITY_KEY,
    RELEASE,
    RESERVE,
    RETURN,
    SECOND,
    SEED,
    START,
    Pair,
    memory_file,
)

SET_RUNG, SET_SEGMENTS = 24, 17
HAND = {"operator": "anna", "reason": "ticket 7"}
# Midnight is at another moment in each of the stores; the last one the programme does not know.
STORES = ["waw", "waw", "waw", "nyc", "tok", "far"]
ZONES = {"waw": "Europe/Warsaw", "nyc": "America/New_York", "tok": "Asia/Tokyo"}
# By store. A programme may move one to another region, or out of all.
REGIONS = [{"waw": "east", "nyc": "west"}, {"waw": "east", "nyc": "west", "tok": "east"}, {"waw": "west", "nyc": "west"},
           {"waw": "east", "nyc": "west", "tok": "far east"}]
SOURCE = """\
programme: Limits
currency: EUR
zone: Europe/Warsaw
anonymous_accounts: true
unknown_store: accept
max_age: 400 days
wallets: [{name: points, scale: 1}, {name: bonus, scale: 1}]
stores: %s
catalogue: [{sku: milk, category: dairy}]
segments: %s
rules:
  - {name: Base, for_every_full: 1.00, give: 1}
  - {name: More, for_every_full: 2.00, give: 3, to_wallet: bonus}
  - {name: Line, lines: {category: dairy}, for_every_full: 1.00, give: 2, per: line}
burn: [{name: Points, share: 100, one_point_pays: 0.10}]
limits: %s
"""


def tamed(row: dict) -> dict:
    """A generated limit that leaves some life, and has an answer that the oracle knows."""
    row = dict(row)
    # `challenge` and `review` wait for somebody: they come when the oracle has them.
    row["then"] = {"challenge": "refuse", "review": "mark"}.get(row["then"], row["then"])
    return row


OF_BACK = [["earns"], ["earns"], ["burns"], ["reservations"], ["reservations"], ["earns", "burns"], ["burns", "reservations"]]
PER_BACK = [["member"]] * 6 + [["store"], ["till", "hour"], ["cashier"], ["device", "store"], ["payment_card"], ["identifier"]]
PER_RETURN = [["member"], ["member", "hour"], ["store", "hour"], ["store"], ["till"], ["cashier"]]

OF_DISTANT = [["earns"], ["earns"], ["earns", "burns"], ["reservations", "burns"], ["refusals", "earns"], ["burns"]]
PER_DISTANT = [["member"], ["member"], ["device"], ["cashier"], ["payment_card"], ["device", "hour"], ["identifier"]]


@st.composite
def limits_of(draw: Any) -> list[dict]:
    rows = []
    for row in draw(generate.limit_lists(most=8)):
        row = tamed(row)
        if row["of"] in ("earns", ["earns"]) and row.get("measure", "count") in ("points", "count") and draw(st.booleans()):
            row["then"] = "reduce"
        if len(row["per"]) > 1 and draw(st.booleans()):
            row["per"] = [key for key in row["per"] if key != "hour"][:1] or row["per"]  # so that its counters are met
        if "at_most" in row and row["window"] != "receipt":
            low = {"points": 20, "money": 30}.get(row.get("measure", "count"), 1 + (row["then"] == "refuse"))
            row["at_most"] = draw(st.integers(low, 3 * low + 2), label="at_most")
        elif row.get("measure") == "quantity":
            row["at_most"] = draw(st.sampled_from([0, 1, 2]))
        elif row.get("measure") in ("money", "points") and "at_most" in row:
            row["at_most"] = draw(st.sampled_from([5, 20]))
        elif "at_most" in row and row["then"] == "refuse":
            row["then"] = "mark"  # nothing at all would happen
        if "at_most_means" in row:
            row |= {"at_most_means": draw(st.sampled_from([0.5, 1, 2.5])), "after": 2}
        if row.get("rung") and draw(st.integers(0, 2)):
            row["lasts"] = draw(st.sampled_from(["1 minute", "36 hours"]))
        rows.append(row)
    if draw(st.integers(0, 3)):  # those that give back are rare among all, and returns are what they are for
        rows.append({"name": "Gives back", "of": draw(st.sampled_from(OF_BACK)), "per": draw(st.sampled_from(PER_BACK)),
                     "window": draw(st.sampled_from(["day", "week", "month", "ever"])), "gives_back": True,
                     "measure": draw(st.sampled_from(["count", "count", "points"])), "at_most": draw(st.sampled_from([1, 2, 3, 4, 20])),
                     "then": draw(st.sampled_from(["mark", "mark", "refuse"]))})
        if draw(st.integers(0, 2)) == 0:
            rows[-1] |= {"segments": draw(generate.some(generate.SEGMENTS))}
        if draw(st.integers(0, 3)) == 0:
            rows[-1] |= {"of": "earns", "measure": "money", "at_most": draw(st.sampled_from([10, 30]))}
    if draw(st.booleans()):  # and so are those of returns, which come back in a store of another day
        rows.append({"name": "Returns", "of": "returns", "per": draw(st.sampled_from(PER_RETURN)), "window": draw(st.sampled_from(
            ["day", "day", "month", "10 minutes"])), "measure": draw(st.sampled_from(["count", "points", "money"])),
                     "at_most": draw(st.sampled_from([1, 2, 20])), "then": draw(st.sampled_from(["mark", "mark", "refuse"]))})
    if draw(st.booleans()):
        window, of = draw(st.sampled_from(["day", "week", "10 minutes", "24 hours"])), draw(st.sampled_from(OF_DISTANT))
        rows.append({"name": "Distant", "of": of, "per": draw(st.sampled_from(PER_DISTANT)), "window": window, "measure": "regions",
                     "at_most": draw(st.sampled_from([1, 1, 2])), "then": draw(st.sampled_from(["mark", "mark", "refuse"]))})
    return different(rows)


def different(rows: list[dict]) -> list[dict]:
    """Without those that say what another one says."""
    alike: dict[str, dict] = {}
    for row in rows:
        said = {key: sorted(value) if isinstance(value, list) else [value] for key, value in row.items() if key != "name"}
        alike.setdefault(str(sorted({"measure": ["count"], **said}.items())), row)
    return list(alike.values())


@functools.lru_cache(maxsize=500)
def compiled(rows: str, division: int) -> CompiledProgram:
    """division: of the stores into regions, a place in REGIONS."""
    stores = [{"store": store, "zone": zone} | ({"region": REGIONS[division][store]} if store in REGIONS[division] else {})
              for store, zone in ZONES.items()]
    return compile_source((SOURCE % (json.dumps(stores), json.dumps(generate.SEGMENTS), rows)).encode())


class LimitedPair(Pair):
    """A core and an oracle under a programme with limits."""

    def begin_with(self, rows: list[dict], division: int = 0, **sizes: int) -> None:
        self.folder, self.ids = None, {}
        self.compiled = compiled(json.dumps(rows), division)
        self.sizes = {"members_max": 60, "ids_max": 5000, "reservations_max": 100} | sizes
        self.now = START
        self.core = LocalLedger(self.compiled.image, self.compiled.source, self.now, identity_key=IDENTITY_KEY, **self.sizes)
        self.oracle = Oracle(self.compiled.program, IDENTITY_KEY, self.now, **self.sizes)
        self.checked = 1
        self.files = [memory_file(self) for _ in range(4)]
        self.snapshots: list[tuple[Path, int]] = []
        self.follower = LocalLedger.replay(self.core.entries(), identity_key=IDENTITY_KEY, **self.sizes)
        self.followed = 1
        self.save()
        self.reloaded = False
        self.requests = self.receipts = 0

    def publish(self, rows: list[dict], division: int = 0) -> None:
        self.compiled = compiled(json.dumps(rows), division)
        self.core.publish(self.compiled.image, self.compiled.source, self.now)
        self.oracle.publish(self.compiled.program, self.now)

    def stamped(self, request: Any) -> Any:
        self.requests += 1
        request.request_id = f"request-{self.requests:08d}"
        set_us(request.sent_time, self.now)
        return request

    def receipt(self, total: int, store: str = "waw", till: str = "1", ago: int = 0, lines: Any = None) -> Any:
        """lines: sku, minor units and thousandths of each."""
        self.receipts += 1
        day = datetime.fromtimestamp((self.now - ago) // SECOND, UTC)
        receipt = pb.Receipt(currency_code="EUR", total_minor=total, key=pb.ReceiptKey(
            store=store, till=till, business_day=int(f"{day:%Y%m%d}"), number=f"n{self.receipts}"))
        for sku, amount, quantity in lines or ():
            receipt.lines.add(sku=sku, amount_minor=amount, quantity_milli=quantity, category="dairy" if sku == "milk" else "")
        if ago:
            set_us(receipt.purchase_time, self.now - ago)
        return receipt

    def set_segments(self, number: int, add: list[str], remove: list[str]) -> None:
        change = admin.SegmentChange(member=pb.MemberRef(member_id=number), add=add, remove=remove)
        request = self.stamped(admin.SetSegmentsRequest(changes=[change], **HAND))
        code, data, _ = self.core.call(SET_SEGMENTS, request.SerializeToString(), self.now)
        answer, expected = admin.SetSegmentsResponse.FromString(data), self.oracle.set_segments(request, self.now)
        assert code == 0 and answer.results[0].entry.sequence == expected.results[0].entry.sequence

    def check_stats(self) -> None:
        stats = self.core.stats()
        assert (stats["sequence"], stats["members"]) == (self.oracle.sequence, len(self.oracle.members))

    def check_limits(self) -> None:
        self.follow()
        self.check_journal()
        assert int.from_bytes(self.core.facts_digest(), "little") == self.oracle.digest()
        self.check_stats()


AMOUNTS = [0, 99, 100, 250, 500, 1000, 3000]
AGO = [0] * 6 + [SECOND, 30 * SECOND, 3600 * SECOND, DAY, 2 * DAY, 8 * DAY, 40 * DAY]
REFS = [{"card": "a"}, {"card": "a"}, {"card": "b"}, {"phone": "+48600700801"}, {"member_id": 1}, {"member_id": 2}, {"app": "new"}]
WAYS = [EARN, EARN, EARN, EARN, BURN, BURN, RESERVE, COMMIT, COMMIT, CAPTURE, RELEASE, ENROLL, BALANCE, RETURN, RETURN, RETURN]
COMMANDS = st.tuples(
    st.sampled_from(WAYS), st.sampled_from(REFS), st.sampled_from(AMOUNTS), st.sampled_from([1, 2, 5, 20, 400]), st.sampled_from(AGO),
    st.sampled_from(STORES), st.sampled_from(["1", "2"]), st.integers(0, 127))


DIVISIONS = st.integers(0, len(REGIONS) - 1)


class Limited(LimitedPair, RuleBasedStateMachine):
    """One pair under generated limits."""

    @initialize(rows=limits_of(), division=DIVISIONS)
    def open(self, rows: list[dict], division: int) -> None:
        self.begin_with(rows, division)
        self.sent: list[tuple[int, Any]] = []
        self.keys: list[Any] = [pb.ReceiptKey(store="waw", till="1", business_day=20260320, number="nobody's")]
        for ref in ({"card": "a"}, {"card": "b"}):  # somebody to begin with, who has points
            self.call(ENROLL, self.stamped(pb.EnrollMemberRequest(identifiers=[pb.MemberRef(**ref)])))
            self.call(11, self.stamped(admin.AdjustPointsRequest(member=pb.MemberRef(**ref), points=900, **HAND)))

    def request(self, said: tuple[Any, ...]) -> tuple[int, Any]:
        """A request that is right in itself, of the dice's choice."""
        method, ref, total, points, ago, store, till, bits = said
        origin = pb.Origin()
        origin.device = ("phone", "phone", "phone", "kiosk")[bits & 3]
        origin.cashier = ("7", "7", "8", "")[bits >> 2 & 3]
        if bits & 16:
            origin.payment_card, origin.partner = "token", "partner"
        if method == RETURN:
            if bits & 64:
                origin.store = store
            if bits & 32:
                origin.till = till
            key = self.keys[-1 - (points + total) % min(8, len(self.keys))]
            return method, self.stamped(pb.ReturnReceiptRequest(receipt_key=key, origin=origin))
        keyed = method in (EARN, COMMIT) or (method in (BURN, CAPTURE) and bits & 32)
        if not keyed and bits & 64:
            origin.store, origin.till = store, till
        member = pb.MemberRef(**ref)
        lines = [("milk", total, 1500), ("bread", 0, 500 * (bits & 3))] if bits & 32 else None
        active = [r for r in self.oracle.reservations.values() if r.state == 1]
        if method in (CAPTURE, RELEASE):
            if not active:
                method = RESERVE
            else:
                member = pb.MemberRef(member_id=active[0].member)
        if method == EARN:
            made: Any = pb.EarnPointsRequest(receipt=self.receipt(total, store, till, ago, lines))
        elif method == COMMIT:
            made = pb.CommitReceiptRequest(receipt=self.receipt(total, store, till, ago, lines))
            if bits & 2:
                made.burn.points = points
        elif method == BURN:
            made = pb.BurnPointsRequest(points=points, wallet="bonus" if bits & 2 else "")
        elif method == RESERVE:
            made = pb.ReservePointsRequest(points=points)
            made.ttl.seconds = 86_400
        elif method == CAPTURE:
            made = pb.CaptureReservationRequest(reservation_id=active[0].id, points=points if bits & 2 else 0)
        elif method == RELEASE:
            made = pb.ReleaseReservationRequest(reservation_id=active[0].id)
        elif method == ENROLL:
            made = pb.EnrollMemberRequest(identifiers=[pb.MemberRef(card=f"card-{self.requests}")])
        else:
            made = pb.GetBalanceRequest()
        if method != ENROLL:
            made.member.CopyFrom(member)
        if method in (BURN, CAPTURE) and keyed:
            made.receipt_key.CopyFrom(self.receipt(0, store, till).key)
            if bits & 8:  # what was bought just now
                made.receipt_key.CopyFrom(self.keys[-1])
            self.keys.append(made.receipt_key)
        if method in (EARN, COMMIT):
            self.keys.append(made.receipt.key)
        if method in (BURN, RESERVE) and ago:
            set_us(made.purchase_time, self.now - ago)
        if method != RELEASE:
            made.origin.CopyFrom(origin)
        return method, made if method == BALANCE else self.stamped(made)

    def command(self, said: tuple[Any, ...]) -> None:
        method, request = self.request(said)
        if method != BALANCE:
            self.sent.append((method, request))
        self.call(method, request)
        self.check_limits()

    @rule(all_said=st.lists(COMMANDS, min_size=1, max_size=6))
    def commands(self, all_said: list[tuple[Any, ...]]) -> None:
        for said in all_said:
            self.command(said)

    @rule(said=COMMANDS, times=st.integers(3, 9), step=st.sampled_from([0, 0, 7 * SECOND]))
    def the_same_at_once(self, said: tuple[Any, ...], times: int, step: int) -> None:
        self.the_same_again(said, times, step)

    @rule(said=COMMANDS, times=st.integers(2, 8), step=st.sampled_from([0, SECOND, 5 * SECOND, 50 * SECOND]))
    def the_same_again(self, said: tuple[Any, ...], times: int, step: int) -> None:
        """Up to a bound and over it: new commands that differ in nothing but their ids."""
        for _ in range(times):
            self.command(said)
            self.now += step

    @rule(all_said=st.lists(COMMANDS, min_size=1, max_size=6))
    def batch(self, all_said: list[tuple[Any, ...]]) -> None:
        calls = [self.request(said) for said in all_said if said[0] not in (BALANCE, CAPTURE, RELEASE)]
        if calls:
            self.sent += calls
            self.call_batch(calls)

    @rule(said=COMMANDS.filter(lambda said: said[0] in (EARN, COMMIT, BURN)), times=st.integers(1, 5),
          later=st.sampled_from([0, 0, SECOND, DAY]), where=st.sampled_from(STORES))
    def buy_and_give_back(self, said: tuple[Any, ...], times: int, later: int, where: str) -> None:
        """What a counter takes in and gives back again: the bound is as far as before, where it does."""
        for _ in range(times):
            self.command((*said[:-1], said[-1] | 32))
            self.now += later
            request = self.stamped(pb.ReturnReceiptRequest(receipt_key=self.keys[-1], origin=pb.Origin(cashier=["7", "8"][times & 1])))
            if said[-1] & 64:
                request.origin.store = where
            self.sent.append((RETURN, request))
            self.call(RETURN, request)
            self.check_limits()

    @rule(number=st.integers(1, 2), times=st.integers(1, 4), points=st.sampled_from([1, 5, 20]), expires=st.booleans())
    def hold_and_let_go(self, number: int, times: int, points: int, expires: bool) -> None:
        """What reservations had counted is there again, and is counted again."""
        for ends in (True, False):
            for _ in range(times):
                self.call(RESERVE, self.stamped(pb.ReservePointsRequest(
                    member=pb.MemberRef(member_id=number), points=points, ttl={"seconds": 60}, origin=pb.Origin(store="waw", till="1"))))
                self.check_limits()
            if ends and expires:
                self.now += 61 * SECOND
                self.post_ticks()
            for held in self.oracle.active(number) if ends and not expires else ():
                self.call(RELEASE, self.stamped(pb.ReleaseReservationRequest(
                    member=pb.MemberRef(member_id=number), reservation_id=held.id)))
        self.check_limits()

    @rule(number=st.integers(1, 2), times=st.integers(1, 4), segment=st.sampled_from(["", *generate.SEGMENTS]), put=st.booleans())
    def give_back_what_was_bought_yesterday(self, number: int, times: int, segment: str, put: bool) -> None:
        """It leaves yesterday's counter and not today's, by the segments of today."""
        sold = []
        for day in range(2):
            for _ in range(times):
                request = self.stamped(pb.EarnPointsRequest(member=pb.MemberRef(member_id=number), receipt=self.receipt(1000)))
                self.call(EARN, request)
                sold.append(request.receipt.key)
            if day == 0:
                self.now += DAY
        if segment:
            self.set_segments(number, [segment] if put else [], [] if put else [segment])
        for key in (sold[0], sold[-1]):
            self.call(RETURN, self.stamped(pb.ReturnReceiptRequest(receipt_key=key, origin=pb.Origin(cashier="9"))))
        if segment:
            self.set_segments(number, [] if put else [segment], [segment] if put else [])
        for _ in range(2):
            self.call(EARN, self.stamped(pb.EarnPointsRequest(member=pb.MemberRef(member_id=number), receipt=self.receipt(1000))))
            self.check_limits()

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data: Any) -> None:
        """Whatever it came to, it is told again and counts nothing."""
        self.call(*data.draw(st.sampled_from(self.sent[-20:])))

    @precondition(lambda self: any(member.rung for member in self.oracle.members))
    @rule()
    def forgive(self) -> None:
        """Whoever was moved is let in again, so that life goes on."""
        for member in self.oracle.members:
            if member.rung:
                self.call(SET_RUNG, self.stamped(admin.SetRungRequest(member=pb.MemberRef(member_id=member.number), rung=1, **HAND)))

    @precondition(lambda self: self.oracle.members)
    @rule(number=st.integers(1, 3), rung=st.sampled_from([1, 2, 3, 4, 5]), lasts=st.sampled_from([60, 60, 3600, None]))
    def set_rung(self, number: int, rung: int, lasts: int | None) -> None:
        request = self.stamped(admin.SetRungRequest(member=pb.MemberRef(member_id=number), rung=rung, **HAND))
        if lasts is not None and rung != 1:
            request.lasts.seconds = lasts
        self.sent.append((SET_RUNG, request))
        self.call(SET_RUNG, request)

    @precondition(lambda self: self.oracle.members)
    @rule(number=st.integers(1, 2), name=st.sampled_from(generate.SEGMENTS), put=st.booleans())
    def segments(self, number: int, name: str, put: bool) -> None:
        if number <= len(self.oracle.members):
            self.set_segments(number, [name] if put else [], [] if put else [name])

    @precondition(lambda self: self.oracle.members)
    @rule(number=st.integers(1, 3), points=st.sampled_from([500, -100_000]))
    def adjust(self, number: int, points: int) -> None:
        """Points to live on; or more taken than there are, a refusal that no limit counts, because a person did it."""
        request = admin.AdjustPointsRequest(member=pb.MemberRef(member_id=number), points=points, **HAND)
        self.call(11, self.stamped(request))

    @rule(rows=limits_of(), keep=st.integers(0, 3), division=DIVISIONS)
    def publish_others(self, rows: list[dict], keep: int, division: int) -> None:
        """Other limits; those that stay have other names, bounds and answers, and their counters go on. Stores move between regions."""
        stay = []
        for row in self.rows()[:keep]:
            row = {**row, "name": f"Kept {len(stay)} of {self.now}"}
            if row["then"] in ("mark", "shadow"):
                row["then"] = "shadow" if row["then"] == "mark" else "mark"
                if row["then"] == "shadow":
                    row.pop("rung", None), row.pop("lasts", None)
            recent = row["window"] in generate.SPANS and row.get("measure") in tree.DIFFERENT  # at most 12
            if "at_most" in row and row["window"] != "receipt" and not (recent and row["at_most"] == 12):
                row["at_most"] += 1
            stay.append(row)
        names = {row["name"] for row in stay}
        self.publish(different(stay + [row for row in rows if row["name"] not in names]), division)

    def rows(self) -> list[dict]:
        text = self.compiled.source.decode()
        return json.loads(text[text.index("limits: ") + 8:])

    @rule(more=st.sampled_from([1, SECOND, 5 * SECOND, 60 * SECOND, 600 * SECOND, 3600 * SECOND, DAY, 9 * DAY, 35 * DAY, 70 * DAY]))
    def time_goes_on(self, more: int) -> None:
        self.now += more

    @rule(window_s=st.sampled_from([60, 600, 5400, 3600, 86_400]), buckets=st.sampled_from([1, 11, 12, 13, 14]),
          at=st.sampled_from([-1, 0, SECOND]))
    def time_goes_to_the_edge_of_a_bucket(self, window_s: int, buckets: int, at: int) -> None:
        bucket = window_s // 12 * SECOND
        self.now = max(self.now, (self.now // bucket + buckets) * bucket + at)

    @rule(store=st.sampled_from(STORES), which=st.sampled_from(["day", "week", "month"]), at=st.sampled_from([-SECOND, -1, 0, SECOND]),
          windows=st.sampled_from([1, 1, 2]))
    def time_goes_to_midnight(self, store: str, which: str, at: int, windows: int) -> None:
        """Of the store: to where the next window begins, or the one behind it, when the last one is dead."""
        offset = store_offset_s(self.oracle.program, store, self.now)
        day = datetime.fromtimestamp(self.now // SECOND + offset, UTC).replace(hour=0, minute=0, second=0)
        for _ in range(windows):
            if which == "day":
                day += timedelta(days=1)
            elif which == "week":
                day += timedelta(days=7 - day.weekday())
            else:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
        self.now = max(self.now, (int(day.timestamp()) - offset) * SECOND + at)

    @rule(how=st.sampled_from(["replay", "snapshot", "snapshot", "follower", "digest", "tick"]), age=st.integers(0, 2))
    def begin_again(self, how: str, age: int) -> None:
        age = min(age, len(self.snapshots) - 1)
        if how == "replay":
            self.replay()
        elif how == "snapshot":
            self.reload(age)
        elif how == "follower":
            self.restart_follower(age)
        elif how == "digest":
            self.post_digest()
        else:
            self.post_ticks()

    @invariant()
    def all_is_the_same(self) -> None:
        self.check_limits()

    def teardown(self) -> None:
        if hasattr(self, "core"):
            self.post_digest()
            self.replay()
            self.follow()


def run(examples: int, steps: int) -> None:
    print(f"DAYBOOK_SEED={SEED}")
    run_state_machine_as_test(seed(SEED)(Limited), settings=settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)))


def test_the_core_limits_what_the_oracle_says():
    run(examples=300, steps=40)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_core_limits_what_the_oracle_says_for_long():
    run(examples=4000, steps=60)
