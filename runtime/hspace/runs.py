"""Runs: programs over any number of images, a batch at a time, with progress, cancellation and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attributes import Edit
from .checks import check_array
from .engines import Engine
from .errors import ArgumentError, Cancelled, EngineError
from .executors.cpu import Batch, Executor
from .latent import Latent
from .noise import Noise, Stream, check_seed, normal
from .program import Program

Float32 = NDArray[np.float32]
_BATCH_PIXELS = 2**16  # of a default batch: beyond it a CPU gains nothing and memory grows


@dataclass(frozen=True, slots=True)
class Step:
    """What `on_step` is called with after each network evaluation.

    phase: "encode", "latent" or "decode". index: 1 … total, of the whole call. first: the number of the batch's first
    image. t: int32 [n], what the network was told. x: float32 [n, 3, H, W], the state that it saw. x_0: float32
    [n, 3, H, W], the predicted images P. h: [n, C, h, w], the bottleneck before any injection, float32 (float16 in FP16
    graphs). In the phase "latent" x and x_0 are [n, D], and h is None. The arrays are the run's own: copy what is kept.
    """

    phase: str
    index: int
    total: int
    first: int
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

    def __call__(self, phase: str, first: int, t: NDArray[np.int32], x: Float32, batch: Batch) -> None:
        self.index += 1
        if self.on_step is None:
            return
        if self.on_step(Step(phase, self.index, self.total, first, t, x, batch.x_0, batch.h)) is False:
            raise Cancelled(f"cancelled by on_step at step {self.index} of {self.total}")


class Runner:
    """Runs programs on an engine, `batch_size` samples at a time. Holds no state of a run."""

    def __init__(self, engine: Engine, size: int, batch_size: int | None) -> None:
        self.batch_size = batch_size or max(1, _BATCH_PIXELS // size**2)
        self._engine = engine
        self._executor = Executor(engine)

    def evaluations(self, count: int, *programs: Program) -> int:
        """How many network evaluations it takes to run `count` samples through all of `programs`."""
        return sum(map(len, programs)) * len(self._slices(count))

    def encode_z(self, x: Float32) -> Float32:
        """z_sem (float32 [N, D]) of images, by the encoder."""
        each = [self._engine.run("encoder", {"x": x[c]})[0] for c in self._slices(len(x))]
        return np.concatenate(each).astype(np.float32, copy=False)

    def encode(
        self, x: Float32, z_sem: Float32 | None, program: Program, progress: Progress
    ) -> tuple[Float32, Float32 | None]:
        """x_T of images, and the state before it where the program uses the state before."""
        return self._run("encode", Noise(0, np.arange(len(x))), x, [program] * len(x), progress, z_sem=z_sem)

    def decode(
        self, latent: Latent, edits: list[Edit], programs: list[Program], noise: Noise, progress: Progress
    ) -> Float32:
        """Images from codes, with the deltas of `edits`; its directions are the caller's."""
        given = {"z_sem": latent.z_sem, "x_prev": latent.x_prev}
        return self._run("decode", noise, latent.x_T, programs, progress, edits=edits, **given)[0]

    def sample_z(self, noise: Float32, program: Program, progress: Progress) -> Float32:
        """Normalised z_sem from Gaussian noise, by the latent DDIM."""
        return self._run("latent", Noise(0, np.arange(len(noise))), noise, [program] * len(noise), progress)[0]

    def _slices(self, n: int) -> list[slice]:
        return [slice(i, min(i + self.batch_size, n)) for i in range(0, n, self.batch_size)]

    def _run(
        self,
        phase: str,
        noise: Noise,
        x: Float32,
        programs: list[Program],
        progress: Progress,
        *,
        z_sem: Float32 | None = None,
        edits: list[Edit] | None = None,
        x_prev: Float32 | None = None,
    ) -> tuple[Float32, Float32 | None]:
        out, before = np.empty_like(x), None
        for c in self._slices(len(x)):
            batch = Batch(
                x[c],
                programs[c],
                replace(noise, image=noise.image[c]),
                None if z_sem is None else z_sem[c],
                None if edits is None else edits[c],
                None if x_prev is None else x_prev[c],
            )
            while batch.active.size:  # all samples until the end: one call's programs are equally long
                t, x_t = batch.table["t"][batch.row], batch.x
                with np.errstate(all="ignore"):  # what overflows, the check below refuses
                    self._executor.step(batch)
                progress(phase, c.start, t, x_t, batch)
            out[c] = batch.x
            if batch.x_prev is not None:
                before = np.empty_like(x) if before is None else before
                before[c] = batch.x_prev
        if not np.isfinite(out).all():
            cause = "a strength is too large, or the engine's arithmetic overflowed"
            raise EngineError(f"{phase}: the result is not finite: {cause}")
        return out, before


def start(
    name: str, given: Float32 | None, count: int, shape: tuple[int, ...], seed: int, stream: Stream, first: int = 0
) -> Float32:
    """The noise that images first … first + count − 1 start from, float32 [count, *shape]: from the seed, or given."""
    if given is not None:
        check_array(name, given, (count, *shape))
        return given
    return np.stack([normal(shape, seed, draw=0, image=first + i, stream=stream) for i in range(count)])


def draws(
    seed: int, given: Float32 | None, numbers: Sequence[int] | None, programs: list[Program], shape: tuple[int, ...]
) -> Noise:
    """Where the draws of a call's rows come from, checked. given: float32 [rows that draw, N, *shape]."""
    count = len(programs)
    if given is not None:
        check_array("noise", given, (max(int(p.rows["draws"].sum()) for p in programs), count, *shape))
    image = np.arange(count) if numbers is None else np.array(list(numbers))
    whole = image.dtype.kind in "iu" and image.shape == (count,) and image.min() >= 0 and image.max() < 2**32
    if not whole or (given is not None and numbers is not None):
        raise ArgumentError(
            f"image_numbers: expected {count} whole numbers from 0 to 2^32 - 1, and no noise beside them"
        )
    return Noise(check_seed(seed), image.astype(np.int64), given)
