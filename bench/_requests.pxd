# Leaves: makes the requests of a chain's tills, byte by byte, without Python and without allocation.
# Not for sending (bench/_load.pyx) and not for the demo, whose requests are real receipts (bench/demo.py).
# cimported by bench/_load.pyx. The bytes are checked against google.protobuf in tests/bench/test_load.py.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove
from ledger._layout cimport (
    METHOD_BATCH_POST, METHOD_BURN, METHOD_CAPTURE, METHOD_COMMIT, METHOD_EARN, METHOD_ENROLL, METHOD_GET_BALANCE, METHOD_GET_OPERATION,
    METHOD_QUOTE, METHOD_RELEASE, METHOD_RESERVE,
)

cdef extern from *:
    """
    static const char LOAD_DIGIT_PAIRS[] =
        "00010203040506070809101112131415161718192021222324252627282930313233343536373839404142434445464748495051525354555657585960616263"
        "646566676869707172737475767778798081828384858687888990919293949596979899";
    static inline uint64_t load_byte_swap(uint64_t value) { return __builtin_bswap64(value); }
    """
    const char* DIGIT_PAIRS "LOAD_DIGIT_PAIRS"
    uint64_t byte_swap "load_byte_swap"(uint64_t value) noexcept nogil

cdef enum:
    REQUEST_ROOM = 768              # bytes of the largest request made here (6 lines, ~320), with slack
    PREFIX_BYTES = 5                # gRPC: flag byte and length
    FRAME_ROOM = 6                  # around a command of a batch: two tags, two lengths of at most two bytes (16383)
    LINES_PER_RECEIPT = 6
    POINTS_ASKED_MAX = 5            # burns and holds stay small, so that members do not run dry
    PREPARE_AMOUNT_MINOR = 1000000  # the preparing earn: 10,000.00
    CODE_BYTES = 24                 # of one pre-encoded article: sku field 15, category field 6
    CARD_DIGITS = 13
    PHONE_BYTES = 12                # '+48' and nine digits
    HELD_COUNT = 4096               # reservations remembered
    SENT_COUNT = 1024               # answered request ids remembered
    ID_BYTES = 32
    HOLD_TTL_S = 60                 # abandoned holds of the load go away soon

cdef struct Alias:                  # Walker's alias table: one random word, one or two look-ups
    uint32_t* threshold             # of 2^32: below it the drawn index stands
    uint32_t* other                 # above it, this one
    uint32_t count

cdef struct Article:
    uint8_t code[CODE_BYTES]        # Line.sku and Line.category, encoded
    uint32_t code_size
    uint32_t price_minor

cdef struct Tables:                 # what the chain looks like; read only while a run goes
    Alias members                   # by popularity, over card numbers in an order of its own
    Alias articles
    Alias stores
    Article* article
    uint32_t tills_per_store
    int32_t business_day            # yyyymmdd, of runs whose times are now
    uint8_t currency[3]

cdef struct Hold:
    int64_t reservation_id
    uint32_t member

cdef struct SentWrite:
    uint8_t request_id[ID_BYTES]
    int64_t sent_s
    int64_t sent_ns

cdef struct Maker:                  # the state of one generator
    const Tables* tables
    uint64_t random
    uint64_t counter                # of requests made
    uint64_t run                    # first half of every request id
    uint32_t run_number             # milliseconds of the day of the start: first part of every receipt number
    int32_t business_day            # yyyymmdd, of the receipts made from now on
    int64_t day                     # since 1970, which business_day was worked out from
    uint32_t held_count             # reservations at hand, newest last
    uint32_t held_first             # ring
    uint32_t sent_count             # answered writes at hand
    uint32_t sent_next              # ring
    Hold held[HELD_COUNT]
    SentWrite sent[SENT_COUNT]

cdef struct Made:                   # what the answer's reader needs to know of a request
    SentWrite write                 # for writes
    uint32_t member
    uint32_t size                   # bytes, with the prefix
    uint32_t commands               # of a batch
    uint8_t method                  # may differ from the asked one; see make_request


cdef struct Preparation:            # how members are prepared
    uint8_t earn                    # points for an account, instead of opening it
    uint8_t phone                   # a second identifier
    uint8_t timed                   # the receipt says when it was, as it is not now
    uint32_t stride                 # from one member to the next


