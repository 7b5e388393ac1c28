"""Programs that are stopped at each of their steps: every change to the file system, or every line that they run.

A step is stopped before it happens. All of it runs in children, since Python's audit hooks stay for good.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

FINISHED, KILLED, INTERRUPTED, FAILED = 0, 9, 3, 1  # what `child` returns
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}
_READS = {"os.scandir", "os.listdir"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def start(work: Callable[[], object]) -> int:
    """Runs `work` in a child; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = FAILED
    try:
        work()
        code = FINISHED
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def child(work: Callable[[], object]) -> int:
    return wait(start(work))


def at_each_step(root: Path, step: Callable[[int], object], *, reads: bool = False) -> None:
    """From now on calls `step` with its number before every change (and, if so, read) of what is below `root`.

    For a child alone. What `step` itself does is no step.
    """
    count, inside = 0, False

    def count_step() -> None:
        nonlocal count, inside
        if not inside:
            inside = True
            try:
                step(count)
            finally:
                count, inside = count + 1, False

    def audit(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not (reads or args[2] & _WRITING):
                return
        elif not (event in _CHANGES or (reads and event in _READS)):
            return
        path = args[0]
        if isinstance(path, (str, bytes, os.PathLike)) and (
            os.fsdecode(path).startswith(str(root)) or not os.path.isabs(os.fsdecode(path))
        ):
            count_step()

    sys.addaudithook(audit)
    fsync = os.fsync

    def counted(descriptor: int) -> None:
        count_step()
        fsync(descriptor)

    os.fsync = counted


def stopped(work: Callable[[], object], root: Path, at: int, how: str) -> int:
    """Runs `work` in a child and kills it, or interrupts it once, before step number `at`; how it ended."""

    def step(number: int) -> None:
        if number == at:
            if how == "kill":
                os._exit(KILLED)
            raise KeyboardInterrupt

    def steps() -> None:
        at_each_step(root, step)
        work()

    return child(steps)


def interrupted_at_line(work: Callable[[], object], modules: set[str], at: int) -> int:
    """The same, interrupting when a new line of the files `modules` runs for the first time, after `at` others."""

    def lines() -> None:
        seen: set[tuple[str, int]] = set()

        def trace(frame: FrameType, event: str, _: object) -> Any:
            place = frame.f_code.co_filename, frame.f_lineno
            if place[0] not in modules:
                return None
            if event == "line" and place not in seen:
                seen.add(place)
                if len(seen) == at + 1:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        work()

    return child(lines)
