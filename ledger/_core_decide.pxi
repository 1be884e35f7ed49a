# Deciding by rules of version 2: what the evaluator is told, what its result becomes in an entry. Included by ledger/_core.pyx.
# Not for what rules mean (ledger/_evaluate.pxd) nor for applying (ledger/_core_members.pxi).

# --- what the evaluator is told -----------------------------------------------------------------------------------

cdef int64_t limits_used(void* core, uint32_t member, uint32_t counter, int32_t window) noexcept nogil:
    return counter_used(<const Core*>core, member, counter, window)


cdef int64_t limits_campaign_used(void* core, uint32_t campaign, uint8_t measure) noexcept nogil:
    return campaign_used(<const Core*>core, campaign, measure == CAP_USES)


cdef void gather_facts(Core* core, const Decision* d, const Account* account) noexcept nogil:
    # account: NULL for one that the command would open.
    cdef Facts2* facts = &core.facts
    cdef const Profile* profile
    cdef const Lot* lot
    cdef int32_t earlier = d.business_day if d.business_day < d.today else d.today
    cdef int32_t later = d.business_day if d.business_day > d.today else d.today
    cdef uint32_t i
    memset(facts, 0, sizeof(Facts2))
    facts.receipt_number = 1
    facts.last_day = -1
    facts.tier_until = DAY_NEVER
    if account == NULL:
        facts.member = <uint32_t>core.stats.members + 1
        facts.opened_day = d.today
        return
    profile = &core.profiles[d.member - 1]
    facts.member = d.member
    facts.opened_day = profile.opened_day
    facts.receipt_number = profile.receipts + 1
    if profile.receipts != 0:
        facts.last_day = profile.last_day
    facts.birthday = profile.birthday
    facts.birthday_from = profile.birthday_from
    facts.tier = profile.tier
    if profile.tier != 0:
        facts.tier_until = profile.tier_until
    facts.segments[0] = profile.segments[0]
    facts.segments[1] = profile.segments[1]
    facts.chosen = profile.chosen
    facts.day_count = profile.day_count
    if profile.day_count != 0:
        facts.days = <const DayRow*>days_of(core, profile)
    for i in range(account.lot_count):
        # As take_available has it.
        lot = &core.arena.lots[account.lots + i]
        if lot.expiry_day > later and lot.available_day <= earlier:
            facts.available[lot.wallet] += lot.points - held_of(core, d, account, lot)


# --- deciding -----------------------------------------------------------------------------------------------------

cdef uint16_t refuse_by_rules(const Core* core, const Command* command, uint32_t wallet, int64_t points, Outcome* outcome) noexcept nogil:
    # The status of a receipt that the evaluator refuses.
    cdef const Result2* result = core.result
    cdef uint8_t refused = result.refused
    cdef uint32_t i
    if refused == REFUSED_UNKNOWN_STORE:
        refuse_text(outcome, STATUS_STORE_NOT_FOUND, FIELD_RECEIPT_STORE, command.store)
        return STATUS_STORE_NOT_FOUND
    if refused == REFUSED_TOO_MANY_LINES or refused == REFUSED_ABSURD_AMOUNT or refused == REFUSED_TOTAL_DIFFERS:
        refuse_number(outcome, FIELD_RECEIPT_TOTAL_MINOR, command.total_minor)
        return STATUS_FIELD_INVALID
    outcome.a = 0
    outcome.b = 0
    if refused == REFUSED_POINTS_OVERFLOW or refused == REFUSED_TOO_MANY_AWARDS:
        return STATUS_POINTS_OVERFLOW
    for i in range(result.burn_limit_count):
        if result.burn_limits[i].wallet == wallet:
            outcome.a = result.burn_limits[i].points
    outcome.b = points
    return STATUS_BURN_NOT_ALLOWED


