"""The CUDA executor: batches on an engine, with the state on a GPU from a sample's joining to its leaving.

A step is an upload of its block (`cuda.steps`), a few KiB, and then

    trunk → [block_norm, block_hidden] → inject → head → linear_step        latent → linear_step

Where the engine's work can be captured, all but the upload is one launch of a CUDA graph, made the second time that a
kind of step comes up at a capacity; else `not_captured` says why, and its parts are launched one by one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Float32
from ..batch import Network, check_batch
from ..bundle import Bundle
from ..cuda import steps
from ..cuda.arrays import DeviceArray, from_foreign, stream_handle
from ..cuda.batch import Batch
from ..cuda.driver import Buffer, Device, OutOfMemory, Stream
from ..cuda.kernels import Kernels
from ..cuda.steps import GraphKey, capacity_of
from ..cuda.workspace import Workspace
from ..deltas import Delta, DeltaBlock, DeltaTable
from ..engines import DeviceEngine, open_device_engine
from ..errors import ArgumentError, BundleError, EngineError, ImageError
from ..manifest import Component

_LOG = logging.getLogger("hspace")
_KEPT = 8  # workspaces that are kept for the next batch of their capacity


def open_executor(bundle: Bundle, engine: str, ordinal: int, stream: Any = None) -> Executor:
    """The executor on GPU number `ordinal`, with every component loaded there. stream: the host's, or None.

    Raises DeviceError where there is no driver, no such GPU or no kernel for it, or the stream is another context's;
    EngineError where the engine cannot run there.
    """
    device = Device(ordinal)
    queue = device.stream(stream_handle(stream))
    kernels = Kernels(device)
    kernels.load("linear_step_fp32")  # what cannot run here is refused before the networks are loaded
    networks, manifest = open_device_engine(engine, bundle, device, queue), bundle.manifest
    return Executor(networks, manifest.components, manifest.image.size, device, queue, kernels)


class Executor:
    """Batches of images of size×size on a GPU. Several may be open at once, in several threads: each has memory of its
    own, and every call of theirs has the executor to itself while it enqueues.

    not_captured: why steps are not CUDA graphs; None where they are.
    """

    on_device = True

    def __init__(
        self,
        engine: DeviceEngine,
        components: Mapping[str, Component],
        size: int,
        device: Device,
        stream: Stream,
        kernels: Kernels,
    ) -> None:
        self.engine, self.device, self.stream, self.kernels = engine, device, stream, kernels
        self._components, self._size = components, size
        self.not_captured = engine.not_capturable
        if self.not_captured is not None:
            _LOG.info("device %s: steps are launched one by one: %s", device.name, self.not_captured)
        self._lock, self._closed = threading.RLock(), False
        self._used: list[Workspace] = []
        self._idle: list[Workspace] = []  # the one not used for longest first
        self._batches: list[Batch] = []
        self._resident: dict[int, tuple[Delta, Buffer]] = {}

    def close(self) -> None:
        """Frees what it holds on the device, the networks included. Arrays that it returned stay. Batches that are open
        are of no use any more: what their calls would write to may be another's by then, so they raise ArgumentError.
        """
        with self._lock:
            self._closed = True
            with self.device:
                self.stream.synchronise()
                self._idle += self._used
                self._used.clear()
                self._batches.clear()
                self._free()
            self.engine.close()
            self.stream.close()

    # --- arrays -----------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise ArgumentError("the editor is closed, expected one that is open")

    def images(self, images: Any) -> Any:
        """Images on the device as samples take them: float32 [N, 3, H, W] stays there, unread and so with its range
        unchecked; uint8 is copied to the host, where it is converted. Raises ArgumentError, ImageError, DeviceError.
        """
        with self._lock, self.device:
            self._check_open()
            array = from_foreign("images", images, self.device, self.stream)
            if array.dtype == np.uint8:
                return self.stream.download(array.address, array.shape, array.dtype)
        if array.dtype != np.float32 or array.ndim != 4 or array.shape[1] != 3 or not len(array):
            raise ArgumentError(
                f"images: found {array.dtype} {list(array.shape)} on the device, "
                "expected uint8 [N, H, W, 3] or float32 [N, 3, H, W]"
            )
        if array.shape[2:] != (self._size, self._size):
            pixels = f"{array.shape[3]}×{array.shape[2]}"
            raise ImageError(f"images: found {pixels} pixels, expected {self._size}×{self._size}")
        return array

    def empty(self, shape: Sequence[int]) -> DeviceArray:
        """New device memory for results, float32."""
        with self._lock:
            return DeviceArray.empty(self.device, shape)

    # --- batches ----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def batch(self, network: Network, capacity: int) -> Iterator[Batch]:
        """An empty batch. capacity: how many slots it has at least; it is rounded up to a power of two."""
        check_batch(network, capacity, self._components)
        with self._leasing(network, capacity) as workspace:
            batch = Batch(self, workspace)
            with self._lock:
                self._batches.append(batch)
            try:
                yield batch
            finally:
                with self._lock:
                    batch.end()
                    self._batches = [other for other in self._batches if other is not batch]

    def encode_z(self, x: Any) -> Float32:
        """z_sem (float32 [N, D]) of images, by the encoder."""
        spec = self._components["encoder"]
        if {t.dtype for t in (*spec.inputs, *spec.outputs)} != {"float32"}:
            raise BundleError("encoder: expected float32 inputs and outputs")
        with self._leasing("image", len(x)) as workspace, self.working(workspace):
            self.put(workspace.at["x"], x)
            workspace.bound("encoder")(self.stream)
            return self.stream.download(workspace.at["z_sem"], (len(x), *workspace.shape("encoder", "z_sem")))

    # --- for batches ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def working(self, workspace: Workspace) -> Iterator[None]:
        """Around whatever enqueues. Where memory runs out, what nobody uses is freed, and the error says what fits."""
        with self._lock, self.device:
            self._check_open()
            try:
                yield
            except OutOfMemory as e:
                raise self._hinting(e, workspace.network, workspace.n, workspace) from None

    def enqueue(self, workspace: Workspace, key: GraphKey) -> None:
        """A step: its graph, made the second time; the first time warms up what is launched."""
        graph = workspace.graphs.get(key)
        if graph is None:
            front, back = workspace.launches(key)

            def enqueue() -> None:
                for launch in (*front, *back):
                    launch(self.stream)

            if self.not_captured is not None or key not in workspace.graphs:
                enqueue()
                workspace.graphs[key] = None
                return
            try:
                graph = workspace.graphs[key] = self.stream.capture(enqueue)
            except OutOfMemory:
                raise
            except EngineError as e:
                self.not_captured = f"a capture failed: {e}"
                _LOG.info("device %s: steps are launched one by one: %s", self.device.name, self.not_captured)
                enqueue()
                return
        graph(self.stream)

    def put(self, address: int, array: Any) -> None:
        """Enqueues the copy of an array, of the host's or of the device's."""
        if isinstance(array, DeviceArray):
            self.stream.copy(address, array.address, array.nbytes)
        else:
            self.stream.upload(address, np.ascontiguousarray(array))

    def address(self, delta: Delta) -> int:
        """Where the device has a table, or a DeltaBlock's packed weights; they are uploaded when first used."""
        if id(delta) not in self._resident:
            assert isinstance(delta, (DeltaTable, DeltaBlock))
            content = steps.padded(delta.table) if isinstance(delta, DeltaTable) else steps.packed(delta)
            buffer = self._allocate(content.nbytes)
            self.stream.upload(buffer.address, content)
            self._resident[id(delta)] = delta, buffer
        return self._resident[id(delta)][1].address

    # --- memory -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _leasing(self, network: Network, n: int) -> Iterator[Workspace]:
        """A workspace for n samples, one that is kept or a new one; kept afterwards for the next."""
        capacity = capacity_of(n)
        with self._lock, self.device:
            self._check_open()
            kept = [w for w in self._idle if (w.network, w.n) == (network, capacity)]
            try:
                workspace = kept[-1] if kept else self._make(network, capacity)
            except OutOfMemory as e:
                raise self._hinting(e, network, capacity, None) from None
            self._idle = [w for w in self._idle if w is not workspace]
            self._used.append(workspace)
        try:
            yield workspace
        finally:
            with self._lock:
                if workspace in self._used:  # and the executor is not closed
                    self._used.remove(workspace)
                    self._idle.append(workspace)
                    with self.device:
                        while len(self._idle) > _KEPT:
                            self._idle.pop(0).free()

    def _make(self, network: Network, n: int) -> Workspace:
        return Workspace(self._components, self.engine, self.kernels, self.stream, self._allocate, network, n)

    def _allocate(self, nbytes: int) -> Buffer:
        """Device memory; what is only kept makes room for it."""
        try:
            return self.device.allocate(nbytes)
        except OutOfMemory:
            self._free()
            return self.device.allocate(nbytes)

    def _free(self) -> None:
        """Frees what no batch uses."""
        for workspace in self._idle:
            workspace.free()
        self._idle.clear()
        needed = set().union(*(batch.deltas for batch in self._batches))
        for key in [key for key in self._resident if key not in needed]:
            self._resident.pop(key)[1].free()

    def _hinting(self, e: OutOfMemory, network: Network, n: int, own: Workspace | None) -> OutOfMemory:
        """The error, and which batch would fit in place of this one. Frees what no batch uses."""
        self._free()
        free, _ = self.device.memory()
        first = Workspace.bytes(self._components, network, n)
        grows = 0 if own is None else own.nbytes - first + (e.asked or 0)  # which is taken to grow with the batch
        free += 0 if own is None else own.nbytes
        fits, m = 0, 1
        while m < n:
            fits = m if Workspace.bytes(self._components, network, m) + grows * m // n <= free else fits
            m *= 2
        hint = f", a batch of {fits} fits (batch_size={fits})" if fits else ", a smaller batch is needed"
        return e.hinting(f"; for a batch of {n}{hint if n > 1 else ', the smallest'}")
