"""Samples through an executor's batch, for tests of executors and of programs."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from hspace.batch import Executor, Network, Observe, Result, Sample
from hspace.errors import HspaceError
from hspace.executors import cpu


def host(engine: Any, shape: Sequence[int], z_sem: int | None = None) -> cpu.Executor:
    """The CPU executor for a network that is a formula, on states of that shape."""
    inputs = [SimpleNamespace(name="x", shape=["N", *shape])]
    inputs += [] if z_sem is None else [SimpleNamespace(name="z_sem", shape=["N", z_sem])]
    components: Any = {"trunk": SimpleNamespace(inputs=inputs), "latent": SimpleNamespace(inputs=inputs[1:])}
    return cpu.Executor(engine, components)


def run_all(
    executor: Executor, samples: Sequence[Sample], network: Network = "image", observe: Observe | None = None
) -> list[Result | HspaceError]:
    """All of them in one batch to their ends: each one's result, or what it left with."""
    results: dict[int, Result | HspaceError] = {}
    with executor.batch(network, len(samples)) as batch:
        slots = [batch.join(sample) for sample in samples]
        while len(batch):
            for slot in batch.step(observe):
                try:
                    results[slot] = batch.leave(slot)
                except HspaceError as e:
                    results[slot] = e
    return [results[slot] for slot in slots]


def states(results: Sequence[Result | HspaceError]) -> np.ndarray:
    """Their last states, [N, …], of results that all are."""
    each = []
    for result in results:
        assert isinstance(result, Result), result
        each.append(result.x)
    return np.stack(each)


def trace(executor: Executor, samples: Sequence[Sample], network: Network = "image") -> list[np.ndarray]:
    """The states of samples of one length at the start and after each step, [N, …] each."""
    seen: list[np.ndarray] = []
    results = run_all(executor, samples, network, lambda moved: seen.append(moved.x.copy()))
    return [*seen, states(results)]
