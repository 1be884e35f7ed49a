"""The slow, obvious ledger: what every checkout call and every call by hand must answer, in plain Python.

Written from design and contract (docs/journal-format.md, the proto), not from the core; no table, no cache, no bytes. It takes
and gives the protobuf messages of the checkout contract. Used by tests/test_state_machine.py. Rules come from the reference
interpreter, the two hashes of the digest from the leaves that tests/ledger/test_leaves.py proves.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any, NamedTuple

from ledger._probe import fact_hash_, siphash_

from ledger import errors, limits
from ledger.rules import image2, reference, tree
from ledger.rules.tree import Programme
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests import limits_oracle
from tests.limits_oracle import Event, Judged
from tests.rules.compiled import Award, Compiled, awards

SECOND = 1_000_000
DAY = 86_400 * SECOND
METHODS = ("", "EarnPoints", "BurnPoints", "ReservePoints", "CaptureReservation", "ReleaseReservation", "CommitReceipt", "EnrollMember",
           "GetBalance", "GetOperation", "", "AdjustPoints", "LinkIdentifier", "UnlinkIdentifier",
           *[""] * 10, "SetRung", *[""] * 5, "ReturnReceipt")
ADJUST, LINK, UNLINK, SET_RUNG = BY_HAND = 11, 12, 13, 24
SET_SEGMENTS, RETURN = 17, 30
ENTRY_KINDS = {ADJUST: 10, LINK: 11, UNLINK: 12, SET_RUNG: 15, RETURN: 19}  # the others have the number of their method
ORIGIN_BYTES = {"device": limits.DEVICE_BYTES_MAX, "cashier": limits.CASHIER_BYTES_MAX, "payment_card": limits.PAYMENT_CARD_BYTES_MAX,
                "partner": limits.PARTNER_BYTES_MAX, "store": limits.STORE_BYTES_MAX, "till": limits.TILL_BYTES_MAX}
IDENTIFIER_KINDS = ("", "member_id", "card", "phone", "email", "app")
ACTIVE, CAPTURED, RELEASED, EXPIRED = 1, 2, 3, 4
DAY_NEVER = 2**31 - 1
NO_WINDOW = 2**31
TIER_PER = {"lifetime": 5, "month": 3, "year": 4, "anniversary": 7}
ACTIONS = {name: number for number, name in enumerate(tree.ACTIONS, start=1)}
NOTICES = {"unknown_store": 1, "unknown_sku": 2, "unknown_category": 3, "unknown_promo_code": 4, "unknown_tender": 5, "unknown_channel": 6}
LINE_FIELDS = ("sku", "category", "quantity_milli", "amount_minor", "regular_amount_minor", "weighed")


class Refused(Exception):
    """A call is refused: the row of `ledger/errors.py`, the field that it names and its two numbers."""

    def __init__(self, name: str, field: str = "", a: int = 0, b: int = 0, replayed: bool = False):
        super().__init__(name, field, a, b)
        self.row, self.field, self.a, self.b, self.replayed = errors.BY_NAME[name], field, a, b, replayed

    def answer(self) -> tuple[int, str, dict[str, str]]:
        """gRPC code, reason, and the metadata that the ErrorInfo must have."""
        pairs = {self.row.a: str(self.a), self.row.b: str(self.b), "field": self.field, "replayed": "true" if self.replayed else ""}
        return self.row.grpc_code, self.row.name, {key: value for key, value in pairs.items() if key and value}


def answer_type(method: int) -> Any:
    """The response's message type."""
    return getattr(admin if method in BY_HAND else pb, METHODS[method] + "Response")


MOVES = 0x8000  # beside the funder of a lot that lives by inactivity


class LotKey(NamedTuple):
    """Names a lot; the order of the fields is the order of burning. funder: and MOVES."""

    wallet: int
    expiry: int
    available: int
    funder: int


Change = tuple[LotKey, int, int]  # a lot, and the changes of its points and of what is held of them


@dataclass
class Lot:
    points: int = 0
    held: int = 0


@dataclass
class Reservation:
    id: int
    member: int
    wallet: int
    holds: list[tuple[LotKey, int]]
    reserved: int
    expire_us: int
    captured: int = 0
    state: int = ACTIVE


@dataclass
class Sale:
    """What one entry did that a return undoes."""

    member: int
    total: int = 0
    paid: list[tuple[LotKey, int]] = field(default_factory=list)  # what the payment took, lot by lot
    given: list[tuple[LotKey, int]] = field(default_factory=list)  # what was earned, lot by lot
    changes: reference.Changes | None = None  # what rules counted
    event: Event | None = None  # what limits counted; None: nowhere


@dataclass
class Member:
    number: int
    sequence: int = 0
    identifiers: int = 0
    rung: int = 0
    rung_until_s: int = 0  # 0: without end
    known: reference.Member | None = None  # what rules know of it
    lots: dict[LotKey, Lot] = field(default_factory=dict)


@dataclass
class Written:
    """What a request id came to: its content, and the answer or the refusal."""

    sequence: int
    content: dict[str, Any]
    member: int
    answer: Any


@dataclass
class Generation:
    """Keys that were put in one after another, with what each stands for, and the range of their orders."""

    first: int  # sequence of the first entry whose keys are in it
    facts: dict[Any, dict[str, Any]] = field(default_factory=dict)
    low: int = 2**63
    high: int = -(2**63)  # times before 1970 can be asked for


