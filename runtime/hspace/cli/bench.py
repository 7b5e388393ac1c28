"""hspace bench."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..bench import report as reports
from ..checks import check_whole
from ..errors import OutputError, needs
from ..files import write_atomically
from . import common
from .outputs import check_outputs


class Names(common.ParamType[tuple[str, ...]]):
    """NAME or NAME,NAME."""

    name = "NAME[,NAME…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        return tuple(value.split(",")) if isinstance(value, str) else tuple(value)


class Batches(common.ParamType[tuple[int, ...]]):
    """N or N,N."""

    name = "N[,N…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        try:
            return tuple(dict.fromkeys(int(n) for n in str(value).split(",")))
        except ValueError:
            self.fail(f"found {value!r}, expected whole numbers with commas between", param, ctx)


@click.command(cls=common.BundleCommand)
@common.either
@click.option(
    "--engine", "engines", type=Names(), multiple=True, help="auto, or engines' names, side by side. [default: auto]"
)
@common.precision_option
@common.device_option
@common.resources
@click.option(
    "--batch", "batches", type=Batches(), default="1", show_default=True,
    help="Samples in a step, and images in a call; at further ones, the steps alone.",
)  # fmt: skip
@click.option("--repeat", type=int, default=20, show_default=True, help="Rounds of the parts.")
@click.option("--calls", type=int, default=3, show_default=True, help="Rounds of whole calls.")
@click.option("--steps", type=int, help="Steps of whole calls, instead of the default preset's.")
@click.option("--plot", type=common.FILE, help="Also draw it: a PNG.")
@click.option("--force", is_flag=True, help="Replace a picture that exists.")
@common.as_json
def bench(
    bundle: str,
    engines: tuple[tuple[str, ...], ...],
    batches: tuple[int, ...],
    repeat: int,
    calls: int,
    plot: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the latency of each part of a step and of whole calls.

    Engines take turns in the same rounds, so compare them by ratio. Then: network evaluations, arithmetic (GFLOP) and
    traffic (MB) of each part, against the peak of this machine's matrix units; what of a step is not network
    evaluation ("update"); start-up and memory of a fresh process.

    \b
    Examples:
      hspace bench -b bundles/avatars32
      hspace bench -b bundles/avatars32 --engine openvino,onnx --steps 20 --plot bench.png
      hspace bench -b bundles/avatars32 --batch 1,2,4,8 --steps 20 --json
      hspace bench -b bundles/avatars32 --device cuda:0
    """
    for name, values in (("--batch", batches), ("--repeat", [repeat]), ("--calls", [calls])):
        for value in values:
            check_whole(name, value)
    if plot is not None:
        if plot.suffix.lower() != ".png":
            raise OutputError(f"{plot}: expected a name that ends in .png")
        check_outputs([plot], [], force)
        try:
            from ..bench.plot import plot as draw
        except ImportError as e:
            raise click.ClickException(needs("hspace bench --plot", e.name, "bench")) from None
    names = [name for given in engines for name in given] or ["auto"]
    report = reports.report(bundle, names, batches=batches, repeat=repeat, calls=calls, **options)
    if plot is not None:
        write_atomically(plot, draw(report))
    blocks = ["\n".join(reports.heading(report)), *(common.table(t.headers, t.rows) for t in reports.tables(report))]
    blocks.append("\n".join(reports.closing(report)))
    common.emit(as_json, report, "\n\n".join(blocks))
