"""Commands on any number of images or latents, one result each."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray

from .. import __version__
from ..arrays import Float32
from ..editor import Editor
from ..errors import ArgumentError, HspaceError, ImageError, LatentError, OutputError
from ..files import read_file, write_atomically
from ..image import SUFFIXES, WRITABLE
from ..latent import Latent
from ..manifest import Source
from ..record import engine_told, with_record
from ..runs import OnStep
from . import common, outputs
from .jobs import JobReport, Recorder, run_jobs, wrote
from .streams import DASH, write_stdout

inputs = click.argument("inputs", nargs=-1, required=True)


@click.command()
@inputs
@common.opening
@common.running
@click.option("--encode-steps", type=int, help="Steps of the encode, where they differ from --steps.")
@common.editing
@common.resizing
@common.writing
@common.picture
@common.naming
@common.as_json
def edit(
    inputs: Sequence[str],
    strengths: Sequence[tuple[str, float]],
    steps: int | None,
    encode_steps: int | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Edit images: encode each, then decode it with the strengths given by --set.

    INPUTS are files, folders or patterns; - is stdin. With several, the output is a folder and results are named after
    inputs. Without --set an image is only reconstructed. Outputs say what made them: of those that exist, the ones that
    would be the same are kept, and others are named and left alone without --update or --force.

    \b
    Examples:
      hspace edit face.png -b bundles/avatars32 --set Blond_Hair=0.5 -o out.png
      hspace edit - -b bundles/avatars32 --set Blond_Hair=0.5 -o - < face.png > out.png
      hspace edit photos/ -b bundles/avatars32 --set Beard=0.4 --set Dark_Skin=-0.2 -o edited/
      hspace edit 'photos/*.jpg' -b faces --set smile=1 --resize --steps 20 -o edited/
    """
    plan, form = _plan(inputs, options, tuple(WRITABLE))
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    load = _loader(editor, options.pop("resize"))
    both: int | tuple[int, int] | None = steps
    if encode_steps is not None:
        preset = editor.bundle.preset(options["preset"])[1]
        both = (encode_steps, preset.decode_steps if steps is None else steps)
    record = Recorder(editor, "edit", {**options, "steps": both}, edits, quality=form.quality)

    def make(jobs: Sequence[outputs.Job], images: list[Float32], on_step: OnStep) -> NDArray[np.uint8]:
        numbers = [j.number for j in jobs]
        return editor.edit(np.stack(images), edits, steps=both, image_numbers=numbers, on_step=on_step, **options)

    _run("edit", editor, plan, ImageError, load, make, partial(_put_image, form), record, as_json)


@click.command()
@inputs
@common.opening
@common.running
@common.resizing
@common.writing
@common.naming
@common.as_json
def encode(inputs: Sequence[str], as_json: bool, **options: Any) -> None:
    """Turn images into latents (safetensors files with z_sem and x_T), one per image.

    \b
    Examples:
      hspace encode face.png -b bundles/avatars32 -o face.safetensors
      hspace encode photos/ -b bundles/avatars32 --steps 100 -o latents/
    """
    plan, _ = _plan(inputs, options, (common.LATENT_SUFFIX,))
    editor = common.open_editor(options)
    load = _loader(editor, options.pop("resize"))
    record = Recorder(editor, "encode", options)

    def make(jobs: Sequence[outputs.Job], images: list[Float32], on_step: OnStep) -> Latent:
        return editor.encode(np.stack(images), on_step=on_step, **options)

    _run("encode", editor, plan, ImageError, load, make, _put_latent, record, as_json)


