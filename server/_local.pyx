# The ledger in one process without sockets or disks, for tests and the bench of the core; and the codec alone, for its tests.
# Not for serving: nothing here is durable, and every call takes the GIL. The codec is server/_wire.pyx, the decisions are ledger/_core.pyx.
# Imported by tests/ and bench/ alone; the Python signatures stand in _local.pyi.

import os

cimport cython
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset
from ledger._arith cimport civil_from_day, div_floor
from ledger._core cimport (
    APPLY_OK, Core, CoreSizes, CoreStats, SNAPSHOT_CHUNK_BYTES, core_apply, core_close, core_digest, core_execute, core_facts, core_keys_room, core_open, core_prepare, core_program,
    core_set_find, core_stats, core_tick, core_write_digest, core_write_program,
)
from ledger._entry cimport EntryWriter, entry_begin, entry_finish, put_byte, put_bytes, put_signed, put_varint, section_begin, section_end
from ledger._hash cimport Hash128, siphash
from ledger._ids cimport IDS_OK, Ids, ids_ask, ids_begin, ids_close, ids_open, ids_tell, ids_text, ids_write_due
from ledger._layout cimport (
    ACCOUNT_ISSUED, ACCOUNT_MEMBER, Command, ENTRY_HEADER_BYTES, EntryHeader, Facts, FLAG_OPENED, GIVEN_BIRTHDAY, GIVEN_BUSINESS_TIME,
    GIVEN_EXPLAIN, GIVEN_FAVOURITES, GIVEN_ONLY_AS_QUOTED, GIVEN_RECEIPT, GIVEN_RECEIPT_KEY, GIVEN_SENT_TIME, GIVEN_TTL, GIVEN_WALLET, KIND_EARN, KIND_ENROLL, LOOKED_UP, Lookup, MEMBER_BY_CARD, MEMBER_BY_ID, MEMBER_NONE,
    MemberRef, METHOD_BATCH_POST, METHOD_EARN, METHOD_GET_BALANCE, ORIGIN_COUNT, Outcome, SECTION_IDENTIFIERS, SECTION_LOTS, SECTION_POSTINGS, Slice, VALUE_NONE,
    VALUE_NUMBER, VALUE_TEXT,
)
from ledger._limits cimport (
    ANSWER_BYTES_MAX, BATCH_ANSWER_BYTES_MAX, COMMAND_ENTRY_BYTES_MAX, ENTRY_BYTES_MAX, LINES_MAX, TICK_ACCOUNTS_MAX, WALLETS_MAX, WALLET_NAME_BYTES_MAX,
)
from ledger._rules cimport Program
from ledger._snapshot cimport Snapshot, SnapshotWriter, snapshot_write
from ledger._status cimport STATUS_NOT_READY, STATUS_OK
from server._call cimport Answer, CALLS_AHEAD, Caller, DETAILS_BYTES_MAX, MESSAGE_BYTES_MAX, call_encode
from server._wire cimport (
    BalancesAsked, outcome_forget, wire_answer, wire_balance_result, wire_balances_end, wire_batch, wire_batch_next, wire_decode, wire_decode_member,
    wire_decode_post, wire_error, wire_grpc_code, wire_post_result,
)

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
        "expiry_day": command.expiry_day,
        "rung": command.rung,
        "case_id": command.case_id,
        "verdict": command.verdict,
        "operator": to_bytes(command.operator_name).decode(),
        "reason": to_bytes(command.reason).decode(),
        "currency": to_bytes(command.currency).decode(),
        "total_minor": command.total_minor,
        "identifiers": [to_member(&command.identifiers[i]) for i in range(command.identifier_count)],
        "lines": [
            (to_bytes(command.lines[i].sku).decode(), to_bytes(command.lines[i].category).decode(),
             command.lines[i].quantity_milli, command.lines[i].amount_minor, command.lines[i].regular_minor, command.lines[i].weighed != 0)
            for i in range(command.line_count)
        ],
        "tenders": [(to_bytes(command.tenders[i].name).decode(), command.tenders[i].amount_minor) for i in range(command.tender_count)],
        "channel": to_bytes(command.channel).decode(),
        "promo_codes": [to_bytes(command.promo_codes[i]).decode() for i in range(command.promo_code_count)],
        "quote_token": to_bytes(command.quote_token),
        "only_as_quoted": given & GIVEN_ONLY_AS_QUOTED != 0,
        "explain": given & GIVEN_EXPLAIN != 0,
        "adds": [to_bytes(command.adds[i]).decode() for i in range(command.add_count)],
        "removes": [to_bytes(command.removes[i]).decode() for i in range(command.remove_count)],
        "birthday": (command.birthday_month, command.birthday_day) if given & GIVEN_BIRTHDAY else None,
        "favourites": given & GIVEN_FAVOURITES != 0,
        "origin": {part: to_bytes(command.origin[part]).decode() for part in range(1, ORIGIN_COUNT) if command.origins >> part & 1},
    }


