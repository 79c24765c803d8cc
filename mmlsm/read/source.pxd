from libc.stdint cimport int64_t
from mmlsm.memory cimport u8s

cdef class Source:
    cdef bint valid
    cdef u8s key
    cdef Py_ssize_t key_bytes
    cdef int kind

    cdef int seek_ge(self, u8s key, Py_ssize_t key_bytes) except -1
    cdef int seek_le(self, u8s key, Py_ssize_t key_bytes) except -1
    cdef int first(self) except -1
    cdef int last(self) except -1
    cdef int next(self) except -1
    cdef int prev(self) except -1
    cdef bint stale(self) except -1
    cdef object value(self)
    cdef int64_t value_length(self) except -1
    cdef object view(self)
