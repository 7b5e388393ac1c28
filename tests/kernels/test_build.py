"""The compiled kernels that ship: that they are what the sources build, and what a GPU needs of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hspace_kernels import variants

CUBINS = Path(__file__).parents[2] / "runtime" / "hspace" / "cuda" / "cubins"
TARGETS = {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "ptx"}
IMAGES = {"file", "sha256", "entry", "num_warps", "shared", "global_scratch", "profile_scratch"}
MANIFEST = json.loads((CUBINS / "kernels.json").read_text())
KERNELS = MANIFEST["kernels"]


def ptx(name: str) -> str:
    return (CUBINS / "ptx" / f"{name}.ptx").read_text()


def test_every_variant_has_an_image_for_every_target() -> None:
    assert MANIFEST["format"] == "hspace-kernels-1" and MANIFEST["fp_fusion"] is True
    assert set(KERNELS) == set(variants.VARIANTS)
    listed = {"kernels.json"}
    for name, kernel in KERNELS.items():
        assert set(kernel["images"]) == TARGETS, name
        for target, image in kernel["images"].items():
            data = (CUBINS / image["file"]).read_bytes()
            assert set(image) == IMAGES and image["file"].split("/")[0] == target
            assert hashlib.sha256(data).hexdigest() == image["sha256"], image["file"]
            assert data.startswith(b"\x7fELF") == (target != "ptx")
            assert image["shared"] <= 48 * 1024 and image["global_scratch"] == image["profile_scratch"] == 0
            listed.add(image["file"])
    assert {str(p.relative_to(CUBINS)) for p in CUBINS.rglob("*") if p.is_file()} == listed


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_parameters_are_the_kernels_own(name: str) -> None:
    """In the order of the source, without constants; the image has two more, for scratch memory."""
    kernel, variant = KERNELS[name], variants.VARIANTS[name]
    assert [p for p, _ in kernel["parameters"]] == [p for p in variant.kernel.arg_names if p not in variant.block]
    assert kernel["block"] == variant.block and kernel["grid"] == variant.grid
    assert kernel["images"]["ptx"]["entry"] == variant.kernel.__name__
    found = re.findall(r"\.param \.(\w+)", ptx(name))
    assert found == ["u64" if t.startswith("*") else "u32" for _, t in kernel["parameters"]] + ["u64"] * 2


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_ptx_is_for_architectures_to_come(name: str) -> None:
    """A target with an "a" would be for that architecture alone."""
    assert re.findall(r"\.target (\S+)", ptx(name)) == ["sm_80"]


def test_images_name_no_files() -> None:
    """Neither sources nor folders of the machine that built them."""
    for path in CUBINS.rglob("*"):
        if path.is_file() and path.name != "kernels.json":
            data = path.read_bytes()
            assert not [w for w in (b".py", b"/tmp", str(Path.home()).encode() + b"/", b"hspace_kernels") if w in data]


@pytest.mark.parametrize("t", ["fp16", "fp32"])
def test_the_step_moves_16_bytes_at_a_time(t: str) -> None:
    """x, x_prev, p and z, and ε and ε̃ in float32; as many elements at once of the narrower types."""
    text, wide = ptx(f"linear_step_{t}"), 6 if t == "fp32" else 4
    assert len(re.findall(r"ld\.global\.v4\.b32", text)) == wide
    assert len(re.findall(r"st\.global\.v4\.b32", text)) == wide - 2 + (t != "fp32")
    assert len(re.findall(r"ld\.global\.v2\.b32", text)) == 6 - wide


@pytest.mark.parametrize("t", ["fp16", "fp32"])
def test_clamping_keeps_nan(t: str) -> None:
    """What the interpreter's clamp does anyway; a GPU's plain min and max return the other operand."""
    text = ptx(f"linear_step_{t}")
    assert len(re.findall(r"(min|max)\.NaN\.f32", text)) == len(re.findall(r"(min|max)\.\S*f32", text)) > 0


def test_a_rebuild_gives_the_same() -> None:
    """Every variant for one architecture of each of Triton's ways to compile, and PTX; `--check` does all of them."""
    command = [sys.executable, "-m", "hspace_kernels.build", "--check", "--targets", "sm_75,sm_90,ptx"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRITON_")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