@click.command()
@inputs
@common.opening
@common.running
@common.editing
@common.writing
@common.picture
@common.naming
@common.as_json
def decode(inputs: Sequence[str], strengths: Sequence[tuple[str, float]], as_json: bool, **options: Any) -> None:
    """Turn latents into images, edited where --set says so. One encode serves many decodes.

    \b
    Examples:
      hspace decode face.safetensors -b bundles/avatars32 --set Blond_Hair=0.5 -o blond.png
      hspace decode latents/ -b bundles/avatars32 -o images/
    """
    plan, form = _plan(inputs, options, tuple(WRITABLE), [common.LATENT_SUFFIX], LatentError)
    editor, edits = common.open_editor(options), common.strengths_of(strengths)
    record = Recorder(editor, "decode", options, edits, quality=form.quality)

    def load(path: Path, data: bytes) -> Latent:
        return common.load_latent(path, data, editor)

    def make(jobs: Sequence[outputs.Job], latents: list[Latent], on_step: OnStep) -> NDArray[np.uint8]:
        numbers = [j.number for j in jobs]
        return editor.decode(Latent.stack(latents), edits, image_numbers=numbers, on_step=on_step, **options)

    _run("decode", editor, plan, LatentError, load, make, partial(_put_image, form), record, as_json)


@click.command()
@inputs
@common.opening
@common.resizing
@click.option("-o", "--output", type=common.FILE, help="A CSV file; images that it has are skipped.")
@click.option("--force", is_flag=True, help="Begin the CSV file anew.")
@click.option("--update", is_flag=True, help="Score anew what changed since the CSV file has it.")
@common.recursing
@common.as_json
def classify(
    inputs: Sequence[str],
    resize: bool,
    output: Path | None,
    force: bool,
    update: bool,
    recursive: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Score images for the bundle's attributes: logits of its linear classifiers on z_sem; above 0 means yes.

    Rows of a CSV file hold the image's SHA-256 and what made them. Of images that it has, those whose rows would be the
    same are skipped, and others are named and left alone without --update or --force.

    \b
    Examples:
      hspace classify face.png -b bundles/avatars32
      hspace classify photos/ -b bundles/avatars32 --json
      hspace classify photos/ -b bundles/avatars32 -o scores.csv
    """
    files, begun = [f for f, _ in common.expand_tree(inputs, recursive=recursive)], False
    if output is not None:
        if not outputs.is_file_name(output, [".csv"]):
            raise ArgumentError(f"{output}: expected a file's name that ends in .csv")
        begun = bool(outputs.existing([output], files)) and not force
    editor = common.open_editor(options)
    scores = _Scores(output, editor, begun)
    plan = outputs.Plan([], update=update)
    for number, file in enumerate(files):
        (plan.there if file in scores else plan.jobs).append(outputs.Job(number, file, file))

    def make(jobs: Sequence[outputs.Job], images: list[Float32], on_step: OnStep) -> Float32:
        return editor.classify(np.stack(images))

    try:
        report = run_jobs(
            "classify",
            editor.batch_size,
            plan,
            ImageError,
            _loader(editor, resize),
            make,
            scores.add,
            lambda job, source: scores.record(source.sha256, scores.made_by),
            scores.there,
        )
    finally:
        scores.flush()
    if output is not None:
        report.written = [output] if report.written else []
        wrote(as_json, report, editor.engine)
        return
    _say(as_json, report, scores, editor)


def _say(as_json: bool, report: JobReport, scores: _Scores, editor: Editor) -> None:
    """Prints the scores of a call without a CSV file; raises where inputs were refused."""
    failed, refusals = report.refused()
    rows = list(scores.rows.values())
    told = {
        "classes": editor.classes,
        "images": [{"file": row.file, "sha256": row.sha256, "logits": row.logits} for row in rows],
        "failed": failed,
        **engine_told(editor.engine),
    }
    lines = [[row.file, *(f"{s:.2f}" for s in row.logits)] for row in rows]
    text = common.table(["file", *editor.classes], lines) + f"\n({common.engine_text(editor.engine)})"
    common.emit(as_json, told, text + refusals)
    report.finish()


class _Row(NamedTuple):
    """file: as it was given; sha256: of its contents; made_by: see `_Scores`."""

    file: str
    sha256: str
    made_by: str
    logits: list[float]


class _Scores:
    """Logits by file, and in a CSV file where one is given, which is replaced whole now and then.

    begun: whether the CSV file is there, with rows of an earlier call. rows: by absolute path. The logits' columns are
    named NAME#FINGERPRINT, so that a classifier that was fitted anew is another. made_by: what computed z_sem.
    """

    _SECONDS = 5  # between two writes: each is of the whole file

    def __init__(self, path: Path | None, editor: Editor, begun: bool) -> None:
        manifest = editor.bundle.manifest
        self.rows: dict[str, _Row] = {}
        columns = (f"{name}#{manifest.attributes[name].sha256[:12]}" for name in editor.classes)
        self._path, self._header = path, ["file", "sha256", "made_by", *columns]
        encoder = manifest.components["encoder"].sha256[:12] if "encoder" in manifest.components else ""
        self.made_by = f"hspace {__version__}, {common.engine_text(editor.engine)}, encoder {encoder}"
        self._written, self._changed = time.monotonic(), False
        if path is None or not begun:
            return
        text = read_file(path, OutputError).decode("utf-8", "surrogateescape")
        try:
            header, *rows = csv.reader(io.StringIO(text))
            for file, sha256, made_by, *logits in rows:
                self.rows[os.path.abspath(file)] = _Row(file, sha256, made_by, [float(x) for x in logits])
        except (ValueError, csv.Error):
            header = []
        if header != self._header or any(len(row.logits) != len(editor.classes) for row in self.rows.values()):
            raise OutputError(f"{path}: exists, and is not a table of these classifiers (--force begins it anew)")

    def __contains__(self, file: Path) -> bool:
        return os.path.abspath(file) in self.rows

    @staticmethod
    def record(sha256: str, made_by: str) -> str:
        """What tells whether a row would be the same."""
        return json.dumps({"sha256": sha256, "made_by": made_by})

    def there(self, job: outputs.Job) -> str:
        """The record of a row that is there."""
        row = self.rows[os.path.abspath(job.source)]
        return self.record(row.sha256, row.made_by)

    def add(self, job: outputs.Job, logits: Float32, record: str) -> None:
        """One image's logits, and its row's record."""
        told = json.loads(record)
        row = _Row(str(job.source), told["sha256"], told["made_by"], [float(x) for x in logits])
        self.rows[os.path.abspath(job.source)] = row
        self._changed = True
        if time.monotonic() - self._written >= self._SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what the CSV file does not have yet."""
        if self._path is None or not self._changed:
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [self._header, *([*row[:3], *map(repr, row.logits)] for row in self.rows.values())]
        )
        write_atomically(self._path, text.getvalue().encode("utf-8", "surrogateescape"))
        self._written, self._changed = time.monotonic(), False


