from mmlsm.read.life cimport Life
from mmlsm.read.merged cimport Merged

cdef class RangeIterator:
    cdef object reader
    cdef Life life
    cdef Merged merged
    cdef int what
    cdef bytes start
    cdef bytes stop
    cdef bint reverse
    cdef bint include_start
    cdef bint include_stop
    cdef Py_ssize_t remaining
    cdef bint started
    cdef bint busy

    cdef int advance(self) except -1
    cdef bint inside(self) except -1
    cdef object result(self)

cdef class Cursor:
    cdef object reader
    cdef Life life
    cdef Merged merged
    cdef bint busy
    cdef bint moved

    cdef Merged enter(self)
    cdef bint move(self, int which) except? 1
    cdef int placed(self, Merged merged) except -1
    cdef object fresh(self, Merged merged, int what)
    cdef int compare_to(self, Merged merged, bytes key) except -2
