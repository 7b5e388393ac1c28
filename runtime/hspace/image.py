"""Images in and out: files, PIL images and arrays, to and from the model's float32 NCHW in [−1, 1]."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .checks import MOST_IMAGES, check_whole
from .errors import ArgumentError, HspaceError, ImageError, OutputError
from .files import check_file, load_pillow, write_atomically
from .sniff import found_in

if TYPE_CHECKING:
    import PIL.Image

Images = Any  # what `load_images` takes
_EXPECTED = "an image, a path, an array or a sequence of at least one"
MAX_PIXELS = 2**26  # 64 Mpx, checked against the header before anything is decoded
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
MOST_BYTES = 2**29  # of a file that is read whole, as one without a path is: 64 Mpx at 8 bytes each
MOST_RECORD = 2**15 - 256  # characters; UTF-16 in JPEG's 64 KiB for EXIF
_TURNS = {  # EXIF's Orientation → a member of PIL.Image.Transpose
    **{2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"},
    **{6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"},
}
_ORIENTATION, _SUBFILE_TYPE, _DNG_VERSION = 0x0112, 0x00FE, 0xC612
_RECORD, _EXIF, _USER_COMMENT = "hspace", 0x8769, 0x9286
_COMMENTS = ((b"ASCII\0\0\0", "ascii"), (b"UNICODE\0", "utf-16-le"))  # Exif 2.32, 4.6.5: how a UserComment begins
SUFFIXES = (".png", ".jpg", ".jpeg", ".mpo", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def load_images(images: Images, size: int, *, resize: bool = False, name: str = "images") -> NDArray[np.float32]:
    """Any accepted form of images as float32 [N, 3, size, size] in [−1, 1].

    images: one image, or an iterable of them in order; or a batch, uint8 [N, H, W, 3] or float32 [N, 3, H, W] in
    [−1, 1]. One image is a path, a PIL image, a file's contents (bytes, or a binary file that is open), uint8 [H, W, 3]
    or float32 [3, H, W]. An array may come from NumPy or from any library that offers DLPack or `__array__`, such as
    PyTorch on the CPU. resize: centre-crop and resize images of another size, unless they are float32. Without resize
    another size is an error. name: the argument's name for messages; a message on one of several images says
    "images[3]". Raises ImageError for a file or image that cannot be used, ArgumentError for other arguments.
    """
    if is_array(images):
        return _from_array(images, name, size, resize)
    if _is_encoded(images):
        return _from_encoded(images, "image" if name == "images" else name, size, resize)
    if not isinstance(images, Iterable) or isinstance(images, (Mapping, Set)):
        raise ArgumentError(f"{name}: found {type(images).__name__}, expected {_EXPECTED}")
    loaded: list[NDArray[np.float32]] = []
    for i, image in enumerate(images):
        where = f"{name}[{i}]"
        if i == MOST_IMAGES:
            raise ArgumentError(f"{name}: found more than {MOST_IMAGES}")
        if is_array(image):
            loaded.append(_from_array(image, where, size, resize))
            if len(loaded[-1]) != 1:
                raise ArgumentError(f"{where}: found a batch of {len(loaded[-1])}, expected one image")
        elif _is_encoded(image):
            loaded.append(_from_encoded(image, where, size, resize))
        else:
            raise ArgumentError(f"{where}: found {type(image).__name__} in a sequence, expected an image or a path")
    if not loaded:
        raise ArgumentError(f"{name}: found an empty {type(images).__name__}, expected {_EXPECTED}")
    return np.concatenate(loaded)


def is_array(images: object) -> bool:
    """Whether it is an array of some library. A PIL image offers an array as well, but does not count."""
    load_pillow()
    import PIL.Image

    if isinstance(images, memoryview):
        return images.ndim > 1  # with one dimension it is a file's contents
    if isinstance(images, (PIL.Image.Image, str, bytes)):
        return False
    return any(hasattr(images, way) for way in ("__dlpack__", "__array__", "__array_interface__"))


def _is_encoded(image: object) -> bool:
    """Whether it is one image in a form that is decoded: Pillow's, a path, a file's contents or an open file."""
    import PIL.Image

    kinds = (PIL.Image.Image, str, os.PathLike, bytes, bytearray, memoryview)
    return isinstance(image, kinds) or callable(getattr(image, "read", None))


def _from_array(images: Any, name: str, size: int, resize: bool) -> NDArray[np.float32]:
    import PIL.Image

    array = _as_numpy(images, name)
    if array.dtype == np.uint8 and array.ndim in (3, 4) and array.shape[-1] == 3 and array.size:
        batch = array.reshape(-1, *array.shape[-3:])
        if batch.shape[1:3] != (size, size):
            batch = np.stack([_fit(PIL.Image.fromarray(i), name, size, resize) for i in batch])
        return _normalise(batch)
    if array.dtype == np.float32 and array.ndim in (3, 4) and array.shape[-3] == 3 and array.size:
        if array.shape[-2:] != (size, size):
            raise ImageError(f"{name}: found {array.shape[-1]}×{array.shape[-2]} pixels, expected {size}×{size}")
        if not np.isfinite(array).all() or np.abs(array).max() > 1 + 1e-3:
            raise ImageError(f"{name}: found float32 values outside [-1, 1], expected the model's range")
        return np.ascontiguousarray(array.reshape(-1, 3, size, size))
    floats = "" if array.dtype == np.uint8 else ", or float32 [N, 3, H, W] or [3, H, W]"
    expected = f"{'uint8 ' * bool(floats)}[N, H, W, 3] or [H, W, 3]{floats}"
    raise ArgumentError(f"{name}: found {array.dtype} {list(array.shape)}, expected {expected}")


def _as_numpy(images: Any, name: str) -> NDArray[Any]:
    """Converts a CPU array of any library to NumPy, by DLPack where it offers that. Does not import the library."""
    if isinstance(images, np.ndarray):
        return images
    try:
        return np.from_dlpack(images) if hasattr(images, "__dlpack__") else np.asarray(images)
    except Exception as e:  # libraries raise errors of many types, for gradients, sparse tensors, other devices, …
        raise ArgumentError(f"{name}: found {type(images).__name__} that NumPy cannot read: {str(e)[:200]}") from None


def _normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in [−1, 1]."""
    x = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _from_encoded(image: Any, name: str, size: int, resize: bool) -> NDArray[np.float32]:
    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        with _as_image_error(name, None):
            _check_header(image, name)
            pixels = _fit(_to_rgb(image, name), name, size, resize)
    elif isinstance(image, (str, os.PathLike)):
        path = os.fsdecode(image)
        where = f"{name}: {path}" if name.endswith("]") else path  # a single file's name says enough
        with _opened(path, where) as opened:
            pixels = _fit(_to_rgb(opened, where), where, size, resize)
    else:
        with _decoded(io.BytesIO(_contents(image, name)), name) as opened:
            pixels = _fit(_to_rgb(opened, name), name, size, resize)
    return _normalise(pixels[None])


