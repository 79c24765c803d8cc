from libc.stdint cimport int64_t
from mmlsm.read.entries cimport Entry, EntryTable

cdef enum:
    # What a key costs in memory beside its bytes: the object, its places in the dict and in the order; what a version
    # costs beside its value: the entry and the value's object; bytes of a reference; SWEEP_LEAST see Memtable.trim.
    KEY_BYTES = 120
    VERSION_BYTES = 96
    REFERENCE_BYTES = 24
    SWEEP_LEAST = 4

cdef class Memtable(EntryTable):
    cdef readonly int64_t data_bytes
    cdef readonly int64_t live_bytes
    cdef readonly int64_t first_seq
    cdef readonly int64_t last_seq
    cdef readonly int64_t versions
    cdef public int64_t log_bytes
    cdef public bint sealed
    cdef readonly object log_start
    cdef readonly set references
    cdef bint applying

    cdef int64_t trim(self, Entry newest, int64_t published, tuple pins, bint all_of_them) except -1

cdef int64_t value_bytes(object value) except -1
cdef bint pinned(tuple pins, int64_t low, int64_t high) except -1
