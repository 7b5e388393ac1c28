"""hspace beside what a user would otherwise run: the same weights, images and steps, interleaved, with ratios.

    python benchmarks/peers.py [ddpm256 diffae256 avatars32] [--work FOLDER] [--checkpoint avatars32_autoenc_last.ckpt]
        [--steps 3] [--rounds 5] [--threads 2] [--peers NAME,…] [--full] [--json FILE] [--plot FILE.png]

Needs the extras export, diffusers and openvino. The 256×256 networks have random weights; they are exported into
--work, with their checkpoints beside them, and used again if they are there. Every peer lives in a process of its own,
so that its memory is its own; one runs at a time, round after round. An edit at the official steps takes minutes in
PyTorch, so it is composed of what its steps cost in a short edit, and really run with --full.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from hspace.bench.machine import versions
from hspace.engines.cpu import processor
from peers import report
from peers.cases import NAMES, ROOT, Case, prepare
from peers.runners import PEERS, Steps, serve

PACKAGES = ("hspace", "numpy", "torch", "diffusers", "onnxruntime", "openvino")
REFERENCE = "hspace onnx"


class Peer:
    """A peer in its process. `ask` gives its answer; after an error it is gone."""

    def __init__(self, name: str, case: Case, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, name, case, threads), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str | None = None, steps: Steps | None = None) -> dict[str, Any]:
        """Without a method: what it says when it is open."""
        try:
            if method is not None:
                self.connection.send((method, steps))
            answer: dict[str, Any] = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            answer = {"error": f"its process ended with {self.process.exitcode}"}
        return answer

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.send(None)
        self.process.join()


def measure(case: Case, names: list[str], rounds: int, threads: int | None, full: bool) -> dict[str, Any]:
    """Opens every peer, and runs each in turn, round after round; a peer that fails is left out from there on."""
    peers: dict[str, Peer] = {}
    measured: dict[str, dict[str, Any]] = {}
    reference = None
    for name in names:
        log(f"{case.name}: {name}")
        peer = Peer(name, case, threads)
        opened = peer.ask()
        first = opened if "error" in opened else peer.ask("round_trip" if name == "diffusers" else "edit", case.steps)
        if "error" in first:
            measured[name] = {"error": first["error"]}
            peer.close()
            continue
        peers[name], measured[name] = peer, {**opened, "peak": first["peak"], "first_step": first["first_step"]}
        reference = first["x"] if name == REFERENCE else reference
        if reference is not None and name != "diffusers":
            difference = np.linalg.norm(first["x"] - reference) / np.linalg.norm(reference)
            measured[name]["difference"] = float(difference)
    jobs = {name: ["round_trip"] if name == "diffusers" else ["edit"] for name in peers}
    for name in peers:
        if name.startswith("hspace "):
            jobs[name] += ["balanced"] * ("balanced" in case.presets) + ["round_trip"] * ("diffusers" in peers)
    for i in range(rounds):
        log(f"{case.name}: round {i + 1} of {rounds}")
        order = list(peers)
        for name in order[i % len(order) :] + order[: i % len(order)]:
            for job in jobs[name]:
                answer = peers[name].ask(job, case.steps)
                if "error" in answer:
                    measured[name]["error"] = answer["error"]
                    peers.pop(name).close()
                    break
                measured[name].setdefault(job, []).append(summary(answer) if job == "edit" else answer["seconds"])
    if full:
        for name in peers:
            if "edit" in jobs[name]:
                log(f"{case.name}: {name}, the whole edit")
                answer = peers[name].ask("edit", case.official)
                measured[name] |= (
                    {"full": answer["seconds"]} if "error" not in answer else {"full_error": answer["error"]}
                )
    for peer in peers.values():
        peer.close()
    e, d = case.official
    what = f"{case.family}, {case.image.shape[-1]}×{case.image.shape[-1]}, one image, official {e} + {d} steps"
    return {"name": case.name, "what": what, "official": case.official, "steps": case.steps, "peers": measured}


def summary(answer: dict[str, Any]) -> dict[str, float]:
    """Of one edit: its seconds, the median of each kind of step, and the rest, which is not steps."""
    kinds: dict[str, list[float]] = {}
    for kind, seconds in answer["steps"]:
        kinds.setdefault(kind, []).append(seconds)
    rest = answer["seconds"] - sum(seconds for _, seconds in answer["steps"])
    return {"seconds": answer["seconds"], "rest": rest, **{kind: median(each) for kind, each in kinds.items()}}


def log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def machine(threads: int | None) -> dict[str, str]:
    """Where and with what this ran."""
    try:
        with open("/proc/meminfo") as f:
            memory = f"{int(f.readline().split()[1]) / 2**20:.0f} GiB"
    except OSError:
        memory = "?"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(command, text=True, capture_output=True, check=False).stdout.strip()
    told = versions(PACKAGES)
    return {
        "processor": f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory}",
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {told.get(package, '-')}" for package in PACKAGES),
        "threads": f"{threads}, set" if threads else f"{len(os.sched_getaffinity(0))}, each library's default",
        "commit": commit or "?",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(NAMES))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "hspace-peers")
    parser.add_argument("--checkpoint", type=Path, help="the checkpoint of bundles/avatars32")
    parser.add_argument("--steps", type=int, help="of the short edits, each way [3; 20 for avatars32]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of every peer [all cores]")
    parser.add_argument("--peers", help="only these, by parts of their names: torch,hspace")
    parser.add_argument("--full", action="store_true", help="also run the official edits whole, once")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    from hspace.engines import ENGINES

    names = [f"hspace {engine}" for engine in sorted(ENGINES, key=lambda e: e != "onnx") if engine != "null"]
    names += PEERS
    if args.peers:
        names = [n for n in names if n == REFERENCE or any(part in n for part in args.peers.split(","))]
    for name in args.cases:
        if name not in NAMES:
            parser.error(f"case: found {name!r}, expected one of {', '.join(NAMES)}")
    head = machine(args.threads)
    print("\n".join(f"{k}: {v}" for k, v in head.items()), flush=True)
    results = []
    for name in args.cases or NAMES:
        case = prepare(name, args.work, args.checkpoint, args.steps)
        results.append(measure(case, names, args.rounds, args.threads, args.full))
        print(f"\n{report.case_text(results[-1])}", flush=True)
    goals = report.goals(results)
    print(f"\n{report.goals_text(goals)}")
    if args.json:
        args.json.write_text(json.dumps({"machine": head, "cases": results, "goals": goals}, indent=1) + "\n")
    if args.plot:
        report.plot(results, args.plot)


if __name__ == "__main__":
    main()