cdef inline uint64_t random_next(uint64_t* state) noexcept nogil:
    # splitmix64 (Steele, Lea, Flood 2014).
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


cdef inline uint32_t random_below(uint64_t* state, uint32_t count) noexcept nogil:
    return <uint32_t>(((random_next(state) >> 32) * count) >> 32)


cdef inline uint32_t alias_draw(const Alias* alias, uint64_t* state) noexcept nogil:
    cdef uint64_t word = random_next(state)
    cdef uint32_t index = <uint32_t>(((word >> 32) * alias.count) >> 32)
    return index if <uint32_t>word < alias.threshold[index] else alias.other[index]


cdef inline uint8_t* put_varint(uint8_t* at, uint64_t value) noexcept nogil:
    while value >= 128:
        at[0] = <uint8_t>(value | 128)
        at += 1
        value >>= 7
    at[0] = <uint8_t>value
    return at + 1


cdef inline uint8_t* put_number(uint8_t* at, uint8_t tag, uint64_t value) noexcept nogil:
    # A varint field; proto3 leaves zeros out.
    if value == 0:
        return at
    at[0] = tag
    return put_varint(at + 1, value)


cdef inline uint8_t* put_digits(uint8_t* at, uint64_t value, uint32_t count) noexcept nogil:
    cdef uint32_t left = count
    while left >= 2:
        left -= 2
        memcpy(at + left, DIGIT_PAIRS + value % 100 * 2, 2)
        value /= 100
    if left:
        at[0] = <uint8_t>(48 + value % 10)
    return at + count


cdef inline void put_hex_half(uint8_t* at, uint64_t value) noexcept nogil:
    # 32 bits: a nibble per byte, then all eight digits at once.
    value = (value | value << 16) & <uint64_t>0x0000FFFF0000FFFF
    value = (value | value << 8) & <uint64_t>0x00FF00FF00FF00FF
    value = (value | value << 4) & <uint64_t>0x0F0F0F0F0F0F0F0F
    value += <uint64_t>0x3030303030303030 + ((value + <uint64_t>0x0606060606060606) >> 4 & <uint64_t>0x0101010101010101) * 39
    value = byte_swap(value)
    memcpy(at, &value, 8)


cdef inline uint8_t* put_hex(uint8_t* at, uint64_t value) noexcept nogil:
    put_hex_half(at, value >> 32)
    put_hex_half(at + 8, <uint32_t>value)
    return at + 16


cdef inline uint8_t* put_time(uint8_t* at, uint8_t tag, int64_t seconds, int64_t nanos) noexcept nogil:
    cdef uint8_t* start = at
    at += 2
    at = put_number(at, 0x08, <uint64_t>seconds)
    at = put_number(at, 0x10, <uint64_t>nanos)
    start[0] = tag
    start[1] = <uint8_t>(at - start - 2)
    return at


cdef inline uint8_t* put_identity(uint8_t* at, Maker* maker, int64_t now_s, int64_t now_ns, Made* made) noexcept nogil:
    # request_id and sent_time, fields 1 and 2 of every write.
    at[0] = 0x0A
    at[1] = ID_BYTES
    put_hex(at + 2, maker.run)
    put_hex(at + 18, maker.counter)
    memcpy(made.write.request_id, at + 2, ID_BYTES)
    made.write.sent_s = now_s
    made.write.sent_ns = now_ns
    return put_time(at + 2 + ID_BYTES, 0x12, now_s, now_ns)


cdef inline uint8_t* put_member(uint8_t* at, uint8_t tag, uint32_t member) noexcept nogil:
    # MemberRef by card: an EAN-like number in the range shops keep for themselves.
    at[0] = tag
    at[1] = CARD_DIGITS + 2
    at[2] = 0x12
    at[3] = CARD_DIGITS
    return put_digits(at + 4, <uint64_t>2900000000000 + member, CARD_DIGITS)


