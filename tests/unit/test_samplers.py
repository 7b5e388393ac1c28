"""Rows against the closed forms of the papers, in float64, before rounding: 1e-12."""

from __future__ import annotations

import numpy as np
import pytest
from hspace import samplers
from hspace.catalog import SAMPLERS
from hspace.errors import ArgumentError
from hspace.program import Branch, Program
from hspace.schedule import Schedule, space_timesteps
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 1e-12

schedules = st.one_of(
    st.just(Schedule.linear()),
    st.just(Schedule.const(0.008)),
    st.just(Schedule.cosine()),
    st.builds(
        lambda a, b, n: Schedule.from_betas(np.linspace(a, b, n)),
        st.floats(1e-5, 1e-3),
        st.floats(2e-3, 0.05),
        st.integers(50, 1000),
    ),
)


def timesteps_of(schedule: Schedule, steps: int) -> np.ndarray:
    return space_timesteps("asyrp", min(steps, schedule.timesteps), schedule)


def apply(row, x, eps, eps_edit, z):
    """The row's formula, in float64."""
    p = (x - row["sigma"] * eps_edit) / row["alpha"]
    p = np.clip(p, -1, 1) if row["clip"] else p
    if row["clip"] == 2:
        own = np.clip((x - row["sigma"] * eps) / row["alpha"], -1, 1)
        eps = (x - row["alpha"] * own) / row["sigma"]
    return row["c_x"] * x + row["c_x0"] * p + row["c_eps"] * eps + row["c_noise"] * z


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Within 1e-12 of the larger, against the scale of the terms that the closed form subtracts."""
    return bool(np.allclose(a, b, rtol=LIMIT, atol=LIMIT * max(1.0, float(np.abs(b).max()))))


def inputs(seed: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal(16) for _ in range(4))


@given(schedules, st.integers(1, 1000), st.floats(0, 1), st.integers(0, 99))
def test_ddim_with_any_eta(schedule: Schedule, steps: int, eta: float, seed: int) -> None:
    """Song et al. 2021, equations 12 and 16, written with ᾱ."""
    x, eps, _, z = inputs(seed)
    ts = timesteps_of(schedule, steps)
    rows = samplers.ddim(schedule, ts, eta=eta)
    assert rows["t"].tolist() == ts[::-1].tolist()
    below = [*ts[::-1][1:], None]
    for row, t, t_next in zip(rows, ts[::-1], below, strict=True):
        ab = schedule.alphas_cumprod[t]
        ab_next = 1.0 if t_next is None else schedule.alphas_cumprod[t_next]
        s = eta * np.sqrt((1 - ab_next) / (1 - ab)) * np.sqrt(1 - ab / ab_next)
        p = (x - np.sqrt(1 - ab) * eps) / np.sqrt(ab)
        expected = np.sqrt(ab_next) * p + np.sqrt(max(1 - ab_next - s**2, 0)) * eps + s * z
        assert close(apply(row, x, eps, eps, z), expected)
        assert bool(row["draws"]) == (eta > 0) and row["branch"] == Branch.NONE


@given(schedules, st.integers(0, 99))
def test_eta_1_over_all_timesteps_is_ddpm(schedule: Schedule, seed: int) -> None:
    """Ho et al. 2020, algorithm 2, with the posterior variance β̃."""
    x, eps, _, z = inputs(seed)
    ab = schedule.alphas_cumprod
    ts = np.arange(schedule.timesteps)
    rows = samplers.ddim(schedule, ts, eta=1.0)[::-1]
    for t in range(1, schedule.timesteps, 37):
        beta = 1 - ab[t] / ab[t - 1]
        variance = beta * (1 - ab[t - 1]) / (1 - ab[t])
        mean = (x - beta / np.sqrt(1 - ab[t]) * eps) / np.sqrt(1 - beta)
        assert np.allclose(apply(rows[t], x, eps, eps, z), mean + np.sqrt(variance) * z, rtol=1e-9, atol=1e-9)
    assert rows[0]["c_noise"] == 0 and rows[0]["draws"] == 1


@given(schedules, st.integers(2, 500), st.integers(0, 99))
def test_clamped_ddim_and_its_encode(schedule: Schedule, steps: int, seed: int) -> None:
    """DiffAE: ε is derived anew from the clamped P, in the decode and in the encode, which ends at ᾱ = 0."""
    x, eps, _, z = inputs(seed)
    ts = timesteps_of(schedule, steps)
    ab = schedule.alphas_cumprod[ts]
    decode = samplers.ddim(schedule, ts, clip=True)[::-1]
    encode = samplers.ddim_inversion(schedule, ts, clip=True, to_noise=True)
    assert len(encode) == len(ts)
    for i in range(len(ts)):
        p = np.clip((x - np.sqrt(1 - ab[i]) * eps) / np.sqrt(ab[i]), -1, 1)
        again = (x - np.sqrt(ab[i]) * p) / np.sqrt(1 - ab[i])
        for row, target in ((decode[i], ab[i - 1] if i else 1.0), (encode[i], ab[i + 1] if i + 1 < len(ts) else 0.0)):
            assert close(apply(row, x, eps, eps, z), np.sqrt(target) * p + np.sqrt(1 - target) * again)


@given(schedules, st.integers(2, 500), st.integers(0, 99))
def test_inversion_at_the_lower_end(schedule: Schedule, steps: int, seed: int) -> None:
    """The papers' codes: n − 1 rows, each told the timestep that it starts at; the image is x at the first."""
    x, eps, _, z = inputs(seed)
    ts = timesteps_of(schedule, steps)
    ab = schedule.alphas_cumprod[ts]
    rows = samplers.ddim_inversion(schedule, ts)
    assert rows["t"].tolist() == ts[:-1].tolist()
    for i, row in enumerate(rows):
        p = (x - np.sqrt(1 - ab[i]) * eps) / np.sqrt(ab[i])
        assert close(apply(row, x, eps, eps, z), np.sqrt(ab[i + 1]) * p + np.sqrt(1 - ab[i + 1]) * eps)


