"""Edits an example image along several attributes of the shipped model, and writes a before/after strip.

python bundles/demo.py [IMAGE] [OUTPUT]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import hspace
import numpy as np
from hspace.image import load_images, save_image, to_uint8
from hspace.sheet import Sheet

HERE = Path(__file__).parent
EDITS: list[dict[str, float]] = [
    {},
    {"Dark_Skin": 0.5},
    {"Dark_Skin": -0.6},
    {"Blond_Hair": 0.9},
    {"Blond_Hair": -0.5},
    {"hair_length": -3.0},
    {"Blond_Hair": 0.6, "Dark_Skin": -0.3, "hair_length": 3.0},
]


def label(edits: dict[str, float]) -> str:
    return "\n".join(f"{name} {value:+.1f}" for name, value in edits.items()) or "decoded"


def main() -> None:
    image = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "images" / "avatar016.png"
    output = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE.parent / "out" / "demo.png"
    start = time.perf_counter()
    editor = hspace.open(HERE / "avatars32")
    opened = time.perf_counter()
    latent = editor.encode(image)
    encoded = time.perf_counter()
    # one encode serves all edits, and the edits share every network evaluation of one batch
    repeated = hspace.Latent.stack([latent] * len(EDITS))
    edited = editor.decode(repeated, EDITS)
    done = time.perf_counter()

    original = to_uint8(load_images(image, editor.size))
    sheet = Sheet([""], ["original", *map(label, EDITS)], editor.size)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_image(output, sheet.draw(np.concatenate([original, edited])))
    print(f"engine {editor.engine.name} in {editor.engine.precision}: opened in {opened - start:.2f} s,", end=" ")
    print(f"encoded in {encoded - opened:.2f} s,", end=" ")
    print(f"{len(EDITS)} edits decoded in {done - encoded:.2f} s")
    print(f"wrote {output} in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
