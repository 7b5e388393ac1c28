"""The hostile corpus: what is wrong with each file, what makes it, and what the command line says of it.

`python -m tests.hostile.corpus FOLDER` writes the files of every case to FOLDER/<case>/. Those of the cases that are
`kept` lie in tests/hostile/files, so that tests in other languages can read them; the others need a machine's own
features (links, pipes, files with holes) and are made when they are tested.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import dumps
from typing import Any

from .helpers import Json, alter, field, model, png, replace, safetensors

FILES = Path(__file__).parent / "files"
MARKER = "hspace-ran-this"  # what the pickled code would leave in the working folder
Maker = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """What is run on a hostile file, and how it is refused.

    command: the arguments, split at spaces, where {case} is the folder with what `make` wrote, {bundle} and {face} are
    a sound bundle and picture for it, {out} is an empty folder and {golden} holds sound checkpoints. code: what it
    exits with; 0 for the few files that only seem hostile. says: parts of the error. kept: whether the files are
    committed. exact: whether every machine makes the same bytes; libraries' encoders differ. under: what the machine
    is made to lack meanwhile.
    """

    name: str
    wrong: str
    make: Maker
    command: str
    code: int
    says: tuple[str, ...] = ()
    kept: bool = True
    exact: bool = True
    under: str = ""

    def arguments(self, **places: Path) -> list[str]:
        return [part.format(**places) for part in self.command.split(" ")]


CASES: list[Case] = []


def nothing(_: Path) -> None:
    """The maker of a case whose arguments alone are wrong."""


def write(name: str, data: bytes | Callable[[], bytes]) -> Maker:
    """Makes one file; what a library encodes is encoded when it is asked for."""
    return lambda folder: (folder / name).write_bytes(data if isinstance(data, bytes) else data())


# --- a sound bundle, by hand --------------------------------------------------------------------------

C, E, D, S = 2, 4, 6, 8  # channels of h, length of temb, length of z_sem, pixels on a side
H = [C, 4, 4]


def floats(*shape: int) -> tuple[str, list[int], bytes]:
    """A float32 tensor of plain values, none of them zero."""
    count = 1
    for n in shape:
        count *= n
    return "F32", list(shape), struct.pack(f"<{count}f", *(0.25 + i % 7 / 8 for i in range(count)))


def tensors(metadata: dict[str, str] | None = None, /, **named: tuple[str, list[int], bytes]) -> bytes:
    """A safetensors file of (dtype, shape, data); __ in a name stands for a dot."""
    header: Json = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in named.items():
        offsets = [at, at + len(data)]
        header[name.replace("__", ".")] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        at += len(data)
    return safetensors(header, b"".join(data for *_, data in named.values()))


STATISTICS = {"mean": floats(D), "std": floats(D)}
DIRECTION = {"weight": floats(D), "bias": floats(1), **STATISTICS}
BLOCK = {"conv1__weight": floats(C, C), "conv2__weight": floats(C, C), "temb_proj__weight": floats(C, E)}
BLOCK |= {f"{part}__bias": floats(C) for part in ("conv1", "conv2", "temb_proj", "norm2")} | {
    "norm2__weight": floats(C)
}
TABLE = {"timesteps": ("I64", [3], struct.pack("<3q", 0, 300, 700)), "delta_h": floats(3, *H)}
CHECKPOINT = "0" * 64
PARTS: dict[str, bytes] = {
    "trunk.onnx": model(),
    "head.onnx": model(),
    "encoder.onnx": model(),
    "z_sem.safetensors": tensors(**STATISTICS),
    "smile.safetensors": tensors(**DIRECTION),
    "block.safetensors": tensors({"eps": "1e-6"}, **BLOCK),
    "table.safetensors": tensors(**TABLE),
}


def entry(name: str, **rest: Any) -> Json:
    """The manifest's entry for a file."""
    return {"file": name, "bytes": len(PARTS[name]), "sha256": hashlib.sha256(PARTS[name]).hexdigest(), **rest}


def signature(**named: list[Any]) -> list[Json]:
    """Inputs or outputs of a component."""
    dtypes = {"t": "int32", "source": "int64"}
    return [{"name": n, "dtype": dtypes.get(n, "float32"), "shape": shape} for n, shape in named.items()]


