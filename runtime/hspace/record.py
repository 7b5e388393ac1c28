"""Records: one line of JSON in each output says what made it, so a later call can tell what it would change.

    hspace, call    the version, and the command
    bundle          its name, and the SHA-256 of the checkpoint, the schedules and the files that the call used; of an
                    attribute its kind, branch and n_train as well
    engine          name, precision and device
    preset, run     the preset's name, and its values with the call's own in them
    strengths       by attribute
    seed, image     the seed, and the image's number among the call's
    draws           whether these two had any effect
    sources         file name, without its folder, and SHA-256 of each input

A call adds its other options (`quality`, `frames`, …). PNG, JPEG, WEBP, GIF and APNG files hold the record themselves
(`image.read_record`). A latent holds it as `record` in its provenance. The record of a BMP is in a file beside it,
NAME.hspace.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import __version__
from .errors import HspaceError, LatentError
from .files import MAX_TEXT_BYTES, read_file, write_atomically
from .image import WRITABLE, encode_image, read_record
from .latent import Latent
from .manifest import Preset, Source

if TYPE_CHECKING:
    from .editor import Editor
    from .engines import Engine

_ONE_EACH = ("edit", "encode", "decode")  # calls that make every image alike: an image's number changes only its draws
_MOST_SOURCES = 50  # that a record lists; for more it holds their number and one SHA-256


def engine_told(engine: Engine) -> dict[str, str]:
    """The record's entry for the engine: its name, its precision ("fp32", "bf16", "fp16"), and "cpu" or "cuda"."""
    return {"engine": engine.name, "precision": engine.precision, "device": engine.device.partition(":")[0]}


def make_record(
    editor: Editor,
    call: str,
    preset: str | None,
    run: Preset,
    sources: Sequence[Source],
    *,
    strengths: Mapping[str, float] | None = None,
    seed: int = 0,
    image: int | None = None,
    draws: bool = False,
    **more: Any,
) -> str:
    """The record of one output. run: the preset with the call's own values. more: what else the call was asked for."""
    manifest, strengths = editor.bundle.manifest, dict(strengths or {})
    used = {*strengths, *more.get("over", ()), *more.get("accept", ())}
    files: dict[str, Any] = {k: e.sha256 for k, e in manifest.files() if not k.startswith("attributes.")}
    for name in sorted(used & manifest.attributes.keys()):
        entry = manifest.attributes[name]  # its kind, branch and n_train count as well: n_train scales it
        files[f"attributes.{name}"] = [entry.sha256, entry.kind, entry.branch, entry.n_train]
    schedules = hashlib.sha256(msgspec.json.encode(manifest.schedules)).hexdigest()
    listed: Any = [msgspec.to_builtins(source) for source in sources]
    if len(listed) > _MOST_SOURCES:
        together = hashlib.sha256("".join(s.sha256 for s in sources).encode()).hexdigest()
        listed = {"count": len(listed), "sha256": together}
    fields = {
        "hspace": __version__,
        "call": call,
        "bundle": {
            "name": manifest.name,
            "checkpoint": manifest.provenance.checkpoint_sha256,
            "files": files,
            "schedules": schedules,
        },
        "engine": engine_told(editor.engine_of(preset, run.sampler)),
        "preset": editor.bundle.preset(preset)[0],
        "run": {name: getattr(run, name) for name in run.__struct_fields__},
        "strengths": strengths,
        "seed": seed,
        "image": image,
        "draws": draws,
        "sources": listed,
        **more,
    }
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def differences(recorded: str | None, wanted: str) -> list[str]:
    """The names of the fields that differ between an output's record and the record that it would get now.

    An empty list means that the call would make the same output. Fields without effect do not count: file names, except
    those that a contact sheet shows, and, where nothing is drawn, the seed and the number of an image that is made like
    the others.
    """
    expected = json.loads(wanted)
    try:
        there = json.loads(recorded or "")
    except (ValueError, RecursionError):
        there = None
    if not isinstance(there, dict):
        return ["no record"]
    ignored = set() if there.get("draws") or expected.get("draws") else {"seed"}
    if ignored and expected.get("call") in _ONE_EACH:
        ignored.add("image")
    names = sorted((there.keys() | expected.keys()) - ignored)
    if expected.get("image") is not None:
        there, expected = _nameless(there), _nameless(expected)
    return [n if n in expected else "others" for n in names if there.get(n) != expected.get(n)]


def _nameless(record: dict[str, Any]) -> dict[str, Any]:
    """A record without its sources' file names."""
    sources = record.get("sources")
    if not isinstance(sources, list):
        return record
    return {**record, "sources": [{**s, "file": ""} if isinstance(s, dict) else s for s in sources]}


def read_output(path: Path) -> str | None:
    """The record of an existing output; None where it has none."""
    try:
        if path.suffix.lower() == ".safetensors":
            return Latent.load(path).provenance.get("record")
        if WRITABLE.get(path.suffix.lower()) != "BMP":
            return read_record(path)
        beside = json.loads(read_file(_beside(path), LatentError, MAX_TEXT_BYTES))
        same = beside["sha256"] == hashlib.sha256(read_file(path, LatentError)).hexdigest()
        return str(beside["record"]) if same else None
    except (HspaceError, ValueError, KeyError, TypeError, RecursionError):
        return None


def write_image(path: Path, pixels: NDArray[np.uint8], record: str, quality: int | None = None) -> None:
    """Writes uint8 [H, W, 3] with its record, in the format that the suffix names."""
    data = encode_image(pixels, path.suffix, record=record, quality=quality, name=str(path))
    write_atomically(path, data)
    if WRITABLE[path.suffix.lower()] == "BMP":
        beside = {"record": record, "sha256": hashlib.sha256(data).hexdigest()}
        write_atomically(_beside(path), json.dumps(beside).encode() + b"\n")


def with_record(latent: Latent, record: str) -> Latent:
    """The latent, with its record in the provenance."""
    return Latent(latent.x_T, latent.z_sem, latent.x_prev, {**latent.provenance, "record": record})


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.hspace.json")
