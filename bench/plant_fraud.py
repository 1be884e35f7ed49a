"""What the limits of programs/fraud.yaml find: a real year of receipts with fraud planted in it, and the same year without.

    python -m bench.plant_fraud --seed 7            a quarter of the year, all households
    python -m bench.plant_fraud --seed 7 --year     the whole year
    python -m bench.plant_fraud --seed 7 --quick    some households of a quarter, for tests
    python -m bench.plant_fraud --seed 7 --keep /tmp/planted    and the planted journal as a data directory, for `daybook simulate`

Receipts, stores and times are those of bench/journey.py, amounts in roubles under programs/grocery.yaml. The data knows no tills, cashiers,
bank cards or devices: those are drawn so that honest customers look rather worse than they are. Fraud is planted case by case, each of one
pattern, with sizes drawn from below the bounds to far above. Every limit only marks, so that nothing is stopped and each can be judged
alone; what the core wrote into the entries is then compared with what was planted. docs/fraud.md says what the columns mean.
Not a test of speed, and not for other data. Run by hand and by tests/bench/test_plant_fraud.py.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from ruamel.yaml import YAML

from bench.service import ROOT
from ledger import published
from ledger.rules import check, lower2, tree
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import admin_pb2 as admin
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb

ENDS = "2027-07-10"
ZONE_US = 3 * 3_600_000_000  # of Moscow: stores' wall clock behind UTC
MINUTE_US, HOUR_US, DAY_US = 60_000_000, 3_600_000_000, 86_400_000_000
QUARTER_DAYS, QUICK_HOUSEHOLDS = 91, 150
KOPECKS_PER_CENT = 60
WITHOUT_CARD = 10  # every tenth household shops without a card: their receipts are what cashiers swipe a card on
STAFF_SHARE, APP_SHARE, SHARED_CARD_SHARE, CASH_SHARE = 0.02, 0.4, 0.1, 0.2
SHIFT_HOUR, TILLS = 15, 4
PAYS_EVERY = 7
FUEL_FROM = 1000  # the data's quantities above it are thousandths of a gallon
CASES, CASES_QUICK = 30, 4  # of each pattern
EARN, BURN, RESERVE, CAPTURE, ENROLL, BALANCE, SET_SEGMENTS, RETURN = 1, 2, 3, 4, 7, 8, 17, 30
RETURNED_SHARE = 0.01  # of honest receipts, the upper end of what groceries see
LIMITS_SECTION = 32
GROUP = 256  # entries
MEMBERS_MAX = 600_000  # far more than there are: counters have room by it, and a full table refuses receipts (docs/fraud.md)
STOPS = ("refuse", "challenge")
BAR = 0.001  # of honest receipts that hard limits may stop

# Which limits are meant for which pattern. What another limit finds is no mistake, but it does not count as its recall.
AIMS: dict[str, tuple[str, ...]] = {
    "Staff card at one cashier": ("staff card",),
    "Staff card in a day": ("staff card",),
    "Card and cashier in a month": ("staff card", "card at a till"),
    "Card at one till in an hour": ("card at a till",),
    "Card at one till in a day": ("card at a till",),
    "Split receipts": ("split receipt",),
    "Same basket again": ("same basket",),
    "Shops in a day": ("many shops",),
    "Shops within minutes": ("many shops",),
    "Receipts in a day": ("card at a till", "many shops"),
    "Members of one bank card": ("reseller",),
    "Members of one device": ("account farm",),
    "Sharp jump": ("sharp jump",),
    "Fifty of one article": ("quantity",),
    "Large order": ("large order",),
    "Points in a month": ("large order", "reseller"),
    "Accounts of one device": ("enrolment by device",),
    "Accounts at one till": ("enrolment at a till",),
    "Accounts of one cashier": ("enrolment at a till",),
    "Accounts of a shop in an hour": ("enrolment in a shop",),
    "Accounts of a shop in a day": ("enrolment in a shop",),
    "Numbers tried by a device": ("numbers tried",),
    "Numbers tried at a till": ("numbers tried at a till",),
    "Burns in a day": ("emptied account",),
    "Reservations in a day": ("emptied by holds",),
    "Points burnt in a day": ("emptied account",),
    "Burns by one device": ("account farm",),
    "Returns of a member": ("brought back over and over",),
    "Money brought back": ("large and brought back", "brought back over and over"),
    "Returns at one cashier": ("returns by a cashier",),
    "Refused over and over": ("refused over and over",),
    "Refusals at one till": ("refused over and over",),
}


@dataclass(slots=True)
class Event:
    """Something that a till or an app sends. `case`: 0 is honest."""

    at_us: int
    what: int  # method
    who: str  # the member's card; of a look-up what was tried
    case: int = 0
    row: int = -1  # of the receipts: its lines
    store: str = ""
    till: str = ""
    cashier: str = ""
    device: str = ""
    payment_card: str = ""
    total: int = 0  # the lines are made larger or smaller to come to it; 0: as they are
    pieces: int = 0  # of the first line; 0: as it is
    part: tuple[int, int] = (0, 1)  # which of so many parts of the lines
    share: int = 1  # of the points that there are, one part in so many; 0: far more than there are
    sale: str = ""  # by which a receipt and its return know each other; a receipt that never comes back has none


@dataclass(frozen=True)
class Case:
    """One fraud from its first entry to its last."""

    number: int
    pattern: str


@dataclass
class World:
    """The chain and its customers. Everything honest, in order of time."""

    seed: int
    days: int
    households: int  # 0: all
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        import pandas as pd

        from bench import journey

        self.dice = random.Random(self.seed)
        made = journey.read(pd.Timestamp(ENDS))
        receipts = made.receipts
        receipts = receipts[receipts["local"] < receipts["local"].min().normalize() + pd.Timedelta(days=self.days)]
        everybody = sorted(receipts["household"].unique().tolist())
        if self.households:
            everybody = sorted(self.dice.sample(everybody, self.households))
            receipts = receipts[receipts["household"].isin(everybody)]
        columns = (receipts["local"].astype("datetime64[us]").astype("int64"), receipts["household"], receipts["store"],
                   receipts["first_line"], receipts["line_count"])
        self.receipts = [(int(local_us) - ZONE_US, int(household), str(store), int(first), int(count))
                         for local_us, household, store, first, count in zip(*columns, strict=True)]
        self.lines = [made.lines[name].to_numpy() for name in ("product_id", "category", "quantity", "cents")]
        shuffled = self.dice.sample(everybody, len(everybody))
        self.without_card = set(shuffled[:len(shuffled) // WITHOUT_CARD])
        holders = shuffled[len(self.without_card):]
        self.staff = [card_of(one) for one in holders[:max(2, int(len(holders) * STAFF_SHARE))]]
        self.app = {card_of(one) for one in holders if self.dice.random() < APP_SHARE}
        self.bank: dict[str, str] = {card_of(one): f"bank-{one}" for one in holders}
        for one, other in zip(holders[0::2], holders[1::2], strict=False):
            if self.dice.random() < SHARED_CARD_SHARE:
                self.bank[card_of(other)] = self.bank[card_of(one)]  # a couple with two memberships
        stores = Counter(store for _, _, store, _, _ in self.receipts)
        self.busy_stores = [store for store, _ in stores.most_common(40)]
        self.begins, self.ends = self.receipts[0][0], self.receipts[-1][0]

    @cached_property
    def walk_ins(self) -> list[int]:
        """Receipts of those without a card."""
        return [row for row, (_, household, *_) in enumerate(self.receipts) if household in self.without_card and self.total(row) > 0]

    @cached_property
    def seen(self) -> dict[str, list[int]]:
        """Rows of each card's receipts."""
        found = defaultdict(list)
        for row, (_, household, *_) in enumerate(self.receipts):
            if household not in self.without_card:
                found[card_of(household)].append(row)
        return dict(found)

    @cached_property
    def regulars(self) -> list[str]:
        """Cards that fraud is done with: members before the middle of the time, no staff."""
        middle = (self.begins + self.ends) // 2
        staff = set(self.staff)
        return [card for card, rows in sorted(self.seen.items())
                if card not in staff and sum(self.receipts[row][0] < middle for row in rows) >= 6]

    @cached_property
    def returned(self) -> dict[int, int]:
        """Rows of honest receipts that come back, and when."""
        dice = random.Random(self.seed + 3)
        return {row: self.receipts[row][0] + dice.randint(1, 14) * DAY_US for rows in self.seen.values() for row in rows
                if dice.random() < RETURNED_SHARE and self.total(row) > 0}

    def total(self, row: int) -> int:
        """In kopecks."""
        _, _, _, first, count = self.receipts[row]
        return int(self.lines[3][first:first + count].sum()) * KOPECKS_PER_CENT

    def honest(self) -> list[Event]:
        """The year as it was, with what the data does not know."""
        dice, events, count, last = random.Random(self.seed + 1), [], Counter(), {}
        for row, (at_us, household, store, _, _) in enumerate(self.receipts):
            if household in self.without_card:
                continue
            card = card_of(household)
            # Who comes back soon goes to the same till: this makes honest splits look worse than they are.
            before = last.get((card, store))
            till = before[1] if before and at_us - before[0] < HOUR_US else str(dice.randrange(TILLS) + 1)
            last[card, store] = at_us, till
            said = {"store": store, "till": till, "cashier": cashier_of(store, till, at_us),
                    "device": f"phone-{card}" if card in self.app and dice.random() < 0.5 else "",
                    "payment_card": "" if dice.random() < CASH_SHARE else self.bank[card]}
            if not count[card]:
                events.append(Event(at_us - 2 * MINUTE_US, ENROLL, card, **{**said, "payment_card": ""}))
            count[card] += 1
            if count[card] % PAYS_EVERY == 0:
                events.append(Event(at_us - MINUTE_US, BALANCE, card if dice.random() > 0.02 else f"{card}x", **said))
                share = 0 if dice.random() < 0.02 else 2  # some ask for more than they have
                events.append(Event(at_us - MINUTE_US // 2, RESERVE if count[card] % (2 * PAYS_EVERY) else BURN, card, share=share, **said))
            events.append(Event(at_us, EARN, card, row=row, sale=f"row-{row}", **said))
            if row in self.returned:
                back_us, desk = self.returned[row], str(row % TILLS + 1)
                events.append(Event(back_us, RETURN, card, store=store, till=desk, cashier=cashier_of(store, desk, back_us),
                                    sale=f"row-{row}"))
        return events


def card_of(household: int) -> str:
    return f"CJ{household:06d}"


def cashier_of(store: str, till: str, at_us: int) -> str:
    """Always the same two people at a till: honest customers meet the same cashier as often as can be."""
    return f"{store}-{till}-{'early' if (at_us + ZONE_US) % DAY_US < SHIFT_HOUR * HOUR_US else 'late'}"


# --- what is planted ----------------------------------------------------------------------------------------------------

@dataclass
class Planting:
    """Draws the cases of each pattern."""

    world: World
    dice: random.Random
    cases: list[Case] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    taken: set[int] = field(default_factory=set)  # rows of honest receipts that a case has returned

    def all(self, count: int) -> None:
        for pattern, plant in PATTERNS.items():
            for _ in range(count):
                self.cases.append(Case(len(self.cases) + 1, pattern))
                plant(self)

    def moment(self, hour: int = 10, hours: int = 8) -> int:
        """A time in the second half, when stores are open."""
        world = self.world
        first = (world.begins + world.ends) // 2 // DAY_US + 1
        day = self.dice.randrange(first, world.ends // DAY_US - 1)
        return day * DAY_US - ZONE_US + hour * HOUR_US + self.dice.randrange(hours * HOUR_US)

    def add(self, at_us: int, what: int, who: str, store: str = "", till: str = "1", **said: Any) -> None:
        if store:
            said = {"cashier": cashier_of(store, till, at_us), **said, "store": store, "till": till}
        self.events.append(Event(at_us, what, who, case=self.cases[-1].number, **said))

    def basket(self) -> int:
        return self.dice.choice(self.world.walk_ins)

    def store(self) -> str:
        return self.dice.choice(self.world.busy_stores)

    def card(self) -> str:
        return self.dice.choice(self.world.regulars)

    def staff_card(self) -> None:
        """A cashier puts an employee's card to 1..8 receipts of others in a shift, on 1..10 days."""
        store, card, first = self.store(), self.dice.choice(self.world.staff), self.moment(9, 2)
        for day in range(self.dice.randint(1, 10)):
            at = first + day * DAY_US
            for _ in range(self.dice.randint(1, 8)):
                at += self.dice.randint(8, 40) * MINUTE_US
                self.add(at, EARN, card, store, row=self.basket(), payment_card=f"stranger-{self.dice.randrange(10**9)}")

    def till_card(self) -> None:
        """A friend's card lies beside the till: 3..14 receipts in some hours."""
        store, card, at = self.store(), self.card(), self.moment()
        for _ in range(self.dice.randint(3, 14)):
            at += self.dice.randint(3, 25) * MINUTE_US
            self.add(at, EARN, card, store, row=self.basket(), payment_card=f"stranger-{self.dice.randrange(10**9)}")

    def many_shops(self) -> None:
        """A number that a whole office dictates: 2..9 shops, minutes apart."""
        card, at = self.card(), self.moment()
        for store in self.dice.sample(self.world.busy_stores, self.dice.randint(2, 9)):
            at += self.dice.randint(2, 40) * MINUTE_US
            self.add(at, EARN, card, store, row=self.basket(), payment_card=f"stranger-{self.dice.randrange(10**9)}")

    def split(self) -> None:
        """One purchase in 2..6 receipts."""
        store, card, at, row, parts = self.store(), self.card(), self.moment(), self.basket(), self.dice.randint(2, 6)
        for part in range(parts):
            at += self.dice.randint(60, 150) * 1_000_000
            self.add(at, EARN, card, store, row=row, part=(part, parts), payment_card=self.world.bank[card])

    def same_basket(self) -> None:
        """One receipt under 2..7 numbers, in an hour or over a day."""
        store, card, at, row = self.store(), self.card(), self.moment(9, 2), self.basket()
        for again in range(self.dice.randint(2, 7)):
            self.add(at, EARN, card, store, str(again % TILLS + 1), row=row)
            at += self.dice.randint(5, 60) * MINUTE_US

    def jump(self) -> None:
        """4..20 times of what the member usually spends."""
        card, at = self.card(), self.moment()
        rows = [row for row in self.world.seen[card] if self.world.receipts[row][0] < at]
        mean = sum(map(self.world.total, rows)) // len(rows)
        self.add(at, EARN, card, self.store(), row=self.basket(), total=max(100, mean * self.dice.randint(4, 20)))

    def quantity(self) -> None:
        """20..300 pieces of one article."""
        self.add(self.moment(), EARN, self.card(), self.store(), row=self.basket(), pieces=self.dice.randint(20, 300))

    def large(self) -> None:
        """An order of 30,000 to 150,000."""
        self.add(self.moment(), EARN, self.card(), self.store(), row=self.basket(), total=self.dice.randint(3_000_000, 15_000_000))

    def reseller(self) -> None:
        """One bank card pays for 3..15 members in a month."""
        at, bank = self.moment(), f"reseller-{self.cases[-1].number}"
        for card in self.dice.sample(self.world.regulars, min(len(self.world.regulars), self.dice.randint(3, 15))):
            self.add(at, EARN, card, self.store(), row=self.basket(), payment_card=bank)
            at += self.dice.randint(1, 30) * HOUR_US // 20

    def farm(self) -> None:
        """A phone that pays with the points of 2..12 members in an hour or two."""
        at, device = self.moment(), f"farm-{self.cases[-1].number}"
        for card in self.dice.sample(self.world.regulars, min(len(self.world.regulars), self.dice.randint(2, 12))):
            self.add(at, BURN, card, self.store(), device=device, share=1)
            at += self.dice.randint(2, 15) * MINUTE_US

    def enrolments(self, device: str, store: str, count: int, minutes: float) -> None:
        at = self.moment()
        for number in range(count):
            self.add(at, ENROLL, f"new-{self.cases[-1].number}-{number}", store, device=device)
            at += int(minutes * MINUTE_US * self.dice.uniform(0.3, 1.7))

    def enrol_device(self) -> None:
        """Welcome points for 2..25 people who are not there, from one phone."""
        self.enrolments(f"enrol-{self.cases[-1].number}", "", self.dice.randint(2, 25), 3)

    def enrol_till(self) -> None:
        """4..60 accounts at a till, one every minute or so."""
        self.enrolments("", self.store(), self.dice.randint(4, 60), 1)

    def enrol_shop(self) -> None:
        """60..600 accounts in a shop, over all tills and eight hours: somebody is paid by the form."""
        store, first = self.store(), self.moment(9, 2)
        for number in range(self.dice.randint(60, 600)):
            self.add(first + self.dice.randrange(8 * HOUR_US), ENROLL, f"new-{self.cases[-1].number}-{number}", store,
                     str(self.dice.randrange(TILLS) + 1))

    def tried(self, place: str, store: str, count: int) -> None:
        at = self.moment()
        for number in range(count):
            self.add(at, BALANCE, f"guess-{self.cases[-1].number}-{number}", store, device=place)
            at += self.dice.randint(3, 30) * 1_000_000

    def tried_device(self) -> None:
        """5..120 numbers from one device."""
        self.tried(f"guesses-{self.cases[-1].number}", "", self.dice.randint(5, 120))

    def tried_till(self) -> None:
        """10..80 numbers at one till."""
        self.tried("", self.store(), self.dice.randint(10, 80))

    def emptied(self, what: int) -> None:
        store, card, at, times = self.store(), self.card(), self.moment(), self.dice.randint(2, 9)
        for left in range(times, 0, -1):
            self.add(at, what, card, store, device=f"thief-{self.cases[-1].number}", share=left)
            at += self.dice.randint(2, 20) * MINUTE_US

    def bring_back(self, sale: str, bought: int, card: str, store: str, **said: Any) -> int:
        """A receipt, and its return 1..5 days later. When it was."""
        self.add(bought, EARN, card, store, row=self.basket(), sale=sale, **said)
        back = bought + self.dice.randint(1, 5) * DAY_US
        self.add(back, RETURN, card, store, sale=sale)
        return back

    def returner(self) -> None:
        """2..12 receipts in two weeks, all brought back."""
        store, card, at = self.store(), self.card(), self.moment()
        for number in range(self.dice.randint(2, 12)):
            self.bring_back(f"{self.cases[-1].number}-{number}", at, card, store)
            at += self.dice.randint(1, 28) * HOUR_US

    def large_back(self) -> None:
        """An order of 5,000 to 60,000 for its points, which are spent before it is brought back."""
        store, card, at = self.store(), self.card(), self.moment()
        back = self.bring_back(f"{self.cases[-1].number}", at, card, store, total=self.dice.randint(500_000, 6_000_000))
        self.add(back - HOUR_US, BURN, card, store)

    def cashier_returns(self) -> None:
        """A cashier gives back 3..20 receipts of the last weeks and keeps the money."""
        world, store, at = self.world, self.store(), self.moment(15, 5)
        recent = [row for card, rows in sorted(world.seen.items()) for row in rows
                  if world.receipts[row][2] == store and at - 30 * DAY_US < world.receipts[row][0] < at - HOUR_US
                  and row not in world.returned and row not in self.taken and world.total(row) > 0]
        for row in self.dice.sample(recent, min(len(recent), self.dice.randint(3, 20))):
            self.taken.add(row)
            self.add(at, RETURN, card_of(world.receipts[row][1]), store, sale=f"row-{row}")
            at += self.dice.randint(2, 12) * MINUTE_US

    def refused(self) -> None:
        """5..40 attempts to take more than there is."""
        store, card, at = self.store(), self.card(), self.moment()
        for _ in range(self.dice.randint(5, 40)):
            self.add(at, BURN, card, store, share=0)
            at += self.dice.randint(20, 120) * 1_000_000


PATTERNS: dict[str, Callable[[Planting], None]] = {
    "staff card": Planting.staff_card,
    "card at a till": Planting.till_card,
    "many shops": Planting.many_shops,
    "split receipt": Planting.split,
    "same basket": Planting.same_basket,
    "sharp jump": Planting.jump,
    "quantity": Planting.quantity,
    "large order": Planting.large,
    "reseller": Planting.reseller,
    "account farm": Planting.farm,
    "enrolment by device": Planting.enrol_device,
    "enrolment at a till": Planting.enrol_till,
    "enrolment in a shop": Planting.enrol_shop,
    "numbers tried": Planting.tried_device,
    "numbers tried at a till": Planting.tried_till,
    "emptied account": lambda planting: planting.emptied(BURN),
    "emptied by holds": lambda planting: planting.emptied(RESERVE),
    "refused over and over": Planting.refused,
    "brought back over and over": Planting.returner,
    "large and brought back": Planting.large_back,
    "returns by a cashier": Planting.cashier_returns,
}


# --- the ledger -----------------------------------------------------------------------------------------------------------

def programme(*, limits: bool = True) -> tuple[tree.Programme, bytes, list[dict[str, Any]]]:
    """The grocery chain's with every limit as a mark (look-ups must refuse to be seen), its source, and the limits as the file has them."""
    rows = YAML(typ="safe").load((ROOT / "programs" / "fraud.yaml").read_text())["limits"]
    marks = []
    for row in rows:
        soft = {key: value for key, value in row.items() if key not in ("rung", "lasts")}
        looks = {"balances", "unknown_balances"} & set([row["of"]] if isinstance(row["of"], str) else row["of"])
        marks.append(soft | {"then": "refuse" if looks and row["then"] == "refuse" else "shadow" if looks else "mark"})
    source = (ROOT / "programs" / "grocery.yaml").read_text() + "\nsegments: [staff]\n"
    source += f"limits: {json.dumps(marks)}\n" if limits else ""
    return check.check_source(source.encode()), source.encode(), rows


class Till:
    """Sends events to a ledger in this process. `met`: event -> limits (from 0) that it is above."""

    def __init__(self, world: World, begins_us: int, *, limits: bool = True) -> None:
        self.world = world
        self.programme, source, self.rows = programme(limits=limits)
        self.places = {row["name"]: place for place, row in enumerate(self.rows)}
        self.core = LocalLedger(lower2.lower_programme(self.programme), source, begins_us, members_max=MEMBERS_MAX, ids_max=1_000_000)
        self.sent = 0
        self.posted: list[Event] = []
        self.points: dict[str, int] = {}
        self.answered: dict[int, Event] = {}
        self.met: list[tuple[Event, tuple[int, ...]]] = []
        self.failed: Counter[str] = Counter()
        self.keys: dict[str, pb.ReceiptKey] = {}

    def call(self, method: int, request: Any, at_us: int) -> tuple[int, bytes, int]:
        self.sent += 1
        if method != BALANCE:
            request.request_id = f"planted-{self.sent:012d}"
            request.sent_time.FromMicroseconds(at_us)
        return self.core.call(method, request.SerializeToString(), at_us)

    def post(self, events: list[Event]) -> None:
        """Once, in order of time."""
        self.posted = events
        staff = set(self.world.staff)
        for event in events:
            code, data, sequence = self.send(event)
            if sequence:
                self.answered[sequence] = event
            if code and not (event.what == BALANCE or event.share == 0):
                self.failed[f"method {event.what}, code {code}"] += 1
            if event.what == BALANCE and code == 8:  # RESOURCE_EXHAUSTED: a limit; the two of numbers tried are told apart by the place
                self.met.append((event, (self.places["Numbers tried by a device" if event.device else "Numbers tried at a till"],)))
            if event.what == ENROLL and event.who in staff:
                change = admin.SegmentChange(member=pb.MemberRef(card=event.who), add=["staff"])
                self.call(SET_SEGMENTS, admin.SetSegmentsRequest(changes=[change], operator="anna", reason="staff"), event.at_us)
        for sequence, entry in enumerate(self.core.entries(), 1):
            if (data := published.sections(entry).get(LIMITS_SECTION)) is not None and sequence in self.answered:
                self.met.append((self.answered[sequence], limits_of(data)))

    def send(self, event: Event) -> tuple[int, bytes, int]:
        origin = pb.Origin(device=event.device, cashier=event.cashier, payment_card=event.payment_card)
        if event.what != EARN:
            origin.store, origin.till = event.store, event.till
        member = pb.MemberRef(card=event.who)
        if event.what == EARN:
            answer = self.call(EARN, pb.EarnPointsRequest(member=member, receipt=self.receipt(event), origin=origin), event.at_us)
            if answer[0] == 0:
                self.know(event.who, pb.EarnPointsResponse.FromString(answer[1]).wallets)
            return answer
        if event.what == RETURN:
            return self.call(RETURN, pb.ReturnReceiptRequest(receipt_key=self.keys[event.sale], origin=origin), event.at_us)
        if event.what == ENROLL:
            return self.call(ENROLL, pb.EnrollMemberRequest(identifiers=[member], origin=origin), event.at_us)
        if event.what == BALANCE:
            return self.call(BALANCE, pb.GetBalanceRequest(member=member, origin=origin), event.at_us)
        there = self.points.get(event.who, 0)
        points = max(1, there // event.share) if event.share else there + 1_000_000
        if event.what == BURN:
            answer = self.call(BURN, pb.BurnPointsRequest(member=member, wallet="points", points=points, origin=origin), event.at_us)
            if answer[0] == 0:
                self.know(event.who, pb.BurnPointsResponse.FromString(answer[1]).wallets)
            return answer
        answer = self.call(RESERVE, pb.ReservePointsRequest(member=member, wallet="points", points=points, origin=origin), event.at_us)
        if answer[0] == 0:
            held = pb.ReservePointsResponse.FromString(answer[1]).reservation
            request = pb.CaptureReservationRequest(member=member, reservation_id=held.reservation_id, origin=origin)
            taken = self.call(CAPTURE, request, event.at_us)
            if taken[0] == 0:
                self.answered[taken[2]] = event
                self.know(event.who, pb.CaptureReservationResponse.FromString(taken[1]).wallets)
        return answer

    def know(self, card: str, wallets: Any) -> None:
        for wallet in wallets:
            self.points[card] = wallet.available_points

    def receipt(self, event: Event) -> pb.Receipt:
        _, _, _, first, count = self.world.receipts[event.row]
        day = time.gmtime((event.at_us + ZONE_US) // 1_000_000)
        made = pb.Receipt(currency_code="RUB", channel="shop")
        made.key.store, made.key.till, made.key.number = event.store, event.till, f"n{self.sent + 1}"
        made.key.business_day = day.tm_year * 10_000 + day.tm_mon * 100 + day.tm_mday
        part, parts = event.part
        whole = max(1, self.world.total(event.row)) if event.total else 1
        skus, categories, quantities, cents = self.world.lines
        for place in range(first + part, first + count, parts):
            amount = int(cents[place]) * KOPECKS_PER_CENT
            quantity = int(quantities[place])
            made.lines.add(sku=str(skus[place]), category=str(categories[place]),
                           quantity_milli=quantity if quantity > FUEL_FROM else quantity * 1000,
                           amount_minor=amount * event.total // whole if event.total else amount)
        if event.pieces and made.lines:
            made.lines[0].quantity_milli = event.pieces * 1000
        made.total_minor = sum(line.amount_minor for line in made.lines)
        if event.sale:
            self.keys[event.sale] = made.key
        return made


def limits_of(section: bytes) -> tuple[int, ...]:
    """The limits of a LIMITS section, from 0: behind what was cut, for each its number from 1 and a byte."""
    found, at, number = [], 0, 0
    while at < len(section):
        value = shift = 0
        while True:
            byte, at = section[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        if number:
            found.append(value - 1)
            at += 1
        number += 1
    return tuple(found)


# --- what came of it --------------------------------------------------------------------------------------------------------

@dataclass
class Found:
    """One limit. Entries and cases of the patterns that it is meant for; alarms: a member, till or device on a day."""

    name: str
    then: str
    aims: tuple[str, ...]
    cases: int = 0
    cases_found: int = 0
    entries: int = 0
    entries_found: int = 0
    above: int = 0  # entries, all
    above_planted: int = 0
    alarms: int = 0
    alarms_planted: int = 0
    clean: int = 0  # honest entries above it where nothing was planted
    clean_members: int = 0


def where(event: Event) -> tuple[str, int]:
    """What a person who follows an alarm would look at: who, on which day."""
    place = event.device or f"{event.store}/{event.till}"
    return place if event.what in (ENROLL, BALANCE) else event.who, (event.at_us + ZONE_US) // DAY_US


def judged(rows: list[dict[str, Any]], planted: Till, clean: Till, cases: list[Case]) -> list[Found]:
    """Precision and recall of each limit."""
    pattern = {case.number: case.pattern for case in cases}
    events = Counter(pattern[event.case] for event in planted.posted if event.case)
    by_limit: dict[int, list[Event]] = defaultdict(list)
    for event, limits in planted.met:
        for limit in limits:
            by_limit[limit].append(event)
    quiet: dict[int, list[Event]] = defaultdict(list)
    for event, limits in clean.met:
        for limit in limits:
            quiet[limit].append(event)
    found = []
    for place, row in enumerate(rows):
        one = Found(row["name"], row["then"], AIMS.get(row["name"], ()))
        # An event that is two entries (a reservation and what it became) counts once.
        above = list({id(event): event for event in by_limit[place]}.values())
        one.cases = sum(case.pattern in one.aims for case in cases)
        one.cases_found = len({event.case for event in above if pattern.get(event.case) in one.aims})
        one.entries = sum(events[name] for name in one.aims)
        one.entries_found = sum(pattern.get(event.case) in one.aims for event in above)
        one.above, one.above_planted = len(above), sum(event.case != 0 for event in above)
        alarms = {where(event) for event in above}
        one.alarms, one.alarms_planted = len(alarms), len({where(event) for event in above if event.case})
        one.clean = len({id(event) for event in quiet[place]})
        one.clean_members = len({event.who for event in quiet[place]})
        found.append(one)
    return found


def keep(core: LocalLedger, folder: Path) -> None:
    """The journal as a data directory, by the tests' own writer: the service is not needed for it."""
    from tests.ledger.forging import Forge

    forge, entries = Forge(), core.entries()
    for at in range(0, len(entries), GROUP):
        group = entries[at:at + GROUP]
        forge.add(*group, time_us=int.from_bytes(group[-1][8:16], "little"))
    forge.write(folder)


def run(seed: int, *, days: int, households: int, cases: int, folder: Path | None = None) -> dict[str, Any]:
    """Both years, and what limits made of them."""
    world = World(seed, days, households)
    planting = Planting(world, random.Random(seed + 2))
    honest = world.honest()
    planting.all(cases)
    tills = []
    for events in ([replace(event) for event in honest], [*honest, *planting.events]):
        events.sort(key=lambda event: event.at_us)
        till = Till(world, events[0].at_us - DAY_US)
        till.post(events)
        tills.append(till)
    clean, planted = tills
    if folder is not None:
        keep(planted.core, folder)
    found = judged(clean.rows, planted, clean, planting.cases)
    stops = {place for place, row in enumerate(clean.rows) if row["then"] in STOPS}
    stopped = [event for event, limits in clean.met if stops & set(limits)]
    receipts = sum(event.what == EARN for event in clean.posted)
    caught: dict[str, set[int]] = defaultdict(set)
    hard: dict[str, set[int]] = defaultdict(set)
    names = {case.number: case.pattern for case in planting.cases}
    for event, limits in planted.met:
        if event.case:
            caught[names[event.case]].add(event.case)
            if stops & set(limits):
                hard[names[event.case]].add(event.case)
    per_pattern = Counter(case.pattern for case in planting.cases)
    return {
        "seed": seed, "days": days, "households": households, "members": sum(event.what == ENROLL for event in clean.posted),
        "receipts": receipts, "honest": len(clean.posted), "planted": len(planting.events), "cases": len(planting.cases),
        "limits": [vars(one) for one in found],
        "patterns": [{"pattern": name, "cases": count, "entries": sum(names[event.case] == name for event in planting.events),
                      "found": len(caught[name]), "found_by_hard": len(hard[name])} for name, count in per_pattern.items()],
        "false_stops": {"receipts": sum(event.what == EARN for event in stopped),
                        "of_receipts": receipts,
                        "others": sum(event.what != EARN for event in stopped), "of_others": len(clean.posted) - receipts,
                        "members": len({event.who for event in stopped})},
        "refused": dict(planted.failed + clean.failed),
        "entries": len(planted.core.entries()),
    }


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "-"


def show(made: dict[str, Any], out: Console) -> None:
    """The tables."""
    table = Table(title=f"limits of programs/fraud.yaml, seed {made['seed']}, {made['days']} days, {made['members']:,} members: "
                        f"{made['honest']:,} honest entries, {made['planted']:,} planted in {made['cases']} cases", title_justify="left")
    for name in ("limit", "then", "cases found", "entries found", "precision, entries", "precision, alarms", "clean: entries", "members"):
        table.add_column(name, justify="left" if name in ("limit", "then") else "right")
    for one in made["limits"]:
        recall = [f"{one[f'{what}_found']} of {one[what]}, {share(one[f'{what}_found'], one[what])}" if one[what] else "-"
                  for what in ("cases", "entries")]
        table.add_row(one["name"], one["then"], *recall, share(one["above_planted"], one["above"]),
                      share(one["alarms_planted"], one["alarms"]), str(one["clean"]), str(one["clean_members"]))
    out.print(table)
    patterns = Table(title="what was planted, and found by any limit", title_justify="left")
    for name in ("pattern", "cases", "entries", "found", "found by one that refuses or challenges"):
        patterns.add_column(name, justify="left" if name == "pattern" else "right")
    for row in made["patterns"]:
        patterns.add_row(row["pattern"], str(row["cases"]), str(row["entries"]), f"{row['found']}, {share(row['found'], row['cases'])}",
                         f"{row['found_by_hard']}, {share(row['found_by_hard'], row['cases'])}")
    out.print(patterns)
    stops = made["false_stops"]
    rate = stops["receipts"] / max(1, stops["of_receipts"])
    out.print(f"false stops where nothing was planted: {stops['receipts']:,} of {stops['of_receipts']:,} receipts "
              f"({100 * rate:.4f} %, bar {100 * BAR} %: {'met' if rate < BAR else 'MISSED'}), {stops['others']:,} of "
              f"{stops['of_others']:,} other entries; {stops['members']:,} members")
    if made["refused"]:
        out.print(f"not posted for other reasons: {made['refused']}")


def main(arguments: list[str] | None = None) -> int:
    """0; 1: hard limits stop more honest receipts than the bar allows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--year", action="store_true", help="the whole year instead of a quarter")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_HOUSEHOLDS} households, few cases")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="write the planted journal there")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    begun = time.perf_counter()
    made = run(parsed.seed, days=366 if parsed.year else QUARTER_DAYS, households=QUICK_HOUSEHOLDS if parsed.quick else 0,
               cases=CASES_QUICK if parsed.quick else CASES, folder=parsed.keep)
    made["seconds"] = round(time.perf_counter() - begun)
    if parsed.json:
        print(json.dumps(made))
    else:
        show(made, Console(width=170))
    stops = made["false_stops"]
    return int(stops["receipts"] >= BAR * stops["of_receipts"])


if __name__ == "__main__":
    sys.exit(main())
