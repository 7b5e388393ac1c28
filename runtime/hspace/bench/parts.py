"""What is timed: the parts of a step, and whole calls, as functions without arguments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..batch import Sample
from ..bundle import Bundle, h_shape
from ..deltas import DeltaTable, Edit, ZDirection, inject
from ..editor import Editor
from ..engines import answers, unet
from ..executors.cpu import Executor
from ..plans import Planner
from ..program import Branch, Program

Runs = dict[str, Callable[[], object]]


class Replay:
    """Answers every evaluation from a recording, at no cost: what is left of a step's time is the executor's."""

    name, device, precision, batch_pixels = "replay", "cpu", "fp32", 2**16

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.recorded: dict[tuple[str, int], list[Any]] = {}

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        key = component, len(inputs["h" if component == "head" else "x"])
        if key not in self.recorded:
            self.recorded[key] = self.engine.run(component, inputs)
        return self.recorded[key]


class Tally:
    """Counts evaluations, and answers them with zeros. counts: (component, samples, the head's own) → how many."""

    name, device, precision, batch_pixels = "tally", "cpu", "fp32", 2**16

    def __init__(self, bundle: Bundle) -> None:
        self._components = bundle.manifest.components
        self.counts: Counter[tuple[str, int, int]] = Counter()

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        spec = self._components[component]
        n = len(next(inputs[i.name] for i in spec.inputs if i.shape[0] == "N"))
        m = len(inputs["source"]) if "source" in inputs else n
        self.counts[component, n, m] += 1
        sizes = {"N": n, "M": m}
        return [np.zeros([int(sizes.get(str(d), d)) for d in o.shape], dtype=o.dtype) for o in spec.outputs]


def one_edit(editor: Editor) -> dict[str, float]:
    """The bundle's first attribute at strength 1, of the h-space where it has one."""
    names = sorted(editor.attributes, key=lambda n: isinstance(editor.attributes[n], ZDirection))
    return {names[0]: 1.0} if names else {}


def blank(editor: Editor, n: int) -> NDArray[np.float32]:
    """Images to edit, float32 [n, 3, H, W]: grey, since no time depends on what they show."""
    return np.zeros((n, 3, editor.size, editor.size), dtype=np.float32)


def calls(editor: Editor, n: int, steps: int | None) -> Runs:
    """Whole calls of n images at the default preset's steps, or at `steps`."""
    images, edits = blank(editor, n), one_edit(editor)
    latent = editor.encode(images, steps=2)  # a decode takes as long from any latent
    return {
        "call encode": lambda: editor.encode(images, steps=steps),
        "call decode": lambda: editor.decode(latent, edits, steps=steps),
        "call edit": lambda: editor.edit(images, edits, steps=steps),
    }


def parts(editor: Editor, n: int) -> Runs:
    """Each component, "head ×2" (the head on ε and ε̃), "inject" (Δh of one attribute), and `steps`', at n samples.

    The head is given what the engine's own trunk made, as in a step: an engine may keep skips in a form of its own.
    On a GPU "inject" is there for every bundle, and everything is waited for (`device`).
    """
    if editor.executor.on_device:
        from . import device

        return device.parts(editor, n)
    specs = editor.bundle.manifest.components
    made: dict[str, Runs] = {}

    def run(component: str, inputs: dict[str, Any]) -> Callable[[], object]:
        return lambda: editor.engine.run(component, inputs)

    for component, spec in specs.items():
        if component == "head":
            continue
        inputs = answers.inputs(spec, n, t=500)
        made[component] = {component: run(component, inputs)}
        if component == "trunk":
            features = unet.trunk(editor.engine, **inputs)
            h, temb = features.h, features.temb
            evaluate = partial(unet.head, editor.engine, features)
            made["head"] = {"head": partial(evaluate, h, np.arange(n))}
            made["head ×2"] = {"head ×2": partial(evaluate, np.concatenate([h, h]), np.arange(2 * n) % n)}
    runs = {name: r for key in [*specs, "head ×2"] for name, r in made[key].items()}
    delta = _delta(editor)
    if delta is not None:
        h, temb = np.asarray(h, dtype=np.float32), np.asarray(temb, dtype=np.float32)
        t, scale, edits = np.full(n, 500, np.int32), np.ones(n, np.float32), [Edit(deltas=((delta, 1.0),))] * n
        runs["inject"] = lambda: inject(h, temb, t, scale, edits)
    return {**runs, **steps(editor, n)}


def steps(editor: Editor, n: int) -> Runs:
    """ "update" (everything of a step but network evaluation), "step" and "asymmetric step", at n samples."""
    if editor.executor.on_device:
        from . import device

        return device.steps(editor, n)
    x = np.random.default_rng(0).standard_normal((n, 3, editor.size, editor.size)).astype(np.float32)
    manifest = editor.bundle.manifest
    z = None if manifest.z_sem is None else np.zeros((n, manifest.z_sem.size), np.float32)

    def step(program: Program, edit: Edit, executor: Executor) -> Callable[[], object]:
        with executor.batch("image", n) as batch:
            for i in range(n):
                batch.join(Sample(x[i], program, None if z is None else z[i], edit, image=i))

        def run() -> None:
            batch.step()
            batch.rewind()

        return run

    components = manifest.components
    real, replay = Executor(editor.engine, components), Executor(Replay(editor.engine), components)
    plain, asymmetric = programs(editor)
    return {
        "update": step(*plain, replay),
        "step": step(*plain, real),
        "asymmetric step": step(*asymmetric, real),
    }


def programs(editor: Editor) -> tuple[tuple[Program, Edit], tuple[Program, Edit]]:
    """A decode without an edit; and one whose steps are all asymmetric, by the bundle's first attribute of the h-space.

    Without one, Δh is zero: both branches still run.
    """
    delta = _delta(editor) or DeltaTable(
        np.zeros(1, np.int64), np.zeros((1, *h_shape(editor.bundle)[:3]), np.float32), None, Branch.ASYMMETRIC
    )
    edit, planner = Edit(deltas=((delta, 1.0),), branch=Branch.ASYMMETRIC), Planner(editor.bundle)
    table = planner.decode(planner.plan(t_edit=0, t_boost=0), edit)
    return (editor.program("decode"), Edit()), (table, edit)


def _delta(editor: Editor) -> Any:
    """The bundle's first attribute of the h-space."""
    return next((a for a in editor.attributes.values() if not isinstance(a, ZDirection)), None)
