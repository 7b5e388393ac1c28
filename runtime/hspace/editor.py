"""The editor: images in, edited images out. Everything that a caller can ask of a bundle is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .attributes import Edit, ZDirection, check_names, compile_edit, read_attribute
from .bundle import Bundle
from .checks import MOST_IMAGES, check_whole
from .engines import open_engine
from .errors import ArgumentError, BundleError, LatentError
from .image import Images, load_images, to_uint8
from .latent import Latent
from .manifest import Preset
from .noise import Noise, Stream, check_seed
from .plans import Planner, ProgramKind
from .program import Branch, Program
from .runs import OnStep, Progress, Runner, draws, start
from .tensors import read_tensors

Float32 = NDArray[np.float32]
Output = Literal["uint8", "float32"]
Edits = Mapping[str, float] | Sequence[Mapping[str, float]]


def open(
    path: str | Path, *, engine: str = "auto", threads: int | None = None, batch_size: int | None = None
) -> Editor:
    """Opens a bundle, with every file verified and every component loaded.

    path: the bundle's folder. engine: "auto" (onnx) or an engine's name; `editor.engine.name` says which it is.
    threads: how many the engine may use, by default all cores. batch_size: how many images share one network
    evaluation; by default 65536 / size², at least 1.
    Raises BundleError for a faulty bundle, EngineError for an engine that is unknown or cannot run here.
    """
    for name, value, most in (("threads", threads, 1024), ("batch_size", batch_size, MOST_IMAGES)):
        if value is not None:
            check_whole(name, value, 1, most)
    if not isinstance(path, (str, Path)):
        raise ArgumentError(f"path: found {type(path).__name__}, expected a bundle's folder")
    bundle = Bundle(path)
    return Editor(bundle, open_engine(engine, bundle, threads), batch_size=batch_size)


class Editor:
    """Encodes, edits and decodes images with one bundle. Safe to use from several threads.

    Calls that return images return uint8 [N, H, W, 3], or with output="float32" the raw float32 [N, 3, H, W] in the
    model's range. `preset` names one of the bundle's, by default its default; `steps`, `sampler` ("ddim" or "ddpm"),
    `t_edit` and `t_boost` override it. `seed` (0 … 2⁶⁴ − 1) chooses the noise of rows that draw; `noise` gives it
    instead: float32 [rows that draw, N, 3, H, W]. `on_step` is called with a `Step` after each evaluation; where it
    returns False the call raises Cancelled. An image's result does not depend on the batch that it was in.
    """

    def __init__(self, bundle: Bundle, engine: Any, *, batch_size: int | None = None) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.engine = engine
        self.size = manifest.image.size
        self.attributes = {name: read_attribute(bundle, name) for name in manifest.attributes}
        self._planner = Planner(bundle)
        self._runner = Runner(engine, self.size, batch_size)
        self._z_statistics: tuple[Float32, Float32] | None = None
        if manifest.z_sem is not None and manifest.z_sem.statistics is not None:
            entry, d = manifest.z_sem.statistics, manifest.z_sem.size
            got = read_tensors(bundle.read(entry), str(bundle.folder / entry.file)).take({"mean": (d,), "std": (d,)})
            if not (got["std"] > 0).all():
                raise BundleError(f"{bundle.folder / entry.file}: std: expected values above zero")
            self._z_statistics = got["mean"], got["std"]

    def program(
        self,
        kind: ProgramKind,
        *,
        edits: Mapping[str, float] | None = None,
        preset: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        t_edit: int | None = None,
        t_boost: int | None = None,
    ) -> Program:
        """The table that a call of that kind runs; see `Planner.program`."""
        plan = self._planner.plan(preset, steps, sampler, t_edit, t_boost)
        return self._planner.program(kind, plan, self._compile(edits, 1, plan)[0], steps)

    # --- calls ------------------------------------------------------------------------------------------

    def encode(
        self,
        images: Images,
        *,
        preset: str | None = None,
        steps: int | None = None,
        resize: bool = False,
        on_step: OnStep | None = None,
    ) -> Latent:
        """The codes of images: z_sem from the encoder (DiffAE), x_T by DDIM inversion conditioned on it.

        images: a PIL image, a path, a sequence of either, uint8 [N, H, W, 3] or [H, W, 3], or float32 [N, 3, H, W] in
        [−1, 1]. resize: centre-crop and resize those of another size. steps: 1 … 1000.
        Source: Preechakul et al. 2022, equation 8; Kwon et al. 2023, section 3; Song et al. 2021, section 4.3.
        """
        x = load_images(images, self.size, resize=resize)
        plan = self._planner.plan(preset, _one(steps))
        program = self._planner.encode(plan)
        return self._encode(x, plan, preset, program, self._runner.progress(on_step, len(x), program))

    def decode(
        self,
        latent: Latent,
        edits: Edits | None = None,
        *,
        preset: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        t_edit: int | None = None,
        t_boost: int | None = None,
        seed: int = 0,
        noise: Float32 | None = None,
        image_numbers: Sequence[int] | None = None,
        on_step: OnStep | None = None,
        output: Output = "uint8",
    ) -> NDArray[Any]:
        """Images from codes, edited where `edits` (one mapping name → strength, or one per image) says so.

        Strengths are linear and may be negative. image_numbers: the images' numbers for the noise, for a caller who
        makes one job out of several calls; by default 0 … N − 1.
        Source: Preechakul et al. 2022, equations 2 and 7; Kwon et al. 2023, equation 5.
        """
        plan = self._planner.plan(preset, _one(steps), sampler, t_edit, t_boost)
        self.check_latent(latent)
        compiled = self._compile(edits, len(latent), plan)
        programs = self._decode_programs(plan, compiled)
        noise_source = draws(seed, noise, image_numbers, programs, self._shape)
        _check_output(output)
        progress = self._runner.progress(on_step, len(latent), programs[0])
        return self._decode(latent, compiled, programs, noise_source, progress, output)

    def edit(
        self,
        images: Images,
        edits: Edits | None,
        *,
        preset: str | None = None,
        steps: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        t_edit: int | None = None,
        t_boost: int | None = None,
        seed: int = 0,
        noise: Float32 | None = None,
        image_numbers: Sequence[int] | None = None,
        resize: bool = False,
        on_step: OnStep | None = None,
        output: Output = "uint8",
    ) -> NDArray[Any]:
        """Encodes, then decodes with `edits`. steps: for both, or (encode, decode). See `encode` and `decode`."""
        x = load_images(images, self.size, resize=resize)
        plan = self._planner.plan(preset, steps, sampler, t_edit, t_boost)
        compiled = self._compile(edits, len(x), plan)
        program, programs = self._planner.encode(plan), self._decode_programs(plan, compiled)
        noise_source = draws(seed, noise, image_numbers, programs, self._shape)
        _check_output(output)
        progress = self._runner.progress(on_step, len(x), program, programs[0])
        latent = self._encode(x, plan, preset, program, progress)
        return self._decode(latent, compiled, programs, noise_source, progress, output)

    def reconstruct(
        self,
        images: Images,
        *,
        preset: str | None = None,
        steps: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        seed: int = 0,
        noise: Float32 | None = None,
        resize: bool = False,
        on_step: OnStep | None = None,
        output: Output = "uint8",
    ) -> NDArray[Any]:
        """Encodes, then decodes unchanged: what the model makes of the images themselves."""
        return self.edit(
            images,
            None,
            preset=preset,
            steps=steps,
            sampler=sampler,
            seed=seed,
            noise=noise,
            resize=resize,
            on_step=on_step,
            output=output,
        )

    def interpolate(
        self,
        latent_a: Latent,
        latent_b: Latent,
        frames: int = 8,
        *,
        edits: Mapping[str, float] | None = None,
        preset: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        t_edit: int | None = None,
        t_boost: int | None = None,
        seed: int = 0,
        noise: Float32 | None = None,
        on_step: OnStep | None = None,
        output: Output = "uint8",
    ) -> NDArray[Any]:
        """`frames` images from one latent to another, both ends included: z_sem linear, x_T spherical.

        latent_a, latent_b: of one image each. Source: Preechakul et al. 2022, section 5.1.
        """
        for latent in (latent_a, latent_b):
            self.check_latent(latent)
        if len(latent_a) != 1 or len(latent_b) != 1:
            raise ArgumentError(
                f"interpolate: found latents of {len(latent_a)} and {len(latent_b)} images, expected 1 and 1"
            )
        check_whole("frames", frames, 2)
        w = np.linspace(0, 1, frames)
        z = None
        if latent_a.z_sem is not None and latent_b.z_sem is not None:
            z = ((1 - w)[:, None] * latent_a.z_sem + w[:, None] * latent_b.z_sem).astype(np.float32)
        between = Latent(slerp(latent_a.x_T[0], latent_b.x_T[0], w), z, provenance=latent_a.provenance)
        return self.decode(
            between,
            edits,
            preset=preset,
            steps=steps,
            sampler=sampler,
            t_edit=t_edit,
            t_boost=t_boost,
            seed=seed,
            noise=noise,
            on_step=on_step,
            output=output,
        )

    def sample(
        self,
        count: int,
        *,
        edits: Edits | None = None,
        preset: str | None = None,
        steps: int | None = None,
        latent_steps: int | None = None,
        sampler: str | None = None,
        t_edit: int | None = None,
        t_boost: int | None = None,
        seed: int = 0,
        noise: Float32 | None = None,
        z_noise: Float32 | None = None,
        x_T: Float32 | None = None,
        on_step: OnStep | None = None,
        output: Output = "uint8",
    ) -> NDArray[Any]:
        """New images. DiffAE: z_sem from the latent DDIM, then a decode from a random x_T; Asyrp: from x_T alone.

        The seed draws x_T and the latent DDIM's start; x_T (float32 [count, 3, H, W]) and z_noise (float32 [count, D])
        give them instead. Source: Preechakul et al. 2022, section 4.
        """
        check_whole("count", count)
        plan = self._planner.plan(preset, _one(steps), sampler, t_edit, t_boost)
        compiled = self._compile(edits, count, plan)
        programs = self._decode_programs(plan, compiled)
        noise_source = draws(seed, noise, None, programs, self._shape)
        _check_output(output)
        x_T = start("x_T", x_T, count, self._shape, seed, Stream.X_T)
        z_size = None if self.bundle.manifest.z_sem is None else self.bundle.manifest.z_sem.size
        if z_size is None and (latent_steps is not None or z_noise is not None):
            raise ArgumentError("sample: latent_steps and z_noise: the model has no z_sem to draw")
        z_sem, before = None, [] if z_size is None else [self._planner.latent(plan, latent_steps)]
        progress = self._runner.progress(on_step, count, *before, programs[0])
        if z_size is not None:
            assert self._z_statistics is not None  # the manifest's checks say so
            mean, std = self._z_statistics
            z_noise = start("z_noise", z_noise, count, (z_size,), seed, Stream.Z_SEM)
            z_sem = self._runner.sample_z(z_noise, before[0], progress) * std + mean
        latent = Latent(x_T, z_sem, provenance=self._provenance(plan, preset))
        return self._decode(latent, compiled, programs, noise_source, progress, output)

    def vary(
        self,
        latent: Latent,
        count: int,
        *,
        edits: Edits | None = None,
        preset: str | None = None,
        steps: int | None = None,
        sampler: str | None = None,
        t_edit: int | None = None,
        t_boost: int | None = None,
        seed: int = 0,
        noise: Float32 | None = None,
        on_step: OnStep | None = None,
        output: Output = "uint8",
    ) -> NDArray[Any]:
        """`count` variations of each of the latent's images, in order: z_sem kept, x_T drawn anew.

        Source: Preechakul et al. 2022, section 5.3 (figure 4).
        """
        self.check_latent(latent)
        self.check_can_vary()
        assert latent.z_sem is not None  # as the model has one, and the latent is of the model
        check_whole("count", count)
        z_sem = np.repeat(latent.z_sem, count, axis=0)
        x_T = start("x_T", None, len(z_sem), self._shape, check_seed(seed), Stream.X_T)
        varied = Latent(x_T, z_sem, provenance=latent.provenance)
        return self.decode(
            varied,
            edits,
            preset=preset,
            steps=steps,
            sampler=sampler,
            t_edit=t_edit,
            t_boost=t_boost,
            seed=seed,
            noise=noise,
            on_step=on_step,
            output=output,
        )

    def classify(self, images: Images, *, resize: bool = False) -> Float32:
        """float32 [N, K]: logits of the bundle's z_direction attributes, in its order (`classes`).

        Source: Preechakul et al. 2022, section 5.2.
        """
        directions = [a for a in self.attributes.values() if isinstance(a, ZDirection)]
        if not directions:
            raise ArgumentError("classify: the bundle has no z_direction attributes")
        x = load_images(images, self.size, resize=resize)
        z_sem = self._runner.encode_z(x)
        return np.stack([d.logit(z_sem) for d in directions], axis=1)

    @property
    def classes(self) -> list[str]:
        """The names of `classify`'s columns."""
        return [name for name, a in self.attributes.items() if isinstance(a, ZDirection)]

    def check_can_vary(self) -> None:
        """Raises ArgumentError where the model has no semantic code (Diffusion Autoencoders have one)."""
        if self.bundle.manifest.z_sem is None:
            raise ArgumentError("vary: the model has no z_sem, so nothing of an image would be kept")

    @property
    def batch_size(self) -> int:
        """How many images share one network evaluation."""
        return self._runner.batch_size

    # --- inside -----------------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def _provenance(self, plan: Preset, preset: str | None) -> dict[str, str]:
        manifest = self.bundle.manifest
        return {
            "bundle": manifest.name,
            "checkpoint": manifest.provenance.checkpoint_sha256,
            "preset": self.bundle.preset(preset)[0],
            "sampler": plan.sampler,
            "encode_steps": str(plan.encode_steps),
        }

    def _compile(self, edits: Edits | None, count: int, plan: Preset) -> list[Edit]:
        """One compiled edit per image."""
        edits = {} if edits is None else edits
        if not isinstance(edits, (Mapping, Sequence)) or isinstance(edits, str):
            raise ArgumentError(f"edits: found {type(edits).__name__}, expected a mapping, or one for each image")
        each = [edits] if isinstance(edits, Mapping) else list(edits)
        for mapping in each:
            if not isinstance(mapping, Mapping):
                raise ArgumentError(f"edits: found {type(mapping).__name__}, expected a mapping from name to strength")
            check_names(mapping, self.attributes, "edits")
        if not isinstance(edits, Mapping) and len(each) != count:
            raise ArgumentError(f"edits: found {len(each)} mappings, expected one, or one for each of {count} images")
        compiled = [compile_edit(mapping, self.attributes, plan.decode_steps) for mapping in each]
        return compiled * count if isinstance(edits, Mapping) else compiled

    def _decode_programs(self, plan: Preset, edits: list[Edit]) -> list[Program]:
        """One program per image, the same object where the tables are the same."""
        made: dict[tuple[Branch, int | None], Program] = {}
        for edit in edits:
            if (edit.branch, edit.n_train) not in made:
                made[edit.branch, edit.n_train] = self._planner.decode(plan, edit)
        return [made[edit.branch, edit.n_train] for edit in edits]

    def _encode(self, x: Float32, plan: Preset, preset: str | None, program: Program, progress: Progress) -> Latent:
        z_sem = None if self.bundle.manifest.z_sem is None else self._runner.encode_z(x)
        x_T = self._runner.encode(x, z_sem, program, progress)
        return Latent(x_T, z_sem, provenance=self._provenance(plan, preset))

    def _decode(
        self,
        latent: Latent,
        edits: list[Edit],
        programs: list[Program],
        noise: Noise,
        progress: Progress,
        output: Output,
    ) -> NDArray[Any]:
        if latent.z_sem is not None and any(e.directions for e in edits):
            z_sem = np.stack([e.move(z) for z, e in zip(latent.z_sem, edits, strict=True)])
            latent = Latent(latent.x_T, z_sem, latent.x_prev, latent.provenance)
        x = self._runner.decode(latent, edits, programs, noise, progress)
        return to_uint8(x) if output == "uint8" else x

    def check_latent(self, latent: Latent) -> None:
        """Raises LatentError where a latent is of other shapes, or was made by another model."""
        manifest = self.bundle.manifest
        if not isinstance(latent, Latent):
            raise ArgumentError(f"latent: found {type(latent).__name__}, expected a hspace.Latent")
        expected = (self._shape, None if manifest.z_sem is None else manifest.z_sem.size)
        found = (latent.x_T.shape[1:], None if latent.z_sem is None else latent.z_sem.shape[1])
        if found != expected:
            raise LatentError(
                f"latent: found x_T {found[0]} and z_sem {found[1]}, expected {expected[0]} and {expected[1]}"
            )
        checkpoint = latent.provenance.get("checkpoint", manifest.provenance.checkpoint_sha256)
        if checkpoint != manifest.provenance.checkpoint_sha256:
            raise LatentError(
                f"latent: made by the model {latent.provenance.get('bundle', '?')!r} (checkpoint {checkpoint[:12]}…), "
                f"expected {manifest.name!r} ({manifest.provenance.checkpoint_sha256[:12]}…)"
            )


def slerp(a: Float32, b: Float32, weights: NDArray[np.float64]) -> Float32:
    """Spherical interpolation between two arrays taken as vectors (float32 [F, *a.shape]); linear where parallel."""
    cosine = np.vdot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    theta = float(np.arccos(np.clip(cosine, -1, 1)))
    if np.sin(theta) < 1e-6:
        wa, wb = 1 - weights, weights
    else:
        wa, wb = np.sin((1 - weights) * theta) / np.sin(theta), np.sin(weights * theta) / np.sin(theta)
    frame = (len(weights), *[1] * a.ndim)
    return (wa.reshape(frame) * a + wb.reshape(frame) * b).astype(np.float32)


def _one(steps: int | None) -> int | None:
    """`steps` of a call that runs one way."""
    if isinstance(steps, tuple):
        raise ArgumentError(f"steps: found {steps!r}, expected a whole number")
    return steps


def _check_output(output: str) -> None:
    if output not in ("uint8", "float32"):
        raise ArgumentError(f"output: found {output!r}, expected 'uint8' or 'float32'")
