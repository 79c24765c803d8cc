# cython: boundscheck=False, wraparound=False, binding=False
"""What callers give as keys and values becomes plain bytes, of which C and Python see the same length and content.

Any thread. A subclass of bytes may answer anything as its length, hash, order or `bytes()`; it is asked nothing, and
goes no further than here.

I1. What comes out is of type bytes and no subclass of it. Plain bytes come out as they are, and are not copied.
"""

from __future__ import annotations

from mmlsm.errors import KeySizeError


def exact(thing: object) -> bytes | None:
    """The bytes of something bytes-like; None where it is not."""
    if type(thing) is bytes:
        return thing
    if type(thing) is bytearray or type(thing) is memoryview:
        return bytes(thing)
    if not isinstance(thing, bytes | bytearray):
        return None
    return bytes(memoryview(thing))  # not of the thing itself, whose `__bytes__` may be anybody's


def as_key(key: object) -> bytes:
    """`key` as bytes; TypeError or KeySizeError that says how to mend it."""
    if type(key) is not bytes:
        key = bound_of(key)
        if key is None:
            raise TypeError("keys are bytes-like, not NoneType")
    if len(key) > 65535:
        raise KeySizeError(f"a key of {len(key)} bytes: at most 65,535 are possible; store a hash of it instead")
    return key


def as_value(value: object) -> bytes:
    """`value` as bytes; TypeError that says how to mend it."""
    data = exact(value)
    if data is None:
        if isinstance(value, str):
            raise TypeError("values are bytes, not str: pass value.encode() or b'...'")
        raise TypeError(f"values are bytes-like, not {type(value).__name__}: encode it first")
    return data


def bound_of(key: object) -> bytes | None:
    """A range's bound as bytes of any length; None for no bound."""
    if key is None or type(key) is bytes:
        return key
    data = exact(key)
    if data is None:
        if isinstance(key, str):
            raise TypeError("keys are bytes, not str: pass key.encode() or b'...'")
        raise TypeError(f"keys are bytes-like, not {type(key).__name__}")
    return data
