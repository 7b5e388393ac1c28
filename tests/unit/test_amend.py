"""Changes to a bundle: each leaves a sound bundle, or the one that was there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import msgspec
import numpy as np
import pytest
from hspace import amend
from hspace.amend import add_attribute, remove_attribute, rename_attribute, set_preset
from hspace.bundle import Bundle, write_manifest
from hspace.errors import ArgumentError, BundleError, OutputError
from hspace.files import write_atomically
from hspace.manifest import MANIFEST, Source
from hspace.tensors import tensor_bytes

from ..hostile.helpers import replace as replace_file

SOURCE = Source(file="smile.pth", sha256="a" * 64)


def direction(d: int = 6, seed: int = 1, **others: np.ndarray) -> bytes:
    rng = np.random.default_rng(seed)
    arrays = {k: rng.standard_normal(d, dtype=np.float32) for k in ("weight", "mean")}
    arrays |= {"bias": np.zeros(1, np.float32), "std": np.ones(d, np.float32)}
    return tensor_bytes(arrays | others, {})


def table(*shape: int) -> bytes:
    shape = shape or (2, 32, 4, 4)
    values = np.random.default_rng(2).standard_normal(shape, dtype=np.float32)
    return tensor_bytes({"timesteps": np.arange(shape[0]) * 500, "delta_h": values}, {})


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its path; also what opening refuses."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_sound(folder: Path, before: dict[str, bytes]) -> dict[str, bytes]:
    """It opens and every file verifies, nothing else is in it, and no component changed. Returns what is there."""
    after = contents(folder)
    opened = Bundle(folder)
    assert {name for name, _ in opened.verify()} | {MANIFEST} == after.keys()
    for entry in opened.manifest.components.values():
        assert after[entry.file] == before[entry.file]
    hspace.open(folder, engine="null")
    return after


@pytest.fixture
def asyrp_folder(tmp_path: Path, _null_bundles: dict[str, Path]) -> Path:
    return Path(shutil.copytree(_null_bundles["asyrp"], tmp_path / "asyrp"))


# --- changes ----------------------------------------------------------------------------------------------


def test_add(null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    made = add_attribute(bundle, "frown", direction(), "z_direction", "none", source=SOURCE)
    after = check_sound(null_folder, before)
    assert after.keys() - before.keys() == {"attributes/000.safetensors"}
    assert after["attributes/000.safetensors"] == direction()
    assert {k for k in before if after[k] != before[k]} == {MANIFEST}
    editor = hspace.open(null_folder, engine="null")
    assert editor.classes == ["smile", "beard", "frown"]
    assert np.array_equal(editor.attributes["frown"].weight, made.weight)
    assert bundle.manifest == editor.bundle.manifest  # the opened one knows
    assert bundle.manifest.provenance.sources["attribute frown"] == SOURCE
    assert bundle.manifest.provenance.checkpoint_sha256 == "0" * 64
    assert editor.decode(editor.encode(np.zeros((1, 3, 8, 8), np.float32)), {"frown": 1.0}).shape == (1, 8, 8, 3)
    add_attribute(bundle, "wave", table(), "delta_h", "asymmetric", 7)
    entry = Bundle(null_folder).manifest.attributes["wave"]
    assert (entry.file, entry.kind, entry.branch, entry.n_train) == (
        "attributes/001.safetensors",
        "delta_h",
        "asymmetric",
        7,
    )
    check_sound(null_folder, before)


def test_replace(null_folder: Path) -> None:
    """The old file goes, the place among the attributes stays, and the source is that of the new one or none."""
    before, bundle = contents(null_folder), Bundle(null_folder)
    with pytest.raises(ArgumentError, match="the bundle has 'smile' already"):
        add_attribute(bundle, "smile", direction(), "z_direction", "none")
    assert contents(null_folder) == before
    names = list(bundle.manifest.attributes)
    add_attribute(bundle, "smile", direction(), "z_direction", "none", source=SOURCE, replace=True)
    after = check_sound(null_folder, before)
    assert "smile.safetensors" not in after and list(bundle.manifest.attributes) == names
    assert bundle.manifest.provenance.sources["attribute smile"] == SOURCE
    add_attribute(bundle, "smile", table(), "delta_h", "symmetric", replace=True)
    assert contents(null_folder).keys() == after.keys() - {"attributes/000.safetensors"} | {
        "attributes/001.safetensors"
    }
    assert bundle.manifest.attributes["smile"].kind == "delta_h"
    assert "attribute smile" not in bundle.manifest.provenance.sources
    check_sound(null_folder, before)


def test_remove(null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    add_attribute(bundle, "frown", direction(), "z_direction", "none", source=SOURCE)
    remove_attribute(bundle, "frown")
    assert check_sound(null_folder, before) == before
    names = list(bundle.manifest.attributes)
    for name in names:
        remove_attribute(bundle, name)
    after = check_sound(null_folder, before)
    assert before.keys() - after.keys() == {f"{name}.safetensors" for name in names}
    assert hspace.open(null_folder, engine="null").attributes == {}


def test_rename(null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    add_attribute(bundle, "frown", direction(), "z_direction", "none", source=SOURCE)
    names, entry = list(bundle.manifest.attributes), bundle.manifest.attributes["frown"]
    rename_attribute(bundle, "frown", "scowl")
    assert bundle.manifest.attributes["scowl"] == entry
    assert bundle.manifest.provenance.sources.keys() == {"checkpoint", "attribute scowl"}
    rename_attribute(bundle, "block", "Brett vorm Kopf 😀")
    assert list(bundle.manifest.attributes) == ["Brett vorm Kopf 😀", *names[1:-1], "scowl"]
    after = check_sound(null_folder, before)
    assert {k: v for k, v in after.items() if k in before and k != MANIFEST} == {
        k: v for k, v in before.items() if k != MANIFEST
    }


def test_presets(null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    base = bundle.preset()[1]
    set_preset(bundle, "fine", msgspec.structs.replace(base, encode_steps=20, t_edit=400))
    with pytest.raises(ArgumentError, match="preset: the bundle has 'fine' already"):
        set_preset(bundle, "fine", base)
    set_preset(bundle, "official", msgspec.structs.replace(base, decode_steps=8), replace=True)
    after = check_sound(null_folder, before)
    assert {k for k in after if after[k] != before.get(k)} == {MANIFEST}
    editor = hspace.open(null_folder, engine="null")
    assert len(editor.program("encode", preset="fine")) == 20 and len(editor.program("decode")) == 8
    for changes in ({"encode_steps": 37}, {"decode_steps": 0}, {"t_edit": -1}, {"sampler": "euler"}):
        with pytest.raises(BundleError, match=f"presets.odd.{next(iter(changes))}"):
            set_preset(bundle, "odd", msgspec.structs.replace(base, **changes))
    assert contents(null_folder) == after and "odd" not in bundle.manifest.presets


# --- failures ---------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Bundle], Any]] = {
    "add": lambda b: add_attribute(b, "frown", direction(), "z_direction", "none"),
    "replace": lambda b: add_attribute(b, "smile", direction(), "z_direction", "none", replace=True),
    "remove": lambda b: remove_attribute(b, "smile"),
    "rename": lambda b: rename_attribute(b, "smile", "grin"),
    "preset": lambda b: set_preset(b, "fine", b.preset()[1]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("error", [OutputError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_failure_changes_nothing(
    change: str, error: BaseException, null_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    manifest = bundle.manifest

    def fail(path: Path, *parts: bytes) -> None:
        if path.name == MANIFEST:
            raise error
        write_atomically(path, *parts)

    monkeypatch.setattr(amend, "write_atomically", fail)
    with pytest.raises(type(error)):
        CHANGES[change](bundle)
    assert contents(null_folder) == before and bundle.manifest is manifest
    assert sorted(p.name for p in null_folder.iterdir()) == sorted(before)  # no empty folder either
    monkeypatch.undo()
    CHANGES[change](bundle)
    check_sound(null_folder, before)


def test_an_attribute_that_cannot_be_written(null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)

    def fail(path: Path, *parts: bytes) -> None:
        if path.suffix == ".safetensors":
            raise OutputError(f"{path}: disk full")
        write_atomically(path, *parts)

    monkeypatch.setattr(amend, "write_atomically", fail)
    with pytest.raises(OutputError, match="disk full"):
        CHANGES["add"](bundle)
    assert contents(null_folder) == before and not (null_folder / "attributes").exists()


def test_a_full_disk(null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and nothing is left."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    before, bundle = contents(null_folder), Bundle(null_folder)
    monkeypatch.setattr("hspace.files.os.fsync", full)
    for change in CHANGES.values():
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            change(bundle)
    assert contents(null_folder) == before


def test_a_folder_that_cannot_be_made(null_folder: Path) -> None:
    """A file of the bundle may have the name that the folder of attributes would have."""
    bundle = Bundle(null_folder)
    entry = bundle.manifest.attributes["smile"]
    (null_folder / entry.file).rename(null_folder / "attributes")
    moved = {**bundle.manifest.attributes, "smile": msgspec.structs.replace(entry, file="attributes")}
    write_manifest(null_folder, msgspec.structs.replace(bundle.manifest, attributes=moved))
    before = contents(null_folder)
    with pytest.raises(OutputError, match="attributes: cannot be made"):
        CHANGES["add"](Bundle(null_folder))
    assert check_sound(null_folder, before) == before


def test_a_bundle_that_changed_meanwhile(null_folder: Path) -> None:
    """What is there now is amended, and the opened bundle knows of all of it."""
    before, bundle = contents(null_folder), Bundle(null_folder)
    add_attribute(Bundle(null_folder), "other", direction(seed=5), "z_direction", "none")
    for change in CHANGES.values():
        change(bundle) if change is not CHANGES["rename"] else rename_attribute(bundle, "beard", "grin")
    check_sound(null_folder, before)
    assert bundle.manifest == Bundle(null_folder).manifest
    assert set(bundle.manifest.attributes) == {"block", "table", "haas", "grin", "other", "frown"}
    with pytest.raises(ArgumentError, match="the bundle has 'other' already"):
        add_attribute(bundle, "other", direction(), "z_direction", "none")
    with pytest.raises(ArgumentError, match="no attribute 'smile'"):
        remove_attribute(bundle, "smile")


def test_another_model_meanwhile(null_folder: Path) -> None:
    """What was fitted to one is not added to the other."""
    bundle = Bundle(null_folder)
    data = b"\x08\x09\x3a\x02\x12\x00\x12\x01Z"
    replace_file(null_folder, "components.head", data)
    for change in CHANGES.values():
        with pytest.raises(BundleError, match="was replaced by another model meanwhile; open it again"):
            change(bundle)


def test_a_manifest_that_is_gone_or_spoilt(null_folder: Path) -> None:
    bundle = Bundle(null_folder)
    (null_folder / MANIFEST).write_text("{")
    with pytest.raises(BundleError, match="expected JSON"):
        CHANGES["add"](bundle)
    (null_folder / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"expected a bundle: a folder with a bundle\.json"):
        CHANGES["rename"](bundle)
    assert not (null_folder / "attributes").exists()
    shutil.rmtree(null_folder)
    with pytest.raises(OutputError, match="cannot be locked: No such file or directory"):
        CHANGES["preset"](bundle)


# --- what others left -------------------------------------------------------------------------------------


def test_remains_are_swept(null_folder: Path) -> None:
    """Of this kind alone: other hidden files, and what the journal says of places outside, stay."""
    outside = null_folder.parent / "outside"
    outside.mkdir()
    stay = [null_folder / ".hidden", null_folder / ".gitattributes", outside / "file", null_folder / "README.md"]
    stay += [null_folder / ".bundle.json.swp", null_folder / "more" / ".bundle.json.0123456789ab"]
    go = [null_folder / "attributes" / name for name in ("000.safetensors", ".001.safetensors.0123456789ab")]
    go += [null_folder / name for name in ("old.safetensors", ".bundle.json.0123456789ab", "..amend.0123456789ab")]
    for path in (*stay, *go):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    (null_folder / "link.safetensors").symlink_to(outside)
    (null_folder / "folder").mkdir()
    journal = [
        "attributes/000.safetensors",
        "old.safetensors",
        "link.safetensors",
        "link.safetensors/file",
        "../outside/file",
        "smile.safetensors",
    ]
    journal += [str(outside / "file"), "trunk.onnx", "bundle.json/x", "folder", "", ".", "..", "a\0b"]
    (null_folder / ".amend").write_text(json.dumps(journal))
    before = contents(null_folder)
    (null_folder / "link.safetensors").unlink()
    (null_folder / "link.safetensors").symlink_to(outside)
    Bundle(null_folder)
    CHANGES["preset"](Bundle(null_folder))
    after = contents(null_folder)
    assert before.keys() - after.keys() == {str(p.relative_to(null_folder)) for p in go} | {".amend"}
    assert after.keys() <= before.keys() and (outside / "file").exists() and (null_folder / "folder").is_dir()


@pytest.mark.parametrize("journal", [b"", b"{}", b"[1]", b'["\xff"]', b"[" * 100_000, b'["' + b"x" * 999 + b'"]'])
def test_a_journal_of_no_amend(journal: bytes, null_folder: Path) -> None:
    (null_folder / ".amend").write_bytes(journal)
    Bundle(null_folder)
    (null_folder / "extra.bin").write_text("x")
    with pytest.raises(BundleError, match=r"extra\.bin: not listed"):
        Bundle(null_folder)
    (null_folder / "extra.bin").unlink()
    CHANGES["preset"](Bundle(null_folder))
    assert not (null_folder / ".amend").exists()


def test_links_are_replaced_and_not_followed(null_folder: Path) -> None:
    """In a model hub's cache: what the links lead to is shared, and stays as it was."""
    blobs = null_folder.parent / "blobs"
    blobs.mkdir()
    for path in list(null_folder.iterdir()):
        path.rename(blobs / path.name)
        path.symlink_to(Path("..") / "blobs" / path.name)
    before, bundle = contents(blobs), Bundle(null_folder)
    for change in CHANGES.values():
        change(bundle) if change is not CHANGES["rename"] else rename_attribute(bundle, "beard", "grin")
    assert contents(blobs) == before
    assert {name for name, _ in Bundle(null_folder).verify()} | {MANIFEST} == contents(null_folder).keys()


