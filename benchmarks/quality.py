"""Reconstructions and edits of the trained bundle against evaluations, for every sampler.

    python benchmarks/quality.py [--images FOLDER] [--reference R.npz] [--json FILE] [--plot docs/images/quality.png]

A reconstruction is compared with its image. An edit is compared with the reference: the same bundle in float32, DDIM
over every timestep, 1000 + 1000, with the family's clamp; the image counts as x at the first timestep, and x_T is x at
the last. Edits are of z_sem, of h on both terms, and of h on P alone (the same table, taken as asymmetric).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import hspace
import msgspec
import numpy as np
from hspace.image import load_images
from hspace.manifest import Preset
from hspace.program import Branch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

ROOT = Path(__file__).parent.parent
EDITS = {"z_sem": {"Blond_Hair": 0.5}, "h, symmetric": {"hair_length": 1.5}, "h, asymmetric": {"hair_length, P": 1.5}}
# sampler, spacing, steps each way; a pair is (encode, decode)
GRID: list[tuple[str, str, list[int | tuple[int, int]]]] = [
    ("ddim", "diffae", [10, 20, 40, 100, (250, 100), 250]),
    ("ddim", "logsnr", [6, 10, 15, 20, 40, 100]),
    ("dpmpp_2m", "logsnr", [6, 8, 10, 12, 15, 20, 40]),
    ("dpmpp_2m", "karras", [10, 15, 20]),
    ("dpmpp_2m", "quadratic", [10, 15, 20]),
    ("dpmpp_2m", "diffae", [10, 20, 40]),
    ("bdia", "logsnr", [6, 8, 10, 15, 20, 40]),
    ("bdia", "quadratic", [10, 20, 40]),
    ("obelm", "logsnr", [6, 8, 10, 15, 20, 40]),
    ("obelm", "quadratic", [10, 20, 40]),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=ROOT / "bundles" / "avatars32")
    parser.add_argument("--images", type=Path, default=ROOT / "bundles" / "images")
    parser.add_argument("--count", type=int, default=6)
    parser.add_argument("--reference", type=Path, help="an .npz file: written, or read where it is there")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    editor = hspace.open(args.bundle, engine="onnx", batch_size=args.count)
    taken_as_asymmetric(editor)
    x = load_images(sorted(args.images.glob("*.png"))[: args.count], editor.size)
    if args.reference and args.reference.exists():
        reference = dict(np.load(args.reference))
    else:
        reference = runs(editor, x, "ddim", "logsnr", 1000)
    if args.reference:
        np.savez(args.reference, **reference)
    points = []
    print(f"{len(x)} images of {args.bundle.name}; PSNR in dB; edits against the reference, dB", flush=True)
    print(f"{'sampler':10}{'spacing':10}{'evaluations':>13}{'reconstruction':>16}{'SSIM':>8}", end="")
    print("".join(f"{name:>16}" for name in EDITS) + f"{'strength':>10}{'std x_T':>9}", flush=True)
    cases = [("ddim", "logsnr", 1000, reference)] + [(a, b, n, None) for a, b, each in GRID for n in each]
    for sampler, spacing, steps, ready in cases:
        got = ready or runs(editor, x, sampler, spacing, steps)
        row = {
            "sampler": sampler,
            "spacing": spacing,
            "steps": steps,
            "evaluations": [int(n) for n in got["evaluations"]],
            "reconstruction": psnr(got["reconstruction"], x),
            "ssim": ssim(got["reconstruction"], x),
            **{name: psnr(got[name], reference[name]) for name in EDITS},
            "strength": strength(got, reference),
            "std": float(got["x_T"].std()),
        }
        points.append(row)
        print(f"{sampler:10}{spacing:10}{'{} + {}'.format(*row['evaluations']):>13}", end="")
        print(f"{row['reconstruction']:16.1f}{row['ssim']:8.4f}" + "".join(f"{row[n]:16.1f}" for n in EDITS), end="")
        print(f"{row['strength']:10.2f}{row['std']:9.2f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(points, indent=1) + "\n")
    if args.plot:
        plot(points, args.plot)


def taken_as_asymmetric(editor: hspace.Editor) -> None:
    """Adds, in memory, the delta_h table that ships as an asymmetric attribute, trained at 20 steps."""
    from dataclasses import replace

    table = editor.attributes["hair_length"]
    editor.attributes["hair_length, P"] = replace(table, branch=Branch.ASYMMETRIC, n_train=20)


def runs(
    editor: hspace.Editor, x: NDArray[np.float32], sampler: str, spacing: str, steps: int | tuple[int, int]
) -> dict[str, NDArray[np.float32]]:
    """The reconstruction, every edit and x_T, float32 [N, 3, H, W]; and the evaluations each way."""
    presets = editor.bundle.manifest.presets
    n, m = steps if isinstance(steps, tuple) else (steps, steps)
    base: Preset = presets["official"]
    presets["quality"] = msgspec.structs.replace(
        base, encode_steps=n, decode_steps=m, sampler=sampler, spacing=spacing, t_edit=0, t_boost=0
    )
    run = {"preset": "quality", "output": "float32"}
    count = {"encode": 0, "decode": 0}

    def counted(step: hspace.Step) -> None:
        count[step.phase] += 1

    latent = editor.encode(x, preset="quality", on_step=counted)
    outputs = {"reconstruction": editor.decode(latent, on_step=counted, **run), "x_T": latent.x_T}
    outputs |= {name: editor.decode(latent, edits, **run) for name, edits in EDITS.items()}
    return outputs | {"evaluations": (count["encode"], count["decode"])}


def psnr(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """The mean over images, in dB, of images in [−1, 1]."""
    squares = np.mean((a.astype(np.float64) - b) ** 2, axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(4 / np.maximum(squares, 1e-20))))


def ssim(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(
        np.mean([structural_similarity(i, j, channel_axis=0, data_range=2) for i, j in zip(a, b, strict=True)])
    )


def strength(got: dict[str, NDArray[np.float32]], reference: dict[str, NDArray[np.float32]]) -> float:
    """How far the asymmetric edit goes along the reference's: 1 where strength means the same."""
    name = "h, asymmetric"
    moved = (got[name] - got["reconstruction"]).ravel().astype(np.float64)
    wanted = (reference[name] - reference["reconstruction"]).ravel().astype(np.float64)
    return float(moved @ wanted / (wanted @ wanted))


def plot(points: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 4, figsize=(17, 4.4), sharey=True)
    colours = {"ddim": "#444444", "dpmpp_2m": "#d55e00", "bdia": "#0072b2", "obelm": "#009e73"}
    styles = {"logsnr": "-o", "diffae": ":s", "karras": "--^", "quadratic": "--v"}
    for axis, name in zip(axes, ("reconstruction", *EDITS), strict=True):
        for sampler, spacing, _ in GRID:
            rows = [r for r in points if (r["sampler"], r["spacing"]) == (sampler, spacing)]
            rows = [r for r in rows if isinstance(r["steps"], int) and r["steps"] < 1000]
            totals, values = [sum(r["evaluations"]) for r in rows], [min(r[name], 80) for r in rows]
            axis.plot(
                totals, values, styles[spacing], color=colours[sampler], ms=4, lw=1.2, label=f"{sampler}, {spacing}"
            )
        official = next(r for r in points if r["steps"] == (250, 100))
        axis.plot(sum(official["evaluations"]), official[name], "*", color="black", ms=12, label="official, 250 + 100")
        axis.set(xscale="log", xlabel="evaluations, both ways", title=name)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("PSNR, dB")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
