"""The driver layer: what is refused and what it says, the kernels' table, and that cuda-python is as it is used."""

from __future__ import annotations

import ctypes
import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace.cuda import ordinal_of
from hspace.cuda.driver import Device, Launch, OutOfMemory
from hspace.cuda.kernels import FOLDER, Kernels
from hspace.errors import ArgumentError, DeviceError, EngineError

from .fake import OTHER_CONTEXT, CUresult, FakeDriver, Queue, write_kernels

NAME = "linear_step_fp32"
BUNDLE = Path(__file__).parents[3] / "bundles" / "avatars32"


def has_driver() -> bool:
    try:
        Device(0)
    except DeviceError:
        return False
    return True


# --- what really happens here -------------------------------------------------------------------------------


@pytest.mark.skipif(has_driver(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_opening_on_a_gpu_without_a_driver(device: str) -> None:
    expected = "found no NVIDIA driver|needs the package cuda-python|found an NVIDIA driver, and no GPU"
    with pytest.raises(DeviceError, match=rf"^device cuda: .*({expected})"):
        hspace.open(BUNDLE, device=device)
    assert issubclass(DeviceError, EngineError) and DeviceError.exit_code == 5


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:-1", "cuda:0 ", "", 0, None, "cpu:0"])
def test_devices_that_are_none(device: Any) -> None:
    with pytest.raises(ArgumentError, match=r"^device: found .*, expected 'cpu', or 'cuda:0' and so on$"):
        hspace.open(BUNDLE, device=device)


def test_ordinals() -> None:
    assert [ordinal_of(d) for d in ("cpu", "cuda", "cuda:0", "cuda:12")] == [None, 0, 0, 12]


def test_a_stream_needs_a_gpu() -> None:
    with pytest.raises(ArgumentError, match=r"^stream: found one, and the device is the CPU$"):
        hspace.open(BUNDLE, stream=7)


def test_cuda_python_has_what_is_called() -> None:
    """Every function and constant that the fake driver stands in for, with the same number of arguments."""
    real = pytest.importorskip("cuda.bindings.driver", reason="needs the extra `gpu`")
    for name, function in vars(FakeDriver).items():
        if name.startswith("cu"):
            told = (getattr(real, name).__doc__ or "").splitlines()[0]
            found = re.fullmatch(rf"{name}\((.*)\)", told)
            assert found is not None, name
            arguments = [a for a in re.sub(r"\[[^]]*\]", "", found[1]).split(",") if a.strip()]
            assert len(arguments) == len(inspect.signature(function).parameters) - 1, (name, told)
    for group in ("CUdevice_attribute", "CUfunction_attribute", "CUevent_flags", "CUstream_flags",
                  "CUstreamCaptureMode", "CUpointer_attribute"):  # fmt: skip
        for constant, value in vars(getattr(FakeDriver, group)).items():
            assert int(getattr(getattr(real, group), constant)) == value, constant
    for result in CUresult:
        assert int(getattr(real.CUresult, result.name)) == result
        assert real.CUresult(result).name == result.name
    assert not real.CUresult.CUDA_SUCCESS  # what `if result:` relies on
    assert int(real.CUstream(7)) == 7


# --- devices ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (lambda d: d.fail.update(cuInit=[CUresult.CUDA_ERROR_STUB_LIBRARY]), "no working NVIDIA driver"),
        (lambda d: d.fail.update(cuInit=[CUresult.CUDA_ERROR_NO_DEVICE]), "and no GPU that this process may use"),
        (lambda d: d.fail.update(cuInit=[CUresult.CUDA_ERROR_INVALID_VALUE]), r"does not start \(CUDA_ERROR_INVALID_V"),
        (lambda d: setattr(d, "count", 0), "and no GPU that this process may use"),
        (lambda d: setattr(d, "version", 11080), "found a driver for CUDA 11.8, expected 12.0 or newer"),
    ],
)
def test_devices_that_cannot_be_used(prepare: Callable[[FakeDriver], Any], says: str) -> None:
    driver = FakeDriver()
    prepare(driver)
    with pytest.raises(DeviceError, match=says):
        Device(0, driver)


def test_a_driver_library_that_is_not_there() -> None:
    driver = FakeDriver()

    def missing(name: str) -> None:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    driver.before = missing
    with pytest.raises(DeviceError, match=r"^device cuda: found no NVIDIA driver on this machine$"):
        Device(0, driver)


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(
        DeviceError, match=r"needs the package cuda-python, of the extra gpu: pip install '\.\[gpu\]' in a clone"
    ):
        Device(0)


@pytest.mark.parametrize(("count", "there"), [(1, "only cuda:0 is"), (3, "cuda:0 to cuda:2 are")])
def test_a_gpu_that_is_not_there(count: int, there: str) -> None:
    with pytest.raises(DeviceError, match=rf"^device cuda:3: is not there; {there}$"):
        Device(3, FakeDriver(count=count))


