"""Whole edits by FP16 graphs against FP32 graphs of the same checkpoints: PSNR over a folder of images.

python benchmarks/half_precision.py LAST.ckpt LATENT.ckpt CLASSIFIER.ckpt IMAGES [--steps 20] [--edit NAME=0.5]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import hspace
import numpy as np
from hspace_export import diffae
from hspace_export.exporter import Settings, export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("checkpoint", "latent", "classifier", "images"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--edit", default="Blond_Hair=0.5")
    args = parser.parse_args()
    attribute, _, strength = args.edit.partition("=")
    images = sorted(args.images.glob("*.png"))
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for precision in ("fp32", "fp16"):
            folder = Path(scratch) / precision
            export(
                lambda: diffae.load_model(
                    args.checkpoint, latent=args.latent, classifier=args.classifier, settings=Settings()
                ),
                folder,
                precision=precision,
            )
            editor = hspace.open(folder, engine="onnx", precision=precision)
            run = {"steps": args.steps, "output": "float32"}
            results[precision] = editor.edit(images, {attribute: float(strength)}, **run)
    mse = np.mean((results["fp16"] - results["fp32"]) ** 2, axis=(1, 2, 3))
    psnr = 10 * np.log10(4 / mse)
    print(f"{len(images)} images, {args.steps} + {args.steps} steps, {args.edit}:", end=" ")
    print(f"PSNR of FP16 to FP32 {psnr.mean():.1f} dB on average, {psnr.min():.1f} dB at least")


if __name__ == "__main__":
    main()
