"""Arguments of every kind that nobody means: each is one line on stderr, with an exit code of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hspace.bundle import Bundle

from .conftest import Cli

ODD = [
    "", "\ud800", "\udcff", "a\0b", "9" * 4299, "9" * 5000, "1e999", "nan", "-inf", "a" * 5000, "../" * 2000, "/", ".",
    "..", "[", "[!", "*" * 300, "%s", "\x1b[2J", "\n", "é" * 200, "-1", "1.5", "//", "a.png/", "a.png/x", "/dev/null",
    " ", "=", "x=", "=1", "smile=1e308", "smile=\ud800", "\ud800=1", "smile=0:1:\ud800", "smile=-1e308:1e308:3",
    "smile=0:1:" + "9" * 5000, "a" * 100_000, "\u202e", "18446744073709551616", "2147483648",
]  # fmt: skip
EDIT = [
    "-b",
    "--engine",
    "--precision",
    "--device",
    "--threads",
    "--batch-size",
    "--preset",
    "--steps",
    "--encode-steps",
]
EDIT += ["--set", "--t-edit", "--t-boost", "--sampler", "--seed", "-o", "--format", "--quality", "--name"]
COMMANDS: dict[str, tuple[list[str], list[str]]] = {
    "edit": (["a.png"], EDIT),
    "encode": (["a.png"], ["--steps", "-o"]),
    "decode": (["a.safetensors"], ["--set", "-o"]),
    "sweep": (["a.png"], ["--over", "-o"]),
    "interpolate": (["a.png", "b.png"], ["--frames"]),
    "timeline": (["a.png"], ["--frames"]),
    "sample": (["1"], ["--latent-steps", "--accept", "--seed"]),
    "vary": (["a.png"], ["--count"]),
    "inject": (["a.png", "b.png"], ["--strength", "--mask"]),
    "classify": (["a.png"], ["-o"]),
    "info": ([], ["-b", "--program", "--set", "--save"]),
    "verify": ([], ["-b", "--engine", "--device"]),
    "attribute add": (["new", "smile.safetensors"], ["-b", "--branch", "--n-train"]),
    "attribute export": (["smile", "o.safetensors"], []),
    "attribute remove": (["smiel"], []),
    "attribute rename": (["smile", "new"], []),
}
RUNS = (
    "edit",
    "encode",
    "decode",
    "sweep",
    "interpolate",
    "timeline",
    "sample",
    "vary",
    "inject",
    "classify",
    "verify",
)
WRITE = {"encode": "x.safetensors", "classify": "x.csv"}


@pytest.fixture
def in_time() -> Iterator[None]:
    """No argument starts work that does not end."""

    def late(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument(
    command: str, cli: Cli, null_folder: Path, photos: Path, in_time: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In place of each argument, and of each option's value: a success, or one line that repeats little of it."""
    monkeypatch.chdir(photos)
    before = (null_folder / "bundle.json").read_bytes()
    for name in ("smile.safetensors",):
        (photos / name).write_bytes((null_folder / name).read_bytes())
    cli("encode", "a.png", "-b", null_folder, "--engine", "null", "-o", "a.safetensors").check()
    arguments, options = COMMANDS[command]
    usual = ["-b", null_folder, *(["--engine", "null"] if command in RUNS else [])]
    if command in RUNS and command != "verify":
        usual += ["-o", WRITE.get(command, "x.png"), "--force"]
    usual += ["--over", "smile=0:1:2"] if command == "sweep" else []
    calls = [[*arguments[:i], odd, *arguments[i + 1 :]] for i in range(len(arguments)) for odd in ODD]
    calls = [[*usual, "--", *call] for call in calls]
    calls += [[*usual, option, odd, "--", *arguments] for option in options for odd in ODD]
    for call in calls:
        found = cli(*command.split(), *call)
        assert found.code in (0, 1, 2, 3, 4, 5, 7, 8), call
        if found.code:
            assert found.err.startswith("hspace: error: ") and found.err.count("\n") == 1, (call, found.err)
            assert len(found.err) < 12_000 and found.err[:-1].isprintable(), (call, found.err)
        else:
            assert found.err == "", (call, found.err)
        if (null_folder / "bundle.json").read_bytes() != before:  # a name that a bundle may hold
            assert command.startswith("attribute"), call
            Bundle(null_folder)
            (null_folder / "bundle.json").write_bytes(before)
            for path in null_folder.glob("attributes/*"):
                path.unlink()


@pytest.mark.parametrize("odd", [o for o in ODD if not o.startswith("-")])
def test_every_command(odd: str, cli: Cli) -> None:
    for words in ([odd], ["attribute", odd]):
        found = cli(*words)
        assert found.code == 2 and len(found.err) < 12_000 and found.err.startswith("hspace: error: No such command ")
        assert found.err.count("\n") == 1 and found.err[:-1].isprintable()
