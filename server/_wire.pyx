# The protobuf codec of the checkout messages and of those by hand: request bytes to Command, Outcome to answer bytes. Nothing is allocated.
# Not for deciding: ranges, required parts and meaning are the core's (ledger/_core.pyx). Here are structure, UTF-8, text lengths,
# counts and the form of timestamps. Called by server/_call.pyx and server/_local.pyx; messages in proto/loyalty/ledger/v1/{ledger,admin}.proto.
#
# Promises, each held by tests/server/test_wire.py against google.protobuf:
# - a request is MESSAGE_MALFORMED exactly when google.protobuf cannot parse it, but for text that is not UTF-8: that is FIELD_INVALID;
# - merging is protobuf's: the last scalar wins, a message given twice is merged, the last member of a oneof wins;
# - among several faults the order is: malformed, not UTF-8 (first in the bytes), then by field number;
# - answers are the bytes that google.protobuf's deterministic serialization gives.
# Source: protobuf.dev/programming-guides/encoding; where it leaves room (over-long varints, depth), upb, the decoder of google.protobuf.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen
from ledger._arith cimport civil_from_day, div_floor
from ledger._entry cimport (
    Cursor, EntryView, cursor_more, cursor_open, deciding_program, entry_view, get_byte, get_signed, get_text, get_varint,
)
from ledger._layout cimport (
    ACCOUNT_ADJUSTED, ACCOUNT_EXPIRED, ACCOUNT_ISSUED, ACCOUNT_REDEEMED, FLAG_OPENED, GIVEN_BIRTHDAY, GIVEN_BUSINESS_TIME, GIVEN_EXPLAIN,
    GIVEN_FAVOURITES, GIVEN_ONLY_AS_QUOTED, GIVEN_RECEIPT, GIVEN_RECEIPT_KEY, GIVEN_SENT_TIME, GIVEN_TTL, GIVEN_WALLET, Line, MEMBER_BY_APP, MEMBER_BY_CARD, MEMBER_BY_EMAIL, MEMBER_BY_ID, MEMBER_BY_PHONE,
    MEMBER_NONE, METHOD_ADJUST, METHOD_BATCH_POST, METHOD_BURN, METHOD_CAPTURE, METHOD_COMMIT, METHOD_EARN, METHOD_ENROLL, METHOD_GET_BALANCE,
    METHOD_GET_OPERATION, METHOD_KEYS_STEP, METHOD_LINK, METHOD_QUOTE, METHOD_RELEASE, METHOD_RESERVE, METHOD_RETURN, METHOD_RULES_ORDER, METHOD_SET_ATTRIBUTES, METHOD_SET_SEGMENTS, METHOD_SET_RUNG, METHOD_CHANGE_BLOCKS, METHOD_DECIDE_REVIEW, METHOD_ANSWER_CHALLENGE, METHOD_UNLINK, MemberRef, PAYMENT_BURN, PAYMENT_CAPTURE, RulesAnswer, RulesOrder,
    PAYMENT_NONE, SECTION_AFTER, SECTION_AWARDS, SECTION_DISCOUNTS, SECTION_ENTITLEMENTS, SECTION_IDENTIFIERS, SECTION_NOTICES, SECTION_PAID, SECTION_POSTINGS, SECTION_QUOTE,
    ORIGIN_CASHIER, ORIGIN_COUNT, ORIGIN_DEVICE, ORIGIN_PARTNER, ORIGIN_PAYMENT_CARD, ORIGIN_STORE, SECTION_REFUSAL, SECTION_RESERVATION, SECTION_RETURNED, SECTION_RULES_STATE,
    DAY_NEVER, RUNG_OK, Slice, Tender, VALUE_NONE, VALUE_NUMBER, VALUE_TEXT, WalletView,
)
from ledger._evaluate cimport (
    BurnLimit2, Given, Missing2, NotGiven, REASON_CAP, REASON_LOST_TO, Result2, Scratch,
)
from ledger._image cimport (
    CAP_USES, ImageRule, ImageThreshold, MEASURE_RECEIPTS, Program2, RULE_DISCOUNT_LINE, RULE_DISCOUNT_RECEIPT, RULE_ENTITLE, RULE_KIND_COUNT,
    SECTION2_TIERS, WINDOW_ANNIVERSARY, WINDOW_LIFETIME, WINDOW_MONTH, WINDOW_ROLLING, WINDOW_YEAR, first_bit,
)
from ledger._limits cimport (
    ANSWER_BYTES_MAX, BATCH_COMMANDS_MAX, BLOCK_BYTES_MAX, CASHIER_BYTES_MAX, CATEGORY_BYTES_MAX, CATEGORY_PATH_BYTES_MAX, CHANNEL_BYTES_MAX, DEVICE_BYTES_MAX,
    EMAIL_BYTES_MAX, FAVOURITES_MAX, PARTNER_BYTES_MAX, PAYMENT_CARD_BYTES_MAX,
    IDENTIFIERS_PER_REQUEST_MAX, IDENTIFIER_BYTES_MAX, LINES_MAX,
    OPERATOR_BYTES_MAX, PROMO_CODES_PER_RECEIPT_MAX, PROMO_CODE_BYTES_MAX, QUOTE_TOKEN_BYTES, REASON_BYTES_MAX, RECEIPT_NUMBER_BYTES_MAX, RESULT_BYTES_MAX,
    REQUEST_ID_BYTES_MAX, REQUEST_ID_BYTES_MIN, REQUEST_BYTES_MAX, SEGMENTS_MAX, SEGMENT_BYTES_MAX, SKU_BYTES_MAX, STORE_BYTES_MAX,
    NOTICES_TOLD_MAX, TENDERS_PER_RECEIPT_MAX, TENDER_BYTES_MAX, TILL_BYTES_MAX, WALLETS_MAX, WALLET_NAME_BYTES_MAX,
)
from ledger._quote cimport QuoteToken, QuoteView, wide_micro
from ledger._status cimport (
    ERROR_DOMAIN, FIELD_AS_OF_TIME, FIELD_CHANGES, FIELD_CHANGES_ADD, FIELD_CHANGES_REMOVE, FIELD_FAVOURITES, FIELD_LINE_REGULAR_AMOUNT_MINOR, FIELD_LINE_WEIGHED,
    FIELD_RECEIPT_CHANNEL, FIELD_RECEIPT_PROMO_CODES, FIELD_RECEIPT_QUOTE_TOKEN, FIELD_RECEIPT_TENDERS, FIELD_RECEIPT_TENDERS_AMOUNT_MINOR,
    FIELD_RECEIPT_TENDERS_NAME, FIELD_CAPTURE_POINTS, FIELD_COMMAND, FIELD_COMMANDS, FIELD_COUNT, FIELD_IDENTIFIER, FIELD_IDENTIFIERS,
    FIELD_IDENTIFIER_APP, FIELD_IDENTIFIER_CARD,
    FIELD_IDENTIFIER_EMAIL, FIELD_IDENTIFIER_PHONE, FIELD_OPERATOR, FIELD_REASON, FIELD_KEY_NUMBER, FIELD_KEY_STORE, FIELD_KEY_TILL, FIELD_LASTS, FIELD_ADD, FIELD_REMOVE,
    FIELD_LINE_CATEGORY, FIELD_LINE_SKU, FIELD_MEMBER, FIELD_MEMBERS, FIELD_MEMBER_APP, FIELD_MEMBER_CARD, FIELD_MEMBER_EMAIL,
    FIELD_MEMBER_PHONE, FIELD_ORIGIN_DEVICE, FIELD_ORIGIN_PAYMENT_CARD,
    FIELD_POINTS, FIELD_PURCHASE_TIME, FIELD_RECEIPT_CURRENCY_CODE, FIELD_RECEIPT_LINES, FIELD_RECEIPT_NUMBER, FIELD_RECEIPT_PURCHASE_TIME,
    FIELD_RECEIPT_STORE, FIELD_RECEIPT_TILL, FIELD_REQUEST_ID, FIELD_RESERVATION_ID, FIELD_ROWS, FIELD_SENT_TIME, FIELD_TTL, FIELD_WALLET, FieldRow,
    STATUS_COUNT, STATUS_FIELD_INVALID, STATUS_MESSAGE_MALFORMED, STATUS_MESSAGE_TOO_LARGE, STATUS_METHOD_UNKNOWN, STATUS_OK, STATUS_ROWS,
    STATUS_WALLET_NOT_FOUND, StatusRow,
)
from server._encode cimport Out, out_byte, out_bytes, out_close, out_int, out_open, out_time, out_varint

cdef enum:
    DEPTH_MAX = 100             # messages and groups inside each other; upb's default
    TAG_BYTES_MAX = 5           # a tag or a length is a varint of 32 bits
    VARINT_BYTES_MAX = 10
    VALUE_SHOWN_BYTES_MAX = 64  # of a text value in an error
    GRPC_INTERNAL = 13
    VALUE_SECONDS = 100         # Outcome.value_kind between wire_decode and wire_error: the seconds of a time are out of range
    VALUE_NANOS = 101           # ... its nanos are
    METADATA_MAX = 6            # field, rule, value, a, b, replayed
    RETRY_DELAY_NANOS = 100_000_000
    # Bytes of room; the longest of each that the tables can give is shorter (tests/server/test_wire.py tries them all).
    DETAILS_ROOM = 1024         # DETAILS_BYTES_MAX
    MESSAGE_ROOM = 512          # MESSAGE_BYTES_MAX
    SCRATCH_ROOM = 2048         # the message, the parts and 400 bytes of frames and names
    FIELD_ROOM = 64
    VALUE_ROOM = 96
    RULE_ROOM = 160
    NUMBER_ROOM = 24

cdef extern from *:
    """
    /* The years 1..9999: google.protobuf.Timestamp. Durations are bounded far inside by the core. */
    #define WIRE_SECONDS_MIN INT64_C(-62135596800)
    #define WIRE_SECONDS_MAX INT64_C(253402300799)
    #define WIRE_HIGH_BITS UINT64_C(0x8080808080808080)
    #define WIRE_ONES UINT64_C(0x0101010101010101)
    #define WIRE_SPACES UINT64_C(0x2020202020202020)
    """
    const int64_t SECONDS_MIN "WIRE_SECONDS_MIN"
    const int64_t SECONDS_MAX "WIRE_SECONDS_MAX"
    const uint64_t HIGH_BITS "WIRE_HIGH_BITS"
    const uint64_t ONES "WIRE_ONES"
    const uint64_t SPACES "WIRE_SPACES"
    bint likely "__builtin_expect"(bint condition, int expected) noexcept nogil


# --- reading -----------------------------------------------------------------------------------------------------

cdef struct Stamp:              # a Timestamp or Duration as sent
    int64_t seconds
    int32_t nanos

cdef struct Fault:              # a field that is wrong; field 0: none
    Slice text
    uint16_t field
    int32_t index

cdef struct Reader:
    const uint8_t* at           # next byte
    const uint8_t* end          # end of the message being read
    const uint8_t* start        # of the request
    const uint8_t* broken       # where it stopped to be protobuf; NULL: nowhere
    uint32_t depth              # messages open around this one
    uint32_t line_total         # lines seen, also those beyond LINES_MAX
    uint32_t identifier_total   # identifiers seen, also those beyond IDENTIFIERS_PER_REQUEST_MAX
    uint32_t tender_total       # and so on
    uint32_t promo_code_total
    uint32_t change_total
    uint32_t add_total
    uint32_t remove_total
    bint unusual                # some text was more than printable ASCII: control characters are looked for at the end
    Fault encoding              # the first text that is not UTF-8
    Fault line                  # the first line with a text of the wrong length
    Fault tender                # the first tender with one
    Fault promo_code            # the first promo code that is one
    Fault add                   # the first name to add, and to remove
    Fault remove
    Stamp sent
    Stamp business
    Stamp ttl
    Stamp past
    bint asks_past              # GetBalance as of a past moment: not for this service


