"""Integers of a graph: the sizes, indices and divisors that end a process, or take its memory, at some inputs alone."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from click.testing import CliRunner
from hspace.bundle import Bundle
from hspace.cli import hspace as command
from hspace.engines import open_engine, unavailable
from hspace.errors import BundleError
from hspace.onnx_graph import check_graph
from hspace.onnx_scan import check_onnx

from .helpers import field, refused
from .test_graphs import AVATARS, ENGINES, attribute, change, info, model, node, tensor

T, SOURCE, X = info(11, "t"), info(11, "source"), info(11, "x")
TABLE = field(5, tensor("table", 3, 2))


def integers(name: str, *values: int, kind: int = 7) -> bytes:
    data = struct.pack(f"<{len(values)}{'q' if kind == 7 else 'i'}", *values)
    return field(5, tensor(name, len(values), kind=kind, data=data))


def to(kind: int) -> bytes:
    return attribute("to", 2, field(3, kind))


def typed(name: str, kind: int) -> bytes:
    return field(11, field(1, name) + field(2, field(1, field(1, kind))))


def clamped(limit: int, rest: bytes = b"") -> bytes:
    """Rows of `table` by the timestep, as an exporter writes it, limited to `limit`."""
    return model(
        T
        + TABLE
        + integers("last", limit, kind=6)
        + node("Min", "t last", "low")
        + node("Cast", "low", "row", to(7))
        + node("Gather", "table row", "y", rest)
    )


SHAPE = X + node("Shape", "x", "s")
ONE = integers("one", 1)
# what is found → a graph with it
REFUSED = {
    "Div: no export gives it constant integers, a shape": SHAPE + ONE + node("Div", "one s"),
    "Div: no export gives it a shape, constant integers": SHAPE + ONE + node("Div", "s one"),
    "Div: no export gives it constant integers, constant integers": ONE + node("Div", "one one"),
    "Div: no export gives it constant integers, the timestep": T + ONE + node("Div", "one t"),
    "Sub: no export gives it a shape, constant integers": SHAPE + ONE + node("Sub", "s one"),
    "Mul: no export gives it the timestep, the timestep": T + node("Mul", "t t"),
    "Add: no export gives it source, constant integers": SOURCE + ONE + node("Add", "source one"),
    "Concat: no export gives it a shape, constant integers": SHAPE + ONE + node("Concat", "s one"),
    "ConstantOfShape: no export gives it a shape": SHAPE + node("ConstantOfShape", "s"),
    "ConstantOfShape: no export gives it the timestep": T + node("ConstantOfShape", "t"),
    "ConstantOfShape: value: found integers": ONE
    + node("ConstantOfShape", "one", rest=attribute("value", 4, field(5, tensor("v", 1, kind=7, data=bytes(8))))),
    "Cast to int64: no export gives it floats": X + node("Cast", "x", rest=to(7)),
    "Cast to int64: no export gives it the timestep": T + node("Cast", "t", rest=to(7)),
    "Cast to int64: no export gives it a shape": SHAPE + node("Cast", "s", rest=to(7)),
    "Cast: no export gives it a shape": SHAPE + node("Cast", "s", rest=to(1)),
    "Cast: no export gives it floats": X + node("Cast", "x", rest=to(6)),
    "Cast: no export gives it the timestep": T + node("Cast", "t", rest=to(9)),
    "Gather: no export gives it constant floats, the timestep": T + TABLE + node("Gather", "table t"),
    "Gather: no export gives it a shape, constant integers": SHAPE + ONE + node("Gather", "s one"),
    "Gather: no export gives it floats, constant integers": X + ONE + node("Gather", "x one"),
    "Gather: found rows up to None of None, along axis 1": X
    + SOURCE
    + node("Gather", "x source", rest=attribute("axis", 2, field(3, 1))),
    "Reshape: no export gives it floats, the timestep": X + T + node("Reshape", "x t"),
    "Reshape: no export gives it a shape, constant integers": SHAPE + ONE + node("Reshape", "s one"),
    "Resize: no export gives it floats, nothing, floats": X
    + node("Sin", "x", "scale")
    + field(1, field(1, "x") + field(1, "") + field(1, "scale") + field(2, "y") + field(4, "Resize")),
    "Slice: no export gives it floats, a shape": SHAPE + ONE + node("Slice", "x s one one one"),
    "Pad: no export gives it floats, a shape": SHAPE + node("Pad", "x s"),
    "Shape: no export gives it the timestep": T + node("Shape", "t"),
    "Min: found -1, expected one number": T + integers("last", -1, kind=6) + node("Min", "t last"),
    "Min: found None, expected one number": T + integers("last", 1, 2, kind=6) + node("Min", "t last"),
    "inputs: 'x': found data type 7, expected floats": typed("x", 7),
    "inputs: 't': found data type 1, expected 6": typed("t", 1),
    "inputs: 'source': found data type 6, expected 7": typed("source", 6),
}


@pytest.mark.parametrize("found", REFUSED)
def test_where_no_export_lets_integers_go(found: str) -> None:
    check_onnx(model(REFUSED[found]), "trunk.onnx")
    with refused(BundleError, "trunk.onnx: ", found):
        check_graph(model(REFUSED[found]), "trunk.onnx")


def test_rows_by_the_timestep() -> None:
    """A table has three: the last one is the highest that a timestep may be limited to."""
    check_graph(clamped(2), "trunk.onnx")
    check_graph(clamped(2, attribute("axis", 2, field(3, 0))), "trunk.onnx")
    with refused(BundleError, "Gather: found rows up to 3 of 3"):
        check_graph(clamped(3), "trunk.onnx")
    with refused(BundleError, "Gather: found rows up to 1 of 3, along axis 1"):
        check_graph(clamped(1, attribute("axis", 2, field(3, 1))), "trunk.onnx")
    with refused(BundleError, "Gather: no export gives it floats, the timestep, limited"):
        check_graph(
            model(T + X + integers("last", 0, kind=6) + node("Min", "t last", "low") + node("Gather", "x low")),
            "trunk.onnx",
        )


# --- bundles whose files have the right SHA-256 -------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("onnx")
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(AVATARS, tmp_path / "bundle"))


def add_to(output: str, nodes: list[tuple[str, str, str, dict[str, Any]]], **constants: Any) -> Callable[[Any], None]:
    """Adds the last one's output to `output`. nodes: operator, inputs, output and attributes of each."""

    def how(graph: Any) -> None:
        from onnx import helper, numpy_helper

        for n in graph.node:
            for names in (n.input, n.output):
                for i, name in enumerate(names):
                    if name == output:
                        names[i] = "before"
        graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
        graph.node.extend(helper.make_node(op, i.split(), [o], **more) for op, i, o, more in nodes)
        graph.node.append(helper.make_node("Add", ["before", nodes[-1][2]], [output]))

    return how


