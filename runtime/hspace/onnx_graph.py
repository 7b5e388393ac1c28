"""Holds an ONNX graph to what exports are made of, before a library parses it.

Libraries that read graphs from strangers crash: of an operator with too few inputs, a stride of 0, a value that nothing
makes. Others do as they are told: an integer divided by 0 or a row that is not there ends the process or reads what is
beside the table, and a size that follows the timestep takes all memory, at inputs that nobody tried before. So every
field that a message has is one that exports write, every operator is one that exports use, with its attributes and its
numbers of inputs and outputs, every value is made once, before it is used, and integers go where exports let them go
and nowhere else. tests/parity/test_graphs.py exports every kind of network and compares.
"""

from __future__ import annotations

import math
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .errors import BundleError
from .onnx_scan import Malformed, fields, varint

OPSET = 18  # of ONNX's own operators; no others are there
_MOST = 20_000  # nodes, initializers or declared values; the largest published network has 1,500 of each
_LONGEST = 1000  # bytes of packed numbers
_MOST_INTEGER = 65536  # of an attribute's numbers; a dimension in the manifest has the same limit
_SIZES = {1: 4, 6: 4, 7: 8, 10: 2}  # data type → bytes: float32, int32, int64, float16
_FLOATS = (1, 10)  # of those
_AT_LEAST = {"kernel_shape": 1, "strides": 1, "dilations": 1, "group": 1, "num_outputs": 1, "pads": 0}


class Operator(NamedTuple):
    """Least and most inputs, least and most outputs; attributes with a letter for their type, as in `_TYPES`."""

    inputs: tuple[int, int]
    outputs: tuple[int, int] = (1, 1)
    attributes: str = ""


_UNARY, _BINARY = Operator((1, 1)), Operator((2, 2))
_REDUCE = Operator((1, 2), (1, 1), "keepdims:i noop_with_empty_axes:i")
_POOL = "auto_pad:s ceil_mode:i kernel_shape:I pads:I strides:I"
OPERATORS = {
    **dict.fromkeys(("Add", "Div", "MatMul", "Min", "Mul", "Pow", "Sub", "Unsqueeze"), _BINARY),
    **dict.fromkeys(("Cos", "Erf", "Identity", "Mish", "Relu", "Sigmoid", "Sin", "Sqrt"), _UNARY),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _REDUCE),
    "AveragePool": Operator((1, 1), (1, 1), f"{_POOL} count_include_pad:i"),
    "Cast": Operator((1, 1), (1, 1), "to:i"),
    "Concat": Operator((1, 64), (1, 1), "axis:i"),
    "ConstantOfShape": Operator((1, 1), (1, 1), "value:t"),
    "Conv": Operator((2, 3), (1, 1), "auto_pad:s dilations:I group:i kernel_shape:I pads:I strides:I"),
    "Gather": Operator((2, 2), (1, 1), "axis:i"),
    "Gemm": Operator((2, 3), (1, 1), "alpha:f beta:f transA:i transB:i"),
    "InstanceNormalization": Operator((3, 3), (1, 1), "epsilon:f"),
    "LayerNormalization": Operator((2, 3), (1, 1), "axis:i epsilon:f stash_type:i"),
    "MaxPool": Operator((1, 1), (1, 1), f"{_POOL} dilations:I storage_order:i"),
    "Pad": Operator((2, 4), (1, 1), "mode:s"),
    "Reshape": Operator((2, 2), (1, 1), "allowzero:i"),
    "Resize": Operator(
        (3, 4),
        (1, 1),
        "antialias:i coordinate_transformation_mode:s cubic_coeff_a:f exclude_outside:i extrapolation_value:f "
        "keep_aspect_ratio_policy:s mode:s nearest_mode:s",
    ),
    "Shape": Operator((1, 1), (1, 1), "end:i start:i"),
    "Slice": Operator((3, 5)),
    "Softmax": Operator((1, 1), (1, 1), "axis:i"),
    "Split": Operator((1, 2), (1, 64), "axis:i num_outputs:i"),
    "Transpose": Operator((1, 1), (1, 1), "perm:I"),
}
# What may be an input, by where it comes from. Floats hold whatever they are computed from; integers are kept apart
_KINDS = {
    "x": "floats",
    "f": "constant floats",  # which pass for floats, too
    "c": "constant integers",
    "s": "a shape",
    "t": "the timestep",
    "l": "the timestep, limited",
    "i": "source",
    "_": "nothing",
}
# Operators that take integers: the kinds of their inputs → the kind of what they make. All others make floats of floats
INTEGERS = {
    "Cast": {"x": "x", "t": "x"},
    "Cast to int64": {"l": "l"},
    "ConstantOfShape": {"c": "x"},
    "Gather": {"xi": "x", "fl": "x"},
    "Min": {"tc": "l"},
    "Pad": {"xc": "x"},
    "ReduceMean": {"xc": "x"},
    "ReduceSum": {"xc": "x"},
    "Reshape": {"xc": "x", "xs": "x", "ic": "i", "lc": "l"},
    "Resize": {"x_f": "x"},
    "Shape": {"x": "s"},
    "Slice": {"xcccc": "x"},
    "Unsqueeze": {"xc": "x"},
}
_INPUTS = {"t": (6, "t"), "source": (7, "i")}  # the data types and kinds of inputs; of all others floats
_MAY_BE_EMPTY = {"Resize": {1, 2}, "Pad": {2}}  # inputs that may be left out before others

