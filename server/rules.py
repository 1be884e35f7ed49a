"""The control port's calls about rules: PublishRules, GetRules, ListRules, DiffRules. Compiling is ledger/rules', deciding the core's.

A programme is compiled in a process of its own (ledger/rules/apart.py), loaded and checked by a thread of the port, and handed over: hot
writes entries and sets a pointer. A large image goes into the journal in parts, one entry after the other, each beside the tills'
own. Publishings follow each other; one that was begun ends also when its caller has gone, so that a repeat finds what became of it.
Made by server/control.py; everything runs on its asyncio loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf import any_pb2, timestamp_pb2
from google.protobuf import message as protobuf
from google.rpc import error_details_pb2, status_pb2

from ledger import errors, limits, published
from ledger._engine import EngineHandle, Order, OrderAnswer, RulesImage
from ledger.published import Told, Version, Wallet
from ledger.rules.apart import FILE, Done, Job
from server._pb.loyalty.ledger.v1 import admin_pb2
from server.config import ADMIN_METHODS

Answer = tuple[int, bytes, bytes]  # as in server/control.py
Ask = Callable[[Callable[[int], bool]], Awaitable[Answer]]  # runs what puts a call with a token into the inbox
ROOT = Path(__file__).resolve().parent.parent
DRAIN_WAIT_S = 10.0  # a version is readable when it was drained: within half a second, unless the disk is full
DRAIN_STEP_S = 0.01
IMAGE_VERSION = 2  # of images that decide; older ones are only read
TIME_MAX_S = 253_402_300_799  # the last second of the year 9999: google.protobuf.Timestamp
COMPILE_S_MAX = 120.0  # the largest programme that is allowed takes ten
DETAILS_BYTES_MAX = 6_000  # of mistakes, so that the trailers stay below what clients take (8 KiB)
MOMENT_US_MAX = 10 * 366 * 86_400_000_000  # a moment farther ahead is a typing error
MESSAGE_BYTES_MAX = limits.RULES_FILES_BYTES_MAX + limits.SOURCE_BYTES_MAX + 65_536
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]+")
_MISTAKE = re.compile(rf"{FILE}:(\d+):(\d+): (.*)")


class Refused(Exception):
    """A call that is answered with a refusal."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer[2].decode(errors="replace"))
        self.answer = answer


