cdef class Latch:
    cdef object lock
    cdef readonly object acquire
    cdef readonly object release
