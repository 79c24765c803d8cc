"""What `open()` is asked for: the wrong type is a TypeError, the wrong value a ValueError, and no file is made."""

from __future__ import annotations

import enum
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm import limits
from mmlsm.settings import Settings

WHOLE = ("memtable_bytes", "leaf_bytes")
SWITCHES = ("readonly", "create", "auto_merge")
CHOICES = ("durability", "verify", "allocation")


class Whole:
    """An integer that is no int, as NumPy's are."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class Half:
    """A number that is no float, as NumPy's float32 is."""

    def __float__(self) -> float:
        return 0.5


class Mode(enum.StrEnum):
    FULL = "full"
    ALWAYS = "always"
    BEST = "best"


def shown(value: object) -> str:
    return repr(value)[:20] if isinstance(value, str | int | float) else type(value).__name__


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *((name, value, "whole number") for name in WHOLE
          for value in (8192.0, float("nan"), float("inf"), True, "8192", b"8192", None, [8192])),
        *((name, value, "True or False") for name in SWITCHES for value in (1, 0, None, "no", 1.0, [])),
        *((name, value, "choose one of '") for name in CHOICES for value in (None, b"full", 0, True, [], Whole(1))),
        *(("group_interval", value, "number of seconds") for value in (True, "1", None, b"1", [1], 1j)),
    ],
    ids=shown,
)  # fmt: skip
def test_a_setting_of_the_wrong_type(path: Path, name: str, value: Any, wanted: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}=.*{wanted}"):
        mmlsm.open(path, **{name: value})
    assert not path.exists()


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        *(("memtable_bytes", value, f"from 4096 to {1 << 40}$") for value in (0, -1, 4095, (1 << 40) + 1, 2**70)),
        *(("leaf_bytes", value, "multiple of 4096 from 4096 to 32768$") for value in (0, -4096, 4097, 36864, 2**70)),
        *(("group_interval", value, "more than 0 seconds") for value in (0, -1.0, float("nan"))),
        ("group_interval", 10**400, "too large"),
        *((name, value, "choose one of '") for name in CHOICES for value in ("", "FULL", "sometimes")),
    ],
    ids=shown,
)
def test_a_setting_of_the_wrong_value(path: Path, name: str, value: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}=.*{wanted}"):
        mmlsm.open(path, **{name: value})
    assert not path.exists()


def test_what_stands_for_a_number_or_a_word_will_do(path: Path) -> None:
    for interval in (1, Half(), Fraction(1, 2)):
        settings: dict[str, Any] = {
            "memtable_bytes": Whole(1 << 16), "leaf_bytes": Whole(4096), "group_interval": interval,
            "durability": Mode.FULL, "verify": Mode.ALWAYS, "allocation": Mode.BEST,
        }  # fmt: skip
        with mmlsm.open(path, **settings) as db:
            db[b"a"] = bytes(5000)
            db.compact()
            assert db[b"a"] == bytes(5000)
            told = db._engine.settings
            assert (told.memtable_bytes, told.leaf_bytes, type(told.leaf_bytes)) == (1 << 16, 4096, int)
            assert type(told.group_interval) is float
            assert {type(one) for one in (told.durability, told.verify, told.allocation)} == {str}
            db.put_many({b"b": b"1"})
            with db.batch(durability=Mode.FULL) as batch:  # type: ignore[arg-type]
                batch.put(b"c", b"1")


def test_the_bounds_themselves_will_do(path: Path) -> None:
    for memtable in (limits.MEMTABLE_BYTES_MIN, limits.MEMTABLE_BYTES_MAX):
        for leaf in (limits.LEAF_BYTES_MIN, limits.LEAF_BYTES_MAX):
            with mmlsm.open(path, memtable_bytes=memtable, leaf_bytes=leaf) as db:
                db.put_many({b"%d" % i: bytes(300) for i in range(50)})
                db.compact()
                assert db.stats().flush_error is None
                assert len(db) == 50


@pytest.mark.parametrize("name", ["debug", "reuse", "fan_out", "slice_bytes", "log_extent_bytes", "leaf_fullness_min"])
def test_the_knobs_of_tests_are_held_to_their_types_too(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name}="):
        Settings(**{name: "1"})  # type: ignore[arg-type]


@pytest.mark.parametrize("durability", [0, [], b"full", True])
def test_the_durability_of_one_commit_is_held_to_its_type(open_db: Any, durability: Any) -> None:
    db = open_db()
    with pytest.raises(TypeError, match=r"^durability=.*choose one of 'full', 'group', 'off'"):
        db.batch(durability=durability)
    transaction = db.begin(write=True)
    transaction.put(b"a", b"1")
    with pytest.raises(TypeError, match=r"^durability=.*choose one of"):
        transaction.commit(durability=durability)
    with db.begin(write=True) as transaction, pytest.raises(ValueError, match=r"^durability=''"):
        transaction.commit(durability="")
    db[b"b"] = b"the lock is free"
    assert list(db) == [b"b"]
