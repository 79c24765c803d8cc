cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define mm_is_finalizing Py_IsFinalizing
    #else
    #define mm_is_finalizing _Py_IsFinalizing
    #endif
    """
    bint is_finalizing "mm_is_finalizing" ()

cdef class Life:
    cdef public int ended

    cdef int check(self) except -1
