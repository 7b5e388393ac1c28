"""Folders: those in folders, what their outputs are called, and inputs that would become one output."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from .conftest import Cli, pixels


def tree(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def nested(photos: Path) -> Path:
    """photos/{a,b,c}.png, photos/x/{a,d}.png and photos/x/y/a.png, and what is passed by."""
    for folder, name in (("x", "a.png"), ("x", "d.png"), ("x/y", "a.png"), (".hidden", "h.png"), ("empty", "")):
        (photos / folder).mkdir(parents=True, exist_ok=True)
        if name:
            seed = len(folder) + len(name) + ord(name[0])
            array = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            PIL.Image.fromarray(array).save(photos / folder / name)
    (photos / "x" / "loop").symlink_to(photos, target_is_directory=True)
    return photos


EVERY = ["a", "b", "c", "x/a", "x/d", "x/y/a"]


@pytest.mark.parametrize(("command", "suffix"), [("edit", ".png"), ("encode", ".safetensors")])
def test_recursion(command: str, suffix: str, cli: Cli, on: list[object], nested: Path, tmp_path: Path) -> None:
    """The output mirrors the folders, and holds what a call on each picture gives."""
    cli(command, nested, *on, "-o", tmp_path / "flat").check()
    assert tree(tmp_path / "flat") == [f"{n}{suffix}" for n in EVERY[:3]]
    cli(command, nested, *on, "--recursive", "-o", tmp_path / "out").check()
    assert tree(tmp_path / "out") == [f"{n}{suffix}" for n in EVERY]
    if command == "edit":
        for name in EVERY:
            cli("edit", nested / f"{name}.png", *on, "--force", "-o", tmp_path / "one.png").check()
            found = pixels(tmp_path / "out" / f"{name}.png").astype(int)
            assert np.abs(found - pixels(tmp_path / "one.png")).max() <= 1
    else:
        cli("decode", tmp_path / "out", *on, "--recursive", "-o", tmp_path / "images").check()
        assert tree(tmp_path / "images") == [f"{n}.png" for n in EVERY]


def test_an_output_in_its_input(cli: Cli, on: list[object], nested: Path) -> None:
    """It is not among the inputs of the next call."""
    for kept in (0, 6):
        found = cli("edit", nested, *on, "--recursive", "--json", "-o", nested / "x" / "out").check().json
        assert len(found["kept"]) == kept
    assert tree(nested / "x" / "out") == [f"{n}.png" for n in EVERY]


def test_classify_recursively(cli: Cli, on: list[object], nested: Path) -> None:
    found = cli("classify", nested, *on, "--recursive", "--json").check().json["images"]
    assert sorted(row["file"] for row in found) == [str(nested / f"{n}.png") for n in EVERY]


def test_a_folder_that_cannot_be_read(cli: Cli, on: list[object], nested: Path, tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root reads everything")
    (nested / "x").chmod(0)
    cli("edit", nested, *on, "--recursive", "-o", tmp_path / "out").error(1, "x: Permission denied")
    (nested / "x").chmod(0o700)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{stem}.{ext}", ["a.png", "b.png", "c.png"]),
        ("{stem}_smiling.{ext}", ["a_smiling.png", "b_smiling.png", "c_smiling.png"]),
        ("{index}.{ext}", ["0.png", "1.png", "2.png"]),
        ("{index:04d}-{stem}.{ext}", ["0000-a.png", "0001-b.png", "0002-c.png"]),
        ("x {stem} {stem} é.{ext}", ["x a a é.png", "x b b é.png", "x c c é.png"]),
    ],
)
def test_names(template: str, expected: list[str], cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("edit", photos, *on, "--name", template, "-o", tmp_path / "out").check()
    assert tree(tmp_path / "out") == expected
    cli("edit", photos / "b.png", *on, "-o", tmp_path / "b.png").check()
    found = pixels(tmp_path / "out" / expected[1]).astype(int)
    assert np.abs(found - pixels(tmp_path / "b.png")).max() <= 1


BAD = [
    "", "x", "{stem}", "{stem}.png", ".{ext}/{ext}", "../{stem}.{ext}", "a/{stem}.{ext}", "a\\{stem}.{ext}",
    "{stem.__class__}.{ext}", "{stem!r}.{ext}", "{0}.{ext}", "{}.{ext}", "{index:x}.{ext}", "{index:099999999d}.{ext}",
    "{stem:04d}.{ext}", "{{stem}}.{ext}", "{name}.{ext}", "{stem}\n.{ext}", "{stem}\x1b[2J.{ext}", "{stem}\0.{ext}",
]  # fmt: skip


@pytest.mark.parametrize("template", BAD)
def test_names_that_are_refused(template: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """Before any work; nothing of str.format is to be had."""
    result = cli("edit", photos, *on, "--name", template, "-o", tmp_path / "out")
    result.error(2, "--name: found ", "expected a file's name that ends in .{ext}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("jpg", "JPEG"), ("webp", "WEBP"), ("bmp", "BMP")])
def test_formats(kind: str, name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """Resumed like any other."""
    options = ["--format", kind, "-o", tmp_path / "out"]
    cli("edit", photos, *on, *options).check()
    made = [p for p in sorted((tmp_path / "out").iterdir()) if p.suffix != ".json"]
    assert [p.name for p in made] == [f"{n}.{kind}" for n in "abc"]
    for path in made:
        with PIL.Image.open(path) as image:
            assert (image.format, image.size) == (name, (8, 8))
    assert len(cli("edit", photos, *on, *options, "--json").check().json["kept"]) == 3


def test_quality(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """Another one is another result."""
    options = ["edit", photos, *on, "--format", "jpg", "-o", tmp_path / "out"]
    cli(*options, "--quality", 100).check()
    large = (tmp_path / "out" / "a.jpg").stat().st_size
    assert cli(*options, "--quality", 1).code == 7
    cli(*options, "--quality", 1, "--update").check()
    assert (tmp_path / "out" / "a.jpg").stat().st_size < large
    cli("edit", photos / "a.png", *on, "--quality", 50, "-o", tmp_path / "a.png").error(
        2, "--quality: found it for png"
    )
    cli("edit", photos / "a.png", *on, "--format", "jpg", "-o", tmp_path / "a.png").error(2, "--format: found jpg, and")
    cli("edit", photos / "a.png", *on, "--format", "jpg", "-o", tmp_path / "a.jpeg").check()


def test_options_of_another_output(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """None is left out silently."""
    a, named = photos / "a.png", ["--name", "{stem}_x.{ext}"]
    cli("edit", a, *on, *named, "-o", tmp_path / "x.png").error(2, "--name: of what is in a folder, and ")
    cli("encode", a, *on, *named, "-o", tmp_path / "x.safetensors").error(2, "--name: of what is in a folder, and ")
    cli("edit", a, *on, *named, "-o", "-").error(2, "--name: of what is in a folder, and - is none")
    for more, says in (
        (["--format", "jpg"], "--format: found jpg, and "),
        (["--quality", 9], "--quality: found it for "),
    ):
        cli("interpolate", a, photos / "b.png", *on, *more, "-o", tmp_path / "x.gif").error(2, says)
    assert [p.name for p in tmp_path.iterdir()] == ["photos"]


def test_clashes(cli: Cli, on: list[object], nested: Path, tmp_path: Path) -> None:
    """Each input of one output is named; all others are done, and the next call says it again."""
    inputs = [nested, nested / "x", nested / "x" / "y"]
    for outputs, kept in ((3, 0), (0, 3)):
        found = cli("edit", *inputs, *on, "--json", "-o", tmp_path / "out")
        assert found.code == 2 and found.err.startswith("hspace: error: 3 of 6 inputs refused: ")
        assert [row["file"] for row in found.json["failed"]] == [
            str(nested / f"{n}.png") for n in ("a", "x/a", "x/y/a")
        ]
        assert {row["error"] for row in found.json["failed"]} == {
            f"{nested / 'a.png'}, {nested / 'x' / 'a.png'} and 1 more would all become {tmp_path / 'out' / 'a.png'} "
            "(--name '{stem}-{index}.{ext}' tells them apart)"
        }
        assert (len(found.json["outputs"]), len(found.json["kept"])) == (outputs, kept)
    assert tree(tmp_path / "out") == ["b.png", "c.png", "d.png"]
    nothing = cli("edit", nested / "a.png", nested / "x" / "a.png", *on, "-o", tmp_path / "none")
    nothing.error(2, f"a.png would both become {tmp_path / 'none' / 'a.png'}")
    found = cli(
        "edit", nested / "a.png", nested / "x" / "a.png", *on, "--name", "{index}.{ext}", "-o", tmp_path / "two"
    )
    assert found.code == 0 and tree(tmp_path / "two") == ["0.png", "1.png"]


def test_modes_are_kept(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """An output that is replaced has the mode that it had."""
    for command, name in (("edit", "x.png"), ("encode", "x.safetensors"), ("classify", "x.csv"), ("sweep", "y.png")):
        more = ["--over", "smile=0:1:2"] if command == "sweep" else []
        arguments = [command, photos / "a.png", *on, *more, "-o", tmp_path / name]
        cli(*arguments).check()
        (tmp_path / name).chmod(0o640)
        cli(*arguments, "--force").check()
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
