"""What the kernels' tests share: devices, types, buffers with guards around them, and an account of memory traffic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

NATIVE = torch.cuda.is_available()
DEVICE = "cuda" if NATIVE else "cpu"
DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
# a value's relative error from being rounded to a type
ROUNDING = {"fp16": 2.0**-11, "fp32": 0.0}
_MARGIN = 32


def words(records: list[Any] | np.ndarray, dtype: np.dtype[Any]) -> torch.Tensor:
    """Records of one of the types of `hspace.cuda.steps` on the device, int32 [n, words]."""
    array = np.array(records, dtype)
    return torch.from_numpy(array.view(np.int32).reshape(len(array), -1)).to(DEVICE)


def guarded(values: torch.Tensor) -> torch.Tensor:
    """A copy of `values` on the device with guards before and after it, which `intact` looks at."""
    whole = torch.full((_MARGIN + values.numel() + _MARGIN,), -77.0, dtype=values.dtype, device=DEVICE)
    inner = whole[_MARGIN:-_MARGIN].view(values.shape)
    inner.copy_(values)
    return inner


def intact(*buffers: torch.Tensor) -> bool:
    """Whether nothing was written around buffers that `guarded` made."""
    for buffer in buffers:
        whole = torch.empty(0, dtype=buffer.dtype, device=DEVICE).set_(buffer.untyped_storage())
        guards = torch.cat([whole[:_MARGIN], whole[-_MARGIN:]])
        if len(whole) != buffer.numel() + 2 * _MARGIN or not bool((guards == -77).all()):
            return False
    return True


class Traffic:
    """The addresses that kernels read and wrote in the interpreter."""

    def __init__(self) -> None:
        self._touched: dict[str, list[np.ndarray]] = {"read": [], "written": []}

    def add(self, kind: str, addresses: np.ndarray, mask: np.ndarray) -> None:
        self._touched[kind].append(addresses[np.broadcast_to(mask, addresses.shape)])

    def of(self, kind: str, buffer: torch.Tensor) -> int:
        """How many elements of a buffer were "read", or "written"; what is touched twice counts twice."""
        at = np.concatenate(self._touched[kind]).astype(np.int64) - buffer.data_ptr()
        return int(((at >= 0) & (at < buffer.numel() * buffer.element_size())).sum())

    def total(self, kind: str) -> int:
        """How many elements in all, wherever they are."""
        return sum(map(len, self._touched[kind]))


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Accounts for what kernels do inside the context. In the interpreter only."""
    from triton.runtime.interpreter import InterpreterBuilder as Builder

    account, load, store = Traffic(), Builder.create_masked_load, Builder.create_masked_store

    def reading(self, ptrs, mask, *rest):
        account.add("read", ptrs.data, mask.data)
        return load(self, ptrs, mask, *rest)

    def writing(self, ptrs, value, mask, *rest):
        account.add("written", ptrs.data, mask.data)
        return store(self, ptrs, value, mask, *rest)

    Builder.create_masked_load, Builder.create_masked_store = reading, writing
    try:
        yield account
    finally:
        Builder.create_masked_load, Builder.create_masked_store = load, store
