"""Commands on any number of images or latents, one result each."""

from __future__ import annotations

import csv
import io
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from ..editor import Editor
from ..errors import ArgumentError, LatentError, OutputError
from ..files import read_file, write_atomically
from ..image import WRITABLE, save_image
from ..latent import Latent
from ..runs import OnStep
from . import common, outputs

Float32 = NDArray[np.float32]
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
    planned = outputs.plan_outputs(common.expand(inputs), output, list(WRITABLE), force)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    both: int | tuple[int, int] | None = steps
    if encode_steps is not None:
        preset = editor.bundle.preset(options["preset"])[1]
        both = (encode_steps, preset.decode_steps if steps is None else steps)

    load = _loader(editor, options.pop("resize"))

    def make(jobs: Sequence[outputs.Job], images: list[Float32], on_step: OnStep) -> NDArray[np.uint8]:
        numbers = [j.number for j in jobs]
        return editor.edit(np.stack(images), edits, steps=both, image_numbers=numbers, on_step=on_step, **options)

    report = outputs.run_jobs("edit", editor.batch_size, planned, load, make, save_image)
    outputs.wrote(as_json, report, editor)


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
    planned = outputs.plan_outputs(common.expand(inputs), output, [common.LATENT_SUFFIX], force)
    editor = common.open_editor(options)
    load = _loader(editor, options.pop("resize"))

    def make(jobs: Sequence[outputs.Job], images: list[Float32], on_step: OnStep) -> Latent:
        return editor.encode(np.stack(images), on_step=on_step, **options)

    report = outputs.run_jobs("encode", editor.batch_size, planned, load, make, lambda path, latent: latent.save(path))
    outputs.wrote(as_json, report, editor)


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
    planned = outputs.plan_outputs(files, output, list(WRITABLE), force)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)

    def make(jobs: Sequence[outputs.Job], latents: list[Latent], on_step: OnStep) -> NDArray[np.uint8]:
        numbers = [j.number for j in jobs]
        return editor.decode(Latent.stack(latents), edits, image_numbers=numbers, on_step=on_step, **options)

    def load(path: Path) -> Latent:
        return common.load_latent(editor, path)

    report = outputs.run_jobs("decode", editor.batch_size, planned, load, make, save_image)
    outputs.wrote(as_json, report, editor)


@click.command()
@inputs
@common.opening
@common.resizing
@click.option("-o", "--output", type=click.Path(path_type=Path), help="A CSV file; images that it has are skipped.")
@click.option("--force", is_flag=True, help="Begin the CSV file anew.")
@common.as_json
def classify(
    inputs: Sequence[str], resize: bool, output: Path | None, force: bool, as_json: bool, **options: Any
) -> None:
    """Score images for the bundle's attributes: logits of its linear classifiers on z_sem; above 0 means yes.

    \b
    Examples:
      hspace classify face.png -b bundles/avatars32
      hspace classify photos/ -b bundles/avatars32 --json
      hspace classify photos/ -b bundles/avatars32 -o scores.csv
    """
    files, begun = common.expand(inputs), False
    if output is not None:
        if not outputs.is_file_name(output, [".csv"]):
            raise ArgumentError(f"{output}: expected a file's name that ends in .csv")
        begun = bool(outputs.existing([output], files)) and not force
    editor = common.open_editor(options)
    scores = _Scores(output, editor, begun)
    kept = [f for f in files if f in scores]
    jobs = [outputs.Job(n, f, f) for n, f in enumerate(files) if f not in scores]

    def make(jobs: Sequence[outputs.Job], images: list[Float32], on_step: OnStep) -> Float32:
        return editor.classify(np.stack(images))

    load = _loader(editor, resize)
    try:
        report = outputs.run_jobs("classify", editor.batch_size, (jobs, kept), load, make, scores.add)
    finally:
        scores.flush()
    if output is not None:
        report.written = [output] if report.written else []
        outputs.wrote(as_json, report, editor)
        return
    failed, refusals = report.refused()
    rows = list(scores.rows.values())
    found = {
        "classes": editor.classes,
        "images": [{"file": f, "logits": logits} for f, logits in rows],
        "failed": failed,
    }
    lines = [[f, *(f"{s:.2f}" for s in logits)] for f, logits in rows]
    common.emit(as_json, found, common.table(["file", *editor.classes], lines) + refusals)
    report.finish()


class _Scores:
    """Logits by file, and in a CSV file where one is given, which is replaced whole now and then.

    begun: whether the CSV file is there, with rows of an earlier call. rows: absolute path → the path as it was given,
    and the logits. The CSV's columns are named NAME#FINGERPRINT, so that a classifier that was fitted anew is another.
    """

    _SECONDS = 5  # between two writes: each is of the whole file

    def __init__(self, path: Path | None, editor: Editor, begun: bool) -> None:
        entries = editor.bundle.manifest.attributes
        self.rows: dict[str, tuple[str, list[float]]] = {}
        self._path, self._header = path, ["file", *(f"{name}#{entries[name].sha256[:12]}" for name in editor.classes)]
        self._written, self._changed = time.monotonic(), False
        if path is None or not begun:
            return
        text = read_file(path, OutputError).decode("utf-8", "surrogateescape")
        try:
            header, *rows = csv.reader(io.StringIO(text))
            self.rows = {os.path.abspath(file): (file, [float(x) for x in logits]) for file, *logits in rows}
        except (ValueError, csv.Error):
            header = []
        if header != self._header or any(len(logits) != len(editor.classes) for _, logits in self.rows.values()):
            raise OutputError(f"{path}: exists, and is not a table of these classifiers (--force begins it anew)")

    def __contains__(self, file: Path) -> bool:
        return os.path.abspath(file) in self.rows

    def add(self, file: Path, logits: Float32) -> None:
        self.rows[os.path.abspath(file)] = str(file), [float(x) for x in logits]
        self._changed = True
        if time.monotonic() - self._written >= self._SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what the CSV file does not have yet."""
        if self._path is None or not self._changed:
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [self._header, *([file, *map(repr, logits)] for file, logits in self.rows.values())]
        )
        write_atomically(self._path, text.getvalue().encode("utf-8", "surrogateescape"))
        self._written, self._changed = time.monotonic(), False


def _loader(editor: Editor, resize: bool) -> Callable[[Path], Float32]:
    """Reads one file as float32 [3, H, W]."""
    return lambda path: common.load_pictures(path, editor, resize)[0]
