"""A CUDA driver on host memory, behind the functions of cuda-python that hspace calls, and as strict.

Copies and launches wait in their stream until somebody waits for it, so a buffer that is used too early or again too
soon shows. New memory is filled with NaN. Every access is checked against what is allocated. A capture records; in it,
whatever CUDA refuses is refused, and spoils it. Kernels are carried out by NumPy, as the kernels' docstrings say.
"""

from __future__ import annotations

import ctypes
import enum
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from hspace.cuda.steps import PAIR, RECORD, TARGET, TERM
from hspace.deltas import group_norm, silu
from hspace.noise import NoiseStream, normal

CONTEXT, OTHER_CONTEXT = 0xC0, 0xC1


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_STUB_LIBRARY = 34
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_NO_BINARY_FOR_GPU = 209
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901
    CUDA_ERROR_UNKNOWN = 999


OK = CUresult.CUDA_SUCCESS
_SPOILS = {  # what a thread must not do while it captures
    "cuMemAlloc",
    "cuMemFree",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuStreamSynchronize",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuEventDestroy",
}
_NO_CONTEXT_NEEDED = ("cuInit", "cuDriver", "cuDevice", "cuCtx")


class Queue:
    """A stream: what waits to be done, and what a capture has recorded."""

    def __init__(self, context: int) -> None:
        self.context = context
        self.pending: list[Callable[[], None]] = []
        self.recorded: list[Callable[[], None]] | None = None
        self.spoiled = False

    def add(self, work: Callable[[], None]) -> None:
        (self.pending if self.recorded is None else self.recorded).append(work)

    def drain(self) -> None:
        while self.pending:
            self.pending.pop(0)()


