"""Content injection: the formula in float64, and what `Editor.inject` makes of it."""

from __future__ import annotations

import hspace
import numpy as np
import pytest
from hspace import Cancelled
from hspace.bundle import h_shape
from hspace.deltas import Content, DeltaTable
from hspace.errors import ArgumentError, ImageError, LatentError
from hspace.program import Branch
from hspace.recorders import HRecorder


def images(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n, 3, 8, 8)).astype(np.float32)


def formula(h: np.ndarray, other: np.ndarray, strength: float, mask: np.ndarray | float = 1.0) -> np.ndarray:
    """slerp(m⊙h, ‖m⊙h‖·m⊙h'/‖m⊙h'‖; strength) − m⊙h in float64 (Jeong et al. 2024, section 3.1). [C, H, W]."""
    own, towards = h.astype(np.float64) * mask, other.astype(np.float64) * mask
    towards *= np.linalg.norm(own) / np.linalg.norm(towards)
    angle = np.arccos(np.sum(own * towards) / np.linalg.norm(own) / np.linalg.norm(towards))
    turned = np.sin((1 - strength) * angle) * own + np.sin(strength * angle) * towards
    return turned / np.sin(angle) - own


# --- the attribute ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("masked", [False, True], ids=["everywhere", "masked"])
@pytest.mark.parametrize("strength", [0.0, 0.2, 0.7, 1.0])
def test_the_formula(strength: float, masked: bool) -> None:
    rng = np.random.default_rng()  # fresh inputs every time
    h, table = (rng.standard_normal((n, 8, 4, 4), dtype=np.float32) * np.float32(3) for n in (5, 3))
    mask = rng.random((4, 4)).astype(np.float32) if masked else None
    content = Content(np.array([0, 300, 700]), table, strength, mask)
    found = content.delta_h(h, np.zeros((5, 1), np.float32), np.array([0, 150, 151, 501, 999], np.int32))
    assert found.dtype == np.float32
    for i, k in enumerate((0, 0, 1, 2, 2)):  # the nearest timestep, the lower of two equally near
        assert np.allclose(found[i], formula(h[i], table[k], strength, 1.0 if mask is None else mask), atol=1e-5)


def test_strength_one_is_the_contents_direction_at_hs_own_norm() -> None:
    h, other = np.random.default_rng(0).standard_normal((2, 1, 8, 4, 4), dtype=np.float32)
    moved = h + Content(np.array([0]), 10 * other, 1.0).delta_h(h, h, np.zeros(1, np.int32))
    assert np.isclose(np.linalg.norm(moved), np.linalg.norm(h), rtol=1e-6)
    assert np.allclose(moved / np.linalg.norm(moved), other / np.linalg.norm(other), atol=1e-6)


def test_masks() -> None:
    h, other = np.random.default_rng(0).standard_normal((2, 1, 8, 4, 4), dtype=np.float32)
    half = np.zeros((4, 4), np.float32)
    half[:2] = 1

    def delta(mask: np.ndarray | None, strength: float = 0.6) -> np.ndarray:
        return Content(np.array([0]), other, strength, mask).delta_h(h, h, np.zeros(1, np.int32))

    assert not delta(np.zeros_like(half)).any() and not delta(half, strength=0.0).any()
    assert np.array_equal(delta(np.ones_like(half)), delta(None))
    assert delta(half)[:, :, :2].all() and not delta(half)[:, :, 2:].any()


def test_content_without_a_direction() -> None:
    """h or h' of zeros, and h' along h: nothing that is not finite."""
    h = np.random.default_rng(0).standard_normal((1, 8, 4, 4), dtype=np.float32)
    for own, other, expected in ((0 * h, h, 0 * h), (h, 2 * h, 0 * h), (h, 0 * h, -0.5 * h)):
        found = Content(np.array([0]), other, 0.5).delta_h(own, own, np.zeros(1, np.int32))
        assert np.isfinite(found).all() and np.linalg.norm(found - expected) <= np.linalg.norm(h)


# --- the call ---------------------------------------------------------------------------------------------


class Turned:
    """What `inject` should do, with the same protocol and none of its code."""

    branch, n_train = Branch.ASYMMETRIC, None

    def __init__(self, timesteps: np.ndarray, table: np.ndarray, strength: float) -> None:
        self.timesteps, self.table, self.strength = timesteps, table, strength

    def delta_h(self, h: np.ndarray, temb: np.ndarray, t: np.ndarray) -> np.ndarray:
        nearest = [int(np.abs(self.timesteps - int(i)).argmin()) for i in t]
        return np.stack([formula(x, self.table[k], self.strength) for x, k in zip(h, nearest, strict=True)]).astype(
            "f4"
        )


