"""What the data's edits, networks, samples and batches are: inputs alone."""

from __future__ import annotations

from typing import Any

H, T, Z = (64, 2, 2), 5, 6  # the shape of h, and the lengths of temb and z_sem
X = (3, 4, 4)

ATTRIBUTES: dict[str, dict[str, Any]] = {
    "ddpm": {"kind": "delta_block", "layout": "ddpm", "eps": 0.01, "branch": "asymmetric", "n_train": 40},
    "improved": {"kind": "delta_block", "layout": "improved", "eps": 0.03, "branch": "asymmetric", "n_train": 8},
    "table": {"kind": "delta_h", "timesteps": [0, 300, 700], "branch": "asymmetric", "n_train": None},
    "haas": {"kind": "delta_h", "timesteps": [100, 200, 999], "branch": "symmetric", "n_train": None},
    "huge": {"kind": "delta_h", "timesteps": [0], "branch": "symmetric", "n_train": None},
    "content": {"kind": "content", "timesteps": [0, 300, 700], "branch": "asymmetric", "n_train": None},
    "masked": {"kind": "content", "timesteps": [200, 600], "branch": "asymmetric", "n_train": None},
    "smile": {"kind": "z_direction", "branch": "none", "n_train": None},
    "beard": {"kind": "z_direction", "branch": "none", "n_train": None},
}
ATTRIBUTES["content"]["strength"], ATTRIBUTES["masked"]["strength"] = 0.3, 0.8

# by name: strengths, and the steps of the run
EDITS: dict[str, tuple[dict[str, float], int]] = {
    "one block of DDPM's layout": ({"ddpm": 1.0}, 40),
    "one block of the improved layout": ({"improved": -0.75}, 8),
    "one asymmetric table": ({"table": 1.5}, 4),
    "one symmetric table": ({"haas": -2.0}, 4),
    "content along and against h": ({"content": 1.0}, 4),
    "content under a mask": ({"masked": 1.0}, 4),
    "a sum with two n_train": ({"table": 0.5, "ddpm": 1.0, "improved": 2.0}, 5),
    "content and a block": ({"improved": 1.0, "content": 1.0}, 10),
    "one direction": ({"smile": 0.5}, 4),
    "two directions": ({"smile": -0.25, "beard": 1.5}, 4),
}


def _tensor(name: str, *shape: Any, dtype: str = "float32") -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": list(shape)}


def _network(z_sem: bool) -> dict[str, Any]:
    z = [_tensor("z_sem", "N", Z)] if z_sem else []
    skips = [_tensor("skip_0", "N", 2, *X[1:]), _tensor("skip_1", "N", 4, 2, 2)]
    temb, source = _tensor("temb", "N", T), _tensor("source", "M", dtype="int64")
    trunk = [_tensor("x", "N", *X), _tensor("t", "N", dtype="int32"), *z]
    components = {
        "trunk": {"inputs": trunk, "outputs": [_tensor("h", "N", *H), temb, *skips]},
        "head": {"inputs": [_tensor("h", "M", *H), temb, source, *skips, *z], "outputs": [_tensor("eps", "M", *X)]},
    }
    return {"state": list(X), "components": components, **({"z_sem": Z} if z_sem else {})}


LATENT = {
    "inputs": [_tensor("z_sem", "N", Z), _tensor("t", "N", dtype="int32")],
    "outputs": [_tensor("eps", "N", Z)],
}
NETWORKS: dict[str, dict[str, Any]] = {
    "z_sem": _network(True),
    "plain": _network(False),
    "latent": {"state": [Z], "components": {"latent": LATENT}},
}

# no sampler's, so that no column is left out: by name, its steps and rows
PROGRAMS: dict[str, dict[str, Any]] = {
    "every column": {
        "steps": 3,
        "rows": [
            [0.5, 0.75, 0.25, -0.5, 0.375, 0.125, 0.625, 0.25, 1.5, 700, 0, 1, 1],
            [0.75, 0.5, -0.25, 0.5, 0.25, 0.375, -0.125, -0.5, 0.5, 310, 2, 1, 1],
            [0.875, 0.25, 0.5, 0.25, -0.125, -0.25, 0.375, 0.75, 0.0, 20, 1, 1, 0],
        ],
    },
}