cdef uint16_t decide_rules(Core* core, const Command* command, const Decision* d, const Account* account, const Reservation* captured,
                           int64_t captured_points, Outcome* outcome) noexcept nogil:
    # Runs the rules of version 2 into core.result. Returns a status; outcome says the rest of a refusal.
    cdef uint32_t wallet = d.wallet, kept = 0
    cdef int64_t points = command.points if command.payment == PAYMENT_BURN else 0
    gather_facts(core, d, account)
    if captured != NULL:
        # What it holds is there to be taken.
        wallet = captured.wallet
        points = captured_points
        core.facts.available[wallet] += captured.reserved_points
    evaluate(<const Program2*>core.decision.program.rules, command, d.business_us, &core.facts, &core.limits, wallet, points, core.scratch, core.result)
    core.stats.evaluated += 1
    if core.result.refused != 0:
        core.stats.rules_refused[core.result.refused] += 1
        return refuse_by_rules(core, command, wallet, points, outcome)
    if account != NULL:
        kept = core.profiles[d.member - 1].counter_count
    if (not members_room(core) or core.result.counter_count > COUNTERS_PER_ENTRY_MAX
            or kept + core.result.counter_count + TIER_COUNTERS_MAX > COUNTERS_PER_MEMBER_MAX):
        return STATUS_TABLE_FULL
    return STATUS_OK


# --- points that live by inactivity -------------------------------------------------------------------------------

cdef inline bint lives_by_inactivity(const Decision* d, const Lot* lot, uint32_t wallet) noexcept nogil:
    # Whether receipts and burns move this lot of the wallet. What has expired stays so.
    return lot.wallet == wallet and lot.funder & LOT_SLIDES and lot.expiry_day > d.today


cdef int32_t slide_day(const Core* core, const Decision* d, const Account* account, uint32_t wallet) noexcept nogil:
    # The expiry day that a receipt or burn of this business day gives to what lives by inactivity in a wallet: never an earlier one than
    # a later receipt has given already. 0: nothing of the wallet lives so.
    cdef const Program2* rules = <const Program2*>d.program.rules
    cdef const Lot* lot
    cdef int32_t day
    cdef uint32_t i
    if wallet >= rules.wallet_count or rules.image_wallets[wallet].sliding_days == 0:
        return 0
    day = d.business_day + rules.image_wallets[wallet].sliding_days
    if account != NULL:
        for i in range(account.lot_count):
            lot = &core.arena.lots[account.lots + i]
            if lives_by_inactivity(d, lot, wallet) and lot.expiry_day > day:
                day = lot.expiry_day
    return day


cdef void date_awards(Core* core, const Decision* d, const Account* account) noexcept nogil:
    # The days that rules cannot know: of points under review, and of those that live by inactivity.
    cdef const Program2* rules = <const Program2*>d.program.rules
    cdef Result2* result = core.result
    cdef Award* award
    cdef Given* given
    cdef uint32_t i
    if d.reviewed:
        for i in range(result.award_count):
            result.awards[i].available_day += REVIEW_DAYS
    if not rules.any_slides:
        return
    for i in range(result.award_count):
        award = &result.awards[i]
        if rules.rules[award.rule - 1].life_unit == LIFE2_INACTIVITY:
            award.expiry_day = slide_day(core, d, account, award.wallet)
            award.funder |= LOT_SLIDES
    for i in range(result.given_count):
        given = &result.given[i]
        if given.expiry_day == DAY_NEVER and rules.rules[given.rule].life_unit == LIFE2_INACTIVITY:
            given.expiry_day = slide_day(core, d, account, rules.rules[given.rule].wallet)


cdef int64_t left_of(const Core* core, const Lot* lot, uint32_t change_count) noexcept nogil:
    # What no reservation holds of a lot, behind the first so many changes of the entry.
    cdef const Change* change
    cdef int64_t left = lot.points - lot.held
    cdef uint32_t i
    for i in range(change_count):
        change = &core.changes[i]
        if (change.wallet == lot.wallet and change.expiry_day == lot.expiry_day and change.available_day == lot.available_day
                and change.funder == lot.funder):
            left += change.points - change.held
    return left


