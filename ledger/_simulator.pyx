"""A journal's receipts decided anew: by a core of their own, which decides as the service's does.

Up to a point the journal's entries are applied as they stand; from there on another programme is in force, and receipts, burns and what was
done by hand are commands again, at the times of their entries. Two uses: `daybook simulate` (ledger/simulate.py) decides everything behind the
point; `daybook explain` (ledger/explain.py) one entry under the programme that was in force, with as little of the rest as it takes.

What customers did is kept: a burn that the other programme does not allow is made as large as it allows, a reservation that was captured is a
burn. What rules mean is not known here. Holds no GIL while it reads records; memory depends on members, rules and days, not on entries.
"""

from ledger import published

from libc.stdint cimport INT64_MAX, INT64_MIN, UINT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ledger._arith cimport civil_from_day, div_floor
from ledger._core cimport (
    APPLY_OK, APPLY_PROGRAM, CoreStats, core_apply, core_execute, core_list_burn_limits, core_program, core_remember, core_result, core_scratch,
    core_set_covered, core_stats, core_tick, core_write_part, core_write_program,
)
from ledger._entry cimport (
    Context, Cursor, EntryView, EntryWriter, LineDetails, context_read, cursor_more, cursor_open, details_next, details_open, entry_begin,
    entry_finish, entry_view, get_byte, get_signed, get_text, get_varint, deciding_program, put_signed, section_begin, section_end,
)
from ledger._evaluate cimport Given, REASON_CAMPAIGN_USES, REASON_CAMPAIGN_VALUE, REASON_CAP, REASON_CAP_TOO_LATE, Result2, Scratch
from ledger._feed cimport FAULT_APPLY, FAULT_ENTRIES, FAULT_NONE, GroupFeed
from ledger._image cimport (
    FORM_PERCENT, ImageBurn, ImageCap, ImageRule, ImageThreshold, Program2, RULE_ADD_PERCENT, RULE_DISCOUNT_LINE, RULE_DISCOUNT_RECEIPT,
    RULE_POINTS, RULE_TIMES, SECTION2_TIERS,
)
from ledger._layout cimport (
    ACCOUNT_EXPIRED, ACCOUNT_ISSUED, ACCOUNT_REDEEMED, CONTEXT_BUSINESS_DAY, CONTEXT_BUSINESS_TIME, CONTEXT_EXPIRY_DAY, CONTEXT_PAYMENT,
    CONTEXT_POINTS, CONTEXT_RESERVATION, CONTEXT_TOTAL, CONTEXT_WALLET, Command, DAY_NEVER, ENTRY_HEADER_BYTES, EntryHeader, FLAG_OPENED,
    GIVEN_BUSINESS_TIME, GIVEN_RECEIPT, GIVEN_RECEIPT_KEY, GIVEN_SENT_TIME, GIVEN_WALLET, KIND_ADJUST, KIND_BURN, KIND_CAPTURE, KIND_COMMIT,
    KIND_DIGEST, KIND_EARN, KIND_ENROLL, KIND_PROGRAM, KIND_SET_ATTRIBUTES, KIND_SET_SEGMENTS, LINE_WEIGHED, LOOKED_UP, MEMBER_BY_ID,
    METHOD_ADJUST, METHOD_BURN, METHOD_COMMIT, METHOD_EARN, Outcome, PAYMENT_BURN, PAYMENT_CAPTURE, PAYMENT_NONE, RECEIPT_CHANNEL,
    RECEIPT_PROMO_CODE, RECEIPT_TENDER, SECTION_AWARDS, SECTION_CAMPAIGNS, SECTION_DISCOUNTS, SECTION_LINES, SECTION_LINE_DETAILS,
    SECTION_OPENED, SECTION_POSTINGS, SECTION_PUBLISHED, SECTION_QUOTE, SECTION_RECEIPT, SECTION_RESERVATION, SECTION_SOURCE, Slice, WALLETS_MAX,
)
from ledger._limits cimport (
    COMMAND_ENTRY_BYTES_MAX, ENTRY_BYTES_MAX, IMAGE_INLINE_BYTES_MAX, LINES_MAX, PROMO_CODES_PER_RECEIPT_MAX, TENDERS_PER_RECEIPT_MAX, TICK_ACCOUNTS_MAX,
)
from ledger._rules cimport Program, program_day
from ledger._status cimport STATUS_INSUFFICIENT_POINTS, STATUS_BURN_NOT_ALLOWED, STATUS_OK
from ledger._table cimport reserve_memory, unreserve_memory

cdef enum:
    INT32_NONE = -2147483648
    STATUSES_MAX = 256
    RULE_ROWS = 5001            # rules of a programme, and one place more for those that it should not have
    VERSIONS_MAX = 65536
    DAYS_MAX = 16384
    ATTEMPTS_MAX = 4            # a burn that is too large is tried again as large as was allowed
    ID_DIGITS = 20
    ROW_RECEIPTS = 0            # a row of a member or day: receipts, discounts (minor units), then points by wallet
    ROW_DISCOUNTS = 1
    ROW_WALLETS = 2

cdef struct Tally:              # of one rule
    int64_t receipts            # on which it gave something
    int64_t points
    int64_t discount            # minor units
    int64_t cut                 # points or minor units that caps and campaigns took away
    int64_t held_back           # receipts whose conditions held, on which caps or campaigns left nothing

cdef struct Totals:
    int64_t receipts
    int64_t refused
    int64_t points[WALLETS_MAX]
    int64_t discounts
    int64_t burns               # receipts and burns that took points
    int64_t burned[WALLETS_MAX]
    int64_t expired[WALLETS_MAX]
    int64_t cut_burns           # burns that were made smaller, or not at all


