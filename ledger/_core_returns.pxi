# Returns: a receipt is given back whole, and counters of limits give back what they counted. Included by ledger/_core.pyx.
# Not for parts of a receipt (the till returns it whole and commits what the customer keeps), and not for what a limit says of returns
# (ledger/_core_limits.pxi).
#
# What a sale did is read from its own entries: what it took goes back into its lots with their expiry, what it gave is taken from where it lies.
# No wallet goes below zero for it: what the member has spent meanwhile is told as missing. Caps, campaigns and tiers' windows get the sale's
# own increments with the other sign; the tier itself stays until it is judged anew. An entry of a return knows its receipt under a key of
# its own, so a second one is found for as long as the receipt is.

cdef enum:
    BACK_PARTS = 1 << PART_MEMBER | 1 << PART_HOUR      # parts of counters' keys that GIVEN_BACK need not say

cdef struct Sale:               # what is returned
    uint64_t earned_by          # its earn; 0: none
    uint64_t paid_by            # its burn or capture, the same entry for a commit; 0: none
    uint64_t denied_by          # the review that took its points; 0: none
    int64_t missing[WALLETS_MAX]    # points that were earned and are spent
    Measured back[2]            # what it was counted as, where counters may give it back
    uint32_t back_count


# --- the sale -----------------------------------------------------------------------------------------------------

cdef bint find_sale(const Core* core, const Command* command, const Decision* d, Sale* sale, Outcome* outcome) noexcept nogil:
    # Which entries a receipt key stands for. False: there are none, or it was returned, or the runs must tell first.
    cdef const KeyTable* receipts = &core.keys[KEYS_RECEIPT]
    cdef uint64_t returned
    keys_find(receipts, d.receipt_hash, &sale.earned_by, &sale.paid_by)
    keys_find(receipts, key_of_return(d.receipt_hash), &returned, &sale.denied_by)
    if command.business_day <= receipts.forgotten and returned == 0:
        if not runs_kept(receipts):
            refuse(outcome, STATUS_RECEIPT_TOO_OLD, receipts.forgotten, 0)
            return False
        if not runs_told(command, receipts, command.found.receipts_until):
            ask_runs(core, command, d, 0, outcome)
            return False
        sale.earned_by = sale.earned_by if sale.earned_by != 0 else command.found.first
        sale.paid_by = sale.paid_by if sale.paid_by != 0 else command.found.second
        sale.denied_by = sale.denied_by if sale.denied_by != 0 else command.found.denied
        returned = command.found.returned
    if returned != 0:
        refuse(outcome, STATUS_RECEIPT_ALREADY_RETURNED, <int64_t>returned, 0)
        outcome.wait_sequence = returned
        return False
    if sale.earned_by == 0 and sale.paid_by == 0:
        refuse(outcome, STATUS_RECEIPT_NOT_FOUND, 0, 0)
        return False
    return True


cdef bint read_sale(const Core* core, const Command* command, const Decision* d, uint64_t sequence, EntryView* view, Outcome* outcome) noexcept nogil:
    # One of its entries; valid until the next is read. False: a run has led to an entry of something else, so it is not of this journal.
    cdef uint32_t size = 0
    cdef const uint8_t* entry = core.find(core.find_owner, sequence, &size) if core.find != NULL else NULL
    cdef Context context
    cdef Hash128 key
    cdef bint good = entry != NULL and entry_view(entry, size, view) and view.header.status == STATUS_OK and view.header.member != 0
    if good:
        context_read(view, &context)
        good = context.store.size <= STORE_BYTES_MAX and context.till.size <= TILL_BYTES_MAX and context.number.size <= RECEIPT_NUMBER_BYTES_MAX
    if good:
        key = receipt_key_hash(<int32_t>context.values[CONTEXT_BUSINESS_DAY], context.store, context.till, context.number)
        good = key.lo == d.receipt_hash.lo and key.hi == d.receipt_hash.hi
    VERIFY(good or command.hashed & LOOKED_UP)
    if not good:
        refuse(outcome, STATUS_IDS_UNREADABLE, 0, 0)
    return good


