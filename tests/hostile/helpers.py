"""What the tests of refusals share: spoiled bundles, files encoded by hand, and seeing that nothing is left."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hspace.errors import HspaceError

Json = dict[str, Any]


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path under `folder`, with the contents of files."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@contextmanager
def refused(error: type[HspaceError], *fragments: str, unchanged: Path | None = None) -> Iterator[None]:
    """Expects just this error, with these fragments in its message, and a folder that stays as it was."""
    before = None if unchanged is None else snapshot(unchanged)
    with pytest.raises(error) as caught:
        yield
    assert type(caught.value) is error
    message = str(caught.value)
    assert [f for f in fragments if f not in message] == [], message
    if unchanged is not None:
        assert snapshot(unchanged) == before


# --- bundles ------------------------------------------------------------------------------------------


def alter(folder: Path, change: Callable[[Json], object]) -> None:
    """Lets `change` spoil the manifest."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    change(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def replace(folder: Path, key: str, data: bytes) -> str:
    """Puts `data` in the place of a listed file ("components.trunk"), with the right size and SHA-256; its name."""
    names: list[str] = []

    def change(manifest: Json) -> None:
        entry = manifest
        for part in key.split("."):
            entry = entry[part]
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        names.append(entry["file"])

    alter(folder, change)
    (folder / names[0]).write_bytes(data)
    return names[0]


# --- protobuf, as ONNX is written in ------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def field(number: int, value: int | str | bytes) -> bytes:
    """A field: a varint for a number, length-delimited for anything else."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def model(graph: bytes = b"", rest: bytes = b"") -> bytes:
    """An ONNX model: ir_version 9, the graph, opset 17, and whatever else."""
    return field(1, 9) + field(7, graph + field(2, "g")) + field(8, field(2, 17)) + rest


# --- other formats ------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int, colour: int, pixels: bytes | None, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by its header's fields. pixels: rows, each led by its filter byte; None for a header alone."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(chunk(*c) for c in chunks)
    body += b"" if pixels is None else chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def safetensors(header: Json | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file by its header. length: what the file says the header's is."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data
