"""The peers. Each opens what it needs, and runs edits; libraries are imported by the peer that uses them alone."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from hspace.arrays import Float32
from hspace.attributes import read_attribute
from hspace.bench.startup import peak_memory
from hspace.bundle import Bundle
from hspace.deltas import DeltaTable, ZDirection

from .cases import Case
from .loops import ASYMMETRIC, PLAIN, Tick, asyrp_edit, diffae_edit

Steps = tuple[int, int]


class Unavailable(Exception):
    """Why a peer cannot run here."""


class Loop:
    """The papers' loops over a network in two parts; see `loops`."""

    def __init__(self, net: Any, case: Case) -> None:
        bundle = Bundle(case.bundle)
        self.net, self.case = net, case
        self.attribute = read_attribute(bundle, case.attribute)
        self.ab = bundle.manifest.schedules.image.build().alphas_cumprod

    def edit(self, steps: Steps, tick: Tick) -> Float32:
        run = {"diffae": diffae_edit, "asyrp": asyrp_edit}[self.case.family]
        assert isinstance(self.attribute, (ZDirection, DeltaTable))
        x: Float32 = np.asarray(run(self.net, self.case, self.attribute, self.ab, steps, tick))  # type: ignore[arg-type]
        return x

    def counts(self, steps: Steps) -> dict[str, int]:
        if self.case.family == "asyrp":
            return {PLAIN: steps[0] - 1, ASYMMETRIC: steps[1]}
        return {PLAIN: sum(steps)}


# --- PyTorch ------------------------------------------------------------------------------------------------


class TorchNet:
    """The checkpoint's U-Net, and encoder, in float32. form: "eager", "channels-last" or "compile"."""

    def __init__(self, case: Case, threads: int, form: str) -> None:
        if case.checkpoint is None:
            raise Unavailable(case.no_checkpoint)
        if form == "compile" and shutil.which(os.environ.get("CXX", "g++")) is None:
            raise Unavailable("torch.compile needs a C++ compiler, and there is none")
        if form == "compile":  # so that the time to compile is not that of an earlier run's leavings
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = self._cache = tempfile.mkdtemp()
        import torch
        from hspace_export.checkpoint import load, tensors
        from hspace_export.models.ddpm import DdpmConfig, DdpmUNet
        from hspace_export.models.diffae import Encoder, EncoderConfig
        from hspace_export.models.guided import GuidedConfig, GuidedUNet

        torch.set_num_threads(threads)
        self.torch = torch
        manifest = Bundle(case.bundle).manifest
        config, rounded = manifest.provenance.config, manifest.components["trunk"].weights == "fp16"
        if rounded:  # the bundle stores them so; its arithmetic is float32
            from hspace_export.graph import round_weights
        state = tensors(load(case.checkpoint), case.checkpoint, "ema_model." if case.family == "diffae" else "")
        self.unet: Any
        if config.get("layout") == "ddpm":
            self.unet, head = DdpmUNet(DdpmConfig(**_tuples(config["unet"]))), ddpm_head
        else:
            self.unet, head = GuidedUNet(GuidedConfig(**_tuples(config["unet"]))), guided_head
        parts: list[tuple[Any, str]] = [(self.unet, "")]
        if case.family == "diffae":
            self._encoder = Encoder(EncoderConfig(**_tuples(config["encoder"])))
            parts.append((self._encoder, "encoder."))
        self.format = torch.channels_last if form == "channels-last" else torch.contiguous_format
        for module, prefix in parts:
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            module.load_state_dict({k: own[k] for k in module.state_dict()})
            if rounded:
                round_weights(module)
            module.eval().to(memory_format=self.format)
        self._trunk: Callable[..., Any] = self.unet.trunk
        self._head: Callable[..., Any] = lambda *inputs: head(self.unet, *inputs)
        if form == "compile":
            self._trunk, self._head = torch.compile(self._trunk), torch.compile(self._head)

    def array(self, x: Float32) -> Any:
        made = self.torch.from_numpy(x)
        return made.contiguous(memory_format=self.format) if made.ndim == 4 else made

    def encoder(self, x: Any) -> Any:
        return self._encoder(x)

    def trunk(self, x: Any, t: int, z_sem: Any) -> Any:
        return self._trunk(x, self.torch.tensor([t]), *(() if z_sem is None else (z_sem,)))

    def head(self, h: Any, features: Any, z_sem: Any) -> Any:
        return self._head(h, *features[1:], *(() if z_sem is None else (z_sem,)))


def _tuples(config: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}


def ddpm_head(unet: Any, h: Any, temb: Any, skips: Any) -> Any:
    """The up path as the official code has it: one sample a sample, no `source`."""
    import torch

    left = list(skips)
    for i, level in reversed(list(enumerate(unet.up))):
        for j in range(unet.config.num_res_blocks + 1):
            h = level.run(j, torch.cat([h, left.pop()], dim=1), temb)
        if i:
            h = level.upsample(h)
    return unet.conv_out(torch.nn.functional.silu(unet.norm_out(h)))


