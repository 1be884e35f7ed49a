# Entries of the journal as protobuf: JournalEntry messages, for ListEntries and the feed. Entries come from disk: nothing in them is believed.
# Not for finding them (ledger/index.py, ledger/journal.py) and not for ports. Called by server/reading.py; messages in
# proto/loyalty/ledger/v1/journal.proto, bytes of an entry in docs/journal-format.md.

from ledger import published

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strlen
from ledger._entry cimport (
    Context, Cursor, EntryView, LineDetails, context_read, cursor_more, cursor_open, details_next, details_open, entry_view, get_byte, get_bytes, get_signed, get_text, get_varint,
)
from ledger._layout cimport (
    CONTEXT_BUSINESS_DAY, CONTEXT_BUSINESS_TIME, CONTEXT_EXPIRY_DAY, CONTEXT_POINTS, CONTEXT_RESERVATION, CONTEXT_SENT_TIME,
    CONTEXT_TOTAL, CONTEXT_TTL, CONTEXT_WALLET, ENTRY_HEADER_BYTES, FLAG_OPENED, GROUP_HEADER_BYTES, GroupHeader, KIND_PROGRAM, KIND_PROGRAM_PART,
    LINE_WEIGHED, LOT_SLIDES, ORIGIN_COUNT, ORIGIN_DEVICE, ORIGIN_REGION, RECEIPT_CHANNEL, REVIEW_DAYS, RECEIPT_PROMO_CODE, RECEIPT_TENDER, SECTION_BLOCKS, SECTION_DIGEST,
    SECTION_IDENTIFIERS, SECTION_IMAGE, SECTION_LIMITS, SECTION_LINES, SECTION_LINE_DETAILS, SECTION_LOTS, SECTION_ORIGIN, SECTION_POSTINGS, SECTION_PUBLISHED,
    SECTION_RECEIPT, SECTION_REFUSAL, SECTION_RUNG, Slice,
)
from ledger._limits cimport WALLETS_MAX, WALLET_NAME_BYTES_MAX
from ledger._rules cimport Program
from ledger._status cimport STATUS_COUNT, STATUS_ROWS
from server._encode cimport Out, out_bytes, out_close, out_int, out_open, out_time, out_varint
from server._wire cimport out_after, out_entry, out_reservation, out_result, out_wallet_name

cdef extern from "<string.h>" nogil:
    size_t strnlen(const char* text, size_t size_max)

cdef enum:
    VERSIONS_MAX = 65536
    # Room that an entry's message may need: the shortest posting has 3 bytes and becomes 49, the shortest lot change 6 and 64.
    GROWTH = 17
    ROOM = 8192                 # for the head, the context and the frames
    GROWTH_OF_LIMITS = 40       # beside that: a row of LIMITS has 2 bytes and becomes a name of 64 and 12
    LIMIT_NAME_BYTES = 64
    BLOCK_LISTS = 8             # 2..7 are lists
    SECOND_US = 1000000

cdef struct LimitNames:         # of one version of the programme
    bint known                  # whether they were asked for; they may not have been there
    uint32_t count
    char* names                 # LIMIT_NAME_BYTES each


