"""A bundle on an engine: images to codes, codes to images, draws. What the editor's calls are made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from .arguments import FIRST_DRAWS, MOST_DRAWS, acceptors, check_acceptance
from .arrays import Float32
from .batch import DeviceExecutor, Executor, Sample
from .bundle import Bundle
from .catalog import SAMPLERS
from .cuda import is_foreign
from .deltas import AnyAttribute
from .engines import Engine
from .errors import ArgumentError, LatentError, LatentWarning, NotFinite
from .executors import cpu
from .image import Images, load_images, to_uint8
from .latent import Latent
from .manifest import Preset
from .noise import NoiseStream
from .plans import Planner
from .requests import Decodes, encodes, noise_of
from .runs import Progress, Runner, one_of
from .tensors import read_tensors


class Pipeline:
    """See the module. Holds no state of a call.

    shape: of an image's state, (3, H, W). z_statistics: mean and std of z_sem over the training set, float32 [D] each,
    where the bundle has them. exact: gives the engine, in float32, of samplers that invert exactly; None where `engine`
    is all that there is.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        executor: Executor | None,
        batch_size: int | None,
        exact: Callable[[], Engine] | None,
    ) -> None:
        manifest = bundle.manifest
        self.bundle, self.engine, self.size = bundle, engine, manifest.image.size
        self.shape = 3, self.size, self.size
        self.planner = Planner(bundle)
        self.runner = Runner(executor or cpu.Executor(engine, manifest.components), self.size, batch_size)
        self._exact = exact
        self.z_statistics: tuple[Float32, Float32] | None = None
        if manifest.z_sem is not None and manifest.z_sem.statistics is not None:
            entry, d = manifest.z_sem.statistics, manifest.z_sem.size
            tensors = read_tensors(bundle.read(entry), str(bundle.folder / entry.file))
            got = tensors.take({"mean": (d,), "std": (d,)}, divisors=["std"])
            self.z_statistics = got["mean"], got["std"]

    def check_latent(self, latent: Latent) -> None:
        """Raises LatentError where a latent is of other shapes, or was made by another model."""
        manifest = self.bundle.manifest
        if not isinstance(latent, Latent):
            raise ArgumentError(f"latent: found {type(latent).__name__}, expected a hspace.Latent")
        expected = (self.shape, None if manifest.z_sem is None else manifest.z_sem.size)
        sizes = (latent.x_T.shape[1:], None if latent.z_sem is None else latent.z_sem.shape[1])
        if sizes != expected:
            raise LatentError(
                f"latent: found x_T {sizes[0]} and z_sem {sizes[1]}, expected {expected[0]} and {expected[1]}"
            )
        checkpoint = latent.provenance.get("checkpoint", manifest.provenance.checkpoint_sha256)
        if checkpoint != manifest.provenance.checkpoint_sha256:
            maker = latent.provenance.get("bundle", "?")[:100]
            raise LatentError(
                f"latent: made by the model {maker!r} (checkpoint {checkpoint[:12]}…), "
                f"expected {manifest.name!r} ({manifest.provenance.checkpoint_sha256[:12]}…)"
            )

    def load(self, images: Images, resize: bool, name: str = "images") -> Any:
        """Any accepted form of images as float32 [N, 3, H, W]: on the host, or on the GPU where they are there."""
        executor = self.runner.executor
        if is_foreign(images):
            if not executor.on_device:
                where = "this editor is on the CPU (device='cuda:0' opens one on a GPU)"
                raise ArgumentError(f"{name}: found an array on a GPU, and {where}")
            images = cast(DeviceExecutor, executor).images(images)
        return images if is_foreign(images) else load_images(images, self.size, resize=resize, name=name)

    def provenance(self, plan: Preset, preset: str | None, *, encoded: bool = True) -> dict[str, str]:
        """What made a latent. encoded: whether an inversion did; else its x_T is drawn."""
        manifest, engine = self.bundle.manifest, self.runner_of(plan).executor.engine
        return {
            "bundle": manifest.name,
            "checkpoint": manifest.provenance.checkpoint_sha256,
            "preset": self.bundle.preset(preset)[0],
            "sampler": plan.sampler,
            "spacing": plan.spacing,
            **({"encode_steps": str(plan.encode_steps)} if encoded else {}),
            "engine": engine.name,
            "precision": engine.precision,
        }

    def runner_of(self, plan: Preset) -> Runner:
        """What runs the plan's programs; see `engine_of`."""
        if not SAMPLERS[plan.sampler].exact or self.engine.precision == "fp32":
            return self.runner
        if self._exact is None:
            raise ArgumentError(
                f"sampler: {plan.sampler} inverts exactly in float32 alone, and this editor runs in "
                f"{self.engine.precision}: expected precision='fp32' or 'auto' and a bundle of float32 graphs"
            )
        return Runner(cpu.Executor(self._exact(), self.bundle.manifest.components), self.size, self.runner.batch_size)

    def encode_z(self, x: Any) -> tuple[Float32, dict[int, NotFinite]]:
        """z_sem of images, float32 [N, D], and the faults of those whose z_sem means nothing, by number."""
        z_sem = self.runner.encode_z(x)
        bad = np.flatnonzero(~np.isfinite(z_sem).all(axis=1)).tolist()
        return z_sem, {i: NotFinite("encoder: z_sem is not finite: the engine's arithmetic overflowed") for i in bad}

    def encode(
        self, x: Any, plan: Preset, preset: str | None, progress: Progress
    ) -> tuple[Latent | None, list[int], dict[int, NotFinite]]:
        """The latent of images; the numbers of those that it holds, where not all of them; the others' faults."""
        z_sem, faults = (None, {}) if self.bundle.manifest.z_sem is None else self.encode_z(x)
        samples = encodes(self.planner.encode(plan), x, z_sem)
        numbers = [i for i in range(len(samples)) if i not in faults]
        samples = [samples[i] for i in numbers]
        if not samples:
            return None, [], faults
        progress.total += self.runner.evaluations([len(sample.program) for sample in samples])
        outcome = self.runner_of(plan).run("encode", samples, numbers, progress)
        faults |= {numbers[k]: e for k, e in outcome.faults.items()}
        arrays = outcome.x, z_sem, outcome.x_prev
        if faults:
            whole = [k for k in range(len(samples)) if k not in outcome.faults]
            numbers = [numbers[k] for k in whole]
            arrays = (
                arrays[0][whole],
                None if z_sem is None else z_sem[numbers],
                arrays[2] if arrays[2] is None else arrays[2][whole],
            )
        return (Latent(*arrays, self.provenance(plan, preset)) if numbers else None), numbers, faults

    def decode(
        self,
        latent: Latent,
        decodes: Decodes,
        progress: Progress,
        numbers: Sequence[int] | None = None,
        faults: Mapping[int, NotFinite] | None = None,
    ) -> NDArray[Any]:
        """The images of a latent. numbers: which of the call's images it holds; faults: why it lacks the others."""
        numbers = range(len(latent)) if numbers is None else numbers
        if faults:
            decodes = decodes.of(numbers)
            progress.total = progress.index + self.runner.evaluations(decodes.rows)
        runner = self.runner_of(decodes.plan)
        out = None
        if decodes.output == "device":
            out = cast(DeviceExecutor, runner.executor).empty(latent.x_T.shape)
        outcome = runner.run("decode", decodes.samples(latent), numbers, progress, out)
        images = to_uint8(outcome.x) if decodes.output == "uint8" else outcome.x
        if not faults and not outcome.faults:
            return images
        others = {i: one_of(images, k) for k, i in enumerate(numbers) if k not in outcome.faults}
        raise not_finite({**(faults or {}), **{numbers[k]: e for k, e in outcome.faults.items()}}, others)

    def draw_z(
        self,
        count: int,
        plan: Preset,
        attributes: Mapping[str, AnyAttribute],
        latent_steps: int | None,
        seed: int,
        given: Float32 | None,
        accept: Mapping[str, float] | None,
        progress: Progress,
    ) -> Float32 | None:
        """`count` draws of z_sem from the latent DDIM: those that every classifier in `accept` accepts, in order."""
        if self.bundle.manifest.z_sem is None:
            if latent_steps is not None or given is not None or accept is not None:
                raise ArgumentError("sample: latent_steps, z_noise and accept: the model has no z_sem to draw")
            return None
        program = self.planner.latent(plan, latent_steps)
        directions = acceptors(accept, attributes)
        if directions and given is not None:
            raise ArgumentError("accept: z_noise gives as many draws as there are images, so none can be left out")
        assert self.z_statistics is not None  # the manifest's checks say so, where there is a latent DDIM
        mean, std = self.z_statistics
        least = np.array([x for _, x in directions], np.float32)
        kept: list[Float32] = []
        logits = np.empty((0, len(directions)), np.float32)  # of every draw so far
        drawn = 0
        while len(kept) < count:
            check_acceptance(accept or {}, logits, count, len(kept))
            n = max(self.runner.batch_size, min(count, FIRST_DRAWS)) if directions else count
            n = min(n, MOST_DRAWS * count - drawn)
            noise = noise_of("z_noise", given, n, mean.shape, seed, NoiseStream.Z_SEM, first=drawn)
            progress.total += self.runner.evaluations([len(program)] * n)
            numbers = range(drawn, drawn + n)
            outcome = self.runner.run("latent", [Sample(x, program) for x in noise], numbers, progress)
            if outcome.faults:
                raise not_finite({numbers[k]: e for k, e in outcome.faults.items()}, {}, "draws")
            z_sem: Float32 = outcome.x * std + mean
            drawn += n
            if not directions:
                return z_sem
            new = np.stack([direction.logit(z_sem) for direction, _ in directions], axis=1)
            if not np.isfinite(new).all():
                raise NotFinite(f"accept: {LOGIT_OVERFLOWS}")
            kept += list(z_sem[(new >= least).all(axis=1)])
            logits = np.concatenate([logits, new])
        return np.stack(kept[:count])

    def start_of(self, latent: Latent, plan: Preset, *, quiet: bool = False) -> Latent:
        """The latent as a decode starts from it: without x_prev unless it can go on from there. Warns, unless `quiet`,
        where the decode cannot undo the encode.
        """
        resumes = latent.x_prev is not None and self.planner.resumes(plan, latent.provenance)
        told = self.planner.cannot_undo(plan, latent.provenance, resumes)
        if told is not None and not quiet:
            warnings.warn(told, LatentWarning, stacklevel=3)
        return latent if resumes else Latent(latent.x_T, latent.z_sem, None, latent.provenance)


LOGIT_OVERFLOWS = "a logit is not finite: z_sem, or a number of the attribute's, is too large"


def not_finite(faults: Mapping[int, NotFinite], others: Mapping[int, Any], what: str = "images") -> NotFinite:
    """The one error of a call of which some images failed. what: the argument that they are numbered in."""
    first, *more = sorted(faults)
    where = f"{what}[{first}]" + (f" and {len(more)} more" if more else "")
    text = str(faults[first])
    told = {i: str(e) for i, e in faults.items()}
    return NotFinite(f"{where}: {text}" if more or others else text, told, others)
