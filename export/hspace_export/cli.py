"""hspace export."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from hspace.bundle import Bundle
from hspace.choice import record
from hspace.cli import common, printable
from hspace.errors import needs
from hspace.manifest import check_name

from . import asyrp, diffae, lpips
from .exporter import Model, Settings, read_config, schedule, settings_of
from .exporter import export as run_export

_FILE = common.FILE
_SETTINGS = tuple(Settings.__struct_fields__)

shared = common.stack(
    click.option("-o", "--output", required=True, type=_FILE, help="The bundle's folder."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "fp16"]),
        default="fp32",
        show_default=True,
        help="Type of the arithmetic.",
    ),
    click.option(
        "--weights",
        type=click.Choice(["fp32", "fp16"]),
        default="fp32",
        show_default=True,
        help="How weights are stored.",
    ),
    click.option("--name", help="The bundle's name. [default: the folder's]"),
    click.option("--licence", help="Licence of the weights; only recorded."),
    click.option("--image-size", type=int, help="Pixels on a side."),
    click.option("--force", is_flag=True, help="Replace a bundle that exists."),
    common.as_json,
)
untold = common.stack(
    click.option("--config", type=_FILE, help="A JSON file with settings that weights cannot tell."),
    click.option("--num-heads", type=int, help="Attention heads."),
    click.option("--num-head-channels", type=int, help="Channels of an attention head."),
    click.option("--schedule", help="linear, cosine or const0.008. [default: linear]"),
)
trained = common.stack(
    click.option(
        "--attention-order",
        type=click.Choice(["legacy", "new"]),
        help="new: trained with use_new_attention_order. [default: legacy, without it]",
    ),
    click.option(
        "--diffusion-steps",
        type=int,
        help="Timesteps of the training. Over other than 1000, guided-diffusion's β are scaled by 1000/steps, as its "
        "code does; DDPM's are not. [default: 1000]",
    ),
    click.option(
        "--rescale-timesteps",
        is_flag=True,
        default=None,
        help="The training told the network t·1000/steps, as improved-diffusion does. [default: t]",
    ),
)
deltas = common.stack(
    click.option(
        "--attribute", "attributes", multiple=True, metavar="NAME=FILE", help="A DeltaBlock; may be repeated."
    ),
    click.option(
        "--n-train", type=int, help="Steps that the attributes were trained at. [default: from ngen… in their names]"
    ),
)


@click.group()
def export() -> None:
    """Turn trained checkpoints into a bundle, checked against PyTorch on the way.

    \b
    Examples:
      hspace export diffae last.ckpt -o bundles/ffhq256
      hspace export asyrp celeba_hq.ckpt --preset celebahq256 -o bundles/celebahq
      hspace export diffusers ddpm-church-256/ -o bundles/church
    """


@export.command("diffae")
@click.argument("checkpoint", type=_FILE)
@click.option("--latent", type=_FILE, help="The latent DDIM's checkpoint, where it is another file.")
@click.option("--classifier", type=_FILE, help="The linear classifier's checkpoint.")
@click.option("--class-names", type=_FILE, help="A text file, a class name per line. [default: CelebA's, or class_0 …]")
@click.option("--preset", type=click.Choice(list(diffae.PRESETS)), help="Settings of a published model.")
@click.option("--latent-schedule", help="Schedule of the latent DDIM. [default: const0.008]")
@untold
@shared
def export_diffae(
    checkpoint: Path,
    latent: Path | None,
    classifier: Path | None,
    class_names: Path | None,
    preset: str | None,
    **options: Any,
) -> None:
    """A Diffusion Autoencoder, from the official Lightning checkpoint (the averaged weights).

    \b
    Examples:
      hspace export diffae ffhq256/last.ckpt --latent ffhq256_latent/last.ckpt \\
          --classifier ffhq256_cls/last.ckpt -o bundles/ffhq256
    """
    settings = _settings(options)
    _run(
        lambda: diffae.load_model(
            checkpoint, latent=latent, classifier=classifier, class_names=class_names, preset=preset, settings=settings
        ),
        options,
    )


@export.command("asyrp")
@click.argument("checkpoint", type=_FILE)
@deltas
@click.option("--preset", type=click.Choice(list(asyrp.PRESETS)), help="Settings of a published model.")
@untold
@trained
@shared
def export_asyrp(checkpoint: Path, attributes: tuple[str, ...], preset: str | None, **options: Any) -> None:
    """An unconditional DDPM or guided-diffusion U-Net, with Asyrp attributes.

    The weights do not tell how the network was trained, and a wrong guess gives wrong pictures without an error. Where
    no option says otherwise, the network is taken to predict ε and to know t as a whole number, over 1000 timesteps of
    the linear schedule, with guided-diffusion's older attention order.

    \b
    Examples:
      hspace export asyrp celeba_hq.ckpt --preset celebahq256 \\
          --attribute smiling=smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth -o bundles/celebahq
      hspace export asyrp lsun_bedroom.pt --image-size 64 --num-heads 4 --schedule cosine \\
          --diffusion-steps 4000 --rescale-timesteps -o bundles/improved
    """
    named = _named(attributes)
    settings = _settings(options)
    _run(lambda: asyrp.load_model(checkpoint, attributes=named, preset=preset, settings=settings), options)


@export.command("diffusers")
@click.argument("folder", type=_FILE)
@deltas
@shared
def export_diffusers(folder: Path, attributes: tuple[str, ...], **options: Any) -> None:
    """An unconditional UNet2DModel of diffusers, with its scheduler: a folder that save_pretrained wrote.

    The bundle has the presets asyrp (the paper's), official (the scheduler's spacing and clamping, DDIM), ddpm, fast,
    balanced, exact and asymmetric (the default); ddpm is left out where the network learned its variance, which is not
    exported. Attributes are Asyrp's DeltaBlocks of the DDPM layout; one means something on the weights that it was
    trained on alone.

    \b
    Examples:
      hspace export diffusers ddpm-church-256/ -o bundles/church
    """
    named, settings = _named(attributes), _settings(options)
    try:
        from . import diffusers
    except ImportError as e:
        raise click.ClickException(needs("hspace export diffusers", e.name, "diffusers")) from None
    _run(lambda: diffusers.load_model(folder, attributes=named, settings=settings), options)


@export.command("lpips")
@click.argument("backbone", type=_FILE)
@click.option("-o", "--output", required=True, type=_FILE, help="The ONNX file.")
@click.option("--image-size", "size", type=int, default=256, show_default=True, help="Pixels on a side.")
@click.option("--linear", type=_FILE, help="LPIPS's own weights, alex.pth. [default: the installed package lpips']")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@common.as_json
def export_lpips(backbone: Path, output: Path, size: int, linear: Path | None, force: bool, as_json: bool) -> None:
    """LPIPS (AlexNet) as an ONNX graph, for `hspace calibrate`. BACKBONE is torchvision's AlexNet weights.

    \b
    Examples:
      hspace export lpips alexnet-owt-7be5be79.pth --image-size 256 -o lpips256.onnx
    """
    error = lpips.export_lpips(backbone, output, size=size, linear=linear, force=force)
    text = f"wrote {output}; relative difference to PyTorch {error:.1e}"
    common.emit(as_json, {"output": str(output), "error": error}, text)


def _named(attributes: tuple[str, ...]) -> dict[str, Path]:
    """--attribute options as a mapping."""
    named: dict[str, Path] = {}
    for text in attributes:
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise click.BadParameter(f"found {text!r}, expected NAME=FILE", param_hint="--attribute")
        if name in named:
            raise click.BadParameter(f"the name {name!r} is given twice", param_hint="--attribute")
        check_name("--attribute", name)
        named[name] = Path(file)
    return named


def _settings(options: dict[str, Any]) -> Settings:
    """The options that are settings, taken out of `options`, over those of --config."""
    given = settings_of({k: options.pop(k) for k in _SETTINGS if k in options}, "options")
    config = options.pop("config", None)
    settings = given if config is None else given.over(read_config(config))
    for text in (settings.schedule, settings.latent_schedule):
        if text is not None:
            schedule(text)  # before any file is read
    return settings


def _log(line: str) -> None:
    if sys.stderr.isatty():
        click.echo(line, err=True)


def _run(load: Callable[[], Model], options: dict[str, Any]) -> None:
    as_json, start = options.pop("as_json"), time.perf_counter()
    warnings: list[str] = []

    def loaded() -> Model:
        model = load()
        warnings.extend(model.warnings)
        for line in warnings:
            click.echo(f"hspace: warning: {printable(line)}", err=True)
        return model

    report = run_export(loaded, options.pop("output"), log=_log, **options)
    why = record(Bundle(report.path))
    seconds = time.perf_counter() - start
    worst = max(report.errors, key=report.errors.__getitem__)
    told = {"bundle": str(report.path), "bytes": report.bytes, "seconds": round(seconds, 1), "errors": report.errors}
    told |= {"warnings": warnings, "auto": why}
    text = f"wrote {report.path}, {report.bytes / 2**20:.1f} MiB, in {seconds:.0f} s; "
    rounded = " with the same rounded weights" if "fp16" in (options["weights"], options["precision"]) else ""
    text += f"largest relative difference to PyTorch{rounded} {report.errors[worst]:.1e} ({worst})\nauto: {why}"
    common.emit(as_json, told, text)
