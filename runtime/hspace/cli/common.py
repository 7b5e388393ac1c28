"""What commands share: options, inputs, progress and tables."""

from __future__ import annotations

import functools
import glob
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path, PosixPath, WindowsPath
from typing import TYPE_CHECKING, Any, TypeVar

import click
import numpy as np
from numpy.typing import NDArray

from ..catalog import SAMPLERS
from ..editor import Editor
from ..engines import ENGINES, Engine
from ..errors import ArgumentError, HspaceError, ImageError, LatentError
from ..files import check_file
from ..image import SUFFIXES, load_images
from ..latent import Latent
from ..manifest import MANIFEST
from ..noise import check_seed
from ..opening import open as open_bundle
from ..program import Program
from ..record import engine_told
from . import printable
from .streams import DASH, read_source

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


class FolderPath(WindowsPath if os.name == "nt" else PosixPath):  # type: ignore[misc]
    """A path that was given with a slash behind, so that it is a folder's, whatever its suffix."""


class FileType(ParamType[Path]):
    """A path that the system can have. What is empty would be the folder that one is in."""

    name = "PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        with suppress(UnicodeEncodeError):
            if value and b"\0" not in os.fsencode(value):
                separators = tuple(s for s in (os.sep, os.altsep) if s)
                return FolderPath(value) if value.endswith(separators) else Path(value)
        self.fail(f"found {str(value)!r}, expected the name of a file or a folder", param, ctx)


FILE = FileType()


class BundleCommand(click.Command):
    """A command whose bundle may stand first among its arguments, as well as behind -b or in HSPACE_BUNDLE.

    The first argument is the bundle where nothing else says which, or where HSPACE_BUNDLE does and there is one more
    than the command needs. Of a command that takes any number, HSPACE_BUNDLE gives way to a folder that is a bundle.
    """

    def make_parser(self, ctx: click.Context) -> Any:
        parser = super().make_parser(ctx)
        collect = parser.parse_args

        def parse_args(args: list[str]) -> Any:
            values, extra, order = collect(args)
            self._settle(ctx, values)
            return values, extra, order

        parser.parse_args = parse_args  # type: ignore[method-assign]
        return parser

    def _settle(self, ctx: click.Context, values: dict[str, Any]) -> None:
        """Shares what stands among the arguments out again, with the bundle as the option's value."""
        option = next(p for p in self.params if p.name == "bundle")
        _, *others = [p for p in self.params if isinstance(p, click.Argument)]
        given: list[str] = []
        for argument in (_FIRST, *(p.name or "" for p in others)):
            value = values.pop(argument, None)
            given += [value] if isinstance(value, str) else value if isinstance(value, tuple) else []
        if isinstance(values.get("bundle"), str):
            if len(given) > len(others) and not any(p.nargs < 0 for p in others):
                raise click.UsageError(f"the bundle is named twice: -b {values['bundle']} and {given[0]}", ctx)
        elif given and (
            option.value_from_envvar(ctx) is None
            or (len(given) > len(others) and (all(p.nargs > 0 for p in others) or _has_manifest(given[0])))
        ):
            values["bundle"] = given.pop(0)
        for p in others:
            count = len(given) if p.nargs < 0 else 1
            if given:
                values[p.name or ""] = tuple(given) if p.nargs < 0 else given[0]
            given = given[count:]


_FIRST = "bundle_first"


def _has_manifest(folder: str) -> bool:
    return os.path.lexists(os.path.join(folder, MANIFEST))


bundle_first = click.argument(_FIRST, metavar="[BUNDLE]", required=False, expose_value=False)
bundle_option = click.option(
    "-b", "--bundle", required=True, envvar="HSPACE_BUNDLE", help="The bundle's folder. [env: HSPACE_BUNDLE]"
)


class _Either(click.Option):
    """The bundle's option of a BundleCommand: required, and not by that name."""

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        extra.pop("required", None)
        return extra


