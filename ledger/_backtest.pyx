"""Limits over a journal in which they were not in force: every entry is judged by them before it is applied as it stands.

The judging and counting are the core's (core_judge_past); this adds up what was above which limit, by limit, member and day. Not for reading
files of limits nor for wording. Called by ledger/backtest.py; works without the GIL. Memory depends on members, limits and days.
"""

from libc.stdint cimport INT64_MAX, INT64_MIN, UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from ledger._core cimport (
    APPLY_OK, Past, PastEntry, core_apply, core_judge_past, core_past_close, core_past_open, core_past_rules, core_set_covered,
    core_stats,
)
from ledger._entry cimport EntryView, entry_view
from ledger._feed cimport FAULT_APPLY, FAULT_ENTRIES, FAULT_NONE, GroupFeed
from ledger._image cimport LIMIT_REFUSE, LIMIT_REVIEW, LIMIT_SHADOW, SECTION2_LIMITS, VELOCITY_LIMITS_MAX
from ledger._layout cimport ENTRY_HEADER_BYTES, EntryHeader, GROUP_HEADER_BYTES, GroupHeader, KIND_PROGRAM
from ledger._table cimport reserve_memory, unreserve_memory

cdef enum:
    ANSWERS = LIMIT_REVIEW + 1
    DAYS_MAX = 16384            # behind it days are not told apart
    DAY_LOOKED_AT = 0           # columns of a row of a day
    DAY_MET = 1
    DAY_STOPPED = 2
    DAY_COLUMNS = 3
    MEMBER_LOOKED_AT = 0        # columns of a row of a member; behind them one for each limit
    MEMBER_MET = 1
    MEMBER_STOPPED = 2
    MEMBER_COLUMNS = 3

cdef struct Sums:               # of entries above one limit, above any, or that one would stop
    int64_t entries
    int64_t earned              # points, all wallets
    int64_t taken
    int64_t reserved

cdef struct LimitTally:
    int64_t counted             # entries that it counts: that have what it asks for
    Sums above


cdef class BackTest(GroupFeed):
    """See _backtest.pyi."""

    cdef Past* past
    cdef PastEntry found
    cdef int64_t from_us
    cdef int64_t until_us
    cdef bint done
    cdef uint32_t limits
    cdef uint32_t members_max
    cdef uint32_t stride        # words of a member's row
    cdef uint32_t* members
    cdef int64_t* days
    cdef int64_t first_day
    cdef int64_t last_day
    cdef LimitTally tallies[VELOCITY_LIMITS_MAX]
    cdef Sums looked_at
    cdef Sums met               # above any limit but those in shadow
    cdef Sums by_answer[ANSWERS]    # above at least one limit with this answer
    cdef Sums stopped_then      # of those looked at: refused by limits in the journal
    cdef int64_t cut
    cdef list hits              # (sequence, limits) where somebody asked for them

    def __cinit__(self, bytes directory, uint32_t members_max, uint64_t ids_max, uint32_t reservations_max, bytes image not None,
                  int64_t from_us=INT64_MIN, int64_t until_us=INT64_MAX, bint keep_hits=False):
        self.past = core_past_open(image, <uint32_t>len(image), members_max)
        if self.past == NULL:
            raise MemoryError("the tables of a back-test cannot be reserved")
        self.from_us, self.until_us = from_us, until_us
        self.done = False
        self.limits = core_past_rules(self.past).counts[SECTION2_LIMITS]
        self.members_max = members_max
        self.stride = MEMBER_COLUMNS + self.limits
        self.first_day = self.last_day = 0
        self.cut = 0
        memset(self.tallies, 0, sizeof(self.tallies))
        memset(&self.looked_at, 0, sizeof(Sums))
        memset(&self.met, 0, sizeof(Sums))
        memset(&self.stopped_then, 0, sizeof(Sums))
        memset(self.by_answer, 0, sizeof(self.by_answer))
        self.hits = [] if keep_hits else None
        self.members = <uint32_t*>reserve_memory(members_max * <uint64_t>self.stride * sizeof(uint32_t))
        self.days = <int64_t*>reserve_memory(DAYS_MAX * DAY_COLUMNS * sizeof(int64_t))
        if self.members == NULL or self.days == NULL:
            raise MemoryError("the tables of a back-test cannot be reserved")
        self.open_core(members_max, ids_max, reservations_max, NULL)
        # Ids that memory drops are not asked for again: in a journal none comes twice.
        core_set_covered(self.core, UINT64_MAX - 1, UINT64_MAX - 1)

    def __dealloc__(self):
        core_past_close(self.past)
        unreserve_memory(self.members, self.members_max * <uint64_t>self.stride * sizeof(uint32_t))
        unreserve_memory(self.days, DAYS_MAX * DAY_COLUMNS * sizeof(int64_t))

    cdef int take_entry(self, const uint8_t* entry, uint32_t size) noexcept nogil:
        cdef EntryView view
        if self.done:
            return FAULT_NONE
        if not entry_view(entry, size, &view):
            return FAULT_ENTRIES
        if view.header.time_us >= self.until_us:
            self.done = True
            return FAULT_NONE
        if view.header.time_us >= self.from_us:
            self.fault_detail = core_judge_past(self.core, self.past, entry, size, &self.found)
            if self.fault_detail != APPLY_OK:
                return FAULT_APPLY
            if self.found.looked_at:
                tally(self)
        self.fault_detail = core_apply(self.core, entry, size)
        return FAULT_NONE if self.fault_detail == APPLY_OK else FAULT_APPLY

    @property
    def over(self):
        """Whether nothing more is to be fed."""
        return self.done

    def totals(self):
        """Sums of entries: looked at, above any limit that answers, by answer, and those that limits had refused then."""
        names = ("shadow", "mark", "refuse", "challenge", "reduce", "review")
        return {"looked_at": sums_of(&self.looked_at), "met": sums_of(&self.met), "stopped_then": sums_of(&self.stopped_then),
                "cut": self.cut, **{name: sums_of(&self.by_answer[LIMIT_SHADOW + i]) for i, name in enumerate(names)}}

    def by_limit(self):
        """(entries that it counts, (entries above it, points earned, taken, reserved in them)) of each limit."""
        return [(self.tallies[i].counted, sums_of(&self.tallies[i].above)) for i in range(self.limits)]

    def by_member(self):
        """Rows of 32-bit numbers, one a member from 1: entries looked at, above any limit that answers, stopped, then above each limit."""
        cdef uint64_t count = core_stats(self.core).members
        return (<const char*>self.members)[:<Py_ssize_t>(count * self.stride * sizeof(uint32_t))]

    def by_day(self):
        """The first day (since 1970), and rows of 64-bit numbers, one a day from it: entries looked at, above any limit, stopped."""
        cdef int64_t count = self.last_day - self.first_day + 1 if self.looked_at.entries != 0 else 0
        if count > DAYS_MAX:
            count = DAYS_MAX
        return self.first_day, (<const char*>self.days)[:<Py_ssize_t>(count * DAY_COLUMNS * <int64_t>sizeof(int64_t))]

    @property
    def kept(self):
        """(sequence, numbers from 0 of the limits that it is above) of entries, where they were asked for."""
        return self.hits


