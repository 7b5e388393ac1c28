"""Every preset of an export on every kind of schedule, with a mixture of Gaussians as the model: its ε is known.

To the exact ε is added what a trained network gets wrong, 1e-2 that x and t determine: that is what P amplifies by
σ/α, and what loses runs that visit ᾱ = 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hspace import manifest as contract
from hspace.batch import Sample
from hspace.deltas import Edit
from hspace.manifest import Preset
from hspace.plans import Planner
from hspace.program import Program

from ..batches import host, run_all
from ..batches import states as last_states

pytest.importorskip("torch", reason="exports need the extra `export`")
pytest.importorskip("diffusers", reason="these exports need the extra `diffusers`")

from hspace_export import diffae, diffusers

COUNT, SHAPE = 16, (3, 4, 4)
D = int(np.prod(SHAPE))
ERROR = 1e-2  # of a trained network's outputs, whose size is 1


def rescaled() -> contract.ArraySchedule:
    """Linear, moved to zero terminal SNR (Lin et al. 2024, algorithm 1), but for its last β."""
    alpha = np.sqrt(contract.LinearSchedule().build().alphas_cumprod)
    ab = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    return contract.ArraySchedule(betas=np.minimum(1 - ab / np.append(1.0, ab[:-1]), 0.9999).tolist())


def of_scheduler(**settings: Any) -> contract.AnySchedule:
    """As `export diffusers` reads it."""
    return diffusers._schedule(diffusers.Path("scheduler_config.json"), diffusers._SchedulerConfig(**settings))


SCHEDULES: dict[str, contract.AnySchedule] = {
    "linear": contract.LinearSchedule(),
    "linear, T = 250": contract.LinearSchedule(timesteps=250),
    "linear, T = 4000": contract.LinearSchedule(timesteps=4000),
    "linear, T = 4000, scaled": contract.LinearSchedule(timesteps=4000, beta_start=2.5e-5, beta_end=0.005),
    "cosine": contract.CosineSchedule(),
    "cosine, T = 50": contract.CosineSchedule(timesteps=50),
    "cosine, T = 100": contract.CosineSchedule(timesteps=100),
    "cosine, T = 250": contract.CosineSchedule(timesteps=250),
    "cosine, T = 4000": contract.CosineSchedule(timesteps=4000),
    "const": contract.ConstSchedule(),
    "const0.02": contract.ConstSchedule(beta=0.02),
    "const, T = 4000": contract.ConstSchedule(timesteps=4000),
    "rescaled": rescaled(),
    "tiny first β": contract.ArraySchedule(betas=[1e-12, *np.linspace(1e-4, 0.02, 999).tolist()]),
    "scaled_linear": of_scheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    "squaredcos_cap_v2": of_scheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=500),
    "sigmoid": of_scheduler(beta_schedule="sigmoid"),
    "sigmoid to 0.05": of_scheduler(beta_schedule="sigmoid", beta_end=0.05),
}


class Mixture:
    """Six Gaussians, as an engine. predicts: what the network gives, and so what is wrong by `error`; rounded: its ε
    is what bfloat16 leaves of it.
    """

    name, device = "mixture", "cpu"

    def __init__(
        self, schedule: contract.AnySchedule, error: float, predicts: str = "epsilon", rounded: bool = False
    ) -> None:
        rng = np.random.default_rng(0)
        self.ab = schedule.build().alphas_cumprod
        self.mean, self.std = rng.uniform(-0.6, 0.6, (6, D)), rng.uniform(0.2, 0.35, 6)
        self.error, self.predicts, self.rounded = error, predicts, rounded
        self.mix, self.rate = rng.standard_normal((D, D)) / np.sqrt(D), rng.uniform(-20, 20, D)

    def draw(self, count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        k = rng.integers(0, 6, count)
        x = self.mean[k] + self.std[k, None] * rng.standard_normal((count, D))
        return x.clip(-1, 1).reshape(-1, *SHAPE).astype(np.float32)

    def eps(self, x: np.ndarray, t: np.ndarray) -> np.ndarray:
        ab = self.ab[t][:, None]
        alpha, sigma = np.sqrt(ab), np.sqrt(1 - ab)
        variance, apart = ab * self.std**2 + 1 - ab, x[:, None] - alpha[..., None] * self.mean
        log = -D / 2 * np.log(variance) - (apart**2).sum(axis=2) / (2 * variance)
        share = np.exp(log - log.max(axis=1, keepdims=True))
        share /= share.sum(axis=1, keepdims=True)
        exact = sigma * ((share / variance)[..., None] * apart).sum(axis=1)
        wrong = self.error * np.sqrt(2) * np.sin(2 * x @ self.mix + (t / len(self.ab))[:, None] * self.rate)
        # v = α·ε − σ·x_0 is turned into ε as α·v + σ·x, and x_0 as (x − α·x_0)/σ
        return exact + wrong * {"epsilon": 1.0, "v_prediction": alpha, "sample": -alpha / sigma}[self.predicts]

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if component == "head":
            return [inputs["skip_0"][inputs["source"]]]
        x, t = inputs["x"], inputs["t"].astype(np.int64)
        eps = self.eps(x.reshape(len(x), -1).astype(np.float64), t).reshape(x.shape).astype(np.float32)
        if self.rounded:
            eps = ((eps.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)
        return [np.zeros((len(x), 1, 1, 1), np.float32), np.zeros((len(x), 1), np.float32), eps]


def presets(schedule: contract.AnySchedule, clip: bool) -> dict[str, Preset]:
    """Of a DiffAE bundle and of a diffusers bundle, by their exports."""
    made = diffae._presets(contract.Schedules(image=schedule))
    config = diffusers._SchedulerConfig(num_train_timesteps=schedule.build().timesteps)
    others = diffusers._presets(config, schedule)  # whose fast, balanced and exact are the same
    made |= {f"diffusers {k}": others[k] for k in ("asyrp", "official", "asymmetric")}
    return {k: msgspec.structs.replace(p, clip=clip) for k, p in made.items()}


def run(engine: Mixture, program: Program, x: np.ndarray, x_prev: np.ndarray | None = None) -> Any:
    before = [None] * len(x) if x_prev is None else x_prev
    samples = [Sample(a, program, x_prev=b, image=i) for i, (a, b) in enumerate(zip(x, before, strict=True))]
    results: Any = run_all(host(engine, x.shape[1:]), samples)
    kept = None if results[0].x_prev is None else np.stack([result.x_prev for result in results])
    return last_states(results), kept


def planner(schedule: contract.AnySchedule) -> Planner:
    return Planner(SimpleNamespace(manifest=SimpleNamespace(schedules=contract.Schedules(image=schedule))))


def reconstruction(schedule: contract.AnySchedule, preset: Preset, **kind: Any) -> tuple[float, float]:
    """PSNR of a round trip, dB, the mean over images; and x_T's standard deviation."""
    engine, plans = Mixture(schedule, **kind), planner(schedule)
    x = engine.draw(COUNT, seed=1)
    x_T, x_prev = run(engine, plans.encode(preset), x)
    made = {"sampler": preset.sampler, "spacing": preset.spacing, "encode_steps": str(preset.encode_steps)}
    resume = plans.resumes(preset, made)
    found = run(engine, plans.decode(preset, Edit(), resume=resume), x_T, x_prev if resume else None)[0]
    squares = np.mean((found.astype(np.float64) - x) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / np.maximum(squares, 1e-20)))), float(x_T.std())


