"""What views show in forked children stays as it is for as long as these live (promise 11).

A child inherits views and their maps, and nobody else knows of them. So what was viewed at a fork is held in the parent
until the child, and whoever it forked in turn, has ended. A pipe tells: the child's end of it is closed by nobody, so
it goes with the last of them, or with their exec.

Any thread forks, one at a time (`no_fork`); any thread lets go.

I1. What is viewed is held before the fork: a view that goes just then does not let go of what the child has.
I2. Where there is no descriptor for a pipe, what is viewed is held until this process ends.
"""

from __future__ import annotations

from collections.abc import Callable

from mmlsm.locks import new_lock

Keepers = list[object]


class Forks:
    """The children that had views when they were forked.

    Calls of the system are given by file.py: `pipe()` makes the parent's and the child's end of one, `is_over(fd)` says
    whether nobody has the other end any more.
    """

    def __init__(
        self,
        pipe: Callable[[], tuple[int, int]],
        is_over: Callable[[int], bool],
        close: Callable[[int], object],
    ) -> None:
        self._pipe = pipe
        self._is_over = is_over
        self._close = close
        self.viewed: Callable[[], Keepers] = list
        """Who keeps what any view shows now, for each view (read/view.py)."""
        self._under_way: list[tuple[Keepers, tuple[int, int] | None]] = []
        self._held: dict[int, Keepers] = {}
        """By the parent's end."""
        self._held_for_good: list[Keepers] = []
        self._looking = new_lock()

    def before(self) -> None:
        """Hold what is viewed (I1). REQUIRES `no_fork`, and so do the next two."""
        keepers: Keepers = []
        ends = None
        try:
            if keepers := list({id(keeper): keeper for keeper in self.viewed()}.values()):
                ends = self._pipe()
        except OSError:
            pass  # I2
        finally:
            self._under_way.append((keepers, ends))

    def in_parent(self) -> None:
        """Hold it until the child has ended. A fork that failed has no child, which looks like one that has ended."""
        keepers, ends = self._under_way.pop()
        if ends is not None:
            self._held[ends[0]] = keepers
            self._close(ends[1])
        elif keepers:
            self._held_for_good.append(keepers)

    def in_child(self) -> None:
        """Keep this child's end, and those of the forks before that made it. What the parents hold is theirs."""
        for fd in (*(ends[0] for _, ends in self._under_way if ends is not None), *self._held):
            self._close(fd)
        self._under_way, self._held, self._held_for_good = [], {}, []
        self._looking = new_lock()

    def let_go(self) -> None:
        """Let go of what children viewed that have ended. Costs nothing where there are none."""
        if self._held and self._looking.acquire(blocking=False):  # a number is asked for by one thread, and then closed
            try:
                for fd in [*self._held]:
                    if self._is_over(fd):
                        del self._held[fd]
                        self._close(fd)
            finally:
                self._looking.release()
