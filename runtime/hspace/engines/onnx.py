"""ONNX Runtime, in the graphs' own types: on the CPU, or on a GPU by its CUDA provider.

On the CPU the skips stay ONNX Runtime's own (OrtValue) on their way from the trunk to the head, and are not copied.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import platform
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle
from ..errors import EngineError, install
from ..manifest import Component
from . import answers, cache, cpu, privacy
from .shortage import reason, refusal
from .signature import Port, check_signature, declared

if TYPE_CHECKING:
    from ..cuda.driver import Device, Stream

PACKAGES = ("onnxruntime", "onnxruntime-gpu")  # either brings the module onnxruntime
NOTE = "ONNX Runtime on the CPU, or on a GPU by its CUDA provider"
_CUDA = "CUDAExecutionProvider"
_DTYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int32": "tensor(int32)", "int64": "tensor(int64)"}


def version() -> str:
    """The library's."""
    return str(privacy.onnxruntime().__version__)


def unavailable() -> str | None:
    """Whether onnxruntime is there, and loads."""
    try:
        privacy.onnxruntime()
    except ModuleNotFoundError:
        return "the package onnxruntime is not installed"
    except (ImportError, OSError, MemoryError) as e:
        return reason("onnxruntime", e)
    return None


def precisions(bundle: Bundle) -> tuple[str, ...]:
    """The graphs' own."""
    return (bundle.manifest.precision,)


def open_engine(bundle: Bundle, threads: int | None, precision: str) -> OnnxEngine:
    """A session per component. Raises BundleError for a graph that is faulty or not what the manifest says."""
    return OnnxEngine(bundle, threads)


class _Skips(dict[str, Any]):
    """A trunk's skips by name, OrtValues (see `unet.Skips`)."""

    def release(self) -> None:
        self.clear()


