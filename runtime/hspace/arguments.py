"""What callers of an editor give, checked and brought into one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .arrays import Float32
from .checks import check_array
from .deltas import AnyAttribute, ZDirection, directions_of
from .edits import check_names, check_number
from .errors import ArgumentError


def amounts_of(strength: float | Sequence[float], count: int) -> list[float]:
    """Strengths of content injection, one per latent."""
    amounts = list(strength) if isinstance(strength, Sequence) else [strength] * count
    if len(amounts) != count:
        raise ArgumentError(f"strength: found {len(amounts)}, expected 1, or one for each of {count} latents")
    for amount in amounts:
        if not 0 <= check_number("inject", "strength", amount) <= 1:
            raise ArgumentError(f"inject: found strength {amount!r}, expected a number from 0 to 1")
    return [float(amount) for amount in amounts]


def shrunk(mask: Float32, size: int, height: int, width: int) -> Float32:
    """A mask of an image's size (float32 [size, size] in [0, 1]) at h's: the mean over what each position covers."""
    check_array("mask", mask, (size, size))
    if mask.min() < 0 or mask.max() > 1:
        raise ArgumentError("mask: found values outside [0, 1]")
    small: Float32 = mask.reshape(height, size // height, width, size // width).mean(axis=(1, 3))
    return small


def acceptors(
    accept: Mapping[str, float] | None, attributes: Mapping[str, AnyAttribute]
) -> list[tuple[ZDirection, float]]:
    """The classifiers that draws must pass, each with its least logit."""
    if accept is None:
        return []
    if not isinstance(accept, Mapping):
        raise ArgumentError(f"accept: found {type(accept).__name__}, expected a mapping from name to least logit")
    directions = directions_of(attributes)
    check_names(accept, attributes, "accept")
    for name in accept.keys() - directions.keys():
        raise ArgumentError(
            f"accept: {name} is no z_direction, expected one: {', '.join(directions) or 'there is none'}"
        )
    return [(directions[name], check_number(f"accept: {name}", "logit", least)) for name, least in accept.items()]


MOST_DRAWS = 1000  # for each wanted one
FIRST_DRAWS = 256  # that tell whether there is hope


def check_acceptance(accept: Mapping[str, float], logits: Float32, count: int, kept: int) -> None:
    """Raises ArgumentError where drawing goes on without hope, or went on for too long.

    logits: float32 [draws so far, classifiers], in the order of `accept`. It is hopeless where the first 256 draws are
    all below what is wanted by more than 3 standard deviations, and their mean by more than 6: of a normal distribution
    1 draw in 10⁹ would do, where 1 in 1000 is needed. Those draws, and so the answer, are the same whatever the batch.
    """
    seen = logits[:FIRST_DRAWS].astype(np.float64)
    if len(seen) == FIRST_DRAWS:
        for (name, least), values in zip(accept.items(), seen.T, strict=True):
            mean, std, largest = values.mean(), values.std(), values.max()
            if least - largest > 3 * std and least - mean > 6 * std:
                raise ArgumentError(
                    f"accept: {name}: 0 of {FIRST_DRAWS} draws come near a logit of {least:g}: the largest is "
                    f"{largest:.3g}, the mean {mean:.3g} ± {std:.3g}; lower logits accept more"
                )
    if len(logits) >= MOST_DRAWS * count:
        largest = ", ".join(f"{name} {x:.3g}" for name, x in zip(accept, logits.max(axis=0), strict=True))
        raise ArgumentError(
            f"accept: kept {kept} of {len(logits)} draws ({kept / len(logits):.2%}), expected {count}; "
            f"the largest logits are: {largest}; lower logits accept more"
        )
