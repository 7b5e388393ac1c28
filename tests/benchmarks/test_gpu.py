"""What benchmarks/gpu.py counts, compares and writes; what measures runs on the fake driver. No time is asserted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace.batch import Sample
from hspace.bench import report as bench_report
from hspace.bench import timing
from hspace.bench.parts import programs
from hspace.bundle import Bundle
from hspace.cuda.driver import Device
from hspace.cuda.kernels import Kernels
from hspace.image import load_images
from hspace.program import Program

from ..batches import run_all, states
from ..conftest import BUNDLES, relative_error
from . import FOLDER
from .conftest import Timed

pytest.importorskip("onnx", reason="needs the extra `bench`")

from gpu import accuracy, bandwidth, edits, half, networks, report, steps, suites, workers
from gpu.report import Found, Goal

# --- what is counted ------------------------------------------------------------------------------------------


def test_traffic() -> None:
    """Bytes an element: x and x_in written; then what the row reads, and what a run with such rows keeps."""
    x, eps, written = 4, 2, 4 + 2
    expected = {
        "DDIM": x + eps + written,
        "DDIM, clamped": x + eps + written,
        "asymmetric": x + 2 * eps + written,
        "DPM-Solver++(2M)": x + 4 + eps + written + 4,  # P_prev and P
        "BDIA": x + 4 + eps + written + 4,  # the old x_prev and the new one
        "noise": x + eps + written,  # which is generated
    }
    assert {name: bandwidth.traffic(kind) for name, kind in bandwidth.kinds().items()} == expected


def test_rows_are_what_they_are_called() -> None:
    kinds = {name: kind.row for name, kind in bandwidth.kinds().items()}
    assert kinds["DDIM, clamped"]["clip"] == 1 and kinds["DPM-Solver++(2M)"]["c_x0_prev"] != 0
    assert kinds["BDIA"]["c_x_prev"] != 0 and kinds["noise"]["c_noise"] > 0
    assert [name for name, row in kinds.items() if row["branch"]] == ["asymmetric"]
    records = bandwidth.records(bandwidth.kinds()["asymmetric"], 3)
    assert records["second"].tolist() == [3, 4, 5] and (records["t"] == kinds["asymmetric"]["t"]).all()


# --- what is said ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("goal", "met", "text"),
    [
        (Goal("a", 85.0, 85.0, "%", least=True), True, "≥ 85 %"),
        (Goal("a", 84.9, 85.0, "%", least=True), False, "≥ 85 %"),
        (Goal("a", 5.0, 5.0, "µs"), True, "≤ 5 µs"),
        (Goal("a", 1e-2, 1e-3, ""), False, "≤ 0.001"),
        (Goal("a", float("nan"), 1.0, ""), False, "≤ 1"),
        (Goal("a", float("nan"), 1.0, "", least=True), False, "≥ 1"),
    ],
)
def test_goals(goal: Goal, met: bool, text: str) -> None:
    found = goal.to_json()
    assert goal.met is met and found["verdict"] == ("met" if met else "missed") and found["goal"] == text
    assert found["found"] == (goal.found if goal.found == goal.found else None)


def test_text() -> None:
    found = Found({}, [Goal("size", 1.0, 2.0, "m")], [(["a", "b"], [["1", "2"]])], ["so it is"], ["not there"])
    blocks = found.text().split("\n\n")
    assert len(blocks) == 3 and "size" in blocks[1] and "≤ 2 m" in blocks[1] and "met" in blocks[1]
    assert blocks[2] == "so it is.\nFailed: not there"


@pytest.mark.parametrize(
    ("model", "expected"),
    [("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"), ("Tesla T4", "tesla-t4"), ("  A/B (C) ", "a-b-c")],
)
def test_slug(model: str, expected: str) -> None:
    assert report.slug(model) == expected


def test_sections_of_one_machine_share_a_file(tmp_path: Path) -> None:
    path, here = tmp_path / "results" / "gpu.json", {"gpu": {"model": "A"}, "versions": {"torch": "2"}}
    monday, tuesday = ({"date": date, "commit": commit} for date, commit in (("Monday", "1"), ("Tuesday", "2+")))
    report.write(path, here | monday, False, {"kernels": Found({"a": 1}), "tests": Found({"b": 2})})
    again = Found({"b": 3}, [Goal("g", float("nan"), 1, "")], errors=["e"])
    report.write(path, here | tuesday, False, {"tests": again})
    found = json.loads(path.read_text())
    assert found["machine"] == here and found["quick"] is False
    goal = {"name": "g", "found": None, "unit": "", "goal": "≤ 1", "verdict": "missed"}
    assert found["sections"] == {
        "kernels": monday | {"a": 1, "goals": []},
        "tests": tuesday | {"b": 3, "goals": [goal], "errors": ["e"]},
    }
    others = ({"versions": {"torch": "3"}}, False), ({"gpu": {"model": "B"}}, False), ({}, True)
    for other, quick in others:
        report.write(path, here | other | monday, quick, {"edits": Found({})})
        assert json.loads(path.read_text())["sections"].keys() == {"edits"}
        report.write(path, here | monday, False, {"kernels": Found({})})
    path.write_text("no JSON")
    report.write(path, here | monday, False, {"edits": Found({})})
    assert json.loads(path.read_text())["sections"].keys() == {"edits"}


def test_spread() -> None:
    found = report.spread([1.0, 3.0, 2.0])
    assert found == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert report.spread_text(found) == "2.00 (1.00 to 3.00)"


# --- without a GPU --------------------------------------------------------------------------------------------


def gpu(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(FOLDER / "gpu.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_without_a_gpu() -> None:
    """One line, which says what is missing."""
    done = gpu()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("device cuda: ") and done.stderr.count("\n") == 1


def test_options() -> None:
    done = gpu("--only", "kernels,nothing")
    assert done.returncode == 2 and "--only: found nothing, expected some of tests, accuracy" in done.stderr
    assert gpu("--rounds", "0").returncode == 2


# --- processes ------------------------------------------------------------------------------------------------


class Odd:
    """A worker's object."""

    def __init__(self, fails: bool) -> None:
        if fails:
            raise ValueError("first\nsecond")

    def double(self, n: int) -> int:
        print("said")
        return 2 * n

    def die(self) -> None:
        os._exit(7)

    def sleep(self) -> None:
        time.sleep(60)

    def refuse(self) -> None:
        raise workers.Failed("because")


