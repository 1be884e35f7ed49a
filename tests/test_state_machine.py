"""The core and the oracle, driven side by side by free commands: answers, balances, digest and journal agree after every step.

The commands are real protobuf requests through the real codec. Clocks jump, ids repeat with the same and with other content,
single fields go wrong, reservations expire, tables are tiny. A follower applies the same journal, meets the digest after every step and
writes snapshots as it goes. At any step the ledger may be replaced by a replay of its journal, or by a snapshot of any age and the journal
behind it; with runs of dropped keys beside it, or without.
"""

from __future__ import annotations

import functools
import os
import random
import tempfile
import weakref
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from ledger._probe import entry_sections, section_read

from ledger import limits
from ledger._snapshot import SnapshotUnusable
from ledger.rules import CompiledProgram, compile_source
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.oracle import METHODS, Oracle, Refused, answer_type, set_us

SECOND = 1_000_000
DAY = 86_400 * SECOND
IDENTITY_KEY = bytes(range(16))
START = int(datetime(2026, 3, 20, 22, 30, tzinfo=UTC).timestamp()) * SECOND
EARN, BURN, RESERVE, CAPTURE, RELEASE, COMMIT, ENROLL, BALANCE, OPERATION = range(1, 10)
ADJUST, LINK, UNLINK = 11, 12, 13
RETURN = 30
BATCH_POST, IN_BATCHES = 14, (*range(EARN, BALANCE), RETURN)

SNAPSHOT_ENTRIES = 12  # the follower writes one by itself
REMEMBERED = ("request_ids", "receipt_keys", "bytes_request_ids", "bytes_receipt_keys")
COMPACTED = ("bytes_lots", "bytes_reservations")  # loading a snapshot leaves no slack: these may become smaller

SOURCE = """\
programme: State machine
currency: EUR
zone: {zone}
anonymous_accounts: {anonymous}
max_age: 400 days
wallets:
  - name: points
  - name: bonus
    points_live: 10 days of inactivity
  - name: stamps
    scale: 1
funders:
  brewery: 7
rules:
  - name: base
    for_every_full: 1.00
    give: {base}
    points_live: 2 months
  - name: quick
    for_every_full: 2.00
    give: 1
    points_live: 3 days
  - name: bonus
    for_every_full: 0.50
    give: 3
    to_wallet: bonus
    available_after: 1 days
    funder: brewery
  - name: bonus of the chain
    for_every_full: 4.00
    give: 7
    to_wallet: bonus
    points_live: 10 days
    available_after: 1 days
  - name: stamps
    for_every_full: 10.00
    give: 0.5
    to_wallet: stamps
    points_live: forever
{rules}channels: [app]
earn_on_points_paid: true
{more}burn:
  - {{name: Points, share: 100, one_point_pays: 0.01}}
  - {{name: Bonus, wallet: bonus, share: 50, one_point_pays: 0.10}}
"""
# What rules keep of members and of all: caps, a budget, and the windows of tiers. Every counter of a member is made by the first receipt or
# together with another one, so none is old when one is made: which the ledger drops then is not the oracle's.
KEEPING_RULES = """\
  - name: capped
    for_every_full: 1.00
    give: 2
    points_live: 5 days
    caps: [{points: 40, per: month}, {uses: 6, per: month}]
  - name: budget
    for_every_full: 5.00
    give: 1.5
    to_wallet: stamps
    points_live: 4 days
    campaign: pot
  - name: bonus at once
    for_every_full: 3.00
    give: 2
    to_wallet: bonus
"""
KEEPING = """\
campaigns:
  pot: {points: 40, uses: 20}
tiers:
  levels:
    - {name: base}
    - {name: silver, reach: {in: 30 days, receipts: 3}}
    - {name: gold, reach: {any: [{in: calendar month, spent: 60.00}, {in: lifetime, receipts: 9}]}}
  downgrade: to level
"""

CARDS = ["2900000000017", "2900000000024", "2900000000031", "2900000000048"]
PHONES = ["+48600700801", "+48 600-700-801", "+48 (600) 700.802"]
EMAILS = ["ann@example.com", " Ann@Example.COM ", "bob@example.com"]
# Where a receipt is given back: a store or till beside those of its key is allowed.
BACK_AT = [{"store": "S1"}, {"store": "S2", "till": "9"}, {"till": "9"}, {"device": "d", "cashier": "c"}, {"store": "x" * 17},
           {"till": "\x00"}]
REFS = ([{"card": card} for card in CARDS] + [{"phone": phone} for phone in PHONES] + [{"email": email} for email in EMAILS]
        + [{"app": "a-1"}, {"app": CARDS[0]}])

# What a mutated field may become: for the most part wrong, or right but different.
TEXTS = ["", "x", "\x00", "a\x85b", "points", "bonus", "stamps", "EUR", "eur", "S1", "\u00e9" * 9, "+48600700801", "+0123456789", "+123456",
         "a@b", "@ab", "a@b@c", "request-00000000", "request 00000000", *("x" * size for size in (16, 17, 32, 33, 64, 65, 129)), *CARDS[:2]]
NUMBERS = [0, 1, -1, 2, 3, 5, 100, 999, 20260320, 20260230, 20240101, 10**9, 10**9 + 1, 10**12, 10**12 + 1,
           2**31 - 1, 2**31, 2**63 - 1, -(2**63)]
NANOS = [0, 1, 999, 1000, 999_999_999, 1_000_000_000, -1]
SECONDS = [0, 1, 60, 1_209_600, 1_209_601, -1, 946_684_799, 946_684_800, 2**40, -(2**62), 2**62]


def spots(message: Any) -> list[tuple[Any, FieldDescriptor]]:
    """Every field of a message and of the messages in it, but for what only the follower answers."""
    found = []
    for descriptor in message.DESCRIPTOR.fields:
        if descriptor.name in ("as_of_time", "only_as_quoted"):  # the latter says nothing where there is no token
            continue
        found.append((message, descriptor))
        if descriptor.message_type is not None:
            if descriptor.is_repeated:
                for element in getattr(message, descriptor.name):
                    found += spots(element)
            elif message.HasField(descriptor.name):
                found += spots(getattr(message, descriptor.name))
    return found


def mutate(data: Any, message: Any) -> None:
    """Change one field."""
    where, descriptor = data.draw(st.sampled_from(spots(message)), label="field")
    name = descriptor.name
    if descriptor.is_repeated:
        elements = getattr(where, name)
        act = data.draw(st.sampled_from(["drop", "double", "empty", "add"]))
        if act == "drop" and elements:
            del elements[-1]
        elif act == "double" and elements:
            elements.append(elements[0])
        elif act == "empty":
            del elements[:]
        elif descriptor.type == FieldDescriptor.TYPE_STRING:
            elements.append(data.draw(st.sampled_from(TEXTS)))
        else:
            elements.add()
    elif descriptor.message_type is not None:
        if where.HasField(name):
            where.ClearField(name)
        else:
            getattr(where, name).SetInParent()
    elif descriptor.type == FieldDescriptor.TYPE_STRING:
        setattr(where, name, data.draw(st.sampled_from(TEXTS)))
    elif descriptor.type == FieldDescriptor.TYPE_BOOL:
        setattr(where, name, not getattr(where, name))
    elif descriptor.type == FieldDescriptor.TYPE_BYTES:
        setattr(where, name, data.draw(st.sampled_from([b"", b"x", bytes(limits.QUOTE_TOKEN_BYTES)])))
    elif name == "nanos":
        where.nanos = data.draw(st.sampled_from(NANOS))
    elif name == "seconds":
        where.seconds = data.draw(st.sampled_from([*SECONDS, *(where.seconds + more for more in (-1, 1, 301, 86_400))]))
    else:
        value = data.draw(st.sampled_from([*NUMBERS, getattr(where, name) + 1, getattr(where, name) - 1]))
        if descriptor.type == FieldDescriptor.TYPE_INT32:
            value = max(-(2**31), min(2**31 - 1, value))
        setattr(where, name, max(-(2**63), min(2**63 - 1, value)))


