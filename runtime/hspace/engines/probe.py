"""Opens a bundle in a process of its own first, where this machine has not opened its graphs yet.

A graph from a stranger can make a library crash, compute without an end, or take all memory. There, that ends one
process, and is told as the graph's fault. What the process compiled is in the cache, so that the time is spent once.
The process is no sandbox: it may do what its user may.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import errors
from ..bundle import Bundle
from ..errors import BundleError, EngineError, HspaceError
from ..manifest import File, Manifest
from . import answers, cache, cpu, unet
from .shortage import ENOUGH, address_limit, lacks, limited, refusal
from .signature import declared

_FORM = 3  # of what is refused and tried, and of what engines are given; to be raised where that changes
_MEMORY_EACH = 24  # bytes of addresses for each byte of a bundle's graphs, beside `ENOUGH` for any
_SECONDS, _SECONDS_EACH = 90, 3  # of all cores together, likewise, and for each MiB
_WAIT = 10  # times as long is waited, where other work takes the cores
# What is evaluated: trunk samples, the samples that the head's come from, the timestep as a part of the schedule.
# OpenVINO would compile three graphs for the last one, which makes a first `open` half as long again
_TRIES: tuple[tuple[int, tuple[int, ...], float], ...] = (
    (1, (0,), 0.5),
    (1, (0,), 0.0),
    (1, (0,), 1.0),
    (2, (0, 1, 1), 0.5),
)
_LOG = logging.getLogger("hspace")


def check(name: str, module: Any, bundle: Bundle, threads: int | None, precision: str) -> bool:
    """Returns True where the engine opened the bundle's graphs on this machine before, or does so now in its own
    process; False where they are not tried. module: the engine's.

    Raises BundleError, naming the file, where it does not survive that, or a value is not finite; and whatever else
    opening it there raised. Where the cache is not used, nothing is remembered, and this is done at each `open`.
    """
    if not module.PACKAGES or not sys.executable:  # no library reads the graphs
        return False
    components = bundle.manifest.components
    of = (_FORM, name, module.version(), precision, cpu.instruction_set())
    entry = cache.Entry("opened", cache.key(*of, *((c.sha256, declared(c)) for c in components.values())))
    if entry.read() is not None:
        return True
    for component in components:
        bundle.read_component(component)
    asked = {"engine": name, "module": module.__name__, "threads": threads, "precision": precision}
    sound = _run(f"engine {name}", bundle, asked)
    if sound:
        entry.write(b"opened")
    return sound


def check_with_onnx(bundle: Bundle) -> bool:
    """Holds every graph to ONNX's own checker and strict shape inference, in a process of its own.

    Returns False where that is not there. Raises BundleError, naming the file.
    """
    if importlib.util.find_spec("onnx") is None or not sys.executable:
        return False
    return _run("ONNX's checker", bundle, {"engine": None})


# --- the process that asks ----------------------------------------------------------------------------


def _run(who: str, bundle: Bundle, asked: dict[str, Any]) -> bool:
    """Whether the process ran, and found nothing. Raises what it found, or what its end says."""
    size = sum(c.bytes for c in bundle.manifest.components.values())
    seconds = _SECONDS + _SECONDS_EACH * size // 2**20
    asked |= {"memory": ENOUGH + _MEMORY_EACH * size, "seconds": seconds}
    asked |= {"folder": str(bundle.folder), "manifest": msgspec.to_builtins(bundle.manifest)}
    # found as this process found it; -P: and nothing that lies in the current folder
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(os.path.abspath(p) for p in sys.path if p)}
    command = [sys.executable, "-P", "-m", __name__]
    import subprocess  # which takes 10 ms, and an `open` of what is known does without

    try:
        done = subprocess.run(
            command,
            env=environment,
            input=json.dumps(asked).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_WAIT * seconds,
            check=False,
        )
        code, out = done.returncode, done.stdout
    except subprocess.TimeoutExpired as e:
        code, out = -signal.SIGTERM, e.stdout or b""
    except (FileNotFoundError, PermissionError) as e:  # a program that holds an interpreter, and is none
        _LOG.warning(
            "%s: the graphs are not tried in a process of their own: %s: %s", bundle.folder, command[0], e.strerror
        )
        return False
    except OSError as e:
        raise EngineError(f"{bundle.folder}: cannot be opened: no process could be started: {e.strerror}") from None
    lines = [json.loads(line) for line in out.split(b"\n")[:-1]]  # the last one may be half a line
    if lines and lines[-1] is True:
        return True
    if lines and isinstance(lines[-1], list):
        kind, message = lines[-1]
        raise getattr(errors, kind)(message)
    at = bundle.folder / lines[-1] if lines else bundle.folder
    if code in (-signal.SIGTERM, -getattr(signal, "SIGXCPU", signal.SIGTERM)):
        raise BundleError(f"{at}: {who} needs more than {seconds} s of computing for this graph")
    if code == -getattr(signal, "SIGKILL", 0):  # by the system: our own limits are not enforced so
        raise EngineError(f"{at}: {who} was killed while it read this graph, as by a system that runs out of memory")
    few = limited(asked["memory"])
    if few is not None:
        raise EngineError(f"{at}: {who} crashes ({_end(code)}): {few}")
    if not lines:
        raise EngineError(f"{at}: {who} does not start in a process of its own ({_end(code)})")
    raise BundleError(f"{at}: {who} crashes on this graph ({_end(code)})")


def _end(code: int) -> str:
    return f"exit status {code}" if code >= 0 else signal.Signals(-code).name


# --- the process that is asked ------------------------------------------------------------------------


class _Reporting(Bundle):
    """A bundle that was checked already, and says which file is read."""

    def __init__(self, folder: str, manifest: Manifest, say: Callable[[object], None]) -> None:
        self.folder, self.manifest, self._say, self.last = Path(folder), manifest, say, ""

    def begin(self, entry: File) -> None:
        self.last = entry.file
        self._say(entry.file)

    def read(self, entry: File) -> bytes:
        self.begin(entry)
        return super().read(entry)

    def check(self, entry: File) -> None:
        self.begin(entry)
        super().check(entry)


def _main() -> None:
    """Reads what is asked from stdin. Prints lines of JSON: each file that is begun; then true, or an error's name and
    its message.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's words are no answers

    def say(what: object) -> None:
        print(json.dumps(what), file=answers, flush=True)

    asked = json.load(sys.stdin)
    own = address_limit() is None  # the limit on memory is ours, and not the user's
    _limit(asked["memory"], asked["seconds"])
    manifest = msgspec.convert(asked["manifest"], Manifest)
    bundle = _Reporting(asked["folder"], manifest, say)
    try:
        if asked["engine"] is None:
            _check_with_onnx(bundle)
        else:
            engine = importlib.import_module(asked["module"]).open_engine(bundle, asked["threads"], asked["precision"])
            for samples, heads, part in _TRIES if asked["engine"] == "onnx" else _TRIES[:-1]:
                _evaluate(asked["engine"], engine, bundle, samples, heads, part)
        say(True)
    except Exception as e:
        say(_told(e, bundle, asked["memory"] if own else None))
    answers.flush()
    os._exit(0)  # what a library does at its end is not asked


