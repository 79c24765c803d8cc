"""mmlsm: an embedded, ordered key-value store in one file, read zero-copy through mmap.

    import mmlsm

    with mmlsm.open("example.db") as db:
        db[b"key"] = b"value"
        print(db.get(b"key"), list(db.items(prefix=b"k")))
"""

from __future__ import annotations

from mmlsm.check import Report
from mmlsm.database import Database, open
from mmlsm.errors import (
    ClosedError,
    ConflictError,
    CorruptionError,
    Error,
    ForkError,
    FormatError,
    KeySizeError,
    LockedError,
    LockTimeout,
    ReadOnlyError,
    StorageError,
)
from mmlsm.memory import COMPILED
from mmlsm.read.cursor import Cursor
from mmlsm.read.reader import Reader
from mmlsm.read.snapshot import Snapshot
from mmlsm.rescue.report import SalvageReport
from mmlsm.rescue.salvage import salvage
from mmlsm.stats import Stats
from mmlsm.write.batch import Batch
from mmlsm.write.transaction import Transaction

__version__ = "0.1.0"

__all__ = [
    "COMPILED",
    "Batch",
    "ClosedError",
    "ConflictError",
    "CorruptionError",
    "Cursor",
    "Database",
    "Error",
    "ForkError",
    "FormatError",
    "KeySizeError",
    "LockTimeout",
    "LockedError",
    "ReadOnlyError",
    "Reader",
    "Report",
    "SalvageReport",
    "Snapshot",
    "Stats",
    "StorageError",
    "Transaction",
    "open",
    "salvage",
]
