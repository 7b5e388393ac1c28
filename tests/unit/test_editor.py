"""The editor on the null engine: what calls return, what they depend on, and what they refuse before any work."""

from __future__ import annotations

import secrets
import shutil
import threading
from pathlib import Path

import hspace
import msgspec
import numpy as np
import pytest
from hspace import Cancelled, Latent
from hspace.amend import set_preset
from hspace.bundle import Bundle
from hspace.deltas import slerp
from hspace.errors import ArgumentError, EngineError, LatentError

from ..conftest import relative_error

H_EDITS = [{}, {"block": 0.5}, {"table": -1.0, "block": 0.2}, {"haas": 0.7}, {"block": 1.0}]


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, 8, 8)).astype(np.float32)


def test_shapes_and_types(null_editor: hspace.Editor) -> None:
    latent = null_editor.encode(images(3))
    assert latent.x_T.shape == (3, 3, 8, 8) and latent.x_T.dtype == np.float32
    assert (latent.z_sem is None) == (null_editor.bundle.manifest.family == "asyrp")
    out = null_editor.decode(latent)
    assert out.shape == (3, 8, 8, 3) and out.dtype == np.uint8
    raw = null_editor.decode(latent, output="float32")
    assert raw.shape == (3, 3, 8, 8) and raw.dtype == np.float32
    assert np.array_equal(null_editor.reconstruct(images(3)), out)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 64])
def test_results_do_not_depend_on_the_batch(null_editor: hspace.Editor, batch_size: int) -> None:
    """Edits, branches, noise and all: each image as if alone, with its own number for the noise."""
    x, options = images(5), {"t_boost": 700, "seed": 3, "output": "float32"}
    alone = [null_editor.edit(x[i : i + 1], H_EDITS[i], image_numbers=[i], **options)[0] for i in range(5)]
    other = hspace.Editor(null_editor.bundle, null_editor.engine, batch_size=batch_size)
    together = other.edit(x, H_EDITS, **options)
    for i in range(5):
        assert np.array_equal(together[i], alone[i]), i


def test_seeds(null_editor: hspace.Editor) -> None:
    latent = null_editor.encode(images(2))
    runs = [null_editor.decode(latent, sampler="ddpm", seed=s, output="float32") for s in (1, 1, 2)]
    assert np.array_equal(runs[0], runs[1]) and not np.array_equal(runs[0], runs[2])
    assert np.array_equal(null_editor.decode(latent, seed=1), null_editor.decode(latent, seed=2))  # ddim draws nothing
    samples = [null_editor.sample(2, seed=s, output="float32") for s in (1, 1, 2)]
    assert np.array_equal(samples[0], samples[1]) and not np.array_equal(samples[0], samples[2])
    assert np.array_equal(null_editor.sample(1, seed=1, output="float32")[0], samples[0][0])


def test_given_noise_replaces_the_seed(null_asyrp: hspace.Editor) -> None:
    latent = null_asyrp.encode(images(2))
    program = null_asyrp.program("decode", sampler="ddpm")
    noise = np.random.default_rng(0).standard_normal((int(program.rows["draws"].sum()), 2, 3, 8, 8), dtype=np.float32)
    a = null_asyrp.decode(latent, sampler="ddpm", noise=noise, seed=1, output="float32")
    b = null_asyrp.decode(latent, sampler="ddpm", noise=noise, seed=2, output="float32")
    assert np.array_equal(a, b)
    one = null_asyrp.decode(latent[1], sampler="ddpm", noise=noise[:, 1:], output="float32")
    assert np.array_equal(one[0], a[1])


def test_strength_zero_is_no_edit_and_phases_count_only_in_edits(null_editor: hspace.Editor) -> None:
    latent = null_editor.encode(images(1))
    plain = null_editor.decode(latent, output="float32")
    for edits in ({"block": 0.0}, {"haas": 0}, None, [{}]):
        assert np.array_equal(null_editor.decode(latent, edits, t_edit=0, t_boost=900, output="float32"), plain)
    assert not np.array_equal(null_editor.decode(latent, {"block": 1.0}, output="float32"), plain)


