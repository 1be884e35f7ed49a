"""The codec of BatchPost and BatchGetBalances against google.protobuf, both ways; and a batch against its commands one by one.

A batch is refused whole when its own frame is broken, a part alone when the message inside is. The frame, as the model has it, is the
batch with the inner messages taken for plain bytes.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import errors, limits
from ledger.rules import compile_file
from server import _local
from server._local import LocalLedger
from server._pb.loyalty.ledger.v1 import ledger_pb2 as pb
from tests.running import PROGRAM
from tests.server.test_wire import framed, messages
from tests.server.wire_model import (
    FIELD_INVALID,
    MESSAGE_MALFORMED,
    NOW_US,
    ORIGIN_BYTES,
    SNIPPETS,
    Fault,
    check_member,
    command_of,
    fill_member,
    mutate,
    request,
)

POST, BALANCES = 14, 15
KINDS = {field.number: field.name for field in pb.PostCommand.DESCRIPTOR.fields}  # by method
SIZES = {"members_max": 5000, "ids_max": 200_000, "reservations_max": 1000}


def frame_types() -> tuple[Any, Any, Any]:
    """Frames of BatchPostRequest and BatchGetBalancesRequest, and their parts as bytes."""
    file = descriptor_pb2.FileDescriptorProto(name="frames.proto", package="frames", syntax="proto3")
    post = file.message_type.add(name="Post")
    for field in pb.PostCommand.DESCRIPTOR.fields:
        post.field.add(name=field.name, number=field.number, type=12, label=3)
    for name, kind in (("Posts", 11), ("Parts", 12), ("Balances", 12)):
        batch = file.message_type.add(name=name)
        batch.field.add(name="parts", number=1, type=kind, label=3, type_name=".frames.Post" if kind == 11 else None)
        batch.field.add(name="wallet", number=2, type=12, label=3)
        if name == "Balances":
            batch.field.add(name="origin", number=3, type=11, label=1, type_name=".frames.Origin")
    origin = file.message_type.add(name="Origin")
    for number, name in enumerate(ORIGIN_BYTES, start=1):
        origin.field.add(name=name, number=number, type=12, label=3)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return tuple(message_factory.GetMessageClass(pool.FindMessageTypeByName(f"frames.{name}")) for name in ("Posts", "Parts", "Balances"))


POSTS, PARTS, BALANCE_FRAMES = frame_types()


def has_control(text: str) -> bool:
    return any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text)


def number_of(name: str, rule: str) -> int:
    return next(field.number for field in errors.FIELDS if field.name == name and rule in field.rule)


def model(method: int, data: bytes) -> Any:
    """What decode_batch must give: a refusal of the whole as a tuple, or a list of commands and refusals."""
    try:
        frame: Any = (POSTS if method == POST else BALANCE_FRAMES).FromString(data)
    except DecodeError:
        return (MESSAGE_MALFORMED,)
    wallet, origin, broken = None, {}, []
    if method == BALANCES:
        said = [("wallet", frame.wallet), *((f"origin.{name}", getattr(frame.origin, name)) for name in ORIGIN_BYTES)]
        for field, texts in said:
            try:
                text = [sent.decode() for sent in texts][-1:]  # the last one counts
            except UnicodeDecodeError:
                broken += [(FIELD_INVALID, number_of(field, ""), -1, sent) for sent in texts if not is_utf8(sent)]
                continue
            if field == "wallet":
                wallet = "".join(text) or None
            elif "".join(text):
                origin[field.removeprefix("origin.")] = text[0]
    if broken:
        return Either(broken)  # the first in the bytes
    parts = PARTS.FromString(data).parts
    if not 1 <= len(parts) <= limits.BATCH_COMMANDS_MAX:
        return FIELD_INVALID, number_of("commands" if method == POST else "members", "1..1000"), -1, len(parts)
    if method == POST:
        for index, part in enumerate(frame.parts):
            if not part.ListFields():
                return FIELD_INVALID, number_of("commands", "one of"), index, None
    if wallet is not None and (not 1 <= len(wallet.encode()) <= limits.WALLET_NAME_BYTES_MAX or has_control(wallet)):
        return FIELD_INVALID, number_of("wallet", ""), -1, wallet.encode()
    for name, bytes_max in ORIGIN_BYTES.items():
        if name in origin and (len(origin[name].encode()) > bytes_max or has_control(origin[name])):
            return FIELD_INVALID, number_of(f"origin.{name}", ""), -1, origin[name].encode()
    return [model_part(method, part, wallet, origin) for part in parts]


class Either(list[Any]):
    """Refusals of which any one may come."""


def is_utf8(sent: bytes) -> bool:
    try:
        sent.decode()
    except UnicodeDecodeError:
        return False
    return True


def whole(part: bytes) -> bytes:
    """A batch of this part alone, so that it lies as deep."""
    size, prefix = len(part), b"\x0a"
    while size >= 128:
        prefix += bytes([size & 127 | 128])
        size >>= 7
    return prefix + bytes([size]) + part


def model_part(method: int, part: bytes, wallet: str | None, origin: dict[str, str]) -> Any:
    try:
        if method == POST:
            command = pb.BatchPostRequest.FromString(whole(part)).commands[0]
            name = command.WhichOneof("command")
            return command_of(command.DESCRIPTOR.fields_by_name[name].number, getattr(command, name))
        member = pb.BatchGetBalancesRequest.FromString(whole(part)).members[0]
        asked = pb.GetBalanceRequest(member=member, origin=origin)
        return command_of(8, asked) | {"wallet": wallet, "member": check_member(member)}
    except DecodeError:
        return "malformed or not UTF-8"
    except Fault as fault:
        return fault.args


def agree(method: int, data: bytes) -> str:
    expected = model(method, data)
    try:
        got: Any = _local.decode_batch(method, data)
    except ValueError as refusal:
        got = refusal.args
    if isinstance(expected, Either):
        assert got in expected
        return "refused"
    if isinstance(expected, tuple):
        assert isinstance(got, tuple), f"must be refused whole with {expected}"
        assert got[:len(expected)] == expected
        return "malformed" if expected[0] == MESSAGE_MALFORMED else "refused"
    assert isinstance(got, list), f"must not be refused whole, was with {got}"
    assert len(got) == len(expected)
    for mine, right in zip(got, expected, strict=True):
        if right == "malformed or not UTF-8":
            assert isinstance(mine, tuple), f"google.protobuf refuses what decodes to {mine}"
            if mine[0] == FIELD_INVALID:
                with pytest.raises(UnicodeDecodeError):
                    mine[3].decode()
            else:
                assert mine[0] == MESSAGE_MALFORMED
        else:
            assert mine == right
    return "parts refused" if any(not isinstance(right, dict) for right in expected) else "decoded"


def a_batch(method: int, chance: random.Random, count: int) -> Any:
    """A batch that the codec takes, of writes of all kinds."""
    if method == BALANCES:
        batch: Any = pb.BatchGetBalancesRequest(wallet=chance.choice(("", "points")))
        if chance.random() < 0.5:
            batch.origin.CopyFrom(pb.Origin(device=chance.choice(("", "d-1")), store="S1", till=chance.choice(("", "7"))))
        for _ in range(count):
            fill_member(batch.members.add(), chance)
        return batch
    batch = pb.BatchPostRequest()
    for _ in range(count):
        kind = chance.choice(list(KINDS))
        getattr(batch.commands.add(), KINDS[kind]).CopyFrom(request(kind, chance))
    return batch


@pytest.mark.parametrize("method", [POST, BALANCES])
def test_every_batch_decodes_as_google_protobuf_reads_it(method: int) -> None:
    kind = pb.BatchPostRequest if method == POST else pb.BatchGetBalancesRequest

    @settings(max_examples=40 if method == POST else 150, deadline=None)
    @given(st.data())
    def check(data: Any) -> None:
        agree(method, data.draw(messages(kind.DESCRIPTOR, kind())).SerializeToString())

    check()


def test_a_command_given_twice_merges_and_another_one_replaces_it() -> None:
    chance = random.Random(5)
    seen = set()
    for _ in range(2000):
        kinds = chance.choices((1, 2, 2, 6, 7), k=chance.randrange(2, 4))
        parts = [framed(8 * kind + 2, request(kind, chance).SerializeToString()) for kind in kinds]
        seen.add(agree(POST, whole(b"".join(parts))))
    assert "decoded" in seen


def test_spoilt_batches_are_refused_exactly_where_google_protobuf_refuses_them() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    seen = dict.fromkeys(("decoded", "parts refused", "refused", "malformed"), 0)
    for _ in range(4000):
        method = chance.choice((POST, POST, BALANCES))
        good = a_batch(method, chance, chance.randrange(1, 6)).SerializeToString()
        other = a_batch(method, chance, 1).SerializeToString()
        # Spoilt anywhere, or inside one part whose frame stays right.
        data = mutate(good, other, chance) if chance.random() < 0.5 else good + whole(mutate(other[2:], b"\x0a\x00", chance))
        if chance.random() < 0.1:
            data += whole(chance.choice((b"", b"\x7a\x00")))
        seen[agree(method, data)] += 1
    assert min(seen.values()) > 50, f"the mutations have lost their bite: {seen}"


def test_snippets_at_every_depth() -> None:
    for snippet in SNIPPETS:
        for data in (snippet, whole(snippet), whole(b"\x0a\x00" + snippet), whole(whole(snippet))):
            agree(POST, data)
            agree(BALANCES, data)


def test_the_number_of_commands_is_bounded() -> None:
    one = whole(framed(10, b""))
    assert agree(POST, b"") == agree(POST, one * 1001) == "refused"
    assert agree(POST, one) == agree(POST, one * 1000) == "parts refused"
    assert agree(BALANCES, b"") == agree(BALANCES, whole(b"\x08\x01") * 1001) == "refused"
    assert agree(BALANCES, whole(b"\x08\x01") * 1000) == "decoded"


@pytest.mark.parametrize(("method", "data", "message"), [
    (POST, b"", "commands must be 1..1000 commands, was 0"),
    (POST, whole(framed(10, b"")) * 1001, "commands must be 1..1000 commands, was 1001"),
    (POST, whole(framed(10, b"")) + whole(b""),
     "commands[1] must be one of earn, burn, reserve, capture, release, commit, enroll and return_receipt, was not set"),
    (BALANCES, b"", "members must be 1..1000 members, was 0"),
    (BALANCES, whole(b"\x08\x01") + b"\x12\x21" + b"w" * 33,
     f'wallet must be a wallet name of 1..32 bytes of UTF-8 without control characters, was "{"w" * 33}"'),
    (BALANCES, whole(b"\x08\x01") + b"\x12\x01w", "the programme has no wallet of this name: \"w\""),
    (POST, whole(framed(10, b"")) + b"\x0a\x02", "the request is not a valid protobuf message of this method: it breaks at byte 5"),
])
def test_what_refuses_a_whole_batch_says_what_would_be_right(method: int, data: bytes, message: str) -> None:
    ledger = new_ledger()
    if "no wallet" in message:
        results = pb.BatchGetBalancesResponse.FromString(ledger.call_batch(method, data, NOW_US)[1]).results
        assert results[0].error.message == message  # the service refuses the whole batch: test_batch.py
        return
    code, payload = ledger.call_batch(method, data, NOW_US)
    assert code == errors.INVALID_ARGUMENT
    assert status_pb2.Status.FromString(payload).message == message


def test_a_command_that_is_longer_than_a_request_may_be_is_refused_alone() -> None:
    long = request(2, random.Random(1))
    long.wallet = "x" * limits.REQUEST_BYTES_MAX
    batch = pb.BatchPostRequest(commands=[pb.PostCommand(burn=long), pb.PostCommand(release=request(5, random.Random(1)))])
    first, second = _local.decode_batch(POST, batch.SerializeToString())
    assert first[0] == errors.BY_NAME["MESSAGE_TOO_LARGE"].number
    assert second["method"] == 5


# --- answers -----------------------------------------------------------------------------------------------------

def new_ledger() -> LocalLedger:
    programme = compile_file(PROGRAM)
    return LocalLedger(programme.image, programme.source, NOW_US, **SIZES)


def result_of(command: Any, code: int, payload: bytes) -> Any:
    """The PostResult that a call's own answer becomes."""
    if code:
        status = status_pb2.Status.FromString(payload)
        info = error_details_pb2.ErrorInfo()
        status.details[0].Unpack(info)
        return pb.PostResult(error=status, replayed=info.metadata.get("replayed") == "true")
    name = pb.PostCommand.DESCRIPTOR.fields_by_number[command].message_type.name.replace("Request", "Response")
    answer = getattr(pb, name).FromString(payload)
    result = pb.PostResult(entry=answer.entry, replayed=answer.replayed)
    result.entry.ClearField("awards")
    if command not in (1, 2, 7, 30) and answer.HasField("reservation"):
        result.reservation.CopyFrom(answer.reservation)
    return result


