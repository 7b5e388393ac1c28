"""What commands share: options, inputs, progress and tables."""

from __future__ import annotations

import functools
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from ..editor import Editor
from ..editor import open as open_bundle
from ..errors import ArgumentError, HspaceError, ImageError, LatentError
from ..files import check_file
from ..image import SUFFIXES, load_images
from ..latent import Latent
from ..noise import check_seed
from ..program import Program
from ..runs import OnStep, Step
from ..samplers import SAMPLERS
from . import printable

F = TypeVar("F", bound=Callable[..., Any])


def stack(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several decorators as one, the first outermost."""
    return lambda f: functools.reduce(lambda g, d: d(g), reversed(decorators), f)


if TYPE_CHECKING:
    ParamType = click.ParamType
else:

    class ParamType(click.ParamType):
        """click's, which is not generic before 8.4."""

        def __class_getitem__(cls, kind: Any) -> Any:
            return cls


class Strength(ParamType[tuple[str, float]]):
    """NAME=NUMBER."""

    def __init__(self, what: str = "STRENGTH") -> None:
        self.name = f"NAME={what}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, float]:
        name, _, number = str(value).rpartition("=")
        with suppress(ValueError):
            if name:
                return name, float(number)
        self.fail(f"found {value!r}, expected NAME=NUMBER", param, ctx)


bundle_option = click.option(
    "-b", "--bundle", required=True, envvar="HSPACE_BUNDLE", help="The bundle's folder. [env: HSPACE_BUNDLE]"
)
device_option = click.option("--device", default="cpu", show_default=True, help="cpu, or a GPU: cuda:0 and so on.")
resources = stack(
    click.option("--threads", type=int, help="How many threads the engine may use. [default: all cores]"),
    click.option(
        "--batch-size",
        type=int,
        help="Images per network evaluation. [default: by the engine]",
    ),
)
precision_option = click.option(
    "--precision",
    help="auto (the fastest that is accurate), fp32, bf16 or fp16. [default: auto; env: HSPACE_PRECISION]",
)
engine = stack(
    click.option("--engine", help="auto, openvino, onnx or null. [default: auto; env: HSPACE_ENGINE]"),
    precision_option,
    device_option,
    resources,
)
opening = stack(bundle_option, engine)
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
    """An editor from the bundle and the options of `engine`, which are taken out of `options`."""
    names = ("engine", "precision", "device", "threads", "batch_size")
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
            check_file(path, LatentError if is_latent(path) else error)
            found.append(path)
    return found


LATENT_SUFFIX = ".safetensors"


def is_latent(path: Path) -> bool:
    """Whether an input is a latent, by its name; else it is an image."""
    return path.suffix.lower() == LATENT_SUFFIX


@contextmanager
def progress(label: str) -> Iterator[OnStep]:
    """An `on_step` that draws a bar on a terminal, for a command that makes one call."""
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def on_step(step: Step) -> None:
            bar.length = step.total
            bar.update(1)

        yield on_step


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


def check_run(
    editor: Editor, edits: dict[str, float], options: dict[str, Any], latent: Latent | None = None
) -> Program:
    """Refuses what a decode would refuse, before an encode takes its time; the program that it would run."""
    check_seed(options["seed"])
    names = ("preset", "steps", "sampler", "t_edit", "t_boost")
    return editor.program("decode", edits=edits, latent=latent, **{n: options[n] for n in names})


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Columns padded to their widest cell: the first `left` to the left, the others to the right. A row is a line."""
    headers, rows = [*map(printable, headers)], [[*map(printable, r)] for r in rows]
    widths = [max(len(r[i]) for r in [headers, *rows]) for i in range(len(headers))]
    lines = [
        [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))]
        for r in [headers, *rows]
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


def emit(as_json: bool, found: dict[str, Any], text: str) -> None:
    """Prints one or the other. A bundle's texts are not ours, so nothing that steers a terminal gets through."""
    click.echo(json.dumps(found, indent=1) if as_json else "\n".join(map(printable, text.split("\n"))))
