# One call from request bytes to answer bytes: decode, execute, encode (docs/ARCHITECTURE.md).
# Not for sockets, deadlines and sizes (server/_transport.pyx) nor for meaning (ledger/_core.pyx).
# Called by server/_transport.pyx for its sockets and the inbox; call_encode also by server/_local.pyx; what only reads by server/_reader.pyx.
#
# A batch is calls behind each other whose answers stand in one. It goes step by step, so that the transport can look after others in
# between; what it has come to stands in Batch. Its commands never see that they are in a batch.

from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen
from ledger._core cimport CoreStats, core_execute, core_prepare, core_program, core_stats
from ledger._engine cimport engine_execute, engine_foresee, engine_park, engine_prepare, engine_program, engine_reading, engine_room
from ledger._layout cimport Facts, GIVEN_BUSINESS_TIME, LOOKED_UP, Lookup, METHOD_BATCH_POST, METHOD_GET_BALANCE, Slice
from ledger._limits cimport BATCH_STEP
from ledger._status cimport STATUS_COUNT, STATUS_DEADLINE_PASSED, STATUS_OK, STATUS_WALLET_NOT_FOUND
from server._wire cimport (
    outcome_forget, wire_answer, wire_balance_result, wire_balances_end, wire_batch, wire_batch_next, wire_decode, wire_decode_member,
    wire_decode_post, wire_error, wire_grpc_code, wire_post_result,
)

cdef enum:
    GRPC_INTERNAL = 13

cdef const char* UNREADABLE = "the entry that answers this request cannot be read"


cdef void call_read(Caller* caller, uint32_t place, uint8_t method, const uint8_t* request, uint32_t size) noexcept nogil:
    # A request that the codec refuses looked at nothing: its answer waits for no sequence.
    caller.decoded[place] = wire_decode(method, request, size, &caller.commands[place], &caller.outcomes[place])


cdef int64_t call_business_us(const Caller* caller, uint32_t place) noexcept nogil:
    if caller.decoded[place] and caller.commands[place].given & GIVEN_BUSINESS_TIME:
        return caller.commands[place].business_time_us
    return INT64_MAX


cdef inline uint32_t good_commands(Caller* caller, uint32_t count, Command** commands) noexcept nogil:
    cdef uint32_t place, good = 0
    for place in range(count):
        if caller.decoded[place]:
            commands[good] = &caller.commands[place]
            good += 1
    return good


cdef void call_prepare(Caller* caller, Engine* engine, uint32_t count) noexcept nogil:
    cdef Command* commands[CALLS_AHEAD]
    engine_prepare(engine, commands, good_commands(caller, count, commands))


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


# --- batches ----------------------------------------------------------------------------------------------------------

cdef bint batch_begin(Caller* caller, Batch* batch, Answer* answer) noexcept nogil:
    batch.offset = 0
    batch.done = 0
    batch.answer_size = 0
    batch.wait_sequence = 0
    batch.asked = 0
    batch.told = 0
    batch.count = wire_batch(batch.method, batch.request, batch.size, &batch.asked_of_all, &caller.outcomes[0])
    if batch.count == 0:
        call_encode(NULL, batch.method, &caller.outcomes[0], answer)
        return False
    return True


cdef inline void batch_count(Caller* caller, uint8_t method, const Outcome* outcome) noexcept nogil:
    caller.in_batches[method][outcome.status if outcome.status < STATUS_COUNT else 0] += 1


cdef inline void batch_wait(Batch* batch, const Outcome* outcome) noexcept nogil:
    if outcome.wait_sequence > batch.wait_sequence:
        batch.wait_sequence = outcome.wait_sequence


cdef uint32_t post_late(Caller* caller, Engine* engine, Batch* batch) noexcept nogil:
    """The deadline has passed: the next commands are not run, and told so."""
    cdef uint32_t ran = 0
    cdef Outcome* outcome = &caller.outcomes[0]
    outcome_forget(outcome)
    outcome.status = STATUS_DEADLINE_PASSED
    while ran < BATCH_STEP and batch.done < batch.count:
        batch.answer_size += wire_post_result(engine_program(engine), 0, outcome, batch.answer + batch.answer_size)
        batch_count(caller, 0, outcome)
        batch.done += 1
        ran += 1
    return ran


cdef void batch_ask(Engine* engine, Batch* batch, uint32_t place, const Lookup* lookup) noexcept nogil:
    engine_park(engine, batch.token + place, lookup)
    batch.asked += 1


