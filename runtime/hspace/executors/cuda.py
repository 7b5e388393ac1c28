"""The CUDA executor: programs on an engine, with the state on a GPU from a run's first step to its last.

Before a run all that its steps need to know is staged on the device (`cuda.steps`); a step is then

    advance → trunk → [block_norm, block_hidden] → inject → head → linear_step        advance → latent → linear_step

and reads nothing of the host. Where the engine's work can be captured, a step is one launch of a CUDA graph, made the
second time that a kind of step comes up at a batch size; else `not_captured` says why, and its parts are launched one
by one. Without `observe` the host waits once a run, at its end. Two things cost more: `observe`, for which x, P and h
are copied to the host after every step, and a Δh that no kernel knows (`attributes.Content`), which the host computes
from a copy of h; such steps are not captured, and wait for their copies.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..cuda import steps as staging
from ..cuda.arrays import DeviceArray, from_foreign, stream_handle
from ..cuda.driver import Buffer, Device, OutOfMemory, Stream
from ..cuda.kernels import Kernels
from ..cuda.steps import Steps
from ..cuda.work import Step, Work
from ..deltas import Delta, DeltaBlock, DeltaTable, Edit, inject
from ..engines import DeviceEngine, open_device_engine
from ..errors import ArgumentError, BundleError, EngineError, ImageError
from ..manifest import Component
from ..noise import Noise
from ..program import Program
from . import Observe

Float32 = NDArray[np.float32]
_LOG = logging.getLogger("hspace")
_KEPT = 8  # batch sizes whose memory is kept for the next run


def open_executor(bundle: Bundle, engine: str, ordinal: int, stream: Any = None) -> Executor:
    """The executor on GPU number `ordinal`, with every component loaded there. stream: the host's, or None.

    Raises DeviceError where there is no driver, no such GPU or no kernel for it, or the stream is another context's;
    EngineError where the engine cannot run there.
    """
    device = Device(ordinal)
    queue = device.stream(stream_handle(stream))
    kernels = Kernels(device)
    kernels.load("advance")  # what cannot run here is refused before the networks are loaded
    return Executor(bundle, open_device_engine(engine, bundle, device, queue), device, queue, kernels)


class Executor:
    """Runs samples through programs on a GPU, a batch at a time; several threads take turns.

    not_captured: why steps are not CUDA graphs; None where they are.
    """

    on_device = True

    def __init__(self, bundle: Bundle, engine: DeviceEngine, device: Device, stream: Stream, kernels: Kernels) -> None:
        self.engine, self.device, self.stream, self.kernels = engine, device, stream, kernels
        self.components: Mapping[str, Component] = bundle.manifest.components
        self.size = bundle.manifest.image.size
        self.not_captured = engine.not_capturable
        if self.not_captured is not None:
            _LOG.info("device %s: steps are launched one by one: %s", device.name, self.not_captured)
        self._lock = threading.RLock()
        self._works: dict[tuple[str, int], Work] = {}
        self._resident: dict[int, tuple[Delta, Buffer]] = {}

    def close(self) -> None:
        """Frees what it holds on the device, the networks included. Arrays that it returned stay."""
        with self._lock:
            with self.device:
                self.stream.synchronise()
            self._free()
            self.engine.close()
            self.stream.close()

    # --- arrays -----------------------------------------------------------------------------------------

    def images(self, images: Any) -> Any:
        """Images on the device as a run takes them: float32 [N, 3, H, W] stays there, unread and so with its range
        unchecked; uint8 is copied to the host, where it is converted. Raises ArgumentError, ImageError, DeviceError.
        """
        with self._lock, self.device:
            array = from_foreign("images", images, self.device, self.stream)
            if array.dtype == np.uint8:
                return self.stream.download(array.address, array.shape, array.dtype)
        if array.dtype != np.float32 or array.ndim != 4 or array.shape[1] != 3 or not len(array):
            raise ArgumentError(
                f"images: found {array.dtype} {list(array.shape)} on the device, "
                "expected uint8 [N, H, W, 3] or float32 [N, 3, H, W]"
            )
        if array.shape[2:] != (self.size, self.size):
            found = f"{array.shape[3]}×{array.shape[2]}"
            raise ImageError(f"images: found {found} pixels, expected {self.size}×{self.size}")
        return array

    def empty(self, shape: Sequence[int]) -> DeviceArray:
        """New device memory for a run's result, float32."""
        with self._lock:
            return DeviceArray.empty(self.device, shape)

    # --- runs -------------------------------------------------------------------------------------------

    def encode_z(self, x: Any) -> Float32:
        """z_sem (float32 [N, D]) of images, by the encoder."""
        spec = self.components["encoder"]
        if {t.dtype for t in (*spec.inputs, *spec.outputs)} != {"float32"}:
            raise BundleError("encoder: expected float32 inputs and outputs")
        with self._lock, self.device, self._freeing(len(x), "image", lambda _: {}):
            work = self._work("image", len(x), 0, 0)
            self._put(work.at["x"], x)
            work.bound("encoder")(self.stream)
            return self.stream.download(work.at["z_sem"], (len(x), *work.shape("encoder", "z_sem")))

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
        """See `executors.Executor.run`. x and out may be DeviceArrays."""
        if len(programs) != len(x):
            raise ArgumentError(f"programs: found {len(programs)}, expected one for each of {len(x)} samples")
        steps, n, role = Steps(programs, edits), len(x), "latent" if x.ndim == 2 else "image"
        z = None if noise.given is None else noise.given[:, noise.image]  # [rows that draw, n, …]

        def needs(n: int) -> dict[str, int]:
            return Work.needs(self.components, role, n, steps, 0 if z is None else z.nbytes)

        with self._lock, self.device, self._freeing(n, role, needs):
            work = self._work(role, n, steps.pairs, steps.terms)
            for name, nbytes in needs(n).items():
                work.room(name, nbytes)
            keeps = {
                "has_x_prev": x_prev is not None or steps.uses("c_x_prev"),
                "has_p": observe is not None or steps.uses("c_x0_prev"),
                "has_z": z is not None and z.nbytes > 0,
            }
            self._start(work, x, z_sem, x_prev, steps, noise, z, keeps)
            before = None if observe is None else self._fetch(work, "x")
            for index, kind in enumerate(steps.kinds):
                step = Step(kind, **keeps)
                if observe is None and not kind.hosted:
                    self._enqueue(work, step)
                    continue
                front, back = work.launches(step)
                for enqueue in front:
                    enqueue(self.stream)
                h = None if work.role == "latent" else self._fetch(work, "h")
                if kind.hosted:
                    assert h is not None
                    self._compute(work, steps, index, h)
                for enqueue in back:
                    enqueue(self.stream)
                if observe is not None:
                    assert before is not None
                    after, p = self._fetch(work, "x"), self._fetch(work, "p")
                    observe(steps.rows["t"][index], before, p, None if h is None else h[steps.alive[index]])
                    before = after
            if isinstance(out, DeviceArray):
                self.stream.copy(out.address, work.at["x"], out.nbytes)
                self.stream.synchronise()
            else:
                out[...] = self._fetch(work, "x")
            return self._fetch(work, "x_prev") if keeps["has_x_prev"] else None

    def _start(
        self,
        work: Work,
        x: Any,
        z_sem: Float32 | None,
        x_prev: Float32 | None,
        steps: Steps,
        noise: Noise,
        z: NDArray[np.float32] | None,
        keeps: Mapping[str, bool],
    ) -> None:
        """Puts the state, and all that the steps need to know, on the device."""
        stream = self.stream
        self._put(work.at["x"], x)
        if x_prev is not None:
            self._put(work.at["x_prev"], x_prev)
        elif keeps["has_x_prev"]:
            stream.copy(work.at["x_prev"], work.at["x"], x.nbytes)
        if keeps["has_p"]:
            stream.zero(work.at["p"], x.nbytes)
        if z_sem is not None:
            self._put(work.at["z_sem"], z_sem)
        for i, draw in enumerate(() if z is None else z):
            self._put(work.rooms["z"].address + i * draw.nbytes, draw)
        hosted = work.rooms["hosted"].address if "hosted" in work.rooms else 0
        staged = np.zeros(len(steps), work.block)
        steps.write(staged, noise, self._address, hosted, staging.stride(work.h_elements))
        stream.upload(work.rooms["staged"].address, staged)
        stream.zero(work.at["step"], 4)
        if "x_in" in work.at:  # the network's first input is x, cast
            stream.upload(work.at["identity"], staging.identity(work.n))
            work.linear_step(work.at["identity"], x_in=work.at["x_in"])(stream)

    def _enqueue(self, work: Work, step: Step) -> None:
        """A step: its graph, made the second time; the first time warms up what is launched."""
        graph = work.graphs.get(step)
        if graph is None:
            front, back = work.launches(step)

            def enqueue() -> None:
                for launch in (*front, *back):
                    launch(self.stream)

            if self.not_captured is not None or step not in work.graphs:
                work.graphs[step] = None
                enqueue()
                return
            try:
                graph = work.graphs[step] = self.stream.capture(enqueue)
            except OutOfMemory:
                raise
            except EngineError as e:
                self.not_captured = f"a capture failed: {e}"
                _LOG.info("device %s: steps are launched one by one: %s", self.device.name, self.not_captured)
                enqueue()
                return
        graph(self.stream)

    def _compute(self, work: Work, steps: Steps, index: int, h: NDArray[Any]) -> None:
        """Computes on the host what no kernel knows of a step's Δh, and uploads it."""
        samples = steps.hosted_at(index)
        temb, rows = self._fetch(work, "temb"), steps.rows[index, samples]
        edits = [Edit(deltas=steps.hosted[i]) for i in samples]
        wide = h[samples].astype(np.float32), temb[samples].astype(np.float32)
        found = inject(*wide, rows["t"], rows["edit_scale"], edits)
        for i, delta in zip(samples, found, strict=True):
            self.stream.upload(work.rooms["hosted"].address + i * staging.stride(delta.size), delta)

    # --- memory -----------------------------------------------------------------------------------------

    def _put(self, address: int, array: Any) -> None:
        if isinstance(array, DeviceArray):
            self.stream.copy(address, array.address, array.nbytes)
        else:
            self.stream.upload(address, np.ascontiguousarray(array))

    def _fetch(self, work: Work, name: str) -> NDArray[Any]:
        """A copy of the workspace's tensor of that name, for its n samples."""
        shape, dtype = work.tensors[name]
        return self.stream.download(work.at[name], (work.n, *shape), dtype)

    def _address(self, delta: Delta) -> int:
        """Where the device has a table, or a DeltaBlock's packed weights; they are uploaded when first used."""
        if id(delta) not in self._resident:
            assert isinstance(delta, (DeltaTable, DeltaBlock))
            content = staging.padded(delta.table) if isinstance(delta, DeltaTable) else staging.packed(delta)
            buffer = self.device.allocate(content.nbytes)
            self.stream.upload(buffer.address, content)
            self._resident[id(delta)] = delta, buffer
        return self._resident[id(delta)][1].address

    def _work(self, role: str, n: int, pairs: int, terms: int) -> Work:
        """The memory for a batch of n samples, with room in its blocks for so many pairs and terms."""
        work = self._works.pop((role, n), None)
        if work is None or work.block["pairs"].shape[0] < pairs or work.block["terms"].shape[0] < terms:
            if work is not None:
                work.free()
            if len(self._works) >= _KEPT:
                self._works.pop(next(iter(self._works))).free()  # the one not used for longest
            room = Work.capacity(n, pairs, terms)
            try:
                work = Work(self.components, self.engine, self.kernels, role, n, *room)
            except OutOfMemory:
                self._free()
                work = Work(self.components, self.engine, self.kernels, role, n, *room)
        self._works[role, n] = work
        return work

    def _free(self) -> None:
        for work in self._works.values():
            work.free()
        for _, buffer in self._resident.values():
            buffer.free()
        self._works.clear()
        self._resident.clear()

    @contextlib.contextmanager
    def _freeing(self, n: int, role: str, needs: Callable[[int], Mapping[str, int]]) -> Iterator[None]:
        """Where memory runs out: frees what is kept, so that the next call can go on, and says what would fit.

        needs: the rooms of a run of so many samples, in bytes.
        """
        try:
            yield
        except OutOfMemory as e:
            work = self._works.get((role, n))
            own = work is None or len(work.rooms) < len(needs(n))  # and not the networks'
            asked = 0 if own else (e.asked or 0)  # which is taken to grow with the batch
            self._free()
            free, _ = self.device.memory()
            fits = 0
            for m in range(1, n):
                whole = Work.bytes(self.components, role, m) + sum(needs(m).values()) + asked * m // n
                fits = m if whole <= free else fits
            hint = f", a batch of {fits} fits (batch_size={fits})" if fits else ", a smaller batch is needed"
            raise e.hinting(f"; for a batch of {n}{hint if n > 1 else ', the smallest'}") from None
