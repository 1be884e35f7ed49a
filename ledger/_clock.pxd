# Leaves: the only compiled code that reads clocks. Server time as docs/ARCHITECTURE.md defines it: it never goes back, and a
# forward step against the boot clock is not believed.
# Not for business time (it comes with the command). cimported by _engine and the transport (deadlines, time-outs).
# The Python twin of monotonic_us() is time.monotonic_ns() // 1000.

from libc.stdint cimport int64_t
from ledger._limits cimport TIME_GAP_US_MAX, TIME_JUMP_US_MAX

cdef extern from *:
    """
    #include <stdint.h>
    #include <time.h>
    static inline int64_t ledger_clock_us(clockid_t which) {
        struct timespec now;
        clock_gettime(which, &now);
        return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
    }
    #define ledger_realtime_us() ledger_clock_us(CLOCK_REALTIME)
    #define ledger_monotonic_us() ledger_clock_us(CLOCK_MONOTONIC)
    #define ledger_boot_us() ledger_clock_us(CLOCK_BOOTTIME)    /* runs on while the machine sleeps */
    #define ledger_clock_file(at) __atomic_load_n((at), __ATOMIC_RELAXED)
    """
    int64_t realtime_us "ledger_realtime_us"() noexcept nogil
    int64_t monotonic_us "ledger_monotonic_us"() noexcept nogil
    int64_t boot_us "ledger_boot_us"() noexcept nogil
    int64_t clock_file_us "ledger_clock_file"(const int64_t* at) noexcept nogil

cdef struct Clock:
    const int64_t* file         # mapped file whose int64 is the time, for tests; NULL: the system's clock
    int64_t last_us             # server time given out last
    int64_t boot_us             # boot clock at that turn
    int64_t offset_us           # the highest realtime - boot clock that was believed
    int64_t behind_us           # how far realtime is behind server time: a step back, waited out
    int64_t ahead_us            # how far realtime is ahead of what is believed; above 0 only with alarm
    bint stepped                # a forward step while running: time goes on by the boot clock, ticks stand still
    bint gap                    # a forward gap against the journal at start: the same, from the journal's time on


cdef inline void clock_open(Clock* clock, const int64_t* file) noexcept nogil:
    clock.file = file
    clock.last_us = 0
    clock.boot_us = boot_us()
    clock.offset_us = realtime_us() - clock.boot_us
    clock.behind_us = 0
    clock.ahead_us = 0
    clock.stepped = False
    clock.gap = False


cdef inline void clock_hold(Clock* clock) noexcept nogil:
    # At start, with last_us set: realtime is not believed, time goes on from there by the boot clock.
    clock.gap = True
    clock.offset_us = clock.last_us - clock.boot_us


cdef inline int64_t clock_turn(Clock* clock) noexcept nogil:
    # Reads the clocks once for a turn of the loop; returns the server time in us.
    cdef int64_t now, ahead
    cdef bint was_gap = clock.gap
    clock.boot_us = boot_us()
    if clock.file != NULL:
        now = clock_file_us(clock.file)
    else:
        now = realtime_us()
        ahead = now - clock.boot_us - clock.offset_us
        # After a gap at start nobody knows how long the service was down: what the start would have believed ends it.
        clock.gap = ahead > TIME_GAP_US_MAX if was_gap else False
        clock.stepped = False if was_gap else ahead > TIME_JUMP_US_MAX
        if clock.stepped or clock.gap:
            # Entries with times of the future could not be taken back: go on by the boot clock until the step is gone.
            clock.ahead_us = ahead
            now = clock.boot_us + clock.offset_us
        else:
            # A step back does not lower what is believed, or the way back up would look like a step ahead.
            if ahead > 0:
                clock.offset_us += ahead
            clock.ahead_us = 0
    clock.behind_us = clock.last_us - now if now < clock.last_us else 0
    if now > clock.last_us:
        clock.last_us = now
    return clock.last_us
