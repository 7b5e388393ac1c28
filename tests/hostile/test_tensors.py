"""safetensors files that are refused: attributes and the statistics of z_sem, as bytes and as values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import hspace
import numpy as np
import pytest
from hspace.errors import BundleError
from hspace.tensors import read_tensors, tensor_bytes
from safetensors import numpy as library

from .helpers import refused, replace, safetensors

Arrays = dict[str, np.ndarray]


def f32(*offsets: int, shape: tuple[int, ...] = (6,)) -> dict[str, object]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": list(offsets)}


BYTES: dict[str, bytes] = {
    "text": b"this is no safetensors file at all",
    "pickle": b"\x80\x04\x95" + bytes(40),
    "zip": b"PK\x03\x04" + bytes(40),
    "one byte": b"\0",
    "header of no JSON": safetensors(b"{nonsense"),
    "header that is a list": safetensors(b"[]"),
    "header nested deep": safetensors(b'{"a":' * 50_000),
    "header longer than the file": safetensors({"weight": f32(0, 24)}, bytes(24), length=10_000),
    "header of 2^63 bytes": safetensors({"weight": f32(0, 24)}, bytes(24), length=2**63),
    "overlapping offsets": safetensors({"weight": f32(0, 24), "mean": f32(0, 24)}, bytes(24)),
    "partly overlapping offsets": safetensors({"weight": f32(0, 24), "mean": f32(20, 44)}, bytes(44)),
    "offsets beyond the end": safetensors({"weight": f32(0, 24)}, bytes(12)),
    "offsets out of range": safetensors({"weight": f32(2**60, 2**60 + 24)}, bytes(24)),
    "offsets reversed": safetensors({"weight": f32(24, 0)}, bytes(24)),
    "offsets below zero": safetensors({"weight": f32(-24, 0)}, bytes(24)),
    "a hole": safetensors({"weight": f32(8, 32)}, bytes(32)),
    "shape that does not fit": safetensors({"weight": f32(0, 24, shape=(7,))}, bytes(24)),
    "shape that overflows": safetensors({"weight": f32(0, 24, shape=(2**40, 2**40))}, bytes(24)),
    "unknown dtype": safetensors({"weight": {**f32(0, 24), "dtype": "OBJECT"}}, bytes(24)),
    "data cut short": safetensors({"weight": f32(0, 24)}, bytes(23)),
    "data too long": safetensors({"weight": f32(0, 24)}, bytes(25)),
    "metadata that is no text": safetensors({"__metadata__": {"eps": 1}, "weight": f32(0, 24)}, bytes(24)),
}


@pytest.mark.parametrize("key", ["attributes.smile", "z_sem.statistics"])
@pytest.mark.parametrize("name", BYTES)
def test_bytes(name: str, key: str, null_folder: Path) -> None:
    file = replace(null_folder, key, BYTES[name])
    with refused(BundleError, f"{null_folder / file}: expected a safetensors file", unchanged=null_folder):
        hspace.open(null_folder, engine="null")


# --- values -------------------------------------------------------------------------------------------


def with_nan(name: str, value: float = np.nan) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].reshape(-1)[-1] = value

    return change


VALUES: dict[str, tuple[str, Callable[[Arrays], object], list[str]]] = {
    "direction: missing": ("smile", lambda a: a.pop("bias"), ["bias: missing"]),
    "direction: unexpected": ("smile", lambda a: a.update(code=np.zeros(1, "f4")), ["code: unexpected"]),
    "direction: shape": (
        "smile",
        lambda a: a.update(weight=np.ones(7, "f4")),
        ["weight: found float32 [7], expected float32 [6]"],
    ),
    "direction: dtype": (
        "smile",
        lambda a: a.update(weight=np.ones(6, "i8")),
        ["weight: found int64 [6], expected float32 [6]"],
    ),
    "direction: float64": ("smile", lambda a: a.update(mean=np.ones(6)), ["mean: found float64 [6], expected"]),
    "direction: NaN": ("smile", with_nan("weight"), ["weight: has values that are not finite"]),
    "direction: inf": ("smile", with_nan("mean", np.inf), ["mean: has values that are not finite"]),
    "direction: no weight": (
        "smile",
        lambda a: a.update(weight=np.zeros(6, "f4")),
        ["weight: expected values that are not all zero"],
    ),
    "direction: std of zero": ("smile", with_nan("std", 0), ["std: found 0, expected values of at least 1.18e-38"]),
    "direction: all at once": (
        "smile",
        lambda a: (with_nan("mean")(a), a.pop("bias"), a.update(code=np.zeros(1, "f4"), std=np.ones((6, 1), "f4"))),
        ["mean: has values", "bias: missing", "code: unexpected", "std: found float32 [6, 1], expected float32 [6]"],
    ),
    "block: missing": ("block", lambda a: a.pop("conv2.weight"), ["conv2.weight: missing"]),
    "block: half of a norm": (
        "block",
        lambda a: a.update({"norm1.weight": np.ones(32, "f4")}),
        ["norm1.bias: missing"],
    ),
    "block: shape": (
        "block",
        lambda a: a.update({"temb_proj.weight": np.ones((32, 6), "f4")}),
        ["temb_proj.weight: found float32 [32, 6], expected float32 [32, 5]"],
    ),
    "block: NaN": ("block", with_nan("conv1.weight"), ["conv1.weight: has values that are not finite"]),
    "table: missing": ("table", lambda a: a.pop("delta_h"), ["delta_h: missing"]),
    "table: no timesteps": ("table", lambda a: a.pop("timesteps"), ["timesteps: expected int64 [K]"]),
    "table: empty": (
        "table",
        lambda a: a.update(timesteps=np.zeros(0, "i8"), delta_h=np.zeros((0, 32, 4, 4), "f4")),
        ["timesteps: expected int64 [K]"],
    ),
    "table: timesteps as floats": (
        "table",
        lambda a: a.update(timesteps=np.array([0.0, 1, 2], "f4")),
        ["timesteps: expected int64 [K]"],
    ),
    "table: descending": (
        "table",
        lambda a: a.update(timesteps=np.array([700, 300, 0])),
        ["timesteps: expected ascending values"],
    ),
    "table: a timestep twice": (
        "table",
        lambda a: a.update(timesteps=np.array([0, 300, 300])),
        ["timesteps: expected ascending values"],
    ),
    "table: shape": (
        "table",
        lambda a: a.update(delta_h=np.zeros((3, 32, 4, 5), "f4")),
        ["delta_h: found float32 [3, 32, 4, 5], expected float32 [3, 32, 4, 4]"],
    ),
    "table: fewer than timesteps": (
        "table",
        lambda a: a.update(delta_h=a["delta_h"][:2].copy()),
        ["delta_h: found float32 [2, 32, 4, 4], expected float32 [3, 32, 4, 4]"],
    ),
    "table: NaN": ("table", with_nan("delta_h"), ["delta_h: has values that are not finite"]),
}


def rewrite(
    folder: Path, key: str, change: Callable[[Arrays], object], metadata: dict[str, str] | None = None
) -> tuple[Path, dict[str, str]]:
    """Lets `change` spoil the tensors of a listed file; its path, and the metadata that it had."""
    manifest = json.loads((folder / "bundle.json").read_bytes())
    entry = manifest["z_sem"]["statistics"] if key == "z_sem.statistics" else manifest["attributes"][key]
    old = read_tensors((folder / entry["file"]).read_bytes(), "old")
    arrays = dict(old.arrays)
    change(arrays)
    data = library.save(arrays, metadata=old.metadata if metadata is None else metadata)
    replace(folder, key if "." in key else f"attributes.{key}", data)
    return folder / entry["file"], old.metadata


@pytest.mark.parametrize("name", VALUES)
def test_values(name: str, null_folder: Path) -> None:
    key, change, fragments = VALUES[name]
    path, _ = rewrite(null_folder, key, change)
    with refused(BundleError, f"{path}: ", *fragments, unchanged=null_folder):
        hspace.open(null_folder, engine="null")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        (lambda a: a.pop("std"), "std: missing"),
        (with_nan("mean"), "mean: has values that are not finite"),
        (lambda a: a.update(mean=np.zeros(5, "f4")), "mean: found float32 [5], expected float32 [6]"),
        (lambda a: a.update(std=np.zeros(6, "f4")), "std"),
    ],
    ids=["missing", "NaN", "shape", "std of zero"],
)
def test_statistics(change: Callable[[Arrays], object], fragment: str, null_folder: Path) -> None:
    path, _ = rewrite(null_folder, "z_sem.statistics", change)
    with refused(BundleError, f"{path}: ", fragment, unchanged=null_folder):
        hspace.open(null_folder, engine="null")


@pytest.mark.parametrize(
    ("metadata", "fragment"),
    [
        ({}, "expected GroupNorm's eps in the metadata"),
        ({"EPS": "1e-6"}, "expected GroupNorm's eps in the metadata"),
        ({"eps": "small"}, "expected GroupNorm's eps in the metadata"),
        ({"eps": "nan"}, "eps: found nan, expected a number between 0 and 1"),
        ({"eps": "0"}, "eps: found 0.0, expected a number between 0 and 1"),
        ({"eps": "-1e-6"}, "eps: found -1e-06, expected a number between 0 and 1"),
        ({"eps": "inf"}, "eps: found inf, expected a number between 0 and 1"),
    ],
    ids=["missing", "another name", "text", "NaN", "zero", "negative", "inf"],
)
def test_eps(metadata: dict[str, str], fragment: str, null_folder: Path) -> None:
    path, had = rewrite(null_folder, "block", lambda a: None, metadata)
    assert "eps" in had
    with refused(BundleError, f"{path}: ", fragment, unchanged=null_folder):
        hspace.open(null_folder, engine="null")


def test_the_same_content_has_the_same_bytes() -> None:
    """safetensors draws the order of metadata anew for every file."""
    from safetensors.numpy import load

    arrays = {name: np.arange(n, dtype=np.float32) for n, name in enumerate(("b", "a", "ε"), 1)}
    metadata = {str(i): f"ü{i}" for i in range(20)}
    found = {tensor_bytes(arrays, dict(items)) for items in (metadata.items(), reversed(metadata.items()))}
    (data,) = found
    assert {k: v.tolist() for k, v in load(data).items()} == {k: v.tolist() for k, v in arrays.items()}
    assert read_tensors(data, "here").metadata == metadata
    assert tensor_bytes(arrays, {}) == tensor_bytes(dict(reversed(arrays.items())), {})
