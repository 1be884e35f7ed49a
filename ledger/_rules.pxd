# Leaves: what every programme has (wallets, currency, days of its zone), and images of version 1, read in place. Nothing allocated.
# Not for rules: those of version 2 are ledger/_image.pxd and ledger/_evaluate.pxd; those of version 1 are of old journals, whose entries
# say what they gave, and are run no more. cimported by _programme, _core (days), _wire (wallet names), _engine.
# The byte form of version 1: docs/journal-format.md, section "Image".

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset
from ledger._arith cimport div_floor, max_i64
from ledger._layout cimport Slice, WalletDefinition
from ledger._limits cimport AMOUNT_MINOR_MAX, IMAGE_BYTES_MAX, POINTS_PER_STEP_MAX, WALLETS_MAX

cdef extern from "<openssl/sha.h>" nogil:
    uint8_t* SHA256(const uint8_t* data, size_t size, uint8_t* digest)

cdef enum:
    IMAGE_MAGIC = 0x454C5552        # "RULE" in little endian
    IMAGE_VERSION = 1
    IMAGE_HEADER_BYTES = 192
    IMAGE_HASHED_FROM = 40          # the hash covers the bytes from here to the end
    IMAGE_OPENS_ANONYMOUS = 1       # ImageHeader.flags
    IMAGE_SECTION_WALLETS = 0
    IMAGE_SECTION_RULES = 1         # names
    IMAGE_SECTION_OPS = 2
    IMAGE_SECTION_ZONE = 3
    IMAGE_SECTION_COUNT = 4
    ZONE_SPANS_MAX = 2048           # two changes a year for 210 years, and room
    ZONE_BUCKETS = 416              # of 2^44 us (203 days) from 1970 to 2200
    ZONE_BUCKET_SHIFT = 44
    LIFE_NUMBER_MAX = 18250         # 50 years, in days; months: the same number is harmless
    RULE_NAME_BYTES = 64
    IMAGE_RULES_MAX = 1024          # of version 1

cdef enum OpCode:                   # what an op does; append, never renumber
    OP_PER_STEP = 1                 # for every full `step` of the receipt's total `give` points

cdef enum OpScope:
    SCOPE_RECEIPT = 1               # decided on the receipt's total, spread over its lines
    SCOPE_LINE = 2                  # decided line by line

cdef enum LifeUnit:
    LIFE_NEVER_ENDS = 0
    LIFE_DAYS = 1
    LIFE_MONTHS = 2

cdef struct ImageSection:
    uint32_t offset             # bytes from the image's start, a multiple of 8
    uint32_t count              # records

cdef struct ImageHeader:        # 192 bytes
    uint32_t magic              # IMAGE_MAGIC
    uint32_t version            # IMAGE_VERSION
    uint8_t hash[32]            # SHA-256 over bytes 40..size-1
    int64_t max_age_us          # at least 0
    uint32_t size               # bytes of the whole image
    uint32_t flags              # IMAGE_OPENS_ANONYMOUS
    char currency[4]            # ISO 4217, zero terminated
    uint32_t reserved           # 0
    char zone[40]               # IANA name, zero padded
    char tzdata[16]             # release of the time zone data, zero padded
    char name[40]               # of the programme, zero padded, for people
    ImageSection sections[IMAGE_SECTION_COUNT]

cdef struct ImageWallet:        # 40 bytes
    char name[32]               # UTF-8, zero padded
    uint32_t scale              # 0..9
    uint32_t reserved           # 0

cdef struct RuleOp:             # 48 bytes
    int64_t step                # minor units, 1..AMOUNT_MINOR_MAX
    int64_t give                # points per step, 1..POINTS_PER_STEP_MAX
    int64_t reserved[2]         # 0
    uint32_t rule               # from 1
    uint16_t code               # OpCode
    uint16_t wallet             # index
    uint16_t funder             # 0: the chain itself
    uint16_t available_after    # days behind the business day
    uint16_t lifetime           # how many days or months behind the business day; 0 with LIFE_NEVER_ENDS
    uint8_t lifetime_unit       # LifeUnit
    uint8_t scope               # OpScope

cdef struct ZoneSpan:           # 16 bytes: one span of constant offset; the last one has no end
    int64_t start_us            # us since 1970, UTC; the first span also covers everything before it
    int32_t offset_s            # local time - UTC
    int32_t first_day           # no moment of the span belongs to an earlier day: days never go back