def guided_head(unet: Any, h: Any, temb: Any, skips: Any, z_sem: Any = None) -> Any:
    """As `ddpm_head`, of a guided-diffusion U-Net."""
    import torch
    from hspace_export.models.guided import ResBlock

    for block, skip in zip(unet.output_blocks, reversed(skips), strict=True):
        h = torch.cat([h, skip], dim=1)
        for part in block.children():
            h = part(h, temb, z_sem) if isinstance(part, ResBlock) else part(h)
    return unet.out(h)


class TorchLoop(Loop):
    def edit(self, steps: Steps, tick: Tick) -> Float32:
        with self.net.torch.inference_mode():
            return super().edit(steps, tick)


class Diffusers:
    """The unedited round trip of a UNet2DModel of google/ddpm-celebahq-256's size; its weights are its own."""

    def __init__(self, case: Case, threads: int) -> None:
        if case.name != "ddpm256":
            raise Unavailable("diffusers has no counterpart of a Diffusion Autoencoder")
        import torch
        from diffusers import DDIMInverseScheduler, DDIMScheduler, UNet2DModel

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        plain = 4
        self.torch, self.case = torch, case
        self.unet = UNet2DModel(
            sample_size=256,
            block_out_channels=(128, 128, 256, 256, 512, 512),
            down_block_types=("DownBlock2D",) * plain + ("AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D") + ("UpBlock2D",) * plain,
            layers_per_block=2,
            attention_head_dim=None,
            flip_sin_to_cos=False,
            freq_shift=1,
            downsample_padding=0,
        ).eval()
        self.up, self.down = DDIMInverseScheduler(clip_sample=False), DDIMScheduler(clip_sample=False)

    def round_trip(self, steps: Steps, tick: Tick) -> Float32:
        x = self.torch.from_numpy(self.case.image)
        with self.torch.inference_mode():
            for scheduler, n in ((self.up, steps[0]), (self.down, steps[1])):
                scheduler.set_timesteps(n)
                for t in scheduler.timesteps:
                    x = scheduler.step(self.unet(x, t).sample, t, x).prev_sample
                    tick(PLAIN)
        out: Float32 = x.numpy()
        return out


# --- the bundle's graphs in a user's own loop ---------------------------------------------------------------


class GraphNet:
    """Graphs as functions of named arrays. run: component, inputs → outputs by name; names: component → its inputs."""

    def __init__(self, run: Callable[[str, dict[str, Any]], dict[str, Any]], names: dict[str, list[str]]) -> None:
        self._run, self._names = run, names

    def array(self, x: Float32) -> Float32:
        return x

    def _call(self, component: str, given: dict[str, Any]) -> dict[str, Any]:
        return self._run(component, {name: given[name] for name in self._names[component]})

    def encoder(self, x: Float32) -> Float32:
        out: Float32 = self._call("encoder", {"x": x})["z_sem"]
        return out

    def trunk(self, x: Float32, t: int, z_sem: Any) -> list[Any]:
        made = self._call("trunk", {"x": x, "t": np.array([t], np.int32), "z_sem": z_sem})
        return [made["h"], made]

    def head(self, h: Float32, features: list[Any], z_sem: Any) -> Float32:
        given = {**features[1], "h": h, "source": np.zeros(1, np.int64), "z_sem": z_sem}
        out: Float32 = self._call("head", given)["eps"]
        return out


def _graphs(case: Case) -> dict[str, str]:
    components = Bundle(case.bundle).manifest.components
    return {k: str(case.bundle / components[k].file) for k in ("trunk", "head", "encoder") if k in components}


