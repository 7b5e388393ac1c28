"""A machine that lacks something is told so, and what works without it works."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hspace import choice, cli
from hspace.bundle import Bundle
from hspace.engines import open_engine, shortage, unavailable
from hspace.errors import BundleError, EngineError, HspaceError

from ..conftest import BUNDLES
from .helpers import refused

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


UNREADABLE = RuntimeError(
    "Unable to read the model. Please check if the model format is supported and model is correct."
)


def test_a_limit_that_the_library_does_not_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO says this of an allocation that fails, and of a graph that is not sound: the limit decides."""
    for limit, expected in ((2**30, EngineError), (shortage.ENOUGH, BundleError), (None, BundleError)):
        monkeypatch.setattr(shortage, "address_limit", lambda found=limit: found)
        found = shortage.refusal("x.onnx", "it cannot load this graph", UNREADABLE)
        assert type(found) is expected
        assert ("limited to 1.0 GiB of addresses" in str(found)) == (expected is EngineError)


def test_what_was_loaded_before_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library says of it now. What is altered is told as that."""
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path))
    module = importlib.import_module("hspace.engines.onnx")

    def fails(bundle: Bundle, *_: object) -> None:
        raise shortage.refusal("trunk.onnx", "it cannot load this graph", UNREADABLE) from UNREADABLE

    def altered(*_: object) -> None:
        raise BundleError("trunk.onnx: altered")

    bundle = Bundle(BUNDLES / "avatars32")
    open_engine("onnx", bundle)
    for how, trusted, expected, says in (
        (fails, False, EngineError, "cannot load this graph, which it has loaded before: too little memory, perhaps"),
        (fails, True, BundleError, "cannot load this graph"),
        (altered, False, BundleError, "altered"),
    ):
        monkeypatch.setattr(module, "open_engine", how)
        with refused(expected, says):
            open_engine("onnx", bundle, trusted=trusted)


@pytest.mark.parametrize("missing", ["a library", "a file"])
def test_auto_does_not_go_on_to_the_next_engine(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Which engine computes does not depend on what memory is free just now."""
    if missing == "a library":
        e = ImportError("libx.so: failed to map segment from shared object")
        monkeypatch.setattr(
            choice, "unavailable", lambda name: shortage.reason(name, e) if name == "openvino" else None
        )
        expected: type[HspaceError] = EngineError
    else:

        def fails(name: str, *_: object) -> object:
            if name == "openvino":
                raise BundleError("trunk.onnx: cannot be read: Cannot allocate memory")
            return object()

        monkeypatch.setattr(choice, "unavailable", lambda name: None)
        monkeypatch.setattr(choice, "precisions", lambda name, bundle: ("fp32",))
        monkeypatch.setattr(choice, "open_engine", fails)
        expected = BundleError
    with refused(expected, "too little memory" if missing == "a library" else "Cannot allocate memory"):
        choice.choose(Bundle(BUNDLES / "avatars32"), "auto", "fp32")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("spare", [1, 2, 4, 8])
def test_pillow_that_does_not_load(spare: int) -> None:
    """Its libraries need addresses, too."""
    code = f"""
import os, resource, sys
import hspace.editor, hspace.engines.shortage, hspace.image, hspace.cli, hspace.engines
from hspace.errors import HspaceError
resource.setrlimit(resource.RLIMIT_AS, ({SIZE} + {spare} * 2**20,) * 2)
try:
    hspace.image.load_images({str(BUNDLES / "images")!r}, 32)
except HspaceError as e:
    print(type(e).__name__, e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("EngineError the package pillow is installed but does not load: "), done
    assert "too little memory" in done.stdout or "limited to" in done.stdout, done


def test_a_library_that_the_command_line_meets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(**_: object) -> None:
        raise ImportError("libXau.so.6: failed to map segment from shared object")

    monkeypatch.setattr(cli, "hspace", SimpleNamespace(main=fails))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 5
    assert capsys.readouterr().err == "hspace: error: a library does not load: too little memory\n"
