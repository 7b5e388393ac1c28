"""How many cores a process may use, on made-up systems with control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hspace.engines import cpu

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate"
V1 = "31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:10 - cgroup cgroup rw,cpu,cpuacct"


@pytest.fixture(autouse=True)
def _sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)


def cores(root: Path, groups: str, mounts: str, **files: str) -> int:
    written = {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts}
    written |= {f"sys/fs/cgroup/{k}": v for k, v in files.items()}
    for name, text in written.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return cpu.usable_cores(root)


NESTED = "0::/user.slice/user-1000.slice/job.scope"


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 16), ("400000 100000", 4), ("150000 100000", 2), ("50000 100000", 1), ("3200000 100000", 16)],
)
def test_quota_of_version_2(tmp_path: Path, quota: str, expected: int) -> None:
    assert cores(tmp_path, "0::/", V2, **{"cpu.max": quota}) == expected


def test_a_slice_above_decides(tmp_path: Path) -> None:
    """systemd's CPUQuota of a user's slice; the scope itself has none."""
    files = {
        "user.slice/cpu.max": "800000 100000",
        "user.slice/user-1000.slice/cpu.max": "30000 10000",
        "user.slice/user-1000.slice/job.scope/cpu.max": "max 100000",
    }
    assert cores(tmp_path, NESTED, V2, **files) == 3
    files["user.slice/user-1000.slice/job.scope/cpu.max"] = "200000 100000"
    assert cores(tmp_path, NESTED, V2, **files) == 2
    assert cores(tmp_path, "0::/system.slice", V2, **files) == 16  # a neighbour's quota is none of ours


def test_quota_of_version_1(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/a/cpu.cfs_quota_us": "500000",
        "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        "cpu,cpuacct/a/b/cpu.cfs_quota_us": "-1",
        "cpu,cpuacct/a/b/cpu.cfs_period_us": "100000",
    }
    groups = "5:cpuset:/x\n4:cpu,cpuacct:/a/b\n1:name=systemd:/y\n0::/z"
    assert cores(tmp_path, groups, V1, **files) == 5


def test_a_container_sees_its_own_group_as_the_top(tmp_path: Path) -> None:
    """Without a namespace for groups the path is the host's; what is mounted is the group itself."""
    v1 = V1.replace(" / /sys", " /docker/7f /sys")
    files = {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
    assert cores(tmp_path, "4:cpu,cpuacct:/docker/7f", v1, **files) == 2
    assert cores(tmp_path, "4:cpu,cpuacct:/elsewhere", v1, **files) == 2  # the host's /proc beside it


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    unified = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/unified ")
    files = {
        "cpu,cpuacct/a/cpu.cfs_quota_us": "600000",
        "cpu,cpuacct/a/cpu.cfs_period_us": "100000",
        "unified/b/cpu.max": "700000 100000",
    }
    assert cores(tmp_path, "4:cpu,cpuacct:/a\n0::/b", f"{V1}\n{unified}", **files) == 6


@pytest.mark.parametrize("text", ["", "garbage", "0 0", "x y", "-5 100000", "1 2 3", "9" * 400 + " 1"])
def test_a_quota_that_is_none(tmp_path: Path, text: str) -> None:
    assert cores(tmp_path, "0::/", V2, **{"cpu.max": text}) == 16


def test_a_path_with_spaces(tmp_path: Path) -> None:
    spaced = V2.replace("/sys/fs/cgroup ", "/sys/fs/cgroup/a\\040b ")
    assert cores(tmp_path, "0::/c", spaced, **{"a b/c/cpu.max": "300000 100000"}) == 3


def test_no_such_files(tmp_path: Path) -> None:
    assert cpu.usable_cores(tmp_path) == 16
    assert cores(tmp_path, "0::\n\n4:cpu\n:::", "x\ny - cgroup2\n" + V2) == 16
    assert 1 <= cpu.usable_cores() <= 16


def test_affinity_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert cores(tmp_path, "0::/", V2, **{"cpu.max": "800000 100000"}) == 2
