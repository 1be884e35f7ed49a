# Leaves: what a programme (an image of version 2) does with a receipt. No Python, nothing allocated per call.
# Not for state: what the core knows comes in Facts2 and Limits2, what is to change goes out in Result2; nothing is changed here.
# The meaning of everything is docs/rules.md and ledger/rules/reference.py, which this equals field by field; why it has this shape:
# docs/decisions/rule-image.md.
#
# Three stages. The may-sets of the receipt's values, AND-ed, leave the rules that can still hold (`open`). The classes of the lines'
# articles name the few rules that are about them; what neither decides is asked of jump programs, and only for rules that got so far.
# What a rule gives is computed for these alone. The lines of a rule are a row of bits, so that stacking and "lines that both have" are
# word operations.

from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from ledger._arith cimport (
    civil_from_day, day_add_months, day_from_civil, div_floor, max_i64, min_i64, month_days, mul_div_floor, mul_div_rem,
)
from ledger._image cimport (
    ATOM_ACCOUNT_AGE_DAYS, ATOM_BIRTHDAY, ATOM_CHANNEL, ATOM_CLASS_BIT, ATOM_DATES, ATOM_DAYS_SINCE_LAST_RECEIPT, ATOM_DISCOUNTED,
    ATOM_ELIGIBLE_TOTAL, ATOM_EVERY_NTH, ATOM_FAVOURITE, ATOM_HOURS, ATOM_LINES_QUANTITY, ATOM_LINES_TOTAL, ATOM_NTH, ATOM_PRICE,
    ATOM_PROMO_CODE, ATOM_QUANTITY, ATOM_SEGMENT, ATOM_STORE, ATOM_TENDER, ATOM_TIER, ATOM_TOTAL, ATOM_VARIANT, ATOM_WEEKDAY,
    ATOM_WEIGHED, CAMPAIGNS_MAX, CAMPAIGN_AMOUNT, CAMPAIGN_POINTS, CAPS_PER_RULE_MAX, CAP_PER_BIRTHDAY, CAP_PER_DAY, CAP_PER_EVER,
    CAP_PER_MONTH, CAP_PER_RECEIPT, CAP_PER_WEEK, CAP_PER_YEAR, CAP_USES, CAP_VALUE, CLASS_NO_POINTS, CLASS_NO_POINTS_ASK,
    CLASS_WEIGHED, DIM_CHANNEL, DIM_DATE, DIM_MINUTE, DIM_PROMO_CODE, DIM_RECEIPT_NUMBER, DIM_SEGMENT, DIM_STORE, DIM_TENDER, DIM_TIER,
    DIM_VARIANT, DIM_WEEKDAY, DOWNGRADE_NEVER, DOWNGRADE_TO_LEVEL, ENTITLEMENTS_MAX, EXPERIMENTS_MAX, FORM_PERCENT, FORM_QUANTITY_STEP,
    FORM_STEP, GRACE_DAYS, IMAGE2_CATALOGUE, IMAGE2_REFUSE_UNKNOWN_STORES, IMAGE2_RULES_MAX, IMAGE2_STORES,
    IMAGE2_UNKNOWN_SKUS_EARN_NOTHING, ImageAtom, ImageBurn, ImageCampaign, ImageCap, ImageClass, ImageExperiment, ImageHeader2,
    ImageRule, ImageThreshold, ImageTier, LIFE2_DAYS, LIFE2_END_MONTH, LIFE2_END_QUARTER, LIFE2_MONTHS, LIFE2_UNTIL, MEASURE_SPENT,
    MayIndex, NO_RECORD, NUMBERED_RECEIPTS, OP_JUMP_IF_FALSE, OP_JUMP_IF_TRUE, OP_NOT, OP_TEST, PER_LINE, PER_RECEIPT, Program2,
    REACH_COUNT_MAX, ROW_NAMED_ONLY, RULE_ADD_PERCENT, RULE_DISCOUNT_LINE, RULE_EARNS_ON_POINTS_PAID, RULE_ENTITLE, RULE_EXCLUSIVE, RULE_KIND_COUNT,
    RULE_POINTS, RULE_TIMES, RULE_WORDS_MAX, SECTION2_BURN, SECTION2_CAPS, SECTION2_CHANNELS, SECTION2_DATE_CUTS, SECTION2_EXPERIMENTS,
    SECTION2_MINUTE_CUTS, SECTION2_TENDERS, SECTION2_TIERS, TableRow, WINDOW_LIFETIME, WINDOW_MONTH, WINDOW_ROLLING, WINDOW_YEAR,
    bit_count, bit_of, first_bit, image_load, mixed, name_find, name_hash, prefetch, table_find, table_find_slice, zone_span_at,
)
from ledger._layout cimport Award, Command, DAY_NEVER, Line, Slice
from ledger._limits cimport (
    AWARDS_MAX, LINES_MAX, POINTS_MAX, PROMO_CODES_PER_RECEIPT_MAX, QUANTITY_MILLI_MAX, TENDERS_PER_RECEIPT_MAX, WALLETS_MAX,
)
from ledger._rules cimport ZoneSpan
from ledger._table cimport reserve_memory, unreserve_memory

cdef extern from *:
    """
    typedef struct { uint64_t lo, hi; } LedgerWide;     /* an exact numerator, at least 0 */

    static inline uint32_t ledger_bucket(uint64_t hash) { return (uint32_t)(hash % 10000); }    /* of an experiment */
    static inline int ledger_below(int64_t a, int64_t b, int64_t c, int64_t d) {       /* a * b < c * d */
        return (__int128)a * b < (__int128)c * d;
    }
    static inline void ledger_wide_add(LedgerWide *sum, int64_t a, int64_t b, int64_t c) {     /* a, b, c >= 0 */
        unsigned __int128 more = (unsigned __int128)((uint64_t)a) * (uint64_t)b * (uint64_t)c;
        unsigned __int128 whole = ((unsigned __int128)sum->hi << 64 | sum->lo) + more;
        sum->lo = (uint64_t)whole; sum->hi = (uint64_t)(whole >> 64);
    }
    /* numerator / divisor as a whole number: 0 floor, 1 half up, 2 ceil. Returns 1 when it is above 2^62. */
    static inline int ledger_wide_round(const LedgerWide *n, int64_t divisor, int how, int64_t *out) {
        uint64_t d = (uint64_t)divisor, remainder;
        unsigned __int128 quotient;
        if (!n->hi) {
            quotient = n->lo / d;
            remainder = n->lo % d;
        } else {
            unsigned __int128 whole = (unsigned __int128)n->hi << 64 | n->lo;
            quotient = whole / d;
            remainder = (uint64_t)(whole % d);
        }
        if (how == 1 ? remainder >= d - remainder : how == 2 && remainder) quotient++;
        if (quotient >> 62) { *out = 0; return 1; }
        *out = (int64_t)quotient;
        return 0;
    }
    """
    ctypedef struct Wide "LedgerWide":
        uint64_t lo
        uint64_t hi
    uint32_t bucket_of "ledger_bucket"(uint64_t hash) noexcept nogil
    bint below "ledger_below"(int64_t a, int64_t b, int64_t c, int64_t d) noexcept nogil
    void wide_add "ledger_wide_add"(Wide* sum, int64_t a, int64_t b, int64_t c) noexcept nogil
    bint wide_round "ledger_wide_round"(const Wide* numerator, int64_t divisor, int how, int64_t* out) noexcept nogil

cdef enum:
    LINE_WORDS_MAX = 16             # 64-bit words of a bitset over the lines
    CUTS_PER_RULE_MAX = 17          # each cap, the campaign twice, a discount on nothing
    NOTICE_SLOTS = 4096
    NOTICES_MAX = 2040
    NO_LINE = 0xFFFF

cdef enum:                          # Result2.refused; 0: not
    REFUSED_TOO_MANY_LINES = 1
    REFUSED_ABSURD_AMOUNT = 2
    REFUSED_TOTAL_DIFFERS = 3
    REFUSED_UNKNOWN_STORE = 4
    REFUSED_BURN_NOT_POSSIBLE = 5
    REFUSED_BURN_STEP = 6
    REFUSED_BURN_TOO_HIGH = 7
    REFUSED_BURN_BELOW_MIN = 8
    REFUSED_POINTS_OVERFLOW = 9
    REFUSED_TOO_MANY_AWARDS = 10    # more than AWARDS_MAX rules gave points

cdef enum:                          # Notice.kind
    NOTICE_UNKNOWN_STORE = 1
    NOTICE_UNKNOWN_SKU = 2          # at: line
    NOTICE_UNKNOWN_CATEGORY = 3     # at: line
    NOTICE_UNKNOWN_PROMO_CODE = 4   # at: its place in the command
    NOTICE_UNKNOWN_TENDER = 5       # at: its place in the command
    NOTICE_UNKNOWN_CHANNEL = 6

cdef enum:                          # why a rule gave nothing, or less: NotGiven.reason, Cut.reason
    REASON_TOO_LITTLE = 1
    REASON_WOULD_NEVER_COUNT = 2
    REASON_CAP_TOO_LATE = 3
    REASON_LOST_TO = 4
    REASON_NOTHING_LEFT = 5
    REASON_CAMPAIGN_VALUE = 6       # points or amount
    REASON_CAMPAIGN_USES = 7
    REASON_CAP = 16                 # and 2 * ImageCap.per + ImageCap.measure

cdef enum:                          # BurnLimit2.why
    WHY_BALANCE = 1
    WHY_SHARE = 2
    WHY_ELIGIBLE = 4
    WHY_MONEY_AT_LEAST = 8
    WHY_MAX = 16
    WHY_MIN = 32
    WHY_NO_RULE = 64

cdef struct DayRow:             # 16 bytes: what a member did on one day; rolling windows of tiers
    int32_t day
    int32_t receipts
    int64_t spent

cdef struct Facts2:             # what the core knows of the member, before this receipt
    uint32_t member
    uint32_t receipt_number     # this one's, from 1
    int32_t opened_day          # days since 1970, as all days here
    int32_t last_day            # of the last receipt; -1: none
    int32_t birthday_from       # day since which the birthday counts
    uint16_t birthday           # month * 32 + day; 0: none
    uint8_t tier                # as kept; the evaluator takes down what has run out
    uint8_t reserved
    int32_t tier_until          # first day on which it is not held; DAY_NEVER
    uint32_t day_count
    const DayRow* days          # rising; only needed for images with rolling windows
    uint64_t segments[2]        # bit: place in SEGMENTS
    uint64_t chosen             # bit: place in FAVOURITES
    int64_t available[WALLETS_MAX]  # points that can be used, by wallet

cdef struct Limits2:            # what was taken already; asked once per cap of a rule that is open, and for windows of tiers
    # counter: ImageCap.counter, or of tiers' windows: window code * 2 + measure. Taken so far in the window, 0 where there is none; -1:
    # the window is too old to know.
    int64_t (*used)(void* core, uint32_t member, uint32_t counter, int32_t window) noexcept nogil
    # campaign: ImageCampaign.key. measure: CAP_VALUE or CAP_USES.
    int64_t (*campaign_used)(void* core, uint32_t campaign, uint8_t measure) noexcept nogil
    void* core

cdef struct Notice:
    uint8_t kind
    uint16_t at

cdef struct BurnLimit2:
    int64_t points
    uint16_t wallet
    uint8_t rule                # from 1; 0: none holds
    uint8_t why

cdef struct Cut:
    int64_t points              # or minor units
    uint8_t reason

cdef struct Given:              # what one rule gave, and why
    int64_t base                # minor units, thousandths, or points (multipliers)
    Wide exact                  # before rounding: exact / divisor
    int64_t divisor
    int64_t rounded
    int64_t given
    uint32_t first_share        # in Scratch.pool: shares of the lines whose bits are in the rule's row
    uint32_t first_cut          # in Result2.cuts
    uint16_t cut_count
    uint16_t rule               # index
    int32_t available_day       # of points
    int32_t expiry_day