cdef class Simulator(GroupFeed):
    """See _simulator.pyi."""

    cdef bytes image            # of the programme that decides; None in explain
    cdef bytes source
    cdef bytes told             # what the journal says of the image beside it
    cdef uint32_t version       # of it, once it is in force
    cdef int64_t from_us
    cdef int64_t until_us
    cdef uint64_t seen          # journal's sequence of the entry at hand
    cdef uint64_t target        # explain: which entry; 0: none
    cdef uint32_t only_member   # explain: whose entries count; the others only open accounts and use campaigns
    cdef bint started
    cdef bint done
    cdef bint decided           # explain: the target was decided again
    cdef int32_t day
    cdef int32_t first_day
    cdef uint32_t stride        # words of a row
    cdef uint64_t row_bytes
    cdef int64_t* members_before
    cdef int64_t* members_after
    cdef uint32_t members_max
    cdef int64_t* days_before
    cdef int64_t* days_after
    cdef Tally after[RULE_ROWS]
    cdef Tally** before         # by version
    cdef uint32_t versions
    cdef Totals then            # as the journal has it
    cdef Totals now
    cdef int64_t base_expired[WALLETS_MAX]      # before the start
    cdef int64_t refusals[STATUSES_MAX]
    cdef Command* command
    cdef Outcome outcome
    cdef uint8_t* entry
    cdef uint8_t* copy
    cdef char request_id[ID_DIGITS + 4]
    cdef list sources           # (version, source) of PROGRAM entries
    cdef list texts             # of a receipt from Python

    def __cinit__(self, bytes directory, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max, bytes image=None,
                  bytes source=b"", int64_t from_us=INT64_MIN, int64_t until_us=INT64_MAX, uint64_t target=0, uint32_t only_member=0):
        self.image, self.source, self.from_us, self.until_us = image, source, from_us, until_us
        self.told = published.pack(published.told_of(image)) if image is not None else b""
        self.version = 0
        self.target, self.only_member = target, only_member
        self.seen = 0
        self.started = self.done = self.decided = False
        self.day = self.first_day = INT32_NONE
        self.stride = ROW_WALLETS + WALLETS_MAX
        self.row_bytes = self.stride * sizeof(int64_t)
        self.members_max = members_max
        self.versions = 0
        memset(self.after, 0, sizeof(self.after))
        memset(&self.then, 0, sizeof(Totals))
        memset(&self.now, 0, sizeof(Totals))
        memset(self.base_expired, 0, sizeof(self.base_expired))
        memset(self.refusals, 0, sizeof(self.refusals))
        self.sources = []
        self.texts = []
        self.members_before = <int64_t*>reserve_memory(members_max * self.row_bytes)
        self.members_after = <int64_t*>reserve_memory(members_max * self.row_bytes)
        self.days_before = <int64_t*>reserve_memory(DAYS_MAX * self.row_bytes)
        self.days_after = <int64_t*>reserve_memory(DAYS_MAX * self.row_bytes)
        self.before = <Tally**>calloc(VERSIONS_MAX, sizeof(Tally*))
        self.command = <Command*>calloc(1, sizeof(Command))
        self.entry = <uint8_t*>malloc(max(ENTRY_BYTES_MAX, COMMAND_ENTRY_BYTES_MAX))
        self.copy = <uint8_t*>malloc(max(ENTRY_BYTES_MAX, COMMAND_ENTRY_BYTES_MAX))
        if (self.members_before == NULL or self.members_after == NULL or self.days_before == NULL or self.days_after == NULL
                or self.before == NULL or self.command == NULL or self.entry == NULL or self.copy == NULL):
            raise MemoryError("the tables of a simulation cannot be reserved")
        self.open_core(members_max, ids_max, reservations_max, NULL)
        # Ids and receipts that memory drops are not asked for again: in a journal none comes twice.
        core_set_covered(self.core, UINT64_MAX - 1, UINT64_MAX - 1)

    def __dealloc__(self):
        cdef uint32_t i
        unreserve_memory(self.members_before, self.members_max * self.row_bytes)
        unreserve_memory(self.members_after, self.members_max * self.row_bytes)
        unreserve_memory(self.days_before, DAYS_MAX * self.row_bytes)
        unreserve_memory(self.days_after, DAYS_MAX * self.row_bytes)
        if self.before != NULL:
            for i in range(VERSIONS_MAX):
                free(self.before[i])
        free(self.before)
        free(self.command)
        free(self.entry)
        free(self.copy)

    cdef int take_entry(self, const uint8_t* entry, uint32_t size) noexcept nogil:
        cdef EntryView view
        cdef const EntryHeader* header
        self.seen += 1
        if self.done:
            return FAULT_NONE
        if not entry_view(entry, size, &view):
            return FAULT_ENTRIES
        header = view.header
        if header.kind == KIND_PROGRAM:
            keep_source(self, &view)
        if self.target != 0:
            return take_explained(self, &view, size)
        if header.time_us >= self.until_us:
            self.done = True
            return FAULT_NONE
        if not self.started:
            if header.time_us < self.from_us:
                self.fault_detail = core_apply(self.core, entry, size)
                return FAULT_NONE if self.fault_detail == APPLY_OK else FAULT_APPLY
            if not begin(self, header.time_us):
                self.fault_detail = APPLY_PROGRAM
                return FAULT_APPLY
        return take_simulated(self, &view, size)

    def begin(self, int64_t time_us):
        """Bring the programme into force, for receipts that come by `receipt`. Errors: ValueError."""
        if not self.started and not begin(self, time_us):
            raise ValueError("the programme's image does not load")

    def receipt(self, uint32_t member, int64_t time_us, business_us, int64_t total, list lines not None, bytes store not None,
                bytes channel not None, list tenders not None, list codes not None, uint32_t wallet, int64_t burned, uint32_t version,
                list awards not None, int64_t discounts):
        """One receipt that is in no journal; times must not fall. lines: (sku, category, quantity, amount, regular, weighed); tenders:
        (name, amount); awards: (rule, wallet, points) that were given for it by a version of a programme. Errors: ValueError."""
        cdef Command* command = self.command
        cdef uint32_t i
        cdef int fault
        if member == 0 or member > self.members_max:
            raise ValueError(f"member {member} is above the {self.members_max} that there is room for")
        if len(lines) > LINES_MAX or len(tenders) > TENDERS_PER_RECEIPT_MAX or len(codes) > PROMO_CODES_PER_RECEIPT_MAX:
            raise ValueError("a receipt has more lines, tenders or promo codes than a till may send")
        self.texts = []
        self.seen += 1
        new_day(self, time_us)
        while core_stats(self.core).members < member:
            fault = open_account(self, NULL, <uint32_t>core_stats(self.core).members + 1, time_us)
            if fault != FAULT_NONE:
                raise ValueError(f"the account of member {member} cannot be opened")
        begin_command(self, METHOD_EARN, member, time_us)
        command.given |= GIVEN_RECEIPT | GIVEN_RECEIPT_KEY
        if business_us is not None:
            command.business_time_us = business_us
            command.given |= GIVEN_BUSINESS_TIME
        command.total_minor = total
        command.store = self.text(store or b"?")
        command.till = self.text(b"1")
        command.number = self.text(str(self.seen).encode())
        command.business_day = day_as_sent(self.day)
        command.currency.data = <const uint8_t*>core_program(self.core).currency
        command.currency.size = 3
        command.line_count = <uint32_t>len(lines)
        for i in range(command.line_count):
            sku, category, quantity, amount, regular, weighed = lines[i]
            command.lines[i].sku, command.lines[i].category = self.text(sku), self.text(category)
            command.lines[i].quantity_milli, command.lines[i].amount_minor = quantity, amount
            command.lines[i].regular_minor, command.lines[i].weighed = regular, weighed
        command.channel = self.text(channel)
        command.tender_count = <uint32_t>len(tenders)
        for i in range(command.tender_count):
            command.tenders[i].name, command.tenders[i].amount_minor = self.text(tenders[i][0]), tenders[i][1]
        command.promo_code_count = <uint32_t>len(codes)
        for i in range(command.promo_code_count):
            command.promo_codes[i] = self.text(codes[i])
        self.then.receipts += 1
        count_rows(self, self.members_before, self.days_before, member, ROW_RECEIPTS, 1)
        for rule, award_wallet, points in awards:
            count_award(self, version, rule, award_wallet, points, member)
        count_discounts(self, member, discounts)
        if burned > 0:
            command.method = METHOD_COMMIT
            self.then.burns += 1
            self.then.burned[wallet if wallet < WALLETS_MAX else 0] += burned
            pay_with(self, wallet, burned)
        decide(self, member, time_us)

    cdef Slice text(self, bytes value):
        cdef Slice place
        self.texts.append(value)
        place.data, place.size = <const uint8_t*>value, <uint32_t>len(value)
        return place

    def finish(self):
        """Let expire what is due at the end."""
        if self.started:
            sweep(self)

    @property
    def over(self):
        """Whether nothing more is to be fed."""
        return self.done

    @property
    def programmes(self):
        """Version and source of the programmes that were fed, in their order."""
        return list(self.sources)

    def totals(self):
        """What was given `before` (by the journal) and `after` (by the programme), as dicts."""
        cdef const CoreStats* stats = core_stats(self.core)
        wallets = <int>core_program(self.core).wallet_count if core_program(self.core) != NULL else 0
        after = totals_of(&self.now, wallets)
        after["expired"] = [stats.expired_points[i] - self.base_expired[i] for i in range(wallets)]
        return {"before": totals_of(&self.then, wallets), "after": after, "members": stats.members,
                "refusals": {i: self.refusals[i] for i in range(STATUSES_MAX) if self.refusals[i]}}

    def rules_after(self):
        """(rule from 1, receipts, points, discount, cut, held back) of each rule of the programme."""
        return [tally_of(i + 1, &self.after[i]) for i in range(core_program(self.core).rule_count)] if self.started else []

    def rules_before(self):
        """The same with the version in front, of rules that gave something."""
        return [(version, *tally_of(i + 1, &self.before[version][i])) for version in range(self.versions + 1)
                if self.before[version] != NULL for i in range(RULE_ROWS) if self.before[version][i].receipts]

    def members(self):
        """Rows of 64-bit numbers, one a member from 1, before and after: receipts, discounts, points of each of 16 wallets."""
        cdef Py_ssize_t size = <Py_ssize_t>(core_stats(self.core).members * self.row_bytes)
        return (<const char*>self.members_before)[:size], (<const char*>self.members_after)[:size]

    def days(self):
        """The first day (since 1970), and the same rows, one a day from it."""
        cdef Py_ssize_t size = (self.day - self.first_day + 1) * <Py_ssize_t>self.row_bytes if self.started and self.day != INT32_NONE else 0
        if size > <Py_ssize_t>(DAYS_MAX * self.row_bytes):
            size = <Py_ssize_t>(DAYS_MAX * self.row_bytes)
        return self.first_day, (<const char*>self.days_before)[:size], (<const char*>self.days_after)[:size]

    def explained(self):
        """What the target entry came to when it was decided again. None: it was not reached, or is no receipt."""
        return explanation(self) if self.done and self.command.method != 0 else None


