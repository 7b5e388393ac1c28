"""PyTorch modules to ONNX graphs, and the comparison of the two."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
import torch
from hspace.engines import cache
from hspace.manifest import Tensor as TensorSpec
from numpy.typing import NDArray
from torch import Tensor, nn

from .models.layers import to_half

OPSET = 18
Precision = Literal["fp32", "fp16"]
_SMALL = 1024  # tensors with fewer values stay float32: they weigh nothing
# Images from this size on: smaller convolutions lose more by being split than sharing saves (docs/decisions/0012)
_SHARE_FROM = 128
_TORCH = {"float32": torch.float32, "float16": torch.float16, "int32": torch.int32, "int64": torch.int64}


@dataclass(frozen=True)
class Part:
    """A component before it is traced.

    module: its forward takes the inputs in order and returns the outputs in order, or a single one. inputs: name →
    (dtype, shape), where "float" stands for the graph's precision, and shapes begin with "N" or "M". outputs: their
    names and dtypes likewise.
    """

    module: nn.Module
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]]
    outputs: Mapping[str, str]


class Trunk(nn.Module):
    """(x, t[, z_sem]) → h, temb, skips. All parts take their inputs as one flat list: the exporter wants it so."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        x, t, *z = inputs
        h, temb, skips = self.unet.trunk(x, t, *(i.to(x.dtype) for i in z))  # type: ignore[operator]
        return (h, temb, *skips)


class Head(nn.Module):
    """(h, temb, source, skips…[, z_sem]) → ε's three channels; z_sem is there where `conditional`.

    Where `share`, it is `shared()` that is traced, and compared with this.
    """

    def __init__(self, unet: nn.Module, conditional: bool, share: bool) -> None:
        super().__init__()
        self.unet, self.conditional, self.share = unet, conditional, share

    def forward(self, *inputs: Tensor) -> Tensor:
        h, temb, source, *skips = inputs
        z = [skips.pop().to(h.dtype)] if self.conditional else []
        eps: Tensor = self.unet.head(h, temb, skips, source, *z)  # type: ignore[operator]
        return eps

    def shared(self) -> Head:
        """The same function, but what depends on a skip alone is done once per trunk sample."""
        # a copy of the modules; of the weights, only those that are split are copied
        weights = {id(w): w for w in (*self.parameters(), *self.buffers())}
        made = copy.deepcopy(self, weights)
        made.unet.share_skips()  # type: ignore[operator]
        return made


class InFloat32(nn.Module):
    """A network whose interface is float32 whatever its arithmetic: the encoder and the latent DDIM's."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: Tensor) -> Tensor:
        x, *rest = inputs
        dtype = next(p.dtype for p in self.network.parameters() if p.ndim > 1)
        y: Tensor = self.network(x.to(dtype), *rest)
        return y.float()


def unet_parts(unet: nn.Module, size: int, z_channels: int) -> dict[str, Part]:
    """`trunk` and `head` of a U-Net for size × size images; z_channels is 0 for an unconditional one."""
    z: dict[str, tuple[str, tuple[int | str, ...]]] = {"z_sem": ("float32", ("N", z_channels))} if z_channels else {}
    inputs = {"x": ("float", ("N", 3, size, size)), "t": ("int32", ("N",)), **z}
    with torch.no_grad():
        h, temb, *skips = Trunk(unet)(*_example(inputs, {"N": 1, "M": 1}, "fp32"))
    outputs = {"h": h, "temb": temb, **{f"skip_{i}": s for i, s in enumerate(skips)}}
    trunk = Part(Trunk(unet), inputs, dict.fromkeys(outputs, "float"))
    shapes: dict[str, tuple[str, tuple[int | str, ...]]] = {
        k: ("float", ("N", *v.shape[1:])) for k, v in outputs.items()
    }
    h_spec, temb_spec = ("float", ("M", *h.shape[1:])), shapes.pop("temb")
    del shapes["h"]
    inputs = {"h": h_spec, "temb": temb_spec, "source": ("int64", ("M",)), **shapes, **z}
    return {"trunk": trunk, "head": Part(Head(unet, z_channels > 0, size >= _SHARE_FROM), inputs, {"eps": "float"})}


def _example(
    inputs: Mapping[str, tuple[str, tuple[int | str, ...]]],
    sizes: Mapping[str, int],
    precision: Precision,
    seed: int = 0,
) -> list[Tensor]:
    """Random inputs: Gaussian floats, timesteps over the whole range, sources within the trunk's samples."""
    rng = np.random.default_rng(seed)
    made = []
    for name, (dtype, shape) in inputs.items():
        full = [sizes[d] if isinstance(d, str) else d for d in shape]
        kind = ("float16" if precision == "fp16" else "float32") if dtype == "float" else dtype
        whole = rng.integers(0, sizes["N"] if name == "source" else 1000, full)
        value = rng.standard_normal(full, dtype=np.float32) if kind.startswith("float") else whole
        made.append(torch.from_numpy(value).to(_TORCH[kind]))
    return made


