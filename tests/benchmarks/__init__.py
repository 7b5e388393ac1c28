"""Tests of benchmarks/, whose packages are found beside its scripts."""

import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(FOLDER))
