"""What outputs say of themselves, and what a call makes of those that are there."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import PIL.Image
import pytest
from hspace import Latent
from hspace.image import read_record
from hspace.record import read_output

from .conftest import Cli, pixels


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def record(path: Path) -> dict[str, Any]:
    found = read_output(path)
    assert found is not None
    return json.loads(found)


# --- what is recorded ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
def test_the_record_of_an_edit(suffix: str, cli: Cli, bundle: Path, on: list[object], photos: Path, tmp_path: Path):
    out = tmp_path / f"out{suffix}"
    options = ["--set", "smile=1.5", "--set", "block=-1", "--steps", 4, "--encode-steps", 8, "--sampler", "ddpm"]
    cli("edit", photos / "a.png", *on, *options, "--seed", 7, "--t-edit", 300, "--t-boost", 100, "-o", out).check()
    found, entries = record(out), hspace.Bundle(bundle).manifest
    assert (found["hspace"], found["call"], found["preset"]) == (hspace.__version__, "edit", "official")
    assert found["strengths"] == {"smile": 1.5, "block": -1.0}
    run = {"encode_steps": 8, "decode_steps": 4, "sampler": "ddpm", "t_edit": 300, "t_boost": 100}
    assert run.items() <= found["run"].items()
    assert (found["seed"], found["image"], found["draws"]) == (7, 0, True)
    assert found["engine"] == {"engine": "null", "precision": "fp32", "device": "cpu"}
    assert found["sources"] == [{"file": "a.png", "sha256": sha256(photos / "a.png")}]
    assert (found["bundle"]["name"], found["bundle"]["checkpoint"]) == ("null", "0" * 64)
    used = {f"components.{n}" for n in entries.components} | {"z_sem.statistics"}
    files: dict[str, Any] = {key: e.sha256 for key, e in entries.files() if key in used}
    for name in ("smile", "block"):
        a = entries.attributes[name]
        files[f"attributes.{name}"] = [a.sha256, a.kind, a.branch, a.n_train]
    assert found["bundle"]["files"] == files
    assert (tmp_path / f"out{suffix}.hspace.json").exists() == (suffix == ".bmp")


def test_the_record_of_a_latent(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("encode", photos / "a.png", *on, "--steps", 8, "-o", tmp_path / "a.safetensors").check()
    found = record(tmp_path / "a.safetensors")
    assert json.loads(Latent.load(tmp_path / "a.safetensors").provenance["record"]) == found
    assert (found["call"], found["run"]["encode_steps"], found["draws"]) == ("encode", 8, False)
    assert found["sources"] == [{"file": "a.png", "sha256": sha256(photos / "a.png")}]
    cli("decode", tmp_path / "a.safetensors", *on, "-o", tmp_path / "out.png").check()
    assert record(tmp_path / "out.png")["sources"][0]["sha256"] == sha256(tmp_path / "a.safetensors")


def test_a_bmp_and_its_file(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """What stands beside another BMP says nothing of it."""
    cli("edit", photos / "a.png", *on, "-o", tmp_path / "out.bmp").check()
    assert record(tmp_path / "out.bmp")["call"] == "edit"
    with PIL.Image.open(photos / "b.png") as other:
        other.save(tmp_path / "out.bmp")
    assert read_output(tmp_path / "out.bmp") is None


SERIES = {
    "sweep": (["a.png", "b.png", "--over", "smile=-1:1:3"], {"over": {"smile": [-1.0, 0.0, 1.0]}}, 2),
    "interpolate": (["a.png", "b.png", "--frames", "2"], {"frames": 2}, 2),
    "timeline": (["a.png", "--frames", "2"], {"frames": 2}, 1),
    "sample": (["2", "--accept", "smile=-9"], {"count": 2, "accept": {"smile": -9.0}, "draws": True}, 0),
    "vary": (["a.png", "--count", "2"], {"count": 2, "draws": True}, 1),
    "inject": (["a.png", "b.png", "--strength", "0.5"], {"amounts": [0.5], "masked": False}, 2),
}


@pytest.mark.parametrize("command", SERIES)
def test_records_of_series(
    command: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a sheet, in an animation, and in every file of a folder."""
    monkeypatch.chdir(photos)
    arguments, more, sources = SERIES[command]
    kinds = ["x.png", "x.gif", "x.apng"] if command in ("interpolate", "timeline") else ["x.png"]
    for name in kinds:
        cli(command, *arguments, *on, "--seed", 3, "-o", tmp_path / name).check()
        found = json.loads(read_record(tmp_path / name) or "")
        assert (found["call"], found["seed"], found["image"], len(found["sources"])) == (command, 3, None, sources)
        assert more.items() <= found.items()
    cli(command, *arguments, *on, "--seed", 3, "--format", "webp", "--quality", 50, "-o", tmp_path / "x").check()
    made = sorted((tmp_path / "x").iterdir())
    assert [record(p)["image"] for p in made] == list(range(len(made))) and made[0].suffix == ".webp"
    assert record(made[0])["quality"] == 50


