"""Plans where results go, before any work."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..checks import check_whole
from ..errors import ArgumentError, HspaceError, OutputError
from ..files import check_output, make_folder
from ..image import SUFFIXES, WRITABLE, encode_image
from ..manifest import MANIFEST
from ..record import write_image
from ..sheet import ANIMATED, Sheet, save_animation
from .common import LATENT_SUFFIX, FolderPath
from .streams import DASH, check_stdout, write_stdout


@dataclass(frozen=True)
class Job:
    """One input of a command. number: its place among all inputs, which is its number for the noise."""

    number: int
    source: Path
    target: Path


@dataclass(frozen=True)
class Form:
    """How outputs are written. kind: a suffix without its dot, where no name says it; quality: of JPEG and WebP."""

    kind: str = "png"
    quality: int | None = None
    template: str = "{stem}.{ext}"

    def name(self, source: Path, index: int) -> str:
        """The name in a folder of the output for the input `source`."""
        stem = "stdin" if source == DASH else source.stem

        def value(field: re.Match[str]) -> str:
            return {"stem": stem, "ext": self.kind}.get(field[1]) or f"{index:0{field[2] or 1}d}"

        return _FIELD.sub(value, self.template)


_FIELD = re.compile(r"\{(stem|ext|index)(?:(?<=index):0([1-9])d)?\}")  # and nothing else of what str.format takes


def form_of(output: Path, options: dict[str, Any], kinds: Sequence[str] = tuple(WRITABLE)) -> Form:
    """The form of the outputs, from `output` and from --format, --quality and --name, which leave `options`.

    kinds: the suffixes that the command writes. The first is the default.
    """
    given, quality = options.pop("kind", None), options.pop("quality", None)
    template = options.pop("template", Form.template)
    suffix = _suffix(output)
    named = suffix if suffix in (*kinds, *ANIMATED) else None
    if given is not None and named is not None and WRITABLE.get(named) != WRITABLE[f".{given}"]:
        raise ArgumentError(f"--format: found {given}, and {output} names another")
    kind = given or (named if named and named in kinds else kinds[0]).removeprefix(".")
    if template != Form.template and (named or output == DASH):
        raise ArgumentError(f"--name: of what is in a folder, and {output} is none")
    if quality is not None:
        check_whole("--quality", quality, 1, 100)
        if WRITABLE.get(f".{kind}") not in ("JPEG", "WEBP"):
            raise ArgumentError(f"--quality: found it for {kind}, expected it for jpg or webp")
    rest = _FIELD.sub("", template)
    if not template.endswith(".{ext}") or not rest.isprintable() or any(c in rest for c in "{}/\\"):
        raise ArgumentError(
            f"--name: found {template!r}, expected a file's name that ends in .{{ext}}, "
            "with {stem}, {index} or {index:04d} in it"
        )
    return Form(kind, quality, template)


@dataclass
class Plan:
    """The work of a command on many inputs. A plan makes nothing itself.

    jobs: outputs to make. there: outputs that exist. Only update makes those anew, and only where they would differ.
    clashes: inputs that are refused, since several of them would become one output. They share one error.
    """

    jobs: list[Job]
    there: list[Job] = field(default_factory=list)
    clashes: list[tuple[Job, HspaceError]] = field(default_factory=list)
    update: bool = False

    @property
    def total(self) -> int:
        return len(self.jobs) + len(self.there) + len(self.clashes)

    @property
    def on_stdout(self) -> bool:
        return self.total == 1 and bool(self.jobs) and self.jobs[0].target == DASH


def is_file_name(output: Path, suffixes: Collection[str]) -> bool:
    """Whether `output` names a file of those kinds; else it is a folder.

    Any other suffix is an error, known or not.
    """
    suffix = _suffix(output)
    if suffix in suffixes:
        if not os.path.isdir(output.parent):
            raise OutputError(f"{output}: there is no folder {output.parent}")
        return True
    if os.path.lexists(output) and not os.path.isdir(output) and suffix not in (*SUFFIXES, LATENT_SUFFIX):
        raise OutputError(f"{output}: a file, expected a folder")
    if suffix:
        kinds = f"one of {', '.join(suffixes)}, or " if suffixes else ""
        expected = f"{kinds}a folder (a new one without any, or with a slash behind)"
        raise ArgumentError(f"{output}: found the suffix {suffix!r}, expected {expected}")
    return False


def _suffix(output: Path) -> str:
    """The suffix of the file that `output` names. A folder has none, and a number (run1.2) is no suffix."""
    if isinstance(output, FolderPath) or os.path.isdir(output) or re.fullmatch(r"\.[0-9]+", output.suffix):
        return ""
    return output.suffix.lower()


def plan_outputs(
    inputs: Sequence[tuple[Path, Path]], output: Path, form: Form, kinds: Sequence[str], force: bool, update: bool
) -> Plan:
    """Plans the outputs for inputs (each with its folder, relative to the folder that was given).

    Where `output` is stdout, or has one of the suffixes `kinds`, there must be one input. Otherwise `output` is a
    folder that mirrors the inputs' folders, with names by `form`. Existing files are checked first.
    """
    single = output == DASH or is_file_name(output, kinds)
    if single:
        if len(inputs) != 1:
            raise ArgumentError(f"{output}: found {len(inputs)} inputs for one file, expected a folder")
        jobs = [Job(0, inputs[0][0], output)]
    else:
        jobs = [Job(n, i, output / below / form.name(i, n)) for n, (i, below) in enumerate(inputs)]
    if output == DASH:
        check_stdout()
        return Plan(jobs)
    makers: dict[Path, list[Job]] = {}
    for job in jobs:
        makers.setdefault(job.target, []).append(job)
    clashes = [
        (job, error)
        for together in makers.values()
        if len(together) > 1
        for error in [_clash(together)]
        for job in together
    ]
    free = [together[0] for together in makers.values() if len(together) == 1]
    if clashes and not free:
        raise clashes[0][1]
    targets, sources = [j.target for j in free], [i for i, _ in inputs]
    there = set() if not targets else set(existing(targets, sources))
    if force:
        there = set()
    return Plan([j for j in free if j.target not in there], [j for j in free if j.target in there], clashes, update)


def _clash(jobs: Sequence[Job]) -> HspaceError:
    """The error for several jobs with one target."""
    first, second, *others = [str(job.source) for job in jobs]
    sources = f"{first}, {second} and {len(others)} more would all" if others else f"{first} and {second} would both"
    return ArgumentError(f"{sources} become {jobs[0].target} (--name '{{stem}}-{{index}}.{{ext}}' tells them apart)")


def check_outputs(targets: Sequence[Path], sources: Sequence[Path], force: bool) -> None:
    """Refuses outputs that may not be written, and without --force those that exist."""
    there = existing(targets, sources)
    if there and not force:
        raise OutputError(f"{there[0]}: exists already (--force replaces it)")


def existing(targets: Sequence[Path], sources: Sequence[Path]) -> list[Path]:
    """The outputs that exist. Raises OutputError, also with --force, for an input, no file, or one in a bundle."""
    inputs, folders, there = {_identity(s) for s in sources} - {None}, set(), []
    for target in targets:
        if target.parent not in folders:
            folders.add(target.parent)
            _refuse_bundle(target)
        if _identity(target) in inputs:
            raise OutputError(f"{target}: the output is an input")
        if check_output(target):
            there.append(target)
    return there


def _refuse_bundle(target: Path) -> None:
    folder = Path(os.path.realpath(target.parent))
    for above in (folder, *folder.parents):
        if os.path.lexists(above / MANIFEST):
            raise OutputError(f"{target}: the output is inside a bundle ({above}), which holds its own files alone")


def _identity(path: Path) -> tuple[int, int] | None:
    """A file's device and inode, the same for all its names; None where there is no file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@dataclass(frozen=True)
