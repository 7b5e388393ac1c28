"""Amends that are killed or interrupted at each of their steps, and those that run at the same time as others."""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock  # so that no child has to import it
import hspace
import pytest
from hspace import amend, files
from hspace.amend import add_attribute, remove_attribute, rename_attribute, set_preset
from hspace.attributes import read_attributes
from hspace.bundle import Bundle
from hspace.errors import BundleError
from hspace.files import lock_folder
from hspace.manifest import MANIFEST, Manifest

from ..stepping import (
    FINISHED,
    INTERRUPTED,
    KILLED,
    at_each_step,
    child,
    interrupted_at_line,
    start,
    stopped,
    wait,
)
from .test_amend import direction, table

assert filelock.lock_descriptor
CHANGES: dict[str, Callable[[Bundle], object]] = {
    "add": lambda b: add_attribute(b, "frown", direction(seed=3), "z_direction", "none"),
    "replace": lambda b: add_attribute(b, "wave", table(3, 32, 4, 4), "delta_h", "symmetric", replace=True),
    "replace one of another name": lambda b: add_attribute(
        b, "smile", direction(), "z_direction", "none", replace=True
    ),
    "remove": lambda b: remove_attribute(b, "wave"),
    "remove one of another name": lambda b: remove_attribute(b, "smile"),
    "rename": lambda b: rename_attribute(b, "wave", "tide"),
    "preset": lambda b: set_preset(b, "fine", b.preset()[1]),
    "replace a preset": lambda b: set_preset(b, "official", b.preset()[1], replace=True),
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the disk, which is most of an amend's time; that it is asked to write still counts as a step."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def fresh(tmp_path: Path, _null_bundles: dict[str, Path]) -> Callable[[], Path]:
    """Makes a bundle at the same place each time, with one attribute that an amend has added."""
    source, folder = tmp_path / "source", tmp_path / "bundle"
    shutil.copytree(_null_bundles["diffae"], source)
    add_attribute(Bundle(source), "wave", table(), "delta_h", "asymmetric", 7)

    def make() -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        return Path(shutil.copytree(source, folder))

    return make


def names(folder: Path) -> set[str]:
    """What is in the folder, down to empty folders."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() or not any(p.iterdir())}


def listed(manifest: Manifest) -> set[str]:
    return {MANIFEST} | {entry.file for _, entry in manifest.files()}


def sound(folder: Path) -> Manifest:
    """It opens, and every file verifies."""
    bundle = Bundle(folder)
    assert {name for name, _ in bundle.verify()} | {MANIFEST} == listed(bundle.manifest)
    assert read_attributes(bundle).keys() == bundle.manifest.attributes.keys()
    return bundle.manifest


def outcomes(change: str, fresh: Callable[[], Path]) -> tuple[Manifest, Manifest]:
    """The manifests before and after."""
    before = Bundle(folder := fresh()).manifest
    CHANGES[change](Bundle(folder))
    return before, Bundle(folder).manifest


def later(folder: Path) -> None:
    """The next amend works, and leaves nothing but what it lists."""
    bundle = Bundle(folder)
    add_attribute(bundle, "later", direction(seed=9), "z_direction", "none")
    assert names(folder) == listed(sound(folder))


def steps(how: str, change: str, fresh: Callable[[], Path]) -> Iterator[Path]:
    """The folder, after the change was stopped before each of its steps in turn."""
    for number in itertools.count():
        folder = fresh()
        code = stopped(lambda f=folder: CHANGES[change](Bundle(f)), folder, number, how)
        if code == FINISHED:
            assert number > 6  # all of them were seen
            return
        assert code == (KILLED if how == "kill" else INTERRUPTED), number
        yield folder


@pytest.mark.parametrize("change", CHANGES)
def test_killed_at_each_step(change: str, fresh: Callable[[], Path]) -> None:
    possible, seen = outcomes(change, fresh), []
    for folder in steps("kill", change, fresh):
        seen.append(possible.index(sound(folder)))
        later(folder)
    assert seen == sorted(seen)
    assert possible[0] == possible[1] or set(seen) == {0, 1}


@pytest.mark.parametrize("change", CHANGES)
def test_interrupted_at_each_step(change: str, fresh: Callable[[], Path]) -> None:
    """Nothing is left at once, but for the lock's file where its removal itself was interrupted."""
    possible = outcomes(change, fresh)
    for folder in steps("interrupt", change, fresh):
        found = sound(folder)
        assert found in possible
        assert names(folder) - {files.LOCK} == listed(found)
        later(folder)


def test_interrupted_at_each_line(fresh: Callable[[], Path]) -> None:
    """Also within what cleans up, after which the next amend does."""
    change, modules = "replace", {amend.__file__}
    possible = outcomes(change, fresh)
    for number in itertools.count():
        folder = fresh()
        if interrupted_at_line(lambda f=folder: CHANGES[change](Bundle(f)), modules, number) == FINISHED:
            break
        assert sound(folder) in possible
        later(folder)
    assert number > 40


@pytest.mark.parametrize("change", CHANGES)
def test_readers_at_each_step(change: str, fresh: Callable[[], Path]) -> None:
    """Whoever opens the bundle while an amend is at work finds the old one or the new one."""
    possible, folder = outcomes(change, fresh), fresh()
    seen = folder.parent / "seen"
    seen.write_text("")

    def step(_: int) -> None:
        found = possible.index(sound(folder))
        with open(seen, "a") as f:
            f.write(str(found))

    def work() -> None:
        at_each_step(folder, step, reads=True)
        CHANGES[change](Bundle(folder))

    assert child(work) == FINISHED
    assert len(seen.read_text()) > 10 and list(seen.read_text()) == sorted(seen.read_text())


@pytest.mark.parametrize("change", ["replace", "remove one of another name", "add", "rename"])
def test_amends_at_each_step_of_a_reader(change: str, fresh: Callable[[], Path]) -> None:
    """A whole amend between any two steps of an open, of which there are several for each file."""
    possible = outcomes(change, fresh)
    for number in itertools.count():
        folder = fresh()

        def step(at: int, folder: Path = folder, number: int = number) -> None:
            if at == number:
                assert child(lambda: CHANGES[change](Bundle(folder))) == FINISHED

        def work(folder: Path = folder, step: Callable[[int], None] = step) -> None:
            at_each_step(folder, step, reads=True)
            editor = hspace.open(folder, engine="null")
            assert editor.bundle.manifest in possible
            assert editor.attributes.keys() == editor.bundle.manifest.attributes.keys()

        assert child(work) == FINISHED, number
        if Bundle(folder).manifest == possible[0]:
            break
    assert number > 10


# --- several at once --------------------------------------------------------------------------------------


def together(*work: Callable[[], object]) -> list[int]:
    """How each ended; they begin at once."""
    begin, go = os.pipe()

    def waiting(one: Callable[[], object]) -> None:
        os.close(go)
        os.read(begin, 1)  # ends when the parent closes its end
        one()

    pids = [start(functools.partial(waiting, one)) for one in work]
    os.close(begin)
    os.close(go)
    return [wait(pid) for pid in pids]


def test_six_adds_at_once(null_folder: Path) -> None:
    """All succeed, all are there, with their own tensors; each had opened the bundle before any other was there."""
    data = {f"new {i}": direction(seed=10 + i) for i in range(6)}
    opened = Bundle(null_folder)
    before = set(opened.manifest.attributes)

    def add(name: str) -> None:
        add_attribute(opened, name, data[name], "z_direction", "none")
        assert name in opened.manifest.attributes

    assert together(*(functools.partial(add, name) for name in data)) == [FINISHED] * 6
    bundle = Bundle(null_folder)
    assert set(bundle.manifest.attributes) == before | set(data)
    assert {name: bundle.read(bundle.manifest.attributes[name]) for name in data} == data
    assert names(null_folder) == listed(sound(null_folder))


def test_different_amends_at_once(null_folder: Path) -> None:
    """Each amends what the others left; readers are never refused."""
    bundle = Bundle(null_folder)
    preset, done = bundle.preset()[1], null_folder.parent / "done"

    def read() -> None:
        while not done.exists():
            sound(null_folder)

    readers = [start(read) for _ in range(2)]
    found = together(
        lambda: remove_attribute(bundle, "smile"),
        lambda: rename_attribute(bundle, "beard", "bart"),
        lambda: set_preset(bundle, "a", preset),
        lambda: set_preset(bundle, "b", preset),
        lambda: add_attribute(bundle, "table", table(), "delta_h", "symmetric", replace=True),
        lambda: [add_attribute(Bundle(null_folder), f"x{i}", direction(), "z_direction", "none") for i in range(5)],
        lambda: [remove_attribute(Bundle(null_folder), n) for n in ("block", "haas")],
    )
    done.touch()
    assert found == [FINISHED] * 7
    assert [wait(pid) for pid in readers] == [FINISHED] * 2
    manifest = sound(null_folder)
    assert set(manifest.attributes) == {"bart", "table", *(f"x{i}" for i in range(5))}
    assert manifest.attributes["table"].branch == "symmetric"
    assert set(manifest.presets) == {"official", "a", "b"}
    assert names(null_folder) == listed(manifest)


def test_a_lock_that_is_held(null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits too long is told so; readers do not wait; the lock of a killed process is none."""
    begun, go = os.pipe()

    def hold() -> None:
        with lock_folder(null_folder, BundleError):
            os.write(go, b"x")
            time.sleep(60)

    pid = start(hold)
    os.read(begun, 1)
    monkeypatch.setattr(amend, "lock_folder", functools.partial(lock_folder, seconds=0.1))
    with pytest.raises(BundleError, match="bundle: another program is changing it; try again"):
        CHANGES["add"](Bundle(null_folder))
    os.kill(pid, 9)
    wait(pid)
    assert (null_folder / files.LOCK).exists()
    later(null_folder)