def manifest(full: bool) -> Json:
    x, z, temb, skip = ["N", 3, S, S], ["N", D], ["N", E], ["N", C, 4, 4]
    signatures = {
        "trunk": (signature(x=x, t=["N"], z_sem=z), signature(h=["N", *H], temb=temb, skip_0=skip)),
        "head": (
            signature(h=["M", *H], temb=temb, source=["M"], skip_0=skip, z_sem=z),
            signature(eps=["M", 3, S, S]),
        ),
        "encoder": (signature(x=x), signature(z_sem=z)),
    }
    attributes = {"smile": entry("smile.safetensors", kind="z_direction", branch="none")}
    if full:
        attributes["block"] = entry("block.safetensors", kind="delta_block", branch="asymmetric", n_train=4)
        attributes["table"] = entry("table.safetensors", kind="delta_h", branch="symmetric")
    return {
        "format_version": 1,
        "name": "sound",
        "family": "diffae",
        "image": {"size": S, "channels": 3},
        "z_sem": {"size": D, "statistics": entry("z_sem.safetensors") if full else None},
        "schedules": {"image": {"kind": "linear", "timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}},
        "components": {
            name: entry(f"{name}.onnx", inputs=inputs, outputs=outputs, precision="fp32", weights="fp32")
            for name, (inputs, outputs) in signatures.items()
        },
        "attributes": attributes,
        "presets": {"official": {"encode_steps": 3, "decode_steps": 3, "spacing": "diffae", "clip": True}},
        "default_preset": "official",
        "provenance": {"exporter": "by hand", "sources": {"checkpoint": {"file": "none", "sha256": CHECKPOINT}}},
        "licence": "",
    }


def sound_bundle(folder: Path, full: bool = True) -> None:
    """A bundle for the null engine: its graphs are empty ones, the least that passes for a component.

    full: with an attribute of each kind, and with statistics of z_sem.
    """
    folder.mkdir(parents=True)
    for name, data in PARTS.items():
        if full or name not in ("z_sem.safetensors", "block.safetensors", "table.safetensors"):
            (folder / name).write_bytes(data)
    (folder / "bundle.json").write_text(json.dumps(manifest(full), indent=1))


def spoilt(spoil: Maker, full: bool = False) -> Maker:
    """Makes a sound bundle, then spoils it."""

    def make(folder: Path) -> None:
        sound_bundle(folder / "bundle", full)
        spoil(folder / "bundle")

    return make


VERIFY, INFO = "verify {case}/bundle --engine null", "info {case}/bundle"
EDIT = "edit {face} -b {case}/bundle --engine null -o {out}/x.png"


def bundle(
    name: str, wrong: str, spoil: Maker, *says: str, command: str = VERIFY, full: bool = False, **rest: Any
) -> None:
    CASES.append(Case(f"bundle-{name}", wrong, spoilt(spoil, full), command, 3, says, **rest))


# --- bundles: the listing -----------------------------------------------------------------------------


def flip(name: str) -> Maker:
    """Alters a file's last byte; its size stays."""
    return lambda f: (f / name).write_bytes(PARTS[name][:-1] + bytes([PARTS[name][-1] ^ 1]))


def holes(name: str, size: int) -> Maker:
    """Grows a file to `size` without writing: it takes no room on the disk."""

    def make(folder: Path) -> None:
        with open(folder / name, "ab") as f:
            f.truncate(size)

    return make


def instead(name: str) -> Maker:
    """Puts a folder in a file's place."""

    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()
        (folder / name / "inside.txt").write_text("not what was expected here")

    return make


def link(name: str) -> Maker:
    """Moves a file out of the bundle and links to it."""

    def make(folder: Path) -> None:
        (folder / name).rename(folder.parent / f"outside-{name}")
        (folder / name).symlink_to(folder.parent / f"outside-{name}")

    return make


def link_to(target: str, name: str = "trunk.onnx") -> Maker:
    """Puts a link in a file's place."""

    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(target)

    return make


def link_folder(folder: Path) -> None:
    (folder.parent / "outside").mkdir()
    (folder.parent / "outside" / "more.bin").write_bytes(b"x")
    (folder / "inside").symlink_to(folder.parent / "outside", target_is_directory=True)


def file_for_bundle(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"PK\x03\x04")


def hidden(folder: Path) -> None:
    (folder / "attributes").mkdir()
    (folder / "attributes" / ".hidden").write_bytes(b"x")


def pipe(folder: Path) -> None:
    (folder / "trunk.onnx").unlink()
    os.mkfifo(folder / "trunk.onnx")


NO_BUNDLE = "expected a bundle: a folder with a bundle.json"
# fmt: off
bundle("altered-graph", "a byte of a graph is altered", flip("trunk.onnx"), "trunk.onnx: altered: found SHA-256")
bundle("altered-statistics", "a byte of z_sem.safetensors is altered", flip("z_sem.safetensors"), "altered: found",
    full=True)
bundle("altered-attribute", "a byte of an attribute is altered", flip("smile.safetensors"), "altered", command=INFO)
bundle("altered-edit", "a byte of an attribute is altered, and an edit runs", flip("table.safetensors"),
    "table.safetensors: altered", command=EDIT, full=True)
bundle("file-missing", "a listed file is not there", lambda f: (f / "head.onnx").unlink(), "head.onnx: missing")
bundle("file-unlisted", "a file that the manifest does not list", write("extra.bin", b"x"), "extra.bin: not listed in")
bundle("file-truncated", "a listed file is cut short", write("smile.safetensors", PARTS["smile.safetensors"][:-7]),
    "smile.safetensors: found", "bytes, expected", command=INFO)
bundle("file-grown", "a listed file has a byte more", write("head.onnx", PARTS["head.onnx"] + b"\0"),
    "head.onnx: found")
bundle("file-emptied", "a listed file is empty", write("head.onnx", b""), "head.onnx: found 0 bytes, expected",
    command=EDIT)
bundle("file-huge", "a listed file of 64 GiB, all holes", holes("trunk.onnx", 2**36), "trunk.onnx: found 68719476736",
    kept=False)
bundle("file-folder", "a folder in a listed file's place", instead("head.onnx"), "head.onnx: missing",
    "inside.txt: not")
bundle("file-pipe", "a pipe in a listed file's place", pipe, "trunk.onnx: found 0 bytes, and no file", kept=False)
bundle("folder-link", "a link to a folder that holds nothing listed", link_folder, "inside: not listed", kept=False)
bundle("link-dangling", "a link to nowhere", lambda f: (f / "x").symlink_to("nowhere"), "x: not listed", kept=False)
bundle("link-loop", "a listed file is a link to itself", link_to("trunk.onnx"),
    "trunk.onnx: cannot be read: Too many levels", kept=False)
bundle("link-device", "a listed file is a link to a device", link_to("/dev/zero"), "found 0 bytes, and no file",
    kept=False)
bundle("manifest-link", "the manifest is a link to a device", link_to("/dev/zero", "bundle.json"), NO_BUNDLE,
    kept=False)
bundle("manifest-huge", "a manifest of more than 16 MiB", holes("bundle.json", 2**24 + 1),
    "bundle.json: found 16777217 bytes, expected at most 16777216", kept=False)
bundle("manifest-folder", "the manifest is a folder", instead("bundle.json"), NO_BUNDLE, command=INFO)
bundle("manifest-missing", "there is no manifest", lambda f: (f / "bundle.json").unlink(), NO_BUNDLE, command=EDIT)
bundle("is-file", "a file in the bundle's place", file_for_bundle, NO_BUNDLE)
bundle("is-missing", "there is no bundle", shutil.rmtree, NO_BUNDLE, command=EDIT, kept=False)
# fmt: on

# --- bundles: the manifest ----------------------------------------------------------------------------


def put(path: str, value: Any) -> Maker:
    """Puts `value` at a dotted path of the manifest; Ellipsis takes away what is there."""

    def change(at: Json) -> None:
        *parents, last = path.split(".")
        for part in parents:
            at = at[int(part) if isinstance(at, list) else part]
        if value is ...:
            del at[last]
        else:
            at[int(last) if isinstance(at, list) else last] = value

    return lambda folder: alter(folder, change)


def text(old: str, new: str) -> Maker:
    """Replaces the first `old` in the manifest's text."""

    def make(folder: Path) -> None:
        found = (folder / "bundle.json").read_text()
        assert old in found
        (folder / "bundle.json").write_text(found.replace(old, new, 1))

    return make


def rewritten(change: Callable[[bytes], bytes]) -> Maker:
    """Replaces the manifest's bytes by what `change` makes of them."""

    def make(folder: Path) -> None:
        (folder / "bundle.json").write_bytes(change((folder / "bundle.json").read_bytes()))

    return make


def crowd(folder: Path) -> None:
    """10,000 components, of one file."""
    alter(folder, lambda m: m["components"].update({f"part{i}": m["components"]["trunk"] for i in range(10_000)}))


def manifest_case(name: str, wrong: str, spoil: Maker, *says: str, **rest: Any) -> None:
    bundle(f"manifest-{name}", wrong, spoil, *says, **{"command": INFO, **rest})


NOT_JSON, BEYOND = "bundle.json: expected JSON", "1e400: found a number that float64 cannot hold"
PLAIN = "expected a plain relative path inside the bundle"
# fmt: off
manifest_case("empty", "no bytes", rewritten(lambda _: b""), NOT_JSON)
manifest_case("cut", "cut in the middle", rewritten(lambda d: d[: len(d) // 2]), NOT_JSON)
manifest_case("bom", "a byte order mark before the JSON", rewritten(lambda d: b"\xef\xbb\xbf" + d), NOT_JSON)
manifest_case("utf-16", "UTF-16, which JSON may not be", rewritten(lambda d: d.decode().encode("utf-16-le")),
    NOT_JSON)
manifest_case("not-utf-8", "a byte that is not UTF-8", rewritten(lambda d: d.replace(b"by hand", b"by h\xe4nd")),
    NOT_JSON)
manifest_case("deep", "100,000 brackets, one in the other", rewritten(lambda _: b"[" * 100_000), NOT_JSON, kept=False)
manifest_case("deep-key", "20,000 objects, one in the other, under a known key",
    text('"sources"', '"config": ' + '{"a":' * 10_000 + "1" + "}" * 10_000 + ', "sources"'), NOT_JSON)
manifest_case("list", "a list, not an object", rewritten(lambda _: b"[]"),
    "the manifest: expected `object`, got `array`")
manifest_case("surrogate", "half a surrogate pair as the name", text('"sound"', '"\\ud800"'), NOT_JSON)
manifest_case("nan", "NaN, which JSON does not have", text("0.02", "NaN"),
    "NaN: found a number that JSON does not have")
manifest_case("infinity", "-Infinity, which JSON does not have", text("0.02", "-Infinity"), "-Infinity: found a number")
manifest_case("overflow", "a number beyond float64", text("0.02", "1e400"), BEYOND)
manifest_case("overflow-config", "a number beyond float64, where any value may stand",
    text('"sources"', '"config": {"a": 1e400}, "sources"'), BEYOND, command="info {case}/bundle --json")
manifest_case("digits", "a number of 5,000 digits", text('"size": 8', '"size": ' + "8" * 5000), NOT_JSON)
manifest_case("key-twice", "a key stands twice", text('"licence"', '"licence": "MIT", "licence"'),
    "'licence': the key stands twice")
manifest_case("key-twice-inside", "a key stands twice inside", text('"size": 8', '"size": 16, "size": 8'),
    "'size': the key stands")
manifest_case("key-unknown", "an unknown key", put("colour", 1), "colour: the key is unknown")
manifest_case("key-unknown-inside", "an unknown key inside", put("components.trunk.pre_hook", "os.system"),
    "components.trunk.pre_hook: the key is unknown")
manifest_case("key-escape", "an unknown key that would steer a terminal", put("\x1b[2J\r\n", 1), "\\x1b[2J",
    "the key is unknown")
manifest_case("key-long", "an unknown key of 10,000 letters", put("k" * 10_000, 1), "kkk: the key is unknown")
manifest_case("version-2", "of a version to come", put("format_version", 2),
    "format_version: found 2, expected 1: a newer hspace")
manifest_case("version-0", "of a version that never was", put("format_version", 0), "format_version: ")
manifest_case("version-text", "the version as text", put("format_version", "1"), "format_version: ")
manifest_case("version-missing", "no version", put("format_version", ...), "format_version: the key is missing")
manifest_case("path-parent", "a path out of the bundle", put("components.trunk.file", "../trunk.onnx"),
    "'../trunk.onnx'", PLAIN)
manifest_case("path-inner-parent", "a path out of the bundle and back", put("components.trunk.file", "a/../trunk.onnx"),
    PLAIN)
manifest_case("path-absolute", "an absolute path", put("components.trunk.file", "/etc/passwd"), "'/etc/passwd'", PLAIN)
manifest_case("path-backslash", "a path with a backslash", put("components.trunk.file", "..\\trunk.onnx"), PLAIN)
manifest_case("path-drive", "a path with a drive", put("components.trunk.file", "C:trunk.onnx"), PLAIN)
manifest_case("path-itself", "the manifest lists itself", put("components.trunk.file", "bundle.json"),
    "the manifest's own name")
manifest_case("path-shared", "two entries with one file", put("components.head.file", "trunk.onnx"),
    "'trunk.onnx', which components.trunk has already")
manifest_case("bytes-negative", "a file of -1 bytes", put("components.trunk.bytes", -1),
    "components.trunk.bytes: expected `int` >= 1")
manifest_case("bytes-huge", "a file of 2 GiB", put("components.trunk.bytes", 2**31),
    "components.trunk.bytes: expected `int` <=")
manifest_case("sha256-upper", "a SHA-256 in capitals", put("components.trunk.sha256", "AB" * 32),
    "components.trunk.sha256: ")
manifest_case("sha256-short", "a SHA-256 of 63 digits", put("components.trunk.sha256", "0" * 63),
    "components.trunk.sha256: ")
manifest_case("sha256-line", "a SHA-256 with a line break behind it", put("components.trunk.sha256", "0" * 64 + "\n"),
    "components.trunk.sha256: ")
manifest_case("size-0", "pictures of no pixels", put("image.size", 0), "image.size: expected `int` >= 8")
manifest_case("size-negative", "pictures of -8 pixels", put("image.size", -8), "image.size: expected `int` >= 8")
manifest_case("size-huge", "pictures of 2^40 pixels on a side", put("image.size", 2**40),
    "image.size: expected `int` <= 4096")
manifest_case("size-other", "pictures of another size than the graphs take", put("image.size", 16),
    "components.trunk.inputs: found")
manifest_case("z-negative", "a z_sem of -6 numbers", put("z_sem.size", -6), "z_sem.size: expected `int` >= 1")
manifest_case("dimension-negative", "a skip of -2 channels", put("components.trunk.outputs.2.shape", ["N", -2, 4, 4]),
    "components.trunk.outputs[2].shape[1]: expected `int` >= 1")
# fmt: on


def wide(dimension: int) -> Maker:
    """Lets a skip have that many channels, in the trunk and in the head."""

    def change(m: Json) -> None:
        for signatures in (m["components"]["trunk"]["outputs"], m["components"]["head"]["inputs"]):
            next(t for t in signatures if t["name"] == "skip_0")["shape"][1] = dimension

    return lambda folder: alter(folder, change)


# fmt: off
manifest_case("dimension-huge", "a skip of 2^62 channels, and an edit runs", wide(2**62),
    "components.trunk.outputs[2].shape[1]: expected `int` <= 65536", command=EDIT)
manifest_case("dimension-beyond", "a skip of 2^70 channels", wide(2**70),
    "components.trunk.outputs[2].shape[1]: expected `int` <= 65536")
manifest_case("branch", "a direction that claims a branch", put("attributes.smile.branch", "symmetric"),
    "attributes.smile.branch: found symmetric, expected none for a z_direction")
manifest_case("family", "an unknown family", put("family", "gan"), "family: ")
manifest_case("family-long", "an unknown family of 100,000 letters", put("family", "g" * 100_000), "family: ",
    kept=False)
manifest_case("shape-long", "a shape of 100,000 dimensions", put("components.trunk.outputs.2.shape", [1] * 100_000),
    "components.trunk.outputs: skip_0: found [1, 1,", "…", kept=False)
manifest_case("family-other", "the other family", put("family", "asyrp"),
    "components.encoder: not a component of this bundle")
manifest_case("components-none", "no components", put("components", {}),
    "components.trunk: a bundle of family diffae needs it")
manifest_case("components-many", "10,000 components", crowd, "and", "more", kept=False)
manifest_case("steps-0", "a preset of no steps", put("presets.official.decode_steps", 0),
    "decode_steps: expected `int` >= 1")
manifest_case("steps-1001", "a preset of 1001 steps", put("presets.official.decode_steps", 1001),
    "decode_steps: expected `int` <= 1000")
manifest_case("steps-half", "a preset of 2.5 steps", put("presets.official.encode_steps", 2.5),
    "encode_steps: expected `int`, got")
manifest_case("preset-unknown", "a default preset that is not there", put("default_preset", "fast"),
    "default_preset: found 'fast', expected one of the presets")
manifest_case("presets-none", "no presets", put("presets", {}), "default_preset: found 'official'")
manifest_case("schedule-rising", "a schedule that never falls", put("schedules.image", {"kind": "const", "beta": 0.0}),
    "schedules.image: ")
manifest_case("schedule-huge", "a schedule of 2^40 timesteps", put("schedules.image.timesteps", 2**40),
    "schedules.image.timesteps: expected `int` <= 1000000")
manifest_case("name-escape", "a name that would steer a terminal", put("name", "\x1b]0;mine\x07"), "name: ")
manifest_case("attribute-path", "an attribute named like a path", text('"smile": {', '"../smile": {'),
    "attributes.../smile: ")
# fmt: on

# --- bundles: graphs under their right SHA-256 --------------------------------------------------------


def graph(name: str, wrong: str, data: bytes, *says: str) -> None:
    bundle(f"graph-{name}", wrong, lambda f: replace(f, "components.trunk", data), "trunk.onnx: ", *says)


OUTSIDE, NO_GRAPH = "the graph keeps data outside its own file", "expected an ONNX graph"
location = field(13, field(1, "location") + field(2, "../../etc/passwd"))
nested = field(5, field(14, 1) + location)
for _ in range(70):
    nested = field(1, field(5, field(6, nested)))
# fmt: off
graph("external", "a tensor with data outside the file", model(field(5, field(14, 1) + location)), OUTSIDE)
graph("external-unmarked", "the same, by its location alone", model(field(5, location)), OUTSIDE)
graph("external-attribute", "the same, as a node's attribute", model(field(1, field(5, field(5, location)))), OUTSIDE)
graph("external-function", "the same, in a function", model(rest=field(25, field(7, field(5, field(5, location))))),
    OUTSIDE)
graph("deep", "graphs in graphs, 70 deep", model(nested), NO_GRAPH)
graph("truncated", "a graph cut short", model(field(10, "a comment"))[:-9], NO_GRAPH)
graph("garbage", "bytes that are no graph", bytes(range(255, 0, -1)), NO_GRAPH)
graph("text", "a text", b"this is no graph\n", NO_GRAPH)
graph("zero", "a byte of zero", b"\0", NO_GRAPH)
graph("length", "a field longer than the file", field(1, 9) + b"\x3a\xff\xff\xff\xff\x0f", NO_GRAPH)
graph("varint", "a number that never ends", b"\x08" + b"\xff" * 40, NO_GRAPH)
# fmt: on

# --- tensors: attributes under their right SHA-256, and latents ---------------------------------------


def nan(kind: tuple[str, list[int], bytes]) -> tuple[str, list[int], bytes]:
    """The tensor with NaN as its first value."""
    return kind[0], kind[1], struct.pack("<f", float("nan")) + kind[2][4:]


def zeros(*shape: int) -> tuple[str, list[int], bytes]:
    dtype, dimensions, data = floats(*shape)
    return dtype, dimensions, bytes(len(data))


def header(offsets: list[int], shape: list[int] | None = None) -> Json:
    return {"dtype": "F32", "shape": [D] if shape is None else shape, "data_offsets": offsets}


def attribute(name: str, wrong: str, data: bytes, *says: str, which: str = "smile", **rest: Any) -> None:
    def spoil(folder: Path) -> None:
        replace(folder, f"attributes.{which}", data)

    bundle(f"tensors-{name}", wrong, spoil, f"{which}.safetensors: ", *says, **{"command": INFO, **rest})


TINY = "F32", [D], struct.pack(f"<{D}f", *[1e-45] * D)
NO_TENSORS = "expected a safetensors file"
OVERLAP = {"weight": header([0, 24]), "bias": header([20, 24], [1]), "mean": header([24, 48]), "std": header([48, 72])}
PICKLED = b"cposix\nsystem\n(S'touch " + MARKER.encode() + b"'\ntR."
# fmt: off
attribute("overlap", "tensors that share bytes", safetensors(OVERLAP, bytes(72)), NO_TENSORS)
attribute("range", "offsets beyond the file", safetensors({"weight": header([0, 2**40])}, bytes(24)), NO_TENSORS)
attribute("backwards", "an end before its start", safetensors({"weight": header([24, 0])}, bytes(24)), NO_TENSORS)
attribute("shape-overflow", "a shape whose product overflows",
    safetensors({"weight": header([0, 24], [2**62, 2**62])}, bytes(24)), NO_TENSORS)
attribute("header-length", "a header said to be of 2^63 bytes", safetensors(b"{}", b"", 2**63), NO_TENSORS)
attribute("header-text", "a header that is not JSON", safetensors(b"not JSON", bytes(24)), NO_TENSORS)
attribute("header-deep", "a header of 10,000 brackets", safetensors(b"[" * 10_000), NO_TENSORS)
attribute("header-alone", "a header without its data", safetensors({"weight": header([0, 24])}), NO_TENSORS)
attribute("zero", "a byte of zero", b"\0", NO_TENSORS)
attribute("pickle", "a pickle that would run a command", PICKLED, NO_TENSORS)
attribute("nan", "a weight of NaN", tensors(**{**DIRECTION, "weight": nan(floats(D))}),
    "weight: has values that are not finite")
attribute("float64", "a weight in float64", tensors(**{**DIRECTION, "weight": ("F64", [D], bytes(8 * D))}),
    "weight: found float64 [6], expected")
attribute("int64", "a weight in int64", tensors(**{**DIRECTION, "weight": ("I64", [D], bytes(8 * D))}),
    "weight: found int64 [6], expected")
attribute("missing", "no weight", tensors(**{k: v for k, v in DIRECTION.items() if k != "weight"}), "weight: missing")
attribute("extra", "a tensor more", tensors(**DIRECTION, code=floats(1)), "code: unexpected")
attribute("shape", "a weight of another shape", tensors(**{**DIRECTION, "weight": floats(D + 1)}),
    "weight: found float32 [7], expected float32 [6]")
attribute("std-zero", "a std of zeros", tensors(**{**DIRECTION, "std": zeros(D)}), "std: found 0, expected values")
attribute("weight-zero", "a weight of zeros", tensors(**{**DIRECTION, "weight": zeros(D)}), "weight: expected values")
attribute("name-escape", "a tensor whose name would steer a terminal", tensors(**DIRECTION, **{"\x1b[2J": floats(1)}),
    "\\x1b[2J: unexpected")
attribute("eps-missing", "a block without its eps", tensors(**BLOCK), "expected GroupNorm's eps", which="block",
    full=True)
attribute("eps-nan", "a block whose eps is NaN", tensors({"eps": "nan"}, **BLOCK), "eps: found nan, expected",
    which="block", full=True)
attribute("table-order", "a table of falling timesteps",
    tensors(**{**TABLE, "timesteps": ("I64", [3], struct.pack("<3q", 9, 5, 1))}),
    "timesteps: expected ascending values", which="table", full=True)
attribute("table-shape", "a table of another model's h",
    tensors(timesteps=TABLE["timesteps"], delta_h=floats(3, 4, 4, 4)), "delta_h: found float32 [3, 4, 4, 4], expected",
    which="table", full=True)
bundle("std-tiny", "a std that float32 can hardly hold, and a classifier runs",
    lambda f: replace(f, "attributes.smile", tensors(**{**DIRECTION, "std": TINY})), "std: found 1.4e-45, expected",
    command="classify {face} -b {case}/bundle --engine null --json")
bundle("statistics-zero", "a std of zeros in the statistics",
    lambda f: replace(f, "z_sem.statistics", tensors(mean=floats(D), std=zeros(D))),
    "z_sem.safetensors: std: ", "expected values", command=EDIT, full=True)
# fmt: on

LATENT = {"x_T": floats(1, 3, S, S), "z_sem": floats(1, D)}
FORMAT = {"format": "hspace-latent-1"}
DECODE = "decode {case}/face.safetensors -b {bundle} --engine null -o {out}/x.png"


def latent(name: str, wrong: str, data: bytes | Maker, *says: str, command: str = DECODE, **rest: Any) -> None:
    make = write("face.safetensors", data) if isinstance(data, bytes) else data
    rest = {"code": 8, "says": ("face.safetensors: ", *says), **rest}
    CASES.append(Case(f"latent-{name}", wrong, make, command, **rest))


BETWEEN = "interpolate {case}/face.safetensors {case}/face.safetensors -b {bundle} --engine null -o {out}/x.png"
ONCE = b'"x_T": {"dtype": "F32", "shape": [1, 3, 8, 8], "data_offsets": [0, 768]}, '
TWICE = (
    b'{"__metadata__": {"format": "hspace-latent-1"}, '
    + ONCE
    + ONCE
    + b'"z_sem": {"dtype": "F32", "shape": [1, 6], "data_offsets": [768, 792]}}'
)
EXTREME = struct.pack("<192f", *([3.4e38, -3.4e38] * 96))
BLANK = tensors(FORMAT, **{**LATENT, "x_T": zeros(1, 3, S, S)})
NOT_FINITE = "the result is not finite"

# fmt: off
latent("empty", "no bytes", b"", NO_TENSORS)
latent("text", "a text", b"hello\n", NO_TENSORS)
latent("pickle", "a pickle that would run a command", PICKLED, NO_TENSORS)
latent("zip", "an empty zip", b"PK\x05\x06" + bytes(18), NO_TENSORS)
latent("overlap", "tensors that share bytes", safetensors({"__metadata__": FORMAT, **OVERLAP}, bytes(72)), NO_TENSORS)
latent("range", "offsets beyond the file", safetensors({"__metadata__": FORMAT, "x_T": header([0, 2**40])}, bytes(24)),
    NO_TENSORS)
latent("header-length", "a header said to be of 2^63 bytes", safetensors(b"{}", b"", 2**63), NO_TENSORS)
latent("cut", "cut by a byte", tensors(FORMAT, **LATENT)[:-1], NO_TENSORS)
latent("format", "no format in the metadata", tensors(**LATENT), "expected a latent of format hspace-latent-1")
latent("format-2", "of a format to come", tensors({"format": "hspace-latent-2"}, **LATENT),
    "expected a latent of format")
latent("extra", "a tensor more", tensors(FORMAT, **LATENT, code=floats(1)), "expected a latent of format")
latent("nan", "x_T has a NaN", tensors(FORMAT, **{**LATENT, "x_T": nan(LATENT["x_T"])}),
    "x_T: has values that are not finite")
latent("float64", "x_T in float64", tensors(FORMAT, **{**LATENT, "x_T": ("F64", [1, 3, S, S], bytes(8 * 3 * S * S))}),
    "x_T: found float64 [1, 3, 8, 8], expected float32")
latent("size", "of a model of larger pictures", tensors(FORMAT, **{**LATENT, "x_T": floats(1, 3, 16, 16)}),
    "found x_T (3, 16, 16)", "expected (3, 8, 8)")
latent("code", "of a model with a longer z_sem", tensors(FORMAT, **{**LATENT, "z_sem": floats(1, 7)}), "z_sem 7", "6")
latent("no-code", "of a model without z_sem", tensors(FORMAT, x_T=LATENT["x_T"]), "z_sem None")
latent("two", "of two images", tensors(FORMAT, x_T=floats(2, 3, S, S), z_sem=floats(2, D)),
    "holds 2 images, expected 1")
latent("model", "of another model", tensors({**FORMAT, "checkpoint": "1" * 64, "bundle": "\x1b[2J"}, **LATENT),
    "made by the model '\\x1b[2J'")
latent("huge", "a file of 1 TiB, all holes",
    lambda f: (write("face.safetensors", tensors(FORMAT, **LATENT))(f), holes("face.safetensors", 2**40)(f)),
    "found 1099511627776 bytes, expected at most 2147483647", kept=False, under="little memory")
latent("pipe", "a pipe", lambda f: os.mkfifo(f / "face.safetensors"), "not a file", kept=False)
latent("pipe-vary", "a pipe, to a command of one input", lambda f: os.mkfifo(f / "face.safetensors"), "not a file",
    command=DECODE.replace("decode", "vary"), kept=False)
latent("name-twice", "a tensor that its header names twice", safetensors(TWICE, LATENT["x_T"][2] + LATENT["z_sem"][2]),
    NO_TENSORS)
latent("extreme", "values as large as float32 can hold",
    tensors(FORMAT, **{**LATENT, "x_T": ("F32", [1, 3, S, S], EXTREME)}), code=5, says=(NOT_FINITE,))
latent("extreme-between", "values as large as float32 can hold, to go between",
    tensors(FORMAT, **{**LATENT, "x_T": ("F32", [1, 3, S, S], EXTREME)}), code=5, says=(NOT_FINITE,), command=BETWEEN)
latent("zero-between", "nothing: x_T of zeros, which has no direction, to go between", BLANK, code=0, command=BETWEEN)
latent("missing", "there is no such file", nothing, "no such file", kept=False)
# fmt: on

# --- checkpoints --------------------------------------------------------------------------------------


def archive(**members: bytes) -> bytes:
    """A zip as PyTorch writes them, of one date and without compression."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as z:
        for name, data in members.items():
            z.writestr(zipfile.ZipInfo(f"archive/{name.replace('__', '.')}"), data)
    return buffer.getvalue()


def old_style(payload: bytes) -> bytes:
    """What PyTorch wrote before it wrote zips: its number, its version, the machine, then the pickle."""
    return b"".join(dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})) + payload


def checkpoint(name: str, wrong: str, data: bytes, *says: str, families: tuple[str, ...] = ("asyrp",)) -> None:
    """A file for `hspace export`; both families' commands read the ones with code in them."""
    for family in families:
        both = f"-{family}" if len(families) > 1 else ""
        command = f"export {family} {{case}}/model.ckpt -o {{out}}/exported"
        make = write("model.ckpt", data)
        CASES.append(Case(f"checkpoint-{name}{both}", wrong, make, command, 6, ("model.ckpt: ", *says)))


NO_CHECKPOINT, CODE = "expected a PyTorch checkpoint", "refers to code (posix.system), which is refused and was not run"
BOTH = ("asyrp", "diffae")
# fmt: off
checkpoint("code-zip", "a zip whose pickle runs a command", archive(data__pkl=PICKLED, version=b"3\n"), CODE,
    families=BOTH)
checkpoint("code-old", "the old format, whose pickle runs a command", old_style(PICKLED), CODE, families=BOTH)
checkpoint("code-pickle", "a bare pickle that runs a command", PICKLED, CODE, families=BOTH)
checkpoint("code-eval", "a pickle that evaluates a text",
    archive(data__pkl=b"cbuiltins\neval\n(S'open(\"" + MARKER.encode() + b'", "w")\'\ntR.', version=b"3\n"),
    "refers to code (")
checkpoint("zip-other", "a zip of something else", archive(hello__txt=b"hello"), NO_CHECKPOINT)
checkpoint("zip-cut", "a zip cut short", archive(data__pkl=dumps({}, 2), version=b"3\n")[:-30], NO_CHECKPOINT)
checkpoint("zip-empty", "a checkpoint of nothing", archive(data__pkl=dumps({"state_dict": {}}, 2), version=b"3\n"),
    "looks like nothing that hspace knows")
checkpoint("zip-number", "a checkpoint of a number", archive(data__pkl=dumps(7, 2), version=b"3\n"),
    "found int, expected a state dict")
checkpoint("empty", "no bytes", b"", NO_CHECKPOINT, families=BOTH)
checkpoint("text", "a text", b"hello, this is text\n", NO_CHECKPOINT, families=BOTH)
checkpoint("tensors", "a safetensors file", tensors(**DIRECTION), NO_CHECKPOINT)
# fmt: on
CASES.append(
    Case(
        "checkpoint-attribute-code",
        "an attribute whose pickle runs a command",
        write("smile_ngen40.pth", archive(data__pkl=PICKLED, version=b"3\n")),
        "export asyrp {golden}/asyrp-ddpm-tiny/model.ckpt --image-size 32"
        " --attribute smile={case}/smile_ngen40.pth -o {out}/exported",
        6,
        ("smile_ngen40.pth: ", CODE),
    )
)

# --- pictures -----------------------------------------------------------------------------------------

Chunk = tuple[bytes, bytes]
COLOURS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # PNG's colour type → channels


def idat(width: int, height: int, sample: bytes) -> bytes:
    """Pixels of one value, not compressed: deflate's other levels give other bytes on other machines."""
    return zlib.compress((b"\0" + sample * width) * height, 0)


def picture(
    width: int = S, height: int = S, depth: int = 8, colour: int = 2, *chunks: Chunk, alpha: int = 255
) -> bytes:
    """A whole PNG of one colour."""
    sample = bytes([90] * (COLOURS[colour] * depth // 8))
    if colour in (4, 6):
        sample = sample[: -depth // 8] + bytes([alpha] * (depth // 8))
    if colour == 3:
        sample = b"\1"
    return png(width, height, depth, colour, None, *chunks, (b"IDAT", idat(width, height, sample)), (b"IEND", b""))


FACE = picture()
PALETTE = (b"PLTE", bytes([10, 20, 30, 40, 50, 60]))


def orientation(value: int) -> Chunk:
    """EXIF with one tag, the orientation."""
    return b"eXIf", b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, value, 0, 0)


def animated_png() -> bytes:
    def control(number: int) -> Chunk:
        return b"fcTL", struct.pack(">IIIIIHHBB", number, S, S, 0, 0, 1, 10, 0, 0)

    first, second = idat(S, S, b"\x20\x40\x60"), struct.pack(">I", 2) + idat(S, S, b"\x60\x40\x20")
    frames = [control(0), (b"IDAT", first), control(1), (b"fdAT", second)]
    return png(S, S, 8, 2, None, (b"acTL", struct.pack(">II", 2, 0)), *frames, (b"IEND", b""))


def gif(*colours: int, size: int = S) -> bytes:
    """A frame of each colour. LZW codes of 8 bits are bytes, for as long as its table has not grown to 256."""
    screen = struct.pack("<HHBBB", size, size, 0xF6, 0, 0) + bytes(range(128)) * 3
    frame = b",\0\0\0\0" + struct.pack("<HHB", size, size, 0) + b"\x07"
    lines = [b"\x80" + bytes([colour] * S * S) + b"\x81" for colour in colours]
    return b"GIF89a" + screen + b"".join(frame + bytes([len(x)]) + x + b"\0" for x in lines) + b";"


def tiff(bits: int, kind: int, data: bytes, compression: int = 1, at: int = 8) -> bytes:
    """A grey TIFF of one strip. kind: 1 for whole numbers, 3 for floats. at: where it says that the strip is."""
    tags = {256: S, 257: S, 258: bits, 259: compression, 262: 1, 273: at, 277: 1, 278: S, 279: len(data), 339: kind}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    data += bytes(len(data) % 2)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + fields + bytes(4)


def bitmap(width: int, height: int) -> bytes:
    """The header of a BMP."""
    return b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def jpeg(mode: str, size: int, share: float = 1.0) -> bytes:
    """What Pillow makes of a picture of one colour, cut to that share."""
    import PIL.Image

    buffer = io.BytesIO()
    PIL.Image.effect_noise((size, size), 90).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()[: int(len(buffer.getvalue()) * share)]


def webp() -> bytes:
    """Two frames."""
    import PIL.Image

    buffer = io.BytesIO()
    first, second = (PIL.Image.new("RGB", (S, S), colour) for colour in ("red", "blue"))
    first.save(buffer, "WEBP", save_all=True, append_images=[second], lossless=True)
    return buffer.getvalue()


def image(
    name: str, wrong: str, data: bytes | Maker, *says: str, suffix: str = ".png", code: int = 4, **rest: Any
) -> None:
    """A file for `hspace edit`, unless another command is given."""
    make = write(f"face{suffix}", data) if isinstance(data, bytes) else data
    shown = suffix.encode("unicode_escape").decode()  # as an error shows it
    command = rest.pop("command", "edit") + f" {{case}}/face{suffix} -b {{bundle}} --engine null"
    command += (
        ""
        if command.startswith("classify")
        else " -o {out}/x.safetensors"
        if command.startswith("encode")
        else " -o {out}/x.png"
    )
    CASES.append(Case(f"image-{name}", wrong, make, command, code, (f"face{shown}: ", *says) if code else (), **rest))


NO_IMAGE = "expected an image (PNG, JPEG, WEBP, BMP, TIFF, GIF)"
CLEAR, ANIMATION, DEPTH = (
    "has transparent pixels",
    "an animation, expected a single picture",
    "expected 8 bits a channel",
)
LIMIT = "expected at most 67108864"
# fmt: off
image("bomb", "a PNG of 50,000 × 50,000 pixels in 60 bytes",
    png(50_000, 50_000, 8, 2, None, (b"IDAT", idat(1, 1, b"\0"))), LIMIT)
image("bomb-resize", "the same, with --resize", png(50_000, 50_000, 8, 2, None, (b"IDAT", idat(1, 1, b"\0"))), LIMIT,
    command="edit --resize")
image("bomb-limit", "a PNG just beyond the limit", png(8193, 8193, 8, 2, None, (b"IDAT", idat(1, 1, b"\0"))),
    "found 8193×8193 pixels", LIMIT, command="encode")
image("bomb-row", "a PNG of 2^31 - 1 pixels in a row", png(2**31 - 1, 1, 8, 2, None, (b"IDAT", idat(1, 1, b"\0"))),
    LIMIT, command="classify")
image("bomb-bmp", "a BMP of 30,000 × 30,000 pixels", bitmap(30_000, 30_000), LIMIT, suffix=".bmp")
image("bomb-gif", "a GIF of 65,535 × 65,535 pixels", gif(1, size=65535), suffix=".gif")
image("bomb-text", "a PNG with a text of 32 MiB in 32 KiB",
    write("face.png", lambda: picture(S, S, 8, 2, (b"zTXt", b"t\0\0" + zlib.compress(bytes(2**25), 9)))), exact=False)
image("zero", "a PNG of no pixels", png(0, 0, 8, 2, None, (b"IDAT", idat(0, 0, b"")), (b"IEND", b"")))
image("zero-resize", "the same, with --resize", png(0, 0, 8, 2, None, (b"IDAT", idat(0, 0, b"")), (b"IEND", b"")),
    command="edit --resize")
image("empty", "no bytes", b"", NO_IMAGE)
image("text", "a text", b"hello\n", NO_IMAGE)
image("svg", "an SVG", b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"/>\n', NO_IMAGE)
image("pdf", "a PDF", b"%PDF-1.4\n1 0 obj <</Type /Catalog>> endobj\ntrailer <</Root 1 0 R>>\n%%EOF\n", NO_IMAGE)
image("eps", "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n", NO_IMAGE)
image("ppm", "a format that is not read", b"P6 8 8 255\n" + bytes(192), NO_IMAGE, command="classify")
image("pickle", "a pickle that would run a command", PICKLED, NO_IMAGE)
image("folder", "a folder without pictures",
    lambda f: ((f / "face.png").mkdir(), write("face.png/notes.txt", b"none\n")(f)), "a folder without files")
image("missing", "there is no such file", nothing, "no such file", kept=False)
image("pipe", "a pipe", lambda f: os.mkfifo(f / "face.png"), "not a file", kept=False)
image("link-loop", "a link to itself", lambda f: (f / "face.png").symlink_to("face.png"),
    "cannot be read: Too many levels", kept=False)
image("signature", "a PNG's signature alone", FACE[:8], NO_IMAGE)
image("header", "a PNG's header alone", png(S, S, 8, 2, None), NO_IMAGE)
image("truncated-png", "a PNG cut in its pixels", FACE[:-60], NO_IMAGE)
image("truncated-classify", "a PNG cut in its pixels", FACE[:-60], NO_IMAGE, command="classify")
image("checksum", "a PNG whose pixels do not give their checksum", FACE[:60] + bytes([FACE[60] ^ 255]) + FACE[61:],
    NO_IMAGE)
image("truncated-jpeg", "a JPEG cut in the middle", write("face.jpg", lambda: jpeg("RGB", S, 0.9)), NO_IMAGE,
    suffix=".jpg", exact=False)
image("truncated-gif", "a GIF cut in its pixels", gif(1)[:-40], NO_IMAGE, suffix=".gif")
image("truncated-tiff", "a TIFF whose pixels are not there", tiff(8, 1, bytes(64), at=2**20), suffix=".tif")
image("corrupt-lzw", "a TIFF whose LZW is noise", tiff(8, 1, b"\xff\x00\xaa\x55" * 4, compression=5), NO_IMAGE,
    suffix=".tif")
image("corrupt-jpeg-tiff", "a TIFF whose JPEG is noise", tiff(8, 1, b"\xff\xd8\xaa\x55" * 4, compression=7), NO_IMAGE,
    suffix=".tif")
image("png-16", "16 bits a channel", picture(S, S, 16, 2), "found 16 bits a channel, expected 8")
image("png-16-grey", "16 bits of grey", picture(S, S, 16, 0), DEPTH)
image("tiff-16", "16 bits of grey in a TIFF", tiff(16, 1, bytes(2 * S * S)), DEPTH, suffix=".tif")
image("tiff-float", "floats in a TIFF", tiff(32, 3, bytes(4 * S * S)), "found pixels of mode F, expected 8 bits",
    suffix=".tif")
image("rgba", "pixels that are hardly transparent", picture(S, S, 8, 6, alpha=254), CLEAR)
image("rgba-encode", "pixels that are wholly transparent", picture(S, S, 8, 6, alpha=0), CLEAR, command="encode")
image("la", "grey pixels that are half transparent", picture(S, S, 8, 4, alpha=128), CLEAR)
image("palette", "a transparent colour in the palette", picture(S, S, 8, 3, PALETTE, (b"tRNS", b"\xff\0")), CLEAR)
image("colour-key", "a transparent colour", picture(S, S, 8, 2, (b"tRNS", bytes([0, 90] * 3))), CLEAR)
image("animated-gif", "a GIF of two frames", gif(1, 99), ANIMATION, suffix=".gif")
image("animated-png", "a PNG of two frames", animated_png(), ANIMATION)
image("animated-webp", "a WebP of two frames", write("face.webp", webp), ANIMATION, suffix=".webp", exact=False)
image("cmyk", "a CMYK JPEG of another size", write("face.jpg", lambda: jpeg("CMYK", 16)),
    "found 16×16 pixels, expected 8×8", suffix=".jpg", exact=False)
image("size", "another size", picture(9, 9), "found 9×9 pixels, expected 8×8", "--resize")
image("not-square", "not square, and turned by EXIF", picture(8, 6, 8, 2, orientation(6)), "pixels, expected 8×8")
image("content", "a text as the content of an injection", b"hello\n", NO_IMAGE, command="inject {face}")
image("mask", "a bomb as the mask of an injection", png(50_000, 50_000, 8, 2, None, (b"IDAT", idat(1, 1, b"\0"))),
    LIMIT, command="inject {face} {face} --mask")
image("escape", "a name that would steer a terminal", write("face\x1b[2J.png", b""), suffix="\x1b[2J.png", kept=False)
image("line-break", "a name of two lines", write("face\nhspace:.png", b""), suffix="\nhspace:.png", kept=False)
image("long-name", "a name longer than any file system takes", nothing, "cannot be read: File name too long",
    suffix="e" * 5000 + ".png", kept=False)
image("taken-gif", "nothing: a GIF by the name of a PNG", gif(7), code=0)
image("taken-rgba", "nothing: RGBA whose pixels are all opaque", picture(S, S, 8, 6), code=0)
image("taken-turned", "nothing: a square that EXIF turns", picture(S, S, 8, 2, orientation(6)), code=0)
image("taken-cmyk", "nothing: a CMYK JPEG of the right size", write("face.jpg", lambda: jpeg("CMYK", S)), suffix=".jpg",
    code=0, exact=False)
# fmt: on
for name, wrong, spoil, kept in (
    ("taken", "nothing: the bundle that the others spoil", nothing, True),
    ("taken-hidden", "nothing: a hidden file in a folder", hidden, True),
    ("taken-link", "nothing: a file that is a link", link("trunk.onnx"), False),
    ("taken-link-manifest", "nothing: a manifest that is a link", link("bundle.json"), False),
):
    CASES.append(Case(f"bundle-{name}", wrong, spoilt(spoil), VERIFY, 0, kept=kept))
CASES.append(
    Case(
        "latent-taken",
        "nothing: the latent that the others spoil",
        write("face.safetensors", tensors(FORMAT, **LATENT)),
        DECODE,
        0,
    )
)

# --- attributes and thresholds from files -------------------------------------------------------------


def copies(*names: str) -> Maker:
    """Makes sound pictures of those names."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).write_bytes(FACE)

    return make


def made(name: str, wrong: str, make: Maker, command: str, code: int, *says: str, **rest: Any) -> None:
    """What a command that changes a bundle is to make something of."""
    CASES.append(Case(name, wrong, make, command.strip(), code, says, **rest))


def labels(name: str, wrong: str, make: Maker, *says: str, file: str = "{case}/labels.csv", **rest: Any) -> None:
    command = f"attribute fit {{bundle}} new --engine null --images {{case}} --labels {file}"
    made(f"labels-{name}", wrong, make, command, 2, *says, **rest)


def table_of(*rows: str) -> Maker:
    """Makes a picture, and a CSV file of these rows below a header."""

    def make(folder: Path) -> None:
        (folder / "face.png").write_bytes(FACE)
        (folder / "labels.csv").write_bytes("\n".join(["file,new", *rows, ""]).encode())

    return make


def tensor_value(name: str, *shape: int) -> bytes:
    """A float32 input or output of an ONNX graph."""
    dimensions = b"".join(field(1, field(1, n)) for n in shape)
    return field(1, name) + field(2, field(1, field(1, 1) + field(2, dimensions)))


def added(name: str, wrong: str, make: Maker, code: int, *says: str, options: str = "", **rest: Any) -> None:
    file = rest.pop("file", "new.safetensors")
    made(f"add-{name}", wrong, make, f"attribute add {{bundle}} new {{case}}/{file} {options}", code, *says, **rest)


IDENTITY = field(1, field(1, "x") + field(2, "distance") + field(4, "Identity"))
IDENTITY += field(11, tensor_value("x", 1)) + field(12, tensor_value("distance", 1))
NO_CSV = "labels.csv: expected a CSV file in UTF-8, with a header"
FIT = "attribute fit {bundle} new --engine null --positive {case} --negative {case}"
AVERAGE = "attribute average {bundle} new block {case} --engine null"
COMPONENTS = "attribute pca {bundle} new --count 1 --engine null"
CALIBRATE = "calibrate {bundle} {face} --engine null --steps 2 -o {out}/curves"
LPIPS = CALIBRATE + " --lpips {case}/lpips.onnx"
# fmt: off
labels("device", "a device that never ends", nothing, "/dev/zero: not a file", file="/dev/zero", kept=False)
labels("pipe", "a pipe", lambda f: os.mkfifo(f / "labels.csv"), "labels.csv: not a file", kept=False)
labels("folder", "a folder", nothing, ": not a file", file="{case}", kept=False)
labels("missing", "there is no such file", nothing, "labels.csv: no such file", kept=False)
labels("huge", "more than 16 MiB, all holes", lambda f: (table_of()(f), holes("labels.csv", 2**24 + 1)(f)),
    "found 16777217 bytes, expected at most 16777216", kept=False)
labels("empty", "no bytes", write("labels.csv", b""), NO_CSV)
labels("not-utf-8", "a byte that is not UTF-8", write("labels.csv", b"file,new\n\xff.png,1\n"), NO_CSV)
labels("utf-16", "UTF-16", write("labels.csv", b"\xff\xfe" + "file,new\n".encode("utf-16-le")), NO_CSV)
labels("long", "a value of 200,000 letters", table_of("x" * 200_000 + ",1"), NO_CSV, kept=False)
labels("zero", "a byte of zero", table_of("\0"), "row 2: found 1 values, expected 2")
labels("one-kind", "no image without the attribute", table_of("face.png,1"),
    "new: found 1 images with the attribute and 0 without")
labels("unlabelled", "no image with a label", table_of("face.png,"),
    "new: found 0 images with the attribute and 0 without")
labels("elsewhere", "no image of the folder", table_of("../face.png,1"), "none of its 1 files is in")
labels("escape", "a name, twice, that would steer a terminal", table_of("\x1b[2J,1", "\x1b[2J,0"),
    "row 3: '\\x1b[2J' is in an earlier row")
made("fit-picture", "a picture among the examples is a text",
    lambda f: (copies("a.png", "b.png")(f), write("c.png", b"hello\n")(f)), FIT, 4, "c.png: " + NO_IMAGE)
made("fit-pipe", "a pipe among the examples",
    lambda f: (copies("a.png", "b.png")(f), os.mkfifo(f / "c.png")), FIT, 4, "c.png: not a file", kept=False)
made("fit-one", "too few examples", copies("a.png"), FIT, 2, "new: found 1 images with the attribute and 1 without")
added("text", "a text", write("new.safetensors", b"hello\n"), 3, "new.safetensors: " + NO_TENSORS)
added("pickle", "a pickle that would run a command", write("new.safetensors", PICKLED), 3, NO_TENSORS)
added("code", "a PyTorch file whose pickle runs a command",
    write("new_ngen40.pth", archive(data__pkl=PICKLED, version=b"3\n")), 6, "new_ngen40.pth: ", CODE,
    file="new_ngen40.pth")
added("nan", "a weight of NaN", write("new.safetensors", tensors(**{**DIRECTION, "weight": nan(floats(D))})), 3,
    "new: weight: has values that are not finite")
added("shape", "a direction for a longer z_sem",
    write("new.safetensors", tensors(**{**DIRECTION, "weight": floats(7)})), 3,
    "weight: found float32 [7], expected float32 [6]")
added("latent", "a latent", write("new.safetensors", tensors(FORMAT, **LATENT)), 3, "expected an attribute")
added("pipe", "a pipe", lambda f: os.mkfifo(f / "new.safetensors"), 3, "new.safetensors: not a file", kept=False)
added("branch", "a direction that is to have a branch", write("new.safetensors", tensors(**DIRECTION)), 2,
    "--branch: a z_direction has but one", options="--branch symmetric", kept=False)
made("average-picture", "a picture is a text", write("face.png", b"hello\n"), AVERAGE, 4, "face.png: " + NO_IMAGE)
made("average-unknown", "a block that is not there", copies("face.png"), AVERAGE.replace("block", "blcok"), 2,
    "BLOCK: the bundle has no attribute 'blcok'; did you mean block?", kept=False)
made("average-kind", "a direction, which is no block", copies("face.png"), AVERAGE.replace("block", "smile"), 2,
    "smile: expected a delta_block of the bundle, one of: block", kept=False)
made("pca-picture", "a picture is cut in its pixels",
    lambda f: (copies("a.png", "b.png")(f), write("c.png", FACE[:-60])(f)), COMPONENTS + " --images {case}", 4,
    "c.png: " + NO_IMAGE)
made("pca-count", "10^9 components", nothing, COMPONENTS.replace("--count 1", f"--count {10**9}"), 2,
    "--count: found 1000000000, expected", kept=False)
made("pca-bundle", "pictures among the bundle's files", nothing, COMPONENTS + " -o {bundle}/new", 7,
    "the output is inside a bundle", kept=False)
made("calibrate-picture", "a picture is a text", write("face.png", b"hello\n"), CALIBRATE.replace("{face}", "{case}"),
    4, "face.png: " + NO_IMAGE)
made("calibrate-lpips-garbage", "an LPIPS that is a text", write("lpips.onnx", b"this is no graph\n"), LPIPS, 3,
    "lpips.onnx: " + NO_GRAPH)
made("calibrate-lpips-external", "an LPIPS with data outside the file",
    write("lpips.onnx", model(field(5, field(14, 1) + location))), LPIPS, 3, "lpips.onnx: " + OUTSIDE)
made("calibrate-lpips-other", "a graph that is no LPIPS", write("lpips.onnx", model(IDENTITY)), LPIPS, 3,
    "lpips.onnx: operator sets: found 'ai.onnx' 17, expected ai.onnx 18")
made("calibrate-lpips-pipe", "a pipe", lambda f: os.mkfifo(f / "lpips.onnx"), LPIPS, 5, "lpips.onnx: not a file",
    kept=False)
# fmt: on

# --- arguments ----------------------------------------------------------------------------------------


def argument(name: str, wrong: str, options: str, *says: str, code: int = 2, command: str = "edit {face}") -> None:
    full = f"{command} -b {{bundle}} --engine null -o {{out}}/x.png {options}".strip()
    CASES.append(Case(f"argument-{name}", wrong, nothing, full, code, says, kept=False))


# fmt: off
argument("strength-nan", "a strength of NaN", "--set smile=nan", "smile: found strength nan, expected a number")
argument("strength-inf", "a strength of infinity", "--set smile=-inf", "smile: found strength -inf, expected")
argument("strength-1e39", "a strength beyond float32", "--set smile=1e39",
    "smile: found strength 1e+39, expected a number that")
argument("strength-none", "no strength", "--set smile", "found 'smile', expected NAME=NUMBER")
argument("strength-empty", "an empty strength", "--set smile=", "found 'smile=', expected NAME=NUMBER")
argument("strength-word", "a word for a strength", "--set smile=very", "found 'smile=very', expected NAME=NUMBER")
argument("strength-huge", "a strength that overflows", "--set smile=3e38",
    "edits: found strength 3e+38, expected one with which z_sem stays finite")
argument("strength-huge-block", "a strength that overflows in a block", "--set block=3e38", NOT_FINITE, code=5)
argument("attribute-unknown", "an attribute that is not there", "--set smiel=1", "no attribute 'smiel'",
    "did you mean smile?")
argument("attribute-like-none", "an attribute like no other", "--set qqqq=1", "'qqqq'; it has smile, block, table")
argument("attribute-twice", "an attribute given twice", "--set smile=1 --set smile=2", "an attribute is named twice")
argument("attribute-mixed", "attributes of two branches", "--set block=1 --set table=1", "do not mix in one edit")
argument("steps-0", "no steps", "--steps 0", "steps: found 0, expected a whole number from 1 to 1000")
argument("steps-negative", "-1 steps", "--steps -1", "steps: found -1, expected a whole number from 1 to 1000")
argument("steps-1001", "1001 steps", "--steps 1001", "steps: found 1001, expected a whole number from 1 to 1000")
argument("steps-half", "2.5 steps", "--steps 2.5", "'2.5'")
argument("encode-steps-0", "no steps of the encode", "--encode-steps 0", "steps: found 0, expected a whole number")
argument("seed-negative", "a seed of -1", "--seed -1", "seed: found -1, expected a whole number from 0 to 2^64 - 1")
argument("seed-2-64", "a seed of 2^64", f"--seed {2**64}", "seed: found 18446744073709551616, expected")
argument("t-edit-negative", "a timestep of -1", "--t-edit -1", "t_edit: found -1, expected a timestep")
argument("t-boost-negative", "a timestep of -1", "--t-boost -1", "t_boost: found -1, expected a timestep")
argument("preset-unknown", "a preset that is not there", "--preset fast",
    "preset: found 'fast', expected one of official")
argument("sampler-unknown", "an unknown sampler", "--sampler euler",
    "sampler: found 'euler', expected one of ddim, ddpm")
argument("engine-unknown", "an unknown engine", "--engine torch",
    "engine: found 'torch', expected auto, openvino, onnx, null", code=5)
argument("threads-0", "no threads", "--threads 0", "threads: found 0, expected a whole number from 1 to 1024")
argument("batch-size-0", "batches of nothing", "--batch-size 0", "batch_size: found 0, expected a whole number from 1")
argument("count-0", "no images", "", "count: found 0, expected a whole number", command="sample 0")
argument("count-huge", "10^12 images", "", "count: found 1000000000000, expected", command=f"sample {10**12}")
argument("frames-1", "one frame between two images", "--frames 1", "frames: found 1, expected",
    command="interpolate {face} {face}")
argument("sweep-nan", "a sweep to NaN", "--over smile=0:nan:3", "expected NAME=FROM:TO:COUNT", command="sweep {face}")
argument("sweep-count", "a sweep of 10^12 strengths", f"--over smile=0:1:{10**12}", "expected NAME=FROM:TO:COUNT",
    command="sweep {face}")
argument("sweep-unknown", "a sweep of what is not there", "--over smiel=0:1:3", "no attribute 'smiel'",
    "did you mean smile?", command="sweep {face}")
argument("timeline-frames", "a timeline of nothing", "--frames 0", "found 0, expected a whole number",
    command="timeline {face}")
argument("inject-strength", "a strength beyond 1 of an injection", "--strength 2",
    "found strength 2.0, expected a number from 0 to 1", command="inject {face} {face}")
argument("inject-nan", "a strength of NaN of an injection", "--strength nan", "found strength nan, expected",
    command="inject {face} {face}")
argument("option-unknown", "an unknown option", "--sudo", "--sudo")
# fmt: on

# --- outputs ------------------------------------------------------------------------------------------


def output(name: str, wrong: str, target: str, *says: str, make: Maker = nothing, **rest: Any) -> None:
    """What `hspace edit`, unless another command is given, is to write to `target`."""
    command = rest.pop("command", "edit {face} -b {bundle} --engine null -o")
    code = rest.pop("code", 7)
    CASES.append(Case(f"output-{name}", wrong, make, f"{command} {target}", code, says, kept=False, **rest))


def linked(kind: Callable[[Path, Path], object]) -> Maker:
    """Makes a picture, and another name for it."""
    return lambda folder: (copies("face.png")(folder), kind(folder / "face.png", folder / "link.png"))


SAME, INSIDE = "the output is an input", "the output is inside a bundle"
OWN = "edit {case}/face.png -b {bundle} --engine null --force -o"
PROGRAM = "info {bundle} --program encode --steps 2 --force --save"
STRIP = "interpolate {face} {face} -b {bundle} --engine null --frames 99 --steps 1 -o"
# fmt: off
output("device", "a folder below a device", "/dev/null/x.png", "there is no folder /dev/null")
output("proc", "a folder that takes no files", "/proc/x.png", "/proc/x.png: cannot be written")
output("below-file", "a folder below a file", "{case}/face.png/deeper", "cannot be made", make=copies("face.png"))
output("no-folder", "a folder that is not there", "{out}/no/x.png", "there is no folder")
output("is-device", "a device", "/dev/full", "/dev/full: a file, expected a folder")
output("exists", "a file that exists", "{case}/old.png", "exists and says nothing", make=copies("old.png"))
output("program-exists", "a program where a file exists", "{case}/old.png", "exists already (--force",
    make=copies("old.png"), command=PROGRAM.replace("--force ", ""))
output("program-folder", "a program in a folder's place", "{out}", "cannot be written", command=PROGRAM)
output("program-manifest", "a program in the place of the bundle's manifest", "{bundle}/bundle.json", INSIDE,
    command=PROGRAM)
output("bundle-file", "a latent in the place of a bundle's file", "{bundle}/smile.safetensors", INSIDE,
    command="encode {face} -b {bundle} --engine null --force -o")
output("into-bundle", "a picture among the bundle's files", "{bundle}/x.png", "x.png: " + INSIDE)
output("below-bundle", "a picture in a folder of the bundle's", "{bundle}/new", INSIDE)
output("scores-bundle", "scores among the bundle's files", "{bundle}/x.csv", INSIDE,
    command="classify {face} -b {bundle} --engine null -o")
output("input", "the input, with --force", "{case}/face.png", SAME, make=copies("face.png"), command=OWN)
output("input-folder", "the inputs' own folder, with --force", "{case}", SAME, make=copies("face.png"), command=OWN)
output("input-link", "a link to the input, with --force", "{case}/link.png", SAME,
    make=linked(lambda a, b: b.symlink_to(a)), command=OWN)
output("input-hard-link", "a hard link to the input", "{case}/link.png", "link.png: ",
    make=linked(lambda a, b: b.hardlink_to(a)), command=OWN.replace("--force ", ""))
output("input-hard-link-force", "a hard link to the input, with --force", "{case}/link.png", SAME,
    make=linked(lambda a, b: b.hardlink_to(a)), command=OWN)
output("link-dangling", "a link to nowhere", "{case}/x.png", "x.png: exists and says nothing",
    make=lambda f: (f / "x.png").symlink_to("nowhere"))
output("link-loop", "a link to itself", "{case}/x.png", "x.png: ", make=lambda f: (f / "x.png").symlink_to("x.png"))
output("link-loop-force", "a link to itself, with --force", "{case}/x.png", "cannot be written: Too many levels",
    make=lambda f: (f / "x.png").symlink_to("x.png"), command="edit {face} -b {bundle} --engine null --force -o")
output("link-device", "a link to a device, with --force", "{case}/x.png", "cannot be written: not a file",
    make=lambda f: (f / "x.png").symlink_to("/dev/null"), command="edit {face} -b {bundle} --engine null --force -o")
output("program-device", "a program in a device's place", "/dev/full", "/dev/full: cannot be written: not a file",
    command=PROGRAM)
output("long-name", "a name longer than any file system takes", "{out}/" + "x" * 5000 + ".png",
    "xxx.png: cannot be written: File name too long")
output("suffix-read-only", "a format that is read but not written", "{out}/x.gif",
    "found the suffix '.gif', expected one of .png", code=2)
output("suffix-unknown", "a film", "{out}/x.mp4", "x.mp4: found the suffix '.mp4', expected one of .png", code=2)
output("suffix-latent", "a latent's suffix for an image", "{out}/x.safetensors",
    "found the suffix '.safetensors', expected one of .png", code=2)
output("suffix-image", "an image's suffix for a latent", "{out}/x.png",
    "found the suffix '.png', expected one of .safetensors", code=2,
    command="encode {face} -b {bundle} --engine null -o")
output("clash", "two inputs that would become one output", "{out}", "would both become",
    make=copies("face.png", "face.bmp"), code=2,
    command="edit {case}/face.png {case}/face.bmp -b {bundle} --engine null -o")
output("one-for-two", "one file for two inputs", "{out}/x.png", "found 2 inputs for one file",
    make=copies("a.png", "b.png"), code=2, command="edit {case} -b {bundle} --engine null -o")
output("full-disk", "a disk that is full", "{out}/x.png", "x.png: cannot be written: No space left on device",
    under="a full disk")
output("full-disk-replaces", "a disk that is full, under a file that exists", "{case}/old.png",
    "cannot be written: No space", make=copies("old.png"), command="edit {face} -b {bundle} --engine null --force -o",
    under="a full disk")
output("full-disk-folder", "a disk that is full, under a folder to be made", "{out}/new", "cannot be written: No space",
    under="a full disk")
output("full-disk-program", "a program on a disk that is full", "{out}/p.json", "p.json: cannot be written: No space",
    command=PROGRAM, under="a full disk")
output("too-large", "a file larger than the machine allows", "{out}/strip.bmp",
    "strip.bmp: cannot be written: File too large", command=STRIP, under="small files")
output("too-wide", "a sheet wider than its format can hold", "{out}/strip.webp", "strip.webp: the sheet would have",
    code=2, command=STRIP.replace("99", "2100"))
# fmt: on


def make_all(folder: Path, cases: list[Case]) -> None:
    """Writes the files of `cases`, a folder for each that has any."""
    for case in cases:
        (folder / case.name).mkdir(parents=True)
        case.make(folder / case.name)
        if not any((folder / case.name).iterdir()):
            (folder / case.name).rmdir()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("python -m tests.hostile.corpus FOLDER")
    make_all(Path(sys.argv[1]), CASES)
    print(f"{len(CASES)} cases, {sum(case.kept for case in CASES)} of them kept in {FILES}")
