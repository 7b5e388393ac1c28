"""The template that every family goes through: load, validate, trace, write, reopen, compare, rename.

A family is one function that turns checkpoints into a `Model`; everything else is here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import hspace
import msgspec
import numpy as np
import torch
from hspace import manifest as contract
from hspace.attributes import read_attribute
from hspace.bundle import Bundle, file_entry, h_shape, write_manifest
from hspace.deltas import DeltaBlock
from hspace.engines import open_engine
from hspace.errors import ArgumentError, BundleError, CheckpointError, OutputError
from hspace.files import MAX_FILE_BYTES, reason
from hspace.kinds import BranchName
from hspace.manifest import check_name
from hspace.tensors import write_tensors
from msgspec import Meta, Struct
from numpy.typing import NDArray
from torch import nn

from . import graph
from .checkpoint import read_json, shown
from .graph import Part, Precision
from .replacement import put, staged, sweep

# the largest ‖a − b‖/‖b‖ to PyTorch's float32 network that an export may have
TOLERANCE: dict[str, float] = {"fp32": 1e-5, "fp16": 1e-2}


DiffusionSteps = Annotated[int, Meta(ge=2, le=1_000_000)]  # as a manifest's schedules have it
_STEPS = 1000  # that the published networks were trained with


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What weights cannot tell. Later sources win: a preset, hyper_parameters, --config, options."""

    image_size: Annotated[int, Meta(ge=8, le=4096)] | None = None
    num_heads: Annotated[int, Meta(ge=1, le=65536)] | None = None
    num_head_channels: Annotated[int, Meta(ge=1, le=65536)] | None = None
    enc_num_res_blocks: Annotated[int, Meta(ge=1, le=1000)] | None = None
    condition_bias: Annotated[float, Meta(ge=-1e6, le=1e6)] | None = None
    attention_order: Literal["legacy", "new"] | None = None
    schedule: str | None = None
    diffusion_steps: DiffusionSteps | None = None
    rescale_timesteps: bool | None = None
    latent_schedule: str | None = None
    latent_diffusion_steps: DiffusionSteps | None = None
    latent_rescale_timesteps: bool | None = None
    n_train: Annotated[int, Meta(ge=1, le=1000)] | None = None
    licence: str | None = None

    def over(self, other: Settings) -> Settings:
        """These settings, and the other's where these say nothing."""
        mine = {k: v for k, v in msgspec.structs.asdict(self).items() if v is not None}
        return msgspec.structs.replace(other, **mine)


def settings_of(values: Mapping[str, Any], where: str) -> Settings:
    """Settings from plain values, each checked; None says nothing."""
    said = {k: v for k, v in values.items() if v is not None}
    for field_ in msgspec.structs.fields(Settings):
        if field_.name in said:
            try:
                msgspec.json.encode(msgspec.convert(said[field_.name], field_.type))  # a text may be none in Unicode
            except (msgspec.ValidationError, UnicodeEncodeError, OverflowError) as e:
                wanted = str(e) if isinstance(e, msgspec.ValidationError) else "Expected plain text or a number"
                value = shown(said[field_.name])
                raise ArgumentError(f"{where}: {field_.name}: found {value}, e{wanted[1:]}") from None
    try:
        return msgspec.convert(said, Settings)
    except msgspec.ValidationError as e:
        raise ArgumentError(f"{where}: {e}") from None


def read_config(path: Path) -> Settings:
    """Settings from a JSON file; unknown keys are refused."""
    content = read_json(path, "settings")
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected an object of settings")
    return settings_of(content, str(path))


def schedule(text: str, timesteps: int = _STEPS, *, scaled: bool = True) -> contract.AnySchedule:
    """A schedule by the official codes' names: linear, cosine, const0.008.

    scaled: whether the β of linear and const are those for 1000 timesteps times 1000/timesteps, so that the last ᾱ
    stays about the same. Guided diffusion and DiffAE do that (`get_named_beta_schedule`), DDPM's code does not.
    """
    scale = _STEPS / timesteps if scaled else 1.0
    made: contract.AnySchedule | None = None
    if text == "linear":
        made = contract.LinearSchedule(timesteps=timesteps, beta_start=scale * 1e-4, beta_end=scale * 0.02)
    elif text == "cosine":
        made = contract.CosineSchedule(timesteps=timesteps)
    elif text.startswith("const"):
        with contextlib.suppress(ValueError):
            made = contract.ConstSchedule(timesteps=timesteps, beta=scale * float(text.removeprefix("const")))
    try:
        if made is not None:
            made.build()
            return made
    except ArgumentError as e:
        if timesteps != _STEPS:
            raise ArgumentError(f"schedule: {text} over {timesteps} timesteps: {e}") from None
    raise ArgumentError(f"schedule: found {shown(text)}, expected linear, cosine or const0.008 (any number)")


