"""Images in and out: files, PIL images and arrays, to and from the model's float32 NCHW in [−1, 1]."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checks import check_whole
from .errors import ArgumentError, ImageError, OutputError
from .files import check_file, read_file, write_atomically

if TYPE_CHECKING:
    import PIL.Image

Images = Any  # a PIL image, a path, an array, or a sequence of images and paths
MAX_PIXELS = 2**26  # 64 Mpx, checked against the header before anything is decoded
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
WRITABLE = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}
MOST_BYTES = 2**29  # of a file, read whole: 64 Mpx at 8 bytes each
MOST_RECORD = 2**15 - 256  # characters; UTF-16 in JPEG's 64 KiB for EXIF
_RECORD, _EXIF, _USER_COMMENT = "hspace", 0x8769, 0x9286
_COMMENTS = ((b"ASCII\0\0\0", "ascii"), (b"UNICODE\0", "utf-16-le"))  # Exif 2.32, 4.6.5: how a UserComment begins
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def load_images(images: Images, size: int, *, resize: bool = False) -> NDArray[np.float32]:
    """Any accepted form of images as float32 [N, 3, size, size] in [−1, 1].

    images: a PIL image, a path, a sequence of either, uint8 [N, H, W, 3] or [H, W, 3], or float32 [N, 3, H, W]
    in [−1, 1]. resize: centre-crop and resize PIL images, files and uint8 arrays of another size; without it
    they are refused. Raises ImageError, or ArgumentError for an array of another kind.
    """
    import PIL.Image

    if isinstance(images, np.ndarray):
        return _from_array(images, size, resize)
    if isinstance(images, (str, Path, PIL.Image.Image)):
        images = [images]
    if not isinstance(images, Sequence) or not images:
        raise ArgumentError(f"images: found {type(images).__name__}, expected an image, a path, an array or a sequence")
    return _normalise(np.stack([_load_one(i, size, resize) for i in images]))


def _normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [N, H, W, 3] → float32 [N, 3, H, W] in [−1, 1]."""
    x = pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


def _from_array(array: NDArray[Any], size: int, resize: bool) -> NDArray[np.float32]:
    import PIL.Image

    if array.dtype == np.uint8:
        batch = array[None] if array.ndim == 3 else array
        if batch.ndim != 4 or batch.shape[3] != 3 or 0 in batch.shape:
            raise ArgumentError(f"images: found uint8 {list(array.shape)}, expected [N, H, W, 3] or [H, W, 3]")
        if batch.shape[1:3] == (size, size):
            return _normalise(batch)
        return _normalise(np.stack([_fit(PIL.Image.fromarray(i), "images", size, resize) for i in batch]))
    if array.dtype == np.float32 and array.ndim == 4 and array.shape[1] == 3 and len(array):
        if array.shape[2:] != (size, size):
            raise ImageError(f"images: found {array.shape[3]}×{array.shape[2]} pixels, expected {size}×{size}")
        if not np.isfinite(array).all() or np.abs(array).max() > 1 + 1e-3:
            raise ImageError("images: found float32 values outside [-1, 1], expected the model's range")
        return np.ascontiguousarray(array)
    raise ArgumentError(
        f"images: found {array.dtype} {list(array.shape)}, expected uint8 [N, H, W, 3] or float32 [N, 3, H, W]"
    )


def _load_one(image: Any, size: int, resize: bool) -> NDArray[np.uint8]:
    import PIL.Image

    if isinstance(image, PIL.Image.Image):
        with _as_image_error("image"):
            _check_header(image, "image")
            return _fit(_to_rgb(image, "image"), "image", size, resize)
    if not isinstance(image, (str, Path)):
        raise ArgumentError(f"images: found {type(image).__name__} in a sequence, expected an image or a path")
    with _opened(image) as opened:
        return _fit(_to_rgb(opened, str(image)), str(image), size, resize)


