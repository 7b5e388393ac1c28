"""What was measured, as tables, as goals and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .loops import ASYMMETRIC, PLAIN

Found = dict[str, Any]  # of one case: see `measure` in peers.py
GIB = 2**30
EAGER = "torch eager"
EQUAL, BALANCED = "equal steps", "balanced"


def series(peer: Found, key: str) -> list[float]:
    """Seconds in each round: "seconds" of the short edit, or a kind of step."""
    return [r[key] for r in peer.get("edit", []) if key in r]


def composed(peer: Found) -> list[float]:
    """Seconds of a whole edit at the official steps, in each round: what its steps cost, times how many there are."""
    counts = peer.get("counts", {})
    if not all(kind in r for r in peer.get("edit", []) for kind in counts):
        return []
    return [r["rest"] + sum(n * r[kind] for kind, n in counts.items()) for r in peer.get("edit", [])]


def best(result: Found, values: Callable[[Found], list[float]]) -> list[float]:
    """Of hspace's engines, the fastest in each round."""
    rounds = [v for peer in engines(result).values() if (v := values(peer))]
    return [min(r) for r in zip(*rounds, strict=False)]


def engines(result: Found) -> dict[str, Found]:
    """hspace's own peers, those that ran."""
    peers: dict[str, Found] = result["peers"]
    return {name: p for name, p in peers.items() if name.startswith("hspace ") and "error" not in p}


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(theirs, ours, strict=False)]


def whole(result: Found, peer: str, which: str) -> tuple[list[float], str]:
    """A peer's edit at the official steps over hspace's, at the same steps or at "balanced", and how it was had."""
    entry = result["peers"][peer]
    balanced = best(result, lambda p: p.get("balanced", []))  # always really run
    full = [p["full"] for p in engines(result).values() if "full" in p]
    if "full" in entry and which == BALANCED:
        return ratios([entry["full"]] * len(balanced), balanced), "measured"
    if "full" in entry and full:
        return ratios([entry["full"]], [min(full)]), "measured"
    return ratios(composed(entry), balanced if which == BALANCED else best(result, composed)), "composed"


def spread(values: Sequence[float], unit: str = "×") -> str:
    if not values:
        return "-"
    digits = 1 if median(values) >= 10 else 2
    return f"{median(values):.{digits}f}{unit} [{min(values):.{digits}f} … {max(values):.{digits}f}]"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(r[i]) for r in [head, *rows]) for i in range(len(head))]
    aligned = [[c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths))] for r in [head, *rows]]  # noqa: B905
    return "\n".join("  ".join(r).rstrip() for r in aligned)


def case_text(result: Found) -> str:
    """The tables of one case."""
    ran = {name: peer for name, peer in result["peers"].items() if "error" not in peer}
    lines = [f"## {result['name']}: {result['what']}", ""]
    rows = []
    for name, peer in ran.items():
        error = f"{peer['difference']:.1e}" if "difference" in peer else "-"
        rows.append([name, f"{peer['open']:.1f}", f"{peer['first_step']:.1f}", f"{peer['peak'] / GIB:.2f}", error])
    lines += [table(["peer", "open, s", "until first step, s", "peak, GiB", "‖a−b‖/‖b‖ to hspace onnx"], rows), ""]
    lines += [f"{name}: not run: {peer['error']}" for name, peer in result["peers"].items() if "error" in peer]
    for key in (PLAIN, ASYMMETRIC, "seconds"):
        rows = []
        ours = best(result, lambda p, key=key: series(p, key))
        for name, peer in ran.items():
            if values := series(peer, key):
                rows.append([name, spread([1e3 * v for v in values], ""), spread(ratios(values, ours))])
        title = key if key != "seconds" else f"edit, {result['steps'][0]} + {result['steps'][1]}"
        if rows:
            lines += ["", table([f"{title}, ms", "median [min … max]", "over hspace's best, round by round"], rows)]
    rows = []
    ours = best(result, lambda p: p.get("round_trip", []))
    for name, peer in ran.items():
        if values := peer.get("round_trip"):
            rows.append([name, spread([1e3 * v for v in values], ""), spread(ratios(values, ours))])
    if rows:
        title = f"round trip, {result['steps'][0]} + {result['steps'][1]} evaluations, ms"
        lines += ["", table([title, "median [min … max]", "over hspace's best"], rows)]
    rows = []
    for name, peer in ran.items():
        if composed(peer):
            counts = ", ".join(f"{n} {kind}" for kind, n in peer["counts"].items())
            full = f"{peer['full']:.1f}" if "full" in peer else "-"
            cells = [name, counts, spread(composed(peer), ""), full]
            for which in (EQUAL, BALANCED):
                values, how = whole(result, name, which)
                cells.append(f"{spread(values)} {how}" if values else "-")
            rows.append(cells)
    e, d = result["official"]
    head = [f"edit, {e} + {d}", "evaluations", "composed, s", "measured, s", "over hspace's best", "over its balanced"]
    lines += ["", table(head, rows)]
    for name, peer in ran.items():
        if values := peer.get("balanced"):
            lines.append(f"{name}, preset balanced: {spread(values, ' s')} measured")
    if not any("balanced" in peer for peer in ran.values()):
        lines.append("preset balanced: the bundle has none")
    return "\n".join(lines)


