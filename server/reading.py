"""Reading the journal on the follower's control port: JournalService, and GetBalance as of a past moment.

The index (ledger/index.py) is stepped by a thread of its own, up to what the follower has applied: nothing is shown that was not checked.
Lists and pieces of the feed are read from LMDB by a few threads, so that a page fault never stops the port. Not for what
entries look like (server/_entries.pyx). Made by server/follow.py.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import datetime
import hashlib
import hmac
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf import message as protobuf
from google.protobuf import timestamp_pb2
from google.rpc import error_details_pb2, status_pb2

from ledger import errors, limits, published
from ledger._past import Past
from ledger.index import EVERYTHING, Filter, Index, IndexProblem, NotReady, by_member, by_receipt, by_request, by_store_day
from ledger.journal import ENTRY_HEADER, Journal, JournalError
from server._entries import Encoder
from server._pb.loyalty.ledger.v1 import journal_pb2, ledger_pb2
from server.config import METHODS
from server.control import CODES, DETAILS_KEY, Answer, refusal

SERVICE = "loyalty.ledger.v1.JournalService"
INDEX_WAIT_S = 2.0  # how long a list waits for the index to reach what the follower has; usually no time at all
INDEX_RETRY_S = 1.0  # after a full disk or another trouble of the index's files
STEP_WAIT_S = 0.02  # how long index and feed sleep when there is nothing new
READ_THREADS = 4
TOKEN = struct.Struct("<BQ8s")  # version, sequence of the last entry of the page, MAC
TOKEN_VERSION = 1
TOKEN_TEXT_BYTES_MAX = 64
TIME_MIN_US = 946_684_800_000_000  # 2000-01-01
TIME_MAX_S = 253_402_300_799  # the last second of the year 9999: google.protobuf.Timestamp
UNKNOWN_TEXT = b"the journal cannot be read: look at the follower's log"

Read = Callable[[int, bytes], Answer]
Context = grpc.aio.ServicerContext[bytes, bytes]


class Refused(Exception):
    """A call that is answered with a refusal."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer[2].decode(errors="replace"))
        self.answer = answer


def _refused(name: str, a: int = 0, b: int = 0, *, field: int = 0, value: str = "") -> Refused:
    return Refused(refusal(name, a, b, field=field, value=value))


class Page(NamedTuple):
    """What a ListEntries asks for, checked."""

    what: Filter
    size: int
    before: int  # sequences below this one


