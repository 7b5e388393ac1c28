"""How far a command is: one line on a terminal, rewritten in place."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ..runs import OnStep, Step

_EVERY = 0.1  # seconds between two looks of the line
_BAR = 30  # characters, where the terminal has room


class Bar:
    """Progress over `length` units, on stderr where that is a terminal that can rewrite a line; else nothing.

    It is no wider than the terminal, has no colours, and leaves the cursor as it is. Within `with`, so that an error
    begins on a line of its own. says: what stands behind, its parts divided by commas; what has no room is left out.
    """

    def __init__(self, label: str, length: int, says: Callable[[], str] = str) -> None:
        self.length, self.done = length, 0
        self._label, self._says = label, says
        self._shown = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._start, self._drawn, self._wide = time.monotonic(), 0.0, 0

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn:
            self.draw()
            self._write("\n")

    def to(self, done: float) -> None:
        """Says that so many units are done."""
        self.done = min(int(done), self.length)
        if time.monotonic() - self._drawn >= _EVERY:
            self.draw()

    def draw(self) -> None:
        """Brings the line up to date."""
        if not self._shown:
            return
        self._drawn = time.monotonic()
        columns = _columns()
        line = self._line(columns)
        self._write("\r" + line.ljust(min(self._wide, columns - 1)))
        self._wide = len(line)

    def _line(self, columns: int) -> str:
        share = self.done / self.length if self.length else 1.0
        seconds = self._drawn - self._start
        left = f"{seconds * (1 / share - 1):.0f} s left" if 0 < share < 1 else ""
        says = self._says()
        behind = "  ".join(part for part in (f"{share:4.0%}", says, left) if part)
        room = min(_BAR, columns - len(self._label) - len(behind) - 7)
        if room < 5:
            return _fitting(f"{self._label} {share:4.0%}", [*filter(None, (*says.split(", "), left))], columns - 1)
        full = round(share * room)
        return f"{self._label}  [{'#' * full}{'-' * (room - full)}]  {behind}"

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that went away ends no work
            sys.stderr.write(text)
            sys.stderr.flush()


def _fitting(line: str, parts: Sequence[str], room: int) -> str:
    """The line with as many of the parts as there is room for, in order; nothing where it has none itself."""
    for part in parts:
        if len(longer := f"{line}  {part}") > room:
            break
        line = longer
    return line if len(line) <= room else ""


def _columns() -> int:
    """The width of the terminal behind stderr, which stdout need not be."""
    if not os.environ.get("COLUMNS"):
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return shutil.get_terminal_size().columns


@contextmanager
def progress(label: str) -> Iterator[OnStep]:
    """An `on_step` that draws a bar on a terminal, for a command that makes one call."""
    with Bar(label, 1) as bar:
        bar.draw()

        def on_step(step: Step) -> None:
            bar.length = step.total
            bar.to(step.index)

        yield on_step
