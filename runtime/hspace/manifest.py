"""`bundle.json`, the contract of a bundle, as frozen structs that refuse unknown keys. `manifest_read` reads one."""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from .catalog import SAMPLERS
from .checks import quoted
from .errors import ArgumentError
from .files import MAX_FILE_BYTES
from .kinds import KINDS, BranchName
from .schedule import SPACINGS, Schedule

FORMAT_VERSION, FORMAT_MINOR = 1, 1  # each optional key that is added raises the second
MANIFEST = "bundle.json"
JOURNAL = ".amend"  # what an amend in progress adds and removes
MAX_PATH = 200  # characters of a file's path inside the bundle

_END = r"(?![\s\S])"  # the end of the text; $ would let a line break follow
Name = Annotated[
    str,
    Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f/\\=,]{1,100}" + _END, description="printable, without / \\ = or ,"),
]
Sha256 = Annotated[str, Meta(pattern="^[0-9a-f]{64}" + _END)]
Steps = Annotated[int, Meta(ge=1, le=1000)]
Timestep = Annotated[int, Meta(ge=0, le=1_000_000)]
Dimension = Annotated[int, Meta(ge=1, le=65536)]
Text = Annotated[str, Meta(max_length=1000)]
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

    betas: Annotated[list[float], Meta(min_length=2, max_length=100_000)]

    def build(self) -> Schedule:
        return Schedule.from_betas(self.betas)


AnySchedule = LinearSchedule | ConstSchedule | CosineSchedule | ArraySchedule


class Schedules(Frozen, frozen=True):
    """`image`: of the U-Net. `latent`: of the latent DDIM over z_sem, where there is one."""

    image: AnySchedule
    latent: AnySchedule | None = None


class ImageShape(Frozen, frozen=True):
    """Images are square: size × size pixels, RGB."""

    size: Annotated[int, Meta(ge=8, le=4096)]
    channels: Literal[3] = 3


class File(Frozen, frozen=True):
    """A file of the bundle: a relative path with forward slashes, its size in bytes and its SHA-256."""

    file: Annotated[str, Meta(min_length=1, max_length=MAX_PATH)]
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
    shape: list[Dimension | Literal["N", "M"]]


Tensors = Annotated[list[Tensor], Meta(max_length=1000)]


class Component(File, frozen=True, kw_only=True):
    """An ONNX graph. precision: its arithmetic; weights: how its large weights are stored."""

    inputs: Tensors
    outputs: Tensors
    precision: Literal["fp32", "fp16"]
    weights: Literal["fp32", "fp16"]


class Attribute(File, frozen=True, kw_only=True):
    """A named edit, as data in a safetensors file. n_train: the step count that a delta was trained at (Asyrp's
    scale for other step counts is n_train/n_run, in asymmetric rows); None where no such scale applies.
    """

    kind: Literal[tuple(KINDS)]  # type: ignore[valid-type]
    branch: BranchName
    n_train: Steps | None = None


class Preset(Frozen, frozen=True, kw_only=True):
    """How to run: what calls take where they are not told otherwise."""

    encode_steps: Steps
    decode_steps: Steps
    latent_steps: Steps | None = None
    sampler: Literal[tuple(SAMPLERS)] = "ddim"  # type: ignore[valid-type]
    spacing: Literal[tuple(SPACINGS)]  # type: ignore[valid-type]
    clip: bool
    t_edit: Timestep = 0
    t_boost: Timestep = 0


class Accuracy(Frozen, frozen=True, kw_only=True):
    """What whole runs of the U-Net in a faster precision are worth: PSNR in dB against the graphs' own type.

    inversion: reconstructions from codes that were encoded in the faster one. reconstruction: encoded and decoded in
    it. edit: those, edited. See `hspace.accuracy`.
    """

    precision: Literal["bf16"]
    inversion: float
    reconstruction: float
    edit: float


class Source(Frozen, frozen=True):
    """A file that the export read: its name, and its SHA-256."""

    file: Text
    sha256: Sha256


class Provenance(Frozen, frozen=True, kw_only=True):
    """Where the weights came from. sources: by role; `checkpoint` is the main one, which latents are tied to."""

    exporter: Text
    sources: Annotated[dict[Text, Source], Meta(max_length=2000)]
    config: dict[str, Any] = {}

    @property
    def checkpoint_sha256(self) -> str:
        return self.sources["checkpoint"].sha256


class Manifest(Frozen, frozen=True, kw_only=True):
    """`bundle.json`. format_minor: of the latest addition to the format that the bundle uses, where it uses one."""

    format_version: Literal[1]
    format_minor: Annotated[int, Meta(ge=1, le=1000)] | msgspec.UnsetType = msgspec.UNSET
    name: Name
    family: Literal["diffae", "asyrp"]
    image: ImageShape
    z_sem: ZSem | None = None
    schedules: Schedules
    components: dict[Name, Component]
    attributes: Annotated[dict[Name, Attribute], Meta(max_length=1000)] = {}
    presets: Annotated[dict[Name, Preset], Meta(max_length=64)]
    default_preset: Name
    accuracy: Accuracy | msgspec.UnsetType = msgspec.UNSET  # since 1.1
    provenance: Provenance
    licence: Annotated[str, Meta(max_length=100_000)]

    @property
    def precision(self) -> Literal["fp32", "fp16"]:
        """Of the graphs' own arithmetic: fp16 where it is any component's."""
        return "fp16" if any(c.precision == "fp16" for c in self.components.values()) else "fp32"

    def files(self) -> Iterator[tuple[str, File]]:
        """Every file that the bundle has beside the manifest, with the key that names it."""
        for kind, group in (("components", self.components), ("attributes", self.attributes)):
            for name, entry in typing.cast("dict[str, File]", group).items():
                yield f"{kind}.{name}", entry
        if self.z_sem is not None and self.z_sem.statistics is not None:
            yield "z_sem.statistics", self.z_sem.statistics


def check_name(what: str, text: str) -> None:
    """Raises ArgumentError for a name that a manifest cannot hold."""
    try:
        msgspec.convert(text, Name).encode()  # an argument of a shell may be no Unicode
    except (msgspec.ValidationError, UnicodeEncodeError):
        raise ArgumentError(
            f"{what}: found {quoted(text)}, expected 1 to 100 printable characters, without / \\ = or ,"
        ) from None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `bundle.json`."""
    return msgspec.json.schema(Manifest)


if __name__ == "__main__":
    print(json.dumps(json_schema(), indent=1))
