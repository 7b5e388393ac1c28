"""The package itself: what an import costs and drags in, the wheel, the documents that must agree with the code."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hspace import bundle, manifest

from ..conftest import BUNDLES

ROOT = Path(__file__).parent.parent.parent


def run(code: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_and_use_without_pytorch(tmp_path: Path) -> None:
    """A whole edit on the shipped model, in a process where torch, triton and onnx cannot be imported."""
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "triton", "onnx", "onnxscript"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import hspace
light = [m for m in ("numpy", "onnxruntime", "PIL", "msgspec", "click") if m in sys.modules]
editor = hspace.open({str(BUNDLES / "avatars32")!r})
out = editor.edit({str(BUNDLES / "images/avatar016.png")!r}, {{"Dark_Skin": 0.5}}, steps=2)
print(light, out.shape, sorted({{"torch", "triton", "onnx"}} & set(sys.modules)))
"""
    assert run(code, tmp_path) == "[] (1, 32, 32, 3) []"


REFUSED = {
    "runtime": ("hspace_export", "hspace_kernels", "torch", "triton", "onnx", "onnxscript"),
    "export": ("hspace_kernels", "triton"),
    "kernels": ("hspace_export", "onnx", "onnxscript"),
}


@pytest.mark.parametrize("package", REFUSED)
def test_imports_run_one_way(package: str) -> None:
    """hspace names the other packages only as strings."""
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.split(".")[0] not in REFUSED[package], f"{path}:{node.lineno}: {name}"


def test_the_wheel_works_without_the_source_tree(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl")
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True, capture_output=True)
    found = run("import hspace; print(hspace.__file__, hspace.__version__)", tmp_path, PYTHONPATH=str(site))
    assert found.split() == [str(site / "hspace" / "__init__.py"), wheel.name.split("-")[1]]
    command = [sys.executable, "-m", "hspace.cli", "edit", str(BUNDLES / "images" / "avatar016.png"), "--steps", "2"]
    command += ["-b", str(BUNDLES / "avatars32"), "--set", "Dark_Skin=0.5", "-o", "out.png"]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)})
    assert (tmp_path / "out.png").stat().st_size > 100


def test_the_schema_in_the_documents() -> None:
    """Made by: python -m hspace.manifest > docs/bundle.schema.json"""
    assert json.loads((ROOT / "docs" / "bundle.schema.json").read_text()) == manifest.json_schema()


def test_the_shipped_bundle_fits_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    found = json.loads((BUNDLES / "avatars32" / "bundle.json").read_text())
    jsonschema.validate(found, manifest.json_schema())
    opened = bundle.Bundle(BUNDLES / "avatars32")
    assert len(dict(opened.verify())) == len(list(opened.manifest.files()))
    assert msgspec.to_builtins(opened.manifest) == found
