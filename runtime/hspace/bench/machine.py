"""Where and when something was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from ..engines.cache import processor, usable_cores

_PACKAGES = ("hspace", "numpy", "onnxruntime", "openvino")


def stamp() -> dict[str, Any]:
    """Processor, cores, system, versions, UTC time, and the commit where the package runs from a git working tree."""
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    for package in _PACKAGES:
        try:
            found["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit(Path(__file__).parent.parent)
    if commit is not None:
        found["commit"] = commit
    return found


def _commit(folder: Path) -> str | None:
    """The commit of the working tree that tracks the package, "+" after it where files differ; None where none does."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, text=True, capture_output=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # an environment inside of someone else's tree is not it
        changed = "+" if git("status", "--porcelain", "--untracked-files=no") else ""
        return git("rev-parse", "--short=12", "HEAD") + changed
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
