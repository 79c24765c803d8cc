"""Committer: the way of a commit from its items to its readers (R7), in three durabilities mixed as they come.

A commit is *ordered* when it is in the log buffer and the memtable, under the order lock; the write lock then passes
on. It is *published* when it and all before it have reached their point: `full` synced, `group` with the operating
system, `off` in the buffer. The first thread that must wait leads: it writes all that is buffered, with one sync if
any of it asks for one, publishes, and wakes the others. Any thread; the leader holds no lock during I/O.

I1. Commits are published in the order of their seqs, and `commit` returns after its own is.
I2. All log bytes before `written_end` are with the operating system, all before `synced_end` are durable; so is what
    records before it name (R2): references are synced before a record that names them is written durably, and what
    was written without sync is synced by a sync of the whole file, never skipped by a durable write behind it.
I3. There is at most one leader. Who waits holds a gate that is opened when its commit is settled, or when there is no
    leader: then it looks again, and may lead itself. Being woken is a hint and promises nothing.
I4. Ctrl-C at any step, or whatever a signal's handler raises: a commit is wholly ordered or not at all, what a leader
    took is not forgotten but taken again, and the leadership does not stay with a thread that left.
I5. A failed write or sync is final: what is not published is never published, each of its commits raises StorageError,
    and each later one ReadOnlyError.
"""

from __future__ import annotations

import errno
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import chain
from typing import TYPE_CHECKING, Final

from mmlsm.errors import ClosedError, Error, ReadOnlyError, StorageError
from mmlsm.format.checksum import checksum
from mmlsm.headroom import FRAMES_LEAST, TRIES_MOST, Headroom, make_sure_of
from mmlsm.locks import FLUSH, ORDER, FairLock, Mutex, ordered_lock
from mmlsm.settings import Durability, Settings
from mmlsm.write.log_record import ENTRY_BYTES, HEADER_BYTES, encode_commit
from mmlsm.write.memtable import Memtable
from mmlsm.write.ticket import ASKING, FAILED, FULL, MODES, OFF, SETTLED, WAITING, Ticket, wake

if TYPE_CHECKING:
    from mmlsm.file import File
    from mmlsm.write.log import LogWriter
    from mmlsm.write.log_record import Value
    from mmlsm.write.pins import Pins

BUFFER_BYTES: Final = 1 << 20
"""An `off` commit that finds this much unwritten writes it."""
LOG_BYTES_LEAST: Final = 1 << 20
"""A memtable is not sealed for its log's bytes before there are this many."""
LOG_RATIO: Final = 4
"""A memtable is sealed when its log has this many times the bytes of a log of its newest versions alone."""
RECORD_BYTES: Final = HEADER_BYTES + ENTRY_BYTES + 4

LOOK_S: Final = 1.0
"""Who waits looks at least so often whether somebody leads: one who left for want of memory may have told nobody."""

_ident = threading.get_ident


