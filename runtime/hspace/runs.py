"""Runs: programs over any number of images, a batch at a time, with progress, cancellation and noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .checks import check_array
from .deltas import Edit
from .engines import Engine
from .errors import ArgumentError, Cancelled, NotFinite
from .executors import Executor, Observe, cpu
from .latent import Latent
from .noise import Noise, Stream, check_seed, normal
from .program import Program

Float32 = NDArray[np.float32]


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

    def observe(self, phase: str, first: int) -> Observe | None:
        """What watches a batch whose first image has that number; None where nobody asked."""
        if self.on_step is None:
            return None
        on_step = self.on_step

        def observe(t: NDArray[np.int32], x: Float32, x_0: Float32, h: NDArray[Any] | None) -> None:
            self.index += 1
            if on_step(Step(phase, self.index, self.total, first, t, x, x_0, h)) is False:
                raise Cancelled(f"cancelled by on_step at step {self.index} of {self.total}")

        return observe


class OnHost:
    """The CPU executor as a `Runner` needs it."""

    on_device = False

    def __init__(self, engine: Engine) -> None:
        self.engine, self._executor = engine, cpu.Executor(engine)

    def run(
        self,
        out: Float32,
        x: Float32,
        programs: Sequence[Program],
        noise: Noise,
        *,
        z_sem: Float32 | None = None,
        edits: Sequence[Edit] | None = None,
        x_prev: Float32 | None = None,
        observe: Observe | None = None,
    ) -> Float32 | None:
        batch = cpu.Batch(x, programs, noise, z_sem, edits, x_prev)
        while batch.active.size:
            t, x_t = batch.table["t"][np.minimum(batch.row, batch.end - 1)], batch.x
            with np.errstate(all="ignore"):  # what overflows, the runner refuses
                self._executor.step(batch)
            if observe is not None:
                observe(t, x_t, batch.x_0, batch.h)
        out[...] = batch.x
        return batch.x_prev

    def encode_z(self, x: Float32) -> Float32:
        found: Float32 = np.asarray(self.engine.run("encoder", {"x": x})[0])
        return found

    def images(self, images: Any) -> Any:
        raise ArgumentError(
            "images: found an array on a GPU, and this editor is on the CPU (device='cuda:0' opens one)"
        )

    def empty(self, shape: Sequence[int]) -> Any:
        raise ArgumentError("output: found 'device', and this editor is on the CPU (device='cuda:0' opens one)")


class Runner:
    """Runs programs on an executor, `batch_size` samples at a time. Holds no state of a run."""

    def __init__(self, executor: Executor, size: int, batch_size: int | None) -> None:
        self.batch_size = batch_size or max(1, executor.engine.batch_pixels // size**2)
        self.executor = executor

    def evaluations(self, count: int, *programs: Program) -> int:
        """How many network evaluations it takes to run `count` samples through all of `programs`."""
        return sum(map(len, programs)) * len(self._slices(count))

    def encode_z(self, x: Any) -> Float32:
        """z_sem (float32 [N, D]) of images, by the encoder."""
        each = [self.executor.encode_z(x[c]) for c in self._slices(len(x))]
        found: Float32 = np.concatenate(each).astype(np.float32, copy=False)
        return found

    def encode(
        self, x: Any, z_sem: Float32 | None, program: Program, progress: Progress
    ) -> tuple[Float32, Float32 | None]:
        """x_T of images, and the state before it where the program uses the state before."""
        return self._run("encode", Noise(0, np.arange(len(x))), x, [program] * len(x), progress, z_sem=z_sem)

    def decode(
        self,
        latent: Latent,
        edits: list[Edit],
        programs: list[Program],
        noise: Noise,
        progress: Progress,
        *,
        on_device: bool = False,
    ) -> Any:
        """Images from codes, with the deltas of `edits`; its directions are the caller's. float32, where asked for
        on the device: a DeviceArray.
        """
        given = {"z_sem": latent.z_sem, "x_prev": latent.x_prev}
        out = self.executor.empty(latent.x_T.shape) if on_device else None
        return self._run("decode", noise, latent.x_T, programs, progress, edits=edits, out=out, **given)[0]

    def sample_z(self, noise: Float32, program: Program, progress: Progress) -> Float32:
        """Normalised z_sem from Gaussian noise, by the latent DDIM."""
        z: Float32 = self._run("latent", Noise(0, np.arange(len(noise))), noise, [program] * len(noise), progress)[0]
        return z

    def _slices(self, n: int) -> list[slice]:
        return [slice(i, min(i + self.batch_size, n)) for i in range(0, n, self.batch_size)]

    def _run(
        self,
        phase: str,
        noise: Noise,
        x: Any,
        programs: list[Program],
        progress: Progress,
        *,
        out: Any = None,
        z_sem: Float32 | None = None,
        edits: list[Edit] | None = None,
        x_prev: Float32 | None = None,
    ) -> tuple[Any, Float32 | None]:
        """The last states, in `out` or a new array, and those before them where a program uses them."""
        out, before = np.empty(x.shape, np.float32) if out is None else out, None
        for c in self._slices(len(x)):
            found = self.executor.run(
                out[c],
                x[c],
                programs[c],
                replace(noise, image=noise.image[c]),
                z_sem=None if z_sem is None else z_sem[c],
                edits=None if edits is None else edits[c],
                x_prev=None if x_prev is None else x_prev[c],
                observe=progress.observe(phase, c.start),
            )
            if found is not None:
                before = np.empty(x.shape, np.float32) if before is None else before
                before[c] = found
        if not np.isfinite(out if isinstance(out, np.ndarray) else out.numpy()).all():
            cause = "a strength is too large, or the engine's arithmetic overflowed"
            raise NotFinite(f"{phase}: the result is not finite: {cause}")
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
