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
    """Casts a network to float16 in place, but for its norms."""
    module.half()
    for part in module.modules():
        if isinstance(part, (GroupNorm, LayerNorm)):
            part.float()
    return module


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention over positions. q, k, v: [B, C, T]; returns [B, C, T]."""
    weight = torch.bmm((q * math.sqrt(scale)).transpose(1, 2), k * math.sqrt(scale))  # [B, T of q, T of k]
    weight = torch.softmax(weight.float(), dim=-1).to(v.dtype)
    return torch.bmm(v, weight.transpose(1, 2))


def sinusoid(t: Tensor, size: int, *, first: str, denominator: int) -> Tensor:
    """Sinusoidal embedding of timesteps (int [N]) as float32 [N, size].

    The two code bases differ: guided diffusion puts cosines `first` and divides by size/2, DDPM sines and size/2 − 1.
    """
    half = size // 2
    freqs = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / denominator)
    angles = t.float()[:, None] * freqs[None]
    parts = [angles.cos(), angles.sin()] if first == "cos" else [angles.sin(), angles.cos()]
    return F.pad(torch.cat(parts, dim=1), (0, size % 2))
