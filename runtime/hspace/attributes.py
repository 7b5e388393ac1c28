"""Attributes: named edits, as data.

    z_direction   moves z_sem along a classifier's weight        Preechakul et al. 2022, section 5.2
    delta_block   Δh_t = f_t(h_t, temb), a small network         Kwon et al. 2023, section 3.3
    delta_h       Δh_t from a table over timesteps               Kwon et al. 2023, section 3.5; Haas et al. 2024

and, made by a call and kept in no file, `Content`: Δh_t from another image's h.

Each is one safetensors file; `read_attribute` checks its tensors against the bundle and returns the object
that applies it.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, h_shape
from .errors import ArgumentError, BundleError, EngineError, did_you_mean
from .latent import slerp
from .manifest import Attribute
from .program import Branch
from .tensors import Tensors, read_tensors

Float32 = NDArray[np.float32]
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
        step = strength * math.sqrt(self.weight.size) / _norm(self.weight)
        with np.errstate(over="ignore", invalid="ignore"):
            normalised = (z_sem - self.mean) / self.std + np.float32(step) * self.weight
            moved: Float32 = np.add(normalised * self.std, self.mean, dtype=np.float32)
        if not np.isfinite(moved).all():
            raise ArgumentError(f"edits: found strength {strength:.4g}, expected one with which z_sem stays finite")
        return moved

    def logit(self, z_sem: Float32) -> Float32:
        """z_sem float32 [N, D] → float32 [N]: weight·z_normalised + bias. Raises EngineError where it overflows."""
        with np.errstate(over="ignore", invalid="ignore"):
            logits: Float32 = np.matmul((z_sem - self.mean) / self.std, self.weight) + np.float32(self.bias)
        if not np.isfinite(logits).all():
            raise EngineError("classify: a logit is not finite: z_sem, or a number of the attribute's, is too large")
        return logits


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
        found: Float32 = self.table[nearest(self.timesteps, t)]
        return found


def nearest(timesteps: NDArray[np.int64], t: NDArray[np.int32]) -> NDArray[np.intp]:
    """For each of t (int32 [N]), the number of the nearest of `timesteps` (int64 [K], ascending), the lower of two."""
    found: NDArray[np.intp] = np.abs(timesteps[None, :] - t[:, None].astype(np.int64)).argmin(axis=1)
    return found


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
            at_own_norm = other * np.float32(_norm(own) / max(_norm(other), 1e-30))
            moved[i] = slerp(own, at_own_norm, np.array([self.strength]))[0] - own
        return moved


def _norm(weight: Float32) -> float:
    return float(np.linalg.norm(weight.astype(np.float64)))


AnyAttribute = ZDirection | DeltaBlock | DeltaTable


def directions_of(attributes: Mapping[str, AnyAttribute]) -> dict[str, ZDirection]:
    """Those that are directions of z_sem, in their order."""
    return {name: a for name, a in attributes.items() if isinstance(a, ZDirection)}


def read_attribute(bundle: Bundle, name: str) -> AnyAttribute:
    """The attribute `name` of the bundle, its file verified and its tensors checked against the model's shapes."""
    entry = bundle.manifest.attributes[name]
    return parse_attribute(bundle, entry, bundle.read(entry), str(bundle.folder / entry.file))


def read_attributes(bundle: Bundle) -> dict[str, AnyAttribute]:
    """All of the bundle's attributes, by name; where it is amended meanwhile, those that it has then."""
    while True:
        try:
            return {name: read_attribute(bundle, name) for name in bundle.manifest.attributes}
        except BundleError:
            if not bundle.reread():
                raise


def parse_attribute(bundle: Bundle, entry: Attribute, data: bytes, where: str) -> AnyAttribute:
    """The attribute in the bytes of a file, of the kind and branch that `entry` says. where: the file, for messages."""
    if entry.kind == "z_direction" and bundle.manifest.z_sem is None:
        raise BundleError(f"{where}: a z_direction, and the model has no z_sem to move")
    tensors = read_tensors(data, where)
    builders = {"z_direction": _z_direction, "delta_block": _delta_block, "delta_h": _delta_table}
    return builders[entry.kind](bundle, entry, tensors)


def _z_direction(bundle: Bundle, entry: Attribute, tensors: Tensors) -> AnyAttribute:
    assert bundle.manifest.z_sem is not None  # the manifest's checks say so
    d = bundle.manifest.z_sem.size
    got = tensors.take({"weight": (d,), "bias": (1,), "mean": (d,), "std": (d,)}, divisors=["std"])
    if not _norm(got["weight"]) > 0:
        raise BundleError(f"{tensors.where}: weight: expected values that are not all zero")
    return ZDirection(got["weight"], float(got["bias"][0]), got["mean"], got["std"])


