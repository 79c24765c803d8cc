cdef class Lookahead:
    cdef list sources
    cdef object stop
