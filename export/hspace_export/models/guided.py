"""The guided-diffusion U-Net (Dhariwal and Nichol 2021), as improved-diffusion and Diffusion Autoencoders use it.

With `z_channels` every residual block is also scaled by a projection of z_sem after the time's scale and shift
(Preechakul et al. 2022, equation 6).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import First, GroupNorm, Sinusoid, SkipBlock, attend, share_skips

AttentionOrder = Literal["legacy", "new"]


@dataclass(frozen=True)
class GuidedConfig:
    """The architecture. attention_levels: levels of the pyramid (0 = full size) that attend to themselves.

    z_channels: length of z_sem, 0 for an unconditional network. num_head_channels: per attention head, or None:
    then num_heads says how many there are. attention_order: how `qkv` has queries, keys and values; see `Attention`.
    time_scale: what timesteps are multiplied by before they are embedded.
    """

    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    embed_channels: int
    out_channels: int
    z_channels: int
    resblock_updown: bool
    scale_shift_norm: bool
    num_heads: int
    num_head_channels: int | None
    attention_order: AttentionOrder = "legacy"
    time_scale: float = 1.0


class ResBlock(SkipBlock):
    """Norm, SiLU, convolution; norm, conditions, SiLU, convolution; and a shortcut. resample: "up", "down" or ""."""

    def __init__(
        self, channels: int, out: int, embed: int, z: int = 0, scale_shift: bool = True, resample: str = ""
    ) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        if embed:
            self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, out * (2 if scale_shift else 1)))
            # index 3, as in the checkpoints: 2 is a dropout
            self.out_layers = nn.Sequential(GroupNorm(out), nn.SiLU(), nn.Identity(), nn.Conv2d(out, out, 3, padding=1))
        self.conditioned = embed > 0
        self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(z, out)) if z else None
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def first(self) -> First:
        norm, act, conv = self.in_layers
        return norm, act, conv, self.skip_connection  # type: ignore[return-value]

    def forward(self, x: Tensor, emb: Tensor | None = None, z_sem: Tensor | None = None) -> Tensor:
        y = self.in_layers[1](self.in_layers[0](x))
        if self.resample == "up":
            y, x = (F.interpolate(i, scale_factor=2.0, mode="nearest") for i in (y, x))
        elif self.resample == "down":
            y, x = (F.avg_pool2d(i, 2) for i in (y, x))
        return self.rest(self.in_layers[2](y), self.skip_connection(x), emb, z_sem)

    def rest(self, y: Tensor, x: Tensor, *conditions: Tensor | None) -> Tensor:
        emb, z_sem = conditions
        if self.conditioned:
            e = self.emb_layers(emb)[:, :, None, None]
            if self.scale_shift:
                scale, shift = e.chunk(2, dim=1)
                y = self.out_layers[0](y) * (1 + scale) + shift
            else:
                y = self.out_layers[0](y + e)
            if self.cond_emb_layers is not None:
                y = y * (1 + self.cond_emb_layers(z_sem)[:, :, None, None])
            y = self.out_layers[3](self.out_layers[1](y))
        return x + y


class Attention(nn.Module):
    """Self-attention over positions.

    order: "legacy" where `qkv` has queries, keys and values of the first head, then those of the second, and so on
    (the official `QKVAttentionLegacy`); "new" where it has the queries of all heads first, then the keys, then the
    values (`QKVAttention`, with use_new_attention_order).
    """

    def __init__(self, channels: int, heads: int, order: AttentionOrder = "legacy") -> None:
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        each = c // self.heads
        qkv = self.qkv(self.norm(x).reshape(n, c, height * width))
        if self.order == "new":
            q, k, v = (part.reshape(n * self.heads, each, height * width) for part in qkv.split(c, dim=1))
        else:
            q, k, v = qkv.reshape(n * self.heads, 3 * each, height * width).split(each, dim=1)
        y = attend(q, k, v, each**-0.5).reshape(n, c, height * width)
        out: Tensor = x + self.proj_out(y).reshape(n, c, height, width)
        return out


class Downsample(nn.Module):
    """A strided convolution, for networks without residual down blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x)
        return y


