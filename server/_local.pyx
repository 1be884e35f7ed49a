# The ledger in one process without sockets or disks, for tests and the bench of the core; and the codec alone, for its tests.
# Not for serving: nothing here is durable, and every call takes the GIL. The codec is server/_wire.pyx, the decisions are ledger/_core.pyx.
# Imported by tests/ and bench/ alone; the Python signatures stand in _local.pyi.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from ledger._layout cimport (
    Command, GIVEN_BUSINESS_TIME, GIVEN_RECEIPT, GIVEN_RECEIPT_KEY, GIVEN_SENT_TIME, GIVEN_TTL, GIVEN_WALLET, MEMBER_BY_ID, MEMBER_NONE,
    MemberRef, Outcome, Slice, VALUE_NONE, VALUE_NUMBER, VALUE_TEXT,
)
from ledger._limits cimport ANSWER_BYTES_MAX, WALLETS_MAX, WALLET_NAME_BYTES_MAX
from ledger._rules cimport Program
from server._call cimport Caller, DETAILS_BYTES_MAX, MESSAGE_BYTES_MAX
from server._wire cimport wire_answer, wire_decode, wire_error, wire_grpc_code

# Scratch of the functions below; they hold the GIL from end to end.
cdef Caller scratch
cdef uint8_t scratch_answer[ANSWER_BYTES_MAX]

MEMBER_KINDS = (None, "member_id", "card", "phone", "email", "app")


cdef const uint8_t* exact_copy(bytes data) except NULL:
    # A buffer without a spare byte behind it, so that AddressSanitizer sees the first byte read too many. To be freed.
    cdef uint8_t* copy = <uint8_t*>malloc(len(data) or 1)
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const uint8_t*>data, len(data))
    return copy


cdef bytes to_bytes(Slice text):
    return (<const char*>text.data)[:text.size] if text.size else b""


cdef object to_member(const MemberRef* member):
    if member.kind == MEMBER_NONE:
        return None
    return MEMBER_KINDS[member.kind], member.member_id if member.kind == MEMBER_BY_ID else to_bytes(member.text).decode()


cdef dict to_dict(const Command* command):
    cdef uint32_t i
    cdef int given = command.given
    return {
        "method": command.method,
        "payment": command.payment,
        "request_id": to_bytes(command.request_id).decode(),
        "sent_time_us": command.sent_time_us if given & GIVEN_SENT_TIME else None,
        "business_time_us": command.business_time_us if given & GIVEN_BUSINESS_TIME else None,
        "ttl_us": command.ttl_us if given & GIVEN_TTL else None,
        "wallet": to_bytes(command.wallet).decode() if given & GIVEN_WALLET else None,
        "receipt": given & GIVEN_RECEIPT != 0,
        "receipt_key": (
            to_bytes(command.store).decode(), to_bytes(command.till).decode(), command.business_day, to_bytes(command.number).decode(),
        ) if given & GIVEN_RECEIPT_KEY else None,
        "member": to_member(&command.member),
        "points": command.points,
        "reservation_id": command.reservation_id,
        "currency": to_bytes(command.currency).decode(),
        "total_minor": command.total_minor,
        "identifiers": [to_member(&command.identifiers[i]) for i in range(command.identifier_count)],
        "lines": [
            (to_bytes(command.lines[i].sku).decode(), to_bytes(command.lines[i].category).decode(),
             command.lines[i].quantity_milli, command.lines[i].amount_minor)
            for i in range(command.line_count)
        ],
    }


def decode(uint8_t method, bytes request not None):
    """Decode one request; ValueError(status, field, index, value) where the codec refuses it."""
    cdef const uint8_t* data = exact_copy(request)
    cdef Outcome* outcome = &scratch.outcome
    # What an earlier request left must not show through.
    memset(&scratch, 0xA5, sizeof(Caller))
    try:
        if wire_decode(method, data, <uint32_t>len(request), &scratch.command, outcome):
            return to_dict(&scratch.command)
        value = None
        if outcome.value_kind == VALUE_TEXT:
            value = to_bytes(outcome.text)
        elif outcome.value_kind != VALUE_NONE:
            value = outcome.value
        elif outcome.a:
            value = outcome.a
        raise ValueError(outcome.status, outcome.field, outcome.index, value)
    finally:
        free(<void*>data)


def bench_decode(uint8_t method, bytes request not None, uint32_t count):
    """Decode the same request `count` times; the caller holds the watch."""
    cdef const uint8_t* data = request
    cdef uint32_t size = <uint32_t>len(request)
    cdef uint32_t i
    cdef uint64_t good = 0
    with nogil:
        for i in range(count):
            good += wire_decode(method, data, size, &scratch.command, &scratch.outcome)
    if good != count:
        raise ValueError("the request does not decode")


