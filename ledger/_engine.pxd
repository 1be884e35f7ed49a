# The loop's steps around the core: open group, seal, flush hand-over, durable watermark, inbox and outbox.
# What it promises stands in _engine.pyx. cimported by server/_call.pyx and server/_transport.pyx.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from ledger._core cimport Core
from ledger._layout cimport Command, Facts, Lookup, Outcome
from ledger._rules cimport Program

cdef struct Engine              # its fields are in _engine.pyx alone

cdef enum:
    INBOX_GONE = 255            # as a method: no call, but that nobody waits any more for the one with this token

cdef struct InboxCall:          # one call of the control port; data stays valid until the next engine_inbox_take
    uint64_t token              # the caller's, given back with the answer
    int64_t deadline_us         # monotonic us; 0: none
    const uint8_t* data
    uint32_t size               # bytes
    uint8_t method              # Method, or INBOX_GONE

# All of these are called by the hot thread alone.
cdef int64_t engine_begin_turn(Engine* engine) noexcept nogil
    # Reads the clock once for this turn of the loop; returns the server time in us (never goes back).
cdef bint engine_room(Engine* engine) noexcept nogil
    # Whether a command may be executed now: the open group, the ring and the tail have room for one more entry.
    # When False the caller stops taking requests (sockets and inbox) until a later turn; nothing is refused for it.
cdef void engine_prepare(Engine* engine, Command** commands, uint32_t count) noexcept nogil
    # core_prepare: the memory reads of commands that will be executed next.
cdef void engine_execute(Engine* engine, const Command* command, Outcome* outcome) noexcept nogil
    # Runs the space and readiness gates for writes, then core_execute into the open group. Call only with engine_room.
    # A parked outcome: nothing was written; hand its lookup to engine_park and execute the command again with the facts.
cdef void engine_park(Engine* engine, uint64_t token, const Lookup* lookup) noexcept nogil
    # Hands a question to the look-up thread; token: the caller's, told with the answer. At most LOOKUPS_MAX wait at a time.
cdef bint engine_foresee(Engine* engine, const Command* command, Lookup* lookup) noexcept nogil
    # core_foresee: what the runs would be asked for a command that is not yet to be executed, so that they can be asked before.
cdef bint engine_told(Engine* engine, uint64_t* token, Facts* facts) noexcept nogil
    # The next answer of the look-up thread, in the order of parking; False when there is none. engine_event_fd announces them.
cdef bint engine_told_waits(const Engine* engine) noexcept nogil
    # Whether there is one.
cdef void engine_end_turn(Engine* engine, bint alone) noexcept nogil
    # Ticks, takes in a finished flush, seals the open group if no flush is in flight: hands it to the flush thread, or, with
    # `alone` (nobody else is waiting), flushes it right here.
cdef uint64_t engine_durable(const Engine* engine) noexcept nogil
    # Every entry up to this sequence is on disk.
cdef int engine_event_fd(const Engine* engine) noexcept nogil
    # An eventfd that becomes readable when a flush ended, the inbox has calls, the ring has room again or a stop was asked.
    # engine_begin_turn clears it.
cdef int64_t engine_sleep_us(const Engine* engine) noexcept nogil
    # How long the loop may sleep at most until ticks are due.
cdef int engine_stopping(const Engine* engine) noexcept nogil
    # 0 runs; 1 a graceful stop was asked (finish what is open, take nothing new); 2 stop now.
cdef bint engine_idle(const Engine* engine) noexcept nogil
    # Nothing open, nothing in flight: every answer may leave.
cdef bint engine_inbox_take(Engine* engine, InboxCall* call) noexcept nogil
    # The next call of the control port; False when there is none.
cdef bint engine_outbox_put(Engine* engine, uint64_t token, int grpc_code, const uint8_t* data, uint32_t size,
                            const uint8_t* details, uint32_t details_size, const uint8_t* message, uint32_t message_size) noexcept nogil
    # An answer for the control port. False when the outbox is full: keep it and try in the next turn.
cdef Core* engine_reading(Engine* engine, int64_t* now_us) noexcept nogil
    # The state, for reads alone (they need no gates), and the time of this turn.
cdef const Program* engine_program(const Engine* engine) noexcept nogil

cdef class EngineHandle:        # Python's hold on an Engine; see ledger/_engine.pyi
    cdef Engine* engine

    cdef int open_core(self) except -1
    cdef bint put(self, uint64_t token, uint8_t method, const uint8_t* request, uint32_t size, int64_t deadline_us) noexcept
    cdef int64_t seed_time(self) noexcept
    cdef int seed_group(self, uint32_t size) except -1
