"""A thin layer over the CUDA driver API: what an executor needs of a GPU, and one DeviceError per failing call.

It stands on cuda-python's `cuda.bindings.driver`, whose functions return tuples: a CUresult, then the values. `api` is
that module, or one that tests put in its place. Handles and addresses are plain ints.

Everything happens in the device's primary context, which CUDA's runtime API, and so ONNX Runtime, PyTorch, CuPy and
Numba, use as well. It is made current for the length of a call (`with device:`) and taken off the thread's stack
again, so that a host application finds its own context where it left it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DeviceError, needs

_OLDEST_DRIVER = 12000  # CUDA 12.0
_NO_DRIVER = (34, 999)  # CUDA_ERROR_STUB_LIBRARY, CUDA_ERROR_UNKNOWN: a library is there, and no driver behind it
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_NO_IMAGE = (200, 209, 218, 222)  # an image, or PTX, that is not for this architecture or this driver
_SHARED_WITHOUT_ASKING = 48 * 1024  # bytes of shared memory that a kernel may use without the attribute
_DEFAULT_STREAMS = (0, 1, 2)  # NULL, CU_STREAM_LEGACY, CU_STREAM_PER_THREAD: they have no handle of their own
_PINNED = 2**26  # bytes: larger copies go from and to the caller's own memory


class OutOfMemory(DeviceError):
    """Too little device memory. asked: bytes, where known; free, total: of the device at that moment."""

    def __init__(self, device: str, asked: int | None, free: int, total: int, hint: str = "") -> None:
        wanted = "memory" if asked is None else mebibytes(asked)
        left = f"{mebibytes(free)} of {mebibytes(total)} are free"
        super().__init__(f"device {device}: out of memory: asked for {wanted}, {left}{hint}")
        self.device, self.asked, self.free, self.total = device, asked, free, total

    def hinting(self, hint: str) -> OutOfMemory:
        """The same, and what would help."""
        return OutOfMemory(self.device, self.asked, self.free, self.total, hint)


def mebibytes(n: int) -> str:
    """A size for people."""
    return f"{n / 2**20:.1f} MiB"


def bindings() -> Any:
    """cuda-python's driver API, initialised. Raises DeviceError where the package, a driver or a GPU is missing."""
    try:
        api = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        raise DeviceError(needs("device cuda", "cuda-python", "gpu")) from None
    return api


def initialise(api: Any) -> int:
    """How many GPUs there are, at least 1. Raises DeviceError where there is no driver, an old one, or no GPU."""
    try:
        (result,) = api.cuInit(0)
        status, version = api.cuDriverGetVersion() if int(result) == 0 else (result, 0)
    except RuntimeError:  # what cuda-python raises where it finds no driver library
        raise DeviceError("device cuda: found no NVIDIA driver on this machine") from None
    if int(result) in _NO_DRIVER:
        raise DeviceError(f"device cuda: found no working NVIDIA driver on this machine ({_name(result)})")
    if int(result) == _NO_DEVICE:
        raise DeviceError("device cuda: found an NVIDIA driver, and no GPU that this process may use")
    if int(result) != 0 or int(status) != 0:
        raise DeviceError(f"device cuda: the NVIDIA driver does not start ({_name(result)})")
    if version < _OLDEST_DRIVER:
        raise DeviceError(
            f"device cuda: found a driver for CUDA {version // 1000}.{version % 1000 // 10}, expected 12.0 or newer"
        )
    status, count = api.cuDeviceGetCount()
    if int(status) != 0 or count == 0:
        raise DeviceError("device cuda: found an NVIDIA driver, and no GPU that this process may use")
    return int(count)


def _name(result: Any) -> str:
    """CUDA_ERROR_…: the name, which is stable; the library's own sentences are not for our users."""
    return str(getattr(result, "name", f"CUDA error {int(result)}"))


