"""Checks of arguments that several calls share."""

from __future__ import annotations

import numpy as np

from .errors import ArgumentError

MOST_IMAGES = 100_000  # of one call


def check_whole(name: str, value: object, least: int = 1, most: int = MOST_IMAGES) -> None:
    """Raises ArgumentError for anything but a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= most:
        raise ArgumentError(f"{name}: found {value!r}, expected a whole number from {least} to {most}")


def check_array(name: str, array: object, shape: tuple[int, ...]) -> None:
    """Raises ArgumentError for anything but finite float32 of that shape."""
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.shape != shape:
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
        raise ArgumentError(f"{name}: found {found}, expected float32 {list(shape)}")
    if not np.isfinite(array).all():
        raise ArgumentError(f"{name}: has values that are not finite")
