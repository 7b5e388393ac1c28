"""Guesses from a file's first bytes what an unexpected file is. Only messages use it, so a wrong guess does no harm."""

from __future__ import annotations

import re
from typing import BinaryIO

_BYTES = 4096  # read at each end of a file to guess what it is

_CONVERT, _FRAME = "convert it to PNG or JPEG first", "take a frame out of it first"
_UNKNOWN = ("a text", "data of another kind")
_TENSORS = "a safetensors file"
_UNPACK, _DOWNLOAD = "unpack it first", "a download that failed?"

# the image formats that hspace reads, as patterns of their first bytes
_READ = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    rb"RIFF....WEBP": "WEBP",
    rb"BM....\0\0\0\0": "BMP",
    rb"II[*+]\0|MM\0[*+]": "TIFF",
}
# other formats: a pattern of their first bytes, their name, and advice
_OTHERS = (
    (rb"version https://git-lfs\.github\.com/spec/", "a Git LFS pointer", "`git lfs pull` fetches the file"),
    (rb"(?i)(?=<).*<(!doctype html|html|head|body)\b", "an HTML page", _DOWNLOAD),
    (rb"(?i)(?=<).*<svg\b", "an SVG drawing", _CONVERT),
    (rb".{2,4}\0{4}\{\s*[\"}]", _TENSORS, "`hspace decode` takes latents"),
    (rb"<[A-Za-z!?]", "an XML document", _DOWNLOAD),
    (rb"[{\[]\s*[\"{\[\d\]}]", "a JSON text", _DOWNLOAD),
    (rb"%PDF-", "a PDF document", _CONVERT),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document", _CONVERT),
    (rb"....ftyp(hei[cfmsx]|hev[cmsx]|mif1|msf1)", "a HEIC photograph", _CONVERT),
    (rb"....ftypavi[fs]", "an AVIF image", _CONVERT),
    (rb"....ftypcrx |II[*]\0....CR|IIRO|IIU\0|FUJIFILMCCD-RAW", "a camera's raw photograph", _CONVERT),
    (rb"....(ftyp|moov|mdat|wide)|\x1aE\xdf\xa3|RIFF....AVI |FLV\x01|\0\0\x01[\xb3\xba]|OggS", "a video", _FRAME),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL image", _CONVERT),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image", _CONVERT),
    (rb"8BPS", "a Photoshop document", _CONVERT),
    (rb"gimp xcf", "a GIMP document", _CONVERT),
    (rb"\0\0[\x01\x02]\0[^\0]\0", "an icon", _CONVERT),
    (rb"qoif", "a QOI image", _CONVERT),
    (rb"DDS ", "a DDS texture", _CONVERT),
    (rb"v/1\x01", "an OpenEXR image", _CONVERT),
    (rb"#\?(RADIANCE|RGBE)", "a Radiance image", _CONVERT),
    (rb"P[1-7Ff]\s", "a Netpbm image", _CONVERT),
    (rb".{128}DICM", "a DICOM image", _CONVERT),
    (rb"SIMPLE  =", "a FITS image", _CONVERT),
    (rb"\x93NUMPY", "a NumPy file", "in Python, pass numpy.load(…)"),
    (rb"PK(\x03\x04|\x05\x06)", "a ZIP archive", _UNPACK),
    (rb"\x1f\x8b|BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!|.{257}ustar", "a compressed file", _UNPACK),
    (rb"ID3|fLaC|RIFF....WAVE|\xff[\xf2\xf3\xfb]", "a sound", ""),
    (rb"MZ|\x7fELF", "a program", ""),
)
# how files of these formats end, and in how many of their last bytes the mark is searched
_ENDS = {"PNG": (b"IEND", _BYTES), "JPEG": (b"\xff\xd9", _BYTES), "GIF": (b";", 1)}


def found_in(file: BinaryIO) -> str:
    """Names a file that does not open or decode as an image, with advice. Messages put it after "found"."""
    size = file.seek(0, 2)
    file.seek(max(size - _BYTES, 0))
    tail = file.read(_BYTES)
    file.seek(0)
    head = file.read(_BYTES)
    what, advice = _other(head, size)
    kind = _format_of(head) if what in _UNKNOWN else None
    if kind:
        cut = _is_cut(kind, size, head, tail)
        return f"a {kind} file that is cut short: it ends after {size} bytes" if cut else f"a damaged {kind} file"
    return f"{what} ({advice})" if advice else what


def found_instead_of_tensors(data: bytes) -> str:
    """Names a file, given as bytes, that does not open as safetensors."""
    head = data[:_BYTES]
    what, _ = _other(head, len(data))
    kind = _format_of(head) if what in _UNKNOWN else None
    if kind:
        return f"an image ({kind})"
    return f"{what} that is damaged, or cut short after {len(data)} bytes" if what == _TENSORS else what


def _format_of(head: bytes) -> str | None:
    """The name of the image format in `_READ` whose pattern matches a file's first bytes."""
    return next((name for pattern, name in _READ.items() if re.match(pattern, head, re.DOTALL)), None)


def _other(head: bytes, size: int) -> tuple[str, str]:
    """The name of any other kind of file, and advice, from its first bytes and its size."""
    if not head.strip(b"\0 \t\r\n"):
        return f"a file of {size} zeros or blanks" if size else "an empty file", ""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    for pattern, what, advice in _OTHERS:
        if re.match(pattern, start, re.DOTALL):
            return what, advice
    return _UNKNOWN[0] if _is_text(head) else _UNKNOWN[1], ""


def _is_cut(kind: str, size: int, head: bytes, tail: bytes) -> bool:
    """Whether a file ends before its format's end. A TIFF cannot tell, since its parts lie in any order."""
    if kind in ("WEBP", "BMP"):
        told = int.from_bytes(head[4:8], "little") + 8 if kind == "WEBP" else int.from_bytes(head[2:6], "little")
        return size < told
    mark, within = _ENDS.get(kind, (b"", 1))
    return mark not in tail[-within:]


def _is_text(head: bytes) -> bool:
    try:
        text = head[: _BYTES - 4].decode()  # without a character that the end of `head` may cut
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)
