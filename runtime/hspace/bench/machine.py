"""Where and when something was measured."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engines import packages
from ..engines.cpu import processor, usable_cores

if TYPE_CHECKING:
    from ..cuda.driver import Device


def stamp() -> dict[str, Any]:
    """Processor, cores, system, versions, UTC time, and the commit where the package runs from a git working tree."""
    names = ("hspace", "numpy", *packages(), "cuda-bindings")
    told: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions(names)},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    commit = _commit(Path(__file__).parent.parent)
    if commit is not None:
        told["commit"] = commit
    return told


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Package → version, of those that are installed."""
    each = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            each[package] = metadata.version(package)
    return each


def gpu(device: Device) -> dict[str, Any]:
    """A GPU: model, architecture, memory in 10⁶ bytes, and the driver's CUDA version; its own where nvidia-smi is."""
    version = device.call("read the driver's version", "cuDriverGetVersion")
    with device:
        _, total = device.memory()
    major, minor = device.architecture
    told: dict[str, Any] = {"model": device.model, "architecture": f"sm_{major}{minor}", "memory_mb": total / 1e6}
    told["cuda"] = f"{version // 1000}.{version % 1000 // 10}"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, text=True, capture_output=True, check=True, timeout=10)
        told["driver"] = done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError, UnicodeDecodeError):
        pass
    return told


def card(told: Mapping[str, Any]) -> str:
    """What `gpu` found, in a line."""
    driver = f", driver {told['driver']}" if "driver" in told else ""
    return f"{told['model']}, {told['architecture']}, {told['memory_mb']:.0f} MB{driver}, CUDA {told['cuda']}"


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
