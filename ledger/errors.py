"""The one table of statuses and of request fields.

Every refusal that a caller can see is a row here: its number (never reused), gRPC code, reason on the wire, whether the
same request may be sent again as it is, and whether the outcome is remembered under its request id.
`ledger/_generate.py` turns both tables into `_status.h` and `_status.pxd`, so the compiled rooms read the same rows.
Not for exceptions of the service's own start and stop; those live where they are raised (`ledger/engine.py`).
Read by `server/_wire.pyx` (through the generated header), docs/errors.md is checked against it.
"""

from __future__ import annotations

from typing import NamedTuple

from ledger import limits

DOMAIN = "ledger.loyalty"

# gRPC codes used here (grpc.StatusCode values; the ledger does not import grpc).
INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS = 3, 4, 5, 6
RESOURCE_EXHAUSTED, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, UNAVAILABLE = 8, 9, 11, 12, 14


class Status(NamedTuple):
    """One row: a refusal.

    `a` and `b` name the two numbers of `Outcome.a` and `Outcome.b` in ErrorInfo.metadata ("" = not sent).
    `message` is the text for people; {field} {value} {rule} {a} {b} stand for the outcome's parts.
    """

    number: int
    name: str
    grpc_code: int
    retryable: bool  # the same request, unchanged, may succeed later
    remembered: bool  # journaled as a refusal: a repeat of the id gets the same answer for ever
    a: str
    b: str
    message: str


