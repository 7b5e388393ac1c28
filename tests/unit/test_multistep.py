"""Second-order rows in float64, before rounding: the published formulae, their order, what they undo, what Δh does."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hspace import multistep, samplers
from hspace.batch import Moved, Sample
from hspace.multistep import SECOND_ORDER
from hspace.program import Branch, Program, Rows
from hspace.schedule import Schedule, space_timesteps
from hypothesis import given
from hypothesis import strategies as st

from ..batches import host, run_all
from ..batches import states as last_states
from ..conftest import relative_error

SECOND = ("dpmpp_2m", "bdia", "obelm")
EXACT = ("bdia", "obelm")
LINEAR = Schedule.linear()
Model = Callable[[np.ndarray, int], np.ndarray]


@pytest.fixture(params=["fixed", "fresh"])
def seed(request: pytest.FixtureRequest) -> int:
    """Of the random inputs; failures name it."""
    return 0 if request.param == "fixed" else secrets.randbelow(2**31)


def transformed(name: str, rows: Rows) -> Rows:
    """The rows as a sampler runs them."""
    second_order = SECOND_ORDER.get(name)
    return rows if second_order is None else second_order(rows)


def step(row, x, eps, eps_edit, x_prev, p_prev) -> tuple[np.ndarray, np.ndarray]:
    """The row's formula of `program`, in float64: x_next and P."""
    p = (x - row["sigma"] * eps_edit) / row["alpha"]
    p = np.clip(p, -1, 1) if row["clip"] else p
    if row["clip"] == 2:
        own = np.clip((x - row["sigma"] * eps) / row["alpha"], -1, 1)
        eps = (x - row["alpha"] * own) / row["sigma"]
    x_next = row["c_x"] * x + row["c_x0"] * p + row["c_eps"] * eps
    return x_next + row["c_x_prev"] * x_prev + row["c_x0_prev"] * p_prev, p


