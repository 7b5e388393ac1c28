"""Parity with phizaz/diffae: every array of golden.npz, through the exported bundle. Run with -s to see the errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hspace import Latent
from hspace.batch import Sample
from hspace.deltas import slerp
from hspace.executors.cpu import Executor
from hspace.schedule import Schedule, space_timesteps

from ..batches import trace
from ..conftest import GOLDEN, relative_error

SINGLE, RUN = 1e-5, 1e-3


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(Path(GOLDEN) / "diffae-tiny" / "golden.npz"))


@pytest.fixture(scope="module")
def editor(golden_editor):
    return golden_editor("diffae-tiny")


def check(name: str, got: np.ndarray, expected: np.ndarray, limit: float) -> None:
    error = relative_error(got, expected)
    print(f"diffae {name}: {error:.1e}")
    assert error <= limit, name


def latent_of(golden, x_T: str = "x_T", z: str = "z_sem") -> Latent:
    return Latent(golden[x_T], golden[z])


def test_unet(editor, golden) -> None:
    x, t, z = golden["unet_x"], golden["unet_t"], golden["z_sem"]
    h, temb, *skips = editor.engine.run("trunk", {"x": x, "t": t, "z_sem": z})
    inputs = {"h": h, "temb": temb, "source": np.arange(2), "z_sem": z, **{f"skip_{i}": s for i, s in enumerate(skips)}}
    check("unet_eps", editor.engine.run("head", inputs)[0], golden["unet_eps"], SINGLE)


def test_schedules_and_timesteps(editor, golden) -> None:
    for name, schedule in (("betas", Schedule.linear()), ("latent_betas", Schedule.const(0.008))):
        assert relative_error(schedule.alphas_cumprod, Schedule.from_betas(golden[name]).alphas_cumprod) < 1e-13
    for name in ("encode_timesteps", "decode_timesteps"):
        assert np.array_equal(space_timesteps("diffae", len(golden[name]), Schedule.linear()), golden[name])


def test_encode(editor, golden) -> None:
    latent = editor.encode(golden["x0"], preset="official", steps=10)
    check("z_sem", latent.z_sem, golden["z_sem"], SINGLE)
    check("x_T", latent.x_T, golden["x_T"], RUN)
    program = editor.program("encode", preset="official", steps=10)
    samples = [Sample(x, program, z_sem) for x, z_sem in zip(golden["x0"], latent.z_sem, strict=True)]
    _, *after = trace(Executor(editor.engine, editor.bundle.manifest.components), samples)
    for i, (x, expected) in enumerate(zip(after, golden["encode_x_after_step"], strict=True)):
        check(f"encode_x_after_step[{i}]", x, expected, RUN)


def test_reconstruction(editor, golden) -> None:
    check("recon", editor.decode(latent_of(golden), preset="official", steps=5, output="float32"), golden["recon"], RUN)


def test_edit(editor, golden) -> None:
    name = f"class_{int(golden['edit_class'])}"
    edits = {name: float(golden["edit_amount"])}
    z = np.stack([editor.attributes[name].move(z, edits[name]) for z in golden["z_sem"]])
    check("z_edit", z, golden["z_edit"], SINGLE)
    check(
        "edited",
        editor.decode(latent_of(golden), edits, preset="official", steps=5, output="float32"),
        golden["edited"],
        RUN,
    )


def test_edit_of_images(editor, golden) -> None:
    """The whole way, from the images."""
    edits = {f"class_{int(golden['edit_class'])}": float(golden["edit_amount"])}
    out = editor.edit(golden["x0"], edits, preset="official", steps=(10, 5), output="float32")
    check("edit from x0", out, golden["edited"], RUN)


def test_classify(editor, golden) -> None:
    assert editor.classes == [f"class_{i}" for i in range(5)]
    check("class_logits", editor.classify(golden["x0"]), golden["class_logits"], SINGLE)


def test_interpolation(editor, golden) -> None:
    latent = latent_of(golden)
    frames = editor.interpolate(
        latent[0], latent[1], len(golden["interp_alpha"]), preset="official", steps=5, output="float32"
    )
    check(
        "interp_x_T",
        slerp(golden["x_T"][0], golden["x_T"][1], golden["interp_alpha"].astype(float)),
        golden["interp_x_T"],
        SINGLE,
    )
    w = golden["interp_alpha"][:, None]
    check("interp_z", (1 - w) * golden["z_sem"][0] + w * golden["z_sem"][1], golden["interp_z"], SINGLE)
    check("interp", frames, golden["interp"], RUN)


def test_latent_ddim(editor, golden) -> None:
    noise = golden["latent_noise"]
    eps = editor.engine.run("latent", {"z_sem": noise, "t": np.array([5, 500, 999])})[0]
    check("latent_eps", eps, golden["latent_eps"], SINGLE)
    samples = [Sample(x, editor.program("latent", steps=10)) for x in noise]
    z = trace(Executor(editor.engine, editor.bundle.manifest.components), samples, "latent")[-1]
    check("latent_z_normalized", z, golden["latent_z_normalized"], RUN)
    check("latent_z", z * golden["conds_std"] + golden["conds_mean"], golden["latent_z"], RUN)


def test_sample(editor, golden) -> None:
    out = editor.sample(
        3,
        preset="official",
        steps=5,
        latent_steps=10,
        x_T=golden["sample_x_T"],
        z_noise=golden["latent_noise"],
        output="float32",
    )
    check("sample", out, golden["sample"], RUN)
