"""Commands whose result is one picture of many images: a labelled contact sheet, an animation, or a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..checks import check_whole
from ..errors import ArgumentError, HspaceError, ImageError, LatentError
from ..image import SUFFIXES, to_uint8
from ..latent import Latent
from ..manifest import Source
from ..noise import check_seed
from ..recorders import FRAMES, Timeline
from ..sheet import Sheet, grid
from . import common, outputs, printable
from .jobs import JobReport, Recorder, settle_series, wrote
from .progress import progress
from .streams import DASH, read_source, source_of

_EITHER = (*SUFFIXES, common.LATENT_SUFFIX)  # images, and latents


class Range(common.ParamType[tuple[str, list[float]]]):
    """NAME=FROM:TO:COUNT."""

    name = "NAME=FROM:TO:COUNT"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, list[float]]:
        name, _, text = str(value).rpartition("=")
        with suppress(ValueError), np.errstate(over="ignore", invalid="ignore"):  # what overflows, the edit refuses
            low, high, count = text.split(":")
            if name and 1 <= int(count) <= 100 and np.isfinite([float(low), float(high)]).all():
                return name, np.linspace(float(low), float(high), int(count)).round(12).tolist()
        self.fail(f"found {value!r}, expected NAME=FROM:TO:COUNT, as in smile=-1:1:5", param, ctx)


class _Picture:
    """What stands around every call here: where its images go, settled before the work, and what is said at the end."""

    def __init__(
        self, options: dict[str, Any], count: int, sources: Sequence[Path] = (), animated: bool = False
    ) -> None:
        """For `count` images. Takes what is not the run's own out of `options`."""
        self._start = time.perf_counter()
        self._as_json, self._resize = options.pop("as_json"), options.pop("resize", False)
        output = options.pop("output")
        self._form = outputs.form_of(output, options)
        force, update = options.pop("force"), options.pop("update")
        self._series = outputs.plan_series(output, count, self._form, force, update, sources, animated)
        self._sources: dict[Path, Source | None] = dict.fromkeys(sources)
        self.editor = common.open_editor(options)
        self.edits = common.strengths_of(options.pop("strengths"))

    def lay_out(self, sheet: Sheet) -> None:
        """The contact sheet that the images would be on."""
        self._sheet = sheet
        self._series.check(sheet)

    def describe(self, call: str, options: dict[str, Any], draws: bool = False, **more: Any) -> bool:
        """What the outputs are to say of what made them; refuses what a decode would refuse. See `Recorder`.

        False where all exist and would be the same, which is said. Those that would differ are refused before any work.
        """
        check_seed(options["seed"])
        more["quality"] = self._form.quality
        self._recorder = Recorder(self.editor, call, options, self.edits, draws=draws, **more)
        report = JobReport(len(self._series.targets), start=self._start, what="outputs")
        for path in self._sources if self._series.there else ():
            self._read(path, LatentError if common.is_latent(path) else ImageError)
        settle_series(self._series, report, self._record)
        if report.failed or len(report.kept) == report.total:
            wrote(self._as_json, report, self._recorder.engine)
            return False
        return True

    def _record(self, number: int) -> str:
        """What the output of that number says."""
        image = number if self._series.kind == "folder" else None
        return self._recorder([*filter(None, self._sources.values())], image)

    def _read(self, path: Path, error: type[HspaceError]) -> bytes:
        data = read_source(path, error)
        self._sources[path] = source_of(path, data)
        return data

    def image(self, path: Path) -> NDArray[np.float32]:
        """An image's file, float32 [1, 3, H, W]."""
        return common.load_pictures(path, self._read(path, ImageError), self.editor, self._resize)

    def latents(self, paths: Sequence[Path], options: dict[str, Any]) -> list[Latent]:
        """Latents' files, and images, encoded with the command's own options: together, once all are read."""
        run = {k: options[k] for k in ("preset", "steps")}
        loaded = [
            common.load_latent(p, self._read(p, LatentError), self.editor) if common.is_latent(p) else self.image(p)
            for p in paths
        ]
        images = [x for x in loaded if not isinstance(x, Latent)]
        if not images:
            encoded: Iterator[Latent] = iter(())
        else:
            with progress("encode") as on_step:
                encoded = iter(self.editor.encode(np.concatenate(images), on_step=on_step, **run))
        return [x if isinstance(x, Latent) else next(encoded) for x in loaded]

    def latent(self, path: Path, options: dict[str, Any]) -> Latent:
        """One of them."""
        return self.latents([path], options)[0]

    def keep(self, count: int) -> None:
        """Of a folder's files, the first `count`."""
        del self._series.targets[count:]

    def finish(self, images: NDArray[np.uint8], also: NDArray[np.uint8] | None = None) -> None:
        """Writes the images, and on a sheet `also` those, and says so."""
        series = self._series
        series.save(images, self._sheet, self._record, also)
        written = [target for target in series.targets if target not in series.kept]
        report = JobReport(len(series.targets), series.kept, written, start=self._start, on_stdout=written == [DASH])
        wrote(self._as_json, report, self._recorder.engine)


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
@common.picture
@common.as_json
def sweep(inputs: Sequence[str], ranges: Sequence[tuple[str, list[float]]], **options: Any) -> None:
    """Images over strengths of an attribute: a row per image; or one image over two attributes.

    INPUTS are images or latents. The output is a contact sheet where it is an image's name, and a folder of numbered
    files, row after row, where it is not.

    \b
    Examples:
      hspace sweep face.png -b bundles/avatars32 --over Blond_Hair=-0.8:0.8:5 -o sweep.png
      hspace sweep face.png -b bundles/avatars32 --over Blond_Hair=-1:1:5 --over Dark_Skin=-1:1:5 -o grid.png
    """
    files, over = common.expand(inputs, _EITHER), dict(ranges)
    if len(over) != len(ranges) or len(over) > 2 or (len(over) == 2 and len(files) > 1):
        raise ArgumentError("--over: expected one attribute, or two different ones and a single input")
    labels = [[f"{name} {shown}" for shown in _distinct(values)] for name, values in over.items()]
    rows, columns = labels if len(labels) == 2 else ([printable(f.stem) for f in files], labels[0])
    picture = _Picture(options, len(rows) * len(columns), files)
    if not over.keys().isdisjoint(picture.edits):
        raise ArgumentError("--set: names an attribute that --over has, expected others")
    picture.lay_out(Sheet(rows, columns, picture.editor.size))
    for end in (0, -1):
        edits = {**picture.edits, **{name: values[end] for name, values in over.items()}}
        common.check_run(picture.editor, edits, options)
    if not picture.describe("sweep", options, over=over):
        return
    latent = Latent.stack(picture.latents(files, options))
    with progress("sweep") as on_step:
        images = picture.editor.sweep(latent, over, edits=picture.edits, on_step=on_step, **options)
    picture.finish(images.reshape(-1, *images.shape[-3:]))


