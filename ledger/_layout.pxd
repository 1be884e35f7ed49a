# Structs and enums that every compiled room shares; each field with its unit and bound.
# Not for functions (leaves have their own .pxd) and not for what one room keeps to itself (its own .pxd).
# cimported by every room; the byte form of an entry is docs/journal-format.md and ledger/_entry.pxd.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from ledger._hash cimport Hash128
from ledger._limits cimport (
    IDENTIFIERS_PER_REQUEST_MAX, LINES_MAX, NEXT_EXPIRIES_MAX, PROMO_CODES_PER_RECEIPT_MAX, SEGMENTS_MAX, TENDERS_PER_RECEIPT_MAX, WALLETS_MAX,
    WALLET_NAME_BYTES_MAX,
)

# The calls. Numbers index metrics and the transport's table; append, never renumber.
cdef enum:                      # Method
    METHOD_NONE = 0
    METHOD_EARN = 1
    METHOD_BURN = 2
    METHOD_RESERVE = 3
    METHOD_CAPTURE = 4
    METHOD_RELEASE = 5
    METHOD_COMMIT = 6
    METHOD_ENROLL = 7
    METHOD_GET_BALANCE = 8
    METHOD_GET_OPERATION = 9
    METHOD_HEALTH_CHECK = 10    # answered by the ports themselves
    METHOD_ADJUST = 11          # 11..13: the control port only
    METHOD_LINK = 12
    METHOD_UNLINK = 13
    METHOD_BATCH_POST = 14      # 14, 15: never a Command's; the calls inside it are
    METHOD_BATCH_GET_BALANCES = 15
    METHOD_QUOTE = 16
    METHOD_SET_SEGMENTS = 17    # 17..22: the control port only; of one member
    METHOD_SET_ATTRIBUTES = 18
    METHOD_PUBLISH_RULES = 19   # 19..22: never a Command's
    METHOD_GET_RULES = 20
    METHOD_LIST_RULES = 21
    METHOD_DIFF_RULES = 22
    METHOD_RULES_ORDER = 23     # what the control port asks of the core to publish rules; never from a socket: it holds pointers
    METHOD_SET_RUNG = 24    # the control port only
    METHOD_DECIDE_REVIEW = 25   # the control port only
    METHOD_ANSWER_CHALLENGE = 26
    METHOD_LIST_REVIEWS = 27    # never a Command's
    METHOD_CHANGE_BLOCKS = 28   # the control port only
    METHOD_LIST_LIMIT_KEYS = 29     # never a Command's
    METHOD_RETURN = 30
    METHOD_KEYS_STEP = 31       # what the control port asks of the core for it; never from a socket: it holds a pointer
    METHOD_COUNT = 32

# What an entry does. 1..18 are the values of loyalty.ledger.v1.Entry.Kind; append, never renumber.
cdef enum:                      # EntryKind
    KIND_EARN = 1
    KIND_BURN = 2
    KIND_RESERVE = 3
    KIND_CAPTURE = 4
    KIND_RELEASE = 5
    KIND_COMMIT = 6
    KIND_ENROLL = 7
    KIND_EXPIRE_LOTS = 8
    KIND_EXPIRE_RESERVATION = 9
    KIND_ADJUST = 10
    KIND_LINK = 11
    KIND_UNLINK = 12            # its IDENTIFIERS are taken from the account
    KIND_SET_SEGMENTS = 13
    KIND_SET_ATTRIBUTES = 14
    KIND_SET_RUNG = 15
    KIND_DECIDE_REVIEW = 16
    KIND_ANSWER_CHALLENGE = 17
    KIND_CHANGE_BLOCKS = 18
    KIND_RETURN = 19            # a receipt was given back
    KIND_PROGRAM = 20           # a programme comes into force: image and source
    KIND_DIGEST = 21            # the state digest after all earlier entries
    KIND_RESTORE = 22           # a back-up was restored: the first entry of a new epoch; changes nothing
    KIND_PROGRAM_PART = 23      # bytes of an image that is too large for one entry