cdef dict totals_of(const Totals* totals, int wallets):
    return {"receipts": totals.receipts, "refused": totals.refused, "points": [totals.points[i] for i in range(wallets)],
            "discounts": totals.discounts, "burns": totals.burns, "burned": [totals.burned[i] for i in range(wallets)],
            "expired": [totals.expired[i] for i in range(wallets)], "cut_burns": totals.cut_burns}


cdef tuple tally_of(int rule, const Tally* tally):
    return rule, tally.receipts, tally.points, tally.discount, tally.cut, tally.held_back


cdef void keep_source(Simulator self, const EntryView* view) noexcept nogil:
    # A version that is one of before has no source of its own.
    cdef Cursor cursor
    cdef uint64_t again = 0
    if view.sections[SECTION_PUBLISHED].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_PUBLISHED])
        get_signed(&cursor)
        again = get_varint(&cursor)
    with gil:
        if 0 < again <= <uint64_t>len(self.sources):
            self.sources.append((len(self.sources) + 1, self.sources[again - 1][1]))
        else:
            self.sources.append((len(self.sources) + 1, view_section(view, SECTION_SOURCE)))


cdef bytes view_section(const EntryView* view, int section):
    cdef const Slice* place = &view.sections[section]
    return (<const char*>place.data)[:place.size] if place.data != NULL else b""


