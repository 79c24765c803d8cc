"""The checker of histories (tests/rig/histories/checker.py): what is right passes, each kind of wrong is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rig.histories.checker import COUNT, NEVER, PRESENT, Fault, History, Log, Read, complement, joined, meeting

pytestmark = pytest.mark.rig

KEYS = [b"a", b"b", b"c", b"d"]
A, B, C, D = range(4)


def point(i: int, value: Any) -> tuple[int, int, list[tuple[bytes, Any]]]:
    return i, i + 1, [] if value is None else [(KEYS[i], value)]


def commit(log: Log, seq: int, items: dict[int, bytes | None]) -> None:
    log.wrote(log.write(items), seq)


def reader(log: Log, *answers: Any, seq: int | None = None) -> Read:
    read = log.read("a reader")
    log.opened(read)
    read.seq = seq
    read.answers += answers
    return read


def whole(*values: bytes | None) -> tuple[int, int, list[tuple[bytes, Any]]]:
    return 0, 4, [(key, value) for key, value in zip(KEYS, values, strict=True) if value is not None]


@pytest.fixture
def history() -> History:
    """Commit 7 left a and b; 8 to 11 have returned since."""
    history = History(KEYS, {b"a": b"a7", b"b": b"b7"}, 7)
    log = history.log()
    commit(log, 8, {A: b"a8", C: b"c8"})
    commit(log, 9, {A: None, B: b"b9"})
    commit(log, 10, {A: b"a10", D: b"d10"})
    commit(log, 11, {B: b"b11", C: None})
    return history


def test_what_is_right_is_accepted_and_counted(history: History) -> None:
    log = history.log()
    state = whole(b"a10", b"b11", None, b"d10")
    reader(log, state, seq=11)
    reader(log, state, point(A, PRESENT), point(B, 3), point(C, None), (4, 5, [(COUNT, 3)]))
    figures = history.check()
    assert (figures.commits, figures.operations, figures.answers, figures.absences) == (4, 2, 10, 2)
    assert history.pairs() == {b"a": b"a10", b"b": b"b11", b"d": b"d10"}
    assert history.last == 11


@pytest.mark.parametrize(
    "state",
    [
        (b"a7", b"b7", None, None),
        (b"a8", b"b7", b"c8", None),
        (None, b"b9", b"c8", None),
        (b"a10", b"b9", b"c8", b"d10"),
        (b"a10", b"b11", None, b"d10"),
    ],
)
def test_a_reader_beside_commits_may_see_any_one_of_their_states(state: tuple[bytes | None, ...]) -> None:
    history = History(KEYS, {b"a": b"a7", b"b": b"b7"}, 7)
    log, other = history.log(), history.log()
    read = other.read("a scan")
    commit(log, 8, {A: b"a8", C: b"c8"})
    commit(log, 9, {A: None, B: b"b9"})
    commit(log, 10, {A: b"a10", D: b"d10"})
    commit(log, 11, {B: b"b11", C: None})
    other.opened(read)
    read.answers.append(whole(*state))
    assert history.check().answers == sum(value is not None for value in state)


def stale(history: History) -> None:
    reader(history.log(), point(B, b"b9"))


def stale_absence(history: History) -> None:
    reader(history.log(), point(D, None))


def resurrected(history: History) -> None:
    reader(history.log(), point(C, b"c8"))


def resurrected_presence(history: History) -> None:
    reader(history.log(), point(C, PRESENT))


def wrong_length(history: History) -> None:
    reader(history.log(), point(B, 2))


def from_the_future(history: History) -> None:
    log = history.log()
    reader(log, point(A, b"a12"))
    commit(log, 12, {A: b"a12"})


def a_state_to_come(history: History) -> None:
    log = history.log()
    reader(log, seq=12)
    commit(log, 12, {A: b"a12"})


def torn_batch(history: History) -> None:
    """Commit 12 is on its way: one of its keys is seen, the other not yet."""
    log = history.log()
    write = log.write({A: b"a12", B: b"b12"})
    reader(log, point(A, b"a12"), point(B, b"b11"))
    log.wrote(write, 12)


def mixed_snapshot(history: History) -> None:
    """A snapshot that says it is 12, and shows a value of 13."""
    log = history.log()
    first = log.write({A: b"a12"})
    second = log.write({B: b"b13"})
    reader(log, point(A, b"a12"), point(B, b"b13"), seq=12)
    log.wrote(first, 12)
    log.wrote(second, 13)


def mixed_batch_of_gets(history: History) -> None:
    log = history.log()
    first, second = log.write({A: b"a12", B: b"b12"}), log.write({A: b"a13", B: b"b13"})
    reader(log, point(A, b"a12"), point(B, b"b13"))
    log.wrote(first, 12)
    log.wrote(second, 13)


def mixed_absences(history: History) -> None:
    """c comes at 12 and goes at 13, when a goes: never are both absent while the writer is between."""
    log = history.log()
    writes = [log.write({C: b"c12", A: None}), log.write({C: None, A: b"a13"})]
    reader(log, (0, 3, [(b"b", b"b11")]))
    log.wrote(writes[0], 12)
    log.wrote(writes[1], 13)


def wrong_count(history: History) -> None:
    reader(history.log(), (4, 5, [(COUNT, 4)]))


def lost_update(history: History) -> None:
    """Two transactions read a = a10 and set it: the second one's read is not the state before its commit."""
    log, other = history.log(), history.log()
    second = other.read("another transaction")
    reader(log, point(A, b"a10"), seq=11).published = False
    commit(log, 12, {A: b"a12"})
    other.opened(second)
    second.answers.append(point(A, b"a10"))
    second.seq, second.published = 12, False
    commit(other, 13, {A: b"a13"})