def _contents(image: Any, name: str) -> bytes:
    """A file's bytes. An open file is read to its end."""
    given = isinstance(image, (bytes, bytearray, memoryview))
    data, part = bytes(image) if given else b"", None
    while not given and part != b"" and len(data) <= MOST_BYTES:  # a pipe gives it in parts
        try:
            part = image.read(MOST_BYTES + 1 - len(data))
        except Exception as e:  # a caller's own file may raise anything
            raise ImageError(f"{name}: cannot be read: {getattr(e, 'strerror', None) or e}") from None
        if not isinstance(part, bytes):
            raise ArgumentError(f"{name}: found a file of {type(part).__name__}, expected one of bytes (mode 'rb')")
        data += part
    if len(data) > MOST_BYTES:
        raise ImageError(f"{name}: found more than {MOST_BYTES} bytes, expected at most that")
    return data


@contextmanager
def _opened(path: str | Path, where: str) -> Iterator[PIL.Image.Image]:
    """Opens an image file as `_decoded` does."""
    check_file(path, ImageError)
    with _as_image_error(where, None), open(path, "rb") as file, _decoded(file, where) as opened:
        yield opened


@contextmanager
def _decoded(file: BinaryIO, where: str) -> Iterator[PIL.Image.Image]:
    """Opens an image and checks its header, but decodes no pixels. Any decoder's error becomes an ImageError."""
    import PIL.Image
    from PIL.JpegImagePlugin import JpegImageFile

    with _as_image_error(where, file):
        is_jpeg = file.read(3) == b"\xff\xd8\xff"
        file.seek(0)
        # a JPEG's first picture is the image: later ones (MPO) are previews, depth maps and views for the other eye
        with JpegImageFile(file) if is_jpeg else PIL.Image.open(file, formats=FORMATS) as opened:
            _check_header(opened, where)
            yield opened