# --- the beginning, and days ------------------------------------------------------------------------------------------

cdef bint begin(Simulator self, int64_t time_us) noexcept nogil:
    # The programme comes into force.
    cdef const uint8_t* image = NULL
    cdef const uint8_t* source = NULL
    cdef uint32_t image_size = 0, source_size = 0, i, offset = 0, size
    cdef Slice told
    with gil:
        image, image_size = self.image, <uint32_t>len(self.image)
        source, source_size = self.source, <uint32_t>len(self.source)
        told.data, told.size = self.told, <uint32_t>len(self.told)
    while image_size > IMAGE_INLINE_BYTES_MAX and offset < image_size:
        size = image_size - offset if image_size - offset < IMAGE_INLINE_BYTES_MAX else IMAGE_INLINE_BYTES_MAX
        if core_write_part(self.core, time_us, image, image_size, offset, size, self.entry) == 0:
            return False
        offset += size
    if core_write_program(self.core, time_us, image, image_size, source, source_size, &told, False, self.entry) == 0:
        return False
    self.version = core_program(self.core).version
    for i in range(<uint32_t>WALLETS_MAX):
        self.base_expired[i] = core_stats(self.core).expired_points[i]
    self.started = True
    new_day(self, time_us)
    return True


cdef void new_day(Simulator self, int64_t time_us) noexcept nogil:
    cdef int32_t day = program_day(core_program(self.core), time_us)
    if day == self.day:
        return
    if self.first_day == INT32_NONE:
        self.first_day = day
    else:
        sweep_at(self, time_us)     # what the days between have made expire
    self.day = day


cdef void sweep(Simulator self) noexcept nogil:
    sweep_at(self, core_stats(self.core).time_us)


cdef void sweep_at(Simulator self, int64_t time_us) noexcept nogil:
    # Every account is looked at: a tick looks at some, and says 0 when nothing was due among them.
    cdef int64_t looks = div_floor(<int64_t>core_stats(self.core).members, TICK_ACCOUNTS_MAX) + 2
    while looks != 0:
        if core_tick(self.core, time_us, self.entry) == 0:
            looks -= 1


cdef void count_rows(Simulator self, int64_t* members, int64_t* days, uint32_t member, uint32_t column, int64_t value) noexcept nogil:
    cdef int64_t day = self.day - self.first_day
    members[(member - 1) * <uint64_t>self.stride + column] += value
    if 0 <= day < DAYS_MAX:
        days[day * <uint64_t>self.stride + column] += value


# --- what was given ---------------------------------------------------------------------------------------------------

cdef void count_award(Simulator self, uint32_t version, uint64_t rule, uint64_t wallet, int64_t points, uint32_t member) noexcept nogil:
    cdef Tally* row
    if version >= VERSIONS_MAX:
        version = VERSIONS_MAX - 1
    if self.before[version] == NULL:
        self.before[version] = <Tally*>calloc(RULE_ROWS, sizeof(Tally))
        if self.before[version] == NULL:
            return
    if version > self.versions:
        self.versions = version
    row = &self.before[version][rule - 1 if 1 <= rule < RULE_ROWS else RULE_ROWS - 1]
    row.points += points
    if wallet < WALLETS_MAX:
        self.then.points[wallet] += points
        count_rows(self, self.members_before, self.days_before, member, ROW_WALLETS + <uint32_t>wallet, points)


cdef void count_discounts(Simulator self, uint32_t member, int64_t minor) noexcept nogil:
    self.then.discounts += minor
    count_rows(self, self.members_before, self.days_before, member, ROW_DISCOUNTS, minor)


cdef void count_given(Simulator self, const EntryView* view) noexcept nogil:
    # What the journal says that a receipt was given.
    cdef Cursor cursor
    cdef uint64_t rule, last = 0, wallet
    cdef uint32_t version = deciding_program(view)
    self.then.receipts += 1
    count_rows(self, self.members_before, self.days_before, view.header.member, ROW_RECEIPTS, 1)
    cursor_open(&cursor, &view.sections[SECTION_AWARDS])
    while cursor_more(&cursor):
        get_varint(&cursor)
        rule = get_varint(&cursor)
        wallet = get_varint(&cursor)
        count_award(self, version, rule, wallet, get_signed(&cursor), view.header.member)
        if rule != last and version < VERSIONS_MAX and self.before[version] != NULL:
            self.before[version][rule - 1 if 1 <= rule < RULE_ROWS else RULE_ROWS - 1].receipts += 1
        last = rule
    cursor_open(&cursor, &view.sections[SECTION_DISCOUNTS])
    while cursor_more(&cursor):
        get_varint(&cursor)
        count_discounts(self, view.header.member, <int64_t>get_varint(&cursor))