cdef struct NotGiven:           # a rule whose conditions hold
    uint16_t rule
    uint16_t taker              # REASON_LOST_TO: the rule that took its first line
    uint8_t reason

cdef struct Missing2:           # to the next level, by one threshold
    int64_t missing
    uint32_t threshold          # in THRESHOLDS

cdef struct CounterChange:
    uint32_t counter
    int32_t window
    int64_t increment
    uint32_t cap                # in CAPS

cdef struct CampaignChange:
    int64_t points              # or minor units; 0 where only uses are counted
    uint16_t campaign           # from 1

cdef struct Result2:            # what a receipt comes to. refused: only day, tier, notices and burn limits are filled
    uint8_t refused
    uint8_t tier                # before, what has run out taken down
    uint8_t tier_after
    uint8_t variant_count
    int32_t day
    int32_t tier_until          # after
    uint32_t line_count         # from 1: without lines the receipt is one of its own
    uint32_t notice_count
    uint32_t burn_limit_count
    uint32_t given_count
    uint32_t cut_count
    uint32_t not_given_count
    uint32_t missing_count
    uint32_t counter_count
    uint32_t campaign_count
    uint32_t entitlement_count
    uint32_t award_count
    int64_t spent               # what tiers count
    int64_t points[WALLETS_MAX]
    uint8_t variants[EXPERIMENTS_MAX]           # of each experiment, its place among the experiment's
    uint8_t entitlements[ENTITLEMENTS_MAX]
    BurnLimit2 burn_limits[WALLETS_MAX]
    Missing2 missing[REACH_COUNT_MAX]
    Notice notices[NOTICES_MAX]
    int64_t discounts[LINES_MAX]
    int64_t paid[LINES_MAX]     # with points, in money
    Award awards[AWARDS_MAX]    # rules in the file's order
    Given given[IMAGE2_RULES_MAX]               # in the order of the steps
    NotGiven not_given[IMAGE2_RULES_MAX]        # by rule
    CampaignChange campaigns[IMAGE2_RULES_MAX]
    CounterChange counters[IMAGE2_RULES_MAX * CAPS_PER_RULE_MAX]
    Cut cuts[IMAGE2_RULES_MAX * CUTS_PER_RULE_MAX]

cdef struct ZoneHint:           # the last span of a zone that was asked for: most receipts are of one summer or winter
    uint64_t image              # first bytes of the image's hash; the image itself may have gone since
    int64_t from_us
    int64_t until_us
    uint32_t zone
    int32_t offset_s
    int32_t first_day

cdef struct Scratch:            # one for each thread that evaluates; scratch_open
    const Program2* p
    const Command* command
    const Facts2* facts
    const Limits2* limits
    Result2* out
    # the receipt
    int32_t today
    int32_t local_day           # of the store's wall clock
    int64_t local_minutes       # since 1970
    uint32_t minute             # of the day
    uint32_t weekday
    uint32_t store              # store class
    uint32_t channel
    uint64_t tenders            # bit: place in TENDERS, of those with more than 0
    uint32_t code_count
    uint32_t codes[PROMO_CODES_PER_RECEIPT_MAX]
    uint8_t tier
    bint nameless
    int32_t birthday_years[3]
    int32_t birthday_days[3]    # days from these birthdays to the store's date
    int64_t total
    int64_t eligible_total
    int64_t own_total           # of the lines of the rule whose late program runs
    int64_t own_quantity
    int32_t windows[CAP_PER_BIRTHDAY + 1]
    ZoneHint home_hint
    ZoneHint store_hint
    bint overflow
    bint priced                 # discounts are off: `net` is what points may pay a part of
    bint limits_listed          # list_burn_limits has run
    # its lines
    uint32_t lines
    uint32_t stride             # words of a bitset over them
    uint64_t positive[LINE_WORDS_MAX]
    uint64_t eligible[LINE_WORDS_MAX]
    uint64_t earning[LINE_WORDS_MAX]
    uint64_t unknown[LINE_WORDS_MAX]
    uint64_t taken[LINE_WORDS_MAX]
    uint64_t both[LINE_WORDS_MAX]
    uint64_t hashes[LINES_MAX]
    uint32_t classes[LINES_MAX]
    int64_t amounts[LINES_MAX]
    int64_t quantities[LINES_MAX]       # thousandths; what is not stated counts as one piece
    int64_t net[LINES_MAX]
    int64_t money[LINES_MAX]
    int64_t capacity[LINES_MAX]
    # the rule at hand: its lines, in order, and what belongs to each
    uint64_t listed[LINE_WORDS_MAX]     # the bits that `list` was made from
    uint32_t list_count
    uint16_t list[LINES_MAX]
    int64_t weights[LINES_MAX]
    int64_t shares[LINES_MAX]
    int64_t remainders[LINES_MAX]
    int64_t order[LINES_MAX]
    int64_t by_line[LINES_MAX]
    int64_t base[LINES_MAX]
    uint32_t notice_mask                # of the slots in use: four for each line
    uint16_t notice_slots[NOTICE_SLOTS]
    # rules
    uint64_t open[RULE_WORDS_MAX]       # may still hold
    uint64_t seen[RULE_WORDS_MAX]       # their when_program was asked and their row is clean
    uint64_t applies[RULE_WORDS_MAX]    # hold, have lines, and are not used up
    uint64_t gave[RULE_WORDS_MAX]       # points
    uint64_t refused[RULE_WORDS_MAX]    # hold, and gave nothing
    uint64_t set_of_values[RULE_WORDS_MAX]
    uint64_t campaign_known[16]
    int64_t campaign_points[CAMPAIGNS_MAX + 1]          # what is left
    int64_t campaign_uses[CAMPAIGNS_MAX + 1]
    uint16_t sorted_rules[IMAGE2_RULES_MAX]
    uint16_t first_line[IMAGE2_RULES_MAX]
    uint16_t first_taker[IMAGE2_RULES_MAX]              # NO_LINE: nobody
    uint16_t given_at[IMAGE2_RULES_MAX]                 # in Result2.given
    NotGiven reasons[IMAGE2_RULES_MAX]
    uint32_t ppm_at[IMAGE2_RULES_MAX]                   # in `pool`: percents of each line, with what was added; 0: none yet
    Wide target_exact[IMAGE2_RULES_MAX]
    int64_t target_whole[IMAGE2_RULES_MAX]
    int64_t cap_left[IMAGE2_RULES_MAX * CAPS_PER_RULE_MAX]
    int32_t cap_window[IMAGE2_RULES_MAX * CAPS_PER_RULE_MAX]
    uint64_t rows[IMAGE2_RULES_MAX * LINE_WORDS_MAX]    # the lines of each rule; stride words a rule
    uint64_t pool_used
    int64_t pool[2 * IMAGE2_RULES_MAX * LINES_MAX + 1]  # shares of rules that gave, percents of targets; place 0 is never used


cdef inline Scratch* scratch_open() noexcept nogil:
    # Memory that costs nothing until touched: a usual receipt touches a few dozen kilobytes of it. NULL: none to be had.
    return <Scratch*>reserve_memory(sizeof(Scratch))


cdef inline void scratch_close(Scratch* s) noexcept nogil:
    unreserve_memory(s, sizeof(Scratch))


cdef inline Result2* result_open() noexcept nogil:
    return <Result2*>reserve_memory(sizeof(Result2))


cdef inline void result_close(Result2* out) noexcept nogil:
    unreserve_memory(out, sizeof(Result2))


# --- time ---------------------------------------------------------------------------------------------------------------

cdef inline int32_t birthday_in(int32_t year, int32_t month, int32_t day) noexcept nogil:
    # 29 February is 28 February in years without it.
    return day_from_civil(year, month, day if day <= month_days(year, month) else month_days(year, month))


cdef inline int32_t period_start(int32_t day, int32_t months) noexcept nogil:
    # The first day of the month (1), quarter (3) or year (12) that a day lies in.
    cdef int32_t year, month, at
    civil_from_day(day, &year, &month, &at)
    return day_from_civil(year, <int32_t>div_floor(month - 1, months) * months + 1, 1)


cdef inline int32_t expiry_of(const ImageRule* rule, int32_t today) noexcept nogil:
    # The first day on which points of a receipt of today no longer count; DAY_NEVER: never, or by inactivity.
    cdef int32_t end, months, start
    if rule.life_unit == LIFE2_UNTIL:
        return rule.until_day
    if rule.life_unit == LIFE2_DAYS:
        end = today + rule.life_number
    elif rule.life_unit == LIFE2_MONTHS:
        end = day_add_months(today, rule.life_number)
    else:
        return DAY_NEVER
    if rule.life_end != 0:
        months = 1 if rule.life_end == LIFE2_END_MONTH else 3 if rule.life_end == LIFE2_END_QUARTER else 12
        start = period_start(end, months)
        if start != end:
            end = day_add_months(start, months)
    return end


cdef inline int32_t birthday_year(const Scratch* s, const ImageAtom* atom) noexcept nogil:
    # The year of the birthday whose window the store's date lies in; -1: none.
    cdef uint32_t i
    if s.facts.birthday == 0 or s.today < s.facts.birthday_from:
        return -1
    for i in range(3u):
        if -atom.low <= s.birthday_days[i] <= atom.high:
            return s.birthday_years[i]
    return -1


# --- conditions ---------------------------------------------------------------------------------------------------------

cdef inline bint in_range(int64_t value, int64_t low, int64_t high) noexcept nogil:
    # Open bounds are the ends of int64, which nothing here reaches.
    return low <= value < high


cdef inline bint is_multiple(int64_t value, int64_t of) noexcept nogil:
    return div_floor(value, of) * of == value


