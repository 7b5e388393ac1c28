"""Every picture that the program writes, decoded, shows the arrays that it was made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hspace.sheet import Sheet, save_animation

CELL, GAP = 128, 8  # as `sheet` has them


def smooth(count: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3]: gradients with a disc that moves, more colours than a palette holds."""
    y, x = np.mgrid[:size, :size] / (size - 1)
    found = []
    for i in range(count):
        at = i / max(count - 1, 1)
        disc = (x - at) ** 2 + (y - 0.5) ** 2 < 0.04
        found.append(np.stack([x * (1 - at) + y * at, np.where(disc, 0.9, y), np.where(disc, 0.1, 1 - x)], axis=-1))
    return (255 * np.stack(found)).round().astype(np.uint8)


def played(path: Path) -> list[tuple[np.ndarray, int]]:
    """What a viewer shows, and for how many milliseconds each, composed from the frames as the file stores them."""
    shown = []
    with PIL.Image.open(path) as animation:
        assert animation.info["loop"] == 0
        for i in range(animation.n_frames):
            animation.seek(i)
            shown.append((np.asarray(animation.convert("RGB")), int(animation.info["duration"])))
    return shown


def close_to(found: np.ndarray, wanted: np.ndarray, name: str) -> None:
    """The same picture; a GIF's palette of 256 colours may move a colour."""
    difference = np.abs(found.astype(int) - wanted)
    assert difference.max() <= (24 if name.endswith(".gif") else 0), difference.max()
    assert difference.mean() <= (5 if name.endswith(".gif") else 0), difference.mean()


@pytest.mark.parametrize("name", ["x.gif", "x.apng"])
@pytest.mark.parametrize(("count", "size"), [(2, 8), (8, 32), (24, 128)])
def test_animation_of_a_sheet(name: str, count: int, size: int, tmp_path: Path) -> None:
    """Each frame has its picture, enlarged, in its place, and its own label above; together they last 2.5 s."""
    pictures, sheet = smooth(count, size), Sheet([""], [f"t = {i}" for i in range(count)], size)
    save_animation(tmp_path / name, sheet.frames(pictures))
    shown = played(tmp_path / name)
    assert len(shown) == count
    scale = max(1, CELL // size)
    labels = set()
    for (frame, _), picture in zip(shown, pictures, strict=True):
        part = frame[-GAP - CELL : -GAP, GAP : GAP + CELL]
        close_to(part, picture.repeat(scale, axis=0).repeat(scale, axis=1), name)
        labels.add((frame[: -GAP - CELL].mean(axis=-1) < 128).tobytes())
    assert len(labels) == count
    assert sum(each for _, each in shown) == pytest.approx(2500, abs=5 * count)


@pytest.mark.parametrize("name", ["x.gif", "x.apng"])
def test_frames_that_repeat_last_as_long(name: str, tmp_path: Path) -> None:
    """An encoder may store a repeated frame once; it is shown for as long as it and its repeats."""
    a, b = smooth(2, 32)
    save_animation(tmp_path / name, [a, a, b, a, a, a], seconds=3)
    shown = [(frame, each // 500) for frame, each in played(tmp_path / name)]
    assert sum(each for _, each in shown) == 6
    frames = [frame for frame, each in shown for _ in range(each)]
    for found, wanted in zip(frames, [a, a, b, a, a, a], strict=True):
        close_to(found, wanted, name)
