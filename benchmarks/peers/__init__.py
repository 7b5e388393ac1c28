"""The comparison with what a user would otherwise run; `benchmarks/peers.py` is its command."""
