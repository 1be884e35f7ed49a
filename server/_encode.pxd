# Leaves: protobuf messages, written from front to back into a buffer that the caller knows to be large enough.
# Not for which message says what: that is server/_wire.pyx and server/_entries.pyx, which cimport this.
# A tag is the field's number and wire type as protobuf has them. Values that are 0 are left out, as proto3 does.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove
from ledger._arith cimport div_floor

cdef struct Out:
    uint8_t* at                 # where the next byte goes


cdef inline void out_byte(Out* out, uint8_t value) noexcept nogil:
    out.at[0] = value
    out.at += 1


cdef inline void out_varint(Out* out, uint64_t value) noexcept nogil:
    while value >= 0x80:
        out_byte(out, <uint8_t>(value & 0x7F) | 0x80)
        value >>= 7
    out_byte(out, <uint8_t>value)


cdef inline void out_int(Out* out, uint32_t tag, int64_t value) noexcept nogil:
    if value != 0:
        out_varint(out, tag)
        out_varint(out, <uint64_t>value)


cdef inline void out_bytes(Out* out, uint32_t tag, const void* data, uint32_t size) noexcept nogil:
    if size != 0:
        out_varint(out, tag)
        out_varint(out, size)
        memcpy(out.at, data, size)
        out.at += size


cdef inline uint8_t* out_open(Out* out, uint32_t tag) noexcept nogil:
    # Begins a message inside; most have less than 128 bytes, so one byte is left for the length.
    out_varint(out, tag)
    out.at += 1
    return out.at


cdef inline void out_close(Out* out, uint8_t* body) noexcept nogil:
    # Messages inside have less than 256 MiB.
    cdef uint32_t size = <uint32_t>(out.at - body)
    cdef uint32_t more
    if size < 0x80:
        (body - 1)[0] = <uint8_t>size
        return
    more = 1 if size < 0x4000 else 2 if size < 0x200000 else 3
    memmove(body + more, body, size)
    out.at = body - 1
    out_varint(out, size)
    out.at += size


cdef inline void out_time(Out* out, uint32_t tag, int64_t time_us) noexcept nogil:
    # A Timestamp or Duration.
    cdef int64_t seconds = div_floor(time_us, 1_000_000)
    cdef uint8_t* body = out_open(out, tag)
    out_int(out, 8, seconds)
    out_int(out, 16, (time_us - seconds * 1_000_000) * 1000)
    out_close(out, body)
