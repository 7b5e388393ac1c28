"""The U-Net on an engine: the trunk, the features that it hands on, and the heads that read them.

    with unet.trunk(engine, x, t, z_sem) as features:
        eps = unet.head(engine, features, h, source)

An engine may hand the skips on in a form of its own (`OwnSkips`), so that they are neither copied nor converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
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


class Features:
    """What a trunk made of N samples. h [N, C, H, W] and temb [N, T]: arrays of the caller's. The rest is opaque.

    It holds an engine's memory until it is released, at the latest at the end of a `with`.
    """

    __slots__ = ("_given", "_skips", "h", "temb")

    def __init__(
        self, h: NDArray[Any], temb: NDArray[Any], given: dict[str, NDArray[Any]], skips: Skips | None
    ) -> None:
        self.h, self.temb = h, temb
        self._given: dict[str, NDArray[Any]] | None = given  # the head's inputs but h and source; None once released
        self._skips = skips  # None where they are arrays, among what is given

    def release(self) -> None:
        """Lets the engine have its memory back. A head cannot read the features any more; h and temb stay."""
        skips, self._given, self._skips = self._skips, None, None
        if skips is not None:
            skips.release()

    def __enter__(self) -> Features:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@cache
def _names(count: int) -> tuple[str, ...]:
    """Of skips, kept since a step is made of microseconds."""
    return tuple(f"skip_{i}" for i in range(count))


def trunk(engine: Engine, x: NDArray[Any], t: NDArray[Any], z_sem: NDArray[Any] | None = None) -> Features:
    """Evaluates the trunk. x: float32 [N, 3, H, W]. t: int32 [N]. z_sem: float32 [N, Z], where the U-Net takes it.

    Raises EngineError.
    """
    inputs = {"x": x, "t": t} if z_sem is None else {"x": x, "t": t, "z_sem": z_sem}
    own = getattr(engine, "trunk", None)  # of `OwnSkips`
    if own is None:
        h, temb, *arrays = engine.run("trunk", inputs)
        given, skips = dict(zip(_names(len(arrays)), arrays, strict=True)), None
    else:
        h, temb, skips = own(inputs)
        given = {}
    given["temb"] = temb
    if z_sem is not None:
        given["z_sem"] = z_sem
    return Features(h, temb, given, skips)


def head(engine: Engine, features: Features, h: NDArray[Any], source: NDArray[Any]) -> NDArray[Any]:
    """ε [M, 3, H, W]. h: [M, C, H, W], the features' own or moved. source: int64 [M], the trunk's sample of each.

    features: of a trunk on the same engine. Raises EngineError, also where they were released.
    """
    if features._given is None:
        raise EngineError("features: were released, expected those of a trunk that are still held")
    inputs = {"h": h, "source": source, **features._given}
    if features._skips is None:
        return engine.run("head", inputs)[0]
    eps: NDArray[Any] = engine.head(features._skips, inputs)  # type: ignore[attr-defined]  # of `OwnSkips`
    return eps
