# Leaves: an image of version 2, checked byte for byte when it is loaded and then read in place. No Python, nothing allocated.
# Not for what rules do to a receipt (ledger/_evaluate.pxd), nor for images of version 1 (ledger/_rules.pxd). cimported by _evaluate and
# whoever holds a Program2. The bytes: docs/decisions/rule-image.md section 3; written by ledger/rules/lower2.py, described for Python
# by ledger/rules/image2.py.
#
# image_load looks at everything that a reader relies on: places, counts, order, ranges, the way of every jump. What lies behind it asks
# nothing again.

from libc.stdint cimport INT64_MAX, INT64_MIN, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset
from ledger._arith cimport div_floor, max_i64
from ledger._layout cimport Slice, WalletDefinition
from ledger._limits cimport AMOUNT_MINOR_MAX, FUNDERS_MAX, POINTS_MAX, POINTS_PER_STEP_MAX, QUANTITY_MILLI_MAX, RUNG_S_MAX, WALLETS_MAX, WALLET_POINTS_MAX
from ledger._rules cimport IMAGE_HASHED_FROM, IMAGE_MAGIC, ZoneSpan, image_padded

cdef extern from "<openssl/sha.h>" nogil:
    uint8_t* image_sha256 "SHA256"(const uint8_t* data, size_t size, uint8_t* digest)

cdef extern from *:
    """
    static inline uint64_t ledger_name_hash(const uint8_t *data, uint32_t size) {      /* FNV-1a, then one step of splitmix64 */
        uint64_t x = UINT64_C(0xcbf29ce484222325);
        uint32_t i;
        for (i = 0; i < size; i++) x = (x ^ data[i]) * UINT64_C(0x100000001b3);
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
        return x ^ x >> 31;
    }
    static inline uint64_t ledger_mixed(uint64_t x) {
        x += UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
        return x ^ x >> 31;
    }
    #define ledger_bit(i) (UINT64_C(1) << ((i) & 63))
    #define ledger_first_bit(word) ((uint32_t)__builtin_ctzll(word))
    #define ledger_bit_count(word) ((uint32_t)__builtin_popcountll(word))
    #define ledger_prefetch(address) __builtin_prefetch(address)
    """
    uint64_t name_hash "ledger_name_hash"(const uint8_t* data, uint32_t size) noexcept nogil
    uint64_t mixed "ledger_mixed"(uint64_t x) noexcept nogil
    uint64_t bit_of "ledger_bit"(uint32_t i) noexcept nogil
    uint32_t first_bit "ledger_first_bit"(uint64_t word) noexcept nogil     # word: not 0
    uint32_t bit_count "ledger_bit_count"(uint64_t word) noexcept nogil
    void prefetch "ledger_prefetch"(const void* address) noexcept nogil

cdef enum:
    IMAGE2_VERSION = 2
    IMAGE2_BYTES_MAX = 16777216
    IMAGE2_RULES_MAX = 5000
    RULE_WORDS_MAX = 79             # 64-bit words of a bitset over the rules
    PROGRAM_WORDS_MAX = 256
    CLASS_RULES_MAX = 1024
    CLASS_WORDS_MAX = 4096
    CAPS_PER_RULE_MAX = 14
    CAMPAIGNS_MAX = 1000
    BURN_RULES_MAX = 64
    TIERS_MAX = 16
    EXPERIMENTS_MAX = 16
    SEGMENTS_MAX = 128
    NAMES_MAX = 32                  # tenders, channels
    FAVOURITES_MAX = 64
    ENTITLEMENTS_MAX = 64
    ROLLING_DAYS_MAX = 400
    REACH_COUNT_MAX = 256           # thresholds of one level
    CUTS_MAX = 4096
    TABLE_NAME_BYTES = 32
    NUMBERED_RECEIPTS = 64          # receipts with a may-record of their own
    COUNTER_MIN = 256               # counters below are those of the tiers' windows
    SPAN_DAYS_MAX = 36600           # of lives and delays
    VELOCITY_COUNTERS_MAX = 64
    VELOCITY_LIMITS_MAX = 256
    VELOCITY_KEYS_MAX = 3           # parts of one key
    VELOCITY_DIFFERENT_MAX = 100000 # members, stores or regions that a bound may name: beyond it they are not counted well
    VELOCITY_RECENT_MAX = 12        # that a bound may name in a sliding window: one more is told apart
    VELOCITY_MEANS_MAX = 1000000    # thousandths of a mean
    NO_RECORD = 0xFFFFFFFF

cdef enum:                          # section kinds
    SECTION2_WALLETS = 1
    SECTION2_RULES = 2
    SECTION2_RULE_NAMES = 3
    SECTION2_CAMPAIGNS = 4
    SECTION2_CAPS = 5
    SECTION2_TARGETS = 6
    SECTION2_PROGRAMS = 7
    SECTION2_ATOMS = 8
    SECTION2_MAY = 9
    SECTION2_MAY_INDEX = 10
    SECTION2_MINUTE_CUTS = 11
    SECTION2_DATE_CUTS = 12
    SECTION2_ARTICLES = 13
    SECTION2_CATEGORY_CODES = 14
    SECTION2_CLASSES = 15
    SECTION2_CLASS_RULES = 16
    SECTION2_STORES = 17
    SECTION2_ZONES = 18
    SECTION2_ZONE_SPANS = 19
    SECTION2_PROMO_CODES = 20
    SECTION2_TENDERS = 21
    SECTION2_SEGMENTS = 22
    SECTION2_FAVOURITES = 23
    SECTION2_EXPERIMENTS = 24
    SECTION2_TIERS = 25
    SECTION2_THRESHOLDS = 26
    SECTION2_BURN = 27
    SECTION2_NUMBERS = 28
    SECTION2_RULE_SETS = 29
    SECTION2_CLASS_BITS = 30
    SECTION2_ARTICLE_STARTS = 31
    SECTION2_CATEGORY_CODE_STARTS = 32
    SECTION2_STORE_STARTS = 33
    SECTION2_PROMO_CODE_STARTS = 34
    SECTION2_UNKNOWN_CLASSES = 35
    SECTION2_STORE_CLASSES = 36
    SECTION2_CHANNELS = 37
    SECTION2_VARIANTS = 38
    SECTION2_ENTITLEMENTS = 39
    SECTION2_ROLLING = 40
    SECTION2_FUNDERS = 41
    SECTION2_TEXTS = 42
    SECTION2_VELOCITY = 43          # this and the next only in images of programmes with limits
    SECTION2_LIMITS = 44
    SECTION2_COUNT = 45             # kinds are 1..44
    SECTION2_COUNT_PLAIN = 43       # without limits: 1..42

cdef enum:                          # dimensions of may-sets
    DIM_STORE = 0
    DIM_TIER = 1
    DIM_CHANNEL = 2
    DIM_WEEKDAY = 3
    DIM_MINUTE = 4
    DIM_DATE = 5
    DIM_SEGMENT = 6
    DIM_TENDER = 7
    DIM_PROMO_CODE = 8
    DIM_VARIANT = 9
    DIM_RECEIPT_NUMBER = 10
    DIM_COUNT = 11

cdef enum:                          # words of programs: op in the low 8 bits, argument above
    OP_TEST = 1
    OP_JUMP_IF_TRUE = 2
    OP_JUMP_IF_FALSE = 3
    OP_NOT = 4
    OP_DONE = 5

cdef enum:                          # what programs test; below 32 of the receipt, from 32 of one line
    ATOM_STORE = 1
    ATOM_TIER = 2
    ATOM_SEGMENT = 3
    ATOM_CHANNEL = 4
    ATOM_TENDER = 5
    ATOM_WEEKDAY = 6
    ATOM_HOURS = 7
    ATOM_DATES = 8
    ATOM_PROMO_CODE = 9
    ATOM_VARIANT = 10
    ATOM_BIRTHDAY = 11
    ATOM_ACCOUNT_AGE_DAYS = 12
    ATOM_DAYS_SINCE_LAST_RECEIPT = 13
    ATOM_TOTAL = 14
    ATOM_ELIGIBLE_TOTAL = 15
    ATOM_LINES_TOTAL = 16
    ATOM_LINES_QUANTITY = 17
    ATOM_NTH = 18
    ATOM_EVERY_NTH = 19
    ATOM_RECEIPT_END = 20
    ATOM_CLASS_BIT = 32
    ATOM_PRICE = 33
    ATOM_QUANTITY = 34
    ATOM_WEIGHED = 35
    ATOM_DISCOUNTED = 36
    ATOM_FAVOURITE = 37
    ATOM_LINE_END = 38

