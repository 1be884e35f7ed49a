"""The journal's judge: chain, framing, sums and state of group records, checked in order through the core's own apply.

What it checks of every record stands in ledger/_feed.pyx; this adds sums of its own and the expected head. Not for finding the
records (ledger/journal.py) and not for wording (ledger/verify.py, its only caller).
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ledger._core cimport APPLY_OK, CoreStats, core_apply, core_digest, core_program, core_stats
from ledger._entry cimport Cursor, EntryView, cursor_more, cursor_open, entry_view, get_byte, get_signed, get_varint
from ledger._feed cimport FAULT_APPLY, FAULT_ENTRIES, FAULT_NONE, FAULT_POSTINGS, GroupFeed
from ledger._hash cimport Hash128
from ledger._layout cimport (
    ACCOUNT_COUNT, ACCOUNT_ADJUSTED, ACCOUNT_EXPIRED, ACCOUNT_ISSUED, ACCOUNT_MEMBER, ACCOUNT_REDEEMED, GroupHeader, KIND_DIGEST,
    SECTION_POSTINGS, WALLETS_MAX,
)
from ledger._rules cimport Program

cdef extern from *:
    """
    #include <signal.h>
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>

    /* A damaged LMDB file can lead the mapped reader outside the file: no exception can be raised then, so say where it was. */
    static volatile uint64_t verifier_sequence;
    static char verifier_file[512], verifier_what[32];
    static void verifier_died(int number) {
        char text[800];
        int size = snprintf(text, sizeof text,
            "\\n%s: FAILED: %s: reading behind sequence %llu ended in signal %d: the file is cut or its pages point astray\\n",
            verifier_what, verifier_file, (unsigned long long)verifier_sequence, number);
        ssize_t ignored = write(2, text, (size_t)size);
        (void)ignored;
        _exit(1);
    }
    static void verifier_guard(const char *file, const char *what) {
        snprintf(verifier_what, sizeof verifier_what, "%s", what);
        snprintf(verifier_file, sizeof verifier_file, "%s", file);
        signal(SIGSEGV, verifier_died);
        signal(SIGBUS, verifier_died);
        signal(SIGABRT, verifier_died);
    }
    """
    void verifier_guard(const char* file, const char* what) noexcept nogil
    uint64_t verifier_sequence


def guard(file: str, what: str) -> None:
    """From here on a crash while reading `file` ends this process with status 1 and one line on stderr that begins with `what`."""
    encoded, encoded_what = file.encode(), what.encode()
    verifier_guard(encoded, encoded_what)


cdef class Verifier(GroupFeed):
    """One pass over one journal. Errors: MemoryError."""

    cdef uint64_t refusals
    cdef uint64_t expect_sequence
    cdef int expect_state       # 0 not met yet, 1 met, 2 another hash stands there, 3 no group ends there
    cdef uint8_t expect_hash[32]
    cdef uint8_t expect_found[32]
    cdef uint64_t kinds[256]
    cdef int64_t sums[ACCOUNT_COUNT][WALLETS_MAX]   # postings by account and wallet, kept apart from the core's own sums

    def __cinit__(self, bytes directory, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max, bytes identity_key=None):
        cdef const uint8_t* key = NULL
        memset(self.kinds, 0, sizeof(self.kinds))
        memset(self.sums, 0, sizeof(self.sums))
        self.refusals = self.expect_sequence = 0
        self.expect_state = 0
        if identity_key is not None:
            if len(identity_key) != 16:
                raise ValueError(f"an identity key has 16 bytes, not {len(identity_key)}")
            key = identity_key
        self.open_core(members_max, ids_max, reservations_max, key)

    def expect(self, uint64_t sequence, bytes hash_) -> None:
        """Watch for the group that ends with `sequence`: it must have this hash (32 bytes)."""
        if len(hash_) != 32:
            raise ValueError(f"a hash has 32 bytes, not {len(hash_)}")
        self.expect_sequence = sequence
        memcpy(self.expect_hash, <const uint8_t*>hash_, 32)

    cdef int take_entry(self, const uint8_t* entry, uint32_t size) noexcept nogil:
        # The postings are summed here once more, apart from the core: an error in its own sums must not hide.
        cdef EntryView view
        cdef Cursor cursor
        cdef uint64_t account, wallet
        cdef int64_t points
        if not entry_view(entry, size, &view):
            return FAULT_ENTRIES
        if view.sections[SECTION_POSTINGS].data != NULL:
            cursor_open(&cursor, &view.sections[SECTION_POSTINGS])
            while cursor_more(&cursor):
                account = get_byte(&cursor)
                wallet = get_varint(&cursor)
                points = get_signed(&cursor)
                if cursor.broken or account < ACCOUNT_MEMBER or account >= ACCOUNT_COUNT or wallet >= <uint64_t>WALLETS_MAX:
                    return FAULT_POSTINGS
                self.sums[account][wallet] += points
        self.fault_detail = core_apply(self.core, entry, size)
        if self.fault_detail != APPLY_OK:
            return FAULT_APPLY
        self.kinds[view.header.kind] += 1
        if view.header.status != 0:
            self.refusals += 1
        return FAULT_NONE

    cdef void took_group(self, const GroupHeader* header) noexcept nogil:
        cdef uint64_t last = header.first_sequence + header.count - 1
        if self.expect_sequence and self.expect_sequence >= header.first_sequence and self.expect_sequence <= last:
            memcpy(self.expect_found, header.hash, 32)
            if self.expect_sequence != last:
                self.expect_state = 3
            else:
                self.expect_state = 1 if memcmp(header.hash, self.expect_hash, 32) == 0 else 2
        verifier_sequence_set(last)

    @property
    def expected(self):
        """(0 not reached, 1 met, 2 another hash, 3 no group ends there; the hash found)."""
        return self.expect_state, self.expect_found[:32]

    def totals(self) -> dict:
        """What was counted so far: plain numbers, points by wallet name, and `sums_agree`."""
        cdef const CoreStats* stats = core_stats(self.core)
        cdef const Program* program = core_program(self.core)
        cdef Hash128 digest = core_digest(self.core)
        cdef int i
        cdef int wallet_count = <int>program.wallet_count if program != NULL else 0
        cdef int64_t member
        agree = True
        wallets = {}
        for i in range(WALLETS_MAX):
            # The postings' sums, counted here, must be what the core kept up on apply.
            member = self.sums[ACCOUNT_MEMBER][i]
            agree = agree and (-self.sums[ACCOUNT_ISSUED][i] == stats.issued_points[i]
                               and self.sums[ACCOUNT_REDEEMED][i] == stats.redeemed_points[i]
                               and self.sums[ACCOUNT_EXPIRED][i] == stats.expired_points[i]
                               and -self.sums[ACCOUNT_ADJUSTED][i] == stats.adjusted_points[i]
                               and member == stats.issued_points[i] + stats.adjusted_points[i] - stats.redeemed_points[i]
                               - stats.expired_points[i])
            if i < wallet_count:
                name = program.wallets[i].name[:program.wallets[i].name_size].decode("utf-8", "replace")
                wallets[name] = {
                    "issued": stats.issued_points[i], "redeemed": stats.redeemed_points[i], "expired": stats.expired_points[i],
                    "adjusted": stats.adjusted_points[i], "reserved": stats.reserved_points[i], "outstanding": member, "scale": program.wallets[i].scale,
                }
        return {
            "sequence": self.sequence, "time_us": stats.time_us, "epoch": self.epoch, "groups": self.groups, "members": stats.members,
            "identifiers": stats.identifiers, "lots": stats.lots, "reservations_active": stats.reservations_active,
            "refusals": self.refusals, "digests": self.kinds[KIND_DIGEST],
            "kinds": {i: self.kinds[i] for i in range(256) if self.kinds[i]},
            "digest": digest.lo.to_bytes(8, "little") + digest.hi.to_bytes(8, "little"),
            "wallets": wallets, "sums_agree": agree,
        }


cdef inline void verifier_sequence_set(uint64_t sequence) noexcept nogil:
    global verifier_sequence
    verifier_sequence = sequence
