"""Commands that take or make images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..editor import Editor
from ..errors import LatentError
from ..image import WRITABLE, check_files, save_image
from ..latent import Latent
from ..noise import check_seed
from ..runs import OnStep
from . import common

inputs = click.argument("inputs", nargs=-1, required=True)


@click.command()
@inputs
@common.opening
@common.running
@click.option("--encode-steps", type=int, help="Steps of the encode, where they differ from --steps.")
@common.editing
@common.resizing
@common.writing
@common.as_json
def edit(
    inputs: Sequence[str],
    strengths: Sequence[tuple[str, float]],
    steps: int | None,
    encode_steps: int | None,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit images: encode each, then decode it with the strengths given by --set.

    INPUTS are files, folders or patterns. With several, the output is a folder and results are named after inputs.
    Without --set an image is only reconstructed.

    \b
    Examples:
      hspace edit face.png -b bundles/avatars32 --set Blond_Hair=0.5 -o out.png
      hspace edit photos/ -b bundles/avatars32 --set Beard=0.4 --set Dark_Skin=-0.2 -o edited/
      hspace edit 'photos/*.jpg' -b faces --set smile=1 --resize --steps 20 -o edited/
    """
    planned = common.plan_outputs(common.expand(inputs), output, list(WRITABLE), force)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    check_files([j.source for j in planned[0]], editor.size, resize=options["resize"])
    both: int | tuple[int, int] | None = steps
    if encode_steps is not None:
        preset = editor.bundle.preset(options["preset"])[1]
        both = (encode_steps, preset.decode_steps if steps is None else steps)

    def make(jobs: Sequence[common.Job], on_step: OnStep) -> NDArray[np.uint8]:
        sources, numbers = [j.source for j in jobs], [j.number for j in jobs]
        return editor.edit(sources, edits, steps=both, image_numbers=numbers, on_step=on_step, **options)

    common.run_jobs("edit", editor, planned, as_json, make, save_image)


