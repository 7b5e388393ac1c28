"""Graphs that no export makes: refused before a library parses them, or in a process that may crash."""

from __future__ import annotations

import math
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from click.testing import CliRunner
from hspace.bundle import Bundle
from hspace.cli import hspace as command
from hspace.engines import cache, null, onnx, open_engine, probe, unavailable
from hspace.errors import BundleError, EngineError
from hspace.onnx_graph import OPERATORS, OPSET, check_graph
from hspace.onnx_scan import check_onnx

from ..conftest import BUNDLES
from .helpers import field, refused, replace, varint

AVATARS = BUNDLES / "avatars32"
ENGINES = [e for e in ("onnx", "openvino") if unavailable(e) is None]


def tensor(name: str | bytes, *dims: int, kind: int = 1, data: bytes | None = None) -> bytes:
    raw = bytes(4 * math.prod(dims)) if data is None else data
    return b"".join(field(1, d) for d in dims) + field(2, kind) + field(8, name) + field(9, raw)


def node(op: str | bytes, inputs: str, outputs: str = "y", rest: bytes = b"") -> bytes:
    """inputs, outputs: names with spaces between."""
    names = b"".join(field(n, i) for n, text in ((1, inputs), (2, outputs)) for i in text.split(" ") if text)
    return field(1, names + field(4, op) + rest)


def attribute(name: str, kind: int, value: bytes) -> bytes:
    return field(5, field(1, name) + field(20, kind) + value)


def model(graph: bytes, opset: bytes = field(2, 18), rest: bytes = b"") -> bytes:
    return field(1, 9) + field(7, graph + field(2, "g")) + field(8, opset) + rest


def info(number: int, name: str) -> bytes:
    return field(number, field(1, name))


X = info(11, "x")
SOUND = model(X + field(5, tensor("w", 2, 2)) + node("MatMul", "x w") + info(12, "y"))
CONV = X + field(5, tensor("w", 1, 1, 1, 1))


def conv(*attributes: bytes) -> bytes:
    return model(CONV + node("Conv", "x w", rest=b"".join(attributes)))


