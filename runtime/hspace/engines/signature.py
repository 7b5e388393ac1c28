"""Whether a graph is what the manifest says, for engines that load graphs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ..errors import BundleError
from ..manifest import Component, Tensor

Port = tuple[str, str, list[int | None]]  # name, the engine's word for its dtype, shape with batch dimensions None


def check_signature(
    spec: Component, inputs: Iterable[Port], outputs: Iterable[Port], dtypes: Mapping[str, str], where: str
) -> None:
    """Raises BundleError where names, dtypes or shapes differ. dtypes: the manifest's words to the engine's."""
    for kind, declared, ports in (("inputs", spec.inputs, inputs), ("outputs", spec.outputs, outputs)):
        expected = sorted((t.name, dtypes[t.dtype], str(_fixed(t))) for t in declared)
        given = sorted((name, dtype, str(shape)) for name, dtype, shape in ports)
        if given != expected:
            raise BundleError(f"{where}: {kind}: found {given}, expected what the manifest says: {expected}")


def declared(spec: Component) -> str:
    """Both signatures as text, for the key of what is cached: it was checked against these, and serves no other."""
    return str([[(t.name, t.dtype, t.shape) for t in tensors] for tensors in (spec.inputs, spec.outputs)])


def _fixed(tensor: Tensor) -> list[int | None]:
    """A shape with its batch dimensions, which have names, left open."""
    return [d if isinstance(d, int) else None for d in tensor.shape]
