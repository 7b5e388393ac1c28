"""The next step's records, copied to where the other kernels find them.

Every launch of a step has fixed arguments, so that the step can be a CUDA graph; what differs from step to step was
staged on the device before the run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 1024


@triton.jit(do_not_specialize=["words"])
def advance(step, staged, current, words, BLOCK: tl.constexpr):
    """current ← block number `step` of staged; step ← step + 1. Grid (1,).

    step: int32 [1]. staged: int32 [S, words]. current: int32 [words].
    """
    number = tl.load(step)
    block = staged + number.to(tl.int64) * words
    for first in range(0, words, BLOCK):
        offsets = first + tl.arange(0, BLOCK)
        inside = offsets < words
        tl.store(current + offsets, tl.load(block + offsets, mask=inside), mask=inside)
    tl.debug_barrier()  # every thread has read the number
    tl.store(step, number + 1)


def launch(step: torch.Tensor, staged: torch.Tensor, current: torch.Tensor) -> None:
    """Runs the kernel. step: int32 [1]; staged: int32 [S, words]; current: int32 [words]."""
    advance[(1,)](step, staged, current, current.numel(), BLOCK=BLOCK)


def reference(step: torch.Tensor, staged: torch.Tensor, current: torch.Tensor) -> None:
    """The same in PyTorch."""
    current.copy_(staged[int(step)])
    step += 1
