"""Commands whose result is a sheet, an animation or a folder of several images: sweep, timeline, inject, sample."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import hspace
import msgspec
import numpy as np
import PIL.Image
import pytest
from hspace import Latent
from hspace.amend import set_preset
from hspace.bundle import Bundle
from hspace.cli.pictures import Range, _distinct
from hspace.image import encode_image, to_uint8
from hspace.recorders import Timeline
from hspace.sheet import Sheet, grid

from ..hostile.helpers import alter
from .conftest import Cli, pixels


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def shows(path: Path, frames: list[np.ndarray]) -> None:
    """An animation shows these frames, endlessly, in 2.5 s, or 20 ms each; a palette's colours may be 24 levels off."""
    most = 24 if path.suffix == ".gif" else 0
    with PIL.Image.open(path) as animation:
        assert (animation.n_frames, animation.info["loop"]) == (len(frames), 0)
        for i, frame in enumerate(frames):
            animation.seek(i)
            assert abs(animation.info["duration"] - max(20, 2500 / len(frames))) <= 5
            found = np.asarray(animation.convert("RGB"))
            assert np.abs(found.astype(int) - frame).max() <= most


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.jpg", "x.jpeg", "x.webp", "x.PNG"])
def test_single_images_in_every_format(
    name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    """What `edit` and `sample` write decodes to what the editor gives, as the format keeps it."""
    cli("edit", photos / "a.png", *on, "--set", "smile=1", "-o", tmp_path / name).check()
    cli("sample", 2, *on, "-o", tmp_path / f"sheet-{name}").check()
    edited, sampled = null_diffae.edit(photos / "a.png", {"smile": 1.0})[0], null_diffae.sample(2)
    for file, expected in ((name, edited), (f"sheet-{name}", grid("seed 0", 2, 8).draw(sampled))):
        with PIL.Image.open(io.BytesIO(encode_image(expected, Path(name).suffix))) as image:
            np.testing.assert_array_equal(pixels(tmp_path / file), np.asarray(image))


# --- sweep --------------------------------------------------------------------------------------------


def test_sweep_of_two_images(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor):
    """A row per image, one of them a latent; a column per strength."""
    first = tmp_path / "a.safetensors"
    cli("encode", photos / "a.png", *on, "-o", first).check()
    options = ["--over", "smile=-1:1:3", "--set", "block=0.5", "-o", tmp_path / "sweep.png"]
    cli("sweep", first, photos / "b.png", *on, *options).check()
    latent = Latent.stack([null_diffae.encode(photos / n) for n in ("a.png", "b.png")])
    expected = null_diffae.sweep(latent, {"smile": [-1, 0, 1]}, edits={"block": 0.5})
    sheet = Sheet(["a", "b"], ["smile -1", "smile +0", "smile +1"], 8)
    np.testing.assert_array_equal(pixels(tmp_path / "sweep.png"), sheet.draw(expected.reshape(6, 8, 8, 3)))
    assert len(np.unique(expected.reshape(6, -1), axis=0)) == 6


def test_sweep_of_two_attributes(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor):
    """A row per strength of the first."""
    over = ["--over", "smile=0:0.5:2", "--over", "block=-1:1:3"]
    cli("sweep", photos / "a.png", *on, *over, "--steps", 2, "-o", tmp_path / "grid.png").check()
    latent = null_diffae.encode(photos / "a.png", steps=2)
    expected = null_diffae.sweep(latent, {"smile": [0, 0.5], "block": [-1, 0, 1]}, steps=2)
    sheet = Sheet(["smile +0", "smile +0.5"], ["block -1", "block +0", "block +1"], 8)
    np.testing.assert_array_equal(pixels(tmp_path / "grid.png"), sheet.draw(expected.reshape(6, 8, 8, 3)))


def test_sweep_into_a_folder(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor):
    """Numbered row after row; a folder of images is as many rows, and draws are an image's, not a strength's."""
    options = ["--over", "block=0:1:2", "--sampler", "ddpm", "--seed", 5]
    found = cli("sweep", photos, *on, *options, "--json", "-o", tmp_path / "swept").check().json
    assert found["outputs"] == [str(tmp_path / "swept" / f"{i:04d}.png") for i in range(6)]
    latent = Latent.stack([null_diffae.encode(photos / n) for n in ("a.png", "b.png", "c.png")])
    expected = null_diffae.sweep(latent, {"block": [0, 1]}, sampler="ddpm", seed=5).reshape(6, 8, 8, 3)
    for i, name in enumerate(names(tmp_path / "swept")):
        np.testing.assert_array_equal(pixels(tmp_path / "swept" / name), expected[i])


RANGES = {
    "no range": (["smile=1"], "found 'smile=1', expected NAME=FROM:TO:COUNT, as in smile=-1:1:5"),
    "no name": (["0:1:3"], "expected NAME=FROM:TO:COUNT"),
    "no count": (["smile=0:1"], "expected NAME=FROM:TO:COUNT"),
    "half a count": (["smile=0:1:2.5"], "expected NAME=FROM:TO:COUNT"),
    "count of 0": (["smile=0:1:0"], "expected NAME=FROM:TO:COUNT"),
    "count of 101": (["smile=0:1:101"], "expected NAME=FROM:TO:COUNT"),
    "inf": (["smile=0:inf:3"], "expected NAME=FROM:TO:COUNT"),
    "word": (["smile=a:b:3"], "expected NAME=FROM:TO:COUNT"),
    "too large at the end": (["smile=0:1e39:3"], "smile: found strength 1e+39, expected a number that"),
    "unknown": (["smiel=0:1:3"], "no attribute 'smiel'; did you mean smile?"),
    "twice": (["smile=0:1:3", "smile=0:1:3"], "--over: expected one attribute, or two different ones"),
    "three": (["smile=0:1:3", "beard=0:1:3", "block=0:1:3"], "--over: expected one attribute, or two"),
    "branches that do not mix": (["block=0:1:2", "haas=0:1:2"], "do not mix in one edit"),
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_that_are_refused(
    name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, encodes: list[object]
) -> None:
    """Before any image is encoded."""
    ranges, fragment = RANGES[name]
    over = [part for r in ranges for part in ("--over", r)]
    cli("sweep", photos / "a.png", *on, *over, "-o", tmp_path / "x.png").error(2, fragment)
    assert (names(tmp_path), encodes) == (["photos"], [])


def test_sweep_refusals(cli: Cli, on: list[object], photos: Path, tmp_path: Path, encodes: list[object]) -> None:
    out, over = ["-o", tmp_path / "x.png"], ["--over", "smile=0:1:3"]
    cli("sweep", photos / "a.png", *on, *out).error(2, "Missing option '--over'")
    two = cli("sweep", photos, *on, *over, "--over", "block=0:1:2", *out)
    two.error(2, "--over: expected one attribute, or two different ones and a single input")
    both = cli("sweep", photos / "a.png", *on, *over, "--set", "smile=1", *out)
    both.error(2, "--set: names an attribute that --over has")
    cli("sweep", photos / "z.png", *on, *over, *out).error(4, "z.png: no such file")
    cli("sweep", photos, *on, *over, "--force", "-o", photos / "a.png").error(7, "the output is an input")
    (photos / "b.png").write_bytes(b"")
    cli("sweep", photos, *on, *over, *out).error(4, "b.png: expected an image")
    cli("interpolate", photos / "a.png", photos / "b.png", *on, *out).error(4, "b.png: expected an image")
    assert (names(tmp_path), encodes) == (["photos"], [])


def test_sweep_encodes_together(cli: Cli, on: list[object], photos: Path, tmp_path: Path, encodes: list[object]):
    """Images in one call; a latent among them, by a name in capitals, keeps its place."""
    cli("encode", photos / "b.png", *on, "-o", tmp_path / "b.safetensors").check()
    (tmp_path / "b.safetensors").rename(tmp_path / "B.SAFETENSORS")
    encodes.clear()
    files = [photos / "a.png", tmp_path / "B.SAFETENSORS", photos / "c.png"]
    cli("sweep", *files, *on, "--over", "smile=0:0:1", "-o", tmp_path / "mixed").check()
    assert [len(images) for images in encodes] == [2]
    cli("sweep", photos, *on, "--over", "smile=0:0:1", "-o", tmp_path / "images").check()
    for name in ("0000.png", "0001.png", "0002.png"):
        found, expected = (pixels(tmp_path / folder / name).astype(int) for folder in ("mixed", "images"))
        assert np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    ("over", "labels"),
    [
        ("1:1.001:3", ["+1", "+1.0005", "+1.001"]),
        ("-1:1:3", ["-1", "+0", "+1"]),
        ("2:2:2", ["+2", "+2"]),
    ],
)
def test_labels_of_a_sweep(over: str, labels: list[str]) -> None:
    """Different strengths have different labels, none of them longer than that takes."""
    _, values = Range().convert(f"smile={over}", None, None)
    assert _distinct(values) == labels


@pytest.fixture
def encodes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What is encoded from here on."""
    found: list[object] = []
    whole = hspace.Editor.encode

    def encode(self: hspace.Editor, images: object, **options: object) -> Latent:
        found.append(images)
        return whole(self, images, **options)

    monkeypatch.setattr(hspace.Editor, "encode", encode)
    return found


# --- timeline -----------------------------------------------------------------------------------------


def along(editor: hspace.Editor, frames: int, latent: Latent, **run: object) -> tuple[np.ndarray, np.ndarray, Sheet]:
    """P and x as pixels, and the sheet for both."""
    recorder = Timeline(frames)
    editor.decode(latent, on_step=recorder, **run)
    p, x = (to_uint8(a[:, 0]) for a in recorder.frames())
    return p, x, Sheet(["P_t", "x_t"], [f"t = {t}" for t in recorder.timesteps], 8)


def test_timeline_of_an_image(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor):
    """P above, x below; and with the same of its latent."""
    options = ["--frames", 3, "--steps", 4]
    cli("timeline", photos / "a.png", *on, *options, "-o", tmp_path / "x.png").check()
    latent = null_diffae.encode(photos / "a.png", steps=4)
    p, x, sheet = along(null_diffae, 3, latent, steps=4)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), sheet.draw(np.concatenate([p, x])))
    latent.save(tmp_path / "a.safetensors")
    cli("timeline", tmp_path / "a.safetensors", *on, *options, "-o", tmp_path / "y.png").check()
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), pixels(tmp_path / "y.png"))


@pytest.mark.parametrize("edited", [[], ["--set", "block=1", "--t-boost", "400"]], ids=["plain", "boosted"])
@pytest.mark.parametrize("sampler", ["bdia", "obelm"])
def test_timeline_of_an_exact_decode(
    sampler: str,
    edited: list[str],
    cli: Cli,
    bundle: Path,
    photos: Path,
    tmp_path: Path,
) -> None:
    """It goes on from the encode, with a row less where the last does not draw: all of its frames are shown."""
    own = Bundle(shutil.copytree(bundle, tmp_path / "own"))
    preset = msgspec.structs.replace(own.preset(None)[1], sampler=sampler, encode_steps=5, decode_steps=5)
    set_preset(own, "exact", msgspec.structs.replace(preset, spacing="logsnr"))
    options = ["-b", own.folder, "--engine", "null", "--preset", "exact"]
    cli("timeline", photos / "a.png", *options, *edited, "-o", tmp_path / "out").check()
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == (5 if edited else 4)
    edits, t_boost = ({"block": 1.0}, 400) if edited else ({}, None)
    editor = hspace.open(own.folder, engine="null")
    latent = editor.encode(photos / "a.png", preset="exact")
    _, frames = editor.timeline(latent, edits=edits, preset="exact", t_boost=t_boost)
    for file, frame in zip(files, frames, strict=True):
        np.testing.assert_array_equal(pixels(file), frame[0])


def test_timeline_of_a_draw(cli: Cli, on: list[object], tmp_path: Path, null_diffae: hspace.Editor) -> None:
    cli("timeline", *on, "--seed", 3, "--frames", 2, "--set", "block=1", "-o", tmp_path / "x.png").check()
    recorder = Timeline(2)
    null_diffae.sample(1, edits={"block": 1.0}, seed=3, on_step=recorder)
    both = np.concatenate([to_uint8(a[:, 0]) for a in recorder.frames()])
    sheet = Sheet(["P_t", "x_t"], [f"t = {t}" for t in recorder.timesteps], 8)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), sheet.draw(both))


@pytest.mark.parametrize("name", ["x.gif", "x.apng"])
def test_timeline_as_an_animation(
    name: str, cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    """Of P alone, each frame under its t."""
    cli("timeline", photos / "a.png", *on, "--frames", 4, "-o", tmp_path / name).check()
    p, _, sheet = along(null_diffae, 4, null_diffae.encode(photos / "a.png"))
    shows(tmp_path / name, sheet.frames(p))


@pytest.mark.parametrize("name", ["x.gif", "x.apng"])
@pytest.mark.parametrize(("frames", "digits"), [(3, 2), (120, 3)])
def test_interpolate_as_an_animation(
    name: str, frames: int, digits: int, cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae
) -> None:
    a, b = photos / "a.png", photos / "b.png"
    cli("interpolate", a, b, *on, "--frames", frames, "--steps", 1, "-o", tmp_path / name).check()
    expected = null_diffae.interpolate(*(null_diffae.encode(p, steps=1) for p in (a, b)), frames, steps=1)
    labels = [f"{w:.{digits}f}" for w in np.linspace(0, 1, frames)]
    shows(tmp_path / name, Sheet([""], labels, 8).frames(expected))


def test_timeline_as_a_folder(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor):
    """Of P alone."""
    cli("timeline", photos / "a.png", *on, "--frames", 3, "-o", tmp_path / "frames").check()
    p, _, _ = along(null_diffae, 3, null_diffae.encode(photos / "a.png"))
    assert names(tmp_path / "frames") == ["0000.png", "0001.png", "0002.png"]
    for name, expected in zip(names(tmp_path / "frames"), p, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "frames" / name), expected)


@pytest.mark.parametrize("steps", [2, 5, 8, 9])
def test_timelines_fit_the_run(
    steps: int, cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    """Without --frames: 8 steps, or all where there are fewer; on a sheet, in a folder, and by the API."""
    count, run = min(8, steps), {"steps": steps, "sampler": "dpmpp_2m"}
    options = ["--steps", steps, "--sampler", "dpmpp_2m"]
    latent = null_diffae.encode(photos / "a.png", steps=steps)
    latent.save(tmp_path / "a.safetensors")
    cli("timeline", tmp_path / "a.safetensors", *on, *options, "-o", tmp_path / "x.png").check()
    p, x, sheet = along(null_diffae, count, latent, **run)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), sheet.draw(np.concatenate([p, x])))
    cli("timeline", tmp_path / "a.safetensors", *on, *options, "-o", tmp_path / "frames").check()
    assert names(tmp_path / "frames") == [f"{i:04d}.png" for i in range(count)]
    for name, expected in zip(names(tmp_path / "frames"), p, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "frames" / name), expected)
    timesteps, frames = null_diffae.timeline(latent, **run)
    np.testing.assert_array_equal(frames[:, 0], p)
    assert len(timesteps) == count


@pytest.mark.parametrize("frames", [None, 3])
def test_timeline_of_a_decode_that_goes_on(
    frames: int | None, cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_folder: Path
) -> None:
    """An exact preset's decode takes one row less than its program: the last frame is the image all the same."""
    alter(
        null_folder,
        lambda m: m["presets"]["official"].update(spacing="logsnr", sampler="bdia", encode_steps=5, decode_steps=5),
    )
    editor, options = hspace.open(null_folder, engine="null"), ["-b", null_folder, "--engine", "null"]
    options += [] if frames is None else ["--frames", frames]
    cli("timeline", photos / "a.png", *options, "-o", tmp_path / "frames").check()
    latent = editor.encode(photos / "a.png")
    timesteps, expected = editor.timeline(latent, frames)
    assert len(timesteps) == (frames or 4) and len(editor.program("decode", latent=latent)) == 4
    for name, picture in zip(names(tmp_path / "frames"), expected[:, 0], strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "frames" / name), picture)


