# The answer to QuoteReceipt, written from what the evaluator says. Included by server/_wire.pyx.
# What a commit would tell of the same receipt (awards, ReceiptResult) is written from its entry, by the same functions.

cdef enum:
    MISSING_ROOM = 18_432       # of Standing.missing: REACH_COUNT_MAX of them
    QUOTE_END_ROOM = 512        # rule_count, token, its time and the sequence
    EXPLAINED_ROOM = 512        # of a RuleExplanation without its cuts and lines
    CUT_ROOM = 32
    LINE_AMOUNT_ROOM = 16

cdef const char* PER_NAMES[7]
PER_NAMES[:] = [b"receipt", b"day", b"week", b"month", b"year", b"ever", b"birthday"]


cdef inline void out_name(Out* out, uint32_t tag, const char* name, uint32_t room) noexcept nogil:
    # A name of an image: zero padded, or as long as its room.
    cdef uint32_t size = 0
    while size < room and name[size] != 0:
        size += 1
    out_bytes(out, tag, name, size)


cdef void out_window(Out* out, uint32_t tag, const Program2* rules, uint16_t window) noexcept nogil:
    cdef char text[24]
    cdef Text days
    if window == WINDOW_LIFETIME:
        out_bytes(out, tag, b"lifetime", 8)
    elif window == WINDOW_MONTH:
        out_bytes(out, tag, b"calendar month", 14)
    elif window == WINDOW_YEAR:
        out_bytes(out, tag, b"calendar year", 13)
    elif window == WINDOW_ANNIVERSARY:
        out_bytes(out, tag, b"anniversary year", 16)
    else:
        part_open(&days, <uint8_t*>text, sizeof(text))
        add_number(&days, rules.rolling[window - WINDOW_ROLLING])
        add_string(&days, b" days")
        out_bytes(out, tag, text, days.size)


cdef void out_missing(Out* out, uint32_t tag, const QuoteView* quote) noexcept nogil:
    # What is missing to the level above the one behind the receipt.
    cdef const Result2* result = quote.result
    cdef const ImageThreshold* threshold
    cdef uint8_t* body
    cdef uint32_t i
    for i in range(result.missing_count):
        threshold = &quote.rules.thresholds[result.missing[i].threshold]
        body = out_open(out, tag)
        out_name(out, 10, quote.rules.tiers[result.tier_after + 1].name, 32)
        out_int(out, 16 if threshold.measure == MEASURE_RECEIPTS else 24, result.missing[i].missing)
        out_window(out, 34, quote.rules, threshold.window)
        out_close(out, body)


cdef void out_burn_limit(Out* out, uint32_t tag, const Program* program, const QuoteView* quote, const BurnLimit2* limit) noexcept nogil:
    cdef uint8_t bounds[8]
    cdef uint32_t i, count = 0
    cdef uint8_t* body = out_open(out, tag)
    out_wallet_name(out, 10, program, limit.wallet)
    out_int(out, 16, limit.points)
    if limit.rule != 0:
        out_name(out, 26, quote.rules.burn[limit.rule - 1].name, 64)
    for i in range(8u):
        if limit.why >> i & 1:
            bounds[count] = <uint8_t>(i + 1)
            count += 1
    out_bytes(out, 34, bounds, count)
    out_close(out, body)


cdef inline int64_t reason_number(uint8_t reason) noexcept nogil:
    # RuleExplanation.Reason
    if reason < REASON_CAP:
        return reason
    return 9 if (reason - REASON_CAP) % 2 == CAP_USES else 8


