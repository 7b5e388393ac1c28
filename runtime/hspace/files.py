"""Whole files or none: outputs are written under a temporary name in the same folder, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from .errors import OutputError


def write_atomically(path: Path, data: bytes) -> None:
    """Writes `data` to `path`, replacing what is there, or leaves everything as it was and raises OutputError."""
    temporary = path.parent / f".{path.name[:100]}.{secrets.token_hex(6)}"
    try:
        with open(temporary, "xb") as f:
            try:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
                os.replace(temporary, path)
            except BaseException:  # an interrupt leaves nothing behind either
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
    except OSError as e:
        raise OutputError(f"{path}: cannot be written: {e.strerror}") from None