cdef void out_hex(Out* out, uint32_t tag, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef const char* digits = b"0123456789abcdef"
    cdef uint32_t i
    out_varint(out, tag)
    out_varint(out, 2 * size)
    for i in range(size):
        out.at[2 * i] = <uint8_t>digits[data[i] >> 4]
        out.at[2 * i + 1] = <uint8_t>digits[data[i] & 15]
    out.at += 2 * size


cdef void out_origin(Out* out, uint32_t tag, const EntryView* view) noexcept nogil:
    cdef const uint8_t* hashes[ORIGIN_COUNT]
    cdef const uint8_t* hash
    cdef const uint8_t* region = NULL
    cdef uint8_t* body
    cdef uint8_t part
    cdef uint32_t i
    cdef Cursor cursor
    if view.sections[SECTION_ORIGIN].data == NULL:
        return
    memset(hashes, 0, sizeof(hashes))
    body = out_open(out, tag)
    cursor_open(&cursor, &view.sections[SECTION_ORIGIN])
    out_int(out, 8, get_signed(&cursor))
    while cursor_more(&cursor):
        part = get_byte(&cursor)
        if part == ORIGIN_REGION:
            region = get_bytes(&cursor, 4)
            continue
        hash = get_bytes(&cursor, 8)
        if part >= ORIGIN_DEVICE and part < ORIGIN_COUNT:
            hashes[part] = hash
    for i in range(ORIGIN_DEVICE, ORIGIN_COUNT):
        if hashes[i] != NULL:
            out_hex(out, 10 + 8 * i, hashes[i], 8)
    if region != NULL:
        out_hex(out, 66, region, 4)
    out_close(out, body)


cdef void out_limit_name(Out* out, uint32_t tag, const LimitNames* names, uint64_t number) noexcept nogil:
    cdef const char* name
    if number >= 1 and number <= names.count:
        name = names.names + (number - 1) * LIMIT_NAME_BYTES
        out_bytes(out, tag, name, <uint32_t>strnlen(name, LIMIT_NAME_BYTES))


cdef void out_limits(Out* out, const EntryView* view, const LimitNames* names) noexcept nogil:
    # Limits that were passed, and what they cut.
    cdef uint8_t* body
    cdef uint64_t number
    cdef int64_t cut
    cdef Cursor cursor
    if view.sections[SECTION_LIMITS].data == NULL:
        return
    cursor_open(&cursor, &view.sections[SECTION_LIMITS])
    cut = <int64_t>get_varint(&cursor)
    while cursor_more(&cursor):
        number = get_varint(&cursor)
        body = out_open(out, 234)
        out_limit_name(out, 10, names, number)
        out_int(out, 16, <int64_t>(number & 0xFFFF))
        out_int(out, 24, get_byte(&cursor))
        out_close(out, body)
    out_int(out, 240, cut)


cdef void out_rung(Out* out, uint32_t tag, const EntryView* view, const LimitNames* names) noexcept nogil:
    cdef uint8_t* body
    cdef uint64_t until_s, number
    cdef Cursor cursor
    if view.sections[SECTION_RUNG].data == NULL:
        return
    cursor_open(&cursor, &view.sections[SECTION_RUNG])
    body = out_open(out, tag)
    out_int(out, 8, get_byte(&cursor) + 1)      # as Rung has them
    out_int(out, 16, get_byte(&cursor) + 1)
    until_s = get_varint(&cursor)
    if until_s != 0:
        out_time(out, 26, <int64_t>(until_s & <uint64_t>0xFFFFFFFF) * SECOND_US)
    number = get_varint(&cursor)
    out_int(out, 32, <int64_t>(number & 0xFFFF))
    out_limit_name(out, 42, names, number)
    out_close(out, body)


cdef void out_blocks(Out* out, uint32_t tag, const EntryView* view) noexcept nogil:
    # How many rows of each list; the rows stay here.
    cdef uint32_t added[BLOCK_LISTS]
    cdef uint32_t removed[BLOCK_LISTS]
    cdef uint8_t* body
    cdef uint8_t* inner
    cdef uint8_t op, kind
    cdef uint32_t i
    cdef Cursor cursor
    if view.sections[SECTION_BLOCKS].data == NULL:
        return
    memset(added, 0, sizeof(added))
    memset(removed, 0, sizeof(removed))
    cursor_open(&cursor, &view.sections[SECTION_BLOCKS])
    body = out_open(out, tag)
    out_int(out, 8, <int64_t>get_varint(&cursor))
    while cursor_more(&cursor):
        op = get_byte(&cursor)
        kind = get_byte(&cursor) & (BLOCK_LISTS - 1)
        get_byte(&cursor)
        if get_bytes(&cursor, 8) == NULL:
            break
        if op == 1:
            added[kind] += 1
        else:
            removed[kind] += 1
    for i in range(BLOCK_LISTS):
        if added[i] + removed[i] != 0:
            inner = out_open(out, 18)
            out_int(out, 8, i)
            out_int(out, 16, added[i])
            out_int(out, 24, removed[i])
            out_close(out, inner)
    out_close(out, body)


cdef void out_refusal(Out* out, uint32_t tag, const EntryView* view) noexcept nogil:
    cdef uint8_t* body
    cdef uint8_t* inner
    cdef const char* name
    cdef int64_t value
    cdef Cursor cursor
    cdef int i
    if view.header.status == 0:
        return
    body = out_open(out, tag)
    if view.header.status < STATUS_COUNT and STATUS_ROWS[view.header.status].name != NULL:
        out_bytes(out, 10, STATUS_ROWS[view.header.status].name, <uint32_t>strlen(STATUS_ROWS[view.header.status].name))
        cursor_open(&cursor, &view.sections[SECTION_REFUSAL])
        for i in range(2):
            name = STATUS_ROWS[view.header.status].a if i == 0 else STATUS_ROWS[view.header.status].b
            value = get_signed(&cursor)
            if name[0] != 0:
                inner = out_open(out, 18)
                out_bytes(out, 10, name, <uint32_t>strlen(name))
                out_varint(out, 16)     # a map's value is written also when it is 0
                out_varint(out, <uint64_t>value)
                out_close(out, inner)
    out_close(out, body)


cdef void out_postings(Out* out, uint32_t tag, const Program* program, const EntryView* view) noexcept nogil:
    cdef uint8_t* body
    cdef uint8_t account
    cdef uint64_t wallet
    cdef int64_t points
    cdef Cursor cursor
    cursor_open(&cursor, &view.sections[SECTION_POSTINGS])
    while cursor_more(&cursor):
        account = get_byte(&cursor)
        wallet = get_varint(&cursor)
        points = get_signed(&cursor)
        body = out_open(out, tag)
        out_int(out, 8, account)
        out_wallet_name(out, 18, program, wallet)
        out_int(out, 24, points)
        out_close(out, body)


cdef void out_lot_changes(Out* out, uint32_t tag, const Program* program, const EntryView* view) noexcept nogil:
    cdef uint8_t* body
    cdef uint64_t wallet, available_day, expiry_day, funder
    cdef int64_t points, held
    cdef Cursor cursor
    cursor_open(&cursor, &view.sections[SECTION_LOTS])
    while cursor_more(&cursor):
        wallet = get_varint(&cursor)
        available_day = get_varint(&cursor)
        expiry_day = get_varint(&cursor)
        funder = get_varint(&cursor)
        points = get_signed(&cursor)
        held = get_signed(&cursor)
        body = out_open(out, tag)
        out_wallet_name(out, 10, program, wallet)
        out_int(out, 16, <int64_t>(available_day - REVIEW_DAYS if available_day >= REVIEW_DAYS else available_day))
        out_int(out, 24, <int64_t>expiry_day)
        out_int(out, 32, <int64_t>(funder & ~<uint64_t>LOT_SLIDES))
        out_int(out, 40, points)
        out_int(out, 48, held)
        out_int(out, 56, (funder & LOT_SLIDES) != 0)
        out_int(out, 64, available_day >= REVIEW_DAYS)
        out_close(out, body)


cdef void out_lines(Out* out, uint32_t tag, const EntryView* view) noexcept nogil:
    cdef uint8_t* body
    cdef Slice sku, category
    cdef uint64_t quantity
    cdef int64_t amount
    cdef uint64_t line = 0
    cdef LineDetails details
    cdef Cursor cursor
    cursor_open(&cursor, &view.sections[SECTION_LINES])
    details_open(&details, &view.sections[SECTION_LINE_DETAILS])
    while cursor_more(&cursor):
        line += 1
        details_next(&details, line)
        sku = get_text(&cursor)
        category = get_text(&cursor)
        quantity = get_varint(&cursor)
        amount = get_signed(&cursor)
        body = out_open(out, tag)
        out_bytes(out, 10, sku.data, sku.size)
        out_bytes(out, 18, category.data, category.size)
        out_int(out, 24, <int64_t>quantity)
        out_int(out, 32, amount)
        out_int(out, 40, details.regular_minor)
        out_int(out, 48, details.flags & LINE_WEIGHED)
        out_close(out, body)


cdef void out_receipt_end(Out* out, const EntryView* view) noexcept nogil:
    # Tenders, channel and promo codes, by field number, which is not the order of the tags.
    cdef uint8_t wanted[3]
    cdef uint8_t tag
    cdef uint8_t* body
    cdef Slice text
    cdef uint64_t amount
    cdef uint32_t i
    cdef Cursor cursor
    wanted[0] = RECEIPT_TENDER
    wanted[1] = RECEIPT_CHANNEL
    wanted[2] = RECEIPT_PROMO_CODE
    for i in range(3u):
        cursor_open(&cursor, &view.sections[SECTION_RECEIPT])
        while cursor_more(&cursor):
            tag = get_byte(&cursor)
            text = get_text(&cursor)
            amount = get_varint(&cursor) if tag == RECEIPT_TENDER else 0
            if tag != wanted[i]:
                continue
            if tag == RECEIPT_TENDER:
                body = out_open(out, 194)
                out_bytes(out, 10, text.data, text.size)
                out_int(out, 16, <int64_t>amount)
                out_close(out, body)
            else:
                out_bytes(out, 202 if tag == RECEIPT_CHANNEL else 210, text.data, text.size)


cdef void out_asked(Out* out, const Program* program, const EntryView* view, const Context* asked) noexcept nogil:
    cdef uint8_t* body
    cdef int64_t time_us = view.header.time_us
    if asked.store.data != NULL:
        body = out_open(out, 66)
        out_bytes(out, 10, asked.store.data, asked.store.size)
        out_bytes(out, 18, asked.till.data, asked.till.size)
        out_int(out, 24, asked.values[CONTEXT_BUSINESS_DAY])
        out_bytes(out, 34, asked.number.data, asked.number.size)
        out_close(out, body)
    if asked.given >> CONTEXT_SENT_TIME & 1:
        out_time(out, 74, time_us + asked.values[CONTEXT_SENT_TIME])
    if asked.given >> CONTEXT_BUSINESS_TIME & 1:
        out_time(out, 82, time_us + asked.values[CONTEXT_BUSINESS_TIME])
    out_int(out, 88, asked.values[CONTEXT_TOTAL])
    if asked.given >> CONTEXT_WALLET & 1:
        out_wallet_name(out, 98, program, <uint64_t>asked.values[CONTEXT_WALLET])
    out_int(out, 104, asked.values[CONTEXT_POINTS])
    out_int(out, 112, asked.values[CONTEXT_RESERVATION])
    if asked.given >> CONTEXT_TTL & 1:
        out_time(out, 122, asked.values[CONTEXT_TTL])


cdef void out_identifier_types(Out* out, uint32_t tag, const EntryView* view) noexcept nogil:
    # Packed. The hashes stay here.
    cdef uint8_t* body
    cdef uint8_t kind
    cdef Cursor cursor
    if view.sections[SECTION_IDENTIFIERS].size == 0:
        return
    body = out_open(out, tag)
    cursor_open(&cursor, &view.sections[SECTION_IDENTIFIERS])
    while cursor_more(&cursor):
        kind = get_byte(&cursor)
        if get_bytes(&cursor, 16) != NULL:
            out_varint(out, kind)
    out_close(out, body)


cdef bint asks(const EntryView* view) noexcept nogil:
    cdef uint32_t i
    for i in range(16):
        if view.header.request[i] != 0:
            return True
    return False


cdef void out_journal_entry(Out* out, uint32_t tag, const Program* program, const LimitNames* names, const EntryView* view, uint64_t sequence,
                            const uint8_t* room_end) noexcept nogil:
    cdef Context asked
    cdef uint8_t* body = out_open(out, tag)
    cdef const Slice* image = &view.sections[SECTION_IMAGE]
    cdef const uint8_t* hash
    cdef Cursor cursor
    context_read(view, &asked)
    out_entry(out, 10, view, sequence, room_end)
    out_refusal(out, 18, view)
    out_postings(out, 26, program, view)
    out_lot_changes(out, 34, program, view)
    out_lines(out, 42, view)
    out_after(out, 50, program, view)
    out_reservation(out, 58, program, view)
    out_asked(out, program, view, &asked)
    if asks(view):
        out_bytes(out, 130, view.header.request, 16)
    out_int(out, 136, view.header.flags & FLAG_OPENED)
    out_identifier_types(out, 146, view)
    if view.sections[SECTION_DIGEST].size == 16:
        out_bytes(out, 154, view.sections[SECTION_DIGEST].data, 16)
    if image.size >= 40:
        out_bytes(out, 162, image.data + 8, 32)
    elif view.sections[SECTION_PUBLISHED].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_PUBLISHED])
        get_signed(&cursor)
        get_varint(&cursor)
        get_bytes(&cursor, 8)
        hash = get_bytes(&cursor, 32)
        if hash != NULL:
            out_bytes(out, 162, hash, 32)
    out_bytes(out, 170, asked.operator_name.data, asked.operator_name.size)
    out_bytes(out, 178, asked.reason.data, asked.reason.size)
    out_int(out, 184, asked.values[CONTEXT_EXPIRY_DAY])
    out_receipt_end(out, view)
    out_result(out, 218, view)
    out_origin(out, 226, view)
    out_limits(out, view, names)
    out_rung(out, 250, view, names)
    out_blocks(out, 258, view)
    out_close(out, body)


