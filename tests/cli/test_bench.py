"""hspace bench. No time is asserted."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
from hspace.bench import counting
from hspace.errors import needs

from ..conftest import BUNDLES
from .conftest import Cli

QUICK = ["--repeat", 1, "--calls", 1, "--steps", 2]


class Probe:
    """One that has found a peak already."""

    def __init__(self, threads: int | None) -> None:
        self.peaks = {p: {"gflops": 1.0, "by": "a test", "flop": 1e18} for p in ("fp32", "bf16")}

    def run(self, precision: str) -> None:
        time.sleep(1e-3)

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own process imports every library that there is; tests/unit/test_bench.py runs it."""
    monkeypatch.setattr("hspace.bench.report.Probe", Probe)


@pytest.mark.parametrize("family", ["diffae", "asyrp"])
def test_json(family: str, cli: Cli, _null_bundles: dict[str, Path]) -> None:
    options = ["--batch", 2, "--repeat", 3, "--calls", 2, "--steps", 4, "--json"]
    found = cli("bench", "-b", _null_bundles[family], "--engine", "null", *options).check().json
    assert found.keys() == {"machine", "run", "parts", "peak", "engines", "batches", "warnings"}
    assert {"processor", "cores", "usable_cores", "system", "versions", "date", "threads"} <= found["machine"].keys()
    steps = {"encode": 4, "decode": 4}
    assert found["run"] == {
        "bundle": "null", "preset": "official", "steps": steps, "batches": [2], "repeat": 3, "calls": 2,
    }  # fmt: skip
    parts = {"trunk", "head", "head ×2", "step", "asymmetric step"}
    parts |= {"encoder", "latent"} if family == "diffae" else set()
    calls = {"call encode", "call decode", "call edit"}
    assert found["parts"].keys() == parts | calls
    evaluations = {name: found["parts"][name]["evaluations"] for name in calls}
    inversion = 4 if family == "diffae" else 3  # Asyrp's is one shorter
    assert evaluations == {"call encode": inversion, "call decode": 4, "call edit": inversion + 4}
    entry = found["engines"]["null"]
    assert entry["milliseconds"].keys() == entry["variation"].keys() == parts | calls | {"inject", "update"}
    for name, times in entry["milliseconds"].items():
        assert times.keys() == {"p50", "p95", "p99", "min", "count"}
        assert 0 < times["min"] <= times["p50"] <= times["p95"] <= times["p99"]
        assert times["count"] == (2 if name in calls else 3)
    assert entry["overhead"].keys() == {"update", "share", "null_update", "null_share"}
    assert "gflops" not in entry and "ratio" not in entry and found["peak"] == {}  # the null engine computes nothing
    assert found["batches"].keys() == {"2"}


def test_table(cli: Cli, bundle: Path) -> None:
    out = cli("bench", "-b", bundle, "--engine", "null", *QUICK).check().out
    header = out.split("\n\n")[1].splitlines()[0]
    assert header.split() == ["milliseconds", "p50", "p95", "p99", "min", "rounds"]
    assert "engine null; batch 1" in out and "asymmetric step" in out and "\nengine " in out
    assert "\nbatch " not in out


def test_engines_side_by_side(cli: Cli) -> None:
    """Real graphs: a ratio to the first engine that computes, GFLOP, and shares of the peak."""
    pytest.importorskip("onnx", reason="needs the extra `bench`")
    arguments = ["bench", "-b", BUNDLES / "avatars32", "--engine", "null", "--engine", "onnx", *QUICK]
    out = cli(*arguments).check().out
    header = out.split("\n\n")[1].splitlines()[0].split()
    assert header == ["milliseconds", "null", "p50", "p95", "p99", "min", "onnx", "p50", "p95", "p99", "min", "rounds"]
    assert "onnx GFLOP/s" in out and "null GFLOP/s" not in out
    assert re.search(
        r"Matrix peak of this machine, measured in every round: fp32 \d+ GFLOP/s, \d+ to \d+ \(a test\)", out
    )
    found = cli(*arguments, "--json").check().json
    step = found["parts"]["step"]
    assert step["gflop"] == pytest.approx(found["parts"]["trunk"]["gflop"] + found["parts"]["head"]["gflop"])
    each = found["engines"]["onnx"]["gflops"]["step"]
    assert each["achieved"] == pytest.approx(
        step["gflop"] / found["engines"]["onnx"]["milliseconds"]["step"]["p50"] * 1e3
    )
    peak = found["peak"]["fp32"]
    assert len(peak["rounds"]) == 1 and peak["gflops"] == peak["rounds"][0] <= 1e12
    assert (each["share"], each["of"]) == (pytest.approx(each["achieved"] / peak["gflops"]), "fp32")