class OnnxEngine:
    """Sessions of ONNX Runtime's CPU provider; `run` may be called from several threads."""

    name = "onnx"
    device = "cpu"
    batch_pixels = 2**13

    def __init__(self, bundle: Bundle, threads: int | None) -> None:
        self._ort = privacy.onnxruntime()
        self._components = bundle.manifest.components
        self.precision = bundle.manifest.precision
        threads = threads or cpu.usable_cores()
        self._sessions = {name: self._session(bundle, name, threads) for name in self._components}

    def run(self, component: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return [v.numpy() for v in self._evaluate(component, inputs, {})]

    def trunk(self, inputs: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], NDArray[Any], _Skips]:
        h, temb, *skips = self._evaluate("trunk", inputs, {})
        names = [o.name for o in self._components["trunk"].outputs[2:]]
        return h.numpy(), temb.numpy(), _Skips(zip(names, skips, strict=True))

    def head(self, skips: _Skips, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        eps: NDArray[Any] = self._evaluate("head", inputs, skips)[0].numpy()
        return eps

    def _evaluate(self, component: str, inputs: Mapping[str, NDArray[Any]], skips: Mapping[str, Any]) -> list[Any]:
        """The outputs, OrtValues as the skips are."""
        spec, value = self._components[component], self._ort.OrtValue
        feeds = {
            i.name: skips[i.name]
            if i.name in skips
            else value.ortvalue_from_numpy(np.ascontiguousarray(inputs[i.name], dtype=i.dtype))
            for i in spec.inputs
        }
        try:
            outputs: list[Any] = self._sessions[component].run_with_ort_values([o.name for o in spec.outputs], feeds)
        except Exception as e:
            shapes = ", ".join(f"{k} {v.shape()}" for k, v in feeds.items())
            raise EngineError(f"engine onnx: component {component} failed on {shapes}") from e
        return outputs

    def _session(self, bundle: Bundle, component: str, threads: int) -> Any:
        spec = self._components[component]
        where = f"{bundle.folder / spec.file}"
        options = self._ort.SessionOptions()
        options.log_severity_level = 4  # its warnings go to stderr unasked
        options.intra_op_num_threads = threads
        # Idle workers that spin take the cores from the other sessions' workers and from NumPy's:
        # docs/decisions/0004-no-spinning.md has the figures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        key = cache.key(self._ort.__version__, cpu.instruction_set(), platform.machine(), spec.sha256, declared(spec))
        entry = cache.Entry("onnxruntime", key)
        optimised = entry.read()
        if optimised is not None:
            bundle.check(spec)  # what it was made of has to be as it was
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            with contextlib.suppress(Exception):  # ONNX Runtime's errors share no base class
                session = self._ort.InferenceSession(optimised, options, providers=["CPUExecutionProvider"])
                if answers.hold(key, lambda: _answers(session, spec)):
                    return session
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        data = bundle.read_component(component)
        with entry.scratch() as file:
            if file is None:
                return self._load(data, options, spec, where)
            options.optimized_model_filepath = str(file)
            try:
                session = self._load(data, options, spec, where)
            except EngineError:  # a disk that is full may be all that is wrong
                options.optimized_model_filepath = ""
                return self._load(data, options, spec, where)
            answers.remember(key, _answers(session, spec))
            with contextlib.suppress(OSError):
                entry.write(file.read_bytes())
            return session

    def _load(self, data: bytes, options: Any, spec: Component, where: str) -> Any:
        try:
            session = self._ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as e:  # ONNX Runtime's errors share no base class
            raise refusal(where, "ONNX Runtime cannot load this graph", e) from e
        check_signature(spec, _ports(session.get_inputs()), _ports(session.get_outputs()), _DTYPES, where)
        return session


def _answers(session: Any, spec: Component) -> NDArray[np.float32]:
    return answers.summary(session.run([o.name for o in spec.outputs], answers.inputs(spec)))


def open_device_engine(bundle: Bundle, device: Device, stream: Stream) -> OnnxCudaEngine:
    """A session per component on a GPU. Raises EngineError where ONNX Runtime has no CUDA provider that works."""
    ort = privacy.onnxruntime()

    if _CUDA not in ort.get_available_providers():
        raise EngineError(
            f"engine onnx: found onnxruntime {ort.__version__} without its CUDA provider, which {device.name} needs: "
            f"{install('gpu')}, as docs/gpu.md says"
        )
    with contextlib.redirect_stdout(io.StringIO()):  # what it does not find, it prints, and may not need
        getattr(ort, "preload_dlls", bool)()  # since 1.21
    with device:
        return OnnxCudaEngine(bundle, device, stream)


class OnnxCudaEngine:
    """Sessions of ONNX Runtime's CUDA provider, on a stream of ours.

    Each component is bound to memory of ours, and ONNX Runtime replays it as a CUDA graph of its own: one for each
    binding, told apart by `gpu_graph_id` and made at its first run on a thread. A step is then a launch of the trunk's
    graph, one of the head's, and our kernels between them, all on the same stream, which nothing waits for
    (`disable_synchronize_execution_providers`; versions before that option counted for replays wait once a component).

    Why not one graph for a whole step: ONNX Runtime cannot be recorded in a caller's capture. With graphs of its own it
    would launch them into the stream that is capturing, which CUDA refuses (error 900); without, what it frees at a
    run's end (cudaFreeHost) is refused (error 800), and either ends the process in a destructor
    (github.com/microsoft/onnxruntime/pull/32081, which would change it, with measurements). So nothing is tried.

    A graph is released with its binding where ONNX Runtime can do that (`release_captured_graph`); else it is there
    until the session's end. Bindings are few and kept, so that little is ever released.

    Its own captures are of the mode "global": while one is made, no thread of the process may allocate or free device
    memory. They are made at the first steps of a batch size; until a run returns, what hspace frees waits.
    """

    name = "onnx"
    provider, memory = _CUDA, "cuda"
    batch_pixels = 2**18  # a single image does not fill a GPU
    not_capturable = "ONNX Runtime's sessions cannot be captured from outside; each component is a graph of its own"

    def __init__(self, bundle: Bundle, device: Device, stream: Stream) -> None:
        self._ort, self._device = privacy.onnxruntime(), device
        self._components, self._own = bundle.manifest.components, bundle.manifest.precision
        self._numbers = itertools.count(1)  # of graphs; 0 is what a run without a number means
        self._sessions: dict[str, Any] = {}
        self.graphs: dict[str, bool] = {}  # component → whether it is replayed as a graph
        for name in self._components:
            self._sessions[name], self.graphs[name] = self._session(bundle, name, stream)
        self._stream = stream  # which has to outlive the sessions

    @property
    def device(self) -> str:
        return self._device.name

    @property
    def precision(self) -> str:
        """Of the U-Net's arithmetic. TF32 is off: fp32 means it."""
        return self._own

    def close(self) -> None:
        self._sessions.clear()

    def capturing(self) -> contextlib.AbstractContextManager[None]:
        """Around a run, which may be the one that is captured."""
        return self._device.capturing()

    def run(self, component: str, inputs: Mapping[str, Any]) -> list[Any]:
        """As on the CPU: arrays go to the device, and outputs come back."""
        spec = self._components[component]
        feeds = {i.name: np.ascontiguousarray(inputs[i.name], dtype=i.dtype) for i in spec.inputs}
        with self.explained(component), self._device:
            outputs = self._sessions[component].run([o.name for o in spec.outputs], feeds, self.options(component, 0))
        return list(outputs)

    def bind(self, component: str, sizes: Mapping[str, int], addresses: Mapping[str, int]) -> Bound:
        spec, session = self._components[component], self._sessions[component]
        binding, number = session.io_binding(), next(self._numbers)
        for tensors, bind in ((spec.inputs, binding.bind_input), (spec.outputs, binding.bind_output)):
            for t in tensors:
                shape = [sizes[d] if isinstance(d, str) else d for d in t.shape]
                bind(t.name, self.memory, self._device.ordinal, np.dtype(t.dtype).type, shape, addresses[t.name])
        return Bound(self, component, session, binding, number)

    def options(self, component: str, number: int) -> Any:
        """Options of a run: as the graph of that number, without waiting; or, for 0, by itself, and to its end."""
        options = self._ort.RunOptions()
        options.log_severity_level = 4
        if self.graphs[component]:
            options.add_run_config_entry("gpu_graph_id", str(number or -1))
        if number:
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        return options

    @contextlib.contextmanager
    def explained(self, component: str) -> Any:
        """ONNX Runtime's errors share no base class, and what one says is not for our users, but for a size."""
        try:
            yield
        except Exception as e:
            text = str(e)
            asked = re.search(r"requested buffer of size (\d+)", text)
            if asked or "out of memory" in text:
                raise self._device.out_of_memory(int(asked[1]) if asked else None) from None
            raise EngineError(f"engine onnx: component {component} failed on {self.device}") from e

    def _session(self, bundle: Bundle, component: str, stream: Stream) -> tuple[Any, bool]:
        """A component's session, and whether it makes graphs, which it refuses where nodes are left to the CPU."""
        spec = self._components[component]
        data, where = bundle.read_component(component), f"{bundle.folder / spec.file}"
        try:
            session, graphs = self._open(data, stream, True), True
        except Exception:  # ONNX Runtime's errors share no base class
            try:
                session, graphs = self._open(data, stream, False), False
            except Exception as e:
                raise EngineError(f"{where}: ONNX Runtime cannot load this graph on {self.device}") from e
        if session.get_providers()[0] != self.provider:
            raise EngineError(
                f"engine onnx: its CUDA provider does not load on {self.device}: CUDA or cuDNN is missing, or of "
                "another major version (docs/gpu.md)"
            )
        check_signature(spec, _ports(session.get_inputs()), _ports(session.get_outputs()), _DTYPES, where)
        return session, graphs

    def _open(self, data: bytes, stream: Stream, graphs: bool) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 4
        provider = {
            "device_id": str(self._device.ordinal),
            "user_compute_stream": str(stream.handle),
            "enable_cuda_graph": str(int(graphs)),
            "use_tf32": "0",
        }
        providers = [(self.provider, provider), "CPUExecutionProvider"]
        return self._ort.InferenceSession(data, options, providers=providers, enable_fallback=0)


class Bound:
    """A component of an `OnnxCudaEngine` on given memory: see `engines.Binding`."""

    def __init__(self, engine: OnnxCudaEngine, component: str, session: Any, binding: Any, number: int) -> None:
        self._engine, self._component, self._session, self._number = engine, component, session, number
        self._binding, self._options = binding, engine.options(component, number)

    def __call__(self) -> None:
        with self._engine.explained(self._component), self._engine.capturing():
            self._session.run_with_iobinding(self._binding, self._options)

    def release(self) -> None:
        if self._engine.graphs[self._component] and hasattr(self._session, "release_captured_graph"):
            with contextlib.suppress(Exception):  # of a graph that was never made; its errors share no base class
                self._session.release_captured_graph(self._number)
        self._binding = self._session = None


def _ports(ports: Any) -> list[Port]:
    return [(p.name, p.type, [d if isinstance(d, int) else None for d in p.shape]) for p in ports]
