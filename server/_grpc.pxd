# gRPC's texts over HTTP/2: paths, time-outs, content types, encoded messages. Leaves without state.
# Not for frames (server/_http2) and not for what a message means (server/_wire). cimported by server/_http2 and server/_transport.
# Source: grpc/doc/PROTOCOL-HTTP2.md; grpc/doc/health-checking.md.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp

from ledger._layout cimport (
    METHOD_ANSWER_CHALLENGE, METHOD_BATCH_GET_BALANCES, METHOD_BATCH_POST, METHOD_BURN, METHOD_CAPTURE, METHOD_COMMIT, METHOD_EARN, METHOD_ENROLL,
    METHOD_GET_BALANCE, METHOD_GET_OPERATION, METHOD_HEALTH_CHECK, METHOD_NONE, METHOD_QUOTE, METHOD_RELEASE, METHOD_RESERVE, METHOD_RETURN,
)

cdef enum:
    GRPC_PREFIX_BYTES = 5       # compressed flag, length of the message (big endian)
    GRPC_CODE_COUNT = 17        # 0..16

cdef extern from *:
    """
    static const char GRPC_BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    static const char GRPC_HEX[] = "0123456789ABCDEF";
    """
    const char* GRPC_BASE64
    const char* GRPC_HEX


cdef inline bint grpc_text_is(const uint8_t* text, size_t size, const char* wanted, size_t wanted_size) noexcept nogil:
    return size == wanted_size and memcmp(text, wanted, wanted_size) == 0


cdef inline uint8_t grpc_method(const uint8_t* path, size_t size) noexcept nogil:
    """The Method of a path; METHOD_NONE: unknown service or method."""
    cdef const uint8_t* name
    if grpc_text_is(path, size, b"/grpc.health.v1.Health/Check", 28):
        return METHOD_HEALTH_CHECK
    if size <= 33 or memcmp(path, b"/loyalty.ledger.v1.LedgerService/", 33) != 0:
        return METHOD_NONE
    name = path + 33
    size -= 33
    if size == 10:
        if memcmp(name, b"EarnPoints", 10) == 0:
            return METHOD_EARN
        if memcmp(name, b"GetBalance", 10) == 0:
            return METHOD_GET_BALANCE
        if memcmp(name, b"BurnPoints", 10) == 0:
            return METHOD_BURN
    elif size == 9:
        if memcmp(name, b"BatchPost", 9) == 0:
            return METHOD_BATCH_POST
    elif size == 15:
        if memcmp(name, b"AnswerChallenge", 15) == 0:
            return METHOD_ANSWER_CHALLENGE
    elif size == 16:
        if memcmp(name, b"BatchGetBalances", 16) == 0:
            return METHOD_BATCH_GET_BALANCES
    elif size == 12:
        if memcmp(name, b"GetOperation", 12) == 0:
            return METHOD_GET_OPERATION
        if memcmp(name, b"EnrollMember", 12) == 0:
            return METHOD_ENROLL
        if memcmp(name, b"QuoteReceipt", 12) == 0:
            return METHOD_QUOTE
    elif size == 13:
        if memcmp(name, b"CommitReceipt", 13) == 0:
            return METHOD_COMMIT
        if memcmp(name, b"ReservePoints", 13) == 0:
            return METHOD_RESERVE
        if memcmp(name, b"ReturnReceipt", 13) == 0:
            return METHOD_RETURN
    elif size == 18:
        if memcmp(name, b"CaptureReservation", 18) == 0:
            return METHOD_CAPTURE
        if memcmp(name, b"ReleaseReservation", 18) == 0:
            return METHOD_RELEASE
    return METHOD_NONE


cdef inline int64_t grpc_timeout_us(const uint8_t* text, size_t size) noexcept nogil:
    """A grpc-timeout in microseconds, nanoseconds rounded up; -1: malformed."""
    cdef int64_t value = 0
    cdef size_t i
    cdef uint8_t unit
    if size < 2 or size > 9:
        return -1
    for i in range(size - 1):
        if text[i] < c'0' or text[i] > c'9':
            return -1
        value = value * 10 + (text[i] - c'0')
    unit = text[size - 1]
    if unit == c'H':
        return value * 3600 * 1_000_000
    if unit == c'M':
        return value * 60_000_000
    if unit == c'S':
        return value * 1_000_000
    if unit == c'm':
        return value * 1000
    if unit == c'u':
        return value
    if unit == c'n':
        return (value + 999) // 1000
    return -1


