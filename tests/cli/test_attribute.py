"""Commands that make and change attributes, and calibrate."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hspace
import numpy as np
import PIL.Image
import pytest
from hspace.bundle import Bundle
from hspace.image import read_record
from hspace.sheet import Sheet
from hspace.tensors import read_tensors, tensor_bytes

from ..conftest import GOLDEN
from ..hostile.helpers import alter
from .conftest import Cli, Result, pixels

ENGINE = ("--engine", "null")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def sound(folder: Path) -> dict[str, str]:
    """Opens and verifies; its attributes' names, and kinds."""
    opened = Bundle(folder)
    assert list(opened.verify())
    return {name: entry.kind for name, entry in opened.manifest.attributes.items()}


def save(path: Path, low: int, high: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(low, high, (8, 8, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(path)


@pytest.fixture
def asyrp_folder(tmp_path: Path, asyrp: Path) -> Path:
    return Path(shutil.copytree(asyrp, tmp_path / "asyrp"))


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """bright/ and dark/ with 30 pictures each, which a network can tell apart."""
    pytest.importorskip("sklearn", reason="fits need the extra `fit`")
    pytest.importorskip("skimage", reason="fits need the extra `fit`")
    for name, low, high, first in (("bright", 150, 256, 0), ("dark", 0, 106, 100)):
        (tmp_path / name).mkdir()
        for i in range(30):
            save(tmp_path / name / f"{first + i:03d}.png", low, high, first + i)
    return tmp_path


# --- list, add, remove, rename ----------------------------------------------------------------------------


def test_list(cli: Cli, bundle: Path, null_folder: Path) -> None:
    lines = cli("attribute", "list", bundle).check().out.splitlines()
    assert lines[0].split() == ["attribute", "kind", "branch", "n_train", "file", "bytes", "notes"]
    sizes = {p.stem: str(p.stat().st_size) for p in bundle.glob("*.safetensors")}
    assert [line.split() for line in lines[1:]] == [
        ["block", "delta_block", "asymmetric", "4", "block.safetensors", sizes["block"], "-"],
        ["table", "delta_h", "asymmetric", "-", "table.safetensors", sizes["table"], "-"],
        ["haas", "delta_h", "symmetric", "-", "haas.safetensors", sizes["haas"], "-"],
        ["smile", "z_direction", "none", "-", "smile.safetensors", sizes["smile"], "-"],
        ["beard", "z_direction", "none", "-", "beard.safetensors", sizes["beard"], "-"],
    ]
    found = cli("attribute", "list", bundle, "--json").check().json
    assert list(found) == ["block", "table", "haas", "smile", "beard"]
    block = {"kind": "delta_block", "branch": "asymmetric", "n_train": 4, "layout": "ddpm", "channels": 32}
    file = bundle / "block.safetensors"
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    block |= {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256}
    assert found["block"] == {**block, "notes": ""}
    assert (found["haas"]["timesteps"], found["smile"]["kind"]) == (3, "z_direction")
    for name in found:
        cli("attribute", "remove", null_folder, name).check()
    assert cli("attribute", "list", null_folder).check().out == f"{null_folder}: no attributes\n"
    assert cli("attribute", "list", null_folder, "--json").check().json == {}
    cli("attribute", "list", null_folder.parent).error(3, "expected a bundle")


def test_add(cli: Cli, null_folder: Path, bundle: Path, asyrp_folder: Path) -> None:
    """Attributes of one bundle in another, as the files that they are."""
    for name, kind, options in (
        ("smile", "z_direction", []),
        ("block", "delta_block", ["--n-train", 9]),
        ("table", "delta_h", ["--branch", "asymmetric"]),
    ):
        arguments = ["attribute", "add", null_folder, f"other {name}", bundle / f"{name}.safetensors", *options]
        assert cli(*arguments).check().out == f"added other {name} ({kind}) to {null_folder}\n"
        assert sound(null_folder)[f"other {name}"] == kind
    entries = Bundle(null_folder).manifest.attributes
    assert (entries["other block"].n_train, entries["other table"].branch) == (9, "asymmetric")
    found = cli("attribute", "add", asyrp_folder, "t", bundle / "table.safetensors", "--json").check().json
    assert found == {"attribute": "t", "kind": "delta_h"}
    assert Bundle(asyrp_folder).manifest.attributes["t"].branch == "symmetric"


def test_add_a_published_delta_block(cli: Cli, asyrp_folder: Path, photos: Path, tmp_path: Path) -> None:
    """A PyTorch file, with its source in the provenance; of the other layout, or of other widths, it is refused."""
    torch = pytest.importorskip("torch", reason="checkpoints need the extra `export`")
    from hspace_export.models.delta import DdpmDelta, ImprovedDelta

    path, before = tmp_path / "x_ninv40_ngen40_0.pth", contents(asyrp_folder)
    for module, fragment in ((DdpmDelta(32, 5), "the other U-Net layout"), (ImprovedDelta(64, 5), "of another shape")):
        torch.save({"0": module.state_dict()}, path)
        cli("attribute", "add", asyrp_folder, "new", path).error(6, path.name, fragment)
    path.write_bytes(b"garbage")
    cli("attribute", "add", asyrp_folder, "new", path).error(6, "expected a PyTorch checkpoint")
    assert contents(asyrp_folder) == before
    torch.save({"0": ImprovedDelta(32, 5).state_dict()}, path)
    cli("attribute", "add", asyrp_folder, "new", path).check()
    manifest = Bundle(asyrp_folder).manifest
    assert (manifest.attributes["new"].kind, manifest.attributes["new"].n_train) == ("delta_block", 40)
    assert manifest.provenance.sources["attribute new"].file == path.name
    edit = ["edit", photos / "a.png", "-b", asyrp_folder, *ENGINE, "--set", "new=1", "-o", tmp_path / "out.png"]
    cli(*edit).check()
    cli("attribute", "add", asyrp_folder, "nine", path, "--n-train", 9).check()
    assert Bundle(asyrp_folder).manifest.attributes["nine"].n_train == 9


def test_add_refused(cli: Cli, null_folder: Path, bundle: Path, asyrp_folder: Path, tmp_path: Path) -> None:
    before, smile = contents(null_folder), bundle / "smile.safetensors"
    (tmp_path / "odd.safetensors").write_bytes(tensor_bytes({"x": np.zeros(1, np.float32)}, {}))
    (tmp_path / "short.safetensors").write_bytes(tensor_bytes({"weight": np.zeros(1, np.float32)}, {}))
    (tmp_path / "text.safetensors").write_text("no tensors")
    for arguments, code, *fragments in (
        (["smile", smile], 2, "the bundle has 'smile' already (--force replaces it)"),
        (["a=b", smile], 2, "attribute: found 'a=b'"),
        (["new", tmp_path / "nowhere"], 3, "nowhere: no such file"),
        (["new", tmp_path], 3, "not a file"),
        (["new", tmp_path / "odd.safetensors"], 3, "odd.safetensors: expected an attribute"),
        (["new", tmp_path / "short.safetensors"], 3, "bias: missing", "found float32 [1]"),
        (["new", tmp_path / "text.safetensors"], 3, "expected a safetensors file"),
        (["new", smile, "--branch", "symmetric"], 2, "--branch: a z_direction has but one"),
        (["new", smile, "--n-train", 3], 2, "--n-train: a z_direction has no scale"),
        (["new", bundle / "table.safetensors", "--n-train", 0], 3, "n_train: expected `int` >= 1"),
        (["new"], 2, "Missing argument 'FILE'"),
    ):
        cli("attribute", "add", null_folder, *arguments).error(code, *fragments)
        assert contents(null_folder) == before
    cli("attribute", "add", asyrp_folder, "new", smile).error(3, "the model has no z_sem to move")
    cli("attribute", "add", null_folder, "smile", bundle / "table.safetensors", "--force").check()
    assert sound(null_folder)["smile"] == "delta_h" and not (null_folder / "smile.safetensors").exists()


def test_remove_and_rename(cli: Cli, null_folder: Path) -> None:
    before = contents(null_folder)
    cli("attribute", "remove", null_folder, "smiel").error(2, "no attribute 'smiel'; did you mean smile?")
    cli("attribute", "rename", null_folder, "smiel", "x").error(2, "did you mean smile?")
    cli("attribute", "rename", null_folder, "smile", "beard").error(2, "the bundle has 'beard' already")
    cli("attribute", "rename", null_folder, "smile", "a/b").error(2, "attribute: found 'a/b'")
    assert contents(null_folder) == before
    assert cli("attribute", "rename", null_folder, "smile", "grin").check().out.startswith("renamed smile to grin in ")
    assert cli("attribute", "rename", null_folder, "grin", "g", "--json").check().json == {"renamed": "grin", "to": "g"}
    assert list(sound(null_folder)) == ["block", "table", "haas", "g", "beard"]
    assert cli("attribute", "remove", null_folder, "g").check().out == f"removed g from {null_folder}\n"
    assert cli("attribute", "remove", null_folder, "beard", "--json").check().json == {"removed": "beard"}
    assert list(sound(null_folder)) == ["block", "table", "haas"]


# --- fit --------------------------------------------------------------------------------------------------


def test_fit_from_two_folders(cli: Cli, null_folder: Path, faces: Path) -> None:
    folders = ["--positive", faces / "bright", "--negative", faces / "dark"]
    out = cli("attribute", "fit", null_folder, "bright", *folders, *ENGINE).check().out.splitlines()
    assert out[0].split() == ["attribute", "kind", "fitted", "to", "held", "out", "accuracy", "chance", "auc"]
    assert "30 images with, 30 without" in out[1] and out[1].split()[-4:] == ["12", "1.0", "0.5", "1.0"]
    assert out[2].startswith(f"added to {null_folder} in ")
    assert sound(null_folder)["bright"] == "z_direction"
    scores = cli("classify", faces / "bright", faces / "dark", "-b", null_folder, *ENGINE, "--json").check().json
    column = scores["classes"].index("bright")
    assert [face["logits"][column] > 0 for face in scores["images"]] == [True] * 30 + [False] * 30
    again = "attribute: the bundle has 'bright' already (--force replaces it)"
    cli("attribute", "fit", null_folder, "bright", *folders, *ENGINE).error(2, again)
    found = cli("attribute", "fit", null_folder, "bright", *folders, *ENGINE, "--force", "--json").check().json
    report = {"held_out": 12, "accuracy": 1.0, "chance": 0.5, "auc": 1.0}
    report |= {"engine": "null", "precision": "fp32", "device": "cpu"}
    assert found == {"bright": {"kind": "z_direction", "fitted_to": "30 images with, 30 without", **report}}
    notes = "fitted to 30 images with, 30 without; held out 12; accuracy 1.0; chance 0.5; auc 1.0"
    assert cli("attribute", "list", null_folder, "--json").check().json["bright"]["notes"] == notes
    assert cli("attribute", "list", null_folder).check().out.splitlines()[-1].endswith(notes)


def test_fit_of_a_delta_h(cli: Cli, asyrp_folder: Path, faces: Path) -> None:
    """Without a z_sem it is what is made; its branch can be chosen."""
    folders = ["--positive", faces / "bright", "--negative", faces / "dark"]
    arguments = ["attribute", "fit", asyrp_folder, *folders, *ENGINE, "--steps", 3, "--json"]
    found = cli(*arguments, "bright").check().json["bright"]
    assert (found["kind"], found["auc"]) == ("delta_h", 1.0)
    cli(*arguments, "bright", "--force", "--branch", "asymmetric", "--held-out", 0).check()
    assert sound(asyrp_folder)["bright"] == "delta_h"
    entry = Bundle(asyrp_folder).manifest.attributes["bright"]
    assert entry.branch == "asymmetric"
    arrays = read_tensors((asyrp_folder / entry.file).read_bytes(), "x").arrays
    assert arrays["delta_h"].shape == (2, 32, 4, 4) and len(arrays["timesteps"]) == 2
    assert {p.parent.name for p in asyrp_folder.rglob("*.safetensors")} == {"asyrp", "attributes"}
    without_steps = [*arguments[:-3], "other", "--kind", "z_direction"]
    cli(*without_steps).error(2, "encode_z: the model has no z_sem")


def test_fit_of_few(cli: Cli, null_folder: Path, faces: Path) -> None:
    """Ten of them against images of which nothing is known."""
    (faces / "ten").mkdir()
    for path in sorted((faces / "bright").iterdir())[:10]:
        shutil.copy(path, faces / "ten")
    few = ["--positive", faces / "ten", "--unlabelled", faces / "dark"]
    found = cli("attribute", "fit", null_folder, "few", *few, *ENGINE, "--json").check().json
    assert found["few"].items() >= {"kind": "z_direction", "fitted_to": "10 images with, 30 unlabelled"}.items()
    for more in (["--negative", faces / "dark"], ["--kind", "delta_h"]):
        cli("attribute", "fit", null_folder, "f", *few, *more, *ENGINE).error(
            2, "--unlabelled: it stands for --negative"
        )


def table(faces: Path, *, yes: str = "1", no: str = "0", unknown: int = 0) -> Path:
    """all/ with every picture, and labels.csv: bright as it is, odd by number, and `unknown` rows without either."""
    (faces / "all").mkdir()
    lines = ["file,bright,odd"]
    for i, path in enumerate(sorted([*(faces / "bright").iterdir(), *(faces / "dark").iterdir()])):
        shutil.copy(path, faces / "all")
        values = ["", ""] if i < unknown else [yes if path.parent.name == "bright" else no, yes if i % 2 else no]
        lines.append(",".join([path.name, *values]))
    (faces / "all" / "labels.csv").write_text("\n".join(lines) + "\n")
    return faces / "all" / "labels.csv"


@pytest.mark.parametrize(("yes", "no"), [("1", "0"), (" 1", "-1"), ("True", "false")])
def test_fit_from_labels(yes: str, no: str, cli: Cli, null_folder: Path, faces: Path) -> None:
    labels = ["--labels", table(faces, yes=yes, no=no, unknown=3), "--images", faces / "all"]
    names = ["bright", "odd", "odd", "--allow-chance"]
    result = cli("attribute", "fit", null_folder, *names, *labels, *ENGINE, "--json")
    found = result.json
    assert result.code == 0 and list(found) == ["bright", "odd"] and result.err.startswith("hspace: warning: odd: AUC ")
    assert found["bright"]["fitted_to"] == "27 images with, 30 without" and found["bright"]["auc"] == 1.0
    assert found["odd"]["fitted_to"] == "29 images with, 28 without" and found["odd"]["auc"] < 1
    assert list(sound(null_folder))[-2:] == ["bright", "odd"]


def test_fit_from_faulty_labels(cli: Cli, null_folder: Path, faces: Path) -> None:
    path = table(faces)
    text, before = path.read_text(), contents(null_folder)

    def refused(data: str | bytes, *fragments: str, name: str = "bright") -> None:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        options = ["--labels", path, "--images", faces / "all", *ENGINE]
        cli("attribute", "fit", null_folder, name, *options).error(2, "labels.csv", *fragments)

    refused(text, "has no column 'brihgt'; it has bright, odd", name="brihgt")
    refused(text, "has no column 'file'", name="file")
    refused(text.replace("bright,odd", "bright,bright"), "has two columns 'bright'")
    refused("", "expected a CSV file in UTF-8, with a header")
    refused(b"file,bright\n\xff\xfe.png,1\n", "expected a CSV file")
    refused(text.replace("000.png,1,0", "000.png,1"), "row 2: found 2 values, expected 3")
    refused(text.replace("000.png,1,0", "000.png,1,0,1"), "row 2: found 4 values")
    refused(text.replace("001.png,1,", "001.png,2,"), "row 3: bright: found '2', expected 0 or -1, 1, or nothing")
    refused(text.replace("001.png,", "nowhere.png,").replace("002.png,", "nowhere.png,"), "row 4: 'nowhere.png' is in")
    refused(text.replace("001.png,", "000.png,"), "row 3: '000.png' is in an earlier row")
    refused(text.replace(".png,", ".jpg,"), f"none of its 60 files is in {faces / 'all'}")
    refused("file,bright\n", "none of its 0 files is in")
    path.unlink()
    options = ["--labels", path, "--images", faces / "all", *ENGINE]
    cli("attribute", "fit", null_folder, "bright", *options).error(2, "labels.csv: no such file")
    path.mkdir()
    cli("attribute", "fit", null_folder, "bright", *options).error(2, "labels.csv: not a file")
    assert contents(null_folder) == before


def test_fit_from_labels_of_more_images(cli: Cli, null_folder: Path, faces: Path) -> None:
    """Empty rows say nothing, and neither do rows of images that are not there; those are counted."""
    path = table(faces)
    lines = path.read_text().splitlines()
    lines[1:1] = ["", ",,", "nowhere.png,1,0", "../dark/100.png,1,1"]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", ""]).encode())
    labels = ["--labels", path, "--images", faces / "all", *ENGINE]
    found = cli("attribute", "fit", null_folder, "bright", *labels, "--json").check().json
    assert found["bright"]["fitted_to"] == "30 images with, 30 without" and found["bright"]["rows_without_image"] == 2
    out = cli("attribute", "fit", null_folder, "bright", *labels, "--force").check().out
    assert "\nleft out 2 rows of the labels, whose files are not in the folder of images\n" in out


@pytest.mark.parametrize("value", ["", "1", "0"])
@pytest.mark.parametrize("kind", ["z_direction", "delta_h"])
def test_fit_from_labels_of_one_kind(
    value: str, kind: str, cli: Cli, null_folder: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A column without images of both kinds is named, before any network runs."""
    (faces / "labels.csv").write_text(f"file,odd,all\n000.png,1,{value}\n001.png,0,{value}\n")
    monkeypatch.setattr("hspace.engines.null.NullEngine.run", lambda *_: pytest.fail("a network ran"))
    labels = ["--labels", faces / "labels.csv", "--images", faces / "bright", *ENGINE, "--kind", kind]
    found = {"": "0 images with the attribute and 0", "1": "2 images with the attribute and 0"}
    said = found.get(value, "0 images with the attribute and 2")
    cli("attribute", "fit", null_folder, "all", *labels).error(2, f"all: found {said} without, expected at least")


def test_fit_refused(cli: Cli, null_folder: Path, faces: Path, tmp_path: Path) -> None:
    before = contents(null_folder)
    folders: list[object] = ["--positive", faces / "bright", "--negative", faces / "dark"]
    (tmp_path / "one").mkdir()
    save(tmp_path / "one" / "a.png", 0, 256, 0)
    (tmp_path / "odd").mkdir()
    for name in ("a.png", "b.png"):
        PIL.Image.new("RGB", (9, 9)).save(tmp_path / "odd" / name)
    cases: list[tuple[list[object], int, str]] = [
        (["x"], 2, "expected --positive and --negative"),
        (["x", *folders[:2]], 2, "expected --positive and --negative"),
        (["x", *folders, "--images", faces], 2, "expected --positive and --negative"),
        (["x", "y", *folders], 2, "two folders make one attribute: found 2 names"),
        (["a/b", *folders], 2, "NAME: found 'a/b'"),
        (["smile", *folders], 2, "attribute: the bundle has 'smile' already (--force replaces it)"),
        *((["x", *folders, *o], 2, "--steps: of a delta_h") for o in (["--steps", 4], ["--branch", "symmetric"])),
        (["x", *folders, "--preset", "official"], 2, "--preset and --steps: of a delta_h"),
        (["x", *folders, "--held-out", "1"], 2, "--held-out: found 1.0"),
        (["x", *folders, "--held-out", "nan"], 2, "--held-out: found nan"),
        (["x", *folders, "--seed", "-1"], 2, "--seed: found -1"),
        (["x", *folders, "--seed", 2**32], 2, "--seed: found 4294967296"),
        (["x", *folders, "--kind", "delta_block"], 2, "'delta_block' is not one of"),
        (["x", *folders, "--kind", "delta_h", "--steps", 37], 2, "steps: 37 timesteps cannot be had"),
        (["x", "--positive", tmp_path / "one", *folders[2:]], 2, "x: found 1 images with the attribute and 30 without"),
        (["x", "--positive", tmp_path / "odd", *folders[2:]], 4, "found 9×9 pixels, expected 8×8"),
        (["x", "--positive", tmp_path / "none", *folders[2:]], 4, "none: no such file"),
        ([], 2, "Missing argument 'NAMES...'"),
    ]
    for arguments, code, fragment in cases:
        cli("attribute", "fit", null_folder, *arguments, *ENGINE).error(code, fragment)
        assert contents(null_folder) == before
    cli("attribute", "fit", null_folder, "x", "--positive", tmp_path / "odd", *folders[2:], *ENGINE, "--resize").check()


@pytest.mark.parametrize("command", ["attribute fit", "calibrate"])
def test_without_scikit_learn(command: str) -> None:
    """One line says what is missing, and how to have it."""
    code = "import sys; sys.modules['sklearn'] = sys.modules['skimage'] = None; "
    code += f"sys.argv = ['hspace', *'{command}'.split(), 'x']; from hspace.cli import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith(f"hspace: error: hspace {command} needs the package sk")
    assert "of the extra fit: pip install '.[fit]' in a clone" in found.stderr and found.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["list", "fit", "average", "pca", "add", "remove", "rename"])
def test_help(command: str, cli: Cli) -> None:
    pytest.importorskip("sklearn", reason="fits need the extra `fit`")
    pytest.importorskip("skimage", reason="fits need the extra `fit`")
    out = cli("attribute", command, "--help").check().out
    assert out.startswith("Usage: ") and f"hspace attribute {command} [OPTIONS]" in out
    assert f"hspace attribute {command} " in out.partition("Examples:")[2].partition("Options:")[0]
    assert f"  {command} " in cli("attribute", "--help").check().out


# --- average and pca --------------------------------------------------------------------------------------


def test_average(cli: Cli, asyrp_folder: Path, faces: Path, tmp_path: Path) -> None:
    """For one image, an edit with the average is an edit with the block."""
    (tmp_path / "one").mkdir()
    shutil.copy(faces / "bright" / "000.png", tmp_path / "one")
    out = cli("attribute", "average", asyrp_folder, "mean", "block", tmp_path / "one", *ENGINE).check().out
    assert "block, over 1 images" in out and "delta_h" in out
    entry = Bundle(asyrp_folder).manifest.attributes["mean"]
    assert (entry.kind, entry.branch, entry.n_train) == ("delta_h", "asymmetric", 4)
    for name in ("block", "mean"):
        arguments = ["edit", tmp_path / "one" / "000.png", "-b", asyrp_folder, *ENGINE, "--set", f"{name}=1"]
        cli(*arguments, "-o", tmp_path / f"{name}.png").check()
    assert np.array_equal(pixels(tmp_path / "mean.png"), pixels(tmp_path / "block.png"))
    before = contents(asyrp_folder)
    for arguments, fragment in (
        (["mean", "block"], "attribute: the bundle has 'mean' already (--force replaces it)"),
        (["new", "blcok"], "BLOCK: the bundle has no attribute 'blcok'; did you mean block?"),
        (["a/b", "block"], "NAME: found 'a/b'"),
        (["new", "table"], "table: expected a delta_block of the bundle, one of: block"),
        (["new", "block", "--t-edit", 1000], "t_edit: found 1000, expected a timestep, a whole number from 0 to 999"),
    ):
        cli("attribute", "average", asyrp_folder, *arguments, tmp_path / "one", *ENGINE).error(2, fragment)
    assert contents(asyrp_folder) == before
    alter(asyrp_folder, lambda m: m["presets"]["official"].update(spacing="leading"))  # up to 750
    arguments = ["new", "block", "--t-edit", 800, tmp_path / "one"]
    cli("attribute", "average", asyrp_folder, *arguments, *ENGINE).error(2, "t_edit: no step")


@pytest.mark.parametrize("source", ["samples", "images"])
def test_pca(source: str, cli: Cli, asyrp_folder: Path, faces: Path, tmp_path: Path) -> None:
    given = ["--images", faces / "bright"] if source == "images" else ["--samples", 12]
    arguments = ["attribute", "pca", asyrp_folder, "pc", "--count", 2, *given, "--steps", 3, *ENGINE]
    found = cli(*arguments, "-o", tmp_path / "pictures", "--json").check().json
    assert list(found) == ["pc_0", "pc_1"]
    ratios = [found[name]["explained_variance"] for name in found]
    assert 1 >= ratios[0] >= ratios[1] >= 0 and sum(ratios) <= 1
    assert found["pc_0"]["fitted_to"] == f"{30 if source == 'images' else 12} images"
    assert {k: v for k, v in sound(asyrp_folder).items() if k in found} == dict.fromkeys(found, "delta_h")
    assert Bundle(asyrp_folder).manifest.attributes["pc_0"].branch == "symmetric"
    sheets = [pixels(tmp_path / "pictures" / f"{name}.png") for name in found]
    record = json.loads(read_record(tmp_path / "pictures" / "pc_1.png") or "")
    told = record["call"], record["image"], record["count"], len(record["sources"]), record["draws"]
    assert told == ("attribute pca", 1, 2, *((30, False) if source == "images" else (0, True)))
    editor = hspace.open(asyrp_folder, engine="null")
    shown = editor.encode(sorted((faces / "bright").iterdir()), steps=3) if source == "images" else editor.draw(12)
    for name, sheet in zip(found, sheets, strict=True):  # a row per image, of the first four, a column per strength
        swept = editor.sweep(shown[:4], {name: [-3, -1.5, 0, 1.5, 3]}, steps=3)
        columns = [f"{name} {strength} sd" for strength in ("-3.0", "-1.5", "+0.0", "+1.5", "+3.0")]
        np.testing.assert_array_equal(sheet, Sheet([""] * 4, columns, 8).draw(swept.reshape(-1, 8, 8, 3)))
    assert not np.array_equal(*sheets)
    before = contents(tmp_path)
    cli(*arguments).error(2, "attribute: the bundle has 'pc_0' already")
    other = [*arguments[:3], "pc2", *arguments[4:]]
    (tmp_path / "pictures" / "pc2_1.png").write_bytes(b"mine")
    cli(*other, "-o", tmp_path / "pictures").error(7, "pc2_1.png: exists already")
    (tmp_path / "pictures" / "pc2_1.png").unlink()
    cli(*other, "-o", asyrp_folder / "pictures").error(7, "inside", "bundle")
    cli(*other, "-o", tmp_path / "pc.png").error(2, "pc.png: found the suffix '.png', expected a folder")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("source", ["samples", "images"])
def test_bar_of_pca(source: str, cli: Cli, asyrp_folder: Path, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call for all images, in several batches, is the whole of the bar."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    given = ["--images", faces / "bright"] if source == "images" else ["--samples", 12]
    result = cli("attribute", "pca", asyrp_folder, "pc", *given, "--steps", 3, *ENGINE, "--batch-size", 5, "--json")
    assert (result.code, len(result.json)) == (0, 3) and "100%" in result.err


def test_pca_refused(cli: Cli, asyrp_folder: Path, faces: Path) -> None:
    before = contents(asyrp_folder)
    for options, code, fragment in (
        (["--count", 0], 2, "--count: found 0"),
        (["--count", 3, "--samples", 3], 2, "--count: found 3, expected a whole number from 1 to 2"),
        (["--count", 30, "--images", faces / "bright"], 2, "--count: found 30"),
        (["--samples", -1], 2, "--samples: found -1"),
        (["--samples", 10**9], 2, "--samples: found 1000000000"),
        (["--seed", -1], 2, "--seed: found -1"),
        (["--images", faces / "nowhere"], 4, "nowhere: no such file"),
        (["--samples", 90_000, "--steps", 1000], 2, "GiB, expected at most "),
        (["--samples", 4, "--images", faces / "bright"], 2, "--samples: --images stands in its place"),
        (["--resize"], 2, "--resize: expected --images with it"),
    ):
        cli("attribute", "pca", asyrp_folder, "pc", *options, *ENGINE).error(code, fragment)
    cli("attribute", "pca", asyrp_folder, "a/b", *ENGINE).error(2, "PREFIX: found 'a/b_0'")
    assert contents(asyrp_folder) == before


# --- calibrate --------------------------------------------------------------------------------------------


def calibrate(cli: Cli, folder: Path, faces: Path, *options: object) -> Result:
    return cli("calibrate", folder, faces / "bright", *ENGINE, "--steps", 6, "-o", faces / "out", *options)


def test_calibrate(cli: Cli, asyrp_folder: Path, faces: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `fit`")
    thresholds = ["--t-edit-at", 0.2, "--t-boost-at", 0.1, "--similarity", 0.5]
    found = calibrate(cli, asyrp_folder, faces, *thresholds, "--save", "found", "--json").check().json
    assert found["outputs"] == [str(faces / "out" / name) for name in ("curves.json", "curves.png")]
    assert {p.name for p in (faces / "out").iterdir()} == {"curves.json", "curves.png"}
    curves = json.loads((faces / "out" / "curves.json").read_text())
    assert {k: v for k, v in found.items() if k in curves} == curves
    made_by, text = curves["made_by"], (faces / "out" / "curves.json").read_text()
    assert (made_by["call"], made_by["run"]["encode_steps"], len(made_by["sources"])) == ("calibrate", 6, 30)
    assert str(faces) not in text and (found["engine"], found["precision"]) == ("null", "fp32")
    assert curves["thresholds"] == {"t_edit": 0.1, "t_boost": 0.1} and curves["images"] == 30
    for name, key in (("t_edit", "x_0 to P_t"), ("t_boost", "x_0 to x_t")):
        reached = [t for t, d in zip(curves["timesteps"], curves[key]["mean"], strict=True) if d >= 0.1]
        assert curves[name] == min(reached)
    preset = Bundle(asyrp_folder).manifest.presets["found"]
    assert (preset.t_edit, preset.t_boost) == (curves["t_edit"], curves["t_boost"])
    assert (preset.encode_steps, preset.decode_steps, preset.spacing) == (6, 6, "asyrp")  # what was measured
    assert found["preset"] == "found"
    sound(asyrp_folder)
    before = contents(faces)
    calibrate(cli, asyrp_folder, faces, "--save", "found").error(2, "preset: the bundle has 'found' already (--force")
    calibrate(cli, asyrp_folder, faces).error(7, "curves.json: exists already")
    assert contents(faces) == before
    out = calibrate(cli, asyrp_folder, faces, *thresholds, "--save", "found", "--force").check().out
    says = f"t_edit {found['t_edit']} (threshold 0.1); t_boost {found['t_boost']} (threshold 0.1)\n"
    assert out.startswith(f"structural, 1 - SSIM, 30 images: {says}")
    assert out.endswith("saved the preset found, of 6 + 6 steps\n")


def test_calibrate_without_a_result(cli: Cli, asyrp_folder: Path, faces: Path) -> None:
    """The curves are there to choose from; a preset is not."""
    pytest.importorskip("matplotlib", reason="plots need the extra `fit`")
    before = contents(asyrp_folder)
    out = calibrate(cli, asyrp_folder, faces, "--t-boost-at", 100).check().out
    assert "t_boost not found: the distance stays below 100 (largest " in out
    calibrate(cli, asyrp_folder, faces, "--t-boost-at", 100, "--save", "found", "--force").error(
        2, "t_boost: no image is 100 away (structural, 1 - SSIM is at most 2), so there would be nothing to save"
    )
    result = calibrate(cli, asyrp_folder, faces, "--t-boost-at", 1.99, "--save", "found", "--force", "--json")
    assert result.code == 2 and result.json["preset"] is None and result.json["t_boost"] is None
    assert result.err.startswith("hspace: error: --save: no preset was saved: t_boost not found")
    assert contents(asyrp_folder) == before and (faces / "out" / "curves.png").exists()


def test_calibrate_refused(cli: Cli, asyrp_folder: Path, faces: Path, tmp_path: Path) -> None:
    before = contents(asyrp_folder)
    (tmp_path / "l.onnx").write_bytes(b"garbage")
    for options, code, fragment in (
        (["--similarity", "nan"], 2, "t_edit: found the threshold nan, expected a positive number"),
        (["--similarity", "0"], 2, "t_edit: found the threshold 0.0"),
        (["--t-boost-at", "inf"], 2, "t_boost: found the threshold inf"),
        (["--save", "a/b"], 2, "--save: found 'a/b'"),
        (["--lpips", tmp_path / "nowhere.onnx"], 5, "nowhere.onnx: no such file"),
        (["--lpips", tmp_path / "l.onnx"], 3, "l.onnx: "),
        (["--preset", "fast"], 2, "preset: found 'fast'"),
    ):
        calibrate(cli, asyrp_folder, faces, *options).error(code, fragment)
    cli("calibrate", asyrp_folder, faces / "dark", *ENGINE, "-o", asyrp_folder / "out").error(7, "inside", "bundle")
    cli("calibrate", asyrp_folder, faces / "dark", *ENGINE, "-o", faces / "c.png").error(2, "c.png: found the suffix")
    assert contents(asyrp_folder) == before and not (faces / "out").exists()


@pytest.mark.parametrize("name", ["asyrp-ddpm-tiny", "asyrp-iddpm-tiny"])
def test_add_gives_what_the_export_gives(
    name: str, cli: Cli, golden_bundles: Callable[..., Path], tmp_path: Path
) -> None:
    """What `add` makes of an Asyrp file is what the export made of it; the source is recorded, the layout checked."""
    folder = Path(shutil.copytree(golden_bundles(name), tmp_path / "bundle"))
    expected = Bundle(folder).manifest
    file = GOLDEN / name / "attribute0_LC_golden_t999_ninv8_ngen8_0.pth"
    before = Bundle(folder).read(expected.attributes["attribute0"])
    cli("attribute", "remove", folder, "attribute0").check()
    cli("attribute", "add", folder, "attribute0", file).check()
    found = Bundle(folder)
    entry = found.manifest.attributes["attribute0"]
    assert read_tensors(found.read(entry), "").metadata == read_tensors(before, "").metadata
    arrays, known = read_tensors(found.read(entry), "").arrays, read_tensors(before, "").arrays
    assert arrays.keys() == known.keys() and all(np.array_equal(arrays[k], known[k]) for k in known)
    assert (entry.kind, entry.branch, entry.n_train) == ("delta_block", "asymmetric", 8)
    assert found.manifest.provenance.sources == expected.provenance.sources
    other = next(n for n in ("asyrp-ddpm-tiny", "asyrp-iddpm-tiny") if n != name)
    result = cli("attribute", "add", folder, "wrong", GOLDEN / other / file.name)
    result.error(6, "an attribute of the other U-Net layout")
    sound(folder)
