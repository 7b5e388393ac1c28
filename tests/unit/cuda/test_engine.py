"""Engines on a device, and ONNX Runtime bound to addresses: of host memory, by its CPU provider."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hspace.bundle import Bundle
from hspace.cuda.driver import Device, OutOfMemory
from hspace.cuda.kernels import Kernels
from hspace.editor import Editor
from hspace.engines import onnx, open_device_engine, open_engine
from hspace.errors import DeviceError, EngineError
from hspace.executors import cuda
from hspace.executors.cuda import Executor

from tests.conftest import BUNDLES, relative_error

from .conftest import Bound
from .fake import OTHER_CONTEXT, FakeDriver, Queue


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle(BUNDLES / "avatars32")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("null", "^engine null: cannot run on cuda:0, expected auto or onnx$"),
        ("openvino", "^engine openvino: cannot run on cuda:0, expected auto or onnx$"),
        ("cudnn", "^engine: found 'cudnn', expected auto, "),
    ],
)
def test_engines_that_are_not_for_gpus(bundle: Bundle, name: str, says: str) -> None:
    device = Device(0, FakeDriver())
    with pytest.raises(EngineError, match=says):
        open_device_engine(name, bundle, device, device.stream())


@pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="it is there")
@pytest.mark.parametrize("name", ["auto", "onnx"])
def test_onnxruntime_without_its_cuda_provider(bundle: Bundle, name: str) -> None:
    device = Device(0, FakeDriver())
    with pytest.raises(EngineError, match=r"without its CUDA provider, .*: pip install '\.\[gpu\]' in a clone"):
        open_device_engine(name, bundle, device, device.stream())


def test_what_is_refused_before_the_networks_are_loaded(
    bundle: Bundle, kernels_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = FakeDriver(architecture=(7, 0))
    driver.streams[0x77] = Queue(OTHER_CONTEXT)
    monkeypatch.setattr(cuda, "Device", lambda ordinal: Device(ordinal, driver))
    monkeypatch.setattr(cuda, "Kernels", lambda device: Kernels(device, kernels_folder))
    with pytest.raises(DeviceError, match=r"of the architecture sm_70; the kernels that ship are for sm_80, sm_90"):
        cuda.open_executor(bundle, "auto", 0)
    with pytest.raises(DeviceError, match=r"^stream: found one of another CUDA context"):
        cuda.open_executor(bundle, "auto", 0, 0x77)
    driver.architecture = (9, 0)
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(EngineError, match=r"\.\[gpu\]"):
            cuda.open_executor(bundle, "auto", 0)
    assert not driver.memory


class OnHostMemory(onnx.OnnxCudaEngine):
    """All of the engine but the GPU: the fake driver's addresses are the host's, and the CPU provider takes them."""

    provider, memory = "CPUExecutionProvider", "cpu"
    refuse_graphs = False

    def __init__(self, bundle: Bundle, device: Device, stream: Any) -> None:
        self.asked: list[tuple[Any, bool]] = []
        super().__init__(bundle, device, stream)

    def _open(self, data: bytes, stream: Any, graphs: bool) -> Any:
        self.asked.append((stream.handle, graphs))
        if graphs and self.refuse_graphs:
            raise RuntimeError("all compute graph nodes have not been partitioned to the CUDAExecutionProvider")
        return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def bind(self, component: str, sizes: Any, addresses: Any) -> Any:
        """As work of the fake driver's stream, which is where the inputs are made."""
        run, device = super().bind(component, sizes, addresses), self._device
        return Bound(lambda: device.api.streams[self._stream.handle].add(run), [])


def made(bundle: Bundle, folder: Path) -> tuple[Editor, OnHostMemory, FakeDriver]:
    driver = FakeDriver()
    device = Device(0, driver)
    stream = device.stream()
    engine = OnHostMemory(bundle, device, stream)
    components, size = bundle.manifest.components, bundle.manifest.image.size
    executor = Executor(engine, components, size, device, stream, Kernels(device, folder))
    return Editor(bundle, engine, executor=executor), engine, driver


def test_the_shipped_bundle_bound_to_addresses(bundle: Bundle, kernels_folder: Path) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (2, 3, 32, 32)).astype(np.float32)
    editor, engine, _ = made(bundle, kernels_folder)
    host = Editor(bundle, open_engine("onnx", bundle))
    edits = {"Blond_Hair": 0.5, "hair_length": 0.5}
    expected = host.edit(images, edits, steps=3, output="float32")
    assert relative_error(editor.edit(images, edits, steps=3, output="float32"), expected) <= 1e-4
    assert relative_error(editor.classify(images), host.classify(images)) <= 1e-4
    assert engine.device == "cuda:0" and engine.precision == "fp32"
    assert "cannot be captured" in str(editor.executor.not_captured)  # type: ignore[attr-defined]
    (z_sem,) = engine.run("encoder", {"x": images})  # and by themselves, as on the CPU
    assert relative_error(z_sem, host.encode_z(images)) <= 1e-4


def test_a_graph_with_nodes_on_the_cpu(bundle: Bundle, kernels_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnHostMemory, "refuse_graphs", True)
    editor, engine, _ = made(bundle, kernels_folder)
    assert engine.graphs == dict.fromkeys(bundle.manifest.components, False)
    assert [graphs for _, graphs in engine.asked] == [True, False] * len(bundle.manifest.components)
    assert np.isfinite(editor.sample(1, steps=2, output="float32")).all()


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("Failed to allocate memory for requested buffer of size 3145728", "asked for 3.0 MiB"),
        ("CUDA failure 2: out of memory ; GPU=0", "asked for memory"),
    ],
)
def test_errors_of_onnxruntime(bundle: Bundle, kernels_folder: Path, text: str, asked: str) -> None:
    _, engine, _ = made(bundle, kernels_folder)
    with pytest.raises(OutOfMemory, match=f"^device cuda:0: out of memory: {asked}, "), engine.explained("head"):
        raise RuntimeError(text)
    with (
        pytest.raises(EngineError, match=r"^engine onnx: component head failed on cuda:0$"),
        engine.explained("head"),
    ):
        raise RuntimeError("something else that is long and not for users")
