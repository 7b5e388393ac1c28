"""OpenVINO's graphs, compiled for a number of samples each, and the requests that evaluate them."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..manifest import Component
from . import answers, cache, cpu, privacy
from .rewrite import WIDE_T, Size, build, is_skip, is_wide
from .shortage import refusal
from .signature import check_signature, declared

_DTYPES = {"float32": "f32", "float16": "f16", "int32": "i32", "int64": "i64"}
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # what narrows the instruction set that the library uses
_FORM = 3  # of the compiled graphs that are cached: to be raised where `rewrite.build` changes what they compute


@dataclass(eq=False)
class Compiled:
    """A component for one size. A request has buffers of its own: one for each evaluation that is under way, and one
    for each chunk of features that is held.

    wide_t: whether it takes t a second time, in float32 (`rewrite.widen`). weights: the mapped file that the model may
    read, or None where it has its own.
    """

    model: Any
    weights: Any = None
    wide_t: bool = field(init=False)
    _idle: list[Any] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self.wide_t = any(WIDE_T in i.get_names() for i in self.model.inputs)

    def lease(self) -> Any:
        """A request that is nobody else's until `give_back`."""
        try:
            return self._idle.pop()
        except IndexError:
            return self.model.create_infer_request()

    def give_back(self, request: Any) -> None:
        self._idle.append(request)

    @contextmanager
    def leased(self) -> Iterator[Any]:
        """A request for as long as the block runs, however it ends."""
        request = self.lease()
        try:
            yield request
        finally:
            self.give_back(request)


class Graphs:
    """A bundle's components, compiled when a size is first asked for. precision: of the U-Net."""

    def __init__(self, bundle: Bundle, threads: int, precision: str) -> None:
        ov = privacy.openvino()
        self._ov, self._core, self._bundle = ov, ov.Core(), bundle
        self._threads, self._precision = threads, precision
        self._compiled: dict[tuple[str, Size], Compiled] = {}
        self._lock = threading.Lock()

    def get(self, component: str, size: Size) -> Compiled:
        """The component for that many samples. Raises BundleError for a graph that is not what the manifest says."""
        key = component, size
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._load(component, size)
            return self._compiled[key]

    def _load(self, component: str, size: Size) -> Compiled:
        """From the cache if it is there, and answers as it did."""
        spec, bf16 = self._bundle.component(component), self._precision == "bf16" and component in ("trunk", "head")
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self._threads),
        }
        key = self._key(spec, size, config)
        entry = cache.Entry("openvino", key)
        imported = self._import(entry, config)
        if imported is not None:
            self._bundle.check(spec)  # what it was made of has to be as it was
            if answers.hold(key, lambda: _answers(imported, spec, size)):
                return imported
        compiled = self._compile(component, spec, size, bf16, config)
        answers.remember(key, _answers(compiled, spec, size))
        entry.write(compiled.model.export_model().getbuffer())
        return self._import(entry, config) or compiled  # which holds the weights twice

    def _key(self, spec: Component, size: Size, config: dict[str, str]) -> str:
        """Of the cache: all that decides what is compiled."""
        device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        capabilities = sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        able = (device, capabilities, cpu.instruction_set(), *(os.environ.get(name) for name in _LIMITS))
        samples = (size.n, size.m if size.gathers else 0)
        return cache.key(
            _FORM, self._ov.__version__, *able, sorted(config.items()), spec.sha256, declared(spec), *samples
        )

    def _compile(self, component: str, spec: Component, size: Size, bf16: bool, config: dict[str, str]) -> Compiled:
        where = f"{self._bundle.folder / spec.file}"
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
            built = build(self._core, model, spec, size, bf16, where)
            return Compiled(self._core.compile_model(built, "CPU", config))
        except RuntimeError as e:
            raise refusal(where, "OpenVINO cannot compile this graph", e) from e

    def _import(self, entry: cache.Entry, config: dict[str, str]) -> Compiled | None:
        """What `entry` holds, or None. The library packs the weights that it finds in the mapped file, and seldom
        returns to them: their pages are given back at once, and are read again where they are wanted.
        """
        mapped = entry.map()
        if mapped is None:
            return None
        whole, blob = mapped
        try:
            shared = self._ov.Tensor(np.frombuffer(blob, np.uint8), shared_memory=True)
            compiled = self._core.import_model(shared, "CPU", config)
        except RuntimeError:  # a blob that this library does not take
            return None
        if hasattr(whole, "madvise"):
            whole.madvise(mmap.MADV_DONTNEED)
        return Compiled(compiled, whole)


def fill(tensor: Any, value: NDArray[Any]) -> None:
    """Writes values into a tensor, in its type."""
    if tensor.element_type.get_type_name() == "bf16":  # NumPy has none: rounded to nearest, ties to even
        bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
        halves = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        tensor.data.view(np.uint16)[...] = halves.astype(np.uint16)
    else:
        tensor.data[...] = value


def read(tensor: Any) -> NDArray[np.float32]:
    """A tensor's values, those of bfloat16 among them."""
    if tensor.element_type.get_type_name() == "bf16":
        bits: NDArray[np.uint32] = tensor.data.view(np.uint16).astype(np.uint32) << 16
        return bits.view(np.float32)
    return np.asarray(tensor.data, np.float32)


def _answers(compiled: Compiled, spec: Component, size: Size) -> NDArray[np.float32]:
    """Of one evaluation with fixed inputs; see `answers`."""
    given = answers.inputs(spec, size.n, range(size.m))
    with compiled.leased() as request:
        for port in compiled.model.inputs:
            name = next(n for n in (WIDE_T, *given) if n in port.get_names())  # of which it may have several
            value = np.ones((size.n, 1)) if name == WIDE_T else given[name]
            if is_skip(name) and is_wide(list(value.shape)):
                value = value.transpose(0, 2, 3, 1)
            fill(request.get_tensor(name), value)
        request.infer()
        return answers.summary(read(request.get_tensor(o.name)) for o in spec.outputs)


def _dimensions(port: Any) -> list[int | None]:
    return [None if d.is_dynamic else d.get_length() for d in port.partial_shape]
