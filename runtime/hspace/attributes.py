"""Attributes' files: safetensors, verified and checked against the model's shapes, as what `deltas` applies."""

from __future__ import annotations

from .bundle import Bundle, h_shape
from .deltas import AnyAttribute
from .errors import BundleError
from .kinds import KINDS, Slot
from .manifest import Attribute
from .program import Branch
from .tensors import read_tensors


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
    kind, z_sem = KINDS[entry.kind], bundle.manifest.z_sem
    if kind.moves_z_sem and z_sem is None:
        raise BundleError(f"{where}: a {entry.kind}, and the model has no z_sem to move")
    *h, temb = h_shape(bundle)
    size = None if z_sem is None else z_sem.size
    slot = Slot(size, (h[0], h[1], h[2]), temb, Branch[entry.branch.upper()], entry.n_train)
    return kind.read(read_tensors(data, where), slot)
