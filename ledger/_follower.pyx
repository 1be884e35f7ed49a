"""The follower's state: the core fed with group records as the journal grows, read and saved by the follower's process.

Not for finding records or deciding when to save (ledger/follower.py, its only maker) and not for answering calls (server/_reader.pyx).
One thread at a time may feed, read or load; saving only reads.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ledger._core cimport APPLY_OK, CoreStats, core_apply, core_digest, core_stats
from ledger._feed cimport FAULT_APPLY, FAULT_NONE, GroupFeed
from ledger._hash cimport Hash128
from ledger._layout cimport EntryHeader, KIND_DIGEST


cdef class FollowerCore(GroupFeed):
    """See _follower.pyi."""

    def __cinit__(self, bytes directory, key, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max):
        if key is not None and len(key) != 16:
            raise ValueError(f"an identity key has 16 bytes, not {len(key)}")
        self.has_key = key is not None
        if self.has_key:
            memcpy(self.identity_key, <const uint8_t*>key, 16)
        self.digests = 0
        self.sizes = (members_max, ids_max, reservations_max)
        self.open_core(members_max, ids_max, reservations_max, self.identity_key if self.has_key else NULL)

    cdef int take_entry(self, const uint8_t* entry, uint32_t size) noexcept nogil:
        self.fault_detail = core_apply(self.core, entry, size)
        if self.fault_detail != APPLY_OK:
            return FAULT_APPLY
        if (<const EntryHeader*>entry).kind == KIND_DIGEST:
            self.digests += 1
        return FAULT_NONE

    @property
    def digest(self):
        """16 bytes as in a DIGEST entry."""
        cdef Hash128 digest = core_digest(self.core)
        return digest.lo.to_bytes(8, "little") + digest.hi.to_bytes(8, "little")

    def stats(self):
        """Plain numbers of the state as applied."""
        cdef const CoreStats* stats = core_stats(self.core)
        return {
            "sequence": stats.sequence, "time_us": stats.time_us, "members": stats.members, "identifiers": stats.identifiers,
            "lots": stats.lots, "reservations_active": stats.reservations_active, "request_ids": stats.request_ids,
            "receipt_keys": stats.receipt_keys, "digests": self.digests, "groups": self.groups,
        }
