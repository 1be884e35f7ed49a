# The compiled leaves, exposed to tests and benches only. Not for the service: nothing in ledger/ or server/ imports this.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from ledger._layout cimport Award, Command
from ledger._limits cimport AWARDS_MAX, LINES_MAX
from ledger._rules cimport (
    ImageHeader, ImageWallet, Program, RuleOp, ZoneSpan, program_day, program_day_start_us, program_evaluate, program_load, program_wallet,
)

if sizeof(ImageHeader) != 192 or sizeof(ImageWallet) != 40 or sizeof(RuleOp) != 48 or sizeof(ZoneSpan) != 16:
    raise ImportError("the image's records do not have the sizes that docs/journal-format.md gives")


cdef class LoadedProgram:
    """A compiled image, loaded in place. ValueError: program_load refuses it."""

    cdef Program program
    cdef uint8_t* copy
    cdef Command* command
    cdef Award* awards

    def __cinit__(self, bytes image not None):
        cdef const uint8_t* data = image
        self.copy = <uint8_t*>calloc(len(image) + 8, 1)
        self.command = <Command*>calloc(1, sizeof(Command))
        self.awards = <Award*>calloc(AWARDS_MAX, sizeof(Award))
        if self.copy == NULL or self.command == NULL or self.awards == NULL:
            raise MemoryError
        memcpy(self.copy, data, <size_t>len(image))
        if program_load(&self.program, self.copy, <uint32_t>len(image)) != 0:
            raise ValueError("the image is damaged")

    def __dealloc__(self):
        free(self.copy)
        free(self.command)
        free(self.awards)

    @property
    def wallets(self):
        return [(self.program.wallets[i].name[:self.program.wallets[i].name_size].decode(), self.program.wallets[i].scale)
                for i in range(self.program.wallet_count)]

    def day(self, int64_t time_us):
        return program_day(&self.program, time_us)

    def day_start_us(self, int32_t day):
        return program_day_start_us(&self.program, day)

    def evaluate(self, int64_t total_minor, amounts, int64_t business_time_us):
        """The awards as tuples (line, rule, wallet, funder, points, available day, expiry day); None: overflow."""
        cdef uint32_t i = 0
        if len(amounts) > LINES_MAX:
            raise ValueError("too many lines")
        self.command.total_minor = total_minor
        self.command.line_count = <uint32_t>len(amounts)
        for amount in amounts:
            self.command.lines[i].amount_minor = amount
            i += 1
        cdef int32_t count = program_evaluate(&self.program, self.command, business_time_us, self.awards)
        if count < 0:
            return None
        return [(self.awards[j].line, self.awards[j].rule, self.awards[j].wallet, self.awards[j].funder, self.awards[j].points,
                 self.awards[j].available_day, self.awards[j].expiry_day) for j in range(count)]