def recorded(editor: hspace.Editor, content: np.ndarray, steps: int | None = None) -> HRecorder:
    recorder = HRecorder("encode", editor.program("encode", steps=steps), len(content), h_shape(editor.bundle)[:3])
    editor.encode(content, steps=steps, on_step=recorder)
    return recorder


@pytest.mark.parametrize("options", [{}, {"t_edit": 0, "t_boost": 300, "seed": 3}, {"steps": (8, 2), "t_edit": 0}])
def test_against_a_table_of_the_contents_inversion(null_editor: hspace.Editor, options: dict) -> None:
    latent, content = null_editor.encode(images(2)), images(2, seed=1)
    found = null_editor.inject(latent, content, [0.3, 1.0], output="float32", **options)
    decode = dict(options)
    encode_steps, steps = decode.pop("steps", (None, None))
    recorder = recorded(null_editor, content, encode_steps)
    for i, strength in enumerate((0.3, 1.0)):
        null_editor.attributes[f"turned{i}"] = Turned(recorder.timesteps, recorder.table[i], strength)
    edits = [{"turned0": 1.0}, {"turned1": 1.0}]
    expected = null_editor.decode(latent, edits, output="float32", steps=steps, **decode)
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-4)
    plain = null_editor.inject(latent, content, 0.0, output="float32", **options)
    assert not np.allclose(found, plain, rtol=1e-3, atol=1e-4)


def test_strength_zero_is_the_plain_decode(null_editor: hspace.Editor) -> None:
    """To the last bit that of an asymmetric run that adds nothing; and of a model that clamps, too."""
    latent = null_editor.encode(images(2))
    zero = np.zeros((1, *h_shape(null_editor.bundle)[:3]), np.float32)
    null_editor.attributes["zero"] = DeltaTable(np.array([0]), zero, None, Branch.ASYMMETRIC)
    expected = null_editor.decode(latent, {"zero": 1.0}, output="float32")
    plain = null_editor.decode(latent, output="float32")
    assert np.linalg.norm(expected - plain) <= 1e-5 * np.linalg.norm(plain)
    nowhere = np.zeros((8, 8), np.float32)
    for options in ({"strength": 0.0}, {"strength": 0}, {"strength": 0.8, "mask": nowhere}, {"strength": [0.0, 0.0]}):
        assert np.array_equal(null_editor.inject(latent, images(1, 1), output="float32", **options), expected)


def test_masks_of_images(null_asyrp: hspace.Editor) -> None:
    """A mask is of the image's size; h sees the mean of what each of its positions covers."""
    latent, content = null_asyrp.encode(images(1)), images(1, seed=1)

    def run(mask: np.ndarray | None) -> np.ndarray:
        return null_asyrp.inject(latent, content, 0.5, mask=mask, t_edit=0, output="float32")

    fine = np.zeros((8, 8), np.float32)
    fine[:4:2, :] = 1  # half of each position in the upper half
    coarse = np.zeros((8, 8), np.float32)
    coarse[:4] = 0.5
    assert np.array_equal(run(fine), run(coarse))
    assert np.array_equal(run(np.ones((8, 8), np.float32)), run(None))
    assert not np.array_equal(run(fine), run(None))


def test_one_content_for_many_latents(null_editor: hspace.Editor) -> None:
    latent, content = null_editor.encode(images(3)), images(1, seed=1)
    options = {"t_edit": 0, "output": "float32"}
    one = null_editor.inject(latent, content, 0.6, **options)
    assert np.array_equal(one, null_editor.inject(latent, np.repeat(content, 3, axis=0), [0.6] * 3, **options))
    for i in range(3):
        assert np.array_equal(one[i : i + 1], null_editor.inject(latent[i], content, 0.6, **options))


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_injection_does_not_depend_on_the_batch(null_editor: hspace.Editor, batch_size: int) -> None:
    latent, content = null_editor.encode(images(5)), images(5, seed=1)
    run = {"strength": [0.0, 0.2, 0.5, 0.8, 1.0], "edits": [{}, {"block": 0.5}, {}, {"table": 1.0}, {}]}
    run |= {"t_boost": 700, "seed": 2, "output": "float32"}
    other = hspace.Editor(null_editor.bundle, null_editor.engine, batch_size=batch_size)
    assert np.array_equal(other.inject(latent, content, **run), null_editor.inject(latent, content, **run))


