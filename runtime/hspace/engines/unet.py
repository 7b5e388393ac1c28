"""The U-Net on an engine: the trunk, the features that it hands on, and the heads that read them.

    with unet.trunk(engine, x, t, z_sem) as features:
        eps = unet.head(engine, features, h, source)

An engine may hand the skips on in a form of its own (`OwnSkips`), so that they are neither copied nor converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from ..errors import EngineError

if TYPE_CHECKING:
    from . import Engine


class Skips(Protocol):
    """A trunk's skips in an engine's own form: opaque, and that engine's alone to read."""

    def release(self) -> None:
        """Gives back the memory that they are in. Called once."""
        ...


class OwnSkips(Protocol):
    """What an engine has beside `run` where its skips have a form of their own."""

    def trunk(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any], Skips]:
        """h, temb and the skips. inputs: the trunk's."""
        ...

    def head(self, skips: Any, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """ε of the head's samples. skips: of this engine's `trunk`, not released. inputs: the head's others."""
        ...


class _Arrays(dict[str, NDArray[Any]]):
    """The skips of an engine without a form of its own, by name."""

    def release(self) -> None:
        self.clear()


class Features:
    """What a trunk made of N samples. h [N, C, H, W] and temb [N, T]: arrays of the caller's. The rest is opaque.

    It holds an engine's memory until it is released, at the latest at the end of a `with`.
    """

    __slots__ = ("_given", "_skips", "h", "temb")

    def __init__(self, h: NDArray[Any], temb: NDArray[Any], skips: Skips, given: dict[str, NDArray[Any]]) -> None:
        self.h, self.temb = h, temb
        self._skips: Skips | None = skips
        self._given = given

    def release(self) -> None:
        """Lets the engine have its memory back. A head cannot read the features any more; h and temb stay."""
        skips, self._skips = self._skips, None
        if skips is not None:
            skips.release()

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def trunk(engine: Engine, x: NDArray[Any], t: NDArray[Any], z_sem: NDArray[Any] | None = None) -> Features:
    """Evaluates the trunk. x: float32 [N, 3, H, W]. t: int32 [N]. z_sem: float32 [N, Z], where the U-Net takes it.

    Raises EngineError.
    """
    inputs = {"x": x, "t": t} if z_sem is None else {"x": x, "t": t, "z_sem": z_sem}
    own: Callable[..., tuple[NDArray[Any], NDArray[Any], Skips]] | None = getattr(engine, "trunk", None)  # OwnSkips
    skips: Skips
    if own is None:
        h, temb, *arrays = engine.run("trunk", inputs)
        skips = _Arrays((f"skip_{i}", a) for i, a in enumerate(arrays))
    else:
        h, temb, skips = own(inputs)
    return Features(h, temb, skips, {"temb": temb} if z_sem is None else {"temb": temb, "z_sem": z_sem})


def head(engine: Engine, features: Features, h: NDArray[Any], source: NDArray[Any]) -> NDArray[Any]:
    """ε [M, 3, H, W]. h: [M, C, H, W], the features' own or moved. source: int64 [M], the trunk's sample of each.

    features: of a trunk on the same engine. Raises EngineError, also where they were released.
    """
    skips = features._skips
    if skips is None:
        raise EngineError("features: were released, expected those of a trunk that are still held")
    inputs = {"h": h, "source": source, **features._given}
    if isinstance(skips, _Arrays):
        return engine.run("head", inputs | skips)[0]
    eps: NDArray[Any] = engine.head(skips, inputs)  # type: ignore[attr-defined]  # OwnSkips: it made them
    return eps
