"""The CUDA executor on a fake driver does what the CPU executor does, for anything that a run can ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hspace.cuda.driver import OutOfMemory
from hspace.deltas import Content, Delta, Edit
from hspace.errors import ArgumentError, Cancelled, EngineError
from hspace.noise import Noise
from hspace.program import Branch, Program

from tests.conftest import relative_error

from .conftest import CHANNELS, SIDE, D, Pair, block, random_program, states, table
from .fake import CUresult

MakePair = Callable[..., Pair]
TOLERANCE = {"fp32": 1e-5, "fp16": 2e-3}


def compare(pair: Pair, x: np.ndarray, programs: list[Program], noise: Noise, tolerance: float, **given: Any) -> None:
    expected, out = np.empty_like(x), np.empty_like(x)
    before = pair.host.run(expected, x, programs, noise, **given)
    found = pair.executor.run(out, x, programs, noise, **given)
    assert relative_error(out, expected) <= tolerance
    assert (before is None) == (found is None)
    if before is not None and found is not None:
        assert relative_error(found, before) <= tolerance


def random_edit(rng: np.random.Generator, branch: Branch, deltas: list[Delta]) -> Edit:
    chosen = rng.choice(len(deltas), rng.integers(0, len(deltas) + 1), replace=False)
    return Edit(deltas=tuple((deltas[i], float(rng.uniform(-0.5, 0.5))) for i in chosen), branch=branch)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("seed", range(24))
def test_random_batches(make_pair: MakePair, seed: int, precision: str) -> None:
    """Programs of any length and branch, edits by tables and blocks of both layouts, noise of both kinds, mixed."""
    rng = np.random.default_rng(seed)
    family = ("diffae", "asyrp")[seed % 2]
    pair = make_pair(family, precision)
    deltas: list[Delta] = [table(rng), table(rng), block(rng), block(rng, improved=True)]
    if seed % 3 == 2:
        deltas = [table(rng)]
    for _ in range(3):  # the same executor, another batch: nothing of the last one is left
        n = int(rng.integers(1, 6))
        programs, edits = [], []
        shared = random_program(rng, 4, Branch.ASYMMETRIC)
        for _ in range(n):
            branch = Branch(int(rng.integers(0, 3)))
            programs.append(shared if rng.uniform() < 0.3 else random_program(rng, int(rng.integers(1, 7)), branch))
            edits.append(random_edit(rng, branch, deltas))
        x = rng.standard_normal((n, 3, 8, 8), dtype=np.float32)
        rows = max(int(p.rows["draws"].sum()) for p in programs)
        given = rng.standard_normal((rows, n + 2, 3, 8, 8), dtype=np.float32) if rng.uniform() < 0.5 else None
        image = rng.integers(0, 2 if given is not None else 2**32, n) + (np.arange(n) if given is not None else 0)
        image = np.minimum(image, n + 1) if given is not None else image
        noise = Noise(int(rng.integers(0, 2**63)) * 2 + 1, image, given)
        z_sem = rng.standard_normal((n, D), dtype=np.float32) if family == "diffae" else None
        x_prev = rng.standard_normal(x.shape, dtype=np.float32) if rng.uniform() < 0.3 else None
        given_edits = edits if seed % 5 else None
        compare(pair, x, programs, noise, TOLERANCE[precision], z_sem=z_sem, edits=given_edits, x_prev=x_prev)


@pytest.mark.parametrize("seed", range(4))
def test_the_latent_ddim(pair: Pair, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((3, D), dtype=np.float32)
    programs = [random_program(rng, length) for length in (2, 5, 3)]
    compare(pair, x, programs, Noise(seed, np.arange(3)), 1e-5)


@pytest.mark.parametrize("captured", [True, False])
def test_the_same_run_again_and_again(pair: Pair, captured: bool) -> None:
    """Once warm, a run allocates nothing, captures nothing, and waits once a run, whatever the number of its steps."""
    rng = np.random.default_rng(0)
    if not captured:
        pair.executor.not_captured = "said so"
    edits = [Edit(deltas=((table(rng), 0.5), (block(rng, improved=True), 0.3)), branch=Branch.ASYMMETRIC)] * 2
    program, x, z = random_program(rng, 8, Branch.ASYMMETRIC), states(2), np.zeros((2, D), np.float32)
    for i in range(4):
        pair.driver.calls.clear()
        compare(pair, x, [program] * 2, Noise(i, np.arange(2)), 1e-5, z_sem=z, edits=edits)
    calls = pair.driver.calls
    assert calls["cuMemAlloc"] == calls["cuMemHostAlloc"] == calls["cuStreamBeginCapture"] == calls["cuMemFree"] == 0
    assert calls["cuStreamSynchronize"] <= 2  # x and x_prev at the end
    kinds = set(program.rows["branch"].tolist())
    if captured:
        assert calls["cuGraphLaunch"] == len(program)
        assert calls["cuLaunchKernel"] == 0
        assert len(pair.engine.bound) <= 1 + len(kinds)
    else:
        assert calls["cuGraphLaunch"] == 0
        assert pair.driver.launched["advance"] == 4 * len(program)


def test_a_step_is_launched_once_before_it_is_captured(pair: Pair) -> None:
    rng = np.random.default_rng(0)
    program, x = random_program(rng, 6), states(2)
    compare(pair, x, [program] * 2, Noise(0, np.arange(2)), 1e-5, z_sem=np.zeros((2, D), np.float32))
    assert pair.driver.calls["cuStreamBeginCapture"] == 1
    assert pair.driver.calls["cuGraphLaunch"] == 5
    assert pair.engine.bound == [("trunk", 2, 0), ("head", 2, 2)]


def test_an_engine_that_cannot_be_captured(make_pair: MakePair, caplog: pytest.LogCaptureFixture) -> None:
    """The capture fails once; then the executor says why, and goes on without."""
    pair = make_pair()
    rng = np.random.default_rng(0)
    program, x, z = random_program(rng, 6), states(2), np.zeros((2, D), np.float32)

    def spoil(name: str) -> None:
        if name == "cuStreamEndCapture":
            pair.driver.streams[pair.executor.stream.handle].spoiled = True

    pair.driver.before = spoil
    with caplog.at_level("INFO", logger="hspace"):
        compare(pair, x, [program] * 2, Noise(0, np.arange(2)), 1e-5, z_sem=z)
    assert "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED" in str(pair.executor.not_captured)
    assert "one by one" in caplog.text
    compare(pair, x, [program] * 2, Noise(0, np.arange(2)), 1e-5, z_sem=z)
    assert pair.driver.calls["cuGraphLaunch"] == 0


def test_memory_freed_during_a_capture_waits_for_its_end(make_pair: MakePair) -> None:
    """A garbage collection may free anything at any time; the driver refuses it while a graph is captured."""
    pair = make_pair()
    dropped = [pair.executor.empty((4,)) for _ in range(3)]
    pair.driver.before = lambda name: dropped.clear() if name == "cuStreamBeginCapture" else None
    left = len(pair.driver.memory)
    program = random_program(np.random.default_rng(0), 4)
    out = np.empty_like(states(1))
    pair.executor.run(out, states(1), [program], Noise(0, np.arange(1)), z_sem=np.zeros((1, D), np.float32))
    assert pair.executor.not_captured is None
    assert pair.driver.calls["cuMemFree"] == 3 and left - 3 < len(pair.driver.memory)


def content(rng: np.random.Generator) -> Content:
    whole = rng.standard_normal((3, CHANNELS, SIDE, SIDE), dtype=np.float32)
    return Content(np.array([0, 300, 700]), whole, 0.6, rng.uniform(size=(SIDE, SIDE)).astype(np.float32))


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
    programs = [random_program(rng, n, Branch.ASYMMETRIC) for n in (3, 4, 6, 5)]
    z = rng.standard_normal((4, D), dtype=np.float32)
    compare(pair, states(4), programs, Noise(1, np.arange(4)), TOLERANCE[precision], z_sem=z, edits=edits)


@pytest.mark.parametrize("branch", [Branch.ASYMMETRIC, Branch.SYMMETRIC])
def test_what_an_observer_sees(pair: Pair, branch: Branch) -> None:
    rng = np.random.default_rng(1)
    edits = [Edit(deltas=((table(rng, branch), 0.5),), branch=branch)] * 3
    programs, x, z = [random_program(rng, 5, branch)] * 3, states(3), np.zeros((3, D), np.float32)
    seen: list[list[tuple[np.ndarray, ...]]] = [[], []]
    for which, executor in enumerate((pair.host, pair.executor)):
        executor.run(  # type: ignore[attr-defined]
            np.empty_like(x), x, programs, Noise(0, np.arange(3)), z_sem=z, edits=edits,
            observe=lambda *step, kept=seen[which]: kept.append(tuple(np.array(a) for a in step)),
        )  # fmt: skip
    assert len(seen[1]) == 5
    for expected, found in zip(*seen, strict=True):
        assert np.array_equal(expected[0], found[0])  # t
        for a, b in zip(expected[1:], found[1:], strict=True):  # x, P, h before the injection
            assert a.shape == b.shape and relative_error(b, a) <= 1e-5


def test_a_cancelled_run_leaves_nothing_behind(pair: Pair) -> None:
    rng = np.random.default_rng(0)
    program, x, z = random_program(rng, 5), states(2), np.zeros((2, D), np.float32)

    def cancel(*_: Any) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        pair.executor.run(np.empty_like(x), x, [program] * 2, Noise(0, np.arange(2)), z_sem=z, observe=cancel)
    compare(pair, x, [program] * 2, Noise(0, np.arange(2)), 1e-5, z_sem=z)


def test_the_hosts_context_is_its_own_again(pair: Pair) -> None:
    pair.driver.stack.append(0xAB)  # the host's
    compare(
        pair, states(1), [random_program(np.random.default_rng(0), 3)], Noise(0, np.arange(1)), 1e-5,
        z_sem=np.zeros((1, D), np.float32),
    )  # fmt: skip
    assert pair.driver.stack == [0xAB]
    pair.driver.fail["cuMemcpyHtoDAsync"] = [CUresult.CUDA_ERROR_UNKNOWN]
    with pytest.raises(EngineError, match=r"could not copy to the device: CUDA_ERROR_UNKNOWN"):
        pair.executor.encode_z(states(1))
    assert pair.driver.stack == [0xAB]


def test_programs_and_samples_have_to_match(pair: Pair) -> None:
    program = random_program(np.random.default_rng(0), 2)
    with pytest.raises(ArgumentError, match=r"programs: found 1, expected one for each of 2 samples"):
        pair.executor.run(np.empty_like(states(2)), states(2), [program], Noise(0, np.arange(2)))


def test_many_batch_sizes_share_a_bounded_memory(pair: Pair) -> None:
    program = random_program(np.random.default_rng(0), 2)
    for n in range(1, 14):
        compare(
            pair, states(n), [program] * n, Noise(0, np.arange(n)), 1e-5, z_sem=np.zeros((n, D), np.float32)
        )  # fmt: skip
    assert len(pair.executor._works) <= 8


def test_more_pairs_than_there_was_room_for(pair: Pair) -> None:
    """A workspace with too little room for pairs and terms is made anew."""
    rng = np.random.default_rng(0)
    many = Edit(deltas=tuple((block(rng), 0.05) for _ in range(7)), branch=Branch.ASYMMETRIC)
    program, z = random_program(rng, 3, Branch.ASYMMETRIC), np.zeros((1, D), np.float32)
    for edit in (Edit(), many, Edit(), many):
        compare(pair, states(1), [program], Noise(0, np.arange(1)), 1e-5, z_sem=z, edits=[edit])


# --- bad luck -----------------------------------------------------------------------------------------------


def run(pair: Pair, n: int) -> np.ndarray:
    out, program = np.empty_like(states(n)), random_program(np.random.default_rng(0), 3)
    pair.executor.run(out, states(n), [program] * n, Noise(0, np.arange(n)), z_sem=np.zeros((n, D), np.float32))
    return out


def test_out_of_memory_says_what_fits_and_the_next_call_works(make_pair: MakePair) -> None:
    pair = make_pair(limit=2**19)
    with pytest.raises(OutOfMemory) as e:
        run(pair, 64)
    text = str(e.value)
    assert text.startswith("device cuda:0: out of memory: asked for ")
    assert " of 0.5 MiB are free; for a batch of 64, a batch of " in text
    fits = int(text.split("batch_size=")[1].rstrip(")"))
    assert 1 < fits < 64
    run(pair, fits)
    with pytest.raises(OutOfMemory):
        run(pair, fits + 8)
    run(pair, fits)  # what was kept for other sizes makes room
    run(pair, fits - 1)
    run(pair, fits)


def test_out_of_memory_in_the_networks(pair: Pair) -> None:
    pair.engine.fails = [OutOfMemory("cuda:0", 2**20, 2**19, 2**21)]
    with pytest.raises(
        OutOfMemory, match=r"asked for 1\.0 MiB, 0\.5 MiB of 2\.0 MiB are free; for a batch of 3, a batc"
    ):
        run(pair, 3)
    assert np.isfinite(run(pair, 3)).all()


@pytest.mark.parametrize("function", ["cuLaunchKernel", "cuGraphLaunch", "cuStreamSynchronize", "cuMemcpyDtoHAsync"])
def test_a_call_that_fails_is_one_error(pair: Pair, function: str) -> None:
    pair.executor.not_captured = "for once" if function == "cuLaunchKernel" else None
    run(pair, 2)
    pair.driver.fail[function] = [CUresult.CUDA_ERROR_ILLEGAL_ADDRESS]
    with pytest.raises(EngineError, match=r"^device cuda:0: could not .*: CUDA_ERROR_ILLEGAL_ADDRESS$"):
        run(pair, 2)
    expected = run(pair, 2)
    assert np.isfinite(expected).all()


def test_close_frees_everything(make_pair: MakePair) -> None:
    pair = make_pair()
    run(pair, 2)
    kept = pair.executor.empty((3, 4))
    pair.executor.close()
    assert pair.engine.closed
    assert list(pair.driver.memory) == [kept.address]
    assert set(pair.driver.streams) == {0, 1}
    driver = pair.driver
    del pair, kept
    assert not driver.memory and not driver.pinned
