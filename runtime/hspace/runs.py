"""Runs: any number of samples through an executor's batches, with progress, cancellation and each one's own fault."""

from __future__ import annotations

import contextlib
import heapq
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .batch import Executor, Moved, Network, Observe, Sample
from .errors import Cancelled, NotFinite


@dataclass(frozen=True, slots=True)
class Step:
    """What `on_step` is called with after each network evaluation, of the n images that it moved.

    phase: "encode", "latent" or "decode". index: 1 … total, of the evaluations of the whole call. image: int64 [n],
    each one's number in the call. row: int64 [n], the number of the row that each ran, from 0. rows: int64 [n], how
    many its program has. t: int32 [n], what the network was told. x: float32 [n, 3, H, W], the state that it saw. x_0:
    float32 [n, 3, H, W], the predicted images P. h: [n, C, h, w], the bottleneck before any injection, float32 (float16
    in FP16 graphs). In the phase "latent" x and x_0 are [n, D], h is None, and image counts the draws. The arrays are
    the run's own: copy what is kept.
    """

    phase: str
    index: int
    total: int
    image: NDArray[np.int64]
    row: NDArray[np.int64]
    rows: NDArray[np.int64]
    t: NDArray[np.int32]
    x: Float32
    x_0: Float32
    h: NDArray[Any] | None


OnStep = Callable[[Step], bool | None]


@dataclass
class Progress:
    """Counts the evaluations of one call, and asks `on_step` whether to go on."""

    on_step: OnStep | None
    total: int = 0
    index: int = 0

    def observe(self, phase: str, images: NDArray[np.int64]) -> Observe | None:
        """What watches a batch; None where nobody asked. images: int64 [capacity], the image in each slot."""
        if self.on_step is None:
            return None
        on_step = self.on_step

        def observe(moved: Moved) -> None:
            self.index += 1
            step = Step(phase, self.index, self.total, images[moved.slot], *moved[1:])
            if on_step(step) is False:
                raise Cancelled(f"cancelled by on_step at step {self.index} of {self.total}")

        return observe


@dataclass
class Outcome:
    """What a run made. x: the last states [N, …]. x_prev: those before them, where a sample keeps it. faults: of the
    samples that failed, whose states mean nothing, by number.
    """

    x: Any
    x_prev: Float32 | None
    faults: dict[int, NotFinite]


class Runner:
    """Runs samples on an executor, `batch_size` at a time. Holds no state of a run; on a GPU calls take turns."""

    def __init__(self, executor: Executor, size: int, batch_size: int | None) -> None:
        self.batch_size = batch_size or max(1, executor.engine.batch_pixels // size**2)
        self.executor = executor
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.RLock() if executor.on_device else contextlib.nullcontext()
        )

    def evaluations(self, rows: Sequence[int]) -> int:
        """How many network evaluations samples take whose programs have so many rows."""
        ends = [0] * min(self.batch_size, len(rows))  # of the slots, each taken by the next sample as it is left
        for length in rows:
            heapq.heapreplace(ends, ends[0] + length)
        return max(ends)

    def encode_z(self, x: Any) -> Float32:
        """z_sem (float32 [N, D]) of images, by the encoder."""
        size = self.batch_size
        each = [self.executor.encode_z(x[i : i + size]) for i in range(0, len(x), size)]
        return np.concatenate(each).astype(np.float32, copy=False)

    def run(
        self, phase: str, samples: Sequence[Sample], numbers: Sequence[int], progress: Progress, out: Any = None
    ) -> Outcome:
        """Every sample to its end. numbers: which of the call's images they are, for `Step.image`. out: where the last
        states go, [N, …]; by default a new array.
        """
        network: Network = "latent" if phase == "latent" else "image"
        outcome = Outcome(np.empty((len(samples), *samples[0].x.shape), np.float32) if out is None else out, None, {})
        capacity = min(self.batch_size, len(samples))
        images, told = np.zeros((2, capacity), np.int64)  # which is in each slot, of the samples and of the call's
        observe, waiting = progress.observe(phase, told), 0
        with self._turn, self.executor.batch(network, capacity) as batch:
            while waiting < len(samples) or len(batch):
                while waiting < len(samples) and len(batch) < capacity:
                    slot = batch.join(samples[waiting])
                    images[slot], told[slot] = waiting, numbers[waiting]
                    waiting += 1
                for slot in batch.step(observe):
                    image = int(images[slot])
                    try:
                        result = batch.leave(slot, one_of(outcome.x, image))
                    except NotFinite as e:
                        outcome.faults[image] = NotFinite(f"{phase}: {e}")
                        if isinstance(outcome.x, np.ndarray):
                            outcome.x[image] = 0  # so that nothing is made of what was in its memory
                        continue
                    if result.x_prev is not None:
                        if outcome.x_prev is None:
                            outcome.x_prev = np.zeros((len(samples), *result.x_prev.shape), np.float32)
                        outcome.x_prev[image] = result.x_prev
        return outcome


def one_of(array: Any, number: int) -> Any:
    """An image of a batch of arrays, without the batch's axis; a view, on the host or on a GPU."""
    if isinstance(array, np.ndarray):
        return array[number]
    part = array[number : number + 1]
    return part.reshape(*part.shape[1:])
