"""The tests that need a GPU: the kernels' own, natively, and those of tests/gpu."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from .report import Found, Goal
from .workers import LIMIT, Failed, apart

ROOT = Path(__file__).parents[2]
SUITES = {"kernels": "tests/kernels", "gpu": "tests/gpu"}
COUNTS = ("passed", "failed", "skipped")
REBUILD = "tests/kernels/test_build.py::test_a_rebuild_gives_the_same"  # of one version of Triton, and needs no GPU


def section(work: Path) -> Found:
    """Both suites; a goal for each, that nothing fails."""
    findings = Found()
    rows = []
    for name, folder in SUITES.items():
        try:
            if name == "kernels":
                apart(work / "logs" / "tests.log", native)
            counts, failed = run(folder, work)
        except Failed as e:
            findings.errors.append(f"{folder}: {e}")
            continue
        findings.numbers[name] = counts | {"failures": failed}
        rows.append([folder, *(str(counts[k]) for k in COUNTS)])
        if counts["passed"] + counts["failed"]:
            findings.goals.append(Goal(f"{folder}: failed", counts["failed"], 0, ""))
        else:
            findings.errors.append(f"{folder}: every test was skipped")
        findings.errors += [f"{folder}: {test}" for test in failed[:5]]
    findings.tables.append((["tests", *COUNTS], rows))
    return findings


def native() -> None:
    """Raises Failed where the kernels' tests would run in Triton's interpreter."""
    try:
        import torch
        import triton  # noqa: F401
    except ImportError as e:
        raise Failed(f"the package {e.name} is not installed") from None
    if not torch.cuda.is_available():
        raise Failed(f"PyTorch {torch.__version__} cannot use the GPU")


def run(folder: str, work: Path) -> tuple[dict[str, int], list[str]]:
    """How many tests of a folder passed, failed and were skipped, and the names of those that failed. Raises Failed."""
    work.mkdir(parents=True, exist_ok=True)
    report = work / "tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", folder, f"--deselect={REBUILD}"]
    command += ["-p", "no:cacheprovider", f"--junitxml={report}"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"pytest did not end in {LIMIT:.0f} s") from None
    try:
        suites = list(ElementTree.parse(report).iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        last = [text for text in (done.stdout + done.stderr).splitlines() if text.strip()][-1:]
        raise Failed(f"pytest reported nothing: {' '.join(last)}") from None
    number = {k: sum(int(s.get(k, 0)) for s in suites) for k in ("tests", "failures", "errors", "skipped")}
    failed = number["failures"] + number["errors"]
    names = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in ElementTree.parse(report).iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = number["tests"] - failed - number["skipped"]
    return {"passed": passed, "failed": failed, "skipped": number["skipped"]}, names
