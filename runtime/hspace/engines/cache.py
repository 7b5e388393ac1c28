"""Keeps compiled graphs in the user's cache folder, for its owner alone.

A compiled graph is as good as code. So a folder that others can write to is not used, and neither is a file that is not
plain, not ours, or damaged. Where the folder cannot be used or written, hspace works without it and warns once.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import mmap
import os
import re
import secrets
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ..errors import ArgumentError

LIMIT_GIB = 8.0  # of all entries, unless $HSPACE_CACHE_LIMIT says otherwise: a dozen bundles of 256×256 for one engine
_DIGEST = 32  # bytes of a SHA-256
_NAME = re.compile(r"[0-9a-f]{64}\.bin|\.[0-9a-f]{64}\.bin\.[0-9a-f]{12}")
_PIECE = 2**20  # bytes that are copied at once
_STALE = 3600  # seconds after which what a write left half-done is nobody's
_LOG = logging.getLogger("hspace")
_said: set[str] = set()


def folder() -> Path | None:
    """$HSPACE_CACHE, else hspace under the platform's cache folder; None where there is no home folder either."""
    given = os.environ.get("HSPACE_CACHE")
    if given:
        return Path(given)
    if sys.platform != "darwin":
        base = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME", "")
        if os.path.isabs(base):
            return Path(base) / "hspace" / ("cache" if sys.platform == "win32" else "")
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user that the system does not know
        return None
    if not home.is_absolute():
        return None
    inside = {"win32": "AppData/Local/hspace/cache", "darwin": "Library/Caches/hspace"}
    return home / inside.get(sys.platform, ".cache/hspace")


def limit() -> int:
    """The most bytes that all entries may take: $HSPACE_CACHE_LIMIT GiB, by default `LIMIT_GIB`; 0 keeps nothing."""
    given = os.environ.get("HSPACE_CACHE_LIMIT") or str(LIMIT_GIB)
    with contextlib.suppress(ValueError):
        if math.isfinite(float(given)) and float(given) >= 0:
            return int(min(float(given) * 2**30, sys.maxsize))
    raise ArgumentError(f"HSPACE_CACHE_LIMIT: found {given!r}, expected a number of GiB, 0 or more")


def why_not() -> str | None:
    """Why the cache is not used, or None where it is, as far as can be seen without writing."""
    where = folder()
    if where is None:
        return "there is no home folder; HSPACE_CACHE can name one"
    try:
        return _fault(where)
    except FileNotFoundError:  # it will be made
        return None
    except (OSError, ValueError) as e:  # a ValueError is of a NUL in the name
        return f"{where}: cannot be read: {getattr(e, 'strerror', e)}"


def key(*of: object) -> str:
    """The key of an entry that depends on all of these values."""
    return hashlib.sha256("|".join(map(str, of)).encode(errors="surrogateescape")).hexdigest()


def made(kind: str) -> Path | None:
    """A folder in the cache, made where it is missing; None where the cache cannot be used."""
    top = folder()
    if top is not None and why_not() is None:
        try:
            _make(top / kind)
        except (OSError, ValueError) as e:  # a ValueError is of a NUL in the name
            _say(f"{top}: cannot be written: {getattr(e, 'strerror', e)}")
            return None
    return _where(kind)


