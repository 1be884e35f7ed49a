"""Every bound of the ledger, each with its reason.

Not for settings (those are command-line flags). `ledger/_generate.py` turns the upper-case integers of this file
into `_limits.h` and `_limits.pxd`, so that C and Python share one number. Read by everybody.
"""

# --- what a request may say -------------------------------------------------------------------------------------
REQUEST_ID_BYTES_MIN = 16  # shorter ids collide between tills; a UUID without dashes has 32
REQUEST_ID_BYTES_MAX = 64  # room for store-till-day-number-attempt; longer is a mistake
STORE_BYTES_MAX = 16  # the longest store code seen in POS integrations is 12
TILL_BYTES_MAX = 16  # as stores
RECEIPT_NUMBER_BYTES_MAX = 32  # fiscal numbers have up to 20 digits
SKU_BYTES_MAX = 32  # GTIN has 14; chains put prefixes before it
CATEGORY_BYTES_MAX = 32  # category codes, not names
WALLET_NAME_BYTES_MAX = 32  # a name, not a sentence
IDENTIFIER_BYTES_MAX = 64  # card, barcode, app id
EMAIL_BYTES_MAX = 128  # RFC 5321 allows 254; real ones end at ~60
PHONE_DIGITS_MIN = 7  # E.164 numbers with country code
PHONE_DIGITS_MAX = 15  # E.164
IDENTIFIERS_PER_REQUEST_MAX = 8  # card, phone, e-mail, app and some old cards
DEVICE_BYTES_MAX = 64  # an app's installation id
CASHIER_BYTES_MAX = 32  # a staff number
PAYMENT_CARD_BYTES_MAX = 64  # a token of the acquirer, never a card number
PARTNER_BYTES_MAX = 32
OPERATOR_BYTES_MAX = 64  # a staff number or a user name
REASON_BYTES_MAX = 128  # a ticket and a few words; a text of the journal is at most 255 bytes
LINES_MAX = 1000  # 500-line baskets are real (domain case 64); twice that is a mistake
TENDERS_PER_RECEIPT_MAX = 16  # a receipt paid in more than three ways is rare
PROMO_CODES_PER_RECEIPT_MAX = 16  # as many codes as anybody has shown at once
TENDER_BYTES_MAX = 32  # as the programme's names; also of channels
CHANNEL_BYTES_MAX = 32
PROMO_CODE_BYTES_MAX = 32  # what a customer types
QUOTE_TOKEN_BYTES = 72  # version, image, times, member, two hashes and their HMAC
SEGMENT_CHANGES_MAX = 1000  # of one SetSegments, as the commands of a batch
SEGMENTS_MAX = 128  # two words of bits a member
FAVOURITES_MAX = 64  # one word
SEGMENT_BYTES_MAX = 32  # as the programme's names
CATEGORY_PATH_BYTES_MAX = 128  # of a catalogue: Food/Dairy/Milk
POINTS_MAX = 1_000_000_000_000  # absurd amounts are typing errors; 9 million of these still fit int64
WALLET_POINTS_MAX = 1_000_000_000_000_000  # what one wallet may hold; a thousand times POINTS_MAX
AMOUNT_MINOR_MAX = 1_000_000_000_000  # 10 billion in major units; keeps total * points-per-step inside int64
QUANTITY_MILLI_MAX = 1_000_000_000  # a million pieces
TTL_S_MIN = 1  # a shorter hold is over before its answer
TTL_S_MAX = 1_209_600  # 14 days, the longest freeze seen in the field
RUNG_S_MAX = 316_224_000  # 3660 days on a rung; longer is without end
TTL_S_DEFAULT = 900  # 15 minutes: longer than any checkout
CLOCK_AHEAD_S_MAX = 300  # how far a till's clock may run ahead (sent_time, purchase_time)
BUSINESS_DAY_MIN = 20000101  # days are counted as int32 from 1970; years 2000..2199 keep every sum small
BUSINESS_DAY_MAX = 21991231
REQUEST_BYTES_MAX = 131_072  # 1000 lines of the longest kind: 1000 * (32 + 32 + 20) plus the head
RESULT_BYTES_MAX = 28_672  # of a ReceiptResult: discounts and money paid with points of 1000 lines, 64 notices, 64 entitlements
ANSWER_BYTES_MAX = 98_304  # AWARDS_MAX awards of 14 bytes plus wallets and a result; usual answers have ~150 bytes