cdef enum:                      # EntryFlag
    FLAG_OPENED = 1             # the entry opens the account it names

cdef enum:                      # SectionType
    SECTION_CONTEXT = 1
    SECTION_POSTINGS = 2
    SECTION_LOTS = 3
    SECTION_LINES = 4
    SECTION_AWARDS = 5
    SECTION_AFTER = 6
    SECTION_RESERVATION = 7
    SECTION_IDENTIFIERS = 8
    SECTION_REFUSAL = 9
    SECTION_IMAGE = 10
    SECTION_SOURCE = 11
    SECTION_KEY_CHECK = 12
    SECTION_DIGEST = 13
    SECTION_RECEIPT = 14        # what the till says of the receipt beside its lines
    SECTION_LINE_DETAILS = 15
    SECTION_RULES_STATE = 16    # 16..20: what an entry of rules changes of its member, and of campaigns
    SECTION_OPENED = 17
    SECTION_COUNTERS = 18
    SECTION_CAMPAIGNS = 19
    SECTION_DAYS = 20
    SECTION_SEGMENTS = 21
    SECTION_ATTRIBUTES = 22
    SECTION_DISCOUNTS = 23      # 23..27: what the rules made of a receipt
    SECTION_PAID = 24
    SECTION_VARIANTS = 25
    SECTION_ENTITLEMENTS = 26
    SECTION_NOTICES = 27
    SECTION_QUOTE = 28          # the quote that it was decided by
    SECTION_PUBLISHED = 29      # what was published, when it comes into force, where its image stands
    SECTION_PART = 30           # bytes of an image
    SECTION_ORIGIN = 31         # where the command came from, hashed
    SECTION_LIMITS = 32         # limits that the command was above
    SECTION_RUNG = 33       # a move of the member on the ladder
    SECTION_BLOCKS = 34         # what comes into the block lists and goes out of them
    SECTION_RETURNED = 35       # the receipt that was given back, and what was missing
    SECTION_GIVEN_BACK = 36     # what counters of limits give back
    SECTION_COUNT = 37          # known types are 1..36; others are kept and skipped

# Tags of the CONTEXT section. Below 128: zigzag varint; from 128: one length byte and that many bytes.
cdef enum:                      # ContextTag
    CONTEXT_SENT_TIME = 1       # sent_time - entry time, us
    CONTEXT_BUSINESS_TIME = 2   # business time - entry time, us; absent: not given, the entry time counts
    CONTEXT_WALLET = 3          # wallet index that the request named or defaulted to (burn, reserve, adjust, commit with burn)
    CONTEXT_POINTS = 4          # points asked (burn, reserve, capture, adjust; commit: of its burn or capture)
    CONTEXT_TTL = 5             # us, as decided (default filled in)
    CONTEXT_RESERVATION = 6     # reservation id asked (capture, release, commit with capture)
    CONTEXT_BUSINESS_DAY = 7    # receipt key: yyyymmdd
    CONTEXT_TOTAL = 8           # receipt total, minor units
    CONTEXT_PAYMENT = 9         # commit: 1 burn, 2 capture; absent: none
    CONTEXT_IDENTIFIERS = 10    # enroll: how many identifiers were sent
    CONTEXT_NAMED = 11          # low 32 bits of the hash of an identifier that named the account; once for each
    CONTEXT_IDENTIFIER = 12     # low 64 bits of the hash of the identifier asked (link, unlink)
    CONTEXT_EXPIRY_DAY = 13     # yyyymmdd asked (adjust); absent: never
    CONTEXT_QUOTE = 14          # low 64 bits of the hash of the quote's token
    CONTEXT_ONLY_AS_QUOTED = 15 # 1; absent: not
    CONTEXT_RUNG = 16       # asked, from 0 (set rung)
    CONTEXT_LASTS = 17          # us; absent: without end
    CONTEXT_CASE = 18           # the review or challenge that is decided, or the challenge that was passed for it
    CONTEXT_VERDICT = 19        # 1 approved or passed, 2 denied or failed
    CONTEXT_STORE = 128
    CONTEXT_TILL = 129
    CONTEXT_NUMBER = 130
    CONTEXT_OPERATOR = 131      # who did it by hand, and why (adjust, link, unlink)
    CONTEXT_REASON = 132

