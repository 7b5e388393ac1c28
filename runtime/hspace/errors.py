"""The one family of errors: each message names the file or argument, what was found and what was expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class HspaceError(Exception):
    """Base of every error that hspace raises on purpose. `exit_code` is what the command line exits with."""

    exit_code = 1

    def __init__(self, message: str = "") -> None:
        """message: names in it may be no text (half a surrogate pair); they are written as escapes."""
        super().__init__(message.encode("utf-8", "backslashreplace").decode())


class ArgumentError(HspaceError, ValueError):
    """An argument of a public call is out of range, of the wrong shape, or names nothing."""

    exit_code = 2


class BundleError(HspaceError):
    """A bundle, or a file of it, is missing, altered, malformed or unsafe."""

    exit_code = 3


class ImageError(HspaceError):
    """An input is not an image that the bundle can take."""

    exit_code = 4


class EngineError(HspaceError):
    """An engine is unknown, cannot run here, or failed to evaluate a component."""

    exit_code = 5


class NotFinite(EngineError):
    """Results have values that are not finite: a strength is too large, or the engine's arithmetic overflowed.

    images: the images of the call that this is about, by number, and what is wrong with each. others: what the call
    would have returned for each of the other images, by number: their runs never noticed. A sweep numbers its variants,
    in their order.
    """

    def __init__(
        self, message: str = "", images: Mapping[int, str] | None = None, others: Mapping[int, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.images, self.others = dict(images or {}), dict(others or {})


class DeviceError(EngineError):
    """A GPU is not there, cannot be used as asked, or refused a call. The next call starts anew."""


class CheckpointError(HspaceError):
    """A checkpoint cannot be read safely, or is not what the exporter was told it is."""

    exit_code = 6


class OutputError(HspaceError):
    """An output exists already, or cannot be written."""

    exit_code = 7


class LatentError(HspaceError):
    """A latent's file is malformed, or the latent belongs to another model."""

    exit_code = 8


class LatentWarning(UserWarning):
    """A decode cannot give back the images of a latent, which another sampler made."""


class ProgramError(HspaceError):
    """A program's file or its rows are malformed."""

    exit_code = 9


class Cancelled(HspaceError):
    """`on_step` returned False."""

    exit_code = 130


def needs(what: str, package: str | None, extra: str) -> str:
    """The message where `what` needs a package that is not installed. package: as an ImportError names it."""
    return f"{what} needs the package {(package or '').partition('.')[0]}, of the extra {extra}: {install(extra)}"


def install(extra: str) -> str:
    """How to have one of hspace's extras. It is installed from a clone or from a wheel, so there is a line for each."""
    return f"pip install '.[{extra}]' in a clone of hspace, or pip install 'hspace-….whl[{extra}]'"


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest of the known ones; empty where none is near."""
    import difflib  # which `import hspace` does without

    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(str(name)[:100].lower(), lower, n=3, cutoff=0.5)]
    return f"; did you mean {' or '.join(near)}?" if near else ""
