"""ONNX Runtime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import BundleError, EngineError
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

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 4  # its warnings go to stderr unasked
        options.intra_op_num_threads = threads or 0
        # Idle workers that spin take the cores from the other sessions' workers and from NumPy's:
        # docs/decisions/0004-no-spinning.md has the figures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._components = bundle.manifest.components
        self._sessions = {}
        for name, spec in self._components.items():
            data, where = bundle.read_component(name), f"{bundle.folder / spec.file}"
            try:
                session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            except Exception as e:  # ONNX Runtime's errors share no base class
                raise BundleError(f"{where}: ONNX Runtime cannot load this graph") from e
            check_signature(spec, _ports(session.get_inputs()), _ports(session.get_outputs()), _DTYPES, where)
            self._sessions[name] = session

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        spec = self._components[component]
        feeds = {i.name: np.ascontiguousarray(inputs[i.name], dtype=i.dtype) for i in spec.inputs}
        try:
            outputs: list[NDArray[Any]] = self._sessions[component].run([o.name for o in spec.outputs], feeds)
        except Exception as e:
            shapes = ", ".join(f"{k} {list(v.shape)}" for k, v in feeds.items())
            raise EngineError(f"engine onnx: component {component} failed on {shapes}") from e
        return outputs


def _ports(ports: Any) -> list[Port]:
    return [(p.name, p.type, [d if isinstance(d, int) else None for d in p.shape]) for p in ports]