cdef void count_postings(Simulator self, const EntryView* view) noexcept nogil:
    cdef Cursor cursor
    cdef uint64_t wallet
    cdef uint8_t account
    cdef int64_t points
    cdef bint burned = False
    cursor_open(&cursor, &view.sections[SECTION_POSTINGS])
    while cursor_more(&cursor):
        account = get_byte(&cursor)
        wallet = get_varint(&cursor)
        points = get_signed(&cursor)
        if wallet >= WALLETS_MAX:
            continue
        if account == ACCOUNT_REDEEMED:
            self.then.burned[wallet] += points
            burned = burned or points != 0
        elif account == ACCOUNT_EXPIRED:
            self.then.expired[wallet] += points
    self.then.burns += burned


cdef void count_result(Simulator self, uint32_t member) noexcept nogil:
    # What the core has just decided.
    cdef const Program2* rules = <const Program2*>core_program(self.core).rules
    cdef const Result2* result = core_result(self.core)
    cdef const Given* given
    cdef Tally* row
    cdef int64_t minor = 0
    cdef uint32_t i, j
    cdef uint8_t kind, reason
    self.now.receipts += 1
    count_rows(self, self.members_after, self.days_after, member, ROW_RECEIPTS, 1)
    for i in range(result.given_count):
        given = &result.given[i]
        row = &self.after[given.rule]
        kind = rules.rules[given.rule].kind
        row.receipts += given.given > 0
        if kind == RULE_DISCOUNT_LINE or kind == RULE_DISCOUNT_RECEIPT:
            row.discount += given.given
            minor += given.given
        elif kind <= RULE_TIMES:
            row.points += given.given
        for j in range(given.cut_count):
            row.cut += result.cuts[given.first_cut + j].points
    for i in range(result.not_given_count):
        reason = result.not_given[i].reason
        if reason >= REASON_CAP or reason == REASON_CAMPAIGN_VALUE or reason == REASON_CAMPAIGN_USES or reason == REASON_CAP_TOO_LATE:
            self.after[result.not_given[i].rule].held_back += 1
    self.now.discounts += minor
    count_rows(self, self.members_after, self.days_after, member, ROW_DISCOUNTS, minor)
    for i in range(rules.wallet_count):
        self.now.points[i] += result.points[i]
        count_rows(self, self.members_after, self.days_after, member, ROW_WALLETS + i, result.points[i])


# --- an entry becomes a command ---------------------------------------------------------------------------------------

cdef void begin_command(Simulator self, uint8_t method, uint32_t member, int64_t time_us) noexcept nogil:
    cdef Command* command = self.command
    command.method = method
    command.payment = PAYMENT_NONE
    command.given = GIVEN_SENT_TIME
    command.sent_time_us = time_us
    command.hashed = LOOKED_UP
    memset(&command.found, 0, sizeof(command.found))
    command.found.requests_until = command.found.receipts_until = UINT64_MAX
    command.member.kind = MEMBER_BY_ID
    command.member.member_id = member
    command.points = 0
    command.reservation_id = 0
    command.expiry_day = 0
    command.line_count = command.tender_count = command.promo_code_count = 0
    command.add_count = command.remove_count = 0
    command.channel.size = command.quote_token.size = 0
    command.request_id.data = <const uint8_t*>self.request_id
    command.request_id.size = ID_DIGITS


cdef void name_request(Simulator self, uint32_t attempt) noexcept nogil:
    # The journal's sequence and the attempt, four bits a letter.
    cdef uint64_t rest = self.seen * ATTEMPTS_MAX + attempt
    cdef int i
    for i in range(ID_DIGITS):
        self.request_id[ID_DIGITS - 1 - i] = <char>(97 + (rest & 15))
        rest >>= 4


cdef int32_t day_as_sent(int32_t day) noexcept nogil:
    # yyyymmdd of a day since 1970.
    cdef int32_t year, month, of_month
    civil_from_day(day, &year, &month, &of_month)
    return year * 10000 + month * 100 + of_month


cdef void pay_with(Simulator self, uint64_t wallet, int64_t points) noexcept nogil:
    cdef const Program* program = core_program(self.core)
    cdef Command* command = self.command
    if wallet >= program.wallet_count or points <= 0:
        return
    command.payment = PAYMENT_BURN if command.method == METHOD_COMMIT else PAYMENT_NONE
    command.points = points
    command.wallet.data = <const uint8_t*>program.wallets[wallet].name
    command.wallet.size = program.wallets[wallet].name_size
    command.given |= GIVEN_WALLET


cdef void read_time(Simulator self, const EntryView* view, const Context* context) noexcept nogil:
    # When it was bought, if the till said so.
    if context.given >> CONTEXT_BUSINESS_TIME & 1:
        self.command.business_time_us = view.header.time_us + context.values[CONTEXT_BUSINESS_TIME]
        self.command.given |= GIVEN_BUSINESS_TIME