class Upsample(nn.Module):
    """Nearest neighbour and a convolution, for networks without residual up blocks."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


def _apply(parts: Iterable[nn.Module], x: Tensor, emb: Tensor | None, z_sem: Tensor | None) -> Tensor:
    for part in parts:
        x = part(x, emb, z_sem) if isinstance(part, ResBlock) else part(x)
    return x


class TimeEmbedding(nn.Module):
    """DiffAE nests its time embedding one level deeper than guided diffusion does."""

    def __init__(self, mlp: nn.Sequential) -> None:
        super().__init__()
        self.time_embed = mlp


class GuidedUNet(nn.Module):
    """The U-Net; see the module."""

    def __init__(self, config: GuidedConfig) -> None:
        super().__init__()
        self.config = c = config
        mlp = nn.Sequential(
            nn.Linear(c.model_channels, c.embed_channels), nn.SiLU(), nn.Linear(c.embed_channels, c.embed_channels)
        )
        self.time_embed = TimeEmbedding(mlp) if c.z_channels else mlp
        self.sinusoid = Sinusoid(c.model_channels, first="cos", denominator=c.model_channels // 2, scale=c.time_scale)
        widths = [int(m * c.model_channels) for m in c.channel_mult]
        ch = widths[0]
        self.input_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(3, ch, 3, padding=1))])
        skips = [ch]
        for level, width in enumerate(widths):
            for _ in range(c.num_res_blocks):
                self.input_blocks.append(nn.Sequential(self._res(ch, width), *self._attention(level, width)))
                ch = width
                skips.append(ch)
            if level < len(widths) - 1:
                down = self._res(ch, ch, "down") if c.resblock_updown else Downsample(ch)
                self.input_blocks.append(nn.Sequential(down))
                skips.append(ch)
        self.middle_block = nn.Sequential(self._res(ch, ch), self._attend(ch), self._res(ch, ch))
        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for i in range(c.num_res_blocks + 1):
                parts = [self._res(ch + skips.pop(), width), *self._attention(level, width)]
                ch = width
                if level and i == c.num_res_blocks:
                    parts.append(self._res(ch, ch, "up") if c.resblock_updown else Upsample(ch))
                self.output_blocks.append(nn.Sequential(*parts))
        self.out = nn.Sequential(GroupNorm(ch), nn.SiLU(), nn.Conv2d(ch, c.out_channels, 3, padding=1))

    def _res(self, channels: int, out: int, resample: str = "") -> nn.Module:
        c = self.config
        return ResBlock(channels, out, c.embed_channels, c.z_channels, c.scale_shift_norm, resample)

    def _attend(self, channels: int) -> Attention:
        c = self.config
        heads = channels // c.num_head_channels if c.num_head_channels else c.num_heads
        return Attention(channels, heads, c.attention_order)

    def _attention(self, level: int, channels: int) -> list[nn.Module]:
        return [self._attend(channels)] if level in self.config.attention_levels else []

    def trunk(self, x: Tensor, t: Tensor, z_sem: Tensor | None = None) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x [N, 3, H, W], t int [N], z_sem [N, D] → h [N, C, h, w], temb [N, E], skips."""
        mlp = self.time_embed.time_embed if isinstance(self.time_embed, TimeEmbedding) else self.time_embed
        temb: Tensor = mlp(self.sinusoid(t).to(x.dtype))
        skips = []
        for block in self.input_blocks:
            x = _apply(block.children(), x, temb, z_sem)
            skips.append(x)
        return _apply(self.middle_block, x, temb, z_sem), temb, skips

    def head(self, h: Tensor, temb: Tensor, skips: list[Tensor], source: Tensor, z_sem: Tensor | None = None) -> Tensor:
        """h [M, C, h, w]; temb, skips and z_sem of N trunk samples; source int64 [M] → ε [M, out_channels, H, W]."""
        temb = temb.index_select(0, source)
        z_sem = None if z_sem is None else z_sem.index_select(0, source)
        for block, skip in zip(self.output_blocks, reversed(skips), strict=True):
            joining, *parts = block.children()
            assert isinstance(joining, ResBlock)
            h = _apply(parts, joining.join(h, skip, source, temb, z_sem), temb, z_sem)
        eps: Tensor = self.out(h)
        return eps

    def share_skips(self) -> None:
        """Has `head` do once per trunk sample what depends on a skip alone; the weights loaded by now are split."""
        blocks = [next(block.children()) for block in self.output_blocks]
        share_skips(blocks, self.middle_block[2].out_layers[3].out_channels)  # type: ignore[index,union-attr]
