"""What benchmarks/half_precision.py compares."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import hspace
import numpy as np
import pytest
from PIL import Image

from ..conftest import GOLDEN
from . import FOLDER


def test_fp16_is_compared_with_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the user's own settings are, each is computed in the precision that it is said to be."""
    pytest.importorskip("torch", reason="needs the extra `export`")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    for i, each in enumerate(pixels):
        Image.fromarray(each).save(tmp_path / f"{i}.png")
    monkeypatch.setenv("HSPACE_ENGINE", "null")
    monkeypatch.setenv("HSPACE_PRECISION", "bf16")
    results, edit = {}, hspace.Editor.edit

    def kept(self: hspace.Editor, *given: object, **options: object) -> np.ndarray:
        engine, graphs = self.engine, self.bundle.manifest.precision
        results[engine.name, engine.precision, graphs] = edit(self, *given, **options)
        return results[engine.name, engine.precision, graphs]

    monkeypatch.setattr(hspace.Editor, "edit", kept)
    last, classifier = GOLDEN / "diffae-tiny" / "last.ckpt", GOLDEN / "diffae-tiny" / "cls_last.ckpt"
    arguments = [last, last, classifier, tmp_path, "--steps", 2, "--edit", "class_0=0.5"]
    monkeypatch.setattr(sys, "argv", ["half_precision.py", *map(str, arguments)])
    runpy.run_path(str(FOLDER / "half_precision.py"), run_name="__main__")
    full, half = results["onnx", "fp32", "fp32"], results["onnx", "fp16", "fp16"]
    psnr = 10 * np.log10(4 / np.mean((half - full) ** 2, axis=(1, 2, 3)))
    said = re.fullmatch(
        r"2 images, .* PSNR of FP16 to FP32 ([\d.]+) dB on average, ([\d.]+) dB at least\n", capsys.readouterr().out
    )
    assert said is not None and len(results) == 2
    assert [float(n) for n in said.groups()] == pytest.approx([psnr.mean(), psnr.min()], abs=0.051)
    assert np.isfinite(psnr).all()
