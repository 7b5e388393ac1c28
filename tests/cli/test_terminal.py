"""What a person at a terminal sees: progress, signals, suggestions."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import hspace
import pytest
from hspace.cli.jobs import JobReport
from hspace.cli.progress import Bar
from hspace.errors import ImageError

from .conftest import NULL_WARNING, Cli

COMMAND = [sys.executable, "-m", "hspace"]


# --- progress -----------------------------------------------------------------------------------------


def lines(bar: Bar, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a bar draws from the first unit to the last, on a terminal of so many columns."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("hspace.cli.progress._EVERY", 0)
    capsys.readouterr()
    with bar:
        for done in range(bar.length + 1):
            bar.to(done)
    err = capsys.readouterr().err
    assert err.endswith("\n") and err.count("\n") == 1
    return err[:-1].split("\r")[1:]


@pytest.mark.parametrize("columns", [1, 2, 7, 20, 30, 50, 80, 300])
def test_no_wider_than_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line wraps, none leaves anything of a longer one before, and nothing steers the terminal."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    says = iter(["x" * n for n in (30, 20, 10, 0, 5, 8, 3, 2)])
    shown = lines(Bar("edit", 4, lambda: next(says)), columns, monkeypatch, capsys)
    assert len(shown) >= 5 and all(len(line) < columns for line in shown)
    assert all(len(after) >= len(before.rstrip()) for before, after in pairwise(shown))
    assert all(line.isprintable() for line in shown)
    if columns >= 20:
        assert "edit" in shown[0] and "  0%" in shown[0] and "100%" in shown[-1]
    if columns >= 80:
        assert "#" * 30 in shown[-1] and "-" * 30 in shown[0]


def test_whole_parts_are_left_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """No word is cut: what has no room is not there."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    parts = ["interpolate 100%", "  2 of 6", "  1.25 images/s"]
    for columns in range(1, 60):
        bar = Bar("interpolate", 2, lambda: "2 of 6, 1.25 images/s")
        *_, last = lines(bar, columns, monkeypatch, capsys)
        fits = [n for n in range(4) if len("".join(parts[:n])) < columns]
        assert last.rstrip() == "".join(parts[: fits[-1]]) or "[#####" in last, columns


def test_the_rate_of_one_batch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It is of the steps that are done; there is none before the first."""
    report = JobReport(6)
    assert report.progress(0, 5.0) == "0 of 6"
    assert report.progress(3.0, 2.0) == "0 of 6, 1.5 images/s"
    report.written += [Path("a")] * 4
    report.kept.append(Path("b"))
    report.refuse(Path("c"), ImageError("no image"))
    assert report.progress(6.0, 2.0) == "6 of 6, 2 images/s"


def test_the_rate_that_is_seen(
    cli: Cli, on: list[object], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run of one batch, from its first step to its last, with a clock that says a second more every time."""
    from hspace.cli import jobs

    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(JobReport, "progress", lambda self, done, seconds: seen.append((done, seconds)) or "")
    monkeypatch.setattr("hspace.cli.progress._EVERY", 0)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    ticks = iter(range(10**6))
    monkeypatch.setattr(jobs.time, "perf_counter", lambda: next(ticks))
    cli("edit", photos, *on, "--steps", 4, "-o", tmp_path / "x")
    done = [d for d, _ in seen]
    assert done[0] == 0 and done[-1] == 3 and done == sorted(done)
    assert len({d for d in done if 0 < d < 3}) >= 7
    assert all(s > 0 for d, s in seen if d > 0)


@pytest.mark.parametrize(("term", "terminal"), [("dumb", True), ("xterm", False)])
def test_nothing_where_no_line_can_be_rewritten(
    term: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    monkeypatch.setenv("TERM", term)
    with Bar("edit", 4) as bar:
        bar.draw()
        bar.to(4)
    assert capsys.readouterr().err == ""


def on_a_terminal(command: list[str], until: bytes, number: int | None, **environment: str) -> tuple[int, bytes]:
    """Runs a command on a terminal of its own; sends a signal once it has written `until`. Its exit code, and all."""
    main, other = pty.openpty()
    with subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=os.environ | environment) as process:
        os.close(other)
        seen, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            ready, _, _ = select.select([main], [], [], 0.1)
            try:
                data = os.read(main, 65536) if ready else b""
            except OSError:  # as Linux says that nobody has the other end open
                break
            seen += data
            if number is not None and until in seen:
                process.send_signal(number)
                number = None
        os.close(main)
    return process.returncode, seen


@pytest.fixture
def long_run(bundle: Path, photos: Path, tmp_path: Path) -> list[str]:
    """A command that takes minutes."""
    for i in range(1000):
        (photos / f"x{i}.png").symlink_to(photos / "a.png")
    options = ["--engine", "null", "--steps", "1000", "--batch-size", "1", "-o", str(tmp_path / "out")]
    return [*COMMAND, "edit", str(photos), "-b", str(bundle), *options]


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")], ids=str)
@pytest.mark.parametrize("colour", ["0", "1"])
def test_a_signal_during_work(number: int, said: str, colour: str, long_run: list[str], tmp_path: Path) -> None:
    """The line of progress is ended, one line says why, the cursor was never hidden, no temporary file is left."""
    code, seen = on_a_terminal(long_run, b"images/s", number, TERM="xterm", NO_COLOR=colour)
    text = seen.decode()
    assert code == 128 + number
    assert text.endswith(f"\r\nhspace: error: {said}\r\n") and "Traceback" not in text
    assert "\x1b" not in text
    left = os.listdir(tmp_path / "out") if (tmp_path / "out").exists() else []
    assert [name for name in left if name.startswith(".")] == []


