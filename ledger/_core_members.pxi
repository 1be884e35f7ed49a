# What rules need to know of members: profiles, counters of caps and tiers, days, and the campaigns that all share. Included by ledger/_core.pyx.
# Not for what rules mean (docs/rules.md): entries say what changes, and it is changed here. The bytes and facts: docs/journal-format.md.
#
# A member's counters stand in one piece of an arena, sorted by counter; so do the days, behind one unit that names the owner. A piece is always of
# the smallest class that holds what is in it.

cdef enum:
    FACT_PROFILE = 5
    FACT_SETS = 6
    FACT_COUNTER = 7
    FACT_DAY = 8
    FACT_CAMPAIGN = 9
    OWNER_MASK = 0x07FFFFFF     # of Counter.owner: the account number; above it CounterPer
    PER_SHIFT = 28
    NO_WINDOW = -2147483648

cdef enum:                      # CounterPer: what a counter's windows are; 1..6 as ImageCap.per
    PER_DAY = 1
    PER_WEEK = 2
    PER_MONTH = 3
    PER_YEAR = 4
    PER_EVER = 5
    PER_BIRTHDAY = 6
    PER_ANNIVERSARY = 7         # of tiers; the others of tiers are PER_EVER, PER_MONTH and PER_YEAR
    PER_COUNT = 8

cdef struct Profile:            # 64 bytes, beside each account; zero where no entry has touched it
    uint64_t segments[2]        # bit: place in the programme's segments
    uint64_t chosen             # bit: place in its favourites
    int32_t opened_day          # days since 1970; 0: opened before the ledger kept it
    int32_t first_day           # of receipts; both valid with receipts > 0
    int32_t last_day
    uint32_t receipts
    int32_t tier_until          # first day on which the tier is not held; DAY_NEVER
    int32_t birthday_from       # day since which the birthday counts
    uint16_t birthday           # month * 32 + day; 0: none
    uint8_t tier                # level from 0, the lowest
    uint8_t known               # 1: an entry has touched it, so it is in the digest
    uint16_t counter_count
    uint16_t day_count
    uint32_t counters           # piece of the arena; valid with counter_count
    uint32_t days               # piece; valid with day_count

cdef struct Counter:            # 32 bytes, a unit of the arena
    int64_t value[2]            # taken in the window; 0 with NO_WINDOW
    int32_t window[2]           # the latest two, the later first; NO_WINDOW: none
    uint32_t counter            # ImageCap.counter, or of tiers window code * 2 + measure
    uint32_t owner              # CounterPer above PER_SHIFT; in the first of a piece the account number below

cdef struct MemberDay:          # 16 bytes
    int32_t day                 # days since 1970
    int32_t receipts
    int64_t spent               # minor units

cdef struct Campaign:           # 24 bytes
    int64_t points              # or minor units
    int64_t uses
    uint32_t key                # of its name
    uint32_t reserved


# --- facts --------------------------------------------------------------------------------------------------------

cdef inline uint64_t two_words(int64_t low, int64_t high) noexcept nogil:
    return <uint32_t>low | <uint64_t><uint32_t>high << 32


cdef Hash128 profile_fact(const Profile* profile, uint32_t member) noexcept nogil:
    return fact_hash(FACT_PROFILE, member, two_words(profile.opened_day, profile.first_day), two_words(profile.last_day, profile.tier_until),
                     two_words(profile.receipts, profile.birthday_from), profile.tier | <uint64_t>profile.birthday << 8)


cdef Hash128 sets_fact(const Profile* profile, uint32_t member) noexcept nogil:
    return fact_hash(FACT_SETS, member, profile.segments[0], profile.segments[1], profile.chosen, 0)


cdef Hash128 counter_fact(const Counter* counter, uint32_t member) noexcept nogil:
    return fact_hash(FACT_COUNTER, two_words(member, counter.counter), two_words(counter.window[0], counter.window[1]),
                     <uint64_t>counter.value[0], <uint64_t>counter.value[1], counter.owner >> PER_SHIFT)


cdef Hash128 day_fact(const MemberDay* day, uint32_t member) noexcept nogil:
    return fact_hash(FACT_DAY, two_words(member, day.day), <uint64_t><int64_t>day.receipts, <uint64_t>day.spent, 0, 0)


