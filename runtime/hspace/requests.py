"""From a call's arguments to the samples that it runs: the one place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, cast

import numpy as np

from .arrays import Float32
from .batch import Sample
from .checks import check_array
from .deltas import AnyAttribute, Content, Edit
from .edits import Edits, compile_edit, per_image
from .errors import ArgumentError, did_you_mean
from .latent import Latent
from .manifest import Preset
from .noise import NoiseStream, check_seed, normal
from .plans import Planner
from .program import Branch, Program
from .runs import OnStep, one_of

Output = Literal["uint8", "float32", "device"]


class Run(TypedDict, total=False):
    """How to run: the options that calls of an editor share; `Editor` says what each of them is."""

    preset: str | None
    steps: int | tuple[int, int] | None
    sampler: str | None
    t_edit: int | None
    t_boost: int | None
    seed: int | Sequence[int]
    noise: Float32 | None
    image_numbers: Sequence[int] | None
    on_step: OnStep | None
    output: Output


def check_options(call: str, run: Mapping[str, Any]) -> None:
    """Raises TypeError for an option that there is not, as Python does for a keyword that a function has not."""
    for name in run:
        if name not in Run.__annotations__:
            near = did_you_mean(name, Run.__annotations__)
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}{near}")


@dataclass(frozen=True, slots=True)
class Decodes:
    """The decodes of a call's N images, checked and compiled: all that their samples need but the codes.

    seeds, numbers: the images', for their draws. noise: float32 [rows that draw, N, 3, H, W], instead of draws.
    """

    plan: Preset
    edits: Sequence[Edit]
    programs: Sequence[Program]
    seeds: Sequence[int]
    numbers: Sequence[int]
    noise: Float32 | None
    output: Output

    @property
    def rows(self) -> list[int]:
        """How many rows each image's program has."""
        return [len(program) for program in self.programs]

    def of(self, images: Collection[int]) -> Decodes:
        """Those of some of the images, by number in the call."""
        return replace(
            self,
            edits=[self.edits[i] for i in images],
            programs=[self.programs[i] for i in images],
            seeds=[self.seeds[i] for i in images],
            numbers=[self.numbers[i] for i in images],
            noise=None if self.noise is None else self.noise[:, list(images)],
        )

    def samples(self, latent: Latent) -> list[Sample]:
        """The samples that decode a latent of N images. Raises ArgumentError where z_sem is moved out of float32."""
        made = []
        each = zip(self.edits, self.programs, self.seeds, self.numbers, strict=True)
        for i, (edit, program, seed, number) in enumerate(each):
            z_sem = None if latent.z_sem is None else edit.move(latent.z_sem[i])
            x_prev = None if latent.x_prev is None else latent.x_prev[i]
            noise = None if self.noise is None else self.noise[: int(program.rows["draws"].sum()), i]
            made.append(Sample(latent.x_T[i], program, z_sem, edit, x_prev, seed, number, noise))
        return made


