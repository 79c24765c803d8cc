"""What the tests of memtable, log and commit share: a log in memory, a Committer on it, a channel that notes calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from mmlsm.file import System, open_memory
from mmlsm.format.checksum import checksum
from mmlsm.limits import HEADER_PAGES
from mmlsm.locks import FairLock
from mmlsm.settings import Settings
from mmlsm.space.allocator import Allocator
from mmlsm.write.commit import Committer
from mmlsm.write.log import LogWriter
from mmlsm.write.log_record import encode_commit
from mmlsm.write.log_scan import LogScan, scan_log
from mmlsm.write.memtable import Memtable
from mmlsm.write.pins import Pins

EPOCH = 0x1122334455667788


class LogRig:
    """A memory file, its allocator, and a log in it."""

    def __init__(self, system: System | None = None, **settings: Any) -> None:
        self.settings = Settings(**{"debug": True, **settings})
        self.file = open_memory(**({} if system is None else {"system": system}))
        self.file.resize(HEADER_PAGES)
        self.allocator = Allocator(HEADER_PAGES, [], resize=self.file.resize, forget=self.file.forget)
        self.log = LogWriter(self.file, self.allocator, self.settings, EPOCH)
        self.start = self.log.position
        self.channel = self.file.channel()

    def append(self, seq: int, items: list[tuple[bytes, Any]]) -> int:
        payload = encode_commit(items)
        self.log.room(len(payload))
        return self.log.append(payload, seq, checksum(payload))

    def write(self) -> None:
        end = self.log.end
        for offset, data in self.log.take():
            self.channel.pwrite(offset, data)
        self.log.written(end)

    def scan(self, **options: Any) -> LogScan:
        return scan_log(self.file, self.start, **options)


class CommitRig(LogRig):
    """That, with a Committer. `calls` notes the I/O of both its channels, once `note` was called."""

    def __init__(self, system: System | None = None, **settings: Any) -> None:
        super().__init__(system, **settings)
        self.write_lock = FairLock()
        self.pins = Pins(debug=self.settings.debug)
        self.published: list[int] = []
        self.committer = Committer(
            self.file,
            self.log,
            self.settings,
            self.write_lock,
            self.pins,
            on_publish=self.published.append,
            on_full=self.seal,
        )
        self.tables: tuple[Memtable, ...] = (self.committer.memtable,)
        """Newest first; replaced as one, under the order lock."""
        self.calls: list[str] = []

    def note(self, before: Callable[[str], object] = lambda name: None) -> list[str]:
        """From now on I/O is noted in `calls`; `before` is called with each name first, and may wait or raise."""
        for name in ("_channel", "_sync_channel"):
            setattr(self.committer, name, NotingChannel(getattr(self.committer, name), self.calls, before))
        return self.calls

    def seal(self) -> None:
        self.committer.switch_memtable()
        self.tables = (self.committer.memtable, *self.tables)

    def at(self, key: bytes, seq: int) -> Any:
        """The value of `key` as of `seq`, if that is below no table's `trimmed`; None where it is absent."""
        for table in self.tables:
            entry = table.lookup(key, seq)
            if entry is not None:
                return entry.value
        return None

    def get(self, key: bytes) -> Any:
        """As a reader without a snapshot does (I3 of read/entries.py)."""
        while True:
            seq = self.pins.published
            for table in self.tables:
                entry = table.lookup(key, seq)
                if table.trimmed > seq:
                    break
                if entry is not None:
                    return entry.value
            else:
                return None


class NotingChannel:
    def __init__(self, channel: Any, calls: list[str], before: Callable[[str], object]) -> None:
        self._channel, self._calls, self._before = channel, calls, before

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._channel, name)

        def call(*arguments: Any) -> Any:
            self._before(name)
            self._calls.append(name)
            return method(*arguments)

        return call


def in_threads(*works: Callable[[], object], timeout: float = 60) -> None:
    """Run each in a thread of its own; what one raises is raised here; a thread that hangs is an error."""
    errors: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise AssertionError(errors[0] if len(errors) == 1 else errors) from errors[0]
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"


def eventually(condition: Callable[[], bool], patience: float = 60) -> bool:
    """Whether the other threads come so far in time."""
    deadline = time.monotonic() + patience
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True
