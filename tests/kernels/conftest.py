"""The kernels' tests: natively on a GPU, elsewhere in Triton's interpreter (`tests/conftest.py`)."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("triton") is None or importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]  # Triton is for Linux
