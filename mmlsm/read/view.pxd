from mmlsm.memory cimport Window, u8s

cdef class PinnedView:
    cdef object version
    cdef Window window
    cdef u8s start
    cdef Py_ssize_t length
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]
