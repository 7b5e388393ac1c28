"""Attributes that are no better than chance, and presets that hold what was measured."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hspace.bundle import Bundle

pytest.importorskip("sklearn", reason="fits need the extra `fit`")
pytest.importorskip("skimage", reason="distances need the extra `fit`")

from hspace_export import fit_cli
from hspace_export.fit import Fitted, chance_auc, fit_direction

from ..conftest import make_null_bundle
from .conftest import Cli, Result
from .test_attribute import ENGINE, contents, faces  # noqa: F401


def test_chance_is_what_random_scores_reach() -> None:
    """Drawn: of 20,000 random scores about one in twenty lies above, at several sizes and shares."""
    rng = np.random.default_rng(0)
    for with_it, without in ((6, 6), (5, 40), (100, 100)):
        labels = np.arange(with_it + without) < with_it
        ranks = rng.permuted(np.tile(np.arange(len(labels)), (20_000, 1)), axis=1)[:, :with_it].sum(axis=1)
        auc = (ranks - with_it * (with_it - 1) / 2) / (with_it * without)
        assert 0.03 < (auc >= chance_auc(labels)).mean() < 0.07


def test_a_fit_to_noise_is_doubted_and_one_to_a_signal_is_not() -> None:
    rng = np.random.default_rng(0)
    labels, noise = np.arange(400) % 2 == 0, rng.standard_normal((400, 8), dtype=np.float32)
    doubted = fit_direction(noise, labels, None)
    assert doubted.chance_auc == pytest.approx(0.5 + 1.645 * np.sqrt(81 / (12 * 40 * 40)))
    assert doubted.doubt is not None
    signal = noise + labels[:, None] * np.float32(1.5)
    assert fit_direction(signal, labels, None).doubt is None
    assert fit_direction(signal[:8], labels[:8], None).doubt is None  # none held out, so nothing is known


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the next fit's held-out AUC is, of 12 images of which 95 % of random scores stay below 0.78."""
    said = {"auc": 1.0}

    def fit(*args: Any, **options: Any) -> Fitted:
        real = fit_direction(*args, **options)
        return Fitted(real.kind, real.branch, real.arrays, {**real.report, **said}, chance_auc=real.chance_auc)

    monkeypatch.setattr(fit_cli.fitting, "fit_direction", fit)
    return said


def fit(cli: Cli, folder: Path, faces: Path, *options: object) -> Result:  # noqa: F811
    folders = ["--positive", faces / "bright", "--negative", faces / "dark"]
    return cli("attribute", "fit", folder, "bright", *folders, *ENGINE, *options)


def test_worse_than_chance_is_not_added(
    cli: Cli,
    null_folder: Path,
    faces: Path,  # noqa: F811
    fitted: dict[str, float],
) -> None:
    before = contents(null_folder)
    fitted["auc"] = 0.42
    why = "AUC 0.42 on 12 held-out images is no better than chance, which reaches 0.79 one time in twenty"
    for options in ([], ["--force"], ["--json"]):
        result = fit(cli, null_folder, faces, *options)
        assert result.code == 2
        assert result.err == f"hspace: error: not added: bright: {why} (--allow-chance adds it)\n"
        assert contents(null_folder) == before
    found = result.json["bright"]
    assert (found["auc"], found["warning"], found["added"]) == (0.42, why, False)
    result = fit(cli, null_folder, faces, "--allow-chance", "--json")
    assert (result.code, result.err) == (0, f"hspace: warning: bright: {why}\n")
    assert result.json["bright"]["warning"] == why and result.json["bright"]["added"]
    assert "bright" in Bundle(null_folder).manifest.attributes


@pytest.mark.parametrize(("auc", "warned"), [(0.51, True), (0.78, True), (0.8, False), (1.0, False)])
def test_what_chance_gives_is_added_with_a_warning(
    auc: float,
    warned: bool,
    cli: Cli,
    null_folder: Path,
    faces: Path,  # noqa: F811
    fitted: dict[str, float],
) -> None:
    fitted["auc"] = auc
    result = fit(cli, null_folder, faces, "--json")
    assert result.code == 0 and result.err.startswith(f"hspace: warning: bright: AUC {auc} on 12 ") == warned
    assert ("warning" in result.json["bright"]) == warned == (result.err != "")
    assert "bright" in Bundle(null_folder).manifest.attributes


@pytest.mark.parametrize("cells", ["x" * 130_000, ",".join(f"name{i}" for i in range(20_000)), "\x1b[31m" * 20_000])
def test_a_long_header_is_cut(cells: str, cli: Cli, null_folder: Path, faces: Path) -> None:  # noqa: F811
    (faces / "labels.csv").write_text(f"file,{cells}\na.png,1\n")
    options = ["--labels", faces / "labels.csv", "--images", faces / "bright"]
    result = cli("attribute", "fit", null_folder, "bright", *options, *ENGINE)
    assert result.code == 2 and "labels.csv: has no column 'bright'; it has " in result.err
    assert len(result.err) < 2000


@pytest.mark.parametrize("steps", [3, 9])
def test_calibrate_saves_the_steps_that_it_measured(steps: int, cli: Cli, tmp_path: Path, faces: Path) -> None:  # noqa: F811
    pytest.importorskip("matplotlib", reason="plots need the extra `fit`")
    folder = make_null_bundle(tmp_path / "asyrp", "asyrp")
    options = ["--t-edit-at", 0.05, "--t-boost-at", 0.05, "--steps", steps, "--save", "found", "-o", faces / "out"]
    shutil.rmtree(faces / "dark")
    assert (
        f"preset found, of {steps} + {steps} steps" in cli("calibrate", folder, faces / "bright", *ENGINE, *options).out
    )
    saved = Bundle(folder).manifest.presets["found"]
    assert (saved.encode_steps, saved.decode_steps) == (steps, steps)
