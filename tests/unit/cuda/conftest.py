"""Executors on the fake driver and on the CPU, with the same small network: what one does, the other has to do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hspace.bundle import Bundle
from hspace.cuda.driver import Device, Stream
from hspace.cuda.kernels import Kernels
from hspace.deltas import DeltaBlock, DeltaTable
from hspace.editor import Editor
from hspace.executors import cpu
from hspace.executors.cuda import Executor
from hspace.manifest import Component
from hspace.program import COEFFICIENTS, ROW64, Branch, Program

from tests.conftest import make_null_bundle

from .fake import FakeDriver, write_kernels

CHANNELS, SIDE, SIZE, EMBEDDING, D = 32, 4, 8, 5, 6


class Network:
    """A network for the null bundle's shapes in which every output value matters, and smooth."""

    name, device, precision, batch_pixels = "network", "cpu", "fp32", 2**16

    def __init__(self, components: Mapping[str, Component]) -> None:
        self._components = components
        rng = np.random.default_rng(7)
        self._in, self._out = rng.normal(size=(CHANNELS, 3)), rng.normal(size=(3, CHANNELS)) / CHANNELS**0.5
        self._z, self._latent = rng.normal(size=(CHANNELS, D)) / D, rng.normal(size=(D, D)) / D
        self._pixels = rng.normal(size=(3 * SIZE * SIZE, D)) / SIZE

    def run(self, component: str, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        spec = self._components[component]
        given = {i.name: np.asarray(inputs[i.name]).astype(i.dtype).astype(np.float64) for i in spec.inputs}
        found = getattr(self, f"compute_{component}")(**given)
        return [np.asarray(a).astype(o.dtype) for a, o in zip(found, spec.outputs, strict=True)]

    def compute_trunk(self, x: np.ndarray, t: np.ndarray, z_sem: np.ndarray | None = None) -> list[np.ndarray]:
        n = len(x)
        pooled = x.reshape(n, 3, SIDE, 2, SIDE, 2).mean(axis=(3, 5))
        h = np.einsum("ck,nkij->ncij", self._in, pooled) + t[:, None, None, None] / 1000
        if z_sem is not None:
            h = h + (z_sem @ self._z.T)[:, :, None, None]
        temb = np.cos(t[:, None] / 100 * np.arange(1, EMBEDDING + 1))
        return [np.tanh(h), temb, np.concatenate([x, x[:, :1]], axis=1), np.tanh(h) ** 2]

    def compute_head(
        self, h: np.ndarray, temb: np.ndarray, source: np.ndarray, **skips: np.ndarray
    ) -> list[np.ndarray]:
        s = source.astype(np.int64)
        up = np.einsum("kc,mcij->mkij", self._out, h).repeat(2, axis=2).repeat(2, axis=3)
        given = skips["skip_0"][s][:, :3] + skips["skip_1"][s].mean(axis=(1, 2, 3), keepdims=True)
        level = temb[s].sum(axis=1)[:, None, None, None] / 10
        return [np.tanh(up + 0.5 * given + level)]

    def compute_encoder(self, x: np.ndarray) -> list[np.ndarray]:
        return [np.tanh(x.reshape(len(x), -1) @ self._pixels)]

    def compute_latent(self, z_sem: np.ndarray, t: np.ndarray) -> list[np.ndarray]:
        return [np.tanh(z_sem @ self._latent + t[:, None] / 1000)]


class Bound:
    """A binding. held: those that have not been released."""

    def __init__(self, enqueue: Callable[[], None], held: list[Bound]) -> None:
        self._enqueue, self._held = enqueue, held
        held.append(self)

    def __call__(self) -> None:
        assert self in self._held
        self._enqueue()

    def release(self) -> None:
        self._held.remove(self)


class OnFake(Network):
    """The network on the fake driver's memory. fails: exceptions that its next evaluations raise. bound: all that was
    ever bound: component, N, M.
    """

    device, precision, batch_pixels = "cuda:0", "fp32", 2**18

    def __init__(self, components: Mapping[str, Component], driver: FakeDriver, stream: Stream) -> None:
        super().__init__(components)
        self._driver, self._stream = driver, stream
        self.not_capturable: str | None = None
        self.bound: list[tuple[str, int, int]] = []
        self.fails: list[Exception] = []
        self.closed = False
        self.held: list[Bound] = []

    def bind(self, component: str, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> Bound:
        spec = self._components[component]
        self.bound.append((component, sizes["N"], sizes["M"]))
        assert addresses.keys() == {t.name for t in (*spec.inputs, *spec.outputs)}

        def array(t: Any) -> np.ndarray:
            shape = [sizes[d] if isinstance(d, str) else int(d) for d in t.shape]
            return self._driver.at(addresses[t.name], t.dtype, *shape)

        def evaluate() -> None:
            found = self.run(component, {t.name: array(t) for t in spec.inputs})
            for t, a in zip(spec.outputs, found, strict=True):
                array(t)[...] = a

        def enqueue() -> None:
            if self.fails:
                raise self.fails.pop(0)
            self._driver.streams[self._stream.handle].add(evaluate)

        return Bound(enqueue, self.held)

    def close(self) -> None:
        self.closed = True


@dataclass
class Pair:
    """The same bundle twice: on the CPU, and on the fake driver."""

    bundle: Bundle
    host: cpu.Executor
    executor: Executor
    engine: OnFake
    driver: FakeDriver

    def editors(self, batch_size: int | None = None) -> tuple[Editor, Editor]:
        return (
            Editor(self.bundle, Network(self.bundle.manifest.components), batch_size=batch_size or 64),
            Editor(self.bundle, self.engine, batch_size=batch_size, executor=self.executor),
        )


def half(component: Component) -> Component:
    """The component of an FP16 graph: what is float32 of the U-Net becomes float16, but for z_sem."""

    def narrow(tensors: list[Any]) -> list[Any]:
        return [
            msgspec.structs.replace(t, dtype="float16") if t.dtype == "float32" and t.name != "z_sem" else t
            for t in tensors
        ]

    return msgspec.structs.replace(
        component, inputs=narrow(component.inputs), outputs=narrow(component.outputs), precision="fp16"
    )


@pytest.fixture(scope="session")
def kernels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kernels(tmp_path_factory.mktemp("cubins"))


@pytest.fixture(scope="session")
def null_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("null")
    return {family: make_null_bundle(root / family, family) for family in ("diffae", "asyrp")}


@pytest.fixture
def make_pair(kernels_folder: Path, null_folders: dict[str, Path]) -> Callable[..., Pair]:
    """(family, precision, …FakeDriver's options) → the pair."""

    def make(family: str = "diffae", precision: str = "fp32", **options: Any) -> Pair:
        bundle = Bundle(null_folders[family])
        if precision == "fp16":
            components = bundle.manifest.components
            changed = {name: half(components[name]) for name in ("trunk", "head")}
            bundle.manifest = msgspec.structs.replace(bundle.manifest, components={**components, **changed})
        driver = FakeDriver(**options)
        device = Device(0, driver)
        stream = device.stream()
        engine = OnFake(bundle.manifest.components, driver, stream)
        components = bundle.manifest.components
        executor = Executor(engine, components, SIZE, device, stream, Kernels(device, kernels_folder))
        return Pair(bundle, cpu.Executor(Network(components), components), executor, engine, driver)

    return make


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair()


def states(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3, SIZE, SIZE), dtype=np.float32)


def random_program(rng: np.random.Generator, rows: int, branch: Branch = Branch.NONE) -> Program:
    """Every coefficient at once, at random: no sampler that anyone has named, and executors must not mind."""
    table = np.zeros(rows, dtype=ROW64)
    for name in COEFFICIENTS:
        table[name] = rng.uniform(-1, 1, rows) * (rng.uniform(size=rows) < 0.8)
    table["alpha"], table["sigma"] = rng.uniform(0.5, 1, rows), rng.uniform(0.1, 1, rows)
    table["t"] = rng.integers(0, 1000, rows)
    table["clip"], table["draws"] = rng.integers(0, 3, rows), rng.integers(0, 2, rows)
    table["c_noise"] *= table["draws"]
    table["branch"] = rng.choice([Branch.NONE, branch], rows)
    return Program.from_rows("random", table)


def table(rng: np.random.Generator, branch: Branch = Branch.ASYMMETRIC) -> DeltaTable:
    content = rng.standard_normal((3, CHANNELS, SIDE, SIDE), dtype=np.float32)
    return DeltaTable(np.array([0, 300, 700]), content, None, branch)


def block(rng: np.random.Generator, improved: bool = False) -> DeltaBlock:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)

    c = CHANNELS
    pair = (normal(c), normal(c))
    return DeltaBlock(
        (normal(c), normal(c)) if improved else None,
        (normal(c, c), normal(c)),
        (normal(c, EMBEDDING), normal(c)),
        pair,
        (normal(c, c), normal(c)),
        1e-5 if improved else 1e-6,
        None,
    )
