"""Commands that look at a bundle, or at the machine."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from ..attributes import read_attribute
from ..bundle import Bundle
from ..choice import AUTO, asked_engine, asked_precision, choose
from ..edits import check_names, compile_edit
from ..engines import ENGINES, cache, note, packages, unavailable
from ..engines.probe import check_with_onnx
from ..errors import BundleError, DeviceError, EngineError, HspaceError, needs
from ..opening import open as open_bundle
from ..plans import Planner
from ..record import engine_told
from . import common, outputs


@click.command(cls=common.BundleCommand)
@common.either
@click.option(
    "--program", type=click.Choice(["encode", "decode", "edit", "latent"]), help="Print this program's table."
)
@common.strength_option
@common.running
@common.phases
@click.option("--save", type=common.FILE, help="Write the program to a file as well.")
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@common.as_json
def info(
    bundle: str,
    program: Any,
    strengths: list[tuple[str, float]],
    save: Path | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """What a bundle holds: components, attributes, presets, provenance. No network is loaded.

    \b
    Examples:
      hspace info bundles/avatars32
      hspace info bundles/avatars32 --program edit --steps 10
      hspace info bundles/avatars32 --program encode --save encode.json
    """
    opened = Bundle(bundle)
    if program is None:
        if save is not None or strengths or any(v is not None for v in options.values()):
            raise click.UsageError("--set, --save and the options of a run need --program")
        told = msgspec.to_builtins(opened.manifest)
        common.emit(as_json, told, _describe(opened))
        return
    if save is not None:
        outputs.check_outputs([save], [], force)
    planner, edits = Planner(opened), common.strengths_of(strengths)
    check_names(edits, opened.manifest.attributes, "--set")
    plan = planner.plan(**options)
    edit = compile_edit(edits, {name: read_attribute(opened, name) for name in edits}, plan.decode_steps)
    table = planner.program(program, plan, edit, options["steps"])
    if save is not None:
        table.save(save)
    names = table.rows.dtype.names or ()
    rows = [{n: r[n].item() for n in names} for r in table.rows]
    common.emit(as_json, {"name": table.name, "rows": rows}, str(table))


def _describe(bundle: Bundle) -> str:
    m = bundle.manifest
    lines = [
        f"{m.name}: family {m.family}, {m.image.size}×{m.image.size}" + (f", z_sem {m.z_sem.size}" if m.z_sem else "")
    ]
    lines += [f"licence: {' '.join(m.licence.split()) or 'not said'}", ""]
    rows = [
        [n, c.precision, c.weights, c.file, f"{c.bytes / 2**20:.1f}", c.sha256[:12]] for n, c in m.components.items()
    ]
    lines += [common.table(["component", "precision", "weights", "file", "MiB", "SHA-256"], rows), ""]
    if m.attributes:
        rows = []
        for name, a in m.attributes.items():
            says = ", ".join(
                f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}"
                for k, v in read_attribute(bundle, name).summary().items()
            )
            rows.append([name, a.kind, a.branch, str(a.n_train or "-"), a.file, f"{a.bytes / 2**20:.3f}", says])
        lines += [common.table(["attribute", "kind", "branch", "n_train", "file", "MiB", "content"], rows), ""]
    columns = list(next(iter(m.presets.values())).__struct_fields__)
    rows = []
    for name, p in m.presets.items():
        cells = ["-" if getattr(p, c) is None else str(getattr(p, c)) for c in columns]
        rows.append([f"{name} (default)" if name == m.default_preset else name, *cells])
    lines += [common.table(["preset", *columns], rows), ""]
    lines.append(f"made by {m.provenance.exporter}, from " + ", ".join(s.file for s in m.provenance.sources.values()))
    return "\n".join(lines)


@click.command(cls=common.BundleCommand)
@common.either
@common.engine_option
@common.device_option
@common.as_json
def verify(bundle: str, engine: str | None, device: str, as_json: bool) -> None:
    """Check a bundle: manifest, listing, SHA-256 of every file, graphs and attributes as an engine loads them.

    Where the package onnx is installed, its checker and its shape inference see the graphs as well.

    \b
    Examples:
      hspace verify bundles/avatars32
    """
    editor = open_bundle(bundle, engine=engine, device=device)  # which reads every file, each checked as it is read
    files = {entry.file: entry.bytes for _, entry in editor.bundle.manifest.files()}
    total = sum(files.values()) / 2**20
    checked = editor.engine.name == "null" or check_with_onnx(editor.bundle)  # which loads no graph
    lines = [f"ok  {name}  {size} bytes" for name, size in files.items()]
    lines.append(f"{bundle}: {len(files)} files, {total:.1f} MiB, sound; loaded by {common.engine_text(editor.engine)}")
    if not checked:
        lines.append(needs("ONNX's own check of the graphs, which was left out,", "onnx", "export"))
    common.emit(as_json, {"bundle": bundle, "files": files, **engine_told(editor.engine)}, "\n".join(lines))


@click.command(cls=common.BundleCommand)
@common.bundle_first
@click.option(
    "-b",
    "--bundle",
    envvar="HSPACE_BUNDLE",
    help="Say which engine `auto` is for this bundle, and why; instead of BUNDLE. [env: HSPACE_BUNDLE]",
)
@common.as_json
def doctor(bundle: str | None, as_json: bool) -> None:
    """Say which engines can run here and why others cannot, and which GPU there is.

    \b
    Examples:
      hspace doctor
      hspace doctor -b bundles/avatars32
    """
    reasons = {name: unavailable(name) for name in ENGINES}
    auto, says, fault = _auto(bundle, reasons)
    from ..bench import machine

    gpu, why_not = _gpu()
    why_no_cache = cache.why_not()
    names = ("hspace", "numpy", *packages(), "pillow", "safetensors", "torch", "onnx", "cuda-bindings")
    versions = dict.fromkeys(names, "") | machine.versions(names)
    told = {
        "engines": {n: {"runs": r is None, "why_not": r} for n, r in reasons.items()},
        "auto": auto,
        "gpu": {"is": gpu, "why_not": why_not},
        "cache": None if why_no_cache else str(cache.folder()),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": versions,
    }
    rows = [[n, "yes" if r is None else "no", r or note(n)] for n, r in reasons.items()]
    text = "\n".join(f"{n:<10}{runs:<6}{says}".rstrip() for n, runs, says in [["engine", "runs", ""], *rows])
    device = why_not if gpu is None else f"device cuda:0: {gpu}"
    text += f"\n\n{says}"
    text += "".join(f"\n  not {n}: {reason}" for n, reason in auto.get("left_out", {}).items())
    text += f"\n{device}\n"
    text += f"cache: not used: {why_no_cache}\n" if why_no_cache else f"cache: {cache.folder()}\n"
    text += f"python {told['python']}, {told['machine']}\n"
    text += ", ".join(f"{p} {v or 'not installed'}" for p, v in versions.items())
    common.emit(as_json, told, text)
    if fault is not None:
        raise fault


def _auto(bundle: str | None, reasons: Mapping[str, str | None]) -> tuple[dict[str, Any], str, HspaceError | None]:
    """What runs a bundle where a command does not say: for machines, and for people; and why nothing can.

    reasons: by engine, why it cannot run here.
    """
    auto: dict[str, Any] = {"engine": None, "precision": None}
    opened = None if bundle is None else Bundle(bundle)
    try:
        engine, precision = asked_engine(None), asked_precision(None)
        chosen = None if opened is None else choose(opened)
    except (EngineError, BundleError) as e:
        return {**auto, "why": str(e)}, f"engine: none, {e}", e if isinstance(e, EngineError) else EngineError(str(e))
    pins = [f"HSPACE_{what}" for what, asked in (("ENGINE", engine), ("PRECISION", precision)) if asked != "auto"]
    as_told = f", as {' and '.join(pins)} say{'s' * (len(pins) == 1)}" if pins else ""
    label = "engine auto" if engine == "auto" else "engine"
    if chosen is not None:
        auto = {"engine": chosen.engine.name, "precision": chosen.engine.precision}
        taken = f"{chosen.engine.name} in {chosen.engine.precision}"
        why = taken + as_told + chosen.why.removeprefix(taken).removesuffix(", as asked for")
        return {**auto, "why": why, "left_out": chosen.left_out}, f"{label}: {why}", None
    why_not = reasons.get(engine)
    if why_not is not None:
        fault = EngineError(f"engine {engine}: cannot run here: {why_not}")
        return {**auto, "why": str(fault)}, f"engine: none, {fault}", fault
    runs = [n for n in AUTO if reasons[n] is None]
    why = f"the first of {', '.join(runs)} that takes it" if engine == "auto" else engine
    why += (f" in {precision}" if precision != "auto" else "") + as_told
    return {**auto, "why": why}, f"{label}: {why}", None


def _gpu() -> tuple[str | None, str | None]:
    """What cuda:0 is, or why it cannot be used."""
    from ..cuda.driver import Device

    try:
        device = Device(0)
    except DeviceError as e:
        return None, str(e)
    return "{}, sm_{}{}".format(device.model, *device.architecture), None
