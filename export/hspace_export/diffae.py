"""The hook for Diffusion Autoencoders: the official Lightning checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hspace import manifest as contract
from hspace.errors import ArgumentError, CheckpointError
from numpy.typing import NDArray

from . import architecture
from .celeba import CELEBA_NAMES
from .checkpoint import StateDict, check_tensors, load, looks_like, read_text, source, tensors
from .exporter import AttributeData, Model, Settings, few_steps, schedule, settings_of
from .graph import InFloat32, Part, unet_parts
from .models.diffae import Encoder, LatentNet
from .models.guided import GuidedUNet

# the published models (templates.py and templates_latent.py of phizaz/diffae): image size, channel multipliers
PRESETS: dict[str, tuple[int, tuple[float, ...]]] = {
    "ffhq256": (256, (1, 1, 2, 2, 4, 4)),
    "ffhq128": (128, (1, 1, 2, 3, 4)),
    "horse128": (128, (1, 1, 2, 3, 4)),
    "bedroom128": (128, (1, 1, 2, 3, 4)),
    "celeba64": (64, (1, 2, 4, 8)),
}
_EMA = "ema_model."
_DEFAULTS = Settings(num_heads=1, condition_bias=1.0, schedule="linear", latent_schedule="const0.008")


def _hyper_parameters(found: Any, path: Path) -> Settings:
    """What the training configuration in a Lightning file says of the things that weights cannot tell."""
    hyper = _mapping(found, "hyper_parameters")
    latent = _mapping(_mapping(hyper, "model_conf"), "latent_net_conf")
    values = {
        "image_size": hyper.get("img_size"),
        "num_heads": hyper.get("net_beatgans_attn_head"),
        "enc_num_res_blocks": hyper.get("net_enc_num_res_blocks"),
        "condition_bias": latent.get("condition_bias"),
        "schedule": hyper.get("beta_scheduler"),
        "latent_schedule": hyper.get("latent_beta_scheduler") if latent else None,
    }
    return settings_of(values, f"{path}: hyper_parameters")


def _mapping(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = found.get(key)
    return value if isinstance(value, Mapping) else {}


def load_model(
    checkpoint: Path,
    *,
    latent: Path | None = None,
    classifier: Path | None = None,
    class_names: Path | None = None,
    preset: str | None = None,
    settings: Settings,
) -> Model:
    """The averaged networks of `checkpoint`; the latent DDIM's from `latent`, or from the same file."""
    found = load(checkpoint)
    ema = tensors(found, checkpoint, _EMA)
    if "encoder.input_blocks.0.0.weight" not in ema:
        raise CheckpointError(
            f"{checkpoint}: looks like {looks_like(found)}, expected a Diffusion Autoencoder ({_EMA}*)"
        )
    hyper = _hyper_parameters(found, checkpoint)
    latent_found, latent_ema = (found, ema) if latent is None else (load(latent), {})
    if latent is not None:
        latent_ema = tensors(latent_found, latent, _EMA)
        hyper = _only(_hyper_parameters(latent_found, latent), ("condition_bias", "latent_schedule")).over(hyper)
    settings = settings.over(_check_preset(hyper, preset, checkpoint)).over(_DEFAULTS)
    if settings.image_size is None:
        raise ArgumentError(f"{checkpoint}: has no hyper_parameters; give --preset or --image-size")
    roles = {"checkpoint": checkpoint, "latent": latent, "classifier": classifier}
    sources = {role: source(path) for role, path in roles.items() if path is not None}

    unet, encoder = _networks(checkpoint, ema, settings, preset)
    z_channels = unet.config.z_channels
    parts = unet_parts(unet, settings.image_size, z_channels)
    size, z = settings.image_size, ("float32", ("N", z_channels))
    parts["encoder"] = Part(InFloat32(encoder), {"x": ("float32", ("N", 3, size, size))}, {"z_sem": "float32"})
    config: dict[str, Any] = {"unet": asdict(unet.config), "encoder": asdict(encoder.config)}

    net = _latent_net(latent or checkpoint, latent_ema, settings, required=latent is not None)
    if net is not None:
        parts["latent"] = Part(InFloat32(net), {"z_sem": z, "t": ("int32", ("N",))}, {"eps": "float32"})
        config["latent"] = asdict(net.config)
    statistics = _statistics(latent or checkpoint, tensors(latent_found, latent or checkpoint), z_channels)
    if net is not None and statistics is None:
        raise CheckpointError(
            f"{latent or checkpoint}: conds_mean and conds_std: missing, and the latent DDIM needs them"
        )

    attributes = {} if classifier is None else _attributes(classifier, class_names, z_channels, statistics)
    image_schedule = schedule(settings.schedule or "linear")
    latent_schedule = schedule(settings.latent_schedule or "const0.008") if net is not None else None
    return Model(
        family="diffae",
        image_size=size,
        parts=parts,
        schedules=contract.Schedules(image=image_schedule, latent=latent_schedule),
        presets=_presets(net is not None, image_schedule),
        config=config,
        sources=sources,
        z_channels=z_channels,
        z_statistics=statistics,
        attributes=attributes,
        licence=settings.licence or "",
    )


def _only(settings: Settings, names: tuple[str, ...]) -> Settings:
    """`settings` with just these fields."""
    return Settings(**{name: getattr(settings, name) for name in names})


def _check_preset(hyper: Settings, preset: str | None, checkpoint: Path) -> Settings:
    if preset is None:
        return hyper
    size = PRESETS[preset][0]
    if hyper.image_size not in (None, size):
        raise CheckpointError(
            f"{checkpoint}: its hyper_parameters say image size {hyper.image_size}, the preset {preset} says {size}"
        )
    return hyper.over(Settings(image_size=size))


