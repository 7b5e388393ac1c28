"""The formulas of the data, in float64 and without hspace: what the suite and other implementations are held to."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

COEFFICIENTS = ("alpha", "sigma", "c_x", "c_x0", "c_eps", "c_x_prev", "c_x0_prev", "c_noise", "edit_scale")
COLUMNS = (*COEFFICIENTS, "t", "clip", "draws", "branch")
ASYMMETRIC, SYMMETRIC = 1, 2
Arrays = Mapping[str, np.ndarray]


def philox(counter: Sequence[int], seed: int) -> list[int]:
    """Four words of Philox4x32-10."""
    mask = 0xFFFFFFFF
    c0, c1, c2, c3 = counter
    k0, k1 = seed & mask, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & mask, (a >> 32) ^ c3 ^ k1, a & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    return [c0, c1, c2, c3]


def normals(seed: int, draw: int, image: int, stream: int) -> Iterator[float]:
    """The draw's values without end, in the order of the array's elements."""
    i = 0
    while True:
        words = philox([i, draw, image, stream], seed)
        for a, b in (words[:2], words[2:]):
            radius, angle = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), 2 * math.pi * (b + 0.5) / 2**32
            yield from (radius * math.cos(angle), radius * math.sin(angle))
        i += 1


def normal(shape: Sequence[int], seed: int, draw: int, image: int, stream: int) -> np.ndarray:
    each = normals(seed, draw, image, stream)
    return np.array([next(each) for _ in range(math.prod(shape))]).reshape(shape)


def move(row: Mapping[str, Any], arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """x_next and P of one row. arrays: x, eps, eps_edit, x_prev, x_0_prev, z of one shape."""
    c = {name: float(row[name]) for name in COEFFICIENTS}
    x, eps, eps_edit, x_prev, x_0_prev, z = (
        arrays[name].astype(np.float64) for name in ("x", "eps", "eps_edit", "x_prev", "x_0_prev", "z")
    )
    p = (x - c["sigma"] * eps_edit) / c["alpha"]
    if row["clip"]:
        p = np.clip(p, -1, 1)
    if row["clip"] == 2:
        unedited = np.clip((x - c["sigma"] * eps) / c["alpha"], -1, 1)
        eps = (x - c["alpha"] * unedited) / c["sigma"]
    x_next = c["c_x"] * x + c["c_x0"] * p + c["c_eps"] * eps
    return x_next + c["c_x_prev"] * x_prev + c["c_x0_prev"] * x_0_prev + c["c_noise"] * z, p


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def group_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """x: [C, H, W], in 32 groups of channels."""
    groups = x.reshape(32, -1)
    centred = groups - groups.mean(axis=1, keepdims=True)
    normed = (centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + eps)).reshape(x.shape)
    return normed * weight[:, None, None] + bias[:, None, None]


def delta_block(a: Arrays, eps: float, h: np.ndarray, temb: np.ndarray) -> np.ndarray:
    y = h
    if "norm1.weight" in a:
        y = silu(group_norm(y, a["norm1.weight"], a["norm1.bias"], eps))
    y = np.einsum("oc,chw->ohw", a["conv1.weight"], y) + a["conv1.bias"][:, None, None]
    y = y + (a["temb_proj.weight"] @ silu(temb) + a["temb_proj.bias"])[:, None, None]
    y = silu(group_norm(y, a["norm2.weight"], a["norm2.bias"], eps))
    return np.einsum("oc,chw->ohw", a["conv2.weight"], y) + a["conv2.bias"][:, None, None]


def nearest(timesteps: np.ndarray, t: int) -> int:
    """The number of the nearest timestep, the lower of two."""
    return min(range(len(timesteps)), key=lambda k: (abs(int(timesteps[k]) - t), k))


def content(a: Arrays, strength: float, h: np.ndarray, t: int) -> np.ndarray:
    mask = a.get("mask", np.ones(h.shape[1:]))
    own, other = h * mask, a["table"][nearest(a["timesteps"], t)] * mask
    other = other * np.linalg.norm(own) / max(np.linalg.norm(other), 1e-30)
    lengths = max(np.linalg.norm(own) * np.linalg.norm(other), 1e-30)
    theta = math.acos(min(max(float((own * other).sum()) / lengths, -1), 1))
    if math.sin(theta) < 1e-6:
        return strength * (other - own)
    by_own, by_other = math.sin((1 - strength) * theta), math.sin(strength * theta)
    return (by_own * own + by_other * other) / math.sin(theta) - own


def delta_h(attribute: Mapping[str, Any], a: Arrays, h: np.ndarray, temb: np.ndarray, t: int) -> np.ndarray:
    """Δh of one attribute for one sample. a: its tensors; h: [C, H, W]; temb: [E]."""
    a = {name: array.astype(np.float64) for name, array in a.items()}
    h, temb = h.astype(np.float64), temb.astype(np.float64)
    if attribute["kind"] == "delta_block":
        return delta_block(a, attribute["eps"], h, temb)
    if attribute["kind"] == "delta_h":
        return a["delta_h"][nearest(a["timesteps"], t)]
    return content(a, attribute["strength"], h, t)


def move_z_sem(a: Arrays, z_sem: np.ndarray, strength: float) -> np.ndarray:
    w, mean, std = (a[name].astype(np.float64) for name in ("weight", "mean", "std"))
    step = strength * math.sqrt(w.size) / np.linalg.norm(w) * w
    return ((z_sem - mean) / std + step) * std + mean


def null_engine(component: Mapping[str, Any], inputs: Arrays) -> list[np.ndarray]:
    """The outputs of a component of the null engine, as README.md has them."""
    score: Any = 0.0
    for k, tensor in enumerate(component["inputs"]):
        if tensor["name"] != "source":
            array = inputs[tensor["name"]]
            mean = array.reshape(len(array), -1).astype(np.float64).mean(axis=1) * (0.5 + 0.1 * k)
            score = score + (mean[inputs["source"]] if "source" in inputs and tensor["shape"][0] == "N" else mean)
    outputs = []
    for j, tensor in enumerate(component["outputs"]):
        wave = np.arange(math.prod(tensor["shape"][1:])) * 0.37 + j
        outputs.append(np.sin(score[:, None] + wave).reshape(len(score), *tensor["shape"][1:]))
    return outputs


class Run:
    """One sample alone through its rows. states: x before each row and at the end; x_0: P of each row."""

    def __init__(self, components: Mapping[str, Any], attributes: Mapping[str, Any], tensors: Mapping[str, Arrays]):
        self._components, self._attributes, self._tensors = components, attributes, tensors

    def __call__(
        self, sample: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], given: Arrays
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        x = given["x"]
        states, x_0, x_prev, number = [x], [np.zeros_like(x)], given.get("x_prev", x), 0
        for row in rows:
            z = np.zeros_like(x)
            if row["draws"]:
                own = given["noise"][number] if "noise" in given else None
                z = normal(x.shape, sample["seed"], number, sample["image"], 0) if own is None else own
                number += 1
            eps, eps_edit = self._predict(sample, row, x, given)
            arrays = {"x": x, "eps": eps, "eps_edit": eps_edit, "x_prev": x_prev, "x_0_prev": x_0[-1], "z": z}
            x_next, p = move(row, arrays)
            x, x_prev = x_next, x
            states.append(x)
            x_0.append(p)
        return states, x_0[1:]

    def _predict(
        self, sample: Mapping[str, Any], row: Mapping[str, Any], x: np.ndarray, given: Arrays
    ) -> tuple[np.ndarray, np.ndarray]:
        t = np.array([row["t"]])
        if "latent" in self._components:
            (eps,) = null_engine(self._components["latent"], {"z_sem": x[None], "t": t})
            return eps[0], eps[0]
        inputs = {"x": x[None], "t": t} | ({"z_sem": given["z_sem"][None]} if "z_sem" in given else {})
        outputs = null_engine(self._components["trunk"], inputs)
        features = {o["name"]: a for o, a in zip(self._components["trunk"]["outputs"], outputs, strict=True)}
        features |= inputs | {"source": np.array([0])}
        h, eps = features["h"][0], []
        total = np.zeros_like(h)
        for name, strength in sample["deltas"] if row["branch"] else ():
            each = delta_h(self._attributes[name], self._tensors[name], h, features["temb"][0], row["t"])
            total = total + float(row["edit_scale"]) * strength * each
        for moved in (h, h + total):
            own = moved.astype(np.float32)[None]  # h is float32, and may overflow
            eps.append(null_engine(self._components["head"], {**features, "h": own})[0][0])
        return (eps[1], eps[1]) if row["branch"] == SYMMETRIC else (eps[0], eps[1])
