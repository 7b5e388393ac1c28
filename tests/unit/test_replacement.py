"""A bundle under its name: killed at each step, the name has the old one or the new one, or gets it back."""

from __future__ import annotations

import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import filelock  # so that no child has to import it
import pytest

pytest.importorskip("torch", reason="exports need the extra `export`")

from hspace.bundle import Bundle
from hspace.errors import BundleError, OutputError
from hspace.files import LOCK, lock_folder
from hspace_export import replacement
from hspace_export.replacement import put, staged, sweep

from ..conftest import make_null_bundle
from ..stepping import FINISHED, INTERRUPTED, KILLED, child, start, stopped, wait

assert filelock.lock_descriptor


@pytest.fixture(params=[True, False], ids=["exchange", "two renames"])
def exchanges(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the system can swap two names. The swap itself is made a step, as ctypes calls are seen by no hook."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    exchange = replacement._exchange

    def counted(a: Path, b: Path) -> bool:
        os.chmod(a, stat.S_IMODE(a.stat().st_mode))
        return exchange(a, b)

    monkeypatch.setattr(replacement, "_exchange", counted if request.param else lambda *_: False)
    return bool(request.param)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """An old bundle of 8×8 pixels and a new one of 16×16."""
    made = tmp_path / "sources"
    return make_null_bundle(made / "old"), make_null_bundle(made / "new", size=16)


@pytest.fixture
def fresh(tmp_path: Path, sources: tuple[Path, Path]) -> Callable[[], Path]:
    """Makes the old bundle at the same place each time."""

    def make() -> Path:
        shutil.rmtree(tmp_path / "place", ignore_errors=True)
        return Path(shutil.copytree(sources[0], tmp_path / "place" / "faces"))

    return make


def export(source: Path, output: Path) -> None:
    """As the exporter does it."""
    sweep(output)
    with staged(output) as folder:
        for path in source.iterdir():
            shutil.copy(path, folder)
        put(folder, output, replace=True)


def size(folder: Path) -> int:
    bundle = Bundle(folder)
    assert list(bundle.verify())
    return bundle.manifest.image.size


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_stopped_at_each_step(
    how: str, exchanges: bool, fresh: Callable[[], Path], sources: tuple[Path, Path], tmp_path: Path
) -> None:
    seen, restored = [], 0
    for number in itertools.count():
        output = fresh()
        code = stopped(lambda o=output: export(sources[1], o), output.parent, number, how)
        if code == FINISHED:
            break
        assert code == (KILLED if how == "kill" else INTERRUPTED)
        if not output.exists():
            assert how == "kill" and not exchanges
            restored += 1
            sweep(output)
        seen.append(size(output))
        if how == "interrupt":
            assert [p.name for p in output.parent.iterdir()] == ["faces"]
        export(sources[1], output)
        assert size(output) == 16
        assert [p.name for p in output.parent.iterdir()] == ["faces"]
        assert {p.name for p in output.iterdir()} == {p.name for p in sources[1].iterdir()}
    assert seen == sorted(seen) and set(seen) == {8, 16}
    assert restored == (1 if how == "kill" and not exchanges else 0)
    assert size(output) == 16


def test_permissions(exchanges: bool, fresh: Callable[[], Path], sources: tuple[Path, Path]) -> None:
    """A folder that is replaced keeps its own; a new one has the umask's."""
    output = fresh()
    output.chmod(0o750)
    export(sources[1], output)
    assert stat.S_IMODE(output.stat().st_mode) == 0o750
    mask = os.umask(0o027)
    try:
        export(sources[1], output.with_name("new"))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(output.with_name("new").stat().st_mode) == 0o750


def test_a_name_that_is_taken_meanwhile(fresh: Callable[[], Path]) -> None:
    output = fresh()
    with pytest.raises(OutputError, match="faces: exists already"), staged(output) as folder:
        put(folder, output, replace=False)
    assert size(output) == 8 and [p.name for p in output.parent.iterdir()] == ["faces"]


def test_what_is_alive_is_not_swept(fresh: Callable[[], Path], sources: tuple[Path, Path]) -> None:
    output = fresh()
    begun, go = os.pipe()

    def write() -> None:
        with staged(output) as folder:
            os.write(go, b"x")
            time.sleep(60)
            put(folder, output, replace=True)

    pid = start(write)
    os.read(begun, 1)
    export(sources[1], output)
    alive = [p for p in output.parent.iterdir() if p != output]
    assert len(alive) == 1 and (alive[0] / LOCK).exists()
    os.kill(pid, 9)
    wait(pid)
    sweep(output)
    assert [p.name for p in output.parent.iterdir()] == ["faces"]


def test_what_is_somebody_elses_is_not_swept(fresh: Callable[[], Path], tmp_path: Path) -> None:
    output = fresh()
    others = [".faces", ".faces.short", ".faces.12345678.bak", ".other.12345678", "faces.12345678", ".faces2.12345678"]
    for name in others:
        (output.parent / name).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (output.parent / ".faces.12345678").symlink_to(tmp_path / "elsewhere")
    sweep(output)
    assert {p.name for p in output.parent.iterdir()} == {"faces", ".faces.12345678", *others}
    assert (tmp_path / "elsewhere").exists()


def test_what_is_not_sound_gets_no_name_back(tmp_path: Path) -> None:
    old = tmp_path / ".faces.12345678.old"
    old.mkdir()
    (old / "bundle.json").write_text("{")
    sweep(tmp_path / "faces")
    assert not (tmp_path / "faces").exists() and (old / "bundle.json").exists()


def test_a_bundle_that_is_being_amended(
    fresh: Callable[[], Path], sources: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replacement waits."""
    output = fresh()
    monkeypatch.setattr(
        replacement, "lock_folder", lambda path, error, seconds=0.1: lock_folder(path, error, min(seconds, 0.1))
    )
    with lock_folder(output, BundleError):
        assert child(lambda: export(sources[1], output)) != FINISHED
        with pytest.raises(BundleError, match="faces: another program is changing it"):
            export(sources[1], output)
    assert size(output) == 8
    export(sources[1], output)
    assert size(output) == 16
