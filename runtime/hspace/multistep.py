"""Samplers of second order: each turns the rows of DDIM's, either way, into its own. One evaluation a row, as before.

A row of DDIM's goes from its level (α, σ) to the next one (α_n, σ_n) by the step D(α_n, σ_n) = α_n·P + σ_n·ε. These use
besides what the row before had: its state, or its P. Rows that cannot (the first; to a level without noise or without
image; that draw) stay DDIM's.

In asymmetric rows Δh moves P alone, by δ. DDIM's state moves by α_n·δ, and one of two steps has to move it so much
farther that strength 1 means the same: the step back to the level before, (α_p, σ_p), is taken to hold δ as well.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .program import Branch, Rows

Float64 = NDArray[np.float64]


def dpmpp_2m(rows: Rows) -> Rows:
    """DPM-Solver++(2M): P is extrapolated linearly in log-SNR from the row before (Lu et al. 2022, algorithm 2).

    δ is not: that of the row before, which P_prev holds, is taken to be this row's times their edit_scales' ratio, and
    made up for. Where the branch changes, P of the row before is no guide, and the row stays DDIM's.
    """
    rows = rows.copy()
    alpha, sigma, alpha_next, sigma_next = _levels(rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_snr, log_snr_next = np.log(alpha) - np.log(sigma), np.log(alpha_next) - np.log(sigma_next)
        h, h_prev = log_snr_next - log_snr, log_snr - np.roll(log_snr, 1)
        k = (alpha_next - alpha * sigma_next / sigma) * h / (2 * h_prev)
    here = _second(rows) & np.isfinite(k) & (rows["branch"] == np.roll(rows["branch"], 1))
    k = np.where(here, k, 0)
    rows["c_x0"] += k
    rows["c_x0_prev"] = -k
    asymmetric = here & (rows["branch"] == Branch.ASYMMETRIC) & (rows["edit_scale"] > 0)
    ratio = np.divide(np.roll(rows["edit_scale"], 1), rows["edit_scale"], out=np.zeros_like(k), where=asymmetric)
    _more(rows, np.where(asymmetric, k * (ratio - 1), 0))
    return rows


def bdia(rows: Rows, gamma: float = 1.0) -> Rows:
    """BDIA: x_next = D(next) + gamma·(x_prev − D(back to x_prev's level)) (Zhang et al. 2023, equation 19).

    Solved for x_prev it is the same with 1/gamma, so an inversion with 1/gamma is exact (their section 4.1).
    """
    rows = rows.copy()
    alpha, sigma, _, _ = _levels(rows)
    alpha_prev, sigma_prev = np.roll(alpha, 1), np.roll(sigma, 1)
    here = _two_steps(rows)
    from_x = here & (rows["c_x"] != 0)  # clamped rows: D = (σ_n/σ)·x + (α_n − α·σ_n/σ)·P
    from_eps = here & ~from_x
    by_sigma = np.divide(sigma_prev, sigma, out=np.zeros_like(sigma), where=here)
    rows["c_x"] -= np.where(from_x, gamma * by_sigma, 0)
    rows["c_x0"] -= np.where(here, gamma * alpha_prev, 0) - np.where(from_x, gamma * alpha * by_sigma, 0)
    rows["c_eps"] -= np.where(from_eps, gamma * sigma_prev, 0)
    rows["c_x_prev"] = np.where(here, gamma, 0)
    edited = here & (rows["branch"] == Branch.ASYMMETRIC)
    _more(rows, np.where(edited, gamma * (alpha_prev + alpha * by_sigma), 0))
    return rows


def obelm(rows: Rows) -> Rows:
    """O-BELM: x/α by the two-step formula whose local error is least (Wang et al. 2024, equation 20).

    With s = σ/α and r = (s_n − s)/(s − s_p): x_n/α_n = r²·x_p/α_p − r·(1 + r)·x/α + (1 + r)·D/α_n. Solved for x_p it
    is itself with 1/r, so an inversion is exact.
    """
    rows = rows.copy()
    alpha, sigma, alpha_next, sigma_next = _levels(rows)
    here = _two_steps(rows)
    s = sigma / alpha
    s_next = np.divide(sigma_next, alpha_next, out=s.copy(), where=here)
    r = np.divide(s_next - s, s - np.roll(s, 1), out=np.zeros_like(alpha), where=here)
    for name in ("c_x", "c_x0", "c_eps"):
        rows[name] *= 1 + r
    rows["c_x"] -= r * (1 + r) * alpha_next / alpha
    rows["c_x_prev"] = r**2 * alpha_next / np.roll(alpha, 1)
    return rows


# by the names that presets have for them; the same to the image and from it
SECOND_ORDER: dict[str, Callable[[Rows], Rows]] = {
    "dpmpp_2m": dpmpp_2m,
    "bdia": bdia,  # gamma 1, its own inverse
    "obelm": obelm,
}


def resumed(rows: Rows) -> Rows:
    """A decode's rows of bdia or obelm that go on from an encode's last two states, x_T and x_prev, and undo it.

    The first row is x_next = x_prev, moved by δ where Δh is asymmetric. The last, to the clean image, is left out where
    it does not draw: the encode began at the first timestep, which the image counts as.
    """
    rows = rows.copy()
    first = rows[:1]
    alpha_next = _levels(first)[2]
    for name in ("c_x", "c_x0", "c_eps", "c_noise"):
        first[name] = 0
    first["c_x_prev"] = 1
    _more(first, np.where(first["branch"] == Branch.ASYMMETRIC, alpha_next, 0))
    return rows if rows["draws"][-1] else rows[:-1]


def _levels(rows: Rows) -> tuple[Float64, Float64, Float64, Float64]:
    """α and σ of every row, and of where it goes: D is c_x·x + c_x0·P + c_eps·ε, and x = α·P + σ·ε."""
    alpha, sigma = rows["alpha"], rows["sigma"]
    alpha_next, sigma_next = rows["c_x0"] + alpha * rows["c_x"], rows["c_eps"] + sigma * rows["c_x"]
    # what rounding leaves of zero is zero
    return alpha, sigma, np.where(alpha_next < 1e-12, 0, alpha_next), np.where(sigma_next < 1e-12, 0, sigma_next)


def _second(rows: Rows) -> NDArray[np.bool_]:
    """Rows that have a row before them, neither of which draws."""
    calm = rows["draws"] == 0
    second: NDArray[np.bool_] = calm & np.roll(calm, 1)
    second[:1] = False
    return second


def _two_steps(rows: Rows) -> NDArray[np.bool_]:
    """Rows that may use the state before theirs: the levels before, here and next have both image and noise."""
    _, sigma, alpha_next, sigma_next = _levels(rows)
    return _second(rows) & (sigma > 0) & (np.roll(sigma, 1) > 0) & (alpha_next > 0) & (sigma_next > 0)


def _more(rows: Rows, by: Float64) -> None:
    """Lets δ count `by` more, and all else as before: `by`·(P − (x − σ·ε)/α) is added, which is zero without Δh."""
    rows["c_x0"] += by
    rows["c_x"] -= by / rows["alpha"]
    rows["c_eps"] += by * rows["sigma"] / rows["alpha"]