def test_no_blank_line_before_interrupted(long_run: list[str]) -> None:
    """The line of progress is ended once."""
    code, seen = on_a_terminal(long_run, b"images/s", signal.SIGINT, TERM="xterm")
    assert code == 130 and seen.endswith(b"\r\nhspace: error: interrupted\r\n") and b"\n\r\n" not in seen


def test_a_dumb_terminal(bundle: Path, photos: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "edit", str(photos), "-b", str(bundle), "--engine", "null", "-o", str(tmp_path / "out")]
    code, seen = on_a_terminal(command, b"", None, TERM="dumb")
    assert code == 0
    warning, text = seen.split(b"\r\n", 1)
    assert warning.decode() + "\n" == NULL_WARNING
    assert re.fullmatch(rb"wrote 3 files in \S+ in \S+ s \(engine null, fp32\)\r\n", text), text


# --- signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung up")],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_a_signal_at_any_import(number: int, said: str, bundle: Path) -> None:
    """Sent as each module of a start begins to load: one line, and nothing of Python's."""
    code = """
import os, sys
modules = []
class Count:
    def find_spec(self, name, *_):
        modules.append(name)
        if len(modules) == {at}:
            os.kill(os.getpid(), {number})
import hspace.interrupts
from hspace.__main__ import main
sys.meta_path.insert(0, Count())
sys.argv = ["hspace", "info", {bundle!r}]
try:
    main()
finally:
    print(len(modules), file=sys.stderr)
"""
    last = subprocess.run(
        [sys.executable, "-c", code.format(at=-1, number=int(number), bundle=str(bundle))],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    total = int(last.stderr)
    assert total > 100
    for at in (1, 2, 5, total // 4, total // 2, total - 1):
        script = code.format(at=at, number=int(number), bundle=str(bundle))
        found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert found.returncode == 128 + number, (at, found.stderr)
        told = [line for line in found.stderr.splitlines() if not line.isdigit()]
        assert told == [f"hspace: error: {said}"], (at, found.stderr)


def test_a_signal_that_a_library_turns_into_an_error(cli: Cli, on: list[object], photos: Path, tmp_path: Path) -> None:
    """It is still what is told."""
    script = f"""
import os, signal, sys
import hspace, hspace.__main__
def edit(self, *a, **k):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        while True: pass
    except BaseException:
        raise SystemError("returned a result with an exception set")
import hspace.editor
hspace.editor.Editor.edit = edit
sys.argv = ["hspace", "edit", {str(photos / "a.png")!r}, "-b", {str(on[1])!r}, "--engine", "null", "-o", "x.png"]
hspace.__main__.main()
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (found.returncode, found.stderr) == (143, "hspace: error: terminated\n")


def test_an_ignored_signal_is_ignored(long_run: list[str], bundle: Path) -> None:
    """As nohup asks."""
    command = ["nohup", *COMMAND, "info", str(bundle)]
    script = 'trap "" HUP; "$@" & p=$!; for i in 1 2 3 4 5; do kill -HUP $p 2>/dev/null; sleep 0.05; done; wait $p'
    found = subprocess.run(["sh", "-c", script, "sh", *command[1:]], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and found.stdout.startswith("null: family diffae")


# --- how it is started, and what is meant -------------------------------------------------------------


def test_python_m() -> None:
    for module in ("hspace", "hspace.cli"):
        found = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert hspace.__version__ in found.stdout


SUGGESTIONS: dict[str, tuple[list[str], str]] = {
    "command": (["edti"], "No such command 'edti'; did you mean edit?"),
    "command in capitals": (["INFO"], "No such command 'INFO'; did you mean info?"),
    "group's command": (["attribute", "lst"], "No such command 'lst'; did you mean list?"),
    "far command": (["zzz"], "No such command 'zzz'\n"),
    "option": (["edit", "--sett"], "--set"),
    "preset": (["edit", "a.png", "--preset", "oficial"], "expected one of official; did you mean official?"),
    "sampler": (["edit", "a.png", "--sampler", "ddmp"], "did you mean ddpm"),
    "attribute": (["edit", "a.png", "--set", "smlie=1"], "did you mean smile?"),
    "swept": (["sweep", "a.png", "--over", "smlie=0:1:2"], "did you mean smile?"),
}


@pytest.mark.parametrize("name", SUGGESTIONS)
def test_suggestions(name: str, cli: Cli, on: list[object], photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, says = SUGGESTIONS[name]
    monkeypatch.chdir(photos)
    more = [*on, "-o", "x.png"] if "a.png" in arguments else []
    found = cli(*arguments, *more)
    assert found.code == 2 and says in found.err and found.err.count("\n") == 1