cdef inline bint grpc_content_type(const uint8_t* text, size_t size) noexcept nogil:
    """Whether a content-type is gRPC with protobuf messages."""
    if size < 16 or memcmp(text, b"application/grpc", 16) != 0:
        return False
    text += 16
    size -= 16
    if size >= 6 and memcmp(text, b"+proto", 6) == 0:
        text += 6
        size -= 6
    return size == 0 or text[0] == c';' or text[0] == c' '


cdef inline uint32_t grpc_percent_encode(const uint8_t* text, uint32_t size, uint8_t* out) noexcept nogil:
    """Writes a grpc-message; out: room for 3 * size bytes. Returns the size."""
    cdef uint32_t i, used = 0
    cdef uint8_t byte
    for i in range(size):
        byte = text[i]
        if byte >= 0x20 and byte <= 0x7E and byte != c'%':
            out[used] = byte
            used += 1
        else:
            out[used] = c'%'
            out[used + 1] = <uint8_t>GRPC_HEX[byte >> 4]
            out[used + 2] = <uint8_t>GRPC_HEX[byte & 15]
            used += 3
    return used


cdef inline uint32_t grpc_base64(const uint8_t* data, uint32_t size, uint8_t* out) noexcept nogil:
    """Writes a -bin header without padding; out: room for (size * 4 + 2) / 3 bytes. Returns the size."""
    cdef uint32_t i = 0, used = 0
    cdef uint32_t word
    while i + 3 <= size:
        word = <uint32_t>data[i] << 16 | <uint32_t>data[i + 1] << 8 | data[i + 2]
        out[used] = <uint8_t>GRPC_BASE64[word >> 18]
        out[used + 1] = <uint8_t>GRPC_BASE64[word >> 12 & 63]
        out[used + 2] = <uint8_t>GRPC_BASE64[word >> 6 & 63]
        out[used + 3] = <uint8_t>GRPC_BASE64[word & 63]
        i += 3
        used += 4
    if size - i == 1:
        word = <uint32_t>data[i] << 16
        out[used] = <uint8_t>GRPC_BASE64[word >> 18]
        out[used + 1] = <uint8_t>GRPC_BASE64[word >> 12 & 63]
        used += 2
    elif size - i == 2:
        word = <uint32_t>data[i] << 16 | <uint32_t>data[i + 1] << 8
        out[used] = <uint8_t>GRPC_BASE64[word >> 18]
        out[used + 1] = <uint8_t>GRPC_BASE64[word >> 12 & 63]
        out[used + 2] = <uint8_t>GRPC_BASE64[word >> 6 & 63]
        used += 3
    return used


cdef inline bint grpc_varint(const uint8_t* data, uint32_t size, uint32_t* at, uint64_t* value) noexcept nogil:
    """Reads one varint at *at and moves behind it; False: broken."""
    cdef uint32_t shift = 0
    value[0] = 0
    while at[0] < size and shift < 64:
        value[0] |= <uint64_t>(data[at[0]] & 127) << shift
        at[0] += 1
        if data[at[0] - 1] < 128:
            return True
        shift += 7
    return False


cdef inline bint grpc_health_service(const uint8_t* data, uint32_t size, const uint8_t** service, uint32_t* service_size) noexcept nogil:
    """Reads HealthCheckRequest.service (field 1; the last one counts, other fields are skipped). False: not protobuf."""
    cdef uint32_t at = 0
    cdef uint64_t key, value
    service[0] = data
    service_size[0] = 0
    while at < size:
        if not grpc_varint(data, size, &at, &key) or key >> 3 == 0:
            return False
        if key & 7 == 0:
            if not grpc_varint(data, size, &at, &value):
                return False
            continue
        if key & 7 == 2:
            if not grpc_varint(data, size, &at, &value):
                return False
        elif key & 7 == 1:
            value = 8
        elif key & 7 == 5:
            value = 4
        else:
            return False
        if value > size - at:
            return False
        if key == (1 << 3 | 2):
            service[0] = data + at
            service_size[0] = <uint32_t>value
        at += <uint32_t>value
    return True
