"""Checkpoints, read without running anything that they hold."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import re
import reprlib
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from hspace.checks import raise_faults
from hspace.errors import CheckpointError
from hspace.files import MAX_TEXT_BYTES, check_file, read_file
from hspace.manifest import Source
from torch import Tensor, nn

StateDict = dict[str, Tensor]
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_MOST_TENSORS = 10_000  # in a state dict; the published ones have at most 2,500
_MOST_SHARING = 4  # times the file's size that tensors may have together: some are there under two names
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother, _repr.maxlong = 2, 100, 100, 40


class _ModelCheckpoint:
    """Stands in for the Lightning class that the published DiffAE files key `callbacks` by. Inert."""


_STAND_INS = [(_ModelCheckpoint, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def load(path: Path) -> Any:
    """The contents of a PyTorch file, tensors and plain values alone; anything that would run code is refused."""
    check_file(path, CheckpointError)
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise CheckpointError(f"{path}: its name is not Unicode, and PyTorch opens no such file") from None
    archive = zipfile.is_zipfile(path)
    if archive:
        _check_archive(path)
    try:
        return _load(path, "cpu", archive)
    except pickle.UnpicklingError as e:
        code = re.search(r"GLOBAL ([\w.]+)", str(e))
        if code:
            raise CheckpointError(f"{path}: refers to code ({code[1]}), which is refused and was not run") from None
        raise CheckpointError(f"{path}: expected a PyTorch checkpoint of tensors and plain values") from None
    except Exception as e:
        fault = _misfit(path, archive)
        if fault is None and re.search(r"resiz|overflow|byte size|out of bounds", str(e)):
            fault = "has a tensor whose data does not fit its shape"
        raise CheckpointError(f"{path}: {fault or 'expected a PyTorch checkpoint'}") from None


def _load(path: Path, device: str, archive: bool) -> Any:
    with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.simplefilter("ignore")  # of PyTorch's own code, which the user cannot mend
        return torch.load(path, map_location=device, weights_only=True, mmap=archive)


def _misfit(path: Path, archive: bool) -> str | None:
    """Which tensor has fewer values in the file than its shape, if that is why the file cannot be read."""
    with contextlib.suppress(Exception):
        shapes, size = _load(path, "meta", archive), path.stat().st_size  # shapes alone
        for state in (shapes, *(v for v in shapes.values() if isinstance(v, Mapping))):
            for name, value in state.items():
                if isinstance(value, Tensor) and (fault := _size_fault(value, size)):
                    return f"{shown(name)[1:-1]}: {fault}"
    return None


def _check_archive(path: Path) -> None:
    """Refuses an archive whose entries are more than the file itself: what torch.save writes is not compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
        raise CheckpointError(f"{path}: expected a PyTorch checkpoint") from None
    total = sum(e.file_size for e in entries)
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or total > path.stat().st_size:
        raise CheckpointError(f"{path}: its entries are compressed or overlap, expected them as torch.save writes them")


def source(path: Path) -> Source:
    """A checkpoint's entry in the provenance."""
    with open(path, "rb") as f:
        return Source(file=path.name, sha256=hashlib.file_digest(f, "sha256").hexdigest())


def shown(value: Any) -> str:
    """A value of a file for a message, not at any length."""
    return _repr.repr(value)


def unknown(where: str, keys: Iterable[str]) -> list[str]:
    """A warning of a configuration's keys that nobody here knows, if there are any."""
    told = ", ".join(shown(k)[1:-1] for k in keys)
    return [f"{where}: {told[:500]}: not known, so not followed"] if told else []


