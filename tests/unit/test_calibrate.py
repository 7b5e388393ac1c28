"""Indicators against direct computations."""

from __future__ import annotations

import json
from pathlib import Path

import hspace
import msgspec
import numpy as np
import PIL.Image
import pytest

pytest.importorskip("skimage", reason="calibration needs the extra `fit`")
pytest.importorskip("onnx", reason="graphs are made with the extra `export`")

import onnx
from hspace.amend import set_preset
from hspace.bundle import Bundle
from hspace.errors import BundleError, Cancelled, EngineError, HspaceError
from hspace.image import load_images
from hspace_export.calibrate import Curves, Lpips, Structural, measure, plot


def pictures(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        PIL.Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return paths


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over channels and full 7×7 windows, in float64 (Wang et al. 2004, equation 13; sample covariances)."""
    c1, c2, found = (0.01 * 2) ** 2, (0.03 * 2) ** 2, []
    for x, y in zip(a.astype(float), b.astype(float), strict=True):
        wx, wy = (np.lib.stride_tricks.sliding_window_view(i, (7, 7)).reshape(-1, 49) for i in (x, y))
        mx, my, n = wx.mean(1), wy.mean(1), 48
        vx, vy = ((w - m[:, None]) for w, m in ((wx, mx), (wy, my)))
        cov, sx, sy = (vx * vy).sum(1) / n, (vx**2).sum(1) / n, (vy**2).sum(1) / n
        found.append(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (sx + sy + c2))).mean())
    return float(np.mean(found))


def test_structural() -> None:
    rng = np.random.default_rng()
    a = rng.uniform(-1, 1, (3, 3, 16, 16)).astype(np.float32)
    noise = rng.standard_normal(a.shape).astype(np.float32)
    assert np.allclose(Structural()(a, a), 0, atol=1e-6)
    levels = [Structural()(a, a + np.float32(s) * noise) for s in (0.05, 0.2, 0.5, 1.0)]
    assert (np.diff(levels, axis=0) > 0).all() and levels[-1].shape == (3,)
    assert np.allclose(
        levels[1], [1 - ssim(x, y) for x, y in zip(a, a + np.float32(0.2) * noise, strict=True)], atol=1e-4
    )


class Squared:
    """A distance whose value is plain."""

    name, t_edit, t_boost = "squared", 1.0, 1.0

    def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.square(a.astype(np.float64) - b).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_measure(null_editor: hspace.Editor, batch_size: int, tmp_path: Path) -> None:
    files, seen = pictures(tmp_path / "a", 5), []
    x = load_images(files, 8)
    null_editor.encode(x, steps=4, on_step=lambda s: seen.append((int(s.t[0]), s.x_0.copy(), s.x.copy())))
    editor, steps = hspace.Editor(null_editor.bundle, null_editor.engine, batch_size=batch_size), []
    curves = measure(editor, files, Squared(), steps=4, on_step=steps.append)
    assert (curves.distance, curves.images) == ("squared", 5)
    assert curves.timesteps.tolist() == [t for t, _, _ in seen] == sorted({t for t, _, _ in seen})
    for k, (_, p, x_t) in enumerate(seen):
        for image, (mean, std) in ((p, curves.to_p), (x_t, curves.to_x)):
            distances = Squared()(image, x)
            assert np.isclose(mean[k], distances.mean()) and np.isclose(std[k], distances.std())
    assert curves.to_x[0][0] == 0  # an inversion starts at the image itself
    assert len(steps) == len(seen) * -(-5 // batch_size)
    json.dumps(curves.json(), allow_nan=False)


def test_measure_files_a_state_under_its_own_level(null_folder: Path, tmp_path: Path) -> None:
    """diffusers' inversions tell the network where a step ends; the state is still at the level where it starts."""
    bundle, files = Bundle(null_folder), pictures(tmp_path / "a", 2)
    preset = msgspec.structs.replace(bundle.preset()[1], spacing="leading", clip=False)
    set_preset(bundle, "leading", preset)
    editor, seen = hspace.open(null_folder, engine="null"), []
    x = load_images(files, 8)
    editor.encode(x, preset="leading", steps=4, on_step=lambda s: seen.append((int(s.t[0]), s.x.copy())))
    assert [t for t, _ in seen] == [0, 250, 500, 750] and np.array_equal(seen[0][1], x)
    curves = measure(editor, files, Squared(), preset="leading", steps=4)
    assert curves.timesteps.tolist() == [0, 250, 500]  # the image itself, where the first step starts, is left out
    for k, (_, x_t) in enumerate(seen[1:]):
        assert np.isclose(curves.to_x[0][k], Squared()(x_t, x).mean())


def test_measure_can_be_cancelled(null_asyrp: hspace.Editor, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        measure(null_asyrp, pictures(tmp_path / "a", 1), Squared(), on_step=lambda s: s.index < 2)


def curves() -> Curves:
    mean = np.array([0.0, 0.3, 0.2, 0.8])
    return Curves("squared", 2, np.array([0, 100, 300, 999]), (mean, mean / 10), (mean[::-1], mean / 10))


def test_first() -> None:
    made = curves()
    firsts = [made.first(made.to_p, threshold) for threshold in (0.0, 0.2, 0.3, 0.31, 0.8, 0.81)]
    assert firsts == [0, 100, 100, 999, 999, None]
    assert made.first(made.to_x, 0.5) == 0


def test_plot(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra `fit`")
    plot(tmp_path / "c.png", curves(), [("t_edit", 0.25, 100), ("t_boost", 1.2, None)])
    with PIL.Image.open(tmp_path / "c.png") as image:
        assert image.format == "PNG" and image.width > 2 * image.height
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


# --- LPIPS's file -----------------------------------------------------------------------------------------


def graph(
    path: Path,
    size: int = 8,
    names: tuple[str, str, str] = ("a", "b", "distance"),
    batch: object = "N",
    double: bool = False,
) -> Path:
    """Mean squared difference as an ONNX file."""
    kind = onnx.TensorProto.DOUBLE if double else onnx.TensorProto.FLOAT
    a, b, out = names
    helper = onnx.helper
    nodes = [
        helper.make_node("Sub", [a, b], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["e"]),
        helper.make_node("ReduceMean", ["e", "axes"], [out], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info(i, kind, [batch, 3, size, size]) for i in (a, b)]
    axes = onnx.numpy_helper.from_array(np.array([1, 2, 3]), "axes")
    made = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info(out, kind, [batch])], [axes])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_lpips_runs_its_graph(tmp_path: Path) -> None:
    distance = Lpips(graph(tmp_path / "l.onnx"), 8)
    assert distance.name == "LPIPS, l.onnx" and (distance.t_edit, distance.t_boost) == (0.33, 1.2)
    a, b = np.random.default_rng(0).standard_normal((2, 3, 3, 8, 8), dtype=np.float32)
    found = distance(a, b)
    assert found.dtype == np.float64 and np.allclose(found, np.square(a - b).mean(axis=(1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"size": 16}, {"names": ("x", "b", "distance")}, {"names": ("a", "b", "d_out")}, {"double": True}],
    ids=["size", "input", "output", "float64"],
)
def test_lpips_refuses_other_graphs(options: dict, tmp_path: Path) -> None:
    says = r"l\.onnx: (found inputs .*expected a and b, tensor\(float\) \[N, 3, 8, 8\]|inputs: 'a': found data type 11)"
    with pytest.raises(HspaceError, match=says):
        Lpips(graph(tmp_path / "l.onnx", **options), 8)


def test_lpips_for_another_batch(tmp_path: Path) -> None:
    distance = Lpips(graph(tmp_path / "l.onnx", batch=1), 8)
    x = np.zeros((2, 3, 8, 8), np.float32)
    assert distance(x[:1], x[:1]) == [0]
    with pytest.raises(EngineError, match=r"l\.onnx: cannot be evaluated for 2 pairs"):
        distance(x, x)


def test_lpips_refuses_garbage(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        Lpips(tmp_path / "nowhere.onnx", 8)
    for data in (b"", b"garbage", b"\x08\x09"):
        (tmp_path / "l.onnx").write_bytes(data)
        with pytest.raises(HspaceError, match=r"l\.onnx: ") as caught:
            Lpips(tmp_path / "l.onnx", 8)
        assert isinstance(caught.value, (EngineError, BundleError))
