"""A bundle's folder, put under its name whole.

It is written beside the name, then swapped with what is there in one step, so that the name always has the old bundle
or the new one. Where a system cannot swap, the old one is moved aside first; if the program is killed just then, the
next export moves it back. Folders that are in use are locked (`hspace.files.lock_folder`): the rest are remains.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hspace.bundle import Bundle
from hspace.errors import BundleError, HspaceError, OutputError
from hspace.files import LOCK, lock_folder, sync_folder


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A new folder beside `output`, to be written and then `put`; it is gone afterwards, or what `put` took out of use.

    Raises OSError or OutputError where it cannot be made.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
            stack.callback(_discard, folder)
            try:
                stack.enter_context(lock_folder(folder, OutputError))
                break
            except OutputError:
                if folder.exists():
                    raise  # else another export has just swept it, unlocked as it was
        yield folder


def put(folder: Path, output: Path, *, replace: bool) -> None:
    """Gives a staged bundle the name `output`. replace: whether a bundle may be there, which leaves it its permissions.

    Raises OutputError where one is there and may not be, BundleError where another program keeps on amending it, or
    OSError.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    if output.exists():
        if not replace:
            raise OutputError(f"{output}: exists already (--force replaces it)")
        with lock_folder(output, BundleError):
            folder.chmod(stat.S_IMODE(output.stat().st_mode))
            _replace(folder, output)
    else:
        folder.chmod(0o777 & ~_umask())
        folder.rename(output)
    sync_folder(output.parent)
    (output / LOCK).unlink(missing_ok=True)  # `staged` holds it, under the name that the folder had


def _replace(folder: Path, output: Path) -> None:
    if _exchange(folder, output):
        return
    old = folder.with_name(f"{folder.name}.old")
    try:
        output.rename(old)
        folder.rename(output)
    except BaseException:
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    finally:
        if output.exists():
            _discard(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step: Linux's renameat2, macOS's renamex_np. False where the system cannot."""
    swap = 2  # RENAME_EXCHANGE and RENAME_SWAP
    if sys.platform == "win32":
        return False
    libc, names = ctypes.CDLL(None, use_errno=True), (os.fsencode(a), os.fsencode(b))
    if hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        failed = libc.renameat2(here, names[0], here, names[1], ctypes.c_uint(swap))
    elif hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(*names, ctypes.c_uint(swap))
    else:
        return False
    if failed and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return not failed


def _discard(folder: Path) -> None:
    """Removes a folder, also where that is interrupted once; what cannot be removed is left to a later export."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sweep(output: Path) -> None:
    """Removes what killed exports to `output` left; an old bundle that one had moved aside gets its name back."""
    remains = re.compile(rf"({re.escape(f'.{output.name}.')}[a-z0-9_]{{8}})(\.old|\.gone)?")
    with contextlib.suppress(OSError):
        for folder in list(output.parent.iterdir()):
            match = remains.fullmatch(folder.name)
            if match is None or folder.is_symlink():
                continue
            with contextlib.suppress(HspaceError), lock_folder(folder, OutputError, seconds=0):
                if match[2] == ".old" and not os.path.lexists(output):
                    Bundle(folder)  # what is not sound gets no bundle's name, and stays
                    folder.rename(output)
                    (output / LOCK).unlink()
                else:
                    gone = folder.with_name(f"{match[1]}.gone")
                    folder.rename(gone)  # whoever has just made it, and was about to lock it, finds it missing
                    _discard(gone)
