"""Attributes' files: safetensors, verified and checked against the model's shapes, as what `deltas` applies."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bundle import Bundle, h_shape
from .deltas import GROUPS, AnyAttribute, DeltaBlock, DeltaTable, ZDirection, norm
from .errors import BundleError
from .manifest import Attribute
from .program import Branch
from .tensors import Tensors, read_tensors


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
    if not norm(got["weight"]) > 0:
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


def summary(attribute: AnyAttribute) -> dict[str, Any]:
    """What `hspace info` says of an attribute."""
    if isinstance(attribute, ZDirection):
        return {"norm": norm(attribute.weight), "bias": attribute.bias}
    if isinstance(attribute, DeltaTable):
        return {"timesteps": len(attribute.timesteps)}
    return {"layout": "ddpm" if attribute.norm1 is None else "improved", "channels": len(attribute.conv1[1])}
