"""Reading `bundle.json`: what is refused, all faults reported together."""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Annotated, Any

import msgspec
import numpy as np

from .catalog import SAMPLERS
from .checks import quoted, raise_faults
from .errors import ArgumentError, BundleError
from .files import LOCK
from .kinds import KINDS
from .manifest import FORMAT_MINOR, FORMAT_VERSION, JOURNAL, MANIFEST, Frozen, Manifest
from .schedule import SPACINGS, check_timestep, space_timesteps

MAX_VALUES = 2**19  # of all kinds, by the commas between them
MAX_CONFIG = 2**18  # characters of the provenance's `config` as JSON
MAX_ELEMENTS = 2**31  # of an input or output, for one sample


def parse_manifest(data: bytes, where: str) -> Manifest:
    """The manifest in `data`, or one BundleError with all of its faults."""
    faults: list[str] = []
    if (commas := data.count(b",")) > MAX_VALUES:  # before what may take long
        raise BundleError(f"{where}: found {commas} commas, expected at most {MAX_VALUES}")
    try:
        text = data.decode()  # in UTF-8, without a byte order mark: json would take more from bytes
        raw = json.loads(
            text, object_pairs_hook=_object(faults), parse_constant=_constant(faults), parse_float=_float(faults)
        )
        json.dumps(raw, ensure_ascii=False).encode()  # half a surrogate pair parses, but is no text
    except (ValueError, RecursionError):
        raise BundleError(f"{where}: expected JSON") from None
    if isinstance(raw, dict):
        for key, known in (("format_version", FORMAT_VERSION), ("format_minor", FORMAT_MINOR)):
            if isinstance(raw.get(key), int) and raw[key] > known:  # it may have keys that this reader cannot know
                newer = quoted(raw[key])
                raise BundleError(f"{where}: {key}: found {newer}, expected {known}: a newer hspace wrote this bundle")
    manifest = _convert(raw, Manifest, "", faults)
    if not faults:
        faults += [*_listing_faults(manifest), *_signature_faults(manifest), *_run_faults(manifest)]
    raise_faults(BundleError, where, faults)
    return typing.cast(Manifest, manifest)


def _object(faults: list[str]) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for key, value in pairs:
            if key in entries:
                faults.append(f"{key[:100]!r}: the key stands twice")
            entries[key] = value
        return entries

    return build


def _constant(faults: list[str]) -> Any:
    def refuse(name: str) -> float:
        faults.append(f"{name}: found a number that JSON does not have")
        return 0.0

    return refuse


def _float(faults: list[str]) -> Any:
    def convert(text: str) -> float:
        value = float(text)
        if math.isinf(value):
            faults.append(f"{text[:50]}: found a number that float64 cannot hold")
        return value

    return convert


