# What waits for somebody's word: receipts whose points are under review, commands that a challenge must be passed for. Included by ledger/_core.pyx.
# Not for when a limit asks for either (ledger/_core_limits.pxi).
#
# A case is known by the sequence of its entry. Points under review lie in lots that become available so many days late (REVIEW_DAYS) that they
# are pending until somebody decides; then they go to the lots that they were meant for, or back to where they were issued. A challenge is open
# for a quarter of an hour, and good for one command when it was passed.

cdef enum:
    CASE_OPEN = 0
    CASE_PASSED = 1
    FACT_CASE = 13


cdef Hash128 case_fact(const Case* row) noexcept nogil:
    return fact_hash(FACT_CASE, row.sequence, row.member | <uint64_t>row.limit << 32 | <uint64_t>row.kind << 48 | <uint64_t>row.state << 56,
                     <uint64_t>row.time_us, <uint64_t>row.points, row.program)


cdef bint cases_open(Core* core) noexcept nogil:
    core.cases = <Case*>reserve_memory(<uint64_t>CASES_MAX * sizeof(Case))
    return core.cases != NULL


cdef uint32_t case_place(const Core* core, uint64_t sequence) noexcept nogil:
    # Where it stands or would stand: they are in the order of their entries.
    cdef uint32_t low = 0, high = core.case_count, middle
    while low < high:
        middle = (low + high) >> 1
        if core.cases[middle].sequence < sequence:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline bint case_over(const Case* row, int64_t now_us) noexcept nogil:
    return row.kind == CASE_CHALLENGE and now_us - row.time_us > <int64_t>CHALLENGE_S * MICROSECONDS


cdef const Case* case_find(const Core* core, int64_t sequence, uint8_t kind, int64_t now_us) noexcept nogil:
    # NULL: there is none, or its time is over.
    cdef uint32_t place
    cdef const Case* row
    if sequence < 1:
        return NULL
    place = case_place(core, <uint64_t>sequence)
    row = &core.cases[place]
    if place == core.case_count or row.sequence != <uint64_t>sequence or row.kind != kind or case_over(row, now_us):
        return NULL
    return row


cdef void cases_change(Core* core) noexcept nogil:
    # Around every change: whoever lists them from another thread begins anew when it was odd or is another one afterwards.
    store_u32(&core.case_changes, core.case_changes + 1)


cdef void case_remove(Core* core, uint64_t sequence) noexcept nogil:
    cdef uint32_t place = case_place(core, sequence), i
    if place == core.case_count or core.cases[place].sequence != sequence:
        return
    digest_sub(&core.digest, case_fact(&core.cases[place]))
    cases_change(core)
    for i in range(place + 1, core.case_count):
        core.cases[i - 1] = core.cases[i]
    core.case_count -= 1
    cases_change(core)


cdef int case_add(Core* core, const Case* row) noexcept nogil:
    # The newest. Challenges whose time is over go first.
    cdef uint32_t i, kept = 0
    cases_change(core)
    for i in range(core.case_count):
        if case_over(&core.cases[i], row.time_us):
            digest_sub(&core.digest, case_fact(&core.cases[i]))
            continue
        if kept != i:
            core.cases[kept] = core.cases[i]
        kept += 1
    core.case_count = kept
    if kept < CASES_MAX:
        core.cases[kept] = row[0]
        core.case_count += 1
        digest_add(&core.digest, case_fact(row))
    cases_change(core)
    return APPLY_OK if kept < CASES_MAX else APPLY_FULL


cdef inline bint cases_room(const Core* core) noexcept nogil:
    return core.case_count < CASES_MAX


# --- deciding -----------------------------------------------------------------------------------------------------

cdef bint check_case(const Command* command, Outcome* outcome) noexcept nogil:
    # DecideReview, AnswerChallenge.
    if command.method == METHOD_ANSWER_CHALLENGE:
        return True if command.case_id >= 1 else refuse_number(outcome, FIELD_CHALLENGE_ID, command.case_id)
    if command.case_id < 1:
        return refuse_number(outcome, FIELD_REVIEW_ID, command.case_id)
    if command.verdict < 1 or command.verdict > 2:
        return refuse_number(outcome, FIELD_VERDICT, command.verdict)
    return check_by_hand(command, outcome)


cdef uint16_t differing_case(const Command* command, const Context* context) noexcept nogil:
    # In which field a repeat differs; 0: in none.
    cdef bint reviews = command.method == METHOD_DECIDE_REVIEW
    if context.values[CONTEXT_CASE] != command.case_id:
        return FIELD_REVIEW_ID if reviews else FIELD_CHALLENGE_ID
    if context.values[CONTEXT_VERDICT] != command.verdict:
        return FIELD_VERDICT if reviews else FIELD_PASSED
    return 0


