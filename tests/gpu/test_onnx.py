"""The shipped bundle on ONNX Runtime's CUDA provider, against the CPU."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import hspace
import numpy as np
import pytest
from hspace.cuda.driver import Device

from tests.conftest import relative_error

from .conftest import shipped

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def editors(device: Device) -> Iterator[tuple[hspace.Editor, hspace.Editor]]:
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime has no CUDA provider")
    editor = hspace.open(shipped(), device="cuda:0", batch_size=2)
    yield hspace.open(shipped(), engine="onnx"), editor
    editor.close()


@pytest.mark.parametrize("edits", [{}, {"Blond_Hair": 0.5}, {"hair_length": 1.0}])
def test_edits(editors: tuple[hspace.Editor, hspace.Editor], edits: dict[str, float]) -> None:
    host, device = editors
    expected = host.edit(IMAGES, edits, steps=10, output="float32")
    for _ in range(3):  # by launches, while the graphs are captured, and by them
        assert relative_error(device.edit(IMAGES, edits, steps=10, output="float32"), expected) <= 1e-3
    assert device.engine.graphs and all(device.engine.graphs.values())


def test_from_another_thread(editors: tuple[hspace.Editor, hspace.Editor]) -> None:
    """ONNX Runtime keeps graphs by thread."""
    host, device = editors
    found: list[Any] = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: found.append(device.reconstruct(IMAGES, steps=5, output="float32")))
        thread.start()
        thread.join()
    expected = host.reconstruct(IMAGES, steps=5, output="float32")
    assert all(relative_error(f, expected) <= 1e-3 for f in found)


def test_the_rest(editors: tuple[hspace.Editor, hspace.Editor]) -> None:
    host, device = editors
    assert np.abs(device.classify(IMAGES) - host.classify(IMAGES)).max() <= 1e-2
    expected, found = (e.sample(2, seed=1, steps=5, output="float32") for e in editors)
    assert relative_error(found, expected) <= 1e-2
    seen: list[int] = []
    device.reconstruct(IMAGES[:1], steps=4, on_step=lambda s: seen.append(s.index))
    assert seen == list(range(1, len(seen) + 1))
