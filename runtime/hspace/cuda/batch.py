"""Batches on a GPU: see `batch.Batch`. The state is there from a sample's joining to its leaving."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..batch import Moved, Observe, Result, Sample, check_left, free_slot, occupant
from ..deltas import Edit, inject
from . import steps
from .arrays import DeviceArray
from .steps import GraphKey, Script
from .workspace import Workspace

if TYPE_CHECKING:
    from ..executors.cuda import Executor


class Batch:
    """Samples in the slots of a workspace. capacity: the least power of two that holds what was asked for.

    A step gathers a row of every sample into a block in a ring of pinned memory, uploads it to its fixed place, and
    enqueues the step. It waits for nothing: programs say when a sample is finished. What waits: `leave` for the result,
    `observe` for copies of x, P and h, and a Δh that no kernel knows (`deltas.Content`) for a copy of h, from which the
    host computes it. Free and finished slots have t = −1 in their records, and 0 for the network.

    key: of the last step.
    """

    def __init__(self, executor: Executor, workspace: Workspace) -> None:
        self._executor, self.workspace, self._stream = executor, workspace, executor.stream
        self.capacity = workspace.n
        self._scripts: list[Script | None] = [None] * workspace.n
        self._running: list[Script] = []  # those with rows left, by slot
        self.key = GraphKey()

    def __len__(self) -> int:
        return self.capacity - self._scripts.count(None)

    @property
    def deltas(self) -> set[int]:
        """The ids of what its samples' edits need on the device."""
        return {id(delta) for script in self._scripts if script is not None for delta, _ in script.known}

    def join(self, sample: Sample) -> int:
        slot, work = free_slot(self._scripts), self.workspace
        sample.check(work.tensors["x"][0], work.tensors["z_sem"][0][0] if "z_sem" in work.tensors else None)
        script = Script(sample.own(), slot)
        self._scripts[slot] = script  # so that what it needs on the device stays there
        try:
            self._enter(script, sample)
        except BaseException:
            self._scripts[slot] = None
            raise
        self._running = [each for each in self._scripts if each is not None and each.row < len(each)]
        return slot

    def _enter(self, script: Script, sample: Sample) -> None:
        """Makes the sample's tables, and puts its arrays into its slot."""
        work, slot = self.workspace, script.slot
        with self._executor.working(work):
            others = [other for other in self._scripts if other not in (None, script)]
            layout = work.layout
            work.reserve(
                pairs=sum(each.blocks for each in (*others, script)),
                terms=script.width,
                norm=script.norm,
                hosted=bool(script.hosted),
                noise=sample.noise is not None,
            )
            if work.layout is not layout:
                for other in others:
                    other.lay_out(work.layout)
            hosted = work.place("hosted", slot) if script.hosted else 0
            script.compile(work.layout, self._executor.address, hosted, steps.stride(work.h_elements))
            self._fill(slot, sample)

    def _fill(self, slot: int, sample: Sample) -> None:
        """Puts the sample's arrays into its slot, in stream order."""
        work, put = self.workspace, self._executor.put
        x = work.place("x", slot)
        put(x, sample.x)
        if sample.x_prev is not None:
            put(work.place("x_prev", slot), sample.x_prev)
        elif sample.keeps_x_prev:
            self._stream.copy(work.place("x_prev", slot), x, sample.x.nbytes)
        self._stream.zero(work.place("p", slot), sample.x.nbytes)
        if sample.z_sem is not None:
            put(work.place("z_sem", slot), sample.z_sem)
        work.cast(slot)

    def step(self, observe: Observe | None = None) -> Sequence[int]:
        running, work = self._running, self.workspace
        if not running:
            return []
        with self._executor.working(work):
            x = None if observe is None else self._fetch("x")
            number = work.ring.take()
            self.key = steps.write(work.blocks[number], work.layout, running, observed=observe is not None)
            for script in running:
                if script.given[script.row]:
                    assert script.sample.noise is not None
                    draw = script.sample.noise[int(script.draws[script.row])]
                    self._executor.put(work.place("z", script.slot), draw)
            work.ring.upload(work.at["t"])
            hosted = [script for script in running if script.hosted and script.edited[script.row]]
            if observe is None and not hosted:
                self._executor.enqueue(work, self.key)
                return self._advance()
            h = self._in_halves(hosted)
            p = None if observe is None else self._fetch("p")
            before = [(script.slot, script.row, len(script), script.t[script.row]) for script in running]
            finished = self._advance()
        if observe is not None:
            assert x is not None and p is not None
            slot, row, rows, t = np.array(before).T
            observe(Moved(slot, row, rows, t.astype(np.int32), x[slot], p[slot], None if h is None else h[slot]))
        return finished

    def _in_halves(self, hosted: list[Script]) -> NDArray[Any] | None:
        """Enqueues the step with a look at h in between. Returns h; None in the latent DDIM."""
        work = self.workspace
        front, back = work.launches(self.key)
        for enqueue in front:
            enqueue(self._stream)
        h = self._fetch("h") if front else None
        if hosted and h is not None:
            temb, slots = self._fetch("temb"), [script.slot for script in hosted]
            rows = np.array([script.rows[script.row] for script in hosted])
            edits = [Edit(deltas=script.hosted) for script in hosted]
            wide = h[slots].astype(np.float32), temb[slots].astype(np.float32)
            for slot, delta in zip(slots, inject(*wide, rows["t"], rows["edit_scale"], edits), strict=True):
                self._stream.upload(work.place("hosted", slot), delta)
        for enqueue in back:
            enqueue(self._stream)
        return h

    def _advance(self) -> list[int]:
        finished = []
        for script in self._running:
            script.row += 1
            if script.row == len(script):
                finished.append(script.slot)
        if finished:
            self._running = [script for script in self._running if script.row < len(script)]
        return finished

    def leave(self, slot: int, out: Any = None) -> Result:
        script = occupant(self._scripts, slot)
        self._scripts[slot] = None
        self._running = [each for each in self._running if each is not script]
        check_left(script.row, len(script), True)
        work = self.workspace
        shape = work.tensors["x"][0]
        with self._executor.working(work):
            x = self._stream.download(work.place("x", slot), shape)
            x_prev = self._stream.download(work.place("x_prev", slot), shape) if script.keeps_x_prev else None
            finite = bool(np.isfinite(x).all()) and (x_prev is None or bool(np.isfinite(x_prev).all()))
            if finite and isinstance(out, DeviceArray):
                self._stream.copy(out.address, work.place("x", slot), out.nbytes)
                self._stream.synchronise()
        check_left(script.row, len(script), finite)
        if out is None:
            return Result(x, x_prev)
        if not isinstance(out, DeviceArray):
            out[...] = x
        return Result(out, x_prev)

    def end(self) -> None:
        """Takes its slots away: the workspace may be another batch's from now on."""
        self.capacity, self._scripts, self._running = 0, [], []

    def rewind(self) -> None:
        """Puts every sample back to its first row, with the state that it has: what times a step repeats it."""
        self._running = [script for script in self._scripts if script is not None]
        for script in self._running:
            script.row = 0

    def _fetch(self, name: str) -> NDArray[Any]:
        """A copy of a tensor of all slots."""
        shape, dtype = self.workspace.tensors[name]
        return self._stream.download(self.workspace.at[name], (self.capacity, *shape), dtype)