def trace(part: Part, precision: Precision) -> onnx.ModelProto:
    """The part as an ONNX graph with dynamic batches N and M, weights inside. The module itself is left as it is."""
    module = part.module
    if isinstance(module, Head) and module.share:
        module = module.shared()
    if precision == "fp16":
        module = to_half(copy.deepcopy(module))
    dims = {d: torch.export.Dim(d, min=1, max=65536) for d in ("N", "M")}
    sizes = {"N": 2, "M": 3}  # different, and not 1, so that the exporter keeps them apart and dynamic
    dynamic = (tuple({0: dims[str(shape[0])]} for _, shape in part.inputs.values()),)
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of optional packages that no graph here needs
    folder = cache.made("torch")  # else PyTorch makes one in the temporary folder
    if folder is not None:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module.eval(),
                tuple(_example(part.inputs, sizes, precision)),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(part.inputs),
                output_names=list(part.outputs),
                dynamic_shapes=dynamic,
                external_data=False,
                verbose=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    model = program.model_proto
    _strip(model)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Drops what the exporter notes about its own sources: paths of the exporting machine among it."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer]:
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""


def signature(part: Part, model: onnx.ModelProto, precision: Precision) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """The inputs and outputs as the manifest says them."""

    def specs(values: object, dtypes: Mapping[str, str], batch: str | None) -> list[TensorSpec]:
        made = []
        for v in values:  # type: ignore[attr-defined]
            dtype = ("float16" if precision == "fp16" else "float32") if dtypes[v.name] == "float" else dtypes[v.name]
            dims = [d.dim_value or d.dim_param for d in v.type.tensor_type.shape.dim]
            first = str(part.inputs[v.name][1][0]) if batch is None else batch
            made.append(TensorSpec(name=v.name, dtype=dtype, shape=[first, *dims[1:]]))  # type: ignore[arg-type,list-item]
        return made

    inputs = specs(model.graph.input, {k: v[0] for k, v in part.inputs.items()}, None)
    return inputs, specs(model.graph.output, part.outputs, "M" if "source" in part.inputs else "N")


def round_weights(module: nn.Module) -> None:
    """Rounds a network's large weights to float16 values in place, so that storing them so loses no more."""
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim > 1 and p.numel() >= _SMALL:
                p.copy_(p.half().float())


def store_half(model: onnx.ModelProto) -> None:
    """Stores large float32 weights as float16 with a Cast behind each, where that is exact; see `round_weights`."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2 or int(np.prod(tensor.dims)) < _SMALL:
            continue
        value = onnx.numpy_helper.to_array(tensor)
        half = value.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), value):
            continue
        name = tensor.name
        tensor.CopyFrom(onnx.numpy_helper.from_array(half, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*casts, *nodes])


def relative_error(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """‖a − b‖/‖b‖, in float64."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return float(np.linalg.norm(a64 - b64)) / max(float(np.linalg.norm(b64)), 1e-30)


Run = Callable[[str, Mapping[str, NDArray[np.generic]]], list[Any]]


def compare(name: str, part: Part, run: Run, batch: int, seed: int) -> dict[str, float]:
    """Output → relative error of the exported component, evaluated by `run`, to the float32 module on random inputs."""
    inputs = _example(part.inputs, {"N": batch, "M": batch}, "fp32", seed)
    with torch.no_grad():
        expected = part.module.eval()(*inputs)
    got = run(name, {k: v.numpy() for k, v in zip(part.inputs, inputs, strict=True)})
    each = expected if isinstance(expected, tuple) else (expected,)
    got = [g if isinstance(g, np.ndarray) else g.numpy() for g in got]  # skips are the engine's own
    return {
        output: relative_error(g.astype(np.float32), e.numpy())
        for output, g, e in zip(part.outputs, got, each, strict=True)
    }
