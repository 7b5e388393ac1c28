"""hspace against the data of this folder, and the data against what writes it. README.md states the tolerances."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hspace.batch import Moved, Result, Sample
from hspace.catalog import SAMPLERS
from hspace.deltas import Content, DeltaTable, Edit, inject
from hspace.edits import compile_edit
from hspace.engines.null import NullEngine
from hspace.errors import ArgumentError, BundleError, Cancelled, NotFinite
from hspace.executors import cpu
from hspace.kinds import KINDS, Slot
from hspace.manifest import AnySchedule
from hspace.noise import NoiseStream, normal, philox4x32
from hspace.program import COEFFICIENTS, ROW, Branch, Program
from hspace.schedule import SPACINGS, Schedule, space_timesteps
from hspace.tensors import Tensors, read_tensors

from ..batches import host, run_all
from ..conftest import relative_error
from . import write

FOLDER = Path(__file__).parent


def text(name: str) -> dict[str, Any]:
    content = json.loads((FOLDER / f"{name}.json").read_text())
    assert content["format"] == f"hspace-conformance-{name}-1"
    return content


def tensors(name: str) -> dict[str, np.ndarray]:
    read = read_tensors((FOLDER / f"{name}.safetensors").read_bytes(), name)
    assert read.metadata == {"format": f"hspace-conformance-{name}-1"}
    return read.arrays


def under(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `name` and a slash, by the rest."""
    return {n.removeprefix(f"{name}/"): a for n, a in arrays.items() if n.startswith(f"{name}/")}


def built(schedule: dict[str, Any]) -> Schedule:
    return msgspec.convert(schedule, AnySchedule).build()  # type: ignore[arg-type]


def rows_of(entry: dict[str, Any], columns: list[str]) -> np.ndarray:
    assert tuple(columns) == ROW.names
    return np.array([tuple(row) for row in entry["rows"]], ROW)


def near(rows: np.ndarray, expected: np.ndarray) -> bool:
    """Flags alike, and coefficients within one float32 of the data's, or 1e-12 where terms cancel."""
    apart = [np.abs(rows[n].astype(np.float64) - expected[n]) for n in COEFFICIENTS]
    least = [np.maximum(np.spacing(np.abs(expected[n])), 1e-12) for n in COEFFICIENTS]
    flags = all(np.array_equal(rows[n], expected[n]) for n in ("t", "clip", "draws", "branch"))
    return flags and all((a <= b).all() for a, b in zip(apart, least, strict=True))


# --- schedules, programs, noise -----------------------------------------------------------------------


def test_schedules_and_spacings() -> None:
    content = text("schedules")
    schedules = {name: built(entry["schedule"]) for name, entry in content["schedules"].items()}
    for name, entry in content["schedules"].items():
        np.testing.assert_allclose(schedules[name].alphas_cumprod[entry["t"]], entry["alphas_cumprod"], rtol=1e-12)
    assert {type(write.SCHEDULES[n]) for n in schedules} == set(AnySchedule.__args__)
    assert {entry["spacing"] for entry in content["spacings"]} == set(SPACINGS)
    for entry in content["spacings"]:
        arguments = entry["spacing"], entry["steps"], schedules[entry["schedule"]]
        if entry["timesteps"] is None:
            with pytest.raises(ArgumentError):
                space_timesteps(*arguments)
        else:
            assert space_timesteps(*arguments).tolist() == entry["timesteps"], entry


def test_programs() -> None:
    """To the last bit where no logarithm, exponential or cosine is in them."""
    content = text("programs")
    for name, entry in content["programs"].items():
        rows, expected = write.program_of(entry).rows, rows_of(entry, content["columns"])
        assert len(rows) == len(expected), name
        assert np.array_equal(rows, expected) if entry["bits"] else near(rows, expected), name
    entries = content["programs"].values()
    combinations = {(e["sampler"], e["spacing"], e["clip"], e["kind"], e["branch"]) for e in entries}
    for sampler in SAMPLERS:
        assert sum(c[0] == sampler for c in combinations) >= len(SPACINGS) * 7, sampler
    assert {e["sampler"] for e in entries if e["resume"]} == {n for n, s in SAMPLERS.items() if s.exact}


