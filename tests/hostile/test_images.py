"""Images that are refused, conversions that are not, and the pixel limit, which holds before anything is decoded."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import PIL.Image
import pytest
from hspace.errors import ArgumentError, ImageError
from hspace.image import load_images

from .helpers import png, refused

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)


def encoded(image: PIL.Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(mode: str, size: int = 8) -> PIL.Image.Image:
    return PIL.Image.new(mode, (size, size))


def rgba(alpha: int) -> PIL.Image.Image:
    image = PIL.Image.fromarray(RGB).convert("RGBA")
    image.putpixel((3, 3), (1, 2, 3, alpha))
    return image


def palette(**options: Any) -> bytes:
    return encoded(PIL.Image.fromarray(RGB).quantize(16), **options)


def frames(kind: str, count: int = 2) -> bytes:
    images = [PIL.Image.fromarray(np.roll(RGB, i, axis=0)) for i in range(count)]
    return encoded(images[0], kind, save_all=True, append_images=images[1:])


def rows(depth_bytes: int, width: int = 8, height: int = 8, value: int = 7) -> bytes:
    return (b"\0" + bytes([value]) * (width * depth_bytes)) * height


def transparent_la() -> PIL.Image.Image:
    image = grey("LA")
    image.putpixel((0, 0), (9, 254))
    return image


LARGE, LARGE_JPEG, LARGE_GIF, LARGE_WEBP, LARGE_BMP, LARGE_TIFF = (
    encoded(PIL.Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)), kind)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
PDF = b"%PDF-1.4\n1 0 obj <</Type /Catalog>> endobj\ntrailer <</Root 1 0 R>>\n%%EOF\n"
NOT_AN_IMAGE = "expected an image (PNG, JPEG, WEBP, BMP, TIFF, GIF)"
LIMIT = "67108864"

# name → (suffix, contents, fragments)
FILES: dict[str, tuple[str, bytes, list[str]]] = {
    "empty": (".png", b"", [NOT_AN_IMAGE, "found an empty file"]),
    "zeros": (".jpg", bytes(5000), [NOT_AN_IMAGE, "found a file of 5000 zeros or blanks"]),
    "text": (".png", b"hello", [NOT_AN_IMAGE, "found a text"]),
    "text, BM": (".bmp", "BM überall".encode(), [NOT_AN_IMAGE, "found a text"]),
    "noise": (".png", RNG.bytes(5000), [NOT_AN_IMAGE, "found data of another kind"]),
    "LFS": (".png", LFS, [NOT_AN_IMAGE, "found a Git LFS pointer (`git lfs pull` fetches the file)"]),
    "HTML": (".jpg", b"\n<!DOCTYPE html>\n<html>", [NOT_AN_IMAGE, "found an HTML page (a download that failed?)"]),
    "HTML, a comment first": (".jpg", b"<!-- x --><html lang=de>", [NOT_AN_IMAGE, "found an HTML page"]),
    "HTML, many comments": (".jpg", b"<!---->" * 9000, [NOT_AN_IMAGE, "found an XML document"]),
    "XML": (".jpg", b"<?xml version='1.0'?><Error>no</Error>", [NOT_AN_IMAGE, "found an XML document"]),
    "JSON": (".jpg", b'{"error": 404}', [NOT_AN_IMAGE, "found a JSON text"]),
    "SVG": (".png", b"<?xml version='1.0'?>\n<svg width='8'/>", [NOT_AN_IMAGE, "found an SVG drawing (convert it"]),
    "HEIC": (".heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", [NOT_AN_IMAGE, "found a HEIC photograph (convert it"]),
    "AVIF": (".jpg", b"\0\0\0\x1cftypavif\0\0\0\0mif1avif", [NOT_AN_IMAGE, "found an AVIF image (convert it"]),
    "JPEG 2000": (".jpg", b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), [NOT_AN_IMAGE, "found a JPEG 2000 image"]),
    "icon": (".png", b"\0\0\1\0\1\0\x10\x10" + bytes(40), [NOT_AN_IMAGE, "found an icon"]),
    "MP4": (".gif", b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", [NOT_AN_IMAGE, "found a video (take a frame out"]),
    "WebM": (".webm", b"\x1aE\xdf\xa3\x9fB\x86\x81", [NOT_AN_IMAGE, "found a video"]),
    "ZIP": (".png", b"PK\3\4" + bytes(40), [NOT_AN_IMAGE, "found a ZIP archive (unpack it first)"]),
    "NumPy": (".png", b"\x93NUMPY\1\0" + bytes(40), [NOT_AN_IMAGE, "found a NumPy file"]),
    "raw photograph": (
        ".dng",
        encoded(grey("RGB"), "TIFF", tiffinfo={0xFE: 1}),
        ["preview of a raw photo"],
    ),
    "PDF by another name": (".png", PDF, [NOT_AN_IMAGE, "found a PDF document"]),
    "PDF that Pillow wrote": (".png", encoded(PIL.Image.fromarray(RGB), "PDF"), [NOT_AN_IMAGE]),
    "PostScript by another name": (".jpg", encoded(PIL.Image.fromarray(RGB), "EPS"), [NOT_AN_IMAGE]),
    "format that is not read": (".png", encoded(PIL.Image.fromarray(RGB), "PPM"), [NOT_AN_IMAGE]),
    "pickle": (".png", b"\x80\x04K\x01.", [NOT_AN_IMAGE]),
    "PNG, signature alone": (".png", LARGE[:8], [NOT_AN_IMAGE, "found a PNG file that is cut short: it ends after 8"]),
    "PNG, header alone": (".png", png(8, 8, 8, 2, None), [NOT_AN_IMAGE]),
    "PNG, truncated": (".png", LARGE[: len(LARGE) // 2], [NOT_AN_IMAGE, "found a PNG file that is cut short: it"]),
    "PNG, a byte altered": (
        ".png",
        LARGE[:60] + bytes([LARGE[60] ^ 255]) + LARGE[61:],
        [NOT_AN_IMAGE, "found a damaged PNG file"],
    ),
    "JPEG, truncated": (".jpg", LARGE_JPEG[: len(LARGE_JPEG) // 2], [NOT_AN_IMAGE, "found a JPEG file that is cut"]),
    "GIF, truncated": (".gif", LARGE_GIF[:400], [NOT_AN_IMAGE, "found a GIF file that is cut short"]),
    "WEBP, truncated": (".webp", LARGE_WEBP[:400], [NOT_AN_IMAGE, "found a WEBP file that is cut short"]),
    "BMP, truncated": (".bmp", LARGE_BMP[:400], [NOT_AN_IMAGE, "found a BMP file that is cut short"]),
    "TIFF, truncated": (".tif", LARGE_TIFF[:400], [NOT_AN_IMAGE, "found a damaged TIFF file"]),
    "of another size": (".png", LARGE, ["found 64×64 pixels, expected 8×8", "resize=True"]),
    "not square": (".png", encoded(PIL.Image.new("RGB", (8, 9))), ["found 8×9 pixels, expected 8×8"]),
    "16 bits, grey": (
        ".png",
        encoded(PIL.Image.fromarray(np.ones((8, 8), np.uint16))),
        ["found 16 bits a channel, expected 8 bits a channel"],
    ),
    "16 bits, RGB": (".png", png(8, 8, 16, 2, rows(6)), ["expected 8 bits a channel"]),
    "16 bits, opaque RGBA": (".png", png(8, 8, 16, 6, rows(8, value=255)), ["expected 8 bits a channel"]),
    "16 bits, opaque LA": (".png", png(8, 8, 16, 4, rows(4, value=255)), ["expected 8 bits a channel"]),
    "32 bits": (".tif", encoded(grey("I"), "TIFF"), ["found pixels of mode I, expected 8 bits a channel"]),
    "floats": (".tif", encoded(grey("F"), "TIFF"), ["found pixels of mode F, expected 8 bits a channel"]),
    "RGBA with a hole": (".png", encoded(rgba(0)), ["has transparent pixels, expected an opaque image"]),
    "RGBA, hardly transparent": (".png", encoded(rgba(254)), ["has transparent pixels, expected an opaque image"]),
    "LA, hardly transparent": (".png", encoded(transparent_la()), ["has transparent pixels"]),
    "palette with a transparent colour": (
        ".png",
        palette(transparency=int(np.asarray(PIL.Image.fromarray(RGB).quantize(16))[0, 0])),
        ["has transparent pixels"],
    ),
    "RGB with a transparent colour": (
        ".png",
        encoded(PIL.Image.fromarray(RGB), transparency=tuple(int(c) for c in RGB[0, 0])),
        ["has transparent pixels"],
    ),
    "animated GIF": (".gif", frames("GIF"), ["an animation, expected a single picture"]),
    "animated PNG": (".png", frames("PNG"), ["an animation, expected a single picture"]),
    "animated WebP": (".webp", frames("WEBP"), ["an animation, expected a single picture"]),
    "TIFF of two pages": (".tif", frames("TIFF"), ["expected a single picture"]),
    "bomb, just beyond the limit": (".png", png(8193, 8192, 8, 2, b"\0"), [LIMIT]),
    "bomb, that Pillow warns of": (".png", png(10_000, 10_000, 8, 2, b"\0"), [LIMIT]),
    "bomb, that Pillow refuses": (".png", png(60_000, 60_000, 8, 2, b"\0"), [LIMIT]),
    "bomb, one row": (".png", png(2**31 - 1, 1, 8, 2, b"\0"), [LIMIT]),
    "bomb, bitmap": (
        ".bmp",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0),
        [LIMIT],
    ),
    "bomb, GIF": (".gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", []),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", FILES)
def test_file(name: str, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    suffix, data, fragments = FILES[name]
    path = tmp_path / f"face{suffix}"
    path.write_bytes(data)
    with refused(ImageError, f"{path}: ", *fragments, unchanged=tmp_path):
        null_diffae.edit(path, {"smile": 1.0})


@pytest.mark.parametrize("name", ["bomb, just beyond the limit", "16 bits, grey", "RGBA with a hole", "animated GIF"])
def test_resize_excuses_nothing(name: str, tmp_path: Path) -> None:
    suffix, data, fragments = FILES[name]
    path = tmp_path / f"face{suffix}"
    path.write_bytes(data)
    with refused(ImageError, f"{path}: ", *fragments):
        load_images(path, 4, resize=True)


def test_pixel_limit_holds_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("decoded")

    path = tmp_path / "bomb.png"
    path.write_bytes(png(8193, 8192, 8, 2, b"\0"))
    monkeypatch.setattr(PIL.Image.Image, "load", load)
    monkeypatch.setattr(PIL.Image.Image, "convert", load)
    with refused(ImageError, "bomb.png: found 8193×8192 pixels, expected at most 67108864"):
        load_images(path, 8)


def test_missing_file(tmp_path: Path, null_diffae: hspace.Editor) -> None:
    with refused(ImageError, f"{tmp_path / 'nowhere.png'}: no such file", unchanged=tmp_path):
        null_diffae.edit(tmp_path / "nowhere.png", {})


def test_folder(tmp_path: Path, null_diffae: hspace.Editor) -> None:
    with refused(ImageError, f"{tmp_path}: not a file"):
        null_diffae.edit(str(tmp_path), {})


def test_one_of_several(tmp_path: Path, null_diffae: hspace.Editor) -> None:
    PIL.Image.fromarray(RGB).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"")
    with refused(ImageError, f"{tmp_path / 'bad.png'}: {NOT_AN_IMAGE}"):
        null_diffae.edit([tmp_path / "good.png", tmp_path / "bad.png"], {})


# --- PIL images ---------------------------------------------------------------------------------------

OBJECTS: dict[str, tuple[Callable[[], PIL.Image.Image], str]] = {
    "16 bits": (lambda: PIL.Image.fromarray(np.ones((8, 8), np.uint16)), "image: found 16 bits a channel"),
    "floats": (lambda: grey("F"), "image: found pixels of mode F"),
    "LAB": (lambda: grey("LAB"), "image: found pixels of mode LAB"),
    "transparent": (lambda: rgba(0), "image: has transparent pixels"),
    "of another size": (lambda: grey("RGB", 9), "image: found 9×9 pixels, expected 8×8"),
    "empty": (lambda: grey("RGB", 0), "image: found 0×0 pixels, expected 8×8"),
    "bomb": (lambda: PIL.Image.open(io.BytesIO(png(8193, 8192, 8, 2, b"\0"))), "image: found 8193×8192 pixels"),
    "truncated, not yet read": (lambda: PIL.Image.open(io.BytesIO(LARGE[: len(LARGE) // 2])), "image: expected an im"),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_object(name: str, null_diffae: hspace.Editor) -> None:
    make, fragment = OBJECTS[name]
    with refused(ImageError, fragment):
        null_diffae.encode(make())


def test_resizing_an_image_of_no_pixels() -> None:
    with refused(ImageError, "image: found 0×0 pixels"):
        load_images(grey("RGB", 0), 8, resize=True)


# --- arrays -------------------------------------------------------------------------------------------

F32 = np.zeros((1, 3, 8, 8), dtype=np.float32)


def with_value(value: float) -> np.ndarray:
    array = F32.copy()
    array[0, 1, 2, 3] = value
    return array


ARRAYS: dict[str, tuple[Any, type[hspace.HspaceError], list[str]]] = {
    "above the range": (with_value(1.5), ImageError, ["float32 values outside [-1, 1]"]),
    "below the range": (with_value(-1.5), ImageError, ["float32 values outside [-1, 1]"]),
    "0 to 255": (with_value(255), ImageError, ["float32 values outside [-1, 1]"]),
    "NaN": (with_value(np.nan), ImageError, ["float32 values outside [-1, 1]"]),
    "inf": (with_value(np.inf), ImageError, ["float32 values outside [-1, 1]"]),
    "float32 of another size": (np.zeros((1, 3, 8, 9), "f4"), ImageError, ["found 9×8 pixels, expected 8×8"]),
    "uint8 of another size": (np.zeros((1, 9, 8, 3), "u1"), ImageError, ["found 8×9 pixels, expected 8×8"]),
    "float64": (F32.astype("f8"), ArgumentError, ["found float64 [1, 3, 8, 8], expected uint8"]),
    "float16": (F32.astype("f2"), ArgumentError, ["found float16 [1, 3, 8, 8], expected uint8"]),
    "int64": (np.zeros((1, 8, 8, 3), int), ArgumentError, ["found int64 [1, 8, 8, 3], expected uint8"]),
    "bool": (np.zeros((1, 8, 8, 3), bool), ArgumentError, ["found bool [1, 8, 8, 3], expected uint8"]),
    "objects": (np.array([None]), ArgumentError, ["found object [1], expected uint8"]),
    "float32, channels last": (np.zeros((1, 8, 8, 3), "f4"), ArgumentError, ["found float32 [1, 8, 8, 3]"]),
    "float32, one image of four channels": (np.zeros((4, 8, 8), "f4"), ArgumentError, ["found float32 [4, 8, 8]"]),
    "uint8, channels first": (np.zeros((1, 3, 8, 8), "u1"), ArgumentError, ["found uint8 [1, 3, 8, 8], expected"]),
    "uint8, grey": (np.zeros((8, 8), "u1"), ArgumentError, ["found uint8 [8, 8], expected [N, H, W, 3]"]),
    "uint8, RGBA": (np.zeros((8, 8, 4), "u1"), ArgumentError, ["found uint8 [8, 8, 4], expected [N, H, W, 3]"]),
    "no float32 images": (np.zeros((0, 3, 8, 8), "f4"), ArgumentError, ["found float32 [0, 3, 8, 8]"]),
    "no uint8 images": (np.zeros((0, 8, 8, 3), "u1"), ArgumentError, ["found uint8 [0, 8, 8, 3]"]),
    "no pixels": (np.zeros((1, 0, 0, 3), "u1"), ArgumentError, ["found uint8 [1, 0, 0, 3]"]),
    "empty list": ([], ArgumentError, ["images: found an empty list, expected an image, a path, an array"]),
    "number": (5, ArgumentError, ["images: found int, expected an image"]),
    "None": (None, ArgumentError, ["images: found NoneType, expected an image"]),
    "empty generator": ((i for i in ()), ArgumentError, ["images: found an empty generator, expected an image"]),
    "dict": ({"a": RGB}, ArgumentError, ["images: found dict, expected an image"]),
    "set": ({"a.png"}, ArgumentError, ["images: found set, expected an image"]),
    "list of None": ([None], ArgumentError, ["images[0]: found NoneType in a sequence"]),
    "list of a number": ([RGB, RGB, 5], ArgumentError, ["images[2]: found int in a sequence"]),
    "list of lists": ([RGB, RGB.tolist()], ArgumentError, ["images[1]: found list in a sequence"]),
    "list with a batch": ([RGB, np.stack([RGB, RGB])], ArgumentError, ["images[1]: found a batch of 2, expected one"]),
    "list with floats": ([RGB, F32[0] * 2 + 2], ImageError, ["images[1]: found float32 values outside [-1, 1]"]),
    "list with float64": ([RGB, F32[0].astype("f8")], ArgumentError, ["images[1]: found float64 [3, 8, 8], expected"]),
    "list with a size": ([RGB, RGB[:7]], ImageError, ["images[1]: found 8×7 pixels, expected 8×8"]),
    "list with a text": ([encoded(grey("L")), b"hello"], ImageError, ["images[1]: expected an image", "found a text"]),
    "bytes of a text": (b"hello", ImageError, ["image: expected an image", "found a text"]),
    "bytes cut short": (LARGE[:99], ImageError, ["image: expected an image", "PNG file that is cut short"]),
    "a file of text": (io.StringIO("hello"), ArgumentError, ["image: found a file of str, expected one of bytes"]),
}


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("resize", [False, True], ids=["", "resize"])
def test_array(name: str, resize: bool) -> None:
    images, error, fragments = ARRAYS[name]
    if resize and name in ("uint8 of another size", "list with a size"):
        assert load_images(images, 8, resize=True).shape == (len(images), 3, 8, 8)
        return
    with refused(error, *fragments):
        load_images(images, 8, resize=resize)


# --- what is taken ------------------------------------------------------------------------------------


def oriented() -> tuple[bytes, np.ndarray]:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a viewer turns the picture 90° clockwise
    return encoded(PIL.Image.fromarray(RGB), exif=exif), np.rot90(RGB, -1)


def converted(image: PIL.Image.Image, kind: str = "PNG") -> tuple[bytes, np.ndarray]:
    return encoded(image, kind), np.asarray(image.convert("RGB"))


TAKEN: dict[str, Callable[[], tuple[bytes, np.ndarray]]] = {
    "RGB": lambda: (encoded(PIL.Image.fromarray(RGB)), RGB),
    "RGBA, opaque": lambda: (encoded(PIL.Image.fromarray(RGB).convert("RGBA")), RGB),
    "LA, opaque": lambda: converted(PIL.Image.fromarray(RGB[:, :, 0]).convert("LA")),
    "L": lambda: converted(PIL.Image.fromarray(RGB[:, :, 0])),
    "P": lambda: converted(PIL.Image.fromarray(RGB).quantize(16)),
    "1": lambda: converted(PIL.Image.fromarray(RGB).convert("1")),
    "CMYK": lambda: converted(PIL.Image.fromarray(RGB).convert("CMYK"), "TIFF"),
    "GIF of one frame": lambda: converted(PIL.Image.fromarray(RGB).quantize(16), "GIF"),
    "EXIF orientation": oriented,
}


@pytest.mark.parametrize("name", TAKEN)
def test_taken(name: str, tmp_path: Path) -> None:
    """As files and as PIL images, to the same pixels."""
    data, expected = TAKEN[name]()
    assert len(np.unique(expected)) > 1
    (tmp_path / "face").write_bytes(data)
    want = load_images(np.ascontiguousarray(expected), 8)
    np.testing.assert_array_equal(load_images(tmp_path / "face", 8), want)
    np.testing.assert_array_equal(load_images(PIL.Image.open(io.BytesIO(data)), 8), want)


def test_orientation_turns_the_picture() -> None:
    data, turned = oriented()
    assert not np.array_equal(turned, RGB)
    assert np.array_equal(np.asarray(PIL.Image.open(io.BytesIO(data))), RGB)


def test_an_image_at_the_pixel_limit_is_of_the_wrong_size_alone(tmp_path: Path) -> None:
    """8192 × 8192 is within the limit; a 1-bit picture of that size is small enough to decode here."""
    path = tmp_path / "large.png"
    path.write_bytes(png(8192, 8192, 1, 0, (b"\0" + bytes(1024)) * 8192))
    with refused(ImageError, "large.png: found 8192×8192 pixels, expected 8×8"):
        load_images(path, 8)
