"""diffusers folders that are refused by name, before anything long; none of these traces a network."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hspace.errors import ArgumentError, CheckpointError, HspaceError

from ..conftest import GOLDEN
from .helpers import Json, refused

torch = pytest.importorskip("torch", reason="exports need the extra `export`")
pytest.importorskip("diffusers", reason="these exports need the extra `diffusers`")

import click  # noqa: E402
import diffusers  # noqa: E402
import hspace_export  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler, UNet2DModel  # noqa: E402
from hspace_export import asyrp, cli  # noqa: E402
from hspace_export import diffusers as hook  # noqa: E402
from hspace_export.exporter import Model, Settings  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
SAFE, BIN = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    unet = UNet2DModel(
        8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    unet.save_pretrained(folder)
    DDPMScheduler().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(sound, tmp_path / "model"))


def load(folder: Path, **settings: Any) -> Model:
    return hook.load_model(folder, attributes={}, settings=Settings(**settings))


def alter(path: Path, change: Json | Callable[[Json], object]) -> None:
    found = json.loads(path.read_bytes())
    found.update(change) if isinstance(change, dict) else change(found)
    path.write_text(json.dumps(found))


def test_the_baseline_is_sound(folder: Path) -> None:
    assert load(folder).image_size == 8


# --- config.json --------------------------------------------------------------------------------------

UNETS: dict[str, tuple[Json, str]] = {
    "another class": ({"_class_name": "UNet2DConditionModel"}, '"UNet2DConditionModel", expected UNet2DModel'),
    "classes": ({"num_class_embeds": 10}, "num_class_embeds: found 10, expected an unconditional network"),
    "class embedding": ({"class_embed_type": "timestep"}, 'class_embed_type: found "timestep", expected an uncond'),
    "Fourier": ({"time_embedding_type": "fourier"}, 'time_embedding_type: found "fourier", expected "positional"'),
    "learned times": ({"time_embedding_type": "learned"}, 'time_embedding_type: found "learned", expected "pos'),
    "skip blocks": (
        {"down_block_types": ["SkipDownBlock2D", "AttnSkipDownBlock2D"]},
        'down_block_types: found "AttnSkipDownBlock2D", expected AttnDownBlock2D, DownBlock2D, ResnetDownsample',
    ),
    "K blocks": ({"up_block_types": ["KUpBlock2D", "UpBlock2D"]}, 'up_block_types: found "KUpBlock2D", expected'),
    "cross-attention": ({"down_block_types": ["CrossAttnDownBlock2D"] * 2}, 'found "CrossAttnDownBlock2D", expected'),
    "no middle": ({"mid_block_type": None}, 'mid_block_type: found null, expected "UNetMidBlock2D"'),
    "four channels in": ({"in_channels": 4}, "in_channels: found 4, expected 3"),
    "four channels out": ({"out_channels": 4}, "out_channels: found 4, expected 3 or 6"),
    "sigma that is not learned": ({"out_channels": 6}, "out_channels: found 6, expected 3 where the variance is not"),
    "a rectangle": ({"sample_size": [8, 16]}, "sample_size: found [8, 16], expected a square"),
    "a size that does not halve": ({"sample_size": 9}, "image size: found 9, expected a multiple of 2 from 8 to 4096"),
    "a size below zero": ({"sample_size": -8}, "image size: found -8, expected a multiple of 2"),
    "a size as text": ({"sample_size": "8"}, 'sample_size: found "8", expected'),
    "spatial norm": ({"resnet_time_scale_shift": "spatial"}, 'found "spatial", expected "default" or "scale_shift"'),
    "no downsampling": ({"downsample_type": None}, 'downsample_type: found null, expected "conv" or "resnet"'),
    "wide padding": ({"downsample_padding": 2}, "downsample_padding: found 2, expected 0 or 1"),
    "activation": ({"act_fn": "tanh"}, 'act_fn: found "tanh", expected "silu" or '),
    "lengths of blocks": ({"up_block_types": ["UpBlock2D"]}, "up_block_types: found 1, expected 2"),
    "lengths of widths": ({"block_out_channels": [32]}, "block_out_channels: found 1, expected 2"),
    "groups": ({"norm_num_groups": 24}, "norm_num_groups: found 24, which does not divide the channels"),
    "attention's groups": ({"attn_norm_num_groups": 24}, "attn_norm_num_groups: found 24, which does not divide"),
    "heads": ({"attention_head_dim": 64}, "attention_head_dim: found 64, which does not divide the channels [32]"),
    "frequencies": ({"freq_shift": 16}, "freq_shift: found 16, expected less than 16"),
    "endless layers": ({"layers_per_block": 10**9}, "layers_per_block: found 1000000000, expected"),
    "widths as text": ({"block_out_channels": ["32", "32"]}, 'block_out_channels: found ["32", "32"], expected'),
    "negative widths": ({"block_out_channels": [-32, 32]}, "block_out_channels: found [-32, 32], expected"),
}


@pytest.mark.parametrize("name", UNETS)
def test_unet(folder: Path, name: str) -> None:
    change, fragment = UNETS[name]
    alter(folder / CONFIG, change)
    with refused(CheckpointError, f"{folder / CONFIG}: ", fragment, unchanged=folder):
        load(folder)


def test_widths_that_no_memory_holds(folder: Path) -> None:
    alter(folder / CONFIG, {"block_out_channels": [65536, 65536], "attention_head_dim": 8})
    with refused(CheckpointError, f"{folder / SAFE}: its tensors are not those of the UNet2DModel of its config.json"):
        load(folder)


def test_image_size(folder: Path) -> None:
    alter(folder / CONFIG, {"sample_size": None})
    with refused(ArgumentError, f"{folder / CONFIG}: sample_size: missing; give --image-size"):
        load(folder)
    assert load(folder, image_size=16).image_size == 16


# --- scheduler_config.json ----------------------------------------------------------------------------

SCHEDULERS: dict[str, tuple[Json, str]] = {
    "ScoreSdeVe": (
        {"_class_name": "ScoreSdeVeScheduler"},
        '_class_name: found "ScoreSdeVeScheduler", expected one of DDPM',
    ),
    "Karras": ({"_class_name": "KarrasVeScheduler"}, '_class_name: found "KarrasVeScheduler", expected one of'),
    "consistency": ({"_class_name": "CMStochasticIterativeScheduler"}, "expected one of DDPMScheduler"),
    "no class": ({"_class_name": None}, "_class_name: found null, expected one of"),
    "class of another type": ({"_class_name": ["DDPMScheduler"]}, '_class_name: found ["DDPMScheduler"], expected'),
    "thresholding": ({"thresholding": True}, "thresholding: found true, expected false"),
    "range": ({"clip_sample_range": 2.0}, "clip_sample_range: found 2.0, expected 1"),
    "zero SNR": ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: found true, expected false"),
    "offset": ({"steps_offset": 1}, "steps_offset: found 1, expected 0"),
    "last level": ({"set_alpha_to_one": False}, "set_alpha_to_one: found false, expected true"),
    "prediction": ({"prediction_type": "flow_prediction"}, 'prediction_type: found "flow_prediction", expected "eps'),
    "schedule": ({"beta_schedule": "laplace"}, 'beta_schedule: found "laplace", expected "linear" or "scaled_linear"'),
    "spacing": ({"timestep_spacing": "log"}, 'timestep_spacing: found "log", expected "leading" or'),
    "variance": (
        {"variance_type": "fixed_large_log"},
        'variance_type: found "fixed_large_log", expected "fixed_small"',
    ),
    "timesteps": ({"num_train_timesteps": 1}, "num_train_timesteps: found 1, expected"),
    "timesteps as text": ({"num_train_timesteps": "1000"}, 'num_train_timesteps: found "1000", expected'),
    "negative β": ({"beta_start": -1e-4}, "beta_start: found -0.0001, expected"),
    "falling to zero": ({"beta_end": 1.0}, "β: alphas_cumprod: expected finite values that fall strictly"),
    "not a number": ({"beta_end": float("nan")}, "beta_end: found NaN, expected"),
    "number of β": ({"trained_betas": [0.1, 0.2]}, "trained_betas: found 2, expected 1000"),
    "β above one": ({"trained_betas": [0.1, 1.2], "num_train_timesteps": 2}, "β: alphas_cumprod: expected finite"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(folder: Path, name: str) -> None:
    change, fragment = SCHEDULERS[name]
    alter(folder / SCHEDULER, change)
    with refused(CheckpointError, f"{folder / SCHEDULER}: ", fragment, unchanged=folder):
        load(folder)


def test_range_without_clamping(folder: Path) -> None:
    """It says nothing there."""
    alter(folder / SCHEDULER, {"clip_sample": False, "clip_sample_range": 2.0})
    assert not load(folder).presets["official"].clip


def test_other_schedulers_of_the_family(folder: Path) -> None:
    for scheduler in (DDIMScheduler(timestep_spacing="trailing"), PNDMScheduler(timestep_spacing="trailing")):
        scheduler.save_pretrained(folder)
        preset = load(folder).presets["official"]
        assert (preset.spacing, preset.clip) == ("trailing", isinstance(scheduler, DDIMScheduler))


# --- files --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [CONFIG, SCHEDULER])
@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff", b"[" * 100_000], ids=["cut", "a list", "no text", "deep"])
def test_no_json(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    with refused(CheckpointError, f"{folder / name}: expected an object in JSON"):
        load(folder)


MISSING: dict[str, tuple[Callable[[Path], object], str]] = {
    "config": (lambda f: (f / CONFIG).unlink(), f"{CONFIG}: no such file, expected a diffusers folder: unet/ and sch"),
    "scheduler": (lambda f: (f / SCHEDULER).unlink(), f"{SCHEDULER}: no such file, expected a diffusers folder"),
    "weights": (lambda f: (f / SAFE).unlink(), f"model: has no {SAFE} and no {BIN}"),
    "everything": (lambda f: (shutil.rmtree(f), f.mkdir()), f"{CONFIG}: no such file, expected a diffusers folder"),
    "the folder": (shutil.rmtree, "model: no such folder, expected a folder"),
}


@pytest.mark.parametrize("name", MISSING)
def test_missing(folder: Path, name: str) -> None:
    change, fragment = MISSING[name]
    change(folder)
    with refused(CheckpointError, str(folder), fragment):
        load(folder)


def test_a_file(folder: Path) -> None:
    with refused(CheckpointError, f"{folder / SAFE}: a file, expected a folder"):
        load(folder / SAFE)


def test_a_pipeline_over_latents(folder: Path) -> None:
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    with refused(
        CheckpointError, f"{folder / 'model_index.json'}: found the components vqvae, expected unet and sched"
    ):
        load(folder)


def as_bin(folder: Path, found: object) -> Path:
    (folder / SAFE).unlink()
    torch.save(found, folder / BIN)
    return folder / BIN


class Payload:
    """Unpickles to the exit status of a command that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def test_code_does_not_run(folder: Path, tmp_path: Path) -> None:
    path = as_bin(folder, {"conv_in.weight": Payload(tmp_path / "ran")})
    with refused(CheckpointError, f"{path}: refers to code (", "which is refused and was not run"):
        load(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]"], ids=["empty", "noise", "no header"])