def test_two_engines_that_compute(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="needs the extra `openvino`")
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path))
    arguments = ["bench", "-b", BUNDLES / "avatars32", "--engine", "onnx,openvino", *QUICK, "--json"]
    found = cli(*arguments).check().json
    assert [*found["engines"]] == ["onnx", "openvino"]
    openvino = found["engines"]["openvino"]
    assert openvino["ratio"].keys() == openvino["milliseconds"].keys() and "ratio" not in found["engines"]["onnx"]
    if "gflops" in openvino:
        assert openvino["gflops"]["head"]["of"] == openvino["precision"]
        assert openvino["gflops"]["encoder"]["of"] == "fp32"


def test_without_onnx(cli: Cli, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "can_count", lambda: False)
    out = cli("bench", "-b", bundle, "--engine", "null", *QUICK).check().out
    assert f"Warning: GFLOP are left out: {needs('counting them', 'onnx', 'bench')}." in out
    work = next(block for block in out.split("\n\n") if block.startswith("work"))
    assert work.splitlines()[0].split() == ["work", "evaluations"]


def test_batches(cli: Cli, bundle: Path) -> None:
    arguments = ["bench", "-b", bundle, "--engine", "null", "--batch", "2,1,3,2", *QUICK]
    found = cli(*arguments, "--json").check().json
    assert found["batches"].keys() == {"2", "1", "3"}
    for n, engines in found["batches"].items():
        for step in ("step", "asymmetric step"):
            assert engines["null"][step]["per_image"] == pytest.approx(engines["null"][step]["p50"] / int(n))
    out = cli(*arguments).check().out
    table = next(block for block in out.split("\n\n") if block.startswith("batch"))
    assert [line.split()[0] for line in table.splitlines()] == ["batch", "2", "1", "3"]


def test_plot(cli: Cli, bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra `bench`")
    arguments = ["bench", "-b", bundle, "--engine", "null", "--batch", "1,2", *QUICK, "--plot", tmp_path / "a.png"]
    cli(*arguments).check()
    with PIL.Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG" and image.width > image.height
    cli(*arguments).error(7, "a.png: exists already (--force replaces it)")
    cli(*arguments, "--force").check()
    cli(*arguments[:-1], tmp_path / "a.pdf").error(7, "a.pdf: expected a name that ends in .png")


def test_plot_without_matplotlib(cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before anything is measured."""
    monkeypatch.delitem(sys.modules, "hspace.bench.plot", raising=False)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.patches"):
        monkeypatch.setitem(sys.modules, name, None)
    cli("bench", "-b", bundle, "--engine", "null", "--plot", tmp_path / "a.png").error(
        1, "hspace bench --plot needs the package matplotlib", "pip install '.[bench]'"
    )


@pytest.mark.parametrize("option", ["--batch", "--repeat", "--calls"])
def test_refusals(option: str, cli: Cli, bundle: Path) -> None:
    cli("bench", "-b", bundle, "--engine", "null", option, 0).error(
        2, f"{option}: found 0, expected a whole number from 1 to"
    )


def test_refusals_of_lists(cli: Cli, bundle: Path) -> None:
    cli("bench", "-b", bundle, "--batch", "1,x").error(2, "found '1,x', expected whole numbers with commas between")
    cli("bench", "-b", bundle, "--engine", "null,").error(5, "engine: found '', expected auto, ")


def test_a_gpu_that_is_not_there(cli: Cli, bundle: Path) -> None:
    """Said before anything is started."""
    cli("bench", "-b", bundle, "--engine", "onnx", "--device", "cuda:99").error(5, "device cuda")
    cli("bench", "-b", bundle, "--device", "gpu").error(2, "device: found 'gpu', expected 'cpu', or 'cuda:0'")