cdef uint16_t slide_lots(Core* core, Decision* d, const Account* account) noexcept nogil:
    # Moves what lives by inactivity to its new expiry day. What can be used already becomes one lot of each funder, or else a regular
    # customer would have one of every receipt for ever; what is held stays until it is given back. Returns a status.
    cdef const Program2* rules = <const Program2*>d.program.rules
    cdef const Lot* lot
    cdef const Lot* other
    cdef Lot moved
    cdef int64_t left
    cdef uint32_t w, i, j, decided = d.change_count
    if not rules.any_slides:
        return STATUS_OK
    for w in range(rules.wallet_count):
        moved.expiry_day = slide_day(core, d, account, w)
        if moved.expiry_day == 0:
            continue
        for i in range(account.lot_count):
            lot = &core.arena.lots[account.lots + i]
            if not lives_by_inactivity(d, lot, w):
                continue
            left = left_of(core, lot, decided)
            if left == 0:
                continue
            moved.wallet = lot.wallet
            moved.funder = lot.funder
            moved.available_day = lot.available_day
            if lot.available_day <= d.today:
                for j in range(account.lot_count):
                    other = &core.arena.lots[account.lots + j]
                    if lives_by_inactivity(d, other, w) and other.funder == lot.funder and other.available_day < moved.available_day:
                        moved.available_day = other.available_day
            if moved.expiry_day != lot.expiry_day or moved.available_day != lot.available_day:
                add_change(core, d, lot, -left, 0)
                add_change(core, d, &moved, left, 0)
    return STATUS_OK if d.change_count == decided or arena_has(&core.arena) else STATUS_TABLE_FULL


# --- the entry ----------------------------------------------------------------------------------------------------

cdef Slice padded_name(const char* text, uint32_t size_max) noexcept nogil:
    # A name of an image, zero padded.
    cdef Slice name
    name.data = <const uint8_t*>text
    name.size = 0
    while name.size < size_max and text[name.size] != 0:
        name.size += 1
    return name


cdef void put_counter(EntryWriter* writer, uint32_t counter, uint8_t per, int32_t window, int64_t increment) noexcept nogil:
    put_key(writer, counter)
    put_byte(writer, per)
    put_signed(writer, window)
    put_signed(writer, increment)


cdef void write_rules_state(EntryWriter* writer, const Core* core) noexcept nogil:
    cdef const Program2* rules = <const Program2*>core.decision.program.rules
    cdef const Result2* result = core.result
    cdef Slice before, after
    before.size = after.size = 0
    before.data = after.data = NULL
    if rules.counts[SECTION2_TIERS] != 0:
        before = padded_name(rules.tiers[result.tier].name, TIER_NAME_BYTES)
        if result.tier_after != result.tier:
            after = padded_name(rules.tiers[result.tier_after].name, TIER_NAME_BYTES)
    section_begin(writer, SECTION_RULES_STATE)
    put_signed(writer, result.day)
    put_varint(writer, core.facts.receipt_number)
    put_byte(writer, result.tier)
    put_byte(writer, result.tier_after)
    put_varint(writer, <uint64_t>result.tier_until)
    put_text(writer, before)
    put_text(writer, after)
    section_end(writer)


cdef void write_counters(EntryWriter* writer, const Core* core, const Decision* d) noexcept nogil:
    # Of caps, and of the windows that tiers look at.
    cdef const Program2* rules = <const Program2*>core.decision.program.rules
    cdef const Result2* result = core.result
    cdef const CounterChange* change
    cdef uint8_t per
    cdef uint32_t i, window, windows = 0
    cdef int32_t number
    for i in range(rules.counts[SECTION2_THRESHOLDS]):
        if rules.thresholds[i].window < WINDOW_ROLLING:
            windows |= <uint32_t>1 << rules.thresholds[i].window
    if result.counter_count == 0 and windows == 0:
        return
    section_begin(writer, SECTION_COUNTERS)
    put_signed(writer, d.today - div_floor(core.program.max_age_us, <int64_t>86_400_000_000) - 2)
    for i in range(result.counter_count):
        change = &result.counters[i]
        put_counter(writer, change.counter, rules.caps[change.cap].per, change.window, change.increment)
    for window in range(<uint32_t>WINDOW_LIFETIME, <uint32_t>WINDOW_ANNIVERSARY + 1):
        if windows >> window & 1:
            per = PER_EVER
            if window == WINDOW_MONTH:
                per = PER_MONTH
            elif window == WINDOW_YEAR:
                per = PER_YEAR
            elif window == WINDOW_ANNIVERSARY:
                per = PER_ANNIVERSARY
            number = window_number(window, result.day, core.facts.opened_day)
            put_counter(writer, 2 * window + MEASURE_RECEIPTS, per, number, 1)
            put_counter(writer, 2 * window + MEASURE_SPENT, per, number, result.spent)
    section_end(writer)


