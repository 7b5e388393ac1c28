"""Arrays and streams of other libraries: `__cuda_array_interface__`, DLPack's capsules, `__cuda_stream__`."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np
import pytest
from hspace.cuda import CUDA, is_foreign
from hspace.cuda import arrays as module
from hspace.cuda.arrays import DeviceArray, Taken, from_foreign, stream_handle, to_capsule
from hspace.cuda.driver import Device, Stream
from hspace.errors import ArgumentError, DeviceError

from .fake import OTHER_CONTEXT, FakeDriver, Queue


class Interface:
    """Another library's array, by `__cuda_array_interface__`."""

    def __init__(self, address: int, shape: tuple[int, ...], typestr: str = "<f4", **more: Any) -> None:
        self.__cuda_array_interface__ = {"shape": shape, "typestr": typestr, "data": (address, False), "version": 3}
        self.__cuda_array_interface__ |= more


class Packed:
    """Another library's array, by DLPack alone. asked: the streams that it was asked for."""

    def __init__(self, address: int, shape: tuple[int, ...], device: tuple[int, int] = (CUDA, 0)) -> None:
        self.address, self.shape, self.device = address, shape, device
        self.asked: list[Any] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: Any = None) -> Any:
        self.asked.append(stream)
        return to_capsule(self.address, self.shape, np.dtype(np.float32), self.device, self)


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def device(driver: FakeDriver) -> Device:
    return Device(0, driver)


@pytest.fixture
def stream(device: Device) -> Stream:
    return device.stream()


def take(array: Any, device: Device, stream: Stream) -> DeviceArray:
    return from_foreign("images", array, device, stream)


def filled(device: Device, stream: Stream, shape: tuple[int, ...] = (2, 3, 4)) -> tuple[DeviceArray, np.ndarray]:
    made = DeviceArray.empty(device, shape)
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    with device:
        stream.upload(made.address, values)
        stream.synchronise()
    return made, values


# --- what comes in ------------------------------------------------------------------------------------------


def test_the_interface_is_taken_without_a_copy(device: Device, stream: Stream) -> None:
    made, values = filled(device, stream)
    found = take(Interface(made.address, (2, 3, 4)), device, stream)
    assert found.address == made.address and np.array_equal(found.numpy(), values)
    assert take(made, device, stream) is made


def test_capsules_are_taken_without_a_copy(device: Device, stream: Stream) -> None:
    made, values = filled(device, stream)
    packed = Packed(made.address, (2, 3, 4))
    found = take(packed, device, stream)
    assert packed.asked == [stream.handle]
    assert found.address == made.address and np.array_equal(found.numpy(), values)
    assert len(module._exported) == 1
    del found
    assert not module._exported  # the deleter was called


@pytest.mark.parametrize("told", [{}, {"stream": None}, {"stream": 1}, {"stream": 0x55}])
def test_the_producers_stream_is_waited_for(
    driver: FakeDriver, device: Device, stream: Stream, told: dict[str, Any]
) -> None:
    """And the default stream where it does not say, on which PyCUDA's kernels may still run."""
    made, values = filled(device, stream)
    driver.streams[0x55] = Queue(0xC0)
    late = driver.streams[told.get("stream") or 1]
    late.add(lambda: driver.at(made.address, np.float32, 24).__imul__(2))
    found = take(Interface(made.address, (2, 3, 4), **told), device, stream)
    with device:
        assert np.array_equal(stream.download(found.address, (2, 3, 4)), 2 * values)


def test_contiguous_or_not(device: Device, stream: Stream) -> None:
    made, _ = filled(device, stream)
    for strides in (None, (48, 16, 4), (999, 16, 4)):
        shape = (1, 3, 4) if strides == (999, 16, 4) else (2, 3, 4)  # an axis of length 1 has no stride to speak of
        take(Interface(made.address, shape, strides=strides), device, stream)
    for strides in ((4, 8, 24), (96, 16, 4), (-48, 16, 4)):
        with pytest.raises(ArgumentError, match=r"^images: found an array that is not contiguous, expected"):
            take(Interface(made.address, (2, 3, 4), strides=strides), device, stream)


def test_another_device_or_the_host(driver: FakeDriver, device: Device, stream: Stream) -> None:
    driver.holders[0xD00] = (1, 0xC5)
    with pytest.raises(DeviceError, match=r"^images: found an array on cuda:1, expected one on cuda:0$"):
        take(Interface(0xD00, (2, 3)), device, stream)
    with pytest.raises(DeviceError, match=r"^images: found an array on the host, expected one on cuda:0$"):
        take(Interface(np.zeros(6).ctypes.data, (2, 3)), device, stream)
    with pytest.raises(DeviceError, match=r"^images: found an array on cuda:1, expected one on cuda:0$"):
        take(Packed(0xD00, (2, 3), (CUDA, 1)), device, stream)


def test_another_context(driver: FakeDriver, device: Device, stream: Stream) -> None:
    driver.holders[0xD00] = (0, OTHER_CONTEXT)
    with pytest.raises(DeviceError, match=r"^images: found an array of another CUDA context.*autoprimaryctx"):
        take(Interface(0xD00, (2, 3)), device, stream)
    driver.holders[0xD00] = (0, 0)  # of a memory pool, which no context owns
    take(Interface(0xD00, (2, 3)), device, stream)


