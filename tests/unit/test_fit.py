"""Attributes from images: planted answers recovered, tables against direct computations, the shipped model's labels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import hspace
import numpy as np
import PIL.Image
import pytest

pytest.importorskip("sklearn", reason="fits need the extra `fit`")

from hspace.bundle import h_shape
from hspace.deltas import DeltaTable, ZDirection
from hspace.errors import ArgumentError, BundleError, Cancelled
from hspace.image import load_images
from hspace.manifest import Attribute
from hspace.program import Branch
from hspace.recorders import HRecorder
from hspace_export import fit
from sklearn.metrics import roc_auc_score

from ..conftest import BUNDLES, relative_error

AVATARS = Path(__file__).parent.parent / "data" / "avatars.npz"


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """A fit that did not converge, or that had nothing to measure, says so in a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a.astype(float), b) / np.linalg.norm(a) / np.linalg.norm(b))


def pictures(folder: Path, count: int, low: int = 0, high: int = 256, first: int = 0) -> list[Path]:
    """Files of 8×8 noise with values from low up to high."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng([first, low])
    paths = [folder / f"{first + i:03d}.png" for i in range(count)]
    for path in paths:
        PIL.Image.fromarray(rng.integers(low, high, (8, 8, 3), dtype=np.uint8)).save(path)
    return paths


# --- z_direction ------------------------------------------------------------------------------------------


def planted(n: int, d: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes with offsets and scales of their own, labels, and the direction that made the labels of what is normal."""
    rng = np.random.default_rng(d)
    normal, direction = rng.standard_normal((n, d)), rng.standard_normal(d)
    direction /= np.linalg.norm(direction)
    labels = normal @ direction + noise * rng.standard_normal(n) > 0.3
    z = normal * np.geomspace(0.1, 10, d) + np.arange(d)
    return z.astype(np.float32), labels, direction


@pytest.mark.parametrize("given", [True, False], ids=["statistics", "no statistics"])
def test_a_planted_direction(given: bool) -> None:
    z, labels, direction = planted(1000, 16, noise=0.1)
    statistics = (np.arange(16, dtype=np.float32), np.geomspace(0.1, 10, 16).astype(np.float32)) if given else None
    found = fit.fit_direction(z, labels, statistics)
    assert (found.kind, found.branch, found.n_train) == ("z_direction", "none", None)
    assert {k: (v.dtype, v.shape) for k, v in found.arrays.items()} == {
        k: (np.dtype(np.float32), (1,) if k == "bias" else (16,)) for k in ("weight", "bias", "mean", "std")
    }
    assert cosine(found.arrays["weight"], direction) > 0.98
    assert found.report["auc"] > 0.98 and found.report["accuracy"] > 0.93 and found.report["held_out"] == 200
    assert found.report["fitted_to"] == f"{labels.sum()} images with, {(~labels).sum()} without"
    mean, std = found.arrays["mean"], found.arrays["std"]
    expected = (z.mean(axis=0), z.std(axis=0)) if statistics is None else statistics
    assert np.allclose(mean, expected[0], atol=1e-4) and np.allclose(std, expected[1], rtol=1e-4)
    weight, bias = found.arrays["weight"], float(found.arrays["bias"][0])
    scores = ZDirection(weight, bias, mean, std).logit(z)  # as the runtime scores
    assert ((scores > 0) == labels).mean() > 0.95
    assert np.array_equal(fit.fit_direction(z, labels, statistics).arrays["weight"], weight)


def test_random_labels_are_worth_nothing() -> None:
    """Which a measure on the images of the fit itself would not say."""
    z, _, _ = planted(600, 64)
    labels = np.random.default_rng(1).random(600) > 0.4
    report = fit.fit_direction(z, labels, None, held_out=0.5).report
    assert abs(report["auc"] - 0.5) < 0.1 and abs(report["accuracy"] - report["chance"]) < 0.15
    own = np.concatenate([labels[~labels], labels[labels]])
    assert report["held_out"] == 300 and abs(report["chance"] - max(own.mean(), 1 - own.mean())) < 0.01


