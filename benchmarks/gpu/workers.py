"""Processes of their own for whatever uses the GPU: a fault there ends one measurement, and its memory is its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hspace.errors import HspaceError

LIMIT = 900.0  # seconds until an answer


class Failed(Exception):
    """Why something could not be measured, in a line."""


def line(e: BaseException) -> str:
    """An exception in one line."""
    text = next((part.strip() for part in str(e).splitlines() if part.strip()), "")[:300]
    return text if isinstance(e, (Failed, HspaceError)) else f"{type(e).__name__}: {text}".rstrip(": ")


class Worker:
    """What `make(*arguments)` returns, in a process of its own; `ask` calls its methods. After an error it is gone.

    log: the file that the process's output goes to. limit: seconds until an answer. Raises Failed.
    """

    def __init__(self, log: Path, make: Callable[..., Any], *arguments: Any, limit: float = LIMIT) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._limit = limit
        self._process = context.Process(target=_serve, args=(theirs, log, make, arguments), daemon=True)
        self._process.start()
        theirs.close()
        self._answer()  # that it is open

    def ask(self, method: str, *arguments: Any) -> Any:
        """What the method returns."""
        try:
            self._connection.send((method, arguments))
        except OSError:
            raise Failed("its process has ended") from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._connection.poll(self._limit):
                self._process.kill()
                raise Failed(f"no answer in {self._limit:.0f} s")
            done, answer = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise Failed(f"its process ended with {self._process.exitcode}") from None
        if not done:
            raise Failed(answer)
        return answer

    def close(self) -> None:
        """Ends the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(60)
        self._process.kill()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Call:
    """A function as a worker's object."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._function, self._arguments = function, arguments

    def run(self) -> Any:
        return self._function(*self._arguments)


def apart(log: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """What the function returns, called in a process of its own. Raises Failed."""
    with Worker(log, _Call, function, *arguments) as worker:
        return worker.ask("run")


def _serve(connection: Any, log: Path, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        target = make(*arguments)
        connection.send((True, None))
        while (request := connection.recv()) is not None:
            method, given = request
            connection.send((True, getattr(target, method)(*given)))
    except BaseException as e:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            connection.send((False, line(e)))
