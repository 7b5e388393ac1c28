"""What `on_step` can keep of a run: h, and the pictures along the way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .checks import check_whole
from .program import Program
from .runs import OnStep, Step

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
            self.table[step.image, np.searchsorted(self.timesteps, step.t)] = step.h
        return None if self.then is None else self.then(step)


class Timeline:
    """Keeps P and x at `frames` rows of each image's decode, spread evenly, its first and last among them.

    frames: by default 8, or all where a program has fewer rows. Passes the steps on to `then`.
    """

    def __init__(self, frames: int | None = None, then: OnStep | None = None) -> None:
        if frames is not None:
            check_whole("frames", frames, 1)
        self.then, self._frames = then, frames
        self._rows: dict[int, list[int]] = {}  # how long a program is → those of its rows that are kept
        # number of the image → how long its program is; and t, P and x by row
        self._kept: dict[int, tuple[int, dict[int, tuple[int, Float32, Float32]]]] = {}

    def __call__(self, step: Step) -> bool | None:
        if step.phase == "decode":
            each = zip(step.image.tolist(), step.row.tolist(), step.rows.tolist(), strict=True)
            for i, (image, row, rows) in enumerate(each):
                if row in self._rows_of(rows):
                    _, kept = self._kept.setdefault(image, (rows, {}))
                    kept[row] = int(step.t[i]), step.x_0[i].copy(), step.x[i].copy()
        return None if self.then is None else self.then(step)

    def _rows_of(self, rows: int) -> list[int]:
        if rows not in self._rows:
            frames = min(FRAMES, rows) if self._frames is None else self._frames
            check_whole("frames", frames, 1, rows)
            self._rows[rows] = np.linspace(0, rows - 1, frames).round().astype(int).tolist()
        return self._rows[rows]

    @property
    def timesteps(self) -> NDArray[np.int64]:
        """int64 [F], of the frames; of an image with the longest program, where programs differ in their rows."""
        rows, kept = max(self._kept.values(), key=lambda each: each[0])
        return np.array([kept[row][0] for row in self._rows_of(rows)], np.int64)

    def frames(self) -> tuple[Float32, Float32]:
        """P and x at the kept rows of the whole run, float32 [F, N, 3, H, W] each, in the model's range."""
        images = [[kept[row] for row in self._rows_of(rows)] for _, (rows, kept) in sorted(self._kept.items())]
        p = np.stack([np.stack([p for _, p, _ in image]) for image in images], axis=1)
        return p, np.stack([np.stack([x for *_, x in image]) for image in images], axis=1)
