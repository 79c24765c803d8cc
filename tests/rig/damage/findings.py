"""What a trial of a damaged file ends with where something must not be."""

from __future__ import annotations

import traceback


class Finding(AssertionError):
    """Something that must not be."""


def raw(what: str, error: BaseException) -> str:
    """What to say of an exception that is none of mmlsm's."""
    return f"{what}: {type(error).__name__}: {error}\n{''.join(traceback.format_exception(error)[-7:])}"