cdef enum:                          # ImageRule.kind: which rules it stacks with; the order of the steps
    RULE_DISCOUNT_LINE = 1
    RULE_DISCOUNT_RECEIPT = 2
    RULE_POINTS = 3
    RULE_ADD_PERCENT = 4
    RULE_TIMES = 5
    RULE_ENTITLE = 6
    RULE_KIND_COUNT = 7

cdef enum:                          # ImageRule.form
    FORM_NOTHING = 0
    FORM_STEP = 1
    FORM_QUANTITY_STEP = 2
    FORM_FIXED = 3
    FORM_PERCENT = 4
    FORM_TIMES = 5

cdef enum:
    PER_RECEIPT = 0
    PER_LINE = 1
    ROUND_FLOOR = 0
    ROUND_HALF_UP = 1
    ROUND_CEIL = 2
    RULE_EXCLUSIVE = 1              # ImageRule.flags
    RULE_EARNS_ON_POINTS_PAID = 2
    RULE_WIDE = 8
    RULE_ALL_LINES = 16
    RULE_FLAGS = 27
    LIFE2_FOR_EVER = 0
    LIFE2_DAYS = 1
    LIFE2_MONTHS = 2
    LIFE2_UNTIL = 3
    LIFE2_INACTIVITY = 4
    LIFE2_END_MONTH = 1
    LIFE2_END_QUARTER = 2
    LIFE2_END_YEAR = 3
    IMAGE2_OPENS_ANONYMOUS = 1      # ImageHeader2.flags
    IMAGE2_REFUSE_UNKNOWN_STORES = 2
    IMAGE2_UNKNOWN_SKUS_EARN_NOTHING = 4
    IMAGE2_CATALOGUE = 8
    IMAGE2_STORES = 16              # stores are listed: unknown ones are noted
    IMAGE2_FLAGS = 31
    CLASS_WEIGHED = 1               # ImageClass.flags
    CLASS_NO_POINTS = 2
    CLASS_NO_POINTS_ASK = 4
    CLASS_FLAGS = 7
    ROW_NAMED_ONLY = 1              # TableRow.flags: a sku that rules name and no catalogue has
    CAP_PER_RECEIPT = 0             # ImageCap.per
    CAP_PER_DAY = 1
    CAP_PER_WEEK = 2
    CAP_PER_MONTH = 3
    CAP_PER_YEAR = 4
    CAP_PER_EVER = 5
    CAP_PER_BIRTHDAY = 6
    CAP_VALUE = 0                   # ImageCap.measure: points or amount
    CAP_USES = 1
    CAMPAIGN_POINTS = 1             # ImageCampaign.flags: what it limits
    CAMPAIGN_AMOUNT = 2
    CAMPAIGN_USES = 4
    CAMPAIGN_FLAGS = 7
    WINDOW_LIFETIME = 1             # ImageThreshold.window
    WINDOW_MONTH = 2
    WINDOW_YEAR = 3
    WINDOW_ANNIVERSARY = 4
    WINDOW_ROLLING = 16             # and its place in ROLLING
    MEASURE_RECEIPTS = 0            # ImageThreshold.measure
    MEASURE_SPENT = 1
    DOWNGRADE_NEVER = 0
    DOWNGRADE_TO_LEVEL = 1
    DOWNGRADE_ONE_STEP = 2
    GRACE_DAYS = 0
    GRACE_MONTHS = 1

cdef enum:                          # ImageVelocity, ImageLimit
    OF_EARN = 1                     # of: which entries, bits
    OF_BURN = 2
    OF_RESERVE = 4
    OF_ENROLL = 8
    OF_REFUSAL = 16
    OF_BALANCE = 32
    OF_UNKNOWN_BALANCE = 64
    OF_LOOK_UPS = 96                # the two above: in memory only
    OF_RETURN = 128
    OF_EVENTS = 8                   # how many bits there are
    OF_ALL = 255
    KEY_MEMBER = 1                  # keys: per which key, bits
    KEY_IDENTIFIER = 2
    KEY_PAYMENT_CARD = 4
    KEY_DEVICE = 8
    KEY_TILL = 16
    KEY_CASHIER = 32
    KEY_STORE = 64
    KEY_PARTNER = 128
    KEY_HOUR = 256
    KEY_BASKET = 512
    KEY_ALL = 1023
    SPEED_RECEIPT = 0               # window
    SPEED_DAY = 1
    SPEED_WEEK = 2
    SPEED_MONTH = 3
    SPEED_EVER = 4
    SPEED_SLIDING = 5
    COUNT_COUNT = 1                 # measure
    COUNT_POINTS = 2
    COUNT_MONEY = 3
    COUNT_MEMBERS = 4
    COUNT_STORES = 5
    COUNT_QUANTITY = 6
    COUNT_REGIONS = 7
    LIMIT_SHADOW = 1                # action
    LIMIT_MARK = 2
    LIMIT_REFUSE = 3
    LIMIT_CHALLENGE = 4
    LIMIT_REDUCE = 5
    LIMIT_REVIEW = 6
    RUNG_NONE = 0               # rung
    RUNG_WARNED = 1
    RUNG_LIMITED = 2
    RUNG_BLOCKED = 3
    RUNG_EXCLUDED = 4
    VELOCITY_VOLATILE = 1           # ImageVelocity.flags: counts look-ups, which no entry and no snapshot knows
    VELOCITY_GIVES_BACK = 2         # what is returned or released leaves it

cdef struct ImageHeader2:       # 256 bytes
    uint32_t magic              # IMAGE_MAGIC
    uint32_t version            # IMAGE2_VERSION
    uint8_t hash[32]            # SHA-256 over bytes 40..size-1
    int64_t max_age_us
    uint32_t size               # bytes of the whole image
    uint32_t flags
    char currency[4]
    uint32_t rule_count         # 0..IMAGE2_RULES_MAX
    char zone[40]
    char tzdata[16]
    char name[40]
    int64_t largest_receipt     # minor units
    int64_t total_tolerance
    uint8_t catalogue[32]       # SHA-256 of the catalogue's files; zeros: none
    uint32_t section_table      # offset of SectionPlace[section_count]
    uint32_t section_count
    uint32_t unknown_columns    # of UNKNOWN_CLASSES: a category code's value is a column, 0: no known code
    uint32_t no_points_program  # for classes with CLASS_NO_POINTS_ASK
    uint32_t class_words        # of CLASS_BITS for each class
    uint16_t favourites_at_most
    uint16_t grace_number
    uint8_t grace_unit
    uint8_t downgrade
    uint8_t currency_digits
    uint8_t reserved[21]

cdef struct SectionPlace:       # 16 bytes
    uint32_t kind
    uint32_t record_bytes
    uint32_t offset
    uint32_t count

cdef struct ImageWallet2:       # 48 bytes
    char name[32]
    uint32_t scale
    uint16_t sliding_days       # > 0: points live so many days behind the member's last activity
    uint16_t flags
    int64_t floor               # what a burn must leave

cdef struct ImageRule:          # 128 bytes
    int64_t a                   # step, minor units or thousandths
    int64_t b                   # points or minor units given; percent in ppm; times - 1 in 1/10000; entitlement
    int64_t rate_factor         # percent: amount = ppm * money * rate_factor / rate_divisor
    int64_t rate_divisor
    int64_t lines_total_from
    int64_t lines_total_to
    int64_t lines_quantity_from
    int64_t lines_quantity_to
    uint32_t key                # of its name, the same for ever
    uint32_t when_program       # 0: the may-sets say all
    uint32_t lines_program      # 0: the class says all
    uint32_t late_program       # with lines_total or lines_quantity; behind the lines
    uint32_t first_cap
    uint32_t first_target
    int32_t until_day
    uint16_t cap_count
    uint16_t target_count
    uint16_t campaign           # from 1; 0: none
    uint16_t wallet
    uint16_t funder
    uint16_t available_after
    uint16_t life_number
    uint16_t group              # from 1; 0: none
    uint16_t priority
    uint8_t kind
    uint8_t form
    uint8_t per
    uint8_t round
    uint8_t life_unit
    uint8_t life_end
    uint8_t flags
    uint8_t reserved[11]

cdef struct ImageCampaign:      # 88 bytes
    int64_t points              # or minor units
    int64_t uses
    uint32_t key
    uint16_t wallet
    uint16_t flags
    char name[64]

cdef struct ImageCap:           # 24 bytes
    int64_t limit
    uint32_t counter            # >= COUNTER_MIN
    uint32_t list_offset        # per birthday: its atoms, in NUMBERS
    uint16_t list_count
    uint8_t per
    uint8_t measure
    uint32_t reserved

