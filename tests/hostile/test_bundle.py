"""Bundles that are refused: their listing, their files, and every fault of a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import pytest
from hspace.bundle import Bundle
from hspace.errors import BundleError

from .helpers import Json, alter, refused

# --- the listing and the files ------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    data = (folder / "smile.safetensors").read_bytes()
    (folder / "smile.safetensors").write_bytes(data[:-7])


def link(folder: Path) -> None:
    (folder / "trunk.onnx").rename(folder.parent / "elsewhere.onnx")
    (folder / "trunk.onnx").symlink_to(folder.parent / "elsewhere.onnx")


def link_a_folder(folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    (folder / "inside").symlink_to(folder.parent / "outside", target_is_directory=True)


def unlisted_below(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "evil.pkl").write_bytes(b"x")


LISTINGS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing file": (lambda f: (f / "head.onnx").unlink(), ["head.onnx: missing"]),
    "truncated file": (truncate, ["smile.safetensors: found ", "bytes, expected "]),
    "emptied file": (lambda f: (f / "head.onnx").write_bytes(b""), ["head.onnx: found 0 bytes, expected 9"]),
    "unlisted file": (lambda f: (f / "evil.py").write_text(""), ["evil.py: not listed in bundle.json"]),
    "unlisted hidden file": (lambda f: (f / ".evil").write_text(""), [".evil: not listed in bundle.json"]),
    "unlisted file below": (unlisted_below, ["sub/evil.pkl: not listed in bundle.json"]),
    "linked file": (link, ["trunk.onnx: a link, expected a plain file"]),
    "dangling link": (lambda f: (f / "x").symlink_to("nowhere"), ["x: a link, expected a plain file"]),
    "linked folder": (link_a_folder, ["inside: a link, expected a plain file"]),
    "file that is a pipe": (lambda f: os.mkfifo(f / "pipe"), ["pipe: not listed in bundle.json"]),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_listing(name: str, null_folder: Path) -> None:
    spoil, fragments = LISTINGS[name]
    spoil(null_folder)
    with refused(BundleError, f"{null_folder}: ", *fragments, unchanged=null_folder):
        hspace.open(null_folder, engine="null")


def test_listing_faults_come_together(null_folder: Path) -> None:
    link(null_folder)
    truncate(null_folder)
    (null_folder / "head.onnx").unlink()
    (null_folder / "evil.py").write_text("")
    with refused(BundleError, "trunk.onnx: a link", "smile.safetensors: found", "head.onnx: missing", "evil.py: not"):
        Bundle(null_folder)


@pytest.mark.parametrize("file", ["trunk.onnx", "encoder.onnx", "z_sem.safetensors", "smile.safetensors"])
@pytest.mark.parametrize("engine", ["null", "onnx"])
def test_altered_byte(file: str, engine: str, null_folder: Path) -> None:
    """The size stays, so only the SHA-256 can tell; no engine may see the contents first."""
    data = bytearray((null_folder / file).read_bytes())
    data[-1] ^= 1
    (null_folder / file).write_bytes(data)
    assert (null_folder / file).stat().st_size == len(data)
    if engine == "onnx" and not file.endswith(".onnx"):
        with refused(BundleError, f"{null_folder / file}: altered", "found SHA-256", "expected"):
            list(Bundle(null_folder).verify())
        return
    if file == "encoder.onnx" and engine == "onnx":
        alter(null_folder, lambda m: m.update(components={"encoder": m["components"]["encoder"], **m["components"]}))
    with refused(BundleError, f"{null_folder / file}: altered", "found SHA-256", "expected", unchanged=null_folder):
        hspace.open(null_folder, engine=engine)


def test_file_altered_after_opening(null_folder: Path) -> None:
    opened = Bundle(null_folder)
    (null_folder / "smile.safetensors").write_bytes(b"other")
    with refused(BundleError, "smile.safetensors: altered"):
        opened.read(opened.manifest.attributes["smile"])
    (null_folder / "smile.safetensors").unlink()
    with refused(BundleError, "smile.safetensors: no such file"):
        opened.read(opened.manifest.attributes["smile"])


def test_folders_without_end(null_folder: Path) -> None:
    """More of them, one in the other, than Python recurses; pytest could not take them away either."""
    made = [f"{null_folder}/{'d/' * n}" for n in range(1, 1201)]
    for folder in made:
        os.mkdir(folder)
    try:
        with pytest.raises(BundleError, match=r"(d/){99}d: not listed in bundle\.json$"):
            Bundle(null_folder)
    finally:
        for folder in reversed(made):
            os.rmdir(folder)


def test_empty_folders_are_no_fault(null_folder: Path) -> None:
    (null_folder / "a" / "b").mkdir(parents=True)
    Bundle(null_folder)


# --- no manifest, or no JSON --------------------------------------------------------------------------


def no_folder(folder: Path) -> None:
    for p in folder.iterdir():
        p.unlink()
    folder.rmdir()


def a_file(folder: Path) -> None:
    no_folder(folder)
    folder.write_bytes(b"PK")


def link_manifest(folder: Path) -> None:
    (folder / "bundle.json").rename(folder.parent / "real.json")
    (folder / "bundle.json").symlink_to(folder.parent / "real.json")


def manifest_folder(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").mkdir()


@pytest.mark.parametrize(
    "spoil", [no_folder, a_file, link_manifest, manifest_folder, lambda f: (f / "bundle.json").unlink()]
)
def test_no_manifest(spoil: Callable[[Path], object], null_folder: Path) -> None:
    spoil(null_folder)
    with refused(BundleError, f"{null_folder}: expected a bundle: a folder with a bundle.json"):
        hspace.open(null_folder, engine="null")


NOT_JSON = {
    "empty": b"",
    "text": b"hello",
    "binary": b"\x80\x04\x95\xff\xfe",
    "cut short": b'{"format_version": 1, "name": "x"',
    "two values": b"{} {}",
    "deep arrays": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a number of 5000 digits": b'{"format_version": ' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_not_json(name: str, null_folder: Path) -> None:
    (null_folder / "bundle.json").write_bytes(NOT_JSON[name])
    with refused(BundleError, "bundle.json: expected JSON", unchanged=null_folder):
        Bundle(null_folder)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"bundle"'])
def test_not_an_object(text: str, null_folder: Path) -> None:
    (null_folder / "bundle.json").write_text(text)
    with refused(BundleError, "bundle.json: the manifest: expected `object`, got"):
        Bundle(null_folder)


def test_manifest_too_large(null_folder: Path) -> None:
    with open(null_folder / "bundle.json", "ab") as f:
        f.truncate(2**24 + 1)
    with refused(BundleError, "bundle.json: found 16777217 bytes, expected at most 16777216"):
        Bundle(null_folder)


@pytest.mark.parametrize(
    ("old", "new", "fragment"),
    [
        ('"licence": ""', '"licence": "", "licence": "MIT"', "'licence': the key stands twice"),
        ('"size": 8', '"size": 8, "size": 16', "'size': the key stands twice"),
        ('"beta_end": 0.02', '"beta_end": NaN', "NaN: found a number that JSON does not have"),
        ('"beta_end": 0.02', '"beta_end": -Infinity', "-Infinity: found a number that JSON does not have"),
        ('"beta_end": 0.02', '"beta_end": 1e999', "1e999: found a number that float64 cannot hold"),
        ('"name": "null"', '"name": "\\ud800"', "expected JSON"),
    ],
    ids=["twice", "twice inside", "NaN", "Infinity", "overflow", "half a surrogate"],
)
def test_json_that_is_not_strict(old: str, new: str, fragment: str, null_folder: Path) -> None:
    alter(null_folder, lambda m: None)
    text = (null_folder / "bundle.json").read_text()
    assert old in text
    (null_folder / "bundle.json").write_text(text.replace(old, new, 1))
    with refused(BundleError, "bundle.json: ", fragment):
        Bundle(null_folder)


# --- the manifest's faults ----------------------------------------------------------------------------


def set_(path: str, value: Any) -> Callable[[Json], None]:
    """A change that puts `value` at a dotted path."""

    def change(manifest: Json) -> None:
        *parents, last = path.split(".")
        for part in parents:
            manifest = manifest[part]
        manifest[last] = value

    return change


def drop(path: str) -> Callable[[Json], None]:
    """A change that takes a dotted path away."""

    def change(manifest: Json) -> None:
        *parents, last = path.split(".")
        for part in parents:
            manifest = manifest[part]
        del manifest[last]

    return change


FAULTS: dict[str, tuple[Callable[[Json], object], list[str]]] = {
    "unknown key": (set_("colour", 1), ["colour: the key is unknown"]),
    "unknown key inside": (set_("components.trunk.colour", 1), ["components.trunk.colour: the key is unknown"]),
    "missing key": (drop("licence"), ["licence: the key is missing"]),
    "missing key inside": (drop("presets.official.clip"), ["presets.official.clip: the key is missing"]),
    "number as text": (set_("image.size", "8"), ["image.size: expected `int`, got `str`"]),
    "truth as number": (set_("presets.official.decode_steps", True), ["decode_steps: expected `int`, got `bool`"]),
    "list as object": (set_("components", []), ["components: expected `object`, got `array`"]),
    "null": (set_("family", None), ["family: expected `str`, got `null`"]),
    "family": (set_("family", "gan"), ["family: invalid", "gan"]),
    "size": (set_("image.size", 1 << 40), ["image.size: expected `int` <= 4096"]),
    "steps": (set_("presets.official.encode_steps", 1001), ["encode_steps: expected `int` <= 1000"]),
    "no steps": (set_("presets.official.encode_steps", 0), ["encode_steps: expected `int` >= 1"]),
    "steps not whole": (set_("presets.official.encode_steps", 2.5), ["encode_steps: expected `int`, got `float`"]),
    "spacing": (set_("presets.official.spacing", "even"), ["presets.official.spacing: invalid", "even"]),
    "sampler": (set_("presets.official.sampler", "euler"), ["presets.official.sampler: invalid", "euler"]),
    "sha256": (set_("components.trunk.sha256", "0"), ["components.trunk.sha256: expected `str` matching regex"]),
    "empty file": (set_("components.trunk.bytes", 0), ["components.trunk.bytes: expected `int` >= 1"]),
    "beyond 2 GiB": (set_("components.trunk.bytes", 2**31), ["components.trunk.bytes: expected `int` <= 2147483647"]),
    "dtype": (
        set_("components.trunk.inputs", [{"name": "x", "dtype": "object", "shape": []}]),
        ["components.trunk.inputs", "object"],
    ),
    "dtype of t": (
        lambda m: m["components"]["trunk"]["inputs"][1].update(dtype="int64"),
        ["components.trunk.inputs: t: found int64, expected int32"],
    ),
    "dtype of eps": (
        lambda m: m["components"]["head"]["outputs"][0].update(dtype="float16"),
        ["components.head.outputs: eps: found float16, expected float32"],
    ),
    "attribute's name": (
        lambda m: m["attributes"].update({"a/b": m["attributes"].pop("smile")}),
        ["attributes.a/b: expected `str` matching regex"],
    ),
    "kind of attribute": (set_("attributes.smile.kind", "code"), ["attributes.smile.kind: invalid", "code"]),
    "n_train": (set_("attributes.block.n_train", 0), ["attributes.block.n_train: expected `int` >= 1"]),
    "default preset": (
        set_("default_preset", "fast"),
        ["default_preset: found 'fast', expected one of the presets"],
    ),
    "no presets": (set_("presets", {}), ["default_preset: found 'official'"]),
    "branch of a direction": (
        set_("attributes.smile.branch", "asymmetric"),
        ["attributes.smile.branch: found asymmetric, expected none for a z_direction"],
    ),
    "branch of a block": (
        set_("attributes.block.branch", "symmetric"),
        ["attributes.block.branch: found symmetric, expected asymmetric for a delta_block"],
    ),
    "branch of a table": (
        set_("attributes.table.branch", "none"),
        ["attributes.table.branch: found none, expected asymmetric or symmetric for a delta_h"],
    ),
    "unknown branch": (set_("attributes.table.branch", "both"), ["attributes.table.branch: invalid", "both"]),
    "component's name": (
        lambda m: m["components"].update(trunc=m["components"].pop("trunk")),
        ["components.trunk: a bundle of family diffae needs it", "components.trunc: not a component"],
    ),
    "no encoder": (drop("components.encoder"), ["components.encoder: a bundle of family diffae needs it"]),
    "no latent network": (drop("components.latent"), ["components.latent: a bundle of family diffae needs it"]),
    "no z_sem": (drop("z_sem"), ["z_sem: a bundle of family diffae needs it"]),
    "no statistics": (set_("z_sem.statistics", None), ["z_sem.statistics: the latent DDIM needs them"]),
    "another family": (
        set_("family", "asyrp"),
        ["components.encoder: not a component", "z_sem: a bundle of family asyrp has none", "attributes.smile.kind: "],
    ),
    "kind of schedule": (set_("schedules.image", {"kind": "sigmoid"}), ["schedules.image.kind: invalid", "sigmoid"]),
    "schedule without a kind": (set_("schedules.image", {"timesteps": 9}), ["schedules.image: ", "kind"]),
    "schedule of noise alone": (
        set_("schedules.image", {"kind": "linear", "beta_start": 0.5, "beta_end": 2.0}),
        ["schedules.image: alphas_cumprod: expected finite values that fall strictly and lie within (0, 1)"],
    ),
    "schedule that does not fall": (set_("schedules.latent", {"kind": "const", "beta": 0.0}), ["schedules.latent: "]),
    "schedule too short": (set_("schedules.image", {"kind": "betas", "betas": [0.1]}), ["schedules.image.betas: "]),
    "schedule too long": (
        set_("schedules.image", {"kind": "cosine", "timesteps": 1 << 40}),
        ["schedules.image.timesteps: "],
    ),
    "manifest's own name": (set_("components.trunk.file", "bundle.json"), ["which is the manifest's own name"]),
    "one file twice": (
        lambda m: m["components"].update(head=m["components"]["trunk"]),
        ["components.head.file: found 'trunk.onnx', which components.trunk has already"],
    ),
    "one file, component and attribute": (
        set_("attributes.smile.file", "z_sem.safetensors"),
        ["z_sem.statistics.file: found 'z_sem.safetensors', which attributes.smile has already"],
    ),
    # faults that a run would meet
    "trunk without h": (
        lambda m: m["components"]["trunk"]["outputs"].pop(0),
        ["components.trunk"],
    ),
    "h without numbers": (
        lambda m: m["components"]["trunk"]["outputs"][0].update(shape=["N", "N", "N", "N"]),
        ["components.trunk"],
    ),
    "h of another rank": (
        lambda m: m["components"]["trunk"]["outputs"][0].update(shape=["N", 32]),
        ["components.trunk"],
    ),
    "head without source": (
        lambda m: m["components"]["head"].update(
            inputs=[i for i in m["components"]["head"]["inputs"] if i["name"] != "source"]
        ),
        ["components.head"],
    ),
    "head with an input that nothing gives": (
        lambda m: m["components"]["head"]["inputs"].append({"name": "y", "dtype": "float32", "shape": ["N", 2]}),
        ["components.head"],
    ),
    "dimension below zero": (
        lambda m: m["components"]["trunk"]["outputs"][0].update(shape=["N", -32, 4, 4]),
        ["components.trunk"],
    ),
    "steps that the spacing cannot give": (set_("presets.official.decode_steps", 999), ["presets.official"]),
    "more steps than the schedule has": (
        set_("schedules.image", {"kind": "linear", "timesteps": 4}),
        ["presets.official"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_manifest(name: str, null_folder: Path) -> None:
    change, fragments = FAULTS[name]
    alter(null_folder, change)
    with refused(BundleError, f"{null_folder / 'bundle.json'}: ", *fragments, unchanged=null_folder):
        hspace.open(null_folder, engine="null")


@pytest.mark.parametrize(
    "file",
    [
        "../trunk.onnx",
        "sub/../../trunk.onnx",
        "/etc/passwd",
        "sub\\trunk.onnx",
        "C:trunk.onnx",
        "./trunk.onnx",
        "sub//trunk.onnx",
        "trunk.onnx/",
        "..",
        "//host/share",
        "sub/./trunk.onnx",
    ],
)
@pytest.mark.parametrize("key", ["components.trunk", "attributes.smile", "z_sem.statistics"])
def test_path_that_leaves_the_bundle(key: str, file: str, null_folder: Path) -> None:
    alter(null_folder, set_(f"{key}.file", file))
    expected = f"{key}.file: found {file!r}, expected a plain relative path inside the bundle"
    with refused(BundleError, expected, unchanged=null_folder):
        Bundle(null_folder)


def test_faults_come_together(null_folder: Path) -> None:
    """Of types, keys and JSON itself, in one error."""

    def spoil(m: Json) -> None:
        m["colour"] = 1
        m["components"]["trunk"]["colour"] = 2
        m["image"]["size"] = "8"
        m["presets"]["official"]["spacing"] = "even"
        del m["licence"], m["attributes"]["smile"]["kind"]

    alter(null_folder, spoil)
    text = (null_folder / "bundle.json").read_text()
    (null_folder / "bundle.json").write_text(text.replace("0.02", "NaN", 1))
    expected = ["colour: the key is unknown", "components.trunk.colour: the key is unknown", "image.size: expected"]
    expected += ["presets.official.spacing: ", "licence: the key is missing", "attributes.smile.kind: the key is"]
    with refused(BundleError, *expected, "NaN: found a number"):
        Bundle(null_folder)


def test_faults_beyond_types_come_together(null_folder: Path) -> None:
    def spoil(m: Json) -> None:
        m["components"]["trunk"]["file"] = "../trunk.onnx"
        m["components"]["extra"] = m["components"].pop("encoder")
        m["attributes"]["smile"]["branch"] = "symmetric"
        m["default_preset"] = "fast"
        m["schedules"]["image"]["beta_end"] = 2.0

    alter(null_folder, spoil)
    expected = ["components.trunk.file", "components.encoder", "components.extra", "attributes.smile.branch"]
    with refused(BundleError, *expected, "default_preset", "schedules.image"):
        Bundle(null_folder)


@pytest.mark.parametrize("version", [2, 10**9])
def test_newer_format(version: int, null_folder: Path) -> None:
    """A newer manifest may have keys that we cannot know, so that is all that is said."""
    alter(null_folder, lambda m: m.update(format_version=version, colour=1))
    with refused(BundleError, f"format_version: found {version}, expected 1", "newer hspace"):
        Bundle(null_folder)


@pytest.mark.parametrize("version", [0, -1, 1.5, "1", None, True])
def test_other_format(version: object, null_folder: Path) -> None:
    alter(null_folder, lambda m: m.update(format_version=version))
    with refused(BundleError, "bundle.json: format_version: "):
        Bundle(null_folder)


def test_control_characters_in_json_text_stay_json(null_folder: Path) -> None:
    """The name of a file in a manifest is quoted in the message, not printed."""
    alter(null_folder, set_("components.trunk.file", "../\x1b[2J"))
    with refused(BundleError, json.dumps("../\x1b[2J").strip('"').replace("\\u001b", "\\x1b")):
        Bundle(null_folder)
