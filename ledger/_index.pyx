"""Index rows from group records, and their merging: the compiled half of ledger/index.py.

A row is one 64-bit word: 32 bits of key above the sequence less the segment's first. Promises: no GIL while it reads or merges, trusts
no byte of a record before it has looked whether it is there. Not for files and not for queries. Called by ledger/index.py alone.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from ledger._entry cimport Cursor, EntryView, cursor_more, cursor_open, entry_view, get_byte, get_signed, get_text
from ledger._hash cimport Hash128, fact_hash, siphash
from ledger._layout cimport (
    CONTEXT_BUSINESS_DAY, CONTEXT_NUMBER, CONTEXT_STORE, CONTEXT_TILL, ENTRY_HEADER_BYTES, EntryHeader, GROUP_HEADER_BYTES, GROUP_MAGIC,
    GroupHeader, KIND_PROGRAM, SECTION_CONTEXT, Slice,
)
from ledger._limits cimport INDEX_OFFSET_STEP, RECEIPT_NUMBER_BYTES_MAX, STORE_BYTES_MAX, TILL_BYTES_MAX

cdef enum:
    INDEX_MEMBER = 0            # key: the account number itself
    INDEX_RECEIPT = 1           # the other keys are the low 32 bits of a hash
    INDEX_REQUEST = 2
    INDEX_STORE_DAY = 3
    INDEX_COUNT = 4
    MERGE_MAX = 64              # segments merged at once

cdef uint8_t[16] PUBLIC_KEY     # SipHash key: zeros, so that keys are the same everywhere
memset(PUBLIC_KEY, 0, 16)

cdef struct Column:             # words that grow
    uint64_t* rows
    uint64_t count
    uint64_t capacity

cdef struct Names:              # what an entry can be found by
    Slice store
    Slice till
    Slice number
    int64_t business_day


cdef bint column_reserve(Column* column, uint64_t more) noexcept nogil:
    cdef uint64_t capacity = column.capacity
    cdef void* rows
    if column.count + more <= capacity:
        return True
    while capacity < column.count + more:
        capacity = 4096 if capacity == 0 else capacity * 2
    rows = realloc(column.rows, capacity * sizeof(uint64_t))
    if rows == NULL:
        return False
    column.rows = <uint64_t*>rows
    column.capacity = capacity
    return True


cdef inline void column_add(Column* column, uint64_t key, uint32_t place) noexcept nogil:
    column.rows[column.count] = <uint64_t><uint32_t>key << 32 | place
    column.count += 1


cdef bint read_names(const EntryView* view, Names* names) noexcept nogil:
    # Whether the entry names a receipt.
    cdef Cursor cursor
    cdef uint8_t tag
    cdef Slice text
    cdef int64_t value
    memset(names, 0, sizeof(Names))
    if view.sections[SECTION_CONTEXT].data == NULL:
        return False
    cursor_open(&cursor, &view.sections[SECTION_CONTEXT])
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        if tag < 128:
            value = get_signed(&cursor)
            if tag == CONTEXT_BUSINESS_DAY:
                names.business_day = value
        else:
            text = get_text(&cursor)
            if tag == CONTEXT_STORE:
                names.store = text
            elif tag == CONTEXT_TILL:
                names.till = text
            elif tag == CONTEXT_NUMBER:
                names.number = text
    return (not cursor.broken and names.store.data != NULL and names.till.data != NULL and names.number.data != NULL
            and names.store.size <= <uint32_t>STORE_BYTES_MAX and names.till.size <= <uint32_t>TILL_BYTES_MAX
            and names.number.size <= <uint32_t>RECEIPT_NUMBER_BYTES_MAX)


cdef uint64_t hash_names(const Names* names, bint whole) noexcept nogil:
    # Day and store, and with `whole` till and number. Lengths before the texts, so that no two keys share bytes.
    cdef uint8_t buffer[STORE_BYTES_MAX + TILL_BYTES_MAX + RECEIPT_NUMBER_BYTES_MAX + 8]
    cdef int32_t business_day = <int32_t>names.business_day
    cdef uint32_t at = 4
    memcpy(buffer, &business_day, 4)
    buffer[at] = <uint8_t>names.store.size
    memcpy(buffer + at + 1, names.store.data, names.store.size)
    at += 1 + names.store.size
    if whole:
        buffer[at] = <uint8_t>names.till.size
        memcpy(buffer + at + 1, names.till.data, names.till.size)
        at += 1 + names.till.size
        buffer[at] = <uint8_t>names.number.size
        memcpy(buffer + at + 1, names.number.data, names.number.size)
        at += 1 + names.number.size
    return siphash(PUBLIC_KEY, buffer, at).lo


def request_hash(bytes request_id) -> bytes:
    """The 16 bytes under which the journal knows a request id."""
    cdef Hash128 hashed = siphash(PUBLIC_KEY, <const uint8_t*>request_id, <uint32_t>len(request_id))
    return (<const char*>&hashed)[:16]


def receipt_key(int32_t business_day, bytes store, bytes till=None, bytes number=None) -> int:
    """The 32-bit key of a receipt, or without till and number of a store's day. Texts within the ledger's limits."""
    cdef Names names
    memset(&names, 0, sizeof(Names))
    if len(store) > STORE_BYTES_MAX or (till is not None and (len(till) > TILL_BYTES_MAX or len(number) > RECEIPT_NUMBER_BYTES_MAX)):
        raise ValueError("a text of the receipt key is too long")
    names.business_day = business_day
    names.store.data = <const uint8_t*>store
    names.store.size = <uint32_t>len(store)
    if till is not None:
        names.till.data = <const uint8_t*>till
        names.till.size = <uint32_t>len(till)
        names.number.data = <const uint8_t*>number
        names.number.size = <uint32_t>len(number)
    return <uint32_t>hash_names(&names, till is not None)


def names_of(bytes entry):
    """What an entry can be found by: (member, request hash, (store, till, business day, number) or None)."""
    cdef EntryView view
    cdef Names names
    if len(entry) < ENTRY_HEADER_BYTES or not entry_view(<const uint8_t*>entry, <uint32_t>len(entry), &view):
        raise ValueError("the entry's framing is broken")
    receipt = None
    if read_names(&view, &names):
        receipt = (to_bytes(names.store), to_bytes(names.till), names.business_day, to_bytes(names.number))
    return view.header.member, (<const char*>view.header.request)[:16], receipt


cdef bytes to_bytes(Slice text):
    return (<const char*>text.data)[:text.size] if text.size else b""


cdef uint32_t sum_of(const uint8_t* data, uint64_t size) noexcept nogil:
    # A checksum against rot and cuts, not against people. Source: the state digest's hash, over 48 bytes at a time.
    cdef uint64_t words[6]
    cdef Hash128 state
    cdef uint64_t at = 0, left
    state.lo = size
    state.hi = 0
    while at < size:
        left = size - at
        if left >= 32:
            memcpy(words, data + at, 32)
        else:
            memset(words, 0, 32)
            memcpy(words, data + at, left)
        state = fact_hash(words[0], words[1], words[2], words[3], state.lo, state.hi)
        at += 32
    return <uint32_t>(state.lo ^ state.hi >> 32)


def page_sums(data, uint32_t page_bytes, uint32_t[::1] out) -> None:
    """The checksum of each page of a buffer; the last page may be shorter."""
    cdef Py_buffer buffer
    cdef uint64_t at = 0, size
    cdef Py_ssize_t i
    PyObject_GetBuffer(data, &buffer, PyBUF_SIMPLE)
    try:
        size = <uint64_t>buffer.len
        if page_bytes == 0 or <uint64_t>out.shape[0] * page_bytes < size:
            raise ValueError("there are more pages than places for their checksums")
        with nogil:
            for i in range(out.shape[0]):
                out[i] = sum_of(<const uint8_t*>buffer.buf + at, page_bytes if size - at > page_bytes else size - at)
                at = at + page_bytes if size - at > page_bytes else size
    finally:
        PyBuffer_Release(&buffer)


def page_sum(bytes page) -> int:
    """The checksum of one page."""
    return sum_of(<const uint8_t*>page, <uint64_t>len(page))


cdef class Collector:
    """Rows of groups that follow one another. Errors: MemoryError; ValueError for bytes that are no group or not the next one."""

    cdef Column columns[INDEX_COUNT]
    cdef Column offsets         # of entries whose sequence is a multiple of INDEX_OFFSET_STEP, in their group's record
    cdef Column programs        # sequences of PROGRAM entries
    cdef uint8_t directory[16]
    cdef uint8_t hash[32]
    cdef readonly uint64_t first_sequence
    cdef readonly uint64_t last_sequence
    cdef readonly int64_t time_us   # of the last group

    def __cinit__(self, bytes directory, uint64_t after):
        memset(self.columns, 0, sizeof(self.columns))
        memset(&self.offsets, 0, sizeof(Column))
        memset(&self.programs, 0, sizeof(Column))
        memset(self.hash, 0, 32)
        if len(directory) != 16:
            raise ValueError(f"a directory id has 16 bytes, not {len(directory)}")
        memcpy(self.directory, <const uint8_t*>directory, 16)
        self.first_sequence = after + 1
        self.last_sequence = after
        self.time_us = 0

    def __dealloc__(self):
        cdef int i
        for i in range(INDEX_COUNT):
            free(self.columns[i].rows)
        free(self.offsets.rows)
        free(self.programs.rows)

    @property
    def head_hash(self) -> bytes:
        """Hash of the last group."""
        return self.hash[:32]

    def add(self, record) -> None:
        """One group record: the next one. What it holds is visible in `take` afterwards, or nothing of it where this raises."""
        cdef Py_buffer buffer
        cdef int result
        PyObject_GetBuffer(record, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                result = collect(self, <const uint8_t*>buffer.buf, <uint64_t>buffer.len)
        finally:
            PyBuffer_Release(&buffer)
        if result == 1:
            raise MemoryError("the index rows of a group do not fit into memory")
        if result == 2:
            raise ValueError(f"the record behind sequence {self.last_sequence} is no group of this journal")
        if result == 3:
            raise ValueError(f"the group behind sequence {self.last_sequence} does not begin with the next sequence")
        if result == 4:
            raise ValueError(f"the entries of the group behind sequence {self.last_sequence} are broken")

    def counts(self):
        """Rows per index, then of the offsets and the programmes."""
        return [self.columns[i].count for i in range(INDEX_COUNT)] + [self.offsets.count, self.programs.count]

    def take(self, list rows, uint32_t[::1] offsets, uint64_t[::1] programs) -> None:
        """Copy what was collected into arrays of `counts()`, and begin anew behind it."""
        cdef uint64_t[::1] target
        cdef uint64_t i
        cdef int index
        for index in range(INDEX_COUNT):
            target = rows[index]
            if <uint64_t>target.shape[0] != self.columns[index].count:
                raise ValueError("an array has not as many elements as counts() says")
            if self.columns[index].count:
                memcpy(&target[0], self.columns[index].rows, self.columns[index].count * sizeof(uint64_t))
        if <uint64_t>offsets.shape[0] != self.offsets.count or <uint64_t>programs.shape[0] != self.programs.count:
            raise ValueError("an array has not as many elements as counts() says")
        for i in range(self.offsets.count):
            offsets[i] = <uint32_t>self.offsets.rows[i]
        for i in range(self.programs.count):
            programs[i] = self.programs.rows[i]
        for index in range(INDEX_COUNT):
            self.columns[index].count = 0
        self.offsets.count = 0
        self.programs.count = 0
        self.first_sequence = self.last_sequence + 1


cdef int collect(Collector self, const uint8_t* record, uint64_t size) noexcept nogil:
    # 0, or why not: 1 memory, 2 not a group of this directory, 3 not the next one, 4 broken entries.
    cdef const GroupHeader* header = <const GroupHeader*>record
    cdef const EntryHeader* entry
    cdef const uint8_t* at = record + GROUP_HEADER_BYTES
    cdef const uint8_t* end = record + size
    cdef uint64_t before[INDEX_COUNT + 2]
    cdef EntryView view
    cdef Names names
    cdef uint64_t low, sequence, other
    cdef uint32_t i, entry_size, place
    cdef int index
    if size < GROUP_HEADER_BYTES or header.magic != GROUP_MAGIC or size != <uint64_t>GROUP_HEADER_BYTES + header.size:
        return 2
    for i in range(16):
        if header.directory[i] != self.directory[i]:
            return 2
    if header.first_sequence != self.last_sequence + 1:
        return 3
    if not column_reserve(&self.offsets, header.count) or not column_reserve(&self.programs, header.count):
        return 1
    for index in range(INDEX_COUNT):
        if not column_reserve(&self.columns[index], header.count):
            return 1
        before[index] = self.columns[index].count
    before[INDEX_COUNT] = self.offsets.count
    before[INDEX_COUNT + 1] = self.programs.count
    for i in range(header.count):
        sequence = header.first_sequence + i
        place = <uint32_t>(sequence - self.first_sequence)
        entry_size = 0
        if end - at >= ENTRY_HEADER_BYTES:
            memcpy(&entry_size, at, 4)
        if entry_size < ENTRY_HEADER_BYTES or <uint64_t>(end - at) < entry_size or not entry_view(at, entry_size, &view):
            for index in range(INDEX_COUNT):
                self.columns[index].count = before[index]
            self.offsets.count = before[INDEX_COUNT]
            self.programs.count = before[INDEX_COUNT + 1]
            return 4
        entry = view.header
        if sequence & (INDEX_OFFSET_STEP - 1) == 0:
            self.offsets.rows[self.offsets.count] = <uint64_t>(at - record)
            self.offsets.count += 1
        if entry.member != 0:
            column_add(&self.columns[INDEX_MEMBER], entry.member, place)
        memcpy(&low, entry.request, 8)
        memcpy(&other, &entry.request[8], 8)
        if low != 0 or other != 0:
            column_add(&self.columns[INDEX_REQUEST], low, place)
        if read_names(&view, &names):
            column_add(&self.columns[INDEX_RECEIPT], hash_names(&names, True), place)
            column_add(&self.columns[INDEX_STORE_DAY], hash_names(&names, False), place)
        if entry.kind == KIND_PROGRAM:
            self.programs.rows[self.programs.count] = sequence
            self.programs.count += 1
        at += entry_size
    self.last_sequence = header.first_sequence + header.count - 1
    self.time_us = header.time_us
    memcpy(self.hash, header.hash, 32)
    return 0


cdef class Merge:
    """Sorted rows of several segments as one sorted sequence, piece by piece.

    sources: arrays of rows, each sorted; shifts: how far each segment's first sequence lies behind the first one's.
    The arrays must stay unchanged. Errors: ValueError.
    """

    cdef list kept              # holds the buffers
    cdef const uint64_t* at[MERGE_MAX]
    cdef const uint64_t* end[MERGE_MAX]
    cdef uint64_t shift[MERGE_MAX]
    cdef int count

    def __cinit__(self, list sources, list shifts):
        cdef const uint64_t[::1] rows
        if len(sources) > MERGE_MAX or len(sources) != len(shifts):
            raise ValueError(f"at most {MERGE_MAX} sources with a shift each can be merged")
        self.kept = []
        self.count = 0
        for source, shift in zip(sources, shifts):
            rows = source
            if rows.shape[0] == 0:
                continue
            self.kept.append(rows)
            self.at[self.count] = &rows[0]
            self.end[self.count] = &rows[0] + rows.shape[0]
            self.shift[self.count] = shift
            self.count += 1

    def read(self, uint64_t[::1] out) -> int:
        """Fill `out` with the next rows; returns how many there were."""
        cdef uint64_t done
        if out.shape[0] == 0:
            return 0
        with nogil:
            done = merge_some(self, &out[0], <uint64_t>out.shape[0])
        return done


cdef uint64_t merge_some(Merge self, uint64_t* out, uint64_t room) noexcept nogil:
    cdef uint64_t done = 0, best, value
    cdef int i, chosen
    while done < room and self.count > 0:
        chosen = 0
        best = self.at[0][0] + self.shift[0]
        for i in range(1, self.count):
            value = self.at[i][0] + self.shift[i]
            if value < best:
                best = value
                chosen = i
        out[done] = best
        done += 1
        self.at[chosen] += 1
        if self.at[chosen] == self.end[chosen]:
            self.count -= 1
            for i in range(chosen, self.count):
                self.at[i] = self.at[i + 1]
                self.end[i] = self.end[i + 1]
                self.shift[i] = self.shift[i + 1]
    return done
