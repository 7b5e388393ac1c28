"""hspace bench."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

import click

from .. import bench as benchmark
from ..checks import check_whole
from . import common


@click.command()
@common.opening
@click.option("--batch", type=int, default=1, show_default=True, help="Samples in a step, and images in a call.")
@click.option("--repeat", type=int, default=20, show_default=True, help="Rounds of the parts.")
@click.option("--calls", type=int, default=3, show_default=True, help="Rounds of whole calls.")
@click.option("--steps", type=int, help="Steps of whole calls, instead of the default preset's.")
@common.as_json
def bench(batch: int, repeat: int, calls: int, steps: int | None, as_json: bool, **options: Any) -> None:
    """Latency of each part of a step and of whole calls, in milliseconds: p50, p95 and p99.

    "update" is everything of a step that is not network evaluation. Parts are timed in turn, so compare them by ratio.

    \b
    Examples:
      hspace bench -b bundles/avatars32
      hspace bench -b bundles/avatars32 --batch 8 --steps 20 --json
    """
    for name, value in (("--batch", batch), ("--repeat", repeat), ("--calls", calls)):
        check_whole(name, value)
    editor = common.open_editor(options)
    found = benchmark.measure(editor, batch=batch, repeat=repeat, calls=calls, steps=steps)
    machine = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {p: metadata.version(p) for p in ("hspace", "numpy", "onnxruntime")},
        "engine": editor.engine.name,
        "batch": batch,
    }
    rows = [[n, *(f"{t[k]:.2f}" for k in ("p50", "p95", "p99", "min")), str(int(t["count"]))] for n, t in found.items()]
    versions = ", ".join(f"{p} {v}" for p, v in machine["versions"].items())
    text = (
        f"{machine['processor']}, {machine['cores']} cores; {versions}; engine {editor.engine.name}; batch {batch}\n\n"
    )
    text += common.table(["milliseconds", "p50", "p95", "p99", "min", "rounds"], rows)
    common.emit(as_json, {"machine": machine, "milliseconds": found}, text)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