cdef tuple to_fault(const Outcome* outcome):
    """Shape: (status, field, index, value)."""
    value = None
    if outcome.value_kind == VALUE_TEXT:
        value = to_bytes(outcome.text)
    elif outcome.value_kind != VALUE_NONE:
        value = outcome.value
    elif outcome.a:
        value = outcome.a
    return outcome.status, outcome.field, outcome.index, value


def decode(uint8_t method, bytes request not None):
    """Decode one request; ValueError(status, field, index, value) where the codec refuses it."""
    cdef const uint8_t* data = exact_copy(request)
    cdef Outcome* outcome = &scratch.outcomes[0]
    # What an earlier request left must not show through.
    memset(&scratch, 0xA5, sizeof(Caller))
    try:
        if wire_decode(method, data, <uint32_t>len(request), &scratch.commands[0], outcome):
            return to_dict(&scratch.commands[0])
        raise ValueError(*to_fault(outcome))
    finally:
        free(<void*>data)


def decode_batch(uint8_t method, bytes request not None):
    """Decode a batch; ValueError as in decode where the codec refuses all of it. Shape: for each part its command, or what decode would
    raise for it as a tuple."""
    cdef const uint8_t* data = exact_copy(request)
    cdef Outcome* outcome = &scratch.outcomes[0]
    cdef uint32_t size = <uint32_t>len(request)
    cdef uint32_t offset = 0
    cdef uint32_t count
    cdef BalancesAsked asked
    cdef Slice part
    cdef bint good
    memset(&scratch, 0xA5, sizeof(Caller))
    try:
        count = wire_batch(method, data, size, &asked, outcome)
        if count == 0:
            raise ValueError(*to_fault(outcome))
        parts = []
        for _ in range(count):
            part = wire_batch_next(data, size, &offset)
            memset(&scratch, 0xA5, sizeof(Caller))
            if method == METHOD_BATCH_POST:
                good = wire_decode_post(part, &scratch.commands[0], outcome)
            else:
                good = wire_decode_member(part, &asked, &scratch.commands[0], outcome)
            parts.append(to_dict(&scratch.commands[0]) if good else to_fault(outcome))
        return parts
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
            good += wire_decode(method, data, size, &scratch.commands[0], &scratch.outcomes[0])
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
    memset(&scratch.outcomes[0], 0, sizeof(Outcome))
    scratch.outcomes[0].entry = data
    scratch.outcomes[0].entry_size = <uint32_t>len(entry)
    scratch.outcomes[0].sequence = sequence
    scratch.outcomes[0].replayed = replayed
    try:
        size = wire_answer(&program, method, &scratch.outcomes[0], scratch_answer)
        return (<const char*>scratch_answer)[:size]
    finally:
        free(<void*>data)


def bench_answer(uint8_t method, list wallets not None, bytes entry not None, uint32_t count):
    """Encode the same answer `count` times; the caller holds the watch."""
    cdef Program program
    cdef uint32_t i
    name_wallets(&program, wallets, "EUR")
    memset(&scratch.outcomes[0], 0, sizeof(Outcome))
    scratch.outcomes[0].entry = entry
    scratch.outcomes[0].entry_size = <uint32_t>len(entry)
    scratch.outcomes[0].sequence = 1
    with nogil:
        for i in range(count):
            wire_answer(&program, method, &scratch.outcomes[0], scratch_answer)


