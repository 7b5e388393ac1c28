"""Builders: each compiles a sampler into rows (ROW64) for `Program.from_rows`.

All take a `Schedule` and the timesteps to visit, ascending. With ᾱ = alphas_cumprod at the row's level and
ᾱ_next at the next one, α = sqrt(ᾱ), σ = sqrt(1 − ᾱ), a step is (Song et al. 2021, equations 12 and 16)

    x_next = α_next·P + sqrt(σ_next² − s²)·ε + s·z,   s = eta·sqrt((1 − ᾱ/ᾱ_next)·(1 − ᾱ_next)/(1 − ᾱ)).

"The next level" is that of the next timestep that the run visits. diffusers' DDIMScheduler steps by T // n instead,
which is the same for leading timesteps, and for trailing ones where n divides T; with linspace it would step to
levels that it does not visit next, and that is not copied (docs/decisions/0008).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ArgumentError
from .program import ROW64, Branch, Rows
from .schedule import Direction, End, Schedule, Timesteps


def _rows(
    t: ArrayLike,
    ab: NDArray[np.float64],
    ab_next: NDArray[np.float64],
    *,
    eta: ArrayLike = 0.0,
    large: bool = False,
    clip: bool = False,
    direction: Direction = "clamped",
    branch: ArrayLike = Branch.NONE,
    edit_scale: ArrayLike = 1.0,
) -> Rows:
    """One row per step from level `ab` to level `ab_next`; `t` is what the network is told.

    A clamped row takes its direction from the clamped P, ε' = (x − α·P)/σ, as DiffAE's code and diffusers' DDPM
    do, or with "raw" from the network's own ε, as diffusers' DDIM does. In an asymmetric row the direction comes from
    the unedited prediction, so it is the unedited P, clamped, that ε' is derived from (clip 2).
    """
    if direction not in ("raw", "clamped"):
        raise ArgumentError(f"direction: found {direction!r}, expected 'raw' or 'clamped'")
    rows = np.zeros(len(ab), dtype=ROW64)
    alpha, sigma, alpha_next = np.sqrt(ab), np.sqrt(1 - ab), np.sqrt(ab_next)
    eta = np.broadcast_to(np.asarray(eta, dtype=np.float64), ab.shape)
    noisy = eta > 0  # only rows towards the image draw, so ᾱ < ᾱ_next there
    s = np.zeros_like(ab)
    a, b = ab[noisy], ab_next[noisy]
    s[noisy] = eta[noisy] * np.sqrt((1 - a / b) * (1 - b) / (1 - a))
    sigma_next = np.sqrt(np.maximum(1 - ab_next - s**2, 0))  # what the direction is scaled by
    if large:
        s[noisy] = np.where(b < 1, np.sqrt(1 - a / b), 0)  # no noise on the clean image
    rows["t"], rows["alpha"], rows["sigma"] = t, alpha, sigma
    rows["branch"] = branch
    asymmetric = rows["branch"] == Branch.ASYMMETRIC
    rows["clip"] = np.where(asymmetric & (direction == "clamped"), 2, 1) if clip else 0
    rows["draws"] = noisy
    rows["c_noise"] = s
    rows["edit_scale"] = np.where(rows["branch"] != Branch.NONE, edit_scale, 0)
    from_x = ~asymmetric & (clip and direction == "clamped")
    divisor = np.where(from_x, sigma, 1)  # only raw rows start at the clean image, where sigma is 0
    rows["c_x"] = np.where(from_x, sigma_next / divisor, 0)
    rows["c_x0"] = np.where(from_x, alpha_next - alpha * sigma_next / divisor, alpha_next)
    rows["c_eps"] = np.where(from_x, 0, sigma_next)
    return rows


def _levels(schedule: Schedule, timesteps: Timesteps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ᾱ at each timestep, and at the next lower one of the run; below the first lies the clean image, ᾱ = 1."""
    ab = schedule.alphas_cumprod[timesteps]
    return ab, np.concatenate([[1.0], ab[:-1]])