# --- what a member may have -------------------------------------------------------------------------------------
WALLETS_MAX = 16  # points, tickets, stamps, partner purses: ten is the most seen in the field
LOTS_PER_WALLET_MAX = 400  # one a day for the 12 months that points live, and some
RESERVATIONS_PER_MEMBER_MAX = 32  # parallel checkouts of one member; more is an attack
IDENTIFIERS_PER_MEMBER_MAX = 32  # cards lost and replaced over the years
NEXT_EXPIRIES_MAX = 3  # what fits a till's display
FUNDERS_MAX = 32_767  # uint16 in a lot, whose highest bit says that the lot lives by inactivity

# --- rules ------------------------------------------------------------------------------------------------------
AWARDS_MAX = 3000  # awards of one receipt: 1000 lines with three rules each
RULES_MAX = 5000  # of one image: marketing has 50 to 1,000; bitsets over them are 79 words, and the evaluator has a row for each
IMAGE_BYTES_MAX = 16_777_216  # 100,000 articles by name are 4 MB; more than 16 and somebody lists articles instead of categories
IMAGE_INLINE_BYTES_MAX = 1_048_576  # a larger image of an empty journal travels in parts, too
SOURCE_BYTES_MAX = 1_048_576  # YAML kept beside it: 5,000 rules of 160 bytes; goods belong into a catalogue file
PROGRAM_PART_BYTES = 65_536  # of an image in one entry: by so much a group of the tills grows; a smaller one stands in its PROGRAM entry
PROGRAMS_COMING_MAX = 8  # programmes that wait for their moment
PROGRAMS_KEPT_MAX = 64  # images in memory at once; as many publishings in a quarter of an hour
PROGRAM_KEPT_S = 960  # how long an image stays behind its time: the 15 minutes of a quote, and one for its call
VERSIONS_MAX = 65_536  # programmes ever published: seven a day for 25 years
RULES_WARNINGS_MAX = 64  # kept with a version
RULES_TOLD_BYTES_MAX = 65_536  # names, places of parts and warnings of a version
RULES_FILES_BYTES_MAX = 67_108_864  # catalogues of one PublishRules: a million articles
RULES_FILES_MAX = 16
RULES_FILE_NAME_BYTES_MAX = 128
RULE_NAME_BYTES_MAX = 64  # names are for people
POINTS_PER_STEP_MAX = 1_000_000  # times AMOUNT_MINOR_MAX stays below 2^63

# --- one entry, one group ---------------------------------------------------------------------------------------
ENTRY_BYTES_MAX = 2_359_296  # PROGRAM entry of an empty journal: image + source + header; a receipt of 1000 lines needs ~120 kB
COMMAND_ENTRY_BYTES_MAX = 1_310_720  # a source and a part of an image; a receipt of 1000 lines and 6400 lot changes needs 0.75 MB
GROUP_BYTES_MAX = 4_194_304  # a flush of 4 MB takes ~3 ms here; larger groups only add latency
GROUP_ENTRIES_MAX = 16_384  # bounds the replay step and the pending answers
TAIL_BLOCK_BYTES = 4096  # a group starts its own block: no acknowledged block is rewritten
TAIL_BYTES_DEFAULT = 134_217_728  # 0.8 s of 150 MB/s: covers a slow LMDB commit
TAIL_BYTES_MIN = 16_777_216  # at least a few groups of the largest size
TAIL_BYTES_MAX = 17_179_869_184  # its ring has a twin in memory
DRAIN_BYTES = 8_388_608  # one LMDB transaction: more would hold the disk from the flush too long
DRAIN_INTERVAL_MS = 400  # a commit raises the flushes beside it from 136 to 196 us: few of them; what reads the journal is so far behind
FREE_BYTES_MIN = 268_435_456  # below this much free disk writes are refused: two tails
JOURNAL_MAP_BYTES = 1_099_511_627_776  # 1 TiB of address space; readers must open with the same number
TICK_ENTRIES_MAX = 32  # expiries per group: ~30 us; a million lots are posted in half a minute, and fewer at once were no better for tills
TICK_ACCOUNTS_MAX = 512  # accounts looked at per tick by the rolling sweep: ~2 us
TICK_INTERVAL_US = 1000  # the tick's own clock; 10M members are swept in 20 s
DIGEST_INTERVAL_S = 60  # how often the state digest is journaled
TIME_JUMP_US_MAX = 3_600_000_000  # a clock step above an hour stops the ticks
TIME_GAP_US_MAX = 604_800_000_000  # a start more than 7 days after the journal's last entry stops them too
SPACE_CHECK_MS = 100  # how often free disk space is asked for; 150 MB/s * 0.1 s is far below FREE_BYTES_MIN

