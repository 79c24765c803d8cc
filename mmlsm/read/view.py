# cython: boundscheck=False, wraparound=False, binding=False
"""Zero-copy views of values in the map that pin the version they were read from.

Any thread. A view holds an exporter, the exporter holds the version and the window: the pages under it are neither
reused nor truncated, and stay mapped, until the last slice of the view is gone, past `close()` too (promise 6). A fork
is told what is viewed, and holds it for its child (forks.py).

I1. All exporters are in one ring, which is changed and walked with the GIL held and no Python code in between.
"""

from __future__ import annotations

import weakref

import cython

from mmlsm.file import FORKS

if cython.compiled:
    from cython.cimports.cpython.buffer import PyBuffer_FillInfo
    from cython.cimports.libc.stdint import int64_t
    from cython.cimports.mmlsm.memory import Window, at
    from cython.cimports.mmlsm.read.view import RING, Link

    RING.before = RING.behind = cython.address(RING)

    @cython.final
    @cython.cclass
    class PinnedView:
        """Exports `length` bytes of the window, read-only, and holds what keeps them in place."""

        def __cinit__(self):
            self.link.view = cython.cast("void *", self)
            self.link.before = cython.address(RING)
            self.link.behind = RING.behind
            self.link.behind.before = RING.behind = cython.address(self.link)

        def __dealloc__(self):
            self.link.before.behind = self.link.behind
            self.link.behind.before = self.link.before

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

    def keepers() -> list:
        """What all views hold that there are in this process."""
        found: list = []
        link: cython.pointer(Link) = RING.behind
        while link != cython.address(RING):
            found.append(cython.cast(PinnedView, link.view).version)
            link = link.behind
        return found
else:
    _maps: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()

    def view_of(version, file, window, start, length):
        """A read-only memoryview of `length` bytes at byte `start` of the file that pins `version`."""
        mapping = version.pinned_map(file, max(1, (start + length + 4095) >> 12))
        _maps[id(mapping)] = mapping
        return memoryview(mapping)[start : start + length]

    def keepers():
        """What all views hold that there are in this process."""
        found = []
        for reference in _maps.valuerefs():  # a copy: other threads may add to it
            mapping = reference()
            if mapping is not None:
                found.append(mapping.owner)
        return found


FORKS.viewed = keepers