def _networks(checkpoint: Path, ema: StateDict, settings: Settings, preset: str | None) -> tuple[GuidedUNet, Encoder]:
    own = {k: v for k, v in ema.items() if not k.startswith(("encoder.", "latent_net."))}
    enc = {k.removeprefix("encoder."): v for k, v in ema.items() if k.startswith("encoder.")}
    heads = settings.num_heads or 1
    try:
        config = architecture.guided(own, num_heads=heads, num_head_channels=settings.num_head_channels)
        if config.z_channels == 0:
            raise CheckpointError("time_embed.time_embed.0.weight: missing: the U-Net takes no z_sem")
        enc_res = settings.enc_num_res_blocks or config.num_res_blocks
        enc_config = architecture.encoder(enc, num_res_blocks=enc_res, num_heads=heads)
    except CheckpointError as e:
        raise CheckpointError(f"{checkpoint}: {e}") from None
    if preset is not None and config.channel_mult != PRESETS[preset][1]:
        raise CheckpointError(
            f"{checkpoint}: channel multipliers {config.channel_mult}, preset {preset} says {PRESETS[preset][1]}"
        )
    widths = {m * config.model_channels for m in config.channel_mult} | {
        m * enc_config.model_channels for m in enc_config.channel_mult
    }
    architecture.check_heads(widths, heads, settings.num_head_channels)
    architecture.check_size(settings.image_size or 0, max(len(config.channel_mult), len(enc_config.channel_mult)))
    unet, encoder = GuidedUNet(config), Encoder(enc_config)
    expected = unet.state_dict() | {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    given = {k: v for k, v in ema.items() if not k.startswith("latent_net.")}
    check_tensors(checkpoint, expected, given, "a Diffusion Autoencoder")
    unet.load_state_dict(own)
    encoder.load_state_dict(enc)
    return unet.eval(), encoder.eval()


def _latent_net(path: Path, ema: StateDict, settings: Settings, *, required: bool) -> LatentNet | None:
    own = {k.removeprefix("latent_net."): v for k, v in ema.items() if k.startswith("latent_net.")}
    if not own:
        if required:
            raise CheckpointError(f"{path}: has no {_EMA}latent_net.*, expected the latent DDIM's network")
        return None
    try:
        bias = 1.0 if settings.condition_bias is None else settings.condition_bias
        net = LatentNet(architecture.latent(own, condition_bias=bias))
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from None
    check_tensors(path, net.state_dict(), own, "a latent DDIM")
    net.load_state_dict(own)
    return net.eval()


def _statistics(path: Path, state: StateDict, z_channels: int) -> dict[str, NDArray[np.float32]] | None:
    """Mean and std of z_sem over the training set, where the file has them."""
    if not {"conds_mean", "conds_std"} <= state.keys():
        return None
    for name in ("conds_mean", "conds_std"):
        if state[name].numel() != z_channels:
            raise CheckpointError(f"{path}: {name}: found {list(state[name].shape)}, expected [1, {z_channels}]")
    return {k: state[f"conds_{k}"].reshape(z_channels).numpy() for k in ("mean", "std")}


def _attributes(
    path: Path, class_names: Path | None, z_channels: int, statistics: dict[str, NDArray[np.float32]] | None
) -> dict[str, AttributeData]:
    """The averaged linear classifier's rows, each a z_direction."""
    found = load(path)
    state = tensors(found, path)
    weight, bias = state.get("ema_classifier.weight"), state.get("ema_classifier.bias")
    if weight is None or bias is None:
        raise CheckpointError(
            f"{path}: looks like {looks_like(found)}, expected a DiffAE classifier (ema_classifier.*)"
        )
    if weight.ndim != 2 or weight.shape[1] != z_channels or bias.shape != weight.shape[:1]:
        shapes = f"{list(weight.shape)} and {list(bias.shape)}"
        raise CheckpointError(f"{path}: ema_classifier: found {shapes}, expected [K, {z_channels}] and [K]")
    statistics = _statistics(path, state, z_channels) or statistics
    if statistics is None:
        raise CheckpointError(f"{path}: conds_mean and conds_std: missing, and no other checkpoint has them")
    names = _names(found, path, class_names, len(weight))
    arrays = [
        {"weight": w.numpy(), "bias": b.reshape(1).numpy(), **statistics} for w, b in zip(weight, bias, strict=True)
    ]
    return {name: AttributeData("z_direction", "none", a) for name, a in zip(names, arrays, strict=True)}


def _names(found: Any, path: Path, class_names: Path | None, count: int) -> list[str]:
    if class_names is not None:
        text = read_text(class_names, "a text file, a class name per line")
        names = [line.strip() for line in text.splitlines() if line.strip()]
    elif isinstance(found.get("classes"), list):
        names = [str(n) for n in found["classes"]]
    else:
        names = list(CELEBA_NAMES) if count == len(CELEBA_NAMES) else [f"class_{i}" for i in range(count)]
    if len(names) != count or len(set(names)) != count:
        raise CheckpointError(f"{class_names or path}: found {len(set(names))} distinct class names, expected {count}")
    return names


def _presets(sampling: bool, schedule: contract.AnySchedule) -> dict[str, contract.Preset]:
    """T of the official notebooks: encode 250, decode 100 (manipulate.ipynb), latent 200 (sample.ipynb)."""
    official = contract.Preset(
        encode_steps=250, decode_steps=100, latent_steps=200 if sampling else None, spacing="diffae", clip=True
    )
    return {"official": official, **few_steps("diffae", official, schedule)}
