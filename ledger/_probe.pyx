# The compiled leaves, exposed to tests and benches only. Not for the service: nothing in ledger/ or server/ imports this.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy
from ledger._arith cimport (
    add_overflow, civil_from_day, day_add_months, day_from_civil, day_from_yyyymmdd, div_floor, mul_div_floor, mul_div_rem, mul_overflow,
)
from ledger._clock cimport monotonic_us
from ledger._entry cimport (
    Cursor, EntryView, EntryWriter, cursor_more, cursor_open, entry_begin, entry_finish, entry_view, get_byte, get_bytes, get_signed,
    get_text, get_varint, put_byte, put_bytes, put_signed, put_tag, put_tag_text, put_text, put_varint, section_begin, section_end,
)
from ledger._evaluate cimport (
    DayRow, Facts2, Given, Limits2, Result2, Scratch, evaluate, list_burn_limits, result_close, result_open, scratch_close, scratch_open,
)
from ledger._hash cimport Hash128, digest_add, digest_sub, fact_hash, siphash
from ledger._image cimport (
    IMAGE2_RULES_MAX, ImageAtom, ImageBurn, ImageCampaign, ImageCap, ImageClass, ImageExperiment, ImageFunder, ImageHeader2, ImageLimit, ImageRule, ImageThreshold,
    ImageTier, ImageVariant, ImageVelocity, ImageWallet2, ImageZone, MayIndex, Program2,
    SECTION2_LIMITS, SECTION2_VELOCITY, StoreClass, TableRow, image_load, name_hash, program2_day,
)
from ledger._layout cimport Command, EntryHeader, SECTION_COUNT, Slice
from ledger._limits cimport COMMAND_ENTRY_BYTES_MAX, LINES_MAX, RULES_MAX, WALLETS_MAX
from ledger._programme cimport programme_load
from ledger._rules cimport (
    ImageHeader, ImageWallet, Program, RuleOp, ZoneSpan, program_day, program_day_start_us, program_wallet,
)
from ledger._table cimport (
    IDENTIFIER_MEMBER_MASK, IdentifierTable, identifiers_add, identifiers_close, identifiers_find, identifiers_open, identifiers_remove,
    range_of,
)
from ledger._velocity cimport (
    CalendarSlot, DistinctSlot, SlidingSlot, VELOCITY_CALENDARS, VELOCITY_SUMS_BYTES_MAX, VELOCITY_TABLES, Velocity, VelocityBest,
    VelocityHead, VelocityNow, VelocityPlace, VelocityTop,
    distinct_add, distinct_with, linear_count, recent_add, recent_with, sliding_add, sliding_used, velocity_add, velocity_add_at, velocity_close, velocity_dead_day,
    velocity_digest, velocity_home, velocity_load, velocity_load_sums, velocity_next, velocity_now, velocity_open, velocity_place,
    velocity_put, velocity_put_sums, velocity_record_bytes, velocity_room, velocity_slot, velocity_sweep, velocity_top, velocity_touch,
    velocity_used, velocity_used_at, velocity_window,
)

if sizeof(CalendarSlot) != 24 or sizeof(SlidingSlot) != 72 or sizeof(DistinctSlot) != 32:
    raise ImportError("the slots do not have the sizes that docs/decisions/fraud.md gives")
if sizeof(ImageHeader) != 192 or sizeof(ImageWallet) != 40 or sizeof(RuleOp) != 48 or sizeof(ZoneSpan) != 16:
    raise ImportError("the image's records do not have the sizes that docs/journal-format.md gives")
if IMAGE2_RULES_MAX != RULES_MAX:
    raise ImportError("ledger/_image.pxd has another RULES_MAX than ledger/limits.py")


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
    """An image of any version, loaded in place. ValueError: programme_load refuses it."""

    cdef Program program
    cdef Program2* rules
    cdef uint8_t* copy

    def __cinit__(self, bytes image not None):
        cdef const uint8_t* data = image
        self.copy = <uint8_t*>calloc(len(image) + 8, 1)
        self.rules = <Program2*>calloc(1, sizeof(Program2))
        if self.copy == NULL or self.rules == NULL:
            raise MemoryError
        memcpy(self.copy, data, <size_t>len(image))
        if programme_load(&self.program, self.rules, self.copy, <uint32_t>len(image)) != 0:
            raise ValueError("the image is damaged")

    def __dealloc__(self):
        free(self.copy)
        free(self.rules)

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


