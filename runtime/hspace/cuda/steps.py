"""What a step tells the kernels: a block of metadata, always at the same place, so that a step can be a CUDA graph.

It holds what the network is told (t), the row of each sample (`RECORD`), and the injection: a `TARGET` is a row of h
that changes, each by its `TERM`s; a `PAIR` is a sample with a DeltaBlock to evaluate. Most of it is made when a sample
joins (`Script`); a step only gathers one row of each (`write`). Nothing here touches a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..batch import Sample
from ..deltas import Delta, DeltaBlock, DeltaTable, nearest
from ..program import Branch

COEFFICIENTS = ("alpha", "sigma", "c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev", "c_noise")
RECORD = np.dtype(
    [(name, "<f4") for name in COEFFICIENTS]
    + [(name, "<i4") for name in ("t", "clip", "second")]
    + [("draw", "<u4"), ("image", "<u4"), ("z_row", "<i4"), ("seed_low", "<u4"), ("seed_high", "<u4")]
)
TARGET = np.dtype([("dest", "<i4"), ("source", "<i4"), ("first", "<i4"), ("count", "<i4")])
TERM = np.dtype([("address", "<u8"), ("coefficient", "<f4"), ("row", "<i4")])
PAIR = np.dtype([("address", "<u8"), ("sample", "<i4"), ("eps", "<f4")])


class GraphKey(NamedTuple):
    """What a step's launches depend on, beside addresses: a CUDA graph stands for one of these at one capacity.

    doubled: whether the head evaluates 2n samples, [h, h + Δh], or n. injected: whether a Δh is added. pairs: how many
    DeltaBlocks are evaluated, 0 or a power of two. x_prev, p: whether these are kept.
    """

    doubled: bool = False
    injected: bool = False
    pairs: int = 0
    x_prev: bool = False
    p: bool = False


class Layout:
    """What a step's block looks like for n samples, with room for so many pairs, and terms of each sample.

    dtype: of the block. idle: the bytes of one in which nobody moves: t is 0 for the network, and −1 in the records.
    """

    def __init__(self, n: int, pairs: int, terms: int, t: str) -> None:
        self.n, self.pairs, self.terms = n, pairs, terms
        formats: list[Any] = [(t, (n,)), (RECORD, (n,)), (TARGET, (n,)), (PAIR, (pairs,)), (TERM, (n, terms))]
        offsets, end = [], 0
        for dtype in map(np.dtype, formats):
            offsets.append(end)
            end = -(-(end + dtype.itemsize) // 16) * 16
        names = ["t", "records", "targets", "pairs", "terms"]
        self.dtype: np.dtype[Any] = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": end})
        self.offsets = dict(zip(names, offsets, strict=True))
        self.idle = np.zeros(end, np.uint8)
        idle = self.idle.view(self.dtype)[0]
        idle["records"]["t"] = -1
        # the second half of h is a copy of the first, so that all that is computed is defined
        idle["targets"]["source"] = np.arange(n)
        idle["targets"]["dest"] = n + np.arange(n)


class Block:
    """A step's block in pinned memory (uint8 [nbytes]). t: [n]; records, targets: int32 [n, ·]; pairs: int32 [·, 4];
    terms: int32 [n, ·]; term_rows: their rows, int32 [n, terms].
    """

    def __init__(self, memory: NDArray[np.uint8], layout: Layout) -> None:
        fields = memory.view(layout.dtype)[0]
        self.bytes, self.t = memory, fields["t"]
        self.records, self.targets, self.terms = (
            fields[name].view(np.int32).reshape(layout.n, -1) for name in ("records", "targets", "terms")
        )
        self.pairs, self.term_rows = fields["pairs"].view(np.int32).reshape(-1, 4), fields["terms"]["row"]


def identity(samples: int, slot: int) -> NDArray[Any]:
    """Records (RECORD [samples]) of the row x_next = x for one slot: what it leaves is the network's input, cast."""
    records = np.zeros(samples, RECORD)
    records["alpha"] = records["c_x"] = 1
    records["second"] = np.arange(samples)
    records["z_row"] = -1
    records["t"] = -1
    records["t"][slot] = 0
    return records


