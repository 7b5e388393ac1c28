"""Attributes against their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hspace.deltas import DeltaBlock, DeltaTable, Edit, ZDirection, group_norm, inject, silu
from hspace.edits import compile_edit
from hspace.program import Branch

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, dtype=np.float32)


def block(c: int, e: int, norm1: bool) -> DeltaBlock:
    pair = (normal(c), normal(c))
    return DeltaBlock(
        pair if norm1 else None,
        (normal(c, c), normal(c)),
        (normal(c, e), normal(c)),
        pair,
        (normal(c, c), normal(c)),
        1e-5,
        4,
    )


def test_z_direction() -> None:
    weight, mean, std = normal(64), normal(64), np.abs(normal(64)) + 0.1
    direction, z = ZDirection(weight, 0.25, mean, std), normal(64)
    step = -0.3 * math.sqrt(64) / np.linalg.norm(weight.astype(float))
    expected = ((z.astype(float) - mean) / std + step * weight) * std + mean
    assert np.allclose(direction.move(z, -0.3), expected, atol=1e-5)
    assert np.allclose(direction.logit(z[None]), ((z - mean) / std) @ weight + 0.25, atol=1e-4)
    gained = direction.logit(direction.move(z, 1.0)[None]) - direction.logit(z[None])
    assert math.isclose(gained[0], math.sqrt(64) * np.linalg.norm(weight), rel_tol=1e-4)


def test_group_norm_and_silu() -> None:
    x, weight, bias = normal(2, 64, 3, 3), normal(64), normal(64)
    groups = x.astype(float).reshape(2, 32, -1)
    expected = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    expected = expected.reshape(x.shape) * weight[:, None, None] + bias[:, None, None]
    assert np.allclose(group_norm(x, weight, bias, 1e-5), expected, atol=1e-4)
    assert np.allclose(silu(np.array([-200, 0, 2, 200], np.float32)), [0, 0, 2 / (1 + math.exp(-2)), 200])


@pytest.mark.parametrize("norm1", [False, True], ids=["ddpm", "improved"])
def test_delta_blocks_agree_with_pytorch(norm1: bool) -> None:
    torch = pytest.importorskip("torch")
    from hspace_export.models.delta import DdpmDelta, ImprovedDelta

    kind = ImprovedDelta if norm1 else DdpmDelta
    module = kind(64, 32).eval()
    state = {k: v.numpy() for k, v in module.state_dict().items()}
    parts = {
        ours: (state[f"{theirs}.weight"].reshape(state[f"{theirs}.weight"].shape[:2]), state[f"{theirs}.bias"])
        for ours, theirs in kind.parts.items()
    }
    attribute = DeltaBlock(**{"norm1": None, **parts}, eps=kind.eps, n_train=40)
    rng = np.random.default_rng()  # fresh inputs every time
    h, temb = (rng.standard_normal(s, dtype=np.float32) for s in ((3, 64, 4, 4), (3, 32)))
    with torch.no_grad():
        expected = module(torch.from_numpy(h), torch.from_numpy(temb)).numpy()
    found = attribute.delta_h(h, temb, np.zeros(3, np.int32))
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_tables_take_the_nearest_timestep() -> None:
    table = DeltaTable(
        np.array([0, 300, 700]), np.arange(3, dtype=np.float32)[:, None, None, None], None, Branch.SYMMETRIC
    )
    t = np.array([0, 149, 150, 151, 500, 501, 999], np.int32)
    assert table.delta_h(normal(7, 1, 1, 1), normal(7, 1), t)[:, 0, 0, 0].tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_injection_of_different_edits_in_one_batch() -> None:
    a, b = block(32, 5, False), block(32, 5, True)
    h, temb, t = normal(4, 32, 2, 2), normal(4, 5), np.array([1, 2, 3, 4], np.int32)
    scale = np.array([1, 2, 3, 4], np.float32)
    edits = [
        Edit(deltas=((a, 0.5),)),
        Edit(deltas=((a, -1.0), (b, 2.0))),
        Edit(),
        Edit(deltas=((b, 1.0),)),
    ]
    found = inject(h, temb, t, scale, edits)
    for i, edit in enumerate(edits):
        one = slice(i, i + 1)
        expected = sum(
            (s * scale[i] * d.delta_h(h[one], temb[one], t[one])[0] for d, s in edit.deltas), np.zeros_like(h[i])
        )
        assert np.allclose(found[i], expected, rtol=1e-4, atol=1e-4)


def test_each_attribute_is_evaluated_once_for_all_its_samples() -> None:
    calls = []

    class Counted:
        branch, n_train = Branch.ASYMMETRIC, None

        def delta_h(self, h: np.ndarray, temb: np.ndarray, t: np.ndarray) -> np.ndarray:
            calls.append(len(h))
            return h

    one = Counted()
    inject(
        normal(3, 1, 1, 1),
        normal(3, 1),
        np.zeros(3, np.int32),
        np.ones(3, np.float32),
        [Edit(deltas=((one, 1.0),))] * 3,
    )
    assert calls == [3]


def test_compiled_edits() -> None:
    a, b = block(32, 5, False), DeltaTable(np.array([0]), normal(1, 32, 2, 2), 8, Branch.ASYMMETRIC)
    z = ZDirection(normal(4), 0.0, normal(4), np.ones(4, np.float32))
    edit = compile_edit({"a": 2, "b": np.float32(0.5), "z": -1.0, "off": 0.0}, {"a": a, "b": b, "z": z, "off": a}, 10)
    assert edit.branch == Branch.ASYMMETRIC and edit.n_train == 4
    assert edit.directions == ((z, -1.0),) and edit.deltas == ((a, 2.0), (b, 1.0))