def missing_in_a_range(history: History) -> None:
    reader(history.log(), (0, 4, [(b"a", b"a10"), (b"d", b"d10")]))


def twice_in_a_range(history: History) -> None:
    reader(history.log(), (0, 4, [(b"a", b"a10"), (b"b", b"b11"), (b"b", b"b11"), (b"d", b"d10")]))


def out_of_order(history: History) -> None:
    reader(history.log(), (0, 4, [(b"b", b"b11"), (b"a", b"a10"), (b"d", b"d10")]))


def outside_of_a_range(history: History) -> None:
    reader(history.log(), (0, 2, [(b"a", b"a10"), (b"b", b"b11"), (b"d", b"d10")]))


def nobodys_value(history: History) -> None:
    reader(history.log(), point(A, b"a10b11"))


def nobodys_key(history: History) -> None:
    reader(history.log(), (0, 4, [(b"e", b"a10")]))


def the_value_of_another_key(history: History) -> None:
    reader(history.log(), point(A, b"b11"))


def a_snapshot_older_than_a_returned_commit(history: History) -> None:
    reader(history.log(), seq=10)


def back_in_time_for_another_reader(history: History) -> None:
    """Commit 12 has not returned; one reader saw it, one that begins afterwards does not."""
    log, one, other = history.log(), history.log(), history.log()
    write = log.write({A: b"a12"})
    reader(one, point(A, b"a12"))
    reader(other, point(A, b"a10"))
    log.wrote(write, 12)


def seq_given_twice(history: History) -> None:
    commit(history.log(), 11, {A: b"a12"})


def seq_left_out(history: History) -> None:
    commit(history.log(), 13, {A: b"a12"})


def seq_of_an_earlier_life(history: History) -> None:
    commit(history.log(), 7, {A: b"a12"})


def seq_gone_back(history: History) -> None:
    log, other = history.log(), history.log()
    late = other.write({B: b"b13"})
    commit(log, 13, {A: b"a13"})
    commit(log, 12, {A: b"a12"})
    other.wrote(late, 14)


def seq_of_nobody_yet(history: History) -> None:
    log = history.log()
    commit(log, 13, {A: b"a13"})
    commit(log, 12, {A: b"a12"})


def a_commit_that_raised(history: History) -> None:
    log = history.log()
    log.write({A: b"a12"})
    reader(log, point(A, b"a12"))


