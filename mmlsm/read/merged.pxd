from libc.stdint cimport int64_t
from mmlsm.memory cimport Buffer, u8s
from mmlsm.read.source cimport Source
from mmlsm.read.tournament cimport Tournament

cdef class Merged:
    cdef list sources
    cdef Source only
    cdef Tournament tournament
    cdef Source current
    cdef int64_t winner
    cdef Buffer held
    cdef Py_ssize_t held_bytes

    cdef int hold(self) except -1
    cdef int enter(self, Py_ssize_t s) except -1
    cdef int settle(self) except -1
    cdef int pass_held(self) except -1
    cdef int turn(self, bint reverse) except -1
    cdef int first(self) except -1
    cdef int last(self) except -1
    cdef int next(self) except -1
    cdef int prev(self) except -1
    cdef int seek_ge(self, u8s key, Py_ssize_t key_bytes) except -1
    cdef int seek_le(self, u8s key, Py_ssize_t key_bytes) except -1
    cdef int start(self, bint reverse) except -1
    cdef int step_only(self) except -1
    cdef bint stale(self) except -1
