"""What engines compile, kept under the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import sys
from pathlib import Path

from ..errors import OutputError
from ..files import make_folder, write_atomically

_DIGEST = 32  # bytes of a SHA-256


def folder() -> Path:
    """$HSPACE_CACHE, else hspace under the platform's cache folder."""
    given = os.environ.get("HSPACE_CACHE")
    if given:
        return Path(given)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "hspace" / "cache"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "hspace"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hspace"


def key(*of: object) -> str:
    """The name of what all of these together decide."""
    return hashlib.sha256("|".join(map(str, of)).encode()).hexdigest()


class Entry:
    """One cached file: its content, then its SHA-256. What is damaged, or cannot be read or written, is not there."""

    def __init__(self, kind: str, key: str) -> None:
        self.path = folder() / kind / f"{key}.bin"

    def map(self) -> tuple[mmap.mmap, memoryview] | None:
        """The file in memory, writable for this process alone, and in it the content; read as its pages are used.

        A file is replaced and never changed, so what was checked here stays so.
        """
        try:
            with open(self.path, "rb") as f:
                whole = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError):  # a ValueError is of an empty file
            return None
        content, digest = memoryview(whole)[:-_DIGEST], whole[-_DIGEST:]
        return (whole, content) if hashlib.sha256(content).digest() == digest else None

    def read(self) -> bytes | None:
        found = self.map()
        return None if found is None else bytes(found[1])

    def write(self, content: bytes | memoryview) -> None:
        with contextlib.suppress(OutputError):
            make_folder(self.path.parent)
            write_atomically(self.path, content, hashlib.sha256(content).digest())