def test_noise() -> None:
    content = text("noise")
    for entry in content["philox"]:
        words = philox4x32(np.array([entry["counter"]], np.uint32), entry["seed"])
        assert words.tolist() == [entry["words"]]
    for entry in content["draws"]:
        stream = NoiseStream(entry["stream"])
        z = normal(entry["shape"], entry["seed"], draw=entry["draw"], image=entry["image"], stream=stream)
        assert z.dtype == np.float32 and list(z.shape) == entry["shape"]
        expected = np.array(entry["normal"])
        assert (np.abs(z.ravel() - expected) <= np.spacing(np.abs(expected).astype(np.float32)) + 1e-12).all()


# --- rows ---------------------------------------------------------------------------------------------


class Told:
    """An engine whose ε and ε̃ are given for every t: the head's first N samples have ε, those after them ε̃."""

    def __init__(self, eps: dict[int, np.ndarray], eps_edit: dict[int, np.ndarray]) -> None:
        self.eps, self.eps_edit = eps, eps_edit

    def run(self, component: str, inputs: Any) -> Any:
        if component == "trunk":
            n = len(inputs["x"])
            return [np.zeros((n, 1, 1, 1), np.float32), inputs["t"].astype(np.float32)[:, None]]
        n, t = len(inputs["temb"]), inputs["temb"][inputs["source"], 0].astype(int)
        return [np.stack([(self.eps if i < n else self.eps_edit)[k] for i, k in enumerate(t.tolist())])]


def test_rows() -> None:
    """Each case's row is a program's second. The first makes x (a draw) and P_prev (of x_prev and its own ε)."""
    a = tensors("rows")
    count = len(a["t"])
    assert count >= 100 and {n: bool(a[n].any()) for n in ROW.names} == dict.fromkeys(ROW.names, True)
    eps = dict(enumerate(a["eps"])) | {count + k: a["x_prev"][k] - a["x_0_prev"][k] for k in range(count)}
    samples = []
    for k in range(count):
        rows = np.zeros(2, ROW)
        rows["alpha"], rows["sigma"], rows["c_noise"], rows["draws"], rows["t"] = 1, 1, 1, 1, count + k
        rows[1] = tuple(a[n][k] for n in ROW.names)
        branch = Branch(int(a["branch"][k]))
        delta = DeltaTable(np.zeros(1, np.int64), np.zeros((1, 1, 1, 1), np.float32), None, branch)
        noise = np.stack([a["x"][k], a["z"][k]])[: 1 + int(a["draws"][k])]
        edit = Edit(deltas=((delta, 1.0),), branch=branch)
        samples.append(Sample(a["x_prev"][k], Program.from_rows("case", rows), edit=edit, noise=noise))
    moved: list[Moved] = []
    results = run_all(
        host(Told(eps, dict(enumerate(a["eps_edit"]))), (3, 2, 2)),
        samples,
        observe=lambda m: moved.append(m._replace(x=m.x.copy(), x_0=m.x_0.copy())),
    )
    assert np.array_equal(moved[1].x, a["x"])
    for k, result in enumerate(results):
        assert isinstance(result, Result)
        assert relative_error(moved[0].x_0[k], a["x_0_prev"][k]) < 1e-6
        assert relative_error(moved[1].x_0[k], a["x_0"][k]) < 1e-6, k
        assert relative_error(result.x, a["x_next"][k]) < 1e-6, k


# --- edits --------------------------------------------------------------------------------------------


def attributes() -> dict[str, Any]:
    """All of the data's, read as a bundle's are."""
    arrays, made = tensors("deltas"), {}
    for name, entry in text("deltas")["attributes"].items():
        own, branch = under(arrays, name), Branch[entry["branch"].upper()]
        if entry["kind"] == "content":
            made[name] = Content(own["timesteps"], own["table"], entry["strength"], own.get("mask"))
        else:
            slot = Slot(z_sem=6, h=(64, 2, 2), temb=5, branch=branch, n_train=entry["n_train"])
            metadata = {"eps": str(entry.get("eps"))}
            made[name] = KINDS[entry["kind"]].read(Tensors(name, own, metadata, BundleError), slot)
        assert branch == getattr(made[name], "branch", Branch.NONE)
    return made