cdef void write_days(EntryWriter* writer, const Core* core) noexcept nogil:
    # Where tiers look at rolling days.
    cdef const Program2* rules = <const Program2*>core.decision.program.rules
    cdef uint32_t i, longest = 0
    for i in range(rules.counts[SECTION2_ROLLING]):
        if rules.rolling[i] > longest:
            longest = rules.rolling[i]
    if longest == 0:
        return
    section_begin(writer, SECTION_DAYS)
    put_varint(writer, longest + <uint64_t>div_floor(core.program.max_age_us, <int64_t>86_400_000_000))
    put_signed(writer, core.result.day)
    put_signed(writer, 1)
    put_signed(writer, core.result.spent)
    section_end(writer)


cdef void write_line_amounts(EntryWriter* writer, uint8_t section, const Core* core, const int64_t* amounts, bint nameless) noexcept nogil:
    cdef uint32_t i
    cdef bint begun = False
    for i in range(core.result.line_count):
        if amounts[i] > 0:
            if not begun:
                section_begin(writer, section)
                begun = True
            put_varint(writer, 0 if nameless else i + 1)
            put_varint(writer, <uint64_t>amounts[i])
    if begun:
        section_end(writer)


cdef Slice noticed(const Command* command, const Notice* notice) noexcept nogil:
    # What was not known, as sent.
    if notice.kind == NOTICE_UNKNOWN_STORE:
        return command.store
    if notice.kind == NOTICE_UNKNOWN_SKU:
        return command.lines[notice.at].sku
    if notice.kind == NOTICE_UNKNOWN_CATEGORY:
        return command.lines[notice.at].category
    if notice.kind == NOTICE_UNKNOWN_PROMO_CODE:
        return command.promo_codes[notice.at]
    if notice.kind == NOTICE_UNKNOWN_TENDER:
        return command.tenders[notice.at].name
    return command.channel


cdef void write_notices(EntryWriter* writer, const Core* core, const Command* command) noexcept nogil:
    cdef const Notice* notice
    cdef uint32_t i
    if core.result.notice_count == 0:
        return
    section_begin(writer, SECTION_NOTICES)
    put_varint(writer, core.result.notice_count)
    for i in range(core.result.notice_count if core.result.notice_count < NOTICES_TOLD_MAX else NOTICES_TOLD_MAX):
        notice = &core.result.notices[i]
        put_byte(writer, notice.kind)
        put_varint(writer, 0 if notice.kind == NOTICE_UNKNOWN_STORE or notice.kind == NOTICE_UNKNOWN_CHANNEL else notice.at + 1)
        put_text(writer, noticed(command, notice))
    section_end(writer)


cdef void write_opened(EntryWriter* writer, const Core* core, const Decision* d) noexcept nogil:
    # In an entry that opens an account.
    section_begin(writer, SECTION_OPENED)
    put_signed(writer, d.today)
    section_end(writer)


