"""Refuses ONNX graphs that refer to anything outside their own bytes, before a library parses them.

A walk over protobuf's wire format that follows just the fields in which a tensor can stand
(onnx/onnx.proto): no dependency, no copies, and a depth limit.
"""

from __future__ import annotations

from collections.abc import Iterator

from .errors import BundleError

# message → {field number: message of that field}; every path by which a TensorProto can be reached
_CHILDREN: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
_MAX_DEPTH = 64
_MAX_FIELDS = 5_000_000  # a minute of walking; the largest published network has 50,000


class Malformed(Exception):
    """The bytes are no message of protobuf's."""


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """The number that begins at `at`, and where the next thing begins. Raises Malformed."""
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise Malformed


def fields(data: memoryview, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field number, wire type, varint value, start, end) of each field; start and end bound a length-delimited one.

    Raises Malformed.
    """
    while at < end:
        key, at = varint(data, at, end)
        if key >= 1 << 32:
            raise Malformed  # parsers drop the bits above, so the field would not be what it seems
        number, wire = key >> 3, key & 7
        value, start = 0, at
        if wire == 0:
            value, at = varint(data, at, end)
        elif wire == 1:
            at += 8
        elif wire == 2:
            size, start = varint(data, at, end)
            at = start + size
        elif wire == 5:
            at += 4
        else:
            raise Malformed
        if at > end or number == 0:
            raise Malformed
        yield number, wire, value, start if wire == 2 else at, at


def _has_external(data: memoryview, message: str, at: int, end: int, depth: int, left: list[int]) -> bool:
    """Whether a message, or one inside it, keeps data elsewhere. left: how many more fields may be walked."""
    if depth > _MAX_DEPTH:
        raise Malformed
    for number, _, value, start, stop in fields(data, at, end):
        left[0] -= 1
        if left[0] < 0:
            raise Malformed
        if message == "Tensor" and (number == 13 or (number == 14 and value != 0)):
            return True  # external_data, or data_location = EXTERNAL
        child = _CHILDREN[message].get(number)
        if child and stop > start and _has_external(data, child, start, stop, depth + 1, left):
            return True
    return False


def check_onnx(data: bytes, where: str) -> None:
    """Raises BundleError where `data` is not an ONNX model or keeps data outside itself."""
    view = memoryview(data)
    try:
        numbers = {number for number, *_ in fields(view, 0, len(view))}
        external = _has_external(view, "Model", 0, len(view), 0, [_MAX_FIELDS])
    except Malformed:
        raise BundleError(f"{where}: expected an ONNX graph") from None
    if not {1, 7} <= numbers:  # ir_version and graph
        raise BundleError(f"{where}: expected an ONNX graph")
    if external:
        raise BundleError(f"{where}: the graph keeps data outside its own file, which a bundle may not")
