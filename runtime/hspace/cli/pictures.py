"""Commands whose result is one picture of many images: a labelled contact sheet, an animation, or a folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from ..checks import check_whole
from ..editor import Editor
from ..errors import ArgumentError
from ..image import SUFFIXES, check_files, to_uint8
from ..latent import Latent
from ..recorders import Timeline
from ..sheet import Sheet, grid
from . import common, printable

if TYPE_CHECKING:
    _ParamType = click.ParamType[tuple[str, list[float]]]
else:
    _ParamType = click.ParamType  # not generic before click 8.4

_EITHER = (*SUFFIXES, common.LATENT_SUFFIX)  # images, and latents


class Range(_ParamType):
    """NAME=FROM:TO:COUNT."""

    name = "NAME=FROM:TO:COUNT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[float]]:
        name, _, text = str(value).rpartition("=")
        with suppress(ValueError):
            low, high, count = text.split(":")
            if name and 1 <= int(count) <= 100 and np.isfinite([float(low), float(high)]).all():
                return name, np.linspace(float(low), float(high), int(count)).round(6).tolist()
        self.fail(f"found {value!r}, expected NAME=FROM:TO:COUNT, as in smile=-1:1:5", param, ctx)


@click.command()
@click.argument("inputs", nargs=-1, required=True)
@common.opening
@click.option(
    "--over",
    "ranges",
    type=Range(),
    multiple=True,
    required=True,
    help="Strengths of an attribute; twice for a grid of two.",
)
@common.running
@common.editing
@common.resizing
@common.writing
@common.as_json
def sweep(
    inputs: Sequence[str],
    ranges: Sequence[tuple[str, list[float]]],
    strengths: Sequence[tuple[str, float]],
    resize: bool,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Images over strengths of an attribute: a row per image; or one image over two attributes.

    INPUTS are images or latents. The output is a contact sheet where it is an image's name, and a folder of numbered
    files, row after row, where it is not.

    \b
    Examples:
      hspace sweep face.png -b bundles/avatars32 --over Blond_Hair=-0.8:0.8:5 -o sweep.png
      hspace sweep face.png -b bundles/avatars32 --over Blond_Hair=-1:1:5 --over Dark_Skin=-1:1:5 -o grid.png
    """
    start, files = time.perf_counter(), common.expand(inputs, _EITHER)
    over, edits = dict(ranges), common.strengths_of(strengths)
    if len(over) != len(ranges) or len(over) > 2 or (len(over) == 2 and len(files) > 1):
        raise ArgumentError("--over: expected one attribute, or two different ones and a single input")
    if not over.keys().isdisjoint(edits):
        raise ArgumentError("--set: names an attribute that --over has, expected others")
    labels = [[f"{name} {value:+.3g}" for value in values] for name, values in over.items()]
    rows, columns = labels if len(labels) == 2 else ([printable(f.stem) for f in files], labels[0])
    series = common.plan_series(output, len(rows) * len(columns), force, files)
    editor = common.open_editor(options)
    sheet = Sheet(rows, columns, editor.size)
    series.check(sheet)
    for end in (0, -1):
        common.check_run(editor, {**edits, **{name: values[end] for name, values in over.items()}}, options)
    latent = Latent.stack([_latent(editor, f, resize, options) for f in files])
    with common.progress("sweep") as on_step:
        images = editor.sweep(latent, over, edits=edits, on_step=on_step, **options)
    series.save(images.reshape(-1, *images.shape[-3:]), sheet)
    common.wrote(as_json, common.Report(1, [], series.targets, start=start), editor)


