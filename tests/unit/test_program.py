"""Programs as text and as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hspace import samplers
from hspace.errors import OutputError, ProgramError
from hspace.program import COEFFICIENTS, ROW64, Program
from hspace.schedule import Schedule, space_timesteps


@pytest.fixture
def program() -> Program:
    ts = space_timesteps("asyrp", 7, Schedule.linear())
    rows = samplers.edit(Schedule.linear(), ts, t_edit=500, t_boost=300, edit_scale=40 / 7)
    return Program.from_rows("edit", rows)


def test_a_file_keeps_every_bit(program: Program, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = np.zeros(50, dtype=ROW64)
    for name in COEFFICIENTS:
        rows[name] = np.exp(rng.uniform(-40, 40, 50)) * rng.choice([-1, 1], 50)
    rows["alpha"], rows["sigma"] = np.abs(rows["alpha"]), np.abs(rows["sigma"])
    for p in (program, Program.from_rows("random", rows)):
        p.save(tmp_path / "p.json")
        loaded = Program.load(tmp_path / "p.json")
        assert loaded.rows.tobytes() == p.rows.tobytes() and loaded == p


def test_a_file_has_a_line_per_row(program: Program, tmp_path: Path) -> None:
    """So that two programs can be compared with a line diff."""
    program.save(tmp_path / "p.json")
    assert len((tmp_path / "p.json").read_text().splitlines()) == len(program) + 7


def test_rows_are_read_only(program: Program) -> None:
    with pytest.raises(ValueError, match="read-only"):
        program.rows["alpha"][0] = 1


def test_draw_numbers_count_the_rows_that_draw(program: Program) -> None:
    assert program.rows["draws"].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert program.draws.tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_text_shows_what_matters(program: Program) -> None:
    text = str(program).splitlines()
    assert text[0] == "edit: 7 rows" and len(text) == 9
    assert "c_x_prev" not in text[1] and "edit_scale" in text[1]
    assert text[2].endswith("asymmetric") and text[-1].endswith("draw")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format="hspace-program-2"), "hspace-program-1"),
        (lambda d: d.update(extra=1), "hspace-program-1"),
        (lambda d: d["columns"].reverse(), "columns"),
        (lambda d: d["rows"][0].pop(), "13 numbers"),
        (lambda d: d["rows"][0].__setitem__(0, "x"), "13 numbers"),
        (lambda d: d["rows"].clear(), "at least one row"),
        (lambda d: d["rows"][0].__setitem__(0, 0.0), "alpha"),
        (lambda d: d["rows"][0].__setitem__(1, float("inf")), "sigma has values that are not finite"),
        (lambda d: d["rows"][0].__setitem__(12, 3), "branch has values above 2"),
    ],
)
def test_malformed_files(program: Program, tmp_path: Path, change, message: str) -> None:
    path = tmp_path / "p.json"
    program.save(path)
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(ProgramError, match=message):
        Program.load(path)


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text("{")
    for name, said in (("p.json", "expected a program"), ("none.json", "no such file"), (".", "not a file")):
        with pytest.raises(ProgramError, match=said):
            Program.load(tmp_path / name)


def test_nothing_half_written(program: Program, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        program.save(tmp_path / "missing" / "p.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        program.save(tmp_path / "folder.json")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.json"]
