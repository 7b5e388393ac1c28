"""Latents and programs: files and values that are refused, and outputs that are written whole or not at all."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hspace import Editor, Latent, Program, files
from hspace.amend import add_attribute, rename_attribute, set_preset
from hspace.bundle import Bundle
from hspace.checks import quoted, raise_faults
from hspace.errors import ArgumentError, HspaceError, ImageError, LatentError, OutputError, ProgramError
from hspace.files import read_file, write_atomically
from hspace.image import load_images, save_image
from hspace.program import ROW64
from safetensors import numpy as library

from ..stepping import FINISHED, INTERRUPTED, stopped
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


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_output_keeps_permissions(mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the file that it replaces, from its first byte on; a new file has the umask's."""
    seen = []
    sync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        sync(descriptor)

    (tmp_path / "x").write_bytes(b"before")
    (tmp_path / "x").chmod(mode)
    monkeypatch.setattr("hspace.files.os.fsync", look)
    write_atomically(tmp_path / "x", b"after")
    assert (tmp_path / "x").read_bytes() == b"after"
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == seen[0] == mode
    mask = os.umask(0o077)
    try:
        write_atomically(tmp_path / "y", b"new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "y").stat().st_mode) == 0o600


def test_output_that_is_interrupted(tmp_path: Path) -> None:
    """Before each of its steps: the file has the old contents or the new ones, and nothing else is left."""
    for number in itertools.count():
        (tmp_path / "x").write_bytes(b"before")
        code = stopped(lambda: write_atomically(tmp_path / "x", b"after"), tmp_path, number, "interrupt")
        assert (tmp_path / "x").read_bytes() in (b"before", b"after")
        assert list(snapshot(tmp_path)) == ["x"]
        if code == FINISHED:
            break
        assert code == INTERRUPTED
    assert number > 3


def test_output_where_folders_cannot_be_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("hspace.files.os.open", refuse)
    write_atomically(tmp_path / "x", b"new")
    assert snapshot(tmp_path) == {"x": b"new"}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EIO])
