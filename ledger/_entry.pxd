# Leaves: the byte form of an entry, written and read. The meaning of each byte: docs/journal-format.md.
# Not for groups (ledger/_engine.pyx) and not for deciding. cimported by _core, _wire, _engine, the compiled verifier.
# A writer checks room once (capacity >= COMMAND_ENTRY_BYTES_MAX before the first put), so the puts check nothing;
# a reader checks every step, because it also reads damaged bytes.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from ledger._layout cimport (
    CONTEXT_NAMED, CONTEXT_NUMBER, CONTEXT_OPERATOR, CONTEXT_REASON, CONTEXT_STORE, CONTEXT_TILL, ENTRY_HEADER_BYTES, EntryHeader,
    SECTION_CONTEXT, SECTION_COUNT, SECTION_QUOTE, Slice,
)
from ledger._limits cimport IDENTIFIERS_PER_REQUEST_MAX

cdef struct EntryWriter:
    uint8_t* start              # the entry's first byte
    uint8_t* at                 # where the next byte goes
    uint8_t* section            # head of the open section

cdef struct EntryView:          # an entry taken apart; pointers into it
    const EntryHeader* header
    Slice sections[SECTION_COUNT]   # by SectionType; data NULL where absent

cdef struct Cursor:             # reads a section
    const uint8_t* at
    const uint8_t* end
    bint broken                 # a read went past the end or a varint was too long; all later reads give 0


cdef struct Context:            # a CONTEXT section, read back
    uint32_t given              # bit per tag below 32; texts: by data != NULL
    int64_t values[24]
    uint32_t named[IDENTIFIERS_PER_REQUEST_MAX]     # every CONTEXT_NAMED
    uint32_t named_count
    Slice store
    Slice till
    Slice number
    Slice operator_name
    Slice reason


cdef struct LineDetails:        # walks LINE_DETAILS beside LINES
    Cursor cursor
    uint64_t coming             # line whose row was read ahead; 0: none
    int64_t coming_regular_minor
    uint8_t coming_flags
    int64_t regular_minor       # of the line at hand; 0: none stated
    uint8_t flags               # LineDetail


cdef inline uint64_t zigzag(int64_t value) noexcept nogil:
    return (<uint64_t>value << 1) ^ <uint64_t>(value >> 63)


cdef inline int64_t unzigzag(uint64_t value) noexcept nogil:
    return <int64_t>(value >> 1) ^ -<int64_t>(value & 1)


cdef inline EntryHeader* entry_begin(EntryWriter* writer, uint8_t* buffer) noexcept nogil:
    writer.start = buffer
    writer.at = buffer + ENTRY_HEADER_BYTES
    return <EntryHeader*>buffer


cdef inline uint32_t entry_finish(EntryWriter* writer) noexcept nogil:
    # Fills in the size; the caller has filled in the rest of the header.
    cdef uint32_t size = <uint32_t>(writer.at - writer.start)
    (<EntryHeader*>writer.start).size = size
    return size


cdef inline void section_begin(EntryWriter* writer, uint8_t section) noexcept nogil:
    writer.section = writer.at
    writer.at[0] = section
    writer.at += 4


cdef inline void section_end(EntryWriter* writer) noexcept nogil:
    cdef uint32_t size = <uint32_t>(writer.at - writer.section) - 4
    writer.section[1] = size & 0xFF
    writer.section[2] = (size >> 8) & 0xFF
    writer.section[3] = (size >> 16) & 0xFF


cdef inline void put_byte(EntryWriter* writer, uint8_t value) noexcept nogil:
    writer.at[0] = value
    writer.at += 1


cdef inline void put_varint(EntryWriter* writer, uint64_t value) noexcept nogil:
    while value >= 0x80:
        writer.at[0] = <uint8_t>(value & 0x7F) | 0x80
        writer.at += 1
        value >>= 7
    writer.at[0] = <uint8_t>value
    writer.at += 1


cdef inline void put_signed(EntryWriter* writer, int64_t value) noexcept nogil:
    put_varint(writer, zigzag(value))


cdef inline void put_bytes(EntryWriter* writer, const uint8_t* data, uint32_t size) noexcept nogil:
    # data: NULL with size 0, as of a text that was not given.
    if size != 0:
        memcpy(writer.at, data, size)
    writer.at += size


cdef inline void put_key(EntryWriter* writer, uint32_t key) noexcept nogil:
    # Four bytes that stand for a name, as docs/decisions/rule-image.md has it.
    put_bytes(writer, <const uint8_t*>&key, 4)


cdef inline void put_text(EntryWriter* writer, Slice text) noexcept nogil:
    # One length byte and the bytes; every text of a request is at most 128 bytes.
    put_byte(writer, <uint8_t>text.size)
    put_bytes(writer, text.data, text.size)


cdef inline void put_tag(EntryWriter* writer, uint8_t tag, int64_t value) noexcept nogil:
    put_byte(writer, tag)
    put_signed(writer, value)


cdef inline void put_tag_text(EntryWriter* writer, uint8_t tag, Slice text) noexcept nogil:
    put_byte(writer, tag)
    put_text(writer, text)


