# Reads of a follower's state: request bytes -> answer bytes, through the tills' own codec and the core's own reading.
# Not for writes (a follower has none) nor for ports (server/follow.py, its only caller). Holds the GIL; the caller holds the follower's lock.

import mmap

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from ledger._clock cimport Clock, clock_open, clock_turn
from ledger._core cimport core_execute, core_program
from ledger._follower cimport FollowerCore
from ledger._layout cimport METHOD_BATCH_GET_BALANCES, METHOD_GET_BALANCE
from ledger._limits cimport ANSWER_BYTES_MAX, BATCH_ANSWER_BYTES_MAX
from ledger._status cimport STATUS_METHOD_UNKNOWN, STATUS_NOT_READY, STATUS_OK
from server._call cimport Answer, Batch, Caller, batch_balances, batch_begin, call_encode, call_read, call_refuse


cdef class Reader:
    """See _reader.pyi."""

    cdef FollowerCore core
    cdef Caller* caller
    cdef Answer answer
    cdef Batch batch
    cdef Clock clock
    cdef Py_buffer clock_buffer
    cdef object clock_map

    def __cinit__(self, FollowerCore core not None, clock_file):
        self.core = core
        self.clock_map = None
        self.caller = <Caller*>calloc(1, sizeof(Caller))
        self.answer.data = <uint8_t*>malloc(ANSWER_BYTES_MAX)
        self.batch.answer = <uint8_t*>malloc(BATCH_ANSWER_BYTES_MAX)
        if self.caller == NULL or self.answer.data == NULL or self.batch.answer == NULL:
            raise MemoryError("no memory for a call")
        if clock_file is None:
            clock_open(&self.clock, NULL)
            return
        with open(clock_file, "rb") as file:
            self.clock_map = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
        PyObject_GetBuffer(self.clock_map, &self.clock_buffer, PyBUF_SIMPLE)
        clock_open(&self.clock, <const int64_t*>self.clock_buffer.buf)

    def __dealloc__(self):
        if self.clock_map is not None:
            PyBuffer_Release(&self.clock_buffer)
        free(self.caller)
        free(self.answer.data)
        free(self.batch.answer)

    def read(self, uint8_t method, bytes request not None):
        """(gRPC code, response or google.rpc.Status, message) of one call."""
        cdef const uint8_t* data = request
        if method != METHOD_GET_BALANCE and method != METHOD_BATCH_GET_BALANCES:
            call_refuse(self.caller, STATUS_METHOD_UNKNOWN, 0, 0, &self.answer)
        elif core_program(self.core.core) == NULL:
            call_refuse(self.caller, STATUS_NOT_READY, 0, 0, &self.answer)
        elif method == METHOD_BATCH_GET_BALANCES:
            self.batch.method = method
            self.batch.request = data
            self.batch.size = <uint32_t>len(request)
            self.batch.core = self.core.core
            self.batch.now_us = clock_turn(&self.clock)
            if batch_begin(self.caller, &self.batch, &self.answer):
                batch_balances(self.caller, &self.batch, &self.answer)
                if self.answer.status == STATUS_OK:
                    return (0, self.batch.answer[:self.batch.answer_size], b"")
        else:
            call_read(self.caller, 0, method, data, <uint32_t>len(request))
            if self.caller.decoded[0]:
                core_execute(self.core.core, &self.caller.commands[0], clock_turn(&self.clock), NULL, &self.caller.outcomes[0])
            call_encode(core_program(self.core.core), method, &self.caller.outcomes[0], &self.answer)
        return (self.answer.grpc_code, self.answer.data[:self.answer.size], self.answer.message[:self.answer.message_size])
