# The largest keys of limits' counters, and those of one member or place: for people who look. Included by ledger/_core.pyx.
# Not for judging (ledger/_core_limits.pxi), and not in any entry: it only reads.
#
# A search is the control port's own memory (KeySearch). Its first step lists the limits; each further one walks LIMIT_KEYS_SLOTS slots, between
# the calls of tills. Where a member or a place is named there is nothing to walk: its keys are made from it, and the first step is all.

cdef inline bint counts_recent(const ImageVelocity* counter) noexcept nogil:
    # Different ones of the last minutes or hours.
    return counter.window == SPEED_SLIDING and counts_different(counter.measure)


cdef inline bint is_wanted(const KeySearch* search, const ImageLimit* limit) noexcept nogil:
    # A limit of one command alone has no counter.
    return limit.counter != 0 and (search.wanted[0] == 0 or memcmp(search.wanted, limit.name, sizeof(search.wanted)) == 0)


cdef void tell_key(const Velocity* tables, const ImageVelocity* counter, const Measured* m, KeyLimit* told) noexcept nogil:
    # What the key of one member or place has come to in the window at hand.
    cdef uint32_t table = table_of(counter)
    cdef bint slides = table == VELOCITY_SLIDINGS
    cdef const VelocityHead* slot
    told.shown.key = velocity_key(counter_key(m, counter.keys))
    told.shown.window = 0 if slides else window_of(counter, m)
    told.shown.amount = 0
    slot = velocity_find(&tables.tables[table], told.shown.key, counter.id, told.shown.window, 0 if slides else 1)
    # A slot of windows before that are of the same parity is no hit.
    if slot != NULL and (slides or slot.window == told.shown.window) and not velocity_dead(slot, &m.now):
        told.shown.amount = velocity_amount(table, counts_recent(counter), slot, &m.now)


cdef void list_limits(const Core* core, const Program2* rules, KeySearch* search, const Measured* m) noexcept nogil:
    # The limits that are wanted, and the counters to be walked for them. m: whose keys alone; NULL: everybody's.
    cdef const ImageLimit* limit
    cdef const ImageVelocity* counter
    cdef KeyLimit* told
    cdef VelocityTop* top
    cdef uint32_t i, j
    search.limit_count = 0
    search.top_count = 0
    search.missed = search.wanted[0] != 0
    for i in range(rules.counts[SECTION2_LIMITS]):
        limit = &rules.limits[i]
        if not is_wanted(search, limit):
            continue
        search.missed = False
        counter = &rules.velocity[limit.counter - 1]
        if m != NULL and (counter.keys & ~m.known or (m.known >> PART_MEMBER & 1 and not in_segments(m, counter.segments))):
            continue
        told = &search.limits[search.limit_count]
        search.limit_count += 1
        memcpy(told.name, limit.name, sizeof(told.name))
        told.at_most = limit.at_most
        told.window_s = counter.window_s
        told.keys = counter.keys
        told.measure = counter.measure
        told.window = counter.window
        told.action = limit.action
        if m != NULL:
            tell_key(&core.looked if counter.flags & VELOCITY_VOLATILE else &core.velocity, counter, m, told)
            continue
        j = 0
        while j < search.top_count and search.tops[j].id != counter.id:
            j += 1
        told.top = <uint8_t>j
        if j == search.top_count:
            top = &search.tops[j]
            top.id = counter.id
            top.count = 0
            top.recent = counts_recent(counter)
            top.best = &search.best[j * LIMIT_KEYS_MAX]
            search.top_count += 1


cdef void walk_keys(const Core* core, KeySearch* search, const VelocityNow* now) noexcept nogil:
    # One step. The tables of the journal's counters come first, then those of look-ups.
    cdef const Velocity* tables
    cdef uint32_t number
    cdef uint64_t behind
    cdef uint64_t slots = LIMIT_KEYS_SLOTS
    while slots != 0 and search.table < 2 * VELOCITY_TABLES:
        tables = &core.velocity if search.table < VELOCITY_TABLES else &core.looked
        number = search.table if search.table < VELOCITY_TABLES else search.table - VELOCITY_TABLES
        behind = search.at
        if tables.tables[number].used != 0 and velocity_top(tables, number, search.tops, search.top_count, now, &search.at, slots, search.most):
            return
        slots -= search.at - behind
        search.table += 1
        search.at = 0
    search.more = search.table < 2 * VELOCITY_TABLES


cdef void execute_keys(Core* core, const Command* command, int64_t now_us, Outcome* outcome) noexcept nogil:
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef KeySearch* search = <KeySearch*>command.search
    cdef Hash128 identity
    cdef Slice nothing
    cdef Origin origin
    cdef Measured m
    cdef uint32_t member
    memset(&m, 0, sizeof(Measured))
    know_time(core, &m, now_us, now_us, zone_offset_s(rules, &command.origin[ORIGIN_STORE], now_us))
    if search.begun:
        walk_keys(core, search, &m.now)
        return
    search.begun = True
    search.more = False
    if command.member.kind == MEMBER_NONE and command.origins == 0:
        list_limits(core, rules, search, NULL)
        search.more = search.top_count != 0
        return
    if command.member.kind != MEMBER_NONE:
        if not check_member(core, &command.member, -1, &identity, outcome):
            return
        member = find_member(core, &command.member, identity)
        if member == 0:
            refuse_not_found(core, STATUS_MEMBER_NOT_FOUND, member_field(command.member.kind), outcome)
            return
        know_member(core, &m, member)
        if command.member.kind != MEMBER_BY_ID:
            know(&m, PART_IDENTIFIER, <uint64_t>member << 32 | <uint32_t>identity.lo)
    memset(&nothing, 0, sizeof(Slice))
    origin_of(core, command, &origin)
    know_origin(&m, &origin)
    know_place(core, &m, &nothing, &nothing, &origin)
    list_limits(core, rules, search, &m)
