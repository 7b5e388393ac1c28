"""The command line as a whole: help, errors, and the process that a shell sees."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import hspace
import hspace.cli
import pytest
from hspace.bundle import Bundle
from hspace.cli import _COMMANDS
from hspace.errors import needs

from ..conftest import BUNDLES, GOLDEN
from ..hostile.helpers import png
from .conftest import NULL_WARNING, Cli, pixels


def process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m hspace.cli`, as a shell would run it."""
    kept = {k: v for k, v in os.environ.items() if k != "HSPACE_BUNDLE"}
    command = [sys.executable, "-m", "hspace.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=kept | environment, encoding="utf-8", timeout=60, check=False
    )


# --- help ---------------------------------------------------------------------------------------------


def test_help(cli: Cli) -> None:
    out = cli("--help").check().out
    assert out == cli("-h").check().out
    assert "Examples:" in out and "Semantic image editing" in out
    for name, (_, _, text) in _COMMANDS.items():
        assert f"  {name} " in out and text in out


@pytest.mark.parametrize("command", [*_COMMANDS, "export diffae", "export asyrp"])
def test_help_of_a_command(command: str, cli: Cli) -> None:
    if command.startswith("export"):
        pytest.importorskip("torch", reason="exports need the extra `export`")
    out = cli(*command.split(), "--help").check().out
    assert out.startswith("Usage: ") and f"hspace {command} [OPTIONS]" in out
    assert out == cli(*command.split(), "-h").check().out
    assert f"hspace {command}" in out.partition("Examples:")[2].partition("Options:")[0]


def test_help_of_shared_options(cli: Cli) -> None:
    """Options that commands share are in the help of each."""
    for command in ("edit", "encode", "decode", "interpolate", "sample", "vary", "classify", "bench"):
        out = cli(command, "--help").check().out
        for option in ("--bundle", "--engine", "--threads", "--batch-size", "--json", "HSPACE_BUNDLE"):
            assert option in out, (command, option)


def test_version(cli: Cli) -> None:
    assert hspace.__version__ in cli("--version").check().out


def test_nothing(cli: Cli) -> None:
    result = cli()
    assert result.code == 2
    assert "Examples:" in result.out + result.err


def test_unknown_command(cli: Cli) -> None:
    cli("edti").error(2, "No such command 'edti'")
    cli("--colour").error(2, "No such option", "--colour")


def examples(command: click.Command) -> list[list[str]]:
    """The examples of a command's help, and of those below it, as arguments of `hspace`."""
    text = (command.help or "").partition("Examples:")[2].replace("\\\n", " ")
    found = [shlex.split(line)[1:] for line in text.splitlines() if line.strip()]
    if isinstance(command, click.Group):
        context = click.Context(command)
        below = [command.get_command(context, name) for name in command.list_commands(context)]
        found += [example for c in below if c is not None for example in examples(c)]
    return found


