"""PyTorch in FP16 with the same architecture: what a user would otherwise run on this GPU.

As the papers' loops (`loops` of the comparison on CPUs): the network, then the update, an operation at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hspace_export.models.layers as layers
import torch
import torch.nn.functional as F
from hspace.attributes import read_attribute
from hspace.bundle import Bundle
from hspace.deltas import GROUPS, DeltaBlock
from hspace_export.models.ddpm import DdpmConfig, DdpmUNet
from hspace_export.models.guided import GuidedConfig, GuidedUNet
from peers.runners import ddpm_head, guided_head
from torch import Tensor

from .steps import UPDATES
from .workers import Failed

States = tuple[Tensor, Tensor]  # x, float32 [N, 3, H, W], and the network's input, float16


class Loop:
    """One step of the papers' loops on the bundle's architecture, with random weights, in FP16. Shapes as in hspace.

    form: "eager", "channels-last" or "compile". `parts` is what can be timed, as functions; `open` makes them.
    """

    def __init__(self, bundle: Bundle, form: str, device: str) -> None:
        torch.manual_seed(0)
        manifest, config = bundle.manifest, bundle.manifest.provenance.config
        shape = {k: tuple(v) if isinstance(v, list) else v for k, v in config["unet"].items()}
        self.unet: Any
        self._head: Callable[..., Tensor]
        if config.get("layout") == "ddpm":
            self.unet, self._head = DdpmUNet(DdpmConfig(**shape)), ddpm_head
        else:
            self.unet, self._head = GuidedUNet(GuidedConfig(**shape)), guided_head
        self._form, self._device = form, device
        self._memory = torch.channels_last if form == "channels-last" else torch.contiguous_format
        layers.to_half(self.unet).eval().to(device, memory_format=self._memory)
        self._size, self._clamped = manifest.image.size, manifest.family == "diffae"
        self._z = () if manifest.z_sem is None else (manifest.z_sem.size,)
        attributes = (read_attribute(bundle, name) for name in manifest.attributes)
        self._block = next((self._on_device(a) for a in attributes if isinstance(a, DeltaBlock)), None)
        self.parts: dict[str, Callable[[], Any]] = {}

    def open(self, n: int) -> None:
        """Steps of n samples. A compiled asymmetric one for n = 1 alone: each takes half a minute to compile."""
        x = torch.randn(n, 3, self._size, self._size, device=self._device).contiguous(memory_format=self._memory)
        t = torch.full((n,), 500, dtype=torch.int32, device=self._device)
        row = torch.tensor([0.7, 0.71, 0.72, 0.69], device=self._device)  # α, σ, and the next level's
        z = tuple(torch.randn(n, d, device=self._device).half() for d in self._z)
        source = torch.arange(n, device=self._device).repeat(2)
        eps, x_in = x.half(), x.half()
        compiled = self._form == "compile"
        step, both, update = self._step, self._asymmetric, self._update
        if compiled:
            torch._dynamo.reset()
            options = {"mode": "reduce-overhead", "dynamic": False}
            step, both, update = (torch.compile(f, **options) for f in (step, both, update))
        self.parts = {"step": lambda: step(x, x_in, t, row, *z)}
        if self._block is not None and (n == 1 or not compiled):
            self.parts["asymmetric step"] = lambda: both(x, x_in, t, row, source, *z)
        self.parts["update"] = lambda: update(x, eps, eps, row)

    def _step(self, x: Tensor, x_in: Tensor, t: Tensor, row: Tensor, *z: Tensor) -> States:
        h, temb, skips = self.unet.trunk(x_in, t, *z)
        eps = self._head(self.unet, h, temb, skips, *z)
        return self._update(x, eps, eps, row)

    def _asymmetric(self, x: Tensor, x_in: Tensor, t: Tensor, row: Tensor, source: Tensor, *z: Tensor) -> States:
        """The head once, on h and h + Δh; the official code runs it twice."""
        h, temb, skips = self.unet.trunk(x_in, t, *z)
        both = torch.cat([h, h + self._delta(h, temb)])
        eps, eps_edit = self.unet.head(both, temb, skips, source, *z).chunk(2)
        return self._update(x, eps, eps_edit, row)

    def _update(self, x: Tensor, eps: Tensor, eps_edit: Tensor, row: Tensor) -> States:
        """As the official code writes it; DiffAE's clamps P, and takes the direction from it."""
        alpha, sigma, alpha_next, sigma_next = row
        eps = eps.float()
        p = (x - sigma * eps_edit.float()) / alpha
        if self._clamped:
            p = p.clamp(-1, 1)
            eps = (x - alpha * p) / sigma
        x_next = alpha_next * p + sigma_next * eps
        return x_next, x_next.half()

    def _delta(self, h: Tensor, temb: Tensor) -> Tensor:
        """f_t, in the DDPM layout (Kwon et al. 2023, section 3.3)."""
        assert self._block is not None
        (conv1, temb_proj, norm2, conv2), eps = self._block
        y = F.conv2d(h, *conv1) + F.linear(F.silu(temb), *temb_proj)[:, :, None, None]
        y = F.group_norm(y.float(), min(GROUPS, y.shape[1]), *norm2, eps=eps).half()
        return F.conv2d(F.silu(y), *conv2)

    def _on_device(self, block: DeltaBlock) -> tuple[list[list[Tensor]], float]:
        def half(weight: Any, bias: Any, kernel: tuple[int, ...] = ()) -> list[Tensor]:
            made = [torch.from_numpy(a).half().to(self._device) for a in (weight, bias)]
            return [made[0].reshape(*made[0].shape, *kernel), made[1]]

        norm = [torch.from_numpy(a).to(self._device) for a in block.norm2]
        weights = [half(*block.conv1, (1, 1)), half(*block.temb_proj), norm, half(*block.conv2, (1, 1))]
        return weights, block.eps


class Party:
    """A `Loop` on the first GPU, as `steps` times it. cache: the folder that keeps what is compiled."""

    def __init__(self, folder: Path, form: str, cache: Path) -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        if not torch.cuda.is_available():
            raise Failed(f"PyTorch {torch.__version__} cannot use the GPU")
        self._loop, self._compiled = Loop(Bundle(folder), form, "cuda"), form == "compile"

    def open(self, n: int) -> list[str]:
        """Makes steps of n samples ready. Returns what can be timed."""
        self._loop.open(n)
        return list(self._loop.parts)

    def time(self, what: str, count: int) -> list[float]:
        """Milliseconds of each of `count`, on the device."""
        run, each = self._loop.parts[what], UPDATES if what == "update" else 1
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2 * count)]
        with torch.no_grad():
            for begin, end in zip(marks[::2], marks[1::2], strict=True):
                begin.record()
                for _ in range(each):
                    if self._compiled:
                        torch.compiler.cudagraph_mark_step_begin()
                    run()
                end.record()
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) / each for begin, end in zip(marks[::2], marks[1::2], strict=True)]
