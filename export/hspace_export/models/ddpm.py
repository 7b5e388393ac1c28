"""The U-Net of DDPM (Ho et al. 2020), in the layout of Asyrp's CelebA-HQ and LSUN checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import First, GroupNorm, Sinusoid, SkipBlock, attend, share_skips

_EPS = 1e-6  # of every GroupNorm in this code base


@dataclass(frozen=True)
class DdpmConfig:
    """The architecture. attention_levels: levels of the pyramid (0 = full size) that attend to themselves."""

    model_channels: int
    channel_mult: tuple[float, ...]
    num_res_blocks: int
    attention_levels: tuple[int, ...]
    out_channels: int
    resample_with_conv: bool

    @property
    def embed_channels(self) -> int:
        return self.model_channels * 4


class ResnetBlock(SkipBlock):
    def __init__(self, channels: int, out: int, embed: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(channels, _EPS)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.temb_proj = nn.Linear(embed, out)
        self.norm2 = GroupNorm(out, _EPS)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if channels != out:
            self.nin_shortcut = nn.Conv2d(channels, out, 1)
        self.shortcut = channels != out

    def first(self) -> First:
        return self.norm1, F.silu, self.conv1, self.nin_shortcut

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        return self.rest(self.conv1(F.silu(self.norm1(x))), self.nin_shortcut(x) if self.shortcut else x, temb)

    def rest(self, y: Tensor, x: Tensor, *conditions: Tensor | None) -> Tensor:
        (temb,) = conditions
        assert temb is not None
        y = y + self.temb_proj(F.silu(temb))[:, :, None, None]
        out: Tensor = x + self.conv2(F.silu(self.norm2(y)))
        return out


class AttnBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels, _EPS)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        y = self.norm(x)
        q, k, v = (f(y).reshape(n, c, height * width) for f in (self.q, self.k, self.v))
        out: Tensor = x + self.proj_out(attend(q, k, v, c**-0.5).reshape(n, c, height, width))
        return out


class Resample(nn.Module):
    """Down: pad below and to the right, then a strided convolution. Up: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, up: bool, with_conv: bool) -> None:
        super().__init__()
        self.up, self.with_conv = up, with_conv
        if with_conv:
            self.conv = nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        elif self.with_conv:
            x = F.pad(x, (0, 1, 0, 1))
        else:
            x = F.avg_pool2d(x, 2)
        y: Tensor = self.conv(x) if self.with_conv else x
        return y


class Level(nn.Module):
    """The blocks of one resolution, each followed by its attention where there is one."""

    def __init__(self, blocks: list[ResnetBlock], attention: list[AttnBlock]) -> None:
        super().__init__()
        self.block, self.attn = nn.ModuleList(blocks), nn.ModuleList(attention)
        self.downsample: nn.Module
        self.upsample: nn.Module

    def run(self, i: int, x: Tensor, temb: Tensor) -> Tensor:
        return self._attend(i, self.block[i](x, temb))

    def join(self, i: int, h: Tensor, skip: Tensor, source: Tensor, temb: Tensor) -> Tensor:
        block = self.block[i]
        assert isinstance(block, ResnetBlock)
        return self._attend(i, block.join(h, skip, source, temb))

    def _attend(self, i: int, x: Tensor) -> Tensor:
        y: Tensor = self.attn[i](x) if len(self.attn) else x
        return y


class Middle(nn.Module):
    def __init__(self, channels: int, embed: int) -> None:
        super().__init__()
        self.block_1, self.block_2 = (ResnetBlock(channels, channels, embed) for _ in range(2))
        self.attn_1 = AttnBlock(channels)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        y: Tensor = self.block_2(self.attn_1(self.block_1(x, temb)), temb)
        return y


class TimeMlp(nn.Module):
    def __init__(self, channels: int, embed: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(channels, embed), nn.Linear(embed, embed)])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dense[1](F.silu(self.dense[0](x)))
        return y


class DdpmUNet(nn.Module):
    """The U-Net; see the module."""

    def __init__(self, config: DdpmConfig) -> None:
        super().__init__()
        self.config = c = config
        embed, widths = c.embed_channels, [int(m * c.model_channels) for m in c.channel_mult]
        self.sinusoid = Sinusoid(c.model_channels, first="sin", denominator=c.model_channels // 2 - 1)
        self.temb = TimeMlp(c.model_channels, embed)
        ch = c.model_channels
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        skips, self.down = [ch], nn.ModuleList()
        for i, width in enumerate(widths):
            blocks = []
            for _ in range(c.num_res_blocks):
                blocks.append(ResnetBlock(ch, width, embed))
                ch = width
                skips.append(ch)
            level = Level(blocks, [AttnBlock(width) for _ in blocks] if i in c.attention_levels else [])
            if i < len(widths) - 1:
                level.downsample = Resample(ch, False, c.resample_with_conv)
                skips.append(ch)
            self.down.append(level)
        self.mid = Middle(ch, embed)
        up = []
        for i, width in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(c.num_res_blocks + 1):
                blocks.append(ResnetBlock(ch + skips.pop(), width, embed))
                ch = width
            level = Level(blocks, [AttnBlock(width) for _ in blocks] if i in c.attention_levels else [])
            if i:
                level.upsample = Resample(ch, True, c.resample_with_conv)
            up.append(level)
        self.up = nn.ModuleList(reversed(up))
        self.norm_out = GroupNorm(ch, _EPS)
        self.conv_out = nn.Conv2d(ch, c.out_channels, 3, padding=1)

    def trunk(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x [N, 3, H, W], t int [N] → h [N, C, h, w], temb [N, E], skips."""
        temb: Tensor = self.temb(self.sinusoid(t).to(x.dtype))
        skips = [self.conv_in(x)]
        for i, level in enumerate(self.down):
            assert isinstance(level, Level)
            for j in range(self.config.num_res_blocks):
                skips.append(level.run(j, skips[-1], temb))
            if i < len(self.down) - 1:
                skips.append(level.downsample(skips[-1]))
        return self.mid(skips[-1], temb), temb, skips

    def head(self, h: Tensor, temb: Tensor, skips: list[Tensor], source: Tensor) -> Tensor:
        """h [M, C, h, w]; temb and skips of N trunk samples; source int64 [M] → ε [M, out_channels, H, W]."""
        temb, left = temb.index_select(0, source), list(skips)
        for i, level in reversed(list(enumerate(self.up))):
            assert isinstance(level, Level)
            for j in range(self.config.num_res_blocks + 1):
                h = level.join(j, h, left.pop(), source, temb)
            if i:
                h = level.upsample(h)
        eps: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return eps

    def share_skips(self) -> None:
        """Has `head` do once per trunk sample what depends on a skip alone; the weights loaded by now are split."""
        blocks = [b for level in reversed(self.up) for b in level.block]  # type: ignore[union-attr]
        share_skips(blocks, self.mid.block_2.conv2.out_channels)
