"""Changes of free space that are cut off at any step: as before, or done; and no dearer with much that is reserved."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import pytest

from mmlsm.space.allocator import Allocator, Claim
from mmlsm.space.extents import Extent
from rig.lifetime.interrupts import points
from space_rig import Disk, make

State = tuple[list[Extent], list[Extent]]
CHANGES = {
    "reserve_between": lambda space, claim: space.reserve(4, claim),
    "reserve_beside": lambda space, claim: space.reserve_up_to(3, 2, claim),
    "reserve_behind": lambda space, claim: space.reserve(30, claim),
    "extend": lambda space, claim: space.extend(Extent(13, 2), 4, claim),
    "give_back_first": lambda space, claim: space.give_back((5, 1), claim),
    "give_back_middle": lambda space, claim: space.give_back((6, 1), claim),
    "give_back_all": lambda space, claim: space.give_back((13, 2), claim),
    "commit_last": lambda space, claim: space.commit((7, 2)),
    "commit_all": lambda space, claim: space.commit((5, 4)),
    "free": lambda space, claim: space.free((3, 2)),
    "truncate": lambda space, claim: space.truncate(),
}


def crowded() -> Allocator:
    """Pages 3 and 4 live, 5 to 8 reserved, 9 to 12 free, 13 and 14 reserved, 15 to 18 free, 19 live, 20 and on free."""
    disk = Disk()
    space = Allocator(disk.pages, [], resize=disk.resize, forget=disk.forget)  # debug locks are taken in many steps
    for extent in (Extent(3, 2), Extent(5, 4), Extent(9, 4), Extent(13, 2), Extent(15, 4), Extent(19, 1)):
        assert space.reserve(extent.count) == extent
    space.give_back((9, 4))
    space.give_back((15, 4))
    space.commit((3, 2))
    space.commit((19, 1))
    space.give_back(space.reserve(6, None))
    return space


def state_of(space: Allocator) -> State:
    space._check()
    return [*space.live_bits().extents()], space.reserved_extents()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_change_that_is_cut_off_at_any_step_is_not_there_or_done(name: str, error: type[BaseException]) -> None:
    change: Callable[[Allocator, Claim], object] = CHANGES[name]
    before, done = crowded(), crowded()
    change(done, Claim())
    spaces: list[tuple[Allocator, Claim]] = []

    def operation() -> None:
        change(*spaces[-1])

    spaces.append((crowded(), Claim()))
    for strike in points(operation, error=error):
        space, claim = spaces[-1]
        state = state_of(space)
        if state != state_of(done):
            assert state == state_of(before), f"at step {strike.at}: {strike.where}"
            assert claim.extent is None
        space.give_back(space.reserve(7))
        state_of(space)
        spaces.append((crowded(), Claim()))
    assert len(spaces) > 5


def test_a_change_takes_no_memory_for_all_that_is_reserved() -> None:
    space = make(Disk())
    extents = [space.reserve(1) for _ in range(8000)]
    for extent in extents[::2]:
        space.give_back(extent)
    tracemalloc.start()
    try:
        for extent in (*extents[1:40:2], *extents[4001:4040:2]):
            space.commit(extent)
        space.give_back(space.reserve(1))
        assert tracemalloc.get_traced_memory()[1] < 50_000
    finally:
        tracemalloc.stop()
