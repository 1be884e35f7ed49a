"""A second reader, written from docs/journal-format.md alone, comes to the same state as the core: the digest proves it.

Entries are made by the core from random requests, taken apart by ledger/journal.py and applied here by plain Python. If the format's page
left anything out, the digest would differ.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ledger import journal
from ledger.rules import compile_file
from server._local import LocalLedger
from tests import till
from tests.ledger.forging import Forge
from tests.ledger.rules_state import RulesState
from tests.test_two_ports import random_requests
from tests.till import METHODS

ROOT = Path(__file__).resolve().parents[2]
START_US = 1_790_000_000_000_000
HOUR_US = 3_600_000_000
MASK = (1 << 64) - 1
ENDED = ("captured", "released", "expired")


def fold(a: int, b: int) -> int:
    product = a * b
    return (product & MASK) ^ (product >> 64)


def rotl(value: int, by: int) -> int:
    return ((value << by) | (value >> (64 - by))) & MASK


def fact(*words: int) -> int:
    """The fact hash, as the page has it."""
    w = [word & MASK for word in words] + [0] * (6 - len(words))
    x = fold(w[0] ^ 0xA0761D6478BD642F, w[1] ^ 0xE7037ED1A0B428DB)
    y = fold(w[2] ^ 0x8EBC6AF09C88C6E3, w[3] ^ 0x589965CC75374CC3)
    z = fold(w[4] ^ 0x1D8E4E27C47D124F, w[5] ^ 0xEB44ACCAB455D165)
    low = fold(x ^ rotl(y, 23), z ^ 0x9E3779B97F4A7C15)
    high = fold(y ^ rotl(z, 41) ^ low, x ^ 0xC2B2AE3D27D4EB4F)
    return low | high << 64


class State:
    """Everything that a digest covers."""

    def __init__(self) -> None:
        self.accounts: dict[int, list[int]] = {}  # member: [sequence, identifiers]
        self.lots: dict[tuple[int, int, int, int, int], list[int]] = {}  # member, wallet, available, expiry, funder: [points, held]
        self.reservations: dict[int, tuple[int, int, int, int]] = {}  # id: member, wallet, points, expire time
        self.identifiers: dict[tuple[str, bytes], int] = {}
        self.rules = RulesState()

    def apply(self, sequence: int, entry: dict[str, Any]) -> None:
        member = entry["member"]
        if entry["status"] or not member:
            return
        if entry["opened"]:
            assert member == len(self.accounts) + 1
            self.accounts[member] = [0, 0]
        account = self.accounts[member]
        account[0] = sequence
        self.rules.apply(entry)
        for identifier in entry.get("identifiers", ()):
            if entry["kind"] == "unlink":
                assert self.identifiers.pop((identifier["type"], identifier["hash"])) == member
                account[1] -= 1
                continue
            assert (identifier["type"], identifier["hash"]) not in self.identifiers
            self.identifiers[identifier["type"], identifier["hash"]] = member
            account[1] += 1
        moved: dict[int, int] = {}
        for change in entry.get("lots", ()):
            key = (member, change["wallet"], change["available_day"], change["expiry_day"],
                   change["funder"] + (change["by_inactivity"] << 15))
            lot = self.lots.setdefault(key, [0, 0])
            lot[0] += change["points"]
            lot[1] += change["held"]
            moved[change["wallet"]] = moved.get(change["wallet"], 0) + change["points"]
            assert lot[0] >= 0 and lot[1] >= 0
            if lot == [0, 0]:
                del self.lots[key]
        self._check_postings(entry, moved)
        if (reservation := entry.get("reservation")) is not None:
            if reservation["state"] == "active":
                assert reservation["id"] == sequence
                self.reservations[sequence] = (member, reservation["wallet"], reservation["reserved_points"], reservation["expire_time_us"])
            else:
                assert reservation["state"] in ENDED
                del self.reservations[reservation["id"]]

    @staticmethod
    def _check_postings(entry: dict[str, Any], moved: dict[int, int]) -> None:
        sums: dict[int, int] = {}
        members: dict[int, int] = {}
        for posting in entry.get("postings", ()):
            sums[posting["wallet"]] = sums.get(posting["wallet"], 0) + posting["points"]
            if posting["account"] == "member":
                members[posting["wallet"]] = members.get(posting["wallet"], 0) + posting["points"]
        assert {wallet: points for wallet, points in members.items() if points} == {w: points for w, points in moved.items() if points}
        assert not any(sums.values()), "postings sum to zero"

    def digest(self) -> bytes:
        types = {name: number for number, name in journal.IDENTIFIERS.items()}
        facts = [fact(1, member, sequence, count) for member, (sequence, count) in self.accounts.items()]
        facts += [fact(2, member, wallet + (funder << 16), available + (expiry << 32), points, held)
                  for (member, wallet, available, expiry, funder), (points, held) in self.lots.items()]
        facts += [fact(3, member, id_, wallet, points, expire) for id_, (member, wallet, points, expire) in self.reservations.items()]
        facts += [fact(4, member, types[kind], int.from_bytes(hash_[:8], "little"), int.from_bytes(hash_[8:], "little"))
                  for (kind, hash_), member in self.identifiers.items()]
        facts += [fact(*words) for words in self.rules.facts()]
        return (sum(facts) % (1 << 128)).to_bytes(16, "little")


def requests_by_hand(seed: int, count: int, at: int) -> list[tuple[str, Any]]:
    """Of the same cards as the tills' requests: some are taken, some names are nobody's."""
    chosen, made = random.Random(seed), []
    for i in range(count):
        ids: dict[str, Any] = {"at": at, "request_id": f"by-hand-{seed}-{i:010d}"}
        cards = [f"card-{chosen.randrange(10)}" for _ in range(2)]
        method = chosen.choice(till.BY_HAND)
        if method == "AdjustPoints":
            points = chosen.randrange(-60, 60) or 1
            made.append((method, till.by_hand(method, card=cards[0], points=points, expiry_day=20261231 if points > 30 else 0, **ids)))
        elif method == "LinkIdentifier":
            made.append((method, till.by_hand(method, card=cards[0], identifier=cards[1], **ids)))
        else:
            made.append((method, till.by_hand(method, identifier=cards[0], **ids)))
    return made


@pytest.mark.parametrize("seed", [1, 3, 4])
def test_plain_python_from_the_format_s_page_reaches_the_digest(seed: int, tmp_path: Path) -> None:
    compiled = compile_file(ROOT / "programs" / "base.yaml")
    ledger = LocalLedger(compiled.image, compiled.source, START_US)
    now = START_US
    requests = random_requests(seed, 400, START_US)
    for request in requests_by_hand(seed, 100, START_US):
        requests.insert(random.Random(f"{seed} {request[1].request_id}").randrange(50, len(requests)), request)
    for number, (method, request) in enumerate(requests):
        ledger.call(METHODS[method], request.SerializeToString(), now)
        if number % 100 == 99:
            now += HOUR_US  # reservations run out
            ledger.tick(now)
    now += 400 * 24 * HOUR_US  # all lots run out
    ledger.tick(now - 30 * 24 * HOUR_US)
    ledger.write_digest(now)

    state, forge, kinds, met = State(), Forge(), set(), 0
    for sequence, entry in enumerate(ledger.entries(), start=1):
        read = journal.read_entry(entry)
        kinds.add(read["kind"])
        if read["kind"] == "digest":
            assert read["digest"] == state.digest()
            met += 1
        state.apply(sequence, read)
        forge.add(entry, time_us=read["time_us"])
    assert met >= 1
    assert state.digest() == ledger.digest()
    assert {"program", "earn", "burn", "reserve", "release", "commit", "enroll", "adjust", "link", "unlink", "return", "expire_lots",
            "expire_reservation", "digest"} <= kinds

    from ledger.verify import verify

    report = verify(forge.write(tmp_path / "data", drained_groups=len(forge.groups) // 2))
    assert report.totals["digest"] == state.digest()
    assert report.totals["members"] == len(state.accounts)
    adjusted = -sum(posting["points"] for entry in map(journal.read_entry, ledger.entries()) for posting in entry.get("postings", ())
                    if posting["account"] == "adjusted")
    assert report.totals["wallets"]["points"]["adjusted"] == adjusted != 0
    outstanding = sum(points for points, _ in state.lots.values())
    assert report.totals["wallets"]["points"]["outstanding"] == outstanding


def test_an_entry_by_hand_says_who_why_and_what_named_the_account() -> None:
    compiled = compile_file(ROOT / "programs" / "base.yaml")
    ledger = LocalLedger(compiled.image, compiled.source, START_US)
    for method, request in (
        ("EarnPoints", till.earn("card-1", at=START_US)),
        ("AdjustPoints", till.by_hand("AdjustPoints", at=START_US, card="card-1", points=7, expiry_day=20261231)),
        ("LinkIdentifier", till.by_hand("LinkIdentifier", at=START_US, member_id=1, identifier="card-2")),
        ("UnlinkIdentifier", till.by_hand("UnlinkIdentifier", at=START_US, identifier="card-1")),
    ):
        assert ledger.call(METHODS[method], request.SerializeToString(), START_US)[0] == 0
    earn, adjust, link, unlink = [journal.read_entry(entry) for entry in ledger.entries()[1:]]
    hashes = [int.from_bytes(entry["identifiers"][0]["hash"], "little") for entry in (earn, link)]
    assert "named" not in earn["context"], "IDENTIFIERS has it whole"
    who = {"operator": "anna", "reason": "ticket 4711", "sent_time_us": START_US}
    assert adjust["context"] == who | {"wallet": 0, "points": 7, "named": [hashes[0] % 2**32], "expiry_day": 20261231}
    for entry, hashed in ((link, hashes[1]), (unlink, hashes[0])):
        assert entry["context"].pop("identifier") % 2**64 == hashed % 2**64
        assert entry["context"] == who
    assert unlink["identifiers"] == earn["identifiers"]
    assert adjust["postings"] == [{"account": "member", "wallet": 0, "points": 7}, {"account": "adjusted", "wallet": 0, "points": -7}]