@contextmanager
def _as_image_error(where: str, file: BinaryIO | None) -> Iterator[None]:
    """Turns any error inside into an ImageError that names a shortage or says what the file is."""
    load_pillow()
    import PIL.Image

    try:
        yield
    except HspaceError:
        raise
    except PIL.Image.DecompressionBombError:
        limit = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"{where}: found more than {limit} pixels, expected at most {MAX_PIXELS}") from None
    except Exception as e:  # decoders raise errors of many types, and their text is not for our users
        if isinstance(e, MemoryError) or "out of memory" in str(e):
            raise ImageError(f"{where}: not enough memory to decode it") from None
        if isinstance(e, OSError) and e.errno:
            raise ImageError(f"{where}: cannot be read: {e.strerror}") from None
        contents = "one that does not decode" if file is None else found_in(file)
        raise ImageError(f"{where}: expected an image ({', '.join(FORMATS)}), found {contents}") from None


def check_files(paths: Sequence[Path], size: int, *, resize: bool = False) -> None:
    """Raises ImageError for the first file that `load_images` would refuse because of its header."""
    for path in paths:
        with _opened(path, str(path)) as opened:
            if not resize:
                _check_size(opened.size, str(path), size)  # a square, so an EXIF rotation changes nothing


def _check_header(image: PIL.Image.Image, where: str) -> None:
    """Refuses too many pixels, several pictures and more than 8 bits a channel. None of this needs decoding."""
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{where}: found {image.width}×{image.height} pixels, expected at most {MAX_PIXELS}")
    count = getattr(image, "n_frames", 1)
    if count > 1 and image.format != "MPO":  # an open MPO is at its first picture, or where the caller moved it
        contents = f"{count} pages" if image.format == "TIFF" else "an animation"
        raise ImageError(f"{where}: {contents}, expected a single picture")
    tags = getattr(image, "tag_v2", {})
    if tags.get(_DNG_VERSION) or tags.get(_SUBFILE_TYPE) == 1:
        raise ImageError(f"{where}: the preview of a raw photograph, expected an image (convert the photograph first)")
    raw = " ".join(str(args) for _, _, _, args in getattr(image, "tile", ()))  # 16-bit RGB opens as mode RGB
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr") or re.search(
        r"(?<!BGR);16", raw
    ):
        depth = "16 bits a channel" if "16" in image.mode + raw else f"pixels of mode {image.mode}"
        raise ImageError(f"{where}: found {depth}, expected 8 bits a channel")


def _to_rgb(image: PIL.Image.Image, where: str) -> PIL.Image.Image:
    """EXIF orientation applied; L, P, CMYK and opaque RGBA converted; transparency refused."""
    has_alpha = image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info
    rgb = image.convert("RGBA" if has_alpha else "RGB")
    if has_alpha:
        if rgb.getchannel("A").getextrema() != (255, 255):
            raise ImageError(f"{where}: has transparent pixels, expected an opaque image")
        rgb = rgb.convert("RGB")
    return _turned(rgb, image)


def _turned(rgb: PIL.Image.Image, image: PIL.Image.Image) -> PIL.Image.Image:
    """Turns the image by EXIF's Orientation. Faults in other tags do not matter; an unreadable one turns nothing."""
    import PIL.Image

    try:
        turn = _TURNS.get(_orientation(image.info.get("exif", b"")) or image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of many types: the tags are a stranger's, and viewers show the picture
        turn = None
    return rgb if turn is None else rgb.transpose(PIL.Image.Transpose[turn])


def _orientation(exif: bytes) -> int | None:
    """Reads only EXIF's Orientation, since Pillow reads no tag after a malformed one (Exif 2.32, 4.6.2: TIFF's IFD)."""
    data = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return None
    try:
        (first,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, first)
        for at in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", data, at)
            if tag == _ORIENTATION and kind in (1, 3, 4):
                return int(struct.unpack_from(order + {1: "B", 3: "H", 4: "I"}[kind], data, at + 8)[0])
    except struct.error:  # it ends here
        pass
    return None


def _fit(image: PIL.Image.Image, where: str, size: int, resize: bool) -> NDArray[np.uint8]:
    import PIL.Image

    if image.size != (size, size):
        if not resize or 0 in image.size:
            _check_size(image.size, where, size)
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), PIL.Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.asarray(image, dtype=np.uint8)