# --- images of version 2 ----------------------------------------------------------------------------------------------

cdef struct Kept:               # a counter of the member, as the core keeps it
    uint32_t counter
    uint32_t windows            # kept, 0..2
    int32_t window[2]
    int64_t value[2]

cdef struct Taken:              # of a campaign
    uint32_t campaign
    int64_t points
    int64_t uses

cdef enum:
    KEPT_MAX = 4096
    DAY_ROWS_MAX = 8192

cdef struct Books:
    uint32_t kept_count
    uint32_t taken_count
    Kept kept[KEPT_MAX]
    Taken taken[1024]


cdef int64_t books_used(void* core, uint32_t member, uint32_t counter, int32_t window) noexcept nogil:
    cdef Books* books = <Books*>core
    cdef Kept* row
    cdef uint32_t i, j
    for i in range(books.kept_count):
        row = &books.kept[i]
        if row.counter != counter:
            continue
        for j in range(row.windows):
            if row.window[j] == window:
                return row.value[j]
        return -1 if row.windows == 2 and window < row.window[0] and window < row.window[1] else 0
    return 0


cdef int64_t books_campaign_used(void* core, uint32_t campaign, uint8_t measure) noexcept nogil:
    cdef Books* books = <Books*>core
    cdef uint32_t i
    for i in range(books.taken_count):
        if books.taken[i].campaign == campaign:
            return books.taken[i].uses if measure else books.taken[i].points
    return 0


if (sizeof(ImageHeader2) != 256 or sizeof(ImageRule) != 128 or sizeof(ImageWallet2) != 48 or sizeof(ImageCampaign) != 88
        or sizeof(ImageCap) != 24 or sizeof(ImageAtom) != 24 or sizeof(MayIndex) != 16 or sizeof(TableRow) != 40 or sizeof(ImageClass) != 32
        or sizeof(ImageZone) != 48 or sizeof(ImageExperiment) != 48 or sizeof(ImageVariant) != 40 or sizeof(ImageTier) != 48
        or sizeof(ImageThreshold) != 16 or sizeof(ImageBurn) != 136 or sizeof(StoreClass) != 8 or sizeof(ImageFunder) != 72
        or sizeof(ImageVelocity) != 48 or sizeof(ImageLimit) != 144):
    raise ImportError("the image's records do not have the sizes that docs/decisions/rule-image.md gives")