def run(rows: Rows, model: Model, x: np.ndarray, x_prev=None, delta: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The last two states, the later one first, in x's type. delta: what Δh at scale 1 adds to ε."""
    x_prev, p = x if x_prev is None else x_prev, np.zeros_like(x)
    for row in rows:
        eps = model(x, int(row["t"]))
        x_next, p = step(row, x, eps, eps + delta * row["edit_scale"], x_prev, p)
        x_prev, x = x, x_next
    return x, x_prev


def of_log_snr(log_snr: np.ndarray) -> Schedule:
    """The schedule whose levels are those, and nothing between: as good as continuous time."""
    return Schedule(1 / (1 + np.exp(-2 * np.asarray(log_snr))))


# --- the published formulae ---------------------------------------------------------------------------------

levels = st.builds(
    lambda top, gaps: of_log_snr(top - np.cumsum(gaps)),
    st.floats(0, 6),
    st.lists(st.floats(0.05, 2), min_size=2, max_size=7),
)
WAYS = {
    "decode": ("plain", "clamped", "raw clamped", "asymmetric", "asymmetric clamped"),
    "lower": ("plain", "clamped"),
    "upper": ("plain", "raw clamped"),
}
FORMS = [(name, way, form) for name in SECOND for way, forms in WAYS.items() for form in forms]
FORMS = [f for f in FORMS if f[0] != "obelm" or f[2] != "raw clamped"]  # whose x is not what P and ε imply


def ddim_rows(schedule: Schedule, way: str, form: str) -> tuple[Rows, np.ndarray]:
    """DDIM's rows over all levels, to the clean image or to ᾱ = 0 where that way does; and ᾱ along them."""
    ts, ab, clip = np.arange(schedule.timesteps), schedule.alphas_cumprod, "clamped" in form
    if way == "upper":
        return samplers.ddim_inversion(schedule, ts, at="upper", clip=clip), np.array([1.0, *ab])
    if way == "lower":
        return samplers.ddim_inversion(schedule, ts, clip=clip, to_noise=True), np.array([*ab, 0.0])
    if "asymmetric" in form:
        return samplers.edit(schedule, ts, clip=clip), np.array([*ab[::-1], 1.0])
    direction = "raw" if "raw" in form else "clamped"
    return samplers.ddim(schedule, ts, clip=clip, direction=direction), np.array([*ab[::-1], 1.0])


def published(name: str, gamma: float, a, s, x, x_prev, p, p_prev, eps) -> np.ndarray:
    """x_next of each paper. a, s: α and σ before, here and next; P and ε as the row has them, clamped or not."""

    def ddim(i: int) -> np.ndarray:
        return a[i] * p + s[i] * eps

    if name == "bdia":  # Zhang et al. 2023, equation 19
        return ddim(2) + gamma * (x_prev - ddim(0))
    if name == "dpmpp_2m":  # Lu et al. 2022, algorithm 2; x is what P and ε imply, which raw clamped rows do not have
        log_snr = np.log(np.divide(a, s))
        h, h_prev = log_snr[2] - log_snr[1], log_snr[1] - log_snr[0]
        r = h_prev / h
        guess = (1 + 1 / (2 * r)) * p - 1 / (2 * r) * p_prev
        return s[2] / s[1] * ddim(1) + a[2] * (1 - np.exp(-h)) * guess
    h, h_prev = s[1] / a[1] - s[2] / a[2], s[0] / a[0] - s[1] / a[1]  # Wang et al. 2024, equation 20
    ratio = h**2 / h_prev**2
    return a[2] * (ratio * x_prev / a[0] + (1 - ratio) * x / a[1] - h * (h + h_prev) / h_prev * eps)


@pytest.mark.parametrize(("name", "way", "form"), FORMS)
@given(schedule=levels, gamma=st.floats(0.5, 1), number=st.integers(0, 99))
def test_rows_are_the_published_formulae(
    name: str, way: str, form: str, schedule: Schedule, gamma: float, number: int
) -> None:
    """All rows with a row before them and both image and noise at three levels; the others are DDIM's, x_prev or not.

    Asymmetric rows are the same function of x and ε where Δh is zero, clamped or not.
    """
    base, ab = ddim_rows(schedule, way, form)
    rows = multistep.bdia(base, gamma) if name == "bdia" else transformed(name, base)
    rng = np.random.default_rng(number)
    x_prev, p_prev = 2 * rng.standard_normal((2, 32))
    assert len(rows) == len(base) == len(ab) - 1
    for i, row in enumerate(rows):
        x, eps = rng.standard_normal((2, 32))
        a, s = np.sqrt(ab), np.sqrt(1 - ab)
        p = (x - s[i] * eps) / a[i]
        if "clamped" in form:
            p = np.clip(p, -1, 1)
        used = (x - a[i] * p) / s[i] if "clamped" in form and "raw" not in form else eps
        second = i > 0 and ((ab[i - 1 : i + 2] > 0) & (ab[i - 1 : i + 2] < 1)).all()
        expected = a[i + 1] * p + s[i + 1] * used
        if second:
            three = slice(i - 1, i + 2)
            expected = published(name, gamma, a[three], s[three], x, x_prev, p, p_prev, used)
        got, got_p = step(row, x, eps, eps, x_prev, p_prev)
        scale = max(np.abs(expected).max(), *(np.abs(c * v).max() for c, v in ((row["c_x_prev"], x_prev), (1, x))))
        assert np.allclose(got, expected, rtol=0, atol=1e-10 * scale) and np.array_equal(got_p, p), i
        assert second == bool(row["c_x_prev"] or row["c_x0_prev"]), i
        if not second:
            assert row == base[i], i


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("clip", [False, True])
def test_rows_that_stay_ddims(name: str, clip: bool) -> None:
    """The first, the last, those that draw and the first after them; for 2M also where the branch changes."""
    ts = space_timesteps("logsnr", 12, LINEAR)
    base = samplers.edit(LINEAR, ts, t_edit=int(ts[8]), t_boost=int(ts[4]), clip=clip)
    base["draws"][6] = 1  # and one in the middle, which no builder makes
    stay = {0, 6, 7, *range(8, 12)} | ({4} if name == "dpmpp_2m" else set())
    assert base["branch"].tolist() == [1] * 4 + [0] * 8 and base["draws"].tolist() == [0] * 6 + [1, 0] + [1] * 4
    rows = transformed(name, base)
    assert {i for i in range(12) if rows[i] == base[i]} == stay
    assert len(transformed(name, base[:1])) == 1 and transformed(name, base[:1])[0] == base[0]


# --- order of convergence -----------------------------------------------------------------------------------


class Mixture:
    """Three Gaussians in R⁴: ε = −σ·∇log p(x) at every level, in closed form."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.mean, self.std, self.weight = rng.uniform(-1, 1, (3, 4)), rng.uniform(0.3, 0.5, 3), np.array([2, 3, 4]) / 9

    def draw(self, n: int, ab: float, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        k = rng.choice(3, n, p=self.weight)
        x_0 = self.mean[k] + self.std[k, None] * rng.standard_normal((n, 4))
        return np.sqrt(ab) * x_0 + np.sqrt(1 - ab) * rng.standard_normal((n, 4))

    def eps(self, x: np.ndarray, ab: float) -> np.ndarray:
        variance = ab * self.std**2 + 1 - ab
        apart = x[:, None] - np.sqrt(ab) * self.mean
        log = np.log(self.weight) - 2 * np.log(variance) - (apart**2).sum(axis=2) / (2 * variance)
        share = np.exp(log - log.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        return np.sqrt(1 - ab) * (share[..., None] * apart / variance[:, None]).sum(axis=1)

    def solution(self, x: np.ndarray, start: float, end: float, steps: int = 500) -> np.ndarray:
        """The probability-flow ODE between two log-SNRs by RK4: d(x/α)/d(σ/α) = ε."""

        def slope(y: np.ndarray, log_snr: float) -> np.ndarray:
            ab = 1 / (1 + np.exp(-2 * log_snr))
            return -np.exp(-log_snr) * self.eps(np.sqrt(ab) * y, ab)

        y, h = x * np.sqrt(1 + np.exp(-2 * start)), (end - start) / steps
        for log_snr in start + h * np.arange(steps):
            k1 = slope(y, log_snr)
            k2 = slope(y + h / 2 * k1, log_snr + h / 2)
            k3 = slope(y + h / 2 * k2, log_snr + h / 2)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(y + h * k3, log_snr + h))
        return y / np.sqrt(1 + np.exp(-2 * end))


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [("ddim", 0.9, 1.15), ("dpmpp_2m", 1.8, 2.3), ("bdia", 1.8, 2.3), ("obelm", 1.8, 2.3)],
)
@pytest.mark.parametrize("way", ["decode", "encode"])
def test_order_of_convergence(name: str, least: float, most: float, way: str, seed: int) -> None:
    """On a mixture of Gaussians over steps of unequal length, from log-SNR −2.5 to 2.5 or back."""
    mixture, steps, errors = Mixture(seed), (24, 48, 96), []
    start, end = (-2.5, 2.5) if way == "decode" else (2.5, -2.5)
    x = mixture.draw(64, 1 / (1 + np.exp(-2 * start)), seed)
    expected = mixture.solution(x, start, end)
    for n in steps:
        u = np.linspace(0, 1, n + 1)
        schedule, ts = of_log_snr(2.5 - 5 * (u + 0.3 * u * (1 - u))), np.arange(n + 1)

        def model(x: np.ndarray, t: int, schedule: Schedule = schedule) -> np.ndarray:
            return mixture.eps(x, schedule.alphas_cumprod[t])

        if way == "decode":
            rows = transformed(name, samplers.ddim(schedule, ts))[:-1]  # the last leaves the levels between
        else:
            rows = transformed(name, samplers.ddim_inversion(schedule, ts))
        errors.append(relative_error(run(rows, model, x)[0], expected))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    print(f"{name} {way}: order {order:.2f}, errors {', '.join(f'{e:.1e}' for e in errors)}")
    assert least <= order <= most, f"seed {seed}: order {order:.2f} of {errors}"


@pytest.mark.parametrize("spacing", ["logsnr", "karras", "quadratic"])
@pytest.mark.parametrize("name", SECOND)
def test_second_order_pays_at_few_steps(name: str, spacing: str, seed: int) -> None:
    """20 steps over the training schedule end nearer to the solution than DDIM's 20, before the last row."""
    mixture, ts = Mixture(seed), space_timesteps(spacing, 20, LINEAR)
    x = np.random.default_rng(seed).standard_normal((128, 4))
    expected = mixture.solution(x, *LINEAR.log_snr[[999, 0]], steps=1000)

    def error(name: str) -> float:
        rows = transformed(name, samplers.ddim(LINEAR, ts))[:-1]
        return relative_error(run(rows, lambda x, t: mixture.eps(x, LINEAR.alphas_cumprod[t]), x)[0], expected)

    plain, second = error("ddim"), error(name)
    print(f"{name} {spacing}: {second:.1e}, ddim {plain:.1e}")
    assert second <= plain / 2, f"seed {seed}: {second:.1e}, ddim {plain:.1e}"


# --- inversions ---------------------------------------------------------------------------------------------


def nonlinear(seed: int, d: int = 8) -> Model:
    """ε of no diffusion: any deterministic function will do."""
    a, b = np.random.default_rng(seed).standard_normal((2, d, d)) / np.sqrt(d)
    return lambda x, t: np.tanh(x @ a + np.sin(t)) + 0.3 * np.cos(3 * x @ b)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("spacing", ["asyrp", "logsnr", "karras", "quadratic"])
@pytest.mark.parametrize(
    ("name", "inverse", "forward"),
    [
        ("bdia", multistep.bdia, multistep.bdia),
        ("bdia 0.9", lambda r: multistep.bdia(r, 1 / 0.9), lambda r: multistep.bdia(r, 0.9)),
        ("obelm", multistep.obelm, multistep.obelm),
    ],
)
def test_decodes_undo_encodes(name: str, inverse, forward, spacing: str, clip: bool, seed: int) -> None:
    """Whatever the model: from the last two states the decode runs through every state of the encode."""
    x, model = np.random.default_rng(seed).uniform(-1, 1, (5, 8)), nonlinear(seed)
    for n in (3, 4, 10, 40):
        ts = space_timesteps(spacing, n, LINEAR)
        up = inverse(samplers.ddim_inversion(LINEAR, ts, clip=clip))
        down = multistep.resumed(forward(samplers.ddim(LINEAR, ts, clip=clip)))
        assert len(up) == len(down) == n - 1
        x_T, x_prev = run(up, model, x)
        back, second = run(down, model, x_T, x_prev)
        error = max(relative_error(back, x), relative_error(second, run(up[:1], model, x)[0]))
        print(f"{name} {spacing} {n}: {error:.1e}")
        assert error <= 1e-9, f"seed {seed}: {n} steps: {error:.1e}"
        assert relative_error(run(forward(samplers.ddim(LINEAR, ts, clip=clip)), model, x_T)[0], x) > 1e-3


@pytest.mark.parametrize("spacing", ["asyrp", "logsnr", "karras", "quadratic"])
@pytest.mark.parametrize("name", EXACT)
def test_decodes_undo_encodes_in_float32(name: str, spacing: str, seed: int) -> None:
    """With a score as the model, x_T stays as large as noise (O-BELM's first rows permitting) and rounding small."""
    mixture = Mixture(seed)
    x = mixture.draw(64, 1 - 1e-9, seed).astype(np.float32)

    def model(x: np.ndarray, t: int) -> np.ndarray:
        return mixture.eps(x.astype(np.float64), LINEAR.alphas_cumprod[t]).astype(np.float32)

    for n in (10, 40):
        ts = space_timesteps(spacing, n, LINEAR)
        up = Program.from_rows("up", transformed(name, samplers.ddim_inversion(LINEAR, ts))).rows
        down = Program.from_rows("down", multistep.resumed(transformed(name, samplers.ddim(LINEAR, ts)))).rows
        x_T, x_prev = run(up, model, x)
        back = run(down, model, x_T, x_prev)[0]
        error, std = relative_error(back, x), float(x_T.std())
        print(f"{name} {spacing} {n}: {error:.1e}, x_T {std:.2f}")
        assert back.dtype == np.float32 and error <= 2e-5, f"seed {seed}: {n} steps: {error:.1e}"
        assert n == 10 or 0.8 < std < 1.2, f"seed {seed}: {std:.2f}"


# --- strength -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "limits"), [("dpmpp_2m", (0.25, 0.12)), ("bdia", (0.04, 0.02)), ("obelm", (0.04, 0.02))]
)
@pytest.mark.parametrize("clip", [False, True])
def test_strength_means_the_same(name: str, limits: tuple[float, float], clip: bool, seed: int) -> None:
    """Where ε is constant and Δh adds a constant to it, asymmetric rows move the image as far as DDIM's."""
    rng = np.random.default_rng(seed)
    e, x = rng.uniform(-1, 1, 4) * 1e-3, rng.uniform(-1, 1, 4) * 1e-3  # so small that nothing is clamped
    s = np.exp(-LINEAR.log_snr)
    for n, limit in zip((10, 40), limits, strict=True):
        ts = space_timesteps("logsnr", n, LINEAR)
        scale = np.diff(np.cumsum(s)[ts], prepend=0.0) / s[ts] / 1000  # what such a Δh would need
        base = samplers.edit(LINEAR, ts, edit_scale=scale, clip=clip)

        def moved(rows: Rows) -> np.ndarray:
            return run(rows, lambda x, t: e, x, delta=1e-4)[0] - run(rows, lambda x, t: e, x)[0]

        plain = moved(base)
        assert np.allclose(plain, -1e-4 * s.sum() / 1000)
        error = relative_error(moved(transformed(name, base)), plain)
        print(f"{name} {n}: {error:.1%}")
        assert error <= limit, f"seed {seed}: {n} steps: {error:.1%}"
        if name in EXACT:
            rows, x_prev = multistep.resumed(transformed(name, base)), rng.uniform(-1, 1, 4) * 1e-3
            resumed = [run(rows, lambda x, t: e, x, x_prev, delta=d)[0] for d in (1e-4, 0.0)]
            error = relative_error(resumed[0] - resumed[1], plain)
            print(f"{name} {n}, resumed: {error:.1%}")
            assert error <= limit, f"seed {seed}: {n} steps, resumed: {error:.1%}"


