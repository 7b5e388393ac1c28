"""What commands share: options, inputs, outputs, progress and tables."""

from __future__ import annotations

import functools
import glob
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from ..checks import check_whole
from ..editor import Editor
from ..editor import open as open_bundle
from ..errors import ArgumentError, HspaceError, ImageError, LatentError, OutputError
from ..files import check_file, check_output
from ..image import SUFFIXES, WRITABLE, load_images, save_image
from ..latent import Latent
from ..manifest import MANIFEST
from ..noise import check_seed
from ..program import Program
from ..runs import OnStep, Step
from ..samplers import SAMPLERS
from ..sheet import ANIMATED, Sheet, save_animation
from . import printable

F = TypeVar("F", bound=Callable[..., Any])


def stack(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several decorators as one, the first outermost."""
    return lambda f: functools.reduce(lambda g, d: d(g), reversed(decorators), f)


if TYPE_CHECKING:
    _ParamType = click.ParamType[tuple[str, float]]
else:
    _ParamType = click.ParamType  # not generic before click 8.4


class Strength(_ParamType):
    """NAME=NUMBER."""

    def __init__(self, what: str = "STRENGTH") -> None:
        self.name = f"NAME={what}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        name, _, number = str(value).rpartition("=")
        with suppress(ValueError):
            if name:
                return name, float(number)
        self.fail(f"found {value!r}, expected NAME=NUMBER", param, ctx)


opening = stack(
    click.option(
        "-b", "--bundle", required=True, envvar="HSPACE_BUNDLE", help="The bundle's folder. [env: HSPACE_BUNDLE]"
    ),
    click.option("--engine", default="auto", show_default=True, help="auto, onnx or null."),
    click.option("--threads", type=int, help="How many threads the engine may use. [default: all cores]"),
    click.option("--batch-size", type=int, help="Images per network evaluation. [default: 65536 / size²]"),
)
running = stack(
    click.option("--preset", help="One of the bundle's presets. [default: the bundle's default]"),
    click.option("--steps", type=int, help="Steps, instead of the preset's."),
)
strength_option = click.option(
    "--set", "strengths", type=Strength(), multiple=True, help="An attribute's strength; may be repeated."
)
phases = stack(
    click.option("--t-edit", type=int, help="Inject Δh at timesteps from here up."),
    click.option("--t-boost", type=int, help="Add noise at timesteps below."),
    click.option("--sampler", help=f"{', '.join(SAMPLERS)}."),
)
seeding = click.option("--seed", type=int, default=0, show_default=True, help="Of whatever is drawn.")
editing = stack(strength_option, phases, seeding)
writing = stack(
    click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A file, or a folder."),
    click.option("--force", is_flag=True, help="Replace outputs that exist."),
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
resizing = click.option("--resize", is_flag=True, help="Centre-crop and resize images of another size.")


def open_editor(options: dict[str, Any]) -> Editor:
    """An editor from the options of `opening`, which are taken out of `options`."""
    names = ("engine", "threads", "batch_size")
    return open_bundle(options.pop("bundle"), **{n: options.pop(n) for n in names})


def strengths_of(pairs: Sequence[tuple[str, float]], option: str = "--set") -> dict[str, float]:
    """NAME=NUMBER options as a mapping; a name given twice is an error, not a sum."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ArgumentError(f"{option}: an attribute is named twice")
    return found


def expand(
    inputs: Sequence[str], suffixes: Sequence[str] = SUFFIXES, error: type[HspaceError] = ImageError
) -> list[Path]:
    """Files, folders (their files of those suffixes) and glob patterns, as files, in order."""
    found: list[Path] = []
    for text in inputs:
        if not text:
            raise error("an input is empty, expected a file, a folder or a pattern")
        path = Path(text)
        if os.path.isdir(path):  # which, unlike Path's, says no to a name that is too long
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in suffixes and not p.name.startswith("."))
            if not inside:
                raise error(f"{path}: a folder without files of the kinds {', '.join(suffixes)}")
            found += inside
        elif not os.path.exists(path) and glob.has_magic(text):
            matched = sorted(Path(p) for p in glob.glob(text, recursive=True))
            if not matched:
                raise error(f"{text}: matches no file")
            found += matched
        else:
            check_file(path, LatentError if path.suffix == LATENT_SUFFIX else error)
            found.append(path)
    return found


LATENT_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Job:
    """One input of a command. number: its place among all inputs, which is its number for the noise."""

    number: int
    source: Path
    target: Path


def is_file_name(output: Path, suffixes: Iterable[str]) -> bool:
    """Whether `output` names a file of those kinds; else it is a folder. Another known suffix is an error."""
    suffix = output.suffix.lower()
    if os.path.isdir(output):
        return False
    if suffix in suffixes:
        if not os.path.isdir(output.parent):
            raise OutputError(f"{output}: there is no folder {output.parent}")
        return True
    if suffix in (*SUFFIXES, LATENT_SUFFIX):
        raise ArgumentError(
            f"{output}: found the suffix {suffix!r}, expected one of {', '.join(suffixes)}, or a folder"
        )
    if os.path.lexists(output):
        raise OutputError(f"{output}: a file, expected a folder")
    return False