cdef bint find_owner_of(const Core* core, const Command* command, Decision* d, const Sale* sale, Outcome* outcome) noexcept nogil:
    # Whose account it was. False: outcome says why nothing can be done.
    cdef EntryView view
    cdef uint32_t payer = 0
    if sale.paid_by != 0:
        if not read_sale(core, command, d, sale.paid_by, &view, outcome):
            return False
        payer = d.member = view.header.member
    if sale.earned_by != 0 and sale.earned_by != sale.paid_by:
        if not read_sale(core, command, d, sale.earned_by, &view, outcome):
            return False
        d.member = view.header.member
    if payer != 0 and payer != d.member:
        outcome.wait_sequence = later_of(sale.earned_by, sale.paid_by)  # a crash must not take back what somebody was told
        refuse(outcome, STATUS_RECEIPT_OF_TWO_MEMBERS, d.member, payer)
        return False
    return True


cdef bint change_next(Cursor* cursor, Change* change) noexcept nogil:
    # The next row of a LOTS section.
    if not cursor_more(cursor):
        return False
    change.wallet = <uint16_t>get_varint(cursor)
    change.available_day = <int32_t>get_varint(cursor)
    change.expiry_day = <int32_t>get_varint(cursor)
    change.funder = <uint16_t>get_varint(cursor)
    change.points = get_signed(cursor)
    change.held = get_signed(cursor)
    return not cursor.broken and change.wallet < WALLETS_MAX


cdef void sum_postings(const EntryView* view, uint8_t wanted, int64_t* sums) noexcept nogil:
    # Of one side of the postings, per wallet.
    cdef Cursor cursor
    cdef uint64_t wallet
    cdef int64_t points
    cdef uint8_t account
    memset(sums, 0, WALLETS_MAX * sizeof(int64_t))
    cursor_open(&cursor, &view.sections[SECTION_POSTINGS])
    while view.sections[SECTION_POSTINGS].data != NULL and cursor_more(&cursor):
        account = get_byte(&cursor)
        wallet = get_varint(&cursor)
        points = get_signed(&cursor)
        if account == wanted and wallet < WALLETS_MAX:
            sums[wallet] += points


cdef void lot_of_change(const Change* change, Lot* lot) noexcept nogil:
    memset(lot, 0, sizeof(Lot))
    lot.wallet = change.wallet
    lot.available_day = change.available_day
    lot.expiry_day = change.expiry_day
    lot.funder = change.funder


cdef void give_paid(Core* core, Decision* d, const Account* account, const EntryView* view, int64_t* given) noexcept nogil:
    # What the sale took goes back into its lots; into one that has expired meanwhile it goes and expires. A row takes before it moves what
    # lives by inactivity, so the first ones are those of the payment. given: per wallet, what there is more of.
    cdef Cursor cursor
    cdef Change change
    cdef Lot lot
    cdef int64_t[WALLETS_MAX] left
    cdef int64_t points
    cdef int32_t day
    sum_postings(view, ACCOUNT_REDEEMED, left)
    cursor_open(&cursor, &view.sections[SECTION_LOTS])
    while view.sections[SECTION_LOTS].data != NULL and change_next(&cursor, &change):
        points = min_i64(-change.points, left[change.wallet])
        if points <= 0:
            continue
        left[change.wallet] -= points
        lot_of_change(&change, &lot)
        if lot.funder & LOT_SLIDES:
            day = slide_day(core, d, account, lot.wallet)
            if day > lot.expiry_day:
                lot.expiry_day = day
        d.touched |= <uint32_t>1 << lot.wallet
        d.burned[lot.wallet] -= points
        if lot.expiry_day <= d.today:
            d.expired[lot.wallet] += points
            continue
        given[lot.wallet] += points
        add_change(core, d, &lot, points, 0)


cdef int64_t take_of(Core* core, Decision* d, const Lot* lot, int64_t points) noexcept nogil:
    # Takes up to so many points of a lot that nothing holds; returns how many.
    cdef int64_t taken = min_i64(points, left_of(core, lot, d.change_count))
    if taken <= 0:
        return 0
    add_change(core, d, lot, -taken, 0)
    d.earned[lot.wallet] -= taken
    return taken


