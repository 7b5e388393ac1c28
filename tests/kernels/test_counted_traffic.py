"""The bytes that benchmarks/gpu.py counts for a row are those that the kernel reads and writes."""

from __future__ import annotations

import pytest
import torch
from hspace.cuda.steps import RECORD
from hspace_kernels import linear_step

from .. import benchmarks  # noqa: F401
from .helpers import DEVICE, NATIVE, traffic, words

bandwidth = pytest.importorskip("gpu.bandwidth")


@pytest.mark.skipif(NATIVE, reason="the interpreter counts")
@pytest.mark.parametrize("name", bandwidth.kinds())
def test_counted_bytes(name: str) -> None:
    kind, n, elements = bandwidth.kinds()[name], 2, 1024
    x, x_prev, p = (torch.zeros(n, elements, device=DEVICE) for _ in range(3))
    eps, x_in = (torch.zeros(m, elements, dtype=torch.float16, device=DEVICE) for m in (2 * n, n))
    with traffic() as account:
        linear_step.launch(
            x,
            eps,
            words(bandwidth.records(kind, n), RECORD),
            x_in=x_in,
            x_prev=x_prev if kind.has_x_prev else None,
            p=p if kind.has_p else None,
        )
    buffers = (x, x_prev, p, eps, x_in)
    moved = sum(account.of(how, b) * b.element_size() for how in ("read", "written") for b in buffers)
    assert moved == bandwidth.traffic(kind) * n * elements
