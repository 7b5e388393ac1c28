"""Counter-based Gaussian noise, the same in any batch, on any device and in any language.

Philox4x32-10 (Salmon et al. 2011) with key (seed low, seed high) and counter (element // 4, draw, image in
the call, stream); u = (word + 0.5)·2⁻³²; Box–Muller on the word pairs (0, 1) and (2, 3).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .errors import ArgumentError


class NoiseStream(enum.IntEnum):
    """What a draw is for; streams of one seed are independent."""

    STEP = 0
    X_T = 1
    Z_SEM = 2


def philox4x32(counter: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Ten rounds of Philox4x32. counter: uint32 [n, 4]; seed: 0 … 2⁶⁴ − 1. Returns uint32 [n, 4]."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ np.uint64(k0), b & mask, (a >> shift) ^ c3 ^ np.uint64(k1), a & mask
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def check_seed(seed: object) -> int:
    """`seed` as an int in 0 … 2⁶⁴ − 1, or ArgumentError."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**64:
        raise ArgumentError(f"seed: found {seed!r}, expected a whole number from 0 to 2^64 - 1")
    return int(seed)


def normal(shape: Sequence[int], seed: int, *, draw: int, image: int, stream: NoiseStream) -> NDArray[np.float32]:
    """One sample's draw of standard Gaussian noise, float32 of `shape`."""
    size = int(np.prod(shape, dtype=np.int64))
    counter = np.empty((-(-size // 4), 4), dtype=np.uint32)
    counter[:, 0] = np.arange(len(counter))
    counter[:, 1:] = draw, image, stream
    u = (philox4x32(counter, check_seed(seed)).astype(np.float64) + 0.5) * 2.0**-32
    radius, angle = np.sqrt(-2 * np.log(u[:, 0::2])), 2 * np.pi * u[:, 1::2]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2)
    return z.reshape(-1)[:size].reshape(shape).astype(np.float32)
