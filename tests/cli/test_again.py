"""The same command again: what would be the same is kept, and what would differ is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hspace import Editor

from .conftest import NULL_WARNING, Cli, pixels

# arguments, and others that make another result
SERIES: dict[str, tuple[list[str], list[str], str]] = {
    "sweep": (["a.png", "b.png", "--over", "smile=-1:1:2"], ["--set", "beard=1"], "bundle, strengths"),
    "interpolate": (["a.png", "b.png", "--frames", "4"], ["--steps", "3"], "run"),
    "timeline": (["a.png", "--frames", "4"], ["--steps", "9"], "run"),
    "sample": (["4"], ["--seed", "5"], "seed"),
    "vary": (["a.png", "--count", "4"], ["--seed", "5"], "seed"),
    "inject": (
        ["a.png", "b.png", "--strength", "0.2", "--strength", "0.4", "--strength", "0.6", "--strength", "1"],
        ["--t-edit", "10"],
        "run",
    ),
}
KINDS = [(c, n) for c in SERIES for n in ("x.png", "x.bmp", "x")] + [
    (c, n) for c in ("interpolate", "timeline") for n in ("x.gif", "x.apng")
]


@pytest.fixture
def computes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the calls that compute anything."""
    found: list[str] = []
    for name in ("encode", "decode", "edit", "sweep", "interpolate", "sample", "vary", "inject"):
        original = getattr(Editor, name)

        def call(self: Editor, *a: Any, _original: Any = original, _name: str = name, **k: Any) -> Any:
            found.append(_name)
            return _original(self, *a, **k)

        monkeypatch.setattr(Editor, name, call)
    return found


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (sorted(path.iterdir()) if path.is_dir() else [path])}


@pytest.mark.parametrize(("command", "name"), KINDS)
def test_series(
    command: str,
    name: str,
    cli: Cli,
    on: list[object],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    computes: list[str],
) -> None:
    """Kept without any computing; refused where they would differ, and then as they were; --update makes them anew."""
    monkeypatch.chdir(photos)
    arguments, other, differs = SERIES[command]
    out = tmp_path / name
    cli(command, *arguments, *on, "--json", "-o", out).check()
    before = contents(out)
    computes.clear()
    again = cli(command, *arguments, *on, "--json", "-o", out).check().json
    assert (again["outputs"], len(again["kept"]), computes) == ([], 4 if name == "x" else 1, [])
    text = cli(command, *arguments, *on, "-o", out).check().out
    assert ("wrote 0 files in" in text and "kept 4 that exist" in text) if name == "x" else f"kept {out}: it" in text
    found = cli(command, *arguments, *on, *other, "-o", out)
    assert found.code == 7 and f" and was made otherwise ({differs}); --update makes such ones" in found.err
    assert found.out.count("\nrefused ") == (4 if name == "x" else 0)
    assert (contents(out), computes) == (before, [])
    made = cli(command, *arguments, *on, *other, "--update", "--json", "-o", out).check().json
    assert (len(made["outputs"]), made["kept"]) == (4 if name == "x" else 1, [])
    fresh = tmp_path / "fresh" / name
    fresh.parent.mkdir()
    cli(command, *arguments, *on, *other, "-o", fresh).check()
    assert contents(out) == contents(fresh)
    computes.clear()
    forced = cli(command, *arguments, *on, *other, "--force", "--json", "-o", out).check().json
    assert len(forced["outputs"]) == (4 if name == "x" else 1) and computes != []


@pytest.mark.parametrize("command", SERIES)
def test_a_series_that_was_begun(
    command: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its missing files are written, with what they would have held; one that has another's place is named."""
    monkeypatch.chdir(photos)
    arguments = [command, *SERIES[command][0], *on, "-o", tmp_path / "x"]
    cli(*arguments).check()
    before = contents(tmp_path / "x")
    (tmp_path / "x" / "0001.png").unlink()
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "x").iterdir()}
    found = cli(*arguments, "--json").check().json
    assert ([Path(p).name for p in found["outputs"]], len(found["kept"])) == (["0001.png"], 3)
    assert contents(tmp_path / "x") == before
    assert times.items() <= {p.name: p.stat().st_mtime_ns for p in (tmp_path / "x").iterdir()}.items()
    shutil.copy(tmp_path / "x" / "0002.png", tmp_path / "x" / "0000.png")
    found = cli(*arguments)
    assert found.code == 7 and "1 of 4 outputs refused: " in found.err
    assert "0000.png: exists and was made otherwise (image)" in found.err
    cli(*arguments, "--update").check()
    assert contents(tmp_path / "x") == before


