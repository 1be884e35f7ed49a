# Leaves: an image of any version, loaded, and lists of them. Images of version 1 are read by ledger/_rules.pxd, of version 2 by ledger/_image.pxd; what both
# have in common (wallets, currency, zone) stands in Program, whose `rules` leads to the rest. Not for deciding.
# cimported by _core, _engine, _past and _entries.

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from ledger._image cimport IMAGE2_OPENS_ANONYMOUS, IMAGE2_VERSION, Program2, SECTION2_LIMITS, image_load
from ledger._rules cimport ImageHeader, Program, program_buckets, program_load

cdef enum:
    LOADED_HASH_AT = 8          # an image's hash stands there, in every version
    LOADED_BYTES_MIN = 192

cdef struct RuleTally:          # what one rule has given since its image was loaded here; read by metrics from another thread
    uint64_t receipts
    int64_t given               # points, or minor units of discounts

cdef struct Loaded:             # an image in memory
    Program program             # its wallets may be more than the image has: those of later versions, which members keep
    Program2 rules              # of an image of version 2
    uint8_t* image
    uint32_t size
    uint32_t users              # versions of it that are in force or to come
    RuleTally* tallies          # one for each rule of version 2; NULL: none
    uint64_t* limit_tallies     # for each of its limits, how often a command was above it; NULL: none
    int64_t until_us            # without users: the server time from which it was in force no more
    Loaded* next


cdef inline int programme_load(Program* program, Program2* rules, const uint8_t* image, uint32_t size) noexcept nogil:
    # Checks every byte and sets pointers into it. 0, or -1: not an image that this build can read. image: as program_load has it.
    # rules: room for what version 2 needs, and program.rules points to it; not touched by an image of version 1, which leaves it NULL.
    if size < 8 or (<const ImageHeader*>image).version != IMAGE2_VERSION:
        return program_load(program, image, size)
    if image_load(rules, image, size) != 0:
        return -1
    memset(program, 0, sizeof(Program))
    program.image = image
    program.image_size = size
    program.wallet_count = rules.wallet_count
    memcpy(program.wallets, rules.wallets, sizeof(program.wallets))
    memcpy(program.currency, rules.header.currency, 4)
    program.opens_anonymous = (rules.header.flags & IMAGE2_OPENS_ANONYMOUS) != 0
    program.max_age_us = rules.header.max_age_us
    program.rule_count = rules.rule_count
    program.zone = rules.zone_spans + rules.zones[rules.home_zone].first
    program.zone_count = rules.zones[rules.home_zone].count
    program.rules = rules
    program_buckets(program)
    return 0


cdef inline void loaded_free(Loaded* loaded) noexcept nogil:
    if loaded != NULL:
        free(loaded.tallies)
        free(loaded.limit_tallies)
        free(loaded.image)
        free(loaded)


cdef inline void loaded_free_all(Loaded* first) noexcept nogil:
    cdef Loaded* loaded
    while first != NULL:
        loaded = first
        first = loaded.next
        loaded_free(loaded)


cdef inline Loaded* loaded_take(uint8_t* image, uint32_t size) noexcept nogil:
    # Checks an image that was got by malloc and is the Loaded's from now on. NULL: it does not load, or there is no memory; it is freed.
    cdef Loaded* loaded = <Loaded*>calloc(1, sizeof(Loaded))
    if loaded == NULL:
        free(image)
        return NULL
    loaded.image = image
    loaded.size = size
    if image == NULL or programme_load(&loaded.program, &loaded.rules, image, size) != 0:
        loaded_free(loaded)
        return NULL
    if loaded.program.rules != NULL and loaded.rules.rule_count != 0:
        loaded.tallies = <RuleTally*>calloc(loaded.rules.rule_count, sizeof(RuleTally))
        if loaded.tallies == NULL:
            loaded_free(loaded)
            return NULL
    if loaded.program.rules != NULL and loaded.rules.counts[SECTION2_LIMITS] != 0:
        loaded.limit_tallies = <uint64_t*>calloc(loaded.rules.counts[SECTION2_LIMITS], sizeof(uint64_t))
        if loaded.limit_tallies == NULL:
            loaded_free(loaded)
            return NULL
    return loaded


cdef inline Loaded* loaded_copy(const uint8_t* image, uint32_t size) noexcept nogil:
    # The same of bytes that stay somebody else's.
    cdef uint8_t* copy = <uint8_t*>malloc(size if size != 0 else 1)
    if copy != NULL:
        memcpy(copy, image, size)
    return loaded_take(copy, size)


cdef inline Loaded* loaded_find(Loaded* first, const uint8_t* hash, uint32_t size) noexcept nogil:
    # The image of a list whose hash begins with these bytes; NULL: none.
    while first != NULL and memcmp(first.image + LOADED_HASH_AT, hash, size) != 0:
        first = first.next
    return first
