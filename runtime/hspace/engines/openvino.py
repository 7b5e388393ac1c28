"""OpenVINO on the CPU: the U-Net in bfloat16 where the processor multiplies matrices in it, or in float32.

Three things make it fast, each measured in docs/decisions/0011:

- Graphs are compiled for fixed batch sizes, at their first use; a batch runs as chunks whose sizes are powers of two,
  and an edit's second branch as a run of its own: a head for both would hold its weights once more.
- Between trunk and head the skips stay in the trunk's buffers, in the layout and the type that both compute in.
- In bfloat16, a GroupNorm is a scale and a shift for each channel, from sums over positions: as the exporter writes it
  (Reshape, InstanceNormalization, Reshape), every one of them would turn the whole state into another layout and back.

Norms' statistics, softmax and the timestep's angles are float32 whatever the network's type is. The encoder and the
latent DDIM's network, which run once a call or cost nothing, are float32 throughout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import EngineError, install
from ..manifest import Component, Tensor
from . import cpu, privacy
from .compiled import Compiled, Graphs, fill, read
from .rewrite import WIDE_T, Size, is_skip, is_wide
from .shortage import Lack, reason, shortage

PACKAGES = ("openvino",)
NOTE = "OpenVINO on the CPU, in bfloat16 where the CPU has it"
_LARGEST = 65536  # positions of the state, over a chunk: beyond that a larger batch is no faster, and needs more memory


def version() -> str:
    """The library's."""
    return str(privacy.openvino().__version__)


def unavailable() -> str | None:
    """Whether openvino is there, loads, and offers this CPU."""
    try:
        ov = privacy.openvino()
    except ModuleNotFoundError:
        return f"the package openvino is not installed: {install('openvino')}"
    except (ImportError, OSError, MemoryError) as e:
        return reason("openvino", e)
    try:
        core = ov.Core()
        if "CPU" in core.available_devices:
            return None
        core.get_property("CPU", "FULL_DEVICE_NAME")
    except (RuntimeError, MemoryError) as e:  # its words are not for our users
        if (missing := shortage(e)) is not None:
            return Lack(f"OpenVINO cannot load its part for the CPU: {missing}")
    return "OpenVINO offers no CPU device on this machine"


def precisions(bundle: Bundle) -> tuple[str, ...]:
    """The graphs' own, and bfloat16 where the processor multiplies matrices in it."""
    try:
        able = privacy.openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    except (RuntimeError, MemoryError) as e:  # which it gave a moment ago
        raise EngineError(f"OpenVINO cannot load its part for the CPU: {shortage(e) or 'it does not say why'}") from e
    own = bundle.manifest.precision
    return (own, "bf16") if "BF16" in able else (own,)


def open_engine(bundle: Bundle, threads: int | None, precision: str) -> OpenVinoEngine:
    """Every component verified, and compiled for one sample but for the latent DDIM's network, which `sample` compiles.

    Raises BundleError for a graph that is not what the manifest says.
    """
    return OpenVinoEngine(bundle, threads, precision)


class _Chunk:
    """Samples first … first + size − 1 of a trunk's batch. skips: the tensors, by name."""

    def __init__(self, first: int, size: int, skips: dict[str, Any]) -> None:
        self.first, self.size, self.skips = first, size, skips


class _Skips:
    """A trunk's skips, chunk by chunk, in the buffers of the requests that computed them (see `unet.Skips`)."""

    def __init__(self) -> None:
        self.chunks: list[_Chunk] = []
        self._leased: list[tuple[Compiled, Any]] = []

    def lease(self, compiled: Compiled) -> Any:
        """A request whose buffers are kept until `release`."""
        request = compiled.lease()
        self._leased.append((compiled, request))
        return request

    def release(self) -> None:
        self.chunks.clear()
        while self._leased:
            compiled, request = self._leased.pop()
            compiled.give_back(request)


