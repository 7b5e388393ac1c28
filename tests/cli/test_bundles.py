"""Commands that look at a bundle or at the machine."""

from __future__ import annotations

import json
from pathlib import Path

import hspace
import pytest
from hspace import Program
from hspace.errors import BundleError

from .conftest import Cli

# --- info ---------------------------------------------------------------------------------------------


def test_info(cli: Cli, bundle: Path) -> None:
    out = cli("info", bundle).check().out
    assert out.startswith("null: family diffae, 8×8, z_sem 6\n")
    for text in (
        "trunk",
        "encoder",
        "official (default)",
        "made by tests",
        "delta_block",
        "n_train",
        "licence: not said",
    ):
        assert text in out
    rows = {line.split()[0]: line.split()[1:3] for line in out.splitlines() if line and line[0] != " "}
    assert (rows["smile"], rows["haas"]) == (["z_direction", "none"], ["delta_h", "symmetric"])


def test_info_json(cli: Cli, bundle: Path) -> None:
    assert cli("info", bundle, "--json").check().json == json.loads((bundle / "bundle.json").read_bytes())


@pytest.mark.parametrize(
    ("kind", "options", "edits"),
    [
        ("encode", {"steps": 8}, None),
        ("decode", {"steps": 4, "sampler": "ddpm"}, None),
        ("edit", {"steps": 5, "t_edit": 300, "t_boost": 100}, {"block": 1.0}),
        ("edit", {}, {"haas": 2.0}),
        ("latent", {}, None),
    ],
    ids=["encode", "decode", "edit", "symmetric edit", "latent"],
)
def test_info_program(
    kind: str,
    options: dict[str, int | str],
    edits: dict[str, float] | None,
    cli: Cli,
    bundle: Path,
    tmp_path: Path,
    null_diffae: hspace.Editor,
) -> None:
    """As text, as JSON and as a file, it is the table that the editor runs."""
    expected = null_diffae.program(kind, edits=edits, **options)  # type: ignore[arg-type]
    given: list[object] = ["--program", kind]
    for name, value in options.items():
        given += [f"--{name.replace('_', '-')}", value]
    for name, strength in (edits or {}).items():
        given += ["--set", f"{name}={strength}"]
    assert cli("info", bundle, *given).check().out == f"{expected}\n"
    found = cli("info", bundle, *given, "--json", "--save", tmp_path / "p.json").check().json
    assert Program.load(tmp_path / "p.json") == expected
    assert found["name"] == expected.name == kind
    assert [list(row.values()) for row in found["rows"]] == [list(row.item()) for row in expected.rows]
    assert list(found["rows"][0]) == list(expected.rows.dtype.names or ())


def test_info_refusals(cli: Cli, bundle: Path, asyrp: Path, tmp_path: Path) -> None:
    cli("info").error(2, "Missing option '-b' / '--bundle'")
    cli("info", tmp_path).error(3, f"{tmp_path}: expected a bundle")
    cli("info", bundle, "--save", tmp_path / "p.json").error(2, "--save", "need --program")
    cli("info", bundle, "--program", "vary").error(2, "'vary' is not one of 'encode', 'decode', 'edit', 'latent'")
    cli("info", asyrp, "--program", "latent").error(2, "the bundle has no latent DDIM")
    cli("info", bundle, "--program", "edit", "--set", "smiel=1").error(2, "--set: ", "did you mean smile?")
    cli("info", bundle, "--program", "encode", "--steps", 37).error(2, "the nearest that can are 36 and 38")
    cli("info", bundle, "--program", "encode", "--save", tmp_path / "x" / "p.json").error(7, "cannot be written")
    assert list(tmp_path.iterdir()) == []


