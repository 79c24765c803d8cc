# cython: boundscheck=False, wraparound=False, binding=False
"""What callers give as keys and values becomes plain bytes, of which C and Python see the same length and content.

Any thread. A subclass of bytes may answer anything as its length, hash, order or `bytes()`; it is asked nothing, and
goes no further than here. Code of a caller's own may run in here all the same (`__buffer__`, a metaclass), and end what
it is to go into: who takes the bytes looks again.

I1. What comes out is of type bytes and no subclass of it. Plain bytes come out as they are, and are not copied.
"""

from __future__ import annotations

import re
from typing import Any

from mmlsm.errors import KeySizeError

ADDRESSES = re.compile(r"[OPXz&]|Z(?![fdg])")
"""In a buffer's format (PEP 3118, ctypes): objects and pointers, whose bytes are addresses. Zf, Zd, Zg are complex."""

NAMES = re.compile(r":[^:]*:")
"""In a buffer's format: what a structure calls its fields."""


def exact(thing: Any) -> bytes | None:
    """The bytes of any object with the buffer protocol; None where it has none, or is text, a number or addresses.

    NumPy's text and numbers show their memory as arrays do, but mean what a str and an int mean.
    """
    if type(thing) is bytes:
        return thing
    if type(thing) is bytearray:
        return bytes(thing)
    kind = type(thing)
    if isinstance(thing, str) or (hasattr(kind, "__float__") and not hasattr(kind, "__len__")):
        return None
    try:
        view = memoryview(thing)  # not bytes(thing), whose `__bytes__` may be anybody's
    except TypeError:
        return None
    return None if view.format != "B" and ADDRESSES.search(NAMES.sub("", view.format)) else bytes(view)


def refusal(thing: object, what: str) -> TypeError:
    """What to tell who gave this as a "key" or "value"."""
    if isinstance(thing, str):
        return TypeError(f"{what}s are bytes, not str: pass {what}.encode() or b'...'")
    return TypeError(f"{what}s are bytes-like, not {type(thing).__name__}: encode it first")


def as_key(key: object) -> bytes:
    """`key` as bytes; TypeError or KeySizeError that says how to mend it."""
    data = exact(key)
    if data is None:
        raise refusal(key, "key")
    if len(data) > 65535:
        raise KeySizeError(f"a key of {len(data)} bytes: at most 65,535 are possible; store a hash of it instead")
    return data


def bound_of(key: object) -> bytes | None:
    """A range's bound as bytes of any length; None for no bound."""
    if key is None:
        return None
    data = exact(key)
    if data is None:
        raise refusal(key, "key")
    return data


def as_value(value: object) -> bytes:
    """`value` as bytes; TypeError that says how to mend it."""
    data = exact(value)
    if data is None:
        raise refusal(value, "value")
    return data


def as_value_or_stream(value: object) -> object:
    """`value` as bytes, or itself where it is a stream. What is both, as mmap.mmap is, goes in whole each time."""
    data = exact(value)
    if data is None and not hasattr(value, "read"):
        raise refusal(value, "value")
    return value if data is None else data