def test_z_directions_move_z_sem(null_diffae: hspace.Editor) -> None:
    latent = null_diffae.encode(images(1))
    smile = null_diffae.attributes["smile"]
    moved = Latent(latent.x_T, smile.move(latent.z_sem[0], 0.7)[None])
    assert np.array_equal(
        null_diffae.decode(latent, {"smile": 0.7}, output="float32"), null_diffae.decode(moved, output="float32")
    )


def test_edit_scale_makes_strengths_comparable(null_editor: hspace.Editor) -> None:
    """n_train/n_run from the attribute's file, on asymmetric rows only."""
    scales = {n: null_editor.program("edit", edits={n: 1.0}, steps=2).rows["edit_scale"] for n in ("block", "haas")}
    assert scales["block"].max() == 2.0  # trained at 4
    assert scales["haas"].max() == 1.0
    assert null_editor.program("edit", edits={"table": 1.0}, steps=2).rows["edit_scale"].max() == 1.0


def test_the_program_of_an_edit(null_diffae: hspace.Editor) -> None:
    """What an edit runs: a moved z_sem is decoded as any other; a bundle with deltas shows an asymmetric table."""
    decode = null_diffae.program("decode")
    assert np.array_equal(null_diffae.program("edit", edits={"smile": 1.0}).rows, decode.rows)
    assert null_diffae.program("edit").rows["branch"].any() and not decode.rows["branch"].any()


def test_attributes_combine_by_plain_addition(null_asyrp: hspace.Editor) -> None:
    """Whatever their n_train: a table without one counts the same beside a block as alone."""
    from hspace.edits import compile_edit

    attributes = null_asyrp.attributes
    edit = compile_edit({"block": 1.0, "table": 1.0}, attributes, 2)
    scale = null_asyrp.program("edit", edits={"block": 1.0, "table": 1.0}, steps=2).rows["edit_scale"].max()
    assert [s * scale for _, s in edit.deltas] == [2.0, 1.0]


def test_interpolation_ends_at_its_latents(null_editor: hspace.Editor) -> None:
    latent = null_editor.encode(images(2))
    frames = null_editor.interpolate(latent[0], latent[1], 5, output="float32")
    ends = null_editor.decode(latent, output="float32")
    assert np.allclose(frames[[0, -1]], ends, atol=1e-5)


def test_slerp() -> None:
    a, b = np.array([1, 0], np.float32), np.array([0, 2], np.float32)
    assert np.allclose(slerp(a, b, np.array([0, 0.5, 1])), [[1, 0], [2**-0.5, 2 * 2**-0.5], [0, 2]], atol=1e-6)
    assert np.allclose(slerp(a, 3 * a, np.array([0.5])), [[2, 0]])


def test_vary_keeps_z_sem(null_diffae: hspace.Editor) -> None:
    latent = null_diffae.encode(images(2))
    out = null_diffae.vary(latent, 3, seed=5, output="float32")
    assert out.shape == (6, 3, 8, 8)
    assert len({o.tobytes() for o in out}) == 6
    assert np.array_equal(out, null_diffae.vary(latent, 3, seed=5, output="float32"))


def test_classify(null_diffae: hspace.Editor) -> None:
    scores = null_diffae.classify(images(3))
    latent = null_diffae.encode(images(3))
    assert null_diffae.classes == ["smile", "beard"] and scores.shape == (3, 2)
    assert np.allclose(scores[:, 0], null_diffae.attributes["smile"].logit(latent.z_sem))


def test_on_step_sees_every_evaluation(null_editor: hspace.Editor) -> None:
    steps = []
    editor = hspace.Editor(null_editor.bundle, null_editor.engine, batch_size=2)
    editor.edit(images(3), {"block": 1.0}, on_step=steps.append)
    encode, decode = len(editor.program("encode")), len(editor.program("decode"))
    assert [s.index for s in steps] == list(range(1, 2 * (encode + decode) + 1))
    assert {s.total for s in steps} == {2 * (encode + decode)}
    assert [s.phase for s in steps] == ["encode"] * 2 * encode + ["decode"] * 2 * decode
    assert steps[0].x_0.shape == (2, 3, 8, 8) and steps[-1].x_0.shape == (1, 3, 8, 8)


