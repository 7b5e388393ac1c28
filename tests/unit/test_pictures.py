"""Every picture that the program writes, decoded, shows the arrays that it was made of."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from hspace.errors import ArgumentError, ImageError
from hspace.image import MOST_RECORD, encode_image, read_record, save_image
from hspace.sheet import Sheet, save_animation

from ..hostile.helpers import refused

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


# --- single images ------------------------------------------------------------------------------------

LOSSLESS, LOSSY = ("x.png", "x.bmp", "x.PNG"), ("x.jpg", "x.jpeg", "x.webp")


def decoded(path: Path) -> np.ndarray:
    with PIL.Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("name", [*LOSSLESS, *LOSSY])
@pytest.mark.parametrize("record", [None, '{"a": 1}'], ids=["plain", "record"])
def test_image(name: str, record: str | None, tmp_path: Path) -> None:
    """Decodes to the array that it shows, with a record or without."""
    picture = smooth(1, 64)[0]
    save_image(tmp_path / name, picture, record=record)
    difference = np.abs(decoded(tmp_path / name).astype(int) - picture)
    assert difference.mean() <= (0 if name in LOSSLESS else 3)


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_quality(suffix: str) -> None:
    """Less of it makes a smaller file that is further off; 95 is the default."""
    picture = smooth(1, 64)[0]
    files = {q: encode_image(picture, suffix, quality=q) for q in (10, 50, 95)}
    errors = [np.abs(np.asarray(PIL.Image.open(io.BytesIO(f))).astype(int) - picture).mean() for f in files.values()]
    assert errors[0] > errors[1] > errors[2]
    assert len(files[10]) < len(files[50]) < len(files[95])
    assert encode_image(picture, suffix) == files[95]


def test_refused_options() -> None:
    picture = smooth(1, 8)[0]
    for quality in (0, 101, 50.0, True):
        with refused(ArgumentError, f"quality: found {quality!r}, expected a whole number from 1 to 100"):
            encode_image(picture, ".jpg", quality=quality)
    with refused(ArgumentError, "a.png: found a quality for PNG, expected it for JPEG or WEBP"):
        encode_image(picture, ".png", quality=90, name="a.png")
    for wrong in (picture[None], picture[..., 0], picture.astype(np.float32), picture[..., :2]):
        with refused(ArgumentError, f"image: found {wrong.dtype} {list(wrong.shape)}, expected uint8 [H, W, 3]"):
            encode_image(wrong, ".png")


# --- records ------------------------------------------------------------------------------------------

RECORDS = ["{}", '{"seed": 3, "name": "smile"}', '{"name": "улыбка 笑顔 😀"}', "x" * MOST_RECORD, "я" * MOST_RECORD]


@pytest.mark.parametrize("record", RECORDS, ids=["empty JSON", "ASCII", "Unicode", "long", "long Unicode"])
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.gif", "x.apng"])
def test_record(name: str, record: str, tmp_path: Path) -> None:
    """It comes back as it was, and no pixel is decoded for that."""
    pictures = smooth(2, 8)
    if name in ("x.gif", "x.apng"):
        save_animation(tmp_path / name, [*pictures], record=record)
    else:
        save_image(tmp_path / name, pictures[0], record=record)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PIL.Image.Image, "load", None)
        assert read_record(tmp_path / name) == record


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp", "x.gif", "x.apng", "x.bmp"])
def test_no_record(name: str, tmp_path: Path) -> None:
    pictures = smooth(2, 8)
    if name in ("x.gif", "x.apng"):
        save_animation(tmp_path / name, [*pictures])
    else:
        save_image(tmp_path / name, pictures[0], record="{}" if name == "x.bmp" else None)
    assert read_record(tmp_path / name) is None


def test_record_refused(tmp_path: Path) -> None:
    for record in ("x" * (MOST_RECORD + 1), "a\0b", "a\ud800"):
        for suffix in (".png", ".jpg", ".webp", ".bmp"):
            with refused(ArgumentError, f"record: expected a text of at most {MOST_RECORD} characters"):
                encode_image(smooth(1, 8)[0], suffix, record=record)
        with refused(ArgumentError, "record: expected a text", unchanged=tmp_path):
            save_animation(tmp_path / "x.gif", [*smooth(2, 8)], record=record)


def test_record_of_what_is_none(tmp_path: Path) -> None:
    """Of a file that another program altered or made, there is no record; of one that is not there, an error."""
    for suffix in (".png", ".jpg", ".webp"):
        data = encode_image(smooth(1, 8)[0], suffix, record='{"seed": 3}')
        for end in range(0, len(data), 7):
            (tmp_path / "x").write_bytes(data[:end])
            assert read_record(tmp_path / "x") in (None, '{"seed": 3}')
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0" + b"x" * (MOST_RECORD + 1)
    PIL.Image.fromarray(smooth(1, 8)[0]).save(tmp_path / "x.jpg", exif=exif.tobytes())
    assert read_record(tmp_path / "x.jpg") is None
    exif.get_ifd(0x8769)[0x9286] = 7
    PIL.Image.fromarray(smooth(1, 8)[0]).save(tmp_path / "x.jpg", exif=exif.tobytes())
    assert read_record(tmp_path / "x.jpg") is None
    with refused(ImageError, "nowhere.png: no such file"):
        read_record(tmp_path / "nowhere.png")


# --- plots --------------------------------------------------------------------------------------------


def coloured(picture: np.ndarray, colour: str) -> np.ndarray:
    """Where a picture has just that colour, as matplotlib's #rrggbb: bool [H, W]."""
    return (picture == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1)