cdef class Encoder:
    """See _entries.pyi."""

    cdef Program** programs     # by version - 1
    cdef uint32_t program_count
    cdef Program none           # before the first programme: no wallets
    cdef LimitNames* limits     # by version - 1
    cdef LimitNames no_limits
    cdef object limit_names_of
    cdef uint8_t* buffer
    cdef size_t capacity

    def __cinit__(self, limit_names_of):
        memset(&self.none, 0, sizeof(Program))
        memset(&self.no_limits, 0, sizeof(LimitNames))
        self.limit_names_of = limit_names_of
        self.program_count = 0
        self.buffer = NULL
        self.capacity = 0
        self.programs = <Program**>calloc(VERSIONS_MAX, sizeof(Program*))
        self.limits = <LimitNames*>calloc(VERSIONS_MAX, sizeof(LimitNames))
        if self.programs == NULL or self.limits == NULL:
            raise MemoryError("no memory for programmes")

    def __dealloc__(self):
        cdef uint32_t i
        if self.programs != NULL and self.limits != NULL:
            for i in range(self.program_count):
                free(self.programs[i])
                free(self.limits[i].names)
        free(self.programs)
        free(self.limits)
        PyMem_Free(self.buffer)

    @property
    def versions(self):
        return self.program_count

    def add_program(self, bytes entry not None):
        cdef Program* program
        cdef uint32_t i
        if self.program_count == VERSIONS_MAX:
            raise ValueError(f"there are more than {VERSIONS_MAX} programmes")
        wallets = [(name.encode(), scale) for name, scale in published.read_version(self.program_count + 1, 0, entry).told.wallets]
        if not wallets or len(wallets) > WALLETS_MAX or max(len(name) for name, _ in wallets) > WALLET_NAME_BYTES_MAX:
            raise ValueError("a programme has no wallets, or too many, or names that are too long")
        program = <Program*>calloc(1, sizeof(Program))
        if program == NULL:
            raise MemoryError("no memory for a programme")
        for i, (name, scale) in enumerate(wallets):
            memcpy(program.wallets[i].name, <const char*>name, len(name))
            program.wallets[i].name_size = <uint32_t>len(name)
            program.wallets[i].scale = scale
        program.wallet_count = <uint32_t>len(wallets)
        self.programs[self.program_count] = program
        self.program_count += 1
        program.version = self.program_count

    def entry(self, uint64_t sequence, bytes entry not None):
        cdef EntryView view
        cdef Out out
        if len(entry) < ENTRY_HEADER_BYTES or not entry_view(entry, <uint32_t>len(entry), &view):
            raise ValueError(f"the framing of entry {sequence} is broken")
        know_limits(self, &view)
        reserve(self, room_for(&view))
        out.at = self.buffer
        out_journal_entry(&out, 10, self.program_of(view.header.program), self.limits_of(view.header.program), &view, sequence,
                          self.buffer + self.capacity - ROOM // 2)
        return self.buffer[:out.at - self.buffer]

    def group(self, record, uint64_t from_sequence, size_t size_max, uint32_t entries_max):
        cdef Py_buffer buffer
        cdef const GroupHeader* header
        cdef const uint8_t* at
        cdef const uint8_t* end
        cdef EntryView view
        cdef Out out
        cdef uint32_t i, entry_size, count = 0
        cdef size_t used = 0
        cdef uint64_t next_sequence = from_sequence
        PyObject_GetBuffer(record, &buffer, PyBUF_SIMPLE)
        try:
            header = <const GroupHeader*>buffer.buf
            if buffer.len < GROUP_HEADER_BYTES or buffer.len != <Py_ssize_t>(<uint64_t>GROUP_HEADER_BYTES + header.size):
                raise ValueError("a group record is broken")
            at = <const uint8_t*>buffer.buf + GROUP_HEADER_BYTES
            end = <const uint8_t*>buffer.buf + buffer.len
            know_limits_of_group(self, at, end, header.count)
            for i in range(header.count):
                entry_size = 0
                if end - at >= ENTRY_HEADER_BYTES:
                    memcpy(&entry_size, at, 4)
                if entry_size < ENTRY_HEADER_BYTES or end - at < <Py_ssize_t>entry_size:
                    raise ValueError(f"the framing of entry {header.first_sequence + i} is broken")
                if header.first_sequence + i >= from_sequence:
                    if count != 0 and (used >= size_max or count >= entries_max):
                        break
                    if not entry_view(at, entry_size, &view):
                        raise ValueError(f"the framing of entry {header.first_sequence + i} is broken")
                    if view.header.program > self.program_count:
                        return None
                    reserve(self, used + room_for(&view))
                    out.at = self.buffer + used
                    out_journal_entry(&out, 10, self.program_of(view.header.program), self.limits_of(view.header.program), &view,
                                      header.first_sequence + i, self.buffer + self.capacity - ROOM // 2)
                    used = out.at - self.buffer
                    count += 1
                    next_sequence = header.first_sequence + i + 1
                at += entry_size
        finally:
            PyBuffer_Release(&buffer)
        return self.buffer[:used] if used else b"", count, next_sequence

    cdef const Program* program_of(self, uint32_t version):
        if version == 0 or version > self.program_count:
            return &self.none
        return self.programs[version - 1]

    cdef const LimitNames* limits_of(self, uint32_t version):
        if version == 0 or version > self.program_count:
            return &self.no_limits
        return &self.limits[version - 1]


cdef int know_limits(Encoder self, const EntryView* view) except -1:
    # Has the names of the limits that an entry tells of. Asking for them runs Python, so other threads may use the encoder meanwhile: not to be
    # called while its buffer holds anything.
    cdef uint32_t version = view.header.program
    cdef LimitNames* names
    cdef char* packed
    cdef uint32_t i
    if version == 0 or version > self.program_count or (view.sections[SECTION_LIMITS].data == NULL and view.sections[SECTION_RUNG].data == NULL):
        return 0
    names = &self.limits[version - 1]
    if names.known:
        return 0
    found = [name.encode()[:LIMIT_NAME_BYTES] for name in self.limit_names_of(version)]
    if names.known:
        return 0
    packed = <char*>calloc(len(found) + 1, LIMIT_NAME_BYTES)
    if packed == NULL:
        raise MemoryError("no memory for the names of limits")
    for i, name in enumerate(found):
        memcpy(packed + i * LIMIT_NAME_BYTES, <const char*>name, len(name))
    names.names = packed
    names.count = <uint32_t>len(found)
    names.known = True
    return 0


cdef int know_limits_of_group(Encoder self, const uint8_t* at, const uint8_t* end, uint32_t count) except -1:
    # Of all entries; the first that is broken is found again by whoever encodes them.
    cdef EntryView view
    cdef uint32_t entry_size
    while count != 0 and end - at >= ENTRY_HEADER_BYTES:
        memcpy(&entry_size, at, 4)
        if entry_size < ENTRY_HEADER_BYTES or end - at < <Py_ssize_t>entry_size or not entry_view(at, entry_size, &view):
            return 0
        know_limits(self, &view)
        at += entry_size
        count -= 1
    return 0


cdef size_t room_for(const EntryView* view) noexcept nogil:
    # Image and source stay out of the message.
    if view.header.kind == KIND_PROGRAM or view.header.kind == KIND_PROGRAM_PART:
        return ROOM
    return <size_t>view.header.size * GROWTH + <size_t>view.sections[SECTION_LIMITS].size * GROWTH_OF_LIMITS + ROOM


cdef int reserve(Encoder self, size_t size) except -1:
    cdef void* buffer
    if size <= self.capacity:
        return 0
    buffer = PyMem_Realloc(self.buffer, size + (size >> 1))
    if buffer == NULL:
        raise MemoryError("no memory for an entry's message")
    self.buffer = <uint8_t*>buffer
    self.capacity = size + (size >> 1)
    return 0
