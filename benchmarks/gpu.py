"""Everything that hspace claims of a GPU, measured on the one that is here.

    python benchmarks/gpu.py [--only tests,accuracy,kernels,steps,edits] [--work FOLDER] [--rounds 6] [--json FILE]
    python benchmarks/gpu.py --prepare [--work FOLDER]           # exports the networks; needs no GPU

Needs an NVIDIA driver, cuda-python, onnxruntime-gpu, PyTorch with Triton, pytest and onnx; what is missing is said, and
what does not need it still runs. Prints tables, and writes benchmarks/results/<GPU>.json: what was found, each goal and
its verdict. Sections that are not run keep what an earlier run on the same GPU and versions found, with its commit. The
exit code is 1 where something could not be measured, or a goal is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from gpu import networks, report
    from gpu.report import Found
    from gpu.suites import ROOT
    from gpu.workers import Failed, line
    from hspace.bench import machine
    from hspace.cuda.driver import Device
    from hspace.errors import DeviceError
except ImportError as e:
    sys.exit(f"the package {e.name} is not installed")

SECTIONS = ("tests", "accuracy", "kernels", "steps", "edits")
PACKAGES = ("torch", "triton", "onnx", "pytest")  # beside those that `machine.stamp` names


def run(name: str, work: Path, quick: bool, rounds: int) -> Found:
    """A section. What it cannot measure, it says in `errors`."""
    try:
        return _section(name)(*{"tests": (work,), "accuracy": (work, quick)}.get(name, (work, quick, rounds)))
    except Failed as e:
        return Found(errors=[str(e)])
    except ImportError as e:
        return Found(errors=[f"the package {e.name} is not installed"])


def _section(name: str) -> Callable[..., Found]:
    """Imported when it is run: one needs onnx, another does not."""
    if name == "tests":
        from gpu import suites as module
    elif name == "accuracy":
        from gpu import accuracy as module
    elif name == "kernels":
        from gpu import bandwidth as module
    elif name == "steps":
        from gpu import steps as module
    else:
        from gpu import edits as module
    return module.section


def stamp() -> dict[str, Any]:
    """Where this runs, and with what."""
    told = machine.stamp() | {"gpu": machine.gpu(Device(0))}
    told["versions"] |= machine.versions(PACKAGES)
    return told


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "hspace-gpu")
    parser.add_argument("--only", default=",".join(SECTIONS), metavar="SECTION,…", help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--json", type=Path, help="instead of benchmarks/results/<GPU>.json")
    parser.add_argument("--quick", action="store_true", help="to try the script: small networks, nothing is kept")
    parser.add_argument("--prepare", action="store_true", help="only export the networks that steps and edits need")
    args = parser.parse_args()
    names = [name for name in SECTIONS if name in args.only.split(",")]
    if unknown := {*args.only.split(",")} - {*SECTIONS}:
        parser.error(f"--only: found {', '.join(sorted(unknown))}, expected some of {', '.join(SECTIONS)}")
    if args.rounds < 1:
        parser.error(f"--rounds: found {args.rounds}, expected at least 1")
    try:
        if args.prepare:
            for name in networks.networks(args.quick):
                print(networks.prepare(args.work, args.quick, name))
            return 0
        head = stamp()
    except (Failed, DeviceError, ImportError) as e:
        log(line(e))
        return 1
    print(f"{machine.card(head['gpu'])}\n{', '.join(f'{p} {v}' for p, v in head['versions'].items())}", flush=True)
    path = args.json or ROOT / "benchmarks" / "results" / f"{report.slug(head['gpu']['model'])}.json"
    sections: dict[str, Found] = {}
    for name in names:
        log(f"{name} …")
        begun = time.perf_counter()
        sections[name] = run(name, args.work, args.quick, args.rounds)
        sections[name].numbers["seconds"] = round(time.perf_counter() - begun, 1)
        print(f"\n{name}\n\n{sections[name].text()}", flush=True)
        if args.json or not args.quick:
            report.write(path, head, args.quick, sections)
    failed = [name for name, part in sections.items() if part.errors]
    missed = [goal.name for part in sections.values() for goal in part.goals if not goal.met]
    for what, each in (("could not be measured, or failed", failed), ("goals missed", missed)):
        if each:
            log(f"{what}: {'; '.join(each)}")
    return int(bool(failed or missed))


if __name__ == "__main__":
    sys.exit(main())
