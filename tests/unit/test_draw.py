"""Draws, those that a classifier accepts, and calls that put several decodes together."""

from __future__ import annotations

import hspace
import numpy as np
import pytest
from hspace import Cancelled
from hspace.errors import ArgumentError, LatentError


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, 8, 8)).astype(np.float32)


def batched(editor: hspace.Editor, batch_size: int) -> hspace.Editor:
    return hspace.Editor(editor.bundle, editor.engine, batch_size=batch_size)


# --- draw and sample --------------------------------------------------------------------------------------


def test_a_sample_is_a_decoded_draw(null_editor: hspace.Editor) -> None:
    drawn = null_editor.draw(3, seed=7)
    options = {"sampler": "ddpm", "output": "float32", "seed": 7}  # whose rows draw as well
    assert np.array_equal(null_editor.sample(3, **options), null_editor.decode(drawn, **options))
    assert drawn.x_T.shape == (3, 3, 8, 8) and drawn.x_T.dtype == np.float32
    encoded = null_editor.encode(images(1)).provenance
    assert drawn.provenance == {k: v for k, v in encoded.items() if k != "encode_steps"}
    assert np.array_equal(null_editor.draw(2, seed=7).x_T, drawn.x_T[:2])
    assert not np.array_equal(null_editor.draw(3, seed=8).x_T, drawn.x_T)


def test_draws_have_a_z_sem_where_the_model_has(null_diffae: hspace.Editor, null_asyrp: hspace.Editor) -> None:
    assert null_asyrp.draw(1).z_sem is None
    z, steps = null_diffae.draw(3, seed=7).z_sem, []
    assert z.shape == (3, 6) and z.dtype == np.float32 and len({row.tobytes() for row in z}) == 3
    assert not np.array_equal(null_diffae.draw(3, seed=7, latent_steps=10, on_step=steps.append).z_sem, z)
    assert [(s.phase, s.index, s.total) for s in steps] == [("latent", i + 1, 10) for i in range(10)]
    with pytest.raises(Cancelled, match="step 2 of 4"):
        null_diffae.draw(3, on_step=lambda s: s.index < 2)
    with pytest.raises(ArgumentError, match="the model has no z_sem to draw"):
        null_asyrp.draw(1, latent_steps=2)


def logits(editor: hspace.Editor, name: str, z_sem: np.ndarray) -> np.ndarray:
    return editor.attributes[name].logit(z_sem)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_accepted_draws_are_the_first_that_pass(null_diffae: hspace.Editor, batch_size: int) -> None:
    """Candidates are numbered, so what is kept depends on the seed alone: not on the batch, nor on the count."""
    candidates = null_diffae.draw(200, seed=5).z_sem
    scores = {name: logits(null_diffae, name, candidates) for name in ("smile", "beard")}
    accept = {name: float(np.quantile(s, 0.6)) for name, s in scores.items()}
    passing = np.all([scores[n] >= least for n, least in accept.items()], axis=0)
    if passing.sum() < 4:  # the two exclude each other on the null network: one will do
        del accept["beard"]
        passing = scores["smile"] >= accept["smile"]
    expected = candidates[passing][:4]
    drawn = batched(null_diffae, batch_size).draw(4, accept=accept, seed=5)
    assert np.array_equal(drawn.z_sem, expected)
    assert np.array_equal(drawn.x_T, null_diffae.draw(4, seed=5).x_T)  # numbered by what is kept
    for name, least in accept.items():
        assert (logits(null_diffae, name, drawn.z_sem) >= least).all()
    fewer = batched(null_diffae, batch_size).draw(2, accept=accept, seed=5)
    assert np.array_equal(fewer.z_sem, expected[:2])


def test_samples_that_are_accepted(null_diffae: hspace.Editor) -> None:
    scores = logits(null_diffae, "smile", null_diffae.draw(50, seed=1).z_sem)
    accept, steps = {"smile": float(np.median(scores))}, []
    options = {"accept": accept, "seed": 1}
    found = null_diffae.sample(3, **options, edits={"beard": 0.5}, output="float32", on_step=steps.append)
    drawn = null_diffae.draw(3, **options)
    assert np.array_equal(found, null_diffae.decode(drawn, {"beard": 0.5}, output="float32"))
    assert np.array_equal(found, null_diffae.sample(3, **options, edits={"beard": 0.5}, output="float32"))
    assert not np.array_equal(drawn.z_sem, null_diffae.draw(3, seed=1).z_sem)
    assert [s.index for s in steps] == list(range(1, len(steps) + 1)) and steps[-1].total == len(steps)
    everything = null_diffae.draw(3, accept={"smile": -1e30}, seed=1)
    assert np.array_equal(everything.z_sem, null_diffae.draw(3, seed=1).z_sem)
    assert np.array_equal(null_diffae.draw(3, accept={}, seed=1).z_sem, null_diffae.draw(3, seed=1).z_sem)


