"""The contract of executors: samples join a batch, every call of `step` moves each by one row, and they leave.

A sample is one image's run through one program. Nothing about it is the batch's: encode and decode, samplers, lengths,
edits, branches and seeds of all kinds share a step. So a request waits for no other's end, and a fault is one sample's.
The latent DDIM evaluates another network, and so has batches of its own kind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .checks import check_whole
from .deltas import NO_EDIT, Edit
from .engines import Engine
from .errors import ArgumentError, Cancelled, NotFinite
from .noise import check_seed
from .program import Program

Occupant = TypeVar("Occupant")  # what a batch keeps of a sample
Network = Literal["image", "latent"]  # what a batch evaluates: trunk and head, or the latent DDIM's network


@dataclass(eq=False, slots=True)
class Sample:
    """All that one image's run needs.

    x: float32 [3, H, W], or [D] in the latent DDIM: the state that it starts from; copied when it joins. On a GPU it
    may be a DeviceArray. z_sem: float32 [D], what the network is told, where it takes it. edit: of h; its directions
    are the caller's. x_prev: the state before x, for programs that use it; by default x. seed, image: which draws its
    rows take, by `noise.normal`; noise gives them instead: float32 [rows that draw, *x.shape].
    """

    x: Any
    program: Program
    z_sem: Float32 | None = None
    edit: Edit = NO_EDIT
    x_prev: Float32 | None = None
    seed: int = 0
    image: int = 0
    noise: Float32 | None = None

    @property
    def keeps_x_prev(self) -> bool:
        """Whether its result has the state before the last."""
        return self.x_prev is not None or bool(self.program.rows["c_x_prev"].any())

    def check(self, shape: tuple[int, ...], z_sem: int | None) -> None:
        """Raises ArgumentError for what a batch of states of that shape, and z_sem of that length, cannot run."""
        wanted: list[tuple[str, Any, tuple[int, ...] | None]] = [("x", self.x, shape)]
        wanted.append(("z_sem", self.z_sem, None if z_sem is None else (z_sem,)))
        if self.x_prev is not None:
            wanted.append(("x_prev", self.x_prev, shape))
        if self.noise is not None:
            wanted.append(("noise", self.noise, (int(self.program.rows["draws"].sum()), *shape)))
        for name, array, expected in wanted:
            if array is not None and not hasattr(array, "dtype"):
                raise ArgumentError(f"{name}: found {type(array).__name__}, expected an array")
            given = None if array is None else (str(array.dtype), tuple(array.shape))
            if given != (None if expected is None else ("float32", expected)):
                told = "none" if given is None else f"{given[0]} {list(given[1])}"
                raise ArgumentError(
                    f"{name}: found {told}, expected {'none' if expected is None else f'float32 {list(expected)}'}"
                )
        check_seed(self.seed)
        check_whole("image", self.image, 0, 2**32 - 1)

    def own(self) -> Sample:
        """As a batch keeps it: what the caller does to his object, or writes into noise, is nothing to it then."""
        noise = None if self.noise is None else np.array(self.noise)
        return replace(self, seed=int(self.seed), image=int(self.image), noise=noise)


class Moved(NamedTuple):
    """What one step did, of the n samples that it moved; the arrays are the batch's own: copy what is kept.

    slot: int64 [n]. row: int64 [n], the number of the row that each ran, from 0. rows: int64 [n], how many its program
    has. t: int32 [n], what the network was told. x: float32 [n, …], the state that it saw. x_0: float32 [n, …], the
    predicted images P. h: [n, C, h, w], the bottleneck before any injection, float32 (float16 in FP16 graphs); None in
    the latent DDIM.
    """

    slot: NDArray[np.int64]
    row: NDArray[np.int64]
    rows: NDArray[np.int64]
    t: NDArray[np.int32]
    x: Float32
    x_0: Float32
    h: NDArray[Any] | None


Observe = Callable[[Moved], object]


class Result(NamedTuple):
    """A sample's last state, and the one before where it keeps that (`Sample.keeps_x_prev`): float32 of x's shape."""

    x: Any
    x_prev: Float32 | None


class Batch(Protocol):
    """Samples on their way, in slots 0 … capacity − 1. One thread at a time. The end of its context frees it."""

    @property
    def capacity(self) -> int: ...

    def __len__(self) -> int:
        """How many slots are taken, those of finished samples among them."""
        ...

    def join(self, sample: Sample) -> int:
        """Takes a free slot, and returns its number. The batch copies the sample's arrays, and keeps its program and
        edit. Raises ArgumentError where no slot is free, or for a sample that it cannot run; nothing changes then.
        """
        ...

    def step(self, observe: Observe | None = None) -> Sequence[int]:
        """Moves every sample that has a row left by that row, by one network evaluation. Returns the slots of those
        that have now run their last; these stay as they are until they leave. observe: called at the step's end;
        where it raises, the step is made all the same.

        Raises EngineError where the network cannot be evaluated; the samples are where they were then.
        """
        ...

    def leave(self, slot: int, out: Any = None) -> Result:
        """Frees a slot, and returns its sample's result; nobody else notices.

        out: where x is written to, an array of its shape (on a GPU it may be a DeviceArray); by default a new array on
        the host. Raises Cancelled where the sample has rows left, NotFinite where its state is not finite (what
        overflowed on its way shows here), ArgumentError for a slot that is free. The slot is free in any case.
        """
        ...


class Executor(Protocol):
    """What runs batches. on_device: whether it is a `DeviceExecutor`."""

    @property
    def on_device(self) -> bool: ...
    @property
    def engine(self) -> Engine: ...

    def batch(self, network: Network, capacity: int) -> AbstractContextManager[Batch]:
        """An empty batch with at least that many slots. Raises ArgumentError, see `check_batch`."""
        ...

    def encode_z(self, x: Any) -> Float32:
        """z_sem (float32 [N, D]) of images, by the encoder."""
        ...


class DeviceExecutor(Executor, Protocol):
    """An executor on a GPU, which takes and gives arrays there."""

    def images(self, images: Any) -> Any:
        """Arrays on a GPU in the form that samples take, or on the host as `image.load_images` takes them."""
        ...

    def empty(self, shape: Sequence[int]) -> Any:
        """Memory on the GPU for results, float32."""
        ...


def check_batch(network: str, capacity: int, components: Collection[str]) -> None:
    """Raises ArgumentError for a batch that a model with those components cannot have."""
    networks = ["image", *(["latent"] if "latent" in components else [])]
    if network not in networks:
        raise ArgumentError(f"network: found {network!r}, expected one of {', '.join(networks)}")
    check_whole("capacity", capacity)


def free_slot(slots: Sequence[object | None]) -> int:
    """The first slot that nobody has taken. Raises ArgumentError where there is none."""
    if None not in slots:
        raise ArgumentError(f"batch: all of its {len(slots)} slots are taken")
    return slots.index(None)


def occupant(slots: Sequence[Occupant | None], slot: int) -> Occupant:
    """Who has taken a slot. Raises ArgumentError where it is free, or is none."""
    held = slots[slot] if 0 <= slot < len(slots) else None
    if held is None:
        raise ArgumentError(f"slot: found {slot}, expected one that is taken")
    return held


def check_left(row: int, rows: int, finite: bool) -> None:
    """Raises what `Batch.leave` raises. row: how many of its rows the sample has run."""
    if row < rows:
        raise Cancelled(f"cancelled at row {row} of {rows}")
    if not finite:
        raise NotFinite("the result is not finite: a strength is too large, or the engine's arithmetic overflowed")
