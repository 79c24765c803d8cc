"""What a command complains of: a line on stderr, whatever has become of that.

One thread.

I1. A line that cannot be written changes no exit code: neither now nor when Python flushes stderr at its end.
"""

from __future__ import annotations

import contextlib
import io
import sys


def say(line: str) -> None:
    """Write it, or else nothing more."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        with contextlib.suppress(OSError):
            sys.stderr.close()
        sys.stderr = io.StringIO()
