"""`Step.image` is an image's number in the call, also where others failed before it, and of draws in later rounds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hspace
import numpy as np
import pytest
from hspace.bundle import Bundle
from hspace.engines.null import NullEngine
from hspace.errors import NotFinite
from hspace.runs import Step

from ..conftest import make_null_bundle

IMAGES = np.random.default_rng(0).uniform(-0.9, 0.9, (5, 3, 8, 8)).astype(np.float32)


class Spoiling(NullEngine):
    """The null engine, whose encoder makes nothing finite of images[1]."""

    def run(self, component: str, inputs: Mapping[str, Any]) -> list[Any]:
        outputs = super().run(component, inputs)
        if component == "encoder":
            outputs[0][(inputs["x"] == IMAGES[1]).all(axis=(1, 2, 3))] = np.nan
        return outputs


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_images_keep_their_numbers_where_one_fails(tmp_path: Path, batch_size: int) -> None:
    bundle = Bundle(make_null_bundle(tmp_path / "b"))
    editor = hspace.Editor(bundle, Spoiling(bundle), batch_size=batch_size)
    seen: dict[str, dict[int, list[np.ndarray]]] = {"encode": defaultdict(list), "decode": defaultdict(list)}

    def on_step(step: Step) -> None:
        for image, x in zip(step.image.tolist(), step.x, strict=True):
            seen[step.phase][image].append(x.copy())

    with pytest.raises(NotFinite, match=r"^images\[1\]: encoder"):
        editor.reconstruct(IMAGES, on_step=on_step)
    for phase in seen.values():
        assert sorted(phase) == [0, 2, 3, 4]
    for image, states in seen["encode"].items():
        assert np.array_equal(states[0], IMAGES[image])
        assert np.array_equal(seen["decode"][image][0], editor.encode(IMAGES[image]).x_T[0])


def test_draws_are_counted_on(tmp_path: Path) -> None:
    bundle = Bundle(make_null_bundle(tmp_path / "b"))
    editor = hspace.Editor(bundle, NullEngine(bundle), batch_size=4)
    options: dict[str, Any] = {"latent_steps": 2, "seed": 1}
    z_sem = editor.draw(12, **options).z_sem
    smile = editor.attributes["smile"]
    last = float(smile.logit(z_sem)[4:].max())  # which is drawn in the second round or the third
    seen: list[int] = []

    def on_step(step: Step) -> None:
        seen.extend(step.image[step.row == 0].tolist())

    editor.draw(1, accept={"smile": max(last, float(smile.logit(z_sem)[:4].max()) + 1e-3)}, on_step=on_step, **options)
    assert len(seen) > 4 and seen == list(range(len(seen)))