class Device:
    """One GPU, in its primary context, which is retained for as long as anything refers to this object.

    name: "cuda:0". model: what its maker calls it. architecture: (9, 0) for sm_90.
    """

    def __init__(self, ordinal: int = 0, api: Any | None = None) -> None:
        self.api = bindings() if api is None else api
        count = initialise(self.api)
        if ordinal >= count:
            there = "only cuda:0 is" if count == 1 else f"cuda:0 to cuda:{count - 1} are"
            raise DeviceError(f"device cuda:{ordinal}: is not there; {there}")
        self.ordinal, self.name = ordinal, f"cuda:{ordinal}"
        self._capturing = 0
        self._deferred: list[tuple[str, int]] = []
        self._device = self.call("find it", "cuDeviceGet", ordinal)
        name = self.call("read its name", "cuDeviceGetName", 256, self._device)
        self.model = bytes(name).split(b"\0")[0].decode(errors="replace")
        attributes = self.api.CUdevice_attribute
        self.architecture = (
            int(self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)),
            int(self._attribute(attributes.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)),
        )
        self._context = self.call("make its primary context", "cuDevicePrimaryCtxRetain", self._device)
        self.context = int(self._context)
        weakref.finalize(self, self._quietly, self.api, "cuDevicePrimaryCtxRelease", self._device).atexit = False

    def _attribute(self, which: Any) -> int:
        value: int = self.call("read its attributes", "cuDeviceGetAttribute", which, self._device)
        return value

    def call(self, what: str, function: str, *arguments: Any) -> Any:
        """Calls the driver. Returns its value, a tuple of several, or None; raises DeviceError, which says `what`."""
        result, *values = getattr(self.api, function)(*arguments)
        if result:
            if int(result) == _OUT_OF_MEMORY:
                raise self.out_of_memory()
            raise DeviceError(f"device {self.name}: could not {what}: {_name(result)}")
        return values[0] if len(values) == 1 else tuple(values) or None

    @staticmethod
    def _quietly(api: Any, function: str, *arguments: Any) -> None:
        """For clean-up, where an error would hide the one that matters."""
        with contextlib.suppress(Exception):
            getattr(api, function)(*arguments)

    def __enter__(self) -> Device:
        self.call("make its context current", "cuCtxPushCurrent", self._context)
        return self

    def __exit__(self, *_: object) -> None:
        self._quietly(self.api, "cuCtxPopCurrent")

    # --- memory -----------------------------------------------------------------------------------------

    def memory(self) -> tuple[int, int]:
        """Bytes of device memory: free, and in all."""
        result, free, total = self.api.cuMemGetInfo()
        return (int(free), int(total)) if int(result) == 0 else (0, 0)

    def out_of_memory(self, asked: int | None = None) -> OutOfMemory:
        """The error of an allocation that failed."""
        with self:
            return OutOfMemory(self.name, asked, *self.memory())

    def allocate(self, nbytes: int) -> Buffer:
        """Device memory, uninitialised, at a multiple of 256. Raises OutOfMemory."""
        with self:
            result, address = self.api.cuMemAlloc(max(nbytes, 1))
        if int(result) == _OUT_OF_MEMORY:
            raise self.out_of_memory(nbytes)
        if result:
            raise DeviceError(f"device {self.name}: could not allocate {mebibytes(nbytes)}: {_name(result)}")
        return Buffer(self, int(address), nbytes)

    def pin(self, nbytes: int) -> Pinned:
        """Page-locked host memory, which copies can use while the host goes on."""
        with self:
            result, address = self.api.cuMemHostAlloc(nbytes, 0)
        if result:  # which may be that the host is out of memory
            what = f"page-lock {mebibytes(nbytes)} of host memory"
            raise DeviceError(f"device {self.name}: could not {what}: {_name(result)}")
        return Pinned(self, int(address), nbytes)

    def release(self, function: str, handle: int) -> None:
        """Frees something. While a graph is being captured that waits for its end: it would spoil the capture."""
        if self._capturing:
            self._deferred.append((function, handle))
            return
        with contextlib.suppress(Exception), self:  # at the interpreter's end there may be nothing left to call
            self._quietly(self.api, function, handle)

    def holder_of(self, address: int) -> tuple[int | None, int]:
        """The number of the GPU that an address is on (None: it is not device memory), and its context (0: unknown)."""
        attributes = self.api.CUpointer_attribute
        with self:
            result, kind = self.api.cuPointerGetAttribute(attributes.CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address)
            if int(result) != 0 or int(kind) != 2:  # CU_MEMORYTYPE_DEVICE; managed memory says so as well
                return None, 0
            _, ordinal = self.api.cuPointerGetAttribute(attributes.CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, address)
            result, context = self.api.cuPointerGetAttribute(attributes.CU_POINTER_ATTRIBUTE_CONTEXT, address)
        return int(ordinal), int(context or 0) if int(result) == 0 else 0

    # --- kernels ----------------------------------------------------------------------------------------

    def load(self, image: bytes, entry: str, shared: int) -> Function | None:
        """The kernel `entry` of a cubin, or of PTX; None where the image is not for this architecture or driver."""
        with self:
            result, module = self.api.cuModuleLoadData(image)
            if int(result) in _NO_IMAGE:
                return None
            if result:
                raise DeviceError(f"device {self.name}: could not load the kernel {entry}: {_name(result)}")
            function = self.call(f"find the kernel {entry}", "cuModuleGetFunction", module, entry.encode())
            if shared > _SHARED_WITHOUT_ASKING:
                attribute = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                what = f"give the kernel {entry} its {shared} bytes of shared memory"
                self.call(what, "cuFuncSetAttribute", function, attribute, shared)
        return Function(self, module, function)

    # --- streams ----------------------------------------------------------------------------------------

    def stream(self, handle: int | None = None) -> Stream:
        """A stream of our own, or the host's. Raises DeviceError for a stream of another context."""
        if handle is None:
            with self:
                flags = int(self.api.CUstream_flags.CU_STREAM_NON_BLOCKING)
                own = self.call("create a stream", "cuStreamCreate", flags)
            return Stream(self, int(own), owned=True)
        if handle in _DEFAULT_STREAMS:
            raise DeviceError("stream: found the default stream, expected one that the host created, or none")
        with self:
            result, context = self.api.cuStreamGetCtx(self.api.CUstream(handle))
        if result or int(context) != self.context:
            raise DeviceError(
                f"stream: found one of another CUDA context, expected one of the primary context of {self.name} "
                "(PyCUDA: import pycuda.autoprimaryctx instead of pycuda.autoinit)"
            )
        return Stream(self, handle, owned=False)

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """While a graph is being captured: what is dropped meanwhile, by whoever, is freed at the end."""
        self._capturing += 1
        try:
            yield
        finally:
            self._capturing -= 1
            while self._deferred and not self._capturing:
                self.release(*self._deferred.pop())