def _told(e: Exception, bundle: _Reporting, memory: int | None) -> list[str]:
    """An error's name and message. memory: the limit in bytes, where it is ours: no sound graph needs more."""
    where = bundle.folder / bundle.last
    cause = e if e.__cause__ is None else e.__cause__
    if lacks(cause) is not None and memory is not None:
        return ["BundleError", f"{where}: this graph needs more than {memory / 2**30:.0f} GiB of memory"]
    if isinstance(e, HspaceError):
        return [type(e).__name__, str(e)]
    error = refusal(str(where), f"this graph cannot be opened ({type(cause).__name__})", cause)
    return [type(error).__name__, str(error)]


def _limit(memory: int, seconds: int) -> None:
    """The most addresses and computing time of this process; less where its user has less. No core is written."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:  # Windows
        return
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        soft, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))


def _evaluate(name: str, engine: Any, bundle: _Reporting, samples: int, heads: tuple[int, ...], part: float) -> None:
    """Every component, on random inputs; the head on what the trunk gave. samples, heads, part: see `_TRIES`."""
    components, schedules = bundle.manifest.components, bundle.manifest.schedules

    def drawn(component: str) -> dict[str, NDArray[Any]]:
        schedule = schedules.latent if component == "latent" else schedules.image
        t = 0 if schedule is None else int(part * (schedule.build().timesteps - 1))
        return answers.inputs(components[component], samples, heads, t)

    with _tried(name, bundle, "trunk") as finite:
        features = unet.trunk(engine, **drawn("trunk"))
        finite([features.h, features.temb])
    with features, _tried(name, bundle, "head") as finite:
        eps = unet.head(engine, features, features.h[list(heads)], np.array(heads))
        finite([eps])
        if not eps.any():
            raise BundleError(f"{bundle.folder / components['head'].file}: eps: gives nothing but zeros")
    for component in (c for c in ("encoder", "latent") if c in components):
        with _tried(name, bundle, component) as finite:
            finite(engine.run(component, drawn(component)))


@contextmanager
def _tried(name: str, bundle: _Reporting, component: str) -> Iterator[Callable[[list[NDArray[Any]]], None]]:
    """Says which file is evaluated. Gives what refuses outputs, in the manifest's order, that are not finite."""
    spec = bundle.manifest.components[component]
    where = f"{bundle.folder / spec.file}"

    def finite(outputs: list[NDArray[Any]]) -> None:
        names = (o.name for o in spec.outputs if not o.name.startswith("skip_"))
        for output, value in zip(names, outputs, strict=True):
            if not np.isfinite(value).all():
                raise BundleError(f"{where}: {output}: gives values that are not finite")

    bundle.begin(spec)
    try:
        yield finite
    except EngineError as e:
        raise refusal(where, f"engine {name} cannot evaluate this graph", e.__cause__ or e) from e.__cause__


def _check_with_onnx(bundle: _Reporting) -> None:
    onnx: Any = importlib.import_module("onnx")  # as a string: only this check needs the library
    for name, component in bundle.manifest.components.items():
        data = bundle.read_component(name)
        try:
            onnx.checker.check_model(data, full_check=True)
        except MemoryError:
            raise
        except Exception as e:
            first = next(iter(str(e).strip().splitlines()), type(e).__name__)
            raise BundleError(
                f"{bundle.folder / component.file}: ONNX's checker refuses this graph: {first[:300]}"
            ) from e


if __name__ == "__main__":
    _main()