@click.command()
@click.argument("first")
@click.argument("second")
@common.opening
@common.running
@click.option("--frames", type=int, default=8, show_default=True, help="How many, both ends included.")
@common.editing
@common.resizing
@common.writing
@common.picture
@common.as_json
def interpolate(first: str, second: str, frames: int, **options: Any) -> None:
    """Images between two images or latents: z_sem linear, x_T spherical.

    The output is a contact sheet where it is an image's name, an animation where it ends in .gif or .apng, and a folder
    of frames where it is neither.

    \b
    Examples:
      hspace interpolate a.png b.png -b bundles/avatars32 -o between.png
      hspace interpolate a.safetensors b.png -b bundles/avatars32 --frames 24 -o between.gif
    """
    sources = [_one_file(first), _one_file(second)]
    check_whole("--frames", frames, 2)
    picture = _Picture(options, frames, sources, animated=True)
    digits = max(2, len(str(frames)))  # as many as make labels differ
    picture.lay_out(Sheet([""], [f"{w:.{digits}f}" for w in np.linspace(0, 1, frames)], picture.editor.size))
    if not picture.describe("interpolate", options, frames=frames):
        return
    a, b = picture.latents(sources, options)
    with progress("interpolate") as on_step:
        images = picture.editor.interpolate(a, b, frames, edits=picture.edits, on_step=on_step, **options)
    picture.finish(images)


