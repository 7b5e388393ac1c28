"""The benchmark counts what it says it counts. What it measures is not asserted: machines differ."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import hspace
import numpy as np
import pytest
from hspace import bench
from hspace.bench import counting, machine, report, startup, timing
from hspace.bench import peak as peaks
from hspace.bundle import Bundle
from hspace.errors import ArgumentError, BundleError, EngineError

from ..conftest import BUNDLES

# --- operations ---------------------------------------------------------------------------------------


def graph(nodes: list, inputs: dict, outputs: dict, weights: dict) -> bytes:
    """An ONNX graph of float32, from names and shapes."""
    onnx = pytest.importorskip("onnx", reason="needs the extra `bench`")
    from onnx import TensorProto, helper, numpy_helper

    sides = [
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in side.items()] for side in (inputs, outputs)
    ]
    initializers = [
        numpy_helper.from_array(w if isinstance(w, np.ndarray) else np.zeros(w, np.float32), name)
        for name, w in weights.items()
    ]
    made = helper.make_graph([helper.make_node(*n[:3], **n[3]) for n in nodes], "g", *sides, initializers)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def test_convolutions() -> None:
    """A strided one in two groups, and a transposed one back."""
    nodes = [
        ("Conv", ["x", "w"], ["y"], {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 2}),
        ("ConvTranspose", ["y", "v"], ["z"], {"strides": [2, 2]}),
    ]
    data = graph(nodes, {"x": ["N", 4, 8, 8]}, {"z": ["N", 3, 8, 8]}, {"w": (6, 2, 3, 3), "v": (6, 3, 2, 2)})
    work = counting.graph(data, {"N": 5})
    conv = 2 * (5 * 6 * 4 * 4) * (2 * 3 * 3)
    transposed = 2 * (5 * 6 * 4 * 4) * (3 * 2 * 2)
    assert work.flop == conv + transposed
    assert work.traffic == 4 * (6 * 2 * 9 + 6 * 3 * 4 + 5 * 4 * 64 + 5 * 3 * 64)


def test_products_behind_a_reshape() -> None:
    """Shapes that the graph itself computes from a batch's size, as exported attention does."""
    nodes = [
        ("Gemm", ["x", "w"], ["y"], {"transB": 1}),
        ("Shape", ["x"], ["n"], {"end": 1}),
        ("Concat", ["n", "rest"], ["shape"], {"axis": 0}),
        ("Reshape", ["y", "shape"], ["q"], {}),
        ("Transpose", ["q"], ["k"], {"perm": [0, 2, 1]}),
        ("MatMul", ["q", "k"], ["a"], {}),
    ]
    weights = {"w": (12, 7), "rest": np.array([3, 4])}
    work = counting.graph(graph(nodes, {"x": ["M", 7]}, {"a": ["M", 3, 3]}, weights), {"N": 2, "M": 6})
    assert work.flop == 2 * 6 * 12 * 7 + 2 * 6 * 3 * 3 * 4


def test_what_cannot_be_counted_is_refused() -> None:
    """Never a number that is too small."""
    data = graph([("Einsum", ["x", "x"], ["y"], {"equation": "ij,kj->ik"})], {"x": [2, 3]}, {"y": [2, 2]}, {})
    with pytest.raises(BundleError, match="head: the work of Einsum cannot be counted"):
        counting.graph(data, {}, "head")
    data = graph([("MatMul", ["x", "w"], ["y"], {})], {"x": ["K", 3]}, {"y": ["K", 2]}, {"w": (3, 2)})
    with pytest.raises(BundleError, match="MatMul: the shape of y is not known"):
        counting.graph(data, {"N": 1})
    with pytest.raises(BundleError, match="graph: onnx cannot read this graph"):
        counting.graph(b"nothing of the kind", {})


def test_a_convolution_of_the_shipped_model() -> None:
    """The trunk's first, 3 → 32 channels, 3×3, at 32×32; and work is in proportion to the batch."""
    onnx = pytest.importorskip("onnx", reason="needs the extra `bench`")
    data = Bundle(BUNDLES / "avatars32").read_component("trunk")
    model = onnx.load_model_from_string(data)
    first = next(n for n in model.graph.node if n.op_type == "Conv")
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(first.output[0], 1, ["N", 32, 32, 32]))
    kept = onnx.NodeProto.FromString(first.SerializeToString())
    del model.graph.node[:]
    model.graph.node.append(kept)
    assert counting.graph(model.SerializeToString(), {"N": 3}).flop == 3 * 2 * (32 * 32 * 32) * (3 * 3 * 3)
    one, four = (counting.graph(data, {"N": n, "M": n}) for n in (1, 4))
    assert four.flop == 4 * one.flop and one.traffic < four.traffic < 4 * one.traffic


