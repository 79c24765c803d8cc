from libc.stdint cimport int64_t
from mmlsm.read.source cimport Source

cdef class TableSource(Source):
    cdef object table
    cdef object state
    cdef int64_t seq
    cdef list chunk
    cdef Py_ssize_t at
    cdef bint descending
    cdef bint live
    cdef int64_t known
    cdef bytes current
    cdef object current_value

    cdef int use(self, bytes key) except -1
    cdef int walk(self, object start, bint inclusive, bint descending) except -1
    cdef int walk_on(self) except -1
    cdef int move(self, bint descending) except -1
