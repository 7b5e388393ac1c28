"""The bundle: behind -b, in HSPACE_BUNDLE, or first among a command's arguments."""

from __future__ import annotations

import shutil
from pathlib import Path

import click
import hspace.cli
import pytest
from hspace.bundle import Bundle

from .conftest import Cli

ONE: dict[str, list[object]] = {
    "info": [],
    "verify": ["--engine", "null"],
    "attribute list": [],
}
MORE: dict[str, list[object]] = {
    "attribute remove": ["beard"],
    "attribute rename": ["beard", "moustache"],
    "attribute export": ["smile", "out.safetensors"],
    "attribute add": ["again", "smile.safetensors"],
}


@pytest.mark.parametrize("command", [*ONE, *MORE])
def test_three_ways(command: str, cli: Cli, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One result."""
    arguments = ONE.get(command) or MORE.get(command, [])
    shutil.copy(bundle / "smile.safetensors", tmp_path / "smile.safetensors")
    monkeypatch.chdir(tmp_path)
    found = []
    for way in ("first", "option", "environment", "option before the environment", "first before the environment"):
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        (tmp_path / "out.safetensors").unlink(missing_ok=True)
        shutil.copytree(bundle, tmp_path / "b")
        if way == "environment":
            monkeypatch.setenv("HSPACE_BUNDLE", "b")
        elif "environment" in way:
            monkeypatch.setenv("HSPACE_BUNDLE", "nowhere")
        named = {"f": ["b"], "o": ["-b", "b"], "e": []}[way[0]]
        result = cli(*command.split(), *named, *arguments).check()
        found.append((result.out, sorted(Bundle(tmp_path / "b").manifest.attributes)))
        monkeypatch.delenv("HSPACE_BUNDLE", raising=False)
    assert [f for f in found if f != found[0]] == []


@pytest.mark.parametrize("command", [*ONE, *MORE, "bench", "doctor", "attribute fit", "attribute pca", "calibrate"])
def test_no_bundle_and_two(command: str, cli: Cli, bundle: Path, tmp_path: Path) -> None:
    if command in ("attribute fit", "attribute pca", "calibrate"):
        pytest.importorskip("sklearn", reason="fits need the extra `fit`")
    arguments = MORE.get(
        command, {"attribute pca": ["p"], "calibrate": [tmp_path, "-o", tmp_path / "x"]}.get(command, [])
    )
    if command in (*ONE, "bench"):
        cli(*command.split()).error(2, "Missing option '-b' / '--bundle'")
    if command != "attribute fit":  # whose names may be many
        cli(*command.split(), "-b", bundle, bundle, *arguments).error(2, f"the bundle is named twice: -b {bundle}")
    else:
        cli(*command.split(), bundle).error(2, "Missing argument 'NAMES...'")


def test_any_number_of_arguments(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    """Where HSPACE_BUNDLE is set, the first of them is a bundle if it is a bundle's folder, and a name if not."""
    pytest.importorskip("sklearn", reason="fits need the extra `fit`")
    from hspace_export.fit_cli import fit

    def given(*arguments: str) -> tuple[str, tuple[str, ...]]:
        params = fit.make_context("fit", [*arguments]).params
        return params["bundle"], params["names"]

    monkeypatch.delenv("HSPACE_BUNDLE", raising=False)
    assert given("x", "a", "b") == ("x", ("a", "b"))
    assert given("-b", "x", "a", "b") == given("a", "-b", "x", "b") == ("x", ("a", "b"))
    monkeypatch.setenv("HSPACE_BUNDLE", "e")
    assert given("a") == ("e", ("a",)) and given("a", "b") == ("e", ("a", "b"))
    assert given(str(bundle), "a") == (str(bundle), ("a",))
    assert given("-b", "x", "a") == ("x", ("a",))


def test_every_command_takes_it() -> None:
    """As -b, --bundle and HSPACE_BUNDLE, but for exports, which make one."""
    for extra in ("torch", "sklearn", "skimage"):
        pytest.importorskip(extra, reason="the options of every command need the extras `export` and `fit`")

    def leaves(command: click.Command) -> list[click.Command]:
        if not isinstance(command, click.Group):
            return [command]
        context = click.Context(command)
        makes = ["export"] if command is hspace.cli.hspace else []
        below = [command.get_command(context, n) for n in command.list_commands(context) if n not in makes]
        return [leaf for c in below if c is not None for leaf in leaves(c)]

    found = leaves(hspace.cli.hspace)
    assert len(found) >= 23
    for command in found:
        options = {o: p for p in command.params for o in p.opts}
        assert {"-b", "--bundle"} <= options.keys() and options["-b"].envvar == "HSPACE_BUNDLE", command.name
