"""The executor on engines that are formulas: the row, mixed batches, the branches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hspace import samplers
from hspace.batch import Sample
from hspace.deltas import DeltaTable, Edit
from hspace.noise import NoiseStream, normal
from hspace.program import COEFFICIENTS, ROW64, Branch, Program
from hspace.schedule import Schedule, space_timesteps

from ..batches import host, run_all
from ..batches import states as last_states

SHAPE = (3, 4, 4)


class Formula:
    """trunk: h = x's mean over channels, plus t; head: ε = tanh(h + skip). Counts the samples that it evaluates."""

    name, device = "formula", "cpu"

    def __init__(self) -> None:
        self.heads: list[int] = []
        self.trunks: list[int] = []

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if component == "trunk":
            x, t = inputs["x"], inputs["t"].astype(np.float32)
            self.trunks.append(len(x))
            h = x.mean(axis=1, keepdims=True) + t[:, None, None, None] / 1000
            return [h, t[:, None], x]
        assert component == "head"
        self.heads.append(len(inputs["h"]))
        assert len(inputs["h"]) == len(inputs["source"])
        return [np.tanh(inputs["h"] + inputs["skip_0"][inputs["source"]])]


def eps_of(x: np.ndarray, t: int, delta: float = 0.0) -> np.ndarray:
    """The same in float64, for one sample."""
    x = x.astype(np.float64)
    return np.tanh(x.mean(axis=0, keepdims=True) + t / 1000 + delta + x)


def delta(value: float, branch: Branch = Branch.ASYMMETRIC) -> DeltaTable:
    return DeltaTable(np.array([0]), np.full((1, 1, 4, 4), value, np.float32), None, branch)


def random_program(seed: int, rows: int = 5, branch: Branch = Branch.NONE) -> Program:
    """Every coefficient at once: no sampler that anyone has named, and the executor must not mind."""
    rng = np.random.default_rng(seed)
    table = np.zeros(rows, dtype=ROW64)
    for name in COEFFICIENTS:
        table[name] = rng.uniform(-1, 1, rows)
    table["alpha"], table["sigma"] = rng.uniform(0.5, 1, rows), rng.uniform(0.1, 1, rows)
    table["t"] = rng.integers(0, 1000, rows)
    table["clip"], table["draws"] = rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    table["c_noise"] *= table["draws"]
    table["branch"] = rng.choice([Branch.NONE, branch], rows)
    return Program.from_rows(f"random {seed}", table)


def states(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, *SHAPE), dtype=np.float32)


def reference(program: Program, x: np.ndarray, deltas: Mapping[str, float], seed: int, image: int) -> np.ndarray:
    """The design's two formulas, row by row, in float64, for one sample."""
    x_prev, p_prev = x.astype(np.float64), np.zeros(SHAPE)
    x, draw = x.astype(np.float64), 0
    for row in program.rows:
        shift = float(row["edit_scale"]) * sum(deltas.values()) if row["branch"] else 0.0
        eps_edit = eps_of(x, row["t"], shift)
        eps = eps_edit if row["branch"] == Branch.SYMMETRIC else eps_of(x, row["t"])
        p = (x - float(row["sigma"]) * eps_edit) / float(row["alpha"])
        p = np.clip(p, -1, 1) if row["clip"] else p
        if row["clip"] == 2:
            own = np.clip((x - float(row["sigma"]) * eps) / float(row["alpha"]), -1, 1)
            eps = (x - float(row["alpha"]) * own) / float(row["sigma"])
        z = normal(SHAPE, seed, draw=draw, image=image, stream=NoiseStream.STEP) if row["draws"] else 0.0
        draw += int(row["draws"])
        terms = {"c_x": x, "c_x0": p, "c_eps": eps, "c_x_prev": x_prev, "c_x0_prev": p_prev, "c_noise": z}
        x_prev, p_prev, x = x, p, sum(float(row[k]) * v for k, v in terms.items())
    return x


def run(samples: Sequence[Sample], engine: Any = None) -> np.ndarray:
    return last_states(run_all(host(engine or Formula(), SHAPE), samples))


@pytest.mark.parametrize("branch", list(Branch))
@pytest.mark.parametrize("seed", range(6))
def test_the_row_formula(seed: int, branch: Branch) -> None:
    program, x = random_program(seed, branch=branch), states(1, seed)
    edit = Edit(deltas=((delta(0.3, branch), 1.5), (delta(-0.1, branch), 2.0)), branch=branch)
    out = run([Sample(x[0], program, edit=edit, seed=seed, image=4)])
    expected = reference(program, x[0], {"a": 0.3 * 1.5, "b": -0.1 * 2.0}, seed, 4)
    assert np.linalg.norm(out[0] - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_mixed_batch_is_its_samples_one_by_one() -> None:
    """Different programs, lengths, edits and branches in one batch: each sample as if alone, to the last bit."""
    schedule, x = Schedule.linear(), states(6)
    ts = [space_timesteps("asyrp", n, Schedule.linear()) for n in (4, 9, 6)]
    programs = [
        Program.from_rows("a", samplers.ddim(schedule, ts[0])),
        Program.from_rows("b", samplers.edit(schedule, ts[1], t_edit=400, t_boost=200)),
        Program.from_rows("c", samplers.ddim_inversion(schedule, ts[2], clip=True)),
        Program.from_rows("d", samplers.edit(schedule, ts[1], branch=Branch.SYMMETRIC)),
        random_program(3, 7, Branch.ASYMMETRIC),
        random_program(4, 3, Branch.SYMMETRIC),
    ]
    edits = [Edit()] + [Edit(deltas=((delta(0.2 * i), 1.0),)) for i in range(1, 6)]
    samples = [Sample(x[i], programs[i], edit=edits[i], seed=i // 2, image=i) for i in range(6)]
    whole = run(samples)
    for i in range(6):
        assert np.array_equal(whole[i], run([samples[i]])[0]), i


def test_only_samples_with_an_edit_in_their_row_are_doubled() -> None:
    schedule, ts = Schedule.linear(), space_timesteps("asyrp", 4, Schedule.linear())
    rows = samplers.edit(schedule, ts, t_edit=500)
    program, plain = Program.from_rows("edit", rows), Program.from_rows("plain", samplers.ddim(schedule, ts))
    symmetric = Program.from_rows("symmetric", samplers.edit(schedule, ts, branch=Branch.SYMMETRIC))
    edit = Edit(deltas=((delta(1.0), 1.0),))
    engine = Formula()
    programs = [program, plain, program, symmetric]
    edits = [edit, edit, Edit(), Edit(deltas=((delta(1.0, Branch.SYMMETRIC), 1.0),))]
    run([Sample(x, p, edit=e) for x, p, e in zip(states(4), programs, edits, strict=True)], engine)
    assert engine.trunks == [4] * 4
    assert engine.heads == [5, 5, 4, 4]  # one sample has an edit in an asymmetric row, at the two upper timesteps


def test_finished_samples_are_not_evaluated() -> None:
    schedule = Schedule.linear()
    short, long = (
        Program.from_rows("p", samplers.ddim(schedule, space_timesteps("asyrp", n, Schedule.linear()))) for n in (2, 5)
    )
    engine = Formula()
    run([Sample(x, p) for x, p in zip(states(3), [short, long, short], strict=True)], engine)
    assert engine.trunks == [3, 3, 1, 1, 1]


def test_the_callers_arrays_stay_as_they_were() -> None:
    x = states(3)
    before = x.copy()
    run([Sample(x[i], random_program(i, 2 + i)) for i in range(3)])
    assert np.array_equal(x, before)