cdef inline void out_per(Out* out, uint32_t tag, uint8_t reason) noexcept nogil:
    # The window of a cap.
    if reason >= REASON_CAP:
        out_string(out, <uint8_t>tag, PER_NAMES[(reason - REASON_CAP) // 2])


cdef void out_shares(Out* out, uint32_t tag, const QuoteView* quote, const Given* given) noexcept nogil:
    # What each line got of a rule.
    cdef const int64_t* share = &quote.scratch.pool[given.first_share]
    cdef const uint64_t* lines = &quote.scratch.rows[given.rule * <uint64_t>quote.scratch.stride]
    cdef uint64_t word
    cdef uint32_t w, line
    cdef uint8_t* body
    for w in range(quote.scratch.stride):
        word = lines[w]
        while word != 0:
            line = w * 64 + first_bit(word)
            word &= word - 1
            if share[0] > 0:
                body = out_open(out, tag)
                out_int(out, 8, 0 if quote.command.line_count == 0 else line + 1)
                out_int(out, 16, share[0])
                out_close(out, body)
            share += 1


cdef bint out_explained(Out* out, uint32_t tag, const Program* program, const QuoteView* quote, uint32_t index, const Given* given,
                        const NotGiven* not_given, const uint8_t* end) noexcept nogil:
    # RuleExplanation of a rule that gave something, or did not; both NULL: it entitles. False: there is no room.
    cdef const ImageRule* rule = &quote.rules.rules[index]
    cdef bint discount = rule.kind <= RULE_DISCOUNT_RECEIPT
    cdef uint64_t need = EXPLAINED_ROOM
    cdef uint8_t* body
    cdef uint8_t* inner
    cdef uint8_t reason
    cdef uint32_t i
    if given != NULL:
        need += given.cut_count * <uint64_t>CUT_ROOM + (quote.result.line_count * <uint64_t>LINE_AMOUNT_ROOM if discount else 0)
    if <uint64_t>(end - out.at) < need:
        return False
    body = out_open(out, tag)
    out_int(out, 8, index + 1)
    out_name(out, 18, quote.rules.rule_names + 64 * <uint64_t>index, 64)
    if given != NULL:
        out_int(out, 24, given.base)
        out_int(out, 32, wide_micro(&given.exact, given.divisor))
    if rule.kind != RULE_ENTITLE:
        out_int(out, 40, rule.round + 1)
    if given != NULL:
        out_int(out, 48, given.rounded)
        for i in range(given.cut_count):
            reason = quote.result.cuts[given.first_cut + i].reason
            inner = out_open(out, 58)
            out_int(out, 8, reason_number(reason))
            out_int(out, 16, quote.result.cuts[given.first_cut + i].points)
            out_per(out, 26, reason)
            out_close(out, inner)
        out_int(out, 64, given.given)
    if not discount and rule.kind != RULE_ENTITLE:
        out_wallet_name(out, 74, program, rule.wallet)
    if not_given != NULL:
        reason = not_given.reason
        out_int(out, 80, reason_number(reason))
        if reason == REASON_LOST_TO:
            out_int(out, 88, not_given.taker + 1)
        out_per(out, 98, reason)
    if given != NULL and discount:
        out_shares(out, 106, quote, given)
    out_close(out, body)
    return True


cdef uint32_t out_explanations(Out* out, uint32_t tag, const Program* program, const QuoteView* quote, const uint8_t* end) noexcept nogil:
    # In the order of the steps, and of the rules in each; as many as have room. Returns how many there are.
    cdef const Result2* result = quote.result
    cdef const Program2* rules = quote.rules
    cdef uint64_t word
    cdef uint32_t count = result.given_count + result.not_given_count
    cdef uint32_t kind, w, index, given = 0, refused
    cdef bint room = True
    for kind in range(<uint32_t>RULE_DISCOUNT_LINE, <uint32_t>RULE_ENTITLE):
        refused = 0
        while room:
            while refused < result.not_given_count and rules.rules[result.not_given[refused].rule].kind != kind:
                refused += 1
            if given < result.given_count and rules.rules[result.given[given].rule].kind == kind and (
                    refused == result.not_given_count or result.given[given].rule < result.not_given[refused].rule):
                room = out_explained(out, tag, program, quote, result.given[given].rule, &result.given[given], NULL, end)
                given += 1
            elif refused < result.not_given_count:
                room = out_explained(out, tag, program, quote, result.not_given[refused].rule, NULL, &result.not_given[refused], end)
                refused += 1
            else:
                break
    # Rules that entitle are not in `given`.
    refused = 0
    for w in range(rules.words):
        word = (quote.scratch.applies[w] | quote.scratch.refused[w]) & rules.kinds[RULE_ENTITLE][w]
        while word != 0:
            index = w * 64 + first_bit(word)
            word &= word - 1
            while refused < result.not_given_count and result.not_given[refused].rule < index:
                refused += 1
            if refused < result.not_given_count and result.not_given[refused].rule == index:
                room = room and out_explained(out, tag, program, quote, index, NULL, &result.not_given[refused], end)
            else:
                count += 1
                room = room and out_explained(out, tag, program, quote, index, NULL, NULL, end)
    return count


cdef void out_quote(Out* out, const Program* program, const EntryView* view, const QuoteView* quote, const uint8_t* room_end,
                    const uint8_t* end) noexcept nogil:
    # room_end: as out_entry has it. end: of all room.
    cdef const Result2* result = quote.result
    cdef uint8_t* body
    cdef uint32_t i
    out_int(out, 8, quote.member)
    out_int(out, 16, quote.program)
    out_time(out, 26, quote.business_us)
    for i in range(quote.rules.wallet_count):
        if result.points[i] > 0:
            body = out_open(out, 34)
            out_wallet_name(out, 10, program, i)
            out_int(out, 16, result.points[i])
            out_close(out, body)
    out_awards(out, 42, &view.sections[SECTION_AWARDS], room_end - MISSING_ROOM)
    out_result_of(out, 50, view, quote)
    for i in range(result.burn_limit_count):
        out_burn_limit(out, 58, program, quote, &result.burn_limits[i])
    if quote.command.given & GIVEN_EXPLAIN:
        out_int(out, 72, out_explanations(out, 66, program, quote, end - QUOTE_END_ROOM))
    out_bytes(out, 82, &quote.token, sizeof(QuoteToken))
    out_time(out, 90, quote.expire_us)
    out_int(out, 96, <int64_t>quote.sequence)
