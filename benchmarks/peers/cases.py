"""The cases: a bundle, the checkpoint that it was made from, an image and an edit."""

from __future__ import annotations

import hashlib
import multiprocessing
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from hspace import amend
from hspace.attributes import read_attribute
from hspace.bundle import Bundle, h_shape
from hspace.deltas import DeltaTable, ZDirection
from hspace.image import load_images
from hspace.tensors import tensor_bytes
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "bundles/images/avatar016.png"
DELTA = "peers_delta_h"
DIRECTION = "peers_direction"
# name → the case of export_full_size.py that writes its checkpoint; None: shipped
NAMES = {"ddpm256": "ddpm", "diffae256": "diffae", "avatars32": None}


@dataclass(frozen=True)
class Case:
    """What every peer is given. official: (encode, decode) steps of the paper's code; steps: of the short edits."""

    name: str
    family: str
    bundle: Path
    checkpoint: Path | None
    no_checkpoint: str  # why there is none
    attribute: str
    strength: float
    official: tuple[int, int]
    steps: tuple[int, int]
    t_edit: int
    t_boost: int
    presets: tuple[str, ...]
    image: NDArray[np.float32] = field(repr=False)

    def noise(self, steps: tuple[int, int]) -> NDArray[np.float32]:
        """The draws of a run, one for each timestep below t_boost; the same for every peer."""
        drawn = sum(t < self.t_boost for t in asyrp_timesteps(steps[1])) if self.family == "asyrp" else 0
        return np.random.default_rng(1).standard_normal((drawn, *self.image.shape), dtype=np.float32)


def asyrp_timesteps(n: int) -> list[int]:
    """As the official code spaces them."""
    return [int(s + 1e-6) for s in np.linspace(0, 1, n) * 999]


def diffae_timesteps(n: int) -> list[int]:
    """As the official code spaces them: the smallest stride that gives n."""
    return list(range(0, 1000, -(-1000 // n)))


def prepare(name: str, work: Path, checkpoint: Path | None, steps: int | None) -> Case:
    """The case of that name; the random networks are made and exported where `work` does not have them yet.

    checkpoint: of the shipped bundle. steps: of the short edits, each way.
    """
    which = NAMES[name]
    if which is None:
        folder = ROOT / "bundles" / name
    else:
        folder, checkpoint = work / which, work / f"{which}.ckpt"
        if not folder.exists():
            _export(which, folder, checkpoint)
    bundle = Bundle(folder)
    if which is not None:
        _add_attribute(bundle)
        _set_presets(bundle)
    manifest = bundle.manifest
    wanted = ZDirection if manifest.family == "diffae" else DeltaTable
    attributes = sorted(manifest.attributes, key=lambda a: a not in (DELTA, DIRECTION))
    attribute = next(a for a in attributes if isinstance(read_attribute(bundle, a), wanted))
    preset = manifest.presets["official"]
    reason = _not_the_same(bundle, checkpoint)
    short = steps or (3 if manifest.image.size > 64 else 20)
    picture = Image.open(IMAGE).convert("RGB").resize([manifest.image.size] * 2, Image.Resampling.LANCZOS)
    return Case(
        name=name,
        family=manifest.family,
        bundle=folder,
        checkpoint=None if reason else checkpoint,
        no_checkpoint=reason,
        attribute=attribute,
        strength=1.0 if which else 0.5,
        official=(preset.encode_steps, preset.decode_steps),
        steps=(short, short),
        t_edit=preset.t_edit,
        t_boost=preset.t_boost,
        presets=tuple(manifest.presets),
        image=load_images(picture, manifest.image.size),
    )


def _not_the_same(bundle: Bundle, checkpoint: Path | None) -> str:
    """Why PyTorch cannot run the bundle's weights, or "" where it can."""
    if checkpoint is None:
        return "needs the bundle's checkpoint: --checkpoint"
    if not checkpoint.exists():
        return f"{checkpoint} is not there"
    with open(checkpoint, "rb") as f:
        same = hashlib.file_digest(f, "sha256").hexdigest() == bundle.manifest.provenance.checkpoint_sha256
    return "" if same else f"{checkpoint} is not the checkpoint that the bundle was made from"


def _export(which: str, folder: Path, checkpoint: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"exporting {which} to {folder}, once", file=sys.stderr, flush=True)
    # in processes of their own, so that this one stays small
    writer = multiprocessing.get_context("spawn").Process(target=_write_checkpoint, args=(which, checkpoint))
    writer.start()
    writer.join()
    if writer.exitcode:
        sys.exit(f"{checkpoint}: could not be written")
    family, preset = {"ddpm": ("asyrp", "celebahq256"), "diffae": ("diffae", "ffhq256")}[which]
    command = [sys.executable, "-m", "hspace.cli", "export", family, str(checkpoint), "--preset", preset]
    run = subprocess.run([*command, "-o", str(folder)], text=True, capture_output=True, check=False)
    if run.returncode:
        sys.exit(run.stderr)


def _write_checkpoint(which: str, checkpoint: Path) -> None:
    import torch
    from export_full_size import CASES

    torch.manual_seed(0)
    CASES[which][0](checkpoint)


def _set_presets(bundle: Bundle) -> None:
    """Today's presets, where the bundle was exported when they were others."""
    from hspace_export.exporter import few_steps

    manifest = bundle.manifest
    for name, preset in few_steps(manifest.family, manifest.presets["official"], manifest.schedules.image).items():
        if bundle.manifest.presets.get(name) != preset:
            amend.set_preset(bundle, name, preset, replace=name in bundle.manifest.presets)


def _add_attribute(bundle: Bundle) -> None:
    """A random attribute: a Δh for each of 40 timesteps, or a direction of z_sem."""
    rng = np.random.default_rng(0)
    if bundle.manifest.family == "diffae":
        if DIRECTION in bundle.manifest.attributes or bundle.manifest.z_sem is None:
            return
        d = bundle.manifest.z_sem.size
        weight = rng.standard_normal(d, dtype=np.float32)
        arrays = {"weight": weight, "bias": np.zeros(1, np.float32)}
        arrays |= {"mean": np.zeros(d, np.float32), "std": np.ones(d, np.float32)}
        amend.add_attribute(bundle, DIRECTION, tensor_bytes(arrays, {}), "z_direction", "none")
    elif DELTA not in bundle.manifest.attributes:
        table = 0.1 * rng.standard_normal((40, *h_shape(bundle)[:3]), dtype=np.float32)
        tensors = {"timesteps": np.array(asyrp_timesteps(40)), "delta_h": table}
        amend.add_attribute(bundle, DELTA, tensor_bytes(tensors, {}), "delta_h", "asymmetric", 40)