cdef Hash128 campaign_fact(const Campaign* campaign) noexcept nogil:
    return fact_hash(FACT_CAMPAIGN, campaign.key, <uint64_t>campaign.points, <uint64_t>campaign.uses, 0, 0)


# --- pieces -------------------------------------------------------------------------------------------------------

cdef bint members_open(Core* core, uint64_t members_max) noexcept nogil:
    # Every class may have a last block that is not full, and beside them one entry may need a block of every class (members_room).
    cdef uint64_t growth = <uint64_t>LOT_CLASS_COUNT << BLOCK_SHIFT
    cdef uint64_t days = min_i64(members_max * DAY_UNITS_PER_MEMBER_PLANNED, <int64_t>NO_PIECE - 4 * growth)     # pieces have 32-bit numbers
    core.profiles = <Profile*>reserve_memory(members_max * sizeof(Profile) + 64)
    core.campaigns = <Campaign*>reserve_memory(<uint64_t>CAMPAIGNS_KEPT_MAX * sizeof(Campaign))
    return (core.profiles != NULL and core.campaigns != NULL
            and arena_open(&core.counters, members_max * COUNTERS_PER_MEMBER_PLANNED + growth)
            and arena_open(&core.days, days + growth))


cdef void members_close(Core* core) noexcept nogil:
    unreserve_memory(core.profiles, core.accounts_max * sizeof(Profile) + 64)
    unreserve_memory(core.campaigns, <uint64_t>CAMPAIGNS_KEPT_MAX * sizeof(Campaign))
    arena_close(&core.counters)
    arena_close(&core.days)


cdef inline bint arena_has_growth(const Arena* arena) noexcept nogil:
    # Whether there is room for one entry that makes a piece grow through every class.
    return arena.capacity - arena.used + arena.empty >= LOT_CLASS_COUNT


cdef bint members_room(const Core* core) noexcept nogil:
    # Whether an entry of any rules can be applied.
    return arena_has_growth(&core.counters) and arena_has_growth(&core.days) and core.campaign_count + CAMPAIGNS_PER_ENTRY_MAX <= CAMPAIGNS_KEPT_MAX


cdef inline Counter* counters_of(const Core* core, const Profile* profile) noexcept nogil:
    return <Counter*>&core.counters.lots[profile.counters]


cdef inline MemberDay* days_of(const Core* core, const Profile* profile) noexcept nogil:
    return <MemberDay*>&core.days.lots[profile.days + 1]


cdef inline uint32_t day_units(uint32_t days) noexcept nogil:
    return 1 + ((days + 1) >> 1)


cdef void counters_give(Core* core, uint32_t piece, uint8_t cls) noexcept nogil:
    cdef uint32_t owner = arena_give(&core.counters, piece, cls) & <uint32_t>OWNER_MASK
    if owner != 0:
        core.profiles[owner - 1].counters = piece


cdef void days_give(Core* core, uint32_t piece, uint8_t cls) noexcept nogil:
    cdef uint32_t owner = arena_give(&core.days, piece, cls)
    if owner != 0:
        core.profiles[owner - 1].days = piece


cdef bint counters_resize(Core* core, Profile* profile, uint32_t member, uint32_t count) noexcept nogil:
    # Room for `count` counters; what there is stays in front. False: the arena is full.
    cdef uint32_t before = profile.counter_count, piece
    cdef uint32_t kept = before if before < count else count
    cdef uint8_t old = class_for(before) if before != 0 else 0
    cdef uint8_t new = class_for(count) if count != 0 else 0
    if (before == 0) != (count == 0) or old != new:
        piece = 0
        if count != 0:
            piece = arena_take(&core.counters, new, member)
            if piece == NO_PIECE:
                return False
            memcpy(&core.counters.lots[piece], &core.counters.lots[profile.counters], kept * sizeof(Counter))
        if before != 0:
            counters_give(core, profile.counters, old)
        profile.counters = piece
    profile.counter_count = <uint16_t>count
    return True


