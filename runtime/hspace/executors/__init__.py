"""Executors run programs on an engine: `cpu` keeps the state in NumPy arrays."""
