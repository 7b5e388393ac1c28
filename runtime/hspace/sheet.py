"""Pictures of several results: labelled contact sheets, and animations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import labels
from .errors import ArgumentError, OutputError
from .files import load_pillow, write_atomically
from .image import WRITABLE, record_options

ANIMATED = {".gif": "GIF", ".apng": "PNG"}
_TILE, _MARGIN = 128, 8  # pixels: least side of a picture (smaller ones are enlarged), gaps
_MOST_PIXELS = {"WEBP": 16383, "JPEG": 65500, "PNG": 2**31 - 1, "BMP": 2**15}  # on a side, as the encoders have it
_MOST_SHEET = 2**28  # pixels in all


class Sheet:
    """A grid of pictures, each `size` pixels square, with a label beside every row and above every column."""

    def __init__(self, rows: Sequence[str], columns: Sequence[str], size: int) -> None:
        self._rows, self._columns, self._size = [*rows], [*columns], size
        self._scale = max(1, -(-_TILE // size))
        self._cell = size * self._scale

    @cached_property
    def _lefts(self) -> list[int]:
        """Where each column begins, and the sheet's width."""
        x = _MARGIN + max(labels.size_of(label)[0] for label in self._rows)
        x += _MARGIN if any(self._rows) else 0
        lefts = [x]
        for label in self._columns:
            lefts.append(lefts[-1] + max(self._cell, labels.size_of(label)[0]) + _MARGIN)
        return lefts

    @cached_property
    def _top(self) -> int:
        return _MARGIN + max(labels.size_of(label)[1] for label in self._columns)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self._top + len(self._rows) * (self._cell + _MARGIN), self._lefts[-1]

    def check(self, path: Path) -> None:
        """Raises ArgumentError where the format of `path` cannot hold the sheet."""
        height, width = self.shape
        kind = WRITABLE.get(path.suffix.lower(), "")
        total = _MOST_SHEET // 2 if kind == "WEBP" else _MOST_SHEET
        if max(height, width) > _MOST_PIXELS.get(kind, 65535) or height * width > total:
            raise ArgumentError(f"{path}: the sheet would have {width}×{height} pixels, too many; give a folder")

    def draw(self, pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pictures (uint8 [N, size, size, 3]), row after row → the sheet, uint8 [height, width, 3].

        Raises ArgumentError for pictures of another shape, for none, and for more than there are cells.
        """
        load_pillow()
        from PIL import Image, ImageDraw

        most, expected = len(self._rows) * len(self._columns), (self._size, self._size, 3)
        if pictures.dtype != np.uint8 or pictures.shape[1:] != expected or not 1 <= len(pictures) <= most:
            raise ArgumentError(
                f"pictures: found {pictures.dtype} {list(pictures.shape)}, expected uint8 {[most, *expected]} or fewer"
            )
        height, width = self.shape
        sheet = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(sheet)
        for left, label in zip(self._lefts, self._columns, strict=False):
            labels.draw(draw, left, _MARGIN // 2, label)
        for r, label in enumerate(self._rows):
            top = self._top + r * (self._cell + _MARGIN)
            middle = top + (self._cell - labels.size_of(label)[1]) // 2
            labels.draw(draw, _MARGIN, middle, label)
        for i, pixels in enumerate(pictures):
            row, column = divmod(i, len(self._columns))
            picture = np.repeat(np.repeat(pixels, self._scale, axis=0), self._scale, axis=1)
            sheet.paste(Image.fromarray(picture), (self._lefts[column], self._top + row * (self._cell + _MARGIN)))
        return np.asarray(sheet)

    def frames(self, pictures: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        """An animation's frames, uint8 [height, width, 3] each: a picture under its column's label, all of one size.

        pictures: uint8 [N, size, size, 3], one for each column of the first row. Raises ArgumentError for others.
        """
        if len(pictures) != len(self._columns):
            raise ArgumentError(f"pictures: found {len(pictures)}, expected {len(self._columns)}, one for each column")
        widest = max(labels.size_of(label)[0] for label in self._columns)
        frames = []
        for i, label in enumerate(self._columns):
            one = Sheet([""], [label], self._size)
            one._lefts = [_MARGIN, 2 * _MARGIN + max(self._cell, widest)]
            frames.append(one.draw(pictures[i : i + 1]))
        return frames


def grid(name: str, count: int, size: int, most: int = 8) -> Sheet:
    """A sheet for `count` pictures, at most `most` beside each other; a row says the name, and which of them it has."""
    columns = min(count, most)
    rows = [f"{name}\n{first} to {min(first + columns, count) - 1}" for first in range(0, count, columns)]
    return Sheet(rows, [""] * columns, size)


def save_animation(
    path: Path, frames: Sequence[NDArray[np.uint8]], seconds: float = 2.5, *, record: str | None = None
) -> None:
    """Writes frames (uint8 [H, W, 3] each) as an endless GIF or APNG, by the suffix, of so many seconds a round.

    Frames that are equal to the one before are stored once, and shown for as long. record: as `image.encode_image` has
    it: a GIF's comment, an APNG's iTXt "hspace".
    """
    load_pillow()
    from PIL import Image

    kind, buffer = ANIMATED[path.suffix.lower()], io.BytesIO()
    options = record_options(record, kind)
    made = [Image.fromarray(frame) for frame in frames]
    if kind == "GIF":  # of the ways to 256 colours, the one whose worst pixel is nearest: 13 grey levels, not 100
        made = [image.quantize(256, Image.Quantize.MAXCOVERAGE) for image in made]
    first, *rest = made
    each = max(20, 10 * round(100 * seconds / len(frames)))  # ms, in GIF's tens; browsers slow what is faster
    try:
        first.save(buffer, kind, save_all=True, append_images=rest, duration=each, loop=0, **options)
    except (OSError, OverflowError, ValueError):
        raise OutputError(f"{path}: {kind} cannot hold these frames") from None
    write_atomically(path, buffer.getvalue())
