# Leaf: how a thread stands with the scheduler. A wish: a kernel that refuses costs time, nothing else.
# Not for starting threads (server/service.py). cimported by ledger/_engine.pyx.

cdef extern from *:
    """
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* Lower priority for the calling thread: whoever answers a till goes first. Needs no privilege. */
    static inline void ledger_thread_step_back(int nice) { setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), nice); }
    """
    void thread_step_back "ledger_thread_step_back"(int nice) noexcept nogil
