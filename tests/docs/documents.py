"""The documents' commands as one script each, and what a machine of ours lacks to run them.

python -m tests.docs.documents        runs the guide, and makes docs/images anew from what it wrote
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs" / "images"
GOLDEN = ROOT / "tests" / "golden"

# Commands that are not run: they make what the suite runs in
_INSTALLS = re.compile(r"(make|pip install|git clone|docs/)\b")
# What the documents say of the published networks, and what the small ones that stand in for them need
_SUBSTITUTES = {
    "--preset celebahq256": "--image-size 32",
    "--lpips lpips256.onnx": "--lpips lpips256.onnx",
    "--image-size 256 -o lpips256.onnx": "--image-size 32 -o lpips256.onnx",
}


def script(document: Path) -> str:
    """Every command of a document, in its order, for bash: indented lines, and Python between ``` fences."""
    lines = ["set -euo pipefail"]
    code: list[str] | None = None
    for number, line in enumerate(document.read_text().splitlines(), 1):
        if code is not None:
            if line == "```":
                lines += [
                    f"echo '{document.name}:{number}: Python' >&2",
                    "python - <<'END_OF_PYTHON'",
                    *code,
                    "END_OF_PYTHON",
                ]
                code = None
            else:
                code.append(line)
        elif line == "```python":
            code = []
        elif line.startswith("    ") and line.strip():
            command = line.strip()
            continued = lines[-1].endswith("\\")
            if not continued and _INSTALLS.match(command):
                continue
            for said, run in _SUBSTITUTES.items():
                command = command.replace(said, run)
            if not continued:
                lines.append(f"echo {document.name}:{number} >&2")
            lines.append(command)
    return "\n".join(lines) + "\n"


def clone_into(folder: Path) -> None:
    """What of a clone the documents' commands use: its bundles, and its Python."""
    shutil.copytree(ROOT / "bundles", folder / "bundles")
    (folder / ".venv").symlink_to(sys.prefix)


def own_files(here: Path) -> None:
    """The user's own files that the guide names: examples by attribute, and checkpoints."""
    import torch

    here.mkdir()
    _examples(here)
    diffae, asyrp = GOLDEN / "diffae-tiny", GOLDEN / "asyrp-ddpm-tiny"
    for source, target in (
        (diffae / "last.ckpt", "ffhq256/last.ckpt"),
        (diffae / "last.ckpt", "ffhq256_latent/last.ckpt"),
        (diffae / "cls_last.ckpt", "ffhq256_cls/last.ckpt"),
        (asyrp / "model.ckpt", "celeba_hq.ckpt"),
        (asyrp / "attribute0_LC_golden_t999_ninv8_ngen8_0.pth", "smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth"),
        (asyrp / "attribute1_LC_golden_t999_ninv8_ngen8_0.pth", "young_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth"),
    ):
        (here / target).parent.mkdir(exist_ok=True)
        shutil.copyfile(source, here / target)
    from ..parity.test_diffusers import save
    from ..parity.test_lpips import LAYERS

    save("epsilon", here / "ddpm-church-256")
    rng = torch.Generator().manual_seed(0)
    alexnet = {}
    for index, (channels, out, kernel) in LAYERS.items():
        alexnet[f"features.{index}.weight"] = torch.randn(out, channels, kernel, kernel, generator=rng) / kernel
        alexnet[f"features.{index}.bias"] = torch.zeros(out)
    torch.save(alexnet, here / "alexnet-owt-7be5be79.pth")
    linear = {f"lin{i}.model.1.weight": torch.rand(1, c[1], 1, 1, generator=rng) for i, c in enumerate(LAYERS.values())}
    torch.save(linear, here / "alex.pth")


def _examples(folder: Path) -> None:
    """Labelled images: with/ and without/, long/ and short/, ten/ and pool/, and faces/ with labels.csv."""
    from hspace.image import save_image

    data = np.load(ROOT / "tests" / "data" / "avatars.npz")
    images, labels, names = data["images"][:200], data["labels"][:200], data["names"].tolist()

    def put(name: str, chosen: np.ndarray) -> None:
        (folder / name).mkdir()
        for i in np.flatnonzero(chosen):
            save_image(folder / name / f"{i:03d}.png", images[i])

    wink, long_hair = (labels[:, names.index(n)] for n in ("Wink", "Long_Hair"))
    put("with", wink)
    put("without", ~wink)
    put("long", long_hair)
    put("short", ~long_hair)
    put("ten", wink & (np.cumsum(wink) <= 10))
    put("pool", ~wink & (np.cumsum(~wink) <= 60))
    put("faces", np.ones(len(images), bool))
    rows = [",".join(["file", "Wink", "Long_Hair"])]
    rows += [f"{i:03d}.png,{int(w)},{int(h)}" for i, (w, h) in enumerate(zip(wink, long_hair, strict=True))]
    (folder / "faces" / "labels.csv").write_text("\n".join(rows) + "\n")


def run(document: Path, clone: Path) -> subprocess.CompletedProcess[str]:
    """Runs a document in the clone."""
    environment = {**os.environ, "HSPACE_ENGINE": "onnx"}  # whose pictures are the same everywhere
    environment.pop("HSPACE_BUNDLE", None)
    command = ["bash", "-c", script(document)]
    return subprocess.run(command, cwd=clone, env=environment, text=True, capture_output=True, check=False)


def pictures(folder: Path) -> dict[str, Path]:
    """What a run wrote under the names of pictures in docs/images."""
    found = {path.name: path for path in sorted(folder.rglob("*.png"), reverse=True)}  # the first in order
    return {path.name: found[path.name] for path in sorted(IMAGES.glob("*.png")) if path.name in found}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder)
        clone_into(clone)
        own_files(clone / "try")
        done = run(ROOT / "docs" / "guide.md", clone)
        if done.returncode:
            sys.exit(done.stderr)
        for name, path in pictures(clone).items():
            shutil.copyfile(path, IMAGES / name)
            print(f"wrote docs/images/{name}")


if __name__ == "__main__":
    main()
