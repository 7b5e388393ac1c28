"""Latency of the parts of a step and of whole calls, on this machine.

The parts are timed in turn, round after round, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .attributes import Edit, ZDirection, inject
from .editor import Editor
from .executors.cpu import Batch, Executor
from .noise import Noise
from .plans import Planner
from .program import Branch, Program

PERCENTILES = (50, 95, 99)


class _Replay:
    """Answers every evaluation from a recording, at no cost: what is left of a step's time is the executor's."""

    name, device = "replay", "cpu"

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.recorded: dict[tuple[str, int], list[NDArray[Any]]] = {}

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        key = component, len(inputs["h" if component == "head" else "x"])
        if key not in self.recorded:
            self.recorded[key] = self.engine.run(component, inputs)
        return self.recorded[key]


def measure(
    editor: Editor, *, batch: int = 1, repeat: int = 20, calls: int = 3, steps: int | None = None
) -> dict[str, dict[str, float]]:
    """Name → p50, p95, p99 and min, in milliseconds, of `repeat` rounds of parts and `calls` of whole calls.

    Parts at `batch` samples: each component; "head ×2", the head on ε and ε̃; "inject", Δh of one attribute; "update",
    everything of a step that is not network evaluation; "step", a plain step; "asymmetric step". Calls: "encode",
    "decode" and "edit" of `batch` images at the preset's steps, or at `steps`.
    """
    parts = _parts(editor, batch)
    for run in parts.values():
        run()  # first runs allocate
    times = _rounds(parts, repeat)
    images = np.zeros((batch, 3, editor.size, editor.size), dtype=np.float32)
    latent = editor.encode(images, steps=steps)
    edits = _one_edit(editor)
    whole: dict[str, Callable[[], object]] = {
        "call encode": lambda: editor.encode(images, steps=steps),
        "call decode": lambda: editor.decode(latent, edits, steps=steps),
        "call edit": lambda: editor.edit(images, edits, steps=steps),
    }
    times |= _rounds(whole, calls)
    return {name: _summary(t) for name, t in times.items()}


def _rounds(runs: Mapping[str, Callable[[], object]], repeat: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def _summary(times: list[float]) -> dict[str, float]:
    found = {f"p{p}": float(np.percentile(times, p)) for p in PERCENTILES}
    return {**found, "min": min(times), "count": len(times)}


def _one_edit(editor: Editor) -> dict[str, float]:
    """The bundle's first attribute at strength 1, of the h-space where it has one."""
    names = sorted(editor.attributes, key=lambda n: isinstance(editor.attributes[n], ZDirection))
    return {names[0]: 1.0} if names else {}


def _parts(editor: Editor, n: int) -> dict[str, Callable[[], object]]:
    rng = np.random.default_rng(0)
    specs = editor.bundle.manifest.components

    def inputs(component: str, heads: int) -> dict[str, NDArray[Any]]:
        made: dict[str, NDArray[Any]] = {}
        for s in specs[component].inputs:
            shape = [{"N": n, "M": heads}.get(str(d), d) for d in s.shape]
            if s.name == "source":
                made[s.name] = np.arange(heads) % n
            elif s.dtype == "int32":
                made[s.name] = np.full([int(d) for d in shape], 500, dtype=np.int32)
            else:
                made[s.name] = rng.standard_normal([int(d) for d in shape]).astype(s.dtype)
        return made

    def evaluation(component: str, heads: int) -> Callable[[], object]:
        ready = inputs(component, heads)
        return lambda: editor.engine.run(component, ready)

    parts = {name: evaluation(name, n) for name in specs}
    parts["head ×2"] = evaluation("head", 2 * n)
    delta = next((a for a in editor.attributes.values() if not isinstance(a, ZDirection)), None)
    h, temb = (inputs("head", n)[k].astype(np.float32) for k in ("h", "temb"))
    t, scale = np.full(n, 500, np.int32), np.ones(n, np.float32)
    if delta is not None:
        edits = [Edit(deltas=((delta, 1.0),))] * n
        parts["inject"] = lambda: inject(h, temb, t, scale, edits)
    x = rng.standard_normal((n, 3, editor.size, editor.size)).astype(np.float32)
    z = None if editor.bundle.manifest.z_sem is None else np.zeros((n, editor.bundle.manifest.z_sem.size), np.float32)

    def step(program: Program, edit: Edit, executor: Executor) -> Callable[[], object]:
        batch = Batch(x, [program] * n, Noise(0, np.arange(n)), z, [edit] * n)
        first = batch.row.copy()

        def run() -> None:
            batch.row[:] = first
            executor.step(batch)

        return run

    still = _Still(h.shape[1:])
    asymmetric = Edit(deltas=((delta or still, 1.0),), branch=Branch.ASYMMETRIC)
    real, replay = Executor(editor.engine), Executor(_Replay(editor.engine))
    planner = Planner(editor.bundle)
    plain, table = editor.program("decode"), planner.decode(planner.plan(t_edit=0, t_boost=0), asymmetric)
    parts["update"] = step(plain, Edit(), replay)
    parts["step"] = step(plain, Edit(), real)
    parts["asymmetric step"] = step(table, asymmetric, real)
    return parts


class _Still:
    """A Δh of zero, for bundles without an attribute of the h-space: the asymmetric step still runs both branches."""

    branch, n_train = Branch.ASYMMETRIC, None

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def delta_h(self, h: NDArray[np.float32], temb: NDArray[np.float32], t: NDArray[np.int32]) -> NDArray[np.float32]:
        return np.zeros_like(h)
