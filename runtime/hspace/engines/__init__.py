"""Engines evaluate a bundle's components. Each is a module found by name and imported when asked for.

To add one: its line in `ENGINES`, and a module with

    PACKAGES                                         what pip installs for it; () where it needs no library
    NOTE                                             what it is, in a few words
    version()                                        of its library
    unavailable()                                    why it cannot run on this machine, or None
    precisions(bundle)                               what it computes the U-Net in, the graphs' own type first
    open_engine(bundle, threads, precision)          an `Engine`, where it runs on a CPU
    open_device_engine(bundle, device, stream)       a `DeviceEngine`, where it runs on a GPU: then also in `ON_DEVICE`

An engine on a CPU needs `run` alone; `unet.OwnSkips` is what it has beside it to hand skips on without a copy.
`hspace.choice` says what "auto" means.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError, EngineError
from . import probe

if TYPE_CHECKING:
    from ..cuda.driver import Device, Stream

ENGINES = {
    "openvino": "hspace.engines.openvino",
    "onnx": "hspace.engines.onnx",
    "null": "hspace.engines.null",
}
PRECISIONS = ("fp32", "bf16", "fp16")
ON_DEVICE = (
    "onnx",
)  # those with an `open_device_engine(bundle, device, stream)`; the first is what `auto` means there


class Engine(Protocol):
    """One narrow contract: named arrays in, a component's outputs out. Safe to call from several threads.

    precision: what the U-Net is computed in, one of `PRECISIONS`. batch_pixels: of the images that share an evaluation
    by default; more are no faster.
    """

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def precision(self) -> str: ...
    @property
    def batch_pixels(self) -> int: ...

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Evaluates a component. Inputs are cast to the manifest's dtypes; outputs come in the manifest's order."""
        ...


class Binding(Protocol):
    """A component on given memory: a call enqueues its evaluation."""

    def __call__(self) -> None: ...
    def release(self) -> None:
        """Frees what the engine holds for it; it is not called any more."""
        ...


class DeviceEngine(Engine, Protocol):
    """An engine on a GPU, whose work is enqueued on one stream and reads and writes given memory.

    not_capturable: why that work cannot be captured into a CUDA graph of the caller's; None where it can.
    """

    @property
    def not_capturable(self) -> str | None: ...

    def bind(self, component: str, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> Binding:
        """What evaluates a component for good: a call enqueues it, and neither waits nor copies.

        sizes: of the dimensions "N" and "M". addresses: of every input and output, contiguous, in the manifest's
        dtypes; they stay as they are until the result is released. Raises OutOfMemory (cuda.driver), here or when
        called.
        """
        ...

    def close(self) -> None:
        """Frees the networks."""
        ...


def open_device_engine(name: str, bundle: Bundle, device: Device, stream: Stream) -> DeviceEngine:
    """The engine of that name on a GPU, with every component loaded. "auto" is the first of `ON_DEVICE`.

    Raises EngineError where the name is unknown, or the engine cannot run there.
    """
    name = ON_DEVICE[0] if name == "auto" else name
    module = _module(name)
    if name not in ON_DEVICE:
        raise EngineError(f"engine {name}: cannot run on {device.name}, expected auto or {', '.join(ON_DEVICE)}")
    reason = module.unavailable()
    if reason is not None:
        raise EngineError(f"engine {name}: cannot run here: {reason}")
    probe.check(name, module, bundle, None, module.precisions(bundle)[0])
    engine: DeviceEngine = module.open_device_engine(bundle, device, stream)
    return engine


def unavailable(name: str) -> str | None:
    """Why the engine cannot run on this machine's CPU, or None where it can."""
    module = _module(name)
    if not hasattr(module, "open_engine"):
        return "it runs on a GPU only, as device cuda:0"
    reason: str | None = module.unavailable()
    return reason


def version(name: str) -> str:
    """Of the engine's library, which has to be there."""
    return str(_module(name).version())


def note(name: str) -> str:
    """What the engine is, in a few words."""
    return str(_module(name).NOTE)


def packages() -> tuple[str, ...]:
    """What pip installs for any of the engines."""
    return tuple(dict.fromkeys(p for name in ENGINES for p in _module(name).PACKAGES))


def precisions(name: str, bundle: Bundle) -> tuple[str, ...]:
    """What the engine can compute the bundle's U-Net in on this machine: the graphs' own type first, then faster ones.

    The engine has to be able to run here (`unavailable`).
    """
    able: tuple[str, ...] = _module(name).precisions(bundle)
    return able


def open_engine(
    name: str, bundle: Bundle, threads: int | None = None, precision: str | None = None, trusted: bool = False
) -> Engine:
    """The engine of that name on the bundle, with every component loaded and verified.

    name: a key of `ENGINES`. precision: one of `precisions`, by default the graphs' own. threads: how many the engine
    may use, by default all cores that this process may use. Raises EngineError where the name is unknown, or the engine
    cannot run or compute that; another one is never substituted. BundleError for graphs that it does not take. Graphs
    that this machine has not opened yet are opened in a process of their own first (`probe`), unless `trusted`.
    """
    module = _module(name)
    reason = unavailable(name)
    if reason is not None:
        raise EngineError(f"engine {name}: cannot run here: {reason}")
    able = precisions(name, bundle)
    if precision is not None and precision not in able:
        raise EngineError(
            f"precision: found {precision!r}, and engine {name} computes {bundle.folder} in {' or '.join(able)} here"
        )
    precision = precision or able[0]
    opened = not trusted and probe.check(name, module, bundle, threads, precision)
    try:
        engine: Engine = module.open_engine(bundle, threads, precision)
    except MemoryError:
        raise EngineError(f"{bundle.folder}: engine {name} cannot open it: too little memory") from None
    except BundleError as e:
        if opened and e.__cause__ is not None:  # a library refuses what it took before: that is no fault of the graph's
            raise EngineError(f"{e}, which it has loaded before: too little memory, perhaps") from e.__cause__
        raise
    return engine


def _module(name: str) -> Any:
    if not isinstance(name, str) or name not in ENGINES:
        raise EngineError(f"engine: found {name!r}, expected auto, {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[name])
