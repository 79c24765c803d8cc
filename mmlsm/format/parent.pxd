from libc.stdint cimport int64_t, uint64_t
from mmlsm.memory cimport Window, u8s

cdef int64_t search(Window w, int64_t base, u8s key, Py_ssize_t key_bytes) noexcept nogil
cdef int64_t child_page(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef int64_t sums_at(Window w, int64_t base) noexcept nogil
cdef uint64_t child_sum(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef int64_t child_entries(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef int64_t child_pages(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef bint child_overflow(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef int64_t separator_reference_at(Window w, int64_t base, Py_ssize_t i) noexcept nogil
cdef int fault_code(u8s m8, Py_ssize_t size, int64_t limit, Py_ssize_t key_max) noexcept nogil
cdef int compare_separator(Window w, int64_t base, Py_ssize_t i, u8s key, Py_ssize_t key_bytes) noexcept nogil
