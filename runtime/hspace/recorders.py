"""What `on_step` can keep of a run: h, and the pictures along the way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .checks import check_whole
from .program import Program
from .runs import OnStep, Step

Float32 = NDArray[np.float32]
FRAMES = 8  # of a timeline, where it has so many


class HRecorder:
    """Keeps the h of every step of a phase, and passes the steps on to `then`.

    program: what the phase runs; count: of how many images; shape: h's (C, h, w). timesteps: int64 [K], ascending;
    table: float32 [count, K, C, h, w], zeros where the run has not been yet.
    """

    def __init__(
        self, phase: str, program: Program, count: int, shape: tuple[int, int, int], then: OnStep | None = None
    ) -> None:
        self.timesteps: NDArray[np.int64] = np.unique(program.rows["t"].astype(np.int64))
        self.table = np.zeros((count, len(self.timesteps), *shape), dtype=np.float32)
        self.then = then
        self._phase = phase

    def __call__(self, step: Step) -> bool | None:
        if step.phase == self._phase and step.h is not None:
            self.table[step.first : step.first + len(step.h), np.searchsorted(self.timesteps, step.t[0])] = step.h
        return None if self.then is None else self.then(step)


class Timeline:
    """Keeps P and x at `frames` steps of a decode, spread evenly, its first and last among them.

    frames: by default 8, or all where the program has fewer rows. program: the decode's. timesteps: int64 [F],
    of the steps that are kept. Passes the steps on to `then`.
    """

    def __init__(self, frames: int | None, program: Program, then: OnStep | None = None) -> None:
        frames = min(FRAMES, len(program)) if frames is None else frames
        check_whole("frames", frames, 1, len(program))
        self._rows: list[int] = np.linspace(0, len(program) - 1, frames).round().astype(int).tolist()
        self.timesteps: NDArray[np.int64] = program.rows["t"][self._rows].astype(np.int64)
        self.then = then
        self._length, self._seen = len(program), 0
        self._kept: dict[int, list[tuple[Float32, Float32]]] = {row: [] for row in self._rows}

    def __call__(self, step: Step) -> bool | None:
        if step.phase == "decode":
            row = self._seen % self._length
            self._seen += 1
            if row in self._kept:
                self._kept[row].append((step.x_0.copy(), step.x.copy()))
        return None if self.then is None else self.then(step)

    def frames(self) -> tuple[Float32, Float32]:
        """P and x at the kept steps of the whole run, float32 [F, N, 3, H, W] each, in the model's range."""
        p, x = (np.stack([np.concatenate([kept[i] for kept in self._kept[row]]) for row in self._rows]) for i in (0, 1))
        return p, x
