"""How much work a part is: its network evaluations, their floating-point operations and the bytes that they move.

Counted, not measured: evaluations by running the part on an engine that counts, operations in the ONNX graphs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..bundle import Bundle
from ..editor import Editor
from ..errors import BundleError
from . import parts

# What multiplies matrices too, or hides nodes that do: a graph that has one would be counted as less than it is.
_UNCOUNTED = {
    *("Attention", "ConvInteger", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "MatMulInteger"),
    *("QLinearConv", "QLinearMatMul", "RNN", "Scan", "SequenceMap"),
}


@dataclass(frozen=True)
class Work:
    """flop: 2 for each multiplication and addition of convolutions and matrix products; the rest is not counted.
    traffic: bytes of weights, inputs and outputs, as the graph stores them, each once.
    """

    flop: float
    traffic: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flop + other.flop, self.traffic + other.traffic)

    def __mul__(self, count: int) -> Work:
        return Work(self.flop * count, self.traffic * count)


def can_count() -> bool:
    """Whether the package onnx is installed, which reads the graphs."""
    return importlib.util.find_spec("onnx") is not None


def evaluations(bundle: Bundle, batches: list[int], steps: int | None) -> dict[tuple[str, int], Counter[Any]]:
    """(part, samples) → (component, samples, the head's own samples) → how often one run evaluates it.

    What `timing.compare` times, but "inject" and "update", which evaluate nothing.
    """
    tally = parts.Tally(bundle)
    editor = Editor(bundle, tally)
    first, *others = batches
    runs: dict[tuple[str, int], Callable[[], object]] = {}
    for name, run in {**parts.parts(editor, first), **parts.calls(editor, first, steps)}.items():
        runs[name, first] = run
    for n in others:
        runs |= {(name, n): run for name, run in parts.steps(editor, n).items()}
    counts = {}
    for part, run in runs.items():
        if part[0] not in ("inject", "update"):
            tally.counts.clear()
            run()
            counts[part] = Counter(tally.counts)
    return counts


def works(
    bundle: Bundle, evaluated: Mapping[tuple[str, int], Counter[tuple[str, int, int]]]
) -> dict[tuple[str, int], Work]:
    """The work of every part, from `evaluations`'. Raises BundleError for a graph that cannot be counted."""

    @functools.cache
    def of(component: str, n: int, m: int) -> Work:
        where = str(bundle.folder / bundle.manifest.components[component].file)
        return graph(bundle.read_component(component), {"N": n, "M": m}, where)

    return {
        part: sum((of(*key) * count for key, count in counts.items()), Work(0, 0)) for part, counts in evaluated.items()
    }


def graph(data: bytes, sizes: Mapping[str, int], where: str = "graph") -> Work:
    """The work of one evaluation of an ONNX graph.

    sizes: the value of each symbolic dimension; without them, shapes inside the graph would stay unknown. Raises
    BundleError where a shape is not known all the same, or where a node's operations cannot be counted.
    """
    onnx: Any = importlib.import_module("onnx")  # as a string: no run of the library may need it, only this count
    try:
        model = onnx.load_model_from_string(data)
    except Exception as e:  # protobuf's, which onnx does not name
        raise BundleError(f"{where}: onnx cannot read this graph") from e
    del data
    weights = 0
    for tensor in model.graph.initializer:
        size = math.prod(tensor.dims)
        weights += size * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        if size > 1024:  # inference needs the values of shapes alone, and copies what it is given
            for field in ("raw_data", "float_data", "double_data", "int32_data", "int64_data"):
                tensor.ClearField(field)
    for value in (*model.graph.input, *model.graph.output):
        for d in value.type.tensor_type.shape.dim:
            if d.dim_param in sizes:
                d.dim_value = sizes[d.dim_param]
    del model.graph.value_info[:]  # its shapes are symbolic too
    hidden = [n.op_type for n in model.graph.node if n.op_type in _UNCOUNTED or n.domain not in ("", "ai.onnx")]
    if hidden or model.functions:
        raise BundleError(f"{where}: the work of {', '.join(sorted({*hidden})) or 'functions'} cannot be counted")
    if model.graph.node:
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except Exception as e:  # onnx's own error, a RuntimeError
            raise BundleError(f"{where}: onnx cannot infer this graph's shapes") from e
    shapes: dict[str, list[int]] = {t.name: list(t.dims) for t in model.graph.initializer}
    types = {}
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim):
            shapes[value.name] = [d.dim_value for d in kind.shape.dim]
            types[value.name] = kind.elem_type

    def shape(name: str, what: str) -> list[int]:
        if name not in shapes:
            raise BundleError(f"{where}: {what}: the shape of {name} is not known, so its work cannot be counted")
        return shapes[name]

    flop = 0
    for node in model.graph.node:
        flop += _flop(onnx, node, functools.partial(shape, what=node.op_type))
    stored = {t.name for t in model.graph.initializer}
    moved = 0
    for kind_name, values in (("input", model.graph.input), ("output", model.graph.output)):
        for value in values:
            if value.name not in stored:
                size = math.prod(shape(value.name, kind_name))
                moved += size * onnx.helper.tensor_dtype_to_np_dtype(types[value.name]).itemsize
    return Work(float(flop), float(weights + moved))


def _flop(onnx: Any, node: Any, shape: Callable[[str], list[int]]) -> int:
    """Floating-point operations of one node."""
    if node.op_type == "Conv":  # every output value: a product with a kernel of [C_in/groups, …]
        return 2 * math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])
    if node.op_type == "ConvTranspose":  # every input value: a product with a kernel of [C_out/groups, …]
        return 2 * math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])
    if node.op_type == "MatMul":
        return 2 * math.prod(shape(node.output[0])) * shape(node.input[0])[-1]
    if node.op_type == "Gemm":
        turned = any(a.name == "transA" and onnx.helper.get_attribute_value(a) for a in node.attribute)
        return 2 * math.prod(shape(node.output[0])) * shape(node.input[0])[0 if turned else 1]
    return 0