cdef class LoadedImage:
    """An image of version 2, loaded in place. ValueError: image_load refuses it."""

    cdef Program2* program
    cdef uint8_t* copy
    cdef Command* command
    cdef Scratch* scratch
    cdef Result2* result
    cdef Books* books
    cdef Facts2 facts
    cdef Limits2 limits
    cdef DayRow* days
    cdef int64_t business_us
    cdef int64_t burn_points
    cdef uint32_t burn_wallet
    cdef list texts

    def __cinit__(self, bytes image not None):
        self.copy = <uint8_t*>malloc(max(len(image), 1))      # to the byte, so that a sanitizer sees any read behind it
        self.program = <Program2*>calloc(1, sizeof(Program2))
        if self.copy == NULL or self.program == NULL:
            raise MemoryError
        memcpy(self.copy, <const uint8_t*>image, <size_t>len(image))
        if image_load(self.program, self.copy, <uint32_t>len(image)) != 0:
            raise ValueError("the image is damaged")
        self.command = <Command*>calloc(1, sizeof(Command))
        self.books = <Books*>calloc(1, sizeof(Books))
        self.days = <DayRow*>calloc(DAY_ROWS_MAX, sizeof(DayRow))
        self.scratch = scratch_open()
        self.result = result_open()
        if self.command == NULL or self.books == NULL or self.days == NULL or self.scratch == NULL or self.result == NULL:
            raise MemoryError
        self.facts.days = self.days
        self.limits.core = self.books
        self.limits.used = books_used
        self.limits.campaign_used = books_campaign_used

    def __dealloc__(self):
        scratch_close(self.scratch)
        result_close(self.result)
        free(self.program)
        free(self.copy)
        free(self.command)
        free(self.books)
        free(self.days)

    cdef Slice text(self, bytes value):
        cdef Slice place
        self.texts.append(value)
        place.data, place.size = <const uint8_t*>value, <uint32_t>len(value)
        return place

    def day(self, int64_t time_us):
        return program2_day(self.program, time_us)

    @property
    def velocity(self):
        """The counters: (id, of, keys, window, window_s, measure, flags, segments)."""
        cdef const ImageVelocity* row
        found = []
        for i in range(self.program.counts[SECTION2_VELOCITY]):
            row = &self.program.velocity[i]
            found.append((row.id, row.of, row.keys, row.window, row.window_s, row.measure, row.flags,
                          row.segments[0] | <object>row.segments[1] << 64))
        return found

    @property
    def bounds(self):
        """The limits: (name, at_most, counter, mean_sum, mean_count, mean_after, action, rung, rung_s)."""
        cdef const ImageLimit* row
        found = []
        for i in range(self.program.counts[SECTION2_LIMITS]):
            row = &self.program.limits[i]
            found.append(((<bytes>row.name[:64]).rstrip(b"\0"), row.at_most, row.counter, row.mean_sum, row.mean_count,
                          row.mean_after, row.action, row.rung, row.rung_s))
        return found

    def receipt(self, int64_t total, lines, bytes store not None, bytes channel not None, tenders, codes, int64_t business_us,
                uint32_t burn_wallet=0, int64_t burn_points=0):
        """What `evaluate` is about. lines: (sku, category, quantity, amount, regular, weighed); tenders: (name, amount)."""
        cdef uint32_t i
        self.texts = []
        self.command.total_minor = total
        self.command.line_count = <uint32_t>len(lines)
        for i in range(<uint32_t>min(len(lines), LINES_MAX)):
            sku, category, quantity, amount, regular, weighed = lines[i]
            self.command.lines[i].sku = self.text(sku)
            self.command.lines[i].category = self.text(category)
            self.command.lines[i].quantity_milli, self.command.lines[i].amount_minor = quantity, amount
            self.command.lines[i].regular_minor, self.command.lines[i].weighed = regular, weighed
        self.command.store = self.text(store)
        self.command.channel = self.text(channel)
        self.command.tender_count = <uint32_t>len(tenders)
        for i in range(self.command.tender_count):
            self.command.tenders[i].name = self.text(tenders[i][0])
            self.command.tenders[i].amount_minor = tenders[i][1]
        self.command.promo_code_count = <uint32_t>len(codes)
        for i in range(self.command.promo_code_count):
            self.command.promo_codes[i] = self.text(codes[i])
        self.business_us, self.burn_wallet, self.burn_points = business_us, burn_wallet, burn_points

    def member(self, uint32_t number, uint32_t receipt_number, int32_t opened_day, int32_t last_day, uint16_t birthday,
               int32_t birthday_from, uint8_t tier, int32_t tier_until, segments, uint64_t chosen, available, days, counters, campaigns):
        """Whose receipt it is. segments: 128 bits; days: (day, receipts, spent); counters: (counter, rows of window
        and value, newest first); campaigns: (key, points, uses)."""
        cdef uint32_t i, j
        self.facts.member, self.facts.receipt_number = number, receipt_number
        self.facts.opened_day, self.facts.last_day = opened_day, last_day
        self.facts.birthday, self.facts.birthday_from, self.facts.tier, self.facts.tier_until = birthday, birthday_from, tier, tier_until
        self.facts.segments[0], self.facts.segments[1], self.facts.chosen = segments & 0xFFFFFFFFFFFFFFFF, segments >> 64, chosen
        for i in range(<uint32_t>WALLETS_MAX):
            self.facts.available[i] = available[i] if i < len(available) else 0
        if len(days) > DAY_ROWS_MAX or len(counters) > KEPT_MAX or len(campaigns) > 1024:
            raise ValueError("more than the probe has room for")
        self.facts.day_count = <uint32_t>len(days)
        for i in range(self.facts.day_count):
            self.days[i].day, self.days[i].receipts, self.days[i].spent = days[i]
        self.books.kept_count = <uint32_t>len(counters)
        for i in range(self.books.kept_count):
            self.books.kept[i].counter = counters[i][0]
            self.books.kept[i].windows = <uint32_t>len(counters[i][1])
            for j in range(self.books.kept[i].windows):
                self.books.kept[i].window[j], self.books.kept[i].value[j] = counters[i][1][j]
        self.books.taken_count = <uint32_t>len(campaigns)
        for i in range(self.books.taken_count):
            self.books.taken[i].campaign, self.books.taken[i].points, self.books.taken[i].uses = campaigns[i]

    def evaluate(self):
        """The whole result, in numbers, as a dict."""
        cdef Result2* out = self.result
        with nogil:
            evaluate(self.program, self.command, self.business_us, &self.facts, &self.limits, self.burn_wallet, self.burn_points,
                     self.scratch, out)
            list_burn_limits(self.scratch)
        return {
            "refused": out.refused, "day": out.day, "tier": out.tier, "tier_after": out.tier_after, "tier_until": out.tier_until,
            "spent": out.spent,
            "notices": [(out.notices[i].kind, out.notices[i].at) for i in range(out.notice_count)],
            "burn_limits": [(out.burn_limits[i].wallet, out.burn_limits[i].rule, out.burn_limits[i].points, out.burn_limits[i].why)
                            for i in range(out.burn_limit_count)],
            "missing": [(out.missing[i].threshold, out.missing[i].missing) for i in range(out.missing_count)],
            "variants": [out.variants[i] for i in range(out.variant_count)],
            "discounts": [out.discounts[i] for i in range(out.line_count)], "paid": [out.paid[i] for i in range(out.line_count)],
            "points": [out.points[i] for i in range(self.program.wallet_count)],
            "entitlements": [out.entitlements[i] for i in range(out.entitlement_count)],
            "given": [self.given(&out.given[i]) for i in range(out.given_count)] if out.refused == 0 else [],
            "not_given": [(out.not_given[i].rule, out.not_given[i].reason, out.not_given[i].taker) for i in range(out.not_given_count)],
            "counters": [(out.counters[i].counter, out.counters[i].window, out.counters[i].increment) for i in range(out.counter_count)],
            "campaigns": [(out.campaigns[i].campaign, out.campaigns[i].points) for i in range(out.campaign_count)],
            "awards": [(out.awards[i].line, out.awards[i].rule, out.awards[i].wallet, out.awards[i].funder, out.awards[i].points,
                        out.awards[i].available_day, out.awards[i].expiry_day) for i in range(out.award_count)],
        }

    cdef dict given(self, const Given* row):
        cdef const int64_t* share = &self.scratch.pool[row.first_share]
        cdef const uint64_t* bits = &self.scratch.rows[row.rule * <uint64_t>self.scratch.stride]
        lines = []
        for i in range(self.result.line_count):
            lines.append(0)
            if bits[i >> 6] >> (i & 63) & 1:
                lines[i] = share[0]
                share += 1
        return {"rule": row.rule, "base": row.base, "numerator": row.exact.lo | <object>row.exact.hi << 64, "divisor": row.divisor,
                "rounded": row.rounded, "given": row.given,
                "cuts": [(self.result.cuts[row.first_cut + i].reason, self.result.cuts[row.first_cut + i].points)
                         for i in range(row.cut_count)],
                "lines": lines, "available_day": row.available_day, "expiry_day": row.expiry_day}

    def run(self, uint32_t rounds):
        """Evaluates the same so many times, and lists the largest burns as a quote does; microseconds of all."""
        cdef int64_t start
        cdef uint32_t i
        with nogil:
            start = monotonic_us()
            for i in range(rounds):
                evaluate(self.program, self.command, self.business_us, &self.facts, &self.limits, self.burn_wallet, self.burn_points,
                         self.scratch, self.result)
                list_burn_limits(self.scratch)
            start = monotonic_us() - start
        return start

    @property
    def given_count(self):
        """How many rules gave something in the last evaluation."""
        return self.result.given_count