cdef struct ImageAtom:          # 24 bytes
    int64_t low
    int64_t high
    uint32_t list_offset
    uint16_t list_count
    uint8_t code
    uint8_t reserved

cdef struct MayIndex:           # 16 bytes
    uint32_t first              # record in MAY
    uint32_t count              # 0: no rule asks
    uint32_t free               # of dimensions with sets of values: record of none of them; NO_RECORD: no rule asks
    uint32_t reserved

cdef struct TableRow:           # 40 bytes
    char name[TABLE_NAME_BYTES]
    uint32_t value
    uint8_t size
    uint8_t flags
    uint16_t reserved

cdef struct ImageClass:         # 32 bytes
    uint64_t burn_not           # bit per burn rule: never for it
    uint64_t burn_ask           # its not_for_program says
    uint64_t favourites         # favourites that its category is or is under
    uint32_t first              # in CLASS_RULES
    uint16_t count
    uint16_t flags

cdef struct ImageZone:          # 48 bytes
    char name[40]
    uint32_t first              # in ZONE_SPANS
    uint32_t count

cdef struct ImageName:          # 32 bytes
    char name[32]

cdef struct ImageText:          # 8 bytes
    uint32_t offset             # in TEXTS
    uint32_t size

cdef struct ImageExperiment:    # 48 bytes
    char name[32]
    uint64_t hash
    uint32_t first              # in VARIANTS
    uint16_t count
    uint16_t control

cdef struct ImageVariant:       # 40 bytes
    char name[32]
    uint32_t edge               # buckets below it, and not below the one before
    uint32_t reserved

cdef struct ImageTier:          # 48 bytes
    char name[32]
    uint32_t program            # over thresholds; 0: the lowest
    uint32_t first              # in THRESHOLDS
    uint16_t count
    uint8_t reserved[6]

cdef struct ImageThreshold:     # 16 bytes
    int64_t at_least
    uint16_t window
    uint8_t measure
    uint8_t reserved[5]

cdef struct ImageBurn:          # 136 bytes
    char name[64]
    int64_t min
    int64_t max                 # INT64_MAX: none
    int64_t step
    int64_t money_at_least
    int64_t money_at_least_per_line
    int64_t pays                # points * pays / pays_per are minor units
    int64_t pays_per
    uint32_t share              # ppm
    uint32_t when_program
    uint32_t not_for_program
    uint16_t wallet
    uint16_t reserved

cdef struct StoreClass:         # 8 bytes
    uint16_t zone
    uint8_t reserved[2]
    uint32_t region             # fingerprint of its name; 0: it has none, or no counter asks

cdef struct ImageFunder:        # 72 bytes
    char name[64]
    uint16_t number
    uint8_t reserved[6]

cdef struct ImageVelocity:      # 48 bytes; a counter
    uint32_t id                 # the same in all versions of a programme; its low 3 bits are `window`
    uint32_t window_s           # sliding: its length; else 0
    uint16_t of
    uint16_t keys
    uint8_t window              # SPEED_DAY..SPEED_SLIDING
    uint8_t measure
    uint8_t flags
    uint8_t reserved[17]
    uint64_t segments[2]        # bits of places in SEGMENTS; 0: all members

cdef struct ImageLimit:         # 144 bytes; what it counts stands here, too
    char name[64]
    int64_t at_most
    uint64_t segments[2]
    uint32_t counter            # index + 1 in VELOCITY; 0: the command alone
    uint32_t mean_sum           # index + 1, both or none; then at_most is thousandths of the mean
    uint32_t mean_count
    uint32_t mean_after         # so many receipts before there is a mean
    uint32_t rung_s         # how long; 0: without end
    uint16_t keys
    uint16_t of
    uint8_t measure
    uint8_t action
    uint8_t rung
    uint8_t window
    uint8_t reserved[28]

cdef struct Table:              # names to rows, by buckets of a hash
    const TableRow* rows
    const uint32_t* starts      # of bucket i and, behind it, of the next
    uint32_t count
    uint32_t bits               # buckets: 1 << bits

cdef struct Program2:
    const uint8_t* image        # the bytes that the pointers below point into; must outlive the struct
    uint32_t image_size
    uint32_t version            # from 1, counted by the journal; set by the core
    uint32_t wallet_count
    WalletDefinition wallets[WALLETS_MAX]
    const ImageHeader2* header
    uint32_t rule_count
    uint32_t words              # of a bitset over the rules, from 1
    uint32_t counts[SECTION2_COUNT]
    uint32_t home_zone          # the programme's
    const ImageWallet2* image_wallets
    bint any_slides             # points of some wallet live by inactivity
    const ImageRule* rules
    const char* rule_names
    const ImageCampaign* campaigns
    const ImageCap* caps
    const uint16_t* targets
    const uint32_t* programs
    const ImageAtom* atoms
    const uint64_t* may
    const MayIndex* may_index
    const uint32_t* minute_cuts
    const int64_t* date_cuts
    const ImageClass* classes
    const uint16_t* class_rules
    const uint64_t* class_bits
    const uint32_t* unknown_classes
    const ImageZone* zones
    const ZoneSpan* zone_spans
    const ImageName* tenders
    const ImageName* channels
    const ImageName* entitlements
    const ImageExperiment* experiments
    const ImageVariant* variants
    const ImageTier* tiers
    const ImageThreshold* thresholds
    const ImageBurn* burn
    const uint32_t* numbers
    const uint16_t* rolling
    const StoreClass* store_classes
    const ImageVelocity* velocity   # counts[SECTION2_VELOCITY] of them
    const ImageLimit* limits        # counts[SECTION2_LIMITS], in the order in which they decide
    Table articles
    Table category_codes
    Table stores
    Table promo_codes
    uint64_t kinds[RULE_KIND_COUNT][RULE_WORDS_MAX]     # made from the rules when the image is loaded
    uint64_t all_lines[RULE_WORDS_MAX]
    uint64_t stacking[RULE_WORDS_MAX]
    uint64_t asks[RULE_WORDS_MAX]                       # a when_program


# --- reading ------------------------------------------------------------------------------------------------------------

cdef inline const TableRow* table_find(const Table* table, const uint8_t* name, uint32_t size, uint64_t hash) noexcept nogil:
    # The row of a name with this name_hash; NULL: none.
    cdef const TableRow* row
    cdef const TableRow* end
    cdef uint32_t bucket
    if table.count == 0 or size > TABLE_NAME_BYTES:
        return NULL
    bucket = <uint32_t>(hash >> (64 - table.bits)) if table.bits > 0 else 0
    row = table.rows + table.starts[bucket]
    end = table.rows + table.starts[bucket + 1]
    while row < end:
        if row.size == size and memcmp(row.name, name, size) == 0:
            return row
        row += 1
    return NULL


cdef inline const TableRow* table_find_slice(const Table* table, const Slice* name) noexcept nogil:
    return table_find(table, name.data, name.size, name_hash(name.data, name.size)) if table.count > 0 else NULL


cdef inline int32_t name_find(const ImageName* names, uint32_t count, const Slice* name) noexcept nogil:
    # The place of a name in a short list, or -1.
    cdef uint32_t i
    if 0 < name.size <= 32:
        for i in range(count):
            if memcmp(names[i].name, name.data, name.size) == 0 and (name.size == 32 or names[i].name[name.size] == 0):
                return <int32_t>i
    return -1


cdef inline const ZoneSpan* zone_span_at(const Program2* p, uint32_t zone, int64_t time_us) noexcept nogil:
    # The span of a zone in force at a moment. The first one also covers everything before it.
    cdef const ZoneSpan* spans = p.zone_spans + p.zones[zone].first
    cdef uint32_t low = 0, high = p.zones[zone].count, middle
    while high - low > 1:
        middle = (low + high) >> 1
        if spans[middle].start_us <= time_us:
            low = middle
        else:
            high = middle
    return &spans[low]


cdef inline int32_t program2_day(const Program2* p, int64_t time_us) noexcept nogil:
    # Days since 1970 in the programme's zone. Never goes back as time goes on: where clocks are set back over midnight, the new day stays.
    cdef const ZoneSpan* span = zone_span_at(p, p.home_zone, time_us)
    return <int32_t>max_i64(div_floor(time_us + span.offset_s * <int64_t>1000000, <int64_t>86400000000), span.first_day)


# --- loading ------------------------------------------------------------------------------------------------------------

cdef inline bint zeros(const uint8_t* data, uint32_t size) noexcept nogil:
    cdef uint32_t i
    for i in range(size):
        if data[i] != 0:
            return False
    return True


