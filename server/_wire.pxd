# protobuf codec of the checkout messages and of those by hand; what it promises stands in _wire.pyx.
# cimported by server/_call.pyx, server/_entries.pyx and the fuzz harness.

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from ledger._entry cimport EntryView
from ledger._layout cimport Command, ORIGIN_COUNT, Outcome, Slice
from ledger._rules cimport Program
from server._encode cimport Out

cdef bint wire_decode(uint8_t method, const uint8_t* data, uint32_t size, Command* command, Outcome* outcome) noexcept nogil
    # Request bytes -> command. False: outcome holds FIELD_INVALID or MESSAGE_MALFORMED.
    # Checks structure only (protobuf, UTF-8, text lengths, counts); ranges and meaning are the core's.
cdef uint32_t wire_answer(const Program* program, uint8_t method, const Outcome* outcome, uint8_t* out) noexcept nogil
    # The response message for an outcome with STATUS_OK; out: ANSWER_BYTES_MAX bytes. Returns its size.
cdef uint32_t wire_error(const Program* program, uint8_t method, const Outcome* outcome, uint8_t* details, uint32_t details_max,
                         uint8_t* message, uint32_t message_max, uint32_t* message_size) noexcept nogil
    # method: for the names of fields that a call wraps (burn.points of CommitReceipt). A google.rpc.Status with ErrorInfo (and RetryInfo where retryable), and its message alone. Returns the size of details.
cdef int wire_grpc_code(uint16_t status) noexcept nogil

# Parts of answers that the journal's feed has too; each is a message inside, under `tag`.
cdef void out_wallet_name(Out* out, uint8_t tag, const Program* program, uint64_t wallet) noexcept nogil
cdef void out_entry(Out* out, uint8_t tag, const EntryView* view, uint64_t sequence, const uint8_t* room_end) noexcept nogil
    # Entry. Awards are written up to room_end; behind it must be room for one more.
cdef void out_after(Out* out, uint8_t tag, const Program* program, const EntryView* view) noexcept nogil
cdef void out_result(Out* out, uint32_t tag, const EntryView* view) noexcept nogil
    # ReceiptResult of an entry that rules of version 2 decided; nothing of others. At most RESULT_BYTES_MAX bytes.
cdef void out_reservation(Out* out, uint8_t tag, const Program* program, const EntryView* view) noexcept nogil
# Batches: parts with field number 1, a PostCommand or a MemberRef each.
cdef struct BalancesAsked:      # what a BatchGetBalances says once for all its members
    Slice wallet                # empty: all
    uint32_t origins            # as in Command
    Slice[ORIGIN_COUNT] origin

cdef uint32_t wire_batch(uint8_t method, const uint8_t* data, uint32_t size, BalancesAsked* asked, Outcome* outcome) noexcept nogil
    # Looks at the frame of a BatchPostRequest or a BatchGetBalancesRequest. Returns its parts, 1..BATCH_COMMANDS_MAX; 0: outcome holds why
    # the whole batch is refused.
cdef Slice wire_batch_next(const uint8_t* data, uint32_t size, uint32_t* offset) noexcept nogil
    # The next part of a batch that wire_batch let pass; *offset begins with 0 and moves behind it.
cdef bint wire_decode_post(Slice part, Command* command, Outcome* outcome) noexcept nogil
    # A PostCommand -> command, as wire_decode.
cdef bint wire_decode_member(Slice part, const BalancesAsked* asked, Command* command, Outcome* outcome) noexcept nogil
    # A MemberRef -> the command of a GetBalance, as wire_decode.
cdef uint32_t wire_post_result(const Program* program, uint8_t method, const Outcome* outcome, uint8_t* out) noexcept nogil
    # One of BatchPostResponse.results, with its tag; out: BATCH_RESULT_BYTES_MAX bytes. Returns its size.
cdef uint32_t wire_balance_result(const Program* program, const Outcome* outcome, uint8_t* out) noexcept nogil
    # One of BatchGetBalancesResponse.results, with its tag; out: BATCH_BALANCE_BYTES_MAX bytes.
cdef uint32_t wire_balances_end(uint64_t sequence, int64_t read_time_us, uint8_t* out) noexcept nogil
    # What stands behind the results of a BatchGetBalancesResponse.


cdef inline void outcome_forget(Outcome* outcome) noexcept nogil:
    # An outcome that names nothing yet; its balance stays as it was, nobody reads it.
    memset(outcome, 0, <uint8_t*>&outcome.balance - <uint8_t*>outcome)
    outcome.index = -1