cdef void fail(Reader* reader, const uint8_t* at) noexcept nogil:
    # Every loop ends, because nothing is left to read.
    if reader.broken == NULL:
        reader.broken = at
    reader.at = reader.end


cdef uint64_t read_long_varint(Reader* reader, uint32_t bytes_max) noexcept nogil:
    # Bits beyond 64 are dropped, as upb drops them.
    cdef uint64_t value = 0
    cdef uint32_t i
    cdef uint8_t byte
    cdef const uint8_t* at = reader.at
    for i in range(bytes_max):
        if at >= reader.end:
            break
        byte = at[0]
        at += 1
        value |= <uint64_t>(byte & 0x7F) << (7 * i)
        if byte < 0x80:
            reader.at = at
            return value
    fail(reader, reader.at)
    return 0


cdef inline uint64_t read_varint(Reader* reader) noexcept nogil:
    cdef uint8_t byte
    if likely(reader.at < reader.end, 1):
        byte = reader.at[0]
        if byte < 0x80:
            reader.at += 1
            return byte
    return read_long_varint(reader, VARINT_BYTES_MAX)


cdef uint32_t read_long_tag(Reader* reader) noexcept nogil:
    cdef const uint8_t* at = reader.at
    cdef uint64_t tag = read_long_varint(reader, TAG_BYTES_MAX)
    if tag >> 32 != 0:
        fail(reader, at)
        return 0
    return <uint32_t>tag


cdef inline uint32_t read_any_tag(Reader* reader) noexcept nogil:
    # Also field number 0, which upb lets pass inside unknown groups.
    cdef uint8_t byte = reader.at[0]
    if likely(byte < 0x80, 1):
        reader.at += 1
        return byte
    return read_long_tag(reader)


cdef inline uint32_t read_tag(Reader* reader) noexcept nogil:
    # Call while reader.at < reader.end. 0: broken.
    cdef const uint8_t* at = reader.at
    cdef uint32_t tag = read_any_tag(reader)
    if tag >> 3 == 0:
        fail(reader, at)
        return 0
    return tag


cdef inline uint32_t read_size(Reader* reader) noexcept nogil:
    # A length that fits into the message being read.
    cdef const uint8_t* at = reader.at
    cdef uint64_t size
    if likely(at < reader.end and at[0] < 0x80, 1):
        size = at[0]
        reader.at += 1
    else:
        size = read_long_varint(reader, TAG_BYTES_MAX)
    if size > <uint64_t>(reader.end - reader.at):
        fail(reader, at)
        return 0
    return <uint32_t>size


cdef void skip_scalar(Reader* reader, uint32_t wire_type, const uint8_t* tag_at) noexcept nogil:
    cdef uint32_t size
    if wire_type == 0:
        read_varint(reader)
        return
    if wire_type == 2:
        size = read_size(reader)
    elif wire_type == 1:
        size = 8
    elif wire_type == 5:
        size = 4
    else:
        fail(reader, tag_at)
        return
    if size > <uint64_t>(reader.end - reader.at):
        fail(reader, tag_at)
        return
    reader.at += size


cdef void skip(Reader* reader, uint32_t tag, const uint8_t* tag_at) noexcept nogil:
    # An unknown field, or a known one with another wire type; a group with all that is in it.
    cdef uint32_t open_fields[DEPTH_MAX]
    cdef uint32_t depth = 0
    cdef const uint8_t* at = tag_at
    if reader.broken != NULL:
        return
    if tag & 7 != 3:
        skip_scalar(reader, tag & 7, tag_at)
        return
    while True:
        if tag & 7 == 3:
            if reader.depth + depth >= DEPTH_MAX:
                fail(reader, at)
                return
            open_fields[depth] = tag >> 3
            depth += 1
        elif tag & 7 == 4:
            depth -= 1
            if tag >> 3 != open_fields[depth]:
                fail(reader, at)
                return
            if depth == 0:
                return
        else:
            skip_scalar(reader, tag & 7, at)
        if reader.at >= reader.end:
            fail(reader, reader.at)
            return
        at = reader.at
        tag = read_any_tag(reader)
        if reader.broken != NULL:
            return


cdef inline const uint8_t* enter(Reader* reader) noexcept nogil:
    # Into a message; gives the end of the one around it, for leave().
    cdef const uint8_t* outer = reader.end
    cdef uint32_t size = read_size(reader)
    reader.depth += 1
    reader.end = reader.at + size
    return outer


cdef inline void leave(Reader* reader, const uint8_t* outer) noexcept nogil:
    reader.depth -= 1
    reader.end = outer
    if reader.broken != NULL:
        reader.at = outer


# --- text --------------------------------------------------------------------------------------------------------

cdef inline uint64_t not_plain(uint64_t word) noexcept nogil:
    # Bit 7 of a byte is set when it is above 0x7E, or, but for a borrow from a lower byte that is, below 0x20: exact for the question
    # whether there is any. (A zero byte counts; so shorter words are filled with spaces.)
    return (word | (word + ONES) | (word - SPACES)) & HIGH_BITS


cdef inline bint plain(const uint8_t* data, uint32_t size) noexcept nogil:
    # Whether the text is printable ASCII alone, which nearly every text is.
    cdef uint64_t word
    cdef uint64_t found = 0
    cdef uint32_t i = 0
    while i + 8 <= size:
        memcpy(&word, data + i, 8)
        found |= not_plain(word)
        i += 8
    if i < size:
        if size >= 8:
            memcpy(&word, data + size - 8, 8)
            found |= not_plain(word)
        else:
            word = SPACES
            for i in range(size):
                word = (word << 8) | data[i]
            found |= not_plain(word)
    return found == 0


cdef uint32_t character_size(const uint8_t* data, uint32_t size) noexcept nogil:
    # Bytes of the UTF-8 character at data (size >= 1); 0 when it is none. No surrogates, nothing over-long or above U+10FFFF.
    cdef uint8_t first = data[0]
    if first < 0x80:
        return 1
    if first < 0xC2 or size < 2 or data[1] & 0xC0 != 0x80:
        return 0
    if first < 0xE0:
        return 2
    if size < 3 or data[2] & 0xC0 != 0x80:
        return 0
    if first < 0xF0:
        if (first == 0xE0 and data[1] < 0xA0) or (first == 0xED and data[1] >= 0xA0):
            return 0
        return 3
    if size < 4 or data[3] & 0xC0 != 0x80 or first > 0xF4:
        return 0
    if (first == 0xF0 and data[1] < 0x90) or (first == 0xF4 and data[1] >= 0x90):
        return 0
    return 4


cdef bint is_utf8(Slice text) noexcept nogil:
    cdef uint32_t i = 0
    cdef uint32_t length
    while i < text.size:
        length = character_size(text.data + i, text.size - i)
        if length == 0:
            return False
        i += length
    return True


cdef bint has_control(Slice text) noexcept nogil:
    # U+0000..U+001F, U+007F..U+009F. The text is UTF-8.
    cdef uint32_t i
    for i in range(text.size):
        if text.data[i] < 0x20 or text.data[i] == 0x7F:
            return True
        if text.data[i] == 0xC2 and text.data[i + 1] < 0xA0:
            return True
    return False


cdef void unusual_text(Reader* reader, Slice text, uint16_t field, int32_t index) noexcept nogil:
    reader.unusual = True
    if reader.encoding.field == 0 and not is_utf8(text):
        reader.encoding.field = field
        reader.encoding.index = index
        reader.encoding.text = text


cdef inline void read_text(Reader* reader, Slice* text, uint16_t field, int32_t index) noexcept nogil:
    cdef uint32_t size = read_size(reader)
    text.data = reader.at
    text.size = size
    reader.at += size
    if not likely(plain(text.data, size), 1):
        unusual_text(reader, text[0], field, index)


cdef inline bint fits(const Reader* reader, Slice text, uint32_t low, uint32_t high) noexcept nogil:
    if text.size < low or text.size > high:
        return False
    return not reader.unusual or not has_control(text)


cdef bint is_request_id(Slice text) noexcept nogil:
    # A-Z a-z 0-9 . _ : -
    cdef uint32_t i
    cdef uint8_t byte
    for i in range(text.size):
        byte = text.data[i]
        if not (c"a" <= (byte | 0x20) <= c"z" or c"0" <= byte <= c":" or byte == c"." or byte == c"_" or byte == c"-"):
            return False
    return True


# --- the messages ------------------------------------------------------------------------------------------------
# Each function reads one message that stands in `reader` and merges it into what was read before.
# A tag is field number * 8 + wire type (0 varint, 2 bytes).

cdef void read_stamp(Reader* reader, Stamp* stamp) noexcept nogil:
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 8:
            stamp.seconds = <int64_t>read_varint(reader)
        elif tag == 16:
            stamp.nanos = <int32_t>read_varint(reader)
        else:
            skip(reader, tag, at)
    leave(reader, outer)


cdef inline void read_member_fields(Reader* reader, MemberRef* member, bint alone, int32_t index) noexcept nogil:
    cdef const uint8_t* at
    cdef uint32_t tag
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 8:
            member.member_id = <int64_t>read_varint(reader)
            member.kind = MEMBER_BY_ID
        elif tag == 18:
            read_text(reader, &member.text, FIELD_IDENTIFIER_CARD if alone else FIELD_MEMBER_CARD, index)
            member.kind = MEMBER_BY_CARD
        elif tag == 26:
            read_text(reader, &member.text, FIELD_IDENTIFIER_PHONE if alone else FIELD_MEMBER_PHONE, index)
            member.kind = MEMBER_BY_PHONE
        elif tag == 34:
            read_text(reader, &member.text, FIELD_IDENTIFIER_EMAIL if alone else FIELD_MEMBER_EMAIL, index)
            member.kind = MEMBER_BY_EMAIL
        elif tag == 42:
            read_text(reader, &member.text, FIELD_IDENTIFIER_APP if alone else FIELD_MEMBER_APP, index)
            member.kind = MEMBER_BY_APP
        else:
            skip(reader, tag, at)


cdef void read_member(Reader* reader, MemberRef* member, bint alone, int32_t index) noexcept nogil:
    # alone: it is the `identifier` of LinkIdentifier or UnlinkIdentifier.
    cdef const uint8_t* outer = enter(reader)
    read_member_fields(reader, member, alone, index)
    leave(reader, outer)


cdef void read_identifier(Reader* reader, Command* command) noexcept nogil:
    cdef MemberRef surplus
    cdef MemberRef* member = &surplus
    if reader.identifier_total < IDENTIFIERS_PER_REQUEST_MAX:
        member = &command.identifiers[reader.identifier_total]
        command.identifier_count = reader.identifier_total + 1
    memset(member, 0, sizeof(MemberRef))
    read_member(reader, member, False, <int32_t>reader.identifier_total)
    reader.identifier_total += 1


cdef void read_receipt_key(Reader* reader, Command* command, bint in_receipt) noexcept nogil:
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    command.given |= GIVEN_RECEIPT_KEY
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 10:
            read_text(reader, &command.store, FIELD_RECEIPT_STORE if in_receipt else FIELD_KEY_STORE, -1)
        elif tag == 18:
            read_text(reader, &command.till, FIELD_RECEIPT_TILL if in_receipt else FIELD_KEY_TILL, -1)
        elif tag == 24:
            command.business_day = <int32_t>read_varint(reader)
        elif tag == 34:
            read_text(reader, &command.number, FIELD_RECEIPT_NUMBER if in_receipt else FIELD_KEY_NUMBER, -1)
        else:
            skip(reader, tag, at)
    leave(reader, outer)