@click.command()
@click.argument("source", metavar="[INPUT]", required=False)
@common.opening
@common.running
@click.option(
    "--frames",
    type=int,
    help=f"How many steps to show, the first and last among them. [default: {FRAMES}, or all where there are fewer]",
)
@common.editing
@common.resizing
@common.writing
@common.picture
@common.as_json
def timeline(source: str | None, frames: int | None, **options: Any) -> None:
    """Show P_t, the predicted x_0, and the state x_t along a decode.

    INPUT is an image or a latent; without it, an image is drawn with --seed. The output is a contact sheet, an
    animation of P_t where it ends in .gif or .apng, or a folder of P_t.

    \b
    Examples:
      hspace timeline face.png -b bundles/avatars32 -o timeline.png
      hspace timeline -b bundles/avatars32 --seed 3 --steps 40 --frames 20 -o timeline.gif
    """
    sources = [] if source is None else [_one_file(source)]
    if frames is not None:
        check_whole("--frames", frames, 2)
    picture = _Picture(options, frames or FRAMES, sources, animated=True)

    rows = len(common.check_run(picture.editor, picture.edits, options))
    if frames is not None:
        check_whole("--frames", frames, 2, max(2, rows))

    def lay_out(timesteps: Sequence[int]) -> None:
        picture.lay_out(Sheet(["P_t", "x_t"], [f"t = {t}" for t in timesteps], picture.editor.size))

    count = min(FRAMES, rows) if frames is None else frames
    lay_out(range(count))
    picture.keep(count)
    if not picture.describe("timeline", options, draws=not sources, frames=count):
        return
    latent = picture.latent(sources[0], options) if sources else None
    if latent is not None and frames is not None:  # a decode that goes on from the encode may take one row less
        rows = len(common.check_run(picture.editor, picture.edits, options, latent))
        check_whole("--frames", frames, 2, max(2, rows))
    with progress("timeline") as on_step:
        recorder = Timeline(frames, on_step)
        if latent is None:
            picture.editor.sample(1, edits=picture.edits, on_step=recorder, **options)
        else:
            picture.editor.decode(latent, picture.edits, on_step=recorder, **options)
    p, x = recorder.frames()
    lay_out(recorder.timesteps.tolist())
    picture.keep(len(p))
    picture.finish(to_uint8(p[:, 0]), also=to_uint8(x[:, 0]))


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
@common.picture
@common.as_json
def sample(count: int, accept: Sequence[tuple[str, float]], **options: Any) -> None:
    """Draw COUNT new images. The same seed gives the same draws on any machine.

    The output is a contact sheet where it is an image's name, and a folder where it is not. With --accept, z_sem is
    drawn until the bundle's classifiers accept enough (`hspace attribute fit` makes one from a handful of images).

    \b
    Examples:
      hspace sample 16 -b bundles/avatars32 --seed 7 -o samples/
      hspace sample 16 -b bundles/avatars32 --accept Blond_Hair=0 -o blond.png
    """
    picture, wanted = _Picture(options, count), common.strengths_of(accept, "--accept") or None
    picture.lay_out(grid(f"seed {options['seed']}", count, picture.editor.size))
    told = {"count": count, "accept": wanted, "latent_steps": options["latent_steps"]}
    if not picture.describe("sample", options, draws=True, **told):
        return
    with progress("sample") as on_step:
        images = picture.editor.sample(count, edits=picture.edits, accept=wanted, on_step=on_step, **options)
    picture.finish(images)