cdef inline uint32_t record_bytes_of(uint32_t kind, uint32_t words) noexcept nogil:
    if kind == SECTION2_MAY or kind == SECTION2_RULE_SETS:
        return words * 8
    if kind == SECTION2_WALLETS:
        return sizeof(ImageWallet2)
    if kind == SECTION2_RULES:
        return sizeof(ImageRule)
    if kind == SECTION2_RULE_NAMES:
        return 64
    if kind == SECTION2_CAMPAIGNS:
        return sizeof(ImageCampaign)
    if kind == SECTION2_CAPS or kind == SECTION2_ATOMS:
        return 24
    if kind == SECTION2_TARGETS or kind == SECTION2_CLASS_RULES or kind == SECTION2_ROLLING:
        return 2
    if kind == SECTION2_MAY_INDEX or kind == SECTION2_ZONE_SPANS or kind == SECTION2_THRESHOLDS:
        return 16
    if kind == SECTION2_DATE_CUTS or kind == SECTION2_CLASS_BITS or kind == SECTION2_STORE_CLASSES or kind == SECTION2_FAVOURITES:
        return 8
    if kind == SECTION2_ARTICLES or kind == SECTION2_CATEGORY_CODES or kind == SECTION2_STORES or kind == SECTION2_PROMO_CODES:
        return sizeof(TableRow)
    if kind == SECTION2_CLASSES or kind == SECTION2_TENDERS or kind == SECTION2_SEGMENTS or kind == SECTION2_CHANNELS:
        return 32
    if kind == SECTION2_ENTITLEMENTS:
        return 32
    if kind == SECTION2_ZONES or kind == SECTION2_EXPERIMENTS or kind == SECTION2_TIERS:
        return 48
    if kind == SECTION2_VARIANTS:
        return sizeof(ImageVariant)
    if kind == SECTION2_BURN:
        return sizeof(ImageBurn)
    if kind == SECTION2_FUNDERS:
        return sizeof(ImageFunder)
    if kind == SECTION2_VELOCITY:
        return sizeof(ImageVelocity)
    if kind == SECTION2_LIMITS:
        return sizeof(ImageLimit)
    return 1 if kind == SECTION2_TEXTS else 4


cdef inline uint32_t count_max_of(uint32_t kind, uint32_t rule_count) noexcept nogil:
    # The most records of sections whose number is bounded by more than the image's size.
    if kind == SECTION2_RULES or kind == SECTION2_RULE_NAMES:
        return rule_count
    if kind == SECTION2_WALLETS or kind == SECTION2_TIERS or kind == SECTION2_EXPERIMENTS:
        return 16
    if kind == SECTION2_CAMPAIGNS:
        return CAMPAIGNS_MAX
    if kind == SECTION2_CAPS:
        return rule_count * CAPS_PER_RULE_MAX
    if kind == SECTION2_TENDERS or kind == SECTION2_CHANNELS:
        return NAMES_MAX
    if kind == SECTION2_SEGMENTS:
        return SEGMENTS_MAX
    if kind == SECTION2_FAVOURITES or kind == SECTION2_ENTITLEMENTS or kind == SECTION2_BURN or kind == SECTION2_ROLLING:
        return 64
    if kind == SECTION2_MINUTE_CUTS or kind == SECTION2_DATE_CUTS:
        return CUTS_MAX
    if kind == SECTION2_VELOCITY:
        return VELOCITY_COUNTERS_MAX
    if kind == SECTION2_LIMITS:
        return VELOCITY_LIMITS_MAX
    return IMAGE2_BYTES_MAX


cdef inline bint image_names_hold(const uint8_t* at, uint32_t count, uint32_t record_bytes, uint32_t size) noexcept nogil:
    # Whether each record begins with a padded name.
    cdef uint32_t i
    for i in range(count):
        if not image_padded(<const char*>(at + i * <uint64_t>record_bytes), size):
            return False
    return True


cdef inline bint image_table_holds(const Program2* p, Table* table, const uint8_t** sections, uint32_t kind, uint32_t starts_kind,
                                   uint32_t values, uint32_t named_values) noexcept nogil:
    # Buckets, names, hashes and values of a table. values, named_values: what a value is below, without and with ROW_NAMED_ONLY (0: never).
    cdef const TableRow* row
    cdef uint32_t i, j, buckets
    cdef uint64_t hash
    table.rows = <const TableRow*>sections[kind]
    table.starts = <const uint32_t*>sections[starts_kind]
    table.count = p.counts[kind]
    if p.counts[starts_kind] < 2:
        return False
    buckets = p.counts[starts_kind] - 1
    if buckets & (buckets - 1):
        return False
    table.bits = first_bit(buckets)
    if table.starts[0] != 0 or table.starts[buckets] != table.count:
        return False
    for i in range(buckets):
        if table.starts[i] > table.starts[i + 1] or table.starts[i + 1] > table.count:
            return False
        for j in range(table.starts[i], table.starts[i + 1]):
            row = &table.rows[j]
            if row.size < 1 or row.size > TABLE_NAME_BYTES or row.flags & ~ROW_NAMED_ONLY or row.reserved != 0:
                return False
            if not zeros(<const uint8_t*>row.name + row.size, TABLE_NAME_BYTES - row.size):
                return False
            if row.value >= (named_values if row.flags & ROW_NAMED_ONLY else values):
                return False
            hash = name_hash(<const uint8_t*>row.name, row.size)
            if (<uint32_t>(hash >> (64 - table.bits)) if table.bits > 0 else 0) != i:
                return False
    return True


cdef inline bint image_tables_hold(Program2* p, const uint8_t** sections) noexcept nogil:
    cdef const uint32_t* counts = p.counts
    cdef uint32_t columns = p.header.unknown_columns, rows = <uint32_t>div_floor(counts[SECTION2_UNKNOWN_CLASSES], columns)
    return (image_table_holds(p, &p.articles, sections, SECTION2_ARTICLES, SECTION2_ARTICLE_STARTS, counts[SECTION2_CLASSES], rows)
            and image_table_holds(p, &p.category_codes, sections, SECTION2_CATEGORY_CODES, SECTION2_CATEGORY_CODE_STARTS, columns, 0)
            and image_table_holds(p, &p.stores, sections, SECTION2_STORES, SECTION2_STORE_STARTS, counts[SECTION2_STORE_CLASSES], 0)
            and image_table_holds(p, &p.promo_codes, sections, SECTION2_PROMO_CODES, SECTION2_PROMO_CODE_STARTS,
                                  counts[SECTION2_PROMO_CODES], 0))


cdef enum:                          # what a program may ask
    ASK_RECEIPT_ATOMS = 1
    ASK_LATE_ATOMS = 2
    ASK_LINE_ATOMS = 4
    ASK_THRESHOLDS = 8

cdef inline bint image_program_holds(const Program2* p, uint32_t at, uint32_t ask) noexcept nogil:
    # Whether a program ends, jumps forward only and not behind its end, and asks nothing but what is allowed. 0: none.
    cdef uint32_t word, op, argument, end = at, step
    cdef uint8_t code
    if at == 0:
        return True
    for step in range(<uint32_t>PROGRAM_WORDS_MAX):
        if at >= p.counts[SECTION2_PROGRAMS]:
            return False
        word = p.programs[at]
        op = word & 255
        argument = word >> 8
        if op == OP_DONE:
            if argument != 0:
                return False
            if at >= end:
                return True
        elif op == OP_NOT:
            if argument != 0:
                return False
        elif op == OP_TEST:
            if ask & ASK_THRESHOLDS:
                if argument >= p.counts[SECTION2_THRESHOLDS]:
                    return False
            else:
                if argument >= p.counts[SECTION2_ATOMS]:
                    return False
                code = p.atoms[argument].code
                if code >= 32:
                    if not ask & ASK_LINE_ATOMS:
                        return False
                elif code == ATOM_LINES_TOTAL or code == ATOM_LINES_QUANTITY:
                    if not ask & ASK_LATE_ATOMS:
                        return False
                elif not ask & ASK_RECEIPT_ATOMS:
                    return False
        elif op == OP_JUMP_IF_TRUE or op == OP_JUMP_IF_FALSE:
            if argument > PROGRAM_WORDS_MAX:
                return False
            if at + 1 + argument > end:
                end = at + 1 + argument
        else:
            return False
        at += 1
    return False


