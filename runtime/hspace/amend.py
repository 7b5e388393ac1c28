"""Changes to a bundle that is there: attributes and presets. Components never change once written.

A new attribute's file is written first, then `bundle.json` is replaced atomically, then a file that nothing lists any
more is removed. Whoever opens the bundle between two of these steps is refused it, and may try again; if the program is
killed there, the refusal names the file that is to be deleted.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Collection
from typing import Literal

import msgspec

from .attributes import AnyAttribute, check_names, parse_attribute
from .bundle import Bundle, file_entry, write_manifest
from .errors import ArgumentError, BundleError
from .files import MAX_TEXT_BYTES, make_folder, read_file, write_atomically
from .manifest import MANIFEST, Attribute, File, Manifest, Preset, Source, check_name, parse_manifest

Kind = Literal["z_direction", "delta_block", "delta_h"]
BranchName = Literal["none", "asymmetric", "symmetric"]


def add_attribute(
    bundle: Bundle,
    name: str,
    data: bytes,
    kind: Kind,
    branch: BranchName,
    n_train: int | None = None,
    *,
    source: Source | None = None,
    replace: bool = False,
) -> AnyAttribute:
    """Adds an attribute from the bytes of its safetensors file, checked against the model first; returns it, read.

    source: the file that it was made from, if there is one. replace: whether one of that name may be there. Raises
    ArgumentError where it is and may not be, BundleError where the tensors do not fit the model.
    """
    check_name("attribute", name)
    old = bundle.manifest.attributes.get(name)
    check_free("attribute", name, bundle.manifest.attributes, replace)
    _check_unchanged(bundle)
    names = (f"attributes/{i:03d}.safetensors" for i in itertools.count())
    file = next(f for f in names if not os.path.lexists(bundle.folder / f))
    path = bundle.folder / file
    placeholder = Attribute(
        file=file, bytes=max(1, len(data)), sha256="0" * 64, kind=kind, branch=branch, n_train=n_train
    )
    attribute = parse_attribute(bundle, placeholder, data, name)
    try:
        make_folder(path.parent)
        write_atomically(path, data)
        entry = msgspec.structs.replace(placeholder, **file_entry(bundle.folder, file))
        sources = {k: v for k, v in bundle.manifest.provenance.sources.items() if k != _role(name)}
        if source is not None:
            sources[_role(name)] = source
        _replace(bundle, {**bundle.manifest.attributes, name: entry}, sources)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()  # if it is empty
        raise
    _forget(bundle, old)
    return attribute


def check_free(what: str, name: str, taken: Collection[str], replace: bool) -> None:
    """Raises ArgumentError where the bundle has an attribute or a preset of that name, and it may not be replaced."""
    if name in taken and not replace:
        raise ArgumentError(f"{what}: the bundle has {name!r} already (--force replaces it)")


def remove_attribute(bundle: Bundle, name: str) -> None:
    """Removes an attribute and its file."""
    check_names([name], bundle.manifest.attributes, "attribute")
    attributes, sources = dict(bundle.manifest.attributes), dict(bundle.manifest.provenance.sources)
    old = attributes.pop(name)
    sources.pop(_role(name), None)
    _replace(bundle, attributes, sources)
    _forget(bundle, old)


def rename_attribute(bundle: Bundle, name: str, to: str) -> None:
    """Gives an attribute another name; it keeps its place."""
    check_names([name], bundle.manifest.attributes, "attribute")
    check_name("attribute", to)
    if to in bundle.manifest.attributes:
        raise ArgumentError(f"attribute: the bundle has {to!r} already")
    attributes, sources = bundle.manifest.attributes, bundle.manifest.provenance.sources
    _replace(
        bundle,
        {to if k == name else k: v for k, v in attributes.items()},
        {_role(to) if k == _role(name) else k: v for k, v in sources.items()},
    )


def set_preset(bundle: Bundle, name: str, preset: Preset, *, replace: bool = False) -> None:
    """Adds a preset, or replaces one where `replace`."""
    check_name("preset", name)
    check_free("preset", name, bundle.manifest.presets, replace)
    _write(bundle, msgspec.structs.replace(bundle.manifest, presets={**bundle.manifest.presets, name: preset}))


def _role(name: str) -> str:
    """What an attribute's source is called among the provenance's."""
    return f"attribute {name}"


def _replace(bundle: Bundle, attributes: dict[str, Attribute], sources: dict[str, Source]) -> None:
    provenance = msgspec.structs.replace(bundle.manifest.provenance, sources=sources)
    _write(bundle, msgspec.structs.replace(bundle.manifest, attributes=attributes, provenance=provenance))


def _check_unchanged(bundle: Bundle) -> None:
    """Raises BundleError where the folder's manifest is no longer the one that was opened."""
    path = bundle.folder / MANIFEST
    if parse_manifest(read_file(path, BundleError, MAX_TEXT_BYTES), str(path)) != bundle.manifest:
        raise BundleError(f"{path}: was changed by something else meanwhile; try again")


def _write(bundle: Bundle, manifest: Manifest) -> None:
    _check_unchanged(bundle)
    write_manifest(bundle.folder, manifest)
    bundle.manifest = manifest


def _forget(bundle: Bundle, entry: File | None) -> None:
    """Removes a file that the manifest lists no longer."""
    if entry is None:
        return
    path = bundle.folder / entry.file
    try:
        path.unlink()
    except OSError as e:
        raise BundleError(f"{path}: is not listed any more, and cannot be removed: {e.strerror}") from None
