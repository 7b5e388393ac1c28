"""What an engine's library says of a machine that lacks something, which is no fault of the graph."""

from __future__ import annotations

import errno
import importlib
import os
import re
from typing import Any

from ..errors import BundleError, EngineError, HspaceError

ENOUGH = 6 * 2**30  # bytes of addresses: with so many, what a library says without a word of memory is of the graph
# what they raise shares no type: words of C++, glibc, TBB, ONNX Runtime and the system
_WORDS = (
    (r"bad_alloc|bad allocation|can't alloc|allocate memory|out of memory|not enough memory|failed to map", "memory"),
    (re.escape(os.strerror(errno.EAGAIN)), "memory, or too few threads"),
    (re.escape(os.strerror(errno.EMFILE)), "file descriptors"),
    (re.escape(os.strerror(errno.ENOSPC)), "disk space"),
)


class Lack(str):
    """A reason that passes: too little of something, just now, which says nothing of what was asked for."""


def address_limit() -> int | None:
    """How many bytes of addresses this process is limited to; None where it is not, or the system does not say."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    limits = [resource.getrlimit(what)[0] for what in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=None)


def limited(need: int = ENOUGH) -> Lack | None:
    """Where this process may use fewer bytes of addresses than `need`: that they may be what is missing."""
    limit = address_limit()
    if limit is None or limit >= need:
        return None
    return Lack(f"this process is limited to {limit / 2**30:.1f} GiB of addresses, which may be too few")


def lacks(e: BaseException) -> str | None:
    """What there was too little of, or None where the error is of something else."""
    if isinstance(e, MemoryError):
        return "memory"
    return next((what for words, what in _WORDS if re.search(words, str(e), re.IGNORECASE)), None)


def refusal(where: str, what: str, e: BaseException) -> HspaceError:
    """The error for a graph that a library refuses. what: "ONNX Runtime cannot load this graph".

    Of some allocations that fail OpenVINO says just that the model may be incorrect. So in a process that is limited,
    the limit is blamed.
    """
    lack = shortage(e)
    return BundleError(f"{where}: {what}") if lack is None else EngineError(f"{where}: {what}: {lack}")


def shortage(e: BaseException) -> Lack | None:
    """What there was too little of, or may have been, in a sentence's end."""
    missing = lacks(e)
    return limited() if missing is None else Lack(f"too little {missing}")


def reason(package: str, e: BaseException) -> str:
    """Why a package that is installed cannot be imported; a `Lack` where that passes."""
    lack, what = shortage(e), f"the package {package} is installed but does not load"
    return what if lack is None else Lack(f"{what}: {lack}")