# --- back-ups ---------------------------------------------------------------------------------------------------
BACKUP_FILE_BYTES = 268_435_456  # a file of a back-up ends behind this: small enough to send again, few enough to list
BACKUP_FLUSH_BYTES = 4_194_304  # written between two flushes: a larger one would stand before the service's own for too long
BACKUP_BYTES_PER_S = 25_000_000  # copied a second unless told otherwise, for the same reason; 50 GB take 33 minutes
RESTORE_COMMIT_BYTES = 67_108_864  # one LMDB transaction of a restore: bounds its dirty pages in memory

# --- snapshots (the follower writes them) -----------------------------------------------------------------------
SNAPSHOT_ENTRIES = 10_000_000  # a start replays at most about so many behind a snapshot: 10 s
SNAPSHOT_INTERVAL_S = 600  # and no snapshot is older than this while entries come in
SNAPSHOT_PAUSE_S = 60  # between two, however fast entries come: the disk has other work
SNAPSHOT_STOP_SHARE = 1  # at a stop one is written when it spares more entries than it writes members: each takes about a microsecond
SNAPSHOTS_KEPT = 2  # the newest, and one more in case it is damaged
SNAPSHOT_SYNC_BYTES = 16_777_216  # flushed at a time: a longer flush holds up the service's own on the same disk
SNAPSHOT_BYTES_PER_S = 25_165_824  # 10M members (1.9 GB) in 75 s; what a device has not written yet, each flush of a group waits for

# --- tables, sized at start -------------------------------------------------------------------------------------
MEMBERS_MAX_DEFAULT = 2_000_000  # --members-max
IDS_MAX_DEFAULT = 16_000_000  # --ids-max: request ids remembered (receipt keys: the same number); the biggest chain has 12.4 million a day
MEMBERS_MAX_LIMIT = 100_000_000  # slots are uint32 with room to spare
IDS_MAX_LIMIT = 1_000_000_000
ID_GENERATIONS = 4  # one filling, two remembered, one being cleared
RUNS_MAX = 1_048_576  # runs of dropped ids: at 8 million keys each more than the ledger has sequences
RUN_STEP_BLOCKS = 512  # blocks of a run written at once: 2 MB hold the disk from the tail's flush for ~10 ms
RUN_PAUSE_MS = 20  # and so long the flush has the disk to itself between two steps
IDS_POLL_MS = 5  # how often the ids thread looks whether a full generation became durable
PREPARE_STEP_BYTES = 2_097_152  # of a table's memory that another thread touches at once: one large page
IDS_RETRY_MS = 100  # and whether there is space again
LOOKUPS_MAX = 32_768  # calls that wait for the runs: every stream and every call of the control port, and a step of every batch
LOOKUPS_AT_ONCE = 64  # asked in one reading of the runs, before their calls are told
LOTS_PER_MEMBER_PLANNED = 8  # 32-byte units of the lot arena per member: ~6 lots and the slack of size classes
COUNTERS_PER_MEMBER_PLANNED = 8  # 32-byte units of their arena per member: caps and tiers that a usual member is counted in
COUNTERS_PER_MEMBER_MAX = 8192  # the largest piece of the arena; nobody meets so many caps
DAY_UNITS_PER_MEMBER_PLANNED = 64  # units of two days each and one more: a purchase every third day, for 400 days; address space until used
DAYS_PER_MEMBER_MAX = 4096  # rolling windows of 400 days and receipts of 3660 days ago
VELOCITY_COUNTERS_PER_MEMBER = 8  # calendar counters of limits: a regular has ten by fraud.yaml, a member who does not come none
BLOCKS_MAX = 1_048_576  # rows of the block lists: stolen cards of years; 32 MB
BLOCK_BYTES_MAX = 136  # of a row as it is sent: its kind and the longest e-mail
BLOCK_PREFIX_MAX = 34  # bytes of a beginning, less one: store, slash and till
LIMIT_KEYS_DEFAULT = 10  # the largest keys of a limit, as a screen shows them
LIMIT_KEYS_MAX = 100
LIMIT_KEYS_SLOTS = 4096  # slots of counters that one step of their search looks at: tills wait so long at most, 20 to 30 us
CASES_MAX = 65_536  # reviews and challenges that are open: more, and nobody looks at them
CHALLENGE_S = 900  # a challenge is open so long: an OTP comes within a minute or not at all
VELOCITY_SWEPT_WHEN_FULL = 1024  # slots that a command looks at which finds the tables full
VELOCITY_SLOTS_LEAST = 65_536  # and in any case: stores and tills have counters too
CAMPAIGNS_KEPT_MAX = 65_536  # budgets of all programmes ever; 1.5 MB
CAMPAIGNS_PER_ENTRY_MAX = 1000  # as many as a programme has
COUNTERS_PER_ENTRY_MAX = 4096  # caps that one receipt is counted in; 90 kB of its entry
RULES_TOLD_MAX = 256  # rules with series of their own in /metrics, the first of the file; the rest is one
NOTICES_TOLD_MAX = 64  # of one receipt; a till with more has another catalogue, and the first ones tell it
RESERVATIONS_MAX = 1_048_576  # active and recently finished reservations, all members
RESERVATIONS_MAX_LEAST = 4096  # room for them in a ledger of few members; between the two: one a member