STATUSES = (
    Status(0, "OK", 0, False, False, "", "", ""),
    # malformed: not remembered, nothing written
    Status(1, "FIELD_INVALID", INVALID_ARGUMENT, False, False, "", "", "{field} {rule}, was {value}"),
    Status(2, "MESSAGE_MALFORMED", INVALID_ARGUMENT, False, False, "offset", "",
           "the request is not a valid protobuf message of this method: it breaks at byte {a}"),
    Status(3, "MESSAGE_TOO_LARGE", RESOURCE_EXHAUSTED, False, False, "bytes", "bytes_max",
           "the message has {a} bytes, at most {b} are allowed"),
    Status(4, "MESSAGE_COMPRESSED", UNIMPLEMENTED, False, False, "", "",
           "compressed messages are not supported: send grpc-encoding identity"),
    Status(5, "METHOD_UNKNOWN", UNIMPLEMENTED, False, False, "", "", "unknown method"),
    Status(6, "FRAMING_INVALID", INVALID_ARGUMENT, False, False, "bytes", "",
           "the request must be one gRPC message: a prefix of 5 bytes with its length and exactly so many bytes; {a} bytes came"),
    Status(7, "TIMEOUT_INVALID", INVALID_ARGUMENT, False, False, "", "",
           "grpc-timeout must be 1..8 digits and one of H M S m u n"),
    Status(8, "RULES_INVALID", INVALID_ARGUMENT, False, False, "mistakes", "",
           "the programme has {a} mistakes; the rules in force stay"),
    # not found: not remembered
    Status(10, "MEMBER_NOT_FOUND", NOT_FOUND, False, False, "", "", "{field} names no member"),
    Status(11, "WALLET_NOT_FOUND", NOT_FOUND, False, False, "", "",
           "the programme has no wallet of this name: {value}"),
    Status(12, "RESERVATION_NOT_FOUND", NOT_FOUND, False, False, "reservation_id", "",
           "no reservation {a} is known"),
    Status(13, "OPERATION_NOT_FOUND", NOT_FOUND, False, False, "", "", "no write with this request_id is known"),
    Status(14, "IDENTIFIER_NOT_FOUND", NOT_FOUND, False, False, "", "", "{field} is linked to no member"),
    # reading the journal
    Status(15, "READER_TOO_SLOW", RESOURCE_EXHAUSTED, True, False, "last_sequence", "stalled_s",
           "the reader took no message for {b} s; entries up to {a} were sent: go on with from_sequence behind that"),
    Status(16, "TIME_NOT_REACHED", OUT_OF_RANGE, True, False, "as_of_time_us", "read_time_us",
           "as_of_time {a} is not before the newest entry that was read, of {b} (microseconds since 1970)"),
    Status(17, "SEQUENCE_NOT_REACHED", OUT_OF_RANGE, True, False, "from_sequence", "head_sequence",
           "the journal was read up to sequence {b}: the feed cannot begin at {a}"),
    Status(18, "STORE_NOT_FOUND", NOT_FOUND, False, False, "", "",
           "the programme lists no store {value}, and refuses receipts of stores that it does not know"),
    Status(19, "VERSION_NOT_FOUND", NOT_FOUND, False, False, "version", "versions",
           "there is no version {a} of the programme: the newest is {b}"),
    # identity and keys
    Status(20, "REQUEST_ID_REUSED", ALREADY_EXISTS, False, False, "sequence", "",
           "this request_id was used by entry {a} with another {field}: use a new id for a new request"),
    Status(21, "RECEIPT_ALREADY_POSTED", ALREADY_EXISTS, False, False, "sequence", "",
           "this receipt was already posted by entry {a} under another request_id"),
    Status(22, "IDENTIFIER_TAKEN", ALREADY_EXISTS, False, False, "", "",
           "{field} belongs to another member"),
    Status(23, "SENT_TIME_TOO_OLD", FAILED_PRECONDITION, False, False, "oldest_sent_time_us", "",
           "sent_time is older than the ids kept in memory reach (microseconds since 1970: {a}): "
           "whether this request was seen before cannot be told"),
    Status(24, "RECEIPT_TOO_OLD", FAILED_PRECONDITION, False, False, "forgotten_business_day", "",
           "whether this receipt was posted before cannot be told: keys of business day {a} and older were dropped from memory"),
    # state: remembered
    Status(30, "INSUFFICIENT_POINTS", FAILED_PRECONDITION, False, True, "available_points", "requested_points",
           "{b} points were asked, {a} are available"),
    Status(31, "RESERVATION_NOT_ACTIVE", FAILED_PRECONDITION, False, True, "reservation_id", "state",
           "reservation {a} is not active any more: state {b} (2 captured, 3 released, 4 expired)"),
    Status(32, "RESERVATION_FOREIGN", FAILED_PRECONDITION, False, True, "reservation_id", "",
           "reservation {a} belongs to another member"),
    Status(33, "CAPTURE_ABOVE_RESERVED", FAILED_PRECONDITION, False, True, "reserved_points", "requested_points",
           "{b} points were asked, the reservation holds {a}"),
    Status(34, "POINTS_OVERFLOW", OUT_OF_RANGE, False, True, "posted_points", "",
           "the wallet would hold more than is allowed; it has {a}"),
    Status(35, "LOTS_LIMIT", RESOURCE_EXHAUSTED, False, True, "lots", "lots_max",
           "the member has {a} lots in this wallet, at most {b} are allowed"),
    Status(36, "RESERVATIONS_LIMIT", RESOURCE_EXHAUSTED, False, True, "reservations", "reservations_max",
           "the member has {a} active reservations, at most {b} are allowed"),
    Status(37, "IDENTIFIERS_LIMIT", RESOURCE_EXHAUSTED, False, True, "identifiers", "identifiers_max",
           "the member would have {a} identifiers, at most {b} are allowed"),
    Status(38, "BURN_NOT_ALLOWED", FAILED_PRECONDITION, False, True, "largest_points", "requested_points",
           "{b} points were to pay for this receipt, at most {a} may (and in the steps that the programme says)"),
    Status(39, "QUOTE_CHANGED", FAILED_PRECONDITION, False, True, "changed", "",
           "the receipt would come to something else than was quoted (the sum of 1 points, 2 discounts, 4 what is paid with points, "
           "8 tier or entitlements: {a}): quote it again"),
    Status(60, "VELOCITY_EXCEEDED", RESOURCE_EXHAUSTED, False, True, "", "",
           "the programme does not allow this so often or so much; tell the customer that it cannot be done now"),
    Status(61, "MEMBER_LIMITED", FAILED_PRECONDITION, False, True, "until_us", "",
           "the member earns points, but cannot use them now; the customer service knows more"),
    Status(62, "MEMBER_BLOCKED", FAILED_PRECONDITION, False, True, "until_us", "",
           "the member is blocked; sell without the card, the customer service knows more"),
    Status(63, "MEMBER_EXCLUDED", FAILED_PRECONDITION, False, True, "until_us", "",
           "the member is excluded; sell without the card"),
    Status(64, "CHALLENGE_NEEDED", FAILED_PRECONDITION, False, True, "challenge_id", "",
           "the customer must pass a challenge first ({a}): answer it with AnswerChallenge, then send a new request with its challenge_id"),
    Status(65, "CHALLENGE_NOT_FOUND", NOT_FOUND, False, False, "challenge_id", "",
           "there is no open challenge {a}, or it is not passed, is another member's, or its 15 minutes are over"),
    Status(66, "REVIEW_NOT_FOUND", NOT_FOUND, False, False, "review_id", "", "there is no open review {a}"),
    Status(67, "BLOCKED", FAILED_PRECONDITION, False, True, "", "", "this card, identifier, device or till is blocked"),
    # returns: not remembered
    Status(68, "RECEIPT_NOT_FOUND", NOT_FOUND, False, False, "", "",
           "no receipt with this key was posted: if it is still on its way, send its return again behind it"),
    Status(69, "RECEIPT_ALREADY_RETURNED", ALREADY_EXISTS, False, False, "sequence", "", "this receipt was already returned by entry {a}"),
    Status(70, "RECEIPT_OF_TWO_MEMBERS", FAILED_PRECONDITION, False, False, "earner_id", "payer_id",
           "member {a} earned by this receipt and member {b} paid with points: give it back by hand, with AdjustPoints for each"),
    # capacity and readiness: not remembered, nothing written
    Status(40, "MEMBERS_LIMIT", RESOURCE_EXHAUSTED, False, False, "members_max", "",
           "the ledger is full: {a} members; start it with a larger --members-max"),
    Status(41, "TABLE_FULL", RESOURCE_EXHAUSTED, False, False, "", "",
           "a table of the ledger is full (lots, reservations, counters of limits or open reviews); start it with a larger --members-max"),
    Status(42, "RULES_LIMIT", RESOURCE_EXHAUSTED, False, False, "limit", "",
           "no more programmes can be kept now: at most 8 wait for their moment, 64 are in memory for a quarter of an hour, 65536 in all; "
           "the limit met is {a}"),
    Status(44, "QUOTE_EXPIRED", FAILED_PRECONDITION, False, False, "expire_time_us", "",
           "the quote was good until {a} (microseconds since 1970), or its rules are gone: quote it again"),
    Status(45, "QUOTE_FOREIGN", FAILED_PRECONDITION, False, False, "member_id", "",
           "the quote is of another receipt or of another member ({a}; 0: somebody new): quote this one"),
    Status(50, "JOURNAL_FULL", UNAVAILABLE, True, False, "free_bytes", "free_bytes_min",
           "the disk is nearly full ({a} bytes free, {b} are needed): writes are refused, reads go on"),
    Status(51, "NOT_READY", UNAVAILABLE, True, False, "", "", "the service is starting or stopping: try again"),
    Status(52, "TOO_MANY_CALLS", UNAVAILABLE, True, False, "", "", "too many calls are open: try again"),
    Status(53, "DEADLINE_PASSED", DEADLINE_EXCEEDED, True, False, "", "",
           "the deadline passed before the request was decided: nothing was written"),
    Status(54, "IDS_BEHIND", UNAVAILABLE, True, False, "", "",
           "request ids come faster than the ids of earlier requests can be written to disk: try again"),
    Status(55, "IDS_UNREADABLE", UNAVAILABLE, True, False, "", "",
           "whether this request was seen before cannot be told now: the ids of earlier requests on disk are damaged"),
    Status(57, "INDEX_NOT_READY", UNAVAILABLE, True, False, "indexed_sequence", "head_sequence",
           "the index has read up to entry {a} of {b}: try again"),
)