cdef bint days_resize(Core* core, Profile* profile, uint32_t member, uint32_t count) noexcept nogil:
    cdef uint32_t before = profile.day_count, piece
    cdef uint32_t kept = before if before < count else count
    cdef uint8_t old = class_for(day_units(before))
    cdef uint8_t new = class_for(day_units(count))
    if (before == 0) != (count == 0) or old != new:
        piece = 0
        if count != 0:
            piece = arena_take(&core.days, new, member)
            if piece == NO_PIECE:
                return False
            memcpy(&core.days.lots[piece + 1], &core.days.lots[profile.days + 1], kept * sizeof(MemberDay))
        if before != 0:
            days_give(core, profile.days, old)
        profile.days = piece
    profile.day_count = <uint16_t>count
    return True


# --- counters -----------------------------------------------------------------------------------------------------

cdef uint32_t counter_place(const Counter* counters, uint32_t count, uint32_t counter, bint* found) noexcept nogil:
    # Where this counter is, or would go.
    cdef uint32_t low = 0, high = count, middle
    while low < high:
        middle = (low + high) >> 1
        if counters[middle].counter < counter:
            low = middle + 1
        else:
            high = middle
    found[0] = low < count and counters[low].counter == counter
    return low


cdef int64_t counter_used(const Core* core, uint32_t member, uint32_t counter, int32_t window) noexcept nogil:
    # Taken so far in a window; -1: the window is older than the two that are kept.
    cdef const Profile* profile
    cdef const Counter* row
    cdef bint found = False
    cdef uint32_t place
    if member == 0 or member > core.stats.members:
        return 0
    profile = &core.profiles[member - 1]
    place = counter_place(counters_of(core, profile), profile.counter_count, counter, &found)
    if not found:
        return 0
    row = &counters_of(core, profile)[place]
    if window == row.window[0]:
        return row.value[0]
    if window == row.window[1]:
        return row.value[1]
    return -1 if row.window[1] != NO_WINDOW and window < row.window[1] else 0


cdef int32_t window_behind(const Profile* profile, uint32_t per, int32_t window) noexcept nogil:
    # The first day behind a window, or later; DAY_NEVER: it has no end.
    cdef int64_t year
    if window < 0 or window > 200_000:
        return DAY_NEVER
    if per == PER_DAY:
        return window + 1
    if per == PER_WEEK:
        return (window + 1) * 7 - 3
    if per == PER_ANNIVERSARY:
        return profile.opened_day + (window + 2) * 366 if window < 1000 else DAY_NEVER
    if per == PER_MONTH:
        year = div_floor(window + 1, 12)
        return day_from_civil(<int32_t>year, window + 1 - <int32_t>year * 12 + 1, 1) if 1970 <= year < 2200 else DAY_NEVER
    if (per == PER_YEAR or per == PER_BIRTHDAY) and 1970 <= window < 2198:
        return day_from_civil(window + (1 if per == PER_YEAR else 2), 1, 1)
    return DAY_NEVER


cdef bint counters_drop(Core* core, Profile* profile, uint32_t member, int32_t before) noexcept nogil:
    # Drops the counters whose latest window ended on or before a day.
    cdef Counter* counters = counters_of(core, profile)
    cdef uint32_t i, kept = 0
    for i in range(profile.counter_count):
        if window_behind(profile, counters[i].owner >> PER_SHIFT, counters[i].window[0]) <= before:
            digest_sub(&core.digest, counter_fact(&counters[i], member))
            core.stats.counters -= 1
            continue
        if kept != i:
            counters[kept] = counters[i]
        kept += 1
    if kept == profile.counter_count:
        return True
    if kept != 0:
        counters[0].owner = (counters[0].owner & ~<uint32_t>OWNER_MASK) | member
    return counters_resize(core, profile, member, kept)