@pytest.mark.parametrize(
    ("planted", "told"),
    [
        (stale, r"stale: b'b' = b'b9' was so only up to commit 10; the reader may see 11 to 11"),
        (stale_absence, "stale: b'd' = absent was so only up to commit 9"),
        (resurrected, "stale: b'c' = b'c8' was so only up to commit 10"),
        (resurrected_presence, "stale: b'c' = there was so only up to commit 10"),
        (wrong_length, "stale: b'b' = 2 was so only up to commit 10"),
        (from_the_future, "from the future: b'a' = b'a12' is so from commit 12 on; the reader may see 11 to 11"),
        (a_state_to_come, "the state after commit 12, not one of 11 to 11"),
        (torn_batch, "mixed: b'a' = b'a12' is so from commit 12 on, b'b' = b'b11' only up to 11"),
        (mixed_snapshot, "from the future: b'b' = b'b13' is so from commit 13 on; the reader may see 12 to 12"),
        (mixed_batch_of_gets, "mixed: b'b' = b'b13' is so from commit 13 on, b'a' = b'a12' only up to 12"),
        (mixed_absences, "mixed: "),
        (wrong_count, "b'how many keys there are' = 4"),
        (lost_update, "another transaction: stale: b'a' = b'a10' was so only up to commit 11"),
        (missing_in_a_range, "stale: b'b' = absent|b'b' = absent, which nobody has written"),
        (twice_in_a_range, "b'b' twice, out of order, or outside"),
        (out_of_order, "b'a' twice, out of order, or outside"),
        (outside_of_a_range, "b'd' twice, out of order, or outside"),
        (nobodys_value, "b'a10b11', which nobody has written"),
        (nobodys_key, "b'e', which nobody has written"),
        (the_value_of_another_key, "b'a' = b'b11', which nobody has written"),
        (a_snapshot_older_than_a_returned_commit, "the state after commit 10, not one of 11 to 11"),
        (back_in_time_for_another_reader, "stale: b'a' = b'a10' was so only up to commit 11"),
        (seq_given_twice, "seq 11 was given twice"),
        (seq_left_out, "seq 13 was given, of 5 commits after 7"),
        (seq_of_an_earlier_life, "seq 7 was given, of 5 commits after 7"),
        (seq_gone_back, "seq 12 was given after 13"),
        (seq_of_nobody_yet, "seq 13 was given when only 12 could be"),
        (a_commit_that_raised, "b'a' = b'a12', which nobody has written"),
    ],
)
def test_what_is_wrong_is_named(history: History, planted: Callable[[History], None], told: str) -> None:
    planted(history)
    with pytest.raises(Fault, match=told):
        history.check()


def test_a_write_transaction_may_be_ahead_of_other_readers(history: History) -> None:
    log = history.log()
    write = log.write({A: b"a12"})  # ordered, not yet published
    ahead = reader(log, point(A, b"a12"), seq=12)
    ahead.published = False
    reader(log, point(A, b"a10"))
    log.wrote(write, 12)
    history.check()


def test_spans_meet_where_all_of_them_are(seed: int) -> None:
    import random

    rng = random.Random(seed)
    for _ in range(300):
        several = [sorted(rng.sample(range(1, 40), 2 * rng.randrange(1, 6))) for _ in range(rng.randrange(4))]
        low, high = sorted(rng.choices(range(40), k=2))
        sets = [{x for a, b in zip(s[::2], s[1::2], strict=True) for x in range(a, b)} for s in several]
        wanted = min((x for x in range(low, high + 1) if all(x in one for one in sets)), default=None)
        assert meeting(several, low, high) == wanted


def test_complement_and_join() -> None:
    assert complement([], 5) == [5, NEVER]
    assert complement([5, 9], 5) == [9, NEVER]
    assert complement([7, 9, 12, NEVER], 5) == [5, 7, 9, 12]
    assert joined([(7, 9), (2, 4), (4, 5)]) == [2, 5, 7, 9]
