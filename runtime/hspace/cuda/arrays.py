"""Arrays and streams of other libraries, in and out without a copy: PyCUDA, CuPy, PyTorch, Numba, JAX, cuda.core.

__cuda_array_interface__   numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html, versions 2 and 3
DLPack                     dmlc.github.io/dlpack/latest/python_spec.html, unversioned capsules
__cuda_stream__            nvidia.github.io/cuda-python/cuda-core/latest/interoperability.html
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArgumentError, DeviceError
from . import CUDA, MANAGED, told
from .driver import Buffer, Device, Stream

_KINDS = {"i": 0, "u": 1, "f": 2, "b": 6}  # NumPy's kinds to DLDataTypeCode
_LEGACY = 1  # how both protocols write the default stream


class DeviceArray:
    """An array on a GPU, contiguous: `output="device"` returns one, and calls that take images accept it.

    shape, dtype: as NumPy's. address: of its first byte. It offers `__cuda_array_interface__` and DLPack, so
    `torch.as_tensor(a, device="cuda")`, `cupy.asarray(a)` and PyCUDA's kernels take it as it is; `numpy()` copies it
    to the host. Its memory is freed when nothing refers to it any more. All work on it is done when a call returns it,
    so a reader has no stream to wait for.
    """

    def __init__(self, device: Device, address: int, shape: Sequence[int], dtype: Any, owner: object) -> None:
        self.device, self.address = device, address
        self.shape, self.dtype = tuple(int(d) for d in shape), np.dtype(dtype)
        self._owner = owner  # whatever has to live as long

    @classmethod
    def empty(cls, device: Device, shape: Sequence[int], dtype: Any = np.float32) -> DeviceArray:
        """New memory, uninitialised. Raises OutOfMemory."""
        buffer: Buffer = device.allocate(int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
        return cls(device, buffer.address, shape, dtype, buffer)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype} {list(self.shape)} on {self.device.name})"

    def __getitem__(self, part: slice) -> DeviceArray:
        """Some of the first axis, in the same memory."""
        first, end, step = part.indices(len(self)) if isinstance(part, slice) else (0, 0, 0)
        if step != 1:
            raise ArgumentError("DeviceArray: found an index, expected a slice of step 1: numpy() copies to the host")
        each = self.nbytes // max(len(self), 1)
        shape = (max(end - first, 0), *self.shape[1:])
        return DeviceArray(self.device, self.address + first * each, shape, self.dtype, self._owner)

    def reshape(self, *shape: int) -> DeviceArray:
        """The same memory in another shape."""
        made = DeviceArray(self.device, self.address, shape, self.dtype, self._owner)
        if made.nbytes != self.nbytes:
            raise ArgumentError(f"DeviceArray: found the shape {list(shape)} for {list(self.shape)}")
        return made

    def numpy(self) -> NDArray[Any]:
        """A copy on the host."""
        with self.device:
            stream = self.device.stream()
            try:
                return stream.download(self.address, self.shape, self.dtype)
            finally:
                stream.close()

    # --- what other libraries read ----------------------------------------------------------------------

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "strides": None,
            "stream": None,  # nothing is left to wait for
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self.device.ordinal

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule "dltensor" of the same memory. stream: not needed, as all work on the array is done."""
        if dl_device not in (None, self.__dlpack_device__()) or copy:
            raise BufferError("a DeviceArray is exported as it is, on its own device")
        return to_capsule(self.address, self.shape, self.dtype, self.__dlpack_device__(), self)


def from_foreign(name: str, array: Any, device: Device, stream: Stream) -> DeviceArray:
    """Another library's array on the same memory; `stream` waits for what its producer still has under way.

    name: of the argument, for messages. Raises DeviceError for an array of another device or context, and
    ArgumentError for one that is not contiguous.
    """
    if isinstance(array, DeviceArray) and array.device is device:
        return array
    interface = told(lambda: array.__cuda_array_interface__)
    made = _from_dlpack(name, array, device, stream) if interface is None else _from_interface(name, array, device)
    holder, context = device.holder_of(made.address)
    if made.nbytes and holder != device.ordinal:
        where = "the host" if holder is None else f"cuda:{holder}"
        raise DeviceError(f"{name}: found an array on {where}, expected one on {device.name}")
    if context not in (0, device.context):
        raise DeviceError(
            f"{name}: found an array of another CUDA context, expected the primary context of {device.name} "
            "(PyCUDA: import pycuda.autoprimaryctx instead of pycuda.autoinit)"
        )
    if interface is not None:
        # PyCUDA says None, though its kernels may still run on the default stream; so that is waited for
        with device:
            stream.wait_for(interface.get("stream") or _LEGACY)
    return made


def stream_handle(stream: Any) -> int | None:
    """The handle of a host's stream: of an object with `__cuda_stream__`, PyCUDA's and Numba's `handle`, or an int."""
    if stream is None or (isinstance(stream, int) and not isinstance(stream, bool)):
        return stream
    protocol = told(lambda: stream.__cuda_stream__)
    if protocol is not None:
        return int((protocol() if callable(protocol) else protocol)[1])
    handle = told(lambda: stream.handle)
    handle = getattr(handle, "value", handle)
    if isinstance(handle, int):
        return handle
    raise ArgumentError(f"stream: found {type(stream).__name__}, expected an object with __cuda_stream__, or a handle")


