"""Schedules and spacings against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hspace.errors import ArgumentError
from hspace.schedule import SPACINGS, Schedule, space_timesteps
from hypothesis import given
from hypothesis import strategies as st


def test_linear_is_the_product_of_its_betas() -> None:
    product, betas = 1.0, [1e-4 + (0.02 - 1e-4) * i / 999 for i in range(1000)]
    for t, beta in enumerate(betas):
        product *= 1 - beta
        assert math.isclose(Schedule.linear().alphas_cumprod[t], product, rel_tol=1e-12)


def test_cosine_follows_its_function_until_the_clamp() -> None:
    def f(t: float) -> float:
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    found = Schedule.cosine().alphas_cumprod
    for t in (0, 1, 500, 900):
        assert math.isclose(found[t], f(t + 1) / f(0), rel_tol=1e-10)
    assert math.isclose(found[-1] / found[-2], 1 - 0.999, rel_tol=1e-9)


@pytest.mark.parametrize(
    "values", [[], [[0.5]], [0.5, 0.5], [0.5, 0.6], [1.0, 0.5], [0.5, 0.0], [0.5, math.nan]], ids=str
)
def test_a_schedule_must_fall_within_0_and_1(values: list[float]) -> None:
    with pytest.raises(ArgumentError, match="alphas_cumprod"):
        Schedule(np.array(values, dtype=np.float64))


@pytest.mark.parametrize(
    ("spacing", "steps", "expected"),
    [
        ("diffae", 10, list(range(0, 1000, 100))),
        ("diffae", 1000, list(range(1000))),
        ("diffae", 3, [0, 334, 668]),
        ("asyrp", 8, [0, 142, 285, 428, 570, 713, 856, 999]),
        ("asyrp", 40, [int(s * 999 + 1e-6) for s in np.linspace(0, 1, 40)]),
        ("leading", 4, [0, 250, 500, 750]),
        ("linspace", 5, [0, 250, 500, 749, 999]),
        ("trailing", 4, [249, 499, 749, 999]),
        ("trailing", 3, [332, 666, 999]),
    ],
)
def test_spacings(spacing: str, steps: int, expected: list[int]) -> None:
    assert space_timesteps(spacing, steps, 1000).tolist() == expected


@given(st.sampled_from(sorted(SPACINGS)), st.integers(1, 1000))
def test_every_spacing_gives_distinct_ascending_timesteps(spacing: str, steps: int) -> None:
    try:
        found = space_timesteps(spacing, steps, 1000)
    except ArgumentError:
        assert spacing == "diffae"
        return
    assert len(found) == steps
    assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < 1000


@given(st.integers(1, 1000))
def test_diffae_names_the_nearest_valid_steps(steps: int) -> None:
    """Against the official rule: the smallest stride i with len(range(0, 1000, i)) == steps."""
    valid = {len(range(0, 1000, i)) for i in range(1, 1001)}
    if steps in valid:
        stride = next(i for i in range(1, 1001) if len(range(0, 1000, i)) == steps)
        assert space_timesteps("diffae", steps, 1000).tolist() == list(range(0, 1000, stride))
    else:
        below, above = max(v for v in valid if v < steps), min(v for v in valid if v > steps)
        with pytest.raises(ArgumentError, match=f"{below} and {above}$"):
            space_timesteps("diffae", steps, 1000)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, None, "10"])
def test_steps_outside_1_to_1000_are_refused(steps: object) -> None:
    with pytest.raises(ArgumentError, match="expected a whole number from 1 to 1000"):
        space_timesteps("asyrp", steps, 1000)  # type: ignore[arg-type]
