"""Latency of a step: hspace's parts, its overhead over the bare network, and PyTorch beside it in the same rounds.

Everyone lives in a process of its own and takes turns, round after round. All times are the device's, from what a step
enqueues first to what it enqueues last, with steps enqueued one after another and not waited for.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hspace
import numpy as np
from hspace.bench.device import Ready, ready
from hspace.bench.timing import summary

from . import networks
from .clock import Clock
from .report import Found, Goal, spread, spread_text
from .workers import Failed, Worker

BATCHES = (1, 4, 16)
OVERHEAD = 3.0  # the goal, in percent
SECONDS = 0.1  # that a part is measured for in a round
KINDS = {"step": "network", "asymmetric step": "network ×2"}  # a step, and the bare network that it evaluates
UPDATES = 20  # that are timed as one
TORCH = ("eager", "channels-last", "compile")


class Hspace:
    """An editor on a GPU.

    What can be timed: "step", "asymmetric step"; "network", "network ×2": their trunk and head alone, bound and
    enqueued the same way; "update": linear_step alone.
    """

    def __init__(self, editor: hspace.Editor) -> None:
        self._editor, executor = editor, editor.executor
        self._device, self._clock = executor.device, Clock(executor.stream)
        self._executor, self._stream = executor, executor.stream
        self._ready: dict[str, Ready] = {}

    def open(self, n: int) -> list[str]:
        """Makes steps of n samples ready, and forgets those before. Returns what can be timed."""
        for here in self._ready.values():
            here.close()
        self._ready = dict(zip(KINDS, ready(self._editor, n), strict=True))
        return [*KINDS, *KINDS.values(), "update"]

    def about(self) -> dict[str, Any]:
        """Whether steps are CUDA graphs, and why not; and which components the engine replays as graphs of its own."""
        why = self._executor.not_captured
        graphs = getattr(self._executor.engine, "graphs", {})
        return {"captured": why is None, "engine_graphs": dict(graphs)} | ({} if why is None else {"why_not": why})

    def time(self, what: str, count: int) -> list[float]:
        """Milliseconds of each of `count`."""
        if what == "update":
            plain = self._ready["step"]
            return self._laps(plain, lambda: self._enqueue(plain, ["update"] * UPDATES), count, UPDATES)
        for step, network in KINDS.items():
            here = self._ready[step]
            if what == step:
                return self._laps(here, here.step, count)
            if what == network:
                return self._laps(here, lambda h=here: self._enqueue(h, ["trunk", "head"]), count)
        raise Failed(f"found {what!r}, expected a part of a step")

    def split(self, step: str, count: int) -> dict[str, list[float]]:
        """Part → milliseconds of each of `count` steps whose parts are launched one by one, a mark after each."""
        here = self._ready[step]
        with self._device:
            for _ in range(count):
                here.again()
                self._clock.mark()
                for part in here.parts:
                    self._enqueue(here, [part])
                    self._clock.mark()
            laps = self._clock.laps()
        width = len(here.parts) + 1  # the laps of a step, and that to the next
        return {part: laps[i::width] for i, part in enumerate(here.parts)}

    def _enqueue(self, of: Ready, parts: list[str]) -> None:
        for part in parts:
            for launch in of.parts[part]:
                launch(self._stream)

    def _laps(self, of: Ready, enqueue: Callable[[], object], count: int, each: int = 1) -> list[float]:
        with self._device:
            for _ in range(count):
                of.again()
                self._clock.mark()
                enqueue()
                self._clock.mark()
            return [lap / each for lap in self._clock.laps()[::2]]


def open_hspace(bundle: Path) -> Hspace:
    return Hspace(hspace.open(bundle, device="cuda:0"))


def open_torch(bundle: Path, form: str, cache: Path) -> Any:
    """A `pytorch.Party`."""
    try:
        from .pytorch import Party
    except ImportError as e:
        raise Failed(f"the package {e.name} is not installed") from None
    return Party(bundle, form, cache)


def section(work: Path, quick: bool, rounds: int) -> Found:
    """Every network and batch size."""
    findings = Found()
    for name, network in networks.networks(quick).items():
        try:
            bundle = networks.prepare(work, quick, name)
        except Failed as e:
            findings.errors.append(f"{name}: {e}")
            continue
        errors: list[str] = []
        parties = _open(name, bundle, work, errors)
        try:
            if "hspace" in parties:
                numbers = compare(parties, BATCHES, rounds, SECONDS / (10 if quick else 1), errors)
                findings.numbers[name] = numbers | {"title": network.title}
                _describe(findings, name, numbers)
        finally:
            for worker in parties.values():
                worker.close()
        findings.errors += [f"{name}: {e}" for e in errors]
    return findings


def _open(name: str, bundle: Path, work: Path, errors: list[str]) -> dict[str, Worker]:
    parties: dict[str, Worker] = {}
    makers: dict[str, tuple[Any, ...]] = {"hspace": (open_hspace, bundle)}
    makers |= {f"PyTorch {form}": (open_torch, bundle, form, work / "inductor") for form in TORCH}
    for party, (make, *arguments) in makers.items():
        try:
            parties[party] = Worker(work / "logs" / f"{name}-{party}.log".replace(" ", "-"), make, *arguments)
        except Failed as e:
            errors.append(f"{party}: {e}")
            if party == "hspace":
                break  # there is nothing to compare the others with
    return parties


def compare(
    parties: dict[str, Any], batches: tuple[int, ...], rounds: int, seconds: float, errors: list[str]
) -> dict[str, Any]:
    """ "batches": batch size → what `summarised` has; and what `Hspace.about` says.

    A party but hspace that fails is left out from there on; where hspace does, that is the end. `errors` says why.
    """
    compared: dict[str, Any] = {"batches": {}}
    for n in batches:
        try:
            compared["batches"][str(n)] = summarised(*_take_turns(parties, n, rounds, seconds, errors))
            compared |= parties["hspace"].ask("about")
        except Failed as e:
            errors.append(f"batch {n}: hspace: {e}")
            break
    return compared


Times = dict[str, dict[str, list[list[float]]]]  # party → part → round → milliseconds
Split = dict[str, dict[str, list[float]]]  # step → part → milliseconds


def _take_turns(parties: dict[str, Any], n: int, rounds: int, seconds: float, errors: list[str]) -> tuple[Times, Split]:
    """Everyone's steps of n samples, each part for so many seconds a round."""
    times: Times = {}
    split: Split = {step: {} for step in KINDS}
    counts: dict[tuple[str, str], int] = {}
    for party in list(parties):
        with _leaving_out(party, n, parties, times, errors):
            times[party] = {part: [] for part in parties[party].ask("open", n)}
            for part in times[party]:
                counts[party, part] = _count(parties[party], part, seconds)
    for k in range(rounds):
        order = list(times)
        turn = k % len(order)
        for party in order[turn:] + order[:turn]:
            with _leaving_out(party, n, parties, times, errors):
                for part, each in times[party].items():
                    each.append(parties[party].ask("time", part, counts[party, part]))
        for step, laps_of in split.items():
            for part, laps in parties["hspace"].ask("split", step, counts["hspace", step]).items():
                laps_of.setdefault(part, []).extend(laps)
    return times, split


