"""Whole calls on the fake driver give what they give on the CPU; arrays on a GPU go in and come out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hspace.cuda.arrays import DeviceArray
from hspace.editor import Editor
from hspace.errors import ArgumentError, Cancelled, DeviceError, EngineError, ImageError
from hspace.image import to_uint8
from hspace.runs import Step

from tests.conftest import relative_error

from .conftest import SIZE, Pair, states
from .test_arrays import Interface

IMAGES = np.clip(states(3, 5), -1, 1)
CALLS: dict[str, Callable[[Editor], Any]] = {
    "encode": lambda e: e.encode(IMAGES).x_T,
    "reconstruct": lambda e: e.reconstruct(IMAGES, output="float32"),
    "edit block": lambda e: e.edit(IMAGES, {"block": 0.5, "table": -0.3}, output="float32"),
    "edit haas": lambda e: e.edit(IMAGES, {"haas": 0.5}, steps=(3, 6), output="float32"),
    "edit each": lambda e: e.edit(IMAGES, [{"block": 1.0}, {}, {"haas": 0.2}], output="float32"),
    "boost": lambda e: e.edit(IMAGES, {"table": 0.3}, t_edit=500, t_boost=400, seed=7, output="float32"),
    "ddpm": lambda e: e.decode(e.encode(IMAGES), sampler="ddpm", seed=3, output="float32"),
    "exact": lambda e: e.edit(IMAGES, {"table": 0.3}, sampler="bdia", steps=5, output="float32"),
    "second order": lambda e: e.edit(IMAGES, {"table": 0.3}, sampler="dpmpp_2m", steps=5, output="float32"),
    "sweep": lambda e: e.sweep(e.encode(IMAGES), {"table": [0.0, 0.5]}, output="float32"),
    "interpolate": lambda e: e.interpolate(*list(e.encode(IMAGES))[:2], frames=3, output="float32"),
    "timeline": lambda e: e.timeline(e.encode(IMAGES), frames=3, output="float32")[1],
    "inject": lambda e: e.inject(e.encode(IMAGES), IMAGES[:1], 0.6, edits={"block": 0.3}, output="float32"),
    "sample": lambda e: e.sample(3, seed=4, edits={"table": 0.2}, output="float32"),
}
DIFFAE: dict[str, Callable[[Editor], Any]] = {
    "smile": lambda e: e.edit(IMAGES, {"smile": 0.3, "block": 0.2}, output="float32"),
    "vary": lambda e: e.vary(e.encode(IMAGES), 2, seed=1, output="float32"),
    "classify": lambda e: e.classify(IMAGES),
    "encode_z": lambda e: e.encode_z(IMAGES),
    "draw": lambda e: e.draw(3, seed=1).z_sem,
}


@pytest.mark.parametrize("batch_size", [2, None])
@pytest.mark.parametrize(
    ("family", "name"), [(f, n) for f in ("diffae", "asyrp") for n in CALLS] + [("diffae", n) for n in DIFFAE]
)
def test_calls(make_pair: Callable[..., Pair], family: str, name: str, batch_size: int | None) -> None:
    host, device = make_pair(family).editors(batch_size)
    call = {**CALLS, **DIFFAE}[name]
    assert relative_error(call(device), call(host)) <= 1e-5


def test_given_noise(pair: Pair) -> None:
    host, device = pair.editors(2)
    noise = np.random.default_rng(0).standard_normal((4, 3, 3, SIZE, SIZE), dtype=np.float32)
    latent = host.encode(IMAGES)
    expected, found = (e.decode(latent, sampler="ddpm", noise=noise, output="float32") for e in (host, device))
    assert relative_error(found, expected) <= 1e-5


def test_progress_and_cancelling(pair: Pair) -> None:
    host, device = pair.editors()
    seen: list[list[tuple[Any, ...]]] = [[], []]

    def what(s: Step) -> tuple[Any, ...]:
        return s.phase, s.index, s.total, s.image.tolist(), s.row.tolist(), s.rows.tolist(), s.t.tolist()

    for steps, editor in zip(seen, (host, device), strict=True):
        editor.edit(
            IMAGES, {"table": 0.3},
            on_step=lambda s, steps=steps: steps.append((*what(s), s.x.shape)),
        )  # fmt: skip
    assert seen[0] == seen[1] and len(seen[1]) == seen[1][0][2]
    with pytest.raises(Cancelled, match=r"cancelled by on_step at step 3"):
        device.edit(IMAGES, {"table": 0.3}, on_step=lambda s: s.index < 3)
    assert relative_error(CALLS["edit block"](device), CALLS["edit block"](host)) <= 1e-5


def test_a_result_that_is_not_finite(pair: Pair) -> None:
    _, device = pair.editors()
    latent = device.encode(IMAGES)
    for output in ("float32", "device"):
        with pytest.raises(EngineError, match=r"^images\[0\] and 2 more: decode: the result is not finite"):
            device.decode(latent, {"table": 3e38}, output=output)  # type: ignore[arg-type]
    assert np.isfinite(device.decode(latent, output="float32")).all()


# --- arrays on the device -----------------------------------------------------------------------------------


def on_device(pair: Pair, array: np.ndarray) -> DeviceArray:
    made = DeviceArray.empty(pair.executor.device, array.shape, array.dtype)
    with pair.executor.device:
        pair.executor.stream.upload(made.address, np.ascontiguousarray(array))
        pair.executor.stream.synchronise()
    return made


def test_images_on_the_device(pair: Pair) -> None:
    host, device = pair.editors(2)
    pixels = to_uint8(IMAGES)
    for images in (IMAGES, pixels, pixels[0]):
        there = on_device(pair, images)
        foreign = Interface(there.address, images.shape, images.dtype.str)
        expected = host.edit(images, {"smile": 0.2, "block": 0.3}, output="float32")
        for given in (there, foreign):
            found = device.edit(given, {"smile": 0.2, "block": 0.3}, output="float32")
            assert relative_error(found, expected) <= 1e-5
    assert relative_error(device.classify(on_device(pair, IMAGES)), host.classify(IMAGES)) <= 1e-5


def test_results_stay_on_the_device(pair: Pair) -> None:
    host, device = pair.editors(2)
    latent = host.encode(IMAGES)
    found = device.decode(latent, {"table": 0.3}, output="device")
    assert isinstance(found, DeviceArray) and found.shape == IMAGES.shape
    assert relative_error(found.numpy(), host.decode(latent, {"table": 0.3}, output="float32")) <= 1e-5
    again = device.encode(found)  # and in again, as they are
    assert relative_error(again.x_T, host.encode(np.clip(found.numpy(), -1, 1)).x_T) <= 1e-1
    swept = device.sweep(latent, {"table": [0.0, 0.5]}, output="device")
    assert swept.shape == (3, 2, 3, SIZE, SIZE)


def test_arrays_that_are_refused(pair: Pair) -> None:
    _, device = pair.editors()
    there = on_device(pair, IMAGES)
    says = (
        r"^images: found float64 \[3, 3, 8, 4\] on the device, expected uint8 \[N, H, W, 3\] or float32 \[N, 3, H, W\]"
    )
    with pytest.raises(ArgumentError, match=says):
        device.encode(Interface(there.address, (3, 3, 8, 4), "<f8"))
    with pytest.raises(ImageError, match=r"^images: found 4×8 pixels, expected 8×8$"):
        device.encode(Interface(there.address, (3, 3, 8, 4)))
    with pytest.raises(ArgumentError, match=r"^images: found an array that is not contiguous"):
        device.encode(Interface(there.address, (3, 3, 8, 8), strides=(768, 4, 96, 12)))
    pair.driver.holders[0xD00] = (1, 0xC5)
    with pytest.raises(DeviceError, match=r"^images: found an array on cuda:1, expected one on cuda:0$"):
        device.encode(Interface(0xD00, (3, 3, 8, 8)))
    device.encode(there)


def test_an_editor_on_the_cpu(pair: Pair) -> None:
    host, device = pair.editors()
    with pytest.raises(ArgumentError, match=r"^images: found an array on a GPU, and this editor is on the CPU"):
        host.encode(on_device(pair, IMAGES))
    with pytest.raises(ArgumentError, match=r"^output: found 'device', expected 'uint8' or 'float32': this call gives"):
        host.edit(IMAGES, None, output="device")
    with pytest.raises(ArgumentError, match=r"^output: found 'device', expected 'uint8' or 'float32'"):
        device.timeline(device.encode(IMAGES), output="device")
    with pytest.raises(ArgumentError, match=r"^output: found 'gpu', expected 'uint8', 'float32' or 'device'$"):
        device.edit(IMAGES, None, output="gpu")  # type: ignore[arg-type]


def test_closing(pair: Pair) -> None:
    host, device = pair.editors()
    device.encode(IMAGES)
    host.close()
    device.close()
    assert pair.engine.closed and not pair.driver.memory
