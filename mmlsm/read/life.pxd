cdef class Life:
    cdef public int ended

    cdef int check(self) except -1
