"""The processor: what it is, what it can do, and how much of it this process may use."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def usable_cores() -> int:
    """How many cores this process may use: its affinity, and its control group's quota where that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no quota ("max")
        return cores


def processor() -> str:
    """What processor this is, in its maker's words where the system tells them."""
    return _told("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """What the processor can do, as the system lists it: names in order, with spaces between; "" where it does not.

    A maker's words can be the same for processors that differ in it ("AMD EPYC").
    """
    return " ".join(sorted((_told("flags") or _told("Features")).split()))


def _told(field: str) -> str:
    """The first value of a field of /proc/cpuinfo, or ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    found = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in found if name.strip() == field), "")