def test_no_safetensors(folder: Path, data: bytes) -> None:
    (folder / SAFE).write_bytes(data)
    with refused(CheckpointError, f"{folder / SAFE}: expected a safetensors file"):
        load(folder)


def test_weights_of_another_family(folder: Path) -> None:
    other = torch.load(GOLDEN / "asyrp-ddpm-tiny" / "model.ckpt", weights_only=True)
    path = as_bin(folder, other)
    with refused(CheckpointError, f"{path}: looks like a DDPM U-Net (hspace export asyrp), expected the weights of a"):
        load(folder)


def test_the_hint_of_the_other_command(folder: Path) -> None:
    path = as_bin(folder, load_file(folder / SAFE))
    hint = "looks like a diffusers U-Net (hspace export diffusers, with its folder), expected a DDPM or guided"
    with refused(CheckpointError, f"{path}: {hint}"):
        asyrp.load_model(path, attributes={}, settings=Settings(image_size=8))


def test_tensors_together(folder: Path) -> None:
    state = load_file(folder / SAFE)
    names = "conv_in.bias", "conv_out.bias", "time_embedding.linear_1.bias"
    state.pop(names[0])
    state[names[1]] = torch.zeros(2, 2)
    state[names[2]][0] = float("nan")
    save_file({**state, "other": torch.zeros(1)}, folder / SAFE)
    expected = [f"1 missing: {names[0]}", "1 unexpected: other", f"1 not finite: {names[2]}"]
    expected += [f"1 of another shape: {names[1]}: found [2, 2], expected [3]"]
    with refused(CheckpointError, f"{folder / SAFE}: its tensors are not those of the UNet2DModel", *expected):
        load(folder)


