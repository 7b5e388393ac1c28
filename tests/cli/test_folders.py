"""Commands on folders: inputs that are refused among others that are not, calls that go on where one stopped."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import hspace
import msgspec
import numpy as np
import PIL.Image
import pytest
from hspace.amend import set_preset
from hspace.bundle import Bundle

from .conftest import Cli, Result, pixels


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# --- images that are refused --------------------------------------------------------------------------

BAD = {
    "b1-empty.png": "expected an image (PNG",
    "b2-size.png": "found 9×9 pixels, expected 8×8",
    "b3-clear.png": "has transparent pixels",
    "b4-cut.png": "expected an image (PNG",
    "b5-pipe.png": "not a file",
    "b6\nline.png": "expected an image (PNG",
}


@pytest.fixture
def mixed(photos: Path) -> Path:
    """The three sound pictures, and bad ones of several kinds between them."""
    (photos / "b1-empty.png").write_bytes(b"")
    PIL.Image.new("RGB", (9, 9)).save(photos / "b2-size.png")
    PIL.Image.new("RGBA", (8, 8)).save(photos / "b3-clear.png")
    (photos / "b4-cut.png").write_bytes((photos / "a.png").read_bytes()[:-40])
    os.mkfifo(photos / "b5-pipe.png")
    (photos / "b6\nline.png").write_bytes(b"")
    return photos


def check_refused(result: Result, folder: Path, total: int) -> None:
    """One line on stderr for the first of them and the number of all, and the exit code of its error."""
    assert result.code == 4
    first = f"{folder / 'b1-empty.png'}: expected an image"
    assert result.err.startswith(f"hspace: error: 6 of {total} inputs refused: {first}")
    assert result.err.endswith(" (and 5 more)\n") and result.err.count("\n") == 1


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_others_are_done(
    batch_size: int, cli: Cli, on: list[object], mixed: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    """Whatever else stands in their batch."""
    options = ["--batch-size", batch_size, "--set", "smile=1", "-o", tmp_path / "edited"]
    result = cli("edit", mixed, *on, *options)
    check_refused(result, mixed, 9)
    assert names(tmp_path / "edited") == ["a.png", "b.png", "c.png"]
    for name in names(tmp_path / "edited"):
        expected = null_diffae.edit(mixed / name, {"smile": 1.0})[0]
        assert np.abs(pixels(tmp_path / "edited" / name).astype(int) - expected).max() <= 1


def test_report_of_refused_images(cli: Cli, on: list[object], mixed: Path, tmp_path: Path) -> None:
    """On stdout, a line each, for people and for machines."""
    result = cli("edit", mixed, *on, "-o", tmp_path / "edited")
    lines = result.out.splitlines()
    assert lines[0].startswith(f"wrote 3 files in {tmp_path / 'edited'} in ")
    for line, (name, said) in zip(lines[1:], BAD.items(), strict=True):
        shown = name.replace("\n", "\\n")
        assert line.startswith(f"refused {mixed}/{shown}: {said}")
    again = cli("edit", mixed, *on, "--json", "-o", tmp_path / "edited")
    check_refused(again, mixed, 9)
    assert [row["file"] for row in again.json["failed"]] == [str(mixed / name) for name in BAD]
    assert all(said in row["error"] for row, said in zip(again.json["failed"], BAD.values(), strict=True))


def test_next_call_goes_on(cli: Cli, on: list[object], mixed: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    """With what was refused before, once it is sound; what is done is kept, and draws are by an image's place."""
    options = ["--sampler", "ddpm", "--seed", 5, "--json", "-o", tmp_path / "edited"]
    cli("edit", mixed, *on, *options)
    before = {n: (tmp_path / "edited" / n).stat().st_mtime_ns for n in ("a.png", "b.png", "c.png")}
    (mixed / "b1-empty.png").write_bytes((mixed / "b.png").read_bytes())
    result = cli("edit", mixed, *on, *options)
    assert result.err.startswith("hspace: error: 5 of 9 inputs refused: ")
    assert [Path(p).name for p in result.json["outputs"]] == ["b1-empty.png"]
    assert [Path(p).name for p in result.json["kept"]] == list(before)
    assert before == {n: (tmp_path / "edited" / n).stat().st_mtime_ns for n in before}
    number = sorted(p.name for p in mixed.iterdir() if p.suffix == ".png").index("b1-empty.png")
    alone = null_diffae.edit(mixed / "b.png", {}, sampler="ddpm", seed=5, image_numbers=[number])[0]
    np.testing.assert_array_equal(pixels(tmp_path / "edited" / "b1-empty.png"), alone)