class Keys:
    """Keys in generations: one fills, two are remembered, older ones are dropped: with `runs` only when written, and found there for ever.

    Nothing is ever taken away here. What is in memory matters only where a till changes the order of a key, and for the limits.
    """

    def __init__(self, remembered: int, runs: bool):
        self.size, self.runs = max(1, remembered // 2), runs
        self.generations = [Generation(1)]  # the last one fills
        self.dropped = self.written = 0  # how many of them, from the first
        self.puts: dict[int, tuple[Any, int, dict[str, Any]]] = {}  # by sequence

    @property
    def forgotten(self) -> int:
        """The highest order that was dropped."""
        return max((generation.high for generation in self.generations[:self.dropped]), default=-(2**63))

    @property
    def crowded(self) -> bool:
        """Whether the place of the oldest generation is needed next."""
        return len(self.generations) - 1 - self.dropped > 2

    def drop(self) -> bool:
        if self.crowded:
            if self.runs and self.dropped >= self.written:
                return False
            self.dropped += 1
        return True

    def room(self) -> bool:
        return not self.crowded or len(self.generations[-1].facts) < self.size or self.drop()

    def put(self, key: Any, order: int, sequence: int, facts: dict[str, Any]) -> None:
        self.puts[sequence] = (key, order, facts)
        filling = self.generations[-1]
        if key not in filling.facts:
            if len(filling.facts) == self.size:
                assert self.drop(), "there was no room"
                self.generations.append(filling := Generation(sequence))
            self.drop()
            filling.low, filling.high = min(filling.low, order), max(filling.high, order)
        filling.facts.setdefault(key, {}).update(facts)

    def find(self, key: Any, order: int | None) -> dict[str, Any]:
        """What is known of a key, in memory or, where the order fits (None: any), in runs."""
        found: dict[str, Any] = {}
        for number, generation in enumerate(self.generations):
            if number < self.dropped and (not self.runs or (order is not None and not generation.low <= order <= generation.high)):
                continue
            found |= generation.facts.get(key, {})
        return found

    def in_snapshot(self, sequence: int) -> int:
        """The oldest generation that a follower, which keeps no runs, had in memory at this entry."""
        return max(0, sum(generation.first <= sequence for generation in self.generations) - 3)

    def write_runs(self) -> None:
        self.written = len(self.generations) - 1

    def restart(self, oldest: int = 0) -> None:
        """What a start knows before it reads the journal: the newest two runs come into memory again, but no generation before `oldest`."""
        self.dropped = max(oldest, self.written - 2) if self.runs else 0
        self.generations = [*self.generations[:self.dropped], Generation(self.generations[self.dropped].first)]

    @property
    def remembered(self) -> int:
        return sum(len(generation.facts) for generation in self.generations[self.dropped:])


def day_number(yyyymmdd: int) -> int:
    """Days since 1970 of a date written as yyyymmdd; -1: no date of the years 2000..2199."""
    try:
        day = date(yyyymmdd // 10000, yyyymmdd // 100 % 100, yyyymmdd % 100)
    except ValueError:
        return -1
    return (day - date(1970, 1, 1)).days if 2000 <= day.year <= 2199 else -1


def said(receipt: Any, burn: int, wallet: int) -> reference.Receipt:
    """A receipt as rules see it."""
    lines = tuple(reference.Line(line.sku, line.amount_minor, line.quantity_milli, line.category, line.regular_amount_minor or None,
                                 line.weighed) for line in receipt.lines)
    return reference.Receipt(receipt.total_minor, lines, receipt.key.store,
                             tuple((tender.name, tender.amount_minor) for tender in receipt.tenders), receipt.channel,
                             tuple(receipt.promo_codes), burn, wallet)


def us(stamp: Any) -> int:
    """A Timestamp or Duration in us."""
    return stamp.seconds * SECOND + stamp.nanos // 1000


def set_us(stamp: Any, value: int) -> None:
    stamp.seconds, stamp.nanos = value // SECOND, value % SECOND * 1000


class Oracle:
    """The ledger. `call` answers one request at a moment; `due` and `expire_*` are the ticks."""

    def __init__(self, program: Programme, identity_key: bytes, now_us: int, members_max: int, ids_max: int, reservations_max: int,
                 runs: bool = False):
        self.program, self.identity_key = program, identity_key
        self.members_max, self.reservations_max = members_max, reservations_max
        self.sequence, self.time_us = 1, now_us  # entry 1 is the programme
        self.version = 1
        self.limits = limits_oracle.Limits()
        self.judged = Judged()  # what limits said of the command at hand
        self.cut = 0  # points that they took from it
        self.says: dict[int, Any] = {}  # by sequence: what an entry says of limits and rungs, see `tell`
        self.sales: dict[int, Sale] = {}  # by sequence: receipts, and reservations
        self.compiled: dict[int, Compiled] = {}  # by version: the numbers of its counters and campaigns
        self.members: list[Member] = []
        self.shared = reference.Shared()
        self.midnights: dict[int, int] = {}  # of days that were asked for
        self.owners: dict[tuple[int, bytes], int] = {}  # kind and normalised value of an identifier -> member
        self.reservations: dict[int, Reservation] = {}  # finished ones in the order of their ends, before the active ones
        self.ids, self.receipts = Keys(ids_max, runs), Keys(ids_max, runs)

    # --- what may be asked

    def call(self, method: int, request: Any, now_us: int) -> Any:
        """The response message. Refused: why not."""
        now_us = max(now_us, self.time_us)
        self.judged, self.cut = Judged(), 0
        if method == 8:
            return self.get_balance(request, now_us)
        if method == 9:
            return self.get_operation(request)
        for good, where in self.field_checks(method, request):
            if not good:
                raise Refused("FIELD_INVALID", where)
        content, sent = self.content(method, request), us(request.sent_time)
        written = self.ids.find(request.request_id, sent).get("written")
        if written is not None:
            return self.repeat(written, content)
        if not self.ids.runs and sent <= self.ids.forgotten:
            raise Refused("SENT_TIME_TOO_OLD", a=self.ids.forgotten + 1)
        if not (self.ids.room() and self.receipts.room()):
            raise Refused("IDS_BEHIND")
        for good, where in self.world_checks(method, request, now_us):
            if not good:
                raise Refused("FIELD_INVALID", where)
        try:
            write = {7: self.enroll, LINK: self.link_by_hand, UNLINK: self.unlink, SET_RUNG: self.set_rung, RETURN: self.give_receipt_back
                     }.get(method)
            number, answer = write(request, now_us) if write is not None else self.post(method, request, now_us)
        except Refused as refusal:
            if not refusal.row.remembered:
                raise
            named = request.identifiers if method == 7 else [request.member] if method != RETURN else []
            number = next(filter(None, map(self.find, named)), 0) if method != RETURN else self.sale_of(request)[0]
            if refusal.row.name not in limits_oracle.BY_LIMITS and method not in BY_HAND:
                event = self.event(method, request, {"refusals"}, number, now_us)
                self.judged = self.limits.judge(self.program, event, now_us)
                self.limits.count(self.program, event, now_us)
            self.sequence, self.time_us = self.sequence + 1, now_us
            self.tell(number, now_us)
            self.ids.put(request.request_id, sent, self.sequence, {"written": Written(self.sequence, content, number, refusal)})
            raise
        self.ids.put(request.request_id, sent, self.sequence, {"written": Written(self.sequence, content, number, answer)})
        return answer

    def repeat(self, written: Written, content: dict[str, Any]) -> Any:
        """The first answer of an id again, if the content is the same."""
        for name, value in content.items():
            first = written.content.get(name)
            if name == "member":  # any identifier of the same account is the same
                same = value == first or (written.member != 0 and self.owner(value) == written.member)
            elif name == "identifiers":
                same = len(value) == len(first) and all(one in first or self.owner(one) == written.member for one in value)
            elif name.startswith("receipt.lines[") and name not in written.content:
                name, same = "receipt.lines", False
            else:
                same = value == first
            if not same:
                raise Refused("REQUEST_ID_REUSED", name, a=written.sequence)
        if isinstance(written.answer, Refused):
            raise Refused(written.answer.row.name, a=written.answer.a, b=written.answer.b, replayed=True)
        answer = type(written.answer)()
        answer.CopyFrom(written.answer)
        answer.replayed = True
        return answer

    def get_operation(self, request: Any) -> Any:
        if not good_id(request.request_id):
            raise Refused("FIELD_INVALID", "request_id")
        if not good_stamp(request.sent_time):
            raise Refused("FIELD_INVALID", "sent_time")
        sent = us(request.sent_time) if request.HasField("sent_time") else None
        written = self.ids.find(request.request_id, sent).get("written")
        if written is None:
            if not self.ids.runs and sent is not None and sent <= self.ids.forgotten:
                raise Refused("SENT_TIME_TOO_OLD", a=self.ids.forgotten + 1)
            raise Refused("OPERATION_NOT_FOUND")
        if isinstance(written.answer, Refused):
            return written.answer
        answer = pb.GetOperationResponse(entry=written.answer.entry)
        if hasattr(written.answer, "wallets"):
            answer.wallets.extend(written.answer.wallets)
        if hasattr(written.answer, "result") and written.answer.HasField("result"):
            answer.result.CopyFrom(written.answer.result)
        if hasattr(written.answer, "reservation") and written.answer.HasField("reservation"):
            answer.reservation.CopyFrom(written.answer.reservation)
        return answer

    def get_balance(self, request: Any, now_us: int) -> Any:
        if request.HasField("as_of_time"):
            raise Refused("FIELD_INVALID", "as_of_time")  # the follower's to answer
        if self.identity(request.member) is None:
            raise Refused("FIELD_INVALID", self.member_field(request.member))
        if not good_text(request.wallet, 0, limits.WALLET_NAME_BYTES_MAX):
            raise Refused("FIELD_INVALID", "wallet")
        for part, bytes_max in ORIGIN_BYTES.items():
            if not good_text(getattr(request.origin, part), 0, bytes_max):
                raise Refused("FIELD_INVALID", f"origin.{part}")
        wallets = [self.wallet(request.wallet)] if request.wallet else list(range(len(self.program.wallets)))
        number = self.find(request.member)
        if not self.limits.look_up(self.program, self.look_up(request, number, now_us), now_us):
            raise Refused("VELOCITY_EXCEEDED")
        if number == 0:
            raise Refused("MEMBER_NOT_FOUND", self.member_field(request.member))
        member, today = self.members[number - 1], self.day(now_us)
        answer = pb.GetBalanceResponse(member_id=number, sequence=member.sequence)
        if rung := self.rung_of(member, now_us):
            answer.rung = rung + 1
            if member.rung_until_s:
                set_us(answer.rung_end_time, member.rung_until_s * SECOND)
        set_us(answer.read_time, now_us)
        gone = [r for r in self.active(number) if r.expire_us <= now_us]
        for wallet in wallets:
            answer.wallets.append(self.balance(member, wallet, today, gone))
            soon: dict[int, int] = defaultdict(int)
            for key, lot in member.lots.items():
                unheld = lot.points - lot.held + sum(points for r in gone for hold, points in r.holds if hold == key)
                if key.wallet == wallet and today < key.expiry < DAY_NEVER and unheld:
                    soon[key.expiry] += unheld
            for day in sorted(soon)[:limits.NEXT_EXPIRIES_MAX]:
                expiry = answer.wallets[-1].next_expiries.add(points=soon[day])
                set_us(expiry.expire_time, self.midnight(day))
        return answer

    # --- what is wrong with a request: (good, field), the first that is not good counts

    def field_checks(self, method: int, request: Any) -> Any:
        yield good_id(request.request_id), "request_id"
        yield good_stamp(request.sent_time) and us(request.sent_time) >= 946_684_800 * SECOND, "sent_time"
        if method == UNLINK:
            yield from self.by_hand_checks(request)
            return
        if method == 7:
            yield 1 <= len(request.identifiers) <= limits.IDENTIFIERS_PER_REQUEST_MAX, "identifiers"
            for i, one in enumerate(request.identifiers):
                yield self.identity(one) is not None, self.member_field(one).replace("member", f"identifiers[{i}]", 1)
                later_id = i > 0 and one.WhichOneof("ref") == "member_id"
                yield not later_id and self.identity(one) not in map(self.identity, request.identifiers[:i]), f"identifiers[{i}]"
            for part, bytes_max in ORIGIN_BYTES.items():
                yield good_text(getattr(request.origin, part), 0, bytes_max), f"origin.{part}"
            return
        if method == RETURN:
            yield request.HasField("receipt_key"), "receipt_key"
            yield from key_checks(request.receipt_key, "receipt_key.")
            for part, bytes_max in ORIGIN_BYTES.items():
                yield good_text(getattr(request.origin, part), 0, bytes_max), f"origin.{part}"
            return
        yield self.identity(request.member) is not None, self.member_field(request.member)
        if method in (1, 6):
            receipt = request.receipt
            yield request.HasField("receipt"), "receipt"
            yield receipt.HasField("key"), "receipt.key"
            yield from key_checks(receipt.key, "receipt.key.")
            yield 0 <= receipt.total_minor <= limits.AMOUNT_MINOR_MAX, "receipt.total_minor"
            for i, line in enumerate(receipt.lines):
                yield good_text(line.sku, 1, limits.SKU_BYTES_MAX), f"receipt.lines[{i}].sku"
                yield good_text(line.category, 0, limits.CATEGORY_BYTES_MAX), f"receipt.lines[{i}].category"
                yield 0 <= line.quantity_milli <= limits.QUANTITY_MILLI_MAX, f"receipt.lines[{i}].quantity_milli"
                yield 0 <= line.amount_minor <= limits.AMOUNT_MINOR_MAX, f"receipt.lines[{i}].amount_minor"
                yield 0 <= line.regular_amount_minor <= limits.AMOUNT_MINOR_MAX, f"receipt.lines[{i}].regular_amount_minor"
            yield len(receipt.tenders) <= limits.TENDERS_PER_RECEIPT_MAX, "receipt.tenders"
            for i, tender in enumerate(receipt.tenders):
                yield good_text(tender.name, 1, limits.TENDER_BYTES_MAX), f"receipt.tenders[{i}].name"
                yield 0 <= tender.amount_minor <= limits.AMOUNT_MINOR_MAX, f"receipt.tenders[{i}].amount_minor"
            yield good_text(receipt.channel, 0, limits.CHANNEL_BYTES_MAX), "receipt.channel"
            yield len(receipt.promo_codes) <= limits.PROMO_CODES_PER_RECEIPT_MAX, "receipt.promo_codes"
            for i, code in enumerate(receipt.promo_codes):
                yield good_text(code, 1, limits.PROMO_CODE_BYTES_MAX), f"receipt.promo_codes[{i}]"
            yield len(receipt.quote_token) in (0, limits.QUOTE_TOKEN_BYTES), "receipt.quote_token"
        paying, where = self.payment(method, request)
        if hasattr(paying, "wallet"):
            yield good_text(paying.wallet, 0, limits.WALLET_NAME_BYTES_MAX), where + "wallet"
            yield 1 <= paying.points <= limits.POINTS_MAX, where + "points"
        elif paying is not None:
            yield paying.reservation_id >= 1, where + "reservation_id"
            yield method == 5 or 0 <= paying.points <= limits.POINTS_MAX, where + "points"
        if method == ADJUST:
            yield good_text(request.wallet, 0, limits.WALLET_NAME_BYTES_MAX), "wallet"
            yield 1 <= abs(request.points) <= limits.POINTS_MAX, "points"
            expiry = request.expiry_day
            yield expiry == 0 or (request.points > 0 and day_number(expiry) >= 0), "expiry_day"
        if method == SET_RUNG:
            yield 1 <= request.rung <= 5, "rung"
            lasts = us(request.lasts)
            good = request.rung != 1 and good_stamp(request.lasts) and SECOND <= lasts <= limits.RUNG_S_MAX * SECOND
            yield not request.HasField("lasts") or good, "lasts"
        if method in BY_HAND:
            yield from self.by_hand_checks(request)
        if method == 3 and request.HasField("ttl"):
            yield good_stamp(request.ttl) and limits.TTL_S_MIN * SECOND <= us(request.ttl) <= limits.TTL_S_MAX * SECOND, "ttl"
        if method in (2, 4) and request.HasField("receipt_key"):
            yield from key_checks(request.receipt_key, "receipt_key.")
        if method in (1, 2, 3, 6):
            holder, where = (request.receipt, "receipt.purchase_time") if method in (1, 6) else (request, "purchase_time")
            yield good_stamp(holder.purchase_time), where
        if hasattr(request, "origin"):
            key, _ = self.receipt_key(method, request)
            for part, bytes_max in ORIGIN_BYTES.items():
                yield good_text(getattr(request.origin, part), 0, bytes_max), f"origin.{part}"
            for part in ("store", "till"):
                yield key is None or getattr(request.origin, part) in ("", getattr(key, part)), f"origin.{part}"

    def by_hand_checks(self, request: Any) -> Any:
        if hasattr(request, "identifier"):
            kind = request.identifier.WhichOneof("ref")
            yield kind not in (None, "member_id"), "identifier"
            yield self.identity(request.identifier) is not None, f"identifier.{kind}"
        yield good_text(request.operator, 1, limits.OPERATOR_BYTES_MAX), "operator"
        yield good_text(request.reason, 1, limits.REASON_BYTES_MAX), "reason"

    def world_checks(self, method: int, request: Any, now_us: int) -> Any:
        ahead, max_age = now_us + limits.CLOCK_AHEAD_S_MAX * SECOND, self.program.max_age_days * 86400 * SECOND
        yield us(request.sent_time) <= ahead, "sent_time"
        bought, where = self.purchase_time(method, request)
        yield bought is None or now_us - max_age <= bought <= ahead, where
        key, where = self.receipt_key(method, request)
        if key is not None:
            day = day_number(key.business_day)
            oldest = self.day(now_us - max_age) - 1 if method != RETURN else day
            yield oldest <= day <= self.day(now_us) + 1, where + "business_day"
        if method in (1, 6):
            yield request.receipt.currency_code == self.program.currency, "receipt.currency_code"
        if method == ADJUST:
            yield request.expiry_day == 0 or day_number(request.expiry_day) > self.day(now_us), "expiry_day"

    def member_field(self, ref: Any) -> str:
        kind = ref.WhichOneof("ref")
        return f"member.{kind}" if kind else "member"

    # --- the parts of a request

    def identity(self, ref: Any) -> tuple[int, Any] | None:
        """Kind and normalised value of what names a member; None: not of its kind."""
        kind = ref.WhichOneof("ref")
        if kind == "member_id":
            return (1, ref.member_id) if 1 <= ref.member_id < 2**31 else None
        if kind == "phone":
            text = "".join(c for c in ref.phone if c not in " -.()")
            digits = text[1:]
            good = text[:1] == "+" and digits.isascii() and digits.isdigit() and digits[0] != "0"
            good = good and limits.PHONE_DIGITS_MIN <= len(digits) <= limits.PHONE_DIGITS_MAX
            return (3, text.encode()) if good and len(ref.phone.encode()) <= limits.IDENTIFIER_BYTES_MAX else None
        if kind == "email":
            text = "".join(c.lower() if c.isascii() else c for c in ref.email.strip(" "))
            good = text.count("@") == 1 and text[0] != "@" and text[-1] != "@" and " " not in text
            return (4, text.encode()) if good and good_text(text, 3, 128) and good_text(ref.email, 3, limits.EMAIL_BYTES_MAX) else None
        if kind is None:
            return None
        text = getattr(ref, kind)
        return (IDENTIFIER_KINDS.index(kind), text.encode()) if good_text(text, 1, limits.IDENTIFIER_BYTES_MAX) else None

    def owner(self, identity: tuple[int, Any]) -> int:
        """The account that an identity names; 0: none."""
        if identity[0] == 1:
            return identity[1] if identity[1] <= len(self.members) else 0
        return self.owners.get(identity, 0)

    def find(self, ref: Any) -> int:
        return self.owner(self.identity(ref))

    def wallet(self, name: str, where: str = "") -> int:
        names = [wallet.name for wallet in self.program.wallets]
        if name and name not in names:
            raise Refused("WALLET_NOT_FOUND", where + "wallet")
        return names.index(name) if name else 0

    def payment(self, method: int, request: Any) -> tuple[Any, str]:
        """The message that says what to burn, hold, capture or release, if any, and where it stands."""
        if method == 6:
            kind = request.WhichOneof("payment")
            return (getattr(request, kind), kind + ".") if kind else (None, "")
        return (request if method in (2, 3, 4, 5) else None), ""

    def receipt_key(self, method: int, request: Any) -> tuple[Any, str]:
        if method in (1, 6):
            return request.receipt.key, "receipt.key."
        return (request.receipt_key if method in (2, 4, RETURN) and request.HasField("receipt_key") else None), "receipt_key."

    def purchase_time(self, method: int, request: Any) -> tuple[int | None, str]:
        holder, where = (request.receipt, "receipt.purchase_time") if method in (1, 6) else (request, "purchase_time")
        given = method in (1, 2, 3, 6) and holder.HasField("purchase_time")
        return (us(holder.purchase_time) if given else None), where

    def content(self, method: int, request: Any) -> dict[str, Any]:
        """Everything that must be the same in a repeat, in the order of the request's fields, defaults filled in."""
        out: dict[str, Any] = {"method": method, "sent_time": us(request.sent_time)}
        if method == 7:
            return {**out, "identifiers": [self.identity(one) for one in request.identifiers], "origin": self.origin(method, request)}
        if method == RETURN:
            keyed = {f"receipt_key.{name}": getattr(request.receipt_key, name) for name in ("store", "till", "business_day", "number")}
            return {**out, **keyed, "origin": self.origin(method, request)}
        if method != UNLINK:
            out["member"] = self.identity(request.member)
        if method in BY_HAND:
            if method == ADJUST:
                out["wallet"] = request.wallet or self.program.wallets[0].name
                out |= {"points": request.points, "expiry_day": request.expiry_day}
            elif method == SET_RUNG:
                out |= {"rung": request.rung, "lasts": us(request.lasts) if request.HasField("lasts") else None}
            else:
                out["identifier"] = self.identity(request.identifier)
            return {**out, "operator": request.operator, "reason": request.reason}
        paying, at = self.payment(method, request)
        pays = {}
        if hasattr(paying, "wallet"):
            pays = {at + "wallet": paying.wallet or self.program.wallets[0].name, at + "points": paying.points}
        elif paying is not None:
            pays = {at + "reservation_id": paying.reservation_id} | ({} if method == 5 else {at + "points": paying.points})
        if method == 3:
            pays["ttl"] = us(request.ttl) if request.HasField("ttl") else limits.TTL_S_DEFAULT * SECOND
        key, where = self.receipt_key(method, request)
        keyed = {where + name: getattr(key, name) if key is not None else None for name in ("store", "till", "business_day", "number")}
        bought, where = self.purchase_time(method, request)
        if method not in (1, 6):
            timed = {where: bought} if method in (2, 3) else {}
            return {**out, **pays, **(keyed if method in (2, 4) else {}), **timed, "origin": self.origin(method, request),
                    "challenge_id": getattr(request, "challenge_id", 0)}
        receipt = request.receipt
        out |= keyed | {where: bought, "receipt.currency_code": receipt.currency_code, "receipt.total_minor": receipt.total_minor}
        for i, line in enumerate(receipt.lines):
            out |= {f"receipt.lines[{i}].{name}": getattr(line, name) for name in LINE_FIELDS}
        said = {"receipt.tenders": [(tender.name, tender.amount_minor) for tender in receipt.tenders], "receipt.channel": receipt.channel,
                "receipt.promo_codes": list(receipt.promo_codes), "receipt.quote_token": receipt.quote_token}
        said["payment"] = request.WhichOneof("payment") if method == 6 else None
        return {**out, "receipt.lines": len(receipt.lines), **said, **pays, "origin": self.origin(method, request),
                "challenge_id": getattr(request, "challenge_id", 0)}

    def origin(self, method: int, request: Any) -> dict[str, str]:
        """Where a request comes from, beside its receipt key. What is given back may be so in another store than it was bought in."""
        keyed = method != RETURN and self.receipt_key(method, request)[0] is not None
        said = {part: getattr(request.origin, part) for part in ORIGIN_BYTES} if hasattr(request, "origin") else {}
        return {part: text for part, text in said.items() if text and not (keyed and part in ("store", "till"))}

    # --- writes

    def enroll(self, request: Any, now_us: int) -> tuple[int, Any]:
        number = 0
        for i, ref in enumerate(request.identifiers):
            found = self.find(ref)
            if not found and ref.WhichOneof("ref") == "member_id":
                raise Refused("MEMBER_NOT_FOUND", f"identifiers[{i}].member_id")
            if found and number and found != number:
                raise Refused("IDENTIFIER_TAKEN", f"identifiers[{i}]")
            number = number or found
        if number and (rung := self.rung_of(self.members[number - 1], now_us)) >= 3:
            raise Refused(limits_oracle.RUNG_REFUSALS[rung], a=self.members[number - 1].rung_until_s * SECOND)
        fresh = [self.identity(ref) for ref in request.identifiers if not self.find(ref)]
        if number and self.members[number - 1].identifiers + len(fresh) > limits.IDENTIFIERS_PER_MEMBER_MAX:
            raise Refused("IDENTIFIERS_LIMIT", a=self.members[number - 1].identifiers + len(fresh), b=limits.IDENTIFIERS_PER_MEMBER_MAX)
        if (not number and len(self.members) == self.members_max) or len(self.owners) + len(fresh) > 3 * self.members_max:
            raise Refused("MEMBERS_LIMIT", a=self.members_max)
        if not number:
            self.obey(7, request, {"enrolments"}, len(self.members) + 1, now_us)
        member = self.members[number - 1] if number else self.open(self.day(now_us))
        self.link(member, fresh)
        entry, _ = self.write(7, member, [], now_us)
        if not number:
            self.limits.count(self.program, self.event(7, request, {"enrolments"}, member.number, now_us), now_us)
            self.tell(member.number, now_us)
        return member.number, pb.EnrollMemberResponse(entry=entry, opened=not number)

    def link_by_hand(self, request: Any, now_us: int) -> tuple[int, Any]:
        number, identity = self.find(request.member), self.identity(request.identifier)
        if not number:
            raise Refused("MEMBER_NOT_FOUND", self.member_field(request.member))
        member, owner = self.members[number - 1], self.owner(identity)
        if owner not in (0, number):
            raise Refused("IDENTIFIER_TAKEN", f"identifier.{request.identifier.WhichOneof('ref')}")
        if not owner and member.identifiers == limits.IDENTIFIERS_PER_MEMBER_MAX:
            raise Refused("IDENTIFIERS_LIMIT", a=member.identifiers + 1, b=limits.IDENTIFIERS_PER_MEMBER_MAX)
        if not owner and len(self.owners) == 3 * self.members_max:
            raise Refused("MEMBERS_LIMIT", a=self.members_max)
        self.link(member, [] if owner else [identity])
        entry, _ = self.write(ENTRY_KINDS[LINK], member, [], now_us)
        return number, admin.LinkIdentifierResponse(entry=entry, linked=not owner)

    def unlink(self, request: Any, now_us: int) -> tuple[int, Any]:
        identity = self.identity(request.identifier)
        number = self.owners.pop(identity, 0)
        if not number:
            raise Refused("IDENTIFIER_NOT_FOUND", f"identifier.{request.identifier.WhichOneof('ref')}")
        self.members[number - 1].identifiers -= 1
        entry, _ = self.write(ENTRY_KINDS[UNLINK], self.members[number - 1], [], now_us)
        return number, admin.UnlinkIdentifierResponse(entry=entry)

    def set_rung(self, request: Any, now_us: int) -> tuple[int, Any]:
        number = self.find(request.member)
        if not number:
            raise Refused("MEMBER_NOT_FOUND", self.member_field(request.member))
        member = self.members[number - 1]
        until_s = -(-(now_us + us(request.lasts)) // SECOND) if request.HasField("lasts") else 0
        entry, _ = self.write(ENTRY_KINDS[SET_RUNG], member, [], now_us)
        self.says[self.sequence] = None, (member.rung, request.rung - 1, until_s, 0)
        member.rung, member.rung_until_s = request.rung - 1, until_s
        return number, admin.SetRungResponse(entry=entry)

    def set_segments(self, request: Any, now_us: int) -> Any:
        """SetSegments of one member, by a request that is right and new."""
        change, now_us = request.changes[0], max(now_us, self.time_us)
        member = self.members[self.find(change.member) - 1]
        entry, _ = self.write(13, member, [], now_us)
        member.known = replace(member.known, segments=member.known.segments - set(change.remove) | set(change.add))
        return admin.SetSegmentsResponse(results=[pb.PostResult(entry=entry)])

    def publish(self, program: Programme, now_us: int) -> None:
        """Another programme with the same wallets, rules, zone and segments is in force from now on."""
        self.program, self.version = program, self.version + 1
        self.sequence, self.time_us = self.sequence + 1, max(now_us, self.time_us)

    # --- limits

    def event(self, method: int, request: Any, of: set[str], number: int, now_us: int, **more: Any) -> Event:
        """A write as limits see it. number: its member, also one that it opens; 0: nobody's."""
        key, _ = self.receipt_key(method, request)
        said = self.origin(method, request)
        elsewhere = key is None or (method == RETURN and "store" in said)
        store, till = (said.get("store", ""), said.get("till", "")) if elsewhere else (key.store, key.till)
        bought, _ = self.purchase_time(method, request)
        time_s, day, hour = limits_oracle.moment(self.program, store, now_us if bought is None else bought, now_us)
        parts = {**{part: said[part] for part in ("device", "cashier", "payment_card", "partner") if part in said},
                 **limits_oracle.place(self.program, store, till), "hour": hour}
        if number:
            parts["member"] = number
        if method not in (7, RETURN) and request.member.WhichOneof("ref") != "member_id":
            parts["identifier"] = (number, self.identity(request.member))
        event = Event(of, time_s, day, parts, **more)
        if 0 < number <= len(self.members):
            event.segments = self.members[number - 1].known.segments
        if method in (1, 6):
            event.money = request.receipt.total_minor
            event.quantity = max((line.quantity_milli for line in request.receipt.lines), default=0)
            if request.receipt.lines:
                parts["basket"] = tuple((line.sku, line.category, line.quantity_milli, line.amount_minor) for line in request.receipt.lines)
        return event

    def look_up(self, request: Any, number: int, now_us: int) -> Event:
        said = request.origin
        time_s, day, _ = limits_oracle.moment(self.program, said.store, now_us, now_us)
        parts = {part: getattr(said, part) for part in ("device", "cashier", "payment_card", "partner") if getattr(said, part)}
        where = limits_oracle.place(self.program, said.store, said.till)
        event = Event({"balances" if number else "unknown_balances"}, time_s, day, parts | where)
        if number:
            parts["member"], event.segments = number, self.members[number - 1].known.segments
        if request.member.WhichOneof("ref") != "member_id":
            parts["identifier"] = (number, self.identity(request.member))
        event.parts |= parts
        return event

    def obey(self, method: int, request: Any, of: set[str], number: int, now_us: int, **more: Any) -> Event:
        """Judges a write that would succeed. Refused: a limit does not allow it."""
        event = self.event(method, request, of, number, now_us, **more)
        self.judged = self.limits.judge(self.program, event, now_us)
        if self.judged.refused:
            raise Refused("VELOCITY_EXCEEDED")
        return event

    def rung_of(self, member: Member, now_us: int) -> int:
        return 0 if member.rung_until_s and now_us >= member.rung_until_s * SECOND else member.rung

    def tell(self, number: int, now_us: int) -> None:
        """What the entry just written says of limits: those that it is above (from 1) and what was cut; and where they move its member:
        from, to, until, by which limit."""
        if not self.judged.above:
            return
        moved = None
        if number and self.judged.rung > self.rung_of(self.members[number - 1], now_us):
            member, lasts_s = self.members[number - 1], self.judged.rung_lasts_s
            until_s = -(-now_us // SECOND) + lasts_s if lasts_s else 0
            moved = (member.rung, self.judged.rung, until_s, self.judged.rung_by + 1)
            member.rung, member.rung_until_s = self.judged.rung, until_s
        self.says[self.sequence] = (self.cut, [(limit + 1, ACTIONS[then]) for limit, then in self.judged.above]), moved

    def post(self, method: int, request: Any, now_us: int) -> tuple[int, Any]:
        """Every write that may move points."""
        earns, (paying, at) = method in (1, 6), self.payment(method, request)
        takes = paying is not None and method not in (3, 5)
        wallet = self.wallet(paying.wallet, at) if hasattr(paying, "wallet") else 0
        wallet = self.wallet(request.wallet) if method == ADJUST else wallet
        number = self.find(request.member)
        if not number and not (earns and not takes and self.program.anonymous_accounts and request.member.WhichOneof("ref") != "member_id"):
            raise Refused("MEMBER_NOT_FOUND", self.member_field(request.member))
        key, _ = self.receipt_key(method, request)
        receipt = (key.store, key.till, key.business_day, key.number) if key is not None else None
        if receipt:
            seen = self.receipts.find(receipt, key.business_day)
            if not self.receipts.runs and key.business_day <= self.receipts.forgotten and not (
                    (not earns or "earn" in seen) and (not takes or "pay" in seen)):
                raise Refused("RECEIPT_TOO_OLD", a=self.receipts.forgotten)
            first = (seen.get("earn", 0) if earns else 0) or (seen.get("pay", 0) if takes else 0)
            if first:
                raise Refused("RECEIPT_ALREADY_POSTED", a=first)
        if earns and request.receipt.quote_token:
            raise Refused("FIELD_INVALID", "receipt.quote_token")  # quotes are not the oracle's: none was ever given
        if getattr(request, "challenge_id", 0):
            raise Refused("CHALLENGE_NOT_FOUND", a=request.challenge_id)  # nor are challenges

        if number and method not in (5, ADJUST):
            member = self.members[number - 1]
            rung = self.rung_of(member, now_us)
            if rung >= 3 or (rung == 2 and not (earns and not takes)):
                raise Refused(limits_oracle.RUNG_REFUSALS[rung], a=member.rung_until_s * SECOND)

        # An expired reservation never counts: what is due is posted first, the youngest first.
        for reservation in sorted(self.active(number), key=lambda r: -r.id):
            if reservation.expire_us <= now_us:
                self.expire_reservation(reservation.id, now_us)

        bought, _ = self.purchase_time(method, request)
        today, business_day = self.day(now_us), self.day(now_us if bought is None else bought)
        member = self.members[number - 1] if number else Member(0)
        changes: list[Change] = []
        burned, expired, reservation, captured, adjusted = 0, 0, None, 0, 0
        if method == ADJUST:
            adjusted = request.points
        if adjusted > 0:
            expiry = day_number(request.expiry_day) if request.expiry_day else DAY_NEVER
            lot_key = LotKey(wallet, expiry, today, 0)
            self.check_room(member, {lot_key: adjusted}, today)
            changes.append((lot_key, adjusted, 0))
        elif adjusted < 0 or method == 3 or hasattr(paying, "wallet"):
            if method == 3 and len(self.active(number)) == limits.RESERVATIONS_PER_MEMBER_MAX:
                raise Refused("RESERVATIONS_LIMIT", a=len(self.active(number)), b=limits.RESERVATIONS_PER_MEMBER_MAX)
            asked = -adjusted or paying.points
            left = asked
            for lot_key in sorted(member.lots):
                lot = member.lots[lot_key]
                counts = lot_key.expiry > max(today, business_day) and lot_key.available <= min(today, business_day)
                taken = min(left, lot.points - lot.held) if lot_key.wallet == wallet and counts else 0
                left -= taken
                if taken:
                    changes.append((lot_key, 0, taken) if method == 3 else (lot_key, -taken, 0))
            if left:
                raise Refused("INSUFFICIENT_POINTS", a=asked - left, b=asked)
            if method == 3 and sum(r.state == ACTIVE for r in self.reservations.values()) == self.reservations_max:
                raise Refused("TABLE_FULL")
            burned = paying.points if takes else 0
        elif paying is not None:
            reservation = self.reservations.get(paying.reservation_id)
            if reservation is None:
                raise Refused("RESERVATION_NOT_FOUND", a=paying.reservation_id)
            if reservation.member != number:
                raise Refused("RESERVATION_FOREIGN", a=reservation.id)
            if reservation.state != ACTIVE:
                raise Refused("RESERVATION_NOT_ACTIVE", a=reservation.id, b=reservation.state)
            captured = 0 if method == 5 else paying.points or reservation.reserved
            if captured > reservation.reserved:
                raise Refused("CAPTURE_ABOVE_RESERVED", a=reservation.reserved, b=captured)
            wallet, burned = reservation.wallet, captured
            back, expired = self.give_back(reservation, captured, today)
            changes += back

        gifts: list[Award] = []
        given: list[Change] = []
        took = [(lot_key, -points) for lot_key, points, _ in changes if points < 0] if takes and reservation is None else []
        if takes and reservation is not None:
            left = captured
            for lot_key, held in reservation.holds:  # beside it, what goes back into an expired lot is taken by no payment
                took.append((lot_key, min(left, held)))
                left -= took[-1][1]
        result = reference.Result()
        if earns:
            knows = member.known or reference.Member(len(self.members) + 1, today)
            available = self.available(member, today, business_day, reservation)
            receipt_said = said(request.receipt, burned, wallet)
            result = self.evaluate(replace(knows, available=available), receipt_said, now_us if bought is None else bought)
            gifts, given = self.earn(member, result, not request.receipt.lines, today, business_day)
            changes += given
            if not number and (len(self.members) == self.members_max or len(self.owners) == 3 * self.members_max):
                raise Refused("MEMBERS_LIMIT", a=self.members_max)

        of = {word for word, is_so in (("earns", earns), ("burns", takes), ("reservations", method == 3),
                                       ("enrolments", not number)) if is_so}
        whose = number or len(self.members) + 1
        points = {"earns": sum(award.points for award in gifts), "burns": burned, "reservations": paying.points if method == 3 else 0}
        if of and method not in BY_HAND:
            self.obey(method, request, of, whose, now_us, points=points)
        if self.judged.points_max is not None:
            # Decided again with less to earn: the last awards go first.
            changes, gifts = changes[:-len(given)] if given else changes, self.cut_awards(gifts)
            given = self.lots_of(member, gifts, today, business_day)
            changes, points["earns"] = changes + given, sum(award.points for award in gifts)

        if number and (earns or takes):
            changes += self.moves(member, changes, today, business_day)

        # From here on it succeeds.
        counted = None
        if of and method not in BY_HAND:
            event = self.event(method, request, of, whose, now_us, points=points)
            self.limits.count(self.program, event, now_us)
            # An entry says where it came from if that was said, or if there is a limit that could ask.
            counted = event if self.program.limits or self.origin(method, request) else None
        if not number:
            member = self.open(today)
            self.link(member, [self.identity(request.member)])
        if earns:
            member.known, self.shared = reference.apply(self.program, member.known, self.shared, result)
        if reservation is not None:
            self.end(reservation, RELEASED if method == 5 else CAPTURED, captured)
        entry, wallets = self.write(ENTRY_KINDS.get(method, method), member, changes, now_us, burned=burned, expired=expired, awards=gifts,
                                    adjusted=adjusted)
        self.tell(member.number, now_us)
        if method == 5:
            self.counters_give_back(self.sales[reservation.id], {"reservations"}, now_us)
        self.sales[self.sequence] = Sale(member.number, request.receipt.total_minor if earns else 0, [row for row in took if row[1]],
                                         [(lot_key, points) for lot_key, points, _ in given], result.changes if earns else None, counted)
        if method == 3:
            ttl = us(request.ttl) if request.HasField("ttl") else limits.TTL_S_DEFAULT * SECOND
            reservation = self.hold(member, wallet, [(lot, held) for lot, _, held in changes], now_us + ttl)
        if receipt:
            facts = ({"earn": self.sequence} if earns else {}) | ({"pay": self.sequence} if takes else {})
            self.receipts.put(receipt, key.business_day, self.sequence, facts)
        answer = answer_type(method)(entry=entry, wallets=wallets)
        if reservation is not None:
            answer.reservation.CopyFrom(self.reservation(reservation))
        if earns:
            answer.result.CopyFrom(self.told(result, request.receipt))
        return member.number, answer

    # --- receipts that are given back

    def sale_of(self, request: Any) -> tuple[int, int, int]:
        """The member of a receipt, and the entries that earned by it and paid for it; 0: none. Refused: nothing can be given back."""
        key = request.receipt_key
        receipt = (key.store, key.till, key.business_day, key.number)
        seen = self.receipts.find(receipt, key.business_day)
        returned = self.receipts.find(("returned", *receipt), key.business_day).get("return")
        if not returned and not self.receipts.runs and key.business_day <= self.receipts.forgotten:
            raise Refused("RECEIPT_TOO_OLD", a=self.receipts.forgotten)
        if returned:
            raise Refused("RECEIPT_ALREADY_RETURNED", a=returned)
        earned, paid = seen.get("earn", 0), seen.get("pay", 0)
        if not earned and not paid:
            raise Refused("RECEIPT_NOT_FOUND")
        of = {self.sales[sequence].member for sequence in (earned, paid) if sequence}
        if len(of) == 2:
            raise Refused("RECEIPT_OF_TWO_MEMBERS", a=self.sales[earned].member, b=self.sales[paid].member)
        return of.pop(), earned, paid

    def give_receipt_back(self, request: Any, now_us: int) -> tuple[int, Any]:
        number, earned, paid = self.sale_of(request)
        member, today = self.members[number - 1], self.day(now_us)
        for reservation in sorted(self.active(number), key=lambda r: -r.id):
            if reservation.expire_us <= now_us:
                self.expire_reservation(reservation.id, now_us)
        nothing = Sale(number)
        earn, payment = self.sales[earned] if earned else nothing, self.sales[paid] if paid else nothing

        back: list[Change] = []  # what it paid comes back
        expired = 0
        for key, points in payment.paid:
            if key.funder & MOVES:
                key = key._replace(expiry=max(key.expiry, self.moving(member, key.wallet, today, today)[0]))
            if key.expiry > today:
                back.append((key, points, 0))
            else:
                expired += points
        room: dict[LotKey, int] = defaultdict(int)
        for key, points, _ in back:
            room[key] += points
        taken, missing = self.take_earned(member, earn.given, back, today)
        self.check_room(member, room, today)

        points = {"returns": -sum(points for _, points, _ in taken)}
        event = self.obey(RETURN, request, {"returns"}, number, now_us, points=points, money=earn.total)
        self.limits.count(self.program, event, now_us)
        for sale in ([earn] if earned == paid else [payment, earn]):
            self.counters_give_back(sale, {"earns", "burns"}, now_us)
        if earn.changes is not None:
            self.uncount(member, earn.changes)
        entry, _ = self.write(ENTRY_KINDS[RETURN], member, back + taken, now_us, burned=-sum(points for _, points in payment.paid),
                              expired=expired, earned=-points["returns"])
        self.tell(number, now_us)
        key = request.receipt_key
        self.receipts.put(("returned", key.store, key.till, key.business_day, key.number), key.business_day, self.sequence,
                          {"return": self.sequence})
        touched = sorted({key.wallet for key, _ in payment.paid + earn.given})
        return number, pb.ReturnReceiptResponse(entry=entry, wallets=[self.balance(member, wallet, today) for wallet in touched],
                                                earn_sequence=earned, payment_sequence=paid, missing_points=missing)

    def take_earned(self, member: Member, given: list[tuple[LotKey, int]], back: list[Change], today: int) -> tuple[list[Change], int]:
        """What is taken of what a sale gave, and how much is missing."""
        taken: list[Change] = []

        def take(key: LotKey, points: int) -> int:
            """Of what is in a lot and nothing holds; how much is still owed."""
            lot = member.lots.get(key, Lot())
            free = lot.points - lot.held + sum(points for at, points, _ in back + taken if at == key)
            if (some := min(free, points)) > 0:
                taken.append((key, -some, 0))
                points -= some
            return points

        owed: dict[int, int] = defaultdict(int)
        for key, points in given:
            if key.expiry > today or key.funder & MOVES:
                owed[key.wallet] += take(key, points) if key in member.lots and key.expiry > today else points
        for wallet in owed:
            others = sorted(key for key in member.lots if key.wallet == wallet and key.expiry > today)
            available, later = [[key for key in others if (key.available > today) == so] for so in (False, True)]
            fresh = [key for key, _, _ in back if key.wallet == wallet and key not in member.lots]
            for key in available + later + fresh:
                owed[wallet] = take(key, owed[wallet])
        return taken, sum(owed.values())

    def counters_give_back(self, sale: Sale, of: set[str], now_us: int) -> None:
        """Counters of limits that give back lose what an entry had added, if it counted anywhere."""
        if sale.event is not None:
            event = replace(sale.event, of=sale.event.of & of, segments=self.members[sale.member - 1].known.segments)
            self.limits.give_back(self.program, event, now_us)

    def uncount(self, member: Member, changes: reference.Changes) -> None:
        """Caps, budgets, and the windows of tiers without a receipt. What is not kept any more stays as it is."""
        known, tiers = member.known, self.program.tiers

        def without(rows: Any, number: int, *less: int) -> Any:
            return tuple((at, *(value - part for value, part in zip(values, less, strict=True))) if at == number else (at, *values)
                         for at, *values in rows)

        counters, windows = dict(known.counters), dict(known.windows)
        for key, window, increment in changes.counters:
            if key in counters:
                counters[key] = without(counters[key], window, increment)
        for window in tiers.windows if tiers else ():
            if window in windows:
                number = reference.window_number(window, changes.day, known.opened_day)
                windows[window] = without(windows[window], number, 1, changes.spent)
        campaigns = dict(self.shared.campaigns)
        for name, value, uses in changes.campaigns:
            before = campaigns[name]
            campaigns[name] = (before[0] - value, before[1] - uses)
        self.shared = reference.Shared(campaigns)
        member.known = replace(known, counters=counters, windows=windows, days=without(known.days, changes.day, 1, changes.spent))

    def available(self, member: Member, today: int, business_day: int, captured: Reservation | None) -> tuple[int, ...]:
        """What can pay, by wallet: as many points as may be taken, and those that are held for the reservation."""
        found = [0] * len(self.program.wallets)
        for key, lot in member.lots.items():
            if key.expiry > max(today, business_day) and key.available <= min(today, business_day):
                found[key.wallet] += lot.points - lot.held
        if captured is not None:
            found[captured.wallet] += captured.reserved
        return tuple(found)

    def evaluate(self, member: reference.Member, receipt: reference.Receipt, bought: int) -> reference.Result:
        """What the rules make of a receipt. Refused: nothing."""
        result = reference.evaluate(self.program, member, receipt, bought, self.shared)
        if result.refused in ("absurd_amount", "total_differs"):
            raise Refused("FIELD_INVALID", "receipt.total_minor")
        if result.refused == "points_overflow":
            raise Refused("POINTS_OVERFLOW")
        if result.refused is not None:
            largest = next((limit.points for limit in result.burn_limits if limit.wallet == receipt.burn_wallet), 0)
            raise Refused("BURN_NOT_ALLOWED", a=largest, b=receipt.burn)
        return result

    def told(self, result: reference.Result, receipt: Any) -> Any:
        """What an answer says of a receipt, beside its awards."""
        nameless = not receipt.lines
        out = pb.ReceiptResult(discount_minor=sum(result.discounts), paid_minor=sum(result.paid), notice_count=len(result.notices),
                               entitlements=result.entitlements)
        if self.program.tiers is not None:
            levels, until = [level.name for level in self.program.tiers.levels], result.changes.tier_until
            out.standing.tier = levels[result.tier]
            out.standing.new_tier = levels[result.tier_after] if result.tier_after != result.tier else ""
            out.standing.held_until_day = 0 if until is None else int((date(1970, 1, 1) + timedelta(days=until)).strftime("%Y%m%d"))
        for rows, amounts in ((out.discounts, result.discounts), (out.paid, result.paid)):
            for i, amount in enumerate(amounts, start=1):
                if amount:
                    rows.add(line=0 if nameless else i, amount_minor=amount)
        names = {2: [line.sku for line in receipt.lines], 3: [line.category for line in receipt.lines], 4: list(receipt.promo_codes),
                 5: [tender.name for tender in receipt.tenders]}
        for notice in result.notices:
            kind, _, text = notice.partition(" ")
            number = NOTICES[kind]
            out.notices.add(kind=number, text=text, index=names[number].index(text) + 1 if number in names else 0)
        return out

    def moving(self, member: Member, wallet: int, today: int, business_day: int) -> tuple[int, list[LotKey]]:
        """The expiry day that a receipt or burn gives to what lives by inactivity in a wallet, and the lots that there are of it."""
        lots = sorted(key for key in member.lots if key.wallet == wallet and key.funder & MOVES and key.expiry > today)
        life = self.program.wallets[wallet].life
        if life.unit != "inactivity":
            return 0, []
        return max([business_day + life.number, *(key.expiry for key in lots)]), lots

    def moves(self, member: Member, changes: list[Change], today: int, business_day: int) -> list[Change]:
        """What lives by inactivity gets its new expiry day; what can be used already becomes one lot of each funder."""
        moved: list[Change] = []
        for wallet in range(len(self.program.wallets)):
            expiry, lots = self.moving(member, wallet, today, business_day)
            for key in lots:
                left = member.lots[key].points - member.lots[key].held + sum(points - held for at, points, held in changes if at == key)
                same = [other.available for other in lots if other.funder == key.funder]
                to = key._replace(expiry=expiry, available=min(same) if key.available <= today else key.available)
                if left and to != key:
                    moved += [(key, -left, 0), (to, left, 0)]
        return moved

    def earn(self, member: Member, result: reference.Result, nameless: bool, today: int,
             business_day: int) -> tuple[list[Award], list[Change]]:
        """The awards of a receipt and the lots that they go into."""
        gifts = awards(self.program, result.given, nameless)
        return gifts, self.lots_of(member, gifts, today, business_day)

    def cut_awards(self, gifts: list[Award]) -> list[Award]:
        """What limits leave of them."""
        left, kept = self.judged.points_max, []
        for award in gifts:
            if (points := min(left, award.points)) > 0:
                kept.append(award._replace(points=points))
            left -= points
        self.cut = sum(award.points for award in gifts) - sum(award.points for award in kept)
        return kept

    def lots_of(self, member: Member, gifts: list[Award], today: int, business_day: int) -> list[Change]:
        """The lots that awards go into."""
        lots: dict[LotKey, int] = {}
        for award in gifts:
            key = LotKey(award.wallet, award.expiry_day, award.available_day, award.funder)
            if self.program.rules[award.rule - 1].life.unit == "inactivity":
                key = key._replace(expiry=self.moving(member, award.wallet, today, business_day)[0], funder=award.funder + MOVES)
            lots[key] = lots.get(key, 0) + award.points
        self.check_room(member, lots, today)
        return [(key, points, 0) for key, points in lots.items()]

    def check_room(self, member: Member, lots: dict[LotKey, int], today: int) -> None:
        """Whether these points may be added to these lots. Refused: not."""
        for wallet in sorted({key.wallet for key in lots}):
            counting = {key for key, lot in member.lots.items() if key.wallet == wallet and (key.expiry > today or lot.held)}
            posted = self.balance(member, wallet, today).posted_points
            if posted + sum(points for key, points in lots.items() if key.wallet == wallet) > limits.WALLET_POINTS_MAX:
                raise Refused("POINTS_OVERFLOW", a=posted)
            if len(counting | {key for key in lots if key.wallet == wallet}) > limits.LOTS_PER_WALLET_MAX:
                raise Refused("LOTS_LIMIT", a=len(counting), b=limits.LOTS_PER_WALLET_MAX)

    def open(self, today: int) -> Member:
        number = len(self.members) + 1
        self.members.append(Member(number, known=reference.Member(number, today)))
        return self.members[-1]

    def link(self, member: Member, identities: list[Any]) -> None:
        for identity in identities:
            self.owners[identity] = member.number
            member.identifiers += 1

    def write(self, kind: int, member: Member, changes: list[Change], now_us: int,
              burned: int = 0, expired: int = 0, awards: Any = (), adjusted: int = 0, earned: int = 0) -> tuple[Any, list[Any]]:
        """Applies the changes of one entry; the entry and the touched wallets after it."""
        self.sequence, self.time_us = self.sequence + 1, now_us
        for key, points, held in changes:
            lot = member.lots.setdefault(key, Lot())
            lot.points, lot.held = lot.points + points, lot.held + held
            assert 0 <= lot.held <= lot.points, "the oracle itself is wrong"
            if lot.points == 0:
                del member.lots[key]
        member.sequence = self.sequence
        entry = pb.Entry(sequence=self.sequence, kind=kind, member_id=member.number,
                         earned_points=earned + sum(award.points for award in awards),
                         burned_points=burned, expired_points=expired, adjusted_points=adjusted, program_version=self.version)
        set_us(entry.create_time, now_us)
        entry.awards.extend(pb.Award(line=award.line, rule=award.rule, points=award.points) for award in awards)
        touched = sorted({key.wallet for key, _, _ in changes})
        return entry, [self.balance(member, wallet, self.day(now_us)) for wallet in touched]

    def balance(self, member: Member, wallet: int, today: int, gone: Any = ()) -> Any:
        """One wallet at a day; `gone`: reservations that are due but not posted."""
        posted = pending = reserved = 0
        for key, lot in member.lots.items():
            if key.wallet == wallet:
                held = lot.held - sum(points for r in gone for hold, points in r.holds if hold == key)
                posted += lot.points if key.expiry > today else held
                pending += lot.points - held if key.available > today and key.expiry > today else 0
                reserved += held
        return pb.WalletBalance(wallet=self.program.wallets[wallet].name, posted_points=posted, pending_points=pending,
                                reserved_points=reserved, available_points=posted - pending - reserved)

    # --- runs of dropped keys

    def write_runs(self) -> None:
        self.ids.write_runs()
        self.receipts.write_runs()

    def has_gap(self, sequence: int) -> bool:
        """Whether keys are missing between the runs and the first ones of a snapshot of this moment."""
        return any(keys.runs and keys.in_snapshot(sequence) > keys.written for keys in (self.ids, self.receipts))

    def restart(self, snapshot: int = 0) -> None:
        """The journal is applied again, behind a snapshot of this entry: which keys are in memory afterwards."""
        for keys in (self.ids, self.receipts):
            keys.restart(keys.in_snapshot(snapshot))
        begins = [keys.generations[-1].first for keys in (self.ids, self.receipts)]
        for sequence in range(1, self.sequence + 1):
            if sequence > snapshot and not (self.ids.room() and self.receipts.room()):
                self.write_runs()
                assert self.ids.room() and self.receipts.room()
            for keys, begin in zip((self.ids, self.receipts), begins, strict=True):
                if sequence >= begin and sequence in keys.puts:
                    key, order, facts = keys.puts[sequence]
                    keys.put(key, order, sequence, facts)

    # --- reservations and ticks

    def active(self, number: int) -> list[Reservation]:
        return [r for r in self.reservations.values() if r.member == number and r.state == ACTIVE]

    def hold(self, member: Member, wallet: int, holds: list[tuple[LotKey, int]], expire_us: int) -> Reservation:
        if len(self.reservations) == self.reservations_max:  # the oldest finished one is forgotten
            del self.reservations[next(r.id for r in self.reservations.values() if r.state != ACTIVE)]
        reservation = Reservation(self.sequence, member.number, wallet, holds, sum(points for _, points in holds), expire_us)
        self.reservations[reservation.id] = reservation
        return reservation

    def give_back(self, reservation: Reservation, captured: int, today: int) -> tuple[list[Change], int]:
        """The lot changes that end a reservation, and how many points expire with it."""
        changes, expired, left = [], 0, captured
        for key, held in reservation.holds:
            taken = min(left, held)
            left -= taken
            lost = held - taken if key.expiry <= today else 0
            expired += lost
            changes.append((key, -taken - lost, -held))
        return changes, expired

    def end(self, reservation: Reservation, state: int, captured: int = 0) -> None:
        reservation.state, reservation.captured = state, captured
        finished = [r for r in self.reservations.values() if r.state != ACTIVE and r is not reservation] + [reservation]
        self.reservations = {r.id: r for r in finished + [r for r in self.reservations.values() if r.state == ACTIVE]}

    def reservation(self, r: Reservation) -> Any:
        out = pb.Reservation(reservation_id=r.id, state=r.state, wallet=self.program.wallets[r.wallet].name,
                             reserved_points=r.reserved, captured_points=r.captured)
        set_us(out.expire_time, r.expire_us)
        return out

    def due(self, now_us: int) -> tuple[list[int], set[int]]:
        """What a tick has to post: reservations, in order, and members with expired lots."""
        today = self.day(max(now_us, self.time_us))
        due = [r for r in self.reservations.values() if r.state == ACTIVE and r.expire_us <= max(now_us, self.time_us)]
        lots = {m.number for m in self.members if any(key.expiry <= today and lot.points > lot.held for key, lot in m.lots.items())}
        return [r.id for r in sorted(due, key=lambda r: (r.expire_us, r.id))], lots

    def expire_reservation(self, reservation_id: int, now_us: int) -> Any:
        reservation = self.reservations[reservation_id]
        now_us = max(now_us, self.time_us)
        changes, expired = self.give_back(reservation, 0, self.day(now_us))
        self.end(reservation, EXPIRED)
        self.counters_give_back(self.sales[reservation.id], {"reservations"}, now_us)
        return self.write(9, self.members[reservation.member - 1], changes, now_us, expired=expired)

    def expire_lots(self, number: int, now_us: int) -> Any:
        member, now_us = self.members[number - 1], max(now_us, self.time_us)
        changes = [(key, lot.held - lot.points, 0) for key, lot in member.lots.items()
                   if key.expiry <= self.day(now_us) and lot.points > lot.held]
        return self.write(8, member, changes, now_us, expired=-sum(points for _, points, _ in changes))

    # --- days and the digest

    def day(self, time_us: int) -> int:
        return reference.programme_day(self.program, time_us)

    def midnight(self, day: int) -> int:
        """The first moment of a day in the programme's zone, or the first behind it where the zone skips the day."""
        if day not in self.midnights:
            low, high = (day - 2) * DAY, (day + 2) * DAY
            while high - low > 1:  # low is before the day, high is not
                middle = (low + high) // 2
                low, high = (middle, high) if self.day(middle) < day else (low, middle)
            self.midnights[day] = high
        return self.midnights[day]

    def numbers(self) -> Compiled:
        """By what numbers the programme's counters and campaigns are known."""
        if self.version not in self.compiled:
            self.compiled[self.version] = Compiled(self.program)
        return self.compiled[self.version]

    def counters(self, known: reference.Member) -> Any:
        """Number, kind of window, and (window, value) of every counter of a member, newest window first."""
        for key, rows in known.counters.items():
            yield self.numbers().counters[key], tree.PER.index(key[1]), rows
        for window, rows in known.windows.items():
            for measure in (0, 1):
                kind = image2.WINDOWS[window.kind]
                yield kind * 2 + measure, TIER_PER[window.kind], [(row[0], row[1 + measure]) for row in rows]

    def digest(self) -> int:
        """The state digest without counters of limits, computed anew from every fact (docs/journal-format.md)."""
        total = 0
        for m in self.members:
            total += fact_hash_(1, m.number, m.sequence, m.identifiers, m.rung, m.rung_until_s)
            for key, lot in m.lots.items():
                total += fact_hash_(2, m.number, key.wallet + key.funder * 2**16, key.available + key.expiry * 2**32, lot.points, lot.held)
            known = m.known
            until = (DAY_NEVER if known.tier_until is None else known.tier_until) if known.receipts else 0
            total += fact_hash_(5, m.number, known.opened_day + (known.first_day or 0) * 2**32, (known.last_day or 0) + until * 2**32,
                                known.receipts, known.tier)
            for number, per, rows in self.counters(known):
                newest, *older = rows
                before, value = older[0] if older else (NO_WINDOW, 0)
                total += fact_hash_(7, m.number + number * 2**32, newest[0] + before * 2**32, newest[1] % 2**64, value % 2**64, per)
            for day, receipts, spent in known.days:
                total += fact_hash_(8, m.number + day * 2**32, receipts, spent, 0, 0)
            segments = sum(1 << self.program.segments.index(name) for name in known.segments)
            total += fact_hash_(6, m.number, segments, 0, 0, 0)
        for name, (points, uses) in self.shared.campaigns.items():
            total += fact_hash_(9, self.numbers().campaigns[name], points, uses, 0, 0)
        for r in self.reservations.values():
            if r.state == ACTIVE:
                total += fact_hash_(3, r.member, r.id, r.wallet, r.reserved, r.expire_us)
        for (kind, value), number in self.owners.items():
            hashed = int.from_bytes(siphash_(self.identity_key, bytes([kind]) + value), "little")
            total += fact_hash_(4, number, kind, hashed & (2**64 - 1), hashed >> 64, 0)
        return total % 2**128


def good_id(text: str) -> bool:
    good = all(c.isascii() and (c.isalnum() or c in "._:-") for c in text)
    return good and limits.REQUEST_ID_BYTES_MIN <= len(text) <= limits.REQUEST_ID_BYTES_MAX


def good_text(text: str, low: int, high: int) -> bool:
    return low <= len(text.encode()) <= high and not any(c < " " or "\x7f" <= c <= "\x9f" for c in text)


def good_stamp(stamp: Any) -> bool:
    return -62_135_596_800 <= stamp.seconds <= 253_402_300_799 and 0 <= stamp.nanos < 1_000_000_000


def key_checks(key: Any, where: str) -> Any:
    yield good_text(key.store, 1, limits.STORE_BYTES_MAX), where + "store"
    yield good_text(key.till, 1, limits.TILL_BYTES_MAX), where + "till"
    yield day_number(key.business_day) >= 0, where + "business_day"
    yield good_text(key.number, 1, limits.RECEIPT_NUMBER_BYTES_MAX), where + "number"