def check_compiled(edit: Edit, entry: dict[str, Any], known: dict[str, Any]) -> None:
    for own, expected in ((edit.directions, entry["directions"]), (edit.deltas, entry["deltas"])):
        assert [(id(a), s) for a, s in own] == [(id(known[n]), pytest.approx(s, rel=1e-15)) for n, s in expected]
    assert (edit.branch, edit.n_train) == (Branch[entry["branch"].upper()], entry["n_train"])


def test_edits() -> None:
    known, arrays, edits = attributes(), tensors("deltas"), text("deltas")["edits"]
    for name, entry in edits.items():
        own, edit = under(arrays, name), compile_edit(dict(entry["edit"]), known, entry["steps"])
        check_compiled(edit, entry, known)
        if entry["directions"]:
            moved = np.stack([edit.move(z) for z in own["z_sem"]])
            assert relative_error(moved, own["moved"]) < 1e-6, name
        if entry["deltas"]:
            n = len(own["t"])
            total = inject(own["h"], own["temb"], own["t"], own["edit_scale"], [edit] * n)
            for i in range(n):
                largest = max(np.linalg.norm(own[a][i]) for a in ("delta_h", "h"))
                assert np.linalg.norm(total[i] - own["delta_h"][i]) < 1e-6 * largest, (name, i)
    kinds = {text("deltas")["attributes"][n]["kind"] for entry in edits.values() for n, _ in entry["edit"]}
    assert kinds == {*KINDS, "content"}


# --- whole runs ---------------------------------------------------------------------------------------


def components(network: dict[str, Any]) -> dict[str, Any]:
    return {
        name: SimpleNamespace(**{side: [SimpleNamespace(**tensor) for tensor in each] for side, each in spec.items()})
        for name, spec in network["components"].items()
    }


def executor(network: dict[str, Any]) -> cpu.Executor:
    specs = components(network)
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(components=specs))
    return cpu.Executor(NullEngine(bundle), specs)


def test_null_engine() -> None:
    arrays = tensors("null")
    for name, network in text("runs")["networks"].items():
        engine = executor(network).engine
        for component, spec in network["components"].items():
            outputs = engine.run(component, under(arrays, f"{name}/{component}/in"))
            for tensor, output in zip(spec["outputs"], outputs, strict=True):
                expected = arrays[f"{name}/{component}/out/{tensor['name']}"]
                assert output.shape == expected.shape and np.abs(output - expected).max() < 2e-6


def samples() -> tuple[dict[str, Sample], dict[str, dict[str, np.ndarray]]]:
    """The samples, and what their runs are to be."""
    content, programs, arrays, known = text("runs"), text("programs"), tensors("runs"), attributes()
    made, expected = {}, {}
    for name, entry in content["samples"].items():
        program = (programs["programs"] | content["programs"])[entry["program"]]
        edit = compile_edit(dict(entry["edit"]), known, program["steps"])
        check_compiled(edit, entry, known)
        own = under(arrays, name)
        rows = Program.from_rows(entry["program"], rows_of(program, programs["columns"]))
        given = {n: own[n] for n in ("x", "z_sem", "x_prev", "noise") if n in own}
        made[name] = Sample(program=rows, edit=edit, seed=entry["seed"], image=entry["image"], **given)
        expected[name] = own
    return made, expected


