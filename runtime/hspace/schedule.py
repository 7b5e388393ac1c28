"""Noise schedules, and the timesteps that a run visits.

A schedule is its `alphas_cumprod` (ᾱ, float64 [T]): ᾱ_t is the share of the image's variance left at
timestep t, so that x_t = sqrt(ᾱ_t)·x_0 + sqrt(1 − ᾱ_t)·ε (Ho et al. 2020, equation 4). A spacing picks
the timesteps, in ascending order, that a run with few steps visits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_whole
from .errors import ArgumentError

Timesteps = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A noise schedule.

    alphas_cumprod: float64 [T], strictly decreasing, within (0, 1).
    """

    alphas_cumprod: NDArray[np.float64]

    def __post_init__(self) -> None:
        a = self.alphas_cumprod
        if a.ndim != 1 or a.size == 0:
            raise ArgumentError(f"alphas_cumprod: found shape {a.shape}, expected one dimension of at least 1")
        if not (np.isfinite(a).all() and a[0] < 1 and a[-1] > 0 and (np.diff(a) < 0).all()):
            raise ArgumentError("alphas_cumprod: expected finite values that fall strictly and lie within (0, 1)")

    @property
    def timesteps(self) -> int:
        """T, the number of timesteps that the model was trained with."""
        return int(self.alphas_cumprod.size)

    @classmethod
    def from_betas(cls, betas: ArrayLike) -> Schedule:
        """The schedule with the given β (float [T], each within (0, 1)): ᾱ_t = Π_{s ≤ t} (1 − β_s)."""
        with np.errstate(all="ignore"):  # what overflows is refused for what it gives
            return cls(np.cumprod(1.0 - np.asarray(betas, dtype=np.float64), dtype=np.float64))

    @classmethod
    def linear(cls, timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        """β from `beta_start` to `beta_end` in equal steps (Ho et al. 2020, section 4)."""
        return cls.from_betas(np.linspace(beta_start, beta_end, timesteps, dtype=np.float64))

    @classmethod
    def const(cls, beta: float = 0.008, timesteps: int = 1000) -> Schedule:
        """The same β at every timestep: DiffAE's latent DDIM uses 0.008 (Preechakul et al. 2022, appendix A)."""
        return cls.from_betas(np.full(timesteps, beta, dtype=np.float64))

    @classmethod
    def cosine(cls, timesteps: int = 1000, max_beta: float = 0.999) -> Schedule:
        """Nichol and Dhariwal 2021, equation 17, with β clamped to `max_beta`."""
        f = np.cos((np.arange(timesteps + 1) / timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
        return cls.from_betas(np.minimum(1 - f[1:] / f[:-1], max_beta))


def _diffae(steps: int, total: int) -> Timesteps:
    stride = -(-total // steps)
    found = np.arange(0, total, stride, dtype=np.int64)
    if found.size != steps:
        fewer, more = found.size, -(-total // (stride - 1))
        raise ArgumentError(
            f"steps: {steps} timesteps cannot be had with an integer stride over {total}; the nearest that can are "
            f"{fewer} and {more}"
        )
    return found


def _asyrp(steps: int, total: int) -> Timesteps:
    return (np.linspace(0, 1, steps) * (total - 1) + 1e-6).astype(np.int64)


def _leading(steps: int, total: int) -> Timesteps:
    return np.arange(steps, dtype=np.int64) * (total // steps)


def _linspace(steps: int, total: int) -> Timesteps:
    return np.linspace(0, total - 1, steps).round().astype(np.int64)


def _trailing(steps: int, total: int) -> Timesteps:
    return np.round(np.arange(total, 0, -total / steps)).astype(np.int64)[:steps][::-1] - 1


SPACINGS: dict[str, Callable[[int, int], Timesteps]] = {
    # DiffAE: multiples of the smallest integer stride that gives `steps` timesteps
    "diffae": _diffae,
    # Asyrp: int(s + 1e-6) for s in linspace(0, 1, steps)·(total − 1)
    "asyrp": _asyrp,
    # the three of diffusers (Lin et al. 2024, table 2)
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
}


def space_timesteps(spacing: str, steps: int, total: int) -> Timesteps:
    """The timesteps that a run of `steps` steps visits, ascending.

    spacing: a name in `SPACINGS`. steps: 1…min(1000, total). total: the schedule's T.
    Returns int64 [steps], distinct, within [0, total).
    Raises ArgumentError for an unknown spacing, or a number of steps that the spacing cannot give.
    """
    if spacing not in SPACINGS:
        raise ArgumentError(f"spacing: found {spacing!r}, expected one of {', '.join(SPACINGS)}")
    check_whole("steps", steps, 1, min(1000, total))
    return SPACINGS[spacing](int(steps), total)
