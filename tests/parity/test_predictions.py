"""Networks that predict v or x_0 on every engine: ε, and whole runs, against ONNX Runtime."""

from __future__ import annotations

import secrets
from pathlib import Path

import hspace
import numpy as np
import pytest
from hspace.engines import open_engine, precisions, unavailable

from ..conftest import relative_error

if unavailable("openvino") is not None:
    pytest.skip(str(unavailable("openvino")), allow_module_level=True)

pytest.importorskip("torch", reason="exports need the extra `export`")
pytest.importorskip("diffusers", reason="these exports need the extra `diffusers`")
from .test_diffusers import Settings, export, hook, saved  # noqa: F401

LIMITS = {"fp32": 1e-5, "bf16": 3e-2}


@pytest.mark.parametrize("name", ["epsilon", "v_prediction", "sample"])
def test_every_prediction_opens_in_every_precision(name: str, saved, tmp_path: Path) -> None:  # noqa: F811
    export(lambda: hook.load_model(saved(name), attributes={}, settings=Settings()), tmp_path / name)
    bundle = hspace.Bundle(tmp_path / name)
    reference = open_engine("onnx", bundle)
    last = bundle.manifest.schedules.image.build().timesteps - 1
    rng = np.random.default_rng(seed := secrets.randbelow(2**31))
    x = rng.standard_normal((3, 3, bundle.manifest.image.size, bundle.manifest.image.size), dtype=np.float32)
    t = np.array([1, last // 2, last], np.int32)
    for precision in precisions("openvino", bundle):
        engine = open_engine("openvino", bundle, precision=precision)
        found = []
        for e in (engine, reference):
            h, temb, *skips = e.run("trunk", {"x": x, "t": t})
            source = np.array([0, 1, 2, 1])
            given = {"h": h[source] * np.float32(1.1), "temb": temb, "source": source}
            found.append(e.run("head", given | {f"skip_{i}": s for i, s in enumerate(skips)})[0])
        for i in range(4):  # each by itself: where ᾱ is nearly 0, ε is large
            error = relative_error(found[0][i], found[1][i])
            print(f"{name} {precision} t={t[source[i]]}: {error:.1e}")
            assert error <= LIMITS[precision], f"seed {seed}"
