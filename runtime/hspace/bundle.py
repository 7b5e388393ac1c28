"""The bundle: a folder with everything that a run needs, described by its manifest.

Every file is checked by its SHA-256 before anything parses it. A bundle holds no code but ONNX graphs. Its manifest
alone says which files are read, so links are followed. A file that it does not list is refused, unless its name begins
with a dot, a model hub puts it there, or an amend in progress adds or removes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import msgspec

from .checks import quoted, raise_faults
from .errors import ArgumentError, BundleError, did_you_mean
from .files import MAX_TEXT_BYTES, open_file, read_file, reason, write_atomically
from .manifest import JOURNAL, MANIFEST, MAX_PATH, Component, File, Manifest, Preset
from .manifest_read import is_plain, parse_manifest
from .onnx_graph import check_graph
from .onnx_scan import check_onnx

_BESIDE = {MANIFEST, "README.md", "LICENSE"}  # what a model hub puts into a folder stands there unlisted
_LOOKS = 100  # at a bundle that is amended again and again
_NAMES = msgspec.json.Decoder(list[Annotated[str, msgspec.Meta(max_length=MAX_PATH)]])


_AMENDED = re.compile(r"([^./][^/]*/)*[^./][^/]*\.safetensors")  # attributes' files, as exports and amends name them


class Bundle:
    """An opened bundle: its folder, its manifest, and its files, each verified at the moment it is read."""

    def __init__(self, folder: str | Path) -> None:
        """Opens `folder`. Raises BundleError for a missing or unlisted file or a faulty manifest.

        Sizes are checked here; contents when `read` is called, or all at once by `verify`. A bundle that is amended
        meanwhile is looked at again: what is opened is the bundle before or after.
        """
        self.folder = Path(folder)
        seen = None
        for _ in range(_LOOKS):
            try:
                self.manifest = read_manifest(self.folder)
                faults = [*self._listed_faults(), *self._unlisted_faults()]
            except OSError as e:
                raise BundleError(f"{self.folder}: cannot be read: {reason(e)}") from None
            if not faults or seen == (self.manifest, faults):
                break
            seen = self.manifest, faults
        raise_faults(BundleError, str(self.folder), faults)

    def _listed_faults(self) -> Iterator[str]:
        """Of the files that the manifest lists: which are not there, or of another size."""
        for _, entry in self.manifest.files():
            try:
                status = os.stat(self.folder / entry.file)
            except (FileNotFoundError, NotADirectoryError):
                yield f"{entry.file}: missing"
                continue
            except OSError as e:
                yield f"{entry.file}: cannot be read: {reason(e)}"
                continue
            if stat.S_ISDIR(status.st_mode):
                yield f"{entry.file}: missing"
            elif not stat.S_ISREG(status.st_mode) or status.st_size != entry.bytes:
                what = "" if stat.S_ISREG(status.st_mode) else ", and no file"
                yield f"{entry.file}: found {status.st_size} bytes{what}, expected {entry.bytes}"

    def _unlisted_faults(self) -> list[str]:
        """Of the files that are there: which the manifest does not list. A linked folder is not looked into."""
        listed = {entry.file for _, entry in self.manifest.files()}
        known = listed | _BESIDE
        above = {str(p) for file in listed for p in PurePosixPath(file).parents}
        unlisted, folders = [], [""]
        while folders:
            inside = folders.pop()
            for entry in _entries(self.folder / inside):
                name = inside + entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False) and len(name) < MAX_PATH:  # a deeper one holds nothing listed
                    folders.append(f"{name}/")
                elif name not in known and not (entry.is_symlink() and name in above):
                    unlisted.append(name)
        if unlisted:  # the journal is read after the names, which it was written before
            unlisted = sorted(set(unlisted) - set(read_journal(self.folder)))
        return [f"{name}: not listed in {MANIFEST}" for name in unlisted]

    def reread(self) -> bool:
        """Reads the manifest again. Returns whether it is another one, which an amend wrote since this was opened.

        Raises BundleError where it is that of another model.
        """
        before, now = self.manifest, Bundle(self.folder).manifest
        check_same_model(self.folder, before, now)
        self.manifest = now
        return before != now

    def read(self, entry: File) -> bytes:
        """The contents of a listed file, checked against its SHA-256 before anyone parses them."""
        data = read_file(self.folder / entry.file, BundleError, entry.bytes)
        self._check(entry, hashlib.sha256(data).hexdigest())
        return data

    def check(self, entry: File) -> None:
        """As `read`, for who has what was made of the file before: it is not held in memory."""
        with open_file(self.folder / entry.file, BundleError) as f:
            self._check(entry, hashlib.file_digest(f, "sha256").hexdigest())

    def _check(self, entry: File, sha256: str) -> None:
        if sha256 != entry.sha256:
            path = self.folder / entry.file
            raise BundleError(f"{path}: altered: found SHA-256 {sha256}, expected {entry.sha256}")

    def read_component(self, name: str) -> bytes:
        """A component's ONNX graph, checked, and refused where it is not made as exports are."""
        entry = self.component(name)
        data = self.read(entry)
        check_onnx(data, str(self.folder / entry.file))
        check_graph(data, str(self.folder / entry.file))
        return data

    def component(self, name: str) -> Component:
        """The manifest's entry for a component."""
        if name not in self.manifest.components:
            raise BundleError(
                f"{self.folder}: has no component {quoted(name)}; it has {', '.join(self.manifest.components)}"
            )
        return self.manifest.components[name]

    def preset(self, name: str | None = None) -> tuple[str, Preset]:
        """The preset of that name, or the default one, with its name."""
        name = self.manifest.default_preset if name is None else name
        if not isinstance(name, str) or name not in self.manifest.presets:
            near = did_you_mean(name, self.manifest.presets) if isinstance(name, str) else ""
            known = ", ".join(self.manifest.presets)
            raise ArgumentError(f"preset: found {quoted(name)}, expected one of {known}{near}")
        return name, self.manifest.presets[name]

    def verify(self) -> Iterator[tuple[str, int]]:
        """Checks every file's contents, one at a time; yields its path and size in bytes. Begins anew where the bundle
        is amended meanwhile.
        """
        while True:
            try:
                for key, entry in self.manifest.files():
                    if key.startswith("components."):
                        self.read_component(key.removeprefix("components."))
                    else:
                        self.read(entry)
                break
            except BundleError:
                if not self.reread():
                    raise
        yield from ((entry.file, entry.bytes) for _, entry in self.manifest.files())