# Tags of the RECEIPT section; a text follows.
cdef enum:                      # ReceiptTag
    RECEIPT_CHANNEL = 1
    RECEIPT_TENDER = 2          # and a varint: its amount in minor units
    RECEIPT_PROMO_CODE = 3

cdef enum:                      # AttributeTag
    ATTRIBUTE_BIRTHDAY = 1      # varint month * 32 + day (0: none), signed day since which it counts
    ATTRIBUTE_CHOSEN = 2        # varint, bit: place in the programme's favourites

cdef enum:                      # Rung: how far a member's rights are cut; loyalty.ledger.v1.Rung less one, and as ImageLimit.rung
    RUNG_OK = 0
    RUNG_COUNT = 5

# Parts of a request's Origin, and tags of the ORIGIN section; 8 bytes of hash follow a tag.
cdef enum:                      # OriginPart
    ORIGIN_DEVICE = 1
    ORIGIN_CASHIER = 2
    ORIGIN_PAYMENT_CARD = 3
    ORIGIN_PARTNER = 4
    ORIGIN_STORE = 5            # 5, 6: where there is no receipt key
    ORIGIN_TILL = 6
    ORIGIN_COUNT = 7
    ORIGIN_REGION = 7           # of the section alone, behind the others: 4 bytes follow, the fingerprint of the store's region

cdef enum:                      # LineDetail: bits
    LINE_WEIGHED = 1

# Whose side of a posting. The postings of an entry sum to zero per wallet.
cdef enum:                      # PostingAccount
    ACCOUNT_MEMBER = 1
    ACCOUNT_ISSUED = 2
    ACCOUNT_REDEEMED = 3
    ACCOUNT_EXPIRED = 4
    ACCOUNT_ADJUSTED = 5
    ACCOUNT_COUNT = 6

cdef enum:                      # ReservationState: values of loyalty.ledger.v1.Reservation.State
    RESERVATION_ACTIVE = 1
    RESERVATION_CAPTURED = 2
    RESERVATION_RELEASED = 3
    RESERVATION_EXPIRED = 4

cdef enum:                      # MemberKind: how a request names a member; 2.. are the identifier types of the journal
    MEMBER_NONE = 0
    MEMBER_BY_ID = 1
    MEMBER_BY_CARD = 2
    MEMBER_BY_PHONE = 3
    MEMBER_BY_EMAIL = 4
    MEMBER_BY_APP = 5

cdef enum:                      # PaymentKind
    PAYMENT_NONE = 0
    PAYMENT_BURN = 1
    PAYMENT_CAPTURE = 2

# Bits of Command.given: optional parts that the request carried.
cdef enum:                      # GivenBit
    GIVEN_SENT_TIME = 1
    GIVEN_BUSINESS_TIME = 2
    GIVEN_RECEIPT = 4           # a Receipt message
    GIVEN_RECEIPT_KEY = 8       # a ReceiptKey message (inside Receipt or alone)
    GIVEN_WALLET = 16
    GIVEN_TTL = 32
    GIVEN_EXPLAIN = 64
    GIVEN_ONLY_AS_QUOTED = 128
    GIVEN_BIRTHDAY = 256
    GIVEN_FAVOURITES = 512

cdef enum:                      # HashedBit of Command.hashed: hashes that core_prepare has made
    HASHED_REQUEST = 1
    HASHED_MEMBER = 2
    HASHED_RECEIPT = 4
    LOOKED_UP = 8               # not by core_prepare: `found` holds what the runs said

cdef enum:                      # AskBit of Lookup.ask
    ASK_REQUEST = 1             # the request id, in the runs whose sent_times reach to its own
    ASK_RECEIPT = 2             # the receipt key, in the runs whose business days reach to its own
    ASK_ANY_TIME = 4            # the request id in every run: its sent_time is not known
    ASK_RETURN = 8              # beside ASK_RECEIPT: whether it was returned

