# Where a command comes from, and limits on how often. Included by ledger/_core.pyx.
# Not for the tables (ledger/_velocity.pxd) nor for what a limit says (ledger/_image.pxd, docs/rules.md).
#
# What counters need of a command stands in its entry, hashed, and is applied from there (docs/decisions/fraud.md).

cdef struct Origin:             # a command's, or that of an ORIGIN section
    int32_t offset_s            # of the store's zone at the business time
    uint32_t given              # bit: OriginPart
    uint32_t region             # of the store, by the programme of the time; 0: none, or no counter asked
    uint64_t[ORIGIN_COUNT] hash


cdef uint64_t origin_hash(const Core* core, uint32_t part, Slice text) noexcept nogil:
    # Stores and tills are no secret, so that whoever has no key can count them too.
    cdef uint8_t[80] buffer
    cdef Hash128 hashed
    buffer[0] = <uint8_t>part
    memcpy(buffer + 1, text.data, text.size)
    if part >= ORIGIN_STORE:
        hashed = siphash(PUBLIC_KEY, buffer, 1 + text.size)
    else:
        hashed = siphash(core.identity_key, buffer, 1 + text.size)
    return hashed.lo


cdef void origin_of(const Core* core, const Command* command, Origin* origin) noexcept nogil:
    # What the command says beside its receipt key.
    cdef uint32_t part
    origin.given = command.origins
    if command.given & GIVEN_RECEIPT_KEY and command.method != METHOD_RETURN:
        origin.given &= ~(<uint32_t>1 << ORIGIN_STORE | <uint32_t>1 << ORIGIN_TILL)
    for part in range(<uint32_t>ORIGIN_DEVICE, <uint32_t>ORIGIN_COUNT):
        if origin.given >> part & 1:
            origin.hash[part] = origin_hash(core, part, command.origin[part])
    if command.method == METHOD_QUOTE:
        # Its key need not be whole, so that it stands in no entry; its limits are those of the place nevertheless.
        if command.given & GIVEN_RECEIPT_KEY and command.store.size != 0:
            origin.hash[ORIGIN_STORE] = origin_hash(core, ORIGIN_STORE, command.store)
            origin.given |= <uint32_t>1 << ORIGIN_STORE
        if command.given & GIVEN_RECEIPT_KEY and command.till.size != 0:
            origin.hash[ORIGIN_TILL] = origin_hash(core, ORIGIN_TILL, command.till)
            origin.given |= <uint32_t>1 << ORIGIN_TILL


cdef bint origin_read(const Slice* section, Origin* origin) noexcept nogil:
    # False: the section is broken.
    cdef Cursor cursor
    cdef const uint8_t* data
    cdef uint8_t part
    origin.given = 0
    origin.offset_s = 0
    origin.region = 0
    if section.data == NULL:
        return True
    cursor_open(&cursor, section)
    origin.offset_s = <int32_t>get_signed(&cursor)
    while cursor_more(&cursor):
        part = get_byte(&cursor)
        if part == ORIGIN_REGION:
            origin.region = get_key(&cursor)
            continue
        data = get_bytes(&cursor, 8)
        if data == NULL or part < ORIGIN_DEVICE or part >= ORIGIN_COUNT:
            return False
        memcpy(&origin.hash[part], data, 8)
        origin.given |= <uint32_t>1 << part
    return not cursor.broken


cdef void write_origin(EntryWriter* writer, Core* core, const Command* command, const Decision* d) noexcept nogil:
    # Where there are limits, or the command says where it comes from.
    # A receipt may come back in another store than it was sold in.
    cdef bint elsewhere = command.method == METHOD_RETURN and command.origins >> ORIGIN_STORE & 1
    cdef const Slice* store = &command.store if command.given & GIVEN_RECEIPT_KEY and not elsewhere else &command.origin[ORIGIN_STORE]
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef const StoreClass* place = NULL
    cdef Origin origin
    cdef uint32_t part
    if command.origins == 0 and not limits_hold(core):
        return
    origin_of(core, command, &origin)
    if rules != NULL:
        place = known_class(core, store)
    section_begin(writer, SECTION_ORIGIN)
    put_signed(writer, known_offset_s(core, place, d.business_us) if rules != NULL else 0)
    for part in range(<uint32_t>ORIGIN_DEVICE, <uint32_t>ORIGIN_COUNT):
        if origin.given >> part & 1:
            put_byte(writer, <uint8_t>part)
            put_bytes(writer, <const uint8_t*>&origin.hash[part], 8)
    if place != NULL and place.region != 0:
        put_byte(writer, ORIGIN_REGION)
        put_key(writer, place.region)
    section_end(writer)


cdef bint differs_in_origin(const Core* core, const Command* command, const EntryView* view) noexcept nogil:
    # Whether a repeat comes from elsewhere. An entry whose origin cannot be read came from elsewhere.
    cdef Origin now, then
    cdef uint32_t part
    if command.origins == 0 and view.sections[SECTION_ORIGIN].data == NULL:
        return False
    origin_of(core, command, &now)
    if not origin_read(&view.sections[SECTION_ORIGIN], &then) or now.given != then.given:
        return True
    for part in range(<uint32_t>ORIGIN_DEVICE, <uint32_t>ORIGIN_COUNT):
        if now.given >> part & 1 and now.hash[part] != then.hash[part]:
            return True
    return False


cdef bint check_origin(const Command* command, Outcome* outcome) noexcept nogil:
    # Of a request that has one. A store or till beside a receipt key is that of the key.
    cdef bint keyed = command.given & GIVEN_RECEIPT_KEY and command.method != METHOD_RETURN
    if not (check_text(command.origin[ORIGIN_DEVICE], 0, DEVICE_BYTES_MAX, FIELD_ORIGIN_DEVICE, outcome)
            and check_text(command.origin[ORIGIN_CASHIER], 0, CASHIER_BYTES_MAX, FIELD_ORIGIN_CASHIER, outcome)
            and check_text(command.origin[ORIGIN_PAYMENT_CARD], 0, PAYMENT_CARD_BYTES_MAX, FIELD_ORIGIN_PAYMENT_CARD, outcome)
            and check_text(command.origin[ORIGIN_PARTNER], 0, PARTNER_BYTES_MAX, FIELD_ORIGIN_PARTNER, outcome)
            and check_text(command.origin[ORIGIN_STORE], 0, STORE_BYTES_MAX, FIELD_ORIGIN_STORE, outcome)
            and check_text(command.origin[ORIGIN_TILL], 0, TILL_BYTES_MAX, FIELD_ORIGIN_TILL, outcome)):
        return False
    if keyed and command.origins >> ORIGIN_STORE & 1 and not text_equal(command.origin[ORIGIN_STORE], command.store):
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_ORIGIN_STORE, command.origin[ORIGIN_STORE])
    if keyed and command.origins >> ORIGIN_TILL & 1 and not text_equal(command.origin[ORIGIN_TILL], command.till):
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_ORIGIN_TILL, command.origin[ORIGIN_TILL])
    return True


# --- the ladder ---------------------------------------------------------------------------------------------------

cdef inline uint8_t rung_at(const Account* account, int64_t now_us) noexcept nogil:
    if account.rung_until_s != 0 and now_us >= <int64_t>account.rung_until_s * MICROSECONDS:
        return RUNG_OK
    return <uint8_t>account.rung