def _delta_block(bundle: Bundle, entry: Attribute, tensors: Tensors) -> AnyAttribute:
    c, _, _, e = h_shape(bundle)
    if c % min(GROUPS, c):
        raise BundleError(
            f"{tensors.where}: the model's h has {c} channels, expected a multiple of {GROUPS} for a delta_block"
        )
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (c, c), "conv2.weight": (c, c), "temb_proj.weight": (c, e)}
    norms = ["norm1", "norm2"] if "norm1.weight" in tensors.arrays else ["norm2"]
    shapes |= {f"{norm}.weight": (c,) for norm in norms}
    shapes |= {f"{part}.bias": (c,) for part in ["conv1", "temb_proj", "conv2", *norms]}
    got = tensors.take(shapes)
    pair = {part: (got[f"{part}.weight"], got[f"{part}.bias"]) for part in ["conv1", "temb_proj", "conv2", *norms]}
    try:
        eps = float(tensors.metadata["eps"])
    except (KeyError, ValueError):
        raise BundleError(f"{tensors.where}: expected GroupNorm's eps in the metadata") from None
    if not 0 < eps < 1:
        raise BundleError(f"{tensors.where}: eps: found {eps}, expected a number between 0 and 1")
    return DeltaBlock(
        pair.get("norm1"), pair["conv1"], pair["temb_proj"], pair["norm2"], pair["conv2"], eps, entry.n_train
    )


def _delta_table(bundle: Bundle, entry: Attribute, tensors: Tensors) -> AnyAttribute:
    timesteps = tensors.arrays.get("timesteps")
    if timesteps is None or timesteps.dtype != np.int64 or timesteps.ndim != 1 or not timesteps.size:
        raise BundleError(f"{tensors.where}: timesteps: expected int64 [K]")
    if not (np.diff(timesteps) > 0).all():
        raise BundleError(f"{tensors.where}: timesteps: expected ascending values")
    del tensors.arrays["timesteps"]
    table = tensors.take({"delta_h": (len(timesteps), *h_shape(bundle)[:3])})["delta_h"]
    return DeltaTable(timesteps, table, entry.n_train, Branch[entry.branch.upper()])


# --- edits ------------------------------------------------------------------------------------------------


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


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ArgumentError for the first of `names` that is not in `known`, with the nearest ones."""
    known = list(known)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise ArgumentError(f"{what}: the bundle has no attribute {str(name)[:100]!r}{hint}")


def check_number(where: str, what: str, value: Any) -> float:
    """`value` as a float that is finite in float32 too; raises ArgumentError for anything else."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if abs(float(value)) <= float(np.finfo(np.float32).max):
                return float(value)
    raise ArgumentError(f"{where}: found {what} {repr(value)[:50]}, expected a number that float32 can hold")


def compile_edit(edits: Mapping[str, float], attributes: Mapping[str, AnyAttribute | Content], n_run: int) -> Edit:
    """One mapping of strengths as an `Edit` for a decode of `n_run` steps. `attributes` holds the named ones, read.

    Strengths are linear; zero leaves an attribute out. An asymmetric delta's own scale is n_train/n_run, or 1 without
    n_train; a row has one edit_scale, that of the first delta with an n_train; the others' strengths make up for it.
    """
    directions: list[tuple[ZDirection, float]] = []
    deltas: list[tuple[Delta, float]] = []
    for name, strength in edits.items():
        value, attribute = check_number(f"edits: {name}", "strength", strength), attributes[name]
        if value == 0:
            continue
        if isinstance(attribute, ZDirection):
            directions.append((attribute, value))
        else:
            deltas.append((attribute, value))
    branches = {d.branch for d, _ in deltas}
    if len(branches) > 1:
        raise ArgumentError("edits: asymmetric and symmetric attributes do not mix in one edit")
    branch = branches.pop() if branches else Branch.NONE
    n_train = next((d.n_train for d, _ in deltas if d.n_train), None)
    if n_train and branch == Branch.ASYMMETRIC:
        deltas = [(d, s * (d.n_train or n_run) / n_train) for d, s in deltas]
    return Edit(tuple(directions), tuple(deltas), branch, n_train)


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
            samples.append(sample)
            strengths.append(strength)
    for delta, samples, strengths in users.values():
        weight = scale[samples] * np.asarray(strengths, dtype=np.float32)
        total[samples] += weight[:, None, None, None] * delta.delta_h(h[samples], temb[samples], t[samples])
    return total


def summary(attribute: AnyAttribute) -> dict[str, Any]:
    """What `hspace info` says of an attribute."""
    if isinstance(attribute, ZDirection):
        return {"norm": _norm(attribute.weight), "bias": attribute.bias}
    if isinstance(attribute, DeltaTable):
        return {"timesteps": len(attribute.timesteps)}
    return {"layout": "ddpm" if attribute.norm1 is None else "improved", "channels": len(attribute.conv1[1])}
