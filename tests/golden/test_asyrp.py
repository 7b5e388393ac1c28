"""Parity with kwonminki/Asyrp_official, both U-Net layouts: every array of golden.npz, through the exported bundles."""

from __future__ import annotations

import numpy as np
import pytest
from hspace import Latent
from hspace.batch import Sample
from hspace.executors.cpu import Executor
from hspace.schedule import Schedule, space_timesteps

from ..batches import trace
from ..conftest import GOLDEN, relative_error

SINGLE, RUN = 1e-5, 1e-3
RUN_OPTIONS = {"preset": "official", "steps": 8, "t_edit": 500, "t_boost": 0, "output": "float32"}


@pytest.fixture(scope="module", params=["asyrp-ddpm-tiny", "asyrp-iddpm-tiny"])
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def golden(name) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / name / "golden.npz"))


@pytest.fixture(scope="module")
def editor(golden_editor, name):
    return golden_editor(name)


def check(name: str, got: np.ndarray, expected: np.ndarray, limit: float) -> None:
    error = relative_error(got, expected)
    print(f"asyrp {name}: {error:.1e}")
    assert error <= limit, name


def test_unet(editor, golden) -> None:
    """One evaluation, without and with the first attribute; of a learned sigma's 6 channels the first 3 are ε."""
    h, temb, *skips = editor.engine.run("trunk", {"x": golden["x0"], "t": golden["unet_t"]})
    check("unet_h", h, golden["unet_h"], SINGLE)
    delta_h = editor.attributes["attribute0"].delta_h(h, temb, golden["unet_t"].astype(np.int32))
    check("unet_delta_h", delta_h, golden["unet_delta_h"], SINGLE)
    both = np.concatenate([h, h + delta_h])
    skip_inputs = {f"skip_{i}": s for i, s in enumerate(skips)}
    eps = editor.engine.run("head", {"h": both, "temb": temb, "source": np.array([0, 0]), **skip_inputs})[0]
    check("unet_eps", eps[:1], golden["unet_eps"][:, :3], SINGLE)
    check("unet_eps_edited", eps[1:], golden["unet_eps_edited"][:, :3], SINGLE)


def test_schedule_and_timesteps(golden) -> None:
    assert relative_error(Schedule.linear().alphas_cumprod, Schedule.from_betas(golden["betas"]).alphas_cumprod) < 1e-5
    for key in ("encode_seq", "decode_seq"):
        assert np.array_equal(space_timesteps("asyrp", 8, Schedule.linear()), golden[key])


def test_inversion(editor, golden) -> None:
    check("x_T", editor.encode(golden["x0"], preset="official", steps=8).x_T, golden["x_T"], RUN)
    sample = Sample(golden["x0"][0], editor.program("encode", preset="official", steps=8))
    _, *after = trace(Executor(editor.engine, editor.bundle.manifest.components), [sample])
    for i, (x, expected) in enumerate(zip(after, golden["encode_x_after_step"], strict=True)):
        check(f"encode_x_after_step[{i}]", x, expected, RUN)


def test_reconstruction(editor, golden) -> None:
    check("recon", editor.decode(Latent(golden["x_T"]), **RUN_OPTIONS), golden["recon"], RUN)


@pytest.mark.parametrize(
    ("key", "edits"),
    [
        ("edit_one", {"attribute0": 1.0}),
        ("edit_one_minus", {"attribute0": -0.5}),
        ("edit_two", {"attribute0": 0.7, "attribute1": -0.4}),
    ],
)
def test_edits(editor, golden, key, edits) -> None:
    check(key, editor.decode(Latent(golden["x_T"]), edits, **RUN_OPTIONS), golden[key], RUN)


def test_edit_of_an_image(editor, golden) -> None:
    """The whole way, from the image."""
    check("edit from x0", editor.edit(golden["x0"], {"attribute0": 1.0}, **RUN_OPTIONS), golden["edit_one"], RUN)


def test_edit_step_by_step(editor, golden) -> None:
    """Every intermediate of edit_one, and Δh at every timestep that injects one."""
    attribute = editor.attributes["attribute0"]
    seen: dict[int, np.ndarray] = {}

    class Spy:
        branch, n_train = attribute.branch, attribute.n_train

        def delta_h(self, h, temb, t):
            seen[int(t[0])] = attribute.delta_h(h, temb, t)
            return seen[int(t[0])]

    from hspace.deltas import Edit

    program = editor.program("edit", edits={"attribute0": 1.0}, preset="official", steps=8, t_edit=500, t_boost=0)
    sample = Sample(golden["x_T"][0], program, edit=Edit(deltas=((Spy(), 1.0),)))
    _, *after = trace(Executor(editor.engine, editor.bundle.manifest.components), [sample])
    for i, (x, expected) in enumerate(zip(after, golden["edit_one_x_after_step"], strict=True)):
        check(f"edit_one_x_after_step[{i}]", x, expected, RUN)
    assert list(seen) == golden["delta_h_timesteps"].tolist()
    for t, expected in zip(golden["delta_h_timesteps"], golden["delta_h"], strict=True):
        check(f"delta_h[{t}]", seen[int(t)][0], expected, RUN)


def test_quality_boosting(editor, golden) -> None:
    options = RUN_OPTIONS | {"t_boost": 200}
    noise = golden["boost_noise"][:, None]
    out = editor.decode(Latent(golden["x_T"]), {"attribute0": 1.0}, noise=noise, **options)
    check("edit_boost", out, golden["edit_boost"], RUN)
