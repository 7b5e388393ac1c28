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
    assert space_timesteps(spacing, steps, Schedule.linear()).tolist() == expected


@given(st.sampled_from(sorted(SPACINGS)), st.integers(1, 1000))
def test_every_spacing_gives_distinct_ascending_timesteps(spacing: str, steps: int) -> None:
    try:
        found = space_timesteps(spacing, steps, Schedule.linear())
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
        assert space_timesteps("diffae", steps, Schedule.linear()).tolist() == list(range(0, 1000, stride))
    else:
        below, above = max(v for v in valid if v < steps), min(v for v in valid if v > steps)
        with pytest.raises(ArgumentError, match=f"{below} and {above}$"):
            space_timesteps("diffae", steps, Schedule.linear())


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.0, True, None, "10"])
def test_steps_outside_1_to_1000_are_refused(steps: object) -> None:
    with pytest.raises(ArgumentError, match="expected a whole number from 1 to 1000"):
        space_timesteps("asyrp", steps, Schedule.linear())  # type: ignore[arg-type]


# --- uneven spacings ----------------------------------------------------------------------------------------

UNEVEN = ("logsnr", "karras", "quadratic")
short = st.one_of(
    st.builds(Schedule.cosine, st.integers(2, 50)),
    st.builds(Schedule.const, st.floats(1e-4, 0.3), st.integers(2, 50)),
    st.builds(Schedule.linear, st.integers(2, 50), st.floats(1e-5, 1e-2), st.floats(2e-2, 0.5)),
    st.builds(lambda falls: Schedule(np.cumprod(falls)), st.lists(st.floats(0.05, 0.99), min_size=2, max_size=50)),
)


def span(schedule: Schedule) -> tuple[int, int]:
    """Timestep by timestep: σ/α nearest to 0.01; the last, or if that is above 160 the last that is at most 40."""
    noise = [math.sqrt((1 - ab) / ab) for ab in schedule.alphas_cumprod]
    first = min(range(len(noise)), key=lambda t: abs(math.log(noise[t] / 0.01)))
    first = min(first, len(noise) - 2)
    if noise[-1] <= 160:
        return first, len(noise) - 1
    return first, max([t for t, s in enumerate(noise) if s <= 40 and t > first], default=first + 1)


def roots(spacing: str, steps: int, schedule: Schedule, first: int, last: int) -> np.ndarray:
    """The levels wanted, in timesteps from last to first, independently: t, or where the schedule has the level."""
    ab = schedule.alphas_cumprod[first : last + 1]
    s, grid = np.sqrt((1 - ab) / ab), np.arange(steps) / (steps - 1)
    if spacing == "quadratic":
        return first + (last - first) * (1 - grid) ** 2
    if spacing == "logsnr":
        wanted = s[-1] * (s[0] / s[-1]) ** grid
    else:  # Karras et al. 2022, equation 5
        wanted = (s[-1] ** (1 / 7) + grid * (s[0] ** (1 / 7) - s[-1] ** (1 / 7))) ** 7
    return first + np.interp(np.log(wanted), np.log(s), np.arange(len(s)))


@given(st.sampled_from(("asyrp", *UNEVEN)), short)
def test_spacings_of_short_schedules(spacing: str, schedule: Schedule) -> None:
    """At every number of steps: distinct, ascending, from end to end of the span, and beyond it where it must."""
    total, (first, last) = schedule.timesteps, span(schedule)
    assert schedule.span == range(first, last + 1)
    for steps in range(1, total + 1):
        found = space_timesteps(spacing, steps, schedule)
        assert found.shape == (steps,) and found.dtype == np.int64
        assert (np.diff(found) > 0).all() and found[0] >= 0 and found[-1] < total
        if 1 < steps <= last - first + 1:
            assert found[[0, -1]].tolist() == [first, last]
        elif steps > last + 1:
            assert found.tolist() == list(range(steps))
    assert found.tolist() == list(range(total))