@given(schedules, st.integers(1, 500), st.booleans(), st.integers(0, 99))
def test_inversion_at_the_upper_end(schedule: Schedule, steps: int, clip: bool, seed: int) -> None:
    """diffusers' DDIMInverseScheduler: n rows, each told the timestep that it ends at; the first has P = x."""
    x, eps, _, z = inputs(seed)
    ts = timesteps_of(schedule, steps)
    ab = schedule.alphas_cumprod[ts]
    rows = samplers.ddim_inversion(schedule, ts, at="upper", clip=clip)
    assert rows["t"].tolist() == ts.tolist() and (rows["clip"] == clip).all()
    assert rows[0]["alpha"] == 1 and rows[0]["sigma"] == 0
    for i, row in enumerate(rows):
        start = ab[i - 1] if i else 1.0
        p = (x - np.sqrt(1 - start) * eps) / np.sqrt(start)
        p = np.clip(p, -1, 1) if clip else p
        assert close(apply(row, x, eps, eps, z), np.sqrt(ab[i]) * p + np.sqrt(1 - ab[i]) * eps)
    assert len(Program.from_rows("p", rows)) == len(ts)


@given(schedules, st.integers(1, 500), st.floats(0, 1), st.integers(0, 99))
def test_a_clamped_row_with_the_raw_direction(schedule: Schedule, steps: int, eta: float, seed: int) -> None:
    """diffusers' DDIMScheduler: P is clamped, the direction is the network's own ε."""
    x, eps, _, z = inputs(seed)
    ts = timesteps_of(schedule, steps)
    ab = schedule.alphas_cumprod[ts]
    rows = samplers.ddim(schedule, ts, eta=eta, clip=True, direction="raw")[::-1]
    for i, row in enumerate(rows):
        below = ab[i - 1] if i else 1.0
        s = eta * np.sqrt((1 - ab[i] / below) * (1 - below) / (1 - ab[i]))
        p = np.clip((x - np.sqrt(1 - ab[i]) * eps) / np.sqrt(ab[i]), -1, 1)
        expected = np.sqrt(below) * p + np.sqrt(max(1 - below - s**2, 0)) * eps + s * z
        assert close(apply(row, x, eps, eps, z), expected)


@given(schedules, st.integers(1, 500), st.booleans(), st.integers(0, 99))
def test_ddpm_with_the_large_variance(schedule: Schedule, steps: int, clip: bool, seed: int) -> None:
    """Ho et al. 2020, section 3.2: σ² = β about the posterior's mean (equation 7); the last row adds no noise."""
    x, eps, _, z = inputs(seed)
    ts = timesteps_of(schedule, steps)
    ab = schedule.alphas_cumprod[ts]
    eta, large, _ = SAMPLERS["ddpm_large"]
    rows = samplers.ddim(schedule, ts, eta=eta, large=large, clip=clip)[::-1]
    for i, row in enumerate(rows):
        below = ab[i - 1] if i else 1.0
        beta = 1 - ab[i] / below
        p = (x - np.sqrt(1 - ab[i]) * eps) / np.sqrt(ab[i])
        p = np.clip(p, -1, 1) if clip else p
        mean = (np.sqrt(below) * beta * p + np.sqrt(1 - beta) * (1 - below) * x) / (1 - ab[i])
        expected = mean + (np.sqrt(beta) * z if i else 0)
        assert np.allclose(apply(row, x, eps, eps, z), expected, rtol=1e-9, atol=1e-9)
        assert row["draws"] == 1 and (row["c_noise"] == 0) == (i == 0)


