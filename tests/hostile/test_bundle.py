"""Bundles that are refused: their listing, their files, and every fault of a manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace
import pytest
from hspace import files, manifest, manifest_read
from hspace.amend import add_attribute, rename_attribute
from hspace.bundle import Bundle, manifest_bytes
from hspace.errors import BundleError, HspaceError
from msgspec.structs import replace as replace_

from ..unit.test_amend import direction
from .helpers import Json, alter, refused

# --- the listing and the files ------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    data = (folder / "smile.safetensors").read_bytes()
    (folder / "smile.safetensors").write_bytes(data[:-7])


def link(folder: Path, to: str | Path) -> None:
    (folder / "trunk.onnx").unlink()
    (folder / "trunk.onnx").symlink_to(to)


def link_to_a_pipe(folder: Path) -> None:
    os.mkfifo(folder.parent / "pipe")
    link(folder, folder.parent / "pipe")


def link_a_folder(folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    (folder / "inside").symlink_to(folder.parent / "outside", target_is_directory=True)


def unlisted_below(folder: Path, name: str = "evil.pkl") -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / name).write_bytes(b"x")


LISTINGS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing file": (lambda f: (f / "head.onnx").unlink(), ["head.onnx: missing"]),
    "truncated file": (truncate, ["smile.safetensors: found ", "bytes, expected "]),
    "emptied file": (lambda f: (f / "head.onnx").write_bytes(b""), ["head.onnx: found 0 bytes, expected 9"]),
    "unlisted file": (lambda f: (f / "evil.py").write_text(""), ["evil.py: not listed in bundle.json"]),
    "unlisted file below": (unlisted_below, ["sub/evil.pkl: not listed in bundle.json"]),
    "unlisted link": (lambda f: (f / "x").symlink_to("trunk.onnx"), ["x: not listed in bundle.json"]),
    "unlisted link to nowhere": (lambda f: (f / "x").symlink_to("nowhere"), ["x: not listed in bundle.json"]),
    "unlisted link to a folder": (link_a_folder, ["inside: not listed in bundle.json"]),
    "unlisted link to itself": (lambda f: (f / "x").symlink_to("x"), ["x: not listed in bundle.json"]),
    "unlisted link to its own folder": (lambda f: (f / "x").symlink_to("."), ["x: not listed in bundle.json"]),
    "unlisted pipe": (lambda f: os.mkfifo(f / "pipe"), ["pipe: not listed in bundle.json"]),
    "name that is not UTF-8": (
        lambda f: Path(os.fsdecode(bytes(f) + b"/\xff.bin")).write_text(""),
        [".bin: not listed"],
    ),
    "a hub's name further down": (lambda f: unlisted_below(f, "README.md"), ["sub/README.md: not listed"]),
    "link to nowhere": (lambda f: link(f, "nowhere"), ["trunk.onnx: missing"]),
    "link to itself": (lambda f: link(f, "trunk.onnx"), ["trunk.onnx: cannot be read: Too many levels of symbolic li"]),
    "link to a folder": (lambda f: link(f, ".."), ["trunk.onnx: missing"]),
    "link to a device": (lambda f: link(f, "/dev/zero"), ["trunk.onnx: found 0 bytes, and no file, expected 9"]),
    "link to a pipe": (link_to_a_pipe, ["trunk.onnx: found 0 bytes, and no file, expected 9"]),
    "link to another file": (lambda f: link(f, "smile.safetensors"), ["trunk.onnx: found ", " bytes, expected 9"]),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_listing(name: str, null_folder: Path) -> None:
    spoil, fragments = LISTINGS[name]
    spoil(null_folder)
    with refused(BundleError, f"{null_folder}: ", *fragments, unchanged=null_folder):
        hspace.open(null_folder, engine="null")


def test_listing_faults_come_together(null_folder: Path) -> None:
    link(null_folder, "trunk.onnx")
    truncate(null_folder)
    (null_folder / "head.onnx").unlink()
    (null_folder / "evil.py").write_text("")
    with refused(
        BundleError, "trunk.onnx: cannot be read", "smile.safetensors: found", "head.onnx: missing", "evil.py: not"
    ):
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


# --- links and what stands beside ---------------------------------------------------------------------


def hub(folder: Path) -> Path:
    """As a model hub's cache keeps it: the files are links to blobs, and files of its own stand beside them."""
    cache = folder.parent / "cache" / "models--faces"
    (cache / "blobs").mkdir(parents=True)
    for path in [p for p in folder.rglob("*") if p.is_file()]:
        blob = cache / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blob)
        place = cache / "snapshots" / "0123abcd" / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    for name in (".gitattributes", "README.md", "LICENSE"):
        (cache / "snapshots" / "0123abcd" / name).write_text("x")
    return cache / "snapshots" / "0123abcd"