# --- the checkout port ------------------------------------------------------------------------------------------
CONNECTIONS_MAX = 4096  # a gateway per store opens one or two
STREAMS_PER_CONNECTION_MAX = 1024  # SETTINGS_MAX_CONCURRENT_STREAMS
STREAMS_MAX = 16_384  # in all; 16k * 20 kB of buffers, touched only when used
STREAMS_SHARE_MIN = 8  # what every connection may hold when they run short: a till has one call at a time, a gateway a few
HEADER_BYTES_MAX = 8192  # a call's header block; tills send ~300 bytes
IDLE_TIMEOUT_S = 600  # a connection without calls is closed with GOAWAY
SLOW_CLIENT_TIMEOUT_S = 20  # a peer that does not read its answers, or stops in the middle of a request
DRAIN_GRACE_S = 10  # how long a shutdown waits for open calls
INBOX_CALLS_MAX = 4096  # calls from the control port waiting for the hot thread
INBOX_BYTES = 8_388_608  # their bytes: 60 of the largest, 20,000 usual ones
OUTBOX_BYTES = 4_194_304  # answers on their way back: 64 of the largest; a full one waits in the hot thread
CALLS_PER_TURN_MAX = 256  # calls run before other sockets are read: ~0.3 ms
LATE_AFTER_S = 3600  # a call whose purchase is older: nobody waits at the till; a till's clock may be wrong by minutes
LATE_CALLS_BESIDE = 48  # late calls at once while tills call: ~80 us, which a customer may wait
RESETS_BURST_MAX = 4096  # RST_STREAM frames of a connection at once: four times all its calls given up together
RESETS_PER_S_MAX = 1024  # and for ever: above it, resetting is all that the peer does
CONTROL_FRAMES_BURST_MAX = 8192  # frames that carry no call (PING, SETTINGS, WINDOW_UPDATE, empty DATA, ...) at once
CONTROL_FRAMES_PER_S_MAX = 512  # and for ever, besides CONTROL_FRAMES_PER_CALL
CONTROL_FRAMES_PER_CALL = 8  # each call earns its peer so many: window updates and pings that real clients send
LARGE_BUFFERS_MAX = 256  # of REQUEST_BYTES_MAX each, for what outgrows a stream's own buffer; 32 MB, touched only when used
LARGE_BUFFERS_PER_CONNECTION_MAX = 64  # so that no connection takes them all

# --- batches ----------------------------------------------------------------------------------------------------
BATCH_COMMANDS_MAX = 1000  # a store's receipts of an hour offline; a batch of so many costs ~1 ms of the hot thread
BATCH_REQUEST_BYTES_MAX = 1_048_576  # 1000 receipts of 10 lines with room to spare; a longer one is two batches
BATCH_ANSWER_BYTES_MAX = 1_441_792  # 1000 balances of 16 wallets; below the 4 MB that gRPC clients take unasked
BATCHES_MAX = 16  # batches open at once: 40 MB of buffers, touched only when used; two keep the hot thread busy
BATCHES_PER_CONNECTION_MAX = 8  # so that no connection takes them all
BATCH_COMMANDS_BESIDE = 64  # commands of batches at once while tills call: ~0.12 ms, which a customer may wait
BATCH_STEP = 8  # commands of a batch that are decoded, and for which the runs are asked, together: as many as of single calls
BATCH_RESULT_BYTES_MAX = 1_152  # of one PostResult: the longest refusal (1024) and what stands around it
BATCH_BALANCE_BYTES_MAX = 1_408  # of one BalanceResult: 16 wallets of at most 84 bytes, 40, and 12 for the rung

