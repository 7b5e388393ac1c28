"""Everything that `hspace bench` says: measured and counted, as one mapping for machines and as text for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..bundle import Bundle
from ..checks import check_whole
from ..cuda import ordinal_of
from ..editor import Editor
from ..engines import unavailable
from ..engines.cpu import usable_cores
from ..errors import ArgumentError, BundleError, EngineError, needs
from ..opening import open as open_bundle
from ..plans import Planner
from . import counting, machine, startup, timing
from .parts import steps as steps_of
from .peak import Probe

_VARIES = 0.1  # beyond it, a warning
_FLOAT32 = ("encoder", "latent")  # parts that every engine runs in fp32; its `precision` is the U-Net's

Found = dict[str, Any]
Works = Mapping[tuple[str, int], counting.Work]  # by part and batch


def report(
    bundle: str,
    engines: Sequence[str] = ("auto",),
    *,
    precision: str | None = None,
    device: str = "cpu",
    batches: Sequence[int] = (1,),
    repeat: int = 20,
    calls: int = 3,
    steps: int | None = None,
    threads: int | None = None,
    batch_size: int | None = None,
) -> Found:
    """Measures a bundle on engines side by side; `text` makes it readable.

    bundle: its folder. engines, precision, device, threads, batch_size: as `hspace.open` takes them. batches: samples
    in a step, and images in a call; at the first everything is measured, at the others the steps alone. repeat, calls:
    rounds of parts and of whole calls. steps: of whole calls, instead of the default preset's.

    Returns, with times in milliseconds where a key does not say otherwise: "machine"; "run", what was asked for;
    "parts" (name → evaluations, gflop = 10⁹ operations, traffic_mb = 10⁶ bytes), "peak" (precision → gflops =
    10⁹ operations a second, the median of its `rounds`, by), "engines" (name → precision, device, milliseconds, ratio
    to the first engine, variation, gflops, overhead, startup), "batches" (samples → engine → step → p50, per_image,
    gflops), "warnings".
    What cannot be known here is left out, or None: on a GPU the peak, and the null engine's update.
    Raises ArgumentError, BundleError and EngineError.
    """
    opened = Bundle(bundle)
    _check(engines, batches, repeat, calls)
    ordinal = ordinal_of(device)
    gpu = _gpu(ordinal)
    preset, _ = opened.preset(None)
    plan = Planner(opened).plan(preset, steps)
    warnings: list[str] = []
    opening: dict[str, Any] = {"precision": precision, "device": device, "threads": threads, "batch_size": batch_size}
    editors, started = _opened(bundle, engines, opening, batches[0], warnings)
    parts, works = _counted(opened, list(batches), steps, warnings)
    null = None
    if ordinal is None:
        null = editors.get("null") or open_bundle(bundle, engine="null", batch_size=batch_size)
    probe = Probe(threads or usable_cores()) if null is not None and works and {*editors} != {"null"} else None
    beside = _beside(null, probe, batches[0])
    times = timing.compare(editors, batches=batches, repeat=repeat, calls=calls, steps=steps, beside=beside)
    peaks = {} if probe is None else _peaks(probe, times, batches[0], warnings)
    return {
        "machine": {**machine.stamp(), "threads": threads, **gpu},
        "run": {
            "bundle": opened.manifest.name,
            "preset": preset,
            "steps": {"encode": plan.encode_steps, "decode": plan.decode_steps},
            **{"batches": list(batches), "repeat": repeat, "calls": calls},
        },
        "parts": parts,
        "peak": peaks,
        "engines": _entries(editors, started, times, works, peaks, batches[0], warnings),
        "batches": {str(n): _at_batch(n, editors, times, works) for n in batches},
        "warnings": warnings,
    }


def _check(engines: Sequence[str], batches: Sequence[int], repeat: int, calls: int) -> None:
    for name in engines:
        if name != "auto" and (reason := unavailable(name)) is not None:
            raise EngineError(f"engine {name}: cannot run here: {reason}")
    if len({*engines}) != len(engines):
        raise ArgumentError(f"engine: found {', '.join(engines)}, expected each once")
    for what, values in (("batch", batches), ("repeat", [repeat]), ("calls", [calls])):
        for value in values:
            check_whole(what, value)


def _opened(
    bundle: str, engines: Sequence[str], opening: Mapping[str, Any], batch: int, warnings: list[str]
) -> tuple[dict[str, Editor], dict[str, Found]]:
    """Editors, and what a fresh process pays for them, by their engines' own names."""
    # before anything is held here
    fresh = {name: startup.start_up(bundle, name, **opening, batch=batch) for name in engines}
    editors: dict[str, Editor] = {}
    started: dict[str, Found] = {}
    for name in engines:
        editor = open_bundle(bundle, engine=name, **opening)
        if editor.engine.name in editors:
            raise ArgumentError(f"engine: found {name!r}, which is {editor.engine.name} again")
        editors[editor.engine.name] = editor
        started[editor.engine.name] = fresh[name]
        if not fresh[name]:
            warnings.append(f"{name}: start-up and memory are left out: a fresh process that measures them failed")
    return editors, started


