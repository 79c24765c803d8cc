from libc.stdint cimport int64_t
from mmlsm.memory cimport Int64s, Pointers
from mmlsm.read.segment cimport Segment

cdef enum:
    NOT_HERE = -1
    BY_HAND = -2
    GROUP = 32

cdef class BatchGet:
    cdef object state
    cdef list keys
    cdef list values
    cdef Pointers key
    cdef Int64s key_bytes
    cdef Int64s open
    cdef Py_ssize_t open_count
    cdef Int64s page
    cdef Int64s position

    cdef int search_tables(self, int64_t seq) except -1
    cdef int search_segment(self, Segment segment) except -1
    cdef void descend(self, Segment segment, Py_ssize_t start, Py_ssize_t stop) noexcept nogil
