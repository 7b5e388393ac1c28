"""ONNX Runtime on the CPU, in the graphs' own types.

What `run` returns for the skips is ONNX Runtime's own (OrtValue; its `numpy()` is the array), so that they are not
copied on their way from the trunk to the head.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..errors import BundleError, EngineError
from . import cache
from .signature import Port, check_signature

_DTYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int32": "tensor(int32)", "int64": "tensor(int64)"}


def unavailable() -> str | None:
    """Whether onnxruntime is there, and loads."""
    try:
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError:
        return "the package onnxruntime is not installed"
    except ImportError:
        return "the package onnxruntime is installed but does not load"
    return None


def open_engine(bundle: Bundle, threads: int | None) -> OnnxEngine:
    """A session per component. Raises BundleError for a graph that is faulty or not what the manifest says."""
    return OnnxEngine(bundle, threads)


class OnnxEngine:
    """Sessions of ONNX Runtime's CPU provider; `run` may be called from several threads."""

    name = "onnx"
    device = "cpu"
    precision = "fp32"

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        import onnxruntime as ort

        self._ort = ort
        self._components = bundle.manifest.components
        threads = threads or cache.usable_cores()
        self._sessions = {name: self._session(bundle, name, threads) for name in self._components}

    def run(self, component: str, inputs: Mapping[str, Any]) -> list[Any]:
        spec, value = self._components[component], self._ort.OrtValue
        feeds = {
            i.name: given
            if isinstance(given := inputs[i.name], value)
            else value.ortvalue_from_numpy(np.ascontiguousarray(given, dtype=i.dtype))
            for i in spec.inputs
        }
        names = [o.name for o in spec.outputs]
        try:
            outputs = self._sessions[component].run_with_ort_values(names, feeds)
        except Exception as e:
            shapes = ", ".join(f"{k} {v.shape()}" for k, v in feeds.items())
            raise EngineError(f"engine onnx: component {component} failed on {shapes}") from e
        return [v if n.startswith("skip_") else v.numpy() for n, v in zip(names, outputs, strict=True)]

    def _session(self, bundle: Bundle, component: str, threads: int) -> Any:
        spec = self._components[component]
        data, where = bundle.read_component(component), f"{bundle.folder / spec.file}"
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # its warnings go to stderr unasked
        options.intra_op_num_threads = threads
        # Idle workers that spin take the cores from the other sessions' workers and from NumPy's:
        # docs/decisions/0004-no-spinning.md has the figures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        of = (self._ort.__version__, cache.processor(), platform.machine(), spec.sha256)
        entry = cache.Entry("onnxruntime", cache.key(*of))
        optimised = entry.read()
        if optimised is not None:
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            try:
                return self._ort.InferenceSession(optimised, options, providers=["CPUExecutionProvider"])
            except Exception:  # ONNX Runtime's errors share no base class
                options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory() as scratch:
            options.optimized_model_filepath = str(Path(scratch) / "optimised.onnx")
            try:
                session = self._ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            except Exception as e:
                raise BundleError(f"{where}: ONNX Runtime cannot load this graph") from e
            check_signature(spec, _ports(session.get_inputs()), _ports(session.get_outputs()), _DTYPES, where)
            entry.write(Path(options.optimized_model_filepath).read_bytes())
        return session


def _ports(ports: Any) -> list[Port]:
    return [(p.name, p.type, [d if isinstance(d, int) else None for d in p.shape]) for p in ports]
