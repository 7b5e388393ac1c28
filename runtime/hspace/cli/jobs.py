"""Jobs over many inputs, and what is said at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from ..editor import Editor
from ..edits import check_names, compile_edit
from ..engines import Engine
from ..errors import EngineError, HspaceError, ImageError, LatentError, NotFinite, OutputError
from ..manifest import Source
from ..plans import Planner
from ..record import differences, engine_told, make_record, read_output
from ..runs import OnStep, Step
from . import printable
from .common import emit, engine_text
from .outputs import Job, Plan, Series, folder_of
from .progress import Bar
from .streams import read_source, source_of


@dataclass
class JobReport:
    """What a command on many inputs has done: outputs written, outputs kept, inputs refused and why.

    on_stdout: whether stdout is the one output, so that what is said goes to stderr. what: of which `total` is the
    number.
    """

    total: int
    kept: list[Path] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, HspaceError]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)
    on_stdout: bool = False
    what: str = "inputs"

    def progress(self, done: float, seconds: float) -> str:
        """How far it is. done: of all inputs, those that are begun with the share of their steps that is done; seconds:
        since the first was begun.
        """
        other = len(self.kept) + len(self.failed)
        text = f"{len(self.written) + other} of {self.total}"
        return f"{text}, {(done - other) / seconds:.3g} images/s" if done > other and seconds > 0 else text

    def refuse(self, file: Path, error: HspaceError) -> None:
        """Notes that an input was refused; where it is the only one, its error is the command's."""
        if self.total == 1:
            raise error
        self.failed.append((file, error))

    def settle(self, target: Path, recorded: str | None, wanted: str, update: bool) -> bool:
        """Whether an output that exists is to be made anew; one that would be the same is kept. Raises OutputError for
        one that would differ, unless `update`. recorded, wanted: its record, and that which it would have.
        """
        different = differences(recorded, wanted)
        if different and not update:
            why = "says nothing of what made it" if recorded is None else f"was made otherwise ({', '.join(different)})"
            raise OutputError(f"{target}: exists and {why}; --update makes such ones anew, --force all")
        if not different:
            self.kept.append(target)
        return bool(different)

    def refused(self) -> tuple[list[dict[str, str]], str]:
        """Every refused input for machines, and every refusal for people, a line each."""
        rows = [{"file": str(p), "error": str(e)} for p, e in self.failed]
        return rows, "".join(f"\nrefused {printable(error)}" for error in dict.fromkeys(row["error"] for row in rows))

    def finish(self) -> None:
        """Raises the one error that stands for all refused inputs, if there were any."""
        if self.failed:
            error = self.failed[0][1]
            others = len({str(e) for _, e in self.failed}) - 1
            more = f" (and {others} more)" if others else ""
            raise type(error)(f"{len(self.failed)} of {self.total} {self.what} refused: {error}{more}")


class Recorder:
    """The records of one command's outputs, and the engine that makes them.

    Refuses what a decode with these options would refuse. options: of a run, as commands have them; steps may be
    (encode, decode). draws: whether the seed matters in any case, and not only where the decode's rows draw. more: what
    else the command was asked for.
    """

    def __init__(
        self,
        editor: Editor,
        call: str,
        options: Mapping[str, Any],
        edits: Mapping[str, float] | None = None,
        *,
        draws: bool = False,
        **more: Any,
    ) -> None:
        self._editor, self._call, self._preset = editor, call, options.get("preset")
        self._seed = options.get("seed") or 0
        self._edits, self._more = dict(edits or {}), {k: v for k, v in more.items() if v is not None}
        planner = Planner(editor.bundle)
        self._plan = planner.plan(
            self._preset, options.get("steps"), *(options.get(n) for n in ("sampler", "t_edit", "t_boost"))
        )
        check_names(self._edits, editor.attributes, "edits")
        edit = compile_edit(self._edits, editor.attributes, self._plan.decode_steps)
        rows = planner.program("decode", self._plan, edit).rows
        self._draws = draws or (call != "encode" and bool(rows["c_noise"].any()))
        self.engine = editor.engine_of(self._preset, self._plan.sampler)

    def __call__(self, sources: Sequence[Source], image: int | None) -> str:
        """The record of the output of that number, or of all of them together."""
        told: Any = {"strengths": self._edits, "seed": self._seed, "image": image, "draws": self._draws}
        return make_record(self._editor, self._call, self._preset, self._plan, sources, **told, **self._more)


