"""ONNX graphs that keep data elsewhere, and what is no ONNX graph at all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import hspace
import numpy as np
import pytest
from hspace.bundle import Bundle
from hspace.errors import BundleError
from hspace.onnx_scan import check_onnx

from .helpers import field, model, refused, replace, varint

PLAIN = field(1, 1) + field(2, 1) + field(8, "w") + field(9, b"\0\0\0\0")
EXTERNAL = field(1, 1) + field(2, 1) + field(8, "w")
EXTERNAL += field(13, field(1, "location") + field(2, "../../etc/passwd")) + field(14, 1)
LOCATION_ALONE = field(1, 1) + field(14, 1)
ENTRY_ALONE = field(1, 1) + field(13, field(1, "location") + field(2, "weights.bin"))
TENSORS = {"external": EXTERNAL, "data_location alone": LOCATION_ALONE, "external_data alone": ENTRY_ALONE}


def attribute(number: int, value: bytes) -> bytes:
    """A node with one attribute that holds `value` under a field number."""
    return field(4, "Constant") + field(5, field(1, "value") + field(number, value))


def function(body: bytes) -> bytes:
    return model(rest=field(25, field(1, "f") + body))


# every path of onnx.proto by which a tensor can be reached
PLACES: dict[str, Callable[[bytes], bytes]] = {
    "initializer": lambda t: model(field(5, t)),
    "second initializer": lambda t: model(field(5, PLAIN) + field(5, t)),
    "sparse initializer, values": lambda t: model(field(15, field(1, t))),
    "sparse initializer, indices": lambda t: model(field(15, field(2, t))),
    "node attribute": lambda t: model(field(1, attribute(5, t))),
    "node attribute, list": lambda t: model(field(1, attribute(10, t))),
    "node attribute, sparse": lambda t: model(field(1, attribute(22, field(1, t)))),
    "node attribute, sparse list": lambda t: model(field(1, attribute(23, field(1, t)))),
    "subgraph": lambda t: model(field(1, attribute(6, field(5, t)))),
    "list of subgraphs": lambda t: model(field(1, attribute(11, field(5, t)))),
    "subgraph's node attribute": lambda t: model(field(1, attribute(6, field(1, attribute(5, t))))),
    "function's node": lambda t: function(field(7, attribute(5, t))),
    "function's default": lambda t: function(field(11, field(1, "a") + field(5, t))),
    "training, initialization": lambda t: model(rest=field(20, field(1, field(5, t)))),
    "training, algorithm": lambda t: model(rest=field(20, field(2, field(5, t)))),
    "second graph, which protobuf merges": lambda t: model(rest=field(7, field(5, t))),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("tensor", TENSORS)
def test_external_data(tensor: str, place: str) -> None:
    with refused(BundleError, "trunk.onnx: the graph keeps data outside its own file"):
        check_onnx(PLACES[place](TENSORS[tensor]), "trunk.onnx")


@pytest.mark.parametrize("place", PLACES)
def test_internal_data_passes(place: str) -> None:
    """The refusals above are of the external data, not of the place."""
    check_onnx(PLACES[place](PLAIN), "trunk.onnx")
    check_onnx(PLACES[place](PLAIN + field(14, 0)), "trunk.onnx")


@pytest.mark.parametrize("engine", ["null", "onnx"])
@pytest.mark.parametrize("place", ["initializer", "node attribute", "subgraph"])
def test_external_data_in_a_bundle(place: str, engine: str, null_folder: Path) -> None:
    """The manifest's SHA-256 is right, so only the scan can refuse; `weights.bin` stands beside, outside."""
    file = replace(null_folder, "components.trunk", PLACES[place](EXTERNAL))
    with refused(BundleError, f"{null_folder / file}: the graph keeps data outside", unchanged=null_folder):
        hspace.open(null_folder, engine=engine)
    with refused(BundleError, f"{null_folder / file}: the graph keeps data outside"):
        list(Bundle(null_folder).verify())


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph"])
def test_external_data_as_onnx_writes_it(place: str) -> None:
    onnx = pytest.importorskip("onnx")
    tensor = onnx.numpy_helper.from_array(np.zeros(4, np.float32), "w")
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [4])
    constant = onnx.helper.make_node("Constant", [], ["y"], value=tensor)
    if place == "initializer":
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [tensor])
        found = graph.initializer[0]
    elif place == "attribute":
        graph = onnx.helper.make_graph([constant], "g", [], [y])
        found = graph.node[0].attribute[0].t
    else:
        body = onnx.helper.make_graph([constant], "body", [], [y])
        graph = onnx.helper.make_graph([onnx.helper.make_node("If", ["c"], ["y"], then_branch=body)], "g", [], [y])
        found = graph.node[0].attribute[0].g.node[0].attribute[0].t
    check_onnx(onnx.helper.make_model(graph).SerializeToString(), "m.onnx")
    onnx.external_data_helper.set_external_data(found, "weights.bin", offset=0, length=16)
    found.ClearField("raw_data")
    with refused(BundleError, "m.onnx: the graph keeps data outside its own file"):
        check_onnx(onnx.helper.make_model(graph).SerializeToString(), "m.onnx")