cdef struct Lookup:             # what the runs of dropped keys are asked for one command
    Hash128 request
    Hash128 receipt
    int64_t sent_time_us
    int64_t business_day        # yyyymmdd
    uint32_t ask                # AskBit

cdef struct Facts:              # what they said
    uint64_t request            # sequence of the request id's entry; 0: in no run
    uint64_t first              # of the receipt key: its earn; 0: in no run
    uint64_t second             # of the receipt key: its burn or capture; 0: in no run
    uint64_t returned           # of the receipt key: its return; 0: in no run
    uint64_t denied             # of the receipt key: the review that took its points; 0: in no run
    uint64_t requests_until     # the runs that were asked hold the request ids of every entry up to this sequence
    uint64_t receipts_until     # and the receipt keys
    uint32_t unreadable         # 1: a run cannot be read, so nothing is known

cdef struct Slice:              # bytes inside somebody else's buffer; valid until that buffer is reused
    const uint8_t* data
    uint32_t size               # bytes

cdef struct MemberRef:
    Slice text                  # card, phone, email or app as sent (UTF-8 checked)
    int64_t member_id           # for MEMBER_BY_ID, as sent
    uint8_t kind                # MemberKind

cdef struct Line:
    Slice sku                   # 1..SKU_BYTES_MAX bytes
    Slice category              # 0..CATEGORY_BYTES_MAX bytes
    int64_t quantity_milli      # 0..QUANTITY_MILLI_MAX
    int64_t amount_minor        # 0..AMOUNT_MINOR_MAX
    int64_t regular_minor       # before the till's own reduction, 0..AMOUNT_MINOR_MAX; 0 (or no more than amount_minor): there was none
    uint8_t weighed             # 1: the till says so

cdef struct Tender:             # how much of a receipt was paid with what
    Slice name
    int64_t amount_minor

cdef enum:                      # OrderKind
    ORDER_LOOK = 1              # was this request seen before? and is its image in memory?
    ORDER_PART = 2              # write a part of the image
    ORDER_PUBLISH = 3

cdef struct RulesOrder:         # METHOD_RULES_ORDER; what it points to is the control port's until the answer
    uint8_t kind                # OrderKind
    uint8_t request_size        # bytes of request_id; 0 for a part
    char request_id[64]
    int64_t sent_time_us
    int64_t effective_us        # the moment that was asked for; 0: at once
    uint64_t again              # version whose source it is; 0: it has one of its own
    uint8_t content[8]          # of what was asked (source and files): a repeat has the same
    uint8_t hash[32]            # of the image
    void* loaded                # Loaded of ledger/_programme.pxd; NULL with ORDER_LOOK
    uint32_t offset             # of the part
    bint whole                  # the image stands in the entry itself
    Slice source
    Slice told                  # the end of PUBLISHED, which the core does not read but for the wallets
    Slice operator_name
    Slice reason

cdef packed struct RulesAnswer: # its answer
    uint64_t sequence           # of the entry that it wrote or wrote before; 0: none
    int64_t time_us             # server time of that entry
    uint64_t retired            # Loaded*, a list by `next`: the control port frees them
    uint32_t version            # of the programme; 0: none
    uint32_t before             # the version in force as it was published
    uint8_t replayed            # 1: as in Outcome
    uint8_t in_memory           # 1: ORDER_LOOK: there is an image of this hash
    uint8_t taken               # 1: `loaded` is the core's from now on

