"""What engines keep in the cache is for one instruction set, and is asked once whether it computes what it did."""

from __future__ import annotations

from pathlib import Path

import hspace
import numpy as np
import pytest
from hspace.engines import answers, cache, cpu, unavailable

from ..conftest import BUNDLES, relative_error

pytestmark = pytest.mark.usefixtures("in_this_process")

AVATARS = BUNDLES / "avatars32"
IMAGE = BUNDLES / "images" / "avatar016.png"
ENGINES = [name for name in ("onnx", "openvino") if unavailable(name) is None]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path))
    return tmp_path


def z_of(engine: str) -> np.ndarray:
    return hspace.open(AVATARS, engine=engine, precision="fp32").encode_z(str(IMAGE))


def swap(folder: Path, engine: str) -> None:
    """Gives every cached graph of the engine the content of another: a sound file that computes something else."""
    kind = {"onnx": "onnxruntime"}.get(engine, engine)
    entries = [cache.Entry(kind, path.stem) for path in sorted((folder / kind).iterdir())]
    contents = [entry.read() for entry in entries]
    for entry, content in zip(entries, contents[1:] + contents[:1], strict=True):
        assert content is not None
        entry.write(content)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_computes_something_else_is_made_anew(
    engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that was laid out for another processor does. The engine gives the wrong numbers where nobody asks."""
    expected = z_of(engine)
    original = answers.hold
    scaled = cache.Entry.read

    def wrong(entry: cache.Entry) -> bytes | None:
        """The answers that are kept are twice what the graph computes."""
        found = scaled(entry)
        if entry.kind == "answers" and found:
            return (2 * np.frombuffer(found, np.float32)).tobytes()
        return found

    asked: list[bool] = []
    monkeypatch.setattr(cache.Entry, "read", wrong)
    monkeypatch.setattr(answers, "hold", lambda *a: asked.append(original(*a)) or asked[-1])
    assert relative_error(z_of(engine), expected) <= 1e-6
    assert asked and not any(asked)
    monkeypatch.setattr(cache.Entry, "read", scaled)
    asked.clear()
    assert relative_error(z_of(engine), expected) <= 1e-6
    assert asked and all(asked)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cached_graph_of_other_weights_is_not_believed(engine: str, folder: Path) -> None:
    expected = z_of(engine)
    swap(folder, engine)
    assert relative_error(z_of(engine), expected) <= 1e-6


@pytest.mark.parametrize("engine", ENGINES)
def test_it_is_asked_once_a_start_of_the_machine(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    original = answers.summary
    monkeypatch.setattr(answers, "summary", lambda outputs: asked.append(1) or original(outputs))
    z_of(engine)
    made = len(asked)
    z_of(engine)
    again = len(asked) - made
    assert made and again
    z_of(engine)
    assert len(asked) == made + again
    monkeypatch.setattr(answers, "_start_of_machine", lambda: "another")
    z_of(engine)
    assert len(asked) == made + 2 * again


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("first", "then"), [("avx2", "avx2 avx512f"), ("avx2 avx512f", "avx2")])
def test_nothing_is_taken_from_another_instruction_set(
    engine: str, first: str, then: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = {"onnx": "onnxruntime"}.get(engine, engine)
    monkeypatch.setattr(cpu, "instruction_set", lambda: first)
    expected = z_of(engine)
    there = set((folder / kind).iterdir())
    monkeypatch.setattr(cpu, "instruction_set", lambda: then)
    assert relative_error(z_of(engine), expected) <= 1e-6
    assert len(set((folder / kind).iterdir()) - there) == len(there)
