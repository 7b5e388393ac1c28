"""hspace attribute fit, average and pca, and hspace calibrate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
from hspace.amend import add_attribute, check_free, set_preset
from hspace.checks import check_whole
from hspace.cli import common, outputs, printable
from hspace.cli.jobs import Recorder
from hspace.cli.progress import Bar, progress
from hspace.cli.streams import sources_of
from hspace.deltas import DeltaTable
from hspace.editor import Editor
from hspace.edits import check_names
from hspace.errors import ArgumentError
from hspace.files import write_atomically
from hspace.image import check_files
from hspace.manifest import check_name
from hspace.program import Branch
from hspace.record import engine_told, write_image
from hspace.runs import OnStep, Step
from hspace.sheet import Sheet
from numpy.typing import NDArray

from . import calibrate as indicators
from . import fit as fitting
from .labels import read_labels

_FILE = common.FILE
_MOST_SEED = 2**32 - 1  # that scikit-learn takes
running = common.stack(
    common.engine,
    common.running,
    common.resizing,
    click.option("--force", is_flag=True, help="Replace what exists."),
    common.as_json,
)


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("names", nargs=-1, required=True)
@click.option("--positive", type=_FILE, help="A folder of images with the attribute.")
@click.option("--negative", type=_FILE, help="A folder of images without it.")
@click.option("--unlabelled", type=_FILE, help="Instead of --negative: images of which nothing is known.")
@click.option("--images", type=_FILE, help="A folder of images, with --labels.")
@click.option(
    "--labels", type=_FILE, help="A CSV file: a column of file names, then one per attribute, of 0 or -1 and 1."
)
@click.option(
    "--kind",
    type=click.Choice(["z_direction", "delta_h"]),
    help="[default: z_direction where the model has a z_sem, else delta_h]",
)
@click.option(
    "--branch",
    type=click.Choice(["symmetric", "asymmetric"]),
    help="Branch of a delta_h: Δh in both terms (Haas et al.), or in P alone (Asyrp). [default: symmetric]",
)
@click.option("--held-out", type=float, default=0.2, show_default=True, help="The share of images to measure on.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the choice of held-out images.")
@click.option("--allow-chance", is_flag=True, help="Add attributes whose held-out AUC is 0.5 or less, too.")
@running
def fit(
    names: Sequence[str],
    positive: Path | None,
    negative: Path | None,
    unlabelled: Path | None,
    images: Path | None,
    labels: Path | None,
    kind: str | None,
    branch: Any,
    held_out: float,
    seed: int,
    allow_chance: bool,
    resize: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make attributes from images with and without them, measure them on held-out images, and add them to the bundle.

    An attribute whose held-out AUC is 0.5 or less tells nothing, and is not added. One whose AUC random scores reach
    one time in twenty is added with a warning.

    Either two folders and one NAME, or --images and --labels with any of the CSV's columns as NAMES.

    \b
    Examples:
      hspace attribute fit bundles/avatars32 glasses --positive with/ --negative without/
      hspace attribute fit bundles/faces Wink Long_Hair --images faces/ --labels faces/labels.csv
      hspace attribute fit bundles/avatars32 like_these --positive ten/ --unlabelled thousands/
      hspace attribute fit bundles/ddpm smile --kind delta_h --positive smiling/ --negative neutral/
    """
    if not 0 <= held_out <= 0.9:
        raise ArgumentError(f"--held-out: found {held_out}, expected a share from 0 to 0.9")
    check_whole("--seed", seed, 0, _MOST_SEED)
    editor, names = common.open_editor(options), list(dict.fromkeys(names))
    for name in names:
        check_name("NAME", name)
        check_free("attribute", name, editor.bundle.manifest.attributes, force)
    kind = kind or ("z_direction" if editor.bundle.manifest.z_sem is not None else "delta_h")
    few_shot = unlabelled is not None
    if few_shot and (negative is not None or kind != "z_direction"):
        raise click.UsageError("--unlabelled: it stands for --negative, for a z_direction")
    if kind == "z_direction" and (branch is not None or options["preset"] is not None or options["steps"] is not None):
        raise click.UsageError("--branch, --preset and --steps: of a delta_h, and this makes a z_direction")
    examples, absent = _examples(names, positive, unlabelled or negative, images, labels)
    least = 2 if kind == "z_direction" else 1
    for name, (with_it, without) in examples.items():
        if min(len(with_it), len(without)) < least:
            raise ArgumentError(
                f"{name}: found {len(with_it)} images with the attribute and {len(without)} without, "
                f"expected at least {least} of each"
            )
    files = sorted({f for pair in examples.values() for side in pair for f in side})
    check_files(files, editor.size, resize=resize)
    fitted, start = {}, time.perf_counter()
    if kind == "z_direction":
        codes = dict(zip(files, _encode_z(editor, files, resize), strict=True))
        for name, (with_it, without) in examples.items():
            z_sem = np.stack([codes[f] for f in (*with_it, *without)])
            y = np.arange(len(z_sem)) < len(with_it)
            statistics = editor.z_statistics
            fitted[name] = fitting.fit_direction(z_sem, y, statistics, few_shot=few_shot, held_out=held_out, seed=seed)
    else:
        for name, (with_it, without) in examples.items():
            run = {k: options[k] for k in ("preset", "steps")}
            used = fitting.pairs(with_it, without) or (with_it, without)
            with _bar(name, sum(map(len, used))) as on_step:
                inversions = fitting.Inversions(editor, **run, resize=resize, on_step=on_step)
                fitted[name] = fitting.fit_delta_h(
                    inversions, with_it, without, branch=branch or "symmetric", held_out=held_out, seed=seed
                )
    _add(editor, fitted, force, as_json, time.perf_counter() - start, absent, allow_chance)