def _beside(null: Editor | None, probe: Probe | None, batch: int) -> dict[str, dict[timing.Part, Callable[[], object]]]:
    """What takes turns with the engines: the null engine's update, and the peak."""
    beside: dict[str, dict[timing.Part, Callable[[], object]]] = {}
    if null is not None:
        beside["null's"] = {("update", batch): steps_of(null, batch)["update"]}
    if probe is not None:
        beside["peak"] = {(p, batch): partial(probe.run, p) for p in probe.peaks}
    return beside


def _entries(
    editors: Mapping[str, Editor],
    started: Mapping[str, Found],
    times: timing.Times,
    works: Works,
    peaks: Mapping[str, Found],
    batch: int,
    warnings: list[str],
) -> Found:
    """ "engines": each at the first batch, and its warnings."""
    entries: Found = {}
    reference = times["null's"]["update", batch] if "null's" in times else None
    real = [name for name in editors if name != "null"]
    for name, editor in editors.items():
        precision = editor.engine.precision
        first = {part: t for (part, n), t in times[name].items() if n == batch}
        entry = {
            "precision": precision,
            "device": editor.engine.device,
            "milliseconds": {part: timing.summary(t) for part, t in first.items()},
            "variation": {part: timing.variation(t) for part, t in first.items()},
            "overhead": _overhead(first, reference),
            "startup": started[name],
        }
        if name in real[1:]:
            entry["ratio"] = {part: timing.ratio(t, times[real[0]][part, batch]) for part, t in first.items()}
        if name != "null" and works:
            entry["gflops"] = {
                part: _achieved(works[part, batch], t, peaks, "fp32" if part in _FLOAT32 else precision)
                for part, t in first.items()
                if (part, batch) in works
            }
        entries[name] = entry
        every = {p if n == batch else f"{p} at batch {n}": t for (p, n), t in times[name].items()}
        warnings += _warnings(name, entry, every)
    return entries


def _at_batch(n: int, editors: Iterable[str], times: timing.Times, works: Works) -> Found:
    """The steps of each engine with n samples."""
    return {
        name: {
            part: _step(times[name][part, n], n, works.get((part, n)) if name != "null" else None)
            for part in ("step", "asymmetric step")
        }
        for name in editors
    }


def _gpu(ordinal: int | None) -> Found:
    """What is known of the GPU; it is not held. Raises DeviceError."""
    if ordinal is None:
        return {}
    from ..cuda.driver import Device

    return {"gpu": machine.gpu(Device(ordinal))}


def _counted(
    bundle: Bundle, batches: list[int], steps: int | None, warnings: list[str]
) -> tuple[Found, dict[tuple[str, int], counting.Work]]:
    """ "parts", and each part's work: none where onnx is missing, or a graph cannot be counted."""
    counts = counting.evaluations(bundle, batches, steps)
    works: dict[tuple[str, int], counting.Work] = {}
    if not counting.can_count():
        warnings.append(f"GFLOP are left out: {needs('counting them', 'onnx', 'bench')}")
    else:
        try:
            works = counting.works(bundle, counts)
        except BundleError as e:
            warnings.append(f"GFLOP are left out: {e}")
    parts: Found = {}
    for (part, n), each in counts.items():
        if n != batches[0]:
            continue
        components: dict[str, int] = {}
        for (component, _, _), count in each.items():
            components[component] = components.get(component, 0) + count
        parts[part] = {"evaluations": components.get("trunk", sum(components.values())), "components": components}
        if (part, n) in works:
            parts[part] |= {"gflop": works[part, n].flop / 1e9, "traffic_mb": works[part, n].traffic / 1e6}
    return parts, works


