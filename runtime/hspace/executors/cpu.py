"""The CPU executor: batches on an engine, with the state in NumPy arrays.

Every sample of a batch has its own row, so requests at different steps and with different edits share one
network evaluation. An asymmetric row needs ε and ε̃: the trunk runs once, and the head once, on [h, h + Δh] of
the samples that need it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..arrays import Float32
from ..batch import Moved, Network, Observe, Result, Sample, check_batch, check_left, free_slot, occupant
from ..deltas import inject
from ..engines import Engine, unet
from ..manifest import Component
from ..noise import NoiseStream, normal
from ..program import COEFFICIENTS, Branch, Program, Rows, concatenate


class Executor:
    """See `batch.Executor`. components: the manifest's, whose shapes say what samples are."""

    on_device = False

    def __init__(self, engine: Engine, components: Mapping[str, Component]) -> None:
        self.engine, self._components = engine, components

    def batch(self, network: Network, capacity: int) -> AbstractContextManager[Batch]:
        check_batch(network, capacity, self._components)
        inputs = {t.name: t for t in self._components["latent" if network == "latent" else "trunk"].inputs}
        x, z_sem = (None if t is None else tuple(map(int, t.shape[1:])) for t in map(inputs.get, ("x", "z_sem")))
        if network == "latent":  # z_sem itself is the state
            x, z_sem = z_sem, None
        assert x is not None  # the manifest's checks say so
        return nullcontext(Batch(self.engine, x, None if z_sem is None else z_sem[0], capacity))

    def encode_z(self, x: Float32) -> Float32:
        z_sem: Float32 = np.asarray(self.engine.run("encoder", {"x": x})[0])
        return z_sem


