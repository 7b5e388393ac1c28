"""The table of what is compiled: every kernel, in every type of network where it has one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from . import inject, linear_step


@dataclass(frozen=True)
class Variant:
    """A kernel with the types of its parameters, in launch order, and its constants.

    parameters: name → "*fp32", "i32" and so on. block: the constants, which are tile sizes that the grid depends on.
    grid: for people. num_warps: as asked for; what a build made of it stands beside each image.
    """

    kernel: Any
    parameters: dict[str, str]
    grid: str
    block: dict[str, int] = field(default_factory=dict)
    num_warps: int = 4


def _parameters(kernel: Any, types: dict[str, str]) -> dict[str, str]:
    """The kernel's own parameters in their order, with their types; i32 where `types` does not name one."""
    return {name: types.get(name, "i32") for name in kernel.arg_names if not name.startswith("BLOCK")}


def _table() -> dict[str, Variant]:
    table: dict[str, Variant] = {}
    words = dict.fromkeys(("records", "pairs", "targets", "terms"), "*i32")
    state = dict.fromkeys(("x", "x_prev", "p", "z", "u", "v"), "*fp32")
    for t in ("fp16", "fp32"):
        types = words | state | dict.fromkeys(("eps", "x_in", "h", "temb"), f"*{t}")
        groups = "(min(32, C), number of pairs)"
        table |= {
            f"linear_step_{t}": Variant(
                linear_step.linear_step,
                _parameters(linear_step.linear_step, types),
                "(ceil(elements / BLOCK), N)",
                {"BLOCK": linear_step.BLOCK},
            ),
            f"block_norm_{t}": Variant(inject.block_norm, _parameters(inject.block_norm, types), groups),
            f"block_hidden_{t}": Variant(
                inject.block_hidden,
                _parameters(inject.block_hidden, types),
                groups,
                num_warps=inject.HIDDEN_WARPS,
            ),
            f"inject_{t}": Variant(
                inject.inject,
                _parameters(inject.inject, types),
                "(ceil(C / BLOCK_C), ceil(P / BLOCK_P), number of targets)",
                {"BLOCK_C": inject.BLOCK_C, "BLOCK_P": inject.BLOCK_P},
            ),
        }
    return table


VARIANTS = _table()