# One request, decoded. Written by server/_wire, read by ledger/_core; nothing in it is allocated.
cdef struct Command:
    uint8_t method              # Method
    uint8_t payment             # PaymentKind, for METHOD_COMMIT
    uint16_t given              # GivenBit
    uint32_t line_count         # 0..LINES_MAX
    uint32_t identifier_count   # 0..IDENTIFIERS_PER_REQUEST_MAX, for METHOD_ENROLL; 1 for METHOD_LINK and METHOD_UNLINK
    int32_t business_day        # receipt key: yyyymmdd as sent
    Slice request_id
    int64_t sent_time_us        # us since 1970, valid with GIVEN_SENT_TIME
    int64_t business_time_us    # us since 1970, valid with GIVEN_BUSINESS_TIME
    MemberRef member
    Slice wallet                # name; valid with GIVEN_WALLET
    int64_t points              # as sent; below 0 only for METHOD_ADJUST
    int64_t ttl_us              # valid with GIVEN_TTL; of METHOD_SET_RUNG: how long
    int64_t case_id             # review or challenge; 0: none
    int32_t verdict             # as sent; of METHOD_ANSWER_CHALLENGE: 1 passed, 2 not
    int32_t rung                # as sent, for METHOD_SET_RUNG: from 1
    int64_t reservation_id      # as sent
    Slice store
    Slice till
    Slice number
    Slice currency
    int64_t total_minor         # as sent
    int32_t expiry_day          # yyyymmdd as sent, for METHOD_ADJUST; 0: never
    Slice operator_name         # who, for METHOD_ADJUST, METHOD_LINK, METHOD_UNLINK
    Slice reason                # why
    Hash128 request_hash        # of the request id, the member and the receipt key; valid with their HashedBit
    Hash128 member_hash
    Hash128 receipt_hash
    Facts found                 # valid with LOOKED_UP
    uint32_t hashed             # HashedBit; 0 from the codec, set by core_prepare
    Slice channel               # size 0: not said
    uint32_t tender_count       # 0..TENDERS_PER_RECEIPT_MAX
    uint32_t promo_code_count   # 0..PROMO_CODES_PER_RECEIPT_MAX
    Slice quote_token           # size 0: none
    uint32_t add_count          # 0..SEGMENTS_MAX: segments, or categories of METHOD_SET_ATTRIBUTES
    uint32_t remove_count       # 0..SEGMENTS_MAX
    int32_t birthday_month      # as sent; valid with GIVEN_BIRTHDAY
    int32_t birthday_day
    uint32_t origins            # bit: OriginPart that was given
    Slice[ORIGIN_COUNT] origin  # by OriginPart
    const RulesOrder* order     # for METHOD_RULES_ORDER
    void* search                # KeySearch of ledger/_core.pxd, for METHOD_KEYS_STEP
    MemberRef identifiers[IDENTIFIERS_PER_REQUEST_MAX]
    Tender tenders[TENDERS_PER_RECEIPT_MAX]
    Slice promo_codes[PROMO_CODES_PER_RECEIPT_MAX]
    Slice adds[SEGMENTS_MAX]
    Slice removes[SEGMENTS_MAX]
    Line lines[LINES_MAX]

cdef struct WalletView:         # one wallet of a balance
    int64_t posted_points       # unexpired lots, pending and reserved included
    int64_t pending_points      # not yet available
    int64_t reserved_points     # held
    int64_t expiry_points[NEXT_EXPIRIES_MAX]
    int64_t expiry_time_us[NEXT_EXPIRIES_MAX]   # first moment at which they do not count
    uint32_t expiry_count       # 0..NEXT_EXPIRIES_MAX
    uint16_t wallet             # index in the programme

cdef struct BalanceView:
    uint64_t sequence           # last entry that changed the member
    int64_t read_time_us
    uint32_t member             # account number, from 1
    uint32_t rung_until_s       # since 1970; 0: without end
    uint8_t rung                # at read_time_us
    uint32_t wallet_count
    WalletView wallets[WALLETS_MAX]

cdef enum:                      # ValueKind
    VALUE_NONE = 0
    VALUE_NUMBER = 1
    VALUE_TEXT = 2