def goals(results: Sequence[Found]) -> list[Found]:
    """What must be shown, the number, and whether it was met."""
    by_name = {result["name"]: result for result in results}
    rows = []
    for what, case, which, least in (
        ("Asyrp edit at balanced, against torch eager at 40 + 40", "ddpm256", BALANCED, 20.0),
        ("Asyrp edit, both at 40 + 40, against torch eager", "ddpm256", EQUAL, 4.0),
        ("DiffAE edit at balanced, against torch eager at 250 + 100", "diffae256", BALANCED, 50.0),
    ):
        values: list[float] = []
        how = "not measured"
        if case in by_name and "error" not in by_name[case]["peers"].get(EAGER, {"error": ""}):
            values, found_how = whole(by_name[case], EAGER, which)
            how = found_how if values else how
        verdict = ("met" if median(values) >= least else "missed") if values else "-"
        rows.append({"what": what, "goal": f"≥ {least:.0f}×", "found": spread(values), "how": how, "verdict": verdict})
    peaks = {}
    for case in ("ddpm256", "diffae256"):
        engines = by_name.get(case, {"peers": {}})["peers"].items()
        ran = [
            (median(series(p, "seconds")), p["peak"] / GIB, n) for n, p in engines if n[:7] == "hspace " and "edit" in p
        ]
        if ran:
            _, peak, name = min(ran)
            peaks[f"{case} {name.removeprefix('hspace ')}"] = peak
    shown = ", ".join(f"{peak:.2f} ({name})" for name, peak in peaks.items()) or "-"
    verdict = ("met" if max(peaks.values()) <= 1.5 else "missed") if peaks else "-"
    how = "measured" if peaks else "not measured"
    memory = {"what": "peak memory of an edit at 256×256, GiB, of the fastest engine", "goal": "≤ 1.5"}
    return [*rows, memory | {"found": shown, "how": how, "verdict": verdict}]


def goals_text(rows: Sequence[Found]) -> str:
    keys = ("what", "goal", "found", "how", "verdict")
    return table(["what it must show", *keys[1:]], [[r[k] for k in keys] for r in rows])


def plot(results: Sequence[Found], path: Path) -> None:
    """Bars: how many times as long as hspace's best each peer takes for a whole edit; error bars from least to most."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(results), figsize=(5.6 * len(results), 4.2), squeeze=False)
    colours = {EQUAL: "#4c72b0", BALANCED: "#dd8452"}
    for axis, result in zip(axes[0], results, strict=True):
        names = [n for n, p in result["peers"].items() if "error" not in p and composed(p)]
        shown = [which for which in colours if any(whole(result, n, which)[0] for n in names)]
        height = 0.8 / max(1, len(shown))
        for k, which in enumerate(shown):
            for i, name in enumerate(names):
                values, _ = whole(result, name, which)
                if not values:
                    continue
                m, y = median(values), i + (k - (len(shown) - 1) / 2) * height
                label = f"hspace at {which}" if i == 0 else None
                error = [[m - min(values)], [max(values) - m]]
                axis.barh(y, m, height * 0.92, xerr=error, color=colours[which], capsize=2, label=label)
                axis.annotate(f"{m:.3g}×", (max(values), y), (4, 0), textcoords="offset points", va="center", size=8)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_title(f"{result['name']}, official {result['official'][0]} + {result['official'][1]}", size=10)
        axis.set_xlabel("time of a whole edit, over hspace's fastest engine")
        axis.set_xlim(0, axis.get_xlim()[1] * 1.15)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
