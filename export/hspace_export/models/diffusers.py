"""diffusers' UNet2DModel in two parts: its own sub-modules, driven up to the bottleneck and on from there."""

from __future__ import annotations

from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import First, GroupNorm, Sinusoid, SkipBlock, attend, share_skips

Prediction = Literal["epsilon", "v_prediction", "sample"]


class _Norm(GroupNorm):
    """A GroupNorm of the library, in the project's precision."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__(norm.num_channels, norm.eps, norm.num_groups)
        self.weight, self.bias = norm.weight, norm.bias


class _SelfAttention(nn.Module):
    """The library's attention over positions, with the softmax in float32."""

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.group_norm = attention.group_norm
        self.to_q, self.to_k, self.to_v = attention.to_q, attention.to_k, attention.to_v
        self.to_out = attention.to_out[0]
        self.heads, self.scale = attention.heads, attention.scale
        self.divisor = attention.rescale_output_factor

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        n, c, height, width = x.shape
        y = x.reshape(n, c, height * width)
        if self.group_norm is not None:
            y = self.group_norm(y)
        y = y.transpose(1, 2)
        q, k, v = (
            f(y).transpose(1, 2).reshape(n * self.heads, -1, height * width) for f in (self.to_q, self.to_k, self.to_v)
        )
        y = attend(q, k, v, self.scale).reshape(n, -1, height * width)
        out: Tensor = (self.to_out(y.transpose(1, 2)).transpose(1, 2).reshape(x.shape) + x) / self.divisor
        return out


class _Upsample(nn.Module):
    """The library's nearest-neighbour upsampling, without its branches on the batch's size, which cannot be traced."""

    def __init__(self, upsample: Upsample2D) -> None:
        super().__init__()
        self.conv = upsample.conv or nn.Identity()

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        y: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return y


class _ResBlock(SkipBlock):
    """The library's residual block, also one that upsamples, again without branches on the batch's size."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.block = block

    def first(self) -> First:
        b: Any = self.block
        return b.norm1, b.nonlinearity, b.conv1, b.conv_shortcut

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        b: Any = self.block
        y = b.nonlinearity(b.norm1(x))
        if b.up:
            x, y = b.upsample(x, temb), b.upsample(y, temb)
        return self.rest(b.conv1(y), x if b.conv_shortcut is None else b.conv_shortcut(x), temb)

    def rest(self, y: Tensor, x: Tensor, *conditions: Tensor | None) -> Tensor:
        b: Any = self.block
        (temb,) = conditions
        shift = b.time_emb_proj(temb if b.skip_time_act else b.nonlinearity(temb))[:, :, None, None]
        if b.time_embedding_norm == "scale_shift":
            scale, shift = shift.chunk(2, dim=1)
            y = b.norm2(y) * (1 + scale) + shift
        else:
            y = b.norm2(y + shift)
        out: Tensor = (x + b.conv2(b.nonlinearity(y))) / b.output_scale_factor
        return out


def _ours(module: nn.Module) -> None:
    """Replaces, in place, what joins skips, what cannot be traced, and what would leave float32 in half precision."""
    for name, child in module.named_children():
        _ours(child)
        made: nn.Module | None = None
        if isinstance(child, nn.GroupNorm):
            made = _Norm(child)
        elif isinstance(child, Attention):
            made = _SelfAttention(child)
        elif isinstance(child, Upsample2D):
            made = _Upsample(child)
        elif isinstance(child, ResnetBlock2D) and not child.down:
            made = _ResBlock(child)
        if made is not None:
            setattr(module, name, made)


class DiffusersUNet(nn.Module):
    """An unconditional UNet2DModel, whose modules it takes over and changes, as `trunk` and `head` that predict ε.

    alphas_cumprod: float64 [T], of the schedule that the network was trained on. What predicts v = α·ε − σ·x_0
    (Salimans and Ho 2022, appendix D) or x_0 is turned into ε exactly: ε = α·v + σ·x, and ε = (x − α·x_0)/σ. The head
    has neither x nor t, so the trunk of such a network has two skips more: x, and (α, σ) as [N, 2, 1, 1].
    """

    levels: Tensor

    def __init__(self, unet: Any, alphas_cumprod: Tensor, prediction: Prediction) -> None:
        super().__init__()
        _ours(unet)
        config = unet.config
        self.prediction, self.centre = prediction, bool(config.center_input_sample)
        self.width = config.block_out_channels[-1]  # of h
        channels = config.block_out_channels[0]
        self.sinusoid = Sinusoid(
            channels,
            first="cos" if config.flip_sin_to_cos else "sin",
            denominator=channels // 2 - config.freq_shift,
        )
        self.time_embedding, self.conv_in = unet.time_embedding, unet.conv_in
        self.down, self.mid, self.up = unet.down_blocks, unet.mid_block, unet.up_blocks
        self.norm_out, self.act, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out
        pairs = torch.stack([alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()], dim=1)
        self.register_buffer("levels", pairs.float()[:, :, None, None], persistent=False)

    def trunk(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """x [N, 3, H, W], t int [N] → h [N, C, h, w], temb [N, E], skips."""
        temb: Tensor = self.time_embedding(self.sinusoid(t).to(x.dtype))
        y = self.conv_in(2 * x - 1 if self.centre else x)
        skips = [y]
        for block in self.down:
            y, more = block(y, temb)
            skips += more
        h = self.mid(y, temb)
        if self.prediction != "epsilon":
            last = len(self.levels) - 1  # a timestep beyond the schedule counts as its last
            skips += [x.clone(), self.levels.index_select(0, t.clamp(max=last)).to(x.dtype)]
        return h, temb, skips

    def head(self, h: Tensor, temb: Tensor, skips: list[Tensor], source: Tensor) -> Tensor:
        """h [M, C, h, w]; temb and skips of N trunk samples; source int64 [M] → ε [M, 3, H, W]."""
        temb, left = temb.index_select(0, source), list(skips)
        levels, x = (None, None) if self.prediction == "epsilon" else (left.pop(), left.pop())
        for block in self.up:
            attentions = getattr(block, "attentions", [nn.Identity()] * len(block.resnets))
            for resnet, attention in zip(block.resnets, attentions, strict=True):
                h = attention(resnet.join(h, left.pop(), source, temb))
            for upsample in block.upsamplers or []:
                h = upsample(h, temb)
        out: Tensor = self.conv_out(self.act(self.norm_out(h)))
        if levels is None or x is None:
            return out
        x, levels, y = (i.float() for i in (x.index_select(0, source), levels.index_select(0, source), out))
        alpha, sigma = levels.chunk(2, dim=1)
        eps = alpha * y + sigma * x if self.prediction == "v_prediction" else (x - alpha * y) / sigma
        return eps.to(out.dtype)

    def share_skips(self) -> None:
        """Has `head` do once per trunk sample what depends on a skip alone; the weights loaded by now are split."""
        share_skips((r for block in self.up for r in block.resnets), self.width)
