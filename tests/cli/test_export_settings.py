"""What `hspace export` says, and what it writes, of settings that weights do not tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hspace.bundle import Bundle

from ..conftest import GOLDEN
from .conftest import Cli

torch = pytest.importorskip("torch", reason="exports need the extra `export`")

from hspace_export import cli as export_cli  # noqa: E402
from hspace_export.checkpoint import load  # noqa: E402
from hspace_export.exporter import Report  # noqa: E402

IDDPM, DIFFAE = GOLDEN / "asyrp-iddpm-tiny" / "model.ckpt", GOLDEN / "diffae-tiny" / "last.ckpt"


def test_settings_reach_the_bundle_and_pytorch_is_silent(tmp_path: Path) -> None:
    """A whole export in a process of its own: nothing on stderr, and the settings in the manifest."""
    options = ["--image-size", "32", "--num-heads", "4", "--attention-order", "new", "--diffusion-steps", "4000"]
    options += ["--rescale-timesteps", "--json", "-o", str(tmp_path / "bundle")]
    command = [sys.executable, "-W", "always::UserWarning", "-m", "hspace.cli", "export", "asyrp", str(IDDPM), *options]
    pinned = {**os.environ, "HSPACE_ENGINE": "onnx"}  # which has one precision, so nothing is measured
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=pinned)
    assert (found.returncode, found.stderr) == (0, "")
    assert json.loads(found.stdout)["warnings"] == []
    manifest = Bundle(tmp_path / "bundle").manifest
    unet = manifest.provenance.config["unet"]
    assert (unet["attention_order"], unet["time_scale"]) == ("new", 0.25)
    schedule = manifest.schedules.image
    assert (schedule.timesteps, schedule.beta_start, schedule.beta_end) == (4000, 2.5e-5, 0.005)
    official = manifest.presets["official"]
    assert (official.encode_steps, official.t_edit, official.t_boost) == (40, 2000, 800)


def test_unknown_keys_are_told(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(DIFFAE)
    found.pop("callbacks")
    found["hyper_parameters"]["noise_\x1b[31moffset"] = 0.1
    torch.save(found, tmp_path / "last.ckpt")

    def unwritten(load, output, **options):
        load()
        return Report(output, {"trunk.h@1": 0.0}, 1)

    monkeypatch.setattr(export_cli, "run_export", unwritten)
    monkeypatch.setattr(export_cli, "Bundle", str)
    monkeypatch.setattr(export_cli, "record", lambda folder: f"{folder}: recorded")
    result = cli("export", "diffae", tmp_path / "last.ckpt", "-o", tmp_path / "out", "--json")
    says = f"{tmp_path / 'last.ckpt'}: hyper_parameters: noise_\\x1b[31moffset: not known, so not followed"
    assert result.code == 0 and result.err == f"hspace: warning: {says}\n"
    assert result.json["warnings"] == [says]
    assert result.json["auto"] == f"{tmp_path / 'out'}: recorded"


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--diffusion-steps", 1], "options: diffusion_steps: found 1, expected `int` >= 2"),
        (["--diffusion-steps", 10**30], "diffusion_steps"),
        (["--attention-order", "old"], "'old' is not one of 'legacy', 'new'"),
        (["--num-heads", 0], "num_heads"),
    ],
)
def test_options_out_of_range(options: list[object], fragment: str, cli: Cli, tmp_path: Path) -> None:
    arguments = ["export", "asyrp", IDDPM, "--image-size", 32, *options, "-o", tmp_path / "out"]
    cli(*arguments).error(2, fragment)
    assert not (tmp_path / "out").exists()


def test_a_preset_over_a_small_network(cli: Cli, tmp_path: Path) -> None:
    """Refused at once, with every difference; nothing is traced and nothing is left."""
    arguments = ["export", "asyrp", GOLDEN / "asyrp-ddpm-tiny" / "model.ckpt", "--preset", "celebahq256"]
    cli(*arguments, "-o", tmp_path / "out").error(
        6,
        "not the network of the preset celebahq256: model_channels 32, expected 128; channel_mult (1.0, 2.0), expected",
    )
    assert list(tmp_path.iterdir()) == []
