"""Where results go: outputs planned before any work, jobs over many inputs, and what is said at the end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
from numpy.typing import NDArray

from ..checks import check_whole
from ..editor import Editor
from ..errors import ArgumentError, EngineError, HspaceError, ImageError, LatentError, OutputError
from ..files import check_output, make_folder
from ..image import SUFFIXES, WRITABLE, save_image
from ..manifest import MANIFEST
from ..runs import OnStep, Step
from ..sheet import ANIMATED, Sheet, save_animation
from . import printable
from .common import LATENT_SUFFIX, emit


@dataclass(frozen=True)
class Job:
    """One input of a command. number: its place among all inputs, which is its number for the noise."""

    number: int
    source: Path
    target: Path


def is_file_name(output: Path, suffixes: Collection[str]) -> bool:
    """Whether `output` names a file of those kinds; else it is a folder.

    Any other suffix is an error, known or not, unless a folder has it already.
    """
    suffix = output.suffix.lower()
    if os.path.isdir(output):
        return False
    if suffix in suffixes:
        if not os.path.isdir(output.parent):
            raise OutputError(f"{output}: there is no folder {output.parent}")
        return True
    if os.path.lexists(output) and suffix not in (*SUFFIXES, LATENT_SUFFIX):
        raise OutputError(f"{output}: a file, expected a folder")
    if suffix:
        kinds = f"one of {', '.join(suffixes)}, or " if suffixes else ""
        raise ArgumentError(f"{output}: found the suffix {suffix!r}, expected {kinds}a folder (a new one without any)")
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
            save_animation(self.targets[0], sheet.frames(images))
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


def plan_folder(output: Path, names: Sequence[str], force: bool, sources: Sequence[Path]) -> list[Path]:
    """Where files of those names go in the folder `output`. Nothing that exists is replaced unasked."""
    is_file_name(output, ())  # refuses what is no folder's name
    targets = [output / name for name in names]
    check_outputs(targets, sources, force)
    return targets


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
        done = len(self.written) + len(self.kept) + len(self.failed)
        return f"{done} of {self.total}, {len(self.written) / seconds:.3g} images/s"

    def refuse(self, job: Job, error: HspaceError) -> None:
        """Notes that an input was refused; where it is the only one, its error is the command's."""
        if self.total == 1:
            raise error
        self.failed.append((job.source, error))

    def refused(self) -> tuple[list[dict[str, str]], str]:
        """Every refused input: for machines, and for people, a line each."""
        rows = [{"file": str(p), "error": str(e)} for p, e in self.failed]
        return rows, "".join(f"\nrefused {printable(row['error'])}" for row in rows)

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
    """Loads, makes and writes, a batch at a time. An input that is refused is reported and stops nothing else.

    Where nothing can be made of a batch, each of its inputs is tried alone. Where there is but one input, its error is
    raised as it is.
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

        def made(loaded: list[tuple[Job, Any]], done: int, of: int) -> Iterator[tuple[Job, Any]]:
            """What can be made of the inputs, `of` of all that the bar counts, after `done` others."""

            def on_step(step: Step) -> None:
                bar.update(int(1000 * (done + of * step.index / step.total)) - bar.pos)

            ready = [job for job, _ in loaded]
            try:
                results = list(make(ready, [x for _, x in loaded], on_step))
            except (EngineError, LatentError) as e:
                if len(loaded) > 1:
                    for i, one in enumerate(loaded):
                        yield from made([one], done + i, 1)
                    return
                report.refuse(ready[0], e if report.total == 1 else type(e)(f"{ready[0].source}: {e}"))
                return
            yield from zip(ready, results, strict=True)

        for i in range(0, len(jobs), batch_size):
            chunk = jobs[i : i + batch_size]
            loaded: list[tuple[Job, Any]] = []
            for job in chunk:
                try:
                    loaded.append((job, load(job.source)))
                except (ImageError, LatentError) as e:
                    report.refuse(job, e)
            for job, result in made(loaded, i, len(chunk)) if loaded else ():
                with folder_of(job.target):
                    write(job.target, result)
                report.written.append(job.target)
            bar.update(1000 * (i + len(chunk)) - bar.pos)
            bar.render_progress()  # an update alone does not, where the last step was there already
    return report


def wrote(as_json: bool, report: Report, editor: Editor) -> None:
    """What a command that writes files says at its end; raises where inputs were refused."""
    seconds, outputs = time.perf_counter() - report.start, report.written
    failed, refusals = report.refused()
    found = {
        "outputs": [str(p) for p in outputs],
        "kept": [str(p) for p in report.kept],
        "failed": failed,
        "seconds": round(seconds, 3),
        "engine": editor.engine.name,
    }
    what = f"{len(outputs)} files" + (f" in {outputs[0].parent}" if outputs else "")
    if len(outputs) == 1:
        what = str(outputs[0])
    text = f"wrote {printable(what)} in {seconds:.2f} s (engine {editor.engine.name})"
    if report.kept:
        text += f"; kept {len(report.kept)} that existed (--force replaces them)"
    emit(as_json, found, text + refusals)
    report.finish()
