"""Architectures, read off a state dict's names and shapes. What weights cannot tell comes from `Settings`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from hspace.errors import ArgumentError, CheckpointError

from .checkpoint import StateDict
from .models.ddpm import DdpmConfig
from .models.diffae import EncoderConfig, LatentConfig
from .models.guided import AttentionOrder, GuidedConfig


def _count(state: StateDict, pattern: str) -> int:
    """How many of `pattern.format(0)`, `pattern.format(1)`, … begin some tensor's name, up to the first gap."""
    begin, end = pattern.split("{}")
    numbers = {k.removeprefix(begin).partition(end)[0] for k in state if k.startswith(begin)}
    return next(i for i in itertools.count() if str(i) not in numbers)


def _shape(state: StateDict, name: str) -> tuple[int, ...]:
    """A weight's shape; weights of layers have two dimensions or more."""
    if name not in state:
        raise CheckpointError(f"tensor {name}: missing, and the architecture cannot be told without it")
    if state[name].ndim < 2 or 0 in state[name].shape:
        raise CheckpointError(f"tensor {name}: found {list(state[name].shape)}, expected a layer's weight")
    return tuple(state[name].shape)


def _multipliers(channels: int, widths: Iterable[int]) -> tuple[float, ...]:
    """Each level's width over the base one; refused where it cannot go through a GroupNorm of 32 groups."""
    multipliers = []
    for width in widths:
        if width % 32:
            raise CheckpointError(f"found a level of {width} channels, expected a multiple of 32")
        multipliers.append(width / channels)
    return tuple(multipliers)


def check_heads(widths: Iterable[float], num_heads: int, num_head_channels: int | None) -> None:
    """Raises ArgumentError where attention over so many channels cannot have these heads."""
    for width in map(int, widths):
        if width % (num_head_channels or num_heads):
            given = f"num_head_channels {num_head_channels}" if num_head_channels else f"num_heads {num_heads}"
            raise ArgumentError(f"{given}: does not divide the {width} channels that attend to themselves")


def check_size(image_size: int, levels: int) -> None:
    """Raises ArgumentError where images of this size cannot be halved once a level."""
    if image_size % 2 ** (levels - 1) or image_size >> (levels - 1) < 2:
        raise ArgumentError(
            f"image_size: found {image_size}, expected a multiple of {2 ** (levels - 1)}, at least {2**levels}"
        )


def differences(config: object, expected: Mapping[str, object]) -> list[str]:
    """Where the fields of an architecture, as the weights show it, are not what is expected of them."""
    actual = {name: getattr(config, name) for name in expected}
    return [f"{k} {actual[k]}, expected {v}" for k, v in expected.items() if actual[k] != v]


def attention_levels(image_size: int, resolutions: Iterable[int], levels: int) -> tuple[int, ...]:
    """The levels whose feature maps have one of these resolutions, of those of images of this size."""
    return tuple(level for level in range(levels) if image_size >> level in set(resolutions))