def test_worker(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "odd.log"
    with workers.Worker(log, Odd, False) as worker:
        assert worker.ask("double", 4) == 8 and worker.ask("double", 5) == 10
        with pytest.raises(workers.Failed, match=r"^because$"):
            worker.ask("refuse")
        with pytest.raises(workers.Failed, match="its process"):
            worker.ask("double", 1)
    assert log.read_text().count("said") == 2 and "Traceback" in log.read_text()
    with pytest.raises(workers.Failed, match=r"^ValueError: first$"):
        workers.Worker(log, Odd, True)
    with workers.Worker(log, Odd, False) as worker, pytest.raises(workers.Failed, match="its process ended with 7"):
        worker.ask("die")
    worker = workers.Worker(log, Odd, False)
    worker._limit = 0.1
    with worker, pytest.raises(workers.Failed, match="no answer in 0 s"):
        worker.ask("sleep")
    assert workers.apart(log, int, "12") == 12


def test_suites(tmp_path: Path) -> None:
    folder = tmp_path / "suite"
    folder.mkdir()
    text = "import pytest\ndef test_a(): pass\ndef test_b(): assert False\ndef test_c(): pytest.skip('no')\n"
    (folder / "test_these.py").write_text(text)
    counts, failed = suites.run(str(folder), tmp_path)
    assert counts == {"passed": 1, "failed": 1, "skipped": 1}
    assert [name.rsplit(".", 1)[-1] for name in failed] == ["test_b"]
    (folder / "test_these.py").write_text("import pytest\ndef test_a(): pytest.skip('no')\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suites, "SUITES", {"gpu": str(folder)})
        found = suites.section(tmp_path)
    assert found.errors == [f"{folder}: every test was skipped"] and not found.goals
    with pytest.raises(workers.Failed, match="pytest reported nothing"):
        (folder / "test_these.py").write_text("import sys, os\nos._exit(3)")
        suites.run(str(folder), tmp_path)


# --- on the fake driver ---------------------------------------------------------------------------------------


def test_kernels(kernels_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "IN_A_ROW", 3)
    driver = Timed()
    device = Device(0, driver)
    numbers = bandwidth.measure(device, Kernels(device, kernels_folder), (2**14, 2**15), 2, 192, (32, 4, 8))
    kinds = [*bandwidth.kinds(), "table"]
    assert [each["row"] for each in numbers["bandwidth"]] == 2 * kinds
    for each in numbers["bandwidth"]:
        assert each["share"] == 1 and each["gb_per_s"] == each["copy_gb_per_s"] > 0  # the clock says so
    assert len(numbers["launches"]) == 2 + 2 * len(bandwidth.BATCHES)
    assert {"linear_step_fp16", "inject_fp16", "block_norm_fp16", "block_hidden_fp16"} == driver.launched.keys()
    assert json.loads(json.dumps(numbers)) == numbers
    found = bandwidth.found(numbers)
    assert len(found.goals) == 2 * len(kinds) + 2 * 2 and found.text()
    assert driver.events_made == 2  # marks are used again


@pytest.mark.filterwarnings("ignore:overflow|invalid:RuntimeWarning")  # updates alone, one after another, lead far off
@pytest.mark.parametrize("capturable", [True, False])
@pytest.mark.parametrize("family", ["asyrp", "diffae"])
def test_steps(make_timed: Callable[..., Any], family: str, capturable: bool) -> None:
    pair = make_timed(family, "fp16")
    if not capturable:
        pair.executor.not_captured = "the engine cannot be captured"
    party = steps.Hspace(pair.editors()[1])
    for n in (1, 3):
        for part in (names := party.open(n)):
            assert party.time(part, 4) == [1.0 if part != "update" else 1 / steps.UPDATES] * 4
        assert names == ["step", "asymmetric step", "network", "network ×2", "update"]
        for step in steps.KINDS:
            assert {part: len(laps) for part, laps in party.split(step, 5).items()} == dict.fromkeys(
                ("trunk", "inject", "head", "update"), 5
            )
    assert party.about()["captured"] is capturable and ("why_not" in party.about()) is not capturable
    heads = {bound for bound in pair.engine.bound if bound[0] == "head"}
    assert heads == {("head", n, m) for n in (1, 4) for m in (n, 2 * n)}


def test_steps_are_put_back(make_timed: Callable[..., Any]) -> None:
    """However often a step is timed, it starts from the same state; and it is the step of a run."""
    pair = make_timed("asyrp")
    host, editor = pair.editors()
    party = steps.Hspace(editor)
    party.open(2)
    here = party._ready["asymmetric step"]
    for _ in range(3):
        party.time("update", 2)
        with pair.executor.device:
            here.again()
            start = pair.executor.stream.download(here.work.at["x"], (2, 3, 8, 8))
            here.step()
            found = pair.executor.stream.download(here.work.at["x"], (2, 3, 8, 8))
        program, edit = programs(host)[1]
        first = Program("its first row", program.rows[:1])
        expected = run_all(pair.host, [Sample(x, first, edit=edit) for x in start])
        assert relative_error(found, states(expected)) <= 1e-5


class Ask:
    """A party in this process."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self.closed = False

    def ask(self, method: str, *arguments: Any) -> Any:
        return getattr(self._target, method)(*arguments)

    def close(self) -> None:
        self.closed = True


class Peer:
    """One that takes twice as long, and fails at some batch size."""

    def __init__(self, fails_at: int) -> None:
        self._fails_at = fails_at

    def open(self, n: int) -> list[str]:
        if n == self._fails_at:
            raise workers.Failed("too large")
        return ["step", "update"]

    def time(self, what: str, count: int) -> list[float]:
        return [2.0] * count


@pytest.mark.filterwarnings("ignore:overflow|invalid:RuntimeWarning")
def test_comparison(make_timed: Callable[..., Any]) -> None:
    pair = make_timed("asyrp", "fp16")
    mine, fast, odd = Ask(steps.Hspace(pair.editors()[1])), Ask(Peer(0)), Ask(Peer(4))
    errors: list[str] = []
    numbers = steps.compare({"hspace": mine, "fast": fast, "odd": odd}, (1, 4), 2, 0.0, errors)
    assert errors == ["batch 4: odd: too large"] and odd.closed and not fast.closed
    assert numbers["batches"].keys() == {"1", "4"} and numbers["captured"]
    one, four = numbers["batches"].values()
    assert one["ratio"].keys() == {"fast", "odd"} and four["ratio"].keys() == {"fast"}
    assert one["ratio"]["fast"]["step"] == {"median": 2, "low": 2, "high": 2}
    assert one["ratio"]["fast"]["update"]["median"] == 2 * steps.UPDATES
    assert one["overhead"] == {step: {"median": 0, "low": 0, "high": 0} for step in steps.KINDS}
    assert one["milliseconds"]["hspace"]["network"]["count"] == 6
    assert "inject" not in one["split"]["step"] and one["split"]["asymmetric step"]["inject"]["p99"] == 1
    assert json.loads(json.dumps(numbers)) == numbers
    errors.clear()
    numbers = steps.compare({"hspace": mine, "fast": fast}, (1,), 1, 0.0, errors)
    lost = steps.compare({"hspace": Ask(Peer(1)), "fast": fast}, (1, 4), 1, 0.0, errors)
    assert lost == {"batches": {}} and errors == ["batch 1: hspace: too large"]
    found = Found()
    steps._describe(found, "tiny", lost)
    assert not found.text()
    steps._describe(found, "tiny", numbers)
    assert len(found.goals) == 2 and all(goal.met for goal in found.goals) and "one CUDA graph" in found.text()


def test_whole_edits(make_timed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "ATTRIBUTE", "block")
    _, editor = make_timed("asyrp").editors(batch_size=16)
    found = edits.measure(editor, (3, 3), 2)
    assert found.keys() == {"1", "4", "16"}
    assert all(each["count"] == 2 and 0 < each["min"] <= each["p50"] <= each["max"] for each in found.values())


@pytest.mark.parametrize("family", ["asyrp", "diffae"])
def test_hspace_bench(make_timed: Callable[..., Any], family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`hspace bench --device cuda:0`, as far as it goes without a GPU."""
    pair = make_timed(family)
    host, editor = pair.editors()
    times = timing.compare({"cuda": editor, "cpu": host}, batches=[2, 3], repeat=2, calls=1, steps=3)
    assert {part for part, _ in times["cuda"]} == {part for part, _ in times["cpu"]}
    asked: list[str] = []
    monkeypatch.setattr(bench_report, "open_bundle", lambda _, *, device, **__: asked.append(device) or editor)
    monkeypatch.setattr(bench_report.startup, "start_up", lambda *_, device, **__: asked.append(device) or {})
    card = {"model": "Fake GPU", "architecture": "sm_90", "memory_mb": 1.0, "cuda": "13.0"}
    monkeypatch.setattr(bench_report, "_gpu", lambda _: {"gpu": card})
    monkeypatch.setattr(bench_report.counting, "can_count", lambda: False)
    options: dict[str, Any] = {"repeat": 1, "calls": 1, "steps": 2, "device": "cuda:0"}
    found = bench_report.report(str(pair.bundle.folder), ["onnx"], **options)
    assert asked == ["cuda:0"] * 2 and found["peak"] == {}
    (entry,) = found["engines"].values()
    assert entry["overhead"].keys() == {"update", "share"} and entry["milliseconds"]["inject"]["count"] == 1
    assert bench_report.heading(found)[0] == "Fake GPU, sm_90, 1 MB, CUDA 13.0"
    assert bench_report.tables(found) and any("Left out" in text for text in bench_report.closing(found))
    assert json.loads(json.dumps(found)) == found


# --- FP16 without the checkpoint ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[hspace.Editor, hspace.Editor]:
    """The shipped bundle in FP32, and converted."""
    folder = half.to_half(BUNDLES / "avatars32", tmp_path_factory.mktemp("half") / "avatars32")
    assert half.to_half(BUNDLES / "avatars32", folder) == folder  # which is there already
    full, converted = (hspace.open(path, engine="onnx") for path in (BUNDLES / "avatars32", folder))
    return full, converted


def test_converted_components(halves: tuple[hspace.Editor, hspace.Editor]) -> None:
    """ε as near to FP32's as the exporter's own FP16 graphs are; and the same interface as theirs."""
    full, converted = halves
    rng = np.random.default_rng(0)
    t, source = np.array([0, 10, 300, 999], np.int32), np.array([0, 1, 2, 3, 2], np.int64)
    x, z = rng.standard_normal((4, 3, 32, 32), dtype=np.float32), rng.standard_normal((4, 128), dtype=np.float32)
    eps = []
    for editor in halves:
        h, temb, *skips = editor.engine.run("trunk", {"x": x, "t": t, "z_sem": z})
        given = {"h": h[source], "temb": temb, "source": source, "z_sem": z}
        given |= {f"skip_{i}": s for i, s in enumerate(skips)}
        eps.append(editor.engine.run("head", given)[0])
    assert eps[1].dtype == np.float16
    assert max(relative_error(a, b) for a, b in zip(eps[1].astype(np.float32), eps[0], strict=True)) <= 2e-3
    for name, spec in converted.bundle.manifest.components.items():
        dtypes = {t.name: t.dtype for t in (*spec.inputs, *spec.outputs) if t.dtype.startswith("float")}
        expected = "float16" if name in ("trunk", "head") else "float32"
        assert set(dtypes.values()) - {"float32" if "z_sem" in dtypes else None} <= {expected}
        assert dtypes.get("z_sem", "float32") == "float32"
        assert spec.precision == {"float16": "fp16", "float32": "fp32"}[expected]
    assert list(converted.bundle.verify())
    assert full.attributes.keys() == converted.attributes.keys()


def test_converted_edits(halves: tuple[hspace.Editor, hspace.Editor]) -> None:
    """100 + 100 steps, along z_sem and in h at once."""
    full, converted = halves
    images = load_images(sorted(accuracy.IMAGES.glob("*.png")), 32)
    run: dict[str, Any] = {"edits": {"Blond_Hair": 0.5, "hair_length": 1.0}, "steps": 100, "output": "float32"}
    found = accuracy.psnr(*(editor.edit(images, **run) for editor in (converted, full)))
    assert len(found) == 6 and min(found) >= accuracy.DECIBELS, found


def test_pictures(halves: tuple[hspace.Editor, hspace.Editor]) -> None:
    images = accuracy.pictures(halves[0], 2)
    assert images.shape == (8, 3, 32, 32) and images.dtype == np.float32 and np.abs(images).max() <= 1


def test_psnr() -> None:
    zero = np.zeros((2, 3, 4, 4), np.float32)
    assert accuracy.psnr(zero, zero) == pytest.approx([200, 200])
    assert accuracy.psnr(zero + np.float32(0.2), zero) == pytest.approx([20, 20], abs=1e-4)


# --- networks, and PyTorch beside them ------------------------------------------------------------------------


def test_small_networks(tmp_path: Path) -> None:
    """Those that --quick times: exported once; the same steps in PyTorch, in FP16."""
    torch = pytest.importorskip("torch", reason="needs the extra `export`")
    from gpu import pytorch

    for name in networks.networks(quick=True):
        folder = networks.prepare(tmp_path, True, name)
        assert networks.prepare(tmp_path, True, name) == folder
        bundle = Bundle(folder)
        assert bundle.manifest.components["head"].precision == "fp16"
        editor = hspace.open(folder, engine="onnx")
        assert networks.ATTRIBUTE in editor.attributes
        for form in ("eager", "channels-last"):
            loop = pytorch.Loop(bundle, form, "cpu")
            loop.open(2)
            asyrp = bundle.manifest.family == "asyrp"
            assert list(loop.parts) == ["step", *(["asymmetric step"] if asyrp else []), "update"]
            with torch.no_grad():
                for run in loop.parts.values():
                    x, x_in = run()
                    assert x.shape == (2, 3, 32, 32) and x.dtype == torch.float32 and x_in.dtype == torch.float16
                    assert bool(x.isfinite().all())
        if asyrp:
            block, rng = editor.attributes[networks.ATTRIBUTE], np.random.default_rng(0)
            shapes = (2, *bundle.manifest.components["trunk"].outputs[0].shape[1:]), (2, len(block.temb_proj[0][0]))
            h, temb = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
            with torch.no_grad():
                found = loop._delta(*(torch.from_numpy(a).half() for a in (h, temb)))
            assert relative_error(found.float().numpy(), block.delta_h(h, temb, np.zeros(2, np.int32))) <= 5e-3
    assert not list(tmp_path.glob("*.ckpt"))
