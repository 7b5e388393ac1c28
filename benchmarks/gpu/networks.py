"""The networks that are timed: the official 256×256 architectures with random weights, in FP16.

To try the script, small ones stand in for them: a DDPM U-Net of 32×32, and the shipped bundle.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hspace import amend
from hspace.bundle import Bundle, h_shape
from hspace.deltas import DeltaBlock
from hspace.errors import HspaceError
from hspace.tensors import tensor_bytes

from .bandwidth import delta_block
from .workers import Failed, apart

ATTRIBUTE = "random"
N_TRAIN = 40


class Network(NamedTuple):
    """title: for people. steps: of whole edits, encode and decode. make: writes its bundle into the folder."""

    title: str
    steps: tuple[int, int]
    make: Callable[[Path], None]


def networks(quick: bool) -> dict[str, Network]:
    """By name."""
    if quick:
        return {
            "ddpm32": Network("DDPM, 32×32, Asyrp", (3, 3), lambda f: _export(f, "small", "asyrp", "--image-size=32")),
            "avatars32": Network("avatars32, DiffAE", (3, 3), _shipped),
        }
    return {
        "ddpm256": Network(
            "CelebA-HQ DDPM, 256×256, Asyrp", (40, 40), lambda f: _export(f, "ddpm", "asyrp", "--preset=celebahq256")
        ),
        "diffae256": Network(
            "FFHQ256 DiffAE, 256×256", (20, 20), lambda f: _export(f, "diffae", "diffae", "--preset=ffhq256")
        ),
    }


def prepare(work: Path, quick: bool, name: str) -> Path:
    """The bundle of a network, which is exported where `work` does not have it yet: that needs PyTorch and onnx.

    Raises Failed.
    """
    folder = work / f"{name}-fp16"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        print(f"exporting {folder.name} to {folder.parent}, once", file=sys.stderr, flush=True)
        networks(quick)[name].make(folder)
    try:
        bundle = Bundle(folder)
        if ATTRIBUTE not in bundle.manifest.attributes:
            _add_attribute(bundle)
    except HspaceError as e:
        raise Failed(str(e)) from None
    return folder


def _shipped(folder: Path) -> None:
    from .accuracy import BUNDLE
    from .half import to_half

    to_half(BUNDLE, folder)


def _export(folder: Path, which: str, family: str, *options: str) -> None:
    """A random checkpoint, exported as a user does it; it is not kept."""
    checkpoint = folder.with_suffix(".ckpt")
    try:
        apart(folder.parent / "logs" / "export.log", _write_checkpoint, which, checkpoint)
        command = [sys.executable, "-m", "hspace.cli", "export", family, str(checkpoint), *options]
        command += ["--precision", "fp16", "-o", str(folder)]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
    finally:
        with contextlib.suppress(OSError):
            checkpoint.unlink()
    if done.returncode:
        raise Failed(f"the export of {folder.name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _write_checkpoint(which: str, path: Path) -> None:
    import torch

    torch.manual_seed(0)
    if which == "small":
        from hspace_export.models.ddpm import DdpmConfig, DdpmUNet

        torch.save(DdpmUNet(DdpmConfig(32, (1.0, 2.0), 1, (1,), 3, True)).state_dict(), path)
        return
    from export_full_size import CASES

    CASES[which][0](path)


def _add_attribute(bundle: Bundle) -> None:
    """A random direction of z_sem, or a DeltaBlock."""
    if bundle.manifest.z_sem is not None:
        d = bundle.manifest.z_sem.size
        zero = np.zeros(d, np.float32)
        arrays = {"weight": np.random.default_rng(0).standard_normal(d, dtype=np.float32), "mean": zero}
        arrays |= {"bias": np.zeros(1, np.float32), "std": np.ones(d, np.float32)}
        amend.add_attribute(bundle, ATTRIBUTE, tensor_bytes(arrays, {}), "z_direction", "none")
        return
    channels, _, _, embedding = h_shape(bundle)
    block = delta_block(channels, embedding)
    data = tensor_bytes(_arrays(block), {"eps": str(block.eps)})
    amend.add_attribute(bundle, ATTRIBUTE, data, "delta_block", "asymmetric", N_TRAIN)


def _arrays(block: DeltaBlock) -> dict[str, Any]:
    parts = ("conv1", "temb_proj", "norm2", "conv2")
    return {
        f"{part}.{name}": array
        for part in parts
        for name, array in zip(("weight", "bias"), getattr(block, part), strict=True)
    }
