"""The CPU executor: programs on an engine, with the state in NumPy arrays.

Every sample of a batch has its own row, so requests at different steps and with different edits share one
network evaluation. An asymmetric row needs ε and ε̃: the trunk runs once, and the head once, on [h, h + Δh] of
the samples that need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..deltas import Edit, inject
from ..engines import Engine
from ..errors import ArgumentError
from ..noise import Noise
from ..program import COEFFICIENTS, Branch, Program, Rows, concatenate

Float32 = NDArray[np.float32]


@dataclass(eq=False)
class Batch:
    """Samples on their way through their programs; `Executor.step` moves each by a row.

    x: float32 [N, …], the state; the executor replaces it. programs: one per sample. z_sem: float32 [N, D] where
    the network takes it. edits: one per sample. noise: the draws. x_prev: the state before x, for rows with c_x_prev.
    x_0: float32 [N, …], each sample's last P; zeros before the first step. h: what the trunk made of the samples that
    the last step moved, [n, C, H, W] before any injection; None before the first step, and in the latent DDIM.
    """

    x: Float32
    programs: Sequence[Program]
    noise: Noise
    z_sem: Float32 | None = None
    edits: Sequence[Edit] | None = None
    x_prev: Float32 | None = None
    x_0: Float32 = field(init=False)
    h: NDArray[Any] | None = field(init=False, default=None)
    table: Rows = field(init=False, repr=False)
    coefficients: Float32 = field(init=False, repr=False)
    draws: NDArray[np.int64] = field(init=False, repr=False)
    row: NDArray[np.int64] = field(init=False)
    end: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.x = np.array(self.x)  # the caller keeps its own
        if len(self.programs) != len(self.x):
            raise ArgumentError(f"programs: found {len(self.programs)}, expected one for each of {len(self.x)} samples")
        distinct = list({id(p): p for p in self.programs}.values())
        self.table, self.draws, ends = concatenate(distinct)
        each = np.stack([self.table[name] for name in COEFFICIENTS])  # [coefficient, row], to broadcast over x
        self.coefficients = each.reshape(*each.shape, *[1] * (self.x.ndim - 1))
        which = {id(p): i for i, p in enumerate(distinct)}
        index = [which[id(p)] for p in self.programs]
        self.end = ends[index]
        self.row = self.end - np.array([len(p) for p in self.programs])
        self.x_0 = np.zeros_like(self.x)
        if self.x_prev is not None or self.table["c_x_prev"].any():
            self.x_prev = np.array(self.x if self.x_prev is None else self.x_prev)

    @property
    def active(self) -> NDArray[np.int64]:
        """int64 [≤ N]: the samples that have rows left."""
        return np.flatnonzero(self.row < self.end)


class Executor:
    """Runs batches on an engine. Holds no state of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def step(self, batch: Batch) -> None:
        """One network evaluation: moves every sample that has a row left by that row."""
        active = batch.active
        every = len(active) == len(batch.x)
        here = slice(None) if every else active
        rows, x = batch.table[batch.row[active]], batch.x[here]
        eps, eps_edit = self._predict(batch, active, rows, x)

        columns = batch.coefficients[:, batch.row[active]]
        alpha, sigma, c_x, c_x0, c_eps, c_x_prev, c_x0_prev, c_noise, _ = columns
        used: NDArray[np.bool_] = np.any(columns.reshape(len(columns), -1), axis=1)
        _, _, has_x, _, has_eps, has_x_prev, has_x0_prev, has_noise, _ = used
        p = np.multiply(sigma, eps_edit)
        np.subtract(x, p, out=p)
        np.divide(p, alpha, out=p)
        clip = rows["clip"]
        least, most = clip.min(), clip.max()
        if least:
            np.clip(p, -1, 1, out=p)
        elif most:
            p[clip != 0] = np.clip(p[clip != 0], -1, 1)
        if most == 2:
            both = clip == 2
            own = np.clip((x[both] - sigma[both] * eps[both]) / alpha[both], -1, 1)
            eps = eps.copy()
            eps[both] = (x[both] - alpha[both] * own) / sigma[both]
        x_next = np.multiply(c_x0, p)
        if has_x:
            x_next += c_x * x
        if has_eps:
            x_next += c_eps * eps
        if has_x_prev and batch.x_prev is not None:
            x_next += c_x_prev * batch.x_prev[here]
        if has_x0_prev:
            x_next += c_x0_prev * batch.x_0[here]
        for i in np.flatnonzero(c_noise) if has_noise else ():
            sample = int(active[i])
            draw = batch.noise.draw(int(batch.draws[batch.row[sample]]), sample, x.shape[1:])
            x_next[i] += c_noise[i] * draw
        if every:
            batch.x, batch.x_0 = x_next, p
            batch.x_prev = None if batch.x_prev is None else x
        else:
            if batch.x_prev is not None:
                batch.x_prev[active] = x
            batch.x[active], batch.x_0[active] = x_next, p
        batch.row[active] += 1

    def _predict(self, batch: Batch, active: NDArray[np.int64], rows: Rows, x: Float32) -> tuple[Float32, Float32]:
        """ε and ε̃ of the active samples, float32 of x's shape; the same array where no row is asymmetric."""
        if x.ndim == 2:  # the latent DDIM: z_sem itself is the state
            (eps,) = self.engine.run("latent", {"z_sem": x, "t": rows["t"]})
            return _float32(eps), _float32(eps)
        given: dict[str, NDArray[Any]] = {} if batch.z_sem is None else {"z_sem": batch.z_sem[active]}
        h, temb, *skips = self.engine.run("trunk", {"x": x, "t": rows["t"], **given})
        batch.h = h
        source = np.arange(len(active))
        branch = rows["branch"]
        edited = [i for i in branch.nonzero()[0] if batch.edits is not None and batch.edits[active[i]].deltas]
        asymmetric = [i for i in edited if branch[i] == Branch.ASYMMETRIC]
        if edited:
            assert batch.edits is not None
            edits = [batch.edits[active[i]] for i in edited]
            h = _float32(h)
            moved = h[edited] + inject(
                h[edited], _float32(temb[edited]), rows["t"][edited], rows["edit_scale"][edited], edits
            )
            symmetric = branch[edited] == Branch.SYMMETRIC
            if symmetric.any():
                h = h.copy()
                h[np.compress(symmetric, edited)] = moved[symmetric]
            h = np.concatenate([h, moved[~symmetric]])
            source = np.append(source, np.array(asymmetric, dtype=source.dtype))
        inputs = {"h": h, "temb": temb, **{f"skip_{i}": s for i, s in enumerate(skips)}, "source": source, **given}
        (out,) = self.engine.run("head", inputs)
        out = _float32(out)
        eps = out[: len(active)]
        if not asymmetric:
            return eps, eps
        eps_edit = eps.copy()
        eps_edit[asymmetric] = out[len(active) :]
        return eps, eps_edit


def _float32(x: NDArray[Any]) -> Float32:
    return x.astype(np.float32, copy=False)
