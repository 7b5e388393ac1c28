"""What an edit costs against image size, batch, steps and number of attributes, on every engine that can run here.

    python benchmarks/cost.py [--rounds 5] [--json FILE] [--plot FILE.png]

Needs the extras export, bench and openvino. One small DDPM U-Net (64 to 128 channels, three halvings, random weights)
is exported for every image size, with eight attributes (Δh from tables). Engines and settings take turns in each round.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import torch
from hspace import amend
from hspace.bench import machine, timing
from hspace.bench.parts import blank, steps
from hspace.bundle import Bundle, h_shape
from hspace.choice import AUTO
from hspace.engines import precisions, unavailable
from hspace.tensors import tensor_bytes
from hspace_export.asyrp import load_model
from hspace_export.exporter import Settings, export
from hspace_export.models.ddpm import DdpmConfig, DdpmUNet

SIZES = (32, 64, 128, 256)
BATCHES = (1, 2, 4, 8, 16)
STEPS = (2, 5, 10, 20, 40)
ATTRIBUTES = (0, 1, 2, 4, 8)
ATTRIBUTE_STEPS = 10  # of the decodes that are timed for them
SIZE = 64  # where something else varies
Found = dict[str, dict[str, list[float]]]  # what varies → engine and kind → a median for each of its values


def bundles(folder: Path) -> dict[int, Path]:
    """Image size → bundle."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    checkpoint = folder / "ddpm.ckpt"
    torch.save(DdpmUNet(DdpmConfig(64, (1.0, 2.0, 2.0, 2.0), 1, (3,), 3, True)).state_dict(), checkpoint)
    made = {}
    for size in SIZES:
        made[size] = folder / str(size)
        settings = Settings(image_size=size)
        export(partial(load_model, checkpoint, attributes={}, settings=settings), made[size])
        for k in range(max(ATTRIBUTES)):
            bundle = Bundle(made[size])
            table = 0.1 * rng.standard_normal((40, *h_shape(bundle)[:3]), dtype=np.float32)
            data = tensor_bytes({"timesteps": np.arange(0, 1000, 25), "delta_h": table}, {})
            amend.add_attribute(bundle, f"a{k}", data, "delta_h", "asymmetric", 40)
    return made


def measure(made: dict[int, Path], engines: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Medians in milliseconds: of a step against size, batch and attributes, and of an edit against steps."""
    runs: dict[str, dict[timing.Part, Callable[[], object]]] = {}
    for engine in engines:
        mine = runs[engine] = {}
        fastest = precisions(engine, Bundle(made[SIZE]))[-1]
        editors = {size: hspace.open(path, engine=engine, precision=fastest) for size, path in made.items()}
        for size, editor in editors.items():
            for kind, run in _steps(editor, 1).items():
                mine[f"image size|{kind}", size] = run
        editor = editors[SIZE]
        for n in BATCHES:
            for kind, run in _steps(editor, n).items():
                mine[f"batch|{kind}", n] = run
        image = blank(editor, 1)
        for n in STEPS:
            mine["steps|edit", n] = partial(editor.edit, image, {"a0": 1.0}, steps=n)
        for k in ATTRIBUTES:
            edits = {f"a{i}": 1.0 for i in range(k)}
            latent = editor.encode(image, steps=2)
            decode = partial(editor.decode, latent, edits, steps=ATTRIBUTE_STEPS, t_edit=0, t_boost=0)
            mine["attributes|asymmetric step", k] = decode
    for each in runs.values():
        for run in each.values():
            run()
    results: Found = {}
    for engine, parts in timing.rounds(runs, rounds).items():
        for (part, value), times in parts.items():
            panel, kind = part.split("|")
            share = {"batch": value, "attributes": ATTRIBUTE_STEPS}.get(panel, 1)
            results.setdefault(panel, {}).setdefault(f"{engine}, {kind}", []).append(float(np.median(times)) / share)
    return results


def _steps(editor: hspace.Editor, n: int) -> dict[str, Callable[[], object]]:
    return {kind: run for kind, run in steps(editor, n).items() if kind != "update"}


AXES = {
    "image size": (SIZES, "pixels on a side", "milliseconds per step"),
    "batch": (BATCHES, "images in a step", "milliseconds per image and step"),
    "steps": (STEPS, "steps each way", "milliseconds per edit"),
    "attributes": (ATTRIBUTES, "attributes (Δh tables)", "milliseconds per step"),
}


def text(results: Found) -> str:
    """A table for each of what varies."""
    lines = []
    for panel, series in results.items():
        values, _, unit = AXES[panel]
        lines.append(f"{panel + ', ' + unit:<48}" + "".join(f"{v:>9}" for v in values))
        lines += [f"  {name:<46}" + "".join(f"{t:9.2f}" for t in times) for name, times in series.items()]
        lines.append("")
    return "\n".join(lines)


def plot(results: Found, path: Path, where: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    colours = {engine: f"C{i}" for i, engine in enumerate(AUTO)}
    for axes, (panel, series) in zip(figure.subplots(1, len(results)), results.items(), strict=True):
        values, label, unit = AXES[panel]
        for name, times in series.items():
            engine, kind = name.split(", ")
            style = "--" if kind == "asymmetric step" else "-"
            axes.plot(values, times, style, marker="o", markersize=4, color=colours[engine], label=name)
        if panel in ("image size", "batch"):
            axes.set_xscale("log", base=2)
        if panel == "image size":
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 1.4 * max(max(times) for times in series.values()))  # room for the legend
        axes.set_xticks(values, [str(v) for v in values])
        axes.minorticks_off()
        axes.set(
            xlabel=label, ylabel=unit, title=f"Cost against {panel}" + (f", {SIZE}×{SIZE}" * (panel != "image size"))
        )
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False, loc="upper left")
    figure.suptitle(where, fontsize="medium")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    stamp: dict[str, Any] = machine.stamp()
    where = f"{stamp['processor']}, {stamp['usable_cores']} cores, {stamp['date'][:10]}"
    print(where + "".join(f", {k} {v}" for k, v in stamp["versions"].items()))
    with tempfile.TemporaryDirectory() as scratch:
        results = measure(bundles(Path(scratch)), [e for e in AUTO if unavailable(e) is None], args.rounds)
    print(f"\n{text(results)}")
    if args.json:
        args.json.write_text(json.dumps({"machine": stamp, "found": results}, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot, where)


if __name__ == "__main__":
    main()
