"""Contact sheets and animations: where things stand, what labels do, and what is refused before it is drawn."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest
from hspace import labels
from hspace.errors import ArgumentError
from hspace.sheet import Sheet, grid, save_animation

from ..hostile.helpers import refused

GAP, CELL = 8, 128  # as the module has them: after each picture, and its least side
LEFT = GAP  # where the first column begins, where rows have no labels


def plain(rows: int, columns: int, size: int) -> Sheet:
    """A sheet without labels."""
    return Sheet([""] * rows, [""] * columns, size)


def pictures(count: int, size: int = 8) -> np.ndarray:
    """uint8 [count, size, size, 3], none of it white."""
    return np.random.default_rng(count).integers(0, 200, (count, size, size, 3), dtype=np.uint8)


def enlarged(picture: np.ndarray, scale: int) -> np.ndarray:
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def ink(part: np.ndarray) -> bool:
    return bool((part != 255).any())


# --- layout -------------------------------------------------------------------------------------------


def test_small_pictures_are_enlarged_in_whole_steps() -> None:
    """A row after the other, from a gap at the left and the top, each pixel as it was."""
    three, sheet = pictures(3), plain(2, 2, 8)
    assert sheet.shape == (GAP + 2 * (CELL + GAP), LEFT + 2 * (CELL + GAP))
    drawn = sheet.draw(three).copy()
    assert (drawn.shape, drawn.dtype) == ((*sheet.shape, 3), np.uint8)
    for i, picture in enumerate(three):
        row, column = divmod(i, 2)
        top, left = GAP + row * (CELL + GAP), LEFT + column * (CELL + GAP)
        np.testing.assert_array_equal(drawn[top : top + CELL, left : left + CELL], enlarged(picture, 16))
        drawn[top : top + CELL, left : left + CELL] = 255
    assert not ink(drawn)  # gaps, and the place of a fourth, are white


@pytest.mark.parametrize(("size", "scale"), [(8, 16), (100, 2), (127, 2), (128, 1), (300, 1)])
def test_scale(size: int, scale: int) -> None:
    assert plain(1, 1, size).shape == (2 * GAP + scale * size, LEFT + GAP + scale * size)


@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (7, 1, 7), (8, 1, 8), (9, 2, 8), (17, 3, 8)])
def test_grid(count: int, rows: int, columns: int) -> None:
    """Rows say whose pictures they have, and which; that takes room at their left."""
    height, width = plain(rows, columns, 128).shape
    sheet = grid("seed 3", count, 128)
    assert sheet.shape[0] == height and sheet.shape[1] > width
    last = Sheet([f"seed 3\n0 to {count - 1}"], [""] * columns, 128)
    assert rows > 1 or np.array_equal(sheet.draw(pictures(count, 128)), last.draw(pictures(count, 128)))


# --- labels -------------------------------------------------------------------------------------------


def test_labels() -> None:
    """Those of columns above, those of rows to the left; the pictures make way, and stay whole."""
    two = pictures(2)
    sheet, bare = Sheet(["first", ""], ["smile +1"], 8), Sheet(["", ""], [""], 8)
    drawn, unlabelled = sheet.draw(two), bare.draw(two)
    down, right = (a - b for a, b in zip(sheet.shape, bare.shape, strict=True))
    assert down > 0 and right > 0
    below, beside = drawn[GAP + down :, :], drawn[:, : GAP + right]
    np.testing.assert_array_equal(below[:, right:], unlabelled[GAP:])
    assert ink(drawn[: GAP + down])
    assert ink(beside[GAP + down : GAP + down + CELL])
    assert not ink(beside[GAP + down + CELL :])  # the second row has none


def test_a_label_wider_than_its_picture_makes_its_column_wider() -> None:
    label = "a label that is much wider than a picture"
    wide, narrow = Sheet([""], [label, "b"], 8), Sheet([""], ["a", "b"], 8)
    assert wide.shape[1] > narrow.shape[1] and wide.shape[0] == narrow.shape[0]
    drawn = wide.draw(pictures(2))
    left = wide.shape[1] - GAP - CELL
    np.testing.assert_array_equal(drawn[-GAP - CELL : -GAP, left:-GAP], enlarged(pictures(2)[1], 16))


def test_a_label_of_two_lines() -> None:
    one, two = Sheet([""], ["a"], 8), Sheet([""], ["a\nb"], 8)
    assert two.shape[0] > one.shape[0] and two.shape[1] == one.shape[1]
    assert ink(two.draw(pictures(1))[one.shape[0] - CELL - GAP : two.shape[0] - CELL - GAP])


def test_frames_of_one_size() -> None:
    """Whatever their labels: an animation's frames must be. Each shows its own picture."""
    sheet, two = Sheet([""], ["t = 1", "a label that is much wider than a picture"], 8), pictures(2)
    a, b = sheet.frames(two)
    assert a.shape == b.shape
    assert not np.array_equal(a[: -GAP - CELL], b[: -GAP - CELL])  # their labels
    for frame, picture in zip((a, b), two, strict=True):
        np.testing.assert_array_equal(frame[-GAP - CELL : -GAP, GAP : GAP + CELL], enlarged(picture, 16))
        assert not ink(frame[-GAP - CELL :, GAP + CELL :])


