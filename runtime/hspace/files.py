"""Files, in and out: regular ones within a limit are read; outputs are whole or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from .errors import HspaceError, OutputError

MAX_FILE_BYTES = 2**31 - 1  # protobuf's limit, hence ONNX's without external data
MAX_TEXT_BYTES = 2**24  # of JSON and the like


def check_file(path: str | Path, error: type[HspaceError]) -> int:
    """The size in bytes of a regular file, links followed. Raises `error` for anything else: reading might not end."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError) as e:  # a ValueError is of a NUL in the name
        raise error(f"{path}: cannot be read: {getattr(e, 'strerror', e)}") from None
    if not stat.S_ISREG(found.st_mode):
        raise error(f"{path}: not a file")
    return found.st_size


def read_file(path: str | Path, error: type[HspaceError], most: int = MAX_FILE_BYTES) -> bytes:
    """The contents of a regular file of at most `most` bytes; raises `error` for anything else."""
    size = check_file(path, error)
    if size > most:
        raise error(f"{path}: found {size} bytes, expected at most {most}")
    try:
        with open(path, "rb") as f:
            return f.read(size)
    except OSError as e:
        raise error(f"{path}: cannot be read: {e.strerror}") from None


def check_output(path: Path) -> bool:
    """Whether a write to `path` would replace something. Raises OutputError where that is no file, or cannot be one."""
    there = False
    try:
        os.lstat(path)
        there = True
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):  # or a link to nowhere, which may be replaced
        return there
    except (OSError, ValueError) as e:
        raise OutputError(f"{path}: cannot be written: {getattr(e, 'strerror', e)}") from None
    if not regular:
        raise OutputError(f"{path}: cannot be written: not a file")
    return True


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where they are not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{path}: cannot be made: {e.strerror}") from None


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Writes `parts` to `path`, replacing a file, or leaves everything as it was and raises OutputError.

    It is written under a temporary name in the same folder, then renamed.
    """
    check_output(path)
    temporary = path.parent / f".{path.name[:50]}.{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as f:
            try:
                f.writelines(parts)
                f.flush()
                os.fsync(f.fileno())
                os.replace(temporary, path)
            except BaseException:  # an interrupt leaves nothing behind either
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {e.strerror}") from None