cdef void write_rules(EntryWriter* writer, const Core* core, const Decision* d, const Command* command, bint opens) noexcept nogil:
    # What the rules made of a receipt, beside its awards.
    cdef const Program2* rules = <const Program2*>core.decision.program.rules
    cdef const Result2* result = core.result
    cdef const ImageCampaign* campaign
    cdef uint32_t i
    cdef bint nameless = command.line_count == 0
    write_rules_state(writer, core)
    if opens:
        write_opened(writer, core, d)
    write_counters(writer, core, d)
    if result.campaign_count != 0:
        section_begin(writer, SECTION_CAMPAIGNS)
        for i in range(result.campaign_count):
            campaign = &rules.campaigns[result.campaigns[i].campaign - 1]
            put_key(writer, campaign.key)
            put_signed(writer, result.campaigns[i].points)
            put_signed(writer, 1)
        section_end(writer)
    write_days(writer, core)
    write_line_amounts(writer, SECTION_DISCOUNTS, core, result.discounts, nameless)
    write_line_amounts(writer, SECTION_PAID, core, result.paid, nameless)
    if result.variant_count != 0:
        section_begin(writer, SECTION_VARIANTS)
        put_bytes(writer, result.variants, result.variant_count)
        section_end(writer)
    if result.entitlement_count != 0:
        section_begin(writer, SECTION_ENTITLEMENTS)
        for i in range(result.entitlement_count):
            put_text(writer, padded_name(rules.entitlements[result.entitlements[i]].name, ENTITLEMENT_BYTES))
        section_end(writer)
    write_notices(writer, core, command)


cdef void count_rules(Core* core, const Decision* d) noexcept nogil:
    # For metrics, of a receipt that is written.
    cdef RuleTally* tallies = (<const Loaded*>d.program).tallies
    cdef const Result2* result = core.result
    cdef uint32_t i
    for i in range(result.given_count):
        if result.given[i].given > 0:
            tallies[result.given[i].rule].receipts += 1
            tallies[result.given[i].rule].given += result.given[i].given
    for i in range(result.notice_count):
        core.stats.notices[result.notices[i].kind] += 1
    core.stats.by_quote += d.quoted
    core.stats.changed_since_quote += d.quoted and d.changed != 0


# --- what is set of a member --------------------------------------------------------------------------------------

cdef const SectionPlace* image_place(const Program2* rules, uint32_t kind) noexcept nogil:
    # Sections stand in the order of their kinds, all of them.
    return &(<const SectionPlace*>(rules.image + rules.header.section_table))[kind - 1]


cdef int32_t segment_place(const Core* core, Slice name) noexcept nogil:
    # The programme's number of a segment, from 0; -1: there is none of this name.
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef const SectionPlace* place = image_place(rules, SECTION2_SEGMENTS)
    return name_find(<const ImageName*>(rules.image + place.offset), place.count, &name)


cdef int32_t favourite_place(const Core* core, Slice path) noexcept nogil:
    cdef const Program2* rules = <const Program2*>core.program.rules
    cdef const SectionPlace* place
    cdef const ImageText* texts
    cdef const uint8_t* bytes
    cdef uint32_t i
    place = image_place(rules, SECTION2_FAVOURITES)
    texts = <const ImageText*>(rules.image + place.offset)
    bytes = rules.image + image_place(rules, SECTION2_TEXTS).offset
    for i in range(place.count):
        if texts[i].size == path.size and memcmp(bytes + texts[i].offset, path.data, path.size) == 0:
            return <int32_t>i
    return -1


cdef bint name_sets(const Core* core, const Command* command, uint64_t* words, Outcome* outcome) noexcept nogil:
    # The names of SetSegments (two words to add, two to take away) or SetAttributes (one word) as bits. False: outcome says which is unknown.
    cdef uint32_t i
    cdef int32_t place
    memset(words, 0, 4 * sizeof(uint64_t))
    for i in range(command.add_count):
        if command.method == METHOD_SET_SEGMENTS:
            place = segment_place(core, command.adds[i])
        else:
            place = favourite_place(core, command.adds[i])
        if place < 0:
            outcome.index = <int32_t>i
            return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_CHANGES_ADD if command.method == METHOD_SET_SEGMENTS else FIELD_FAVOURITES,
                               command.adds[i])
        words[place >> 6] |= <uint64_t>1 << (place & 63)
    for i in range(command.remove_count):
        place = segment_place(core, command.removes[i])
        if place < 0:
            outcome.index = <int32_t>i
            return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_CHANGES_REMOVE, command.removes[i])
        words[2 + (place >> 6)] |= <uint64_t>1 << (place & 63)
    return True


cdef bint check_birthday(const Command* command, Outcome* outcome) noexcept nogil:
    cdef int32_t month = command.birthday_month, day = command.birthday_day
    if not command.given & GIVEN_BIRTHDAY or (month == 0 and day == 0):
        return True
    if month < 1 or month > 12 or day < 1 or day > month_days(2024, month):
        return refuse_number(outcome, FIELD_BIRTHDAY, <int64_t>month * 100 + day)
    return True