@contextlib.contextmanager
def _leaving_out(party: str, n: int, parties: dict[str, Any], times: Times, errors: list[str]) -> Iterator[None]:
    """Where a party other than hspace fails, it is closed and forgotten."""
    try:
        yield
    except Failed as e:
        if party == "hspace":
            raise
        errors.append(f"batch {n}: {party}: {e}")
        parties.pop(party).close()
        times.pop(party, None)


def _count(worker: Any, part: str, seconds: float) -> int:
    """How often a part fits into so many seconds, 3 … 50, once it is warm."""
    for _ in range(2):  # what is compiled, searched for and captured
        worker.ask("time", part, 3)
    start = time.perf_counter()
    worker.ask("time", part, 3)
    return int(np.clip(seconds * 3 / (time.perf_counter() - start), 3, 50))


def summarised(times: Times, split: Split) -> dict[str, Any]:
    """Of one batch size: "milliseconds" (party → part) and "split" (step → part), summaries of all rounds' times; and
    what is compared round by round, as spreads: "overhead" (step → percent) and "ratio" (party → part).
    """
    milliseconds = {
        party: {part: summary([t for each in rounds for t in each]) for part, rounds in parts.items()}
        for party, parts in times.items()
    }
    medians = {
        party: {part: [float(np.median(each)) for each in rounds] for part, rounds in parts.items()}
        for party, parts in times.items()
    }
    own = medians["hspace"]
    return {
        "milliseconds": milliseconds,
        "split": {
            step: {part: summary(laps) for part, laps in each.items() if part != "inject" or step != "step"}
            for step, each in split.items()
        },
        "overhead": {
            step: spread([100 * (a / b - 1) for a, b in zip(own[step], own[network], strict=True)])
            for step, network in KINDS.items()
        },
        "ratio": {
            party: {part: spread(np.divide(each, own[part]).tolist()) for part, each in parts.items() if part in own}
            for party, parts in medians.items()
            if party != "hspace"
        },
    }


def _describe(findings: Found, name: str, numbers: dict[str, Any]) -> None:
    """Tables and goals of a network."""
    percentiles = ("p50", "p95", "p99")
    rows, beside = [], []
    for n, each in numbers["batches"].items():
        for step, parts in each["split"].items():
            rows += [[f"{n}: {step}: {part}", *(f"{s[p]:.3f}" for p in percentiles)] for part, s in parts.items()]
        for part, s in each["milliseconds"]["hspace"].items():
            rows.append([f"{n}: {part}", *(f"{s[p]:.3f}" for p in percentiles)])
        for step, over in each["overhead"].items():
            findings.goals.append(
                Goal(f"{name}, batch {n}: {step}, overhead over the bare network", over["median"], OVERHEAD, "%")
            )
        for party, parts in each["ratio"].items():
            p50 = each["milliseconds"][party]
            beside += [
                [f"{n}: {party}: {part}", f"{p50[part]['p50']:.3f}", spread_text(r)] for part, r in parts.items()
            ]
    if not rows:
        return
    findings.tables.append(([f"{name}, ms; batch: part", *percentiles], rows))
    if beside:
        findings.tables.append(([f"{name}, ms; batch: beside hspace", "p50", "÷ hspace's"], beside))
    how = "one CUDA graph" if numbers["captured"] else f"launched one by one: {numbers['why_not']}"
    findings.notes.append(f"{name}: steps are {how}")