cdef inline bint image_list_holds(const Program2* p, uint32_t offset, uint32_t count, uint32_t below) noexcept nogil:
    # Sorted numbers, no two alike, each below a bound.
    cdef uint32_t i
    if offset > p.counts[SECTION2_NUMBERS] or count > p.counts[SECTION2_NUMBERS] - offset:
        return False
    for i in range(count):
        if p.numbers[offset + i] >= below or (i > 0 and p.numbers[offset + i] <= p.numbers[offset + i - 1]):
            return False
    return True


cdef inline bint image_wallets_hold(Program2* p) noexcept nogil:
    cdef const ImageWallet2* wallet
    cdef uint32_t i, j
    for i in range(p.wallet_count):
        wallet = &p.image_wallets[i]
        if not image_padded(wallet.name, 32) or wallet.scale > 9 or wallet.flags != 0:
            return False
        if wallet.floor < 0 or wallet.floor > WALLET_POINTS_MAX or wallet.sliding_days > SPAN_DAYS_MAX:
            return False
        p.any_slides = p.any_slides or wallet.sliding_days != 0
        for j in range(i):
            if memcmp(wallet.name, p.image_wallets[j].name, 32) == 0:
                return False
        memcpy(p.wallets[i].name, wallet.name, 32)
        while p.wallets[i].name[p.wallets[i].name_size] != 0:   # the struct's name has one zero more
            p.wallets[i].name_size += 1
        p.wallets[i].scale = wallet.scale
    return p.wallet_count > 0


cdef inline bint image_atoms_hold(const Program2* p) noexcept nogil:
    cdef const ImageAtom* atom
    cdef uint32_t i, below
    for i in range(p.counts[SECTION2_ATOMS]):
        atom = &p.atoms[i]
        if atom.reserved != 0 or not (1 <= atom.code < ATOM_RECEIPT_END or ATOM_CLASS_BIT <= atom.code < ATOM_LINE_END):
            return False
        below = NO_RECORD
        if atom.code == ATOM_STORE:
            below = p.counts[SECTION2_STORE_CLASSES]
        elif atom.code == ATOM_PROMO_CODE:
            below = p.counts[SECTION2_PROMO_CODES]
        elif atom.code != ATOM_DATES and atom.code != ATOM_NTH:
            if atom.list_offset != 0 or atom.list_count != 0:
                return False
        if not image_list_holds(p, atom.list_offset, atom.list_count, below):
            return False
        if atom.code == ATOM_VARIANT and not 0 <= atom.low < p.counts[SECTION2_EXPERIMENTS]:
            return False
        if atom.code == ATOM_EVERY_NTH and atom.low < 1:
            return False
        if atom.code == ATOM_BIRTHDAY and not (0 <= atom.low <= 366 and 0 <= atom.high <= 366):
            return False
        if atom.code == ATOM_CLASS_BIT and not 0 <= atom.low < <int64_t>p.header.class_words * 64:
            return False
    return True


cdef inline bint image_rule_holds(const Program2* p, const ImageRule* rule) noexcept nogil:
    # Fields of one rule are in their bounds, and fit each other.
    cdef const ImageCap* cap
    cdef uint32_t i, j, counters = p.counts[SECTION2_CAPS], targets = p.counts[SECTION2_TARGETS]
    cdef bint points = rule.kind == RULE_POINTS
    if rule.kind < RULE_DISCOUNT_LINE or rule.kind > RULE_ENTITLE or not zeros(rule.reserved, 11) or rule.flags & ~RULE_FLAGS:
        return False
    if rule.per > PER_LINE or rule.round > ROUND_CEIL or rule.life_unit > LIFE2_INACTIVITY or rule.life_end > LIFE2_END_YEAR:
        return False
    if rule.kind == RULE_DISCOUNT_LINE and rule.per != PER_LINE or rule.kind == RULE_DISCOUNT_RECEIPT and rule.per != PER_RECEIPT:
        return False
    if rule.form == FORM_STEP or rule.form == FORM_QUANTITY_STEP:
        if not points or rule.a < 1 or rule.a > AMOUNT_MINOR_MAX or rule.b < 1 or rule.b > POINTS_PER_STEP_MAX:
            return False
    elif rule.form == FORM_FIXED:
        if rule.kind > RULE_POINTS or rule.b < 1 or rule.b > (POINTS_PER_STEP_MAX if points else AMOUNT_MINOR_MAX):
            return False
    elif rule.form == FORM_PERCENT:
        if rule.kind > RULE_ADD_PERCENT or rule.b < 1 or rule.b > 10000000:
            return False
    elif rule.form == FORM_TIMES:
        if rule.kind != RULE_TIMES or rule.b < 1 or rule.b > 10000000:
            return False
    elif rule.form != FORM_NOTHING or rule.kind != RULE_ENTITLE or not 0 <= rule.b < p.counts[SECTION2_ENTITLEMENTS]:
        return False
    if (rule.kind == RULE_ADD_PERCENT) and rule.form != FORM_PERCENT or rule.kind == RULE_TIMES and rule.form != FORM_TIMES:
        return False
    if rule.rate_factor < 1 or rule.rate_factor > 1000000000 or rule.rate_divisor < 1 or rule.rate_divisor > <int64_t>1000000000000000000:
        return False
    if rule.wallet >= p.wallet_count or rule.campaign > p.counts[SECTION2_CAMPAIGNS] or rule.group > p.rule_count or rule.funder > FUNDERS_MAX:
        return False
    if rule.life_unit == LIFE2_INACTIVITY and p.image_wallets[rule.wallet].sliding_days == 0:
        return False
    if rule.available_after > SPAN_DAYS_MAX or rule.life_number > SPAN_DAYS_MAX or rule.until_day < 0 or rule.until_day > 100000:
        return False
    if rule.cap_count > CAPS_PER_RULE_MAX or rule.first_cap > counters or rule.cap_count > counters - rule.first_cap:
        return False
    for i in range(rule.cap_count):
        cap = &p.caps[rule.first_cap + i]
        if cap.per == CAP_PER_BIRTHDAY and cap.list_count == 0:
            return False
    if rule.first_target > targets or rule.target_count > targets - rule.first_target:
        return False
    for i in range(rule.target_count):
        j = p.targets[rule.first_target + i]
        if j >= p.rule_count or (i > 0 and j <= p.targets[rule.first_target + i - 1]) or p.rules[j].wallet != rule.wallet:
            return False
        if rule.kind == RULE_ADD_PERCENT:
            if p.rules[j].kind != RULE_POINTS or p.rules[j].form != FORM_PERCENT:
                return False
            if p.rules[j].rate_factor != rule.rate_factor or p.rules[j].rate_divisor != rule.rate_divisor:
                return False
        if rule.kind == RULE_TIMES and p.rules[j].kind != RULE_POINTS and p.rules[j].kind != RULE_ADD_PERCENT:
            return False
    if rule.target_count > 0 and rule.kind != RULE_ADD_PERCENT and rule.kind != RULE_TIMES:
        return False
    return (image_program_holds(p, rule.when_program, ASK_RECEIPT_ATOMS)
            and image_program_holds(p, rule.lines_program, ASK_RECEIPT_ATOMS | ASK_LINE_ATOMS)
            and image_program_holds(p, rule.late_program, ASK_RECEIPT_ATOMS | ASK_LATE_ATOMS))


cdef inline bint image_caps_hold(const Program2* p) noexcept nogil:
    cdef const ImageCap* cap
    cdef const ImageCampaign* campaign
    cdef uint32_t i, j, at
    for i in range(p.counts[SECTION2_CAPS]):
        cap = &p.caps[i]
        if cap.limit < 1 or cap.limit > WALLET_POINTS_MAX or cap.counter < COUNTER_MIN or cap.reserved != 0:
            return False
        if cap.per > CAP_PER_BIRTHDAY or cap.measure > CAP_USES or (cap.per == CAP_PER_RECEIPT and cap.measure == CAP_USES):
            return False
        if cap.per != CAP_PER_BIRTHDAY and (cap.list_offset != 0 or cap.list_count != 0):
            return False
        if cap.list_offset > p.counts[SECTION2_NUMBERS] or cap.list_count > p.counts[SECTION2_NUMBERS] - cap.list_offset:
            return False
        for j in range(cap.list_count):
            at = p.numbers[cap.list_offset + j]
            if at >= p.counts[SECTION2_ATOMS] or p.atoms[at].code != ATOM_BIRTHDAY:
                return False
    for i in range(p.counts[SECTION2_CAMPAIGNS]):
        campaign = &p.campaigns[i]
        if campaign.points < 0 or campaign.uses < 0 or campaign.flags & ~CAMPAIGN_FLAGS or campaign.wallet >= p.wallet_count:
            return False
        if not image_padded(campaign.name, 64):
            return False
    return True


