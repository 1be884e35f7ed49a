# Leaves: loads and stores of the words that threads share. Release when published, acquire when read.
# Not for locks: no thread of the ledger takes one. cimported by _engine.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t ledger_load_u64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void ledger_store_u64(uint64_t *at, uint64_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static inline uint32_t ledger_load_u32(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void ledger_store_u32(uint32_t *at, uint32_t value) { __atomic_store_n(at, value, __ATOMIC_RELEASE); }
    static inline uint32_t ledger_exchange_u32(uint32_t *at, uint32_t value) { return __atomic_exchange_n(at, value, __ATOMIC_SEQ_CST); }
    static inline void ledger_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    uint64_t load_u64 "ledger_load_u64"(const uint64_t* at) noexcept nogil
    void store_u64 "ledger_store_u64"(uint64_t* at, uint64_t value) noexcept nogil
    uint32_t load_u32 "ledger_load_u32"(const uint32_t* at) noexcept nogil
    void store_u32 "ledger_store_u32"(uint32_t* at, uint32_t value) noexcept nogil
    uint32_t exchange_u32 "ledger_exchange_u32"(uint32_t* at, uint32_t value) noexcept nogil
    void fence "ledger_fence"() noexcept nogil