def test_no_folder_and_no_user_in_any_output(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what is written, whatever the paths that were given."""
    out = tmp_path / "out"
    out.mkdir()
    a, b = photos / "a.png", photos / "b.png"
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp"):
        cli("edit", a, *on, "-o", out / name).check()
    cli("encode", a, *on, "-o", out / "a.safetensors").check()
    cli("sweep", a, *on, "--over", "smile=0:1:2", "-o", out / "sweep.png").check()
    cli("interpolate", a, b, *on, "-o", out / "between.gif").check()
    cli("info", on[1], "--program", "decode", "--save", out / "p.json").check()
    monkeypatch.chdir(photos)
    cli("classify", "a.png", *on, "-o", out / "scores.csv").check()
    written = {p.name: p.read_bytes() for p in out.iterdir()}
    assert len(written) == 10
    for word in (str(tmp_path), tmp_path.name, os.sep + "tmp", str(Path.home()) + os.sep):
        assert [n for n, data in written.items() if word.encode() in data] == [], word
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.safetensors", "sweep.png", "between.gif"):
        text = read_output(out / name) or read_record(out / name)
        assert text is not None and os.sep not in text, name


# --- a folder that was begun --------------------------------------------------------------------------

CHANGES: dict[str, tuple[list[object], str]] = {
    "strength": (["--set", "smile=2"], "strengths"),
    "another attribute": (["--set", "beard=1"], "bundle, strengths"),
    "steps": (["--set", "smile=1", "--steps", 4], "run"),
    "encode steps": (["--set", "smile=1", "--encode-steps", 4], "run"),
    "t_edit": (["--set", "smile=1", "--t-edit", 10], "run"),
    "sampler": (["--set", "smile=1", "--sampler", "ddpm"], "draws, run"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_no_success(name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """Nothing is kept silently, nothing is replaced unasked; --update and --force replace."""
    options, differs = CHANGES[name]
    out = ["-o", tmp_path / "out"]
    cli("edit", photos, *on, "--set", "smile=1", *out).check()
    before = {n: sha256(tmp_path / "out" / n) for n in ("a.png", "b.png", "c.png")}
    found = cli("edit", photos, *on, *options, "--json", *out)
    assert (found.code, found.json["outputs"], found.json["kept"], len(found.json["failed"])) == (7, [], [], 3)
    assert (
        f"3 of 3 inputs refused: {tmp_path / 'out' / 'a.png'}: exists and was made otherwise ({differs})" in found.err
    )
    assert before == {n: sha256(tmp_path / "out" / n) for n in before}
    found = cli("edit", photos, *on, *options, "--update", "--json", *out).check()
    assert (len(found.json["outputs"]), found.json["kept"]) == (3, [])
    cli("edit", photos, *on, *options, "-o", tmp_path / "fresh").check()
    for n in before:
        np.testing.assert_array_equal(pixels(tmp_path / "out" / n), pixels(tmp_path / "fresh" / n))
    again = cli("edit", photos, *on, *options, "--update", "--json", *out).check().json
    assert (again["outputs"], len(again["kept"])) == ([], 3)
    forced = cli("edit", photos, *on, *options, "--force", "--json", *out).check().json
    assert (len(forced["outputs"]), forced["kept"]) == (3, [])


@pytest.mark.parametrize("command", ["edit", "encode"])
def test_a_changed_picture(command: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """It alone is named, and made anew with --update; the rest is kept."""
    arguments = [command, photos, *on, "--json", "-o", tmp_path / "out"]
    cli(*arguments).check()
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes())
    found = cli(*arguments)
    assert found.code == 7 and "made otherwise (sources)" in found.err
    assert [Path(p).name for p in found.json["kept"]] == [
        f"{n}.{'png' if command == 'edit' else 'safetensors'}" for n in "ac"
    ]
    assert [row["file"] for row in found.json["failed"]] == [str(photos / "b.png")]
    found = cli(*arguments, "--update").check().json
    assert ([Path(p).stem for p in found["outputs"]], len(found["kept"])) == (["b"], 2)
    a, b = ((tmp_path / "out").joinpath(Path(p).name) for p in (found["kept"][0], found["outputs"][0]))
    if command == "edit":
        np.testing.assert_array_equal(pixels(a), pixels(b))
    else:
        np.testing.assert_array_equal(Latent.load(a).x_T, Latent.load(b).x_T)


def test_a_changed_latent(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("encode", photos, *on, "-o", tmp_path / "latents").check()
    arguments = ["decode", tmp_path / "latents", *on, "--json", "-o", tmp_path / "images"]
    cli(*arguments).check()
    assert len(cli(*arguments).check().json["kept"]) == 3
    cli("encode", photos, *on, "--steps", 2, "--update", "-o", tmp_path / "latents").check()
    assert cli(*arguments).code == 7
    assert len(cli(*arguments, "--update").check().json["outputs"]) == 3


@pytest.mark.parametrize("change", ["attribute", "n_train", "bundle", "version", "precision", "engine"])
def test_another_maker(
    change: str, cli: Cli, null_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle's file that the call uses, or what computes, is another."""
    on = ["-b", null_folder, "--engine", "null", "--set", "smile=1", "--set", "block=1", "--json"]
    cli("edit", photos, *on, "-o", tmp_path / "out").check()
    differs = "engine"
    if change == "n_train":  # which the manifest has, beside the same file
        manifest = json.loads((null_folder / "bundle.json").read_bytes())
        manifest["attributes"]["block"]["n_train"] += 1
        (null_folder / "bundle.json").write_text(json.dumps(manifest))
        differs = "bundle"
    elif change == "attribute":
        cli("attribute", "remove", null_folder, "table").check()  # which the call does not use
        assert len(cli("edit", photos, *on, "-o", tmp_path / "out").check().json["kept"]) == 3
        for arguments in (["remove", "smile"], ["rename", "beard", "smile"]):
            cli("attribute", arguments[0], null_folder, *arguments[1:]).check()
        differs = "bundle"
    elif change == "bundle":
        manifest = json.loads((null_folder / "bundle.json").read_bytes())
        manifest["schedules"]["image"] = {"kind": "linear", "beta_start": 0.001, "beta_end": 0.02, "timesteps": 1000}
        (null_folder / "bundle.json").write_text(json.dumps(manifest))
        differs = "bundle"
    elif change == "version":
        monkeypatch.setattr("hspace.record.__version__", "99.0")
        differs = "hspace"
    else:
        told = {"engine": "null", "precision": "fp32", "device": "cpu"} | {change: "other"}
        monkeypatch.setattr("hspace.record.engine_told", lambda engine: told)
    found = cli("edit", photos, *on, "-o", tmp_path / "out")
    assert found.code == 7 and f"made otherwise ({differs})" in found.err


def test_what_has_no_effect(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """Of a run that draws nothing, the seed, and an image's number: one more picture changes no other's result."""
    cli("edit", photos, *on, "-o", tmp_path / "out").check()
    (photos / "0.png").write_bytes((photos / "a.png").read_bytes())
    found = cli("edit", photos, *on, "--seed", 5, "--json", "-o", tmp_path / "out").check().json
    assert ([Path(p).name for p in found["outputs"]], len(found["kept"])) == (["0.png"], 3)
    drawn = ["edit", photos, *on, "--sampler", "ddpm", "--json", "-o", tmp_path / "drawn"]
    cli(*drawn).check()
    assert cli(*drawn, "--seed", 5).code == 7
    assert len(cli(*drawn).check().json["kept"]) == 4


def test_one_output(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    arguments = ["edit", photos / "a.png", *on, "--json", "-o", out]
    cli(*arguments).check()
    assert (cli(*arguments).check().json["kept"], cli(*arguments).check().json["outputs"]) == ([str(out)], [])
    assert cli(*arguments[:-3], "-o", out).check().out.startswith(f"kept {out}: it exists and would be the same")
    before = sha256(out)
    cli(*arguments, "--steps", 2).error(7, "out.png: exists and was made otherwise (run); --update makes such ones")
    assert sha256(out) == before
    assert cli(*arguments, "--update", "--steps", 2).check().json["outputs"] == [str(out)]


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 9999, '{"draws": 1}', '{"sources": [[]]}', "\ud83d\ude00"])
def test_records_that_are_none(text: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """A file from elsewhere is data: whatever it says, it is no success and no traceback."""
    from PIL.PngImagePlugin import PngInfo

    (tmp_path / "out").mkdir()
    info = PngInfo()
    info.add_itxt("hspace", text.encode("utf-16", "surrogatepass").decode("utf-16"))
    with PIL.Image.open(photos / "a.png") as image:
        image.save(tmp_path / "out" / "a.png", pnginfo=info)
    found = cli("edit", photos, *on, "-o", tmp_path / "out")
    assert found.code == 7 and "a.png: exists and " in found.err


# --- classify -----------------------------------------------------------------------------------------


def rows(path: Path) -> dict[str, list[str]]:
    with open(path, newline="") as f:
        _, *found = csv.reader(f)
    return {Path(file).name: rest for file, *rest in found}


def test_rows_of_a_changed_picture(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    scores = tmp_path / "scores.csv"
    arguments = ["classify", photos, *on, "--json", "-o", scores]
    cli(*arguments).check()
    before = rows(scores)
    assert before["b.png"][0] == sha256(photos / "b.png")
    assert before["b.png"][1].startswith(f"hspace {hspace.__version__}, engine null, fp32, encoder ")
    pixels = np.random.default_rng(9).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(photos / "b.png")
    found = cli(*arguments)
    assert found.code == 7 and "b.png: exists and was made otherwise (sha256)" in found.err
    assert (len(found.json["kept"]), rows(scores)) == (2, before)
    found = cli(*arguments, "--update").check()
    assert len(found.json["kept"]) == 2
    after = rows(scores)
    assert {n: r for n, r in after.items() if n != "b.png"} == {n: r for n, r in before.items() if n != "b.png"}
    np.testing.assert_allclose([float(x) for x in after["b.png"][2:]], null_diffae.classify(pixels)[0], rtol=1e-5)


def test_rows_of_another_maker(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["classify", photos, *on, "-o", tmp_path / "scores.csv"]
    cli(*arguments).check()
    monkeypatch.setattr("hspace.cli.images.__version__", "99.0")
    found = cli(*arguments)
    assert found.code == 7 and "3 of 3 inputs refused" in found.err and "(made_by)" in found.err
    cli(*arguments, "--update").check()
    assert all(made_by.startswith("hspace 99.0, ") for _, made_by, *_ in rows(tmp_path / "scores.csv").values())
