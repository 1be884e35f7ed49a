# Leaves: a compiled programme image, loaded in place and evaluated. No Python, nothing allocated.
# Not for YAML (ledger/rules/) and not for state. cimported by _core (evaluate), _wire (wallet names), _engine.
# The image's byte form: docs/journal-format.md, section "Image"; written by ledger/rules/lower.py.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from ledger._layout cimport Award, Command, Slice, WalletDefinition
from ledger._limits cimport WALLETS_MAX

cdef struct Program:
    const uint8_t* image        # the bytes that the pointers below point into; must outlive the struct
    uint32_t image_size
    uint32_t version            # from 1, counted by the journal; set by the core
    uint32_t wallet_count       # 1..WALLETS_MAX
    WalletDefinition wallets[WALLETS_MAX]
    char currency[4]            # ISO 4217, zero terminated
    uint8_t opens_anonymous     # 1: an earn of an unknown card, phone, email or app opens an account
    int64_t max_age_us          # how old a business time may be
    uint32_t rule_count

# Contract (to be filled in by the rules room):
#   int program_load(Program* program, const uint8_t* image, uint32_t size)       0, or -1 when the image is damaged
#   int32_t program_wallet(const Program* program, Slice name)                    index, or -1
#   int32_t program_day(const Program* program, int64_t time_us)                  days since 1970 in the programme's zone
#   int64_t program_day_start_us(const Program* program, int32_t day)             first moment of that day
#   int32_t program_evaluate(const Program* program, const Command* command, int64_t business_time_us, Award* awards)
#                                                                                 awards written, 0..AWARDS_MAX; -1: overflow