@given(schedules, st.integers(1, 200), st.integers(0, 1000), st.integers(0, 1000), st.booleans(), st.integers(0, 99))
def test_asyrps_three_phases(schedule: Schedule, steps: int, t_edit: int, t_boost: int, clip: bool, seed: int) -> None:
    """Kwon et al. 2023, equation 5: P from ε̃, direction from ε; below t_boost eta = 1, and the last row draws too."""
    x, eps, eps_edit, z = inputs(seed)
    ts = timesteps_of(schedule, steps)
    rows = samplers.edit(schedule, ts, t_edit=t_edit, t_boost=t_boost, edit_scale=2.5, clip=clip)[::-1]
    ab = schedule.alphas_cumprod[ts]
    for i, t in enumerate(ts):
        injects = t >= t_edit
        assert rows[i]["branch"] == (Branch.ASYMMETRIC if injects else Branch.NONE)
        assert rows[i]["edit_scale"] == (2.5 if injects else 0)
        assert rows[i]["draws"] == (t < t_boost)
        below = ab[i - 1] if i else 1.0
        s = np.sqrt((1 - ab[i] / below) * (1 - below) / (1 - ab[i])) if t < t_boost else 0.0
        used = eps_edit if injects else eps
        p = (x - np.sqrt(1 - ab[i]) * used) / np.sqrt(ab[i])
        p = np.clip(p, -1, 1) if clip else p
        own = np.clip((x - np.sqrt(1 - ab[i]) * eps) / np.sqrt(ab[i]), -1, 1)  # the unedited P
        direction = (x - np.sqrt(ab[i]) * own) / np.sqrt(1 - ab[i]) if clip else eps
        expected = np.sqrt(below) * p + np.sqrt(max(1 - below - s**2, 0)) * direction + s * z
        assert close(apply(rows[i], x, eps, used, z), expected)


@given(schedules, st.integers(1, 100))
def test_the_symmetric_form_is_ddim_on_the_edited_eps(schedule: Schedule, steps: int) -> None:
    """Haas et al. 2024: Δh in both terms; its scale is 1 whatever the step count."""
    ts = timesteps_of(schedule, steps)
    symmetric = samplers.edit(schedule, ts, branch=Branch.SYMMETRIC, edit_scale=7.0)
    plain = samplers.ddim(schedule, ts)
    assert (symmetric["branch"] == Branch.SYMMETRIC).all() and (symmetric["edit_scale"] == 1).all()
    for name in ("alpha", "sigma", "c_x", "c_x0", "c_eps", "c_noise", "t"):
        assert np.array_equal(symmetric[name], plain[name])


@given(schedules, st.integers(2, 300), st.floats(0, 1), st.booleans())
def test_every_builder_makes_a_sound_program(schedule: Schedule, steps: int, eta: float, clip: bool) -> None:
    """Finite after rounding to float32, with alpha above zero; `Program` refuses anything else."""
    ts = timesteps_of(schedule, steps)
    for rows in (
        samplers.ddim(schedule, ts, eta=eta, clip=clip),
        samplers.ddim_inversion(schedule, ts, clip=clip, to_noise=True),
        samplers.edit(schedule, ts, t_edit=400, t_boost=200, eta=eta, clip=clip),
    ):
        assert len(Program.from_rows("p", rows)) == len(ts)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda s, ts: samplers.ddim(s, ts, eta=1.5), "eta: found 1.5"),
        (lambda s, ts: samplers.ddim_inversion(s, ts[:1]), "steps: found 1"),
        (lambda s, ts: samplers.ddim_inversion(s, ts, at="middle"), "at: found 'middle'"),
        (lambda s, ts: samplers.ddim_inversion(s, ts, at="upper", to_noise=True), "to_noise: an inversion at the"),
        (lambda s, ts: samplers.ddim(s, ts, direction="up"), "direction: found 'up'"),
        (lambda s, ts: samplers.edit(s, ts, branch=Branch.NONE), "branch: found none"),
    ],
)
def test_refusals(build, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        build(Schedule.linear(), space_timesteps("asyrp", 5, Schedule.linear()))