def test_the_context_is_given_back() -> None:
    driver = FakeDriver()
    device = Device(0, driver)
    buffer = device.allocate(16)
    assert driver.retained == 1 and device.model == "Fake GPU"
    del device
    assert driver.retained == 1  # the buffer still needs it
    del buffer
    assert driver.retained == 0


# --- memory and streams -------------------------------------------------------------------------------------


def test_allocations() -> None:
    driver = FakeDriver(limit=2**20)
    device = Device(0, driver)
    buffer = device.allocate(2**19)
    with pytest.raises(
        OutOfMemory, match=r"^device cuda:0: out of memory: asked for 0\.8 MiB, 0\.5 MiB of 1\.0 MiB ar"
    ):
        device.allocate(3 * 2**18)
    buffer.free()
    buffer.free()  # once is enough
    assert device.allocate(2**20).address % 256 == 0
    assert not driver.memory and not driver.stack


def test_page_locked_memory_that_the_host_does_not_have() -> None:
    driver = FakeDriver()
    device = Device(0, driver)
    driver.fail["cuMemHostAlloc"] = [CUresult.CUDA_ERROR_OUT_OF_MEMORY]
    with pytest.raises(DeviceError, match=r"could not page-lock 1.0 MiB of host memory: CUDA_ERROR_OUT_OF_MEMORY"):
        device.pin(2**20)


@pytest.mark.parametrize("nbytes", [0, 4, 1000, 2**20 + 4, 2**26 + 4])
def test_copies_there_and_back(nbytes: int) -> None:
    device = Device(0, FakeDriver())
    with device:
        stream, array = device.stream(), np.random.default_rng(0).integers(0, 256, nbytes, np.uint8)
        a, b = device.allocate(nbytes), device.allocate(nbytes)
        kept = array.copy()
        stream.upload(a.address, array)
        array[:] = 0  # which the upload does not see
        stream.copy(b.address, a.address, nbytes)
        assert np.array_equal(stream.download(b.address, (nbytes,), np.uint8), kept)
        stream.zero(a.address, nbytes)
        assert not stream.download(a.address, (nbytes,), np.uint8).any()


def test_many_uploads_before_anyone_waits() -> None:
    """Pinned memory is not used again while a copy may still read it."""
    device, rng = Device(0, FakeDriver()), np.random.default_rng(0)
    with device:
        stream, arrays = device.stream(), [rng.integers(0, 256, 300_000, np.uint8) for _ in range(12)]
        buffers = [device.allocate(a.nbytes) for a in arrays]
        for buffer, array in zip(buffers, arrays, strict=True):
            stream.upload(buffer.address, array)
        for buffer, array in zip(buffers, arrays, strict=True):
            assert np.array_equal(stream.download(buffer.address, array.shape, np.uint8), array)


@pytest.mark.parametrize("handle", [0, 1, 2])
def test_default_streams_are_refused(handle: int) -> None:
    with pytest.raises(DeviceError, match=r"^stream: found the default stream"):
        Device(0, FakeDriver()).stream(handle)


def test_a_stream_of_another_context() -> None:
    driver = FakeDriver()
    driver.streams[0x77] = Queue(OTHER_CONTEXT)
    with pytest.raises(DeviceError, match=r"^stream: found one of another CUDA context.*pycuda\.autoprimaryctx"):
        Device(0, driver).stream(0x77)


def test_the_hosts_stream_is_not_destroyed() -> None:
    driver = FakeDriver()
    device = Device(0, driver)
    with device:
        handle = device.stream().handle  # destroyed at once
        assert handle not in driver.streams
        driver.streams[handle] = Queue(0xC0)
        stream = device.stream(handle)
        stream.close()
        del stream
    assert handle in driver.streams


def test_errors_say_what_was_done() -> None:
    driver = FakeDriver()
    device = Device(0, driver)
    driver.fail["cuStreamCreate"] = [CUresult.CUDA_ERROR_UNKNOWN]
    with pytest.raises(DeviceError, match=r"^device cuda:0: could not create a stream: CUDA_ERROR_UNKNOWN$"):
        device.stream()
    device.stream()


# --- kernels ------------------------------------------------------------------------------------------------


def arguments(launch: Launch) -> list[Any]:
    return [a.value for a in launch._arguments]


