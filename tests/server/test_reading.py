"""Reading the journal on the follower's port: lists, the feed, balances of the past, beside a real service that writes meanwhile."""

from __future__ import annotations

import base64
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ledger import errors, limits
from ledger.journal import Group, read_entry, read_group
from server._entries import Encoder
from server._pb.loyalty.ledger.v1 import journal_pb2, ledger_pb2
from tests import till
from tests.ledger import forging
from tests.reading import Port, wait_for
from tests.running import RunningServer
from tests.shop import HOUR_US, PROGRAM, START_US, Shop

SEED = random.randrange(1 << 32)
DIGEST = 21  # the kind

@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One for all tests: its journal only grows."""
    server = RunningServer(tmp_path_factory.mktemp("shop"))
    yield Shop(server.start(), SEED)
    server.kill()


@pytest.fixture
def two_wallets(new_server: Callable[..., RunningServer], tmp_path: Path) -> Shop:
    """On a clock that the test moves, with points that wait and expire soon."""
    program = tmp_path / "two.yaml"
    program.write_text(PROGRAM)
    return Shop(new_server(clock=START_US, program=program).start(), SEED)


def groups_of(port: Port) -> list[Group]:
    """The journal's groups, through the follower's own reader: an LMDB environment is open once in a process."""
    return [read_group(bytes(record), "journal") for batch in port.follower.journal.batches() for _, record in batch]


def entries_of(port: Port) -> list[tuple[int, bytes]]:
    return [pair for group in groups_of(port) for pair in group]


def expected(sequence: int, entry: bytes, wallets: list[str]) -> journal_pb2.JournalEntry:
    """The message of an entry, by the second reader and google.protobuf."""
    value = read_entry(entry)
    raw_kind = entry[4]
    message = journal_pb2.JournalEntry(opened=value["opened"])
    seen = message.entry
    seen.sequence, seen.kind, seen.member_id, seen.program_version = sequence, raw_kind, value["member"], value["program"]
    seen.create_time.CopyFrom(till.timestamp(value["time_us"]))
    sides = {"issued": -1, "redeemed": 1, "expired": 1, "adjusted": -1}
    sums = dict.fromkeys(sides, 0)
    accounts = {"member": 1, "issued": 2, "redeemed": 3, "expired": 4, "adjusted": 5}
    for row in value.get("postings", ()):
        if row["account"] in sides:
            sums[row["account"]] += sides[row["account"]] * row["points"]
        message.postings.add(account=accounts[row["account"]], wallet=wallets[row["wallet"]], points=row["points"])
    seen.earned_points, seen.burned_points, seen.expired_points = sums["issued"], sums["redeemed"], sums["expired"]
    seen.adjusted_points = sums["adjusted"]
    for row in value.get("awards", ()):
        seen.awards.add(line=row["line"], rule=row["rule"], points=row["points"])
    for row in value.get("lots", ()):
        message.lot_changes.add(wallet=wallets[row["wallet"]], available_day=row["available_day"], expiry_day=row["expiry_day"],
                                funder=row["funder"], points=row["points"], held_points=row["held"])
    for row in value.get("lines", ()):
        message.lines.add(**row)
    for row in value.get("line_details", ()):
        line = message.lines[row["line"] - 1]
        line.regular_amount_minor, line.weighed = row["regular_amount_minor"], bool(row["flags"] & 1)
    said = value.get("receipt", {})
    for row in said.get("tenders", ()):
        message.tenders.add(**row)
    message.channel = said.get("channel", "")
    message.promo_codes.extend(said.get("promo_codes", ()))
    if "rules_state" in value:
        message.result.CopyFrom(told(value))
    for row in value.get("after", ()):
        message.wallets.add(wallet=wallets[row["wallet"]], posted_points=row["posted_points"], pending_points=row["pending_points"],
                            reserved_points=row["reserved_points"],
                            available_points=row["posted_points"] - row["pending_points"] - row["reserved_points"])
    if "reservation" in value:
        row = value["reservation"]
        state = {"active": 1, "captured": 2, "released": 3, "expired": 4}[row["state"]]
        message.reservation.MergeFrom(ledger_pb2.Reservation(
            reservation_id=row["id"], state=state, wallet=wallets[row["wallet"]], reserved_points=row["reserved_points"],
            captured_points=row["captured_points"], expire_time=till.timestamp(row["expire_time_us"])))
    context = value.get("context", {})
    if "store" in context:
        message.receipt_key.MergeFrom(ledger_pb2.ReceiptKey(store=context["store"], till=context["till"],
                                                            business_day=context["business_day"], number=context["number"]))
    for name, field in (("sent_time_us", "sent_time"), ("business_time_us", "purchase_time")):
        if name in context:
            getattr(message, field).CopyFrom(till.timestamp(context[name]))
    if "ttl_us" in context:
        message.ttl.FromMicroseconds(context["ttl_us"])
    message.total_minor = context.get("total_minor", 0)
    message.requested_points = context.get("points", 0)
    message.requested_reservation_id = context.get("reservation_id", 0)
    if "wallet" in context:
        message.requested_wallet = wallets[context["wallet"]]
    message.requested_expiry_day = context.get("expiry_day", 0)
    message.operator, message.reason = context.get("operator", ""), context.get("reason", "")
    if any(value["request"]):
        message.request_hash = value["request"]
    message.identifier_types.extend({"card": 2, "phone": 3, "email": 4, "app": 5}[row["type"]] for row in value.get("identifiers", ()))
    if value["status"]:
        row = errors.BY_NUMBER[value["status"]]
        message.refusal.reason = row.name
        for name, number in ((row.a, value["refusal"]["a"]), (row.b, value["refusal"]["b"])):
            if name:
                message.refusal.numbers[name] = number
    message.digest = value.get("digest", b"")
    message.program_hash = value["image"][8:40] if "image" in value else b""
    return message


def told(value: dict[str, Any]) -> Any:
    """What rules made of a receipt, beside its awards."""
    out, state = ledger_pb2.ReceiptResult(), value["rules_state"]
    for rows, name in ((out.discounts, "discounts"), (out.paid, "paid")):
        for row in value.get(name, ()):
            rows.add(**row)
    out.discount_minor, out.paid_minor = sum(row.amount_minor for row in out.discounts), sum(row.amount_minor for row in out.paid)
    if state["tier_before_name"]:
        out.standing.tier, out.standing.new_tier = state["tier_before_name"], state["tier_name"]
    out.entitlements.extend(value.get("entitlements", ()))
    notices = value.get("notices", {"count": 0, "rows": ()})
    for row in notices["rows"]:
        out.notices.add(**row)
    out.notice_count = notices["count"]
    return out


def listed(port: Port, size: int = 0, **what: Any) -> list[journal_pb2.JournalEntry]:
    """All pages."""
    found: list[journal_pb2.JournalEntry] = []
    request = journal_pb2.ListEntriesRequest(page_size=size, **what)
    while True:
        page = port.journal.ListEntries(request)
        assert len(page.entries) <= (size or limits.PAGE_SIZE_DEFAULT)
        found += page.entries
        if not page.next_page_token:
            return found
        assert page.entries
        request.page_token = page.next_page_token


def refused(call: Callable[[], Any]) -> tuple[str, dict[str, str]]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    reason = till.reason_of(error.value)
    assert reason is not None, error.value
    return reason


def test_an_entry_is_shown_as_the_second_reader_has_it(two_wallets: Shop) -> None:
    shop = two_wallets
    shop.every_kind()
    for _ in range(120):
        shop.step()
        shop.pass_time(shop.chance.choice((1000, 7_000_000, 7 * HOUR_US // 10)))
    last = shop.last()
    with Port(shop.server.data) as port:
        port.reach(last)
        shown = [entry for entry in listed(port, 333) if entry.entry.sequence <= last][::-1]
        there = entries_of(port)[:last]
    kinds = {entry.entry.kind for entry in shown}
    assert kinds >= {*range(1, 13), 20}, "the run means to see every kind"
    assert any(entry.HasField("refusal") for entry in shown)
    assert [entry.entry.sequence for entry in shown] == list(range(1, last + 1))
    for message, (sequence, entry) in zip(shown, there, strict=True):
        assert message == expected(sequence, entry, ["points", "stamps"])


def test_lists_by_every_key_are_what_a_scan_finds(shop: Shop) -> None:
    with Port(shop.server.data) as port:
        for round_ in range(3):
            for _ in range(60):
                shop.step()
            last = shop.last()
            port.reach(last)
            there = [(sequence, read_entry(entry)) for sequence, entry in entries_of(port) if sequence <= last]
            members = {identifier["hash"]: value["member"] for _, value in there for identifier in value.get("identifiers", ())
                       if not value["status"]}
            assert members

            def sequences(size: int, last: int = last, **what: Any) -> list[int]:
                return [entry.entry.sequence for entry in listed(port, size, **what) if entry.entry.sequence <= last]

            for member in sorted({value["member"] for _, value in there if value["member"]})[:4]:
                wanted = [sequence for sequence, value in there if value["member"] == member][::-1]
                assert sequences(shop.chance.choice((1, 5, 100)), member={"member_id": member}) == wanted
            for request in shop.chance.sample(shop.requests, 10):
                found = listed(port, request_id=request.request_id)
                assert len(found) <= 1
                if found and request.DESCRIPTOR.name == "EarnPointsRequest":
                    assert found[0].total_minor == request.receipt.total_minor
                    assert found[0].entry.sequence in sequences(2, receipt_key=request.receipt.key)
                    assert found[0].entry.sequence in sequences(200, member=request.member)
            day = till.business_day(till.now_us())
            wanted = [sequence for sequence, value in there if value.get("context", {}).get("store") == "S001"
                      and value["context"]["business_day"] == day][::-1]
            assert wanted and sequences(50, store_day={"store": "S001", "business_day": day}) == wanted
            assert sequences(50, store_day={"store": "S002", "business_day": day}) == []
            if round_ == 1:
                shop.server.restart(kill=True)


def test_pages_neither_repeat_nor_miss_while_entries_are_written(shop: Shop) -> None:
    for _ in range(80):
        shop.step()
    first = shop.last()
    with Port(shop.server.data) as port:
        port.reach(first)
        request = journal_pb2.ListEntriesRequest(page_size=first // 6)
        seen: list[int] = []
        while True:
            page = port.journal.ListEntries(request)
            seen += [entry.entry.sequence for entry in page.entries]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
            port.reach(shop.last())
        assert seen[0] >= first and seen == list(range(seen[0], 0, -1))


def test_a_page_token_outlives_restarts_and_a_rebuilt_index(shop: Shop) -> None:
    for _ in range(40):
        shop.step()
    last = shop.last()
    asked = journal_pb2.ListEntriesRequest(page_size=10)
    with Port(shop.server.data) as port:
        port.reach(last)
        page = port.journal.ListEntries(asked)
        asked.page_token = page.next_page_token
        wanted = port.journal.ListEntries(asked).entries
    assert wanted[0].entry.sequence == page.entries[-1].entry.sequence - 1
    shop.last()
    shutil.rmtree(shop.server.data / "index")
    with Port(shop.server.data) as port:
        port.reach(last)
        assert port.journal.ListEntries(asked).entries == wanted


def test_a_page_token_is_good_for_its_own_list_only(shop: Shop) -> None:
    for _ in range(40):
        shop.step()
    last = shop.last()
    with Port(shop.server.data) as port:
        port.reach(last)
        asked = journal_pb2.ListEntriesRequest(page_size=3, member={"member_id": 1})
        token = port.journal.ListEntries(asked).next_page_token
        assert token
        raw = bytearray(base64.urlsafe_b64decode(token))
        forged = []
        for at in range(len(raw)):
            raw[at] ^= 1
            forged.append(base64.urlsafe_b64encode(raw).decode())
            raw[at] ^= 1
        for wrong in (*forged, token[:-1], token + "A", token[:4], "x", "=" * 24, "żółw", token * 20):
            asked.page_token = wrong
            reason, metadata = refused(lambda: port.journal.ListEntries(asked))
            assert (reason, metadata["field"]) == ("FIELD_INVALID", "page_token")
        for other in ({"member": {"member_id": 2}}, {}, {"request_id": "x" * 20},
                      {"store_day": {"store": "S001", "business_day": 20261122}}):
            reason, metadata = refused(lambda other=other: port.journal.ListEntries(
                journal_pb2.ListEntriesRequest(page_size=3, page_token=token, **other)))
            assert (reason, metadata["field"]) == ("FIELD_INVALID", "page_token")
        assert port.journal.ListEntries(journal_pb2.ListEntriesRequest(page_size=50, page_token=token, member={"member_id": 1})).entries


KEY = {"store": "S001", "till": "01", "business_day": 20261122, "number": "1"}


@pytest.mark.parametrize(("what", "reason", "field"), [
    ({"page_size": -1}, "FIELD_INVALID", "page_size"),
    ({"page_size": 1001}, "FIELD_INVALID", "page_size"),
    ({"request_id": "short"}, "FIELD_INVALID", "request_id"),
    ({"request_id": "x" * 65}, "FIELD_INVALID", "request_id"),
    ({"request_id": "with a blank in it.."}, "FIELD_INVALID", "request_id"),
    ({"member": {}}, "FIELD_INVALID", "member"),
    ({"member": {"member_id": 0}}, "FIELD_INVALID", "member.member_id"),
    ({"member": {"member_id": 9999}}, "MEMBER_NOT_FOUND", "member.member_id"),
    ({"member": {"card": "nobody's"}}, "MEMBER_NOT_FOUND", "member.card"),
    ({"member": {"phone": "12"}}, "FIELD_INVALID", "member.phone"),
    ({"receipt_key": {**KEY, "store": ""}}, "FIELD_INVALID", "receipt_key.store"),
    ({"receipt_key": {**KEY, "till": "t" * 17}}, "FIELD_INVALID", "receipt_key.till"),
    ({"receipt_key": {**KEY, "business_day": 20260231}}, "FIELD_INVALID", "receipt_key.business_day"),
    ({"receipt_key": {**KEY, "number": "a\nb"}}, "FIELD_INVALID", "receipt_key.number"),
    ({"store_day": {"store": "ż" * 9, "business_day": 20261122}}, "FIELD_INVALID", "store_day.store"),
    ({"store_day": {"store": "S1", "business_day": 0}}, "FIELD_INVALID", "store_day.business_day"),
    ({"store_day": {"store": "S1", "business_day": 19991231}}, "FIELD_INVALID", "store_day.business_day"),
])
def test_a_wrong_list_is_refused_with_its_field(port_of_a_small_journal: Port, what: dict[str, Any], reason: str, field: str) -> None:
    found, metadata = refused(lambda: port_of_a_small_journal.journal.ListEntries(journal_pb2.ListEntriesRequest(**what)))
    assert (found, metadata["field"]) == (reason, field)


@pytest.fixture(scope="module")
def port_of_a_small_journal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Port]:
    """Sequence 1 is the programme, 2..201 earns of ten members, in groups of ten."""
    forge = forging.Forge()
    forge.add(forging.program_entry())
    for first in range(0, 200, 10):
        forge.add(*(forging.earn(1 + number % 10, 100, opened=number < 10, request=number + 1) for number in range(first, first + 10)))
    with Port(forge.write(tmp_path_factory.mktemp("small") / "data")) as port:
        port.reach(201)
        yield port


def test_bytes_that_are_no_message_are_refused(port_of_a_small_journal: Port) -> None:
    for name in ("ListEntries", "WatchEntries"):
        call = port_of_a_small_journal.channel.unary_stream(f"/loyalty.ledger.v1.JournalService/{name}")
        assert refused(lambda call=call: list(call(b"\xff\xff")))[0] == "MESSAGE_MALFORMED"


# --- the feed ---------------------------------------------------------------------------------------------------------

def watched(port: Port, from_sequence: int, count: int) -> list[journal_pb2.JournalEntry]:
    """The next `count` entries of the feed, or more: whole messages."""
    found: list[journal_pb2.JournalEntry] = []
    stream = port.journal.WatchEntries(journal_pb2.WatchEntriesRequest(from_sequence=from_sequence), timeout=60)
    for message in stream:
        found += message.entries
        assert message.head.sequence >= (found[-1].entry.sequence if found else 0)
        if len(found) >= count:
            break
    stream.cancel()
    return found


def test_the_feed_resumes_at_every_sequence(port_of_a_small_journal: Port) -> None:
    port = port_of_a_small_journal
    for first in range(1, 202):
        seen = [entry.entry.sequence for entry in watched(port, first, 202 - first)]
        assert seen == list(range(first, 202))
    everything = watched(port, 1, 201)
    assert everything == listed(port, 100)[::-1]


def test_the_feed_is_the_journal_in_order_beside_calls_and_across_followers(shop: Shop) -> None:
    stopping = threading.Event()

    def sell() -> None:
        while not stopping.is_set():
            shop.step()

    seller = threading.Thread(target=sell)
    seller.start()
    try:
        seen: list[journal_pb2.JournalEntry] = []
        for _ in range(4):
            with Port(shop.server.data) as port:
                wanted = len(seen) + 100
                while len(seen) < wanted:
                    following = len(seen) + 1
                    if port.follower.sequence + 1 < following:
                        port.reach(following - 1)
                    seen += watched(port, following, shop.chance.randrange(1, 40))
    finally:
        stopping.set()
        seller.join()
    last = shop.last()
    with Port(shop.server.data) as port:
        port.reach(last)
        seen += watched(port, len(seen) + 1, last - len(seen))
        there = entries_of(port)
    assert [entry.entry.sequence for entry in seen] == list(range(1, len(seen) + 1))
    assert seen == [expected(sequence, entry, ["points"]) for sequence, entry in there[:len(seen)]]


def test_an_idle_feed_says_that_it_lives_and_then_goes_on(shop: Shop) -> None:
    last = shop.last()
    with Port(shop.server.data, heartbeat_s=0.05) as port:
        port.reach(last)
        stream = port.journal.WatchEntries(journal_pb2.WatchEntriesRequest(), timeout=60)
        heads = []
        for _ in range(3):
            message = next(stream)
            assert all(entry.entry.kind == DIGEST for entry in message.entries)  # one a minute, whatever else happens
            heads.append(message.head)
        assert heads[-1].sequence >= last
        groups: dict[int, Group] = {group.last_sequence: group for group in groups_of(port)}
        assert groups[heads[-1].sequence].hash == heads[-1].hash
        written = shop.last()
        entries: list[journal_pb2.JournalEntry] = []
        while not entries or entries[-1].entry.sequence < written:
            entries += next(stream).entries
        assert entries[0].entry.sequence == heads[-1].sequence + 1
        stream.cancel()
        wait_for(lambda: port.port.journal.stats()["streams"] == 0, "the end of the stream")


def test_nothing_is_shown_before_the_follower_has_applied_it(port_of_a_small_journal: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    port = port_of_a_small_journal
    service = port.port.journal
    monkeypatch.setattr(service, "_reach", lambda: 21)  # the end of the second group of ten
    assert [entry.entry.sequence for entry in listed(port, 100)] == list(range(21, 0, -1))
    stream = port.journal.WatchEntries(journal_pb2.WatchEntriesRequest(from_sequence=10))
    message = next(stream)
    assert [entry.entry.sequence for entry in message.entries] == list(range(10, 22)) and message.head.sequence == 21
    monkeypatch.undo()
    assert [entry.entry.sequence for entry in next(stream).entries] == list(range(22, 202))
    stream.cancel()


def test_the_feed_begins_nowhere_it_cannot(port_of_a_small_journal: Port) -> None:
    watch = port_of_a_small_journal.journal.WatchEntries
    reason, metadata = refused(lambda: next(watch(journal_pb2.WatchEntriesRequest(from_sequence=203))))
    assert (reason, metadata["head_sequence"], metadata["from_sequence"]) == ("SEQUENCE_NOT_REACHED", "201", "203")
    reason, metadata = refused(lambda: next(watch(journal_pb2.WatchEntriesRequest(from_sequence=-1))))
    assert (reason, metadata["field"]) == ("FIELD_INVALID", "from_sequence")


def test_too_many_readers_of_the_feed_are_refused(port_of_a_small_journal: Port) -> None:
    port = port_of_a_small_journal
    streams = [port.journal.WatchEntries(journal_pb2.WatchEntriesRequest()) for _ in range(limits.FEED_STREAMS_MAX)]
    for stream in streams:
        next(stream)
    assert refused(lambda: next(port.journal.WatchEntries(journal_pb2.WatchEntriesRequest())))[0] == "TOO_MANY_CALLS"
    for stream in streams:
        stream.cancel()
    wait_for(lambda: port.port.journal.stats()["streams"] == 0, "the end of the streams")
    assert watched(port, 1, 1)


def test_a_reader_that_takes_nothing_is_cut_off_and_resumes(tmp_path: Path) -> None:
    forge = forging.Forge()
    forge.add(forging.program_entry())
    for first in range(0, 20_000, 1000):
        forge.add(*(forging.earn(1 + number % 10, 100, opened=number < 10, request=number + 1) for number in range(first, first + 1000)))
    with Port(forge.write(tmp_path / "data"), stall_s=1) as port:
        port.reach(20_001)
        windows = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
        with port.new_channel(*windows) as channel:
            watch = channel.unary_stream("/loyalty.ledger.v1.JournalService/WatchEntries",
                                         response_deserializer=journal_pb2.WatchEntriesResponse.FromString)
            stream = watch(journal_pb2.WatchEntriesRequest(from_sequence=1).SerializeToString(), timeout=60)
            seen = list(next(stream).entries)
            wait_for(lambda: port.port.journal.stats()["readers_cut"] == 1, "the cut")
            # The reader wakes up: what was on its way, then the reason.
            with pytest.raises(grpc.RpcError) as cut:
                for message in stream:
                    seen += message.entries
        assert cut.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        reason, metadata = till.reason_of(cut.value)
        assert reason == "READER_TOO_SLOW"
        last = int(metadata["last_sequence"])
        assert 0 <= last <= len(seen) < 20_001
        seen = seen[:last] + watched(port, last + 1, 20_001 - last)
        assert [entry.entry.sequence for entry in seen] == list(range(1, 20_002))


# --- balances of the past ---------------------------------------------------------------------------------------------

def test_a_balance_of_the_past_is_what_was_answered_then(two_wallets: Shop) -> None:
    shop = two_wallets
    shop.last()
    for number in range(220):
        shop.pass_time(shop.chance.choice((1, 1000, 4_000_000, 900_000_000, 11 * HOUR_US // 12)))
        shop.step()
        shop.pass_time(1)
        shop.read_balance(shop.chance.choice(("", "", "points", "stamps")))
        if number == 120:
            shop.server.restart(kill=True)
    shop.pass_time(1_000_000)
    last = shop.last()
    assert len(shop.balances) > 100
    assert any(wallet.pending_points for _, balance in shop.balances for wallet in balance.wallets)
    assert any(wallet.reserved_points for _, balance in shop.balances for wallet in balance.wallets)
    with Port(shop.server.data, clock_file=shop.server.clock_file) as port:
        port.reach(last)
        times = {sequence: read_entry(entry)["time_us"] for sequence, entry in entries_of(port)}
        for card, answered in shop.balances:
            request = till.balance_of(card)
            request.as_of_time.CopyFrom(answered.read_time)
            request.wallet = answered.wallets[0].wallet if len(answered.wallets) == 1 else ""
            found = port.ledger.GetBalance(request)
            if found.sequence > answered.sequence:
                # The clock stood still: a tick posted what was over already, in the same microsecond as the reading and after it.
                assert times[found.sequence] == answered.read_time.ToMicroseconds()
                found.sequence = answered.sequence
            assert found == answered


def test_balances_of_many_members_are_what_the_service_answers(two_wallets: Shop) -> None:
    """At one sequence, each member with its own result."""
    shop = two_wallets
    for _ in range(120):
        shop.pass_time(shop.chance.choice((1, 1000, 4_000_000, 11 * HOUR_US // 12)))
        shop.step()
    known = till.balance_of("last-card").member
    shop.last()
    batch = ledger_pb2.BatchGetBalancesRequest(members=[*({"card": card} for card in shop.cards), known, {"card": "nobody"}, known, {}])
    only = ledger_pb2.BatchGetBalancesRequest(members=[known], wallet="stamps")
    with Port(shop.server.data, clock_file=shop.server.clock_file) as port:

        def both(asked: Any) -> Any:
            """What both say at one sequence; the ticks of the last steps may come in between."""
            own = shop.server.stub.BatchGetBalances(asked)
            port.reach(own.sequence)
            seen = port.ledger.BatchGetBalances(asked)
            return (own, seen) if seen.sequence == own.sequence else None

        for asked in (batch, only):
            own, seen = wait_for(lambda asked=asked: both(asked), "the same sequence on both")
            assert seen == own and len(seen.results) == len(asked.members)
            if asked is only:
                assert [wallet.wallet for wallet in seen.results[0].balance.wallets] == ["stamps"]
                continue
            assert seen.results[-2] == seen.results[-4] and seen.results[-2].balance.member_id > 0
            assert till.reason_of_status(seen.results[-3].error)[0] == "MEMBER_NOT_FOUND"
            assert till.reason_of_status(seen.results[-1].error)[0] == "FIELD_INVALID"
        for wrong, reason in (([], "FIELD_INVALID"), ([known] * 1001, "FIELD_INVALID"),
                              ([{"card": "x" * 1100}] * 1000, "MESSAGE_TOO_LARGE")):
            asked = ledger_pb2.BatchGetBalancesRequest(members=wrong)
            ours = refused(lambda asked=asked: port.ledger.BatchGetBalances(asked))
            assert ours[0] == reason and ours == refused(lambda asked=asked: shop.server.control_stub.BatchGetBalances(asked))
        only.wallet = "none"
        assert refused(lambda: port.ledger.BatchGetBalances(only))[0] == "WALLET_NOT_FOUND"
        most = ledger_pb2.BatchGetBalancesRequest(members=[known] * 1000)
        assert len({result.SerializeToString() for result in port.ledger.BatchGetBalances(most).results}) == 1
        long = till.balance_of("x" * 150_000)
        assert refused(lambda: port.ledger.GetBalance(long))[0] == "MESSAGE_TOO_LARGE"


def test_a_moment_that_cannot_be_answered_is_refused(two_wallets: Shop) -> None:
    shop = two_wallets
    opened_us = shop.clock
    shop.server.stub.EarnPoints(till.earn("card-0", 1000, at=shop.clock))
    shop.pass_time(HOUR_US // 2)
    last = shop.last()
    with Port(shop.server.data, clock_file=shop.server.clock_file) as port:
        port.reach(last)

        def ask(at_us: int, **fields: Any) -> Any:
            request = ledger_pb2.GetBalanceRequest(member={"card": "card-0"}, as_of_time=till.timestamp(at_us), **fields)
            return port.ledger.GetBalance(request)

        assert ask(shop.clock - 1).wallets[0].posted_points == 53
        reason, metadata = refused(lambda: ask(shop.clock))
        assert (reason, metadata["read_time_us"]) == ("TIME_NOT_REACHED", str(shop.clock))
        assert refused(lambda: ask(shop.clock + 1))[0] == "TIME_NOT_REACHED"
        assert refused(lambda: ask(opened_us - 1))[0] == "MEMBER_NOT_FOUND"
        assert refused(lambda: ask(opened_us + 1, wallet="gold"))[0] == "WALLET_NOT_FOUND"
        assert refused(lambda: ask(0)) == refused(lambda: ask(0))
        assert refused(lambda: ask(0))[1]["field"] == "as_of_time"
        request = ledger_pb2.GetBalanceRequest(member={"card": "nobody"}, as_of_time=till.timestamp(opened_us + 1))
        assert refused(lambda: port.ledger.GetBalance(request))[0] == "MEMBER_NOT_FOUND"
        request = ledger_pb2.GetBalanceRequest(member={"card": "card-0"}, as_of_time={"seconds": 5, "nanos": -1})
        assert refused(lambda: port.ledger.GetBalance(request))[1]["field"] == "as_of_time"


def test_the_service_itself_answers_no_past(server: RunningServer) -> None:
    server.stub.EarnPoints(till.earn("card-0"))
    request = till.balance_of("card-0")
    request.as_of_time.CopyFrom(till.timestamp(till.now_us() - 1_000_000))
    for stub in (server.stub, server.control_stub):
        reason, metadata = refused(lambda stub=stub: stub.GetBalance(request))
        assert (reason, metadata["field"]) == ("FIELD_INVALID", "as_of_time")
        assert "follower" in metadata["rule"]


# --- the index behind the port ----------------------------------------------------------------------------------------

def test_a_list_waits_for_the_index_and_says_when_it_cannot(port_of_a_small_journal: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    from server import reading

    monkeypatch.setattr(reading, "INDEX_WAIT_S", 0.05)
    index = port_of_a_small_journal.port.journal._index
    still = threading.Event()

    def stand_still(until: int) -> int:
        still.set()
        return 0

    monkeypatch.setattr(index, "step", stand_still)
    assert still.wait(60)
    whole = index._segments
    index._segments = ()
    reason, metadata = refused(lambda: port_of_a_small_journal.journal.ListEntries(journal_pb2.ListEntriesRequest()))
    index._segments = whole
    assert (reason, metadata) == ("INDEX_NOT_READY", {"indexed_sequence": "0", "head_sequence": "201"})


def test_an_empty_journal_is_not_ready(tmp_path: Path) -> None:
    with Port(forging.Forge().write(tmp_path / "data")) as port:
        assert refused(lambda: port.journal.ListEntries(journal_pb2.ListEntriesRequest()))[0] == "NOT_READY"
        asked = ledger_pb2.BatchGetBalancesRequest(members=[{"member_id": 1}])
        assert refused(lambda: port.ledger.BatchGetBalances(asked))[0] == "NOT_READY"


def test_the_encoder_survives_bytes_that_are_no_entry() -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    encoder = Encoder(lambda version: [])
    encoder.add_program(forging.program_entry())
    good = forging.earn(1, 500, opened=True)
    for _ in range(3000):
        bad = bytearray(good)
        for _ in range(chance.randrange(1, 4)):
            bad[chance.randrange(4, len(bad))] = chance.randrange(256)
        try:
            piece = encoder.entry(7, bytes(bad))
        except ValueError:
            continue
        assert len(piece) < 17 * len(bad) + 8192
    for cut in range(len(good)):
        with pytest.raises(ValueError, match="framing"):
            encoder.entry(7, good[:cut])
    with pytest.raises(ValueError, match="no PROGRAM entry"):
        encoder.add_program(good)