def run_jobs(
    label: str,
    batch_size: int,
    plan: Plan,
    error: type[HspaceError],
    load: Callable[[Path, bytes], Any],
    make: Callable[[Sequence[Job], list[Any], OnStep], Iterable[Any]],
    write: Callable[[Job, Any, str], None],
    record: Callable[[Job, Source], str],
    there: Callable[[Job], str | None] = lambda job: read_output(job.target),
) -> JobReport:
    """Loads, makes and writes, a batch at a time. An input that is refused is reported and stops nothing else.

    Where a batch is more than the engine can evaluate, each of its inputs is tried alone. record: what an output made
    of that source is to say of itself; one that is there is kept if `there` says the same. error: of an input that
    cannot be read.
    """
    report = JobReport(plan.total, on_stdout=plan.on_stdout)
    for job, clash in plan.clashes:
        report.refuse(job.source, clash)
    start = report.start

    def says() -> str:
        return report.progress(bar.done / 1000, time.perf_counter() - start)

    with Bar(label, 1000 * max(plan.total, 1), says) as bar:
        bar.draw()
        jobs = sorted([*plan.jobs, *_to_renew(plan, report, error, record, there)], key=lambda job: job.number)
        before, start = plan.total - len(jobs), time.perf_counter()

        def made(loaded: list[_Loaded], done: int, of: int) -> Iterator[tuple[_Loaded, Any]]:
            """What can be made of the inputs, `of` of all that the bar counts, after `done` others."""

            def on_step(step: Step) -> None:
                bar.to(1000 * (done + of * step.index / step.total))

            try:
                results = dict(enumerate(make([x.job for x in loaded], [x.content for x in loaded], on_step)))
            except NotFinite as e:  # of some inputs; the others' runs have not noticed
                results = e.others
                for number, why in e.images.items():
                    source = loaded[number].job.source
                    report.refuse(source, e if report.total == 1 else NotFinite(f"{source}: {why}"))
            except (EngineError, LatentError) as e:
                if len(loaded) > 1:
                    for i, one in enumerate(loaded):
                        yield from made([one], done + i, 1)
                    return
                only = loaded[0].job
                report.refuse(only.source, e if report.total == 1 else type(e)(f"{only.source}: {e}"))
                return
            yield from ((loaded[number], result) for number, result in results.items())

        for i in range(0, len(jobs), batch_size):
            chunk = jobs[i : i + batch_size]
            loaded: list[_Loaded] = []
            for job in chunk:
                try:
                    data = read_source(job.source, error)
                    content = load(job.source, data)
                except (ImageError, LatentError) as e:
                    report.refuse(job.source, e)
                    continue
                loaded.append(_Loaded(job, content, record(job, source_of(job.source, data))))
            for one, result in made(loaded, before + i, len(chunk)) if loaded else ():
                with folder_of(one.job.target):
                    write(one.job, result, one.record)
                report.written.append(one.job.target)
            bar.to(1000 * (before + i + len(chunk)))
        bar.to(bar.length)
    return report


@dataclass(frozen=True)
class _Loaded:
    """An input that was read, and the record of its output."""

    job: Job
    content: Any
    record: str


def _to_renew(
    plan: Plan,
    report: JobReport,
    error: type[HspaceError],
    record: Callable[[Job, Source], str],
    there: Callable[[Job], str | None],
) -> Iterator[Job]:
    """Those of the outputs that exist which are to be made anew; the others are kept or refused, as the report says."""
    for job in plan.there:
        try:
            wanted = record(job, source_of(job.source, read_source(job.source, error)))
            if report.settle(job.target, there(job), wanted, plan.update):
                yield job
        except (ImageError, LatentError, OutputError) as e:
            report.refuse(job.source, e)


def settle_series(series: Series, report: JobReport, record: Callable[[int], str]) -> None:
    """Which of a series' files that exist are kept, as it and the report then say, and which are refused.

    record: what the file of that number would say.
    """
    for number, target in enumerate(series.targets):
        if target in series.there:
            try:
                report.settle(target, read_output(target), record(number), series.update)
            except OutputError as e:
                report.refuse(target, e)
    series.kept.extend(report.kept)


def wrote(as_json: bool, report: JobReport, engine: Engine) -> None:
    """What a command that writes files says at its end; raises where inputs were refused."""
    seconds, outputs = time.perf_counter() - report.start, report.written
    failed, refusals = report.refused()
    told = {
        "outputs": [str(p) for p in outputs],
        "kept": [str(p) for p in report.kept],
        "failed": failed,
        "seconds": round(seconds, 3),
        **engine_told(engine),
    }
    what = f"{len(outputs)} files" + (f" in {outputs[0].parent}" if outputs else "")
    if len(outputs) == 1:
        what = "stdout" if report.on_stdout else str(outputs[0])
    text = f"wrote {printable(what)} in {seconds:.2f} s ({engine_text(engine)})"
    if len(report.kept) == report.total == 1:
        text = f"kept {printable(str(report.kept[0]))}: it exists and would be the same (--force makes it anew)"
    elif report.kept:
        text += f"; kept {len(report.kept)} that exist and would be the same (--force makes them anew)"
    if outputs and engine.name == "null":
        click.echo("hspace: warning: engine null computes nothing real: what it makes is for tests alone", err=True)
    emit(as_json, told, text + refusals, err=report.on_stdout)
    report.finish()