BY_NAME = {status.name: status for status in STATUSES}
BY_NUMBER = {status.number: status for status in STATUSES}


class Field(NamedTuple):
    """One request field that can be wrong: its number, its name on the wire and what would be right."""

    number: int
    name: str
    rule: str


def _text(what: str, low: int, high: int) -> str:
    return f"must be {what} of {low}..{high} bytes of UTF-8 without control characters"


_DAY = "must be a calendar date as yyyymmdd, not after tomorrow and not older than the programme's max_age"
_PHONE = f"must be E.164: '+' and {limits.PHONE_DIGITS_MIN}..{limits.PHONE_DIGITS_MAX} digits, the first not 0"
_EMAIL = f"must be an address with one '@', 3..{limits.EMAIL_BYTES_MAX} bytes"

FIELDS = (
    Field(0, "", ""),
    Field(1, "request_id", f"must be {limits.REQUEST_ID_BYTES_MIN}..{limits.REQUEST_ID_BYTES_MAX} characters of A-Z a-z 0-9 . _ : -"),
    Field(2, "sent_time", f"must be set, from 2000 to at most {limits.CLOCK_AHEAD_S_MAX} s ahead of the server's clock"),
    Field(3, "member", "must name one member by member_id, card, phone, email or app"),
    Field(4, "member.member_id", "must be 1..2147483647"),
    Field(5, "member.card", _text("a card number", 1, limits.IDENTIFIER_BYTES_MAX)),
    Field(6, "member.phone", _PHONE),
    Field(7, "member.email", _EMAIL),
    Field(8, "member.app", _text("an app identifier", 1, limits.IDENTIFIER_BYTES_MAX)),
    Field(10, "receipt", "must be set"),
    Field(11, "receipt.key", "must be set"),
    Field(12, "receipt.key.store", _text("a store code", 1, limits.STORE_BYTES_MAX)),
    Field(13, "receipt.key.till", _text("a till code", 1, limits.TILL_BYTES_MAX)),
    Field(14, "receipt.key.business_day", _DAY),
    Field(15, "receipt.key.number", _text("a receipt number", 1, limits.RECEIPT_NUMBER_BYTES_MAX)),
    Field(16, "receipt.purchase_time", "must be from now - the programme's max_age to now + 5 min"),
    Field(17, "receipt.currency_code", "must be the programme's currency"),
    Field(18, "receipt.total_minor", f"must be 0..{limits.AMOUNT_MINOR_MAX} and the sum of the lines"),
    Field(19, "receipt.lines", f"must be at most {limits.LINES_MAX} lines"),
    Field(20, "receipt.lines.sku", _text("an article code", 1, limits.SKU_BYTES_MAX)),
    Field(21, "receipt.lines.category", _text("a category code", 0, limits.CATEGORY_BYTES_MAX)),
    Field(22, "receipt.lines.quantity_milli", f"must be 0..{limits.QUANTITY_MILLI_MAX}"),
    Field(23, "receipt.lines.amount_minor", f"must be 0..{limits.AMOUNT_MINOR_MAX}"),
    Field(24, "receipt.lines.regular_amount_minor", f"must be 0..{limits.AMOUNT_MINOR_MAX} (0: the same as amount_minor)"),
    Field(25, "receipt.tenders", f"must be at most {limits.TENDERS_PER_RECEIPT_MAX} tenders"),
    Field(26, "receipt.tenders.name", _text("a tender's name", 1, limits.TENDER_BYTES_MAX)),
    Field(27, "receipt.tenders.amount_minor", f"must be 0..{limits.AMOUNT_MINOR_MAX}"),
    Field(28, "receipt.channel", _text("a channel's name", 0, limits.CHANNEL_BYTES_MAX)),
    Field(29, "receipt.promo_codes", f"must be at most {limits.PROMO_CODES_PER_RECEIPT_MAX} codes, "
          f"each of 1..{limits.PROMO_CODE_BYTES_MAX} bytes of UTF-8 without control characters"),
    Field(30, "wallet", _text("a wallet name", 1, limits.WALLET_NAME_BYTES_MAX)),
    Field(31, "points", f"must be 1..{limits.POINTS_MAX}"),
    Field(32, "points", f"must be 0..{limits.POINTS_MAX} (0: all that is held)"),
    Field(33, "ttl", f"must be {limits.TTL_S_MIN} s to {limits.TTL_S_MAX} s (14 days)"),
    Field(34, "reservation_id", "must be at least 1"),
    Field(35, "purchase_time", "must be from now - the programme's max_age to now + 5 min"),
    Field(36, "receipt_key.store", _text("a store code", 1, limits.STORE_BYTES_MAX)),
    Field(37, "receipt_key.till", _text("a till code", 1, limits.TILL_BYTES_MAX)),
    Field(38, "receipt_key.business_day", _DAY),
    Field(39, "receipt_key.number", _text("a receipt number", 1, limits.RECEIPT_NUMBER_BYTES_MAX)),
    Field(40, "payment", "must be at most one of burn and capture"),
    Field(42, "receipt.quote_token", "must be a token that QuoteReceipt gave, as it came"),
    Field(43, "changes", f"must be 1..{limits.SEGMENT_CHANGES_MAX} changes"),
    Field(44, "changes.add", f"must be at most {limits.SEGMENTS_MAX} segments of the programme"),
    Field(45, "changes.remove", f"must be at most {limits.SEGMENTS_MAX} segments of the programme"),
    Field(46, "birthday", "must be a month of 1..12 and a day that it has in a leap year, or 0 and 0"),
    Field(48, "receipt.lines.weighed", "must be true or false"),
    Field(49, "receipt.only_as_quoted", "must be false without quote_token"),
    Field(47, "favourites", "must be categories from which the programme lets members choose, at most as many as it allows"),
    Field(41, "identifiers", f"must be 1..{limits.IDENTIFIERS_PER_REQUEST_MAX} different identifiers, a member_id only in first place"),
    Field(50, "method", "must be the call that used this id first"),
    Field(51, "identifier", "must be one card, phone, email or app"),
    Field(52, "identifier.card", _text("a card number", 1, limits.IDENTIFIER_BYTES_MAX)),
    Field(53, "identifier.phone", _PHONE),
    Field(54, "identifier.email", _EMAIL),
    Field(55, "identifier.app", _text("an app identifier", 1, limits.IDENTIFIER_BYTES_MAX)),
    Field(56, "points", f"must be -{limits.POINTS_MAX}..{limits.POINTS_MAX}, not 0"),
    Field(57, "expiry_day", "must be a calendar date as yyyymmdd, after today, and only with points above 0"),
    Field(58, "operator", _text("a name", 1, limits.OPERATOR_BYTES_MAX)),
    Field(59, "reason", _text("a reason", 1, limits.REASON_BYTES_MAX)),
    Field(60, "commands", f"must be 1..{limits.BATCH_COMMANDS_MAX} commands"),
    Field(61, "commands", "must be one of earn, burn, reserve, capture, release, commit, enroll and return_receipt"),
    Field(62, "members", f"must be 1..{limits.BATCH_COMMANDS_MAX} members"),
    Field(65, "page_size", f"must be 0..{limits.PAGE_SIZE_MAX} (0: {limits.PAGE_SIZE_DEFAULT})"),
    Field(66, "from_sequence", "must be at least 1, or 0: from now on"),
    Field(67, "as_of_time", "must be a time from 2000 on; only the follower's control port answers it"),
    Field(68, "store_day.store", _text("a store code", 1, limits.STORE_BYTES_MAX)),
    Field(69, "store_day.business_day", "must be a calendar date as yyyymmdd"),
    Field(70, "page_token", "must be the next_page_token of a page with the same filter"),
    Field(71, "receipt_key.business_day", "must be a calendar date as yyyymmdd"),
    Field(72, "source", f"must be a programme in YAML of 1..{limits.SOURCE_BYTES_MAX} bytes, with the files that it names"),
    Field(73, "version", "must be the number of a version"),
    Field(74, "effective_time", "must be a server time after now, at most ten years ahead; without it rules are in force at once"),
    Field(75, "files", f"must be at most {limits.RULES_FILES_MAX} files of together {limits.RULES_FILES_BYTES_MAX} bytes, each name once, "
          "without folders"),
    Field(76, "rules", "must be a source or a version"),
    Field(77, "to", "must be a version or a source"),
    Field(95, "receipt_key", "must be set"),
    Field(91, "add", f"must be at most {limits.SEGMENTS_MAX} of card:, phone:, email:, app:, device:, till:STORE/TILL, "
          "a * at the end for what begins so (not phone, email); at least one"),
    Field(92, "remove", "must be as those of add"),
    Field(93, "limit", "must be the name of a limit of the programme in force, and of one with a window that is not `receipt`"),
    Field(94, "keys_per_limit", f"must be 0..{limits.LIMIT_KEYS_MAX} (0: {limits.LIMIT_KEYS_DEFAULT})"),
    Field(87, "review_id", "must be the number of a review, at least 1"),
    Field(88, "verdict", "must be approved or denied"),
    Field(89, "challenge_id", "must be the number of a challenge, at least 1"),
    Field(90, "passed", "must be that of the first request"),
    Field(85, "rung", "must be one of ok, warned, limited, blocked and excluded"),
    Field(86, "lasts", f"must be 1 s to {limits.RUNG_S_MAX} s (3660 days), and not with ok"),
    Field(78, "origin", "must be that of the first request"),
    Field(79, "origin.device", _text("a device's id", 0, limits.DEVICE_BYTES_MAX)),
    Field(80, "origin.cashier", _text("a cashier's number", 0, limits.CASHIER_BYTES_MAX)),
    Field(81, "origin.payment_card", _text("a token", 0, limits.PAYMENT_CARD_BYTES_MAX)),
    Field(82, "origin.partner", _text("a partner's code", 0, limits.PARTNER_BYTES_MAX)),
    Field(83, "origin.store", _text("a store code", 0, limits.STORE_BYTES_MAX) + ", and that of the receipt key where there is one"),
    Field(84, "origin.till", _text("a till code", 0, limits.TILL_BYTES_MAX) + ", and that of the receipt key where there is one"),
)

FIELD_BY_NUMBER = {field.number: field for field in FIELDS}

assert len(BY_NAME) == len(STATUSES), "two statuses share a name"
assert len(BY_NUMBER) == len(STATUSES), "two statuses share a number"
assert len(FIELD_BY_NUMBER) == len(FIELDS), "two fields share a number"
