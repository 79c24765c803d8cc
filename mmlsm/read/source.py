# cython: boundscheck=False, wraparound=False, binding=False
"""Source: a position in one sorted collection, the unit that cursors combine.

One thread at a time moves a source; its cursor sees to that.

I1. While `valid`, `key[:key_bytes]` is the current key; it stays readable until the source is moved.
I2. `kind` is VALUE, TOMBSTONE or OVERFLOW of format/page.py; telling it reads no value.
I3. Moving past either end makes the source invalid; a seek makes it valid again where there is a key.
"""

from __future__ import annotations

import cython


@cython.cclass
class Source:
    """The interface; every method here is overridden. Moves return 0 and set `valid`."""

    def seek_ge(self, key, key_bytes):
        """To the first key >= key[:key_bytes]."""
        raise NotImplementedError

    def seek_le(self, key, key_bytes):
        """To the last key <= key[:key_bytes]."""
        raise NotImplementedError

    def first(self):
        """To the first key."""
        raise NotImplementedError

    def last(self):
        """To the last key."""
        raise NotImplementedError

    def next(self):
        """To the next key; REQUIRES valid."""
        raise NotImplementedError

    def prev(self):
        """To the key before; REQUIRES valid."""
        raise NotImplementedError

    def stale(self):
        """Whether what it walks was changed since it was placed, so that it may stand at the wrong key."""
        return False

    def value(self):
        """The current value as bytes; REQUIRES a kind other than TOMBSTONE."""
        raise NotImplementedError

    def value_length(self):
        """The current value's length in bytes, without reading it."""
        raise NotImplementedError

    def view(self):
        """A memoryview of the current value that stays valid while held."""
        raise NotImplementedError
