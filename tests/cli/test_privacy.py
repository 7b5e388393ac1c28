"""Every command, with sockets forbidden and with the home folder and the temporary one watched."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hspace.cli import _COMMANDS
from hspace.engines import privacy, unavailable

from ..conftest import BUNDLES, GOLDEN

# what a Python program that opens a socket, or asks for a name, would do: it is written down, and fails
FORBID = """
import os, socket, sys
def forbidden(*given, **named):
    with open(os.environ["HSPACE_TEST_SOCKETS"], "a") as f:
        f.write(repr((sys.argv, given)) + "\\n")
    raise OSError("sockets are forbidden")
class Forbidden(socket.socket):
    __init__ = forbidden
socket.socket = Forbidden
socket.create_connection = socket.getaddrinfo = socket.gethostbyname = forbidden
"""
FACE, OTHER = BUNDLES / "images" / "avatar016.png", BUNDLES / "images" / "avatar000.png"
CHECKPOINT = str(GOLDEN / "asyrp-ddpm-tiny" / "model.ckpt")
ON = ("-b", "bundle", "--steps", "2", "--engine", "onnx")
# command → arguments, in an order in which each finds what it needs
CALLS: list[tuple[str, ...]] = [
    ("doctor", "--json"),
    ("info", "bundle"),
    ("verify", "bundle", "--engine", "onnx"),
    ("edit", str(FACE), *ON[:4], "--engine", "openvino", "--precision", "fp32", "--set", "Dark_Skin=1", "-o", "ov.png"),
    ("edit", str(FACE), *ON, "--set", "Dark_Skin=0.5", "-o", "edited.png"),
    ("encode", str(FACE), *ON, "-o", "face.safetensors"),
    ("decode", "face.safetensors", *ON, "-o", "decoded.png"),
    ("sweep", str(FACE), *ON, "--over", "Dark_Skin=0:1:2", "-o", "sweep.png"),
    ("interpolate", str(FACE), str(OTHER), *ON, "--frames", "2", "-o", "between.png"),
    ("timeline", str(FACE), *ON, "--frames", "2", "-o", "timeline.png"),
    ("sample", "1", *ON, "-o", "sample.png"),
    ("vary", str(FACE), *ON, "--count", "1", "-o", "varied.png"),
    ("inject", str(FACE), str(OTHER), *ON, "-o", "injected.png"),
    ("classify", str(FACE), "-b", "bundle", "--engine", "onnx", "-o", "scores.csv"),
    (
        "bench",
        "-b",
        "bundle",
        "--engine",
        "onnx",
        "--steps",
        "2",
        "--repeat",
        "1",
        "--calls",
        "1",
        "--plot",
        "bench.png",
    ),
    ("attribute", "list", "bundle"),
    ("calibrate", "bundle", "images", "--steps", "2", "--engine", "onnx", "-o", "calibrated"),
    ("export", "asyrp", CHECKPOINT, "--image-size", "32", "--num-heads", "4", "-o", "exported"),
]
NEEDS = {"calibrate": "skimage", "export": "torch", "bench": "matplotlib"}


def test_every_command_is_tried() -> None:
    assert {call[0] for call in CALLS} == set(_COMMANDS)


def tracer(place: Path) -> list[str]:
    """A command that runs another one in `place`, with its calls for sockets in the file `calls`; [] where none can."""
    trace = ["strace", "-f", "-qq", "-e", "trace=socket", "-o", "calls"]
    if shutil.which("strace") is None:
        return []
    tried = subprocess.run([*trace, "true"], cwd=place, capture_output=True, check=False)
    return trace if tried.returncode == 0 else []


def without_network() -> list[str]:
    """A command that runs another one where there is no network; [] where none can."""
    alone = ["unshare", "-rn"]
    if shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True, check=False).returncode == 0:
        return alone
    return []


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, pictures, an empty home and an empty temporary folder."""
    folder = tmp_path_factory.mktemp("private")
    shutil.copytree(BUNDLES / "avatars32", folder / "bundle")
    shutil.copytree(BUNDLES / "images", folder / "images")
    for name in ("home", "tmp", "site"):
        (folder / name).mkdir()
    (folder / "site" / "sitecustomize.py").write_text(FORBID)
    return folder


@pytest.mark.parametrize("call", CALLS, ids=lambda call: "-".join(c for c in call[:2] if c.isalpha()))
def test_nothing_is_sent_and_nothing_is_left(place: Path, call: tuple[str, ...], own_cache: Path) -> None:
    """Sockets of Python's are refused; those of the libraries are seen by strace, where it runs."""
    if call[0] in NEEDS:
        pytest.importorskip(NEEDS[call[0]])
    if "openvino" in call and unavailable("openvino"):
        pytest.skip("openvino is not installed")
    wrapper = tracer(place) or without_network()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_", "MPL", "CI", "HSPACE"))}
    environment |= {
        "HSPACE_PRECISION": "fp32",  # so that no export measures another one, which takes a minute
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "HSPACE_CACHE": str(own_cache),
        "HSPACE_TEST_SOCKETS": str(place / "sockets"),
        "PYTHONPATH": os.pathsep.join([str(place / "site"), *(p for p in sys.path if p)]),
    }
    command = [*wrapper, sys.executable, "-m", "hspace.cli", *call]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not (place / "sockets").exists(), (place / "sockets").read_text()
    if "strace" in wrapper:
        asked = [
            line for line in (place / "calls").read_text().splitlines() if re.search(r"socket\(AF_(INET|PACKET)", line)
        ]
        assert asked == []
    left = [str(p.relative_to(place)) for name in ("home", "tmp") for p in (place / name).rglob("*")]
    assert left == []


SEES = """
import json, os, sys
import hspace
hspace.open({bundle!r}, engine={engine!r}, precision="fp32")
reporter = "openvino_telemetry" in sys.modules and sys.modules["openvino_telemetry"] is not None
print(json.dumps([os.environ.get("ORT_DISABLE_TELEMETRY"), reporter]))
"""


@pytest.mark.parametrize("given", [None, "0"])
@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_it_is_off_before_the_library_starts(place: Path, own_cache: Path, engine: str, given: str | None) -> None:
    """As a program that uses hspace sees it."""
    if unavailable(engine):
        pytest.skip(f"{engine} is not installed")
    environment = {**os.environ, "HOME": str(place / "home"), "TMPDIR": str(place / "tmp")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    code = SEES.format(bundle=str(BUNDLES / "avatars32"), engine=engine)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["1" if engine == "onnx" else given, False]
    assert list((place / "home").rglob("*")) == list((place / "tmp").rglob("*")) == []


@pytest.mark.skipif(
    importlib.util.find_spec("openvino_telemetry") is None or unavailable("openvino") is not None,
    reason="needs openvino and its telemetry",
)
def test_a_program_may_use_the_reporter_itself() -> None:
    """It is kept from OpenVINO while that is imported, and from nobody else."""
    code = "from hspace.engines import privacy; privacy.openvino(); import openvino_telemetry as t; print(t.Telemetry)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Telemetry" in done.stdout
    assert privacy.openvino().Core().available_devices


def test_there_is_one_place_that_imports_them() -> None:
    """Parts of OpenVINO may be imported by who was given the whole."""
    root = Path(__file__).parent.parent.parent
    for path in [*(root / "runtime").rglob("*.py"), *(root / "export").rglob("*.py")]:
        assert re.findall(r"^ *import (?:onnxruntime|openvino)\b", path.read_text(), re.MULTILINE) == [], path