cdef int64_t take_from_lots(Core* core, Decision* d, const Account* account, uint32_t wallet, int64_t points, bint pending) noexcept nogil:
    # From what else the member has in a wallet, soonest expiry first; returns what is still missing.
    cdef const Lot* lot
    cdef uint32_t i
    for i in range(account.lot_count):
        lot = &core.arena.lots[account.lots + i]
        if lot.wallet == wallet and lot.expiry_day > d.today and lot.available_day < REVIEW_DAYS and (lot.available_day > d.today) == pending:
            points -= take_of(core, d, lot, points)
    return points


cdef const Lot* lot_like(const Core* core, const Account* account, const Lot* key) noexcept nogil:
    cdef bint found = False
    cdef uint32_t place
    if account.lots == NO_PIECE:
        return NULL
    place = lot_search(&core.arena.lots[account.lots], account.lot_count, key.wallet, key.expiry_day, key.available_day, key.funder, &found)
    return &core.arena.lots[account.lots + place] if found else NULL


cdef void take_earned(Core* core, Decision* d, const Account* account, const EntryView* view, Sale* sale) noexcept nogil:
    # What the sale gave: from its own lots, then from the others that are available, from those to come, and from what is given back just
    # now. What would have expired by now is not owed; but for what lives by inactivity, because later receipts may have kept it alive.
    cdef Cursor cursor
    cdef Change change
    cdef Lot lot
    cdef const Lot* own
    cdef int64_t[WALLETS_MAX] left
    cdef int64_t points
    cdef uint32_t w, i, given = d.change_count
    sum_postings(view, ACCOUNT_ISSUED, left)
    cursor_open(&cursor, &view.sections[SECTION_LOTS])
    while view.sections[SECTION_LOTS].data != NULL and change_next(&cursor, &change):
        points = min_i64(change.points, -left[change.wallet])
        if points <= 0:
            continue
        left[change.wallet] += points
        d.touched |= <uint32_t>1 << change.wallet
        if change.expiry_day <= d.today and not change.funder & LOT_SLIDES:
            continue
        if change.available_day >= REVIEW_DAYS and sale.denied_by != 0:
            continue            # taken already
        lot_of_change(&change, &lot)
        own = lot_like(core, account, &lot)
        if own == NULL and lot.available_day >= REVIEW_DAYS:
            lot.available_day -= REVIEW_DAYS        # where they went when somebody let them through
            own = lot_like(core, account, &lot)
        if own != NULL and own.expiry_day > d.today:
            points -= take_of(core, d, own, points)
        sale.missing[change.wallet] += points
    for w in range(<uint32_t>WALLETS_MAX):
        points = take_from_lots(core, d, account, w, sale.missing[w], False)
        points = take_from_lots(core, d, account, w, points, True)
        for i in range(given):
            if core.changes[i].wallet == w and core.changes[i].points > 0:
                lot_of_change(&core.changes[i], &lot)
                if lot_like(core, account, &lot) == NULL:
                    points -= take_of(core, d, &lot, points)
        sale.missing[w] = points


# --- the entry ----------------------------------------------------------------------------------------------------

cdef void write_taken_increments(EntryWriter* writer, const EntryView* view) noexcept nogil:
    # COUNTERS, CAMPAIGNS and DAYS of the sale with the other sign. They drop nothing: what is kept is the later receipts' business.
    cdef Cursor cursor
    if view.sections[SECTION_COUNTERS].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_COUNTERS])
        section_begin(writer, SECTION_COUNTERS)
        get_signed(&cursor)
        put_signed(writer, 0)
        while cursor_more(&cursor):
            put_key(writer, get_key(&cursor))
            put_byte(writer, get_byte(&cursor))
            put_signed(writer, get_signed(&cursor))
            put_signed(writer, -get_signed(&cursor))
        section_end(writer)
    if view.sections[SECTION_CAMPAIGNS].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_CAMPAIGNS])
        section_begin(writer, SECTION_CAMPAIGNS)
        while cursor_more(&cursor):
            put_key(writer, get_key(&cursor))
            put_signed(writer, -get_signed(&cursor))
            put_signed(writer, -get_signed(&cursor))
        section_end(writer)
    if view.sections[SECTION_DAYS].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_DAYS])
        section_begin(writer, SECTION_DAYS)
        get_varint(&cursor)
        put_varint(writer, DAY_NEVER - 1)
        while cursor_more(&cursor):
            put_signed(writer, get_signed(&cursor))
            put_signed(writer, -get_signed(&cursor))
            put_signed(writer, -get_signed(&cursor))
        section_end(writer)