@pytest.mark.parametrize("batch_size", [1, 100, 5000])
def test_what_no_draw_comes_near(batch_size: int, null_diffae: hspace.Editor) -> None:
    """The first 256 draws tell, whatever is wanted and whatever the batch; how often the network ran shows it."""
    editor, seen = batched(null_diffae, batch_size), []
    logits = null_diffae.attributes["smile"].logit(null_diffae.draw(256, latent_steps=1, seed=3).z_sem)
    message = f"accept: smile: 0 of 256 draws come near a logit of 1e+06: the largest is {logits.max():.3g}, "
    message += f"the mean {logits.mean():.3g} ± {logits.std():.3g}; lower logits accept more"
    with pytest.raises(ArgumentError) as found:
        run = {"latent_steps": 1, "seed": 3, "on_step": lambda step: seen.append(len(step.x))}
        editor.sample(10_000, accept={"beard": -1e6, "smile": 1e6}, **run)
    assert str(found.value) == message
    assert 256 <= sum(seen) <= 256 + max(256, batch_size)


@pytest.mark.parametrize("batch_size", [1, 300, 5000])
def test_what_is_rare_is_looked_for(batch_size: int, null_diffae: hspace.Editor) -> None:
    """To the end: 1000 draws for each that is wanted, the same ones whatever the batch."""
    logits = null_diffae.attributes["smile"].logit(null_diffae.draw(1000, latent_steps=1).z_sem)
    editor, best = batched(null_diffae, batch_size), float(logits.max())
    z_sem = editor.draw(1, accept={"smile": best - 1e-4}, latent_steps=1).z_sem
    np.testing.assert_allclose(null_diffae.attributes["smile"].logit(z_sem), best, atol=1e-4)
    with pytest.raises(ArgumentError) as found:
        editor.draw(1, accept={"smile": best + 0.01}, latent_steps=1)
    says = "accept: kept 0 of 1000 draws (0.00%), expected 1; the largest logits are: smile "
    assert str(found.value) == f"{says}{best:.3g}; lower logits accept more"


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ({"smiel": 0.0}, "accept: the bundle has no attribute 'smiel'; did you mean smile"),
        ({"block": 0.0}, "accept: block is no z_direction, expected one: smile, beard"),  # that could classify
        ({"smile": float("nan")}, "accept: smile: found logit nan"),
        ({"smile": float("inf")}, "accept: smile: found logit inf"),
        ({"smile": None}, "accept: smile: found logit None"),
        (["smile"], "accept: found list, expected a mapping"),
    ],
)
def test_what_cannot_be_accepted(null_diffae: hspace.Editor, monkeypatch, accept, message: str) -> None:
    monkeypatch.setattr(null_diffae.engine, "run", lambda *_: pytest.fail("the engine ran"))
    for call in (null_diffae.sample, null_diffae.draw):
        with pytest.raises(ArgumentError, match=message):
            call(1, accept=accept)
        for count in (0, 1.5, 10**9):
            with pytest.raises(ArgumentError, match="count: found"):
                call(count)
        with pytest.raises(ArgumentError, match="seed: found -1"):
            call(1, seed=-1)
    with pytest.raises(ArgumentError, match="accept: z_noise gives as many draws as there are images"):
        null_diffae.sample(1, accept={"smile": 0.0}, z_noise=np.zeros((1, 6), np.float32))


def test_a_model_without_z_sem_accepts_nothing(null_asyrp: hspace.Editor) -> None:
    for call in (null_asyrp.sample, null_asyrp.draw):
        with pytest.raises(ArgumentError, match="the model has no z_sem to draw"):
            call(1, accept={"smile": 0.0})
    with pytest.raises(ArgumentError, match="encode_z: the model has no z_sem"):
        null_asyrp.encode_z(images(1))


def test_encode_z(null_diffae: hspace.Editor) -> None:
    x = images(5)
    found = null_diffae.encode_z(x)
    assert found.dtype == np.float32 and np.array_equal(found, null_diffae.encode(x).z_sem)
    assert np.array_equal(batched(null_diffae, 2).encode_z(x), found)


