"""Compares whole runs in a faster precision with runs in the graphs' own precision, as PSNR in dB.

One evaluation says little about a run, since a run feeds its errors back to the network. Where ε agrees to 1e-2, whole
runs end anywhere from 20 to 50 dB apart. So this module compares the runs themselves: an inversion, a reconstruction
and an edit, at the bundle's default preset, on images that the model draws.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import Float32
from .bundle import Bundle, h_shape
from .deltas import DeltaTable
from .editor import Editor
from .engines import Engine
from .errors import ArgumentError, NotFinite
from .latent import Latent
from .manifest import Accuracy
from .plans import Planner
from .program import Branch
from .requests import Output, Run
from .runs import Step

# The least PSNR that a faster precision may have in any of the runs. At 40 dB the pictures are 2.6 of 255 grey levels
# apart (root mean square). The presets themselves cost more: reconstructions have 30 to 44 dB (docs/quality.md). A
# reconstruction at 36 dB loses at most 1.5 dB.
LEAST_PSNR = 40.0
_MOST_PSNR = 200.0  # of equal images, since JSON has no infinity
_MOST_STEPS = 40  # each way; a check with more steps would take minutes
_IMAGES, _PIXELS = 8, 2**16  # the most images, and the most pixels, that are compared
_MOVE_Z, _MOVE_H = 0.5, 0.25  # how far the edit goes: in z_sem's standard deviations, and ‖Δh‖/‖h‖


def measure(bundle: Bundle, preset: str, open_own: Callable[[], Engine], open_faster: Callable[[], Engine]) -> Accuracy:
    """The least PSNR over images, of each run. The two engines are opened one after the other, never together.

    preset: the preset that the runs use; its sampler must not be an exact one. Raises NotFinite where a run in either
    precision gives values that are not finite.
    """
    faster = _Runs(Editor(bundle, open_faster()), preset)
    images = faster.draw()
    codes = faster.encode(images)
    size = faster.size_of_h(codes)
    results = faster.decode(codes), faster.edit(codes, size)
    precision = faster.editor.engine.precision
    del faster
    own = _Runs(Editor(bundle, open_own()), preset)
    reference = own.encode(images)
    expected = own.decode(reference)
    return Accuracy(
        precision=precision,
        inversion=_psnr(own.decode(codes), expected),
        reconstruction=_psnr(results[0], expected),
        edit=_psnr(results[1], own.edit(reference, size)),
    )


class _Runs:
    """The runs of one editor, all from fixed seeds."""

    def __init__(self, editor: Editor, preset: str) -> None:
        self.editor, self._preset = editor, preset
        planner = Planner(editor.bundle)
        plan = planner.plan(preset)
        self._encode, self._decode = (_affordable(planner, preset, n) for n in (plan.encode_steps, plan.decode_steps))
        self._count = max(1, min(_IMAGES, _PIXELS // editor.size**2))

    def draw(self) -> NDArray[np.uint8]:
        return self.decode(self.editor.draw(self._count), output="uint8")

    def encode(self, images: NDArray[np.uint8]) -> Latent:
        return self.editor.encode(images, preset=self._preset, steps=self._encode)

    def decode(self, latent: Latent, edits: dict[str, float] | None = None, output: Output = "float32") -> NDArray[Any]:
        run = Run(preset=self._preset, steps=self._decode, t_edit=0, t_boost=0, output=output)
        return self.editor.decode(latent, edits, **run)

    def size_of_h(self, latent: Latent) -> float:
        """The largest root mean square of h in a decode of the first latent."""
        sizes: list[float] = []
        run = Run(preset=self._preset, steps=self._decode, on_step=lambda step: sizes.append(_size(step)))
        self.editor.decode(latent[0], **run)
        return max(sizes)

    def edit(self, latent: Latent, size: float) -> Float32:
        """A decode with an edit in a fixed random direction. The edit moves z_sem where the model has one. Otherwise an
        asymmetric Δh moves h. size: the root mean square of h.
        """
        rng = np.random.default_rng(0)
        if latent.z_sem is not None:
            moved = latent.z_sem + _MOVE_Z * latent.z_sem.std() * rng.standard_normal(latent.z_sem.shape)
            return self.decode(Latent(latent.x_T, moved.astype(np.float32), provenance=latent.provenance))
        table = rng.standard_normal((1, *h_shape(self.editor.bundle)[:3]), dtype=np.float32)
        table *= np.float32(_MOVE_H * size)
        zero = np.zeros(1, np.int64)
        self.editor.attributes["/accuracy"] = DeltaTable(zero, table, None, Branch.ASYMMETRIC)
        return self.decode(latent, {"/accuracy": 1.0})


def _size(step: Step) -> float:
    """The root mean square of h."""
    assert step.h is not None
    return float(np.sqrt(np.mean(np.square(step.h.astype(np.float64)))))


def _affordable(planner: Planner, preset: str, steps: int) -> int:
    """The preset's own number of steps, or the largest number up to `_MOST_STEPS` that its spacing allows."""
    if steps > _MOST_STEPS:
        for n in range(_MOST_STEPS, 1, -1):
            with suppress(ArgumentError):
                return planner.plan(preset, n).decode_steps
    return steps


def _psnr(a: Float32, b: Float32) -> float:
    """The least PSNR over images (float32 [N, 3, H, W], clamped to [−1, 1])."""
    error = np.square(np.clip(a, -1, 1) - np.clip(b, -1, 1)).mean(axis=(1, 2, 3), dtype=np.float64)
    if not np.isfinite(error).all():
        raise NotFinite("accuracy: a run's result is not finite")
    with np.errstate(divide="ignore"):
        return round(min(_MOST_PSNR, float(10 * np.log10(4 / error.max()))), 2)
