"""The samplers that a preset can name, and what is known of each before its rows are built."""

from __future__ import annotations

from typing import NamedTuple


class Sampler(NamedTuple):
    """eta: what it draws. large: the noise is not the posterior's, s², but 1 − ᾱ/ᾱ_next; the mean stays s's. exact: a
    decode of the same steps undoes an encode to the last bits, for which it needs the last two states.
    """

    eta: float = 0.0
    large: bool = False
    exact: bool = False


SAMPLERS = {
    "ddim": Sampler(),
    "ddpm": Sampler(eta=1.0),
    "ddpm_large": Sampler(eta=1.0, large=True),
    # of second order: their rows are DDIM's, turned into their own by `multistep.SECOND_ORDER`
    "dpmpp_2m": Sampler(),
    "bdia": Sampler(exact=True),
    "obelm": Sampler(exact=True),
}
