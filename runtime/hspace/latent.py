"""Latents: the result of an encode, and the start of every decode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import LatentError
from .files import MAX_FILE_BYTES, read_file, write_atomically
from .tensors import read_tensors, tensor_bytes

_FORMAT = "hspace-latent-1"
_MAX_PROVENANCE = 2**20  # bytes, in UTF-8


@dataclass(frozen=True, eq=False)
class Latent:
    """The codes of N images.

    x_T: float32 [N, 3, H, W], the stochastic code. z_sem: float32 [N, D], the semantic code; None for a model
    without one. x_prev: float32 [N, 3, H, W], the state before x_T, for samplers that need two. provenance:
    what made it: `bundle`, `checkpoint` (SHA-256), `preset`, `sampler`, `encode_steps`; from a command, `record`.
    """

    x_T: NDArray[np.float32]
    z_sem: NDArray[np.float32] | None = None
    x_prev: NDArray[np.float32] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("x_T", self.x_T), ("z_sem", self.z_sem), ("x_prev", self.x_prev)):
            if not isinstance(value, np.ndarray) and (name == "x_T" or value is not None):
                raise LatentError(f"{name}: found {type(value).__name__}, expected a float32 array")
        _check_provenance(self.provenance)
        if self.x_T.ndim != 4 or self.x_T.dtype != np.float32 or not len(self.x_T):
            raise LatentError(f"x_T: found {self.x_T.dtype} {list(self.x_T.shape)}, expected float32 [N, 3, H, W]")
        z, x_prev = self.z_sem, self.x_prev
        if z is not None and (z.ndim != 2 or z.dtype != np.float32 or len(z) != len(self.x_T)):
            raise LatentError(f"z_sem: found {z.dtype} {list(z.shape)}, expected float32 [{len(self.x_T)}, D]")
        if x_prev is not None and (x_prev.shape != self.x_T.shape or x_prev.dtype != np.float32):
            raise LatentError(
                f"x_prev: found {x_prev.dtype} {list(x_prev.shape)}, expected x_T's {list(self.x_T.shape)}"
            )
        for name, array in (("x_T", self.x_T), ("z_sem", z), ("x_prev", x_prev)):
            if array is not None and not np.isfinite(array).all():
                raise LatentError(f"{name}: has values that are not finite")

    def __len__(self) -> int:
        return len(self.x_T)

    def __getitem__(self, index: int | slice) -> Latent:
        """One image's latent (N = 1), or a slice of them."""
        if not isinstance(index, slice):
            number = range(len(self))[index]
            index = slice(number, number + 1)
        pick = [None if a is None else a[index] for a in (self.z_sem, self.x_prev)]
        return Latent(self.x_T[index], pick[0], pick[1], self.provenance)

    def __iter__(self) -> Iterator[Latent]:
        return (self[i] for i in range(len(self)))

    @staticmethod
    def stack(latents: Sequence[Latent]) -> Latent:
        """Joins latents of one model. The provenance keeps the entries on which all of them agree."""
        if not latents or not all(isinstance(x, Latent) for x in latents):
            raise LatentError("latents: expected at least one hspace.Latent, and nothing else")
        first = latents[0]
        told = {k: v for k, v in first.provenance.items() if all(x.provenance.get(k) == v for x in latents)}
        if len({x.provenance.get("checkpoint") for x in latents}) > 1:
            raise LatentError("latents: found several models' latents, expected those of one")
        arrays = []
        for name in ("x_T", "z_sem", "x_prev"):
            each = [a for a in (getattr(x, name) for x in latents) if a is not None]
            if len(each) not in (0, len(latents)) or len({a.shape[1:] for a in each}) > 1:
                raise LatentError(f"latents: {name}: expected it in all of them, of one shape")
            arrays.append(np.concatenate(each) if each else None)
        assert arrays[0] is not None
        return Latent(arrays[0], arrays[1], arrays[2], told)

    def to_bytes(self, where: str = "latent") -> bytes:
        """A safetensors file's bytes with the latent. Raises LatentError for more than 2 GiB. where: for messages."""
        _check_provenance(self.provenance)  # the caller may have changed it
        named = {"x_T": self.x_T, "z_sem": self.z_sem, "x_prev": self.x_prev}
        arrays = {k: v for k, v in named.items() if v is not None}
        if sum(a.nbytes for a in arrays.values()) > MAX_FILE_BYTES - 2**20:  # the metadata has room as well
            raise LatentError(f"{where}: {len(self)} images are too many for a file of {MAX_FILE_BYTES} bytes")
        return tensor_bytes(arrays, {"format": _FORMAT, **self.provenance})

    def save(self, path: str | Path) -> None:
        """Writes the latent as safetensors, whole or not at all. Raises LatentError for more than 2 GiB of it."""
        write_atomically(Path(path), self.to_bytes(str(path)))

    @classmethod
    def load(cls, path: str | Path) -> Latent:
        """Reads a latent that `save` wrote. Raises LatentError where the file is anything else."""
        return cls.from_bytes(read_file(path, LatentError), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, where: str = "latent") -> Latent:
        """Reads a latent from the bytes of a file that `save` wrote. where: the file's name, for messages."""
        tensors = read_tensors(data, where, LatentError)
        metadata = dict(tensors.metadata)
        if metadata.pop("format", None) != _FORMAT or not {"x_T"} <= tensors.arrays.keys() <= {
            "x_T",
            "z_sem",
            "x_prev",
        }:
            raise LatentError(f"{where}: expected a latent of format {_FORMAT}")
        try:
            a = tensors.arrays
            return cls(a["x_T"], a.get("z_sem"), a.get("x_prev"), metadata)
        except LatentError as e:
            raise LatentError(f"{where}: {e}") from None


def _check_provenance(provenance: object) -> None:
    """Raises LatentError for what a file's metadata cannot hold."""
    if not isinstance(provenance, Mapping) or not all(isinstance(t, str) for kv in provenance.items() for t in kv):
        raise LatentError("provenance: expected texts by name")
    if "format" in provenance:
        raise LatentError("provenance: found 'format', which is the file's own")
    try:
        size = sum(len(text.encode()) for kv in provenance.items() for text in kv)
    except UnicodeEncodeError:
        raise LatentError("provenance: found half of a surrogate pair, expected texts of Unicode") from None
    if size > _MAX_PROVENANCE:
        raise LatentError(f"provenance: found {size} bytes, expected at most {_MAX_PROVENANCE}")
