"""Writes the data of this folder: `python -m tests.conformance.write`.

Programs and timesteps are what hspace computes, and so are held still. All other numbers are of `reference`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from hspace.catalog import SAMPLERS
from hspace.deltas import Edit
from hspace.errors import ArgumentError
from hspace.manifest import ArraySchedule, ConstSchedule, CosineSchedule, LinearSchedule, Preset
from hspace.plans import Planner
from hspace.program import ROW, Branch, Program
from hspace.schedule import SPACINGS, space_timesteps
from hspace.tensors import tensor_bytes

from . import reference
from .runs import ATTRIBUTES, BATCHES, EDITS, NETWORKS, PROGRAMS, SAMPLES, H, T, Z

FOLDER = Path(__file__).parent
SCHEDULES = {
    "linear": LinearSchedule(),
    "cosine": CosineSchedule(),
    "const": ConstSchedule(),
    "betas": ArraySchedule(betas=[0.01 + 0.02 * i for i in range(20)]),
    "quiet": ArraySchedule(betas=[1e-6] * 8 + [0.05 * (i + 1) for i in range(12)]),  # its span begins at t = 7
}
Arrays = dict[str, np.ndarray]


def text(name: str, content: Mapping[str, Any]) -> bytes:
    """JSON with a line for every entry of the lists and objects in it."""
    parts = []
    for key, value in {"format": f"hspace-conformance-{name}-1", **content}.items():
        if isinstance(value, dict):
            lines = [f"{json.dumps(k)}: {json.dumps(v, sort_keys=True)}" for k, v in value.items()]
            parts.append(f'"{key}": {{\n' + ",\n".join(lines) + "\n}")
        elif isinstance(value, list) and value and not isinstance(value[0], str):
            lines = [json.dumps(v, sort_keys=True) for v in value]
            parts.append(f'"{key}": [\n' + ",\n".join(lines) + "\n]")
        else:
            parts.append(f'"{key}": {json.dumps(value)}')
    return ("{\n" + ",\n".join(parts) + "\n}\n").encode()


def tensors(name: str, arrays: Mapping[str, np.ndarray]) -> bytes:
    return tensor_bytes(dict(sorted(arrays.items())), {"format": f"hspace-conformance-{name}-1"})


def float32(arrays: Mapping[str, np.ndarray]) -> Arrays:
    return {name: np.asarray(a).astype(np.float32) for name, a in arrays.items()}


def schedules() -> bytes:
    """ᾱ here and there, and the timesteps of every spacing."""
    alphas, timesteps = {}, []
    for name, schedule in SCHEDULES.items():
        built = schedule.build()
        at = sorted({*range(0, built.timesteps, max(1, built.timesteps // 40)), built.timesteps - 1})
        inputs = msgspec.to_builtins(schedule)
        alphas[name] = {"schedule": inputs, "t": at, "alphas_cumprod": built.alphas_cumprod[at].tolist()}
        for spacing, steps in product(SPACINGS, (1, 2, 3, 4, 5, 10, 17, 20, 60)):
            try:
                chosen = space_timesteps(spacing, steps, built).tolist()
            except ArgumentError:
                chosen = None
            timesteps.append({"schedule": name, "spacing": spacing, "steps": steps, "timesteps": chosen})
    return text("schedules", {"schedules": alphas, "spacings": timesteps})


def grid() -> Iterator[dict[str, Any]]:
    """The inputs of all programs, but for those that have their usual value."""
    asymmetric = {"kind": "edit", "branch": "asymmetric", "n_train": 8, "t_edit": 400, "t_boost": 260}
    symmetric = {"kind": "edit", "branch": "symmetric", "t_edit": 500, "clip": True}
    for sampler, spacing in product(SAMPLERS, SPACINGS):
        own = {"sampler": sampler, "spacing": spacing}
        for clip, kind in product((False, True), ({"kind": "encode"}, {"kind": "decode"}, asymmetric)):
            yield {**own, "clip": clip, **kind}
        yield {**own, **symmetric}
    for sampler, spacing in product(SAMPLERS, ("asyrp", "diffae", "trailing", "karras")):
        own = {"sampler": sampler, "spacing": spacing}
        yield {**own, **symmetric, "t_boost": 300, "clip": False, "t_edit": 0}
        yield {**own, "kind": "edit", "branch": "asymmetric", "steps": 5, "clip": True}
        yield {**own, "kind": "edit", "branch": "asymmetric", "steps": 5, "n_train": 40}
        yield {**own, "kind": "decode", "steps": 1}
        yield {**own, "kind": "encode", "steps": 2}
        yield {**own, "kind": "decode", "steps": 10, "clip": True}
        for resume in (asymmetric, symmetric, {"kind": "decode"}) if SAMPLERS[sampler].exact else ():
            yield {**own, **resume, "resume": True, "steps": 5}
    for sampler, schedule, spacing in product(SAMPLERS, ("cosine", "const", "betas"), ("asyrp", "logsnr", "leading")):
        own = {"sampler": sampler, "spacing": spacing, "schedule": schedule, "clip": True}
        yield from ({**own, "kind": "encode"}, {**own, **asymmetric, "t_edit": 7, "t_boost": 6})
    yield from ({"kind": "latent", "schedule": "const", "spacing": "diffae", "steps": n} for n in (1, 4, 10))


USUAL = {"schedule": "linear", "sampler": "ddim", "clip": False, "steps": 4, "t_edit": 0, "t_boost": 0}
USUAL |= {"branch": "none", "n_train": None, "resume": False}


def name_of(inputs: Mapping[str, Any]) -> str:
    """Of a program, by its inputs."""
    flags = [key for key in ("clip", "resume") if inputs[key]]
    numbers = [f"{key}={inputs[key]}" for key in ("steps", "t_edit", "t_boost", "n_train") if inputs[key]]
    branch = [] if inputs["branch"] == "none" else [inputs["branch"]]
    which = [inputs[key] for key in ("kind", "sampler", "spacing", "schedule")]
    return " ".join([*which, *branch, *numbers, *flags])


def program_of(inputs: Mapping[str, Any]) -> Program:
    """What hspace makes of a program's inputs."""
    schedule = SCHEDULES[inputs["schedule"]]
    schedules: Any = SimpleNamespace(image=schedule, latent=schedule)
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(schedules=schedules))
    own = {key: inputs[key] for key in ("sampler", "spacing", "clip", "t_edit", "t_boost")}
    plan = Preset(encode_steps=inputs["steps"], decode_steps=inputs["steps"], **own)
    edit = Edit(branch=Branch[inputs["branch"].upper()], n_train=inputs["n_train"])
    planner = Planner(bundle)
    if inputs["kind"] == "encode":
        return planner.encode(plan)
    if inputs["kind"] == "latent":
        return planner.latent(plan, inputs["steps"])
    return planner.decode(plan, edit, resume=inputs["resume"])