cdef inline bint image_may_holds(const Program2* p) noexcept nogil:
    # Dimensions have a record for each value, and no bit is behind the last rule.
    cdef const MayIndex* index
    cdef uint32_t wanted[DIM_COUNT]
    cdef uint32_t i, count = p.counts[SECTION2_MAY]
    cdef uint64_t beyond = 0
    if p.rule_count < p.words * 64:
        beyond = ~(bit_of(p.rule_count & 63) - 1) if p.rule_count & 63 else ~<uint64_t>0
    for i in range(count):
        if p.may[i * <uint64_t>p.words + p.words - 1] & beyond:
            return False
    if p.counts[SECTION2_MAY_INDEX] != DIM_COUNT:
        return False
    wanted[DIM_STORE] = p.counts[SECTION2_STORE_CLASSES]
    wanted[DIM_TIER] = p.counts[SECTION2_TIERS]
    wanted[DIM_CHANNEL] = p.counts[SECTION2_CHANNELS] + 1
    wanted[DIM_WEEKDAY] = 7
    wanted[DIM_MINUTE] = p.counts[SECTION2_MINUTE_CUTS] + 1
    wanted[DIM_DATE] = p.counts[SECTION2_DATE_CUTS] + 1
    wanted[DIM_SEGMENT] = p.counts[SECTION2_SEGMENTS]
    wanted[DIM_TENDER] = p.counts[SECTION2_TENDERS]
    wanted[DIM_PROMO_CODE] = p.counts[SECTION2_PROMO_CODES]
    wanted[DIM_VARIANT] = p.counts[SECTION2_VARIANTS]
    wanted[DIM_RECEIPT_NUMBER] = NUMBERED_RECEIPTS + 1
    for i in range(<uint32_t>DIM_COUNT):
        index = &p.may_index[i]
        if index.reserved != 0 or index.first > count or index.count > count - index.first:
            return False
        if index.count != 0 and index.count != wanted[i]:
            return False
        if index.free != NO_RECORD:
            if i != DIM_SEGMENT and i != DIM_TENDER and i != DIM_PROMO_CODE or index.free >= count or index.count != wanted[i]:
                return False
    for i in range(1, p.counts[SECTION2_MINUTE_CUTS]):
        if p.minute_cuts[i] <= p.minute_cuts[i - 1]:
            return False
    for i in range(1, p.counts[SECTION2_DATE_CUTS]):
        if p.date_cuts[i] <= p.date_cuts[i - 1]:
            return False
    return True


cdef inline bint image_classes_hold(const Program2* p) noexcept nogil:
    cdef const ImageClass* row
    cdef uint32_t i, j, classes = p.counts[SECTION2_CLASSES], rules = p.counts[SECTION2_CLASS_RULES], columns = p.header.unknown_columns
    cdef uint64_t burn = p.counts[SECTION2_BURN], favourites = p.counts[SECTION2_FAVOURITES]
    cdef uint64_t no_burn = 0 if burn == 64 else ~(bit_of(<uint32_t>burn) - 1)
    cdef uint64_t no_favourite = 0 if favourites == 64 else ~(bit_of(<uint32_t>favourites) - 1)
    if classes == 0 or p.header.class_words > CLASS_WORDS_MAX or p.counts[SECTION2_CLASS_BITS] != classes * <uint64_t>p.header.class_words:
        return False
    for i in range(classes):
        row = &p.classes[i]
        if row.flags & ~CLASS_FLAGS or (row.burn_not | row.burn_ask) & no_burn or row.favourites & no_favourite:
            return False
        if row.count > CLASS_RULES_MAX or row.first > rules or row.count > rules - row.first:
            return False
        for j in range(row.count):
            if p.class_rules[row.first + j] >= p.rule_count or (j > 0 and p.class_rules[row.first + j] <= p.class_rules[row.first + j - 1]):
                return False
    if columns < 1 or p.counts[SECTION2_UNKNOWN_CLASSES] < columns:
        return False
    if div_floor(p.counts[SECTION2_UNKNOWN_CLASSES], columns) * columns != p.counts[SECTION2_UNKNOWN_CLASSES]:
        return False
    for i in range(p.counts[SECTION2_UNKNOWN_CLASSES]):
        if p.unknown_classes[i] >= classes:
            return False
    return image_program_holds(p, p.header.no_points_program, ASK_LINE_ATOMS)


cdef inline bint image_places_hold(Program2* p) noexcept nogil:
    # Zones, stores.
    cdef const ImageZone* zone
    cdef const ZoneSpan* spans
    cdef uint32_t i, j
    if p.counts[SECTION2_ZONES] < 1 or p.counts[SECTION2_STORE_CLASSES] < 1:
        return False
    for i in range(p.counts[SECTION2_ZONES]):
        zone = &p.zones[i]
        if not image_padded(zone.name, 40) or zone.count < 1 or zone.first > p.counts[SECTION2_ZONE_SPANS]:
            return False
        if zone.count > p.counts[SECTION2_ZONE_SPANS] - zone.first:
            return False
        spans = p.zone_spans + zone.first
        for j in range(zone.count):
            if spans[j].offset_s < -86400 or spans[j].offset_s > 86400 or spans[j].first_day < 0 or spans[j].first_day > 100000:
                return False
            if spans[j].start_us < 0:
                return False
            if j > 0 and (spans[j].start_us <= spans[j - 1].start_us or spans[j].first_day < spans[j - 1].first_day):
                return False
    p.home_zone = 0
    if memcmp(p.zones[0].name, p.header.zone, 40) != 0:
        return False
    for i in range(p.counts[SECTION2_STORE_CLASSES]):
        if p.store_classes[i].zone >= p.counts[SECTION2_ZONES] or not zeros(p.store_classes[i].reserved, 2):
            return False
    return True


cdef inline bint image_members_hold(const Program2* p) noexcept nogil:
    # Experiments, tiers, ways to burn.
    cdef const ImageExperiment* experiment
    cdef const ImageTier* tier
    cdef const ImageThreshold* threshold
    cdef const ImageBurn* burn
    cdef uint32_t i, j, edge, variants = p.counts[SECTION2_VARIANTS], thresholds = p.counts[SECTION2_THRESHOLDS]
    for i in range(p.counts[SECTION2_EXPERIMENTS]):
        experiment = &p.experiments[i]
        if experiment.count < 1 or experiment.first > variants or experiment.count > variants - experiment.first:
            return False
        if experiment.control >= experiment.count or experiment.count > 64:
            return False
        edge = 0
        for j in range(experiment.first, experiment.first + experiment.count):
            if p.variants[j].edge < edge or p.variants[j].reserved != 0:
                return False
            edge = p.variants[j].edge
        if edge != 10000:
            return False
    for i in range(p.counts[SECTION2_ROLLING]):
        if p.rolling[i] < 1 or p.rolling[i] > ROLLING_DAYS_MAX:
            return False
    for i in range(thresholds):
        threshold = &p.thresholds[i]
        if threshold.at_least < 1 or threshold.measure > MEASURE_SPENT or not zeros(threshold.reserved, 5):
            return False
        if threshold.window < WINDOW_LIFETIME or WINDOW_ANNIVERSARY < threshold.window < WINDOW_ROLLING:
            return False
        if threshold.window >= WINDOW_ROLLING + p.counts[SECTION2_ROLLING]:
            return False
    for i in range(p.counts[SECTION2_TIERS]):
        tier = &p.tiers[i]
        if (tier.program == 0) != (i == 0) or not zeros(tier.reserved, 6):
            return False
        if tier.count > REACH_COUNT_MAX:
            return False
        if tier.first > thresholds or tier.count > thresholds - tier.first or not image_program_holds(p, tier.program, ASK_THRESHOLDS):
            return False
    for i in range(p.counts[SECTION2_BURN]):
        burn = &p.burn[i]
        if burn.min < 0 or burn.max < 1 or burn.step < 1 or burn.money_at_least < 0 or burn.money_at_least_per_line < 0:
            return False
        if burn.pays < 1 or burn.pays_per < 1 or burn.share > 1000000 or burn.wallet >= p.wallet_count or burn.reserved != 0:
            return False
        if not image_program_holds(p, burn.when_program, ASK_RECEIPT_ATOMS):
            return False
        if not image_program_holds(p, burn.not_for_program, ASK_LINE_ATOMS):
            return False
    return True


cdef inline bint counts_different(uint32_t measure) noexcept nogil:
    # How many different ones there were, where other measures add up.
    return measure == COUNT_MEMBERS or measure == COUNT_STORES or measure == COUNT_REGIONS