def _plan(
    inputs: Sequence[str],
    options: dict[str, Any],
    kinds: Sequence[str],
    suffixes: Sequence[str] = SUFFIXES,
    error: type[HspaceError] = ImageError,
) -> tuple[outputs.Plan, outputs.Form]:
    """What is to be made, and how it is written; takes the options of that out of `options`. kinds: of the outputs."""
    output, force, update = (options.pop(name) for name in ("output", "force", "update"))
    form = outputs.form_of(output, options, kinds)
    files = common.expand_tree(inputs, suffixes, error, options.pop("recursive"), output)
    return outputs.plan_outputs(files, output, form, kinds, force, update), form


def _run(
    label: str,
    editor: Editor,
    plan: outputs.Plan,
    error: type[HspaceError],
    load: Callable[[Path, bytes], Any],
    make: Callable[[Sequence[outputs.Job], list[Any], OnStep], Iterable[Any]],
    write: Callable[[outputs.Job, Any, str], None],
    record: Recorder,
    as_json: bool,
) -> None:
    """Runs the jobs, and says what was done."""

    def record_of(job: outputs.Job, source: Source) -> str:
        return record([source], job.number)

    report = run_jobs(label, editor.batch_size, plan, error, load, make, write, record_of)
    wrote(as_json, report, record.engine)


def _put_image(form: outputs.Form, job: outputs.Job, pixels: NDArray[np.uint8], record: str) -> None:
    outputs.put_image(job.target, pixels, record, form)


def _put_latent(job: outputs.Job, latent: Latent, record: str) -> None:
    data = with_record(latent, record).to_bytes(str(job.target))
    if job.target == DASH:
        write_stdout(data)
    else:
        write_atomically(job.target, data)


def _loader(editor: Editor, resize: bool) -> Callable[[Path, bytes], Float32]:
    """Reads one file's bytes as float32 [3, H, W]."""
    return lambda path, data: common.load_pictures(path, data, editor, resize)[0]
