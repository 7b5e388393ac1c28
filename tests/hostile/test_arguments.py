"""Arguments of the editor that are refused before any work: the engine here fails the test if anything evaluates it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace import Editor, Latent
from hspace.errors import ArgumentError, BundleError, EngineError, LatentError

from .helpers import alter, refused

Call = Callable[[Editor], Any]
IMAGES = np.zeros((2, 8, 8, 3), dtype=np.uint8)
NAN = float("nan")


def latent(count: int = 1, *, size: int = 8, d: int | None = 6, **provenance: str) -> Latent:
    rng = np.random.default_rng(count)
    z_sem = None if d is None else rng.standard_normal((count, d), dtype=np.float32)
    return Latent(rng.standard_normal((count, 3, size, size), dtype=np.float32), z_sem, provenance=provenance)


@pytest.fixture(params=["diffae", "asyrp"])
def idle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Editor:
    """An editor of each family whose engine must not be asked."""
    return _idle(request.getfixturevalue(f"null_{request.param}"), monkeypatch)


@pytest.fixture
def idle_diffae(null_diffae: Editor, monkeypatch: pytest.MonkeyPatch) -> Editor:
    return _idle(null_diffae, monkeypatch)


@pytest.fixture
def idle_asyrp(null_asyrp: Editor, monkeypatch: pytest.MonkeyPatch) -> Editor:
    return _idle(null_asyrp, monkeypatch)


def _idle(editor: Editor, monkeypatch: pytest.MonkeyPatch) -> Editor:
    def run(component: str, _: object) -> None:
        raise AssertionError(f"{component} was evaluated before the argument was refused")

    monkeypatch.setattr(editor.engine, "run", run)
    return editor


def test_idle_engine_notices_work(idle: Editor) -> None:
    with pytest.raises(AssertionError, match="was evaluated before"):
        idle.edit(IMAGES, {})


# --- of both families ---------------------------------------------------------------------------------

BOTH: dict[str, tuple[Call, list[str]]] = {
    "unknown attribute": (lambda e: e.edit(IMAGES, {"blok": 1}), ["no attribute 'blok'", "did you mean block?"]),
    "attribute in another case": (lambda e: e.edit(IMAGES, {"TABLE": 1}), ["'TABLE'", "did you mean table"]),
    "attribute like no other": (lambda e: e.edit(IMAGES, {"zzzzzzzz": 1}), ["it has block, table, haas"]),
    "attribute that is no text": (lambda e: e.edit(IMAGES, {3: 1}), ["no attribute '3'"]),
    "unknown among known": (lambda e: e.edit(IMAGES, {"block": 1, "blokk": 1}), ["no attribute 'blokk'"]),
    "unknown at strength 0": (lambda e: e.edit(IMAGES, {"blok": 0}), ["no attribute 'blok'"]),
    "strength NaN": (lambda e: e.edit(IMAGES, {"block": NAN}), ["block: found strength nan, expected"]),
    "strength inf": (lambda e: e.edit(IMAGES, {"block": np.inf}), ["block: found strength inf, expected"]),
    "strength -inf": (lambda e: e.edit(IMAGES, {"block": -np.inf}), ["block: found strength -inf, expected"]),
    "strength True": (lambda e: e.edit(IMAGES, {"block": True}), ["block: found strength True, expected"]),
    "strength as text": (lambda e: e.edit(IMAGES, {"block": "1"}), ["block: found strength '1', expected"]),
    "strength None": (lambda e: e.edit(IMAGES, {"block": None}), ["block: found strength None, expected"]),
    "strength beyond floats": (lambda e: e.edit(IMAGES, {"block": 10**400}), ["block: found strength 1", "expected"]),
    "strength beyond float32": (lambda e: e.edit(IMAGES, {"block": 1e300}), ["block: found strength 1e+300"]),
    "branches that do not mix": (
        lambda e: e.edit(IMAGES, {"block": 1, "haas": 1}),
        ["edits: asymmetric and symmetric attributes do not mix"],
    ),
    "too few edits": (lambda e: e.edit(IMAGES, [{"block": 1}]), ["edits: found 1 mappings", "each of 2 images"]),
    "too many edits": (lambda e: e.edit(IMAGES, [{}] * 3), ["edits: found 3 mappings", "each of 2 images"]),
    "edits as text": (lambda e: e.edit(IMAGES, "block"), ["edits: found str, expected a mapping"]),
    "edits of names": (lambda e: e.edit(IMAGES, ["block", "table"]), ["edits: found str, expected a mapping"]),
    "edits as a number": (lambda e: e.edit(IMAGES, 1.0), ["edits: found float"]),
    "steps 0": (lambda e: e.edit(IMAGES, {}, steps=0), ["steps: found 0, expected a whole number from 1 to 1000"]),
    "steps -1": (lambda e: e.encode(IMAGES, steps=-1), ["steps: found -1, expected a whole number from 1 to 1000"]),
    "steps 1001": (lambda e: e.edit(IMAGES, {}, steps=1001), ["steps: found 1001, expected a whole number from 1 to"]),
    "steps 2.0": (lambda e: e.edit(IMAGES, {}, steps=2.0), ["steps: found 2.0, expected a whole number"]),
    "steps 2.5": (lambda e: e.encode(IMAGES, steps=2.5), ["steps: found 2.5, expected a whole number"]),
    "steps True": (lambda e: e.encode(IMAGES, steps=True), ["steps: found True, expected a whole number"]),
    "steps as text": (lambda e: e.encode(IMAGES, steps="5"), ["steps: found '5', expected a whole number"]),
    "steps of the decode": (lambda e: e.edit(IMAGES, {}, steps=(5, 0)), ["steps: found 0, expected a whole"]),
    "steps, one of two": (lambda e: e.edit(IMAGES, {}, steps=(5,)), ["steps: found"]),
    "steps, three": (lambda e: e.edit(IMAGES, {}, steps=(5, 5, 5)), ["steps: found"]),
    "preset": (lambda e: e.edit(IMAGES, {}, preset="fast"), ["preset: found 'fast', expected one of official"]),
    "preset of another case": (lambda e: e.encode(IMAGES, preset="Official"), ["preset: found 'Official'"]),
    "sampler": (lambda e: e.edit(IMAGES, {}, sampler="euler"), ["sampler: found 'euler', expected one of ddim, ddpm"]),
    "output": (lambda e: e.edit(IMAGES, {}, output="png"), ["output: found 'png', expected 'uint8' or 'float32'"]),
    "t_edit -1": (lambda e: e.edit(IMAGES, {}, t_edit=-1), ["t_edit: found -1, expected a timestep"]),
    "t_edit 1.5": (lambda e: e.edit(IMAGES, {}, t_edit=1.5), ["t_edit: found 1.5, expected a timestep"]),
    "t_boost True": (lambda e: e.edit(IMAGES, {}, t_boost=True), ["t_boost: found True, expected a timestep"]),
    "seed -1": (lambda e: e.edit(IMAGES, {}, seed=-1), ["seed: found -1, expected a whole number from 0 to 2^64 - 1"]),
    "seed 2^64": (lambda e: e.edit(IMAGES, {}, seed=2**64), ["seed: found 18446744073709551616, expected a whole"]),
    "seed 1.0": (lambda e: e.edit(IMAGES, {}, seed=1.0), ["seed: found 1.0, expected a whole number"]),
    "seed True": (lambda e: e.edit(IMAGES, {}, seed=True), ["seed: found True, expected a whole number"]),
    "seed None": (lambda e: e.edit(IMAGES, {}, seed=None), ["seed: found None, expected a whole number"]),
    "noise where none is drawn": (
        lambda e: e.edit(IMAGES, {}, noise=np.zeros((1, 2, 3, 8, 8), "f4")),
        ["noise: found float32 [1, 2, 3, 8, 8], expected float32 [0, 2, 3, 8, 8]"],
    ),
    "noise of another shape": (
        lambda e: e.edit(IMAGES, {}, steps=5, sampler="ddpm", noise=np.zeros((5, 1, 3, 8, 8), "f4")),
        ["noise: found float32 [5, 1, 3, 8, 8], expected float32 [5, 2, 3, 8, 8]"],
    ),
    "noise of another dtype": (
        lambda e: e.edit(IMAGES, {}, steps=5, sampler="ddpm", noise=np.zeros((5, 2, 3, 8, 8))),
        ["noise: found float64 [5, 2, 3, 8, 8], expected float32"],
    ),
    "noise as a list": (lambda e: e.edit(IMAGES, {}, sampler="ddpm", noise=[0.0]), ["noise: found list, expected"]),
    "noise NaN": (
        lambda e: e.edit(IMAGES, {}, steps=5, sampler="ddpm", noise=np.full((5, 2, 3, 8, 8), NAN, "f4")),
        ["noise: "],
    ),
    "kind of program": (lambda e: e.program("vary"), ["program: found 'vary', expected encode, decode, edit or lat"]),
}


@pytest.mark.parametrize("name", BOTH)
def test_both_families(name: str, idle: Editor) -> None:
    call, fragments = BOTH[name]
    with refused(ArgumentError, *fragments):
        call(idle)


# --- of one family ------------------------------------------------------------------------------------

DIFFAE: dict[str, tuple[Call, type[hspace.HspaceError], list[str]]] = {
    "steps that no stride gives": (
        lambda e: e.encode(IMAGES, steps=600),
        ArgumentError,
        ["steps: 600 timesteps cannot be had", "the nearest that can are 500 and 1000"],
    ),
    "steps that no stride gives, decode": (
        lambda e: e.edit(IMAGES, {}, steps=(10, 37)),
        ArgumentError,
        ["steps: 37 timesteps cannot be had", "the nearest that can are 36 and 38"],
    ),
    "decode: unknown attribute": (
        lambda e: e.decode(latent(), {"smiel": 1}),
        ArgumentError,
        ["no attribute 'smiel'; did you mean smile?"],
    ),
    "decode: output": (lambda e: e.decode(latent(), output="PIL"), ArgumentError, ["output: found 'PIL'"]),
    "decode: seed": (lambda e: e.decode(latent(), seed=-1), ArgumentError, ["seed: found -1"]),
    "decode: edits": (lambda e: e.decode(latent(2), [{}]), ArgumentError, ["edits: found 1 mappings"]),
    "decode: no latent": (lambda e: e.decode(IMAGES), ArgumentError, ["latent: found ndarray, expected a hspace.Lat"]),
    "decode: None": (lambda e: e.decode(None), ArgumentError, ["latent: found NoneType, expected a hspace.Latent"]),
    "decode: another model": (
        lambda e: e.decode(latent(checkpoint="1" * 64, bundle="faces")),
        LatentError,
        ["latent: made by the model 'faces' (checkpoint 111111111111…), expected 'null' (000000000000…)"],
    ),
    "decode: another image size": (
        lambda e: e.decode(latent(size=16)),
        LatentError,
        ["latent: found x_T (3, 16, 16) and z_sem 6, expected (3, 8, 8) and 6"],
    ),
    "decode: another z_sem": (
        lambda e: e.decode(latent(d=7)),
        LatentError,
        ["latent: found x_T (3, 8, 8) and z_sem 7, expected (3, 8, 8) and 6"],
    ),
    "decode: no z_sem": (lambda e: e.decode(latent(d=None)), LatentError, ["and z_sem None, expected (3, 8, 8) and 6"]),
    "interpolate: from two images": (
        lambda e: e.interpolate(latent(2), latent()),
        ArgumentError,
        ["interpolate: found latents of 2 and 1 images, expected 1 and 1"],
    ),
    "interpolate: to two images": (
        lambda e: e.interpolate(latent(), latent(2)),
        ArgumentError,
        ["interpolate: found latents of 1 and 2 images, expected 1 and 1"],
    ),
    "interpolate: another model": (
        lambda e: e.interpolate(latent(), latent(checkpoint="1" * 64)),
        LatentError,
        ["latent: made by the model '?'"],
    ),
    "interpolate: another size": (
        lambda e: e.interpolate(latent(), latent(size=16)),
        LatentError,
        ["latent: found x_T (3, 16, 16)"],
    ),
    "interpolate: no latents": (lambda e: e.interpolate(None, None), ArgumentError, ["found NoneType, expected"]),
    "interpolate: one frame": (
        lambda e: e.interpolate(latent(), latent(), 1),
        ArgumentError,
        ["frames: found 1, expected a whole number from 2 to"],
    ),
    "interpolate: frames 2.0": (lambda e: e.interpolate(latent(), latent(), 2.0), ArgumentError, ["frames: found 2.0"]),
    "interpolate: an edit per frame": (
        lambda e: e.interpolate(latent(), latent(), 3, edits=[{}, {}]),
        ArgumentError,
        ["edits: found 2 mappings"],
    ),
    "sample: none": (lambda e: e.sample(0), ArgumentError, ["count: found 0, expected a whole number from 1 to"]),
    "sample: True": (lambda e: e.sample(True), ArgumentError, ["count: found True, expected a whole number"]),
    "sample: seed": (lambda e: e.sample(1, seed=2**64), ArgumentError, ["seed: found 18446744073709551616"]),
    "sample: latent_steps 0": (lambda e: e.sample(1, latent_steps=0), ArgumentError, ["steps: found 0"]),
    "sample: latent_steps 1001": (lambda e: e.sample(1, latent_steps=1001), ArgumentError, ["steps: found 1001"]),
    "sample: output": (lambda e: e.sample(1, output="jpg"), ArgumentError, ["output: found 'jpg'"]),
    "sample: x_T of another shape": (
        lambda e: e.sample(2, x_T=np.zeros((1, 3, 8, 8), "f4")),
        ArgumentError,
        ["x_T: found float32 [1, 3, 8, 8], expected float32 [2, 3, 8, 8]"],
    ),
    "sample: x_T as a list": (lambda e: e.sample(1, x_T=[[0.0]]), ArgumentError, ["x_T: found list, expected float32"]),
    "sample: x_T NaN": (
        lambda e: e.sample(1, x_T=np.full((1, 3, 8, 8), NAN, "f4")),
        ArgumentError,
        ["x_T: "],
    ),
    "sample: z_noise of another shape": (
        lambda e: e.sample(1, z_noise=np.zeros((1, 7), "f4")),
        ArgumentError,
        ["z_noise: found float32 [1, 7], expected float32 [1, 6]"],
    ),
    "sample: z_noise NaN": (
        lambda e: e.sample(1, z_noise=np.full((1, 6), NAN, "f4")),
        ArgumentError,
        ["z_noise: "],
    ),
    "vary: none": (lambda e: e.vary(latent(), 0), ArgumentError, ["count: found 0, expected a whole number from 1 to"]),
    "vary: seed": (lambda e: e.vary(latent(), 1, seed=-1), ArgumentError, ["seed: found -1"]),
    "vary: no latent": (lambda e: e.vary(IMAGES, 1), ArgumentError, ["latent: found ndarray"]),
}
ASYRP: dict[str, tuple[Call, type[hspace.HspaceError], list[str]]] = {
    "one step of inversion": (
        lambda e: e.encode(IMAGES, steps=1),
        ArgumentError,
        ["steps: found 1, expected at least"],
    ),
    "attribute of z_sem": (lambda e: e.edit(IMAGES, {"smile": 1}), ArgumentError, ["no attribute 'smile'"]),
    "vary": (lambda e: e.vary(latent(d=None), 2), ArgumentError, ["vary: the model has no z_sem"]),
    "classify": (lambda e: e.classify(IMAGES), ArgumentError, ["classify: the bundle has no z_direction attributes"]),
    "latent with z_sem": (lambda e: e.decode(latent()), LatentError, ["z_sem 6, expected (3, 8, 8) and None"]),
    "program of a latent DDIM": (lambda e: e.program("latent"), ArgumentError, ["the bundle has no latent DDIM"]),
    "latent_steps": (lambda e: e.sample(1, latent_steps=5), ArgumentError, ["latent_steps"]),
    "z_noise": (lambda e: e.sample(1, z_noise=np.zeros((1, 6), "f4")), ArgumentError, ["z_noise"]),
}


@pytest.mark.parametrize("name", DIFFAE)
def test_diffae(name: str, idle_diffae: Editor) -> None:
    call, error, fragments = DIFFAE[name]
    with refused(error, *fragments):
        call(idle_diffae)


@pytest.mark.parametrize("name", ASYRP)
def test_asyrp(name: str, idle_asyrp: Editor) -> None:
    call, error, fragments = ASYRP[name]
    with refused(error, *fragments):
        call(idle_asyrp)


@pytest.mark.parametrize("steps", [37, 400, 600, 999])
def test_nearest_steps_can_be_had(steps: int, null_diffae: Editor, idle_diffae: Editor) -> None:
    """The two that the message names are on either side, and are not refused in turn."""
    with pytest.raises(ArgumentError, match="the nearest that can are") as caught:
        idle_diffae.program("encode", steps=steps)
    fewer, more = (int(n) for n in str(caught.value).rsplit(" are ", 1)[1].split(" and "))
    assert fewer < steps < more
    assert [len(null_diffae.program("encode", steps=n)) for n in (fewer, more)] == [fewer, more]
    for between in range(fewer + 1, more):
        with pytest.raises(ArgumentError):
            idle_diffae.program("encode", steps=between)


def test_sample_without_a_latent_network(null_folder: Path) -> None:
    def change(m: dict[str, Any]) -> None:
        del m["components"]["latent"], m["schedules"]["latent"]

    alter(null_folder, change)
    (null_folder / "latent.onnx").unlink()
    editor = hspace.open(null_folder, engine="null")
    with refused(ArgumentError, "sample: the bundle has no latent DDIM"):
        editor.sample(1)


# --- open ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "fragment"),
    [
        ({"engine": "cuda"}, EngineError, "engine: found 'cuda', expected auto, openvino, onnx, null"),
        ({"engine": ""}, EngineError, "engine: found ''"),
        ({"precision": "half"}, EngineError, "precision: found 'half', expected auto, fp32, bf16, fp16"),
        ({"engine": "../null"}, EngineError, "engine: found '../null'"),
        ({"threads": 0}, ArgumentError, "threads: found 0, expected a whole number from 1 to"),
        ({"threads": True}, ArgumentError, "threads: found True, expected a whole number"),
        ({"threads": 1.0}, ArgumentError, "threads: found 1.0, expected a whole number"),
        ({"batch_size": 0}, ArgumentError, "batch_size: found 0, expected a whole number from 1 to"),
        ({"batch_size": -2}, ArgumentError, "batch_size: found -2, expected a whole number"),
    ],
    ids=str,
)
def test_open(options: dict[str, Any], error: type[hspace.HspaceError], fragment: str, null_folder: Path) -> None:
    with refused(error, fragment, unchanged=null_folder):
        hspace.open(null_folder, **{"engine": "null", **options})


def test_an_engine_that_was_asked_for_is_not_replaced(null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hspace.engines.onnx.unavailable", lambda: "no such processor")
    with refused(EngineError, "engine onnx: cannot run here: no such processor"):
        hspace.open(null_folder, engine="onnx")
    monkeypatch.setattr("hspace.engines.openvino.unavailable", lambda: "none either")
    with refused(EngineError, "engine openvino: cannot run here: none either; engine onnx: cannot run here: no such"):
        hspace.open(null_folder)


def test_open_nothing(tmp_path: Path) -> None:
    with refused(BundleError, f"{tmp_path / 'nowhere'}: expected a bundle: a folder with a bundle.json"):
        hspace.open(tmp_path / "nowhere", engine="null")