def programs() -> bytes:
    entries = {}
    for values in grid():
        inputs = {**USUAL, **values}
        rows = program_of(inputs).rows
        # float32 as the shortest decimal that reads back as itself, as `Program.save` has it
        table = [[float(str(v)) if isinstance(v, np.floating) else int(v) for v in row] for row in map(tuple, rows)]
        bits = inputs["sampler"] != "dpmpp_2m" and inputs["schedule"] != "cosine"
        assert name_of(inputs) not in entries
        entries[name_of(inputs)] = {**inputs, "bits": bits, "rows": table}
    return text("programs", {"columns": list(ROW.names or ()), "programs": entries})


def noise() -> bytes:
    words = []
    for seed, draw, image, stream in product((0, 7, 2**32, 2**64 - 1), (0, 3), (0, 2**32 - 1), (0, 2)):
        counter = [seed % 11, draw, image, stream]
        words.append({"seed": seed, "counter": counter, "words": reference.philox(counter, seed)})
    draws = []
    each: list[tuple[list[int], dict[str, int]]] = [
        (shape, {"seed": seed, "draw": i % 4, "image": (0, 1, 2**32 - 1)[i % 3], "stream": i % 3})
        for i, (shape, seed) in enumerate(product(([1], [3, 2, 3], [3, 5, 5]), (0, 12345, 2**40 + 1, 2**64 - 1)))
    ]
    each.append(([2], {"seed": 0, "draw": 1224113, "image": 0, "stream": 0}))  # its first word is small, 154
    for shape, which in each:
        draws.append({**which, "shape": shape, "normal": reference.normal(shape, **which).ravel().tolist()})
    return text("noise", {"philox": words, "draws": draws})


