# The compiled leaves, exposed to tests and benches only. Not for the service: nothing in ledger/ or server/ imports this.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from ledger._arith cimport (
    add_overflow, civil_from_day, day_add_months, day_from_civil, day_from_yyyymmdd, div_floor, mul_div_floor, mul_div_rem, mul_overflow,
)
from ledger._entry cimport (
    Cursor, EntryView, EntryWriter, cursor_more, cursor_open, entry_begin, entry_finish, entry_view, get_byte, get_bytes, get_signed,
    get_text, get_varint, put_byte, put_bytes, put_signed, put_tag, put_tag_text, put_text, put_varint, section_begin, section_end,
)
from ledger._hash cimport Hash128, digest_add, digest_sub, fact_hash, siphash
from ledger._layout cimport Award, Command, EntryHeader, SECTION_COUNT, Slice
from ledger._limits cimport AWARDS_MAX, COMMAND_ENTRY_BYTES_MAX, LINES_MAX
from ledger._rules cimport (
    ImageHeader, ImageWallet, Program, RuleOp, ZoneSpan, program_day, program_day_start_us, program_evaluate, program_load, program_wallet,
)
from ledger._table cimport (
    IDENTIFIER_MEMBER_MASK, IdentifierTable, identifiers_add, identifiers_close, identifiers_find, identifiers_open, identifiers_remove, range_of,
)

if sizeof(ImageHeader) != 192 or sizeof(ImageWallet) != 40 or sizeof(RuleOp) != 48 or sizeof(ZoneSpan) != 16:
    raise ImportError("the image's records do not have the sizes that docs/journal-format.md gives")


def div_floor_(int64_t a, int64_t b):
    return div_floor(a, b)


def add_overflow_(int64_t a, int64_t b):
    """a + b, or None when it does not fit 64 bits."""
    cdef int64_t out
    return None if add_overflow(a, b, &out) else out


def mul_overflow_(int64_t a, int64_t b):
    cdef int64_t out
    return None if mul_overflow(a, b, &out) else out


def mul_div_floor_(int64_t a, int64_t b, int64_t c):
    cdef int64_t out
    return None if mul_div_floor(a, b, c, &out) else out


def mul_div_rem_(int64_t a, int64_t b, int64_t c):
    cdef int64_t quotient, remainder
    mul_div_rem(a, b, c, &quotient, &remainder)
    return quotient, remainder


def day_from_civil_(int32_t year, int32_t month, int32_t day):
    return day_from_civil(year, month, day)


def civil_from_day_(int32_t days):
    cdef int32_t year, month, day
    civil_from_day(days, &year, &month, &day)
    return year, month, day


def day_add_months_(int32_t days, int32_t months):
    return day_add_months(days, months)


def day_from_yyyymmdd_(int32_t value):
    return day_from_yyyymmdd(value)


def siphash_(bytes key not None, bytes data not None):
    """SipHash-2-4-128: 16 bytes, low word first."""
    if len(key) != 16:
        raise ValueError("the key must have 16 bytes")
    cdef Hash128 out = siphash(<const uint8_t*>key, <const uint8_t*>data, <uint32_t>len(data))
    return (out.lo | <object>out.hi << 64).to_bytes(16, "little")


def fact_hash_(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3, uint64_t w4, uint64_t w5):
    cdef Hash128 out = fact_hash(w0, w1, w2, w3, w4, w5)
    return out.lo | <object>out.hi << 64


def digest_sum(facts, gone):
    """The sum of `facts` minus the sum of `gone`, modulo 2^128."""
    cdef Hash128 out, fact
    out.lo = out.hi = 0
    for value in facts:
        fact.lo, fact.hi = value & 0xFFFFFFFFFFFFFFFF, value >> 64
        digest_add(&out, fact)
    for value in gone:
        fact.lo, fact.hi = value & 0xFFFFFFFFFFFFFFFF, value >> 64
        digest_sub(&out, fact)
    return out.lo | <object>out.hi << 64


def entry_write(tuple header not None, sections):
    """An entry through the compiled writer.

    header: kind, flags, status, time_us, member, program, request. sections: (type, fields) in rising order, a field being
    ("byte" | "varint" | "signed" | "bytes" | "text", value) or ("tag" | "tag_text", tag, value).
    """
    cdef uint8_t* buffer = <uint8_t*>calloc(COMMAND_ENTRY_BYTES_MAX, 1)
    cdef EntryWriter writer
    cdef EntryHeader* head
    cdef Slice text
    if buffer == NULL:
        raise MemoryError
    try:
        head = entry_begin(&writer, buffer)
        head.kind, head.flags, head.status, head.time_us, head.member, head.program, request = header
        memcpy(head.request, <const uint8_t*><bytes>request, 16)
        for section, fields in sections:
            section_begin(&writer, section)
            for field in fields:
                what, value = field[0], field[len(field) - 1]
                if what in ("bytes", "text", "tag_text"):
                    text.data, text.size = <const uint8_t*><bytes>value, <uint32_t>len(value)
                if what == "byte":
                    put_byte(&writer, value)
                elif what == "varint":
                    put_varint(&writer, value)
                elif what == "signed":
                    put_signed(&writer, value)
                elif what == "bytes":
                    put_bytes(&writer, text.data, text.size)
                elif what == "text":
                    put_text(&writer, text)
                elif what == "tag":
                    put_tag(&writer, field[1], value)
                else:
                    put_tag_text(&writer, field[1], text)
            section_end(&writer)
        return (<const char*>buffer)[:entry_finish(&writer)]
    finally:
        free(buffer)


