from libc.stdint cimport int64_t
from mmlsm.memory cimport Window, u8s, u8w

cdef enum:
    UNTOUCHED = -2

cdef Py_ssize_t heads_at(Window w, int64_t base) noexcept nogil
cdef int64_t entry_at(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef int64_t entry_end(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef int64_t value_at(Window w, int64_t entry) noexcept nogil
cdef int64_t key_reference_at(Window w, int64_t entry) noexcept nogil
cdef Py_ssize_t load_key(Window w, int64_t base, Py_ssize_t i, u8w out) noexcept nogil
cdef int compare_entry(Window w, int64_t base, Py_ssize_t i, u8s key, Py_ssize_t key_bytes) noexcept nogil
cdef int64_t search(Window w, int64_t base, u8s key, Py_ssize_t key_bytes) noexcept nogil
cdef int fault_code(u8s m8, Py_ssize_t size, int64_t limit, Py_ssize_t key_max) noexcept nogil
cdef int reference_fault(u8s m8, Py_ssize_t at, int64_t limit) noexcept nogil
