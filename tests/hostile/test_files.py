"""Latents and programs: files and values that are refused, and outputs that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hspace import Editor, Latent, Program
from hspace.errors import ArgumentError, HspaceError, ImageError, LatentError, OutputError, ProgramError
from hspace.files import read_file
from hspace.image import load_images, save_image
from hspace.program import ROW64
from safetensors import numpy as library

from .helpers import refused, safetensors, snapshot

FORMAT = {"format": "hspace-latent-1"}
X, Z = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 6), np.float32)


def tensors(metadata: dict[str, str] | None = None, **arrays: np.ndarray) -> bytes:
    return library.save(arrays, metadata=FORMAT if metadata is None else metadata)


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    array = array.copy()
    array.reshape(-1)[0] = value
    return array


GOOD = tensors(x_T=X, z_sem=Z)
LATENTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "expected a safetensors file"),
    "text": (b"hello, this is text", "expected a safetensors file"),
    "pickle": (b"\x80\x04K\x01.", "expected a safetensors file"),
    "header cut": (GOOD[:20], "expected a safetensors file"),
    "data cut": (GOOD[:-1], "expected a safetensors file"),
    "offsets out of range": (
        safetensors({"x_T": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(4)),
        "expected a safetensors file",
    ),
    "no format": (library.save({"x_T": X}), "expected a latent of format hspace-latent-1"),
    "another format": (tensors({"format": "hspace-latent-2"}, x_T=X), "expected a latent of format hspace-latent-1"),
    "an attribute": (library.save({"weight": Z[0]}), "expected a latent of format hspace-latent-1"),
    "no x_T": (tensors(z_sem=Z), "expected a latent of format"),
    "another tensor": (tensors(x_T=X, code=X), "expected a latent of format"),
    "x_T float64": (tensors(x_T=X.astype("f8")), "x_T: found float64 [1, 3, 8, 8], expected float32 [N, 3, H, W]"),
    "x_T float16": (tensors(x_T=X.astype("f2")), "x_T: found float16 [1, 3, 8, 8], expected float32"),
    "x_T of three dimensions": (tensors(x_T=X[0]), "x_T: found float32 [3, 8, 8], expected float32 [N, 3, H, W]"),
    "x_T of no image": (tensors(x_T=X[:0]), "x_T: found float32 [0, 3, 8, 8], expected float32"),
    "x_T NaN": (tensors(x_T=with_value(X, np.nan)), "x_T: has values that are not finite"),
    "z_sem of another N": (tensors(x_T=X, z_sem=np.zeros((2, 6), "f4")), "z_sem: found float32 [2, 6], expected"),
    "z_sem of one dimension": (tensors(x_T=X, z_sem=Z[0]), "z_sem: found float32 [6], expected float32 [1, D]"),
    "z_sem int64": (tensors(x_T=X, z_sem=Z.astype("i8")), "z_sem: found int64 [1, 6], expected float32"),
    "z_sem inf": (tensors(x_T=X, z_sem=with_value(Z, np.inf)), "z_sem: has values that are not finite"),
    "x_prev of another shape": (
        tensors(x_T=X, x_prev=np.zeros((1, 3, 8, 9), "f4")),
        "x_prev: found float32 [1, 3, 8, 9], expected x_T's [1, 3, 8, 8]",
    ),
    "x_prev NaN": (tensors(x_T=X, x_prev=with_value(X, np.nan)), "x_prev: has values that are not finite"),
}


@pytest.mark.parametrize("name", LATENTS)
def test_latent_file(name: str, tmp_path: Path) -> None:
    data, fragment = LATENTS[name]
    path = tmp_path / "face.safetensors"
    path.write_bytes(data)
    with refused(LatentError, f"{path}: {fragment}", unchanged=tmp_path):
        Latent.load(path)


def test_good_latent_file(tmp_path: Path) -> None:
    """What the table above spoils."""
    (tmp_path / "face.safetensors").write_bytes(GOOD)
    assert len(Latent.load(tmp_path / "face.safetensors")) == 1


@pytest.mark.parametrize(("where", "fragment"), [("nowhere", "no such file"), ("", "not a file")])
def test_latent_that_cannot_be_read(where: str, fragment: str, tmp_path: Path) -> None:
    with refused(LatentError, f"{tmp_path / where}: {fragment}"):
        Latent.load(tmp_path / where)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_latent_of_values_that_are_not_finite(value: float) -> None:
    with refused(LatentError, "x_T: has values that are not finite"):
        Latent(with_value(X, value), Z)


def test_latent_of_lists() -> None:
    with refused(LatentError, "x_T: found list, expected a float32 array"):
        Latent(X.tolist())


# --- programs -----------------------------------------------------------------------------------------


@pytest.fixture
def saved(null_diffae: Editor, tmp_path: Path) -> Path:
    null_diffae.program("edit", edits={"block": 1.0}, steps=5).save(tmp_path / "program.json")
    return tmp_path / "program.json"


def row(column: str, value: Any, index: int = 0) -> Callable[[dict[str, Any]], None]:
    """A change to one cell."""

    def change(found: dict[str, Any]) -> None:
        found["rows"][index][found["columns"].index(column)] = value

    return change


KEYS = "expected a program of format hspace-program-1 with the keys"
NUMBERS = "numbers in every row"
PROGRAMS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda p: p.update(format="hspace-program-2"), KEYS),
    "unknown key": (lambda p: p.update(code="x"), KEYS),
    "missing key": (lambda p: p.pop("name"), KEYS),
    "columns in another order": (lambda p: p["columns"].reverse(), "expected the columns alpha, sigma"),
    "a column fewer": (lambda p: p["columns"].pop(), "expected the columns alpha, sigma"),
    "a number too few": (lambda p: p["rows"][1].pop(), NUMBERS),
    "a number too many": (lambda p: p["rows"][1].append(0), NUMBERS),
    "rows that are none": (lambda p: p.update(rows=5), NUMBERS),
    "rows of numbers": (lambda p: p.update(rows=[1, 2]), NUMBERS),
    "null": (row("alpha", None), NUMBERS),
    "word": (row("alpha", "one"), NUMBERS),
    "number as text": (row("alpha", "0.5"), NUMBERS),
    "list as number": (row("alpha", [0.5]), NUMBERS),
    "timestep that is not whole": (row("t", 1.5), NUMBERS),
    "timestep beyond int32": (row("t", 2**31), NUMBERS),
    "timestep below zero": (row("t", -1), "column"),
    "clip beyond uint8": (row("clip", 256), NUMBERS),
    "clip below zero": (row("clip", -1), NUMBERS),
    "clip 3": (row("clip", 3), "column clip has values above 2"),
    "draws 2": (row("draws", 2), "column draws has values above 1"),
    "branch 3": (row("branch", 3), "column branch has values above 2"),
    "no rows": (lambda p: p.update(rows=[]), "a program has at least one row"),
    "NaN": (row("c_x0", float("nan")), "column c_x0 has values that are not finite"),
    "Infinity": (row("sigma", float("inf")), "column sigma has values that are not finite"),
    "beyond float32": (row("c_eps", 1e39), "column c_eps has values that are not finite"),
    "beyond float64": (row("c_eps", 10**400), NUMBERS),
    "alpha 0": (row("alpha", 0), "column alpha has values that are not positive; P divides by it"),
    "alpha below zero": (row("alpha", -0.5), "column alpha has values that are not positive"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(name: str, saved: Path) -> None:
    change, fragment = PROGRAMS[name]
    found = json.loads(saved.read_bytes())
    change(found)
    saved.write_text(json.dumps(found))
    with refused(ProgramError, f"{saved}: ", fragment, unchanged=saved.parent):
        Program.load(saved)


NOT_JSON = {"empty": b"", "text": b"x", "binary": b"\x80\x04", "deep": b"[" * 100_000, "UTF-16": "{}".encode("utf-16")}


@pytest.mark.parametrize("name", NOT_JSON)
def test_program_that_is_no_json(name: str, saved: Path) -> None:
    saved.write_bytes(NOT_JSON[name])
    with refused(ProgramError, f"{saved}: expected a program"):
        Program.load(saved)


def test_program_cut_short(saved: Path) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: len(data) // 2])
    with refused(ProgramError, f"{saved}: expected a program in JSON"):
        Program.load(saved)


@pytest.mark.parametrize("text", ["[]", "null", "5", '"program"'])
def test_program_that_is_no_object(text: str, saved: Path) -> None:
    saved.write_text(text)
    with refused(ProgramError, f"{saved}: {KEYS}"):
        Program.load(saved)


@pytest.mark.parametrize(("where", "fragment"), [("nowhere", "no such file"), ("", "not a file")])
def test_program_that_cannot_be_read(where: str, fragment: str, tmp_path: Path) -> None:
    with refused(ProgramError, f"{tmp_path / where}: {fragment}"):
        Program.load(tmp_path / where)


# --- what is no file ----------------------------------------------------------------------------------

READERS: dict[str, tuple[Callable[[Path], object], type[HspaceError]]] = {
    "latent": (Latent.load, LatentError),
    "program": (Program.load, ProgramError),
    "image": (lambda p: load_images(p, 8), ImageError),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a device", "loop", "long name", "NUL"])
def test_input_that_is_no_file(reader: str, kind: str, tmp_path: Path) -> None:
    """Reading a pipe would wait for ever, and reading /dev/zero would take all memory."""
    read, error = READERS[reader]
    path, fragment = tmp_path / "x", "not a file"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
        fragment = "cannot be read: Too many levels"
    else:
        path, fragment = tmp_path / ("x" * 5000 if kind == "long name" else "x\0y"), "cannot be read: "
    with refused(error, f"{path}: {fragment}"):
        read(path)


@pytest.mark.parametrize("most", [2**24, 2**31 - 1])
def test_input_beyond_the_limit(most: int, tmp_path: Path) -> None:
    with open(tmp_path / "x", "wb") as f:
        f.truncate(most + 1)
    with refused(ProgramError, f"x: found {most + 1} bytes, expected at most {most}"):
        read_file(tmp_path / "x", ProgramError, most)


def test_latent_too_large_to_be_read_again(tmp_path: Path) -> None:
    """Refused when it is saved. The array is a view of one number."""
    x = np.broadcast_to(np.float32(0), (2**10, 3, 512, 512))
    latent = object.__new__(Latent)
    for name, value in (("x_T", x), ("z_sem", None), ("x_prev", None), ("provenance", {})):
        object.__setattr__(latent, name, value)
    with refused(LatentError, "x.safetensors: 1024 images are too many", unchanged=tmp_path):
        latent.save(tmp_path / "x.safetensors")


# --- outputs ------------------------------------------------------------------------------------------

WRITERS: dict[str, Callable[[Path], object]] = {
    "x.png": lambda p: save_image(p, np.zeros((8, 8, 3), np.uint8)),
    "x.safetensors": lambda p: Latent(X, Z).save(p),
    "x.json": lambda p: Program.from_rows("p", np.ones(1, ROW64)).save(p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_output_into_no_folder(name: str, tmp_path: Path) -> None:
    with refused(OutputError, f"{tmp_path / 'no' / name}: cannot be written: No such file", unchanged=tmp_path):
        WRITERS[name](tmp_path / "no" / name)


@pytest.mark.parametrize("name", WRITERS)
def test_output_onto_a_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with refused(OutputError, f"{tmp_path / name}: cannot be written: ", unchanged=tmp_path):
        WRITERS[name](tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_output_onto_what_is_no_file(name: str, tmp_path: Path) -> None:
    """A device, above all: the rename would put a file in its place."""
    os.mkfifo(tmp_path / name)
    with refused(OutputError, f"{tmp_path / name}: cannot be written: not a file"):
        WRITERS[name](tmp_path / name)
    assert (tmp_path / name).is_fifo()
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("/dev/null")
    with refused(OutputError, f"{tmp_path / name}: cannot be written: not a file"):
        WRITERS[name](tmp_path / name)
    assert (tmp_path / name).is_symlink() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", WRITERS)
def test_output_onto_links(name: str, tmp_path: Path) -> None:
    """The link is replaced, and what it leads to stays."""
    (tmp_path / "old").write_text("mine")
    for target in ("old", "nowhere"):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
        WRITERS[name](tmp_path / name)
        assert not (tmp_path / name).is_symlink()
    assert (tmp_path / "old").read_text() == "mine" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", WRITERS)
def test_output_that_fails_half_way(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: what was there stays, and no temporary file does."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / name).write_bytes(b"before")
    monkeypatch.setattr("hspace.files.os.fsync", full)
    with refused(OutputError, f"{tmp_path / name}: cannot be written: No space left on device", unchanged=tmp_path):
        WRITERS[name](tmp_path / name)
    monkeypatch.undo()
    WRITERS[name](tmp_path / name)
    assert list(snapshot(tmp_path)) == [name]
    assert snapshot(tmp_path)[name] != b"before"


@pytest.mark.parametrize("name", ["x", "x.gif", "x.PNGG", "png"])
def test_output_of_an_unknown_suffix(name: str, tmp_path: Path) -> None:
    with refused(ArgumentError, f"{tmp_path / name}: found the suffix", "expected one of .png", unchanged=tmp_path):
        save_image(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