def test_shortage_is_named(reader: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not told as a file of another kind."""
    if reader == "image":
        pytest.skip("Pillow opens it")
    (tmp_path / "x").write_bytes(GOOD)

    def short(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    read, error = READERS[reader]
    monkeypatch.setattr("hspace.files.os.open", short)
    with refused(error, f"{tmp_path / 'x'}: cannot be read: {os.strerror(number)}"):
        read(tmp_path / "x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.EROFS, errno.EACCES, errno.EIO])
@pytest.mark.parametrize("call", ["builtins.open", "os.replace", "os.fsync"])
def test_shortage_of_outputs_is_named(number: int, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    (tmp_path / "x").write_bytes(b"before")
    with monkeypatch.context() as patch, refused(OutputError, f"x: cannot be written: {os.strerror(number)}"):
        patch.setattr(call, short)
        write_atomically(tmp_path / "x", b"after")
    assert snapshot(tmp_path) == {"x": b"before"}


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a longer one, after its size was looked at: all of it is read, not the old length of it."""
    (tmp_path / "x").write_bytes(b"short")
    check = files.check_file

    def late(path: Path, error: type[HspaceError]) -> int:
        size = check(path, error)
        write_atomically(path, b"something longer")
        return size

    monkeypatch.setattr(files, "check_file", late)
    assert read_file(tmp_path / "x", ProgramError) == b"something longer"
    with refused(ProgramError, "x: found 16 bytes, expected at most 5"):
        read_file(tmp_path / "x", ProgramError, 5)


# --- provenance and headers -------------------------------------------------------------------------------

PROVENANCES: dict[str, tuple[Any, str]] = {
    "a list": ([("a", "b")], "provenance: expected texts by name"),
    "nothing": (None, "provenance: expected texts by name"),
    "a name that is no text": ({1: "a"}, "provenance: expected texts by name"),
    "a value that is no text": ({"a": 1}, "provenance: expected texts by name"),
    "bytes": ({"a": b"x"}, "provenance: expected texts by name"),
    "the format's own name": ({"format": "x"}, "provenance: found 'format', which is the file's own"),
    "half a surrogate": ({"a": "\ud800"}, "provenance: found half of a surrogate pair"),
    "half a surrogate as a name": ({"\udfff": "a"}, "provenance: found half of a surrogate pair"),
    "a name of the file system's": ({"bundle": os.fsdecode(b"\xff")}, "provenance: found half of a surrogate pair"),
    "too much": ({"a": "ä" * 2**19}, "provenance: found 1048577 bytes, expected at most 1048576"),
}


@pytest.mark.parametrize("name", PROVENANCES)
def test_provenance(name: str, tmp_path: Path) -> None:
    """Refused when the latent is made, and when it was changed afterwards."""
    provenance, says = PROVENANCES[name]
    with refused(LatentError, says):
        Latent(X, Z, provenance=provenance)
    latent = Latent(X, Z)
    object.__setattr__(latent, "provenance", provenance)
    with refused(LatentError, says, unchanged=tmp_path):
        latent.save(tmp_path / "x.safetensors")


def test_provenance_that_is_kept(tmp_path: Path) -> None:
    told = {"bundle": "Gesichter 😀", "": "", "a\nb": "\x00", "preset": "x" * 2**19}
    Latent(X, Z, provenance=told).save(tmp_path / "x.safetensors")
    found = Latent.load(tmp_path / "x.safetensors")
    assert found.provenance == told and np.array_equal(found.x_T, X)


HEADERS: dict[str, tuple[bytes, str]] = {
    "metadata of a number": (b'{"__metadata__": {"a": 1}}', "expected a safetensors file"),
    "metadata of a list": (b'{"__metadata__": []}', "expected a safetensors file"),
    "metadata in metadata": (b'{"__metadata__": {"a": {"b": "c"}}}', "expected a safetensors file"),
    "metadata of null": (b'{"__metadata__": {"format": null}}', "expected a safetensors file"),
    "half a surrogate": (b'{"__metadata__": {"a": "\\ud800"}}', "expected a safetensors file"),
    "not UTF-8": (b'{"__metadata__": {"a": "\xff"}}', "expected a safetensors file"),
    "a name twice": (b'{"__metadata__": {"a": "b", "a": "c"}}', "expected a safetensors file"),
    "more than 16 MiB": (
        b'{"__metadata__": {"a": "' + b"x" * 2**24 + b'"}}',
        "found a header of 16777243 bytes, expected",
    ),
    "provenance of 2 MiB": (
        b'{"__metadata__": {"format": "hspace-latent-1", "a": "' + b"x" * 2**21 + b'"}, '
        b'"x_T": {"dtype": "F32", "shape": [1, 3, 1, 1], "data_offsets": [0, 12]}}',
        "provenance: found 2097153 bytes, expected at most 1048576",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_header(name: str, tmp_path: Path) -> None:
    header, says = HEADERS[name]
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(header, bytes(12)))
    with refused(LatentError, f"{path}: {says}"):
        Latent.load(path)


# --- what messages quote ----------------------------------------------------------------------------------


class Odd:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("smile", "'smile'"),
        (7, "7"),
        ("x" * 100, repr("x" * 100)),
        ("x" * 140_000, "'" + "x" * 99 + "…"),
        (b"\0" * 140_000, "b'" + "\\x00" * 24 + "\\x…"),
        (10**5000, "a value of type int"),
        (Odd(), "a value of type Odd"),
        (["x" * 1000], "['" + "x" * 98 + "…"),
    ],
    ids=["text", "number", "long enough", "too long", "bytes", "digits", "no repr", "inside"],
)
def test_quoted(value: object, text: str) -> None:
    assert quoted(value) == text


@pytest.mark.parametrize("name", ["x" * 140_000, 10**5000, "\ud800"], ids=["long", "digits", "surrogate"])
def test_names_are_quoted_in_short(name: Any, null_folder: Path) -> None:
    bundle = Bundle(null_folder)
    preset = bundle.preset()[1]
    for call in (
        lambda: bundle.preset(name),
        lambda: bundle.component(name),
        lambda: set_preset(bundle, name, preset),
        lambda: rename_attribute(bundle, "smile", name),
        lambda: add_attribute(bundle, name, b"", "z_direction", "none"),
    ):
        with pytest.raises(HspaceError) as caught:
            call()
        assert 20 < len(str(caught.value)) < 1000


def test_many_long_faults_are_cut() -> None:
    with pytest.raises(LatentError) as caught:
        raise_faults(LatentError, "x", ["f" * 10_000] * 70)
    assert len(str(caught.value)) < 13_000 and str(caught.value).endswith("; and 61 more")


@pytest.mark.parametrize("name", ["x", "x.gif", "x.PNGG", "png"])
def test_output_of_an_unknown_suffix(name: str, tmp_path: Path) -> None:
    with refused(ArgumentError, f"{tmp_path / name}: found the suffix", "expected one of .png", unchanged=tmp_path):
        save_image(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