WRONG = {
    "one picture": pictures(1)[0],
    "of another size": pictures(2, 9),
    "channels first": pictures(2).transpose(0, 3, 1, 2),
    "grey": pictures(2)[..., 0],
    "float32": pictures(2).astype(np.float32),
    "none": pictures(2)[:0],
    "more than cells": pictures(3),
}


@pytest.mark.parametrize("name", WRONG)
def test_pictures_of_another_shape_are_refused(name: str) -> None:
    """Of one picture [H, W, 3], each row of pixels was once drawn as a picture."""
    wrong = WRONG[name]
    found = f"pictures: found {wrong.dtype} {list(wrong.shape)}, expected uint8 [2, 8, 8, 3] or fewer"
    with refused(ArgumentError, found):
        plain(1, 2, 8).draw(wrong)


@pytest.mark.parametrize("name", WRONG)
def test_frames_of_another_shape_are_refused(name: str) -> None:
    with refused(ArgumentError, "pictures: found", "expected"):
        plain(1, 2, 8).frames(WRONG[name])


# --- too large ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "columns", "fits"),
    [
        ("x.webp", 120, True),
        ("x.webp", 121, False),
        ("x.bmp", 240, True),
        ("x.bmp", 241, False),
        ("x.jpg", 481, True),
        ("x.JPEG", 482, False),
        ("x.png", 10_000, True),
        ("x.png", 20_000, False),  # for all of its pixels
    ],
)
def test_too_wide_for_the_format(name: str, columns: int, fits: bool) -> None:
    sheet = Sheet([""], [""] * columns, 8)
    if fits:
        sheet.check(Path(name))
    else:
        with refused(ArgumentError, f"{name}: the sheet would have {sheet.shape[1]}×{sheet.shape[0]} pixels"):
            sheet.check(Path(name))


def test_too_high() -> None:
    with refused(ArgumentError, "x.webp: the sheet would have", "give a folder"):
        Sheet([""] * 130, [""], 8).check(Path("x.webp"))


def test_a_label_can_be_too_wide() -> None:
    with refused(ArgumentError, "x.webp: the sheet would have"):
        Sheet([""], ["w" * 3000], 8).check(Path("x.webp"))


# --- animations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind"), [("x.gif", "GIF"), ("x.apng", "PNG"), ("x.GIF", "GIF")])
def test_animation(name: str, kind: str, tmp_path: Path) -> None:
    """Endless, of all frames in order, for so many seconds."""
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (0, 90, 180, 250)]
    save_animation(tmp_path / name, frames, seconds=2)
    with PIL.Image.open(tmp_path / name) as animation:
        assert (animation.format, animation.n_frames, animation.info["loop"]) == (kind, 4, 0)
        for i, frame in enumerate(frames):
            animation.seek(i)
            assert animation.info["duration"] == 500
            np.testing.assert_allclose(np.asarray(animation.convert("RGB")), frame, atol=1)


def test_frames_are_never_too_short(tmp_path: Path) -> None:
    save_animation(tmp_path / "x.apng", [*pictures(9)], seconds=0.01)
    with PIL.Image.open(tmp_path / "x.apng") as animation:
        assert animation.info["duration"] == 20