cdef void post_park(Caller* caller, Engine* engine, Batch* batch, uint32_t first, uint32_t count) noexcept nogil:
    """The command in place `first` must wait for the runs. They are asked for those behind it too: one wait is enough for all of them."""
    cdef Lookup lookup
    cdef uint32_t place
    batch.told_from = batch.done
    batch.told = 0
    batch_ask(engine, batch, 0, &caller.outcomes[first].lookup)
    for place in range(first + 1, count):
        if caller.decoded[place] and engine_foresee(engine, &caller.commands[place], &lookup):
            batch_ask(engine, batch, place - first, &lookup)


cdef void batch_tell(Batch* batch, uint64_t place, const Facts* facts) noexcept nogil:
    batch.facts[place] = facts[0]
    batch.told |= <uint32_t>1 << place
    batch.asked -= 1


cdef inline void post_tell(Caller* caller, Batch* batch, uint32_t place) noexcept nogil:
    cdef uint32_t at = batch.done + place - batch.told_from
    if at < BATCH_STEP and batch.told >> at & 1:
        call_tell(caller, place, &batch.facts[at])


cdef uint32_t post_step(Caller* caller, Engine* engine, Batch* batch) noexcept nogil:
    """The next commands: decoded together, so that their memory reads start together, then run one by one."""
    cdef uint32_t offsets[CALLS_AHEAD]
    cdef uint32_t place, offset
    cdef uint32_t count = batch.count - batch.done
    cdef Outcome* outcome
    cdef Slice part
    if count > BATCH_STEP:
        count = BATCH_STEP
    offset = batch.offset
    for place in range(count):
        part = wire_batch_next(batch.request, batch.size, &offset)
        offsets[place] = offset
        caller.decoded[place] = wire_decode_post(part, &caller.commands[place], &caller.outcomes[place])
        if batch.told != 0:
            post_tell(caller, batch, place)
    call_prepare(caller, engine, count)
    for place in range(count):
        if not engine_room(engine):
            return place
        outcome = &caller.outcomes[place]
        if caller.decoded[place]:
            engine_execute(engine, &caller.commands[place], outcome)
            if outcome.parked:
                post_park(caller, engine, batch, place, count)
                return place
        batch.answer_size += wire_post_result(engine_program(engine), caller.commands[place].method, outcome, batch.answer + batch.answer_size)
        batch_wait(batch, outcome)
        batch_count(caller, caller.commands[place].method, outcome)
        batch.offset = offsets[place]
        batch.done += 1
    return count


cdef uint32_t batch_balances(Caller* caller, Batch* batch, Answer* answer) noexcept nogil:
    """Reads all members at once: nothing is written in between, so they are read at one sequence."""
    cdef Command* commands[CALLS_AHEAD]
    cdef uint32_t place, count
    cdef Outcome* outcome
    cdef int64_t now_us = batch.now_us
    cdef const CoreStats* stats = core_stats(batch.core)
    answer.status = STATUS_OK
    while batch.done < batch.count:
        count = batch.count - batch.done
        if count > CALLS_AHEAD:
            count = CALLS_AHEAD
        for place in range(count):
            caller.decoded[place] = wire_decode_member(wire_batch_next(batch.request, batch.size, &batch.offset), &batch.asked_of_all,
                                                       &caller.commands[place], &caller.outcomes[place])
        core_prepare(batch.core, commands, good_commands(caller, count, commands))
        for place in range(count):
            outcome = &caller.outcomes[place]
            if caller.decoded[place]:
                core_execute(batch.core, &caller.commands[place], now_us, NULL, outcome)
            if outcome.status == STATUS_WALLET_NOT_FOUND:   # so it is for all of them
                call_encode(core_program(batch.core), METHOD_GET_BALANCE, outcome, answer)
                return 0
            batch.answer_size += wire_balance_result(core_program(batch.core), outcome, batch.answer + batch.answer_size)
            batch_count(caller, METHOD_GET_BALANCE, outcome)
            batch.done += 1
    # What it says of the whole ledger must be on disk too.
    batch.wait_sequence = stats.sequence
    batch.answer_size += wire_balances_end(stats.sequence, now_us if now_us > stats.time_us else stats.time_us, batch.answer + batch.answer_size)
    return batch.count


cdef uint32_t batch_step(Caller* caller, Engine* engine, Batch* batch, bint late, Answer* answer) noexcept nogil:
    answer.status = STATUS_OK
    if late:
        return post_late(caller, engine, batch)
    if not engine_room(engine):
        return 0
    if batch.method == METHOD_BATCH_POST:
        return post_step(caller, engine, batch)
    batch.core = engine_reading(engine, &batch.now_us)
    return batch_balances(caller, batch, answer)
