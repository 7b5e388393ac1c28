"""Times on the device."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hspace.cuda.driver import Stream


class Clock:
    """The time between marks on a stream, by CUDA events. Its calls expect `with device:` around them."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._call = stream, stream.device.call
        self._events: list[Any] = []  # made when needed, and used again
        self._marks = 0

    def mark(self) -> None:
        """Enqueues a mark."""
        if self._marks == len(self._events):
            self._events.append(self._call("create an event", "cuEventCreate", 0))
        self._call("record an event", "cuEventRecord", self._events[self._marks], self._stream.object)
        self._marks += 1

    def laps(self) -> list[float]:
        """Milliseconds from each mark to the next, once all of them have passed; then there are none."""
        self._stream.synchronise()
        marks, self._marks = self._events[: self._marks], 0
        return [float(self._call("read a time", "cuEventElapsedTime", a, b)) for a, b in pairwise(marks)]

    def time(self, enqueue: Callable[[], object]) -> float:
        """Milliseconds that what a function enqueues takes."""
        self.mark()
        enqueue()
        self.mark()
        return self.laps()[0]
