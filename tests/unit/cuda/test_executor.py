"""The CUDA executor on a fake driver does what the CPU executor does, for anything that a batch can hold."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hspace.batch import Batch, Moved, Network, Result, Sample
from hspace.cuda.arrays import DeviceArray
from hspace.cuda.driver import OutOfMemory
from hspace.cuda.ring import Ring
from hspace.deltas import Content, Delta, Edit
from hspace.errors import ArgumentError, Cancelled, EngineError, HspaceError, NotFinite
from hspace.program import Branch, Program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.batches import run_all
from tests.batches import states as states_of
from tests.conftest import relative_error

from .conftest import CHANNELS, SIDE, D, Pair, block, random_program, states, table
from .fake import CUresult

MakePair = Callable[..., Pair]
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3}
ZEROS = np.zeros(D, np.float32)


def same(a: Result | HspaceError, b: Result | HspaceError, tolerance: float) -> None:
    assert isinstance(a, Result) and isinstance(b, Result), (a, b)
    for got, expected in zip(a, b, strict=True):
        assert (got is None) == (expected is None)
        if got is not None and expected is not None:  # a random program may end near zero
            size = max(float(np.linalg.norm(expected)), 0.1 * expected.size**0.5)
            assert np.linalg.norm(got.astype(np.float64) - expected) <= tolerance * size


def compare(pair: Pair, samples: list[Sample], tolerance: float = 1e-5, network: Network = "image") -> None:
    results = (run_all(executor, samples, network) for executor in (pair.executor, pair.host))
    for a, b in zip(*results, strict=True):
        same(a, b, tolerance)


def content(rng: np.random.Generator) -> Content:
    whole = rng.standard_normal((3, CHANNELS, SIDE, SIDE), dtype=np.float32)
    return Content(np.array([0, 300, 700]), whole, 0.6, rng.uniform(size=(SIDE, SIDE)).astype(np.float32))


def random_edit(rng: np.random.Generator, branch: Branch, deltas: list[Delta]) -> Edit:
    chosen = rng.choice(len(deltas), rng.integers(0, len(deltas) + 1), replace=False)
    return Edit(deltas=tuple((deltas[i], float(rng.uniform(-0.5, 0.5))) for i in chosen), branch=branch)


def random_sample(rng: np.random.Generator, family: str, deltas: list[Delta]) -> Sample:
    """Of any length and branch, with noise of either kind, with and without an x_prev of its own."""
    branch = Branch(int(rng.integers(0, 3)))
    program = random_program(rng, int(rng.integers(1, 7)), branch)
    x, x_prev = rng.standard_normal((2, 3, 8, 8), dtype=np.float32)
    noise = rng.standard_normal((int(program.rows["draws"].sum()), 3, 8, 8), dtype=np.float32)
    return Sample(
        x,
        program,
        rng.standard_normal(D, dtype=np.float32) if family == "diffae" else None,
        random_edit(rng, branch, deltas),
        x_prev if rng.uniform() < 0.3 else None,
        int(rng.integers(0, 2**63)) * 2 + 1,
        int(rng.integers(0, 2**32)),
        noise if rng.uniform() < 0.3 else None,
    )


def plain(pair: Pair, n: int, rows: int = 3, seed: int = 0) -> list[Sample]:
    program = random_program(np.random.default_rng(seed), rows)
    return [Sample(x, program, ZEROS, image=i) for i, x in enumerate(states(n))]


# --- samples of all kinds -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("seed", range(8))
def test_random_batches(make_pair: MakePair, seed: int, precision: str) -> None:
    """Tables and blocks of both layouts mixed, batch after batch: nothing of the last one is left."""
    rng = np.random.default_rng(seed)
    family = ("diffae", "asyrp")[seed % 2]
    pair = make_pair(family, precision)
    deltas: list[Delta] = [table(rng), table(rng), block(rng), block(rng, improved=True)]
    for _ in range(3):
        samples = [random_sample(rng, family, deltas) for _ in range(int(rng.integers(1, 6)))]
        compare(pair, samples, TOLERANCE[precision])


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32 - 1))
def test_joining_and_leaving_at_any_time(make_pair: MakePair, precision: str, seed: int) -> None:
    """Each result is that of its solo run; cancelled samples, and those that are not finite, disturb nobody."""
    rng = np.random.default_rng(seed)
    family = ("diffae", "asyrp")[seed % 2]
    pair = make_pair(family, precision)
    deltas: list[Delta] = [table(rng), block(rng), block(rng, improved=True), content(rng)]
    waiting = [random_sample(rng, family, deltas) for _ in range(10)]
    waiting[3].x = np.full_like(waiting[3].x, np.nan)
    inside: dict[int, Sample] = {}
    fates: list[tuple[Sample, Result | HspaceError]] = []

    def leave(batch: Batch, slot: int) -> None:
        sample = inside.pop(slot)
        try:
            fates.append((sample, batch.leave(slot)))
        except HspaceError as e:
            fates.append((sample, e))

    with pair.executor.batch("image", 3) as batch:
        assert batch.capacity == 4
        while waiting or inside:
            while waiting and len(batch) < 4 and (not inside or rng.uniform() < 0.6):
                sample = waiting.pop()
                inside[batch.join(sample)] = sample
            finished = batch.step((lambda moved: None) if rng.uniform() < 0.2 else None)
            for slot in finished:
                leave(batch, slot)
            if inside and rng.uniform() < 0.1:
                leave(batch, int(rng.choice(sorted(inside))))
        assert len(batch) == 0
    assert len(fates) == 10
    for sample, fate in fates:
        if isinstance(fate, Cancelled):
            continue
        if np.isnan(sample.x).any():
            assert isinstance(fate, NotFinite)
            continue
        (solo,) = run_all(pair.host, [sample])
        same(fate, solo, TOLERANCE[precision])


def test_draws_to_the_last_bit(pair: Pair) -> None:
    """Rows that are nothing but noise: what a sample draws depends on its seed, number and row alone."""
    program = random_program(np.random.default_rng(0), 2)
    rows = program.rows.copy()
    for name in ("c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev"):
        rows[name] = 0
    rows["draws"] = rows["c_noise"] = 1
    program = Program("noise", rows)
    kinds = [(0, 0), (0, 1), (2**64 - 1, 0), (7, 2**32 - 1)]
    samples = [Sample(states(1)[0], program, ZEROS, seed=seed, image=image) for seed, image in kinds]
    samples.append(Sample(states(1)[0], program, ZEROS, noise=states(2, 9)))
    a, b = (states_of(run_all(executor, samples)) for executor in (pair.executor, pair.host))
    assert np.array_equal(a, b) and np.array_equal(a[-1], states(2, 9)[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_latent_ddim(pair: Pair, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, D), dtype=np.float32)
    samples = [Sample(x[i], random_program(rng, n), seed=seed, image=i) for i, n in enumerate((2, 5, 3))]
    compare(pair, samples, network="latent")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_content_is_computed_on_the_host(make_pair: MakePair, precision: str) -> None:
    """Alone, beside a table and a block, and in a batch with samples that have none."""
    rng, pair = np.random.default_rng(3), make_pair("diffae", precision)
    edits = [
        Edit(deltas=((content(rng), 1.0),), branch=Branch.ASYMMETRIC),
        Edit(),
        Edit(deltas=((table(rng), 0.4), (content(rng), 1.0), (block(rng), -0.2)), branch=Branch.ASYMMETRIC),
        Edit(deltas=((block(rng, improved=True), 0.5),), branch=Branch.ASYMMETRIC),
    ]
    z = rng.standard_normal((4, D), dtype=np.float32)
    samples = [
        Sample(x, random_program(rng, n, Branch.ASYMMETRIC), z[i], edit, image=i)
        for i, (x, n, edit) in enumerate(zip(states(4), (3, 4, 6, 5), edits, strict=True))
    ]
    compare(pair, samples, TOLERANCE[precision])


@pytest.mark.parametrize("branch", [Branch.ASYMMETRIC, Branch.SYMMETRIC])
def test_what_an_observer_sees(pair: Pair, branch: Branch) -> None:
    rng = np.random.default_rng(1)
    edit = Edit(deltas=((table(rng, branch), 0.5),), branch=branch)
    samples = [
        Sample(x, random_program(rng, rows, branch), ZEROS, edit, image=rows)
        for x, rows in zip(states(3), (5, 2, 4), strict=True)
    ]
    seen: list[list[Moved]] = [[], []]
    for kept, executor in zip(seen, (pair.host, pair.executor), strict=True):
        run_all(executor, samples, observe=lambda moved, kept=kept: kept.append(Moved(*map(np.array, moved))))
    assert len(seen[1]) == 5
    for expected, moved in zip(*seen, strict=True):
        for a, b in zip(expected[:4], moved[:4], strict=True):
            assert np.array_equal(a, b) and a.dtype == b.dtype
        for a, b in zip(expected[4:], moved[4:], strict=True):
            assert a.shape == b.shape and relative_error(b, a) <= 1e-5


def test_more_deltas_than_there_was_room_for(pair: Pair) -> None:
    """A block is laid out anew while samples are on their way."""
    rng = np.random.default_rng(0)
    many = Edit(deltas=tuple((block(rng), 0.03) for _ in range(12)), branch=Branch.ASYMMETRIC)
    one = Edit(deltas=((block(rng), 0.3),), branch=Branch.ASYMMETRIC)
    samples = [
        Sample(x, random_program(rng, 4, Branch.ASYMMETRIC), ZEROS, edit, image=i)
        for i, (x, edit) in enumerate(zip(states(3), (one, many, one), strict=True))
    ]
    with pair.executor.batch("image", 4) as batch:
        for sample in samples:
            batch.join(sample)
            batch.step()
        while len(results := [slot for slot in range(3) if batch._scripts[slot].row == 4]) < 3:  # type: ignore[attr-defined]
            batch.step()
        found = [batch.leave(slot) for slot in results]
    for sample, result in zip(samples, found, strict=True):
        same(result, run_all(pair.host, [sample])[0], 1e-5)
    compare(pair, samples)


# --- what a step costs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("captured", [True, False])
def test_the_same_batch_again_and_again(pair: Pair, captured: bool) -> None:
    """Once warm, a batch allocates nothing, captures nothing, and waits for results and the ring alone."""
    rng = np.random.default_rng(0)
    if not captured:
        pair.executor.not_captured = "said so"
    edit = Edit(deltas=((table(rng), 0.5), (block(rng, improved=True), 0.3)), branch=Branch.ASYMMETRIC)
    program = random_program(rng, 40, Branch.ASYMMETRIC)
    for i in range(3):
        pair.driver.calls.clear()
        pair.driver.launched.clear()
        compare(pair, [Sample(x, program, ZEROS, edit, seed=i, image=k) for k, x in enumerate(states(2))], 1e-4)
    calls = pair.driver.calls
    assert calls["cuMemAlloc"] == calls["cuMemHostAlloc"] == calls["cuStreamBeginCapture"] == calls["cuMemFree"] == 0
    assert calls["cuStreamSynchronize"] == 4  # x and x_prev of each sample
    assert calls["cuEventRecord"] == len(program) // Ring.HALF
    assert calls["cuGraphLaunch"] == (len(program) if captured else 0)
    assert pair.driver.launched["linear_step_fp32"] == (0 if captured else len(program))
    assert pair.engine.bound == [("trunk", 2, 0), *dict.fromkeys(b for b in pair.engine.bound if b[0] == "head")]


def test_a_step_is_launched_once_before_it_is_captured(pair: Pair) -> None:
    compare(pair, plain(pair, 2, rows=6))
    assert pair.driver.calls["cuStreamBeginCapture"] == 1
    assert pair.driver.calls["cuGraphLaunch"] == 5
    assert pair.engine.bound == [("trunk", 2, 0), ("head", 2, 2)]


def test_a_ring_waits_for_the_copies_that_read_it(pair: Pair) -> None:
    """The fake driver refuses to copy from pinned memory that was written meanwhile: here, if nobody waited."""
    samples = plain(pair, 1, rows=5 * Ring.HALF)
    compare(pair, samples)
    waits = pair.driver.calls["cuEventSynchronize"]
    assert waits >= 2
    pair.driver.fail["cuEventSynchronize"] = [CUresult.CUDA_SUCCESS] * 10  # says that all is done, and it is not
    with pytest.raises(AssertionError, match="written while a copy was under way"):
        run_all(pair.executor, samples)


def test_capacities_and_slots(pair: Pair) -> None:
    for asked, capacity in ((1, 1), (2, 2), (3, 4), (5, 8), (16, 16), (17, 32)):
        with pair.executor.batch("image", asked) as batch:
            assert batch.capacity == capacity and len(batch) == 0 and batch.step() == []
    with pair.executor.batch("image", 2) as batch:
        samples = plain(pair, 3)
        assert [batch.join(s) for s in samples[:2]] == [0, 1]
        with pytest.raises(ArgumentError, match=r"^batch: all of its 2 slots are taken$"):
            batch.join(samples[2])
        with pytest.raises(Cancelled, match=r"^cancelled at row 0 of 3$"):
            batch.leave(0)
        for slot in (0, 2, -1):
            with pytest.raises(ArgumentError, match=rf"^slot: found {slot}, expected one that is taken$"):
                batch.leave(slot)
        with pytest.raises(ArgumentError, match=r"^z_sem: found none, expected float32 \[6\]$"):
            batch.join(Sample(states(1)[0], samples[0].program))
        assert len(batch) == 1 and batch.join(samples[2]) == 0
        while not (finished := batch.step()):
            pass
        assert list(finished) == [0, 1]
        results = [batch.leave(slot) for slot in finished]
    for result, sample in zip(results, (samples[2], samples[1]), strict=True):
        same(result, run_all(pair.host, [sample])[0], 1e-5)


def test_what_is_kept_is_bounded_and_what_is_evicted_is_released(make_pair: MakePair) -> None:
    """After batches of many kinds: memory, graphs, events and the engine's bindings."""
    pair, rng = make_pair(), np.random.default_rng(0)
    deltas: list[Delta] = [table(rng), *(block(rng, improved=i == 0) for i in range(3))]
    for n in (1, 2, 3, 5, 9, 17, 33, 64, 100, 129):
        samples = [random_sample(rng, "diffae", deltas) for _ in range(min(n, 4))]
        for sample in samples:
            sample.program = random_program(rng, 3, Branch.ASYMMETRIC)
            sample.noise = None
        with pair.executor.batch("image", n) as batch:
            for sample in samples:
                batch.join(sample)
            for _ in range(3):
                batch.step()
                batch.rewind()  # type: ignore[attr-defined]
    kept = pair.executor._idle
    assert [w.n for w in kept] == [2, 4, 8, 16, 32, 64, 128, 256]
    assert len(pair.engine.held) <= 4 * len(kept)
    assert len(pair.driver.graphs) == sum(g is not None for w in kept for g in w.graphs.values())
    assert len(pair.driver.events) == 2 * len(kept)
    assert len(pair.driver.pinned) == len(kept) + 1  # and the stream's
    assert len(pair.driver.memory) == len(deltas) + sum(1 + len(w.rooms) for w in kept)
    for workspace in kept:
        assert len(workspace.graphs) <= 4 * (3 + 2 * np.log2(2 * workspace.layout.pairs))