cdef inline uint8_t* put_phone(uint8_t* at, uint8_t tag, uint32_t member) noexcept nogil:
    # MemberRef by phone: a number in a country, one a card.
    at[0] = tag
    at[1] = PHONE_BYTES + 2
    at[2] = 0x1A
    at[3] = PHONE_BYTES
    memcpy(at + 4, <const char*>b"+48", 3)
    return put_digits(at + 7, <uint64_t>600000000 + member, PHONE_BYTES - 3)


cdef inline uint8_t* put_new_member(uint8_t* at, uint8_t tag, const Maker* maker) noexcept nogil:
    # MemberRef by a card that nobody has yet.
    at[0] = tag
    at[1] = 23
    at[2] = 0x12
    at[3] = 21
    at[4] = 56      # '8': outside the prepared range
    put_digits(at + 5, maker.run_number, 8)
    return put_digits(at + 13, maker.counter, 12)


cdef inline uint8_t* put_receipt_key(uint8_t* at, uint8_t tag, Maker* maker) noexcept nogil:
    cdef uint8_t* start = at
    at += 2
    at[0] = 0x0A
    at[1] = 5
    at[2] = 83      # 'S'
    at = put_digits(at + 3, 1 + alias_draw(&maker.tables.stores, &maker.random), 4)
    at[0] = 0x12
    at[1] = 2
    at = put_digits(at + 2, 1 + random_below(&maker.random, maker.tables.tills_per_store), 2)
    at = put_number(at, 0x18, <uint64_t>maker.business_day)
    at[0] = 0x22
    at[1] = 18
    put_digits(at + 2, maker.run_number, 8)
    at = put_digits(at + 10, maker.counter, 10)
    start[0] = tag
    start[1] = <uint8_t>(at - start - 2)
    return at


cdef inline uint8_t* put_receipt(uint8_t* at, uint8_t tag, Maker* maker, int64_t now_s) noexcept nogil:
    # A receipt of LINES_PER_RECEIPT lines: pieces mostly, weighed goods now and then, now and then a second piece.
    cdef const Article* articles[LINES_PER_RECEIPT]
    cdef uint64_t quantity[LINES_PER_RECEIPT]
    cdef uint64_t amount[LINES_PER_RECEIPT]
    cdef uint64_t total = 0, word
    cdef uint8_t* start = at
    cdef uint8_t* line
    cdef uint32_t i, size
    for i in range(LINES_PER_RECEIPT):
        articles[i] = &maker.tables.article[alias_draw(&maker.tables.articles, &maker.random)]
        word = random_next(&maker.random)
        if word & 15 == 0:
            quantity[i] = 100 + (word >> 32) % 1900
        else:
            quantity[i] = 2000 if word & 15 == 1 else 1000
        amount[i] = articles[i].price_minor * quantity[i] / 1000
        total += amount[i]
    at += 3         # tag and a length of two bytes: six lines are always 128..16383 bytes
    at = put_receipt_key(at, 0x0A, maker)
    at = put_time(at, 0x12, now_s, 0)
    at[0] = 0x1A
    at[1] = 3
    memcpy(at + 2, maker.tables.currency, 3)
    at = put_number(at + 5, 0x20, total)
    for i in range(LINES_PER_RECEIPT):
        line = at
        memcpy(at + 2, articles[i].code, CODE_BYTES)    # all of its room: of a fixed size it is two moves
        at = put_number(at + 2 + articles[i].code_size, 0x18, quantity[i])
        at = put_number(at, 0x20, amount[i])
        line[0] = 0x2A
        line[1] = <uint8_t>(at - line - 2)
    size = <uint32_t>(at - start) - 3
    start[0] = tag
    start[1] = <uint8_t>(size | 128)
    start[2] = <uint8_t>(size >> 7)
    return at


cdef inline void set_day(Maker* maker, int64_t now_s) noexcept nogil:
    # The business day of receipts of that time, in UTC (Hinnant's civil_from_days).
    cdef int64_t day = now_s / 86400
    cdef uint64_t since, era, year, month
    if day == maker.day:
        return
    maker.day = day
    since = <uint64_t>(day + 719468)
    era = since / 146097
    since %= 146097
    year = (since - since / 1460 + since / 36524 - since / 146096) / 365
    since -= 365 * year + year / 4 - year / 100
    month = (5 * since + 2) / 153
    since -= (153 * month + 2) / 5
    month = month + 3 if month < 10 else month - 9
    maker.business_day = <int32_t>((era * 400 + year + (month <= 2)) * 10000 + month * 100 + since + 1)