NETWORKS: dict[str, dict[str, Any]] = {
    "exact": {"error": 0.0},
    "trained": {"error": ERROR},
    "trained, v": {"error": ERROR, "predicts": "v_prediction"},
    "trained, x_0": {"error": ERROR, "predicts": "sample"},
    "trained, bfloat16": {"error": ERROR, "rounded": True},
}
BELOW = 3.0  # dB


@cache
def measured(name: str, key: str, clip: bool, network: str) -> tuple[float, float]:
    schedule = SCHEDULES[name]
    return reconstruction(schedule, presets(schedule, clip)[key], **NETWORKS[network])


@pytest.mark.parametrize("clip", [False, True], ids=["", "clipped"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_reconstructions_on_every_schedule(name: str, clip: bool) -> None:
    """As good as the official steps of the family on that schedule, or as the preset's own on the linear one, but for
    3 dB; and where the decode undoes its encode, to the last bits. x_T is no larger than noise.
    """
    faults = []
    for key, preset in presets(SCHEDULES[name], clip).items():
        if key.endswith("official"):
            continue
        official, _ = measured(name, "diffusers official" if key == "diffusers asyrp" else "official", clip, "trained")
        for network in NETWORKS:
            found, std = measured(name, key, clip, network)
            own, _ = measured("linear", key, clip, network)
            least = 90.0 if preset.sampler == "bdia" else min(official, own) - BELOW
            said = f"{key}, {network}: {found:.1f} dB, expected {least:.1f}; x_T {std:.2f}"
            print(f"{name}, {said}")
            if not (found >= least and 0.6 <= std <= 1.1):
                faults.append(said)
    assert faults == []


@pytest.mark.parametrize("name", SCHEDULES)
def test_samples_on_every_schedule(name: str) -> None:
    """From noise: near one of the Gaussians, all of which are met, and with their mean and standard deviation."""
    schedule, engine = SCHEDULES[name], Mixture(SCHEDULES[name], ERROR)
    expected = engine.draw(2_000, seed=2)
    noise, faults = np.random.default_rng(3).standard_normal((128, *SHAPE), dtype=np.float32), []
    for key, preset in presets(schedule, clip=False).items():
        if key.endswith("official"):
            continue
        x = run(engine, planner(schedule).decode(preset, Edit()), noise)[0]
        distance = np.sqrt(((x.reshape(-1, 1, D) - engine.mean) ** 2).mean(axis=2)) / engine.std
        near, modes = float(np.median(distance.min(axis=1))), len(np.unique(distance.argmin(axis=1)))
        mean = float(np.sqrt(np.mean((x.mean(axis=0) - expected.mean(axis=0)) ** 2)))
        std = float(x.std() / expected.std())
        print(f"{name}, {key}: at {near:.2f}, {modes} modes, mean off by {mean:.3f}, std {std:.2f}")
        if not (0.55 <= near <= 1.2 and modes == 6 and mean <= 0.08 and 0.85 <= std <= 1.1):
            faults.append(f"{key}: at {near:.2f}, {modes} modes, mean off by {mean:.3f}, std {std:.2f}")
    assert faults == []


@pytest.mark.parametrize(
    ("name", "key", "network"),
    [
        ("cosine", "balanced", "trained"),
        ("rescaled", "balanced", "trained"),
        ("tiny first β", "balanced", "trained, x_0"),
    ],
)
def test_without_a_span_they_are_lost(monkeypatch: pytest.MonkeyPatch, name: str, key: str, network: str) -> None:
    """What the limits are for: the same run over the whole schedule."""
    monkeypatch.setattr("hspace.schedule.LEAST_NOISE", 1e-9)
    monkeypatch.setattr("hspace.schedule.WHOLE_NOISE", 1e9)
    schedule = msgspec.convert(msgspec.to_builtins(SCHEDULES[name]), contract.AnySchedule)
    assert len(schedule.build().span) == 1000
    found, _ = reconstruction(schedule, presets(schedule, clip=False)[key], **NETWORKS[network])
    print(f"{name}, {key}: {found:.1f} dB")
    assert found <= measured("linear", key, False, network)[0] - 6
