"""Opening a bundle: which engine, which device, and the editor that they make."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from .bundle import Bundle
from .checks import MOST_IMAGES, check_whole
from .cuda import ordinal_of
from .editor import Editor
from .errors import ArgumentError


def open(
    path: str | os.PathLike[str],
    *,
    engine: str | None = None,
    precision: str | None = None,
    device: str = "cpu",
    stream: Any = None,
    threads: int | None = None,
    batch_size: int | None = None,
) -> Editor:
    """Opens a bundle, with every file verified and every component loaded.

    path: the bundle's folder. engine: a name ("openvino", "onnx") or "auto"; by default $HSPACE_ENGINE, else "auto".
    precision: of the U-Net's arithmetic, "fp32", "bf16", "fp16" or "auto"; by default $HSPACE_PRECISION, else "auto".
    `hspace.choice` says what "auto" is; `editor.engine.name` and `editor.engine.precision` say what it is here.
    device: "cpu", or "cuda:0" and so on for a GPU (docs/gpu.md), where "auto" is "onnx" in the graphs' own type.
    stream: the CUDA stream of a host application, to work on it: an object with `__cuda_stream__`, PyCUDA's, or a
    handle; by default one of its own. threads: how many the engine may use on a CPU, by default all cores.
    batch_size: how many images share one network evaluation; by default as many as `engine.batch_pixels` has room for.
    Raises BundleError for a faulty bundle, EngineError for an engine that is unknown or cannot run here, DeviceError
    (one of its kind) for a GPU that is not there or cannot be used.
    """
    for name, value, most in (("threads", threads, 1024), ("batch_size", batch_size, MOST_IMAGES)):
        if value is not None:
            check_whole(name, value, 1, most)
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"path: found {type(path).__name__}, expected a bundle's folder")
    path = Path(os.fsdecode(path))
    ordinal = ordinal_of(device)
    if ordinal is None and stream is not None:
        raise ArgumentError("stream: found one, and the device is the CPU")
    from . import choice

    options: dict[str, Any] = {"engine": engine, "precision": precision, "device": device}
    options |= {"threads": threads, "batch_size": batch_size}
    reopen = functools.partial(open, os.path.abspath(path), **options) if stream is None else None
    bundle = Bundle(path)
    if ordinal is None:
        chosen = choice.choose(bundle, engine, precision, threads)
        return Editor(bundle, chosen.engine, batch_size=batch_size, exact=chosen.exact, reopen=reopen)
    from .executors import cuda

    wanted, own = choice.asked_precision(precision), bundle.manifest.precision
    if wanted not in ("auto", own):
        raise ArgumentError(f"precision: found {wanted!r}, and {bundle.folder} runs in {own} on {device}")
    executor = cuda.open_executor(bundle, choice.asked_engine(engine), ordinal, stream)
    return Editor(bundle, executor.engine, batch_size=batch_size, executor=executor, reopen=reopen)
