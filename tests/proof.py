"""The proof after every test: each database that the test opened is walked whole, every page with its one owner (R16).

Databases are noted as they are opened, weakly: one that a test drops without `close()` is collected as ever, and its
file is then read as after a kill.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import mmlsm
from mmlsm.check import Report
from mmlsm.engine import Engine
from mmlsm.settings import Settings

PARTS = ("header", "log", "manifest", "bitmap", "live", "retired", "reserved", "free")


def faults_of(report: Report) -> list[str]:
    """What a report finds, and whether its parts make up the file (R16)."""
    faults = list(report.problems)
    parts = {part: getattr(report, part) for part in PARTS}
    if sum(parts.values()) != report.pages:
        faults.append(f"the file has {report.pages} pages, its parts are {parts}")
    return faults


def prove_file(path: str | os.PathLike[str]) -> Report:
    """The proof of a file that nobody writes to, as a reader finds it after whatever ended its last life."""
    before = Path(path).read_bytes()
    with mmlsm.open(path, readonly=True) as database:
        report = database.verify()
    assert not faults_of(report), (os.fspath(path), faults_of(report))
    assert Path(path).read_bytes() == before, "a read-only open has written"
    return report


def prove(database: Any) -> Report:
    """The proof of an open database."""
    report = database.verify() if isinstance(database, mmlsm.Database) else database.verify(None)
    assert not faults_of(report), faults_of(report)
    return report


class Opened:
    """The engines made since the test began, and the files that they opened."""

    def __init__(self) -> None:
        self.engines: list[weakref.ref[Engine]] = []
        self.threads: list[weakref.ref[threading.Thread]] = []
        self.paths: dict[str, None] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()

    def note(self, engine: Engine, path: str) -> None:
        with self._lock:
            self.engines.append(weakref.ref(engine))
            if path != ":memory:":
                self.paths[os.path.realpath(path)] = None
            if engine.store is not None:
                self.threads += [weakref.ref(engine.writer), weakref.ref(engine.merger)]

    def prove(self) -> None:
        """Prove what is open, end it, and then prove each file as it lies."""
        if os.getpid() != self._process:
            return
        faults: list[str] = []
        for reference in self.engines:
            engine = reference()
            if engine is None or engine.life.is_ended():
                continue
            if engine.file.failure is None:
                faults += faults_of(engine.verify(None))
            try:
                engine.close()
            except mmlsm.Error as error:
                if engine.file.failure is None:
                    faults.append(f"close: {error!r}")
            del engine
        gc.collect()
        for thread_reference in self.threads:
            if (thread := thread_reference()) is not None:
                thread.join(20)
                assert not thread.is_alive(), f"{thread.name} does not end"
        for path in self.paths:
            if os.path.exists(path):
                with mmlsm.open(path, readonly=True) as database:
                    faults += faults_of(database.verify())
        assert not faults, "the file is not sound after the test: " + "; ".join(faults)


def watch(opened: Opened, monkeypatch: Any) -> None:
    """Note every engine that is made from now on."""
    plain = Engine.__init__

    def noting(self: Engine, path: Any, settings: Settings, *system: Any) -> None:
        plain(self, path, settings, *system)
        opened.note(self, os.fspath(path))

    monkeypatch.setattr(Engine, "__init__", noting)
