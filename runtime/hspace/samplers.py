"""Builders: each compiles a sampler into rows (ROW64) for `Program.from_rows`.

All take a `Schedule` and the timesteps to visit, ascending. With ᾱ = alphas_cumprod at the row's level and
ᾱ_next at the next one, α = sqrt(ᾱ), σ = sqrt(1 − ᾱ), a step is (Song et al. 2021, equations 12 and 16)

    x_next = α_next·P + sqrt(σ_next² − s²)·ε + s·z,   s = eta·sqrt((1 − ᾱ/ᾱ_next)·(1 − ᾱ_next)/(1 − ᾱ)).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ArgumentError
from .program import ROW64, Branch, Rows
from .schedule import Schedule, Timesteps

ETA = {"ddim": 0.0, "ddpm": 1.0}  # the samplers that a preset can name, and their eta


def _rows(
    t: ArrayLike,
    ab: NDArray[np.float64],
    ab_next: NDArray[np.float64],
    *,
    eta: ArrayLike = 0.0,
    clip: bool = False,
    branch: ArrayLike = Branch.NONE,
    edit_scale: float = 1.0,
) -> Rows:
    """One row per step from level `ab` to level `ab_next`; `t` is what the network is told.

    A clamped row takes its direction from the clamped P, ε' = (x − α·P)/σ, as DiffAE's code does. An
    asymmetric row cannot: its direction must come from the unedited ε, so there the clamp acts on P alone.
    """
    rows = np.zeros(len(ab), dtype=ROW64)
    alpha, sigma, alpha_next = np.sqrt(ab), np.sqrt(1 - ab), np.sqrt(ab_next)
    eta = np.broadcast_to(np.asarray(eta, dtype=np.float64), ab.shape)
    noisy = eta > 0  # only rows towards the image draw, so ᾱ < ᾱ_next there
    s = np.zeros_like(ab)
    a, b = ab[noisy], ab_next[noisy]
    s[noisy] = eta[noisy] * np.sqrt((1 - a / b) * (1 - b) / (1 - a))
    direction = np.sqrt(np.maximum(1 - ab_next - s**2, 0))
    rows["t"], rows["alpha"], rows["sigma"] = t, alpha, sigma
    rows["branch"] = branch
    rows["clip"] = clip
    rows["draws"] = noisy
    rows["c_noise"] = s
    rows["edit_scale"] = np.where(rows["branch"] != Branch.NONE, edit_scale, 0)
    from_x = clip & (rows["branch"] != Branch.ASYMMETRIC)
    rows["c_x"] = np.where(from_x, direction / sigma, 0)
    rows["c_x0"] = np.where(from_x, alpha_next - alpha * direction / sigma, alpha_next)
    rows["c_eps"] = np.where(from_x, 0, direction)
    return rows


def _levels(schedule: Schedule, timesteps: Timesteps) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ᾱ at each timestep, and at the next lower one of the run; below the first lies the clean image, ᾱ = 1."""
    ab = schedule.alphas_cumprod[timesteps]
    return ab, np.concatenate([[1.0], ab[:-1]])


def ddim(schedule: Schedule, timesteps: Timesteps, *, eta: float = 0.0, clip: bool = False) -> Rows:
    """DDIM from the last timestep to the clean image, one row per timestep (Song et al. 2021, equation 12).

    eta: 0 (deterministic) … 1 (DDPM's posterior variance); rows with eta > 0 take a draw, the last included.
    clip: clamp P to [−1, 1].
    """
    if not (0 <= eta <= 1):
        raise ArgumentError(f"eta: found {eta!r}, expected 0 to 1")
    ab, below = _levels(schedule, timesteps)
    return _rows(timesteps, ab, below, eta=eta, clip=clip)[::-1].copy()


def ddim_inversion(
    schedule: Schedule,
    timesteps: Timesteps,
    *,
    clip: bool = False,
    at: Literal["lower", "upper"] = "lower",
    to_noise: bool = False,
) -> Rows:
    """DDIM's ODE from the clean image upwards (Song et al. 2021, section 4.3).

    The image counts as x at the first timestep. at: which end of a step the network is told, the lower one
    (DiffAE, Asyrp) or the upper one (diffusers' DDIMInverseScheduler). to_noise: a last row from the last
    timestep to ᾱ = 0, as DiffAE's encode has; without it there is one row fewer than there are timesteps.
    """
    if at not in ("lower", "upper"):
        raise ArgumentError(f"at: found {at!r}, expected 'lower' or 'upper'")
    ab = schedule.alphas_cumprod[timesteps]
    above, told = np.append(ab[1:], 0.0), timesteps
    if at == "upper":
        told = np.append(timesteps[1:], schedule.timesteps - 1)
    rows = _rows(told, ab, above, clip=clip)
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
    edit_scale: float = 1.0,
    eta: float = 0.0,
    clip: bool = False,
) -> Rows:
    """Asyrp's generative process with its three phases (Kwon et al. 2023, equation 5 and section 3.4).

    Rows with t ≥ t_edit inject Δh·edit_scale: into P alone (asymmetric), or into P and the direction
    (symmetric: Haas et al. 2024). Rows with t < t_boost are DDPM's (eta = 1) and take a draw; those above have `eta`.
    """
    if branch == Branch.NONE:
        raise ArgumentError("branch: found none, expected asymmetric or symmetric")
    ab, below = _levels(schedule, timesteps)
    rows = _rows(
        timesteps,
        ab,
        below,
        eta=np.where(timesteps < t_boost, 1.0, eta),
        clip=clip,
        branch=np.where(timesteps >= t_edit, branch, Branch.NONE),
        edit_scale=edit_scale if branch == Branch.ASYMMETRIC else 1.0,
    )
    return rows[::-1].copy()
