"""Compiles the kernels ahead of time: python -m hspace_kernels.build [--check] [--out FOLDER] [--targets sm_90,ptx]

Needs Triton and no GPU. Writes an image of every variant for every target, and kernels.json, to the runtime's folder
hspace/cuda/cubins. --check compiles to a temporary folder instead and compares byte for byte: exit code 1, and a line
for each file that differs. A build is the same on every machine: images hold no line information, and so no paths.

Triton makes the PTX; its last stage, ptxas, is called here, for two reasons. Triton compiles for sm_90a, sm_100a and
sm_120a, whose images run on that one architecture each; one for plain sm_100 serves 103 too, one for sm_120 121. The
kernels use nothing that needs the "a". And the cubins come from the older of Triton's two ptxas, of CUDA 12.8, which
knows all of these architectures: drivers of CUDA 13 run its cubins, but older ones may refuse those of a ptxas 13.

The fallback for architectures to come is PTX for sm_80, which a driver compiles for the GPU that it finds. PTX is
forward compatible unless its target has an "a"; sm_80 is the first with asynchronous copies.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(
    TRITON_DISABLE_LINE_INFO="1",  # no paths of this machine
    TRITON_ALWAYS_COMPILE="1",  # nothing from a cache
    TRITON_DEFAULT_FP_FUSION="1",  # a·b + c in one rounding
)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from .variants import VARIANTS

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
TARGETS = {f"sm_{a}": a for a in ARCHITECTURES} | {"ptx": 80}
PTX_VERSION = 87  # of CUDA 12.8, the first to know sm_120
PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
OUT = Path(__file__).parents[2] / "runtime" / "hspace" / "cuda" / "cubins"


@dataclass(frozen=True)
class Image:
    """A compiled variant: the file's bytes, its entry in kernels.json, and what ptxas said of it (empty for PTX)."""

    data: bytes
    entry: dict[str, Any]
    log: str


def compile_image(name: str, target: str) -> Image:
    """The image of variant `name` for a target, "sm_75" … "sm_120" or "ptx"."""
    variant = VARIANTS[name]
    parameters = variant.parameters
    source = ASTSource(
        variant.kernel,
        signature=parameters | dict.fromkeys(variant.block, "constexpr"),
        constexprs=variant.block,
        # every buffer is aligned to 16 bytes at least
        attrs={(i,): [["tt.divisibility", 16]] for i, t in enumerate(parameters.values()) if t.startswith("*")},
    )
    options = {"num_warps": variant.num_warps, "ptx_version": PTX_VERSION}
    kernel = triton.compile(source, target=GPUTarget("cuda", TARGETS[target], 32), options=options)
    ptx = re.sub(r"(\.target sm_\d+)a", r"\1", kernel.asm["ptx"])
    data, log = (ptx.encode(), "") if target == "ptx" else assemble(ptx, target)
    file, meta = f"{target}/{name}.{'ptx' if target == 'ptx' else 'cubin'}", kernel.metadata
    entry = {
        "file": file,
        "sha256": hashlib.sha256(data).hexdigest(),
        "entry": meta.name,
        "num_warps": meta.num_warps,
        "shared": meta.shared,
        "global_scratch": meta.global_scratch_size,
        "profile_scratch": meta.profile_scratch_size,
    }
    return Image(data, entry, log)


def assemble(ptx: str, architecture: str) -> tuple[bytes, str]:
    """PTX as a cubin, and ptxas's report of registers and spills."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        command = [str(PTXAS), "-v", f"--gpu-name={architecture}", str(source), "-o", str(cubin)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"ptxas: {done.stderr}")
        return cubin.read_bytes(), done.stderr


def usage(log: str) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, from ptxas's report."""
    spilled = re.findall(r"(\d+) bytes spill", log)
    return int(re.findall(r"Used (\d+) registers", log)[0]), sum(map(int, spilled))


def build(out: Path, targets: Iterable[str] = TARGETS) -> dict[str, Image]:
    """Compiles every variant for `targets` on all cores; writes the images and kernels.json to `out`.

    Returns the images by their files.
    """
    targets = list(targets)
    each = [(name, target) for name in VARIANTS for target in targets]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        with ProcessPoolExecutor(os.cpu_count()) as pool:
            images = list(pool.map(compile_image, *zip(*each, strict=True)))
    kernels: dict[str, Any] = {}
    for (name, target), image in zip(each, images, strict=True):
        variant = VARIANTS[name]
        empty = {
            "parameters": [list(p) for p in variant.parameters.items()],
            "block": variant.block,
            "grid": variant.grid,
            "images": {},
        }
        kernels.setdefault(name, empty)["images"][target] = image.entry
        path = out / image.entry["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.data)
    fusion = os.environ["TRITON_DEFAULT_FP_FUSION"] == "1"
    manifest = {"format": "hspace-kernels-1", "triton": triton.__version__, "fp_fusion": fusion, "kernels": kernels}
    (out / "kernels.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return {image.entry["file"]: image for image in images}


def differences(committed: Path, built: Path, targets: Iterable[str] = TARGETS) -> list[str]:
    """A line for every file of `targets` that is missing, extra or not the same in `committed` as in `built`."""
    differing = []
    for target in targets:
        names = {p.name for folder in (committed, built) for p in (folder / target).glob("*")}
        for file in (f"{target}/{name}" for name in sorted(names)):
            here, there = committed / file, built / file
            if not here.exists() or not there.exists():
                differing.append(f"{file}: {'missing' if there.exists() else 'not built any more'}")
            elif here.read_bytes() != there.read_bytes():
                differing.append(f"{file}: not what the sources build")
    here, there = (json.loads(p.read_text()) if (p := f / "kernels.json").exists() else {} for f in (committed, built))
    for manifest in (here, there):
        for kernel in manifest.get("kernels", {}).values():
            kernel["images"] = {t: image for t, image in kernel["images"].items() if t in set(targets)}
    return differing + ["kernels.json: not what the sources build"] * (here != there)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hspace_kernels.build", description="Compiles the kernels.")
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of writing it")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of kernels.json and the images")
    parser.add_argument("--targets", default=",".join(TARGETS), help="some of %(default)s, with --check")
    arguments = parser.parse_args()
    targets = arguments.targets.split(",")
    if unknown := set(targets) - set(TARGETS):
        parser.error(f"--targets: no {', '.join(sorted(unknown))}")
    if arguments.check:
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), targets)
            lines = differences(arguments.out, Path(folder), targets)
        print("\n".join(lines) or f"{arguments.out}: what the sources build")
        return bool(lines)
    if set(targets) != set(TARGETS):
        parser.error("--targets: with --check only; kernels.json lists them all")
    images = build(arguments.out)
    for file, image in images.items():
        registers = "{} registers, {} bytes spilled".format(*usage(image.log)) if image.log else ""
        print(f"{file:34s} {len(image.data):7d} bytes  {registers}")
    print(f"{arguments.out}: {len(images)} images, {sum(len(i.data) for i in images.values())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
