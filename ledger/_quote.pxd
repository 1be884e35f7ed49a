# Leaves: a quote as it is handed to the codec, and its token.
# Not for deciding (ledger/_core_quote.pxi) nor for the message (server/_wire_quote.pxi).
# cimported by ledger/_core.pyx and server/_wire.pyx.
#
# A token says how a quote was decided, so that the commit that follows can be decided alike and be compared with it. Nobody but the ledger
# can make one: HMAC-SHA256, cut to 16 bytes, under a key made from the identity key. It holds no personal data.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from ledger._evaluate cimport Result2, Scratch, Wide
from ledger._image cimport Program2
from ledger._layout cimport Command

cdef extern from *:
    """
    #include <string.h>
    #include <openssl/crypto.h>
    #include <openssl/sha.h>

    typedef struct { SHA256_CTX inner, outer; } LedgerMac;      /* behind the key's block */

    /* The low-level calls: no context to allocate or keep. */
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    static inline void ledger_mac_open(LedgerMac *mac, const uint8_t key[16]) {
        uint8_t inner[64], outer[64];
        memset(inner, 0x36, 64);
        memset(outer, 0x5c, 64);
        for (int i = 0; i < 16; i++) {
            inner[i] ^= key[i];
            outer[i] ^= key[i];
        }
        SHA256_Init(&mac->inner);
        SHA256_Update(&mac->inner, inner, 64);
        SHA256_Init(&mac->outer);
        SHA256_Update(&mac->outer, outer, 64);
    }
    static inline void ledger_mac(const LedgerMac *mac, const void *data, size_t size, uint8_t out[16]) {
        SHA256_CTX state = mac->inner;
        uint8_t digest[32];
        SHA256_Update(&state, data, size);
        SHA256_Final(digest, &state);
        state = mac->outer;
        SHA256_Update(&state, digest, 32);
        SHA256_Final(digest, &state);
        memcpy(out, digest, 16);
    }
    #pragma GCC diagnostic pop

    /* numerator / divisor in millionths, rounded down; 0 where that is above 9 * 10^18. */
    static inline int64_t ledger_wide_micro(const LedgerWide *n, int64_t divisor) {
        unsigned __int128 whole = (unsigned __int128)n->hi << 64 | n->lo;
        unsigned __int128 quotient = whole / (uint64_t)divisor, rest = whole % (uint64_t)divisor;
        if (quotient >= UINT64_C(9000000000000)) return 0;
        return (int64_t)((uint64_t)quotient * 1000000u + (uint64_t)(rest * 1000000u / (uint64_t)divisor));
    }
    """
    ctypedef struct Mac "LedgerMac":
        pass
    void mac_open "ledger_mac_open"(Mac* mac, const uint8_t* key) noexcept nogil
    void mac_of "ledger_mac"(const Mac* mac, const void* data, size_t size, uint8_t* out) noexcept nogil
    int mac_differs "CRYPTO_memcmp"(const void* a, const void* b, size_t size) noexcept nogil
    int64_t wide_micro "ledger_wide_micro"(const Wide* numerator, int64_t divisor) noexcept nogil

cdef enum:
    QUOTE_TOKEN_VERSION = 1
    QUOTE_MAC_BYTES = 16
    QUOTE_IMAGE_BYTES = 8
    QUOTE_POINTS = 0            # parts of a result that are compared; their bit is that of QuoteDifference - 1
    QUOTE_DISCOUNTS = 1
    QUOTE_PAID = 2
    QUOTE_STANDING = 3
    QUOTE_PARTS = 4

cdef struct QuoteToken:         # 72 bytes, little endian
    uint8_t version             # QUOTE_TOKEN_VERSION
    uint8_t reserved[3]
    uint32_t member             # account number; 0: the receipt would open one
    uint8_t image[QUOTE_IMAGE_BYTES]    # the first of the image's hash
    int64_t business_us         # what the receipt is decided at
    int64_t made_us             # server time
    uint64_t receipt            # hash of what the till said of the receipt, and of who is new
    uint32_t parts[QUOTE_PARTS] # hashes of what the receipt comes to
    uint8_t mac[QUOTE_MAC_BYTES]        # of all bytes before

cdef struct QuoteView:          # of the command just executed; valid until the next one
    const Command* command
    const Program2* rules
    const Result2* result
    const Scratch* scratch
    uint64_t sequence           # of the last entry that changed the member; 0: there is none
    int64_t business_us
    int64_t expire_us           # of the token, server time
    uint32_t member             # account number; 0: the receipt would open one
    uint32_t program            # version
    QuoteToken token
