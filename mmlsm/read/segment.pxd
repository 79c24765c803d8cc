from libc.stdint cimport int64_t, uint64_t
from mmlsm.memory cimport Buffer, Int64s, Window, u8s
from mmlsm.read.pages cimport Pages
from mmlsm.read.source cimport Source

cdef enum:
    ABSENT = -1

cdef class Segment(Pages):
    cdef readonly object record
    cdef readonly object lock
    cdef int64_t root_page
    cdef int64_t root_pages
    cdef uint64_t root_sum
    cdef readonly int height
    cdef readonly bytes first_key
    cdef readonly bytes last_key
    cdef readonly int64_t entries
    cdef int64_t filter_at
    cdef uint64_t filter_blocks
    cdef bint filter_ready

    cdef int touch_root(self) except -1
    cdef bint root_is_proved(self) noexcept
    cdef int touch_child(self, int64_t base, Py_ssize_t i, int height) except -1
    cdef bint may_hold(self, u8s key, Py_ssize_t key_bytes, uint64_t h) except? 1
    cdef int64_t leaf_for(self, u8s key, Py_ssize_t key_bytes) except -2
    cdef int64_t find(self, u8s key, Py_ssize_t key_bytes) except -2
    cdef int kind_of(self, int64_t position) noexcept
    cdef object value_of(self, int64_t position)
    cdef int64_t value_length_of(self, int64_t position) except -1
    cdef object reference_of(self, int64_t position)

cdef class SegmentSource(Source):
    cdef readonly Segment segment
    cdef object version
    cdef Buffer scratch
    cdef Buffer other
    cdef Int64s path
    cdef Int64s index
    cdef int64_t base
    cdef Py_ssize_t i
    cdef Py_ssize_t n

    cdef int load(self) except -1
    cdef int descend(self, int64_t page, int level, int to_last) except -1
    cdef int climb(self, int step) except -1
    cdef int onward(self, int step) except -1
    cdef int64_t position(self) noexcept
