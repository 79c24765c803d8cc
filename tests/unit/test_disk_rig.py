"""The rig of crash images itself: what it enumerates of hand-made logs, and that it finds bugs that are planted."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mmlsm
from mmlsm.channel import Channel
from mmlsm.limits import HEADER_PAGES, PAGE_BYTES
from mmlsm.settings import Settings
from mmlsm.write.commit import Committer
from mmlsm.write.flush import flush
from mmlsm.write.store import Store
from rig.crashes import crash
from rig.crashes.images import NO_FILE, Content, Disk, drawn, enumerated, subset, subsets_of, torn
from rig.crashes.recorded import (
    ALLOCATE,
    BEGIN,
    DURABLE_WRITE,
    END,
    LINK,
    PHASES,
    RESIZE,
    SYNC,
    SYNC_DIRECTORY,
    WRITE,
    Call,
    Log,
    RecordedSystem,
    Tick,
    phase_now,
)

pytestmark = [pytest.mark.unproved, pytest.mark.rig]


# ---- hand-made logs


def write(offset: int, data: bytes, kind: str = WRITE) -> Call:
    return Call(kind, "", offset, data)


def begun(*calls: Call) -> list[Tick]:
    return [Tick(BEGIN, call) for call in calls]


def ended(*calls: Call) -> list[Tick]:
    return [Tick(END, call) for call in calls]


def done(*calls: Call) -> list[Tick]:
    return [tick for call in calls for tick in (*begun(call), *ended(call))]


def disk(base: Content, *ticks: Tick) -> Disk:
    made = Disk(base)
    for tick in ticks:
        made.advance(tick)
    return made


def images(base: bytes | None, *ticks: Tick) -> set[bytes | None]:
    return {content if content is None else bytes(content) for content in enumerated(disk(base, *ticks))}


def sync() -> Call:
    return Call(SYNC, "")


def resize(size: int) -> Call:
    return Call(RESIZE, "", size=size)


def test_writes_without_a_sync_come_through_in_any_combination() -> None:
    a, b = write(0, b"a"), write(2, b"b")
    assert images(b"....", *done(a, b)) == {b"....", b"a...", b"..b.", b"a.b."}
    assert images(b"....", *done(a), *begun(b)) == {b"....", b"a...", b"..b.", b"a.b."}
    assert images(b"....", *begun(a)) == {b"....", b"a..."}


def test_a_sync_covers_what_had_ended_when_it_began_and_only_once_it_has_ended() -> None:
    a, b, c = write(0, b"a"), write(1, b"b"), write(2, b"c")
    one = sync()
    ticks = [*done(a), *begun(b, one), *ended(b), *done(c)]
    assert len(images(b"...", *ticks)) == 8
    assert images(b"...", *ticks, *ended(one)) == {b"a..", b"ab.", b"a.c", b"abc"}


def test_a_durable_write_is_durable_alone_over_all_that_came_before() -> None:
    a, b = write(0, b"aa"), write(1, b"bb", DURABLE_WRITE)
    assert images(b"....", *done(a, b)) == {b".bb.", b"abb."}
    assert images(b"....", *done(a), *begun(b)) == {b"....", b"aa..", b".bb.", b"abb."}


def test_the_size_is_an_event_of_its_own() -> None:
    longer, a, b = resize(4), write(0, b"a"), write(3, b"b")
    assert images(b"..", *done(longer, a)) == {b"..", b"..\0\0", b"a.", b"a.\0\0"}
    assert images(b"..", *done(longer, b)) == {b"..", b"..\0\0", b"..\0b"}
    assert images(b"..", *done(Call(ALLOCATE, "", 1, size=3))) == {b"..", b"..\0"}
    assert images(b"..", *done(Call(ALLOCATE, "", 0, size=2))) == {b".."}
    assert images(b"....", *done(resize(1), resize(3))) == {b"....", b".", b"...", b".\0\0"}
    assert images(b"....", *done(a, resize(1), resize(3), sync())) == {b"a\0\0"}
    assert images(b"..", *done(write(2, b"c"))) == {b"..", b"..\0", b"..c"}


def test_a_durable_write_takes_the_size_with_it_that_it_needs() -> None:
    b = write(3, b"b", DURABLE_WRITE)
    assert images(b"..", *done(resize(5), b)) == {b"..\0b\0"}
    assert images(b"....", *done(resize(2), resize(6), b)) == {b"..\0b\0\0"}
    assert images(b".....", *done(resize(4), b)) == {b"...b.", b"...b"}
    assert images(b"...", *done(b)) == {b"...b"}


def test_what_was_written_before_the_file_was_cut_does_not_come_back() -> None:
    a = write(2, b"a")
    assert images(b"....", *done(a, resize(1), resize(4), write(3, b"d", DURABLE_WRITE))) == {b".\0\0d"}


def test_the_name_is_there_once_its_directory_was_synced_after_it() -> None:
    link, directory = Call(LINK, ""), Call(SYNC_DIRECTORY, "")
    new = [*done(write(0, b"a")), *done(sync())]
    assert images(None, *new) == {NO_FILE}
    assert images(None, *new, *begun(link)) == {NO_FILE, b"a"}
    assert images(None, *new, *begun(link, directory), *ended(link, directory)) == {NO_FILE, b"a"}
    assert images(None, *new, *done(link, directory)) == {b"a"}
    assert images(None, *new, *done(link), *begun(directory)) == {NO_FILE, b"a"}


def test_a_write_is_torn_at_multiples_of_a_sector() -> None:
    assert [(p.offset, len(p.data)) for p in torn(500, bytes(1036), 512)] == [(500, 12), (512, 512), (1024, 512)]
    assert [(p.offset, len(p.data)) for p in torn(4090, bytes(10), 4096)] == [(4090, 6), (4096, 4)]
    assert [(p.offset, len(p.data)) for p in torn(3, bytes(9000), 0)] == [(3, 9000)]
    assert b"".join(p.data for p in torn(7, bytes(range(250)) * 20, 512)) == bytes(range(250)) * 20
    found = images(bytes(1024), *done(write(0, b"x" * 1024)))
    assert found == {half + other for half in (bytes(512), b"x" * 512) for other in (bytes(512), b"x" * 512)}


def test_few_parts_have_all_subsets_and_many_none_all_each_alone_and_each_missing() -> None:
    assert [subset(2, i) for i in range(subsets_of(2))] == [[], [0], [1], [0, 1]]
    assert len({tuple(subset(6, i)) for i in range(subsets_of(6))}) == 64
    many = [subset(9, i) for i in range(subsets_of(9))]
    assert sorted(map(len, many)) == [0, *[1] * 9, *[8] * 9, 9]
    assert len(set(map(tuple, many))) == 20


def test_garbage_is_only_where_a_write_was_not_durable(seed: int) -> None:
    rng = random.Random(seed)
    base = rng.randbytes(5000)
    durable, pending = write(100, b"d" * 50, DURABLE_WRITE), write(120, b"p" * 1000)
    one = disk(base, *done(durable), *done(pending))
    seen = {bytes(image.content or b"") for image in drawn(one, rng, 300)}
    for content in seen:
        assert content[:120] == base[:100] + b"d" * 20
        assert content[1120:] == base[1120:]
    strange = [c for c in seen if set(c[150:600]) - set(base[150:600]) - {ord("p")}]
    assert strange, "no image with garbage"


def test_a_recorded_system_notes_what_changes_the_file_in_the_order_of_the_effects(path: Path) -> None:
    log = Log()
    with mmlsm.Database(path, Settings(durability="full"), RecordedSystem(log)) as db:
        db[b"a"] = b"1"
    assert bytes(images_of(log)) == path.read_bytes()
    kinds = {tick.call.kind for tick in log.ticks if tick.call is not None}
    assert kinds >= {WRITE, DURABLE_WRITE, SYNC, LINK, SYNC_DIRECTORY, RESIZE, ALLOCATE}
    phases = {tick.call.phase for tick in log.ticks if tick.call is not None}
    assert phases >= {"creation", "opening", "first commit", "commit", "flush", "close"}, phases


def test_each_phase_is_told_by_a_function_that_there_is() -> None:
    sources = "".join(file.read_text() for file in Path(mmlsm.__file__).parent.rglob("*.py"))
    assert not [name for name in PHASES if f"def {name}(" not in sources]


def images_of(log: Log) -> bytearray:
    """The file as it is when all has come through."""
    one = disk(log.base, *log.ticks)
    return one.image(one.parts(0))


# ---- planted bugs: each is found by a short run, and nothing is found without


def in_slot(slot: int) -> Callable[[int], bool]:
    return lambda offset: offset == slot * PAGE_BYTES


def in_log(offset: int) -> bool:
    return offset >= HEADER_PAGES * PAGE_BYTES


def without_durability(patch: pytest.MonkeyPatch, where: Callable[[int], bool]) -> None:
    """Durable writes there are plain ones."""
    plain = Channel.pwrite_durably

    def pwrite_durably(self: Channel, offset: int, data: Any) -> None:
        (Channel.pwrite if where(offset) else plain)(self, offset, data)

    patch.setattr(Channel, "pwrite_durably", pwrite_durably)


def first_slot_unsynced(patch: pytest.MonkeyPatch) -> None:
    without_durability(patch, in_slot(0))


def second_slot_unsynced(patch: pytest.MonkeyPatch) -> None:
    without_durability(patch, in_slot(1))


def log_unsynced(patch: pytest.MonkeyPatch) -> None:
    without_durability(patch, in_log)


def installs_unsynced(patch: pytest.MonkeyPatch) -> None:
    """Neither what a flush or merge wrote nor the manifest is synced before the superblock names it."""
    plain = Store._switch
    patch.setattr("mmlsm.write.flush.sync_early", lambda channel, written: None)
    patch.setattr("mmlsm.write.merge_jobs.sync_early", lambda channel, written: None)
    write = Store._write_manifest

    def write_manifest(self: Store, channel: Any, *arguments: Any) -> Any:
        draft = write(self, channel, *arguments)
        channel.sync = lambda: None
        return draft

    def switch(self: Store, channel: Any, *arguments: Any) -> None:
        del channel.sync
        plain(self, channel, *arguments)

    patch.setattr(Store, "_write_manifest", write_manifest)
    patch.setattr(Store, "_switch", switch)


def superblock_before_the_manifest(patch: pytest.MonkeyPatch) -> None:
    """All is synced, but too late."""
    installs_unsynced(patch)
    unsynced = Store._switch

    def switch(self: Store, channel: Any, *arguments: Any) -> None:
        unsynced(self, channel, *arguments)
        channel.sync()

    patch.setattr(Store, "_switch", switch)


def sync_unsynced(patch: pytest.MonkeyPatch) -> None:
    """`sync()` answers without one."""
    patch.setattr(Committer, "sync", lambda self: (self.write_out(), self.written_seq)[1])


def references_unsynced(patch: pytest.MonkeyPatch) -> None:
    """A durable record may name an extent that is not durable, and stand behind records that are not."""
    plain = Committer.__init__

    def begin(self: Committer, *arguments: Any, **options: Any) -> None:
        plain(self, *arguments, **options)
        self._channel.sync = lambda: None  # type: ignore[method-assign]

    patch.setattr(Committer, "__init__", begin)


def creation_unsynced(patch: pytest.MonkeyPatch) -> None:
    plain = RecordedSystem.sync
    patch.setattr(RecordedSystem, "sync", lambda self, fd: phase_now() == "creation" or plain(self, fd))


def name_unsynced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("mmlsm.file.directory_sync", lambda path, system: None)


def growth_unsynced(patch: pytest.MonkeyPatch) -> None:
    """What was synced leaves the file's size out."""
    plain = Disk._make_durable
    patch.setattr(Disk, "_make_durable", lambda self, effects: plain(self, [one for one in effects if one.parts]))