@pytest.mark.parametrize("spacing", UNEVEN)
@pytest.mark.parametrize(
    "schedule", [Schedule.linear(), Schedule.cosine(), Schedule.const()], ids=["lin", "cos", "const"]
)
def test_uneven_spacings_follow_their_formulas(spacing: str, schedule: Schedule) -> None:
    """The timesteps nearest to the levels at every number of steps; where several are one, the later ones go up, and
    what then lies beyond the last goes down."""
    first, last = span(schedule)
    assert space_timesteps(spacing, 1, schedule).tolist() == [last]
    for steps in range(2, last - first + 2):
        found, wanted = space_timesteps(spacing, steps, schedule), roots(spacing, steps, schedule, first, last)[::-1]
        # rounding may go either way
        lower, upper = (apart(np.clip(wanted + e, first, last), last) for e in (-1e-6, 1e-6))
        assert (lower <= found).all() and (found <= upper).all(), steps


def apart(wanted: np.ndarray, last: int) -> np.ndarray:
    """The nearest timesteps, moved apart one by one."""
    t = [round(w) for w in wanted]
    for i in range(1, len(t)):
        t[i] = max(t[i], t[i - 1] + 1)
    t[-1] = min(t[-1], last)
    for i in reversed(range(len(t) - 1)):
        t[i] = min(t[i], t[i + 1] - 1)
    return np.array(t)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [2, 6, 10, 20, 40, 50, 100, 250, 1000])
def test_the_linear_schedule_is_its_own_span(spacing: str, steps: int) -> None:
    """What runs on it visits is what it was before there were spans, to the timestep."""
    schedule = Schedule.linear()
    assert schedule.span == range(1000)
    assert space_timesteps(spacing, steps, schedule).tolist() == SPACINGS[spacing].timesteps(steps, schedule).tolist()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule.cosine(), (1, 982)),
        (Schedule.cosine(4000), (8, 3934)),
        (Schedule.cosine(250), (0, 244)),
        (Schedule.cosine(50), (0, 48)),
        (Schedule.const(), (0, 999)),
        (Schedule.const(0.02), (0, 364)),
        (Schedule.linear(4000), (0, 1699)),
        (Schedule.linear(250), (0, 249)),
        (Schedule.linear(4000, 2.5e-5, 0.005), (3, 3999)),
        (Schedule.from_betas(np.append(1e-12, np.linspace(1e-4, 0.02, 999))), (1, 999)),
        (Schedule.const(0.9999999, 2), (0, 1)),
        (Schedule.const(0.5, 1), (0, 0)),
    ],
)
def test_spans(schedule: Schedule, expected: tuple[int, int]) -> None:
    assert (schedule.span[0], schedule.span[-1]) == expected


@pytest.mark.parametrize(
    ("spacing", "steps", "last"),
    [("diffae", 100, 990), ("diffae", 1000, 999), ("linspace", 50, 999), ("trailing", 50, 999)],
)
def test_code_bases_own_spacings_stay(spacing: str, steps: int, last: int) -> None:
    assert space_timesteps(spacing, steps, Schedule.cosine())[-1] == last


def test_log_snr_falls_evenly() -> None:
    """Within what a timestep is worth, where the steps are few: over the linear schedule from first to last."""
    schedule = Schedule.linear()
    for steps in range(2, 11):
        found = space_timesteps("logsnr", steps, schedule)
        assert found[[0, -1]].tolist() == [0, 999]
        log_snr, worth = schedule.log_snr, -np.diff(schedule.log_snr, append=np.nan)
        even = np.linspace(log_snr[0], log_snr[-1], steps)
        around = np.fmax(worth[found], worth[found - 1])  # a timestep up, or down
        assert (np.abs(log_snr[found] - even)[1:-1] <= around[1:-1] / 2 * 1.1).all(), steps
        assert np.allclose(np.diff(log_snr[found]), (log_snr[-1] - log_snr[0]) / (steps - 1), rtol=0.06), steps


@pytest.mark.parametrize(
    ("spacing", "expected"),
    [
        ("logsnr", [0, 5, 22, 73, 202, 410, 603, 757, 886, 999]),
        ("karras", [0, 18, 102, 301, 511, 663, 775, 864, 937, 999]),
        ("quadratic", [0, 12, 49, 111, 197, 308, 444, 604, 789, 999]),
    ],
)
def test_uneven_spacings_of_10_steps(spacing: str, expected: list[int]) -> None:
    """What presets out there were made with stays."""
    assert space_timesteps(spacing, 10, Schedule.linear()).tolist() == expected