def balance_answer(list wallets not None, uint32_t member, uint64_t sequence, int64_t read_time_us, list views not None, uint8_t rung=0,
                   uint32_t rung_until_s=0):
    """GetBalanceResponse. views: (wallet index, posted, pending, reserved, [(expiry time in us, points), ...])."""
    cdef Program program
    cdef uint32_t size
    name_wallets(&program, wallets, "EUR")
    memset(&scratch.outcomes[0], 0, sizeof(Outcome))
    scratch.outcomes[0].balance.member = member
    scratch.outcomes[0].balance.sequence = sequence
    scratch.outcomes[0].balance.read_time_us = read_time_us
    scratch.outcomes[0].balance.rung = rung
    scratch.outcomes[0].balance.rung_until_s = rung_until_s
    scratch.outcomes[0].balance.wallet_count = <uint32_t>len(views)
    for i, (wallet, posted, pending, reserved, expiries) in enumerate(views):
        scratch.outcomes[0].balance.wallets[i].wallet = wallet
        scratch.outcomes[0].balance.wallets[i].posted_points = posted
        scratch.outcomes[0].balance.wallets[i].pending_points = pending
        scratch.outcomes[0].balance.wallets[i].reserved_points = reserved
        scratch.outcomes[0].balance.wallets[i].expiry_count = <uint32_t>len(expiries)
        for j, (time_us, points) in enumerate(expiries):
            scratch.outcomes[0].balance.wallets[i].expiry_time_us[j] = time_us
            scratch.outcomes[0].balance.wallets[i].expiry_points[j] = points
    size = wire_answer(&program, METHOD_GET_BALANCE, &scratch.outcomes[0], scratch_answer)
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
    memset(&scratch.outcomes[0], 0, sizeof(Outcome))
    scratch.outcomes[0].status = status
    scratch.outcomes[0].field = field
    scratch.outcomes[0].index = index
    scratch.outcomes[0].a = a
    scratch.outcomes[0].b = b
    scratch.outcomes[0].replayed = replayed
    if isinstance(value, bytes):
        text = value
        scratch.outcomes[0].value_kind = VALUE_TEXT
        scratch.outcomes[0].text.data = text
        scratch.outcomes[0].text.size = <uint32_t>len(text)
    elif value is not None:
        scratch.outcomes[0].value_kind = VALUE_NUMBER
        scratch.outcomes[0].value = value
    size = wire_error(&program, METHOD_EARN, &scratch.outcomes[0], details, DETAILS_BYTES_MAX, message, MESSAGE_BYTES_MAX, &message_size)
    return wire_grpc_code(status), (<const char*>details)[:size], (<const char*>message)[:message_size].decode()


# --- the ledger --------------------------------------------------------------------------------------------------

cdef enum:
    JOURNAL_BYTES_FIRST = 65_536    # the kept entries grow by doubling from here
    ENTRIES_FIRST = 1024
    DIGITS = 8                      # of the counters that run_earns writes into ids and cards


cdef const uint8_t* find_kept(void* owner, uint64_t sequence, uint32_t* size) noexcept nogil:
    # FindEntry over the kept entries.
    cdef Kept* kept = <Kept*>owner
    cdef const uint8_t* entry
    if sequence == 0 or sequence > kept.count:
        return NULL
    entry = kept.data + kept.offsets[sequence - 1]
    size[0] = (<const EntryHeader*>entry).size
    return entry


cdef bint no_pause(void* owner) noexcept nogil:
    return True


cdef struct Kept:               # every entry's bytes, back to back
    uint8_t* data
    uint64_t size               # bytes
    uint64_t room               # bytes
    uint64_t* offsets           # of the entry with sequence i + 1
    uint64_t count              # entries
    uint64_t offsets_room       # entries


cdef bint keep(Kept* kept, const uint8_t* entries, uint64_t size) noexcept nogil:
    # Appends entries that stand back to back. False: no memory.
    cdef void* grown
    cdef uint64_t end = kept.size + size
    while end > kept.room:
        grown = realloc(kept.data, 2 * kept.room)
        if grown == NULL:
            return False
        kept.data = <uint8_t*>grown
        kept.room *= 2
    memcpy(kept.data + kept.size, entries, size)
    while kept.size < end:
        if kept.count == kept.offsets_room:
            grown = realloc(kept.offsets, 2 * kept.offsets_room * sizeof(uint64_t))
            if grown == NULL:
                return False
            kept.offsets = <uint64_t*>grown
            kept.offsets_room *= 2
        kept.offsets[kept.count] = kept.size
        kept.count += 1
        kept.size += (<EntryHeader*>(kept.data + kept.size)).size
    return True


cdef void write_digits(uint8_t* text, uint32_t value) noexcept nogil:
    cdef uint32_t i
    for i in range(DIGITS):
        text[DIGITS - 1 - i] = <uint8_t>(48 + value % 10)
        value //= 10


