"""What a run tells the kernels: one block of metadata for each step, all made before the first.

The kernel `advance` copies block after block to a fixed place, so that a step's launches always read the same
addresses and can be a CUDA graph. A block holds what the network is told (t, source), the row of each sample
(`RECORD`), and the injection: `TARGET`s are the rows of h that change, each by its `TERM`s; a `PAIR` is a sample with
a DeltaBlock to evaluate. Nothing here touches a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..deltas import Delta, DeltaBlock, DeltaTable, Edit, nearest
from ..noise import Noise
from ..program import ROW, Branch, Program

COEFFICIENTS = ("alpha", "sigma", "c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev", "c_noise")
RECORD = np.dtype(
    [(name, "<f4") for name in COEFFICIENTS]
    + [(name, "<i4") for name in ("t", "clip", "second")]
    + [("draw", "<u4"), ("image", "<u4"), ("z_row", "<i4"), ("seed_low", "<u4"), ("seed_high", "<u4")]
)
TARGET = np.dtype([("dest", "<i4"), ("source", "<i4"), ("first", "<i4"), ("count", "<i4")])
TERM = np.dtype([("address", "<u8"), ("coefficient", "<f4"), ("row", "<i4")])
PAIR = np.dtype([("address", "<u8"), ("sample", "<i4"), ("eps", "<f4")])


class Kind(NamedTuple):
    """What a step's launches depend on, beside addresses; a CUDA graph stands for one kind at one batch size.

    head: how many samples the head evaluates. targets, pairs: how many there are. norm: whether a pair begins with a
    GroupNorm. hosted: whether a Δh has to be computed on the host.
    """

    head: int
    targets: int = 0
    pairs: int = 0
    norm: bool = False
    hosted: bool = False


def block(samples: int, pairs: int, terms: int, t: str = "int32") -> np.dtype[Any]:
    """A step's block for that many samples, with room for so many pairs and terms; each piece 16-byte aligned."""
    pieces: dict[str, tuple[Any, int]] = {
        "t": (np.dtype(t), samples),
        "source": (np.dtype("<i8"), 2 * samples),
        "records": (RECORD, samples),
        "targets": (TARGET, samples),
        "pairs": (PAIR, pairs),
        "terms": (TERM, terms),
    }
    offsets, end = [], 0
    for dtype, count in pieces.values():
        offsets.append(end)
        end = -(-(end + dtype.itemsize * count) // 16) * 16
    formats: list[Any] = [(dtype, (count,)) for dtype, count in pieces.values()]
    layout: Any = {"names": list(pieces), "formats": formats, "offsets": offsets, "itemsize": end}
    made: np.dtype[Any] = np.dtype(layout)
    return made


def identity(samples: int) -> NDArray[Any]:
    """Records (RECORD [samples]) of the row x_next = x: what it leaves is the network's first input, cast."""
    records = np.zeros(samples, RECORD)
    records["alpha"] = records["c_x"] = 1
    records["second"] = np.arange(samples)
    records["z_row"] = -1
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


class Steps:
    """A batch's programs side by side.

    rows: ROW [S, N], zeros where a sample's program has ended. alive: bool [S, N]. kinds: one for each step. pairs,
    terms: the most that a step has. hosted: by sample, its deltas that no kernel knows, with their strengths.
    """

    def __init__(self, programs: Sequence[Program], edits: Sequence[Edit] | None) -> None:
        n, length = len(programs), max(map(len, programs))
        self.rows = np.zeros((length, n), ROW)
        self.alive = np.zeros((length, n), bool)
        self._draws = np.zeros((length, n), np.int64)
        for i, program in enumerate(programs):
            self.rows[: len(program), i] = program.rows
            self.alive[: len(program), i] = True
            self._draws[: len(program), i] = program.draws
        self._deltas = [() if edits is None else edits[i].deltas for i in range(n)]
        known = [[(d, s) for d, s in each if _is_known(d)] for each in self._deltas]
        self.hosted = [tuple((d, s) for d, s in each if not _is_known(d)) for each in self._deltas]
        self._known = known
        self._edited = self.alive & (self.rows["branch"] != Branch.NONE) & np.array([bool(d) for d in self._deltas])
        self._second = self._edited & (self.rows["branch"] == Branch.ASYMMETRIC)
        blocks = np.array([sum(isinstance(d, DeltaBlock) for d, _ in each) for each in known])
        terms = np.array([len(each) + bool(host) for each, host in zip(known, self.hosted, strict=True)])
        norm = np.array([any(isinstance(d, DeltaBlock) and d.norm1 is not None for d, _ in each) for each in known])
        self._terms_of = terms
        self._row = n + _before(self._second)  # of the head's h, for those with a second one
        self._target, self._pair = _before(self._edited), _before(self._edited * blocks)
        self._term = _before(self._edited * terms)
        pairs_of_step = (self._edited * blocks).sum(axis=1)
        self.kinds = [
            Kind(n + int(m), int(targets), int(pairs), bool(normed), bool(host))
            for m, targets, pairs, normed, host in zip(
                self._second.sum(axis=1),
                self._edited.sum(axis=1),
                pairs_of_step,
                (self._edited & norm).any(axis=1),
                (self._edited & np.array([bool(h) for h in self.hosted])).any(axis=1),
                strict=True,
            )
        ]
        self.pairs = int(pairs_of_step.max(initial=0))
        self.terms = int((self._edited * terms).sum(axis=1).max(initial=0))

    def __len__(self) -> int:
        return len(self.rows)

    def uses(self, column: str) -> bool:
        """Whether a row has anything in that column."""
        return bool(self.rows[column].any())

    def hosted_at(self, step: int) -> list[int]:
        """The samples whose Δh, or a part of it, the host has to compute at that step."""
        return [int(i) for i in np.flatnonzero(self._edited[step]) if self.hosted[i]]

    def write(self, out: NDArray[Any], noise: Noise, address: Callable[[Delta], int], hosted: int, apart: int) -> None:
        """Fills `out`, zeros of dtype `block(…)` [S].

        address: where the device has a table, or a DeltaBlock's packed weights. hosted: where it has what the host
        computes, `apart` bytes for each sample, as far apart as entries of a table are.
        """
        n = self.rows.shape[1]
        own, rows, records = np.arange(n), self.rows, out["records"]
        out["t"] = rows["t"]
        out["source"][:, :n] = own
        step, sample = np.nonzero(self._second)
        out["source"][step, self._row[step, sample]] = sample
        for name in (*COEFFICIENTS, "clip"):
            records[name] = rows[name]
        records["t"] = np.where(self.alive, rows["t"], -1)
        records["second"] = np.where(self._second, self._row, own)
        records["draw"], records["image"] = self._draws, noise.image.astype(np.uint32)
        records["z_row"] = -1 if noise.given is None else self._draws * n + own
        records["seed_low"], records["seed_high"] = noise.seed & 0xFFFFFFFF, noise.seed >> 32
        step, sample = np.nonzero(self._edited)
        targets = np.zeros(len(step), TARGET)
        targets["dest"] = np.where(self._second, self._row, own)[step, sample]
        targets["source"], targets["first"] = sample, self._term[step, sample]
        targets["count"] = self._terms_of[sample]
        out["targets"][step, self._target[step, sample]] = targets
        for i in np.flatnonzero(self._edited.any(axis=0)):
            self._write_terms(out, int(i), address, hosted + int(i) * apart, apart)

    def _write_terms(self, out: NDArray[Any], i: int, address: Callable[[Delta], int], hosted: int, apart: int) -> None:
        """Sample i's terms and pairs, at every step that edits it."""
        steps = np.flatnonzero(self._edited[:, i])
        term, pair = self._term[steps, i], self._pair[steps, i]
        scale = self.rows["edit_scale"][steps, i]
        for delta, strength in self._known[i]:
            terms = np.zeros(len(steps), TERM)
            terms["address"], terms["coefficient"], terms["row"] = address(delta), scale * np.float32(strength), -1
            if isinstance(delta, DeltaTable):
                terms["address"] += nearest(delta.timesteps, self.rows["t"][steps, i]).astype(np.uint64) * apart
            elif isinstance(delta, DeltaBlock):
                terms["row"] = pair
                eps = delta.eps if delta.norm1 is None else -delta.eps
                out["pairs"][steps, pair] = np.array((address(delta), i, eps), PAIR)
                pair = pair + 1
            out["terms"][steps, term] = terms
            term = term + 1
        if self.hosted[i]:
            out["terms"][steps, term] = np.array((hosted, 1, -1), TERM)


def _is_known(delta: Delta) -> bool:
    """Whether the kernels can compute it."""
    return isinstance(delta, (DeltaTable, DeltaBlock))


def _before(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Of each step's samples (axis 1), the sum of those before."""
    whole = counts.astype(np.int64)
    return np.cumsum(whole, axis=1) - whole
