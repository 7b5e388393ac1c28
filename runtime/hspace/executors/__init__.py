"""Executors run batches (`batch`) on an engine: `cpu` keeps the state in NumPy arrays, `cuda` on a GPU."""