def log_trusted_without_its_sum(patch: pytest.MonkeyPatch) -> None:
    class Any_(int):
        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = int.__hash__

    patch.setattr("mmlsm.write.log_scan.checksum", lambda payload: Any_())


def reused_before_the_superblock(patch: pytest.MonkeyPatch) -> None:
    """What an install retires is written to one install too early."""
    plain = Store._switch

    def switch(self: Store, channel: Any, edit: Any, *arguments: Any) -> None:
        for extents, _ in edit.retire:
            for first, count in extents:
                channel.pwrite(first * PAGE_BYTES, bytes(count * PAGE_BYTES))
        plain(self, channel, edit, *arguments)

    patch.setattr(Store, "_switch", switch)


def cut_before_the_superblock(patch: pytest.MonkeyPatch) -> None:
    plain = Store._switch

    def switch(self: Store, channel: Any, edit: Any, draft: Any, *arguments: Any) -> None:
        total = self.allocator.total
        used = self.allocator.live_bits(extra_live=self.allocator.reserved_extents())
        for extent in [*draft.outdated, *(extent for extents, _ in edit.retire for extent in extents)]:
            used.clear(*extent)
        self.file.resize(max(first + count for first, count in used.extents()))
        self.file.resize(total)
        plain(self, channel, edit, draft, *arguments)

    patch.setattr(Store, "_switch", switch)