cdef void read_line(Reader* reader, Command* command) noexcept nogil:
    cdef Line surplus
    cdef Line* line = &surplus
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    cdef int32_t index = <int32_t>reader.line_total
    if reader.line_total < LINES_MAX:
        line = &command.lines[reader.line_total]
        command.line_count = reader.line_total + 1
    reader.line_total += 1
    memset(line, 0, sizeof(Line))
    line.sku.data = line.category.data = reader.at
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 10:
            read_text(reader, &line.sku, FIELD_LINE_SKU, index)
        elif tag == 18:
            read_text(reader, &line.category, FIELD_LINE_CATEGORY, index)
        elif tag == 24:
            line.quantity_milli = <int64_t>read_varint(reader)
        elif tag == 32:
            line.amount_minor = <int64_t>read_varint(reader)
        elif tag == 40:
            line.regular_minor = <int64_t>read_varint(reader)
        elif tag == 48:
            line.weighed = read_varint(reader) != 0
        else:
            skip(reader, tag, at)
    leave(reader, outer)
    if reader.line.field == 0 and reader.encoding.field == 0:
        if not fits(reader, line.sku, 1, SKU_BYTES_MAX):
            reader.line.field = FIELD_LINE_SKU
            reader.line.text = line.sku
            reader.line.index = index
        elif not fits(reader, line.category, 0, CATEGORY_BYTES_MAX):
            reader.line.field = FIELD_LINE_CATEGORY
            reader.line.text = line.category
            reader.line.index = index


cdef inline void note_fault(Reader* reader, Fault* fault, Slice text, uint32_t low, uint32_t high, uint16_t field, uint32_t index) noexcept nogil:
    # The first element of a list whose text is not fit.
    if fault.field == 0 and reader.encoding.field == 0 and not fits(reader, text, low, high):
        fault.field = field
        fault.text = text
        fault.index = <int32_t>index


cdef void read_tender(Reader* reader, Command* command) noexcept nogil:
    cdef Tender surplus
    cdef Tender* tender = &surplus
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    cdef uint32_t index = reader.tender_total
    if index < TENDERS_PER_RECEIPT_MAX:
        tender = &command.tenders[index]
        command.tender_count = index + 1
    reader.tender_total += 1
    memset(tender, 0, sizeof(Tender))
    tender.name.data = reader.at
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 10:
            read_text(reader, &tender.name, FIELD_RECEIPT_TENDERS_NAME, <int32_t>index)
        elif tag == 16:
            tender.amount_minor = <int64_t>read_varint(reader)
        else:
            skip(reader, tag, at)
    leave(reader, outer)
    note_fault(reader, &reader.tender, tender.name, 1, TENDER_BYTES_MAX, FIELD_RECEIPT_TENDERS_NAME, index)


cdef void read_names(Reader* reader, Slice* names, uint32_t* count, uint32_t* total, uint32_t count_max, Fault* fault, uint32_t bytes_max,
                     uint16_t field) noexcept nogil:
    # One more of a repeated text.
    cdef Slice surplus
    cdef Slice* name = &surplus
    if total[0] < count_max:
        name = &names[total[0]]
        count[0] = total[0] + 1
    read_text(reader, name, field, <int32_t>total[0])
    if reader.broken == NULL:
        note_fault(reader, fault, name[0], 1, bytes_max, field, total[0])
    total[0] += 1


cdef void read_receipt_end(Reader* reader, Command* command, uint32_t tag, const uint8_t* at) noexcept nogil:
    # The fields of a receipt that most tills do not send.
    cdef uint32_t size
    if tag == 50:
        read_tender(reader, command)
    elif tag == 58:
        read_text(reader, &command.channel, FIELD_RECEIPT_CHANNEL, -1)
    elif tag == 66:
        read_names(reader, command.promo_codes, &command.promo_code_count, &reader.promo_code_total, PROMO_CODES_PER_RECEIPT_MAX,
                   &reader.promo_code, PROMO_CODE_BYTES_MAX, FIELD_RECEIPT_PROMO_CODES)
    elif tag == 74:
        size = read_size(reader)
        command.quote_token.data = reader.at
        command.quote_token.size = size
        reader.at += size
    elif tag == 80:
        command.given &= ~<uint16_t>GIVEN_ONLY_AS_QUOTED
        if read_varint(reader) != 0:
            command.given |= GIVEN_ONLY_AS_QUOTED
    else:
        skip(reader, tag, at)


cdef void read_receipt(Reader* reader, Command* command) noexcept nogil:
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    command.given |= GIVEN_RECEIPT
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 42:
            read_line(reader, command)
        elif tag == 10:
            read_receipt_key(reader, command, True)
        elif tag == 18:
            read_stamp(reader, &reader.business)
            command.given |= GIVEN_BUSINESS_TIME
        elif tag == 26:
            read_text(reader, &command.currency, FIELD_RECEIPT_CURRENCY_CODE, -1)
        elif tag == 32:
            command.total_minor = <int64_t>read_varint(reader)
        else:
            read_receipt_end(reader, command, tag, at)
    leave(reader, outer)


cdef void read_payment(Reader* reader, Command* command, uint8_t payment) noexcept nogil:
    # Burn {wallet = 1, points = 2} or Capture {reservation_id = 1, points = 2}. The other member of the oneof is forgotten.
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    if command.payment != payment:
        command.payment = payment
        command.points = 0
        command.reservation_id = 0
        command.wallet.size = 0
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 16:
            command.points = <int64_t>read_varint(reader)
        elif tag == 10 and payment == PAYMENT_BURN:
            read_text(reader, &command.wallet, FIELD_WALLET, -1)
        elif tag == 8 and payment == PAYMENT_CAPTURE:
            command.reservation_id = <int64_t>read_varint(reader)
        else:
            skip(reader, tag, at)
    leave(reader, outer)


cdef inline bint by_hand(uint8_t method) noexcept nogil:
    return (METHOD_ADJUST <= method <= METHOD_UNLINK or method == METHOD_SET_SEGMENTS or method == METHOD_SET_ATTRIBUTES
            or method == METHOD_SET_RUNG or method == METHOD_DECIDE_REVIEW or method == METHOD_CHANGE_BLOCKS)


cdef inline bint is_posted(uint32_t method) noexcept nogil:
    # Whether it may be a command of a batch.
    return METHOD_EARN <= method <= METHOD_ENROLL or method == METHOD_RETURN


cdef inline bint names_member(uint8_t method) noexcept nogil:
    # Whether the third field of a write is the member.
    return not (method == METHOD_ENROLL or method == METHOD_UNLINK or method == METHOD_SET_SEGMENTS or method == METHOD_DECIDE_REVIEW
                or method == METHOD_ANSWER_CHALLENGE or method == METHOD_CHANGE_BLOCKS or method == METHOD_RETURN)


cdef inline bint is_query(uint8_t method) noexcept nogil:
    return method == METHOD_GET_BALANCE or method == METHOD_GET_OPERATION or method == METHOD_QUOTE or method == METHOD_KEYS_STEP


cdef bint read_head(Reader* reader, Command* command, uint32_t tag) noexcept nogil:
    # The three fields that a write begins with. False: the tag is none of them.
    if tag == 10:
        read_text(reader, &command.request_id, FIELD_REQUEST_ID, -1)
    elif tag == 18:
        read_stamp(reader, &reader.sent)
        command.given |= GIVEN_SENT_TIME
    elif tag == 26 and names_member(command.method):
        read_member(reader, &command.member, False, -1)
    else:
        return False
    return True


cdef void read_change(Reader* reader, Command* command) noexcept nogil:
    # A SegmentChange. Of a second one only the faults matter: there is one a command.
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    reader.change_total += 1
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 10:
            read_member(reader, &command.member, False, -1)
        elif tag == 18:
            read_names(reader, command.adds, &command.add_count, &reader.add_total, SEGMENTS_MAX, &reader.add, SEGMENT_BYTES_MAX, FIELD_CHANGES_ADD)
        elif tag == 26:
            read_names(reader, command.removes, &command.remove_count, &reader.remove_total, SEGMENTS_MAX, &reader.remove, SEGMENT_BYTES_MAX,
                       FIELD_CHANGES_REMOVE)
        else:
            skip(reader, tag, at)
    leave(reader, outer)


cdef void read_birthday(Reader* reader, Command* command) noexcept nogil:
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    command.given |= GIVEN_BIRTHDAY
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 8:
            command.birthday_month = <int32_t>read_varint(reader)
        elif tag == 16:
            command.birthday_day = <int32_t>read_varint(reader)
        else:
            skip(reader, tag, at)
    leave(reader, outer)


cdef void read_favourites(Reader* reader, Command* command) noexcept nogil:
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag
    command.given |= GIVEN_FAVOURITES
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if tag == 10:
            read_names(reader, command.adds, &command.add_count, &reader.add_total, FAVOURITES_MAX, &reader.add, CATEGORY_PATH_BYTES_MAX, FIELD_FAVOURITES)
        else:
            skip(reader, tag, at)
    leave(reader, outer)


cdef bint read_by_hand(Reader* reader, Command* command, uint32_t tag) noexcept nogil:
    # Behind the head: what AdminService writes. False: unknown. The reason's field follows the operator's.
    cdef uint32_t operator_tag = 34
    if command.method == METHOD_ADJUST:
        operator_tag = 58
    elif command.method == METHOD_LINK or command.method == METHOD_DECIDE_REVIEW or command.method == METHOD_CHANGE_BLOCKS:
        operator_tag = 42
    elif command.method == METHOD_SET_ATTRIBUTES or command.method == METHOD_SET_RUNG:
        operator_tag = 50
    if tag == operator_tag:
        read_text(reader, &command.operator_name, FIELD_OPERATOR, -1)
    elif tag == operator_tag + 8:
        read_text(reader, &command.reason, FIELD_REASON, -1)
    elif command.method == METHOD_CHANGE_BLOCKS and tag == 26:
        read_names(reader, command.adds, &command.add_count, &reader.add_total, SEGMENTS_MAX, &reader.add, BLOCK_BYTES_MAX, FIELD_ADD)
    elif command.method == METHOD_CHANGE_BLOCKS and tag == 34:
        read_names(reader, command.removes, &command.remove_count, &reader.remove_total, SEGMENTS_MAX, &reader.remove, BLOCK_BYTES_MAX, FIELD_REMOVE)
    elif command.method == METHOD_DECIDE_REVIEW and tag == 24:
        command.case_id = <int64_t>read_varint(reader)
    elif command.method == METHOD_DECIDE_REVIEW and tag == 32:
        command.verdict = <int32_t>read_varint(reader)
    elif command.method == METHOD_SET_RUNG and tag == 32:
        command.rung = <int32_t>read_varint(reader)
    elif command.method == METHOD_SET_RUNG and tag == 42:
        read_stamp(reader, &reader.ttl)
        command.given |= GIVEN_TTL
    elif command.method == METHOD_SET_SEGMENTS and tag == 26:
        read_change(reader, command)
    elif command.method == METHOD_SET_ATTRIBUTES and tag == 34:
        read_birthday(reader, command)
    elif command.method == METHOD_SET_ATTRIBUTES and tag == 42:
        read_favourites(reader, command)
    elif command.method == METHOD_ADJUST and tag == 34:
        read_text(reader, &command.wallet, FIELD_WALLET, -1)
    elif command.method == METHOD_ADJUST and tag == 40:
        command.points = <int64_t>read_varint(reader)
    elif command.method == METHOD_ADJUST and tag == 48:
        command.expiry_day = <int32_t>read_varint(reader)
    elif (command.method == METHOD_LINK and tag == 34) or (command.method == METHOD_UNLINK and tag == 26):
        read_member(reader, &command.identifiers[0], True, -1)
    else:
        return False
    return True