cdef void write_returned(EntryWriter* writer, const Sale* sale) noexcept nogil:
    cdef uint32_t w
    section_begin(writer, SECTION_RETURNED)
    put_varint(writer, sale.earned_by)
    put_varint(writer, sale.paid_by)
    for w in range(<uint32_t>WALLETS_MAX):
        if sale.missing[w] != 0:
            put_varint(writer, w)
            put_varint(writer, <uint64_t>sale.missing[w])
    section_end(writer)


cdef void write_given_back(EntryWriter* writer, const Measured* back, uint32_t count, int64_t now_us) noexcept nogil:
    # What counters counted of the entries that are undone.
    cdef const Measured* m
    cdef uint32_t i, part, parts
    if count == 0:
        return
    section_begin(writer, SECTION_GIVEN_BACK)
    for i in range(count):
        m = &back[i]
        parts = m.known & ~<uint32_t>BACK_PARTS
        put_varint(writer, m.events)
        put_signed(writer, m.time_s - div_floor(now_us, MICROSECONDS))
        put_signed(writer, m.offset_s)
        put_varint(writer, <uint64_t>m.earned)
        put_varint(writer, <uint64_t>m.taken)
        put_varint(writer, <uint64_t>m.reserved)
        put_varint(writer, <uint64_t>m.money)
        put_varint(writer, parts)
        for part in range(<uint32_t>PART_COUNT):
            if parts >> part & 1:
                put_bytes(writer, <const uint8_t*>&m.part[part], 8)
    section_end(writer)


cdef bint read_given_back(Core* core, const EntryView* view, Cursor* cursor, Measured* m) noexcept nogil:
    # One row. The member's segments are those of now: which they were then nobody knows.
    cdef const uint8_t* data
    cdef uint64_t parts
    cdef uint32_t events, part
    cdef int64_t time_s
    cdef int32_t offset_s
    memset(m, 0, sizeof(Measured))
    events = <uint32_t>get_varint(cursor)
    time_s = div_floor(view.header.time_us, MICROSECONDS) + get_signed(cursor)
    offset_s = <int32_t>get_signed(cursor)
    m.earned = <int64_t>get_varint(cursor)
    m.taken = <int64_t>get_varint(cursor)
    m.reserved = <int64_t>get_varint(cursor)
    m.money = <int64_t>get_varint(cursor)
    parts = get_varint(cursor)
    if cursor.broken or parts >> PART_COUNT != 0 or not 0 <= time_s <= div_floor(view.header.time_us, MICROSECONDS):
        return False
    m.events = events
    know_time(core, m, view.header.time_us, time_s * MICROSECONDS, offset_s)
    know_member(core, m, view.header.member)
    for part in range(<uint32_t>PART_COUNT):
        if parts >> part & 1:
            data = get_bytes(cursor, 8)
            if data == NULL:
                return False
            memcpy(&m.part[part], data, 8)
            m.known |= <uint32_t>1 << part
    return True


cdef bint measure_back(Core* core, const EntryView* view, uint32_t events, Measured* m) noexcept nogil:
    # What an entry that is undone was counted as, of these events. False: it counted nowhere.
    if not measure_entry(core, view, m):
        return False
    m.events &= events
    return m.events != 0


cdef void write_reserve_back(EntryWriter* writer, Core* core, const Decision* d, const Reservation* reservation) noexcept nogil:
    # In the entry that ends a reservation without a capture, where a counter gives that back.
    cdef EntryView view
    cdef Measured m
    cdef uint32_t size = 0
    cdef const uint8_t* entry
    if not core.counting.gives_back & OF_RESERVE or core.find == NULL:
        return
    entry = core.find(core.find_owner, reservation.id, &size)
    if entry != NULL and entry_view(entry, size, &view) and measure_back(core, &view, OF_RESERVE, &m):
        write_given_back(writer, &m, 1, d.now_us)


# --- deciding -----------------------------------------------------------------------------------------------------

