# One call from request bytes to answer bytes: the life of a call between the transport and the core; and of a batch, step by step.
# cimported by server/_transport.pyx (sockets and inbox), server/_reader.pyx (the follower) and server/_local.pyx (tests, core bench).

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from ledger._core cimport Core
from ledger._engine cimport Engine
from ledger._layout cimport Command, Facts, Lookup, METHOD_COUNT, Outcome
from ledger._limits cimport BATCH_STEP
from ledger._rules cimport Program
from ledger._status cimport STATUS_COUNT
from server._wire cimport BalancesAsked

cdef enum:
    DETAILS_BYTES_MAX = 1024    # google.rpc.Status of the longest refusal
    MESSAGE_BYTES_MAX = 512     # its message, before percent-encoding
    CALLS_AHEAD = 8             # calls whose memory reads are started together; more gains nothing (`make bench`)

cdef struct Answer:
    uint8_t* data               # given by the caller: ANSWER_BYTES_MAX bytes; message (grpc_code 0) or details
    uint32_t size               # bytes of message or details in data
    uint32_t message_size       # bytes in message
    int grpc_code               # 0 OK
    uint16_t status             # STATUS_* for the metrics
    uint8_t replayed
    uint64_t wait_sequence      # may leave when engine_durable() >= this
    uint8_t message[MESSAGE_BYTES_MAX]  # grpc-message, not yet percent-encoded

cdef struct Caller:             # scratch of one thread: the calls that are run next
    Command commands[CALLS_AHEAD]
    Outcome outcomes[CALLS_AHEAD]
    bint decoded[CALLS_AHEAD]   # the command is good; else its outcome is a refusal already
    uint64_t in_batches[METHOD_COUNT][STATUS_COUNT]     # commands of batches, counted by what they came to

cdef struct Batch:              # a BatchPost or BatchGetBalances under way
    const uint8_t* request      # its bytes stay until the end
    uint8_t* answer             # BATCH_ANSWER_BYTES_MAX bytes
    uint32_t size               # bytes of request
    uint32_t offset             # bytes of it that are behind us
    uint32_t count              # parts: commands or members
    uint32_t done
    uint32_t answer_size        # bytes written
    uint8_t method              # METHOD_BATCH_POST or METHOD_BATCH_GET_BALANCES
    uint32_t asked              # commands for which the runs are asked just now: the batch stands still until they have told
    uint32_t told_from          # the first of these was this part
    uint32_t told               # bits: which of them, from that one on, have their facts
    Facts facts[BATCH_STEP]     # what the runs said to them
    uint64_t token              # for engine_park: this, and more by the place of a command below BATCH_STEP
    uint64_t wait_sequence      # the answer may leave when engine_durable() >= this
    BalancesAsked asked_of_all  # of BatchGetBalances, and this too:
    Core* core                  # what is read
    int64_t now_us              # and when

cdef void call_read(Caller* caller, uint32_t place, uint8_t method, const uint8_t* request, uint32_t size) noexcept nogil
    # Decodes into a place (0..CALLS_AHEAD - 1). The request's bytes must stay until call_run.
cdef int64_t call_business_us(const Caller* caller, uint32_t place) noexcept nogil
    # When the customer stood at the till, as the call in this place says; the end of time if it does not say or is refused.
cdef void call_prepare(Caller* caller, Engine* engine, uint32_t count) noexcept nogil
    # Starts the memory reads of the first `count` places.
cdef bint call_run(Caller* caller, Engine* engine, uint32_t place, Answer* answer) noexcept nogil
    # Executes and encodes. The caller has checked engine_room, the deadline and the size.
    # False: it must be parked (call_park), nothing was decided and answer is not touched.
cdef void call_park(Caller* caller, Engine* engine, uint32_t place, uint64_t token) noexcept nogil
    # Asks the runs; engine_told gives the token back with the facts. The request's bytes are the caller's to keep till then.
cdef void call_tell(Caller* caller, uint32_t place, const Facts* facts) noexcept nogil
    # Between call_read and call_run of a call that was parked: what the runs said. It may have to be parked again.
cdef bint call(Caller* caller, Engine* engine, uint8_t method, const uint8_t* request, uint32_t size, const Facts* facts,
               Answer* answer) noexcept nogil
    # One call alone: read, prepare and run with place 0. facts: of a call that was parked, else NULL. False as call_run.
cdef void call_refuse(Caller* caller, uint16_t status, int64_t a, int64_t b, Answer* answer) noexcept nogil
    # An answer that never reached the core: METHOD_UNKNOWN, MESSAGE_TOO_LARGE, DEADLINE_PASSED, ...
cdef void call_encode(const Program* program, uint8_t method, const Outcome* outcome, Answer* answer) noexcept nogil
    # The answer that an outcome gives; program may be NULL where there is none yet (then no outcome is OK).

cdef bint batch_begin(Caller* caller, Batch* batch, Answer* answer) noexcept nogil
    # Looks at a batch whose request, size, answer, method and token are set; all else is set here. False: it is refused whole, with `answer`.
cdef uint32_t batch_step(Caller* caller, Engine* engine, Batch* batch, bint late, Answer* answer) noexcept nogil
    # Runs the next BATCH_STEP commands of a BatchPost, or reads all members of a BatchGetBalances. Returns how many; 0: the engine has no
    # room now, or, with an `answer` that is not OK, the whole batch is refused. late: the deadline has passed, so they are refused instead.
    # The batch is complete when done == count. With `asked` set it is parked: go on when batch_tell has made that 0 again.
cdef uint32_t batch_balances(Caller* caller, Batch* batch, Answer* answer) noexcept nogil
    # Reads all members of a BatchGetBalances, without an engine: core and now_us are set. As batch_step; a programme must be in force.
cdef void batch_tell(Batch* batch, uint64_t place, const Facts* facts) noexcept nogil
    # What engine_told gave for the token batch.token + place.