class Series:
    """Where a command's images go: one sheet, one animation, or numbered files in a folder.

    there: targets that exist. Only update makes those anew, and only where they would differ. kept: those that stay.
    """

    targets: list[Path]
    kind: Literal["sheet", "animation", "folder"]
    form: Form
    there: Collection[Path] = ()
    update: bool = False
    kept: list[Path] = field(default_factory=list)

    def check(self, sheet: Sheet) -> None:
        """Refuses a sheet that the file's format cannot hold, before the work."""
        if self.kind == "sheet":
            sheet.check(Path(f"-.{self.form.kind}") if self.targets[0] == DASH else self.targets[0])

    def save(
        self,
        images: NDArray[np.uint8],
        sheet: Sheet,
        record: Callable[[int], str],
        also: NDArray[np.uint8] | None = None,
    ) -> None:
        """Writes images (uint8 [N, H, W, 3]), except those that are kept. also: more images, which only a sheet shows,
        after the others. record: returns the record of the output with that number.
        """
        if self.kind == "folder":
            for i, (target, pixels) in enumerate(zip(self.targets, images, strict=True)):
                if target not in self.kept:
                    with folder_of(target):
                        put_image(target, pixels, record(i), self.form)
        elif self.kind == "animation":
            save_animation(self.targets[0], sheet.frames(images), record=record(0))
        else:
            drawn = sheet.draw(images if also is None else np.concatenate([images, also]))
            put_image(self.targets[0], drawn, record(0), self.form)


def put_image(target: Path, pixels: NDArray[np.uint8], record: str, form: Form) -> None:
    """Writes uint8 [H, W, 3] with its record, to a file or to stdout."""
    if target == DASH:
        write_stdout(encode_image(pixels, f".{form.kind}", record=record, quality=form.quality))
    else:
        write_image(target, pixels, record, form.quality)


def plan_series(
    output: Path,
    count: int,
    form: Form,
    force: bool,
    update: bool,
    sources: Sequence[Path],
    animated: bool = False,
) -> Series:
    """Plans where `count` images go, by the output's name. Existing files are checked first."""
    check_whole("count", count)
    if output == DASH:
        check_stdout()
        return Series([output], "sheet", form)
    if is_file_name(output, (*WRITABLE, *ANIMATED) if animated else WRITABLE):
        targets = [output]
        kind: Literal["sheet", "animation", "folder"] = "animation" if output.suffix.lower() in ANIMATED else "sheet"
    else:
        targets, kind = [output / f"{i:04d}.{form.kind}" for i in range(count)], "folder"
    there = existing(targets, sources)
    return Series(targets, kind, form, () if force else {*there}, update)


def plan_folder(output: Path, names: Sequence[str], force: bool, sources: Sequence[Path]) -> list[Path]:
    """Plans files of those names in the folder `output`. Only --force replaces existing files."""
    is_file_name(output, ())  # refuses what is no folder's name
    targets = [output / name for name in names]
    check_outputs(targets, sources, force)
    return targets


@contextmanager
def folder_of(target: Path) -> Iterator[None]:
    """Makes the folder for `target`. Where the body fails, it removes the folders that it made."""
    made = [p for p in (target.parent, *target.parent.parents) if not os.path.lexists(p)]
    try:
        make_folder(target.parent)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # a folder that is no longer empty stays
                folder.rmdir()
        raise