cdef bint read_receipt(Simulator self, const EntryView* view, const Context* context) noexcept nogil:
    # The receipt of an entry into the command. False: its bytes are broken.
    cdef Command* command = self.command
    cdef Cursor cursor
    cdef LineDetails details
    cdef Slice text
    cdef uint32_t count = 0
    cdef uint8_t tag
    command.given |= GIVEN_RECEIPT | GIVEN_RECEIPT_KEY
    read_time(self, view, context)
    if view.sections[SECTION_QUOTE].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_QUOTE])
        get_varint(&cursor)
        command.business_time_us = view.header.time_us + get_signed(&cursor)
        command.given |= GIVEN_BUSINESS_TIME
    command.business_day = <int32_t>context.values[CONTEXT_BUSINESS_DAY]
    command.total_minor = context.values[CONTEXT_TOTAL]
    command.store = context.store
    command.till = context.till
    command.number = context.number
    command.currency.data = <const uint8_t*>core_program(self.core).currency
    command.currency.size = 3
    details_open(&details, &view.sections[SECTION_LINE_DETAILS])
    cursor_open(&cursor, &view.sections[SECTION_LINES])
    while cursor_more(&cursor):
        if count >= LINES_MAX:
            return False
        command.lines[count].sku = get_text(&cursor)
        command.lines[count].category = get_text(&cursor)
        command.lines[count].quantity_milli = <int64_t>get_varint(&cursor)
        command.lines[count].amount_minor = get_signed(&cursor)
        details_next(&details, count + 1)
        command.lines[count].regular_minor = details.regular_minor
        command.lines[count].weighed = details.flags & LINE_WEIGHED
        count += 1
    command.line_count = count
    if cursor.broken:
        return False
    cursor_open(&cursor, &view.sections[SECTION_RECEIPT])
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        text = get_text(&cursor)
        if tag == RECEIPT_CHANNEL:
            command.channel = text
        elif tag == RECEIPT_TENDER:
            if command.tender_count >= TENDERS_PER_RECEIPT_MAX:
                return False
            command.tenders[command.tender_count].name = text
            command.tenders[command.tender_count].amount_minor = <int64_t>get_varint(&cursor)
            command.tender_count += 1
        elif tag == RECEIPT_PROMO_CODE:
            if command.promo_code_count >= PROMO_CODES_PER_RECEIPT_MAX:
                return False
            command.promo_codes[command.promo_code_count] = text
            command.promo_code_count += 1
    return not cursor.broken


cdef void read_capture(const EntryView* view, uint64_t* wallet, int64_t* points) noexcept nogil:
    # What a capture took.
    cdef Cursor cursor
    cursor_open(&cursor, &view.sections[SECTION_RESERVATION])
    get_varint(&cursor)
    get_byte(&cursor)
    wallet[0] = get_varint(&cursor)
    get_signed(&cursor)
    points[0] = get_signed(&cursor)


cdef int open_account(Simulator self, const EntryView* view, uint32_t member, int64_t time_us) noexcept nogil:
    # An account, as the entry opened it. Fault.
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, self.entry)
    cdef Cursor cursor
    cdef int32_t day = program_day(core_program(self.core), time_us)
    memset(header, 0, ENTRY_HEADER_BYTES)
    header.kind = KIND_ENROLL
    header.flags = FLAG_OPENED
    header.time_us = time_us
    header.member = member
    header.program = core_program(self.core).version
    if view != NULL and view.sections[SECTION_OPENED].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_OPENED])
        day = <int32_t>get_signed(&cursor)
    if core_program(self.core).rules != NULL:
        section_begin(&writer, SECTION_OPENED)
        put_signed(&writer, day)
        section_end(&writer)
    self.fault_detail = core_apply(self.core, self.entry, entry_finish(&writer))
    return FAULT_NONE if self.fault_detail == APPLY_OK else FAULT_APPLY


# --- simulate ---------------------------------------------------------------------------------------------------------

cdef void decide(Simulator self, uint32_t member, int64_t time_us) noexcept nogil:
    # Until the core says yes, or no to something else than the burn's size.
    cdef Command* command = self.command
    cdef Outcome* outcome = &self.outcome
    cdef int64_t asked = command.points, largest
    cdef uint32_t attempt
    for attempt in range(<uint32_t>ATTEMPTS_MAX):
        name_request(self, attempt)
        core_execute(self.core, command, time_us, self.entry, outcome)
        if outcome.status != STATUS_INSUFFICIENT_POINTS and outcome.status != STATUS_BURN_NOT_ALLOWED or command.points == 0:
            break
        largest = outcome.a if outcome.a < command.points else 0
        if command.method == METHOD_ADJUST:
            if largest <= 0:
                break
            command.points = -largest
        elif largest > 0 and attempt + 2 < ATTEMPTS_MAX:
            command.points = largest
        elif command.method == METHOD_COMMIT:
            command.points = 0
            command.payment = PAYMENT_NONE
            command.given &= ~GIVEN_WALLET
        else:
            break
    if command.method == METHOD_ADJUST:
        return
    if outcome.status == STATUS_OK:
        if command.method != METHOD_BURN:
            count_result(self, member)
        if command.points > 0:
            self.now.burns += 1
            self.now.burned[wallet_of(self)] += command.points
    else:
        self.now.refused += 1
        self.refusals[outcome.status if outcome.status < STATUSES_MAX else 0] += 1
    self.now.cut_burns += asked > 0 and (outcome.status != STATUS_OK or command.points < asked)


cdef uint32_t wallet_of(Simulator self) noexcept nogil:
    cdef const Program* program = core_program(self.core)
    cdef uint32_t i
    for i in range(program.wallet_count):
        if <const uint8_t*>program.wallets[i].name == self.command.wallet.data:
            return i
    return 0


