"""The executor on a real GPU, with a network that computes on the host: everything but the networks is real."""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hspace.bundle import Bundle
from hspace.cuda.arrays import DeviceArray
from hspace.cuda.driver import Device, OutOfMemory
from hspace.deltas import Delta, Edit
from hspace.editor import Editor
from hspace.errors import ArgumentError, DeviceError
from hspace.executors.cuda import Executor
from hspace.noise import Noise
from hspace.program import Branch
from hspace.runs import OnHost

from tests.conftest import relative_error
from tests.unit.cuda.conftest import D, Network, block, half, random_program, states, table

from .conftest import Still

MakeExecutor = Callable[..., Executor]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("seed", range(12))
def test_random_batches(make_executor: MakeExecutor, bundles: dict[str, Bundle], seed: int, precision: str) -> None:
    """As on the fake driver: programs, branches, edits by tables and blocks of both layouts, noise, mixed."""
    rng = np.random.default_rng(seed)
    family = ("diffae", "asyrp")[seed % 2]
    bundle = copy.copy(bundles[family])
    if precision == "fp16":
        components = bundle.manifest.components
        changed = {name: half(components[name]) for name in ("trunk", "head")}
        bundle.manifest = msgspec.structs.replace(bundle.manifest, components={**components, **changed})
    executor, host = make_executor(family, bundle=bundle), OnHost(Network(bundle.manifest.components))
    deltas: list[Delta] = [table(rng), block(rng), block(rng, improved=True)]
    n = int(rng.integers(1, 6))
    branches = [Branch(int(rng.integers(0, 3))) for _ in range(n)]
    programs = [random_program(rng, int(rng.integers(2, 7)), branch) for branch in branches]
    edits = [
        Edit(deltas=tuple((d, float(rng.uniform(-0.5, 0.5))) for d in deltas[: rng.integers(0, 4)]), branch=branch)
        for branch in branches
    ]
    x, noise = rng.standard_normal((n, 3, 8, 8), dtype=np.float32), Noise(2**63 + seed, rng.integers(0, 2**32, n))
    z_sem = rng.standard_normal((n, D), dtype=np.float32) if family == "diffae" else None
    expected, found = np.empty_like(x), np.empty_like(x)
    host.run(expected, x, programs, noise, z_sem=z_sem, edits=edits)
    executor.run(found, x, programs, noise, z_sem=z_sem, edits=edits)
    assert relative_error(found, expected) <= {"fp32": 1e-4, "fp16": 1e-2}[precision]


def test_graphs(make_executor: MakeExecutor, bundles: dict[str, Bundle]) -> None:
    """Captured steps, replayed: what they give is what launches give."""
    rng = np.random.default_rng(0)
    executor = make_executor("diffae", Still)
    host = OnHost(Still(bundles["diffae"].manifest.components, executor.stream))
    edits = [Edit(deltas=((table(rng), 0.5), (block(rng), 0.5)), branch=Branch.ASYMMETRIC)] * 2
    program, x, z = random_program(rng, 12, Branch.ASYMMETRIC), states(2), np.zeros((2, D), np.float32)
    expected, found = np.empty_like(x), np.empty_like(x)
    for seed in range(3):
        host.run(expected, x, [program] * 2, Noise(seed, np.arange(2)), z_sem=z, edits=edits)
        executor.run(found, x, [program] * 2, Noise(seed, np.arange(2)), z_sem=z, edits=edits)
        assert relative_error(found, expected) <= 1e-4
    assert executor.not_captured is None
    assert any(graph is not None for work in executor._works.values() for graph in work.graphs.values())


def test_the_latent_ddim(make_executor: MakeExecutor, bundles: dict[str, Bundle]) -> None:
    rng = np.random.default_rng(0)
    executor, host = make_executor(), OnHost(Network(bundles["diffae"].manifest.components))
    x, programs = rng.standard_normal((3, D), dtype=np.float32), [random_program(rng, n) for n in (2, 5, 3)]
    expected, found = np.empty_like(x), np.empty_like(x)
    host.run(expected, x, programs, Noise(0, np.arange(3)))
    executor.run(found, x, programs, Noise(0, np.arange(3)))
    assert relative_error(found, expected) <= 1e-5


def test_an_editor(make_executor: MakeExecutor, bundles: dict[str, Bundle]) -> None:
    """Whole calls; arrays on the device in and out."""
    bundle, executor = bundles["diffae"], make_executor()
    host = Editor(bundle, Network(bundle.manifest.components))
    editor = Editor(bundle, executor.engine, executor=executor, batch_size=2)
    images = np.clip(states(3), -1, 1)
    expected = host.edit(images, {"smile": 0.3, "block": 0.2}, output="float32")
    assert relative_error(editor.edit(images, {"smile": 0.3, "block": 0.2}, output="float32"), expected) <= 1e-4
    there = editor.edit(images, {"smile": 0.3, "block": 0.2}, output="device")
    assert isinstance(there, DeviceArray) and relative_error(there.numpy(), expected) <= 1e-4
    assert editor.encode(there[:1]).x_T.shape == (1, 3, 8, 8)
    content = editor.inject(host.encode(images), images[:1], 0.5, output="float32")
    assert relative_error(content, host.inject(host.encode(images), images[:1], 0.5, output="float32")) <= 1e-3


# --- errors -------------------------------------------------------------------------------------------------


def test_out_of_memory(make_executor: MakeExecutor) -> None:
    executor = make_executor()
    with executor.device:
        free, _ = executor.device.memory()
    with pytest.raises(OutOfMemory, match=r"out of memory: asked for .* are free"):
        executor.device.allocate(2 * free)
    assert executor.empty((4,)).numpy().shape == (4,)


def test_a_gpu_that_is_not_there(device: Device) -> None:
    with pytest.raises(DeviceError, match=r"^device cuda:99: is not there"):
        Device(99)


def test_a_host_array_that_says_it_is_on_the_device(make_executor: MakeExecutor) -> None:
    class Interface:
        array = np.zeros((1, 3, 8, 8), np.float32)
        __cuda_array_interface__ = {  # noqa: RUF012
            "shape": (1, 3, 8, 8), "typestr": "<f4", "data": (array.ctypes.data, False), "version": 3
        }  # fmt: skip

    executor = make_executor()
    with pytest.raises(DeviceError, match=r"^images: found an array on the host, expected one on cuda:0$"):
        executor.images(Interface())
    with pytest.raises(ArgumentError, match=r"on the device, expected uint8"):
        executor.images(executor.empty((2, 2)))
