"""NVIDIA GPUs without PyTorch: the driver (`driver`), the compiled kernels (`kernels`), arrays of other libraries
(`arrays`), what a step tells the kernels (`steps`), its memory (`workspace`) and batches (`batch`).

Nothing here is imported unless a bundle is opened with device="cuda:N".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArgumentError

CUDA, MANAGED = 2, 13  # DLPack's kinds of device


def ordinal_of(device: str) -> int | None:
    """The number of the GPU that `device` names ("cuda", "cuda:0", …), or None for "cpu"; else ArgumentError."""
    match = re.fullmatch(r"cuda(?::(\d{1,3}))?|cpu", device) if isinstance(device, str) else None
    if match is None:
        raise ArgumentError(f"device: found {device!r}, expected 'cpu', or 'cuda:0' and so on")
    return None if device == "cpu" else int(match[1] or 0)


def is_foreign(images: Any) -> bool:
    """Whether it is an array on a GPU, of any library."""
    if isinstance(images, np.ndarray):
        return False
    kind = told(lambda: images.__dlpack_device__()[0])
    return told(lambda: images.__cuda_array_interface__) is not None or kind in (CUDA, MANAGED)


def told(ask: Callable[[], Any]) -> Any:
    """What an object says, or None where it does not say; some libraries raise more than AttributeError."""
    try:
        return ask()
    except Exception:
        return None