cdef uint16_t rung_allows(const Core* core, const Command* command, const Account* account, const Decision* d, Outcome* outcome) noexcept nogil:
    # Whether the member may do this. Returns a status. What is held is given back in any case.
    cdef uint8_t rung
    if account == NULL or command.method == METHOD_RELEASE or command.method == METHOD_ADJUST:
        return STATUS_OK
    rung = rung_at(account, d.now_us)
    if rung < RUNG_LIMITED:
        return STATUS_OK
    outcome.a = <int64_t>account.rung_until_s * MICROSECONDS
    outcome.b = 0
    if rung == RUNG_EXCLUDED:
        return STATUS_MEMBER_EXCLUDED
    if rung == RUNG_BLOCKED:
        return STATUS_MEMBER_BLOCKED
    if command.method == METHOD_ENROLL or (earns_by(command.method) and command.payment == PAYMENT_NONE):
        outcome.a = 0
        return STATUS_OK
    return STATUS_MEMBER_LIMITED


cdef bint check_rung(const Command* command, Outcome* outcome) noexcept nogil:
    if command.rung < 1 or command.rung > RUNG_COUNT:
        return refuse_number(outcome, FIELD_RUNG, command.rung)
    if command.given & GIVEN_TTL and (command.ttl_us < MICROSECONDS or command.ttl_us > <int64_t>RUNG_S_MAX * MICROSECONDS or command.rung == 1):
        return refuse_number(outcome, FIELD_LASTS, command.ttl_us)
    return True


cdef void write_rung(EntryWriter* writer, uint8_t before, uint8_t rung, uint32_t until_s, uint32_t by) noexcept nogil:
    # by: number of the limit, from 1; 0: by hand.
    section_begin(writer, SECTION_RUNG)
    put_byte(writer, before)
    put_byte(writer, rung)
    put_varint(writer, until_s)
    put_varint(writer, by)
    section_end(writer)


