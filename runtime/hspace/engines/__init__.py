"""Engines evaluate a bundle's components. Each is a module found by name and imported when asked for.

To add one: a module with `unavailable()`, which says why it cannot run here (or None), and `open_engine(bundle,
threads)`, which returns an `Engine`; then its line in `ENGINES`, and its place in `AUTO_ORDER` if `auto` may take it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import EngineError

ENGINES = {
    "openvino": "hspace.engines.openvino",
    "onnx": "hspace.engines.onnx",
    "null": "hspace.engines.null",
}
AUTO_ORDER = ("onnx",)  # fastest first; `null` computes nothing real, so `auto` never takes it


class Engine(Protocol):
    """One narrow contract: named arrays in, a component's outputs out. Safe to call from several threads."""

    @property
    def name(self) -> str: ...
    @property
    def device(self) -> str: ...

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Evaluates a component. Inputs are cast to the manifest's dtypes; outputs come in the manifest's order."""
        ...


def unavailable(name: str) -> str | None:
    """Why the engine cannot run on this machine, or None where it can."""
    reason: str | None = _module(name).unavailable()
    return reason


def open_engine(name: str, bundle: Bundle, threads: int | None = None) -> Engine:
    """The engine of that name on the bundle, with every component loaded and verified.

    name: a key of `ENGINES`, or "auto": the first of `AUTO_ORDER` that can run here. threads: how many the engine
    may use, by default its own choice. Raises EngineError where the name is unknown or the engine cannot run;
    another one is never substituted.
    """
    if name == "auto":
        reasons = {candidate: unavailable(candidate) for candidate in AUTO_ORDER}
        usable = [candidate for candidate, reason in reasons.items() if reason is None]
        if not usable:
            listed = "; ".join(f"{candidate}: {reason}" for candidate, reason in reasons.items())
            raise EngineError(f"engine: none can run here: {listed}")
        name = usable[0]
    reason = unavailable(name)
    if reason is not None:
        raise EngineError(f"engine {name}: cannot run here: {reason}")
    engine: Engine = _module(name).open_engine(bundle, threads)
    return engine


def _module(name: str) -> Any:
    if not isinstance(name, str) or name not in ENGINES:
        raise EngineError(f"engine: found {name!r}, expected auto, {', '.join(ENGINES)}")
    return importlib.import_module(ENGINES[name])
