"""The bundle: a folder with everything that a run needs, described by its manifest.

Every file is checked by its SHA-256 before anything parses it. A bundle holds no code but ONNX graphs, and no
file that its manifest does not list.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from .checks import raise_faults
from .errors import ArgumentError, BundleError, did_you_mean
from .files import MAX_TEXT_BYTES, check_file, read_file, write_atomically
from .manifest import MANIFEST, MAX_PATH, Component, File, Manifest, Preset, parse_manifest
from .onnx_graph import check_graph
from .onnx_scan import check_onnx


class Bundle:
    """An opened bundle: its folder, its manifest, and its files, each verified at the moment it is read."""

    def __init__(self, folder: str | Path) -> None:
        """Opens `folder`. Raises BundleError for a missing, unlisted or linked file or a faulty manifest.

        Sizes are checked here; contents when `read` is called, or all at once by `verify`.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            if not self.folder.is_dir() or not path.is_file() or path.is_symlink():
                raise BundleError(f"{self.folder}: expected a bundle: a folder with a {MANIFEST}")
            self.manifest = parse_manifest(read_file(path, BundleError, MAX_TEXT_BYTES), str(path))
            self._check_listing()
        except OSError as e:
            raise BundleError(f"{self.folder}: cannot be read: {e.strerror}") from None

    def _check_listing(self) -> None:
        listed = {entry.file: entry for _, entry in self.manifest.files()}
        present: dict[str, int] = {}  # path → size
        faults, folders = [], [""]
        while folders:
            inside = folders.pop()
            with os.scandir(self.folder / inside) as entries:
                for entry in entries:
                    name = inside + entry.name
                    if entry.is_symlink():
                        faults.append(f"{name}: a link, expected a plain file")
                    elif entry.is_dir() and len(name) < MAX_PATH:
                        folders.append(f"{name}/")
                    else:  # a deeper folder can hold nothing that is listed
                        present[name] = entry.stat().st_size
        faults.sort()
        faults += [f"{name}: missing" for name in sorted(set(listed) - set(present))]
        faults += [f"{name}: not listed in {MANIFEST}" for name in sorted(set(present) - set(listed) - {MANIFEST})]
        for name in sorted(set(listed) & set(present)):
            if present[name] != listed[name].bytes:
                faults.append(f"{name}: found {present[name]} bytes, expected {listed[name].bytes}")
        raise_faults(BundleError, str(self.folder), faults)

    def read(self, entry: File) -> bytes:
        """The contents of a listed file, checked against its SHA-256 before anyone parses them."""
        data = read_file(self.folder / entry.file, BundleError, entry.bytes)
        self._check(entry, hashlib.sha256(data).hexdigest())
        return data

    def check(self, entry: File) -> None:
        """As `read`, for who has what was made of the file before: it is not held in memory."""
        path = self.folder / entry.file
        check_file(path, BundleError)
        try:
            with open(path, "rb") as f:
                found = hashlib.file_digest(f, "sha256").hexdigest()
        except OSError as e:
            raise BundleError(f"{path}: cannot be read: {e.strerror}") from None
        self._check(entry, found)

    def _check(self, entry: File, found: str) -> None:
        if found != entry.sha256:
            path = self.folder / entry.file
            raise BundleError(f"{path}: altered: found SHA-256 {found}, expected {entry.sha256}")

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
            raise BundleError(f"{self.folder}: has no component {name!r}; it has {', '.join(self.manifest.components)}")
        return self.manifest.components[name]

    def preset(self, name: str | None = None) -> tuple[str, Preset]:
        """The preset of that name, or the default one, with its name."""
        name = self.manifest.default_preset if name is None else name
        if not isinstance(name, str) or name not in self.manifest.presets:
            near = did_you_mean(name, self.manifest.presets)
            raise ArgumentError(f"preset: found {name!r}, expected one of {', '.join(self.manifest.presets)}{near}")
        return name, self.manifest.presets[name]

    def verify(self) -> Iterator[tuple[str, int]]:
        """Checks every file's contents, one at a time; yields its path and size in bytes."""
        for key, entry in self.manifest.files():
            if key.startswith("components."):
                self.read_component(key.removeprefix("components."))
            else:
                self.read(entry)
            yield entry.file, entry.bytes


def h_shape(bundle: Bundle) -> tuple[int, int, int, int]:
    """(C, H, W) of h, and E, the length of temb, as the trunk declares them."""
    shapes = {o.name: o.shape for o in bundle.component("trunk").outputs}
    c, height, width = (int(d) for d in shapes["h"][1:])
    return c, height, width, int(shapes["temb"][1])


def file_entry(folder: Path, name: str) -> dict[str, Any]:
    """The `file`, `bytes` and `sha256` of a file in a bundle that is being written."""
    with open(folder / name, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        return {"file": name, "bytes": f.tell(), "sha256": digest}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Checks `manifest` as a reader would, then replaces `bundle.json` atomically."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    parse_manifest(data, str(folder / MANIFEST))
    write_atomically(folder / MANIFEST, data)
