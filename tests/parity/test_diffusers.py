"""diffusers' UNet2DModel and its schedulers against the bundles exported from their folders.

Networks with random weights, re-drawn so that no layer is zero; inputs fixed, and drawn anew at each run.
"""

from __future__ import annotations

import json
import secrets
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import msgspec
import numpy as np
import pytest
from hspace import Latent

from ..conftest import relative_error
from ..hostile.helpers import alter

torch = pytest.importorskip("torch", reason="exports need the extra `export`")
pytest.importorskip("diffusers", reason="these exports need the extra `diffusers`")

from click.testing import CliRunner  # noqa: E402
from diffusers import (  # noqa: E402
    DDIMInverseScheduler,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    UNet2DModel,
)
from hspace_export import diffusers as hook  # noqa: E402
from hspace_export.cli import export as command  # noqa: E402
from hspace_export.exporter import Settings, export  # noqa: E402
from hspace_export.models.delta import DdpmDelta  # noqa: E402

SINGLE, RUN, HALF = 1e-5, 1e-3, 1e-2
pytestmark = pytest.mark.usefixtures("one_thread")
SIZE, STEPS = 16, 8
SMALL = {
    "sample_size": SIZE,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
GOOGLE = {"attention_head_dim": None, "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0}
OPENAI = {
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 16,
}
# name → the network's settings and the scheduler's; between them they have every kind of block and of schedule
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "epsilon": (GOOGLE, {}),
    "v_prediction": (
        OPENAI | {"attention_head_dim": 16},
        {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    ),
    "sample": (
        {"mid_block_scale_factor": 2, "act_fn": "mish", "time_embedding_dim": 48},
        {"prediction_type": "sample", "beta_schedule": "scaled_linear", "num_train_timesteps": 100},
    ),
    "learned": (
        {"out_channels": 6, "center_input_sample": True, "add_attention": False, "norm_num_groups": 8},
        {"variance_type": "learned_range", "beta_schedule": "sigmoid", "beta_end": 0.01},
    ),
}
PIPELINES = ("v_prediction", "sample")  # the others have their files side by side
Array = np.ndarray


def network(name: str) -> UNet2DModel:
    torch.manual_seed(len(name))
    unet = UNet2DModel(**SMALL | MODELS[name][0]).eval()
    with torch.no_grad():
        for p in unet.parameters():
            if p.ndim > 1:
                p.normal_(std=p[0].numel() ** -0.5)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return unet


def save(name: str, folder: Path) -> Path:
    unet, scheduler = network(name), DDPMScheduler(**MODELS[name][1])
    if name in PIPELINES:
        DDPMPipeline(unet, scheduler).save_pretrained(folder)
    else:
        unet.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("diffusers")
    return lambda name: root / name if (root / name).exists() else save(name, root / name)


@pytest.fixture(scope="session")
def attribute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("attribute") / "smile_ngen40.pth"
    torch.save({"0": DdpmDelta(64, 128).state_dict()}, path)
    return path


@pytest.fixture(scope="session")
def editor(
    saved: Callable[[str], Path], attribute: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., hspace.Editor]:
    """(name, precision; the scheduler's class and settings, where others) → the bundle, opened.

    Another scheduler gives other presets alone, so that its bundle is a copy with these.
    """
    root = tmp_path_factory.mktemp("exported")

    def load(folder: Path, name: str) -> Any:
        return hook.load_model(
            folder, attributes={"smile": attribute} if name == "epsilon" else {}, settings=Settings()
        )

    def make(name: str, precision: str = "fp32", scheduler: Any = None) -> hspace.Editor:
        output = root / f"{name}-{precision}"
        if not output.exists():
            export(lambda: load(saved(name), name), output, precision=precision)
        if scheduler is not None:
            folder = Path(shutil.copytree(saved(name), root / secrets.token_hex(8)))
            scheduler.save_pretrained(folder / "scheduler" if name in PIPELINES else folder)
            presets = msgspec.to_builtins(load(folder, name).presets)
            output = Path(shutil.copytree(output, root / secrets.token_hex(8)))
            alter(output, lambda m: m.update(presets=presets))
        return hspace.open(output, engine="onnx")

    return make


@pytest.fixture(params=["fixed", "fresh"])
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    seed = 0 if request.param == "fixed" else secrets.randbelow(2**31)
    print(f"seed {seed}")
    return np.random.default_rng(seed)


def noise(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal((*shape, 3, SIZE, SIZE), dtype=np.float32)


def check(what: str, got: Array, expected: Array, limit: float) -> None:
    error = relative_error(got, expected)
    print(f"diffusers {what}: {error:.1e}")
    assert np.isfinite(expected).all() and error <= limit, f"{what}: {error:.1e}"


def evaluate(unet: Any, x: Any, t: Any) -> Any:
    """The network's output, without its learned variance."""
    with torch.no_grad():
        return unet(x, t).sample[:, :3]


def run(unet: Any, scheduler: Any, x: Array, steps: int, **options: Any) -> Array:
    """diffusers' own loop."""
    scheduler.set_timesteps(steps)
    state = torch.from_numpy(x)
    for t in scheduler.timesteps:
        state = scheduler.step(evaluate(unet, state, t), t, state, **options).prev_sample
    return state.numpy()


def ours(editor: hspace.Editor, x: Array, t: Array) -> Array:
    """The bundle's ε, the head once over every trunk sample."""
    h, temb, *skips = editor.engine.run("trunk", {"x": x, "t": t.astype(np.int32)})
    named = {f"skip_{i}": s for i, s in enumerate(skips)}
    return editor.engine.run("head", {"h": h, "temb": temb, "source": np.arange(len(x)), **named})[0]


# --- the network --------------------------------------------------------------------------------------


def as_eps(editor: hspace.Editor, out: Array, x: Array, t: Array) -> Array:
    """What diffusers' DDIMScheduler makes of the output, in float64: its own 1 − ᾱ_0 is off by 1.7e-4 of itself."""
    manifest = editor.bundle.manifest
    ab = manifest.schedules.image.build().alphas_cumprod[t][:, None, None, None]
    alpha, sigma, kind = np.sqrt(ab), np.sqrt(1 - ab), manifest.provenance.config["prediction_type"]
    out, x = out.astype(np.float64), x.astype(np.float64)
    return alpha * out + sigma * x if kind == "v_prediction" else (x - alpha * out) / sigma if kind == "sample" else out


@pytest.mark.parametrize(
    ("name", "precision", "limit"),
    [*((n, "fp32", SINGLE) for n in MODELS), ("v_prediction", "fp16", HALF)],
)
def test_network(editor, rng, name: str, precision: str, limit: float) -> None:
    """ε at timesteps of every size, each sample at its own."""
    x, total = noise(rng, 5), MODELS[name][1].get("num_train_timesteps", 1000)
    t = np.array([0, total - 1, *rng.integers(0, total, 3)])
    e, out = editor(name, precision), evaluate(network(name), torch.from_numpy(x), torch.from_numpy(t)).numpy()
    check(f"{name} {precision} network", ours(e, x, t), as_eps(e, out, x, t), limit)


def test_head_reads_its_source(editor, rng) -> None:
    """The two skips that turn v into ε follow `source` too."""
    e, x, t = editor("v_prediction"), noise(rng, 3), np.array([10, 500, 900])
    h, temb, *skips = e.engine.run("trunk", {"x": x, "t": t.astype(np.int32)})
    named, source = {f"skip_{i}": s for i, s in enumerate(skips)}, np.array([2, 0, 2, 1])
    eps = e.engine.run("head", {"h": h[source], "temb": temb, "source": source, **named})[0]
    check("head by source", eps, ours(e, x, t)[source], SINGLE)


def test_old_names_and_bin(saved, rng, tmp_path: Path) -> None:
    """Attention's tensors under the names of the published google models, in a .bin; in PyTorch alone."""
    folder = Path(shutil.copytree(saved("epsilon"), tmp_path / "old"))
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    state = network("epsilon").state_dict()
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        state = {k.replace(f".{new}.", f".{old}."): v for k, v in state.items()}
    assert "mid_block.attentions.0.proj_attn.weight" in state
    torch.save(state, folder / "diffusion_pytorch_model.bin")
    model = hook.load_model(folder, attributes={}, settings=Settings())
    x, t = torch.from_numpy(noise(rng, 2)), torch.tensor([3, 700], dtype=torch.int32)
    with torch.no_grad():
        h, temb, *skips = model.parts["trunk"].module(x, t)
        eps = model.parts["head"].module(h, temb, torch.arange(2), *skips)
    check("old names", eps.numpy(), evaluate(network("epsilon"), x, t).numpy(), SINGLE)
    assert model.sources["checkpoint"].file == "diffusion_pytorch_model.bin"


# --- runs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim(editor, rng, spacing: str, clip: bool) -> None:
    x, scheduler = noise(rng, 2), DDIMScheduler(timestep_spacing=spacing, clip_sample=clip)
    got = editor("epsilon", scheduler=scheduler).decode(Latent(x), preset="official", steps=STEPS, output="float32")
    check(f"DDIM {spacing} clip={clip}", got, run(network("epsilon"), scheduler, x, STEPS), RUN)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim_inversion(editor, rng, spacing: str, clip: bool) -> None:
    x, scheduler = noise(rng, 2).clip(-1, 1), DDIMInverseScheduler(timestep_spacing=spacing, clip_sample=clip)
    got = editor("epsilon", scheduler=scheduler).encode(x, preset="official", steps=STEPS).x_T
    check(f"DDIM inversion {spacing} clip={clip}", got, run(network("epsilon"), scheduler, x, STEPS), RUN)


DDPM = [
    *((v, s, c) for v in ("fixed_small", "fixed_large") for s in ("leading", "linspace") for c in (False, True)),
    ("fixed_small_log", "leading", True),
    ("fixed_small", "trailing", True),  # fixed_large ends in noise there: docs/decisions/0008
]


def given_noise(monkeypatch: pytest.MonkeyPatch, draws: Array) -> None:
    """Has DDPMScheduler take these draws, in turn."""
    left = iter(draws)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.from_numpy(next(left))
    )


@pytest.mark.parametrize(("variance", "spacing", "clip"), DDPM)
def test_ddpm(editor, rng, monkeypatch: pytest.MonkeyPatch, variance: str, spacing: str, clip: bool) -> None:
    scheduler = DDPMScheduler(variance_type=variance, timestep_spacing=spacing, clip_sample=clip)
    x, draws = noise(rng, 2), noise(rng, STEPS, 2)
    e = editor("epsilon", scheduler=scheduler)
    got = e.decode(Latent(x), preset="ddpm", steps=STEPS, noise=draws, output="float32")
    given_noise(monkeypatch, draws)
    check(f"DDPM {variance} {spacing} clip={clip}", got, run(network("epsilon"), scheduler, x, STEPS), RUN)


@pytest.mark.parametrize("name", ["v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
def test_other_predictions(editor, rng, monkeypatch: pytest.MonkeyPatch, name: str, clip: bool) -> None:
    """Through ε, against diffusers' own formulae for each kind."""
    settings, x, draws = MODELS[name][1] | {"clip_sample": clip}, noise(rng, 2), noise(rng, STEPS, 2)
    ddpm, unet = DDPMScheduler(**settings), network(name)
    e, options = editor(name, scheduler=ddpm), {"steps": STEPS, "output": "float32"}
    expected = run(unet, DDIMScheduler(**settings), x, STEPS)
    check(f"{name} DDIM clip={clip}", e.decode(Latent(x), preset="official", **options), expected, RUN)
    given_noise(monkeypatch, draws)
    got = e.decode(Latent(x), preset="ddpm", noise=draws, **options)
    check(f"{name} DDPM clip={clip}", got, run(unet, ddpm, x, STEPS), RUN)


# --- what a bundle has --------------------------------------------------------------------------------


def test_presets(editor) -> None:
    def presets(name: str) -> dict[str, Any]:
        found = editor(name).bundle.manifest
        assert found.default_preset == "asymmetric"
        return {k: msgspec.structs.astuple(p) for k, p in found.presets.items()}

    def few(*phases: int) -> dict[str, Any]:
        runs = {"fast": ("dpmpp_2m", 6), "balanced": ("dpmpp_2m", 10), "exact": ("bdia", 20)}
        runs["asymmetric"] = ("dpmpp_2m", 40)
        return {k: (n, n, None, sampler, "logsnr", False, *phases) for k, (sampler, n) in runs.items()}

    assert presets("epsilon") == {
        **few(500, 200),
        "asyrp": (40, 40, None, "ddim", "asyrp", False, 500, 200),
        "official": (50, 50, None, "ddim", "leading", True, 0, 0),
        "ddpm": (50, 1000, None, "ddpm", "leading", True, 0, 0),
    }
    assert presets("sample") == {
        **few(50, 20),
        "asyrp": (40, 40, None, "ddim", "asyrp", False, 50, 20),
        "official": (50, 50, None, "ddim", "leading", True, 0, 0),
        "ddpm": (50, 100, None, "ddpm", "leading", True, 0, 0),
    }
    assert list(presets("learned")) == ["asyrp", "official", "fast", "balanced", "exact", "asymmetric"]
    assert editor("v_prediction").bundle.manifest.provenance.config["prediction_type"] == "v_prediction"


@pytest.mark.parametrize("name", MODELS)
def test_schedule(editor, name: str) -> None:
    """The library's, which are float32."""
    schedule = editor(name).bundle.manifest.schedules.image.build()
    check(f"{name} ᾱ", schedule.alphas_cumprod, DDPMScheduler(**MODELS[name][1]).alphas_cumprod.numpy(), 1e-5)


def test_trained_betas(saved, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved("epsilon"), tmp_path / "betas"))
    path, betas = folder / "scheduler_config.json", np.geomspace(1e-4, 0.3, 30).tolist()
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trained_betas": betas, "num_train_timesteps": 30}))
    model = hook.load_model(folder, attributes={}, settings=Settings())
    assert np.allclose(model.schedules.image.build().alphas_cumprod, np.cumprod(1 - np.array(betas)), rtol=1e-12)
    assert [p.decode_steps for p in model.presets.values()] == [30, 30, 30, 6, 10, 20, 30]


def test_attribute(editor, rng) -> None:
    """A DeltaBlock of the DDPM layout, along Asyrp's own preset."""
    e, x = editor("epsilon"), noise(rng, 1)
    assert e.bundle.manifest.attributes["smile"].n_train == 40
    plain, edited = (e.decode(Latent(x), edits, steps=4, output="float32") for edits in ({}, {"smile": 1.0}))
    assert np.isfinite(edited).all() and relative_error(edited, plain) > 1e-3


def test_command_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole command, with no socket to be had: one line, and nothing of the library's."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    torch.manual_seed(0)
    UNet2DModel(
        8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    ).save_pretrained(tmp_path / "model")
    DDPMScheduler().save_pretrained(tmp_path / "model")
    capfd.readouterr()
    monkeypatch.setattr(socket, "socket", refuse)
    result = CliRunner().invoke(
        command, ["diffusers", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--json"], standalone_mode=False
    )
    assert result.exception is None
    assert max(json.loads(result.output)["errors"].values()) <= SINGLE
    assert capfd.readouterr() == ("", "")
