"""The kernels that ship, by themselves: bytes a second against a copy on the device, and what a launch takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hspace import multistep, samplers
from hspace.cuda import steps as staging
from hspace.cuda.driver import Buffer, Device, Stream
from hspace.cuda.kernels import Kernels
from hspace.cuda.steps import COEFFICIENTS, PAIR, RECORD, TARGET, TERM
from hspace.deltas import DeltaBlock
from hspace.program import Program
from hspace.schedule import Schedule
from numpy.typing import NDArray

from .clock import Clock
from .report import Found, Goal
from .workers import apart

MIB = 2**20
SIZES = (64 * MIB, 256 * MIB)  # of x, float32; of the rows of h that change, float16
ELEMENTS = 3 * 256 * 256
CHANNELS, POSITIONS, EMBEDDING = 512, 8 * 8, 512  # the bottleneck of the official 256×256 networks
BATCHES = (1, 4, 16)
SHARE, LAUNCH = 0.85, 5.0  # the goals: of a copy's bytes a second; µs
TOGETHER = 5  # launches that are timed as one, so that an event's own time does not count
IN_A_ROW = 100  # launches whose mean is one launch's time
HALF = 2  # bytes of the network's type


class Kind(NamedTuple):
    """A kind of row, and which buffers a run with such rows keeps."""

    row: Any  # ROW
    asymmetric: bool = False
    has_x_prev: bool = False
    has_p: bool = False


def kinds() -> dict[str, Kind]:
    """A row out of the middle of each kind of run, of 1000 steps on the linear schedule."""
    schedule, t = Schedule.linear(), np.arange(1000)

    def row(rows: Any) -> Any:
        return Program.from_rows("benchmark", rows).rows[500]

    ddim, clamped = samplers.ddim(schedule, t), samplers.ddim(schedule, t, clip=True)
    return {
        "DDIM": Kind(row(ddim)),
        "DDIM, clamped": Kind(row(clamped)),
        "asymmetric": Kind(row(samplers.edit(schedule, t)), asymmetric=True),
        "DPM-Solver++(2M)": Kind(row(multistep.dpmpp_2m(ddim)), has_p=True),
        "BDIA": Kind(row(multistep.bdia(ddim)), has_x_prev=True),
        "noise": Kind(row(samplers.ddim(schedule, t, eta=1.0))),
    }


def records(kind: Kind, n: int) -> NDArray[Any]:
    """RECORD [n] of that row; ε̃ of an asymmetric one is in the second half of eps."""
    made = np.zeros(n, RECORD)
    for name in (*COEFFICIENTS, "clip", "t"):
        made[name] = kind.row[name]
    made["second"] = np.arange(n) + (n if kind.asymmetric else 0)
    made["image"], made["z_row"] = np.arange(n), -1
    return made


def traffic(kind: Kind) -> int:
    """Bytes that `linear_step` reads and writes for an element, in an FP16 network: what the row uses, and no more."""
    row = kind.row
    use_p = row["c_x0"] != 0 or kind.has_p
    anew = row["c_eps"] != 0 and row["clip"] == 2
    edited = use_p and kind.asymmetric
    x = row["c_x"] != 0 or use_p or anew or kind.has_x_prev
    eps = row["c_eps"] != 0 or (use_p and not edited)
    read = 4 * (bool(x) + bool(row["c_x_prev"]) + bool(row["c_x0_prev"])) + HALF * (bool(eps) + bool(edited))
    return read + 4 * (1 + kind.has_x_prev + kind.has_p) + HALF  # x, x_prev, P and x_in are written


class Memory:
    """Arrays on the device."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._kept: list[Buffer] = []

    def empty(self, nbytes: int) -> int:
        """The address of so many bytes."""
        self._kept.append(self._device.allocate(nbytes))
        return self._kept[-1].address

    def put(self, array: NDArray[Any]) -> int:
        """The address of a copy."""
        address = self.empty(array.nbytes)
        self._stream.upload(address, np.ascontiguousarray(array))
        return address

    def noise(self, nbytes: int, dtype: Any, scale: float = 1.0) -> int:
        """The address of so many bytes of Gaussian values, the same mebibyte over and over."""
        address, count = self.empty(nbytes), min(nbytes, MIB) // np.dtype(dtype).itemsize
        values = (scale * np.random.default_rng(0).standard_normal(count)).astype(dtype)
        for first in range(0, nbytes, values.nbytes):
            self._stream.upload(address + first, values[: (nbytes - first) // values.itemsize])
        return address


def section(work: Path, quick: bool, rounds: int) -> Found:
    """Shares of a copy's bandwidth, times of launches."""
    sizes = (MIB,) if quick else SIZES
    return found(apart(work / "logs" / "kernels.log", measure_here, sizes, 2 if quick else rounds))


def measure_here(sizes: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """In a process of its own: `measure` on the first GPU."""
    device = Device(0)
    return measure(device, Kernels(device), sizes, rounds)


def found(numbers: dict[str, Any]) -> Found:
    """With goals and tables."""
    made = Found(numbers)
    rows = []
    for each in numbers["bandwidth"]:
        rates = [f"{each[k]:.0f}" for k in ("gb_per_s", "copy_gb_per_s")]
        name = f"{each['kernel']}, {each['row']}, {each['state_mib']:.0f} MiB"
        rows.append([name, str(each["bytes_per_element"]), *rates, f"{each['share'] * 100:.1f} %"])
        made.goals.append(Goal(f"{name}, of a copy", 100 * each["share"], 100 * SHARE, "%", least=True))
    made.tables.append((["bandwidth", "bytes/element", "GB/s", "copy GB/s", "share"], rows))
    rows = []
    for each in numbers["launches"]:
        rows.append([each["what"], f"{each['in_a_row_us']:.2f}", f"{each['in_a_graph_us']:.2f}"])
        if each["goal"]:
            for key, how in (("in_a_row_us", "in a row"), ("in_a_graph_us", "in a graph")):
                made.goals.append(Goal(f"{each['what']}, a launch {how}", each[key], LAUNCH, "µs"))
    made.tables.append((["µs a launch", "in a row", "in a graph"], rows))
    return made


def measure(
    device: Device,
    kernels: Kernels,
    sizes: tuple[int, ...],
    rounds: int,
    elements: int = ELEMENTS,
    shape: tuple[int, int, int] = (CHANNELS, POSITIONS, EMBEDDING),
) -> dict[str, Any]:
    """ "bandwidth" at each size, and "launches". elements: of an image; shape: C, P and E of the bottleneck."""
    with device:
        stream = device.stream()
        clock = Clock(stream)
        rates = []
        for size in sizes:
            rates += [_rates(clock, rounds, *each) for each in _steps(device, kernels, stream, size, elements)]
            rates += [_rates(clock, rounds, *each) for each in _injections(device, kernels, stream, size, shape)]
        launches = [
            {"what": what, "goal": goal, **_launch(clock, stream, rounds, enqueue)}
            for what, goal, enqueue in _singles(device, kernels, stream, elements, shape)
        ]
    return {"bandwidth": rates, "launches": launches}


# --- bytes a second -----------------------------------------------------------------------------------------

Enqueue = Callable[[], object]
Case = tuple[dict[str, Any], int, Enqueue, Enqueue]  # what it is, bytes moved, the kernel, a copy of as many bytes


def _rates(clock: Clock, rounds: int, what: dict[str, Any], nbytes: int, run: Enqueue, copy: Enqueue) -> dict[str, Any]:
    """Kernel and copy in turn, round after round. share: the median of the rounds' own."""
    times: dict[str, list[float]] = {"run": [], "copy": []}
    for _ in range(rounds + 1):  # the first of which warms up
        for name, enqueue in (("run", run), ("copy", copy)):
            times[name].append(clock.time(lambda e=enqueue: [e() for _ in range(TOGETHER)]) / TOGETHER)
    mine, theirs = times["run"][1:], times["copy"][1:]
    rate, copied = (nbytes / float(np.median(t)) / 1e6 for t in (mine, theirs))
    share = float(np.median(np.divide(theirs, mine)))
    return {**what, "gb_per_s": rate, "copy_gb_per_s": copied, "share": share, "rounds": rounds}


def _copies(memory: Memory, stream: Stream, most: int) -> Callable[[int], Enqueue]:
    """Bytes moved → a copy that reads half of them and writes the other half."""
    source, target = memory.noise(most // 2, np.float32), memory.empty(most // 2)
    return lambda nbytes: lambda: stream.copy(target, source, nbytes // 2)


def _steps(device: Device, kernels: Kernels, stream: Stream, size: int, elements: int) -> list[Case]:
    """`linear_step` on x of that many bytes, for each kind of row."""
    memory, n = Memory(device, stream), -(-size // (4 * elements))
    state = 4 * n * elements
    most = max(traffic(kind) for kind in kinds().values()) * n * elements
    copy = _copies(memory, stream, most)
    x, x_prev, p = (memory.noise(state, np.float32) for _ in range(3))
    eps, x_in = memory.noise(state, np.float16), memory.empty(state // 2)
    cases: list[Case] = []
    for name, kind in kinds().items():
        launch = kernels.linear_step(
            "fp16",
            n,
            x=x,
            eps=eps,
            records=memory.put(records(kind, n)),
            elements=elements,
            eps_stride=elements,
            x_in=x_in,
            x_prev=x_prev if kind.has_x_prev else 0,
            p=p if kind.has_p else 0,
        )
        nbytes = traffic(kind) * n * elements
        what = {"kernel": "linear_step", "row": name, "state_mib": state / MIB, "bytes_per_element": traffic(kind)}
        cases.append((what, nbytes, _keeping(memory, lambda k=launch: k(stream)), copy(nbytes)))
    return cases


def _injections(device: Device, kernels: Kernels, stream: Stream, size: int, shape: tuple[int, int, int]) -> list[Case]:
    """`inject` of a table into rows of h of that many bytes, each row with a Δh of its own, as [h, h + Δh]."""
    memory, elements = Memory(device, stream), shape[0] * shape[1]
    n = -(-size // (HALF * elements))
    nbytes = (HALF + 4 + HALF) * n * elements
    h = memory.noise(HALF * 2 * n * elements, np.float16)
    table = memory.noise(4 * n * elements, np.float32)
    targets, terms = np.zeros(n, TARGET), np.zeros(n, TERM)
    own = np.arange(n)
    targets["dest"], targets["source"], targets["first"], targets["count"] = n + own, own, own, 1
    terms["address"], terms["coefficient"], terms["row"] = table + 4 * elements * own.astype(np.uint64), 1, -1
    launch = kernels.inject("fp16", n, h=h, u=0, targets=memory.put(targets), terms=memory.put(terms), **_sizes(shape))
    what = {"kernel": "inject", "row": "table", "state_mib": HALF * n * elements / MIB, "bytes_per_element": 8}
    copy = _copies(memory, stream, nbytes)(nbytes)
    return [(what, nbytes, _keeping(memory, lambda: launch(stream)), copy)]


def _keeping(memory: Memory, enqueue: Enqueue) -> Enqueue:
    """The same, and as long as it is there, so is the memory."""

    def run(_: Memory = memory) -> None:
        enqueue()

    return run


def _sizes(shape: tuple[int, int, int]) -> dict[str, int]:
    return dict(zip(("channels", "positions", "embedding"), shape, strict=True))


# --- what a launch takes --------------------------------------------------------------------------------------


def _launch(clock: Clock, stream: Stream, rounds: int, enqueue: Enqueue) -> dict[str, float]:
    """µs of one launch, or of a few that belong together: launched one by one, and in a graph of as many."""

    def many() -> None:
        for _ in range(IN_A_ROW):
            enqueue()

    many()
    stream.synchronise()
    graph = stream.capture(many)
    graph(stream)
    times = [(clock.time(many), clock.time(lambda: graph(stream))) for _ in range(rounds)]
    in_a_row, in_a_graph = np.median(times, axis=0) * 1e3 / IN_A_ROW
    return {"in_a_row_us": float(in_a_row), "in_a_graph_us": float(in_a_graph)}


def _singles(
    device: Device, kernels: Kernels, stream: Stream, elements: int, shape: tuple[int, int, int]
) -> list[tuple[str, bool, Enqueue]]:
    """What is timed, whether the goal of one launch is its own, and what enqueues it."""
    cases: list[tuple[str, bool, Enqueue]] = []
    side = round((elements / 3) ** 0.5)
    _, _, step, _ = _steps(device, kernels, stream, 4 * elements, elements)[0]
    cases.append((f"linear_step, DDIM, 1×3×{side}×{side}", True, step))
    size = HALF * shape[0] * shape[1]
    _, _, table, _ = _injections(device, kernels, stream, size, shape)[0]
    what = f"[{shape[0]}, {shape[1]}]"
    cases.append((f"inject, a table, 1×{what}", True, table))
    for n in BATCHES:
        for improved in (False, True):
            launches = 3 if improved else 2
            layout = "improved" if improved else "DDPM"
            name = f"DeltaBlock, {layout} layout, {launches} launches, {n}×{what}"
            cases.append((name, False, _block(device, kernels, stream, shape, n, improved)))
    return cases


def _block(
    device: Device, kernels: Kernels, stream: Stream, shape: tuple[int, int, int], n: int, improved: bool
) -> Enqueue:
    """The launches that inject a DeltaBlock into n samples."""
    memory, sizes = Memory(device, stream), _sizes(shape)
    channels, positions, embedding = shape
    weights = staging.packed(delta_block(channels, embedding, improved))
    address, h_bytes = memory.put(weights), HALF * channels * positions
    h, temb = memory.noise(2 * n * h_bytes, np.float16), memory.noise(HALF * n * embedding, np.float16)
    u, v = (memory.empty(4 * n * channels * positions) for _ in range(2))
    pairs, targets, terms = np.zeros(n, PAIR), np.zeros(n, TARGET), np.zeros(n, TERM)
    own = np.arange(n)
    pairs["address"], pairs["sample"], pairs["eps"] = address, own, -1e-5 if improved else 1e-6
    targets["dest"], targets["source"], targets["first"], targets["count"] = n + own, own, own, 1
    terms["address"], terms["coefficient"], terms["row"] = address, 1, own
    lists = {"targets": memory.put(targets), "terms": memory.put(terms)}
    of_pairs = {"h": h, "v": v, "pairs": memory.put(pairs)}
    launches = [kernels.block_norm("fp16", n, **of_pairs, **sizes)] if improved else []
    launches.append(kernels.block_hidden("fp16", n, **of_pairs, temb=temb, u=u, **sizes))
    launches.append(kernels.inject("fp16", n, h=h, u=u, **lists, **sizes))

    def enqueue() -> None:
        for launch in launches:
            launch(stream)

    return _keeping(memory, enqueue)


def delta_block(channels: int, embedding: int, improved: bool = False) -> DeltaBlock:
    """An f_t network with random weights, whose Δh is small beside h."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) / np.float32(10 * shape[-1] ** 0.5)

    def norm() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return np.ones(channels, np.float32), np.zeros(channels, np.float32)

    return DeltaBlock(
        norm() if improved else None,
        (normal(channels, channels), normal(channels)),
        (normal(channels, embedding), normal(channels)),
        norm(),
        (normal(channels, channels), normal(channels)),
        1e-5 if improved else 1e-6,
        None,
    )
