"""The hook for Diffusion Autoencoders: the official Lightning checkpoints."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from hspace import manifest as contract
from hspace.checks import raise_faults
from hspace.errors import ArgumentError, CheckpointError
from numpy.typing import NDArray

from . import architecture, hyper_parameters
from .celeba import CELEBA_NAMES
from .checkpoint import StateDict, check_tensors, load, looks_like, put, read_text, source, tensors
from .exporter import AttributeData, Model, Settings, few_steps, schedule
from .graph import InFloat32, Part, unet_parts
from .models.diffae import Encoder, EncoderConfig, LatentNet
from .models.guided import GuidedConfig, GuidedUNet

# the published models (templates.py and templates_latent.py of phizaz/diffae): image size, channels, their multipliers
PRESETS: dict[str, tuple[int, int, tuple[float, ...]]] = {
    "ffhq256": (256, 128, (1, 1, 2, 2, 4, 4)),
    "ffhq128": (128, 128, (1, 1, 2, 3, 4)),
    "horse128": (128, 128, (1, 1, 2, 3, 4)),
    "bedroom128": (128, 128, (1, 1, 2, 3, 4)),
    "celeba64": (64, 64, (1, 2, 4, 8)),
}
_EMA = "ema_model."
_DEFAULTS = Settings(
    num_heads=1,
    condition_bias=1.0,
    attention_order="legacy",
    schedule="linear",
    diffusion_steps=1000,
    latent_schedule="const0.008",
)


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
    content = load(checkpoint)
    ema = tensors(content, checkpoint, _EMA)
    if "encoder.input_blocks.0.0.weight" not in ema:
        raise CheckpointError(
            f"{checkpoint}: looks like {looks_like(content)}, expected a Diffusion Autoencoder ({_EMA}*)"
        )
    latent_path = checkpoint if latent is None else latent
    latent_found, latent_ema = (content, ema) if latent is None else (load(latent), {})
    if latent is not None:
        latent_ema = tensors(latent_found, latent, _EMA)
    sampling = latent is not None or any(k.startswith("latent_net.") for k in ema)
    own, warnings = hyper_parameters.read(content, checkpoint, "image", settings)
    own = _check_preset(own, preset, checkpoint)
    if sampling:
        more, unknown = hyper_parameters.read(latent_found, latent_path, "latent", settings)
        own, warnings = more.over(own), list(dict.fromkeys(warnings + unknown))
    settings = settings.over(own).over(_DEFAULTS)
    size = settings.image_size
    if size is None:
        raise ArgumentError(f"{checkpoint}: has no hyper_parameters; give --preset or --image-size")
    schedules = _schedules(settings, sampling)
    roles = {"checkpoint": checkpoint, "latent": latent, "classifier": classifier}
    sources = {role: source(path) for role, path in roles.items() if path is not None}

    unet, encoder = _networks(checkpoint, ema, settings, preset)
    hyper_parameters.check_shown(content, checkpoint, (unet.config, encoder.config), size)
    parts, config, z_channels = _parts(unet, encoder, size)
    statistics = _statistics(latent_path, latent_found, z_channels, required=sampling)
    if sampling:
        net = _latent_net(latent_path, latent_ema, settings, z_channels)
        hyper_parameters.check_shown(latent_found, latent_path, net.config, size)
        z = "float32", ("N", z_channels)
        parts["latent"] = Part(InFloat32(net), {"z_sem": z, "t": ("int32", ("N",))}, {"eps": "float32"})
        config["latent"] = asdict(net.config)
    attributes, told = _attributes(classifier, class_names, z_channels, statistics)
    return Model(
        family="diffae",
        image_size=size,
        parts=parts,
        schedules=schedules,
        presets=_presets(schedules),
        config=config,
        sources=sources,
        z_channels=z_channels,
        z_statistics=statistics,
        attributes=attributes,
        licence=settings.licence or "",
        warnings=warnings + told,
    )


def _parts(unet: GuidedUNet, encoder: Encoder, size: int) -> tuple[dict[str, Part], dict[str, Any], int]:
    """The autoencoder's components, what the provenance says of them, and the length of z_sem."""
    z_channels = unet.config.z_channels
    parts = unet_parts(unet, size, z_channels)
    parts["encoder"] = Part(InFloat32(encoder), {"x": ("float32", ("N", 3, size, size))}, {"z_sem": "float32"})
    return parts, {"unet": asdict(unet.config), "encoder": asdict(encoder.config)}, z_channels


