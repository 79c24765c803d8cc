"""A small database with a deep tree, whose fields a test changes behind right sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmlsm
from format_reader import PAGE
from mmlsm.settings import Settings
from rig.damage.anatomy import Anatomy, Field, Pointer
from rig.damage.seeds import TINY, Workshop


class Patient:
    """A small database with a deep bottom and a run above it; `mend` writes it with fields changed and sums right."""

    def __init__(self, path: Path) -> None:
        made = Workshop(path, 1, **TINY)
        made.run({b"key %03d" % i: bytes([i]) * 20 for i in range(60)})
        made.db.compact()
        made.run({b"key %03d" % i: b"new" for i in range(0, 20, 2)})
        self.pairs = dict(made.keep)
        made.db.close()
        self.path = path
        self.data = path.read_bytes()
        self.anatomy = Anatomy(self.data)

    def fields(self, name: str) -> list[Field]:
        return [field for field in self.anatomy.fields if field.name == name]

    def children(self, height: int) -> list[Pointer]:
        """References to nodes of that height."""
        found = {region.start: self.data[region.start + 3] for region in self.anatomy.regions
                 if region.kind in ("leaf", "parent")}  # fmt: skip
        return [one for one in self.anatomy.pointers if one.length is None and one.pages is not None
                and found[self.page_of(one) * PAGE] == height]  # fmt: skip

    def page_of(self, pointer: Pointer) -> int:
        return int.from_bytes(self.data[pointer.page : pointer.page + 4], "little")

    def set(self, field: Field, value: int) -> None:
        """Have the field hold this, behind sums that are right."""
        data = bytearray(self.data)
        for at, _ in field.places:
            data[at : at + field.width] = value.to_bytes(field.width, "little")
        self.anatomy.seal(data, [region for _, region in field.places])
        self.path.write_bytes(data)

    def point(self, pointer: Pointer, like: Pointer) -> None:
        """Have a reference to a node name what another names."""
        data = bytearray(self.data)
        for at, there, width in ((pointer.page, like.page, 4), (pointer.sum, like.sum, 8)):
            data[at : at + width] = data[there : there + width]
        self.anatomy.seal(data, [pointer.region])
        self.path.write_bytes(data)

    def flip(self, at: int) -> None:
        """Damage one byte."""
        data = bytearray(self.data)
        data[at] ^= 0x40
        self.path.write_bytes(data)

    def fold(self) -> None:
        """Have each parent name its first child in the place of every other."""
        data = bytearray(self.data)
        parents = [region for region in self.anatomy.regions if region.kind == "parent"]
        for region in sorted(parents, key=lambda one: -one.level):  # what is below first: its sum goes up
            below = [one for one in self.anatomy.pointers if one.region is region]
            for pointer in below[1:]:
                for at, there, width in ((pointer.page, below[0].page, 4), (pointer.sum, below[0].sum, 8)):
                    data[at : at + width] = data[there : there + width]
            self.anatomy.seal(data, [region])
        self.path.write_bytes(data)


def opened(patient: Patient, **settings: Any) -> mmlsm.Database:
    return mmlsm.Database(patient.path, Settings(**{"readonly": True, **settings}))