def test_runs() -> None:
    """Every event of every batch: who moves, what a step sees, who is done, and what each leaves with."""
    content, (known, expected) = text("runs"), samples()
    ends: dict[str, set[str]] = {name: set() for name in known}
    for batch_name, entry in content["batches"].items():
        network, capacity = content["networks"][entry["network"]], entry["capacity"]
        kind: Any = "latent" if entry["network"] == "latent" else "image"
        inside: dict[int, tuple[str, int]] = {}  # by the data's slot: the sample, and the batch's slot
        with executor(network).batch(kind, capacity) as batch:
            for event in entry["events"]:
                where = f"{batch_name}: {event}"
                if "join" in event:
                    inside[event["slot"]] = event["join"], batch.join(known[event["join"]])
                elif "step" in event:
                    moved: list[Moved] = []
                    done = batch.step(moved.append)
                    assert sorted(done) == sorted(inside[slot][1] for slot in event["finished"]), where
                    check_step(moved[0], event["step"], inside, expected)
                else:
                    name, slot = inside.pop(event["leave"])
                    rows = known[name].program.rows
                    ends[name].add(leave(batch, slot, rows, content["samples"][name], event["row"], expected[name]))
            assert len(batch) == len(inside) == 0
    assert set().union(*ends.values()) == {"result", "not finite", "cancelled"}
    for name, entry in content["samples"].items():
        assert ("result" if entry["finite"] else "not finite") in ends[name], name


def check_step(
    moved: Moved,
    ran: list[list[int]],
    inside: dict[int, tuple[str, int]],
    expected: dict[str, dict[str, np.ndarray]],
) -> None:
    of = {slot: i for i, slot in enumerate(moved.slot.tolist())}
    assert len(of) == len(ran)
    for slot, row in ran:
        name, own = inside[slot]
        i = of[own]
        assert moved.row[i] == row
        if "states" in expected[name]:
            assert moved.rows[i] == len(expected[name]["x_0"])
            assert relative_error(moved.x[i], expected[name]["states"][row]) < 5e-5, (name, row)
            assert relative_error(moved.x_0[i], expected[name]["x_0"][row]) < 5e-5, (name, row)


def leave(
    batch: Any, slot: int, rows: np.ndarray, entry: dict[str, Any], row: int, expected: dict[str, np.ndarray]
) -> str:
    """How the sample in that slot leaves, checked."""
    assert len(rows) == entry["rows"]
    if row < len(rows):
        with pytest.raises(Cancelled):
            batch.leave(slot)
        return "cancelled"
    if not entry["finite"]:
        with pytest.raises(NotFinite):
            batch.leave(slot)
        return "not finite"
    result = batch.leave(slot)
    assert relative_error(result.x, expected["states"][-1]) < 5e-5
    keeps = "x_prev" in expected or any(row["c_x_prev"] for row in rows)
    assert (result.x_prev is not None) == keeps
    if keeps:
        assert relative_error(result.x_prev, expected["states"][-2]) < 5e-5
    return "result"


# --- the files ----------------------------------------------------------------------------------------


def alike(a: Any, b: Any) -> bool:
    """The same content, but for what another machine's rounding makes of numbers."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, float):
        return isinstance(b, float) and a == pytest.approx(b, rel=1e-6, abs=1e-12)
    return type(a) is type(b) and a == b


def test_the_writer_gives_these_files_anew() -> None:
    """Byte by byte what is whole numbers or float64's own operations; the rest within rounding."""
    made = write.files()
    data = {p.name: p.read_bytes() for p in FOLDER.iterdir() if p.suffix in (".json", ".safetensors")}
    assert made.keys() == data.keys() and sum(map(len, data.values())) <= 2**20
    for name, content in made.items():
        if name.endswith(".json"):
            assert alike(json.loads(content), json.loads(data[name])), name
            lines, committed = content.splitlines(), data[name].splitlines()
            assert len(lines) == len(committed), name
            for line, other in zip(lines, committed, strict=True):
                if b'"bits": true' in line or b'"words"' in line or b'"timesteps"' in line:
                    assert line == other, name
        else:
            a, b = read_tensors(content, name), read_tensors(data[name], name)
            assert a.metadata == b.metadata and a.arrays.keys() == b.arrays.keys(), name
            for key, array in a.arrays.items():
                assert array.dtype == b.arrays[key].dtype, (name, key)
                np.testing.assert_allclose(array, b.arrays[key], rtol=1e-6, atol=1e-7, err_msg=f"{name}: {key}")