cdef inline bint image_counts_hold(const Program2* p, uint32_t of, uint32_t keys, uint32_t measure, uint32_t window,
                                   const uint64_t* segments) noexcept nogil:
    # Whether what a counter or a limit says it counts is something that the core can count (docs/rules.md section 13).
    cdef uint32_t known = p.counts[SECTION2_SEGMENTS]
    if of == 0 or of & ~OF_ALL or (of & OF_LOOK_UPS and of & ~OF_LOOK_UPS):
        return False
    if keys == 0 or keys & ~KEY_ALL or bit_count(keys) > VELOCITY_KEYS_MAX or keys == KEY_HOUR:
        return False
    if window > SPEED_SLIDING or measure < COUNT_COUNT or measure > COUNT_REGIONS:
        return False
    if known < 64 and (segments[0] & ~(bit_of(known) - 1) or segments[1]):
        return False
    if 64 <= known < 128 and segments[1] & ~(bit_of(known) - 1):
        return False
    if of & OF_LOOK_UPS and (measure != COUNT_COUNT or keys & (KEY_BASKET | KEY_HOUR) or window == SPEED_RECEIPT):
        return False
    if of & OF_UNKNOWN_BALANCE and (keys & KEY_MEMBER or segments[0] or segments[1]):
        return False
    if of & OF_ENROLL and (keys & (KEY_MEMBER | KEY_IDENTIFIER) or segments[0] or segments[1]):
        return False
    if of != OF_EARN and (keys & KEY_BASKET or (measure == COUNT_MONEY and of != OF_RETURN) or measure == COUNT_QUANTITY):
        return False
    if of & OF_RETURN and keys & KEY_IDENTIFIER:
        return False
    if measure == COUNT_POINTS and of & ~(OF_EARN | OF_BURN | OF_RESERVE | OF_RETURN):
        return False
    if measure == COUNT_QUANTITY and window != SPEED_RECEIPT:
        return False
    if counts_different(measure):
        if window == SPEED_RECEIPT:
            return False
        if keys & (KEY_MEMBER | KEY_IDENTIFIER if measure == COUNT_MEMBERS else KEY_STORE | KEY_TILL):
            return False
    return True


cdef inline bint image_counters_hold(const Program2* p) noexcept nogil:
    cdef const ImageVelocity* counter
    cdef uint32_t i, j
    for i in range(p.counts[SECTION2_VELOCITY]):
        counter = &p.velocity[i]
        if not image_counts_hold(p, counter.of, counter.keys, counter.measure, counter.window, counter.segments):
            return False
        if counter.window == SPEED_RECEIPT or counter.id & 7 != counter.window or not zeros(counter.reserved, 17):
            return False
        if counter.window == SPEED_SLIDING:
            if counter.window_s < 60 or counter.window_s > 86400 or div_floor(counter.window_s, 12) * 12 != counter.window_s:
                return False
        elif counter.window_s != 0:
            return False
        if counter.flags & VELOCITY_GIVES_BACK:
            if (counter.flags != VELOCITY_GIVES_BACK or counter.of & ~(OF_EARN | OF_BURN | OF_RESERVE) or counter.window == SPEED_SLIDING
                    or counter.measure > COUNT_MONEY):
                return False
        elif counter.flags != (VELOCITY_VOLATILE if counter.of & OF_LOOK_UPS else 0):
            return False
        for j in range(i):
            if p.velocity[j].id == counter.id:
                return False
    return True


cdef inline bint image_limit_counts(const Program2* p, const ImageLimit* limit, uint32_t counter, uint32_t measure,
                                    uint32_t window) noexcept nogil:
    # Whether a counter (index + 1) is there and counts for the limit's keys, in this measure and window.
    cdef const ImageVelocity* of
    if counter < 1 or counter > p.counts[SECTION2_VELOCITY]:
        return False
    of = &p.velocity[counter - 1]
    return (of.of == limit.of and of.keys == limit.keys and of.measure == measure and of.window == window
            and of.segments[0] == limit.segments[0] and of.segments[1] == limit.segments[1])


cdef inline bint image_bound_holds(const ImageLimit* limit) noexcept nogil:
    cdef int64_t most = WALLET_POINTS_MAX
    if limit.mean_sum != 0:
        return 1 <= limit.at_most <= VELOCITY_MEANS_MAX
    if limit.measure == COUNT_QUANTITY:
        most = QUANTITY_MILLI_MAX
    elif counts_different(limit.measure):
        most = VELOCITY_DIFFERENT_MAX if limit.window != SPEED_SLIDING else VELOCITY_RECENT_MAX
    elif limit.window == SPEED_SLIDING:
        most = 0xFFFFFFFF           # a sub-bucket saturates there
    return 0 <= limit.at_most <= most


cdef inline bint image_regions_hold(const Program2* p) noexcept nogil:
    # Where a counter asks for regions some store has one; where none asks, none is said. A store that is not known (class 0) has none.
    cdef bint asked = False, said = False
    cdef uint32_t i
    for i in range(p.counts[SECTION2_VELOCITY]):
        asked = asked or p.velocity[i].measure == COUNT_REGIONS
    for i in range(p.counts[SECTION2_STORE_CLASSES]):
        said = said or p.store_classes[i].region != 0
    return asked == said and p.store_classes[0].region == 0


cdef inline bint image_limits_hold(const Program2* p) noexcept nogil:
    cdef const ImageLimit* limit
    cdef uint32_t i, j
    if not (image_counters_hold(p) and image_regions_hold(p)):
        return False
    for i in range(p.counts[SECTION2_LIMITS]):
        limit = &p.limits[i]
        if not image_padded(limit.name, 64) or not zeros(limit.reserved, 28):
            return False
        for j in range(i):
            if memcmp(p.limits[j].name, limit.name, 64) == 0:
                return False
        if not image_counts_hold(p, limit.of, limit.keys, limit.measure, limit.window, limit.segments) or not image_bound_holds(limit):
            return False
        if (limit.counter == 0) != (limit.window == SPEED_RECEIPT):
            return False
        if limit.counter != 0 and not image_limit_counts(p, limit, limit.counter, limit.measure, limit.window):
            return False
        if limit.mean_sum == 0 and (limit.mean_count != 0 or limit.mean_after != 0):
            return False
        if limit.mean_sum != 0:
            if limit.window != SPEED_RECEIPT or limit.measure != COUNT_MONEY or limit.mean_after < 2 or limit.mean_after > 1000000:
                return False
            if not image_limit_counts(p, limit, limit.mean_sum, COUNT_MONEY, SPEED_EVER):
                return False
            if not image_limit_counts(p, limit, limit.mean_count, COUNT_COUNT, SPEED_EVER):
                return False
        if limit.action < LIMIT_SHADOW or limit.action > LIMIT_REVIEW:
            return False
        if limit.rung > RUNG_EXCLUDED or limit.rung_s > RUNG_S_MAX:
            return False
        if limit.rung == RUNG_NONE and limit.rung_s != 0:
            return False
        if limit.rung != RUNG_NONE and (limit.action == LIMIT_SHADOW or limit.of & OF_LOOK_UPS):
            return False
        if limit.of & OF_LOOK_UPS and limit.action > LIMIT_REFUSE:
            return False
        if limit.action == LIMIT_CHALLENGE and limit.of & ~(OF_BURN | OF_RESERVE):
            return False
        if (limit.action == LIMIT_REDUCE or limit.action == LIMIT_REVIEW) and limit.of != OF_EARN:
            return False
        if limit.action == LIMIT_REDUCE and limit.measure != COUNT_POINTS and limit.measure != COUNT_COUNT:
            return False
    return True


cdef inline bint image_texts_hold(const Program2* p, const uint8_t** sections) noexcept nogil:
    # What people read: padded names.
    cdef const ImageText* text = <const ImageText*>sections[SECTION2_FAVOURITES]
    cdef uint32_t i
    for i in range(p.counts[SECTION2_FAVOURITES]):
        if text[i].size < 1 or text[i].offset > p.counts[SECTION2_TEXTS] or text[i].size > p.counts[SECTION2_TEXTS] - text[i].offset:
            return False
    return (image_names_hold(sections[SECTION2_RULE_NAMES], p.counts[SECTION2_RULE_NAMES], 64, 64)
            and image_names_hold(sections[SECTION2_TENDERS], p.counts[SECTION2_TENDERS], 32, 32)
            and image_names_hold(sections[SECTION2_SEGMENTS], p.counts[SECTION2_SEGMENTS], 32, 32)
            and image_names_hold(sections[SECTION2_CHANNELS], p.counts[SECTION2_CHANNELS], 32, 32)
            and image_names_hold(sections[SECTION2_ENTITLEMENTS], p.counts[SECTION2_ENTITLEMENTS], 32, 32)
            and image_names_hold(sections[SECTION2_EXPERIMENTS], p.counts[SECTION2_EXPERIMENTS], sizeof(ImageExperiment), 32)
            and image_names_hold(sections[SECTION2_VARIANTS], p.counts[SECTION2_VARIANTS], sizeof(ImageVariant), 32)
            and image_names_hold(sections[SECTION2_TIERS], p.counts[SECTION2_TIERS], sizeof(ImageTier), 32)
            and image_names_hold(sections[SECTION2_BURN], p.counts[SECTION2_BURN], sizeof(ImageBurn), 64)
            and image_names_hold(sections[SECTION2_FUNDERS], p.counts[SECTION2_FUNDERS], sizeof(ImageFunder), 64))