def test_a_sheet_shows_names(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """So one of the same picture under another name is another."""
    shutil.copy(photos / "a.png", photos / "z.png")
    more = [*on, "--over", "smile=0:1:2"]
    cli("sweep", photos / "a.png", *more, "-o", tmp_path / "x.png").check()
    cli("sweep", photos / "z.png", *more, "-o", tmp_path / "x.png").error(7, "made otherwise (sources)")
    cli("sweep", photos / "a.png", *more, "-o", tmp_path / "x").check()
    assert len(cli("sweep", photos / "z.png", *more, "--json", "-o", tmp_path / "x").check().json["kept"]) == 2


def test_a_changed_input_of_a_series(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    arguments = ["vary", photos / "a.png", *on, "--count", 2, "-o", tmp_path / "x.png"]
    cli(*arguments).check()
    shutil.copy(photos / "b.png", photos / "a.png")
    cli(*arguments).error(7, "x.png: exists and was made otherwise (sources)")


@pytest.mark.parametrize(("command", "suffix"), [("edit", "png"), ("edit", "bmp"), ("encode", "safetensors")])
def test_one_file(
    command: str, suffix: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, computes: list[str]
) -> None:
    out = tmp_path / f"out.{suffix}"
    cli(command, photos / "a.png", *on, "-o", out).check()
    before, _ = out.read_bytes(), computes.clear()
    assert cli(command, photos / "a.png", *on, "-o", out).check().out == (
        f"kept {out}: it exists and would be the same (--force makes it anew)\n"
    )
    cli(command, photos / "b.png", *on, "-o", out).error(7, f"{out}: exists and was made otherwise (sources)")
    assert (out.read_bytes(), computes) == (before, [])


# --- names of folders, suffixes -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run1.2", "v0.3/", "out.png/", "faces.2026.11", "x.xyz/"])
@pytest.mark.parametrize("command", [["edit", "a.png"], ["sample", "1"]], ids=lambda c: c[0])
def test_folders_with_dots(
    name: str, command: list[str], cli: Cli, on: list[object], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slash behind means a folder, and a number is no suffix; again as well, when the folder is there."""
    monkeypatch.chdir(photos)
    written = photos / name / ("a.png" if command[0] == "edit" else "0000.png")
    assert cli(*command, *on, "--json", "-o", name).check().json["outputs"] == [str(written.relative_to(photos))]
    assert pixels(written).shape == (8, 8, 3)
    assert len(cli(*command, *on, "--json", "-o", name).check().json["kept"]) == 1
    cli(*command, *on, "-o", "out.xyz").error(2, "out.xyz: found the suffix '.xyz', expected one of .png")
    Path("run3.4").write_text("mine")
    cli(*command, *on, "-o", "run3.4").error(7, "run3.4: a file, expected a folder")


def test_mpo_files_are_read(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """A camera's, whose first picture counts."""
    import PIL.Image

    with PIL.Image.open(photos / "a.png") as first, PIL.Image.open(photos / "b.png") as second:
        first.save(photos / "d.MPO", "MPO", save_all=True, append_images=[second])
        first.save(photos / "e.jpg", "JPEG")
    cli("edit", photos, *on, "-o", tmp_path / "x").check()
    np.testing.assert_array_equal(pixels(tmp_path / "x" / "d.png"), pixels(tmp_path / "x" / "e.png"))


# --- what is said -------------------------------------------------------------------------------------


def test_null_engine(
    cli: Cli,
    on: list[object],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What it makes is meaningless, and stderr says so once, however it was asked for."""
    import hspace.cli

    monkeypatch.setenv("HSPACE_ENGINE", "null")
    for i, engine in enumerate((on[2:], [])):
        arguments = ["edit", photos / "a.png", *on[:2], *engine, "-o", tmp_path / f"{i}.png"]
        monkeypatch.setattr("sys.argv", ["hspace", *map(str, arguments)])
        hspace.cli.main()
        assert capsys.readouterr().err == NULL_WARNING


def test_what_was_found_instead(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    out, latent = ["-o", tmp_path / "x.png"], photos / "a.safetensors"
    cli("decode", photos / "a.png", *on, *out).error(8, "a.png: expected a safetensors file, found an image (PNG)\n")
    cli("decode", photos / "notes.txt", *on, *out).error(8, "expected a safetensors file, found a text\n")
    cli("encode", photos / "a.png", *on, "-o", latent).check()
    cli("edit", latent, *on, *out).error(4, "found a safetensors file (`hspace decode` takes latents)\n")
    data = latent.read_bytes()
    latent.write_bytes(data[:-9])
    says = f"found a safetensors file that is damaged, or cut short after {len(data) - 9} bytes\n"
    cli("decode", latent, *on, *out).error(8, says)
    (photos / "empty.safetensors").write_bytes(b"")
    cli("decode", photos / "empty.safetensors", *on, *out).error(8, "expected a safetensors file, found an empty file")