# What a command came to. Written by _core, encoded by server/_wire. Only the parts of its status are valid.
cdef struct Outcome:
    uint16_t status             # STATUS_*; STATUS_OK with entry or balance
    uint16_t field              # FIELD_* for FIELD_INVALID, REQUEST_ID_REUSED, MEMBER_NOT_FOUND, IDENTIFIER_TAKEN
    int32_t index               # element of a repeated field, from 0; -1: none
    uint8_t value_kind          # ValueKind: what was sent, for the message
    uint8_t replayed            # 1: the first outcome of an id seen before
    uint8_t written             # new entries in the buffer given to core_execute, back to back (0, 1, or more: see there)
    uint8_t opened              # 1: reserved for the codec; read it from the entry's flags
    uint8_t parked              # 1: not decided, nothing written: execute it again with what the runs say to `lookup`
    int64_t value               # for VALUE_NUMBER
    Slice text                  # for VALUE_TEXT; valid as long as the request
    int64_t a                   # STATUS_ROWS[status].a
    int64_t b                   # STATUS_ROWS[status].b
    uint64_t wait_sequence      # the answer may leave when the durable sequence has reached it
    uint64_t sequence           # of entry
    RulesAnswer rules           # of METHOD_RULES_ORDER
    const uint8_t* entry        # the entry that answers a write (also of a remembered refusal); NULL for reads
    uint32_t entry_size         # bytes of entry
    uint32_t written_size       # bytes of all new entries in the buffer
    Lookup lookup               # valid with `parked`
    BalanceView balance         # for METHOD_GET_BALANCE
    const void* quote           # QuoteView of ledger/_quote.pxd, for METHOD_QUOTE; `entry` is what a commit would write, and nobody posts it

cdef struct Award:              # what a rule gave; written by the rules, read by _core
    int64_t points              # 1..POINTS_MAX
    int32_t available_day       # days since 1970 in the programme's zone
    int32_t expiry_day          # first day on which it does not count; DAY_NEVER: never
    uint16_t line               # from 1; 0: the receipt as a whole
    uint16_t rule               # rule number, from 1
    uint16_t wallet             # index
    uint16_t funder             # 0: the chain itself

cdef enum:
    DAY_NEVER = 2147483647      # expiry day of points that never expire
    REVIEW_DAYS = 0x1000000     # added to the available day of a lot: its points are under review, so pending
    LOT_SLIDES = 0x8000         # beside the funder of a lot: it lives by inactivity, so receipts and burns move its expiry day

cdef struct WalletDefinition:
    char name[WALLET_NAME_BYTES_MAX + 1]    # UTF-8, zero terminated
    uint32_t name_size          # bytes
    uint32_t scale              # decimal digits behind the point, for people

cdef packed struct EntryHeader: # 40 bytes, little endian; docs/journal-format.md
    uint32_t size               # whole entry, header included
    uint8_t kind                # EntryKind
    uint8_t flags               # EntryFlag
    uint16_t status             # 0, or the remembered refusal
    int64_t time_us             # server time
    uint32_t member             # account number, from 1; 0: none
    uint32_t program            # version of the programme in force
    uint8_t request[16]         # hash of the request id; zeros where no request asked

cdef packed struct GroupHeader: # 128 bytes, little endian; docs/journal-format.md
    uint32_t magic              # GROUP_MAGIC
    uint16_t version            # 1
    uint16_t flags              # 0
    uint32_t shard              # 0 until there are several
    uint32_t epoch              # 1, and one more with each restore: its first entry is a RESTORE
    uint64_t first_sequence     # of the first entry, from 1
    uint64_t drained_sequence   # last sequence known to be in LMDB when this was sealed
    int64_t time_us             # server time of sealing
    uint32_t count              # entries, from 1
    uint32_t size               # bytes of all entries
    uint8_t directory[16]       # id of the data directory
    uint8_t previous_hash[32]   # hash of the group before; zeros for the first
    uint8_t hash[32]            # SHA-256 over bytes 0..95 of this header and all entries

cdef enum:
    GROUP_MAGIC = 0x31474244    # "DBG1" in little endian
    GROUP_HEADER_BYTES = 128
    GROUP_HASHED_BYTES = 96     # of the header
    ENTRY_HEADER_BYTES = 40