class Committer:
    """Orders, logs and publishes commits. `last_seq` is the last ordered one, `pins.published` the last visible.

    `on_full()` is called under the order lock when the memtable has reached its bound, possibly again after Ctrl-C;
    it is expected to `switch_memtable`. `on_publish(seq)` is called with each publication (`Pins.publish`).
    """

    def __init__(
        self,
        file: File,
        log: LogWriter,
        settings: Settings,
        write_lock: FairLock,
        pins: Pins,
        *,
        last_seq: int = 0,
        on_full: Callable[[], object] | None = None,
        on_publish: Callable[[int], object] | None = None,
        order_lock: Mutex | None = None,
    ) -> None:
        # Constant.
        self.file = file
        self.log = log
        self.settings = settings
        self.write_lock = write_lock
        self.pins = pins
        self.on_full = on_full
        self.on_publish = on_publish
        self.order_lock = order_lock or ordered_lock("order", ORDER, settings.debug)
        self._flush_lock = ordered_lock("flush", FLUSH, settings.debug)
        self._log_bytes_least = min(LOG_BYTES_LEAST, settings.memtable_bytes)
        # The leader's, and whose turn it is under the flush lock.
        self._channel = file.channel()
        self._sync_channel = file.channel()
        # Guarded by the order lock.
        self.memtable = Memtable(log.position)
        self._memtable_start = log.end
        self._references_seen = 0
        self.last_seq = last_seq
        self.written_end = self.synced_end = log.end
        self.written_seq = self.synced_seq = last_seq
        self.failure: BaseException | None = None
        self.closing = False
        """Set at close: nothing more is ordered."""
        self._full_end = 0
        """End of the last `full` commit: beyond `synced_end`, the next write is to be durable."""
        self._references_end = 0
        """End of the last commit that names overflow values."""
        self._pending: deque[Ticket] = deque()
        """Ordered and not published, by seq."""
        self._asking: list[Ticket] = []
        self._leader: Ticket | None = None
        # Counters, of the leader alone.
        self.groups = 0
        self.syncs = 0
        self.bytes_written = 0

    # -- committing

    def commit(
        self, items: dict[bytes, Value] | list[tuple[bytes, Value]], durability: Durability, *, locked: bool = False
    ) -> int:
        """Commit these pairs as one; its seq, once readers see it.

        Takes the write lock, or has it from the caller (`locked`); in any case, error or not, it is given up. An empty
        commit is none: the last published seq. A dict is empty as soon as it is ordered, whatever fails then.
        StorageError: with nothing done when there is no space for the log; with the commit's fate unknown until reopen
        when it could not be written or synced, and ReadOnlyError ever after.
        """
        mode = MODES[durability]
        lock, me = self.write_lock, _ident()
        if locked != (lock.owner == me):
            assert not locked, "a commit says that its thread has the write lock, and it has not"
            raise RuntimeError("this thread has a write transaction open: write through it")
        interrupted: BaseException | None = None
        given: dict[bytes, Value] | None = None
        try:
            if isinstance(items, dict):
                given, items = items, list(zip(items, items.values(), strict=True))  # items() crashes without memory
            if not items:
                return self.pins.published
            payload = encode_commit(items)
            payload_sum = checksum(payload)
            if not locked:
                lock.acquire()
            ticket = self._order(items, payload, payload_sum, mode, given)
        finally:
            tries = 0
            while lock.owner == me and tries < TRIES_MOST:
                try:
                    with Headroom(interrupted):
                        lock.release()
                except BaseException as error:  # at the very last, who has it from before lets it go (`locked`)
                    interrupted = error
                    tries += isinstance(error, RecursionError)
        if interrupted is not None:
            raise interrupted
        if ticket.state != SETTLED:  # it may have failed already, by another leader
            self._await(ticket)
        elif ticket.end - self.written_end >= BUFFER_BYTES:
            self._write_behind(ticket)
        return ticket.seq

    def _order(
        self,
        items: list[tuple[bytes, Value]],
        payload: bytes,
        payload_sum: int,
        mode: int,
        given: dict[bytes, Value] | None,
    ) -> Ticket:
        """Give the commit its place, and empty `given`: the one step that is wholly done or not at all (I4)."""
        with self.order_lock:
            if self.failure is not None or self.file.failure is not None:
                raise self.refusal()
            if self.closing:
                raise ClosedError("the database is being closed: open it again")
            self.log.room(len(payload))
            seen = self.pins.view()
            ticket = Ticket(self.last_seq + 1, mode)
            try:
                self._enter(ticket, items, payload, payload_sum, seen, given)
            except BaseException as first:
                tries = 0
                while True:
                    try:
                        with Headroom(first):
                            self._enter(ticket, items, payload, payload_sum, seen, given)
                    except Exception as error:
                        tries += 1
                        if tries > TRIES_MOST:
                            # Half in the log, half in memory, and it cannot be mended: nothing after it can be right.
                            self.failure = error
                            self._settle()
                            raise
                        continue
                    except BaseException:
                        continue
                    break
                if not isinstance(first, MemoryError):
                    raise
            return ticket

    def _enter(
        self,
        ticket: Ticket,
        items: Iterable[tuple[bytes, Value]],
        payload: bytes,
        payload_sum: int,
        seen: tuple[int, tuple[int, ...]],
        given: dict[bytes, Value] | None,
    ) -> None:
        """Log, memtable, queue. Each step may be done twice; `last_seq` says that all are. REQUIRES the order lock."""
        seq, table = ticket.seq, self.memtable
        if self.last_seq < seq:
            ticket.end = end = self.log.append(payload, seq, payload_sum)
            table.apply(items, seq, *seen)
            table.log_bytes = end - self._memtable_start
            if self._references_seen != len(table.references):
                self._references_end = end
                self._references_seen = len(table.references)
            if ticket.mode == FULL:
                self._full_end = end
            if not self._pending and ticket.mode == OFF:
                self._publish(seq)
                ticket.state = SETTLED
            elif not self._pending or self._pending[-1] is not ticket:
                self._pending.append(ticket)
            self.last_seq = seq
        if given is not None:
            given.clear()
        if self.on_full is not None and self._is_full(self.memtable):
            self.on_full()

    def _is_full(self, table: Memtable) -> bool:
        """Whether memory or log have reached their bound, which shrinks with the live bytes."""
        bound = self.settings.memtable_bytes
        if table.data_bytes >= bound:
            return True
        log_bytes: int = table.log_bytes
        if log_bytes < self._log_bytes_least:
            return False
        return log_bytes >= min(bound, LOG_RATIO * int(table.live_bytes + RECORD_BYTES * table.entry_count))

    def switch_memtable(self) -> Memtable:
        """Seal the memtable and go on with a new one; the sealed one. REQUIRES the order lock.

        It may be flushed once `pins.published >= its last_seq`; until then it holds commits that may still fail.
        """
        table = self.memtable
        successor = Memtable(self.log.position)
        self._references_seen = 0
        self._memtable_start = self.log.end
        self.memtable = successor
        table.sealed = True
        return table

    # -- waiting and leading

    def _await(self, ticket: Ticket) -> None:
        """Until the ticket is settled, leading when nobody does (I3). StorageError if it failed."""
        self._or_leave(ticket, self._wait_or_lead)
        if ticket.state == FAILED:
            raise self._unknown_fate() from self.failure

    def _wait_or_lead(self, ticket: Ticket) -> None:
        while ticket.state == WAITING:
            with self.order_lock:
                if ticket.state != WAITING:
                    break
                gate = None
                if self._leader is None:
                    self._leader = ticket
                else:
                    ticket.gate = gate = threading.Lock()
                    gate.acquire()
            if gate is None:
                self._lead()
            else:
                gate.acquire(timeout=LOOK_S)

    def _write_behind(self, ticket: Ticket) -> None:
        """Write the buffer on behalf of nobody, if nobody does. A failure is the next commit's to tell."""
        self._or_leave(ticket, self._lead_unless_led)

    def _lead_unless_led(self, ticket: Ticket) -> None:
        with self.order_lock:
            if self._leader is not None:
                return
            self._leader = ticket
        self._lead()

    def _or_leave(self, ticket: Ticket, step: Callable[[Ticket], object]) -> None:
        """Take the step. Where it is cut off, the ticket's thread goes, and the leadership does not go with it (I4)."""
        try:
            step(ticket)
        except BaseException:
            if self._leader is ticket:
                self._leader = None  # at once, for the rest may fail for want of memory
            struck, tries = None, 0
            while tries < TRIES_MOST:
                try:
                    with Headroom(struck):
                        self._leave(ticket)
                    break
                except BaseException as error:  # at the very last, those who wait look by themselves (LOOK_S)
                    struck = error
                    tries += isinstance(error, RecursionError)
            raise

    def _leave(self, ticket: Ticket) -> None:
        """The ticket's thread goes without waiting; its commit stays in the queue (I4). May be done twice."""
        with self.order_lock:
            ticket.gate = None
            if self._leader is ticket:
                self._leader = None
            self._settle()

    def _lead(self) -> None:
        """One round of I/O for all that is ordered. REQUIRES the leadership, which it gives up."""
        with self.order_lock:
            ranges = self.log.take()
            end, seq = self.log.end, self.last_seq
            durable = self._full_end > self.synced_end
            sync_first = durable and self._references_end > self.synced_end
            sync_after = durable and not sync_first and self.written_end > self.synced_end
        failure = None
        try:
            if sync_first:
                self._channel.sync()
            write = self._channel.pwrite_durably if durable and not sync_after else self._channel.pwrite
            for offset, data in ranges:
                write(offset, data)
            if sync_after:
                self._channel.sync()
        except (Error, MemoryError) as error:  # else it is none of the system's: what was taken is taken again (I4)
            failure = error
        with self.order_lock:
            if failure is None:
                self.log.written(end)
                if end > self.written_end:
                    self.groups += 1
                    self.bytes_written += end - self.written_end
                    self.written_end, self.written_seq = end, seq
                if durable:
                    self.syncs += 1
                    self._synced(end, seq)
            elif self.failure is None:
                self.failure = failure
            self._leader = None
            self._settle()

    def write_out(self) -> int:
        """Hand all that is ordered to the operating system, and so publish all but `full` commits; the log's end then.

        A flush comes after it: extents of the log are let go only when no leader can write to them any more.
        """
        make_sure_of(FRAMES_LEAST)
        with self.order_lock:
            if self.failure is not None or self.file.failure is not None:
                raise self.refusal()
            ticket = Ticket(self.last_seq, ASKING)
            ticket.end = self.log.end
            if self.written_end >= ticket.end:
                return ticket.end
            self._asking.append(ticket)
            self._settle()
        self._await(ticket)
        return ticket.end

    def sync(self) -> int:
        """Make everything committed so far durable; the last durable seq. Holds up no commit. Errors as `commit`."""
        wanted = self.write_out()
        with self._flush_lock:
            with self.order_lock:
                end, seq = self.written_end, self.written_seq
                if self.synced_end >= wanted:
                    return self.synced_seq
            try:
                self._sync_channel.sync()
            except (Error, MemoryError) as error:
                with self.order_lock:
                    if self.failure is None:
                        self.failure = error
                    self._settle()
                raise self._unknown_fate() from error
            with self.order_lock:
                self.syncs += 1
                self._synced(end, seq)
                self._settle()
                return self.synced_seq

    def close(self) -> None:
        """Close the channels. REQUIRES that nobody commits any more; call `sync` before."""
        self._channel.close()
        self._sync_channel.close()

    # -- inside: all REQUIRE the order lock

    def _synced(self, end: int, seq: int) -> None:
        if end > self.synced_end:
            self.synced_end, self.synced_seq = end, seq
            self.log.synced(seq)

    def _publish(self, seq: int) -> None:
        self.pins.publish(seq, self.on_publish)

    def _settle(self) -> None:
        """Publish what has reached its point, or fail everything (I5); wake whom that concerns. May be done twice."""
        pending, failed = self._pending, self.failure is not None
        while pending:
            ticket = pending[0]
            if failed:
                ticket.state = FAILED
            elif ticket.mode == OFF or ticket.end <= (self.synced_end if ticket.mode == FULL else self.written_end):
                self._publish(ticket.seq)
                ticket.state = SETTLED
            else:
                break
            wake(ticket)
            pending.popleft()
        for ticket in list(self._asking):
            if failed or ticket.end <= self.written_end:
                ticket.state = FAILED if failed else SETTLED
                wake(ticket)
                self._asking.remove(ticket)
        if self._leader is None:
            for ticket in chain(self._asking, pending):
                if ticket.gate is not None:
                    wake(ticket)
                    break

    def refusal(self) -> Exception:
        cause = self.failure or self.file.failure
        return ReadOnlyError(
            getattr(cause, "errno", None) or errno.EIO,
            f"an earlier write or sync failed ({cause}), so the database is read-only until it is reopened",
        )

    def _unknown_fate(self) -> StorageError:
        return StorageError(
            getattr(self.failure, "errno", None) or errno.EIO,
            f"the commit could not be written or synced ({self.failure}); whether it survives is unknown until the "
            "database is reopened, and it is read-only until then",
        )
