"""The row formula: every combination of terms against float64, the CPU executor on random programs, and the traffic."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

import numpy as np
import pytest
import torch
from hspace.batch import Moved, Sample
from hspace.cuda.steps import RECORD
from hspace.deltas import DeltaTable, Edit
from hspace.program import Branch
from hspace_kernels import linear_step

from ..batches import host
from ..unit.test_executor import random_program
from .helpers import DEVICE, DTYPES, NATIVE, ROUNDING, guarded, intact, traffic, words

TOLERANCE = 2e-6  # relative to 1 + |x|, of float32 results: sums of six terms, with noise to 1e-6
NAN = float("nan")


def make_records(n: int, rng: np.random.Generator) -> np.ndarray:
    """Rows with every coefficient; each sample is its own ε̃, takes generated noise, and has a row left."""
    records = np.zeros(n, RECORD)
    for name in ("c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev", "c_noise"):
        records[name] = rng.uniform(0.1, 1, n) * rng.choice([-1, 1], n)
    records["alpha"], records["sigma"] = rng.uniform(0.3, 1, n), rng.uniform(0.1, 1, n)
    records["t"], records["second"], records["z_row"] = rng.integers(0, 1000, n), np.arange(n), -1
    records["draw"], records["image"] = rng.integers(0, 2**32, (2, n))
    records["seed_low"], records["seed_high"] = rng.integers(0, 2**32, (2, n))
    return records


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


def close(found: torch.Tensor, expected: torch.Tensor, rounding: float = 0.0) -> bool:
    error = (found.cpu().double() - expected.cpu()).abs()
    return bool((error <= (TOLERANCE + rounding) * (1 + expected.cpu().abs())).all())


TABLE = [
    # elements, ε rows' length (None: the same), type, buffers beside x
    (192, None, "fp16", "x_in x_prev p"),
    (3 * 8 * 8, 2 * 3 * 8 * 8, "fp16", "x_in p"),
    (512, None, "fp16", "x_in x_prev p"),
    (1, None, "fp32", "x_in x_prev p"),
    (49, 98, "fp16", "x_in x_prev p"),
    (3 * 17 * 13, None, "fp16", "x_in x_prev"),
    (3 * 17 * 13, 6 * 17 * 13, "fp32", "x_prev p"),
    (516, 1032, "fp32", "x_in x_prev p"),
    (1028, 1029, "fp16", "x_in x_prev p"),
    (2052, None, "fp16", "x_in"),
    (1500, None, "fp32", ""),
]


@pytest.mark.parametrize(("elements", "stride", "dtype", "buffers"), TABLE)
def test_every_combination_of_terms(elements: int, stride: int | None, dtype: str, buffers: str) -> None:
    """A sample for each: clip 0, 1, 2 × x_prev × P_prev × noise (none, generated, given) × ε̃; the last has finished."""
    rng = np.random.default_rng(elements)
    has_prev, has_p = "x_prev" in buffers, "p" in buffers.split()
    combinations = list(product((0, 1, 2), {0, int(has_prev)}, {0, int(has_p)}, (0, 1, 2), (0, 1)))
    combinations = [c for i, c in enumerate(combinations) if elements < 256 or i % 3 == elements % 3]
    n = len(combinations) + 1
    records = make_records(n, rng)
    for i, (clip, with_prev, with_p_prev, noise, second) in enumerate(combinations):
        records["clip"][i] = clip
        records["c_x_prev"][i] *= with_prev
        records["c_x0_prev"][i] *= with_p_prev
        records["c_noise"][i] *= noise > 0
        records["z_row"][i] = rng.integers(4) if noise == 2 else -1
        records["second"][i] = n + i if second else i
    records["t"][-1] = -1
    x, p, x_prev = (randn(n, elements, seed=s) for s in range(3))
    z, eps = randn(4, elements, seed=3), randn(2 * n, stride or elements, seed=4).to(DTYPES[dtype])
    eps[n - 1], x[n - 1], eps[:, elements:] = NAN, NAN, NAN  # the finished sample's, and what sigma was learned for
    given = {"x_prev": x_prev if has_prev else None, "p": p if has_p else None, "z": z}
    expected, expected_p = linear_step.reference(x, eps, records, **given)

    on_device = {name: None if value is None else guarded(value) for name, value in given.items()}
    state, x_in = guarded(x), guarded(torch.zeros(n, elements, dtype=DTYPES[dtype])) if "x_in" in buffers else None
    linear_step.launch(state, eps.to(DEVICE), words(records, RECORD), x_in=x_in, **on_device)

    assert close(state[:-1], expected[:-1])
    assert state[-1].isnan().all()
    written = [state, on_device["z"]]
    if x_in is not None:
        assert close(x_in[:-1], state[:-1].double(), ROUNDING[dtype]) and not x_in[-1].any()
        written.append(x_in)
    if has_prev:
        assert torch.equal(on_device["x_prev"].cpu(), torch.cat([x[:-1], x_prev[-1:]]))
        written.append(on_device["x_prev"])
    if has_p:
        assert close(on_device["p"], expected_p)
        written.append(on_device["p"])
    assert intact(*written)


class RandomHead:
    """Trunk and head of no network: ε is noise, and kept for the kernel."""

    name, device = "random", "cpu"

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self.eps, self.source = np.empty(0), np.empty(0)

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if component == "trunk":
            n = len(inputs["x"])
            return [np.zeros((n, 1, 2, 2), np.float32), np.zeros((n, 1), np.float32), inputs["x"]]
        self.source = inputs["source"]
        self.eps = self._rng.standard_normal((len(self.source), *inputs["skip_0"].shape[1:]), dtype=np.float32)
        return [self.eps]


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_the_cpu_executor_on_random_programs(n: int, given: bool) -> None:
    """Step by step, samples with programs of their own, until the last has finished."""
    shape, seed = (3, 5, 4 + n), 2**33 + n
    elements = int(np.prod(shape))
    programs = [random_program(10 * n + i, rows=2 + i % 3, branch=Branch.ASYMMETRIC) for i in range(n)]
    delta = DeltaTable(np.array([0]), np.ones((1, 1, 2, 2), np.float32), None, Branch.ASYMMETRIC)
    edits = [Edit(deltas=((delta, 1.0),), branch=Branch.ASYMMETRIC) if i % 2 == 0 else Edit() for i in range(n)]
    draws = randn(4, n, *shape, seed=n).numpy() if given else None
    images = np.arange(n) if given else np.arange(n) + 2**31
    engine = RandomHead(n)
    start = randn(n, *shape, seed=9)
    x, p = guarded(start.view(n, -1)), guarded(torch.zeros(n, elements))
    keeps = any(program.rows["c_x_prev"].any() for program in programs)
    x_prev = guarded(start.view(n, -1)) if keeps else None
    z = None if draws is None else torch.from_numpy(draws).view(-1, elements).to(DEVICE)
    seen: list[Moved] = []
    with host(engine, shape).batch("image", n) as batch:
        for i, (program, edit) in enumerate(zip(programs, edits, strict=True)):
            own = None if draws is None else draws[: int(program.rows["draws"].sum()), i]
            sample = Sample(start[i].numpy(), program, edit=edit, seed=seed, image=int(images[i]), noise=own)
            assert batch.join(sample) == i
        for _ in range(max(map(len, programs))):
            batch.step(seen.append)
            active, records = seen[-1].slot, np.zeros(n, RECORD)
            records["t"], records["second"] = -1, np.arange(n)
            for slot, number in zip(active, seen[-1].row, strict=True):
                row, record = programs[slot].rows[number], records[slot]
                for name in ("alpha", "sigma", "c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev", "c_noise", "t", "clip"):
                    record[name] = row[name]
                record["draw"], record["image"] = programs[slot].draws[number], images[slot]
                record["seed_low"], record["seed_high"] = seed & 0xFFFFFFFF, seed >> 32
                record["z_row"] = record["draw"] * n + slot if given else -1
            extra = len(engine.eps) - len(active)
            eps = torch.full((n + extra, elements), NAN)
            eps[active] = torch.from_numpy(engine.eps[: len(active)]).reshape(-1, elements)
            eps[n:] = torch.from_numpy(engine.eps[len(active) :]).reshape(-1, elements)
            records["second"][active[engine.source[len(active) :]]] = n + np.arange(extra)
            linear_step.launch(x, eps.to(DEVICE), words(records, RECORD), x_prev=x_prev, p=p, z=z)
            assert close(x, torch.from_numpy(batch._x).view(n, -1).double())
            assert close(p, torch.from_numpy(batch._x_0).view(n, -1).double())
            if x_prev is not None:
                assert close(x_prev, torch.from_numpy(batch._x_prev).view(n, -1).double())
    assert intact(x, p)


# what a row needs: coefficients that are not zero, buffers beside x → what is read of (x, ε, ε̃, x_prev, P_prev)
NEEDS = [
    ("c_x0 c_eps", "x_in", "x eps eps_edit"),
    ("c_x c_x0", "x_in", "x eps_edit"),
    ("c_x c_eps", "x_in", "x eps"),
    ("c_eps", "x_in", "eps"),
    ("c_x", "", "x"),
    ("c_x_prev c_x", "x_prev", "x x_prev"),
    ("c_x_prev", "x_prev", "x x_prev"),  # x goes to x_prev
    ("c_x0_prev", "p", "x eps_edit p"),  # P goes to p
    ("c_x0_prev c_x_prev c_x0 c_eps c_x", "x_in x_prev p", "x eps eps_edit x_prev p"),
]


@pytest.mark.parametrize(("terms", "buffers", "needed"), NEEDS)
@pytest.mark.parametrize("elements", [64, 63])
def test_terms_without_a_coefficient_cost_no_traffic(terms: str, buffers: str, needed: str, elements: int) -> None:
    """What a row does not need may be NaN; and in the interpreter, where accesses can be counted, it is not touched."""
    records = make_records(1, np.random.default_rng(0))
    for name in ("c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev", "c_noise"):
        records[name] *= name in terms.split()
    records["second"] = 1
    x, x_prev, p, z = (randn(1, elements, seed=i).to(DEVICE) for i in range(4))
    eps = randn(2, elements, seed=4).half().to(DEVICE)
    x_in = torch.zeros(1, elements, dtype=torch.float16, device=DEVICE)
    places = {"x": x, "eps": eps[:1], "eps_edit": eps[1:], "x_prev": x_prev, "p": p, "z": z}
    for name in set(places) - set(needed.split()):
        places[name].fill_(NAN)
    known = {name: torch.nan_to_num(a.cpu()) for name, a in {"x": x, "eps": eps, "x_prev": x_prev, "p": p}.items()}
    expected, _ = linear_step.reference(records=records, **known)
    beside = {name: {"x_in": x_in, "x_prev": x_prev, "p": p}[name] for name in buffers.split()}
    arguments = (x, eps, words(records, RECORD))
    if NATIVE:
        linear_step.launch(*arguments, z=z, **beside)
    else:
        with traffic() as account:
            linear_step.launch(*arguments, z=z, **beside)
        for name, place in places.items():
            assert account.of("read", place) == elements * (name in needed.split()), name
        written = [x, *beside.values()]
        assert [account.of("written", place) for place in written] == [elements] * len(written)
        assert account.total("written") == elements * len(written)
    assert close(x, expected)


@pytest.mark.skipif(NATIVE, reason="counts accesses in the interpreter")
@pytest.mark.parametrize("given", [False, True])
def test_noise_costs_no_traffic_unless_it_is_given(given: bool) -> None:
    records = make_records(2, np.random.default_rng(0))
    records["z_row"] = [0, 1] if given else -1
    x, eps, z = (randn(2, 100, seed=i) for i in range(3))
    with traffic() as account:
        linear_step.launch(x, eps, words(records, RECORD), x_prev=x.clone(), p=x.clone(), z=z)
    assert account.of("read", z) == (200 if given else 0)


@pytest.mark.skipif(NATIVE, reason="counts accesses in the interpreter")
def test_a_finished_sample_is_not_touched() -> None:
    records = make_records(3, np.random.default_rng(0))
    records["t"][1] = -1
    x, eps, x_prev, p = (randn(3, 100, seed=i) for i in range(4))
    with traffic() as account:
        linear_step.launch(x, eps, words(records, RECORD), x_prev=x_prev, p=p)
    for kind, places in {"read": (x, eps, x_prev, p), "written": (x, x_prev, p)}.items():
        assert [account.of(kind, place[i]) for place in places for i in range(3)] == [100, 0, 100] * len(places)


def test_what_is_not_finite_is_not_clamped_away() -> None:
    """An overflow of the network stays to be found, in the terms that there are, and nowhere else."""
    records = make_records(2, np.random.default_rng(0))
    records["clip"], records["c_eps"][1], records["c_noise"] = 1, 0, 0
    x, eps = torch.zeros(2, 4, device=DEVICE), torch.tensor([[NAN, 1, 1, 1], [float("inf"), 1, 1, 1]], device=DEVICE)
    linear_step.launch(x, eps, words(records, RECORD), x_prev=x.clone(), p=x.clone())
    assert x.isfinite().tolist() == [[False, True, True, True], [True, True, True, True]]