def test_cancelling(null_editor: hspace.Editor) -> None:
    seen = []

    def on_step(step: hspace.Step) -> bool:
        seen.append(step.index)
        return len(seen) < 3

    with pytest.raises(Cancelled, match="step 3 of"):
        null_editor.edit(images(2), {"block": 1.0}, on_step=on_step)
    assert seen == [1, 2, 3]
    assert null_editor.decode(null_editor.encode(images(1))).shape == (1, 8, 8, 3)  # the editor still works


def test_several_threads(null_editor: hspace.Editor) -> None:
    x = images(8)
    expected = [null_editor.edit(x[i : i + 1], {"block": 0.1 * i}, output="float32") for i in range(8)]
    got: list[np.ndarray | None] = [None] * 8

    def work(i: int) -> None:
        got[i] = null_editor.edit(x[i : i + 1], {"block": 0.1 * i}, output="float32")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(np.array_equal(g, e) for g, e in zip(got, expected, strict=True))


def test_latents_keep_to_their_file(null_editor: hspace.Editor, tmp_path: Path) -> None:
    latent = null_editor.encode(images(2))
    latent.save(tmp_path / "l.safetensors")
    loaded = Latent.load(tmp_path / "l.safetensors")
    assert np.array_equal(loaded.x_T, latent.x_T) and loaded.provenance == latent.provenance
    assert loaded.provenance["encode_steps"] == "5" and loaded.provenance["preset"] == "official"
    assert np.array_equal(null_editor.decode(loaded), null_editor.decode(latent))
    assert np.array_equal(Latent.stack(list(loaded)).x_T, latent.x_T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, x: e.edit(x, {"block": 1.0, "haas": 1.0}), "do not mix"),
        (lambda e, x: e.edit(x, {"blok": 1.0}), "did you mean block"),
        (lambda e, x: e.edit(x, {"block": 1.0}, seed=-1), "seed: found -1"),
        (lambda e, x: e.edit(x, {}, steps=(2, 2, 2)), "expected a whole number, or"),
        (lambda e, x: e.edit(x, [{}, {}]), "found 2 mappings"),
        (lambda e, x: e.edit(x, {"block": 1e39}), "float32 can hold"),
        (lambda e, x: e.edit(x, {"block": 10**400}), "float32 can hold"),
        (lambda e, x: e.edit(x, "block"), "found str"),
        (lambda e, x: e.edit(x, {}, output="png"), "output: found 'png'"),
        (lambda e, x: e.edit(x, {}, t_edit=-1), "t_edit: found -1"),
        (lambda e, x: e.sample(0), "count: found 0"),
        (lambda e, x: e.sample(2, x_T=[1]), "x_T: found list"),
        (lambda e, x: e.sample(10**13), "count: found 10000000000000"),
        (lambda e, x: e.sample(1, steps=(2, 3)), "steps: found"),
        (lambda e, x: e.edit(x, {}, image_numbers=["a"]), "image_numbers: expected 1 whole number"),
        (lambda e, x: e.edit(x, {}, image_numbers=[2**40]), "image_numbers: expected 1 whole number"),
        (lambda e, x: e.edit(x, {}, image_numbers=[1.5]), "image_numbers: expected 1 whole number"),
    ],
)
def test_refused_before_any_work(null_asyrp: hspace.Editor, monkeypatch, call, message: str) -> None:
    monkeypatch.setattr(null_asyrp.engine, "run", lambda *_: pytest.fail("the engine ran"))
    with pytest.raises(ArgumentError, match=message):
        call(null_asyrp, images(1))


def test_latents_of_another_model(null_asyrp: hspace.Editor, null_diffae: hspace.Editor) -> None:
    latent = null_asyrp.encode(images(1))
    with pytest.raises(LatentError, match="z_sem None"):
        null_diffae.decode(latent)
    stranger = Latent(latent.x_T, provenance={"checkpoint": "f" * 64, "bundle": "other"})
    with pytest.raises(LatentError, match="made by the model 'other'"):
        null_asyrp.decode(stranger)


def test_a_result_that_overflows_is_an_error(null_asyrp: hspace.Editor) -> None:
    """Never a black picture."""
    with pytest.raises(EngineError, match="not finite"), np.errstate(all="ignore"):
        null_asyrp.decode(null_asyrp.encode(images(1)), {"table": 3e38})


