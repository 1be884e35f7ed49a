# HTTP/2 frames (RFC 9113): their names, numbers and heads. Leaves without state; every function is inline.
# Not for what a frame does to a connection, and not for header blocks.
# cimported by the checkout port (server/) and the load generator (bench/).

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy

cdef extern from *:
    """
    #define FRAME_PREFACE_TEXT "PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n"
    """
    const char* FRAME_PREFACE_TEXT

cdef enum:
    FRAME_PREFACE_BYTES = 24    # what a client sends first (section 3.4)
    FRAME_HEAD_BYTES = 9
    FRAME_BYTES_MAX = 16_384    # of a payload, until SETTINGS_MAX_FRAME_SIZE says more: what every peer takes
    FRAME_SIZE_MAX = 16_777_215 # the largest SETTINGS_MAX_FRAME_SIZE
    FRAME_WINDOW_BYTES = 65_535 # initial flow-control window of a connection and of its streams
    FRAME_WINDOW_MAX = 0x7fffffff
    FRAME_STREAM_MAX = 0x7fffffff
    FRAME_SETTING_BYTES = 6     # of one entry of SETTINGS
    FRAME_PING_BYTES = 8
    FRAME_HEADER_TABLE_BYTES = 4096     # SETTINGS_HEADER_TABLE_SIZE, until a peer says something else

cdef enum:                      # types (section 6)
    FRAME_DATA = 0
    FRAME_HEADERS = 1
    FRAME_PRIORITY = 2
    FRAME_RST_STREAM = 3
    FRAME_SETTINGS = 4
    FRAME_PUSH_PROMISE = 5
    FRAME_PING = 6
    FRAME_GOAWAY = 7
    FRAME_WINDOW_UPDATE = 8
    FRAME_CONTINUATION = 9

cdef enum:                      # flags
    FLAG_END_STREAM = 0x01      # DATA, HEADERS
    FLAG_ACK = 0x01             # SETTINGS, PING
    FLAG_END_HEADERS = 0x04     # HEADERS, CONTINUATION
    FLAG_PADDED = 0x08          # DATA, HEADERS
    FLAG_PRIORITY = 0x20        # HEADERS

cdef enum:                      # SETTINGS
    SETTING_HEADER_TABLE_SIZE = 1
    SETTING_ENABLE_PUSH = 2
    SETTING_MAX_CONCURRENT_STREAMS = 3
    SETTING_INITIAL_WINDOW_SIZE = 4
    SETTING_MAX_FRAME_SIZE = 5
    SETTING_MAX_HEADER_LIST_SIZE = 6
    SETTING_NO_RFC7540_PRIORITIES = 9

cdef enum:                      # error codes (section 7)
    HTTP2_NO_ERROR = 0
    HTTP2_PROTOCOL_ERROR = 1
    HTTP2_INTERNAL_ERROR = 2
    HTTP2_FLOW_CONTROL_ERROR = 3
    HTTP2_STREAM_CLOSED = 5
    HTTP2_FRAME_SIZE_ERROR = 6
    HTTP2_REFUSED_STREAM = 7
    HTTP2_CANCEL = 8
    HTTP2_COMPRESSION_ERROR = 9
    HTTP2_ENHANCE_YOUR_CALM = 11

cdef struct FrameHead:
    uint32_t size               # bytes of the payload
    uint32_t stream             # 0: the connection
    uint8_t type                # FRAME_*
    uint8_t flags               # FLAG_*


cdef inline uint32_t frame_read_u32(const uint8_t* data) noexcept nogil:
    """A number of four bytes, big endian."""
    return <uint32_t>data[0] << 24 | <uint32_t>data[1] << 16 | <uint32_t>data[2] << 8 | data[3]


cdef inline uint16_t frame_read_u16(const uint8_t* data) noexcept nogil:
    return <uint16_t>(data[0] << 8 | data[1])


cdef inline uint8_t* frame_write_u32(uint8_t* out, uint32_t value) noexcept nogil:
    """Writes four bytes, big endian. Returns what follows, as all writers here do."""
    out[0] = <uint8_t>(value >> 24)
    out[1] = <uint8_t>(value >> 16)
    out[2] = <uint8_t>(value >> 8)
    out[3] = <uint8_t>value
    return out + 4


cdef inline uint8_t* frame_write_u16(uint8_t* out, uint16_t value) noexcept nogil:
    out[0] = <uint8_t>(value >> 8)
    out[1] = <uint8_t>value
    return out + 2


cdef inline void frame_read_head(const uint8_t* data, FrameHead* head) noexcept nogil:
    """Reads FRAME_HEAD_BYTES; the reserved bit is ignored."""
    head.size = <uint32_t>data[0] << 16 | <uint32_t>data[1] << 8 | data[2]
    head.type = data[3]
    head.flags = data[4]
    head.stream = frame_read_u32(data + 5) & FRAME_STREAM_MAX


cdef inline uint8_t* frame_write_head(uint8_t* out, uint32_t size, uint8_t type, uint8_t flags, uint32_t stream) noexcept nogil:
    """Writes FRAME_HEAD_BYTES."""
    out[0] = <uint8_t>(size >> 16)
    out[1] = <uint8_t>(size >> 8)
    out[2] = <uint8_t>size
    out[3] = type
    out[4] = flags
    return frame_write_u32(out + 5, stream)


cdef inline uint8_t* frame_write_setting(uint8_t* out, uint16_t setting, uint32_t value) noexcept nogil:
    """One entry of SETTINGS; the head is the caller's."""
    return frame_write_u32(frame_write_u16(out, setting), value)


cdef inline uint8_t* frame_write_window_update(uint8_t* out, uint32_t stream, uint32_t increment) noexcept nogil:
    return frame_write_u32(frame_write_head(out, 4, FRAME_WINDOW_UPDATE, 0, stream), increment)


cdef inline uint8_t* frame_write_rst_stream(uint8_t* out, uint32_t stream, uint32_t code) noexcept nogil:
    return frame_write_u32(frame_write_head(out, 4, FRAME_RST_STREAM, 0, stream), code)


cdef inline uint8_t* frame_write_goaway(uint8_t* out, uint32_t last_stream, uint32_t code) noexcept nogil:
    return frame_write_u32(frame_write_u32(frame_write_head(out, 8, FRAME_GOAWAY, 0, 0), last_stream), code)


cdef inline uint8_t* frame_write_ping(uint8_t* out, uint8_t flags, const uint8_t* data) noexcept nogil:
    """data: FRAME_PING_BYTES."""
    out = frame_write_head(out, FRAME_PING_BYTES, FRAME_PING, flags, 0)
    memcpy(out, data, FRAME_PING_BYTES)
    return out + FRAME_PING_BYTES
