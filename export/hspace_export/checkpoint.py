"""Checkpoints, read without running anything that they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hspace.errors import CheckpointError
from hspace.files import MAX_TEXT_BYTES, check_file, read_file
from hspace.manifest import Source
from torch import Tensor

StateDict = dict[str, Tensor]


class _ModelCheckpoint:
    """Stands in for the Lightning class that the published DiffAE files key `callbacks` by. Inert."""


_STAND_INS = [(_ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def load(path: Path) -> Any:
    """The contents of a PyTorch file, tensors and plain values alone; anything that would run code is refused."""
    check_file(path, CheckpointError)
    try:
        with torch.serialization.safe_globals(_STAND_INS):  # type: ignore[arg-type]
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as e:
        code = re.search(r"GLOBAL ([\w.]+)", str(e))
        if code:
            raise CheckpointError(f"{path}: refers to code ({code[1]}), which is refused and was not run") from None
        raise CheckpointError(f"{path}: expected a PyTorch checkpoint of tensors and plain values") from None
    except Exception:
        raise CheckpointError(f"{path}: expected a PyTorch checkpoint") from None


def source(path: Path) -> Source:
    """A checkpoint's entry in the provenance."""
    with open(path, "rb") as f:
        return Source(file=path.name, sha256=hashlib.file_digest(f, "sha256").hexdigest())


def tensors(found: Any, path: Path, prefix: str = "") -> StateDict:
    """The tensors under `prefix` of a checkpoint's state dict, or of a plain one, as float32, the prefix taken off."""
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: found {type(state).__name__}, expected a state dict")
    got = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if got and all(k.startswith("module.") for k in got):  # saved from a DataParallel wrapper
        got = {k.removeprefix("module."): v for k, v in got.items()}
    return {k.removeprefix(prefix): v.float() for k, v in got.items() if k.startswith(prefix)}


def looks_like(found: Any) -> str:
    """What a checkpoint seems to be, for the message that says it is not what was asked for."""
    state = found.get("state_dict", found) if isinstance(found, Mapping) else {}
    keys = {str(k).removeprefix("module.") for k in state} if isinstance(state, Mapping) else set()
    for mark, name in (
        ("ema_model.encoder.input_blocks.0.0.weight", "a Diffusion Autoencoder (hspace export diffae)"),
        ("ema_classifier.weight", "a DiffAE classifier (--classifier)"),
        ("temb.dense.0.weight", "a DDPM U-Net (hspace export asyrp)"),
        ("input_blocks.0.0.weight", "an improved- or guided-diffusion U-Net (hspace export asyrp)"),
        ("0", "an Asyrp attribute (--attribute)"),
        ("down_blocks.0.resnets.0.conv1.weight", "a diffusers U-Net (hspace export diffusers, with its folder)"),
    ):
        if mark in keys:
            return name
    return "nothing that hspace knows"


def check_tensors(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], what: str) -> None:
    """Raises one CheckpointError with every missing, unexpected and wrongly shaped tensor."""
    missing = [k for k in expected if k not in found]
    unexpected = [k for k in found if k not in expected]
    shapes = [
        f"{k}: found {list(found[k].shape)}, expected {list(expected[k].shape)}"
        for k in expected
        if k in found and found[k].shape != expected[k].shape
    ]
    infinite = [k for k in expected if k in found and not torch.isfinite(found[k]).all()]
    faults = []
    for title, names in (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape", shapes),
        ("not finite", infinite),
    ):
        if names:
            faults.append(f"{len(names)} {title}: " + ", ".join(names))
    if faults:
        raise CheckpointError(f"{path}: its tensors are not those of {what}: " + "; ".join(faults))


def read_text(path: Path, what: str) -> str:
    """A text file that the user wrote, in UTF-8, with or without the mark that Windows puts before it."""
    try:
        return read_file(path, CheckpointError, MAX_TEXT_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: expected {what}") from None


def read_json(path: Path, what: str) -> Any:
    """A JSON file that the user wrote."""
    text = read_text(path, f"{what} in JSON")
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    raise CheckpointError(f"{path}: expected {what} in JSON")