cdef void read_origin(Reader* reader, uint32_t* given, Slice* origin) noexcept nogil:
    # Into Command.origins and Command.origin, or the same of a batch.
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag, part
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        part = tag >> 3
        if tag & 7 == 2 and ORIGIN_DEVICE <= part < ORIGIN_COUNT:
            read_text(reader, &origin[part], FIELD_ORIGIN_DEVICE + part - ORIGIN_DEVICE, -1)
            given[0] = given[0] | <uint32_t>1 << part if origin[part].size != 0 else given[0] & ~(<uint32_t>1 << part)
        else:
            skip(reader, tag, at)
    leave(reader, outer)


cdef bint read_rest(Reader* reader, Command* command, uint32_t tag) noexcept nogil:
    # The fields behind the head, by method. False: unknown.
    cdef uint8_t method = command.method
    if method == METHOD_EARN or method == METHOD_COMMIT:
        if tag == 34:
            read_receipt(reader, command)
        elif tag == 42 and method == METHOD_COMMIT:
            read_payment(reader, command, PAYMENT_BURN)
        elif tag == 50 and method == METHOD_COMMIT:
            read_payment(reader, command, PAYMENT_CAPTURE)
        elif tag == (42 if method == METHOD_EARN else 58):
            read_origin(reader, &command.origins, command.origin)
        elif tag == 64 and method == METHOD_COMMIT:
            command.case_id = <int64_t>read_varint(reader)
        else:
            return False
    elif method == METHOD_BURN or method == METHOD_RESERVE:
        if tag == 34:
            read_text(reader, &command.wallet, FIELD_WALLET, -1)
        elif tag == 40:
            command.points = <int64_t>read_varint(reader)
        elif tag == 50 and method == METHOD_BURN:
            read_receipt_key(reader, command, False)
        elif tag == 50:
            read_stamp(reader, &reader.ttl)
            command.given |= GIVEN_TTL
        elif tag == 58:
            read_stamp(reader, &reader.business)
            command.given |= GIVEN_BUSINESS_TIME
        elif tag == 66:
            read_origin(reader, &command.origins, command.origin)
        elif tag == 72:
            command.case_id = <int64_t>read_varint(reader)
        else:
            return False
    elif method == METHOD_CAPTURE or method == METHOD_RELEASE:
        if tag == 32:
            command.reservation_id = <int64_t>read_varint(reader)
        elif tag == 40 and method == METHOD_CAPTURE:
            command.points = <int64_t>read_varint(reader)
        elif tag == 50 and method == METHOD_CAPTURE:
            read_receipt_key(reader, command, False)
        elif tag == 58 and method == METHOD_CAPTURE:
            read_origin(reader, &command.origins, command.origin)
        elif tag == 64 and method == METHOD_CAPTURE:
            command.case_id = <int64_t>read_varint(reader)
        else:
            return False
    elif method == METHOD_ENROLL and tag == 26:
        read_identifier(reader, command)
    elif method == METHOD_ENROLL and tag == 34:
        read_origin(reader, &command.origins, command.origin)
    elif method == METHOD_RETURN and tag == 26:
        read_receipt_key(reader, command, False)
    elif method == METHOD_RETURN and tag == 34:
        read_origin(reader, &command.origins, command.origin)
    elif method == METHOD_ANSWER_CHALLENGE and tag == 24:
        command.case_id = <int64_t>read_varint(reader)
    elif method == METHOD_ANSWER_CHALLENGE and tag == 32:
        command.verdict = 1 if read_varint(reader) != 0 else 2
    elif by_hand(method):
        return read_by_hand(reader, command, tag)
    else:
        return False
    return True


cdef bint read_query(Reader* reader, Command* command, uint32_t tag) noexcept nogil:
    # GetBalance, GetOperation, QuoteReceipt and what a step of ListLimitKeys asks: member and origin, as in GetBalance. False: unknown.
    if command.method == METHOD_QUOTE:
        if tag == 10:
            read_member(reader, &command.member, False, -1)
        elif tag == 18:
            read_receipt(reader, command)
        elif tag == 26:
            read_payment(reader, command, PAYMENT_BURN)
        elif tag == 34:
            read_payment(reader, command, PAYMENT_CAPTURE)
        elif tag == 40:
            command.given &= ~<uint16_t>GIVEN_EXPLAIN
            if read_varint(reader) != 0:
                command.given |= GIVEN_EXPLAIN
        elif tag == 50:
            read_origin(reader, &command.origins, command.origin)
        else:
            return False
    elif command.method == METHOD_GET_BALANCE or command.method == METHOD_KEYS_STEP:
        if tag == 10:
            read_member(reader, &command.member, False, -1)
        elif tag == 18:
            read_text(reader, &command.wallet, FIELD_WALLET, -1)
        elif tag == 26:
            read_stamp(reader, &reader.past)
            reader.asks_past = True
        elif tag == 34:
            read_origin(reader, &command.origins, command.origin)
        else:
            return False
    elif tag == 10:
        read_text(reader, &command.request_id, FIELD_REQUEST_ID, -1)
    elif tag == 18:
        read_stamp(reader, &reader.sent)
        command.given |= GIVEN_SENT_TIME
    else:
        return False
    return True


# --- checking what was read --------------------------------------------------------------------------------------

cdef bint refuse_text(Outcome* outcome, uint16_t field, int32_t index, Slice text) noexcept nogil:
    outcome_forget(outcome)
    outcome.status = STATUS_FIELD_INVALID
    outcome.field = field
    outcome.index = index
    outcome.value_kind = VALUE_TEXT
    outcome.text = text
    return False


cdef bint refuse_number(Outcome* outcome, uint16_t field, uint8_t kind, int64_t value) noexcept nogil:
    outcome_forget(outcome)
    outcome.status = STATUS_FIELD_INVALID
    outcome.field = field
    outcome.index = -1
    outcome.value_kind = kind
    outcome.value = value
    return False


cdef bint check_text(const Reader* reader, Slice text, uint32_t low, uint32_t high, uint16_t field, Outcome* outcome) noexcept nogil:
    if likely(fits(reader, text, low, high), 1):
        return True
    return refuse_text(outcome, field, -1, text)


cdef bint check_stamp(const Stamp* stamp, int64_t* time_us, uint16_t field, Outcome* outcome) noexcept nogil:
    # Parts of a microsecond are dropped.
    if stamp.seconds < SECONDS_MIN or stamp.seconds > SECONDS_MAX:
        return refuse_number(outcome, field, VALUE_SECONDS, stamp.seconds)
    if stamp.nanos < 0 or stamp.nanos > 999_999_999:
        return refuse_number(outcome, field, VALUE_NANOS, stamp.nanos)
    time_us[0] = stamp.seconds * 1_000_000 + stamp.nanos // 1000
    return True


cdef bint check_member(const Reader* reader, const MemberRef* member, bint alone, int32_t index, Outcome* outcome) noexcept nogil:
    # alone: as read_member has it.
    if member.kind == MEMBER_BY_CARD:
        if not fits(reader, member.text, 1, IDENTIFIER_BYTES_MAX):
            return refuse_text(outcome, FIELD_IDENTIFIER_CARD if alone else FIELD_MEMBER_CARD, index, member.text)
    elif member.kind == MEMBER_BY_PHONE:
        if not fits(reader, member.text, 1, IDENTIFIER_BYTES_MAX):
            return refuse_text(outcome, FIELD_IDENTIFIER_PHONE if alone else FIELD_MEMBER_PHONE, index, member.text)
    elif member.kind == MEMBER_BY_EMAIL:
        if not fits(reader, member.text, 3, EMAIL_BYTES_MAX):
            return refuse_text(outcome, FIELD_IDENTIFIER_EMAIL if alone else FIELD_MEMBER_EMAIL, index, member.text)
    elif member.kind == MEMBER_BY_APP:
        if not fits(reader, member.text, 1, IDENTIFIER_BYTES_MAX):
            return refuse_text(outcome, FIELD_IDENTIFIER_APP if alone else FIELD_MEMBER_APP, index, member.text)
    return True


cdef bint check_receipt_key(const Reader* reader, const Command* command, Outcome* outcome) noexcept nogil:
    cdef bint in_receipt = command.given & GIVEN_RECEIPT != 0
    cdef uint32_t low = 0 if command.method == METHOD_QUOTE else 1      # a quote may know only some of it
    return (
        check_text(reader, command.store, low, STORE_BYTES_MAX, FIELD_RECEIPT_STORE if in_receipt else FIELD_KEY_STORE, outcome)
        and check_text(reader, command.till, low, TILL_BYTES_MAX, FIELD_RECEIPT_TILL if in_receipt else FIELD_KEY_TILL, outcome)
        and check_text(reader, command.number, low, RECEIPT_NUMBER_BYTES_MAX,
                       FIELD_RECEIPT_NUMBER if in_receipt else FIELD_KEY_NUMBER, outcome)
    )


cdef bint check_wallet(const Reader* reader, Command* command, Outcome* outcome) noexcept nogil:
    # An empty name is none.
    if command.wallet.size == 0:
        return True
    command.given |= GIVEN_WALLET
    return check_text(reader, command.wallet, 1, WALLET_NAME_BYTES_MAX, FIELD_WALLET, outcome)


cdef inline bint pays(uint8_t method) noexcept nogil:
    # Has a payment: a message of its own.
    return method == METHOD_COMMIT or method == METHOD_QUOTE


cdef bint refuse_fault(Outcome* outcome, const Fault* fault) noexcept nogil:
    return refuse_text(outcome, fault.field, fault.index, fault.text)


cdef bint check_list(uint32_t total, uint32_t count_max, const Fault* fault, uint16_t field, Outcome* outcome) noexcept nogil:
    # Of names: not too many, and none of them wrong.
    if total > count_max:
        return refuse_number(outcome, field, VALUE_NUMBER, total)
    return fault.field == 0 or refuse_fault(outcome, fault)


cdef bint check_names(const Reader* reader, const Command* command, Outcome* outcome) noexcept nogil:
    # Of SetSegments, ChangeBlocks and SetAttributes.
    if command.method == METHOD_SET_SEGMENTS:
        return (check_list(reader.add_total, SEGMENTS_MAX, &reader.add, FIELD_CHANGES_ADD, outcome)
                and check_list(reader.remove_total, SEGMENTS_MAX, &reader.remove, FIELD_CHANGES_REMOVE, outcome))
    if command.method == METHOD_CHANGE_BLOCKS:
        return (check_list(reader.add_total, SEGMENTS_MAX, &reader.add, FIELD_ADD, outcome)
                and check_list(reader.remove_total, SEGMENTS_MAX, &reader.remove, FIELD_REMOVE, outcome))
    return command.method != METHOD_SET_ATTRIBUTES or check_list(reader.add_total, FAVOURITES_MAX, &reader.add, FIELD_FAVOURITES, outcome)


cdef bint check_receipt_end(const Reader* reader, const Command* command, Outcome* outcome) noexcept nogil:
    if reader.tender_total > TENDERS_PER_RECEIPT_MAX:
        return refuse_number(outcome, FIELD_RECEIPT_TENDERS, VALUE_NUMBER, reader.tender_total)
    if reader.tender.field != 0:
        return refuse_fault(outcome, &reader.tender)
    if not check_text(reader, command.channel, 0, CHANNEL_BYTES_MAX, FIELD_RECEIPT_CHANNEL, outcome):
        return False
    if reader.promo_code_total > PROMO_CODES_PER_RECEIPT_MAX:
        return refuse_number(outcome, FIELD_RECEIPT_PROMO_CODES, VALUE_NUMBER, reader.promo_code_total)
    if reader.promo_code.field != 0:
        return refuse_fault(outcome, &reader.promo_code)
    if command.quote_token.size != 0 and (command.quote_token.size != QUOTE_TOKEN_BYTES or command.method == METHOD_QUOTE):
        return refuse_text(outcome, FIELD_RECEIPT_QUOTE_TOKEN, -1, command.quote_token)
    return True