def _from_interface(name: str, array: Any, device: Device) -> DeviceArray:
    interface = array.__cuda_array_interface__
    shape, dtype = interface["shape"], np.dtype(interface["typestr"])
    _check_strides(name, shape, dtype, interface.get("strides"))
    return DeviceArray(device, int(interface["data"][0]), shape, dtype, array)


def _check_strides(name: str, shape: Sequence[int], dtype: np.dtype[Any], strides: Sequence[int] | None) -> None:
    """strides: in bytes, or None. Those of axes of length 1 mean nothing."""
    expected = dtype.itemsize
    for length, stride in zip(reversed(shape), reversed(strides or ()), strict=False):
        if length != 1 and stride != expected and 0 not in shape:
            raise ArgumentError(f"{name}: found an array that is not contiguous, expected a C-contiguous one")
        expected *= length


# --- DLPack capsules ----------------------------------------------------------------------------------------


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""


_DELETER = ctypes.CFUNCTYPE(None, ctypes.POINTER(_Managed))
_Managed._fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", _DELETER))
_DESTRUCTOR = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
_NAME, _USED = b"dltensor", b"used_dltensor"  # PyCapsule keeps the pointer, so they have to stay

_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, _DESTRUCTOR)
# By address: a capsule that is being destroyed must not be referred to again
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))

_exported: dict[int, tuple[Any, ...]] = {}  # address of a DLManagedTensor → it, its shape, its owner


def _drop(managed: Any) -> None:
    _exported.pop(ctypes.addressof(managed.contents), None)


def _end(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # nobody took it
        _exported.pop(_pointer(capsule, _NAME), None)


_delete, _destroy = _DELETER(_drop), _DESTRUCTOR(_end)


def to_capsule(address: int, shape: Sequence[int], dtype: np.dtype[Any], device: tuple[int, int], owner: object) -> Any:
    """A DLPack capsule of a contiguous array; `owner` lives until its consumer calls the deleter."""
    lengths = (ctypes.c_int64 * len(shape))(*shape)
    tensor = _DLTensor(
        address, *device, len(shape), _KINDS[dtype.kind], 8 * dtype.itemsize, 1,
        ctypes.cast(lengths, ctypes.POINTER(ctypes.c_int64)), None, 0,
    )  # fmt: skip
    managed = _Managed(tensor, None, _delete)
    _exported[ctypes.addressof(managed)] = managed, lengths, owner
    return _new(ctypes.addressof(managed), _NAME, _destroy)


class Taken:
    """A capsule's tensor, taken: `release` (or the end of this object) calls its producer's deleter once."""

    def __init__(self, capsule: Any) -> None:
        if not _is_valid(id(capsule), _NAME):
            raise ArgumentError("DLPack: found a capsule that is not, or no longer, a dltensor")
        managed = ctypes.cast(_pointer(id(capsule), _NAME), ctypes.POINTER(_Managed))
        _rename(id(capsule), _USED)
        tensor = managed.contents.tensor
        self.device = int(tensor.device_type), int(tensor.device_id)
        self.address = int(tensor.data or 0) + int(tensor.byte_offset)
        self.shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
        code = next((k for k, v in _KINDS.items() if v == tensor.code), None)
        self.dtype = None if code is None or tensor.lanes != 1 else np.dtype(f"{code}{tensor.bits // 8}")
        self.strides = tuple(tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None  # of elements
        deleter = managed.contents.deleter
        self.release = weakref.finalize(self, deleter if deleter else (lambda _: None), managed)
        self.release.atexit = False


def _from_dlpack(name: str, array: Any, device: Device, stream: Stream) -> DeviceArray:
    """The producer makes our stream wait for its own work, as DLPack wants it."""
    holder = array.__dlpack_device__()
    if tuple(map(int, holder)) not in ((CUDA, device.ordinal), (MANAGED, device.ordinal)):
        where = f"cuda:{int(holder[1])}" if int(holder[0]) in (CUDA, MANAGED) else "the host"
        raise DeviceError(f"{name}: found an array on {where}, expected one on {device.name}")
    try:
        taken = Taken(array.__dlpack__(stream=stream.handle))
    except ArgumentError:
        raise
    except Exception as e:  # each library has its own; the sentence is not for our users
        raise ArgumentError(f"{name}: {type(array).__name__} does not give its memory ({type(e).__name__})") from None
    if taken.dtype is None:
        raise ArgumentError(f"{name}: found a dtype that NumPy does not have, expected uint8 or float32")
    strides = None if taken.strides is None else [s * taken.dtype.itemsize for s in taken.strides]
    _check_strides(name, taken.shape, taken.dtype, strides)
    return DeviceArray(device, taken.address, taken.shape, taken.dtype, taken)