def mounted(folder: Path) -> Path:
    """As a Kubernetes volume is: names that lead through ..data to a folder with a date."""
    mount = folder.parent / "mount"
    mount.mkdir()
    folder.rename(mount / "..2024_05_06_07_08_09.123")
    (mount / "..data").symlink_to("..2024_05_06_07_08_09.123")
    for name in os.listdir(mount / "..data"):
        (mount / name).symlink_to(f"..data/{name}")
    return mount


def linked(folder: Path) -> Path:
    (folder.parent / "link").symlink_to(folder)
    return folder.parent / "link"


@pytest.mark.parametrize("place", [hub, mounted, linked])
def test_bundles_behind_links(place: Callable[[Path], Path], null_folder: Path) -> None:
    """They open, with what they hold; and what a link leads to is held to its SHA-256 like anything else."""
    add_attribute(Bundle(null_folder), "below", direction(), "z_direction", "none")
    before = Bundle(null_folder).manifest
    folder = place(null_folder)
    editor = hspace.open(folder, engine="null")
    assert editor.bundle.manifest == before and "below" in editor.attributes
    assert [size for _, size in Bundle(folder).verify()] == [entry.bytes for _, entry in before.files()]
    real = (folder / before.attributes["below"].file).resolve()
    data = bytearray(real.read_bytes())
    data[-1] ^= 1
    real.write_bytes(data)
    with refused(BundleError, f"{folder / before.attributes['below'].file}: altered: found SHA-256"):
        hspace.open(folder, engine="null")


