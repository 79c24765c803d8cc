# cython: boundscheck=False, wraparound=False, binding=False
"""Zero-copy views of values in the map that pin the version they were read from.

Any thread. A view holds an exporter, the exporter holds the version and the window: the pages under it are neither
reused nor truncated, and stay mapped, until the last slice of the view is gone, past `close()` too (promise 6).
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.cpython.buffer import PyBuffer_FillInfo
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.memory import Window, at

    @cython.final
    @cython.cclass
    class PinnedView:
        """Exports `length` bytes of the window, read-only, and holds what keeps them in place."""

        def __getbuffer__(self, buffer: cython.pointer(Py_buffer), flags: cython.int):  # noqa: F821
            PyBuffer_FillInfo(buffer, self, cython.cast("void *", self.start), self.length, True, flags)

        def __releasebuffer__(self, buffer: cython.pointer(Py_buffer)):  # noqa: F821
            pass

    def view_of(version, file, window: Window, start: int64_t, length: cython.Py_ssize_t) -> memoryview:
        """A read-only memoryview of `length` bytes at byte `start` of the file that pins `version`."""
        exporter: PinnedView = PinnedView()
        exporter.version = version
        exporter.window = window
        exporter.start = at(window.m8, start)
        exporter.length = length
        return memoryview(exporter)
else:

    def view_of(version, file, window, start, length):
        """A read-only memoryview of `length` bytes at byte `start` of the file that pins `version`."""
        mapping = version.pinned_map(file, max(1, (start + length + 4095) >> 12))
        return memoryview(mapping)[start : start + length]
