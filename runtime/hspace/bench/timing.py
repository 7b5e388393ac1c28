"""Rounds: every part on every engine in turn, so that whatever else the machine does falls on all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..editor import Editor
from . import parts

PERCENTILES = (50, 95, 99)

Part = tuple[str, int]  # its name, and how many samples
Times = dict[str, dict[Part, list[float]]]  # engine → part → milliseconds, a round after another


def measure(
    editor: Editor, *, batch: int = 1, repeat: int = 20, calls: int = 3, steps: int | None = None
) -> dict[str, dict[str, float]]:
    """Name → p50, p95, p99 and min, in milliseconds, of `repeat` rounds of parts and `calls` of whole calls.

    Parts at `batch` samples: each component; "head ×2", the head on ε and ε̃; "inject", Δh of one attribute; "update",
    everything of a step that is not network evaluation; "step", a plain step; "asymmetric step". Calls: "encode",
    "decode" and "edit" of `batch` images at the preset's steps, or at `steps`.
    """
    times = compare({"engine": editor}, batches=[batch], repeat=repeat, calls=calls, steps=steps)
    return {name: summary(t) for (name, _), t in times["engine"].items()}


def compare(
    editors: Mapping[str, Editor],
    *,
    batches: Sequence[int] = (1,),
    repeat: int = 20,
    calls: int = 3,
    steps: int | None = None,
    beside: Mapping[str, Mapping[Part, Callable[[], object]]] | None = None,
) -> Times:
    """Editors of one bundle side by side, by name → (part, samples) → milliseconds of each round.

    What `measure` times, at the first of `batches`; at the others "update", "step" and "asymmetric step" alone.
    Everything runs once before, unmeasured. beside: what else takes its turn in each round.
    """
    runs: dict[str, dict[Part, Callable[[], object]]] = {}
    whole: dict[str, dict[Part, Callable[[], object]]] = {}
    first, *others = batches
    for name, editor in editors.items():
        runs[name] = {(part, first): r for part, r in parts.parts(editor, first).items()}
        for n in others:
            runs[name] |= {(part, n): r for part, r in parts.steps(editor, n).items()}
        whole[name] = {(call, first): r for call, r in parts.calls(editor, first, steps).items()}
        editor.edit(parts.blank(editor, first), parts.one_edit(editor), steps=2)  # the first use of a size compiles
    runs |= {name: dict(each) for name, each in (beside or {}).items()}
    for each in runs.values():
        for run in each.values():
            run()
    times = rounds(runs, repeat)
    for name, of_calls in rounds(whole, calls).items():
        times[name] |= of_calls
    return times


def rounds(runs: Mapping[str, Mapping[Part, Callable[[], object]]], repeat: int) -> Times:
    """Times every part on every engine `repeat` times. Which engine comes first changes from round to round."""
    names = list(runs)
    times: Times = {name: {part: [] for part in runs[name]} for name in names}
    every = list(dict.fromkeys(part for name in names for part in runs[name]))
    for k in range(repeat):
        turn = k % len(names)
        for part in every:
            for name in names[turn:] + names[:turn]:
                if part not in runs[name]:
                    continue
                run = runs[name][part]
                start = time.perf_counter()
                run()
                times[name][part].append((time.perf_counter() - start) * 1e3)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """p50, p95, p99 and min, of the times' unit, and their count."""
    percentiles = {f"p{p}": float(np.percentile(times, p)) for p in PERCENTILES}
    return {**percentiles, "min": min(times), "count": len(times)}


def ratio(times: Sequence[float], to: Sequence[float]) -> float:
    """The median of the rounds' own ratios, which what slows a whole round down leaves alone."""
    return float(np.median(np.divide(times, to)))


def variation(times: Sequence[float]) -> float:
    """How far a part's times vary, over their median: to p95, or between the medians of both halves of the rounds."""
    p50, p95 = np.percentile(times, (50, 95))
    half = len(times) // 2
    drift = abs(np.median(times[half:]) - np.median(times[:half])) if half else 0.0
    return float(max(p95 - p50, drift) / p50)