def error_of(status: Any) -> tuple[int, str, dict[str, str]]:
    """gRPC code, reason and metadata, without the parts that are words for people."""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info), status
    assert info.domain == "ledger.loyalty" and status.message
    return status.code, info.reason, {key: value for key, value in info.metadata.items() if key not in ("rule", "value")}


def postings(entry: bytes) -> list[tuple[int, int, int]]:
    """(account, wallet, points) of an entry."""
    section, found = (entry_sections(entry) or {}).get(2, b""), []
    while section:
        values, broken, more = section_read(section, ["byte", "varint", "signed"] * (len(found) + 1))
        assert not broken
        found.append(tuple(values[-3:]))
        if not more:
            break
    return found


def said_of_limits(entry: bytes) -> tuple[Any, Any]:
    """Sections LIMITS and RUNG of an entry: (cut, [(limit from 1, answer)]) and (from, to, until in s, limit from 1); None: not there."""
    sections, above, moved = entry_sections(entry) or {}, None, None
    if 32 in sections:
        values, broken, more = section_read(sections[32], ["varint"])
        while more:
            values, broken, more = section_read(sections[32], [*["varint", *["varint", "byte"] * (len(values) // 2 + 1)]])
        assert not broken
        above = values[0], list(zip(values[1::2], values[2::2], strict=True))
    if 33 in sections:
        values, broken, more = section_read(sections[33], ["byte", "byte", "varint", "varint"])
        assert not broken and not more
        moved = tuple(values)
    return above, moved


def memory_file(owner: object) -> Path:
    """A file in memory that lives as long as its owner: saving flushes, and a disk would make most of a run's time."""
    descriptor = os.memfd_create("snapshot")
    weakref.finalize(owner, os.close, descriptor)
    return Path(f"/proc/self/fd/{descriptor}")


@functools.cache
def compiled(zone: str, anonymous: bool, base: int, keeps: bool) -> CompiledProgram:
    """The machine's programme, one of a few."""
    return compile_source(SOURCE.format(zone=zone, anonymous=str(anonymous).lower(), base=base, rules=KEEPING_RULES if keeps else "",
                                        more=KEEPING if keeps else "").encode())


class Pair:
    """A core and an oracle that must not differ."""

    home: Path | None = None  # where folders of runs are made

    def begin(self, zone: str = "Europe/Warsaw", anonymous: bool = True, base: int = 5, runs: bool = False, keeps: bool = False,
              **sizes: int) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="runs-", dir=self.home) if runs else None
        self.ids = {"ids": self.folder.name} if self.folder else {}
        self.compiled = compiled(zone, anonymous, base, keeps)
        self.sizes = {"members_max": 60, "ids_max": 5000, "reservations_max": 100} | sizes
        self.now = START
        self.core = LocalLedger(self.compiled.image, self.compiled.source, self.now, identity_key=IDENTITY_KEY, **self.sizes, **self.ids)
        self.oracle = Oracle(self.compiled.program, IDENTITY_KEY, self.now, runs=runs, **self.sizes)
        self.checked = 1  # entries
        self.files = [memory_file(self) for _ in range(4)]  # the newest snapshots in turn, and last one for the way between
        self.snapshots: list[tuple[Path, int]] = []  # file and entries, the newest three
        self.follower = LocalLedger.replay(self.core.entries(), identity_key=IDENTITY_KEY, **self.sizes)
        self.followed = len(self.core.entries())
        self.save()
        self.reloaded = False
        self.requests = self.receipts = 0

    def call(self, method: int, request: Any, back: int = 0) -> Any:
        """One call to both; what they answer must be the same. The oracle's answer, or its refusal."""
        now = self.now - back
        code, data, _ = self.core.call(method, request.SerializeToString(), now)
        try:
            expected = self.oracle.call(method, request, now)
        except Refused as refusal:
            assert code != 0, f"{METHODS[method]} must be refused with {refusal.answer()}, was answered\n{request}"
            status = status_pb2.Status.FromString(data)
            assert error_of(status) == refusal.answer(), f"{METHODS[method]}: {status.message}; must be {refusal.answer()}\n{request}"
            assert status.code == code
            return refusal
        if code != 0:
            why = status_pb2.Status.FromString(data).message
            raise AssertionError(f"{METHODS[method]} was refused: {why}\n{request}\nmust be {expected}")
        answer = answer_type(method).FromString(data)
        if isinstance(expected, Refused):  # GetOperation of a remembered refusal
            assert error_of(answer.error) == expected.answer()
            return expected
        assert answer == expected, f"{METHODS[method]}\n{request}\nanswered\n{answer}\nmust be\n{expected}"
        return expected

    def call_batch(self, calls: list[tuple[int, Any]]) -> list[Any]:
        """A batch to the core and its commands one by one to the oracle: the same outcomes. What `call` would have returned for each."""
        fields = {field.number: field.name for field in pb.PostCommand.DESCRIPTOR.fields}  # by method
        batch = pb.BatchPostRequest(commands=[pb.PostCommand(**{fields[method]: request}) for method, request in calls])
        code, data = self.core.call_batch(BATCH_POST, batch.SerializeToString(), self.now)
        assert code == 0
        found = []
        for (method, request), result in zip(calls, pb.BatchPostResponse.FromString(data).results, strict=True):
            try:
                expected = self.oracle.call(method, request, self.now)
            except Refused as refusal:
                assert result.HasField("error"), f"{METHODS[method]} must be refused with {refusal.answer()}, was answered\n{request}"
                assert error_of(result.error) == refusal.answer(), f"{METHODS[method]}\n{request}"
                assert result.replayed == refusal.replayed
                found.append(refusal)
                continue
            assert result.HasField("entry"), f"{METHODS[method]} was refused: {result.error.message}\n{request}\nmust be {expected}"
            right = pb.PostResult(entry=expected.entry, replayed=expected.replayed)
            right.entry.ClearField("awards")
            if "reservation" in expected.DESCRIPTOR.fields_by_name and expected.HasField("reservation"):
                right.reservation.CopyFrom(expected.reservation)
            assert result == right, f"{METHODS[method]}\n{request}\nbecame\n{result}\nmust be\n{right}"
            found.append(expected)
        return found

    def post_ticks(self) -> None:
        before = len(self.core.entries())
        posted = self.core.tick(self.now)
        reservations, members = self.oracle.due(self.now)
        found = set()
        for entry in self.core.entries()[before:]:
            member = int.from_bytes(entry[16:20], "little")
            if reservations:
                assert entry[4] == 9
                reservation_id, = section_read(entry_sections(entry)[7], ["varint"])[0]
                assert reservation_id == reservations.pop(0)
                self.oracle.expire_reservation(reservation_id, self.now)
            else:
                assert entry[4] == 8 and member in members
                found.add(member)
                self.oracle.expire_lots(member, self.now)
        assert self.oracle.due(self.now) == ([], set()), "a whole round of ticks leaves nothing due"
        assert posted == len(self.core.entries()) - before

    def post_digest(self) -> None:
        self.core.write_digest(self.now)
        self.oracle.sequence += 1
        self.oracle.time_us = max(self.now, self.oracle.time_us)

    def replay(self) -> None:
        """The journal alone (with the runs, where there are some) makes the same ledger: the machine goes on with it."""
        self.core.close()
        replayed = LocalLedger.replay(self.core.entries(), identity_key=IDENTITY_KEY, **self.sizes, **self.ids)
        self.oracle.restart()
        self.oracle.limits.forget_look_ups()
        assert replayed.digest() == self.core.digest()
        told, now = self.core.stats(), replayed.stats()
        # Counted live, or as far as memory reaches.
        for name in ("entries_expired_lots", "entries_expired_reservations", *REMEMBERED, *(COMPACTED if self.reloaded else ())):
            told.pop(name), now.pop(name)
        assert now == told
        self.core = replayed
        self.reloaded = False

    def save(self) -> None:
        """The follower writes a snapshot of what it has applied, for `reload` at some later time."""
        if self.snapshots and self.snapshots[-1][1] == self.followed:
            return
        kept = self.snapshots[-2:]
        path = next(path for path in self.files[:3] if path not in [taken for taken, _ in kept])
        self.snapshots = [*kept, (path, self.followed)]
        self.follower.save(path)

    def follow(self) -> None:
        """The follower catches up; on its way it writes snapshots."""
        for entry in self.core.entries()[self.followed:]:
            assert self.follower.apply(entry) == 0
            self.followed += 1
            if self.followed >= self.snapshots[-1][1] + SNAPSHOT_ENTRIES:
                self.save()
        assert self.follower.digest() == self.core.digest()

    def restart_follower(self, age: int) -> None:
        path, count = self.snapshots[-1 - age]
        self.follower = LocalLedger.load(path, self.core.entries()[:count], identity_key=IDENTITY_KEY, **self.sizes)
        self.followed = count

    def reload(self, age: int, **other: int) -> None:
        """A snapshot and the journal behind it make the same ledger, also by way of tables of other sizes."""
        path, count = self.snapshots[-1 - age]
        entries = self.core.entries()
        between = LocalLedger.load(path, entries[:count], identity_key=IDENTITY_KEY, **(self.sizes | other))
        between.save(self.files[3])
        self.core.close()
        try:
            loaded = LocalLedger.load(self.files[3], entries[:count], identity_key=IDENTITY_KEY, **self.sizes, **self.ids)
        except SnapshotUnusable as error:
            assert self.oracle.has_gap(count), error
            self.replay()
            return
        assert not self.oracle.has_gap(count), "keys between the runs and the snapshot are missing"
        for entry in entries[count:]:
            assert loaded.apply(entry) == 0
        assert loaded.digest() == self.core.digest()
        told, now = self.core.stats(), loaded.stats()
        for name in ("entries_expired_lots", "entries_expired_reservations", *COMPACTED, *(REMEMBERED if self.folder else ())):
            told.pop(name), now.pop(name)
        assert now == told
        if self.folder:
            self.oracle.restart(count)
        self.oracle.limits.forget_look_ups()
        self.core = loaded
        self.reloaded = True

    def check_journal(self) -> None:
        entries = self.core.entries()
        assert len(entries) == self.oracle.sequence
        for sequence, (entry, before) in enumerate(zip(entries[self.checked:], entries[self.checked - 1:], strict=False), self.checked + 1):
            assert entry[8:16] and int.from_bytes(entry[8:16], "little") >= int.from_bytes(before[8:16], "little"), "time goes back"
            sums: dict[int, int] = {}
            for _, wallet, points in postings(entry):
                sums[wallet] = sums.get(wallet, 0) + points
            assert not any(sums.values()), "postings do not sum to zero"
            assert entry[6:8] == b"\0\0" or not postings(entry), "a refusal posts"
            assert said_of_limits(entry) == self.oracle.says.get(sequence, (None, None)), f"entry {sequence}"
        self.checked = len(entries)

    def check_state(self) -> None:
        assert int.from_bytes(self.core.facts_digest(), "little") == self.oracle.digest()
        stats = self.core.stats()
        assert (stats["sequence"], stats["members"], stats["identifiers"]) == (
            self.oracle.sequence, len(self.oracle.members), len(self.oracle.owners))
        assert (stats["request_ids"], stats["receipt_keys"]) == (self.oracle.ids.remembered, self.oracle.receipts.remembered)
        assert stats["lots"] == sum(len(member.lots) for member in self.oracle.members)

    def check_balances(self) -> None:
        for member in self.oracle.members:
            answer = self.call(BALANCE, pb.GetBalanceRequest(member=pb.MemberRef(member_id=member.number)))
            for wallet in answer.wallets:
                assert min(wallet.posted_points, wallet.pending_points, wallet.reserved_points, wallet.available_points) >= 0

    def check(self) -> None:
        self.follow()
        self.check_journal()
        self.check_state()
        self.check_balances()


class Ledgers(Pair, RuleBasedStateMachine):
    """One pair, driven freely."""

    @initialize(zone=st.sampled_from(["Europe/Warsaw", "America/Sao_Paulo", "UTC"]), anonymous=st.sampled_from([True, True, True, False]),
                members_max=st.sampled_from([60, 60, 60, 3]), ids_max=st.sampled_from([500, 500, 10, 6, 2]),
                reservations_max=st.sampled_from([100, 100, 3, 1]), runs=st.sampled_from([True, True, True, False]), keeps=st.booleans())
    def open(self, zone: str, anonymous: bool, members_max: int, ids_max: int, reservations_max: int, runs: bool, keeps: bool) -> None:
        self.begin(zone, anonymous, members_max=members_max, ids_max=ids_max, reservations_max=reservations_max, runs=runs, keeps=keeps)
        self.sent: list[tuple[int, Any]] = []  # every request, as it went out
        self.keys: list[Any] = []  # every receipt key
        self.odd = False  # something odd is in the request that is being made
        self.batched: list[tuple[int, Any, bool]] | None = None  # commands of the batch that is being made; True: a new one
        self.well_formed: list[tuple[int, Any]] = []  # those with nothing wrong in themselves: one change makes at most one fault
        for card in CARDS[:2]:  # so that there is something to do from the first step
            request = pb.EarnPointsRequest(request_id=f"opening--{card}", member=pb.MemberRef(card=card), receipt=pb.Receipt(
                key=pb.ReceiptKey(store="S0", till="1", business_day=20260320, number=card), currency_code="EUR", total_minor=3000))
            set_us(request.sent_time, self.now)
            self.call(EARN, request)
            self.keys.append(request.receipt.key)

    def send(self, data: Any, method: int, request: Any) -> None:
        """A new write, now and then with something wrong in it."""
        self.requests += 1
        request.request_id = f"request-{self.requests:08d}"
        set_us(request.sent_time, self.now - self.pick(data, [0, 0, 0, SECOND], [40 * DAY, -300 * SECOND, -301 * SECOND], "sent"))
        # What is odd may be wrong already: with a second fault it would be open which of them is told.
        odd, self.odd = self.odd, False
        if not odd and data.draw(st.integers(0, 15), label="mutate") == 15:
            mutate(data, request)
        back = self.pick(data, [0], [SECOND, DAY], "clock back")
        self.sent.append((method, request))
        if self.batched is not None:
            self.batched.append((method, request, True))
            return
        self.learn(method, request, self.call(method, request, back))

    def learn(self, method: int, request: Any, answer: Any) -> None:
        if not (isinstance(answer, Refused) and answer.row.name == "FIELD_INVALID"):
            self.well_formed.append((method, request))

    # --- parts of requests: right for the most part, else hardly a command would get far

    def pick(self, data: Any, usual: list[Any], odd: list[Any], label: str) -> Any:
        """One of the usual, one time in twelve one of the odd."""
        is_odd = data.draw(st.integers(0, 11)) == 11
        self.odd |= is_odd
        return data.draw(st.sampled_from(odd if is_odd else usual), label=label)

    def ref(self, data: Any) -> Any:
        """Anybody."""
        if data.draw(st.integers(0, 3)) == 0:
            return pb.MemberRef(member_id=data.draw(st.integers(1, len(self.oracle.members) + 1)))
        return pb.MemberRef(**data.draw(st.sampled_from(REFS)))

    def member(self, data: Any) -> Any:
        """Somebody who has an account, for the most part."""
        known = [ref for ref in map(lambda one: pb.MemberRef(**one), REFS) if self.oracle.find(ref)]
        known += [pb.MemberRef(member_id=member.number) for member in self.oracle.members[:3]]
        return self.pick(data, known or [self.ref(data)], [self.ref(data)], "member")

    def key(self, data: Any) -> Any:
        """A receipt key: a new one, or one of the last few."""
        self.receipts += self.pick(data, [1], [0], "same receipt")
        day = self.pick(data, [0, 0, 0, 1, -1, -30], [2, -400, -402], "business day")
        date = datetime.fromtimestamp((self.now + day * DAY) // SECOND, UTC)
        number = self.receipts - self.pick(data, [0, 0, 0, 1], [2, 3], "receipt before")
        till = self.pick(data, ["1"], ["2"], "till")
        self.keys.append(pb.ReceiptKey(store="S1", till=till, business_day=int(f"{date:%Y%m%d}"), number=f"n{number}"))
        return self.keys[-1]

    def purchase_time(self, data: Any, holder: Any, usual: list[int | None]) -> None:
        ago = self.pick(data, usual, [-300 * SECOND, -301 * SECOND, 400 * DAY, 401 * DAY], "bought")
        if ago is not None:
            set_us(holder.purchase_time, self.now - ago)

    def receipt(self, data: Any) -> Any:
        receipt = pb.Receipt(key=self.key(data), currency_code="EUR")
        self.purchase_time(data, receipt, [None, None, 0, 3600 * SECOND, 2 * DAY, 2 * DAY, 20 * DAY, 59 * DAY, 70 * DAY])
        amounts = data.draw(st.lists(st.sampled_from([0, 1, 49, 100, 199, 250, 999, 1000, 12_345]), max_size=4), label="amounts")
        for i, amount in enumerate(amounts):
            receipt.lines.add(sku=f"sku{i}", category="dairy" if i % 2 else "", quantity_milli=1000 * i, amount_minor=amount)
        if data.draw(st.booleans(), label="says more"):
            for line in receipt.lines[1:]:
                line.regular_amount_minor, line.weighed = data.draw(st.sampled_from([0, 300])), data.draw(st.booleans())
            receipt.tenders.add(name="cash", amount_minor=data.draw(st.sampled_from([0, 100])))
            receipt.channel = data.draw(st.sampled_from(["", "app"]))
            receipt.promo_codes.extend(data.draw(st.sampled_from([[], ["SPRING"], ["SPRING", "LATO"]])))
        receipt.total_minor = sum(amounts) if amounts else self.pick(data, [0, 99, 1000, 5000], [10**9, 10**12], "total")
        return receipt

    def wallet(self, data: Any) -> str:
        return self.pick(data, ["", "points", "bonus", "stamps"], ["none"], "wallet")

    def points(self, data: Any) -> int:
        return data.draw(st.one_of(st.integers(1, 9), st.integers(1, 60), st.integers(1, 400), st.sampled_from([10**12])), label="points")

    def reservation(self, data: Any) -> tuple[int, Any]:
        """A reservation's id, for the most part an active one with the member who holds it."""
        active = [r for r in self.oracle.reservations.values() if r.state == 1]
        chosen = self.pick(data, active or list(self.oracle.reservations.values()), list(self.oracle.reservations.values()), "reservation")
        if data.draw(st.integers(0, 19)) == 19:
            return data.draw(st.integers(1, self.oracle.sequence + 1)), self.member(data)
        return chosen.id, self.pick(data, [pb.MemberRef(member_id=chosen.member)], [self.member(data)], "holder")

    # --- what tills do

    @rule(data=st.data())
    def earn(self, data: Any) -> None:
        self.send(data, EARN, pb.EarnPointsRequest(member=self.ref(data), receipt=self.receipt(data)))

    @rule(data=st.data())
    def earn_again(self, data: Any) -> None:
        self.send(data, EARN, pb.EarnPointsRequest(member=self.member(data), receipt=self.receipt(data)))

    @rule(data=st.data())
    def burn(self, data: Any) -> None:
        request = pb.BurnPointsRequest(member=self.member(data), wallet=self.wallet(data), points=self.points(data))
        self.purchase_time(data, request, [None, None, 0, 3600 * SECOND, 2 * DAY])
        if data.draw(st.booleans()):
            request.receipt_key.CopyFrom(self.key(data))
        self.send(data, BURN, request)

    @rule(data=st.data())
    def reserve(self, data: Any) -> None:
        request = pb.ReservePointsRequest(member=self.member(data), wallet=self.wallet(data), points=self.points(data))
        self.purchase_time(data, request, [None, None, 0, 3600 * SECOND, 2 * DAY])
        ttl = self.pick(data, [None, 1, 60, 86_400, 5 * 86_400, 1_209_600], [1_209_601, 0], "ttl")
        if ttl is not None:
            request.ttl.seconds = ttl
        self.send(data, RESERVE, request)

    @precondition(lambda self: self.oracle.reservations)
    @rule(data=st.data())
    def capture(self, data: Any) -> None:
        reservation_id, member = self.reservation(data)
        request = pb.CaptureReservationRequest(member=member, reservation_id=reservation_id)
        request.points = data.draw(st.sampled_from([0, 0, 1, 2, 5, 20, 500]), label="captured")
        if data.draw(st.booleans()):
            request.receipt_key.CopyFrom(self.key(data))
        self.send(data, CAPTURE, request)

    @precondition(lambda self: self.oracle.reservations)
    @rule(data=st.data())
    def release(self, data: Any) -> None:
        reservation_id, member = self.reservation(data)
        self.send(data, RELEASE, pb.ReleaseReservationRequest(member=member, reservation_id=reservation_id))

    @precondition(lambda self: self.oracle.reservations)
    @rule(data=st.data())
    def ask_for_a_reservation_that_was_forgotten(self, data: Any) -> None:
        request = pb.ReleaseReservationRequest(member=self.member(data), reservation_id=data.draw(st.integers(1, self.oracle.sequence)))
        self.send(data, RELEASE, request)

    @rule(data=st.data())
    def commit(self, data: Any) -> None:
        request = pb.CommitReceiptRequest(member=self.member(data), receipt=self.receipt(data))
        ways = ["", "burn", "burn", "capture", "capture"] if self.oracle.reservations else ["", "burn"]
        pays = data.draw(st.sampled_from(ways), label="pays")
        if pays == "burn":
            request.burn.CopyFrom(pb.Burn(wallet=self.wallet(data), points=self.points(data)))
        elif pays:
            request.capture.reservation_id, member = self.reservation(data)
            request.capture.points = data.draw(st.sampled_from([0, 0, 1, 2, 5, 50, 500]))
            request.member.CopyFrom(member)
        self.send(data, COMMIT, request)

    @rule(data=st.data())
    def give_a_receipt_back(self, data: Any) -> None:
        """One of the last few, or of any age, or none that was posted; where it was bought, or elsewhere."""
        request = pb.ReturnReceiptRequest()
        request.receipt_key.CopyFrom(data.draw(st.sampled_from(self.keys[-5:] if data.draw(st.booleans()) else self.keys), label="receipt"))
        request.receipt_key.number += self.pick(data, [""], ["x"], "receipt of nobody")
        if data.draw(st.integers(0, 3)) == 0:
            request.origin.CopyFrom(pb.Origin(**data.draw(st.sampled_from(BACK_AT), label="where")))
        self.send(data, RETURN, request)

    @rule(data=st.data())
    def buy_and_give_back(self, data: Any) -> None:
        """What was just bought, while its points are there."""
        before = self.oracle.sequence
        getattr(self, data.draw(st.sampled_from(["earn_again", "commit", "burn"]), label="buys"))(data)
        if self.oracle.sequence > before:
            self.send(data, RETURN, pb.ReturnReceiptRequest(receipt_key=self.keys[-1]))

    @rule(data=st.data())
    def enroll(self, data: Any) -> None:
        refs = [self.ref(data)] + [pb.MemberRef(**one) for one in data.draw(st.lists(st.sampled_from(REFS), max_size=2))]
        self.send(data, ENROLL, pb.EnrollMemberRequest(identifiers=refs))

    @precondition(lambda self: self.oracle.members)
    @rule(data=st.data())
    def link(self, data: Any) -> None:
        """New identifiers for an old account, many now and then."""
        count = self.pick(data, [1, 2, 7], [8], "how many")
        refs = [self.member(data)] + [pb.MemberRef(card=f"card{self.requests}-{i}") for i in range(count)]
        self.send(data, ENROLL, pb.EnrollMemberRequest(identifiers=refs))

    # --- what people do by hand

    def by_hand(self, data: Any) -> dict[str, str]:
        return {"operator": self.pick(data, ["anna"], ["ben", "\u017b" * 32], "operator"),
                "reason": self.pick(data, ["ticket 7"], ["ticket 8", "x" * 128], "reason")}

    def identifier(self, data: Any) -> Any:
        return pb.MemberRef(**data.draw(st.sampled_from(REFS), label="identifier"))

    @rule(data=st.data())
    def adjust(self, data: Any) -> None:
        sign = data.draw(st.sampled_from([1, -1]), label="sign")
        request = admin.AdjustPointsRequest(member=self.member(data), wallet=self.wallet(data), points=sign * self.points(data),
                                            **self.by_hand(data))
        days = self.pick(data, [None, 1, 3, 30], [0, -1], "days to live") if sign > 0 else None
        if days is not None:
            request.expiry_day = int((date(1970, 1, 1) + timedelta(days=self.oracle.day(self.now) + days)).strftime("%Y%m%d"))
        self.send(data, ADJUST, request)

    @rule(data=st.data())
    def link_by_hand(self, data: Any) -> None:
        self.send(data, LINK, admin.LinkIdentifierRequest(member=self.member(data), identifier=self.identifier(data), **self.by_hand(data)))

    @rule(data=st.data())
    def unlink(self, data: Any) -> None:
        self.send(data, UNLINK, admin.UnlinkIdentifierRequest(identifier=self.identifier(data), **self.by_hand(data)))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat(self, data: Any) -> None:
        self.ask_again(*data.draw(st.sampled_from(self.sent[-30:]), label="repeated"))

    def ask_again(self, method: int, request: Any) -> None:
        if self.batched is None:
            self.call(method, request)
        elif method in IN_BATCHES:
            self.batched.append((method, request, False))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat_late(self, data: Any) -> None:
        """A till asks again after days, with others behind it."""
        self.ask_again(*data.draw(st.sampled_from(self.sent), label="repeated"))

    @precondition(lambda self: self.keys)
    @rule(data=st.data())
    def come_late_with_a_receipt(self, data: Any) -> None:
        """A receipt that was posted long ago, or half of it, or one like it that was not: under a new id."""
        key = pb.ReceiptKey()
        key.CopyFrom(data.draw(st.sampled_from(self.keys), label="receipt"))
        if data.draw(st.integers(0, 3)) == 0:
            key.number += "x"
        if data.draw(st.booleans()):
            request = pb.BurnPointsRequest(member=self.member(data), points=data.draw(st.sampled_from([1, 5])), receipt_key=key)
            self.send(data, BURN, request)
        else:
            receipt = pb.Receipt(key=key, currency_code="EUR", total_minor=100)
            self.send(data, EARN, pb.EarnPointsRequest(member=self.member(data), receipt=receipt))

    @precondition(lambda self: self.well_formed)
    @rule(data=st.data())
    def repeat_changed(self, data: Any) -> None:
        recent = self.well_formed[-30:] if data.draw(st.booleans()) else self.well_formed
        method, request = data.draw(st.sampled_from(recent), label="repeated")
        changed = type(request)()
        changed.CopyFrom(request)
        mutate(data, changed)
        self.ask_again(method, changed)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def repeat_by_another_call(self, data: Any) -> None:
        _, request = data.draw(st.sampled_from(self.sent[-30:]), label="repeated")
        if data.draw(st.booleans()):
            method, other = BURN, pb.BurnPointsRequest(member=self.ref(data), points=1)
        else:
            method, other = UNLINK, admin.UnlinkIdentifierRequest(identifier=self.identifier(data), operator="anna", reason="ticket 7")
        other.request_id = request.request_id
        other.sent_time.CopyFrom(request.sent_time)
        self.call(method, other)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def batch(self, data: Any) -> None:
        """Some of the above in one call, in order; also twice the same, and commands that need one before them."""
        ways = ["earn", "earn_again", "burn", "reserve", "commit", "enroll", "repeat", "repeat_late", "give_a_receipt_back"]
        if self.oracle.reservations:
            ways += ["capture", "release"]
        if self.well_formed:
            ways.append("repeat_changed")
        self.batched = []
        for _ in range(data.draw(st.integers(1, 6), label="commands")):
            getattr(self, data.draw(st.sampled_from(ways), label="command"))(data)
        calls, self.batched = self.batched, None
        if not calls:
            return
        for (method, request, new), answer in zip(calls, self.call_batch([call[:2] for call in calls]), strict=True):
            if new:
                self.learn(method, request, answer)

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def ask_operation(self, data: Any) -> None:
        sent = self.sent[-30:] if data.draw(st.booleans()) else self.sent
        _, request = data.draw(st.sampled_from([*sent, (0, pb.GetOperationRequest(request_id="never-sent-before"))]))
        ask = pb.GetOperationRequest(request_id=request.request_id)
        how = data.draw(st.sampled_from(["no time", "its time", "a time"]))
        if how == "its time":
            ask.sent_time.CopyFrom(request.sent_time)
        elif how == "a time":
            set_us(ask.sent_time, self.now - data.draw(st.sampled_from([0, DAY, 100 * DAY])))
        if data.draw(st.integers(0, 9)) == 0:
            mutate(data, ask)
        self.call(OPERATION, ask)

    @rule(data=st.data())
    def ask_balance(self, data: Any) -> None:
        request = pb.GetBalanceRequest(member=self.ref(data), wallet=self.wallet(data))
        if data.draw(st.integers(0, 5)) == 0:
            mutate(data, request)
        self.call(BALANCE, request)

    # --- what time does

    @rule(more=st.one_of(st.integers(0, 10), st.sampled_from([1, 60, 900, 3600, 86_400, 3 * 86_400, 14 * 86_400, 62 * 86_400]).map(
        lambda seconds: seconds * SECOND)))
    def time_goes_on(self, more: int) -> None:
        self.now += more

    @rule(data=st.data(), at=st.sampled_from([0, 0, 1, -1, -240 * SECOND]))
    def time_goes_to_an_edge(self, data: Any, at: int) -> None:
        """To where a lot becomes available or expires, where a reservation ends, or to the next midnight."""
        days = {day for member in self.oracle.members for lot in member.lots for day in (lot.expiry, lot.available) if day < 10**6}
        edges = {self.oracle.midnight(day) for day in days | {self.oracle.day(self.now) + 1}}
        edges |= {reservation.expire_us for reservation in self.oracle.reservations.values()}
        ahead = sorted(edge + at for edge in edges if edge + at > self.now)
        if ahead:
            self.now = data.draw(st.sampled_from(ahead[:3]), label="edge")

    @rule()
    def tick(self) -> None:
        self.post_ticks()

    @rule()
    def write_digest(self) -> None:
        self.post_digest()

    @rule()
    def restart(self) -> None:
        self.replay()

    @rule()
    def take_snapshot(self) -> None:
        self.save()

    @rule(data=st.data(), members_max=st.sampled_from([60, 61, 4000]), reservations_max=st.sampled_from([100, 5000]))
    def restart_from_snapshot(self, data: Any, members_max: int, reservations_max: int) -> None:
        age = data.draw(st.integers(0, len(self.snapshots) - 1), label="age")
        self.reload(age, members_max=members_max, reservations_max=reservations_max)

    @rule(data=st.data())
    def the_follower_starts_again(self, data: Any) -> None:
        self.restart_follower(data.draw(st.integers(0, len(self.snapshots) - 1), label="age"))

    @precondition(lambda self: self.folder)
    @rule()
    def write_runs(self) -> None:
        """The ids thread comes to it."""
        self.core.write_runs()
        self.oracle.write_runs()

    @invariant()
    def all_is_the_same(self) -> None:
        self.check()

    def teardown(self) -> None:
        if hasattr(self, "core"):
            try:
                self.post_digest()
                self.replay()
                self.follow()
            finally:
                self.core.close()
                if self.folder:
                    self.folder.cleanup()


SEED = int(os.environ.get("DAYBOOK_SEED", random.SystemRandom().randrange(2**32)))


def run(examples: int, steps: int, home: Path) -> None:
    print(f"DAYBOOK_SEED={SEED}")
    Ledgers.home = home
    run_state_machine_as_test(seed(SEED)(Ledgers), settings=settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, print_blob=True, suppress_health_check=list(HealthCheck)))


# --- limits that free commands hardly reach

@pytest.fixture
def pair() -> Pair:
    made = Pair()
    made.begin()
    return made


def earn(pair: Pair, total: int, ref: Any, bought: int = 0, **more: Any) -> Any:
    pair.requests += 1
    key = pb.ReceiptKey(store="S1", till="1", business_day=20260320, number=f"n{pair.requests}")
    request = pb.EarnPointsRequest(request_id=f"earn-{pair.requests:012d}", member=ref, receipt=pb.Receipt(
        key=key, currency_code="EUR", total_minor=total))
    set_us(request.sent_time, pair.now)
    if bought:
        set_us(request.receipt.purchase_time, pair.now - bought)
    return pair.call(EARN, request)


def reserve(pair: Pair, points: int, ref: Any) -> Any:
    pair.requests += 1
    request = pb.ReservePointsRequest(request_id=f"hold-{pair.requests:012d}", member=ref, points=points)
    set_us(request.sent_time, pair.now)
    return pair.call(RESERVE, request)


def refused_with(answer: Any) -> tuple[str, int, int]:
    assert isinstance(answer, Refused), answer
    return answer.row.name, answer.a, answer.b


ANN = pb.MemberRef(card=CARDS[0])


def write(pair: Pair, method: int, request: Any) -> Any:
    pair.requests += 1
    request.request_id = f"write-{pair.requests:012d}"
    set_us(request.sent_time, pair.now)
    return pair.call(method, request)


@pytest.mark.parametrize("end", ["release", "capture a part", "expiry by a tick", "expiry seen by the next call"])
def test_what_goes_back_into_an_expired_lot_expires_with_it(pair, end):
    earn(pair, 1000, ANN)  # 50 points for 2 months, 5 for 3 days
    request = pb.ReservePointsRequest(member=ANN, points=20)
    request.ttl.seconds = 5 * 86_400
    held = write(pair, RESERVE, request).reservation
    quick = min(lot.expiry for lot in pair.oracle.members[0].lots)
    pair.now = pair.oracle.midnight(quick) - 1
    pair.post_ticks()
    assert pair.call(BALANCE, pb.GetBalanceRequest(member=ANN)).wallets[0].posted_points == 55
    pair.now += 1  # the first moment at which the 5 do not count; they are held
    pair.post_ticks()
    assert pair.call(BALANCE, pb.GetBalanceRequest(member=ANN)).wallets[0].posted_points == 55
    if end == "release":
        assert write(pair, RELEASE, pb.ReleaseReservationRequest(member=ANN, reservation_id=held.reservation_id)).entry.expired_points == 5
    elif end == "capture a part":
        answer = write(pair, CAPTURE, pb.CaptureReservationRequest(member=ANN, reservation_id=held.reservation_id, points=2))
        assert (answer.entry.burned_points, answer.entry.expired_points) == (2, 3)
    else:
        pair.now += 5 * DAY
        if end == "expiry by a tick":
            pair.post_ticks()
        assert refused_with(write(pair, BURN, pb.BurnPointsRequest(member=ANN, points=51))) == ("INSUFFICIENT_POINTS", 50, 51)
    pair.check()
    pair.replay()


def test_points_of_tomorrow_are_not_taken_today_by_a_till_whose_clock_is_ahead(pair):
    earn(pair, 1000, ANN)
    tomorrow = pair.oracle.midnight(pair.oracle.day(pair.now) + 1)
    pair.now = tomorrow - 60 * SECOND
    request = pb.BurnPointsRequest(member=ANN, wallet="bonus", points=1)
    set_us(request.purchase_time, tomorrow + 60 * SECOND)
    assert refused_with(write(pair, BURN, request)) == ("INSUFFICIENT_POINTS", 0, 1)
    pair.now = tomorrow
    set_us(request.purchase_time, tomorrow - 60 * SECOND)
    assert refused_with(write(pair, BURN, request)) == ("INSUFFICIENT_POINTS", 0, 1)  # nor by a receipt of yesterday
    set_us(request.purchase_time, tomorrow)
    assert write(pair, BURN, request).entry.burned_points == 1
    pair.check()


def test_a_member_holds_only_so_many_reservations(pair):
    earn(pair, 100_000, ANN)
    for _ in range(limits.RESERVATIONS_PER_MEMBER_MAX):
        reserve(pair, 1, ANN)
    assert refused_with(reserve(pair, 1, ANN)) == ("RESERVATIONS_LIMIT", 32, 32)
    pair.now += limits.TTL_S_DEFAULT * SECOND  # they expire, posted or not
    assert reserve(pair, 1, ANN).reservation.reserved_points == 1
    pair.check()


def test_a_wallet_holds_only_so_many_lots_and_expired_ones_do_not_count(pair):
    # A receipt a day, in a ledger that lives on without a tick: the stamps never expire, the other lots do.
    pair.now += 12 * 3600 * SECOND
    for _ in range(limits.LOTS_PER_WALLET_MAX):
        pair.now += DAY
        day = int(datetime.fromtimestamp(pair.now // SECOND, UTC).strftime("%Y%m%d"))
        pair.requests += 1
        request = pb.EarnPointsRequest(request_id=f"earn-{pair.requests:012d}", member=ANN, receipt=pb.Receipt(
            key=pb.ReceiptKey(store="S1", till="1", business_day=day, number=f"n{pair.requests}"), currency_code="EUR", total_minor=1000))
        set_us(request.sent_time, pair.now)
        assert pair.call(EARN, request).entry.earned_points
    pair.check()
    pair.now += DAY
    request.request_id, request.receipt.key.number = "one-too-many-0000", "last"
    set_us(request.sent_time, pair.now)
    assert refused_with(pair.call(EARN, request)) == ("LOTS_LIMIT", 400, 400)
    assert pair.call(EARN, request).replayed
    assert len(pair.oracle.members[0].lots) > limits.LOTS_PER_WALLET_MAX + 100
    pair.post_ticks()
    pair.check()
    pair.replay()


def test_a_wallet_holds_only_so_many_points():
    pair = Pair()
    pair.begin(base=99)
    given = 0
    while not isinstance(answer := earn(pair, 10**12, ANN), Refused):
        given += 1
    one = 99 * 10**10 + 10**12 // 200  # base and quick go into the same wallet
    assert given == limits.WALLET_POINTS_MAX // one
    assert refused_with(answer) == ("POINTS_OVERFLOW", given * one, 0)
    pair.check()
    pair.replay()


def test_a_refused_earn_of_an_unknown_card_remembers_whose_it_was():
    # Refused for ever, though nobody has an account: the same card gets the same answer, another card is another request.
    pair = Pair()
    pair.begin(base=100)  # a rule alone may not give too much, two may
    assert refused_with(earn(pair, 10**12, ANN)) == ("POINTS_OVERFLOW", 0, 0)
    pair.requests -= 1
    again = earn(pair, 10**12, ANN)
    assert refused_with(again) == ("POINTS_OVERFLOW", 0, 0) and again.replayed
    pair.requests -= 1
    assert refused_with(earn(pair, 10**12, pb.MemberRef(card=CARDS[1])))[0] == "REQUEST_ID_REUSED"
    pair.check()


def test_an_account_has_only_so_many_identifiers(pair):
    for first in range(0, limits.IDENTIFIERS_PER_MEMBER_MAX + 1, 8):
        refs = [pb.MemberRef(app=f"app{i}") for i in range(first, first + 7)]
        request = pb.EnrollMemberRequest(request_id=f"enroll-{first:012d}", identifiers=[ANN, *refs])
        set_us(request.sent_time, pair.now)
        answer = pair.call(ENROLL, request)
    assert refused_with(answer) == ("IDENTIFIERS_LIMIT", 36, 32)
    assert pair.call(ENROLL, request).replayed
    pair.check()


# --- by hand

HAND = {"operator": "anna", "reason": "ticket 7"}
BOB = pb.MemberRef(card=CARDS[1])


def by_hand(pair: Pair, kind: Any, **fields: Any) -> Any:
    return write(pair, {"Adjust": ADJUST, "Link": LINK, "Unlink": UNLINK}[kind],
                 {"Adjust": admin.AdjustPointsRequest, "Link": admin.LinkIdentifierRequest, "Unlink": admin.UnlinkIdentifierRequest}[kind](
                     **(HAND | fields)))


def points_of(pair: Pair, ref: Any) -> list[int]:
    return [wallet.available_points for wallet in pair.call(BALANCE, pb.GetBalanceRequest(member=ref)).wallets]


def test_points_given_by_hand_are_there_at_once_and_live_as_long_as_was_said(pair):
    earn(pair, 1000, ANN)  # 50 for 2 months and 5 for 3 days
    today = pair.oracle.day(pair.now)
    tomorrow = int((date(1970, 1, 1) + timedelta(days=today + 1)).strftime("%Y%m%d"))
    given = by_hand(pair, "Adjust", member=ANN, points=100, expiry_day=tomorrow)
    assert (given.entry.kind, given.entry.adjusted_points, given.entry.earned_points) == (10, 100, 0)
    assert given.wallets[0].available_points == 155
    by_hand(pair, "Adjust", member=ANN, points=7, wallet="stamps")
    assert points_of(pair, ANN) == [155, 0, 12]
    pair.now = pair.oracle.midnight(today + 1) - 1
    assert points_of(pair, ANN)[0] == 155
    pair.now += 1
    assert points_of(pair, ANN)[0] == 55
    pair.now += 100 * DAY
    pair.post_ticks()
    assert points_of(pair, ANN) == [0, 0, 12], "what has no expiry day never expires"
    assert pair.core.stats()["adjusted_points"] == [100, 0, 7]
    pair.check()
    pair.replay()


def test_points_taken_by_hand_are_the_soonest_to_expire_and_never_more_than_are_available(pair):
    earn(pair, 1000, ANN)
    reserve(pair, 3, ANN)  # of the 5 that expire first
    request = admin.AdjustPointsRequest(member=ANN, points=-53, **HAND)
    assert refused_with(write(pair, ADJUST, request)) == ("INSUFFICIENT_POINTS", 52, 53)
    given = by_hand(pair, "Adjust", member=ANN, points=10)
    again = pair.call(ADJUST, request)
    assert refused_with(again) == ("INSUFFICIENT_POINTS", 52, 53) and again.replayed, "remembered, also when there is enough"
    taken = by_hand(pair, "Adjust", member=ANN, points=-4)
    assert (taken.entry.adjusted_points, taken.entry.burned_points, taken.wallets[0].available_points) == (-4, 0, 58)
    assert sorted(lot.points for key, lot in pair.oracle.members[0].lots.items() if key.wallet == 0) == [3, 10, 48]
    assert given.entry.sequence < taken.entry.sequence
    pair.check()
    pair.replay()


def test_a_wallet_takes_only_so_many_points_by_hand(pair):
    earn(pair, 0, ANN)
    for _ in range(limits.WALLET_POINTS_MAX // limits.POINTS_MAX):
        by_hand(pair, "Adjust", member=ANN, points=limits.POINTS_MAX)
    assert refused_with(by_hand(pair, "Adjust", member=ANN, points=1)) == ("POINTS_OVERFLOW", limits.WALLET_POINTS_MAX, 0)
    assert len(pair.oracle.members[0].lots) == 1, "gifts of one day with one expiry are one lot"
    pair.check()


def test_a_wallet_takes_only_so_many_lots_by_hand(pair):
    earn(pair, 0, ANN)
    for day in range(1, limits.LOTS_PER_WALLET_MAX + 1):
        expiry = int((date(1970, 1, 1) + timedelta(days=pair.oracle.day(pair.now) + day)).strftime("%Y%m%d"))
        by_hand(pair, "Adjust", member=ANN, points=1, expiry_day=expiry)
    assert refused_with(by_hand(pair, "Adjust", member=ANN, points=1)) == ("LOTS_LIMIT", 400, 400)
    assert by_hand(pair, "Adjust", member=ANN, points=1, expiry_day=expiry).wallets[0].posted_points == 401
    pair.check()
    pair.replay()


def test_an_unlinked_card_is_as_if_never_seen_and_the_account_keeps_its_points(pair):
    earn(pair, 1000, ANN)
    gone = by_hand(pair, "Unlink", identifier=ANN)
    assert (gone.entry.kind, gone.entry.member_id) == (12, 1)
    assert refused_with(pair.call(BALANCE, pb.GetBalanceRequest(member=ANN)))[0] == "MEMBER_NOT_FOUND"
    assert points_of(pair, pb.MemberRef(member_id=1)) == [55, 0, 5]
    assert pair.oracle.members[0].identifiers == 0
    assert refused_with(by_hand(pair, "Unlink", identifier=ANN))[0] == "IDENTIFIER_NOT_FOUND"
    assert earn(pair, 100, ANN).entry.member_id == 2, "an anonymous earn opens a new account"
    by_hand(pair, "Unlink", identifier=ANN)
    assert by_hand(pair, "Link", member=pb.MemberRef(member_id=1), identifier=ANN).linked
    assert points_of(pair, ANN) == [55, 0, 5]
    pair.check()
    pair.replay()
    pair.check()


def test_a_request_of_a_card_that_was_unlinked_since_is_told_its_first_outcome(pair):
    """Whoever the card names now: the request was decided for the account that it named then."""
    request = pb.EarnPointsRequest(member=ANN, receipt=pb.Receipt(
        key=pb.ReceiptKey(store="S1", till="1", business_day=20260320, number="first"), currency_code="EUR", total_minor=1000))
    first = write(pair, EARN, request)
    later = pb.BurnPointsRequest(member=ANN, points=5)
    write(pair, BURN, later)
    refused = pb.BurnPointsRequest(member=ANN, points=500)
    write(pair, BURN, refused)
    enrolled = pb.EnrollMemberRequest(identifiers=[ANN, pb.MemberRef(app="new"), pb.MemberRef(member_id=1)][:2])
    write(pair, ENROLL, enrolled)
    adjusted = admin.AdjustPointsRequest(member=ANN, points=5, **HAND)
    write(pair, ADJUST, adjusted)
    asked = [(EARN, request), (BURN, later), (BURN, refused), (ENROLL, enrolled), (ADJUST, adjusted)]
    unlinked = admin.UnlinkIdentifierRequest(identifier=ANN, **HAND)
    write(pair, UNLINK, unlinked)
    for step in ("unlinked", "another member's", "replayed"):
        if step == "another member's":
            assert earn(pair, 100, ANN).entry.member_id == 2
        elif step == "replayed":
            pair.replay()
        for method, again in [*asked, (UNLINK, unlinked)]:
            assert pair.call(method, again).replayed, f"{METHODS[method]} when the card is {step}"
    later.member.CopyFrom(BOB)
    assert refused_with(pair.call(BURN, later)) == ("REQUEST_ID_REUSED", first.entry.sequence + 1, 0), "another card is another request"
    pair.check()


def test_linking_what_is_linked_already_is_an_entry_that_links_nothing(pair):
    earn(pair, 1000, ANN)
    earn(pair, 1000, BOB)
    phone = pb.MemberRef(phone="+48600700801")
    request = admin.LinkIdentifierRequest(member=ANN, identifier=phone, **HAND)
    assert write(pair, LINK, request).linked
    again = by_hand(pair, "Link", member=pb.MemberRef(member_id=1), identifier=phone)
    assert (again.linked, again.entry.kind, pair.oracle.members[0].identifiers) == (False, 11, 2)
    assert refused_with(by_hand(pair, "Link", member=BOB, identifier=phone))[0] == "IDENTIFIER_TAKEN"
    assert refused_with(by_hand(pair, "Link", member=pb.MemberRef(card="29"), identifier=phone))[0] == "MEMBER_NOT_FOUND"
    by_hand(pair, "Unlink", identifier=phone)
    repeated = pair.call(LINK, request)
    assert repeated.linked and repeated.replayed, "a function of its entry, not of what is linked now"
    request.member.CopyFrom(phone)
    answer = pair.call(LINK, request)
    assert refused_with(answer)[0] == "REQUEST_ID_REUSED" and answer.field == "member", "the linked one is not who was named"
    pair.check()
    pair.replay()


def test_an_account_takes_only_so_many_identifiers_by_hand(pair):
    earn(pair, 0, ANN)
    for i in range(1, limits.IDENTIFIERS_PER_MEMBER_MAX):
        by_hand(pair, "Link", member=ANN, identifier=pb.MemberRef(app=f"app{i}"))
    request = admin.LinkIdentifierRequest(member=ANN, identifier=pb.MemberRef(app="one more"), **HAND)
    assert refused_with(write(pair, LINK, request)) == ("IDENTIFIERS_LIMIT", 33, 32)
    by_hand(pair, "Unlink", identifier=pb.MemberRef(app="app1"))
    again = pair.call(LINK, request)
    assert refused_with(again) == ("IDENTIFIERS_LIMIT", 33, 32) and again.replayed
    assert by_hand(pair, "Link", member=ANN, identifier=pb.MemberRef(app="one more")).linked
    pair.check()
    pair.replay()


def test_where_a_request_comes_from_is_part_of_it(pair):
    """In every call that says it; what is said of it is nowhere in the journal, and a store beside a receipt key is that of the key."""
    earn(pair, 1000, ANN)
    said = pb.Origin(device="device-of-ann", cashier="cashier-7", payment_card="token-4711", partner="partner-1")
    key = pb.ReceiptKey(store="1", till="till-9", business_day=20260320, number="77")
    receipt = pb.Receipt(key=key, currency_code="EUR", total_minor=500)
    for method, request in ((EARN, pb.EarnPointsRequest(member=ANN, receipt=receipt)), (BURN, pb.BurnPointsRequest(member=ANN, points=1)),
                            (RESERVE, pb.ReservePointsRequest(member=ANN, points=1)),
                            (ENROLL, pb.EnrollMemberRequest(identifiers=[pb.MemberRef(card="2911")]))):
        request.origin.CopyFrom(said)
        first = write(pair, method, request)
        again = pair.call(method, request)
        assert again.replayed and again.entry.sequence == first.entry.sequence
        for part in ("device", "cashier", "payment_card", "partner", *(("store", "till") if method != EARN else ())):
            changed = type(request)()
            changed.CopyFrom(request)
            setattr(changed.origin, part, "other")
            answer = pair.call(method, changed)
            assert refused_with(answer)[:2] == ("REQUEST_ID_REUSED", first.entry.sequence) and answer.field == "origin"
    request = pb.EarnPointsRequest(member=ANN, receipt=receipt, origin=pb.Origin(store="2"))
    request.receipt.key.number = "78"
    answer = write(pair, EARN, request)
    assert (refused_with(answer)[0], answer.field) == ("FIELD_INVALID", "origin.store")
    request.origin.store = "1"
    assert write(pair, EARN, request).entry.sequence
    journal = b"".join(pair.core.entries())
    assert not [text for text in (b"device-of-ann", b"cashier-7", b"token-4711", b"partner-1") if text in journal]
    pair.check()
    pair.replay()


def test_who_and_why_are_part_of_a_request(pair):
    earn(pair, 1000, ANN)
    card = pb.MemberRef(card=CARDS[2])
    for method, request in ((ADJUST, admin.AdjustPointsRequest(member=ANN, points=5, expiry_day=20300101, **HAND)),
                            (LINK, admin.LinkIdentifierRequest(member=ANN, identifier=card, **HAND)),
                            (UNLINK, admin.UnlinkIdentifierRequest(identifier=card, **HAND))):
        first = write(pair, method, request)
        for name in [field.name for field in request.DESCRIPTOR.fields if field.name in ("operator", "reason", "points", "expiry_day")]:
            changed = type(request)()
            changed.CopyFrom(request)
            setattr(changed, name, "somebody" if isinstance(getattr(changed, name), str) else getattr(changed, name) + 1)
            answer = pair.call(method, changed)
            assert refused_with(answer)[:2] == ("REQUEST_ID_REUSED", first.entry.sequence) and answer.field == name
        if hasattr(request, "identifier"):
            changed.CopyFrom(request)
            changed.identifier.card = "2900"
            assert pair.call(method, changed).field == "identifier"
    pair.check()


def test_an_answer_that_a_card_names_nobody_waits_for_the_unlink(pair):
    """Otherwise a crash could take back what somebody was told."""
    earn(pair, 1000, ANN)
    gone = by_hand(pair, "Unlink", identifier=ANN).entry.sequence
    earn(pair, 1000, BOB)
    for method, request in ((BALANCE, pb.GetBalanceRequest(member=ANN)), (BURN, pb.BurnPointsRequest(member=ANN, points=1)),
                            (UNLINK, admin.UnlinkIdentifierRequest(identifier=ANN, **HAND)),
                            (LINK, admin.LinkIdentifierRequest(member=ANN, identifier=BOB, **HAND))):
        if method == BALANCE:
            pair.call(method, request)
        else:
            write(pair, method, request)
        assert pair.core.outcome()["wait_sequence"] == gone
    pair.call(BALANCE, pb.GetBalanceRequest(member=BOB))
    assert pair.core.outcome()["wait_sequence"] == gone + 1


def test_reservations_of_all_members_fill_the_table():
    pair = Pair()
    pair.begin(reservations_max=2)
    earn(pair, 100_000, ANN)
    assert [bool(reserve(pair, 1, ANN).reservation.state) for _ in range(2)] == [True, True]
    assert refused_with(reserve(pair, 1, ANN))[0] == "TABLE_FULL"
    pair.now += limits.TTL_S_DEFAULT * SECOND
    assert reserve(pair, 1, ANN).reservation.state
    pair.check()
    pair.replay()


def test_the_core_does_what_the_oracle_says(tmp_path):
    run(examples=150, steps=50, home=tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_the_core_does_what_the_oracle_says_for_long(tmp_path):
    run(examples=5000, steps=80, home=tmp_path)