def test_timeline_refusals(cli: Cli, on: list[object], photos: Path, tmp_path: Path, encodes: list[object]) -> None:
    out = ["-o", tmp_path / "x.png"]
    for frames in (0, 1):
        result = cli("timeline", photos / "a.png", *on, "--frames", frames, *out)
        result.error(2, f"frames: found {frames}, expected a whole number from 2")
    cli("timeline", photos / "a.png", *on, "--frames", 5, *out).error(2, "--frames: found 5, expected", "from 2 to 4")
    cli("timeline", photos, *on, *out).error(2, "photos: found 3 files, expected one")
    cli("timeline", photos / "z.png", *on, *out).error(4, "z.png: no such file")
    cli("timeline", photos / "a.png", *on, "--set", "smiel=1", *out).error(2, "did you mean smile?")
    cli("timeline", photos / "a.png", *on, "-o", tmp_path / "x.tif").error(2, "found the suffix '.tif', expected")
    assert (names(tmp_path), encodes) == (["photos"], [])


# --- inject -------------------------------------------------------------------------------------------


def test_inject(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor) -> None:
    """A column per strength, these where none is given."""
    a, b = photos / "a.png", photos / "b.png"
    cli("inject", a, b, *on, "--t-edit", 0, "-o", tmp_path / "x.png").check()
    latent, amounts = null_diffae.encode(a), [0.0, 0.25, 0.5, 0.75, 1.0]
    expected = null_diffae.inject(Latent.stack([latent] * 5), b, amounts, t_edit=0)
    sheet = Sheet([""], ["0.00", "0.25", "0.50", "0.75", "1.00"], 8)
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), sheet.draw(expected))
    assert len(np.unique(expected.reshape(5, -1), axis=0)) == 5


