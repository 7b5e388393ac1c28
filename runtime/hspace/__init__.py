"""hspace: encode, edit and decode images with trained diffusion models, without PyTorch.

    editor = hspace.open("bundles/avatars32")
    edited = editor.edit("face.png", {"Blond_Hair": 1.0})       # uint8 [1, H, W, 3]

Names are imported when first used, so that `import hspace` costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors
from .errors import Cancelled, HspaceError

if TYPE_CHECKING:
    from .bundle import Bundle
    from .editor import Editor
    from .latent import Latent
    from .opening import open
    from .program import Program
    from .runs import Step
    from .schedule import Schedule

__all__ = ["Bundle", "Cancelled", "Editor", "HspaceError", "Latent", "Program", "Schedule", "Step", "errors", "open"]

_HOMES = {
    "Bundle": "bundle",
    "Editor": "editor",
    "Latent": "latent",
    "Program": "program",
    "Schedule": "schedule",
    "Step": "runs",
    "open": "opening",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("hspace")
        except PackageNotFoundError:  # a working tree on PYTHONPATH
            return "0+source"
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
