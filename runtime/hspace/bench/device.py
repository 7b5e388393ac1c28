"""What is timed on a GPU: the parts of a step as its executor enqueues them, ready to be enqueued again and again.

This looks into the executor, whose runs are whole: nothing else of hspace needs a single step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..cuda.driver import Buffer, Stream
from ..cuda.steps import Steps
from ..cuda.work import Enqueue, Step, Work
from ..deltas import Edit
from ..editor import Editor
from ..executors.cuda import Executor
from ..noise import Noise
from ..program import Program
from .parts import Runs, programs


class Ready:
    """The first step of a program, for n samples, with all that it reads on the device.

    parts: of the step, in order: "advance", "trunk", "inject" (several launches, or none), "head", "update". They and
    the methods but `waited` enqueue, and expect `with executor.device:` around them.
    """

    def __init__(self, executor: Executor, program: Program, edit: Edit, n: int) -> None:
        self.executor, self.stream = executor, executor.stream
        components, steps = executor.components, Steps([program] * n, [edit] * n)
        x = np.random.default_rng(0).standard_normal((n, 3, executor.size, executor.size), dtype=np.float32)
        with executor.device:
            room = Work.capacity(n, steps.pairs, steps.terms)
            self.work = work = Work(components, executor.engine, executor.kernels, "image", n, *room)
            for name, nbytes in Work.needs(components, "image", n, steps).items():
                work.room(name, nbytes)
            z = np.zeros((n, *work.shape("trunk", "z_sem")), np.float32) if "z_sem" in work.at else None
            keeps = {"has_x_prev": steps.uses("c_x_prev"), "has_p": steps.uses("c_x0_prev")}
            executor._start(work, x, z, None, steps, Noise(0, np.arange(n)), None, keeps)
            self._kept: dict[str, Buffer] = {}  # the state, and the network's input where that is another array
            for name in {"x", "x_in"} & work.at.keys():
                kept = executor.device.allocate(x.size * np.dtype(work.tensors[name][1]).itemsize)
                self.stream.copy(kept.address, work.at[name], kept.nbytes)
                self._kept[name] = kept
            self._step = Step(steps.kinds[0], **keeps, has_z=False)
            (advance, trunk), (*injection, head, update) = work.launches(self._step)
            self.parts: dict[str, list[Enqueue]] = {
                "advance": [advance], "trunk": [trunk], "inject": injection, "head": [head], "update": [update],
            }  # fmt: skip
            for _ in range(3):  # launches, a capture, and its graph
                self.step()
                self.again()
            self.stream.synchronise()

    def step(self) -> None:
        """The step as a run enqueues it: as a graph where the engine can be captured."""
        self.executor._enqueue(self.work, self._step)

    def again(self) -> None:
        """Puts the state and the step's number back, so that the step can be repeated without end."""
        self.stream.zero(self.work.at["step"], 4)
        for name, kept in self._kept.items():
            self.stream.copy(self.work.at[name], kept.address, kept.nbytes)

    def waited(self, *enqueues: Enqueue, after: Callable[[], object] = lambda: None) -> Callable[[], object]:
        """A function that enqueues, and waits until the device is done. after: enqueued then, and not waited for."""

        def run() -> None:
            with self.executor.device:
                for enqueue in enqueues:
                    enqueue(self.stream)
                self.stream.synchronise()
                after()

        return run


def ready(editor: Editor, n: int) -> tuple[Ready, Ready]:
    """Both of `parts.programs`, of n samples, for an editor on a GPU."""
    executor: Any = editor.executor
    plain, asymmetric = (Ready(executor, *each, n) for each in programs(editor))
    return plain, asymmetric


def steps(editor: Editor, n: int) -> Runs:
    """What `parts.steps` has. "update": `advance` and `linear_step`."""
    return _steps(*ready(editor, n))


def parts(editor: Editor, n: int) -> Runs:
    """What `parts.parts` has. "inject": the launches that make the asymmetric step's h."""
    plain, asymmetric = ready(editor, n)
    runs: Runs = {}
    for component in editor.bundle.manifest.components:
        if component == "latent":
            runs[component] = plain.waited(_latent(plain.executor, n))
        else:
            of = plain.parts.get(component) or [plain.work.bound(component)]
            runs[component] = plain.waited(*of)
    runs["head ×2"] = asymmetric.waited(*asymmetric.parts["head"])
    runs["inject"] = asymmetric.waited(*asymmetric.parts["inject"])
    return {**runs, **_steps(plain, asymmetric)}


def _steps(plain: Ready, asymmetric: Ready) -> Runs:
    return {
        "update": plain.waited(*plain.parts["advance"], *plain.parts["update"], after=plain.again),
        "step": plain.waited(lambda _: plain.step(), after=plain.again),
        "asymmetric step": asymmetric.waited(lambda _: asymmetric.step(), after=asymmetric.again),
    }


def _latent(executor: Executor, n: int) -> Enqueue:
    """The latent DDIM's network at z_sem = 0 and t = 0."""
    with executor.device:
        work = Work(executor.components, executor.engine, executor.kernels, "latent", n, 0, 0)
        executor.stream.zero(work.at["x"], 4 * n * work.shape("latent", "z_sem")[0])
        executor.stream.zero(work.at["current"], work.block.itemsize)
        work.bound("latent")(executor.stream)

    def enqueue(stream: Stream) -> None:
        work.bound("latent")(stream)  # and keeps its memory

    return enqueue
