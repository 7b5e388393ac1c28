"""Reads inputs, and treats `-` as stdin (an input) or stdout (an output)."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import click

from ..errors import HspaceError, ImageError, OutputError
from ..files import MAX_FILE_BYTES, read_file
from ..image import MOST_BYTES
from ..manifest import Source

DASH = Path("-")  # a file of that name differs from it: `expand` gives the file an absolute path


def read_source(path: Path, error: type[HspaceError]) -> bytes:
    """The bytes of a file or of stdin. stdin can be read again. Raises `error` for too many bytes."""
    most = MOST_BYTES if error is ImageError else MAX_FILE_BYTES
    return _stdin(error, most) if path == DASH else read_file(path, error, most)


def _stdin(error: type[HspaceError], most: int) -> bytes:
    kept = click.get_current_context().find_root().meta
    if "stdin" in kept:
        return cast(bytes, kept["stdin"])
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise error(f"-: stdin is {what}, expected a file or a pipe")
    data = sys.stdin.buffer.read(most + 1)
    if len(data) > most:
        raise error(f"-: found more than {most} bytes on stdin, expected at most that")
    kept["stdin"] = data
    return data


def source_of(path: Path, data: bytes) -> Source:
    """The record's entry for an input."""
    return Source(file=path.name, sha256=hashlib.sha256(data).hexdigest())


def sources_of(paths: Sequence[Path]) -> list[Source]:
    """The record's entries for files of images."""
    return [source_of(path, read_source(path, ImageError)) for path in paths]


def check_stdout() -> None:
    """Raises OutputError where stdout is no place for a file."""
    if sys.stdout is None or sys.stdout.isatty():
        raise OutputError("-: stdout is a terminal, expected a file or a pipe")


def write_stdout(data: bytes) -> None:
    """Writes a file's bytes to stdout."""
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as e:
        raise OutputError(f"-: stdout cannot be written: {e.strerror}") from None
