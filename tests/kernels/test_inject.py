"""Injection: tables and blocks of both layouts against PyTorch in float64, and against the CPU executor's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hspace import deltas
from hspace.cuda.steps import PAIR, TARGET, TERM, packed
from hspace.deltas import DeltaBlock, DeltaTable, Edit
from hspace.program import Branch
from hspace_kernels import inject

from .helpers import DEVICE, DTYPES, NATIVE, ROUNDING, guarded, intact, traffic, words

TOLERANCE = 5e-6  # ‖a − b‖/‖b‖ of a row in float32
NAN = float("nan")


def make_block(c: int, e: int, seed: int, *, improved: bool) -> DeltaBlock:
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0, mean: float = 0.0) -> np.ndarray:
        return (mean + scale * rng.standard_normal(shape)).astype(np.float32)

    def norm() -> tuple[np.ndarray, np.ndarray]:
        return normal(c, scale=0.3, mean=1.0), normal(c, scale=0.3)

    return DeltaBlock(
        norm1=norm() if improved else None,
        conv1=(normal(c, c, scale=c**-0.5), normal(c)),
        temb_proj=(normal(c, e, scale=e**-0.5), normal(c)),
        norm2=norm(),
        conv2=(normal(c, c, scale=c**-0.5), normal(c)),
        eps=1e-5 if improved else 1e-6,
        n_train=None,
    )


class Stage:
    """Targets, terms and pairs as a host lays them out, and the device arrays that their addresses are of."""

    def __init__(self, c: int, p: int) -> None:
        self.targets: list[tuple] = []
        self.terms: list[tuple] = []
        self.pairs: list[tuple] = []
        self._kept: dict[int, torch.Tensor] = {}
        self._shape = (c, p)

    def _address(self, what: torch.Tensor | DeltaBlock) -> int:
        if id(what) not in self._kept:
            array = torch.from_numpy(packed(what)) if isinstance(what, DeltaBlock) else what
            self._kept[id(what)] = array.to(DEVICE).clone()
        return self._kept[id(what)].data_ptr()

    def add(self, dest: int, source: int, terms: list[tuple[float, torch.Tensor | DeltaBlock]]) -> None:
        self.targets.append((dest, source, len(self.terms), len(terms)))
        for coefficient, what in terms:
            row = -1
            if isinstance(what, DeltaBlock):
                row = len(self.pairs)
                self.pairs.append((self._address(what), source, -what.eps if what.norm1 else what.eps))
            self.terms.append((self._address(what), coefficient, row))

    def run(self, h: torch.Tensor, temb: torch.Tensor, *, norm: bool = True) -> list[torch.Tensor]:
        """Launches; returns the scratch buffers."""
        targets = words(self.targets, TARGET)
        terms = words(self.terms, TERM)
        if not self.pairs:
            inject.launch(h, targets, terms)
            return []
        scratch = [guarded(torch.full((len(self.pairs), *self._shape), NAN)) for _ in range(1 + norm)]
        pairs = words(self.pairs, PAIR)
        inject.launch(
            h, targets, terms, pairs=pairs, temb=temb.to(DEVICE), u=scratch[0], v=scratch[-1] if norm else None
        )
        return scratch


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


TABLE = [
    # channels, positions, E, type, rows: the kinds of each sample's terms (t: table, d, i: blocks of the two layouts);
    # upper case: symmetric, in place
    (32, 16, 24, "fp32", "t d i"),
    (32, 64, 40, "fp16", "ttd I"),
    (32, 64, 40, "fp16", "di T"),
    (24, 49, 17, "fp32", "td i T"),
    (24, 49, 17, "fp16", "dit"),
    (96, 64, 300, "fp32", "d D"),
    (96, 25, 64, "fp16", "i tt"),
    (64, 256, 32, "fp16", "t d"),
    (128, 4, 48, "fp32", "D i"),
    (6, 9, 5, "fp32", "d i"),
    (3, 2, 4, "fp32", "d t I"),
    (1, 7, 1, "fp16", "t T"),
    (8, 1024, 16, "fp32", "i d"),
    (544, 2, 8, "fp32", "d"),
]


@pytest.mark.parametrize(("c", "p", "e", "dtype", "rows"), TABLE)
def test_against_pytorch(c: int, p: int, e: int, dtype: str, rows: str) -> None:
    """Each sample with attributes of its own; the first sample has none, and stays as it was."""
    rng = torch.Generator().manual_seed(c * p)
    kinds = rows.split()
    n = 1 + len(kinds)
    m = n + sum(k.islower() for k in kinds)
    h = torch.full((m, c, p), NAN)
    h[:n] = torch.randn(n, c, p, generator=rng) + 0.3
    h, temb = h.to(DTYPES[dtype]), torch.randn(n, e, generator=rng).to(DTYPES[dtype])
    made = {"d": make_block(c, e, 1, improved=False), "i": make_block(c, e, 2, improved=True)}
    targets, extra, stage = [], n, Stage(c, p)
    for sample, kind in enumerate(kinds, start=1):
        terms = [
            (0.7 - 0.4 * i, torch.randn(c, p, generator=rng) if k == "t" else made[k])
            for i, k in enumerate(kind.lower())
        ]
        targets.append((sample if kind.isupper() else extra, sample, terms))
        extra += kind.islower()
        stage.add(*targets[-1])
    expected = inject.reference(h, temb, targets)
    found = guarded(h)
    scratch = stage.run(found, temb)
    assert intact(found, *scratch)
    for row in range(m):
        if row in {dest for dest, _, _ in targets}:
            assert relative(found[row].cpu(), expected[row]) <= TOLERANCE + ROUNDING[dtype], row
        else:
            assert torch.equal(found[row].cpu(), h[row]), row
    if scratch:  # v is of the improved layout's pairs alone
        improved = [bool(pair[2] < 0) for pair in stage.pairs]
        assert scratch[1].isfinite().all(dim=(1, 2)).tolist() == improved and scratch[0].isfinite().all()


@pytest.mark.parametrize("e", [24, 31])
def test_the_ddpm_layout_needs_two_launches(e: int) -> None:
    """Without v, and so without `block_norm`."""
    block, h, temb = make_block(32, e, 3, improved=False), torch.randn(2, 32, 16), torch.randn(1, e)
    stage, found = Stage(32, 16), guarded(h)
    stage.add(1, 0, [(1.0, block)])
    stage.run(found, temb, norm=False)
    assert relative(found[1].cpu(), inject.reference(h, temb, [(1, 0, [(1.0, block)])])[1]) <= TOLERANCE


def test_against_the_cpu_executors_injection() -> None:
    """Different attributes, strengths, timesteps and scales for each sample, in one launch of each kernel."""
    n, c, size, e = 4, 32, 5, 20
    rng = np.random.default_rng(0)
    h, temb = (rng.standard_normal(shape).astype(np.float32) for shape in [(n, c, size, size), (n, e)])
    t, scale = np.array([10, 400, 401, 999], np.int32), np.array([1.0, 2.0, 0.25, -1.0], np.float32)
    table = rng.standard_normal((3, c, size, size)).astype(np.float32)
    timesteps = np.array([0, 401, 700])
    attribute = {
        "table": DeltaTable(timesteps, table, None, Branch.ASYMMETRIC),
        "ddpm": make_block(c, e, 4, improved=False),
        "improved": make_block(c, e, 5, improved=True),
    }
    edits = [
        {"table": 1.0},
        {"ddpm": 0.5, "improved": -1.5},
        {"improved": 1.0, "table": -0.2, "ddpm": 2.0},
        {"ddpm": 3.0},
    ]
    compiled = [Edit(deltas=tuple((attribute[k], s) for k, s in edit.items())) for edit in edits]
    expected = h + deltas.inject(h, temb, t, scale, compiled)

    stage, nearest = Stage(c, size * size), [0, 1, 1, 2]
    slices = [torch.from_numpy(rows).view(c, -1) for rows in table]
    for i, edit in enumerate(edits):
        what = {**attribute, "table": slices[nearest[i]]}
        stage.add(n + i, i, [(float(scale[i] * np.float32(s)), what[k]) for k, s in edit.items()])
    batch = guarded(torch.from_numpy(np.concatenate([h, np.zeros_like(h)])).view(2 * n, c, -1))
    stage.run(batch, torch.from_numpy(temb))
    for i in range(n):
        assert relative(batch[n + i].cpu(), torch.from_numpy(expected[i]).view(c, -1).double()) <= TOLERANCE
    assert torch.equal(batch[:n].cpu(), torch.from_numpy(h).view(n, c, -1))


@pytest.mark.skipif(NATIVE, reason="counts accesses in the interpreter")
def test_only_targets_are_read_and_written() -> None:
    c, p = 32, 20
    h, stage = torch.randn(6, c, p), Stage(c, p)
    stage.add(4, 1, [(1.0, torch.randn(c, p)), (2.0, torch.randn(c, p))])
    stage.add(3, 3, [(1.0, torch.randn(c, p))])
    with traffic() as account:
        stage.run(h, torch.empty(4, 1))
    assert [account.of("read", row) // (c * p) for row in h] == [0, 1, 0, 1, 0, 0]
    assert [account.of("written", row) // (c * p) for row in h] == [0, 0, 0, 1, 1, 0]
    assert account.total("written") == 2 * c * p
