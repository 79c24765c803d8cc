from libc.stdint cimport int64_t
from mmlsm.memory cimport Buffer, Int64s, Pointers, Window
from mmlsm.read.tournament cimport Tournament
from mmlsm.write.leaf_writer cimport LeafWriter

cdef enum:
    DONE = 0
    FULL = 1
    DROPPED_FULL = 2
    TOMBSTONE = 3
    MOVE = 4
    DISORDER = 5
    FEED = 1000
    TOUCH = 2000
    FEED_LEAVES = 1024
    STRIDE = 8256
    DROPPED_MOST = 4096

cdef class MergeCore:
    cdef Window window
    cdef LeafWriter writer
    cdef Tournament tournament
    cdef readonly Py_ssize_t sources
    cdef int tombstones
    cdef readonly int64_t cut
    cdef Int64s feed
    cdef Int64s feed_at
    cdef Int64s feed_count
    cdef Int64s feed_first
    cdef Int64s feed_last
    cdef Int64s waiting
    cdef list bounds
    cdef Pointers bound
    cdef Int64s bound_bytes
    cdef Int64s base
    cdef Int64s at_entry
    cdef Int64s entries
    cdef Buffer scratch
    cdef Buffer held
    cdef Py_ssize_t held_bytes
    cdef bint holding
    cdef Py_ssize_t loading
    cdef Py_ssize_t replaying
    cdef int verdict
    cdef Buffer references
    cdef bint is_moved
    cdef Int64s dropped
    cdef readonly Py_ssize_t dropped_count
    cdef readonly int64_t entries_in
    cdef Int64s bytes_from
    cdef Int64s entries_from
    cdef Int64s tombstones_from
    cdef Int64s pages_kept
    cdef Int64s pages_dropped

    cdef void wait(self, Py_ssize_t s) noexcept nogil
    cdef int load(self, Py_ssize_t s) noexcept nogil
    cdef void note(self, Py_ssize_t s, int64_t entry, bint kept) noexcept nogil
    cdef bint is_beyond(self, int64_t entry) noexcept nogil
    cdef int emit(self, Py_ssize_t s) noexcept nogil
    cdef int run(self) noexcept nogil