def test_attribute_of_another_width(folder: Path) -> None:
    path = GOLDEN / "asyrp-ddpm-tiny" / "attribute0_LC_golden_t999_ninv8_ngen8_0.pth"
    with refused(CheckpointError, f"{path}: its tensors are not those of an attribute for a U-Net of 32 channels"):
        hook.load_model(folder, attributes={"smile": path}, settings=Settings())


# --- the command --------------------------------------------------------------------------------------


def test_without_the_extra(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("diffusers", "models.diffusers"):
        monkeypatch.delitem(sys.modules, f"hspace_export.{name}", raising=False)
    monkeypatch.delattr(hspace_export, "diffusers", raising=False)
    for name in [n for n in sys.modules if n.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    result = CliRunner().invoke(
        cli.export, ["diffusers", str(folder), "-o", str(tmp_path / "out")], standalone_mode=False
    )
    assert isinstance(result.exception, click.ClickException)
    assert str(result.exception) == (
        "hspace export diffusers needs the package diffusers, of the extra diffusers: pip install '.[diffusers]' in a "
        "clone of hspace, or pip install 'hspace-….whl[diffusers]'"
    )


@pytest.mark.parametrize("option", ["--num-heads=4", "--schedule=cosine", "--config=c.json", "--preset=church256"])
def test_options_that_say_nothing_here(folder: Path, option: str) -> None:
    result = CliRunner().invoke(cli.export, ["diffusers", str(folder), "-o", "out", option], standalone_mode=False)
    assert isinstance(result.exception, click.NoSuchOption)


def test_refusals_come_before_the_output(folder: Path, tmp_path: Path) -> None:
    alter(folder / CONFIG, {"in_channels": 1})
    result = CliRunner().invoke(
        cli.export, ["diffusers", str(folder), "-o", str(tmp_path / "out")], standalone_mode=False
    )
    assert isinstance(result.exception, HspaceError) and not (tmp_path / "out").exists()


# --- numbers and tensors that are odd -----------------------------------------------------------------

ODD_UNETS: dict[str, tuple[Json, str]] = {
    "frequencies": ({"freq_shift": -(10**30)}, "freq_shift: found -10000"),
    "many frequencies": ({"freq_shift": 10**400}, "freq_shift: found 10000"),
    "eps": ({"norm_eps": float("inf")}, "norm_eps: found Infinity, expected"),
    "eps of nothing": ({"norm_eps": float("nan")}, "norm_eps: found NaN, expected"),
    "scale": ({"mid_block_scale_factor": float("inf")}, "mid_block_scale_factor: found Infinity, expected"),
    "a small scale": ({"mid_block_scale_factor": 0}, "mid_block_scale_factor: found 0, expected"),
    "size": ({"sample_size": 10**30}, "image size: found 10000"),
    "sizes": ({"sample_size": [8] * 10**5}, "sample_size: found [8, 8, 8"),
    "channels": ({"block_out_channels": [10**30, 32]}, "block_out_channels: found [1000"),
    "embedding": ({"time_embedding_dim": 10**30}, "time_embedding_dim: found 1000"),
}
ODD_SCHEDULERS: dict[str, tuple[Json, str]] = {
    "timesteps": ({"num_train_timesteps": 10**30}, "num_train_timesteps: found 1000"),
    "β": ({"beta_end": float("inf")}, "beta_end: found Infinity, expected"),
    "β of nothing": ({"trained_betas": [float("nan")] * 1000}, "β: alphas_cumprod: expected finite values"),
    "a huge β": ({"trained_betas": [10**300] * 1000}, "β: alphas_cumprod: expected finite values"),
    "range": ({"clip_sample_range": float("nan")}, "clip_sample_range: found NaN, expected"),
    "ε of old": ({"predict_epsilon": False}, "predict_epsilon: found false, expected true"),
    "flow": ({"use_flow_sigmas": True}, "use_flow_sigmas: found true, expected false"),
}


@pytest.mark.parametrize("name", [*ODD_UNETS, *ODD_SCHEDULERS])
def test_odd_numbers(folder: Path, name: str) -> None:
    which = CONFIG if name in ODD_UNETS else SCHEDULER
    change, fragment = {**ODD_SCHEDULERS, **ODD_UNETS}[name]
    alter(folder / which, change)
    with refused(CheckpointError, f"{folder / which}: ", fragment, unchanged=folder):
        load(folder)


@pytest.mark.parametrize("which", [CONFIG, SCHEDULER])
def test_half_a_character(folder: Path, which: str) -> None:
    text = (folder / which).read_text()
    (folder / which).write_text(text.replace("{", '{"_name_or_path": "\\ud800",', 1))
    with refused(CheckpointError, f"{folder / which}: expected an object in JSON, in Unicode"):
        load(folder)


def test_keys_that_nobody_knows_are_told(folder: Path) -> None:
    alter(folder / CONFIG, {"dropout": 0.1, "mystery": 1, "_note": 2})
    alter(folder / SCHEDULER, {"sample_max_value": 3.0, "steps_of_its_own": 4})
    says = [f"{folder / CONFIG}: mystery: not known, so not followed"]
    assert load(folder).warnings == [*says, f"{folder / SCHEDULER}: steps_of_its_own: not known, so not followed"]


def test_every_argument_of_the_library_is_known() -> None:
    """Each is a field, refused by name, or listed as without effect; a release that adds one fails here."""
    known = {*hook._UNetConfig.__struct_fields__, *hook._UNET_WITHOUT_EFFECT}
    assert set(inspect.signature(UNet2DModel.__init__).parameters) - {"self"} <= known
    known = {*hook._SchedulerConfig.__struct_fields__, *hook._OWN_STEPS.split()}
    for name in hook._CLASSES:
        arguments = set(inspect.signature(getattr(diffusers, name).__init__).parameters)
        assert arguments - {"self", "kwargs"} <= known, name


@pytest.mark.parametrize("dtype", ["int64", "bool", "float8_e4m3fn", "complex64"])
def test_safetensors_of_other_types(folder: Path, dtype: str) -> None:
    state = load_file(folder / SAFE)
    state["conv_in.bias"] = state["conv_in.bias"].to(getattr(torch, dtype))
    save_file(state, folder / SAFE)
    with refused(
        CheckpointError, f"{folder / SAFE}: conv_in.bias: found values of the type {dtype}, expected floating"
    ):
        load(folder)


def test_bin_with_a_repeated_value(folder: Path) -> None:
    path = as_bin(folder, {**load_file(folder / SAFE), "conv_in.weight": torch.zeros(1).expand(60_000, 60_000)})
    with refused(CheckpointError, f"{path}: conv_in.weight: found [60000, 60000] with the strides [0, 0], so that"):
        load(folder)