Family = Literal["diffae", "asyrp"]
# What a new bundle runs where a call does not say: the best for what it costs (docs/decisions/0018)
DEFAULT_PRESET: dict[Family, str] = {"diffae": "balanced", "asyrp": "asymmetric"}


def few_steps(family: Family, official: contract.Preset, schedule: contract.AnySchedule) -> dict[str, contract.Preset]:
    """The presets beside `official` that docs/quality.md is about: fast, balanced, exact and, for Asyrp's edits,
    asymmetric. None has more steps than the span of the U-Net's `schedule` has timesteps.
    """
    most = len(schedule.build().span)

    def run(sampler: str, steps: int) -> contract.Preset:
        n = min(steps, most)
        return msgspec.structs.replace(official, encode_steps=n, decode_steps=n, sampler=sampler, spacing="logsnr")

    made = {"fast": run("dpmpp_2m", 6), "balanced": run("dpmpp_2m", 10), "exact": run("bdia", 20)}
    return made if family == "diffae" else {**made, "asymmetric": run("dpmpp_2m", 40)}


@dataclass
class AttributeData:
    """An attribute before it is written. kind: a name in `KINDS`. module: the PyTorch f_t that a
    delta_block must agree with.
    """

    kind: str
    branch: BranchName
    arrays: Mapping[str, NDArray[np.float32]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    n_train: int | None = None
    module: nn.Module | None = None


@dataclass
class Model:
    """What a family's hook makes of its checkpoints."""

    family: Family
    image_size: int
    parts: dict[str, Part]
    schedules: contract.Schedules
    presets: dict[str, contract.Preset]
    config: dict[str, Any]
    sources: dict[str, contract.Source]  # by role; "checkpoint" is the main one
    z_channels: int = 0
    z_statistics: dict[str, NDArray[np.float32]] | None = None
    attributes: dict[str, AttributeData] = field(default_factory=dict)
    licence: str = ""
    warnings: list[str] = field(default_factory=list)  # of what a file says and nobody here knows


@dataclass(frozen=True)
class Report:
    """What an export measured: relative errors to PyTorch, by "component.output@batch"; and bytes on disk."""

    path: Path
    errors: dict[str, float]
    bytes: int


Log = Callable[[str], None]


def export(
    load: Callable[[], Model],
    output: Path,
    *,
    precision: Precision = "fp32",
    weights: Precision = "fp32",
    name: str | None = None,
    force: bool = False,
    log: Log = lambda _: None,
) -> Report:
    """Exports what `load` gives to the folder `output`.

    precision: of the graphs' arithmetic. weights: how large weights are stored; "fp16" rounds them. Raises
    CheckpointError where a component differs from PyTorch by more than `TOLERANCE`, OutputError where the output is
    there (unless `force`); the output then is as it was before.
    """
    output = output.resolve()  # a link stays one; what it points to is replaced
    sweep(output)
    if output.exists() and not force:
        raise OutputError(f"{output}: exists already (--force replaces it)")
    if output.exists():
        try:
            Bundle(output)
        except BundleError:
            raise OutputError(f"{output}: exists and is not a sound bundle, so it is not replaced") from None
    log("reading the checkpoint")
    model = load()
    for what, text in (("name", name or output.name), *(("attribute", a) for a in model.attributes)):
        check_name(what, text)
    try:
        with staged(output) as folder:
            _write(model, folder, precision, weights, name or output.name, log)
            log("comparing with PyTorch")
            errors = _compare(model, folder, precision)
            size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            put(folder, output, replace=force)
        return Report(output, errors, size)
    except OSError as e:
        raise OutputError(f"{output}: cannot be written: {reason(e)}") from None


def _write(model: Model, folder: Path, precision: Precision, weights: Precision, name: str, log: Log) -> None:
    if weights == "fp16":
        for part in model.parts.values():
            graph.round_weights(part.module)
    components = {}
    for key, part in model.parts.items():
        log(f"tracing {key}")
        proto = graph.trace(part, precision)
        if weights == "fp16" and precision == "fp32":
            graph.store_half(proto)
        inputs, outputs = graph.signature(part, proto, precision)
        if proto.ByteSize() > MAX_FILE_BYTES:
            raise CheckpointError(f"component {key}: {proto.ByteSize()} bytes, expected at most {MAX_FILE_BYTES}")
        (folder / f"{key}.onnx").write_bytes(proto.SerializeToString(deterministic=True))
        del proto
        components[key] = contract.Component(
            **file_entry(folder, f"{key}.onnx"),
            inputs=inputs,
            outputs=outputs,
            precision=precision,
            weights="fp16" if precision == "fp16" else weights,
        )
    z_sem = None
    if model.z_channels:
        statistics = None
        if model.z_statistics is not None:
            write_tensors(folder / "z_sem.safetensors", model.z_statistics, {})
            statistics = contract.File(**file_entry(folder, "z_sem.safetensors"))
        z_sem = contract.ZSem(size=model.z_channels, statistics=statistics)
    attributes: dict[str, contract.Attribute] = {}
    for key, data in model.attributes.items():
        (folder / "attributes").mkdir(exist_ok=True)
        file = f"attributes/{len(attributes):03d}.safetensors"  # names are free text, files are not
        write_tensors(folder / file, data.arrays, data.metadata)
        attributes[key] = contract.Attribute(
            **file_entry(folder, file), kind=data.kind, branch=data.branch, n_train=data.n_train
        )
    manifest = contract.Manifest(
        format_version=1,
        name=name,
        family=model.family,
        image=contract.ImageShape(size=model.image_size),
        z_sem=z_sem,
        schedules=model.schedules,
        components=components,
        attributes=attributes,
        presets=model.presets,
        default_preset=DEFAULT_PRESET[model.family],
        provenance=contract.Provenance(
            exporter=f"hspace {hspace.__version__}, torch {torch.__version__}, onnx opset {graph.OPSET}",
            sources=model.sources,
            config=model.config,
        ),
        licence=model.licence,
    )
    write_manifest(folder, manifest)


def _compare(model: Model, folder: Path, precision: Precision) -> dict[str, float]:
    """Reopens the bundle with the runtime and holds every component and f_t against PyTorch, at batch 1 and 3.

    One component at a time: each session keeps the memory that its largest batch took.
    """
    opened = Bundle(folder)
    components = opened.manifest.components
    errors = {}
    for key, part in model.parts.items():
        opened.manifest = msgspec.structs.replace(opened.manifest, components={key: components[key]})
        engine = open_engine("onnx", opened, trusted=True)
        for batch in (1, 3):
            for output, error in graph.compare(key, part, engine.run, batch, seed=batch).items():
                errors[f"{key}.{output}@{batch}"] = error
        del engine
    opened.manifest = msgspec.structs.replace(opened.manifest, components=components)
    limits = dict.fromkeys(errors, TOLERANCE[precision])
    for key, data in model.attributes.items():
        attribute = read_attribute(opened, key)
        if isinstance(attribute, DeltaBlock) and data.module is not None:
            errors[key] = _compare_delta(attribute, data.module, h_shape(opened))
            limits[key] = TOLERANCE["fp32"]
    faults = [
        f"{k}: relative error {e:.2e}, expected at most {limits[k]:.0e}"
        for k, e in errors.items()
        if not e <= limits[k]
    ]
    if faults:
        raise CheckpointError("the export differs from PyTorch: " + "; ".join(faults))
    return errors


def _compare_delta(attribute: DeltaBlock, module: nn.Module, shape: tuple[int, int, int, int]) -> float:
    c, height, width, e = shape
    rng = np.random.default_rng(0)
    h, temb = (rng.standard_normal(s, dtype=np.float32) for s in ((3, c, height, width), (3, e)))
    with torch.no_grad():
        expected = module(torch.from_numpy(h), torch.from_numpy(temb)).numpy()
    return graph.relative_error(attribute.delta_h(h, temb, np.zeros(3, np.int32)), expected)
