"""Every form in which Python gives images, to the same values; photographs that viewers open; shortages by name."""

from __future__ import annotations

import array
import errno
import io
import itertools
import os
import struct
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
from hspace import image as module
from hspace.cli.common import load_pictures
from hspace.errors import ArgumentError, ImageError
from hspace.image import load_images, to_uint8

from ..hostile.helpers import refused

PICTURES = np.random.default_rng(1).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
FLOATS = load_images(PICTURES, 8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def loaded(image: Any) -> np.ndarray:
    """uint8 [H, W, 3] of one image of 8 × 8."""
    return to_uint8(load_images(image, 8))[0]


class Elsewhere(os.PathLike[str]):
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


class WithDLPack:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self._array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._array.__dlpack_device__()


class WithArray:
    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._array


class Pipe(io.RawIOBase):
    """A file that cannot seek, as stdin may not."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._rest.readinto(memoryview(buffer)[:50])  # at most so much at a time


# --- one image ----------------------------------------------------------------------------------------

ONE: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "path": lambda x, f: f,
    "str": lambda x, f: str(f),
    "PathLike": lambda x, f: Elsewhere(f),
    "PIL": lambda x, f: PIL.Image.fromarray(x),
    "bytes": lambda x, f: encoded(x),
    "bytearray": lambda x, f: bytearray(encoded(x)),
    "memoryview": lambda x, f: memoryview(encoded(x)),
    "BytesIO": lambda x, f: io.BytesIO(encoded(x)),
    "open file": lambda x, f: f.open("rb"),
    "unbuffered file": lambda x, f: f.open("rb", buffering=0),
    "pipe": lambda x, f: Pipe(encoded(x)),
    "array": lambda x, f: x,
    "array, a view": lambda x, f: np.repeat(x, 2, axis=1)[:, ::2],
    "array, Fortran's order": lambda x, f: np.asfortranarray(x),
    "array, read-only": lambda x, f: np.frombuffer(x.tobytes(), np.uint8).reshape(x.shape),
    "memoryview of an array": lambda x, f: memoryview(x),
    "float32": lambda x, f: load_images(x, 8)[0],
    "DLPack": lambda x, f: WithDLPack(x),
    "DLPack, float32": lambda x, f: WithDLPack(load_images(x, 8)[0]),
    "__array__": lambda x, f: WithArray(x),
    "a batch of one": lambda x, f: x[None],
    "a list of one": lambda x, f: [f],
}


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for i, picture in enumerate(PICTURES):
        PIL.Image.fromarray(picture).save(tmp_path / f"{i}.png")
    return [tmp_path / f"{i}.png" for i in range(len(PICTURES))]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("form", ONE)
def test_one_image(form: str, files: list[Path]) -> None:
    np.testing.assert_array_equal(load_images(ONE[form](PICTURES[0], files[0]), 8), FLOATS[:1])


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_every_form_in_one_list(files: list[Path]) -> None:
    images = [make(PICTURES[i % 3], files[i % 3]) for i, make in enumerate(ONE.values()) if i < len(ONE) - 1]
    np.testing.assert_array_equal(load_images(images, 8), FLOATS[[i % 3 for i in range(len(images))]])


MANY: dict[str, Callable[[], Any]] = {
    "list": lambda: list(PICTURES),
    "tuple": lambda: tuple(PICTURES),
    "deque": lambda: deque(PICTURES),
    "generator": lambda: (p for p in PICTURES),
    "iterator": lambda: iter(PICTURES),
    "map": lambda: map(encoded, PICTURES),
    "values of a dict": lambda: dict(enumerate(PICTURES)).values(),
    "float32 and uint8": lambda: [FLOATS[0], PICTURES[1], FLOATS[2:]],
    "batch": lambda: PICTURES,
    "float32 batch": lambda: FLOATS,
    "DLPack": lambda: WithDLPack(FLOATS),
    "memoryview": lambda: memoryview(PICTURES),
}


@pytest.mark.parametrize("form", MANY)
def test_many_images(form: str) -> None:
    np.testing.assert_array_equal(load_images(MANY[form](), 8), FLOATS)


def test_tensors() -> None:
    """PyTorch's on the CPU, alone, in a batch and in a list; odd ones are refused by name."""
    torch = pytest.importorskip("torch")
    uint8, float32 = torch.from_numpy(PICTURES), torch.from_numpy(FLOATS)
    for images in (uint8, float32, list(uint8), [float32[0], uint8[1], PICTURES[2]]):
        np.testing.assert_array_equal(load_images(images, 8), FLOATS)
    np.testing.assert_array_equal(load_images(float32[0], 8), FLOATS[:1])
    np.testing.assert_array_equal(load_images(uint8.permute(0, 3, 1, 2).permute(0, 2, 3, 1), 8), FLOATS)
    grad = float32.clone().requires_grad_()
    for tensor in [grad, float32.to_sparse(), float32.bfloat16(), float32.to("meta")]:
        with refused(ArgumentError, "images: found Tensor that NumPy cannot read"):
            load_images(tensor, 8)
        with refused(ArgumentError, "images[1]: found Tensor that NumPy cannot read"):
            load_images([PICTURES[0], tensor], 8)
    for tensor in (float32.double(), float32.half()):
        with refused(ArgumentError, f"images: found {str(tensor.dtype)[6:]} [3, 3, 8, 8], expected uint8"):
            load_images(tensor, 8)


def test_every_call_takes_them(null_diffae: hspace.Editor, files: list[Path]) -> None:
    """A generator of bytes, say, gives what the array gives; and errors name the argument and the image."""

    def mixed() -> Any:
        return (form for form in (encoded(PICTURES[0]), files[1], FLOATS[2]))

    latent = null_diffae.encode(PICTURES)
    calls: list[tuple[str, Callable[[Any], Any]]] = [
        ("images", lambda x: null_diffae.encode(x).x_T),
        ("images", lambda x: null_diffae.edit(x, {"smile": 1.0})),
        ("images", null_diffae.reconstruct),
        ("images", null_diffae.encode_z),
        ("images", null_diffae.classify),
        ("content", lambda x: null_diffae.inject(latent, x, 0.5)),
    ]
    for name, call in calls:
        np.testing.assert_array_equal(call(mixed()), call(PICTURES))
        with refused(ImageError, f"{name}[1]: expected an image", "found a text"):
            call([encoded(PICTURES[0]), b"hello", FLOATS[2]])
        with refused(ArgumentError, f"{name}: found int, expected an image"):
            call(5)


def test_names() -> None:
    """Messages name what the caller called it."""
    for name, shown in (("images", "image"), ("content", "content"), ("photos/friends", "photos/friends")):
        with pytest.raises(ImageError) as caught:
            load_images(b"hello", 8, name=name)
        assert str(caught.value).startswith(f"{shown}: expected an image")


def test_resize_of_every_form() -> None:
    large = np.random.default_rng(2).integers(0, 256, (20, 16, 3), dtype=np.uint8)
    expected = load_images(PIL.Image.fromarray(large), 8, resize=True)
    for make in (lambda x: x, encoded, lambda x: io.BytesIO(encoded(x)), lambda x: [x], WithDLPack):
        np.testing.assert_array_equal(load_images(make(large), 8, resize=True), expected)
        with refused(ImageError, "found 16×20 pixels, expected 8×8"):
            load_images(make(large), 8)


def test_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """An endless generator ends."""
    monkeypatch.setattr(module, "MOST_IMAGES", 10)
    with refused(ArgumentError, "images: found more than 10"):
        load_images(itertools.repeat(PICTURES[0]), 8)
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    for data in (bytes(11), io.BytesIO(bytes(11))):
        with refused(ImageError, "image: found more than 10 bytes"):
            load_images(data, 8)


def test_not_an_image_of_any_form() -> None:
    for wrong in (array.array("B", b"123"), object(), 3.5, Ellipsis, range(3), "".join, type):
        with refused((ArgumentError), "images"):
            load_images(wrong, 8)


def test_file_that_fails_as_it_is_read() -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with refused(ImageError, f"image: cannot be read: {os.strerror(errno.EIO)}"):
        load_images(Broken(), 8)
    closed = io.BytesIO(encoded(PICTURES[0]))
    closed.close()
    with refused(ImageError, "image: cannot be read: I/O operation on closed file"):
        load_images(closed, 8)


# --- photographs that viewers open --------------------------------------------------------------------


def test_photograph_of_a_phone(tmp_path: Path) -> None:
    """MPO: several pictures in a JPEG, of which the first is the photograph."""
    others = [PIL.Image.fromarray(p) for p in PICTURES[1:]]
    data = encoded(PICTURES[0], "MPO", save_all=True, append_images=others, quality=95, subsampling=0)
    assert PIL.Image.open(io.BytesIO(data)).n_frames == 3
    expected = np.asarray(PIL.Image.open(io.BytesIO(encoded(PICTURES[0], "JPEG", quality=95, subsampling=0))))
    (tmp_path / "IMG_1.jpg").write_bytes(data)
    spoilt = data.replace(b"MPF\0", b"MPF\0\xff\xff", 1)
    for image in (tmp_path / "IMG_1.jpg", data, PIL.Image.open(io.BytesIO(data)), spoilt):
        np.testing.assert_array_equal(loaded(image), expected)


def test_photograph_of_a_phone_is_turned() -> None:
    exif = PIL.Image.Exif()
    exif[0x0112] = 8
    others = [PIL.Image.fromarray(PICTURES[1])]
    data = encoded(PICTURES[0], "MPO", save_all=True, append_images=others, exif=exif, quality=95, subsampling=0)
    upright = np.asarray(PIL.Image.open(io.BytesIO(encoded(PICTURES[0], "JPEG", quality=95, subsampling=0))))
    np.testing.assert_array_equal(loaded(data), np.rot90(upright))


def tag(number: int, kind: int, count: int, value: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}HHII", number, kind, count, value)


def exif_of(*tags: bytes, count: int | None = None, order: str = "<", first: int = 8, end: bytes = bytes(4)) -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", first)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", len(tags) if count is None else count) + b"".join(tags) + end


