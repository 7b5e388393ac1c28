"""The one place where libraries are imported that report to their makers or write into the home folder unasked.

ONNX Runtime keeps a device's id and a queue of events under the user's cache folder, writes `.ses` in the temporary
folder, and asks for its endpoint; ORT_DISABLE_TELEMETRY, set before it starts, stops all of it. OpenVINO reports its
own import through the package `openvino_telemetry`, which writes an id into the home folder; where that package is
missing, OpenVINO uses a stub of its own. No setting stops this but a file in the home folder.

Matplotlib keeps a list of fonts in the home folder, which belongs into the cache.

A program that imported one of them before hspace has started its telemetry already; what can still be stopped, is.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Any

from . import cache

_REPORTER = "openvino_telemetry"
_LOCK = threading.Lock()


def onnxruntime() -> Any:
    """The package. Raises ImportError as an import does."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the processes that this one starts, too
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


def matplotlib() -> Any:
    """The package, with its figures. Raises ImportError as an import does."""
    if "matplotlib" not in sys.modules and "MPLCONFIGDIR" not in os.environ:
        folder = cache.made("matplotlib")
        if folder is not None:
            os.environ["MPLCONFIGDIR"] = str(folder)
    importlib.import_module("matplotlib.figure")
    return importlib.import_module("matplotlib")
