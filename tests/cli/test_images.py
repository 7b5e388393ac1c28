"""Commands that take or make images."""

from __future__ import annotations

from pathlib import Path

import hspace
import numpy as np
import PIL.Image
import pytest
from hspace import Latent
from hspace.image import FORMATS
from hspace.sheet import Sheet, grid

from .conftest import Cli, pixels

# --- edit ---------------------------------------------------------------------------------------------


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_edit_one_file(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    out = tmp_path / "out.png"
    result = cli("edit", photos / "a.png", *on, "--set", "smile=1.5", "--set", "block=-1", "-o", out).check()
    assert f"wrote {out}" in result.out and "engine null" in result.out
    expected = null_diffae.edit(photos / "a.png", {"smile": 1.5, "block": -1.0})[0]
    np.testing.assert_array_equal(pixels(out), expected)
    assert not np.array_equal(expected, null_diffae.reconstruct(photos / "a.png")[0])


def test_edit_options(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    """Each option reaches the call that it names."""
    options = ["--steps", 4, "--encode-steps", 8, "--sampler", "ddpm", "--seed", 7, "--t-edit", 300, "--t-boost", 100]
    cli("edit", photos / "a.png", *on, "--set", "block=2", *options, "-o", tmp_path / "out.png").check()
    more = {"sampler": "ddpm", "t_edit": 300, "t_boost": 100}
    expected = null_diffae.edit(photos / "a.png", {"block": 2.0}, steps=(8, 4), seed=7, **more)[0]
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), expected)
    others = [null_diffae.edit(photos / "a.png", {"block": 2.0}, steps=(8, 4), seed=8, **more)[0]]
    others.append(null_diffae.edit(photos / "a.png", {"block": 2.0}, steps=4, seed=7, **more)[0])
    assert all(not np.array_equal(expected, o) for o in others)


def test_edit_steps(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    cli("edit", photos / "a.png", *on, "--steps", 2, "-o", tmp_path / "out.png").check()
    two, usual = (null_diffae.edit(photos / "a.png", {}, steps=s)[0] for s in (2, None))
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), two)
    assert not np.array_equal(two, usual)