cdef struct Program:
    const uint8_t* image        # the bytes that the pointers below point into; must outlive the struct
    uint32_t image_size
    uint32_t version            # from 1, counted by the journal; set by the core
    uint32_t wallet_count       # 1..WALLETS_MAX
    WalletDefinition wallets[WALLETS_MAX]
    char currency[4]            # ISO 4217, zero terminated
    uint8_t opens_anonymous     # 1: an earn of an unknown card, phone, email or app opens an account
    int64_t max_age_us          # how old a business time may be
    uint32_t rule_count
    const void* rules           # a Program2 (ledger/_image.pxd) of an image of version 2; NULL: of version 1, whose rules are not run
    # private to this file
    uint32_t zone_count
    const ZoneSpan* zone
    uint16_t zone_bucket[ZONE_BUCKETS]  # span in force at the bucket's first moment


cdef inline bint image_padded(const char* text, uint32_t size) noexcept nogil:
    # One or more bytes that are no control characters, then zeros up to size.
    cdef uint32_t i = 0
    while i < size and <uint8_t>text[i] >= 32 and text[i] != 127:
        i += 1
    if i == 0:
        return False
    while i < size and text[i] == 0:
        i += 1
    return i == size


cdef inline bint image_section(const ImageHeader* header, uint32_t section, uint32_t record_bytes, uint32_t count_min,
                               uint32_t count_max, uint32_t* at) noexcept nogil:
    # Whether the section begins at `at`, as the sections stand back to back; moves `at` behind it, to a multiple of 8.
    cdef const ImageSection* place = &header.sections[section]
    if place.offset != at[0] or place.count < count_min or place.count > count_max:
        return False
    if place.count * record_bytes > header.size - at[0]:
        return False
    at[0] += (place.count * record_bytes + 7) & ~7u
    return at[0] <= header.size


cdef inline bint image_hash_holds(const uint8_t* image, uint32_t size) noexcept nogil:
    cdef uint8_t digest[32]
    SHA256(image + IMAGE_HASHED_FROM, size - IMAGE_HASHED_FROM, digest)
    return memcmp(digest, (<const ImageHeader*>image).hash, 32) == 0


cdef inline bint image_op_holds(const RuleOp* op, const ImageHeader* header) noexcept nogil:
    # Fields of one op are in their bounds.
    if op.code != OP_PER_STEP or op.scope != SCOPE_RECEIPT or op.reserved[0] != 0 or op.reserved[1] != 0:
        return False
    if op.step < 1 or op.step > AMOUNT_MINOR_MAX or op.give < 1 or op.give > POINTS_PER_STEP_MAX:
        return False
    if op.rule < 1 or op.rule > header.sections[IMAGE_SECTION_RULES].count:
        return False
    if op.wallet >= header.sections[IMAGE_SECTION_WALLETS].count or op.available_after > LIFE_NUMBER_MAX:
        return False
    if op.lifetime_unit == LIFE_NEVER_ENDS:
        return op.lifetime == 0
    return op.lifetime_unit <= LIFE_MONTHS and 1 <= op.lifetime <= LIFE_NUMBER_MAX


cdef inline void program_buckets(Program* program) noexcept nogil:
    # Behind zone and zone_count.
    cdef uint32_t span = 0, i
    for i in range(<uint32_t>ZONE_BUCKETS):
        while span + 1 < program.zone_count and program.zone[span + 1].start_us <= <int64_t>i << ZONE_BUCKET_SHIFT:
            span += 1
        program.zone_bucket[i] = <uint16_t>span