either = stack(
    bundle_first,
    click.option(
        "-b",
        "--bundle",
        cls=_Either,
        required=True,
        envvar="HSPACE_BUNDLE",
        help="The bundle's folder, instead of BUNDLE. [env: HSPACE_BUNDLE]",
    ),
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
engine_option = click.option("--engine", help=f"One of auto, {', '.join(ENGINES)}. [default: auto; env: HSPACE_ENGINE]")
engine = stack(
    engine_option,
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
seeding = click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random draws.")
editing = stack(strength_option, phases, seeding)
writing = stack(
    click.option("-o", "--output", required=True, type=FILE, help="A file, or a folder; - is stdout."),
    click.option("--update", is_flag=True, help="Replace outputs that exist where they would differ."),
    click.option("--force", is_flag=True, help="Replace all outputs that exist."),
)
picture = stack(
    click.option(
        "--format",
        "kind",
        type=click.Choice(["png", "jpg", "webp", "bmp"]),
        help="Format of images in a folder or on stdout. [default: png]",
    ),
    click.option("--quality", type=int, help="Quality of JPEG and WebP, 1 to 100. [default: 95]"),
)
recursing = click.option(
    "--recursive", is_flag=True, help="Look into subfolders as well; a folder of outputs mirrors them."
)
naming = stack(
    recursing,
    click.option(
        "--name", "template", default="{stem}.{ext}", show_default=True,
        help="How a folder's outputs are called: {stem} and {index} are the input's ({index:04d} with four digits).",
    ),
)  # fmt: skip
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
resizing = click.option("--resize", is_flag=True, help="Centre-crop and resize images of another size.")


def open_editor(options: dict[str, Any]) -> Editor:
    """An editor from the bundle and the options of `engine`, which are taken out of `options`."""
    names = ("engine", "precision", "device", "threads", "batch_size")
    return open_bundle(options.pop("bundle"), **{n: options.pop(n) for n in names})


def strengths_of(pairs: Sequence[tuple[str, float]], option: str = "--set") -> dict[str, float]:
    """NAME=NUMBER options as a mapping; a name given twice is an error, not a sum."""
    strengths = dict(pairs)
    if len(strengths) != len(pairs):
        raise ArgumentError(f"{option}: an attribute is named twice")
    return strengths


def expand(
    inputs: Sequence[str], suffixes: Sequence[str] = SUFFIXES, error: type[HspaceError] = ImageError
) -> list[Path]:
    """Files, folders (their files of those suffixes) and glob patterns, as files, in order."""
    return [path for path, _ in expand_tree(inputs, suffixes, error)]


def expand_tree(
    inputs: Sequence[str],
    suffixes: Sequence[str] = SUFFIXES,
    error: type[HspaceError] = ImageError,
    recursive: bool = False,
    output: Path | None = None,
) -> list[tuple[Path, Path]]:
    """Files as `expand` finds them, each with the folder that it is in, as seen from the folder that was given.

    recursive: with the folders in folders, but for `output` and those that begin with a dot. Links to folders are not
    followed: they may lead round in circles.
    """
    here, files = Path(), []
    for text in inputs:
        if not text:
            raise error("an input is empty, expected a file, a folder or a pattern")
        path = Path(text)
        if text == "-":
            files.append((DASH, here))
        elif os.path.isdir(path):  # which, unlike Path's, says no to a name that is too long
            inside = _inside(path, suffixes, recursive, output)
            if not inside:
                raise error(f"{path}: a folder without files of the kinds {', '.join(suffixes)}")
            files += [(file, file.parent.relative_to(path)) for file in inside]
        elif not os.path.exists(path) and glob.has_magic(text):
            matched = sorted(Path(p) for p in glob.glob(text, recursive=True))
            if not matched:
                raise error(f"{text}: matches no file")
            files += [(file, here) for file in matched]
        else:
            check_file(path, LatentError if is_latent(path) else error)
            files.append((path.absolute() if path == DASH else path, here))
    return files


def _inside(folder: Path, suffixes: Sequence[str], recursive: bool, output: Path | None) -> list[Path]:
    inside: list[Path] = []
    left_out = None if output is None else os.path.realpath(output)

    def refuse(error: OSError) -> None:
        raise error

    for above, folders, files in os.walk(folder, onerror=refuse):
        seen = [f for f in sorted(folders) if not f.startswith(".")]
        folders[:] = [f for f in seen if recursive and os.path.realpath(os.path.join(above, f)) != left_out]
        named = [Path(above, f) for f in files if not f.startswith(".")]
        inside += sorted(p for p in named if p.suffix.lower() in suffixes)
    return inside


LATENT_SUFFIX = ".safetensors"


def is_latent(path: Path) -> bool:
    """Whether an input is a latent, by its name, or stdin by its header; else it is an image."""
    if path == DASH:
        return read_source(path, ImageError)[8:9] == b"{"
    return path.suffix.lower() == LATENT_SUFFIX


def load_pictures(path: Path, data: bytes, editor: Editor, resize: bool) -> NDArray[np.float32]:
    """An image file's bytes as float32 [1, 3, H, W], without what libtiff would say of it on stderr: our errors say it.

    path: its name, for messages.
    """
    with _without_stderr():
        return load_images(data, editor.size, resize=resize, name=str(path))


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Nothing of what C libraries write to stderr arrives there. The whole process's: not for a library."""
    with ExitStack() as stack:
        with suppress(OSError):  # stderr is closed already, or no descriptor is left, which opening the image says
            kept = os.dup(2)
            stack.callback(os.close, kept)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
            stack.callback(os.dup2, kept, 2)
        yield


def load_latent(path: Path, data: bytes, editor: Editor) -> Latent:
    """The latent in a file's bytes, of one image of the editor's model. path: its name, for messages."""
    latent = Latent.from_bytes(data, str(path))
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


def emit(as_json: bool, told: dict[str, Any], text: str, err: bool = False) -> None:
    """Prints one or the other. A bundle's texts are not ours, so nothing that steers a terminal gets through.

    err: on stderr, where stdout is the output itself.
    """
    click.echo(json.dumps(told, indent=1) if as_json else "\n".join(map(printable, text.split("\n"))), err=err)


def engine_text(engine: Engine) -> str:
    """What people are told of `record.engine_told`."""
    told = engine_told(engine)
    return f"engine {told['engine']}, {told['precision']}" + (f", {told['device']}" if told["device"] != "cpu" else "")
