"""What is timed on a GPU: a step of a batch, and its parts, ready to be enqueued again and again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ..batch import Network, Sample
from ..cuda.driver import Buffer
from ..cuda.workspace import Enqueue
from ..editor import Editor
from ..executors.cuda import Executor
from .parts import Runs, programs


class Ready:
    """A batch of n copies of a sample, at its first row for ever.

    parts: of the step, in order: "trunk", "inject" (several launches, or none), "head", "update"; in the latent DDIM
    "latent", "update". They and the methods but `waited` enqueue, and expect `with executor.device:` around them.
    """

    def __init__(self, executor: Executor, sample: Sample, n: int, network: Network = "image") -> None:
        self.executor, self.stream = executor, executor.stream
        self._open = contextlib.ExitStack()
        self._batch = self._open.enter_context(executor.batch(network, n))
        self.work = work = self._batch.workspace
        for _ in range(n):
            self._batch.join(sample)
        with executor.device:
            self._kept: dict[str, Buffer] = {}  # the state, and the network's input where that is another array
            for name in {"x", "x_in"} & work.at.keys():
                kept = executor.device.allocate(work.place(name, n) - work.at[name])
                self.stream.copy(kept.address, work.at[name], kept.nbytes)
                self._kept[name] = kept
            for _ in range(3):  # launches, a capture, and its graph
                self.step()
                self.again()
            self.stream.synchronise()
            front, (*middle, update) = work.launches(self._batch.key)
        names = {"trunk": front, "inject": middle[:-1], "head": middle[-1:]} if front else {"latent": middle}
        self.parts: dict[str, list[Enqueue]] = {**names, "update": [update]}

    def close(self) -> None:
        """Ends the batch."""
        self._open.close()

    def step(self) -> None:
        """The step."""
        self._batch.step()

    def again(self) -> None:
        """Puts the state and the rows back, so that the step can be repeated without end."""
        self._batch.rewind()
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
    z_sem = editor.bundle.manifest.z_sem
    z = None if z_sem is None else np.zeros(z_sem.size, np.float32)
    x = np.random.default_rng(0).standard_normal((3, editor.size, editor.size), dtype=np.float32)
    plain, asymmetric = (Ready(executor, Sample(x, program, z, edit), n) for program, edit in programs(editor))
    return plain, asymmetric


def steps(editor: Editor, n: int) -> Runs:
    """What `parts.steps` has. "update": `linear_step`."""
    return _steps(*ready(editor, n))


def parts(editor: Editor, n: int) -> Runs:
    """What `parts.parts` has. "inject": the launches that make the asymmetric step's h."""
    plain, asymmetric = ready(editor, n)
    runs: Runs = {}
    for component in editor.bundle.manifest.components:
        if component == "latent":
            runs[component] = _latent(editor, n)
        else:
            of = plain.parts.get(component) or [plain.work.bound(component)]
            runs[component] = plain.waited(*of)
    runs["head ×2"] = asymmetric.waited(*asymmetric.parts["head"])
    runs["inject"] = asymmetric.waited(*asymmetric.parts["inject"])
    return {**runs, **_steps(plain, asymmetric)}


def _steps(plain: Ready, asymmetric: Ready) -> Runs:
    def whole(of: Ready) -> Enqueue:
        return lambda _: of.step()

    return {
        "update": plain.waited(*plain.parts["update"], after=plain.again),
        "step": plain.waited(whole(plain), after=plain.again),
        "asymmetric step": asymmetric.waited(whole(asymmetric), after=asymmetric.again),
    }


def _latent(editor: Editor, n: int) -> Callable[[], object]:
    """The latent DDIM's network, at z_sem = 0."""
    executor: Any = editor.executor
    z_sem = editor.bundle.manifest.z_sem
    assert z_sem is not None  # a bundle with that network has one
    of = Ready(executor, Sample(np.zeros(z_sem.size, np.float32), programs(editor)[0][0]), n, "latent")
    return of.waited(*of.parts["latent"])