def test_examples_parse_and_name_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Options are known, and the shipped bundle has the attributes and the presets that are asked of it."""
    for extra in ("torch", "sklearn", "skimage", "matplotlib"):
        pytest.importorskip(extra, reason="the help of every command needs the extras `export` and `fit`")
    monkeypatch.delenv("HSPACE_BUNDLE", raising=False)
    manifest, checked = Bundle(BUNDLES / "avatars32").manifest, 0
    every = examples(hspace.cli.hspace)
    assert len(every) > len(_COMMANDS)
    for example in every:
        command: click.Command = hspace.cli.hspace
        rest = [*example]
        while isinstance(command, click.Group):
            below = command.get_command(click.Context(command), rest.pop(0))
            assert below is not None, example
            command = below
        given = command.make_context(" ".join(example), rest).params  # raises where an option is unknown
        if str(given.get("bundle")) != "bundles/avatars32":
            continue
        named = [name for option in ("strengths", "ranges", "accept") for name, _ in given.get(option) or ()]
        new = example[:2] == ["attribute", "fit"]
        named += [given["name"]] if example[0] == "attribute" and "name" in given else []
        assert [name for name in named if name not in manifest.attributes] == [], example
        assert not new or not set(given["names"]) & set(manifest.attributes), example
        assert (given.get("preset") or manifest.default_preset) in manifest.presets, example
        checked += bool(named)
    assert checked >= 8


# --- the process --------------------------------------------------------------------------------------


def test_process(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    found = process(
        "edit", photos / "a.png", "--engine", "null", "--set", "smile=1", "--json", "-o", out, HSPACE_BUNDLE=str(bundle)
    )
    assert (found.returncode, found.stderr) == (0, NULL_WARNING)
    assert json.loads(found.stdout)["outputs"] == [str(out)]
    assert pixels(out).shape == (8, 8, 3)


def test_process_of_an_error(null_folder: Path, photos: Path, tmp_path: Path) -> None:
    """Several faults, of which one carries what a terminal would act on: still one line."""
    (null_folder / "head.onnx").unlink()
    (null_folder / "evil\n\x1b[2J.py").write_text("")
    found = process("edit", photos / "a.png", "-b", null_folder, "--engine", "null", "-o", tmp_path / "out.png")
    assert (found.returncode, found.stdout) == (3, "")
    assert found.stderr.startswith("hspace: error: ") and found.stderr.count("\n") == 1
    assert "head.onnx: missing" in found.stderr and "Traceback" not in found.stderr
    assert "\x1b" not in found.stderr
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("size", [(10_000, 10_000), (60_000, 60_000)], ids=["Pillow warns", "Pillow refuses"])
def test_process_of_a_bomb(size: tuple[int, int], bundle: Path, tmp_path: Path) -> None:
    """Pillow warns of its own accord between its limit and twice that; ours is the only line."""
    (tmp_path / "bomb.png").write_bytes(png(*size, 8, 2, b"\0"))
    found = process("edit", tmp_path / "bomb.png", "-b", bundle, "--engine", "null", "-o", tmp_path / "out.png")
    assert (found.returncode, found.stdout) == (4, "")
    assert found.stderr.startswith("hspace: error: ") and found.stderr.count("\n") == 1, found.stderr
    assert "67108864" in found.stderr


def test_process_without_unicode(bundle: Path) -> None:
    """A terminal that cannot show × gets something else, not a traceback."""
    found = process("info", bundle, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert "Traceback" not in found.stderr
    assert found.returncode == 0


def test_import_is_light() -> None:
    """`hspace --help` loads no library that only work needs."""
    code = "import sys, hspace.cli; print([m for m in ('numpy', 'onnxruntime', 'PIL', 'torch') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


# --- export -------------------------------------------------------------------------------------------

CLASSIFIER, DDPM = GOLDEN / "diffae-tiny" / "cls_last.ckpt", GOLDEN / "asyrp-ddpm-tiny" / "model.ckpt"
EXPORTS: dict[str, tuple[list[object], int, list[str]]] = {
    "no such file": (["diffae", "nowhere.ckpt"], 6, ["nowhere.ckpt: no such file"]),
    "classifier": (["diffae", CLASSIFIER], 6, ["looks like a DiffAE classifier"]),
    "other family": (["diffae", DDPM], 6, ["looks like a DDPM U-Net (hspace export asyrp)"]),
    "no image size": (["asyrp", DDPM], 2, ["give --preset or --image-size"]),
    "attribute without a name": (["asyrp", DDPM, "--attribute", "x.pth"], 2, ["--attribute", "expected NAME=FILE"]),
    "attribute twice": (["asyrp", DDPM, "--attribute", "a=x", "--attribute", "a=y"], 2, ["'a' is given twice"]),
    "attribute missing": (
        ["asyrp", DDPM, "--image-size", "32", "--attribute", "a=nowhere.pth"],
        6,
        ["nowhere.pth: no such file"],
    ),
    "schedule": (["asyrp", DDPM, "--schedule", "sigmoid"], 2, ["schedule: found 'sigmoid', expected linear"]),
    "preset": (["asyrp", DDPM, "--preset", "cats"], 2, ["'cats' is not one of"]),
    "config": (["asyrp", DDPM, "--config", "nowhere.json"], 6, ["nowhere.json: no such file"]),
    "image size": (["asyrp", DDPM, "--image-size", "0"], 2, ["image"]),
    "image size that the network cannot halve": (["asyrp", DDPM, "--image-size", "33"], 2, ["image"]),
    "heads": (
        ["asyrp", GOLDEN / "asyrp-iddpm-tiny" / "model.ckpt", "--image-size", "32", "--num-heads", "0"],
        2,
        ["heads"],
    ),
    "no checkpoint": (["asyrp"], 2, ["Missing argument 'CHECKPOINT'"]),
    "unknown family": (["gan", DDPM], 2, ["No such command 'gan'"]),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_export(name: str, cli: Cli, tmp_path: Path) -> None:
    """Progress lines may come before the error, which is the last line."""
    pytest.importorskip("torch", reason="exports need the extra `export`")
    arguments, code, fragments = EXPORTS[name]
    result = cli("export", *arguments, "-o", tmp_path / "out")
    last = result.err.splitlines()[-1]
    assert last.startswith("hspace: error: ") and [f for f in fragments if f not in last] == [], result.err
    assert (result.code, result.out) == (code, "")
    assert list(tmp_path.iterdir()) == []


def test_export_onto_a_folder(cli: Cli, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exports need the extra `export`")
    (tmp_path / "out").mkdir()
    arguments = ["export", "asyrp", DDPM, "--image-size", 32, "-o", tmp_path / "out"]
    cli(*arguments).error(7, "out: exists already (--force replaces it)")
    cli(*arguments, "--force").error(7, "out: exists and is not a sound bundle, so it is not replaced")
    assert list((tmp_path / "out").iterdir()) == []


def test_export_without_torch() -> None:
    """The lean runtime says what is missing, and how to have it."""
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['hspace', 'export', 'diffae', 'x', '-o', 'y']; "
    code += "from hspace.cli import main; main()"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == f"hspace: error: {needs('hspace export', 'torch', 'export')}\n"