cdef inline void put_prefix(uint8_t* out, uint32_t size) noexcept nogil:
    out[0] = 0
    out[1] = <uint8_t>(size >> 24)
    out[2] = <uint8_t>(size >> 16)
    out[3] = <uint8_t>(size >> 8)
    out[4] = <uint8_t>size


cdef inline void make_request(Maker* maker, uint8_t method, int64_t now_s, int64_t now_ns, uint8_t* out, Made* made) noexcept nogil:
    # Makes one request of `method` with its gRPC prefix; out: REQUEST_ROOM bytes.
    # Where nothing is held yet, a capture or release becomes a reserve; where nothing was answered yet, an operation becomes an
    # earn. made.method says what it became.
    cdef uint8_t* at = out + PREFIX_BYTES
    cdef const SentWrite* write
    cdef Hold hold
    cdef uint64_t word = random_next(&maker.random)
    cdef uint32_t points = 1 + <uint32_t>(word >> 32) % POINTS_ASKED_MAX
    maker.counter += 1
    if (method == METHOD_CAPTURE or method == METHOD_RELEASE) and maker.held_count == 0:
        method = METHOD_RESERVE
    if method == METHOD_GET_OPERATION and maker.sent_count == 0:
        method = METHOD_EARN
    made.method = method
    made.member = alias_draw(&maker.tables.members, &maker.random)
    hold.reservation_id = 0
    hold.member = made.member
    if method == METHOD_CAPTURE or method == METHOD_RELEASE or (method == METHOD_COMMIT and word & 7 == 0 and maker.held_count > 0):
        maker.held_count -= 1
        hold = maker.held[(maker.held_first + maker.held_count) % HELD_COUNT]
        made.member = hold.member
    if method == METHOD_GET_BALANCE:
        at = put_member(at, 0x0A, made.member)
    elif method == METHOD_QUOTE:
        at = put_member(at, 0x0A, made.member)
        at = put_receipt(at, 0x12, maker, now_s)
    elif method == METHOD_GET_OPERATION:
        write = &maker.sent[random_below(&maker.random, maker.sent_count)]
        at[0] = 0x0A
        at[1] = ID_BYTES
        memcpy(at + 2, write.request_id, ID_BYTES)
        at = put_time(at + 2 + ID_BYTES, 0x12, write.sent_s, write.sent_ns)
    elif method == METHOD_ENROLL:
        at = put_identity(at, maker, now_s, now_ns, made)
        at = put_new_member(at, 0x1A, maker)
    elif method == METHOD_EARN or method == METHOD_COMMIT:
        at = put_identity(at, maker, now_s, now_ns, made)
        at = put_member(at, 0x1A, made.member)
        at = put_receipt(at, 0x22, maker, now_s)
        if hold.reservation_id:
            at[0] = 0x32
            at[1] = <uint8_t>(put_number(at + 2, 0x08, <uint64_t>hold.reservation_id) - at - 2)
            at += 2 + at[1]
        elif method == METHOD_COMMIT and word & 7 == 1:
            at[0] = 0x2A
            at[1] = 2
            at = put_number(at + 2, 0x10, points)
    elif method == METHOD_BURN:
        at = put_identity(at, maker, now_s, now_ns, made)
        at = put_member(at, 0x1A, made.member)
        at = put_number(at, 0x28, points)
        at = put_receipt_key(at, 0x32, maker)
        at = put_time(at, 0x3A, now_s, 0)
    elif method == METHOD_RESERVE:
        at = put_identity(at, maker, now_s, now_ns, made)
        at = put_member(at, 0x1A, made.member)
        at = put_number(at, 0x28, points)
        at = put_time(at, 0x32, HOLD_TTL_S, 0)
        at = put_time(at, 0x3A, now_s, 0)
    elif method == METHOD_CAPTURE or method == METHOD_RELEASE:
        at = put_identity(at, maker, now_s, now_ns, made)
        at = put_member(at, 0x1A, made.member)
        at = put_number(at, 0x20, <uint64_t>hold.reservation_id)
        if method == METHOD_CAPTURE:
            at = put_receipt_key(at, 0x32, maker)
    # METHOD_HEALTH_CHECK: the empty message
    made.size = <uint32_t>(at - out)
    put_prefix(out, made.size - PREFIX_BYTES)


