"""The follower's state: the core fed with group records as the journal grows, read and saved by the follower's process.

Not for finding records or deciding when to save (ledger/follower.py, its only maker) and not for answering calls (server/_reader.pyx).
One thread at a time may feed, read or load; saving only reads.

A snapshot is written by a forked child: it sees the state of one moment while the parent goes on applying, and shares the pages that
stay as they are. The child runs nothing but the writing (no Python, no locks, no allocation) and ends with its parent.
"""

import os

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from ledger._core cimport APPLY_OK, CoreStats, SNAPSHOT_CHUNK_BYTES, core_apply, core_digest, core_stats
from ledger._feed cimport FAULT_APPLY, FAULT_NONE, GroupFeed
from ledger._hash cimport Hash128
from ledger._layout cimport EntryHeader, KIND_DIGEST
from ledger._snapshot cimport Snapshot, SnapshotWriter, snapshot_write

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <signal.h>
    #include <sys/prctl.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <sys/wait.h>
    #include <unistd.h>

    static int follower_die_with(pid_t parent) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) return errno;
        return getppid() == parent ? 0 : ESRCH;
    }
    /* Whoever reads, copies or writes snapshots goes behind the service, on the processor and on the disk. Wishes: a kernel that refuses
       costs time, nothing else. */
    static void follower_step_back(int nice) {
        setpriority(PRIO_PROCESS, 0, nice);
        syscall(SYS_ioprio_set, 1, 0, 3 << 13);     /* this thread and those that it starts, class idle */
    }
    /* fork without the handlers of other libraries: the child runs nothing of theirs. */
    static pid_t follower_fork(void) { return (pid_t)syscall(SYS_fork); }
    static void follower_exit(int code) { _exit(code); }
    static int follower_wait(pid_t child, int block, int *code) {
        int status;
        pid_t got;
        do got = waitpid(child, &status, block ? 0 : WNOHANG); while (got < 0 && errno == EINTR);
        if (got == 0) return 0;
        *code = got < 0 ? ECHILD : WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
        return 1;
    }
    static void follower_close(int fd) { close(fd); }
    static pid_t follower_self(void) { return getpid(); }
    static void follower_signals(void) {
        /* The signals of the parent's Python are not the child's. */
        signal(SIGTERM, SIG_DFL); signal(SIGINT, SIG_IGN);
    }
    """
    int follower_die_with(int parent) noexcept nogil
    void follower_step_back(int nice) noexcept nogil
    int follower_fork() noexcept nogil
    void follower_exit(int code) noexcept nogil
    int follower_wait(int child, int block, int* code) noexcept nogil
    void follower_close(int fd) noexcept nogil
    int follower_self() noexcept nogil
    void follower_signals() noexcept nogil
    int errno


cdef enum:
    READER_NICE = 10            # a tenth of a processor is left even where the service takes all
    SNAPSHOT_NICE = 19


def die_with(int parent):
    """From now on this process ends with its parent, whatever ends that. Errors: OSError (the parent is gone already)."""
    cdef int code = follower_die_with(parent)
    if code != 0:
        raise OSError(code, os.strerror(code))


def step_back():
    """From now on this process gives way to the service's threads on processor and disk. Before other threads begin."""
    follower_step_back(READER_NICE)


cdef class FollowerCore(GroupFeed):
    """See _follower.pyi."""

    def __cinit__(self, bytes directory, key, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max):
        if key is not None and len(key) != 16:
            raise ValueError(f"an identity key has 16 bytes, not {len(key)}")
        self.has_key = key is not None
        if self.has_key:
            memcpy(self.identity_key, <const uint8_t*>key, 16)
        self.digests = 0
        self.buffer = NULL
        self.sizes = (members_max, ids_max, reservations_max)
        self.open_core(members_max, ids_max, reservations_max, self.identity_key if self.has_key else NULL)

    cdef int take_entry(self, const uint8_t* entry, uint32_t size) noexcept nogil:
        self.fault_detail = core_apply(self.core, entry, size)
        if self.fault_detail != APPLY_OK:
            return FAULT_APPLY
        if (<const EntryHeader*>entry).kind == KIND_DIGEST:
            self.digests += 1
        return FAULT_NONE

    def __dealloc__(self):
        free(self.buffer)

    def load(self, Snapshot snapshot not None, progress=None):
        """The snapshot becomes the state, in tables opened anew. Errors: SnapshotUnusable, TablesTooSmall; then the state is empty again."""
        cdef uint32_t members_max, reservations_max
        cdef uint64_t ids_max
        members_max, ids_max, reservations_max = self.sizes
        if memcmp(snapshot.head_read.directory, self.directory, 16) != 0:
            raise ValueError("a snapshot of another directory")
        try:
            self.open_core(members_max, ids_max, reservations_max, self.identity_key if self.has_key else NULL)
            snapshot.load_into(self.core, progress)
        except BaseException:
            self.open_core(members_max, ids_max, reservations_max, self.identity_key if self.has_key else NULL)
            raise
        self.sequence = snapshot.head_read.sequence
        self.time_us = snapshot.head_read.time_us
        memcpy(self.hash, snapshot.head_read.head_hash, 32)

    cdef int prepare(self, SnapshotWriter* writer, int fd, uint64_t bytes_per_s) except -1:
        if self.buffer == NULL:
            self.buffer = <uint8_t*>malloc(SNAPSHOT_CHUNK_BYTES)
            if self.buffer == NULL:
                raise MemoryError("no memory to write a snapshot")
        memset(writer, 0, sizeof(SnapshotWriter))
        writer.core = self.core
        writer.fd = fd
        writer.buffer = self.buffer
        writer.bytes_per_s = bytes_per_s
        return 0

    def save(self, int fd, uint64_t bytes_per_s=0):
        """Write the state into `fd`, flushed; returns the bytes. Nothing may be fed meanwhile. Errors: OSError."""
        cdef SnapshotWriter writer
        cdef int code
        self.prepare(&writer, fd, bytes_per_s)
        with nogil:
            code = snapshot_write(&writer, self.directory, self.hash)
        if code != 0:
            raise OSError(code, os.strerror(code))
        return writer.bytes

    def save_apart(self, int fd, uint64_t bytes_per_s, int lock_fd):
        """As save, by a child process; returns its id for `saved`. lock_fd: closed in the child, so that the lock ends with the parent.

        Errors: OSError (no process can be made).
        """
        cdef SnapshotWriter writer
        cdef int child, parent, code
        self.prepare(&writer, fd, bytes_per_s)
        with nogil:
            parent = follower_self()
            child = follower_fork()
            if child == 0:
                follower_close(lock_fd)
                follower_signals()
                if follower_die_with(parent) != 0:
                    follower_exit(1)
                follower_step_back(SNAPSHOT_NICE)
                code = snapshot_write(&writer, self.directory, self.hash)
                follower_exit(code if code < 256 else 255)
        if child < 0:
            raise OSError(errno, os.strerror(errno))
        return child

    @staticmethod
    def saved(int child, bint block=False):
        """How a child of save_apart ended: 0 well, else an errno; None: it still writes."""
        cdef int code = 0
        cdef int ended
        with nogil:
            ended = follower_wait(child, block, &code)
        return code if ended else None

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
