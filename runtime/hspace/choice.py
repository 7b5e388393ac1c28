"""Which engine runs a bundle, and in which precision: a rule, so that the same inputs give the same results.

The caller decides by an argument, or else by `$HSPACE_ENGINE` and `$HSPACE_PRECISION`. Otherwise "auto" means:

- engine: the first of `AUTO` that is installed, runs here and takes the bundle;
- precision: a faster one than the graphs' own where the processor has it and whole runs of this bundle in it agree with
  the graphs' own to `accuracy.LEAST_PSNR`. The bundle records that PSNR, or its first open on a machine measures it.

Nothing is timed. A sampler that inverts exactly does so in float32 only, so it runs in float32 whatever "auto" is.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from . import __version__
from .accuracy import LEAST_PSNR, measure
from .amend import set_accuracy
from .bundle import Bundle
from .catalog import SAMPLERS
from .engines import ENGINES, PRECISIONS, Engine, cache, cpu, open_engine, precisions, unavailable, version
from .engines.shortage import Lack, lacks
from .errors import BundleError, EngineError, NotFinite
from .manifest import Accuracy

AUTO = ("openvino", "onnx")
_LOG = logging.getLogger("hspace")


class Choice(NamedTuple):
    """engine: the engine that runs the bundle. exact: returns the engine of exact samplers, and opens it at its first
    call; None where the precision rules them out. why: the reason, in one line. accuracy: of a faster precision, where
    "auto" asked for it. left_out: the engines of `AUTO` that came before this one, and why they were not taken.
    """

    engine: Engine
    exact: Callable[[], Engine] | None
    why: str
    accuracy: Accuracy | None
    left_out: dict[str, str]


def choose(
    bundle: Bundle, engine: str | None = None, precision: str | None = None, threads: int | None = None
) -> Choice:
    """The engine that runs the bundle. Raises EngineError where none can as asked, BundleError where none takes it."""
    engine, precision = asked_engine(engine), asked_precision(precision)
    left_out: dict[str, str] = {}
    fault: BundleError | None = None
    for name in AUTO if engine == "auto" else (engine,):
        reason = unavailable(name)
        if isinstance(reason, Lack):  # which engine runs depends on what is there, not on what is free just now
            raise EngineError(f"engine {name}: cannot run here: {reason}")
        if reason is not None:
            left_out[name] = f"cannot run here: {reason}"
            continue
        able = precisions(name, bundle)
        if precision not in ("auto", *able):
            left_out[name] = f"computes {bundle.folder} in {' or '.join(able)} here, not {precision}"
            continue
        try:
            return _open(bundle, name, able, precision, threads)._replace(left_out=left_out)
        except BundleError as e:
            if lacks(e) is not None:  # the file cannot be read because of a shortage
                raise
            left_out[name], fault = str(e), e
    if fault is not None:
        raise fault
    raise EngineError("; ".join(f"engine {name}: {reason}" for name, reason in left_out.items()))


def record(bundle: Bundle) -> str:
    """Writes the accuracy of a faster precision into the bundle, where "auto" has one here. Returns `Choice.why`."""
    choice = choose(bundle)
    if choice.accuracy is not None and choice.accuracy != bundle.manifest.accuracy:
        set_accuracy(bundle, choice.accuracy)
    return choice.why


def _open(bundle: Bundle, name: str, able: tuple[str, ...], precision: str, threads: int | None) -> Choice:
    own, *faster = able

    def at(wanted: str) -> Callable[[], Engine]:
        return lambda: open_engine(name, bundle, threads, wanted)

    accuracy = None
    if precision != "auto":
        taken, why = precision, f"{precision}, as asked for"
    elif not faster:
        taken, why = own, f"{own}, all that it computes in here"
    else:
        taken, why, accuracy = _accepted(bundle, name, own, faster[0], at, threads)
    engine = at(taken)()
    exact: Callable[[], Engine] | None = None
    if own == "fp32" and precision in ("auto", own):
        exact = (lambda: engine) if taken == own else _once(at(own))
    return Choice(engine, exact, f"{name} in {why}", accuracy, {})


def _once(make: Callable[[], Engine]) -> Callable[[], Engine]:
    """`make`, called when it is first asked for, and never again."""
    made: list[Engine] = []
    lock = threading.Lock()

    def get() -> Engine:
        with lock:
            if not made:
                made.append(make())
            return made[0]

    return get


def _accepted(
    bundle: Bundle, name: str, own: str, faster: str, at: Callable[[str], Callable[[], Engine]], threads: int | None
) -> tuple[str, str, Accuracy | None]:
    """The precision that "auto" takes of the two, the reason, and the accuracy of the faster one."""
    preset = next((p for p in _by_default(bundle) if not SAMPLERS[bundle.preset(p)[1].sampler].exact), None)
    if preset is None:
        return own, f"{own}, which the samplers of all presets need", None
    recorded, where = bundle.manifest.accuracy, "as the bundle records"
    accuracy = recorded if isinstance(recorded, Accuracy) else None
    if accuracy is None or accuracy.precision != faster:
        accuracy, where = _measured(bundle, name, preset, at(own), at(faster), threads), "measured on this machine"
    if accuracy is None:
        return own, f"{own}: a run in {faster} or in {own} gave values that are not finite", None
    least = min(accuracy.inversion, accuracy.reconstruction, accuracy.edit)
    runs = (
        f"at least {least:.1f} dB, of {LEAST_PSNR:.0f} that are needed ({where}: inversion {accuracy.inversion:.1f}, "
        f"reconstruction {accuracy.reconstruction:.1f}, edit {accuracy.edit:.1f})"
    )
    if least >= LEAST_PSNR:
        return faster, f"{faster}: whole runs agree with {own} to {runs}", accuracy
    return own, f"{own}: whole runs in {faster} agree with it to {runs}", accuracy


def _by_default(bundle: Bundle) -> list[str]:
    """The presets' names, the default one first."""
    first = bundle.manifest.default_preset
    return [first, *(name for name in bundle.manifest.presets if name != first)]


