"""What is kept of a run, on the null engine: the same for any batch size, and passed on to whoever asked before."""

from __future__ import annotations

import hspace
import numpy as np
import pytest
from hspace import Cancelled, Latent
from hspace.bundle import h_shape
from hspace.errors import ArgumentError
from hspace.recorders import HRecorder, Timeline
from hspace.runs import Step

COUNT = 5


def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (COUNT, 3, 8, 8)).astype(np.float32)


def opened(editor: hspace.Editor, batch_size: int) -> hspace.Editor:
    return hspace.open(editor.bundle.folder, engine="null", batch_size=batch_size)


def recorded(editor: hspace.Editor, then: object = None) -> HRecorder:
    """The h of an encode."""
    recorder = HRecorder("encode", editor.program("encode"), COUNT, h_shape(editor.bundle)[:3], then)
    editor.encode(images(), on_step=recorder)
    return recorder


def latent(editor: hspace.Editor) -> Latent:
    z = None if editor.bundle.manifest.z_sem is None else np.arange(COUNT * 6, dtype=np.float32).reshape(COUNT, 6) / 9
    return Latent(images(), z)


# --- h ------------------------------------------------------------------------------------------------


def test_h_of_every_step(null_editor: hspace.Editor) -> None:
    """Each image's row, by the timestep, is what the steps showed."""
    seen: dict[tuple[int, int], np.ndarray] = {}

    def keep(step: Step) -> None:
        for i, t, h in zip(step.image, step.t, step.h, strict=True):
            seen[int(i), int(t)] = h.copy()

    recorder = recorded(opened(null_editor, 2), keep)
    rows = null_editor.program("encode").rows
    assert recorder.timesteps.tolist() == sorted(set(rows["t"].tolist()))
    assert recorder.table.shape == (COUNT, len(recorder.timesteps), *h_shape(null_editor.bundle)[:3])
    assert len(seen) == COUNT * len(recorder.timesteps)
    for i in range(COUNT):
        for k, t in enumerate(recorder.timesteps):
            np.testing.assert_array_equal(recorder.table[i, k], seen[i, int(t)])


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_h_by_any_batch(batch_size: int, null_editor: hspace.Editor) -> None:
    expected, found = recorded(opened(null_editor, COUNT)), recorded(opened(null_editor, batch_size))
    np.testing.assert_allclose(found.table, expected.table, atol=1e-5)
    assert np.abs(expected.table).min(axis=(2, 3, 4)).max() > 0 and expected.table.std(axis=0).max() > 0


def test_h_of_another_phase_is_left(null_diffae: hspace.Editor) -> None:
    recorder = HRecorder("encode", null_diffae.program("encode"), COUNT, h_shape(null_diffae.bundle)[:3])
    null_diffae.decode(latent(null_diffae), on_step=recorder)
    assert not recorder.table.any()


@pytest.mark.parametrize("kind", ["h", "timeline"])
def test_whoever_is_passed_on_to_can_cancel(kind: str, null_diffae: hspace.Editor) -> None:
    steps: list[int] = []

    def two(step: Step) -> bool:
        steps.append(step.index)
        return step.index < 2

    if kind == "h":
        with pytest.raises(Cancelled):
            recorded(null_diffae, two)
    else:
        with pytest.raises(Cancelled):
            null_diffae.decode(latent(null_diffae), on_step=Timeline(2, two))
    assert steps == [1, 2]


# --- the pictures along the way -----------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 2, COUNT])
@pytest.mark.parametrize("frames", [1, 2, 3, 4])
def test_timeline(frames: int, batch_size: int, null_editor: hspace.Editor) -> None:
    """The first step and the last among those that are kept; of every image, in order, whatever the batch."""
    start, program = latent(null_editor), null_editor.program("decode")
    every: list[Step] = []
    whole = Timeline(len(program), every.append)
    opened(null_editor, COUNT).decode(start, on_step=whole)
    recorder = Timeline(frames)
    opened(null_editor, batch_size).decode(start, on_step=recorder)
    p, x = recorder.frames()
    assert p.shape == x.shape == (frames, COUNT, 3, 8, 8)
    np.testing.assert_array_equal(x[0], start.x_T)
    rows = np.linspace(0, len(program) - 1, frames).round().astype(int)
    assert recorder.timesteps.tolist() == program.rows["t"][rows].tolist()
    all_p, all_x = whole.frames()
    np.testing.assert_allclose(p, all_p[rows], atol=1e-5)
    np.testing.assert_allclose(x, all_x[rows], atol=1e-5)
    assert len(every) == len(program)


def test_timeline_follows_the_edit(null_diffae: hspace.Editor) -> None:
    """P is what the edit makes of it."""
    found = []
    for edits in ({}, {"block": 2.0}):
        recorder = Timeline(4)
        null_diffae.decode(latent(null_diffae), edits, on_step=recorder)
        found.append(recorder.frames()[0])
    assert not np.allclose(*found)


def test_timeline_leaves_other_phases(null_diffae: hspace.Editor) -> None:
    """Drawing z_sem, and encoding, take steps as well."""
    for run in (
        lambda recorder: null_diffae.sample(2, on_step=recorder),
        lambda recorder: null_diffae.edit(images()[:2], {}, on_step=recorder),
    ):
        recorder = Timeline(2)
        run(recorder)
        assert recorder.frames()[0].shape == (2, 2, 3, 8, 8)


@pytest.mark.parametrize("frames", [0, -1, 5, 1.5, True])
def test_frames_that_a_run_has_not(frames: object, null_diffae: hspace.Editor) -> None:
    with pytest.raises(ArgumentError, match=r"frames: found .*, expected a whole number"):
        null_diffae.decode(latent(null_diffae), on_step=Timeline(frames))


def test_recorders_keep_copies(null_diffae: hspace.Editor) -> None:
    """The run goes on in its own arrays."""
    recorder = Timeline(4)
    null_diffae.decode(latent(null_diffae), on_step=recorder)
    p, _ = recorder.frames()
    assert all(not np.array_equal(p[i], p[i + 1]) for i in range(3))
