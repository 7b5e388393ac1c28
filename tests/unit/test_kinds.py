"""The table of attribute kinds: every kind is written, told from the others, read and applied; documents follow it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hspace.amend import add_attribute
from hspace.attributes import read_attribute
from hspace.bundle import Bundle, h_shape
from hspace.catalog import SAMPLERS
from hspace.deltas import DeltaTable, ZDirection
from hspace.errors import ArgumentError, BundleError
from hspace.kinds import KINDS, BranchName, kind_of
from hspace.manifest import json_schema
from hspace.multistep import SECOND_ORDER
from hspace.program import Branch
from hspace.tensors import read_tensors, tensor_bytes

DOCS = Path(__file__).parent.parent.parent / "docs"


def made(kind: str, bundle: Bundle) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Random tensors and metadata of an attribute of that kind."""
    rng = np.random.default_rng(0)
    c, height, width, e = h_shape(bundle)
    assert bundle.manifest.z_sem is not None
    d = bundle.manifest.z_sem.size
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "z_direction": {"weight": (d,), "bias": (1,), "mean": (d,), "std": (d,)},
        "delta_block": {f"{p}.bias": (c,) for p in ("conv1", "temb_proj", "norm2", "conv2")}
        | {"conv1.weight": (c, c), "temb_proj.weight": (c, e), "norm2.weight": (c,), "conv2.weight": (c, c)},
        "delta_h": {"delta_h": (2, c, height, width)},
    }
    arrays = {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes[kind].items()}
    if kind == "delta_h":
        arrays["timesteps"] = np.array([0, 500])
    return arrays, {"eps": "1e-6"} if kind == "delta_block" else {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_written_read_and_applied(kind: str, null_folder: Path) -> None:
    arrays, metadata = made(kind, Bundle(null_folder))
    data = tensor_bytes(arrays, metadata)
    assert kind_of(read_tensors(data, "x")) == kind
    for branch in KINDS[kind].branches:
        add_attribute(Bundle(null_folder), branch, data, kind, branch, None if KINDS[kind].moves_z_sem else 40)
        opened = Bundle(null_folder)
        assert opened.manifest.attributes[branch].kind == kind
        read = read_attribute(opened, branch)
        if isinstance(read, ZDirection):
            assert KINDS[kind].moves_z_sem and branch == "none"
            z_sem = np.ones(read.weight.size, np.float32)
            step = 2 * np.sqrt(z_sem.size) * arrays["weight"] / np.linalg.norm(arrays["weight"])
            assert np.allclose(read.move(z_sem, 2.0), z_sem + step * arrays["std"], atol=1e-4)
            continue
        assert (read.branch, read.n_train) == (Branch[branch.upper()], 40) and not KINDS[kind].moves_z_sem
        c, height, width, e = h_shape(opened)
        h, temb = np.ones((2, c, height, width), np.float32), np.ones((2, e), np.float32)
        delta = read.delta_h(h, temb, np.array([0, 499], np.int32))
        assert delta.shape == h.shape and np.isfinite(delta).all()
        if isinstance(read, DeltaTable):
            assert np.array_equal(delta, arrays["delta_h"])


@pytest.mark.parametrize("kind", KINDS)
def test_branches(kind: str, null_folder: Path) -> None:
    """The first is the default; others than the table's are refused, by the manifest."""
    data, kinds = tensor_bytes(*made(kind, Bundle(null_folder))), KINDS[kind]
    for branch in set(get_args(BranchName)) - set(kinds.branches):
        allowed = " or ".join(sorted(kinds.branches))
        with pytest.raises(BundleError, match=f"branch: found {branch}, expected {allowed} for a {kind}"):
            add_attribute(Bundle(null_folder), "new", data, kind, branch)


def test_a_kind_that_is_none(null_folder: Path) -> None:
    with pytest.raises(ArgumentError, match="kind: found 'delta', expected one of z_direction, delta_block, delta_h"):
        add_attribute(Bundle(null_folder), "new", b"", "delta", "none")


def test_markers_tell_kinds_apart(null_folder: Path) -> None:
    for kind in KINDS:
        arrays, _ = made(kind, Bundle(null_folder))
        assert [k for k, of in KINDS.items() if of.marker in arrays] == [kind]
    with pytest.raises(BundleError, match=r"^x: expected an attribute: weight, conv1\.weight or timesteps among its"):
        kind_of(read_tensors(tensor_bytes({"other": np.zeros(1, np.float32)}, {}), "x"))


def test_documents_follow_the_tables() -> None:
    schema = json_schema()["$defs"]
    assert set(schema["Attribute"]["properties"]["kind"]["enum"]) == {*KINDS}
    assert set(schema["Attribute"]["properties"]["branch"]["enum"]) == {b.name.lower() for b in Branch}
    assert set(schema["Preset"]["properties"]["sampler"]["enum"]) == {*SAMPLERS} >= {*SECOND_ORDER}
    page = (DOCS / "bundle-format.md").read_text()
    section = page[page.index("## Attributes") : page.index("## Presets")]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [*KINDS]
