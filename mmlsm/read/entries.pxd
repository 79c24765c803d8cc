from libc.stdint cimport int32_t, int64_t

cdef class Entry:
    cdef readonly int64_t seq
    cdef readonly object value
    cdef readonly Entry older
    cdef int32_t depth
    cdef int32_t sweep_at

cdef class EntryTable:
    cdef readonly dict entries
    cdef public int64_t trimmed
    cdef public int64_t changes
    cdef list fresh
    cdef object order
    cdef object ordering
    cdef bint doubtful
    cdef bint remade
    cdef object __weakref__

    cpdef Entry lookup(self, bytes key, int64_t seq)
    cdef Entry put_entry(self, bytes key, object value, int64_t seq)
