"""Bundles that the tests share: exported once a session from the golden checkpoints, or made up for the null engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hspace
import numpy as np
import pytest
from filelock import FileLock
from hspace import manifest as contract
from hspace.bundle import file_entry, write_manifest
from hspace.tensors import write_tensors

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER:  # workers share the cores, and so do the processes that they start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Triton's interpreter, where there is no GPU; Triton chooses when it is imported, which other tests may do first
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

GOLDEN = Path(__file__).parent / "golden"
BUNDLES = Path(__file__).parent.parent / "bundles"


def relative_error(a: np.ndarray, b: np.ndarray) -> float:
    """‖a − b‖/‖b‖."""
    return float(np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64)))


def golden_model(name: str):
    """The networks of a golden folder's checkpoints, as the exporter reads them."""
    from hspace_export import asyrp, diffae
    from hspace_export.exporter import Settings

    folder = GOLDEN / name
    if name == "diffae-tiny":
        return diffae.load_model(folder / "last.ckpt", classifier=folder / "cls_last.ckpt", settings=Settings())
    files = {f"attribute{i}": folder / f"attribute{i}_LC_golden_t999_ninv8_ngen8_0.pth" for i in (0, 1)}
    return asyrp.load_model(folder / "model.ckpt", attributes=files, settings=Settings(image_size=32, num_heads=4))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The engines' cache, empty at first, and not the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("HSPACE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def golden_bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """(name of a golden folder, precision, weights) → the bundle exported from it, once for all workers of a run."""
    pytest.importorskip("torch", reason="exports need the extra `export`")
    from hspace_export.exporter import export

    base = tmp_path_factory.getbasetemp()
    root = (base.parent if WORKER else base) / "golden"  # a worker's own folder lies in the run's
    root.mkdir(exist_ok=True)

    def make(name: str, precision: str = "fp32", weights: str = "fp32") -> Path:
        output = root / f"{name}-{precision}-{weights}"
        with FileLock(f"{output}.lock"):
            if not output.exists():
                export(lambda: golden_model(name), output, precision=precision, weights=weights)
        return output

    return make


@pytest.fixture(scope="session")
def golden_editor(golden_bundles: Callable[..., Path]) -> Callable[..., hspace.Editor]:
    """The same, opened."""
    made: dict[Path, hspace.Editor] = {}

    def make(*which: str) -> hspace.Editor:
        path = golden_bundles(*which)
        if path not in made:
            made[path] = hspace.open(path, engine="onnx")
        return made[path]

    return make


def tensor(name: str, *shape: int | str, dtype: str = "float32") -> contract.Tensor:
    return contract.Tensor(name=name, dtype=dtype, shape=list(shape))


def make_null_bundle(folder: Path, family: str = "diffae", size: int = 8, d: int = 6, channels: int = 32) -> Path:
    """A bundle with files that no network stands in, for the null engine: one attribute of each kind that fits.

    An empty ONNX graph (ir_version 9 and a graph with no nodes) is the least that passes for a component.
    """
    folder.mkdir(parents=True)
    z = [tensor("z_sem", "N", d)] if family == "diffae" else []
    skips = [tensor("skip_0", "N", 4, size, size), tensor("skip_1", "N", channels, 4, 4)]
    h, temb, x = (channels, 4, 4), tensor("temb", "N", 5), tensor("x", "N", 3, size, size)
    t = tensor("t", "N", dtype="int32")
    head = [tensor("h", "M", *h), temb, tensor("source", "M", dtype="int64"), *skips, *z]
    specs = {
        "trunk": ([x, t, *z], [tensor("h", "N", *h), temb, *skips]),
        "head": (head, [tensor("eps", "M", 3, size, size)]),
    }
    if family == "diffae":
        specs["encoder"] = ([x], z)
        specs["latent"] = ([*z, t], [tensor("eps", "N", d)])
    components = {}
    for i, (key, (inputs, outputs)) in enumerate(specs.items()):
        (folder / f"{key}.onnx").write_bytes(b"\x08\x09\x3a\x02\x12" + bytes([0]) + b"\x12\x01" + bytes([65 + i]))
        components[key] = contract.Component(
            **file_entry(folder, f"{key}.onnx"),
            inputs=inputs,
            outputs=outputs,
            precision="fp32",
            weights="fp32",
        )
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    c = channels
    block = {"conv1.weight": normal(c, c), "conv2.weight": normal(c, c), "temb_proj.weight": normal(c, 5)}
    block |= {f"{p}.bias": normal(c) for p in ("conv1", "conv2", "temb_proj", "norm2")} | {"norm2.weight": normal(c)}
    table = {"timesteps": np.array([0, 300, 700], dtype=np.int64), "delta_h": normal(3, *h)}
    attributes = {
        "block": ("delta_block", "asymmetric", 4, block, {"eps": "1e-6"}),
        "table": ("delta_h", "asymmetric", None, table, {}),
        "haas": ("delta_h", "symmetric", None, table, {}),
    }
    statistics = None
    if family == "diffae":
        stats = {"mean": normal(d), "std": np.abs(normal(d)) + 0.5}
        write_tensors(folder / "z_sem.safetensors", stats, {})
        statistics = contract.File(**file_entry(folder, "z_sem.safetensors"))
        for name in ("smile", "beard"):
            direction = {"weight": normal(d), "bias": normal(1), **stats}
            attributes[name] = ("z_direction", "none", None, direction, {})
    entries = {}
    for name, (kind, branch, n_train, arrays, metadata) in attributes.items():
        write_tensors(folder / f"{name}.safetensors", arrays, metadata)
        entry = file_entry(folder, f"{name}.safetensors")
        entries[name] = contract.Attribute(**entry, kind=kind, branch=branch, n_train=n_train)
    spacing, clip = ("diffae", True) if family == "diffae" else ("asyrp", False)
    preset = contract.Preset(
        encode_steps=5, decode_steps=4, latent_steps=4, spacing=spacing, clip=clip, t_edit=500, t_boost=0
    )
    manifest = contract.Manifest(
        format_version=1,
        name="null",
        family=family,
        image=contract.ImageShape(size=size),
        z_sem=contract.ZSem(size=d, statistics=statistics) if family == "diffae" else None,
        schedules=contract.Schedules(
            image=contract.LinearSchedule(), latent=contract.ConstSchedule() if family == "diffae" else None
        ),
        components=components,
        attributes=entries,
        presets={"official": preset},
        default_preset="official",
        provenance=contract.Provenance(
            exporter="tests", sources={"checkpoint": contract.Source(file="none", sha256="0" * 64)}
        ),
        licence="",
    )
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def _null_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("null")
    return {family: make_null_bundle(root / family, family) for family in ("diffae", "asyrp")}


@pytest.fixture(params=["diffae", "asyrp"])
def null_editor(request: pytest.FixtureRequest, _null_bundles: dict[str, Path]) -> hspace.Editor:
    """An editor of each family on the null engine."""
    return hspace.open(_null_bundles[request.param], engine="null")


@pytest.fixture
def null_diffae(_null_bundles: dict[str, Path]) -> hspace.Editor:
    return hspace.open(_null_bundles["diffae"], engine="null")


@pytest.fixture
def null_asyrp(_null_bundles: dict[str, Path]) -> hspace.Editor:
    return hspace.open(_null_bundles["asyrp"], engine="null")


@pytest.fixture
def null_folder(tmp_path: Path, _null_bundles: dict[str, Path]) -> Path:
    """A copy of a null bundle that a test may spoil."""
    return Path(shutil.copytree(_null_bundles["diffae"], tmp_path / "bundle"))
