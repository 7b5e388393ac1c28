"""The row formula: one pass over memory for every sampler, with a row of its own for each sample of a batch.

    P      = (x − sigma·ε̃) / alpha                      clamped to [−1, 1] where clip
    x_next = c_x·x + c_x0·P + c_eps·ε + c_x_prev·x_prev + c_x0_prev·P_prev + c_noise·z

and where clip is 2, ε is first derived anew from the clamped unedited P(ε): ε ← (x − alpha·P(ε))/sigma
(`hspace.program`). In place: x ← x_next, x_prev ← x, p ← P, and the network's next input x_in ← x_next in its type.

Only what a row uses is read: loads of terms whose coefficient is zero, and stores to absent buffers, are masked off and
cost no traffic. Noise comes from the generator, without traffic too, or from z.
"""

from __future__ import annotations

from typing import Any

import hspace.noise
import numpy as np
import torch
import triton
import triton.language as tl
from numpy.typing import NDArray

from .normal import normal_block

BLOCK = 512  # 4 elements for each of 128 threads: loads of 16 bytes of float32


@triton.jit
def _clamp(p):
    """p in [−1, 1]; NaN stays NaN, so that an overflow is found out."""
    return tl.clamp(p, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _if(used, offsets, elements):
    """The mask of those of the offsets that are inside a sample, if they are used at all."""
    return offsets < tl.where(used, elements, 0)


@triton.jit
def _step(
    x, eps, x_in, x_prev, p, z, record, elements, eps_stride, has_x_in, has_x_prev, has_p, BLOCK: tl.constexpr
):  # fmt: skip
    first, sample = tl.program_id(0) * BLOCK, tl.program_id(1)
    coefficients = record.to(tl.pointer_type(tl.float32))
    alpha, sigma = tl.load(coefficients + 0), tl.load(coefficients + 1)
    c_x, c_x0, c_eps = tl.load(coefficients + 2), tl.load(coefficients + 3), tl.load(coefficients + 4)
    c_x_prev, c_x0_prev = tl.load(coefficients + 5), tl.load(coefficients + 6)
    c_noise = tl.load(coefficients + 7)
    clip, second = tl.load(record + 9), tl.load(record + 10)

    use_p = (c_x0 != 0) | (has_p != 0)
    edited = use_p & (second != sample)
    anew = (c_eps != 0) & (clip == 2)
    use_eps = (c_eps != 0) | (use_p & (second == sample))
    use_x = (c_x != 0) | use_p | anew | (has_x_prev != 0)

    offsets = first + tl.arange(0, BLOCK)
    here = sample.to(tl.int64) * elements + offsets
    own, other = sample.to(tl.int64) * eps_stride + offsets, second.to(tl.int64) * eps_stride + offsets
    state = tl.load(x + here, mask=_if(use_x, offsets, elements), other=0.0)
    e = tl.load(eps + own, mask=_if(use_eps, offsets, elements), other=0.0).to(tl.float32)
    e_edit = tl.load(eps + other, mask=_if(edited, offsets, elements), other=0.0).to(tl.float32)
    before = tl.load(x_prev + here, mask=_if(c_x_prev != 0, offsets, elements), other=0.0)
    p_before = tl.load(p + here, mask=_if(c_x0_prev != 0, offsets, elements), other=0.0)

    per_alpha = tl.div_rn(1.0, alpha)
    p_new = (state - sigma * tl.where(edited, e_edit, e)) * per_alpha
    if clip != 0:
        p_new = _clamp(p_new)
    if anew:
        e = (state - alpha * _clamp((state - sigma * e) * per_alpha)) * tl.div_rn(1.0, sigma)
    # a term without a coefficient is left out even where its value is not finite
    total = c_x0 * tl.where(c_x0 != 0, p_new, 0.0)
    total += c_x * tl.where(c_x != 0, state, 0.0)
    total += c_eps * tl.where(c_eps != 0, e, 0.0)
    total += c_x_prev * before + c_x0_prev * p_before
    if c_noise != 0:
        z_row = tl.load(record + 13)
        if z_row >= 0:
            noise = tl.load(z + z_row.to(tl.int64) * elements + offsets, mask=offsets < elements, other=0.0)
        else:
            draw, image = tl.load(record + 11), tl.load(record + 12)
            noise = normal_block(first, draw, image, 0, tl.load(record + 14), tl.load(record + 15), BLOCK)
        total += c_noise * noise

    tl.store(x + here, total, mask=offsets < elements)
    tl.store(x_in + here, total.to(x_in.dtype.element_ty), mask=_if(has_x_in != 0, offsets, elements))
    tl.store(x_prev + here, state, mask=_if(has_x_prev != 0, offsets, elements))
    tl.store(p + here, p_new, mask=_if(has_p != 0, offsets, elements))


@triton.jit(do_not_specialize=["elements", "eps_stride", "has_x_in", "has_x_prev", "has_p"])
def linear_step(
    x, eps, x_in, x_prev, p, z, records, elements, eps_stride, has_x_in, has_x_prev, has_p, BLOCK: tl.constexpr
):  # fmt: skip
    """Moves every sample of a batch by its row. Grid (ceil(elements / BLOCK), N).

    x, x_prev, p: float32 [N, elements]. eps: T [M, eps_stride], whose rows begin with ε (learned sigma follows it).
    x_in: T [N, elements]. z: float32 [rows, elements]. records: int32 [N, 16], RECORD of `hspace.cuda.steps`:
        alpha, sigma, c_x, c_x0, c_eps, c_x_prev, c_x0_prev, c_noise, clip: the row's
        t: below 0 where the sample has no row left; then nothing of it is read or written
        second: the row of eps that holds ε̃, the sample's own number where it has none
        draw, image, seed_low, seed_high: of the noise, where z_row is −1; else z_row is the row of z that gives it
    x_in, x_prev, p and z may be 0 where nothing uses them.
    """
    record = records + 16 * tl.program_id(1)
    if tl.load(record + 8) >= 0:
        if (elements % 4 == 0) & (eps_stride % 4 == 0):  # said so that the compiler sees it: loads of 16 bytes
            wide, stride = elements // 4 * 4, eps_stride // 4 * 4
            _step(x, eps, x_in, x_prev, p, z, record, wide, stride, has_x_in, has_x_prev, has_p, BLOCK)
        else:
            _step(x, eps, x_in, x_prev, p, z, record, elements, eps_stride, has_x_in, has_x_prev, has_p, BLOCK)


def launch(
    x: torch.Tensor,
    eps: torch.Tensor,
    records: torch.Tensor,
    *,
    x_in: torch.Tensor | None = None,
    x_prev: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
) -> None:
    """Runs the kernel on contiguous tensors. x, x_prev, p: float32 [N, elements]; eps: T [M, eps_stride]; x_in:
    T [N, elements]; z: float32 [rows, elements]; records: int32 [N, 16].
    """
    n, elements = x.shape
    absent = x.new_empty(0)  # at address 0
    linear_step[(triton.cdiv(elements, BLOCK), n)](
        x,
        eps,
        eps.new_empty(0) if x_in is None else x_in,
        absent if x_prev is None else x_prev,
        absent if p is None else p,
        absent if z is None else z,
        records,
        elements,
        eps.shape[1],
        int(x_in is not None),
        int(x_prev is not None),
        int(p is not None),
        BLOCK=BLOCK,
    )


def reference(
    x: torch.Tensor,
    eps: torch.Tensor,
    records: NDArray[Any],
    *,
    x_prev: torch.Tensor | None = None,
    p: torch.Tensor | None = None,
    z: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x_next and P of every sample, float64 [N, elements]. records: RECORD [N]; samples without a row: x and p stay."""
    x_next, p_next = x.double(), torch.zeros_like(x).double() if p is None else p.double()
    for n, record in enumerate(records):
        if record["t"] < 0:
            continue
        row = {name: float(record[name]) for name in ("alpha", "sigma", "c_x", "c_x0", "c_eps")}
        state, e, e_edit = (a[: x.shape[1]].double() for a in (x[n], eps[n], eps[int(record["second"])]))
        p_new = (state - row["sigma"] * e_edit) / row["alpha"]
        if record["clip"]:
            p_new = p_new.clamp(-1, 1)
        if record["clip"] == 2:
            own = ((state - row["sigma"] * e) / row["alpha"]).clamp(-1, 1)
            e = (state - row["alpha"] * own) / row["sigma"]
        total = row["c_x"] * state + row["c_x0"] * p_new + row["c_eps"] * e
        if record["c_x_prev"] and x_prev is not None:
            total += float(record["c_x_prev"]) * x_prev[n].double()
        if record["c_x0_prev"] and p is not None:
            total += float(record["c_x0_prev"]) * p[n].double()
        if record["c_noise"]:
            total += float(record["c_noise"]) * _noise(record, x.shape[1], z).to(x.device)
        x_next[n], p_next[n] = total, p_new
    return x_next, p_next


def _noise(record: Any, elements: int, z: torch.Tensor | None) -> torch.Tensor:
    if record["z_row"] >= 0 and z is not None:
        return z[int(record["z_row"])].double()
    seed = int(record["seed_high"]) << 32 | int(record["seed_low"])
    draw, image = int(record["draw"]), int(record["image"])
    drawn = hspace.noise.normal((elements,), seed, draw=draw, image=image, stream=hspace.noise.NoiseStream.STEP)
    return torch.from_numpy(drawn.astype(np.float64))