# message → {number of a field that exports write: its wire types}
_Wires = Mapping[int, tuple[int, ...]]
_VARINT, _BYTES, _FIXED32 = (0,), (2,), (5,)
_MODEL = {1: _VARINT, **dict.fromkeys((2, 3, 4, 6, 7, 8, 14), _BYTES), 5: _VARINT}
_GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 16), _BYTES)
_NODE = dict.fromkeys((1, 2, 3, 4, 5, 6, 7, 9), _BYTES)
_TENSOR = {1: (0, 2), 2: _VARINT, **dict.fromkeys((8, 9, 12, 16), _BYTES), 14: _VARINT}
_OPSET = {1: _BYTES, 2: _VARINT}
_VALUE = dict.fromkeys((1, 2, 3, 4), _BYTES)
_TYPE, _TENSOR_TYPE = {1: _BYTES}, {1: _VARINT, 2: _BYTES}
# type of an attribute → (its number, the field of its value, the wire types of that)
_TYPES = {"f": (1, 2, _FIXED32), "i": (2, 3, _VARINT), "s": (3, 4, _BYTES), "t": (4, 5, _BYTES), "I": (7, 8, (0, 2))}


class _Unsound(Exception):
    """What is wrong with a graph, for people."""


class _Value(NamedTuple):
    """kind: of `_KINDS`. number: a lone constant integer, the limit of a timestep, or a constant's rows."""

    kind: str
    number: int | None = None


@dataclass
class _Message:
    """The fields of a message: number → (value, start, end) of each."""

    data: memoryview
    found: dict[int, list[tuple[int, int, int]]] = field(default_factory=lambda: defaultdict(list))

    def text(self, number: int) -> str:
        """A string that is there once at most; UnicodeDecodeError where it is none."""
        texts = self.texts(number)
        if len(texts) > 1:
            raise Malformed
        return texts[0] if texts else ""

    def texts(self, number: int) -> list[str]:
        return [str(self.data[start:end], "utf-8") for _, start, end in self.found[number]]

    def number(self, number: int) -> int:
        """A number that is there once at most, as protobuf's int64."""
        numbers = self.numbers(number)
        if len(numbers) > 1:
            raise Malformed
        return numbers[0] if numbers else 0

    def numbers(self, number: int) -> list[int]:
        """Numbers one by one or packed, as protobuf's int64."""
        numbers = []
        for value, start, end in self.found[number]:
            if start == end:
                numbers.append(value)
            if end - start > _LONGEST:
                raise Malformed
            at = start
            while at < end:
                packed, at = varint(self.data, at, end)
                numbers.append(packed)
        if any(n >= 1 << 64 for n in numbers):
            raise Malformed
        return [n - (1 << 64) if n >= 1 << 63 else n for n in numbers]

    def messages(self, number: int, of: _Wires, what: str) -> list[_Message]:
        if len(self.found[number]) > _MOST:
            raise _Unsound(f"found {len(self.found[number])} of {what}, expected at most {_MOST}")
        return [_read(self.data, start, end, of, what) for _, start, end in self.found[number]]


