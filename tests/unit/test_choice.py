"""What "auto" is: a rule on what runs, what the bundle records, and what whole runs are worth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hspace
import msgspec
import numpy as np
import pytest
from hspace import accuracy, choice
from hspace.amend import set_preset
from hspace.engines import null
from hspace.errors import ArgumentError, BundleError, EngineError
from hspace.manifest import Accuracy

from ..conftest import relative_error


class Fake(null.NullEngine):
    """The null engine under another name, whose ε is off by what its precision loses."""

    def __init__(self, bundle: hspace.Bundle, name: str, precision: str, loss: float) -> None:
        super().__init__(bundle)
        self.name, self.precision, self._loss = name, precision, loss  # type: ignore[misc]

    def run(self, component: str, inputs: Mapping[str, Any]) -> list[Any]:
        outputs = super().run(component, inputs)
        if component == "head":
            outputs = [o * np.float32(1 + self._loss) for o in outputs]
        return outputs


class Machine:
    """Which engines are there, what they can, and what was opened and measured."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}
        self.refuses: set[str] = set()
        self.able = {"openvino": ("fp32", "bf16"), "onnx": ("fp32",), "null": ("fp32",)}
        self.loss = 0.0
        self.opened: list[tuple[str, str]] = []

    def open(self, name: str, bundle: hspace.Bundle, threads: int | None = None, precision: str | None = None) -> Fake:
        if name in self.refuses:
            raise BundleError(f"{name} cannot load this graph")
        precision = precision or self.able[name][0]
        self.opened.append((name, precision))
        return Fake(bundle, name, precision, self.loss if precision == "bf16" else 0.0)


@pytest.fixture
def bundle(null_editor: hspace.Editor) -> hspace.Bundle:
    return null_editor.bundle


