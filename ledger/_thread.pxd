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
    /* Short turns for the calling thread, 0.1 ms instead of 3: woken, it takes the processor from whoever takes long ones, and gives it back
       as soon (Linux 6.12 and later). Its share stays what it was. Needs no privilege. */
    static inline void ledger_thread_short_turns(void) {
        struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } wish;
        memset(&wish, 0, sizeof wish);
        if (syscall(SYS_sched_getattr, 0, &wish, sizeof wish, 0) != 0 || wish.policy != 0) return;
        wish.size = sizeof wish;
        wish.runtime = 100000;
        syscall(SYS_sched_setattr, 0, &wish, 0);
    }
    """
    void thread_short_turns "ledger_thread_short_turns"() noexcept nogil
    void thread_step_back "ledger_thread_step_back"(int nice) noexcept nogil