@click.command()
@click.argument("source", metavar="INPUT")
@common.opening
@common.running
@click.option("--count", type=int, default=8, show_default=True, help="How many variations.")
@common.editing
@common.resizing
@common.writing
@common.picture
@common.as_json
def vary(source: str, count: int, **options: Any) -> None:
    """Variations of an image or latent: its z_sem kept, x_T drawn anew.

    The output is a contact sheet where it is an image's name, and a folder where it is not.

    \b
    Examples:
      hspace vary face.png -b bundles/avatars32 --count 4 -o varied.png
    """
    file = _one_file(source)
    picture = _Picture(options, count, [file])
    picture.lay_out(grid(printable(file.stem), count, picture.editor.size))
    picture.editor.check_can_vary()
    if not picture.describe("vary", options, draws=True, count=count):
        return
    latent = picture.latent(file, options)
    with progress("vary") as on_step:
        images = picture.editor.vary(latent, count, edits=picture.edits, on_step=on_step, **options)
    picture.finish(images)


@click.command()
@click.argument("source", metavar="INPUT")
@click.argument("content")
@common.opening
@common.running
@click.option(
    "--strength", "amounts", type=float, multiple=True, help="0 to 1; may be repeated. [default: 0, 0.25, 0.5, 0.75, 1]"
)
@click.option("--mask", type=common.FILE, help="A picture of the model's size: where (white) or not.")
@common.editing
@common.resizing
@common.writing
@common.picture
@common.as_json
def inject(source: str, content: str, amounts: Sequence[float], mask: Path | None, **options: Any) -> None:
    """Put the content of one image into another: h turns, step by step, towards the second image's.

    INPUT is an image or a latent, CONTENT an image. The output is a contact sheet over the strengths where it is an
    image's name, and a folder where it is not.

    \b
    Examples:
      hspace inject style.png content.png -b bundles/avatars32 -o injected.png
      hspace inject style.png content.png -b bundles/avatars32 --strength 0.6 --mask hair.png -o injected.png
    """
    files = [_one_file(source), _one_file(content), *([mask] if mask else [])]
    amounts = amounts or (0.0, 0.25, 0.5, 0.75, 1.0)
    for amount in amounts:
        if not 0 <= amount <= 1:
            raise ArgumentError(f"--strength: found strength {amount}, expected a number from 0 to 1")
    picture = _Picture(options, len(amounts), files)
    picture.lay_out(Sheet([""], [f"{a:.2f}" for a in amounts], picture.editor.size))
    where = None if mask is None else (picture.image(mask)[0].mean(axis=0) + 1) / 2
    other = picture.image(files[1])
    if not picture.describe("inject", options, amounts=list(amounts), masked=mask is not None):
        return
    picture.editor.check_can_inject(picture.edits)
    latent = Latent.stack([picture.latent(files[0], options)] * len(amounts))
    with progress("inject") as on_step:
        images = picture.editor.inject(
            latent,
            other,
            amounts,
            mask=where,
            edits=picture.edits,
            image_numbers=[0] * len(amounts),  # the same draws at every strength
            on_step=on_step,
            **options,
        )
    picture.finish(images)


def _distinct(values: Sequence[float]) -> list[str]:
    """Numbers with as few digits, three or more, as different ones take to look different."""
    shown = [[f"{value:+.{digits}g}" for value in values] for digits in range(3, 18)]
    return next(s for s in shown if len(set(s)) >= len(set(values)))


def _one_file(text: str) -> Path:
    """The one image or latent that a name, a folder or a pattern stands for."""
    files = common.expand([text], _EITHER)
    if len(files) != 1:
        raise ArgumentError(f"{text}: found {len(files)} files, expected one")
    return files[0]