def ddim(
    schedule: Schedule,
    timesteps: Timesteps,
    *,
    eta: float = 0.0,
    large: bool = False,
    clip: bool = False,
    direction: Direction = "clamped",
) -> Rows:
    """DDIM from the last timestep to the clean image, one row per timestep (Song et al. 2021, equation 12).

    eta: 0 (deterministic) … 1 (DDPM's posterior variance); rows with eta > 0 take a draw, the last included.
    large: rows that draw do so with variance 1 − ᾱ/ᾱ_next, β over all timesteps (Ho et al. 2020, section 3.2), about
    the same mean; the last row, to the clean image, adds none. clip: clamp P to [−1, 1]. direction: of clamped rows;
    DiffAE and diffusers' DDPMScheduler take it from the clamped P, diffusers' DDIMScheduler takes the raw ε.
    """
    if not (0 <= eta <= 1):
        raise ArgumentError(f"eta: found {eta!r}, expected 0 to 1")
    ab, below = _levels(schedule, timesteps)
    return _rows(timesteps, ab, below, eta=eta, large=large, clip=clip, direction=direction)[::-1].copy()


def ddim_inversion(
    schedule: Schedule,
    timesteps: Timesteps,
    *,
    clip: bool = False,
    at: End = "lower",
    to_noise: bool = False,
) -> Rows:
    """DDIM's ODE from the clean image upwards (Song et al. 2021, section 4.3). at: which end of a step the network
    is told.

    "lower" (DiffAE, Asyrp): the image counts as x at the first timestep. to_noise: a last row from the last timestep
    to ᾱ = 0, as DiffAE's encode has; without it there is one row fewer than there are timesteps.

    "upper" (diffusers' DDIMInverseScheduler): the image is x at ᾱ = 1, so the first row's P is the image itself, and
    row i goes from the timestep before to its own: as many rows as timesteps, up to the last one's level. Clamped
    rows take their direction from the raw ε. It has no row to ᾱ = 0.
    """
    if at not in ("lower", "upper"):
        raise ArgumentError(f"at: found {at!r}, expected 'lower' or 'upper'")
    ab, below = _levels(schedule, timesteps)
    if at == "upper":
        if to_noise:
            raise ArgumentError("to_noise: an inversion at the upper end has no row to ᾱ = 0")
        return _rows(timesteps, below, ab, clip=clip, direction="raw")
    rows = _rows(timesteps, ab, np.append(ab[1:], 0.0), clip=clip)
    if not to_noise:
        rows = rows[:-1]
    if len(rows) == 0:
        raise ArgumentError("steps: found 1, expected at least 2: an encode runs between timesteps")
    return rows


def edit(
    schedule: Schedule,
    timesteps: Timesteps,
    *,
    branch: Branch = Branch.ASYMMETRIC,
    t_edit: int = 0,
    t_boost: int = 0,
    edit_scale: ArrayLike = 1.0,
    eta: float = 0.0,
    large: bool = False,
    clip: bool = False,
    direction: Direction = "clamped",
) -> Rows:
    """Asyrp's generative process with its three phases (Kwon et al. 2023, equation 5 and section 3.4).

    Rows with t ≥ t_edit inject Δh·edit_scale: into P alone (asymmetric), or into P and the direction
    (symmetric: Haas et al. 2024). Rows with t < t_boost are DDPM's (eta = 1) and take a draw; those above have `eta`.
    edit_scale: of asymmetric rows, one for all or one per timestep. large, clip, direction: as `ddim` has them.
    """
    if branch == Branch.NONE:
        raise ArgumentError("branch: found none, expected asymmetric or symmetric")
    ab, below = _levels(schedule, timesteps)
    rows = _rows(
        timesteps,
        ab,
        below,
        eta=np.where(timesteps < t_boost, 1.0, eta),
        large=large,
        clip=clip,
        direction=direction,
        branch=np.where(timesteps >= t_edit, branch, Branch.NONE),
        edit_scale=edit_scale if branch == Branch.ASYMMETRIC else 1.0,
    )
    return rows[::-1].copy()