class FakeDriver:
    """Stands in for the module `cuda.bindings.driver`. calls: how often each function was called.

    fail: function → results that its next calls give instead. limit: bytes of device memory. before: called before
    each function, with its name.
    """

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=75, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=76
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES=8)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)
    CUpointer_attribute = SimpleNamespace(
        CU_POINTER_ATTRIBUTE_CONTEXT=1, CU_POINTER_ATTRIBUTE_MEMORY_TYPE=2, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL=9
    )
    CUstream = int

    def __init__(self, *, count: int = 1, architecture: tuple[int, int] = (9, 0), limit: int = 2**30) -> None:
        self.count, self.architecture, self.limit, self.version = count, architecture, limit, 13000
        self.calls: Counter[str] = Counter()
        self.fail: dict[str, list[CUresult]] = {}
        self.before: Callable[[str], None] = lambda name: None
        self.memory: dict[int, np.ndarray] = {}  # device allocations by address
        self.holders: dict[int, tuple[int, int]] = {}  # of those of others: ordinal and context
        self.pinned: dict[int, np.ndarray] = {}
        self.streams: dict[int, Queue] = {0: Queue(CONTEXT), 1: Queue(CONTEXT)}
        self.events: dict[int, tuple[Queue, list[bool]] | None] = {}
        self.functions: dict[int, dict[str, Any]] = {}
        self.shared: dict[int, int] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.launched: Counter[str] = Counter()
        self.retained = 0
        self._contexts = threading.local()
        self._handles = iter(range(0x1000, 0x7FFFFFFF))

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        return self._guarded(name, found) if name.startswith("cu") else found

    def _guarded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls[name] += 1
            self.before(name)
            if self.fail.get(name):
                return (self.fail[name].pop(0), *[0] * (_VALUES.get(name, 0)))
            if not self.stack and not name.startswith(_NO_CONTEXT_NEEDED):
                return (CUresult.CUDA_ERROR_INVALID_CONTEXT, *[0] * _VALUES.get(name, 0))
            capturing = [q for q in self.streams.values() if q.recorded is not None]
            if capturing and name in _SPOILS:
                for queue in capturing:
                    queue.spoiled = True
                return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, *[0] * _VALUES.get(name, 0))
            return function(*arguments)

        return call

    @property
    def stack(self) -> list[int]:
        """This thread's current contexts."""
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        stack: list[int] = self._contexts.stack
        return stack

    # --- the device -------------------------------------------------------------------------------------

    def cuInit(self, flags: int) -> Any:
        return (OK,)

    def cuDriverGetVersion(self) -> Any:
        return OK, self.version

    def cuDeviceGetCount(self) -> Any:
        return OK, self.count

    def cuDeviceGet(self, ordinal: int) -> Any:
        return OK, ordinal

    def cuDeviceGetName(self, length: int, device: int) -> Any:
        return OK, b"Fake GPU".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: int, device: int) -> Any:
        return OK, self.architecture[attribute - 75]

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        self.retained += 1
        return OK, CONTEXT

    def cuDevicePrimaryCtxRelease(self, device: int) -> Any:
        self.retained -= 1
        return (OK,)

    def cuCtxPushCurrent(self, context: int) -> Any:
        self.stack.append(context)
        return (OK,)

    def cuCtxPopCurrent(self) -> Any:
        return OK, self.stack.pop()

    # --- memory -----------------------------------------------------------------------------------------

    def cuMemGetInfo(self) -> Any:
        return OK, self.limit - sum(a.nbytes for a in self.memory.values()), self.limit

    def cuMemAlloc(self, nbytes: int) -> Any:
        if nbytes > self.cuMemGetInfo()[1]:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        raw = np.full(nbytes + 256, 0xFF, np.uint8)  # NaN, in float16 and float32
        first = -raw.ctypes.data % 256
        made = raw[first : first + nbytes]
        self.memory[made.ctypes.data] = made
        return OK, made.ctypes.data

    def cuMemFree(self, address: int) -> Any:
        for queue in self.streams.values():
            queue.drain()  # as it waits for the device
        self.memory.pop(address).fill(0xFF)
        return (OK,)

    def cuMemHostAlloc(self, nbytes: int, flags: int) -> Any:
        made = np.full(nbytes, 0xFF, np.uint8)
        self.pinned[made.ctypes.data] = made
        return OK, made.ctypes.data

    def cuMemFreeHost(self, address: int) -> Any:
        self.pinned.pop(address)
        return (OK,)

    def cuPointerGetAttribute(self, attribute: int, address: int) -> Any:
        ordinal, context = self.holders.get(address, (0, CONTEXT))
        if address not in self.holders and self._find(address, 0, self.memory) is None:
            return CUresult.CUDA_ERROR_INVALID_VALUE, 0
        return OK, {1: context, 2: 2, 9: ordinal}[attribute]

    @staticmethod
    def _find(address: int, nbytes: int, memory: Mapping[int, np.ndarray]) -> np.ndarray | None:
        for first, held in memory.items():
            if first <= address and address + nbytes <= first + held.nbytes:
                return held[address - first : address - first + nbytes]
        return None

    def at(self, address: int, dtype: Any, *shape: int) -> np.ndarray:
        """Device memory as an array; it has to be allocated, all of it."""
        dtype = np.dtype(dtype)
        found = self._find(address, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, self.memory)
        assert found is not None, f"illegal access: {shape} of {dtype} at {address:#x}"
        return found.view(dtype).reshape(shape)

    def _host(self, address: int, nbytes: int) -> tuple[np.ndarray, bool]:
        """Host memory, and whether it is pinned."""
        found = self._find(address, nbytes, self.pinned)
        if found is not None:
            return found, True
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address)), False

    def cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> Any:
        data, pinned = self._host(source, nbytes)
        given = data.copy()

        def copy() -> None:
            assert not pinned or np.array_equal(data, given), "pinned memory was written while a copy was under way"
            np.copyto(self.at(target, np.uint8, nbytes), given)

        self.streams[stream].add(copy)
        return (OK,)

    def cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, stream: int) -> Any:
        data, pinned = self._host(target, nbytes)
        self.streams[stream].add(lambda: np.copyto(data, self.at(source, np.uint8, nbytes)))
        if not pinned:
            self.streams[stream].drain()
        return (OK,)

    def cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, stream: int) -> Any:
        self.streams[stream].add(
            lambda: np.copyto(self.at(target, np.uint8, nbytes), self.at(source, np.uint8, nbytes))
        )
        return (OK,)

    def cuMemsetD8Async(self, target: int, value: int, nbytes: int, stream: int) -> Any:
        self.streams[stream].add(lambda: self.at(target, np.uint8, nbytes).fill(value))
        return (OK,)

    # --- streams, events, graphs ------------------------------------------------------------------------

    def cuStreamCreate(self, flags: int) -> Any:
        handle = next(self._handles)
        self.streams[handle] = Queue(self.stack[-1])
        return OK, handle

    def cuStreamDestroy(self, stream: int) -> Any:
        self.streams.pop(stream).drain()
        return (OK,)

    def cuStreamGetCtx(self, stream: int) -> Any:
        if stream not in self.streams:
            return CUresult.CUDA_ERROR_INVALID_HANDLE, 0
        return OK, self.streams[stream].context

    def cuStreamSynchronize(self, stream: int) -> Any:
        self.streams[stream].drain()
        return (OK,)

    def cuEventCreate(self, flags: int) -> Any:
        handle = next(self._handles)
        self.events[handle] = None
        return OK, handle

    def cuEventRecord(self, event: int, stream: int) -> Any:
        if stream not in self.streams or self.streams[stream].context != CONTEXT:
            return (CUresult.CUDA_ERROR_INVALID_HANDLE,)
        passed = [False]
        self.streams[stream].add(lambda: passed.__setitem__(0, True))
        self.events[event] = self.streams[stream], passed
        return (OK,)

    def cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Any:
        self.streams[stream].add(self._until(event))
        return (OK,)

    def cuEventSynchronize(self, event: int) -> Any:
        self._until(event)()
        return (OK,)

    def _until(self, event: int) -> Callable[[], None]:
        """What carries a stream's work out up to the event's mark."""
        found = self.events[event]

        def carry_out() -> None:
            while found is not None and not found[1][0]:
                found[0].pending.pop(0)()

        return carry_out

    def cuEventDestroy(self, event: int) -> Any:
        del self.events[event]
        return (OK,)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> Any:
        self.streams[stream].recorded, self.streams[stream].spoiled = [], False
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        queue = self.streams[stream]
        recorded, queue.recorded = queue.recorded, None
        if recorded is None or queue.spoiled:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0
        handle = next(self._handles)
        self.graphs[handle] = recorded
        return OK, handle

    def cuGraphInstantiate(self, graph: int, flags: int) -> Any:
        handle = next(self._handles)
        self.graphs[handle] = self.graphs[graph]
        return OK, handle

    def cuGraphDestroy(self, graph: int) -> Any:
        del self.graphs[graph]
        return (OK,)

    def cuGraphExecDestroy(self, graph: int) -> Any:
        del self.graphs[graph]
        return (OK,)

    def cuGraphLaunch(self, graph: int, stream: int) -> Any:
        for work in self.graphs[graph]:
            self.streams[stream].add(work)
        return (OK,)

    # --- kernels ----------------------------------------------------------------------------------------

    def cuModuleLoadData(self, image: bytes) -> Any:
        if image[:4] == b"\x7fELF":
            found = json.loads(image[4:])
            major, minor = found["architecture"]
            if major != self.architecture[0] or minor > self.architecture[1]:
                return CUresult.CUDA_ERROR_NO_BINARY_FOR_GPU, 0
        else:
            assert image[-1] == 0, "PTX ends in a zero byte"
            found = json.loads(image[:-1])
        handle = next(self._handles)
        self.functions[handle] = found
        return OK, handle

    def cuModuleUnload(self, module: int) -> Any:
        del self.functions[module]
        return (OK,)

    def cuModuleGetFunction(self, module: int, name: bytes) -> Any:
        assert name.decode() == self.functions[module]["entry"]
        return OK, module

    def cuFuncSetAttribute(self, function: int, attribute: int, value: int) -> Any:
        self.shared[function] = value
        return (OK,)

    def cuLaunchKernel(
        self, function: int, x: int, y: int, z: int, tx: int, ty: int, tz: int, shared: int, stream: int,
        parameters: int, extra: int,
    ) -> Any:  # fmt: skip
        kernel = self.functions[function]
        kinds = [kind for _, kind in kernel["parameters"]]
        pointers = (ctypes.c_void_p * (len(kinds) + 2)).from_address(parameters)
        types = [ctypes.c_uint64 if k.startswith("*") else ctypes.c_int32 for k in kinds] + [ctypes.c_uint64] * 2
        values = [t.from_address(p).value for t, p in zip(types, pointers, strict=True)]
        assert values[-2:] == [0, 0], "scratch"
        assert tx == 32 * kernel["num_warps"] and (ty, tz, extra) == (1, 1, 0)
        assert shared <= 48 * 1024 or self.shared.get(function) == shared, "shared memory was not asked for"
        named = dict(zip((n for n, _ in kernel["parameters"]), values, strict=False))
        self.launched[kernel["name"]] += 1
        run = getattr(Carried, kernel["entry"])
        dtype = {"fp16": np.float16}.get(kernel["name"].rsplit("_", 1)[-1], np.float32)
        self.streams[stream].add(lambda: run(self, dtype, (x, y, z), **named))
        return (OK,)


