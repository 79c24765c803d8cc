from libc.stdint cimport int64_t, uint64_t
from mmlsm.read.life cimport Life
from mmlsm.read.merged cimport Merged

cdef class ReadState:
    cdef readonly tuple tables
    cdef readonly tuple segments
    cdef readonly object version
    cdef readonly object file
    cdef readonly str verify
    cdef readonly object keeper

cdef class Reader:
    cdef public ReadState state
    cdef public int64_t seq
    cdef readonly Life life
    cdef bint live
    cdef bint floating

    cdef bytes key_of(self, object key)
    cdef object fetch(self, bytes key, int what)
