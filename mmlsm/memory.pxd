# What memory.py names, in C: the compiled bodies of its primitives and the layout of its classes.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, int64_t

ctypedef const uint8_t* u8s
ctypedef const uint16_t* u16s
ctypedef const uint32_t* u32s
ctypedef const uint64_t* u64s
ctypedef uint8_t* u8w
ctypedef uint16_t* u16w
ctypedef uint32_t* u32w
ctypedef uint64_t* u64w
ctypedef int64_t* i64w
ctypedef u8s* u8ps

cdef extern from *:
    """
    #include <string.h>
    #include <stdint.h>
    #include <stdlib.h>
    #include <sys/mman.h>
    #ifndef MAP_NORESERVE
    #define MAP_NORESERVE 0
    #endif
    static inline Py_ssize_t mm_lower_bound(const uint32_t* v, uint32_t x, Py_ssize_t lo, Py_ssize_t hi) {
        Py_ssize_t n = hi - lo, half;
        if (n <= 0) return lo;
        while (n > 1) { half = n >> 1; lo += (v[lo + half - 1] < x) ? half : 0; n -= half; }
        return lo + (v[lo] < x);
    }
    static inline Py_ssize_t mm_upper_bound(const uint32_t* v, uint32_t x, Py_ssize_t lo, Py_ssize_t hi) {
        Py_ssize_t n = hi - lo, half;
        if (n <= 0) return lo;
        while (n > 1) { half = n >> 1; lo += (v[lo + half - 1] <= x) ? half : 0; n -= half; }
        return lo + (v[lo] <= x);
    }
    static inline int mm_compare(const uint8_t* a, Py_ssize_t ao, Py_ssize_t an,
                                 const uint8_t* b, Py_ssize_t bo, Py_ssize_t bn) {
        int c = memcmp(a + ao, b + bo, an < bn ? an : bn);
        return c ? (c > 0) - (c < 0) : (an > bn) - (an < bn);
    }
    static inline Py_ssize_t mm_common(const uint8_t* a, Py_ssize_t an, const uint8_t* b, Py_ssize_t bn) {
        Py_ssize_t n = an < bn ? an : bn, i = 0;
        while (i < n && a[i] == b[i]) i++;
        return i;
    }
    static inline void mm_prefetch(const uint8_t* a, Py_ssize_t i) { __builtin_prefetch(a + i); }
    static inline uint32_t mm_head(const uint8_t* k, Py_ssize_t at, Py_ssize_t n) {
        uint32_t h = 0;
        if (n - at >= 4) { memcpy(&h, k + at, 4); return __builtin_bswap32(h); }
        for (int i = 0; i < 4; i++) h = (h << 8) | (at + i < n ? k[at + i] : 0);
        return h;
    }
    static inline void mm_put_head(uint8_t* to, Py_ssize_t at, uint32_t h, Py_ssize_t n) {
        if (n >= 4) { h = __builtin_bswap32(h); memcpy(to + at, &h, 4); return; }
        for (int i = 0; i < n; i++) to[at + i] = (uint8_t)(h >> (24 - 8 * i));
    }
    static inline uint32_t mm_load32(const uint8_t* a, Py_ssize_t i) { uint32_t x; memcpy(&x, a + i, 4); return x; }
    static inline uint64_t mm_load64(const uint8_t* a, Py_ssize_t i) { uint64_t x; memcpy(&x, a + i, 8); return x; }
    static inline void mm_store32(uint8_t* a, Py_ssize_t i, uint32_t x) { memcpy(a + i, &x, 4); }
    static inline void mm_store64(uint8_t* a, Py_ssize_t i, uint64_t x) { memcpy(a + i, &x, 8); }
    static inline void mm_copy(uint8_t* to, Py_ssize_t at, const uint8_t* from, Py_ssize_t start, Py_ssize_t n) {
        memcpy(to + at, from + start, n);
    }
    static inline void mm_fill(uint8_t* to, Py_ssize_t at, int value, Py_ssize_t n) { memset(to + at, value, n); }
    static inline const uint8_t* mm_at(const uint8_t* a, Py_ssize_t i) { return a + i; }
    static inline uint8_t* mm_part(uint8_t* a, Py_ssize_t i) { return a + i; }
    static inline uint64_t mm_key_hash(const uint8_t* k, Py_ssize_t n) {
        const uint64_t m = 0x9E3779B97F4A7C15ULL;
        uint64_t h = ((uint64_t)n + 1) * m, x;
        Py_ssize_t i = 0;
        for (; i + 8 <= n; i += 8) { memcpy(&x, k + i, 8); h = (h ^ x) * m; h ^= h >> 29; }
        x = 0; memcpy(&x, k + i, n - i);
        h = (h ^ x) * m; h ^= h >> 32; h *= 0xD6E8FEB86659FD93ULL; return h ^ (h >> 32);
    }
    static inline void mm_filter_add(uint8_t* bits, Py_ssize_t at, uint64_t blocks, uint64_t h) {
        uint8_t* b = bits + at + 64 * (((h >> 32) * blocks) >> 32);
        uint64_t g = h * 0xA0761D6478BD642FULL;
        for (int i = 0; i < 6; i++) { b[(g >> 3) & 63] |= (uint8_t)(1u << (g & 7)); g >>= 9; }
    }
    static inline int mm_filter_holds(const uint8_t* bits, Py_ssize_t at, uint64_t blocks, uint64_t h) {
        const uint8_t* b = bits + at + 64 * (((h >> 32) * blocks) >> 32);
        uint64_t g = h * 0xA0761D6478BD642FULL;
        for (int i = 0; i < 6; i++) { if (!(b[(g >> 3) & 63] >> (g & 7) & 1)) return 0; g >>= 9; }
        return 1;
    }
    static inline void* mm_map(int fd, size_t length) {
        void* p = mmap(NULL, length, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    static inline void* mm_zeros(size_t length) {
        void* p = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    static inline void mm_unmap(void* p, size_t length) { munmap(p, length); }
    """
    Py_ssize_t lower_bound "mm_lower_bound"(u32s v, uint32_t x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil
    Py_ssize_t upper_bound "mm_upper_bound"(u32s v, uint32_t x, Py_ssize_t lo, Py_ssize_t hi) noexcept nogil
    int compare "mm_compare"(u8s a, Py_ssize_t ao, Py_ssize_t an, u8s b, Py_ssize_t bo, Py_ssize_t bn) noexcept nogil
    Py_ssize_t common "mm_common"(u8s a, Py_ssize_t an, u8s b, Py_ssize_t bn) noexcept nogil
    void prefetch "mm_prefetch"(u8s a, Py_ssize_t i) noexcept nogil
    uint32_t head "mm_head"(u8s key, Py_ssize_t at, Py_ssize_t key_bytes) noexcept nogil
    void put_head "mm_put_head"(u8w to, Py_ssize_t at, uint32_t h, Py_ssize_t n) noexcept nogil
    uint32_t load32 "mm_load32"(u8s a, Py_ssize_t i) noexcept nogil
    uint64_t load64 "mm_load64"(u8s a, Py_ssize_t i) noexcept nogil
    void store32 "mm_store32"(u8w a, Py_ssize_t i, uint32_t x) noexcept nogil
    void store64 "mm_store64"(u8w a, Py_ssize_t i, uint64_t x) noexcept nogil
    void copy "mm_copy"(u8w to, Py_ssize_t at, u8s source, Py_ssize_t start, Py_ssize_t n) noexcept nogil
    void fill "mm_fill"(u8w to, Py_ssize_t at, int value, Py_ssize_t n) noexcept nogil
    u8s at "mm_at"(u8s a, Py_ssize_t i) noexcept nogil
    u8w part "mm_part"(u8w a, Py_ssize_t i) noexcept nogil
    uint64_t key_hash "mm_key_hash"(u8s key, Py_ssize_t key_bytes) noexcept nogil
    void filter_add "mm_filter_add"(u8w bits, Py_ssize_t at, uint64_t blocks, uint64_t h) noexcept nogil
    bint filter_holds "mm_filter_holds"(u8s bits, Py_ssize_t at, uint64_t blocks, uint64_t h) noexcept nogil
    void* mm_map(int fd, size_t length) nogil
    void* mm_zeros(size_t length) nogil
    void mm_unmap(void* p, size_t length) nogil

cdef inline bytes cut(u8s v, Py_ssize_t lo, Py_ssize_t hi):
    return v[lo:hi]

cdef class Window:
    cdef u8s m8
    cdef u16s m16
    cdef u32s m32
    cdef u8w verified
    cdef readonly Py_ssize_t pages
    cdef readonly object mapping
    cdef size_t _length
    cdef object __weakref__

cdef class Buffer:
    cdef readonly object data
    cdef u8w m8
    cdef u16w m16
    cdef u32w m32
    cdef Py_ssize_t size
    cdef Py_buffer _buffer

cdef class Int64s:
    cdef i64w at
    cdef readonly Py_ssize_t size

cdef class Pointers:
    cdef u8ps at
