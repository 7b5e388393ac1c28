"""The device memory that a batch's steps work on, and everything that is bound to it: networks, launches, graphs.

Addresses stay as they are from run to run, which is what lets a step be a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..engines import DeviceEngine
from ..errors import BundleError
from ..manifest import Component, Tensor
from . import steps as staging
from .driver import Buffer, Graph, Stream
from .kernels import Kernels, variant_of
from .steps import RECORD, Kind, Steps

Enqueue = Callable[[Stream], None]


class Step(NamedTuple):
    """What a step's launches and its graph stand for: its kind, whether x_prev and P are kept, whether z is given."""

    kind: Kind
    has_x_prev: bool
    has_p: bool
    has_z: bool


class Work:
    """The device memory of a batch of n samples, at fixed addresses, and what has been bound to them.

    role: "image" or "latent". at: name → address. tensors: name → shape without the batch, and dtype. rooms: memory
    that grows, and whose growing makes launches and graphs anew. graphs: by step; None after its first time.
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        engine: DeviceEngine,
        kernels: Kernels,
        role: str,
        n: int,
        pairs: int,
        terms: int,
    ) -> None:
        self.role, self.n = role, n
        self._components, self._engine, self._kernels = components, engine, kernels
        self.tensors = _tensors(components, role)
        self.dtype = self.tensors["network"][1]
        self.block = staging.block(n, pairs, terms, _input(components[_first(role)], "t").dtype)
        sizes = self._sizes(components, role, n, self.block)
        self._arena = kernels.device.allocate(sum(sizes.values()))
        self.at: dict[str, int] = {}
        address = self._arena.address
        for name, nbytes in sizes.items():
            self.at[name], address = address, address + nbytes
        fields: Any = self.block.fields
        for name in self.block.names or ():
            self.at[name] = self.at["current"] + fields[name][1]
        self.rooms: dict[str, Buffer] = {}
        self.graphs: dict[Step, Graph | None] = {}
        self._launches: dict[Step, tuple[list[Enqueue], list[Enqueue]]] = {}
        self._bound: dict[tuple[str, int], Enqueue] = {}

    def free(self) -> None:
        """Frees the memory at once; this object is of no use any more."""
        self._arena.free()
        for buffer in self.rooms.values():
            buffer.free()

    @staticmethod
    def capacity(n: int, pairs: int, terms: int) -> tuple[int, int]:
        """Room for pairs and terms: generous, since more of it later means to bind the networks again."""
        return max(4 * n, 1 << pairs.bit_length()), max(8 * n, 1 << terms.bit_length())

    @classmethod
    def bytes(cls, components: Mapping[str, Component], role: str, n: int) -> int:
        """How much device memory a batch of n samples takes, beside the networks' own."""
        block = staging.block(n, *cls.capacity(n, 0, 0))
        return sum(cls._sizes(components, role, n, block).values())

    @staticmethod
    def _sizes(components: Mapping[str, Component], role: str, n: int, block: np.dtype[Any]) -> dict[str, int]:
        tensors = _tensors(components, role)
        rows = {"h": 2 * n, "eps": 2 * n}  # as many as the head may evaluate
        sizes = {
            name: rows.get(name, n) * int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
            for name, (shape, dtype) in tensors.items()
            if name != "network"
        }
        sizes |= {"step": 4, "current": block.itemsize, "identity": n * RECORD.itemsize}
        return {name: -(-nbytes // 256) * 256 for name, nbytes in sizes.items()}

    def shape(self, component: str, name: str) -> tuple[int, ...]:
        """A tensor's shape without the batch."""
        spec = self._components[component]
        return _shape(next(t for t in (*spec.inputs, *spec.outputs) if t.name == name))

    @property
    def h_elements(self) -> int:
        """Of a sample's h: C·H·W, or 0 where there is none."""
        return int(np.prod(self.tensors["h"][0], dtype=np.int64)) if "h" in self.tensors else 0

    @staticmethod
    def needs(components: Mapping[str, Component], role: str, n: int, steps: Steps, z: int = 0) -> dict[str, int]:
        """The rooms that a run takes, in bytes. z: of the noise that is given."""
        samples = steps.rows.shape[1]
        pairs, terms = (-(-count * n // samples) for count in (steps.pairs, steps.terms))
        h = _tensors(components, role).get("h", ((0,), ""))[0]
        elements = int(np.prod(h, dtype=np.int64))
        block = staging.block(n, *Work.capacity(n, pairs, terms))
        rooms = {"staged": len(steps) * block.itemsize, "z": z * n // samples}
        rooms |= {"u": pairs * elements * 4, "v": pairs * elements * 4}
        rooms |= {"hosted": n * staging.stride(elements) if any(kind.hosted for kind in steps.kinds) else 0}
        return {name: nbytes for name, nbytes in rooms.items() if nbytes}

    def room(self, name: str, nbytes: int) -> int:
        """The address of at least so many bytes, kept from run to run."""
        if name not in self.rooms or self.rooms[name].nbytes < nbytes:
            if name in self.rooms:
                self.rooms.pop(name).free()
            self._launches.clear()
            self.graphs.clear()
            self.rooms[name] = self._kernels.device.allocate(nbytes)
        return self.rooms[name].address

    # --- launches ---------------------------------------------------------------------------------------

    def bound(self, component: str, m: int = 0) -> Enqueue:
        """The component on this memory; m: how many samples the head evaluates."""
        if (component, m) not in self._bound:
            spec, at = self._components[component], dict(self.at)
            if component == "latent":
                at["z_sem"] = self.at["x"]
            elif component == "trunk":
                at["x"] = self.at.get("x_in", self.at["x"])
            if component in ("head", "latent"):
                at[spec.outputs[0].name] = self.at["eps"]
            addresses = {t.name: at[t.name] for t in (*spec.inputs, *spec.outputs)}
            run = self._engine.bind(component, {"N": self.n, "M": m}, addresses)
            self._bound[component, m] = lambda _: run()
        return self._bound[component, m]

    def launches(self, step: Step) -> tuple[list[Enqueue], list[Enqueue]]:
        """A step in two halves: up to the trunk, and from the injection on."""
        if step not in self._launches:
            kernels, at, kind = self._kernels, self.at, step.kind
            words = self.block.itemsize // 4
            staged = self.rooms["staged"].address
            advance = kernels.advance(step=at["step"], staged=staged, current=at["current"], words=words)
            front: list[Enqueue] = [advance]
            back: list[Enqueue] = []
            if self.role == "latent":
                back.append(self.bound("latent"))
            else:
                front.append(self.bound("trunk"))
                back += [*self._injection(kind), self.bound("head", kind.head)]
            back.append(
                self.linear_step(
                    at["records"],
                    x_in=at.get("x_in", 0),
                    x_prev=at["x_prev"] if step.has_x_prev else 0,
                    p=at["p"] if step.has_p else 0,
                    z=self.rooms["z"].address if step.has_z else 0,
                )
            )
            self._launches[step] = front, back
        return self._launches[step]

    def _injection(self, kind: Kind) -> list[Enqueue]:
        if not kind.targets:
            return []
        kernels, at, variant, made = self._kernels, self.at, variant_of(self.dtype), list[Enqueue]()
        (channels, *_), (embedding,) = self.tensors["h"][0], self.tensors["temb"][0]
        sizes = {"channels": channels, "positions": self.h_elements // channels, "embedding": embedding}
        u, v = (self.rooms[name].address if name in self.rooms else 0 for name in ("u", "v"))
        h, pairs = at["h"], at["pairs"]
        if kind.norm:
            made.append(kernels.block_norm(variant, kind.pairs, h=h, v=v, pairs=pairs, **sizes))
        if kind.pairs:
            made.append(kernels.block_hidden(variant, kind.pairs, h=h, v=v, temb=at["temb"], u=u, pairs=pairs, **sizes))
        lists = {"targets": at["targets"], "terms": at["terms"]}
        made.append(kernels.inject(variant, kind.targets, h=h, u=u, **lists, **sizes))
        return made

    def linear_step(self, records: int, **pointers: int) -> Enqueue:
        """The row formula on this memory."""
        elements, stride = (int(np.prod(self.tensors[name][0], dtype=np.int64)) for name in ("x", "eps"))
        return self._kernels.linear_step(
            variant_of(self.dtype),
            self.n,
            x=self.at["x"],
            eps=self.at["eps"],
            records=records,
            elements=elements,
            eps_stride=stride,
            **pointers,
        )


def _first(role: str) -> str:
    return "latent" if role == "latent" else "trunk"


def _input(spec: Component, name: str) -> Tensor:
    return next(t for t in spec.inputs if t.name == name)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(d) for d in tensor.shape[1:])


def _tensors(components: Mapping[str, Component], role: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """What a batch keeps on the device: name → shape without the batch, and dtype. "network": its input's.

    Raises BundleError where the parts of the network are not of one precision.
    """
    first = components[_first(role)]
    state = _input(first, "z_sem" if role == "latent" else "x")
    eps = components["latent" if role == "latent" else "head"].outputs[0]
    made = {name: (_shape(state), "float32") for name in ("x", "x_prev", "p")}
    made |= {"network": (_shape(state), state.dtype), "eps": (_shape(eps), eps.dtype)}
    if state.dtype != "float32":
        made["x_in"] = _shape(state), state.dtype
    parts: set[str] = {state.dtype, eps.dtype}
    if role == "image":
        made |= {t.name: (_shape(t), t.dtype) for t in first.outputs}
        made |= {t.name: (_shape(t), t.dtype) for t in first.inputs if t.name == "z_sem"}
        parts |= {made["h"][1], made["temb"][1]}
    if len(parts) > 1:
        raise BundleError(f"{_first(role)}: found the precisions {', '.join(sorted(parts))}, expected one on a GPU")
    return made
