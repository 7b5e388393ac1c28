"""safetensors files, read from bytes and written whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from .checks import raise_faults
from .errors import BundleError, HspaceError
from .files import reason, write_atomically
from .sniff import found_instead_of_tensors

MAX_HEADER = 2**24  # bytes: names, shapes and metadata
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors and metadata of one file. where: the file, for messages; error: what `take` raises."""

    where: str
    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]
    error: type[HspaceError]

    def take(
        self, shapes: Mapping[str, tuple[int, ...]], divisors: Collection[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """The tensors of those names and shapes, as finite float32; all faults in one error, unexpected names too.

        divisors: names of those that are divided by, whose values must be above zero, and not so small that float32
        holds less than its usual precision of them.
        """
        faults = [f"{name}: missing" for name in shapes if name not in self.arrays]
        faults += [f"{name[:100]}: unexpected" for name in self.arrays if name not in shapes]
        got = {}
        for name in shapes.keys() & self.arrays.keys():
            array = self.arrays[name]
            if array.shape != shapes[name] or array.dtype not in (np.float32, np.float16):
                faults.append(f"{name}: found {array.dtype} {list(array.shape)}, expected float32 {list(shapes[name])}")
            elif not np.isfinite(array).all():
                faults.append(f"{name}: has values that are not finite")
            elif name in divisors and array.size and array.min() < _TINY:
                faults.append(f"{name}: found {float(array.min()):.3g}, expected values of at least {_TINY:.3g}")
            got[name] = array.astype(np.float32)
        raise_faults(self.error, self.where, sorted(faults))
        return got


def read_tensors(data: bytes, where: str, error: type[HspaceError] = BundleError) -> Tensors:
    """Parses the bytes of a safetensors file; raises `error` where they are anything else."""
    length = int.from_bytes(data[:8], "little")
    if MAX_HEADER < length < len(data):
        raise error(f"{where}: found a header of {length} bytes, expected at most {MAX_HEADER}")
    try:
        arrays = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + length], object_pairs_hook=_distinct)
        return Tensors(where, arrays, header.get("__metadata__") or {}, error)
    except MemoryError as e:
        raise error(f"{where}: cannot be read: {reason(e)}") from None
    except Exception:  # the library raises errors of many types, and its text is not for our users
        raise error(f"{where}: expected a safetensors file, found {found_instead_of_tensors(data)}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key that stands twice, which safetensors would let pass, is an error."""
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError
    return mapping


def tensor_bytes(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file, which are the same for the same content.

    The library writes metadata in an order that it draws, so the header with them is written here.
    """
    data = safetensors.numpy.save({name: np.ascontiguousarray(a) for name, a in arrays.items()})
    (length,) = struct.unpack("<Q", data[:8])
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers begin at a multiple of 8, as the library has it
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def write_tensors(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all."""
    write_atomically(path, tensor_bytes(arrays, metadata))