def test_few_shot() -> None:
    """Ten images with the attribute, against others of which a third have it as well."""
    rng = np.random.default_rng(3)
    direction = np.zeros(16)
    direction[5] = 4.0
    unlabelled = rng.standard_normal((400, 16)) + (rng.random(400) < 0.33)[:, None] * direction
    z = np.concatenate([rng.standard_normal((10, 16)) + direction, unlabelled]).astype(np.float32)
    labels = np.arange(410) < 10
    found = fit.fit_direction(z, labels, None, few_shot=True)
    assert found.report["fitted_to"] == "10 images with, 400 unlabelled"  # too few to hold any out
    assert np.argmax(found.arrays["weight"]) == 5
    truth = rng.random(500) < 0.5
    fresh = (rng.standard_normal((500, 16)) + truth[:, None] * direction).astype(np.float32)
    arrays = found.arrays
    scorer = ZDirection(arrays["weight"], float(arrays["bias"][0]), arrays["mean"], arrays["std"])
    assert roc_auc_score(truth, scorer.logit(fresh)) > 0.8  # 0.86; chance has 0.5
    plain = fit.fit_direction(z, labels, None)  # which takes the unlabelled ones at their word
    assert float(arrays["bias"][0]) > float(plain.arrays["bias"][0]) + 1


@pytest.mark.parametrize(("with_it", "without"), [(0, 10), (1, 10), (10, 1)])
def test_too_few_images(with_it: int, without: int) -> None:
    labels = np.arange(with_it + without) < with_it
    with pytest.raises(ArgumentError, match=f"{with_it} images with the attribute and {without} without, expected 2"):
        fit.fit_direction(np.zeros((len(labels), 4), np.float32), labels, None)


@pytest.mark.parametrize("held_out", [0.0, 0.001, 0.02, 0.16, 0.2, 0.9])
def test_nothing_is_measured_on_too_few(held_out: float) -> None:
    """25 with, 200 without: only from a share of 0.2 are there 5 of the rarer class to measure on."""
    z, _, _ = planted(225, 4)
    labels = np.arange(225) < 25
    report = fit.fit_direction(z + labels[:, None] * np.float32(2), labels, None, held_out=held_out).report
    assert ("auc" in report) == (held_out >= 0.2)
    assert np.isfinite(report.get("auc", 0.0))


@pytest.fixture(scope="session")
def avatars() -> tuple[hspace.Editor, np.ndarray, dict[str, np.ndarray]]:
    """The shipped model, z_sem of 600 labelled images, and their labels by name."""
    data = np.load(AVATARS)
    editor = hspace.open(BUNDLES / "avatars32", engine="onnx")
    labels = {str(name): data["labels"][:, i] for i, name in enumerate(data["names"])}
    return editor, editor.encode_z(data["images"]), labels


@pytest.mark.parametrize("name", ["Dark_Skin", "Blond_Hair", "Long_Hair", "Wink"])
def test_real_attributes(name: str, avatars) -> None:
    """An AUC of 0.9 on images held out of the fit, where the official classifier has that (bundles/README.md)."""
    editor, z, labels = avatars
    found = fit.fit_direction(z, labels[name], editor.z_statistics)
    assert found.report["auc"] >= 0.9 and found.report["held_out"] == 120
    assert found.report["accuracy"] >= found.report["chance"]
    shipped = editor.attributes[name]  # made from more images, these among them, or the official classifier's own
    assert cosine(found.arrays["weight"], shipped.weight) > 0.2  # 0 ± 0.09 by chance in 128 dimensions


# --- delta_h ----------------------------------------------------------------------------------------------


def tables(editor: hspace.Editor, files: list[Path], steps: int | None = None) -> HRecorder:
    """h over the inversion of all the files at once."""
    recorder = HRecorder("encode", editor.program("encode", steps=steps), len(files), h_shape(editor.bundle)[:3])
    editor.encode(files, steps=steps, on_step=recorder)
    return recorder


