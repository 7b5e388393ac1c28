"""Checkpoints that are refused without running what they hold, and exports that leave nothing behind."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hspace.errors import ArgumentError, CheckpointError, HspaceError, OutputError

from ..conftest import GOLDEN, make_null_bundle
from .helpers import refused, snapshot

torch = pytest.importorskip("torch", reason="exports need the extra `export`")

from hspace_export import asyrp, diffae, exporter  # noqa: E402
from hspace_export.checkpoint import load  # noqa: E402
from hspace_export.exporter import Model, Settings, export, read_config, schedule  # noqa: E402
from hspace_export.models.ddpm import DdpmConfig, DdpmUNet  # noqa: E402

DIFFAE, CLASSIFIER = GOLDEN / "diffae-tiny" / "last.ckpt", GOLDEN / "diffae-tiny" / "cls_last.ckpt"
DDPM, IDDPM = GOLDEN / "asyrp-ddpm-tiny" / "model.ckpt", GOLDEN / "asyrp-iddpm-tiny" / "model.ckpt"
ATTRIBUTE = "attribute0_LC_golden_t999_ninv8_ngen8_0.pth"
SETTINGS = Settings(image_size=32, num_heads=4)
State = dict[str, Any]


def load_diffae(checkpoint: Path, **options: Any) -> Model:
    return diffae.load_model(checkpoint, **{"settings": Settings(), **options})


def load_asyrp(checkpoint: Path, settings: Settings = SETTINGS, **attributes: Path) -> Model:
    return asyrp.load_model(checkpoint, attributes=attributes, settings=settings)


# --- code ---------------------------------------------------------------------------------------------


class Payload:
    """Unpickles to the exit status of a command that makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


def as_zip(path: Path, payload: Any) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "extra": payload}, path)


def as_legacy(path: Path, payload: Any) -> None:
    torch.save({"state_dict": payload}, path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, payload: Any) -> None:
    path.write_bytes(pickle.dumps({"state_dict": payload}))


def as_zip_by_hand(path: Path, payload: Any) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol=2))
        archive.writestr("archive/version", "3")


WRITERS = [as_zip, as_legacy, as_pickle, as_zip_by_hand]