# --- sweep ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_sweeps_are_single_decodes(null_editor: hspace.Editor, sampler: str) -> None:
    """Image by image and strength by strength; all variants of an image take its draws."""
    latent, run = null_editor.encode(images(2)), {"sampler": sampler, "seed": 3, "output": "float32"}
    a, b = [-1.0, 0.0, 2.0], [0.5, 1.0]
    one = batched(null_editor, 4).sweep(latent, {"block": a}, edits={"table": 0.3}, **run)
    two = null_editor.sweep(latent, {"block": a, "table": b}, **run)
    assert one.shape == (2, 3, 3, 8, 8) and two.shape == (2, 3, 2, 3, 8, 8)
    for n in range(2):
        for i, s in enumerate(a):
            for j, edits in enumerate([{"block": s, "table": 0.3}, *({"block": s, "table": r} for r in b)]):
                expected = null_editor.decode(latent[n], edits, image_numbers=[n], **run)[0]
                assert np.array_equal(one[n, i] if j == 0 else two[n, i, j - 1], expected)


def test_sweeps_of_pictures(null_diffae: hspace.Editor) -> None:
    latent = null_diffae.encode(images(2))
    found = null_diffae.sweep(latent, {"smile": (0, 1)})
    assert found.shape == (2, 2, 8, 8, 3) and found.dtype == np.uint8
    assert np.array_equal(found[:, 1], null_diffae.decode(latent, {"smile": 1.0}))


@pytest.mark.parametrize(
    ("strengths", "edits", "message"),
    [
        ({}, None, "expected a mapping from one or two attributes"),
        ({"block": []}, None, "at least one"),
        ({"block": [1.0], "table": [1.0], "smile": [1.0]}, None, "one or two attributes"),
        ([("block", [1.0])], None, "expected a mapping"),
        ({"blok": [1.0]}, None, "did you mean block"),
        ({"block": [1.0, float("nan")]}, None, "found strength nan"),
        ({"block": [1.0]}, {"block": 0.5}, "names an attribute that is swept"),
        ({"block": [1.0]}, {"haas": 0.5}, "do not mix"),
    ],
)
def test_sweeps_refused(null_editor: hspace.Editor, monkeypatch, strengths, edits, message: str) -> None:
    latent = null_editor.encode(images(1))
    monkeypatch.setattr(null_editor.engine, "run", lambda *_: pytest.fail("the engine ran"))
    with pytest.raises(ArgumentError, match=message):
        null_editor.sweep(latent, strengths, edits=edits)


# --- timeline ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("edits", [None, {"block": 1.0}, {"haas": 0.5}], ids=["plain", "asymmetric", "symmetric"])
def test_timelines_end_at_the_image(null_editor: hspace.Editor, edits) -> None:
    latent, steps = null_editor.encode(images(3)), []
    run = {"steps": 10, "sampler": "ddpm", "seed": 2}
    timesteps, frames = batched(null_editor, 2).timeline(latent, 4, edits=edits, output="float32", **run)
    null_editor.decode(latent, edits, on_step=lambda s: steps.append((int(s.t[0]), s.x_0.copy())), **run)
    assert frames.shape == (4, 3, 3, 8, 8) and timesteps.dtype == np.int64
    assert timesteps.tolist() == [steps[k][0] for k in (0, 3, 6, 9)]
    for frame, k in zip(frames, (0, 3, 6, 9), strict=True):
        assert np.array_equal(frame, steps[k][1])
    assert np.array_equal(frames[-1], null_editor.decode(latent, edits, output="float32", **run))
    pictures = null_editor.timeline(latent, 4, edits=edits, **run)[1]
    assert pictures.shape == (4, 3, 8, 8, 3) and pictures.dtype == np.uint8
    assert np.array_equal(pictures[-1], null_editor.decode(latent, edits, **run))


def test_timelines_pass_steps_on(null_editor: hspace.Editor) -> None:
    latent, steps = null_editor.encode(images(1)), []
    null_editor.timeline(latent, 2, on_step=steps.append)
    assert len(steps) == len(null_editor.program("decode"))
    with pytest.raises(Cancelled):
        null_editor.timeline(latent, 2, on_step=lambda s: False)
    for frames in (0, 5, 1.5):
        with pytest.raises(ArgumentError, match=f"frames: found {frames}, expected a whole number from 1 to 4"):
            null_editor.timeline(latent, frames)
    with pytest.raises((ArgumentError, LatentError)):
        null_editor.timeline(images(1), 2)
