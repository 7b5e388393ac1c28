"""`report`'s findings as a picture: what a step is made of, how near it comes to the peak, and cost against batch."""

from __future__ import annotations

import io
from typing import Any

from ..engines import privacy

_matplotlib = privacy.matplotlib()
_PARTS = {  # of a plain step, of an asymmetric one
    "step": ("trunk", "head", "update"),
    "asymmetric step": ("trunk", "head ×2", "inject", "update"),
}
_COLOURS = {"trunk": "#4c72b0", "head": "#dd8452", "head ×2": "#dd8452", "inject": "#55a868", "update": "#8c8c8c"}
_ENGINES = ("#2a4d7c", "#c05a2b", "#3f8f5b", "#7a5195")
_PEAKS = {"fp32": ":", "bf16": "--"}


def plot(report: dict[str, Any]) -> bytes:
    """A PNG of what `report` returned."""
    engines = report["engines"]
    counted = {name: entry for name, entry in engines.items() if entry.get("gflops")}
    panels = [_steps, *([_against_peak] if counted else []), *([_batches] if len(report["batches"]) > 1 else [])]
    tall = 3.2 + 0.7 * len(engines)
    figure = _matplotlib.figure.Figure(figsize=(5.6 * len(panels) + 0.6, tall), layout="constrained")
    for draw, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        draw(axes, report)
        axes.spines[["top", "right"]].set_visible(False)
    at, run = report["machine"], report["run"]
    where = f"{at['processor']}, {at['usable_cores']} of {at['cores']} cores"
    when = f"hspace {at['versions'].get('hspace', '')}, {at['date'][:10]}"
    title = f"{run['bundle']}, batch {run['batches'][0]}  ·  {where}  ·  {when}"
    figure.suptitle(title.replace("$", r"\$"), fontsize="medium")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _steps(axes: Any, report: dict[str, Any]) -> None:
    labels, most, y = [], 0.0, 0
    for name, entry in report["engines"].items():
        times = entry["milliseconds"]
        for step, parts in _PARTS.items():
            left = 0.0
            for part in parts:
                if part in times:
                    axes.barh(y, times[part]["p50"], left=left, height=0.7, color=_COLOURS[part])
                    left += times[part]["p50"]
            measured = times[step]["p50"]
            axes.plot([measured, measured], [y - 0.42, y + 0.42], color="black", linewidth=1.6)
            end = max(left, measured)
            axes.annotate(
                f"{measured:.3g}", (end, y), (5, 0), textcoords="offset points", va="center", fontsize="small"
            )
            labels.append(f"{name}\n{step}")
            most, y = max(most, end), y + 1
    axes.set_yticks(range(y), labels, fontsize="small")
    axes.invert_yaxis()
    axes.set_xlim(0, most * 1.12)
    axes.set(title="A step and its parts", xlabel="milliseconds, median")
    handles: list[Any] = [
        _matplotlib.patches.Patch(color=_COLOURS[p], label={"head": "head (×1, ×2)"}.get(p, p))
        for p in ("trunk", "head", "inject", "update")
    ]
    handles.append(axes.plot([], [], color="black", linewidth=1.6, label="measured whole")[0])
    _legend_below(axes, handles=handles, ncols=5)


def _against_peak(axes: Any, report: dict[str, Any]) -> None:
    engines = {name: entry for name, entry in report["engines"].items() if entry.get("gflops")}
    parts = [p for p in ("trunk", "head", "head ×2", "step", "asymmetric step") if p in report["parts"]]
    width = 0.8 / len(engines)
    for k, (name, entry) in enumerate(engines.items()):
        at = [i + (k - (len(engines) - 1) / 2) * width for i in range(len(parts))]
        heights = [entry["gflops"][p]["achieved"] for p in parts]
        label = f"{name}, {entry['precision']}"
        axes.bar(at, heights, width * 0.92, color=_ENGINES[k % len(_ENGINES)], label=label)
        for x, height, part in zip(at, heights, parts, strict=True):
            share = entry["gflops"][part]["share"]
            if share is not None:
                text = f"{share * 100:.0f} %"
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
                place = {"textcoords": "offset points", "ha": "center", "fontsize": "x-small", "bbox": box}
                axes.annotate(text, (x, height), (0, 3), **place)
    for precision in dict.fromkeys(entry["precision"] for entry in engines.values()):
        if precision in report["peak"]:
            height, style = report["peak"][precision]["gflops"], _PEAKS.get(precision, "-.")
            axes.axhline(
                height, color="black", linestyle=style, linewidth=1, zorder=0.5, label=f"{precision} peak, {height:.0f}"
            )
    axes.set_xticks(range(len(parts)), [p.replace(" ", "\n", 1) if "step" in p else p for p in parts], fontsize="small")
    axes.set_ylim(0, axes.get_ylim()[1] * 1.06)
    axes.set(title="Achieved, and the matrix peak", ylabel="GFLOP/s")
    _legend_below(axes, ncols=4)


def _legend_below(axes: Any, **options: Any) -> None:
    """Under the axis, where it hides no bar."""
    where = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False}
    axes.legend(**{**where, "fontsize": "small", "columnspacing": 1.2, "handlelength": 1.4, **options})


def _batches(axes: Any, report: dict[str, Any]) -> None:
    batches = [int(n) for n in report["batches"]]
    for k, name in enumerate(report["engines"]):
        for step, style in (("step", "-"), ("asymmetric step", "--")):
            cost = [each[name][step]["per_image"] for each in report["batches"].values()]
            colour = _ENGINES[k % len(_ENGINES)]
            axes.plot(batches, cost, style, marker="o", markersize=4, color=colour, label=f"{name}, {step}")
    axes.set_xscale("log", base=2)
    axes.set_xticks(batches, [str(n) for n in batches])
    axes.minorticks_off()
    axes.set_ylim(0)
    axes.set(title="Cost of an image", xlabel="samples in a step", ylabel="milliseconds per image and step")
    _legend_below(axes, ncols=2, handlelength=3)
