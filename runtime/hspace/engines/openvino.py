"""OpenVINO on the CPU: the U-Net in bfloat16 where the processor multiplies matrices in it, or in float32.

Three things make it fast, each measured in docs/decisions/0011:

- Graphs are compiled for fixed batch sizes, at their first use; a batch runs as chunks whose sizes are powers of two,
  and an edit's second branch as a run of its own: a head for both would hold its weights once more.
- Between trunk and head the skips stay in the layout and the type that both compute in. What `run` returns for them
  is this engine's own, to be given to the head and for nothing else; it holds the trunk's buffers until it is let go.
- In bfloat16, a GroupNorm is a scale and a shift for each channel, from sums over positions: as the exporter writes it
  (Reshape, InstanceNormalization, Reshape), every one of them would turn the whole state into another layout and back.

Norms' statistics, softmax and the timestep's angles are float32 whatever the network's type is. The encoder and the
latent DDIM's network, which run once a call or cost nothing, are float32 throughout.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError, EngineError, install
from ..manifest import Component
from . import answers, cache, cpu, privacy
from .rewrite import (
    WIDE_T,
    Float32,
    embed,
    is_skip,
    is_wide,
    keep_around,
    names_above,
    scale_and_shift,
    stay_channels_last,
    widen,
)
from .shortage import Lack, reason, refusal, shortage
from .signature import check_signature, declared

_DTYPES = {"float32": "f32", "float16": "f16", "int32": "i32", "int64": "i64"}
_LARGEST = 65536  # positions of the state, over a chunk: beyond that a larger batch is no faster, and needs more memory
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # what narrows the instruction set that the library uses
_FORM = 3  # of the compiled graphs that are cached: to be raised where `_build` changes what they compute


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


@dataclass(eq=False)
class _Compiled:
    """A component for one batch size. A request has buffers of its own: one for each call that is under way.

    wide_t: whether it takes t a second time, in float32 (`rewrite.widen`). weights: the mapped file that the model may
    read, or None where it has its own.
    """

    model: Any
    weights: Any = None
    idle: list[Any] = field(default_factory=list)
    wide_t: bool = field(init=False)

    def __post_init__(self) -> None:
        self.wide_t = any(WIDE_T in i.get_names() for i in self.model.inputs)

    def request(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return self.model.create_infer_request()


class _Chunk:
    """Samples first … first + size − 1 of a trunk's batch, and their skips as tensors by name.

    lent: the trunk whose request's buffers the skips are in, and that request, which goes back to it with the chunk.
    """

    def __init__(self, first: int, size: int, skips: dict[str, Any], lent: tuple[_Compiled, Any] | None = None) -> None:
        self.first, self.size, self.skips, self.lent = first, size, skips, lent

    def __del__(self) -> None:
        if self.lent is not None:
            compiled, request = self.lent
            self.skips.clear()
            compiled.idle.append(request)


class OpenVinoEngine:
    """See the module. `run` may be called from several threads. precision: of the U-Net, "bf16" or the graphs' own."""

    name = "openvino"
    device = "cpu"
    batch_pixels = 2**16

    def __init__(self, bundle: Bundle, threads: int | None, precision: str) -> None:
        ov = privacy.openvino()
        self._ov, self._core, self._bundle = ov, ov.Core(), bundle
        self.precision = precision
        self._threads = threads or cpu.usable_cores()
        self._components = bundle.manifest.components
        self._largest = max(1, _LARGEST // bundle.manifest.image.size**2)
        self._compiled: dict[tuple[str, int, int], _Compiled] = {}
        self._lock = threading.Lock()
        for name in self._components:
            if name == "latent":  # what edits do not use takes no memory until it is used
                bundle.read_component(name)
            else:
                self._compile(name, 1)

    def run(self, component: str, inputs: Mapping[str, Any]) -> list[Any]:
        spec = self._components[component]
        try:
            return self._head(spec, inputs) if component == "head" else self._run(component, spec, inputs)
        except (RuntimeError, ValueError) as e:  # OpenVINO's errors, and NumPy's of a shape
            shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in inputs.items() if isinstance(v, np.ndarray))
            raise EngineError(f"engine openvino: component {component} failed on {shapes}") from e

    def _run(self, component: str, spec: Component, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        chunks, parts = [], []
        for first, size in self._split(len(inputs[spec.inputs[0].name])):
            compiled = self._compile(component, size)
            request = compiled.request()
            for i in spec.inputs:
                data = request.get_tensor(i.name).data
                data[...] = np.reshape(inputs[i.name][first : first + size], data.shape)
            if compiled.wide_t:
                request.get_tensor(WIDE_T).data[...] = np.reshape(inputs["t"][first : first + size], (size, 1))
            request.infer()
            parts.append([None if is_skip(o.name) else request.get_tensor(o.name).data.copy() for o in spec.outputs])
            skips = {o.name: request.get_tensor(o.name) for o in spec.outputs if is_skip(o.name)}
            chunks.append(_Chunk(first, size, skips, (compiled, request)))
        return [
            chunks if is_skip(o.name) else np.concatenate(each) if len(each) > 1 else each[0]
            for o, each in zip(spec.outputs, zip(*parts, strict=True), strict=True)
        ]

    def _head(self, spec: Component, inputs: Mapping[str, Any]) -> list[NDArray[Any]]:
        kept = inputs["skip_0"]
        chunks = self._chunks(spec, inputs) if isinstance(kept, np.ndarray) else kept
        source: NDArray[np.int64] = np.asarray(inputs["source"], dtype=np.int64)
        out = np.empty((len(source), *[int(d) for d in spec.outputs[0].shape[1:]]), dtype=spec.outputs[0].dtype)
        turn = _turns(source)
        for chunk in chunks:
            here = (source >= chunk.first) & (source < chunk.first + chunk.size)
            for k in range(turn[here].max(initial=-1) + 1):
                rows = np.flatnonzero(here & (turn == k))
                rows = rows[np.argsort(source[rows])]
                # all of the chunk's samples in order, or some: as many as a power of two, the last ones for nobody
                m = 0 if len(rows) == chunk.size else 1 << (len(rows) - 1).bit_length()
                compiled = self._compile("head", chunk.size, m)
                request = compiled.request()
                for i in spec.inputs:
                    if is_skip(i.name):
                        request.set_tensor(i.name, chunk.skips[i.name])
                    elif i.shape[0] == "N":
                        first = chunk.first
                        request.get_tensor(i.name).data[...] = inputs[i.name][first : first + chunk.size]
                    else:
                        given = np.asarray(inputs[i.name])[np.resize(rows, m or chunk.size)]
                        request.get_tensor(i.name).data[...] = given - (chunk.first if i.name == "source" else 0)
                request.infer()
                out[rows] = request.get_tensor(spec.outputs[0].name).data[: len(rows)]
                compiled.idle.append(request)
        return [out]

    def _split(self, count: int) -> Iterator[tuple[int, int]]:
        """Chunks as (first, size): the largest first, then the powers of two that are left."""
        first = 0
        while first < count:
            size = min(self._largest, 1 << ((count - first).bit_length() - 1))
            yield first, size
            first += size

    def _chunks(self, spec: Component, inputs: Mapping[str, NDArray[Any]]) -> list[_Chunk]:
        """Skips that come as arrays, [N, C, H, W], in this engine's form."""
        chunks = []
        for first, size in self._split(len(inputs["skip_0"])):
            model = self._compile("head", size).model
            skips = {}
            for i in spec.inputs:
                if is_skip(i.name):
                    tensor = self._ov.Tensor(model.input(i.name).element_type, model.input(i.name).shape)
                    array = np.asarray(inputs[i.name][first : first + size], dtype=i.dtype)
                    if is_wide(i.shape):
                        array = array.transpose(0, 2, 3, 1)
                    self._fill(tensor, array)
                    skips[i.name] = tensor
            chunks.append(_Chunk(first, size, skips))
        return chunks

    # --- compiling ------------------------------------------------------------------------------------

    def _compile(self, component: str, n: int, m: int = 0) -> _Compiled:
        """The component for n samples, from the cache if it is there. m: how many the head has of its own, or 0 where
        each of the trunk's has one, in their order, and nothing has to be gathered.
        """
        key = component, n, m
        with self._lock:
            if key not in self._compiled:
                bf16 = self.precision == "bf16" and component in ("trunk", "head")
                config = {
                    "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                    "PERFORMANCE_HINT": "LATENCY",
                    "NUM_STREAMS": "1",
                    "INFERENCE_NUM_THREADS": str(self._threads),
                }
                self._compiled[key] = self._load(component, n, m, bf16, config)
            return self._compiled[key]

    def _load(self, component: str, n: int, m: int, bf16: bool, config: dict[str, str]) -> _Compiled:
        spec = self._components[component]
        where = f"{self._bundle.folder / spec.file}"
        device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        capabilities = sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        able = (device, capabilities, cpu.instruction_set(), *(os.environ.get(name) for name in _LIMITS))
        of = (_FORM, self._ov.__version__, *able, sorted(config.items()), spec.sha256, declared(spec), n, m)
        key = cache.key(*of)
        entry = cache.Entry("openvino", key)
        imported = self._import(entry, config)
        if imported is not None:
            self._bundle.check(spec)  # what it was made of has to be as it was
            if answers.hold(key, lambda: self._answers(imported, spec, n, m)):
                return imported
        try:
            model = self._core.read_model(self._bundle.read_component(component))
        except RuntimeError as e:
            raise refusal(where, "OpenVINO cannot load this graph", e) from e
        sides = [
            [(p.any_name, p.element_type.get_type_name(), _dimensions(p)) for p in ports]
            for ports in (model.inputs, model.outputs)
        ]
        check_signature(spec, sides[0], sides[1], _DTYPES, where)
        try:
            compiled = self._core.compile_model(self._build(model, spec, n, m, bf16), "CPU", config)
        except RuntimeError as e:
            raise refusal(where, "OpenVINO cannot compile this graph", e) from e
        del model
        answers.remember(key, self._answers(_Compiled(compiled), spec, n, m))
        entry.write(compiled.export_model().getbuffer())
        return self._import(entry, config) or _Compiled(compiled)  # which holds the weights twice

    def _answers(self, compiled: _Compiled, spec: Component, n: int, m: int) -> NDArray[np.float32]:
        """Of one evaluation with fixed inputs; see `answers`."""
        given, request = answers.inputs(spec, n, m or n), compiled.request()
        for port in compiled.model.inputs:
            name = next(n for n in (WIDE_T, *given) if n in port.get_names())  # of which it may have several
            tensor = request.get_tensor(name)
            value = np.ones((n, 1)) if name == WIDE_T else given[name]
            if is_skip(name) and is_wide(list(value.shape)):
                value = value.transpose(0, 2, 3, 1)
            self._fill(tensor, value)
        request.infer()
        found = answers.summary(_read(request.get_tensor(o.name)) for o in spec.outputs)
        compiled.idle.append(request)
        return found

    def _fill(self, tensor: Any, value: NDArray[Any]) -> None:
        if tensor.element_type == self._ov.Type.bf16:  # NumPy has none: rounded to nearest, ties to even
            bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
            halves = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
            tensor.data.view(np.uint16)[...] = halves.astype(np.uint16)
        else:
            tensor.data[...] = value

    def _import(self, entry: cache.Entry, config: dict[str, str]) -> _Compiled | None:
        """What `entry` holds, or None. The library packs the weights that it finds in the mapped file, and seldom
        returns to them: their pages are given back at once, and are read again where they are wanted.
        """
        found = entry.map()
        if found is None:
            return None
        whole, blob = found
        try:
            shared = self._ov.Tensor(np.frombuffer(blob, np.uint8), shared_memory=True)
            compiled = self._core.import_model(shared, "CPU", config)
        except RuntimeError:  # a blob that this library does not take
            return None
        if hasattr(whole, "madvise"):
            whole.madvise(mmap.MADV_DONTNEED)
        return _Compiled(compiled, whole)

    def _build(self, model: Any, spec: Component, n: int, m: int, bf16: bool) -> Any:
        """The graph for n and m samples, with its skips in the network's own form."""
        ov = self._ov
        model.reshape({i.name: [{"N": n, "M": m or n}.get(str(d), d) for d in i.shape] for i in spec.inputs})
        for node in model.get_ordered_ops():
            if node.get_type_name() == "Gather" and "source" in names_above(node.input_value(1)):
                rows = node.input_value(0).get_shape()[0]
                if rows < n:  # the library would read what is beside them
                    where = f"{self._bundle.folder / spec.file}"
                    raise BundleError(f"{where}: source is of {n} samples, and chooses among {rows} rows")
                if m == 0:
                    for user in node.output(0).get_target_inputs():
                        user.replace_source_output(node.input_value(0))
        if bf16:
            keep = Float32(self._core)
            scale_and_shift(model, keep)
            for node in model.get_ordered_ops():
                if node.get_type_name() == "Softmax":
                    keep(node)
            keep_around(model, keep)
            if any(o.name == "temb" for o in spec.outputs):
                widen(model, n)
                embed(model.output("temb").get_node().input_value(0), keep)
        form = ov.preprocess.PrePostProcessor(model)
        for ports, of in ((spec.inputs, form.input), (spec.outputs, form.output)):
            for port in ports:
                if is_skip(port.name) and is_wide(port.shape):
                    side = of(port.name)
                    side.tensor().set_layout(ov.Layout("NHWC"))
                    side.model().set_layout(ov.Layout("NCHW"))
                    if bf16:
                        side.tensor().set_element_type(ov.Type.bf16)
        built = form.build()
        if bf16:
            stay_channels_last(built)
        return built


def _turns(source: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of every head sample, how many before it read the same trunk sample: an edit's second branch is 1."""
    order = np.argsort(source, kind="stable")
    ordered = source[order]
    turns = np.empty_like(source)
    turns[order] = np.arange(len(source)) - np.searchsorted(ordered, ordered)
    return turns


def _read(tensor: Any) -> NDArray[np.float32]:
    """A tensor's values, those of bfloat16 among them."""
    if tensor.element_type.get_type_name() == "bf16":
        bits: NDArray[np.uint32] = tensor.data.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32)
    return np.asarray(tensor.data, np.float32)


def _dimensions(port: Any) -> list[int | None]:
    return [None if d.is_dynamic else d.get_length() for d in port.partial_shape]