def stride(elements: int) -> int:
    """Bytes from one Δh (float32 [elements]) to the next: the kernels read 16 at a time."""
    return -(-4 * elements // 16) * 16


def padded(table: NDArray[np.float32]) -> NDArray[np.float32]:
    """A table (float32 [K, …]) with its entries that far apart, float32 [K, …]."""
    flat = np.ascontiguousarray(table, dtype=np.float32).reshape(len(table), -1)
    return np.pad(flat, ((0, 0), (0, stride(flat.shape[1]) // 4 - flat.shape[1])))


def packed(delta: DeltaBlock) -> NDArray[np.float32]:
    """A DeltaBlock's weights as the kernels read them, float32 [W]."""
    parts = [*delta.conv1, *delta.temb_proj, *delta.norm2, *delta.conv2, *(delta.norm1 or ())]
    return np.concatenate([np.ravel(a).astype(np.float32, copy=False) for a in parts])


class Script:
    """What a sample's rows tell the kernels, in whichever step they run; made once, when the sample joins.

    blocks: how many DeltaBlocks it evaluates. width: how many terms. hosted: its deltas that no kernel knows, with
    their strengths. row: how many of its rows it has run.
    """

    def __init__(self, sample: Sample, slot: int) -> None:
        self.sample, self.slot, self.row = sample, slot, 0
        self.rows = sample.program.rows
        known = [(d, s) for d, s in sample.edit.deltas if _is_known(d)]
        self.known = sorted(known, key=lambda each: not isinstance(each[0], DeltaBlock))  # blocks first: see `write`
        self.hosted = tuple((d, s) for d, s in sample.edit.deltas if not _is_known(d))
        edited = (self.rows["branch"] != Branch.NONE) & bool(sample.edit.deltas)
        self.edited: list[bool] = edited.tolist()
        self.doubled: list[bool] = (edited & (self.rows["branch"] == Branch.ASYMMETRIC)).tolist()
        used = bool(edited.any())
        if not used:
            self.known, self.hosted = [], ()
        self.blocks = sum(isinstance(d, DeltaBlock) for d, _ in self.known)
        self.norm = any(isinstance(d, DeltaBlock) and d.norm1 is not None for d, _ in self.known)
        self.width = len(self.known) + bool(self.hosted)
        self.keeps_x_prev, self.uses_p = sample.keeps_x_prev, bool(self.rows["c_x0_prev"].any())
        self.t: list[int] = self.rows["t"].tolist()
        noisy = self.rows["c_noise"] != 0
        self.draws = sample.program.draws  # which draw each row takes
        self.given: list[bool] = (noisy & (sample.noise is not None)).tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def compile(self, layout: Layout, address: Callable[[Delta], int], hosted: int, apart: int) -> None:
        """Makes the tables. address: where the device has a table, or a DeltaBlock's packed weights. hosted: where it
        has what the host computes of this sample's Δh. apart: bytes from one of a table's entries to the next.
        """
        count, sample = len(self), self.sample
        records = np.zeros(count, RECORD)
        for name in (*COEFFICIENTS, "clip", "t"):
            records[name] = self.rows[name]
        doubled = np.array(self.doubled)
        records["second"] = np.where(doubled, layout.n + self.slot, self.slot)
        records["draw"], records["image"] = self.draws, sample.image
        records["z_row"] = -1 if sample.noise is None else self.slot
        records["seed_low"], records["seed_high"] = sample.seed & 0xFFFFFFFF, sample.seed >> 32
        targets = np.zeros(count, TARGET)
        targets["dest"], targets["source"] = records["second"], self.slot
        targets["count"] = self.width
        terms, pairs = np.zeros((count, self.width), TERM), np.zeros(self.blocks, PAIR)
        terms["row"] = -1
        for k, (delta, strength) in enumerate(self.known):
            place = address(delta)
            terms["address"][:, k] = place
            terms["coefficient"][:, k] = self.rows["edit_scale"] * np.float32(strength)
            if isinstance(delta, DeltaTable):
                terms["address"][:, k] += nearest(delta.timesteps, self.rows["t"]).astype(np.uint64) * np.uint64(apart)
            elif isinstance(delta, DeltaBlock):
                terms["row"][:, k] = k
                pairs[k] = place, self.slot, delta.eps if delta.norm1 is None else -delta.eps
        if self.hosted:
            terms[:, -1] = np.array((hosted, 1, -1), TERM)
        self.records, self.targets = records.view(np.int32).reshape(count, -1), targets.view(np.int32).reshape(count, 4)
        self.terms = terms.view(np.int32).reshape(count, 4 * self.width)
        self.pairs = pairs.view(np.int32).reshape(-1, 4)
        self.lay_out(layout)

    def lay_out(self, layout: Layout) -> None:
        """Tells where its terms begin."""
        self.targets[:, 2] = self.slot * layout.terms


def write(block: Block, layout: Layout, running: Sequence[Script], *, observed: bool) -> GraphKey:
    """Fills a step's block with the next row of every script. Returns what the step launches."""
    block.bytes[:] = layout.idle
    pairs, doubled, injected, x_prev, p = 0, False, False, False, observed
    for script in running:
        slot, row = script.slot, script.row
        block.t[slot], block.records[slot] = script.t[row], script.records[row]
        x_prev, p = x_prev or script.keeps_x_prev, p or script.uses_p
        if not script.edited[row]:
            continue
        injected, doubled = True, doubled or script.doubled[row]
        block.targets[slot], block.terms[slot, : 4 * script.width] = script.targets[row], script.terms[row]
        if script.blocks:
            block.term_rows[slot, : script.blocks] += pairs
            block.pairs[pairs : pairs + script.blocks] = script.pairs
            pairs += script.blocks
    padded = capacity_of(pairs)
    if pairs:
        block.pairs[pairs:padded] = block.pairs[pairs - 1]  # evaluated again, for nobody: kinds of steps stay few
    return GraphKey(doubled, injected, padded, x_prev, p)


def capacity_of(n: int) -> int:
    """The least of 1, 2, 4, 8, … that holds n; 0 for 0."""
    return 1 << (n - 1).bit_length() if n else 0


def _is_known(delta: Delta) -> bool:
    """Whether the kernels can compute it."""
    return isinstance(delta, (DeltaTable, DeltaBlock))
