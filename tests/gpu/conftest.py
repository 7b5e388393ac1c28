"""What needs a real GPU: skipped without one, saying why.

Only the driver, cuda-python and the compiled kernels are needed, unless a test says more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hspace.bundle import Bundle
from hspace.cuda.driver import Device, Stream
from hspace.cuda.kernels import FOLDER, Kernels
from hspace.errors import DeviceError
from hspace.executors.cuda import Executor
from hspace.manifest import Component

from tests.conftest import make_null_bundle
from tests.unit.cuda.conftest import SIZE, Bound, Network


@pytest.fixture(scope="session")
def device() -> Device:
    if not (FOLDER / "kernels.json").exists():
        pytest.skip("the kernels have not been compiled (python -m hspace_kernels.build)")
    try:
        return Device(0)
    except DeviceError as e:
        pytest.skip(str(e))


class ByHost(Network):
    """The tests' network for a real GPU: inputs come to the host, and outputs go back. So it cannot be captured."""

    device = "cuda:0"
    not_capturable = "it computes on the host"

    def __init__(self, components: Mapping[str, Component], stream: Stream) -> None:
        super().__init__(components)
        self._stream = stream
        self.held: list[Bound] = []

    def bind(self, component: str, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> Bound:
        spec, stream = self._components[component], self._stream

        def shape(t: Any) -> list[int]:
            return [sizes[d] if isinstance(d, str) else int(d) for d in t.shape]

        def evaluate() -> None:
            given = {t.name: stream.download(addresses[t.name], shape(t), t.dtype) for t in spec.inputs}
            for t, a in zip(spec.outputs, self.run(component, given), strict=True):
                stream.upload(addresses[t.name], np.ascontiguousarray(a))

        return Bound(evaluate, self.held)

    def close(self) -> None:
        pass


class Still(ByHost):
    """The same, with answers that were computed once: copies on the device, which can be captured."""

    not_capturable = None  # type: ignore[assignment]

    def bind(self, component: str, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> Bound:
        spec, stream = self._components[component], self._stream
        kept = []
        for t in spec.outputs:
            shape = [sizes[d] if isinstance(d, str) else int(d) for d in t.shape]
            value = answer(t.name, shape).astype(t.dtype)
            buffer = stream.device.allocate(value.nbytes)
            stream.upload(buffer.address, value)
            kept.append((addresses[t.name], buffer, value.nbytes))

        def enqueue() -> None:
            for address, buffer, nbytes in kept:
                stream.copy(address, buffer.address, nbytes)

        return Bound(enqueue, self.held)

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        spec, n = self._components[component], len(next(iter(inputs.values())))
        sizes = {"N": n, "M": n}
        return [answer(t.name, [sizes.get(str(d)) or int(d) for d in t.shape]).astype(t.dtype) for t in spec.outputs]


def answer(name: str, shape: list[int]) -> np.ndarray:
    """Of one sample, repeated."""
    one = np.random.default_rng(len(name)).standard_normal(shape[1:], dtype=np.float32)
    return np.ascontiguousarray(np.broadcast_to(one, shape))


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    root = tmp_path_factory.mktemp("null")
    return {family: Bundle(make_null_bundle(root / family, family)) for family in ("diffae", "asyrp")}


@pytest.fixture
def make_executor(device: Device, bundles: dict[str, Bundle]) -> Callable[..., Executor]:
    """(family, class of the engine, bundle) → an executor on the GPU."""

    def make(family: str = "diffae", engine: type[ByHost] = ByHost, bundle: Bundle | None = None) -> Executor:
        components, stream = (bundle or bundles[family]).manifest.components, device.stream()
        return Executor(engine(components, stream), components, SIZE, device, stream, Kernels(device))

    return make


def shipped() -> Path:
    return Path(__file__).parents[2] / "bundles" / "avatars32"
