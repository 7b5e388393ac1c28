"""The generator against `hspace.noise`, and Box–Muller where float32 has least to spare."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from hspace.noise import NoiseStream
from hspace_kernels import normal
from hspace_kernels.normal import box_muller

from .helpers import DEVICE, guarded, intact

TOLERANCE = 1e-6  # absolute, on values up to 6.8


@triton.jit
def box_muller_of(words, out, n, BLOCK: tl.constexpr):
    """out[:, i] ← the two normals of words[:, i]. words: uint32 bits, int32 [2, n]; out: float32 [2, n]."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word_0 = tl.load(words + i, mask=i < n, other=0).to(tl.uint32, bitcast=True)
    word_1 = tl.load(words + n + i, mask=i < n, other=0).to(tl.uint32, bitcast=True)
    z_0, z_1 = box_muller(word_0, word_1)
    tl.store(out + i, z_0, mask=i < n)
    tl.store(out + n + i, z_1, mask=i < n)


def largest_error(words: np.ndarray) -> float:
    """Of Box–Muller on words (uint32 [2, n]), against float64 rounded to float32."""
    n, block = words.shape[1], 1024 if DEVICE == "cuda" else 2**18
    out = torch.empty(2, n, device=DEVICE)
    given = torch.from_numpy(words.view(np.int32).copy()).to(DEVICE)
    box_muller_of[(triton.cdiv(n, block),)](given, out, n, BLOCK=block)
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2 * np.log(u[0])), 2 * np.pi * u[1]
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)]).astype(np.float32)
    return float(np.abs(out.cpu().numpy().astype(np.float64) - expected).max())


def around(*centres: int, width: int = 40) -> np.ndarray:
    return np.unique([(c + d) % 2**32 for c in centres for d in range(-width, width + 1)]).astype(np.uint32)


def test_extreme_words() -> None:
    """u_0 near 0, near 1, and where the logarithm changes its formula; angles near multiples of π/4."""
    radii = around(0, 2**23, 2**24, 2**31, 0xB504F333, 0xC0000000, 0x5A82799A)
    angles = around(*(i << 29 for i in range(8)), width=20)
    words = np.stack([g.reshape(-1) for g in np.meshgrid(radii, angles)])
    assert largest_error(words) <= TOLERANCE


def test_large_radii() -> None:
    """The largest values have the coarsest float32, and every error is multiplied by the radius."""
    rng = np.random.default_rng(0)
    words = rng.integers(0, [[2**14], [2**32]], (2, 2**18), dtype=np.uint64).astype(np.uint32)
    assert largest_error(words) <= TOLERANCE


def test_random_words() -> None:
    rng = np.random.default_rng(1)
    assert largest_error(rng.integers(0, 2**32, (2, 2**20), dtype=np.uint64).astype(np.uint32)) <= TOLERANCE


CASES = [
    # elements, images, draw, stream, seed
    (192, [0], 0, NoiseStream.STEP, 0),
    (1, [7], 1, NoiseStream.X_T, 1),
    (513, [3, 2**32 - 1], 2, NoiseStream.Z_SEM, 2**32),
    (3 * 17 * 13, [2**31, 0, 5], 2**31 + 5, NoiseStream.X_T, 2**64 - 1),
    (2050, [1, 2, 3, 4, 5], 2**32 - 1, NoiseStream.STEP, 0x8000000180000002),
]


@pytest.mark.parametrize(("elements", "images", "draw", "stream", "seed"), CASES)
def test_a_draw(elements: int, images: list[int], draw: int, stream: NoiseStream, seed: int) -> None:
    out = guarded(torch.full((len(images), elements), float("nan")))
    numbers = torch.from_numpy(np.array(images, dtype=np.uint32).view(np.int32)).to(DEVICE)
    normal.launch(out, numbers, draw, stream, seed)
    expected = torch.empty(len(images), elements)
    normal.reference(expected, numbers, draw, stream, seed)
    assert (out.cpu().double() - expected).abs().max() <= TOLERANCE and intact(out)
