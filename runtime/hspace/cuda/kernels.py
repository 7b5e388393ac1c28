"""The kernels that ship compiled (cubins/kernels.json says which), loaded for one GPU and made ready to launch.

What each computes is written beside its source, in hspace_kernels. Here is how it is called: pointers are addresses,
0 for an absent one; a launch is bound to its arguments once, and enqueued any number of times.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from ..deltas import GROUPS
from ..errors import DeviceError
from .driver import Device, Function, Launch

FOLDER = Path(__file__).parent / "cubins"
TABLE = "kernels.json"
DTYPES = {"float32": "fp32", "float16": "fp16"}  # the manifest's words to the variants'
_INTEGERS: dict[str, Any] = {"i32": ctypes.c_int32, "u32": ctypes.c_uint32}


class KernelImage(msgspec.Struct, frozen=True):
    """A cubin or PTX: its file, and how the compiler made it. Sizes in bytes."""

    file: str
    sha256: str
    entry: str
    num_warps: int
    shared: int
    global_scratch: int
    profile_scratch: int


class Variant(msgspec.Struct, frozen=True):
    """A kernel for one dtype: parameters in launch order, the block sizes that its grid needs, images by target."""

    parameters: list[tuple[str, str]]
    block: dict[str, int]
    images: dict[str, KernelImage]


class KernelTable(msgspec.Struct, frozen=True):
    """`kernels.json`, as far as launching needs it."""

    format: Literal["hspace-kernels-1"]
    kernels: dict[str, Variant]


class Kernels:
    """The kernels on one device; each is loaded when it is first bound."""

    def __init__(self, device: Device, folder: Path = FOLDER) -> None:
        self.device, self._folder = device, folder
        self._loaded: dict[str, tuple[Variant, KernelImage, Function]] = {}

    @cached_property
    def _table(self) -> KernelTable:
        path = self._folder / TABLE
        try:
            return msgspec.json.decode(path.read_bytes(), type=KernelTable)
        except OSError:
            raise DeviceError(f"{path}: missing: this installation has no compiled kernels") from None
        except msgspec.DecodeError as e:
            raise DeviceError(f"{path}: {e}") from None

    # --- one method a kernel ----------------------------------------------------------------------------

    def linear_step(
        self,
        dtype: str,
        samples: int,
        *,
        x: int,
        eps: int,
        records: int,
        elements: int,
        eps_stride: int,
        x_in: int = 0,
        x_prev: int = 0,
        p: int = 0,
        z: int = 0,
    ) -> Launch:
        """The row formula for `samples` samples of `elements` each, in place. dtype: of eps and x_in."""
        return self._bind(
            f"linear_step_{dtype}",
            lambda block: (-(-elements // block["BLOCK"]), samples),
            x=x,
            eps=eps,
            x_in=x_in,
            x_prev=x_prev,
            p=p,
            z=z,
            records=records,
            elements=elements,
            eps_stride=eps_stride,
            has_x_in=x_in != 0,
            has_x_prev=x_prev != 0,
            has_p=p != 0,
        )

    def block_norm(
        self, dtype: str, count: int, *, h: int, v: int, pairs: int, channels: int, positions: int, embedding: int
    ) -> Launch:
        """v ← SiLU(GroupNorm(h)) for those of `count` pairs whose DeltaBlock begins so."""
        sizes = {"channels": channels, "positions": positions, "embedding": embedding}
        return self._bind(
            f"block_norm_{dtype}", lambda _: (min(GROUPS, channels), count), h=h, v=v, pairs=pairs, **sizes
        )

    def block_hidden(
        self,
        dtype: str,
        count: int,
        *,
        h: int,
        v: int,
        temb: int,
        u: int,
        pairs: int,
        channels: int,
        positions: int,
        embedding: int,
    ) -> Launch:
        """u ← a DeltaBlock up to its last convolution, for `count` pairs."""
        sizes = {"channels": channels, "positions": positions, "embedding": embedding}
        arrays = {"h": h, "v": v, "temb": temb, "u": u, "pairs": pairs}
        return self._bind(f"block_hidden_{dtype}", lambda _: (min(GROUPS, channels), count), **arrays, **sizes)

    def inject(
        self,
        dtype: str,
        count: int,
        *,
        h: int,
        u: int,
        targets: int,
        terms: int,
        channels: int,
        positions: int,
        embedding: int,
    ) -> Launch:
        """h[dest] ← h[source] + Σ coefficient·Δ, for `count` targets."""
        sizes = {"channels": channels, "positions": positions, "embedding": embedding}
        return self._bind(
            f"inject_{dtype}",
            lambda block: (-(-channels // block["BLOCK_C"]), -(-positions // block["BLOCK_P"]), count),
            h=h,
            u=u,
            targets=targets,
            terms=terms,
            **sizes,
        )

    # --- inside -----------------------------------------------------------------------------------------

    def _bind(self, name: str, grid: Any, **arguments: Any) -> Launch:
        variant, image, function = self.load(name)
        unknown = [p for p, _ in variant.parameters if p not in arguments]
        if unknown:
            raise DeviceError(f"{self._folder / TABLE}: {name}: found parameters {unknown}, expected {list(arguments)}")
        values = [_value(kind, arguments[p]) for p, kind in variant.parameters]
        values += [ctypes.c_uint64(0), ctypes.c_uint64(0)]  # scratch, of which none is asked for
        return Launch(function, grid(variant.block), 32 * image.num_warps, image.shared, values, name)

    def load(self, name: str) -> tuple[Variant, KernelImage, Function]:
        """A kernel by its variant's name. Raises DeviceError where no image is for this GPU."""
        if name not in self._loaded:
            variant = self._table.kernels.get(name)
            if variant is None:
                raise DeviceError(f"{self._folder / TABLE}: has no kernel {name}")
            for target in _candidates(list(variant.images), self.device.architecture):
                image = variant.images[target]
                function = self.device.load(self._read(image), image.entry, image.shared)
                if function is not None:
                    self._loaded[name] = variant, image, function
                    break
            else:
                major, minor = self.device.architecture
                raise DeviceError(
                    f"device {self.device.name}: {self.device.model} is of the architecture sm_{major}{minor}; "
                    f"the kernels that ship are for {', '.join(variant.images)}"
                )
        return self._loaded[name]

    def _read(self, image: KernelImage) -> bytes:
        path = self._folder / image.file
        try:
            data = path.read_bytes()
        except OSError:
            raise DeviceError(f"{path}: missing") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != image.sha256:
            raise DeviceError(f"{path}: altered: found SHA-256 {digest}, expected {image.sha256}")
        if image.global_scratch or image.profile_scratch:
            raise DeviceError(f"{path}: asks for scratch memory, which this version does not give")
        return data if data[:4] == b"\x7fELF" else data + b"\0"  # PTX is a text, and ends in a zero byte


def _value(kind: str, value: Any) -> Any:
    """An argument as wide as its parameter: 8 bytes for a pointer ("*fp16" and so on), 4 for anything else."""
    if kind.startswith("*"):
        return ctypes.c_uint64(value)
    return ctypes.c_float(value) if kind == "fp32" else _INTEGERS[kind](int(value))


def _candidates(targets: list[str], architecture: tuple[int, int]) -> list[str]:
    """Which images may run on an architecture, the best first: its own, an earlier one of its major version, PTX."""
    major, minor = architecture
    matches = [m for t in targets if (m := re.fullmatch(r"sm_(\d+)(\d)", t))]
    near = sorted((int(m[2]), m[0]) for m in matches if int(m[1]) == major and int(m[2]) <= minor)
    oldest = min(((int(m[1]), int(m[2])) for m in matches), default=(0, 0))
    return [t for _, t in reversed(near)] + (["ptx"] if "ptx" in targets and architecture >= oldest else [])


def variant_of(dtype: str) -> str:
    """The variants' word for a dtype of the manifest."""
    return DTYPES[np.dtype(dtype).name]
