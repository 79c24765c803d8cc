"""How an open database ends, step by step: its commits, its handles, its threads, its file.

Any thread; one at a time, by the engine's lock.

I1. A close that is cut off, by Ctrl-C or whatever a signal's handler raises, closes all the same before that comes out:
    what it was doing is done again, but for the flush and the clean end, without which the log is replayed at the next
    open. Cut off once more in between, or without memory or stack for it, it goes on at the next call. What ends the
    handles and threads and gives up the locks is never left out.
I2. The file's locks go when neither thread runs any more.
I3. Once the interpreter is ending, nobody is waited for: its other threads stand still for ever wherever they were,
    maybe with a lock. What is left open then is as after kill -9, and what only the buffer had (`off`) is written.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Final

from mmlsm.errors import Error
from mmlsm.format.superblock import NO_LOG
from mmlsm.headroom import make_sure_of
from mmlsm.write.store import Edit

if TYPE_CHECKING:
    from mmlsm.engine import Engine

TRIES_MOST: Final = 100
"""So often a step that fails, for want of memory or by our own fault, is done again."""

ONCE, AGAIN, ALWAYS = range(3)
"""What becomes of a step that fails: it is left out; done again, and left out when that is hopeless; never left out."""

WANTS: Final = (MemoryError, RecursionError)
"""What another call may have enough of."""

FRAMES_LEAST: Final = 50
"""A close needs about twenty; where they are not there it does nothing, for what finalisers cannot close stays open."""


def close(engine: Engine) -> None:
    """Flush, join both threads, leave a clean file; raises the first thing that went wrong. Twice is no error."""
    engine.file.check_not_forked()
    if sys.is_finalizing():
        close_at_exit(engine)
        return
    make_sure_of(FRAMES_LEAST)
    steps, tries, count = STEPS, TRIES, COUNT
    with engine.close_lock:
        while engine.closing_step < count:
            try:
                while engine.closing_step < count:
                    steps[engine.closing_step](engine)
                    engine.closing_step += 1
            except BaseException as error:  # no call here before what was cut off is done again
                errors = engine.closing_errors = [*engine.closing_errors, error]
                how, enough = tries[engine.closing_step], len(errors) > TRIES_MOST
                hopeless = isinstance(error, Error) or (enough and isinstance(error, Exception))
                if how == ONCE or (how == AGAIN and hopeless and not isinstance(error, WANTS)):
                    engine.closing_step += 1
                elif enough:
                    break  # the next call goes on here
        errors, engine.closing_errors = engine.closing_errors, []
    if errors:
        raise errors[0]


def close_at_exit(engine: Engine) -> None:
    """Write what only the buffer has, if no thread stands in the way, and say that it is closed (I3).

    The file's locks go with the process: a thread may be in a system call still, and write.
    """
    engine.life.end(1)
    committer = engine.committer
    if committer is None or committer.written_end == committer.log.end:
        return
    locks = committer.order_lock, committer._flush_lock, engine.pins._lock, engine.file._guard
    if committer._leader is not None or any(lock.locked() for lock in locks):
        raise Error("the interpreter is ending, and a thread stands still in a commit: what was not synced may be lost")
    committer.sync()


def end_commits(engine: Engine) -> None:
    """Let no commit begin any more, tell those that wait to, and make those that did durable."""
    engine.write_lock.end()
    if (committer := engine.committer) is not None:
        with committer.order_lock:
            committer.closing = True
        committer.sync()


def flush(engine: Engine) -> None:
    """Make them segments, so that the log is empty."""
    if not engine.closing_errors:
        engine.flush()
    engine.closing_flushed = not engine.closing_errors


def end_handles(engine: Engine) -> None:
    """From here on each call says that the database is closed."""
    engine.life.end(1)


def end_threads(engine: Engine) -> None:
    """Have both threads end, and wait for them and for who writes a value."""
    if engine.store is not None:
        engine.writer.stop()
        engine.merger.stop()
        engine.writer.wait_until_over()
        engine.merger.wait_until_over()
        engine.values.gate.close()


def leave_clean(engine: Engine) -> None:
    """The last superblock: no log, the exact seq. Then everything that nobody pins is cut off."""
    store, committer = engine.store, engine.committer
    if store is None:
        return
    fault = engine.writer.fault or engine.merger.fault
    if isinstance(fault, Exception):
        raise fault
    if fault is not None:  # SystemExit, say, that somebody raised in the thread: it is not the caller's
        raise Error(f"a thread of the database has failed: {fault!r}") from fault
    if engine.closing_errors or not engine.closing_flushed or engine.file.failure is not None:
        return
    if committer is not None:
        if any(table.entry_count for table in (committer.memtable, *store.state.tables)):
            raise Error("commits are left that no flush has seen: they are in the log, open the database again")
        seq = committer.last_seq
        if not set(engine.reclaimer.pending()) <= set(store.manifest.retired):
            # What views of a life before may show is to be known to the next (R13).
            store.install(engine.channel, Edit(lambda levels, _: levels, log=NO_LOG, seq=seq, clean=True))
        with store.install_lock:
            store.write_superblock(engine.channel, clean=True, log=NO_LOG, seq=seq, seq_ceiling=seq)
    elif not store.superblock.clean and store.superblock.log.page == 0 and not engine.file.pins_elsewhere():
        with store.install_lock:
            store.write_superblock(engine.channel, clean=True, seq=engine.last_seq, seq_ceiling=engine.last_seq)
    engine.merger.drain(block=False)
    for extent in engine.allocator.reserved_extents():
        engine.allocator.give_back(extent)
    engine.merger.reclaim()
    for _ in range(2):
        space = engine.allocator.counts()
        if committer is None or space.free < max(8, space.total // 16) or engine.file.pins_elsewhere():
            break
        # The manifest may be what stands at the end: a copy goes to the earliest free pages.
        store.install(engine.channel, Edit(lambda levels, _: levels, log=NO_LOG, seq=committer.last_seq, clean=True))
        engine.merger.drain(block=False)
        engine.merger.reclaim()
    store.raise_struck()


def let_go(engine: Engine) -> None:
    """Everything but the file. No cycles are left: the maps go with the last handle, not with the next collection."""
    store = engine.store
    if store is None:
        engine.readonly_state = engine.readonly_state.ended()
        return
    for thread in (engine.writer, engine.merger):
        thread.join()
    if engine.committer is not None:
        engine.committer.close()
        engine.committer.on_full = engine.committer.on_publish = None
    for channel in (engine.channel, engine.poison_channel):
        if channel is not None:
            with contextlib.suppress(Error):
                channel.close()
    store.on_state.clear()
    store.on_install.clear()
    store.segments.clear()
    store.versions.clear()
    store.opener = engine.writing = None
    store.end()


def close_file(engine: Engine) -> None:
    """The locks, and the descriptor."""
    engine.file.close()


STEPS: Final = (end_commits, flush, end_handles, end_threads, leave_clean, let_go, close_file)
TRIES: Final = (AGAIN, ONCE, ALWAYS, ALWAYS, ONCE, AGAIN, ALWAYS)
COUNT: Final = len(STEPS)