def test_an_object_that_does_not_give_its_memory(device: Device, stream: Stream) -> None:
    class Refuses(Packed):
        def __dlpack__(self, *, stream: Any = None) -> Any:
            raise BufferError("requires grad")

    with pytest.raises(ArgumentError, match=r"^images: Refuses does not give its memory \(BufferError\)$"):
        take(Refuses(0xD00, (2, 3)), device, stream)


def test_what_is_foreign() -> None:
    assert is_foreign(Interface(1, (1,))) and is_foreign(Packed(1, (1,)))
    for host in (np.zeros(3), "face.png", [np.zeros(3)], Packed(1, (1,), (1, 0)), None):
        assert not is_foreign(host)


def test_torchs_cpu_arrays_are_not_foreign() -> None:
    torch = pytest.importorskip("torch")
    assert not is_foreign(torch.zeros(3))


# --- streams ------------------------------------------------------------------------------------------------


def test_streams() -> None:
    class Method:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 0x77

    class Property:
        __cuda_stream__ = (0, 0x78)

    class PyCuda:
        handle = 0x79

    class Numba:
        handle = ctypes.c_void_p(0x80)

    found = [stream_handle(s) for s in (Method(), Property(), PyCuda(), Numba(), 0x81, None)]
    assert found == [0x77, 0x78, 0x79, 0x80, 0x81, None]
    for wrong in ("stream", 1.5, True):
        with pytest.raises(ArgumentError, match=r"^stream: found .*, expected an object with __cuda_stream__"):
            stream_handle(wrong)


# --- DLPack's capsules, with NumPy's and PyTorch's ----------------------------------------------------------


class OnHost:
    """A host array exported by our capsules."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **_: Any) -> Any:
        return to_capsule(self.array.ctypes.data, self.array.shape, self.array.dtype, (1, 0), self)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int64, np.bool_])
def test_others_take_our_capsules(dtype: Any) -> None:
    array = (np.arange(24).reshape(2, 3, 4) % 7).astype(dtype)
    found = np.from_dlpack(OnHost(array))
    assert found.dtype == dtype and np.array_equal(found, array) and found.ctypes.data == array.ctypes.data
    assert len(module._exported) == 1
    del found
    gc.collect()
    assert not module._exported
    torch = pytest.importorskip("torch")
    tensor = torch.from_dlpack(OnHost(array))
    assert tensor.data_ptr() == array.ctypes.data and np.array_equal(tensor.numpy(), array)
    del tensor
    gc.collect()
    assert not module._exported


def test_a_capsule_that_nobody_takes() -> None:
    capsule = OnHost(np.zeros(3)).__dlpack__()
    assert len(module._exported) == 1
    del capsule
    assert not module._exported


def test_we_take_others_capsules() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    taken = Taken(array.__dlpack__())
    assert (taken.address, taken.shape, taken.dtype, taken.device) == (array.ctypes.data, (2, 3, 4), np.float32, (1, 0))
    torch = pytest.importorskip("torch")
    tensor = torch.arange(24, dtype=torch.float16).reshape(4, 6)[1:, ::2]
    taken = Taken(tensor.__dlpack__())
    assert (taken.address, taken.shape, taken.dtype) == (tensor.data_ptr(), (3, 3), np.float16)
    assert taken.strides == (6, 2)
    assert Taken(torch.zeros(2, dtype=torch.bfloat16).__dlpack__()).dtype is None
    capsule = torch.zeros(3).__dlpack__()
    Taken(capsule)
    with pytest.raises(ArgumentError, match=r"no longer, a dltensor"):
        Taken(capsule)


def test_a_taken_capsule_is_deleted_once() -> None:
    array = np.zeros(3)
    taken = Taken(OnHost(array).__dlpack__())
    assert len(module._exported) == 1
    taken.release()
    taken.release()
    assert not module._exported
    del taken


# --- DeviceArray --------------------------------------------------------------------------------------------


def test_device_arrays(driver: FakeDriver, device: Device, stream: Stream) -> None:
    made, values = filled(device, stream)
    assert (made.shape, made.dtype, made.ndim, len(made), made.nbytes) == ((2, 3, 4), np.float32, 3, 2, 96)
    assert "float32 [2, 3, 4] on cuda:0" in repr(made)
    part = made[1:]
    assert np.array_equal(part.numpy(), values[1:])
    assert np.array_equal(made.reshape(6, 4).numpy(), values.reshape(6, 4))
    assert made[2:].nbytes == 0 and len(made[2:].numpy()) == 0
    for wrong in (1, slice(None, None, 2)):
        with pytest.raises(ArgumentError, match=r"^DeviceArray: found an index"):
            made[wrong]  # type: ignore[index]
    with pytest.raises(ArgumentError, match=r"found the shape \[5\] for \[2, 3, 4\]"):
        made.reshape(5)
    del made
    assert driver.memory  # part still needs it
    del part
    assert not driver.memory


def test_device_arrays_are_offered(device: Device, stream: Stream) -> None:
    made, _ = filled(device, stream)
    interface = made.__cuda_array_interface__
    assert (interface["data"], interface["shape"], interface["typestr"]) == ((made.address, False), (2, 3, 4), "<f4")
    assert interface["version"] == 3 and interface["stream"] is None and interface["strides"] is None
    assert made.__dlpack_device__() == (2, 0)
    taken = Taken(made.__dlpack__(stream=1, max_version=(1, 0)))
    assert (taken.address, taken.shape, taken.device) == (made.address, (2, 3, 4), (2, 0))
    for refused in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            made.__dlpack__(**refused)  # type: ignore[arg-type]