def test_inject_nothing(cli: Cli, asyrp: Path, photos: Path, tmp_path: Path, null_asyrp: hspace.Editor) -> None:
    """At strength 0 the image stays as it is decoded."""
    options = ["-b", asyrp, "--engine", "null", "--strength", 0, "-o", tmp_path / "x"]
    cli("inject", photos / "a.png", photos / "b.png", *options).check()
    found, expected = pixels(tmp_path / "x" / "0000.png"), null_asyrp.reconstruct(photos / "a.png")[0]
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_inject_strengths_into_a_folder(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    """From a latent, with an edit."""
    a, b = tmp_path / "a.safetensors", photos / "b.png"
    cli("encode", photos / "a.png", *on, "-o", a).check()
    options = ["--strength", 0.3, "--strength", 0.9, "--set", "smile=1"]
    cli("inject", a, b, *on, *options, "-o", tmp_path / "x").check()
    expected = null_diffae.inject(Latent.stack([Latent.load(a)] * 2), b, [0.3, 0.9], edits={"smile": 1.0})
    assert names(tmp_path / "x") == ["0000.png", "0001.png"]
    for name, image in zip(names(tmp_path / "x"), expected, strict=True):
        np.testing.assert_array_equal(pixels(tmp_path / "x" / name), image)


def test_inject_with_a_mask(cli: Cli, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor):
    """White is where; a black mask is nowhere."""
    masks = {"none": np.zeros((8, 8)), "left": np.repeat([[1, 0]], 4, axis=1).repeat(8, axis=0)}
    found = {}
    for name, mask in masks.items():
        PIL.Image.fromarray((255 * mask).astype(np.uint8)).save(tmp_path / f"{name}.png")
        options = ["--strength", 1, "--mask", tmp_path / f"{name}.png", "--t-edit", 0, "-o", tmp_path / name]
        cli("inject", photos / "a.png", photos / "b.png", *on, *options).check()
        found[name] = pixels(tmp_path / name / "0000.png")
    latent = null_diffae.encode(photos / "a.png")
    np.testing.assert_array_equal(found["none"], null_diffae.inject(latent, photos / "b.png", 0.0, t_edit=0)[0])
    mask = masks["left"].astype(np.float32)
    expected = null_diffae.inject(latent, photos / "b.png", 1.0, mask=mask, t_edit=0)[0]
    np.testing.assert_array_equal(found["left"], expected)
    assert not np.array_equal(found["none"], found["left"])


def test_inject_refusals(cli: Cli, on: list[object], photos: Path, tmp_path: Path, encodes: list[object]) -> None:
    out, two = ["-o", tmp_path / "x.png"], [photos / "a.png", photos / "b.png"]
    cli("inject", photos / "a.png", *on, *out).error(2, "Missing argument 'CONTENT'")
    for amount in ("2", "-0.1", "nan"):
        result = cli("inject", *two, *on, "--strength", amount, *out)
        result.error(2, "--strength: found strength", "expected a number from 0 to 1")
    cli("inject", *two, *on, "--set", "haas=1", *out).error(2, "do not mix in one edit")
    cli("inject", *two, *on, "--mask", photos / "z.png", *out).error(4, "z.png: no such file")
    cli("inject", *two, *on, "--mask", photos / "notes.txt", *out).error(4, "notes.txt: expected an image")
    PIL.Image.new("L", (9, 9)).save(tmp_path / "mask.png")
    cli("inject", *two, *on, "--mask", tmp_path / "mask.png", *out).error(4, "mask.png: found 9×9 pixels")
    cli("inject", photos / "a.png", photos / "notes.txt", *on, *out).error(4, "notes.txt: expected an image")
    cli("inject", photos / "a.png", photos, *on, *out).error(2, "photos: found 3 files, expected one")
    cli("inject", *two, *on, "--force", "-o", photos / "b.png").error(7, "the output is an input")
    assert (names(tmp_path), encodes) == (["mask.png", "photos"], [])


# --- sample --accept ----------------------------------------------------------------------------------


def test_accept(cli: Cli, on: list[object], tmp_path: Path, null_diffae: hspace.Editor) -> None:
    """Other draws than without, and all of them accepted."""
    drawn = null_diffae.draw(32, seed=1)
    least = float(np.median(null_diffae.attributes["smile"].logit(drawn.z_sem)))
    options = ["--seed", 1, "--accept", f"smile={least}", "-o", tmp_path / "x.png"]
    cli("sample", 3, *on, *options).check()
    expected = null_diffae.sample(3, seed=1, accept={"smile": least})
    np.testing.assert_array_equal(pixels(tmp_path / "x.png"), grid("seed 1", 3, 8).draw(expected))
    kept = null_diffae.draw(3, seed=1, accept={"smile": least})
    assert (null_diffae.attributes["smile"].logit(kept.z_sem) >= least).all()


ACCEPTS = {
    "no number": (["smile=much"], "found 'smile=much', expected NAME=NUMBER"),
    "NaN": (["smile=nan"], "accept: smile: found logit nan, expected a number"),
    "unknown": (["smiel=1"], "accept: the bundle has no attribute 'smiel'; did you mean smile?"),
    "no classifier": (["block=1"], "accept: block is no z_direction, expected one: smile, beard"),
    "twice": (["smile=0", "smile=1"], "--accept: an attribute is named twice"),
    "never": (["smile=1e30"], "accept: smile: 0 of 256 draws come near a logit of 1e+30: the largest is "),
}


@pytest.mark.parametrize("name", ACCEPTS)
def test_accept_refusals(name: str, cli: Cli, on: list[object], tmp_path: Path) -> None:
    logits, fragment = ACCEPTS[name]
    options = [part for logit in logits for part in ("--accept", logit)]
    cli("sample", 1, *on, *options, "-o", tmp_path / "x.png").error(2, fragment)
    assert names(tmp_path) == []


def test_accept_asyrp(cli: Cli, asyrp: Path, tmp_path: Path) -> None:
    result = cli("sample", 1, "-b", asyrp, "--engine", "null", "--accept", "block=0", "-o", tmp_path / "x.png")
    result.error(2, "accept: the model has no z_sem to draw")
