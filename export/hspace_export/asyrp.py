"""The hook for Asyrp: unconditional U-Nets of two code bases, and the DeltaBlocks trained on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from hspace import manifest as contract
from hspace.bundle import Bundle, h_shape
from hspace.checks import check_whole, raise_faults
from hspace.errors import ArgumentError, CheckpointError
from hspace.manifest import Source
from hspace.tensors import tensor_bytes
from torch import nn

from . import architecture
from .checkpoint import StateDict, check_tensors, load, looks_like, put, source, tensors
from .exporter import AttributeData, Model, Settings, few_steps, schedule
from .graph import unet_parts
from .models.ddpm import DdpmConfig, DdpmUNet
from .models.delta import DdpmDelta, ImprovedDelta
from .models.guided import GuidedConfig, GuidedUNet

_WIDE = (1.0, 1.0, 2.0, 2.0, 4.0, 4.0)
_DDPM = {"model_channels": 128, "channel_mult": _WIDE, "num_res_blocks": 2, "attention_levels": (4,)}
_DDPM |= {"out_channels": 3, "resample_with_conv": True}
_GUIDED = {"model_channels": 128, "channel_mult": _WIDE, "num_res_blocks": 1, "attention_levels": (4,)}
_GUIDED |= {"out_channels": 6, "resblock_updown": True, "scale_shift_norm": True, "embed_channels": 512}
_IMAGENET = {**_GUIDED, "model_channels": 256, "num_res_blocks": 2, "attention_levels": (3, 4, 5)}
_IMAGENET |= {"embed_channels": 1024}
# the published models that Asyrp's paper edits, of 256×256 images: layout, and what their weights show
PRESETS: dict[str, tuple[str, dict[str, object]]] = {
    "celebahq256": ("ddpm", _DDPM),
    "church256": ("ddpm", _DDPM),
    "bedroom256": ("ddpm", _DDPM),
    "afhqdog256": ("guided", _GUIDED),
    "ffhq256-p2": ("guided", _GUIDED),
    "celebahq256-p2": ("guided", _GUIDED),
    "metfaces256": ("guided", _GUIDED),
    "imagenet256": ("guided", _IMAGENET),
}
_HEAD_CHANNELS = 64  # of every published network of the guided layout


def load_model(
    checkpoint: Path, *, attributes: Mapping[str, Path], preset: str | None = None, settings: Settings
) -> Model:
    """The U-Net of `checkpoint` (a plain state dict, either layout), with DeltaBlocks by name."""
    content = load(checkpoint)
    state = tensors(content, checkpoint)
    layout = "ddpm" if "temb.dense.0.weight" in state else "guided" if "input_blocks.0.0.weight" in state else None
    if layout is None:
        raise CheckpointError(
            f"{checkpoint}: looks like {looks_like(content)}, expected a DDPM or guided-diffusion U-Net"
        )
    if preset is not None:
        if layout != PRESETS[preset][0]:
            raise CheckpointError(
                f"{checkpoint}: found the {layout} layout, the preset {preset} has the {PRESETS[preset][0]} one"
            )
        heads = _HEAD_CHANNELS if layout == "guided" and settings.num_heads is None else None
        settings = settings.over(Settings(image_size=256, num_head_channels=heads))
    if settings.image_size is None:
        raise ArgumentError(f"{checkpoint}: the weights cannot tell the image size; give --preset or --image-size")
    steps = settings.diffusion_steps or 1000
    image = schedule(settings.schedule or "linear", steps, scaled=layout == "guided")
    config = _config(checkpoint, state, layout, settings)
    if preset is not None:
        faults = architecture.differences(config, PRESETS[preset][1])
        raise_faults(CheckpointError, f"{checkpoint}: not the network of the preset {preset}", faults)
    unet = _network(checkpoint, state, config)
    channels, embed = int(unet.config.channel_mult[-1] * unet.config.model_channels), unet.config.embed_channels
    blocks = {
        name: delta_block(path, channels=channels, embed=embed, layout=layout, n_train=settings.n_train)
        for name, path in attributes.items()
    }
    official = _official(steps)
    return Model(
        family="asyrp",
        image_size=settings.image_size,
        parts=unet_parts(_eps_only(unet), settings.image_size, 0),
        schedules=contract.Schedules(image=image),
        presets={"official": official, **few_steps("asyrp", official, image)},
        config={"layout": layout, "unet": asdict(unet.config)},
        sources={
            "checkpoint": source(checkpoint),
            **{f"attribute {name}": source(path) for name, path in attributes.items()},
        },
        attributes=blocks,
        licence=settings.licence or "",
    )


def _official(timesteps: int) -> contract.Preset:
    """40 steps each way, as the published attributes were trained; t_edit and t_boost of the official scripts, which
    have 1000 timesteps.
    """
    steps = min(40, timesteps)
    return contract.Preset(
        encode_steps=steps,
        decode_steps=steps,
        spacing="asyrp",
        clip=False,
        t_edit=round(0.5 * timesteps),
        t_boost=round(0.2 * timesteps),
    )


def _config(checkpoint: Path, state: StateDict, layout: str, settings: Settings) -> DdpmConfig | GuidedConfig:
    """The architecture, of what the weights show and the settings say."""
    config: DdpmConfig | GuidedConfig
    try:
        if layout == "ddpm":
            if settings.attention_order == "new" or settings.rescale_timesteps:
                raise ArgumentError(
                    "attention_order and rescale_timesteps: of guided-diffusion networks, and this has the ddpm layout"
                )
            config = architecture.ddpm(state)
        else:
            if settings.num_head_channels is None and settings.num_heads is None:
                raise ArgumentError("the weights cannot tell the attention heads; give --preset or --num-head-channels")
            if "label_emb.weight" in state:
                raise CheckpointError("label_emb.weight: a class-conditional network, expected an unconditional one")
            config = architecture.guided(
                state,
                num_heads=settings.num_heads or 1,
                num_head_channels=settings.num_head_channels,
                attention_order=settings.attention_order or "legacy",
                time_scale=1000 / (settings.diffusion_steps or 1000) if settings.rescale_timesteps else 1.0,
            )
            attends = [config.channel_mult[i] for i in {*config.attention_levels, len(config.channel_mult) - 1}]
            widths = [m * config.model_channels for m in attends]
            architecture.check_heads(widths, config.num_heads, config.num_head_channels)
        if config.out_channels not in (3, 6):
            raise CheckpointError(f"found {config.out_channels} output channels, expected 3, or 6 with sigma")
    except (CheckpointError, ArgumentError) as e:
        raise type(e)(f"{checkpoint}: {e}") from None
    architecture.check_size(settings.image_size or 0, len(config.channel_mult))
    return config


def _network(checkpoint: Path, state: StateDict, config: DdpmConfig | GuidedConfig) -> DdpmUNet | GuidedUNet:
    with torch.device("meta"):  # what the file asks for takes memory once it is seen to have it
        unet = DdpmUNet(config) if isinstance(config, DdpmConfig) else GuidedUNet(config)
    layout = "ddpm" if isinstance(config, DdpmConfig) else "guided"
    check_tensors(checkpoint, unet.state_dict(), state, f"a U-Net of the {layout} layout")
    put(unet, state)
    return unet


def _eps_only(unet: DdpmUNet | GuidedUNet) -> nn.Module:
    """The network with its last convolution cut to ε."""
    if isinstance(unet, DdpmUNet):
        unet.conv_out = eps_only(unet.conv_out)
    else:
        unet.out[2] = eps_only(unet.out[2])
    unet.config = replace(unet.config, out_channels=3)
    return unet


def eps_only(last: nn.Module) -> nn.Conv2d:
    """A last convolution, cut to its first 3 channels, ε: nothing at run time reads a learned sigma."""
    assert isinstance(last, nn.Conv2d) and last.bias is not None
    cut = nn.Conv2d(last.in_channels, 3, 3, padding=1)
    cut.weight.data, cut.bias.data = last.weight.data[:3].clone(), last.bias.data[:3].clone()  # type: ignore[union-attr]
    return cut


def delta_block(path: Path, *, channels: int, embed: int, layout: str, n_train: int | None) -> AttributeData:
    """A DeltaBlock file: its weights under the key '0', beside the optimizer's state.

    channels, embed: of the U-Net's h and temb. layout: its code base, "ddpm" or "guided".
    """
    content = load(path)
    weights = content.get("0") if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"{path}: looks like {looks_like(content)}, expected an Asyrp attribute (weights under '0')"
        )
    state = tensors(weights, path)
    kind = ImprovedDelta if "in_layers.2.weight" in state else DdpmDelta
    if (kind is DdpmDelta) != (layout == "ddpm"):
        raise CheckpointError(f"{path}: an attribute of the other U-Net layout, expected one for the {layout} layout")
    trained = re.search(r"_ngen(\d+)", path.name)
    if n_train is None and trained is None:
        raise ArgumentError(f"{path}: its name does not tell the steps it was trained at (ngen…); give --n-train")
    steps = n_train if n_train is not None else int(trained[1]) if trained else 0
    check_whole(f"{path}: n_train", steps, 1, 1000)
    block = kind(channels, embed)
    check_tensors(path, block.state_dict(), state, f"an attribute for a U-Net of {channels} channels")
    block.load_state_dict(state)
    arrays = {}
    for ours, theirs in kind.parts.items():
        weight = state[f"{theirs}.weight"].numpy()
        arrays[f"{ours}.weight"] = weight.reshape(weight.shape[:2])  # 1×1 convolutions as matrices
        arrays[f"{ours}.bias"] = state[f"{theirs}.bias"].numpy()
    return AttributeData("delta_block", "asymmetric", arrays, {"eps": str(kind.eps)}, steps, block.eval())


def delta_block_file(path: Path, bundle: Bundle, n_train: int | None) -> tuple[bytes, int, Source]:
    """A DeltaBlock's file as a bundle keeps it, for a bundle that is there: its bytes, n_train, and where it came from.

    Raises CheckpointError where the block is of the other layout, or not of the model's widths.
    """
    channels, _, _, embed = h_shape(bundle)
    guided = bundle.manifest.provenance.config.get("layout", "guided") == "guided"  # DiffAE's U-Net is that too
    block = delta_block(path, channels=channels, embed=embed, layout="guided" if guided else "ddpm", n_train=n_train)
    assert block.n_train is not None
    return tensor_bytes(block.arrays, block.metadata), block.n_train, source(path)