def test_a_batch_is_its_commands_one_by_one() -> None:
    """Same answers, same entries, same digest; with refusals, repeats and spoilt commands in the middle."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    single, batched = new_ledger(), new_ledger()
    now, seen = NOW_US, {"entry": 0, "error": 0, "replayed": 0, "reservation": 0}
    for count in (1, 7, 8, 9, 1000, 300):
        batch = a_batch(POST, chance, count)
        for index in chance.sample(range(count), count // 10):
            batch.commands[index].CopyFrom(batch.commands[chance.randrange(count)])
        for index in chance.sample(range(count), count // 20):
            getattr(batch.commands[index], batch.commands[index].WhichOneof("command")).ClearField("sent_time")
        expected = []
        for command in batch.commands:
            name = command.WhichOneof("command")
            kind = command.DESCRIPTOR.fields_by_name[name].number
            code, payload, _ = single.call(kind, getattr(command, name).SerializeToString(), now)
            expected.append(result_of(kind, code, payload))
        code, payload = batched.call_batch(POST, batch.SerializeToString(), now)
        assert code == 0
        answer = pb.BatchPostResponse.FromString(payload)
        assert list(answer.results) == expected
        assert payload == answer.SerializeToString(deterministic=True)
        for result in answer.results:
            seen[result.WhichOneof("outcome")] += 1
            seen["replayed"] += result.replayed
            seen["reservation"] += result.HasField("reservation")
        now += 1_000_000
    assert single.entries() == batched.entries()
    assert single.digest() == batched.digest()
    assert min(seen.values()) > 5, seen


def test_balances_are_those_of_single_calls_without_their_next_expiries() -> None:
    chance = random.Random(3)
    ledger = new_ledger()
    for _ in range(500):
        ledger.call(1, request(1, chance).SerializeToString(), NOW_US)
    batch = a_batch(BALANCES, chance, 300)
    batch.wallet = ""
    code, payload = ledger.call_batch(BALANCES, batch.SerializeToString(), NOW_US)
    assert code == 0
    answer = pb.BatchGetBalancesResponse.FromString(payload)
    assert payload == answer.SerializeToString(deterministic=True)
    assert answer.sequence == len(ledger.entries())
    assert answer.read_time.ToMicroseconds() == NOW_US
    seen = set()
    for member, result in zip(batch.members, answer.results, strict=True):
        code, payload, _ = ledger.call(8, pb.GetBalanceRequest(member=member).SerializeToString(), NOW_US)
        if code:
            assert result == pb.BalanceResult(error=status_pb2.Status.FromString(payload))
        else:
            alone = pb.GetBalanceResponse.FromString(payload)
            for wallet in alone.wallets:
                wallet.ClearField("next_expiries")
            assert result == pb.BalanceResult(balance=pb.Balance(member_id=alone.member_id, wallets=alone.wallets, sequence=alone.sequence))
        seen.add(result.WhichOneof("outcome"))
    assert seen == {"balance", "error"}


def test_the_longest_results_fit_their_bounds() -> None:
    """Each of the 1000 results is the longest refusal of its kind; the buffers of an answer hold them."""
    longest = request(7, random.Random(1))
    longest.request_id = "\\" * 64
    batch = pb.BatchPostRequest(commands=[pb.PostCommand(enroll=longest)] * 1000)
    _, payload = new_ledger().call_batch(POST, batch.SerializeToString(), NOW_US)
    assert len(payload) <= limits.BATCH_COMMANDS_MAX * limits.BATCH_RESULT_BYTES_MAX
    reserve = pb.Reservation(reservation_id=2**62, state=4, wallet="w" * 32, reserved_points=2**62, captured_points=2**62)
    reserve.expire_time.FromSeconds(253_402_300_799)
    entry = pb.Entry(sequence=2**62, kind=9, member_id=2**31, earned_points=-1, burned_points=-1, expired_points=-1, program_version=-1,
                     adjusted_points=-1)
    entry.create_time.FromNanoseconds(253_402_300_799_999_999_999)
    result = pb.BatchPostResponse(results=[pb.PostResult(entry=entry, replayed=True, reservation=reserve)])
    assert result.ByteSize() <= limits.BATCH_RESULT_BYTES_MAX
    wallet = pb.WalletBalance(wallet="w" * 32, posted_points=-1, pending_points=-1, reserved_points=-1, available_points=-1)
    balance = pb.Balance(member_id=2**31, wallets=[wallet] * limits.WALLETS_MAX, sequence=-1, rung=5)
    balance.rung_end_time.FromSeconds(2**32 - 1)
    assert pb.BatchGetBalancesResponse(results=[pb.BalanceResult(balance=balance)]).ByteSize() <= limits.BATCH_BALANCE_BYTES_MAX