@click.command()
@click.argument("first")
@click.argument("second")
@common.opening
@common.running
@click.option("--frames", type=int, default=8, show_default=True, help="How many, both ends included.")
@common.editing
@common.resizing
@common.writing
@common.as_json
def interpolate(
    first: str,
    second: str,
    frames: int,
    strengths: Sequence[tuple[str, float]],
    resize: bool,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Images between two images or latents: z_sem linear, x_T spherical.

    The output is a contact sheet where it is an image's name, an animation where it ends in .gif or .apng, and a folder
    of frames where it is neither.

    \b
    Examples:
      hspace interpolate a.png b.png -b bundles/avatars32 -o between.png
      hspace interpolate a.safetensors b.png -b bundles/avatars32 --frames 24 -o between.gif
    """
    start, sources = time.perf_counter(), [_one_file(first), _one_file(second)]
    check_whole("--frames", frames, 2)
    series = common.plan_series(output, frames, force, sources, animated=True)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    sheet = Sheet([""], [f"{w:.2f}" for w in np.linspace(0, 1, frames)], editor.size)
    series.check(sheet)
    common.check_run(editor, edits, options)
    a, b = (_latent(editor, path, resize, options) for path in sources)
    with common.progress("interpolate") as on_step:
        images = editor.interpolate(a, b, frames, edits=edits, on_step=on_step, **options)
    series.save(images, sheet)
    common.wrote(as_json, common.Report(1, [], series.targets, start=start), editor)


@click.command()
@click.argument("source", metavar="[INPUT]", required=False)
@common.opening
@common.running
@click.option(
    "--frames", type=int, default=8, show_default=True, help="How many steps to show, the first and last among them."
)
@common.editing
@common.resizing
@common.writing
@common.as_json
def timeline(
    source: str | None,
    frames: int,
    strengths: Sequence[tuple[str, float]],
    resize: bool,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """What a decode sees along the way: P_t, the predicted x_0, and the state x_t.

    INPUT is an image or a latent; without it, an image is drawn with --seed. The output is a contact sheet, an
    animation of P_t where it ends in .gif or .apng, or a folder of P_t.

    \b
    Examples:
      hspace timeline face.png -b bundles/avatars32 -o timeline.png
      hspace timeline -b bundles/avatars32 --seed 3 --frames 20 -o timeline.gif
    """
    start, sources = time.perf_counter(), [] if source is None else [_one_file(source)]
    check_whole("--frames", frames)
    series = common.plan_series(output, frames, force, sources, animated=True)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    program = common.check_run(editor, edits, options)
    recorder = Timeline(frames, program)
    sheet = Sheet(["P_t", "x_t"], [f"t = {t}" for t in recorder.timesteps], editor.size)
    series.check(sheet)
    latent = _latent(editor, sources[0], resize, options) if sources else None
    with common.progress("timeline") as on_step:
        recorder.then = on_step
        if latent is None:
            editor.sample(1, edits=edits, on_step=recorder, **options)
        else:
            editor.decode(latent, edits, on_step=recorder, **options)
    p, x = recorder.frames()
    series.save(to_uint8(p[:, 0]), sheet, also=to_uint8(x[:, 0]))
    common.wrote(as_json, common.Report(1, [], series.targets, start=start), editor)


@click.command()
@click.argument("count", type=int)
@common.opening
@common.running
@click.option("--latent-steps", type=int, help="Steps of the latent DDIM.")
@click.option(
    "--accept",
    type=common.Strength("LOGIT"),
    multiple=True,
    help="Keep draws of z_sem whose logit for an attribute is at least this; may be repeated.",
)
@common.editing
@common.writing
@common.as_json
def sample(
    count: int,
    accept: Sequence[tuple[str, float]],
    strengths: Sequence[tuple[str, float]],
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw COUNT new images. The same seed gives the same draws on any machine.

    The output is a contact sheet where it is an image's name, and a folder where it is not. With --accept, z_sem is
    drawn until the bundle's classifiers accept enough (`hspace attribute fit` makes one from a handful of images).

    \b
    Examples:
      hspace sample 16 -b bundles/avatars32 --seed 7 -o samples/
      hspace sample 16 -b bundles/avatars32 --accept Blond_Hair=0 -o blond.png
    """
    start, series = time.perf_counter(), common.plan_series(output, count, force, [])
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    sheet = grid(count, editor.size)
    series.check(sheet)
    wanted = common.strengths_of(accept, "--accept") or None
    with common.progress("sample") as on_step:
        images = editor.sample(count, edits=edits, accept=wanted, on_step=on_step, **options)
    series.save(images, sheet)
    common.wrote(as_json, common.Report(1, [], series.targets, start=start), editor)


@click.command()
@click.argument("source", metavar="INPUT")
@common.opening
@common.running
@click.option("--count", type=int, default=8, show_default=True, help="How many variations.")
@common.editing
@common.resizing
@common.writing
@common.as_json
def vary(
    source: str,
    count: int,
    strengths: Sequence[tuple[str, float]],
    resize: bool,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Variations of an image or latent: its z_sem kept, x_T drawn anew.

    The output is a contact sheet where it is an image's name, and a folder where it is not.

    \b
    Examples:
      hspace vary face.png -b bundles/avatars32 --count 4 -o varied.png
    """
    start, file = time.perf_counter(), _one_file(source)
    series = common.plan_series(output, count, force, [file])
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    sheet = grid(count, editor.size)
    series.check(sheet)
    editor.check_can_vary()
    common.check_run(editor, edits, options)
    latent = _latent(editor, file, resize, options)
    with common.progress("vary") as on_step:
        images = editor.vary(latent, count, edits=edits, on_step=on_step, **options)
    series.save(images, sheet)
    common.wrote(as_json, common.Report(1, [], series.targets, start=start), editor)


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("content")
@common.opening
@common.running
@click.option(
    "--strength", "amounts", type=float, multiple=True, help="0 to 1; may be repeated. [default: 0, 0.25, 0.5, 0.75, 1]"
)
@click.option("--mask", type=click.Path(path_type=Path), help="A picture of the model's size: where (white) or not.")
@common.editing
@common.resizing
@common.writing
@common.as_json
def inject(
    source: str,
    content: str,
    amounts: Sequence[float],
    mask: Path | None,
    strengths: Sequence[tuple[str, float]],
    resize: bool,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Put the content of one image into another: h turns, step by step, towards the second image's.

    INPUT is an image or a latent, CONTENT an image. The output is a contact sheet over the strengths where it is an
    image's name, and a folder where it is not.

    \b
    Examples:
      hspace inject style.png content.png -b bundles/avatars32 -o injected.png
      hspace inject style.png content.png -b bundles/avatars32 --strength 0.6 --mask hair.png -o injected.png
    """
    start, files = time.perf_counter(), [_one_file(source), _one_file(content), *([mask] if mask else [])]
    amounts = amounts or (0.0, 0.25, 0.5, 0.75, 1.0)
    for amount in amounts:
        if not 0 <= amount <= 1:
            raise ArgumentError(f"--strength: found strength {amount}, expected a number from 0 to 1")
    series = common.plan_series(output, len(amounts), force, files)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    sheet = Sheet([""], [f"{a:.2f}" for a in amounts], editor.size)
    series.check(sheet)
    check_files(files[1:], editor.size, resize=resize)
    where = None if mask is None else (common.load_pictures(mask, editor, resize)[0].mean(axis=0) + 1) / 2
    common.check_run(editor, edits, options)
    latent = Latent.stack([_latent(editor, files[0], resize, options)] * len(amounts))
    other = common.load_pictures(files[1], editor, resize)
    with common.progress("inject") as on_step:
        images = editor.inject(latent, other, amounts, mask=where, edits=edits, on_step=on_step, **options)
    series.save(images, sheet)
    common.wrote(as_json, common.Report(1, [], series.targets, start=start), editor)


def _one_file(text: str) -> Path:
    """The one image or latent that a name, a folder or a pattern stands for."""
    found = common.expand([text], _EITHER)
    if len(found) != 1:
        raise ArgumentError(f"{text}: found {len(found)} files, expected one")
    return found[0]


def _latent(editor: Editor, path: Path, resize: bool, options: dict[str, Any]) -> Latent:
    """A latent's file, or an image, encoded with the command's own options."""
    if path.suffix == common.LATENT_SUFFIX:
        return common.load_latent(editor, path)
    pictures = common.load_pictures(path, editor, resize)
    with common.progress("encode") as on_step:
        return editor.encode(pictures, preset=options["preset"], steps=options["steps"], on_step=on_step)