cdef inline int program_load(Program* program, const uint8_t* image, uint32_t size) noexcept nogil:
    # Checks every byte (also of a damaged image) and sets pointers into it. 0, or -1: not an image that this build can run.
    # image: 8-byte aligned (copy it out of an entry first), unchanged as long as the programme is used. version: the caller's.
    cdef const ImageHeader* header = <const ImageHeader*>image
    cdef const ImageWallet* wallets
    cdef const char* names
    cdef const RuleOp* ops
    cdef const ZoneSpan* zone
    cdef uint32_t at = IMAGE_HEADER_BYTES, i, j
    cdef uint32_t zone_count
    memset(program, 0, sizeof(Program))
    if size < IMAGE_HEADER_BYTES or size > IMAGE_BYTES_MAX or <uintptr_t>image & 7:
        return -1
    if header.magic != IMAGE_MAGIC or header.version != IMAGE_VERSION or header.size != size:
        return -1
    if not image_hash_holds(image, size):
        return -1
    if header.flags > IMAGE_OPENS_ANONYMOUS or header.max_age_us < 0 or header.reserved != 0 or header.currency[3] != 0:
        return -1
    for i in range(3u):
        if not (c'A' <= header.currency[i] <= c'Z'):
            return -1
    if not (image_padded(header.zone, 40) and image_padded(header.tzdata, 16) and image_padded(header.name, 40)):
        return -1
    if not (image_section(header, IMAGE_SECTION_WALLETS, sizeof(ImageWallet), 1, WALLETS_MAX, &at)
            and image_section(header, IMAGE_SECTION_RULES, RULE_NAME_BYTES, 0, IMAGE_RULES_MAX, &at)
            and image_section(header, IMAGE_SECTION_OPS, sizeof(RuleOp), 0, IMAGE_RULES_MAX, &at)
            and image_section(header, IMAGE_SECTION_ZONE, sizeof(ZoneSpan), 1, ZONE_SPANS_MAX, &at)
            and at == size):
        return -1

    wallets = <const ImageWallet*>(image + header.sections[IMAGE_SECTION_WALLETS].offset)
    for i in range(header.sections[IMAGE_SECTION_WALLETS].count):
        if not image_padded(wallets[i].name, 32) or wallets[i].scale > 9 or wallets[i].reserved != 0:
            return -1
        for j in range(i):
            if memcmp(wallets[i].name, wallets[j].name, 32) == 0:
                return -1
        memcpy(program.wallets[i].name, wallets[i].name, 32)
        while program.wallets[i].name[program.wallets[i].name_size] != 0:   # the struct's name has one zero more
            program.wallets[i].name_size += 1
        program.wallets[i].scale = wallets[i].scale
    names = <const char*>(image + header.sections[IMAGE_SECTION_RULES].offset)
    for i in range(header.sections[IMAGE_SECTION_RULES].count):
        if not image_padded(names + i * RULE_NAME_BYTES, RULE_NAME_BYTES):
            return -1
    ops = <const RuleOp*>(image + header.sections[IMAGE_SECTION_OPS].offset)
    for i in range(header.sections[IMAGE_SECTION_OPS].count):
        if not image_op_holds(&ops[i], header):
            return -1
    zone = <const ZoneSpan*>(image + header.sections[IMAGE_SECTION_ZONE].offset)
    zone_count = header.sections[IMAGE_SECTION_ZONE].count
    for i in range(zone_count):
        if zone[i].offset_s < -86400 or zone[i].offset_s > 86400 or zone[i].first_day < 0 or zone[i].first_day > 100000:
            return -1
        if zone[i].start_us < 0 or zone[i].start_us >= <int64_t>ZONE_BUCKETS << ZONE_BUCKET_SHIFT:
            return -1
        if i > 0 and (zone[i].start_us <= zone[i - 1].start_us or zone[i].first_day < zone[i - 1].first_day):
            return -1

    program.image = image
    program.image_size = size
    program.wallet_count = header.sections[IMAGE_SECTION_WALLETS].count
    memcpy(program.currency, header.currency, 4)
    program.opens_anonymous = header.flags & IMAGE_OPENS_ANONYMOUS
    program.max_age_us = header.max_age_us
    program.rule_count = header.sections[IMAGE_SECTION_RULES].count
    program.zone_count = zone_count
    program.zone = zone
    program_buckets(program)
    return 0


cdef inline int32_t program_wallet(const Program* program, Slice name) noexcept nogil:
    # The wallet's index, or -1.
    cdef uint32_t i
    for i in range(program.wallet_count):
        if program.wallets[i].name_size == name.size and memcmp(program.wallets[i].name, name.data, name.size) == 0:
            return <int32_t>i
    return -1


cdef inline uint32_t zone_span(const Program* program, int64_t time_us) noexcept nogil:
    # The span in force at a moment.
    cdef int64_t bucket = time_us >> ZONE_BUCKET_SHIFT
    cdef uint32_t span
    if bucket < 0:
        return 0
    if bucket >= ZONE_BUCKETS:
        bucket = ZONE_BUCKETS - 1
    span = program.zone_bucket[bucket]
    while span + 1 < program.zone_count and program.zone[span + 1].start_us <= time_us:
        span += 1
    return span


cdef inline int32_t program_day(const Program* program, int64_t time_us) noexcept nogil:
    # Days since 1970 in the programme's zone, for times of the years 1970..2260. Never goes back as time goes on: where clocks are
    # set back over midnight, the new day stays.
    cdef const ZoneSpan* span = &program.zone[zone_span(program, time_us)]
    return <int32_t>max_i64(div_floor(time_us + span.offset_s * <int64_t>1000000, <int64_t>86400000000), span.first_day)


cdef inline int64_t program_day_start_us(const Program* program, int32_t day) noexcept nogil:
    # The first moment (us since 1970) whose program_day is `day`, or later where the zone skips the day or its midnight.
    cdef int64_t midnight = day * <int64_t>86400000000, start
    cdef uint32_t span = zone_span(program, midnight - <int64_t>86400000000)
    while True:
        start = midnight - program.zone[span].offset_s * <int64_t>1000000
        if span + 1 >= program.zone_count or start < program.zone[span + 1].start_us:
            return max_i64(start, program.zone[span].start_us) if span > 0 else start
        span += 1