def test_pytorch_counts_the_same() -> None:
    """The same layers as a graph, and as PyTorch runs them."""
    torch = pytest.importorskip("torch", reason="needs the extra `export`")
    pytest.importorskip("onnx", reason="needs the extra `bench`")
    from torch.utils.flop_counter import FlopCounterMode

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, padding=1, stride=2)
            self.up = torch.nn.ConvTranspose2d(8, 4, 2, stride=2)
            self.out = torch.nn.Linear(4, 5)

        def forward(self, x):
            return self.out(self.up(self.conv(x)).flatten(2).transpose(1, 2))

    net, x = Net().eval(), torch.zeros(2, 3, 16, 16)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    nodes = [
        ("Conv", ["x", "w"], ["a"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("ConvTranspose", ["a", "v"], ["b"], {"strides": [2, 2]}),
        ("Reshape", ["b", "shape"], ["c"], {}),
        ("Transpose", ["c"], ["d"], {"perm": [0, 2, 1]}),
        ("MatMul", ["d", "u"], ["y"], {}),
    ]
    weights = {"w": (8, 3, 3, 3), "v": (8, 4, 2, 2), "u": (4, 5), "shape": np.array([0, 4, -1])}
    data = graph(nodes, {"x": ["N", 3, 16, 16]}, {"y": ["N", 256, 5]}, weights)
    assert counting.graph(data, {"N": 2}).flop == counter.get_total_flops()


# --- evaluations --------------------------------------------------------------------------------------


def test_evaluations(null_editor: hspace.Editor) -> None:
    found = counting.evaluations(null_editor.bundle, [2, 3], None)
    assert found["head ×2", 2] == Counter({("head", 2, 4): 1})
    for n in (2, 3):
        assert found["step", n] == Counter({("trunk", n, n): 1, ("head", n, n): 1})
        assert found["asymmetric step", n] == Counter({("trunk", n, n): 1, ("head", n, 2 * n): 1})
    programs = [null_editor.program("encode"), null_editor.program("decode", edits={"block": 1.0})]
    call = found["call edit", 2]
    both = int((programs[1].rows["branch"] != 0).sum())
    assert both > 0
    assert call["trunk", 2, 2] == sum(map(len, programs)) and call["head", 2, 4] == both
    assert call["head", 2, 2] == call["trunk", 2, 2] - both
    assert call["encoder", 2, 2] == (null_editor.bundle.manifest.z_sem is not None)
    assert not {part for part, _ in found} & {"inject", "update"}


def test_work_of_a_call_is_that_of_its_steps() -> None:
    pytest.importorskip("onnx", reason="needs the extra `bench`")
    bundle = Bundle(BUNDLES / "avatars32")
    works = counting.works(bundle, counting.evaluations(bundle, [1, 2], 4))
    step, encoder = works["step", 1], works["encoder", 1]
    assert works["call encode", 1].flop == 3 * step.flop + encoder.flop  # from the first of 4 timesteps to the last
    assert step.flop == works["trunk", 1].flop + works["head", 1].flop
    assert works["head", 1].flop < works["head ×2", 1].flop <= 2 * works["head", 1].flop
    assert works["step", 2].flop == 2 * step.flop


# --- rounds -------------------------------------------------------------------------------------------


def test_engines_take_turns() -> None:
    order: list[str] = []
    runs = {e: {(p, 1): lambda w=f"{e}{p}": order.append(w) for p in "xy"} for e in "ab"}
    times = timing.rounds(runs, 2)
    assert order == ["ax", "bx", "ay", "by", "bx", "ax", "by", "ay"]
    assert all(len(t) == 2 for each in times.values() for t in each.values())


def test_ratio_is_of_rounds() -> None:
    """A round that the machine slows down slows both."""
    assert timing.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == 2


@pytest.mark.parametrize(
    ("times", "expected"),
    [([3.0], 0), ([2.0, 2.0, 2.0, 2.0], 0), ([1.0, 1.0, 2.0, 2.0], 1 / 1.5), ([1.0] * 10 + [2.0] * 3, 1)],
    ids=["one", "steady", "drift", "outliers"],
)
def test_variation(times: list[float], expected: float) -> None:
    assert timing.variation(times) == pytest.approx(expected)


def test_measure(null_editor: hspace.Editor) -> None:
    found = bench.measure(null_editor, batch=2, repeat=3, calls=2, steps=4)
    parts = {*null_editor.bundle.manifest.components, "head ×2", "inject", "update", "step", "asymmetric step"}
    assert found.keys() == parts | {"call encode", "call decode", "call edit"}
    for name, times in found.items():
        assert times.keys() == {"p50", "p95", "p99", "min", "count"}
        assert 0 < times["min"] <= times["p50"] <= times["p95"] <= times["p99"]
        assert times["count"] == (2 if name.startswith("call") else 3)


# --- machine and processes ----------------------------------------------------------------------------


def test_stamp(tmp_path: Path) -> None:
    found = machine.stamp()
    assert found.keys() - {"commit"} == {"processor", "cores", "usable_cores", "system", "versions", "date"}
    assert found["versions"]["hspace"] == hspace.__version__ and found["date"].endswith("+00:00")
    assert machine._commit(tmp_path) is None


def test_commit_without_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert "commit" not in machine.stamp()


def test_peak() -> None:
    probe = peaks.Probe(1)
    assert probe.peaks.keys() <= set(peaks.PRECISIONS) and "fp32" in probe.peaks
    for each in probe.peaks.values():
        assert each["gflops"] > 0 and each["by"].partition(",")[0] in ("NumPy", "OpenVINO", "PyTorch")
    found = dict(probe.peaks)
    for precision, each in found.items():
        start = time.perf_counter()
        probe.run(precision)
        assert each["flop"] / (time.perf_counter() - start) / 1e9 < 30 * each["gflops"]  # it did compute
    assert probe.peaks == found
    probe.run("fp8")  # which it cannot: the process ends, and nothing is found any more
    assert probe.peaks == {}
    probe.run("fp32")
    probe.close()


@pytest.mark.parametrize("library", ["numpy", "openvino", "torch"])
def test_libraries_of_the_peak(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each multiplies what it says it does: `Probe` would leave a broken one out without a word."""
    pytest.importorskip(library)
    for name, value in (("_SIZES", (16, 32)), ("_CHANNELS", 16), ("_SIDE", 8)):
        monkeypatch.setattr(peaks, name, value)
    found = [(by, precision, flop, run()) for by, precision, flop, run in getattr(peaks, f"_{library}")(None)]
    assert {precision for _, precision, _, _ in found} in ({"fp32"}, {"fp32", "bf16"})
    layers = 4 if library == "openvino" else 1
    matrices = {flop for by, _, flop, _ in found if "matrices" in by}
    assert matrices == {2 * layers * n**3 for n in (16, 32)}
    convolutions = {flop for by, _, flop, _ in found if "convolution" in by}
    assert convolutions == (set() if library == "numpy" else {2 * layers * 16 * 16 * 9 * 64})


def test_processes_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What they would have said is left out."""
    assert startup.start_up(tmp_path, "null") == {}
    monkeypatch.setattr("sys.executable", str(tmp_path / "none"))
    assert peaks.Probe(1).peaks == {} and startup.start_up(tmp_path, "null") == {}


def test_start_up(null_editor: hspace.Editor) -> None:
    found = startup.start_up(null_editor.bundle.folder, "null", batch=2)
    assert found.keys() == {"first"}  # the null engine caches nothing
    assert found["first"].keys() == {"open_s", "first_result_s", "peak_mb"}
    assert all(v is None or v > 0 for v in found["first"].values())


def test_memory_where_the_system_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError

    monkeypatch.setattr("builtins.open", lambda *_: (_ for _ in ()).throw(OSError()))
    assert startup.peak_memory() is None or startup.peak_memory() > 0
    monkeypatch.setattr("importlib.import_module", missing)
    assert startup.peak_memory() is None


# --- what it says -------------------------------------------------------------------------------------


def test_a_share_above_the_peak_is_a_warning() -> None:
    entry = {"gflops": {"head": {"achieved": 220.0, "share": 1.1, "of": "fp32"}}}
    (warning,) = report._warnings("onnx", entry, {"head": [1.0, 1.0]})
    assert warning == "onnx: head reaches 110.0 % of the fp32 peak, so the peak was measured too low"


def test_a_share_is_of_the_peak_of_its_round() -> None:
    """A machine that is slow in one round is slow for both."""
    peak = report._peak({"flop": 1e9, "by": "a test", "gflops": 1e9}, [10.0, 20.0, 5.0])
    assert peak == {"gflops": 100.0, "rounds": [100.0, 50.0, 200.0], "by": "a test"}
    work = counting.Work(5e9, 0)
    found = report._achieved(work, [100.0, 200.0, 50.0], {"fp32": peak}, "fp32")
    assert found == {"achieved": 50.0, "share": 0.5, "of": "fp32"}
    assert report._achieved(work, [200.0], {"fp32": peak}, "fp32")["share"] == 0.25
    assert report._achieved(work, [200.0], {"fp32": peak}, "bf16")["share"] is None


def test_what_varies_is_a_warning() -> None:
    times = {"head": [1.0, 1.0, 2.0, 2.0], "trunk": [1.0] * 4, "step": [1.0, 1.0, 1.2, 1.2]}
    (warning,) = report._warnings("onnx", {}, times)
    assert warning == "onnx: head varies by 67 %, and 1 more of 3 by more than 10 %: compare ratios only"


def test_refusals(null_editor: hspace.Editor) -> None:
    folder = str(null_editor.bundle.folder)
    with pytest.raises(EngineError, match="engine: found 'cuda9', expected auto, "):
        report.report(folder, ["null", "cuda9"])
    with pytest.raises(ArgumentError, match="engine: found null, null, expected each once"):
        report.report(folder, ["null", "null"])
    with pytest.raises(ArgumentError, match="batch: found 0"):
        report.report(folder, ["null"], batches=[1, 0])


def test_report_is_json(null_editor: hspace.Editor) -> None:
    found = report.report(str(null_editor.bundle.folder), ["null"], repeat=1, calls=1, steps=2)
    assert json.loads(json.dumps(found)) == found