def batched(editor: hspace.Editor, batch_size: int) -> hspace.Editor:
    return hspace.Editor(editor.bundle, editor.engine, batch_size=batch_size)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_delta_h_is_the_difference_of_means(null_editor: hspace.Editor, batch_size: int, tmp_path: Path) -> None:
    with_it, without = pictures(tmp_path / "a", 4, 100), pictures(tmp_path / "b", 7, first=50)
    inversions = fit.Inversions(batched(null_editor, batch_size), steps=4)
    found = fit.fit_delta_h(inversions, with_it, without, branch="asymmetric")
    a, b = tables(null_editor, with_it, 4), tables(null_editor, without, 4)
    assert np.array_equal(found.arrays["timesteps"], a.timesteps) and found.arrays["timesteps"].dtype == np.int64
    expected = a.table.mean(axis=0, dtype=np.float64) - b.table.mean(axis=0, dtype=np.float64)
    assert relative_error(found.arrays["delta_h"], expected) < 1e-6 and found.arrays["delta_h"].dtype == np.float32
    assert (found.kind, found.branch, found.n_train) == ("delta_h", "asymmetric", None)
    assert found.report["fitted_to"] == "4 images with, 7 without"


def test_only_pairs_count_where_there_are_any(null_asyrp: hspace.Editor, tmp_path: Path) -> None:
    with_it, without = pictures(tmp_path / "a", 5, 60), pictures(tmp_path / "b", 5, first=2)
    found = fit.fit_delta_h(fit.Inversions(null_asyrp), with_it, without)
    assert found.report["fitted_to"] == "3 pairs, 4 others left out" and found.branch == "symmetric"
    a, b = tables(null_asyrp, with_it[2:]), tables(null_asyrp, without[:3])
    assert relative_error(found.arrays["delta_h"], (a.table - b.table).mean(axis=0)) < 1e-5


def test_pairs() -> None:
    a = [Path("p/x.png"), Path("p/b.jpg"), Path("p/a.png")]
    b = [Path("n/a.webp"), Path("n/b.png"), Path("n/c.png")]
    assert fit.pairs(a, b) == ([Path("p/a.png"), Path("p/b.jpg")], [Path("n/a.webp"), Path("n/b.png")])
    assert fit.pairs(a, b[2:]) is None and fit.pairs([], b) is None
    numbered = [Path(f"n/{name}.png") for name in ("a", "1", "2")]
    assert fit.pairs(a, numbered) is None  # one name of three is an accident


@pytest.mark.parametrize("matched", [True, False], ids=["pairs", "no pairs"])
def test_delta_h_measures_held_out_images(null_asyrp: hspace.Editor, matched: bool, tmp_path: Path) -> None:
    """Bright against dark is told by the null network's h; noise against noise is not. The table is of all images."""
    bright, dark = pictures(tmp_path / "a", 40, 160), pictures(tmp_path / "b", 40, 0, 96, first=0 if matched else 100)
    inversions = fit.Inversions(batched(null_asyrp, 16), steps=3)
    found = fit.fit_delta_h(inversions, bright, dark)
    assert found.report == {
        "fitted_to": "40 pairs" if matched else "40 images with, 40 without",
        "held_out": 16,
        "accuracy": 1.0,
        "chance": 0.5,
        "auc": 1.0,
    }
    expected = tables(null_asyrp, bright, 3).table.mean(axis=0) - tables(null_asyrp, dark, 3).table.mean(axis=0)
    assert relative_error(found.arrays["delta_h"], expected) < 1e-5
    same = pictures(tmp_path / "c", 40, first=0), pictures(tmp_path / "d", 40, first=100)
    assert 0.1 < fit.fit_delta_h(inversions, *same, held_out=0.5).report["auc"] < 0.9
    assert "auc" not in fit.fit_delta_h(inversions, bright, dark, held_out=0.1).report  # 4 of each


