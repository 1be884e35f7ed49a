# Leaves: identifiers of members, normalised and hashed (design D16). No personal data leaves this file.
# Not for looking them up. cimported by ledger/_core.pyx alone.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy
from ledger._hash cimport Hash128, siphash
from ledger._layout cimport MEMBER_BY_EMAIL, MEMBER_BY_PHONE, Slice
from ledger._limits cimport EMAIL_BYTES_MAX, IDENTIFIER_BYTES_MAX, PHONE_DIGITS_MAX, PHONE_DIGITS_MIN

cdef enum:
    IDENTITY_BYTES = 160        # type byte and the longest normalised value


cdef inline bint identity_hash(const uint8_t* key, uint8_t kind, Slice text, Hash128* out) noexcept nogil:
    # SipHash-2-4-128 under `key` of the type byte and the normalised value. False: the value is not of its kind.
    # Phone: E.164 digits behind '+', blanks - . ( ) ignored. E-mail: trimmed, ASCII lower case. Card, app: verbatim.
    cdef uint8_t buffer[IDENTITY_BYTES]
    cdef uint32_t size = 1, start = 0, end = text.size, i, at_signs = 0
    cdef uint8_t c
    buffer[0] = kind
    if kind == MEMBER_BY_PHONE:
        if text.size > IDENTIFIER_BYTES_MAX:
            return False
        for i in range(text.size):
            c = text.data[i]
            if c == 0x2B and size == 1:                     # '+'
                buffer[1] = c
                size = 2
            elif 0x30 <= c <= 0x39 and size >= 2:           # digits
                if size == 2 and c == 0x30:
                    return False
                if size == PHONE_DIGITS_MAX + 2:
                    return False
                buffer[size] = c
                size += 1
            elif c != 0x20 and c != 0x2D and c != 0x2E and c != 0x28 and c != 0x29:
                return False
        if size < PHONE_DIGITS_MIN + 2:
            return False
    elif kind == MEMBER_BY_EMAIL:
        if text.size > EMAIL_BYTES_MAX:
            return False
        while start < end and text.data[start] == 0x20:
            start += 1
        while end > start and text.data[end - 1] == 0x20:
            end -= 1
        if end - start < 3 or text.data[start] == 0x40 or text.data[end - 1] == 0x40:
            return False
        for i in range(start, end):
            c = text.data[i]
            if c <= 0x20 or c == 0x7F:
                return False
            if c == 0x40:
                at_signs += 1
            if 0x41 <= c <= 0x5A:
                c += 0x20
            buffer[size] = c
            size += 1
        if at_signs != 1:
            return False
    else:
        if text.size < 1 or text.size > IDENTIFIER_BYTES_MAX:
            return False
        memcpy(buffer + 1, text.data, text.size)
        size += text.size
    out[0] = siphash(key, buffer, size)
    return True
