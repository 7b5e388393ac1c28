"""Whole edits: what a caller waits for, from images on the host to images on the host."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import hspace
import numpy as np
from hspace.bench.timing import summary

from . import networks
from .report import Found
from .workers import Failed, apart

BATCHES = (1, 4, 16)


def section(work: Path, quick: bool, rounds: int) -> Found:
    """Every network and batch size, in milliseconds."""
    findings, rows = Found(), []
    for name, network in networks.networks(quick).items():
        try:
            bundle = networks.prepare(work, quick, name)
            numbers = apart(work / "logs" / f"{name}-edits.log", measure_here, bundle, network.steps, rounds)
        except Failed as e:
            findings.errors.append(f"{name}: {e}")
            continue
        findings.numbers[name] = {"title": network.title, "steps": list(network.steps), "batches": numbers}
        for n, each in numbers.items():
            row = [f"{network.title}, {network.steps[0]} + {network.steps[1]}, batch {n}", f"{each['p50']:.1f}"]
            rows.append([*row, f"{each['p50'] / int(n):.1f}", f"{each['min']:.1f} to {each['max']:.1f}"])
    if rows:
        findings.tables.append((["whole edits, ms", "p50", "per image", "range"], rows))
    return findings


def measure_here(bundle: Path, steps: tuple[int, int], rounds: int) -> dict[str, Any]:
    """In a process of its own: `measure` on the first GPU."""
    return measure(hspace.open(bundle, device="cuda:0", batch_size=max(BATCHES)), steps, rounds)


def measure(editor: hspace.Editor, steps: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Batch size → a summary of `rounds` edits, in milliseconds; everything has run twice before."""
    summaries = {}
    for n in BATCHES:
        shape = (n, editor.size, editor.size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        times = []
        for k in range(rounds + 2):
            start = time.perf_counter()
            editor.edit(images, {networks.ATTRIBUTE: 1.0}, preset="official", steps=steps if k > 1 else (2, 2))
            times.append(1e3 * (time.perf_counter() - start))
        summaries[str(n)] = summary(times[2:]) | {"max": max(times[2:])}
    return summaries
