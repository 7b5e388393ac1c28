"""How OpenVINO's graphs are rewritten before they are compiled, so that bfloat16 is fast and accurate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import BundleError
from ..manifest import Component

WIDE_T = "t in float32"  # an input of the rewritten trunk


def is_skip(name: str) -> bool:
    return name.startswith("skip_")


def is_wide(shape: list[Any]) -> bool:
    """Whether it is a feature map; what else a trunk hands on (the state, a level) stays as it is."""
    return len(shape) == 4 and int(shape[1]) >= 16


@dataclass(frozen=True)
class Size:
    """How many samples a graph is compiled for: n of the trunk's, and m of the head's.

    gathers: whether `source` says which trunk sample each of the head's reads. Where it does not, m is n, and each
    reads its own.
    """

    n: int
    m: int
    gathers: bool = True

    @classmethod
    def plain(cls, n: int) -> Size:
        """n samples, of which nothing is gathered."""
        return cls(n, n, gathers=False)


def build(core: Any, model: Any, spec: Component, size: Size, bf16: bool, where: str) -> Any:
    """The graph for that many samples, with its skips in the network's own form.

    Raises BundleError, which names the file `where`, for a source that chooses among too few rows.
    """
    from openvino import Layout, Type
    from openvino.preprocess import PrePostProcessor

    model.reshape({i.name: [{"N": size.n, "M": size.m}.get(str(d), d) for d in i.shape] for i in spec.inputs})
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Gather" and "source" in names_above(node.input_value(1)):
            rows = node.input_value(0).get_shape()[0]
            if rows < size.n:  # the library would read what is beside them
                raise BundleError(f"{where}: source is of {size.n} samples, and chooses among {rows} rows")
            if not size.gathers:
                for user in node.output(0).get_target_inputs():
                    user.replace_source_output(node.input_value(0))
    if bf16:
        _for_bfloat16(core, model, spec, size.n)
    form = PrePostProcessor(model)
    for ports, of in ((spec.inputs, form.input), (spec.outputs, form.output)):
        for port in ports:
            if is_skip(port.name) and is_wide(port.shape):
                side = of(port.name)
                side.tensor().set_layout(Layout("NHWC"))
                side.model().set_layout(Layout("NCHW"))
                if bf16:
                    side.tensor().set_element_type(Type.bf16)
    built = form.build()
    if bf16:
        stay_channels_last(built)
    return built


def _for_bfloat16(core: Any, model: Any, spec: Component, n: int) -> None:
    """Norms as a scale and a shift; and in float32 what needs the digits."""
    keep = KeepFloat32(core)
    scale_and_shift(model, keep)
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Softmax":
            keep(node)
    keep_around(model, keep)
    if any(o.name == "temb" for o in spec.outputs):
        widen(model, n)
        embed(model.output("temb").get_node().input_value(0), keep)


class KeepFloat32:
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


def names_above(value: Any) -> set[str]:
    """The parameters that a value is made of."""
    node = value.get_node()
    if node.get_type_name() == "Parameter":
        return {node.get_friendly_name()}
    return set().union(*(names_above(v) for v in node.input_values()))


def widen(model: Any, n: int) -> None:
    """Gives the timestep's embedding t in float32 [N, 1] by an input of its own, `WIDE_T`: to convert and to reshape
    cannot be marked, and would round it. What else reads t goes on reading whole numbers.
    """
    from openvino import opset13 as op

    wide = next(
        node
        for node in model.get_ordered_ops()
        if node.get_type_name() in ("Unsqueeze", "Reshape")
        and list(node.get_output_shape(0)) == [n, 1]
        and "t" in names_above(node.input_value(0))
    )
    given = op.parameter([n, 1], wide.get_element_type(), name=WIDE_T)
    given.output(0).set_names({WIDE_T})
    for user in wide.output(0).get_target_inputs():
        user.replace_source_output(given.output(0))
    model.add_parameters([given])
    model.validate_nodes_and_infer_types()


def keep_around(model: Any, keep: KeepFloat32) -> None:
    """Keeps in float32 what is computed of a state or a level that is handed on beside the features: a prediction that
    is turned into ε. names: those skips.
    """
    reached = set()
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "Parameter":
            of_it = is_skip(name) and not is_wide(list(node.get_output_shape(0)))
        else:
            of_it = any(v.get_node().get_friendly_name() in reached for v in node.input_values())
        if of_it:
            reached.add(name)
            if node.get_type_name() not in ("Parameter", "Result"):
                keep(node)
    for result in model.get_results():
        name = result.output(0).get_any_name() if result.output(0).get_names() else ""
        if is_skip(name) and not is_wide(list(result.get_output_shape(0))):
            _keep_all(result.input_value(0), keep)


def _keep_all(value: Any, keep: KeepFloat32) -> None:
    """Keeps in float32 all that a value is made of."""
    node = value.get_node()
    if node.get_type_name() not in ("Parameter", "Constant"):
        keep(node)
        for above in node.input_values():
            _keep_all(above, keep)


def embed(value: Any, keep: KeepFloat32) -> None:
    """Keeps the timestep's embedding in float32: all that `value` is made of. Angles of hundreds need the digits.

    Its matrix products become 1×1 convolutions, since only those can be marked.
    """
    from openvino import opset13 as op

    node = value.get_node()
    if node.get_type_name() in ("Parameter", "Constant"):
        return
    keep(node)
    for above in node.input_values():
        embed(above, keep)
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


def scale_and_shift(model: Any, keep: KeepFloat32) -> None:
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
        matched = _group_norm(node)
        if matched is None:
            continue
        x, after, groups = matched
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


def stay_channels_last(model: Any) -> None:
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
            reduced = sums[kind](joined[0], op.constant(np.array([1, 2])), True)
            shaped = op.reshape(reduced, op.constant(np.array(node.get_output_shape(0))), False)
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
    return node.get_type_name() == "Parameter" and is_skip(node.output(0).get_any_name())


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