# what is found → a model with it
REFUSED: dict[str, bytes] = {
    "operator 'Loop': no export uses it": model(X + node("Loop", "x")),
    "operator 'NoSuch': no export uses it": model(X + node("NoSuch", "x")),
    "operator '': no export uses it": model(X + node("", "x")),
    "operator 'com.microsoft.Add': no export uses it": model(X + node("Add", "x x", rest=field(7, "com.microsoft"))),
    "operator MatMul: found 1 inputs, expected 2": model(X + node("MatMul", "x")),
    "operator MatMul: found 3 inputs, expected 2": model(X + node("MatMul", "x x x")),
    "operator Sin: found 2 outputs, expected 1": model(X + node("Sin", "x", "y z")),
    "operator Sin: found 0 outputs, expected 1": model(X + node("Sin", "x", "")),
    "operator Add: input 1 has no name": model(X + node("Add", "x ")),
    "operator Sin: no name": model(
        X + node("Sin", "x", "y") + field(1, field(1, "x") + field(2, "") + field(4, "Sin"))
    ),
    "operator Sin: uses 'z', which nothing before it makes": model(X + node("Sin", "z")),
    "operator Sin: uses 'z', which nothing": model(X + node("Sin", "z") + node("Sin", "x", "z")),
    "operator Sin: uses 'y', which nothing": model(X + node("Sin", "y", "y")),
    "operator Sin: 'x' is defined twice": model(X + node("Sin", "x", "x")),
    "inputs: 'x' is defined twice": model(X + X),
    "inputs: 'w' is defined twice": model(field(5, tensor("w", 1)) + info(11, "w")),
    "initializers: 'w' is defined twice": model(field(5, tensor("w", 1)) + field(5, tensor("w", 1))),
    "outputs: nothing makes 'y'": model(X + info(12, "y")),
    "operator Sin: it has no attribute 'axis'": model(X + node("Sin", "x", rest=attribute("axis", 2, field(3, 1)))),
    "operator Conv: it has no attribute 'body'": conv(attribute("body", 2, field(3, 1))),
    "field 6 of wire type 2, which no export": conv(attribute("group", 5, field(6, b""))),
    "operator Conv: group is not of the type": conv(attribute("group", 1, field(3, 1))),
    "operator Conv: group: found 0, expected 1": conv(attribute("group", 2, field(3, 0))),
    "operator Conv: strides: found 0, 0, expected 1": conv(attribute("strides", 7, field(8, 0) + field(8, 0))),
    "operator Conv: pads: found -1": conv(attribute("pads", 7, varint(8 << 3) + varint(2**64 - 1))),
    "operator Conv: dilations: found 1099511627776": conv(attribute("dilations", 7, field(8, varint(2**40)))),
    "operator Conv: kernel_shape: found 1, 1": conv(attribute("kernel_shape", 7, field(8, b"\1" * 17))),
    "operator Conv: group is given twice": conv(*[attribute("group", 2, field(3, 1))] * 2),
    "epsilon is not finite": model(
        X + node("InstanceNormalization", "x x x", rest=attribute("epsilon", 1, b"\x15" + np.float32("nan").tobytes()))
    ),
    "initializer 'w': found 4 bytes, expected 6 numbers of 4": model(field(5, tensor("w", 2, 3, data=bytes(4)))),
    "initializer 'w': found 8 bytes, expected 1 numbers": model(field(5, tensor("w", data=bytes(8)))),
    "initializer 'w': found shape [1099511627776]": model(field(5, tensor("w", 2**40, data=b""))),
    "initializer 'w': found shape [-1]": model(field(5, tensor("w", 2**64 - 1, data=b""))),
    "initializer 'w': found shape [1, 1, 1, 1, 1, 1, 1, 1, 1]": model(field(5, tensor("w", *[1] * 9))),
    "initializer 'w': found data type 8": model(field(5, tensor("w", 1, kind=8))),
    "initializers: found field 4 of wire type 2": model(field(5, field(8, "w") + field(4, bytes(4)))),
    "the graph: found field 15": model(field(15, field(1, tensor("w", 1)))),
    "the model: found field 25": model(b"", rest=field(25, field(1, "f"))),
    "the model: found field 20": model(b"", rest=field(20, field(1, b""))),
    "found 2 graphs, expected one": model(b"", rest=field(7, field(2, "g"))),
    "operator sets: found 'ai.onnx' 7": model(X + node("Sin", "x"), field(2, 7)),
    "operator sets: found 'ai.onnx' 99": model(X + node("Sin", "x"), field(2, 99)),
    "operator sets: found 'com.microsoft' 1": model(X + node("Sin", "x"), field(1, "com.microsoft") + field(2, 1)),
    "operator sets: found 'ai.onnx' 18, 'x' 1": model(X + node("Sin", "x"), rest=field(8, field(1, "x") + field(2, 1))),
    "a name in the graph is not UTF-8": model(info(11, "x") + node("Sin", "x", rest=field(2, b"\xff\xfe"))),
    "not UTF-8": model(field(5, tensor(b"\xc3(", 1))),
    "expected an ONNX graph": model(X + node("Sin", "x", rest=field(4, "Loop"))),
    "found 20001 of nodes": model(X + b"".join(node("Sin", "x", f"y{i}") for i in range(20001))),
    "initializer 'w': found data type 9": model(field(5, tensor("w", 1, kind=9, data=b"\1"))),
    "dimensions": model(field(5, field(1, varint(2**64 - 1) * 3) + field(2, 1) + field(8, "w"))),
}


@pytest.mark.parametrize("found", REFUSED)
def test_what_no_export_has(found: str) -> None:
    check_onnx(REFUSED[found], "trunk.onnx")
    with refused(BundleError, "trunk.onnx: ", found):
        check_graph(REFUSED[found], "trunk.onnx")


def test_what_exports_have_passes() -> None:
    """The refusals above are of what is wrong with each, not of how these tests write graphs."""
    for data in (
        SOUND,
        model(b""),
        conv(attribute("strides", 7, field(8, b"\1\1")), attribute("group", 2, field(3, 1))),
    ):
        check_onnx(data, "trunk.onnx")
        check_graph(data, "trunk.onnx")