WHOLE = model(field(5, PLAIN) + field(1, attribute(5, PLAIN)))
DEEP = functools.reduce(lambda graph, _: field(1, attribute(6, graph)), range(100), b"")
NOT_ONNX = {
    "empty": b"",
    "text": b"this is not protobuf",
    "zip": b"PK\x03\x04" + bytes(30),
    "pickle": b"\x80\x04K\x01.",
    "truncated in the graph": WHOLE[: len(WHOLE) // 2],
    "truncated in a tag": WHOLE + b"\xc8",
    "truncated in a length": WHOLE + b"\x42\xff",
    "length beyond the end": WHOLE + b"\x42\x7f",
    "length of 2^63": WHOLE + b"\x42" + varint(2**63),
    "varint without an end": WHOLE + b"\x08" + b"\xff" * 20,
    "unknown wire type": WHOLE + b"\x0f",
    "field number 0": WHOLE + b"\x00\x00",
    "no graph": field(1, 9) + field(8, field(2, 17)),
    "no ir_version": field(7, field(2, "g")),
    "nested beyond any use": model(DEEP),
}


@pytest.mark.parametrize("name", NOT_ONNX)
def test_not_onnx(name: str, null_folder: Path) -> None:
    if name == "empty":  # the manifest refuses a file of no bytes
        with refused(BundleError, "x.onnx: expected an ONNX graph"):
            check_onnx(b"", "x.onnx")
        return
    file = replace(null_folder, "components.head", NOT_ONNX[name])
    with refused(BundleError, f"{null_folder / file}: expected an ONNX graph", unchanged=null_folder):
        hspace.open(null_folder, engine="null")


def test_a_graph_that_onnx_runtime_cannot_load(null_folder: Path) -> None:
    """What passes the scans is refused by the engine itself: a matrix product of what is none."""
    tensors = b"".join(
        field(5, field(1, d) + field(2, 1) + field(8, n) + field(9, bytes(4 * d))) for n, d in [("a", 2), ("b", 3)]
    )
    node = field(1, field(1, "a") + field(1, "b") + field(2, "c") + field(4, "MatMul"))
    data = field(1, 9) + field(7, node + tensors + field(2, "g")) + field(8, field(2, 18))
    file = replace(null_folder, "components.trunk", data)
    with refused(BundleError, f"{null_folder / file}: ONNX Runtime cannot load this graph", unchanged=null_folder):
        hspace.open(null_folder, engine="onnx")


def wide_tag(number: int, data: bytes) -> bytes:
    """A length-delimited field whose tag has a bit beyond 32, which a parser that keeps 32 bits does not see."""
    return varint(1 << 32 | number << 3 | 2) + varint(len(data)) + data


@pytest.mark.parametrize(
    "data",
    [model(wide_tag(5, EXTERNAL)), model(field(5, PLAIN + wide_tag(13, field(1, "location")))), model() + b"\x88" * 10],
    ids=["initializer", "external_data", "tag of 10 bytes"],
)
def test_tag_beyond_32_bits(data: bytes) -> None:
    """A tag has 32 bits. ONNX Runtime's parser drops any beyond, so they must not hide a field from the scan."""
    with refused(BundleError, "trunk.onnx: "):
        check_onnx(data, "trunk.onnx")
