"""Which operators exports use: onnx_graph's table is just that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hspace import onnx_graph
from hspace.onnx_graph import INTEGERS, OPERATORS, check_graph
from hspace.onnx_scan import check_onnx

from ..conftest import BUNDLES

torch = pytest.importorskip("torch", reason="exports need the extra `export`")
pytest.importorskip("diffusers", reason="these exports need the extra `diffusers`")

import onnx  # noqa: E402
from hspace_export import lpips  # noqa: E402
from hspace_export.graph import Part, trace, unet_parts  # noqa: E402

from . import test_shared_skips as networks  # noqa: E402


@pytest.mark.usefixtures("one_thread")
def test_the_table_is_what_exports_use(golden_bundles: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of network, exported: all pass, and the tables have no operator and no integers that none uses."""
    paths = [*(BUNDLES / "avatars32").glob("*.onnx")]
    for name in ("diffae-tiny", "asyrp-ddpm-tiny", "asyrp-iddpm-tiny"):
        paths += golden_bundles(name).glob("*.onnx")
    graphs = [p.read_bytes() for p in [*paths, *golden_bundles("diffae-tiny", "fp16", "fp16").glob("*.onnx")]]
    torch.manual_seed(0)
    parts = {}
    cases = {"sample": ("sample", {"act_fn": "mish"}), "v": ("v_prediction", networks.RESNET)}
    cases |= {act: ("epsilon", {"act_fn": act}) for act in ("gelu", "relu")}
    for name, (prediction, settings) in cases.items():
        found = unet_parts(networks.diffusers(prediction, **settings).eval(), 16, 0)
        parts |= {f"{name} {k}": found[k] for k in (("trunk", "head") if name in ("sample", "v") else ("trunk",))}
    parts["shared head"] = unet_parts(networks.ddpm(1, 2), 128, 0)["head"]
    parts["shared guided head"] = unet_parts(networks.guided((1, 2), 0, True, True), 128, 0)["head"]
    image = ("float32", ("N", 3, 32, 32))
    parts["lpips"] = Part(lpips.Lpips().eval(), {"a": image, "b": image}, {"distance": "float32"})
    graphs += [trace(part, "fp32").SerializeToString(deterministic=True) for part in parts.values()]
    used, fits, integers = set(), onnx_graph._fits, set()

    def result(name: str, inputs: list[Any], numbers: dict[str, int]) -> Any:
        row = "Cast to int64" if numbers.get("to") == 7 else name
        given = "".join(i.kind for i in inputs)
        integers.update((row, k) for k in INTEGERS.get(row, {}) if len(k) == len(given) and all(map(fits, k, given)))
        return original(name, inputs, numbers)

    original = onnx_graph._result
    monkeypatch.setattr(onnx_graph, "_result", result)
    for data in graphs:
        check_onnx(data, "graph")
        check_graph(data, "graph")
        used |= {n.op_type for n in onnx.load_model_from_string(data).graph.node}
    assert used == set(OPERATORS)
    assert integers == {(row, kinds) for row, signatures in INTEGERS.items() for kinds in signatures}
