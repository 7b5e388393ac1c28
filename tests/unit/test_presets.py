"""What presets may say, what a call may say instead, which preset is the default; and the documents' word for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import hspace
import msgspec
import numpy as np
import pytest
from hspace import manifest as contract
from hspace.amend import set_preset
from hspace.bundle import Bundle, write_manifest
from hspace.catalog import SAMPLERS
from hspace.errors import ArgumentError, BundleError
from hspace.schedule import SPACINGS, space_timesteps

from ..conftest import BUNDLES

ROOT = Path(__file__).parents[2]
IMAGE = np.zeros((1, 8, 8, 3), np.uint8)


# --- t_edit and t_boost -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["t_edit", "t_boost"])
@pytest.mark.parametrize("value", [1000, 5000, 2**31, 10**30, -1, 1.5, True, "10"])
def test_timesteps_beyond_the_schedule_are_refused(null_editor: hspace.Editor, name: str, value: object) -> None:
    """By every call that takes one, before any work."""
    latent = null_editor.encode(IMAGE)
    expected = re.escape(f"{name}: found {value!r}, expected a timestep, a whole number from 0 to 999")
    for call in (
        lambda run: null_editor.edit(IMAGE, {}, **run),
        lambda run: null_editor.decode(latent, {}, **run),
        lambda run: null_editor.sample(1, **run),
        lambda run: null_editor.inject(latent, IMAGE, **run),
        lambda run: null_editor.program("edit", **run),
    ):
        with pytest.raises(ArgumentError, match=expected):
            call({name: value})


@pytest.mark.parametrize("value", [0, 999, np.int64(999)])
def test_timesteps_of_the_schedule_are_taken(null_editor: hspace.Editor, value: int) -> None:
    rows = null_editor.program(
        "edit", edits={"block": 1.0}, steps=1000, sampler="ddim", t_edit=value, t_boost=value
    ).rows
    assert (rows["branch"] != 0).sum() == np.sum(rows["t"] >= value)
    assert rows["draws"].sum() == np.sum(rows["t"] < value)


@pytest.mark.parametrize("name", ["t_edit", "t_boost"])
def test_presets_beyond_the_schedule_are_refused(null_folder: Path, name: str) -> None:
    """When a bundle is opened, and when a preset is written; the last timestep is that of the bundle's own schedule."""
    bundle = Bundle(null_folder)
    short = msgspec.structs.replace(
        bundle.manifest,
        schedules=contract.Schedules(image=contract.CosineSchedule(timesteps=40), latent=contract.ConstSchedule()),
        presets={"p": contract.Preset(encode_steps=4, decode_steps=4, spacing="logsnr", clip=False, t_edit=39)},
        default_preset="p",
    )
    write_manifest(null_folder, short)
    bundle, path = Bundle(null_folder), null_folder / "bundle.json"
    fault = f"presets.p.{name}: found 40, expected a timestep, a whole number from 0 to 39"
    with pytest.raises(BundleError, match=fault):
        set_preset(bundle, "p", msgspec.structs.replace(short.presets["p"], **{name: 40}), replace=True)
    found = json.loads(path.read_text())
    found["presets"]["p"][name] = 40
    path.write_text(json.dumps(found))
    with pytest.raises(BundleError, match=fault):
        Bundle(null_folder)


# --- defaults -----------------------------------------------------------------------------------------


def test_the_shipped_bundle_defaults_to_balanced() -> None:
    manifest = Bundle(BUNDLES / "avatars32").manifest
    default = manifest.presets[manifest.default_preset]
    assert manifest.default_preset == "balanced"
    assert (default.sampler, default.spacing, default.encode_steps, default.decode_steps) == (
        "dpmpp_2m",
        "logsnr",
        10,
        10,
    )
    assert (manifest.presets["official"].encode_steps, manifest.presets["official"].decode_steps) == (250, 100)


@pytest.mark.parametrize(("name", "default"), [("diffae-tiny", "balanced"), ("asyrp-ddpm-tiny", "asymmetric")])
def test_new_bundles_default_to_the_best(golden_bundles, name: str, default: str) -> None:
    manifest = Bundle(golden_bundles(name)).manifest
    steps = {k: (p.encode_steps, p.decode_steps) for k, p in manifest.presets.items()}
    few = {"fast": (6, 6), "balanced": (10, 10), "exact": (20, 20)}
    assert manifest.default_preset == default
    if default == "balanced":
        assert steps == {"official": (250, 100), **few}
    else:
        assert steps == {"official": (40, 40), **few, "asymmetric": (40, 40)}
        assert manifest.presets["asymmetric"].sampler == "dpmpp_2m" and manifest.presets["asymmetric"].t_edit == 500


@pytest.mark.parametrize("family", ["diffae", "asyrp"])
@pytest.mark.parametrize("timesteps", [2, 3, 6, 8, 15, 30, 50, 100, 250, 1000, 4000])
@pytest.mark.parametrize("kind", ["linear", "cosine", "const"])
def test_few_steps_are_valid_on_every_schedule(family, timesteps: int, kind: str) -> None:
    """Whatever T is: the spacing gives them, and none leaves the span."""
    pytest.importorskip("torch", reason="exports need the extra `export`")
    from hspace_export.exporter import DEFAULT_PRESET, few_steps

    kinds = {"linear": contract.LinearSchedule, "cosine": contract.CosineSchedule, "const": contract.ConstSchedule}
    schedule = kinds[kind](timesteps=timesteps)
    official = contract.Preset(encode_steps=2, decode_steps=2, spacing="leading", clip=True)
    made, built = few_steps(family, official, schedule), schedule.build()
    assert DEFAULT_PRESET[family] in made
    for preset in made.values():
        found = space_timesteps(preset.spacing, preset.encode_steps, built)
        assert preset.encode_steps == preset.decode_steps >= 2 and {*found.tolist()} <= {*built.span}


# --- documents ----------------------------------------------------------------------------------------


def quoted(text: str) -> set[str]:
    return set(re.findall(r'"([a-z0-9_]+)"', text))


def test_the_editor_names_every_sampler() -> None:
    text = " ".join((hspace.Editor.__doc__ or "").split())
    assert quoted(text[text.index("`sampler` (") : text.index("`t_edit`")]) == {*SAMPLERS}


def test_the_format_names_every_sampler_and_spacing() -> None:
    text = " ".join((ROOT / "docs" / "bundle-format.md").read_text().split("## Presets")[1].split("##")[0].split())
    words = {*re.findall(r"\w+", text)}
    assert {*SAMPLERS} <= words and {*SPACINGS} <= words


def test_the_export_of_diffusers_names_every_preset() -> None:
    pytest.importorskip("diffusers", reason="these exports need the extra `diffusers`")
    from hspace_export import diffusers
    from hspace_export.cli import export
    from hspace_export.exporter import DEFAULT_PRESET

    config = diffusers._SchedulerConfig()
    presets = diffusers._presets(config, contract.LinearSchedule())
    text = " ".join((export.commands["diffusers"].help or "").split())
    listed = text[text.index("has the presets") : text.index(";")]
    names = re.findall(r"\w+", re.sub(r"\([^)]*\)", "", listed).removeprefix("has the presets"))
    assert [n for n in names if n != "and"] == list(presets)
    assert f"{DEFAULT_PRESET['asyrp']} (the default)" in listed