def _examples(
    names: Sequence[str], positive: Path | None, negative: Path | None, images: Path | None, labels: Path | None
) -> tuple[dict[str, tuple[list[Path], list[Path]]], int]:
    """Name → images with the attribute, and without; and how many rows of the labels have no image."""
    if images is not None and labels is not None and positive is None and negative is None:
        return read_labels(names, images, labels)
    if positive is None or negative is None or images is not None or labels is not None:
        raise click.UsageError("expected --positive and --negative (or --unlabelled), or --images and --labels")
    if len(names) != 1:
        raise click.UsageError(f"two folders make one attribute: found {len(names)} names")
    return {names[0]: (common.expand([str(positive)]), common.expand([str(negative)]))}, 0


def _encode_z(editor: Editor, files: Sequence[Path], resize: bool) -> NDArray[np.float32]:
    with Bar("encode", len(files)) as bar:
        each = []
        for chunk in fitting.batches(files, editor.batch_size):
            each.append(editor.encode_z(chunk, resize=resize))
            bar.to(bar.done + len(chunk))
    return np.concatenate(each)


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("name")
@click.argument("block")
@click.argument("images", type=_FILE)
@click.option("--t-edit", type=int, help="Inject, and average, at timesteps from here up.")
@running
def average(
    name: str,
    block: str,
    images: Path,
    t_edit: int | None,
    resize: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Make the delta_h NAME from the delta_block BLOCK, averaged over the edits of a folder of images.

    It edits nearly as the block does (Kwon et al. 2023, section 3.5), with no network of its own.

    \b
    Examples:
      hspace attribute average bundles/celebahq smiling_mean smiling faces/
    """
    editor, files, start = common.open_editor(options), common.expand([str(images)]), time.perf_counter()
    check_name("NAME", name)
    check_free("attribute", name, editor.bundle.manifest.attributes, force)
    check_names([block], editor.attributes, "BLOCK")
    check_files(files, editor.size, resize=resize)
    run = {"preset": options["preset"], "steps": options["steps"], "t_edit": t_edit}
    with _bar(name, len(files)) as on_step:
        averaged = fitting.average_block(editor, block, files, resize=resize, on_step=on_step, **run)
    _add(editor, {name: averaged}, force, as_json, time.perf_counter() - start)


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("prefix")
@click.option("--count", type=int, default=3, show_default=True, help="How many components.")
@click.option("--samples", type=int, help="How many samples to draw. [default: 64]")
@click.option("--images", type=_FILE, help="A folder of images, instead of samples.")
@click.option("-o", "--output", type=_FILE, help="A folder for a picture of each component.")
@common.seeding
@running
def pca(
    prefix: str,
    count: int,
    samples: int | None,
    images: Path | None,
    output: Path | None,
    seed: int,
    resize: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find directions of h without labels: its principal components, as attributes PREFIX_0, PREFIX_1, …

    h is taken over the decodes of samples, or the inversions of images. Strength 1 is one standard deviation.

    \b
    Examples:
      hspace attribute pca bundles/ddpm pca --count 5 -o pictures/
    """
    if images is None and resize:
        raise click.UsageError("--resize: expected --images with it")
    if images is not None and samples is not None:
        raise click.UsageError("--samples: --images stands in its place")
    files = [] if images is None else common.expand([str(images)])
    samples = 64 if samples is None else samples
    check_whole("--seed", seed, 0, _MOST_SEED)
    check_whole("--samples", samples, 2)
    check_whole("--count", count, 1, (len(files) if images is not None else samples) - 1)
    editor, start = common.open_editor(options), time.perf_counter()
    names = [f"{prefix}_{i}" for i in range(count)]
    for name in names:
        check_name("PREFIX", name)
        check_free("attribute", name, editor.bundle.manifest.attributes, force)
    pictures = [] if output is None else outputs.plan_folder(output, [f"{n}.png" for n in names], force, files)
    run = {k: options[k] for k in ("preset", "steps")}
    if images is not None:
        recorder = fitting.record_h(editor, "encode", len(files), run)
        with progress("encode") as on_step:
            recorder.then = on_step
            latent = editor.encode(files, resize=resize, on_step=recorder, **run)
    else:
        recorder = fitting.record_h(editor, "decode", samples, run)
        latent = editor.draw(samples, preset=options["preset"], seed=seed)
        with progress("decode") as on_step:
            recorder.then = on_step
            editor.decode(latent, on_step=recorder, seed=seed, **run)
    components = fitting.principal_components(recorder.table, recorder.timesteps, count, seed=seed)
    shown, strengths = latent[:4], [-3.0, -1.5, 0.0, 1.5, 3.0]
    record = Recorder(editor, "attribute pca", {**run, "seed": seed}, draws=images is None, count=count)
    sources = sources_of(files) if pictures else []
    for i, (name, path, made) in enumerate(zip(names, pictures, components, strict=False)):
        timesteps, table = made.arrays["timesteps"], made.arrays["delta_h"]
        editor.attributes[name] = DeltaTable(timesteps, table, None, Branch.SYMMETRIC)
        swept = editor.sweep(shown, {name: strengths}, seed=seed, **run)
        sheet = Sheet([""] * len(shown), [f"{name} {s:+.1f} sd" for s in strengths], editor.size)
        with outputs.folder_of(path):
            write_image(path, sheet.draw(swept.reshape(-1, *swept.shape[-3:])), record(sources, i))
    _add(editor, dict(zip(names, components, strict=True)), force, as_json, time.perf_counter() - start)


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("images", type=_FILE)
@click.option("-o", "--output", type=_FILE, required=True, help="A folder for curves.json and curves.png.")
@click.option("--lpips", type=_FILE, help="LPIPS as an ONNX file (hspace export lpips). [default: 1 - SSIM]")
@click.option("--t-edit-at", type=float, help="Distance of P_t that selects t_edit. [default: LPIPS 0.33, SSIM 0.33]")
@click.option("--t-boost-at", type=float, help="Distance of x_t that selects t_boost. [default: LPIPS 1.2, SSIM 0.75]")
@click.option(
    "--similarity",
    type=float,
    default=1.0,
    show_default=True,
    help="Similarity of an attribute to its source; scales --t-edit-at.",
)
@click.option("--save", "name", help="Save a preset of this name with what was found.")
@running
def calibrate(
    images: Path,
    output: Path,
    lpips: Path | None,
    t_edit_at: float | None,
    t_boost_at: float | None,
    similarity: float,
    name: str | None,
    resize: bool,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Find t_edit and t_boost for a model from the inversions of a folder of images (Kwon et al. 2023, section 3.4).

    Writes how far P_t and x_t are from x_0, against t. t_edit is the first t at which P_t is as far as --t-edit-at
    (times the similarity: CLIP's cosine of the attribute's two texts), t_boost the first at which x_t is as far as
    --t-boost-at. The defaults for LPIPS are the paper's, those for 1 - SSIM our own.

    \b
    Examples:
      hspace calibrate bundles/avatars32 faces/ -o calibrated/
      hspace calibrate bundles/celebahq faces/ --lpips lpips256.onnx --similarity 0.9 --save smiling -o calibrated/
    """
    editor, files, start = common.open_editor(options), common.expand([str(images)]), time.perf_counter()
    if name is not None:
        check_name("--save", name)
        check_free("preset", name, editor.bundle.manifest.presets, force)
    paths = outputs.plan_folder(output, ["curves.json", "curves.png"], force, files)
    check_files(files, editor.size, resize=resize)
    distance = indicators.Structural() if lpips is None else indicators.Lpips(lpips, editor.size)
    thresholds = {
        "t_edit": (distance.t_edit if t_edit_at is None else t_edit_at) * similarity,
        "t_boost": distance.t_boost if t_boost_at is None else t_boost_at,
    }
    for what, value in thresholds.items():
        if not 0 < value < np.inf:
            raise ArgumentError(f"{what}: found the threshold {value}, expected a positive number")
        if name is not None and value > distance.most:
            raise ArgumentError(
                f"{what}: no image is {value:g} away ({distance.name} is at most {distance.most:g}), so there would "
                "be nothing to save"
            )
    run = {k: options[k] for k in ("preset", "steps")}
    with _bar("invert", len(files)) as on_step:
        curves = indicators.measure(editor, files, distance, **run, resize=resize, on_step=on_step)
    chosen = {
        "t_edit": curves.first(curves.to_p, thresholds["t_edit"]),
        "t_boost": curves.first(curves.to_x, thresholds["t_boost"]),
    }
    record = Recorder(editor, "calibrate", run)
    measured = {**curves.json(), "thresholds": thresholds, "similarity": similarity, **chosen}
    measured["made_by"] = json.loads(record(sources_of(files), None))
    with outputs.folder_of(paths[0]):
        write_atomically(paths[0], json.dumps(measured, indent=1).encode() + b"\n")
        indicators.plot(paths[1], curves, [(what, thresholds[what], t) for what, t in chosen.items()])
    largest = {"t_edit": curves.to_p[0].max(), "t_boost": curves.to_x[0].max()}
    says = [
        f"{what} {t} (threshold {thresholds[what]:.3g})"
        if t is not None
        else f"{what} not found: the distance stays below {thresholds[what]:.3g} (largest {largest[what]:.3g})"
        for what, t in chosen.items()
    ]
    text = f"{curves.distance}, {len(files)} images: {'; '.join(says)}\nwrote {paths[0]} and {paths[1]} "
    text += f"in {time.perf_counter() - start:.1f} s ({common.engine_text(record.engine)})"
    saved = name if None not in chosen.values() else None
    if saved is not None:
        preset = editor.bundle.preset(options["preset"])[1]
        if options["steps"] is not None:  # what was measured is what is saved
            preset = msgspec.structs.replace(preset, encode_steps=options["steps"], decode_steps=options["steps"])
        set_preset(editor.bundle, saved, msgspec.structs.replace(preset, **chosen), replace=force)
        text += f"\nsaved the preset {saved}, of {preset.encode_steps} + {preset.decode_steps} steps"
    told = {"outputs": [str(p) for p in paths], "preset": saved, **measured, **engine_told(record.engine)}
    common.emit(as_json, told, text)
    if saved != name:
        raise ArgumentError(f"--save: no preset was saved: {'; '.join(s for s in says if 'not found' in s)}")


def _add(
    editor: Editor,
    fitted: dict[str, fitting.Fitted],
    force: bool,
    as_json: bool,
    seconds: float,
    absent: int = 0,
    allow_chance: bool = False,
) -> None:
    """Adds what was made to the bundle, and says what it is worth. absent: how many rows of labels have no image."""
    doubts = {name: made.doubt for name, made in fitted.items() if made.doubt is not None}
    refused = {} if allow_chance else {name: d for name, d in doubts.items() if fitted[name].report["auc"] <= 0.5}
    for name, made in fitted.items():
        if name not in refused:
            add_attribute(editor.bundle, name, made.data(), made.kind, made.branch, made.n_train, replace=force)
    columns = list(dict.fromkeys(key for made in fitted.values() for key in made.report))
    rows = [[name, made.kind, *(str(made.report.get(c, "-")) for c in columns)] for name, made in fitted.items()]
    text = common.table(["attribute", "kind", *(c.replace("_", " ") for c in columns)], rows, left=3)
    more: dict[str, Any] = {"rows_without_image": absent} if absent else {}
    if absent:
        text += f"\nleft out {absent} rows of the labels, whose files are not in the folder of images"
    if len(refused) < len(fitted):
        text += f"\nadded {'the others ' if refused else ''}to {editor.bundle.folder} in {seconds:.1f} s "
        text += f"({common.engine_text(editor.engine)})"
    for name in (n for n in doubts if n not in refused):
        click.echo(f"hspace: warning: {printable(name)}: {doubts[name]}", err=True)
    more |= engine_told(editor.engine)
    said: dict[str, dict[str, Any]] = {
        name: {"kind": made.kind, **made.report, **more} for name, made in fitted.items()
    }
    for name, doubt in doubts.items():
        said[name] |= {"warning": doubt, "added": name not in refused}
    common.emit(as_json, said, text)
    if refused:
        raise ArgumentError(
            "not added: " + "; ".join(f"{name}: {d}" for name, d in refused.items()) + " (--allow-chance adds it)"
        )


@contextmanager
def _bar(label: str, images: int) -> Iterator[OnStep]:
    """An `on_step` that draws a bar over so many images on a terminal, for a call per batch of them."""
    with Bar(label, 1000 * images) as bar:

        def on_step(step: Step) -> None:
            bar.to(bar.done + max(1, 1000 * len(step.x) // step.total))

        yield on_step
