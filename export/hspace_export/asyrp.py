"""The hook for Asyrp: unconditional U-Nets of two code bases, and the DeltaBlocks trained on them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from hspace import manifest as contract
from hspace.bundle import Bundle, h_shape
from hspace.errors import ArgumentError, CheckpointError
from hspace.manifest import Source
from hspace.tensors import tensor_bytes
from torch import nn

from . import architecture
from .checkpoint import StateDict, check_tensors, load, looks_like, source, tensors
from .exporter import AttributeData, Model, Settings, few_steps, schedule
from .graph import unet_parts
from .models.ddpm import DdpmUNet
from .models.delta import DdpmDelta, ImprovedDelta
from .models.guided import GuidedUNet

# the published models that Asyrp's paper edits: layout, and channels per attention head where the layout has heads
PRESETS: dict[str, tuple[str, int | None]] = {
    "celebahq256": ("ddpm", None),
    "church256": ("ddpm", None),
    "bedroom256": ("ddpm", None),
    "afhqdog256": ("guided", 64),
    "ffhq256-p2": ("guided", 64),
    "celebahq256-p2": ("guided", 64),
    "metfaces256": ("guided", 64),
    "imagenet256": ("guided", 64),
}


def load_model(
    checkpoint: Path, *, attributes: Mapping[str, Path], preset: str | None = None, settings: Settings
) -> Model:
    """The U-Net of `checkpoint` (a plain state dict, either layout), with DeltaBlocks by name."""
    found = load(checkpoint)
    state = tensors(found, checkpoint)
    layout = "ddpm" if "temb.dense.0.weight" in state else "guided" if "input_blocks.0.0.weight" in state else None
    if layout is None:
        raise CheckpointError(
            f"{checkpoint}: looks like {looks_like(found)}, expected a DDPM or guided-diffusion U-Net"
        )
    if preset is not None:
        expected, head_channels = PRESETS[preset]
        if layout != expected:
            raise CheckpointError(
                f"{checkpoint}: found the {layout} layout, the preset {preset} has the {expected} one"
            )
        settings = settings.over(Settings(image_size=256, num_head_channels=head_channels))
    if settings.image_size is None:
        raise ArgumentError(f"{checkpoint}: the weights cannot tell the image size; give --preset or --image-size")
    unet = _network(checkpoint, state, layout, settings)
    channels, embed = int(unet.config.channel_mult[-1] * unet.config.model_channels), unet.config.embed_channels
    blocks = {
        name: delta_block(path, channels=channels, embed=embed, layout=layout, n_train=settings.n_train)
        for name, path in attributes.items()
    }
    config = {"layout": layout, "unet": asdict(unet.config)}
    image_schedule = schedule(settings.schedule or "linear")
    # 40 steps each way, as the published attributes were trained; t_edit and t_boost of the official scripts
    official = contract.Preset(encode_steps=40, decode_steps=40, spacing="asyrp", clip=False, t_edit=500, t_boost=200)
    return Model(
        family="asyrp",
        image_size=settings.image_size,
        parts=unet_parts(_eps_only(unet), settings.image_size, 0),
        schedules=contract.Schedules(image=image_schedule),
        presets={"official": official, **few_steps("asyrp", official, image_schedule)},
        config=config,
        sources={
            "checkpoint": source(checkpoint),
            **{f"attribute {name}": source(path) for name, path in attributes.items()},
        },
        attributes=blocks,
        licence=settings.licence or "",
    )


def _network(checkpoint: Path, state: StateDict, layout: str, settings: Settings) -> DdpmUNet | GuidedUNet:
    unet: DdpmUNet | GuidedUNet
    try:
        if layout == "ddpm":
            unet = DdpmUNet(architecture.ddpm(state))
        else:
            if settings.num_head_channels is None and settings.num_heads is None:
                raise ArgumentError("the weights cannot tell the attention heads; give --preset or --num-head-channels")
            if "label_emb.weight" in state:
                raise CheckpointError("label_emb.weight: a class-conditional network, expected an unconditional one")
            config = architecture.guided(
                state, num_heads=settings.num_heads or 1, num_head_channels=settings.num_head_channels
            )
            attends = [config.channel_mult[i] for i in {*config.attention_levels, len(config.channel_mult) - 1}]
            widths = [m * config.model_channels for m in attends]
            architecture.check_heads(widths, config.num_heads, config.num_head_channels)
            unet = GuidedUNet(config)
    except (CheckpointError, ArgumentError) as e:
        raise type(e)(f"{checkpoint}: {e}") from None
    check_tensors(checkpoint, unet.state_dict(), state, f"a U-Net of the {layout} layout")
    architecture.check_size(settings.image_size or 0, len(unet.config.channel_mult))
    unet.load_state_dict(state)
    if unet.config.out_channels not in (3, 6):
        raise CheckpointError(
            f"{checkpoint}: found {unet.config.out_channels} output channels, expected 3, or 6 with sigma"
        )
    return unet.eval()


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
    found = load(path)
    weights = found.get("0") if isinstance(found, Mapping) else None
    if not isinstance(weights, Mapping):
        raise CheckpointError(
            f"{path}: looks like {looks_like(found)}, expected an Asyrp attribute (weights under '0')"
        )
    state = tensors(weights, path)
    kind = ImprovedDelta if "in_layers.2.weight" in state else DdpmDelta
    if (kind is DdpmDelta) != (layout == "ddpm"):
        raise CheckpointError(f"{path}: an attribute of the other U-Net layout, expected one for the {layout} layout")
    trained = re.search(r"_ngen(\d+)", path.name)
    if n_train is None and trained is None:
        raise ArgumentError(f"{path}: its name does not tell the steps it was trained at (ngen…); give --n-train")
    block = kind(channels, embed)
    check_tensors(path, block.state_dict(), state, f"an attribute for a U-Net of {channels} channels")
    block.load_state_dict(state)
    arrays = {}
    for ours, theirs in kind.parts.items():
        weight = state[f"{theirs}.weight"].numpy()
        arrays[f"{ours}.weight"] = weight.reshape(weight.shape[:2])  # 1×1 convolutions as matrices
        arrays[f"{ours}.bias"] = state[f"{theirs}.bias"].numpy()
    steps = n_train if n_train is not None else int(trained[1]) if trained else 0
    return AttributeData("delta_block", "asymmetric", arrays, {"eps": str(kind.eps)}, steps, block.eval())


def delta_block_file(path: Path, bundle: Bundle, n_train: int | None) -> tuple[bytes, int, Source]:
    """A DeltaBlock's file as a bundle keeps it, for a bundle that is there: its bytes, n_train, and where it came from.

    Raises CheckpointError where the block is of the other layout, or not of the model's widths.
    """
    channels, _, _, embed = h_shape(bundle)
    guided = bundle.manifest.provenance.config.get("layout", "guided") == "guided"  # DiffAE's U-Net is that too
    found = delta_block(path, channels=channels, embed=embed, layout="guided" if guided else "ddpm", n_train=n_train)
    assert found.n_train is not None
    return tensor_bytes(found.arrays, found.metadata), found.n_train, source(path)