cdef uint32_t origin_bytes_max(uint32_t part) noexcept nogil:
    if part == ORIGIN_DEVICE:
        return DEVICE_BYTES_MAX
    if part == ORIGIN_CASHIER:
        return CASHIER_BYTES_MAX
    if part == ORIGIN_PAYMENT_CARD:
        return PAYMENT_CARD_BYTES_MAX
    if part == ORIGIN_PARTNER:
        return PARTNER_BYTES_MAX
    return STORE_BYTES_MAX if part == ORIGIN_STORE else TILL_BYTES_MAX


cdef bint check_origin(const Reader* reader, const Slice* origin, Outcome* outcome) noexcept nogil:
    cdef uint32_t part
    for part in range(<uint32_t>ORIGIN_DEVICE, <uint32_t>ORIGIN_COUNT):
        if not check_text(reader, origin[part], 0, origin_bytes_max(part), FIELD_ORIGIN_DEVICE + part - ORIGIN_DEVICE, outcome):
            return False
    return True


cdef bint check(const Reader* reader, Command* command, Outcome* outcome) noexcept nogil:
    # In the order of the field numbers; a query lacks what it has no field for.
    cdef int64_t past_us = 0
    cdef uint32_t i
    if reader.encoding.field != 0:
        return refuse_text(outcome, reader.encoding.field, reader.encoding.index, reader.encoding.text)
    if reader.asks_past:
        # Only the follower answers it; it takes the field out before it reads the rest (server/reading.py).
        if not check_stamp(&reader.past, &past_us, FIELD_AS_OF_TIME, outcome):
            return False
        return refuse_number(outcome, FIELD_AS_OF_TIME, VALUE_NUMBER, past_us)
    if not is_query(command.method) or command.method == METHOD_GET_OPERATION:
        if not fits(reader, command.request_id, REQUEST_ID_BYTES_MIN, REQUEST_ID_BYTES_MAX) or not is_request_id(command.request_id):
            return refuse_text(outcome, FIELD_REQUEST_ID, -1, command.request_id)
    if command.given & GIVEN_SENT_TIME and not check_stamp(&reader.sent, &command.sent_time_us, FIELD_SENT_TIME, outcome):
        return False
    if command.method == METHOD_SET_SEGMENTS and reader.change_total != 1:
        return refuse_number(outcome, FIELD_CHANGES, VALUE_NUMBER, reader.change_total)
    if not check_member(reader, &command.member, False, -1, outcome):
        return False
    if command.method == METHOD_LINK or command.method == METHOD_UNLINK:
        if not check_member(reader, &command.identifiers[0], True, -1, outcome):
            return False
    if command.method == METHOD_ENROLL:
        if reader.identifier_total < 1 or reader.identifier_total > IDENTIFIERS_PER_REQUEST_MAX:
            return refuse_number(outcome, FIELD_IDENTIFIERS, VALUE_NUMBER, reader.identifier_total)
        for i in range(command.identifier_count):
            if not check_member(reader, &command.identifiers[i], False, <int32_t>i, outcome):
                return False
    if not pays(command.method) and not check_wallet(reader, command, outcome):
        return False
    if not check_names(reader, command, outcome):
        return False
    if command.method == METHOD_SET_RUNG and command.given & GIVEN_TTL and not check_stamp(&reader.ttl, &command.ttl_us, FIELD_LASTS, outcome):
        return False
    if by_hand(command.method):
        return (check_text(reader, command.operator_name, 1, OPERATOR_BYTES_MAX, FIELD_OPERATOR, outcome)
                and check_text(reader, command.reason, 1, REASON_BYTES_MAX, FIELD_REASON, outcome))
    if command.given & GIVEN_RECEIPT_KEY and not check_receipt_key(reader, command, outcome):
        return False
    if command.given & GIVEN_TTL and not check_stamp(&reader.ttl, &command.ttl_us, FIELD_TTL, outcome):
        return False
    if command.given & GIVEN_BUSINESS_TIME:
        if not check_stamp(&reader.business, &command.business_time_us,
                           FIELD_RECEIPT_PURCHASE_TIME if command.given & GIVEN_RECEIPT else FIELD_PURCHASE_TIME, outcome):
            return False
    if reader.line_total > LINES_MAX:
        return refuse_number(outcome, FIELD_RECEIPT_LINES, VALUE_NUMBER, reader.line_total)
    if reader.line.field != 0:
        return refuse_text(outcome, reader.line.field, reader.line.index, reader.line.text)
    if command.given & GIVEN_RECEIPT and not check_receipt_end(reader, command, outcome):
        return False
    # In CommitReceipt and QuoteReceipt the wallet belongs to the payment, which stands behind the receipt.
    if pays(command.method) and not check_wallet(reader, command, outcome):
        return False
    return command.origins == 0 or check_origin(reader, command.origin, outcome)


cdef inline void reader_open(Reader* reader, const uint8_t* data, uint32_t size) noexcept nogil:
    memset(reader, 0, sizeof(Reader))
    reader.start = data
    reader.at = data
    reader.end = data + size


cdef inline void command_begin(Command* command, uint8_t method) noexcept nogil:
    # Identifiers and lines (48 KB) are cleared one by one as they come.
    memset(command, 0, <uint8_t*>&command.identifiers[0] - <uint8_t*>command)
    command.method = method


cdef void read_command(Reader* reader, Command* command) noexcept nogil:
    # The message that stands in `reader`, of command.method.
    cdef const uint8_t* at
    cdef uint32_t tag
    cdef bint query = is_query(command.method)
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if query:
            if not read_query(reader, command, tag):
                skip(reader, tag, at)
        elif not read_head(reader, command, tag) and not read_rest(reader, command, tag):
            skip(reader, tag, at)


cdef bint refuse_malformed(const Reader* reader, Outcome* outcome) noexcept nogil:
    outcome_forget(outcome)
    outcome.status = STATUS_MESSAGE_MALFORMED
    outcome.a = reader.broken - reader.start
    return False


cdef bint wire_decode(uint8_t method, const uint8_t* data, uint32_t size, Command* command, Outcome* outcome) noexcept nogil:
    cdef Reader reader
    command_begin(command, method)
    if method == METHOD_KEYS_STEP and size >= sizeof(void*):
        memcpy(&command.search, data, sizeof(void*))
        data += sizeof(void*)
        size -= sizeof(void*)
    reader_open(&reader, data, size)
    if method == METHOD_RULES_ORDER and size == sizeof(RulesOrder):
        command.order = <const RulesOrder*>data
        command.request_id.data = <const uint8_t*>command.order.request_id
        command.request_id.size = command.order.request_size
        command.sent_time_us = command.order.sent_time_us
        return True
    if method == METHOD_ANSWER_CHALLENGE:
        command.verdict = 2
    elif not is_query(method) and not is_posted(method) and not by_hand(method):
        outcome_forget(outcome)
        outcome.status = STATUS_METHOD_UNKNOWN
        return False
    if method == METHOD_LINK or method == METHOD_UNLINK:
        memset(&command.identifiers[0], 0, sizeof(MemberRef))
        command.identifier_count = 1
    read_command(&reader, command)
    if reader.broken != NULL:
        return refuse_malformed(&reader, outcome)
    return check(&reader, command, outcome)


# --- batches -----------------------------------------------------------------------------------------------------
# BatchPostRequest and BatchGetBalancesRequest are read twice: wire_batch looks at the frames of their parts, before anything runs, and
# wire_batch_next finds part after part when it is its turn. A part is a PostCommand or a MemberRef; it has field number 1.

cdef inline bint is_post(uint32_t tag) noexcept nogil:
    # A member of PostCommand's oneof. Their field numbers are the numbers of their methods.
    return tag & 7 == 2 and is_posted(tag >> 3)


cdef bint look_at_post(Reader* reader) noexcept nogil:
    # Passes by a PostCommand; whether it holds a command.
    cdef const uint8_t* at
    cdef const uint8_t* outer = enter(reader)
    cdef uint32_t tag, size
    cdef bint found = False
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(reader)
        if is_post(tag):
            size = read_size(reader)
            reader.at += size
            found = True
        else:
            skip(reader, tag, at)
    leave(reader, outer)
    return found


cdef uint32_t wire_batch(uint8_t method, const uint8_t* data, uint32_t size, BalancesAsked* asked, Outcome* outcome) noexcept nogil:
    cdef Reader reader
    cdef const uint8_t* at
    cdef uint32_t tag, part_size
    cdef uint32_t count = 0
    cdef int32_t empty = -1
    cdef bint posts = method == METHOD_BATCH_POST
    reader_open(&reader, data, size)
    memset(asked, 0, sizeof(BalancesAsked))
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(&reader)
        if tag == 10 and posts:
            if not look_at_post(&reader) and empty < 0:
                empty = <int32_t>count
            count += 1
        elif tag == 10:
            part_size = read_size(&reader)
            reader.at += part_size
            count += 1
        elif tag == 18 and not posts:
            read_text(&reader, &asked.wallet, FIELD_WALLET, -1)
        elif tag == 26 and not posts:
            read_origin(&reader, &asked.origins, asked.origin)
        else:
            skip(&reader, tag, at)
    if reader.broken != NULL:
        refuse_malformed(&reader, outcome)
        return 0
    if reader.encoding.field != 0:
        refuse_text(outcome, reader.encoding.field, reader.encoding.index, reader.encoding.text)
        return 0
    if count < 1 or count > BATCH_COMMANDS_MAX:
        refuse_number(outcome, FIELD_COMMANDS if posts else FIELD_MEMBERS, VALUE_NUMBER, count)
        return 0
    if empty >= 0:
        refuse_number(outcome, FIELD_COMMAND, VALUE_NONE, 0)
        outcome.index = empty
        return 0
    if asked.wallet.size != 0 and not check_text(&reader, asked.wallet, 1, WALLET_NAME_BYTES_MAX, FIELD_WALLET, outcome):
        return 0
    if asked.origins != 0 and not check_origin(&reader, asked.origin, outcome):
        return 0
    return count


cdef Slice wire_batch_next(const uint8_t* data, uint32_t size, uint32_t* offset) noexcept nogil:
    cdef Reader reader
    cdef Slice part
    cdef const uint8_t* at
    cdef uint32_t tag
    reader_open(&reader, data + offset[0], size - offset[0])
    part.data = data
    part.size = 0
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(&reader)
        if tag == 10:
            part.size = read_size(&reader)
            part.data = reader.at
            reader.at += part.size
            break
        skip(&reader, tag, at)
    offset[0] = <uint32_t>(reader.at - data)
    return part


cdef bint wire_decode_post(Slice part, Command* command, Outcome* outcome) noexcept nogil:
    cdef Reader reader
    cdef const uint8_t* at
    cdef const uint8_t* outer
    cdef uint32_t tag
    reader_open(&reader, part.data, part.size)
    reader.depth = 1            # inside the batch
    command_begin(command, 0)
    if part.size > REQUEST_BYTES_MAX:
        outcome_forget(outcome)
        outcome.status = STATUS_MESSAGE_TOO_LARGE
        outcome.a = part.size
        outcome.b = REQUEST_BYTES_MAX
        return False
    while reader.at < reader.end:
        at = reader.at
        tag = read_tag(&reader)
        if is_post(tag):
            if command.method != tag >> 3:
                # Another member of the oneof: what the one before said is forgotten, but for text that is not UTF-8.
                command_begin(command, <uint8_t>(tag >> 3))
                reader.line_total = 0
                reader.identifier_total = 0
                reader.tender_total = 0
                reader.promo_code_total = 0
                memset(&reader.line, 0, sizeof(Fault))
                memset(&reader.tender, 0, sizeof(Fault))
                memset(&reader.promo_code, 0, sizeof(Fault))
                memset(&reader.sent, 0, 3 * sizeof(Stamp))
            outer = enter(&reader)
            read_command(&reader, command)
            leave(&reader, outer)
        else:
            skip(&reader, tag, at)
    if reader.broken != NULL:
        return refuse_malformed(&reader, outcome)
    return check(&reader, command, outcome)


