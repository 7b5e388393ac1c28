"""Every engine × precision against the PyTorch networks in float32, on inputs drawn anew at each run.

To add an engine: its name in ENGINES, and a row per precision that it runs in TOLERANCES.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hspace
import numpy as np
import pytest

from ..conftest import golden_model, relative_error

FAMILIES = ["diffae-tiny", "asyrp-ddpm-tiny", "asyrp-iddpm-tiny"]
ENGINES = ["onnx"]
# (precision, weights): largest relative error of a component's outputs, least PSNR of a whole edit to fp32 (dB).
# Networks with random weights amplify rounding; benchmarks/half_precision.py has the figures of a trained one.
TOLERANCES = {
    ("fp32", "fp32"): (1e-5, 100),
    ("fp32", "fp16"): (1e-2, 25),
    ("fp16", "fp16"): (1e-2, 25),
}
# exports take a while: the rounded forms for one family of each hook
CASES = [(f, p) for f in FAMILIES for p in TOLERANCES if p == ("fp32", "fp32") or f != "asyrp-iddpm-tiny"]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1][0]}-weights_{c[1][1]}")
def case(request: pytest.FixtureRequest) -> tuple[str, tuple[str, str]]:
    return request.param


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("batch", [1, 3])
def test_components(golden_bundles: Callable[..., Path], case, engine: str, batch: int) -> None:
    from hspace_export.graph import compare

    name, precision = case
    editor = hspace.open(golden_bundles(name, *precision), engine=engine)
    seed = secrets.randbelow(2**31)
    for key, part in golden_model(name).parts.items():
        for output, error in compare(key, part, editor.engine.run, batch, seed).items():
            assert error <= TOLERANCES[precision][0], f"{key}.{output}, seed {seed}"


@pytest.mark.parametrize("engine", ENGINES)
def test_whole_edits(golden_bundles: Callable[..., Path], golden_editor, case, engine: str) -> None:
    """A batch of three images, edited along an attribute, against the fp32 bundle."""
    name, precision = case
    x = np.random.default_rng().uniform(-1, 1, (3, 3, 32, 32)).astype(np.float32)
    attribute = next(iter(golden_editor(name).attributes))
    run = {"edits": {attribute: 0.5}, "steps": 5 if name == "diffae-tiny" else 4, "output": "float32"}
    a, b = (
        e.edit(x, **run) for e in (hspace.open(golden_bundles(name, *precision), engine=engine), golden_editor(name))
    )
    # random weights let Asyrp's states grow, so the peak is the reference's own
    psnr = 20 * np.log10((b.max() - b.min()) / max(float(np.sqrt(np.mean((a - b) ** 2))), 1e-12))
    print(f"{name} {precision}: {psnr:.1f} dB")
    assert psnr >= TOLERANCES[precision][1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_result_does_not_depend_on_its_batch(golden_editor, name: str) -> None:
    """Within 1e-5, on a real network; edits of several kinds in one batch."""
    editor = golden_editor(name)
    x = np.random.default_rng().uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)
    names = list(editor.attributes)[:2]
    edits = [{}, {names[0]: 0.5}, {names[1]: -0.5}, {names[0]: 0.3, names[1]: 0.3}]
    run = {"steps": 4, "t_boost": 300, "output": "float32"}
    together = editor.edit(x, edits, **run)
    for i in range(4):
        alone = editor.edit(x[i : i + 1], edits[i], image_numbers=[i], **run)[0]
        assert relative_error(together[i], alone) <= 1e-5


def test_several_threads(golden_editor) -> None:
    """One editor, one engine, four threads, each with its own request."""
    editor = golden_editor("asyrp-ddpm-tiny")
    x = np.random.default_rng().uniform(-1, 1, (4, 3, 32, 32)).astype(np.float32)
    run = {"edits": {"attribute0": 0.5}, "steps": 3, "output": "float32"}
    expected = [editor.edit(x[i : i + 1], **run) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda i: editor.edit(x[i : i + 1], **run), range(4)))
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) <= 1e-5


def test_weights_stored_as_fp16_are_half_the_size(golden_bundles: Callable[..., Path]) -> None:
    sizes = [
        sum(p.stat().st_size for p in golden_bundles("diffae-tiny", "fp32", w).glob("*.onnx")) for w in ("fp32", "fp16")
    ]
    assert sizes[1] < 0.6 * sizes[0]