def entry_sections(bytes entry not None):
    """The sections of an entry by the compiled reader: {type: bytes}; None when the framing is broken."""
    cdef EntryView view
    cdef int i
    if not entry_view(<const uint8_t*>entry, <uint32_t>len(entry), &view):
        return None
    return {i: (<const char*>view.sections[i].data)[:view.sections[i].size]
            for i in range(<int>SECTION_COUNT) if view.sections[i].data != NULL}


def section_read(bytes section not None, kinds):
    """Reads fields of a section by the compiled cursor: (values, whether a read broke, whether more is left)."""
    cdef Slice place
    cdef Cursor cursor
    cdef Slice text
    cdef const uint8_t* data
    place.data, place.size = <const uint8_t*>section, <uint32_t>len(section)
    cursor_open(&cursor, &place)
    values = []
    for kind in kinds:
        if kind == "byte":
            values.append(get_byte(&cursor))
        elif kind == "varint":
            values.append(get_varint(&cursor))
        elif kind == "signed":
            values.append(get_signed(&cursor))
        elif kind == "text":
            text = get_text(&cursor)
            values.append((<const char*>text.data)[:text.size] if text.size else b"")
        else:
            data = get_bytes(&cursor, kind)
            values.append(None if data == NULL else (<const char*>data)[:kind])
    return values, bool(cursor.broken), bool(cursor_more(&cursor))


cdef class LoadedProgram:
    """A compiled image, loaded in place. ValueError: program_load refuses it."""

    cdef Program program
    cdef uint8_t* copy
    cdef Command* command
    cdef Award* awards

    def __cinit__(self, bytes image not None):
        cdef const uint8_t* data = image
        self.copy = <uint8_t*>calloc(len(image) + 8, 1)
        self.command = <Command*>calloc(1, sizeof(Command))
        self.awards = <Award*>calloc(AWARDS_MAX, sizeof(Award))
        if self.copy == NULL or self.command == NULL or self.awards == NULL:
            raise MemoryError
        memcpy(self.copy, data, <size_t>len(image))
        if program_load(&self.program, self.copy, <uint32_t>len(image)) != 0:
            raise ValueError("the image is damaged")

    def __dealloc__(self):
        free(self.copy)
        free(self.command)
        free(self.awards)

    def wallet(self, bytes name not None):
        """The wallet's index, or -1."""
        cdef Slice place
        place.data, place.size = <const uint8_t*>name, <uint32_t>len(name)
        return program_wallet(&self.program, place)

    @property
    def wallets(self):
        return [(self.program.wallets[i].name[:self.program.wallets[i].name_size].decode(), self.program.wallets[i].scale)
                for i in range(self.program.wallet_count)]

    def day(self, int64_t time_us):
        return program_day(&self.program, time_us)

    def day_start_us(self, int32_t day):
        return program_day_start_us(&self.program, day)

    def evaluate(self, int64_t total_minor, amounts, int64_t business_time_us):
        """The awards as tuples (line, rule, wallet, funder, points, available day, expiry day); None: overflow."""
        cdef uint32_t i = 0
        if len(amounts) > LINES_MAX:
            raise ValueError("too many lines")
        self.command.total_minor = total_minor
        self.command.line_count = <uint32_t>len(amounts)
        for amount in amounts:
            self.command.lines[i].amount_minor = amount
            i += 1
        cdef int32_t count = program_evaluate(&self.program, self.command, business_time_us, self.awards)
        if count < 0:
            return None
        return [(self.awards[j].line, self.awards[j].rule, self.awards[j].wallet, self.awards[j].funder, self.awards[j].points,
                 self.awards[j].available_day, self.awards[j].expiry_day) for j in range(count)]


cdef class Identifiers:
    """The table of identifiers: 128-bit keys (low word, high word) -> member. MemoryError."""

    cdef IdentifierTable table

    def __cinit__(self, uint64_t count_max):
        if not identifiers_open(&self.table, count_max):
            raise MemoryError

    def __dealloc__(self):
        identifiers_close(&self.table)

    def add(self, tuple key not None, uint32_t member):
        """The key must not be there."""
        cdef Hash128 hashed
        hashed.lo, hashed.hi = key
        identifiers_add(&self.table, hashed, member, 2)

    def remove(self, tuple key not None):
        """The key must be there."""
        cdef Hash128 hashed
        hashed.lo, hashed.hi = key
        identifiers_remove(&self.table, hashed)

    def find(self, tuple key not None):
        cdef Hash128 hashed
        hashed.lo, hashed.hi = key
        return identifiers_find(&self.table, hashed)

    def place(self, uint64_t low):
        """Where the search for a key with this low word begins."""
        return range_of(low, self.table.capacity)

    @property
    def count(self):
        return self.table.count

    @property
    def slots(self):
        """(low word, high word, member) of every slot; member 0: empty."""
        cdef uint64_t i
        return [(self.table.slots[i].lo, self.table.slots[i].hi, self.table.slots[i].member & IDENTIFIER_MEMBER_MASK)
                for i in range(self.table.capacity)]
