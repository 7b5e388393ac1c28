"""LPIPS with AlexNet as an ONNX graph, for `hspace calibrate` (Zhang et al. 2018, version 0.1 of its weights)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from hspace.checks import check_whole
from hspace.engines import privacy
from hspace.errors import CheckpointError, OutputError
from hspace.files import check_output, write_atomically
from torch import Tensor, nn
from torch.nn import functional as F

from . import graph
from .checkpoint import check_tensors, load, tensors
from .graph import Part

# (output channels, kernel, stride, padding, max-pooled before) of AlexNet's convolutions (Krizhevsky 2014)
_CONVOLUTIONS = [(64, 11, 4, 2, False), (192, 5, 1, 2, True), (384, 3, 1, 1, True), (256, 3, 1, 1, False)]
_CONVOLUTIONS += [(256, 3, 1, 1, False)]
_INDICES = [0, 3, 6, 8, 10]  # of these in torchvision's `features`
_LEAST, _MOST = 32, 4096  # pixels: less and nothing is left after the pooling, and a bundle has no more


class Lpips(nn.Module):
    """a, b: float [N, 3, H, W] in [−1, 1] → distance, float [N]."""

    def __init__(self) -> None:
        super().__init__()
        channels, self.features = 3, nn.ModuleDict()
        for index, (out, kernel, stride, padding, _) in zip(_INDICES, _CONVOLUTIONS, strict=True):
            self.features[str(index)] = nn.Conv2d(channels, out, kernel, stride, padding)
            channels = out
        self.lin = nn.ModuleList(nn.Conv2d(out, 1, 1, bias=False) for out, *_ in _CONVOLUTIONS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1), persistent=False)

    def forward(self, *inputs: Tensor) -> Tensor:
        x, y = ((i - self.shift) / self.scale for i in inputs)  # type: ignore[operator]
        total = x.new_zeros(())
        for conv, lin, (*_, pooled) in zip(self.features.values(), self.lin, _CONVOLUTIONS, strict=True):
            x, y = (F.relu(conv(F.max_pool2d(i, 3, 2) if pooled else i)) for i in (x, y))
            total = total + lin((_unit(x) - _unit(y)) ** 2).mean(dim=(1, 2, 3))
        return total


def _unit(x: Tensor) -> Tensor:
    """Every position's channels at length 1."""
    return x / ((x**2).sum(dim=1, keepdim=True).sqrt() + 1e-10)


def export_lpips(backbone: Path, output: Path, *, size: int, linear: Path | None = None, force: bool = False) -> float:
    """Writes LPIPS for size × size images to an ONNX file; returns its relative difference to PyTorch.

    backbone: torchvision's AlexNet weights (alexnet-owt-….pth). linear: LPIPS's own (alex.pth), by default those that
    the installed package `lpips` brings.
    """
    if check_output(output) and not force:
        raise OutputError(f"{output}: exists already (--force replaces it)")
    check_whole("image_size", size, _LEAST, _MOST)
    linear = _package_weights() if linear is None else linear
    net = Lpips().eval()
    state = {f"features.{k}": v for k, v in tensors(load(backbone), backbone, "features.").items()}
    check_tensors(backbone, {f"features.{k}": v for k, v in net.features.state_dict().items()}, state, "AlexNet")
    lin = tensors(load(linear), linear)
    expected = {f"lin{i}.model.1.weight": layer.weight for i, layer in enumerate(net.lin)}
    check_tensors(linear, expected, lin, "LPIPS's linear layers for AlexNet")  # type: ignore[arg-type]
    net.load_state_dict(state | {f"lin.{i}.weight": lin[name] for i, name in enumerate(expected)})
    spec: tuple[str, tuple[int | str, ...]] = ("float32", ("N", 3, size, size))
    part = Part(net, {"a": spec, "b": spec}, {"distance": "float32"})
    data = graph.trace(part, "fp32").SerializeToString(deterministic=True)
    session = privacy.onnxruntime().InferenceSession(data, providers=["CPUExecutionProvider"])
    error = max(graph.compare("lpips", part, lambda _, x: list(session.run(None, dict(x))), 3, seed=1).values())
    if not error <= 1e-5:
        raise CheckpointError(f"the export differs from PyTorch: relative error {error:.2e}, expected at most 1e-05")
    write_atomically(output, data)
    return error


def _package_weights() -> Path:
    """The linear layers in the package `lpips`, found without importing it (which would import torchvision)."""
    spec = importlib.util.find_spec("lpips")
    path = Path(spec.origin).parent / "weights" / "v0.1" / "alex.pth" if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise CheckpointError("the package lpips is not installed, so its weights are missing; give --linear alex.pth")
    return path