def test_delta_h_refusals(null_asyrp: hspace.Editor, tmp_path: Path) -> None:
    files, seen = pictures(tmp_path / "a", 3), []

    def on_step(step: hspace.Step) -> bool:
        seen.append(step.index)
        return len(seen) < 3

    with pytest.raises(ArgumentError, match="found 3 images with the attribute and 0 without"):
        fit.fit_delta_h(fit.Inversions(null_asyrp), files, [])
    with pytest.raises(Cancelled):
        fit.fit_delta_h(fit.Inversions(null_asyrp, on_step=on_step), files[:2], files[2:])
    assert seen == [1, 2, 3]


def test_what_is_fitted_can_be_read_back(null_diffae: hspace.Editor, tmp_path: Path) -> None:
    from hspace.attributes import parse_attribute

    found = fit.fit_delta_h(
        fit.Inversions(null_diffae), pictures(tmp_path / "a", 2), pictures(tmp_path / "b", 2, 9, first=5)
    )
    entry = Attribute(file="x", bytes=1, sha256="0" * 64, kind=found.kind, branch=found.branch)
    read = parse_attribute(null_diffae.bundle, entry, found.data(), "x")
    assert np.array_equal(read.table, found.arrays["delta_h"]) and read.branch == Branch.SYMMETRIC
    with pytest.raises(BundleError, match="expected a safetensors file"):
        parse_attribute(null_diffae.bundle, entry, found.data()[:-1], "x")


# --- averages ---------------------------------------------------------------------------------------------


def as_attribute(found: fit.Fitted) -> DeltaTable:
    return DeltaTable(found.arrays["timesteps"], found.arrays["delta_h"], found.n_train, Branch[found.branch.upper()])


@pytest.mark.parametrize("run", [{}, {"steps": 2}, {"t_edit": 0, "t_boost": 400}], ids=["preset", "2 steps", "boosted"])
def test_an_average_over_one_image_edits_it_as_the_block_does(null_asyrp: hspace.Editor, run, tmp_path: Path) -> None:
    files = pictures(tmp_path / "a", 1)
    found = fit.average_block(null_asyrp, "block", files, **run)
    assert (found.kind, found.branch, found.n_train) == ("delta_h", "asymmetric", 4)
    null_asyrp.attributes["mean"] = as_attribute(found)
    by_block = null_asyrp.edit(files, {"block": 1.0}, output="float32", **run)
    assert np.array_equal(null_asyrp.edit(files, {"mean": 1.0}, output="float32", **run), by_block)
    assert not np.array_equal(null_asyrp.edit(files, {"mean": 0.5}, output="float32", **run), by_block)
    plan = null_asyrp.program("edit", edits={"block": 1.0}, **run)
    assert found.arrays["timesteps"].tolist() == sorted(plan.rows["t"][plan.rows["branch"] != 0].tolist())


def test_averages_do_not_depend_on_the_batch(null_asyrp: hspace.Editor, tmp_path: Path) -> None:
    files, run = pictures(tmp_path / "a", 5), {"steps": 4, "t_boost": 700, "seed": 4}
    each = [fit.average_block(batched(null_asyrp, n), "block", files, **run).arrays["delta_h"] for n in (1, 2, 64)]
    assert np.array_equal(each[0], each[1]) and np.array_equal(each[0], each[2])
    run["t_boost"] = 0
    alone = [fit.average_block(null_asyrp, "block", [f], **run).arrays["delta_h"] for f in files]
    together = fit.average_block(null_asyrp, "block", files, **run)
    assert relative_error(together.arrays["delta_h"], np.mean(alone, axis=0, dtype=np.float64)) < 1e-6
    assert together.report == {"averaged_from": "block, over 5 images"}
    assert type(null_asyrp.attributes["block"]).__name__ == "DeltaBlock"  # the editor itself is as it was


def test_averages_refused(null_asyrp: hspace.Editor, tmp_path: Path) -> None:
    files = pictures(tmp_path / "a", 1)
    for name in ("table", "nothing"):
        with pytest.raises(ArgumentError, match=f"{name}: expected a delta_block of the bundle, one of: block"):
            fit.average_block(null_asyrp, name, files)
    for steps, t_edit, message in ((1, 1, "t_edit: no step"), (4, 1000, "t_edit: found 1000, expected a timestep")):
        with pytest.raises(ArgumentError, match=message):
            fit.average_block(null_asyrp, "block", files, steps=(4, steps), t_edit=t_edit)