def check_graph(data: bytes, where: str) -> None:
    """Raises BundleError where `data`, an ONNX model that `onnx_scan.check_onnx` passed, is not as exports are."""
    try:
        view = memoryview(data)
        model = _read(view, 0, len(view), _MODEL, "the model")
        opsets = [(o.text(1), o.number(2)) for o in model.messages(8, _OPSET, "operator sets")]
        graphs = model.messages(7, _GRAPH, "the graph")
        if len(graphs) != 1:
            raise _Unsound(f"found {len(graphs)} graphs, expected one")
        if graphs[0].found[1] and not (len(opsets) == 1 and opsets[0][0] == "" and opsets[0][1] == OPSET):
            shown = ", ".join(f"{_short(domain or 'ai.onnx')} {version}" for domain, version in opsets[:5]) or "none"
            raise _Unsound(f"operator sets: found {shown}, expected ai.onnx {OPSET}")
        _check_values(graphs[0])
    except Malformed:
        raise BundleError(f"{where}: expected an ONNX graph") from None
    except UnicodeDecodeError:
        raise BundleError(f"{where}: a name in the graph is not UTF-8") from None
    except _Unsound as e:
        raise BundleError(f"{where}: {e}") from None


def _read(data: memoryview, at: int, end: int, of: _Wires, what: str) -> _Message:
    message = _Message(data)
    for number, wire, value, start, stop in fields(data, at, end):
        if wire not in of.get(number, ()):
            raise _Unsound(f"{what}: found field {number} of wire type {wire}, which no export has")
        message.found[number].append((value, start, stop))
    return message


def _check_values(graph: _Message) -> None:
    """Every value is made once, before it is used, and of what exports make such values of."""
    made: dict[str, _Value] = {}

    def make(name: str, by: str, value: _Value) -> None:
        if not name or name in made:
            raise _Unsound(f"{by}: {'no name' if not name else f'{_short(name)} is defined twice'}")
        made[name] = value

    for tensor in graph.messages(5, _TENSOR, "initializers"):
        make(tensor.text(8), "initializers", _check_tensor(tensor))
    for value in graph.messages(11, _VALUE, "inputs"):
        make(value.text(1), "inputs", _check_input(value))
    for node in graph.messages(1, _NODE, "nodes"):
        name, inputs, numbers = _check_node(node)
        for i in inputs:
            if i and i not in made:
                raise _Unsound(f"operator {name}: uses {_short(i)}, which nothing before it makes")
        result = _result(name, [made[i] if i else _Value("_") for i in inputs], numbers)
        for o in node.texts(2):
            make(o, f"operator {name}", result)
    for value in graph.messages(12, _VALUE, "outputs"):
        if value.text(1) not in made:
            raise _Unsound(f"outputs: nothing makes {_short(value.text(1))}")
    for value in graph.messages(13, _VALUE, "declared values"):
        value.text(1)


def _check_input(value: _Message) -> _Value:
    name, elements = value.text(1), []
    for of in value.messages(2, _TYPE, "inputs"):
        elements += [tensor.number(1) for tensor in of.messages(1, _TENSOR_TYPE, "inputs")]
    integer, kind = _INPUTS.get(name, (0, "x"))
    if not all(e == integer or (e in _FLOATS and not integer) for e in elements):
        raise _Unsound(f"inputs: {_short(name)}: found data type {elements[0]}, expected {integer or 'floats'}")
    return _Value(kind)


def _result(name: str, inputs: list[_Value], numbers: Mapping[str, int]) -> _Value:
    """What an operator makes of these. numbers: its attributes that are one integer."""
    row = "Cast to int64" if name == "Cast" and numbers.get("to") == 7 else name
    given = "".join(i.kind for i in inputs)
    kinds = INTEGERS.get(row, {"x" * len(inputs): "x"})
    signature = next((k for k in kinds if len(k) == len(given) and all(map(_fits, k, given))), None)
    if signature is None or (row == "Cast" and numbers.get("to") not in _FLOATS):
        raise _Unsound(f"operator {row}: no export gives it {', '.join(_KINDS[k] for k in given)}")
    if name == "Gather":
        rows, limit = inputs[0].number, inputs[1].number
        if numbers.get("axis", 0) != 0 or (signature == "fl" and not (rows and limit is not None and limit < rows)):
            raise _Unsound(f"operator Gather: found rows up to {limit} of {rows}, along axis {numbers.get('axis', 0)}")
    limit = inputs[0].number
    if name == "Min":
        limit = inputs[1].number
        if limit is None or limit < 0:
            raise _Unsound(f"operator Min: found {limit}, expected one number that is not negative")
    return _Value(kinds[signature], limit if kinds[signature] == "l" else None)


def _fits(wanted: str, given: str) -> bool:
    return given == wanted or (wanted, given) == ("x", "f")