cdef inline void make_preparation(Maker* maker, uint32_t member, const Preparation* how, int64_t now_s, int64_t now_ns,
                                  uint8_t* out, Made* made) noexcept nogil:
    # Opens the account of a card, or gives it points by a receipt without lines.
    cdef uint8_t* at = out + PREFIX_BYTES
    cdef uint8_t* receipt
    maker.counter += 1
    made.method = METHOD_EARN if how.earn else METHOD_ENROLL
    made.member = member
    at = put_identity(at, maker, now_s, now_ns, made)
    at = put_member(at, 0x1A, member)
    if how.earn:
        receipt = at
        at = put_receipt_key(at + 2, 0x0A, maker)
        if how.timed:
            at = put_time(at, 0x12, now_s, 0)
        at[0] = 0x1A
        at[1] = 3
        memcpy(at + 2, maker.tables.currency, 3)
        at = put_number(at + 5, 0x20, PREPARE_AMOUNT_MINOR)
        receipt[0] = 0x22
        receipt[1] = <uint8_t>(at - receipt - 2)
    elif how.phone:
        at = put_phone(at, 0x1A, member)
    made.size = <uint32_t>(at - out)
    put_prefix(out, made.size - PREFIX_BYTES)


cdef inline uint8_t* put_command(uint8_t* at, const Made* made) noexcept nogil:
    # Frames a request as a command of a batch. It was made with its prefix at `at` + 1, so that its message stands at `at` + 6, where the
    # longest frame (two tags, two lengths of two bytes) ends; a shorter message moves up.
    cdef uint8_t head[4]
    cdef uint32_t size = made.size - PREFIX_BYTES, head_size
    cdef uint8_t* message = at + FRAME_ROOM
    head[0] = 0x3A if made.method == METHOD_ENROLL else 0x0A
    head_size = <uint32_t>(put_varint(head + 1, size) - head)
    at[0] = 0x0A
    at = put_varint(at + 1, size + head_size)
    memcpy(at, head, head_size)
    at += head_size
    if at != message:
        memmove(at, message, size)
    return at + size


cdef inline void make_batch(Maker* maker, uint32_t count, const Preparation* how, uint32_t member, int64_t now_s, int64_t now_ns,
                            uint8_t* out, Made* made) noexcept nogil:
    # Makes a BatchPost of `count` commands with its gRPC prefix; out: PREFIX_BYTES + count * REQUEST_ROOM bytes.
    # how: NULL: earns as of make_request; else it prepares `member` and those that follow.
    cdef uint8_t* at = out + PREFIX_BYTES
    cdef uint32_t i
    for i in range(count):
        if how == NULL:
            make_request(maker, METHOD_EARN, now_s, now_ns, at + FRAME_ROOM - PREFIX_BYTES, made)
        else:
            make_preparation(maker, member + i * how.stride, how, now_s, now_ns, at + FRAME_ROOM - PREFIX_BYTES, made)
        at = put_command(at, made)
    made.method = METHOD_BATCH_POST
    made.commands = count
    made.size = <uint32_t>(at - out)
    put_prefix(out, made.size - PREFIX_BYTES)


cdef inline void hold_remember(Maker* maker, int64_t reservation_id, uint32_t member) noexcept nogil:
    # Newest on top; when full, the oldest is forgotten and will expire by itself.
    cdef Hold* hold
    if maker.held_count == HELD_COUNT:
        maker.held_first = (maker.held_first + 1) % HELD_COUNT
        maker.held_count -= 1
    hold = &maker.held[(maker.held_first + maker.held_count) % HELD_COUNT]
    hold.reservation_id = reservation_id
    hold.member = member
    maker.held_count += 1


cdef inline void write_remember(Maker* maker, const SentWrite* write) noexcept nogil:
    maker.sent[maker.sent_next] = write[0]
    maker.sent_next = (maker.sent_next + 1) % SENT_COUNT
    if maker.sent_count < SENT_COUNT:
        maker.sent_count += 1
