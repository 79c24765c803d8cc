"""The one checksum of the format: XXH3, 64 bits, seed 0. Any thread."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from collections.abc import Callable

checksum: Final[Callable[[bytes | bytearray | memoryview], int]] = xxhash.xxh3_64_intdigest
"""The sum of all bytes of a buffer, 0 <= sum < 2**64. Bound directly: a wrapper would cost as much as a short hash."""