def _check_node(node: _Message) -> tuple[str, list[str], dict[str, int]]:
    """An operator's name, its inputs, and those of its attributes that are one integer."""
    name, domain, inputs, outputs = node.text(4), node.text(7), node.texts(1), node.texts(2)
    known = OPERATORS.get(name) if domain == "" else None
    if known is None:
        raise _Unsound(f"operator {_short(f'{domain}.{name}' if domain else name)}: no export uses it")
    for what, names, (least, most) in (("inputs", inputs, known.inputs), ("outputs", outputs, known.outputs)):
        if not least <= len(names) <= most:
            raise _Unsound(f"operator {name}: found {len(names)} {what}, expected {least} to {most}")
    empty = {i for i, text in enumerate(inputs) if not text}
    if not empty <= _MAY_BE_EMPTY.get(name, set()):
        raise _Unsound(f"operator {name}: input {min(empty)} has no name")
    types = dict(a.split(":") for a in known.attributes.split())
    seen: dict[str, int] = {}
    for _, start, end in node.found[5]:
        attribute, number = _check_attribute(name, node.data, start, end, types)
        if attribute in seen:
            raise _Unsound(f"operator {name}: {attribute} is given twice")
        seen[attribute] = number
    return name, inputs, seen


def _check_attribute(operator: str, data: memoryview, start: int, end: int, types: dict[str, str]) -> tuple[str, int]:
    """An attribute's name and, where it is one integer, that."""
    wires = {1: _BYTES, 13: _BYTES, 20: _VARINT} | {number: wire for _, number, wire in _TYPES.values()}
    attribute = _read(data, start, end, wires, f"operator {operator}")
    name = attribute.text(1)
    if name not in types:
        raise _Unsound(f"operator {operator}: it has no attribute {_short(name)}")
    kind, number, _ = _TYPES[types[name]]
    if attribute.number(20) != kind or any(attribute.found[n] for _, n, _ in _TYPES.values() if n != number):
        raise _Unsound(f"operator {operator}: {name} is not of the type that ONNX gives it")
    if types[name] == "s" and len(attribute.text(number)) > 64:
        raise _Unsound(f"operator {operator}: {name}: found {_short(attribute.text(number))}")
    if types[name] == "f":
        if len(attribute.found[number]) > 1:
            raise Malformed
        for _, _, stop in attribute.found[number]:
            if not math.isfinite(struct.unpack("<f", data[stop - 4 : stop])[0]):
                raise _Unsound(f"operator {operator}: {name} is not finite")
    for tensor in attribute.messages(5, _TENSOR, f"operator {operator}"):
        if _check_tensor(tensor).kind != "f":
            raise _Unsound(f"operator {operator}: {name}: found integers, expected floats")
    if types[name] in "iI":
        numbers = [attribute.number(number)] if types[name] == "i" else attribute.numbers(number)
        least = _AT_LEAST.get(name, -_MOST_INTEGER)
        if len(numbers) > 16 or not all(least <= n <= _MOST_INTEGER for n in numbers):
            shown = ", ".join(map(str, numbers[:16]))
            raise _Unsound(f"operator {operator}: {name}: found {shown}, expected {least} to {_MOST_INTEGER}")
    return name, attribute.number(3)


def _check_tensor(tensor: _Message) -> _Value:
    """Its numbers are as many as its shape says, and of a known type."""
    name, dims, kind = _short(tensor.text(8)), tensor.numbers(1), tensor.number(2)
    if kind not in _SIZES:
        raise _Unsound(f"initializer {name}: found data type {kind}, expected one of {sorted(_SIZES)}")
    if len(dims) > 8 or not all(0 <= d < 2**31 for d in dims):
        raise _Unsound(f"initializer {name}: found shape {dims[:9]}, expected at most 8 dimensions below 2^31")
    if len(tensor.found[9]) > 1:
        raise Malformed
    size = sum(end - start for _, start, end in tensor.found[9])
    if math.prod(dims) * _SIZES[kind] != size:
        raise _Unsound(f"initializer {name}: found {size} bytes, expected {math.prod(dims)} numbers of {_SIZES[kind]}")
    if kind in _FLOATS:
        return _Value("f", dims[0] if dims else None)
    if math.prod(dims) != 1:
        return _Value("c")
    _, start, end = tensor.found[9][0]
    return _Value("c", int.from_bytes(tensor.data[start:end], "little", signed=True))


def _short(name: str) -> str:
    """A name in quotes, as long as a line bears."""
    return repr(name if len(name) <= 80 else f"{name[:80]}…")
