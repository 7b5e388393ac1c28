"""The bundle: a folder with everything that a run needs, and `bundle.json`, its contract.

Every fault of a manifest is reported together, and every file is checked by its SHA-256 before anything
parses it. A bundle holds no code but ONNX graphs, and no file that its manifest does not list.
"""

from __future__ import annotations

import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .errors import ArgumentError, BundleError
from .files import write_atomically
from .onnx_scan import check_onnx
from .schedule import SPACINGS, Schedule

FORMAT_VERSION = 1
MANIFEST = "bundle.json"
MAX_FILE_BYTES = 2**31 - 1  # protobuf's limit, hence ONNX's without external data
MAX_MANIFEST_BYTES = 2**24

Name = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f/\\=,]{1,100}$", description="printable, without / \\ = or ,")]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Steps = Annotated[int, Meta(ge=1, le=1000)]
Timestep = Annotated[int, Meta(ge=0, le=1_000_000)]
DType = Literal["float32", "float16", "int32", "int64"]


class Frozen(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest's structs: immutable, unknown keys refused."""


class LinearSchedule(Frozen, frozen=True, tag_field="kind", tag="linear"):
    """β from beta_start to beta_end in equal steps."""

    timesteps: Annotated[int, Meta(ge=2, le=1_000_000)] = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02

    def build(self) -> Schedule:
        return Schedule.linear(self.timesteps, self.beta_start, self.beta_end)


class ConstSchedule(Frozen, frozen=True, tag_field="kind", tag="const"):
    """The same β at every timestep."""

    timesteps: Annotated[int, Meta(ge=2, le=1_000_000)] = 1000
    beta: float = 0.008

    def build(self) -> Schedule:
        return Schedule.const(self.beta, self.timesteps)


class CosineSchedule(Frozen, frozen=True, tag_field="kind", tag="cosine"):
    """Nichol and Dhariwal's cosine schedule."""

    timesteps: Annotated[int, Meta(ge=2, le=1_000_000)] = 1000

    def build(self) -> Schedule:
        return Schedule.cosine(self.timesteps)


class ArraySchedule(Frozen, frozen=True, tag_field="kind", tag="betas"):
    """β given one by one."""

    betas: Annotated[list[float], Meta(min_length=2, max_length=1_000_000)]

    def build(self) -> Schedule:
        return Schedule.from_betas(self.betas)


AnySchedule = LinearSchedule | ConstSchedule | CosineSchedule | ArraySchedule


class Schedules(Frozen, frozen=True):
    """`image`: of the U-Net. `latent`: of the latent DDIM over z_sem, where there is one."""

    image: AnySchedule
    latent: AnySchedule | None = None


class Image(Frozen, frozen=True):
    """Images are square: size × size pixels, RGB."""

    size: Annotated[int, Meta(ge=8, le=4096)]
    channels: Literal[3] = 3


class File(Frozen, frozen=True):
    """A file of the bundle: a relative path with forward slashes, its size in bytes and its SHA-256."""

    file: Annotated[str, Meta(min_length=1, max_length=200)]
    bytes: Annotated[int, Meta(ge=1, le=MAX_FILE_BYTES)]
    sha256: Sha256


class ZSem(Frozen, frozen=True):
    """The semantic code: its length D, and a safetensors file with its `mean` and `std` (float32 [D]) where known."""

    size: Annotated[int, Meta(ge=1, le=65536)]
    statistics: File | None = None


class Tensor(Frozen, frozen=True):
    """An input or output. Dimensions are numbers, or "N" (trunk samples) or "M" (head samples)."""

    name: Annotated[str, Meta(min_length=1, max_length=100)]
    dtype: DType
    shape: list[int | Literal["N", "M"]]


class Component(File, frozen=True, kw_only=True):
    """An ONNX graph. precision: its arithmetic; weights: how its large weights are stored."""

    inputs: list[Tensor]
    outputs: list[Tensor]
    precision: Literal["fp32", "fp16"]
    weights: Literal["fp32", "fp16"]


class Attribute(File, frozen=True, kw_only=True):
    """A named edit, as data in a safetensors file. n_train: the step count that a delta was trained at (Asyrp's
    scale for other step counts is n_train/n_run); None where no such scale applies.
    """

    kind: Literal["z_direction", "delta_block", "delta_h"]
    branch: Literal["none", "asymmetric", "symmetric"]
    n_train: Steps | None = None


class Preset(Frozen, frozen=True, kw_only=True):
    """How to run: what calls take where they are not told otherwise."""

    encode_steps: Steps
    decode_steps: Steps
    latent_steps: Steps | None = None
    sampler: Literal["ddim", "ddpm"] = "ddim"
    spacing: Literal[tuple(SPACINGS)]  # type: ignore[valid-type]
    clip: bool
    t_edit: Timestep = 0
    t_boost: Timestep = 0


class Provenance(Frozen, frozen=True, kw_only=True):
    """Where the weights came from."""

    checkpoint_sha256: Sha256
    exporter: str
    sources: dict[str, Sha256] = {}
    config: dict[str, Any] = {}


class Manifest(Frozen, frozen=True, kw_only=True):
    """`bundle.json`."""

    format_version: Literal[1]
    name: Name
    family: Literal["diffae", "asyrp"]
    image: Image
    z_sem: ZSem | None = None
    schedules: Schedules
    components: dict[Name, Component]
    attributes: dict[Name, Attribute] = {}
    presets: dict[Name, Preset]
    default_preset: Name
    provenance: Provenance
    licence: str

    def files(self) -> Iterator[tuple[str, File]]:
        """Every file that the bundle has beside the manifest, with the key that names it."""
        for kind, group in (("components", self.components), ("attributes", self.attributes)):
            for name, entry in typing.cast("dict[str, File]", group).items():
                yield f"{kind}.{name}", entry
        if self.z_sem is not None and self.z_sem.statistics is not None:
            yield "z_sem.statistics", self.z_sem.statistics


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `bundle.json`."""
    return msgspec.json.schema(Manifest)


# --- reading a manifest ------------------------------------------------------------------------------


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, or one BundleError with all of its faults, a line each."""
    faults: list[str] = []
    try:
        raw = json.loads(data, object_pairs_hook=_object(faults), parse_constant=_constant(faults))
    except (ValueError, RecursionError):
        raise BundleError(f"{where}: expected JSON") from None
    if isinstance(raw, dict) and isinstance(raw.get("format_version"), int) and raw["format_version"] > FORMAT_VERSION:
        raise BundleError(
            f"{where}: format_version: found {raw['format_version']}, expected {FORMAT_VERSION}: "
            "a newer hspace wrote this bundle"
        )
    manifest = _convert(raw, Manifest, "", faults)
    if not faults:
        faults += _faults(manifest)
    if faults:
        raise BundleError(f"{where}: " + ("\n  " if len(faults) > 1 else "") + "\n  ".join(faults))
    return typing.cast(Manifest, manifest)


def _object(faults: list[str]) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                faults.append(f"{key[:100]!r}: the key stands twice")
            found[key] = value
        return found

    return build


def _constant(faults: list[str]) -> Any:
    def refuse(name: str) -> float:
        faults.append(f"{name}: found a number that JSON does not have")
        return 0.0

    return refuse


def _convert(raw: Any, kind: Any, path: str, faults: list[str]) -> Any:
    """`raw` as `kind`, descending into structs and mappings so that one fault does not hide the others."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType) and type(None) in typing.get_args(kind):
        rest = [k for k in typing.get_args(kind) if k is not type(None)]
        if raw is None:
            return None
        if len(rest) == 1:
            return _convert(raw, rest[0], path, faults)
    if isinstance(raw, dict) and origin is dict:
        key_type, value_type = typing.get_args(kind)
        found = {}
        for key, value in raw.items():
            _convert(key, key_type, _join(path, key), faults)
            found[key] = _convert(value, value_type, _join(path, key), faults)
        return found
    if isinstance(raw, dict) and isinstance(kind, type) and issubclass(kind, Frozen) and not kind.__struct_config__.tag:
        return _convert_struct(raw, kind, path, faults)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as e:
        faults.append(f"{path or 'the manifest'}: {_reason(e)}")
        return None


def _convert_struct(raw: dict[str, Any], kind: type[Frozen], path: str, faults: list[str]) -> Any:
    before = len(faults)
    fields = {f.encode_name: f for f in msgspec.structs.fields(kind)}
    faults += [f"{_join(path, key)}: the key is unknown" for key in raw if key not in fields]
    values = {}
    for key, field in fields.items():
        if key in raw:
            values[field.name] = _convert(raw[key], field.type, _join(path, key), faults)
        elif field.required:
            faults.append(f"{_join(path, key)}: the key is missing")
    return kind(**values) if len(faults) == before else None


def _join(path: str, key: str) -> str:
    return f"{path}.{key[:100]}" if path else key[:100]


def _reason(e: msgspec.ValidationError) -> str:
    text = str(e)
    return (text[0].lower() + text[1:]).split(" - at ")[0]


def _faults(m: Manifest) -> list[str]:
    """What the types cannot say."""
    faults = []
    seen: dict[str, str] = {}
    for key, entry in m.files():
        path = PurePosixPath(entry.file)
        if (
            path.is_absolute()
            or ".." in path.parts
            or "\\" in entry.file
            or str(path) != entry.file
            or ":" in entry.file
        ):
            faults.append(f"{key}.file: found {entry.file!r}, expected a plain relative path inside the bundle")
        elif entry.file == MANIFEST:
            faults.append(f"{key}.file: found {MANIFEST!r}, which is the manifest's own name")
        elif entry.file in seen:
            faults.append(f"{key}.file: found {entry.file!r}, which {seen[entry.file]} has already")
        seen[entry.file] = key
    needed = {"trunk", "head"} | ({"encoder"} if m.family == "diffae" else set())
    if m.schedules.latent is not None:
        needed.add("latent")
    faults += [
        f"components.{name}: a bundle of family {m.family} needs it" for name in sorted(needed - set(m.components))
    ]
    faults += [f"components.{name}: not a component" for name in sorted(set(m.components) - needed)]
    if (m.z_sem is not None) != (m.family == "diffae"):
        faults.append(f"z_sem: a bundle of family {m.family} {'needs it' if m.z_sem is None else 'has none'}")
    if "latent" in m.components and (m.z_sem is None or m.z_sem.statistics is None):
        faults.append("z_sem.statistics: the latent DDIM needs them")
    for name, a in m.attributes.items():
        allowed = {"z_direction": ("none",), "delta_block": ("asymmetric",), "delta_h": ("asymmetric", "symmetric")}[
            a.kind
        ]
        if a.branch not in allowed:
            faults.append(f"attributes.{name}.branch: found {a.branch}, expected {' or '.join(allowed)} for a {a.kind}")
        if a.kind == "z_direction" and m.family != "diffae":
            faults.append(f"attributes.{name}.kind: a bundle of family {m.family} has no z_sem to move")
    if m.default_preset not in m.presets:
        faults.append(f"default_preset: found {m.default_preset!r}, expected one of the presets")
    for name, schedule in (("image", m.schedules.image), ("latent", m.schedules.latent)):
        try:
            if schedule is not None:
                schedule.build()
        except ArgumentError as e:
            faults.append(f"schedules.{name}: {e}")
    return faults


# --- an opened bundle ---------------------------------------------------------------------------------


class Bundle:
    """An opened bundle: its folder, its manifest, and its files, each verified at the moment it is read."""

    def __init__(self, folder: str | Path) -> None:
        """Opens `folder`. Raises BundleError for a missing, unlisted or linked file or a faulty manifest.

        Sizes are checked here; contents when `read` is called, or all at once by `verify`.
        """
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        if not self.folder.is_dir() or not path.is_file() or path.is_symlink():
            raise BundleError(f"{self.folder}: expected a bundle: a folder with a {MANIFEST}")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"{path}: found {path.stat().st_size} bytes, expected at most {MAX_MANIFEST_BYTES}")
        self.manifest = parse_manifest(path.read_bytes(), str(path))
        self._check_listing()

    def _check_listing(self) -> None:
        listed = {entry.file: entry for _, entry in self.manifest.files()}
        present, faults = {}, []
        for p in sorted(self.folder.rglob("*")):
            if p.is_symlink():
                faults.append(f"{p.relative_to(self.folder).as_posix()}: a link, expected a plain file")
            elif not p.is_dir():
                present[p.relative_to(self.folder).as_posix()] = p
        faults += [f"{name}: missing" for name in sorted(set(listed) - set(present))]
        faults += [f"{name}: not listed in {MANIFEST}" for name in sorted(set(present) - set(listed) - {MANIFEST})]
        for name in sorted(set(listed) & set(present)):
            size = present[name].stat().st_size
            if size != listed[name].bytes:
                faults.append(f"{name}: found {size} bytes, expected {listed[name].bytes}")
        if faults:
            raise BundleError(f"{self.folder}: " + ("\n  " if len(faults) > 1 else "") + "\n  ".join(faults))

    def read(self, entry: File) -> bytes:
        """The contents of a listed file, checked against its SHA-256 before anyone parses them."""
        path = self.folder / entry.file
        try:
            data = path.read_bytes()
        except OSError as e:
            raise BundleError(f"{path}: cannot be read: {e.strerror}") from None
        found = hashlib.sha256(data).hexdigest()
        if found != entry.sha256:
            raise BundleError(f"{path}: altered: found SHA-256 {found}, expected {entry.sha256}")
        return data

    def read_component(self, name: str) -> bytes:
        """A component's ONNX graph, checked, and refused where it refers to anything outside its file."""
        entry = self.component(name)
        data = self.read(entry)
        check_onnx(data, str(self.folder / entry.file))
        return data

    def component(self, name: str) -> Component:
        """The manifest's entry for a component."""
        if name not in self.manifest.components:
            raise BundleError(f"{self.folder}: has no component {name!r}; it has {', '.join(self.manifest.components)}")
        return self.manifest.components[name]

    def preset(self, name: str | None = None) -> tuple[str, Preset]:
        """The preset of that name, or the default one, with its name."""
        name = self.manifest.default_preset if name is None else name
        if name not in self.manifest.presets:
            raise ArgumentError(f"preset: found {name!r}, expected one of {', '.join(self.manifest.presets)}")
        return name, self.manifest.presets[name]

    def verify(self) -> Iterator[tuple[str, int]]:
        """Checks every file's contents, one at a time; yields its path and size in bytes."""
        for key, entry in self.manifest.files():
            if key.startswith("components."):
                self.read_component(key.removeprefix("components."))
            else:
                self.read(entry)
            yield entry.file, entry.bytes


def h_shape(bundle: Bundle) -> tuple[int, int, int, int]:
    """(C, H, W) of h, and E, the length of temb, as the trunk declares them."""
    shapes = {o.name: o.shape for o in bundle.component("trunk").outputs}
    c, height, width = (int(d) for d in shapes["h"][1:])
    return c, height, width, int(shapes["temb"][1])


def file_entry(folder: Path, name: str) -> dict[str, Any]:
    """The `file`, `bytes` and `sha256` of a file in a bundle that is being written."""
    with open(folder / name, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        return {"file": name, "bytes": f.tell(), "sha256": digest}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Checks `manifest` as a reader would, then replaces `bundle.json` atomically."""
    data = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    parse_manifest(data, str(folder / MANIFEST))
    write_atomically(folder / MANIFEST, data)


def is_finite(value: float) -> bool:
    """Whether `value` is a number that is neither NaN nor infinite."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
