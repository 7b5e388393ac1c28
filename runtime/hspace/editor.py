"""The editor: images in, edited images out. Everything that a caller can ask of a bundle is here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from .arguments import amounts_of, shrunk
from .arrays import Float32
from .attributes import read_attributes
from .batch import Executor
from .bundle import Bundle, h_shape
from .checks import check_whole
from .deltas import NO_EDIT, Content, directions_of, slerp
from .edits import Edits, compile_edit, grid_of, per_image
from .engines import Engine
from .errors import ArgumentError, NotFinite
from .image import Images, to_uint8
from .latent import Latent
from .noise import NoiseStream, check_seed
from .pipeline import LOGIT_OVERFLOWS, Pipeline, not_finite
from .plans import ProgramKind
from .program import Program
from .recorders import HRecorder, Timeline
from .requests import Requests, Run, check_output, noise_of, numbers_of, seeds_of
from .runs import OnStep, Progress


class _Closed:
    """What stands for the parts of an editor that is closed."""

    def __getattr__(self, name: str) -> Any:
        raise ArgumentError("the editor is closed, expected one that is open")


class Editor:
    """Encodes, edits and decodes images with one bundle. Safe to use from several threads.

    Calls that return images return uint8 [N, H, W, 3], or with output="float32" the raw float32 [N, 3, H, W] in the
    model's range. On a GPU output="device" leaves that there, as a `cuda.arrays.DeviceArray`, and images may be arrays
    that are there: PyCUDA's, CuPy's, PyTorch's and others', uint8 [N, H, W, 3] or float32 [N, 3, H, W], contiguous.

    Calls that take `**run` share these options. `preset` names one of the bundle's, by default its default; `steps`,
    `sampler` ("ddim", "ddpm", "ddpm_large", "dpmpp_2m", "bdia" or "obelm"), `t_edit` and `t_boost` (timesteps of the
    schedule) override it. `seed` (0 … 2⁶⁴ − 1, or one for each image where the call draws no x_T) chooses the noise of
    rows that draw, and `image_numbers` the images' numbers for it, for a caller who makes one job out of several calls
    (by default 0 … N − 1); `noise` gives it instead: float32 [rows that draw, N, 3, H, W]. `on_step` is called with a
    `Step` after each evaluation; where it returns False the call raises Cancelled. `output` is "uint8", "float32" or
    "device".

    An image's result does not depend on the batch that it was in. Where results are not finite the call raises
    NotFinite, which names the images and has the others' results.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Any,
        *,
        batch_size: int | None = None,
        executor: Executor | None = None,
        exact: Callable[[], Engine] | None = None,
        reopen: Callable[[], Editor] | None = None,
    ) -> None:
        """executor: what runs programs; by default the CPU's, on `engine`. exact: gives the engine, in float32, of
        samplers that invert exactly; by default `engine`, and where that is not float32 they are refused. reopen:
        opens another editor like this one, which is what pickle keeps; by default it cannot be pickled.
        """
        self.bundle, self.engine, self.size = bundle, engine, bundle.manifest.image.size
        self.attributes = read_attributes(bundle)
        self._pipeline, self._reopen = Pipeline(bundle, engine, executor, batch_size, exact), reopen

    def with_attributes(self, attributes: Mapping[str, Any]) -> Editor:
        """This editor with other attributes, by name. It shares the networks, and is not pickled."""
        other = object.__new__(Editor)
        other.__dict__.update(self.__dict__, attributes=dict(attributes), _reopen=None)
        return other

    @property
    def _requests(self) -> Requests:
        """What turns arguments into samples, with the attributes that there are now."""
        pipeline = self._pipeline
        return Requests(pipeline.planner, self.attributes, pipeline.shape, self.executor.on_device)

    @property
    def executor(self) -> Executor:
        """What runs batches (`hspace.batch`), for a caller who steps samples himself; his own, not to be closed."""
        return self._pipeline.runner.executor

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
        latent: Latent | None = None,
    ) -> Program:
        """The table that a call of that kind runs; see `Planner.program`. latent: that a decode is given, since one
        that an exact sampler made may be gone on from.
        """
        plan = self._pipeline.planner.plan(preset, steps, sampler, t_edit, t_boost)
        resume = latent is not None and self._pipeline.start_of(latent, plan, quiet=True).x_prev is not None
        (mapping,) = per_image(edits, 1, self.attributes)
        edit = compile_edit(mapping, self.attributes, plan.decode_steps)
        return self._pipeline.planner.program(kind, plan, edit, steps, resume=resume)

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

        images: one image, an iterable of images, or a batch: uint8 [N, H, W, 3], or float32 [N, 3, H, W] in [−1, 1].
        One image is a path, a PIL image, a file's bytes, an open binary file, uint8 [H, W, 3] or float32 [3, H, W];
        arrays are NumPy's, or others' that offer DLPack. resize: centre-crop and resize those of another size, except
        float32. steps: 1 … 1000.
        Source: Preechakul et al. 2022, equation 8; Kwon et al. 2023, section 3; Song et al. 2021, section 4.3.
        """
        x = self._pipeline.load(images, resize)
        plan = self._requests.plan("encode", {"preset": preset, "steps": steps})
        latent, numbers, faults = self._pipeline.encode(x, plan, preset, Progress(on_step))
        if latent is None or faults:
            raise not_finite(faults, dict(zip(numbers, latent or (), strict=True)))
        return latent

    def decode(self, latent: Latent, edits: Edits | None = None, **run: Unpack[Run]) -> NDArray[Any]:
        """Images from codes, edited where `edits` (one mapping name → strength, or one per image) says so.

        Strengths are linear and may be negative. run: see the class.
        Source: Preechakul et al. 2022, equations 2 and 7; Kwon et al. 2023, equation 5.
        """
        plan = self._requests.plan("decode", run)
        self.check_latent(latent)
        latent = self._pipeline.start_of(latent, plan)
        decodes = self._requests.decodes(plan, edits, len(latent), run, resume=latent.x_prev is not None)
        progress = Progress(run.get("on_step"), self._pipeline.runner.evaluations(decodes.rows))
        return self._pipeline.decode(latent, decodes, progress)

    def edit(self, images: Images, edits: Edits | None, *, resize: bool = False, **run: Unpack[Run]) -> NDArray[Any]:
        """Encodes, then decodes with `edits`. run: see the class; steps: for both, or (encode, decode)."""
        x = self._pipeline.load(images, resize)
        plan = self._requests.plan("edit", run, both=True)
        resume = self._pipeline.planner.resumes(plan, self._pipeline.provenance(plan, run.get("preset")))
        decodes = self._requests.decodes(plan, edits, len(x), run, resume=resume)
        progress = Progress(run.get("on_step"), self._pipeline.runner.evaluations(decodes.rows))
        latent, numbers, faults = self._pipeline.encode(x, plan, run.get("preset"), progress)
        if latent is None:
            raise not_finite(faults, {})
        return self._pipeline.decode(self._pipeline.start_of(latent, plan), decodes, progress, numbers, faults)

    def reconstruct(self, images: Images, *, resize: bool = False, **run: Unpack[Run]) -> NDArray[Any]:
        """Encodes, then decodes unchanged: what the model makes of the images themselves. run: as `edit` takes it."""
        return self.edit(images, None, resize=resize, **run)

    def interpolate(
        self,
        latent_a: Latent,
        latent_b: Latent,
        frames: int = 8,
        *,
        edits: Mapping[str, float] | None = None,
        **run: Unpack[Run],
    ) -> NDArray[Any]:
        """`frames` images from one latent to another, both ends included: z_sem linear, x_T spherical.

        latent_a, latent_b: of one image each. run: as `decode` takes it. Source: Preechakul et al. 2022, section 5.1.
        """
        for latent in (latent_a, latent_b):
            self.check_latent(latent)
        if len(latent_a) != 1 or len(latent_b) != 1:
            raise ArgumentError(
                f"interpolate: found latents of {len(latent_a)} and {len(latent_b)} images, expected 1 and 1"
            )
        check_whole("frames", frames, 2)
        if run.get("noise") is None and run.get("image_numbers") is None:
            run["image_numbers"] = [0] * frames  # the same draws in all: no flicker
        w = np.linspace(0, 1, frames)
        z = None
        if latent_a.z_sem is not None and latent_b.z_sem is not None:
            z = ((1 - w)[:, None] * latent_a.z_sem + w[:, None] * latent_b.z_sem).astype(np.float32)
        between = Latent(slerp(latent_a.x_T[0], latent_b.x_T[0], w), z, provenance=latent_a.provenance)
        return self.decode(between, edits, **run)

    def sweep(
        self,
        latent: Latent,
        strengths: Mapping[str, Sequence[float]],
        *,
        edits: Mapping[str, float] | None = None,
        **run: Unpack[Run],
    ) -> NDArray[Any]:
        """Every image at every strength of one attribute, or of two in all combinations.

        strengths: name → strengths. Returns [N, K, …] for one attribute and [N, K, L, …] for two, of what `decode`
        returns; the variants of an image share its draws. edits: others, the same in all. run: as `decode` takes it.
        """
        shape, points = grid_of(strengths, edits)
        self.check_latent(latent)
        every = Latent.stack([one for one in latent for _ in points])
        run["seed"] = _each(seeds_of(run.get("seed", 0), len(latent)), len(points))
        if run.get("noise") is None:
            run["image_numbers"] = _each(numbers_of(run.get("image_numbers"), len(latent), False), len(points))
        pictures = self.decode(every, points * len(latent), **run)
        return pictures.reshape(len(latent), *shape, *pictures.shape[1:])

    def timeline(
        self, latent: Latent, frames: int | None = None, *, edits: Edits | None = None, **run: Unpack[Run]
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """What a decode sees of its image along the way: P_t at `frames` of its steps, the first and last among them;
        by default at 8, or at all where there are fewer.

        Returns the timesteps, int64 [F], and the images, [F, N, …] of what `decode` returns. run: as `decode` takes it.
        Source: Kwon et al. 2023, section 3.4 (figure 4).
        """
        check_output(run.get("output", "uint8"), on_device=False)  # the frames come by on_step, and so on the host
        if frames is not None:
            plan = self._requests.plan("timeline", run)
            self.check_latent(latent)
            resume = self._pipeline.start_of(latent, plan, quiet=True).x_prev is not None
            check_whole("frames", frames, 1, len(self._pipeline.planner.decode(plan, NO_EDIT, resume=resume)))
        run["on_step"] = recorder = Timeline(frames, run.get("on_step"))

        def shown() -> NDArray[Any]:
            p, _ = recorder.frames()
            return p if run.get("output") == "float32" else np.stack([to_uint8(x) for x in p])

        try:
            self.decode(latent, edits, **run)
        except NotFinite as e:
            raise NotFinite(str(e), e.images, {i: shown()[:, i] for i in e.others}) from None
        return recorder.timesteps, shown()

    def inject(
        self,
        latent: Latent,
        content: Images,
        strength: float | Sequence[float] = 0.5,
        *,
        mask: Float32 | None = None,
        edits: Edits | None = None,
        resize: bool = False,
        **run: Unpack[Run],
    ) -> NDArray[Any]:
        """Decodes latents with the content of other images: at t ≥ t_edit, h turns towards theirs by slerp.

        content: one image, or one per latent; its h is recorded over its inversion and kept in memory meanwhile.
        strength: 0 (nothing) … 1 (h is theirs, at its own norm), or one per latent. mask: float32 [H, W] in [0, 1], of
        the image's size: where. Asymmetric, as in the official code; so `edits`, which are added, must be. run: see
        the class; steps: for both, or (encode, decode). Source: Jeong et al. 2024 (InjectFusion), section 3.1.
        """
        self.check_latent(latent)
        x = self._pipeline.load(content, resize, "content")
        if len(x) not in (1, len(latent)):
            raise ArgumentError(f"content: found {len(x)} images, expected 1, or one for each of {len(latent)} latents")
        amounts = amounts_of(strength, len(latent))
        c, height, width, _ = h_shape(self.bundle)
        small = None if mask is None else shrunk(mask, self.size, height, width)
        plan = self._requests.plan("inject", run, both=True)
        latent = self._pipeline.start_of(latent, plan)
        recorder = HRecorder(
            "encode", self._pipeline.planner.encode(plan), len(x), (c, height, width), run.get("on_step")
        )
        tables = [*recorder.table] * (len(latent) // len(x))
        contents = [Content(recorder.timesteps, t, a, small) for t, a in zip(tables, amounts, strict=True)]
        resume = latent.x_prev is not None
        decodes = self._requests.decodes(plan, edits, len(latent), run, resume=resume, contents=contents)
        progress = Progress(recorder, self._pipeline.runner.evaluations(decodes.rows))
        _, _, faults = self._pipeline.encode(x, plan, run.get("preset"), progress)  # which fills the tables
        if faults:
            raise not_finite(faults, {}, "content")
        return self._pipeline.decode(latent, decodes, progress)

    def sample(
        self,
        count: int,
        *,
        edits: Edits | None = None,
        accept: Mapping[str, float] | None = None,
        latent_steps: int | None = None,
        z_noise: Float32 | None = None,
        x_T: Float32 | None = None,
        **run: Unpack[Run],
    ) -> NDArray[Any]:
        """New images. DiffAE: z_sem from the latent DDIM, then a decode from a random x_T; Asyrp: from x_T alone.

        The seed draws x_T and the latent DDIM's start; x_T (float32 [count, 3, H, W]) and z_noise (float32 [count, D])
        give them instead. accept: z_direction attribute → the least logit that a drawn z_sem must have to be kept;
        drawing goes on until there are `count`. ArgumentError is raised where 1000 draws for each wanted one were not
        enough, and where the first 256 show that they will not be: their logits stay far below what is wanted. run: see
        the class. Source: Preechakul et al. 2022, section 4; few-shot conditional sampling, section 5.6.
        """
        check_whole("count", count)
        plan = self._requests.plan("sample", run)
        decodes = self._requests.decodes(plan, edits, count, run)
        seed = check_seed(run.get("seed", 0))
        x_T = noise_of("x_T", x_T, count, self._pipeline.shape, seed, NoiseStream.X_T)
        progress = Progress(run.get("on_step"), self._pipeline.runner.evaluations(decodes.rows))
        z_sem = self._pipeline.draw_z(count, plan, self.attributes, latent_steps, seed, z_noise, accept, progress)
        latent = Latent(x_T, z_sem, provenance=self._pipeline.provenance(plan, run.get("preset"), encoded=False))
        return self._pipeline.decode(latent, decodes, progress)

    def draw(
        self,
        count: int,
        *,
        accept: Mapping[str, float] | None = None,
        preset: str | None = None,
        latent_steps: int | None = None,
        seed: int = 0,
        on_step: OnStep | None = None,
    ) -> Latent:
        """The latents that `sample` decodes: x_T drawn, and z_sem from the latent DDIM where the model has one."""
        check_whole("count", count)
        plan, progress = self._pipeline.planner.plan(preset), Progress(on_step)
        x_T = noise_of("x_T", None, count, self._pipeline.shape, check_seed(seed), NoiseStream.X_T)
        z_sem = self._pipeline.draw_z(count, plan, self.attributes, latent_steps, seed, None, accept, progress)
        return Latent(x_T, z_sem, provenance=self._pipeline.provenance(plan, preset, encoded=False))

    def vary(self, latent: Latent, count: int, *, edits: Edits | None = None, **run: Unpack[Run]) -> NDArray[Any]:
        """`count` variations of each of the latent's images, in order: z_sem kept, x_T drawn anew.

        run: as `decode` takes it. Source: Preechakul et al. 2022, section 5.3 (figure 4).
        """
        self.check_latent(latent)
        self.check_can_vary()
        assert latent.z_sem is not None  # as the model has one, and the latent is of the model
        check_whole("count", count)
        z_sem = np.repeat(latent.z_sem, count, axis=0)
        x_T = noise_of("x_T", None, len(z_sem), self._pipeline.shape, check_seed(run.get("seed", 0)), NoiseStream.X_T)
        drawn = {k: v for k, v in latent.provenance.items() if k != "encode_steps"}  # of which x_T is no longer
        return self.decode(Latent(x_T, z_sem, provenance=drawn), edits, **run)

    def encode_z(self, images: Images, *, resize: bool = False) -> Float32:
        """z_sem alone, float32 [N, D]: one evaluation of the encoder, and no inversion.

        Source: Preechakul et al. 2022, section 3.2.
        """
        if self.bundle.manifest.z_sem is None:
            raise ArgumentError("encode_z: the model has no z_sem")
        z_sem, faults = self._pipeline.encode_z(self._pipeline.load(images, resize))
        if faults:
            raise not_finite(faults, {i: z for i, z in enumerate(z_sem) if i not in faults})
        return z_sem

    def classify(self, images: Images, *, resize: bool = False) -> Float32:
        """float32 [N, K]: logits of the bundle's z_direction attributes, in its order (`classes`).

        Source: Preechakul et al. 2022, section 5.2.
        """
        directions = directions_of(self.attributes)
        if not directions:
            raise ArgumentError("classify: the bundle has no z_direction attributes")
        z_sem, faults = self._pipeline.encode_z(self._pipeline.load(images, resize))
        whole = [i for i in range(len(z_sem)) if i not in faults]
        logits = np.stack([d.logit(z_sem[whole]) for d in directions.values()], axis=1)
        bad = np.flatnonzero(~np.isfinite(logits).all(axis=1)).tolist()
        faults |= {whole[k]: NotFinite(f"classify: {LOGIT_OVERFLOWS}") for k in bad}
        if faults:
            raise not_finite(faults, {i: logits[k] for k, i in enumerate(whole) if i not in faults})
        return logits

    @property
    def z_statistics(self) -> tuple[Float32, Float32] | None:
        """Mean and std of z_sem over the training set, float32 [D] each, where the bundle has them."""
        return self._pipeline.z_statistics

    @property
    def classes(self) -> list[str]:
        """The names of `classify`'s columns."""
        return list(directions_of(self.attributes))

    def check_latent(self, latent: Latent) -> None:
        """Raises LatentError where a latent is of other shapes, or was made by another model."""
        self._pipeline.check_latent(latent)

    def check_can_vary(self) -> None:
        """Raises ArgumentError where the model has no semantic code (Diffusion Autoencoders have one)."""
        if self.bundle.manifest.z_sem is None:
            raise ArgumentError("vary: the model has no z_sem, so nothing of an image would be kept")

    def check_can_inject(self, edits: Mapping[str, float]) -> None:
        """Raises ArgumentError where edits do not mix with content injection, which is asymmetric."""
        self._requests.check_content(edits, self._pipeline.planner.plan())

    def close(self) -> None:
        """Frees the networks, and what the editor holds on a GPU. Every call after that, but this, is an ArgumentError.

        `with hspace.open(…) as editor:` closes it at the end. Calls that other threads have under way may fail.
        """
        close = getattr(self.executor, "close", None) if not self._is_closed else None
        self._pipeline = self.engine = cast(Any, _Closed())
        if close is not None:
            close()

    def __enter__(self) -> Editor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        manifest, n = self.bundle.manifest, len(self.attributes)
        model = f"{manifest.name!r}: {manifest.family}, {self.size}×{self.size}, {n} attribute{'s' * (n != 1)}"
        if self._is_closed:
            return f"<hspace.Editor of {model}; closed>"
        device = getattr(self.executor, "device", None)
        on = "cpu" if device is None else device.name
        return f"<hspace.Editor of {model}; {self.engine.name} in {self.engine.precision} on {on}>"

    def __reduce__(self) -> tuple[Callable[[], Editor], tuple[()]]:
        """Pickled as the bundle's path and `open`'s options: another process opens the bundle, as it is there then."""
        if self._reopen is None or self._is_closed:
            why = "it is closed" if self._is_closed else "`hspace.open` did not make it, or it works on a host's stream"
            raise ArgumentError(f"pickle: this editor cannot be opened elsewhere: {why}")
        return self._reopen, ()

    @property
    def _is_closed(self) -> bool:
        return isinstance(self._pipeline, _Closed)

    @property
    def batch_size(self) -> int:
        """How many images share one network evaluation."""
        return self._pipeline.runner.batch_size

    def engine_of(self, preset: str | None = None, sampler: str | None = None) -> Engine:
        """What evaluates the networks in a call with this preset and sampler: `engine`, or where the sampler inverts
        exactly, and `engine` is not in float32, its like that is. Raises ArgumentError where there is none.
        """
        return self._pipeline.runner_of(self._pipeline.planner.plan(preset, sampler=sampler)).executor.engine


def _each(values: Sequence[int], times: int) -> list[int]:
    """Every value so many times in a row."""
    return [value for value in values for _ in range(times)]
