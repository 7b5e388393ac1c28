"""Exports the published full-size architectures with random weights, and prints seconds and peak memory of each.

    python benchmarks/export_full_size.py [--attribute ddpm=FILE.pth] [--attribute guided=FILE.pth] [--keep FOLDER]

Each export runs in a process of its own, as `hspace export` on a checkpoint in the official format.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from hspace_export.models.ddpm import DdpmConfig, DdpmUNet
from hspace_export.models.diffae import Encoder, EncoderConfig, LatentConfig, LatentNet
from hspace_export.models.guided import GuidedConfig, GuidedUNet

MULT = (1.0, 1.0, 2.0, 2.0, 4.0, 4.0)


def write_ddpm(path: Path) -> None:
    """CelebA-HQ 256 and LSUN: 114 M parameters."""
    torch.save(DdpmUNet(DdpmConfig(128, MULT, 2, (4,), 3, True)).state_dict(), path)


def write_guided(path: Path) -> None:
    """AFHQ dog, FFHQ-P2 and MetFaces: one residual block a level, learned sigma."""
    config = GuidedConfig(128, MULT, 1, (4,), 512, 6, 0, True, True, 1, 64)
    torch.save(GuidedUNet(config).state_dict(), path)


def write_diffae(path: Path) -> None:
    """FFHQ 256: U-Net, encoder, and the latent DDIM's network of 10 layers."""
    unet = GuidedUNet(GuidedConfig(128, MULT, 2, (4,), 512, 3, 512, True, True, 1, None))
    encoder = Encoder(EncoderConfig(128, (*MULT, 4.0), 2, (4,), 512, 1))
    latent = LatentNet(LatentConfig(512, 2048, 10, tuple(range(1, 10)), 64, 2, 1.0))
    state = {f"ema_model.{k}": v for k, v in unet.state_dict().items()}
    state |= {f"ema_model.encoder.{k}": v for k, v in encoder.state_dict().items()}
    state |= {f"ema_model.latent_net.{k}": v for k, v in latent.state_dict().items()}
    state |= {"conds_mean": torch.zeros(1, 512), "conds_std": torch.ones(1, 512)}
    torch.save({"state_dict": state}, path)


CASES = {
    "ddpm": (write_ddpm, "asyrp", "celebahq256"),
    "guided": (write_guided, "asyrp", "afhqdog256"),
    "diffae": (write_diffae, "diffae", "ffhq256"),
}
# ru_maxrss of the child alone, in KiB
MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attribute", action="append", default=[], metavar="CASE=FILE")
    parser.add_argument("--keep", type=Path, help="leave the bundles here")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    args = parser.parse_args()
    torch.manual_seed(0)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        for case in args.cases:
            write, family, preset = CASES[case]
            checkpoint = Path(scratch) / f"{case}.ckpt"
            write(checkpoint)
            command = [sys.executable, "-m", "hspace.cli", "export", family, str(checkpoint), "--preset", preset]
            command += ["-o", str(folder / case), "--force"]
            for text in args.attribute:
                which, _, file = text.partition("=")
                command += ["--attribute", f"attribute={file}"] if which == case else []
            start = time.perf_counter()
            run = subprocess.run(
                [sys.executable, "-c", MEASURED, *command], text=True, capture_output=True, check=False
            )
            seconds = time.perf_counter() - start
            if run.returncode:
                sys.exit(run.stderr)
            peak = int(run.stderr.split("peak ")[-1]) / 2**20
            print(f"{case:8} {seconds:6.0f} s  {peak:5.2f} GiB  {run.stdout.strip()}", flush=True)
            checkpoint.unlink()


if __name__ == "__main__":
    main()