cdef bint check_return(const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    if not command.given & GIVEN_RECEIPT_KEY:
        refuse_field(outcome, STATUS_FIELD_INVALID, FIELD_KEY)
        return False
    return check_receipt_key(command, False, d, outcome)


cdef uint32_t write_return(Core* core, const Command* command, Decision* d, const Account* account, Sale* sale, uint8_t* entry,
                           EntryWriter* writer, Outcome* outcome) noexcept nogil:
    # Decides a return and writes its entry; it is not applied. Returns its size; more sections may follow. 0: outcome says the status, a and b.
    cdef EntryView view
    cdef Context context
    cdef int64_t[WALLETS_MAX] given
    cdef uint16_t status
    memset(given, 0, sizeof(given))
    if sale.paid_by != 0:
        if not read_sale(core, command, d, sale.paid_by, &view, outcome):
            return 0
        give_paid(core, d, account, &view, given)
        if sale.paid_by != sale.earned_by and measure_back(core, &view, OF_BURN, &sale.back[0]):
            sale.back_count = 1
    if sale.earned_by != 0:
        if not read_sale(core, command, d, sale.earned_by, &view, outcome):
            return 0
        context_read(&view, &context)
        d.sale_minor = context.values[CONTEXT_TOTAL]
        take_earned(core, d, account, &view, sale)
        if measure_back(core, &view, OF_EARN | OF_BURN, &sale.back[sale.back_count]):
            sale.back_count += 1
    status = check_room(core, d, account, 0, given, core.stats.issued_points, outcome)
    if status != STATUS_OK:
        outcome.status = status
        return 0
    fill_header(core, entry_begin(writer, entry), KIND_RETURN, d)
    write_context(writer, command, d)
    write_postings(writer, d)
    write_lots(writer, core, d)
    write_after(writer, core, d, account)
    if sale.earned_by != 0:
        write_taken_increments(writer, &view)
    write_origin(writer, core, command, d)
    return entry_finish(writer)


cdef void execute_return(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    cdef EntryWriter writer
    cdef Account* account
    cdef Sale sale
    cdef uint16_t status
    cdef uint32_t size
    memset(&sale, 0, sizeof(Sale))
    if not find_sale(core, command, d, &sale, outcome) or not find_owner_of(core, command, d, &sale, outcome):
        return
    account = &core.accounts[d.member - 1]
    if reservations_due(core, account, d.now_us):
        settle_member(core, d, entry, outcome)
    outcome.wait_sequence = account.sequence
    size = write_return(core, command, d, account, &sale, entry + outcome.written_size, &writer, outcome)
    status = outcome.status
    if size != 0 and limits_hold(core):
        status = obey_limits(core, writer.start, size, d, True, outcome)
    if status != STATUS_OK:
        if STATUS_ROWS[status].remembered:
            refuse_remembered(core, command, d, status, entry, outcome)
        else:
            outcome.status = status
        return
    if limits_hold(core):
        write_limits(&writer, core, d.member)
    write_returned(&writer, &sale)
    write_given_back(&writer, sale.back, sale.back_count, d.now_us)
    finish_write(core, writer.start, entry_finish(&writer), outcome)


# --- applying -----------------------------------------------------------------------------------------------------

cdef bint returned_read(const EntryView* view, Sale* sale) noexcept nogil:
    # Which entries a RETURNED section names. False: it is broken.
    cdef Cursor cursor
    cursor_open(&cursor, &view.sections[SECTION_RETURNED])
    sale.earned_by = get_varint(&cursor)
    sale.paid_by = get_varint(&cursor)
    return not cursor.broken


cdef int count_back(Core* core, Velocity* tables, const Program2* rules, const EntryView* view) noexcept nogil:
    # Takes what GIVEN_BACK says from the counters that give back, never below nothing. ApplyResult.
    cdef const ImageVelocity* counter
    cdef Cursor cursor
    cdef Measured m
    cdef uint32_t i
    if view.sections[SECTION_GIVEN_BACK].data == NULL:
        return APPLY_OK
    cursor_open(&cursor, &view.sections[SECTION_GIVEN_BACK])
    while cursor_more(&cursor):
        if not read_given_back(core, view, &cursor, &m):
            return APPLY_FRAMING
        for i in range(rules.counts[SECTION2_VELOCITY]):
            counter = &rules.velocity[i]
            if counter.flags & VELOCITY_GIVES_BACK and takes(counter, &m):
                velocity_add(tables, counter_key(&m, counter.keys), counter.id, window_of(counter, &m), &m.now,
                             -amount_of(&m, counter.measure, counter.of))
    return APPLY_OK