class Entry:
    """One cached file: its content, then its SHA-256. A damaged or unreadable file counts as missing."""

    def __init__(self, kind: str, key: str) -> None:
        self.kind, self._name = kind, f"{key}.bin"

    def read(self) -> bytes | None:
        """The content."""
        opened = self._open()
        if opened is None:
            return None
        f, size = opened
        with f:
            content, digest = f.read(size - _DIGEST), f.read(_DIGEST)
        return content if len(digest) == _DIGEST and hashlib.sha256(content).digest() == digest else None

    def map(self) -> tuple[mmap.mmap | memoryview, memoryview] | None:
        """The file in memory, writable for this process alone, and its content in that memory. Pages are read at use.

        A program that cuts a mapped file short ends the process that reads it (SIGBUS). So this maps a copy without a
        name in the same folder. Its pages can be given back, as the file's own could be. Where the folder has no room
        for a copy, or is read-only, plain memory holds it. The pages of plain memory cannot be given back.
        """
        opened = self._open()
        if opened is None:
            return None
        whole: mmap.mmap | memoryview
        f, size = opened
        with f:
            try:
                with tempfile.TemporaryFile(dir=_where(self.kind), buffering=0) as copy:
                    if not _copy(f, copy, size):
                        return None
                    whole = mmap.mmap(copy.fileno(), size, access=mmap.ACCESS_COPY)
            except (OSError, ValueError):
                f.seek(0)
                memory = io.BytesIO()
                if not _copy(f, memory, size):
                    return None
                whole = memory.getbuffer()
        return whole, memoryview(whole)[:-_DIGEST]

    def write(self, content: bytes | memoryview) -> None:
        """Replaces the entry, then lets the least recently used ones go until all fit into the limit."""
        with self.scratch(len(content) + _DIGEST) as temporary:
            if temporary is None:
                return
            try:
                with open(temporary, "wb") as f:
                    f.writelines((content, hashlib.sha256(content).digest()))
                os.replace(temporary, temporary.parent / self._name)
            except OSError as e:
                _say(f"{temporary.parent.parent}: cannot be written: {e.strerror}")
                return
            _trim(temporary.parent.parent, limit())

    @contextlib.contextmanager
    def scratch(self, size: int = 1) -> Iterator[Path | None]:
        """A new file beside the entry, for `size` bytes, removed in the end; None where there can be none."""
        path, where = None, made(self.kind) if size <= limit() else None
        if where is not None:
            new = where / f".{self._name}.{secrets.token_hex(6)}"
            try:
                os.close(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                path = new
            except OSError as e:
                _say(f"{where.parent}: cannot be written: {e.strerror}")
        try:
            yield path
        finally:  # an interrupt leaves nothing behind either
            if path is not None:
                with contextlib.suppress(OSError):
                    path.unlink()

    def _open(self) -> tuple[io.BufferedReader, int] | None:
        """The file, marked as used now, and its size in bytes; None for anything but a plain file of ours."""
        path = _where(self.kind)
        if path is None:
            return None
        # a link is refused, a pipe does not block
        flags = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
        try:
            fd = os.open(path / self._name, flags)
        except OSError:
            return None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not _is_ours(status) or not _DIGEST <= status.st_size <= limit():
            os.close(fd)
            return None
        with contextlib.suppress(OSError, NotImplementedError, TypeError):  # a system may not be able to
            os.utime(fd)
        return open(fd, "rb"), status.st_size


def _where(kind: str) -> Path | None:
    """A folder in the cache, if it is there and can be trusted."""
    top, reason = folder(), why_not()
    if top is not None and reason is None:
        try:
            reason = _fault(top / kind)
        except (OSError, ValueError):
            return None
    if reason is None and top is not None:
        return top / kind
    _say(str(reason))
    return None


def _copy(source: io.BufferedReader, target: IO[bytes], size: int) -> bool:
    """Copies `size` bytes. Returns whether they end with the SHA-256 of the bytes before it."""
    sha256 = hashlib.sha256()
    for left in range(size - _DIGEST, 0, -_PIECE):
        piece = source.read(min(left, _PIECE))
        sha256.update(piece)
        target.write(piece)
    digest = source.read(_DIGEST)
    target.write(digest)
    return digest == sha256.digest()


def _is_ours(status: os.stat_result) -> bool:
    """Whether only this user, or root, can write it."""
    if not hasattr(os, "geteuid"):  # Windows, where the user's folder is the user's
        return True
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _fault(path: Path) -> str | None:
    """Why nothing in a folder can be trusted, or None. Raises OSError where it cannot be looked at."""
    status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        return f"{path}: not a folder"
    if not _is_ours(status):
        return f"{path}: others can write it; empty it and make it yours (chmod go-w), or let HSPACE_CACHE name another"
    return None


def _make(path: Path) -> None:
    """Makes a folder, and those above it, for this user alone."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    for each in reversed(missing):
        each.mkdir(mode=0o700, exist_ok=True)


def _trim(top: Path, most: int) -> None:
    """Removes entries, the least recently used first, until all take at most `most` bytes, and unfinished files.

    Several processes may do so at once: an entry that one removes is missing for the others. Nobody holds an entry by
    its name.
    """
    entries = []
    for path in top.glob("*/*.bin*"):
        if not _NAME.fullmatch(path.name):  # a folder that somebody keeps other things in
            continue
        with contextlib.suppress(OSError):
            status = path.lstat()
            if path.name.startswith("."):  # what somebody is writing, or left half-done
                if status.st_mtime < time.time() - _STALE:
                    path.unlink()
            elif stat.S_ISREG(status.st_mode):
                entries.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in entries)
    for _, size, path in sorted(entries):
        if total <= most:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size


def _say(reason: str) -> None:
    """Warns that the cache is not used, once for each reason."""
    if reason not in _said:
        _said.add(reason)
        _LOG.warning("the cache is not used, so every start takes longer: %s", reason)
