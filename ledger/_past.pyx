"""The balance of one member as it was: the member's entries up to a moment, folded, and judged at that moment.

Promises: what it gives is what the core's own reading gave then (tests compare them). Not for finding the entries (ledger/index.py).
Called by server/reading.py; holds the GIL.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from ledger._entry cimport Cursor, EntryView, cursor_more, cursor_open, entry_view, get_byte, get_signed, get_varint
from ledger._layout cimport (
    DAY_NEVER, ENTRY_HEADER_BYTES, RESERVATION_ACTIVE, RUNG_OK, SECTION_LOTS, SECTION_RESERVATION, SECTION_RUNG,
)
from ledger._limits cimport NEXT_EXPIRIES_MAX
from ledger._image cimport Program2
from ledger._programme cimport programme_load
from ledger._rules cimport Program, program_day, program_day_start_us


cdef class Past:
    """One member's state. image: of the programme in force at the moment; names: of all wallets. Errors: ValueError: it does not load."""

    cdef Program program
    cdef Program2* rules
    cdef uint8_t* image
    cdef list names
    cdef dict lots              # (wallet, expiry day, available day, funder) -> [points, held]
    cdef dict reservations      # id -> (expire time, [(lot, held)]): the active ones
    cdef readonly uint64_t sequence     # of the last entry that changed the member; 0: the account is not open
    cdef int rung               # as it was set last, with its end in seconds since 1970 (0: none)
    cdef int64_t rung_until_s

    def __cinit__(self, bytes image not None, names):
        self.lots = {}
        self.reservations = {}
        self.sequence = 0
        self.names = list(names)
        memset(&self.program, 0, sizeof(Program))
        self.image = <uint8_t*>malloc(len(image) + 1)
        self.rules = <Program2*>calloc(1, sizeof(Program2))
        if self.image == NULL or self.rules == NULL:
            raise MemoryError("no memory for a programme")
        memcpy(self.image, <const uint8_t*>image, len(image))
        if programme_load(&self.program, self.rules, self.image, <uint32_t>len(image)) != 0:
            raise ValueError("the programme's image does not load")

    def __dealloc__(self):
        free(self.image)
        free(self.rules)

    def add(self, uint64_t sequence, bytes entry not None) -> None:
        """The member's next entry. Remembered refusals change nothing but the rung."""
        cdef EntryView view
        cdef Cursor cursor
        cdef uint64_t wallet, available_day, expiry_day, funder, reservation
        cdef int64_t points, held, expire_after_us
        cdef uint8_t state
        if len(entry) < ENTRY_HEADER_BYTES or not entry_view(entry, <uint32_t>len(entry), &view):
            raise ValueError(f"the framing of entry {sequence} is broken")
        if view.sections[SECTION_RUNG].data != NULL:
            cursor_open(&cursor, &view.sections[SECTION_RUNG])
            get_byte(&cursor)
            self.rung = get_byte(&cursor)
            self.rung_until_s = <int64_t>get_varint(&cursor)
            if cursor.broken:
                raise ValueError(f"the rung of entry {sequence} is broken")
        if view.header.status != 0:
            return
        self.sequence = sequence
        holds = []
        if view.sections[SECTION_LOTS].data != NULL:
            cursor_open(&cursor, &view.sections[SECTION_LOTS])
            while cursor_more(&cursor):
                wallet = get_varint(&cursor)
                available_day = get_varint(&cursor)
                expiry_day = get_varint(&cursor)
                funder = get_varint(&cursor)
                points = get_signed(&cursor)
                held = get_signed(&cursor)
                if cursor.broken:
                    raise ValueError(f"the lots of entry {sequence} are broken")
                name = (wallet, expiry_day, available_day, funder)
                lot = self.lots.setdefault(name, [0, 0])
                lot[0] += points
                lot[1] += held
                if lot[0] == 0 and lot[1] == 0:
                    del self.lots[name]
                if held > 0:
                    holds.append((name, held))
        if view.sections[SECTION_RESERVATION].data != NULL:
            cursor_open(&cursor, &view.sections[SECTION_RESERVATION])
            reservation = get_varint(&cursor)
            state = get_byte(&cursor)
            get_varint(&cursor)
            get_signed(&cursor)
            get_signed(&cursor)
            expire_after_us = get_signed(&cursor)
            if cursor.broken:
                raise ValueError(f"the reservation of entry {sequence} is broken")
            if state == RESERVATION_ACTIVE:
                self.reservations[reservation] = (view.header.time_us + expire_after_us, holds)
            else:
                self.reservations.pop(reservation, None)

    def rung_at(self, int64_t at_us) -> tuple[int, int]:
        """The rung at this moment, from 0, and until when in seconds since 1970 (0: without end)."""
        if self.rung == RUNG_OK or (self.rung_until_s != 0 and at_us >= self.rung_until_s * 1_000_000):
            return RUNG_OK, 0
        return self.rung, self.rung_until_s

    def wallets(self, int64_t at_us) -> list:
        """Per wallet of the programme: (name, posted, pending, reserved, [(expire time us, points)]), judged at this moment."""
        cdef int32_t today = program_day(&self.program, at_us)
        due = {}        # what reservations hold whose time is over but whose expiry was not posted yet
        for expire_time_us, holds in self.reservations.values():
            if expire_time_us <= at_us:
                for name, held in holds:
                    due[name] = due.get(name, 0) + held
        sums = [[0, 0, 0, {}] for _ in self.names]
        for name, (points, held) in self.lots.items():
            wallet, expiry_day, available_day, _ = name
            if wallet >= len(self.names):
                continue
            held -= due.get(name, 0)
            of_wallet = sums[wallet]
            of_wallet[2] += held
            if expiry_day <= today:
                of_wallet[0] += held
                continue
            of_wallet[0] += points
            if available_day > today:
                of_wallet[1] += points - held
            if expiry_day != DAY_NEVER and points > held:
                of_wallet[3][expiry_day] = of_wallet[3].get(expiry_day, 0) + points - held
        answer = []
        for name, (posted, pending, reserved, expiries) in zip(self.names, sums):
            soonest = [(program_day_start_us(&self.program, <int32_t>day), expiries[day]) for day in sorted(expiries)[:NEXT_EXPIRIES_MAX]]
            answer.append((name, posted, pending, reserved, soonest))
        return answer