TURN = tag(0x0112, 3, 1, 6)
TURNED = {  # where Orientation can be read
    "nothing wrong": exif_of(TURN),
    "big-endian": exif_of(tag(0x0112, 3, 1, 6 << 16, ">"), order=">"),
    "a LONG": exif_of(tag(0x0112, 4, 1, 6)),
    "a tag of an unknown type before": exif_of(tag(0x010F, 99, 4, 0), TURN),
    "a text beyond the end before": exif_of(tag(0x010F, 2, 10, 2**31), TURN),
    "a fraction beyond the end before": exif_of(tag(0x0100, 5, 1, 2**30), TURN),
    "a double beyond the end before": exif_of(tag(0x0100, 12, 1, 50), TURN),
    "a count beyond the end before": exif_of(tag(0x010F, 2, 2**32 - 1, 8), TURN),
    "a fraction beyond the end after": exif_of(TURN, tag(0x011A, 5, 1, 2**30)),
    "an IFD that is none": exif_of(TURN, tag(0x8769, 2, 4, 0x41414141)),
    "a GPS IFD beyond the end": exif_of(TURN, tag(0x8825, 4, 1, 2**31)),
    "a number for a text": exif_of(tag(0x010F, 3, 1, 7), TURN),
    "fewer tags than it says": exif_of(TURN, count=50),
    "cut short": exif_of(TURN, end=b""),
    "cut short in a tag": exif_of(TURN, TURN[:5], count=2, end=b""),
}
NOT_TURNED = {  # where it cannot, or says nothing
    "none": exif_of(tag(0x010F, 3, 1, 7)),
    "0": exif_of(tag(0x0112, 3, 1, 0)),
    "9": exif_of(tag(0x0112, 3, 1, 9)),
    "a text": exif_of(tag(0x0112, 2, 1, 0x36)),
    "IFD beyond the end": exif_of(TURN, first=2**31),
    "no IFD": b"Exif\0\0II*\0",
    "nothing": b"Exif\0\0",
    "another file": b"Exif\0\0" + b"hello" * 20,
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", [*TURNED, *NOT_TURNED])
def test_malformed_exif(name: str, kind: str) -> None:
    """A photograph is a photograph, whatever its tags are; it is turned where its orientation can be read."""
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    data = encoded(PICTURES[0], kind, exif={**TURNED, **NOT_TURNED}[name], **options)
    plain = np.asarray(PIL.Image.open(io.BytesIO(encoded(PICTURES[0], kind, **options))).convert("RGB"))
    expected = np.rot90(plain, -1) if name in TURNED else plain
    np.testing.assert_array_equal(loaded(data), expected)
    if name not in ("a fraction beyond the end before", "a double beyond the end before"):
        np.testing.assert_array_equal(loaded(PIL.Image.open(io.BytesIO(data))), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientations(orientation: int, kind: str) -> None:
    """As Pillow has them."""
    from PIL import ImageOps

    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PICTURES[0], kind, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data))).convert("RGB"))
    np.testing.assert_array_equal(loaded(data), expected)
    np.testing.assert_array_equal(loaded(PIL.Image.open(io.BytesIO(data))), expected)