def test_edits_are_added(null_asyrp: hspace.Editor) -> None:
    """Whatever their n_train, which counts for them and not for the content."""
    latent, content = null_asyrp.encode(images(1)), images(1, seed=1)
    recorder = recorded(null_asyrp, content, 2)
    null_asyrp.attributes["turned"] = Turned(recorder.timesteps, recorder.table[0], 0.5)
    options = {"steps": 2, "t_edit": 0, "output": "float32"}
    for edits in ({"block": 0.3}, {"table": 0.3}, {"block": -0.3, "table": 0.3}):
        expected = null_asyrp.decode(latent, {**edits, "turned": 1.0}, **options)
        found = null_asyrp.inject(latent, content, 0.5, edits=edits, **options)
        assert np.allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_directions_of_z_sem_are_moved_too(null_diffae: hspace.Editor) -> None:
    latent, content = null_diffae.encode(images(1)), images(1, seed=1)
    moved = hspace.Latent(latent.x_T, null_diffae.attributes["smile"].move(latent.z_sem[0], 0.7)[None])
    found = null_diffae.inject(latent, content, edits={"smile": 0.7}, output="float32")
    assert np.array_equal(found, null_diffae.inject(moved, content, output="float32"))


def test_progress_and_cancelling(null_editor: hspace.Editor) -> None:
    editor, steps = hspace.Editor(null_editor.bundle, null_editor.engine, batch_size=2), []
    latent = editor.encode(images(3))
    editor.inject(latent, images(1, 1), on_step=steps.append)
    encode, decode = len(editor.program("encode")), len(editor.program("decode"))
    assert [s.phase for s in steps] == ["encode"] * encode + ["decode"] * 2 * decode
    assert [s.index for s in steps] == list(range(1, len(steps) + 1)) and {s.total for s in steps} == {len(steps)}
    with pytest.raises(Cancelled, match=f"step 3 of {len(steps)}"):
        editor.inject(latent, images(1, 1), on_step=lambda s: s.index < 3)
    with pytest.raises(Cancelled, match=f"step {encode + 1} of"):
        editor.inject(latent, images(1, 1), on_step=lambda s: s.phase == "encode")


MASK = np.ones((8, 8), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": float("nan")}, "found strength nan"),
        ({"strength": 2}, "found strength 2, expected a number from 0 to 1"),
        ({"strength": -0.1}, "found strength -0.1"),
        ({"strength": True}, "found strength True"),
        ({"strength": "1"}, "strength"),
        ({"strength": [0.5]}, "strength: found 1, expected .*, or one for each of 2"),
        ({"strength": [0.5, 0.5, 0.5]}, "strength: found 3"),
        ({"mask": np.ones((4, 4), np.float32)}, r"mask: found float32 \[4, 4\], expected float32 \[8, 8\]"),
        ({"mask": np.ones((1, 8, 8), np.float32)}, r"mask: found float32 \[1, 8, 8\]"),
        ({"mask": MASK.astype(bool)}, "mask: found bool"),
        ({"mask": MASK * np.nan}, "mask: has values that are not finite"),
        ({"mask": 2 * MASK}, r"mask: found values outside \[0, 1\]"),
        ({"mask": -MASK}, r"mask: found values outside \[0, 1\]"),
        ({"edits": {"haas": 1.0}}, "asymmetric and symmetric attributes do not mix"),
        ({"edits": [{}, {"haas": 1.0}]}, "do not mix"),
        ({"edits": [{}]}, "edits: found 1 mappings"),
        ({"edits": {"/content": 1.0}}, "no attribute '/content'"),
        ({"seed": -1}, "seed: found -1"),
        ({"output": "png"}, "output: found 'png'"),
        ({"steps": (2, 2, 2)}, "steps: found"),
        ({"t_edit": -1}, "t_edit: found -1"),
        ({"preset": "fast"}, "preset: found 'fast'"),
        ({"content": images(3)}, "content: found 3 images, expected 1, or one for each of 2 latents"),
    ],
)
def test_refused_before_any_work(null_asyrp: hspace.Editor, monkeypatch, arguments: dict, message: str) -> None:
    latent = null_asyrp.encode(images(2))
    monkeypatch.setattr(null_asyrp.engine, "run", lambda *_: pytest.fail("the engine ran"))
    with pytest.raises(ArgumentError, match=message):
        null_asyrp.inject(latent, **{"content": images(1), **arguments})


def test_inputs_of_other_kinds(null_asyrp: hspace.Editor, null_diffae: hspace.Editor) -> None:
    latent = null_asyrp.encode(images(1))
    with pytest.raises(ImageError, match="expected 8×8"):
        null_asyrp.inject(latent, np.zeros((1, 3, 9, 9), np.float32))
    with pytest.raises(LatentError, match="z_sem None"):
        null_diffae.inject(latent, images(1))
    with pytest.raises(ArgumentError, match="latent: found ndarray"):
        null_asyrp.inject(images(1), images(1))