cdef int apply_counter(Core* core, Profile* profile, uint32_t member, uint32_t counter, uint32_t per, int32_t window, int64_t increment,
                       int32_t drop_before, bint* dropped) noexcept nogil:
    # One increment: into a window that is kept, or into one that becomes one of the latest two; else it is lost.
    cdef Counter* counters = counters_of(core, profile)
    cdef Counter* row
    cdef bint found = False
    cdef uint32_t place = counter_place(counters, profile.counter_count, counter, &found), i
    if not found:
        if increment < 0:
            return APPLY_OK
        if not dropped[0]:
            dropped[0] = True
            if not counters_drop(core, profile, member, drop_before):
                return APPLY_FULL
            place = counter_place(counters_of(core, profile), profile.counter_count, counter, &found)
        if profile.counter_count >= COUNTERS_PER_MEMBER_MAX or not counters_resize(core, profile, member, <uint32_t>profile.counter_count + 1):
            return APPLY_FULL
        counters = counters_of(core, profile)
        i = profile.counter_count - 1
        while i > place:
            counters[i] = counters[i - 1]
            i -= 1
        row = &counters[place]
        row.counter = counter
        row.owner = per << PER_SHIFT
        row.window[0] = window
        row.window[1] = NO_WINDOW
        row.value[0] = increment
        row.value[1] = 0
        counters[0].owner = (counters[0].owner & ~<uint32_t>OWNER_MASK) | member
        core.stats.counters += 1
        digest_add(&core.digest, counter_fact(row, member))
        return APPLY_OK
    row = &counters[place]
    digest_sub(&core.digest, counter_fact(row, member))
    if window == row.window[0]:
        if add_overflow(row.value[0], increment, &row.value[0]):
            return APPLY_SUM
    elif window == row.window[1]:
        if add_overflow(row.value[1], increment, &row.value[1]):
            return APPLY_SUM
    elif increment >= 0 and window > row.window[0]:
        row.window[1] = row.window[0]
        row.value[1] = row.value[0]
        row.window[0] = window
        row.value[0] = increment
    elif increment >= 0 and window > row.window[1]:
        row.window[1] = window
        row.value[1] = increment
    digest_add(&core.digest, counter_fact(row, member))
    return APPLY_OK


cdef int apply_counters(Core* core, const Slice* section, Profile* profile, uint32_t member) noexcept nogil:
    cdef Cursor cursor
    cdef uint32_t counter, per
    cdef int64_t window, increment, drop_before
    cdef bint dropped = False
    cdef int result
    cursor_open(&cursor, section)
    drop_before = get_signed(&cursor)
    while cursor_more(&cursor):
        counter = get_key(&cursor)
        per = get_byte(&cursor)
        window = get_signed(&cursor)
        increment = get_signed(&cursor)
        if cursor.broken or per == 0 or per >= PER_COUNT or window < 0 or window >= DAY_NEVER:
            return APPLY_FRAMING
        result = apply_counter(core, profile, member, counter, per, <int32_t>window, increment, <int32_t>drop_before, &dropped)
        if result != APPLY_OK:
            return result
    return APPLY_FRAMING if cursor.broken else APPLY_OK


# --- days ---------------------------------------------------------------------------------------------------------

cdef int apply_day(Core* core, Profile* profile, uint32_t member, int32_t day, int64_t receipts, int64_t spent) noexcept nogil:
    cdef MemberDay* days = days_of(core, profile)
    cdef uint32_t place = profile.day_count, i
    cdef int64_t sum = 0
    while place > 0 and days[place - 1].day >= day:
        place -= 1
    if place < profile.day_count and days[place].day == day:
        digest_sub(&core.digest, day_fact(&days[place], member))
        if add_overflow(days[place].receipts, receipts, &sum) or sum != <int32_t>sum or add_overflow(days[place].spent, spent, &days[place].spent):
            return APPLY_SUM
        days[place].receipts = <int32_t>sum
        digest_add(&core.digest, day_fact(&days[place], member))
        return APPLY_OK
    if receipts < 0 or receipts != <int32_t>receipts:
        return APPLY_OK if receipts < 0 else APPLY_SUM
    if profile.day_count >= DAYS_PER_MEMBER_MAX or not days_resize(core, profile, member, <uint32_t>profile.day_count + 1):
        return APPLY_FULL
    days = days_of(core, profile)
    i = profile.day_count - 1
    while i > place:
        days[i] = days[i - 1]
        i -= 1
    days[place].day = day
    days[place].receipts = <int32_t>receipts
    days[place].spent = spent
    core.stats.days += 1
    digest_add(&core.digest, day_fact(&days[place], member))
    return APPLY_OK


