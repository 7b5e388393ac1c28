"""From a preset and a call's own values to the programs that it runs. Here, and only here, builders are chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import multistep, samplers
from .bundle import Bundle
from .catalog import SAMPLERS
from .deltas import Edit
from .errors import ArgumentError, did_you_mean
from .manifest import Preset
from .program import Branch, Program, Rows
from .schedule import SPACINGS, Timesteps, check_timestep, space_timesteps

ProgramKind = Literal["encode", "decode", "edit", "latent"]


class Planner:
    """Builds the programs of one bundle. Needs no engine."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        schedules = bundle.manifest.schedules
        self._schedule = schedules.image.build()
        self._latent_schedule = None if schedules.latent is None else schedules.latent.build()

    def plan(
        self,
        preset: str | None = None,
        steps: int | tuple[int, int] | None = None,
        sampler: str | None = None,
        t_edit: int | None = None,
        t_boost: int | None = None,
    ) -> Preset:
        """The preset with a call's own values in it, checked. steps: for both ways, or (encode, decode)."""
        _, base = self._bundle.preset(preset)
        if steps is None:
            steps = base.encode_steps, base.decode_steps
        pair = steps if isinstance(steps, tuple) else (steps, steps)
        if len(pair) != 2:
            raise ArgumentError(f"steps: found {pair!r}, expected a whole number, or (encode, decode)")
        encode_steps, decode_steps = pair
        for n in (encode_steps, decode_steps):
            space_timesteps(base.spacing, n, self._schedule)
        if sampler not in (None, *SAMPLERS):
            near = did_you_mean(sampler, SAMPLERS)
            raise ArgumentError(f"sampler: found {sampler!r}, expected one of {', '.join(SAMPLERS)}{near}")
        for name, value in (("t_edit", t_edit), ("t_boost", t_boost)):
            if value is not None:
                check_timestep(name, value, self._schedule)
        own = {"sampler": sampler, "t_edit": t_edit, "t_boost": t_boost}
        changes: dict[str, Any] = {k: v if k == "sampler" else int(v) for k, v in own.items() if v is not None}
        return msgspec.structs.replace(base, encode_steps=int(encode_steps), decode_steps=int(decode_steps), **changes)

    def encode(self, plan: Preset) -> Program:
        """From the image to x_T. DiffAE's spacing ends at ᾱ = 0, the others at the last timestep."""
        ts = space_timesteps(plan.spacing, plan.encode_steps, self._schedule)
        # an exact encode visits the levels that its decode visits
        spacing = SPACINGS["asyrp" if SAMPLERS[plan.sampler].exact else plan.spacing]
        rows = samplers.ddim_inversion(self._schedule, ts, clip=plan.clip, at=spacing.at, to_noise=spacing.to_noise)
        return Program.from_rows("encode", self._own(plan, rows))

    def decode(self, plan: Preset, edit: Edit, *, resume: bool = False) -> Program:
        """From x_T to the image; t_edit, t_boost and edit_scale count only where `edit` has deltas.

        resume: from the last two states of an encode; see `resumes` and `multistep.resumed`.
        """
        ts = space_timesteps(plan.spacing, plan.decode_steps, self._schedule)
        sampler = SAMPLERS[plan.sampler]
        direction = SPACINGS[plan.spacing].direction if plan.sampler == "ddim" else "clamped"
        eta, large = sampler.eta, sampler.large
        if edit.branch == Branch.NONE:
            rows = samplers.ddim(self._schedule, ts, eta=eta, large=large, clip=plan.clip, direction=direction)
        else:
            rows = samplers.edit(
                self._schedule,
                ts,
                branch=edit.branch,
                t_edit=plan.t_edit,
                t_boost=plan.t_boost,
                edit_scale=self._edit_scale(plan, ts, edit.n_train) if edit.n_train else 1.0,
                eta=eta,
                large=large,
                clip=plan.clip,
                direction=direction,
            )
        rows = self._own(plan, rows)
        if resume:
            rows = multistep.resumed(rows)
        return Program.from_rows("decode" if edit.branch == Branch.NONE else "edit", rows)

    def _own(self, plan: Preset, rows: Rows) -> Rows:
        """The sampler's own rows, of DDIM's."""
        second_order = multistep.SECOND_ORDER.get(plan.sampler)
        return rows if second_order is None else second_order(rows)

    def resumes(self, plan: Preset, made: Mapping[str, str]) -> bool:
        """Whether a decode can go on from the last two states of the encode that `made` (a latent's provenance) tells
        of, and so undo it exactly: the sampler is exact, and the timesteps are the same.
        """
        told = tuple(made.get(key) for key in ("sampler", "spacing", "encode_steps"))
        exact = SAMPLERS[plan.sampler].exact and plan.decode_steps >= 3
        return exact and told == (plan.sampler, plan.spacing, str(plan.decode_steps))

    def cannot_undo(self, plan: Preset, made: Mapping[str, str], resumes: bool) -> str | None:
        """Why a decode does not undo the encode that `made` tells of, or None where it comes as near as it can.

        resumes: whether it goes on from the encode's last two states. An inversion that is exact undoes itself alone:
        its x_T holds the errors of its own steps, which no other decode makes.
        """
        if resumes or "encode_steps" not in made:
            return None
        encoder = made.get("sampler", "")
        of = SAMPLERS.get(encoder)
        if not SAMPLERS[plan.sampler].exact and not (of and of.exact):
            return None
        told = (f"{made.get(k, '?')[:50]}" for k in ("preset", "sampler", "encode_steps", "spacing"))
        by = "preset {}, {} over {} timesteps spaced by {}".format(*told)
        here = f"{plan.sampler} over {plan.decode_steps} timesteps spaced by {plan.spacing}"
        return f"the latent was encoded by {by}; {here} does not give the image back exactly"

    def _edit_scale(self, plan: Preset, ts: Timesteps, n_train: int) -> NDArray[np.float64]:
        """What Δh is scaled by at each timestep, so that strength 1 means the same at every step count.

        With the papers' spacings n_train/n_run (Kwon et al. 2023, appendix). With those whose steps differ in length
        n_train/T times the timesteps that the row stands for: over those Δh moves P by about as much.
        """
        if SPACINGS[plan.spacing].even:
            return np.full(len(ts), n_train / plan.decode_steps)
        return n_train / self._schedule.timesteps * np.diff(ts, prepend=-1)

    def latent(self, plan: Preset, steps: int | None = None) -> Program:
        """The latent DDIM over normalised z_sem: DiffAE's spacing, never clamped."""
        if self._latent_schedule is None:
            raise ArgumentError("sample: the bundle has no latent DDIM, so it cannot draw z_sem")
        if steps is None:
            steps = plan.decode_steps if plan.latent_steps is None else plan.latent_steps
        ts = space_timesteps("diffae", steps, self._latent_schedule)
        return Program.from_rows("latent", samplers.ddim(self._latent_schedule, ts))

    def program(
        self, kind: ProgramKind, plan: Preset, edit: Edit, latent_steps: int | None = None, *, resume: bool = False
    ) -> Program:
        """The program of that kind. "edit" is what an edit runs: where `edit` says nothing, an asymmetric edit of the
        h-space at edit_scale 1 if the bundle is made for those, and a decode (after z_sem was moved) if it is not.
        resume: as `decode` takes it.
        """
        if kind == "encode":
            return self.encode(plan)
        if kind == "latent":
            return self.latent(plan, latent_steps)
        if kind not in ("decode", "edit"):
            raise ArgumentError(f"program: found {kind!r}, expected encode, decode, edit or latent")
        manifest = self._bundle.manifest
        in_h = manifest.family == "asyrp" or any(a.branch != "none" for a in manifest.attributes.values())
        if kind == "edit" and edit == Edit() and in_h:
            edit = Edit(branch=Branch.ASYMMETRIC)
        return self.decode(plan, edit, resume=resume)
