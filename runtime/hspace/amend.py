"""Changes to a bundle that is there: attributes and presets. Components never change once written.

One program changes a bundle at a time: the others wait for its lock, and then change what is there now. A journal with
the names of the files that come and go is written first, then the new file, then `bundle.json`, which is replaced
atomically; then the files that the journal names and the manifest does not list go, and the journal. Readers pass over
what the journal names. So the bundle is sound after each step, as it was or as it is to be, and what a program left
that was killed in between, the next amend takes away.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import msgspec

from .attributes import parse_attribute
from .bundle import Bundle, check_same_model, manifest_bytes, read_journal, read_manifest
from .checks import quoted
from .deltas import AnyAttribute
from .edits import check_names
from .errors import ArgumentError, BundleError, HspaceError, OutputError
from .files import lock_folder, make_folder, reason, sync_folder, write_atomically
from .kinds import KINDS, BranchName
from .manifest import JOURNAL, MANIFEST, Accuracy, Attribute, Manifest, Preset, Source, check_name

_ATTRIBUTES = "attributes"  # the folder of their files
_TEMPORARY = re.compile(r"\.(bundle\.json|\.amend|\d{3,}\.safetensors)\.[0-9a-f]{12}")  # of `write_atomically`


def add_attribute(
    bundle: Bundle,
    name: str,
    data: bytes,
    kind: str,
    branch: BranchName,
    n_train: int | None = None,
    *,
    source: Source | None = None,
    replace: bool = False,
) -> AnyAttribute:
    """Adds an attribute from the bytes of its safetensors file, checked against the model first; returns it, read.

    kind: a name in `KINDS`. source: the file that it was made from, if there is one. replace: whether one of that name
    may be there. Raises ArgumentError where it is and may not be, BundleError where the tensors do not fit the model.
    """
    check_name("attribute", name)
    if kind not in KINDS:
        raise ArgumentError(f"kind: found {quoted(kind)}, expected one of {', '.join(KINDS)}")
    with _amending(bundle) as now:
        check_free("attribute", name, now.manifest.attributes, replace)
        names = (f"{_ATTRIBUTES}/{i:03d}.safetensors" for i in itertools.count())
        entry = Attribute(
            file=next(f for f in names if not os.path.lexists(now.folder / f)),
            bytes=max(1, len(data)),
            sha256=hashlib.sha256(data).hexdigest(),
            kind=kind,
            branch=branch,
            n_train=n_train,
        )
        attribute = parse_attribute(now, entry, data, name)
        sources = {k: v for k, v in now.manifest.provenance.sources.items() if k != _role(name)}
        if source is not None:
            sources[_role(name)] = source
        _write(now, _with(now.manifest, {**now.manifest.attributes, name: entry}, sources), entry.file, data)
    return attribute


def check_free(what: str, name: str, taken: Collection[str], replace: bool) -> None:
    """Raises ArgumentError where the bundle has an attribute or a preset of that name, and it may not be replaced."""
    if name in taken and not replace:
        raise ArgumentError(f"{what}: the bundle has {quoted(name)} already (--force replaces it)")


def remove_attribute(bundle: Bundle, name: str) -> None:
    """Removes an attribute and its file."""
    with _amending(bundle) as now:
        check_names([name], now.manifest.attributes, "attribute")
        attributes, sources = dict(now.manifest.attributes), dict(now.manifest.provenance.sources)
        del attributes[name]
        sources.pop(_role(name), None)
        _write(now, _with(now.manifest, attributes, sources))


def rename_attribute(bundle: Bundle, name: str, to: str) -> None:
    """Gives an attribute another name; it keeps its place."""
    check_name("attribute", to)
    with _amending(bundle) as now:
        attributes, sources = now.manifest.attributes, now.manifest.provenance.sources
        check_names([name], attributes, "attribute")
        if to in attributes:
            raise ArgumentError(f"attribute: the bundle has {quoted(to)} already")
        attributes = {to if k == name else k: v for k, v in attributes.items()}
        sources = {_role(to) if k == _role(name) else k: v for k, v in sources.items()}
        _write(now, _with(now.manifest, attributes, sources))


def set_preset(bundle: Bundle, name: str, preset: Preset, *, replace: bool = False) -> None:
    """Adds a preset, or replaces one where `replace`."""
    check_name("preset", name)
    with _amending(bundle) as now:
        check_free("preset", name, now.manifest.presets, replace)
        changed = msgspec.structs.replace(now.manifest, presets={**now.manifest.presets, name: preset})
        if name == changed.default_preset:  # whose runs were measured
            changed = msgspec.structs.replace(changed, accuracy=msgspec.UNSET, format_minor=msgspec.UNSET)
        _write(now, changed)


def set_accuracy(bundle: Bundle, accuracy: Accuracy) -> None:
    """Records what a faster precision is worth on the bundle (`choice`)."""
    with _amending(bundle) as now:
        _write(now, msgspec.structs.replace(now.manifest, accuracy=accuracy))


def _role(name: str) -> str:
    """What an attribute's source is called among the provenance's."""
    return f"attribute {name}"


def _with(manifest: Manifest, attributes: dict[str, Attribute], sources: dict[str, Source]) -> Manifest:
    provenance = msgspec.structs.replace(manifest.provenance, sources=sources)
    return msgspec.structs.replace(manifest, attributes=attributes, provenance=provenance)


# --- the order of steps -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _amending(bundle: Bundle) -> Iterator[Bundle]:
    """The bundle as it is now, for this program alone to change; `bundle` then has the manifest that was written.

    However this ends, the files that are left are those of the manifest that is there. Raises BundleError where the
    folder holds another model by now.
    """
    with lock_folder(bundle.folder, BundleError):
        _settle(bundle.folder)
        now = Bundle(bundle.folder)
        check_same_model(bundle.folder, bundle.manifest, now.manifest)
        try:
            yield now
            bundle.manifest = now.manifest
            _settle(bundle.folder)
        except BaseException:
            with contextlib.suppress(HspaceError):
                _settle(bundle.folder)
            raise


def _write(now: Bundle, manifest: Manifest, file: str | None = None, data: bytes = b"") -> None:
    """Replaces the manifest, after `file` was written, if there is one; `_settle` removes what it does not list."""
    text = manifest_bytes(now.folder, manifest)
    before, after = ({entry.file for _, entry in m.files()} for m in (now.manifest, manifest))
    changed = sorted(before ^ after)
    for name in changed:
        if not _is_own(now.folder, name):
            raise OutputError(f"{now.folder / name}: is behind a linked folder, where nothing is added or removed")
    if changed:
        _put(now.folder / JOURNAL, msgspec.json.encode(changed))
    if file is not None:
        make_folder((now.folder / file).parent)
        _put(now.folder / file, data)
    _put(now.folder / MANIFEST, text)
    now.manifest = manifest


def _put(path: Path, data: bytes) -> None:
    """Writes a file so that it is there after a loss of power, under its name, before anything that follows it."""
    write_atomically(path, data)
    sync_folder(path.parent)


def _settle(folder: Path) -> None:
    """Removes what an amend that has ended left: files that its journal names and the manifest does not list."""
    names = set(read_journal(folder)) - {entry.file for _, entry in read_manifest(folder).files()}
    for inside in (folder, folder / _ATTRIBUTES):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            names |= {str((inside / n).relative_to(folder)) for n in os.listdir(inside) if _TEMPORARY.fullmatch(n)}
    for name in sorted(names):
        if _is_own(folder, name):
            _remove(folder / name)
    _remove(folder / JOURNAL)
    with contextlib.suppress(OSError):
        (folder / _ATTRIBUTES).rmdir()  # if it is empty


def _is_own(folder: Path, name: str) -> bool:
    """Whether the bundle itself holds the file of that name, or the link: no folder on the way to it is a link."""
    above = os.path.dirname(name)
    return os.path.realpath(folder / above) == os.path.normpath(os.path.join(os.path.realpath(folder), above))


def _remove(path: Path) -> None:
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
    except (OSError, ValueError) as e:
        raise OutputError(f"{path}: is not listed any more, and cannot be removed: {reason(e)}") from None
