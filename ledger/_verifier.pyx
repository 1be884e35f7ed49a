"""The journal's judge: chain, framing, sums and state of group records, checked in order through the core's own apply.

Promises: feeds without the GIL, stops at the first fault and says which record and entry it is. It trusts nothing of a record before
it has checked it. Not for finding the records (ledger/journal.py) and not for wording (ledger/verify.py, its only caller).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from ledger._core cimport (
    APPLY_OK, Core, CoreSizes, CoreStats, core_apply, core_close, core_digest, core_open, core_program, core_stats,
)
from ledger._entry cimport (
    Cursor, EntryView, cursor_more, cursor_open, entry_view, get_byte, get_signed, get_varint,
)
from ledger._hash cimport Hash128
from ledger._layout cimport (
    ACCOUNT_COUNT, ACCOUNT_ADJUSTED, ACCOUNT_EXPIRED, ACCOUNT_ISSUED, ACCOUNT_MEMBER, ACCOUNT_REDEEMED, ENTRY_HEADER_BYTES,
    GROUP_HASHED_BYTES, GROUP_HEADER_BYTES, GROUP_MAGIC, GroupHeader, KIND_DIGEST, SECTION_POSTINGS, WALLETS_MAX,
)
from ledger._limits cimport GROUP_BYTES_MAX, GROUP_ENTRIES_MAX
from ledger._rules cimport Program
from ledger._tail cimport epoch_follows

cdef extern from *:
    """
    #include <openssl/sha.h>
    #include <signal.h>
    #include <stdio.h>
    #include <string.h>
    #include <unistd.h>

    /* SHA-256 over a group header's first 96 bytes and its entries. The low-level calls: no context to allocate or keep. */
    #pragma GCC diagnostic push
    #pragma GCC diagnostic ignored "-Wdeprecated-declarations"
    static void verifier_hash(const uint8_t *record, uint32_t size, uint8_t out[32]) {
        SHA256_CTX state;
        SHA256_Init(&state);
        SHA256_Update(&state, record, 96);
        SHA256_Update(&state, record + 128, size - 128);
        SHA256_Final(out, &state);
    }
    #pragma GCC diagnostic pop

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
    void verifier_hash(const uint8_t* record, uint32_t size, uint8_t* out) noexcept nogil
    void verifier_guard(const char* file, const char* what) noexcept nogil
    uint64_t verifier_sequence

cdef enum Fault:                # why a record is refused; 0 = accepted. Names: FAULTS below
    FAULT_NONE = 0
    FAULT_SIZE = 1
    FAULT_MAGIC = 2
    FAULT_DIRECTORY = 3
    FAULT_SEQUENCE = 4
    FAULT_CHAIN = 5
    FAULT_HASH = 6
    FAULT_TIME = 7
    FAULT_ENTRIES = 8
    FAULT_POSTINGS = 9
    FAULT_APPLY = 10            # detail: ApplyResult
    FAULT_EPOCH = 11

FAULTS = ("none", "size", "magic", "directory", "sequence", "chain", "hash", "time", "entries", "postings", "apply", "epoch")
APPLIES = ("ok", "framing", "sequence", "member", "lots", "sum", "reservation", "digest", "program", "key", "full")


def guard(file: str, what: str) -> None:
    """From here on a crash while reading `file` ends this process with status 1 and one line on stderr that begins with `what`."""
    encoded, encoded_what = file.encode(), what.encode()
    verifier_guard(encoded, encoded_what)