cdef inline bint image_header_holds(const ImageHeader2* header) noexcept nogil:
    cdef uint32_t i
    if header.flags & ~IMAGE2_FLAGS or header.max_age_us < 0 or header.currency[3] != 0 or header.rule_count > IMAGE2_RULES_MAX:
        return False
    for i in range(3u):
        if not (c'A' <= header.currency[i] <= c'Z'):
            return False
    if not (image_padded(header.zone, 40) and image_padded(header.tzdata, 16) and image_padded(header.name, 40)):
        return False
    if header.largest_receipt < 0 or header.largest_receipt > AMOUNT_MINOR_MAX:
        return False
    if header.total_tolerance < 0 or header.total_tolerance > 100000 or header.currency_digits > 4:
        return False
    if header.grace_unit > GRACE_MONTHS or header.grace_number > SPAN_DAYS_MAX or header.downgrade > DOWNGRADE_ONE_STEP:
        return False
    return zeros(header.reserved, 21) and header.section_table == sizeof(ImageHeader2) and (
        header.section_count == SECTION2_COUNT_PLAIN - 1 or header.section_count == SECTION2_COUNT - 1)


cdef inline bint image_sections_hold(Program2* p, const uint8_t** sections) noexcept nogil:
    # Sections stand back to back, in the order of their kinds, padded with zeros. Those that are not there have no records.
    cdef const SectionPlace* place
    cdef const SectionPlace* places = <const SectionPlace*>(p.image + sizeof(ImageHeader2))
    cdef uint64_t at = sizeof(ImageHeader2) + p.header.section_count * <uint64_t>sizeof(SectionPlace), size
    cdef uint32_t kind
    for kind in range(<uint32_t>SECTION2_COUNT):
        sections[kind] = NULL
    if at > p.image_size:
        return False
    for kind in range(1u, p.header.section_count + 1):
        place = &places[kind - 1]
        if place.kind != kind or place.offset != at or place.record_bytes != record_bytes_of(kind, p.words):
            return False
        if place.count > count_max_of(kind, p.rule_count):
            return False
        size = place.count * <uint64_t>place.record_bytes
        if size > p.image_size - at or (-size & 7) > p.image_size - at - size:
            return False
        if not zeros(p.image + at + size, <uint32_t>(-size & 7)):
            return False
        p.counts[kind] = place.count
        sections[kind] = p.image + at
        at += size + (-size & 7)
    return at == p.image_size


cdef inline void image_point(Program2* p, const uint8_t** sections) noexcept nogil:
    p.wallet_count = p.counts[SECTION2_WALLETS]
    p.image_wallets = <const ImageWallet2*>sections[SECTION2_WALLETS]
    p.rules = <const ImageRule*>sections[SECTION2_RULES]
    p.rule_names = <const char*>sections[SECTION2_RULE_NAMES]
    p.campaigns = <const ImageCampaign*>sections[SECTION2_CAMPAIGNS]
    p.caps = <const ImageCap*>sections[SECTION2_CAPS]
    p.targets = <const uint16_t*>sections[SECTION2_TARGETS]
    p.programs = <const uint32_t*>sections[SECTION2_PROGRAMS]
    p.atoms = <const ImageAtom*>sections[SECTION2_ATOMS]
    p.may = <const uint64_t*>sections[SECTION2_MAY]
    p.may_index = <const MayIndex*>sections[SECTION2_MAY_INDEX]
    p.minute_cuts = <const uint32_t*>sections[SECTION2_MINUTE_CUTS]
    p.date_cuts = <const int64_t*>sections[SECTION2_DATE_CUTS]
    p.classes = <const ImageClass*>sections[SECTION2_CLASSES]
    p.class_rules = <const uint16_t*>sections[SECTION2_CLASS_RULES]
    p.class_bits = <const uint64_t*>sections[SECTION2_CLASS_BITS]
    p.unknown_classes = <const uint32_t*>sections[SECTION2_UNKNOWN_CLASSES]
    p.zones = <const ImageZone*>sections[SECTION2_ZONES]
    p.zone_spans = <const ZoneSpan*>sections[SECTION2_ZONE_SPANS]
    p.tenders = <const ImageName*>sections[SECTION2_TENDERS]
    p.channels = <const ImageName*>sections[SECTION2_CHANNELS]
    p.entitlements = <const ImageName*>sections[SECTION2_ENTITLEMENTS]
    p.experiments = <const ImageExperiment*>sections[SECTION2_EXPERIMENTS]
    p.variants = <const ImageVariant*>sections[SECTION2_VARIANTS]
    p.tiers = <const ImageTier*>sections[SECTION2_TIERS]
    p.thresholds = <const ImageThreshold*>sections[SECTION2_THRESHOLDS]
    p.burn = <const ImageBurn*>sections[SECTION2_BURN]
    p.numbers = <const uint32_t*>sections[SECTION2_NUMBERS]
    p.rolling = <const uint16_t*>sections[SECTION2_ROLLING]
    p.store_classes = <const StoreClass*>sections[SECTION2_STORE_CLASSES]
    p.velocity = <const ImageVelocity*>sections[SECTION2_VELOCITY]
    p.limits = <const ImageLimit*>sections[SECTION2_LIMITS]


cdef inline int image_load(Program2* p, const uint8_t* image, uint32_t size) noexcept nogil:
    # Checks every byte (also of a damaged image) and sets pointers into it. 0, or -1: not an image of version 2 that this build can run.
    # image: 8-byte aligned (copy it out of an entry first), unchanged as long as the programme is used. version: the caller's.
    cdef const ImageHeader2* header = <const ImageHeader2*>image
    cdef const uint8_t* sections[SECTION2_COUNT]
    cdef uint8_t digest[32]
    cdef const ImageRule* rule
    cdef uint32_t i
    memset(p, 0, sizeof(Program2))
    if size < sizeof(ImageHeader2) or size > IMAGE2_BYTES_MAX or <uintptr_t>image & 7:
        return -1
    if header.magic != IMAGE_MAGIC or header.version != IMAGE2_VERSION or header.size != size:
        return -1
    image_sha256(image + IMAGE_HASHED_FROM, size - IMAGE_HASHED_FROM, digest)
    if memcmp(digest, header.hash, 32) != 0 or not image_header_holds(header):
        return -1
    p.image = image
    p.image_size = size
    p.header = header
    p.rule_count = header.rule_count
    p.words = (p.rule_count + 63) >> 6 if p.rule_count > 0 else 1
    if not image_sections_hold(p, sections):
        return -1
    image_point(p, sections)
    if p.counts[SECTION2_RULES] != p.rule_count or p.counts[SECTION2_RULE_NAMES] != p.rule_count:
        return -1
    if p.counts[SECTION2_PROGRAMS] < 1 or p.programs[0] != 0:
        return -1
    if not (image_wallets_hold(p) and image_atoms_hold(p) and image_caps_hold(p) and image_may_holds(p) and image_classes_hold(p)
            and image_places_hold(p) and image_members_hold(p) and image_limits_hold(p)
            and image_texts_hold(p, sections)):
        return -1
    if not image_tables_hold(p, sections):
        return -1
    for i in range(p.rule_count):
        rule = &p.rules[i]
        if not image_rule_holds(p, rule):
            return -1
        p.kinds[rule.kind][i >> 6] |= bit_of(i)
        if rule.flags & RULE_ALL_LINES:
            p.all_lines[i >> 6] |= bit_of(i)
        if rule.flags & RULE_EXCLUSIVE or rule.group > 0:
            p.stacking[i >> 6] |= bit_of(i)
        if rule.when_program > 0:
            p.asks[i >> 6] |= bit_of(i)
    return 0