cdef bint check_sets(const Core* core, const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # What depends on the programme.
    cdef uint64_t bits
    cdef uint32_t count = 0
    if not name_sets(core, command, d.sets, outcome):
        return False
    if command.method == METHOD_SET_ATTRIBUTES and command.given & GIVEN_FAVOURITES:
        bits = d.sets[0]
        while bits != 0:
            bits &= bits - 1
            count += 1
        if count > 0 and count > (<const Program2*>core.program.rules).header.favourites_at_most:
            return refuse_number(outcome, FIELD_FAVOURITES, count)
    return True


cdef uint16_t differing_sets(const Core* core, const Command* command, const EntryView* view) noexcept nogil:
    # In which field a repeat of SetSegments or SetAttributes differs; 0: in none.
    cdef Outcome unused
    cdef uint64_t words[4]
    cdef Cursor cursor
    cdef uint64_t value
    cdef uint32_t i, given = 0
    cdef uint8_t tag
    cdef uint16_t birthday = <uint16_t>(command.birthday_month * 32 + command.birthday_day)
    cdef bint same_birthday = not command.given & GIVEN_BIRTHDAY, same_chosen = not command.given & GIVEN_FAVOURITES
    if not name_sets(core, command, words, &unused):
        return unused.field
    if command.method == METHOD_SET_SEGMENTS:
        cursor_open(&cursor, &view.sections[SECTION_SEGMENTS])
        for i in range(4u):
            value = get_varint(&cursor)
            if value != words[i]:
                return FIELD_CHANGES_ADD if i < 2 else FIELD_CHANGES_REMOVE
        return 0
    cursor_open(&cursor, &view.sections[SECTION_ATTRIBUTES])
    while cursor_more(&cursor):
        tag = get_byte(&cursor)
        value = get_varint(&cursor)
        given |= <uint32_t>1 << (tag & 7)
        if tag == ATTRIBUTE_BIRTHDAY:
            get_signed(&cursor)
            same_birthday = command.given & GIVEN_BIRTHDAY and value == birthday
        elif tag == ATTRIBUTE_CHOSEN:
            same_chosen = command.given & GIVEN_FAVOURITES and value == words[0]
    if not same_birthday:
        return FIELD_BIRTHDAY
    return 0 if same_chosen else FIELD_FAVOURITES


cdef void execute_set(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # SetSegments, SetAttributes; d.member: the member named, or 0.
    cdef EntryWriter writer
    cdef EntryHeader* header
    cdef const Profile* profile
    cdef uint32_t i
    cdef int32_t counts_from
    cdef uint16_t birthday
    if d.member == 0:
        refuse_not_found(core, STATUS_MEMBER_NOT_FOUND, member_field(command.member.kind), outcome)
        return
    profile = &core.profiles[d.member - 1]
    header = entry_begin(&writer, entry)
    fill_header(core, header, kind_of(command.method), d)
    write_context(&writer, command, d)
    if command.method == METHOD_SET_SEGMENTS:
        section_begin(&writer, SECTION_SEGMENTS)
        for i in range(4u):
            put_varint(&writer, d.sets[i])
        section_end(&writer)
    else:
        section_begin(&writer, SECTION_ATTRIBUTES)
        if command.given & GIVEN_BIRTHDAY:
            birthday = <uint16_t>(command.birthday_month * 32 + command.birthday_day)
            counts_from = profile.birthday_from
            if profile.birthday != 0 and profile.birthday != birthday:
                counts_from = d.today + BIRTHDAY_REST_DAYS
            put_byte(&writer, ATTRIBUTE_BIRTHDAY)
            put_varint(&writer, birthday)
            put_signed(&writer, counts_from)
        if command.given & GIVEN_FAVOURITES:
            put_byte(&writer, ATTRIBUTE_CHOSEN)
            put_varint(&writer, d.sets[0])
        section_end(&writer)
    finish_write(core, entry, entry_finish(&writer), outcome)