cdef class Verifier:
    """One pass over one journal. Errors: MemoryError."""

    cdef Core* core
    cdef Py_buffer* buffers
    cdef Py_ssize_t capacity
    cdef uint64_t sequence      # last one applied
    cdef int64_t time_us        # of the last group
    cdef uint32_t epoch         # of the last group; 0: none yet
    cdef uint64_t groups
    cdef uint64_t refusals
    cdef uint64_t fault_sequence
    cdef int fault_detail
    cdef uint64_t expect_sequence
    cdef int expect_state       # 0 not met yet, 1 met, 2 another hash stands there, 3 no group ends there
    cdef uint8_t directory[16]
    cdef uint8_t hash[32]
    cdef uint8_t expect_hash[32]
    cdef uint8_t expect_found[32]
    cdef uint64_t kinds[256]
    cdef int64_t sums[ACCOUNT_COUNT][WALLETS_MAX]   # postings by account and wallet, kept apart from the core's own sums

    def __cinit__(self, bytes directory, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max, bytes identity_key=None):
        cdef CoreSizes sizes
        cdef const uint8_t* key = NULL
        if len(directory) != 16:
            raise ValueError(f"a directory id has 16 bytes, not {len(directory)}")
        memcpy(self.directory, <const uint8_t*>directory, 16)
        memset(self.hash, 0, sizeof(self.hash))
        memset(self.kinds, 0, sizeof(self.kinds))
        memset(self.sums, 0, sizeof(self.sums))
        self.sequence = self.groups = self.refusals = self.expect_sequence = 0
        self.time_us = 0
        self.epoch = 0
        self.expect_state = 0
        self.capacity = 0
        self.buffers = NULL
        sizes.members_max = members_max
        sizes.ids_max = ids_max
        sizes.reservations_max = reservations_max
        if identity_key is not None:
            if len(identity_key) != 16:
                raise ValueError(f"an identity key has 16 bytes, not {len(identity_key)}")
            key = identity_key
        self.core = core_open(&sizes, key)

    def __dealloc__(self):
        if self.core != NULL:
            core_close(self.core)
        PyMem_Free(self.buffers)

    def expect(self, uint64_t sequence, bytes hash_) -> None:
        """Watch for the group that ends with `sequence`: it must have this hash (32 bytes)."""
        if len(hash_) != 32:
            raise ValueError(f"a hash has 32 bytes, not {len(hash_)}")
        self.expect_sequence = sequence
        memcpy(self.expect_hash, <const uint8_t*>hash_, 32)

    def feed(self, list batch):
        """Check and apply records, a list of (key, record); the key must be the record's first sequence.

        Returns None, or the first fault: (index in the batch, name in FAULTS, sequence of the entry or of the group's first one,
        name in APPLIES). After a fault the verifier is spent.
        """
        cdef Py_ssize_t count = len(batch), opened = 0, i, done = 0
        cdef int fault = FAULT_NONE
        cdef uint64_t* keys
        if count == 0:
            return None
        if count > self.capacity:
            PyMem_Free(self.buffers)
            self.capacity = 0
            self.buffers = <Py_buffer*>PyMem_Malloc(count * sizeof(Py_buffer))
            if self.buffers == NULL:
                raise MemoryError()
            self.capacity = count
        keys = <uint64_t*>PyMem_Malloc(count * sizeof(uint64_t))
        if keys == NULL:
            raise MemoryError()
        try:
            for i in range(count):
                key, record = batch[i]
                keys[i] = key
                PyObject_GetBuffer(record, &self.buffers[i], PyBUF_SIMPLE)
                opened = i + 1
            with nogil:
                for i in range(count):
                    fault = verify_group(self, keys[i], <const uint8_t*>self.buffers[i].buf, <uint64_t>self.buffers[i].len)
                    if fault != FAULT_NONE:
                        done = i
                        break
        finally:
            for i in range(opened):
                PyBuffer_Release(&self.buffers[i])
            PyMem_Free(keys)
        if fault == FAULT_NONE:
            return None
        return done, FAULTS[fault], self.fault_sequence, APPLIES[self.fault_detail]

    @property
    def last_sequence(self) -> int:
        return self.sequence

    @property
    def head_hash(self) -> bytes:
        """Hash of the last group; zeros before the first."""
        return self.hash[:32]

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


cdef int verify_group(Verifier self, uint64_t key, const uint8_t* record, uint64_t size) noexcept nogil:
    # Header, hash and place first: nothing of the entries is believed before.
    cdef const GroupHeader* header = <const GroupHeader*>record
    cdef uint8_t hash_[32]
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef uint32_t i, entry_size
    cdef uint64_t last
    cdef int fault
    self.fault_sequence = self.sequence + 1
    self.fault_detail = APPLY_OK
    if size < GROUP_HEADER_BYTES:
        return FAULT_SIZE
    if header.magic != GROUP_MAGIC or header.version != 1 or header.flags != 0 or header.shard != 0 or header.epoch == 0:
        return FAULT_MAGIC
    if header.size > <uint32_t>GROUP_BYTES_MAX or size != <uint64_t>GROUP_HEADER_BYTES + header.size:
        return FAULT_SIZE
    if header.count < 1 or header.count > <uint32_t>GROUP_ENTRIES_MAX:
        return FAULT_SIZE
    if memcmp(header.directory, self.directory, 16) != 0:
        return FAULT_DIRECTORY
    if header.first_sequence != self.sequence + 1 or key != header.first_sequence:
        return FAULT_SEQUENCE
    verifier_hash(record, <uint32_t>size, hash_)
    if memcmp(hash_, header.hash, 32) != 0:
        return FAULT_HASH
    if memcmp(header.previous_hash, self.hash, 32) != 0:
        return FAULT_CHAIN
    if header.time_us < self.time_us:
        return FAULT_TIME
    if header.size >= ENTRY_HEADER_BYTES and not epoch_follows(self.epoch, record):
        return FAULT_EPOCH
    at = record + GROUP_HEADER_BYTES
    end = record + size
    for i in range(header.count):
        self.fault_sequence = header.first_sequence + i
        if end - at < ENTRY_HEADER_BYTES:
            return FAULT_ENTRIES
        memcpy(&entry_size, at, 4)
        if entry_size < ENTRY_HEADER_BYTES or <uint64_t>(end - at) < entry_size:
            return FAULT_ENTRIES
        fault = verify_entry(self, at, entry_size)
        if fault != FAULT_NONE:
            return fault
        at += entry_size
    if at != end:
        return FAULT_ENTRIES
    last = header.first_sequence + header.count - 1
    if self.expect_sequence and self.expect_sequence >= header.first_sequence and self.expect_sequence <= last:
        memcpy(self.expect_found, header.hash, 32)
        if self.expect_sequence != last:
            self.expect_state = 3
        else:
            self.expect_state = 1 if memcmp(header.hash, self.expect_hash, 32) == 0 else 2
    self.sequence = last
    self.time_us = header.time_us
    self.epoch = header.epoch
    self.groups += 1
    memcpy(self.hash, header.hash, 32)
    verifier_sequence_set(last)
    return FAULT_NONE


cdef inline void verifier_sequence_set(uint64_t sequence) noexcept nogil:
    global verifier_sequence
    verifier_sequence = sequence


cdef int verify_entry(Verifier self, const uint8_t* entry, uint32_t size) noexcept nogil:
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
