from mmlsm.memory cimport Window, u8s

cdef struct Link:
    Link* before
    Link* behind
    void* view

cdef Link RING

cdef class PinnedView:
    cdef Link link
    cdef object version
    cdef Window window
    cdef u8s start
    cdef Py_ssize_t length
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]