# --- float32 ------------------------------------------------------------------------------------------------


class Head:
    """An engine that is a formula: ε = tanh(h + x), h = x's mean over channels + t/1000 (+ Δh)."""

    name, device = "head", "cpu"

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if component == "trunk":
            x, t = inputs["x"], inputs["t"].astype(np.float32)
            return [x.mean(axis=1, keepdims=True) + t[:, None, None, None] / 1000, t[:, None], x]
        return [np.tanh(inputs["h"] + inputs["skip_0"][inputs["source"]])]


@pytest.mark.parametrize("spacing", ["asyrp", "logsnr", "karras", "quadratic"])
@pytest.mark.parametrize("name", ["ddim", *SECOND])
@pytest.mark.parametrize("way", ["decode", "edit", "encode", "resume"])
@pytest.mark.parametrize("clip", [False, True])
def test_the_executor_agrees(name: str, spacing: str, way: str, clip: bool, seed: int) -> None:
    """The CPU executor's float32 against the formula in float64, x_prev and P_prev and all."""
    ts = space_timesteps(spacing, 12, LINEAR)
    rng = np.random.default_rng(seed)
    x, x_prev = rng.standard_normal((2, 3, 3, 4, 4)).astype(np.float32)
    if way == "encode":
        rows = samplers.ddim_inversion(LINEAR, ts, clip=clip)
    elif way == "edit":
        rows = samplers.edit(LINEAR, ts, t_edit=300, clip=clip)
    else:
        rows = samplers.ddim(LINEAR, ts, clip=clip)
    rows = transformed(name, rows)[1 if way == "resume" else 0 :]
    program = Program.from_rows(name, rows)
    assert name == "ddim" or program.rows["c_x_prev"].any() or program.rows["c_x0_prev"].any()
    wide = program.rows.astype(rows.dtype)  # what float32 made of them, in float64

    def model(x: np.ndarray, t: int) -> np.ndarray:
        return np.tanh(x.mean(axis=1, keepdims=True) + t / 1000 + x)

    samples = [Sample(x[i], program, x_prev=x_prev[i] if way == "resume" else None) for i in range(3)]
    seen: list[Moved] = []
    last = last_states(run_all(host(Head(), x.shape[1:]), samples, observe=seen.append))
    every = [*(moved.x for moved in seen), last]
    assert len(seen) == len(wide)
    at_prev, p_prev, errors = x_prev if way == "resume" else x, np.zeros_like(x), []
    for row, moved, after in zip(wide, seen, every[1:], strict=True):
        at = moved.x.astype(np.float64)
        eps = model(at, row["t"])
        errors.append(relative_error(after, step(row, at, eps, eps, at_prev.astype(np.float64), p_prev)[0]))
        at_prev, p_prev = moved.x, moved.x_0.astype(np.float64)
    whole = relative_error(last, run(wide, model, x.astype(float), x_prev if way == "resume" else None)[0])
    print(f"{name} {spacing} {way}: {max(errors):.1e} a row, {whole:.1e} in all")
    assert max(errors) <= 1e-5, f"seed {seed}: row {np.argmax(errors)}: {max(errors):.1e}"
    if (name, way) != ("obelm", "encode"):  # whose rows amplify what rounding leaves, as its decode's undo
        assert whole <= 2e-5, f"seed {seed}: {whole:.1e}"


def test_branches_are_what_they_were() -> None:
    """Transforms keep a copy's t, level, clip, branch, draws and scale, and leave the rows they were given alone."""
    ts = space_timesteps("karras", 9, LINEAR)
    for branch in (Branch.ASYMMETRIC, Branch.SYMMETRIC):
        base = samplers.edit(LINEAR, ts, branch=branch, t_edit=400, t_boost=100, edit_scale=3.0)
        before = base.copy()
        for name in SECOND:
            rows = transformed(name, base)
            assert np.array_equal(base, before) and not np.array_equal(rows, base)
            for column in ("t", "alpha", "sigma", "clip", "branch", "draws", "edit_scale", "c_noise"):
                assert np.array_equal(rows[column], base[column]), column
