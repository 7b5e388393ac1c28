"""safetensors files, read from bytes and written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from .errors import BundleError, HspaceError
from .files import write_atomically


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors and metadata of one file. where: the file, for messages; error: what `take` raises."""

    where: str
    arrays: dict[str, NDArray[Any]]
    metadata: dict[str, str]
    error: type[HspaceError]

    def take(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
        """The tensors of those names and shapes, as finite float32; all faults in one error, unexpected names too."""
        faults = [f"{name}: missing" for name in shapes if name not in self.arrays]
        faults += [f"{name[:100]}: unexpected" for name in self.arrays if name not in shapes]
        got = {}
        for name in shapes.keys() & self.arrays.keys():
            array = self.arrays[name]
            if array.shape != shapes[name] or array.dtype not in (np.float32, np.float16):
                faults.append(f"{name}: found {array.dtype} {list(array.shape)}, expected float32 {list(shapes[name])}")
            elif not np.isfinite(array).all():
                faults.append(f"{name}: has values that are not finite")
            got[name] = array.astype(np.float32)
        if faults:
            raise self.error(f"{self.where}: " + "; ".join(sorted(faults)))
        return got


def read_tensors(data: bytes, where: str, error: type[HspaceError] = BundleError) -> Tensors:
    """Parses the bytes of a safetensors file; raises `error` where they are anything else."""
    try:
        arrays = safetensors.numpy.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return Tensors(where, arrays, header.get("__metadata__") or {}, error)
    except Exception:  # the library raises errors of many types, and its text is not for our users
        raise error(f"{where}: expected a safetensors file") from None


def write_tensors(path: Path, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all."""
    contiguous = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    write_atomically(path, safetensors.numpy.save(contiguous, metadata=dict(metadata)))
