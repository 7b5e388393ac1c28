"""hspace attribute: what a bundle's attributes are, and changes to them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, get_args

import click

from ..amend import add_attribute, remove_attribute, rename_attribute
from ..attributes import parse_attribute
from ..bundle import Bundle
from ..edits import check_names
from ..errors import ArgumentError, BundleError, CheckpointError, needs
from ..files import read_file
from ..kinds import KINDS, BranchName, kind_of
from ..manifest import Source
from ..tensors import read_tensors, write_tensors
from . import Lazy, common
from .outputs import check_outputs

_COMMANDS = {
    "list": ("hspace.cli.attribute", "list_", "The attributes of a bundle."),
    "fit": ("hspace_export.fit_cli", "fit", "Make an attribute from images with and without it."),
    "average": ("hspace_export.fit_cli", "average", "Make a delta_h from a delta_block, averaged over images."),
    "pca": ("hspace_export.fit_cli", "pca", "Find directions of h without labels."),
    "add": ("hspace.cli.attribute", "add", "Add an attribute's file."),
    "export": ("hspace.cli.attribute", "export", "Write an attribute's file, for another bundle."),
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


@click.command("list", cls=common.BundleCommand)
@common.either
@common.as_json
def list_(bundle: str, as_json: bool) -> None:
    """The attributes of a bundle, with their files and what is known of how they were made.

    \b
    Examples:
      hspace attribute list bundles/avatars32
    """
    opened, attributes, rows = Bundle(bundle), {}, []
    for name, entry in opened.manifest.attributes.items():
        where, data = str(opened.folder / entry.file), opened.read(entry)
        notes = read_tensors(data, where).metadata.get("notes", "")
        content = parse_attribute(opened, entry, data, where).summary()
        file = {"file": entry.file, "bytes": entry.bytes, "sha256": entry.sha256}
        told = {"kind": entry.kind, "branch": entry.branch, "n_train": entry.n_train, **content}
        attributes[name] = {**told, **file, "notes": notes}
        rows.append(
            [name, entry.kind, entry.branch, str(entry.n_train or "-"), entry.file, str(entry.bytes), notes or "-"]
        )
    headers = ["attribute", "kind", "branch", "n_train", "file", "bytes", "notes"]
    common.emit(
        as_json, attributes, common.table(headers, rows, left=len(headers)) if rows else f"{bundle}: no attributes"
    )


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("name")
@click.argument("file", type=common.FILE)
@click.option(
    "--branch", type=click.Choice(["asymmetric", "symmetric"]), help="Branch of a delta_h. [default: symmetric]"
)
@click.option("--n-train", type=int, help="Steps that a delta was trained at. [default: from ngen… in the file's name]")
@click.option("--force", is_flag=True, help="Replace an attribute that exists.")
@common.as_json
def add(bundle: str, name: str, file: Path, branch: Any, n_train: int | None, force: bool, as_json: bool) -> None:
    """Add an attribute: a file of `hspace attribute export`, or a published Asyrp DeltaBlock (needs PyTorch).

    \b
    Examples:
      hspace attribute add bundles/faces smile smile.safetensors
      hspace attribute add bundles/celebahq smiling smiling_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth
    """
    opened = Bundle(bundle)
    if file.suffix.lower() in (".pth", ".pt", ".ckpt"):
        kind, data, n_train, source = _delta_block(opened, file, n_train)
    else:
        source, data = None, read_file(file, BundleError)
        kind, told, told_n = _told(data, file)
        branch = told if branch is None and len(KINDS[kind].branches) > 1 else branch
        n_train = told_n if n_train is None else n_train
    if branch is not None and len(KINDS[kind].branches) == 1:
        raise click.UsageError(f"--branch: a {kind} has but one")
    if n_train is not None and KINDS[kind].moves_z_sem:
        raise click.UsageError(f"--n-train: a {kind} has no scale for other step counts")
    branch = branch or KINDS[kind].branches[0]
    add_attribute(opened, name, data, kind, branch, n_train, source=source, replace=force)
    common.emit(as_json, {"attribute": name, "kind": kind}, f"added {name} ({kind}) to {bundle}")


def _told(data: bytes, file: Path) -> tuple[str, Any, int | None]:
    """An attribute's kind, by the tensors that it has; its branch and n_train, where an export's metadata say."""
    tensors = read_tensors(data, str(file))
    kind = kind_of(tensors)
    told = {key: tensors.metadata.get(key) for key in ("kind", "branch", "n_train")}
    if told["kind"] not in (None, kind) or told["branch"] not in (None, *get_args(BranchName)):
        raise BundleError(f"{file}: its metadata say {told['kind']} and {told['branch']} of the tensors of a {kind}")
    n_train = told["n_train"]
    if n_train is not None and not re.fullmatch("[0-9]{1,9}", n_train, re.ASCII):
        raise BundleError(f"{file}: found n_train {n_train[:50]!r} in the metadata, expected a whole number")
    return kind, told["branch"], None if n_train is None else int(n_train)


def _delta_block(bundle: Bundle, file: Path, n_train: int | None) -> tuple[Any, bytes, int | None, Source]:
    """A PyTorch file's DeltaBlock as a bundle keeps it."""
    try:
        asyrp = importlib.import_module("hspace_export.asyrp")
    except ImportError as e:
        raise CheckpointError(needs(f"{file}: reading it", e.name, "export")) from None
    data, n, source = asyrp.delta_block_file(file, bundle, n_train)
    return "delta_block", data, n, source


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("name")
@click.argument("file", type=common.FILE)
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@common.as_json
def export(bundle: str, name: str, file: Path, force: bool, as_json: bool) -> None:
    """Write an attribute to a safetensors file, from which `hspace attribute add` makes the same one.

    \b
    Examples:
      hspace attribute export bundles/avatars32 Blond_Hair blond.safetensors
    """
    opened = Bundle(bundle)
    check_names([name], opened.manifest.attributes, "NAME")
    if file.suffix.lower() != common.LATENT_SUFFIX:
        raise ArgumentError(f"{file}: expected a name that ends in {common.LATENT_SUFFIX}")
    check_outputs([file], [], force)
    entry = opened.manifest.attributes[name]
    tensors = read_tensors(opened.read(entry), str(opened.folder / entry.file))
    told = {"kind": entry.kind, "branch": entry.branch} | ({"n_train": str(entry.n_train)} if entry.n_train else {})
    write_tensors(file, tensors.arrays, {**tensors.metadata, **told})
    common.emit(as_json, {"attribute": name, **told, "output": str(file)}, f"wrote {name} ({entry.kind}) to {file}")


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("name")
@common.as_json
def remove(bundle: str, name: str, as_json: bool) -> None:
    """Remove an attribute and its file.

    \b
    Examples:
      hspace attribute remove bundles/avatars32 Wink
    """
    remove_attribute(Bundle(bundle), name)
    common.emit(as_json, {"removed": name}, f"removed {name} from {bundle}")


@click.command(cls=common.BundleCommand)
@common.either
@click.argument("name")
@click.argument("to")
@common.as_json
def rename(bundle: str, name: str, to: str, as_json: bool) -> None:
    """Give an attribute another name.

    \b
    Examples:
      hspace attribute rename bundles/avatars32 Blond_Hair blond
    """
    rename_attribute(Bundle(bundle), name, to)
    common.emit(as_json, {"renamed": name, "to": to}, f"renamed {name} to {to} in {bundle}")