def test_arguments_are_as_wide_as_parameters(tmp_path: Path) -> None:
    kernels = Kernels(Device(0, FakeDriver()), write_kernels(tmp_path))
    launch = kernels.linear_step("fp16", 3, x=2**40, eps=2**41, records=2**42, elements=130, eps_stride=2**31 - 1, p=9)
    assert [type(a) for a in launch._arguments] == [ctypes.c_uint64] * 7 + [ctypes.c_int32] * 5 + [ctypes.c_uint64] * 2
    assert arguments(launch) == [2**40, 2**41, 0, 0, 9, 0, 2**42, 130, 2**31 - 1, 0, 0, 1, 0, 0]
    assert launch._before[1:] == (3, 3, 1, 128, 1, 1, 0)  # grid, block, shared


@pytest.mark.parametrize(
    ("architecture", "images", "target"),
    [
        ((9, 0), [(8, 0), (9, 0)], "sm_90"),
        ((8, 9), [(7, 5), (8, 0), (8, 6), (9, 0)], "sm_86"),  # a later minor version of the same major one
        ((12, 0), [(8, 0), (9, 0)], "ptx"),
        ((8, 7), [(9, 0), (7, 5)], "ptx"),
    ],
)
def test_images_by_architecture(tmp_path: Path, architecture: Any, images: Any, target: str) -> None:
    kernels = Kernels(Device(0, FakeDriver(architecture=architecture)), write_kernels(tmp_path, images))
    variant, image, _ = kernels.load("linear_step_fp16")
    assert variant.images[target] == image


def test_an_architecture_that_is_too_old(tmp_path: Path) -> None:
    kernels = Kernels(Device(0, FakeDriver(architecture=(7, 0))), write_kernels(tmp_path, [(8, 0), (9, 0)]))
    says = "^device cuda:0: Fake GPU is of the architecture sm_70; the kernels that ship are for sm_80, sm_90, ptx$"
    with pytest.raises(DeviceError, match=says):
        kernels.load("linear_step_fp32")


def test_much_shared_memory_is_asked_for(tmp_path: Path) -> None:
    driver = FakeDriver()
    Kernels(Device(0, driver), write_kernels(tmp_path, shared=64 * 1024)).load("linear_step_fp32")
    assert list(driver.shared.values()) == [64 * 1024]


def spoil(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> Kernels:
    folder = write_kernels(tmp_path)
    table = json.loads((folder / "kernels.json").read_text())
    change(table)
    (folder / "kernels.json").write_text(json.dumps(table))
    return Kernels(Device(0, FakeDriver()), folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update(format="hspace-kernels-2"), "kernels.json: .*hspace-kernels-2"),
        (lambda t: t["kernels"].pop(NAME), "kernels.json: has no kernel linear_step_fp32"),
        (lambda t: t["kernels"][NAME]["images"]["sm_90"].update(sha256="0" * 64), "altered: found SHA-256"),
        (lambda t: t["kernels"][NAME]["images"]["sm_90"].update(file="none"), "none: missing"),
        (lambda t: t["kernels"][NAME]["images"]["sm_90"].update(global_scratch=4), "asks for scratch memory"),
        (lambda t: t["kernels"][NAME]["parameters"].append(["more", "i32"]), r"found parameters \['more'\], exp"),
    ],
)
def test_tables_that_are_wrong(tmp_path: Path, change: Any, says: str) -> None:
    kernels = spoil(tmp_path, change)
    with pytest.raises(DeviceError, match=says):
        kernels.linear_step("fp32", 1, x=1, eps=2, records=3, elements=4, eps_stride=4)


def test_a_table_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=r"kernels\.json: missing: this installation has no compiled kernels"):
        Kernels(Device(0, FakeDriver()), tmp_path).load("linear_step_fp32")


@pytest.mark.skipif(not (FOLDER / "kernels.json").exists(), reason="the kernels have not been compiled")
@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_the_kernels_that_ship_take_these_arguments(dtype: str) -> None:
    """Binding needs a driver; the fake one stands in, and does not look at the images."""
    driver = FakeDriver()
    driver.cuModuleLoadData = lambda image: (CUresult.CUDA_SUCCESS, 1)  # type: ignore[method-assign]
    driver.cuModuleGetFunction = lambda module, name: (CUresult.CUDA_SUCCESS, 2)  # type: ignore[method-assign]
    driver.functions[1] = {}
    kernels = Kernels(Device(0, driver))
    sizes = {"channels": 512, "positions": 64, "embedding": 512}
    launches = [
        kernels.linear_step(dtype, 2, x=1, eps=2, records=3, elements=4096, eps_stride=4096),
        kernels.block_norm(dtype, 2, h=1, v=2, pairs=3, **sizes),
        kernels.block_hidden(dtype, 2, h=1, v=2, temb=3, u=4, pairs=5, **sizes),
        kernels.inject(dtype, 2, h=1, u=2, targets=3, terms=4, **sizes),
    ]
    assert all(x > 0 and y > 0 and z > 0 for _, x, y, z, *_ in (launch._before for launch in launches))
