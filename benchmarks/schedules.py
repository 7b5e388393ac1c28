"""Reconstructions on several noise schedules, of networks that are trained here, for every preset an export gives.

    python benchmarks/schedules.py --work FOLDER [--images tests/data/avatars.npz] [--steps 2000] [--json FILE]

One small U-Net a schedule: the first learns for --steps steps, the others start from its weights and learn for a
quarter as many, on one thread of a CPU. FOLDER keeps the weights and bundles, and what is there is not made again.
Held-out images are then encoded and decoded by each preset; PSNR in dB, means over the images.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import hspace
import msgspec
import numpy as np
import torch
from hspace import manifest as contract
from hspace_export.exporter import Model, export, few_steps
from hspace_export.graph import unet_parts
from hspace_export.models.ddpm import DdpmConfig, DdpmUNet
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
SIZE, BATCH, HELD_OUT, MEASURED = 32, 16, 24, 6
NETWORK = DdpmConfig(32, (1, 2, 2), 1, (2,), 3, True)


def rescaled(timesteps: int = 1000) -> contract.ArraySchedule:
    """The linear schedule moved to zero terminal SNR (Lin et al. 2024, algorithm 1), with cosine's last β."""
    alpha = np.sqrt(contract.LinearSchedule(timesteps=timesteps).build().alphas_cumprod)
    ab = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
    return contract.ArraySchedule(betas=np.minimum(1 - ab / np.append(1.0, ab[:-1]), 0.999).tolist())


SCHEDULES: dict[str, contract.AnySchedule] = {
    "linear": contract.LinearSchedule(),
    "cosine": contract.CosineSchedule(),
    "rescaled": rescaled(),
    "const0.02": contract.ConstSchedule(beta=0.02),
    "cosine, T = 250": contract.CosineSchedule(timesteps=250),
    "const0.008": contract.ConstSchedule(),
}


def train(
    name: str, x: torch.Tensor, steps: int, start: dict[str, torch.Tensor] | None, rate: float
) -> dict[str, torch.Tensor]:
    """Averaged weights of a network that predicts ε on that schedule, from x float32 [N, 3, H, W]."""
    torch.manual_seed(0)
    unet, ab = DdpmUNet(NETWORK), torch.from_numpy(SCHEDULES[name].build().alphas_cumprod).float()
    if start is not None:
        unet.load_state_dict(start)
    average = torch.optim.swa_utils.AveragedModel(unet, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    optimizer = torch.optim.AdamW(unet.parameters(), rate, fused=True)
    rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seen = 0.0
    for step in range(1, steps + 1):
        batch = x[torch.randint(len(x), (BATCH,))]
        batch = torch.where(torch.rand(BATCH, 1, 1, 1) < 0.5, batch, batch.flip(3))
        t, eps = torch.randint(len(ab), (BATCH,)), torch.randn_like(batch)
        level = ab[t][:, None, None, None]
        with torch.autocast("cpu", torch.bfloat16):
            h, temb, skips = unet.trunk(level.sqrt() * batch + (1 - level).sqrt() * eps, t)
            eps_of_net = unet.head(h, temb, skips, torch.arange(BATCH))
        loss = (eps_of_net.float() - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        average.update_parameters(unet)
        seen += (float(loss.detach()) - seen) / min(step, 100)
        if step % 100 == 0:
            print(f"{name}: step {step} of {steps}, loss {seen:.4f}", flush=True)
    return average.module.state_dict()


def presets(schedule: contract.AnySchedule, clip: bool) -> dict[str, contract.Preset]:
    """What exports of the families give for that schedule; the papers' 250 + 100 where T can have them."""
    total = schedule.build().timesteps
    official = contract.Preset(encode_steps=min(250, total), decode_steps=100, spacing="diffae", clip=clip)
    if total % 100:
        official = msgspec.structs.replace(official, decode_steps=total // 2)
    diffusers = msgspec.structs.replace(official, encode_steps=50, decode_steps=50, spacing="leading")
    asyrp = msgspec.structs.replace(official, encode_steps=40, decode_steps=40, spacing="asyrp")
    return {
        "official (DiffAE)": official,
        "official (diffusers)": diffusers,
        "official (Asyrp)": asyrp,
        **few_steps("asyrp", official, schedule),
    }


def bundle(name: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    """The network as a bundle, its presets unclamped, and the few-step ones clamped as well."""
    if folder.exists():
        return folder
    unet = DdpmUNet(NETWORK)
    unet.load_state_dict(state)
    schedule = SCHEDULES[name]
    clamped = {f"{key} clamped": p for key, p in presets(schedule, True).items() if not key.startswith("official")}
    model = Model(
        family="asyrp",
        image_size=SIZE,
        parts=unet_parts(unet.eval(), SIZE, 0),
        schedules=contract.Schedules(image=schedule),
        presets=presets(schedule, False) | clamped,
        config={},
        sources={"checkpoint": contract.Source(file=f"{name}.pt", sha256="0" * 64)},
    )
    return export(lambda: model, folder, name="schedules").path


def measure(editor: hspace.Editor, images: NDArray[np.uint8]) -> dict[str, float]:
    """PSNR of reconstructions by every preset, dB."""
    x = images.transpose(0, 3, 1, 2) / 127.5 - 1
    measured = {}
    for preset in editor.bundle.manifest.presets:
        squares = np.mean((editor.reconstruct(images, preset=preset, output="float32") - x) ** 2, axis=(1, 2, 3))
        measured[preset] = float(np.mean(10 * np.log10(4 / squares)))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=Path, default=ROOT / "tests" / "data" / "avatars.npz")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=list(SCHEDULES), default=list(SCHEDULES))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    images = np.load(args.images)["images"]
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    first, measured = None, {}
    for name in SCHEDULES:
        if first is not None and name not in args.only:
            continue
        path = args.work / f"{name}.pt"
        if not path.exists():
            steps, rate = (args.steps, 1e-3) if first is None else (args.steps // 4, 5e-4)
            torch.save(train(name, x[HELD_OUT:], steps, first, rate), path)
        state = torch.load(path, weights_only=True)
        first = first or state
        if name not in args.only:
            continue
        folder = bundle(name, state, args.work / f"{name}.bundle")
        measured[name] = measure(hspace.open(folder, engine="onnx", threads=1), images[:MEASURED])
        print(f"{name}: " + ", ".join(f"{preset} {value:.1f}" for preset, value in measured[name].items()), flush=True)
    print("\n| preset | " + " | ".join(measured) + " |\n|---" + "|---" * len(measured) + "|")
    for preset in next(iter(measured.values())):
        print(f"| {preset} | " + " | ".join(f"{each[preset]:.1f}" for each in measured.values()) + " |")
    if args.json:
        args.json.write_text(json.dumps(measured, indent=1) + "\n")


if __name__ == "__main__":
    main()