class Buffer:
    """Device memory. Freed by `free`, or when nothing refers to it any more."""

    def __init__(self, device: Device, address: int, nbytes: int) -> None:
        self.device, self.address, self.nbytes = device, address, nbytes
        self.free = weakref.finalize(self, device.release, "cuMemFree", address)
        self.free.atexit = False


class Pinned:
    """Page-locked host memory, as bytes: uint8 [nbytes]."""

    def __init__(self, device: Device, address: int, nbytes: int) -> None:
        self.address, self.nbytes = address, nbytes
        self.bytes: NDArray[np.uint8] = np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))
        self.free = weakref.finalize(self, device.release, "cuMemFreeHost", address)
        self.free.atexit = False


class Function:
    """A loaded kernel."""

    def __init__(self, device: Device, module: Any, handle: Any) -> None:
        self.device, self.handle = device, handle
        self._module = module  # unloaded when nothing refers to it any more
        weakref.finalize(self, device.release, "cuModuleUnload", module).atexit = False


class Launch:
    """A kernel with its grid and its arguments, to be enqueued again and again: only addresses are handed over.

    arguments: ctypes values, as wide as the kernel's parameters: 4 bytes for a float or an int, 8 for a pointer.
    """

    def __init__(
        self, function: Function, grid: Sequence[int], threads: int, shared: int, arguments: Sequence[Any], name: str
    ) -> None:
        self.name, self._function, self._arguments = name, function, arguments
        self._pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        x, y, z = (*grid, 1, 1)[:3]
        self._before = function.handle, x, y, z, threads, 1, 1, shared
        self._after = ctypes.addressof(self._pointers), 0

    def __call__(self, stream: Stream) -> None:
        device = stream.device
        (result,) = device.api.cuLaunchKernel(*self._before, stream.object, *self._after)
        if result:
            raise DeviceError(f"device {device.name}: could not launch the kernel {self.name}: {_name(result)}")