def tensors(content: Any, path: Path, prefix: str = "") -> StateDict:
    """The tensors under `prefix` of a checkpoint's state dict, or of a plain one, as float32, the prefix taken off.

    Raises CheckpointError, with their names, for those that are no plain tensors with all of their values in the file.
    """
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: found {type(state).__name__}, expected a state dict")
    got = {str(k): v for k, v in state.items() if isinstance(v, Tensor)}
    if got and all(k.startswith("module.") for k in got):  # saved from a DataParallel wrapper
        got = {k.removeprefix("module."): v for k, v in got.items()}
    got = {k.removeprefix(prefix): v for k, v in got.items() if k.startswith(prefix)}
    if len(got) > _MOST_TENSORS:
        raise CheckpointError(f"{path}: found {len(got)} tensors, expected at most {_MOST_TENSORS}")
    size = path.stat().st_size
    faults = [f"{shown(prefix + k)[1:-1]}: {fault}" for k, v in got.items() if (fault := _fault(v, size))]
    raise_faults(CheckpointError, str(path), faults)
    total = sum(v.numel() * v.itemsize for v in got.values())
    if total > _MOST_SHARING * size:
        raise CheckpointError(f"{path}: its tensors share values: they take {total} bytes, the file has {size}")
    return {k: v.detach().float() for k, v in got.items()}


def _fault(tensor: Tensor, file_bytes: int) -> str | None:
    """Why a tensor is refused, if it is. Nothing here reads or makes its values."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_nested:
        return f"found a {'nested tensor' if tensor.is_nested else type(tensor).__name__}, expected a plain tensor"
    if tensor.layout is not torch.strided:
        return f"found a tensor of the layout {str(tensor.layout).removeprefix('torch.')}, expected a dense one"
    if tensor.is_quantized or tensor.dtype not in _FLOATS:
        return f"found values of the type {str(tensor.dtype).removeprefix('torch.')}, expected floating-point numbers"
    if tensor.is_meta or tensor.is_neg():
        return f"found a tensor {'without values' if tensor.is_meta else 'marked as negated'}, expected its values"
    return _size_fault(tensor, file_bytes)


def _size_fault(tensor: Tensor, file_bytes: int) -> str | None:
    """Whether the file has a value of its own for each place of a dense tensor."""
    shape, strides = list(tensor.shape), tensor.stride()
    steps = [(n - 1) * stride for n, stride in zip(shape, strides, strict=True) if n > 1]
    if tensor.numel() and (0 in steps or 1 + sum(steps) < tensor.numel()):
        return f"found {shape} with the strides {list(strides)}, so that values repeat"
    needed = tensor.numel() * tensor.itemsize
    return f"found {shape}, which takes {needed} bytes, in a file of {file_bytes}" if needed > file_bytes else None


def looks_like(content: Any) -> str:
    """What a checkpoint seems to be, for the message that says it is not what was asked for."""
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
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


def check_tensors(path: Path, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Raises one CheckpointError with every missing, unexpected, wrongly shaped and infinite tensor."""
    missing = [k for k in expected if k not in tensors]
    unexpected = [k for k in tensors if k not in expected]
    shapes = [
        f"{k}: found {list(tensors[k].shape)}, expected {list(expected[k].shape)}"
        for k in expected
        if k in tensors and tensors[k].shape != expected[k].shape
    ]
    faults = []
    for title, names in (
        ("missing", missing),
        ("unexpected", [shown(k)[1:-1] for k in unexpected]),
        ("of another shape", shapes),
        ("not finite", [k for k in expected if k in tensors and not torch.isfinite(tensors[k]).all()]),
    ):
        if names:
            faults.append(f"{len(names)} {title}: " + ", ".join(names))
    raise_faults(CheckpointError, f"{path}: its tensors are not those of {what}", faults)


def put(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts tensors that `check_tensors` let pass into a network that was made without memory, on `meta`."""
    own = {k: v.clone(memory_format=torch.contiguous_format) for k, v in state.items()}  # not pages of the file
    network.load_state_dict(own, assign=True)
    network.eval()


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
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # JSON can say half of a surrogate pair, which is no text
        return content
    raise CheckpointError(f"{path}: expected {what} in JSON, in Unicode")