class RulesService:
    """Those calls, each as bytes to an answer. refusal: server.control.refusal."""

    def __init__(self, handle: EngineHandle, ask: Ask, refusal: Callable[..., Answer]) -> None:
        self._handle = handle
        self._ask = ask
        self._refusal = refusal
        self._publishing = asyncio.Lock()
        self._versions: dict[int, Version] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.counts: Counter[tuple[str, int, int]] = Counter()  # as "calls" of the checkout port's stats: port, method, status
        self.calls = {ADMIN_METHODS["PublishRules"]: self._publish_rules, ADMIN_METHODS["GetRules"]: self._get_rules,
                      ADMIN_METHODS["ListRules"]: self._list_rules, ADMIN_METHODS["DiffRules"]: self._diff_rules}

    async def call(self, method: int, request: bytes) -> Answer:
        """One call, to its end."""
        try:
            answer = 0, (await self.calls[method](request)).SerializeToString(), b""
        except Refused as refused:
            answer = refused.answer
        self.counts["control", method, status_of(answer)] += 1
        return answer

    # --- what is refused --------------------------------------------------------------------------------------------

    def _refuse(self, name: str, a: int = 0, b: int = 0, **what: Any) -> Refused:
        return Refused(self._refusal(name, a, b, **what))

    def _field(self, number: int, value: object = "") -> Refused:
        return self._refuse("FIELD_INVALID", field=number, value=str(value)[:64])

    def _parse(self, kind: Any, request: bytes) -> Any:
        try:
            return kind.FromString(request)
        except protobuf.DecodeError:
            raise self._refuse("MESSAGE_MALFORMED") from None

    def _mistakes(self, mistakes: Sequence[str]) -> Refused:
        """RULES_INVALID: every mistake with its place, as many as trailers hold."""
        code, payload, _ = self._refusal("RULES_INVALID", len(mistakes))
        status = status_pb2.Status.FromString(payload)
        bad, size = error_details_pb2.BadRequest(), 0
        for mistake in mistakes:
            found = _MISTAKE.fullmatch(mistake)
            field, text = (f"{FILE}:{found[1]}:{found[2]}", found[3]) if found else (FILE, mistake)
            size += len(field) + len(text.encode()) + 8
            if size > DETAILS_BYTES_MAX:
                break
            bad.field_violations.add(field=field, description=text)
        more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
        status.message = f"{mistakes[0][:500]}{more}; the rules in force stay"
        detail = any_pb2.Any()
        detail.Pack(bad)
        status.details.append(detail)
        return Refused((code, status.SerializeToString(), status.message.encode()))

    # --- versions ---------------------------------------------------------------------------------------------------

    async def _entry(self, sequence: int) -> bytes:
        """An entry of the journal. Errors: Refused (it cannot be read now)."""
        for _ in range(int(DRAIN_WAIT_S / DRAIN_STEP_S)):
            entry = await asyncio.to_thread(self._handle.read_entry, sequence)
            if entry:
                return entry
            await asyncio.sleep(DRAIN_STEP_S)
        raise self._refuse("NOT_READY")

    async def _version(self, number: int) -> Version:
        """Errors: Refused: there is none of this number."""
        known = self._handle.versions(max(1, number))
        if number < 1 or not known:
            raise self._refuse("VERSION_NOT_FOUND", number, len(self._handle.versions()))
        if number not in self._versions:
            self._versions[number] = published.read_version(number, known[0][0], await self._entry(known[0][0]))
        return self._versions[number]

    def _in_force(self, at_us: int | None = None) -> int:
        return published.in_force((moment for _, moment in self._handle.versions()), self._handle.time_us if at_us is None else at_us)

    async def _source(self, version: Version) -> bytes:
        while version.again:
            version = await self._version(version.again)
        return published.source_of(await self._entry(version.sequence))

    async def _image(self, version: Version) -> bytes:
        entry = await self._entry(version.sequence)
        places = {place: await self._entry(place) for place in version.told.places}
        return await asyncio.to_thread(published.image_of, entry, lambda wanted: [places[place] for place in wanted])

    async def _newest_own(self) -> Version:
        """The last version with a source of its own: by its numbers of wallets, segments, ... the next one has to go. Those before are its
        beginnings, so each of them may come again."""
        for number in range(len(self._handle.versions()), 0, -1):
            version = await self._version(number)
            if not version.again:
                return version
        raise self._refuse("NOT_READY")

    def _rules(self, version: Version, state: int) -> admin_pb2.Rules:
        return admin_pb2.Rules(
            version=version.number, name=version.told.name, hash=version.hash, state=state, create_time=_timestamp(version.time_us),
            effective_time=_timestamp(version.effective_us), sequence=version.sequence, rule_count=version.told.rule_count,
            operator=version.operator, reason=version.reason)

    def _state(self, version: Version) -> int:
        if version.number == self._in_force():
            return admin_pb2.Rules.STATE_IN_FORCE
        return admin_pb2.Rules.STATE_COMING if version.effective_us > self._handle.time_us else admin_pb2.Rules.STATE_PAST

    # --- reading ----------------------------------------------------------------------------------------------------

    async def _get_rules(self, request: bytes) -> admin_pb2.GetRulesResponse:
        asked = self._parse(admin_pb2.GetRulesRequest, request)
        version = await self._version(asked.version or self._in_force())
        return admin_pb2.GetRulesResponse(rules=self._rules(version, self._state(version)), source=await self._source(version))

    async def _list_rules(self, request: bytes) -> admin_pb2.ListRulesResponse:
        asked = self._parse(admin_pb2.ListRulesRequest, request)
        if not 0 <= asked.page_size <= limits.PAGE_SIZE_MAX:
            raise self._field(65, asked.page_size)
        newest = len(self._handle.versions())
        if asked.page_token:
            found = re.fullmatch(r"below-([1-9]\d{0,9})", asked.page_token)
            if found is None or int(found[1]) > newest:
                raise self._field(70, asked.page_token)
            newest = int(found[1]) - 1
        last = max(0, newest - (asked.page_size or limits.PAGE_SIZE_DEFAULT))
        versions = [await self._version(number) for number in range(newest, last, -1)]
        return admin_pb2.ListRulesResponse(rules=[self._rules(version, self._state(version)) for version in versions],
                                           next_page_token=f"below-{last + 1}" if last else "")

    async def _diff_rules(self, request: bytes) -> admin_pb2.DiffRulesResponse:
        asked = self._parse(admin_pb2.DiffRulesRequest, request)
        to = asked.WhichOneof("to")
        if to is None:
            raise self._field(77)
        before = await self._source(await self._version(asked.from_version or self._in_force()))
        if to == "to_version":
            done = await self._compile(Job(old=before, new=await self._source(await self._version(asked.to_version))))
        else:
            self._check_source(asked.to_source)
            done = await self._compile(Job(source=asked.to_source, old=before))
        return admin_pb2.DiffRulesResponse(differences=_differences(done))

    async def _compile(self, job: Job) -> Done:
        """In a process of its own. Errors: Refused."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "from ledger.rules.apart import main; main()", cwd=ROOT, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE)
        except OSError:
            raise self._refuse("NOT_READY") from None
        try:
            out, _ = await asyncio.wait_for(process.communicate(pickle.dumps(job)), COMPILE_S_MAX)
            if process.returncode != 0:
                raise self._mistakes((f"the compiler ended with {process.returncode}: look at the service's log",))
        except TimeoutError:
            raise self._mistakes((f"the compiler needs more than {COMPILE_S_MAX:.0f} s",)) from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        done: Done = pickle.loads(out)
        if done.mistakes:
            raise self._mistakes(done.mistakes)
        return done

    # --- publishing -------------------------------------------------------------------------------------------------

    def _check_source(self, source: bytes) -> None:
        if not 1 <= len(source) <= limits.SOURCE_BYTES_MAX:
            raise self._field(72, f"{len(source)} bytes")

    def _check(self, asked: admin_pb2.PublishRulesRequest) -> None:
        """Everything that can be told from the request alone. Errors: Refused."""
        if not asked.validate_only:
            if not (limits.REQUEST_ID_BYTES_MIN <= len(asked.request_id) <= limits.REQUEST_ID_BYTES_MAX
                    and _REQUEST_ID.fullmatch(asked.request_id)):
                raise self._field(1, asked.request_id)
            if not asked.HasField("sent_time") or not _is_time(asked.sent_time):
                raise self._field(2)
            for number, text, most in ((58, asked.operator, limits.OPERATOR_BYTES_MAX), (59, asked.reason, limits.REASON_BYTES_MAX)):
                if not 1 <= len(text.encode()) <= most or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
                    raise self._field(number, text)
        if asked.WhichOneof("rules") is None:
            raise self._field(76)
        if asked.WhichOneof("rules") == "source":
            self._check_source(asked.source)
        elif asked.version < 1:
            raise self._field(73, asked.version)
        if asked.HasField("effective_time") and not _is_time(asked.effective_time):
            raise self._field(74, asked.effective_time.seconds)
        names = [file.name for file in asked.files]
        if (len(names) > limits.RULES_FILES_MAX or len(set(names)) != len(names)
                or sum(len(file.content) for file in asked.files) > limits.RULES_FILES_BYTES_MAX):
            raise self._field(75, f"{len(names)} files")
        for name in names:
            if (not 1 <= len(name.encode()) <= limits.RULES_FILE_NAME_BYTES_MAX or name in (".", "..") or "/" in name or "\0" in name):
                raise self._field(75, name)

    async def _publish_rules(self, request: bytes) -> admin_pb2.PublishRulesResponse:
        asked = self._parse(admin_pb2.PublishRulesRequest, request)
        self._check(asked)
        if asked.validate_only:
            return await self._validate(asked)
        task = asyncio.create_task(self._publish(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def _compiled(self, asked: admin_pb2.PublishRulesRequest, current: int) -> tuple[Done, Told]:
        """The image of a source, what differs from the rules in force, and what it says of itself. Errors: Refused."""
        before = await self._newest_own()
        files = tuple((file.name, file.content) for file in asked.files)
        done = await self._compile(Job(asked.source, files, await self._image(before), before.number,
                                       await self._source(await self._version(current))))
        told = published.told_of(done.image)
        return done, told._replace(warnings=done.warnings)

    async def _compared(self, old: int, new: int) -> Done:
        """What differs between two versions. Errors: Refused."""
        return await self._compile(Job(old=await self._source(await self._version(old)), new=await self._source(await self._version(new))))

    async def _validate(self, asked: admin_pb2.PublishRulesRequest) -> admin_pb2.PublishRulesResponse:
        if asked.WhichOneof("rules") == "version":
            version = await self._version(asked.version)
            done, told, hash_ = await self._compared(self._in_force(), asked.version), version.told, version.hash
        else:
            done, told = await self._compiled(asked, self._in_force())
            hash_ = done.image[published.HASH_AT:][:32]
        return admin_pb2.PublishRulesResponse(rules=admin_pb2.Rules(name=told.name, hash=hash_, rule_count=told.rule_count),
                                              differences=_differences(done), warnings=told.warnings)

    async def _order(self, **what: Any) -> OrderAnswer:
        """One step of a publishing, durable when it returns. Errors: Refused."""
        order = Order(**what)
        try:
            answer = await self._ask(lambda token: self._handle.submit_order(token, order))
        except BaseException:
            order.give_up()
            raise
        if answer[0] == 0:
            return self._handle.take_answer(order, answer[1])
        if not answer[1]:  # the service stopped: what became of it is not known
            order.give_up()
        raise Refused(answer)

    async def _publish(self, asked: admin_pb2.PublishRulesRequest) -> admin_pb2.PublishRulesResponse:
        moment_us = asked.effective_time.ToMicroseconds() if asked.HasField("effective_time") else 0
        again = asked.version if asked.WhichOneof("rules") == "version" else 0
        content = hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in (
            asked.source, *(part for file in asked.files for part in (file.name.encode(), file.content))))).digest()[:8]
        common = {"request_id": asked.request_id.encode(), "sent_time_us": asked.sent_time.ToMicroseconds(), "effective_us": moment_us,
                  "again": again, "content": content, "operator": asked.operator.encode(), "reason": asked.reason.encode()}
        async with self._publishing:
            seen = await self._order(kind="look", **common)
            if seen.sequence:
                return await self._answer(seen)
            if asked.HasField("effective_time") and not self._handle.time_us < moment_us <= self._handle.time_us + MOMENT_US_MAX:
                raise self._field(74, asked.effective_time.ToJsonString())
            if again:
                done, wrote = None, await self._put_again(await self._version(again), common)
            else:
                done, wrote = await self._put(asked, common)
            return await self._answer(wrote, done)

    async def _put(self, asked: admin_pb2.PublishRulesRequest, common: dict[str, Any]) -> tuple[Done | None, OrderAnswer]:
        """A source becomes a version."""
        current = self._in_force()
        done, told = await self._compiled(asked, current)
        wrote = await self._write(done.image, asked.source, told, common)
        return (done if wrote.before == current else None), wrote

    async def _put_again(self, version: Version, common: dict[str, Any]) -> OrderAnswer:
        """An earlier version becomes the next one. Its image need not travel while it is in memory."""
        data = await self._image(version)
        if int.from_bytes(data[4:8], "little") < IMAGE_VERSION:
            raise self._mistakes((f"version {version.number} was compiled by an older compiler: publish its source anew",))
        if (await self._order(kind="look", hash=version.hash)).in_memory:
            told = version.told._replace(places=version.told.places or (version.sequence,), wallets=await self._wallets(version.told))
            return await self._order(kind="publish", hash=version.hash, told=published.pack(told), **common)
        return await self._write(data, b"", version.told, common)

    async def _wallets(self, told: Told) -> tuple[Wallet, ...]:
        """Those of all versions: an earlier one has the first of them."""
        return max(told.wallets, (await self._newest_own()).told.wallets, key=len)

    async def _write(self, data: bytes, source: bytes, told: Told, common: dict[str, Any]) -> OrderAnswer:
        try:
            image = await asyncio.to_thread(RulesImage, data)
        except ValueError as error:
            raise self._mistakes((f"a fault of the compiler: {error}",)) from None
        whole = image.size <= limits.PROGRAM_PART_BYTES
        told = told._replace(places=() if whole else await self._send(image), wallets=await self._wallets(told))
        return await self._order(kind="publish", image=image, whole=whole, source=source, told=published.pack(told), **common)

    async def _send(self, image: RulesImage) -> tuple[int, ...]:
        """The image into the journal. Returns the sequences of its parts."""
        places = []
        for offset in range(0, image.size, limits.PROGRAM_PART_BYTES):
            wrote = await self._order(kind="part", image=image, offset=offset)
            places.append(wrote.sequence)
        return tuple(places)

    async def _answer(self, wrote: OrderAnswer, done: Done | None = None) -> admin_pb2.PublishRulesResponse:
        """A function of the entry, the same for a repeat."""
        version = await self._version(wrote.version)
        if done is None:
            done = await self._compared(wrote.before, wrote.version)
        state = admin_pb2.Rules.STATE_COMING if version.effective_us > version.time_us else admin_pb2.Rules.STATE_IN_FORCE
        return admin_pb2.PublishRulesResponse(rules=self._rules(version, state), replayed=wrote.replayed, differences=_differences(done),
                                              warnings=version.told.warnings)


def _differences(done: Done) -> list[admin_pb2.RulesDifference]:
    return [admin_pb2.RulesDifference(path=one.path, before=one.before, after=one.after) for one in done.differences]


def _is_time(stamp: timestamp_pb2.Timestamp) -> bool:
    return 0 <= stamp.seconds <= TIME_MAX_S and 0 <= stamp.nanos < 1_000_000_000


def status_of(answer: Answer) -> int:
    """Its number in ledger/errors.py; 0: good, or unknown."""
    info = error_details_pb2.ErrorInfo()
    if answer[0] != 0 and answer[1]:
        for detail in status_pb2.Status.FromString(answer[1]).details:
            if detail.Unpack(info):
                return errors.BY_NAME[info.reason].number
    return 0


def _timestamp(time_us: int) -> timestamp_pb2.Timestamp:
    return timestamp_pb2.Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)
