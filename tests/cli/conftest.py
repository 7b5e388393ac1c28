"""The command line in this process, on null bundles."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hspace.cli
import numpy as np
import PIL.Image
import pytest

# of commands that wrote something with the engine null; most tests here use it, and test_null_engine sees it
NULL_WARNING = "hspace: warning: engine null computes nothing real: what it makes is for tests alone\n"


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def check(self) -> Result:
        """Success, with nothing on stderr."""
        assert (self.code, self.err) == (0, "")
        return self

    def error(self, code: int, *fragments: str) -> None:
        """One line on stderr with these fragments, nothing on stdout, and this exit code."""
        assert self.err.startswith("hspace: error: "), self.err
        assert self.err.count("\n") == 1 and self.err.endswith("\n"), self.err
        assert [f for f in fragments if f not in self.err] == [], self.err
        assert (self.code, self.out) == (code, "")


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs `hspace` with these arguments."""
    monkeypatch.delenv("HSPACE_BUNDLE", raising=False)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr("sys.argv", ["hspace", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            hspace.cli.main()
        except SystemExit as e:
            code = 0 if e.code is None else int(e.code)
        out, err = capsys.readouterr()
        return Result(code, out, err.replace(NULL_WARNING, ""))

    return run


@pytest.fixture
def bundle(_null_bundles: dict[str, Path]) -> Path:
    return _null_bundles["diffae"]


@pytest.fixture
def asyrp(_null_bundles: dict[str, Path]) -> Path:
    return _null_bundles["asyrp"]


@pytest.fixture
def on(bundle: Path) -> list[object]:
    """The options that most commands need here; few steps, since each counts."""
    return ["-b", bundle, "--engine", "null"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with three pictures of 8 × 8, and a file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "c.png"):
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def pixels(path: Path) -> np.ndarray:
    """uint8 [H, W, 3]."""
    with PIL.Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)
