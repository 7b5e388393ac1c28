"""Layers that the networks share. In half precision the norms and the softmax stay float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """GroupNorm, with 32 groups unless told, computed in float32 whatever its input is."""

    def __init__(self, channels: int, eps: float = 1e-5, groups: int | None = None) -> None:
        super().__init__(groups or min(32, channels), channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """LayerNorm, computed in float32 whatever its input is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


First = tuple[nn.GroupNorm, Callable[[Tensor], Tensor], nn.Conv2d, nn.Conv2d]


class _Share(nn.Module):
    """What a residual block does first, for the channels from begin to end of its input: complete groups of the norm.

    first: the whole block's norm, activation, convolution and shortcut. The biases are in the share that begins at 0.
    """

    def __init__(self, first: First, begin: int, end: int) -> None:
        super().__init__()
        norm, self.act, conv, shortcut = first
        self.norm = GroupNorm(end - begin, norm.eps, norm.num_groups * (end - begin) // norm.num_channels)
        self.norm.weight, self.norm.bias = (_copy(p[begin:end]) for p in (norm.weight, norm.bias))
        self.conv, self.shortcut = (_columns(c, begin, end) for c in (conv, shortcut))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(self.act(self.norm(x))), self.shortcut(x)


def _copy(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone())


def _columns(conv: nn.Conv2d, begin: int, end: int) -> nn.Conv2d:
    """The convolution of the input channels from begin to end; with its bias if they begin at 0."""
    bias = _copy(conv.bias) if conv.bias is not None and begin == 0 else None
    size, padding = conv.kernel_size, conv.padding
    made = nn.Conv2d(end - begin, conv.out_channels, size, padding=padding, device="meta")  # type: ignore[arg-type]
    made.weight, made.bias = _copy(conv.weight[:, begin:end]), bias
    return made


class SkipBlock(nn.Module):
    """A residual block that may join a skip to h: `forward(cat([h, skip[source]]), …)`, written as `join`.

    Several samples of h may read one skip. What the block does first to the skip's channels alone does not depend on h,
    so that it may be done once per skip (`share`): the first norm's groups and the convolutions' sums are split where
    the skip begins. A group that straddles that border counts as h's.
    """

    def __init__(self) -> None:
        super().__init__()
        self.own: _Share | None = None  # the share of h, once split
        self.skip: _Share | None = None  # the share of the skip; None where no group is the skip's alone
        self.border = 0  # channels of the skip in the group that straddles the border

    def first(self) -> First:
        """Norm, activation, convolution and shortcut."""
        raise NotImplementedError

    def rest(self, y: Tensor, x: Tensor, *conditions: Tensor | None) -> Tensor:
        """All that follows. y: of the first convolution; x: of the shortcut."""
        raise NotImplementedError

    def share(self, channels: int) -> int:
        """Splits the block's first weights, for an h of so many channels; returns how many the block's output has."""
        first = norm, _, conv, _ = self.first()
        total = norm.num_channels
        self.border = -channels % (total // norm.num_groups)
        end = channels + self.border
        self.own = _Share(first, 0, end)
        self.skip = _Share(first, end, total) if end < total else None
        return conv.out_channels

    def join(self, h: Tensor, skip: Tensor, source: Tensor, *conditions: Tensor | None) -> Tensor:
        """h [M, C, H, W], skip [N, D, H, W], source int64 [M]; conditions of M samples → [M, out, H, W]."""
        if self.own is None:
            whole: Tensor = self(torch.cat([h, skip.index_select(0, source)], dim=1), *conditions)
            return whole
        if self.border:
            h = torch.cat([h, skip[:, : self.border].index_select(0, source)], dim=1)
        y, x = self.own(h)
        if self.skip is not None:
            of_y, of_x = (s.index_select(0, source) for s in self.skip(skip[:, self.border :]))
            y, x = y + of_y, x + of_x
        return self.rest(y, x, *conditions)


def share_skips(blocks: Iterable[nn.Module], channels: int) -> None:
    """Splits the blocks of an up path, in order, of which the first is given an h of so many channels."""
    for block in blocks:
        assert isinstance(block, SkipBlock)
        channels = block.share(channels)


def to_half(module: nn.Module) -> nn.Module:
    """Casts a network's weights to float16 in place, but for those of its norms."""
    for part in module.modules():
        if not isinstance(part, (GroupNorm, LayerNorm)):
            for p in part.parameters(recurse=False):
                p.data = p.data.half()
    return module


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention over positions. q, k, v: [B, C, T]; returns [B, C, T]."""
    weight = torch.bmm((q * math.sqrt(scale)).transpose(1, 2), k * math.sqrt(scale))  # [B, T of q, T of k]
    weight = torch.softmax(weight.float(), dim=-1).to(v.dtype)
    return torch.bmm(v, weight.transpose(1, 2))


class Sinusoid(nn.Module):
    """Sinusoidal embedding of timesteps (int [N]) as float32 [N, size].

    The two code bases differ: guided diffusion puts cosines `first` and divides by size/2, DDPM sines and size/2 − 1.
    scale: what t is multiplied by first, where a code base trains at T timesteps and tells the network t·1000/T.
    The frequencies are a constant, not arithmetic for an exporter to fold: a last bit of theirs is 1e-5 of a result.
    """

    frequencies: Tensor

    def __init__(self, size: int, *, first: str, denominator: int, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.odd, self.scale = first, size % 2, scale
        # on the CPU even where the network around is made without memory: no checkpoint has it
        steps = torch.arange(size // 2, dtype=torch.float32, device="cpu")
        self.register_buffer("frequencies", torch.exp(-math.log(10000) * steps / denominator), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        told = t.float() if self.scale == 1 else t.float() * self.scale
        angles = told[:, None] * self.frequencies[None]
        parts = [angles.cos(), angles.sin()] if self.first == "cos" else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(parts, dim=1), (0, self.odd))
