"""The hostile corpus through the command line: one line, the right exit code, and nothing left behind."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import hspace.cli
import pytest

from ..cli.conftest import NULL_WARNING, Result
from ..conftest import GOLDEN
from .corpus import CASES, FACE, FILES, MARKER, Case, make_all, sound_bundle
from .helpers import snapshot

SECONDS = 60  # what hangs is stopped then
SILENT = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # that Python does not print
LIBRARIES = (
    *("Traceback", "Error:", "Warning", "PIL", "cannot identify", "libtiff", "TIFF directory", "safetensors_rust"),
    *("SafetensorError", "msgspec", "onnxruntime", "InvalidProtobuf", "UnpicklingError", "errno", "Errno"),
)


# --- what a machine may lack --------------------------------------------------------------------------


@contextmanager
def limited(kind: int, most: int) -> Iterator[None]:
    """Lowers one of the process's limits."""
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))


@contextmanager
def full_disk() -> Iterator[None]:
    """No file's contents reach the disk."""

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hspace.files.os.fsync", full)
        yield


def little_memory() -> AbstractContextManager[None]:
    """2 GiB more than the process has; of address space, so that a mapping counts as well."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return limited(resource.RLIMIT_AS, pages * resource.getpagesize() + 2**31)


UNDER: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "": nullcontext,
    "a full disk": full_disk,
    "small files": lambda: limited(resource.RLIMIT_FSIZE, 2**12),
    "little memory": little_memory,
}


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """Fails the test where a case hangs, on a pipe for one."""

    def stop(*_: object) -> None:
        pytest.fail(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# --- running a case -----------------------------------------------------------------------------------


def state(folder: Path) -> dict[str, object]:
    """What each path under `folder` is: its kind, and its contents unless they are huge."""
    found: dict[str, object] = {}
    for p in sorted(folder.rglob("*")):
        status = p.lstat()
        found[str(p.relative_to(folder))] = (
            status.st_mode,
            os.readlink(p)
            if p.is_symlink()
            else p.read_bytes()
            if p.is_file() and status.st_size < 2**20
            else (status.st_size, status.st_mtime_ns if p.is_file() else 0),
        )
    return found


def prepare(case: Case, folder: Path) -> list[str]:
    """Puts everything that the case needs under `folder`; the command line's arguments."""
    places = {name: folder / name for name in ("case", "bundle", "out", "here")} | {"face": folder / "face.png"}
    if case.kept:
        shutil.copytree(FILES / case.name, places["case"])
    else:
        places["case"].mkdir()
        case.make(places["case"])
    sound_bundle(places["bundle"])
    places["face"].write_bytes(FACE)
    for name in ("out", "here"):
        places[name].mkdir()
    return case.arguments(**places, golden=GOLDEN)


def run(case: Case, capture: pytest.CaptureFixture[str]) -> Result:
    """Runs `hspace` as `sys.argv` says; what libraries write past Python, and warnings, count as printed."""
    capture.readouterr()
    code = 0
    with ExitStack() as stack:
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        stack.enter_context(in_time(SECONDS))
        stack.enter_context(UNDER[case.under]())
        try:
            hspace.cli.main()
        except SystemExit as e:
            code = 0 if e.code is None else int(e.code)
    out, err = capture.readouterr()
    err += "".join(f"{w.category.__name__}: {w.message}\n" for w in warned if not issubclass(w.category, SILENT))
    return Result(code, out, err.replace(NULL_WARNING, ""))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    if case.command.startswith("export") or ".pth" in case.command:
        pytest.importorskip("torch", reason="exports need the extra `export`")
    if case.command.startswith(("calibrate", "attribute fit", "attribute average", "attribute pca")):
        for package in ("sklearn", "skimage", "matplotlib"):
            pytest.importorskip(package, reason="fits need the extra `fit`")
    monkeypatch.delenv("HSPACE_BUNDLE", raising=False)
    monkeypatch.setattr("sys.argv", ["hspace", *prepare(case, tmp_path)])
    monkeypatch.chdir(tmp_path / "here")
    before = state(tmp_path)
    result = run(case, capfd)
    assert not list(tmp_path.rglob(MARKER))
    if case.code == 0:
        assert (result.code, result.err) == (0, "")
        return
    result.error(case.code, *case.says)
    assert result.err[:-1].isprintable()
    assert len(result.err) < 20_000
    assert [word for word in LIBRARIES if word in result.err] == [], result.err
    assert state(tmp_path) == before


# --- the corpus itself --------------------------------------------------------------------------------


def test_files_are_what_the_script_makes(tmp_path: Path) -> None:
    """Byte for byte, but for what libraries encode."""
    exact = [case for case in CASES if case.kept and case.exact]
    make_all(tmp_path, exact)
    for case in exact:
        assert snapshot(FILES / case.name) == snapshot(tmp_path / case.name), case.name


def test_cases_and_folders_belong_together() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 75
    assert {p.name for p in FILES.iterdir() if p.is_dir()} == {case.name for case in CASES if case.kept}


def test_files_are_small() -> None:
    sizes = [p.stat().st_size for p in FILES.rglob("*") if p.is_file()]
    assert max(sizes) < 2**16
    assert sum(sizes) < 2**20


def test_the_pickled_command_is_a_live_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the cases with code would prove nothing."""
    import pickle

    monkeypatch.chdir(tmp_path)
    pickle.loads((FILES / "checkpoint-code-pickle-asyrp" / "model.ckpt").read_bytes())
    assert (tmp_path / MARKER).exists()