def rows() -> bytes:
    """Random rows: all columns, each one alone, and samplers' usual sets, under every clip and branch."""
    rng = np.random.default_rng(1)
    names = reference.COEFFICIENTS[2:8]
    used = [names, *([n] for n in names), ("c_x0", "c_eps"), ("c_x", "c_x0"), names[:4], names[1:5], names[::2]]
    cases: list[dict[str, Any]] = []
    for k, (columns, clip, branch) in enumerate(product(used, (0, 1, 2), Branch)):
        row: dict[str, Any] = dict.fromkeys(reference.COLUMNS, 0) | {"t": k, "clip": clip, "branch": int(branch)}
        row |= {n: np.float32(rng.uniform(-1.5, 1.5)) for n in columns}
        row |= {"alpha": np.float32(rng.uniform(0.3, 1)), "sigma": np.float32(rng.uniform(0.1, 1))}
        row |= {"draws": int(row["c_noise"] != 0), "edit_scale": np.float32(branch != Branch.NONE)}
        given = float32({n: rng.uniform(-2, 2, (3, 2, 2)) for n in ("x", "eps", "eps_edit", "x_prev", "x_0_prev", "z")})
        if branch != Branch.ASYMMETRIC:
            given["eps_edit"] = given["eps"]
        x_next, x_0 = reference.move(row, given)
        cases.append({**row, **given, "x_next": x_next, "x_0": x_0})
    types = {"t": np.int32, "clip": np.uint8, "draws": np.uint8, "branch": np.uint8}
    return tensors("rows", {n: np.array([c[n] for c in cases]).astype(types.get(n, np.float32)) for n in cases[0]})


def attribute_tensors() -> dict[str, Arrays]:
    rng = np.random.default_rng(2)
    c, made = H[0], {}
    for name, attribute in ATTRIBUTES.items():
        if attribute["kind"] == "z_direction":
            shapes: dict[str, Any] = {"weight": Z, "bias": 1, "mean": Z, "std": Z}
        elif attribute["kind"] == "delta_block":
            shapes = {"conv1.weight": (c, c), "conv2.weight": (c, c), "temb_proj.weight": (c, T)}
            norms = ["norm1", "norm2"] if attribute["layout"] == "improved" else ["norm2"]
            shapes |= {f"{n}.weight": c for n in norms}
            shapes |= {f"{n}.bias": c for n in ("conv1", "conv2", "temb_proj", *norms)}
        else:
            shapes = {"delta_h" if attribute["kind"] == "delta_h" else "table": (len(attribute["timesteps"]), *H)}
        arrays = {n: rng.uniform(-1, 1, shape) / (8 if n.startswith("conv") else 1) for n, shape in shapes.items()}
        if "std" in arrays:
            arrays["std"] = abs(arrays["std"]) + 0.5
        if name == "masked":
            arrays["mask"] = np.round(rng.uniform(0, 1, H[1:]), 1) * [[1], [0]]
        if name == "huge":
            arrays["delta_h"] = np.full_like(arrays["delta_h"], 3e38)
        made[name] = float32(arrays)
        if "timesteps" in attribute:
            made[name]["timesteps"] = np.array(attribute["timesteps"])
    return made