def test_unknown_engines_and_presets(null_asyrp: hspace.Editor) -> None:
    with pytest.raises(EngineError, match="found 'cuda', expected auto, openvino, onnx, null"):
        hspace.open(null_asyrp.bundle.folder, engine="cuda")
    with pytest.raises(ArgumentError, match="preset: found 'fast', expected one of official"):
        null_asyrp.encode(images(1), preset="fast")


# --- exact samplers -----------------------------------------------------------------------------------------


def with_preset(editor: hspace.Editor, folder: Path, **changes: object) -> hspace.Editor:
    """A copy of the editor's bundle, its default preset changed."""
    bundle = Bundle(shutil.copytree(editor.bundle.folder, folder))
    name, preset = bundle.preset()
    set_preset(bundle, name, msgspec.structs.replace(preset, **changes), replace=True)
    return hspace.open(folder, engine="null")


EVERY = ["asyrp", "diffae", "trailing", "logsnr", "karras", "quadratic"]


@pytest.mark.parametrize("spacing", EVERY)
@pytest.mark.parametrize("sampler", ["bdia", "obelm"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("inputs", ["fixed", "fresh"])
def test_exact_samplers_undo_their_encode(
    null_editor: hspace.Editor, tmp_path: Path, inputs: str, sampler: str, spacing: str, clip: bool, steps: int
) -> None:
    """By way of a file, in float32, and in one call; without the state before x_T the image does not come back."""
    seed = 0 if inputs == "fixed" else secrets.randbelow(2**31)
    x, changes = images(3, seed), {"sampler": sampler, "spacing": spacing, "clip": clip}
    editor = with_preset(null_editor, tmp_path / "b", encode_steps=steps, decode_steps=steps, **changes)
    latent = editor.encode(x)
    assert latent.x_prev is not None and not np.array_equal(latent.x_prev, latent.x_T)
    latent.save(tmp_path / "l.safetensors")
    back = editor.decode(Latent.load(tmp_path / "l.safetensors"), output="float32")
    error = relative_error(back, x)
    # x_T is rounded to float32, and x/α is 157·x_T; the null engine's ε is no score, so unclamped x_T may grow large
    size = float(np.sqrt(np.mean(np.square(latent.x_T, dtype=np.float64))))
    print(f"{sampler} {spacing} {clip} {steps}: {error:.1e}, x_T {size:.1f}")
    assert error <= (1e-5 if clip else 5e-5 * max(size, 2)), f"seed {seed}: {error:.1e}, x_T {size:.1f}"
    assert np.array_equal(editor.reconstruct(x, output="float32"), back)
    alone = Latent(latent.x_T, latent.z_sem, None, latent.provenance)
    assert relative_error(editor.decode(alone, output="float32"), x) > 1e-3 + error


def test_a_decode_that_cannot_go_on_starts_from_x_T(null_editor: hspace.Editor, tmp_path: Path) -> None:
    """With other steps, another sampler, another spacing, or no state before x_T: as if there were none, to the bit."""
    base = {"sampler": "obelm", "spacing": "logsnr", "encode_steps": 8, "decode_steps": 8}
    editor = with_preset(null_editor, tmp_path / "b", **base)
    latent = editor.encode(images(2))
    alone = Latent(latent.x_T, latent.z_sem, None, latent.provenance)
    told = {"sampler": "obelm", "spacing": "logsnr", "encode_steps": "8"}
    assert told.items() <= latent.provenance.items()
    others = [(editor, o) for o in ({"steps": 6}, {"sampler": "ddim"}, {"sampler": "bdia"}, {"sampler": "ddpm"})]
    for name, changes in (("s", {"spacing": "karras"}), ("n", {"decode_steps": 9}), ("m", {"sampler": "bdia"})):
        others.append((with_preset(null_editor, tmp_path / name, **{**base, **changes}), {}))
    for other, options in others:
        expected = other.decode(alone, output="float32", **options)
        assert np.array_equal(other.decode(latent, output="float32", **options), expected), options
    for lost in told:  # a latent of which it is not known how it was made
        some = {k: v for k, v in latent.provenance.items() if k != lost}
        found = editor.decode(Latent(latent.x_T, latent.z_sem, latent.x_prev, some), output="float32")
        assert np.array_equal(found, editor.decode(alone, output="float32")), lost
    assert not np.array_equal(editor.decode(latent), editor.decode(alone))
    split = editor.edit(images(2), None, steps=(8, 6), output="float32")
    assert np.array_equal(split, editor.decode(alone, steps=6, output="float32"))


def test_only_exact_samplers_keep_the_state_before(null_editor: hspace.Editor, tmp_path: Path) -> None:
    """And only over at least 3 steps, since the first row has no state before it; fewer decode from x_T."""
    for sampler in ("ddim", "ddpm", "dpmpp_2m"):
        editor = with_preset(null_editor, tmp_path / sampler, sampler=sampler, encode_steps=8, spacing="logsnr")
        assert editor.encode(images(1)).x_prev is None
    editor = with_preset(null_editor, tmp_path / "b", sampler="bdia", spacing="logsnr")
    assert editor.encode(images(1), steps=2).x_prev is None
    assert editor.encode(images(1), steps=3).x_prev is not None
    assert editor.edit(images(1), None, steps=2).shape == (1, 8, 8, 3)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "bdia", "obelm"])