cdef int take_simulated(Simulator self, const EntryView* view, uint32_t size) noexcept nogil:
    # Fault.
    cdef const EntryHeader* header = view.header
    cdef Command* command = self.command
    cdef Context context
    cdef uint64_t wallet = 0
    cdef int64_t points = 0
    cdef uint8_t kind = header.kind
    cdef int fault
    new_day(self, header.time_us)
    if core_program(self.core).version != self.version:
        self.fault_detail = APPLY_PROGRAM   # one that was to come when the simulation began
        return FAULT_APPLY
    if header.status != STATUS_OK:
        self.then.refused += kind == KIND_EARN or kind == KIND_COMMIT
        return FAULT_NONE
    if header.flags & FLAG_OPENED:
        fault = open_account(self, view, header.member, header.time_us)
        if fault != FAULT_NONE:
            return fault
    if kind != KIND_ADJUST:
        count_postings(self, view)
    context_read(view, &context)
    if kind == KIND_EARN or kind == KIND_COMMIT:
        count_given(self, view)
        begin_command(self, METHOD_EARN if kind == KIND_EARN else METHOD_COMMIT, header.member, header.time_us)
        if not read_receipt(self, view, &context):
            return FAULT_ENTRIES
        if context.values[CONTEXT_PAYMENT] == PAYMENT_BURN:
            pay_with(self, <uint64_t>context.values[CONTEXT_WALLET], context.values[CONTEXT_POINTS])
        elif context.values[CONTEXT_PAYMENT] == PAYMENT_CAPTURE:
            read_capture(view, &wallet, &points)
            pay_with(self, wallet, points)
        decide(self, header.member, header.time_us)
    elif kind == KIND_BURN or kind == KIND_CAPTURE:
        begin_command(self, METHOD_BURN, header.member, header.time_us)
        read_time(self, view, &context)
        if kind == KIND_BURN:
            wallet, points = <uint64_t>context.values[CONTEXT_WALLET], context.values[CONTEXT_POINTS]
        else:
            read_capture(view, &wallet, &points)
        pay_with(self, wallet, points)
        if command.points > 0:
            decide(self, header.member, header.time_us)
    elif kind == KIND_ADJUST:
        begin_command(self, METHOD_ADJUST, header.member, header.time_us)
        pay_with(self, <uint64_t>context.values[CONTEXT_WALLET], 1)
        command.points = context.values[CONTEXT_POINTS]
        command.expiry_day = <int32_t>context.values[CONTEXT_EXPIRY_DAY]
        command.operator_name = context.operator_name
        command.reason = context.reason
        decide(self, header.member, header.time_us)
    elif kind == KIND_SET_SEGMENTS or kind == KIND_SET_ATTRIBUTES:
        memcpy(self.copy, header, size)
        (<EntryHeader*>self.copy).program = core_program(self.core).version
        self.fault_detail = core_apply(self.core, self.copy, size)
        return FAULT_NONE if self.fault_detail == APPLY_OK else FAULT_APPLY
    return FAULT_NONE


# --- explain ----------------------------------------------------------------------------------------------------------

cdef int take_explained(Simulator self, const EntryView* view, uint32_t size) noexcept nogil:
    # The target is decided again; of what is before it, the member's own entries and programmes are applied, and of others what openings and
    # campaigns there are. Each entry is one sequence, so that reservations keep their ids. Fault.
    cdef const EntryHeader* header = view.header
    cdef Context context
    cdef int fault
    if self.seen == self.target:
        self.done = True
        self.command.method = 0
        if header.kind != KIND_EARN and header.kind != KIND_COMMIT or core_program(self.core) == NULL:
            return FAULT_NONE
        if header.flags & FLAG_OPENED:
            fault = open_account(self, view, header.member, header.time_us)
            if fault != FAULT_NONE:
                return fault
        begin_command(self, METHOD_EARN if header.kind == KIND_EARN else METHOD_COMMIT, header.member, header.time_us)
        context_read(view, &context)
        if not read_receipt(self, view, &context):
            return FAULT_ENTRIES
        if context.values[CONTEXT_PAYMENT] == PAYMENT_BURN:
            pay_with(self, <uint64_t>context.values[CONTEXT_WALLET], context.values[CONTEXT_POINTS])
        elif context.values[CONTEXT_PAYMENT] == PAYMENT_CAPTURE:
            self.command.payment = PAYMENT_CAPTURE
            self.command.reservation_id = context.values[CONTEXT_RESERVATION]
            self.command.points = context.values[CONTEXT_POINTS]
        name_request(self, 0)
        if core_program(self.core).rules != NULL and deciding_program(view) == core_program(self.core).version:
            core_execute(self.core, self.command, header.time_us, self.entry, &self.outcome)
            self.decided = True
        return FAULT_NONE
    if header.kind == KIND_PROGRAM or header.kind > KIND_PROGRAM and header.kind != KIND_DIGEST or header.member == self.only_member \
            and header.kind < KIND_PROGRAM:
        self.fault_detail = core_apply(self.core, <const uint8_t*>header, size)
    elif header.flags & FLAG_OPENED and header.status == STATUS_OK:
        if view.sections[SECTION_CAMPAIGNS].data != NULL:
            return take_campaigns(self, view, True)
        return open_account(self, view, header.member, header.time_us)
    elif header.status == STATUS_OK and view.sections[SECTION_CAMPAIGNS].data != NULL:
        return take_campaigns(self, view, False)
    else:
        self.fault_detail = core_remember(self.core, <const uint8_t*>header, size)
    return FAULT_NONE if self.fault_detail == APPLY_OK else FAULT_APPLY


cdef int take_campaigns(Simulator self, const EntryView* view, bint opens) noexcept nogil:
    # Another member's receipt, of which only what it took from campaigns counts. Fault.
    cdef EntryWriter writer
    cdef EntryHeader* header = entry_begin(&writer, self.entry)
    cdef const Slice* campaigns = &view.sections[SECTION_CAMPAIGNS]
    memset(header, 0, ENTRY_HEADER_BYTES)
    header.kind = KIND_EARN
    header.flags = FLAG_OPENED if opens else 0
    header.time_us = view.header.time_us
    header.member = view.header.member
    header.program = view.header.program
    section_begin(&writer, SECTION_CAMPAIGNS)
    memcpy(writer.at, campaigns.data, campaigns.size)
    writer.at += campaigns.size
    section_end(&writer)
    self.fault_detail = core_apply(self.core, self.entry, entry_finish(&writer))
    return FAULT_NONE if self.fault_detail == APPLY_OK else FAULT_APPLY


cdef str padded(const char* text, uint32_t size_max):
    cdef uint32_t size = 0
    while size < size_max and text[size] != 0:
        size += 1
    return text[:size].decode()