def _peaks(probe: Probe, times: timing.Times, batch: int, warnings: list[str]) -> dict[str, Found]:
    """ "peak", after the last round."""
    peaks = {p: _peak(e, times["peak"][p, batch]) for p, e in probe.peaks.items()}
    probe.close()
    if not peaks:
        warnings.append("shares of the peak are left out: the process that measures it failed")
    return peaks


def _peak(peak: Found, times: Sequence[float]) -> Found:
    """What `Probe` found, with its rate in every round."""
    rates = [peak["flop"] / t / 1e6 for t in times]
    return {"gflops": float(np.median(rates)), "rounds": rates, "by": peak["by"]}


def _achieved(work: counting.Work, times: Sequence[float], peaks: Mapping[str, Found], precision: str) -> Found:
    """At the median: 10⁹ operations a second, and their share of the peak of that precision.

    The share is the median of the rounds' own, against the peak of the same round; of whole calls, which have rounds
    of their own, against the peak's median.
    """
    rates = [work.flop / t / 1e6 for t in times]
    share = None
    if precision in peaks:
        beside = peaks[precision]["rounds"]
        peak = beside if len(beside) == len(rates) else peaks[precision]["gflops"]
        share = float(np.median(np.divide(rates, peak)))
    return {"achieved": float(np.median(rates)), "share": share, "of": precision}


def _overhead(times: Mapping[str, Sequence[float]], null: Sequence[float] | None) -> Found:
    """What of a step is not network evaluation, on this engine and on the null engine: median, and share of a step."""
    step, update = (float(np.median(times[name])) for name in ("step", "update"))
    overhead = {"update": update, "share": update / step}
    if null is None:
        return overhead
    reference = float(np.median(null))
    return {**overhead, "null_update": reference, "null_share": reference / step}


def _step(times: Sequence[float], n: int, work: counting.Work | None) -> Found:
    p50 = float(np.median(times))
    summarised = {"p50": p50, "per_image": p50 / n}
    return summarised if work is None else {**summarised, "gflops": work.flop / p50 / 1e6}


def _warnings(name: str, entry: Found, times: Mapping[str, Sequence[float]]) -> list[str]:
    warnings = []
    vary = {part: v for part, t in times.items() if (v := timing.variation(t)) > _VARIES}
    if vary:
        worst = max(vary, key=lambda part: vary[part])
        which = f"{worst} varies by {vary[worst]:.0%}".replace("%", " %")
        more = f", and {len(vary) - 1} more of {len(times)} by more than {_VARIES * 100:.0f} %" if len(vary) > 1 else ""
        warnings.append(f"{name}: {which}{more}: compare ratios only")
    for part, each in entry.get("gflops", {}).items():
        if each["share"] is not None and each["share"] > 1:
            share = f"{each['share'] * 100:.1f} % of the {each['of']} peak"
            warnings.append(f"{name}: {part} reaches {share}, so the peak was measured too low")
    return warnings


# --- text -----------------------------------------------------------------------------------------------


class Table:
    """Headers and rows of cells, for whoever pads them."""

    def __init__(self, headers: Sequence[str]) -> None:
        self.headers: list[str] = [*headers]
        self.rows: list[list[str]] = []


def heading(report: Found) -> list[str]:
    """Lines that say where, when and what."""
    at, run = report["machine"], report["run"]
    cores = f"{at['cores']} cores" + (f", {at['usable_cores']} usable" if at["usable_cores"] != at["cores"] else "")
    versions = ", ".join(f"{p} {v}" for p, v in at["versions"].items())
    commit = f", commit {at['commit']}" if "commit" in at else ""
    threads = f"{at['threads']} threads" if at["threads"] else "threads as the engine chooses"
    steps = f"{run['steps']['encode']} + {run['steps']['decode']} steps"
    rounds = f"{run['repeat']} rounds of parts, {run['calls']} of calls"
    return [
        *([machine.card(at["gpu"])] if "gpu" in at else []),
        f"{at['processor']}, {cores}, {at['system']}",
        f"{versions}{commit}, {at['date']}",
        f"{run['bundle']}, preset {run['preset']}, {steps}; engine {', '.join(report['engines'])}; "
        f"batch {run['batches'][0]}; {threads}; {rounds}",
    ]


