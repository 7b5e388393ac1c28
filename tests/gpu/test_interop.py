"""PyCUDA, PyTorch and CuPy on a real GPU: arrays and streams in and out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hspace.cuda.arrays import DeviceArray
from hspace.cuda.driver import Device
from hspace.errors import DeviceError
from hspace.executors.cuda import Executor

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "pycuda_host.py"
SHAPE = (2, 3, 8, 8)


def values() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, SHAPE).astype(np.float32)


def test_torch(make_executor: Callable[..., Executor]) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("PyTorch is not built for CUDA")
    executor = make_executor()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        tensor = torch.from_numpy(values()).cuda()
        torch.cuda._sleep(10_000_000)
        tensor *= 2
    found = executor.images(tensor)  # by __cuda_array_interface__, with the stream that it names
    torch.cuda.synchronize()
    assert found.address == tensor.data_ptr() and np.allclose(found.numpy(), 2 * values())
    for back in (torch.as_tensor(found, device="cuda"), torch.from_dlpack(found)):
        assert back.data_ptr() == tensor.data_ptr()
    with pytest.raises(DeviceError, match="on the host"):
        executor.images(torch.zeros(SHAPE).pin_memory())
    assert executor.device.stream(side.cuda_stream).handle == side.cuda_stream


def test_cupy(make_executor: Callable[..., Executor]) -> None:
    cupy = pytest.importorskip("cupy")
    executor, array = make_executor(), cupy.asarray(values())
    found = executor.images(array)
    assert found.address == array.data.ptr
    assert np.array_equal(cupy.asnumpy(cupy.asarray(found)), values())


def test_pycuda(make_executor: Callable[..., Executor], device: Device) -> None:
    pytest.importorskip("pycuda", reason="needs PyCUDA")
    import pycuda.autoprimaryctx
    import pycuda.driver as cuda
    from pycuda import gpuarray

    executor, stream = make_executor(), cuda.Stream()
    assert device.stream(stream.handle).handle == stream.handle
    array = gpuarray.to_gpu(values())
    found = executor.images(array)
    assert found.address == array.ptr and np.array_equal(found.numpy(), values())
    made = DeviceArray.empty(device, SHAPE)
    mine = gpuarray.GPUArray(SHAPE, np.float32, base=made, gpudata=made.address)
    mine.set(values())
    assert np.array_equal(made.numpy(), values())
    other = cuda.Device(0).make_context()
    try:
        elsewhere = gpuarray.to_gpu(values())
        with pytest.raises(DeviceError, match="another CUDA context"):
            executor.images(elsewhere)
        with pytest.raises(DeviceError, match="another CUDA context"):
            device.stream(cuda.Stream().handle)
        del elsewhere
    finally:
        other.pop()
        other.detach()
    assert np.array_equal(executor.images(array).numpy(), values())  # the next call works
    assert pycuda.autoprimaryctx.context is not None


def test_the_pycuda_example() -> None:
    pytest.importorskip("pycuda", reason="needs PyCUDA")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDA provider")
    bundle = Path(__file__).parents[2] / "bundles" / "avatars32"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), str(bundle), "Blond_Hair"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "DeviceArray(float32 [4, 3, 32, 32] on cuda:0)" in done.stdout