# --- labels in any script -----------------------------------------------------------------------------

NAMES = ["smile", "улыбка", "слеза", "笑顔", "笑颜", "小", "웃음", "ابتسامة", "דמעה", "חיוך", "χαμόγελο"]
NAMES += ["café", "cafè", "😀", "😁", "हँसी", "ยิ้ม"]


def label_of(name: str) -> np.ndarray:
    """The strip with the label above a picture, in a sheet as wide for all."""
    drawn = Sheet([""], [name, "w" * 60], 8).draw(pictures(1))
    return drawn[: -GAP - CELL, : GAP + CELL]


@pytest.fixture(params=["this machine's fonts", "no fonts"])
def fonts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Whether there are fonts but Pillow's own."""
    has = request.param == "this machine's fonts"
    if not has:
        monkeypatch.setattr(labels, "_FILES", ())
    for cached in (labels._fonts, labels._has):
        cached.cache_clear()
    yield has
    for cached in (labels._fonts, labels._has):
        cached.cache_clear()


def test_labels_of_any_script_differ(fonts: bool) -> None:
    """None is empty, and none looks like another: no name is drawn as boxes."""
    drawn = {name: label_of(name) for name in NAMES}
    assert all(ink(strip) for strip in drawn.values())
    assert len({strip.tobytes() for strip in drawn.values()}) == len(NAMES)
    np.testing.assert_array_equal(label_of("улыбка"), drawn["улыбка"])


def test_no_character_is_drawn_as_a_box(fonts: bool) -> None:
    """Each part of a label is in a font that has its characters; those that no font has are code points."""
    for name in NAMES:
        parts = labels._runs(name)
        numbers = [labels._fonts().index(font) for font, _ in parts]
        assert all(labels._has(n, c) for n, (_, text) in zip(numbers, parts, strict=True) for c in text), name
        whole = re.sub(r"\\[xuU]([0-9a-f]+)", lambda m: chr(int(m[1], 16)), "".join(text for _, text in parts))
        assert whole == unicodedata.normalize("NFC", name)
    if not fonts:
        assert labels._runs("笑 é") == [(labels._own(), "\\u7b11 \\xe9")]


def test_code_points_where_nothing_is_drawn(fonts: bool) -> None:
    for odd, shown in (("a\tb", "a\\tb"), ("\udc80x", "\\udc80x"), ("\ue000", "\\ue000"), ("\x1b[1m", "\\x1b[1m")):
        assert labels._runs(odd) == [(labels._own(), shown)]


def test_one_name_in_two_forms_of_unicode(fonts: bool) -> None:
    """macOS writes é in files' names as e and an accent."""
    np.testing.assert_array_equal(label_of("cafe\u0301"), label_of("caf\xe9"))


@pytest.mark.parametrize("label", ["smile +0.5", "first\n0 to 7", "gjpqy|_ {~}"])
def test_ascii_is_as_pillow_draws_it(label: str, fonts: bool) -> None:
    """On every machine, whatever its fonts."""
    lines, font = label.count("\n") + 1, PIL.ImageFont.load_default(13)
    assert labels.size_of(label)[1] == 17 * lines
    expected, found = (PIL.Image.new("RGB", (200, 60), "white") for _ in range(2))
    PIL.ImageDraw.Draw(expected).multiline_text((8, 4), label, fill="black", font=font)
    labels.draw(PIL.ImageDraw.Draw(found), 8, 4, label)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_a_label_has_room(fonts: bool) -> None:
    """Nothing is drawn beyond the size that is told, but for a pixel of overhang."""
    for name in NAMES:
        width, height = labels.size_of(name)
        canvas = PIL.Image.new("RGB", (width + 40, height + 40), "white")
        labels.draw(PIL.ImageDraw.Draw(canvas), 20, 20, name)
        rows, columns = np.nonzero((np.asarray(canvas) != 255).any(axis=2))
        assert columns.min() >= 18 and columns.max() <= 20 + width + 1, name
        assert rows.min() >= 16 and rows.max() <= 20 + height + 1, name