def test_what_may_stand_beside(null_folder: Path) -> None:
    """Nothing of it is read."""
    for name in (".DS_Store", ".git/config", ".cache/huggingface/x", "sub/.hidden", "README.md", "LICENSE"):
        (null_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (null_folder / name).write_text("x")
    (null_folder / ".loop").symlink_to(".")
    os.mkfifo(null_folder / ".pipe")
    assert {name for name, _ in Bundle(null_folder).verify()}.isdisjoint({"README.md", "LICENSE"})


def test_a_file_that_becomes_a_pipe(null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After its size was checked: it is refused, and nobody waits for a writer."""
    opened = Bundle(null_folder)
    check = files.check_file

    def late(path: Path, error: type[HspaceError]) -> int:
        size = check(path, error)
        os.unlink(path)
        os.mkfifo(path)
        return size

    monkeypatch.setattr(files, "check_file", late)
    with refused(BundleError, "smile.safetensors: not a file"):
        opened.read(opened.manifest.attributes["smile"])


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.EMFILE, "Too many open files"),
        (errno.ENOMEM, "Cannot allocate memory"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_shortage_is_named(number: int, says: str, null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Bundle(null_folder)

    def short(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("hspace.files.os.open", short)
    for read in (
        lambda: Bundle(null_folder),
        lambda: list(opened.verify()),
        lambda: opened.check(opened.manifest.attributes["smile"]),
    ):
        with refused(BundleError, f"cannot be read: {says}"):
            read()
    monkeypatch.undo()
    monkeypatch.setattr("hspace.bundle.os.scandir", short)
    with refused(BundleError, f"{null_folder}: cannot be read: {says}"):
        Bundle(null_folder)


def test_little_memory(null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*_: object) -> None:
        raise MemoryError

    opened = Bundle(null_folder)
    monkeypatch.setattr("hspace.files.os.open", short)
    with refused(BundleError, "trunk.onnx: cannot be read: Cannot allocate memory"):
        opened.read_component("trunk")


# --- no manifest, or no JSON --------------------------------------------------------------------------


def no_folder(folder: Path) -> None:
    for p in folder.iterdir():
        p.unlink()
    folder.rmdir()


def a_file(folder: Path) -> None:
    no_folder(folder)
    folder.write_bytes(b"PK")


def link_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").symlink_to("nowhere")


def pipe_manifest(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    os.mkfifo(folder / "bundle.json")


def manifest_folder(folder: Path) -> None:
    (folder / "bundle.json").unlink()
    (folder / "bundle.json").mkdir()


@pytest.mark.parametrize(
    "spoil", [no_folder, a_file, link_manifest, pipe_manifest, manifest_folder, lambda f: (f / "bundle.json").unlink()]
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
            manifest = manifest[int(part) if isinstance(manifest, list) else part]
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


@pytest.mark.parametrize(
    ("minor", "says"), [(2, "found 2, expected 1: a newer hspace"), (-1, "format_minor: expected")]
)
def test_format_with_additions(minor: int, says: str, null_folder: Path) -> None:
    """Those of a newer hspace are refused as such, and none of today's makes a bundle that older ones cannot read."""
    alter(null_folder, lambda m: m.update(format_minor=minor, colour=1))
    with refused(BundleError, "format_minor: ", says):
        Bundle(null_folder)
    alter(null_folder, lambda m: (m.pop("format_minor"), m.pop("colour")))
    found = Bundle(null_folder).manifest
    assert not {"format_minor", "accuracy"} & json.loads(manifest_bytes(null_folder, found)).keys()
    record = manifest.Accuracy(precision="bf16", inversion=50.0, reconstruction=45.0, edit=40.0)
    (null_folder / "bundle.json").write_bytes(manifest_bytes(null_folder, replace_(found, accuracy=record)))
    assert Bundle(null_folder).manifest == replace_(found, accuracy=record, format_minor=1)


# --- counts and sizes ---------------------------------------------------------------------------------


def many(path: str, count: int, make: Callable[[int], Any]) -> Callable[[Json], None]:
    """A change that gives a mapping at a dotted path so many entries."""

    def change(m: Json) -> None:
        at = m
        for part in path.split("."):
            at = at[part]
        at |= {f"n{i}": make(i) for i in range(count - len(at))}

    return change


def tensors(count: int) -> list[Json]:
    return [{"name": f"skip_{i}", "dtype": "float32", "shape": ["N", 1, 1, 1]} for i in range(count)]


PRESET = {"encode_steps": 4, "decode_steps": 4, "spacing": "diffae", "clip": True}
SOURCE = {"file": "x", "sha256": "0" * 64}
FILE = {"bytes": 1, "sha256": "0" * 64, "kind": "z_direction", "branch": "none"}
BEYOND: dict[str, tuple[Callable[[Json], object], str]] = {
    "attributes": (
        many("attributes", 1001, lambda i: {"file": f"x{i}", **FILE}),
        "attributes: found 1001 entries, expected at most 1000",
    ),
    "presets": (many("presets", 65, lambda _: PRESET), "presets: found 65 entries, expected at most 64"),
    "sources": (many("provenance.sources", 2001, lambda _: SOURCE), "provenance.sources: found 2001 entries, expected"),
    "inputs": (
        set_("components.head.inputs", tensors(1001)),
        "components.head.inputs: expected `array` of length <= 1000",
    ),
    "outputs": (
        set_("components.trunk.outputs", tensors(1001)),
        "components.trunk.outputs: expected `array` of length",
    ),
    "betas": (
        set_("schedules.image", {"kind": "betas", "betas": [0.1] * 100_001}),
        "schedules.image.betas: expected `array` of length <= 100000",
    ),
    "timesteps": (
        set_("schedules.image", {"kind": "linear", "timesteps": 1_000_001}),
        "schedules.image.timesteps: expected `int` <= 1000000",
    ),
    "licence": (set_("licence", "x" * 100_001), "licence: expected `str` of length <= 100000"),
    "exporter": (set_("provenance.exporter", "x" * 1001), "provenance.exporter: expected `str` of length <= 1000"),
    "source's name": (
        set_("provenance.sources.checkpoint.file", "x" * 1001),
        "checkpoint.file: expected `str` of length",
    ),
    "source's role": (set_("provenance.sources", {"x" * 1001: SOURCE}), "expected `str` of length <= 1000"),
    "config": (set_("provenance.config", {"a": "x" * 2**18}), "provenance.config: found 262153 characters of JSON"),
    "values": (set_("provenance.config", {"a": [0] * 2**20}), "commas, expected at most 524288"),
    "numbers of a tensor": (
        set_("components.trunk.outputs.2.shape", ["N", 65536, 65536, 1]),
        "skip_0: found 4294967296 numbers, expected at most 2147483648",
    ),
}


@pytest.mark.parametrize("name", BEYOND)
def test_beyond_the_limits(name: str, null_folder: Path) -> None:
    change, fragment = BEYOND[name]
    alter(null_folder, change)
    with refused(BundleError, "bundle.json: ", fragment):
        Bundle(null_folder)


def test_a_manifest_of_every_limit(null_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is read, and what takes a schedule's length is done once for each number of steps."""

    def fill(m: Json) -> None:
        for path, count, make in (
            ("attributes", 1000, lambda i: {"file": f"x{i}", **FILE}),
            ("provenance.sources", 2000, lambda _: SOURCE),
            ("presets", 64, lambda i: {**PRESET, "spacing": "logsnr", "encode_steps": 900 + i % 2}),
        ):
            many(path, count, make)(m)
        m["schedules"]["image"] = {"kind": "linear", "timesteps": 10**6, "beta_start": 1e-6, "beta_end": 2e-5}
        m["provenance"] |= {"config": {"a": "x" * 200_000}, "exporter": "x" * 1000}
        m["licence"] = "x" * 100_000

    alter(null_folder, fill)
    calls: list[tuple[str, int]] = []
    space = manifest_read.space_timesteps
    monkeypatch.setattr(manifest_read, "space_timesteps", lambda *a: (calls.append(a[:2]), space(*a))[1])
    found = manifest_read.parse_manifest((null_folder / "bundle.json").read_bytes(), "x")
    assert len(found.attributes) == 1000 and len(found.presets) == 64
    assert sorted(calls) == [("diffae", 4), ("diffae", 4), ("diffae", 5), *[("logsnr", n) for n in (4, 900, 901)]]


def test_control_characters_in_json_text_stay_json(null_folder: Path) -> None:
    """The name of a file in a manifest is quoted in the message, not printed."""
    alter(null_folder, set_("components.trunk.file", "../\x1b[2J"))
    with refused(BundleError, json.dumps("../\x1b[2J").strip('"').replace("\\u001b", "\\x1b")):
        Bundle(null_folder)


@pytest.mark.parametrize(
    "named", [["bundle.json"], ["README.md", "LICENSE"], [".git/HEAD", "attributes/.x.safetensors"], ["trunk.onnx"]]
)
def test_a_journal_of_a_stranger_removes_nothing(named: list[str], null_folder: Path) -> None:
    """At the next amend, which takes away what an amend that was killed had left."""
    for name in (".git", "attributes"):
        (null_folder / name).mkdir()
    for name in ("README.md", "LICENSE", ".git/HEAD", "attributes/.x.safetensors"):
        (null_folder / name).write_text("mine")
    there = {p for p in null_folder.rglob("*") if p.is_file()}
    (null_folder / ".amend").write_text(json.dumps(named))
    opened = hspace.Bundle(null_folder)
    old = next(iter(opened.manifest.attributes))
    rename_attribute(opened, old, "another")
    assert {p for p in null_folder.rglob("*") if p.is_file()} == there
    assert "another" in hspace.Bundle(null_folder).manifest.attributes
