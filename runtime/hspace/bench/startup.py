"""What a fresh process pays: opening a bundle, the first result, and the most memory that it held.

Run as a process of its own: `python -m hspace.bench.startup '{"bundle": …}'`.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ..cuda import ordinal_of
from ..opening import open as open_bundle
from . import parts


def start_up(
    bundle: str | Path,
    engine: str,
    *,
    precision: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    batch_size: int | None = None,
    batch: int = 1,
) -> dict[str, dict[str, float | None]]:
    """What it takes to open the bundle and to edit `batch` images in 2 steps, each time in a fresh process.

    "first": with an empty cache folder; "again": with what the first left there, where it left anything. open_s:
    seconds of `hspace.open`. first_result_s: seconds from the process's start to its first result. peak_mb: the most
    memory that it held, in 10⁶ bytes; None where the system does not say. On a GPU that is what of the device's memory
    is in use at the end: pools keep what they took, and whatever else is on the device counts. Empty where the process
    failed.
    """
    asked: dict[str, Any] = {"bundle": str(bundle), "engine": engine, "precision": precision, "device": device}
    asked |= {"threads": threads, "batch_size": batch_size, "batch": batch}
    measured: dict[str, dict[str, float | None]] = {}
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
            measured["first"] = _child(asked, cache)
            if any(p.is_file() for p in Path(cache).rglob("*")):
                measured["again"] = _child(asked, cache)
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {}
    return measured


def _child(asked: dict[str, Any], cache: str) -> dict[str, float | None]:
    command = [sys.executable, "-m", __name__, json.dumps({**asked, "started": time.time()})]
    environment = {**os.environ, "HSPACE_CACHE": cache}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=True)
    measured: dict[str, float | None] = json.loads(done.stdout.splitlines()[-1])
    return measured


def peak_memory() -> int | None:
    """The most bytes that this process held, or None where the system does not say.

    Linux's ru_maxrss would count what the parent held when it started this one; VmHWM starts anew.
    """
    try:
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return None
    kibibytes: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes if sys.platform == "darwin" else kibibytes * 1024


def _main(bundle: str, device: str, batch: int, started: float, **options: Any) -> None:
    start = time.perf_counter()
    editor = open_bundle(bundle, device=device, **options)
    opened = time.perf_counter() - start
    editor.edit(parts.blank(editor, batch), parts.one_edit(editor), steps=2)
    ordinal = ordinal_of(device)
    memory = peak_memory() if ordinal is None else _used(ordinal)
    measured = {
        "open_s": opened,
        "first_result_s": time.time() - started,
        "peak_mb": None if memory is None else memory / 1e6,
    }
    print(json.dumps(measured))


def _used(ordinal: int) -> int:
    """Bytes of a GPU's memory that are in use."""
    from ..cuda.driver import Device

    with Device(ordinal) as device:
        free, total = device.memory()
    return total - free


if __name__ == "__main__":
    _main(**json.loads(sys.argv[1]))
