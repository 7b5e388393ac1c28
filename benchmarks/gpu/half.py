"""An FP32 bundle as an FP16 one, without the checkpoint that it was made from.

The exporter traces FP16 graphs from PyTorch's modules. Here ONNX Runtime's converter makes them from the FP32 graphs,
with the same in float32: the norms, the softmax, the timesteps' sinusoid, and z_sem where it comes in. Unlike the
exporter's, the norms' scale and shift are float16.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime
from hspace.bundle import Bundle, file_entry, write_manifest
from hspace.manifest import Component
from onnx import numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

FLOAT32 = ("InstanceNormalization", "Softmax", "Sin", "Cos")  # the first is what GroupNorm is exported as
KEPT = ("z_sem",)  # of the inputs; as in the exporter's FP16 graphs


def to_half(source: Path, folder: Path) -> Path:
    """Writes the bundle `source` to `folder`, unless it is there, with the U-Net in FP16; returns `folder`."""
    if folder.exists():
        return folder
    bundle, made = Bundle(source), folder.with_name(f"{folder.name}.part")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(source, made)
    components = dict(bundle.manifest.components)
    for name in ("trunk", "head"):
        graph = convert(bundle.read_component(name))
        file = components[name].file
        (made / file).write_bytes(graph.SerializeToString(deterministic=True))
        components[name] = _half(components[name], file_entry(made, file))
    provenance = bundle.manifest.provenance
    exporter = f"{provenance.exporter}, float16 by onnxruntime {onnxruntime.__version__}"
    provenance = msgspec.structs.replace(provenance, exporter=exporter)
    write_manifest(made, msgspec.structs.replace(bundle.manifest, components=components, provenance=provenance))
    made.rename(folder)
    return folder


def convert(data: bytes) -> onnx.ModelProto:
    """A component's FP32 graph in FP16, inputs and outputs as well, but for `KEPT`."""
    model = onnx.load_model_from_string(data)
    made_by = {output: node for node in model.graph.node for output in node.output}
    float32: list[str] = []  # the nodes that lead from t to the sinusoid: float16 holds no such angles
    queue = [node for node in model.graph.node if node.op_type in ("Sin", "Cos")]
    while queue:
        node = queue.pop()
        float32.append(node.name)
        queue += [made_by[i] for i in node.input if i in made_by]
    half: onnx.ModelProto = convert_float_to_float16(
        model,
        keep_io_types=list(KEPT),
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT32],
        node_block_list=float32,
    )
    _keep_scales(half.graph)
    OnnxModel.graph_topological_sort(half.graph)  # it puts its casts at the end, after what reads them
    return half


def _keep_scales(graph: onnx.GraphProto) -> None:
    """Gives Resize its scales as the constants that they were, where they were made float16 and are cast back."""
    constants = {i.name: i for i in graph.initializer}
    casts = {n.output[0]: n for n in graph.node if n.op_type == "Cast" and n.input[0] in constants}
    for node in graph.node:
        cast = casts.get(node.input[2]) if node.op_type == "Resize" else None
        if cast is not None:
            scales = numpy_helper.to_array(constants[cast.input[0]]).astype(np.float32)
            graph.initializer.append(numpy_helper.from_array(scales, f"{node.name}_scales"))
            node.input[2] = f"{node.name}_scales"


def _half(spec: Component, entry: dict[str, Any]) -> Component:
    """The manifest's entry of a converted component."""
    sides = {
        side: [
            msgspec.structs.replace(t, dtype="float16") if t.dtype == "float32" and t.name not in KEPT else t
            for t in getattr(spec, side)
        ]
        for side in ("inputs", "outputs")
    }
    return msgspec.structs.replace(spec, **entry, **sides, precision="fp16", weights="fp16")
