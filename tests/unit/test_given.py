"""What callers give in many forms: seeds, numbers of images, samples that they change later, attributes given twice."""

from __future__ import annotations

from typing import Any

import hspace
import numpy as np
import pytest
from hspace.batch import Sample
from hspace.errors import ArgumentError, Cancelled

SHAPE = (3, 8, 8)
IMAGES = np.random.default_rng(0).uniform(-1, 1, (2, *SHAPE)).astype(np.float32)
DRAWS: Any = {"sampler": "ddpm", "steps": 3, "output": "float32"}


@pytest.mark.parametrize("seed", [np.array(3), b"ab", "12"])
def test_what_is_no_seed(null_editor: hspace.Editor, seed: Any) -> None:
    latent = null_editor.encode(IMAGES)
    for call in (null_editor.decode, lambda x, **run: null_editor.sweep(x, {"block": [0.0, 1.0]}, **run)):
        with pytest.raises(ArgumentError, match=r"seed: found .*, expected a whole number"):
            call(latent, seed=seed)


def test_a_seed_for_each_image_of_a_sweep_may_be_an_array(null_editor: hspace.Editor) -> None:
    latent, strengths = null_editor.encode(IMAGES), {"block": [0.0, 0.5]}
    a, b = (null_editor.sweep(latent, strengths, seed=seed, **DRAWS) for seed in ([5, 6], np.array([5, 6])))
    assert np.array_equal(a, b)
    assert np.array_equal(b[1], null_editor.sweep(latent, strengths, seed=6, **DRAWS)[1])


def test_a_sweep_counts_images_and_not_their_variants(null_editor: hspace.Editor) -> None:
    latent, strengths = null_editor.encode(IMAGES), {"block": [0.0, 0.5]}
    with pytest.raises(ArgumentError, match="found 3 seeds, expected one, or one for each of 2 images"):
        null_editor.sweep(latent, strengths, seed=[1, 2, 3])
    with pytest.raises(ArgumentError, match="image_numbers: expected 2 whole numbers"):
        null_editor.sweep(latent, strengths, image_numbers=[1])
    rows = int(null_editor.program("decode", sampler="ddpm", steps=3).rows["draws"].sum())
    noise = np.random.default_rng(1).standard_normal((rows, 4, *SHAPE), dtype=np.float32)
    a, b = (null_editor.sweep(latent, strengths, seed=seed, noise=noise, **DRAWS) for seed in (0, [1, 2]))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("numbers", [3, "12", [[1], [2, 3]], [True, False], [1.0, 2.0], [-1, 0]])
def test_what_are_no_image_numbers(null_editor: hspace.Editor, numbers: Any) -> None:
    latent = null_editor.encode(IMAGES)
    with pytest.raises(ArgumentError, match="image_numbers: expected 2 whole numbers"):
        null_editor.decode(latent, image_numbers=numbers)


def test_no_numbers_are_the_default_of_an_interpolation(null_editor: hspace.Editor) -> None:
    """The same draws in all frames."""
    ends = list(null_editor.encode(IMAGES))
    a, b = (null_editor.interpolate(*ends, 3, seed=1, **run, **DRAWS) for run in ({}, {"image_numbers": None}))
    assert np.array_equal(a, b)


def alone(executor: Any, sample: Sample) -> np.ndarray:
    with executor.batch("image", 1) as batch:
        slot = batch.join(sample)
        while not batch.step():
            pass
        return np.asarray(batch.leave(slot).x)


def test_a_sample_that_has_joined_is_the_batchs_own(null_asyrp: hspace.Editor) -> None:
    """Its caller may make the next one of it, and use the memory of its noise for another."""
    executor, program = null_asyrp.executor, null_asyrp.program("decode", sampler="ddpm", steps=3)
    noise = np.random.default_rng(1).standard_normal((int(program.rows["draws"].sum()), *SHAPE), dtype=np.float32)
    expected = [
        alone(executor, Sample(IMAGES[0], program, seed=1)),
        alone(executor, Sample(IMAGES[0], program, seed=2)),
    ]
    expected.append(alone(executor, Sample(IMAGES[0], program, noise=noise.copy())))
    with executor.batch("image", 3) as batch:
        sample = Sample(IMAGES[0], program, seed=1)
        slots = [batch.join(sample)]
        sample.seed = 2
        slots.append(batch.join(sample))
        sample.noise = noise
        slots.append(batch.join(sample))
        noise[:] = 0
        while not batch.step():
            pass
        for slot, x in zip(slots, expected, strict=True):
            assert np.array_equal(batch.leave(slot).x, x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": [1.0]}, "x: found list, expected an array"),
        ({"noise": [1.0]}, "noise: found list, expected an array"),
        ({"image": 1.5}, r"image: found 1\.5, expected a whole number"),
        ({"image": None}, "image: found None, expected a whole number"),
    ],
)
def test_what_is_no_sample(null_asyrp: hspace.Editor, change: dict[str, Any], message: str) -> None:
    program = null_asyrp.program("decode", sampler="ddpm", steps=3)
    with null_asyrp.executor.batch("image", 1) as batch:
        with pytest.raises(ArgumentError, match=message):
            batch.join(Sample(**{"x": IMAGES[0], "program": program, **change}))
        assert len(batch) == 0


def test_who_has_finished_is_told_whatever_a_watcher_does(null_asyrp: hspace.Editor) -> None:
    """Of two samples, one finishes; the watcher takes the other one out."""
    executor = null_asyrp.executor
    with executor.batch("image", 2) as batch:
        short, long = (batch.join(Sample(IMAGES[0], null_asyrp.program("decode", steps=n))) for n in (1, 2))

        def cancel(_: object) -> None:
            with pytest.raises(Cancelled):
                batch.leave(long)

        assert batch.step(cancel) == [short]


def test_one_attribute_under_two_names_counts_twice(null_asyrp: hspace.Editor) -> None:
    latent, table = null_asyrp.encode(IMAGES), null_asyrp.attributes["table"]
    editor = null_asyrp.with_attributes({"a": table, "b": table})
    both, twice, once = (
        editor.decode(latent, edits, steps=3, output="float32")
        for edits in ({"a": 0.5, "b": 0.5}, {"a": 1.0}, {"a": 0.5})
    )
    assert np.array_equal(both, twice) and not np.array_equal(both, once)


@pytest.mark.parametrize(
    ("network", "capacity", "message"),
    [
        ("latent", 1, "network: found 'latent', expected one of image"),
        ("head", 1, "network: found 'head'"),
        ("image", 0, "capacity: found 0, expected a whole number"),
        ("image", "2", "capacity: found '2'"),
    ],
)
def test_what_is_no_batch(null_asyrp: hspace.Editor, network: Any, capacity: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message), null_asyrp.executor.batch(network, capacity):
        pass
