"""The generator against its published vectors, and what a draw may depend on."""

from __future__ import annotations

import numpy as np
import pytest
from hspace.errors import ArgumentError
from hspace.noise import NoiseStream, normal, philox4x32


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Random123's known answers for philox4x32-10
        ([0, 0, 0, 0], [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    found = philox4x32(np.array([counter], dtype=np.uint32), key[0] | key[1] << 32)
    assert found.tolist() == [expected]


def test_the_first_values_follow_the_definition() -> None:
    words = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    u = [(w + 0.5) / 2**32 for w in words]
    z0, z1 = (
        np.sqrt(-2 * np.log(u[0])) * np.cos(2 * np.pi * u[1]),
        np.sqrt(-2 * np.log(u[0])) * np.sin(2 * np.pi * u[1]),
    )
    found = normal((3,), 0, draw=0, image=0, stream=NoiseStream.STEP)
    assert np.allclose(found[:2], [z0, z1], atol=1e-7) and found.shape == (3,)


def test_standard_normal() -> None:
    z = normal((3, 256, 256), 7, draw=2, image=5, stream=NoiseStream.STEP).astype(np.float64)
    n = z.size
    assert abs(z.mean()) < 5 / np.sqrt(n) and abs(z.std() - 1) < 5 / np.sqrt(2 * n)
    assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / n) and np.abs(z).max() < 7


def test_every_part_of_the_counter_counts() -> None:
    base = {"draw": 1, "image": 2, "stream": NoiseStream.STEP}
    z = normal((64,), 3, **base)
    others = [
        normal((64,), 3, **(base | change)) for change in ({"draw": 2}, {"image": 3}, {"stream": NoiseStream.X_T})
    ]
    others += [normal((64,), 4, **base), normal((64,), 3 + 2**32, **base)]
    for other in others:
        assert abs(np.corrcoef(z, other)[0, 1]) < 0.5 and not np.array_equal(z, other)


def test_a_longer_draw_begins_with_the_shorter() -> None:
    a, b = (normal((n,), 9, draw=0, image=0, stream=NoiseStream.Z_SEM) for n in (10, 33))
    assert np.array_equal(a, b[:10])


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, None])
def test_seeds_outside_64_bits(seed: object) -> None:
    with pytest.raises(ArgumentError, match="seed"):
        normal((4,), seed, draw=0, image=0, stream=NoiseStream.STEP)  # type: ignore[arg-type]