# --- shortage is named --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EACCES, errno.EIO])
def test_file_that_cannot_be_opened(number: int, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("builtins.open", fail)
    with refused(ImageError, f"{files[0]}: cannot be read: {os.strerror(number)}"):
        load_images(files[0], 8)
    with refused(ImageError, f"images[1]: {files[1]}: cannot be read: {os.strerror(number)}"):
        load_images([PICTURES[0], files[1]], 8)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_too_many_open_files(left: int, files: list[Path], null_diffae: hspace.Editor) -> None:
    """With so many descriptors left. The command line, which has the bytes, may take two to keep libraries quiet."""
    resource = pytest.importorskip("resource")
    load_images(files[0], 8)  # Pillow's modules are loaded
    data = files[0].read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 200), hard))
        with pytest.raises(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(left):
            os.close(taken.pop())
        np.testing.assert_array_equal(load_pictures(files[0], data, null_diffae, False), FLOATS[:1])
        if left == 0:
            with refused(ImageError, f"{files[0]}: cannot be read: {os.strerror(errno.EMFILE)}"):
                load_images(files[0], 8)
        else:
            np.testing.assert_array_equal(load_images(files[0], 8), FLOATS[:1])
    finally:
        for number in taken:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")], ids=str)
def test_too_little_memory(error: Exception, files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", fail)
    with refused(ImageError, f"{files[0]}: not enough memory to decode it"):
        load_images(files[0], 8)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_file_without_permission(files: list[Path]) -> None:
    files[0].chmod(0)
    with refused(ImageError, f"{files[0]}: cannot be read: {os.strerror(errno.EACCES)}"):
        load_images(files[0], 8)