def test_two_batches_at_once(pair: Pair) -> None:
    """In two threads, of one kind: each has memory of its own."""
    rng = np.random.default_rng(2)
    deltas: list[Delta] = [table(rng), block(rng)]
    samples = [[random_sample(rng, "diffae", deltas) for _ in range(3)] for _ in range(4)]
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: found.__setitem__(i, run_all(pair.executor, samples[i]))) for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pair.executor.batch("image", 4), pair.executor.batch("image", 4):
        assert len(pair.executor._used) == 2
    assert 2 <= len(pair.executor._idle) <= 4 and not pair.executor._used
    for i, each in enumerate(samples):
        for result, sample in zip(found[i], each, strict=True):
            same(result, run_all(pair.host, [sample])[0], 1e-5)


def test_arrays_on_the_device_in_and_out(pair: Pair) -> None:
    sample = plain(pair, 1)[0]
    (expected,) = run_all(pair.host, [sample])
    assert isinstance(expected, Result)
    there, out = pair.executor.empty((2, 3, 8, 8)), pair.executor.empty((2, 3, 8, 8))
    with pair.executor.device:
        pair.executor.stream.upload(there.address, states(2))
        pair.executor.stream.upload(out.address, np.zeros((2, 3, 8, 8), np.float32))
    with pair.executor.batch("image", 1) as batch:
        slot = batch.join(Sample(there[:1].reshape(3, 8, 8), sample.program, ZEROS))
        while not batch.step():
            pass
        result = batch.leave(slot, out[1:].reshape(3, 8, 8))
        assert isinstance(result.x, DeviceArray) and relative_error(out.numpy()[1], expected.x) <= 1e-5
        assert not out.numpy()[0].any() and np.array_equal(there.numpy(), states(2))
        bad = Sample(np.full((3, 8, 8), np.inf, np.float32), sample.program, ZEROS)
        slot = batch.join(bad)
        while not batch.step():
            pass
        with pytest.raises(NotFinite, match=r"^the result is not finite"):
            batch.leave(slot, out[:1].reshape(3, 8, 8))
        assert len(batch) == 0 and not out.numpy()[0].any()  # as it was


