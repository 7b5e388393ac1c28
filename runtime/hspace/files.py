"""Reads regular files within a limit of size, and writes files that are either whole or absent."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from .errors import EngineError, HspaceError, OutputError

MAX_FILE_BYTES = 2**31 - 1  # protobuf's limit, hence ONNX's without external data
MAX_TEXT_BYTES = 2**24  # of JSON and the like
LOCK = ".lock"  # in a folder while a program changes the folder's content
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # without it, opening a pipe that nobody writes to would wait


def reason(error: OSError | ValueError | MemoryError) -> str:
    """Why the system refused: a full disk, too many open files, no permission, little memory."""
    if isinstance(error, MemoryError):
        return "Cannot allocate memory"
    return getattr(error, "strerror", None) or str(error)


def load_pillow() -> None:
    """Imports Pillow, or raises EngineError with the reason: its libraries need addresses that a process may lack."""
    try:
        import PIL.Image  # noqa: F401
    except (ImportError, OSError, MemoryError) as e:
        from .engines import shortage

        raise EngineError(shortage.reason("pillow", e)) from e


def check_file(path: str | Path, error: type[HspaceError]) -> int:
    """The size in bytes of a regular file, links followed. Raises `error` for anything else: reading might not end."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path}: no such file") from None
    except (OSError, ValueError) as e:  # a name with a NUL gives a ValueError
        raise error(f"{path}: cannot be read: {reason(e)}") from None
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path}: not a file")
    return status.st_size


@contextlib.contextmanager
def open_file(path: str | Path, error: type[HspaceError]) -> Iterator[io.BufferedReader]:
    """A regular file, open for reading; raises `error` for anything else, and where reading it fails."""
    check_file(path, error)
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK)) as f:
            if not stat.S_ISREG(os.fstat(f.fileno()).st_mode):  # it was replaced since the check
                raise error(f"{path}: not a file")
            yield f
    except (OSError, MemoryError) as e:
        raise error(f"{path}: cannot be read: {reason(e)}") from None


def read_file(path: str | Path, error: type[HspaceError], most: int = MAX_FILE_BYTES) -> bytes:
    """The contents of a regular file of at most `most` bytes; raises `error` for anything else."""
    with open_file(path, error) as f:
        size = os.fstat(f.fileno()).st_size  # of the open file: the name may be another file's by now
        if size > most:
            raise error(f"{path}: found {size} bytes, expected at most {most}")
        return f.read(size)


def check_output(path: Path) -> bool:
    """Whether a write to `path` would replace something. Raises OutputError where `path` cannot be a file."""
    there = False
    try:
        os.lstat(path)
        there = True
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):  # or a link to nowhere, which may be replaced
        return there
    except (OSError, ValueError) as e:
        raise OutputError(f"{path}: cannot be written: {reason(e)}") from None
    if not regular:
        raise OutputError(f"{path}: cannot be written: not a file")
    return True


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it, where they are not there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as e:
        raise OutputError(f"{path}: cannot be made: {reason(e)}") from None


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Writes `parts` to `path`, replacing a file, or leaves everything as it was and raises OutputError.

    The file is written under a temporary name in the same folder. It is renamed when its content is on the disk. The
    new file takes over the permissions of the file that it replaces. A link is replaced itself.
    """
    check_output(path)
    temporary = path.parent / f".{path.name[:50]}.{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as f:
            with contextlib.suppress(OSError):  # no file to replace, or a file system without permissions
                os.chmod(temporary, stat.S_IMODE(os.stat(path).st_mode) & 0o777)
            f.writelines(parts)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as e:  # an interrupt leaves nothing behind either
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(e, OSError):
            raise OutputError(f"{path}: cannot be written: {reason(e)}") from None
        raise


def sync_folder(path: Path) -> None:
    """Writes a folder's names to the disk, where the system can. Renames in it then survive a crash."""
    with contextlib.suppress(OSError):  # Windows opens no folders, and not every file system syncs them
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def lock_folder(path: Path, error: type[HspaceError], seconds: float = 60) -> Iterator[None]:
    """Holds a folder's lock. Other programs wait for it. The lock ends with the process, however the process ends.

    The lock is on the file `LOCK` in the folder. The file is removed with the lock. Raises `error` where another
    program holds the lock for that many seconds, OutputError where the folder cannot be written to.
    """
    end = time.monotonic() + seconds
    while (lock := _try_lock(path)) is None:
        if time.monotonic() >= end:
            raise error(f"{path}: another program is changing it; try again when it has ended")
        time.sleep(0.02)
    try:
        yield
    finally:
        with lock, contextlib.suppress(OSError):  # Windows removes no file that is open
            if _is_at(lock, path / LOCK):
                os.unlink(path / LOCK)


def _try_lock(folder: Path) -> io.FileIO | None:
    """The lock's file, locked; None where another program has it, or took the file away before it was locked."""
    from filelock import lock_descriptor  # takes 50 ms, and readers need none

    def open_lock(name: str, _: int) -> int:
        flags = _NONBLOCK | getattr(os, "O_NOFOLLOW", 0)
        try:
            return os.open(name, os.O_RDWR | os.O_CREAT | flags, 0o666)
        except PermissionError:
            if not os.path.lexists(name):  # the folder may not be written to
                raise
            return os.open(name, os.O_RDONLY | flags)  # another user's, who was killed; reading is enough for a lock

    try:
        lock = open(folder / LOCK, "rb", buffering=0, opener=open_lock)  # noqa: SIM115, for the caller to close
        if lock_descriptor(lock.fileno(), blocking=False) and _is_at(lock, folder / LOCK):
            return lock
    except OSError as e:
        raise OutputError(f"{folder}: cannot be locked: {reason(e)}") from None
    lock.close()
    return None


def _is_at(lock: io.FileIO, name: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.lstat(name))
    except OSError:
        return False