def programmes_in(list batch):
    """The PROGRAM entries of group records, (sequence, entry); nothing is checked but that they can be walked through."""
    cdef const GroupHeader* header
    cdef const uint8_t[::1] record
    cdef const uint8_t* at
    cdef const uint8_t* end
    cdef uint32_t i
    found = []
    for _, data in batch:
        record = data
        if record.shape[0] < GROUP_HEADER_BYTES:
            continue
        header = <const GroupHeader*>&record[0]
        at = &record[0] + GROUP_HEADER_BYTES
        end = &record[0] + record.shape[0]
        for i in range(header.count):
            if end - at < ENTRY_HEADER_BYTES or (<const EntryHeader*>at).size < <uint32_t>ENTRY_HEADER_BYTES or (<const EntryHeader*>at).size > end - at:
                break
            if (<const EntryHeader*>at).kind == KIND_PROGRAM:
                found.append((header.first_sequence + i, (<const char*>at)[:(<const EntryHeader*>at).size]))
            at += (<const EntryHeader*>at).size
    return found


cdef tuple sums_of(const Sums* sums):
    return sums.entries, sums.earned, sums.taken, sums.reserved


cdef void add(Sums* sums, const PastEntry* found) noexcept nogil:
    sums.entries += 1
    sums.earned += found.earned
    sums.taken += found.taken
    sums.reserved += found.reserved


cdef void tally(BackTest self) noexcept nogil:
    # Of an entry that was judged.
    cdef const PastEntry* found = &self.found
    cdef bint met = found.answers & ~(<uint32_t>1 << LIMIT_SHADOW) != 0
    cdef bint stopped = found.answers >> LIMIT_REFUSE & 1
    cdef uint32_t* row = NULL
    cdef int64_t* day
    cdef uint32_t i
    cdef bint any_above = False
    if 1 <= found.member <= self.members_max:
        row = self.members + (found.member - 1) * <uint64_t>self.stride
    add(&self.looked_at, found)
    if met:
        add(&self.met, found)
    if found.was_stopped:
        add(&self.stopped_then, found)
    for i in range(<uint32_t>ANSWERS):
        if found.answers >> i & 1:
            add(&self.by_answer[i], found)
    if not stopped:
        self.cut += found.cut
    for i in range(self.limits):
        self.tallies[i].counted += found.counts[i]
        if found.above[i]:
            any_above = True
            add(&self.tallies[i].above, found)
            if row != NULL:
                row[MEMBER_COLUMNS + i] += 1
    if row != NULL:
        row[MEMBER_LOOKED_AT] += 1
        row[MEMBER_MET] += met
        row[MEMBER_STOPPED] += stopped
    day = self.days + DAY_COLUMNS * place_of_day(self, found.day)
    day[DAY_LOOKED_AT] += 1
    day[DAY_MET] += met
    day[DAY_STOPPED] += stopped
    if any_above and self.hits is not None:
        keep(self)


cdef int64_t place_of_day(BackTest self, int64_t day) noexcept nogil:
    # Days of purchases; what comes late lies before the first one and counts on it.
    if self.looked_at.entries == 1:
        self.first_day = self.last_day = day
    if day > self.last_day:
        self.last_day = day
    day -= self.first_day
    return 0 if day < 0 else day if day < DAYS_MAX else DAYS_MAX - 1


cdef void keep(BackTest self) noexcept nogil:
    with gil:
        self.hits.append((core_stats(self.core).sequence + 1, tuple(i for i in range(self.limits) if self.found.above[i])))