class Stream:
    """A queue of work on a device: copies, launches, graphs. Its calls expect `with device:` around them.

    Copies of up to 64 MiB go through pinned memory of its own, so that the host goes on at once.
    """

    def __init__(self, device: Device, handle: int, *, owned: bool) -> None:
        self.device, self.handle = device, handle
        self.object = device.api.CUstream(handle)
        self._pinned: Pinned | None = None
        self._used = 0  # bytes of it that copies under way still need
        self.close: Callable[[], object] = lambda: None
        if owned:
            finalizer = weakref.finalize(self, device.release, "cuStreamDestroy", handle)
            finalizer.atexit = False
            self.close = finalizer

    def synchronise(self) -> None:
        """Waits for all that was enqueued. An error of a kernel or a copy shows here."""
        self.device.call("finish the work on its stream", "cuStreamSynchronize", self.object)
        self._used = 0

    def wait_for(self, handle: int) -> None:
        """Work enqueued from now on waits for what another stream has been given so far. handle: 0 is the default."""
        if handle == self.handle:
            return
        event = Event(self.device)  # destroyed with this object, once it has been waited for
        event.record(self.device.api.CUstream(handle))
        self.device.call("wait for an event", "cuStreamWaitEvent", self.object, event.handle, 0)

    def upload(self, address: int, array: NDArray[Any]) -> None:
        """Copies a contiguous array to the device; the array may be changed as soon as this returns."""
        if not array.nbytes:
            return
        source = array.ctypes.data
        if array.nbytes <= _PINNED:
            view, source = self._take(array.nbytes)
            view[:] = array.reshape(-1).view(np.uint8)
        self.device.call("copy to the device", "cuMemcpyHtoDAsync", address, source, array.nbytes, self.object)

    def download(self, address: int, shape: Sequence[int], dtype: Any = np.float32) -> NDArray[Any]:
        """A new array with what is at `address`, once all that was enqueued before is done."""
        array: NDArray[Any] = np.empty(shape, dtype)
        if not array.nbytes:
            return array
        view, target = self._take(array.nbytes) if array.nbytes <= _PINNED else (None, array.ctypes.data)
        self.device.call("copy from the device", "cuMemcpyDtoHAsync", target, address, array.nbytes, self.object)
        self.synchronise()
        if view is not None:
            array.reshape(-1).view(np.uint8)[:] = view
        return array

    def copy(self, target: int, source: int, nbytes: int) -> None:
        """Copies on the device."""
        self.device.call("copy on the device", "cuMemcpyDtoDAsync", target, source, nbytes, self.object)

    def zero(self, address: int, nbytes: int) -> None:
        """Sets bytes to zero."""
        self.device.call("set device memory", "cuMemsetD8Async", address, 0, nbytes, self.object)

    def _take(self, nbytes: int) -> tuple[NDArray[np.uint8], int]:
        """A piece of the pinned memory that no copy under way uses, and its address."""
        first = -(-self._used // 256) * 256
        if self._pinned is None or first + nbytes > self._pinned.nbytes:
            if self._used:
                self.synchronise()
            first = 0
            if self._pinned is None or nbytes > self._pinned.nbytes:
                self._pinned = None
                self._pinned = self.device.pin(max(2**20, 1 << (nbytes - 1).bit_length()))
        self._used = first + nbytes
        return self._pinned.bytes[first : first + nbytes], self._pinned.address + first

    # --- graphs -----------------------------------------------------------------------------------------

    def capture(self, enqueue: Callable[[], None]) -> Graph:
        """What `enqueue` enqueues here, as a graph, and not run. Raises DeviceError where that cannot be captured."""
        device = self.device
        mode = device.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        with device.capturing():
            device.call("begin a capture", "cuStreamBeginCapture", self.object, mode)
            try:
                enqueue()
            except BaseException:
                result, graph = device.api.cuStreamEndCapture(self.object)
                if not result and int(graph):
                    device._quietly(device.api, "cuGraphDestroy", graph)
                raise
            graph = device.call("end a capture", "cuStreamEndCapture", self.object)
            try:
                made = device.call("instantiate a graph", "cuGraphInstantiate", graph, 0)
            finally:
                device._quietly(device.api, "cuGraphDestroy", graph)
        return Graph(device, made)


class Event:
    """A mark on a stream that can be waited for."""

    def __init__(self, device: Device) -> None:
        self.device = device
        flags = int(device.api.CUevent_flags.CU_EVENT_DISABLE_TIMING)
        self.handle = device.call("create an event", "cuEventCreate", flags)
        weakref.finalize(self, device.release, "cuEventDestroy", self.handle).atexit = False

    def record(self, stream: Any) -> None:
        """Marks what a stream (the driver's object) has been given so far."""
        self.device.call("record an event", "cuEventRecord", self.handle, stream)

    def synchronise(self) -> None:
        """Waits until all before the mark is done."""
        self.device.call("wait for an event", "cuEventSynchronize", self.handle)


class Graph:
    """A captured sequence of work, launched as one."""

    def __init__(self, device: Device, handle: Any) -> None:
        self._handle = handle
        weakref.finalize(self, device.release, "cuGraphExecDestroy", handle).atexit = False

    def __call__(self, stream: Stream) -> None:
        stream.device.call("launch a graph", "cuGraphLaunch", self._handle, stream.object)