cdef tuple reason_of(const Program2* rules, uint16_t rule, uint8_t reason):
    # In words: (what, the cap's window or the campaign's name).
    cdef const ImageRule* row = &rules.rules[rule]
    if reason >= REASON_CAP:
        return "cap_uses" if reason - REASON_CAP & 1 else "cap", PERS[(reason - REASON_CAP) >> 1]
    if reason == REASON_CAMPAIGN_VALUE or reason == REASON_CAMPAIGN_USES:
        return REASONS[reason], padded(rules.campaigns[row.campaign - 1].name, 64) if row.campaign else ""
    return REASONS[reason], ""


PERS = ("receipt", "day", "week", "month", "year", "ever", "birthday")
REASONS = ("", "too_little", "would_never_count", "cap_too_late", "lost_to", "nothing_left", "campaign", "campaign_uses")
KINDS = ("", "discount", "discount", "points", "add_percent", "times", "entitle")
FORMS = ("", "step", "quantity_step", "fixed", "percent", "times")
ROUNDS = ("floor", "half_up", "ceil")
BOUNDS = ("balance", "share", "eligible", "money_at_least", "max", "min", "no_rule")


cdef dict described(const Program2* rules, uint16_t rule):
    # A rule as its image has it.
    cdef const ImageRule* row = &rules.rules[rule]
    cdef const ImageCap* cap
    caps = []
    for i in range(row.cap_count):
        cap = &rules.caps[row.first_cap + i]
        caps.append({"per": PERS[cap.per], "of": "uses" if cap.measure else "value", "limit": cap.limit})
    return {"rule": rule + 1, "name": padded(rules.rule_names + 64 * rule, 64), "kind": KINDS[row.kind], "form": FORMS[row.form],
            "per": "line" if row.per else "receipt", "round": ROUNDS[row.round], "step": row.a, "gives": row.b,
            "rate_factor": row.rate_factor, "rate_divisor": row.rate_divisor,
            "wallet": row.wallet if RULE_POINTS <= row.kind <= RULE_TIMES else None, "funder": row.funder, "caps": caps,
            "campaign": padded(rules.campaigns[row.campaign - 1].name, 64) if row.campaign else ""}


cdef list shares_of(const Scratch* scratch, const Result2* result, const Given* given):
    cdef const int64_t* share = &scratch.pool[given.first_share]
    cdef const uint64_t* bits = &scratch.rows[given.rule * <uint64_t>scratch.stride]
    lines = []
    for i in range(result.line_count):
        if bits[i >> 6] >> (i & 63) & 1:
            if share[0]:
                lines.append({"line": i + 1, "amount": share[0]})
            share += 1
    return lines


cdef dict explanation(Simulator self):
    cdef const Program* program = core_program(self.core)
    cdef const Program2* rules = NULL
    cdef const Result2* result
    cdef const Scratch* scratch
    cdef const Given* given
    cdef const ImageThreshold* threshold
    cdef uint32_t i, j
    cdef bytes entry = b""
    found = {"decided": bool(self.decided), "version": program.version, "wallets": [
        {"name": program.wallets[i].name[:program.wallets[i].name_size].decode(), "scale": program.wallets[i].scale}
        for i in range(program.wallet_count)]}
    found["rules_version"] = 1 if program.rules == NULL else 2
    if program.rules != NULL:
        rules = <const Program2*>program.rules
        found["currency"] = padded(rules.header.currency, 4)
        found["currency_digits"] = rules.header.currency_digits
    if not self.decided:
        return found
    found["status"] = self.outcome.status
    if self.outcome.entry != NULL:
        found["entry"] = (<const char*>self.outcome.entry)[:self.outcome.entry_size]
    core_list_burn_limits(self.core)
    result, scratch = core_result(self.core), core_scratch(self.core)
    tiers = [padded(rules.tiers[i].name, 32) for i in range(rules.counts[SECTION2_TIERS])]
    found["refused"] = result.refused
    found["tier"] = tiers[result.tier] if result.tier < len(tiers) else ""
    found["burn_limits"] = [
        {"wallet": result.burn_limits[i].wallet, "points": result.burn_limits[i].points,
         "rule": padded(rules.burn[result.burn_limits[i].rule - 1].name, 64) if result.burn_limits[i].rule else "",
         "bounds": [name for j, name in enumerate(BOUNDS) if result.burn_limits[i].why >> j & 1]} for i in range(result.burn_limit_count)]
    if result.refused:
        found["given"] = found["not_given"] = []
        return found
    rows = []
    for i in range(result.given_count):
        given = &result.given[i]
        row = described(rules, given.rule)
        row.update(base=given.base, numerator=given.exact.lo | <object>given.exact.hi << 64, divisor=given.divisor, rounded=given.rounded,
                   given=given.given, available_day=given.available_day,
                   expiry_day=None if given.expiry_day == DAY_NEVER else given.expiry_day,
                   lines=shares_of(scratch, result, given) if self.command.line_count else [])
        row["cuts"] = [dict(zip(("reason", "of", "amount"), (*reason_of(rules, given.rule, result.cuts[given.first_cut + j].reason),
                                                             result.cuts[given.first_cut + j].points)))
                       for j in range(given.cut_count)]
        rows.append(row)
    found["given"] = rows
    rows = []
    for i in range(result.not_given_count):
        row = described(rules, result.not_given[i].rule)
        row["reason"], row["of"] = reason_of(rules, result.not_given[i].rule, result.not_given[i].reason)
        if row["reason"] == "lost_to":
            row["of"] = padded(rules.rule_names + 64 * result.not_given[i].taker, 64)
        rows.append(row)
    found["not_given"] = rows
    found["to_next"] = []
    for i in range(result.missing_count):
        threshold = &rules.thresholds[result.missing[i].threshold]
        found["to_next"].append({"measure": "spent" if threshold.measure else "receipts", "missing": result.missing[i].missing})
    return found