class JournalService:
    """Lists, the feed, and balances of the past. Make, mount, start; stop ends it. One asyncio loop.

    reach(): the last sequence that may be shown, always the end of a group. read(method, request): the follower's own reading.
    """

    def __init__(self, data: Path, journal: Journal, reach: Callable[[], int], read: Read, *, say: Callable[[str], None],
                 stall_s: int = limits.FEED_STALL_S, heartbeat_s: float = limits.FEED_HEARTBEAT_S) -> None:
        self._journal = journal
        self._reach = reach
        self._read = read
        self._say = say
        self._stall_s = stall_s
        self._heartbeat_s = heartbeat_s
        self._index = Index(data, journal, say=say, background=True)
        self._encoder = Encoder(self._limit_names)
        self._versions: list[published.Version] = []
        self._encoder_lock = threading.Lock()
        self._threads = ThreadPoolExecutor(READ_THREADS, thread_name_prefix="read")
        self._stopping = threading.Event()
        self._builder = threading.Thread(target=self._build, name="index", daemon=True)
        self._token_key = hashlib.sha256(b"daybook page token" + journal.directory).digest()
        self._streams = 0
        self._counts: Counter[str] = Counter()
        self._outcomes: Counter[tuple[str, str]] = Counter()

    def mount(self, server: grpc.aio.Server) -> None:
        """Add the service to a control port that does not serve yet."""
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {
            "ListEntries": grpc.unary_unary_rpc_method_handler(self._list),
            "WatchEntries": grpc.unary_stream_rpc_method_handler(self._watch),
        }),))

    def start(self) -> None:
        """Begin to build the index."""
        self._builder.start()

    def stop(self) -> None:
        """End the threads; streams see it at their next turn. Blocks for a merge that runs."""
        self._stopping.set()
        self._builder.join()
        self._threads.shutdown(wait=True)
        self._index.close()

    def stats(self) -> dict[str, Any]:
        """Plain numbers for metrics. From any thread."""
        index = self._index.stats()
        return {"calls": dict(self._outcomes), "streams": self._streams, "entries_sent": self._counts["entries"],
                "readers_cut": self._counts["cut"], "index": index, "index_lag": max(0, self._reach() - index["sequence"])}

    def _build(self) -> None:
        """The index's thread."""
        told = ""
        while not self._stopping.is_set():
            try:
                if self._index.step(self._reach()) == 0:
                    self._stopping.wait(STEP_WAIT_S)
                told = ""
            except (OSError, IndexProblem, JournalError, ValueError) as error:
                if str(error) != told:
                    self._say(f"the index stands still: {error}")
                told = str(error)
                self._stopping.wait(INDEX_RETRY_S)

    # --- what every call needs ------------------------------------------------------------------------------------

    async def _end(self, method: str, context: Context, answer: Answer) -> None:
        """Refuse a call. Raises; returns only where the caller has gone. Behind a message that is not taken it waits until it is."""
        code, payload, text = answer
        self._outcomes[method, _reason(payload)] += 1
        try:
            await context.abort(CODES.get(code, grpc.StatusCode.UNKNOWN), text.decode(errors="replace"),
                                trailing_metadata=((DETAILS_KEY, payload),) if payload else ())
        except grpc.aio.AbortError:
            raise
        except Exception:  # grpc's own, without a public name: the batch failed because the connection is gone
            if not context.done():
                raise

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run something that reads the disk. Errors: Refused."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)
        except NotReady:
            raise _refused("INDEX_NOT_READY", self._index.last_sequence, self._reach()) from None
        except (JournalError, ValueError) as error:
            self._say(f"a read of the journal failed: {error}")
            raise Refused((grpc.StatusCode.DATA_LOSS.value[0], b"", UNKNOWN_TEXT)) from None

    async def _indexed(self) -> int:
        """The follower's sequence, once the index has it too. Errors: Refused."""
        reach = self._reach()
        if reach == 0:
            raise _refused("NOT_READY")
        try:
            async with asyncio.timeout(INDEX_WAIT_S):
                while self._index.last_sequence < reach:
                    await asyncio.sleep(0.002)
        except TimeoutError:
            raise _refused("INDEX_NOT_READY", self._index.last_sequence, reach) from None
        return reach

    def _add_programs(self) -> None:
        """Load the programmes that the index has seen and the encoder does not know yet."""
        with self._encoder_lock:
            missing = self._index.programs()[self._encoder.versions:]
            for sequence, entry in zip(missing, self._entries(missing), strict=True):
                known = self._encoder.versions
                self._versions[known:] = [published.read_version(known + 1, sequence, entry)]  # first: the encoder asks by it
                self._encoder.add_program(entry)

    def _limit_names(self, version: int) -> list[str]:
        """For the encoder. A programme that cannot be read leaves its limits numbers: the entries can be shown all the same."""
        try:
            return published.limit_names(published.image_of(self._entries([self._versions[version - 1].sequence])[0], self._entries))
        except (JournalError, ValueError) as error:
            self._say(f"the names of the limits of version {version} cannot be read: {error}")
            return []

    def _entries(self, sequences: Sequence[int]) -> list[bytes]:
        return list(self._journal.entries([(sequence, 0, 0) for sequence in sequences]))

    def _head(self, reach: int, tag: int) -> bytes:
        """JournalHead as a field of an answer."""
        group = self._journal.group_of(reach)
        head = journal_pb2.JournalHead(sequence=reach)
        if group is not None:
            head.hash = group.hash
            head.time.CopyFrom(_timestamp(group.time_us))
        body = head.SerializeToString()
        return bytes([tag, len(body)]) + body

    # --- lists ------------------------------------------------------------------------------------------------------

    async def _list(self, request: bytes, context: Context) -> bytes:
        try:
            page = self._page(_parse(journal_pb2.ListEntriesRequest, request))
            reach = await self._indexed()
            answer = await self._run(self._list_page, page, reach)
        except Refused as refused:
            await self._end("ListEntries", context, refused.answer)
            raise AssertionError("abort raises") from None
        self._outcomes["ListEntries", "OK"] += 1
        return answer

    def _page(self, request: journal_pb2.ListEntriesRequest) -> Page:
        """Errors: Refused."""
        what = self._filter(request)
        if not 0 <= request.page_size <= limits.PAGE_SIZE_MAX:
            raise _refused("FIELD_INVALID", field=65, value=str(request.page_size))
        before = self._token_before(request.page_token, what) if request.page_token else 1 << 62
        return Page(what, request.page_size or limits.PAGE_SIZE_DEFAULT, before)

    def _filter(self, request: journal_pb2.ListEntriesRequest) -> Filter:
        """Errors: Refused."""
        kind = request.WhichOneof("filter")
        if kind == "member":
            return by_member(self._member(request.member))
        if kind == "request_id":
            encoded = request.request_id.encode()
            if not limits.REQUEST_ID_BYTES_MIN <= len(encoded) <= limits.REQUEST_ID_BYTES_MAX or set(request.request_id) - _ID_CHARACTERS:
                raise _refused("FIELD_INVALID", field=1, value=request.request_id)
            return by_request(encoded)
        if kind == "receipt_key":
            key = request.receipt_key
            return by_receipt(_text(key.store, limits.STORE_BYTES_MAX, 36), _text(key.till, limits.TILL_BYTES_MAX, 37),
                              _day(key.business_day, 71), _text(key.number, limits.RECEIPT_NUMBER_BYTES_MAX, 39))
        if kind == "store_day":
            return by_store_day(_text(request.store_day.store, limits.STORE_BYTES_MAX, 68), _day(request.store_day.business_day, 69))
        return EVERYTHING

    def _member(self, member: ledger_pb2.MemberRef) -> int:
        """The account's number, from the follower's state. Errors: Refused, as GetBalance has it."""
        code, payload, text = self._read(METHODS["GetBalance"], ledger_pb2.GetBalanceRequest(member=member).SerializeToString())
        if code != 0:
            raise Refused((code, payload, text))
        return ledger_pb2.GetBalanceResponse.FromString(payload).member_id

    def _list_page(self, page: Page, reach: int) -> bytes:
        self._add_programs()
        found = self._index.find(page.what, min(page.before, reach + 1), page.size + 1, reach=reach, size_max=limits.PAGE_BYTES_MAX)
        pieces: list[bytes] = []
        size = 0
        for sequence, entry in found[:page.size]:
            if size >= limits.PAGE_BYTES_MAX:
                break
            pieces.append(self._encoder.entry(sequence, entry))
            size += len(pieces[-1])
        raw = sum(len(entry) for _, entry in found)
        if len(pieces) < len(found) or raw >= limits.PAGE_BYTES_MAX:
            token = self._token(found[len(pieces) - 1][0], page.what).encode()
            pieces.append(bytes([18, len(token)]) + token)
        pieces.append(self._head(reach, 26))
        return b"".join(pieces)

    def _mac(self, before: int, what: Filter) -> bytes:
        text = f"{TOKEN_VERSION} {before} {what.index} {what.key} {what.exact!r}"
        return hmac.digest(self._token_key, text.encode(), "sha256")[:8]

    def _token(self, before: int, what: Filter) -> str:
        """Says where the page ended. Bound to the filter and the directory; good as long as the journal is."""
        return base64.urlsafe_b64encode(TOKEN.pack(TOKEN_VERSION, before, self._mac(before, what))).decode()

    def _token_before(self, token: str, what: Filter) -> int:
        """Errors: Refused."""
        try:
            if len(token) > TOKEN_TEXT_BYTES_MAX:
                raise ValueError
            version, before, mac = TOKEN.unpack(base64.b64decode(token.encode("ascii"), b"-_", validate=True))
            if version != TOKEN_VERSION or not hmac.compare_digest(mac, self._mac(before, what)):
                raise ValueError
        except (ValueError, binascii.Error, struct.error):
            raise _refused("FIELD_INVALID", field=70, value=token[:TOKEN_TEXT_BYTES_MAX]) from None
        return before

    # --- the feed ---------------------------------------------------------------------------------------------------

    async def _watch(self, request: bytes, context: Context) -> None:
        if self._streams >= limits.FEED_STREAMS_MAX:
            await self._end("WatchEntries", context, refusal("TOO_MANY_CALLS"))
        self._streams += 1
        try:
            await self._feed(_parse(journal_pb2.WatchEntriesRequest, request).from_sequence, context)
        except Refused as refused:
            await self._end("WatchEntries", context, refused.answer)
        finally:
            self._streams -= 1
        self._outcomes["WatchEntries", "OK"] += 1

    async def _feed(self, from_sequence: int, context: Context) -> None:
        """Errors: Refused."""
        reach = self._reach()
        if from_sequence < 0:
            raise _refused("FIELD_INVALID", field=66, value=str(from_sequence))
        if from_sequence > reach + 1:
            raise _refused("SEQUENCE_NOT_REACHED", from_sequence, reach)
        following = from_sequence or reach + 1
        first = True
        while not self._stopping.is_set():
            reach = self._reach() if first else await self._news(following)
            first = False
            message, count, behind = await self._piece(following, reach)
            # The write ends when HTTP/2's windows have taken the message: a slow reader holds one message here, nothing more.
            write = asyncio.ensure_future(context.write(message))
            done, _ = await asyncio.wait((write,), timeout=self._stall_s)
            if not done:
                self._counts["cut"] += 1
                raise _refused("READER_TOO_SLOW", following - 1, self._stall_s)
            write.result()
            self._counts["entries"] += count
            following = behind
        raise _refused("NOT_READY")

    async def _news(self, following: int) -> int:
        """How far the feed may go, as soon as that is behind the next entry, or after a heartbeat's time."""
        try:
            async with asyncio.timeout(self._heartbeat_s):
                while self._reach() < following and not self._stopping.is_set():
                    await asyncio.sleep(STEP_WAIT_S)
        except TimeoutError:
            pass
        return self._reach()

    async def _piece(self, following: int, reach: int) -> tuple[bytes, int, int]:
        """The next message of a feed, its entries, and the sequence behind them. Errors: Refused."""
        piece = await self._run(self._read_piece, following, reach)
        if piece is None:
            await self._indexed()  # a programme came into force that the index has not told of yet
            await self._run(self._add_programs)
            piece = await self._run(self._read_piece, following, reach)
        if piece is None:
            raise Refused((grpc.StatusCode.DATA_LOSS.value[0], b"", UNKNOWN_TEXT))
        return piece

    def _read_piece(self, following: int, reach: int) -> tuple[bytes, int, int] | None:
        """None: a programme is not known yet."""
        pieces: list[bytes] = []
        size = count = 0
        group = self._journal.group_of(following) if following <= reach else None
        if group is not None:
            for batch in self._journal.batches(group.first_sequence - 1, groups_max=256, bytes_max=limits.FEED_BYTES_MAX):
                for key, record in batch:
                    if key > reach or size >= limits.FEED_BYTES_MAX or count >= limits.FEED_ENTRIES_MAX:
                        break
                    piece = self._encoder.group(record, following, limits.FEED_BYTES_MAX - size, limits.FEED_ENTRIES_MAX - count)
                    if piece is None:
                        return None
                    pieces.append(piece[0])
                    size += len(piece[0])
                    count += piece[1]
                    following = piece[2]
                break  # one list at a time: its records are valid until the next is asked for
        pieces.append(self._head(reach, 18))
        return b"".join(pieces), count, following

    # --- balances of the past -------------------------------------------------------------------------------------

    async def balance(self, request: bytes) -> Answer | None:
        """GetBalance with as_of_time: what it answered then. None: the request asks for today's, or is none."""
        try:
            asked = ledger_pb2.GetBalanceRequest.FromString(request)
        except protobuf.DecodeError:
            return None
        if not asked.HasField("as_of_time"):
            return None
        try:
            answer = await self._balance(asked)
        except Refused as refused:
            self._outcomes["GetBalance", _reason(refused.answer[1])] += 1
            return refused.answer
        self._outcomes["GetBalance", "OK"] += 1
        return 0, answer, b""

    async def _balance(self, asked: ledger_pb2.GetBalanceRequest) -> bytes:
        """Errors: Refused."""
        at_us = _time_us(asked.as_of_time)
        if at_us < TIME_MIN_US:
            raise _refused("FIELD_INVALID", field=67, value=str(at_us))
        now = ledger_pb2.GetBalanceRequest(member=asked.member, wallet=asked.wallet)
        code, payload, text = self._read(METHODS["GetBalance"], now.SerializeToString())
        if code != 0:
            raise Refused((code, payload, text))
        member = ledger_pb2.GetBalanceResponse.FromString(payload).member_id
        reach = await self._indexed()
        return await self._run(self._read_balance, asked, member, at_us, reach)

    def _read_balance(self, request: ledger_pb2.GetBalanceRequest, member: int, at_us: int, reach: int) -> bytes:
        newest_us = _entry_time_us(self._journal.entries([(reach, 0, 0)])[0])
        if at_us >= newest_us:
            raise _refused("TIME_NOT_REACHED", at_us, newest_us)
        not_found = _refused("MEMBER_NOT_FOUND", field=_MEMBER_FIELDS[request.member.WhichOneof("ref")])
        self._add_programs()
        versions = [version for version in self._versions if version.time_us <= at_us]
        in_force = published.in_force((version.effective_us for version in versions), at_us)
        if not in_force:
            raise not_found
        image = published.image_of(self._entries([versions[in_force - 1].sequence])[0], self._entries)
        past = Past(image, [name for name, _ in max((version.told.wallets for version in versions), key=len)])
        for sequence, entry in self._index.walk(by_member(member), reach + 1, reach=reach):
            if _entry_time_us(entry) > at_us:
                break
            past.add(sequence, entry)
        if past.sequence == 0:
            raise not_found
        answer = ledger_pb2.GetBalanceResponse(member_id=member, sequence=past.sequence, read_time=_timestamp(at_us))
        rung, until_s = past.rung_at(at_us)
        if rung:
            answer.rung = rung + 1  # type: ignore[assignment]
            if until_s:
                answer.rung_end_time.CopyFrom(_timestamp(until_s * 1_000_000))
        for name, posted, pending, reserved, expiries in past.wallets(at_us):
            if request.wallet in ("", name):
                wallet = answer.wallets.add(wallet=name, posted_points=posted, pending_points=pending, reserved_points=reserved,
                                            available_points=posted - pending - reserved)
                for expire_us, points in expiries:
                    wallet.next_expiries.add(expire_time=_timestamp(expire_us), points=points)
        if not answer.wallets:
            raise _refused("WALLET_NOT_FOUND", value=request.wallet)
        return answer.SerializeToString()