def _schedules(settings: Settings, sampling: bool) -> contract.Schedules:
    steps = settings.diffusion_steps or 1000
    latent = schedule(settings.latent_schedule or "", settings.latent_diffusion_steps or steps) if sampling else None
    return contract.Schedules(image=schedule(settings.schedule or "", steps), latent=latent)


def _check_preset(hyper: Settings, preset: str | None, checkpoint: Path) -> Settings:
    """The settings of hyper_parameters and of a preset, which must not disagree."""
    if preset is None:
        return hyper
    published = Settings(image_size=PRESETS[preset][0], num_heads=1, schedule="linear", diffusion_steps=1000)
    for name, wanted in msgspec.structs.asdict(published).items():
        if wanted is not None and getattr(hyper, name) not in (None, wanted):
            raise CheckpointError(
                f"{checkpoint}: its hyper_parameters say {name.replace('_', ' ')} {getattr(hyper, name)}, "
                f"the preset {preset} says {wanted}"
            )
    return hyper.over(published)


def _networks(checkpoint: Path, ema: StateDict, settings: Settings, preset: str | None) -> tuple[GuidedUNet, Encoder]:
    own = {k: v for k, v in ema.items() if not k.startswith(("encoder.", "latent_net."))}
    enc = {k.removeprefix("encoder."): v for k, v in ema.items() if k.startswith("encoder.")}
    size, heads, order = settings.image_size or 0, settings.num_heads or 1, settings.attention_order or "legacy"
    try:
        config = architecture.guided(
            own,
            num_heads=heads,
            num_head_channels=settings.num_head_channels,
            attention_order=order,
            time_scale=1000 / (settings.diffusion_steps or 1000) if settings.rescale_timesteps else 1.0,
        )
        if config.z_channels == 0:
            raise CheckpointError("time_embed.time_embed.0.weight: missing: the U-Net takes no z_sem")
        if config.out_channels != 3 or not config.scale_shift_norm:
            raise CheckpointError(
                "found a U-Net with a learned variance or without the time's shift, expected the published kind"
            )
        enc_res = settings.enc_num_res_blocks or config.num_res_blocks
        enc_config = architecture.encoder(
            enc,
            num_res_blocks=enc_res,
            num_heads=heads,
            num_head_channels=settings.num_head_channels,
            attention_order=order,
        )
    except CheckpointError as e:
        raise CheckpointError(f"{checkpoint}: {e}") from None
    if preset is not None:
        _check_published(checkpoint, preset, config, enc_config)
    widths = {m * config.model_channels for m in config.channel_mult} | {
        m * enc_config.model_channels for m in enc_config.channel_mult
    }
    architecture.check_heads(widths, heads, settings.num_head_channels)
    architecture.check_size(size, max(len(config.channel_mult), len(enc_config.channel_mult)))
    with torch.device("meta"):  # what the file asks for takes memory once it is seen to have it
        unet, encoder = GuidedUNet(config), Encoder(enc_config)
    expected = unet.state_dict() | {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    given = {k: v for k, v in ema.items() if not k.startswith("latent_net.")}
    check_tensors(checkpoint, expected, given, "a Diffusion Autoencoder")
    put(unet, own)
    put(encoder, enc)
    return unet, encoder


def _check_published(checkpoint: Path, preset: str, unet: GuidedConfig, encoder: EncoderConfig) -> None:
    """Refuses weights of another network than the published one."""
    size, channels, mult = PRESETS[preset]
    both = {"model_channels": channels, "num_res_blocks": 2, "z_channels": 512}
    attention = architecture.attention_levels(size, (16,), len(mult))
    expected = {**both, "channel_mult": mult, "attention_levels": attention}
    faults = architecture.differences(
        unet, {**expected, "embed_channels": 512, "resblock_updown": True, "num_head_channels": None}
    )
    faults += [
        f"encoder's {d}" for d in architecture.differences(encoder, {**expected, "channel_mult": (*mult, mult[-1])})
    ]
    raise_faults(CheckpointError, f"{checkpoint}: not the network of the preset {preset}", faults)


def _latent_net(path: Path, ema: StateDict, settings: Settings, z_channels: int) -> LatentNet:
    own = {k.removeprefix("latent_net."): v for k, v in ema.items() if k.startswith("latent_net.")}
    if not own:
        raise CheckpointError(f"{path}: has no {_EMA}latent_net.*, expected the latent DDIM's network")
    bias = 1.0 if settings.condition_bias is None else settings.condition_bias
    steps = settings.latent_diffusion_steps or settings.diffusion_steps or 1000
    scale = 1000 / steps if settings.latent_rescale_timesteps else 1.0
    try:
        config = architecture.latent(own, condition_bias=bias, time_scale=scale)
    except CheckpointError as e:
        raise CheckpointError(f"{path}: {e}") from None
    if config.channels != z_channels:
        raise CheckpointError(f"{path}: a latent DDIM of {config.channels} numbers, the autoencoder has {z_channels}")
    with torch.device("meta"):
        net = LatentNet(config)
    check_tensors(path, net.state_dict(), own, "a latent DDIM")
    put(net, own)
    return net


def _statistics(
    path: Path, content: Any, z_channels: int, required: bool = False
) -> dict[str, NDArray[np.float32]] | None:
    """Mean and std of z_sem over the training set, where the file has them."""
    state = tensors(content, path, "conds_")
    if not {"mean", "std"} <= state.keys():
        if required:
            raise CheckpointError(f"{path}: conds_mean and conds_std: missing, and the latent DDIM needs them")
        return None
    for name in ("mean", "std"):
        if state[name].numel() != z_channels:
            raise CheckpointError(f"{path}: conds_{name}: found {list(state[name].shape)}, expected [1, {z_channels}]")
    return {k: state[k].reshape(z_channels).numpy() for k in ("mean", "std")}


def _attributes(
    path: Path | None, class_names: Path | None, z_channels: int, statistics: dict[str, NDArray[np.float32]] | None
) -> tuple[dict[str, AttributeData], list[str]]:
    """The averaged linear classifier's rows, each a z_direction, and warnings; neither where there is no file."""
    if path is None:
        return {}, []
    content = load(path)
    state = tensors(content, path, "ema_classifier.")
    weight, bias = state.get("weight"), state.get("bias")
    if weight is None or bias is None:
        raise CheckpointError(
            f"{path}: looks like {looks_like(content)}, expected a DiffAE classifier (ema_classifier.*)"
        )
    _, warnings = hyper_parameters.read(content, path, "classifier", Settings())
    if weight.ndim != 2 or weight.shape[1] != z_channels or bias.shape != weight.shape[:1]:
        shapes = f"{list(weight.shape)} and {list(bias.shape)}"
        raise CheckpointError(f"{path}: ema_classifier: found {shapes}, expected [K, {z_channels}] and [K]")
    statistics = _statistics(path, content, z_channels) or statistics
    if statistics is None:
        raise CheckpointError(f"{path}: conds_mean and conds_std: missing, and no other checkpoint has them")
    names = _names(content, path, class_names, len(weight))
    arrays = [
        {"weight": w.numpy(), "bias": b.reshape(1).numpy(), **statistics} for w, b in zip(weight, bias, strict=True)
    ]
    return {name: AttributeData("z_direction", "none", a) for name, a in zip(names, arrays, strict=True)}, warnings


def _names(content: Any, path: Path, class_names: Path | None, count: int) -> list[str]:
    if class_names is not None:
        text = read_text(class_names, "a text file, a class name per line")
        names = [line.strip() for line in text.splitlines() if line.strip()]
    elif isinstance(content.get("classes"), list):
        names = content["classes"]
    else:
        names = list(CELEBA_NAMES) if count == len(CELEBA_NAMES) else [f"class_{i}" for i in range(count)]
    distinct = len({n for n in names if isinstance(n, str)})
    if len(names) != count or distinct != count:
        raise CheckpointError(f"{class_names or path}: found {distinct} distinct class names, expected {count}")
    return names


def _presets(schedules: contract.Schedules) -> dict[str, contract.Preset]:
    """T of the official notebooks: encode 250, decode 100 (manipulate.ipynb), latent 200 (sample.ipynb).

    Over other timesteps than 1000, as many of these as an integer stride gives.
    """

    def at_most(steps: int, schedule: contract.AnySchedule) -> int:
        total = schedule.build().timesteps
        return len(range(0, total, -(-total // min(steps, total))))

    image, latent = schedules.image, schedules.latent
    official = contract.Preset(
        encode_steps=at_most(250, image),
        decode_steps=at_most(100, image),
        latent_steps=None if latent is None else at_most(200, latent),
        spacing="diffae",
        clip=True,
    )
    return {"official": official, **few_steps("diffae", official, image)}
