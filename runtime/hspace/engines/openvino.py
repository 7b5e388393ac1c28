"""OpenVINO on the CPU: the U-Net in bfloat16 where the processor multiplies matrices in it, or in float32.

Three things make it fast, each measured in docs/decisions/0011:

- Graphs are compiled for fixed batch sizes, at their first use; a batch runs as chunks whose sizes are powers of two,
  and an edit's second branch as a run of its own: a head for both would hold its weights once more.
- Between trunk and head the skips stay in the layout and the type that both compute in. What `run` returns for them
  is this engine's own, to be given to the head and for nothing else; it holds the trunk's buffers until it is let go.
- In bfloat16, a GroupNorm is a scale and a shift for each channel, from sums over positions: as the exporter writes it
  (Reshape, InstanceNormalization, Reshape), every one of them would turn the whole state into another layout and back.

Norms' statistics, softmax and the timestep's angles are float32 whatever the network's type is. The encoder and the
latent DDIM's network, which run once a call or cost nothing, are float32 throughout.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError, EngineError
from ..manifest import Component
from . import cache, cpu
from .signature import check_signature

_DTYPES = {"float32": "f32", "float16": "f16", "int32": "i32", "int64": "i64"}
_LARGEST = 65536  # positions of the state, over a chunk: beyond that a larger batch is no faster, and needs more memory
_FORM = 2  # of the compiled graphs that are cached: to be raised where `_build` changes what they compute


def unavailable() -> str | None:
    """Whether openvino is there, loads, and offers this CPU."""
    try:
        import openvino as ov
    except ModuleNotFoundError:
        return "the package openvino is not installed"
    except ImportError:
        return "the package openvino is installed but does not load"
    return None if "CPU" in ov.Core().available_devices else "OpenVINO offers no CPU device on this machine"


def precisions(bundle: Bundle) -> tuple[str, ...]:
    """The graphs' own, and bfloat16 where the processor multiplies matrices in it."""
    import openvino as ov

    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    own: str = bundle.component("trunk").precision
    return (own, "bf16") if "BF16" in able else (own,)


def open_engine(bundle: Bundle, threads: int | None, precision: str) -> OpenVinoEngine:
    """Every component verified, and compiled for one sample but for the latent DDIM's network, which `sample` compiles.

    Raises BundleError for a graph that is not what the manifest says.
    """
    return OpenVinoEngine(bundle, threads, precision)


@dataclass(eq=False)
class _Compiled:
    """A component for one batch size. A request has buffers of its own: one for each call that is under way.

    weights: the mapped file that the model may read, or None where it has its own.
    """

    model: Any
    weights: Any = None
    idle: list[Any] = field(default_factory=list)

    def request(self) -> Any:
        try:
            return self.idle.pop()
        except IndexError:
            return self.model.create_infer_request()


class _Chunk:
    """Samples first … first + size − 1 of a trunk's batch, and their skips as tensors by name.

    lent: the trunk whose request's buffers the skips are in, and that request, which goes back to it with the chunk.
    """

    def __init__(self, first: int, size: int, skips: dict[str, Any], lent: tuple[_Compiled, Any] | None = None) -> None:
        self.first, self.size, self.skips, self.lent = first, size, skips, lent

    def __del__(self) -> None:
        if self.lent is not None:
            compiled, request = self.lent
            self.skips.clear()
            compiled.idle.append(request)


