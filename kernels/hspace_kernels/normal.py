"""Counter-based Gaussian noise: what `hspace.noise` draws, generated on the device.

Philox4x32-10 (Salmon et al. 2011) with key (seed low, seed high) and counter (element // 4, draw, image, stream);
u = (word + 0.5)·2⁻³²; Box–Muller on the word pairs (0, 1) and (2, 3).

The arithmetic is float32. It agrees with the float64 of `hspace.noise.normal` to 1e-6 for every word: the largest
errors of radius, sine and cosine and the rounding of both results add up to that; the largest seen is 5e-7, a unit in
the last place of values above 4 (in the interpreter, without fused multiply-adds, two units). Triton's log, sin and cos
are not used: they are right to a unit or two, which a radius of up to 6.8 multiplies, and their reduction of angles
is slow where it can be exact, in integers. sqrt.approx and div.full do: what they lose goes into a correction.
"""

from __future__ import annotations

import hspace.noise
import numpy as np
import torch
import triton
import triton.language as tl

BLOCK = 512


@triton.jit
def _upper(value):
    """value rounded to the upper 12 of a float32's 24 bits: products of two such numbers are exact."""
    return (value.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)


@triton.jit
def box_muller(word_0, word_1):
    """Two standard normals from two random words: r·cos(2π·u_1) and r·sin(2π·u_1) with r = √(−2·ln u_0).

    word_0, word_1: uint32 tensors of one shape. Returns two float32 tensors of that shape.
    """
    # ln u_0 = e·ln 2 + ln(1 + m) with m in [√½ − 1, √2 − 1). Where u_0 ≥ ¾, e = 0 and m = u_0 − 1, which is
    # −(~word_0 + 0.5)·2⁻³²: float32 holds 1 − u_0 there to full precision, but not u_0.
    bits = (word_0.to(tl.float32) + 0.5).to(tl.int32, bitcast=True) - 0x3F3504F3  # √½
    e = (bits >> 23) - 32
    m = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    near_one = word_0 >= 0xC0000000
    e = tl.where(near_one, 0, e).to(tl.float32)
    m = tl.where(near_one, ((word_0 ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * -(2.0**-32), m)
    # ln(1 + m) = m + m²·L(m); L, and S and C below, are minimax polynomials
    log = m * 0.0873443127124 - 0.144418112713
    log = m * log + 0.149789379676
    log = m * log - 0.165523329155
    log = m * log + 0.199536537115
    log = m * log - 0.250024917141
    log = m * log + 0.333342240767
    log = m * log - 0.499999819747
    # r² = −2·ln u_0 = high + low, with ln 2 in two parts: high is exact, and low small
    high = e * -1.38671875
    low = e * 4.24388880e-4 - 2.0 * (m * m * log + m)
    # r = r_0 + r_1 with r_0 of 12 bits, so that high − r_0² is exact: r_1 = (r² − r_0²)/(r + r_0)
    r = tl.sqrt(high + low)
    r_0 = _upper(r)
    r_1 = ((high - r_0 * r_0) + low) / (r + r_0)

    # 2π·u_1 = quadrant·π/2 + x·π/4 with x in (−1, 1), from integers
    turn = tl.add(word_1, 0x20000000, sanitize_overflow=False)
    quadrant = turn >> 30
    x = ((turn & 0x3FFFFFFF).to(tl.int32) * 2 - 0x3FFFFFFF).to(tl.float32) * 2.0**-30
    # sin(x·π/4) = x·π/4 + x³·S(x²), with π/4 in two parts; cos(x·π/4) = 1 + x²·C(x²)
    y = x * x
    sin = y * -3.59390496324e-5 + 0.0024899897314
    sin = y * sin - 0.0807454346856
    sin = x * 0.785398185253143 + x * (y * sin - 2.18556941e-8)
    cos = y * 3.53133467132e-6 - 0.000325942007982
    cos = y * cos + 0.0158543277519
    cos = y * cos - 0.308425135838
    cos = y * cos + 1.0
    odd = (quadrant & 1) != 0
    a, b = tl.where(odd, sin, cos), tl.where(odd, cos, sin)
    a = tl.where(((quadrant + 1) & 2) != 0, -a, a)
    b = tl.where((quadrant & 2) != 0, -b, b)

    # r·a and r·b rounded once: their largest parts are exact
    a_0, b_0 = _upper(a), _upper(b)
    return r_0 * a_0 + (r_0 * (a - a_0) + r_1 * a), r_0 * b_0 + (r_0 * (b - b_0) + r_1 * b)


@triton.jit
def normal_block(first, draw, image, stream, seed_low, seed_high, BLOCK: tl.constexpr):
    """Standard normals of the elements first … first + BLOCK − 1 of one draw of one image, float32 [BLOCK].

    first: int32, a multiple of 4. The others: int32, the bits of uint32.
    """
    low = seed_low.to(tl.uint32, bitcast=True).to(tl.uint64)
    high = seed_high.to(tl.uint32, bitcast=True).to(tl.uint64)
    w_0, w_1, w_2, w_3 = tl.philox((high << 32) | low, first // 4 + tl.arange(0, BLOCK // 4), draw, image, stream)
    z_0, z_1 = box_muller(w_0, w_1)
    z_2, z_3 = box_muller(w_2, w_3)
    return tl.interleave(tl.interleave(z_0, z_2), tl.interleave(z_1, z_3))


@triton.jit(do_not_specialize=["draw", "stream", "seed_low", "seed_high", "elements"])
def normal(out, images, draw, stream, seed_low, seed_high, elements, BLOCK: tl.constexpr):
    """out[n] ← draw number `draw` of image images[n]. Grid (ceil(elements / BLOCK), N).

    out: float32 [N, elements]. images: int32 [N]. images, draw, stream and seeds are the bits of uint32.
    """
    first, sample = tl.program_id(0) * BLOCK, tl.program_id(1)
    z = normal_block(first, draw, tl.load(images + sample), stream, seed_low, seed_high, BLOCK)
    offsets = first + tl.arange(0, BLOCK)
    tl.store(out + sample.to(tl.int64) * elements + offsets, z, mask=offsets < elements)


def launch(out: torch.Tensor, images: torch.Tensor, draw: int, stream: int, seed: int) -> None:
    """Runs the kernel. out: float32 [N, elements]; images: int32 [N]; draw: 0 … 2³² − 1; seed: 0 … 2⁶⁴ − 1."""
    n, elements = out.shape
    draw, low, high = (int(np.uint32(word).view(np.int32)) for word in (draw, seed & 0xFFFFFFFF, seed >> 32))
    normal[(triton.cdiv(elements, BLOCK), n)](out, images, draw, stream, low, high, elements, BLOCK=BLOCK)


def reference(out: torch.Tensor, images: torch.Tensor, draw: int, stream: int, seed: int) -> None:
    """The same by `hspace.noise`, in float64."""
    for row, image in zip(out, images.cpu().numpy().view(np.uint32), strict=True):
        z = hspace.noise.normal(row.shape, seed, draw=draw, image=int(image), stream=hspace.noise.NoiseStream(stream))
        row.copy_(torch.from_numpy(z))