def times_zero(of: str, name: str = "zeros") -> list[tuple[str, str, str, dict[str, Any]]]:
    return [("Cast", of, "cast", {"to": 1}), ("Mul", "cast zero", name, {})]


ZERO = np.zeros(1, np.float32)
BUNDLES_REFUSED = {
    "INT_MIN by −1 for two samples": add_to(
        "temb",
        [
            ("Shape", "x", "n", {"start": 0, "end": 1}),
            ("Sub", "n three", "d", {}),
            ("Div", "least d", "q", {}),
            *times_zero("q"),
        ],
        three=np.array([3]),
        least=np.array([-(2**63)]),
        zero=ZERO,
    ),
    "by zero at the schedule's end": add_to(
        "temb",
        [("Sub", "t end", "d", {}), ("Div", "one d", "q", {}), *times_zero("q")],
        end=np.array([999], np.int32),
        one=np.array([1], np.int32),
        zero=ZERO,
    ),
    "a size that follows the timestep": add_to(
        "temb",
        [("Cast", "t", "size", {"to": 7}), ("ConstantOfShape", "size", "many", {}), ("ReduceSum", "many", "y", {})],
    ),
    "rows beyond the table's end": add_to(
        "temb",
        [("Gather", "table t", "row", {}), ("Unsqueeze", "row axis", "y", {})],
        table=np.zeros(501, np.float32),
        axis=np.array([1]),
    ),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", BUNDLES_REFUSED)
def test_a_graph_that_ends_the_process_later(own: Path, engine: str, what: str) -> None:
    file = change(own, "trunk", BUNDLES_REFUSED[what])
    with refused(BundleError, f"{own / file}: operator ", "no export gives it"):
        hspace.open(own, engine=engine, precision="fp32")
    found = CliRunner().invoke(command, ["verify", str(own), "--engine", engine])
    assert isinstance(found.exception, BundleError) and "no export gives it" in str(found.exception)


@pytest.mark.skipif(unavailable("openvino") is not None, reason="openvino is not installed")
def test_rows_by_source_that_are_not_there(own: Path) -> None:
    """OpenVINO reads what is beside the table: found when a graph is compiled for two samples, which compiles."""

    def how(graph: Any) -> None:
        add_to("eps", [("Gather", "table source", "row", {})], table=np.zeros((1, 3, 32, 32), np.float32))(graph)

    file = change(own, "head", how)
    bundle = Bundle(own)
    engine = open_engine("openvino", bundle)
    x, rng = {}, np.random.default_rng(0)
    for i in bundle.component("trunk").inputs:
        shape = [2 if isinstance(d, str) else d for d in i.shape]
        x[i.name] = np.zeros(shape, np.int32) if i.name == "t" else rng.standard_normal(shape).astype(i.dtype)
    found = dict(zip((o.name for o in bundle.component("trunk").outputs), engine.run("trunk", x), strict=True))
    for source in ([0, 1], [1, 1]):
        given = {**x, **found, "source": np.array(source)}
        heads = {i.name: given[i.name] for i in bundle.component("head").inputs}
        with refused(BundleError, f"{own / file}: source is of 2 samples, and chooses among 1 rows"):
            engine.run("head", heads)
