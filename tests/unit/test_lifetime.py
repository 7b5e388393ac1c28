"""An editor's life: what it says of itself, its end, and how it gets into another process."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace.engines.null import open_engine
from hspace.errors import ArgumentError

from ..hostile.helpers import refused

PICTURES = np.random.default_rng(3).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)


@pytest.fixture
def folder(_null_bundles: dict[str, Path]) -> Path:
    return _null_bundles["diffae"]


@pytest.fixture
def editor(folder: Path) -> hspace.Editor:
    return hspace.open(folder, engine="null", batch_size=3)


# --- repr ---------------------------------------------------------------------------------------------


def test_repr(editor: hspace.Editor, null_asyrp: hspace.Editor) -> None:
    assert repr(editor) == "<hspace.Editor of 'null': diffae, 8×8, 5 attributes; null in fp32 on cpu>"
    assert repr(null_asyrp) == "<hspace.Editor of 'null': asyrp, 8×8, 3 attributes; null in fp32 on cpu>"
    editor.close()
    assert repr(editor) == "<hspace.Editor of 'null': diffae, 8×8, 5 attributes; closed>"


# --- close --------------------------------------------------------------------------------------------


def test_context_manager(folder: Path) -> None:
    """Open within, closed after, whatever happened within."""
    with hspace.open(folder, engine="null") as editor:
        assert editor.reconstruct(PICTURES).shape == PICTURES.shape
    with refused(ArgumentError, "the editor is closed"):
        editor.reconstruct(PICTURES)
    with pytest.raises(KeyError), hspace.open(folder, engine="null") as editor:
        raise KeyError
    with refused(ArgumentError, "the editor is closed"):
        editor.reconstruct(PICTURES)


def test_every_call_after_close(editor: hspace.Editor) -> None:
    """Is refused, and reads no image before; what a bundle says is still there."""
    latent = editor.encode(PICTURES)
    one = latent[:1]
    calls: dict[str, Callable[[], Any]] = {
        "encode": lambda: editor.encode("nowhere.png"),
        "decode": lambda: editor.decode(latent),
        "edit": lambda: editor.edit("nowhere.png", {"smile": 1.0}),
        "reconstruct": lambda: editor.reconstruct("nowhere.png"),
        "interpolate": lambda: editor.interpolate(one, one),
        "sweep": lambda: editor.sweep(latent, {"smile": [0, 1]}),
        "timeline": lambda: editor.timeline(latent),
        "inject": lambda: editor.inject(latent, "nowhere.png"),
        "sample": lambda: editor.sample(2),
        "draw": lambda: editor.draw(2),
        "vary": lambda: editor.vary(latent, 2),
        "encode_z": lambda: editor.encode_z("nowhere.png"),
        "classify": lambda: editor.classify("nowhere.png"),
        "program": lambda: editor.program("decode"),
        "batch_size": lambda: editor.batch_size,
        "engine": lambda: editor.engine.name,
        "engine_of": editor.engine_of,
    }
    editor.close()
    editor.close()
    for name, call in calls.items():
        with refused(ArgumentError, "the editor is closed, expected one that is open"):
            call()
            raise AssertionError(name)
    assert (editor.size, editor.classes) == (8, ["smile", "beard"])
    assert editor.bundle.manifest.name == "null" and len(editor.attributes) == 5


def test_close_frees_the_networks(editor: hspace.Editor) -> None:
    import gc
    import weakref

    engine = weakref.ref(editor.engine)
    editor.reconstruct(PICTURES)
    editor.close()
    gc.collect()
    assert engine() is None


# --- pickle -------------------------------------------------------------------------------------------


def test_pickle(editor: hspace.Editor) -> None:
    """By path and options: another editor, with the same results."""
    for other in (pickle.loads(pickle.dumps(editor)), copy.copy(editor), copy.deepcopy(editor)):
        assert other is not editor and other.engine is not editor.engine
        assert (other.engine.name, other.batch_size) == ("null", 3)
        np.testing.assert_array_equal(
            other.edit(PICTURES, {"smile": 1.0}, seed=4), editor.edit(PICTURES, {"smile": 1.0}, seed=4)
        )
    assert len(pickle.dumps(editor)) < 1000


def test_in_processes_that_are_spawned(editor: hspace.Editor) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(hspace.Editor.reconstruct, editor, PICTURES).result(timeout=120)
    np.testing.assert_array_equal(found, editor.reconstruct(PICTURES))


def test_pickle_of_a_relative_path(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opens in a process that works in another folder."""
    monkeypatch.chdir(folder.parent)
    data = pickle.dumps(hspace.open(folder.name, engine="null"))
    code = "import pickle, sys; print(ascii(pickle.load(sys.stdin.buffer)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=data, capture_output=True, cwd=tmp_path, env=environment, check=True)
    assert done.stdout.decode().startswith("<hspace.Editor of 'null': diffae")


def test_pickle_refused(editor: hspace.Editor, folder: Path) -> None:
    bundle = hspace.Bundle(folder)
    by_hand = hspace.Editor(bundle, open_engine(bundle, None, "fp32"))
    for dump in (pickle.dumps, copy.copy):
        with refused(ArgumentError, "pickle: this editor cannot be opened elsewhere: `hspace.open` did not make it"):
            dump(by_hand)
    editor.close()
    with refused(ArgumentError, "pickle: this editor cannot be opened elsewhere: it is closed"):
        pickle.dumps(editor)


def test_path_of_another_library(folder: Path) -> None:
    class Elsewhere(os.PathLike[str]):
        def __fspath__(self) -> str:
            return str(folder)

    assert hspace.open(Elsewhere(), engine="null").bundle.manifest.name == "null"
    with refused(ArgumentError, "path: found int, expected a bundle's folder"):
        hspace.open(5)