# --- captures -----------------------------------------------------------------------------------------------


def test_an_engine_that_cannot_be_captured(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    """The capture fails once; then the executor says why, and goes on without."""
    pair = make_pair()

    def spoil(name: str) -> None:
        if name == "cuStreamEndCapture":
            pair.driver.streams[pair.executor.stream.handle].spoiled = True

    pair.driver.before = spoil
    with caplog.at_level("INFO", logger="hspace"):
        compare(pair, plain(pair, 2, rows=6))
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in str(pair.executor.not_captured)
    assert "one by one" in caplog.text
    compare(pair, plain(pair, 2, rows=6))
    assert pair.driver.calls["cuGraphLaunch"] == 0


def test_memory_freed_during_a_capture_waits_for_its_end(make_pair: MakePair) -> None:
    """A garbage collection may free anything at any time; the driver refuses it while a graph is captured."""
    pair = make_pair()
    dropped = [pair.executor.empty((4,)) for _ in range(3)]
    pair.driver.before = lambda name: dropped.clear() if name == "cuStreamBeginCapture" else None
    run_all(pair.executor, plain(pair, 1, rows=4))
    assert pair.executor.not_captured is None
    assert pair.driver.calls["cuMemFree"] == 3


def test_the_hosts_context_is_its_own_again(pair: Pair) -> None:
    pair.driver.stack.append(0xAB)  # the host's
    compare(pair, plain(pair, 1))
    assert pair.driver.stack == [0xAB]
    pair.driver.fail["cuMemcpyHtoDAsync"] = [CUresult.CUDA_ERROR_UNKNOWN]
    with pytest.raises(EngineError, match=r"could not copy to the device: CUDA_ERROR_UNKNOWN"):
        pair.executor.encode_z(states(1))
    assert pair.driver.stack == [0xAB]


# --- bad luck -----------------------------------------------------------------------------------------------


def run(pair: Pair, n: int) -> np.ndarray:
    return states_of(run_all(pair.executor, plain(pair, n)))


def test_out_of_memory_says_what_fits_and_the_next_call_works(make_pair: MakePair) -> None:
    pair = make_pair(limit=2**19)
    with pytest.raises(OutOfMemory) as e:
        run(pair, 60)
    text = str(e.value)
    assert text.startswith("device cuda:0: out of memory: asked for ")
    assert " of 0.5 MiB are free; for a batch of 64, a batch of " in text
    fits = int(text.split("batch_size=")[1].rstrip(")"))
    assert 1 < fits < 64 and fits.bit_count() == 1
    run(pair, fits)
    with pytest.raises(OutOfMemory):
        run(pair, fits + 1)
    run(pair, fits)  # what was kept for other sizes makes room
    run(pair, fits // 2)
    run(pair, fits)


def test_out_of_memory_at_a_join_leaves_the_batch_as_it_was(make_pair: MakePair) -> None:
    pair, rng = make_pair(limit=2**19), np.random.default_rng(0)
    large = Edit(deltas=tuple((table(rng), 0.1) for _ in range(100)), branch=Branch.ASYMMETRIC)
    samples = plain(pair, 2)
    few = Edit(deltas=((table(rng), 0.1),), branch=Branch.ASYMMETRIC)
    samples[0].edit, samples[0].program = few, random_program(rng, 3, Branch.ASYMMETRIC)
    with pair.executor.batch("image", 2) as batch:
        batch.join(samples[0])
        batch.step()
        with pytest.raises(OutOfMemory, match=r"for a batch of 2, a (batch of 1 fits|smaller batch is needed)"):
            batch.join(Sample(states(1)[0], samples[0].program, ZEROS, large))
        assert len(batch) == 1 and batch.join(samples[1]) == 1
        results: dict[int, Result] = {}
        while len(batch):
            for slot in batch.step():
                results[slot] = batch.leave(slot)
    for slot, sample in enumerate(samples):
        same(results[slot], run_all(pair.host, [sample])[0], 1e-5)


def test_a_step_that_fails_leaves_everyone_where_they_were(pair: Pair) -> None:
    samples, pair.executor.not_captured = plain(pair, 3), "a capture that fails is no error"
    with pair.executor.batch("image", 3) as batch:
        for sample in samples:
            batch.join(sample)
        batch.step()
        says = r"asked for 1\.0 MiB, 0\.5 MiB of 2\.0 MiB are free; for a batch of 4, a"
        pair.engine.fails = [OutOfMemory("cuda:0", 2**20, 2**19, 2**21), EngineError("no luck")]
        with pytest.raises(OutOfMemory, match=says):
            batch.step()
        with pytest.raises(EngineError, match="no luck"):
            batch.step()
        while not (finished := batch.step()):
            pass
        results = [batch.leave(slot) for slot in finished]
    for result, sample in zip(results, samples, strict=True):
        same(result, run_all(pair.host, [sample])[0], 1e-5)


@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuGraphLaunch", "cuStreamSynchronize", "cuMemcpyDtoHAsync"])
def test_a_call_that_fails_is_one_error(pair: Pair, function: str) -> None:
    pair.executor.not_captured = "for once" if function == "cuLaunchKernel" else None
    run(pair, 2)
    pair.driver.fail[function] = [CUresult.CUDA_ERROR_ILLEGAL_ADDRESS]
    with pytest.raises(EngineError, match=r"^device cuda:0: could not .*: CUDA_ERROR_ILLEGAL_ADDRESS$"):
        batch_of = pair.executor.batch("image", 2)
        with batch_of as batch:
            for sample in plain(pair, 2):
                batch.join(sample)
            while not (finished := batch.step()):
                pass
            for slot in finished:
                batch.leave(slot)
    compare(pair, plain(pair, 2))


def test_close_frees_everything(make_pair: MakePair) -> None:
    pair = make_pair()
    run(pair, 2)
    kept = pair.executor.empty((3, 4))
    pair.executor.close()
    assert pair.engine.closed and not pair.engine.held
    assert list(pair.driver.memory) == [kept.address]
    assert set(pair.driver.streams) == {0, 1} and not pair.driver.graphs and not pair.driver.events
    driver = pair.driver
    del pair, kept
    assert not driver.memory and not driver.pinned