cdef bint wire_decode_member(Slice part, const BalancesAsked* asked, Command* command, Outcome* outcome) noexcept nogil:
    cdef Reader reader
    reader_open(&reader, part.data, part.size)
    reader.depth = 1
    command_begin(command, METHOD_GET_BALANCE)
    read_member_fields(&reader, &command.member, False, -1)
    # wire_batch has looked at these.
    command.wallet = asked.wallet
    if asked.wallet.size != 0:
        command.given |= GIVEN_WALLET
    command.origins = asked.origins
    memcpy(command.origin, asked.origin, sizeof(asked.origin))
    if reader.broken != NULL:
        return refuse_malformed(&reader, outcome)
    if reader.encoding.field != 0:
        return refuse_text(outcome, reader.encoding.field, reader.encoding.index, reader.encoding.text)
    return check_member(&reader, &command.member, False, -1, outcome)


# --- writing -----------------------------------------------------------------------------------------------------

cdef void out_wallet_name(Out* out, uint8_t tag, const Program* program, uint64_t wallet) noexcept nogil:
    if wallet < program.wallet_count:
        out_bytes(out, tag, program.wallets[wallet].name, program.wallets[wallet].name_size)


cdef void out_wallet(Out* out, uint8_t tag, const Program* program, uint64_t wallet, int64_t posted, int64_t pending, int64_t reserved,
                     const WalletView* view) noexcept nogil:
    # view: where the next expiries stand; NULL: not asked.
    cdef uint32_t i
    cdef uint8_t* inner
    cdef uint8_t* body = out_open(out, tag)
    out_wallet_name(out, 10, program, wallet)
    out_int(out, 16, posted)
    out_int(out, 24, pending)
    out_int(out, 32, reserved)
    out_int(out, 40, posted - pending - reserved)
    if view != NULL:
        for i in range(view.expiry_count):
            inner = out_open(out, 50)
            out_time(out, 10, view.expiry_time_us[i])
            out_int(out, 16, view.expiry_points[i])
            out_close(out, inner)
    out_close(out, body)


cdef void out_awards(Out* out, uint8_t tag, const Slice* section, const uint8_t* room_end) noexcept nogil:
    # None where room_end is NULL. The core never writes more than fit; the check is for bytes that somebody else wrote.
    cdef Cursor cursor
    cdef uint64_t line, rule
    cdef int64_t points
    cdef uint8_t* body
    cursor_open(&cursor, section)
    while cursor_more(&cursor) and out.at < room_end:
        line = get_varint(&cursor)
        rule = get_varint(&cursor)
        get_varint(&cursor)
        points = get_signed(&cursor)
        body = out_open(out, tag)
        out_int(out, 8, <int64_t>line)
        out_int(out, 16, <int64_t>rule)
        out_int(out, 24, points)
        out_close(out, body)


cdef void out_entry(Out* out, uint8_t tag, const EntryView* view, uint64_t sequence, const uint8_t* room_end) noexcept nogil:
    cdef int64_t earned = 0
    cdef int64_t burned = 0
    cdef int64_t expired = 0
    cdef int64_t adjusted = 0
    cdef int64_t points
    cdef uint8_t account
    cdef Cursor cursor
    cdef uint8_t* body = out_open(out, tag)
    cursor_open(&cursor, &view.sections[SECTION_POSTINGS])
    while cursor_more(&cursor):
        account = get_byte(&cursor)
        get_varint(&cursor)
        points = get_signed(&cursor)
        if account == ACCOUNT_ISSUED:
            earned -= points
        elif account == ACCOUNT_REDEEMED:
            burned += points
        elif account == ACCOUNT_EXPIRED:
            expired += points
        elif account == ACCOUNT_ADJUSTED:
            adjusted -= points
    out_int(out, 8, <int64_t>sequence)
    out_time(out, 18, view.header.time_us)
    out_int(out, 24, view.header.kind)
    out_int(out, 32, view.header.member)
    out_int(out, 40, earned)
    out_int(out, 48, burned)
    out_int(out, 56, expired)
    out_int(out, 64, deciding_program(view))
    out_awards(out, 74, &view.sections[SECTION_AWARDS], room_end)
    out_int(out, 80, adjusted)
    out_close(out, body)


cdef void out_after(Out* out, uint8_t tag, const Program* program, const EntryView* view) noexcept nogil:
    cdef uint64_t wallet
    cdef int64_t posted, pending, reserved
    cdef uint32_t count = 0
    cdef Cursor cursor
    cursor_open(&cursor, &view.sections[SECTION_AFTER])
    while cursor_more(&cursor) and count < WALLETS_MAX:
        wallet = get_varint(&cursor)
        posted = get_signed(&cursor)
        pending = get_signed(&cursor)
        reserved = get_signed(&cursor)
        out_wallet(out, tag, program, wallet, posted, pending, reserved, NULL)
        count += 1


cdef void out_reservation(Out* out, uint8_t tag, const Program* program, const EntryView* view) noexcept nogil:
    cdef Cursor cursor
    cdef uint64_t reservation_id, wallet
    cdef uint8_t state
    cdef int64_t reserved, captured, expire_delta_us
    cdef uint8_t* body
    if view.sections[SECTION_RESERVATION].data == NULL:
        return
    cursor_open(&cursor, &view.sections[SECTION_RESERVATION])
    reservation_id = get_varint(&cursor)
    state = get_byte(&cursor)
    wallet = get_varint(&cursor)
    reserved = get_signed(&cursor)
    captured = get_signed(&cursor)
    expire_delta_us = get_signed(&cursor)
    body = out_open(out, tag)
    out_int(out, 8, <int64_t>reservation_id)
    out_int(out, 16, state)
    out_wallet_name(out, 26, program, wallet)
    out_int(out, 32, reserved)
    out_int(out, 40, captured)
    out_time(out, 50, view.header.time_us + expire_delta_us)
    out_close(out, body)


cdef int64_t out_line_amounts(Out* out, uint32_t tag, const Slice* section) noexcept nogil:
    # LineAmounts; returns their sum.
    cdef Cursor cursor
    cdef uint64_t line
    cdef int64_t amount
    cdef int64_t sum = 0
    cdef uint32_t count = 0
    cdef uint8_t* body
    cursor_open(&cursor, section)
    while cursor_more(&cursor) and count < LINES_MAX:
        line = get_varint(&cursor)
        amount = <int64_t>get_varint(&cursor)
        body = out_open(out, tag)
        out_int(out, 8, <int64_t>(line & 0xFFFF))
        out_int(out, 16, amount)
        out_close(out, body)
        sum += amount
        count += 1
    return sum


cdef void out_standing(Out* out, uint32_t tag, const Slice* section, const QuoteView* quote) noexcept nogil:
    # quote: also what is missing to the next level; NULL: of an entry, which does not know it.
    cdef Cursor cursor
    cdef Slice before, after
    cdef int64_t until
    cdef int32_t year, month, day
    cdef uint8_t* body
    cursor_open(&cursor, section)
    get_signed(&cursor)
    get_varint(&cursor)
    get_byte(&cursor)
    get_byte(&cursor)
    until = <int64_t>get_varint(&cursor)
    before = get_text(&cursor)
    after = get_text(&cursor)
    if cursor.broken or before.size == 0:
        return
    body = out_open(out, tag)
    out_bytes(out, 10, before.data, before.size)
    out_bytes(out, 18, after.data, after.size)
    if 0 <= until < 84_006:     # 2200-01-01
        civil_from_day(<int32_t>until, &year, &month, &day)
        out_int(out, 24, year * 10_000 + month * 100 + day)
    if quote != NULL:
        out_missing(out, 34, quote)
    out_close(out, body)


cdef void out_changed(Out* out, uint32_t tag, const Slice* section) noexcept nogil:
    # QuoteDifferences of an entry that a token decided.
    cdef Cursor cursor
    cdef uint8_t differences[8]
    cdef uint8_t changed
    cdef uint32_t i, count = 0
    cursor_open(&cursor, section)
    get_varint(&cursor)
    get_signed(&cursor)
    changed = get_byte(&cursor)
    for i in range(8u):
        if changed >> i & 1:
            differences[count] = <uint8_t>(i + 1)
            count += 1
    out_bytes(out, tag, differences, count)


cdef void out_result(Out* out, uint32_t tag, const EntryView* view) noexcept nogil:
    out_result_of(out, tag, view, NULL)


cdef void out_result_of(Out* out, uint32_t tag, const EntryView* view, const QuoteView* quote) noexcept nogil:
    cdef Cursor cursor
    cdef Slice text
    cdef uint8_t kind
    cdef uint64_t notices = 0
    cdef uint64_t index
    cdef uint32_t count = 0
    cdef uint8_t* inner
    cdef uint8_t* body
    if view.sections[SECTION_RULES_STATE].data == NULL:
        return
    body = out_open(out, tag)
    out_int(out, 16, out_line_amounts(out, 10, &view.sections[SECTION_DISCOUNTS]))
    out_int(out, 32, out_line_amounts(out, 26, &view.sections[SECTION_PAID]))
    out_standing(out, 42, &view.sections[SECTION_RULES_STATE], quote)
    cursor_open(&cursor, &view.sections[SECTION_ENTITLEMENTS])
    while cursor_more(&cursor) and count < 64:
        text = get_text(&cursor)
        out_bytes(out, 50, text.data, text.size)
        count += 1
    cursor_open(&cursor, &view.sections[SECTION_NOTICES])
    if cursor_more(&cursor):
        notices = get_varint(&cursor)
    count = 0
    while cursor_more(&cursor) and count < NOTICES_TOLD_MAX:
        kind = get_byte(&cursor)
        index = get_varint(&cursor)
        text = get_text(&cursor)
        inner = out_open(out, 58)
        out_int(out, 8, kind)
        out_int(out, 16, <int64_t>(index & 0xFFFF))
        out_bytes(out, 26, text.data, text.size if text.size <= SKU_BYTES_MAX else SKU_BYTES_MAX)
        out_close(out, inner)
        count += 1
    out_int(out, 64, <int64_t>(notices & 0xFFFF))
    out_changed(out, 74, &view.sections[SECTION_QUOTE])
    out_close(out, body)


include "_wire_quote.pxi"


cdef void out_refusal(Out* out, uint8_t tag, const Program* program, uint8_t method, const Outcome* outcome) noexcept nogil:
    # A google.rpc.Status inside a message. Without a row: INTERNAL without details, which means that the outcome is unknown.
    cdef uint8_t message[MESSAGE_ROOM]
    cdef uint32_t message_size = 0
    cdef uint32_t size
    cdef uint8_t* body = out_open(out, tag)
    size = wire_error(program, method, outcome, out.at, DETAILS_ROOM, message, MESSAGE_ROOM, &message_size)
    out.at += size
    if size == 0:
        out_int(out, 8, GRPC_INTERNAL)
    out_close(out, body)


