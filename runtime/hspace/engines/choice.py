"""What engine "auto" means: the fastest here whose answers agree with the reference engine's on this bundle.

One evaluation of the U-Net is compared at three timesteps, and timed. The outcome is kept in the user's cache folder,
for this bundle, machine and these versions, so that only the first `open` takes the time.
"""

from __future__ import annotations

import importlib
import json
import logging
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from . import Engine, cache, cpu

REFERENCE = "onnx"  # float32 graphs in float32
# The largest ‖ε − ε_reference‖/‖ε‖ that passes. bfloat16 gives 4e-3 to 1e-2; whole edits of the trained bundle that
# ships then agree to 40 dB on average and 32 dB at least
TOLERANCE = 2e-2
_LOG = logging.getLogger("hspace")


def choose(bundle: Bundle, usable: Sequence[str], load: Callable[[str], Engine]) -> tuple[Engine, str]:
    """The engine, and in a line why it. usable: names of engines that can run here, the reference among them."""
    if len(usable) == 1:
        return load(usable[0]), f"{usable[0]}, the only one that can run here"
    entry = cache.Entry("auto", _key(bundle, usable))
    known = entry.read()
    if known is not None:
        name, why = json.loads(known)
        return load(name), why
    engines = {name: load(name) for name in usable}
    found = {name: _evaluate(engine, bundle) for name, engine in engines.items()}
    expected = found[REFERENCE][0]
    errors = {
        name: float(np.linalg.norm(eps.astype(np.float64) - expected) / np.linalg.norm(expected.astype(np.float64)))
        for name, (eps, _) in found.items()
    }
    passed = [name for name in usable if errors[name] <= TOLERANCE]
    best = min(passed, key=lambda name: found[name][1])
    others = [
        f"{name} takes {found[name][1] / found[best][1]:.1f} times as long"
        if name in passed
        else f"{name} differs by {errors[name]:.1e} of ε, at most {TOLERANCE:.0e} passes"
        for name in usable
        if name != best
    ]
    error = "" if best == REFERENCE else f", {errors[best]:.1e} of ε from {REFERENCE}"
    why = f"{best}{error}; {'; '.join(others)}"
    entry.write(json.dumps([best, why]).encode())
    _LOG.info("engine auto: %s", why)
    return engines[best], why


def _key(bundle: Bundle, usable: Sequence[str]) -> str:
    # modules know their versions, whichever package brought them: onnxruntime is in onnxruntime-gpu too
    modules = ("hspace", *({"onnx": "onnxruntime"}.get(name, name) for name in usable))
    versions = [importlib.import_module(m).__version__ for m in modules]
    parts = [*usable, *versions, cpu.processor(), platform.machine(), str(cpu.usable_cores())]
    parts += [c.sha256 for c in bundle.manifest.components.values()]
    return cache.key(*parts)


def _evaluate(engine: Engine, bundle: Bundle) -> tuple[NDArray[np.float32], float]:
    """ε at three timesteps, float32 [3, 3, H, W], and the least seconds that an evaluation took."""
    manifest, rng = bundle.manifest, np.random.default_rng(0)
    size, last = manifest.image.size, manifest.schedules.image.build().timesteps - 1
    given = {} if manifest.z_sem is None else {"z_sem": rng.standard_normal((1, manifest.z_sem.size), dtype=np.float32)}
    eps, seconds = [], []
    for t in (last // 10, last // 2, last - last // 10):
        x = rng.standard_normal((1, 3, size, size), dtype=np.float32)
        start = time.perf_counter()
        h, temb, *skips = engine.run("trunk", {"x": x, "t": np.array([t]), **given})
        inputs: dict[str, Any] = {"h": h, "temb": temb, "source": np.zeros(1, np.int64), **given}
        inputs |= {f"skip_{i}": s for i, s in enumerate(skips)}
        (out,) = engine.run("head", inputs)
        seconds.append(time.perf_counter() - start)
        eps.append(out.astype(np.float32))
    return np.concatenate(eps), min(seconds)