_ID_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-")
_MEMBER_FIELDS = {"member_id": 4, "card": 5, "phone": 6, "email": 7, "app": 8, None: 3}


def _parse(kind: Any, request: bytes) -> Any:
    """Errors: Refused."""
    try:
        return kind.FromString(request)
    except protobuf.DecodeError:
        raise _refused("MESSAGE_MALFORMED", 0) from None


def _text(value: str, bytes_max: int, field: int) -> bytes:
    """Errors: Refused."""
    encoded = value.encode()
    if not 1 <= len(encoded) <= bytes_max or any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise _refused("FIELD_INVALID", field=field, value=value)
    return encoded


def _day(value: int, field: int) -> int:
    """yyyymmdd that is in the calendar. Errors: Refused."""
    try:
        datetime.date(value // 10_000, value // 100 % 100, value % 100)
    except ValueError:
        raise _refused("FIELD_INVALID", field=field, value=str(value)) from None
    if not limits.BUSINESS_DAY_MIN <= value <= limits.BUSINESS_DAY_MAX:
        raise _refused("FIELD_INVALID", field=field, value=str(value))
    return value


def _timestamp(time_us: int) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)


def _time_us(time: timestamp_pb2.Timestamp) -> int:
    """Errors: Refused."""
    if not 0 <= time.seconds <= TIME_MAX_S or not 0 <= time.nanos < 1_000_000_000:
        raise _refused("FIELD_INVALID", field=67, value=f"{time.seconds}.{time.nanos:09d}" if time.nanos >= 0 else str(time.nanos))
    return time.seconds * 1_000_000 + time.nanos // 1000


def _entry_time_us(entry: bytes) -> int:
    return ENTRY_HEADER.unpack_from(entry)[4]


def _reason(payload: bytes) -> str:
    """The reason of a refusal, for the metrics."""
    info = error_details_pb2.ErrorInfo()
    for detail in status_pb2.Status.FromString(payload).details:
        if detail.Unpack(info) and info.reason in errors.BY_NAME:
            return info.reason
    return "UNKNOWN"