def test_info_save_keeps_what_exists(cli: Cli, null_folder: Path) -> None:
    """As every command: nothing is replaced unasked, least of all the bundle's own manifest."""
    manifest, saved = null_folder / "bundle.json", null_folder.parent / "p.json"
    before = manifest.read_bytes()
    saved.write_text("mine")
    cli("info", null_folder, "--program", "encode", "--save", saved).error(7, "p.json: exists already")
    for force in ([], ["--force"]):
        result = cli("info", null_folder, "--program", "encode", "--save", manifest, *force)
        result.error(7, "bundle.json: the output is inside a bundle")
    assert (manifest.read_bytes(), saved.read_text()) == (before, "mine")


# --- verify -------------------------------------------------------------------------------------------


def test_verify(cli: Cli, bundle: Path) -> None:
    lines = cli("verify", bundle, "--engine", "null").check().out.splitlines()
    files = json.loads((bundle / "bundle.json").read_bytes())
    listed = [e["file"] for e in [*files["components"].values(), *files["attributes"].values()]] + ["z_sem.safetensors"]
    assert [line.split()[1] for line in lines[:-1]] == listed
    assert lines[-1].startswith(f"{bundle}: {len(listed)} files") and lines[-1].endswith(
        "sound; loaded by engine null, fp32"
    )


def test_verify_json(cli: Cli, bundle: Path) -> None:
    found = cli("verify", bundle, "--engine", "null", "--json").check().json
    assert (found["bundle"], found["engine"]) == (str(bundle), "null")
    assert found["files"] == {n: (bundle / n).stat().st_size for n in found["files"]}
    assert found["files"].keys() == {p.name for p in bundle.iterdir()} - {"bundle.json"}


def test_verify_altered(cli: Cli, null_folder: Path) -> None:
    data = bytearray((null_folder / "beard.safetensors").read_bytes())
    data[-1] ^= 1
    (null_folder / "beard.safetensors").write_bytes(data)
    cli("verify", null_folder, "--engine", "null").error(3, "beard.safetensors: altered: found SHA-256 ")
    cli("verify", null_folder, "--engine", "null", "--json").error(3, "beard.safetensors: altered")


def test_verify_several_faults(cli: Cli, null_folder: Path) -> None:
    """On one line, which reads as one."""
    (null_folder / "beard.safetensors").unlink()
    (null_folder / "evil.py").write_text("")
    result = cli("verify", null_folder, "--engine", "null")
    result.error(3, "beard.safetensors: missing; evil.py: not listed in bundle.json")
    assert ":;" not in result.err


def test_verify_of_a_hostile_manifest(cli: Cli, null_folder: Path) -> None:
    """It does not reach the terminal through its own refusal."""
    manifest = json.loads((null_folder / "bundle.json").read_bytes())
    (null_folder / "bundle.json").write_text(json.dumps(manifest | {"\x1b[2Jhello\nworld\r\x9b": 1}))
    result = cli("verify", null_folder, "--engine", "null")
    result.error(3, "hello", "the key is unknown")
    assert result.err.rstrip("\n").isprintable()


def test_verify_graphs_that_are_none(cli: Cli, bundle: Path) -> None:
    """The null bundle's graphs are empty, which only an engine that loads them can tell."""
    cli("verify", bundle, "--engine", "onnx").error(3, ".onnx: ")


def test_verify_nothing(cli: Cli, tmp_path: Path) -> None:
    cli("verify", tmp_path / "nowhere").error(3, f"{tmp_path / 'nowhere'}: expected a bundle")
    cli("verify").error(2, "Missing option '-b' / '--bundle'")


# --- doctor --------------------------------------------------------------------------------------------


def test_doctor(cli: Cli) -> None:
    out = cli("doctor").check().out
    rows = {line.split()[0]: line.split()[1] for line in out.splitlines()[:4]}
    assert rows == {"engine": "runs", "openvino": "yes", "onnx": "yes", "null": "yes"}
    assert "engine auto: the first of openvino, onnx that takes it" in out and f"hspace {hspace.__version__}" in out


