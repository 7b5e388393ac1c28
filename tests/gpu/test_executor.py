"""The executor on a real GPU, with a network that computes on the host: everything but the networks is real."""

from __future__ import annotations

import copy
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from hspace.batch import Sample
from hspace.bundle import Bundle
from hspace.cuda.arrays import DeviceArray
from hspace.cuda.driver import Device, OutOfMemory
from hspace.deltas import Delta, Edit
from hspace.editor import Editor
from hspace.errors import ArgumentError, DeviceError
from hspace.executors import cpu
from hspace.executors.cuda import Executor
from hspace.program import Branch

from tests.batches import run_all
from tests.batches import states as states_of
from tests.conftest import relative_error
from tests.unit.cuda.conftest import D, Network, block, half, random_program, states, table
from tests.unit.cuda.test_executor import random_sample

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
    components = bundle.manifest.components
    executor, host = make_executor(family, bundle=bundle), cpu.Executor(Network(components), components)
    deltas: list[Delta] = [table(rng), block(rng), block(rng, improved=True)]
    samples = [random_sample(rng, family, deltas) for _ in range(int(rng.integers(1, 6)))]
    expected, found = (states_of(run_all(each, samples)) for each in (host, executor))
    assert relative_error(found, expected) <= {"fp32": 1e-4, "fp16": 1e-2}[precision]


def test_graphs(make_executor: MakeExecutor, bundles: dict[str, Bundle]) -> None:
    """Captured steps, replayed: what they give is what launches give."""
    rng = np.random.default_rng(0)
    executor = make_executor("diffae", Still)
    components = bundles["diffae"].manifest.components
    host = cpu.Executor(Still(components, executor.stream), components)
    edit = Edit(deltas=((table(rng), 0.5), (block(rng), 0.5)), branch=Branch.ASYMMETRIC)
    program, z = random_program(rng, 12, Branch.ASYMMETRIC), np.zeros(D, np.float32)
    for seed in range(3):
        samples = [Sample(x, program, z, edit, seed=seed, image=i) for i, x in enumerate(states(2))]
        expected, found = (states_of(run_all(each, samples)) for each in (host, executor))
        assert relative_error(found, expected) <= 1e-4
    assert executor.not_captured is None
    assert any(graph is not None for workspace in executor._idle for graph in workspace.graphs.values())


def test_the_latent_ddim(make_executor: MakeExecutor, bundles: dict[str, Bundle]) -> None:
    rng, components = np.random.default_rng(0), bundles["diffae"].manifest.components
    executor, host = make_executor(), cpu.Executor(Network(components), components)
    x = rng.standard_normal((3, D), dtype=np.float32)
    samples = [Sample(x[i], random_program(rng, n), image=i) for i, n in enumerate((2, 5, 3))]
    expected, found = (states_of(run_all(each, samples, "latent")) for each in (host, executor))
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
