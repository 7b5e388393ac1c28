"""CSV files that say which images have which attribute."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from hspace.cli import common
from hspace.errors import ArgumentError
from hspace.files import MAX_TEXT_BYTES, read_file


def read_labels(
    names: Sequence[str], images: Path, labels: Path
) -> tuple[dict[str, tuple[list[Path], list[Path]]], int]:
    """Name → images of the folder with the attribute, and without; and how many rows have no image there.

    labels: a column of file names, then one per attribute, of 0 or -1, 1, or nothing. Raises ArgumentError with the
    row at fault.
    """
    data = read_file(labels, ArgumentError, MAX_TEXT_BYTES)
    try:
        header, *rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    except (ValueError, csv.Error):  # UnicodeDecodeError among the former
        raise ArgumentError(f"{labels}: expected a CSV file in UTF-8, with a header") from None
    for name in names:
        if header[1:].count(name) != 1:
            columns = "two columns" if name in header[1:] else "no column"
            raise ArgumentError(f"{labels}: has {columns} {name!r}; it has {_short(', '.join(header[1:20]))}")
    there = {p.name: p for p in common.expand([str(images)])}
    examples: dict[str, tuple[list[Path], list[Path]]] = {name: ([], []) for name in names}
    seen: set[str] = set()
    for number, row in enumerate(rows, 2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) != len(header):
            raise ArgumentError(f"{labels}, row {number}: found {len(row)} values, expected {len(header)}")
        if row[0] in seen:
            raise ArgumentError(f"{labels}, row {number}: {_short(row[0])!r} is in an earlier row")
        seen.add(row[0])
        for name, (with_it, without) in examples.items():
            value = row[header.index(name, 1)].strip().lower()
            if value not in ("1", "true", "0", "-1", "false", ""):
                raise ArgumentError(
                    f"{labels}, row {number}: {name}: found {_short(value)!r}, expected 0 or -1, 1, or nothing"
                )
            if value and row[0] in there:
                (with_it if value in ("1", "true") else without).append(there[row[0]])
    if seen.isdisjoint(there):
        raise ArgumentError(f"{labels}: none of its {len(seen)} files is in {images}")
    return examples, len(seen - there.keys())


def _short(text: str) -> str:
    """A file's own text for a message, not at any length."""
    return text if len(text) <= 200 else f"{text[:200]}…"
