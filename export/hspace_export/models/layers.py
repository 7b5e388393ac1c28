"""Layers that the networks share. In half precision the norms and the softmax stay float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GroupNorm(nn.GroupNorm):
    """GroupNorm with 32 groups, computed in float32 whatever its input is."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(min(32, channels), channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight, self.bias, self.eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """LayerNorm, computed in float32 whatever its input is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


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
    The frequencies are a constant, not arithmetic for an exporter to fold: a last bit of theirs is 1e-5 of a result.
    """

    frequencies: Tensor

    def __init__(self, size: int, *, first: str, denominator: int) -> None:
        super().__init__()
        self.first, self.odd = first, size % 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(size // 2, dtype=torch.float32) / denominator)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angles = t.float()[:, None] * self.frequencies[None]
        parts = [angles.cos(), angles.sin()] if self.first == "cos" else [angles.sin(), angles.cos()]
        return F.pad(torch.cat(parts, dim=1), (0, self.odd))