cdef void execute_rung(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # SetRung; d.member: the member named, or 0.
    cdef EntryWriter writer
    cdef EntryHeader* header
    cdef uint32_t until_s = 0
    if d.member == 0:
        refuse_not_found(core, STATUS_MEMBER_NOT_FOUND, member_field(command.member.kind), outcome)
        return
    if command.given & GIVEN_TTL:
        until_s = <uint32_t>div_floor(d.now_us + command.ttl_us + MICROSECONDS - 1, MICROSECONDS)
    header = entry_begin(&writer, entry)
    fill_header(core, header, KIND_SET_RUNG, d)
    write_context(&writer, command, d)
    write_rung(&writer, <uint8_t>core.accounts[d.member - 1].rung, <uint8_t>(command.rung - 1), until_s, 0)
    finish_write(core, entry, entry_finish(&writer), outcome)


cdef int apply_rung(Core* core, const EntryView* view) noexcept nogil:
    # Also of an entry that is a refusal: a limit may move a member whom it refuses.
    cdef uint32_t member = view.header.member
    cdef Account* account
    cdef Cursor cursor
    cdef uint8_t rung
    cdef uint64_t until_s
    if member == 0 or member > core.stats.members:
        return APPLY_MEMBER
    account = &core.accounts[member - 1]
    cursor_open(&cursor, &view.sections[SECTION_RUNG])
    get_byte(&cursor)           # the one before
    rung = get_byte(&cursor)
    until_s = get_varint(&cursor)
    get_varint(&cursor)
    if cursor.broken or rung >= RUNG_COUNT or until_s > <uint64_t>0xFFFFFFFF:
        return APPLY_FRAMING
    digest_sub(&core.digest, account_fact(account, member))
    account.rung = rung
    account.rung_until_s = <uint32_t>until_s
    core.rung_sequence = core.stats.sequence + 1
    digest_add(&core.digest, account_fact(account, member))
    return APPLY_OK


# --- what counters take of an entry -------------------------------------------------------------------------------

cdef inline void know(Measured* m, uint32_t part, uint64_t value) noexcept nogil:
    m.known |= <uint32_t>1 << part
    m.part[part] = value


cdef inline uint64_t counter_key(const Measured* m, uint32_t keys) noexcept nogil:
    # Of the parts that a counter is kept for.
    cdef uint64_t key = keys
    while keys != 0:
        key = fold(key ^ m.part[first_bit(keys)] ^ <uint64_t>0xA0761D6478BD642F, <uint64_t>0xE7037ED1A0B428DB)
        keys &= keys - 1
    return key


cdef uint64_t basket_of(const Slice* lines) noexcept nogil:
    cdef Hash128 hashed = siphash(PUBLIC_KEY, lines.data, lines.size)
    return hashed.lo


cdef KnownPlace* known_place(Core* core, uint32_t part, const Slice* text) noexcept nogil:
    # A receipt key's store or till, at most 16 bytes. Calls come from the same ones again and again.
    cdef KnownPlace* known
    cdef uint64_t[2] words
    short_words(text.data, text.size, words)
    known = &core.places[fold(words[0] ^ <uint64_t>0xA0761D6478BD642F, words[1] ^ <uint64_t>0xE7037ED1A0B428DB) & (PLACES_KNOWN - 1)]
    if known.part != part or known.size != text.size or known.text[0] != words[0] or known.text[1] != words[1]:
        known.part = part
        known.size = text.size
        known.text[0] = words[0]
        known.text[1] = words[1]
        known.hash = origin_hash(core, part, text[0])
        known.version = 0
    return known


cdef inline uint64_t place_hash(Core* core, uint32_t part, const Slice* text) noexcept nogil:
    return known_place(core, part, text).hash


cdef void know_place(Core* core, Measured* m, const Slice* store, const Slice* till, const Origin* origin) noexcept nogil:
    # store, till: of the receipt key; data NULL: there is none.
    cdef uint64_t place
    if store.data != NULL:
        place = place_hash(core, ORIGIN_STORE, store)
    elif origin.given >> ORIGIN_STORE & 1:
        place = origin.hash[ORIGIN_STORE]
    else:
        return
    know(m, PART_STORE, place)
    m.store_print = <uint32_t>place
    if till.data != NULL:
        know(m, PART_TILL, fold(place ^ <uint64_t>0x9E3779B97F4A7C15, place_hash(core, ORIGIN_TILL, till) | 1))
    elif origin.given >> ORIGIN_TILL & 1:
        know(m, PART_TILL, fold(place ^ <uint64_t>0x9E3779B97F4A7C15, origin.hash[ORIGIN_TILL] | 1))


cdef void know_origin(Measured* m, const Origin* origin) noexcept nogil:
    if origin.given >> ORIGIN_DEVICE & 1:
        know(m, PART_DEVICE, origin.hash[ORIGIN_DEVICE])
    if origin.given >> ORIGIN_CASHIER & 1:
        know(m, PART_CASHIER, origin.hash[ORIGIN_CASHIER])
    if origin.given >> ORIGIN_PAYMENT_CARD & 1:
        know(m, PART_PAYMENT_CARD, origin.hash[ORIGIN_PAYMENT_CARD])
    if origin.given >> ORIGIN_PARTNER & 1:
        know(m, PART_PARTNER, origin.hash[ORIGIN_PARTNER])


cdef inline int32_t counting_day(int64_t now_us) noexcept nogil:
    # The day by which windows die. Of no zone, so that it never goes back when a programme with another one is published; ten hours behind UTC, so
    # that from there to the other end of the world (+14) it is the store's day or the one before.
    return <int32_t>div_floor(now_us - <int64_t>36_000 * MICROSECONDS, <int64_t>86_400 * MICROSECONDS)


cdef inline void windows_of(Core* core, int32_t day, int32_t* windows) noexcept nogil:
    # Of every kind. Few days are asked for: today's, yesterday's, and by which windows die.
    cdef DayWindows* known = &core.windows[day & (WINDOWS_KNOWN - 1)]
    cdef uint8_t kind
    if known.windows[VELOCITY_DAY] != day or day == 0:
        for kind in range(5):
            known.windows[kind] = velocity_window(kind, day)
    memcpy(windows, known.windows, sizeof(known.windows))


cdef void know_time(Core* core, Measured* m, int64_t now_us, int64_t business_us, int32_t offset_s) noexcept nogil:
    cdef int64_t local_s
    windows_of(core, counting_day(now_us), m.now.windows)
    m.now.now_s = div_floor(now_us, MICROSECONDS)
    m.spans_from_s = div_floor(now_us + MICROSECONDS - 1, MICROSECONDS)
    m.now.today = m.now.windows[VELOCITY_DAY]
    m.time_s = div_floor(min_i64(business_us, now_us), MICROSECONDS)
    m.offset_s = offset_s
    local_s = m.time_s + offset_s
    m.day = <int32_t>div_floor(local_s, 86_400)
    windows_of(core, m.day, m.windows)
    know(m, PART_HOUR, <uint64_t>((local_s - m.day * <int64_t>86_400) // 3600))


cdef void know_member(const Core* core, Measured* m, uint32_t member) noexcept nogil:
    # Segments as they are before the entry.
    if member == 0:
        return
    know(m, PART_MEMBER, member)
    m.member_print = member
    if member <= core.stats.members:
        m.segments[0] = core.profiles[member - 1].segments[0]
        m.segments[1] = core.profiles[member - 1].segments[1]


cdef bint is_counted_refusal(uint16_t status) noexcept nogil:
    # What limits themselves refuse is no further refusal, or who has met one would never come out.
    return not (status == STATUS_OK or status == STATUS_VELOCITY_EXCEEDED or STATUS_MEMBER_LIMITED <= status <= STATUS_BLOCKED)


cdef uint32_t events_asked(uint8_t kind, const Context* context, bint opens) noexcept nogil:
    # Of a command that succeeds.
    cdef uint32_t events = 0
    if kind == KIND_EARN or kind == KIND_COMMIT:
        events = OF_EARN
    if kind == KIND_BURN or kind == KIND_CAPTURE or context.values[CONTEXT_PAYMENT] != PAYMENT_NONE:
        events |= OF_BURN
    if kind == KIND_RESERVE:
        events |= OF_RESERVE
    if kind == KIND_RETURN:
        events = OF_RETURN
    if opens:
        events |= OF_ENROLL
    return events


cdef uint32_t events_of(const EntryHeader* header, const Context* context) noexcept nogil:
    if header.kind > KIND_ENROLL and header.kind != KIND_RETURN:
        return 0                # by hand: a limit is for who stands at a till
    if header.status != STATUS_OK:
        return OF_REFUSAL if is_counted_refusal(header.status) else 0
    return events_asked(header.kind, context, header.flags & FLAG_OPENED)


cdef bint measure_points(const EntryView* view, Measured* m) noexcept nogil:
    cdef Cursor cursor
    cdef uint8_t account
    cdef int64_t points
    if view.sections[SECTION_POSTINGS].data == NULL:
        return True
    cursor_open(&cursor, &view.sections[SECTION_POSTINGS])
    while cursor_more(&cursor):
        account = get_byte(&cursor)
        get_varint(&cursor)
        points = get_signed(&cursor)
        if account == ACCOUNT_ISSUED:
            m.earned -= points
        elif account == ACCOUNT_REDEEMED:
            m.taken += points
    return not cursor.broken


cdef bint measure_lines(const EntryView* view, const Counting* counting, Measured* m) noexcept nogil:
    cdef Cursor cursor
    cdef int64_t quantity
    if view.sections[SECTION_LINES].data == NULL:
        return True
    if counting.keys >> PART_BASKET & 1:
        know(m, PART_BASKET, basket_of(&view.sections[SECTION_LINES]))
    if not counting.quantities:
        return True
    cursor_open(&cursor, &view.sections[SECTION_LINES])
    while cursor_more(&cursor):
        get_text(&cursor)
        get_text(&cursor)
        quantity = <int64_t>get_varint(&cursor)
        get_signed(&cursor)
        m.quantity = max_i64(m.quantity, quantity)
    return not cursor.broken


cdef int64_t business_of(const EntryView* view, const Context* context) noexcept nogil:
    # When it was bought, as the entry has it.
    cdef Cursor cursor
    if view.sections[SECTION_QUOTE].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_QUOTE])
        get_varint(&cursor)
        return view.header.time_us + get_signed(&cursor)
    return view.header.time_us + context.values[CONTEXT_BUSINESS_TIME]


cdef uint64_t identifier_part(const EntryView* view, const Context* context) noexcept nogil:
    # By which identifier the account was named; 0: by none, or by several. The entry keeps the low 32 bits of one that it knew.
    cdef const Slice* section = &view.sections[SECTION_IDENTIFIERS]
    cdef Hash128 hashed
    if view.header.kind == KIND_ENROLL:
        return 0
    if context.named_count == 1:
        return <uint64_t>view.header.member << 32 | context.named[0]
    if section.data != NULL and section.size == 17:
        memcpy(&hashed, section.data + 1, 16)
        return <uint64_t>view.header.member << 32 | <uint32_t>hashed.lo
    return 0


cdef bint measure_entry(Core* core, const EntryView* view, Measured* m) noexcept nogil:
    # False: the entry is broken. Without an ORIGIN it counts nowhere: events is 0.
    cdef Context context
    context_read(view, &context)
    return measure_by(core, view, &context, m)


cdef inline bint measure_by(Core* core, const EntryView* view, const Context* context, Measured* m) noexcept nogil:
    if view.sections[SECTION_ORIGIN].data == NULL:
        memset(m, 0, sizeof(Measured))
        return True
    return measure_with(core, view, context, &core.counting, 0, m)


cdef bint measure_with(Core* core, const EntryView* view, const Context* context, const Counting* counting, int32_t offset_s,
                       Measured* m) noexcept nogil:
    # What counting asks for. offset_s: of the store's zone, where the entry has no ORIGIN.
    cdef const EntryHeader* header = view.header
    cdef Origin origin
    cdef Slice nothing
    cdef uint64_t identifier
    memset(m, 0, sizeof(Measured))
    m.events = events_of(header, context)
    if not origin_read(&view.sections[SECTION_ORIGIN], &origin):
        return False
    if view.sections[SECTION_ORIGIN].data == NULL:
        origin.offset_s = offset_s
    if context.store.size > STORE_BYTES_MAX or context.till.size > TILL_BYTES_MAX:
        return False
    know_time(core, m, header.time_us, business_of(view, context), origin.offset_s)
    know_origin(m, &origin)
    m.region_print = origin.region
    if header.kind == KIND_RETURN and origin.given >> ORIGIN_STORE & 1:
        memset(&nothing, 0, sizeof(Slice))
        know_place(core, m, &nothing, &nothing, &origin)
    else:
        know_place(core, m, &context.store, &context.till, &origin)
    know_member(core, m, header.member)
    identifier = identifier_part(view, context)
    if identifier != 0:
        know(m, PART_IDENTIFIER, identifier)
    m.money = context.values[CONTEXT_TOTAL]
    m.reserved = context.values[CONTEXT_POINTS] if header.kind == KIND_RESERVE else 0
    if not (measure_points(view, m) and measure_lines(view, counting, m)):
        return False
    if header.kind == KIND_RETURN:
        # Its postings have the other sign.
        m.returned = -m.earned
        m.earned = 0
        m.taken = 0
    return True


cdef bint limits_open(Core* core) noexcept nogil:
    cdef uint64_t members = core.accounts_max
    return (velocity_open(&core.velocity, members * VELOCITY_COUNTERS_PER_MEMBER + VELOCITY_SLOTS_LEAST, members // 2 + VELOCITY_SLOTS_LEAST,
                          min_i64(members + VELOCITY_SLOTS_LEAST // 16, DISTINCTS_LIMIT))
            and velocity_open(&core.looked, members // 2 + VELOCITY_SLOTS_LEAST, members // 2 + VELOCITY_SLOTS_LEAST, VELOCITY_SLOTS_LEAST // 16))


cdef Hash128 digest_at(const Core* core, int64_t now_us) noexcept nogil:
    # The state's digest at a moment: facts, and what counts on that day.
    cdef Hash128 digest = core.digest
    digest_add(&digest, velocity_digest(<Velocity*>&core.velocity, counting_day(now_us)))
    return digest


# --- counting -----------------------------------------------------------------------------------------------------

cdef inline bint in_segments(const Measured* m, const uint64_t* segments) noexcept nogil:
    return (segments[0] | segments[1]) == 0 or (m.segments[0] & segments[0] | m.segments[1] & segments[1]) != 0


cdef inline bint lacks(const Measured* m, uint32_t keys, uint8_t measure) noexcept nogil:
    # Whether it has no part of the key, or is of no member, store or region where different ones are counted.
    if measure == COUNT_MEMBERS:
        keys |= <uint32_t>1 << PART_MEMBER
    elif measure == COUNT_STORES:
        keys |= <uint32_t>1 << PART_STORE
    elif measure == COUNT_REGIONS and m.region_print == 0:
        return True
    return keys & ~m.known != 0


cdef inline bint takes(const ImageVelocity* counter, const Measured* m) noexcept nogil:
    # Whether an entry counts in a counter.
    return counter.of & m.events != 0 and not lacks(m, counter.keys, counter.measure) and in_segments(m, counter.segments)


cdef inline int64_t amount_of(const Measured* m, uint8_t measure, uint32_t of) noexcept nogil:
    cdef int64_t points = 0
    if measure == COUNT_POINTS:
        points = m.earned if of & OF_EARN else 0
        if of & OF_BURN:
            points += m.taken
        if of & OF_RETURN:
            points += m.returned
        return points + (m.reserved if of & OF_RESERVE else 0)
    if measure == COUNT_MONEY:
        return m.money
    if measure == COUNT_QUANTITY:
        return m.quantity
    return 1


cdef inline int32_t window_of(const ImageVelocity* counter, const Measured* m) noexcept nogil:
    return m.windows[counter.window]


cdef inline uint32_t print_of(const ImageVelocity* counter, const Measured* m) noexcept nogil:
    # Of the member, store or region, where different ones are counted. A sliding window keeps the upper 28 bits of it.
    if counter.measure == COUNT_STORES:
        return m.store_print
    if counter.measure == COUNT_REGIONS:
        return m.region_print
    return m.member_print << 4 if counter.window == SPEED_SLIDING else m.member_print


cdef int64_t counted(const Velocity* tables, const ImageVelocity* counter, const Measured* m, VelocityPlace* place, int64_t amount) noexcept nogil:
    # What a counter would come to with this amount.
    cdef int64_t used, sum
    if counts_different(counter.measure):
        if counter.window == SPEED_SLIDING:
            return recent_with_at(tables, place, counter.id, m.time_s, counter.window_s, &m.now, print_of(counter, m))
        return distinct_with_at(tables, place, counter.id, window_of(counter, m), &m.now, print_of(counter, m))
    if counter.window == SPEED_SLIDING:
        used = sliding_used_at(tables, place, counter.id, m.time_s, counter.window_s, &m.now)
    else:
        used = velocity_used_at(tables, place, counter.id, window_of(counter, m), &m.now)
    return INT64_MAX if add_overflow(used, amount, &sum) else sum


cdef int count_in(Velocity* tables, const ImageVelocity* counter, const Measured* m, VelocityPlace* place) noexcept nogil:
    # -1: there is no memory left.
    if counts_different(counter.measure):
        if counter.window == SPEED_SLIDING:
            return recent_add_at(tables, place, counter.id, m.time_s, counter.window_s, &m.now, print_of(counter, m))
        return distinct_add_at(tables, place, counter.id, window_of(counter, m), &m.now, print_of(counter, m))
    if counter.window == SPEED_SLIDING:
        return sliding_add_at(tables, place, counter.id, m.time_s, counter.window_s, &m.now, amount_of(m, counter.measure, counter.of))
    return velocity_add_at(tables, place, counter.id, window_of(counter, m), &m.now, amount_of(m, counter.measure, counter.of))


cdef uint32_t table_of(const ImageVelocity* counter) noexcept nogil:
    if counter.window == SPEED_SLIDING:
        return VELOCITY_SLIDINGS
    return VELOCITY_DISTINCTS if counts_different(counter.measure) else VELOCITY_CALENDARS


cdef void counting_of(const Program2* rules, Counting* counting) noexcept nogil:
    # rules: NULL: counts nothing.
    cdef const ImageVelocity* counter
    cdef const ImageLimit* limit
    cdef KeySet* set
    cdef uint32_t i, j, table
    cdef uint64_t bit
    memset(counting, 0, sizeof(Counting))
    if rules == NULL:
        return
    for i in range(rules.counts[SECTION2_VELOCITY]):
        counter = &rules.velocity[i]
        counting.keys |= counter.keys
        if counter.flags & VELOCITY_GIVES_BACK:
            counting.gives_back |= counter.of
        j = 0
        while j < counting.set_count and counting.sets[j].keys != counter.keys:
            j += 1
        set = &counting.sets[j]
        if j == counting.set_count:
            set.keys = counter.keys
            counting.set_count += 1
        if counter.flags & VELOCITY_VOLATILE:
            continue
        table = table_of(counter)
        counting.set_of[i] = <uint8_t>j
        counting.table_of[i] = <uint8_t>table
        # Two of calendar windows: the window at hand and the one before.
        set.slots[table] += 1 if table == VELOCITY_SLIDINGS or counter.window == SPEED_EVER else 2
        bit = <uint64_t>1 << i
        set.counters |= bit
        for j in range(<uint32_t>OF_EVENTS):
            if counter.of >> j & 1:
                counting.of[j] |= bit
        if counter.measure == COUNT_MEMBERS:
            counting.members |= bit
        elif counter.measure == COUNT_STORES:
            counting.stores |= bit
        elif counter.measure == COUNT_REGIONS:
            counting.regions |= bit
        elif table == VELOCITY_SLIDINGS:
            counting.slidings |= bit
        else:
            counting.calendars |= bit
        if counter.segments[0] | counter.segments[1]:
            counting.segmented |= bit
    for i in range(<uint32_t>VELOCITY_COUNTERS_MAX):
        counting.least[i] = INT64_MAX
    for i in range(rules.counts[SECTION2_LIMITS]):
        limit = &rules.limits[i]
        counting.quantities = counting.quantities or limit.measure == COUNT_QUANTITY
        if limit.counter == 0 or limit.mean_count != 0:
            counting.lone[counting.lone_count] = <uint8_t>i
            counting.lone_count += 1
        else:
            counting.least[limit.counter - 1] = min_i64(counting.least[limit.counter - 1], limit.at_most)


cdef VelocityPlace place_of(const Velocity* tables, const ImageVelocity* counter, const Measured* m) noexcept nogil:
    return velocity_place(tables, table_of(counter), counter_key(m, counter.keys))


cdef inline uint64_t counters_for(const Program2* rules, const Counting* counting, const Measured* m) noexcept nogil:
    # Those that take an entry, whether or not it has all parts of their keys.
    cdef uint32_t events = m.events
    cdef uint64_t left, takes = 0
    while events != 0:
        takes |= counting.of[first_bit(events)]
        events &= events - 1
    if not m.known >> PART_MEMBER & 1:
        takes &= ~counting.members
    if not m.known >> PART_STORE & 1:
        takes &= ~counting.stores
    if m.region_print == 0:
        takes &= ~counting.regions
    left = takes & counting.segmented
    while left != 0:
        if not in_segments(m, rules.velocity[first_bit(left)].segments):
            takes &= ~(<uint64_t>1 << first_bit(left))
        left &= left - 1
    return takes


cdef void counts_where(const Velocity* tables, const Program2* rules, const Counting* counting, const Measured* m, Counted* where) noexcept nogil:
    # In which counters an entry counts, and where they are looked for. One key for all counters of a set. What was touched when the command
    # came is no longer in the fastest cache, so all reads are started once more before the first is waited for.
    cdef uint64_t[VELOCITY_TABLES] homes
    cdef const KeySet* set
    cdef uint64_t left, takes, key
    cdef uint32_t i, j, table
    where.takes = 0
    if m.events == 0:
        return
    takes = counters_for(rules, counting, m)
    for i in range(counting.set_count):
        set = &counting.sets[i]
        left = set.counters & takes
        if left == 0 or set.keys & ~m.known != 0:
            continue
        where.takes |= left
        key = velocity_key(counter_key(m, set.keys))
        for table in range(<uint32_t>VELOCITY_TABLES):
            if set.slots[table] != 0:
                homes[table] = velocity_home(&tables.tables[table], key)
                if set.keys & FAR_KEYS:
                    velocity_touch_from(&tables.tables[table], homes[table], set.slots[table], True)
        while left != 0:
            j = first_bit(left)
            left &= left - 1
            where.places[j].key = key
            where.places[j].home = homes[counting.table_of[j]]
            where.places[j].slot = NULL
            where.live[j] = NULL
            where.amounts[j] = amount_of(m, rules.velocity[j].measure, rules.velocity[j].of)


cdef uint32_t counter_lines(Core* core, const Command* command, uint32_t member, uintptr_t* lines) noexcept nogil:
    # Where the counters are that a command will be counted in. Those of tills and stores are used all the time; hours and baskets are not worth it.
    cdef const KeySet* set
    cdef Origin origin
    cdef Measured m
    cdef Slice nothing
    cdef uint32_t i, count = 0
    if command.method > METHOD_ENROLL or command.method == METHOD_RELEASE:
        return 0
    m.known = 0                 # the rest is not asked for
    memset(&nothing, 0, sizeof(Slice))
    origin.given = 0
    if command.origins != 0:
        origin_of(core, command, &origin)
        know_origin(&m, &origin)
    if command.hashed & HASHED_RECEIPT:
        know_place(core, &m, &command.store, &command.till, &origin)
    else:
        know_place(core, &m, &nothing, &nothing, &origin)
    if member != 0:
        know(&m, PART_MEMBER, member)
        if command.hashed & HASHED_MEMBER:
            know(&m, PART_IDENTIFIER, <uint64_t>member << 32 | <uint32_t>command.member_hash.lo)
    for i in range(core.counting.set_count):
        set = &core.counting.sets[i]
        if set.keys & ~m.known == 0 and set.keys & FAR_KEYS:
            count = velocity_lines(&core.velocity, counter_key(&m, set.keys), set.slots, lines, count, AHEAD_LINES)
    return count


cdef inline void touch_next(Core* core) noexcept nogil:
    # Starts the reads of counters for the call behind the one that is executed now.
    cdef Ahead* ahead = &core.ahead
    cdef uint32_t i
    if ahead.next >= ahead.calls:
        return
    for i in range(ahead.counts[ahead.next]):
        touch_many(<const void*>ahead.lines[ahead.next][i])
    ahead.next += 1


cdef void foresee_counters(Core* core, Command** commands, uint32_t count) noexcept nogil:
    # One call's reads at a time, while the call before it is executed: those of all calls together are more than memory serves at once, so
    # that whoever started them waited.
    cdef Ahead* ahead = &core.ahead
    cdef uint32_t i
    ahead.calls = count if count < AHEAD_CALLS else AHEAD_CALLS
    ahead.next = 0
    for i in range(ahead.calls):
        ahead.counts[i] = counter_lines(core, commands[i], prepared_member(core, commands[i]), ahead.lines[i])
    touch_next(core)


cdef void used_in_all(const Velocity* tables, const Program2* rules, const Counting* counting, const Measured* m, Counted* where) noexcept nogil:
    # What each counter that takes an entry has before it. A loop for each kind of counter, so that the usual kinds need no call each.
    # `above` may say too much (less than nothing, unsigned, is more than any bound): what it says is looked at once more.
    cdef const ImageVelocity* counter
    cdef CalendarSlot* calendar
    cdef SlidingSlot* sliding
    cdef uint64_t left = where.takes & counting.calendars
    cdef uint32_t i
    where.above = 0
    where.moves = tables.moves
    while left != 0:
        i = first_bit(left)
        left &= left - 1
        counter = &rules.velocity[i]
        calendar = velocity_live(tables, &where.places[i], counter.id, window_of(counter, m), &m.now)
        where.live[i] = <VelocityHead*>calendar
        where.used[i] = calendar.value if calendar != NULL else 0
        if <uint64_t>where.used[i] + <uint64_t>where.amounts[i] > <uint64_t>counting.least[i]:
            where.above |= <uint64_t>1 << i
    left = where.takes & counting.slidings
    while left != 0:
        i = first_bit(left)
        left &= left - 1
        counter = &rules.velocity[i]
        sliding = sliding_live(tables, &where.places[i], counter.id, counter.window_s, &m.now)
        where.live[i] = <VelocityHead*>sliding if sliding != NULL and sliding_is_newest(sliding, m.time_s) else NULL
        where.used[i] = sliding_sum(sliding, sliding_bucket(sliding, m.time_s, sliding.bucket_s)) if sliding != NULL else 0
        if <uint64_t>where.used[i] + <uint64_t>where.amounts[i] > <uint64_t>counting.least[i]:
            where.above |= <uint64_t>1 << i
    left = where.takes & ~(counting.calendars | counting.slidings)
    while left != 0:
        i = first_bit(left)
        left &= left - 1
        where.used[i] = counted(tables, &rules.velocity[i], m, &where.places[i], 0)
        if where.used[i] > counting.least[i]:
            where.above |= <uint64_t>1 << i


cdef bint count_after_all(Velocity* tables, const ImageVelocity* counter, const Measured* m, VelocityPlace* place) noexcept nogil:
    # Where a counter found no room. The service had room, perhaps because it took out the dead that are still here.
    velocity_sweep_all(tables, &m.now)
    return count_in(tables, counter, m, place) >= 0


cdef int count_in_all(Velocity* tables, const Program2* rules, const Counting* counting, const Measured* m, Counted* where) noexcept nogil:
    # In each counter that takes the entry, which none does that counts look-ups. ApplyResult.
    cdef const ImageVelocity* counter
    cdef uint64_t left = where.takes & counting.calendars
    cdef uint32_t i
    while left != 0:
        i = first_bit(left)
        left &= left - 1
        if where.live[i] != NULL and tables.moves == where.moves:
            calendar_set(tables, <CalendarSlot*>where.live[i], where.amounts[i])
            continue
        counter = &rules.velocity[i]
        if (velocity_add_at(tables, &where.places[i], counter.id, window_of(counter, m), &m.now, where.amounts[i]) < 0
                and not count_after_all(tables, counter, m, &where.places[i])):
            return APPLY_FULL
    left = where.takes & counting.slidings
    while left != 0:
        i = first_bit(left)
        left &= left - 1
        if where.live[i] != NULL and tables.moves == where.moves:
            sliding_set(tables, <SlidingSlot*>where.live[i], where.live[i].window, where.amounts[i])
            continue
        counter = &rules.velocity[i]
        if (sliding_add_at(tables, &where.places[i], counter.id, m.time_s, counter.window_s, &m.now, where.amounts[i]) < 0
                and not count_after_all(tables, counter, m, &where.places[i])):
            return APPLY_FULL
    left = where.takes & ~(counting.calendars | counting.slidings)
    while left != 0:
        i = first_bit(left)
        left &= left - 1
        counter = &rules.velocity[i]
        if count_in(tables, counter, m, &where.places[i]) < 0 and not count_after_all(tables, counter, m, &where.places[i]):
            return APPLY_FULL
    return APPLY_OK


cdef bint measure(Core* core, const EntryView* view) noexcept nogil:
    # What limits take of an entry, and where it counts, into core.measured and core.counted. False: the entry is broken.
    core.measured_entry = NULL
    context_read(view, &core.measured_context)
    if not measure_by(core, view, &core.measured_context, &core.measured):
        return False
    counts_where(&core.velocity, <const Program2*>core.program.rules, &core.counting, &core.measured, &core.counted)
    return True


cdef int apply_velocity(Core* core, const EntryView* view) noexcept nogil:
    # Under the definitions in force at this entry.
    cdef int result
    if core.counting.set_count == 0:
        return APPLY_OK
    # What was judged just now is measured already: the same bytes, before the same state.
    if core.measured_entry != <const uint8_t*>view.header and not measure(core, view):
        return APPLY_FRAMING
    result = count_in_all(&core.velocity, <const Program2*>core.program.rules, &core.counting, &core.measured, &core.counted)
    if result == APPLY_OK:
        result = count_back(core, &core.velocity, <const Program2*>core.program.rules, view)
    return result


# --- judging ------------------------------------------------------------------------------------------------------

cdef inline bint limits_hold(const Core* core) noexcept nogil:
    # Whether the programme in force has limits.
    return core.program.rules != NULL and (<const Program2*>core.program.rules).counts[SECTION2_LIMITS] != 0


cdef const StoreClass* store_class(const Program2* rules, const Slice* store) noexcept nogil:
    # NULL: the store is not known.
    cdef const TableRow* row = table_find_slice(&rules.stores, store) if store.size != 0 else NULL
    return &rules.store_classes[row.value] if row != NULL else NULL


cdef int32_t class_offset_s(const Program2* rules, const StoreClass* place, int64_t business_us) noexcept nogil:
    return zone_span_at(rules, place.zone if place != NULL else rules.home_zone, business_us).offset_s


cdef const StoreClass* known_class(Core* core, const Slice* store) noexcept nogil:
    # store_class by the programme in force.
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef const TableRow* row
    cdef KnownPlace* known
    if store.size == 0 or store.size > STORE_BYTES_MAX:
        return store_class(rules, store)
    known = known_place(core, ORIGIN_STORE, store)
    if known.version != core.program.version:
        known.version = core.program.version
        row = table_find_slice(&rules.stores, store)
        known.store_class = <uint32_t>row.value + 1 if row != NULL else 0
    return &rules.store_classes[known.store_class - 1] if known.store_class != 0 else NULL


cdef int32_t known_offset_s(Core* core, const StoreClass* place, int64_t business_us) noexcept nogil:
    # class_offset_s by the programme in force. Most purchases are of now, and most stores of one zone.
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef uint32_t zone = place.zone if place != NULL else rules.home_zone
    cdef KnownSpan* known = &core.span
    cdef const ZoneSpan* span
    if known.version != core.program.version or known.zone != zone or not known.begin_us <= business_us < known.end_us:
        span = zone_span_at(rules, zone, business_us)
        known.version = core.program.version
        known.zone = zone
        known.offset_s = span.offset_s
        known.begin_us = span.start_us
        known.end_us = INT64_MAX
        if span + 1 < rules.zone_spans + rules.zones[zone].first + rules.zones[zone].count:
            known.end_us = (span + 1).start_us
    return known.offset_s


cdef int32_t zone_offset_s(const Program2* rules, const Slice* store, int64_t business_us) noexcept nogil:
    # From UTC, of the store's zone; of the programme's where the store is not known.
    return class_offset_s(rules, store_class(rules, store), business_us)


cdef int64_t bound_by_mean(const ImageLimit* limit, const Counted* where) noexcept nogil:
    # What a limit allows whose bound is the member's own mean. Its counters take what it is for (the image's loader sees to it).
    cdef int64_t bound = INT64_MAX, count = where.used[limit.mean_count - 1]
    if count < limit.mean_after or count == 0 or mul_div_floor(where.used[limit.mean_sum - 1], limit.at_most, 1000 * count, &bound):
        return INT64_MAX
    return bound


cdef inline bint concerns(const ImageLimit* limit, const Measured* m, const Counted* where) noexcept nogil:
    # Whether a limit is for an entry. Its counter says the same as the limit itself (the image's loader sees to it).
    if limit.counter != 0:
        return where.takes >> (limit.counter - 1) & 1
    return limit.of & m.events != 0 and not lacks(m, limit.keys, limit.measure) and in_segments(m, limit.segments)


cdef inline bint is_above(const Counting* counting, const ImageLimit* limit, const Measured* m, const Counted* where, int64_t* left) noexcept nogil:
    # Whether an entry would be above a limit, by what its counters have (used_in_all). left: what it may still be.
    cdef int64_t amount, used, bound
    if not concerns(limit, m, where):
        return False
    amount = used = amount_of(m, limit.measure, limit.of)
    bound = limit.at_most if limit.mean_count == 0 else bound_by_mean(limit, where)
    if limit.counter != 0:
        used = where.used[limit.counter - 1]
        # Different ones are counted with this one already.
        if (counting.calendars | counting.slidings) >> (limit.counter - 1) & 1 and add_overflow(used, amount, &used):
            used = INT64_MAX
    if used <= bound:
        return False
    left[0] = max_i64(0, bound - (used - amount))
    return True


cdef bint room_for(const Velocity* tables, const Program2* rules, uint8_t flags, const Measured* m) noexcept nogil:
    # Whether these tables take all that one entry or look-up counts in. Slots that are there are looked for only where room is scarce.
    cdef const ImageVelocity* counter
    cdef uint32_t[VELOCITY_TABLES] new
    cdef uint32_t i, table, scarce
    cdef bint grows = False
    i = rules.counts[SECTION2_VELOCITY]
    if velocity_room(tables, i, i, i):
        return True             # nearly always: for all that there are
    for scarce in range(2):
        memset(new, 0, sizeof(new))
        for i in range(rules.counts[SECTION2_VELOCITY]):
            counter = &rules.velocity[i]
            if (counter.flags & VELOCITY_VOLATILE) != flags or not takes(counter, m):
                continue
            table = table_of(counter)
            grows = grows or table == VELOCITY_DISTINCTS
            if not (scarce and velocity_find(&tables.tables[table], velocity_key(counter_key(m, counter.keys)), counter.id, window_of(counter, m),
                                             0 if table == VELOCITY_SLIDINGS else 1) != NULL):
                new[table] += 1
        if velocity_room(tables, new[VELOCITY_CALENDARS], new[VELOCITY_SLIDINGS], new[VELOCITY_DISTINCTS]):
            return not grows or velocity_may_grow(tables)
    return False


cdef bint velocity_fits(Velocity* tables, const Program2* rules, const Measured* m) noexcept nogil:
    # Whether there is room for all that one entry counts in.
    if room_for(tables, rules, 0, m):
        return True
    # What is dead stays where nothing new comes in.
    velocity_sweep(tables, &m.now, VELOCITY_SWEPT_WHEN_FULL)
    return room_for(tables, rules, 0, m)


cdef void judge(Core* core, const uint8_t* entry, uint32_t size, bint posts) noexcept nogil:
    # What the limits in force say of an entry that is written but not applied, into core.judged. posts: not of a quote, which is told alone.
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef EntryView view
    VERIFY(entry_view(entry, size, &view) and measure(core, &view))
    core.measured_entry = entry
    judge_by(&core.velocity, rules, &core.counting, &core.measured, &core.counted, core.decision.challenge_passed,
             (<const Loaded*>core.program).limit_tallies if posts else NULL, &core.judged)


cdef void judge_by(Velocity* tables, const Program2* rules, const Counting* counting, const Measured* m, Counted* where, bint challenge_passed,
                   uint64_t* tallies, Judged* judged) noexcept nogil:
    # where: keeps the slots that it finds, and what they have. tallies: one for each limit, raised where the entry is above it, also in shadow; NULL: none.
    cdef const ImageLimit* limit
    cdef int64_t left
    cdef uint32_t i, j
    judged.fired_count = 0
    judged.refused_by = -1
    judged.points_max = INT64_MAX
    judged.cut = 0
    judged.rung = RUNG_OK
    judged.reviewed = False
    judged.full = not velocity_fits(tables, rules, m)
    used_in_all(tables, rules, counting, m, where)
    # Nearly always nothing is above, and what needs no more than its counter is not even looked at.
    for j in range(rules.counts[SECTION2_LIMITS] if where.above else counting.lone_count):
        i = j if where.above else counting.lone[j]
        limit = &rules.limits[i]
        if not is_above(counting, limit, m, where, &left):
            continue
        if tallies != NULL:
            tallies[i] += 1
        if limit.action == LIMIT_SHADOW:
            continue
        judged.fired[judged.fired_count].limit = <uint16_t>i
        judged.fired[judged.fired_count].action = limit.action
        judged.fired_count += 1
        if limit.rung > judged.rung:
            judged.rung = limit.rung
            judged.rung_until_s = <uint32_t>(m.spans_from_s + limit.rung_s) if limit.rung_s != 0 else 0
            judged.rung_by = <uint16_t>i
        if judged.refused_by < 0 and (limit.action == LIMIT_REFUSE or (limit.action == LIMIT_CHALLENGE and not challenge_passed)):
            judged.refused_by = <int32_t>i
        elif limit.action == LIMIT_REVIEW:
            judged.reviewed = True
        elif limit.action == LIMIT_REDUCE:
            judged.points_max = min_i64(judged.points_max, left if limit.measure == COUNT_POINTS else 0)


cdef uint16_t obey_limits(Core* core, const uint8_t* entry, uint32_t size, Decision* d, bint posts, Outcome* outcome) noexcept nogil:
    # Judges an entry that would succeed. Returns a status, with its a and b; d says what may be earned, and whether at once.
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef Judged* judged = &core.judged
    judge(core, entry, size, posts)
    outcome.a = 0
    outcome.b = 0
    if judged.full:
        return STATUS_TABLE_FULL
    if judged.refused_by >= 0 and rules.limits[judged.refused_by].action == LIMIT_REFUSE:
        return STATUS_VELOCITY_EXCEEDED
    if (judged.refused_by >= 0 or judged.reviewed) and not cases_room(core):
        return STATUS_TABLE_FULL
    if judged.refused_by >= 0:
        outcome.a = <int64_t>core.stats.sequence + 1        # the entry that refuses it
        return STATUS_CHALLENGE_NEEDED
    d.points_max = judged.points_max
    d.reviewed = judged.reviewed
    return STATUS_OK


cdef bint may_be_refused(Core* core, const uint8_t* entry, uint32_t size) noexcept nogil:
    # Judges the entry of a refusal: it counts, too, and there may be no room for that.
    judge(core, entry, size, True)
    return not core.judged.full


cdef void write_limits(EntryWriter* writer, const Core* core, uint32_t member) noexcept nogil:
    # Which limits an entry is above, and where they move the member, also one that the entry opens. Limits move up only. member: 0: none.
    cdef const Judged* judged = &core.judged
    cdef uint8_t before = RUNG_OK, now = RUNG_OK
    cdef uint32_t i
    if judged.fired_count == 0:
        return
    section_begin(writer, SECTION_LIMITS)
    put_varint(writer, <uint64_t>judged.cut)
    for i in range(judged.fired_count):
        put_varint(writer, judged.fired[i].limit + 1)
        put_byte(writer, judged.fired[i].action)
    section_end(writer)
    if member != 0 and member <= core.stats.members:
        before = <uint8_t>core.accounts[member - 1].rung
        now = rung_at(&core.accounts[member - 1], core.decision.now_us)
    if member != 0 and judged.rung > now:
        write_rung(writer, before, judged.rung, judged.rung_until_s, judged.rung_by + 1)


cdef void cut_awards(Core* core, int64_t points_max) noexcept nogil:
    # Takes from the last awards what is above a bound.
    cdef Result2* result = core.result
    cdef Award* award
    cdef int64_t sum = 0, over
    cdef uint32_t i
    for i in range(result.award_count):
        sum += result.awards[i].points
    over = sum - points_max
    core.judged.cut = max_i64(0, over)
    while over > 0 and result.award_count != 0:
        award = &result.awards[result.award_count - 1]
        if award.points > over:
            award.points -= over
            result.points[award.wallet] -= over
            return
        over -= award.points
        result.points[award.wallet] -= award.points
        result.award_count -= 1


# --- look-ups -----------------------------------------------------------------------------------------------------

cdef bint look_up_allowed(Core* core, const Command* command, int64_t now_us, uint32_t member, Hash128 identity) noexcept nogil:
    # Counts a GetBalance, found or not, in tables that no entry and no snapshot knows. For one window after a start a bound on it counts as half
    # reached, because nobody knows what was before. Where there is no room it is not counted: nothing is taken by looking.
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef uint64_t* tallies
    cdef const ImageVelocity* counter
    cdef const ImageLimit* limit
    cdef Slice nothing
    cdef Origin origin
    cdef Measured m
    cdef VelocityPlace place
    cdef int64_t left, used
    cdef uint32_t i
    cdef bint allowed = True
    if not limits_hold(core):
        return True
    tallies = (<const Loaded*>core.program).limit_tallies
    memset(&m, 0, sizeof(Measured))
    memset(&nothing, 0, sizeof(Slice))
    m.events = OF_BALANCE if member != 0 else OF_UNKNOWN_BALANCE
    origin_of(core, command, &origin)
    know_time(core, &m, now_us, now_us, zone_offset_s(rules, &command.origin[ORIGIN_STORE], now_us))
    know_origin(&m, &origin)
    know_place(core, &m, &nothing, &nothing, &origin)
    know_member(core, &m, member)
    if command.member.kind != MEMBER_BY_ID:
        know(&m, PART_IDENTIFIER, <uint64_t>member << 32 | <uint32_t>identity.lo)
    if core.looked_since_s == 0:
        core.looked_since_s = m.now.now_s
        core.looked_since_day = m.day
    for i in range(rules.counts[SECTION2_LIMITS]):
        limit = &rules.limits[i]
        if limit.of & m.events == 0 or limit.counter == 0 or limit.keys & ~m.known != 0 or not in_segments(&m, limit.segments):
            continue
        counter = &rules.velocity[limit.counter - 1]
        place = place_of(&core.looked, counter, &m)
        used = counted(&core.looked, counter, &m, &place, 1)
        if counter.window == SPEED_SLIDING:
            if m.now.now_s - core.looked_since_s < counter.window_s:
                used += limit.at_most // 2
        elif velocity_window(counter.window, core.looked_since_day) == window_of(counter, &m):
            used += limit.at_most // 2
        if used > limit.at_most:
            tallies[i] += 1
            if limit.action == LIMIT_REFUSE:
                allowed = False
    if not room_for(&core.looked, rules, VELOCITY_VOLATILE, &m):
        # Else those who fill the tables would never be counted again.
        velocity_sweep(&core.looked, &m.now, VELOCITY_SWEPT_WHEN_FULL)
        if not room_for(&core.looked, rules, VELOCITY_VOLATILE, &m):
            return allowed
    for i in range(rules.counts[SECTION2_VELOCITY]):
        counter = &rules.velocity[i]
        if counter.flags & VELOCITY_VOLATILE and takes(counter, &m):
            place = place_of(&core.looked, counter, &m)
            count_in(&core.looked, counter, &m, &place)
    return allowed


# --- limits that were not in force ------------------------------------------------------------------------------------

cdef struct PastRegion:         # of a store
    uint64_t store              # its hash, as entries have it
    uint32_t region             # 0: the place is free

cdef struct Past:               # what it promises stands in _core.pxd
    Loaded* loaded
    Velocity velocity
    Counting counting
    Counted counted             # of the entry at hand
    PastRegion* regions         # open addressing; NULL: no counter asks
    uint64_t region_mask


cdef Past* core_past_open(const uint8_t* image, uint32_t size, uint32_t members_max) noexcept nogil:
    cdef Past* past = <Past*>calloc(1, sizeof(Past))
    if past == NULL:
        return NULL
    past.loaded = loaded_copy(image, size)
    if past.loaded == NULL or past.loaded.program.rules == NULL or not velocity_open(
            &past.velocity, <uint64_t>members_max * VELOCITY_COUNTERS_PER_MEMBER + VELOCITY_SLOTS_LEAST,
            <uint64_t>members_max * VELOCITY_COUNTERS_PER_MEMBER + VELOCITY_SLOTS_LEAST, members_max // 4 + VELOCITY_SLOTS_LEAST // 4):
        core_past_close(past)
        return NULL
    counting_of(&past.loaded.rules, &past.counting)
    if past.counting.regions and not past_regions_open(past):
        core_past_close(past)
        return NULL
    return past


cdef void core_past_close(Past* past) noexcept nogil:
    if past != NULL:
        loaded_free(past.loaded)
        velocity_close(&past.velocity)
        free(past.regions)
        free(past)


cdef bint past_regions_open(Past* past) noexcept nogil:
    # Many entries name their store by its hash alone.
    cdef const Program2* rules = &past.loaded.rules
    cdef const TableRow* row
    cdef uint64_t store, at, capacity = 2
    cdef uint32_t region, i
    cdef Slice code
    while capacity < 2 * <uint64_t>rules.stores.count:
        capacity *= 2
    past.region_mask = capacity - 1
    past.regions = <PastRegion*>calloc(capacity, sizeof(PastRegion))
    if past.regions == NULL:
        return False
    for i in range(rules.stores.count):
        row = &rules.stores.rows[i]
        region = rules.store_classes[row.value].region
        if region == 0:
            continue
        code.data = <const uint8_t*>row.name
        code.size = row.size
        store = origin_hash(NULL, ORIGIN_STORE, code)
        at = store & past.region_mask
        while past.regions[at].region != 0:
            at = (at + 1) & past.region_mask
        past.regions[at].store = store
        past.regions[at].region = region
    return True


cdef uint32_t past_region(const Past* past, const Measured* m) noexcept nogil:
    # Of an entry's store, by the limits' own programme; 0: it has none.
    cdef uint64_t at
    if not m.known >> PART_STORE & 1:
        return 0
    at = m.part[PART_STORE] & past.region_mask
    while past.regions[at].region != 0 and past.regions[at].store != m.part[PART_STORE]:
        at = (at + 1) & past.region_mask
    return past.regions[at].region


cdef const Program2* core_past_rules(const Past* past) noexcept nogil:
    return &past.loaded.rules


cdef int32_t offset_then(const Core* core, const EntryView* view, const Context* context) noexcept nogil:
    # Of the store's zone, for an entry without ORIGIN: by the programme that was in force, also by one of version 1.
    cdef int64_t business_us = business_of(view, context)
    if core.program.rules != NULL:
        return zone_offset_s(<const Program2*>core.program.rules, &context.store, business_us)
    return core.program.zone[zone_span(core.program, business_us)].offset_s


cdef void measure_refused(const Core* core, const EntryView* view, const Context* context, Measured* m) noexcept nogil:
    # What limits refused then is measured as the command that it was. What it would have earned is not known, and is 0.
    cdef uint32_t member = view.header.member
    m.events = events_asked(<uint8_t>view.header.kind, context, member == 0)
    if m.events & OF_BURN:
        m.taken = context.values[CONTEXT_POINTS]
    if member == 0:
        # It would have opened the next account.
        member = <uint32_t>core.stats.members + 1
        know(m, PART_MEMBER, member)
        m.member_print = member
        if m.known >> PART_IDENTIFIER & 1:
            m.part[PART_IDENTIFIER] |= <uint64_t>member << 32


cdef int core_judge_past(Core* core, Past* past, const uint8_t* entry, uint32_t size, PastEntry* found) noexcept nogil:
    cdef const Program2* rules = &past.loaded.rules
    cdef uint64_t* tallies = past.loaded.limit_tallies
    cdef const ImageLimit* limit
    cdef Judged judged
    cdef EntryView view
    cdef Context context
    cdef Cursor cursor
    cdef Measured m
    cdef uint32_t i
    cdef int result
    memset(found, 0, sizeof(PastEntry))
    if not entry_view(entry, size, &view):
        return APPLY_FRAMING
    if core.program == NULL:
        return APPLY_OK
    programme_of(core, view.header.time_us)
    if not KIND_EARN <= view.header.kind <= KIND_ENROLL and view.header.kind != KIND_RETURN:
        return count_back(core, &past.velocity, rules, &view)
    context_read(&view, &context)
    if not measure_with(core, &view, &context, &past.counting, offset_then(core, &view, &context), &m):
        return APPLY_FRAMING
    if past.regions != NULL and not (core.counting.regions and view.sections[SECTION_ORIGIN].data != NULL):
        # Its programme did not ask, so that its entry does not say.
        m.region_print = past_region(past, &m)
    found.was_stopped = view.header.status == STATUS_VELOCITY_EXCEEDED
    if found.was_stopped:
        measure_refused(core, &view, &context, &m)
    elif m.events & OF_EARN and view.sections[SECTION_LIMITS].data != NULL:
        # A limit of then cut it: it is judged with all that it would have earned.
        cursor_open(&cursor, &view.sections[SECTION_LIMITS])
        m.earned += <int64_t>get_varint(&cursor)
    if rules.counts[SECTION2_LIMITS] != 0:
        memset(tallies, 0, rules.counts[SECTION2_LIMITS] * sizeof(uint64_t))
    counts_where(&past.velocity, rules, &past.counting, &m, &past.counted)
    judge_by(&past.velocity, rules, &past.counting, &m, &past.counted, True, tallies, &judged)
    if judged.full:
        return APPLY_FULL
    found.looked_at = True
    found.day = m.day
    found.events = m.events
    found.member = view.header.member
    found.taken = m.taken
    found.reserved = m.reserved if m.events & OF_RESERVE else 0
    found.earned = m.earned
    for i in range(rules.counts[SECTION2_LIMITS]):
        limit = &rules.limits[i]
        found.counts[i] = limit.of & m.events != 0 and not lacks(&m, limit.keys, limit.measure) and in_segments(&m, limit.segments)
        found.above[i] = tallies[i] != 0
        if found.above[i]:
            found.answers |= <uint32_t>1 << limit.action
    if found.answers >> LIMIT_REFUSE & 1:
        return APPLY_OK
    m.earned = min_i64(m.earned, judged.points_max)
    found.cut = found.earned - m.earned
    if found.cut != 0:
        counts_where(&past.velocity, rules, &past.counting, &m, &past.counted)      # with less to add
    result = count_in_all(&past.velocity, rules, &past.counting, &m, &past.counted)
    return result if result != APPLY_OK else count_back(core, &past.velocity, rules, &view)