_VALUES = {  # how many values follow a result
    "cuMemAlloc": 1, "cuMemHostAlloc": 1, "cuStreamCreate": 1, "cuEventCreate": 1, "cuStreamEndCapture": 1,
    "cuGraphInstantiate": 1, "cuModuleLoadData": 1, "cuModuleGetFunction": 1, "cuPointerGetAttribute": 1,
    "cuStreamGetCtx": 1, "cuDeviceGet": 1, "cuDevicePrimaryCtxRetain": 1, "cuDeviceGetCount": 1, "cuMemGetInfo": 2,
}  # fmt: skip


class Carried:
    """The kernels, on a driver's memory."""

    @staticmethod
    def linear_step(
        on: FakeDriver, dtype: Any, grid: Any, *, x: int, eps: int, x_in: int, x_prev: int, p: int, z: int,
        records: int, elements: int, eps_stride: int, has_x_in: int, has_x_prev: int, has_p: int,
    ) -> None:  # fmt: skip
        samples = grid[1]
        assert grid[0] == -(-elements // 64)
        rows = on.at(records, RECORD, samples)
        state = on.at(x, np.float32, samples, elements)

        def eps_of(row: int) -> np.ndarray:
            return on.at(eps + row * eps_stride * np.dtype(dtype).itemsize, dtype, elements).astype(np.float32)

        for i, row in enumerate(rows):
            if row["t"] < 0:
                continue
            x_t = state[i].copy()
            out = np.zeros(elements, np.float32)
            use_p = row["c_x0"] != 0 or has_p
            own = eps_of(i) if row["c_eps"] != 0 or (use_p and row["second"] == i) else None
            if use_p:
                edited = eps_of(int(row["second"])) if row["second"] != i else own
                p_t = (x_t - row["sigma"] * edited) / row["alpha"]
                p_t = np.clip(p_t, -1, 1) if row["clip"] else p_t
            if row["c_eps"] != 0:
                assert own is not None
                if row["clip"] == 2:
                    p_own = np.clip((x_t - row["sigma"] * own) / row["alpha"], -1, 1)
                    own = (x_t - row["alpha"] * p_own) / row["sigma"]
                out += row["c_eps"] * own
            if row["c_x"] != 0:
                out += row["c_x"] * x_t
            if row["c_x0"] != 0:
                out += row["c_x0"] * p_t
            if row["c_x_prev"] != 0:
                out += row["c_x_prev"] * on.at(x_prev + 4 * i * elements, np.float32, elements)
            if row["c_x0_prev"] != 0:
                out += row["c_x0_prev"] * on.at(p + 4 * i * elements, np.float32, elements)
            if row["c_noise"] != 0:
                if row["z_row"] >= 0:
                    draw = on.at(z + 4 * int(row["z_row"]) * elements, np.float32, elements)
                else:
                    seed = int(row["seed_low"]) | int(row["seed_high"]) << 32
                    draw = normal(
                        (elements,), seed, draw=int(row["draw"]), image=int(row["image"]), stream=NoiseStream.STEP
                    )
                out += row["c_noise"] * draw
            state[i] = out
            if has_x_in:
                on.at(x_in, dtype, samples, elements)[i] = out
            if has_x_prev:
                on.at(x_prev, np.float32, samples, elements)[i] = x_t
            if has_p:
                on.at(p, np.float32, samples, elements)[i] = p_t

    @staticmethod
    def _weights(on: FakeDriver, address: int, c: int, e: int, norm1: bool) -> dict[str, np.ndarray]:
        shapes: dict[str, tuple[int, ...]] = {
            "conv1": (c, c), "conv1_b": (c,), "temb": (c, e), "temb_b": (c,), "norm2": (c,), "norm2_b": (c,),
            "conv2": (c, c), "conv2_b": (c,), **({"norm1": (c,), "norm1_b": (c,)} if norm1 else {}),
        }  # fmt: skip
        found = {}
        for name, shape in shapes.items():
            found[name] = on.at(address, np.float32, *shape)
            address += found[name].nbytes
        return found

    @staticmethod
    def _pairs(on: FakeDriver, pairs: int, grid: Any, channels: int) -> np.ndarray:
        assert grid[0] == min(32, channels) and grid[1] > 0
        return on.at(pairs, PAIR, grid[1])

    @staticmethod
    def block_norm(
        on: FakeDriver, dtype: Any, grid: Any, *, h: int, v: int, pairs: int, channels: int, positions: int,
        embedding: int,
    ) -> None:  # fmt: skip
        size = channels * positions
        for r, pair in enumerate(Carried._pairs(on, pairs, grid, channels)):
            if pair["eps"] < 0:
                w = Carried._weights(on, int(pair["address"]), channels, embedding, True)
                x = on.at(h + int(pair["sample"]) * size * np.dtype(dtype).itemsize, dtype, 1, channels, positions, 1)
                y = silu(group_norm(x.astype(np.float32), w["norm1"], w["norm1_b"], float(-pair["eps"])))
                on.at(v + 4 * r * size, np.float32, size)[:] = y.ravel()

    @staticmethod
    def block_hidden(
        on: FakeDriver, dtype: Any, grid: Any, *, h: int, v: int, temb: int, u: int, pairs: int, channels: int,
        positions: int, embedding: int,
    ) -> None:  # fmt: skip
        size, width = channels * positions, np.dtype(dtype).itemsize
        for r, pair in enumerate(Carried._pairs(on, pairs, grid, channels)):
            w = Carried._weights(on, int(pair["address"]), channels, embedding, bool(pair["eps"] < 0))
            if pair["eps"] < 0:
                x = on.at(v + 4 * r * size, np.float32, channels, positions)
            else:
                x = on.at(h + int(pair["sample"]) * size * width, dtype, channels, positions).astype(np.float32)
            t = on.at(temb + int(pair["sample"]) * embedding * width, dtype, embedding).astype(np.float32)
            y = w["conv1"] @ x + w["conv1_b"][:, None] + (w["temb"] @ silu(t) + w["temb_b"])[:, None]
            y = silu(group_norm(y[None, :, :, None], w["norm2"], w["norm2_b"], abs(float(pair["eps"]))))
            on.at(u + 4 * r * size, np.float32, size)[:] = y.ravel()

    @staticmethod
    def inject(
        on: FakeDriver, dtype: Any, grid: Any, *, h: int, u: int, targets: int, terms: int, channels: int,
        positions: int, embedding: int,
    ) -> None:  # fmt: skip
        assert grid[:2] == (-(-channels // 16), -(-positions // 16))
        size = channels * positions
        for target in on.at(targets, TARGET, grid[2]):
            row = on.at(h + int(target["source"]) * size * np.dtype(dtype).itemsize, dtype, channels, positions)
            total = row.astype(np.float32)
            for k in range(int(target["first"]), int(target["first"] + target["count"])):
                term = on.at(terms, TERM, k + 1)[k]
                assert term["address"] % 16 == 0
                if term["row"] < 0:
                    delta = on.at(int(term["address"]), np.float32, channels, positions)
                else:
                    w = Carried._weights(on, int(term["address"]), channels, embedding, False)
                    y = on.at(u + 4 * int(term["row"]) * size, np.float32, channels, positions)
                    delta = w["conv2"] @ y + w["conv2_b"][:, None]
                with np.errstate(over="ignore"):
                    total += term["coefficient"] * delta
            on.at(h + int(target["dest"]) * size * np.dtype(dtype).itemsize, dtype, channels, positions)[:] = total


_METADATA = {"records": "*i32", "pairs": "*i32", "targets": "*i32", "terms": "*i32"}
_SIZES = [["channels", "i32"], ["positions", "i32"], ["embedding", "i32"]]


def _parameters(entry: str, dtype: str) -> list[list[str]]:
    network, f32 = f"*{dtype}", "*fp32"
    found: dict[str, list[list[str]]] = {
        "linear_step": [
            ["x", f32], ["eps", network], ["x_in", network], ["x_prev", f32], ["p", f32], ["z", f32],
            ["records", "*i32"], ["elements", "i32"], ["eps_stride", "i32"], ["has_x_in", "i32"],
            ["has_x_prev", "i32"], ["has_p", "i32"],
        ],
        "block_norm": [["h", network], ["v", f32], ["pairs", "*i32"], *_SIZES],
        "block_hidden": [["h", network], ["v", f32], ["temb", network], ["u", f32], ["pairs", "*i32"], *_SIZES],
        "inject": [["h", network], ["u", f32], ["targets", "*i32"], ["terms", "*i32"], *_SIZES],
    }  # fmt: skip
    return found[entry]


def write_kernels(folder: Path, architectures: list[tuple[int, int]] | None = None, shared: int = 0) -> Path:
    """A folder like hspace/cuda/cubins, for the fake driver."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels: dict[str, Any] = {}
    names: list[tuple[str, str, str]] = []
    for entry in ("linear_step", "block_norm", "block_hidden", "inject"):
        names += [(f"{entry}_{dtype}", entry, dtype) for dtype in ("fp16", "fp32")]
    for name, entry, dtype in names:
        parameters, images = _parameters(entry, dtype), {}
        for target in [*([(8, 0), (9, 0)] if architectures is None else architectures), None]:
            label = "ptx" if target is None else f"sm_{target[0]}{target[1]}"
            content = {"name": name, "entry": entry, "parameters": parameters, "num_warps": 4, "architecture": target}
            data = (b"" if target is None else b"\x7fELF") + json.dumps(content).encode()
            file = f"{label}-{name}"
            (folder / file).write_bytes(data)
            images[label] = {
                "file": file, "sha256": hashlib.sha256(data).hexdigest(), "entry": entry, "num_warps": 4,
                "shared": shared, "global_scratch": 0, "profile_scratch": 0,
            }  # fmt: skip
        block = {"linear_step": {"BLOCK": 64}, "inject": {"BLOCK_C": 16, "BLOCK_P": 16}}
        kernels[name] = {
            "parameters": parameters, "block": block.get(entry, {}), "grid": "as the docstring says", "images": images,
        }  # fmt: skip
    table = {"format": "hspace-kernels-1", "triton": "3.4.0", "fp_fusion": True, "kernels": kernels}
    (folder / "kernels.json").write_text(json.dumps(table))
    return folder