def test_edit_a_folder(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    """Named after inputs, whatever the batch; files of other kinds are left alone."""
    cli("edit", photos, *on, "--batch-size", 2, "--set", "smile=1", "-o", tmp_path / "new" / "edited").check()
    assert names(tmp_path / "new" / "edited") == ["a.png", "b.png", "c.png"]
    for name in ("a.png", "b.png", "c.png"):
        expected = null_diffae.edit(photos / name, {"smile": 1.0})[0]
        found = pixels(tmp_path / "new" / "edited" / name)
        assert np.abs(found.astype(int) - expected).max() <= 1


def test_edit_a_pattern(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("edit", photos / "[ab].*", *on, "-o", tmp_path / "edited").check()
    assert names(tmp_path / "edited") == ["a.png", "b.png"]


def test_edit_several_files(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("edit", photos / "c.png", photos / "a.png", *on, "-o", tmp_path / "edited").check()
    assert names(tmp_path / "edited") == ["a.png", "c.png"]


def test_edit_a_file_named_like_a_pattern(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").rename(photos / "[x].png")
    cli("edit", photos / "[x].png", *on, "-o", tmp_path / "out.png").check()
    assert (tmp_path / "out.png").is_file()


def test_edit_one_file_into_a_folder(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("edit", photos / "a.png", *on, "-o", tmp_path / "edited").check()
    assert names(tmp_path / "edited") == ["a.png"]


@pytest.mark.parametrize(("suffix", "kind"), [(".jpg", "JPEG"), (".webp", "WEBP"), (".bmp", "BMP"), (".PNG", "PNG")])
def test_edit_to_other_formats(suffix: str, kind: str, cli: Cli, on: list[object], photos: Path) -> None:
    out = photos.parent / f"out{suffix}"
    cli("edit", photos / "a.png", *on, "-o", out).check()
    with PIL.Image.open(out) as image:
        assert (image.format, image.size) == (kind, (8, 8))


def test_existing_outputs_are_kept(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """A file that does not say what made it is left alone, and not taken for an output."""
    edited = tmp_path / "edited"
    edited.mkdir()
    (edited / "b.png").write_text("mine")
    (edited / "other.txt").write_text("mine")
    found = cli("edit", photos, *on, "--json", "-o", edited)
    assert found.code == 7 and f"{edited / 'b.png'}: exists and says nothing of what made it" in found.err
    assert found.json["outputs"] == [str(edited / n) for n in ("a.png", "c.png")]
    assert (found.json["kept"], [row["file"] for row in found.json["failed"]]) == ([], [str(photos / "b.png")])
    assert (edited / "b.png").read_text() == (edited / "other.txt").read_text() == "mine"
    assert pixels(edited / "a.png").shape == (8, 8, 3)
    (edited / "b.png").unlink()
    cli("edit", photos, *on, "-o", edited).check()
    again = cli("edit", photos, *on, "-o", edited).check()
    assert "wrote 0 files" in again.out and "kept 3 that exist and would be the same" in again.out


def test_force_replaces(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    edited.mkdir()
    (edited / "b.png").write_text("mine")
    (edited / "other.txt").write_text("mine")
    result = cli("edit", photos, *on, "--force", "--json", "-o", edited).check().json
    assert (len(result["outputs"]), result["kept"]) == (3, [])
    assert pixels(edited / "b.png").shape == (8, 8, 3)
    assert (edited / "other.txt").read_text() == "mine"


def test_existing_single_output(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    out.write_text("mine")
    cli("edit", photos / "a.png", *on, "-o", out).error(7, f"{out}: exists and says nothing of what made it")
    assert out.read_text() == "mine"
    cli("edit", photos / "a.png", *on, "--force", "-o", out).check()
    assert pixels(out).shape == (8, 8, 3)


@pytest.mark.parametrize("force", [[], ["--force"]], ids=["", "force"])
def test_output_that_is_an_input(force: list[str], cli: Cli, on: list[object], photos: Path) -> None:
    before = (photos / "a.png").read_bytes()
    cli("edit", photos / "a.png", *on, *force, "-o", photos / "a.png").error(7, "a.png: the output is an input")
    cli("edit", photos, *on, *force, "-o", photos).error(7, "a.png: the output is an input")
    cli("edit", photos / "a.png", *on, *force, "-o", photos / ".." / "photos" / "a.png").error(7, "is an input")
    assert (photos / "a.png").read_bytes() == before
    assert names(photos) == ["a.png", "b.png", "c.png", "notes.txt"]


def test_two_inputs_of_one_name(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    with PIL.Image.open(photos / "a.png") as image:
        image.save(photos / "a.bmp")
    result = cli("edit", photos / "a.png", photos / "a.bmp", photos / "b.png", *on, "--json", "-o", tmp_path / "edited")
    says = f"{photos / 'a.png'} and {photos / 'a.bmp'} would both become {tmp_path / 'edited' / 'a.png'}"
    advice = "(--name '{stem}-{index}.{ext}' tells them apart)"
    assert (result.code, result.err) == (2, f"hspace: error: 2 of 3 inputs refused: {says} {advice}\n")
    assert [row["file"] for row in result.json["failed"]] == [str(photos / n) for n in ("a.png", "a.bmp")]
    assert names(tmp_path / "edited") == ["b.png"]
    again = cli("edit", photos / "a.png", photos / "a.bmp", photos / "b.png", *on, "-o", tmp_path / "edited")
    assert again.out.count("would both become") == 1


def test_json(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    found = cli("edit", photos / "a.png", *on, "--json", "-o", tmp_path / "out.png").check().json
    assert found.keys() == {"outputs", "kept", "failed", "seconds", "engine", "precision", "device"}
    assert (found["outputs"], found["kept"], found["engine"]) == ([str(tmp_path / "out.png")], [], "null")
    assert found["seconds"] >= 0


def test_resize(cli: Cli, on: list[object], tmp_path: Path) -> None:
    PIL.Image.new("RGB", (20, 30), "red").save(tmp_path / "large.png")
    result = cli("edit", tmp_path / "large.png", *on, "-o", tmp_path / "out.png")
    result.error(4, "large.png: found 20×30 pixels, expected 8×8", "--resize")
    assert not (tmp_path / "out.png").exists()
    cli("edit", tmp_path / "large.png", *on, "--resize", "-o", tmp_path / "out.png").check()
    assert pixels(tmp_path / "out.png").shape == (8, 8, 3)


REFUSALS: dict[str, tuple[list[str], int, list[str]]] = {
    "unknown attribute": (["--set", "smiel=1"], 2, ["no attribute 'smiel'; did you mean smile?"]),
    "no number": (["--set", "smile=much"], 2, ["--set", "found 'smile=much', expected NAME=NUMBER"]),
    "no equals sign": (["--set", "smile"], 2, ["--set", "found 'smile', expected NAME=NUMBER"]),
    "no name": (["--set", "1"], 2, ["--set", "expected NAME=NUMBER"]),
    "NaN": (["--set", "smile=nan"], 2, ["smile: found strength nan, expected"]),
    "inf": (["--set", "smile=1e999"], 2, ["smile: found strength inf, expected"]),
    "twice": (["--set", "smile=1", "--set", "smile=2"], 2, ["--set: an attribute is named twice"]),
    "branches that do not mix": (["--set", "block=1", "--set", "haas=1"], 2, ["do not mix in one edit"]),
    "steps 0": (["--steps", "0"], 2, ["steps: found 0, expected a whole number from 1 to 1000"]),
    "steps 1001": (["--steps", "1001"], 2, ["steps: found 1001"]),
    "steps that are no number": (["--steps", "many"], 2, ["--steps", "'many'"]),
    "steps that no stride gives": (["--steps", "37"], 2, ["the nearest that can are 36 and 38"]),
    "preset": (["--preset", "fast"], 2, ["preset: found 'fast', expected one of official"]),
    "preset with --encode-steps": (["--preset", "fast", "--encode-steps", "5"], 2, ["preset: found 'fast'"]),
    "sampler": (["--sampler", "euler"], 2, ["sampler: found 'euler', expected one of ddim, ddpm"]),
    "seed": (["--seed", "-1"], 2, ["seed: found -1, expected a whole number from 0 to 2^64 - 1"]),
    "engine": (["--engine", "cuda"], 5, ["engine: found 'cuda', expected auto, openvino, onnx, null"]),
    "threads": (["--threads", "0"], 2, ["threads: found 0, expected a whole number from 1 to"]),
    "batch size": (["--batch-size", "0"], 2, ["batch_size: found 0, expected a whole number from 1 to"]),
    "option": (["--strength", "1"], 2, ["No such option", "--strength"]),
    "bundle": (["-b", "nowhere"], 3, ["nowhere: expected a bundle: a folder with a bundle.json"]),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    options, code, fragments = REFUSALS[name]
    cli("edit", photos / "a.png", *on, *options, "-o", tmp_path / "out.png").error(code, *fragments)
    assert names(tmp_path) == ["photos"]


@pytest.mark.parametrize("name", ["unknown attribute", "steps 0", "engine", "bundle"])
def test_refusal_makes_no_folder(name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    options, code, fragments = REFUSALS[name]
    cli("edit", photos, *on, *options, "-o", tmp_path / "edited").error(code, *fragments)
    assert names(tmp_path) == ["photos"]


def test_inputs_that_are_none(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out.png"]
    (tmp_path / "empty").mkdir()
    cli("edit", *on, *out).error(2, "Missing argument 'INPUTS...'")
    cli("edit", photos / "z.png", *on, *out).error(4, f"{photos / 'z.png'}: no such file")
    cli("edit", photos / "z*.png", *on, *out).error(4, f"{photos / 'z*.png'}: matches no file")
    cli("edit", tmp_path / "empty", *on, *out).error(4, f"{tmp_path / 'empty'}: a folder without files of the kinds")
    cli("edit", photos / "notes.txt", *on, *out).error(4, "notes.txt: expected an image (PNG, JPEG")
    assert not (tmp_path / "out.png").exists()


def test_output_that_cannot_be(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    cli("edit", photos / "a.png", *on).error(2, "Missing option '-o' / '--output'")
    cli("edit", photos / "a.png", *on, "-o", tmp_path / "x" / "y.png").error(7, "y.png: there is no folder")
    cli("edit", photos / "a.png", *on, "-o", tmp_path / "out.gif").error(2, "found the suffix '.gif', expected one")
    cli("edit", photos, *on, "-o", photos / "notes.txt").error(7, "notes.txt: a file, expected a folder")
    assert names(tmp_path) == ["photos"]


@pytest.mark.parametrize("name", ["x.apng", "x.gif", "x.mp4", "x.v2"])
def test_suffixes_that_a_command_does_not_write(
    name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder is made by such a name; one that is there may have it."""
    monkeypatch.chdir(photos)
    for command in ("edit a.png", "edit .", "encode .", "sweep a.png --over smile=0:1:2", "sample 2", "vary a.png"):
        kinds = "expected one of .safetensors, or" if command.startswith("encode") else "expected one of .png, .jpg"
        result = cli(*command.split(), *on, "-o", tmp_path / name)
        result.error(2, f"{name}: found the suffix '{Path(name).suffix}', {kinds}", "or a folder")
    assert names(tmp_path) == ["photos"]
    (tmp_path / name).mkdir()
    cli("edit", ".", *on, "-o", tmp_path / name).check()
    assert names(tmp_path / name) == ["a.png", "b.png", "c.png"]


def test_one_bad_picture_among_good(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    (photos / "b.png").write_bytes(b"")
    result = cli("edit", photos, *on, "--json", "-o", tmp_path / "edited")
    assert result.code == 4 and result.err.startswith("hspace: error: 1 of 3 inputs refused: ")
    assert result.json["failed"] == [
        {
            "file": f"{photos / 'b.png'}",
            "error": f"{photos / 'b.png'}: expected an image ({', '.join(FORMATS)}), found an empty file",
        }
    ]
    assert names(tmp_path / "edited") == ["a.png", "c.png"]


# --- the bundle's option ------------------------------------------------------------------------------


def test_bundle_from_the_environment(
    cli: Cli, bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HSPACE_BUNDLE", str(bundle))
    cli("edit", photos / "a.png", "--engine", "null", "-o", tmp_path / "out.png").check()
    monkeypatch.setenv("HSPACE_BUNDLE", str(tmp_path / "nowhere"))
    cli("edit", photos / "a.png", "--engine", "null", "-o", tmp_path / "two.png").error(3, "nowhere: expected a bundle")
    cli("edit", photos / "a.png", "-b", bundle, "--engine", "null", "-o", tmp_path / "two.png").check()


@pytest.mark.parametrize("command", [["edit", "a.png"], ["sample", "1"], ["classify", "a.png"], ["bench"]], ids=str)
def test_no_bundle(command: list[str], cli: Cli, tmp_path: Path) -> None:
    output = [] if command[0] in ("classify", "bench") else ["-o", tmp_path / "out.png"]
    cli(*command, *output).error(2, "Missing option '-b' / '--bundle'")
    assert names(tmp_path) == []


# --- encode and decode --------------------------------------------------------------------------------


def test_encode_then_decode(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    """The way through files gives what one edit gives."""
    face = tmp_path / "face.safetensors"
    cli("encode", photos / "a.png", *on, "--steps", 8, "-o", face).check()
    latent, expected = Latent.load(face), null_diffae.encode(photos / "a.png", steps=8)
    np.testing.assert_array_equal(latent.x_T, expected.x_T)
    np.testing.assert_array_equal(latent.z_sem, expected.z_sem)
    told = {"bundle": "null", "checkpoint": "0" * 64, "preset": "official", "sampler": "ddim", "spacing": "diffae"}
    told |= {"encode_steps": "8"}
    assert told.items() <= expected.provenance.items()
    assert {k: v for k, v in latent.provenance.items() if k != "record"} == expected.provenance
    cli("decode", face, *on, "--steps", 4, "--set", "beard=-0.5", "-o", tmp_path / "out.png").check()
    edited = null_diffae.edit(photos / "a.png", {"beard": -0.5}, steps=(8, 4))[0]
    np.testing.assert_array_equal(pixels(tmp_path / "out.png"), edited)


def test_encode_then_decode_a_folder(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    latents, images = tmp_path / "latents", tmp_path / "images"
    found = cli("encode", photos, *on, "--json", "-o", latents).check().json
    assert names(latents) == ["a.safetensors", "b.safetensors", "c.safetensors"]
    assert found["outputs"] == [str(latents / n) for n in names(latents)]
    found = cli("decode", latents, *on, "--json", "-o", images).check().json
    assert names(images) == ["a.png", "b.png", "c.png"]
    kept = cli("encode", photos, *on, "--json", "-o", latents).check().json
    assert (kept["outputs"], len(kept["kept"])) == ([], 3)
    assert cli("decode", latents, *on, "--force", "--json", "-o", images).check().json["kept"] == []


def test_decode_refusals(cli: Cli, on: list[object], asyrp: Path, photos: Path, tmp_path: Path) -> None:
    face, out = tmp_path / "face.safetensors", tmp_path / "out.png"
    cli("decode", photos / "a.png", *on, "-o", out).error(8, "a.png: expected a safetensors file")
    cli("decode", photos, *on, "-o", tmp_path / "o").error(8, "a folder without files of the kinds .safetensors")
    cli("encode", photos / "a.png", *on, "-o", face).check()
    cli("decode", face, "-b", asyrp, "--engine", "null", "-o", out).error(8, "z_sem 6, expected (3, 8, 8) and None")
    cli("decode", face, *on, "--set", "smiel=1", "-o", out).error(2, "did you mean smile?")
    latent = Latent.load(face)
    Latent(np.repeat(latent.x_T, 2, 0), np.repeat(latent.z_sem, 2, 0)).save(tmp_path / "two.safetensors")
    cli("decode", tmp_path / "two.safetensors", *on, "-o", out).error(8, "two.safetensors: holds 2 images, expected 1")
    Latent(latent.x_T, latent.z_sem, provenance={"checkpoint": "1" * 64, "bundle": "faces"}).save(face)
    cli("decode", face, *on, "-o", out).error(8, "latent: made by the model 'faces'")
    assert not out.exists()


def test_encode_refusals(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    face = tmp_path / "face.safetensors"
    face.write_text("mine")
    cli("encode", photos / "a.png", *on, "-o", face).error(7, "face.safetensors: exists and says nothing of")
    cli("encode", photos / "notes.txt", *on, "--force", "-o", face).error(4, "notes.txt: expected an image")
    assert face.read_text() == "mine"


# --- series -------------------------------------------------------------------------------------------


def test_interpolate(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    """From a latent's file to an image, as a contact sheet, as an animation and as frames."""
    first = tmp_path / "a.safetensors"
    cli("encode", photos / "a.png", *on, "-o", first).check()
    ends = [null_diffae.encode(photos / n) for n in ("a.png", "b.png")]
    expected = null_diffae.interpolate(*ends, 3)
    cli("interpolate", first, photos / "b.png", *on, "--frames", 3, "-o", tmp_path / "strip.png").check()
    sheet = Sheet([""], ["0.00", "0.50", "1.00"], 8)
    np.testing.assert_array_equal(pixels(tmp_path / "strip.png"), sheet.draw(expected))
    found = cli("interpolate", first, photos / "b.png", *on, "--frames", 3, "--json", "-o", tmp_path / "f").check().json
    assert [Path(p).name for p in found["outputs"]] == names(tmp_path / "f") == ["0000.png", "0001.png", "0002.png"]
    for name, frame in zip(names(tmp_path / "f"), expected, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "f" / name), frame)


def test_sample(cli: Cli, on: list[object], tmp_path: Path, null_diffae: hspace.Editor) -> None:
    cli("sample", 3, *on, "--seed", 7, "--set", "smile=1", "--latent-steps", 5, "-o", tmp_path / "strip.png").check()
    expected = null_diffae.sample(3, seed=7, edits={"smile": 1.0}, latent_steps=5)
    np.testing.assert_array_equal(pixels(tmp_path / "strip.png"), grid("seed 7", 3, 8).draw(expected))
    assert not np.array_equal(expected, null_diffae.sample(3, seed=8, edits={"smile": 1.0}, latent_steps=5))
    cli("sample", 2, *on, "-o", tmp_path / "samples").check()
    assert names(tmp_path / "samples") == ["0000.png", "0001.png"]
    np.testing.assert_array_equal(pixels(tmp_path / "samples" / "0001.png"), null_diffae.sample(2)[1])


def test_sample_asyrp(cli: Cli, asyrp: Path, tmp_path: Path, null_asyrp: hspace.Editor) -> None:
    cli("sample", 1, "-b", asyrp, "--engine", "null", "--set", "block=1", "-o", tmp_path / "x.png").check()
    np.testing.assert_array_equal(
        pixels(tmp_path / "x.png"), grid("seed 0", 1, 8).draw(null_asyrp.sample(1, edits={"block": 1.0}))
    )


def test_vary(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    cli("vary", photos / "a.png", *on, "--count", 2, "--seed", 3, "-o", tmp_path / "strip.png").check()
    expected = null_diffae.vary(null_diffae.encode(photos / "a.png"), 2, seed=3)
    np.testing.assert_array_equal(pixels(tmp_path / "strip.png"), grid("a", 2, 8).draw(expected))
    cli("vary", photos / "a.png", *on, "--count", 1, "-o", tmp_path / "varied").check()
    assert names(tmp_path / "varied") == ["0000.png"]
    assert pixels(tmp_path / "varied" / "0000.png").shape == (8, 8, 3)


SERIES = {"interpolate": ["a.png", "b.png"], "sample": ["8"], "vary": ["a.png"]}


@pytest.mark.parametrize("command", SERIES)
def test_existing_series(
    command: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that exists is replaced unasked, and then nothing at all is written."""
    monkeypatch.chdir(photos)
    (tmp_path / "x.png").write_text("mine")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "0003.png").write_text("mine")
    cli(command, *SERIES[command], *on, "-o", tmp_path / "x.png").error(7, "x.png: exists and says nothing of what")
    found = cli(command, *SERIES[command], *on, "-o", tmp_path / "frames")
    assert found.code == 7 and "1 of 8 outputs refused: " in found.err and "0003.png: exists and says noth" in found.err
    assert names(tmp_path / "frames") == ["0003.png"]
    assert (tmp_path / "x.png").read_text() == (tmp_path / "frames" / "0003.png").read_text() == "mine"
    cli(command, *SERIES[command], *on, "--force", "-o", tmp_path / "x.png").check()
    assert pixels(tmp_path / "x.png").shape[1] > 8 * 128


@pytest.mark.parametrize("command", ["interpolate", "vary"])
def test_series_onto_its_input(
    command: str, cli: Cli, on: list[object], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    before = (photos / "a.png").read_bytes()
    cli(command, *SERIES[command], *on, "--force", "-o", "a.png").error(7, "a.png: the output is an input")
    assert (photos / "a.png").read_bytes() == before


SERIES_REFUSALS = {
    "one frame": (["interpolate", "a.png", "b.png", "--frames", "1"], 2, "frames: found 1, expected"),
    "no such image": (["interpolate", "a.png", "z.png"], 4, "z.png: no such file"),
    "no such latent": (["interpolate", "a.safetensors", "b.png"], 8, "a.safetensors: no such file"),
    "one image alone": (["interpolate", "a.png"], 2, "Missing argument 'SECOND'"),
    "no samples": (["sample", "0"], 2, "count: found 0, expected"),
    "samples that are no number": (["sample", "many"], 2, "'many' is not a valid integer"),
    "sample, seed": (["sample", "2", "--seed", str(2**64)], 2, "seed: found 18446744073709551616"),
    "sample, latent steps 0": (["sample", "1", "--latent-steps", "0"], 2, "steps: found 0"),
    "sample, latent steps": (["sample", "1", "--latent-steps", "1001"], 2, "steps: found 1001"),
    "no variations": (["vary", "a.png", "--count", "0"], 2, "count: found 0, expected"),
    "fewer than none": (["vary", "a.png", "--count", "-1"], 2, "count: found -1, expected"),
    "vary, seed": (["vary", "a.png", "--seed", "-1"], 2, "seed: found -1"),
}


@pytest.mark.parametrize("output", ["x.png", "frames"])
@pytest.mark.parametrize("name", SERIES_REFUSALS)
def test_series_refusals(
    name: str, output: str, cli: Cli, on: list[object], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, code, fragment = SERIES_REFUSALS[name]
    monkeypatch.chdir(photos)
    cli(*arguments, *on, "-o", photos.parent / output).error(code, fragment)
    assert names(photos.parent) == ["photos"]


def test_vary_asyrp(cli: Cli, asyrp: Path, photos: Path, tmp_path: Path) -> None:
    result = cli("vary", photos / "a.png", "-b", asyrp, "--engine", "null", "-o", tmp_path / "x.png")
    result.error(2, "vary: the model has no z_sem")


# --- classify -----------------------------------------------------------------------------------------


def test_classify(cli: Cli, on: list[object], photos: Path, null_diffae: hspace.Editor) -> None:
    lines = cli("classify", photos, *on).check().out.splitlines()
    assert lines[0].split() == ["file", "smile", "beard"]
    scores = null_diffae.classify([photos / n for n in ("a.png", "b.png", "c.png")])
    assert (len(lines), lines[4]) == (5, "(engine null, fp32)")
    for line, name, row in zip(lines[1:4], ("a.png", "b.png", "c.png"), scores, strict=True):
        assert line.split() == [str(photos / name), *(f"{s:.2f}" for s in row)]


def test_classify_json(cli: Cli, on: list[object], photos: Path, null_diffae: hspace.Editor) -> None:
    found = cli("classify", photos / "a.png", photos / "b.png", *on, "--batch-size", 1, "--json").check().json
    assert found.keys() == {"classes", "images", "failed", "engine", "precision", "device"}
    assert found["classes"] == null_diffae.classes == ["smile", "beard"]
    assert [row["file"] for row in found["images"]] == [str(photos / "a.png"), str(photos / "b.png")]
    for row in found["images"]:
        np.testing.assert_allclose(row["logits"], null_diffae.classify(row["file"])[0], rtol=1e-5)


def test_classify_asyrp(cli: Cli, asyrp: Path, photos: Path) -> None:
    result = cli("classify", photos, "-b", asyrp, "--engine", "null")
    result.error(2, "classify: the bundle has no z_direction attributes")
