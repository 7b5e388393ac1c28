"""The null engine: an input that moves a little moves the outputs a little, at every timestep."""

from __future__ import annotations

import hspace
import numpy as np


def test_outputs_follow_small_moves(null_editor: hspace.Editor) -> None:
    """Half a unit in the last place of t is 3e-5 in float32, and a sum with it would move by that or not at all."""
    run = null_editor.engine.run
    rng, n = np.random.default_rng(0), 64
    moves = np.linspace(0, 2e-5, n, dtype=np.float32)[:, None, None, None]
    x = rng.uniform(-0.5, 0.5, (1, 3, 8, 8)).astype(np.float32) + moves
    for t in (0, 500, 999):
        given = {"x": x, "t": np.full(n, t, np.int32)}
        given |= {"z_sem": np.ones((n, 6), np.float32)} if null_editor.bundle.manifest.z_sem is not None else {}
        for output in run("trunk", given):
            steps = np.abs(np.diff(output.reshape(n, -1).astype(np.float64), axis=0))
            assert steps.max() <= 1e-6, t  # half of a move is 1.6e-7, and float32 rounds by as much and more
            assert np.abs(output[-1] - output[0]).max() >= 5e-6, t
