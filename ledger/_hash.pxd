# Leaves: SipHash-2-4 with 128 bits for keys that come from outside, and the 128-bit fact hash of the state digest.
# Not for the journal's chain (SHA-256 from OpenSSL, ledger/_tail.pyx). cimported by _core and the compiled verifier.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    typedef struct { uint64_t lo, hi; } Hash128;

    #define SIP_ROTL(x, b) (uint64_t)(((x) << (b)) | ((x) >> (64 - (b))))
    #define SIP_ROUND do { \\
        v0 += v1; v1 = SIP_ROTL(v1, 13); v1 ^= v0; v0 = SIP_ROTL(v0, 32); \\
        v2 += v3; v3 = SIP_ROTL(v3, 16); v3 ^= v2; \\
        v0 += v3; v3 = SIP_ROTL(v3, 21); v3 ^= v0; \\
        v2 += v1; v1 = SIP_ROTL(v1, 17); v1 ^= v2; v2 = SIP_ROTL(v2, 32); } while (0)

    /* SipHash-2-4 with 128-bit output (Aumasson, Bernstein; reference vectors in tests/ledger/test_leaves.py). */
    static inline Hash128 ledger_siphash(const uint8_t key[16], const uint8_t *data, uint32_t size) {
        uint64_t k0, k1, m, v0, v1, v2, v3, b = ((uint64_t)size) << 56;
        const uint8_t *end = data + (size & ~7u);
        Hash128 out;
        uint32_t i, left = size & 7;
        memcpy(&k0, key, 8); memcpy(&k1, key + 8, 8);
        v0 = k0 ^ UINT64_C(0x736f6d6570736575); v1 = k1 ^ UINT64_C(0x646f72616e646f6d) ^ 0xee;
        v2 = k0 ^ UINT64_C(0x6c7967656e657261); v3 = k1 ^ UINT64_C(0x7465646279746573);
        for (; data != end; data += 8) {
            memcpy(&m, data, 8);
            v3 ^= m; SIP_ROUND; SIP_ROUND; v0 ^= m;
        }
        for (i = 0; i < left; i++) b |= (uint64_t)data[i] << (8 * i);
        v3 ^= b; SIP_ROUND; SIP_ROUND; v0 ^= b;
        v2 ^= 0xee; SIP_ROUND; SIP_ROUND; SIP_ROUND; SIP_ROUND;
        out.lo = v0 ^ v1 ^ v2 ^ v3;
        v1 ^= 0xdd; SIP_ROUND; SIP_ROUND; SIP_ROUND; SIP_ROUND;
        out.hi = v0 ^ v1 ^ v2 ^ v3;
        return out;
    }

    static inline uint64_t ledger_fold(uint64_t a, uint64_t b) {
        unsigned __int128 p = (unsigned __int128)a * b;
        return (uint64_t)p ^ (uint64_t)(p >> 64);
    }
    /* Six words to 128 bits by folded multiplication. For damage and bugs, not for attackers: those meet the chain. */
    static inline Hash128 ledger_fact(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3, uint64_t w4, uint64_t w5) {
        Hash128 out;
        uint64_t x = ledger_fold(w0 ^ UINT64_C(0xa0761d6478bd642f), w1 ^ UINT64_C(0xe7037ed1a0b428db));
        uint64_t y = ledger_fold(w2 ^ UINT64_C(0x8ebc6af09c88c6e3), w3 ^ UINT64_C(0x589965cc75374cc3));
        uint64_t z = ledger_fold(w4 ^ UINT64_C(0x1d8e4e27c47d124f), w5 ^ UINT64_C(0xeb44accab455d165));
        out.lo = ledger_fold(x ^ SIP_ROTL(y, 23), z ^ UINT64_C(0x9e3779b97f4a7c15));
        out.hi = ledger_fold(y ^ SIP_ROTL(z, 41) ^ out.lo, x ^ UINT64_C(0xc2b2ae3d27d4eb4f));
        return out;
    }
    /* A text of at most 16 bytes as two words. Neither copied byte by byte nor read beyond its end. */
    static inline void ledger_short_words(const uint8_t *text, uint32_t size, uint64_t words[2]) {
        uint32_t low, high, i;
        words[0] = words[1] = 0;
        if (size >= 8) { memcpy(&words[0], text, 8); memcpy(&words[1], text + size - 8, 8); }
        else if (size >= 4) { memcpy(&low, text, 4); memcpy(&high, text + size - 4, 4); words[0] = low; words[1] = high; }
        else for (i = 0; i < size; i++) words[0] = words[0] << 8 | text[i];
    }
    static inline void ledger_digest_add(Hash128 *sum, Hash128 fact) {
        unsigned __int128 s = ((unsigned __int128)sum->hi << 64 | sum->lo) + ((unsigned __int128)fact.hi << 64 | fact.lo);
        sum->lo = (uint64_t)s; sum->hi = (uint64_t)(s >> 64);
    }
    static inline void ledger_digest_sub(Hash128 *sum, Hash128 fact) {
        unsigned __int128 s = ((unsigned __int128)sum->hi << 64 | sum->lo) - ((unsigned __int128)fact.hi << 64 | fact.lo);
        sum->lo = (uint64_t)s; sum->hi = (uint64_t)(s >> 64);
    }
    /* The fact so many times, also less than none: as if it had been added or taken away that often. */
    static inline void ledger_digest_times(Hash128 *sum, Hash128 fact, int64_t times) {
        unsigned __int128 s = ((unsigned __int128)sum->hi << 64 | sum->lo);
        s += ((unsigned __int128)fact.hi << 64 | fact.lo) * (unsigned __int128)(__int128)times;
        sum->lo = (uint64_t)s; sum->hi = (uint64_t)(s >> 64);
    }
    """
    ctypedef struct Hash128:
        uint64_t lo
        uint64_t hi
    Hash128 siphash "ledger_siphash"(const uint8_t* key, const uint8_t* data, uint32_t size) noexcept nogil
    Hash128 fact_hash "ledger_fact"(uint64_t w0, uint64_t w1, uint64_t w2, uint64_t w3, uint64_t w4, uint64_t w5) noexcept nogil
    void short_words "ledger_short_words"(const uint8_t* text, uint32_t size, uint64_t* words) noexcept nogil
    uint64_t fold "ledger_fold"(uint64_t a, uint64_t b) noexcept nogil
    void digest_add "ledger_digest_add"(Hash128* sum, Hash128 fact) noexcept nogil
    void digest_sub "ledger_digest_sub"(Hash128* sum, Hash128 fact) noexcept nogil
    void digest_times "ledger_digest_times"(Hash128* sum, Hash128 fact, int64_t times) noexcept nogil


cdef inline Hash128 key_of_return(Hash128 receipt) noexcept nogil:
    # Under which it is known that a receipt came back, or that its points were taken, beside the receipt itself.
    receipt.lo ^= <uint64_t>0x6E72757465720001
    return receipt
