"""Tensors and texts that a checkpoint may hold and no network has: refused by name, without taking memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hspace.errors import ArgumentError, CheckpointError, HspaceError

from ..conftest import GOLDEN, make_null_bundle
from .helpers import refused, snapshot

torch = pytest.importorskip("torch", reason="exports need the extra `export`")

from hspace_export import asyrp, diffae  # noqa: E402
from hspace_export.checkpoint import load, tensors  # noqa: E402
from hspace_export.exporter import Settings, read_config  # noqa: E402
from hspace_export.lpips import export_lpips  # noqa: E402

DIFFAE, DDPM = GOLDEN / "diffae-tiny" / "last.ckpt", GOLDEN / "asyrp-ddpm-tiny" / "model.ckpt"
ATTRIBUTE = "attribute0_LC_golden_t999_ninv8_ngen8_0.pth"
_MEMORY = 200_000  # KiB that a refusal may take


class Raw:
    """Pickles as a tensor of a shape and strides that its 4 values need not fit."""

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self.shape, self.stride = shape, stride

    def __reduce__(self) -> tuple[Any, ...]:
        bare = torch.zeros(4).untyped_storage()
        storage = torch.storage.TypedStorage(wrap_storage=bare, dtype=torch.float32, _internal=True)
        return torch._utils._rebuild_tensor_v2, (storage, 0, self.shape, self.stride, False, OrderedDict())


ODD: dict[str, tuple[Callable[[], Any], str]] = {
    "one value, repeated": (lambda: torch.zeros(1).expand(60_000, 60_000), "with the strides [0, 0], so that values"),
    "one row, repeated": (lambda: torch.zeros(1, 64).expand(64, 64), "[64, 64] with the strides [0, 1]"),
    "values that overlap": (lambda: torch.zeros(70).as_strided((64, 7), (1, 1)), "with the strides [1, 1], so that"),
    "sparse": (lambda: torch.eye(4).to_sparse(), "found a tensor of the layout sparse_coo, expected a dense one"),
    "compressed": (lambda: torch.eye(4).to_sparse_csr(), "found a tensor of the layout sparse_csr"),
    "huge and sparse": (
        lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6)),
        "the layout sparse_coo",
    ),
    "meta": (lambda: torch.empty(10**6, 10**6, device="meta"), "found a tensor without values"),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(4, 4), 0.1, 0, torch.qint8), "the type qint8"),
    "quantised by channel": (
        lambda: torch.quantize_per_channel(torch.ones(4, 4), torch.ones(4), torch.zeros(4), 0, torch.quint8),
        "the type quint8",
    ),
    "complex": (lambda: torch.ones(4, 4, dtype=torch.complex64), "the type complex64"),
    "whole numbers": (lambda: torch.ones(4, 4, dtype=torch.int64), "the type int64, expected floating-point numbers"),
    "eight bits": (lambda: torch.ones(4, 4).to(torch.float8_e4m3fn), "the type float8_e4m3fn"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "found a nested tensor"),
    "negated": (lambda: torch._neg_view(torch.ones(4, 4)), "found a tensor marked as negated"),
    "fewer values than its shape": (lambda: Raw((50_000, 50_000), (50_000, 1)), "takes 10000000000 bytes, in a file"),
}


@pytest.fixture
def little_memory() -> Any:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MEMORY


def write(path: Path, source: Path, name: str, value: Any, archive: bool) -> Path:
    """A copy of a checkpoint, with another tensor in a place of it."""
    found = load(source)
    if source == DIFFAE:
        found.pop("callbacks", None)
    state = found["state_dict"] if source == DIFFAE else found.get("0", found)
    state[name] = value
    torch.save(found, path, _use_new_zipfile_serialization=archive)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("odd", ODD)
def test_tensors_are_refused_by_name(odd: str, tmp_path: Path, little_memory: None) -> None:
    make, fragment = ODD[odd]
    value = make()
    model = write(tmp_path / "model.ckpt", DDPM, "conv_in.weight", value, True)
    with refused(CheckpointError, f"{model}: conv_in.weight: ", fragment):
        asyrp.load_model(model, attributes={}, settings=Settings(image_size=32))
    if odd not in (
        "fewer values than its shape",
        "eight bits",
        "nested",
    ):  # PyTorch's older format cannot be read with these
        model = write(tmp_path / "last.ckpt", DIFFAE, "ema_model.out.2.bias", value, False)
        with refused(CheckpointError, f"{model}: ema_model.out.2.bias: ", fragment):
            diffae.load_model(model, settings=Settings())
    block = write(tmp_path / ATTRIBUTE, DDPM.with_name(ATTRIBUTE), "conv1.weight", value, True)
    with refused(CheckpointError, f"{block}: conv1.weight: ", fragment):
        asyrp.load_model(DDPM, attributes={"a": block}, settings=Settings(image_size=32))
    torch.save({"features.0.weight": value}, tmp_path / "alexnet.pth")
    with refused(CheckpointError, "alexnet.pth: features.0.weight: ", fragment):
        export_lpips(tmp_path / "alexnet.pth", tmp_path / "out.onnx", size=64, linear=tmp_path / "none")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(("shape", "stride"), [((2**40, 2**40), (0, 0)), ((2, 2), (-1, 1))])
def test_a_shape_that_pytorch_cannot_read(shape: tuple[int, ...], stride: tuple[int, ...], tmp_path: Path) -> None:
    path = write(tmp_path / "model.ckpt", DDPM, "conv_in.weight", Raw(shape, stride), True)
    with refused(CheckpointError, f"{path}: has a tensor whose data does not fit its shape"):
        load(path)


def test_one_storage_under_many_names(tmp_path: Path, little_memory: None) -> None:
    """A megabyte that would be a gigabyte."""
    value = torch.zeros(500_000, dtype=torch.float16)
    torch.save({f"w{i}": value for i in range(500)}, tmp_path / "model.ckpt")
    found = load(tmp_path / "model.ckpt")
    with refused(CheckpointError, "model.ckpt: its tensors share values: they take 500000000 bytes, the file has "):
        tensors(found, tmp_path / "model.ckpt")


def test_too_many_tensors(tmp_path: Path) -> None:
    value = torch.zeros(1)
    torch.save({f"input_blocks.{i}.0.weight": value for i in range(10_001)}, tmp_path / "model.ckpt")
    with refused(CheckpointError, "model.ckpt: found 10001 tensors, expected at most 10000"):
        asyrp.load_model(tmp_path / "model.ckpt", attributes={}, settings=Settings(image_size=32))


def test_an_archive_that_is_compressed(tmp_path: Path, little_memory: None) -> None:
    """A small file that would be unpacked to a large one; what torch.save writes is never compressed."""
    with zipfile.ZipFile(DDPM) as source, zipfile.ZipFile(tmp_path / "m.ckpt", "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
        target.writestr("archive/data/bomb", bytes(10**8))
    with refused(CheckpointError, "m.ckpt: its entries are compressed or overlap"):
        load(tmp_path / "m.ckpt")


def test_a_network_that_the_file_does_not_have(tmp_path: Path, little_memory: None) -> None:
    """Wide weights in a few places tell of a network of 600 GB, which is not made to find that the rest is missing."""
    found = load(DDPM)
    found["conv_in.weight"] = torch.zeros(65_536, 3, 3, 3)
    found["temb.dense.0.weight"] = torch.zeros(16, 65_536)
    torch.save(found, tmp_path / "model.ckpt")
    with refused(CheckpointError, "its tensors are not those of a U-Net of the ddpm layout"):
        asyrp.load_model(tmp_path / "model.ckpt", attributes={}, settings=Settings(image_size=32))


def test_parameters_are_tensors_too(tmp_path: Path) -> None:
    """nn.Parameter, half precision, transposed views and views of one storage are what people save; all are taken."""
    found, block = load(DDPM), load(DDPM.with_name(ATTRIBUTE))
    expected = asyrp.load_model(DDPM, attributes={}, settings=Settings(image_size=32))
    flat = torch.cat([v.reshape(-1) for v in found.values()])
    at, views = 0, {}
    for name, value in found.items():
        views[name] = torch.nn.Parameter(flat[at : at + value.numel()].view(value.shape))
        at += value.numel()
    weight = found["mid.block_1.temb_proj.weight"]
    views["mid.block_1.temb_proj.weight"] = weight.t().contiguous().t()
    torch.save(views, tmp_path / "model.ckpt")
    block["0"] = {k: torch.nn.Parameter(v) for k, v in block["0"].items()}
    torch.save(block, tmp_path / ATTRIBUTE)
    model = asyrp.load_model(
        tmp_path / "model.ckpt", attributes={"a": tmp_path / ATTRIBUTE}, settings=Settings(image_size=32)
    )
    for name, value in expected.parts["trunk"].module.state_dict().items():
        assert torch.equal(model.parts["trunk"].module.state_dict()[name], value)


# --- texts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ['{"licence": "\\ud800"}', '{"\\ud800": 1}', '{"schedule": "x\\udfff"}'])
def test_half_a_character_in_a_config(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with refused(CheckpointError, f"{tmp_path / 'c.json'}: expected settings in JSON, in Unicode"):
        read_config(tmp_path / "c.json")


@pytest.mark.parametrize("text", ["1e400", "-1e999", "NaN", "1" + "0" * 400, "-1" + "0" * 5000, "[" * 50_000, "{}"])
@pytest.mark.parametrize("key", ["image_size", "condition_bias", "diffusion_steps", "n_train", "num_heads"])
def test_odd_numbers_in_a_config(text: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(f'{{"{key}": {text}}}')
    with pytest.raises((ArgumentError, CheckpointError)) as caught:
        read_config(tmp_path / "c.json")
    assert str(caught.value).startswith(f"{tmp_path / 'c.json'}: ") and len(str(caught.value)) < 400


def hspace(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "hspace.cli", *arguments]
    return subprocess.run(command, capture_output=True, check=False, timeout=120, **options)


@pytest.mark.parametrize("option", ["--name", "--licence", "--schedule", "--attribute"])
def test_arguments_that_are_no_unicode(option: str, tmp_path: Path) -> None:
    value = b"a\xff=x_ngen8.pth" if option == "--attribute" else b"a\xff"
    output = str(tmp_path / "out")
    found = hspace("export", "asyrp", str(DDPM), "--image-size", "32", "-o", output, option, value)
    assert found.returncode == 2 and found.stderr.count(b"\n") == 1, found.stderr
    assert found.stderr.startswith(b"hspace: error: ") and snapshot(tmp_path) == {}


def test_a_file_whose_name_is_no_unicode(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff.ckpt"))
    shutil.copy(DDPM, path)
    shown = str(path).encode(errors="backslashreplace").decode()
    with refused(CheckpointError, f"{shown}: its name is not Unicode, and PyTorch opens no such file"):
        load(path)


NESTED: list[Any] = ["x"]
for _ in range(40):  # 2**40 elements, were it written out
    NESTED = [NESTED, NESTED]


@pytest.mark.parametrize("key", ["T", "img_size", "net_enc_pool", "net_attn", "net_ch_mult", "train_mode"])
@pytest.mark.parametrize(
    "value",
    [NESTED, "x" * 10**6, 10**300, {"a": NESTED}, torch.zeros(3)],
    ids=["nested", "long", "huge", "mapping", "tensor"],
)
def test_endless_values_of_hyper_parameters(key: str, value: Any, tmp_path: Path) -> None:
    found = load(DIFFAE)
    found.pop("callbacks", None)
    found["hyper_parameters"] |= {key: value, "model_conf": None}
    torch.save(found, tmp_path / "last.ckpt")
    with pytest.raises(HspaceError) as caught:
        diffae.load_model(tmp_path / "last.ckpt", settings=Settings())
    assert str(caught.value).startswith(f"{tmp_path / 'last.ckpt'}: hyper_parameters") and len(str(caught.value)) < 600


# --- PyTorch's own voice ------------------------------------------------------------------------------


def test_pytorch_says_nothing(tmp_path: Path) -> None:
    """Files that make PyTorch warn, read by commands in processes of their own: one line of ours, or none."""
    bundle = make_null_bundle(tmp_path / "bundle", "asyrp")
    for name, value in (
        ("csr", torch.eye(32).to_sparse_csr()),
        ("q", ODD["quantised"][0]()),
        ("n", ODD["nested"][0]()),
    ):
        torch.save({"0": {"conv1.weight": value}}, tmp_path / f"{name}_ngen8.pth")
        found = hspace("attribute", "add", str(bundle), "a", str(tmp_path / f"{name}_ngen8.pth"))
        assert found.returncode == 6 and found.stdout == b"" and found.stderr.count(b"\n") == 1, found.stderr
        assert b"conv1.weight: found " in found.stderr
    before = json.loads((bundle / "bundle.json").read_bytes())
    assert list(before["attributes"]) == ["block", "table", "haas"]
