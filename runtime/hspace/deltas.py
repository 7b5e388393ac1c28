"""What an edit does to z_sem and to h: the mathematics, which knows no file and no bundle."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .errors import ArgumentError
from .program import Branch

GROUPS = 32  # of every GroupNorm in both papers' networks


def silu(x: Float32) -> Float32:
    """x·sigmoid(x), elementwise."""
    with np.errstate(over="ignore"):  # exp(−x) = inf gives the right limit, 0
        y: Float32 = np.divide(x, 1 + np.exp(-x))
    return y


def group_norm(x: Float32, weight: Float32, bias: Float32, eps: float) -> Float32:
    """GroupNorm with 32 groups. x: float32 [N, C, H, W]; weight, bias: float32 [C]."""
    n, c, height, width = x.shape
    g = x.reshape(n, min(GROUPS, c), -1)
    g = np.subtract(g, g.mean(axis=2, keepdims=True))
    g = np.divide(g, np.sqrt(np.square(g).mean(axis=2, keepdims=True) + np.float32(eps)))
    y: Float32 = g.reshape(n, c, height, width) * weight[:, None, None] + bias[:, None, None]
    return y


@dataclass(frozen=True, slots=True)
class ZDirection:
    """A direction in normalised z_sem, and the linear classifier that it came from.

    weight, mean, std: float32 [D]; bias: a logit.
    """

    weight: Float32
    bias: float
    mean: Float32
    std: Float32

    def move(self, z_sem: Float32, strength: float) -> Float32:
        """z_sem (float32 [D]) moved: in normalised space, += strength·sqrt(D)·weight/‖weight‖."""
        step = strength * math.sqrt(self.weight.size) / norm(self.weight)
        with np.errstate(over="ignore", invalid="ignore"):
            normalised = (z_sem - self.mean) / self.std + np.float32(step) * self.weight
            moved: Float32 = np.add(normalised * self.std, self.mean, dtype=np.float32)
        if not np.isfinite(moved).all():
            raise ArgumentError(f"edits: found strength {strength:.4g}, expected one with which z_sem stays finite")
        return moved

    def logit(self, z_sem: Float32) -> Float32:
        """z_sem float32 [N, D] → float32 [N]: weight·z_normalised + bias; not finite where it overflows."""
        with np.errstate(over="ignore", invalid="ignore"):
            logits: Float32 = np.matmul((z_sem - self.mean) / self.std, self.weight) + np.float32(self.bias)
        return logits

    def summary(self) -> dict[str, Any]:
        return {"norm": norm(self.weight), "bias": self.bias}


class Delta(Protocol):
    """What the injection needs of an attribute of the h-space."""

    @property
    def branch(self) -> Branch: ...
    @property
    def n_train(self) -> int | None: ...

    def delta_h(self, h: Float32, temb: Float32, t: NDArray[np.int32]) -> Float32:
        """Δh, float32 [N, C, H, W], for h [N, C, H, W], temb [N, E] and timesteps t [N]."""
        ...


@dataclass(frozen=True, slots=True)
class DeltaBlock:
    """Asyrp's f_t: [GroupNorm, SiLU,] 1×1 convolution, + projected temb, GroupNorm, SiLU, 1×1 convolution.

    The bracketed part, `norm1`, is there in the improved-diffusion layout and not in the DDPM one.
    conv1, conv2: (weight float32 [C, C], bias float32 [C]); temb_proj: (weight float32 [C, E], bias [C]).
    """

    norm1: tuple[Float32, Float32] | None
    conv1: tuple[Float32, Float32]
    temb_proj: tuple[Float32, Float32]
    norm2: tuple[Float32, Float32]
    conv2: tuple[Float32, Float32]
    eps: float
    n_train: int | None
    branch: Branch = Branch.ASYMMETRIC

    def delta_h(self, h: Float32, temb: Float32, t: NDArray[np.int32]) -> Float32:
        n, c, height, width = h.shape
        y = h if self.norm1 is None else silu(group_norm(h, *self.norm1, self.eps))
        y = self.conv1[0] @ y.reshape(n, c, -1) + self.conv1[1][:, None]
        y = y + (silu(temb) @ self.temb_proj[0].T + self.temb_proj[1])[:, :, None]
        y = silu(group_norm(y.reshape(n, -1, height, width), *self.norm2, self.eps))
        y = self.conv2[0] @ y.reshape(n, c, -1) + self.conv2[1][:, None]
        return y.reshape(h.shape)

    def summary(self) -> dict[str, Any]:
        return {"layout": "ddpm" if self.norm1 is None else "improved", "channels": len(self.conv1[1])}


@dataclass(frozen=True, slots=True)
class DeltaTable:
    """Δh from a table over timesteps, the nearest one taken (the lower of two equally near).

    timesteps: int64 [K], ascending; table: float32 [K, C, H, W].
    """

    timesteps: NDArray[np.int64]
    table: Float32
    n_train: int | None
    branch: Branch

    def delta_h(self, h: Float32, temb: Float32, t: NDArray[np.int32]) -> Float32:
        taken: Float32 = self.table[nearest(self.timesteps, t)]
        return taken

    def summary(self) -> dict[str, Any]:
        return {"timesteps": len(self.timesteps)}


def nearest(timesteps: NDArray[np.int64], t: NDArray[np.int32]) -> NDArray[np.intp]:
    """For each of t (int32 [N]), the number of the nearest of `timesteps` (int64 [K], ascending), the lower of two."""
    numbers: NDArray[np.intp] = np.abs(timesteps[None, :] - t[:, None].astype(np.int64)).argmin(axis=1)
    return numbers


@dataclass(frozen=True, slots=True)
class Content:
    """Another image's h, step by step: Δh that turns h towards it, h ← slerp(h, ‖h‖·h'/‖h'‖; strength).

    timesteps: int64 [K], ascending; table: float32 [K, C, H, W], h' over that image's inversion. strength: 0 (h stays)
    … 1 (h' at h's norm). mask: float32 [H, W] in [0, 1], where to do so; None for everywhere.
    Source: Jeong et al. 2024 (InjectFusion), section 3.1, as Asyrp's code has it ("DiffStyle").
    """

    timesteps: NDArray[np.int64]
    table: Float32
    strength: float
    mask: Float32 | None = None
    branch: Branch = Branch.ASYMMETRIC
    n_train: int | None = None

    def delta_h(self, h: Float32, temb: Float32, t: NDArray[np.int32]) -> Float32:
        mask = np.float32(1) if self.mask is None else self.mask
        moved = np.zeros_like(h)
        for i, (own, other) in enumerate(zip(h * mask, self.table[nearest(self.timesteps, t)] * mask, strict=True)):
            at_own_norm = other * np.float32(norm(own) / max(norm(other), 1e-30))
            moved[i] = slerp(own, at_own_norm, np.array([self.strength]))[0] - own
        return moved


def norm(weight: Float32) -> float:
    """‖weight‖, in float64."""
    return float(np.linalg.norm(weight.astype(np.float64)))


def slerp(a: Float32, b: Float32, weights: NDArray[np.float64]) -> Float32:
    """Spherical interpolation between two arrays taken as vectors (float32 [F, *a.shape]); linear where parallel."""
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)  # squares of what float32 holds overflow it
    cosine = np.vdot(wide_a, wide_b) / max(float(np.linalg.norm(wide_a) * np.linalg.norm(wide_b)), 1e-30)
    theta = float(np.arccos(np.clip(cosine, -1, 1)))
    if np.sin(theta) < 1e-6:
        wa, wb = 1 - weights, weights
    else:
        wa, wb = np.sin((1 - weights) * theta) / np.sin(theta), np.sin(weights * theta) / np.sin(theta)
    frame = (len(weights), *[1] * a.ndim)
    with np.errstate(over="ignore"):  # what overflows, a latent or the run's end refuses
        between: Float32 = (wa.reshape(frame) * wide_a + wb.reshape(frame) * wide_b).astype(np.float32)
    return between


AnyAttribute = ZDirection | DeltaBlock | DeltaTable  # each with a `summary`, which is what `hspace info` says of it


def directions_of(attributes: Mapping[str, AnyAttribute]) -> dict[str, ZDirection]:
    """Those that are directions of z_sem, in their order."""
    return {name: a for name, a in attributes.items() if isinstance(a, ZDirection)}


@dataclass(frozen=True, slots=True)
class Edit:
    """What one image's edit does: directions of z_sem, and deltas of h on one branch, each with its strength.

    n_train: the step count whose strengths row.edit_scale refers to; None where no delta has one.
    """

    directions: tuple[tuple[ZDirection, float], ...] = ()
    deltas: tuple[tuple[Delta, float], ...] = ()
    branch: Branch = Branch.NONE
    n_train: int | None = None

    def move(self, z_sem: Float32) -> Float32:
        """z_sem (float32 [D]) moved along every direction."""
        for direction, strength in self.directions:
            z_sem = direction.move(z_sem, strength)
        return z_sem


NO_EDIT = Edit()


def inject(h: Float32, temb: Float32, t: NDArray[np.int32], scale: Float32, edits: list[Edit]) -> Float32:
    """scale·Σ_k s_k·f_k(h, t) for samples with different edits; each attribute is evaluated once, for all its samples.

    h: float32 [N, C, H, W]; temb: float32 [N, E]; t: int32 [N]; scale: float32 [N]; edits: N of them.
    Returns float32 [N, C, H, W].
    """
    total = np.zeros_like(h)
    users: dict[int, tuple[Delta, list[int], list[float]]] = {}
    for sample, edit in enumerate(edits):
        for delta, strength in edit.deltas:
            _, samples, strengths = users.setdefault(id(delta), (delta, [], []))
            if sample in samples[-1:]:  # under another name too
                strengths[-1] += strength
                continue
            samples.append(sample)
            strengths.append(strength)
    for delta, samples, strengths in users.values():
        weight = scale[samples] * np.asarray(strengths, dtype=np.float32)
        total[samples] += weight[:, None, None, None] * delta.delta_h(h[samples], temb[samples], t[samples])
    return total
