"""What sections find: goals, tables, and the file that keeps it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hspace.cli.common import table
from hspace.files import write_atomically


class Goal(NamedTuple):
    """A measured goal. found and bound in `unit`; least: whether the bound is a least, else a most."""

    name: str
    found: float
    bound: float
    unit: str
    least: bool = False

    @property
    def met(self) -> bool:
        """No for what is not a number."""
        return self.found >= self.bound if self.least else self.found <= self.bound

    @property
    def goal(self) -> str:
        return f"{'≥' if self.least else '≤'} {self.bound:g} {self.unit}".strip()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "found": self.found if np.isfinite(self.found) else None,
            "unit": self.unit,
            "goal": self.goal,
            "verdict": "met" if self.met else "missed",
        }


@dataclass
class Found:
    """What a section found. numbers: for machines; tables (headers and rows) and notes: for people.

    errors: what could not be measured, a line each.
    """

    numbers: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    tables: list[tuple[Sequence[str], list[Sequence[str]]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        goals = [g.to_json() for g in self.goals]
        return self.numbers | {"goals": goals} | ({"errors": self.errors} if self.errors else {})

    def text(self) -> str:
        """Tables, goals and errors."""
        blocks = [table(headers, rows) for headers, rows in self.tables]
        if self.goals:
            rows = [[g.name, f"{g.found:.4g} {g.unit}".strip(), g.goal, g.to_json()["verdict"]] for g in self.goals]
            blocks.append(table(["", "found", "goal", "verdict"], rows))
        lines = [*(f"{note}." for note in self.notes), *(f"Failed: {e}" for e in self.errors)]
        return "\n\n".join([*blocks, *(["\n".join(lines)] if lines else [])])


def slug(model: str) -> str:
    """A GPU's name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", model.lower()).strip("-")


def document(machine: Mapping[str, Any], quick: bool, sections: Mapping[str, Found], before: Any) -> dict[str, Any]:
    """What is kept; each section says when and of which commit it is. before: an earlier document: its sections stay
    unless they were run again, or GPU, driver or versions are others: then they are dropped.
    """
    of_section = {key: machine[key] for key in ("date", "commit") if key in machine}
    head = {"machine": {k: v for k, v in machine.items() if k not in of_section}, "quick": quick}
    kept: dict[str, Any] = {}
    if isinstance(before, dict) and all(before.get(key) == value for key, value in head.items()):
        kept = dict(before["sections"])
    return head | {"sections": kept | {name: of_section | part.to_json() for name, part in sections.items()}}


def write(path: Path, machine: Mapping[str, Any], quick: bool, sections: Mapping[str, Found]) -> None:
    """Writes the document to `path`, which may hold an earlier one."""
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError):
        before = None
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(document(machine, quick, sections, before), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (data + "\n").encode())


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Of one ratio a round: median, low, high."""
    return {"median": float(np.median(ratios)), "low": float(min(ratios)), "high": float(max(ratios))}


def spread_text(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})"
