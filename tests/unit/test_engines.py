"""What engines have in common: trunk and head, what they hold in between, and modules that lack a part."""

from __future__ import annotations

import sys
import types
from importlib import metadata
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace import engines
from hspace.engines import unet
from hspace.errors import EngineError

AVATARS = Path(__file__).parents[2] / "bundles" / "avatars32"
SOURCE = np.array([0, 1, 2, 1, 0])


def inputs(n: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    x, z = (rng.standard_normal(s, dtype=np.float32) for s in ((n, 3, 32, 32), (n, 128)))
    return {"x": x, "t": rng.integers(0, 1000, n).astype(np.int32), "z_sem": z}


def evaluated(engine: Any, given: dict[str, Any]) -> np.ndarray:
    with unet.trunk(engine, **given) as features:
        return unet.head(engine, features, features.h[SOURCE], SOURCE)


@pytest.fixture(scope="module", params=["openvino", "onnx", "null"])
def engine(request: pytest.FixtureRequest) -> Any:
    if engines.unavailable(request.param) is not None:
        pytest.skip(f"engine {request.param} cannot run here")
    return hspace.open(AVATARS, engine=request.param).engine


def test_features_are_held_apart_and_read_until_they_are_released(engine: Any) -> None:
    given = [inputs(3, seed) for seed in range(3)]
    expected = [evaluated(engine, g) for g in given]
    held = [unet.trunk(engine, **g) for g in given]
    for features, eps in reversed(list(zip(held, expected, strict=True))):
        for _ in range(2):
            assert np.array_equal(unet.head(engine, features, features.h[SOURCE], SOURCE), eps)
        features.release()
        features.release()
        with pytest.raises(EngineError, match="were released"):
            unet.head(engine, features, features.h[SOURCE], SOURCE)
    assert np.array_equal(evaluated(engine, given[0]), expected[0])


def leases(engine: Any) -> list[int]:
    """The addresses of the requests of all graphs that nobody holds."""
    return [id(request) for compiled in engine._graphs._compiled.values() for request in compiled._idle]


def test_what_fails_between_trunk_and_head_loses_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    if engines.unavailable("openvino") is not None:
        pytest.skip("engine openvino cannot run here")
    from hspace.engines.compiled import Compiled

    engine: Any = hspace.open(AVATARS, engine="openvino").engine
    given = inputs(3, 1)  # a chunk of 2, and one of 1
    expected = evaluated(engine, given)
    made, original = [], Compiled.lease
    before = sorted(leases(engine))
    monkeypatch.setattr(Compiled, "lease", lambda self: (made.append(1), original(self))[1])
    for k in range(3):
        with pytest.raises(ZeroDivisionError), unet.trunk(engine, **given) as features:
            1 / 0  # noqa: B018
        with pytest.raises(EngineError, match="component trunk failed"):  # in its second chunk
            unet.trunk(engine, **{**given, "z_sem": given["z_sem"][:2]})
        with pytest.raises(EngineError, match="component head failed"), unet.trunk(engine, **given) as features:
            unet.head(engine, features, features.h[SOURCE][:, :1, :3], SOURCE)
        assert made and sorted(leases(engine)) == before, k
    assert len(set(before)) == len(before)
    assert np.array_equal(evaluated(engine, given), expected)


def module(**has: Any) -> types.ModuleType:
    made = types.ModuleType("hspace_test_engine")
    made.__dict__.update(
        {"PACKAGES": ("numpy",), "NOTE": "a note", "version": lambda: "1", "unavailable": lambda: None} | has
    )
    return made


@pytest.fixture
def only_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module(precisions=lambda bundle: ("fp16",), open_device_engine=lambda *a: None)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    monkeypatch.setitem(engines.ENGINES, "fast", made.__name__)


@pytest.mark.usefixtures("only_on_a_gpu")
def test_an_engine_that_is_only_on_a_gpu_says_so() -> None:
    says = "engine fast: cannot run here: it runs on a GPU only, as device cuda:0"
    with pytest.raises(EngineError) as e:
        engines.open_engine("fast", hspace.Bundle(AVATARS))
    assert str(e.value) == says
    with pytest.raises(EngineError) as e:
        hspace.open(AVATARS, engine="fast")
    assert str(e.value) == says


def test_packages_and_versions_are_the_modules_own() -> None:
    assert engines.packages() == ("openvino", "onnxruntime", "onnxruntime-gpu")
    assert engines.version("null") == hspace.__version__
    for name, package in (("openvino", "openvino"), ("onnx", "onnxruntime")):
        if engines.unavailable(name) is None:
            assert engines.version(name).startswith(metadata.version(package))


def test_the_command_lines_help_lists_what_there_is() -> None:
    from hspace.cli.common import engine_option

    command = engine_option(lambda: None)
    (option,) = command.__click_params__  # type: ignore[attr-defined]
    assert f"auto, {', '.join(engines.ENGINES)}." in option.help
