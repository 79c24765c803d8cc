from libc.stdint cimport int64_t, uint64_t
from mmlsm.memory cimport Buffer, Int64s, u8s

cdef enum:
    ADDED = 0
    DRAIN = 1
    LEAVES_A_BATCH = 256
    OUT_BYTES = 1048576
    STAGE_BYTES = 2097152
    SEPARATORS_BYTES = 524288

cdef class LeafWriter:
    cdef readonly Py_ssize_t leaf_bytes
    cdef Py_ssize_t limit
    cdef readonly Py_ssize_t key_max
    cdef readonly Py_ssize_t value_max
    cdef Py_ssize_t entries_max
    cdef uint64_t birth
    cdef bytes spilled_key
    cdef bytes spilled_reference
    cdef readonly Buffer out
    cdef readonly Py_ssize_t out_used
    cdef readonly Py_ssize_t leaves
    cdef readonly int64_t entries
    cdef readonly int64_t tombstones
    cdef readonly int64_t data_bytes
    cdef Buffer stage
    cdef Py_ssize_t staged
    cdef Int64s key_at
    cdef Int64s key_bytes
    cdef Int64s value_at
    cdef Int64s value_bytes
    cdef Int64s kinds
    cdef Py_ssize_t count
    cdef Py_ssize_t prefix
    cdef Py_ssize_t heap_bytes
    cdef Py_ssize_t tombstones_here
    cdef bint overflow_here
    cdef Buffer first_key
    cdef Py_ssize_t first_key_bytes
    cdef Buffer last_key
    cdef Py_ssize_t last_key_bytes
    cdef Buffer previous_key
    cdef Py_ssize_t previous_key_bytes
    cdef bint has_previous
    cdef Buffer lowest
    cdef Py_ssize_t lowest_bytes
    cdef readonly Int64s leaf_at
    cdef readonly Int64s separator_at
    cdef readonly Int64s separator_bytes
    cdef readonly Int64s separator_full
    cdef readonly Buffer separators
    cdef Py_ssize_t separators_used
    cdef Buffer filter_bits
    cdef uint64_t filter_blocks

    cdef Py_ssize_t heap_with_prefix(self, Py_ssize_t prefix) noexcept nogil
    cdef int add(self, int kind, u8s key, Py_ssize_t key_bytes, u8s reference,
                 u8s value, Py_ssize_t value_bytes) noexcept nogil
    cdef int finish_leaf(self) noexcept nogil
    cpdef Py_ssize_t open_bytes(self) noexcept nogil
    cdef void note_separator(self, Py_ssize_t cut) noexcept nogil
    cdef void remember_key(self, u8s key, Py_ssize_t key_bytes) noexcept nogil