cdef inline bint entry_view(const uint8_t* entry, uint32_t size, EntryView* view) noexcept nogil:
    # Takes an entry apart. False when its framing is broken (size, sections past the end, a section twice).
    cdef const uint8_t* at = entry + ENTRY_HEADER_BYTES
    cdef const uint8_t* end = entry + size
    cdef uint32_t length
    if size < ENTRY_HEADER_BYTES or (<const EntryHeader*>entry).size != size:
        return False
    view.header = <const EntryHeader*>entry
    memset(view.sections, 0, sizeof(view.sections))
    while at < end:
        if end - at < 4:
            return False
        length = <uint32_t>at[1] | <uint32_t>at[2] << 8 | <uint32_t>at[3] << 16
        if <uint64_t>(end - at) - 4 < length:
            return False
        if at[0] < SECTION_COUNT:
            if view.sections[at[0]].data != NULL:
                return False
            view.sections[at[0]].data = at + 4
            view.sections[at[0]].size = length
        at += 4 + length
    return True


cdef inline void cursor_open(Cursor* cursor, const Slice* section) noexcept nogil:
    cursor.at = section.data
    cursor.end = section.data + section.size
    cursor.broken = False


cdef inline bint cursor_more(const Cursor* cursor) noexcept nogil:
    return not cursor.broken and cursor.at < cursor.end


cdef inline uint8_t get_byte(Cursor* cursor) noexcept nogil:
    cdef uint8_t value
    if cursor.broken or cursor.at >= cursor.end:
        cursor.broken = True
        return 0
    value = cursor.at[0]
    cursor.at += 1
    return value


cdef inline uint64_t get_varint(Cursor* cursor) noexcept nogil:
    cdef uint64_t value = 0
    cdef uint32_t shift = 0
    cdef uint8_t byte
    while shift < 64:
        byte = get_byte(cursor)
        value |= <uint64_t>(byte & 0x7F) << shift
        if byte < 0x80:
            return 0 if cursor.broken else value
        shift += 7
    cursor.broken = True
    return 0


cdef inline int64_t get_signed(Cursor* cursor) noexcept nogil:
    return unzigzag(get_varint(cursor))


cdef inline const uint8_t* get_bytes(Cursor* cursor, uint32_t size) noexcept nogil:
    # NULL when fewer are left.
    cdef const uint8_t* data = cursor.at
    if cursor.broken or <uint64_t>(cursor.end - cursor.at) < size:
        cursor.broken = True
        return NULL
    cursor.at += size
    return data


cdef inline uint32_t get_key(Cursor* cursor) noexcept nogil:
    # As put_key. 0 when it is not whole.
    cdef const uint8_t* data = get_bytes(cursor, 4)
    cdef uint32_t key = 0
    if data != NULL:
        memcpy(&key, data, 4)
    return key


cdef inline Slice get_text(Cursor* cursor) noexcept nogil:
    cdef Slice text
    text.size = get_byte(cursor)
    text.data = get_bytes(cursor, text.size)
    if cursor.broken:
        text.size = 0
    return text


cdef inline uint32_t deciding_program(const EntryView* view) noexcept nogil:
    # The version whose rules an entry speaks of: that of its quote, else the one in force.
    cdef Cursor cursor
    cdef uint64_t version
    if view.sections[SECTION_QUOTE].data == NULL:
        return view.header.program
    cursor_open(&cursor, &view.sections[SECTION_QUOTE])
    version = get_varint(&cursor)
    return <uint32_t>version if version <= view.header.program else view.header.program


cdef inline void details_read(LineDetails* details) noexcept nogil:
    details.coming = 0
    details.coming_regular_minor = 0
    details.coming_flags = 0
    if cursor_more(&details.cursor):
        details.coming = get_varint(&details.cursor)
        details.coming_regular_minor = <int64_t>get_varint(&details.cursor)
        details.coming_flags = get_byte(&details.cursor)


cdef inline void details_open(LineDetails* details, const Slice* section) noexcept nogil:
    cursor_open(&details.cursor, section)
    details_read(details)


cdef inline void details_next(LineDetails* details, uint64_t line) noexcept nogil:
    # Lines are asked for in order, from 1. Rows of lines that are not asked for are passed by.
    while details.coming != 0 and details.coming < line:
        details_read(details)
    details.regular_minor = 0
    details.flags = 0
    if details.coming == line:
        details.regular_minor = details.coming_regular_minor
        details.flags = details.coming_flags


cdef inline void context_read(const EntryView* view, Context* context) noexcept nogil:
    cdef Cursor cursor
    cdef uint8_t tag
    cdef Slice text
    cdef int64_t value
    memset(context, 0, sizeof(Context))
    if view.sections[SECTION_CONTEXT].data == NULL:
        return
    cursor_open(&cursor, &view.sections[SECTION_CONTEXT])
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        if tag < 128:
            value = get_signed(&cursor)
            if tag < 24:
                context.given |= <uint32_t>1 << tag
                context.values[tag] = value
            if tag == CONTEXT_NAMED and context.named_count < IDENTIFIERS_PER_REQUEST_MAX:
                context.named[context.named_count] = <uint32_t>value
                context.named_count += 1
        else:
            text = get_text(&cursor)
            if tag == CONTEXT_STORE:
                context.store = text
            elif tag == CONTEXT_TILL:
                context.till = text
            elif tag == CONTEXT_NUMBER:
                context.number = text
            elif tag == CONTEXT_OPERATOR:
                context.operator_name = text
            elif tag == CONTEXT_REASON:
                context.reason = text