class OpenVinoEngine:
    """See the module. `run` may be called from several threads. precision: of the U-Net, "bf16" or the graphs' own."""

    name = "openvino"
    device = "cpu"
    batch_pixels = 2**16

    def __init__(self, bundle: Bundle, threads: int | None, precision: str) -> None:
        import openvino as ov

        self._ov, self._core, self._bundle = ov, ov.Core(), bundle
        self.precision = precision
        self._threads = threads or cpu.usable_cores()
        self._components = bundle.manifest.components
        self._largest = max(1, _LARGEST // bundle.manifest.image.size**2)
        self._compiled: dict[tuple[str, int, int], _Compiled] = {}
        self._lock = threading.Lock()
        for name in self._components:
            if name == "latent":  # what edits do not use takes no memory until it is used
                bundle.read_component(name)
            else:
                self._compile(name, 1)

    def run(self, component: str, inputs: Mapping[str, Any]) -> list[Any]:
        spec = self._components[component]
        try:
            return self._head(spec, inputs) if component == "head" else self._run(component, spec, inputs)
        except (RuntimeError, ValueError) as e:  # OpenVINO's errors, and NumPy's of a shape
            shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in inputs.items() if isinstance(v, np.ndarray))
            raise EngineError(f"engine openvino: component {component} failed on {shapes}") from e

    def _run(self, component: str, spec: Component, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        chunks, parts = [], []
        for first, size in self._split(len(inputs[spec.inputs[0].name])):
            compiled = self._compile(component, size)
            request = compiled.request()
            for i in spec.inputs:
                data = request.get_tensor(i.name).data
                data[...] = np.reshape(inputs[i.name][first : first + size], data.shape)
            request.infer()
            parts.append([None if _is_skip(o.name) else request.get_tensor(o.name).data.copy() for o in spec.outputs])
            skips = {o.name: request.get_tensor(o.name) for o in spec.outputs if _is_skip(o.name)}
            chunks.append(_Chunk(first, size, skips, (compiled, request)))
        return [
            chunks if _is_skip(o.name) else np.concatenate(each) if len(each) > 1 else each[0]
            for o, each in zip(spec.outputs, zip(*parts, strict=True), strict=True)
        ]

    def _head(self, spec: Component, inputs: Mapping[str, Any]) -> list[NDArray[Any]]:
        kept = inputs["skip_0"]
        chunks = self._chunks(spec, inputs) if isinstance(kept, np.ndarray) else kept
        source: NDArray[np.int64] = np.asarray(inputs["source"], dtype=np.int64)
        out = np.empty((len(source), *[int(d) for d in spec.outputs[0].shape[1:]]), dtype=spec.outputs[0].dtype)
        turn = _turns(source)
        for chunk in chunks:
            here = (source >= chunk.first) & (source < chunk.first + chunk.size)
            for k in range(turn[here].max(initial=-1) + 1):
                rows = np.flatnonzero(here & (turn == k))
                rows = rows[np.argsort(source[rows])]
                # all of the chunk's samples in order, or some: as many as a power of two, the last ones for nobody
                m = 0 if len(rows) == chunk.size else 1 << (len(rows) - 1).bit_length()
                compiled = self._compile("head", chunk.size, m)
                request = compiled.request()
                for i in spec.inputs:
                    if _is_skip(i.name):
                        request.set_tensor(i.name, chunk.skips[i.name])
                    elif i.shape[0] == "N":
                        first = chunk.first
                        request.get_tensor(i.name).data[...] = inputs[i.name][first : first + chunk.size]
                    else:
                        given = np.asarray(inputs[i.name])[np.resize(rows, m or chunk.size)]
                        request.get_tensor(i.name).data[...] = given - (chunk.first if i.name == "source" else 0)
                request.infer()
                out[rows] = request.get_tensor(spec.outputs[0].name).data[: len(rows)]
                compiled.idle.append(request)
        return [out]

    def _split(self, count: int) -> Iterator[tuple[int, int]]:
        """Chunks as (first, size): the largest first, then the powers of two that are left."""
        first = 0
        while first < count:
            size = min(self._largest, 1 << ((count - first).bit_length() - 1))
            yield first, size
            first += size

    def _chunks(self, spec: Component, inputs: Mapping[str, NDArray[Any]]) -> list[_Chunk]:
        """Skips that come as arrays, [N, C, H, W], in this engine's form."""
        chunks = []
        for first, size in self._split(len(inputs["skip_0"])):
            model = self._compile("head", size).model
            skips = {}
            for i in spec.inputs:
                if _is_skip(i.name):
                    tensor = self._ov.Tensor(model.input(i.name).element_type, model.input(i.name).shape)
                    array = np.asarray(inputs[i.name][first : first + size], dtype=i.dtype)
                    if _is_wide(i.shape):
                        array = array.transpose(0, 2, 3, 1)
                    if tensor.element_type == self._ov.Type.bf16:  # NumPy has none: rounded to nearest, ties to even
                        bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
                        halves = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
                        tensor.data.view(np.uint16)[...] = halves.astype(np.uint16)
                    else:
                        tensor.data[...] = array
                    skips[i.name] = tensor
            chunks.append(_Chunk(first, size, skips))
        return chunks

    # --- compiling ------------------------------------------------------------------------------------

    def _compile(self, component: str, n: int, m: int = 0) -> _Compiled:
        """The component for n samples, from the cache if it is there. m: how many the head has of its own, or 0 where
        each of the trunk's has one, in their order, and nothing has to be gathered.
        """
        key = component, n, m
        with self._lock:
            if key not in self._compiled:
                bf16 = self.precision == "bf16" and component in ("trunk", "head")
                config = {
                    "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                    "PERFORMANCE_HINT": "LATENCY",
                    "NUM_STREAMS": "1",
                    "INFERENCE_NUM_THREADS": str(self._threads),
                }
                self._compiled[key] = self._load(component, n, m, bf16, config)
            return self._compiled[key]

    def _load(self, component: str, n: int, m: int, bf16: bool, config: dict[str, str]) -> _Compiled:
        spec = self._components[component]
        where = f"{self._bundle.folder / spec.file}"
        device = self._core.get_property("CPU", "FULL_DEVICE_NAME")
        capabilities = sorted(self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
        of = (_FORM, self._ov.__version__, device, capabilities, sorted(config.items()), spec.sha256, n, m)
        entry = cache.Entry("openvino", cache.key(*of))
        imported = self._import(entry, config)
        if imported is not None:
            self._bundle.check(spec)  # what it was made of has to be as it was
            return imported
        try:
            model = self._core.read_model(self._bundle.read_component(component))
        except RuntimeError as e:
            raise BundleError(f"{where}: OpenVINO cannot load this graph") from e
        sides = [
            [(p.any_name, p.element_type.get_type_name(), _dimensions(p)) for p in ports]
            for ports in (model.inputs, model.outputs)
        ]
        check_signature(spec, sides[0], sides[1], _DTYPES, where)
        try:
            compiled = self._core.compile_model(self._build(model, spec, n, m, bf16), "CPU", config)
        except RuntimeError as e:
            raise BundleError(f"{where}: OpenVINO cannot compile this graph") from e
        del model
        entry.write(compiled.export_model().getbuffer())
        return self._import(entry, config) or _Compiled(compiled)  # which holds the weights twice

    def _import(self, entry: cache.Entry, config: dict[str, str]) -> _Compiled | None:
        """What `entry` holds, or None. The library packs the weights that it finds in the mapped file, and seldom
        returns to them: their pages are given back at once, and are read again where they are wanted.
        """
        found = entry.map()
        if found is None:
            return None
        whole, blob = found
        try:
            shared = self._ov.Tensor(np.frombuffer(blob, np.uint8), shared_memory=True)
            compiled = self._core.import_model(shared, "CPU", config)
        except RuntimeError:  # a blob that this library does not take
            return None
        if hasattr(whole, "madvise"):
            whole.madvise(mmap.MADV_DONTNEED)
        return _Compiled(compiled, whole)

    def _build(self, model: Any, spec: Component, n: int, m: int, bf16: bool) -> Any:
        """The graph for n and m samples, with its skips in the network's own form."""
        ov = self._ov
        model.reshape({i.name: [{"N": n, "M": m or n}.get(str(d), d) for d in i.shape] for i in spec.inputs})
        if m == 0 and any(i.name == "source" for i in spec.inputs):
            for node in model.get_ordered_ops():
                if node.get_type_name() == "Gather" and "source" in _names_above(node.input_value(1)):
                    for user in node.output(0).get_target_inputs():
                        user.replace_source_output(node.input_value(0))
        if bf16:
            keep = _Float32(self._core)
            _scale_and_shift(model, keep)
            for node in model.get_ordered_ops():
                if node.get_type_name() == "Softmax":
                    keep(node)
            if any(o.name == "temb" for o in spec.outputs):
                _widen(model, n)
                _embed(model.output("temb").get_node().input_value(0), keep)
        form = ov.preprocess.PrePostProcessor(model)
        for ports, of in ((spec.inputs, form.input), (spec.outputs, form.output)):
            for port in ports:
                if _is_skip(port.name) and _is_wide(port.shape):
                    side = of(port.name)
                    side.tensor().set_layout(ov.Layout("NHWC"))
                    side.model().set_layout(ov.Layout("NCHW"))
                    if bf16:
                        side.tensor().set_element_type(ov.Type.bf16)
        built = form.build()
        if bf16:
            _stay_channels_last(built)
        return built


def _turns(source: NDArray[np.int64]) -> NDArray[np.int64]:
    """Of every head sample, how many before it read the same trunk sample: an edit's second branch is 1."""
    order = np.argsort(source, kind="stable")
    ordered = source[order]
    turns = np.empty_like(source)
    turns[order] = np.arange(len(source)) - np.searchsorted(ordered, ordered)
    return turns


def _is_skip(name: str) -> bool:
    return name.startswith("skip_")


def _is_wide(shape: list[Any]) -> bool:
    """Whether it is a feature map; what else a trunk hands on (the state, a level) stays as it is."""
    return len(shape) == 4 and int(shape[1]) >= 16


def _dimensions(port: Any) -> list[int | None]:
    return [None if d.is_dynamic else d.get_length() for d in port.partial_shape]


class _Float32:
    """Marks nodes that compute in float32 whatever the graph's type is. Only OpenVINO's own file format can say so."""

    _GRAPH = """<?xml version="1.0"?><net name="mark" version="11"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1" element_type="f32"/>
<output><port id="0" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="1" name="mark" type="Sin" version="opset1"><rt_info><attribute name="precise" version="0"/></rt_info>
<input><port id="0" precision="FP32"><dim>1</dim></port></input>
<output><port id="1" precision="FP32"><dim>1</dim></port></output></layer>
<layer id="2" name="r" type="Result" version="opset1">
<input><port id="0" precision="FP32"><dim>1</dim></port></input></layer></layers>
<edges><edge from-layer="0" from-port="0" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""

    def __init__(self, core: Any) -> None:
        nodes = core.read_model(self._GRAPH.encode()).get_ops()
        self._marks = next(dict(n.get_rt_info().items()) for n in nodes if n.get_type_name() == "Sin")

    def __call__(self, node: Any) -> Any:
        for key, value in self._marks.items():
            node.set_rt_info(value, key)
        return node


def _names_above(value: Any) -> set[str]:
    """The parameters that a value is made of."""
    node = value.get_node()
    if node.get_type_name() == "Parameter":
        return {node.get_friendly_name()}
    return set().union(*(_names_above(v) for v in node.input_values()))


def _widen(model: Any, n: int) -> None:
    """Makes t float32 [N, 1] from the start: to convert and to reshape cannot be marked, and would round it."""
    t = model.input("t").get_node()
    wide = next(
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Unsqueeze", "Reshape")
        and list(node.get_output_shape(0)) == [n, 1]
        and "t" in _names_above(node.input_value(0))
    )
    t.set_element_type(wide.get_element_type())
    t.set_partial_shape(wide.get_output_partial_shape(0))
    for user in wide.output(0).get_target_inputs():
        user.replace_source_output(t.output(0))
    model.validate_nodes_and_infer_types()


def _embed(value: Any, keep: _Float32) -> None:
    """Keeps the timestep's embedding in float32: all that `value` is made of. Angles of hundreds need the digits.

    Its matrix products become 1×1 convolutions, since only those can be marked.
    """
    from openvino import opset13 as op

    node = value.get_node()
    if node.get_type_name() in ("Parameter", "Constant"):
        return
    keep(node)
    for above in node.input_values():
        _embed(above, keep)
    if node.get_type_name() == "MatMul":
        x, w = node.input_values()
        if node.get_attributes()["transpose_b"] is False:
            w = op.transpose(w, op.constant(np.array([1, 0]))).output(0)
        n, c, out = x.get_shape()[0], x.get_shape()[1], node.get_output_shape(0)[1]
        image = keep(op.reshape(x, op.constant(np.array([n, c, 1, 1])), False))
        kernel = op.reshape(w, op.constant(np.array([out, c, 1, 1])), False)
        y = keep(op.convolution(image, kernel, [1, 1], [0, 0], [0, 0], [1, 1]))
        flat = keep(op.reshape(y, op.constant(np.array([n, out])), False))
        for user in node.output(0).get_target_inputs():
            user.replace_source_output(flat.output(0))


def _scale_and_shift(model: Any, keep: _Float32) -> None:
    """Every GroupNorm's normalisation, Reshape → MVN → … → Reshape in the graph, as x·a + b with a and b [N, C, 1, 1].

    With m and q a channel's mean and mean square over positions, averaged over a group: a = 1/sqrt(q − m² + eps),
    b = −m·a. The sums are float32, so q − m² loses less than the state's own rounding to bfloat16.
    """
    from openvino import opset13 as op
    from openvino.passes import ConstantFolding, Manager

    folding = Manager()
    folding.register_pass(ConstantFolding())
    folding.run_passes(model)
    for node in model.get_ordered_ops():
        found = _group_norm(node)
        if found is None:
            continue
        x, after, groups = found
        shape = list(x.get_shape())
        n, c, positions = shape[0], shape[1], int(np.prod(shape[2:]))
        axes, within = op.constant(np.arange(2, len(shape))), op.constant(np.array([2]))
        by_group, by_channel = (
            op.constant(np.array(s)) for s in ([n, groups, c // groups], [n, c, *[1] * len(shape[2:])])
        )
        m = keep(op.reduce_mean(keep(op.reshape(op.reduce_mean(x, axes, True), by_group, False)), within, True))
        norm = keep(op.reshape(op.reduce_l2(x, axes, True), by_group, False))
        q = keep(op.reduce_mean(keep(op.multiply(norm, norm)), within, True))
        variance = keep(
            op.subtract(keep(op.multiply(q, op.constant(np.float32(1 / positions)))), keep(op.multiply(m, m)))
        )
        deviation = keep(op.sqrt(keep(op.add(variance, op.constant(np.float32(node.get_attributes()["eps"]))))))
        each = op.constant(np.ones((1, 1, c // groups), dtype=np.float32))
        a = keep(op.divide(each, deviation))
        b = keep(op.multiply(keep(op.multiply(m, a)), op.constant(np.float32(-1))))
        a, b = (op.reshape(i, by_channel, False) for i in (a, b))
        y = op.add(op.multiply(x, a), b)
        for user in after.output(0).get_target_inputs():
            user.replace_source_output(y.output(0))
    model.validate_nodes_and_infer_types()


def _stay_channels_last(model: Any) -> None:
    """Does on skips as they come, [N, H, W, C], what a head does to them before its convolutions.

    One turn to [N, C, H, W] for norm, activation and shortcut together is a copy, since none of them can take it over
    alone; a turn of its own right before each convolution costs nothing.
    """
    from openvino import opset13 as op

    made = {"Multiply": op.multiply, "Add": op.add, "Sigmoid": op.sigmoid}
    sums = {"ReduceMean": op.reduce_mean, "ReduceL2": op.reduce_l2}
    last: dict[tuple[str, int], Any] = {}  # values [N, C, H, W] by node and output → the same, [N, H, W, C]

    def of(value: Any) -> Any:
        return last.get((value.get_node().get_name(), value.get_index()))

    def beside(value: Any) -> Any:
        """What is joined with a skip: one itself, or numbers for its channels."""
        if of(value) is not None:
            return of(value)
        shape = list(value.get_shape())
        if len(shape) >= 3 and shape[-2:] == [1, 1]:
            return op.reshape(value, op.constant(np.array([*shape[:-3], 1, 1, shape[-3]])), False).output(0)
        return value if int(np.prod(shape)) == 1 else None

    for node in model.get_ordered_ops():
        kind, given = node.get_type_name(), node.input_values()
        if kind == "Transpose" and _is_skip_in(given[0]):
            last[node.get_name(), 0] = given[0]
            continue
        if not any(of(v) is not None for v in given):
            continue
        joined = [beside(v) for v in given]
        if kind in made and None not in joined:
            last[node.get_name(), 0] = made[kind](*joined).output(0)
        elif kind == "Slice" and _constant(given[4]) == [1]:
            last[node.get_name(), 0] = op.slice(joined[0], *given[1:4], op.constant(np.array([3]))).output(0)
        elif kind in sums and _constant(given[1]) == [2, 3]:
            found = sums[kind](joined[0], op.constant(np.array([1, 2])), True)
            shaped = op.reshape(found, op.constant(np.array(node.get_output_shape(0))), False)
            for user in node.output(0).get_target_inputs():
                user.replace_source_output(shaped.output(0))
        else:
            for port in node.inputs():
                if of(port.get_source_output()) is not None:
                    turned = op.transpose(of(port.get_source_output()), op.constant(np.array([0, 3, 1, 2])))
                    port.replace_source_output(turned.output(0))
    model.validate_nodes_and_infer_types()


def _is_skip_in(value: Any) -> bool:
    """Whether it is a skip as the head is given it, or that in the network's type."""
    node = value.get_node()
    if node.get_type_name() == "Convert":
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Parameter" and _is_skip(node.output(0).get_any_name())


def _constant(value: Any) -> list[int] | None:
    """The numbers of a constant, or None."""
    node = value.get_node()
    return node.get_data().reshape(-1).tolist() if node.get_type_name() == "Constant" else None


def _group_norm(node: Any) -> tuple[Any, Any, int] | None:
    """(x, the last node, the number of groups) where `node` is the MVN of a GroupNorm."""
    if node.get_type_name() != "MVN" or node.input_value(0).get_node().get_type_name() != "Reshape":
        return None
    x, after = node.input_value(0).get_node().input_value(0), node
    while after.get_type_name() != "Reshape":  # the InstanceNormalization's own scale and shift: 1 and 0
        users = list(after.output(0).get_target_inputs())
        after = users[0].get_node()
        neutral = {"Multiply": 1, "Add": 0}.get(after.get_type_name())
        other = next((v.get_node() for v in after.input_values() if v.get_node().get_type_name() == "Constant"), None)
        if len(users) != 1 or other is None or (neutral is not None and not (other.get_data() == neutral).all()):
            return None
        if neutral is None and after.get_type_name() != "Reshape":
            return None
    if after.get_output_shape(0) != x.get_shape() or len(x.get_shape()) < 3:
        return None
    return x, after, int(node.get_output_shape(0)[1])
