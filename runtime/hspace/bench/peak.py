"""What this machine's matrix units reach: the best of every library that is installed, in fp32 and in bf16.

That is not steady: other work on the machine, its clock and its neighbours change it by factors. So the best is found
once, and measured again in every round of a benchmark, beside what is compared with it. All of it runs in a process of
its own (`python -m hspace.bench.peak THREADS`), so that no library's threads are in the way of an engine's.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..engines import privacy

PRECISIONS = ("fp32", "bf16")
_SIZES = (1024, 2048, 3072)  # of square matrices
_CHANNELS, _SIDE, _DEPTH = 128, 128, 4  # of the convolution; how many layers a graph has, one after another
_SECONDS, _LONGEST = 0.2, 0.3  # for each candidate; of one run, beyond which no larger size is tried
_AGAIN = 0.1  # seconds of a later measurement

Candidate = tuple[str, str, float, Callable[[], object]]  # library and what, precision, operations, one run


class Probe:
    """The process that measures; it ends with this one. threads: how many each library may use. Opens in 2 to 10 s.

    peaks: precision → {"gflops": GFLOP/s of its best moment, "by": library and what it computes, "flop": operations of
    one `run`}, of the precisions that a library here computes in; empty where the process cannot be started, or failed.
    """

    def __init__(self, threads: int | None) -> None:
        self.peaks: dict[str, dict[str, Any]] = {}
        self._process: subprocess.Popen[str] | None = None
        count = str(threads or "")
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **(dict.fromkeys(names, count) if threads else {})}
        command = [sys.executable, "-m", __name__, *([count] if threads else [])]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        try:
            self._process = subprocess.Popen(command, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=null)
            self.peaks = json.loads(self._answer())
        except (OSError, ValueError):
            self.close()

    def run(self, precision: str) -> None:
        """Computes what was best in that precision, `flop` operations in about 0.1 s, for the caller to time."""
        if self._process is None:
            return
        try:
            assert self._process.stdin is not None
            print(precision, file=self._process.stdin, flush=True)
            self._answer()
        except OSError:
            self.close()

    def close(self) -> None:
        """Ends the process; it has no peaks any more."""
        self.peaks = {}
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _answer(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise OSError("the process that measures the peak ended")
        return line


def _serve(threads: int | None) -> None:
    """A line of JSON with what was found; then a line for each precision that comes in, once it was computed."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's words are no answers
    best = _best(threads)
    rates = {p: {"gflops": e["gflops"], "by": e["by"], "flop": e["flop"] * e["times"]} for p, e in best.items()}
    print(json.dumps(rates), file=answers, flush=True)
    for line in sys.stdin:
        each = best[line.strip()]
        for _ in range(each["times"]):
            each["run"]()
        print(file=answers, flush=True)


def _best(threads: int | None) -> dict[str, dict[str, Any]]:
    """Precision → the fastest candidate: its gflops, by, flop and run, and how many times it fits into `_AGAIN`."""
    best: dict[str, dict[str, Any]] = {}
    for library in (_numpy, _openvino, _torch):
        slow: set[tuple[str, str]] = set()  # larger sizes of what took long already are left out
        try:
            for by, precision, flop, run in library(threads):
                kind = by.rstrip("0123456789"), precision
                if kind in slow:
                    continue
                run()
                fastest, until = float("inf"), time.perf_counter() + _SECONDS
                while time.perf_counter() < until or fastest == float("inf"):
                    start = time.perf_counter()
                    run()
                    fastest = min(fastest, time.perf_counter() - start)
                if fastest > _LONGEST / 4:
                    slow.add(kind)
                gflops = flop / fastest / 1e9
                if gflops > best.get(precision, {"gflops": 0.0})["gflops"]:
                    times = max(1, round(_AGAIN / fastest))
                    best[precision] = {"gflops": gflops, "by": by, "flop": flop, "run": run, "times": times}
        except Exception:  # a library that is broken, or lacks what is asked of it, is none
            continue
    return best


def _numpy(threads: int | None) -> Iterator[Candidate]:
    for n in _SIZES:
        a, out = np.ones((n, n), np.float32), np.empty((n, n), np.float32)
        yield f"NumPy, matrices of {n}", "fp32", 2.0 * n**3, lambda a=a, out=out: np.matmul(a, a, out=out)  # type: ignore[misc]


def _openvino(threads: int | None) -> Iterator[Candidate]:
    """Layers one after another, so that what turns the first's input into bf16 counts for little."""
    ov = privacy.openvino()
    op: Any = importlib.import_module("openvino.opset13")
    core = ov.Core()
    able = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")

    def runner(layer: Callable[[Any], Any], shape: list[int], precision: str) -> Callable[[], object]:
        x = y = op.parameter(shape, np.float32)
        for _ in range(_DEPTH):
            y = layer(y)
        hint = {"fp32": "f32", "bf16": "bf16"}[precision]
        config = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
        config |= {"INFERENCE_NUM_THREADS": str(threads)} if threads else {}
        request = core.compile_model(ov.Model([y], [x]), "CPU", config).create_infer_request()
        request.set_input_tensor(ov.Tensor(np.full(shape, 1e-3, np.float32)))
        infer: Callable[[], object] = request.infer
        return infer

    for precision in PRECISIONS if able else PRECISIONS[:1]:
        kernel = op.constant(np.full((_CHANNELS, _CHANNELS, 3, 3), 1e-3, np.float32))
        shape = [1, _CHANNELS, _SIDE, _SIDE]

        def convolve(y: Any, kernel: Any = kernel) -> Any:
            return op.convolution(y, kernel, [1, 1], [1, 1], [1, 1], [1, 1])

        yield "OpenVINO, 3×3 convolution", precision, _convolution(_DEPTH), runner(convolve, shape, precision)
        for n in _SIZES:
            weight = op.constant(np.full((n, n), 1e-3, np.float32))

            def multiply(y: Any, weight: Any = weight) -> Any:
                return op.matmul(y, weight, False, True)  # as it keeps them

            yield f"OpenVINO, matrices of {n}", precision, 2.0 * _DEPTH * n**3, runner(multiply, [n, n], precision)


def _torch(threads: int | None) -> Iterator[Candidate]:
    torch: Any = importlib.import_module("torch")
    if threads:
        torch.set_num_threads(threads)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        kernel = torch.full((_CHANNELS, _CHANNELS, 3, 3), 1e-3, dtype=dtype).to(memory_format=torch.channels_last)
        x = torch.ones((1, _CHANNELS, _SIDE, _SIDE), dtype=dtype).to(memory_format=torch.channels_last)

        def convolve(x: Any = x, kernel: Any = kernel) -> object:
            return torch.nn.functional.conv2d(x, kernel, padding=1)

        yield "PyTorch, 3×3 convolution", precision, _convolution(1), convolve
        for n in _SIZES:
            a = torch.ones((n, n), dtype=dtype)

            def multiply(a: Any = a) -> object:
                return a @ a

            yield f"PyTorch, matrices of {n}", precision, 2.0 * n**3, multiply


def _convolution(layers: int) -> float:
    """Operations, with those at the border that meet the padding, as `counting` counts them."""
    return 2.0 * layers * _CHANNELS * _CHANNELS * 9 * _SIDE * _SIDE


if __name__ == "__main__":
    _serve(int(sys.argv[1]) if len(sys.argv) > 1 else None)