def test_packed_numbers_without_an_end() -> None:
    with refused(BundleError, "trunk.onnx: expected an ONNX graph"):
        check_graph(model(field(5, field(1, b"\1" * 10**7) + field(2, 1) + field(8, "w"))), "trunk.onnx")


# --- the table ----------------------------------------------------------------------------------------


def test_the_table_says_what_onnx_says() -> None:
    """Attributes are those of the standard, with their types; numbers of inputs and outputs lie within its."""
    onnx = pytest.importorskip("onnx")
    letters = {"FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "INTS": "I"}
    for name, operator in OPERATORS.items():
        schema = onnx.defs.get_schema(name, OPSET)
        known = {k: letters[a.type.name] for k, a in schema.attributes.items()}
        given = dict(a.split(":") for a in operator.attributes.split())
        assert given == {k: v for k, v in known.items() if k in given} and not (
            {k for k, a in schema.attributes.items() if a.required} - set(given)
        ), name
        assert schema.min_input <= operator.inputs[0] <= operator.inputs[1] <= schema.max_input, name
        assert schema.min_output <= operator.outputs[0] <= operator.outputs[1] <= schema.max_output, name


# --- bundles whose files have the right SHA-256 -------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden_bundles: Callable[..., Path]) -> Path:
    """A copy of a small bundle, and a cache of its own."""
    pytest.importorskip("onnx")
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(golden_bundles("asyrp-ddpm-tiny"), tmp_path / "bundle"))


def change(bundle: Path, component: str, how: Callable[[Any], object]) -> str:
    """Lets `how` change a component's graph; the file's name."""
    import onnx

    graph = onnx.load(bundle / f"{component}.onnx")
    how(graph.graph)
    return replace(bundle, f"components.{component}", graph.SerializeToString())


def first(graph: Any, op: str) -> Any:
    return next(n for n in graph.node if n.op_type == op)


def retype(old: str, new: str) -> Callable[[Any], None]:
    def how(graph: Any) -> None:
        first(graph, old).op_type = new

    return how


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("old", "new"),
    [("Conv", "Gemm"), ("Sigmoid", "Transpose"), ("Add", "Concat"), ("Sigmoid", "Loop"), ("Resize", "Conv")],
)
def test_a_node_of_another_type(own: Path, engine: str, old: str, new: str) -> None:
    """Refused by the scan, or by the engine in its own process; `verify` says the same."""
    file = change(own, "head", retype(old, new))
    with refused(BundleError, f"{own / file}: "):
        hspace.open(own, engine=engine, precision="fp32")
    found = CliRunner().invoke(command, ["verify", str(own), "--engine", engine])
    assert isinstance(found.exception, BundleError) and f"{own / file}: " in str(found.exception)


def fill(value: float) -> Callable[[Any], None]:
    """The last convolution's numbers."""

    def how(graph: Any) -> None:
        last = [n for n in graph.node if n.op_type == "Conv"][-1]
        for t in graph.initializer:
            if t.name in last.input:
                t.raw_data = np.full(list(t.dims), value, np.float32).tobytes()

    return how


@pytest.mark.parametrize("engine", [*ENGINES, "auto"])
@pytest.mark.parametrize(("value", "says"), [(0.0, "nothing but zeros"), (float("nan"), "not finite")])
def test_a_head_that_gives_nothing(own: Path, engine: str, value: float, says: str) -> None:
    file = change(own, "head", fill(value))
    for _ in range(2):  # it is not remembered as sound
        with refused(BundleError, f"{own / file}: eps: gives", says):
            hspace.open(own, engine=engine, precision="fp32")


def test_onnx_checker_sees_what_engines_let_pass(own: Path) -> None:
    """An output whose declared type is not what the nodes give."""

    def how(graph: Any) -> None:
        graph.value_info[0].type.tensor_type.elem_type = 7

    file = change(own, "trunk", how)
    with refused(BundleError, f"{own / file}: ONNX's checker refuses this graph"):
        probe.check_with_onnx(Bundle(own))
    assert probe.check_with_onnx(Bundle(AVATARS))