cdef int apply_days(Core* core, const Slice* section, Profile* profile, uint32_t member) noexcept nogil:
    # Then the days that are no longer among the last `keep` before the newest one are dropped.
    cdef Cursor cursor
    cdef MemberDay* days
    cdef uint64_t keep
    cdef int64_t day, receipts, spent
    cdef uint32_t gone = 0, i
    cdef int result
    cursor_open(&cursor, section)
    keep = get_varint(&cursor)
    while cursor_more(&cursor):
        day = get_signed(&cursor)
        receipts = get_signed(&cursor)
        spent = get_signed(&cursor)
        if cursor.broken or day < 0 or day >= DAY_NEVER:
            return APPLY_FRAMING
        result = apply_day(core, profile, member, <int32_t>day, receipts, spent)
        if result != APPLY_OK:
            return result
    if cursor.broken or keep >= DAY_NEVER:
        return APPLY_FRAMING
    days = days_of(core, profile)
    while gone < profile.day_count and days[gone].day <= <int64_t>days[profile.day_count - 1].day - <int64_t>keep:
        digest_sub(&core.digest, day_fact(&days[gone], member))
        gone += 1
    if gone != 0:
        core.stats.days -= gone
        for i in range(gone, profile.day_count):
            days[i - gone] = days[i]
        if not days_resize(core, profile, member, profile.day_count - gone):
            return APPLY_FULL
    return APPLY_OK


# --- campaigns ----------------------------------------------------------------------------------------------------

cdef uint32_t campaign_place(const Core* core, uint32_t key, bint* found) noexcept nogil:
    cdef uint32_t low = 0, high = core.campaign_count, middle
    while low < high:
        middle = (low + high) >> 1
        if core.campaigns[middle].key < key:
            low = middle + 1
        else:
            high = middle
    found[0] = low < core.campaign_count and core.campaigns[low].key == key
    return low


cdef int64_t campaign_used(const Core* core, uint32_t key, bint uses) noexcept nogil:
    cdef bint found = False
    cdef uint32_t place = campaign_place(core, key, &found)
    if not found:
        return 0
    return core.campaigns[place].uses if uses else core.campaigns[place].points


cdef int apply_campaigns(Core* core, const Slice* section) noexcept nogil:
    cdef Cursor cursor
    cdef Campaign* row
    cdef uint32_t key, place, i
    cdef int64_t points, uses
    cdef bint found = False
    cursor_open(&cursor, section)
    while cursor_more(&cursor):
        key = get_key(&cursor)
        points = get_signed(&cursor)
        uses = get_signed(&cursor)
        if cursor.broken:
            return APPLY_FRAMING
        place = campaign_place(core, key, &found)
        row = &core.campaigns[place]
        if found:
            digest_sub(&core.digest, campaign_fact(row))
        else:
            if core.campaign_count >= CAMPAIGNS_KEPT_MAX:
                return APPLY_FULL
            i = core.campaign_count
            while i > place:
                core.campaigns[i] = core.campaigns[i - 1]
                i -= 1
            memset(row, 0, sizeof(Campaign))
            row.key = key
            core.campaign_count += 1
            core.stats.campaigns = core.campaign_count
        if add_overflow(row.points, points, &row.points) or add_overflow(row.uses, uses, &row.uses):
            return APPLY_SUM
        digest_add(&core.digest, campaign_fact(row))
    core.campaign_sequence = core.stats.sequence + 1
    return APPLY_FRAMING if cursor.broken else APPLY_OK


# --- the profile --------------------------------------------------------------------------------------------------

cdef int apply_rules_state(const Slice* section, Profile* profile) noexcept nogil:
    cdef Cursor cursor
    cdef int64_t day, until
    cdef uint64_t number
    cdef uint8_t tier
    cursor_open(&cursor, section)
    day = get_signed(&cursor)
    number = get_varint(&cursor)
    get_byte(&cursor)           # the tier before
    tier = get_byte(&cursor)
    until = <int64_t>get_varint(&cursor)
    if cursor.broken or day < 0 or day >= DAY_NEVER or until > DAY_NEVER:
        return APPLY_FRAMING
    if number != <uint64_t>profile.receipts + 1:
        return APPLY_MEMBER
    if profile.receipts == 0 or day < profile.first_day:
        profile.first_day = <int32_t>day
    if profile.receipts == 0 or day > profile.last_day:
        profile.last_day = <int32_t>day
    profile.receipts += 1
    profile.tier = tier
    profile.tier_until = <int32_t>until
    return APPLY_OK