_ASYMMETRIC = "asymmetric steps=4 t_edit=400 t_boost=260 n_train=8"
SAMPLES: dict[str, dict[str, Any]] = {
    "encode": {"network": "z_sem", "program": "encode ddim diffae linear steps=4 clip"},
    "decode": {"network": "z_sem", "program": "decode ddim diffae linear steps=4 clip"},
    "drawn": {"network": "z_sem", "program": "decode ddpm asyrp linear steps=4", "seed": 2**63 + 5, "image": 3},
    "given": {"network": "z_sem", "program": "decode ddpm_large asyrp linear steps=4 clip", "given_noise": True},
    "block": {"network": "z_sem", "program": f"edit ddim diffae linear {_ASYMMETRIC} clip", "edit": {"improved": 1.0}},
    "sum": {
        "network": "z_sem",
        "program": f"edit dpmpp_2m asyrp linear {_ASYMMETRIC}",
        "edit": {"ddpm": 0.5, "table": -1.0},
        "seed": 9,
    },
    "haas": {
        "network": "z_sem",
        "program": "edit ddim diffae linear symmetric steps=4 t_edit=500 clip",
        "edit": {"haas": 1.0},
    },
    "content": {
        "network": "z_sem",
        "program": "edit ddim asyrp linear asymmetric steps=5 clip",
        "edit": {"masked": 1.0},
    },
    "no edit": {"network": "z_sem", "program": f"edit ddim trailing linear {_ASYMMETRIC} clip", "seed": 1, "image": 7},
    "exact": {"network": "z_sem", "program": "decode obelm asyrp linear steps=10 clip"},
    "resumed": {
        "network": "z_sem",
        "program": "edit bdia diffae linear asymmetric steps=5 t_edit=400 t_boost=260 n_train=8 resume",
        "edit": {"improved": 0.5},
        "given_x_prev": True,
    },
    "every column": {
        "network": "z_sem",
        "program": "every column",
        "edit": {"table": 0.5},
        "seed": 2,
        "image": 2**32 - 1,
    },
    "infinite": {"network": "z_sem", "program": "encode ddim asyrp linear steps=4", "infinite": True},
    "overflow": {
        "network": "z_sem",
        "program": "edit ddim asyrp linear symmetric steps=4 t_edit=500 clip",
        "edit": {"huge": 2.0},
    },
    "plain encode": {"network": "plain", "program": "encode obelm asyrp linear steps=4"},
    "plain decode": {"network": "plain", "program": "decode dpmpp_2m trailing linear steps=10 clip"},
    "plain edit": {
        "network": "plain",
        "program": f"edit ddpm_large asyrp linear {_ASYMMETRIC} clip",
        "edit": {"ddpm": 1.0, "improved": 0.25},
        "seed": 4,
    },
    "one row": {"network": "plain", "program": "decode ddim asyrp linear steps=1"},
    "latent": {"network": "latent", "program": "latent ddim diffae const steps=10"},
    "short latent": {"network": "latent", "program": "latent ddim diffae const steps=4"},
}

# by name: the network, the capacity, and what happens; a sample joins the first slot that is free
BATCHES: dict[str, tuple[str, int, list[list[Any]]]] = {
    "one slot": (
        "z_sem",
        1,
        [
            ["join", "encode"],
            ["step", 4],
            ["leave", "encode"],
            ["join", "block"],
            ["step", 2],
            ["leave", "block"],  # cancelled
            ["join", "every column"],
            ["step", 2],
            ["leave", "every column"],  # cancelled before its last row
            ["join", "every column"],
            ["step", 3],
            ["leave", "every column"],
            ["join", "block"],
            ["step", 4],
            ["leave", "block"],
        ],
    ),
    "faults among others": (
        "z_sem",
        4,
        [
            *(["join", name] for name in ("drawn", "infinite", "overflow", "haas")),
            ["step", 3],
            ["leave", "infinite"],
            ["join", "sum"],
            ["step", 1],
            ["leave", "overflow"],
            ["leave", "drawn"],
            ["join", "resumed"],
            ["step", 2],
            ["leave", "haas"],  # which finished two steps ago
            ["leave", "resumed"],  # cancelled
            ["step", 1],
            ["leave", "sum"],
        ],
    ),
    "all kinds": (
        "z_sem",
        8,
        [
            *(["join", name] for name in ("exact", "given", "content", "decode", "resumed")),
            ["step", 1],
            *(["join", name] for name in ("block", "no edit", "haas")),
            ["step", 3],
            ["leave", "given"],
            ["leave", "decode"],
            ["join", "sum"],
            ["join", "encode"],
            ["step", 6],
            *(["leave", name] for name in ("exact", "content", "resumed", "block", "no edit", "haas", "sum", "encode")),
        ],
    ),
    "without z_sem": (
        "plain",
        2,
        [
            ["join", "plain decode"],
            ["step", 2],
            ["join", "plain edit"],
            ["step", 4],
            ["leave", "plain edit"],
            ["join", "one row"],
            ["step", 1],
            ["leave", "one row"],
            ["join", "plain encode"],
            ["step", 3],
            ["leave", "plain encode"],
            ["leave", "plain decode"],
        ],
    ),
    "latent": (
        "latent",
        3,
        [
            ["join", "latent"],
            ["step", 3],
            ["join", "short latent"],
            ["step", 7],
            ["leave", "short latent"],
            ["leave", "latent"],
        ],
    ),
}
