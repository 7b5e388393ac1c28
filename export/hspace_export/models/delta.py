"""Asyrp's f_t in PyTorch, both layouts: what the runtime's own `DeltaBlock` is compared with."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from .layers import GroupNorm


class DdpmDelta(nn.Module):
    """1×1 convolution, + projected temb, GroupNorm, SiLU, 1×1 convolution (Kwon et al. 2023, appendix)."""

    eps = 1e-6
    # the runtime's names ← this layout's
    parts: ClassVar = {"conv1": "conv1", "temb_proj": "temb_proj", "norm2": "norm2", "conv2": "conv2"}

    def __init__(self, channels: int, embed: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(channels, channels, 1) for _ in range(2))
        self.temb_proj = nn.Linear(embed, channels)
        self.norm2 = GroupNorm(channels, self.eps)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        y = self.conv1(h) + self.temb_proj(F.silu(temb))[:, :, None, None]
        out: Tensor = self.conv2(F.silu(self.norm2(y)))
        return out


class ImprovedDelta(nn.Module):
    """GroupNorm and SiLU come first; otherwise the same."""

    eps = 1e-5
    parts: ClassVar = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "temb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
    }

    def __init__(self, channels: int, embed: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embed, channels))
        self.out_layers = nn.Sequential(GroupNorm(channels), nn.SiLU(), nn.Identity(), nn.Conv2d(channels, channels, 1))

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        y: Tensor = self.out_layers(self.in_layers(h) + self.emb_layers(temb)[:, :, None, None])
        return y
