"""Every form of reading of a history (tests/rig/): its answers are right where the database is, and tell where not."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest

from rig.histories.actors import Pass, Writer, value_of
from rig.histories.checker import Fault, History
from rig.histories.forms import Actor

KEYS = [b"key %05d" % i for i in range(40)]
TRUE = {key: value_of(b"1", i, 40) for i, key in enumerate(KEYS) if i % 5}
WRONG = KEYS[17]
FORMS = ["points", "many", "range", "prefix", "nearest", "walk", "count", "a pass", "a pass back"]

Pairs = dict[bytes, bytes]


def ask_often(pairs: Pairs, form: str, db: Any) -> History:
    """The history of a reader that asks in this form alone, of a database that has these pairs, it is said."""
    history = History(KEYS, pairs, 7)
    actor = Actor(history, db, threading.local(), [], random.Random(form))
    for _ in range(300):
        read = actor.log.read(form)
        actor.log.opened(read)
        if form.startswith("a pass"):
            one = Pass(db, len(KEYS), form == "a pass back")
            for count in (7, 15, 30, 3):
                read.answers += one.go_on(count, history.index)
        else:
            read.answers += getattr(actor, form)(db, lambda: None)
    return history


@pytest.mark.parametrize("form", FORMS)
def test_what_is_there_is_what_each_form_answers(open_db: Any, form: str) -> None:
    db = open_db()
    db.update(TRUE)
    figures = ask_often(TRUE, form, db).check()
    assert figures.operations == 300
    assert figures.answers >= 300


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lie", ["a key is missing", "a key is there", "another value"])
def test_each_form_tells_of_one_key_that_is_wrong(open_db: Any, form: str, lie: str) -> None:
    said = TRUE | {WRONG: value_of(b"2", 17, 90)} if lie == "another value" else dict(TRUE)
    db = open_db()
    db.update(TRUE)
    if lie == "a key is missing":
        db.delete(WRONG)
    elif lie == "a key is there":
        del said[WRONG]
    history = ask_often(said, form, db)
    if (form, lie) == ("count", "another value"):
        history.check()  # a number of keys says nothing of values
        return
    with pytest.raises(Fault):
        history.check()


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (b"mine", None),
        (b"other", "a transaction wrote b'other' and reads b'mine'"),
        (None, "a transaction wrote absent and reads b'mine'"),
    ],
)
def test_what_a_transaction_wrote_is_no_answer_if_it_is_right(own: bytes | None, told: str | None) -> None:
    writer = Writer(History(KEYS, TRUE, 7), None, threading.local(), [], random.Random(0))
    found = [(key, b"mine" if key == WRONG else value) for key, value in TRUE.items()]
    if told is None:
        rest = writer.beside({17: own}, [(0, 40, found)])
        assert rest == [(0, 17, found[: found.index((WRONG, b"mine"))]), (18, 40, found[-len(rest[1][2]) :])]
        assert sum(len(pairs) for _, _, pairs in rest) == len(found) - 1
    else:
        with pytest.raises(AssertionError, match=told):
            writer.beside({17: own}, [(0, 40, found)])


def test_a_transaction_that_reads_outside_of_what_it_asked_for_is_told() -> None:
    writer = Writer(History(KEYS, TRUE, 7), None, threading.local(), [], random.Random(0))
    with pytest.raises(AssertionError, match="outside of what a transaction asked for"):
        writer.beside({17: None}, [(0, 10, [(KEYS[11], TRUE[KEYS[11]])])])