class Requests:
    """Makes what calls of one editor run. attributes: by name. shape: of an image's state."""

    def __init__(
        self, planner: Planner, attributes: Mapping[str, AnyAttribute], shape: tuple[int, ...], on_device: bool
    ) -> None:
        self.planner, self.attributes = planner, attributes
        self._shape, self._on_device = shape, on_device

    def plan(self, call: str, run: Run, *, both: bool = False) -> Preset:
        """The preset with the call's own values in it, checked. both: whether the call runs both ways."""
        check_options(call, run)
        steps = run.get("steps")
        if isinstance(steps, tuple) and not both:
            raise ArgumentError(f"steps: found {steps!r}, expected a whole number")
        own = run.get("sampler"), run.get("t_edit"), run.get("t_boost")
        return self.planner.plan(run.get("preset"), steps, *own)

    def decodes(
        self,
        plan: Preset,
        edits: Edits | None,
        count: int,
        run: Run,
        *,
        resume: bool = False,
        contents: Sequence[Content] | None = None,
    ) -> Decodes:
        """The decodes of `count` images. resume: as `Planner.decode` takes it. contents: what else moves their h."""
        compiled = self._compile(edits, count, plan, contents)
        programs: dict[tuple[Branch, int | None], Program] = {}  # one object where the tables are the same
        for edit in compiled:
            if (edit.branch, edit.n_train) not in programs:
                programs[edit.branch, edit.n_train] = self.planner.decode(plan, edit, resume=resume)
        each = [programs[edit.branch, edit.n_train] for edit in compiled]
        noise, numbers = run.get("noise"), run.get("image_numbers")
        seeds = seeds_of(run.get("seed", 0), count)
        if noise is not None:
            check_array("noise", noise, (max(int(p.rows["draws"].sum()) for p in each), count, *self._shape))
        checked = numbers_of(numbers, count, noise is not None)
        output = run.get("output", "uint8")
        check_output(output, self._on_device)
        return Decodes(plan, compiled, each, seeds, checked, noise, output)

    def check_content(self, edits: Mapping[str, float], plan: Preset) -> None:
        """Raises ArgumentError where edits do not mix with content injection, which is asymmetric."""
        self._compile(edits, 1, plan, [Content(np.zeros(1, np.int64), np.zeros(1, np.float32), 1.0)])

    def _compile(self, edits: Edits | None, count: int, plan: Preset, contents: Sequence[Content] | None) -> list[Edit]:
        """One compiled edit per image, one object where one mapping was given for several."""
        each = per_image(edits, count, self.attributes)
        if contents is not None:  # under a name that no attribute can have
            return [
                compile_edit({**mapping, "/content": 1.0}, {**self.attributes, "/content": content}, plan.decode_steps)
                for mapping, content in zip(each, contents, strict=True)
            ]
        made = {id(m): compile_edit(m, self.attributes, plan.decode_steps) for m in {id(m): m for m in each}.values()}
        return [made[id(mapping)] for mapping in each]


def encodes(program: Program, x: Any, z_sem: Float32 | None) -> list[Sample]:
    """The samples that invert images. x: [N, 3, H, W], on the host or on the device; z_sem: float32 [N, D] or None."""
    z = [None] * len(x) if z_sem is None else z_sem
    return [Sample(one_of(x, i), program, z[i]) for i in range(len(x))]


def noise_of(
    name: str, given: Float32 | None, count: int, shape: tuple[int, ...], seed: int, stream: NoiseStream, first: int = 0
) -> Float32:
    """The noise that images first … first + count − 1 start from, float32 [count, *shape]: from the seed, or given."""
    if given is not None:
        check_array(name, given, (count, *shape))
        return given
    return np.stack([normal(shape, seed, draw=0, image=first + i, stream=stream) for i in range(count)])


def seeds_of(seed: int | Sequence[int], count: int) -> list[int]:
    """The seed of each image, checked: one for all, or one for each."""
    listed = isinstance(seed, Sequence) and not isinstance(seed, (str, bytes))
    if not listed and not (isinstance(seed, np.ndarray) and seed.ndim):
        return [check_seed(seed)] * count
    each = list(cast(Sequence[int], seed))
    if len(each) != count:
        raise ArgumentError(f"seed: found {len(each)} seeds, expected one, or one for each of {count} images")
    return [check_seed(one) for one in each]


def numbers_of(numbers: Iterable[int] | None, count: int, noise_is_given: bool) -> list[int]:
    """The images' numbers for their draws, checked; by default 0 … count − 1."""
    if numbers is None:
        return list(range(count))
    each: list[Any] = list(numbers) if isinstance(numbers, Iterable) else []
    whole = all(isinstance(i, (int, np.integer)) and not isinstance(i, bool) and 0 <= i < 2**32 for i in each)
    if not whole or len(each) != count or noise_is_given:
        raise ArgumentError(
            f"image_numbers: expected {count} whole numbers from 0 to 2^32 - 1, and no noise beside them"
        )
    return [int(i) for i in each]


def check_output(output: str, on_device: bool) -> None:
    """Raises ArgumentError for anything but the forms of output. on_device: whether "device" is one."""
    if output not in ("uint8", "float32", *(["device"] if on_device else [])):
        cpu = ": this call gives arrays on the host (device='cuda:0' opens an editor on a GPU)"
        expected = "'uint8', 'float32' or 'device'" if on_device else "'uint8' or 'float32'"
        raise ArgumentError(f"output: found {output!r}, expected {expected}{cpu if output == 'device' else ''}")
