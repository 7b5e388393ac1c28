"""Steps' records reach their fixed place, one block after another."""

from __future__ import annotations

import pytest
import torch
from hspace_kernels import advance

from .helpers import DEVICE, guarded, intact


@pytest.mark.parametrize("words", [4, 1000, 1024, 4100])
def test_block_after_block(words: int) -> None:
    staged = torch.randint(-(2**31), 2**31, (3, words), dtype=torch.int64).int().to(DEVICE)
    step = guarded(torch.zeros(1, dtype=torch.int32))
    current = guarded(torch.zeros(words, dtype=torch.int32))
    for i in range(3):
        advance.launch(step, staged, current)
        assert torch.equal(current, staged[i]) and int(step) == i + 1
    assert intact(step, current)
    again, expected = torch.full((1,), 1, dtype=torch.int32), torch.zeros(words, dtype=torch.int32)
    advance.reference(again, staged.cpu(), expected)
    assert torch.equal(expected, staged[1].cpu()) and int(again) == 2
