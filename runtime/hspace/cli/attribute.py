"""hspace attribute: what a bundle's attributes are, and changes to them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

from ..amend import add_attribute, remove_attribute, rename_attribute
from ..attributes import parse_attribute, summary
from ..bundle import Bundle
from ..errors import BundleError, CheckpointError, needs
from ..files import read_file
from ..manifest import Source
from ..tensors import read_tensors
from . import Lazy, common

folder = click.argument("bundle", type=click.Path(path_type=Path))
_COMMANDS = {
    "list": ("hspace.cli.attribute", "list_", "The attributes of a bundle."),
    "fit": ("hspace_export.fit_cli", "fit", "Make an attribute from images with and without it."),
    "average": ("hspace_export.fit_cli", "average", "Make a delta_h from a delta_block, averaged over images."),
    "pca": ("hspace_export.fit_cli", "pca", "Find directions of h without labels."),
    "add": ("hspace.cli.attribute", "add", "Add an attribute's file."),
    "remove": ("hspace.cli.attribute", "remove", "Remove an attribute."),
    "rename": ("hspace.cli.attribute", "rename", "Rename an attribute."),
}


@click.group(cls=Lazy, table=_COMMANDS)
def attribute() -> None:
    """What a bundle's attributes are, and changes to them. Nothing is exported again.

    \b
    Examples:
      hspace attribute fit bundles/avatars32 glasses --positive with/ --negative without/
      hspace attribute list bundles/avatars32
    """


@click.command("list")
@folder
@common.as_json
def list_(bundle: Path, as_json: bool) -> None:
    """The attributes of a bundle, with what is known of how they were made.

    \b
    Examples:
      hspace attribute list bundles/avatars32
    """
    opened, found, rows = Bundle(bundle), {}, []
    for name, entry in opened.manifest.attributes.items():
        where, data = str(opened.folder / entry.file), opened.read(entry)
        notes = read_tensors(data, where).metadata.get("notes", "")
        content = summary(parse_attribute(opened, entry, data, where))
        found[name] = {"kind": entry.kind, "branch": entry.branch, "n_train": entry.n_train, **content, "notes": notes}
        rows.append([name, entry.kind, entry.branch, str(entry.n_train or "-"), notes or "-"])
    headers = ["attribute", "kind", "branch", "n_train", "notes"]
    common.emit(as_json, found, common.table(headers, rows, left=len(headers)) if rows else f"{bundle}: no attributes")


@click.command()
@folder
@click.argument("name")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--branch", type=click.Choice(["asymmetric", "symmetric"]), help="Of a delta_h. [default: symmetric]")
@click.option("--n-train", type=int, help="Steps that a delta was trained at. [default: from ngen… in the file's name]")
@click.option("--force", is_flag=True, help="Replace an attribute that exists.")
@common.as_json
def add(bundle: Path, name: str, file: Path, branch: Any, n_train: int | None, force: bool, as_json: bool) -> None:
    """Add an attribute: a safetensors file, as bundles have them, or a published Asyrp DeltaBlock (needs PyTorch).

    \b
    Examples:
      hspace attribute add bundles/faces smile other_bundle/attributes/000.safetensors
      hspace attribute add bundles/celebahq smiling smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth
    """
    opened = Bundle(bundle)
    if file.suffix.lower() in (".pth", ".pt", ".ckpt"):
        kind, data, n_train, source = _delta_block(opened, file, n_train)
    else:
        source, data = None, read_file(file, BundleError)
        kind = _kind(data, file)
    if branch is not None and kind != "delta_h":
        raise click.UsageError(f"--branch: a {kind} has but one")
    if n_train is not None and kind == "z_direction":
        raise click.UsageError("--n-train: a z_direction has no scale for other step counts")
    branches = {"z_direction": "none", "delta_block": "asymmetric", "delta_h": branch or "symmetric"}
    add_attribute(opened, name, data, kind, branches[kind], n_train, source=source, replace=force)  # type: ignore[arg-type]
    common.emit(as_json, {"attribute": name, "kind": kind}, f"added {name} ({kind}) to {bundle}")


def _kind(data: bytes, file: Path) -> Any:
    """The kind of an attribute, by the tensors that it has."""
    names = read_tensors(data, str(file)).arrays.keys()
    for kind, mark in (("z_direction", "weight"), ("delta_block", "conv1.weight"), ("delta_h", "timesteps")):
        if mark in names:
            return kind
    raise BundleError(f"{file}: expected an attribute: weight, conv1.weight or timesteps among its tensors")


def _delta_block(bundle: Bundle, file: Path, n_train: int | None) -> tuple[Any, bytes, int | None, Source]:
    """A PyTorch file's DeltaBlock as a bundle keeps it."""
    try:
        asyrp = importlib.import_module("hspace_export.asyrp")
    except ImportError as e:
        raise CheckpointError(needs(f"{file}: reading it", e.name, "export")) from None
    data, n, source = asyrp.delta_block_file(file, bundle, n_train)
    return "delta_block", data, n, source


@click.command()
@folder
@click.argument("name")
@common.as_json
def remove(bundle: Path, name: str, as_json: bool) -> None:
    """Remove an attribute and its file.

    \b
    Examples:
      hspace attribute remove bundles/avatars32 Wink
    """
    remove_attribute(Bundle(bundle), name)
    common.emit(as_json, {"removed": name}, f"removed {name} from {bundle}")


@click.command()
@folder
@click.argument("name")
@click.argument("to")
@common.as_json
def rename(bundle: Path, name: str, to: str, as_json: bool) -> None:
    """Give an attribute another name.

    \b
    Examples:
      hspace attribute rename bundles/avatars32 Blond_Hair blond
    """
    rename_attribute(Bundle(bundle), name, to)
    common.emit(as_json, {"renamed": name, "to": to}, f"renamed {name} to {to} in {bundle}")