class Batch:
    """See `batch.Batch`. shape: of the state; z_sem: its length, where the network takes it."""

    def __init__(self, engine: Engine, shape: tuple[int, ...], z_sem: int | None, capacity: int) -> None:
        self.engine, self.capacity = engine, capacity
        self._shape, self._z_size = shape, z_sem
        self._x: Float32 = np.zeros((capacity, *shape), np.float32)
        self._x_0 = np.zeros_like(self._x)  # each sample's last P
        self._x_prev: Float32 | None = None  # from the first sample on that keeps it
        self._z_sem = None if z_sem is None else np.zeros((capacity, z_sem), np.float32)
        self._samples: list[Sample | None] = [None] * capacity
        self._row, self._rows = np.zeros(capacity, np.int64), np.zeros(capacity, np.int64)  # 0 of 0: a free slot
        # the rows of all programs, and where each slot's begin
        self._programs: dict[int, tuple[Program, int]] = {}
        self._first = np.zeros(capacity, np.int64)
        self._table: Rows
        self._draws: NDArray[np.int64]
        self._coefficients: Float32  # [coefficient, row], to broadcast over the state
        self._used: NDArray[np.bool_]  # [row, coefficient], where they are not zero
        # the slots that have rows left, and how many steps it is until that changes; 0: to be found out
        self._active: NDArray[np.int64] = np.zeros(0, np.int64)
        self._steady = 0

    def __len__(self) -> int:
        return self.capacity - self._samples.count(None)

    def join(self, sample: Sample) -> int:
        slot = free_slot(self._samples)
        sample.check(self._shape, self._z_size)
        self._samples[slot], self._steady = sample.own(), 0
        self._row[slot], self._rows[slot] = 0, len(sample.program)
        self._x[slot], self._x_0[slot] = sample.x, 0
        if self._z_sem is not None:
            self._z_sem[slot] = sample.z_sem
        if self._x_prev is None and sample.keeps_x_prev:
            self._x_prev = self._x.copy()
        if self._x_prev is not None:
            self._x_prev[slot] = sample.x if sample.x_prev is None else sample.x_prev
        return slot

    def leave(self, slot: int, out: Any = None) -> Result:
        sample = occupant(self._samples, slot)
        row, rows, x = int(self._row[slot]), int(self._rows[slot]), self._x[slot]
        x_prev = self._x_prev[slot].copy() if self._x_prev is not None and sample.keeps_x_prev else None
        self._samples[slot], self._steady = None, 0
        self._row[slot] = self._rows[slot] = 0
        check_left(row, rows, all(a is None or np.isfinite(a).all() for a in (x, x_prev)))
        out = np.empty_like(x) if out is None else out
        out[...] = x
        return Result(out, x_prev)

    def step(self, observe: Observe | None = None) -> Sequence[int]:
        if not self._steady:
            self._lay_out()
        active = self._active
        if not active.size:
            return []
        every = len(active) == self.capacity
        here = slice(None) if every else active
        row = self._row[active]
        place = self._first[active] + row
        rows, x = self._table[place], self._x[here]
        with np.errstate(all="ignore"):  # what overflows shows when its sample leaves
            eps, eps_edit, h = self._predict(active, rows, x)
            x_next, p = self._update(active, here, place, rows["clip"], x, eps, eps_edit)
        if every:
            self._x, self._x_0 = x_next, p
            self._x_prev = None if self._x_prev is None else x
        else:
            if self._x_prev is not None:
                self._x_prev[active] = x
            self._x[active], self._x_0[active] = x_next, p
        self._row[active] += 1
        self._steady -= 1
        finished: list[int] = [] if self._steady else active[self._row[active] == self._rows[active]].tolist()
        if observe is not None:
            observe(Moved(active, row, self._rows[active], rows["t"], x, p, h))
        return finished

    def rewind(self) -> None:
        """Puts every sample back to its first row, with the state that it has: what times a step repeats it."""
        self._row[:], self._steady = 0, 0

    def _lay_out(self) -> None:
        """Finds the slots that have rows left, and puts their programs into one table."""
        self._active = np.flatnonzero(self._row < self._rows)
        if not self._active.size:
            return
        programs = {int(slot): sample.program for slot in self._active if (sample := self._samples[slot]) is not None}
        if any(id(p) not in self._programs for p in programs.values()):
            distinct = list({id(p): p for p in programs.values()}.values())
            self._table, self._draws, ends = concatenate(distinct)
            self._programs = {id(p): (p, int(end) - len(p)) for p, end in zip(distinct, ends, strict=True)}
            each = np.stack([self._table[name] for name in COEFFICIENTS])
            self._used = np.ascontiguousarray((each != 0).T)
            self._coefficients = each.reshape(*each.shape, *[1] * len(self._shape))
        for slot, program in programs.items():
            self._first[slot] = self._programs[id(program)][1]
        self._steady = int((self._rows - self._row)[self._active].min())

    def _update(
        self,
        active: NDArray[np.int64],
        here: slice | NDArray[np.int64],
        place: NDArray[np.int64],
        clip: NDArray[np.uint8],
        x: Float32,
        eps: Float32,
        eps_edit: Float32,
    ) -> tuple[Float32, Float32]:
        """x_next and P of the active samples, whose rows are at `place` in the table: see `program`."""
        columns = self._coefficients[:, place]
        alpha, sigma, c_x, c_x0, c_eps, c_x_prev, c_x0_prev, c_noise, _ = columns
        _, _, has_x, has_x0, has_eps, has_x_prev, has_x0_prev, has_noise, _ = self._used[place].sum(axis=0).tolist()
        p = np.multiply(sigma, eps_edit)
        np.subtract(x, p, out=p)
        np.divide(p, alpha, out=p)
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
        if has_x0 == len(p):
            x_next = np.multiply(c_x0, p)
        else:
            x_next = np.zeros_like(p)
            _add(x_next, c_x0, p, has_x0)
        if has_x:
            _add(x_next, c_x, x, has_x)
        if has_eps:
            _add(x_next, c_eps, eps, has_eps)
        if has_x_prev and self._x_prev is not None:
            _add(x_next, c_x_prev, self._x_prev[here], has_x_prev)
        if has_x0_prev:
            _add(x_next, c_x0_prev, self._x_0[here], has_x0_prev)
        for i in np.flatnonzero(c_noise) if has_noise else ():
            x_next[i] += c_noise[i] * self._draw(int(active[i]), int(self._draws[place[i]]))
        return x_next, p

    def _draw(self, slot: int, number: int) -> Float32:
        """Draw `number` of the sample in that slot."""
        sample = self._samples[slot]
        assert sample is not None
        if sample.noise is not None:
            return np.asarray(sample.noise[number])
        return normal(self._shape, sample.seed, draw=number, image=sample.image, stream=NoiseStream.STEP)

    def _predict(
        self, active: NDArray[np.int64], rows: Rows, x: Float32
    ) -> tuple[Float32, Float32, NDArray[Any] | None]:
        """ε and ε̃ of the active samples, float32 of x's shape, the same array where no row is asymmetric; and h."""
        if x.ndim == 2:  # the latent DDIM: z_sem itself is the state
            (eps,) = self.engine.run("latent", {"z_sem": x, "t": rows["t"]})
            return _float32(eps), _float32(eps), None
        z_sem = None if self._z_sem is None else self._z_sem[active]
        with unet.trunk(self.engine, x, rows["t"], z_sem) as features:
            h = bottleneck = features.h
            source = np.arange(len(active))
            branch = rows["branch"]
            edits = {i: sample.edit for i in branch.nonzero()[0] if (sample := self._samples[active[i]]) is not None}
            edited = [i for i, edit in edits.items() if edit.deltas]
            asymmetric = [i for i in edited if branch[i] == Branch.ASYMMETRIC]
            if edited:
                h = _float32(h)
                moved = h[edited] + inject(
                    h[edited],
                    _float32(features.temb[edited]),
                    rows["t"][edited],
                    rows["edit_scale"][edited],
                    [edits[i] for i in edited],
                )
                symmetric = branch[edited] == Branch.SYMMETRIC
                if symmetric.any():
                    h = h.copy()
                    h[np.compress(symmetric, edited)] = moved[symmetric]
                h = np.concatenate([h, moved[~symmetric]])
                source = np.append(source, np.array(asymmetric, dtype=source.dtype))
            out = _float32(unet.head(self.engine, features, h, source))
        eps = out[: len(active)]
        if not asymmetric:
            return eps, eps, bottleneck
        eps_edit = eps.copy()
        eps_edit[asymmetric] = out[len(active) :]
        return eps, eps_edit, bottleneck


def _add(total: Float32, c: Float32, values: Float32, used: int) -> None:
    """total += c·values; of samples whose c is zero the values are not looked at, since they need not be finite.

    c: float32 [n, 1, …], of which `used` are not zero.
    """
    if used == len(c):
        total += c * values
    else:
        i = np.flatnonzero(c)
        total[i] += c[i] * values[i]


def _float32(x: NDArray[Any]) -> Float32:
    return x.astype(np.float32, copy=False)