def test_curves_of_calibrate(tmp_path: Path) -> None:
    """Each panel's curve passes through its means, and the red line stands at the t that was chosen."""
    pytest.importorskip("matplotlib", reason="plots need the extra `fit`")
    from hspace_export.calibrate import Curves, plot

    t, mean = np.array([0, 100, 300, 999]), np.array([0.1, 0.3, 0.2, 0.8])
    curves = Curves("squared", 2, t, (mean, 0 * mean), (1 - mean, 0 * mean))
    plot(tmp_path / "c.png", curves, [("t_edit", 0.25, 100), ("t_boost", 1.2, 300)])
    picture = decoded(tmp_path / "c.png")
    half = picture.shape[1] // 2
    for panel, values, chosen in ((picture[:, :half], mean, 100), (picture[:, half:], 1 - mean, 300)):
        dark = (panel < 40).all(axis=-1)
        left, right = np.flatnonzero(dark.sum(axis=0) > 0.6 * len(panel))[[0, -1]]  # the frame
        at = left + (t + 0.05 * 999) / (1.1 * 999) * (right - left)  # with matplotlib's margins
        red = np.flatnonzero(coloured(panel, "#d62728").sum(axis=0) > 0.4 * len(panel))
        assert abs(red.mean() - at[list(t).index(chosen)]) <= 1.5
        blue = coloured(panel, "#1f77b4")
        legend = np.lib.stride_tricks.sliding_window_view(blue, 12, axis=1).all(axis=-1)  # its line is level
        blue[legend.any(axis=1)] = False
        rows = []
        for x in at.round().astype(int):  # beside the point, where the red line does not hide it
            near = [np.flatnonzero(blue[:, x + d]) for d in (-3, 3) if left < x + d < right]
            rows.append(np.mean([r.mean() for r in near if r.size]))
        slope, offset = np.polyfit(values, rows, 1)
        assert slope < -50 and np.abs(slope * values + offset - rows).max() <= 8


def test_plot_of_bench() -> None:
    """Bars are as long as the times that they show."""
    pytest.importorskip("matplotlib", reason="plots need the extra `bench`")
    from hspace.bench.plot import plot

    times = {"trunk": 4.0, "head": 2.0, "head ×2": 3.0, "update": 0.5, "inject": 1.0}
    times |= {"step": 6.6, "asymmetric step": 8.4}
    found = {
        "engines": {"null": {"milliseconds": {name: {"p50": value} for name, value in times.items()}}},
        "batches": {"1": {}},
        "machine": {"processor": "a", "usable_cores": 1, "cores": 2, "versions": {}, "date": "2026-01-01T00:00"},
        "run": {"bundle": "b", "batches": [1]},
    }
    picture = np.asarray(PIL.Image.open(io.BytesIO(plot(found))).convert("RGB"))
    colours = {"trunk": "#4c72b0", "head": "#dd8452", "inject": "#55a868", "update": "#8c8c8c"}

    def lengths(colour: str) -> list[int]:
        """Of the bars of a colour, downwards, in pixels: the longest run in a row of each block of rows."""
        counts = coloured(picture, colour).sum(axis=1)
        blocks = np.split(counts, np.flatnonzero(np.diff(counts > 0)) + 1)
        return [int(block.max()) for block in blocks if block[0] > 0 and len(block) > 20]

    steps = {name: lengths(colour) for name, colour in colours.items()}
    scale = steps["trunk"][0] / 4.0
    assert steps["trunk"] == pytest.approx([4 * scale] * 2, abs=2)
    assert steps["head"] == pytest.approx([2 * scale, 3 * scale], abs=4)
    assert steps["inject"] == pytest.approx([scale], abs=4)
    assert steps["update"] == pytest.approx([0.5 * scale] * 2, abs=4)
