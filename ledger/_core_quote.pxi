# QuoteReceipt and its token: a receipt decided up to its entry, which nobody posts. Included by ledger/_core.pyx.
# Not for deciding (decide_receipt, which a commit runs too) nor for the answer (server/_wire_quote.pxi).

cdef enum:
    QUOTE_TTL_US = 900_000_000  # 15 minutes of server time; as long old images stay


cdef inline bint earns_by(uint8_t method) noexcept nogil:
    # Whether a command of this method brings a receipt that rules decide.
    return method == METHOD_EARN or method == METHOD_COMMIT or method == METHOD_QUOTE


cdef inline uint64_t later_of(uint64_t a, uint64_t b) noexcept nogil:
    return a if a > b else b


cdef bint quotes_open(Core* core) noexcept nogil:
    cdef Hash128 key = siphash(core.identity_key, <const uint8_t*>b"daybook quote token", 19)
    memcpy(core.quote_key, &key, 16)
    mac_open(&core.quote_mac, core.quote_key)
    core.quote_entry = <uint8_t*>reserve_memory(COMMAND_ENTRY_BYTES_MAX)
    return core.quote_entry != NULL


# --- what a quote and its commit have in common -------------------------------------------------------------------------

cdef uint64_t quoted_receipt(Core* core, const Command* command, const Decision* d) noexcept nogil:
    # Hash of what the till says of a receipt, but for what a quote need not know: the rest of the key, and how it is paid. And of who is new.
    cdef EntryWriter writer
    entry_begin(&writer, core.quote_entry)
    writer.start = writer.at            # no header
    put_text(&writer, command.store)
    put_varint(&writer, <uint64_t>command.total_minor)
    put_bytes(&writer, <const uint8_t*>&d.member_hash if d.member == 0 else PUBLIC_KEY, 16)
    write_lines(&writer, command)
    write_receipt_end(&writer, command)
    return siphash(core.quote_key, writer.start, <uint32_t>(writer.at - writer.start)).lo


cdef inline uint32_t part_of(const Core* core, const void* data, uint64_t size) noexcept nogil:
    return <uint32_t>siphash(core.quote_key, <const uint8_t*>data, <uint32_t>size).lo


cdef void quoted_parts(const Core* core, const Decision* d, uint32_t* parts) noexcept nogil:
    # Hashes of what rules made of a receipt, part by part.
    cdef const Result2* result = core.result
    cdef uint8_t standing[ENTITLEMENTS_MAX + 8]
    parts[QUOTE_POINTS] = part_of(core, result.awards, result.award_count * sizeof(Award))
    parts[QUOTE_DISCOUNTS] = part_of(core, result.discounts, result.line_count * sizeof(int64_t))
    parts[QUOTE_PAID] = (part_of(core, result.paid, result.line_count * sizeof(int64_t))
                         ^ 31 * part_of(core, d.burned, sizeof(d.burned)))
    standing[0] = result.tier
    standing[1] = result.tier_after
    memcpy(standing + 2, &result.tier_until, 4)
    memcpy(standing + 6, result.entitlements, result.entitlement_count)
    parts[QUOTE_STANDING] = part_of(core, standing, 6 + result.entitlement_count)


cdef uint8_t differs_from_quote(const Core* core, const Decision* d) noexcept nogil:
    # In which parts the receipt comes to something else than was quoted: bits, of QuoteDifference - 1.
    cdef uint32_t parts[QUOTE_PARTS]
    cdef uint8_t changed = 0
    cdef uint32_t i
    quoted_parts(core, d, parts)
    for i in range(<uint32_t>QUOTE_PARTS):
        if parts[i] != d.token.parts[i]:
            changed |= <uint8_t>1 << i
    return changed


cdef int64_t mark_of(const Command* command) noexcept nogil:
    # Of the token, for its entry: whether a repeat has the same one. 0: none.
    if command.quote_token.size == 0:
        return 0
    return <int64_t>siphash(PUBLIC_KEY, command.quote_token.data, command.quote_token.size).lo


# --- a commit with a token ------------------------------------------------------------------------------------------------

cdef bint take_token(Core* core, const Command* command, Decision* d, Outcome* outcome) noexcept nogil:
    # Decides by the quote's image and at its business time from here on. False: outcome says why the token is not taken.
    cdef QuoteToken* token = &d.token
    cdef uint8_t mac[QUOTE_MAC_BYTES]
    cdef const Program* program
    memcpy(token, command.quote_token.data, sizeof(QuoteToken))
    mac_of(&core.quote_mac, token, sizeof(QuoteToken) - QUOTE_MAC_BYTES, mac)
    if token.version != QUOTE_TOKEN_VERSION or mac_differs(mac, token.mac, QUOTE_MAC_BYTES) != 0:
        return refuse_text(outcome, STATUS_FIELD_INVALID, FIELD_RECEIPT_QUOTE_TOKEN, command.quote_token)
    program = core_program_by_hash(core, token.image, QUOTE_IMAGE_BYTES)
    if (d.now_us - token.made_us >= QUOTE_TTL_US or token.made_us > d.now_us + <int64_t>CLOCK_AHEAD_S_MAX * MICROSECONDS
            or program == NULL or program.rules == NULL):
        refuse(outcome, STATUS_QUOTE_EXPIRED, token.made_us + QUOTE_TTL_US, 0)
        return False
    if token.member != d.member or token.receipt != quoted_receipt(core, command, d):
        refuse(outcome, STATUS_QUOTE_FOREIGN, token.member, 0)
        return False
    d.quoted = True
    d.program = program
    d.business_us = token.business_us
    d.business_day = day_of(core, &core.other_day, d.business_us)
    return True


