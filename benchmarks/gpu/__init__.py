"""The measurements on a GPU; `benchmarks/gpu.py` is their command."""
