"""The editor: images in, edited images out. Everything that a caller can ask of a bundle is here."""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
from numpy.typing import NDArray

from .arguments import FIRST_DRAWS, MOST_DRAWS, acceptors, amounts_of, check_acceptance, shrunk
from .attributes import read_attributes
from .batch import DeviceExecutor, Executor, Sample
from .bundle import Bundle, h_shape
from .catalog import SAMPLERS
from .checks import MOST_IMAGES, check_whole
from .cuda import is_foreign, ordinal_of
from .deltas import NO_EDIT, Content, directions_of, slerp
from .edits import Edits, compile_edit, grid_of, per_image
from .engines import Engine
from .errors import ArgumentError, EngineError, LatentError, LatentWarning, NotFinite
from .executors import cpu
from .image import Images, load_images, to_uint8
from .latent import Latent
from .manifest import Preset
from .noise import Stream, check_seed
from .plans import Planner, ProgramKind
from .program import Program
from .recorders import HRecorder, Timeline
from .requests import Decodes, Requests, Run, check_output, noise_of
from .runs import OnStep, Progress, Runner, one_of
from .tensors import read_tensors

Float32 = NDArray[np.float32]


def open(
    path: str | os.PathLike[str],
    *,
    engine: str | None = None,
    precision: str | None = None,
    device: str = "cpu",
    stream: Any = None,
    threads: int | None = None,
    batch_size: int | None = None,
) -> Editor:
    """Opens a bundle, with every file verified and every component loaded.

    path: the bundle's folder. engine: a name ("openvino", "onnx") or "auto"; by default $HSPACE_ENGINE, else "auto".
    precision: of the U-Net's arithmetic, "fp32", "bf16", "fp16" or "auto"; by default $HSPACE_PRECISION, else "auto".
    `hspace.choice` says what "auto" is; `editor.engine.name` and `editor.engine.precision` say what it is here.
    device: "cpu", or "cuda:0" and so on for a GPU (docs/gpu.md), where "auto" is "onnx" in the graphs' own type.
    stream: the CUDA stream of a host application, to work on it: an object with `__cuda_stream__`, PyCUDA's, or a
    handle; by default one of its own. threads: how many the engine may use on a CPU, by default all cores.
    batch_size: how many images share one network evaluation; by default as many as `engine.batch_pixels` has room for.
    Raises BundleError for a faulty bundle, EngineError for an engine that is unknown or cannot run here, DeviceError
    (one of its kind) for a GPU that is not there or cannot be used.
    """
    for name, value, most in (("threads", threads, 1024), ("batch_size", batch_size, MOST_IMAGES)):
        if value is not None:
            check_whole(name, value, 1, most)
    if not isinstance(path, (str, os.PathLike)):
        raise ArgumentError(f"path: found {type(path).__name__}, expected a bundle's folder")
    path = Path(os.fsdecode(path))
    ordinal = ordinal_of(device)
    if ordinal is None and stream is not None:
        raise ArgumentError("stream: found one, and the device is the CPU")
    from . import choice

    options: dict[str, Any] = {"engine": engine, "precision": precision, "device": device}
    options |= {"threads": threads, "batch_size": batch_size}
    reopen = functools.partial(open, os.path.abspath(path), **options) if stream is None else None
    bundle = Bundle(path)
    if ordinal is None:
        chosen = choice.choose(bundle, engine, precision, threads)
        return Editor(bundle, chosen.engine, batch_size=batch_size, exact=chosen.exact, reopen=reopen)
    from .executors import cuda

    wanted, own = choice.asked_precision(precision), bundle.manifest.precision
    if wanted not in ("auto", own):
        raise ArgumentError(f"precision: found {wanted!r}, and {bundle.folder} runs in {own} on {device}")
    executor = cuda.open_executor(bundle, choice.asked_engine(engine), ordinal, stream)
    return Editor(bundle, executor.engine, batch_size=batch_size, executor=executor, reopen=reopen)


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
    schedule) override it. `seed` (0 … 2⁶⁴ − 1, or one for each image) chooses the noise of rows that draw, and
    `image_numbers` the images' numbers for it, for a caller who makes one job out of several calls (by default
    0 … N − 1); `noise` gives it instead: float32 [rows that draw, N, 3, H, W]. `on_step` is called with a `Step` after
    each evaluation; where it returns False the call raises Cancelled. `output` is "uint8", "float32" or "device".

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
        manifest = bundle.manifest
        self.bundle = bundle
        self.engine = engine
        self.size = manifest.image.size
        self.attributes = read_attributes(bundle)
        self._planner = Planner(bundle)
        executor = executor or cpu.Executor(engine, manifest.components)
        self._runner = Runner(executor, self.size, batch_size)
        self._requests = Requests(self._planner, self.attributes, self._shape, executor.on_device)
        self._exact, self._reopen = exact, reopen
        self._z_statistics: tuple[Float32, Float32] | None = None
        if manifest.z_sem is not None and manifest.z_sem.statistics is not None:
            entry, d = manifest.z_sem.statistics, manifest.z_sem.size
            tensors = read_tensors(bundle.read(entry), str(bundle.folder / entry.file))
            got = tensors.take({"mean": (d,), "std": (d,)}, divisors=["std"])
            self._z_statistics = got["mean"], got["std"]

    def with_attributes(self, attributes: Mapping[str, Any]) -> Editor:
        """This editor with other attributes, by name. It shares the networks, and is not pickled."""
        other = object.__new__(Editor)
        requests = Requests(self._planner, dict(attributes), self._shape, self._runner.executor.on_device)
        other.__dict__.update(self.__dict__, attributes=requests.attributes, _requests=requests, _reopen=None)
        return other

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
        plan = self._planner.plan(preset, steps, sampler, t_edit, t_boost)
        resume = latent is not None and self._start_of(latent, plan, quiet=True).x_prev is not None
        (mapping,) = per_image(edits, 1, self.attributes)
        edit = compile_edit(mapping, self.attributes, plan.decode_steps)
        return self._planner.program(kind, plan, edit, steps, resume=resume)

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
        x = self._load(images, resize)
        plan = self._requests.plan("encode", {"preset": preset, "steps": steps})
        latent, numbers, faults = self._encode(x, plan, preset, Progress(on_step))
        if latent is None or faults:
            raise _not_finite(faults, dict(zip(numbers, latent or (), strict=True)))
        return latent

    def decode(self, latent: Latent, edits: Edits | None = None, **run: Unpack[Run]) -> NDArray[Any]:
        """Images from codes, edited where `edits` (one mapping name → strength, or one per image) says so.

        Strengths are linear and may be negative. run: see the class.
        Source: Preechakul et al. 2022, equations 2 and 7; Kwon et al. 2023, equation 5.
        """
        plan = self._requests.plan("decode", run)
        self.check_latent(latent)
        latent = self._start_of(latent, plan)
        decodes = self._requests.decodes(plan, edits, len(latent), run, resume=latent.x_prev is not None)
        progress = Progress(run.get("on_step"), self._runner.evaluations(decodes.rows))
        return self._decode(latent, decodes, progress)

    def edit(self, images: Images, edits: Edits | None, *, resize: bool = False, **run: Unpack[Run]) -> NDArray[Any]:
        """Encodes, then decodes with `edits`. run: see the class; steps: for both, or (encode, decode)."""
        x = self._load(images, resize)
        plan = self._requests.plan("edit", run, both=True)
        resume = self._planner.resumes(plan, self._provenance(plan, run.get("preset")))
        decodes = self._requests.decodes(plan, edits, len(x), run, resume=resume)
        progress = Progress(run.get("on_step"), self._runner.evaluations(decodes.rows))
        latent, numbers, faults = self._encode(x, plan, run.get("preset"), progress)
        if latent is None:
            raise _not_finite(faults, {})
        return self._decode(self._start_of(latent, plan), decodes, progress, numbers, faults)

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
        if run.get("noise") is None:
            run.setdefault("image_numbers", [0] * frames)  # the same draws in all: no flicker
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
        if run.get("noise") is None:
            numbers, seed = run.get("image_numbers"), run.get("seed", 0)
            run["image_numbers"] = _each(range(len(latent)) if numbers is None else numbers, len(points))
            run["seed"] = _each(seed, len(points)) if isinstance(seed, Sequence) else seed
        found = self.decode(every, points * len(latent), **run)
        return found.reshape(len(latent), *shape, *found.shape[1:])

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
            resume = self._start_of(latent, plan, quiet=True).x_prev is not None
            check_whole("frames", frames, 1, len(self._planner.decode(plan, NO_EDIT, resume=resume)))
        run["on_step"] = recorder = Timeline(frames, run.get("on_step"))
        self.decode(latent, edits, **run)
        p, _ = recorder.frames()
        return recorder.timesteps, p if run.get("output") == "float32" else np.stack([to_uint8(x) for x in p])

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
        x = self._load(content, resize, "content")
        if len(x) not in (1, len(latent)):
            raise ArgumentError(f"content: found {len(x)} images, expected 1, or one for each of {len(latent)} latents")
        amounts = amounts_of(strength, len(latent))
        c, height, width, _ = h_shape(self.bundle)
        small = None if mask is None else shrunk(mask, self.size, height, width)
        plan = self._requests.plan("inject", run, both=True)
        latent = self._start_of(latent, plan)
        recorder = HRecorder("encode", self._planner.encode(plan), len(x), (c, height, width), run.get("on_step"))
        tables = [*recorder.table] * (len(latent) // len(x))
        contents = [Content(recorder.timesteps, t, a, small) for t, a in zip(tables, amounts, strict=True)]
        resume = latent.x_prev is not None
        decodes = self._requests.decodes(plan, edits, len(latent), run, resume=resume, contents=contents)
        progress = Progress(recorder, self._runner.evaluations(decodes.rows))
        _, _, faults = self._encode(x, plan, run.get("preset"), progress)  # which fills the tables
        if faults:
            raise _not_finite(faults, {}, "content")
        return self._decode(latent, decodes, progress)

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
        x_T = noise_of("x_T", x_T, count, self._shape, seed, Stream.X_T)
        progress = Progress(run.get("on_step"), self._runner.evaluations(decodes.rows))
        z_sem = self._draw_z(count, plan, latent_steps, seed, z_noise, accept, progress)
        latent = Latent(x_T, z_sem, provenance=self._provenance(plan, run.get("preset"), encoded=False))
        return self._decode(latent, decodes, progress)

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
        plan, progress = self._planner.plan(preset), Progress(on_step)
        x_T = noise_of("x_T", None, count, self._shape, check_seed(seed), Stream.X_T)
        z_sem = self._draw_z(count, plan, latent_steps, seed, None, accept, progress)
        return Latent(x_T, z_sem, provenance=self._provenance(plan, preset, encoded=False))

    def vary(self, latent: Latent, count: int, *, edits: Edits | None = None, **run: Unpack[Run]) -> NDArray[Any]:
        """`count` variations of each of the latent's images, in order: z_sem kept, x_T drawn anew.

        run: as `decode` takes it. Source: Preechakul et al. 2022, section 5.3 (figure 4).
        """
        self.check_latent(latent)
        self.check_can_vary()
        assert latent.z_sem is not None  # as the model has one, and the latent is of the model
        check_whole("count", count)
        z_sem = np.repeat(latent.z_sem, count, axis=0)
        x_T = noise_of("x_T", None, len(z_sem), self._shape, check_seed(run.get("seed", 0)), Stream.X_T)
        drawn = {k: v for k, v in latent.provenance.items() if k != "encode_steps"}  # of which x_T is no longer
        return self.decode(Latent(x_T, z_sem, provenance=drawn), edits, **run)

    def encode_z(self, images: Images, *, resize: bool = False) -> Float32:
        """z_sem alone, float32 [N, D]: one evaluation of the encoder, and no inversion.

        Source: Preechakul et al. 2022, section 3.2.
        """
        if self.bundle.manifest.z_sem is None:
            raise ArgumentError("encode_z: the model has no z_sem")
        z_sem, faults = self._encode_z(self._load(images, resize))
        if faults:
            raise _not_finite(faults, {i: z for i, z in enumerate(z_sem) if i not in faults})
        return z_sem

    def classify(self, images: Images, *, resize: bool = False) -> Float32:
        """float32 [N, K]: logits of the bundle's z_direction attributes, in its order (`classes`).

        Source: Preechakul et al. 2022, section 5.2.
        """
        directions = directions_of(self.attributes)
        if not directions:
            raise ArgumentError("classify: the bundle has no z_direction attributes")
        z_sem, faults = self._encode_z(self._load(images, resize))
        logits: dict[int, Float32] = {}
        for i in range(len(z_sem)):
            try:
                logits[i] = np.stack([d.logit(z_sem[i : i + 1]) for d in directions.values()], axis=1)[0]
            except EngineError as e:
                faults.setdefault(i, NotFinite(str(e)))
        if faults:
            raise _not_finite(faults, {i: x for i, x in logits.items() if i not in faults})
        return np.stack(list(logits.values()))

    @property
    def z_statistics(self) -> tuple[Float32, Float32] | None:
        """Mean and std of z_sem over the training set, float32 [D] each, where the bundle has them."""
        return self._z_statistics

    @property
    def classes(self) -> list[str]:
        """The names of `classify`'s columns."""
        return list(directions_of(self.attributes))

    def check_can_vary(self) -> None:
        """Raises ArgumentError where the model has no semantic code (Diffusion Autoencoders have one)."""
        if self.bundle.manifest.z_sem is None:
            raise ArgumentError("vary: the model has no z_sem, so nothing of an image would be kept")

    def check_can_inject(self, edits: Mapping[str, float]) -> None:
        """Raises ArgumentError where edits do not mix with content injection, which is asymmetric."""
        self._requests.check_content(edits, self._planner.plan())

    def close(self) -> None:
        """Frees the networks, and what the editor holds on a GPU. Every call after that, but this, is an ArgumentError.

        `with hspace.open(…) as editor:` closes it at the end. Calls that other threads have under way may fail.
        """
        close = getattr(self._runner.executor, "close", None) if not self._is_closed else None
        self._runner = self._planner = self._requests = self.engine = cast(Any, _Closed())
        self._exact = None
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
        device = getattr(self._runner.executor, "device", None)
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
        return isinstance(self._runner, _Closed)

    @property
    def batch_size(self) -> int:
        """How many images share one network evaluation."""
        return self._runner.batch_size

    def engine_of(self, preset: str | None = None, sampler: str | None = None) -> Engine:
        """What evaluates the networks in a call with this preset and sampler: `engine`, or where the sampler inverts
        exactly, and `engine` is not in float32, its like that is. Raises ArgumentError where there is none.
        """
        return self._runner_of(self._planner.plan(preset, sampler=sampler)).executor.engine

    # --- inside -----------------------------------------------------------------------------------------

    @property
    def _shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def _load(self, images: Images, resize: bool, name: str = "images") -> Any:
        """Any accepted form of images as float32 [N, 3, H, W]: on the host, or on the GPU where they are there."""
        executor = self._runner.executor
        if is_foreign(images):
            if not executor.on_device:
                where = "this editor is on the CPU (device='cuda:0' opens one on a GPU)"
                raise ArgumentError(f"{name}: found an array on a GPU, and {where}")
            images = cast(DeviceExecutor, executor).images(images)
        return images if is_foreign(images) else load_images(images, self.size, resize=resize, name=name)

    def _runner_of(self, plan: Preset) -> Runner:
        """What runs the plan's programs; see `engine_of`."""
        if not SAMPLERS[plan.sampler].exact or self.engine.precision == "fp32":
            return self._runner
        if self._exact is None:
            raise ArgumentError(
                f"sampler: {plan.sampler} inverts exactly in float32 alone, and this editor runs in "
                f"{self.engine.precision}: expected precision='fp32' or 'auto' and a bundle of float32 graphs"
            )
        return Runner(cpu.Executor(self._exact(), self.bundle.manifest.components), self.size, self.batch_size)

    def _provenance(self, plan: Preset, preset: str | None, *, encoded: bool = True) -> dict[str, str]:
        """What made a latent. encoded: whether an inversion did; else its x_T is drawn."""
        manifest, engine = self.bundle.manifest, self._runner_of(plan).executor.engine
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

    def _draw_z(
        self,
        count: int,
        plan: Preset,
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
        program = self._planner.latent(plan, latent_steps)
        directions = acceptors(accept, self.attributes)
        if directions and given is not None:
            raise ArgumentError("accept: z_noise gives as many draws as there are images, so none can be left out")
        assert self._z_statistics is not None  # the manifest's checks say so, where there is a latent DDIM
        mean, std = self._z_statistics
        least = np.array([x for _, x in directions], np.float32)
        kept: list[Float32] = []
        logits = np.empty((0, len(directions)), np.float32)  # of every draw so far
        drawn = 0
        while len(kept) < count:
            check_acceptance(accept or {}, logits, count, len(kept))
            n = max(self.batch_size, min(count, FIRST_DRAWS)) if directions else count
            n = min(n, MOST_DRAWS * count - drawn)
            noise = noise_of("z_noise", given, n, mean.shape, seed, Stream.Z_SEM, first=drawn)
            progress.total += self._runner.evaluations([len(program)] * n)
            outcome = self._runner.run("latent", [Sample(x, program) for x in noise], progress)
            if outcome.faults:
                raise _not_finite(outcome.faults, {}, "draws")
            z_sem: Float32 = outcome.x * std + mean
            drawn += n
            if not directions:
                return z_sem
            new = np.stack([direction.logit(z_sem) for direction, _ in directions], axis=1)
            kept += list(z_sem[(new >= least).all(axis=1)])
            logits = np.concatenate([logits, new])
        return np.stack(kept[:count])

    def _start_of(self, latent: Latent, plan: Preset, *, quiet: bool = False) -> Latent:
        """The latent as a decode starts from it: without x_prev unless it can go on from there. Warns, unless `quiet`,
        where the decode cannot undo the encode.
        """
        resumes = latent.x_prev is not None and self._planner.resumes(plan, latent.provenance)
        told = self._planner.cannot_undo(plan, latent.provenance, resumes)
        if told is not None and not quiet:
            warnings.warn(told, LatentWarning, stacklevel=3)
        return latent if resumes else Latent(latent.x_T, latent.z_sem, None, latent.provenance)

    def _encode_z(self, x: Any) -> tuple[Float32, dict[int, NotFinite]]:
        """z_sem of images, float32 [N, D], and the faults of those whose z_sem means nothing, by number."""
        z_sem = self._runner.encode_z(x)
        bad = np.flatnonzero(~np.isfinite(z_sem).all(axis=1)).tolist()
        return z_sem, {i: NotFinite("encoder: z_sem is not finite: the engine's arithmetic overflowed") for i in bad}

    def _encode(
        self, x: Any, plan: Preset, preset: str | None, progress: Progress
    ) -> tuple[Latent | None, list[int], dict[int, NotFinite]]:
        """The latent of images; the numbers of those that it holds, where not all of them; the others' faults."""
        z_sem, faults = (None, {}) if self.bundle.manifest.z_sem is None else self._encode_z(x)
        samples = self._requests.encodes(plan, x, z_sem)
        numbers = [i for i in range(len(samples)) if i not in faults]
        samples = [samples[i] for i in numbers]
        if not samples:
            return None, [], faults
        progress.total += self._runner.evaluations([len(sample.program) for sample in samples])
        outcome = self._runner_of(plan).run("encode", samples, progress)
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
        return (Latent(*arrays, self._provenance(plan, preset)) if numbers else None), numbers, faults

    def _decode(
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
            progress.total = progress.index + self._runner.evaluations(decodes.rows)
        runner = self._runner_of(decodes.plan)
        out = None
        if decodes.output == "device":
            out = cast(DeviceExecutor, runner.executor).empty(latent.x_T.shape)
        outcome = runner.run("decode", decodes.samples(latent), progress, out)
        images = to_uint8(outcome.x) if decodes.output == "uint8" else outcome.x
        if not faults and not outcome.faults:
            return images
        others = {i: one_of(images, k) for k, i in enumerate(numbers) if k not in outcome.faults}
        raise _not_finite({**(faults or {}), **{numbers[k]: e for k, e in outcome.faults.items()}}, others)

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
            maker = latent.provenance.get("bundle", "?")[:100]
            raise LatentError(
                f"latent: made by the model {maker!r} (checkpoint {checkpoint[:12]}…), "
                f"expected {manifest.name!r} ({manifest.provenance.checkpoint_sha256[:12]}…)"
            )


def _each(values: Sequence[int], times: int) -> list[int]:
    """Every value so many times in a row."""
    return [value for value in values for _ in range(times)]


def _not_finite(faults: Mapping[int, NotFinite], others: Mapping[int, Any], what: str = "images") -> NotFinite:
    """The one error of a call of which some images failed. what: the argument that they are numbered in."""
    first, *more = sorted(faults)
    where = f"{what}[{first}]" + (f" and {len(more)} more" if more else "")
    text = str(faults[first])
    told = {i: str(e) for i, e in faults.items()}
    return NotFinite(f"{where}: {text}" if more or others else text, told, others)
