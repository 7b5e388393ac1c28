"""What engines compile, kept under the user's cache folder; and what this process may use of the machine."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import platform
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


def usable_cores() -> int:
    """How many cores this process may use: its affinity, and its control group's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        return cores


def processor() -> str:
    """What processor this is, in its maker's words where the system tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
