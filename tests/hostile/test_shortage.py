"""A machine that lacks something is told so, and what works without it works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hspace.engines import shortage, unavailable
from hspace.errors import BundleError, EngineError

from ..conftest import BUNDLES

pytest.importorskip("resource")

OPEN = """
import os, resource, sys
from hspace.engines import privacy
import hspace, hspace.editor
from hspace.errors import HspaceError
getattr(privacy, {package!r})()
{limit}
try:
    hspace.open({bundle!r}, engine={engine!r}, precision="fp32")
    print("opened")
except HspaceError as e:
    print(type(e).__name__, e)
"""
SIZE = "int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()"
MEMORY = f"resource.setrlimit(resource.RLIMIT_AS, ({SIZE} + 60 * 2**20,) * 2)"
FILES = "resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir('/proc/self/fd')),) * 2)"


def opened(engine: str, limit: str, cache: Path, **environment: str) -> str:
    package = {"onnx": "onnxruntime"}.get(engine, engine)
    code = OPEN.format(package=package, limit=limit, bundle=str(BUNDLES / "avatars32"), engine=engine)
    given = {**os.environ, "HSPACE_CACHE": str(cache), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
@pytest.mark.parametrize(("limit", "says"), [(MEMORY, "too little memory"), (FILES, "Too many open files")])
def test_it_is_named(engine: str, limit: str, says: str, tmp_path: Path) -> None:
    if unavailable(engine):
        pytest.skip(f"{engine} is not installed")
    found = opened(engine, limit, tmp_path / "cache")
    assert found.startswith("EngineError ") and says in found, found


@pytest.mark.parametrize("cache", ["cache", "file/cache"])
def test_no_temporary_folder_is_needed(tmp_path: Path, cache: str) -> None:
    """Nor one that can be written; with a cache and without."""
    (tmp_path / "file").write_text("")
    assert opened("onnx", "", tmp_path / cache, TMPDIR=str(tmp_path / "missing")) == "opened"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", "memory"),
        ("bad allocation", "memory"),
        ("Exception from src/inference/src/dev/plugin.cpp:54:\ncan't alloc\n", "memory"),
        ("libx.so: failed to map segment from shared object", "memory"),
        ("Failed to allocate memory for requested buffer of size 64", "memory"),
        ("open file x fail, errcode = 24 - Too many open files", "file descriptors"),
        ("write: No space left on device", "disk space"),
        ("Resource temporarily unavailable", "memory, or too few threads"),
        ("Node (conv) Op (Conv) [ShapeInferenceError] bad", None),
    ],
)
def test_the_libraries_words(text: str, what: str | None) -> None:
    assert shortage.lacks(RuntimeError(text)) == what
    found = shortage.refusal("x.onnx", "it cannot load this graph", RuntimeError(text))
    assert type(found) is (BundleError if what is None else EngineError)
    assert str(found) == "x.onnx: it cannot load this graph" + (f": too little {what}" if what else "")
