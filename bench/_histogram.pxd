# Leaf: latency histogram, log-linear as in HdrHistogram: exact to 255 ns, then 128 buckets per power of two (error < 0.8 %).
# Not for reading percentiles (bench/measure.py does that with numpy). cimported by bench/_load.pyx.

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    HISTOGRAM_EXACT = 256           # values below have a bucket each
    HISTOGRAM_BUCKETS = 3840        # HISTOGRAM_EXACT + 28 powers of two (2^8..2^35) * 128
    HISTOGRAM_VALUE_BITS = 36       # 2^36 ns = 68.7 s; longer ones count as the longest

cdef extern from *:
    """
    static inline int load_top_bit(uint64_t value) { return 63 - __builtin_clzll(value); }
    """
    int top_bit "load_top_bit"(uint64_t value) noexcept nogil   # value > 0

cdef struct Histogram:
    uint64_t counts[HISTOGRAM_BUCKETS]
    uint64_t count
    uint64_t sum_ns
    uint64_t max_ns


cdef inline uint32_t histogram_bucket(uint64_t value) noexcept nogil:
    cdef int top
    if value < HISTOGRAM_EXACT:
        return <uint32_t>value
    if value >> HISTOGRAM_VALUE_BITS:
        return HISTOGRAM_BUCKETS - 1
    top = top_bit(value)
    return HISTOGRAM_EXACT + <uint32_t>(top - 8) * 128 + <uint32_t>(value >> (top - 7)) - 128


cdef inline void histogram_add(Histogram* histogram, int64_t value_ns) noexcept nogil:
    cdef uint64_t value = <uint64_t>value_ns if value_ns > 0 else 0
    histogram.counts[histogram_bucket(value)] += 1
    histogram.count += 1
    histogram.sum_ns += value
    if value > histogram.max_ns:
        histogram.max_ns = value