def test_second_order_decodes_do_not_depend_on_the_batch(
    null_editor: hspace.Editor, tmp_path: Path, sampler: str
) -> None:
    """Each image has its own state before and P before; those that go on from an encode as well."""
    changes = {"sampler": sampler, "spacing": "logsnr", "encode_steps": 6, "decode_steps": 6}
    editor = with_preset(null_editor, tmp_path / "b", **changes)
    x, options = images(5), {"t_boost": 100, "seed": 3, "output": "float32"}
    alone = [editor.edit(x[i : i + 1], H_EDITS[i], image_numbers=[i], **options)[0] for i in range(5)]
    together = hspace.Editor(editor.bundle, editor.engine, batch_size=2).edit(x, H_EDITS, **options)
    for i in range(5):
        assert np.array_equal(together[i], alone[i]), i
    assert len({a.tobytes() for a in alone}) == 5
    stacked = Latent.stack([editor.encode(x[i : i + 1]) for i in range(5)])
    assert np.array_equal(editor.decode(stacked, H_EDITS, **options), together)


def test_timelines_of_decodes_that_go_on(null_editor: hspace.Editor, tmp_path: Path) -> None:
    """Their rows are fewer, and the frames are of those that ran."""
    changes = {"sampler": "bdia", "spacing": "quadratic", "encode_steps": 9, "decode_steps": 9}
    editor, seen = with_preset(null_editor, tmp_path / "b", **changes), []
    latent = editor.encode(images(2))
    timesteps, frames = editor.timeline(latent, 3, output="float32")
    editor.decode(latent, on_step=lambda s: seen.append((int(s.t[0]), s.x_0.copy())))
    assert timesteps.tolist() == [seen[k][0] for k in (0, len(seen) // 2, -1)]
    assert np.array_equal(frames[-1], seen[-1][1]) and np.array_equal(frames[0], seen[0][1])


@pytest.mark.parametrize("spacing", ["asyrp", "leading", "trailing", "logsnr", "karras", "quadratic"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "bdia", "obelm"])
def test_edit_scale_over_every_spacing(null_asyrp: hspace.Editor, tmp_path: Path, spacing: str, sampler: str) -> None:
    """n_train/n_run, or where steps differ in length n_train/T for each of the timesteps that a row stands for."""
    editor = with_preset(null_asyrp, tmp_path / "b", spacing=spacing, sampler=sampler)
    for n in (1, 2, 7, 40, 1000):
        rows = editor.program("edit", edits={"block": 1.0}, steps=n, t_edit=0).rows
        assert len(rows) == n
        if spacing in ("asyrp", "leading", "trailing"):
            assert np.allclose(rows["edit_scale"], 4 / n, rtol=1e-6)  # trained at 4
            continue
        below = np.append(rows["t"][1:], -1)
        assert np.allclose(rows["edit_scale"], 4 / 1000 * (rows["t"] - below), rtol=1e-6)
        later = editor.program("edit", edits={"block": 1.0}, steps=n, t_edit=400).rows
        assert np.array_equal(later["edit_scale"], np.where(rows["t"] >= 400, rows["edit_scale"], 0))
