"""The one place where ONNX Runtime and OpenVINO are imported, so that neither reports to its maker.

ONNX Runtime keeps a device's id and a queue of events under the user's cache folder, writes `.ses` in the temporary
folder, and asks for its endpoint; ORT_DISABLE_TELEMETRY, set before it starts, stops all of it. OpenVINO reports its
own import through the package `openvino_telemetry`, which writes an id into the home folder; where that package is
missing, OpenVINO uses a stub of its own. No setting stops this but a file in the home folder.

A program that imported one of them before hspace has started its telemetry already; what can still be stopped, is.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

_REPORTER = "openvino_telemetry"
_LOCK = threading.Lock()


def keep_quiet() -> None:
    """Says to ONNX Runtime, in this process and those that it starts, that nothing is to be reported."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"


def onnxruntime() -> Any:
    """The package. Raises ImportError as an import does."""
    keep_quiet()
    module = importlib.import_module("onnxruntime")
    getattr(module, "disable_telemetry_events", bool)()  # for who imported it before
    return module


def openvino() -> Any:
    """The package. Raises ImportError as an import does."""
    with _LOCK:
        if "openvino" in sys.modules:
            return importlib.import_module("openvino")
        before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == _REPORTER}
        sys.modules[_REPORTER] = None  # type: ignore[assignment]  # an import of it fails
        try:
            return importlib.import_module("openvino")
        finally:
            del sys.modules[_REPORTER]
            sys.modules.update(before)
