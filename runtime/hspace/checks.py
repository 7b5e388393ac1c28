"""Checks of arguments that several calls share, and one error for several faults."""

from __future__ import annotations

import numpy as np

from .errors import ArgumentError, HspaceError

MOST_IMAGES = 100_000  # of one call
_MOST_FAULTS, _MOST_LETTERS, _MOST_TEXT = 50, 1200, 10_000  # of one error: faults, letters of each, letters of all


def quoted(value: object, most: int = 100) -> str:
    """The repr of `value`, cut to `most` characters, as messages quote it."""
    try:
        text = repr(value[:most] if isinstance(value, (str, bytes)) else value)
    except Exception:  # a whole number of 5000 digits has no repr, and an object may have any
        return f"a value of type {type(value).__name__}"
    cut = len(text) > most + 2 or (isinstance(value, (str, bytes)) and len(value) > most)
    return f"{text[:most]}…" if cut else text


def check_whole(name: str, value: object, least: int = 1, most: int = MOST_IMAGES) -> None:
    """Raises ArgumentError for anything but a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ArgumentError(f"{name}: found {quoted(value)}, expected a whole number from {least} to {most}")


def check_array(name: str, array: object, shape: tuple[int, ...]) -> None:
    """Raises ArgumentError for anything but finite float32 of that shape."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        given = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ArgumentError(f"{name}: found {given}, expected float32 {list(shape)}")
    if not np.isfinite(array).all():
        raise ArgumentError(f"{name}: has values that are not finite")


def raise_faults(error: type[HspaceError], where: str, faults: list[str]) -> None:
    """One `error` for all of `faults`, if there are any."""
    shown: list[str] = []
    for fault in faults[:_MOST_FAULTS]:  # a fault may quote a file's own text
        if sum(map(len, shown)) > _MOST_TEXT:
            break
        shown.append(fault if len(fault) <= _MOST_LETTERS else f"{fault[:_MOST_LETTERS]}…")
    if len(faults) > len(shown):
        shown.append(f"and {len(faults) - len(shown)} more")
    if shown:
        raise error(f"{where}: " + "; ".join(shown))