cdef int apply_segments(const Slice* section, Profile* profile) noexcept nogil:
    cdef Cursor cursor
    cdef uint64_t words[4]
    cdef uint32_t i
    cursor_open(&cursor, section)
    for i in range(4u):
        words[i] = get_varint(&cursor)
    if cursor.broken:
        return APPLY_FRAMING
    for i in range(2u):
        profile.segments[i] = (profile.segments[i] | words[i]) & ~words[2 + i]
    return APPLY_OK


cdef int apply_attributes(const Slice* section, Profile* profile) noexcept nogil:
    cdef Cursor cursor
    cdef uint8_t tag
    cursor_open(&cursor, section)
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        if tag == ATTRIBUTE_BIRTHDAY:
            profile.birthday = <uint16_t>get_varint(&cursor)
            profile.birthday_from = <int32_t>get_signed(&cursor)
        elif tag == ATTRIBUTE_CHOSEN:
            profile.chosen = get_varint(&cursor)
        else:
            return APPLY_FRAMING
    return APPLY_FRAMING if cursor.broken else APPLY_OK


cdef inline bint entry_has_rules(const EntryView* view) noexcept nogil:
    # Whether the entry changes what is kept here.
    cdef uint32_t i
    for i in range(<uint32_t>SECTION_RULES_STATE, <uint32_t>SECTION_DAYS + 1):
        if view.sections[i].data != NULL:
            return True
    return view.sections[SECTION_SEGMENTS].data != NULL or view.sections[SECTION_ATTRIBUTES].data != NULL


cdef int apply_rules(Core* core, const EntryView* view) noexcept nogil:
    # What an entry of rules changes of its member, and of the campaigns.
    cdef uint32_t member = view.header.member
    cdef Profile* profile = &core.profiles[member - 1]
    cdef Cursor cursor
    cdef int result = APPLY_OK
    cdef bint sets = not profile.known or view.sections[SECTION_SEGMENTS].data != NULL or view.sections[SECTION_ATTRIBUTES].data != NULL
    if profile.known:
        digest_sub(&core.digest, profile_fact(profile, member))
        if sets:
            digest_sub(&core.digest, sets_fact(profile, member))
    profile.known = 1
    if view.sections[SECTION_OPENED].data != NULL:
        cursor_open(&cursor, &view.sections[SECTION_OPENED])
        profile.opened_day = <int32_t>get_signed(&cursor)
        if cursor.broken or not view.header.flags & FLAG_OPENED:
            return APPLY_FRAMING
    if view.sections[SECTION_RULES_STATE].data != NULL:
        result = apply_rules_state(&view.sections[SECTION_RULES_STATE], profile)
    if result == APPLY_OK and view.sections[SECTION_COUNTERS].data != NULL:
        result = apply_counters(core, &view.sections[SECTION_COUNTERS], profile, member)
    if result == APPLY_OK and view.sections[SECTION_CAMPAIGNS].data != NULL:
        result = apply_campaigns(core, &view.sections[SECTION_CAMPAIGNS])
    if result == APPLY_OK and view.sections[SECTION_DAYS].data != NULL:
        result = apply_days(core, &view.sections[SECTION_DAYS], profile, member)
    if result == APPLY_OK and view.sections[SECTION_SEGMENTS].data != NULL:
        result = apply_segments(&view.sections[SECTION_SEGMENTS], profile)
    if result == APPLY_OK and view.sections[SECTION_ATTRIBUTES].data != NULL:
        result = apply_attributes(&view.sections[SECTION_ATTRIBUTES], profile)
    digest_add(&core.digest, profile_fact(profile, member))
    if sets:
        digest_add(&core.digest, sets_fact(profile, member))
    return result