@pytest.fixture
def machine(bundle: hspace.Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    found = Machine()
    monkeypatch.setattr(choice, "unavailable", found.missing.get)
    monkeypatch.setattr(choice, "precisions", lambda name, bundle: found.able[name])
    monkeypatch.setattr(choice, "open_engine", found.open)
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "cache"))
    for name in ("HSPACE_ENGINE", "HSPACE_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    return found


def chosen(bundle: hspace.Bundle, **asked: Any) -> tuple[str, str]:
    found = choice.choose(bundle, **asked).engine
    return found.name, found.precision


def recording(bundle: hspace.Bundle, least: float) -> hspace.Bundle:
    """The same, whose manifest says what bfloat16 is worth."""
    found = hspace.Bundle(bundle.folder)
    record = Accuracy(precision="bf16", inversion=90.0, reconstruction=least, edit=80.0)
    found.manifest = msgspec.structs.replace(found.manifest, accuracy=record)
    return found


def test_the_first_engine_that_can_run(machine: Machine, bundle: hspace.Bundle) -> None:
    machine.able["openvino"] = ("fp32",)
    assert chosen(bundle) == ("openvino", "fp32")
    machine.missing["openvino"] = "the package openvino is not installed"
    assert chosen(bundle) == ("onnx", "fp32")
    assert choice.choose(bundle).left_out == {"openvino": "cannot run here: the package openvino is not installed"}
    machine.missing["onnx"] = "broken"
    with pytest.raises(EngineError, match=r"engine openvino: .*not installed; engine onnx: cannot run here: broken"):
        choice.choose(bundle)


def test_an_engine_that_does_not_take_the_bundle_drops_out(machine: Machine, bundle: hspace.Bundle) -> None:
    machine.refuses.add("openvino")
    found = choice.choose(bundle)
    assert found.engine.name == "onnx" and found.left_out == {"openvino": "openvino cannot load this graph"}
    with pytest.raises(BundleError, match="openvino cannot load this graph"):
        choice.choose(bundle, "openvino")
    machine.refuses.add("onnx")
    with pytest.raises(BundleError, match="onnx cannot load this graph"):
        choice.choose(bundle)


@pytest.mark.parametrize(("least", "expected"), [(40.0, "bf16"), (39.99, "fp32")])
def test_what_the_bundle_records_counts(machine: Machine, bundle: hspace.Bundle, least: float, expected: str) -> None:
    assert chosen(recording(bundle, least)) == ("openvino", expected)
    assert machine.opened == [("openvino", expected)]  # nothing was measured


@pytest.mark.parametrize(("loss", "expected"), [(1e-5, "bf16"), (0.3, "fp32")])
def test_whole_runs_decide(machine: Machine, bundle: hspace.Bundle, loss: float, expected: str) -> None:
    machine.loss = loss
    assert chosen(bundle) == ("openvino", expected)
    assert ("openvino", "bf16") in machine.opened and ("openvino", "fp32") in machine.opened
    machine.opened.clear()
    assert chosen(bundle) == ("openvino", expected)
    assert machine.opened == [("openvino", expected)]  # as it was measured
    assert chosen(bundle, threads=1) == ("openvino", expected)  # measured for itself: its sums may differ
    assert len(machine.opened) > 2


@pytest.mark.parametrize("content", [b"", b"garbage", b'["onnx"]', b"[" * 10000, b'{"precision": "null"}', b"\xff"])
def test_what_is_remembered_is_parsed_like_any_other_input(
    machine: Machine, bundle: hspace.Bundle, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.loss = 0.3
    monkeypatch.setattr(choice.cache.Entry, "read", lambda entry: content)
    assert chosen(bundle) == ("openvino", "fp32")


def test_a_cache_that_cannot_be_written_changes_nothing(
    machine: Machine, bundle: hspace.Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HSPACE_CACHE", str(tmp_path / "file" / "cache"))
    machine.loss = 0.3
    assert [chosen(bundle) for _ in range(3)] == [("openvino", "fp32")] * 3


def test_a_run_that_overflows_is_not_accurate(machine: Machine, bundle: hspace.Bundle) -> None:
    machine.loss = float("nan")
    found = choice.choose(bundle)
    assert found.engine.precision == "fp32" and "not finite" in found.why


def test_the_caller_says(machine: Machine, bundle: hspace.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(bundle, engine="onnx") == ("onnx", "fp32")
    assert chosen(bundle, precision="bf16") == ("openvino", "bf16")
    assert chosen(bundle, precision="fp32") == ("openvino", "fp32")
    assert len(machine.opened) == 3  # nothing was measured
    monkeypatch.setenv("HSPACE_ENGINE", "onnx")
    assert chosen(bundle) == ("onnx", "fp32")
    assert chosen(bundle, engine="openvino", precision="bf16") == ("openvino", "bf16")
    monkeypatch.setenv("HSPACE_PRECISION", "bf16")
    with pytest.raises(EngineError, match=r"engine onnx: computes .* in fp32 here, not"):
        choice.choose(bundle)
    assert chosen(bundle, engine="auto") == ("openvino", "bf16")
    monkeypatch.setenv("HSPACE_PRECISION", "half")
    with pytest.raises(EngineError, match="HSPACE_PRECISION: found 'half', expected auto, fp32, bf16, fp16"):
        choice.choose(bundle)
    with pytest.raises(EngineError, match="precision: found '', expected auto"):
        choice.choose(bundle, precision="")
    monkeypatch.setenv("HSPACE_PRECISION", "")  # as good as not set
    monkeypatch.setenv("HSPACE_ENGINE", "")
    assert chosen(recording(bundle, 50)) == ("openvino", "bf16")


def test_exact_samplers_run_in_float32(machine: Machine, bundle: hspace.Bundle) -> None:
    machine.loss = 1e-3
    found = choice.choose(recording(bundle, 50))
    assert found.engine.precision == "bf16" and machine.opened == [("openvino", "bf16")]
    editor = hspace.Editor(bundle, found.engine, exact=found.exact)
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, editor.size, editor.size)).astype(np.float32)
    run: dict[str, Any] = {"preset": "exact"} if "exact" in bundle.manifest.presets else {"sampler": "bdia", "steps": 8}
    assert editor.engine_of(run.get("preset"), run.get("sampler")).precision == "fp32"
    assert editor.engine_of().precision == "bf16"
    got = editor.edit(x, {}, output="float32", **run)
    expected = hspace.Editor(bundle, Fake(bundle, "x", "fp32", 0.0)).edit(x, {}, output="float32", **run)
    assert np.array_equal(got, expected)
    assert machine.opened.count(("openvino", "fp32")) == 1  # opened when it was first needed, once


@pytest.mark.parametrize("asked", [{"precision": "bf16"}])
def test_exact_samplers_are_refused_in_a_precision_that_was_asked_for(
    machine: Machine, bundle: hspace.Bundle, asked: dict[str, Any]
) -> None:
    found = choice.choose(bundle, **asked)
    editor = hspace.Editor(bundle, found.engine, exact=found.exact)
    x = np.zeros((1, 3, editor.size, editor.size), np.float32)
    with pytest.raises(ArgumentError, match=r"sampler: bdia inverts exactly in float32 alone, and this editor .* bf16"):
        editor.edit(x, {}, sampler="bdia", steps=8)


def test_latents_say_what_made_them(machine: Machine, bundle: hspace.Bundle) -> None:
    found = choice.choose(bundle, precision="bf16")
    editor = hspace.Editor(bundle, found.engine, exact=found.exact)
    latent = editor.encode(np.zeros((1, 3, editor.size, editor.size), np.float32))
    assert (latent.provenance["engine"], latent.provenance["precision"]) == ("openvino", "bf16")


def test_accuracy_is_the_least_over_images(bundle: hspace.Bundle) -> None:
    """Against a comparison that is written out: two editors, the same runs."""
    found = accuracy.measure(
        bundle,
        bundle.manifest.default_preset,
        lambda: Fake(bundle, "a", "fp32", 0.0),
        lambda: Fake(bundle, "a", "bf16", 1e-3),
    )
    own, faster = (hspace.Editor(bundle, Fake(bundle, "a", p, e)) for p, e in (("fp32", 0.0), ("bf16", 1e-3)))
    plain = {"t_edit": 0, "t_boost": 0}
    images = faster.decode(faster.draw(8), **plain)
    a, b = own.encode(images), faster.encode(images)
    runs = own.decode(a, output="float32", **plain), faster.decode(b, output="float32", **plain)
    error = np.square(np.clip(runs[0], -1, 1) - np.clip(runs[1], -1, 1)).mean(axis=(1, 2, 3))
    assert found.reconstruction == pytest.approx(float(10 * np.log10(4 / error.max())), abs=0.02)
    assert relative_error(runs[0], runs[1]) > 0
    assert json.loads(msgspec.json.encode(found)).keys() == {"precision", "inversion", "reconstruction", "edit"}
    assert accuracy.measure(bundle, bundle.manifest.default_preset, *[lambda: Fake(bundle, "a", "bf16", 0.0)] * 2) == (
        Accuracy(precision="bf16", inversion=200.0, reconstruction=200.0, edit=200.0)
    )


@pytest.mark.parametrize(("loss", "expected"), [(1e-5, "bf16"), (0.3, "fp32")])
def test_an_export_records_it(
    machine: Machine, bundle: hspace.Bundle, loss: float, expected: str, tmp_path: Path
) -> None:
    """A machine with an empty cache, and even one that could not measure, then does as the bundle says."""
    shutil.copytree(bundle.folder, tmp_path / "copy")
    copy = hspace.Bundle(tmp_path / "copy")
    machine.loss = loss
    assert f"openvino in {expected}" in choice.record(copy)
    shutil.rmtree(tmp_path / "cache")
    machine.loss, machine.opened = float("nan"), []
    again = hspace.Bundle(tmp_path / "copy")
    assert again.manifest.accuracy == choice.choose(again).accuracy
    assert chosen(again) == ("openvino", expected) and set(machine.opened) == {("openvino", expected)}
    assert "as the bundle records" in choice.choose(again).why
    machine.able["openvino"] = ("fp32",)
    assert chosen(again) == ("openvino", "fp32")


def test_another_default_preset_is_measured_anew(machine: Machine, bundle: hspace.Bundle, tmp_path: Path) -> None:
    """What is recorded is of the preset that was the default one."""
    shutil.copytree(bundle.folder, tmp_path / "copy")
    copy = hspace.Bundle(tmp_path / "copy")
    choice.record(copy)
    name, preset = copy.preset()
    set_preset(copy, "another", preset)
    assert hspace.Bundle(copy.folder).manifest.accuracy == copy.manifest.accuracy != msgspec.UNSET
    set_preset(copy, name, msgspec.structs.replace(preset, decode_steps=2), replace=True)
    assert hspace.Bundle(copy.folder).manifest.accuracy is msgspec.UNSET
    machine.loss = 0.3
    assert "measured on this machine" in choice.choose(hspace.Bundle(copy.folder)).why


def test_a_shortage_is_not_what_a_bundle_is_worth(
    machine: Machine, bundle: hspace.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the open, and the next one measures."""
    machine.loss = 1e-5

    def short(*_: Any) -> Accuracy:
        raise EngineError("too little memory")

    with monkeypatch.context() as patch:
        patch.setattr(choice, "measure", short)
        with pytest.raises(EngineError, match="too little memory"):
            choice.choose(bundle)
    assert chosen(bundle) == ("openvino", "bf16")
