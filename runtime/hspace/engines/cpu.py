"""The processor: what it is, what it can do, and how much of it this process may use."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """How many cores this process may use: its affinity, and the least quota of its control groups where that is less.

    A part of a core counts as one, as in Java and Go: to wait at a period's end costs less than a thread too few.
    root: where the system's files are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([cores, *_quotas(root)]))


def _quotas(root: Path) -> Iterator[int]:
    """The CPU quotas, in cores and rounded up, of this process's control groups, and of all that it can see above them.

    systemd's slices are such groups. Source: cgroups(7), proc_pid_mountinfo(5), and the kernel's admin-guide/cgroup-v2
    (`cpu.max`) and scheduler/sched-bwc (`cpu.cfs_quota_us`).
    """
    groups: dict[str, str] = {}  # type of the file system → path of the group in its hierarchy
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not path.startswith("/"):
            continue
        if number == "0" and not controllers:
            groups["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            groups["cgroup"] = path
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, (kind, _, options) = before.split(), (*after.split(), "", "", "")[:3]
        if len(fields) < 5 or kind not in groups or (kind == "cgroup" and "cpu" not in options.split(",")):
            continue
        top, point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), f) for f in fields[3:5])
        # what is mounted may begin below the hierarchy's top; a container's own group then is the mount itself
        below = os.path.relpath(groups[kind], top)
        group = root / point.lstrip("/") / ("" if below.startswith("..") else below)
        for folder in (group, *group.parents):
            yield from _quota(folder)
            if folder == root / point.lstrip("/"):
                break


def _quota(folder: Path) -> Iterator[int]:
    """The quota of one control group, if it has one."""
    v2 = " ".join(_lines(folder / "cpu.max"))
    v1 = " ".join(line for name in ("quota", "period") for line in _lines(folder / f"cpu.cfs_{name}_us"))
    for text in (v2, v1):
        with contextlib.suppress(ValueError):  # there is none, or it is "max"
            quota, period = map(int, text.split())
            if quota > 0 and period > 0:
                yield -(-quota // period)


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
    pairs = (line.partition(":") for line in _lines(Path("/proc/cpuinfo")))
    return next((value.strip() for name, _, value in pairs if name.strip() == field), "")


def _lines(path: Path) -> list[str]:
    """Of a file that the system may have."""
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
