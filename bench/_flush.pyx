"""What the disk can do by itself: one write and one fdatasync after the other into a preallocated, already written file.

The control beside every durable figure; written as the tail writes (ledger/_tail.pyx), but without anything around it. Used by bench/run.py.
"""

import os

import numpy as np

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from bench._histogram cimport HISTOGRAM_BUCKETS, Histogram, histogram_add

cdef extern from *:
    """
    #include <stdlib.h>
    #include <time.h>
    #include <unistd.h>
    static inline int64_t flush_now(void) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }
    static inline int flush_write(int fd, const void *data, size_t size, int64_t offset) {
        return pwrite(fd, data, size, offset) == (ssize_t)size && fdatasync(fd) == 0;
    }
    """
    int64_t flush_now() noexcept nogil
    bint flush_write(int fd, const void* data, size_t size, int64_t offset) noexcept nogil


def bare_flushes(path: str, size: int, file_bytes: int, seconds: float) -> dict:
    """Write and flush `size` bytes again and again for `seconds`, going round in a file of `file_bytes`.

    Shape: `histogram`, `count`, `sum_ns`, `max_ns`, `seconds`. Errors: OSError. The file is removed afterwards.
    """
    cdef Histogram* histogram = <Histogram*>calloc(1, sizeof(Histogram))
    cdef char* data = <char*>calloc(1, size)
    cdef int64_t until, begin, now, started, offset = 0, step = size, room = file_bytes
    cdef bint good = True
    cdef int fd
    cdef uint64_t[::1] view
    if histogram == NULL or data == NULL:
        free(histogram)
        free(data)
        raise MemoryError()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        zeros = bytes(1 << 20)
        for _ in range(file_bytes // len(zeros)):
            os.write(fd, zeros)
        os.fsync(fd)
        memset(data, 0x5A, size)
        started = flush_now()
        until = started + <int64_t>(seconds * 1e9)
        with nogil:
            now = started
            while good and now < until:
                begin = now
                good = flush_write(fd, data, step, offset)
                now = flush_now()
                histogram_add(histogram, now - begin)
                offset = offset + step if offset + 2 * step <= room else 0
        if not good:
            raise OSError(f"write or fdatasync failed on {path}")
        view = <uint64_t[:HISTOGRAM_BUCKETS]>histogram.counts
        return {"histogram": np.array(view), "count": histogram.count, "sum_ns": histogram.sum_ns, "max_ns": histogram.max_ns,
                "seconds": (now - started) / 1e9}
    finally:
        os.close(fd)
        os.unlink(path)
        free(histogram)
        free(data)