def onnx_runtime(case: Case, threads: int | None) -> Loop:
    """Default SessionOptions, but for the threads where they were given."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    sessions = {k: ort.InferenceSession(path, options) for k, path in _graphs(case).items()}
    outputs = {k: [o.name for o in s.get_outputs()] for k, s in sessions.items()}

    def run(component: str, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(outputs[component], sessions[component].run(None, inputs), strict=True))

    return Loop(GraphNet(run, {k: [i.name for i in s.get_inputs()] for k, s in sessions.items()}), case)


def openvino(case: Case, threads: int | None) -> Loop:
    """Default settings, the precision of the arithmetic among them, but for the threads where they were given."""
    try:
        import openvino as ov
    except ImportError as e:
        raise Unavailable(str(e)) from None
    core = ov.Core()
    config = {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
    models = {k: core.compile_model(path, "CPU", config) for k, path in _graphs(case).items()}
    outputs = {k: [o.get_any_name() for o in m.outputs] for k, m in models.items()}

    def run(component: str, inputs: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(outputs[component], models[component](inputs).values(), strict=True))

    return Loop(GraphNet(run, {k: [i.get_any_name() for i in m.inputs] for k, m in models.items()}), case)


# --- hspace -------------------------------------------------------------------------------------------------


class Hspace:
    """The editor on one engine, through its public interface."""

    def __init__(self, case: Case, threads: int | None, engine: str) -> None:
        import hspace
        from hspace.engines import precisions, unavailable
        from hspace.program import Branch

        reason = unavailable(engine)
        if reason is not None:
            raise Unavailable(reason)
        self.case, self.asymmetric = case, Branch.ASYMMETRIC
        fastest = precisions(engine, hspace.Bundle(case.bundle))[-1]
        self.editor = hspace.open(case.bundle, engine=engine, precision=fastest, threads=threads)
        self.edits = {case.attribute: case.strength}

    def _kinds(self, steps: Steps | None, preset: str, edits: dict[str, float] | None) -> list[str]:
        encode, decode = steps or (None, None)
        up = self.editor.program("encode", preset=preset, steps=encode)
        down = self.editor.program("edit" if edits else "decode", edits=edits, preset=preset, steps=decode)
        return [PLAIN] * len(up) + [ASYMMETRIC if b == self.asymmetric else PLAIN for b in down.rows["branch"]]

    def _run(self, steps: Steps | None, preset: str, edits: dict[str, float] | None, tick: Tick) -> Float32:
        kinds = iter(self._kinds(steps, preset, edits))
        noise = None if steps is None or edits is None else self.case.noise(steps)
        out: Float32 = self.editor.edit(
            self.case.image,
            edits,
            preset=preset,
            steps=steps,
            noise=noise if noise is not None and len(noise) else None,
            on_step=lambda _: tick(next(kinds)),
            output="float32",
        )
        return out

    def edit(self, steps: Steps, tick: Tick) -> Float32:
        return self._run(steps, "official", self.edits, tick)

    def balanced(self, steps: Steps, tick: Tick) -> Float32:
        """At the preset's own steps."""
        return self._run(None, "balanced", self.edits, tick)

    def round_trip(self, steps: Steps, tick: Tick) -> Float32:
        """Asyrp's inversion runs between its timesteps, so one more of them gives as many evaluations."""
        return self._run((steps[0] + 1, steps[1]), "official", None, tick)

    def counts(self, steps: Steps) -> dict[str, int]:
        kinds = self._kinds(steps, "official", self.edits)
        return {kind: kinds.count(kind) for kind in (PLAIN, ASYMMETRIC) if kind in kinds}


PEERS = ("torch eager", "torch channels-last", "torch.compile", "diffusers", "ONNX Runtime loop", "OpenVINO loop")


def open_peer(name: str, case: Case, threads: int | None) -> Any:
    """The peer of that name: one of `PEERS`, or "hspace ENGINE". Raises Unavailable."""
    every = threads or len(os.sched_getaffinity(0))
    if name.startswith("hspace "):
        return Hspace(case, threads, name.removeprefix("hspace "))
    if name == "diffusers":
        return Diffusers(case, every)
    if name == "ONNX Runtime loop":
        return onnx_runtime(case, threads)
    if name == "OpenVINO loop":
        return openvino(case, threads)
    return TorchLoop(TorchNet(case, every, name.removeprefix("torch").strip(" .")), case)


def serve(connection: Any, name: str, case: Case, threads: int | None) -> None:
    """A peer's own process: answers requests (method, steps) until None comes; what it prints is dropped."""
    begun = time.perf_counter()
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        peer = open_peer(name, case, threads)
        connection.send({"open": time.perf_counter() - begun, "counts": _counts(peer, case)})
        while (request := connection.recv()) is not None:
            method, steps = request
            ticks: list[tuple[str, float]] = []
            start = time.perf_counter()
            x = getattr(peer, method)(steps, lambda kind, ticks=ticks: ticks.append((kind, time.perf_counter())))
            end = time.perf_counter()
            before = [start, *(t for _, t in ticks)]
            each = [(kind, t - b) for (kind, t), b in zip(ticks, before, strict=False)]
            answer = {"seconds": end - start, "steps": each, "x": np.asarray(x), "peak": peak_memory()}
            connection.send(answer | {"first_step": ticks[0][1] - begun})
    except Unavailable as e:
        connection.send({"error": str(e)})
    except Exception as e:
        text = (str(e).strip().splitlines() or [""])[0]
        connection.send({"error": f"{type(e).__name__}: {text}"[:300]})
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "") if name == "torch.compile" else ""
    if cache:
        shutil.rmtree(cache, ignore_errors=True)


def _counts(peer: Any, case: Case) -> dict[str, int]:
    counts: dict[str, int] = peer.counts(case.official) if hasattr(peer, "counts") else {}
    return counts