cdef inline bint list_has(const Program2* p, const ImageAtom* atom, uint32_t value) noexcept nogil:
    cdef const uint32_t* numbers = p.numbers + atom.list_offset
    cdef uint32_t low = 0, high = atom.list_count, middle
    while low < high:
        middle = (low + high) >> 1
        if numbers[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low < atom.list_count and numbers[low] == value


cdef inline bint receipt_atom_holds(const Scratch* s, const ImageAtom* atom) noexcept nogil:
    cdef uint32_t i
    cdef uint8_t code = atom.code
    if code == ATOM_TOTAL:
        return in_range(s.total, atom.low, atom.high)
    elif code == ATOM_BIRTHDAY:
        return birthday_year(s, atom) >= 0
    elif code == ATOM_TIER:
        return <uint64_t>atom.low >> s.tier & 1
    elif code == ATOM_SEGMENT:
        return (s.facts.segments[0] & <uint64_t>atom.low) != 0 or (s.facts.segments[1] & <uint64_t>atom.high) != 0
    elif code == ATOM_STORE:
        return list_has(s.p, atom, s.store)
    elif code == ATOM_CHANNEL:
        return <uint64_t>atom.low >> s.channel & 1
    elif code == ATOM_TENDER:
        return (s.tenders & <uint64_t>atom.low) != 0
    elif code == ATOM_WEEKDAY:
        return <uint64_t>atom.low >> s.weekday & 1
    elif code == ATOM_HOURS:
        if atom.low < atom.high:
            return atom.low <= s.minute < atom.high
        return s.minute >= atom.low or s.minute < atom.high
    elif code == ATOM_DATES:
        i = 0
        while i < atom.list_count and s.p.numbers[atom.list_offset + i] <= s.local_minutes:
            i += 1
        return i & 1
    elif code == ATOM_PROMO_CODE:
        for i in range(s.code_count):
            if list_has(s.p, atom, s.codes[i]):
                return True
        return False
    elif code == ATOM_VARIANT:
        return <uint64_t>atom.high >> s.out.variants[atom.low] & 1
    elif code == ATOM_ACCOUNT_AGE_DAYS:
        return in_range(max_i64(0, s.today - <int64_t>s.facts.opened_day), atom.low, atom.high)
    elif code == ATOM_DAYS_SINCE_LAST_RECEIPT:
        return s.facts.last_day >= 0 and in_range(max_i64(0, s.today - <int64_t>s.facts.last_day), atom.low, atom.high)
    elif code == ATOM_ELIGIBLE_TOTAL:
        return in_range(s.eligible_total, atom.low, atom.high)
    elif code == ATOM_LINES_TOTAL:
        return in_range(s.own_total, atom.low, atom.high)
    elif code == ATOM_LINES_QUANTITY:
        return in_range(s.own_quantity, atom.low, atom.high)
    elif code == ATOM_NTH:
        return list_has(s.p, atom, s.facts.receipt_number)
    return is_multiple(s.facts.receipt_number, atom.low)    # ATOM_EVERY_NTH


cdef inline bint line_atom_holds(const Scratch* s, const ImageAtom* atom, uint32_t i) noexcept nogil:
    # False for the nameless line, also where the absence is wanted; bits of classes are right as they are.
    cdef const ImageClass* cls = &s.p.classes[s.classes[i]]
    cdef const Line* line
    cdef uint8_t code = atom.code
    if code == ATOM_CLASS_BIT:
        return s.p.class_bits[s.classes[i] * <uint64_t>s.p.header.class_words + <uint32_t>(atom.low >> 6)] >> (atom.low & 63) & 1
    if s.nameless:
        return False
    line = &s.command.lines[i]
    if code == ATOM_PRICE:
        if atom.low != INT64_MIN and below(line.amount_minor, 1000, atom.low, s.quantities[i]):
            return False
        return atom.high == INT64_MAX or below(line.amount_minor, 1000, atom.high, s.quantities[i])
    elif code == ATOM_QUANTITY:
        return in_range(s.quantities[i], atom.low, atom.high)
    elif code == ATOM_WEIGHED:
        return (line.weighed != 0 or (cls.flags & CLASS_WEIGHED) != 0) == (atom.low != 0)
    elif code == ATOM_DISCOUNTED:
        return (line.regular_minor > line.amount_minor) == (atom.low != 0)
    return ((cls.favourites & s.facts.chosen) != 0) == (atom.low != 0)      # ATOM_FAVOURITE


cdef inline bint program_holds(const Scratch* s, uint32_t at, uint32_t line) noexcept nogil:
    # What a program says of the receipt, or of one of its lines. Every way through it ends: image_load has seen to it.
    cdef const ImageAtom* atom
    cdef uint32_t word, op
    cdef bint flag = True
    while True:
        word = s.p.programs[at]
        op = word & 255
        at += 1
        if op == OP_TEST:
            atom = &s.p.atoms[word >> 8]
            flag = line_atom_holds(s, atom, line) if atom.code >= 32 else receipt_atom_holds(s, atom)
        elif op == OP_JUMP_IF_TRUE:
            if flag:
                at += word >> 8
        elif op == OP_JUMP_IF_FALSE:
            if not flag:
                at += word >> 8
        elif op == OP_NOT:
            flag = not flag
        else:
            return flag


# --- reading the receipt ------------------------------------------------------------------------------------------------

cdef inline void note(Scratch* s, uint8_t kind, uint32_t at) noexcept nogil:
    if s.out.notice_count < NOTICES_MAX:
        s.out.notices[s.out.notice_count].kind = kind
        s.out.notices[s.out.notice_count].at = <uint16_t>at
        s.out.notice_count += 1


cdef inline bint same_text(const Slice* a, const Slice* b) noexcept nogil:
    return a.size == b.size and memcmp(a.data, b.data, a.size) == 0


cdef inline void note_line(Scratch* s, uint8_t kind, uint32_t at, const Slice* text, uint64_t hash) noexcept nogil:
    # Notes an unknown name of a line unless an earlier line had it.
    cdef const Notice* other
    cdef const Line* line
    cdef uint32_t slot = <uint32_t>((hash ^ kind * <uint64_t>0x9E3779B97F4A7C15) >> 32) & s.notice_mask
    while s.notice_slots[slot] != 0:
        other = &s.out.notices[s.notice_slots[slot] - 1]
        line = &s.command.lines[other.at]
        if other.kind == kind and same_text(&line.sku if kind == NOTICE_UNKNOWN_SKU else &line.category, text):
            return
        slot = (slot + 1) & s.notice_mask
    note(s, kind, at)
    s.notice_slots[slot] = <uint16_t>s.out.notice_count


cdef inline uint8_t reason_to_refuse(Scratch* s) noexcept nogil:
    # Why a receipt cannot be right; 0: it can.
    cdef const Command* command = s.command
    cdef const ImageHeader2* header = s.p.header
    cdef int64_t sum = 0, difference
    cdef uint32_t i
    if command.line_count > LINES_MAX:
        return REFUSED_TOO_MANY_LINES
    if command.total_minor < 0 or command.total_minor > header.largest_receipt:
        return REFUSED_ABSURD_AMOUNT
    for i in range(command.line_count):
        if command.lines[i].amount_minor < 0 or command.lines[i].amount_minor > header.largest_receipt:
            return REFUSED_ABSURD_AMOUNT
        if command.lines[i].quantity_milli < 0 or command.lines[i].quantity_milli > QUANTITY_MILLI_MAX:
            return REFUSED_ABSURD_AMOUNT
        sum += command.lines[i].amount_minor
    difference = sum - command.total_minor
    if command.line_count > 0 and (difference > header.total_tolerance or -difference > header.total_tolerance):
        return REFUSED_TOTAL_DIFFERS
    return 0


cdef inline void find_span(const Program2* p, uint32_t zone, int64_t time_us, ZoneHint* hint) noexcept nogil:
    # Makes the hint the span of the zone at a moment.
    cdef const ZoneSpan* span
    cdef uint64_t image
    memcpy(&image, p.header.hash, 8)
    if hint.image == image and hint.zone == zone and hint.from_us <= time_us < hint.until_us:
        return
    span = zone_span_at(p, zone, time_us)
    hint.image = image
    hint.zone = zone
    hint.from_us = span.start_us if span != p.zone_spans + p.zones[zone].first else INT64_MIN
    hint.until_us = INT64_MAX
    if span + 1 < p.zone_spans + p.zones[zone].first + p.zones[zone].count:
        hint.until_us = (span + 1).start_us
    hint.offset_s = span.offset_s
    hint.first_day = span.first_day


cdef inline void read_place(Scratch* s, int64_t business_us) noexcept nogil:
    # Store, day and wall clock.
    cdef const Program2* p = s.p
    cdef const TableRow* row = table_find_slice(&p.stores, &s.command.store)
    cdef const ZoneHint* home = &s.home_hint
    cdef const ZoneHint* span = home
    cdef int32_t year, month, day, i
    find_span(p, p.home_zone, business_us, &s.home_hint)
    s.store = row.value if row != NULL else 0
    if row == NULL and p.header.flags & IMAGE2_STORES:
        note(s, NOTICE_UNKNOWN_STORE, 0)
    if row != NULL and p.store_classes[s.store].zone != p.home_zone:
        span = &s.store_hint
        find_span(p, p.store_classes[s.store].zone, business_us, &s.store_hint)
    s.today = <int32_t>max_i64(div_floor(business_us + home.offset_s * <int64_t>1000000, <int64_t>86400000000), home.first_day)
    s.local_minutes = div_floor(business_us + span.offset_s * <int64_t>1000000, 60000000)
    s.local_day = <int32_t>div_floor(s.local_minutes, 1440)
    s.minute = <uint32_t>(s.local_minutes - s.local_day * <int64_t>1440)
    s.weekday = <uint32_t>(s.local_day + 3 - 7 * div_floor(s.local_day + 3, 7))     # 1970-01-01 was a Thursday
    if s.facts.birthday != 0:
        civil_from_day(s.local_day, &year, &month, &day)
        for i in range(3):
            s.birthday_years[i] = year - 1 + i
            s.birthday_days[i] = s.local_day - birthday_in(year - 1 + i, s.facts.birthday >> 5, s.facts.birthday & 31)


cdef inline void read_lines(Scratch* s) noexcept nogil:
    # Article classes, amounts, quantities; what takes part in points. All hashes first, so that the reads of the table wait for memory
    # together.
    cdef const Program2* p = s.p
    cdef const Line* line
    cdef const TableRow* row
    cdef const TableRow* code
    cdef const ImageClass* cls
    cdef uint32_t i, column, unknown_row
    cdef bint catalogue = p.header.flags & IMAGE2_CATALOGUE, noted = False
    cdef bint unknown_earn_nothing = p.header.flags & IMAGE2_UNKNOWN_SKUS_EARN_NOTHING
    cdef uint64_t bit, hash
    s.lines = s.command.line_count if s.command.line_count > 0 else 1
    s.stride = (s.lines + 63) >> 6
    s.nameless = s.command.line_count == 0
    for i in range(s.stride):
        s.positive[i] = s.eligible[i] = s.earning[i] = s.unknown[i] = 0
    if s.nameless:
        s.classes[0] = 0
        s.amounts[0] = s.total
        s.quantities[0] = 0
    elif p.articles.count > 0:
        for i in range(s.lines):
            line = &s.command.lines[i]
            s.hashes[i] = name_hash(line.sku.data, line.sku.size)
            prefetch(&p.articles.starts[s.hashes[i] >> (64 - p.articles.bits) if p.articles.bits > 0 else 0])
        for i in range(s.lines):
            prefetch(&p.articles.rows[p.articles.starts[s.hashes[i] >> (64 - p.articles.bits) if p.articles.bits > 0 else 0]])
    if not s.nameless:
        for i in range(s.lines):
            line = &s.command.lines[i]
            s.amounts[i] = line.amount_minor
            s.quantities[i] = line.quantity_milli if line.quantity_milli > 0 else 1000
            row = table_find(&p.articles, line.sku.data, line.sku.size, s.hashes[i])
            if row != NULL and not row.flags & ROW_NAMED_ONLY:
                s.classes[i] = row.value
                continue
            s.unknown[i >> 6] |= bit_of(i)
            unknown_row = row.value if row != NULL else 0
            code = NULL
            hash = 0
            if line.category.size > 0 and p.category_codes.count > 0:
                hash = name_hash(line.category.data, line.category.size)
                code = table_find(&p.category_codes, line.category.data, line.category.size, hash)
            column = code.value if code != NULL else 0
            s.classes[i] = p.unknown_classes[unknown_row * <uint64_t>p.header.unknown_columns + column]
            if not noted:
                s.notice_mask = 7
                while s.notice_mask < 4 * s.lines - 1:
                    s.notice_mask = 2 * s.notice_mask + 1
                memset(s.notice_slots, 0, (s.notice_mask + 1) * sizeof(uint16_t))
                noted = True
            if catalogue:
                if p.articles.count == 0:
                    s.hashes[i] = name_hash(line.sku.data, line.sku.size)
                note_line(s, NOTICE_UNKNOWN_SKU, i, &line.sku, s.hashes[i])
            if line.category.size > 0 and p.category_codes.count > 0 and code == NULL:
                note_line(s, NOTICE_UNKNOWN_CATEGORY, i, &line.category, hash)
    s.eligible_total = 0
    for i in range(s.lines):
        cls = &p.classes[s.classes[i]]
        bit = bit_of(i)
        if s.amounts[i] > 0:
            s.positive[i >> 6] |= bit
        if cls.flags & CLASS_NO_POINTS or (cls.flags & CLASS_NO_POINTS_ASK and p.header.no_points_program > 0
                                           and program_holds(s, p.header.no_points_program, i)):
            continue
        s.eligible[i >> 6] |= bit
        s.eligible_total += s.amounts[i]
        if s.amounts[i] > 0 and not (unknown_earn_nothing and catalogue and s.unknown[i >> 6] & bit):
            s.earning[i >> 6] |= bit


cdef inline void read_names(Scratch* s) noexcept nogil:
    # Promo codes, tenders, channel; what is unknown is noted, each once.
    cdef const Program2* p = s.p
    cdef const Command* command = s.command
    cdef const TableRow* row
    cdef uint32_t i, j
    cdef int32_t at
    s.code_count = 0
    for i in range(command.promo_code_count):
        row = table_find_slice(&p.promo_codes, &command.promo_codes[i])
        if row != NULL:
            s.codes[s.code_count] = row.value
            s.code_count += 1
            continue
        j = 0
        while j < i and not same_text(&command.promo_codes[j], &command.promo_codes[i]):
            j += 1
        if j == i:
            note(s, NOTICE_UNKNOWN_PROMO_CODE, i)
    s.tenders = 0
    for i in range(command.tender_count):
        at = name_find(p.tenders, p.counts[SECTION2_TENDERS], &command.tenders[i].name)
        if at >= 0:
            if command.tenders[i].amount_minor > 0:
                s.tenders |= bit_of(<uint32_t>at)
            continue
        j = 0
        while j < i and not same_text(&command.tenders[j].name, &command.tenders[i].name):
            j += 1
        if j == i:
            note(s, NOTICE_UNKNOWN_TENDER, i)
    s.channel = 0
    if command.channel.size > 0:
        at = name_find(p.channels, p.counts[SECTION2_CHANNELS], &command.channel)
        if at >= 0:
            s.channel = <uint32_t>at + 1
        else:
            note(s, NOTICE_UNKNOWN_CHANNEL, 0)


cdef inline void read_variants(Scratch* s) noexcept nogil:
    cdef const Program2* p = s.p
    cdef const ImageExperiment* experiment
    cdef uint32_t i, j, bucket
    s.out.variant_count = <uint8_t>p.counts[SECTION2_EXPERIMENTS]
    for i in range(p.counts[SECTION2_EXPERIMENTS]):
        experiment = &p.experiments[i]
        bucket = bucket_of(mixed(s.facts.member ^ experiment.hash))
        j = 0
        while bucket >= p.variants[experiment.first + j].edge:
            j += 1
        s.out.variants[i] = <uint8_t>j


# --- stage 1: may-sets --------------------------------------------------------------------------------------------------

cdef inline void may_and(Scratch* s, const uint64_t* record) noexcept nogil:
    cdef uint32_t w
    for w in range(s.p.words):
        s.open[w] &= record[w]


cdef inline void may_or(Scratch* s, const uint64_t* record) noexcept nogil:
    cdef uint32_t w
    for w in range(s.p.words):
        s.set_of_values[w] |= record[w]


cdef inline void may_one(Scratch* s, uint32_t dimension, uint32_t value) noexcept nogil:
    if s.p.may_index[dimension].count > 0:
        may_and(s, s.p.may + (s.p.may_index[dimension].first + value) * <uint64_t>s.p.words)


cdef inline uint32_t minute_interval(const Program2* p, uint32_t minute) noexcept nogil:
    cdef uint32_t low = 0, high = p.counts[SECTION2_MINUTE_CUTS], middle
    while low < high:
        middle = (low + high) >> 1
        if p.minute_cuts[middle] <= minute:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline uint32_t date_interval(const Program2* p, int64_t minutes) noexcept nogil:
    cdef uint32_t low = 0, high = p.counts[SECTION2_DATE_CUTS], middle
    while low < high:
        middle = (low + high) >> 1
        if p.date_cuts[middle] <= minutes:
            low = middle + 1
        else:
            high = middle
    return low


cdef inline void open_rules(Scratch* s) noexcept nogil:
    # The rules that may hold with this receipt's store, tier, time, ...
    cdef const Program2* p = s.p
    cdef const MayIndex* index = p.may_index
    cdef const uint64_t* records
    cdef uint64_t word
    cdef uint32_t i, w, words = p.words
    for w in range(words):
        s.open[w] = ~<uint64_t>0
        s.seen[w] = s.applies[w] = s.gave[w] = s.refused[w] = 0
    if p.rule_count & 63:
        s.open[words - 1] = bit_of(p.rule_count) - 1
    elif p.rule_count == 0:
        s.open[0] = 0
    may_one(s, DIM_STORE, s.store)
    may_one(s, DIM_TIER, s.tier)
    may_one(s, DIM_CHANNEL, s.channel)
    may_one(s, DIM_WEEKDAY, s.weekday)
    if index[DIM_MINUTE].count > 0:
        may_one(s, DIM_MINUTE, minute_interval(p, s.minute))
    if index[DIM_DATE].count > 0:
        may_one(s, DIM_DATE, date_interval(p, s.local_minutes))
    may_one(s, DIM_RECEIPT_NUMBER, s.facts.receipt_number if s.facts.receipt_number <= NUMBERED_RECEIPTS else 0)
    if index[DIM_VARIANT].count > 0:
        for i in range(p.counts[SECTION2_EXPERIMENTS]):
            may_one(s, DIM_VARIANT, p.experiments[i].first + s.out.variants[i])
    if index[DIM_SEGMENT].free != NO_RECORD:
        memcpy(s.set_of_values, p.may + index[DIM_SEGMENT].free * <uint64_t>words, words * sizeof(uint64_t))
        records = p.may + index[DIM_SEGMENT].first * <uint64_t>words
        for i in range(2u):
            word = s.facts.segments[i]
            while word != 0:
                w = i * 64 + first_bit(word)
                word &= word - 1
                if w < index[DIM_SEGMENT].count:
                    may_or(s, records + w * <uint64_t>words)
        may_and(s, s.set_of_values)
    if index[DIM_TENDER].free != NO_RECORD:
        memcpy(s.set_of_values, p.may + index[DIM_TENDER].free * <uint64_t>words, words * sizeof(uint64_t))
        records = p.may + index[DIM_TENDER].first * <uint64_t>words
        word = s.tenders
        while word != 0:
            may_or(s, records + first_bit(word) * <uint64_t>words)
            word &= word - 1
        may_and(s, s.set_of_values)
    if index[DIM_PROMO_CODE].free != NO_RECORD:
        memcpy(s.set_of_values, p.may + index[DIM_PROMO_CODE].free * <uint64_t>words, words * sizeof(uint64_t))
        records = p.may + index[DIM_PROMO_CODE].first * <uint64_t>words
        for i in range(s.code_count):
            may_or(s, records + s.codes[i] * <uint64_t>words)
        may_and(s, s.set_of_values)


# --- stage 2 and 3: lines, programs, limits -------------------------------------------------------------------------------

cdef inline bint about_points(const ImageRule* rule) noexcept nogil:
    return RULE_POINTS <= rule.kind <= RULE_TIMES


cdef inline uint64_t* row_of(Scratch* s, uint32_t r) noexcept nogil:
    return &s.rows[r * <uint64_t>s.stride]


cdef inline void give_up(Scratch* s, uint32_t r, uint8_t reason, uint32_t taker) noexcept nogil:
    # A rule whose conditions hold gives nothing.
    s.refused[r >> 6] |= bit_of(r)
    s.reasons[r].rule = <uint16_t>r
    s.reasons[r].taker = <uint16_t>taker
    s.reasons[r].reason = reason


cdef inline void match_lines(Scratch* s) noexcept nogil:
    # The lines of every rule that is open: its row of bits, and its bit in `applies`.
    cdef const Program2* p = s.p
    cdef const ImageRule* rule
    cdef const ImageClass* cls
    cdef const uint16_t* named
    cdef uint64_t* row
    cdef uint64_t word, bit, line_bit, any_positive = 0, any_earning = 0
    cdef uint32_t i, j, w, r
    for i in range(s.lines):
        line_bit = bit_of(i)
        if not s.positive[i >> 6] & line_bit:
            continue
        cls = &p.classes[s.classes[i]]
        named = p.class_rules + cls.first
        for j in range(cls.count):
            r = named[j]
            bit = bit_of(r)
            if not s.open[r >> 6] & bit:
                continue
            rule = &p.rules[r]
            if about_points(rule) and not s.earning[i >> 6] & line_bit:
                continue
            row = row_of(s, r)
            if not s.seen[r >> 6] & bit:
                if rule.when_program > 0 and not program_holds(s, rule.when_program, 0):
                    s.open[r >> 6] &= ~bit
                    continue
                s.seen[r >> 6] |= bit
                for w in range(s.stride):
                    row[w] = 0
            if rule.lines_program > 0 and not program_holds(s, rule.lines_program, i):
                continue
            row[i >> 6] |= line_bit
            s.applies[r >> 6] |= bit
    for w in range(s.stride):
        any_positive |= s.positive[w]
        any_earning |= s.earning[w]
    if any_positive == 0:
        return
    for w in range(p.words):
        word = s.open[w] & p.all_lines[w]
        while word != 0:
            r = w * 64 + first_bit(word)
            word &= word - 1
            rule = &p.rules[r]
            if about_points(rule) and any_earning == 0:
                continue
            if rule.when_program > 0 and not program_holds(s, rule.when_program, 0):
                continue
            memcpy(row_of(s, r), &s.earning[0] if about_points(rule) else &s.positive[0], s.stride * sizeof(uint64_t))
            s.applies[w] |= bit_of(r)


cdef inline bint late_holds(Scratch* s, uint32_t r, const ImageRule* rule) noexcept nogil:
    # Conditions on the sums of the rule's own lines.
    cdef uint64_t* row = row_of(s, r)
    cdef uint64_t word
    cdef uint32_t w, i
    if (rule.late_program == 0 and rule.lines_total_from == INT64_MIN and rule.lines_total_to == INT64_MAX
            and rule.lines_quantity_from == INT64_MIN and rule.lines_quantity_to == INT64_MAX):
        return True
    s.own_total = s.own_quantity = 0
    for w in range(s.stride):
        word = row[w]
        while word != 0:
            i = w * 64 + first_bit(word)
            word &= word - 1
            s.own_total += s.amounts[i]
            s.own_quantity += s.quantities[i]
    return (in_range(s.own_total, rule.lines_total_from, rule.lines_total_to)
            and in_range(s.own_quantity, rule.lines_quantity_from, rule.lines_quantity_to)
            and (rule.late_program == 0 or program_holds(s, rule.late_program, 0)))


cdef inline uint8_t campaign_used_up(Scratch* s, const ImageRule* rule) noexcept nogil:
    # Which budget leaves nothing; 0: none. Asks the core once for each campaign.
    cdef const ImageCampaign* campaign
    cdef uint32_t at = rule.campaign
    if at == 0:
        return 0
    if not s.campaign_known[at >> 6] & bit_of(at):
        s.campaign_known[at >> 6] |= bit_of(at)
        campaign = &s.p.campaigns[at - 1]
        s.campaign_points[at] = INT64_MAX
        s.campaign_uses[at] = INT64_MAX
        if campaign.points != INT64_MAX:
            s.campaign_points[at] = max_i64(0, campaign.points - s.limits.campaign_used(s.limits.core, campaign.key, CAP_VALUE))
        if campaign.uses != INT64_MAX:
            s.campaign_uses[at] = max_i64(0, campaign.uses - s.limits.campaign_used(s.limits.core, campaign.key, CAP_USES))
    if s.campaign_points[at] == 0:
        return REASON_CAMPAIGN_VALUE
    return REASON_CAMPAIGN_USES if s.campaign_uses[at] == 0 else 0


cdef inline uint8_t used_up(Scratch* s, const ImageRule* rule) noexcept nogil:
    # Which cap or campaign leaves nothing before the receipt; 0: none. Notes what they leave.
    cdef const ImageCap* cap
    cdef int64_t used
    cdef int32_t window
    cdef uint32_t i, j
    for i in range(rule.first_cap, rule.first_cap + rule.cap_count):
        cap = &s.p.caps[i]
        if cap.per == CAP_PER_RECEIPT:
            s.cap_left[i] = cap.limit
            continue
        window = s.windows[cap.per]
        if cap.per == CAP_PER_BIRTHDAY:
            for j in range(cap.list_count):
                window = birthday_year(s, &s.p.atoms[s.p.numbers[cap.list_offset + j]])
                if window >= 0:
                    break
        used = s.limits.used(s.limits.core, s.facts.member, cap.counter, window)
        if used < 0:
            return REASON_CAP_TOO_LATE
        s.cap_left[i] = max_i64(0, cap.limit - used)
        s.cap_window[i] = window
        if s.cap_left[i] == 0:
            return <uint8_t>(REASON_CAP + 2 * cap.per + cap.measure)
    return campaign_used_up(s, rule)


cdef inline void apply_limits(Scratch* s) noexcept nogil:
    # Of the rules with lines, those whose late conditions hold and which are not used up.
    cdef const ImageRule* rule
    cdef uint64_t word, bit
    cdef uint32_t w, r
    cdef uint8_t reason
    for w in range(s.p.words):
        word = s.applies[w]
        while word != 0:
            r = w * 64 + first_bit(word)
            bit = word & (~word + 1)
            word ^= bit
            rule = &s.p.rules[r]
            if not late_holds(s, r, rule):
                s.applies[w] ^= bit
            elif rule.cap_count > 0 or rule.campaign > 0:
                reason = used_up(s, rule)
                if reason != 0:
                    s.applies[w] ^= bit
                    give_up(s, r, reason, 0)


# --- stacking -----------------------------------------------------------------------------------------------------------

cdef inline bint goes_before(const Program2* p, bint by_group, uint32_t a, uint32_t b) noexcept nogil:
    # Groups apart, the highest priority first.
    if by_group and p.rules[a].group != p.rules[b].group:
        return p.rules[a].group < p.rules[b].group
    if p.rules[a].priority != p.rules[b].priority:
        return p.rules[a].priority > p.rules[b].priority
    return a < b


cdef inline uint32_t sort_rules(Scratch* s, const uint64_t* which, bint by_group) noexcept nogil:
    # The rules of a kind that apply and are exclusive (or in a group), as goes_before orders them. Few: inserted one by one.
    cdef uint64_t word
    cdef uint32_t w, r, at, count = 0
    for w in range(s.p.words):
        word = which[w] & s.applies[w] & s.p.stacking[w]
        while word != 0:
            r = w * 64 + first_bit(word)
            word &= word - 1
            if (s.p.rules[r].group == 0) if by_group else not s.p.rules[r].flags & RULE_EXCLUSIVE:
                continue
            at = count
            while at > 0 and goes_before(s.p, by_group, r, s.sorted_rules[at - 1]):
                s.sorted_rules[at] = s.sorted_rules[at - 1]
                at -= 1
            s.sorted_rules[at] = <uint16_t>r
            count += 1
    return count


cdef inline bint row_has(Scratch* s, uint32_t r, uint32_t line) noexcept nogil:
    return row_of(s, r)[line >> 6] >> (line & 63) & 1


cdef inline void note_takers(Scratch* s, uint32_t r, uint32_t first, uint32_t end) noexcept nogil:
    # When a rule has lost its first line: to which of sorted_rules[first..end).
    cdef uint32_t i
    if s.first_taker[r] != NO_LINE or row_has(s, r, s.first_line[r]):
        return
    for i in range(first, end):
        if row_has(s, s.sorted_rules[i], s.first_line[r]):
            s.first_taker[r] = s.sorted_rules[i]
            return


cdef inline void take_lines(Scratch* s, uint32_t r) noexcept nogil:
    # Leaves a rule the lines that nobody before it has, and takes them.
    cdef uint64_t* row = row_of(s, r)
    cdef uint32_t w
    for w in range(s.stride):
        row[w] &= ~s.taken[w]
        s.taken[w] |= row[w]


cdef inline void stack_kind(Scratch* s, uint32_t kind) noexcept nogil:
    # What exclusive rules and groups leave of the lines of the rules of a kind.
    cdef const Program2* p = s.p
    cdef const uint64_t* which = p.kinds[kind]
    cdef uint64_t word, any_stacking = 0
    cdef uint64_t* row
    cdef uint32_t w, v, r, i, first, count
    for w in range(p.words):
        any_stacking |= which[w] & s.applies[w] & p.stacking[w]
    if any_stacking == 0:
        return
    for w in range(p.words):
        word = which[w] & s.applies[w]
        while word != 0:
            r = w * 64 + first_bit(word)
            word &= word - 1
            row = row_of(s, r)
            v = 0
            while row[v] == 0:
                v += 1
            s.first_line[r] = <uint16_t>(v * 64 + first_bit(row[v]))
            s.first_taker[r] = NO_LINE
    count = sort_rules(s, which, False)
    if count > 0:
        memset(s.taken, 0, s.stride * sizeof(uint64_t))
        for i in range(count):
            take_lines(s, s.sorted_rules[i])
        for w in range(p.words):
            word = which[w] & s.applies[w]
            while word != 0:
                r = w * 64 + first_bit(word)
                word &= word - 1
                if not p.rules[r].flags & RULE_EXCLUSIVE:
                    row = row_of(s, r)
                    for v in range(s.stride):
                        row[v] &= ~s.taken[v]
                note_takers(s, r, 0, count)
    count = sort_rules(s, which, True)
    first = 0
    while first < count:
        i = first
        memset(s.taken, 0, s.stride * sizeof(uint64_t))
        while i < count and p.rules[s.sorted_rules[i]].group == p.rules[s.sorted_rules[first]].group:
            take_lines(s, s.sorted_rules[i])
            note_takers(s, s.sorted_rules[i], first, i)
            i += 1
        first = i
    for w in range(p.words):
        word = which[w] & s.applies[w]
        while word != 0:
            r = w * 64 + first_bit(word)
            word &= word - 1
            row = row_of(s, r)
            v = 0
            while v < s.stride and row[v] == 0:
                v += 1
            if v == s.stride:
                s.applies[w] &= ~bit_of(r)
                give_up(s, r, REASON_LOST_TO, s.first_taker[r])


# --- sharing ------------------------------------------------------------------------------------------------------------

cdef inline int64_t kth_largest(int64_t* values, uint32_t count, uint32_t k) noexcept nogil:
    # The k-th largest value, k from 1. Reorders them.
    cdef int64_t pivot, swap
    cdef uint32_t low = 0, high = count - 1, left, right, middle, target = k - 1
    while low < high:
        middle = (low + high) >> 1      # median of three
        if values[low] < values[middle]:
            swap = values[low]; values[low] = values[middle]; values[middle] = swap
        if values[low] < values[high]:
            swap = values[low]; values[low] = values[high]; values[high] = swap
        if values[middle] < values[high]:
            swap = values[middle]; values[middle] = values[high]; values[high] = swap
        pivot = values[middle]
        left = low
        middle = low
        right = high + 1                # [low, left) above the pivot, [left, middle) equal, [right, high] below
        while middle < right:
            if values[middle] > pivot:
                swap = values[left]; values[left] = values[middle]; values[middle] = swap
                left += 1
                middle += 1
            elif values[middle] < pivot:
                right -= 1
                swap = values[right]; values[right] = values[middle]; values[middle] = swap
            else:
                middle += 1
        if target < left:
            high = left - 1
        elif target < right:
            return pivot
        else:
            low = right
    return values[target]


cdef inline void spread(Scratch* s, int64_t total, const int64_t* weights, int64_t sum, uint32_t count, int64_t* shares) noexcept nogil:
    # Shares a total pro rata to weights that sum to `sum`, in whole units by largest remainder, ties to the earlier; equally where all
    # weights are 0.
    cdef int64_t* remainders = s.remainders
    cdef int64_t left = total, limit
    cdef uint32_t i, above
    if count == 1:
        shares[0] = total
        return
    if total == 0:
        memset(shares, 0, count * sizeof(int64_t))
        return
    if sum == 0:
        limit = div_floor(total, count)
        left -= limit * count
        for i in range(count):
            shares[i] = limit + (1 if i < left else 0)
        return
    for i in range(count):
        mul_div_rem(total, weights[i], sum, &shares[i], &remainders[i])
        left -= shares[i]
    if left == 0:
        return
    memcpy(s.order, remainders, count * sizeof(int64_t))
    limit = kth_largest(s.order, count, <uint32_t>left)
    above = 0
    for i in range(count):
        if remainders[i] > limit:
            shares[i] += 1
            above += 1
    left -= above
    i = 0
    while left > 0:
        if remainders[i] == limit:
            shares[i] += 1
            left -= 1
        i += 1


# --- giving -------------------------------------------------------------------------------------------------------------

cdef inline void list_row(Scratch* s, const uint64_t* row) noexcept nogil:
    # The lines of a row, as numbers. Rules about all lines come one after another: theirs are listed once.
    cdef uint64_t word
    cdef uint32_t w, count = 0
    if s.list_count > 0 and memcmp(row, s.listed, s.stride * sizeof(uint64_t)) == 0:
        return
    for w in range(s.stride):
        word = row[w]
        s.listed[w] = word
        while word != 0:
            s.list[count] = <uint16_t>(w * 64 + first_bit(word))
            word &= word - 1
            count += 1
    s.list_count = count


cdef inline int64_t weigh(Scratch* s, const int64_t* amounts) noexcept nogil:
    # What belongs to the listed lines, in `weights`; its sum.
    cdef int64_t sum = 0
    cdef uint32_t i
    for i in range(s.list_count):
        s.weights[i] = amounts[s.list[i]]
        sum += s.weights[i]
    return sum


cdef inline void cut(Scratch* s, Given* row, uint8_t reason, int64_t points) noexcept nogil:
    cdef Cut* place = &s.out.cuts[s.out.cut_count]
    place.reason = reason
    place.points = points
    s.out.cut_count += 1
    row.cut_count += 1


cdef inline void count_use(Scratch* s, const ImageRule* rule, int64_t given) noexcept nogil:
    # What a rule gave goes to its counters and its campaign.
    cdef const ImageCap* cap
    cdef CounterChange* counter
    cdef CampaignChange* campaign
    cdef uint32_t i
    for i in range(rule.first_cap, rule.first_cap + rule.cap_count):
        cap = &s.p.caps[i]
        if cap.per == CAP_PER_RECEIPT:
            continue
        counter = &s.out.counters[s.out.counter_count]
        s.out.counter_count += 1
        counter.counter = cap.counter
        counter.window = s.cap_window[i]
        counter.increment = 1 if cap.measure == CAP_USES else given
        counter.cap = i
    if rule.campaign > 0:
        campaign = &s.out.campaigns[s.out.campaign_count]
        s.out.campaign_count += 1
        campaign.campaign = rule.campaign
        campaign.points = given if s.p.campaigns[rule.campaign - 1].flags & (CAMPAIGN_POINTS | CAMPAIGN_AMOUNT) else 0
        if s.campaign_points[rule.campaign] != INT64_MAX:
            s.campaign_points[rule.campaign] -= campaign.points
        if s.campaign_uses[rule.campaign] != INT64_MAX:
            s.campaign_uses[rule.campaign] = max_i64(0, s.campaign_uses[rule.campaign] - 1)


cdef inline bint finish(Scratch* s, uint32_t r, Given* row, int64_t wanted) noexcept nogil:
    # Caps, campaign, and sharing of what they leave. row: the next one of the result, with base, exact, divisor, rounded and cuts so
    # far; `shares`: of the listed lines, which sum to `wanted`. Whether anything was given; if not, why is noted and the row is free
    # again.
    cdef const ImageRule* rule = &s.p.rules[r]
    cdef const ImageCap* cap
    cdef int64_t given = wanted
    cdef uint32_t i
    cdef uint8_t reason = REASON_TOO_LITTLE
    row.available_day = row.expiry_day = 0
    if wanted == 0:
        if row.cut_count > 0:
            reason = s.out.cuts[s.out.cut_count - 1].reason
        s.out.cut_count = row.first_cut
        give_up(s, r, reason, 0)
        return False
    if about_points(rule):
        row.available_day = s.today + rule.available_after
        row.expiry_day = expiry_of(rule, s.today)
        if row.expiry_day <= row.available_day:
            s.out.cut_count = row.first_cut
            give_up(s, r, REASON_WOULD_NEVER_COUNT, 0)
            return False
    for i in range(rule.first_cap, rule.first_cap + rule.cap_count):
        cap = &s.p.caps[i]
        if cap.measure == CAP_VALUE and given > s.cap_left[i]:
            cut(s, row, <uint8_t>(REASON_CAP + 2 * cap.per), given - s.cap_left[i])
            given = s.cap_left[i]
    if rule.campaign > 0:
        if given > s.campaign_points[rule.campaign]:
            cut(s, row, REASON_CAMPAIGN_VALUE, given - s.campaign_points[rule.campaign])
            given = s.campaign_points[rule.campaign]
        if s.campaign_uses[rule.campaign] == 0 and given > 0:
            cut(s, row, REASON_CAMPAIGN_USES, given)
            given = 0
    if given == 0:
        reason = s.out.cuts[s.out.cut_count - 1].reason
        s.out.cut_count = row.first_cut
        give_up(s, r, reason, 0)
        return False
    if given > POINTS_MAX:
        s.overflow = True
        return False
    if given < wanted:
        memcpy(s.weights, s.shares, s.list_count * sizeof(int64_t))
        spread(s, given, s.weights, wanted, s.list_count, s.shares)
    count_use(s, rule, given)
    row.rule = <uint16_t>r
    row.given = given
    row.first_share = <uint32_t>s.pool_used
    memcpy(&s.pool[s.pool_used], s.shares, s.list_count * sizeof(int64_t))
    s.pool_used += s.list_count
    s.given_at[r] = <uint16_t>s.out.given_count
    s.out.given_count += 1
    if about_points(rule):
        s.gave[r >> 6] |= bit_of(r)
        s.out.points[rule.wallet] += given
    return True


cdef inline Given* next_given(Scratch* s) noexcept nogil:
    cdef Given* row = &s.out.given[s.out.given_count]
    row.base = 0
    row.exact.lo = row.exact.hi = 0
    row.divisor = 1
    row.rounded = 0
    row.first_cut = s.out.cut_count
    row.cut_count = 0
    return row


cdef inline int64_t sum_shares(Scratch* s) noexcept nogil:
    # The sum of `shares`; no more than 2^62 of them count, and more is an overflow.
    cdef int64_t sum = 0
    cdef uint32_t i
    for i in range(s.list_count):
        sum += s.shares[i]
        if sum >> 62:
            s.overflow = True
            return 0
    return sum


cdef inline void round_each(Scratch* s, const ImageRule* rule) noexcept nogil:
    # `shares` of the listed lines: percent (or times) of each weight, each rounded.
    cdef Wide exact
    cdef uint32_t i
    for i in range(s.list_count):
        exact.lo = exact.hi = 0
        wide_add(&exact, s.weights[i], rule.b, rule.rate_factor)
        if wide_round(&exact, rule.rate_divisor, rule.round, &s.shares[i]):
            s.overflow = True


cdef inline void give_discount(Scratch* s, uint32_t r) noexcept nogil:
    # One discount: takes from `net`. `base`: what the lines cost before the discounts of its kind.
    cdef const ImageRule* rule = &s.p.rules[r]
    cdef Given* row = next_given(s)
    cdef int64_t sum, left, wanted
    cdef uint32_t i
    list_row(s, row_of(s, r))
    sum = weigh(s, s.base)
    row.base = sum
    row.divisor = rule.rate_divisor
    if rule.form == FORM_PERCENT:
        wide_add(&row.exact, sum, rule.b, rule.rate_factor)
    else:
        row.divisor = 1
        wide_add(&row.exact, rule.b, s.list_count if rule.per == PER_LINE else 1, 1)
    if rule.per == PER_LINE:
        if rule.form == FORM_PERCENT:
            round_each(s, rule)
        else:
            for i in range(s.list_count):
                s.shares[i] = rule.b
        row.rounded = sum_shares(s)
        wanted = 0
        for i in range(s.list_count):
            s.shares[i] = min_i64(s.shares[i], s.net[s.list[i]])
            wanted += s.shares[i]
    else:
        if wide_round(&row.exact, row.divisor, rule.round, &row.rounded):
            s.overflow = True
        left = weigh(s, s.net)
        wanted = min_i64(row.rounded, left)
        spread(s, wanted, s.weights, left, s.list_count, s.shares)
    if wanted < row.rounded:
        cut(s, row, REASON_NOTHING_LEFT, row.rounded - wanted)
    if not s.overflow and finish(s, r, row, wanted):
        for i in range(s.list_count):
            s.net[s.list[i]] -= s.shares[i]
            s.out.discounts[s.list[i]] += s.shares[i]


cdef inline void give_points(Scratch* s, uint32_t r) noexcept nogil:
    # One rule with `give` or `percent`.
    cdef const ImageRule* rule = &s.p.rules[r]
    cdef Given* row = next_given(s)
    cdef int64_t sum, quantity = 0
    cdef uint32_t i
    list_row(s, row_of(s, r))
    sum = weigh(s, &s.net[0] if rule.flags & RULE_EARNS_ON_POINTS_PAID else &s.money[0])
    row.base = sum
    if rule.form == FORM_PERCENT:
        row.divisor = rule.rate_divisor
        wide_add(&row.exact, sum, rule.b, rule.rate_factor)
        if rule.per == PER_LINE:
            round_each(s, rule)
            row.rounded = sum_shares(s)
        else:
            if wide_round(&row.exact, row.divisor, rule.round, &row.rounded):
                s.overflow = True
    elif rule.form == FORM_STEP:
        if rule.per == PER_LINE:
            for i in range(s.list_count):
                s.shares[i] = div_floor(s.weights[i], rule.a) * rule.b
            row.rounded = sum_shares(s)
        else:
            row.rounded = div_floor(sum, rule.a) * rule.b
    elif rule.form == FORM_QUANTITY_STEP:
        for i in range(s.list_count):
            quantity += s.quantities[s.list[i]]
        row.base = quantity
        if rule.per == PER_LINE:
            for i in range(s.list_count):
                s.shares[i] = div_floor(s.quantities[s.list[i]], rule.a) * rule.b
            row.rounded = sum_shares(s)
        else:
            row.rounded = div_floor(quantity, rule.a) * rule.b
    else:
        if rule.per == PER_LINE:
            for i in range(s.list_count):
                s.shares[i] = rule.b
        row.rounded = rule.b * s.list_count if rule.per == PER_LINE else rule.b
    if rule.form != FORM_PERCENT:
        row.exact.lo = <uint64_t>row.rounded
    if s.overflow:
        return
    if rule.per == PER_RECEIPT and row.rounded > 0:
        spread(s, row.rounded, s.weights, sum, s.list_count, s.shares)
    finish(s, r, row, row.rounded)


cdef inline int64_t* percents_of(Scratch* s, uint32_t t) noexcept nogil:
    # The percents of a percent rule on each line of the receipt, with what was added so far. At first its own.
    cdef const ImageRule* rule = &s.p.rules[t]
    cdef const int64_t* amounts = &s.net[0] if rule.flags & RULE_EARNS_ON_POINTS_PAID else &s.money[0]
    cdef uint64_t* row = row_of(s, t)
    cdef uint64_t word
    cdef int64_t* ppm
    cdef uint32_t w, i
    if s.ppm_at[t] == 0:
        s.ppm_at[t] = <uint32_t>s.pool_used
        s.pool_used += s.lines
        ppm = &s.pool[s.ppm_at[t]]
        s.target_exact[t].lo = s.target_exact[t].hi = 0
        for i in range(s.lines):
            ppm[i] = rule.b
        for w in range(s.stride):
            word = row[w]
            while word != 0:
                wide_add(&s.target_exact[t], amounts[w * 64 + first_bit(word)], rule.b, rule.rate_factor)
                word &= word - 1
        if wide_round(&s.target_exact[t], rule.rate_divisor, rule.round, &s.target_whole[t]):
            s.overflow = True
    return &s.pool[s.ppm_at[t]]


cdef inline void add_to_target(Scratch* s, uint32_t r, uint32_t t, Given* row) noexcept nogil:
    # What one added percent makes of one percent rule, on the lines that both have, to `by_line`.
    cdef const ImageRule* rule = &s.p.rules[r]
    cdef const ImageRule* target = &s.p.rules[t]
    cdef const int64_t* amounts = &s.net[0] if target.flags & RULE_EARNS_ON_POINTS_PAID else &s.money[0]
    cdef uint64_t* own = row_of(s, r)
    cdef uint64_t* its = row_of(s, t)
    cdef int64_t* ppm
    cdef int64_t sum, whole, before
    cdef uint64_t any_both = 0
    cdef Wide exact
    cdef uint32_t w, i, line
    for w in range(s.stride):
        s.both[w] = own[w] & its[w]
        any_both |= s.both[w]
    if any_both == 0:
        return
    ppm = percents_of(s, t)
    list_row(s, s.both)
    sum = weigh(s, amounts)
    row.base += sum
    wide_add(&row.exact, sum, rule.b, rule.rate_factor)
    if target.per == PER_LINE:
        for i in range(s.list_count):
            line = s.list[i]
            exact.lo = exact.hi = 0
            wide_add(&exact, s.weights[i], ppm[line], target.rate_factor)
            if wide_round(&exact, target.rate_divisor, target.round, &before):
                s.overflow = True
            ppm[line] += rule.b
            wide_add(&exact, s.weights[i], rule.b, target.rate_factor)
            if wide_round(&exact, target.rate_divisor, target.round, &whole):
                s.overflow = True
                return
            s.by_line[line] += whole - before
    else:
        for i in range(s.list_count):
            ppm[s.list[i]] += rule.b
        wide_add(&s.target_exact[t], sum, rule.b, target.rate_factor)
        if wide_round(&s.target_exact[t], target.rate_divisor, target.round, &whole):
            s.overflow = True
            return
        spread(s, whole - s.target_whole[t], s.weights, sum, s.list_count, s.shares)
        s.target_whole[t] = whole
        for i in range(s.list_count):
            s.by_line[s.list[i]] += s.shares[i]


cdef inline void give_added(Scratch* s, uint32_t r) noexcept nogil:
    # One rule with `add_percent`. Its row becomes the lines that got something.
    cdef const ImageRule* rule = &s.p.rules[r]
    cdef Given* row = next_given(s)
    cdef uint64_t* own = row_of(s, r)
    cdef int64_t wanted = 0
    cdef uint32_t i, t
    memset(s.by_line, 0, s.lines * sizeof(int64_t))
    row.divisor = rule.rate_divisor
    for i in range(rule.first_target, rule.first_target + rule.target_count):
        t = s.p.targets[i]
        if s.applies[t >> 6] & bit_of(t):
            add_to_target(s, r, t, row)
            if s.overflow:
                return
    memset(own, 0, s.stride * sizeof(uint64_t))
    for i in range(s.lines):
        if s.by_line[i] > 0:
            own[i >> 6] |= bit_of(i)
            wanted += s.by_line[i]
            if wanted >> 62:
                s.overflow = True
                return
    row.rounded = wanted
    if wanted > 0:
        list_row(s, own)
        for i in range(s.list_count):
            s.shares[i] = s.by_line[s.list[i]]
    finish(s, r, row, wanted)


cdef inline bint has_target(const Program2* p, const ImageRule* rule, uint32_t t) noexcept nogil:
    cdef const uint16_t* targets = p.targets + rule.first_target
    cdef uint32_t low = 0, high = rule.target_count, middle
    while low < high:
        middle = (low + high) >> 1
        if targets[middle] < t:
            low = middle + 1
        else:
            high = middle
    return low < rule.target_count and targets[low] == t


cdef inline void give_times(Scratch* s, uint32_t r) noexcept nogil:
    # One multiplier: of the points that its rules really gave to its lines. They were given before all multipliers.
    cdef const ImageRule* rule = &s.p.rules[r]
    cdef const Given* target
    cdef Given* row = next_given(s)
    cdef const int64_t* share
    cdef uint64_t* its
    cdef uint64_t word
    cdef int64_t sum
    cdef uint32_t i, w
    memset(s.by_line, 0, s.lines * sizeof(int64_t))
    for i in range(s.out.given_count):
        target = &s.out.given[i]
        if not has_target(s.p, rule, target.rule):
            continue
        its = row_of(s, target.rule)
        share = &s.pool[target.first_share]
        for w in range(s.stride):
            word = its[w]
            while word != 0:
                s.by_line[w * 64 + first_bit(word)] += share[0]
                share += 1
                word &= word - 1
    list_row(s, row_of(s, r))
    sum = weigh(s, s.by_line)
    row.base = sum
    row.divisor = rule.rate_divisor
    wide_add(&row.exact, sum, rule.b, rule.rate_factor)
    if rule.per == PER_LINE:
        round_each(s, rule)
        row.rounded = sum_shares(s)
    elif wide_round(&row.exact, row.divisor, rule.round, &row.rounded):
        s.overflow = True
    if s.overflow:
        return
    if rule.per == PER_RECEIPT:
        spread(s, row.rounded, s.weights, sum, s.list_count, s.shares)
    finish(s, r, row, row.rounded)


cdef inline void give_entitlement(Scratch* s, uint32_t r) noexcept nogil:
    cdef const ImageRule* rule = &s.p.rules[r]
    cdef uint8_t reason = campaign_used_up(s, rule)
    cdef uint32_t i = 0
    if reason != 0:
        give_up(s, r, reason, 0)
        return
    count_use(s, rule, 0)
    while i < s.out.entitlement_count and s.out.entitlements[i] != rule.b:
        i += 1
    if i == s.out.entitlement_count:
        s.out.entitlements[i] = <uint8_t>rule.b
        s.out.entitlement_count += 1


cdef inline void give_kind(Scratch* s, uint32_t kind) noexcept nogil:
    # All rules of a kind that apply, in the file's order.
    cdef uint64_t word
    cdef uint32_t w, r
    for w in range(s.p.words):
        word = s.applies[w] & s.p.kinds[kind][w]
        while word != 0:
            if s.overflow:
                return
            r = w * 64 + first_bit(word)
            word &= word - 1
            if kind == RULE_POINTS:
                give_points(s, r)
            elif kind == RULE_ADD_PERCENT:
                give_added(s, r)
            elif kind == RULE_TIMES:
                give_times(s, r)
            elif kind == RULE_ENTITLE:
                give_entitlement(s, r)
            else:
                give_discount(s, r)


# --- paying with points -------------------------------------------------------------------------------------------------

cdef inline uint32_t burn_rule_of(Scratch* s, uint32_t wallet, bint* any_rule) noexcept nogil:
    # The first burn rule of a wallet that holds, from 1; 0: none. any_rule: whether the wallet has any.
    cdef uint32_t i
    any_rule[0] = False
    for i in range(s.p.counts[SECTION2_BURN]):
        if s.p.burn[i].wallet == wallet:
            any_rule[0] = True
            if s.p.burn[i].when_program == 0 or program_holds(s, s.p.burn[i].when_program, 0):
                return i + 1
    return 0


cdef inline int64_t to_points(const ImageBurn* rule, int64_t money) noexcept nogil:
    # What so much money is in points, rounded down; more than fits is as good as no bound.
    cdef int64_t points
    if money <= 0:
        return 0
    return INT64_MAX if mul_div_floor(money, rule.pays_per, rule.pays, &points) else points


cdef inline int64_t capacities(Scratch* s, uint32_t number, int64_t* eligible) noexcept nogil:
    # What points may pay of each line, in `capacity`; its sum. eligible: the sum of the lines that can be paid with them.
    cdef const ImageBurn* rule = &s.p.burn[number - 1]
    cdef const ImageClass* cls
    cdef uint64_t bit = bit_of(number - 1)
    cdef int64_t sum = 0
    cdef uint32_t i
    eligible[0] = 0
    for i in range(s.lines):
        cls = &s.p.classes[s.classes[i]]
        s.capacity[i] = 0
        if cls.burn_not & bit or (cls.burn_ask & bit and rule.not_for_program > 0 and program_holds(s, rule.not_for_program, i)):
            continue
        eligible[0] += s.net[i]
        s.capacity[i] = max_i64(0, s.net[i] - rule.money_at_least_per_line)
        sum += s.capacity[i]
    return sum


cdef inline void bound(int64_t points, uint8_t why, int64_t step, BurnLimit2* limit) noexcept nogil:
    points = div_floor(max_i64(0, points), step) * step
    if points < limit.points:
        limit.points = points
        limit.why = why
    elif points == limit.points:
        limit.why |= why


cdef inline void burn_limit(Scratch* s, uint32_t wallet) noexcept nogil:
    # The largest burn from a wallet, and what allows no more.
    cdef const ImageBurn* rule
    cdef BurnLimit2* limit = &s.out.burn_limits[s.out.burn_limit_count]
    cdef int64_t eligible, capacity, net = 0
    cdef bint any_rule
    cdef uint32_t i, number = burn_rule_of(s, wallet, &any_rule)
    if not any_rule:
        return
    s.out.burn_limit_count += 1
    limit.wallet = <uint16_t>wallet
    limit.rule = <uint8_t>number
    limit.points = 0
    limit.why = WHY_NO_RULE
    if number == 0:
        return
    rule = &s.p.burn[number - 1]
    capacity = capacities(s, number, &eligible)
    for i in range(s.lines):
        net += s.net[i]
    limit.points = INT64_MAX
    limit.why = 0
    bound(s.facts.available[wallet] - s.p.image_wallets[wallet].floor, WHY_BALANCE, rule.step, limit)
    bound(to_points(rule, div_floor(eligible * rule.share, 1000000)), WHY_SHARE, rule.step, limit)
    bound(to_points(rule, capacity), WHY_ELIGIBLE, rule.step, limit)
    bound(to_points(rule, net - rule.money_at_least), WHY_MONEY_AT_LEAST, rule.step, limit)
    if rule.max != INT64_MAX:
        bound(rule.max, WHY_MAX, rule.step, limit)
    if 0 < limit.points < rule.min:
        limit.points = 0
        limit.why = WHY_MIN


cdef inline void list_burn_limits(Scratch* s) noexcept nogil:
    # The largest burn of each wallet, into the result of the last evaluation: whoever wants to know calls this behind it, as most do not.
    # An evaluation that came to no amounts has none.
    cdef uint32_t i
    if s.limits_listed or not s.priced:
        return
    s.limits_listed = True
    for i in range(s.p.wallet_count):
        burn_limit(s, i)


cdef inline uint8_t burn(Scratch* s, uint32_t wallet, int64_t points) noexcept nogil:
    # Takes the burn asked for: spreads its money over the lines. Or why it is not possible. Behind list_burn_limits.
    cdef const BurnLimit2* limit = NULL
    cdef const ImageBurn* rule
    cdef int64_t money, eligible, capacity
    cdef uint32_t i
    for i in range(s.out.burn_limit_count):
        if s.out.burn_limits[i].wallet == wallet:
            limit = &s.out.burn_limits[i]
    if limit == NULL or limit.rule == 0:
        return REFUSED_BURN_NOT_POSSIBLE
    rule = &s.p.burn[limit.rule - 1]
    if not is_multiple(points, rule.step):
        return REFUSED_BURN_STEP
    if points > limit.points:
        return REFUSED_BURN_TOO_HIGH
    if points < rule.min:
        return REFUSED_BURN_BELOW_MIN
    capacity = capacities(s, limit.rule, &eligible)
    if mul_div_floor(points, rule.pays, rule.pays_per, &money):
        return REFUSED_BURN_TOO_HIGH
    spread(s, money, s.capacity, capacity, s.lines, s.out.paid)
    for i in range(s.lines):
        s.money[i] -= s.out.paid[i]
    return 0


# --- tiers --------------------------------------------------------------------------------------------------------------

cdef struct Standing:           # a member as tiers see it: what is kept, and perhaps this receipt more
    const Program2* p
    const Facts2* facts
    const Limits2* limits
    bint more                   # whether this receipt counts
    int32_t day
    int64_t spent


cdef inline int32_t window_number(uint32_t window, int32_t day, int32_t opened_day) noexcept nogil:
    # The number of the window that a day lies in.
    cdef int32_t year, month, at, opened_year, opened_month, opened_at
    if window == WINDOW_LIFETIME:
        return 0
    civil_from_day(day, &year, &month, &at)
    if window == WINDOW_MONTH:
        return year * 12 + month - 1
    if window == WINDOW_YEAR:
        return year
    civil_from_day(opened_day, &opened_year, &opened_month, &opened_at)
    return year - opened_year if day >= birthday_in(year, opened_month, opened_at) else year - opened_year - 1


cdef inline int32_t window_end(const Program2* p, uint32_t window, int32_t day, int32_t opened_day) noexcept nogil:
    # The first day behind the window that a day lies in; DAY_NEVER.
    cdef int32_t opened_year, opened_month, opened_at
    if window == WINDOW_LIFETIME:
        return DAY_NEVER
    if window == WINDOW_MONTH:
        return day_add_months(period_start(day, 1), 1)
    if window == WINDOW_YEAR:
        return day_add_months(period_start(day, 12), 12)
    if window >= WINDOW_ROLLING:
        return day + p.rolling[window - WINDOW_ROLLING]
    civil_from_day(opened_day, &opened_year, &opened_month, &opened_at)
    return birthday_in(opened_year + window_number(window, day, opened_day) + 1, opened_month, opened_at)


cdef inline int64_t counted(const Standing* m, const ImageThreshold* threshold, int32_t day) noexcept nogil:
    # Receipts or money in the threshold's window as it is on a day.
    cdef const DayRow* row
    cdef int64_t sum = 0, increment = m.spent if threshold.measure == MEASURE_SPENT else 1
    cdef int32_t days, number
    cdef uint32_t i
    if threshold.window >= WINDOW_ROLLING:
        days = m.p.rolling[threshold.window - WINDOW_ROLLING]
        i = m.facts.day_count
        while i > 0:
            i -= 1
            row = &m.facts.days[i]
            if row.day <= day - days:
                break
            if row.day <= day:
                sum += row.spent if threshold.measure == MEASURE_SPENT else row.receipts
        if m.more and day - days < m.day <= day:
            sum += increment
        return sum
    number = window_number(threshold.window, day, m.facts.opened_day)
    sum = m.limits.used(m.limits.core, m.facts.member, threshold.window * 2 + threshold.measure, number)
    if sum < 0:
        return 0
    return sum + increment if m.more and number == window_number(threshold.window, m.day, m.facts.opened_day) else sum


cdef inline bint reached(const Standing* m, uint32_t tier, int32_t day) noexcept nogil:
    # Whether a level's reach holds on a day.
    cdef const ImageThreshold* threshold
    cdef uint32_t word, op, at = m.p.tiers[tier].program
    cdef bint flag = True
    if at == 0:
        return True
    while True:
        word = m.p.programs[at]
        op = word & 255
        at += 1
        if op == OP_TEST:
            threshold = &m.p.thresholds[word >> 8]
            flag = counted(m, threshold, day) >= threshold.at_least
        elif op == OP_JUMP_IF_TRUE:
            if flag:
                at += word >> 8
        elif op == OP_JUMP_IF_FALSE:
            if not flag:
                at += word >> 8
        elif op == OP_NOT:
            flag = not flag
        else:
            return flag


cdef inline uint32_t highest(const Standing* m, int32_t day) noexcept nogil:
    # The highest level whose reach holds on a day.
    cdef uint32_t tier = m.p.counts[SECTION2_TIERS] - 1
    while tier > 0 and not reached(m, tier, day):
        tier -= 1
    return tier


cdef inline int32_t with_grace(const Program2* p, int32_t day) noexcept nogil:
    if day == DAY_NEVER:
        return DAY_NEVER
    return day + p.header.grace_number if p.header.grace_unit == GRACE_DAYS else day_add_months(day, p.header.grace_number)


cdef inline int32_t hold_end(const Standing* m, uint32_t tier, int32_t day) noexcept nogil:
    # The first day from `day` on which the level's reach no longer holds if no receipt comes; DAY_NEVER. Only ends of windows can be
    # such days.
    cdef const ImageTier* level = &m.p.tiers[tier]
    cdef uint32_t window, i, j
    cdef int32_t end, best = DAY_NEVER
    if not reached(m, tier, day):
        return day
    for i in range(level.first, level.first + level.count):
        window = m.p.thresholds[i].window
        if window < WINDOW_ROLLING:
            end = window_end(m.p, window, day, m.facts.opened_day)
            if day < end < best and not reached(m, tier, end):
                best = end
            continue
        for j in range(m.facts.day_count + 1):
            if j < m.facts.day_count:       # rising: the first that fails is this window's earliest
                end = m.facts.days[j].day
            elif m.more:
                end = m.day
            else:
                break
            if end > day:
                continue
            end += m.p.rolling[window - WINDOW_ROLLING]
            if day < end < best and not reached(m, tier, end):
                best = end
    return best


cdef inline void tier_on(const Standing* m, int32_t day, uint32_t* tier, int32_t* until) noexcept nogil:
    # The member's tier on a day, and until when it is held: what has run out is taken down.
    cdef const ImageTier* level
    cdef int32_t end, held
    cdef uint32_t i
    if m.p.counts[SECTION2_TIERS] == 0:
        tier[0] = 0
        until[0] = DAY_NEVER
        return
    tier[0] = <uint32_t>min_i64(m.facts.tier, m.p.counts[SECTION2_TIERS] - 1)
    until[0] = m.facts.tier_until
    while tier[0] > 0 and until[0] != DAY_NEVER and day >= until[0]:
        end = until[0]
        if m.p.header.downgrade == DOWNGRADE_TO_LEVEL:
            tier[0] = <uint32_t>min_i64(tier[0] - 1, highest(m, end))
            held = hold_end(m, tier[0], end)
        else:
            tier[0] -= 1
            level = &m.p.tiers[tier[0]]
            held = hold_end(m, tier[0], end)
            for i in range(level.first, level.first + level.count):
                held = <int32_t>max_i64(held, window_end(m.p, m.p.thresholds[i].window, end, m.facts.opened_day))
        until[0] = with_grace(m.p, held)
    if tier[0] == 0:
        until[0] = DAY_NEVER


cdef inline void tier_behind(Scratch* s, Standing* m, uint32_t tier, int32_t until) noexcept nogil:
    # Tier and its end behind the receipt, and what is missing to the next level.
    cdef const Program2* p = s.p
    cdef const ImageTier* above
    cdef int32_t today = <int32_t>max_i64(s.today, s.facts.last_day)
    cdef uint32_t level, i
    cdef int64_t rest
    s.out.tier_after = 0
    s.out.tier_until = DAY_NEVER
    if p.counts[SECTION2_TIERS] == 0:
        return
    m.more = True
    m.day = s.today
    m.spent = s.out.spent
    level = highest(m, today)
    if level > tier:
        tier = level
        until = s.today
    if tier == 0 or p.header.downgrade == DOWNGRADE_NEVER:
        until = DAY_NEVER
    elif until != DAY_NEVER and reached(m, tier, today):
        until = <int32_t>max_i64(until, with_grace(p, hold_end(m, tier, today)))
    s.out.tier_after = <uint8_t>tier
    s.out.tier_until = until
    if tier + 1 < p.counts[SECTION2_TIERS]:
        above = &p.tiers[tier + 1]
        for i in range(above.first, above.first + above.count):
            rest = p.thresholds[i].at_least - counted(m, &p.thresholds[i], today)
            if rest > 0:
                s.out.missing[s.out.missing_count].missing = rest
                s.out.missing[s.out.missing_count].threshold = i
                s.out.missing_count += 1


# --- the steps ----------------------------------------------------------------------------------------------------------

cdef inline bint list_awards(Scratch* s) noexcept nogil:
    # What was given as awards, rules in the file's order. A rule whose rows would not fit, with one left for each rule behind it, gets
    # one row of line 0.
    cdef const Given* row
    cdef const ImageRule* rule
    cdef const int64_t* share
    cdef uint64_t* lines
    cdef Award* award
    cdef uint64_t word, bits
    cdef uint32_t w, v, r, i, count = 0, behind = 0, wanted
    for w in range(s.p.words):
        behind += bit_count(s.gave[w])
    if behind > AWARDS_MAX:
        return False
    for w in range(s.p.words):
        word = s.gave[w]
        while word != 0:
            r = w * 64 + first_bit(word)
            word &= word - 1
            behind -= 1
            rule = &s.p.rules[r]
            row = &s.out.given[s.given_at[r]]
            share = &s.pool[row.first_share]
            lines = row_of(s, r)
            wanted = i = 0
            for v in range(s.stride):
                bits = lines[v]
                while bits != 0:
                    wanted += 1 if share[i] > 0 else 0
                    bits &= bits - 1
                    i += 1
            if s.nameless or count + wanted + behind > AWARDS_MAX:
                award = &s.out.awards[count]
                count += 1
                award.points = row.given
                award.line = 0
                award.available_day = row.available_day
                award.expiry_day = row.expiry_day
                award.rule = <uint16_t>(r + 1)
                award.wallet = rule.wallet
                award.funder = rule.funder
                continue
            i = 0
            for v in range(s.stride):
                bits = lines[v]
                while bits != 0:
                    if share[i] > 0:
                        award = &s.out.awards[count]
                        count += 1
                        award.points = share[i]
                        award.line = <uint16_t>(v * 64 + first_bit(bits) + 1)
                        award.available_day = row.available_day
                        award.expiry_day = row.expiry_day
                        award.rule = <uint16_t>(r + 1)
                        award.wallet = rule.wallet
                        award.funder = rule.funder
                    bits &= bits - 1
                    i += 1
    s.out.award_count = count
    return True


cdef inline void list_not_given(Scratch* s) noexcept nogil:
    cdef uint64_t word
    cdef uint32_t w
    for w in range(s.p.words):
        word = s.refused[w]
        while word != 0:
            s.out.not_given[s.out.not_given_count] = s.reasons[w * 64 + first_bit(word)]
            s.out.not_given_count += 1
            word &= word - 1


cdef inline void set_windows(Scratch* s) noexcept nogil:
    # The windows of caps that this receipt counts in.
    cdef int32_t year, month, day
    civil_from_day(s.today, &year, &month, &day)
    s.windows[CAP_PER_RECEIPT] = 0
    s.windows[CAP_PER_DAY] = s.today
    s.windows[CAP_PER_WEEK] = <int32_t>div_floor(s.today + 3, 7)    # 1970-01-01 was a Thursday; weeks begin on Mondays
    s.windows[CAP_PER_MONTH] = year * 12 + month - 1
    s.windows[CAP_PER_YEAR] = year
    s.windows[CAP_PER_EVER] = 0
    s.windows[CAP_PER_BIRTHDAY] = 0


cdef inline void clear_result(Result2* out) noexcept nogil:
    # Counts and sums; what lies behind the counts is whatever it was.
    memset(out, 0, <uint8_t*>&out.variants[0] - <uint8_t*>out)


cdef inline uint8_t evaluate(const Program2* p, const Command* command, int64_t business_us, const Facts2* facts, const Limits2* limits,
                             uint32_t burn_wallet, int64_t burn_points, Scratch* s, Result2* out) noexcept nogil:
    # What a receipt comes to, but for the largest burns when nothing is burned: list_burn_limits. Returns out.refused. command: only its
    # receipt is read, its texts as the codec has checked them.
    # business_us: of the years 1970..2199. burn_points: that shall pay for it, at least 0. out: valid until the scratch is used again,
    # whose rows and pool belong to it.
    cdef Standing m
    cdef uint32_t tier, w, i
    cdef int32_t until
    s.p = p
    s.command = command
    s.facts = facts
    s.limits = limits
    s.out = out
    clear_result(out)
    s.total = command.total_minor
    s.priced = False
    s.limits_listed = False
    out.refused = reason_to_refuse(s)
    if out.refused != 0:
        return out.refused
    read_place(s, business_us)
    if out.notice_count > 0 and p.header.flags & IMAGE2_REFUSE_UNKNOWN_STORES:
        out.notice_count = 0
        out.refused = REFUSED_UNKNOWN_STORE
        return out.refused
    s.overflow = False
    s.list_count = 0
    s.pool_used = 1
    out.day = s.today
    m.p = p
    m.facts = facts
    m.limits = limits
    m.more = False
    tier_on(&m, s.today, &tier, &until)
    s.tier = <uint8_t>tier
    out.tier = <uint8_t>tier
    read_variants(s)
    read_lines(s)
    read_names(s)
    if p.counts[SECTION2_CAPS] > 0:
        set_windows(s)
    memset(s.campaign_known, 0, sizeof(s.campaign_known))
    out.line_count = s.lines

    open_rules(s)
    match_lines(s)
    apply_limits(s)
    for i in range(<uint32_t>RULE_DISCOUNT_LINE, <uint32_t>RULE_ENTITLE):
        stack_kind(s, i)

    memset(out.discounts, 0, s.lines * sizeof(int64_t))
    memset(out.paid, 0, s.lines * sizeof(int64_t))
    memcpy(s.net, s.amounts, s.lines * sizeof(int64_t))
    for i in range(<uint32_t>RULE_DISCOUNT_LINE, <uint32_t>RULE_POINTS):
        memcpy(s.base, s.net, s.lines * sizeof(int64_t))
        give_kind(s, i)

    s.priced = True
    memcpy(s.money, s.net, s.lines * sizeof(int64_t))
    if burn_points > 0:
        list_burn_limits(s)
        out.refused = burn(s, burn_wallet, burn_points)
        if out.refused != 0:
            return out.refused

    for w in range(p.words):
        for i in range(<uint32_t>RULE_ADD_PERCENT, <uint32_t>RULE_TIMES):
            if s.applies[w] & p.kinds[i][w]:
                memset(s.ppm_at, 0, p.rule_count * sizeof(uint32_t))
    for i in range(<uint32_t>RULE_POINTS, <uint32_t>RULE_KIND_COUNT):
        give_kind(s, i)

    for i in range(p.wallet_count):
        if out.points[i] > POINTS_MAX:
            s.overflow = True
    if s.overflow:
        out.refused = REFUSED_POINTS_OVERFLOW
        return out.refused
    if not list_awards(s):
        out.refused = REFUSED_TOO_MANY_AWARDS
        return out.refused
    list_not_given(s)
    for i in range(s.lines):
        if s.eligible[i >> 6] & bit_of(i):
            out.spent += s.money[i]
    tier_behind(s, &m, tier, until)
    return 0