def tables(report: Found) -> list[Table]:
    """Times; work and what is achieved; engines as a whole; batches."""
    made = [_times(report)]
    if report["parts"]:
        made.append(_work(report))
    made.append(_engines(report))
    if len(report["batches"]) > 1:
        made.append(_batches(report))
    return made


def _times(report: Found) -> Table:
    engines, keys = report["engines"], ("p50", "p95", "p99", "min")
    one = len(engines) == 1
    table = Table(["milliseconds"])
    reference = next((name for name in engines if name != "null"), None)
    for name, entry in engines.items():
        table.headers += keys if one else [f"{name} p50", *keys[1:]]
        table.headers += [f"÷ {reference}"] if "ratio" in entry else []
    table.headers.append("rounds")
    first = next(iter(engines.values()))["milliseconds"]
    for part in first:
        row = [part]
        for entry in engines.values():
            row += [f"{entry['milliseconds'][part][k]:.2f}" for k in keys]
            row += [f"{entry['ratio'][part]:.2f}"] if "ratio" in entry else []
        table.rows.append([*row, str(first[part]["count"])])
    return table


def _work(report: Found) -> Table:
    counted = any("gflop" in part for part in report["parts"].values())
    engines = {name: entry for name, entry in report["engines"].items() if "gflops" in entry}
    table = Table(["work", "evaluations", *(["GFLOP", "MB"] if counted else [])])
    for name in engines:
        table.headers += [f"{name} GFLOP/s", "of peak"]
    for name, part in report["parts"].items():
        row = [name, str(part["evaluations"])]
        row += [f"{part['gflop']:.4g}", f"{part['traffic_mb']:.4g}"] if counted else []
        for entry in engines.values():
            each = entry["gflops"][name]
            row += [f"{each['achieved']:.1f}", "" if each["share"] is None else f"{each['share'] * 100:.0f} %"]
        table.rows.append(row)
    return table


def _engines(report: Found) -> Table:
    headers = ["engine", "precision", "update", "null's update", "opens", "first result", "memory"]
    headers += ["opens, cached", "first result, cached"]
    table = Table(headers)
    for name, entry in report["engines"].items():
        over, row = entry["overhead"], [name, "" if name == "null" else entry["precision"]]
        row += [f"{over[k] * 100:.1f} %" if k in over else "" for k in ("share", "null_share")]
        first, again = (entry["startup"].get(k) for k in ("first", "again"))
        most = max((e["peak_mb"] for e in (first, again) if e and e["peak_mb"] is not None), default=None)
        row += [f"{first['open_s']:.2f} s", f"{first['first_result_s']:.2f} s"] if first else ["", ""]
        row += ["" if most is None else f"{most:.0f} MB"]
        row += [f"{again['open_s']:.2f} s", f"{again['first_result_s']:.2f} s"] if again else ["", ""]
        table.rows.append(row)
    if not any(entry["startup"].get("again") for entry in report["engines"].values()):
        table.headers, table.rows = table.headers[:-2], [row[:-2] for row in table.rows]
    return table


def _batches(report: Found) -> Table:
    table = Table(["batch"])
    for name in report["engines"]:
        table.headers += [f"{name} step", "per image", "asymmetric", "per image"]
    for n, engines in report["batches"].items():
        cells = [
            f"{each[k]:.2f}" for entry in engines.values() for each in entry.values() for k in ("p50", "per_image")
        ]
        table.rows.append([n, *cells])
    return table


def closing(report: Found) -> list[str]:
    """Lines that explain the tables, then the warnings."""
    lines = []
    if report["peak"]:
        peaks = ", ".join(
            f"{p} {e['gflops']:.0f} GFLOP/s, {min(e['rounds']):.0f} to {max(e['rounds']):.0f} ({e['by']})"
            for p, e in report["peak"].items()
        )
        lines.append(f"Matrix peak of this machine, measured in every round: {peaks}.")
    lines += [
        "update: everything of a step that is not network evaluation, as a share of the step.",
        "opens, first result, memory: of a fresh process with an empty cache; the result from the process's start on.",
    ]
    if "gpu" in report["machine"]:
        lines += [
            "Each part is waited for, so a short one is mostly its launch and the wait; benchmarks/gpu.py has them on",
            "the device. memory: of the GPU. Left out: shares of the GPU's peak, and the null engine's update.",
        ]
    return [*lines, *(f"Warning: {w}." for w in report["warnings"])]