cdef void write_quote(EntryWriter* writer, const Decision* d) noexcept nogil:
    # By what the entry was decided, and in what it differs from its quote.
    section_begin(writer, SECTION_QUOTE)
    put_varint(writer, d.program.version)
    put_signed(writer, d.business_us - d.now_us)
    put_byte(writer, d.changed)
    section_end(writer)


# --- the quote --------------------------------------------------------------------------------------------------------------

cdef void make_token(Core* core, const Command* command, const Decision* d, QuoteToken* token) noexcept nogil:
    cdef const Program2* rules = <const Program2*>d.program.rules
    memset(token, 0, sizeof(QuoteToken))
    token.version = QUOTE_TOKEN_VERSION
    token.member = d.member
    memcpy(token.image, rules.header.hash, QUOTE_IMAGE_BYTES)
    token.business_us = d.business_us
    token.made_us = d.now_us
    token.receipt = quoted_receipt(core, command, d)
    quoted_parts(core, d, token.parts)
    mac_of(&core.quote_mac, token, sizeof(QuoteToken) - QUOTE_MAC_BYTES, token.mac)


cdef void read_quote(Core* core, const Command* command, int64_t now_us, Outcome* outcome) noexcept nogil:
    cdef Decision* d = &core.decision
    cdef QuoteView* quote = &core.quote
    cdef EntryWriter writer
    cdef EntryHeader* header
    cdef Account* account = NULL
    cdef const Reservation* captured = NULL
    cdef int64_t captured_points = 0
    cdef uint16_t status
    open_decision(core, d, now_us)
    if not check_fields(core, command, d, outcome) or (command.origins != 0 and not check_origin(command, outcome)):
        return
    d.member = find_member(core, &command.member, d.member_hash)
    d.named = d.member != 0 and command.member.kind != MEMBER_BY_ID
    if not check_world(core, command, d, outcome):
        return
    begin_decision(core, d, d.now_us)
    if d.member != 0:
        account = &core.accounts[d.member - 1]
        outcome.wait_sequence = account.sequence
        d.due = reservations_due(core, account, d.now_us)
    elif may_open(core, command):
        outcome.wait_sequence = core.unlinked_sequence
    else:
        refuse_not_found(core, STATUS_MEMBER_NOT_FOUND, member_field(command.member.kind), outcome)
        return
    # Neither rules are told before it is durable that they are in force, nor what is left of a budget before it is who took the rest.
    outcome.wait_sequence = later_of(outcome.wait_sequence, core.programmes.versions[d.program.version - 1].sequence)
    if (<const Program2*>d.program.rules).counts[SECTION2_CAMPAIGNS] != 0:
        outcome.wait_sequence = later_of(outcome.wait_sequence, core.campaign_sequence)
    status = STATUS_BLOCKED if comes_blocked(core, command, d) else rung_allows(core, command, account, d, outcome)
    if status == STATUS_OK:
        status = decide_receipt(core, command, d, account, &captured, &captured_points, outcome)
    if status == STATUS_OK and limits_hold(core):
        status = obey_limits(core, core.quote_entry, write_command(core, command, d, account, captured, captured_points, core.quote_entry, &writer),
                             d, False, outcome)
        if status == STATUS_CHALLENGE_NEEDED:
            outcome.a = 0           # the commit will name it
        if status == STATUS_OK and (d.points_max != INT64_MAX or d.reviewed):
            begin_decision(core, d, d.now_us)
            status = decide_receipt(core, command, d, account, &captured, &captured_points, outcome)
    if status != STATUS_OK:
        outcome.status = status
        return
    list_burn_limits(core.scratch)
    quote.command = command
    quote.rules = <const Program2*>d.program.rules
    quote.result = core.result
    quote.scratch = core.scratch
    quote.sequence = account.sequence if account != NULL else 0
    quote.business_us = d.business_us
    quote.expire_us = d.now_us + QUOTE_TTL_US
    quote.member = d.member
    quote.program = d.program.version
    make_token(core, command, d, &quote.token)
    # The entry that a commit would write, as far as an answer tells it.
    header = entry_begin(&writer, core.quote_entry)
    fill_header(core, header, KIND_COMMIT, d)
    write_awards(&writer, core, d)
    write_rules(&writer, core, d, command, False)
    outcome.entry = writer.start
    outcome.entry_size = entry_finish(&writer)
    outcome.quote = quote
