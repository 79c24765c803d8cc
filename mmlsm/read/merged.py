# cython: boundscheck=False, wraparound=False, binding=False
"""Merged: one ordered walk over several sources, newest first, with what is overwritten or deleted left out.

One thread at a time. After a move `current` is the source that stands on the visible key, or None past an end.

I1. All sources stand on the same side: going forward, each on its first key >= the current one.
    Only the newest source can change under a walk (a transaction's overlay); all are then placed anew.
I2. Of equal keys the newest source speaks, and a tombstone hides the key (R9).
"""

from __future__ import annotations

import cython

if cython.compiled:
    from cython.cimports.mmlsm.memory import Buffer, compare, copy
    from cython.cimports.mmlsm.read.source import Source
    from cython.cimports.mmlsm.read.tournament import Tournament
else:
    from mmlsm.memory import Buffer, compare, copy
    from mmlsm.read.source import Source
    from mmlsm.read.tournament import Tournament


@cython.final
@cython.cclass
class Merged:
    """Combines `sources`, numbered newest first; a single one is walked without a tournament."""

    def __init__(self, sources: list) -> None:
        self.sources = sources
        self.only: Source | None = sources[0] if len(sources) == 1 else None
        self.tournament = Tournament(len(sources)) if len(sources) > 1 else None
        self.current: Source | None = None
        self.winner = -1
        self.held = Buffer(256)
        self.held_bytes = 0

    def hold(self):
        """Keep a copy of the current key, for the source is about to move off it."""
        source: Source = self.current
        if source.key_bytes > self.held.size:
            self.held = Buffer(max(2 * source.key_bytes, 256))
        copy(self.held.m8, 0, source.key, 0, source.key_bytes)
        self.held_bytes = source.key_bytes
        return 0

    def enter(self, s):
        """Tell the tournament where source s stands."""
        source: Source = self.sources[s]
        if source.valid:
            self.tournament.key.at[s] = source.key
            self.tournament.key_bytes.at[s] = source.key_bytes
        else:  # an empty one has no key at all
            self.tournament.key_bytes.at[s] = -1
        return 0

    def settle(self):
        """Take the winner as current, passing over deleted keys."""
        source: Source
        while True:
            if self.tournament is None:
                source = self.only
                if source is None or not source.valid:
                    self.current = None
                    return 0
                if source.kind != 1:
                    self.current = source
                    return 0
                self.current = source
                self.step_only()
                continue
            self.winner = self.tournament.tree.at[1]
            if self.winner < 0:
                self.current = None
                return 0
            source = self.sources[self.winner]
            self.current = source
            if source.kind != 1:
                return 0
            self.hold()
            self.pass_held()

    def step_only(self) -> cython.int:
        """Move the only source on in the present direction."""
        if self.winner == -2:
            return self.only.prev()
        return self.only.next()

    def pass_held(self):
        """Move every source that stands on the held key off it."""
        tournament: Tournament = self.tournament
        s: cython.Py_ssize_t = tournament.tree.at[1]
        source: Source
        while s >= 0:
            source = self.sources[s]
            if compare(source.key, 0, source.key_bytes, self.held.m8, 0, self.held_bytes) != 0:
                return 0
            if tournament.reverse:
                source.prev()
            else:
                source.next()
            self.enter(s)
            tournament.replay(s)
            s = tournament.tree.at[1]
        return 0

    def stale(self):
        """Whether a write transaction has written since the walk was placed; only its own source ever is."""
        newest: Source
        if len(self.sources) == 0:
            return False
        newest = self.sources[0]
        return newest.stale()

    def turn(self, reverse):
        """Change direction: put every source on the other side of the held key."""
        i: cython.Py_ssize_t
        source: Source
        for i in range(len(self.sources)):
            source = self.sources[i]
            if reverse:
                source.seek_le(self.held.m8, self.held_bytes)
            else:
                source.seek_ge(self.held.m8, self.held_bytes)
            self.enter(i)
        self.tournament.reverse = reverse
        self.tournament.build()
        return 0

    def next(self):
        """To the next visible key; REQUIRES a current one."""
        newest: Source
        if self.tournament is None:
            self.winner = -1
            self.only.next()
            return self.settle()
        self.hold()
        newest = self.sources[0]
        if self.tournament.reverse or newest.stale():
            self.turn(False)
        self.pass_held()
        return self.settle()

    def prev(self):
        """To the visible key before; REQUIRES a current one."""
        newest: Source
        if self.tournament is None:
            self.winner = -2
            self.only.prev()
            return self.settle()
        self.hold()
        newest = self.sources[0]
        if not self.tournament.reverse or newest.stale():
            self.turn(True)
        self.pass_held()
        return self.settle()

    def start(self, reverse):
        """Play the first round after every source was positioned."""
        i: cython.Py_ssize_t
        if self.tournament is None:
            self.winner = -2 if reverse else -1
            return self.settle()
        for i in range(len(self.sources)):
            self.enter(i)
        self.tournament.reverse = reverse
        self.tournament.build()
        return self.settle()

    def first(self):
        """To the first visible key."""
        source: Source
        for source in self.sources:
            source.first()
        return self.start(False)

    def last(self):
        """To the last visible key."""
        source: Source
        for source in self.sources:
            source.last()
        return self.start(True)

    def seek_ge(self, key, key_bytes):
        """To the first visible key >= key[:key_bytes]."""
        source: Source
        for source in self.sources:
            source.seek_ge(key, key_bytes)
        return self.start(False)

    def seek_le(self, key, key_bytes):
        """To the last visible key <= key[:key_bytes]."""
        source: Source
        for source in self.sources:
            source.seek_le(key, key_bytes)
        return self.start(True)
