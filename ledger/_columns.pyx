"""Entries as columns of numbers and texts, for the export: the compiled half of ledger/export.py.

Not for files and not for types (ledger/export.py, its only caller, gives each column its type). Holds no GIL while it reads. It believes
no length that an entry states.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from ledger._entry cimport (
    Cursor, EntryView, LineDetails, cursor_more, cursor_open, deciding_program, details_next, details_open, entry_view, get_byte, get_bytes,
    get_key, get_signed, get_text, get_varint,
)
from ledger._layout cimport (
    ATTRIBUTE_BIRTHDAY, ATTRIBUTE_CHOSEN, ENTRY_HEADER_BYTES, GROUP_HEADER_BYTES, GroupHeader, LINE_WEIGHED, LOT_SLIDES, ORIGIN_COUNT, ORIGIN_DEVICE, ORIGIN_REGION,
    REVIEW_DAYS, SECTION_BLOCKS, SECTION_LIMITS, SECTION_ORIGIN, SECTION_RUNG,
    RECEIPT_CHANNEL, RECEIPT_PROMO_CODE, RECEIPT_TENDER, SECTION_AFTER, SECTION_ATTRIBUTES, SECTION_AWARDS, SECTION_CAMPAIGNS, SECTION_CONTEXT,
    SECTION_COUNTERS, SECTION_DAYS, SECTION_DIGEST, SECTION_DISCOUNTS, SECTION_ENTITLEMENTS, SECTION_IDENTIFIERS, SECTION_IMAGE,
    SECTION_LINES, SECTION_LINE_DETAILS, SECTION_LOTS, SECTION_NOTICES, SECTION_OPENED, SECTION_PAID, SECTION_POSTINGS,
    SECTION_PUBLISHED, SECTION_RECEIPT, SECTION_REFUSAL, SECTION_RESERVATION, SECTION_RULES_STATE, SECTION_SEGMENTS, SECTION_SOURCE,
    SECTION_VARIANTS, Slice,
)

cdef extern from "<stdint.h>" nogil:
    const int64_t NONE "INT64_MIN"      # a number that is not there

# Numbers, one per entry. The order of NUMBERS below.
cdef enum:
    SEQUENCE, TIME, KIND, FLAGS, STATUS, MEMBER, PROGRAM, REFUSAL_A, REFUSAL_B
    RESERVATION_ID, RESERVATION_STATE, RESERVATION_WALLET, RESERVATION_RESERVED, RESERVATION_CAPTURED, RESERVATION_EXPIRE
    RULES_DAY, RECEIPT_NUMBER, TIER_UNTIL, OPENED_DAY, BIRTHDAY, BIRTHDAY_FROM, NOTICE_COUNT
    IN_FORCE, ORIGIN_OFFSET, CUT, RUNG_BEFORE, RUNG_AFTER, RUNG_UNTIL, RUNG_LIMIT, BLOCKS_VERSION
    POSTINGS, LOTS, LINES, AWARDS, AFTER, IDENTIFIERS   # how many rows the entry has in the tables below
    TENDERS, PROMO_CODES, COUNTERS, CAMPAIGNS, DAYS, SEGMENTS_ADDED, SEGMENTS_REMOVED, CHOSEN, DISCOUNTS, PAID, VARIANTS, ENTITLEMENTS
    NOTICES, LIMITS, BLOCK_LISTS
    CONTEXT_FIRST               # CONTEXT tags 0..15
    ENTRY_COLUMNS = CONTEXT_FIRST + 16
    # Numbers, one per row of a list.
    POSTING_ACCOUNT = ENTRY_COLUMNS
    POSTING_WALLET, POSTING_POINTS
    LOT_WALLET, LOT_AVAILABLE, LOT_EXPIRY, LOT_FUNDER, LOT_BY_INACTIVITY, LOT_UNDER_REVIEW, LOT_POINTS, LOT_HELD
    LINE_QUANTITY, LINE_AMOUNT, LINE_REGULAR, LINE_IS_WEIGHED
    AWARD_LINE, AWARD_RULE, AWARD_WALLET, AWARD_POINTS
    AFTER_WALLET, AFTER_POSTED, AFTER_PENDING, AFTER_RESERVED
    IDENTIFIER_TYPE
    TENDER_AMOUNT
    COUNTER, COUNTER_PER, COUNTER_WINDOW, COUNTER_INCREMENT
    CAMPAIGN, CAMPAIGN_POINTS, CAMPAIGN_USES
    DAY, DAY_RECEIPTS, DAY_SPENT
    SEGMENT_ADDED, SEGMENT_REMOVED, FAVOURITE   # places in the programme
    DISCOUNT_LINE, DISCOUNT_AMOUNT, PAID_LINE, PAID_AMOUNT
    VARIANT
    NOTICE_KIND, NOTICE_INDEX
    LIMIT_NUMBER, LIMIT_ANSWER
    BLOCK_LIST, BLOCK_ADDED, BLOCK_REMOVED
    NUMBER_COLUMNS

NUMBERS = (
    "sequence", "time", "kind", "flags", "status", "member", "program", "refusal_a", "refusal_b",
    "reservation_id", "reservation_state", "reservation_wallet", "reservation_reserved", "reservation_captured", "reservation_expire",
    "rules_day", "receipt_number", "tier_until", "opened_day", "birthday", "birthday_from", "notice_count",
    "in_force", "origin_offset", "cut", "rung_before", "rung_after", "rung_until", "rung_limit", "blocks_version",
    "postings", "lots", "lines", "awards", "after", "identifiers",
    "tenders", "promo_codes", "counters", "campaigns", "days", "segments_added", "segments_removed", "chosen", "discounts", "paid",
    "variants", "entitlements", "notices", "limits", "block_lists",
    *(f"context_{tag}" for tag in range(16)),
    "posting_account", "posting_wallet", "posting_points",
    "lot_wallet", "lot_available", "lot_expiry", "lot_funder", "lot_by_inactivity", "lot_under_review", "lot_points", "lot_held",
    "line_quantity", "line_amount", "line_regular", "line_weighed",
    "award_line", "award_rule", "award_wallet", "award_points",
    "after_wallet", "after_posted", "after_pending", "after_reserved",
    "identifier_type",
    "tender_amount",
    "counter", "counter_per", "counter_window", "counter_increment",
    "campaign", "campaign_points", "campaign_uses",
    "day", "day_receipts", "day_spent",
    "segment_added", "segment_removed", "favourite",
    "discount_line", "discount_amount", "paid_line", "paid_amount",
    "variant",
    "notice_kind", "notice_index",
    "limit_number", "limit_answer",
    "block_list", "block_added", "block_removed",
)

cdef enum:
    TEXT_REQUEST, TEXT_STORE, TEXT_TILL, TEXT_NUMBER, TEXT_OPERATOR, TEXT_REASON, TEXT_DIGEST, TEXT_IMAGE_HASH, TEXT_SOURCE
    TEXT_CHANNEL, TEXT_TIER, TEXT_TIER_AFTER
    TEXT_ORIGIN_DEVICE, TEXT_ORIGIN_CASHIER, TEXT_ORIGIN_PAYMENT_CARD, TEXT_ORIGIN_PARTNER, TEXT_ORIGIN_STORE, TEXT_ORIGIN_TILL
    TEXT_ORIGIN_REGION
    TEXT_SKU, TEXT_CATEGORY     # one per line
    TEXT_TENDER, TEXT_PROMO_CODE, TEXT_ENTITLEMENT, TEXT_NOTICE     # one per row
    TEXT_COLUMNS
    CONTEXT_TEXT_FIRST = 128    # CONTEXT tags of texts
    CONTEXT_TEXT_COUNT = 5      # store, till, number, operator, reason
    BLOCK_LISTS_MAX = 8         # 2..7 are lists

TEXTS = ("request", "store", "till", "number", "operator", "reason", "digest", "image_hash", "source", "channel", "tier", "tier_after",
         "origin_device", "origin_cashier", "origin_payment_card", "origin_partner", "origin_store", "origin_till", "origin_region",
         "sku", "category", "tender", "promo_code", "entitlement", "notice")

cdef struct Buffer:
    uint8_t* data
    uint64_t size               # bytes used
    uint64_t capacity


cdef bint grow(Buffer* buffer, uint64_t more) noexcept nogil:
    cdef uint64_t capacity = buffer.capacity
    cdef void* data
    if buffer.size + more <= capacity:
        return True
    while capacity < buffer.size + more:
        capacity = 65536 if capacity == 0 else capacity * 2
    data = realloc(buffer.data, capacity)
    if data == NULL:
        return False
    buffer.data = <uint8_t*>data
    buffer.capacity = capacity
    return True


cdef class Columns:
    """Columns of the entries added so far. Errors: MemoryError, ValueError for bytes that are no entries."""

    cdef Buffer numbers[NUMBER_COLUMNS]     # int64 each
    cdef Buffer texts[TEXT_COLUMNS]
    cdef Buffer ends[TEXT_COLUMNS]          # int32: where each text ends
    cdef bint full                          # memory ran out
    cdef Buffer newest                      # of the newest PROGRAM entry: PUBLISHED, or the image of one without
    cdef bint newest_published
    cdef readonly uint64_t count            # entries

    def __cinit__(self):
        memset(self.numbers, 0, sizeof(self.numbers))
        memset(self.texts, 0, sizeof(self.texts))
        memset(self.ends, 0, sizeof(self.ends))
        memset(&self.newest, 0, sizeof(Buffer))
        self.count = 0
        self.full = False

    def __dealloc__(self):
        cdef int i
        for i in range(NUMBER_COLUMNS):
            free(self.numbers[i].data)
        for i in range(TEXT_COLUMNS):
            free(self.texts[i].data)
            free(self.ends[i].data)
        free(self.newest.data)

    @property
    def program(self) -> tuple[bytes, bytes]:
        """What the newest PROGRAM entry among all entries added, cleared ones too, says of its wallets: its PUBLISHED section, else its
        image. Both empty: none."""
        told = (<const char*>self.newest.data)[:self.newest.size] if self.newest.size else b""
        return (told, b"") if self.newest_published else (b"", told)

    @property
    def size(self) -> int:
        """Bytes of all columns."""
        cdef uint64_t size = 0
        cdef int i
        for i in range(NUMBER_COLUMNS):
            size += self.numbers[i].size
        for i in range(TEXT_COLUMNS):
            size += self.texts[i].size + self.ends[i].size
        return size

    def clear(self) -> None:
        cdef int i
        for i in range(NUMBER_COLUMNS):
            self.numbers[i].size = 0
        for i in range(TEXT_COLUMNS):
            self.texts[i].size = 0
            self.ends[i].size = 0
        self.count = 0

    def add(self, record, uint64_t from_sequence, int64_t until_us) -> int:
        """Entries of a group record, from a sequence on and before a time; returns the sequence behind the last of them."""
        cdef Py_buffer buffer
        cdef uint64_t following = from_sequence
        cdef uint64_t broken
        PyObject_GetBuffer(record, &buffer, PyBUF_SIMPLE)
        try:
            with nogil:
                broken = add_group(self, <const uint8_t*>buffer.buf, <uint64_t>buffer.len, from_sequence, until_us, &following)
        finally:
            PyBuffer_Release(&buffer)
        if self.full:
            raise MemoryError("the columns of the export do not fit into memory")
        if broken:
            raise ValueError(f"entry {broken} is broken")
        return following

    def number(self, int column) -> bytes:
        """A column of NUMBERS: int64, the smallest one where there is none."""
        return (<const char*>self.numbers[column].data)[:self.numbers[column].size] if self.numbers[column].size else b""

    def text(self, int column):
        """A column of TEXTS: (where each ends, int32; the bytes of all)."""
        return ((<const char*>self.ends[column].data)[:self.ends[column].size] if self.ends[column].size else b"",
                (<const char*>self.texts[column].data)[:self.texts[column].size] if self.texts[column].size else b"")


cdef inline void put(Columns self, int column, int64_t value) noexcept nogil:
    cdef Buffer* buffer = &self.numbers[column]
    if not grow(buffer, 8):
        self.full = True
        return
    memcpy(buffer.data + buffer.size, &value, 8)
    buffer.size += 8


cdef inline void put_text(Columns self, int column, const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t end
    if not grow(&self.texts[column], size) or not grow(&self.ends[column], 4):
        self.full = True
        return
    if size:
        memcpy(self.texts[column].data + self.texts[column].size, data, size)
        self.texts[column].size += size
    end = <uint32_t>self.texts[column].size
    memcpy(self.ends[column].data + self.ends[column].size, &end, 4)
    self.ends[column].size += 4


cdef uint64_t add_group(Columns self, const uint8_t* record, uint64_t size, uint64_t from_sequence, int64_t until_us,
                        uint64_t* following) noexcept nogil:
    # 0, or the entry that is broken.
    cdef const GroupHeader* header = <const GroupHeader*>record
    cdef const uint8_t* at = record + GROUP_HEADER_BYTES
    cdef const uint8_t* end = record + size
    cdef EntryView view
    cdef uint32_t i, entry_size
    cdef uint64_t sequence
    if size < GROUP_HEADER_BYTES or size != <uint64_t>GROUP_HEADER_BYTES + header.size:
        return from_sequence
    for i in range(header.count):
        sequence = header.first_sequence + i
        entry_size = 0
        if end - at >= ENTRY_HEADER_BYTES:
            memcpy(&entry_size, at, 4)
        if entry_size < ENTRY_HEADER_BYTES or <uint64_t>(end - at) < entry_size or not entry_view(at, entry_size, &view):
            return sequence
        if sequence >= from_sequence:
            if view.header.time_us >= until_us:
                return 0
            if not add_entry(self, &view, sequence):
                return sequence
            following[0] = sequence + 1
        at += entry_size
    return 0


cdef bint add_context(Columns self, const EntryView* view) noexcept nogil:
    cdef int64_t values[16]
    cdef Slice texts[CONTEXT_TEXT_COUNT]
    cdef Cursor cursor
    cdef uint8_t tag
    cdef int64_t value
    cdef Slice text
    cdef int i
    memset(texts, 0, sizeof(texts))
    for i in range(16):
        values[i] = NONE
    cursor_open(&cursor, &view.sections[SECTION_CONTEXT])
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        if tag < 128:
            value = get_signed(&cursor)
            if tag < 16:
                values[tag] = value
        else:
            text = get_text(&cursor)
            if tag < CONTEXT_TEXT_FIRST + CONTEXT_TEXT_COUNT:
                texts[tag - CONTEXT_TEXT_FIRST] = text
    for i in range(16):
        put(self, CONTEXT_FIRST + i, values[i])
    for i in range(CONTEXT_TEXT_COUNT):
        put_text(self, TEXT_STORE + i, texts[i].data, texts[i].size)
    return not cursor.broken


cdef bint put_list(Columns self, Cursor* cursor, const char* fields, int first, int count) noexcept nogil:
    # The rest of a section whose rows are numbers: a field a column, from `first` on, and into `count` how many rows there are.
    # fields: b byte, v varint, s signed, k key.
    cdef int64_t rows = 0
    cdef int column
    cdef const char* field
    while cursor_more(cursor):
        column = first
        field = fields
        while field[0] != 0:
            if field[0] == c'b':
                put(self, column, get_byte(cursor))
            elif field[0] == c'v':
                put(self, column, <int64_t>get_varint(cursor))
            elif field[0] == c's':
                put(self, column, get_signed(cursor))
            else:
                put(self, column, get_key(cursor))
            column += 1
            field += 1
        rows += 1
    put(self, count, rows)
    return not cursor.broken


cdef bint put_section(Columns self, const Slice* section, const char* fields, int first, int count) noexcept nogil:
    cdef Cursor cursor
    cursor_open(&cursor, section)
    return put_list(self, &cursor, fields, first, count)


cdef bint add_rows(Columns self, const EntryView* view) noexcept nogil:
    # The lists.
    cdef Cursor cursor
    cdef LineDetails details
    cdef Slice text
    cdef uint64_t available_day, funder
    cdef int64_t rows = 0
    cdef bint sound = put_section(self, &view.sections[SECTION_POSTINGS], b"bvs", POSTING_ACCOUNT, POSTINGS)
    details_open(&details, &view.sections[SECTION_LINE_DETAILS])
    cursor_open(&cursor, &view.sections[SECTION_LOTS])
    while cursor_more(&cursor):
        put(self, LOT_WALLET, <int64_t>get_varint(&cursor))
        available_day = get_varint(&cursor)
        put(self, LOT_AVAILABLE, <int64_t>(available_day - REVIEW_DAYS if available_day >= REVIEW_DAYS else available_day))
        put(self, LOT_UNDER_REVIEW, available_day >= REVIEW_DAYS)
        put(self, LOT_EXPIRY, <int64_t>get_varint(&cursor))
        funder = get_varint(&cursor)
        put(self, LOT_FUNDER, <int64_t>(funder & ~<uint64_t>LOT_SLIDES))
        put(self, LOT_BY_INACTIVITY, (funder & LOT_SLIDES) != 0)
        put(self, LOT_POINTS, get_signed(&cursor))
        put(self, LOT_HELD, get_signed(&cursor))
        rows += 1
    put(self, LOTS, rows)
    sound = sound and not cursor.broken
    rows = 0
    cursor_open(&cursor, &view.sections[SECTION_LINES])
    while cursor_more(&cursor):
        text = get_text(&cursor)
        put_text(self, TEXT_SKU, text.data, text.size)
        text = get_text(&cursor)
        put_text(self, TEXT_CATEGORY, text.data, text.size)
        put(self, LINE_QUANTITY, <int64_t>get_varint(&cursor))
        put(self, LINE_AMOUNT, get_signed(&cursor))
        rows += 1
        details_next(&details, <uint64_t>rows)
        put(self, LINE_REGULAR, details.regular_minor if details.regular_minor != 0 else NONE)
        put(self, LINE_IS_WEIGHED, details.flags & LINE_WEIGHED)
    put(self, LINES, rows)
    sound = sound and not cursor.broken and not details.cursor.broken
    sound = put_section(self, &view.sections[SECTION_AWARDS], b"vvvs", AWARD_LINE, AWARDS) and sound
    sound = put_section(self, &view.sections[SECTION_AFTER], b"vsss", AFTER_WALLET, AFTER) and sound
    rows = 0
    cursor_open(&cursor, &view.sections[SECTION_IDENTIFIERS])
    while cursor_more(&cursor):
        put(self, IDENTIFIER_TYPE, get_byte(&cursor))
        get_bytes(&cursor, 16)
        rows += 1
    put(self, IDENTIFIERS, rows)
    return sound and not cursor.broken


cdef bint add_receipt(Columns self, const EntryView* view) noexcept nogil:
    # What the till said of the receipt beside its lines.
    cdef Cursor cursor
    cdef Slice text, channel
    cdef int64_t tenders = 0, codes = 0
    cdef uint8_t tag
    channel.data = NULL
    channel.size = 0
    cursor_open(&cursor, &view.sections[SECTION_RECEIPT])
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        text = get_text(&cursor)
        if tag == RECEIPT_CHANNEL:
            channel = text
        elif tag == RECEIPT_TENDER:
            put_text(self, TEXT_TENDER, text.data, text.size)
            put(self, TENDER_AMOUNT, <int64_t>get_varint(&cursor))
            tenders += 1
        elif tag == RECEIPT_PROMO_CODE:
            put_text(self, TEXT_PROMO_CODE, text.data, text.size)
            codes += 1
        else:
            return False
    put_text(self, TEXT_CHANNEL, channel.data, channel.size)
    put(self, TENDERS, tenders)
    put(self, PROMO_CODES, codes)
    return not cursor.broken


cdef bint add_state(Columns self, const EntryView* view) noexcept nogil:
    # What rules changed of the member and of campaigns.
    cdef const Slice* state = &view.sections[SECTION_RULES_STATE]
    cdef const Slice* opened = &view.sections[SECTION_OPENED]
    cdef Cursor cursor
    cdef Slice before, after
    cdef bint sound = True
    before.data = after.data = NULL
    before.size = after.size = 0
    cursor_open(&cursor, state)
    put(self, RULES_DAY, get_signed(&cursor) if state.data != NULL else NONE)
    put(self, RECEIPT_NUMBER, <int64_t>get_varint(&cursor) if state.data != NULL else NONE)
    get_byte(&cursor)
    get_byte(&cursor)
    put(self, TIER_UNTIL, <int64_t>get_varint(&cursor) if state.data != NULL else NONE)
    if state.data != NULL:
        before = get_text(&cursor)
        after = get_text(&cursor)
        if after.size == 0:
            after = before
        sound = not cursor.broken
    put_text(self, TEXT_TIER, before.data, before.size)
    put_text(self, TEXT_TIER_AFTER, after.data, after.size)
    cursor_open(&cursor, opened)
    put(self, OPENED_DAY, get_signed(&cursor) if opened.data != NULL else NONE)
    sound = sound and (opened.data == NULL or not cursor.broken)
    cursor_open(&cursor, &view.sections[SECTION_COUNTERS])
    if cursor_more(&cursor):
        get_signed(&cursor)
    sound = put_list(self, &cursor, b"kbss", COUNTER, COUNTERS) and sound
    sound = put_section(self, &view.sections[SECTION_CAMPAIGNS], b"kss", CAMPAIGN, CAMPAIGNS) and sound
    cursor_open(&cursor, &view.sections[SECTION_DAYS])
    if cursor_more(&cursor):
        get_varint(&cursor)
    return put_list(self, &cursor, b"sss", DAY, DAYS) and sound


cdef int64_t put_bits(Columns self, int column, uint64_t word, int64_t first) noexcept nogil:
    # The places of the bits that are set. Returns how many.
    cdef int64_t bit, count = 0
    for bit in range(64):
        if word >> bit & 1:
            put(self, column, first + bit)
            count += 1
    return count


cdef bint add_sets(Columns self, const EntryView* view) noexcept nogil:
    # What was set of the member by hand.
    cdef Cursor cursor
    cdef int64_t added = 0, removed = 0, chosen = NONE, birthday = NONE, counts_from = NONE
    cdef uint8_t tag
    cdef bint sound
    cursor_open(&cursor, &view.sections[SECTION_SEGMENTS])
    if cursor_more(&cursor):
        added = put_bits(self, SEGMENT_ADDED, get_varint(&cursor), 0)
        added += put_bits(self, SEGMENT_ADDED, get_varint(&cursor), 64)
        removed = put_bits(self, SEGMENT_REMOVED, get_varint(&cursor), 0)
        removed += put_bits(self, SEGMENT_REMOVED, get_varint(&cursor), 64)
    sound = not cursor.broken
    cursor_open(&cursor, &view.sections[SECTION_ATTRIBUTES])
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        if tag == ATTRIBUTE_BIRTHDAY:
            birthday = <int64_t>get_varint(&cursor)
            birthday = (birthday >> 5) * 100 + (birthday & 31)
            counts_from = get_signed(&cursor)
        elif tag == ATTRIBUTE_CHOSEN and chosen == NONE:
            chosen = put_bits(self, FAVOURITE, get_varint(&cursor), 0)
        else:
            return False
    put(self, SEGMENTS_ADDED, added)
    put(self, SEGMENTS_REMOVED, removed)
    put(self, CHOSEN, chosen)
    put(self, BIRTHDAY, birthday)
    put(self, BIRTHDAY_FROM, counts_from)
    return sound and not cursor.broken


cdef bint add_result(Columns self, const EntryView* view) noexcept nogil:
    # What the rules made of the receipt, beside points.
    cdef Cursor cursor
    cdef Slice text
    cdef int64_t rows = 0
    cdef bint sound
    sound = put_section(self, &view.sections[SECTION_DISCOUNTS], b"vv", DISCOUNT_LINE, DISCOUNTS)
    sound = put_section(self, &view.sections[SECTION_PAID], b"vv", PAID_LINE, PAID) and sound
    sound = put_section(self, &view.sections[SECTION_VARIANTS], b"b", VARIANT, VARIANTS) and sound
    cursor_open(&cursor, &view.sections[SECTION_ENTITLEMENTS])
    while cursor_more(&cursor):
        text = get_text(&cursor)
        put_text(self, TEXT_ENTITLEMENT, text.data, text.size)
        rows += 1
    put(self, ENTITLEMENTS, rows)
    sound = sound and not cursor.broken
    rows = 0
    cursor_open(&cursor, &view.sections[SECTION_NOTICES])
    put(self, NOTICE_COUNT, <int64_t>get_varint(&cursor) if cursor_more(&cursor) else 0)
    while cursor_more(&cursor):
        put(self, NOTICE_KIND, get_byte(&cursor))
        put(self, NOTICE_INDEX, <int64_t>get_varint(&cursor))
        text = get_text(&cursor)
        put_text(self, TEXT_NOTICE, text.data, text.size)
        rows += 1
    put(self, NOTICES, rows)
    return sound and not cursor.broken


cdef inline void put_hex(Columns self, int column, const uint8_t* data, uint32_t size) noexcept nogil:
    # At most 8 bytes; NULL: an empty text.
    cdef const char* digits = b"0123456789abcdef"
    cdef uint8_t text[16]
    cdef uint32_t i
    if data == NULL:
        size = 0
    for i in range(size):
        text[2 * i] = <uint8_t>digits[data[i] >> 4]
        text[2 * i + 1] = <uint8_t>digits[data[i] & 15]
    put_text(self, column, text, 2 * size)


cdef bint add_origin(Columns self, const Slice* section) noexcept nogil:
    cdef const uint8_t* hashes[ORIGIN_COUNT]
    cdef const uint8_t* region = NULL
    cdef Cursor cursor
    cdef uint32_t part
    cdef bint sound = True
    memset(hashes, 0, sizeof(hashes))
    cursor_open(&cursor, section)
    put(self, ORIGIN_OFFSET, get_signed(&cursor) if section.data != NULL else NONE)
    while cursor_more(&cursor):
        part = get_byte(&cursor)
        if part == ORIGIN_REGION:
            region = get_bytes(&cursor, 4)
            continue
        if part < ORIGIN_DEVICE or part >= ORIGIN_COUNT:
            sound = False
            break
        hashes[part] = get_bytes(&cursor, 8)
    for part in range(ORIGIN_DEVICE, ORIGIN_COUNT):
        put_hex(self, TEXT_ORIGIN_DEVICE + part - ORIGIN_DEVICE, hashes[part], 8)
    put_hex(self, TEXT_ORIGIN_REGION, region, 4)
    return sound and (section.data == NULL or not cursor.broken)


cdef bint add_blocks(Columns self, const Slice* section) noexcept nogil:
    # How many rows of each list; the rows are hashes and of no use to anybody.
    cdef int64_t added[BLOCK_LISTS_MAX]
    cdef int64_t removed[BLOCK_LISTS_MAX]
    cdef int64_t lists = 0
    cdef Cursor cursor
    cdef uint8_t op, kind
    cdef uint32_t i
    memset(added, 0, sizeof(added))
    memset(removed, 0, sizeof(removed))
    cursor_open(&cursor, section)
    put(self, BLOCKS_VERSION, <int64_t>get_varint(&cursor) if section.data != NULL else NONE)
    while cursor_more(&cursor):
        op = get_byte(&cursor)
        kind = get_byte(&cursor) & (BLOCK_LISTS_MAX - 1)
        get_byte(&cursor)
        get_bytes(&cursor, 8)
        if op == 1:
            added[kind] += 1
        else:
            removed[kind] += 1
    for i in range(BLOCK_LISTS_MAX):
        if added[i] + removed[i] != 0:
            put(self, BLOCK_LIST, i)
            put(self, BLOCK_ADDED, added[i])
            put(self, BLOCK_REMOVED, removed[i])
            lists += 1
    put(self, BLOCK_LISTS, lists)
    return section.data == NULL or not cursor.broken


cdef bint add_limits(Columns self, const EntryView* view) noexcept nogil:
    # Where it came from, and what limits, the ladder and the block lists made of it.
    cdef const Slice* limits = &view.sections[SECTION_LIMITS]
    cdef const Slice* rung = &view.sections[SECTION_RUNG]
    cdef Cursor cursor
    cdef bint sound = add_origin(self, &view.sections[SECTION_ORIGIN])
    cdef int column
    put(self, IN_FORCE, view.header.program)
    cursor_open(&cursor, limits)
    put(self, CUT, <int64_t>get_varint(&cursor) if limits.data != NULL else NONE)
    if limits.data == NULL:
        put(self, LIMITS, 0)
    else:
        sound = put_list(self, &cursor, b"vb", LIMIT_NUMBER, LIMITS) and sound
    if rung.data == NULL:
        for column in range(RUNG_BEFORE, RUNG_LIMIT + 1):
            put(self, column, NONE)
    else:
        cursor_open(&cursor, rung)
        put(self, RUNG_BEFORE, get_byte(&cursor))
        put(self, RUNG_AFTER, get_byte(&cursor))
        put(self, RUNG_UNTIL, <int64_t>get_varint(&cursor))
        put(self, RUNG_LIMIT, <int64_t>get_varint(&cursor))
        sound = sound and not cursor.broken
    return add_blocks(self, &view.sections[SECTION_BLOCKS]) and sound


cdef bint add_reservation(Columns self, const EntryView* view) noexcept nogil:
    cdef Cursor cursor
    cdef int column
    if view.sections[SECTION_RESERVATION].data == NULL:
        for column in range(RESERVATION_ID, RESERVATION_EXPIRE + 1):
            put(self, column, NONE)
        return True
    cursor_open(&cursor, &view.sections[SECTION_RESERVATION])
    put(self, RESERVATION_ID, <int64_t>get_varint(&cursor))
    put(self, RESERVATION_STATE, get_byte(&cursor))
    put(self, RESERVATION_WALLET, <int64_t>get_varint(&cursor))
    put(self, RESERVATION_RESERVED, get_signed(&cursor))
    put(self, RESERVATION_CAPTURED, get_signed(&cursor))
    put(self, RESERVATION_EXPIRE, view.header.time_us + get_signed(&cursor))
    return not cursor.broken


cdef bint add_entry(Columns self, const EntryView* view, uint64_t sequence) noexcept nogil:
    cdef const Slice* image = &view.sections[SECTION_IMAGE]
    cdef const Slice* published = &view.sections[SECTION_PUBLISHED]
    cdef const Slice* newest = published if published.size != 0 else image
    cdef const Slice* refusal = &view.sections[SECTION_REFUSAL]
    cdef const uint8_t* hash = NULL
    cdef Cursor cursor
    cdef bint asked = False, sound
    cdef uint32_t i
    put(self, SEQUENCE, <int64_t>sequence)
    put(self, TIME, view.header.time_us)
    put(self, KIND, view.header.kind)
    put(self, FLAGS, view.header.flags)
    put(self, STATUS, view.header.status)
    put(self, MEMBER, view.header.member)
    put(self, PROGRAM, deciding_program(view))
    cursor_open(&cursor, refusal)
    put(self, REFUSAL_A, get_signed(&cursor) if refusal.data != NULL else NONE)
    put(self, REFUSAL_B, get_signed(&cursor) if refusal.data != NULL else NONE)
    sound = refusal.data == NULL or not cursor.broken
    for i in range(16):
        asked = asked or view.header.request[i] != 0
    put_text(self, TEXT_REQUEST, view.header.request, 16 if asked else 0)
    put_text(self, TEXT_DIGEST, view.sections[SECTION_DIGEST].data, 16 if view.sections[SECTION_DIGEST].size == 16 else 0)
    if published.size != 0 and image.size == 0:
        cursor_open(&cursor, published)
        get_signed(&cursor)
        get_varint(&cursor)
        get_bytes(&cursor, 8)
        hash = get_bytes(&cursor, 32)
    elif image.size >= 40:
        hash = image.data + 8
    put_text(self, TEXT_IMAGE_HASH, hash, 32 if hash != NULL else 0)
    put_text(self, TEXT_SOURCE, view.sections[SECTION_SOURCE].data, view.sections[SECTION_SOURCE].size)
    if newest.size:
        self.newest.size = 0
        self.newest_published = newest == published
        if grow(&self.newest, newest.size):
            memcpy(self.newest.data, newest.data, newest.size)
            self.newest.size = newest.size
        else:
            self.full = True
    sound = add_context(self, view) and sound
    sound = add_reservation(self, view) and sound
    sound = add_rows(self, view) and sound
    sound = add_receipt(self, view) and sound
    sound = add_state(self, view) and sound
    sound = add_sets(self, view) and sound
    sound = add_result(self, view) and sound
    sound = add_limits(self, view) and sound
    self.count += 1
    return sound


if len(NUMBERS) != NUMBER_COLUMNS or len(TEXTS) != TEXT_COLUMNS:
    raise ImportError("ledger._columns: the names do not fit the columns")