def message(write: Callable[[Path, Any], None]) -> str:
    """A bare pickle is no PyTorch file, whatever it refers to."""
    return "expected a PyTorch checkpoint" if write is as_pickle else "refers to code ("


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("read", [load, load_diffae, load_asyrp])
def test_code_does_not_run(read: Callable[[Path], Any], write: Callable[[Path, Any], None], tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.ckpt"
    write(path, Payload(marker))
    with refused(CheckpointError, f"{path}: {message(write)}", unchanged=tmp_path):
        read(path)
    assert not marker.exists()


def test_code_would_run(tmp_path: Path) -> None:
    """The payload of the test above is a live one."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("write", WRITERS)
def test_code_in_an_attribute_or_classifier(write: Callable[[Path, Any], None], tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "smile_ngen8.pth"
    write(path, Payload(marker))
    with refused(CheckpointError, f"{path}: {message(write)}"):
        load_asyrp(DDPM, smile=path)
    with refused(CheckpointError, f"{path}: {message(write)}"):
        load_diffae(DIFFAE, classifier=path)
    with refused(CheckpointError, f"{path}: {message(write)}"):
        load_diffae(DIFFAE, latent=path)
    assert not marker.exists()


# --- not a checkpoint ---------------------------------------------------------------------------------

BYTES = {
    "empty": b"",
    "text": b"this is no checkpoint",
    "zip of nothing": b"PK\x05\x06" + bytes(18),
    "truncated": DDPM.read_bytes()[:100_000],
    "cut at the end": DDPM.read_bytes()[:-100],
    "safetensors": b"\x02\0\0\0\0\0\0\0{}",
}


@pytest.mark.parametrize("name", BYTES)
@pytest.mark.parametrize("read", [load_diffae, load_asyrp])
def test_bytes(read: Callable[[Path], Model], name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(BYTES[name])
    with refused(CheckpointError, f"{path}: expected a PyTorch checkpoint", unchanged=tmp_path):
        read(path)


@pytest.mark.parametrize(("where", "fragment"), [("nowhere.ckpt", "no such file"), ("", "not a file")])
def test_no_file(where: str, fragment: str, tmp_path: Path) -> None:
    for read in (load_diffae, load_asyrp):
        with refused(CheckpointError, f"{tmp_path / where}: {fragment}"):
            read(tmp_path / where)


OTHERS: dict[str, tuple[Callable[[], Model], list[str]]] = {
    "diffae: a classifier": (
        lambda: load_diffae(CLASSIFIER),
        ["cls_last.ckpt: looks like a DiffAE classifier (--classifier), expected a Diffusion Autoencoder"],
    ),
    "diffae: a DDPM U-Net": (
        lambda: load_diffae(DDPM),
        ["model.ckpt: looks like a DDPM U-Net (hspace export asyrp), expected a Diffusion Autoencoder"],
    ),
    "diffae: a guided U-Net": (
        lambda: load_diffae(IDDPM),
        ["model.ckpt: looks like an improved- or guided-diffusion U-Net (hspace export asyrp), expected a Diff"],
    ),
    "diffae: an attribute": (
        lambda: load_diffae(DDPM.with_name(ATTRIBUTE)),
        [f"{ATTRIBUTE}: looks like an Asyrp attribute (--attribute), expected a Diffusion Autoencoder"],
    ),
    "diffae: the autoencoder as its classifier": (
        lambda: load_diffae(DIFFAE, classifier=DIFFAE),
        ["last.ckpt: looks like a Diffusion Autoencoder", "expected a DiffAE classifier (ema_classifier.*)"],
    ),
    "diffae: a classifier as the latent DDIM": (
        lambda: load_diffae(DIFFAE, latent=CLASSIFIER),
        ["cls_last.ckpt: has no ema_model.latent_net.*, expected the latent DDIM's network"],
    ),
    "diffae: preset of another size": (
        lambda: load_diffae(DIFFAE, preset="ffhq256"),
        ["last.ckpt: its hyper_parameters say image size 32, the preset ffhq256 says 256"],
    ),
    "asyrp: an autoencoder": (
        lambda: load_asyrp(DIFFAE),
        ["last.ckpt: looks like a Diffusion Autoencoder (hspace export diffae), expected a DDPM or guided"],
    ),
    "asyrp: a classifier": (lambda: load_asyrp(CLASSIFIER), ["cls_last.ckpt: looks like a DiffAE classifier"]),
    "asyrp: an attribute as the U-Net": (
        lambda: load_asyrp(DDPM.with_name(ATTRIBUTE)),
        [f"{ATTRIBUTE}: looks like an Asyrp attribute (--attribute), expected a DDPM or guided-diffusion U-Net"],
    ),
    "asyrp: the U-Net as an attribute": (
        lambda: load_asyrp(DDPM, smile=DDPM),
        ["model.ckpt: looks like a DDPM U-Net", "expected an Asyrp attribute (weights under '0')"],
    ),
    "asyrp: an attribute of the other layout": (
        lambda: load_asyrp(DDPM, smile=IDDPM.with_name(ATTRIBUTE)),
        [f"{ATTRIBUTE}: an attribute of the other U-Net layout, expected one for the ddpm layout"],
    ),
    "asyrp: preset of the other layout": (
        lambda: asyrp.load_model(DDPM, attributes={}, preset="imagenet256", settings=SETTINGS),
        ["model.ckpt: found the ddpm layout, the preset imagenet256 has the guided one"],
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_checkpoint(name: str) -> None:
    call, fragments = OTHERS[name]
    with refused(CheckpointError, *fragments):
        call()


@pytest.mark.parametrize(
    ("contents", "fragment"),
    [
        ([1, 2], "found list, expected a state dict"),
        ({"state_dict": 5}, "found int, expected a state dict"),
        ({}, "looks like nothing that hspace knows"),
        ({"w": torch.zeros(2)}, "looks like nothing that hspace knows"),
        (torch.zeros(3), "found Tensor, expected a state dict"),
    ],
    ids=["list", "number", "empty", "unknown", "tensor"],
)
@pytest.mark.parametrize("read", [load_diffae, load_asyrp])
def test_other_contents(read: Callable[[Path], Model], contents: Any, fragment: str, tmp_path: Path) -> None:
    torch.save(contents, tmp_path / "model.ckpt")
    with refused(CheckpointError, f"{tmp_path / 'model.ckpt'}: {fragment}"):
        read(tmp_path / "model.ckpt")


# --- tensors ------------------------------------------------------------------------------------------


def spoiled(source: Path, target: Path, change: Callable[[State], object]) -> Path:
    """A copy of a checkpoint that `change` has been at."""
    found = torch.load(source, weights_only=True) if source != DIFFAE else load(source)
    change(found)
    if source == DIFFAE:
        found.pop("callbacks", None)
    torch.save(found, target)
    return target


def spoil_tensors(state: State, missing: str, shape: str, infinite: str, other: str) -> None:
    del state[missing]
    state[other] = torch.zeros(1)
    state[shape] = torch.zeros(2, 2)
    state[infinite] = state[infinite].clone()
    state[infinite].view(-1)[0] = float("nan")


def test_tensors_of_asyrp_together(tmp_path: Path) -> None:
    names = "mid.block_1.conv1.bias", "mid.block_2.conv1.bias", "conv_out.bias", "mid.block_9.bias"
    path = spoiled(DDPM, tmp_path / "model.ckpt", lambda s: spoil_tensors(s, *names))
    expected = [f"1 missing: {names[0]}", f"1 unexpected: {names[3]}", f"1 not finite: {names[2]}"]
    expected += [f"1 of another shape: {names[1]}: found [2, 2], expected [64]"]
    with refused(CheckpointError, f"{path}: its tensors are not those of a U-Net of the ddpm layout", *expected):
        load_asyrp(path)


def test_tensors_of_diffae_together(tmp_path: Path) -> None:
    names = "out.2.bias", "out.0.bias", "encoder.out.3.bias", "encoder.nonsense"

    def change(found: State) -> None:
        spoil_tensors(found["state_dict"], *(f"ema_model.{n}" for n in names))

    path = spoiled(DIFFAE, tmp_path / "last.ckpt", change)
    expected = [f"1 missing: {names[0]}", f"1 unexpected: {names[3]}", f"1 not finite: {names[2]}"]
    expected += [f"1 of another shape: {names[1]}: found [2, 2], expected [32]"]
    with refused(CheckpointError, f"{path}: its tensors are not those of a Diffusion Autoencoder", *expected):
        load_diffae(path)


def test_tensors_of_an_attribute_together(tmp_path: Path) -> None:
    def change(found: State) -> None:
        names = list(found["0"])
        spoil_tensors(found["0"], names[0], names[1], names[2], "other")

    path = spoiled(DDPM.with_name(ATTRIBUTE), tmp_path / ATTRIBUTE, change)
    expected = ["1 missing: ", "1 unexpected: other", "1 not finite: ", "1 of another shape: "]
    with refused(CheckpointError, f"{path}: its tensors are not those of an attribute", *expected):
        load_asyrp(DDPM, smile=path)


@pytest.mark.parametrize(
    "name", ["conv_in.weight", "down.0.block.0.conv1.weight", "down.1.block.0.conv1.weight", "conv_out.weight"]
)
def test_asyrp_without_a_tensor_that_tells_the_architecture(name: str, tmp_path: Path) -> None:
    path = spoiled(DDPM, tmp_path / "model.ckpt", lambda s: s.pop(name))
    with refused(CheckpointError, f"{path}: ", name):
        load_asyrp(path)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.out.3.weight",
        "time_embed.time_embed.0.weight",
        "out.2.weight",
        "input_blocks.1.0.emb_layers.1.weight",
        "latent_net.layers.0.linear.weight",
        "latent_net.time_embed.0.weight",
    ],
)
def test_diffae_without_a_tensor_that_tells_the_architecture(name: str, tmp_path: Path) -> None:
    path = spoiled(DIFFAE, tmp_path / "last.ckpt", lambda f: f["state_dict"].pop(f"ema_model.{name}"))
    with refused(CheckpointError, f"{path}: ", name.split(".", 1)[1].removeprefix("layers.")):
        load_diffae(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv_in.weight", (0, 3, 3, 3)),
        ("conv_in.weight", ()),
        ("down.0.block.0.conv1.weight", (33, 32, 3, 3)),
        ("conv_in.weight", (20, 3, 3, 3)),
    ],
    ids=["no channels", "a scalar", "other channels", "channels that 32 groups do not divide"],
)
def test_asyrp_of_a_shape_that_no_network_has(name: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    path = spoiled(DDPM, tmp_path / "model.ckpt", lambda s: s.update({name: torch.zeros(shape)}))
    with refused(CheckpointError, f"{path}: "):
        load_asyrp(path)


HYPER: dict[str, Callable[[State], object]] = {
    "no object": lambda f: f.update(hyper_parameters="none"),
    "image size as text": lambda f: f["hyper_parameters"].update(img_size="32"),
    "image size of zero": lambda f: f["hyper_parameters"].update(img_size=0),
    "image size that halves to no whole number": lambda f: f["hyper_parameters"].update(img_size=33),
    "heads that do not divide": lambda f: f["hyper_parameters"].update(net_beatgans_attn_head=7),
    "blocks as text": lambda f: f["hyper_parameters"].update(net_enc_num_res_blocks="1"),
    "blocks below zero": lambda f: f["hyper_parameters"].update(net_enc_num_res_blocks=-1),
    "unknown schedule": lambda f: f["hyper_parameters"].update(beta_scheduler="sigmoid"),
    "schedule that is no text": lambda f: f["hyper_parameters"].update(beta_scheduler=3),
}


@pytest.mark.parametrize("name", HYPER)
def test_hyper_parameters(name: str, tmp_path: Path) -> None:
    """They come with the weights, from whoever made them, so they are checked as the weights are."""
    path = spoiled(DIFFAE, tmp_path / "last.ckpt", HYPER[name])
    with pytest.raises(HspaceError):
        load_diffae(path)


def test_hyper_parameters_missing(tmp_path: Path) -> None:
    path = spoiled(DIFFAE, tmp_path / "last.ckpt", lambda f: f.pop("hyper_parameters"))
    with refused(ArgumentError, f"{path}: has no hyper_parameters; give --preset or --image-size"):
        load_diffae(path)


def test_attribute_whose_name_does_not_tell_its_steps(tmp_path: Path) -> None:
    (tmp_path / "smile.pth").write_bytes(DDPM.with_name(ATTRIBUTE).read_bytes())
    with refused(ArgumentError, f"{tmp_path / 'smile.pth'}: its name does not tell the steps", "give --n-train"):
        load_asyrp(DDPM, smile=tmp_path / "smile.pth")


@pytest.mark.parametrize("name", ["smile_ngen0.pth", "smile_ngen1001.pth", f"smile_ngen{10**50}.pth"])
def test_attribute_whose_name_tells_of_odd_steps(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(DDPM.with_name(ATTRIBUTE).read_bytes())
    with refused(ArgumentError, f"{tmp_path / name}: n_train: found ", "expected a whole number from 1 to 1000"):
        load_asyrp(DDPM, smile=tmp_path / name)


def test_what_weights_cannot_tell() -> None:
    with refused(ArgumentError, f"{DDPM}: the weights cannot tell the image size; give --preset or --image-size"):
        load_asyrp(DDPM, Settings())
    with refused(ArgumentError, f"{IDDPM}: the weights cannot tell the attention heads; give --preset or --num"):
        load_asyrp(IDDPM, Settings(image_size=32))


@pytest.mark.parametrize(
    ("text", "fragment"),
    [(b"one\n", "found 1 distinct class names, expected"), (b"\xff\xfe\xff", "expected a text file, a class name per")],
    ids=["too few", "not text"],
)
def test_class_names(text: bytes, fragment: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_bytes(text)
    with refused(CheckpointError, f"{tmp_path / 'names.txt'}: {fragment}"):
        load_diffae(DIFFAE, classifier=CLASSIFIER, class_names=tmp_path / "names.txt")


CONFIGS: dict[str, tuple[bytes, type[HspaceError], str]] = {
    "no JSON": (b"{", CheckpointError, "expected settings in JSON"),
    "unknown key": (b'{"colour": 1}', ArgumentError, "unknown field `colour`"),
    "wrong type": (b'{"image_size": "32"}', ArgumentError, "image_size"),
    "out of range": (b'{"image_size": 7}', ArgumentError, "image_size"),
    "a list": (b"[]", CheckpointError, "expected an object of settings"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config(name: str, tmp_path: Path) -> None:
    text, error, fragment = CONFIGS[name]
    (tmp_path / "config.json").write_bytes(text)
    with refused(error, f"{tmp_path / 'config.json'}: ", fragment):
        read_config(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["sigmoid", "const", "const-", "Linear", ""])
def test_schedule(text: str) -> None:
    with refused(ArgumentError, f"schedule: found {text!r}, expected linear, cosine or const0.008"):
        schedule(text)


# --- exports ------------------------------------------------------------------------------------------


def untouched() -> Model:
    raise AssertionError("the checkpoint was read before the output was checked")


def small(tmp_path: Path) -> Callable[[], Model]:
    """What loads a U-Net that traces fast."""
    torch.manual_seed(0)
    config = DdpmConfig(
        model_channels=32,
        channel_mult=(1.0,),
        num_res_blocks=1,
        attention_levels=(),
        out_channels=3,
        resample_with_conv=True,
    )
    torch.save(DdpmUNet(config).state_dict(), tmp_path / "small.ckpt")
    return lambda: load_asyrp(tmp_path / "small.ckpt", Settings(image_size=8))


@pytest.mark.parametrize("kind", ["folder", "file", "bundle"])
def test_existing_output(kind: str, tmp_path: Path) -> None:
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        (output / ("bundle.json" if kind == "bundle" else "thesis.tex")).write_text("mine")
    with refused(OutputError, f"{output}: exists already (--force replaces it)", unchanged=tmp_path):
        export(untouched, output)


def test_force_replaces_bundles_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with refused(OutputError, "out: exists and is not a sound bundle, so it is not replaced", unchanged=tmp_path):
        export(untouched, tmp_path / "out", force=True)


def test_output_below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    load_small = small(tmp_path)
    with refused(OutputError, "cannot be written", unchanged=tmp_path):
        export(load_small, tmp_path / "file" / "out")


@pytest.mark.parametrize("present", [False, True], ids=["new", "over a bundle"])
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (CheckpointError("component trunk: too large"), CheckpointError),
        (OSError(28, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["refusal", "full disk", "interrupt"],
)
@pytest.mark.parametrize("where", ["load", "_write", "_compare"])
def test_failing_export(
    where: str,
    failure: BaseException,
    error: type[BaseException],
    present: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever stage fails, nothing new is there, and a bundle that was to be replaced is as it was."""
    load_small = small(tmp_path)
    output = tmp_path / "bundles" / "out"
    if present:
        make_null_bundle(output)
    before = snapshot(tmp_path)

    def fail(*_: object) -> Any:
        raise failure

    def write(_: object, folder: Path, *__: object) -> None:
        (folder / "trunk.onnx").write_bytes(b"half")
        if where == "_write":
            raise failure

    monkeypatch.setattr(exporter, "_write", write)
    monkeypatch.setattr(exporter, "_compare", fail)
    if where == "load" and isinstance(failure, OSError):
        error = OSError  # a hook reports its own files
    with pytest.raises(error):
        export(fail if where == "load" else load_small, output, force=present)
    left = snapshot(tmp_path)
    assert {k for k in left if k != "bundles"} == {k for k in before if k != "bundles"}
    assert all(left[k] == v for k, v in before.items())


def test_export_that_differs_from_pytorch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, with a tolerance that no float32 graph can meet."""
    load_small = small(tmp_path)
    monkeypatch.setattr(exporter, "TOLERANCE", {"fp32": -1.0})
    expected = ["the export differs from PyTorch", "trunk.h@1: relative error", "expected at most -1e+00"]
    with refused(CheckpointError, *expected, unchanged=tmp_path):
        export(load_small, tmp_path / "out")