def compiled(edit: Mapping[str, float], steps: int) -> dict[str, Any]:
    """An edit, and what it compiles to: directions and deltas with strengths, the branch and n_train of all."""
    moves = {n: s for n, s in edit.items() if ATTRIBUTES[n]["kind"] == "z_direction"}
    deltas = [(n, s) for n, s in edit.items() if n not in moves and s]
    branch = ATTRIBUTES[deltas[0][0]]["branch"] if deltas else "none"
    n_train = next((ATTRIBUTES[n]["n_train"] for n, _ in deltas if ATTRIBUTES[n]["n_train"]), None)
    if n_train and branch == "asymmetric":
        deltas = [(n, s * (ATTRIBUTES[n]["n_train"] or steps) / n_train) for n, s in deltas]
    both = {"edit": list(edit.items()), "directions": list(moves.items()), "deltas": deltas}
    return {**both, "branch": branch, "n_train": n_train}


def deltas() -> tuple[bytes, bytes]:
    """What each edit does to z_sem, and to h at several timesteps."""
    rng, attributes = np.random.default_rng(3), attribute_tensors()
    arrays = {f"{name}/{n}": a for name, each in attributes.items() for n, a in each.items()}
    cases = {}
    for name, (edit, steps) in EDITS.items():
        cases[name] = {"steps": steps, **compiled(edit, steps)}
        t = np.array([0, 150, 151, 500, 999], np.int32)
        given = float32(
            {n: rng.uniform(-2, 2, (5, *shape)) for n, shape in (("h", H), ("temb", (T,)), ("z_sem", (Z,)))}
        )
        given["edit_scale"] = rng.uniform(0.5, 2, 5).astype(np.float32)
        if name == "content along and against h":
            given["h"][:2] = attributes["content"]["table"][0] * np.float32([2, -2])[:, None, None, None]
        moved, total = given["z_sem"].astype(np.float64), np.zeros(given["h"].shape)
        for n, s in cases[name]["directions"]:
            moved = np.stack([reference.move_z_sem(attributes[n], z, s) for z in moved])
        for (n, s), i in product(cases[name]["deltas"], range(5)):
            own = reference.delta_h(ATTRIBUTES[n], attributes[n], given["h"][i], given["temb"][i], int(t[i]))
            total[i] += float(given["edit_scale"][i]) * s * own
        z_sem = given.pop("z_sem")
        if cases[name]["directions"]:
            kept = float32({"z_sem": z_sem, "moved": moved})
        else:
            kept = {**given, "t": t, **float32({"delta_h": total})}
        arrays |= {f"{name}/{n}": a for n, a in kept.items()}
    return text("deltas", {"attributes": ATTRIBUTES, "edits": cases}), tensors("deltas", arrays)


def script(lines: list[list[Any]], lengths: Mapping[str, int]) -> list[dict[str, Any]]:
    """A batch's script with what each event does: which rows each step runs, and who has run its last."""
    inside: dict[int, list[Any]] = {}
    events: list[dict[str, Any]] = []
    for what, *rest in lines:
        if what == "join":
            slot = min(set(range(100)) - set(inside))
            inside[slot] = [rest[0], 0]
            events.append({"join": rest[0], "slot": slot})
        elif what == "step":
            for _ in range(rest[0]):
                ran = [[slot, row] for slot, (name, row) in sorted(inside.items()) if row < lengths[name]]
                for slot, _ in ran:
                    inside[slot][1] += 1
                done = [slot for slot, _ in ran if inside[slot][1] == lengths[inside[slot][0]]]
                events.append({"step": ran, "finished": done})
        else:
            slot = next(slot for slot, (name, _) in inside.items() if name == rest[0])
            events.append({"leave": slot, "sample": rest[0], "row": inside.pop(slot)[1]})
    assert not inside, inside
    return events


