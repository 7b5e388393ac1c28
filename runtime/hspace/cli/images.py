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
from ..errors import ArgumentError, OutputError
from ..image import SUFFIXES, save_image
from ..latent import Latent
from . import common

LATENT_SUFFIX = ".safetensors"
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
    pairs, kept = common.plan_outputs(common.expand(inputs), output, ".png", force)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    both: int | tuple[int, int] | None = steps
    if encode_steps is not None:
        preset = editor.bundle.preset(options["preset"])[1]
        both = (encode_steps, preset.decode_steps if steps is None else steps)
    start = time.perf_counter()
    chunks = list(common.groups(pairs, editor.batch_size))
    with common.progress("edit", len(chunks)) as on_step:
        for chunk in chunks:
            images = editor.edit([i for i, _ in chunk], edits, steps=both, on_step=on_step, **options)
            for (_, target), pixels in zip(chunk, images, strict=True):
                save_image(target, pixels)
    common.wrote(as_json, [t for _, t in pairs], kept, time.perf_counter() - start, editor)


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
    pairs, kept = common.plan_outputs(common.expand(inputs), output, LATENT_SUFFIX, force)
    editor = common.open_editor(options)
    start = time.perf_counter()
    chunks = list(common.groups(pairs, editor.batch_size))
    with common.progress("encode", len(chunks)) as on_step:
        for chunk in chunks:
            latents = editor.encode([i for i, _ in chunk], on_step=on_step, **options)
            for (_, target), latent in zip(chunk, latents, strict=True):
                latent.save(target)
    common.wrote(as_json, [t for _, t in pairs], kept, time.perf_counter() - start, editor)


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
    pairs, kept = common.plan_outputs(common.expand(inputs, [LATENT_SUFFIX]), output, ".png", force)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    start = time.perf_counter()
    with common.progress("decode", len(pairs)) as on_step:
        for source, target in pairs:
            latent = Latent.load(source)
            if len(latent) != 1:
                raise ArgumentError(f"{source}: holds {len(latent)} images, expected 1")
            save_image(target, editor.decode(latent, edits, on_step=on_step, **options)[0])
    common.wrote(as_json, [t for _, t in pairs], kept, time.perf_counter() - start, editor)


@click.command()
@click.argument("first")
@click.argument("second")
@common.opening
@common.running
@click.option("--frames", type=int, default=8, show_default=True, help="How many, both ends included.")
@common.resizing
@common.writing
@common.as_json
def interpolate(
    first: str, second: str, frames: int, resize: bool, output: Path, force: bool, as_json: bool, **options: Any
) -> None:
    """Images between two images or latents: z_sem linear, x_T spherical.

    The output is a strip where it is an image's name, and a folder of frames where it is not.

    \b
    Examples:
      hspace interpolate a.png b.png -b bundles/avatars32 -o between.png
      hspace interpolate a.safetensors b.png -b bundles/avatars32 --frames 24 -o frames/
    """
    targets = _series(output, frames, force, [Path(first), Path(second)])
    editor = common.open_editor(options)
    start = time.perf_counter()
    a, b = (_latent(editor, path, resize, options) for path in (first, second))
    with common.progress("interpolate") as on_step:
        images = editor.interpolate(a, b, frames, on_step=on_step, **options)
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
    seed: int,
    output: Path,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw COUNT new images. The same seed gives the same images on any machine.

    The output is a strip where it is an image's name, and a folder where it is not.

    \b
    Examples:
      hspace sample 16 -b bundles/avatars32 --seed 7 -o samples/
    """
    targets = _series(output, count, force, [])
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    start = time.perf_counter()
    with common.progress("sample") as on_step:
        images = editor.sample(count, edits=edits, seed=seed, on_step=on_step, **options)
    _save_series(targets, images)
    common.wrote(as_json, targets, [], time.perf_counter() - start, editor)


@click.command()
@click.argument("source", metavar="INPUT")
@common.opening
@common.running
@click.option("--count", type=int, default=8, show_default=True, help="How many variations.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the x_T that are drawn.")
@common.resizing
@common.writing
@common.as_json
def vary(
    source: str, count: int, seed: int, resize: bool, output: Path, force: bool, as_json: bool, **options: Any
) -> None:
    """Variations of an image or latent: its z_sem kept, x_T drawn anew.

    The output is a strip where it is an image's name, and a folder where it is not.

    \b
    Examples:
      hspace vary face.png -b bundles/avatars32 --count 4 -o varied.png
    """
    targets = _series(output, count, force, [Path(source)])
    editor = common.open_editor(options)
    start = time.perf_counter()
    latent = _latent(editor, source, resize, options)
    with common.progress("vary") as on_step:
        images = editor.vary(latent, count, seed=seed, on_step=on_step, **options)
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
    scores = np.concatenate(
        [editor.classify(chunk, resize=resize) for chunk in common.groups(files, editor.batch_size)]
    )
    found = {
        str(f): dict(zip(editor.classes, map(float, row), strict=True)) for f, row in zip(files, scores, strict=True)
    }
    rows = [[str(f), *(f"{s:.2f}" for s in row)] for f, row in zip(files, scores, strict=True)]
    common.emit(as_json, found, common.table(["file", *editor.classes], rows))


def _latent(editor: Editor, path: str, resize: bool, options: dict[str, Any]) -> Latent:
    """A latent's file, or an image, encoded with the command's own options."""
    if Path(path).suffix == LATENT_SUFFIX:
        return Latent.load(path)
    return editor.encode(path, resize=resize, preset=options["preset"], steps=options["steps"])


def _series(output: Path, count: int, force: bool, sources: Sequence[Path]) -> list[Path]:
    """Where `count` images go: one strip, or numbered files in a folder. Nothing that exists is replaced unasked."""
    if output.suffix.lower() in SUFFIXES:
        targets = [output]
    else:
        common.make_folder(output)
        targets = [output / f"{i:04d}.png" for i in range(count)]
    for target in targets:
        if target.resolve() in {s.resolve() for s in sources}:
            raise OutputError(f"{target}: the output is an input")
        if target.exists() and not force:
            raise OutputError(f"{target}: exists already (--force replaces it)")
    return targets


def _save_series(targets: list[Path], images: NDArray[np.uint8]) -> None:
    if len(targets) == 1:
        save_image(targets[0], np.concatenate(list(images), axis=1))
        return
    for target, pixels in zip(targets, images, strict=True):
        save_image(target, pixels)