cdef bint take_challenge(const Core* core, const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # Of a command that says which challenge was passed for it.
    cdef const Case* row
    if command.case_id == 0:
        return True
    row = case_find(core, command.case_id, CASE_CHALLENGE, d.now_us)
    if row == NULL or row.state != CASE_PASSED or row.member != d.member:
        refuse(outcome, STATUS_CHALLENGE_NOT_FOUND, command.case_id, 0)
        return False
    d.challenge_passed = True
    return True


cdef void execute_answer(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # AnswerChallenge.
    cdef const Case* row = case_find(core, command.case_id, CASE_CHALLENGE, d.now_us)
    cdef EntryWriter writer
    if row == NULL or row.state != CASE_OPEN:
        refuse(outcome, STATUS_CHALLENGE_NOT_FOUND, command.case_id, 0)
        return
    d.member = row.member
    fill_header(core, entry_begin(&writer, entry), KIND_ANSWER_CHALLENGE, d)
    write_context(&writer, command, d)
    finish_write(core, entry, entry_finish(&writer), outcome)


cdef const Lot* lot_under_review(const Core* core, const Account* account, const Change* given) noexcept nogil:
    # The lot in which points of an entry lie now: what lives by inactivity has been moved to other expiry days. NULL: it has expired.
    cdef const Lot* lot
    cdef uint32_t i
    for i in range(account.lot_count):
        lot = &core.arena.lots[account.lots + i]
        if (lot.wallet == given.wallet and lot.available_day == given.available_day and lot.funder == given.funder
                and (lot.expiry_day == given.expiry_day or lot.funder & LOT_SLIDES)):
            return lot
    return NULL


cdef uint16_t decide_review(Core* core, const Command* command, Decision* d, const Account* account, const EntryView* reviewed) noexcept nogil:
    # Where the points of an entry go. Returns a status.
    cdef Cursor cursor
    cdef Change given
    cdef Lot ready
    cdef const Lot* lot
    cdef int64_t points
    cursor_open(&cursor, &reviewed.sections[SECTION_LOTS])
    while reviewed.sections[SECTION_LOTS].data != NULL and cursor_more(&cursor):
        given.wallet = <uint16_t>get_varint(&cursor)
        given.available_day = <int32_t>get_varint(&cursor)
        given.expiry_day = <int32_t>get_varint(&cursor)
        given.funder = <uint16_t>get_varint(&cursor)
        given.points = get_signed(&cursor)
        get_signed(&cursor)
        if cursor.broken or given.available_day < REVIEW_DAYS or given.points <= 0:
            continue
        lot = lot_under_review(core, account, &given)
        if lot == NULL:
            continue
        points = min_i64(given.points, lot.points)
        ready = lot[0]
        ready.available_day = given.available_day - REVIEW_DAYS
        add_change(core, d, lot, -points, 0)
        if command.verdict == 1:
            add_change(core, d, &ready, points, 0)
        else:
            d.earned[given.wallet] -= points
    return STATUS_OK if arena_has(&core.arena) else STATUS_TABLE_FULL


cdef void execute_verdict(Core* core, const Command* command, Decision* d, uint8_t* entry, Outcome* outcome) noexcept nogil:
    # DecideReview.
    cdef const Case* row = case_find(core, command.case_id, CASE_REVIEW, d.now_us)
    cdef Account* account
    cdef EntryWriter writer
    cdef EntryView reviewed
    cdef Context sale
    cdef const uint8_t* bytes
    cdef uint32_t size = 0
    cdef uint16_t status
    if row == NULL:
        refuse(outcome, STATUS_REVIEW_NOT_FOUND, command.case_id, 0)
        return
    d.member = row.member
    account = &core.accounts[d.member - 1]
    outcome.wait_sequence = account.sequence
    bytes = core.find(core.find_owner, row.sequence, &size) if core.find != NULL else NULL
    VERIFY(bytes != NULL and entry_view(bytes, size, &reviewed))
    status = decide_review(core, command, d, account, &reviewed)
    if status != STATUS_OK:
        outcome.status = status
        return
    context_read(&reviewed, &sale)
    d.sale = &sale              # a return of the receipt must know that its points are gone
    fill_header(core, entry_begin(&writer, entry), KIND_DECIDE_REVIEW, d)
    write_context(&writer, command, d)
    write_postings(&writer, d)
    write_lots(&writer, core, d)
    write_after(&writer, core, d, account)
    finish_write(core, entry, entry_finish(&writer), outcome)


# --- applying -----------------------------------------------------------------------------------------------------

cdef int64_t points_under_review(const EntryView* view) noexcept nogil:
    cdef Cursor cursor
    cdef uint64_t available_day
    cdef int64_t points, sum = 0
    if view.sections[SECTION_LOTS].data == NULL:
        return 0
    cursor_open(&cursor, &view.sections[SECTION_LOTS])
    while cursor_more(&cursor):
        get_varint(&cursor)
        available_day = get_varint(&cursor)
        get_varint(&cursor)
        get_varint(&cursor)
        points = get_signed(&cursor)
        get_signed(&cursor)
        if available_day >= REVIEW_DAYS and points > 0:
            sum += points
    return sum


cdef uint16_t limit_with(const Slice* section, uint8_t action) noexcept nogil:
    # Number of the first limit of an entry with this answer; 0: none.
    cdef Cursor cursor
    cdef uint64_t limit
    if section.data == NULL:
        return 0
    cursor_open(&cursor, section)
    get_varint(&cursor)
    while cursor_more(&cursor):
        limit = get_varint(&cursor)
        if get_byte(&cursor) == action:
            return <uint16_t>limit
    return 0


cdef int open_case(Core* core, const EntryView* view, uint8_t kind, uint16_t limit) noexcept nogil:
    cdef Case row
    memset(&row, 0, sizeof(Case))
    row.sequence = core.stats.sequence + 1
    row.time_us = view.header.time_us
    row.member = view.header.member
    row.program = view.header.program
    row.kind = kind
    row.limit = limit
    if kind == CASE_REVIEW:
        row.points = points_under_review(view)
    return case_add(core, &row)


cdef int decide_case(Core* core, const EntryView* view, const Context* context) noexcept nogil:
    # DecideReview, AnswerChallenge. One that was passed stays until it is used.
    cdef uint32_t place = case_place(core, <uint64_t>context.values[CONTEXT_CASE])
    if place == core.case_count or core.cases[place].sequence != <uint64_t>context.values[CONTEXT_CASE]:
        return APPLY_RESERVATION
    if view.header.kind == KIND_DECIDE_REVIEW or context.values[CONTEXT_VERDICT] != 1:
        case_remove(core, <uint64_t>context.values[CONTEXT_CASE])
        return APPLY_OK
    digest_sub(&core.digest, case_fact(&core.cases[place]))
    core.cases[place].state = CASE_PASSED
    digest_add(&core.digest, case_fact(&core.cases[place]))
    return APPLY_OK


cdef int apply_cases(Core* core, const EntryView* view) noexcept nogil:
    # What an entry opens and closes.
    cdef const EntryHeader* header = view.header
    cdef Context context
    cdef Sale sale
    cdef uint16_t limit = limit_with(&view.sections[SECTION_LIMITS], LIMIT_CHALLENGE if header.status == STATUS_CHALLENGE_NEEDED else LIMIT_REVIEW)
    if header.status == STATUS_CHALLENGE_NEEDED:
        return open_case(core, view, CASE_CHALLENGE, limit)
    if header.status != STATUS_OK:
        return APPLY_OK
    if core.case_count != 0 and header.kind != KIND_EARN:
        context_read(view, &context)
        if header.kind == KIND_DECIDE_REVIEW or header.kind == KIND_ANSWER_CHALLENGE:
            return decide_case(core, view, &context)
        if context.given >> CONTEXT_CASE & 1:
            case_remove(core, <uint64_t>context.values[CONTEXT_CASE])
        if header.kind == KIND_RETURN and returned_read(view, &sale):
            case_remove(core, sale.earned_by)       # nothing is left to be decided
    elif header.kind == KIND_DECIDE_REVIEW or header.kind == KIND_ANSWER_CHALLENGE:
        return APPLY_RESERVATION
    if limit != 0 and points_under_review(view) != 0:
        return open_case(core, view, CASE_REVIEW, limit)
    return APPLY_OK


cdef uint32_t core_cases(const Core* core, Case* rows, uint32_t rows_max, uint32_t* changes) noexcept nogil:
    cdef uint32_t count = core.case_count
    changes[0] = load_u32(&core.case_changes)
    if count > rows_max:
        count = rows_max
    memcpy(rows, core.cases, count * sizeof(Case))
    return count


cdef bint core_cases_changed(const Core* core, uint32_t changes) noexcept nogil:
    return changes & 1 or load_u32(&core.case_changes) != changes