@pytest.mark.parametrize("place", ["outside", "bundle/..data"])
def test_nothing_is_changed_behind_a_linked_folder(place: str, null_folder: Path) -> None:
    """Not even its last file removed, after which the link would stand there unlisted."""
    real = null_folder.parent / place
    CHANGES["add"](Bundle(null_folder))
    (null_folder / "attributes").rename(real)
    (null_folder / "attributes").symlink_to(real)
    before, bundle = contents(null_folder), Bundle(null_folder)
    with pytest.raises(OutputError, match=r"001\.safetensors: is behind a linked folder, where nothing is added"):
        add_attribute(bundle, "wave", table(), "delta_h", "symmetric")
    for change in (
        lambda: remove_attribute(bundle, "frown"),
        lambda: add_attribute(bundle, "frown", direction(), "z_direction", "none", replace=True),
    ):
        with pytest.raises(OutputError, match="is behind a linked folder"):
            change()
    assert contents(null_folder) == before and [p.name for p in real.iterdir()] == ["000.safetensors"]
    rename_attribute(bundle, "frown", "scowl")
    assert "scowl" in hspace.open(null_folder, engine="null").attributes


# --- refusals ---------------------------------------------------------------------------------------------

BAD_NAMES = ["", "a/b", "a=b", "a,b", "a\\b", "line\nbreak", "x" * 101, "\x1b[2J", "\udcff"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_a_manifest_cannot_hold(name: str, null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    for change, what in (
        (lambda: add_attribute(bundle, name, direction(), "z_direction", "none"), "attribute"),
        (lambda: rename_attribute(bundle, "smile", name), "attribute"),
        (lambda: set_preset(bundle, name, bundle.preset()[1]), "preset"),
    ):
        with pytest.raises(ArgumentError, match=f"{what}: found .*expected 1 to 100 printable"):
            change()
    assert contents(null_folder) == before


def test_a_source_whose_name_is_not_utf_8(null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    source = Source(file="\udcff.pth", sha256="a" * 64)
    with pytest.raises(BundleError, match="half of a surrogate pair"):
        add_attribute(bundle, "frown", direction(), "z_direction", "none", source=source)
    assert contents(null_folder) == before


def test_unknown_and_taken_names(null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    for change in (lambda: remove_attribute(bundle, "Smiel"), lambda: rename_attribute(bundle, "Smiel", "grin")):
        with pytest.raises(ArgumentError, match="no attribute 'Smiel'; did you mean smile"):
            change()
    for to in ("beard", "smile"):
        with pytest.raises(ArgumentError, match=f"the bundle has '{to}' already"):
            rename_attribute(bundle, "smile", to)
    assert contents(null_folder) == before


MISFITS: dict[str, tuple[bytes, str, str, int | None, str]] = {
    "length": (direction(7), "z_direction", "none", None, r"weight: found float32 \[7\], expected float32 \[6\]"),
    "no weight": (direction(weight=np.zeros(6, np.float32)), "z_direction", "none", None, "not all zero"),
    "std": (direction(std=np.zeros(6, np.float32)), "z_direction", "none", None, "std: found 0, expected values of"),
    "nan": (
        direction(mean=np.full(6, np.nan, np.float32)),
        "z_direction",
        "none",
        None,
        "mean: has values that are no",
    ),
    "more": (direction(extra=np.zeros(1, np.float32)), "z_direction", "none", None, "extra: unexpected"),
    "other kind": (direction(), "delta_h", "symmetric", None, "timesteps: expected int64"),
    "shape of h": (table(2, 16, 4, 4), "delta_h", "symmetric", None, r"found float32 \[2, 16, 4, 4\]"),
    "branch": (table(), "delta_h", "none", None, "branch: found none, expected asymmetric or symmetric"),
    "branch of a direction": (direction(), "z_direction", "symmetric", None, "branch: found symmetric, expected none"),
    "n_train": (table(), "delta_h", "asymmetric", 0, "n_train: expected `int` >= 1"),
    "garbage": (b"garbage", "delta_h", "symmetric", None, "expected a safetensors file"),
    "nothing": (b"", "delta_h", "symmetric", None, "expected a safetensors file"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_tensors_that_do_not_fit(name: str, null_folder: Path) -> None:
    before, bundle = contents(null_folder), Bundle(null_folder)
    data, kind, branch, n_train, message = MISFITS[name]
    with pytest.raises(BundleError, match=message):
        add_attribute(bundle, "new", data, kind, branch, n_train)  # type: ignore[arg-type]
    assert contents(null_folder) == before and not (null_folder / "attributes").exists()


def test_a_direction_for_a_model_without_z_sem(asyrp_folder: Path) -> None:
    before, bundle = contents(asyrp_folder), Bundle(asyrp_folder)
    with pytest.raises(BundleError, match="smile: a z_direction, and the model has no z_sem to move"):
        add_attribute(bundle, "smile", direction(), "z_direction", "none")
    assert contents(asyrp_folder) == before
    add_attribute(bundle, "wave", table(), "delta_h", "symmetric")
    check_sound(asyrp_folder, before)
