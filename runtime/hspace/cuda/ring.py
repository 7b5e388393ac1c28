"""The ring of pinned memory through which a step's block goes to the device."""

from __future__ import annotations

from .driver import Event, Stream


class Ring:
    """Pinned memory for blocks that are uploaded one after another, written again and again.

    It has two halves. An event is recorded after the last upload from a half, and waited for before that half is
    written again: so the host may be up to a whole ring ahead, and the device never has to run dry for it, as it would
    if the host waited for the stream. Expects `with device:` around it.
    """

    HALF = 8  # blocks

    def __init__(self, stream: Stream, nbytes: int) -> None:
        self._stream, self.nbytes = stream, nbytes
        apart = -(-nbytes // 64) * 64
        self._pinned = stream.device.pin(2 * self.HALF * apart)
        self.blocks = [self._pinned.bytes[i * apart : i * apart + nbytes] for i in range(2 * self.HALF)]
        self._addresses = [self._pinned.address + i * apart for i in range(2 * self.HALF)]
        self._events = Event(stream.device), Event(stream.device)
        self._marked = [False, False]
        self._next = 0

    def take(self) -> int:
        """The number of the block to write next, which no copy under way reads."""
        half, first = divmod(self._next, self.HALF)
        if first == 0 and self._marked[half]:
            self._events[half].synchronise()
            self._marked[half] = False
        return self._next

    def upload(self, address: int) -> None:
        """Enqueues the copy of the block taken to the device, and goes on to the next."""
        stream, source = self._stream, self._addresses[self._next]
        stream.device.call("copy to the device", "cuMemcpyHtoDAsync", address, source, self.nbytes, stream.object)
        half, place = divmod(self._next, self.HALF)
        if place == self.HALF - 1:
            self._events[half].record(stream.object)
            self._marked[half] = True
        self._next = (self._next + 1) % len(self.blocks)

    def free(self) -> None:
        """Frees the memory; no copy may be under way."""
        self.blocks.clear()
        self._pinned.free()
