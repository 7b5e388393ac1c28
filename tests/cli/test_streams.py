"""`-`: stdin and stdout."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hspace
import hspace.cli
import numpy as np
import PIL.Image
import pytest
from hspace import Latent
from hspace.sheet import grid

from .conftest import NULL_WARNING, Cli, Result, pixels

Piped = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Piped:
    """Runs `hspace` with those bytes on stdin; its exit code, the bytes on stdout, and the text on stderr."""
    monkeypatch.delenv("HSPACE_BUNDLE", raising=False)

    def run(data: bytes, *arguments: object) -> tuple[int, bytes, str]:
        capsys.readouterr()
        out, code = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), 0
        with monkeypatch.context() as patch:
            patch.setattr("sys.argv", ["hspace", *map(str, arguments)])
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
            patch.setattr("sys.stdout", out)
            try:
                hspace.cli.main()
            except SystemExit as e:
                code = 0 if e.code is None else int(e.code)
        out.flush()
        return code, out.buffer.getvalue(), capsys.readouterr().err.replace(NULL_WARNING, "")  # type: ignore[attr-defined]

    return run


def decoded(data: bytes) -> tuple[str | None, np.ndarray]:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return image.format, np.asarray(image)


@pytest.mark.parametrize(
    ("kind", "name"), [(None, "PNG"), ("png", "PNG"), ("bmp", "BMP"), ("jpg", "JPEG"), ("webp", "WEBP")]
)
def test_edit(
    kind: str | None,
    name: str,
    piped: Piped,
    on: list[object],
    photos: Path,
    tmp_path: Path,
    null_diffae: hspace.Editor,
) -> None:
    """The bytes of a file, and what is said, on stderr."""
    options = ["--set", "smile=1", *(["--format", kind] if kind else [])]
    code, out, err = piped((photos / "a.png").read_bytes(), "edit", "-", *on, *options, "-o", "-")
    assert code == 0 and err.startswith("wrote stdout in ") and err.endswith("(engine null, fp32)\n")
    found, array = decoded(out)
    expected = null_diffae.edit(photos / "a.png", {"smile": 1.0})[0]
    assert found == name
    if name in ("PNG", "BMP"):
        np.testing.assert_array_equal(array, expected)
    else:
        assert array.shape == expected.shape


def test_quality(piped: Piped, on: list[object], photos: Path) -> None:
    data = (photos / "a.png").read_bytes()
    sizes = [len(piped(data, "edit", "-", *on, "--format", "jpg", "--quality", q, "-o", "-")[1]) for q in (1, 50, 100)]
    assert sizes == sorted(set(sizes))


def test_encode_decode_and_classify(
    piped: Piped, on: list[object], photos: Path, tmp_path: Path, null_diffae: hspace.Editor
) -> None:
    data = (photos / "a.png").read_bytes()
    code, latent, err = piped(data, "encode", "-", *on, "--json", "-o", "-")
    assert code == 0 and json.loads(err)["outputs"] == ["-"]
    np.testing.assert_array_equal(Latent.from_bytes(latent).x_T, null_diffae.encode(photos / "a.png").x_T)
    _, image, _ = piped(latent, "decode", "-", *on, "-o", "-")
    np.testing.assert_array_equal(decoded(image)[1], null_diffae.reconstruct(photos / "a.png")[0])
    _, scores, err = piped(data, "classify", "-", *on, "--json")
    found = json.loads(scores)["images"]
    assert (found[0]["file"], err) == ("-", "")
    np.testing.assert_allclose(found[0]["logits"], null_diffae.classify(photos / "a.png")[0], rtol=1e-5)


def test_a_stream_among_files(piped: Piped, on: list[object], photos: Path, tmp_path: Path, cli: Cli) -> None:
    """In a folder it is called stdin; a file of the name - is one by its folder."""
    piped((photos / "b.png").read_bytes(), "edit", photos / "a.png", "-", *on, "-o", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "stdin.png"]
    cli("edit", photos / "b.png", *on, "-o", tmp_path / "b.png").check()
    np.testing.assert_array_equal(pixels(tmp_path / "out" / "stdin.png"), pixels(tmp_path / "b.png"))
    (photos / "-").write_bytes((photos / "b.png").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photos)
        code, _, _ = piped(b"", "edit", "./-", *on, "-o", tmp_path / "c.png")
    assert code == 0
    np.testing.assert_array_equal(pixels(tmp_path / "c.png"), pixels(tmp_path / "b.png"))


def test_pictures(piped: Piped, on: list[object], photos: Path, null_diffae: hspace.Editor) -> None:
    """Of an image or a latent, which its header tells."""
    data = (photos / "a.png").read_bytes()
    latent = null_diffae.encode(photos / "a.png")
    expected = grid("-", 2, 8).draw(null_diffae.vary(latent, 2))
    for stdin in (data, latent.to_bytes()):
        code, out, _ = piped(stdin, "vary", "-", *on, "--count", 2, "-o", "-")
        assert code == 0
        np.testing.assert_array_equal(decoded(out)[1], expected)
    code, out, _ = piped(data, "interpolate", "-", photos / "b.png", *on, "--frames", 2, "--format", "webp", "-o", "-")
    assert (code, decoded(out)[0]) == (0, "WEBP")


REFUSED = {
    "empty": (b"", [], 4, "-: expected an image (PNG"),
    "text": (b"hello", [], 4, "-: expected an image (PNG"),
    "quality": (b"", ["--quality", "90"], 2, "--quality: found it for png, expected it for jpg or webp"),
    "quality 0": (
        b"",
        ["--format", "jpg", "--quality", "0"],
        2,
        "--quality: found 0, expected a whole number from 1 to",
    ),
    "format": (b"", ["--format", "tiff"], 2, "'tiff' is not one of"),
    "attribute": (b"", ["--set", "smiel=1"], 2, "did you mean smile?"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, piped: Piped, on: list[object]) -> None:
    """Nothing on stdout."""
    data, options, code, says = REFUSED[name]
    found = piped(data, "edit", "-", *on, *options, "-o", "-")
    assert found[:2] == (code, b"") and says in found[2] and found[2].count("\n") == 1


def test_two_inputs_for_stdout(cli: Cli, on: list[object], photos: Path) -> None:
    cli("edit", photos, *on, "-o", "-").error(2, "-: found 3 inputs for one file")


def test_terminals_are_no_streams(bundle: Path, photos: Path, tmp_path: Path) -> None:
    """Neither is waited for, nor written on."""
    main, other = pty.openpty()
    command = [sys.executable, "-m", "hspace", "edit", "-b", str(bundle), "--engine", "null"]
    try:
        found = subprocess.run(
            [*command, "-", "-o", tmp_path / "x.png"],
            stdin=other,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        Result(found.returncode, found.stdout, found.stderr).error(4, "-: stdin is a terminal")
        found = subprocess.run(
            [*command, photos / "a.png", "-o", "-"],
            stdout=other,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
        Result(found.returncode, "", found.stderr).error(7, "-: stdout is a terminal")
    finally:
        os.close(main)
        os.close(other)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["edit", "a.png", "-o", "-"], ["info"]], ids=["edit", "info"])
def test_a_full_disk_behind_stdout(arguments: list[str], bundle: Path, photos: Path) -> None:
    command = [sys.executable, "-m", "hspace", *arguments, "-b", str(bundle)]
    command += ["--engine", "null"] if arguments[0] == "edit" else []
    with open("/dev/full", "w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=photos, check=False)
    assert found.returncode != 0
    assert found.stderr.startswith("hspace: error: ") and found.stderr.count("\n") == 1
    assert "No space left on device" in found.stderr


def test_a_reader_that_went_away(bundle: Path, photos: Path) -> None:
    """No traceback, no message: `| head` is no error of the user's."""
    command = [sys.executable, "-m", "hspace", "info", str(bundle), "--program", "decode"]
    for more in (["info", str(bundle)], ["edit", "a.png", "-b", str(bundle), "--engine", "null", "-o", "-"]):
        reader, writer = os.pipe()
        os.close(reader)
        found = subprocess.run(
            [*command[:3], *more], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=photos, check=False
        )
        os.close(writer)
        assert (found.returncode, found.stderr) == (1, ""), more
