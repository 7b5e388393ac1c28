"""A caller's strengths by name, checked and compiled into what one image's edit does."""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .deltas import AnyAttribute, Content, Delta, Edit, ZDirection
from .errors import ArgumentError, did_you_mean
from .program import Branch

Edits = Mapping[str, float] | Sequence[Mapping[str, float]]


def check_names(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Raises ArgumentError for the first of `names` that is not in `known`, with the nearest ones."""
    known = list(known)
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; it has {', '.join(known) or 'none'}"
            raise ArgumentError(f"{what}: the bundle has no attribute {str(name)[:100]!r}{hint}")


def check_number(where: str, what: str, value: Any) -> float:
    """`value` as a float that is finite in float32 too; raises ArgumentError for anything else."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            if abs(float(value)) <= float(np.finfo(np.float32).max):
                return float(value)
    raise ArgumentError(f"{where}: found {what} {repr(value)[:50]}, expected a number that float32 can hold")


def compile_edit(edits: Mapping[str, float], attributes: Mapping[str, AnyAttribute | Content], n_run: int) -> Edit:
    """One mapping of strengths as an `Edit` for a decode of `n_run` steps. `attributes` holds the named ones, read.

    Strengths are linear; zero leaves an attribute out. An asymmetric delta's own scale is n_train/n_run, or 1 without
    n_train; a row has one edit_scale, that of the first delta with an n_train; the others' strengths make up for it.
    """
    directions: list[tuple[ZDirection, float]] = []
    deltas: list[tuple[Delta, float]] = []
    for name, strength in edits.items():
        value, attribute = check_number(f"edits: {name}", "strength", strength), attributes[name]
        if value == 0:
            continue
        if isinstance(attribute, ZDirection):
            directions.append((attribute, value))
        else:
            deltas.append((attribute, value))
    branches = {d.branch for d, _ in deltas}
    if len(branches) > 1:
        raise ArgumentError("edits: asymmetric and symmetric attributes do not mix in one edit")
    branch = branches.pop() if branches else Branch.NONE
    n_train = next((d.n_train for d, _ in deltas if d.n_train), None)
    if n_train and branch == Branch.ASYMMETRIC:
        deltas = [(d, s * (d.n_train or n_run) / n_train) for d, s in deltas]
    return Edit(tuple(directions), tuple(deltas), branch, n_train)


def per_image(edits: Edits | None, count: int, known: Mapping[str, AnyAttribute]) -> Sequence[Mapping[str, float]]:
    """One mapping of strengths per image, the same object where one was given for all; names are checked."""
    edits = {} if edits is None else edits
    if not isinstance(edits, (Mapping, Sequence)) or isinstance(edits, str):
        raise ArgumentError(f"edits: found {type(edits).__name__}, expected a mapping, or one for each image")
    each = [edits] * count if isinstance(edits, Mapping) else list(edits)
    for mapping in each[:1] if isinstance(edits, Mapping) else each:
        if not isinstance(mapping, Mapping):
            raise ArgumentError(f"edits: found {type(mapping).__name__}, expected a mapping from name to strength")
        check_names(mapping, known, "edits")
    if len(each) != count:
        raise ArgumentError(f"edits: found {len(each)} mappings, expected one, or one for each of {count} images")
    return each


def grid_of(
    strengths: Mapping[str, Sequence[float]], edits: Mapping[str, float] | None
) -> tuple[list[int], list[dict[str, float]]]:
    """How many strengths each swept attribute has, and the mapping of every combination, the last attribute fastest."""
    if (
        not isinstance(strengths, Mapping)
        or not 1 <= len(strengths) <= 2
        or not all(isinstance(v, (Sequence, np.ndarray)) and len(v) for v in strengths.values())
    ):
        raise ArgumentError("strengths: expected a mapping from one or two attributes to strengths, at least one")
    if edits is not None and not isinstance(edits, Mapping):
        raise ArgumentError(f"edits: found {type(edits).__name__}, expected a mapping from name to strength")
    if edits is not None and not strengths.keys().isdisjoint(edits):
        raise ArgumentError("edits: names an attribute that is swept")
    points = [dict(edits or {})]
    for name, values in strengths.items():
        points = [{**point, name: value} for point in points for value in values]
    return [len(values) for values in strengths.values()], points
