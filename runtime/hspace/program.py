"""Programs: a sampler as a table with one row per network evaluation.

With ε̃ the prediction with Δh injected (ε̃ = ε where a row injects nothing), a row says

    P      = (x − sigma·ε̃) / alpha                      predicted x_0, clamped to [−1, 1] where `clip`
    x_next = c_x·x + c_x0·P + c_eps·ε + c_x_prev·x_prev + c_x0_prev·P_prev + c_noise·z

and where `clip` is 2, ε is first derived anew from the clamped unedited P(ε): ε ← (x − alpha·P(ε))/sigma. That is
all an executor knows about sampling. `samplers` builds rows in float64; a `Program` holds them rounded to float32.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProgramError
from .files import MAX_TEXT_BYTES, read_file, write_atomically


class Branch(enum.IntEnum):
    """How a row injects Δh: not at all, into P alone (Asyrp), or into P and the direction (Haas et al.)."""

    NONE = 0
    ASYMMETRIC = 1
    SYMMETRIC = 2


COEFFICIENTS = ("alpha", "sigma", "c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev", "c_noise", "edit_scale")
_FLAGS = [("t", np.int32), ("clip", np.uint8), ("draws", np.uint8), ("branch", np.uint8)]
ROW = np.dtype([(name, np.float32) for name in COEFFICIENTS] + _FLAGS)
ROW64 = np.dtype([(name, np.float64) for name in COEFFICIENTS] + _FLAGS)

Rows = NDArray[Any]  # of dtype ROW or ROW64: NumPy's types cannot say so


@dataclass(frozen=True, eq=False)
class Program:
    """A table of rows, in the order in which they run.

    rows: ROW [R], read-only. name: for people.
    """

    name: str
    rows: Rows

    @classmethod
    def from_rows(cls, name: str, rows: Rows) -> Program:
        """Rounds a builder's float64 rows (ROW64 [R]) to the float32 table that executors run."""
        table = rows.astype(ROW)
        _check(name, table)
        table.flags.writeable = False
        return cls(name, table)

    def __len__(self) -> int:
        return len(self.rows)

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self.name == other.name and bool(np.array_equal(self.rows, other.rows))

    @property
    def draws(self) -> NDArray[np.int64]:
        """int64 [R]: how many rows before each row take a draw, which is the number of that row's own draw."""
        taken = self.rows["draws"].astype(np.int64)
        return np.cumsum(taken) - taken

    def __str__(self) -> str:
        """The table, a line per row; columns that are zero throughout are left out."""
        shown = [n for n in COEFFICIENTS if n in ("alpha", "sigma") or self.rows[n].any()]
        lines = ["  row    t  " + "".join(f"{n:>12}" for n in shown) + "  flags"]
        for i, row in enumerate(self.rows):
            flags = [("", "clip", "clip both")[row["clip"]]] * bool(row["clip"]) + ["draw"] * int(row["draws"])
            flags += [Branch(int(row["branch"])).name.lower()] if row["branch"] else []
            cells = "".join(f"{row[n]:12.6g}" for n in shown)
            lines.append(f"{i:5d} {row['t']:4d}  {cells}  {' '.join(flags)}".rstrip())
        return f"{self.name}: {len(self)} rows\n" + "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Writes the program as JSON, a row per line; float32 values survive to the last bit."""
        columns = list(ROW.names or ())
        rows = ",\n".join("    " + json.dumps([_plain(row[n]) for n in columns]) for row in self.rows)
        text = f'{{\n  "format": "hspace-program-1",\n  "name": {json.dumps(self.name)},\n'
        text += f'  "columns": {json.dumps(columns)},\n  "rows": [\n{rows}\n  ]\n}}\n'
        write_atomically(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | Path) -> Program:
        """Reads a program that `save` wrote. Raises ProgramError where the file is anything else."""
        try:
            content = json.loads(read_file(path, ProgramError, MAX_TEXT_BYTES).decode())
        except (ValueError, RecursionError):
            raise ProgramError(f"{path}: expected a program in JSON") from None
        keys = {"format", "name", "columns", "rows"}
        if not isinstance(content, dict) or set(content) != keys or content["format"] != "hspace-program-1":
            raise ProgramError(f"{path}: expected a program of format hspace-program-1 with the keys {sorted(keys)}")
        if content["columns"] != list(ROW.names or ()):
            raise ProgramError(f"{path}: expected the columns {', '.join(ROW.names or ())}")
        kinds = [(int, float) if n in COEFFICIENTS else (int,) for n in ROW.names or ()]
        try:
            for row in content["rows"]:
                if not all(
                    isinstance(v, k) and v is not True and v is not False for v, k in zip(row, kinds, strict=True)
                ):
                    raise ValueError
            with np.errstate(over="ignore"):  # what overflows, _check refuses
                table = np.array([tuple(row) for row in content["rows"]], dtype=ROW)
        except (TypeError, ValueError, OverflowError):
            raise ProgramError(
                f"{path}: expected {len(kinds)} numbers in every row, whole ones for the flags"
            ) from None
        _check(str(path), table)
        table.flags.writeable = False
        return cls(str(content["name"]), table)


def _plain(value: Any) -> int | float:
    """A float32 as the shortest decimal that reads back as the same float32."""
    return float(str(value)) if isinstance(value, np.floating) else int(value)


def _check(name: str, table: Rows) -> None:
    if table.ndim != 1 or len(table) == 0:
        raise ProgramError(f"{name}: a program has at least one row")
    for column in COEFFICIENTS:
        if not np.isfinite(table[column]).all():
            raise ProgramError(f"{name}: column {column} has values that are not finite")
    if (table["t"] < 0).any() or (table["sigma"] < 0).any():
        raise ProgramError(f"{name}: columns t and sigma: expected values of at least 0")
    if not (table["alpha"] > 0).all():
        raise ProgramError(f"{name}: column alpha has values that are not positive; P divides by it")
    if ((table["clip"] == 2) & (table["sigma"] == 0)).any():
        raise ProgramError(f"{name}: column clip: found 2 in a row without noise, whose ε cannot be derived anew")
    for column, largest in (("clip", 2), ("draws", 1), ("branch", max(Branch))):
        if (table[column] > largest).any():
            raise ProgramError(f"{name}: column {column} has values above {largest}")


def concatenate(programs: Iterable[Program]) -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """The programs' rows in one table (ROW [R]), their draw numbers (int64 [R]), and where each ends (int64 [P])."""
    each = list(programs)
    table = np.concatenate([p.rows for p in each])
    return table, np.concatenate([p.draws for p in each]), np.cumsum([len(p) for p in each])