# --- reading the journal ----------------------------------------------------------------------------------------
PAGE_SIZE_DEFAULT = 20  # what a screen shows
PAGE_SIZE_MAX = 1000  # ~1 MB of usual entries
PAGE_BYTES_MAX = 2_097_152  # of the entries of a page; gRPC clients take 4 MiB by default, and one entry more may follow
FEED_ENTRIES_MAX = 1000  # of one message of the feed
FEED_BYTES_MAX = 262_144  # of one message of the feed: a few windows of HTTP/2
FEED_STREAMS_MAX = 64  # readers of the feed; each holds at most two messages
FEED_STALL_S = 20  # a reader that takes no message for so long is cut off, as SLOW_CLIENT_TIMEOUT_S
FEED_HEARTBEAT_S = 5  # how long an idle feed stays silent
INDEX_SEGMENT_ENTRIES = 262_144  # smaller segments stay in memory: 8 MB; so many entries are read again after a restart
INDEX_FANOUT = 4  # segments of one size are merged when there are so many: each entry is written log4 times
INDEX_PAGE_ROWS = 512  # rows of 8 bytes: one page of the disk cache, with one checksum
INDEX_OFFSET_STEP = 16  # every so many entries the place in the group is noted: a walk of 15 entries at most

assert RESULT_BYTES_MAX >= LINES_MAX * 2 * 11 + NOTICES_TOLD_MAX * 44 + 64 * 34 + 256
assert ANSWER_BYTES_MAX >= AWARDS_MAX * 18 + WALLETS_MAX * 160 + RESULT_BYTES_MAX + 512
assert COMMAND_ENTRY_BYTES_MAX >= COUNTERS_PER_ENTRY_MAX * 21 + LINES_MAX * 2 * 9 + CAMPAIGNS_PER_ENTRY_MAX * 20 + 500_000
assert GROUP_BYTES_MAX >= ENTRY_BYTES_MAX + 65_536
assert COMMAND_ENTRY_BYTES_MAX >= LINES_MAX * 130 + (2 * WALLETS_MAX + RESERVATIONS_PER_MEMBER_MAX) * LOTS_PER_WALLET_MAX * 24 + 131_072
assert ENTRY_BYTES_MAX >= IMAGE_INLINE_BYTES_MAX + SOURCE_BYTES_MAX + RULES_TOLD_BYTES_MAX + 4096
assert COMMAND_ENTRY_BYTES_MAX >= PROGRAM_PART_BYTES + SOURCE_BYTES_MAX + RULES_TOLD_BYTES_MAX + 4096
assert TAIL_BYTES_MIN >= 3 * GROUP_BYTES_MAX + 4 * TAIL_BLOCK_BYTES
assert LOOKUPS_MAX >= STREAMS_MAX + INBOX_CALLS_MAX + BATCHES_MAX * BATCH_STEP
assert INBOX_BYTES >= 4 * REQUEST_BYTES_MAX
assert OUTBOX_BYTES >= 4 * ANSWER_BYTES_MAX
assert AMOUNT_MINOR_MAX * POINTS_PER_STEP_MAX < 2**63
assert BATCH_RESULT_BYTES_MAX >= 1024 + 2 * 4 + 2
assert BATCH_RESULT_BYTES_MAX >= 120 + WALLET_NAME_BYTES_MAX + 80  # an entry without awards, and a reservation
assert BATCH_BALANCE_BYTES_MAX >= WALLETS_MAX * (WALLET_NAME_BYTES_MAX + 52) + 40 + 12
assert BATCH_COMMANDS_MAX * max(BATCH_RESULT_BYTES_MAX, BATCH_BALANCE_BYTES_MAX) + 64 <= BATCH_ANSWER_BYTES_MAX
assert INBOX_BYTES >= 4 * BATCH_REQUEST_BYTES_MAX
assert OUTBOX_BYTES >= 2 * BATCH_ANSWER_BYTES_MAX + 4096  # a record never wraps: so any fits into an empty box
assert BATCH_REQUEST_BYTES_MAX >= REQUEST_BYTES_MAX
assert REQUEST_BYTES_MAX >= LINES_MAX * (SKU_BYTES_MAX + CATEGORY_BYTES_MAX + 30) + 8192
assert (TENDERS_PER_RECEIPT_MAX + PROMO_CODES_PER_RECEIPT_MAX) * (TENDER_BYTES_MAX + 16) + QUOTE_TOKEN_BYTES < 4096
