"""Whole edits with the shipped bundle: FP16 against FP32 on the GPU, and the GPU against the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hspace
import numpy as np
from hspace.arrays import Float32
from hspace.image import load_images

from .half import to_half
from .report import Found, Goal
from .suites import ROOT
from .workers import apart

BUNDLE, IMAGES = ROOT / "bundles" / "avatars32", ROOT / "bundles" / "images"
EDITS = {"none": {}, "z_sem": {"Blond_Hair": 0.5}, "h": {"hair_length": 1.0}}
STEPS = (100, 20)
DECIBELS = 40.0
TOLERANCE = 1e-3  # ‖a − b‖/‖b‖ of float32 images; sums are taken in another order, and 40 steps carry that on


def section(work: Path, quick: bool) -> Found:
    """The least PSNR over images, edits and steps, and the largest difference to the CPU."""
    numbers = apart(work / "logs" / "accuracy.log", measure, work, quick)
    findings = Found(numbers)
    rows = []
    for case, each in numbers["psnr"].items():
        rows.append([f"FP16 to FP32, {case}", f"{min(each):.1f} to {max(each):.1f} dB"])
    for case, error in numbers["relative_error"].items():
        rows.append([f"GPU to CPU, FP32, {case}", f"{error:.1e}"])
    findings.tables.append((["whole edits", f"of {numbers['images']} images"], rows))
    least = min(min(each) for each in numbers["psnr"].values())
    findings.goals.append(Goal("FP16 to FP32, whole edits, least PSNR", least, DECIBELS, "dB", least=True))
    worst = max(numbers["relative_error"].values())
    findings.goals.append(Goal("GPU to CPU, FP32, relative error", worst, TOLERANCE, ""))
    return findings


def measure(work: Path, quick: bool) -> dict[str, Any]:
    """In a process of its own: the figures, on the first GPU."""
    host = hspace.open(BUNDLE, engine="onnx")
    full, half = (hspace.open(b, device="cuda:0") for b in (BUNDLE, to_half(BUNDLE, work / "avatars32-fp16")))
    images = pictures(host, 2 if quick else 10)
    steps = (5,) if quick else STEPS
    by_cpu = {
        f"{name}, {n} + {n} steps": error(full, host, images, edits, n)
        for n in steps[-1:]
        for name, edits in EDITS.items()
    }
    return {"images": len(images), "psnr": psnrs(half, full, images, steps), "relative_error": by_cpu}


def pictures(editor: hspace.Editor, count: int) -> Float32:
    """The example images, and `count` that the model makes, float32 [N, 3, H, W]."""
    shipped = load_images(sorted(IMAGES.glob("*.png")), editor.size)
    made = editor.sample(count, seed=1, steps=20, latent_steps=20, output="float32")
    return np.concatenate([shipped, np.clip(made, -1, 1)])


def psnrs(a: hspace.Editor, b: hspace.Editor, images: Float32, steps: tuple[int, ...]) -> dict[str, list[float]]:
    """Edit and steps → the PSNR of each image's edit by `a` to that by `b`, in dB."""
    return {
        f"{name}, {n} + {n} steps": psnr(*(e.edit(images, edits, steps=n, output="float32") for e in (a, b)))
        for n in steps
        for name, edits in EDITS.items()
    }


def psnr(a: Float32, b: Float32) -> list[float]:
    """Of each image in [−1, 1] of two batches, in dB; at most 200."""
    squares = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    return [float(d) for d in 10 * np.log10(4 / np.maximum(squares, 4e-20))]


def error(a: hspace.Editor, b: hspace.Editor, images: Float32, edits: dict[str, float], steps: int) -> float:
    """‖x − y‖/‖y‖ of an edit by `a` and by `b`."""
    x, y = (e.edit(images, edits, steps=steps, output="float32").astype(np.float64) for e in (a, b))
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))
