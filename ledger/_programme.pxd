# Leaves: an image of any version, loaded. Images of version 1 are read by ledger/_rules.pxd, of version 2 by ledger/_image.pxd; what both
# have in common (wallets, currency, zone) stands in Program, whose `rules` leads to the rest. Not for deciding.
# cimported by _core, _past and _entries.

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset
from ledger._image cimport IMAGE2_OPENS_ANONYMOUS, IMAGE2_VERSION, Program2, image_load
from ledger._rules cimport ImageHeader, Program, program_buckets, program_load


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
