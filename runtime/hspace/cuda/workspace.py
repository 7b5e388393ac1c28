"""The device memory that a batch's steps work on, and everything that is bound to it: networks, launches, graphs.

Addresses stay as they are from batch to batch, which is what lets a step be a CUDA graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import numpy as np

from ..batch import Network
from ..engines import Binding, DeviceEngine
from ..errors import BundleError, DeviceError
from ..manifest import Component, Tensor
from . import steps
from .driver import Buffer, Graph, Stream
from .kernels import Kernels, variant_of
from .ring import Ring
from .steps import RECORD, Block, GraphKey, Layout

Enqueue = Callable[[Stream], None]
_TERMS = 8  # of each sample, at first


class Workspace:
    """The device memory of a batch with n slots, at fixed addresses, and what has been bound to them.

    at: name → address. tensors: name → shape without the batch, and dtype. rooms: memory that is there once it is
    needed, and may grow; then launches and graphs are made anew. graphs: None after a key's first time.

    There are at most 4·(3 + 2·log2(2P)) graphs, where P is the most DeltaBlocks that a step evaluates, as a power of
    two: x_prev and P kept or not, times no injection, or one for a head of n or 2n samples by any number of pairs in
    0, 1, 2, 4 … P. The engine is bound at most four times: trunk, head of n and of 2n, and encoder.
    """

    def __init__(
        self,
        components: Mapping[str, Component],
        engine: DeviceEngine,
        kernels: Kernels,
        stream: Stream,
        allocate: Callable[[int], Buffer],
        network: Network,
        n: int,
    ) -> None:
        self.network, self.n = network, n
        self._components, self._engine, self._kernels, self._stream = components, engine, kernels, stream
        self._allocate = allocate
        self.tensors = _tensors(components, network)
        self.dtype = self.tensors["network"][1]
        sizes = self._sizes(components, network, n)
        self._arena = allocate(sum(sizes.values()))
        self.at: dict[str, int] = {}
        address = self._arena.address
        for name, nbytes in sizes.items():
            self.at[name], address = address, address + nbytes
        self.rooms: dict[str, Buffer] = {}
        self.graphs: dict[GraphKey, Graph | None] = {}
        self._launches: dict[GraphKey, tuple[list[Enqueue], list[Enqueue]]] = {}
        self._bound: dict[tuple[str, int], Binding] = {}
        self.layout: Layout
        self.ring: Ring
        self.blocks: list[Block]  # those of the ring
        layout = _layout(components, network, n)
        self._lay_out(layout, allocate(layout.dtype.itemsize))
        stream.upload(self.at["source"], np.tile(np.arange(n, dtype=np.int64), 2))

    def free(self) -> None:
        """Frees everything at once; this object is of no use any more."""
        with contextlib.suppress(DeviceError):  # after a fault of the device nothing is under way
            self._stream.synchronise()
        self._forget(bindings=True)
        self._arena.free()
        self.ring.free()
        for buffer in self.rooms.values():
            buffer.free()

    @property
    def nbytes(self) -> int:
        """Device memory, beside the networks' own."""
        return self._arena.nbytes + sum(buffer.nbytes for buffer in self.rooms.values())

    @classmethod
    def bytes(cls, components: Mapping[str, Component], network: Network, n: int) -> int:
        """What `nbytes` is at first."""
        return sum(cls._sizes(components, network, n).values()) + _layout(components, network, n).dtype.itemsize

    @staticmethod
    def _sizes(components: Mapping[str, Component], network: Network, n: int) -> dict[str, int]:
        rows = {"h": 2 * n, "eps": 2 * n}  # as many as the head may evaluate
        sizes = {
            name: rows.get(name, n) * _nbytes(shape, dtype)
            for name, (shape, dtype) in _tensors(components, network).items()
            if name != "network"
        }
        sizes |= {"source": 16 * n, "identity": n * RECORD.itemsize}
        return {name: -(-nbytes // 256) * 256 for name, nbytes in sizes.items()}

    def shape(self, component: str, name: str) -> tuple[int, ...]:
        """A tensor's shape without the batch."""
        spec = self._components[component]
        return _shape(next(t for t in (*spec.inputs, *spec.outputs) if t.name == name))

    def place(self, name: str, slot: int) -> int:
        """The address of a slot's part of a tensor, or of the room "z" or "hosted"."""
        if name == "hosted":
            return self.rooms[name].address + slot * steps.stride(self.h_elements)
        start = self.rooms[name].address if name == "z" else self.at[name]
        return start + slot * _nbytes(*self.tensors["x" if name == "z" else name])

    @property
    def h_elements(self) -> int:
        """Of a sample's h: C·H·W, or 0 where there is none."""
        return int(np.prod(self.tensors["h"][0], dtype=np.int64)) if "h" in self.tensors else 0

    # --- memory that grows ------------------------------------------------------------------------------

    def reserve(self, *, pairs: int, terms: int, norm: bool, hosted: bool, noise: bool) -> None:
        """Makes room for so many pairs in a step, and terms of a sample; for what GroupNorm leaves, what the host
        computes of Δh, and noise that is given. Raises OutOfMemory; everything is as it was then.
        """
        layout = self.layout
        if pairs > layout.pairs or terms > layout.terms:
            most = max(steps.capacity_of(pairs), layout.pairs), max(steps.capacity_of(terms), layout.terms)
            layout = Layout(self.n, *most, layout.dtype["t"].base.name)
        activations = steps.capacity_of(pairs) * self.h_elements * 4
        wanted = {
            "block": layout.dtype.itemsize,
            "u": activations,
            "v": activations if norm or "v" in self.rooms else 0,
            "hosted": self.n * steps.stride(self.h_elements) if hosted else 0,
            "z": self.n * _nbytes(*self.tensors["x"]) if noise else 0,
        }
        missing = {k: size for k, size in wanted.items() if size > (self.rooms[k].nbytes if k in self.rooms else 0)}
        if not missing:
            return
        made = {name: self._allocate(size) for name, size in missing.items()}
        self._stream.synchronise()  # what is replaced may be in use
        block = made.pop("block", None)
        if block is not None:
            self._lay_out(layout, block)
        for name, buffer in made.items():
            if name in self.rooms:
                self.rooms[name].free()
            self.rooms[name] = buffer
        self._forget(bindings=block is not None)

    def _lay_out(self, layout: Layout, buffer: Buffer) -> None:
        """Takes a block of another layout. Nothing may be under way."""
        ring = Ring(self._stream, layout.dtype.itemsize)
        if "block" in self.rooms:
            self.rooms["block"].free()
            self.ring.free()
        self.layout, self.ring, self.rooms["block"] = layout, ring, buffer
        self.blocks = [Block(memory, layout) for memory in ring.blocks]
        for name, offset in layout.offsets.items():
            self.at[name] = buffer.address + offset

    def _forget(self, *, bindings: bool) -> None:
        self._launches.clear()
        self.graphs.clear()
        if bindings:
            for bound in self._bound.values():
                bound.release()
            self._bound.clear()

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
            self._bound[component, m] = self._engine.bind(component, {"N": self.n, "M": m}, addresses)
        run = self._bound[component, m]
        return lambda _: run()

    def launches(self, key: GraphKey) -> tuple[list[Enqueue], list[Enqueue]]:
        """A step in two halves: the trunk, and from the injection on."""
        if key not in self._launches:
            at, front, back = self.at, list[Enqueue](), list[Enqueue]()
            if self.network == "latent":
                back.append(self.bound("latent"))
            else:
                front.append(self.bound("trunk"))
                back += [*self._injection(key), self.bound("head", (1 + key.doubled) * self.n)]
            back.append(
                self._linear_step(
                    at["records"],
                    x_in=at.get("x_in", 0),
                    x_prev=at["x_prev"] if key.x_prev else 0,
                    p=at["p"] if key.p else 0,
                    z=self.rooms["z"].address if "z" in self.rooms else 0,
                )
            )
            self._launches[key] = front, back
        return self._launches[key]

    def _injection(self, key: GraphKey) -> list[Enqueue]:
        if not key.injected:
            return []
        kernels, at, variant, made = self._kernels, self.at, variant_of(self.dtype), list[Enqueue]()
        (channels, *_), (embedding,) = self.tensors["h"][0], self.tensors["temb"][0]
        sizes = {"channels": channels, "positions": self.h_elements // channels, "embedding": embedding}
        u, v = (self.rooms[name].address if name in self.rooms else 0 for name in ("u", "v"))
        h, pairs = at["h"], at["pairs"]
        if key.pairs and v:
            made.append(kernels.block_norm(variant, key.pairs, h=h, v=v, pairs=pairs, **sizes))
        if key.pairs:
            made.append(kernels.block_hidden(variant, key.pairs, h=h, v=v, temb=at["temb"], u=u, pairs=pairs, **sizes))
        lists = {"targets": at["targets"], "terms": at["terms"]}
        made.append(kernels.inject(variant, self.n, h=h, u=u, **lists, **sizes))
        return made

    def cast(self, slot: int) -> None:
        """Enqueues the cast of a slot's x to the network's input, where that is another array."""
        if "x_in" in self.at:
            self._stream.upload(self.at["identity"], steps.identity(self.n, slot))
            self._linear_step(self.at["identity"], x_in=self.at["x_in"])(self._stream)

    def _linear_step(self, records: int, **pointers: int) -> Enqueue:
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


def _layout(components: Mapping[str, Component], network: Network, n: int) -> Layout:
    return Layout(n, n, _TERMS, _input(components[_first(network)], "t").dtype)


def _first(network: Network) -> str:
    return "latent" if network == "latent" else "trunk"


def _input(spec: Component, name: str) -> Tensor:
    return next(t for t in spec.inputs if t.name == name)


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(d) for d in tensor.shape[1:])


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _tensors(components: Mapping[str, Component], network: Network) -> dict[str, tuple[tuple[int, ...], str]]:
    """What a batch keeps on the device: name → shape without the batch, and dtype. "network": its input's.

    Raises BundleError where the parts of the network are not of one precision.
    """
    first = components[_first(network)]
    state = _input(first, "z_sem" if network == "latent" else "x")
    eps = components["latent" if network == "latent" else "head"].outputs[0]
    made = {name: (_shape(state), "float32") for name in ("x", "x_prev", "p")}
    made |= {"network": (_shape(state), state.dtype), "eps": (_shape(eps), eps.dtype)}
    if state.dtype != "float32":
        made["x_in"] = _shape(state), state.dtype
    parts: set[str] = {state.dtype, eps.dtype}
    if network == "image":
        made |= {t.name: (_shape(t), t.dtype) for t in first.outputs}
        made |= {t.name: (_shape(t), t.dtype) for t in first.inputs if t.name == "z_sem"}
        parts |= {made["h"][1], made["temb"][1]}
    if len(parts) > 1:
        raise BundleError(f"{_first(network)}: found the precisions {', '.join(sorted(parts))}, expected one on a GPU")
    return made