cdef int name_wallets(Program* program, list wallets, str currency) except -1:
    # As much of a programme as the codec looks at.
    cdef bytes name
    memset(program, 0, sizeof(Program))
    for i, wallet in enumerate(wallets):
        name = wallet.encode()
        assert i < WALLETS_MAX and len(name) <= WALLET_NAME_BYTES_MAX
        memcpy(program.wallets[i].name, <const char*>name, len(name))
        program.wallets[i].name_size = <uint32_t>len(name)
    program.wallet_count = <uint32_t>len(wallets)
    name = currency.encode()[:3]
    memcpy(program.currency, <const char*>name, len(name))
    return 0


def answer(uint8_t method, list wallets not None, bytes entry not None, uint64_t sequence, bint replayed):
    """The response message that an entry gives; wallets: names in the programme's order."""
    cdef Program program
    cdef const uint8_t* data = exact_copy(entry)
    cdef uint32_t size
    name_wallets(&program, wallets, "EUR")
    memset(&scratch.outcome, 0, sizeof(Outcome))
    scratch.outcome.entry = data
    scratch.outcome.entry_size = <uint32_t>len(entry)
    scratch.outcome.sequence = sequence
    scratch.outcome.replayed = replayed
    try:
        size = wire_answer(&program, method, &scratch.outcome, scratch_answer)
        return (<const char*>scratch_answer)[:size]
    finally:
        free(<void*>data)


def bench_answer(uint8_t method, list wallets not None, bytes entry not None, uint32_t count):
    """Encode the same answer `count` times; the caller holds the watch."""
    cdef Program program
    cdef uint32_t i
    name_wallets(&program, wallets, "EUR")
    memset(&scratch.outcome, 0, sizeof(Outcome))
    scratch.outcome.entry = entry
    scratch.outcome.entry_size = <uint32_t>len(entry)
    scratch.outcome.sequence = 1
    with nogil:
        for i in range(count):
            wire_answer(&program, method, &scratch.outcome, scratch_answer)


def balance_answer(list wallets not None, uint32_t member, uint64_t sequence, int64_t read_time_us, list views not None):
    """GetBalanceResponse. views: (wallet index, posted, pending, reserved, [(expiry time in us, points), ...])."""
    cdef Program program
    cdef uint32_t size
    name_wallets(&program, wallets, "EUR")
    memset(&scratch.outcome, 0, sizeof(Outcome))
    scratch.outcome.balance.member = member
    scratch.outcome.balance.sequence = sequence
    scratch.outcome.balance.read_time_us = read_time_us
    scratch.outcome.balance.wallet_count = <uint32_t>len(views)
    for i, (wallet, posted, pending, reserved, expiries) in enumerate(views):
        scratch.outcome.balance.wallets[i].wallet = wallet
        scratch.outcome.balance.wallets[i].posted_points = posted
        scratch.outcome.balance.wallets[i].pending_points = pending
        scratch.outcome.balance.wallets[i].reserved_points = reserved
        scratch.outcome.balance.wallets[i].expiry_count = <uint32_t>len(expiries)
        for j, (time_us, points) in enumerate(expiries):
            scratch.outcome.balance.wallets[i].expiry_time_us[j] = time_us
            scratch.outcome.balance.wallets[i].expiry_points[j] = points
    size = wire_answer(&program, 8, &scratch.outcome, scratch_answer)
    return (<const char*>scratch_answer)[:size]


def refusal(uint16_t status, uint16_t field, int index, value, int64_t a, int64_t b, bint replayed):
    """(gRPC code, google.rpc.Status bytes, message) of a refusal; value: None, an int or bytes as sent."""
    cdef Program program
    cdef uint8_t details[DETAILS_BYTES_MAX]
    cdef uint8_t message[MESSAGE_BYTES_MAX]
    cdef uint32_t message_size = 0
    cdef uint32_t size
    cdef bytes text
    name_wallets(&program, ["points"], "EUR")
    memset(&scratch.outcome, 0, sizeof(Outcome))
    scratch.outcome.status = status
    scratch.outcome.field = field
    scratch.outcome.index = index
    scratch.outcome.a = a
    scratch.outcome.b = b
    scratch.outcome.replayed = replayed
    if isinstance(value, bytes):
        text = value
        scratch.outcome.value_kind = VALUE_TEXT
        scratch.outcome.text.data = text
        scratch.outcome.text.size = <uint32_t>len(text)
    elif value is not None:
        scratch.outcome.value_kind = VALUE_NUMBER
        scratch.outcome.value = value
    size = wire_error(&program, &scratch.outcome, details, DETAILS_BYTES_MAX, message, MESSAGE_BYTES_MAX, &message_size)
    return wire_grpc_code(status), (<const char*>details)[:size], (<const char*>message)[:message_size].decode()
