# Leaf: how a thread stands with the scheduler. A wish: a kernel that refuses costs time, nothing else.
# Not for starting threads (server/service.py). cimported by ledger/_engine.pyx and server/_transport.pyx.

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* Lower priority for the calling thread: whoever answers a till goes first. Needs no privilege. */
    static inline void ledger_thread_step_back(int nice) { setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), nice); }
    /* Short turns for the calling thread: since Linux 6.12 a thread that wakes takes the processor at once from one with longer turns, instead
       of waiting up to 3 ms for the end of its turn. Its share of the processor stays the same. Needs no privilege. */
    static inline void ledger_thread_short_turns(void) {
        struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } wish;
        memset(&wish, 0, sizeof wish);
        wish.size = sizeof wish;
        wish.nice = getpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid));
        wish.runtime = 100000;      /* ns, the least that the kernel takes */
        syscall(SYS_sched_setattr, 0, &wish, 0);
    }
    """
    void thread_short_turns "ledger_thread_short_turns"() noexcept nogil
    void thread_step_back "ledger_thread_step_back"(int nice) noexcept nogil