def extents_trusted(patch: pytest.MonkeyPatch) -> None:
    """Recovery takes a record without a look at the extents that it names."""
    patch.setattr("mmlsm.write.recovery.is_sound", lambda file, reference: True)


def log_let_go_before_its_flush(patch: pytest.MonkeyPatch) -> None:
    """Recovery names no log, and only then makes a segment of its commits."""

    def early(store: Store, channel: Any, *arguments: Any, **options: Any) -> None:
        with store.install_lock:
            store.write_superblock(channel, log=options["log"])
        flush(store, channel, *arguments, **options)

    patch.setattr("mmlsm.engine.flush", early)


def no_seq_ceiling(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("mmlsm.limits.SEQ_CEILING_STEP", 0)


PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], list[str]]] = {
    plant.__name__: (plant, workloads)
    for plant, workloads in [
        (first_slot_unsynced, ["creation"]),
        (second_slot_unsynced, ["creation"]),
        (log_unsynced, ["full_commits"]),
        (sync_unsynced, ["off_commits"]),
        (references_unsynced, ["overflow"]),
        (installs_unsynced, ["flushes"]),
        (superblock_before_the_manifest, ["flushes"]),
        (creation_unsynced, ["creation"]),
        (name_unsynced, ["creation"]),
        (growth_unsynced, ["flushes"]),
        (log_trusted_without_its_sum, ["mixed_commits"]),
        (reused_before_the_superblock, ["merges"]),
        (cut_before_the_superblock, ["compaction"]),
        (no_seq_ceiling, ["off_commits"]),
        (extents_trusted, ["overflow"]),
        (log_let_go_before_its_flush, ["group_commits"]),
    ]
}


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_bug_is_found(plant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, workloads = PLANTED[plant]
    make(monkeypatch)
    for seed in range(20):
        if crash.run(seed, 400, workloads, findings_most=1).findings:
            return
    raise AssertionError(f"{plant} was not found")


def test_without_a_planted_bug_nothing_is_found() -> None:
    """In a few of the workloads; tests/stress/test_crash_images.py has them all."""
    workloads = {"creation", "flushes", "mixed_commits"}
    result = crash.run(0, 150, workloads)
    assert not result.findings, result.findings
    assert set(result.by("workload")) == workloads
    assert set(result.by("depth")) == {"0", "1", "2"}