def name_hash_(bytes name not None):
    return name_hash(<const uint8_t*>name, <uint32_t>len(name))


# --- velocity counters ------------------------------------------------------------------------------------------------

cdef enum:
    RECORD_BYTES_MAX = 8192
    BEST_MAX = 1024

cdef uint64_t BENCH_STEP = 0x9e3779b97f4a7c15


def velocity_window_(uint8_t kind, int32_t day):
    return velocity_window(kind, day)


def velocity_dead_day_(uint8_t kind, int32_t window):
    return velocity_dead_day(kind, window)


def linear_count_(uint32_t bits):
    return linear_count(bits)


cdef inline uint64_t bench_mix(uint64_t value) noexcept nogil:
    # Keys for the loops below: every number has another.
    value *= BENCH_STEP
    value ^= value >> 29
    value *= <uint64_t>0xbf58476d1ce4e5b9
    return value ^ value >> 32


cdef class VelocityTables:
    """The tables of velocity counters, and the ledger's time in which their windows die. MemoryError."""

    cdef Velocity tables
    cdef VelocityNow time

    def __cinit__(self, uint64_t counters_max, uint64_t slidings_max, uint64_t distincts_max):
        if not velocity_open(&self.tables, counters_max, slidings_max, distincts_max):
            raise MemoryError

    def __dealloc__(self):
        velocity_close(&self.tables)

    def now(self, int64_t now_s, int32_t day):
        """The ledger's time from now on; it never goes back."""
        velocity_now(&self.time, now_s, day)

    def room(self, uint32_t counters, uint32_t slidings, uint32_t distincts):
        return bool(velocity_room(&self.tables, counters, slidings, distincts))

    def touch(self, uint64_t key, uint8_t slots):
        cdef uint8_t[3] each = [slots, slots, slots]
        velocity_touch(&self.tables, key, each)

    def sweep(self, uint64_t slots):
        velocity_sweep(&self.tables, &self.time, slots)

    def used(self, uint64_t key, uint32_t id, int32_t window):
        return velocity_used(&self.tables, key, id, window, &self.time)

    def add(self, uint64_t key, uint32_t id, int32_t window, int64_t amount):
        return velocity_add(&self.tables, key, id, window, &self.time, amount)

    def add_where_found(self, uint64_t key, uint32_t id, int32_t window, int64_t amount, list others):
        """As add, at the place where the counter was found before 1 was added under each of the other keys. What it had, and add's answer."""
        cdef VelocityPlace place = velocity_place(&self.tables, VELOCITY_CALENDARS, key)
        cdef int64_t found = velocity_used_at(&self.tables, &place, id, window, &self.time)
        for other in others:
            velocity_add(&self.tables, other, id, window, &self.time, 1)
        return found, velocity_add_at(&self.tables, &place, id, window, &self.time, amount)

    def sliding_used(self, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s):
        return sliding_used(&self.tables, key, id, time_s, window_s, &self.time)

    def recent_with(self, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s, uint32_t fingerprint):
        return recent_with(&self.tables, key, id, time_s, window_s, &self.time, fingerprint)

    def recent_add(self, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s, uint32_t fingerprint):
        return recent_add(&self.tables, key, id, time_s, window_s, &self.time, fingerprint)

    def sliding_add(self, uint64_t key, uint32_t id, int64_t time_s, uint32_t window_s, int64_t amount):
        return sliding_add(&self.tables, key, id, time_s, window_s, &self.time, amount)

    def distinct_with(self, uint64_t key, uint32_t id, int32_t window, uint32_t fingerprint):
        return distinct_with(&self.tables, key, id, window, &self.time, fingerprint)

    def distinct_add(self, uint64_t key, uint32_t id, int32_t window, uint32_t fingerprint):
        return distinct_add(&self.tables, key, id, window, &self.time, fingerprint)

    def digest(self, int32_t day):
        cdef Hash128 digest = velocity_digest(&self.tables, day)
        return digest.lo | <object>digest.hi << 64

    @property
    def stats(self):
        return dict(self.tables.stats)

    @property
    def units(self):
        """Units of the arena that are in use, 32 bytes each."""
        return self.tables.arena.live

    def capacity(self, uint32_t number):
        return self.tables.tables[number].capacity

    def home(self, uint32_t number, uint64_t key):
        """Where the search for this key begins in a table."""
        return velocity_home(&self.tables.tables[number], key)

    def slots(self, uint32_t number):
        """(key, id, window) of every slot of a table; key 0: empty."""
        cdef uint64_t at
        found = []
        for at in range(self.tables.tables[number].capacity):
            slot = velocity_slot(&self.tables.tables[number], at)
            found.append((slot.key, slot.id, slot.window))
        return found

    def owners(self):
        """Whether each piece of the arena names the slot that has it."""
        cdef uint64_t at
        cdef const DistinctSlot* slot
        for at in range(self.tables.tables[2].capacity):
            slot = <const DistinctSlot*>velocity_slot(&self.tables.tables[2], at)
            if slot.head.key != 0 and slot.count > 1 and self.tables.arena.lots[slot.piece].owner != at + 1:
                return False
        return True

    def save(self):
        """(the live records of the three tables, the carried sums)."""
        cdef EntryWriter writer
        cdef uint8_t buffer[RECORD_BYTES_MAX]
        cdef const VelocityHead* slot
        cdef uint64_t at
        cdef uint32_t number
        tables = []
        for number in range(<uint32_t>VELOCITY_TABLES):
            records = []
            at = 0
            while True:
                slot = velocity_next(&self.tables, number, &at, &self.time)
                if slot == NULL:
                    break
                writer.start = writer.at = buffer
                velocity_put(&self.tables, number, slot, &writer)
                if writer.at - writer.start > velocity_record_bytes(number, slot):
                    raise AssertionError("a record is longer than it says")
                records.append((<const char*>buffer)[:writer.at - writer.start])
            tables.append(records)
        writer.start = writer.at = buffer
        velocity_put_sums(&self.tables, self.time.today, &writer)
        if writer.at - writer.start > VELOCITY_SUMS_BYTES_MAX:
            raise AssertionError("the sums are longer than they may be")
        return tables, (<const char*>buffer)[:writer.at - writer.start]

    def load(self, uint32_t number, bytes record not None):
        """One record: 0, 1: broken (also with bytes left over), -1: no room."""
        cdef Slice place
        cdef Cursor cursor
        cdef int code
        place.data, place.size = <const uint8_t*>record, <uint32_t>len(record)
        cursor_open(&cursor, &place)
        code = velocity_load(&self.tables, number, &cursor, &self.time)
        return 1 if code == 0 and cursor_more(&cursor) else code

    def load_sums(self, bytes sums not None):
        cdef Slice place
        cdef Cursor cursor
        cdef int code
        place.data, place.size = <const uint8_t*>sums, <uint32_t>len(sums)
        cursor_open(&cursor, &place)
        code = velocity_load_sums(&self.tables, self.time.today, &cursor)
        return 1 if code == 0 and cursor_more(&cursor) else code

    def top(self, uint32_t number, uint32_t id, uint32_t most, uint64_t slots):
        """The largest of a counter, by so many slots a call: [(key, window, amount)]."""
        cdef VelocityBest best[BEST_MAX]
        cdef VelocityTop top
        cdef uint64_t at = 0
        if most > BEST_MAX:
            raise ValueError("more than the probe has room for")
        top.best, top.count, top.id, top.recent = best, 0, id, False
        while velocity_top(&self.tables, number, &top, 1, &self.time, &at, slots, most):
            pass
        return [(best[i].key, best[i].window, best[i].amount) for i in range(top.count)]

    def fill(self, uint32_t number, uint64_t first, uint64_t count, uint32_t id, int64_t each):
        """Adds `each` to the counters of so many keys, from the first-th: in the day at hand, or in the last hour. Microseconds of all
        together, the longest 16 of single ones, how many took longer than 100, and how many found no memory."""
        cdef int64_t begun, start = monotonic_us(), spent
        cdef int64_t longest[16]
        cdef uint64_t i, full = 0, slow = 0
        cdef uint32_t j
        cdef int code
        for j in range(16):
            longest[j] = 0
        with nogil:
            for i in range(count):
                begun = monotonic_us()
                if number == 0:
                    code = velocity_add(&self.tables, bench_mix(first + i), id, self.time.today, &self.time, each)
                else:
                    code = sliding_add(&self.tables, bench_mix(first + i), id, self.time.now_s, 3600, &self.time, each)
                spent = monotonic_us() - begun
                full += code == -1
                slow += spent > 100
                if spent > longest[15]:
                    j = 15
                    while j > 0 and longest[j - 1] < spent:
                        longest[j] = longest[j - 1]
                        j -= 1
                    longest[j] = spent
            start = monotonic_us() - start
        return start, [longest[j] for j in range(16)], slow, full

    def run(self, uint64_t keys, uint64_t commands, uint64_t first, bint touching):
        """Commands with 20 counters over 6 of so many keys: what each has is asked, then to each is added. 14 of calendar windows, 3 sliding,
        3 of different ones. touching: the reads of all keys are started before. Microseconds of all together."""
        cdef uint64_t command
        cdef uint64_t key[20]
        cdef uint8_t[3] slots = [3, 1, 1]       # of a key: what 20 counters over 6 come to
        cdef uint32_t i, id, kind
        cdef int64_t start, total = 0
        with nogil:
            start = monotonic_us()
            for command in range(first, first + commands):
                for i in range(6):      # each its own kind of key: a member, a card, a device, a till, a cashier, a store
                    key[i] = bench_mix(range_of(bench_mix(command * 8 + i), keys) * 8 + i)
                    if touching:
                        velocity_touch(&self.tables, key[i], slots)
                for i in range(6, 20):
                    key[i] = key[i - 6]
                for i in range(20):
                    id = (i + 1) << 3
                    kind = 1 + (i & 3)
                    if i < 14:
                        total += velocity_used(&self.tables, key[i], id | kind, self.time.windows[kind], &self.time)
                    elif i < 17:
                        total += sliding_used(&self.tables, key[i], id | 5, self.time.now_s, 3600, &self.time)
                    else:
                        total += distinct_with(&self.tables, key[i], id | 1, self.time.today, &self.time, <uint32_t>command & 15)
                for i in range(20):
                    id = (i + 1) << 3
                    kind = 1 + (i & 3)
                    if i < 14:
                        velocity_add(&self.tables, key[i], id | kind, self.time.windows[kind], &self.time, 1)
                    elif i < 17:
                        sliding_add(&self.tables, key[i], id | 5, self.time.now_s, 3600, &self.time, 1)
                    else:
                        distinct_add(&self.tables, key[i], id | 1, self.time.today, &self.time, <uint32_t>command & 15)
            start = monotonic_us() - start
        if total < 0:
            raise AssertionError("sums are not negative")
        return start

    def distincts(self, uint64_t key, uint32_t id, uint64_t first, uint32_t count):
        """Adds so many fingerprints, from the first-th, to a counter of the day at hand; how many it says there are, the last one included."""
        cdef uint32_t i
        for i in range(count):
            distinct_add(&self.tables, key, id, self.time.today, &self.time, <uint32_t>(bench_mix(first + i) >> 32))
        return distinct_with(&self.tables, key, id, self.time.today, &self.time, <uint32_t>(bench_mix(first + count - 1) >> 32))