def _convert(raw: Any, kind: Any, path: str, faults: list[str]) -> Any:
    """`raw` as `kind`, descending into structs and mappings so that one fault does not hide the others."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType) and type(None) in typing.get_args(kind):
        rest = [k for k in typing.get_args(kind) if k is not type(None)]
        if raw is None:
            return None
        if len(rest) == 1:
            return _convert(raw, rest[0], path, faults)
    if isinstance(raw, dict) and origin is Annotated and typing.get_origin(typing.get_args(kind)[0]) is dict:
        kind, limit = typing.get_args(kind)
        origin = dict
        if len(raw) > limit.max_length:
            faults.append(f"{path}: found {len(raw)} entries, expected at most {limit.max_length}")
            return None
    if isinstance(raw, dict) and origin is dict:
        key_type, value_type = typing.get_args(kind)
        converted = {}
        for key, value in raw.items():
            _convert(key, key_type, _join(path, key), faults)
            converted[key] = _convert(value, value_type, _join(path, key), faults)
        return converted
    if isinstance(raw, dict) and isinstance(kind, type) and issubclass(kind, Frozen) and not kind.__struct_config__.tag:
        return _convert_struct(raw, kind, path, faults)
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as e:
        reason, _, at = str(e).rpartition(" - at `$")  # where inside `raw` it is
        reason, at = (reason, at.rstrip("`")) if reason else (at, "")
        faults.append(f"{path or 'the manifest'}{at[:100]}: {reason[0].lower()}{reason[1:]}")
        return None


_fields = functools.cache(msgspec.structs.fields)  # which evaluates a struct's annotations each time


def _convert_struct(raw: dict[str, Any], kind: type[Frozen], path: str, faults: list[str]) -> Any:
    before = len(faults)
    fields = {f.encode_name: f for f in _fields(kind)}
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


def is_plain(file: str) -> bool:
    """Whether a path stays in the bundle, however an operating system reads it."""
    path = PurePosixPath(file)
    plain = str(path) == file and not path.is_absolute() and not {"..", "."} & {*path.parts, file}
    return plain and "\\" not in file and ":" not in file and file.isprintable()


def _listing_faults(m: Manifest) -> Iterator[str]:
    """Paths, and names that refer to other entries."""
    seen: dict[str, str] = {}
    for key, entry in m.files():
        if not is_plain(entry.file):
            yield f"{key}.file: found {entry.file!r}, expected a plain relative path inside the bundle"
        elif entry.file == MANIFEST:
            yield f"{key}.file: found {MANIFEST!r}, which is the manifest's own name"
        elif entry.file in (JOURNAL, LOCK):
            yield f"{key}.file: found {entry.file!r}, which is a name of what amends the bundle"
        elif entry.file in seen:
            yield f"{key}.file: found {entry.file!r}, which {seen[entry.file]} has already"
        seen[entry.file] = key
    if (size := len(json.dumps(m.provenance.config))) > MAX_CONFIG:
        yield f"provenance.config: found {size} characters of JSON, expected at most {MAX_CONFIG}"
    if m.default_preset not in m.presets:
        yield f"default_preset: found {m.default_preset!r}, expected one of the presets"
    if "checkpoint" not in m.provenance.sources:
        yield "provenance.sources.checkpoint: the key is missing"
    if (m.z_sem is not None) != (m.family == "diffae"):
        yield f"z_sem: a bundle of family {m.family} {'needs it' if m.z_sem is None else 'has none'}"
    if m.schedules.latent is not None and (m.z_sem is None or m.z_sem.statistics is None):
        yield "z_sem.statistics: the latent DDIM needs them"


def _signature_faults(m: Manifest) -> Iterator[str]:
    """Components: which there must be, and the inputs and outputs that executors count on."""
    needed = {"trunk", "head"} | ({"encoder"} if m.family == "diffae" else set())
    if m.schedules.latent is not None:
        needed.add("latent")
    yield from (f"components.{n}: a bundle of family {m.family} needs it" for n in sorted(needed - set(m.components)))
    yield from (f"components.{n}: not a component of this bundle" for n in sorted(set(m.components) - needed))
    if needed != set(m.components):
        return
    x: Shape = ("N", 3, m.image.size, m.image.size)
    z: dict[str, Shape] = {} if m.z_sem is None else {"z_sem": ("N", m.z_sem.size)}
    trunk: dict[str, Shape] = {t.name: tuple(t.shape) for t in m.components["trunk"].outputs}
    skips = {f"skip_{i}": trunk.get(f"skip_{i}", ("?",)) for i in range(len(trunk) - 2)}
    h, temb = trunk.get("h", ("?",)), trunk.get("temb", ("?",))
    expected: dict[str, tuple[dict[str, Shape], dict[str, Shape]]] = {
        "trunk": ({"x": x, "t": ("N",), **z}, {"h": h, "temb": temb, **skips}),
        "head": ({"h": ("M", *h[1:]), "temb": temb, "source": ("M",), **skips, **z}, {"eps": ("M", *x[1:])}),
        "encoder": ({"x": x}, z),
        "latent": ({**z, "t": ("N",)}, {"eps": z.get("z_sem", ())}),
    }
    for name, shape, rank in (("h", h, 4), ("temb", temb, 2), *((k, s, 4) for k, s in skips.items())):
        if len(shape) != rank or shape[0] != "N" or not all(isinstance(d, int) and d > 0 for d in shape[1:]):
            yield f"components.trunk.outputs: {name}: found {list(shape)}, expected {rank} dimensions, the first N"
    for name, (inputs, outputs) in ((n, expected[n]) for n in m.components):
        for kind, declared, wanted in (
            ("inputs", m.components[name].inputs, inputs),
            ("outputs", m.components[name].outputs, outputs),
        ):
            shapes: dict[str, Shape] = {t.name: tuple(t.shape) for t in declared}
            if shapes != wanted or len(declared) != len(wanted):
                yield f"components.{name}.{kind}: found {_shapes(shapes)}, expected {_shapes(wanted)}"
            for t in declared:
                dtype = _dtype(name, t.name, m.components[name].precision)
                if t.dtype != dtype:
                    yield f"components.{name}.{kind}: {t.name}: found {t.dtype}, expected {dtype}"
                numbers = math.prod(d for d in t.shape[:4] if isinstance(d, int))  # no tensor has more dimensions
                if numbers > MAX_ELEMENTS:
                    most = f"expected at most {MAX_ELEMENTS}"
                    yield f"components.{name}.{kind}: {t.name}: found {numbers} numbers, {most}"


def _dtype(component: str, tensor: str, precision: str) -> str:
    """Of an input or output: whole numbers for t and source; states and codes in float32, the rest in the precision."""
    if tensor in ("t", "source"):
        return "int32" if tensor == "t" else "int64"
    in_float32 = tensor == "z_sem" or component in ("encoder", "latent")
    return "float16" if precision == "fp16" and not in_float32 else "float32"


Shape = tuple[int | str, ...]


def _shapes(named: dict[str, Shape]) -> str:
    return ", ".join(f"{n} [{', '.join(map(str, s))}]" for n, s in named.items())[:500]


def _run_faults(m: Manifest) -> Iterator[str]:
    """Attributes, schedules and presets that could not run."""
    for name, a in m.attributes.items():
        kind = KINDS[a.kind]
        if a.branch not in kind.branches:
            allowed = " or ".join(sorted(kind.branches))
            yield f"attributes.{name}.branch: found {a.branch}, expected {allowed} for a {a.kind}"
        if kind.moves_z_sem and m.family != "diffae":
            yield f"attributes.{name}.kind: a bundle of family {m.family} has no z_sem to move"
    built: dict[str, Any] = {}
    for name, schedule in (("image", m.schedules.image), ("latent", m.schedules.latent)):
        try:
            with np.errstate(all="ignore"):  # what overflows, build refuses
                built[name] = None if schedule is None else schedule.build()
        except ArgumentError as e:
            yield f"schedules.{name}: {e}"

    @functools.cache  # a schedule may have a million timesteps, and presets differ in little
    def fault(of: str, spacing: str, steps: int) -> str:
        try:
            space_timesteps(spacing, steps, built[of])
        except ArgumentError as e:
            return str(e).removeprefix("steps: ")
        return ""

    for name, p in m.presets.items():
        for key, steps, spacing, of in (
            ("encode_steps", p.encode_steps, p.spacing, "image"),
            ("decode_steps", p.decode_steps, p.spacing, "image"),
            ("latent_steps", p.decode_steps if p.latent_steps is None else p.latent_steps, "diffae", "latent"),
        ):
            if built.get(of) is not None and fault(of, spacing, steps):
                yield f"presets.{name}.{key}: {fault(of, spacing, steps)}"
        if p.encode_steps == 1 and (not SPACINGS[p.spacing].to_noise or SAMPLERS[p.sampler].exact):
            yield f"presets.{name}.encode_steps: found 1, expected at least 2: an encode runs between timesteps"
        if image := built.get("image"):
            for key, t in (("t_edit", p.t_edit), ("t_boost", p.t_boost)):
                try:
                    check_timestep(key, t, image)
                except ArgumentError as e:
                    yield f"presets.{name}.{e}"