cdef void out_operation(Out* out, const Program* program, const EntryView* view, const Outcome* outcome,
                        const uint8_t* room_end) noexcept nogil:
    # GetOperationResponse of an entry: what it did, or the refusal that it remembers.
    cdef Outcome refusal
    cdef Cursor cursor
    if view.header.status == STATUS_OK:
        out_entry(out, 10, view, outcome.sequence, room_end)
        out_after(out, 26, program, view)
        out_reservation(out, 34, program, view)
        out_result(out, 42, view)
        return
    outcome_forget(&refusal)
    refusal.status = view.header.status
    cursor_open(&cursor, &view.sections[SECTION_REFUSAL])
    refusal.a = get_signed(&cursor)
    refusal.b = get_signed(&cursor)
    out_refusal(out, 18, program, METHOD_GET_OPERATION, &refusal)


cdef void out_rung(Out* out, uint8_t tag, const Outcome* outcome) noexcept nogil:
    # The rung and, as the field behind it, its end; nothing of a member who may do everything.
    if outcome.balance.rung != RUNG_OK:
        out_int(out, tag, outcome.balance.rung + 1)
        if outcome.balance.rung_until_s != 0:
            out_time(out, tag + 10, outcome.balance.rung_until_s * <int64_t>1000000)


cdef void out_balance(Out* out, const Program* program, const Outcome* outcome) noexcept nogil:
    cdef const WalletView* view
    cdef uint32_t i
    out_int(out, 8, outcome.balance.member)
    for i in range(outcome.balance.wallet_count):
        view = &outcome.balance.wallets[i]
        out_wallet(out, 18, program, view.wallet, view.posted_points, view.pending_points, view.reserved_points, view)
    out_int(out, 24, <int64_t>outcome.balance.sequence)
    out_time(out, 34, outcome.balance.read_time_us)
    out_rung(out, 40, outcome)


cdef void out_returned(Out* out, const EntryView* view) noexcept nogil:
    # What a ReturnReceiptResponse says beside its entry.
    cdef Cursor cursor
    cdef int64_t missing = 0
    cursor_open(&cursor, &view.sections[SECTION_RETURNED])
    out_int(out, 32, <int64_t>get_varint(&cursor))
    out_int(out, 40, <int64_t>get_varint(&cursor))
    while cursor_more(&cursor):
        get_varint(&cursor)
        missing += <int64_t>get_varint(&cursor)
    out_int(out, 48, missing)


cdef uint32_t wire_answer(const Program* program, uint8_t method, const Outcome* outcome, uint8_t* out) noexcept nogil:
    cdef Out writer
    cdef EntryView view
    cdef uint8_t* body
    # Awards may go up to here: behind it is room for one award, all wallets and the result.
    cdef const uint8_t* room_end = out + ANSWER_BYTES_MAX - WALLETS_MAX * 160 - RESULT_BYTES_MAX - 512
    writer.at = out
    if method == METHOD_GET_BALANCE:
        out_balance(&writer, program, outcome)
        return <uint32_t>(writer.at - out)
    if method == METHOD_RULES_ORDER:    # the control port's own, no message
        memcpy(out, &outcome.rules, sizeof(RulesAnswer))
        return sizeof(RulesAnswer)
    if method == METHOD_KEYS_STEP:      # what was found stands in its search
        out[0] = 1
        return 1
    if outcome.entry == NULL or not entry_view(outcome.entry, outcome.entry_size, &view):
        return 0
    if method == METHOD_GET_OPERATION:
        out_operation(&writer, program, &view, outcome, room_end)
        return <uint32_t>(writer.at - out)
    if method == METHOD_QUOTE:
        out_quote(&writer, program, &view, <const QuoteView*>outcome.quote, room_end, out + ANSWER_BYTES_MAX)
        return <uint32_t>(writer.at - out)
    if method == METHOD_SET_SEGMENTS:
        body = out_open(&writer, 10)        # the one result of the one change
        out_entry(&writer, 10, &view, outcome.sequence, room_end)
        out_int(&writer, 24, outcome.replayed != 0)
        out_close(&writer, body)
        return <uint32_t>(writer.at - out)
    out_entry(&writer, 10, &view, outcome.sequence, room_end)
    if method == METHOD_ENROLL or method == METHOD_LINK or method == METHOD_UNLINK or method == METHOD_SET_ATTRIBUTES or method == METHOD_SET_RUNG or method == METHOD_ANSWER_CHALLENGE\
            or method == METHOD_CHANGE_BLOCKS:
        out_int(&writer, 16, outcome.replayed != 0)
        if method == METHOD_ENROLL:
            out_int(&writer, 24, view.header.flags & FLAG_OPENED != 0)
        elif method == METHOD_LINK:
            out_int(&writer, 24, view.sections[SECTION_IDENTIFIERS].data != NULL)
        return <uint32_t>(writer.at - out)
    out_after(&writer, 18, program, &view)
    out_int(&writer, 24, outcome.replayed != 0)
    if method == METHOD_RETURN:
        out_returned(&writer, &view)
        return <uint32_t>(writer.at - out)
    out_reservation(&writer, 34, program, &view)
    if method == METHOD_EARN or method == METHOD_COMMIT:
        out_result(&writer, 34 if method == METHOD_EARN else 42, &view)
    return <uint32_t>(writer.at - out)


cdef uint32_t wire_post_result(const Program* program, uint8_t method, const Outcome* outcome, uint8_t* out) noexcept nogil:
    cdef Out writer
    cdef EntryView view
    cdef uint8_t* body
    cdef uint8_t* error
    writer.at = out
    body = out_open(&writer, 10)
    if outcome.status != STATUS_OK:
        out_refusal(&writer, 18, program, method, outcome)
        out_int(&writer, 24, outcome.replayed != 0)
    elif outcome.entry != NULL and entry_view(outcome.entry, outcome.entry_size, &view):
        out_entry(&writer, 10, &view, outcome.sequence, NULL)
        out_int(&writer, 24, outcome.replayed != 0)
        out_reservation(&writer, 34, program, &view)
    else:
        error = out_open(&writer, 18)       # its entry is damaged: unknown
        out_int(&writer, 8, GRPC_INTERNAL)
        out_close(&writer, error)
    out_close(&writer, body)
    return <uint32_t>(writer.at - out)


cdef uint32_t wire_balance_result(const Program* program, const Outcome* outcome, uint8_t* out) noexcept nogil:
    cdef const WalletView* view
    cdef Out writer
    cdef uint8_t* body
    cdef uint8_t* balance
    cdef uint32_t i
    writer.at = out
    body = out_open(&writer, 10)
    if outcome.status != STATUS_OK:
        out_refusal(&writer, 18, program, METHOD_GET_BALANCE, outcome)
    else:
        balance = out_open(&writer, 10)
        out_int(&writer, 8, outcome.balance.member)
        for i in range(outcome.balance.wallet_count):
            view = &outcome.balance.wallets[i]
            out_wallet(&writer, 18, program, view.wallet, view.posted_points, view.pending_points, view.reserved_points, NULL)
        out_int(&writer, 24, <int64_t>outcome.balance.sequence)
        out_rung(&writer, 32, outcome)
        out_close(&writer, balance)
    out_close(&writer, body)
    return <uint32_t>(writer.at - out)


cdef uint32_t wire_balances_end(uint64_t sequence, int64_t read_time_us, uint8_t* out) noexcept nogil:
    cdef Out writer
    writer.at = out
    out_int(&writer, 16, <int64_t>sequence)
    out_time(&writer, 26, read_time_us)
    return <uint32_t>(writer.at - out)


# --- refusals ----------------------------------------------------------------------------------------------------
# Nobody is in a hurry here; every piece is bounded: text that does not fit its room is cut.

cdef struct Text:               # text under construction
    uint8_t* data
    uint32_t size
    uint32_t max                # bytes


cdef struct Parts:              # what an outcome has to say, as text
    uint8_t field_data[FIELD_ROOM]
    uint8_t value_data[VALUE_ROOM]
    uint8_t rule_data[RULE_ROOM]
    uint8_t a_data[NUMBER_ROOM]
    uint8_t b_data[NUMBER_ROOM]
    Text field
    Text value
    Text rule
    Text a
    Text b
    bint quoted                 # the value is text as sent
    uint32_t cut_from           # bytes of the value as sent, when only its beginning is shown; 0: shown whole


cdef struct Pair:               # of ErrorInfo.metadata
    const char* key
    const uint8_t* value
    uint32_t value_size


cdef void add(Text* text, const void* data, uint32_t size) noexcept nogil:
    if size > text.max - text.size:
        size = text.max - text.size
    memcpy(text.data + text.size, data, size)
    text.size += size


cdef void add_string(Text* text, const char* string) noexcept nogil:
    add(text, string, <uint32_t>strlen(string))


cdef void add_number(Text* text, int64_t value) noexcept nogil:
    cdef uint8_t digits[NUMBER_ROOM]
    cdef uint32_t at = NUMBER_ROOM
    cdef uint64_t rest = <uint64_t>value if value >= 0 else 0 - <uint64_t>value
    while True:
        at -= 1
        digits[at] = <uint8_t>(48 + rest % 10)
        rest //= 10
        if rest == 0:
            break
    if value < 0:
        at -= 1
        digits[at] = c"-"
    add(text, digits + at, NUMBER_ROOM - at)


cdef void add_padded(Text* text, int64_t value, uint32_t width) noexcept nogil:
    # With leading zeros; value >= 0.
    cdef int64_t bound = 10
    cdef uint32_t i
    for i in range(1, width):
        if value < bound:
            add_string(text, "0")
        bound *= 10
    add_number(text, value)