# --- principal components ---------------------------------------------------------------------------------


def test_planted_components() -> None:
    rng = np.random.default_rng(0)
    shape = (3, 4, 2, 2)
    axes = np.linalg.qr(rng.standard_normal((48, 2)))[0].T
    spread = np.array([5.0, 2.0])
    weights = rng.standard_normal((200, 2)) * spread
    table = (weights @ axes + 0.05 * rng.standard_normal((200, 48)) + 7).reshape(200, *shape).astype(np.float32)
    found = fit.principal_components(table, np.array([1, 5, 9]), 2)
    assert len(found) == 2
    for made, axis in zip(found, axes, strict=True):
        delta = made.arrays["delta_h"]
        assert delta.shape == shape and delta.dtype == np.float32 and made.arrays["timesteps"].tolist() == [1, 5, 9]
        assert abs(cosine(delta.ravel(), axis)) > 0.99
        unit = delta.ravel().astype(float) / np.linalg.norm(delta)
        deviation = (table.reshape(200, -1).astype(float) @ unit).std(ddof=1)
        assert np.isclose(np.linalg.norm(delta), deviation, rtol=1e-3)  # strength 1 is one standard deviation
        assert (made.kind, made.branch) == ("delta_h", "symmetric")
    ratios = [made.report["explained_variance"] for made in found]
    assert np.allclose(ratios, np.var(weights, axis=0) / table.reshape(200, -1).var(axis=0).sum(), atol=0.02)
    again = fit.principal_components(table, np.array([1, 5, 9]), 2)
    assert np.array_equal(again[1].arrays["delta_h"], found[1].arrays["delta_h"])


@pytest.mark.parametrize("count", [0, -1, 6, 100, True])
def test_counts_of_components(count: int) -> None:
    table = np.random.default_rng(0).standard_normal((6, 2, 3, 2, 2), dtype=np.float32)
    with pytest.raises(ArgumentError, match=r"count: found .*, expected a whole number from 1 to 5"):
        fit.principal_components(table, np.array([0, 1]), count)
    assert len(fit.principal_components(table, np.array([0, 1]), 5)) == 5


def test_h_that_memory_cannot_hold(null_asyrp: hspace.Editor, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * 10 * 4 * 32 * 4 * 4  # float32, images, steps, h
    monkeypatch.setattr(fit, "_MOST_BYTES", size)
    assert fit.record_h(null_asyrp, "decode", 10, {"steps": 4}).table.nbytes == size
    with pytest.raises(ArgumentError, match=r"h of 11 images at 4 steps takes .* GiB, expected at most"):
        fit.record_h(null_asyrp, "decode", 11, {"steps": 4})


def test_recorded_h_is_the_runs(null_asyrp: hspace.Editor) -> None:
    x = load_images(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8), 8)
    latent, seen = null_asyrp.encode(x), {}
    recorder = fit.record_h(null_asyrp, "decode", 3, {"steps": 4})
    recorder.then = lambda step: seen.update({int(step.t[0]): step.h.copy()})
    null_asyrp.decode(latent, steps=4, on_step=recorder)
    assert recorder.timesteps.tolist() == sorted(seen)
    for k, t in enumerate(recorder.timesteps.tolist()):
        assert np.array_equal(recorder.table[:, k], seen[t])


@pytest.mark.parametrize("kind", ["z_direction", "delta_h"])
def test_the_same_images_with_and_without(kind: str, null_diffae: hspace.Editor, tmp_path: Path) -> None:
    """What tells them apart is rounding, and edits divide by its length."""
    files = pictures(tmp_path / "a", 6)
    with pytest.raises(ArgumentError, match="the images with the attribute and those without do not differ"):
        if kind == "z_direction":
            z_sem = null_diffae.encode_z([*files, *files])
            fit.fit_direction(z_sem, np.arange(12) < 6, None)
        else:
            fit.fit_delta_h(fit.Inversions(null_diffae, steps=4), files, files)
