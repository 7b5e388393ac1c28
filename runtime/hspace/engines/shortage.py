"""What an engine's library says of a machine that lacks something, which is no fault of the graph."""

from __future__ import annotations

import errno
import os
import re

from ..errors import BundleError, EngineError, HspaceError

# what they raise shares no type: words of C++, glibc, TBB, ONNX Runtime and the system
_WORDS = (
    (r"bad_alloc|bad allocation|can't alloc|allocate memory|out of memory|not enough memory|failed to map", "memory"),
    (re.escape(os.strerror(errno.EAGAIN)), "memory, or too few threads"),
    (re.escape(os.strerror(errno.EMFILE)), "file descriptors"),
    (re.escape(os.strerror(errno.ENOSPC)), "disk space"),
)


def lacks(e: BaseException) -> str | None:
    """What there was too little of, or None where the error is of something else."""
    if isinstance(e, MemoryError):
        return "memory"
    return next((what for words, what in _WORDS if re.search(words, str(e), re.IGNORECASE)), None)


def refusal(where: str, what: str, e: BaseException) -> HspaceError:
    """The error for a graph that a library refuses. what: "ONNX Runtime cannot load this graph"."""
    missing = lacks(e)
    return BundleError(f"{where}: {what}") if missing is None else EngineError(f"{where}: {what}: too little {missing}")


def reason(package: str, e: BaseException) -> str:
    """Why a package that is installed cannot be imported."""
    missing = lacks(e)
    return f"the package {package} is installed but does not load{f': too little {missing}' if missing else ''}"