def guided(
    state: StateDict,
    *,
    num_heads: int,
    num_head_channels: int | None,
    attention_order: AttentionOrder = "legacy",
    time_scale: float = 1.0,
) -> GuidedConfig:
    """The guided-diffusion U-Net; conditional on z_sem where its time embedding is DiffAE's."""
    conditional = "time_embed.time_embed.0.weight" in state
    embed, channels = _shape(state, f"time_embed.{'time_embed.' if conditional else ''}0.weight")
    outputs = _count(state, "output_blocks.{}.")
    # the last block of a level (but for level 0) ends in an upsampling: a second residual block, or a convolution
    ups = [
        i
        for i in range(outputs)
        if any(f"output_blocks.{i}.{j}.{k}" in state for j in (1, 2) for k in ("in_layers.0.weight", "conv.weight"))
    ]
    num_res = ups[0] if ups else outputs - 1
    if num_res < 1:
        raise CheckpointError("tensors output_blocks.*: missing, and the architecture cannot be told without them")
    first = [1 + level * (num_res + 1) for level in range(len(ups) + 1)]
    block = f"input_blocks.{first[0]}.0"
    emb = _shape(state, f"{block}.emb_layers.1.weight")[0]
    return GuidedConfig(
        model_channels=channels,
        channel_mult=_multipliers(
            channels, (_shape(state, f"input_blocks.{i}.0.in_layers.2.weight")[0] for i in first)
        ),
        num_res_blocks=num_res,
        attention_levels=tuple(level for level, i in enumerate(first) if f"input_blocks.{i}.1.qkv.weight" in state),
        embed_channels=embed,
        out_channels=_shape(state, "out.2.weight")[0],
        z_channels=_shape(state, f"{block}.cond_emb_layers.1.weight")[1] if conditional else 0,
        resblock_updown=f"input_blocks.{num_res + 1}.0.op.weight" not in state,
        scale_shift_norm=emb == 2 * _shape(state, f"{block}.in_layers.2.weight")[0],
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        attention_order=attention_order,
        time_scale=time_scale,
    )


def ddpm(state: StateDict) -> DdpmConfig:
    """The DDPM U-Net."""
    channels = _shape(state, "conv_in.weight")[0]
    levels = range(_count(state, "down.{}."))
    _multipliers(channels, [channels])  # the first convolution's output meets a norm too
    widths = [_shape(state, f"down.{i}.block.0.conv1.weight")[0] for i in levels]
    return DdpmConfig(
        model_channels=channels,
        channel_mult=_multipliers(channels, widths),
        num_res_blocks=_count(state, "down.0.block.{}."),
        attention_levels=tuple(i for i in levels if f"down.{i}.attn.0.q.weight" in state),
        out_channels=_shape(state, "conv_out.weight")[0],
        resample_with_conv="down.0.downsample.conv.weight" in state,
    )


def encoder(
    state: StateDict,
    *,
    num_res_blocks: int,
    num_heads: int,
    num_head_channels: int | None = None,
    attention_order: AttentionOrder = "legacy",
) -> EncoderConfig:
    """DiffAE's semantic encoder. Its names do not tell a down block from another, so num_res_blocks must be known."""
    channels, blocks = _shape(state, "input_blocks.0.0.weight")[0], _count(state, "input_blocks.{}.")
    if blocks % (num_res_blocks + 1):
        raise CheckpointError(
            f"tensors encoder.input_blocks.*: found {blocks}, expected a multiple of {num_res_blocks + 1}"
        )
    first = [1 + level * (num_res_blocks + 1) for level in range(blocks // (num_res_blocks + 1))]
    return EncoderConfig(
        model_channels=channels,
        channel_mult=_multipliers(
            channels, (_shape(state, f"input_blocks.{i}.0.in_layers.2.weight")[0] for i in first)
        ),
        num_res_blocks=num_res_blocks,
        attention_levels=tuple(level for level, i in enumerate(first) if f"input_blocks.{i}.1.qkv.weight" in state),
        z_channels=_shape(state, "out.3.weight")[0],
        num_heads=num_heads,
        num_head_channels=num_head_channels,
        attention_order=attention_order,
    )


def latent(state: StateDict, *, condition_bias: float, time_scale: float = 1.0) -> LatentConfig:
    """The latent DDIM's network."""
    hidden, channels = _shape(state, "layers.0.linear.weight")
    count = _count(state, "layers.{}.")
    widths = [_shape(state, f"layers.{i}.linear.weight")[1] for i in range(count)]
    return LatentConfig(
        channels=channels,
        hidden=hidden,
        num_layers=count,
        skip_layers=tuple(i for i in range(1, count) if widths[i] == hidden + channels),
        time_channels=_shape(state, "time_embed.0.weight")[1],
        num_time_layers=sum(f"time_embed.{2 * i}.weight" in state for i in range(8)),
        condition_bias=condition_bias,
        time_scale=time_scale,
    )
