"""Asyrp's indicators: how far P_t and x_t are from x_0, against t; and the t_edit and t_boost that follow.

Source: Kwon et al. 2023, section 3.4 and appendix; the official code's `compute_lpips_distance`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from hspace.arrays import Float32
from hspace.editor import Editor
from hspace.engines import privacy
from hspace.errors import EngineError
from hspace.files import read_file, write_atomically
from hspace.image import load_images
from hspace.onnx_graph import check_graph
from hspace.onnx_scan import check_onnx
from hspace.runs import OnStep, Step
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

_matplotlib = privacy.matplotlib()


class Distance(Protocol):
    """A distance between images. name: what it is, for people. t_edit, t_boost: the thresholds that it goes with.
    most: what it never exceeds.
    """

    name: str
    t_edit: float
    t_boost: float
    most: float

    def __call__(self, a: Float32, b: Float32) -> NDArray[np.float64]:
        """float32 [N, 3, H, W] in [−1, 1], twice → [N]."""
        ...


class Structural:
    """1 − SSIM (Wang et al. 2004; 7×7 windows). Its thresholds are hspace's own, not the paper's."""

    name = "structural, 1 - SSIM"
    t_edit, t_boost, most = 0.33, 0.75, 2.0

    def __call__(self, a: Float32, b: Float32) -> NDArray[np.float64]:
        ssim: Callable[..., float] = structural_similarity
        return np.array([1 - ssim(x, y, channel_axis=0, data_range=2.0) for x, y in zip(a, b, strict=True)])


class Lpips:
    """LPIPS (Zhang et al. 2018) from an ONNX file with inputs a, b and output distance; see `hspace export lpips`."""

    t_edit, t_boost, most = 0.33, 1.2, np.inf  # Kwon et al. 2023

    def __init__(self, path: Path, size: int) -> None:
        self.name, self._path = f"LPIPS, {path.name}", path
        data = read_file(path, EngineError)
        check_onnx(data, str(path))
        check_graph(data, str(path))
        try:
            self._session = privacy.onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception:  # ONNX Runtime's errors are of many types, and their text is not for our users
            raise EngineError(f"{path}: expected an ONNX graph that ONNX Runtime can load") from None
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        signature = {i.name: (i.type, i.shape[1:]) for i in inputs}, [o.name for o in outputs]
        image = "tensor(float)", [3, size, size]
        if signature != ({"a": image, "b": image}, ["distance"]):
            shown = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
            raise EngineError(
                f"{path}: found inputs {shown} and outputs {', '.join(signature[1])}, expected a and b, "
                f"tensor(float) [N, 3, {size}, {size}], and distance"
            )

    def __call__(self, a: Float32, b: Float32) -> NDArray[np.float64]:
        try:
            distances: NDArray[np.float64] = (
                self._session.run(None, {"a": a, "b": b})[0].astype(np.float64).reshape(len(a))
            )
        except Exception:  # as above
            raise EngineError(f"{self._path}: cannot be evaluated for {len(a)} pairs of images") from None
        if not np.isfinite(distances).all():
            raise EngineError(f"{self._path}: gave distances that are not finite")
        return distances


@dataclass(frozen=True)
class Curves:
    """Mean and standard deviation over images of both distances, float64 [K], at timesteps int64 [K], ascending."""

    distance: str
    images: int
    timesteps: NDArray[np.int64]
    to_p: tuple[NDArray[np.float64], NDArray[np.float64]]
    to_x: tuple[NDArray[np.float64], NDArray[np.float64]]

    def first(self, curve: tuple[NDArray[np.float64], NDArray[np.float64]], threshold: float) -> int | None:
        """The first timestep whose mean distance is at least the threshold; None where none is."""
        reached = np.flatnonzero(curve[0] >= threshold)
        return int(self.timesteps[reached[0]]) if reached.size else None

    def json(self) -> dict[str, Any]:
        return {
            "distance": self.distance,
            "images": self.images,
            "timesteps": self.timesteps.tolist(),
            "x_0 to P_t": {"mean": self.to_p[0].tolist(), "std": self.to_p[1].tolist()},
            "x_0 to x_t": {"mean": self.to_x[0].tolist(), "std": self.to_x[1].tolist()},
        }


def measure(
    editor: Editor,
    files: Sequence[Path],
    distance: Distance,
    *,
    preset: str | None = None,
    steps: int | None = None,
    resize: bool = False,
    on_step: OnStep | None = None,
) -> Curves:
    """The distances of P_t and of x_t from x_0 over the inversions of images.

    Both stand at the timestep whose level x_t has, which is not what the network is told in inversions that tell it the
    upper end (the official code files P_t one step later). A state at ᾱ = 1, the image itself, is left out.
    """
    rows = editor.program("encode", preset=preset, steps=steps).rows
    alphas_cumprod = editor.bundle.manifest.schedules.image.build().alphas_cumprod
    levels = {  # by what the network is told
        int(row["t"]): int(np.abs(alphas_cumprod - float(row["alpha"]) ** 2).argmin()) for row in rows if row["sigma"]
    }
    timesteps = np.array(sorted(levels.values()), dtype=np.int64)
    distances = np.zeros((2, len(timesteps), len(files)))
    for first in range(0, len(files), editor.batch_size):
        x_0 = load_images(list(files[first : first + editor.batch_size]), editor.size, resize=resize)

        def measured(step: Step, x_0: Float32 = x_0, first: int = first) -> bool | None:
            here = np.flatnonzero([int(t) in levels for t in step.t])
            if here.size:
                k, image = np.searchsorted(timesteps, [levels[int(t)] for t in step.t[here]]), step.image[here]
                distances[0, k, first + image] = distance(step.x_0[here], x_0[image])
                distances[1, k, first + image] = distance(step.x[here], x_0[image])
            return None if on_step is None else on_step(step)

        editor.encode(x_0, preset=preset, steps=steps, on_step=measured)
    mean, std = distances.mean(axis=2), distances.std(axis=2)
    return Curves(distance.name, len(files), timesteps, (mean[0], std[0]), (mean[1], std[1]))


def plot(path: Path, curves: Curves, chosen: Sequence[tuple[str, float, int | None]]) -> None:
    """Writes both curves, with thresholds and what they select, as a PNG. chosen: t_edit's, then t_boost's."""
    figure = _matplotlib.figure.Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (mean, std), what, (name, threshold, t) in zip(
        figure.subplots(1, 2), (curves.to_p, curves.to_x), ("P_t", "x_t"), chosen, strict=True
    ):
        axes.fill_between(curves.timesteps, mean - std, mean + std, alpha=0.2, linewidth=0)
        axes.plot(curves.timesteps, mean, label=f"mean of {curves.images} images, ± one standard deviation")
        axes.axhline(threshold, linestyle="--", color="grey", label=f"threshold {threshold:.3g}")
        if t is not None:
            axes.axvline(t, color="tab:red", label=f"{name} = {t}")
        axes.set(title=f"x_0 to {what}", xlabel="t", ylabel=curves.distance)
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
