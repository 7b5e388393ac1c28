"""Executors run programs on an engine: `cpu` keeps the state in NumPy arrays, `cuda` on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..deltas import Edit
from ..engines import Engine
from ..noise import Noise
from ..program import Program

Float32 = NDArray[np.float32]
# What watches a run, after each network evaluation: t (int32 [n]) and x that it saw, P, and h or None; see `runs.Step`
Observe = Callable[[NDArray[np.int32], Float32, Float32, NDArray[Any] | None], None]


class Executor(Protocol):
    """What a `runs.Runner` needs: batches run to their end. on_device: whether it takes and gives arrays on a GPU."""

    @property
    def on_device(self) -> bool: ...
    @property
    def engine(self) -> Engine: ...

    def run(
        self,
        out: Any,
        x: Any,
        programs: Sequence[Program],
        noise: Noise,
        *,
        z_sem: Float32 | None = None,
        edits: Sequence[Edit] | None = None,
        x_prev: Float32 | None = None,
        observe: Observe | None = None,
    ) -> Float32 | None:
        """Runs x (float32 [N, …]) through programs, one for each sample, and writes the last states into `out`.

        Returns the states before them where x_prev was given or a program uses it. The rest as `cpu.Batch` has it.
        """
        ...

    def encode_z(self, x: Any) -> Float32:
        """z_sem (float32 [N, D]) of images, by the encoder."""
        ...

    def images(self, images: Any) -> Any:
        """Arrays on a GPU in the form that `run` takes, or on the host as `image.load_images` takes them."""
        ...

    def empty(self, shape: Sequence[int]) -> Any:
        """Memory on the GPU for `run` to write into, float32."""
        ...