def runs(table: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Samples by themselves, and the batches that they share. table: the programs."""
    rng, attributes = np.random.default_rng(4), attribute_tensors()
    samples: dict[str, Any] = {}
    batches: dict[str, Any] = {}
    arrays: Arrays = {}
    for name, values in SAMPLES.items():
        sample = {"seed": 0, "image": 0, **values}
        program = table[sample["program"]]
        network = NETWORKS[sample["network"]]
        shape = network["state"]
        lines = [dict(zip(reference.COLUMNS, row, strict=True)) for row in program["rows"]]
        given: Arrays = {"x": rng.uniform(-1, 1, shape)}
        if network.get("z_sem"):
            given["z_sem"] = rng.uniform(-1, 1, network["z_sem"])
        if sample.pop("given_x_prev", False):
            given["x_prev"] = rng.uniform(-1, 1, shape)
        if sample.pop("given_noise", False):
            given["noise"] = rng.uniform(-2, 2, (sum(row["draws"] for row in lines), *shape))
        if sample.pop("infinite", False):
            given["x"][0, 0, 0] = np.inf
        sample |= compiled(sample.pop("edit", {}), program["steps"])
        given = float32(given)
        with np.errstate(all="ignore"):
            run = reference.Run(network["components"], ATTRIBUTES, attributes)
            states, x_0 = run(sample, lines, given)
            finite = bool(np.isfinite(states[-1]).all())
            results = float32({"states": np.stack(states), "x_0": np.stack(x_0)})
        samples[name] = {**sample, "finite": finite, "rows": len(lines)}
        arrays |= {f"{name}/{n}": a for n, a in (given | (results if finite else {})).items()}
    lengths = {name: sample["rows"] for name, sample in samples.items()}
    for name, (network, capacity, lines) in BATCHES.items():
        batches[name] = {"network": network, "capacity": capacity, "events": script(lines, lengths)}
    content = {"networks": NETWORKS, "programs": PROGRAMS, "samples": samples, "batches": batches}
    return text("runs", content), tensors("runs", arrays)


def null() -> bytes:
    """One evaluation of each component of the null engine."""
    rng, arrays = np.random.default_rng(5), {}
    for network, component in ((n, c) for n, each in NETWORKS.items() for c in each["components"]):
        spec = NETWORKS[network]["components"][component]
        inputs: Arrays = {}
        for tensor in spec["inputs"]:
            shape = [{"N": 3, "M": 4}.get(d, d) for d in tensor["shape"]]
            values = rng.integers(0, 3 if tensor["name"] == "source" else 1000, shape)
            inputs[tensor["name"]] = (
                rng.uniform(-1, 1, shape).astype(np.float32) if tensor["dtype"] == "float32" else values
            ).astype(tensor["dtype"])
        outputs = reference.null_engine(spec, inputs)
        named = {o["name"]: a for o, a in zip(spec["outputs"], outputs, strict=True)}
        for part, each in (("in", inputs), ("out", float32(named))):
            arrays |= {f"{network}/{component}/{part}/{n}": a for n, a in each.items()}
    return tensors("null", arrays)


def files() -> dict[str, bytes]:
    """All files of the data by name."""
    delta_text, delta_tensors = deltas()
    program_text = programs()
    run_text, run_tensors = runs(json.loads(program_text)["programs"] | PROGRAMS)
    return {
        "schedules.json": schedules(),
        "programs.json": program_text,
        "noise.json": noise(),
        "rows.safetensors": rows(),
        "deltas.json": delta_text,
        "deltas.safetensors": delta_tensors,
        "null.safetensors": null(),
        "runs.json": run_text,
        "runs.safetensors": run_tensors,
    }


if __name__ == "__main__":
    for name, content in files().items():
        (FOLDER / name).write_bytes(content)
