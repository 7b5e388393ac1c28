"""The command line. Commands are imported when they run, so that `hspace --help` is quick."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

import click

from .. import interrupts
from ..errors import EngineError, HspaceError, LatentWarning, did_you_mean, needs

# name → (module, attribute, one line for --help)
_COMMANDS = {
    "edit": ("hspace.cli.images", "edit", "Edit images along attributes."),
    "encode": ("hspace.cli.images", "encode", "Turn images into latents."),
    "decode": ("hspace.cli.images", "decode", "Turn latents into images, edited or not."),
    "sweep": ("hspace.cli.pictures", "sweep", "Images over strengths of one attribute, or of two."),
    "interpolate": ("hspace.cli.pictures", "interpolate", "Images between two images or latents."),
    "timeline": ("hspace.cli.pictures", "timeline", "Show P_t and x_t along a decode."),
    "sample": ("hspace.cli.pictures", "sample", "Draw new images."),
    "vary": ("hspace.cli.pictures", "vary", "Variations of an image that keep its semantic code."),
    "inject": ("hspace.cli.pictures", "inject", "Put the content of one image into another."),
    "classify": ("hspace.cli.images", "classify", "Score images for the bundle's attributes."),
    "info": ("hspace.cli.bundle", "info", "What a bundle holds, and the programs that it runs."),
    "verify": ("hspace.cli.bundle", "verify", "Check every file of a bundle."),
    "bench": ("hspace.cli.bench", "bench", "Latency of each part and of whole calls."),
    "attribute": ("hspace.cli.attribute", "attribute", "Fit, add, rename and remove a bundle's attributes."),
    "calibrate": ("hspace_export.fit_cli", "calibrate", "Find t_edit and t_boost from a folder of images."),
    "doctor": ("hspace.cli.bundle", "doctor", "Which engines can run here, and why others cannot."),
    "export": ("hspace_export.cli", "export", "Turn trained checkpoints into a bundle (needs PyTorch)."),
}
_EXTRA = {"hspace_export.cli": "export", "hspace_export.fit_cli": "fit"}  # what a module's imports need


class Lazy(click.Group):
    """A group whose commands are imported when they run. table: name → (module, attribute, one line for --help)."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._table:
            return None
        module, attribute, _ = self._table[cmd_name]
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ImportError as e:
            if module in _EXTRA:
                raise click.ClickException(needs(f"{ctx.command_path} {cmd_name}", e.name, _EXTRA[module])) from None
            raise
        if not isinstance(command, click.Group):
            interrupts.begin()
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self._table and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}{did_you_mean(name, self._table)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in self._table.items()])


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(cls=Lazy, table=_COMMANDS, context_settings=_SETTINGS)
@click.version_option(package_name="hspace")
def hspace() -> None:
    """Semantic image editing with trained diffusion models, without PyTorch.

    \b
    Examples:
      hspace info bundles/avatars32
      hspace edit face.png -b bundles/avatars32 --set Blond_Hair=0.5 -o blond.png
      hspace classify photos/ -b bundles/avatars32 --json
    """


def main() -> None:
    """Runs the command line: errors are one line on stderr, with an exit code of their own."""
    warnings.filterwarnings("ignore", module="PIL")  # what it warns of, our own errors say
    warnings.showwarning = _show_warning
    logging.basicConfig(format="hspace: %(message)s")
    logging.getLogger("hspace").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know ε
    try:
        hspace.main(prog_name="hspace", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as e:
        message, code = _told(e)
        if message is not None:
            _fail(message, code)
        sys.exit(code)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Ours are for the user; what libraries warn of is not."""
    if issubclass(category, LatentWarning):
        click.echo(f"hspace: warning: {printable(str(message))}", err=True)


def _told(error: BaseException) -> tuple[str | None, int]:
    """What is said of an error on stderr, and the exit code. Raises what is no error of a user's."""
    signalled = interrupts.told()
    if signalled is not None:  # whatever became of it on the way
        return signalled
    if isinstance(error, HspaceError):
        return str(error), error.exit_code
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message())
        return None, 2
    if isinstance(error, click.ClickException):
        return " ".join(error.format_message().split()), error.exit_code
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        return "interrupted", 130
    if isinstance(error, BrokenPipeError):
        _close_stdout()
        return None, 1
    if isinstance(error, MemoryError):
        return "out of memory: fewer images at a time may fit (--batch-size)", 1
    if isinstance(error, (ImportError, SystemError)) and (few := _shortage(error)) is not None:
        return f"a library does not load: {few}", EngineError.exit_code
    if isinstance(error, OSError):
        if error.filename is None:  # as of a full disk behind stdout
            _close_stdout()
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), 1
    raise error


def _shortage(error: BaseException) -> str | None:
    from ..engines.shortage import shortage

    return shortage(error)


def _close_stdout() -> None:
    """Nothing more is written to stdout, not even what it holds, which would fail once more as the process ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


_LONG = re.compile(r"\S{8000,}")  # of arguments and files, which a message repeats


def _fail(message: str, code: int) -> None:
    shown = _LONG.sub(lambda word: f"{word[0][:300]}…{word[0][-300:]}", message)
    click.echo(f"hspace: error: {printable(shown)}", err=True)
    sys.exit(code)


def printable(text: str) -> str:
    """`text` with everything that is not printable written as an escape, so that nothing in it steers a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
