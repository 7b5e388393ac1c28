"""Joins and leaves at any moment: a sample's run is its own, whatever it shares a batch with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hspace.batch import Result, Sample
from hspace.deltas import NO_EDIT, DeltaTable, Edit
from hspace.engines.null import NullEngine
from hspace.errors import ArgumentError, Cancelled, EngineError, HspaceError, NotFinite
from hspace.executors import cpu
from hspace.noise import NoiseStream, normal
from hspace.program import COEFFICIENTS, ROW64, Branch, Program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ..batches import run_all
from ..conftest import make_null_bundle

SHAPE, D, H = (3, 8, 8), 6, (32, 4, 4)


def sample(seed: int, kind: str = "any") -> Sample:
    """Every coefficient at once: no sampler that anyone has named. kind: "any", or how it goes wrong."""
    rng = np.random.default_rng(seed)
    table = np.zeros(int(rng.integers(1, 8)), ROW64)
    branch = Branch(int(rng.integers(0, 3)))
    for name in COEFFICIENTS:
        table[name] = rng.uniform(-1, 1, len(table)) * (rng.uniform(size=len(table)) < 0.6)
    table["alpha"], table["sigma"] = rng.uniform(0.5, 1, len(table)), rng.uniform(0.1, 1, len(table))
    table["t"], table["clip"] = rng.integers(0, 1000, len(table)), rng.integers(0, 3, len(table))
    table["draws"], table["branch"] = rng.integers(0, 2, len(table)), rng.choice([Branch.NONE, branch], len(table))
    table["c_noise"] *= table["draws"]
    x, x_prev = rng.standard_normal((2, *SHAPE), dtype=np.float32)
    delta = DeltaTable(np.array([0, 500]), rng.standard_normal((2, *H), dtype=np.float32), None, branch)
    if kind == "state":
        x = np.full(SHAPE, np.inf, np.float32)
        table["c_x"], table["clip"] = 1, 0
    elif kind == "Δh":
        table["branch"], table["edit_scale"], table["clip"], table["c_x0"] = Branch.SYMMETRIC, 1, 0, 1
        delta = DeltaTable(np.array([0]), np.full((1, *H), 3e38, np.float32), None, Branch.SYMMETRIC)
    edit = Edit(deltas=((delta, 2.0),), branch=delta.branch) if branch or kind == "Δh" else NO_EDIT
    program = Program.from_rows(f"random {seed}", table)
    noise = rng.standard_normal((int(table["draws"].sum()), *SHAPE), dtype=np.float32) if rng.integers(0, 2) else None
    z_sem, before = rng.standard_normal(D, dtype=np.float32), x_prev if rng.integers(0, 2) else None
    return Sample(x, program, z_sem, edit, before, int(rng.integers(0, 2**63)), int(rng.integers(0, 2**32)), noise)


class Overflowing(NullEngine):
    """The null engine, whose ε is not finite where h is not."""

    def run(self, component: str, inputs: Any) -> Any:
        outputs = super().run(component, inputs)
        if component == "head":
            broken = ~np.isfinite(inputs["h"]).all(axis=(1, 2, 3))
            outputs[0][broken] = np.nan
        return outputs


@pytest.fixture(scope="module")
def executor(tmp_path_factory: pytest.TempPathFactory) -> cpu.Executor:
    from hspace.bundle import Bundle

    bundle = Bundle(make_null_bundle(tmp_path_factory.mktemp("null") / "b", "diffae"))
    return cpu.Executor(Overflowing(bundle), bundle.manifest.components)


def solo(executor: cpu.Executor, one: Sample) -> Result | HspaceError:
    return run_all(executor, [one])[0]


def same(a: Result | HspaceError, b: Result | HspaceError) -> None:
    """The same states to the last bit, or the same error."""
    if isinstance(a, HspaceError) or isinstance(b, HspaceError):
        assert type(a) is type(b) and str(a) == str(b)
        return
    for got, expected in zip(a, b, strict=True):
        assert (got is None) == (expected is None)
        assert got is None or np.array_equal(got, expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_samples_join_and_leave_at_any_moment(executor: cpu.Executor, data: st.DataObject) -> None:
    """Each result equals its solo run, whoever came, finished, failed or was cancelled beside it."""
    capacity = data.draw(st.integers(1, 5))
    kinds = data.draw(st.lists(st.sampled_from(["any"] * 5 + ["state", "Δh", "cancelled"]), min_size=1, max_size=9))
    first = data.draw(st.integers(0, 10**6))
    waiting = [(kind, sample(first + i, kind)) for i, kind in enumerate(kinds)]
    doomed: dict[int, int] = {}
    inside: dict[int, tuple[str, Sample]] = {}
    with executor.batch("image", capacity) as batch:
        while waiting or len(batch):
            while waiting and len(batch) < capacity and (not len(batch) or data.draw(st.booleans())):
                kind, one = waiting.pop()
                slot = batch.join(one)
                assert slot not in inside
                inside[slot] = kind, one
                if kind == "cancelled":
                    doomed[slot] = data.draw(st.integers(0, len(one.program) - 1))
            for slot in [slot for slot, left in doomed.items() if left == 0]:
                del doomed[slot]
                _, one = inside.pop(slot)
                with pytest.raises(Cancelled, match=rf"of {len(one.program)}$"):
                    batch.leave(slot)
            doomed = {slot: left - 1 for slot, left in doomed.items()}
            for slot in batch.step():
                kind, one = inside.pop(slot)
                try:
                    result: Result | HspaceError = batch.leave(slot)
                except HspaceError as e:
                    result = e
                same(result, solo(executor, one))
                if kind == "state":
                    assert isinstance(result, NotFinite)
    assert not inside


def test_what_overflows_in_h_is_one_samples(executor: cpu.Executor) -> None:
    mixed = [sample(1), sample(2, "Δh"), sample(3), sample(4, "state"), sample(5)]
    results = run_all(executor, mixed)
    assert [isinstance(r, NotFinite) for r in results] == [False, True, False, True, False]
    for one, result in zip(mixed, results, strict=True):
        same(result, solo(executor, one))


def test_draws_are_the_samples_own(executor: cpu.Executor) -> None:
    """A row that gives nothing but its draw: to the last bit, by seed, image and number, whoever else draws."""
    rows = np.zeros(3, ROW64)
    rows["alpha"], rows["c_noise"], rows["draws"] = 1, 1, 1
    program, rng = Program.from_rows("draws", rows), np.random.default_rng(0)
    seeds = [(int(rng.integers(0, 2**64, dtype=np.uint64)), int(rng.integers(0, 2**32))) for _ in range(6)]
    z_sem = np.zeros(D, np.float32)
    samples = [Sample(np.zeros(SHAPE, np.float32), program, z_sem, seed=s, image=i) for s, i in seeds]
    with executor.batch("image", 3) as batch:
        late = samples[3:]
        which = {batch.join(one): one for one in samples[:3]}
        while which:
            for slot in batch.step():
                one = which.pop(slot)
                expected = normal(SHAPE, one.seed, draw=2, image=one.image, stream=NoiseStream.STEP)
                np.testing.assert_array_equal(batch.leave(slot).x, expected)
                if late:
                    another = late.pop()
                    which[batch.join(another)] = another


def test_watchers_see_what_each_step_moved(executor: cpu.Executor) -> None:
    """Slots, rows of how many, t, x before and P, of samples that came at different times; x is not written over."""
    a, b = sample(10), sample(11)
    a = Sample(a.x, Program.from_rows("a", np.resize(a.program.rows.astype(ROW64), 5)), a.z_sem)
    b = Sample(b.x, Program.from_rows("b", np.resize(b.program.rows.astype(ROW64), 2)), b.z_sem)
    seen = []
    with executor.batch("image", 4) as batch:
        first = batch.join(a)
        batch.step(seen.append)
        second = batch.join(b)
        while len(batch):
            for slot in batch.step(seen.append):
                batch.leave(slot)
    assert [m.slot.tolist() for m in seen] == [[first], [first, second], [first, second], [first], [first]]
    assert [m.row.tolist() for m in seen] == [[0], [1, 0], [2, 1], [3], [4]]
    assert [m.rows.tolist() for m in seen] == [[5], [5, 2], [5, 2], [5], [5]]
    for one, at in ((a, lambda m: m.slot == first), (b, lambda m: m.slot == second)):
        alone: list[Any] = []
        run_all(executor, [one], observe=alone.append)
        own = [m for m in seen if at(m).any()]
        assert len(own) == len(alone)
        for m, expected in zip(own, alone, strict=True):
            i = int(np.flatnonzero(at(m))[0])
            for name in ("t", "x", "x_0", "h"):
                np.testing.assert_array_equal(getattr(m, name)[i], getattr(expected, name)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 4, 4), np.float32)}, r"x: found float32 \[3, 4, 4\], expected float32 \[3, 8, 8\]"),
        ({"x": np.zeros(SHAPE)}, r"x: found float64"),
        ({"z_sem": None}, r"z_sem: found none, expected float32 \[6\]"),
        ({"z_sem": np.zeros(5, np.float32)}, r"z_sem: found float32 \[5\]"),
        ({"x_prev": np.zeros((1, *SHAPE), np.float32)}, r"x_prev: found float32 \[1, 3, 8, 8\]"),
        ({"noise": np.zeros((99, *SHAPE), np.float32)}, r"noise: found float32 \[99, 3, 8, 8\], expected"),
        ({"seed": -1}, r"seed: found -1"),
        ({"image": 2**32}, r"image: found 4294967296"),
    ],
)
def test_who_cannot_join_changes_nothing(executor: cpu.Executor, change: dict[str, Any], message: str) -> None:
    good, bad = sample(20), sample(21)
    bad.noise = None
    for name, value in change.items():
        setattr(bad, name, value)
    with executor.batch("image", 2) as batch:
        slot = batch.join(good)
        with pytest.raises(ArgumentError, match=message):
            batch.join(bad)
        assert len(batch) == 1
        while slot not in batch.step():
            pass
        same(batch.leave(slot), solo(executor, good))


def test_slots(executor: cpu.Executor) -> None:
    with executor.batch("image", 2) as batch:
        assert batch.step() == [] and len(batch) == 0
        slots = [batch.join(sample(i)) for i in (30, 31)]
        assert sorted(slots) == [0, 1] and len(batch) == 2
        with pytest.raises(ArgumentError, match="all of its 2 slots are taken"):
            batch.join(sample(32))
        for slot in (-1, 2):
            with pytest.raises(ArgumentError, match=f"slot: found {slot}"):
                batch.leave(slot)
        with pytest.raises(Cancelled, match=r"cancelled at row 0 of"):
            batch.leave(slots[0])
        with pytest.raises(ArgumentError, match="expected one that is taken"):
            batch.leave(slots[0])
        assert batch.join(sample(33)) == slots[0]


def test_an_engine_that_fails_leaves_the_samples_where_they_were(executor: cpu.Executor) -> None:
    """So the step can be tried again."""
    one, engine = sample(40), executor.engine

    class Failing:
        fails = True

        def run(self, component: str, inputs: Any) -> Any:
            if self.fails and component == "head":
                raise EngineError("no memory")
            return engine.run(component, inputs)

    failing = Failing()
    with cpu.Executor(failing, executor._components).batch("image", 1) as batch:  # type: ignore[arg-type]
        slot = batch.join(one)
        with pytest.raises(EngineError, match="no memory"):
            batch.step()
        failing.fails = False
        while slot not in batch.step():
            pass
        same(batch.leave(slot), solo(executor, one))


def test_a_result_goes_where_it_is_wanted(executor: cpu.Executor) -> None:
    one, out = sample(50), np.zeros((2, *SHAPE), np.float32)
    with executor.batch("image", 1) as batch:
        slot = batch.join(one)
        while slot not in batch.step():
            pass
        result = batch.leave(slot, out[1])
    expected = solo(executor, one)
    assert isinstance(expected, Result)
    assert np.array_equal(out[1], expected.x) and not out[0].any() and np.shares_memory(result.x, out)
