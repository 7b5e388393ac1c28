"""Diffusion Autoencoders' semantic encoder and latent DDIM network (Preechakul et al. 2022, appendix A)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .guided import Attention, AttentionOrder, ResBlock
from .layers import GroupNorm, LayerNorm, Sinusoid


@dataclass(frozen=True)
class EncoderConfig:
    """The architecture of the semantic encoder; see `GuidedConfig`."""

    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    z_channels: int
    num_heads: int
    num_head_channels: int | None = None
    attention_order: AttentionOrder = "legacy"

    def attend(self, channels: int) -> Attention:
        heads = channels // self.num_head_channels if self.num_head_channels else self.num_heads
        return Attention(channels, heads, self.attention_order)


class Encoder(nn.Module):
    """Half a U-Net without conditions, average pooling and a projection: image → z_sem."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = c = config
        widths = [int(m * c.model_channels) for m in c.channel_mult]
        ch = widths[0]
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, ch, 3, padding=1))])
        for level, width in enumerate(widths):
            for _ in range(c.num_res_blocks):
                attention = [c.attend(width)] if level in c.attention_levels else []
                self.input_blocks.append(nn.Sequential(ResBlock(ch, width, 0), *attention))
                ch = width
            if level < len(widths) - 1:
                self.input_blocks.append(nn.Sequential(ResBlock(ch, ch, 0, resample="down")))
        self.middle_block = nn.Sequential(ResBlock(ch, ch, 0), c.attend(ch), ResBlock(ch, ch, 0))
        self.out = nn.Sequential(
            GroupNorm(ch), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Conv2d(ch, c.z_channels, 1), nn.Flatten()
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [N, 3, H, W] → z_sem [N, D]."""
        for block in self.input_blocks:
            x = block(x)
        z_sem: Tensor = self.out(self.middle_block(x))
        return z_sem


@dataclass(frozen=True)
class LatentConfig:
    """The architecture of the latent DDIM's network: an MLP whose `skip_layers` see its input again."""

    channels: int
    hidden: int
    num_layers: int
    skip_layers: tuple[int, ...]
    time_channels: int
    num_time_layers: int
    condition_bias: float
    time_scale: float = 1.0


class MlpLayer(nn.Module):
    """Linear; then, in every layer but the last, a scale from the time, LayerNorm and SiLU."""

    def __init__(self, channels: int, out: int, time: int, bias: float, last: bool) -> None:
        super().__init__()
        self.bias, self.last = bias, last
        self.linear = nn.Linear(channels, out)
        if not last:
            self.linear_emb = nn.Linear(time, out)
            self.cond_layers = nn.Sequential(nn.SiLU(), self.linear_emb)  # the checkpoints name it twice
            self.norm = LayerNorm(out)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.linear(x)
        return x if self.last else F.silu(self.norm(x * (self.bias + self.cond_layers(time))))


class LatentNet(nn.Module):
    """ε of normalised z_sem."""

    def __init__(self, config: LatentConfig) -> None:
        super().__init__()
        self.config = c = config
        self.sinusoid = Sinusoid(c.time_channels, first="cos", denominator=c.time_channels // 2, scale=c.time_scale)
        time: list[nn.Module] = []
        for i in range(c.num_time_layers):
            time += [nn.Linear(c.channels if i else c.time_channels, c.channels), nn.SiLU()]
        self.time_embed = nn.Sequential(*time[:-1])
        self.layers = nn.ModuleList()
        for i in range(c.num_layers):
            last = i == c.num_layers - 1
            width = (c.hidden if i else c.channels) + (c.channels if i in c.skip_layers else 0)
            self.layers.append(MlpLayer(width, c.channels if last else c.hidden, c.channels, c.condition_bias, last))

    def forward(self, z_sem: Tensor, t: Tensor) -> Tensor:
        """z_sem [N, D] normalised and noised, t int [N] → ε [N, D]."""
        time = self.time_embed(self.sinusoid(t).to(z_sem.dtype))
        x = z_sem
        for i, layer in enumerate(self.layers):
            x = layer(torch.cat([x, z_sem], dim=1) if i in self.config.skip_layers else x, time)
        return x