@cython.final
cdef class LocalLedger:
    """The whole ledger in one object: the codec, the core, and every entry's bytes in memory.

    image, source: a compiled programme and its YAML; None: none yet, as a follower that will apply() the journal.
    ids: a directory for runs of dropped keys (one ledger at a time); None: dropped keys are forgotten.
    Units: times in us since 1970; they are given, never read from a clock.
    Errors: MemoryError; ValueError where the image does not load.
    """
    cdef Core* core
    cdef Kept kept
    cdef Caller caller
    cdef Answer answer
    cdef uint8_t* entry         # room for the largest entry of any kind
    cdef bint whole             # every entry was kept (run_earns keeps none)
    cdef Ids* ids               # NULL: none
    cdef readonly uint64_t lookups  # calls that had to ask the runs

    def __cinit__(self, image, source, int64_t now_us, uint32_t members_max=10_000, uint64_t ids_max=100_000,
                  uint32_t reservations_max=10_000, bytes identity_key not None=bytes(16), ids=None):
        cdef CoreSizes sizes
        cdef bytes path
        cdef int code
        sizes.members_max = members_max
        sizes.ids_max = ids_max
        sizes.reservations_max = reservations_max
        if len(identity_key) != 16:
            raise ValueError(f"identity_key must have 16 bytes, has {len(identity_key)}")
        self.whole = True
        self.entry = <uint8_t*>malloc(ENTRY_BYTES_MAX if ENTRY_BYTES_MAX > COMMAND_ENTRY_BYTES_MAX else COMMAND_ENTRY_BYTES_MAX)
        self.answer.data = <uint8_t*>malloc(ANSWER_BYTES_MAX)
        self.kept.data = <uint8_t*>malloc(JOURNAL_BYTES_FIRST)
        self.kept.room = JOURNAL_BYTES_FIRST
        self.kept.offsets = <uint64_t*>malloc(ENTRIES_FIRST * sizeof(uint64_t))
        self.kept.offsets_room = ENTRIES_FIRST
        if self.entry == NULL or self.answer.data == NULL or self.kept.data == NULL or self.kept.offsets == NULL:
            raise MemoryError
        self.core = core_open(&sizes, identity_key)
        core_set_find(self.core, find_kept, &self.kept)
        if ids is not None:
            path = str(ids).encode()
            self.ids = <Ids*>calloc(1, sizeof(Ids))
            if self.ids == NULL:
                raise MemoryError
            code = ids_open(self.ids, path, identity_key, False)
            if code != IDS_OK:
                raise ValueError(ids_text(self.ids, code))
            ids_begin(self.ids, self.core)
        if image is not None:
            self.publish(image, source, now_us)

    def __dealloc__(self):
        self.close()
        core_close(self.core)
        free(self.entry)
        free(self.answer.data)
        free(self.kept.data)
        free(self.kept.offsets)

    def close(self):
        """Give the runs back, so that another ledger may open them."""
        if self.ids != NULL:
            ids_close(self.ids)
            free(self.ids)
            self.ids = NULL

    def write_runs(self):
        """Write every full generation of keys as a run, as the ids thread does. Returns how many runs there are now."""
        cdef int code
        if self.ids == NULL:
            return 0
        code = ids_write_due(self.ids, self.core, NULL, core_stats(self.core).sequence, no_pause, NULL)
        if code != IDS_OK:
            raise ValueError(ids_text(self.ids, code))
        return self.ids.run_count

    cdef int keep_entries(self, uint64_t size) except -1:
        if not keep(&self.kept, self.entry, size):
            raise MemoryError("no memory for the kept entries")
        return 0

    cdef int check_whole(self) except -1:
        if not self.whole:
            raise ValueError("run_earns keeps no entries: this ledger can only be measured from now on")
        return 0

    @classmethod
    def replay(cls, entries, **sizes):
        """A new ledger from the entries of another, by applying alone. ValueError: one cannot be applied."""
        cdef LocalLedger ledger = cls(None, None, 0, **sizes)
        for index, entry in enumerate(entries):
            result = ledger.apply(entry)
            if result != APPLY_OK:
                raise ValueError(f"entry {index + 1} cannot be applied: ApplyResult {result}")
        return ledger

    def save(self, path, bytes directory not None=bytes(16), bytes head_hash not None=bytes(32)):
        """Write a snapshot file of the state, as the follower does. Errors: OSError."""
        cdef SnapshotWriter writer
        cdef int code = 0
        assert len(directory) == 16 and len(head_hash) == 32
        memset(&writer, 0, sizeof(SnapshotWriter))
        writer.core = self.core
        writer.buffer = <uint8_t*>malloc(SNAPSHOT_CHUNK_BYTES)
        if writer.buffer == NULL:
            raise MemoryError
        try:
            with open(path, "wb") as file:
                writer.fd = file.fileno()
                code = snapshot_write(&writer, directory, head_hash)
        finally:
            free(writer.buffer)
        if code != 0:
            raise OSError(code, os.strerror(code), str(path))
        return writer.bytes

    @classmethod
    def load(cls, path, entries, **sizes):
        """A new ledger from a snapshot file. entries: of the journal up to its end, for repeats; None: they cannot be answered.

        Errors: SnapshotUnusable, TablesTooSmall.
        """
        cdef LocalLedger ledger = cls(None, None, 0, **sizes)
        cdef Snapshot snapshot = Snapshot(path)
        cdef const uint8_t* data
        snapshot.load_into(ledger.core, None)
        ledger.whole = entries is not None
        for entry in entries or ():
            data = entry
            if not keep(&ledger.kept, data, len(entry)):
                raise MemoryError("no memory for the kept entries")
        return ledger

    def publish(self, bytes image not None, bytes source not None, int64_t now_us):
        """Bring a programme into force. ValueError: its image does not load (nothing written)."""
        cdef uint32_t size
        cdef Slice told
        self.check_whole()
        told.data = NULL
        told.size = 0
        size = core_write_program(self.core, now_us, image, <uint32_t>len(image), source, <uint32_t>len(source), &told,
                                  core_program(self.core) == NULL, self.entry)
        if size == 0:
            raise ValueError("the programme's image does not load")
        self.keep_entries(size)

    def call(self, uint8_t method, bytes request not None, int64_t now_us):
        """One call. Shape: (gRPC code, response message or google.rpc.Status, sequence of the entry that answers; 0: none)."""
        cdef const uint8_t* data
        self.check_whole()
        data = exact_copy(request)
        try:
            self.execute(method, data, <uint32_t>len(request), now_us)
        finally:
            # What the outcome says about the request was encoded; its texts must not be used any more.
            self.caller.outcomes[0].text.size = 0
            free(<void*>data)
        self.keep_entries(self.caller.outcomes[0].written_size)
        return self.answer.grpc_code, (<const char*>self.answer.data)[:self.answer.size], self.caller.outcomes[0].sequence

    def call_batch(self, uint8_t method, bytes request not None, int64_t now_us):
        """One BatchPost or BatchGetBalances, all at now_us. Shape: (gRPC code, response message or google.rpc.Status)."""
        cdef const uint8_t* data
        cdef uint8_t* out
        cdef uint32_t size = <uint32_t>len(request)
        cdef uint32_t used = 0
        cdef uint32_t offset = 0
        cdef uint32_t count
        cdef BalancesAsked asked
        cdef Slice part
        cdef Command* command = &self.caller.commands[0]
        cdef Outcome* outcome = &self.caller.outcomes[0]
        cdef const Program* program = core_program(self.core)
        self.check_whole()
        if program == NULL:
            raise ValueError("a batch needs a programme in force")
        data = exact_copy(request)
        out = <uint8_t*>malloc(BATCH_ANSWER_BYTES_MAX)
        try:
            if out == NULL:
                raise MemoryError("no memory for the answer of a batch")
            count = wire_batch(method, data, size, &asked, outcome)
            if count == 0:
                call_encode(program, method, outcome, &self.answer)
                return self.answer.grpc_code, (<const char*>self.answer.data)[:self.answer.size]
            for _ in range(count):
                part = wire_batch_next(data, size, &offset)
                if method == METHOD_BATCH_POST:
                    if wire_decode_post(part, command, outcome):
                        self.decide(now_us)
                        self.keep_entries(outcome.written_size)
                    used += wire_post_result(program, command.method, outcome, out + used)
                else:
                    if wire_decode_member(part, &asked, command, outcome):
                        self.decide(now_us)
                    used += wire_balance_result(program, outcome, out + used)
            if method != METHOD_BATCH_POST:
                used += wire_balances_end(core_stats(self.core).sequence, now_us, out + used)
            return 0, (<const char*>out)[:used]
        finally:
            outcome.text.size = 0
            free(<void*>data)
            free(out)

    cdef void decide(self, int64_t now_us) noexcept nogil:
        # Executes the first command; what must be looked up is looked up right here.
        cdef const Lookup* lookup
        cdef Facts* found
        if self.ids != NULL:
            ids_tell(self.ids, self.core)
        core_execute(self.core, &self.caller.commands[0], now_us, self.entry, &self.caller.outcomes[0])
        while self.caller.outcomes[0].parked:
            self.lookups += 1
            lookup = &self.caller.outcomes[0].lookup
            found = &self.caller.commands[0].found
            ids_ask(self.ids, &lookup, &found, 1)
            self.caller.commands[0].hashed |= LOOKED_UP
            core_execute(self.core, &self.caller.commands[0], now_us, self.entry, &self.caller.outcomes[0])

    cdef void execute(self, uint8_t method, const uint8_t* data, uint32_t size, int64_t now_us) noexcept nogil:
        # As call() in _call.pyx does with an engine.
        if wire_decode(method, data, size, &self.caller.commands[0], &self.caller.outcomes[0]):
            if core_program(self.core) == NULL:
                outcome_forget(&self.caller.outcomes[0])
                self.caller.outcomes[0].status = STATUS_NOT_READY
            else:
                self.decide(now_us)
        call_encode(core_program(self.core), method, &self.caller.outcomes[0], &self.answer)

    def outcome(self):
        """What the last call came to, in the words of ledger/_layout.pxd, and its message for people."""
        cdef Outcome* outcome = &self.caller.outcomes[0]
        return {
            "status": outcome.status, "field": outcome.field, "index": outcome.index, "a": outcome.a, "b": outcome.b,
            "replayed": outcome.replayed != 0, "written": outcome.written, "sequence": outcome.sequence,
            "wait_sequence": outcome.wait_sequence,
            "message": (<const char*>self.answer.message)[:self.answer.message_size].decode(),
        }

    def apply(self, bytes entry not None):
        """Apply an entry of a journal as the next sequence. Returns its ApplyResult; 0: applied. After another one the state is spoilt."""
        cdef const uint8_t* data
        cdef int result
        self.check_whole()
        while self.ids != NULL and not core_keys_room(self.core):
            self.write_runs()
            ids_tell(self.ids, self.core)
        data = exact_copy(entry)
        try:
            result = core_apply(self.core, data, <uint32_t>len(entry))
            if result == APPLY_OK and not keep(&self.kept, data, len(entry)):
                raise MemoryError("no memory for the kept entries")
            return result
        finally:
            free(<void*>data)

    def tick(self, int64_t now_us, uint64_t entries_max=1_000_000):
        """Post what is due, until the sweep has gone once around without finding anything. Returns the entries posted, at most entries_max."""
        cdef uint64_t posted = 0
        cdef uint64_t quiet = 0
        cdef uint32_t size
        self.check_whole()
        while posted < entries_max and quiet * TICK_ACCOUNTS_MAX <= core_stats(self.core).members:
            size = core_tick(self.core, now_us, self.entry)
            if size == 0:
                quiet += 1
                continue
            quiet = 0
            posted += 1
            self.keep_entries(size)
        return posted

    def write_digest(self, int64_t now_us):
        """Post a DIGEST entry."""
        self.check_whole()
        self.keep_entries(core_write_digest(self.core, now_us, self.entry))

    def digest(self):
        """The state digest: 16 bytes, low word first."""
        cdef Hash128 digest = core_digest(self.core)
        return (<const char*>&digest)[:sizeof(Hash128)]

    def facts_digest(self):
        """The state digest without the counters of limits, whose keys only the core can make."""
        cdef Hash128 digest = core_facts(self.core)
        return (<const char*>&digest)[:sizeof(Hash128)]

    def entries(self):
        """Every entry's bytes, in order."""
        cdef uint32_t size = 0
        cdef const uint8_t* entry
        cdef uint64_t i
        self.check_whole()
        found = []
        for i in range(self.kept.count):
            entry = find_kept(&self.kept, i + 1, &size)
            found.append((<const char*>entry)[:size])
        return found

    def stats(self):
        """CoreStats as a dict; the sums per wallet as lists, one number per wallet of the programme."""
        cdef const CoreStats* stats = core_stats(self.core)
        cdef const Program* program = core_program(self.core)
        cdef uint32_t w, wallets = program.wallet_count if program != NULL else 0
        return {
            "sequence": stats.sequence, "time_us": stats.time_us, "members": stats.members, "identifiers": stats.identifiers,
            "lots": stats.lots, "reservations_active": stats.reservations_active, "request_ids": stats.request_ids,
            "receipt_keys": stats.receipt_keys, "entries_expired_lots": stats.entries_expired_lots,
            "entries_expired_reservations": stats.entries_expired_reservations, "bytes_accounts": stats.bytes_accounts,
            "bytes_identifiers": stats.bytes_identifiers, "bytes_lots": stats.bytes_lots,
            "bytes_reservations": stats.bytes_reservations, "bytes_request_ids": stats.bytes_request_ids,
            "bytes_receipt_keys": stats.bytes_receipt_keys,
            "counters": stats.counters, "days": stats.days, "campaigns": stats.campaigns, "blocks": stats.blocks, "blocks_version": stats.blocks_version,
            "bytes_counters": stats.bytes_counters, "bytes_days": stats.bytes_days,
            "issued_points": [stats.issued_points[w] for w in range(wallets)],
            "redeemed_points": [stats.redeemed_points[w] for w in range(wallets)],
            "expired_points": [stats.expired_points[w] for w in range(wallets)],
            "adjusted_points": [stats.adjusted_points[w] for w in range(wallets)],
            "reserved_points": [stats.reserved_points[w] for w in range(wallets)],
            "reserved_total_points": [stats.reserved_total_points[w] for w in range(wallets)],
        }

    def fill(self, uint32_t members, uint32_t identifiers, uint32_t lots, int64_t now_us):
        """Open `members` members with `identifiers` each and give them `lots` lots, one to all, then the next to all: the way a programme
        grows, and the hardest for the memory. Applies entries; keeps none. Errors: ValueError (a table is full)."""
        cdef int32_t day = <int32_t>div_floor(now_us, 86_400_000_000)
        cdef uint32_t first = <uint32_t>core_stats(self.core).members, member, lot
        cdef int result = APPLY_OK
        self.whole = False
        with nogil:
            for member in range(first + 1, first + members + 1):
                result = fill_member(self, member, identifiers, now_us)
                if result != APPLY_OK:
                    break
            for lot in range(lots):
                for member in range(first + 1, first + members + 1):
                    if result == APPLY_OK:
                        result = fill_lot(self, member, day + <int32_t>lot, day + 365 + 30 * <int32_t>lot, 100 + member % 900, now_us)
        if result != APPLY_OK:
            raise ValueError(f"entry {core_stats(self.core).sequence + 1} cannot be applied: ApplyResult {result}")

    def run_earns(self, const uint32_t[::1] members not None, uint32_t line_count, uint32_t first, int64_t now_us, int64_t step_us,
                  str currency not None):
        """Decide and apply one earn per element of `members`, without the codec and without keeping the entries.

        members: indexes of members from 0; each is known by a card, and an unknown card opens an account.
        first: number of the first request; ids and receipts count on from it. step_us: server time between two earns.
        Shape: (earns that succeeded, bytes of entries). The caller holds the watch.
        """
        cdef Command* command = &self.caller.commands[0]
        cdef Command* window[CALLS_AHEAD]
        cdef uint8_t[CALLS_AHEAD][8 + DIGITS] request_ids, cards, numbers
        cdef uint8_t[LINES_MAX * 16] skus
        cdef int32_t year, month, day
        cdef bytes currency_bytes = currency.encode()
        cdef uint64_t done = 0, written = 0
        cdef Py_ssize_t i = 0, count = members.shape[0]
        cdef uint32_t j, wide
        if line_count > LINES_MAX:
            raise ValueError(f"line_count must be 0..{LINES_MAX}, was {line_count}")
        self.whole = False
        memset(command, 0, sizeof(Command))
        command.method = METHOD_EARN
        command.given = GIVEN_SENT_TIME | GIVEN_RECEIPT | GIVEN_RECEIPT_KEY
        command.member.kind = MEMBER_BY_CARD
        set_slice(&command.store, b"S042", 4)
        set_slice(&command.till, b"07", 2)
        set_slice(&command.currency, <const char*>currency_bytes, <uint32_t>len(currency_bytes))
        civil_from_day(<int32_t>div_floor(now_us, 86_400_000_000), &year, &month, &day)
        command.business_day = year * 10_000 + month * 100 + day
        command.line_count = line_count
        for j in range(line_count):
            memcpy(&skus[16 * j], b"40012345", 8)
            write_digits(&skus[16 * j + 8], j)
            set_slice(&command.lines[j].sku, &skus[16 * j], 16)
            set_slice(&command.lines[j].category, b"dairy", 5)
            command.lines[j].quantity_milli = 1000
            command.lines[j].amount_minor = 249 + j
            command.total_minor += 249 + j
        for j in range(CALLS_AHEAD):
            if j > 0:
                memcpy(&self.caller.commands[j], command, sizeof(Command))
            window[j] = &self.caller.commands[j]
            memcpy(request_ids[j], b"bench-id", 8)
            memcpy(cards[j], b"29000000", 8)
            memcpy(numbers[j], b"number--", 8)
            set_slice(&window[j].request_id, request_ids[j], 8 + DIGITS)
            set_slice(&window[j].member.text, cards[j], 8 + DIGITS)
            set_slice(&window[j].number, numbers[j], 8 + DIGITS)
        with nogil:
            while i < count:
                # As the transport does: the calls at hand are prepared together, then run one by one.
                wide = <uint32_t>(count - i) if count - i < CALLS_AHEAD else CALLS_AHEAD
                for j in range(wide):
                    write_digits(request_ids[j] + 8, first + <uint32_t>i + j)
                    write_digits(numbers[j] + 8, first + <uint32_t>i + j)
                    write_digits(cards[j] + 8, members[i + j])
                    window[j].sent_time_us = now_us
                    window[j].hashed = 0
                core_prepare(self.core, window, wide)
                for j in range(wide):
                    core_execute(self.core, window[j], now_us, self.entry, &self.caller.outcomes[0])
                    done += self.caller.outcomes[0].status == STATUS_OK
                    written += self.caller.outcomes[0].written_size
                    now_us += step_us
                i += wide
        return done, written


