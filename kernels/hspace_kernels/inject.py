"""The injection into h-space: h + edit_scale·Σ_k s_k·Δh_k, written straight into the head's batch [h, h + Δh].

Only rows that change are touched. Three arrays of records (of `hspace.cuda.steps`) say what is to be done:

    targets   h[dest] ← h[source] + Σ coefficient·Δh over the terms first … first + count − 1
    terms     row = −1: address is that of Δh itself, float32 [C·P], the nearest timestep's in a table.
              row = r ≥ 0: address is that of a DeltaBlock's packed weights, and Δh = conv2(u[r])
    pairs     pair r makes u[r], from a DeltaBlock's packed weights at address and the row `sample` of h and temb.
              eps is GroupNorm's, with a minus sign where the block has norm1 (the improved-diffusion layout)

Packed weights are float32, one after another: conv1.weight [C, C], conv1.bias [C], temb_proj.weight [C, E],
temb_proj.bias [C], norm2.weight [C], norm2.bias [C], conv2.weight [C, C], conv2.bias [C], and in the improved layout
norm1.weight [C], norm1.bias [C].

A block takes two launches, `block_hidden` and `inject`, and in the improved layout `block_norm` before them. Tables and
blocks of both layouts meet in one launch, and in one sample. T is the network's type; arithmetic is float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from hspace.deltas import GROUPS, DeltaBlock

BLOCK_C, BLOCK_P = 16, 32  # channels × positions that a program of `inject` writes
HIDDEN_WARPS = 8
_BLOCK = tl.constexpr(1024)  # elements of a group that GroupNorm takes at once
_HIDDEN_C, _HIDDEN_P = tl.constexpr(16), tl.constexpr(64)  # channels × positions that `block_hidden` takes at once
_BLOCK_K = tl.constexpr(16)  # input channels that a convolution takes at once
_BLOCK_E = tl.constexpr(128)  # of temb, likewise
_GROUPS = tl.constexpr(GROUPS)


# --- parts of kernels -------------------------------------------------------------------------------------


@triton.jit
def _weights(record):
    """The float32 array whose address is in the first two words of a term or a pair."""
    address = tl.load(record.to(tl.pointer_type(tl.int64)))
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), 16)


@triton.jit
def _float(word):
    return tl.load(word.to(tl.pointer_type(tl.float32)))


@triton.jit
def _silu(x):
    return x / (1.0 + tl.exp(-x))


@triton.jit
def _merge(count, mean, m2, x, inside):
    """Count, mean and sum of squared deviations of what was seen so far and of x where `inside` (Chan et al. 1979)."""
    n = tl.sum(inside.to(tl.float32))
    x_mean = tl.sum(tl.where(inside, x, 0.0)) / n
    deviation = tl.where(inside, x - x_mean, 0.0)
    total = count + n
    delta = x_mean - mean
    m2 += tl.sum(deviation * deviation) + delta * delta * (count * n / total)
    return total, mean + delta * (n / total), m2


@triton.jit
def _normalise(y, out, weight, bias, group, width, positions, count, mean, m2, eps):
    """out ← SiLU(GroupNorm(y)) of one group: width·positions elements, which begin at y and at out."""
    scale = 1.0 / tl.sqrt_rn(m2 / count + eps)
    for first in range(0, width * positions, _BLOCK):
        offsets = first + tl.arange(0, _BLOCK)
        inside = offsets < width * positions
        c = group * width + offsets // positions
        z = (tl.load(y + offsets, mask=inside, other=0.0).to(tl.float32) - mean) * scale
        z = z * tl.load(weight + c, mask=inside, other=0.0) + tl.load(bias + c, mask=inside, other=0.0)
        tl.store(out + offsets, _silu(z), mask=inside)


@triton.jit
def _convolve(acc, weight, y, c, end, p, channels, positions, STAGES: tl.constexpr):
    """acc + weight[c] @ y[:, p], a 1×1 convolution in float32, not TF32. weight: [C, C]; y: [C, P]; c below `end`."""
    for first in tl.range(0, channels, _BLOCK_K, num_stages=STAGES):
        k = first + tl.arange(0, _BLOCK_K)
        c_k = weight + c[:, None] * channels + k[None, :]
        k_p = y + k[:, None] * positions + p[None, :]
        a = tl.load(c_k, mask=(c[:, None] < end) & (k[None, :] < channels), other=0.0)
        b = tl.load(k_p, mask=(k[:, None] < channels) & (p[None, :] < positions), other=0.0)
        acc = tl.dot(a, b.to(tl.float32), acc, input_precision="ieee")
    return acc


# --- the first launch of the improved layout --------------------------------------------------------------


@triton.jit(do_not_specialize=["channels", "positions", "embedding"])
def block_norm(h, v, pairs, channels, positions, embedding):
    """v[r] ← SiLU(GroupNorm(h[sample])) of pairs r in the improved layout. Grid (min(32, C), number of pairs).

    h: T [M, C·P]. v: float32 [number of pairs, C·P]. pairs: int32 [·, 4], PAIR.
    """
    group, row = tl.program_id(0), tl.program_id(1)
    pair = pairs + 4 * row
    eps = _float(pair + 3)
    if eps < 0:
        norm1 = _weights(pair) + 2 * channels * channels + channels * (embedding + 5)
        width = channels // tl.minimum(channels, _GROUPS)
        begin = group * width * positions
        y = h + tl.load(pair + 2).to(tl.int64) * channels * positions + begin
        count, mean, m2 = 0.0, 0.0, 0.0
        for first in range(0, width * positions, _BLOCK):
            offsets = first + tl.arange(0, _BLOCK)
            inside = offsets < width * positions
            x = tl.load(y + offsets, mask=inside, other=0.0).to(tl.float32)
            count, mean, m2 = _merge(count, mean, m2, x, inside)
        out = v + row.to(tl.int64) * channels * positions + begin
        _normalise(y, out, norm1, norm1 + channels, group, width, positions, count, mean, m2, -eps)


# --- the launch before the last ---------------------------------------------------------------------------


@triton.jit
def _hidden(h, v, temb, u, pairs, channels, positions, embedding, STAGES: tl.constexpr):
    group, row = tl.program_id(0), tl.program_id(1)
    pair = pairs + 4 * row
    conv1, sample, eps = _weights(pair), tl.load(pair + 2).to(tl.int64), _float(pair + 3)
    conv1_bias = conv1 + channels * channels
    temb_proj = conv1_bias + channels
    temb_proj_bias = temb_proj + channels * embedding
    norm2 = temb_proj_bias + channels
    size, width = channels * positions, channels // tl.minimum(channels, _GROUPS)
    end = (group + 1) * width
    out = u + row.to(tl.int64) * size
    count, mean, m2 = 0.0, 0.0, 0.0
    for first in range(group * width, end, _HIDDEN_C):
        c = first + tl.arange(0, _HIDDEN_C)
        bias = tl.load(conv1_bias + c, mask=c < end, other=0.0) + tl.load(temb_proj_bias + c, mask=c < end, other=0.0)
        for first_e in range(0, embedding, _BLOCK_E):
            e = first_e + tl.arange(0, _BLOCK_E)
            c_e = temb_proj + c[:, None] * embedding + e[None, :]
            a = tl.load(c_e, mask=(c[:, None] < end) & (e[None, :] < embedding), other=0.0)
            b = _silu(tl.load(temb + sample * embedding + e, mask=e < embedding, other=0.0).to(tl.float32))
            bias += tl.sum(a * b[None, :], axis=1)
        for first_p in range(0, positions, _HIDDEN_P):
            p = first_p + tl.arange(0, _HIDDEN_P)
            y = tl.zeros((_HIDDEN_C, _HIDDEN_P), tl.float32) + bias[:, None]
            if eps < 0:
                y = _convolve(y, conv1, v + row.to(tl.int64) * size, c, end, p, channels, positions, STAGES)
            else:
                y = _convolve(y, conv1, h + sample * size, c, end, p, channels, positions, STAGES)
            inside = (c[:, None] < end) & (p[None, :] < positions)
            tl.store(out + c[:, None] * positions + p[None, :], y, mask=inside)
            count, mean, m2 = _merge(count, mean, m2, y, inside)
    tl.debug_barrier()  # other threads of this program wrote what is read now
    out += group * width * positions
    _normalise(out, out, norm2, norm2 + channels, group, width, positions, count, mean, m2, tl.abs(eps))


@triton.jit(do_not_specialize=["channels", "positions", "embedding"])
def block_hidden(h, v, temb, u, pairs, channels, positions, embedding):
    """u[r] ← SiLU(GroupNorm(conv1(v[r] or h[sample]) + temb_proj(SiLU(temb[sample])))) of every pair r.

    h: T [M, C·P]. v: float32 [number of pairs, C·P], read where a pair is in the improved layout. temb: T [N, E].
    u: float32 [number of pairs, C·P]. pairs: int32 [·, 4], PAIR. Grid (min(32, C), number of pairs): a program makes
    one of GroupNorm's groups, leaves it in u before the norm, and comes back to it.
    """
    if (channels % 4 == 0) & (positions % 4 == 0):  # told to the compiler, which then loads 16 bytes at once
        _hidden(h, v, temb, u, pairs, channels // 4 * 4, positions // 4 * 4, embedding, 4)
    else:
        _hidden(h, v, temb, u, pairs, channels, positions, embedding, 1)


# --- the last launch --------------------------------------------------------------------------------------


@triton.jit
def _add(
    h,
    u,
    targets,
    terms,
    channels,
    positions,
    embedding,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    STAGES: tl.constexpr,
):
    target = targets + 4 * tl.program_id(2)
    dest, source = tl.load(target).to(tl.int64), tl.load(target + 1).to(tl.int64)
    first, count = tl.load(target + 2), tl.load(target + 3)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    p = tl.program_id(1) * BLOCK_P + tl.arange(0, BLOCK_P)
    inside = (c[:, None] < channels) & (p[None, :] < positions)
    offsets = c[:, None] * positions + p[None, :]
    size = channels * positions
    total = tl.load(h + source * size + offsets, mask=inside, other=0.0).to(tl.float32)
    for i in range(first, first + count):
        term = terms + 4 * i
        weights, coefficient, row = _weights(term), _float(term + 2), tl.load(term + 3)
        if row < 0:
            delta = tl.load(weights + offsets, mask=inside, other=0.0)
        else:
            conv2 = weights + channels * (channels + embedding + 4)
            bias = tl.load(conv2 + channels * channels + c, mask=c < channels, other=0.0)
            delta = tl.zeros((BLOCK_C, BLOCK_P), tl.float32) + bias[:, None]
            hidden = u + row.to(tl.int64) * size
            delta = _convolve(delta, conv2, hidden, c, channels, p, channels, positions, STAGES)
        total += coefficient * delta
    tl.store(h + dest * size + offsets, total.to(h.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["channels", "positions", "embedding"])
def inject(h, u, targets, terms, channels, positions, embedding, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """h[dest] ← h[source] + Σ coefficient·Δh of every target.

    h: T [M, C·P]. u: float32 [number of pairs, C·P], which `block_hidden` made; 0 where no term is a block's. targets,
    terms: int32 [·, 4], TARGET, TERM. embedding: E, 0 where no term is a block's. No target reads a row that another
    one writes. Grid (ceil(C / BLOCK_C), ceil(P / BLOCK_P), number of targets).
    """
    if (channels % 4 == 0) & (positions % 4 == 0):  # told to the compiler, which then loads 16 bytes at once
        _add(h, u, targets, terms, channels // 4 * 4, positions // 4 * 4, embedding, BLOCK_C, BLOCK_P, 4)
    else:
        _add(h, u, targets, terms, channels, positions, embedding, BLOCK_C, BLOCK_P, 1)


# --- launches, and the same in PyTorch --------------------------------------------------------------------


def launch(
    h: torch.Tensor,
    targets: torch.Tensor,
    terms: torch.Tensor,
    *,
    pairs: torch.Tensor | None = None,
    temb: torch.Tensor | None = None,
    u: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
) -> None:
    """Runs the kernels on contiguous tensors: `inject`, before it `block_hidden` where there are pairs, and before that
    `block_norm` where there is a v.

    h: T [M, C, P]; targets, terms, pairs: int32 [·, 4]; temb: T [N, E]; u, v: float32 [number of pairs, C, P].
    """
    channels, positions = h.shape[1:]
    embedding, absent = 0, torch.empty(0, device=h.device)  # at address 0
    if pairs is not None and temb is not None and u is not None:
        embedding, grid = temb.shape[1], (min(GROUPS, channels), len(pairs))
        if v is not None:
            block_norm[grid](h, v, pairs, channels, positions, embedding)
        read = absent if v is None else v
        block_hidden[grid](h, read, temb, u, pairs, channels, positions, embedding, num_warps=HIDDEN_WARPS)
    tiles = (triton.cdiv(channels, BLOCK_C), triton.cdiv(positions, BLOCK_P), len(targets))
    read = absent if u is None else u
    inject[tiles](h, read, targets, terms, channels, positions, embedding, BLOCK_C=BLOCK_C, BLOCK_P=BLOCK_P)


def reference(
    h: torch.Tensor,
    temb: torch.Tensor,
    targets: Sequence[tuple[int, int, Sequence[tuple[float, torch.Tensor | DeltaBlock]]]],
) -> torch.Tensor:
    """h after the injection, float64 [M, C, P]. A target: (dest, source, [(coefficient, Δh [C, P] or a block)])."""
    result = h.double()
    for dest, source, terms in targets:
        total = h[source].double()
        for coefficient, what in terms:
            delta = block_reference(what, h[source], temb[source]) if isinstance(what, DeltaBlock) else what.double()
            total = total + coefficient * delta
        result[dest] = total
    return result


def block_reference(block: DeltaBlock, h: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
    """Δh of one sample, float64 [C, P]. h: [C, P]; temb: [E]."""

    def part(pair: tuple[np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = (torch.from_numpy(a).to(h.device, torch.float64) for a in pair)
        return weight, bias

    def norm(x: torch.Tensor, pair: tuple[np.ndarray, np.ndarray]) -> torch.Tensor:
        return F.silu(F.group_norm(x[None], min(GROUPS, len(x)), *part(pair), eps=block.eps)[0])

    (conv1, conv1_bias), (conv2, conv2_bias) = part(block.conv1), part(block.conv2)
    y = h.double() if block.norm1 is None else norm(h.double(), block.norm1)
    y = conv1 @ y + conv1_bias[:, None] + F.linear(F.silu(temb.double()), *part(block.temb_proj))[:, None]
    return conv2 @ norm(y, block.norm2) + conv2_bias[:, None]
