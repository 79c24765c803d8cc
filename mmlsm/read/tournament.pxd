from libc.stdint cimport int64_t
from mmlsm.memory cimport Int64s, Pointers

cdef class Tournament:
    cdef readonly Py_ssize_t size
    cdef Py_ssize_t leaves
    cdef bint reverse
    cdef Pointers key
    cdef Int64s key_bytes
    cdef Int64s tree

    cdef int64_t better(self, int64_t a, int64_t b) noexcept nogil
    cdef void build(self) noexcept nogil
    cdef void replay(self, Py_ssize_t contestant) noexcept nogil
