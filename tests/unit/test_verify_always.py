"""`verify="always"`: what was proved is proved again, whatever became of it since."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import mmlsm
from format_reader import PAGE
from mmlsm.settings import Settings


def test_with_always_a_filter_and_what_is_viewed_is_proved_each_time(path: Path) -> None:
    """A filter that was damaged since would say of the newest version that it is not there."""
    with mmlsm.Database(path, Settings(durability="off", auto_merge=False, memtable_bytes=1 << 20)) as db:
        db.update({b"%05d" % i: b"old" for i in range(3000)})
        db.compact()
        db.update({b"%05d" % i: b"new" for i in range(0, 3000, 2)})
        db[b"large"] = large = random.Random(0).randbytes(1 << 20)
    with mmlsm.Database(path, Settings(verify="always", auto_merge=False)) as db:
        assert db[b"00100"] == b"new"
        assert bytes(db.get_view(b"large") or b"") == large
        assert db._engine.store is not None
        (filter_at,) = (one.filter.page * PAGE for one in db._engine.store.manifest.segments() if one.filter)
        value_at = path.read_bytes().index(large)
        with path.open("r+b") as file:
            for at, call in ((filter_at, lambda: db.get(b"00100")), (value_at, lambda: db.get_view(b"large"))):
                file.seek(at)
                before = file.read(64)
                file.seek(at)
                file.write(bytes(b ^ 0xFF for b in before))
                file.flush()
                with pytest.raises(mmlsm.CorruptionError):
                    call()
                file.seek(at)
                file.write(before)
                file.flush()
        assert db[b"00100"] == b"new"
