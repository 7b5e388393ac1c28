"""The kernels' tests: natively where there is a CUDA device, elsewhere in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import os
import sys

if importlib.util.find_spec("triton") is None or importlib.util.find_spec("torch") is None:
    collect_ignore_glob = ["test_*.py"]  # Triton is for Linux
else:
    import torch

    if not torch.cuda.is_available():
        assert "triton" not in sys.modules, "Triton was imported before its interpreter could be chosen"
        os.environ["TRITON_INTERPRET"] = "1"