def plan_outputs(
    inputs: Sequence[Path], output: Path, suffixes: Sequence[str], force: bool
) -> tuple[list[Job], list[Path]]:
    """What is to be made, and the outputs that exist and are kept. Makes nothing itself.

    Where `output` has one of `suffixes` it is the one input's file; else it is a folder, and results are named after
    their inputs with the first suffix. A file that exists is an error; in a folder it is kept and skipped.
    """
    single = is_file_name(output, suffixes)
    if single:
        if len(inputs) != 1:
            raise ArgumentError(f"{output}: found {len(inputs)} inputs for one file, expected a folder")
        jobs = [Job(0, inputs[0], output)]
    else:
        jobs = [Job(n, i, output / f"{i.stem}{suffixes[0]}") for n, i in enumerate(inputs)]
    makers: dict[Path, Path] = {}
    for job in jobs:
        if job.target in makers:
            raise ArgumentError(f"{makers[job.target]} and {job.source} would both become {job.target}")
        makers[job.target] = job.source
    targets = [j.target for j in jobs]
    if single:
        check_outputs(targets, inputs, force)
        return jobs, []
    found = existing(targets, inputs)
    kept = set() if force else set(found)
    return [j for j in jobs if j.target not in kept], [t for t in found if t in kept]


def check_outputs(targets: Sequence[Path], sources: Sequence[Path], force: bool) -> None:
    """Refuses outputs that may not be written, and without --force those that exist."""
    found = existing(targets, sources)
    if found and not force:
        raise OutputError(f"{found[0]}: exists already (--force replaces it)")


def existing(targets: Sequence[Path], sources: Sequence[Path]) -> list[Path]:
    """The outputs that exist. None may be an input, or no file, or inside a bundle's folder, --force or not."""
    inputs, folders, found = {_identity(s) for s in sources} - {None}, set(), []
    for target in targets:
        if target.parent not in folders:
            folders.add(target.parent)
            _refuse_bundle(target)
        if _identity(target) in inputs:
            raise OutputError(f"{target}: the output is an input")
        if check_output(target):
            found.append(target)
    return found


def _refuse_bundle(target: Path) -> None:
    folder = Path(os.path.realpath(target.parent))
    for above in (folder, *folder.parents):
        if os.path.lexists(above / MANIFEST):
            raise OutputError(f"{target}: the output is inside a bundle ({above}), which holds its own files alone")


def _identity(path: Path) -> tuple[int, int] | None:
    """What a file is by whatever name; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclass(frozen=True)
class Series:
    """Where a command's images go: one sheet, one animation, or numbered files in a folder."""

    targets: list[Path]
    kind: Literal["sheet", "animation", "folder"]

    def check(self, sheet: Sheet) -> None:
        """Refuses a sheet that the file's format cannot hold, before the work."""
        if self.kind == "sheet":
            sheet.check(self.targets[0])

    def save(self, images: NDArray[np.uint8], sheet: Sheet, also: NDArray[np.uint8] | None = None) -> None:
        """Writes images (uint8 [N, H, W, 3]). also: others, that only a sheet shows, after them."""
        if self.kind == "folder":
            for target, pixels in zip(self.targets, images, strict=True):
                with folder_of(target):
                    save_image(target, pixels)
        elif self.kind == "animation":
            save_animation(self.targets[0], [sheet.one(i).draw(pixels) for i, pixels in enumerate(images)])
        else:
            save_image(self.targets[0], sheet.draw(images if also is None else np.concatenate([images, also])))


def plan_series(output: Path, count: int, force: bool, sources: Sequence[Path], animated: bool = False) -> Series:
    """Where `count` images go, by the output's name. Nothing that exists is replaced unasked."""
    check_whole("count", count)
    if is_file_name(output, (*WRITABLE, *ANIMATED) if animated else WRITABLE):
        series = Series([output], "animation" if output.suffix.lower() in ANIMATED else "sheet")
    else:
        series = Series([output / f"{i:04d}.png" for i in range(count)], "folder")
    check_outputs(series.targets, sources, force)
    return series


