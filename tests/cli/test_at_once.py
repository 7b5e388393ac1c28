"""Processes that start at once on an empty cache, under load: one engine, one precision, the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ..conftest import BUNDLES

IMAGE = BUNDLES / "images" / "avatar016.png"


@pytest.fixture
def unrecorded(tmp_path: Path) -> Path:
    """The shipped bundle without a record of what bfloat16 is worth, so that each process measures it."""
    folder = tmp_path / "bundle"
    shutil.copytree(BUNDLES / "avatars32", folder)
    manifest = json.loads((folder / "bundle.json").read_text())
    del manifest["accuracy"], manifest["format_minor"]
    manifest["default_preset"] = "fast"  # of few steps, which are measured sooner
    (folder / "bundle.json").write_text(json.dumps(manifest))
    return folder


@contextmanager
def load() -> Iterator[None]:
    """A process that computes on every core."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for each in busy:
            each.kill()
            each.wait()


def edits_at_once(count: int, bundle: Path, folder: Path, cache: Path) -> tuple[set[str], set[bytes]]:
    """What `count` processes say of their engine, and what they wrote."""
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k not in ("HSPACE_ENGINE", "HSPACE_PRECISION")}
    environment["HSPACE_CACHE"] = str(cache)
    options = ["-b", str(bundle), "--set", "Blond_Hair=0.9", "--json"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "hspace", "edit", str(IMAGE), *options, "-o", str(folder / f"{i}.png")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(count)
    ]
    said = set()
    for process in started:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err.decode()
        found = json.loads(out)
        said.add(f"{found['engine']} in {found['precision']}")
    return said, {path.read_bytes() for path in folder.iterdir()}


def test_ten_at_once(tmp_path: Path) -> None:
    """Twice: on an empty cache, and on what they left there."""
    bundle = BUNDLES / "avatars32"
    with load():
        first = edits_at_once(10, bundle, tmp_path / "first", tmp_path / "cache")
        again = edits_at_once(10, bundle, tmp_path / "again", tmp_path / "cache")
    alone = edits_at_once(1, bundle, tmp_path / "alone", tmp_path / "another")
    assert first == again == alone and len(first[0]) == len(first[1]) == 1


def test_at_once_where_nothing_is_recorded(unrecorded: Path, tmp_path: Path) -> None:
    """Whoever measures first."""
    with load():
        first = edits_at_once(3, unrecorded, tmp_path / "first", tmp_path / "cache")
    again = edits_at_once(1, unrecorded, tmp_path / "again", tmp_path / "cache")
    assert first == again and len(first[0]) == len(first[1]) == 1