class OpenVinoEngine:
    """See the module. Safe to call from several threads. precision: of the U-Net, "bf16" or the graphs' own."""

    name = "openvino"
    device = "cpu"
    batch_pixels = 2**16

    def __init__(self, bundle: Bundle, threads: int | None, precision: str) -> None:
        self.precision = precision
        self._components = bundle.manifest.components
        self._largest = max(1, _LARGEST // bundle.manifest.image.size**2)
        self._graphs = Graphs(bundle, threads or cpu.usable_cores(), precision)
        for name in self._components:
            if name == "latent":  # what edits do not use takes no memory until it is used
                bundle.read_component(name)
            else:
                self._graphs.get(name, Size.plain(1))

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        spec = self._components[component]
        with _explained(component, inputs):
            if component == "head":
                return [self._head(self._chunks(spec, inputs), inputs)]
            parts = []
            for first, size in self._split(len(inputs[spec.inputs[0].name])):
                compiled = self._graphs.get(component, Size.plain(size))
                with compiled.leased() as request:
                    _infer(compiled, request, spec, inputs, first, size)
                    parts.append([_array(request.get_tensor(o.name), o) for o in spec.outputs])
        return [_joined(each) for each in zip(*parts, strict=True)]

    def trunk(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any], _Skips]:
        spec, skips, parts = self._components["trunk"], _Skips(), []
        try:
            with _explained("trunk", inputs):
                for first, size in self._split(len(inputs["x"])):
                    compiled = self._graphs.get("trunk", Size.plain(size))
                    request = skips.lease(compiled)
                    _infer(compiled, request, spec, inputs, first, size)
                    parts.append([request.get_tensor(name).data.copy() for name in ("h", "temb")])
                    tensors = {o.name: request.get_tensor(o.name) for o in spec.outputs if is_skip(o.name)}
                    skips.chunks.append(_Chunk(first, size, tensors))
        except BaseException:
            skips.release()
            raise
        h, temb = (_joined(each) for each in zip(*parts, strict=True))
        return h, temb, skips

    def head(self, skips: _Skips, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        with _explained("head", inputs):
            return self._head(skips.chunks, inputs)

    def _head(self, chunks: list[_Chunk], inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        spec = self._components["head"]
        source: NDArray[np.int64] = np.asarray(inputs["source"], dtype=np.int64)
        out = np.empty((len(source), *[int(d) for d in spec.outputs[0].shape[1:]]), dtype=spec.outputs[0].dtype)
        turn = _turns(source)
        for chunk in chunks:
            here = (source >= chunk.first) & (source < chunk.first + chunk.size)
            for k in range(turn[here].max(initial=-1) + 1):
                rows = np.flatnonzero(here & (turn == k))
                rows = rows[np.argsort(source[rows])]
                # all of the chunk's samples in order, or some: as many as a power of two, the last ones for nobody
                every = len(rows) == chunk.size
                size = Size.plain(chunk.size) if every else Size(chunk.size, 1 << (len(rows) - 1).bit_length())
                with self._graphs.get("head", size).leased() as request:
                    for i in spec.inputs:
                        if is_skip(i.name):
                            request.set_tensor(i.name, chunk.skips[i.name])
                        elif i.shape[0] == "N":
                            first = chunk.first
                            request.get_tensor(i.name).data[...] = inputs[i.name][first : first + chunk.size]
                        else:
                            given = np.asarray(inputs[i.name])[np.resize(rows, size.m)]
                            request.get_tensor(i.name).data[...] = given - (chunk.first if i.name == "source" else 0)
                    request.infer()
                    out[rows] = request.get_tensor(spec.outputs[0].name).data[: len(rows)]
        return out

    def _split(self, count: int) -> Iterator[tuple[int, int]]:
        """Chunks as (first, size): the largest first, then the powers of two that are left."""
        first = 0
        while first < count:
            size = min(self._largest, 1 << ((count - first).bit_length() - 1))
            yield first, size
            first += size

    def _chunks(self, spec: Component, inputs: Mapping[str, NDArray[Any]]) -> list[_Chunk]:
        """Skips that come as arrays, [N, C, H, W], in this engine's form."""
        tensor = privacy.openvino().Tensor
        chunks = []
        for first, size in self._split(len(inputs["skip_0"])):
            model = self._graphs.get("head", Size.plain(size)).model
            skips = {}
            for i in spec.inputs:
                if is_skip(i.name):
                    skips[i.name] = tensor(model.input(i.name).element_type, model.input(i.name).shape)
                    array = np.asarray(inputs[i.name][first : first + size], dtype=i.dtype)
                    fill(skips[i.name], array.transpose(0, 2, 3, 1) if is_wide(i.shape) else array)
            chunks.append(_Chunk(first, size, skips))
        return chunks


def _infer(
    compiled: Compiled, request: Any, spec: Component, inputs: Mapping[str, NDArray[Any]], first: int, size: int
) -> None:
    """Evaluates samples first … first + size − 1."""
    for i in spec.inputs:
        data = request.get_tensor(i.name).data
        data[...] = np.reshape(inputs[i.name][first : first + size], data.shape)
    if compiled.wide_t:
        request.get_tensor(WIDE_T).data[...] = np.reshape(inputs["t"][first : first + size], (size, 1))
    request.infer()


@contextmanager
def _explained(component: str, inputs: Mapping[str, NDArray[Any]]) -> Iterator[None]:
    """OpenVINO's errors, and NumPy's of a shape, as ours."""
    try:
        yield
    except (RuntimeError, ValueError) as e:
        shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in inputs.items())
        raise EngineError(f"engine openvino: component {component} failed on {shapes}") from e


def _array(tensor: Any, output: Tensor) -> NDArray[Any]:
    """A copy of an output, as the manifest has it."""
    if is_skip(output.name) and is_wide(output.shape):
        return np.array(read(tensor).transpose(0, 3, 1, 2), output.dtype, order="C")
    array: NDArray[Any] = tensor.data.copy()
    return array


def _joined(parts: tuple[NDArray[Any], ...]) -> NDArray[Any]:
    return np.concatenate(parts) if len(parts) > 1 else parts[0]


def _turns(source: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of every head sample, how many before it read the same trunk sample: an edit's second branch is 1."""
    order = np.argsort(source, kind="stable")
    ordered = source[order]
    turns = np.empty_like(source)
    turns[order] = np.arange(len(source)) - np.searchsorted(ordered, ordered)
    return turns
