"""SIGINT, SIGTERM and SIGHUP, for the command line: what was begun is cleaned up, then a line and an exit code say it.

Imports next to nothing, so that it is in force before anything that takes time.
"""

from __future__ import annotations

import os
import signal

_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
_received: list[int] = []
_begun = False


class Interrupted(BaseException):
    """Raised in the main thread where a signal asks the program to end. No error: `except Exception` lets it pass."""


def install() -> None:
    """From here on a signal ends the program. One that the parent ignores (nohup) is ignored still."""
    for name in _WORDS:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)


def begin() -> None:
    """From here on there is something to clean up, so that a signal raises Interrupted.

    Before, while modules are imported, it ends the process at once: an exception there may be lost, or become another.
    """
    global _begun  # noqa: PLW0603
    _begun = True


def _end(number: int, frame: object) -> None:
    _received.append(number)
    if _begun:
        raise Interrupted
    said, code = told() or ("", 1)
    os.write(2, f"hspace: error: {said}\n".encode())
    os._exit(code)


def told() -> tuple[str, int] | None:
    """What to say of the first signal that came, and the exit code: 128 + its number; None where none came.

    Libraries turn an exception that meets them in a callback into one of their own, so whoever reports an error asks
    here first.
    """
    if not _received:
        return None
    return _WORDS[signal.Signals(_received[0]).name], 128 + _received[0]