def test_all_are_refused(cli: Cli, on: list[object], mixed: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        (mixed / name).unlink()
    result = cli("encode", mixed, *on, "--json", "-o", tmp_path / "latents")
    check_refused(result, mixed, 6)
    assert (result.json["outputs"], len(result.json["failed"])) == ([], 6)
    assert not (tmp_path / "latents").exists()


def test_latents_that_are_refused(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("encode", photos, *on, "-o", tmp_path / "latents").check()
    (tmp_path / "latents" / "b.safetensors").write_bytes(b"")
    result = cli("decode", tmp_path / "latents", *on, "--json", "-o", tmp_path / "images")
    assert result.code == 8 and "1 of 3 inputs refused: " in result.err
    assert names(tmp_path / "images") == ["a.png", "c.png"]


@pytest.fixture
def latents(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> Path:
    cli("encode", photos, *on, "-o", tmp_path / "latents").check()
    return tmp_path / "latents"


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_a_latent_that_overflows(batch_size: int, cli: Cli, bundle: Path, latents: Path, tmp_path: Path) -> None:
    """It is named, and the others of its batch are decoded. In a model that does not clamp: clamping mends it."""
    opened = Bundle(shutil.copytree(bundle, tmp_path / "own"))
    on = ["-b", opened.folder, "--engine", "null"]
    name, preset = opened.preset(None)
    set_preset(opened, name, msgspec.structs.replace(preset, clip=False), replace=True)
    path, out = latents / "b.safetensors", tmp_path / "images"
    latent = hspace.Latent.load(path)
    extreme = np.resize(np.float32([3.4e38, -3.4e38]), latent.x_T.shape)
    hspace.Latent(extreme, latent.z_sem, provenance=latent.provenance).save(path)
    result = cli("decode", latents, *on, "--batch-size", batch_size, "--json", "-o", out)
    assert result.code == 5
    assert result.err.startswith(f"hspace: error: 1 of 3 inputs refused: {path}: decode: the result is not finite")
    assert [row["file"] for row in result.json["failed"]] == [str(path)]
    assert names(out) == ["a.png", "c.png"]
    cli("decode", path, *on, "-o", tmp_path / "x.png").error(5, "hspace: error: decode: the result is not finite")


def test_latents_that_do_not_stack(cli: Cli, on: list[object], latents: Path, tmp_path: Path) -> None:
    """Those with x_prev and those without are decoded all the same."""
    latent = hspace.Latent.load(latents / "b.safetensors")
    more = hspace.Latent(latent.x_T, latent.z_sem, latent.x_T, latent.provenance)
    more.save(latents / "b.safetensors")
    cli("decode", latents, *on, "-o", tmp_path / "images").check()
    assert names(tmp_path / "images") == ["a.png", "b.png", "c.png"]


def test_a_cancelled_call_is_no_refused_input(
    cli: Cli, on: list[object], latents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (hspace.errors.Cancelled("stopped"), KeyboardInterrupt()):

        def stop(*_: object, error: BaseException = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(hspace.Editor, "decode", stop)
        assert cli("decode", latents, *on, "-o", tmp_path / "images").code == 130
    assert not (tmp_path / "images").exists()


def test_a_failing_write_is_no_refused_input(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the command; what is written stays for the next call."""
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "b.png").mkdir()
    result = cli("edit", photos, *on, "--force", "-o", tmp_path / "edited")
    result.error(7, "b.png: cannot be written: not a file")
    assert names(tmp_path / "edited") == ["b.png"]


# --- classify -----------------------------------------------------------------------------------------


def table(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    """A CSV file's header, and its rows by file."""
    with open(path, newline="") as f:
        header, *rows = csv.reader(f)
    return header, {file: [float(x) for x in logits] for file, _, _, *logits in rows}


def test_classify_to_a_file(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor):
    scores = tmp_path / "scores.csv"
    result = cli("classify", photos, *on, "--batch-size", 2, "-o", scores).check()
    assert f"wrote {scores} in " in result.out
    header, rows = table(scores)
    entries = null_diffae.bundle.manifest.attributes
    assert header == [
        "file",
        "sha256",
        "made_by",
        *(f"{name}#{entries[name].sha256[:12]}" for name in ("smile", "beard")),
    ]
    assert list(rows) == [str(photos / n) for n in ("a.png", "b.png", "c.png")]
    np.testing.assert_allclose([*rows.values()], null_diffae.classify([*map(Path, rows)]), rtol=1e-5)


def test_classify_goes_on(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """Rows that are there are kept as they are; an image that was refused is tried again."""
    scores = tmp_path / "scores.csv"
    good = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(b"")
    result = cli("classify", photos, *on, "-o", scores)
    assert result.code == 4 and "1 of 3 inputs refused" in result.err
    _, rows = table(scores)
    assert list(rows) == [str(photos / "a.png"), str(photos / "c.png")]
    scores.write_text(scores.read_text().replace(repr(rows[str(photos / "a.png")][0]), "0.125", 1))
    (photos / "b.png").write_bytes(good)
    found = cli("classify", photos, *on, "--json", "-o", scores).check().json
    assert (found["outputs"], found["kept"]) == ([str(scores)], [str(photos / "a.png"), str(photos / "c.png")])
    _, rows = table(scores)
    assert (len(rows), rows[str(photos / "a.png")][0]) == (3, 0.125)
    before = scores.read_bytes()
    found = cli("classify", photos, *on, "--json", "-o", scores).check().json
    assert (found["outputs"], len(found["kept"]), scores.read_bytes()) == ([], 3, before)
    cli("classify", photos, *on, "--force", "-o", scores).check()
    assert table(scores)[1][str(photos / "a.png")][0] != 0.125


@pytest.mark.parametrize(
    "text",
    [
        "",
        "notes\n",
        "file,smile\nx.png,1.0\n",
        "file,smile,beard\nx.png,1.0,2.0\n",
        "HEADx.png\n",
        "HEADx.png,0,us,1.0\n",
        "HEADx.png,0,us,1.0,much\n",
    ],
    ids=["empty", "text", "other classes", "no fingerprints", "file alone", "short row", "no number"],
)
def test_classify_onto_another_table(text: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.csv"
    cli("classify", photos / "a.png", *on, "-o", scores).check()
    text = text.replace("HEAD", scores.read_text().splitlines(keepends=True)[0])
    scores.write_text(text)
    result = cli("classify", photos, *on, "-o", scores)
    result.error(7, "scores.csv: exists, and is not a table of these classifiers (--force begins it anew)")
    assert scores.read_text() == text
    cli("classify", photos, *on, "--force", "-o", scores).check()
    assert len(table(scores)[1]) == 3


def test_classify_by_another_classifier(cli: Cli, null_folder: Path, photos: Path, tmp_path: Path) -> None:
    """One that was fitted anew, or took another's name, does not add to the old one's scores."""
    arguments = ["classify", photos, "-b", null_folder, "--engine", "null", "-o", tmp_path / "x.csv"]
    cli(*arguments).check()
    for old, new in (("smile", "x"), ("beard", "smile"), ("x", "beard")):
        cli("attribute", "rename", null_folder, old, new).check()
    cli(*arguments).error(7, "x.csv: exists, and is not a table of these classifiers")
    cli(*arguments, "--force").check()


def test_classify_by_other_paths(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file is the same by its relative and its absolute path; the table has the one that was given first."""
    monkeypatch.chdir(tmp_path)
    cli("classify", "photos/a.png", *on, "-o", "x.csv").check()
    found = cli("classify", photos, *on, "--json", "-o", "x.csv").check().json
    assert found["kept"] == [str(photos / "a.png")]
    assert list(table(tmp_path / "x.csv")[1]) == ["photos/a.png", *(str(photos / n) for n in ("b.png", "c.png"))]


def test_classify_writes_now_and_then(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for every image; and at the end, also of a call that is interrupted."""
    written, whole = [], hspace.cli.images.write_atomically
    monkeypatch.setattr("hspace.cli.images.write_atomically", lambda *a: (written.append(a), whole(*a)))
    arguments = ["classify", photos, *on, "--batch-size", 1, "-o", tmp_path / "x.csv"]
    cli(*arguments).check()
    assert len(written) == 1
    monkeypatch.setattr("hspace.cli.images._Scores._SECONDS", 0)
    cli(*arguments, "--force").check()
    assert len(written) == 4
    monkeypatch.setattr("hspace.cli.images._Scores._SECONDS", 5)
    classify = hspace.Editor.classify

    def interrupted(self: hspace.Editor, images: np.ndarray) -> np.ndarray:
        if len(written) > 4:
            raise KeyboardInterrupt
        written.append(())
        return classify(self, images)

    monkeypatch.setattr(hspace.Editor, "classify", interrupted)
    assert cli(*arguments, "--force").code == 130
    assert list(table(tmp_path / "x.csv")[1]) == [str(photos / "a.png")]


def test_classify_lists_refused_images(cli: Cli, on: list[object], mixed: Path) -> None:
    """Below the table, as commands that write files do."""
    result = cli("classify", mixed, *on)
    check_refused(result, mixed, 9)
    lines = result.out.splitlines()
    assert len(lines) == 1 + 3 + 1 + len(BAD)
    for line, (name, said) in zip(lines[5:], BAD.items(), strict=True):
        shown = name.replace("\n", "\\n")
        assert line.startswith(f"refused {mixed}/{shown}: {said}")


def test_classify_output_refusals(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("classify", photos, *on, "-o", tmp_path / "scores").error(2, "expected a file's name that ends in .csv")
    cli("classify", photos, *on, "-o", tmp_path / "no" / "x.csv").error(7, "there is no folder")
    os.mkfifo(tmp_path / "x.csv")
    cli("classify", photos, *on, "-o", tmp_path / "x.csv").error(7, "x.csv: cannot be written: not a file")
    assert names(tmp_path) == ["photos", "x.csv"]


def test_classify_names_that_need_care(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """In the table as they are, and escaped where they are printed."""
    odd = photos / 'a "b", c\nd.png'
    (photos / "a.png").rename(odd)
    cli("classify", photos, *on, "-o", tmp_path / "x.csv").check()
    assert str(odd) in table(tmp_path / "x.csv")[1]
    assert len(cli("classify", photos, *on, "--json", "-o", tmp_path / "x.csv").check().json["kept"]) == 3
    assert len(cli("classify", photos, *on).check().out.splitlines()) == 5


# --- progress -----------------------------------------------------------------------------------------

COMMANDS = {
    "edit": ["photos", "-o", "edited"],
    "encode": ["photos", "-o", "latents"],
    "classify": ["photos"],
    "interpolate": ["photos/a.png", "photos/b.png", "-o", "x.png"],
    "sweep": ["photos/a.png", "--over", "smile=0:1:2", "-o", "x.png"],
    "timeline": ["--frames", "2", "-o", "x.gif"],
    "inject": ["photos/a.png", "photos/b.png", "-o", "x.png"],
    "sample": ["2", "-o", "x.png"],
    "vary": ["photos/a.png", "-o", "x.png"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_bar_where_there_is_no_terminal(
    command: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli(command, *COMMANDS[command], *on, "--json").check()
    assert "\r" not in result.out and isinstance(json.loads(result.out), dict)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bar_on_a_terminal(
    command: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr, so that stdout stays what it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    result = cli(command, *COMMANDS[command], *on, "--json")
    assert result.code == 0 and command in result.err and "100%" in result.err
    assert isinstance(result.json, dict)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_what_the_bar_counts(
    batch_size: int, cli: Cli, on: list[object], mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs written, outputs kept and inputs refused: at the end, all."""
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "a.png").write_bytes(b"")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    result = cli("edit", mixed, *on, "--batch-size", batch_size, "-o", tmp_path / "edited")
    last = [line for line in result.err.split("\r") if "images/s" in line][-1]
    assert "9 of 9, " in last and "100%" in last
