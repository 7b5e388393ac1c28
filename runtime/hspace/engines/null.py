"""The null engine: deterministic numbers of the right shapes, from no model and no dependency.

Every output value depends on every input of its own sample and on nothing of the others, and an input that
moves a little moves the outputs a little; so most of the runtime can be tested on it, and its time is overhead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..bundle import Bundle

PACKAGES: tuple[str, ...] = ()
NOTE = "computes nothing real: for tests and for measuring overhead"


def version() -> str:
    """hspace's own."""
    return str(__version__)


def unavailable() -> str | None:
    """It runs anywhere."""
    return None


def precisions(bundle: Bundle) -> tuple[str, ...]:
    """float32, whatever the graphs are."""
    return ("fp32",)


def open_engine(bundle: Bundle, threads: int | None, precision: str) -> NullEngine:
    """Verifies the bundle's files, and reads no more of them."""
    for _ in bundle.verify():
        pass
    return NullEngine(bundle)


class NullEngine:
    """See the module."""

    name = "null"
    device = "cpu"
    precision = "fp32"
    batch_pixels = 2**16

    def __init__(self, bundle: Bundle) -> None:
        self._components = bundle.manifest.components

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        spec = self._components[component]
        source = inputs.get("source")
        score: NDArray[np.float64] | None = None
        for k, tensor in enumerate(spec.inputs):
            if tensor.name == "source":
                continue
            array = inputs[tensor.name].astype(tensor.dtype).astype(np.float32).reshape(len(inputs[tensor.name]), -1)
            mean: NDArray[np.float64] = array.mean(axis=1, dtype=np.float64) * (0.5 + 0.1 * k)
            mean += 0 * array.sum(axis=1)  # what overflows float32 in a network does so here
            mean = mean[source] if source is not None and tensor.shape[0] == "N" else mean
            score = mean if score is None else score + mean
        assert score is not None
        turned: NDArray[np.float32] = np.remainder(score, 2 * np.pi).astype(
            np.float32
        )  # t is hundreds, where float32 has steps of 6e-5
        return [self._output(turned, [int(d) for d in o.shape[1:]], o.dtype, j) for j, o in enumerate(spec.outputs)]

    @staticmethod
    def _output(score: NDArray[np.float32], shape: list[int], dtype: str, j: int) -> NDArray[Any]:
        waves: NDArray[Any] = np.sin(score[:, None] + _wave(math.prod(shape), j))
        return waves.reshape(len(score), *shape).astype(dtype)


@lru_cache(16)
def _wave(size: int, j: int) -> NDArray[np.float32]:
    wave: NDArray[np.float32] = np.remainder(np.arange(size) * 0.37 + j, 2 * np.pi).astype(np.float32)
    return wave
