# One call from request bytes to answer bytes: decode, execute, encode (docs/ARCHITECTURE.md).
# Not for sockets, deadlines and sizes (server/_transport.pyx) nor for meaning (ledger/_core.pyx).
# Called by server/_transport.pyx for its sockets and the inbox; call_encode also by server/_local.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, strlen
from ledger._engine cimport engine_execute, engine_park, engine_prepare, engine_program
from ledger._layout cimport Facts, LOOKED_UP
from ledger._status cimport STATUS_OK
from server._wire cimport outcome_forget, wire_answer, wire_decode, wire_error, wire_grpc_code

cdef enum:
    GRPC_INTERNAL = 13

cdef const char* UNREADABLE = "the entry that answers this request cannot be read"


cdef void call_read(Caller* caller, uint32_t place, uint8_t method, const uint8_t* request, uint32_t size) noexcept nogil:
    # A request that the codec refuses looked at nothing: its answer waits for no sequence.
    caller.decoded[place] = wire_decode(method, request, size, &caller.commands[place], &caller.outcomes[place])


cdef void call_prepare(Caller* caller, Engine* engine, uint32_t count) noexcept nogil:
    cdef Command* commands[CALLS_AHEAD]
    cdef uint32_t place, good = 0
    for place in range(count):
        if caller.decoded[place]:
            commands[good] = &caller.commands[place]
            good += 1
    engine_prepare(engine, commands, good)


cdef bint call_run(Caller* caller, Engine* engine, uint32_t place, Answer* answer) noexcept nogil:
    if caller.decoded[place]:
        engine_execute(engine, &caller.commands[place], &caller.outcomes[place])
        if caller.outcomes[place].parked:
            return False
    call_encode(engine_program(engine), caller.commands[place].method, &caller.outcomes[place], answer)
    return True


cdef void call_park(Caller* caller, Engine* engine, uint32_t place, uint64_t token) noexcept nogil:
    engine_park(engine, token, &caller.outcomes[place].lookup)


cdef void call_tell(Caller* caller, uint32_t place, const Facts* facts) noexcept nogil:
    if caller.decoded[place]:
        caller.commands[place].found = facts[0]
        caller.commands[place].hashed |= LOOKED_UP


cdef bint call(Caller* caller, Engine* engine, uint8_t method, const uint8_t* request, uint32_t size, const Facts* facts,
               Answer* answer) noexcept nogil:
    call_read(caller, 0, method, request, size)
    if facts != NULL:
        call_tell(caller, 0, facts)
    call_prepare(caller, engine, 1)
    return call_run(caller, engine, 0, answer)


cdef void call_refuse(Caller* caller, uint16_t status, int64_t a, int64_t b, Answer* answer) noexcept nogil:
    outcome_forget(&caller.outcomes[0])
    caller.outcomes[0].status = status
    caller.outcomes[0].a = a
    caller.outcomes[0].b = b
    call_encode(NULL, 0, &caller.outcomes[0], answer)


cdef void call_encode(const Program* program, uint8_t method, const Outcome* outcome, Answer* answer) noexcept nogil:
    answer.status = outcome.status
    answer.replayed = outcome.replayed
    answer.wait_sequence = outcome.wait_sequence
    answer.message_size = 0
    answer.grpc_code = wire_grpc_code(outcome.status)
    if outcome.status != STATUS_OK:
        answer.size = wire_error(program, method, outcome, answer.data, DETAILS_BYTES_MAX, answer.message, MESSAGE_BYTES_MAX,
                                 &answer.message_size)
        return
    answer.size = wire_answer(program, method, outcome, answer.data)
    if answer.size == 0:
        # No answer is empty, so its entry is damaged. Without details the caller takes the outcome for unknown, and that it is.
        answer.grpc_code = GRPC_INTERNAL
        answer.message_size = <uint32_t>strlen(UNREADABLE)
        memcpy(answer.message, UNREADABLE, answer.message_size)