def make_folder(path: Path) -> None:
    """Makes a folder for outputs, when the first of them is there to be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise OutputError(f"{path}: cannot be made: {e.strerror}") from None


@contextmanager
def folder_of(target: Path) -> Iterator[None]:
    """Makes the folder that `target` is to be written in; where that fails, takes away again what it made."""
    made = [p for p in (target.parent, *target.parent.parents) if not os.path.lexists(p)]
    try:
        make_folder(target.parent)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # one that has something in it by now
                folder.rmdir()
        raise


@contextmanager
def progress(label: str, parts: int = 1) -> Iterator[OnStep]:
    """An `on_step` that draws a bar on a terminal, for a command that makes `parts` equal calls."""
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def on_step(step: Step) -> None:
            bar.length = step.total * parts
            bar.update(1)

        yield on_step


@dataclass
class Report:
    """What a command on many inputs has done: outputs written, outputs kept, inputs refused and why."""

    total: int
    kept: list[Path]
    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, HspaceError]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    def __str__(self) -> str:
        seconds = max(time.perf_counter() - self.start, 1e-9)
        return f"{len(self.written)} of {self.total}, {len(self.written) / seconds:.3g} images/s"

    def finish(self) -> None:
        """Raises the one error that stands for all refused inputs, if there were any."""
        if self.failed:
            error = self.failed[0][1]
            more = f" (and {len(self.failed) - 1} more)" if len(self.failed) > 1 else ""
            raise type(error)(f"{len(self.failed)} of {self.total} inputs refused: {error}{more}")


def run_jobs(
    label: str,
    batch_size: int,
    planned: tuple[list[Job], list[Path]],
    load: Callable[[Path], Any],
    make: Callable[[Sequence[Job], list[Any], OnStep], Iterable[Any]],
    write: Callable[[Path, Any], None],
) -> Report:
    """Loads, makes and writes, a batch at a time. An input that cannot be loaded is reported and stops nothing else.

    Where there is but one input, its error is raised as it is.
    """
    jobs, kept = planned
    report = Report(len(jobs) + len(kept), kept)
    progressbar: Any = click.progressbar(
        length=1000 * len(jobs),
        label=label,
        file=sys.stderr,
        hidden=not sys.stderr.isatty(),
        item_show_func=lambda _: str(report),
    )
    with progressbar as bar:
        for i in range(0, len(jobs), batch_size):
            chunk = jobs[i : i + batch_size]
            loaded: list[tuple[Job, Any]] = []
            for job in chunk:
                try:
                    loaded.append((job, load(job.source)))
                except (ImageError, LatentError) as e:
                    if report.total == 1:
                        raise
                    report.failed.append((job.source, e))

            def on_step(step: Step, done: int = i, of: int = len(chunk)) -> None:
                bar.update(int(1000 * (done + of * step.index / step.total)) - bar.pos)

            if loaded:
                ready = [job for job, _ in loaded]
                for job, result in zip(ready, make(ready, [x for _, x in loaded], on_step), strict=True):
                    with folder_of(job.target):
                        write(job.target, result)
                    report.written.append(job.target)
            bar.update(1000 * (i + len(chunk)) - bar.pos)
    return report


def load_pictures(path: Path, editor: Editor, resize: bool) -> NDArray[np.float32]:
    """An image's file as float32 [1, 3, H, W], without what libtiff would say of it on stderr: our errors say it."""
    with _without_stderr():
        return load_images(path, editor.size, resize=resize)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Nothing of what C libraries write to stderr arrives there. The whole process's: not for a library."""
    try:
        kept = os.dup(2)
    except OSError:  # closed already
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def load_latent(editor: Editor, path: Path) -> Latent:
    """A latent's file, of one image of the editor's model."""
    latent = Latent.load(path)
    if len(latent) != 1:
        raise LatentError(f"{path}: holds {len(latent)} images, expected 1")
    try:
        editor.check_latent(latent)
    except LatentError as e:
        raise LatentError(f"{path}: {e}") from None
    return latent


def check_run(editor: Editor, edits: dict[str, float], options: dict[str, Any]) -> Program:
    """Refuses what a decode would refuse, before an encode takes its time; the program that it would run."""
    check_seed(options["seed"])
    names = ("preset", "steps", "sampler", "t_edit", "t_boost")
    return editor.program("decode", edits=edits, **{n: options[n] for n in names})


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell: the first to the left, the others to the right. A row is a line."""
    headers, rows = [*map(printable, headers)], [[*map(printable, r)] for r in rows]
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]
    lines = [
        [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))]
        for r in [headers, *rows]
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def emit(as_json: bool, found: dict[str, Any], text: str) -> None:
    """Prints one or the other. A bundle's texts are not ours, so nothing that steers a terminal gets through."""
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(map(printable, text.split("\n"))))


def wrote(as_json: bool, report: Report, editor: Editor) -> None:
    """What a command that writes files says at its end; raises where inputs were refused."""
    seconds, outputs = time.perf_counter() - report.start, report.written
    found = {
        "outputs": [str(p) for p in outputs],
        "kept": [str(p) for p in report.kept],
        "failed": [{"file": str(p), "error": str(e)} for p, e in report.failed],
        "seconds": round(seconds, 3),
        "engine": editor.engine.name,
    }
    what = f"{len(outputs)} files" + (f" in {outputs[0].parent}" if outputs else "")
    if len(outputs) == 1:
        what = str(outputs[0])
    text = f"wrote {printable(what)} in {seconds:.2f} s (engine {editor.engine.name})"
    if report.kept:
        text += f"; kept {len(report.kept)} that existed (--force replaces them)"
    text += "".join(f"\nrefused {printable(str(e))}" for _, e in report.failed)
    emit(as_json, found, text)
    report.finish()