def _measured(
    bundle: Bundle,
    name: str,
    preset: str,
    open_own: Callable[[], Engine],
    open_faster: Callable[[], Engine],
    threads: int | None,
) -> Accuracy | None:
    """The result of `accuracy.measure`, which the cache remembers; None for values that are not finite.

    The cache's key holds everything that the numbers depend on, also the number of threads. So it does not matter which
    process measures first.
    """
    versions = (__version__, version(name))
    networks = [c.sha256 for c in bundle.manifest.components.values()]
    cores = threads or cpu.usable_cores()
    run = msgspec.json.encode((bundle.manifest.schedules, bundle.preset(preset)[1]))
    entry = cache.Entry("accuracy", cache.key(*versions, cpu.instruction_set(), cores, run, *networks))
    try:
        return msgspec.json.decode(entry.read() or b"", type=Accuracy | None)
    except (msgspec.DecodeError, UnicodeDecodeError):  # the entry is missing, or hspace did not write it
        pass
    _LOG.info("%s: comparing whole runs in its faster precision with float32, once on this machine", bundle.folder)
    try:
        accuracy = measure(bundle, preset, open_own, open_faster)
    except NotFinite as e:  # only this is remembered; a shortage says nothing about the bundle
        _LOG.info("%s: %s", bundle.folder, e)
        accuracy = None
    entry.write(json.dumps(msgspec.to_builtins(accuracy)).encode())
    return accuracy


def asked_engine(given: str | None) -> str:
    """The engine that the caller asks for: `given`, else `$HSPACE_ENGINE`, else "auto"."""
    return _asked("engine", given, ("auto", *ENGINES))


def asked_precision(given: str | None) -> str:
    """The precision that the caller asks for: `given`, else `$HSPACE_PRECISION`, else "auto"."""
    return _asked("precision", given, ("auto", *PRECISIONS))


def _asked(what: str, given: str | None, allowed: tuple[str, ...]) -> str:
    where, asked = what, given
    if given is None:
        where = f"HSPACE_{what.upper()}"
        asked = os.environ.get(where) or "auto"
    if asked not in allowed:
        raise EngineError(f"{where}: found {asked!r}, expected {', '.join(allowed)}")
    return asked
