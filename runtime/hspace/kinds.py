"""The kinds of attributes, in one table: which branches each may have, and what its file's tensors become."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from .deltas import GROUPS, AnyAttribute, DeltaBlock, DeltaTable, ZDirection, norm
from .errors import BundleError
from .program import Branch
from .tensors import Tensors

BranchName = Literal["none", "asymmetric", "symmetric"]


@dataclass(frozen=True, slots=True)
class Slot:
    """What an attribute has to fit, and what the manifest says of it.

    z_sem: its length D, None for a model without one. h: its (C, H, W). temb: its length E.
    """

    z_sem: int | None
    h: tuple[int, int, int]
    temb: int
    branch: Branch
    n_train: int | None


class AttributeKind(NamedTuple):
    """branches: those that it may have, the default first; none is of what moves z_sem. marker: the tensor by which
    its file is known from the others'. read: the attribute of a file's tensors, or BundleError where they do not fit.
    """

    branches: tuple[BranchName, ...]
    marker: str
    read: Callable[[Tensors, Slot], AnyAttribute]

    @property
    def moves_z_sem(self) -> bool:
        return self.branches == ("none",)


def _z_direction(tensors: Tensors, slot: Slot) -> ZDirection:
    assert slot.z_sem is not None  # `parse_attribute` says so
    d = slot.z_sem
    got = tensors.take({"weight": (d,), "bias": (1,), "mean": (d,), "std": (d,)}, divisors=["std"])
    if not norm(got["weight"]) > 0:
        raise BundleError(f"{tensors.where}: weight: expected values that are not all zero")
    return ZDirection(got["weight"], float(got["bias"][0]), got["mean"], got["std"])


def _delta_block(tensors: Tensors, slot: Slot) -> DeltaBlock:
    c, e = slot.h[0], slot.temb
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
        pair.get("norm1"), pair["conv1"], pair["temb_proj"], pair["norm2"], pair["conv2"], eps, slot.n_train
    )


def _delta_h(tensors: Tensors, slot: Slot) -> DeltaTable:
    timesteps = tensors.arrays.get("timesteps")
    if timesteps is None or timesteps.dtype != np.int64 or timesteps.ndim != 1 or not timesteps.size:
        raise BundleError(f"{tensors.where}: timesteps: expected int64 [K]")
    if not (np.diff(timesteps) > 0).all():
        raise BundleError(f"{tensors.where}: timesteps: expected ascending values")
    del tensors.arrays["timesteps"]
    table = tensors.take({"delta_h": (len(timesteps), *slot.h)})["delta_h"]
    return DeltaTable(timesteps, table, slot.n_train, slot.branch)


KINDS = {
    "z_direction": AttributeKind(("none",), "weight", _z_direction),
    "delta_block": AttributeKind(("asymmetric",), "conv1.weight", _delta_block),
    "delta_h": AttributeKind(("symmetric", "asymmetric"), "timesteps", _delta_h),
}


def kind_of(tensors: Tensors) -> str:
    """The kind of an attribute with those tensors. Raises BundleError where they are no attribute's."""
    for name, kind in KINDS.items():
        if kind.marker in tensors.arrays:
            return name
    *markers, last = (kind.marker for kind in KINDS.values())
    raise BundleError(f"{tensors.where}: expected an attribute: {', '.join(markers)} or {last} among its tensors")
