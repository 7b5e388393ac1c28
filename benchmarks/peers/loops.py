"""The papers' loops in plain style, over any network in two parts; arrays are PyTorch's or NumPy's.

`net` has `trunk(x, t, z_sem)` → features, of which the first is h; `head(h, features, z_sem)` → ε; `encoder(x)` →
z_sem; `array`, which makes its kind of array of NumPy's. `tick(kind)` is called after each step.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np
from hspace.deltas import DeltaTable, ZDirection
from numpy.typing import NDArray

from .cases import Case, asyrp_timesteps, diffae_timesteps

Tick = Callable[[str], None]
PLAIN, ASYMMETRIC = "evaluation", "asymmetric step"


def asyrp_edit(
    net: Any, case: Case, attribute: DeltaTable, ab: NDArray[np.float64], steps: tuple[int, int], tick: Tick
) -> Any:
    """Inversion, then the generative process with Δh in P alone; both branches on every step, as the official code."""
    x = net.array(case.image)
    ts = asyrp_timesteps(steps[0])
    for t, after in pairwise(ts):
        features = net.trunk(x, t, None)
        eps = net.head(features[0], features, None)
        p = (x - sqrt(1 - ab[t]) * eps) / sqrt(ab[t])
        x = sqrt(ab[after]) * p + sqrt(1 - ab[after]) * eps
        tick(PLAIN)
    draws = iter(case.noise(steps))
    ts = asyrp_timesteps(steps[1])[::-1]
    scale = case.strength * (attribute.n_train or steps[1]) / steps[1]
    for i, t in enumerate(ts):
        now, after = float(ab[t]), float(ab[ts[i + 1]]) if i + 1 < len(ts) else 1.0
        features = net.trunk(x, t, None)
        h = features[0]
        eps = net.head(h, features, None)
        if t >= case.t_edit:
            nearest = int(np.abs(attribute.timesteps - t).argmin())
            h = h + scale * net.array(attribute.table[nearest : nearest + 1])
        eps_edit = net.head(h, features, None)
        p = (x - sqrt(1 - now) * eps_edit) / sqrt(now)
        s = sqrt((1 - now / after) * (1 - after) / (1 - now)) if t < case.t_boost else 0.0
        x = sqrt(after) * p + sqrt(max(1 - after - s**2, 0)) * eps
        if t < case.t_boost:
            x = x + s * net.array(next(draws))
        tick(ASYMMETRIC)
    return x


def diffae_edit(
    net: Any, case: Case, attribute: ZDirection, ab: NDArray[np.float64], steps: tuple[int, int], tick: Tick
) -> Any:
    """z_sem; the clamped DDIM up to ᾱ = 0; z_sem moved; the clamped DDIM down to the image."""
    x = net.array(case.image)
    z_sem = net.encoder(x)

    def step(x: Any, z: Any, t: int, after: float) -> Any:
        now = float(ab[t])
        features = net.trunk(x, t, z)
        eps = net.head(features[0], features, z)
        p = ((x - sqrt(1 - now) * eps) / sqrt(now)).clip(-1, 1)
        eps = (x - sqrt(now) * p) / sqrt(1 - now)
        x = sqrt(after) * p + sqrt(1 - after) * eps
        tick(PLAIN)
        return x

    ts = diffae_timesteps(steps[0])
    for t, upper in zip(ts, [*ts[1:], None], strict=True):
        x = step(x, z_sem, t, 0.0 if upper is None else float(ab[upper]))
    mean, std, weight = (net.array(a[None]) for a in (attribute.mean, attribute.std, attribute.weight))
    d = attribute.weight.size
    direction = case.strength * sqrt(d) * weight / float(np.linalg.norm(attribute.weight))
    z_sem = ((z_sem - mean) / std + direction) * std + mean
    ts = diffae_timesteps(steps[1])[::-1]
    for t, lower in zip(ts, [*ts[1:], None], strict=True):
        x = step(x, z_sem, t, 1.0 if lower is None else float(ab[lower]))
    return x