@click.command()
@inputs
@common.opening
@common.running
@common.resizing
@common.writing
@common.as_json
def encode(inputs: Sequence[str], output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Turn images into latents (safetensors files with z_sem and x_T), one per image.

    \b
    Examples:
      hspace encode face.png -b bundles/avatars32 -o face.safetensors
      hspace encode photos/ -b bundles/avatars32 --steps 100 -o latents/
    """
    planned = common.plan_outputs(common.expand(inputs), output, [common.LATENT_SUFFIX], force)
    editor = common.open_editor(options)
    check_files([j.source for j in planned[0]], editor.size, resize=options["resize"])

    def make(jobs: Sequence[common.Job], on_step: OnStep) -> Latent:
        return editor.encode([j.source for j in jobs], on_step=on_step, **options)

    common.run_jobs("encode", editor, planned, as_json, make, lambda path, latent: latent.save(path))


@click.command()
@inputs
@common.opening
@common.running
@common.editing
@common.writing
@common.as_json
def decode(
    inputs: Sequence[str],
    strengths: Sequence[tuple[str, float]],
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Turn latents into images, edited where --set says so. One encode serves many decodes.

    \b
    Examples:
      hspace decode face.safetensors -b bundles/avatars32 --set Blond_Hair=0.5 -o blond.png
      hspace decode latents/ -b bundles/avatars32 -o images/
    """
    files = common.expand(inputs, [common.LATENT_SUFFIX], LatentError)
    planned = common.plan_outputs(files, output, list(WRITABLE), force)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    for job in planned[0]:
        _load_latent(editor, job.source)  # refused before any work, and not all held at once

    def make(jobs: Sequence[common.Job], on_step: OnStep) -> NDArray[np.uint8]:
        latent, numbers = Latent.stack([_load_latent(editor, j.source) for j in jobs]), [j.number for j in jobs]
        return editor.decode(latent, edits, image_numbers=numbers, on_step=on_step, **options)

    common.run_jobs("decode", editor, planned, as_json, make, save_image)


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

    The output is a strip where it is an image's name, and a folder of frames where it is not.

    \b
    Examples:
      hspace interpolate a.png b.png -b bundles/avatars32 -o between.png
      hspace interpolate a.safetensors b.png -b bundles/avatars32 --frames 24 -o frames/
    """
    targets = common.plan_series(output, frames, force, [Path(first), Path(second)])
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    _check_run(editor, edits, options)
    start = time.perf_counter()
    a, b = (_latent(editor, path, resize, options) for path in (first, second))
    with common.progress("interpolate") as on_step:
        images = editor.interpolate(a, b, frames, edits=edits, on_step=on_step, **options)
    _save_series(targets, images)
    common.wrote(as_json, targets, [], time.perf_counter() - start, editor)


@click.command()
@click.argument("count", type=int)
@common.opening
@common.running
@click.option("--latent-steps", type=int, help="Steps of the latent DDIM.")
@common.editing
@common.writing
@common.as_json
def sample(
    count: int,
    strengths: Sequence[tuple[str, float]],
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw COUNT new images. The same seed gives the same draws on any machine.

    The output is a strip where it is an image's name, and a folder where it is not.

    \b
    Examples:
      hspace sample 16 -b bundles/avatars32 --seed 7 -o samples/
    """
    targets = common.plan_series(output, count, force, [])
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    start = time.perf_counter()
    with common.progress("sample") as on_step:
        images = editor.sample(count, edits=edits, on_step=on_step, **options)
    _save_series(targets, images)
    common.wrote(as_json, targets, [], time.perf_counter() - start, editor)


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

    The output is a strip where it is an image's name, and a folder where it is not.

    \b
    Examples:
      hspace vary face.png -b bundles/avatars32 --count 4 -o varied.png
    """
    targets = common.plan_series(output, count, force, [Path(source)])
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    editor.check_can_vary()
    _check_run(editor, edits, options)
    start = time.perf_counter()
    latent = _latent(editor, source, resize, options)
    with common.progress("vary") as on_step:
        images = editor.vary(latent, count, edits=edits, on_step=on_step, **options)
    _save_series(targets, images)
    common.wrote(as_json, targets, [], time.perf_counter() - start, editor)


@click.command()
@inputs
@common.opening
@common.resizing
@common.as_json
def classify(inputs: Sequence[str], resize: bool, as_json: bool, **options: Any) -> None:
    """Score images for the bundle's attributes: logits of its linear classifiers on z_sem; above 0 means yes.

    \b
    Examples:
      hspace classify face.png -b bundles/avatars32
      hspace classify photos/ -b bundles/avatars32 --json
    """
    files = common.expand(inputs)
    editor = common.open_editor(options)
    check_files(files, editor.size, resize=resize)
    chunks = [files[i : i + editor.batch_size] for i in range(0, len(files), editor.batch_size)]
    scores = np.concatenate([editor.classify(chunk, resize=resize) for chunk in chunks])
    found = {
        "classes": editor.classes,
        "images": [{"file": str(f), "logits": [float(v) for v in row]} for f, row in zip(files, scores, strict=True)],
    }
    rows = [[str(f), *(f"{s:.2f}" for s in row)] for f, row in zip(files, scores, strict=True)]
    common.emit(as_json, found, common.table(["file", *editor.classes], rows))


def _latent(editor: Editor, path: str, resize: bool, options: dict[str, Any]) -> Latent:
    """A latent's file, or an image, encoded with the command's own options."""
    if Path(path).suffix == common.LATENT_SUFFIX:
        return _load_latent(editor, Path(path))
    with common.progress("encode") as on_step:
        run = {"preset": options["preset"], "steps": options["steps"]}
        return editor.encode(path, resize=resize, on_step=on_step, **run)


def _check_run(editor: Editor, edits: dict[str, float], options: dict[str, Any]) -> None:
    """Refuses what a decode would refuse, before an encode takes its time."""
    check_seed(options["seed"])
    names = ("preset", "steps", "sampler", "t_edit", "t_boost")
    editor.program("decode", edits=edits, **{n: options[n] for n in names})


def _load_latent(editor: Editor, path: Path) -> Latent:
    latent = Latent.load(path)
    if len(latent) != 1:
        raise LatentError(f"{path}: holds {len(latent)} images, expected 1")
    try:
        editor.check_latent(latent)
    except LatentError as e:
        raise LatentError(f"{path}: {e}") from None
    return latent


def _save_series(targets: list[Path], images: NDArray[np.uint8]) -> None:
    """All images, or one strip of them."""
    each = images if len(targets) == len(images) else [np.concatenate(list(images), axis=1)]
    for target, pixels in zip(targets, each, strict=True):
        common.make_folder(target.parent)
        save_image(target, pixels)
