"""A decode that cannot give back what was encoded says so; one that can, and one of what was drawn, say nothing."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import hspace
import msgspec
import numpy as np
import pytest
from hspace.errors import LatentWarning
from numpy.typing import NDArray

EXACT = {"sampler": "bdia", "steps": 8}


@pytest.fixture
def x(null_editor: hspace.Editor) -> NDArray[np.float32]:
    size = null_editor.size
    return np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3, size, size)).astype(np.float32)


def told(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in found if w.category is LatentWarning]


def test_what_undoes_itself_says_nothing(null_editor: hspace.Editor, x: NDArray[np.float32]) -> None:
    for preset in null_editor.bundle.manifest.presets:
        assert told(lambda p=preset: null_editor.decode(null_editor.encode(x, preset=p), preset=p)) == []
        assert told(lambda p=preset: null_editor.edit(x, {}, preset=p)) == []
    assert told(lambda: null_editor.sample(1, **EXACT)) == []
    assert told(lambda: null_editor.decode(null_editor.draw(1), **EXACT)) == []


def test_an_exact_encode_that_something_else_decodes(null_editor: hspace.Editor, x: NDArray[np.float32]) -> None:
    plan = null_editor.bundle.preset()[1]
    exact, steps = "exact", 8
    preset = msgspec.structs.replace(plan, sampler="bdia", spacing="logsnr", encode_steps=steps, decode_steps=steps)
    bundle = hspace.Bundle(null_editor.bundle.folder)
    bundle.manifest = msgspec.structs.replace(bundle.manifest, presets={**bundle.manifest.presets, exact: preset})
    null_editor = hspace.Editor(bundle, null_editor.engine)
    latent = null_editor.encode(x, preset=exact)
    assert told(lambda: null_editor.decode(latent, preset=exact)) == []
    (message,) = told(lambda: null_editor.decode(latent))
    assert f"encoded by preset {exact}, bdia over {steps} timesteps" in message
    assert f"{plan.sampler} over {plan.decode_steps} timesteps" in message
    assert len(told(lambda: null_editor.decode(latent, preset=exact, steps=steps - 1))) == 1


def test_an_exact_decode_of_what_something_else_encoded(null_editor: hspace.Editor, x: NDArray[np.float32]) -> None:
    latent = null_editor.encode(x)
    (message,) = told(lambda: null_editor.decode(latent, **EXACT))
    assert "bdia over 8 timesteps" in message and "does not give the image back exactly" in message
    assert len(told(lambda: null_editor.edit(x, {}, sampler="bdia", steps=(9, 8)))) == 1