# --- the process --------------------------------------------------------------------------------------


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Makes the process end with this status, after these lines; what was asked of it."""

    def make(status: int | BaseException, out: bytes) -> list[Any]:
        asked: list[Any] = []

        def run(command: Any, **options: Any) -> Any:
            asked.append(options)
            if isinstance(status, BaseException):
                raise status
            return subprocess.CompletedProcess(command, status, out)

        monkeypatch.setattr(subprocess, "run", run)
        return asked

    return make


LATE = subprocess.TimeoutExpired("python", 1, output=b'"trunk.onnx"\n"he')


@pytest.mark.parametrize(
    ("status", "out", "error", "says"),
    [
        (
            -signal.SIGSEGV,
            b'"trunk.onnx"\n"head.onnx"\n',
            BundleError,
            "head.onnx: engine onnx crashes on this graph (SIGSEGV)",
        ),
        (-signal.SIGABRT, b'"trunk.onnx"\n', BundleError, "trunk.onnx: engine onnx crashes on this graph (SIGABRT)"),
        (-signal.SIGXCPU, b'"head.onnx"\n"lat', BundleError, "head.onnx: engine onnx needs more than"),
        (LATE, b"", BundleError, "trunk.onnx: engine onnx needs more than"),
        (-signal.SIGKILL, b'"head.onnx"\n', EngineError, "head.onnx: engine onnx was killed"),
        (1, b"", EngineError, "does not start in a process of its own (exit status 1)"),
        (0, b'"head.onnx"\n["EngineError", "as it said"]\n', EngineError, "as it said"),
        (OSError(24, "Too many open files"), b"", EngineError, "no process could be started: Too many open files"),
    ],
    ids=lambda v: None,
)
def test_how_the_process_ends(
    answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: Any, out: bytes, error: Any, says: str
) -> None:
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path))
    asked = answers(status, out)
    for _ in range(2):
        with refused(error, says):
            open_engine("onnx", Bundle(AVATARS))
    assert len(asked) == 2


def test_it_costs_once(answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an engine, a precision and a bundle's graphs; without a cache, at each opening."""
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    asked = answers(0, b"true\n")
    bundle = Bundle(AVATARS)
    for _ in range(3):
        probe.check("onnx", onnx, bundle, None, "fp32")
    assert len(asked) == 1
    probe.check("onnx", onnx, bundle, None, "bf16")
    assert len(asked) == 2
    probe.check("null", null, bundle, None, "fp32")
    open_engine("onnx", bundle, trusted=True)
    assert len(asked) == 2
    monkeypatch.setattr(cache, "folder", lambda: None)
    for _ in range(2):
        probe.check("onnx", onnx, bundle, None, "fp32")
    assert len(asked) == 4


def test_without_an_interpreter_it_is_said(
    answers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in a program that holds one, and is none itself."""
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path))
    asked = answers(PermissionError(13, "Permission denied"), b"")
    for _ in range(2):  # nothing is remembered as sound
        probe.check("onnx", onnx, Bundle(AVATARS), None, "fp32")
    assert (
        len(asked) == 2 and "not tried in a process of their own" in caplog.text and "Permission denied" in caplog.text
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_in_the_current_folder_is_imported(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("numpy", "onnxruntime", "openvino", "json"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')")
    hspace.open(AVATARS, engine=engine, precision="fp32")
    assert not (tmp_path / "imported").exists()


def test_every_graph_was_evaluated_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each component's file is said before it is read, and again before each evaluation: at the schedule's middle and
    both its ends, and for two samples.
    """
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path))
    original, said = subprocess.run, defaultdict(int)

    def run(*given: Any, **options: Any) -> Any:
        done = original(*given, **options)
        for line in done.stdout.splitlines()[:-1]:
            said[line.decode().strip('"')] += 1
        return done

    monkeypatch.setattr(subprocess, "run", run)
    hspace.open(AVATARS, engine="onnx")
    assert said == {f"{name}.onnx": 5 for name in ("trunk", "head", "encoder", "latent")}