cdef uint32_t write_filler(LocalLedger ledger, uint8_t kind, uint32_t member, int64_t now_us, EntryWriter* writer) noexcept nogil:
    # The head of an entry that no request asked for.
    cdef EntryHeader* header = entry_begin(writer, ledger.entry)
    memset(header, 0, ENTRY_HEADER_BYTES)
    header.kind = kind
    header.time_us = now_us
    header.member = member
    header.program = core_program(ledger.core).version
    return 0


cdef int fill_member(LocalLedger ledger, uint32_t member, uint32_t identifiers, int64_t now_us) noexcept nogil:
    # Opens a member with so many identifiers. ApplyResult.
    cdef EntryWriter writer
    cdef Hash128 hashed
    cdef uint64_t number
    cdef uint32_t i
    write_filler(ledger, KIND_ENROLL, member, now_us, &writer)
    (<EntryHeader*>ledger.entry).flags = FLAG_OPENED
    section_begin(&writer, SECTION_IDENTIFIERS)
    for i in range(identifiers):
        number = <uint64_t>member << 8 | i
        hashed = siphash(b"identifiers-fill", <const uint8_t*>&number, sizeof(number))
        put_byte(&writer, <uint8_t>(MEMBER_BY_CARD + (i & 3)))
        put_bytes(&writer, <const uint8_t*>&hashed, 16)
    section_end(&writer)
    return core_apply(ledger.core, ledger.entry, entry_finish(&writer))


cdef int fill_lot(LocalLedger ledger, uint32_t member, int32_t available_day, int32_t expiry_day, int64_t points, int64_t now_us) noexcept nogil:
    # Gives a member one more lot. ApplyResult.
    cdef EntryWriter writer
    write_filler(ledger, KIND_EARN, member, now_us, &writer)
    section_begin(&writer, SECTION_POSTINGS)
    put_byte(&writer, ACCOUNT_MEMBER)
    put_varint(&writer, 0)
    put_signed(&writer, points)
    put_byte(&writer, ACCOUNT_ISSUED)
    put_varint(&writer, 0)
    put_signed(&writer, -points)
    section_end(&writer)
    section_begin(&writer, SECTION_LOTS)
    put_varint(&writer, 0)
    put_varint(&writer, <uint64_t>available_day)
    put_varint(&writer, <uint64_t>expiry_day)
    put_varint(&writer, 0)
    put_signed(&writer, points)
    put_signed(&writer, 0)
    section_end(&writer)
    return core_apply(ledger.core, ledger.entry, entry_finish(&writer))


cdef void set_slice(Slice* slice, const void* data, uint32_t size) noexcept nogil:
    slice.data = <const uint8_t*>data
    slice.size = size