def h_shape(bundle: Bundle) -> tuple[int, int, int, int]:
    """(C, H, W) of h, and E, the length of temb, as the trunk declares them."""
    shapes = {o.name: o.shape for o in bundle.component("trunk").outputs}
    c, height, width = (int(d) for d in shapes["h"][1:])
    return c, height, width, int(shapes["temb"][1])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing where an amend took the folder away meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def read_manifest(folder: Path) -> Manifest:
    """The manifest in `folder`, checked. Raises BundleError, or OSError where the system refuses to look."""
    path = folder / MANIFEST
    try:
        there = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a ValueError is of a NUL in the name
        there = False
    if not there:
        raise BundleError(f"{folder}: expected a bundle: a folder with a {MANIFEST}")
    return parse_manifest(read_file(path, BundleError, MAX_TEXT_BYTES), str(path))


def check_same_model(folder: Path, before: Manifest, now: Manifest) -> None:
    """Raises BundleError where two manifests of a folder are of two models: an export replaced it in between."""
    if (before.components, before.z_sem) != (now.components, now.z_sem):
        raise BundleError(f"{folder}: was replaced by another model meanwhile; open it again")


def read_journal(folder: Path) -> list[str]:
    """The files that an amend in progress adds to the bundle or takes from it, or that one which was killed did: those
    of attributes. Whatever else a journal names was not written by an amend, and is nothing that one may remove.
    """
    path = folder / JOURNAL
    try:
        named = _NAMES.decode(read_file(path, BundleError, MAX_TEXT_BYTES))
        return [name for name in named if is_plain(name) and _AMENDED.fullmatch(name)]
    except (ValueError, RecursionError):  # of msgspec: no amend wrote this
        return []
    except BundleError:
        if os.path.lexists(path):
            raise
        return []


def file_entry(folder: Path, name: str) -> dict[str, Any]:
    """The `file`, `bytes` and `sha256` of a file in a bundle that is being written."""
    with open(folder / name, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        return {"file": name, "bytes": f.tell(), "sha256": digest}


def manifest_bytes(folder: Path, manifest: Manifest) -> bytes:
    """The contents of `bundle.json`, checked as a reader would."""
    if manifest.accuracy is not msgspec.UNSET:
        manifest = msgspec.structs.replace(manifest, format_minor=1)
    try:
        data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    except UnicodeEncodeError:
        raise BundleError(
            f"{folder / MANIFEST}: a text for it has half of a surrogate pair, expected Unicode"
        ) from None
    parse_manifest(data, str(folder / MANIFEST))
    return data


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Checks `manifest` as a reader would, then replaces `bundle.json` atomically."""
    write_atomically(folder / MANIFEST, manifest_bytes(folder, manifest))
