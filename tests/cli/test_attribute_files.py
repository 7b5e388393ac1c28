"""hspace attribute export, and what add makes of its files."""

from __future__ import annotations

from pathlib import Path

import hspace
import numpy as np
import pytest
from hspace.bundle import Bundle
from hspace.tensors import read_tensors, write_tensors

from .conftest import Cli, pixels


@pytest.mark.parametrize("name", ["block", "table", "haas", "smile"])
def test_out_and_in(name: str, cli: Cli, null_folder: Path, photos: Path, tmp_path: Path) -> None:
    """An equal attribute: its entry, its tensors, its metadata, and what it does to an image."""
    file = tmp_path / "x.safetensors"
    assert cli("attribute", "export", null_folder, name, file).check().out.endswith(f" to {file}\n")
    cli("attribute", "add", null_folder, "again", file).check()
    entries = Bundle(null_folder).manifest.attributes
    for field in ("kind", "branch", "n_train"):
        assert getattr(entries["again"], field) == getattr(entries[name], field)
    was, now = (read_tensors((null_folder / entries[n].file).read_bytes(), n) for n in (name, "again"))
    assert was.arrays.keys() == now.arrays.keys() and was.metadata.items() <= now.metadata.items()
    for key, array in was.arrays.items():
        np.testing.assert_array_equal(array, now.arrays[key])
        assert array.dtype == now.arrays[key].dtype
    on = ["-b", null_folder, "--engine", "null"]
    for edit in (name, "again"):
        cli("edit", photos / "a.png", *on, "--set", f"{edit}=1", "-o", tmp_path / f"{edit}.png").check()
    np.testing.assert_array_equal(pixels(tmp_path / f"{name}.png"), pixels(tmp_path / "again.png"))


def test_options_before_the_file(cli: Cli, null_folder: Path, tmp_path: Path) -> None:
    """What add is told counts more than what the file says."""
    cli("attribute", "export", null_folder, "table", tmp_path / "t.safetensors").check()
    cli("attribute", "export", null_folder, "block", tmp_path / "b.safetensors").check()
    cli("attribute", "add", null_folder, "t", tmp_path / "t.safetensors", "--branch", "symmetric").check()
    cli("attribute", "add", null_folder, "b", tmp_path / "b.safetensors", "--n-train", 9).check()
    entries = Bundle(null_folder).manifest.attributes
    assert (entries["t"].branch, entries["b"].n_train) == ("symmetric", 9)


def test_json_and_files_that_exist(cli: Cli, bundle: Path, null_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "b.safetensors"
    found = cli("attribute", "export", bundle, "block", file, "--json").check().json
    told = {"kind": "delta_block", "branch": "asymmetric", "n_train": "4"}
    assert found == {"attribute": "block", **told, "output": str(file)}
    before = file.read_bytes()
    cli("attribute", "export", bundle, "smile", file).error(7, "b.safetensors: exists already (--force replaces it)")
    assert file.read_bytes() == before
    cli("attribute", "export", bundle, "smile", file, "--force").check()
    cli("attribute", "export", bundle, "smiel", tmp_path / "x.safetensors").error(2, "NAME: ", "did you mean smile?")
    cli("attribute", "export", bundle, "smile", tmp_path / "x.pt").error(2, "x.pt: expected a name that ends in .safe")
    inside = null_folder / "x.safetensors"
    cli("attribute", "export", null_folder, "smile", inside, "--force").error(7, "the output is inside a bundle")


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"kind": "delta_h"}, "its metadata say delta_h"),
        ({"branch": "sideways"}, "its metadata say "),
        ({"n_train": "many"}, "found n_train 'many' in the metadata"),
        ({"n_train": "-1"}, "found n_train '-1' in the metadata"),
        ({"n_train": "9" * 5000}, "found n_train '999"),
    ],
)
def test_files_that_say_otherwise(
    metadata: dict[str, str], says: str, cli: Cli, null_folder: Path, bundle: Path, tmp_path: Path
) -> None:
    tensors = read_tensors((bundle / "block.safetensors").read_bytes(), "block")
    write_tensors(tmp_path / "x.safetensors", tensors.arrays, {**tensors.metadata, **metadata})
    before = sorted(p.name for p in null_folder.rglob("*"))
    cli("attribute", "add", null_folder, "new", tmp_path / "x.safetensors").error(3, "x.safetensors: ", says)
    assert sorted(p.name for p in null_folder.rglob("*")) == before
    assert "new" not in hspace.Bundle(null_folder).manifest.attributes
