from libc.stdint cimport int64_t, uint64_t
from mmlsm.memory cimport Window, u8s

cdef class Pages:
    cdef readonly Window window
    cdef readonly object file
    cdef readonly object segment_id
    cdef readonly int node_pages
    cdef int64_t file_pages  # of the file when it was last asked, which is a system call
    cdef bint verify_always
    cdef bint verify_never

    cdef int touch_node(self, int64_t page, int64_t pages, uint64_t expected, int height) except -1
    cdef int judge(self, bytes data, int64_t page, uint64_t expected, int height) except -1
    cdef int structure_fault(self, u8s m8, Py_ssize_t size, int height, int64_t limit) except -1
    cdef int touch_key(self, int64_t reference_at) except -1