def _check_size(given: tuple[int, int], where: str, size: int) -> None:
    if given != (size, size):
        raise ImageError(
            f"{where}: found {given[0]}×{given[1]} pixels, expected {size}×{size} "
            "(resize=True or --resize crops and resizes)"
        )


def to_uint8(x: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 [N, 3, H, W] in the model's range → uint8 [N, H, W, 3], clamped and rounded to nearest."""
    pixels = np.clip(np.rint((x + np.float32(1)) * np.float32(127.5)), 0, 255)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)).astype(np.uint8)


def encode_image(
    pixels: NDArray[np.uint8],
    suffix: str,
    *,
    record: str | None = None,
    quality: int | None = None,
    name: str = "image",
) -> bytes:
    """A file's bytes of uint8 [H, W, 3], in the format that the suffix names (.png, .jpg, .jpeg, .webp, .bmp).

    record: a text of at most MOST_RECORD characters on what made the image, for `read_record`: a PNG has it as iTXt
    "hspace", JPEG and WEBP have it as EXIF's UserComment. A BMP cannot hold it. quality: 1 … 100, of JPEG
    and WEBP; by default 95. name: of the image, for messages.
    Raises ArgumentError for arguments that are none of these, OutputError for a size that the format cannot hold.
    """
    load_pillow()
    import PIL.Image

    if suffix.lower() not in WRITABLE:
        raise ArgumentError(f"{name}: found the suffix {suffix!r}, expected one of {', '.join(WRITABLE)}")
    kind = WRITABLE[suffix.lower()]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ArgumentError(f"{name}: found {pixels.dtype} {list(pixels.shape)}, expected uint8 [H, W, 3]")
    lossy = kind in ("JPEG", "WEBP")
    if quality is not None:
        check_whole("quality", quality, 1, 100)
        if not lossy:
            raise ArgumentError(f"{name}: found a quality for {kind}, expected it for JPEG or WEBP")
    options = record_options(record, kind) | ({"quality": 95 if quality is None else quality} if lossy else {})
    buffer = io.BytesIO()
    try:
        PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    except (OSError, ValueError):
        height, width = pixels.shape[:2]
        raise OutputError(f"{name}: {kind} cannot hold {width}×{height} pixels") from None
    return buffer.getvalue()


def save_image(
    path: str | Path, pixels: NDArray[np.uint8], *, record: str | None = None, quality: int | None = None
) -> None:
    """Writes the result of `encode_image` for the path's suffix, whole or not at all."""
    data = encode_image(pixels, Path(path).suffix, record=record, quality=quality, name=str(path))
    write_atomically(Path(path), data)


def record_options(record: str | None, kind: str) -> dict[str, Any]:
    """The options of Pillow's `save` that put a record into a file of that format; empty where it has no place."""
    import PIL.Image
    from PIL.PngImagePlugin import PngInfo

    if record is None:
        return {}
    if len(record) > MOST_RECORD or "\0" in record or re.search("[\ud800-\udfff]", record):
        raise ArgumentError(f"record: expected a text of at most {MOST_RECORD} characters")
    if kind == "PNG":
        text = PngInfo()
        text.add_itxt(_RECORD, record)
        return {"pnginfo": text}
    if kind == "GIF":
        return {"comment": record.encode()}
    if kind in ("JPEG", "WEBP"):
        exif = PIL.Image.Exif()
        code, encoding = _COMMENTS[0] if record.isascii() else _COMMENTS[1]
        exif.get_ifd(_EXIF)[_USER_COMMENT] = code + record.encode(encoding)
        return {"exif": exif.tobytes()}
    return {}


def read_record(path: str | Path) -> str | None:
    """The record that `encode_image` or `sheet.save_animation` put into a file, or None where none is found.

    No pixel is decoded. Raises ImageError for a file that is not there or cannot be read.
    """
    load_pillow()
    import PIL.Image

    check_file(path, ImageError)
    with _as_image_error(str(path), None), open(path, "rb") as file:
        try:
            with PIL.Image.open(file, formats=FORMATS) as image:
                record: Any = image.info.get("comment" if image.format == "GIF" else _RECORD)
                if image.format in ("JPEG", "WEBP", "MPO"):
                    record = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")
                    record = next((record[8:].decode(e) for code, e in _COMMENTS if record.startswith(code)), None)
                text = record.decode() if isinstance(record, bytes) else record
        except Exception:  # of whatever a decoder finds in a file that is not ours
            return None
    return str(text) if isinstance(text, str) and len(text) <= MOST_RECORD else None
