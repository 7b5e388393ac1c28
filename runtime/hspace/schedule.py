"""Noise schedules, and the timesteps that a run visits.

A schedule is its `alphas_cumprod` (ᾱ, float64 [T]): ᾱ_t is the share of the image's variance left at
timestep t, so that x_t = sqrt(ᾱ_t)·x_0 + sqrt(1 − ᾱ_t)·ε (Ho et al. 2020, equation 4). A spacing picks
the timesteps, in ascending order, that a run with few steps visits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .checks import check_whole
from .errors import ArgumentError

Timesteps = NDArray[np.int64]
# σ/α of the first and last timestep of a spacing that is ours to choose, and up to where a schedule may end to be left
# whole, as DDPM's linear one does with 157 (docs/decisions/0018)
LEAST_NOISE, MOST_NOISE, WHOLE_NOISE = 0.01, 40.0, 160.0


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

    @cached_property
    def log_snr(self) -> NDArray[np.float64]:
        """float64 [T]: log(α/σ), falling; half of the logarithm of the signal-to-noise ratio."""
        return 0.5 * (np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod))

    @cached_property
    def span(self) -> range:
        """The timesteps at which a network can predict (docs/decisions/0018): from that whose σ/α is nearest to
        `LEAST_NOISE` to the last one of all, or, where its σ/α is above `WHOLE_NOISE`, the last one whose σ/α is at
        most `MOST_NOISE`; where T allows it, two at least.
        """
        noise = -self.log_snr
        first = min(int(np.abs(noise - math.log(LEAST_NOISE)).argmin()), max(self.timesteps - 2, 0))
        stop = self.timesteps
        if noise[-1] > math.log(WHOLE_NOISE):
            stop = min(max(int(np.searchsorted(noise, math.log(MOST_NOISE), side="right")), first + 2), stop)
        return range(first, stop)

    @cached_property
    def within_span(self) -> Schedule:
        """The part of the schedule over its span."""
        return Schedule(self.alphas_cumprod[self.span.start : self.span.stop])

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


def _diffae(steps: int, schedule: Schedule) -> Timesteps:
    total = schedule.timesteps
    stride = -(-total // steps)
    timesteps = np.arange(0, total, stride, dtype=np.int64)
    if timesteps.size != steps:
        fewer, more = timesteps.size, -(-total // (stride - 1))
        raise ArgumentError(
            f"steps: {steps} timesteps cannot be had with an integer stride over {total}; the nearest that can are "
            f"{fewer} and {more}"
        )
    return timesteps


def _asyrp(steps: int, schedule: Schedule) -> Timesteps:
    return (np.linspace(0, 1, steps) * (schedule.timesteps - 1) + 1e-6).astype(np.int64)


def _leading(steps: int, schedule: Schedule) -> Timesteps:
    return np.arange(steps, dtype=np.int64) * (schedule.timesteps // steps)


def _linspace(steps: int, schedule: Schedule) -> Timesteps:
    return np.linspace(0, schedule.timesteps - 1, steps).round().astype(np.int64)


def _trailing(steps: int, schedule: Schedule) -> Timesteps:
    total = schedule.timesteps
    return np.round(np.arange(total, 0, -total / steps)).astype(np.int64)[:steps][::-1] - 1


def _logsnr(steps: int, schedule: Schedule) -> Timesteps:
    levels = -schedule.log_snr
    return _nearest(levels, np.linspace(levels[-1], levels[0], steps)[::-1])


def _karras(steps: int, schedule: Schedule) -> Timesteps:
    levels = -schedule.log_snr  # log(σ/α)
    roots = np.linspace(np.exp(levels[-1] / 7), np.exp(levels[0] / 7), steps)[::-1]
    return _nearest(levels, 7 * np.log(roots))


def _quadratic(steps: int, schedule: Schedule) -> Timesteps:
    last = schedule.timesteps - 1
    return _nearest(np.arange(last + 1.0), np.linspace(np.sqrt(last), 0, steps)[::-1] ** 2)


def _nearest(levels: NDArray[np.float64], wanted: NDArray[np.float64]) -> Timesteps:
    """The timesteps whose levels are nearest to those wanted, both ascending, moved apart where several are one."""
    t, each = np.interp(wanted, levels, np.arange(len(levels))).round().astype(np.int64), np.arange(len(wanted))
    apart = np.maximum.accumulate(t - each) + each
    return np.minimum(apart, len(levels) - len(wanted) + each)


Direction = Literal["raw", "clamped"]
End = Literal["lower", "upper"]


class Spacing(NamedTuple):
    """How a code base spaces timesteps, and what else it does its own way.

    timesteps: (steps, schedule) to int64 [steps], ascending. within_span: it visits the schedule's span alone; the
    others are a code base's own for every schedule. direction: where a clamped row of DDIM's takes its direction from:
    the network's own ε ("raw"), or the ε that the clamped P implies. at, to_noise: see `samplers.ddim_inversion`. even:
    its steps are of one length.
    """

    timesteps: Callable[[int, Schedule], Timesteps]
    within_span: bool = False
    direction: Direction = "clamped"
    at: End = "lower"
    to_noise: bool = False
    even: bool = True


SPACINGS = {
    # DiffAE: multiples of the smallest integer stride that gives `steps` timesteps
    "diffae": Spacing(_diffae, to_noise=True),
    # Asyrp: int(s + 1e-6) for s in linspace(0, 1, steps)·(total − 1); its code has linear schedules alone
    "asyrp": Spacing(_asyrp, within_span=True),
    # the three of diffusers (Lin et al. 2024, table 2; docs/decisions/0008)
    "leading": Spacing(_leading, direction="raw", at="upper"),
    "linspace": Spacing(_linspace, direction="raw", at="upper"),
    "trailing": Spacing(_trailing, direction="raw", at="upper"),
    # uniform in log-SNR, log(α/σ) (Lu et al. 2022), from the last timestep to the first
    "logsnr": Spacing(_logsnr, within_span=True, even=False),
    # σ/α^(1/7) uniform (Karras et al. 2022, equation 5, rho 7)
    "karras": Spacing(_karras, within_span=True, even=False),
    # sqrt(t) uniform (Song et al. 2021, appendix D.2)
    "quadratic": Spacing(_quadratic, within_span=True, even=False),
}


def space_timesteps(spacing: str, steps: int, schedule: Schedule) -> Timesteps:
    """The timesteps that a run of `steps` steps visits, ascending.

    spacing: a name in `SPACINGS`. steps: 1…min(1000, T); where there are more than the schedule's span has timesteps,
    asyrp, logsnr, karras and quadratic leave it, towards the image first.
    Returns int64 [steps], distinct, within [0, total).
    Raises ArgumentError for an unknown spacing, or a number of steps that the spacing cannot give.
    """
    if spacing not in SPACINGS:
        raise ArgumentError(f"spacing: found {spacing!r}, expected one of {', '.join(SPACINGS)}")
    check_whole("steps", steps, 1, min(1000, schedule.timesteps))
    space, within_span = SPACINGS[spacing][:2]
    if not within_span:
        return space(int(steps), schedule)
    span = schedule.span
    if steps <= len(span):
        return span.start + space(int(steps), schedule.within_span)
    first = max(0, min(span.start, span.stop - steps))
    stop = max(span.stop, first + steps)
    return first + space(int(steps), Schedule(schedule.alphas_cumprod[first:stop]))


def check_timestep(name: str, value: object, schedule: Schedule) -> None:
    """Raises ArgumentError for anything but one of the schedule's timesteps."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or not 0 <= value < schedule.timesteps:  # type: ignore[operator]
        last = schedule.timesteps - 1
        raise ArgumentError(f"{name}: found {value!r}, expected a timestep, a whole number from 0 to {last}")