def test_doctor_json(cli: Cli) -> None:
    found = cli("doctor", "--json").check().json
    assert found.keys() == {"engines", "auto", "gpu", "cache", "python", "machine", "packages"}
    assert found["engines"]["null"] == {"runs": True, "why_not": None}
    assert found["auto"]["engine"] is None and found["packages"]["hspace"] == hspace.__version__


def test_doctor_says_what_auto_is_for_a_bundle(cli: Cli) -> None:
    found = cli("doctor", "-b", "bundles/avatars32", "--json").check().json
    assert (found["auto"]["engine"], found["auto"]["precision"]) == ("openvino", "fp32")  # as the bundle records
    assert found["auto"]["why"].startswith("openvino in fp32") and found["auto"]["left_out"] == {}


def test_doctor_says_what_the_environment_pins(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bundle and without."""
    on = ["-b", "bundles/avatars32"]
    monkeypatch.setenv("HSPACE_ENGINE", "onnx")
    assert "\nengine: onnx, as HSPACE_ENGINE says\n" in cli("doctor").check().out
    assert "\nengine: onnx in fp32, as HSPACE_ENGINE says" in cli("doctor", *on).check().out
    monkeypatch.setenv("HSPACE_PRECISION", "fp32")
    assert "\nengine: onnx in fp32, as HSPACE_ENGINE and HSPACE_PRECISION say\n" in cli("doctor", *on).check().out
    found = cli("doctor", *on, "--json").check().json["auto"]
    assert (found["engine"], found["precision"]) == ("onnx", "fp32")
    monkeypatch.delenv("HSPACE_ENGINE")
    assert "\nengine auto: openvino in fp32, as HSPACE_PRECISION says\n" in cli("doctor", *on).check().out


CONFLICTS = {
    "precision": (
        {"HSPACE_ENGINE": "onnx", "HSPACE_PRECISION": "bf16"},
        "computes bundles/avatars32 in fp32 here, not",
    ),
    "no engine": ({"HSPACE_ENGINE": "tensorflow"}, "HSPACE_ENGINE: found 'tensorflow', expected auto, openvino, onnx"),
    "no precision": ({"HSPACE_PRECISION": "int4"}, "HSPACE_PRECISION: found 'int4', expected auto, fp32"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_doctor_says_a_conflict_at_the_end(name: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """After all that it has to say, as the reason."""
    settings, says = CONFLICTS[name]
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    on = ["doctor", "-b", "bundles/avatars32"]
    found = cli(*on)
    assert found.code == 5 and found.err.startswith("hspace: error: ") and says in found.err
    assert found.out.splitlines()[2].split()[:2] == ["onnx", "yes"] and f"hspace {hspace.__version__}" in found.out
    assert f"engine: none, {found.err.removeprefix('hspace: error: ')}" in found.out
    told = cli(*on, "--json")
    why = found.err.removeprefix("hspace: error: ").removesuffix("\n")
    assert (told.code, told.json["auto"]) == (5, {"engine": None, "precision": None, "why": why})


def test_doctor_on_a_bundle_that_no_engine_takes(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BundleError("unet.onnx: not a graph")

    monkeypatch.setattr("hspace.choice._open", refuse)
    found = cli("doctor", "-b", "bundles/avatars32", "--json")
    assert (found.code, found.err) == (5, "hspace: error: unet.onnx: not a graph\n")
    assert found.json["auto"] == {"engine": None, "precision": None, "why": "unet.onnx: not a graph"}
    assert found.json["engines"]["onnx"] == {"runs": True, "why_not": None}


def test_doctor_says_why_not(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hspace.engines.onnx.unavailable", lambda: "no such processor")
    found = cli("doctor", "--json").check().json
    assert found["engines"]["onnx"] == {"runs": False, "why_not": "no such processor"}
    assert found["auto"]["why"] == "the first of openvino that takes it"
    assert "no such processor" in cli("doctor").check().out