cdef void add_time(Text* text, int64_t time_us) noexcept nogil:
    # RFC 3339, UTC, down to the microsecond. Outside the years 1970..2199, where the calendar here ends, the plain number.
    cdef int64_t seconds = div_floor(time_us, 1_000_000)
    cdef int64_t days = div_floor(seconds, 86_400)
    cdef int64_t second = seconds - days * 86_400
    cdef int32_t year, month, day
    if days < 0 or days >= 84_006:
        add_number(text, seconds)
        add_string(text, " seconds since 1970")
        return
    civil_from_day(<int32_t>days, &year, &month, &day)
    add_padded(text, year, 4)
    add_string(text, "-")
    add_padded(text, month, 2)
    add_string(text, "-")
    add_padded(text, day, 2)
    add_string(text, "T")
    add_padded(text, second // 3600, 2)
    add_string(text, ":")
    add_padded(text, second // 60 % 60, 2)
    add_string(text, ":")
    add_padded(text, second % 60, 2)
    add_string(text, ".")
    add_padded(text, time_us - seconds * 1_000_000, 6)
    add_string(text, "Z")


cdef uint32_t escaped(const uint8_t* data, uint32_t size, uint8_t* piece, uint32_t* piece_size) noexcept nogil:
    # One character as people can read it: control characters and bytes that are not UTF-8 as \\xNN, quotes and backslashes with a
    # backslash. Returns the bytes taken from data (size >= 1).
    cdef const char* hexadecimal = "0123456789abcdef"
    cdef uint32_t taken = character_size(data, size)
    cdef uint32_t i
    if taken == 0 or data[0] < 0x20 or data[0] == 0x7F or (data[0] == 0xC2 and data[1] < 0xA0):
        if taken == 0:
            taken = 1
        for i in range(taken):
            piece[4 * i] = c"\\"
            piece[4 * i + 1] = c"x"
            piece[4 * i + 2] = hexadecimal[data[i] >> 4]
            piece[4 * i + 3] = hexadecimal[data[i] & 15]
        piece_size[0] = 4 * taken
        return taken
    piece_size[0] = 0
    if data[0] == c'"' or data[0] == c"\\":
        piece[0] = c"\\"
        piece_size[0] = 1
    memcpy(piece + piece_size[0], data, taken)
    piece_size[0] += taken
    return taken


cdef void add_value_text(Parts* parts, Slice sent) noexcept nogil:
    cdef uint8_t piece[8]
    cdef uint32_t piece_size = 0
    cdef uint32_t i = 0
    cdef uint32_t taken
    parts.quoted = True
    while i < sent.size:
        taken = escaped(sent.data + i, sent.size - i, piece, &piece_size)
        if parts.value.size + piece_size > VALUE_SHOWN_BYTES_MAX:
            parts.cut_from = sent.size
            return
        add(&parts.value, piece, piece_size)
        i += taken


cdef bint is_personal(uint16_t field) noexcept nogil:
    # Cards, phones, e-mail addresses, app identifiers and devices appear nowhere: not in an answer that a till may log either.
    if field == FIELD_ORIGIN_DEVICE or field == FIELD_ORIGIN_PAYMENT_CARD or field == FIELD_ADD or field == FIELD_REMOVE:
        return True
    return field == FIELD_MEMBER or FIELD_MEMBER_CARD <= field <= FIELD_MEMBER_APP or field == FIELD_IDENTIFIERS or FIELD_IDENTIFIER <= field <= FIELD_IDENTIFIER_APP


cdef void add_field(Text* text, uint16_t field, int32_t index) noexcept nogil:
    # The name on the wire, with the index where the field repeats: receipt.lines[3].sku, identifiers[0].card.
    cdef const char* name = FIELD_ROWS[field].name
    cdef uint32_t prefix = 0
    if index >= 0 and (FIELD_RECEIPT_LINES <= field <= FIELD_LINE_REGULAR_AMOUNT_MINOR or field == FIELD_LINE_WEIGHED):
        prefix = <uint32_t>strlen(FIELD_ROWS[FIELD_RECEIPT_LINES].name)
        add(text, name, prefix)
    elif index >= 0 and FIELD_RECEIPT_TENDERS <= field <= FIELD_RECEIPT_TENDERS_AMOUNT_MINOR:
        prefix = <uint32_t>strlen(FIELD_ROWS[FIELD_RECEIPT_TENDERS].name)
        add(text, name, prefix)
    elif index >= 0 and FIELD_MEMBER <= field <= FIELD_MEMBER_APP:
        prefix = <uint32_t>strlen(FIELD_ROWS[FIELD_MEMBER].name)
        add_string(text, FIELD_ROWS[FIELD_IDENTIFIERS].name)
    elif index >= 0:
        prefix = <uint32_t>strlen(name)
        add(text, name, prefix)
    if index >= 0:
        add_string(text, "[")
        add_number(text, index)
        add_string(text, "]")
    add_string(text, name + prefix)


cdef void add_payment(Text* text, uint16_t field) noexcept nogil:
    # CommitReceipt has these fields inside its payment.
    if field == FIELD_WALLET or field == FIELD_POINTS:
        add_string(text, "burn.")
    elif field == FIELD_RESERVATION_ID or field == FIELD_CAPTURE_POINTS:
        add_string(text, "capture.")


cdef void add_value(Parts* parts, const Outcome* outcome) noexcept nogil:
    cdef uint16_t field = outcome.field
    cdef bint is_time = (field == FIELD_SENT_TIME or field == FIELD_PURCHASE_TIME or field == FIELD_RECEIPT_PURCHASE_TIME
                         or field == FIELD_AS_OF_TIME)
    if outcome.value_kind == VALUE_TEXT and is_personal(field):
        add_string(&parts.value, "(not shown)")
    elif outcome.value_kind == VALUE_TEXT:
        add_value_text(parts, outcome.text)
    elif outcome.value_kind == VALUE_SECONDS:
        add_number(&parts.value, outcome.value)
        add_string(&parts.value, " seconds")
    elif outcome.value_kind == VALUE_NANOS:
        add_number(&parts.value, outcome.value)
        add_string(&parts.value, " nanos")
    elif outcome.value_kind == VALUE_NUMBER and is_time:
        add_time(&parts.value, outcome.value)
    elif outcome.value_kind == VALUE_NUMBER and (field == FIELD_TTL or field == FIELD_LASTS):
        add_number(&parts.value, outcome.value)
        add_string(&parts.value, " us")
    elif outcome.value_kind == VALUE_NUMBER:
        add_number(&parts.value, outcome.value)


cdef void part_open(Text* text, uint8_t* data, uint32_t max) noexcept nogil:
    text.data = data
    text.size = 0
    text.max = max


cdef void take_apart(Parts* parts, const Program* program, uint8_t method, const Outcome* outcome) noexcept nogil:
    part_open(&parts.field, parts.field_data, FIELD_ROOM)
    part_open(&parts.value, parts.value_data, VALUE_ROOM)
    part_open(&parts.rule, parts.rule_data, RULE_ROOM)
    part_open(&parts.a, parts.a_data, NUMBER_ROOM)
    part_open(&parts.b, parts.b_data, NUMBER_ROOM)
    parts.quoted = False
    parts.cut_from = 0
    add_number(&parts.a, outcome.a)
    add_number(&parts.b, outcome.b)
    # A remembered refusal says what its entry says, and that has no field: the repeat must read like the first answer.
    if STATUS_ROWS[outcome.status].remembered:
        return
    if outcome.field > 0 and outcome.field < FIELD_COUNT and FIELD_ROWS[outcome.field].name != NULL:
        if method == METHOD_COMMIT:
            add_payment(&parts.field, outcome.field)
        add_field(&parts.field, outcome.field, outcome.index)
        if outcome.status == STATUS_FIELD_INVALID:
            add_string(&parts.rule, FIELD_ROWS[outcome.field].rule)
            if outcome.field == FIELD_RECEIPT_CURRENCY_CODE and program != NULL:
                add_string(&parts.rule, ", ")
                add_string(&parts.rule, program.currency)
    add_value(parts, outcome)


cdef void add_value_part(Text* message, const Parts* parts, uint8_t kind) noexcept nogil:
    if kind == VALUE_NONE:
        add_string(message, "not set")
        return
    if parts.quoted:
        add_string(message, '"')
    add(message, parts.value.data, parts.value.size)
    if parts.quoted:
        add_string(message, '"')
    if parts.cut_from:
        add_string(message, "... (")
        add_number(message, parts.cut_from)
        add_string(message, " bytes)")


cdef void fill_in(Text* message, const char* template, const Parts* parts, uint8_t value_kind) noexcept nogil:
    # {field} {value} {rule} {a} {b} of a row's message. The first letter tells them apart; other braces do not occur.
    cdef const char* at = template
    while at[0] != 0:
        if at[0] != c"{":
            add(message, at, 1)
            at += 1
            continue
        if at[1] == c"f":
            add(message, parts.field.data, parts.field.size)
        elif at[1] == c"v":
            add_value_part(message, parts, value_kind)
        elif at[1] == c"r":
            add(message, parts.rule.data, parts.rule.size)
        elif at[1] == c"a":
            add(message, parts.a.data, parts.a.size)
        elif at[1] == c"b":
            add(message, parts.b.data, parts.b.size)
        while at[0] != 0 and at[0] != c"}":
            at += 1
        if at[0] != 0:
            at += 1


cdef int precedes(const char* a, const char* b) noexcept nogil:
    while a[0] != 0 and a[0] == b[0]:
        a += 1
        b += 1
    return <uint8_t>a[0] < <uint8_t>b[0]


cdef void pair_add(Pair* pairs, uint32_t* count, const char* key, const void* value, uint32_t size) noexcept nogil:
    # Kept in the order of their keys, as a deterministic serialization writes a map.
    cdef uint32_t i = count[0]
    while i > 0 and precedes(key, pairs[i - 1].key):
        pairs[i] = pairs[i - 1]
        i -= 1
    pairs[i].key = key
    pairs[i].value = <const uint8_t*>value
    pairs[i].value_size = size
    count[0] += 1


cdef uint32_t metadata(Pair* pairs, const Parts* parts, const Outcome* outcome) noexcept nogil:
    cdef const StatusRow* row = &STATUS_ROWS[outcome.status]
    cdef uint32_t count = 0
    if parts.field.size:
        pair_add(pairs, &count, "field", parts.field.data, parts.field.size)
    if parts.rule.size:
        pair_add(pairs, &count, "rule", parts.rule.data, parts.rule.size)
    if outcome.value_kind != VALUE_NONE and not row.remembered:
        pair_add(pairs, &count, "value", parts.value.data, parts.value.size)
    if row.a[0] != 0:
        pair_add(pairs, &count, row.a, parts.a.data, parts.a.size)
    if row.b[0] != 0:
        pair_add(pairs, &count, row.b, parts.b.data, parts.b.size)
    if outcome.replayed:
        pair_add(pairs, &count, "replayed", b"true", 4)
    return count


cdef inline void out_string(Out* out, uint8_t tag, const char* string) noexcept nogil:
    out_bytes(out, tag, string, <uint32_t>strlen(string))


cdef void out_error_info(Out* out, const Parts* parts, const Outcome* outcome) noexcept nogil:
    cdef Pair pairs[METADATA_MAX]
    cdef uint32_t count = metadata(pairs, parts, outcome)
    cdef uint32_t i
    cdef uint8_t* pair
    cdef uint8_t* info
    cdef uint8_t* body = out_open(out, 26)
    out_string(out, 10, "type.googleapis.com/google.rpc.ErrorInfo")
    info = out_open(out, 18)
    out_string(out, 10, STATUS_ROWS[outcome.status].name)
    out_string(out, 18, ERROR_DOMAIN)
    for i in range(count):
        pair = out_open(out, 26)
        out_string(out, 10, pairs[i].key)
        # A map writes key and value also when they are empty.
        out_byte(out, 18)
        out_varint(out, pairs[i].value_size)
        memcpy(out.at, pairs[i].value, pairs[i].value_size)
        out.at += pairs[i].value_size
        out_close(out, pair)
    out_close(out, info)
    out_close(out, body)


cdef void out_retry_info(Out* out) noexcept nogil:
    cdef uint8_t* info
    cdef uint8_t* delay
    cdef uint8_t* body = out_open(out, 26)
    out_string(out, 10, "type.googleapis.com/google.rpc.RetryInfo")
    info = out_open(out, 18)
    delay = out_open(out, 10)
    out_int(out, 16, RETRY_DELAY_NANOS)
    out_close(out, delay)
    out_close(out, info)
    out_close(out, body)


cdef uint32_t wire_error(const Program* program, uint8_t method, const Outcome* outcome, uint8_t* details, uint32_t details_max,
                         uint8_t* message, uint32_t message_max, uint32_t* message_size) noexcept nogil:
    cdef Parts parts
    cdef Text text
    cdef Out out
    cdef uint8_t scratch[SCRATCH_ROOM]
    cdef uint32_t size
    part_open(&text, message, message_max)
    message_size[0] = 0
    if outcome.status >= STATUS_COUNT or STATUS_ROWS[outcome.status].name == NULL:
        # No such row: the caller gets INTERNAL without details, which means that the outcome is unknown.
        add_string(&text, "the outcome has no known status")
        message_size[0] = text.size
        return 0
    take_apart(&parts, program, method, outcome)
    fill_in(&text, STATUS_ROWS[outcome.status].message, &parts, outcome.value_kind)
    message_size[0] = text.size
    out.at = scratch
    out_int(&out, 8, STATUS_ROWS[outcome.status].grpc_code)
    out_bytes(&out, 18, message, text.size)
    out_error_info(&out, &parts, outcome)
    if STATUS_ROWS[outcome.status].retryable:
        out_retry_info(&out)
    size = <uint32_t>(out.at - scratch)
    if size > details_max:
        return 0
    memcpy(details, scratch, size)
    return size


cdef int wire_grpc_code(uint16_t status) noexcept nogil:
    if status >= STATUS_COUNT or STATUS_ROWS[status].name == NULL:
        return GRPC_INTERNAL
    return STATUS_ROWS[status].grpc_code
