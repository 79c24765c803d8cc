"""A fork server: children that have mmlsm imported already, in milliseconds instead of a new interpreter's start.

The server is a process of one thread and never opens a database, so nothing is alive in it that a fork could break. A
child runs one function, whose answers are the lines of a pipe; the pipe's end is the child's end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MESSAGE_BYTES = 1 << 16
PATIENCE_S = 60.0
"""How long to wait for what must come soon."""
ERROR = "!"
"""So begins each line of the traceback of a child that failed."""


class Child:
    """A process to stop or to kill, and what it said so far, line by line."""

    def __init__(self, server: ForkServer, pid: int, pipe: int) -> None:
        self.pid = pid
        self.lines: list[str] = []
        self.ended = False
        """Whether the pipe has come to its end."""
        self._server = server
        self._pipe: int | None = pipe
        self._rest = b""
        os.set_blocking(pipe, False)

    def listen(self, seconds: float, until: str | None = None) -> bool:
        """Take in what it says until a line begins with `until` (then True), it ends, or the time is up."""
        deadline = time.monotonic() + seconds
        heard = len(self.lines)
        with selectors.DefaultSelector() as selector:
            assert self._pipe is not None
            selector.register(self._pipe, selectors.EVENT_READ)
            while not self.ended and selector.select(max(0.0, deadline - time.monotonic())):
                piece = os.read(self._pipe, MESSAGE_BYTES)
                self.ended = not piece
                *whole, self._rest = (self._rest + piece).split(b"\n")
                self.lines += [line.decode() for line in whole]
                if until is not None and any(line.startswith(until) for line in self.lines[heard:]):
                    return True
        return False

    def stop(self) -> None:
        """Stop it, every thread of it; what it said until then is heard."""
        os.kill(self.pid, signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        deadline = time.monotonic() + PATIENCE_S
        while not all(_state(task) in "TtZX" for task in tasks.iterdir()):
            assert time.monotonic() < deadline, "a thread of it does not stop"
            time.sleep(0.0005)
        self.listen(0)

    def end(self) -> bool:
        """Kill it, hear the last of it, and let it go. Whether it was killed, by us or itself, or had ended well.

        AssertionError if it failed before, with its traceback where there is one.
        """
        os.kill(self.pid, signal.SIGKILL)  # it is not waited for before the next line: the pid is still its own
        code = self._server.wait(self.pid)
        self.listen(0)
        self._close()
        errors = [line for line in self.lines if line.startswith(ERROR)]
        assert not errors, "the child failed:\n" + "\n".join(errors)
        assert code in (0, -signal.SIGKILL), f"the child ended with {code} after {self.lines[-3:]}"
        return code != 0

    def _close(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            os.close(pipe)


class ForkServer:
    """Starts children that run `function` of a module of tests/ with a dict of what JSON can say."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "rig.kills.forks", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )

    def start(self, function: str, job: dict[str, Any]) -> Child:
        """A child that runs `module:function` with `job`."""
        ours, theirs = os.pipe()
        try:
            request = json.dumps({"start": function, "job": job}).encode()
            socket.send_fds(self._socket, [request], [theirs])
            return Child(self, self._answer(), ours)
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)

    def wait(self, pid: int) -> int:
        """The exit code of an ended child; negative, the signal that ended it. Its pid may be another's after this."""
        self._socket.sendall(json.dumps({"wait": pid}).encode())
        return self._answer()

    def close(self) -> None:
        """End the server, and with it the children that are left."""
        self._socket.close()
        self._popen.wait(60)

    def _answer(self) -> int:
        answer = self._socket.recv(MESSAGE_BYTES)
        assert answer, "the fork server has died"
        return int(answer)


@contextmanager
def fork_server() -> Iterator[ForkServer]:
    """A server for as long as the block."""
    server = ForkServer()
    try:
        yield server
    finally:
        server.close()


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def _serve(connection: socket.socket) -> None:
    children: set[int] = set()
    while True:
        message, fds, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, 1)
        if not message:
            break
        request = json.loads(message)
        if "wait" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            children.discard(request["wait"])
        else:
            answer = os.fork()
            if not answer:
                connection.close()
                _run(request["start"], request["job"], fds[0])
            children.add(answer)
            os.close(fds[0])
        connection.sendall(str(answer).encode())
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _run(function: str, job: dict[str, Any], pipe: int) -> None:
    """In the child: the job, and no word to anybody but the pipe."""
    code = 0
    os.dup2(pipe, 1)
    os.close(pipe)
    try:
        module, _, name = function.partition(":")
        getattr(importlib.import_module(module), name)(job)
    except BaseException:
        say_error()
        code = 3
    os._exit(code)


def say(line: str) -> None:
    """In the child: one line, whole or not at all."""
    os.write(1, line.encode() + b"\n")


def say_error() -> None:
    """In the child: the traceback of what is being handled."""
    lines = traceback.format_exc().splitlines()
    os.write(1, "".join(f"{ERROR} {line}\n" for line in lines).encode())


if __name__ == "__main__":
    import rig.kills.life  # noqa: F401  # what the children need, once

    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))