@contextmanager
def _opened(path: str | Path) -> Iterator[PIL.Image.Image]:
    """An image file, its header checked, its pixels not decoded yet; any decoder's error is an ImageError."""
    import PIL.Image

    check_file(path, ImageError)
    with _as_image_error(str(path)), PIL.Image.open(path, formats=FORMATS) as opened:
        _check_header(opened, str(path))
        yield opened


@contextmanager
def _as_image_error(where: str) -> Iterator[None]:
    import PIL.Image

    try:
        yield
    except ImageError:
        raise
    except PIL.Image.DecompressionBombError:
        limit = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)
        raise ImageError(f"{where}: found more than {limit} pixels, expected at most {MAX_PIXELS}") from None
    except Exception:  # decoders raise errors of many types, and their text is not for our users
        raise ImageError(f"{where}: expected an image ({', '.join(FORMATS)})") from None


def check_files(paths: Sequence[Path], size: int, *, resize: bool = False) -> None:
    """Raises ImageError for the first file that `load_images` would refuse for what its header says."""
    for path in paths:
        with _opened(path) as opened:
            if not resize:
                _check_size(opened.size, str(path), size)  # a square, so an EXIF rotation changes nothing


def _check_header(image: PIL.Image.Image, where: str) -> None:
    """Refuses what can be told without decoding: too many pixels, animation, more than 8 bits a channel."""
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{where}: found {image.width}×{image.height} pixels, expected at most {MAX_PIXELS}")
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"{where}: an animation, expected a single picture")
    raw = " ".join(str(args) for _, _, _, args in getattr(image, "tile", ()))  # 16-bit RGB opens as mode RGB
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr") or re.search(
        r"(?<!BGR);16", raw
    ):
        found = "16 bits a channel" if "16" in image.mode + raw else f"pixels of mode {image.mode}"
        raise ImageError(f"{where}: found {found}, expected 8 bits a channel")


def _to_rgb(image: PIL.Image.Image, where: str) -> PIL.Image.Image:
    """EXIF orientation applied; L, P, CMYK and opaque RGBA converted; transparency refused."""
    from PIL import ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        alpha = image.convert("RGBA")
        if alpha.getchannel("A").getextrema() != (255, 255):
            raise ImageError(f"{where}: has transparent pixels, expected an opaque image")
        return alpha.convert("RGB")
    return image.convert("RGB")


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


def _check_size(found: tuple[int, int], where: str, size: int) -> None:
    if found != (size, size):
        raise ImageError(
            f"{where}: found {found[0]}×{found[1]} pixels, expected {size}×{size} "
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
    "hspace", JPEG and WEBP have it as EXIF's UserComment, BMP cannot hold it and has none. quality: 1 … 100, of JPEG
    and WEBP; by default 95. name: of the image, for messages.
    Raises ArgumentError for arguments that are none of these, OutputError for a size that the format cannot hold.
    """
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
    """Writes what `encode_image` gives for the path's suffix, whole or not at all."""
    data = encode_image(pixels, Path(path).suffix, record=record, quality=quality, name=str(path))
    write_atomically(Path(path), data)


def record_options(record: str | None, kind: str) -> dict[str, Any]:
    """The options of Pillow's `save` that put a record into a file of that format; none where it has no place."""
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
    import PIL.Image

    data = read_file(path, ImageError, MOST_BYTES)
    try:
        with PIL.Image.open(io.BytesIO(data), formats=FORMATS) as image:
            found: Any = image.info.get("comment" if image.format == "GIF" else _RECORD)
            if image.format in ("JPEG", "WEBP", "MPO"):
                found = image.getexif().get_ifd(_EXIF).get(_USER_COMMENT, b"")
                found = next((found[8:].decode(e) for code, e in _COMMENTS if found.startswith(code)), None)
            text = found.decode() if isinstance(found, bytes) else found
    except Exception:  # of whatever a decoder finds in a file that is not ours
        return None
    return str(text) if isinstance(text, str) and len(text) <= MOST_RECORD else None
